"""The reference's formulas in NumPy float64, one photograph at a time, channels last: the judge's own arithmetic.

Used to recompute a stage from the one before it, and to see which wrong formula would explain a wrong map. Independent
of both sides: it imports neither framework.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.contract.network import INPUTS

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def upsample(cam: np.ndarray, size: int, *, half_pixel: bool = False) -> np.ndarray:
    """(h, w) → (size, size), bilinear; corner on corner, or (a known mistake) half-pixel centres."""
    return np.asarray(_stretched(_stretched(np.asarray(cam, np.float64), size, half_pixel).T, size, half_pixel).T)


def normalize(drawn: np.ndarray) -> np.ndarray:
    """Min–max, with 1e-7 on the range."""
    low = drawn.min()
    with np.errstate(invalid="ignore"):  # of a map that is not finite
        return np.asarray((drawn - low) / (drawn.max() - low + 1e-7))


def undecided(pixels: np.ndarray, convolutions: Sequence[int]) -> np.ndarray:
    """Pixels whose gradient depends on which of several equal values a max-pool takes: bool (H, W).

    Two places of a pooling window hold equal values where the network sees equal pixels around both: in flat areas, and
    along straight edges. Each framework then takes whichever its own rounding makes larger by a last bit. Both are right,
    in float64 too: the network has no derivative there.

    Args:
        pixels: (H, W, 3), the height a multiple of 2 ** blocks, the width as the height.
        convolutions: 3×3 convolutions in each block, each block closed by a 2×2 max-pool.
    """
    size, margin, step = len(pixels), 0, 1
    found = np.zeros((size, size), bool)
    for count in convolutions:
        margin += step * count  # a place sees its own step×step pixels and this margin around them
        seen, places = step + 2 * margin, size // step
        padded = np.full((size + 2 * margin, size + 2 * margin, pixels.shape[-1]), -1, np.int16)
        padded[margin : margin + size, margin : margin + size] = pixels
        tied = np.zeros((places, places), bool)
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            rows, columns = padded.shape[0] - down * step, padded.shape[1] - abs(right) * step
            one = padded[:rows, :columns] if right >= 0 else padded[:rows, step:]
            other = padded[down * step :, right * step :] if right >= 0 else padded[down * step :, :columns]
            differs = _box_sums((one != other).any(axis=-1), seen)[::step, ::step]
            y, x = np.nonzero(differs == 0)
            x = x if right >= 0 else x + 1
            within = (y // 2 == (y + down) // 2) & (x // 2 == (x + right) // 2)
            tied[y[within], x[within]] = tied[y[within] + down, x[within] + right] = True
        cells = np.pad(tied.repeat(step, axis=0).repeat(step, axis=1), margin)
        found |= _box_sums(cells, 2 * margin + 1) > 0
        step *= 2
    return found


def finish(raw: np.ndarray, size: int) -> np.ndarray:
    """A raw map (h, w) of either resolution → (size, size) in [0, 1]."""
    wide = np.asarray(raw, np.float64)
    return normalize(wide if wide.shape == (size, size) else upsample(wide, size))


def _box_sums(array: np.ndarray, side: int) -> np.ndarray:
    """Sum of every side×side square of a bool array."""
    sums = np.pad(array.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side])


def _stretched(rows: np.ndarray, size: int, half_pixel: bool) -> np.ndarray:
    """Linear interpolation along the first axis."""
    count = len(rows)
    if half_pixel:
        place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    else:
        place = np.linspace(0, count - 1, size) if size > 1 else np.zeros(1)
    below = np.minimum(place.astype(np.int64), max(count - 2, 0))
    part = (place - below)[:, None]
    above = np.minimum(below + 1, count - 1)
    return np.asarray(rows[below] * (1 - part) + rows[above] * part)
