"""Grad-CAM."""

from __future__ import annotations

import torch

from torch_impl.arrays import Cams, ChannelWeights, FeatureMaps
from torch_impl.capture.passes import Pass
from torch_impl.maps.registry import drawn


def grad_cam_weights(gradients: FeatureMaps) -> ChannelWeights:
    """Mean gradient of each feature map.

    Args:
        gradients: G = ∂score/∂A.

    Source: arXiv:1610.02391, Equation 1.
    """
    return gradients.mean(dim=(-2, -1))


def class_activation_map(activations: FeatureMaps, channel_weights: ChannelWeights, *, relu: bool = True) -> Cams:
    """relu(Σ w·A) over the feature maps; without the ReLU where evidence against is wanted too.

    Source: arXiv:1610.02391, Equation 2.
    """
    cam = torch.einsum("nkhw,nk->nhw", activations, channel_weights)
    return cam.relu() if relu else cam


@drawn("gradcam", needs=("activations", "gradients"))
def gradcam(p: Pass) -> Cams:
    """relu(Σ mean(G)·A) at the target layer's resolution, ≥ 0 (with `relu=False` signed); neither enlarged nor normalized.

    Source: arXiv:1610.02391, Equations 1 and 2.
    Matches: tf-keras-vis 0.8.7, `Gradcam` with `expand_cam=False, normalize_cam=False`.
    Differs: pytorch-grad-cam's `GradCAM` normalizes before and after enlarging on half-pixel centres.
    """
    channel_weights = grad_cam_weights(p.gradients)
    p.keep(weights=lambda: channel_weights)
    return class_activation_map(p.activations, channel_weights, relu=p.options.relu)
