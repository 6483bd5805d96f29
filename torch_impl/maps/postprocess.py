"""From a raw map to a map in [0, 1] at the photograph's size: one definition for every method."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from torch_impl.arrays import Cams, Maps
from torch_impl.precision import at_least_fp32

EPSILON = 1e-7
"""Keeps a constant map at 0. Absolute, as in tf-keras-vis: see `normalize`."""


def upsample(cam: Cams, size: tuple[int, int]) -> Maps:
    """Enlarge bilinearly, corner pixel on corner pixel.

    Args:
        cam: any range.
        size: (H, W) in pixels.

    Matches: `scipy.ndimage.zoom(order=1)`, which tf-keras-vis uses.
    Differs: `cv2.resize` (pytorch-grad-cam) and `align_corners=False` lay half-pixel grids, which moves the map.
    """
    return F.interpolate(cam[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def normalize(maps: Maps) -> Maps:
    """Min–max of each map on its own, to [0, 1); a constant map becomes 0.

    A map whose range is not large against 1e-7 stays visibly below 1: that is the reference's definition.

    Matches: tf-keras-vis 0.8.7, `utils.normalize`.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + EPSILON)


def finish(raw: Tensor, size: tuple[int, int]) -> Maps:
    """Enlarge to the image's size where the map is smaller, then min–max each map.

    Args:
        raw: (N, h, w), any range.
        size: (H, W) of the image.

    Returns:
        In [0, 1]; a constant map is 0. float32, or float64 where the raw map is.
    """
    full = raw.to(at_least_fp32(raw.dtype))
    return normalize(full if tuple(raw.shape[-2:]) == tuple(size) else upsample(full, size))
