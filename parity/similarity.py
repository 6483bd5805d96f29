"""Two arrays → a number. Pure; float64; one photograph at a time."""

from __future__ import annotations

import math

import numpy as np


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual − expected‖ / ‖expected‖; 0 where both are equal, infinity where only `expected` is 0 or a value is not finite."""
    error = _difference(actual, expected)
    return _ratio(float(np.linalg.norm(error)), float(np.linalg.norm(expected.astype(np.float64))))


def error_of_range(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual − expected| / (max expected − min expected); of a constant, over its magnitude.

    0 where both are equal; infinity where a value is not finite.
    """
    if expected.size == 0:
        return 0.0
    wide = expected.astype(np.float64)
    spread = float(wide.max() - wide.min())
    scale = spread if spread > 0 else float(np.abs(wide).max())
    return _ratio(float(np.abs(_difference(actual, expected)).max()), scale)


def pearson(actual: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of two maps; NaN where one of them is constant or not finite."""
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else math.nan


def _difference(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        error: np.ndarray = actual.astype(np.float64) - expected.astype(np.float64)
    return np.where(np.isfinite(error), error, np.inf)


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 and math.isfinite(error) else math.inf
