"""The libraries' own maps, untouched, for comparison: what the usual calls draw. The libraries are imported when they are called."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.methods import METHODS
from torch_impl.arrays import Images, Maps, Target
from torch_impl.capture.passes import Pass
from torch_impl.maps.registry import Function, drawn

CLASSES = {
    "gradcam": "GradCAM",
    "gradcam_plus_plus": "GradCAMPlusPlus",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
}
"""Map → pytorch-grad-cam's class of that name."""

NARROW = ("fp16", "bf16")
"""Formats in which the libraries' own calls fail or lose small gradients: their noise and their NumPy are float32."""


def check_narrow(methods: Iterable[str], precision: str) -> None:
    """Refuse a library's own map in a number format that the library does not draw it in.

    Raises:
        ValueError: the message says which method and what to give instead.
    """
    stock = [name for name in methods if METHODS[name].library] if precision in NARROW else []
    if stock:
        raise ValueError(
            f"method {stock[0]} is the library's own call, which does not work in {precision}: give precision fp32, "
            "or leave the method out"
        )


def pytorch_grad_cam_map(method: str, model: nn.Module, inputs: Images, target: Target, layer: nn.Module) -> Maps:
    """pytorch-grad-cam's map as its README calls it, on the given layer.

    Args:
        method: one of `CLASSES`.
        model: gives logits (N, classes); is left in eval mode.
        inputs: preprocessed.
        target: class indices.
        layer: a module of the model.

    Returns:
        In [0, 1], by the library's own min–max, half-pixel `cv2.resize`, and min–max again. float32.
    """
    with called(method, model, inputs, target, layer) as (_, maps, _, _):
        return torch.from_numpy(maps).to(inputs.device)


@contextlib.contextmanager
def called(
    method: str, model: nn.Module, inputs: Images, target: Target, layer: nn.Module
) -> Iterator[tuple[Any, np.ndarray, Tensor, list[Any]]]:
    """pytorch-grad-cam's engine, while its hooks are on the layer; its maps, and the inputs and targets that it was called with."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = getattr(pytorch_grad_cam, CLASSES[method])(model=model, target_layers=[layer])
    targets = [ClassifierOutputTarget(category) for category in target.tolist()]
    try:
        leaf = inputs.detach().clone(memory_format=torch.preserve_format)
        leaf.requires_grad_()  # a frozen network needs it to have any gradient at all
        with contextlib.redirect_stderr(io.StringIO()):  # ScoreCAM's own progress bar, one for each photograph
            maps = cam(input_tensor=leaf, targets=targets)
        yield cam, maps, leaf, targets
    finally:
        cam.activations_and_grads.release()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, PyTorch's generators start from a seed; afterwards they are where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def noise_tunnel(model: nn.Module, inputs: Images, target: Target, *, sigma: float, n_samples: int) -> Maps:
    """`NoiseTunnel(Saliency(model))` with `stdevs=sigma`: one absolute σ, PyTorch's generator; channel maximum.

    Args:
        model: gives logits (N, classes); is left in eval mode.
        inputs: preprocessed.
        target: class indices.
        sigma: in units of the preprocessed input.
        n_samples: noisy copies of each image, one of each at a time in memory.

    Returns:
        ≥ 0, raw.
    """
    from captum.attr import NoiseTunnel, Saliency

    attributions: torch.Tensor = NoiseTunnel(Saliency(model)).attribute(
        inputs.detach().clone().requires_grad_(),
        nt_type="smoothgrad",
        nt_samples=n_samples,
        nt_samples_batch_size=1,
        stdevs=sigma,
        target=target,
    )
    return attributions.detach().amax(dim=1)


def _stock_cam(method: str) -> Function:
    def function(p: Pass) -> Maps:
        p.capture.attend()
        return pytorch_grad_cam_map(method, p.capture.model, p.inputs, p.target, p.capture.layer)

    return function


for _method in CLASSES:
    drawn(f"{_method}@pytorch-grad-cam")(_stock_cam(_method))


@drawn("smoothgrad@captum")
def _smoothgrad(p: Pass) -> Maps:
    """Photograph by photograph, each from the seed: a batch's noise would depend on its size. σ is the noise level itself."""
    model, o, maps = p.capture.model, p.options, []
    for i in range(len(p.inputs)):
        p.capture.attend([i])
        image, target = p.inputs[i : i + 1], p.target[i : i + 1]
        with seeded(o.seed, image.device):
            maps.append(noise_tunnel(model, image, target, sigma=o.noise_level, n_samples=o.n_samples))
    return torch.cat(maps)
