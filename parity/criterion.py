"""The criterion, stage by stage, and the first place where two programs part.

float64: the largest error is at most 1e-9 of the stage's range (Grad-CAM++: 1e-6): *the same function*.
float32: against the reference's float64, relative L2 at most 4 times the worst that the reference's own float32 reaches
on that stage in this run (at least 1e-5), and for maps a Pearson correlation of 0.999, or no worse than the reference's
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

Explain = Callable[[Artifact, Artifact, str, int, str], str]
"""(reference, candidate, precision, photograph, stage) → the probable cause in words, or ""; `causes.probable_cause`."""


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
    tied = [rounding.ties(reference, i) for i in range(len(reference.photographs))]
    simulated = rounding.simulated(reference) if precision != "fp64" else {}
    for stage in candidate.stages:
        if stage.name != "pixels" and reference.has(stage.name, "fp64") and _has(candidate, stage, precision):
            kept = [rounding.decided(reference, stage, pixels) for pixels in tied]
            floors = [rounding.floor(reference, stage, i, chosen) for i, chosen in enumerate(kept)]
            reached = [*floors, *simulated.get(stage.name, ())]
            for i, chosen in enumerate(kept):
                rows.append(_figure(reference, candidate, precision, stage, i, chosen, floors[i], reached))
    return rows


def _figure(
    reference: Artifact,
    candidate: Artifact,
    precision: str,
    stage: Stage,
    photograph: int,
    kept: np.ndarray,
    floor: Floor,
    reached: Sequence[Floor],
) -> Figure:
    """One stage of one photograph; `reached` is what the reference's own float32 reaches on this stage."""
    expected, actual = _compared(reference, candidate, precision, stage, photograph, kept)
    scale = rounding.scale_of(reference, stage, photograph)
    l2, largest = relative_l2(actual, expected) / scale, error_of_range(actual, expected) / scale
    correlation = pearson(actual, expected) if stage.is_map else math.nan
    limit = limit_of(stage, precision, reached)
    if precision == "fp64":
        within = largest <= limit
    else:
        within = l2 <= limit and (not stage.is_map or _correlates(correlation, reached, expected))
    # The reference's own float64 may say nothing: exp(score) may have overflowed in the library's own final map.
    usable = bool(np.isfinite(reference.values(stage.name, "fp64")[photograph]).all())
    return Figure(
        stage.name,
        photograph,
        precision,
        l2,
        largest,
        correlation,
        floor.relative_l2,
        floor.max_error,
        floor.pearson,
        _alone(candidate, stage, precision, photograph),
        limit,
        usable and _judged(reference, stage, precision),
        within,
        1 - float(kept.mean()),
    )


def _compared(
    reference: Artifact, candidate: Artifact, precision: str, stage: Stage, photograph: int, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's values and the candidate's, without those that have no one value."""
    actual = _values(candidate, stage, precision, photograph)
    if (
        precision == "fp64"
        and (moved := rounding.as_reference_rounds(reference, candidate, stage, photograph)) is not None
    ):
        actual = actual + moved
    if stage.quantity == "final" and not kept.all():  # its extremes may be among those left out
        raw = candidate.whole(f"{stage.method}/raw", precision)[photograph]
        return stage.take(formulas.finish(raw, candidate.table.size)[None])[0], actual
    return reference.values(stage.name, "fp64")[photograph][kept], actual[kept]


def limit_of(stage: Stage, precision: str, reached: Iterable[Floor]) -> float:
    """What a stage's error may be: of the range in float64, relative L2 otherwise.

    Args:
        stage: whose.
        precision: the candidate's.
        reached: what the reference's own float32 reaches on it, over all photographs.
    """
    if precision == "fp64":
        return METHODS[stage.method].float64_limit if stage.method else FLOAT64_LIMIT
    errors = [floor.relative_l2 for floor in reached if math.isfinite(floor.relative_l2)]
    return max([FLOOR_FACTOR * error for error in errors] + [FLOOR_LEAST])


def _correlates(correlation: float, reached: Iterable[Floor], expected: np.ndarray) -> bool:
    """Whether a map is like the reference's as far as the reference is like itself."""
    if math.isnan(correlation):  # a constant map has no correlation: then both must be constant, which relative L2 sees
        return expected.size == 0 or bool(np.ptp(expected) == 0)
    own = [floor.pearson for floor in reached if not math.isnan(floor.pearson)]
    return correlation >= min([PEARSON_LEAST, *own])


def _judged(reference: Artifact, stage: Stage, precision: str) -> bool:
    if precision == "fp64":
        return stage.quantity != "gradients" or stage.layer in ("inputs", reference.table.target)
    return stage.is_map or stage.quantity in ("inputs", "activations", "logits", "score", "noise")


def verdicts(
    reference: Artifact, candidate: Artifact, precision: str, rows: Sequence[Figure], explain: Explain
) -> list[Verdict]:
    """One for the network's own stages, and one for each method.

    Args:
        reference: with float64.
        candidate: the same job.
        precision: the candidate's.
        rows: `figures` of these.
        explain: says why, once it is known where.
    """
    method_of = {stage.name: stage.method or NETWORK for stage in candidate.stages}
    answers = []
    for method in (NETWORK, *candidate.settings.methods):
        own = [row for row in rows if method_of[row.stage] == method]
        judged = [row for row in own if row.judged]
        if not judged:
            continue
        failing = sorted({row.photograph for row in judged if not row.within})
        worst = max(judged, key=lambda row: (not row.within, row.error / row.limit if row.limit > 0 else 0.0))
        finals = [row.pearson for row in own if row.stage.endswith("/final") and not math.isnan(row.pearson)]
        word = _word(precision, differs=bool(failing))
        divergences = tuple(_divergence(reference, candidate, precision, method, i, rows, explain) for i in failing)
        lowest = min(finals, default=math.nan)
        holds = word != DIFFERENT
        answers.append(
            Verdict(method, precision, word, holds, worst.error, worst.stage, worst.limit, lowest, divergences)
        )
    return answers


def _word(precision: str, *, differs: bool) -> str:
    if differs:
        return DIFFERENT if precision in ("fp64", "fp32") else DESCRIBED
    return SAME_FUNCTION if precision == "fp64" else SAME_ROUNDING


def _divergence(
    reference: Artifact,
    candidate: Artifact,
    precision: str,
    method: str,
    photograph: int,
    rows: Iterable[Figure],
    explain: Explain,
) -> Divergence:
    """The first stage on a failing method's path that is beyond its limit."""
    by_stage = {row.stage: row for row in rows if row.photograph == photograph}
    not_given = 0
    for name in path_to(method, candidate.stages, candidate.table.target):
        row = by_stage.get(name)
        if row is None:
            not_given += 1
        elif not row.within:
            cause = explain(reference, candidate, precision, photograph, name)
            return Divergence(method, photograph, precision, name, row.error, row.limit, cause, not_given)
    raise AssertionError("a failing method has a failing stage")


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


def _has(candidate: Artifact, stage: Stage, precision: str) -> bool:
    if stage.quantity == "final_with_exp":  # recomputed here: see _values
        return candidate.has(f"{stage.method}/raw", precision) and candidate.has("score", precision)
    return candidate.has(stage.name, precision)


def _values(candidate: Artifact, stage: Stage, precision: str, photograph: int) -> np.ndarray:
    """The candidate's values of a stage, as kept: (kept,)."""
    if stage.quantity != "final_with_exp":
        return np.asarray(candidate.values(stage.name, precision)[photograph])
    # The library leaves exp(score) in; multiplied back, its absolute 1e-7 squeezes the candidate's map as it does its own.
    raw = candidate.whole(f"{stage.method}/raw", precision)[photograph].astype(np.float64)
    score = float(candidate.values("score", precision)[photograph, 0])
    drawn = formulas.enlarged(raw, candidate.table.size, score)["final_with_exp"]
    return np.asarray(stage.take(drawn[None])[0])


def _alone(candidate: Artifact, stage: Stage, precision: str, photograph: int) -> float:
    """This step's own error: the stage against the formula on the candidate's previous stage."""
    made = recomputed(candidate, stage, precision, photograph)
    if made is None:
        return math.nan
    return relative_l2(_values(candidate, stage, precision, photograph), stage.take(made[None])[0])


def recomputed(artifact: Artifact, stage: Stage, precision: str, photograph: int) -> np.ndarray | None:
    """A stage by the reference's formula from the artifact's own previous stage; None where that is not known."""

    def own(name: str) -> np.ndarray | None:
        given = artifact.has(name, precision) and artifact.stage(name).whole
        return artifact.whole(name, precision)[photograph] if given else None

    if stage.name == "inputs":
        return formulas.preprocess(artifact.pixels[photograph], artifact.settings.input)
    if stage.name == "score" and (logits := own("logits")) is not None:
        return np.asarray(logits[artifact.classes[photograph]], np.float64)
    if stage.quantity in ("upsampled", "final") and (raw := own(f"{stage.method}/raw")) is not None:
        size = artifact.table.size
        return formulas.upsample(raw, size) if stage.quantity == "upsampled" else formulas.finish(raw, size)
    formula = formulas.FORMULAS.get(stage.method)
    if formula is None:
        return None
    names = {kind: f"{kind}/{artifact.table.target}" for kind in ("activations", "gradients")}
    names |= {quantity.name: f"{stage.method}/{quantity.name}" for quantity in METHODS[stage.method].quantities}
    given = {kind: array for kind, name in names.items() if (array := own(name)) is not None}
    if not formula.reads <= given.keys():
        return None
    return formula.make(given).get(stage.quantity)
