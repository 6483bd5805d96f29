"""Grad-CAM++."""

from __future__ import annotations

import torch

from torch_impl.arrays import Cams, ChannelWeights, FeatureMaps
from torch_impl.capture.passes import Pass
from torch_impl.maps.gradcam import class_activation_map
from torch_impl.maps.registry import drawn


def grad_cam_plus_plus_alpha(activations: FeatureMaps, gradients: FeatureMaps) -> FeatureMaps:
    """α of each place: 1 / (2 + G·ΣA) where G ≠ 0, else 0; then divided by its own sum over the map (by 1 where that is 0).

    The reference writes e·G² / (2·e·G² + e·G³·ΣA) with e = exp(score). e and G² are cancelled here, so that no score
    overflows and no small gradient underflows. Where a denominator is exactly 0 the reference divides 0 by 0; here α is
    its limit: those places share the whole map's weight.

    Args:
        activations: A, of the target layer.
        gradients: G = ∂score/∂A.

    Returns:
        Sums to 1 over each map, or is 0 everywhere. Single values may be negative or above 1.

    Source: arXiv:1710.11063, Equation 19.
    Matches: tf-keras-vis 0.8.7.
    Differs: pytorch-grad-cam adds 1e-6 to the denominator, about 1e-8 itself, and does not divide α by its sum.
    """
    used = gradients != 0
    denominator = 2 + gradients * activations.sum(dim=(-2, -1), keepdim=True)
    pole = used & (denominator == 0)
    alpha = torch.where(used, 1 / torch.where(denominator == 0, 1, denominator), 0)
    alpha = torch.where(pole.any(dim=-1, keepdim=True).any(dim=-2, keepdim=True), pole.to(alpha.dtype), alpha)
    total = alpha.sum(dim=(-2, -1), keepdim=True)
    return alpha / torch.where(total == 0, 1, total)


def grad_cam_plus_plus_weights(activations: FeatureMaps, gradients: FeatureMaps) -> ChannelWeights:
    """Σ relu(G)·α of each feature map.

    Args:
        activations: A, of the target layer.
        gradients: G = ∂score/∂A.

    Source: arXiv:1710.11063, Equations 5 and 7.
    Matches: tf-keras-vis 0.8.7, up to the factor exp(score), which cancels out of the normalized map.
    """
    alpha = grad_cam_plus_plus_alpha(activations, gradients)
    return (gradients.relu() * alpha).sum(dim=(-2, -1))


@drawn("gradcam_plus_plus", needs=("activations", "gradients"))
def gradcam_plus_plus(p: Pass) -> Cams:
    """relu(Σ w·A) with w = Σ relu(G)·α, at the target layer's resolution, ≥ 0 (with `relu=False` signed); neither enlarged nor normalized.

    Source: arXiv:1710.11063, Equations 5, 7 and 19.
    Matches: tf-keras-vis 0.8.7, `GradcamPlusPlus` with `expand_cam=False, normalize_cam=False`, divided by exp(score).
    Differs: pytorch-grad-cam's `GradCAMPlusPlus`: see `grad_cam_plus_plus_alpha`.
    """
    channel_weights = grad_cam_plus_plus_weights(p.activations, p.gradients)
    p.keep(alpha=lambda: grad_cam_plus_plus_alpha(p.activations, p.gradients), weights=lambda: channel_weights)
    return class_activation_map(p.activations, channel_weights, relu=p.options.relu)
