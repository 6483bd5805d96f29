"""The criterion, stage by stage, and the first place where two programs part.

float64: the largest error is at most 1e-9 of the stage's range (Grad-CAM++: 1e-6): *the same function*.
float32: against the reference's float64, relative L2 at most 4 times the worst that the reference's own float32 reaches
on that stage in this run (at least 1e-5), and for maps a Pearson correlation of 0.999, or no worse than the reference's
own where that is lower: *the same up to rounding*. The candidate's own rounding is shown and never part of a limit.

The reference's float32 is one draw of its rounding. Near a pole of Grad-CAM++'s alpha two such draws differ by more than
any fixed factor, so there the worst that it reaches is the larger of that draw and of `DRAWS` simulated ones: rounding of
the measured size on the reference's own float64 A and G. Where equal pixels tie in a max-pool the gradient has no one
value; those pixels, known from the photograph alone, are left out of the gradients and of vanilla saliency.

Judged are, in float64, all stages but the gradients that no map is made of (behind a ReLU that is closed they may differ
and reach nothing); in float32 the forward stages and the maps, because a gradient between them may flip with a ReLU
without the map's being wrong by more than the reference's own. The others name the place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from parity import formulas
from parity.contract.artifact import Artifact, Floor, floor_between
from parity.contract.stages import Stage, places
from parity.similarity import error_of_range, pearson, relative_l2

SAME_FUNCTION, SAME_ROUNDING, DIFFERENT, DESCRIBED = (
    "the same function",
    "the same up to rounding",
    "different",
    "described, not judged",
)

FLOAT64_LIMIT = 1e-9
FLOAT64_LIMIT_PLUS_PLUS = 1e-6
"""Grad-CAM++ divides by 2 + G·ΣA, which comes near 0 and magnifies float64's rounding; measured 2e-10."""

FLOOR_FACTOR = 4.0
FLOOR_LEAST = 1e-5
PEARSON_LEAST = 0.999

DRAWS = 16
"""Simulated roundings of A and G for Grad-CAM++'s floor."""

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
    found = []
    tied = [undecided(reference, i) for i in range(len(reference.photographs))]
    simulated = _simulated(reference) if precision != "fp64" else {}
    for stage in candidate.stages:
        if stage.name == "pixels" or not reference.has(stage.name, "fp64") or not _has(candidate, stage, precision):
            continue
        kept = [_decided(reference, stage, one) for one in tied]
        floor = _floor(reference, stage, kept)
        limit = _limit(stage, precision, np.append(floor.relative_l2, simulated.get(stage.name, (0.0, 1.0))[0]))
        for i in range(len(reference.photographs)):
            expected, actual = reference.values(stage.name, "fp64")[i], _values(candidate, stage, precision, i)
            if stage.name.endswith("/final") and not kept[i].all():  # its extremes may be among those left out
                expected = stage.take(_finished(candidate, stage, precision, i)[None])[0]
            else:
                expected, actual = expected[kept[i]], actual[kept[i]]
            scale = _scale(reference, stage, i)
            l2, largest = relative_l2(actual, expected) / scale, error_of_range(actual, expected) / scale
            correlation = pearson(actual, expected) if stage.is_map else math.nan
            if precision == "fp64":
                within = largest <= limit
            else:
                lowest = np.append(floor.pearson, simulated.get(stage.name, (0.0, 1.0))[1])
                within = l2 <= limit and _correlates(correlation, lowest, i, expected, actual, stage.is_map)
            found.append(
                Figure(
                    stage.name,
                    i,
                    precision,
                    l2,
                    largest,
                    correlation,
                    float(floor.relative_l2[i]),
                    float(floor.max_error[i]),
                    float(floor.pearson[i]),
                    _alone(candidate, stage, precision, i),
                    limit,
                    _judged(reference, stage, precision) and _usable(reference, stage, i),
                    within,
                    1 - float(kept[i].mean()),
                )
            )
    return found


def verdicts(
    reference: Artifact,
    candidate: Artifact,
    precision: str,
    found: list[Figure],
    explain: Callable[[Artifact, Artifact, str, int, str], str],
) -> list[Verdict]:
    """One for the network's own stages, and one for each method.

    Args:
        reference: with float64.
        candidate: the same job.
        precision: the candidate's.
        found: `figures` of these.
        explain: `causes.probable_cause`.
    """
    by_stage = {stage.name: stage for stage in candidate.stages}
    groups = {NETWORK: [f for f in found if not by_stage[f.stage].method]}
    for method in candidate.settings.methods:
        groups[method] = [f for f in found if by_stage[f.stage].method == method]
    answer = []
    for name, rows in groups.items():
        judged = [f for f in rows if f.judged]
        if not judged:
            continue
        failing = sorted({f.photograph for f in judged if not f.within})
        divergences = tuple(_divergence(reference, candidate, precision, name, i, found, explain) for i in failing)
        size = _size(precision)
        worst = max(judged, key=lambda f: (not f.within, size(f) / f.limit if f.limit > 0 else 0.0))
        finals = [f.pearson for f in rows if f.stage.endswith("/final") and not math.isnan(f.pearson)]
        if precision not in ("fp64", "fp32"):
            same = not failing
            word = SAME_ROUNDING if same else DESCRIBED
        else:
            same = not failing
            word = (SAME_FUNCTION if precision == "fp64" else SAME_ROUNDING) if same else DIFFERENT
        answer.append(
            Verdict(
                name,
                precision,
                word,
                word != DIFFERENT,
                size(worst),
                worst.stage,
                worst.limit,
                min(finals, default=math.nan),
                divergences,
            )
        )
    return answer


def path_to(method: str, stages: Iterable[Stage], target_layer: str) -> list[str]:
    """The stages that a method's map depends on, in the order of the computation.

    The CAMs' gradients end at their layer; vanilla saliency and SmoothGrad go on to the inputs. For `NETWORK`: all shared.
    """
    names = []
    gradients_end = False
    for stage in stages:
        if stage.name == "pixels":
            continue
        if not stage.method:
            if stage.quantity == "gradients" and method.startswith("gradcam") and gradients_end:
                continue
            names.append(stage.name)
            gradients_end = gradients_end or stage.name == f"gradients/{target_layer}"
        elif stage.method == method:
            names.append(stage.name)
    return names


def _divergence(
    reference: Artifact,
    candidate: Artifact,
    precision: str,
    method: str,
    photograph: int,
    found: list[Figure],
    explain: Callable[[Artifact, Artifact, str, int, str], str],
) -> Divergence:
    rows = {f.stage: f for f in found if f.photograph == photograph}
    order = path_to(method, candidate.stages, candidate.weights.architecture.target.keras)
    missing = 0
    for name in order:
        row = rows.get(name)
        if row is None:
            missing += 1
        elif not row.within:
            cause = explain(reference, candidate, precision, photograph, name)
            return Divergence(method, photograph, precision, name, _size(precision)(row), row.limit, cause, missing)
    raise AssertionError("a failing method has a failing stage")


def _size(precision: str) -> Callable[[Figure], float]:
    return (lambda f: f.max_error) if precision == "fp64" else (lambda f: f.relative_l2)


def _limit(stage: Stage, precision: str, floor_l2: np.ndarray) -> float:
    if precision == "fp64":
        return FLOAT64_LIMIT_PLUS_PLUS if stage.method == "gradcam_plus_plus" else FLOAT64_LIMIT
    finite = floor_l2[np.isfinite(floor_l2)]
    return max(FLOOR_FACTOR * float(finite.max()), FLOOR_LEAST) if finite.size else FLOOR_LEAST


def _judged(reference: Artifact, stage: Stage, precision: str) -> bool:
    if precision == "fp64":
        read = ("inputs", reference.weights.architecture.target.keras)
        return stage.quantity != "gradients" or stage.layer in read
    return stage.is_map or stage.quantity in ("inputs", "activations", "logits", "score", "noise")


def _usable(reference: Artifact, stage: Stage, photograph: int) -> bool:
    """Whether the reference's float64 says anything: exp(score) may have overflowed in the library's own final map."""
    return bool(np.isfinite(reference.values(stage.name, "fp64")[photograph]).all())


def _correlates(
    own: float, floors: np.ndarray, photograph: int, expected: np.ndarray, actual: np.ndarray, is_map: bool
) -> bool:
    if not is_map or not expected.size:
        return True
    if math.isnan(own):  # a constant map has no correlation: then both must be constant, which relative L2 has seen
        return bool(np.ptp(expected) == 0) or bool(np.ptp(actual) > 0 and math.isnan(floors[photograph]))
    return own >= min(PEARSON_LEAST, float(np.nanmin(np.append(floors, 1.0))))


def undecided(reference: Artifact, photograph: int) -> np.ndarray:
    """Pixels (H, W) of a photograph whose gradient has no one value: see `formulas.undecided`."""
    return formulas.undecided(reference.pixels[photograph], [len(b) for b in reference.weights.architecture.blocks])


def exp_is_lost(reference: Artifact, photograph: int) -> bool:
    """Whether exp(score), or its products with powers of G in Grad-CAM++, leave float32's range on the reference's side."""
    name = f"gradients/{reference.weights.architecture.target.keras}"
    if not all(reference.has(one, "fp64") for one in (name, "score")):
        return False
    sizes = np.abs(reference.whole(name, "fp64")[photograph])
    sizes = sizes[sizes > 1e-3 * sizes.max()]
    score = float(reference.values("score", "fp64")[photograph, 0])
    if not sizes.size:
        return False
    logs = [score + k * float(np.log(one)) for one in (sizes.min(), sizes.max()) for k in range(4)]
    return min(logs) < math.log(np.finfo(np.float32).tiny) or max(logs) > math.log(np.finfo(np.float32).max)


def _decided(reference: Artifact, stage: Stage, tied: np.ndarray) -> np.ndarray:
    """Which of a stage's kept values have one value, bool (kept,)."""
    kept = np.ones(stage.kept, bool)
    still = stage.method == "smoothgrad" and reference.settings.noise_level == 0
    is_gradient = stage.quantity == "gradients" or stage.method == "vanilla" or still
    if not tied.any() or not is_gradient or len(stage.shape) < 2 or stage.quantity == "noise":
        return kept
    step = len(tied) // stage.shape[0]
    cells = tied.reshape(stage.shape[0], step, stage.shape[1], step).any(axis=(1, 3))
    index = np.arange(stage.size) if stage.whole else places(stage.name, stage.shape, stage.kept)
    rows, columns, *_ = np.unravel_index(index, stage.shape)
    return ~np.asarray(cells)[rows, columns]


def _floor(reference: Artifact, stage: Stage, kept: list[np.ndarray]) -> Floor:
    """The reference's own float32 against its float64, over the values that are compared."""
    if not all(reference.has(stage.name, p) for p in ("fp32", "fp64")):
        return reference.floor(stage.name)
    rows = []
    for i, chosen in enumerate(kept):
        single, double = (reference.values(stage.name, p)[i : i + 1, chosen] for p in ("fp32", "fp64"))
        if stage.method == "gradcam_plus_plus" and exp_is_lost(reference, i):
            rows.append(np.full(3, math.nan))  # the reference's own accident is no measure of rounding
            continue
        empty = np.array([[0.0, 0.0, math.nan]])
        row = floor_between(single, double, stage.is_map) if chosen.any() else empty
        rows.append(row[0] / np.array([(scale := _scale(reference, stage, i)), scale, 1.0]))
    table = np.array(rows)
    return Floor(table[:, 0], table[:, 1], table[:, 2])


def _scale(reference: Artifact, stage: Stage, photograph: int) -> float:
    """A score near 0 is still one of the logits: its error is measured on their scale, as theirs is."""
    if stage.name != "score" or not reference.has("logits", "fp64"):
        return 1.0
    score = abs(float(reference.values("score", "fp64")[photograph, 0]))
    norm = float(np.linalg.norm(reference.values("logits", "fp64")[photograph]))
    return norm / score if score > 0 else 1.0


def _simulated(reference: Artifact) -> dict[str, tuple[float, float]]:
    """Stage of Grad-CAM++ → the worst relative L2 and Pearson that rounding of the measured size brings about."""
    target = reference.weights.architecture.target.keras
    names = f"activations/{target}", f"gradients/{target}"
    if "gradcam_plus_plus" not in reference.settings.methods or not all(
        reference.has(name, p) for name in (*names, "score") for p in ("fp32", "fp64")
    ):
        return {}
    stages = [s for s in reference.stages if s.method == "gradcam_plus_plus" and reference.has(s.name, "fp64")]
    worst = {stage.name: (0.0, 1.0) for stage in stages}
    for i in range(len(reference.photographs)):
        a, g = (reference.whole(name, "fp64")[i] for name in names)
        score, single = (float(reference.values("score", p)[i, 0]) for p in ("fp64", "fp32"))
        sizes = [_rounding(reference, name, i) for name in names]
        right = _plus_plus(reference, a, g, score)
        generator = np.random.RandomState(i)
        for draw in range(DRAWS):
            a_off, g_off = (
                x + (x != 0) * e * generator.standard_normal(x.shape) for x, e in zip((a, g), sizes, strict=True)
            )
            made = _plus_plus(reference, a_off, g_off, score + (single - score) * (-1) ** draw)
            for stage in stages:
                l2, lowest = worst[stage.name]
                values, expected = made[stage.quantity], right[stage.quantity]
                if np.isfinite(values).all() and np.isfinite(expected).all() and np.any(expected):
                    same = pearson(values, expected) if stage.is_map else math.nan
                    worst[stage.name] = max(l2, relative_l2(values, expected)), float(np.fmin(lowest, same))
    return worst


def _rounding(reference: Artifact, name: str, photograph: int) -> float:
    """How far one value of a stage is off in the reference's float32: root mean square over those that are not 0."""
    single, double = (reference.values(name, p)[photograph].astype(np.float64) for p in ("fp32", "fp64"))
    used = double != 0
    return float(np.sqrt(np.mean((single - double)[used] ** 2))) if used.any() else 0.0


def _plus_plus(reference: Artifact, a: np.ndarray, g: np.ndarray, score: float) -> dict[str, np.ndarray]:
    """Every stage of Grad-CAM++ by its formula."""
    size = reference.weights.architecture.size
    alpha = formulas.grad_cam_plus_plus_alpha(a, g)
    weights = formulas.grad_cam_plus_plus_weights(g, alpha)
    raw = formulas.class_activation_map(a, weights)
    upsampled = formulas.upsample(raw, size)
    with np.errstate(over="ignore", invalid="ignore"):
        drawn = formulas.finish(raw * np.exp(score), size)
    final = formulas.normalize(upsampled)
    return {
        "alpha": alpha,
        "weights": weights,
        "raw": raw,
        "upsampled": upsampled,
        "final": final,
        "final_with_exp": drawn,
    }


def _finished(candidate: Artifact, stage: Stage, precision: str, photograph: int) -> np.ndarray:
    """The final map that a candidate's own raw map should have become."""
    raw = candidate.whole(f"{stage.method}/raw", precision)[photograph]
    return formulas.finish(raw, candidate.weights.architecture.size)


def _has(candidate: Artifact, stage: Stage, precision: str) -> bool:
    if stage.quantity == "final_with_exp":  # recomputed here: see _values
        return candidate.has(f"{stage.method}/raw", precision) and candidate.has("score", precision)
    return candidate.has(stage.name, precision)


def _values(candidate: Artifact, stage: Stage, precision: str, photograph: int) -> np.ndarray:
    if stage.quantity != "final_with_exp":
        return np.asarray(candidate.values(stage.name, precision)[photograph])
    # The library leaves exp(score) in; multiplied back, its absolute 1e-7 squeezes the candidate's map as it does its own.
    raw = candidate.whole(f"{stage.method}/raw", precision)[photograph].astype(np.float64)
    score = float(candidate.values("score", precision)[photograph, 0])
    with np.errstate(over="ignore", invalid="ignore"):
        drawn = formulas.finish(raw * np.exp(score), stage.shape[0])
    return np.asarray(stage.take(drawn[None])[0])


def _alone(candidate: Artifact, stage: Stage, precision: str, photograph: int) -> float:
    """This step's own error: the stage against the formula on the candidate's previous stage."""
    made = recomputed(candidate, stage, precision, photograph)
    if made is None:
        return math.nan
    return relative_l2(_values(candidate, stage, precision, photograph), stage.take(made[None])[0])


def recomputed(artifact: Artifact, stage: Stage, precision: str, photograph: int) -> np.ndarray | None:
    """A stage by the reference's formula from the artifact's own previous stage; None where that is not kept whole."""
    target = artifact.weights.architecture.target.keras
    size = artifact.weights.architecture.size

    def own(name: str) -> np.ndarray | None:
        return artifact.whole(name, precision)[photograph] if artifact.has(name, precision) else None

    if stage.name == "inputs":
        return formulas.preprocess(artifact.pixels[photograph], artifact.settings.input)
    if stage.name == "score" and (logits := own("logits")) is not None:
        return np.asarray(logits[artifact.classes[photograph]], np.float64)
    a, g = own(f"activations/{target}"), own(f"gradients/{target}")
    if stage.name == "gradcam/weights" and g is not None:
        return formulas.grad_cam_weights(g)
    if stage.name == "gradcam_plus_plus/alpha" and a is not None and g is not None:
        return formulas.grad_cam_plus_plus_alpha(a, g)
    if stage.name == "gradcam_plus_plus/weights" and a is not None and g is not None:
        return formulas.grad_cam_plus_plus_weights(g, formulas.grad_cam_plus_plus_alpha(a, g))
    if stage.method.startswith("gradcam") and stage.quantity == "raw" and a is not None:
        weights = own(f"{stage.method}/weights")
        return None if weights is None else formulas.class_activation_map(a, weights)
    if stage.quantity in ("upsampled", "final") and (raw := own(f"{stage.method}/raw")) is not None:
        return formulas.upsample(raw, size) if stage.quantity == "upsampled" else formulas.finish(raw, size)
    return None
