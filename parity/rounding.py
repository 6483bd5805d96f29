"""What the reference itself leaves open: how far its float32 is from its float64, and gradients that have no one value.

The reference's float32 is one draw of its rounding. Near a pole of Grad-CAM++'s alpha two such draws differ by more than
any fixed factor, so for a map whose row asks for `simulated_roundings` the worst that the reference reaches is the larger
of that draw and of so many simulated ones: rounding of the measured size on the reference's own float64 A and G.
Where equal pixels tie in a max-pool the gradient has no one value: those pixels, known from the photograph alone, are left
out of the gradients and of the maps that are gradients. The candidate has no say in any of this.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter

from parity import formulas
from parity.contract import exponent, vgg
from parity.contract.artifact import Artifact
from parity.contract.layers import Layer, LayerTable
from parity.contract.methods import METHODS
from parity.contract.stages import Stage
from parity.similarity import error_of_range, pearson, relative_l2

HALFWAY = 1e-12
"""Scores that agree to this may still be rounded to two neighbouring float32 numbers."""


@dataclass(frozen=True)
class Floor:
    """The reference's own float32 against its float64, over the values that are compared.

    Attributes:
        relative_l2: ‖single − double‖ / ‖double‖; NaN where a precision is missing or says nothing.
        max_error: of the range; likewise.
        pearson: of maps; NaN for other stages, and where a map is constant.
    """

    relative_l2: float = math.nan
    max_error: float = math.nan
    pearson: float = math.nan


def floor_between(single: np.ndarray, double: np.ndarray, *, is_map: bool) -> Floor:
    """How far one photograph's float32 is from its float64."""
    correlation = pearson(single, double) if is_map else math.nan
    return Floor(relative_l2(single, double), error_of_range(single, double), correlation)


def floor(reference: Artifact, stage: Stage, photograph: int, kept: np.ndarray) -> Floor:
    """The floor of a stage.

    Args:
        reference: with float64.
        stage: of the reference.
        photograph: its row.
        kept: bool (kept,), which of the values are compared; see `decided`.
    """
    if not all(reference.has(stage.name, precision) for precision in ("fp32", "fp64")):
        return Floor()
    if leaves_exp(stage.method) and exp_is_lost(reference, photograph):
        return Floor()  # the reference's own accident is no measure of rounding
    single, double = (reference.values(stage.name, precision)[photograph][kept] for precision in ("fp32", "fp64"))
    measured = floor_between(single, double, is_map=stage.is_map)
    scale = scale_of(reference, stage, photograph)
    return Floor(measured.relative_l2 / scale, measured.max_error / scale, measured.pearson)


def scale_of(reference: Artifact, stage: Stage, photograph: int) -> float:
    """What an error of this stage is divided by: a score near 0 is still a logit, and is measured on their scale."""
    if stage.name != "score" or not reference.has("logits", "fp64"):
        return 1.0
    score = abs(float(reference.values("score", "fp64")[photograph, 0]))
    norm = float(np.linalg.norm(reference.values("logits", "fp64")[photograph]))
    return norm / score if score > 0 else 1.0


def leaves_exp(method: str) -> bool:
    """Whether the library leaves the factor exp(score) in this map."""
    return method in METHODS and any(quantity.name == "final_with_exp" for quantity in METHODS[method].quantities)


def exp_is_lost(reference: Artifact, photograph: int) -> bool:
    """Whether exp(score), or its products with powers of G in Grad-CAM++, leave float32's range on the reference's side."""
    name = f"gradients/{reference.table.target}"
    if not all(reference.has(stage, "fp64") for stage in (name, "score")):
        return False
    score = float(reference.values("score", "fp64")[photograph, 0])
    return exponent.is_lost(reference.whole(name, "fp64")[photograph], score, "float32")


def simulated(reference: Artifact) -> dict[str, list[Floor]]:
    """Stage → what rounding brings about beyond the one run: as the reference drew it, or drawn here at the measured size.

    Args:
        reference: in both precisions; otherwise, and for maps without a formula of the judge's, nothing is simulated.
    """
    drawn = {stage: [Floor(relative_l2=moves)] for stage, moves in reference.draws.items()}
    a, g = f"activations/{reference.table.target}", f"gradients/{reference.table.target}"
    if not all(reference.has(name, p) for name in (a, g, "score") for p in ("fp32", "fp64")):
        return drawn
    for method in reference.settings.methods:
        if METHODS[method].simulated_roundings and method in formulas.FORMULAS:
            for photograph in range(len(reference.photographs)):
                _simulate(reference, method, photograph, drawn)
    return drawn


def _simulate(reference: Artifact, method: str, photograph: int, drawn: dict[str, list[Floor]]) -> None:
    """Add one photograph's draws."""
    names = [f"{kind}/{reference.table.target}" for kind in ("activations", "gradients")]
    arrays = [reference.whole(name, "fp64")[photograph] for name in names]
    sizes = [_rounding(reference, name, photograph) for name in names]
    score, single = (float(reference.values("score", p)[photograph, 0]) for p in ("fp64", "fp32"))
    right = _stages_of(reference, method, arrays, score)
    generator = np.random.RandomState(photograph)
    for draw in range(METHODS[method].simulated_roundings):
        off = [x + (x != 0) * size * generator.standard_normal(x.shape) for x, size in zip(arrays, sizes, strict=True)]
        for name, array in _stages_of(reference, method, off, score + (single - score) * (-1) ** draw).items():
            measured = floor_between(array, right[name], is_map=reference.stage(name).is_map)
            drawn.setdefault(name, []).append(measured)


def _stages_of(reference: Artifact, method: str, arrays: list[np.ndarray], score: float) -> dict[str, np.ndarray]:
    """The stages of a map at a layer, by their names, from A and G."""
    made = formulas.FORMULAS[method].make(dict(zip(("activations", "gradients"), arrays, strict=True)))
    made |= formulas.enlarged(made["raw"], reference.table.size, score)
    return {f"{method}/{quantity.name}": made[quantity.name] for quantity in METHODS[method].quantities}


def _rounding(reference: Artifact, name: str, photograph: int) -> float:
    """How far one value of a stage is off in the reference's float32: root mean square over those that are not 0."""
    single, double = (reference.values(name, p)[photograph].astype(np.float64) for p in ("fp32", "fp64"))
    used = double != 0
    return float(np.sqrt(np.mean((single - double)[used] ** 2))) if used.any() else 0.0


def ties(reference: Artifact, photograph: int) -> np.ndarray:
    """Pixels (H, W) of a photograph whose gradient has no one value.

    The reference says which; of VGG they follow from the photograph; none where neither is known.
    """
    if reference.undecided is not None:
        return np.asarray(reference.undecided[photograph])
    blocks = blocks_of(reference.table)
    return undecided(reference.pixels[photograph], blocks or ())


def blocks_of(table: LayerTable) -> tuple[int, ...] | None:
    """Number of 3×3 convolutions in each block that a 2×2 max-pool closes; None where the network is no such VGG."""
    try:
        blocks = tuple(map(len, vgg.blocks_of(table)))
    except ValueError:
        return None
    return None if any(side % 2 ** len(blocks) for side in table.size) else blocks


def is_max_pool(layer: Layer) -> bool:
    """Whether a layer is a max-pool of 2×2 windows side by side."""
    wanted = {"pool": "max", "window": [2, 2], "strides": [2, 2], "padding": "valid"}
    return layer.kind == "pool" and wanted.items() <= dict(layer.config).items()


def undecided(pixels: np.ndarray, convolutions: tuple[int, ...]) -> np.ndarray:
    """Pixels whose gradient depends on which of several equal values a max-pool takes: bool (H, W).

    Two places of a pooling window hold equal values where the network sees equal pixels around both: in flat areas, and
    along straight edges. Each framework then takes whichever its own rounding makes larger by a last bit. Both are right,
    in float64 too: the network has no derivative there.

    Args:
        pixels: (H, W, 3), both sides multiples of 2 ** blocks.
        convolutions: 3×3 convolutions in each block, each block closed by a 2×2 max-pool.
    """
    reached = np.zeros(pixels.shape[:2], bool)
    margin, step = 0, 1
    for count in convolutions:
        margin += step * count  # a place sees its own step×step pixels and this margin around them
        tied = _tied_places(pixels, step, margin).repeat(step, axis=0).repeat(step, axis=1)
        reached |= maximum_filter(tied, 2 * margin + 1, mode="constant")
        step *= 2
    return reached


def _tied_places(pixels: np.ndarray, step: int, margin: int) -> np.ndarray:
    """Places that see just what another place of their 2×2 pooling window sees: bool (H / step, W / step)."""
    seen = step + 2 * margin
    padded = np.pad(pixels.astype(np.int16), ((margin, margin), (margin, margin), (0, 0)), constant_values=-1)
    views = np.lib.stride_tricks.sliding_window_view(padded, (seen, seen), axis=(0, 1))[::step, ::step]
    tied = np.zeros(views.shape[:2], bool)
    corners = [(slice(row, None, 2), slice(column, None, 2)) for row in (0, 1) for column in (0, 1)]
    for here, there in itertools.combinations(corners, 2):
        equal = (views[here] == views[there]).all(axis=(2, 3, 4))
        tied[here] |= equal
        tied[there] |= equal
    return tied


def decided(reference: Artifact, stage: Stage, tied: np.ndarray) -> np.ndarray:
    """Which of a stage's kept values have one value: bool (kept,).

    Args:
        reference: whose settings count.
        stage: of the reference.
        tied: (H, W), of a photograph; see `ties`.
    """
    kept = np.ones(stage.kept, bool)
    if not tied.any() or not _is_gradient(reference, stage) or len(stage.shape) < 2:
        return kept
    height, width = stage.shape[:2]
    cells = _cells(_cells(tied, height).T, width).T
    rows, columns, *_ = np.unravel_index(stage.places(), stage.shape)
    return ~cells[rows, columns]


def _cells(tied: np.ndarray, count: int) -> np.ndarray:
    """Rows (H, W) as `count` rows, each of which is tied where one of its own is."""
    starts = np.arange(count) * len(tied) // count
    return np.logical_or.reduceat(tied, starts) if count <= len(tied) else tied[starts]


def _is_gradient(reference: Artifact, stage: Stage) -> bool:
    """Whether a stage's values are gradients of one input, place by place."""
    if not stage.method:
        return stage.quantity == "gradients"
    method = METHODS[stage.method]
    averaged = method.noisy and reference.settings.options.noise_level > 0
    return not method.at_layer and not averaged and stage.quantity != "noise"


def rounded_otherwise(reference: Artifact, candidate: Artifact, method: str, photograph: int) -> np.ndarray | None:
    """Score-CAM's weights that the two sides round apart, though their scores agree: a score halfway between two float32 numbers.

    Either rounding is right, and their difference is a hundred times the limit. So the reference's own weight decides: the
    candidate's stages are compared as if it had rounded as the reference did.

    Args:
        reference: with float64.
        candidate: in float64.
        method: whose weights.
        photograph: its row.

    Returns:
        By how much the reference's weights are larger, (K,) or (m,), 0 elsewhere; None where nothing was rounded apart.
    """
    names = [f"{method}/scores", f"{method}/weights"]
    if not all(side.has(name, "fp64") for side in (reference, candidate) for name in names):
        return None
    (p, w), (theirs, rounded) = (
        [side.whole(name, "fp64")[photograph] for name in names] for side in (reference, candidate)
    )
    halfway = (w != rounded) & (np.abs(theirs - p) <= HALFWAY * p) & (rounded == formulas.rounded(theirs))
    return np.where(halfway, w - rounded, 0.0) if halfway.any() else None


def as_reference_rounds(reference: Artifact, candidate: Artifact, stage: Stage, photograph: int) -> np.ndarray | None:
    """What is added to a candidate's stage, as kept, where `rounded_otherwise`; None elsewhere."""
    moved = rounded_otherwise(reference, candidate, stage.method, photograph) if stage.method else None
    if moved is None or stage.quantity not in ("weights", "raw", "upsampled", "final"):
        return None
    if stage.quantity == "weights":
        return moved

    def made(weights: np.ndarray) -> np.ndarray:
        given = {"activations": reference.whole(f"activations/{reference.table.target}", "fp64")[photograph]}
        if reference.has(f"{stage.method}/channels", "fp64"):
            given["channels"] = reference.whole(f"{stage.method}/channels", "fp64")[photograph]
        raw = formulas.score_cam({**given, "weights": weights})["raw"]
        return (formulas.enlarged(raw, reference.table.size, 0.0) | {"raw": raw})[stage.quantity]

    own = reference.whole(f"{stage.method}/weights", "fp64")[photograph]
    return np.asarray(stage.take((made(own) - made(own - moved))[None])[0])
