"""The libraries' own maps, untouched, for comparison: what the usual calls draw."""

from __future__ import annotations

import torch
from captum.attr import NoiseTunnel, Saliency
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from torch_impl.arrays import Images, Maps, Target
from torch_impl.batching import BatchSize, micro_batches, sized, taken
from torch_impl.cam import find_layer
from torch_impl.preserve import preserved


def pytorch_grad_cam_map(
    method: str,
    model: nn.Module,
    inputs: Images,
    target: Target,
    *,
    target_layer: str | nn.Module,
    batch_size: BatchSize = "auto",
) -> Maps:
    """`pytorch_grad_cam.GradCAM` or `GradCAMPlusPlus` as its README calls it, on the given layer.

    Args:
        method: `gradcam` or `gradcam_plus_plus`.
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        target_layer: a module of the model, or its name.
        batch_size: images in one pass.

    Returns:
        In [0, 1], by the library's own min–max, half-pixel `cv2.resize`, and min–max again. float32.
    """
    engine = {"gradcam": GradCAM, "gradcam_plus_plus": GradCAMPlusPlus}[method]
    found: list[torch.Tensor] = []
    with preserved(model):
        cam = engine(model=model, target_layers=[find_layer(model, target_layer)])

        def one_pass(rows: list[int]) -> None:
            leaf = taken(inputs, rows).detach()
            leaf.requires_grad_()  # a frozen network needs it to have any gradient at all
            targets = [ClassifierOutputTarget(category) for category in taken(target, rows).tolist()]
            found.append(torch.from_numpy(cam(input_tensor=leaf, targets=targets)))

        try:
            micro_batches(range(len(inputs)), sized(batch_size, model, inputs), inputs.device, one_pass)
        finally:
            cam.activations_and_grads.release()
    return torch.cat(found).to(inputs.device)


def captum_smoothgrad(
    model: nn.Module, inputs: Images, target: Target, *, noise_level: float, n_samples: int, seed: int
) -> Maps:
    """`NoiseTunnel(Saliency(model))` with `stdevs=noise_level`: one absolute σ, PyTorch's generator; channel maximum.

    Args:
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        noise_level: taken as σ itself, in units of the preprocessed input, as Captum does.
        n_samples: noisy copies of each image, one image at a time in memory.
        seed: of PyTorch's generator, which is put back afterwards.

    Returns:
        ≥ 0, raw.
    """
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with preserved(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        attributions: torch.Tensor = NoiseTunnel(Saliency(model)).attribute(
            inputs.detach().clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=n_samples,
            nt_samples_batch_size=1,
            stdevs=noise_level,
            target=target,
        )
    return attributions.detach().amax(dim=1)
