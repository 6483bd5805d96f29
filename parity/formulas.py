"""The reference's formulas in NumPy float64, one photograph at a time, channels last: the judge's own arithmetic.

Used to recompute a stage from the one before it, and to see which wrong formula would explain a wrong map. Independent
of both sides: it imports neither framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.ndimage import zoom

from parity.contract.artifact import Artifact
from parity.contract.network import ANY_INPUT, OWN_INPUT

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Quantities = dict[str, np.ndarray]
"""A map's own stages by name, as `methods.Method.quantities` names them."""

Given = Mapping[str, np.ndarray]
"""`activations`, `gradients` and a map's own stages, as far as they are known."""


def preprocess(pixels: np.ndarray, input: str) -> np.ndarray:
    """uint8 (H, W, 3) RGB → the network's input (H, W, 3) float64.

    Raises:
        ValueError: unknown kind.
    """
    if input not in ANY_INPUT:
        raise ValueError(f"preprocessing {input!r} is unknown")
    rgb = pixels.astype(np.float64)
    if input in ("tf", "none"):
        return rgb / 127.5 - 1 if input == "tf" else rgb
    if input == "caffe":
        return np.asarray(rgb[..., ::-1] - np.array(CAFFE_MEAN_BGR))
    return np.asarray((rgb / 255 - np.array(TORCHVISION_MEAN)) / np.array(TORCHVISION_STD))


def inputs_of(reference: Artifact, photograph: int) -> np.ndarray:
    """What a reference's network took of a photograph's pixels: float64 (H, W, C), behind its own first layers."""
    settings = reference.settings
    if settings.input == OWN_INPUT:
        return np.asarray(reference.whole("inputs", "fp64")[photograph])
    inputs = preprocess(reference.pixels[photograph], settings.input)[..., : reference.table.input_shape[2]]
    return inputs * np.array(settings.scale) + np.array(settings.offset) if settings.scale else inputs


def all_inputs(reference: Artifact) -> np.ndarray:
    """The same of every photograph, (N, H, W, C)."""
    return np.stack([inputs_of(reference, i) for i in range(len(reference.photographs))])


def class_scores(logits: np.ndarray) -> np.ndarray:
    """The score of every class: its logit; of one output, which stands for two classes, its negative and itself."""
    return np.concatenate([-logits, logits]) if len(logits) == 1 else logits


def grad_cam_weights(gradients: np.ndarray) -> np.ndarray:
    """(h, w, K) → (K,)."""
    return np.asarray(np.asarray(gradients, np.float64).mean(axis=(0, 1)))


def grad_cam_plus_plus_alpha(
    activations: np.ndarray,
    gradients: np.ndarray,
    *,
    epsilon: float = 0.0,
    normalized: bool = True,
    mean_of_activations: bool = False,
) -> np.ndarray:
    """(h, w, K), (h, w, K) → (h, w, K), exp(score) cancelled; the keywords are known mistakes, all off by default."""
    a, g = np.asarray(activations, np.float64), np.asarray(gradients, np.float64)
    total = a.mean(axis=(0, 1)) if mean_of_activations else a.sum(axis=(0, 1))
    denominator = 2 * g**2 + g**3 * total + epsilon
    alpha = np.divide(g**2, denominator, out=np.zeros_like(g), where=(g != 0) & (denominator != 0))
    if normalized:
        sums = alpha.sum(axis=(0, 1))
        alpha = alpha / np.where(sums == 0, 1, sums)
    return np.asarray(alpha)


def grad_cam_plus_plus_weights(gradients: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(h, w, K), (h, w, K) → (K,)."""
    return np.asarray((np.maximum(gradients, 0) * np.asarray(alpha, np.float64)).sum(axis=(0, 1)))


def class_activation_map(activations: np.ndarray, channel_weights: np.ndarray) -> np.ndarray:
    """(h, w, K), (K,) → (h, w), ≥ 0."""
    return np.asarray(np.maximum(np.asarray(activations, np.float64) @ np.asarray(channel_weights, np.float64), 0))


def max_pool(features: np.ndarray) -> np.ndarray:
    """(h, w, K) → (h // 2, w // 2, K): the largest of each 2×2 window."""
    h, w = (n // 2 * 2 for n in features.shape[:2])
    windows = np.asarray(features[:h, :w], np.float64).reshape(h // 2, 2, w // 2, 2, -1)
    return np.asarray(windows.max(axis=(1, 3)))


def upsample(cam: np.ndarray, size: tuple[int, int], *, half_pixel: bool = False, order: int = 1) -> np.ndarray:
    """(h, w) → (H, W), bilinear; corner on corner, or (known mistakes) half-pixel centres, nearest neighbours (order 0)."""
    factors = [wide / narrow for wide, narrow in zip(size, cam.shape, strict=True)]
    return np.asarray(zoom(np.asarray(cam, np.float64), factors, order=order, mode="nearest", grid_mode=half_pixel))


def bicubic(cam: np.ndarray, size: tuple[int, int], *, half_pixel: bool) -> np.ndarray:
    """(h, w) → (H, W) by cubic convolution as PyTorch and OpenCV have it (a = −0.75): a known mistake.

    Source: Keys 1981, doi:10.1109/TASSP.1981.1163711.
    """
    rows, columns = (_cubic(n, wide, half_pixel) for n, wide in zip(cam.shape, size, strict=True))
    return np.asarray(rows @ np.asarray(cam, np.float64) @ columns.T)


def _cubic(n: int, wide: int, half_pixel: bool, a: float = -0.75) -> np.ndarray:
    """One axis: (wide, n), each new place as a sum of the old ones; beyond the edge the edge's."""
    places = (np.arange(wide) + 0.5) * n / wide - 0.5 if half_pixel else np.linspace(0, n - 1, wide)
    matrix = np.zeros((wide, n))
    for step in (-1, 0, 1, 2):
        old = np.floor(places).astype(int) + step
        d = np.abs(places - old)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(matrix, (np.arange(wide), old.clip(0, n - 1)), np.where(d <= 1, near, far))
    return matrix


def normalize(drawn: np.ndarray) -> np.ndarray:
    """Min–max, with 1e-7 on the range."""
    low = drawn.min()
    with np.errstate(invalid="ignore"):  # of a map that is not finite
        return np.asarray((drawn - low) / (drawn.max() - low + 1e-7))


def finish(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A raw map (h, w) of either resolution → (H, W) in [0, 1]."""
    wide = np.asarray(raw, np.float64)
    return normalize(wide if wide.shape == size else upsample(wide, size))


def grad_cam(given: Given) -> Quantities:
    """Grad-CAM's own stages."""
    own = grad_cam_weights(given["gradients"])
    return {"weights": own, "raw": class_activation_map(given["activations"], given.get("weights", own))}


def grad_cam_plus_plus(given: Given) -> Quantities:
    """Grad-CAM++'s own stages, exp(score) cancelled."""
    activations, gradients = given["activations"], given["gradients"]
    alpha = grad_cam_plus_plus_alpha(activations, gradients)
    own = grad_cam_plus_plus_weights(gradients, alpha)
    return {"alpha": alpha, "weights": own, "raw": class_activation_map(activations, given.get("weights", own))}


def layer_cam(given: Given) -> Quantities:
    """LayerCAM's raw map: relu(Σ relu(G)·A), place by place."""
    activations, gradients = (np.asarray(given[name], np.float64) for name in ("activations", "gradients"))
    return {"raw": np.asarray(np.maximum((np.maximum(gradients, 0) * activations).sum(axis=-1), 0))}


def most_varied(activations: np.ndarray, m: int, spread: Callable[..., np.ndarray] = np.std) -> np.ndarray:
    """(h, w, K) → (m,): the feature maps of the largest deviation (or, a known mistake, of something else), largest first.

    Of equal ones the first. Dividing by one value less than there are places changes every deviation by the same factor, so
    the sample's deviation takes the same ones.
    """
    values = spread(np.asarray(activations, np.float64), axis=(0, 1))
    return np.argsort(-values, kind="stable")[:m]


def rounded(scores: np.ndarray) -> np.ndarray:
    """Score-CAM's weights: the class's probabilities, which the library rounds to float32, also in float64."""
    return np.asarray(scores).astype(np.float32).astype(np.float64)


def score_cam(given: Given) -> Quantities:
    """What of both Score-CAMs follows from A, the channels that are taken (all, or the m that vary most) and their scores."""
    activations, made = given["activations"], {}
    every = np.arange(activations.shape[-1])
    channels = given.get("channels", every)
    if "channels" in given:
        made["channels"] = most_varied(activations, len(channels))
        if not np.isin(channels, every).all():  # a candidate's, and no feature maps at all
            return made
    if "scores" in given:
        made["weights"] = rounded(given["scores"])
    weights = given.get("weights", made.get("weights"))
    if weights is not None:
        made["raw"] = class_activation_map(activations[..., channels.astype(int)], weights)
    return made


@dataclass(frozen=True)
class Formula:
    """A map's formula.

    Attributes:
        reads: what it cannot do without: `activations`, `gradients`, each (h, w, K).
        make: these, and of the map's own stages those that are given whole → its own stages up to the raw map. Each is
            computed from the nearest one before it that is given.
    """

    reads: frozenset[str]
    make: Callable[[Given], Quantities]


_BY_GRADIENTS = frozenset(("activations", "gradients"))

FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {
        "gradcam": Formula(_BY_GRADIENTS, grad_cam),
        "gradcam_plus_plus": Formula(_BY_GRADIENTS, grad_cam_plus_plus),
        "layercam": Formula(_BY_GRADIENTS, layer_cam),
        "scorecam": Formula(frozenset(("activations",)), score_cam),
        "faster_scorecam": Formula(frozenset(("activations", "channels")), score_cam),
    }
)
"""Maps without a row here are compared all the same; only the error of each step alone is not known."""


def enlarged(raw: np.ndarray, size: tuple[int, int], score: float) -> Quantities:
    """What every map at a layer goes on to, from its raw map: `upsampled`, `final`, `final_with_exp`."""
    upsampled = upsample(raw, size)
    with np.errstate(over="ignore", invalid="ignore"):
        squeezed = finish(raw * np.exp(score), size)
    return {"upsampled": upsampled, "final": normalize(upsampled), "final_with_exp": squeezed}
