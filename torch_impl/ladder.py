"""How the libraries' plain calls become the reference's maps: one change a rung. Computed, not quoted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from captum.attr import NoiseTunnel, Saliency
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from torch_impl import cam, saliency, stock
from torch_impl.methods import Settings, finish
from torch_impl.preserve import preserved

Step = tuple[str, Callable[[], Tensor]]
"""What is called or changed, and how it is drawn: raw maps (N, …)."""


def rungs(
    methods: Sequence[str], model: nn.Module, inputs: Tensor, target: Tensor, settings: Settings
) -> Iterator[tuple[str, str, Tensor]]:
    """Every ladder whose method is asked for; a map without one is left out.

    Args:
        methods: names of `methods.METHODS`.
        model: gives logits (N, classes), in float32.
        inputs: preprocessed.
        target: class indices.
        settings: of SmoothGrad; the CAMs' target layer.

    Yields:
        (method, what was called or changed, final maps (N, H, W)).
    """
    size = int(inputs.shape[-2]), int(inputs.shape[-1])
    for method in methods:
        if method in LADDERS:
            for what, draw in LADDERS[method](method, model, inputs, target, settings):
                yield method, what, finish(draw(), size)


def _vanilla(method: str, model: nn.Module, inputs: Tensor, target: Tensor, settings: Settings) -> list[Step]:
    def mean() -> Tensor:
        with preserved(model):
            return saliency.absolute_gradients(model, inputs, target).mean(dim=1)

    return [
        ("captum Saliency, mean over channels", mean),
        ("maximum over channels (the port)", lambda: saliency.vanilla_saliency(model, inputs, target)),
    ]


def _smoothgrad(method: str, model: nn.Module, inputs: Tensor, target: Tensor, settings: Settings) -> list[Step]:
    n, level, seed = settings.n_samples, settings.noise_level, settings.seed

    def own_sigma() -> Tensor:
        drawn = []
        with preserved(model), torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            torch.manual_seed(seed)
            for i, sigma in enumerate(saliency.standard_deviations(inputs, level)):
                attribution = NoiseTunnel(Saliency(model)).attribute(
                    inputs[i : i + 1].detach().clone().requires_grad_(),
                    nt_type="smoothgrad",
                    nt_samples=n,
                    nt_samples_batch_size=1,
                    stdevs=float(sigma),
                    target=target[i : i + 1],
                )
                drawn.append(attribution.detach().amax(dim=1))
        return torch.cat(drawn)

    def signed() -> Tensor:
        drawn = []
        with preserved(model):
            for i in range(len(inputs)):
                total = torch.zeros_like(inputs[:1])
                for _, copy in saliency.noisy_copies(inputs[i : i + 1], noise_level=level, n_samples=n, seed=seed):
                    leaf = copy[None].clone().requires_grad_()
                    total += torch.autograd.grad(model(leaf)[0, target[i]], leaf)[0]
                drawn.append((total / n).abs().amax(dim=1))
        return torch.cat(drawn)

    options: dict[str, Any] = {"noise_level": level, "n_samples": n, "seed": seed}
    return [
        (f"captum NoiseTunnel(stdevs={level:g})", lambda: stock.captum_smoothgrad(model, inputs, target, **options)),
        ("σ from each image's own range", own_sigma),
        ("the reference's noise, but |·| after the mean", signed),
        ("|·| before the mean (the port)", lambda: saliency.smoothgrad(model, inputs, target, **options)),
    ]


def _cam(method: str, model: nn.Module, inputs: Tensor, target: Tensor, settings: Settings) -> list[Step]:
    layer = str(settings.target_layer)
    pool = f"features.{int(layer.split('.')[1]) + 1}"
    engine = {"gradcam": GradCAM, "gradcam_plus_plus": GradCAMPlusPlus}[method]
    draw = {"gradcam": cam.grad_cam, "gradcam_plus_plus": cam.grad_cam_plus_plus}[method]

    def plain(at: str) -> Callable[[], Tensor]:
        return lambda: stock.pytorch_grad_cam_map(method, model, inputs, target, target_layer=at)

    def port() -> Tensor:
        return draw(model, inputs, target, target_layer=layer)

    name, corners = engine.__name__, "enlarged corner on corner, then normalized"
    steps: list[Step] = [
        (f"pytorch-grad-cam {name}, {pool} (the pool: features[-1])", plain(pool)),
        (f"target layer {layer} (after the ReLU)", plain(layer)),
    ]
    if method == "gradcam":
        return [*steps, (f"{corners} (the port)", port)]
    return [
        *steps,
        (corners, lambda: _library_weights(engine, model, inputs, target, layer)),
        ("no 1e-6, alpha divided by its sum (the port)", port),
    ]


def _library_weights(engine: type, model: nn.Module, inputs: Tensor, target: Tensor, layer: str) -> Tensor:
    """A library's own channel weights, without its resize and its two min–max steps."""
    drawn = []
    with preserved(model):
        made = engine(model=model, target_layers=[cam.find_layer(model, layer)])
        captured = made.activations_and_grads
        try:
            for i in range(len(inputs)):
                leaf = inputs[i : i + 1].detach().requires_grad_()
                targets = [ClassifierOutputTarget(int(target[i]))]
                made(input_tensor=leaf, targets=targets)
                a, g = captured.activations[0].numpy(), captured.gradients[0].numpy()
                weights = made.get_cam_weights(leaf, None, targets, a, g)
                drawn.append(np.maximum(np.einsum("nkhw,nk->nhw", a, weights), 0))
        finally:
            captured.release()
    return torch.from_numpy(np.concatenate(drawn))


LADDERS = {"vanilla": _vanilla, "smoothgrad": _smoothgrad, "gradcam": _cam, "gradcam_plus_plus": _cam}
"""Map → (method, model, inputs, target, settings) → its rungs, the port's own map last."""
