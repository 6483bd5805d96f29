"""This project's port as a candidate: the maps by the port's own code, every stage between them beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from parity.candidate import Job
from torch_impl import cam, methods, postprocess, preserve, saliency, shared_pass, vgg16
from torch_impl.explainer import choose_device
from torch_impl.precision import dtype_of, numerics, score_scale
from torch_impl.preprocess import preprocess

Row = tuple[int, str, np.ndarray]


def candidate(job: Job) -> Iterator[Row]:
    """The library engine: Captum and pytorch-grad-cam, with the reference's formulas.

    Args:
        job: what to do.

    Yields:
        (photograph, stage, array) for every stage of `parity.contract.stages` but `pixels`.
    """
    return _stages(job, methods.raw_maps)


def shared(job: Job) -> Iterator[Row]:
    """The shared engine: every map that is asked for in one call.

    Arguments and result as `candidate`.
    """
    kept: dict[str, Tensor] = {}

    def draw(name: str, model: nn.Module, inputs: Tensor, target: Tensor, settings: methods.Settings) -> Tensor:
        if not kept:
            kept.update(shared_pass.shared_pass(model, inputs, target, job.methods, settings).raw)
        return kept[name]

    return _stages(job, draw)


Draw = Callable[[str, nn.Module, Tensor, Tensor, methods.Settings], Tensor]
"""(method, model, inputs, target, settings) → raw maps (N, …)."""


def _stages(job: Job, draw: Draw) -> Iterator[Row]:
    device = choose_device(job.device)
    with numerics(job.precision):
        model = vgg16.prepared(job.network, device, dtype_of(job.precision))
        target_layer = job.architecture.target.activation
        inputs = preprocess(job.pixels, input=job.input, dtype=dtype_of(job.precision), device=device)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        target = torch.tensor(job.classes, device=device)
        settings = methods.Settings(
            target_layer=target_layer, noise_level=job.noise_level, n_samples=job.n_samples, seed=job.seed
        )
        for name in job.methods:
            raw = draw(name, model, inputs, target, settings)
            size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
            final = methods.finish(raw, size)
            for i in range(len(inputs)):
                yield i, f"{name}/raw", _numpy(raw[i])
                yield i, f"{name}/final", _numpy(final[i])
                if name.startswith("gradcam"):
                    yield i, f"{name}/upsampled", _numpy(postprocess.upsample(raw[i : i + 1], size)[0])
        for i in range(len(inputs)):
            yield from _between(job, model, inputs[i : i + 1], target[i : i + 1], i, target_layer)
            if "smoothgrad" in job.methods:
                yield i, "smoothgrad/noise", _noise(job, inputs[i : i + 1])


def _between(job: Job, model: nn.Module, inputs: Tensor, target: Tensor, i: int, target_layer: str) -> Iterator[Row]:
    """Activations, logits, score and gradients of one photograph, and what the CAMs make of them."""
    # The CAMs' layer is looked up by the name the port uses, so that a wrong one shows here as what it is.
    names = {layer.activation: layer.keras for layer in job.layers if layer.activation}
    names = {module: keras for module, keras in names.items() if keras != job.architecture.target.keras}
    names[target_layer] = job.architecture.target.keras
    outputs: dict[str, Tensor] = {}

    def keep(keras: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            outputs[keras] = output
            return output.clone()  # what follows may work in place

        return hook

    handles = [cam.find_layer(model, module).register_forward_hook(keep(keras)) for module, keras in names.items()]
    try:
        with preserve.preserved(model):
            leaf = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            logits = model(leaf)
            scale = score_scale(inputs.dtype)
            score = logits[0, target[0]]
            hidden = {keras: tensor for keras, tensor in outputs.items() if keras != "predictions"}
            scaled = score if scale == 1 else score.float() * scale
            found = torch.autograd.grad(scaled, [leaf, *hidden.values()])
    finally:
        for handle in handles:
            handle.remove()
    yield i, "inputs", _numpy(inputs[0])
    yield i, "logits", _numpy(logits[0])
    yield i, "score", _numpy(score)
    yield i, "gradients/inputs", _numpy(found[0][0]) / scale
    gradients = dict(zip(hidden, found[1:], strict=True))
    for keras, tensor in hidden.items():
        yield i, f"activations/{keras}", _numpy(tensor[0])
        yield i, f"gradients/{keras}", _numpy(gradients[keras][0]) / scale
    layer = job.architecture.target.keras
    wide = torch.promote_types(inputs.dtype, torch.float32)
    a, g = outputs[layer].detach().to(wide), gradients[layer].to(wide) / scale
    if "gradcam" in job.methods:
        yield i, "gradcam/weights", _numpy(cam.grad_cam_weights(g)[0])
    if "gradcam_plus_plus" in job.methods:
        yield i, "gradcam_plus_plus/alpha", _numpy(cam.grad_cam_plus_plus_alpha(a, g)[0])
        yield i, "gradcam_plus_plus/weights", _numpy(cam.grad_cam_plus_plus_weights(a, g)[0])


def _noise(job: Job, inputs: Tensor) -> np.ndarray:
    """The noise as it was added: (S, H, W, 3)."""
    sigma = saliency.standard_deviations(inputs, job.noise_level)[0]
    drawn = saliency.scaled_noise(inputs[0], sigma, n_samples=job.n_samples, seed=job.seed)
    return np.stack([_numpy(noise) for noise in drawn])


def _numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of one photograph → NumPy, channels last."""
    tensor = tensor.detach()
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: np.ndarray = tensor.cpu().numpy()
    return array
