"""Vanilla saliency."""

from __future__ import annotations

from torch_impl.arrays import Images, Maps
from torch_impl.capture.passes import Pass
from torch_impl.maps.registry import drawn


def channel_maximum(absolute_gradients: Images) -> Maps:
    """The largest of the colour channels at each pixel."""
    return absolute_gradients.amax(dim=1)


@drawn("vanilla", needs=("input_gradients",))
def vanilla(p: Pass) -> Maps:
    """The largest |∂score/∂inputs| over the colour channels, ≥ 0, logits per unit of the preprocessed input.

    Source: arXiv:1312.6034, Section 3.1.
    Matches: tf-keras-vis 0.8.7, `Saliency` with `normalize_map=False`.
    """
    return channel_maximum(p.input_gradients.abs())
