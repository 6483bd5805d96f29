"""What is measured of a map: each number's definition, which way is better, and its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Confidences = Mapping[str, np.ndarray]
"""Probabilities of the explained class: `before`, `masked` (N,); `most`, `least`, `deleted` (N, shares)."""


@dataclass(frozen=True)
class Metric:
    """One number a photograph and map.

    Attributes:
        name: in files and tables.
        title: for a reader.
        better: `lower` or `higher`; "" where neither is.
        definition: in words; Y is the class's probability for the photograph, O for what is left of it.
        source: where it is from, and what computes it.
    """

    name: str
    title: str
    better: str
    definition: str
    source: str


_FILLED = "mean of O − Y, a share of the {} relevant pixels filled in"
_ROAD = "arXiv:2202.00449; filled in by pytorch-grad-cam's NoisyLinearImputer"

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "drop",
            "drop",
            "lower",
            "max(0, Y − O) / Y, O with the preprocessed input multiplied by the map",
            "arXiv:1710.11063, 4.1 (i); multiplied by pytorch-grad-cam's multiply_tensor_with_cam",
        ),
        Metric("increase", "increase", "higher", "1 where O > Y, else 0; O as of drop", "arXiv:1710.11063, 4.1 (ii)"),
        Metric("road_most", "ROAD most", "lower", _FILLED.format("most"), _ROAD),
        Metric("road_least", "ROAD least", "higher", _FILLED.format("least"), _ROAD),
        Metric("road", "ROAD", "higher", "(road_least − road_most) / 2", "pytorch-grad-cam's ROADCombined"),
        Metric(
            "deletion",
            "deletion",
            "lower",
            "area under O against the share of the most relevant pixels that are set to 0 in the preprocessed input",
            "arXiv:1806.07421",
        ),
        Metric(
            "area",
            "area",
            "",
            "mean of the map: how much of the photograph it lets through, which drop and increase reward",
            "arXiv:2104.10252; pytorch-grad-cam's Complexity",
        ),
    )
}
"""In the order of the table."""

COMPARED = tuple(name for name, metric in METRICS.items() if metric.better)
"""Those by which one map can be better than another."""


def metrics_of(confidences: Confidences, maps: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Every number of `METRICS`, float64 (N,).

    Args:
        confidences: of these maps.
        maps: (N, H, W) in [0, 1].
        steps: in which `deleted` takes the pixels away.
    """
    before, masked = confidences["before"], confidences["masked"]
    most = confidences["most"].mean(axis=1) - before
    least = confidences["least"].mean(axis=1) - before
    curve = np.concatenate([before[:, None], confidences["deleted"]], axis=1)
    return {
        "drop": np.divide(np.maximum(0, before - masked), before, out=np.zeros(len(before)), where=before > 0),
        "increase": (masked > before).astype(np.float64),
        "road_most": most,
        "road_least": least,
        "road": (least - most) / 2,
        "deletion": np.trapezoid(curve, dx=1 / steps, axis=1),
        "area": maps.mean(axis=(1, 2), dtype=np.float64),
    }
