"""How the libraries' plain calls become the reference's maps: one change a rung. Computed, not quoted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import Saliency
from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl import stock
from torch_impl.capture.draw import draw, of_outputs, opened
from torch_impl.capture.target_layer import find_layer
from torch_impl.maps.postprocess import finish
from torch_impl.maps.smoothgrad import noise_of, standard_deviations
from torch_impl.preserve import Double, own_gradients

Step = tuple[str, Callable[[], Tensor]]
"""What is called or changed, and how it is drawn: raw maps (N, …)."""


@dataclass(frozen=True)
class Subject:
    """What the rungs of a ladder are drawn of.

    Attributes:
        model: gives logits (N, classes); in float32, frozen and in eval mode, and nobody else's.
        inputs: preprocessed.
        target: indices of its outputs.
        layer: the target layer's name.
        options: of the maps.
    """

    model: nn.Module
    inputs: Tensor
    target: Tensor
    layer: str
    options: Options

    def port(self, method: str) -> Tensor:
        """The port's own raw maps."""
        capture = opened(self.model, find_layer(self.model, self.layer))
        return draw(capture, self.inputs, of_outputs(capture, self.target), [method], self.options).raw[method]

    def stock_cam(self, method: str, layer: str) -> Tensor:
        """pytorch-grad-cam's own maps on a layer."""
        return stock.pytorch_grad_cam_map(method, self.model, self.inputs, self.target, find_layer(self.model, layer))


def rungs(
    methods: Sequence[str], model: nn.Module, inputs: Tensor, target: Tensor, layer: str, options: Options
) -> Iterator[tuple[str, str, Tensor]]:
    """Every ladder whose method is asked for; a map without one is left out.

    Args:
        methods: names of `methods.METHODS`.
        model: gives logits (N, classes), in float32.
        inputs: preprocessed.
        target: class indices.
        layer: the class activation maps' target layer, by its name.
        options: of the maps.

    Yields:
        (method, what was called or changed, final maps (N, H, W)).
    """
    size = int(inputs.shape[-2]), int(inputs.shape[-1])
    subject = Subject(Double(model).model, inputs, target, layer, options)
    for method in methods:
        if method in LADDERS:
            for what, draw_rung in LADDERS[method](method, subject):
                with own_gradients():
                    drawn = finish(draw_rung(), size)
                yield method, what, drawn


def _vanilla(method: str, s: Subject) -> list[Step]:
    def mean() -> Tensor:
        leaf = s.inputs.detach().clone().requires_grad_()
        gradients: Tensor = Saliency(s.model).attribute(leaf, target=s.target)
        return gradients.detach().mean(dim=1)

    return [
        ("captum Saliency, mean over channels", mean),
        ("maximum over channels (the port)", lambda: s.port(method)),
    ]


def _smoothgrad(method: str, s: Subject) -> list[Step]:
    level, n_samples = s.options.noise_level, s.options.n_samples

    def plain() -> Tensor:
        with stock.seeded(s.options.seed, s.inputs.device):
            return stock.noise_tunnel(s.model, s.inputs, s.target, sigma=level, n_samples=n_samples)

    def own_sigma() -> Tensor:
        sigmas = standard_deviations(s.inputs, level).tolist()
        drawn = []
        with stock.seeded(s.options.seed, s.inputs.device):
            for image, category, sigma in zip(torch.split(s.inputs, 1), torch.split(s.target, 1), sigmas, strict=True):
                drawn.append(stock.noise_tunnel(s.model, image, category, sigma=sigma, n_samples=n_samples))
        return torch.cat(drawn)

    def signed() -> Tensor:
        drawn = []
        for image, category in zip(s.inputs, s.target, strict=True):
            total = torch.zeros_like(image)
            for noise in noise_of(image, s.options):
                leaf = (image + noise)[None].requires_grad_()
                total += torch.autograd.grad(s.model(leaf)[0, category], leaf)[0][0]
            drawn.append((total / n_samples).abs().amax(dim=0))
        return torch.stack(drawn)

    return [
        (f"captum NoiseTunnel(stdevs={level:g})", plain),
        ("σ from each image's own range", own_sigma),
        ("the reference's noise, but |·| after the mean", signed),
        ("|·| before the mean (the port)", lambda: s.port(method)),
    ]


def _cam(method: str, s: Subject) -> list[Step]:
    pool = f"features.{int(s.layer.split('.')[1]) + 1}"
    name, corners = stock.CLASSES[method], "enlarged corner on corner, then normalized"
    steps: list[Step] = [
        (f"pytorch-grad-cam {name}, {pool} (the pool: features[-1])", lambda: s.stock_cam(method, pool)),
        (f"target layer {s.layer} (after the ReLU)", lambda: s.stock_cam(method, s.layer)),
    ]
    if method in ("gradcam", "layercam"):
        return [*steps, (f"{corners} (the port)", lambda: s.port(method))]
    last = {
        "gradcam_plus_plus": "no 1e-6, alpha divided by its sum (the port)",
        "scorecam": "the class's probability for each mask, no softmax over channels (the port)",
    }
    return [*steps, (corners, lambda: _library_weights(method, s)), (last[method], lambda: s.port(method))]


def _library_weights(method: str, s: Subject) -> Tensor:
    """A library's own channel weights, without its resize and its two min–max steps."""
    with stock.called(method, s.model, s.inputs, s.target, find_layer(s.model, s.layer)) as (cam, _, leaf, targets):
        captured = cam.activations_and_grads
        a = captured.activations[0].numpy()
        g = captured.gradients[0].numpy() if captured.gradients else None
        weights = np.asarray(cam.get_cam_weights(leaf, None, targets, a, g))
    return torch.from_numpy(np.maximum(np.einsum("nkhw,nk->nhw", a, weights), 0))


LADDERS = {"vanilla": _vanilla, "smoothgrad": _smoothgrad, **dict.fromkeys(stock.CLASSES, _cam)}
"""Map → (method, subject) → its rungs, the port's own map last."""
