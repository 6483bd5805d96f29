"""Grad-CAM and Grad-CAM++: the formulas as pure functions, and the maps by pytorch-grad-cam's engine (`library_cam`)."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn

from torch_impl.arrays import Cams, ChannelWeights, FeatureMaps, Images, Target
from torch_impl.batching import BatchSize, micro_batches, sized, taken
from torch_impl.preserve import preserved


class LayerError(ValueError):
    """The target layer does not exist, or cannot carry a class activation map."""


NOT_ON_THE_WAY = "the target layer does not lie on the way to the logits: choose one that does"


def grad_cam_weights(gradients: FeatureMaps) -> ChannelWeights:
    """Mean gradient of each feature map.

    Args:
        gradients: G = ∂score/∂A.

    Source: arXiv:1610.02391, Equation 1.
    """
    return gradients.mean(dim=(-2, -1))


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


def class_activation_map(activations: FeatureMaps, channel_weights: ChannelWeights) -> Cams:
    """relu(Σ w·A) over the feature maps."""
    return torch.einsum("nkhw,nk->nhw", activations, channel_weights).relu()


def grad_cam(
    model: nn.Module, inputs: Images, target: Target, *, target_layer: str | nn.Module, batch_size: BatchSize = "auto"
) -> Cams:
    """Grad-CAM at the layer's resolution; raw: neither upsampled nor normalized.

    Args:
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        target_layer: a module of the model, or its name; its output must be (N, K, h, w).
        batch_size: images in one pass.

    Returns:
        ≥ 0.

    Raises:
        LayerError: no such layer, or one that cannot carry a map.

    Source: arXiv:1610.02391, Equations 1 and 2.
    Matches: tf-keras-vis 0.8.7, `Gradcam` with `expand_cam=False, normalize_cam=False`.
    """
    return _raw_cam("GradCAM", model, inputs, target, target_layer, batch_size)


def grad_cam_plus_plus(
    model: nn.Module, inputs: Images, target: Target, *, target_layer: str | nn.Module, batch_size: BatchSize = "auto"
) -> Cams:
    """Grad-CAM++ at the layer's resolution; raw: neither upsampled nor normalized.

    Arguments, result and errors as `grad_cam`.

    Source: arXiv:1710.11063, Equations 5, 7 and 19.
    Matches: tf-keras-vis 0.8.7, `GradcamPlusPlus`, divided by exp(score).
    """
    return _raw_cam("GradCAMPlusPlus", model, inputs, target, target_layer, batch_size)


def find_layer(model: nn.Module, name: str | nn.Module) -> nn.Module:
    """A module of the model by its name, as in `dict(model.named_modules())`.

    Raises:
        LayerError: no such name; the message lists the nearest.
    """
    if isinstance(name, nn.Module):
        if all(name is not module for module in model.modules()):
            raise LayerError("the target layer is not a module of this model")
        return name
    modules = dict(model.named_modules())
    if not name or name not in modules:
        nearest = difflib.get_close_matches(name, modules, n=5, cutoff=0.3) or [n for n in modules if n][-5:]
        raise LayerError(f"the model has no layer {name!r}; nearest: {', '.join(nearest)}")
    found: nn.Module = modules[name]
    return found


def _raw_cam(
    method: str,
    model: nn.Module,
    inputs: Images,
    target: Target,
    target_layer: str | nn.Module,
    batch_size: BatchSize,
) -> Cams:
    from torch_impl import library_cam

    layer = find_layer(model, target_layer)
    found: list[Cams] = []
    with preserved(model):
        engine: library_cam.ReferenceCAM = getattr(library_cam, method)(model, layer)
        try:
            micro_batches(
                range(len(inputs)),
                sized(batch_size, model, inputs),
                inputs.device,
                lambda rows: found.append(engine.raw(taken(inputs, rows), taken(target, rows))),
            )
        finally:
            engine.close()
    return torch.cat(found)


def checked_feature_maps(output: object) -> Tensor:
    """A layer's output, if it can carry a map.

    Raises:
        LayerError: it is not (N, K, h, w).
    """
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(f"the target layer's output is {shape}; a class activation map needs (N, K, h, w)")
    return output
