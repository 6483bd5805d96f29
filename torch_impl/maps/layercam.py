"""LayerCAM."""

from __future__ import annotations

from torch_impl.arrays import Cams
from torch_impl.capture.passes import Pass
from torch_impl.maps.registry import drawn


@drawn("layercam", needs=("activations", "gradients"))
def layercam(p: Pass) -> Cams:
    """relu(Σ relu(G)·A), place by place, at the target layer's resolution, ≥ 0 (with `relu=False` signed).

    Source: Jiang, Zhang, Hou, Cheng and Wei 2021, doi:10.1109/TIP.2021.3089943, Equations 5 to 7.
    Matches: tf-keras-vis 0.8.7, `Layercam` with `expand_cam=False, normalize_cam=False`.
    Differs: pytorch-grad-cam's and torch-cam's are enlarged on half-pixel centres, which moves the map.
    """
    cam = (p.gradients.relu() * p.activations).sum(dim=1)
    return cam.relu() if p.options.relu else cam
