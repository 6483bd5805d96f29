"""The reference's formulas in NumPy float64, one photograph at a time, channels last: the judge's own arithmetic.

Used to recompute a stage from the one before it, and to see which wrong formula would explain a wrong map. Independent
of both sides: it imports neither framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from scipy.ndimage import zoom

from parity.contract.network import INPUTS

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Quantities = dict[str, np.ndarray]
"""A map's own stages by name, as `methods.Method.quantities` names them."""


def preprocess(pixels: np.ndarray, input: str) -> np.ndarray:
    """uint8 (H, W, 3) RGB → the network's input (H, W, 3) float64.

    Raises:
        ValueError: unknown kind.
    """
    if input not in INPUTS:
        raise ValueError(f"preprocessing {input!r} is unknown")
    rgb = pixels.astype(np.float64)
    if input == "caffe":
        return np.asarray(rgb[..., ::-1] - np.array(CAFFE_MEAN_BGR))
    return np.asarray((rgb / 255 - np.array(TORCHVISION_MEAN)) / np.array(TORCHVISION_STD))


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


def upsample(cam: np.ndarray, size: tuple[int, int], *, half_pixel: bool = False) -> np.ndarray:
    """(h, w) → (H, W), bilinear; corner on corner, or (a known mistake) half-pixel centres."""
    factors = [wide / narrow for wide, narrow in zip(size, cam.shape, strict=True)]
    return np.asarray(zoom(np.asarray(cam, np.float64), factors, order=1, mode="nearest", grid_mode=half_pixel))


def normalize(drawn: np.ndarray) -> np.ndarray:
    """Min–max, with 1e-7 on the range."""
    low = drawn.min()
    with np.errstate(invalid="ignore"):  # of a map that is not finite
        return np.asarray((drawn - low) / (drawn.max() - low + 1e-7))


def finish(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A raw map (h, w) of either resolution → (H, W) in [0, 1]."""
    wide = np.asarray(raw, np.float64)
    return normalize(wide if wide.shape == size else upsample(wide, size))


def grad_cam(activations: np.ndarray, gradients: np.ndarray, weights: np.ndarray | None = None) -> Quantities:
    """Grad-CAM's own stages."""
    own = grad_cam_weights(gradients)
    return {"weights": own, "raw": class_activation_map(activations, own if weights is None else weights)}


def grad_cam_plus_plus(activations: np.ndarray, gradients: np.ndarray, weights: np.ndarray | None = None) -> Quantities:
    """Grad-CAM++'s own stages, exp(score) cancelled."""
    alpha = grad_cam_plus_plus_alpha(activations, gradients)
    own = grad_cam_plus_plus_weights(gradients, alpha)
    raw = class_activation_map(activations, own if weights is None else weights)
    return {"alpha": alpha, "weights": own, "raw": raw}


FORMULAS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray | None], Quantities]] = MappingProxyType(
    {"gradcam": grad_cam, "gradcam_plus_plus": grad_cam_plus_plus}
)
"""Map → (A, G, its channel weights where they are given) → its own stages up to the raw map.

Each stage is computed from the nearest one before it that is given. A map without a row here is compared all the same; only
the error of each step alone is not known.
"""


def enlarged(raw: np.ndarray, size: tuple[int, int], score: float) -> Quantities:
    """What every map at a layer goes on to, from its raw map: `upsampled`, `final`, `final_with_exp`."""
    upsampled = upsample(raw, size)
    with np.errstate(over="ignore", invalid="ignore"):
        squeezed = finish(raw * np.exp(score), size)
    return {"upsampled": upsampled, "final": normalize(upsampled), "final_with_exp": squeezed}
