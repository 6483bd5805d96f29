"""How the libraries' plain calls become the reference's maps: one change a rung, correlation at each. Computed, not quoted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from captum.attr import NoiseTunnel, Saliency
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from parity import formulas
from parity.candidate import Job
from parity.contract.artifact import Artifact
from parity.report import Rung
from parity.similarity import pearson
from torch_impl import cam, saliency, stock, vgg16
from torch_impl.explainer import choose_device
from torch_impl.methods import finish
from torch_impl.precision import numerics
from torch_impl.preprocess import preprocess
from torch_impl.preserve import preserved


def rungs(job: Job, reference: Artifact) -> Iterator[Rung]:
    """Every ladder whose method the job has, in float32.

    Args:
        job: pixels, classes, weights, SmoothGrad's settings.
        reference: with float64 raw maps.
    """
    device = choose_device(job.device)
    with numerics("fp32"):
        model = vgg16.build(job.network).to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
        inputs = preprocess(job.pixels, input=job.input, device=device)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        target = torch.tensor(job.classes, device=device)
        steps = {
            "vanilla": _vanilla(model, inputs, target),
            "smoothgrad": _smoothgrad(job, model, inputs, target),
            "gradcam": _cam("gradcam", job, model, inputs, target),
            "gradcam_plus_plus": _cam("gradcam_plus_plus", job, model, inputs, target),
        }
        size = job.architecture.size
        for method in job.methods:
            raw = reference.whole(f"{method}/raw", "fp64")
            expected = [formulas.finish(one, size) for one in raw]
            for what, draw in steps[method]:
                drawn = draw().double().cpu().numpy()
                yield Rung(method, what, tuple(pearson(a, b) for a, b in zip(drawn, expected, strict=True)))


Step = tuple[str, Callable[[], Tensor]]


def _vanilla(model: nn.Module, inputs: Tensor, target: Tensor) -> list[Step]:
    def mean() -> Tensor:
        with preserved(model):
            return finish(saliency.absolute_gradients(model, inputs, target).mean(dim=1), _size(inputs))

    def maximum() -> Tensor:
        return finish(saliency.vanilla_saliency(model, inputs, target), _size(inputs))

    return [("captum Saliency, mean over channels", mean), ("maximum over channels (the port)", maximum)]


def _smoothgrad(job: Job, model: nn.Module, inputs: Tensor, target: Tensor) -> list[Step]:
    n, level, seed = job.n_samples, job.noise_level, job.seed
    size = _size(inputs)

    def plain() -> Tensor:
        drawn = stock.captum_smoothgrad(model, inputs, target, noise_level=level, n_samples=n, seed=seed)
        return finish(drawn, size)

    def own_sigma() -> Tensor:
        drawn = []
        sigmas = saliency.standard_deviations(inputs, level)
        with preserved(model), torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            torch.manual_seed(seed)
            for i, sigma in enumerate(sigmas):
                attribution = NoiseTunnel(Saliency(model)).attribute(
                    inputs[i : i + 1].detach().clone().requires_grad_(),
                    nt_type="smoothgrad",
                    nt_samples=n,
                    nt_samples_batch_size=1,
                    stdevs=float(sigma),
                    target=target[i : i + 1],
                )
                drawn.append(attribution.detach().amax(dim=1))
        return finish(torch.cat(drawn), size)

    def signed() -> Tensor:
        drawn = []
        with preserved(model):
            for i in range(len(inputs)):
                total = torch.zeros_like(inputs[:1])
                for _, copy in saliency.noisy_copies(inputs[i : i + 1], noise_level=level, n_samples=n, seed=seed):
                    leaf = copy[None].clone().requires_grad_()
                    (g,) = torch.autograd.grad(model(leaf)[0, target[i]], leaf)
                    total += g
                drawn.append((total / n).abs().amax(dim=1))
        return finish(torch.cat(drawn), size)

    def port() -> Tensor:
        return finish(saliency.smoothgrad(model, inputs, target, noise_level=level, n_samples=n, seed=seed), size)

    return [
        (f"captum NoiseTunnel(stdevs={level:g})", plain),
        ("σ from each image's own range", own_sigma),
        ("the reference's noise, but |·| after the mean", signed),
        ("|·| before the mean (the port)", port),
    ]


def _cam(method: str, job: Job, model: nn.Module, inputs: Tensor, target: Tensor) -> list[Step]:
    layer = job.architecture.target.activation
    pool = f"features.{int(layer.split('.')[1]) + 1}"
    size = _size(inputs)
    name = {"gradcam": "GradCAM", "gradcam_plus_plus": "GradCAMPlusPlus"}[method]

    def plain(at: str) -> Callable[[], Tensor]:
        return lambda: stock.pytorch_grad_cam_map(method, model, inputs, target, target_layer=at)

    def grid() -> Tensor:
        """The library's own weights, without its resize and its two min–max steps."""
        engine = {"gradcam": GradCAM, "gradcam_plus_plus": GradCAMPlusPlus}[method]
        drawn = []
        with preserved(model):
            made = engine(model=model, target_layers=[cam.find_layer(model, layer)])
            try:
                for i in range(len(inputs)):
                    leaf = inputs[i : i + 1].detach().requires_grad_()
                    targets = [ClassifierOutputTarget(int(target[i]))]
                    made(input_tensor=leaf, targets=targets)
                    a, g = (x[0].numpy() for x in (made.activations_and_grads.activations, made.activations_and_grads.gradients))  # fmt: skip
                    weights = made.get_cam_weights(leaf, None, targets, a, g)
                    drawn.append(np.maximum(np.einsum("nkhw,nk->nhw", a, weights), 0))
            finally:
                made.activations_and_grads.release()
        return finish(torch.from_numpy(np.concatenate(drawn)), size)

    def port() -> Tensor:
        draw = {"gradcam": cam.grad_cam, "gradcam_plus_plus": cam.grad_cam_plus_plus}[method]
        return finish(draw(model, inputs, target, target_layer=layer), size)

    steps: list[Step] = [
        (f"pytorch-grad-cam {name}, {pool} (the pool: features[-1])", plain(pool)),
        (f"target layer {layer} (after the ReLU)", plain(layer)),
        ("enlarged corner on corner, then normalized", grid),
    ]
    if method == "gradcam_plus_plus":
        steps.append(("no 1e-6, alpha divided by its sum (the port)", port))
    else:
        steps[-1] = (steps[-1][0] + " (the port)", port)
    return steps


def _size(inputs: Tensor) -> tuple[int, int]:
    return int(inputs.shape[-2]), int(inputs.shape[-1])
