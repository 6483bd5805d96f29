"""Two arrays → a number. Pure; float64; one photograph at a time."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import center_of_mass
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

CONSTANT = 1e-12
"""Of their magnitude: values that spread less are one value, and float64's rounding of what made them."""


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual − expected‖ / ‖expected‖; 0 where both are equal, infinity where only `expected` is 0 or a value is not finite."""
    error = _difference(actual, expected)
    return _ratio(float(np.linalg.norm(error)), float(np.linalg.norm(expected.astype(np.float64))))


def error_of_range(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual − expected| / (max expected − min expected); of a constant (up to rounding), over its magnitude.

    0 where both are equal; infinity where a value is not finite.
    """
    if expected.size == 0:
        return 0.0
    wide = expected.astype(np.float64)
    spread, magnitude = float(wide.max() - wide.min()), float(np.abs(wide).max())
    scale = spread if spread > CONSTANT * magnitude else magnitude
    return _ratio(float(np.abs(_difference(actual, expected)).max()), scale)


def pearson(actual: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of two maps; NaN where one of them is constant or not finite."""
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # the mean of a constant need not be that constant, nor its deviation 0
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else math.nan


def spearman(actual: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of the ranks of two maps; ties share their mean rank; NaN as for `pearson`."""
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return math.nan
    return pearson(rankdata(actual), rankdata(expected))


def ssim(actual: np.ndarray, expected: np.ndarray) -> float:
    """Structural similarity of two maps, in 7×7 windows, over the reference's range; NaN for smaller or constant maps.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, by scikit-image.
    """
    spread = float(np.ptp(expected))
    if min(expected.shape) < 7 or spread == 0 or not np.isfinite(actual).all():
        return math.nan
    wide = actual.astype(np.float64), expected.astype(np.float64)
    return float(structural_similarity(*wide, data_range=spread))  # type: ignore[no-untyped-call]


def overlap(actual: np.ndarray, expected: np.ndarray, share: float = 0.1) -> float:
    """The highest pixels of each map, as many as `share` of all: their intersection over their union; 0 to 1."""
    count = max(1, round(share * expected.size))
    top = [set(np.argsort(-np.nan_to_num(m.ravel()), kind="stable")[:count].tolist()) for m in (actual, expected)]
    return len(top[0] & top[1]) / len(top[0] | top[1])


def shift(actual: np.ndarray, expected: np.ndarray) -> float:
    """Distance between the centres of mass of two maps ≥ 0, over the map's longer side; NaN where one has no mass."""
    wide = actual.astype(np.float64), expected.astype(np.float64)
    if not all(0 < drawn.sum() < math.inf for drawn in wide):
        return math.nan
    ours, theirs = map(center_of_mass, wide)
    return math.dist(ours, theirs) / float(max(expected.shape))


def _difference(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        error: np.ndarray = actual.astype(np.float64) - expected.astype(np.float64)
    return np.where(np.isfinite(error), error, np.inf)


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 and math.isfinite(error) else math.inf
