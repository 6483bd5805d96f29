"""A tensor known again in another program: whatever its name there, its place and its layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

AGREE = 1e-6
"""Relative: values that went through float32 agree to this, other values do not."""

PLACES = 9
"""Order statistics that are kept: minimum, octiles, maximum."""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a tensor.

    Attributes:
        size: number of values.
        sorted: order statistics (`PLACES` of them) and the root of the mean square: they do not depend on the layout.
        projection: the sum of its values times a fixed pattern over its root of the sum of squares: it does.
    """

    size: int
    sorted: tuple[float, ...]
    projection: float

    @classmethod
    def of(cls, tensor: np.ndarray) -> Fingerprint:
        """The fingerprint of a tensor in canonical layout."""
        flat = np.asarray(tensor, np.float64).ravel()
        root = math.sqrt(float(np.mean(flat**2)))
        ranks = np.linspace(0, flat.size - 1, PLACES).round().astype(int)
        ordered = np.partition(flat, np.unique(ranks))[ranks]
        return cls(flat.size, (*map(float, ordered), root), projected(flat))

    def same_values(self, other: Fingerprint) -> bool:
        """Whether both have the same values, in whatever order."""
        if self.size != other.size:
            return False
        scale = max(self.sorted[-1], other.sorted[-1])
        return bool(np.abs(np.subtract(self.sorted, other.sorted)).max() <= AGREE * scale)

    def same_order(self, tensor: np.ndarray) -> bool:
        """Whether a tensor of the same values has them in the same order."""
        return abs(projected(np.asarray(tensor, np.float64).ravel()) - self.projection) <= AGREE


def projected(flat: np.ndarray) -> float:
    """Σ values · pattern / √(Σ values²), where the pattern never repeats: cos(k²/√2)."""
    norm = math.sqrt(float(flat @ flat))
    k = np.arange(flat.size, dtype=np.float64)
    return float(flat @ np.cos(k * k % 1e6 / math.sqrt(2))) / norm if norm > 0 else 0.0
