"""The criterion, stage by stage, and the first place where two programs part.

float64: the largest error is at most 1e-9 of the stage's range (Grad-CAM++: 1e-6), or 4 times what the reference's own
float64 is off by there (TensorFlow's gelu has a float32 constant) or moves with an input scaled by 1 + 1e-14: *the same
function*.
float32: against the reference's float64, relative L2 at most 4 times the worst that the reference's own float32 reaches
on that stage in this run (at least 1e-5; of any model also what gradients and maps move by when the inputs move by 1e-5,
because one run is one draw of ReLUs that flip), and for maps a Pearson correlation of 0.999, or no worse than the reference's
own where that is lower: *the same up to rounding*. The candidate's own rounding is shown and never part of a limit.
What the reference's float32 reaches, and which values have no one value and are left out: see `rounding`.

Judged are, in float64, all stages but the gradients that no map is made of (behind a ReLU that is closed they may differ
and reach nothing); in float32 the forward stages and the maps, because a gradient between them may flip with a ReLU
without the map's being wrong by more than the reference's own. The others name the place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parity import formulas, rounding
from parity.case import Case
from parity.contract.artifact import Artifact
from parity.contract.methods import METHODS
from parity.contract.stages import Stage
from parity.rounding import Floor
from parity.similarity import error_of_range, pearson, relative_l2

SAME_FUNCTION, SAME_ROUNDING, DIFFERENT, DESCRIBED = (
    "the same function",
    "the same up to rounding",
    "different",
    "described, not judged",
)

FLOAT64_LIMIT = 1e-9
"""Of the stages that all maps share; each map's own stands in its row of `methods.METHODS`."""

FLOOR_FACTOR = 4.0
FLOOR_LEAST = 1e-5
PEARSON_LEAST = 0.999

NETWORK = "network"
"""The rows that all methods share: inputs, activations, logits, score, gradients."""


@dataclass(frozen=True)
class Figure:
    """One stage of one photograph in one precision, against the reference's float64.

    Attributes:
        stage: its name.
        photograph: its row.
        precision: the candidate's.
        relative_l2: ‖candidate − reference‖ / ‖reference‖.
        max_error: of the reference's range.
        pearson: of maps; NaN for other stages, and where a map is constant.
        floor_l2: the reference's own float32 against its float64; NaN where the artifact lacks one.
        floor_max: likewise.
        floor_pearson: likewise.
        alone: relative L2 between this stage and the formula applied to the candidate's own previous stage: the error of
            this step alone; NaN where the previous stage is not kept whole.
        limit: what `relative_l2` (float64: `max_error`) may be; NaN where there is none.
        judged: whether the verdict rests on it.
        within: whether it keeps its limit.
        left_out: share of its values that were not compared, because equal pixels tie in a max-pool there.
    """

    stage: str
    photograph: int
    precision: str
    relative_l2: float
    max_error: float
    pearson: float
    floor_l2: float
    floor_max: float
    floor_pearson: float
    alone: float
    limit: float
    judged: bool
    within: bool
    left_out: float = 0.0

    @property
    def error(self) -> float:
        """What is held against the limit: of the range in float64, relative L2 otherwise."""
        return self.max_error if self.precision == "fp64" else self.relative_l2

    @property
    def floor(self) -> float:
        """The reference's own float32 in the same unit."""
        return self.floor_max if self.precision == "fp64" else self.floor_l2


@dataclass(frozen=True)
class Divergence:
    """Where a method's computation first leaves the reference's.

    Attributes:
        method: its name, or `NETWORK`.
        photograph: its row.
        precision: the candidate's.
        stage: the first one beyond its limit.
        figure: the stage's error: of the range in float64, relative L2 otherwise.
        limit: what it may be.
        cause: the probable cause in words, or "".
        not_given: earlier stages that the candidate did not give, so the true place may be before.
    """

    method: str
    photograph: int
    precision: str
    stage: str
    figure: float
    limit: float
    cause: str
    not_given: int


@dataclass(frozen=True)
class Verdict:
    """One method in one precision, over all photographs.

    Attributes:
        method: its name, or `NETWORK`.
        precision: the candidate's.
        word: one of the four constants above.
        holds: False for `DIFFERENT` only.
        worst: the largest error of its judged stages: of the range in float64, relative L2 otherwise.
        worst_stage: whose that is.
        limit: of that stage.
        pearson: the lowest of its final maps; NaN where there is none.
        divergences: one for each photograph that fails.
    """

    method: str
    precision: str
    word: str
    holds: bool
    worst: float
    worst_stage: str
    limit: float
    pearson: float
    divergences: tuple[Divergence, ...]


def figures(reference: Artifact, candidate: Artifact, precision: str) -> list[Figure]:
    """Compare every stage that the candidate gave, in the order of the computation.

    Args:
        reference: with float64.
        candidate: the same job, in `precision`.
        precision: the candidate's.
    """
    rows: list[Figure] = []
    photographs = range(len(reference.photographs))
    tied = [rounding.ties(reference, i) for i in photographs]
    simulated = rounding.simulated(reference) if precision != "fp64" else {}
    for stage in candidate.stages:
        cases = [Case(reference, candidate, precision, i, stage) for i in photographs]
        if stage.name == "pixels" or not reference.has(stage.name, "fp64") or not cases[0].is_given:
            continue
        kept = [rounding.decided(reference, stage, pixels) for pixels in tied]
        floors = [rounding.floor(reference, stage, i, kept[i]) for i in photographs]
        reached = [*floors, *simulated.get(stage.name, ())]
        rows += [_figure(case, kept[i], floors[i], reached) for i, case in enumerate(cases)]
    return rows


def _figure(case: Case, kept: np.ndarray, floor: Floor, reached: Sequence[Floor]) -> Figure:
    """One stage of one photograph.

    Args:
        case: the stage.
        kept: which of its values have one value; see `rounding.decided`.
        floor: the reference's own float32 on this photograph.
        reached: what that reaches on the stage over all photographs.
    """
    stage, precision = case.stage, case.precision
    expected, actual = case.expected, case.actual
    if precision == "fp64":
        moved = rounding.as_reference_rounds(case.reference, case.candidate, stage, case.photograph)
        actual = actual if moved is None else actual + moved
    if stage.quantity == "final" and not kept.all():  # its extremes may be among those left out
        expected = case.kept(formulas.finish(case.their_raw, case.candidate.table.size))
    else:
        expected, actual = expected[kept], actual[kept]
    scale = rounding.scale_of(case.reference, stage, case.photograph)
    l2, largest = relative_l2(actual, expected) / scale, error_of_range(actual, expected) / scale
    correlation = pearson(actual, expected) if stage.is_map else math.nan
    limit = limit_of(stage, precision, reached, case.reference.moves.get(stage.name, 0.0))
    if precision == "fp64":
        within = largest <= limit
    else:
        within = l2 <= limit and (not stage.is_map or _correlates(correlation, reached, expected))
    alone = recomputed(case)
    return Figure(
        stage.name,
        case.photograph,
        precision,
        l2,
        largest,
        correlation,
        *(floor.relative_l2, floor.max_error, floor.pearson),
        alone=math.nan if alone is None else relative_l2(case.actual, case.kept(alone)),
        limit=limit,
        judged=_judged(case),
        within=within,
        left_out=1 - float(kept.mean()),
    )


def limit_of(stage: Stage, precision: str, reached: Iterable[Floor], own_error: float = 0.0) -> float:
    """What a stage's error may be: of the range in float64, relative L2 otherwise.

    Args:
        stage: whose.
        precision: the candidate's.
        reached: what the reference's own float32 reaches on it, over all photographs.
        own_error: what the reference's own float64 is off by, or moves, there.
    """
    if precision == "fp64":
        return max(float64_limit(stage.method), FLOOR_FACTOR * own_error)
    errors = [floor.relative_l2 for floor in reached if math.isfinite(floor.relative_l2)]
    return max([FLOOR_FACTOR * error for error in errors] + [FLOOR_LEAST])


def float64_limit(method: str) -> float:
    """What a stage of a method ("": of the network) may be off by in float64, of its range, where the reference is not off itself."""
    return METHODS[method].float64_limit if method in METHODS else FLOAT64_LIMIT


def origin_of(figure: Figure) -> str:
    """Where a limit comes from, in words; "" where float64's usual one holds."""
    if figure.precision == "fp64":
        own = figure.limit > float64_limit(figure.stage.partition("/")[0])
        return f"{FLOOR_FACTOR:g} × the reference's own float64 error" if own else ""
    own = figure.limit > FLOOR_LEAST
    return f"{FLOOR_FACTOR:g} × the reference's own" if own else "the least"


def _correlates(correlation: float, reached: Iterable[Floor], expected: np.ndarray) -> bool:
    """Whether a map is like the reference's as far as the reference is like itself."""
    if math.isnan(correlation):  # a constant map has no correlation: then both must be constant, which relative L2 sees
        return expected.size == 0 or bool(np.ptp(expected) == 0)
    own = [floor.pearson for floor in reached if not math.isnan(floor.pearson)]
    return correlation >= min([PEARSON_LEAST, *own])


def _judged(case: Case) -> bool:
    if not np.isfinite(case.expected).all():  # exp(score) may have overflowed in the library's own final map
        return False
    if case.precision == "fp64":
        return case.stage.quantity != "gradients" or case.stage.layer in ("inputs", case.reference.table.target)
    return case.stage.is_map or case.stage.quantity in ("inputs", "activations", "logits", "score", "noise")


def verdicts(
    reference: Artifact, candidate: Artifact, precision: str, rows: Sequence[Figure], explain: Callable[[Case], str]
) -> list[Verdict]:
    """One for the network's own stages, and one for each method.

    Args:
        reference: with float64.
        candidate: the same job.
        precision: the candidate's.
        rows: `figures` of these.
        explain: the probable cause in words, or "", once it is known where: `causes.probable_cause`.
    """

    def divergence(method: str, photograph: int) -> Divergence:
        """The first stage on a failing method's path that is beyond its limit."""
        by_stage = {row.stage: row for row in rows if row.photograph == photograph}
        path = path_to(method, candidate.stages, candidate.table.target)
        first = next(i for i, name in enumerate(path) if name in by_stage and not by_stage[name].within)
        row, not_given = by_stage[path[first]], sum(name not in by_stage for name in path[:first])
        cause = explain(Case(reference, candidate, precision, photograph, candidate.stage(row.stage)))
        return Divergence(method, photograph, precision, row.stage, row.error, row.limit, cause, not_given)

    method_of = {stage.name: stage.method or NETWORK for stage in candidate.stages}
    answers = []
    for method in (NETWORK, *candidate.settings.methods):
        own = [row for row in rows if method_of[row.stage] == method]
        judged = [row for row in own if row.judged]
        if not judged:
            continue
        worst = max(judged, key=lambda row: (not row.within, row.error / row.limit if row.limit > 0 else 0.0))
        where = tuple(divergence(method, i) for i in sorted({row.photograph for row in judged if not row.within}))
        word = SAME_FUNCTION if precision == "fp64" else SAME_ROUNDING
        if where:
            word = DIFFERENT if precision in ("fp64", "fp32") else DESCRIBED
        finals = [row.pearson for row in own if row.stage.endswith("/final") and not math.isnan(row.pearson)]
        lowest = min(finals, default=math.nan)
        holds = word != DIFFERENT
        answers.append(Verdict(method, precision, word, holds, worst.error, worst.stage, worst.limit, lowest, where))
    return answers


def path_to(method: str, stages: Iterable[Stage], target_layer: str) -> list[str]:
    """The stages that a method's map depends on, in the order of the computation.

    The gradients of a map at a layer end there; the others go on to the inputs. For `NETWORK`: all shared stages.
    """
    names: list[str] = []
    ends_at_layer = method in METHODS and METHODS[method].at_layer
    for stage in stages:
        if stage.name == "pixels" or stage.method not in ("", method):
            continue
        beyond = stage.quantity == "gradients" and f"gradients/{target_layer}" in names
        if not (ends_at_layer and not stage.method and beyond):
            names.append(stage.name)
    return names


def recomputed(case: Case) -> np.ndarray | None:
    """The stage by the reference's formula from the candidate's own previous stage; None where that is not known."""
    stage, candidate = case.stage, case.candidate
    if stage.name == "inputs":
        return formulas.inputs_of(case.reference, case.photograph)
    if stage.name == "score" and (logits := case.theirs("logits")) is not None:
        return np.asarray(formulas.class_scores(logits)[case.explained], np.float64)
    if stage.quantity in ("upsampled", "final") and (raw := case.theirs(f"{stage.method}/raw")) is not None:
        size = candidate.table.size
        return formulas.upsample(raw, size) if stage.quantity == "upsampled" else formulas.finish(raw, size)
    formula = formulas.FORMULAS.get(stage.method)
    if formula is None:
        return None
    names = {kind: f"{kind}/{candidate.table.target}" for kind in ("activations", "gradients")}
    names |= {quantity.name: f"{stage.method}/{quantity.name}" for quantity in METHODS[stage.method].quantities}
    given = {kind: array for kind, name in names.items() if (array := case.theirs(name)) is not None}
    return formula.make(given).get(stage.quantity) if formula.reads <= given.keys() else None
