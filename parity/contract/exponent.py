"""exp(score), a factor that tf-keras-vis leaves in Grad-CAM++: where it leaves the range of a number format."""

from __future__ import annotations

import math

import numpy as np

SIGNIFICANT = 1e-3
"""Gradients below this fraction of the largest do not show in a map, and may vanish in e·G³ unnoticed."""


def is_lost(gradients: np.ndarray, score: float, kind: str) -> bool:
    """Whether e, e·G, e·G² or e·G³ overflows, or loses digits to underflow, at a gradient that matters.

    Args:
        gradients: G, of any shape.
        score: the logarithm of e.
        kind: the number format, `float32` or `float64`.
    """
    sizes = np.abs(gradients.astype(np.float64))
    sizes = sizes[sizes > SIGNIFICANT * sizes.max()]
    if not sizes.size:
        return False
    limits = np.finfo(kind)  # logarithms, because the products would leave float64 too
    logs = [score + power * math.log(size) for size in (sizes.min(), sizes.max()) for power in range(4)]
    return min(logs) < math.log(limits.tiny) or max(logs) > math.log(limits.max)
