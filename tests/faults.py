"""Classic porting mistakes, each made on purpose in the port's own code, one at a time; and where each must show.

Here those in the maps' own computation; what comes before is in `network_faults`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from judging import BOTH
from torch import Tensor, nn

from parity.candidate import Job
from parity.contract.methods import DEFAULT as METHODS
from torch_impl import candidate as port
from torch_impl.capture.passes import Pass
from torch_impl.maps import gradcam, gradcam_plus_plus, postprocess, smoothgrad, vanilla
from torch_impl.maps.registry import DRAWN, Drawing
from torch_impl.twin import stages

GOLDEN, QUIET = "golden", "quiet"

Injection = Callable[[], AbstractContextManager[Any]]
"""Makes a mistake, within the block."""


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        inject: makes it, within the block.
        shows: whatever must differ, and no more (a method, or `network`: what all methods share) → the first stage that is off.
        cause: words of the probable cause, in every divergence.
        job: a mistake in what the port is asked, instead of how it computes.
        precisions: in which it must show; in the others nothing may differ.
        reference: whose network can show it: the golden one, or `quiet`, whose gradients and maps are tiny.
        raw_cause: one of these, where nothing but raw maps was given; none: no raw map can show it.
    """

    shows: Mapping[str, str]
    cause: str
    inject: Injection = contextlib.nullcontext
    job: Callable[[Job], Job] = lambda job: job
    precisions: tuple[str, ...] = BOTH
    reference: str = GOLDEN
    raw_cause: tuple[str, ...] = ("look for",)

    def candidate(self, job: Job) -> Iterator[port.Row]:
        """The port with this mistake in it."""
        torch.manual_seed(0)
        with self.inject():
            yield from port.candidate(self.job(job))


def everything(stage: str) -> dict[str, str]:
    """A mistake before the methods part: all of them show it, at this stage first."""
    return dict.fromkeys(("network", *METHODS), stage)


def each(stage: str, *names: str) -> dict[str, str]:
    """A mistake in these methods' own computation."""
    return {name: f"{name}/{stage}" for name in names}


def patched(*patches: Any) -> Injection:
    """Every (object, attribute, replacement) at once."""

    def inject() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for where, name, value in patches:
            stack.enter_context(mock.patch.object(where, name, value))
        return stack

    return inject


def reading(step: int) -> Injection:
    """The target layer is read at a module that many places further on than the golden network's own."""
    right, of_network, target = port.find_layer, port.network_stages, 15
    here, there = f"features.{target}", f"features.{target + step}"
    other = {here: there, there: here}

    def wrong_stages(model: nn.Module, taps: Mapping[str, stages.Tap], *more: Any) -> dict[str, np.ndarray]:
        return of_network(model, {other.get(key, key): tap for key, tap in taps.items()}, *more)

    layer = lambda model, name: right(model, other.get(name, name))  # noqa: E731
    return patched((port, "find_layer", layer), (port, "network_stages", wrong_stages))


def wrong_upsample(how: Callable[..., Tensor], *, drawn_only: bool = False) -> Injection:
    right = postprocess.upsample
    wrong = lambda maps, size: how(right, maps, size)  # noqa: E731
    return patched((postprocess, "upsample", wrong), *([] if drawn_only else [(stages, "upsample", wrong)]))


def wrong_alpha(*, epsilon: float = 0.0, normalized: bool = True, mean: bool = False) -> Injection:
    def alpha(a: Tensor, g: Tensor) -> Tensor:
        total = (a.mean if mean else a.sum)(dim=(-2, -1), keepdim=True)
        denominator = 2 * g**2 + g**3 * total + epsilon
        made = torch.where(g != 0, g**2 / torch.where(denominator == 0, 1, denominator), 0)
        sums = made.sum(dim=(-2, -1), keepdim=True)
        return made / torch.where(sums == 0, 1, sums) if normalized else made

    return patched((gradcam_plus_plus, "grad_cam_plus_plus_alpha", alpha))


def signed_map(activations: Tensor, channel_weights: Tensor, *, relu: bool = True) -> Tensor:
    return torch.einsum("nkhw,nk->nhw", activations, channel_weights)


def one_sigma() -> AbstractContextManager[Any]:
    """The whole batch's range for each photograph's own."""
    found: list[Tensor] = []

    def sigmas(inputs: Tensor, noise_level: float) -> Tensor:
        if not found:  # the maps come first, all photographs at once
            found.append(noise_level * (inputs.amax() - inputs.amin()))
        return found[0].expand(len(inputs))

    return mock.patch.object(smoothgrad, "standard_deviations", sigmas)


def absolute_sigma(inputs: Tensor, noise_level: float) -> Tensor:
    """What Captum's `stdevs` means."""
    return torch.full((len(inputs),), noise_level, dtype=inputs.dtype)


def other_noise(seed: int, n_samples: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """PyTorch's generator, as Captum's NoiseTunnel."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_samples):
        yield torch.randn(shape, generator=generator, dtype=torch.float64).numpy()


def drawn_by(name: str, function: Callable[[Pass], Tensor]) -> Injection:
    """Another function draws this map."""
    return lambda: mock.patch.dict(DRAWN, {name: Drawing(function, DRAWN[name].needs)})


def averaged(
    before: Callable[[Tensor], Tensor] = lambda gradients: gradients,
    after: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Injection:
    """SmoothGrad with something else for |·| before its mean, and something after it."""

    def function(p: Pass) -> Tensor:
        copies = torch.stack([torch.stack(list(smoothgrad.noise_of(image, p.options))) for image in p.inputs])
        p.keep(noise=lambda: copies)
        means = [
            before(p.capture.input_gradients(image + noise, category.expand(len(noise)))).mean(dim=0)
            for image, noise, category in zip(p.inputs, copies, p.target, strict=True)
        ]
        return vanilla.channel_maximum(after(torch.stack(means)))

    return drawn_by("smoothgrad", function)


CAMS = ("gradcam", "gradcam_plus_plus")
PLUS = "gradcam_plus_plus"

FAULTS: dict[str, Fault] = {
    "features[28]: before the ReLU": Fault(
        {"network": "activations/block3_conv3", **dict.fromkeys(CAMS, "activations/block3_conv3")},
        "before the ReLU",
        inject=reading(-1),
    ),
    "features[30]: the pool": Fault(
        {"network": "activations/block3_conv3", **dict.fromkeys(CAMS, "activations/block3_conv3")},
        "pooled target",
        inject=reading(1),
        raw_cause=("pooled target",),
    ),
    "gradients summed": Fault(
        each("weights", "gradcam"),
        "sum of the gradients",
        patched((gradcam, "grad_cam_weights", lambda g: g.sum(dim=(-2, -1)))),
        raw_cause=("sum of the gradients",),
    ),
    "no ReLU on the map": Fault(
        each("raw", *CAMS),
        "no ReLU on the map",
        patched(*((where, "class_activation_map", signed_map) for where in (gradcam, gradcam_plus_plus))),
        raw_cause=("no ReLU on the map",),
    ),
    "alpha not normalized": Fault(
        each("alpha", PLUS),
        "alpha was not divided by its own sum",
        wrong_alpha(normalized=False),
        raw_cause=("alpha was not divided by its own sum",),
    ),
    "the 1e-6 epsilon": Fault(
        each("alpha", PLUS),
        "epsilon: 1e-6",
        wrong_alpha(epsilon=1e-6),
        reference=QUIET,
        raw_cause=("epsilon: 1e-6",),
    ),
    "pytorch-grad-cam's alpha": Fault(
        each("alpha", PLUS),
        "epsilon: 1e-6 added to alpha's denominator (its terms are about 1e-8), and alpha not divided by its sum",
        wrong_alpha(epsilon=1e-6, normalized=False),
        reference=QUIET,
        raw_cause=("epsilon: 1e-6",),
    ),
    "mean(A) for the sum of A": Fault(
        each("alpha", PLUS), "mean(A) for the sum of A", wrong_alpha(mean=True), raw_cause=("mean(A) for the sum of A",)
    ),
    "half-pixel upsampling": Fault(
        each("upsampled", *CAMS),
        "resize grid: half-pixel",
        wrong_upsample(
            lambda right, maps, size: nn.functional.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0]
        ),
        raw_cause=(),
    ),
    "normalized before it is enlarged": Fault(
        each("final", *CAMS),
        "normalized before it was enlarged",
        wrong_upsample(lambda right, maps, size: right(postprocess.normalize(maps), size), drawn_only=True),
        reference=QUIET,
        raw_cause=(),
    ),
    "not normalized": Fault(
        each("final", *METHODS), "not normalized", patched((postprocess, "normalize", lambda maps: maps)), raw_cause=()
    ),
    "enlarged bicubically": Fault(
        each("upsampled", *CAMS),
        "enlarged bicubically, on half-pixel centres",
        wrong_upsample(
            lambda right, maps, size: nn.functional.interpolate(maps[:, None], size=size, mode="bicubic")[:, 0]
        ),
        raw_cause=(),
    ),
    "squared gradients in SmoothGrad": Fault(
        each("raw", "smoothgrad"), "squared gradients", averaged(before=torch.square), raw_cause=("squared gradients",)
    ),
    "one σ for all photographs": Fault(each("noise", "smoothgrad"), "one σ for all photographs", one_sigma),
    "σ = 0.2 absolute": Fault(
        each("noise", "smoothgrad"), "σ is 0.2 itself", patched((smoothgrad, "standard_deviations", absolute_sigma))
    ),
    "PyTorch's noise": Fault(
        each("noise", "smoothgrad"), "other noise", patched((smoothgrad, "unit_noise", other_noise))
    ),
    "|·| after the mean": Fault(
        each("raw", "smoothgrad"),
        "absolute value after the mean over samples",
        averaged(after=torch.abs),
        raw_cause=("absolute value after the mean over samples",),
    ),
    "mean over channels": Fault(
        each("raw", "vanilla", "smoothgrad"),
        "mean over the colour channels",
        patched(
            *((where, "channel_maximum", lambda absolute: absolute.mean(dim=1)) for where in (vanilla, smoothgrad))
        ),
        raw_cause=("mean over the colour channels",),
    ),
}
"""Name → mistake."""
