"""This port as a candidate of `parity`: its maps by its own code, every stage between them, and what the report shows beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from parity.candidate import Job
from parity.contract.methods import METHODS
from parity.contract.network import Network
from torch_impl import cam, images, methods, postprocess, preserve, saliency, shared_pass, vgg16, weights
from torch_impl import ladder as rungs
from torch_impl.explainer import choose_device
from torch_impl.precision import at_least_fp32, dtype_of, numerics, score_scale

Row = tuple[int, str, np.ndarray]
"""(photograph, stage, array): what a candidate gives."""

Draw = Callable[[str, nn.Module, Tensor, Tensor, methods.Settings], Tensor]
"""(method, model, inputs, target, settings) → raw maps (N, …)."""

OWN_STAGES: Mapping[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {
    "gradcam": lambda a, g: {"weights": cam.grad_cam_weights(g)},
    "gradcam_plus_plus": lambda a, g: {
        "alpha": cam.grad_cam_plus_plus_alpha(a, g),
        "weights": cam.grad_cam_plus_plus_weights(a, g),
    },
}
"""Map → (A, G) → its stages before the raw map."""


def candidate(job: Job) -> Iterator[Row]:
    """The library engine: Captum and pytorch-grad-cam, with the reference's formulas.

    Args:
        job: what to do.

    Yields:
        (photograph, stage, array) for every stage of `parity.contract.stages` but `pixels`.
    """
    return _stages(job, methods.raw_maps)


def one_pass(job: Job) -> Iterator[Row]:
    """The shared engine: every map that is asked for in one call. Arguments and result as `candidate`."""
    raw: dict[str, Tensor] = {}

    def draw(name: str, model: nn.Module, inputs: Tensor, target: Tensor, settings: methods.Settings) -> Tensor:
        if not raw:
            raw.update(shared_pass.shared_pass(model, inputs, target, job.methods, settings).raw)
        return raw[name]

    return _stages(job, draw)


def photographs(paths: Sequence[str], size: tuple[int, int], resize: str) -> list[images.Photograph]:
    """Photographs as `explain` reads them; see `parity.port`."""
    files = images.find(paths, skip_bad=True) if paths else images.defaults()
    return images.load_all(files, size=size[0], resize=resize)[0]


def load_weights(source: str, input: str | None) -> Network:
    """The weights of `--weights`; see `parity.port`."""
    return weights.load_network(source, input=input)


def raw_maps(job: Job, inputs: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Method → raw maps (N, …); see `parity.port`."""
    with numerics(job.precision):
        model, images, target, settings = _prepared(job, inputs)
        return {name: methods.raw_maps(name, model, images, target, settings).cpu().numpy() for name in job.methods}


def ladder(job: Job) -> Iterator[tuple[str, str, np.ndarray]]:
    """(method, what was changed, final maps (N, H, W)); see `parity.port`."""
    with numerics(job.precision):
        model, inputs, target, settings = _prepared(job)
        for method, what, drawn in rungs.rungs(job.methods, model, inputs, target, settings):
            yield method, what, drawn.double().cpu().numpy()


def _prepared(job: Job, inputs: np.ndarray | None = None) -> tuple[nn.Module, Tensor, Tensor, methods.Settings]:
    """Model, inputs (N, C, H, W), target and settings of a job."""
    device, dtype = choose_device(job.device), dtype_of(job.precision)
    model = vgg16.prepared(job.network, device, dtype)
    if inputs is None:
        given = images.preprocess(job.pixels, input=job.input, dtype=dtype, device=device)
    else:
        given = torch.from_numpy(inputs).permute(0, 3, 1, 2).to(device, dtype)
    settings = methods.Settings(
        target_layer=job.table.modules[job.table.target],
        noise_level=job.noise_level,
        n_samples=job.n_samples,
        seed=job.seed,
    )
    target = torch.tensor(job.classes, device=device)
    return model, given.contiguous(memory_format=torch.channels_last), target, settings


def _stages(job: Job, draw: Draw) -> Iterator[Row]:
    with numerics(job.precision):
        model, inputs, target, settings = _prepared(job)
        size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        for name in job.methods:
            raw = draw(name, model, inputs, target, settings)
            final = methods.finish(raw, size)
            for i in range(len(inputs)):
                yield i, f"{name}/raw", _numpy(raw[i])
                yield i, f"{name}/final", _numpy(final[i])
                if METHODS[name].at_layer:
                    yield i, f"{name}/upsampled", _numpy(postprocess.upsample(raw[i : i + 1], size)[0])
        for i in range(len(inputs)):
            one = inputs[i : i + 1]
            for stage, array in _between(job, model, one, target[i : i + 1]).items():
                yield i, stage, array
            if "smoothgrad" in job.methods:
                yield i, "smoothgrad/noise", _noise(job, one)


def _between(job: Job, model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    """Activations, logits, score and gradients of one photograph, and what the maps at a layer make of them."""
    outputs: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            outputs[layer] = output
            return output.clone()  # what follows may work in place

        return hook

    modules = {layer.name: cam.find_layer(model, job.table.modules[layer.name]) for layer in job.table.hidden}
    handles = [module.register_forward_hook(keep(layer)) for layer, module in modules.items()]
    try:
        with preserve.preserved(model):
            leaf = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            logits = model(leaf)
            scale = score_scale(inputs.dtype)
            score = logits[0, target[0]]
            scaled = score if scale == 1 else score.float() * scale
            slopes = torch.autograd.grad(scaled, [leaf, *outputs.values()])
    finally:
        for handle in handles:
            handle.remove()
    gradients = dict(zip(("inputs", *outputs), slopes, strict=True))
    stages = {"inputs": inputs[0], "logits": logits[0], "score": score}
    stages |= {f"activations/{layer}": output[0] for layer, output in outputs.items()}
    wide = at_least_fp32(inputs.dtype)
    a, g = outputs[job.table.target].detach().to(wide), gradients[job.table.target].to(wide) / scale
    for method in job.methods:
        if method in OWN_STAGES:
            stages |= {f"{method}/{name}": array[0] for name, array in OWN_STAGES[method](a, g).items()}
    arrays = {name: _numpy(tensor) for name, tensor in stages.items()}
    return arrays | {f"gradients/{layer}": _numpy(slope[0]) / scale for layer, slope in gradients.items()}


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
