"""Classic porting mistakes, each made on purpose in the port's own code, one at a time; and where each must show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from judging import BOTH
from torch import Tensor, nn

from parity.candidate import Job
from parity.contract.layers import LayerTable
from parity.contract.methods import DEFAULT as METHODS
from parity.contract.network import Network
from torch_impl import candidate as port
from torch_impl import network as networks
from torch_impl import preprocess as preprocessing
from torch_impl.capture.passes import Pass
from torch_impl.maps import gradcam, gradcam_plus_plus, postprocess, smoothgrad, vanilla
from torch_impl.maps.registry import DRAWN, Drawing

GOLDEN, QUIET = "golden", "quiet"


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
    inject: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    job: Callable[[Job], Job] = lambda job: job
    precisions: tuple[str, ...] = BOTH
    reference: str = GOLDEN
    raw_cause: tuple[str, ...] = ("look for",)

    def candidate(self, job: Job) -> Iterator[port.Row]:
        """The port with this mistake in it."""
        torch.manual_seed(0)
        with self.inject():
            yield from port.candidate(self.job(job))

    def raw_candidate(self, job: Job) -> Iterator[port.Row]:
        """The same, giving away nothing but raw maps."""
        return ((i, stage, array) for i, stage, array in self.candidate(job) if stage.endswith("/raw"))


def everything(stage: str) -> dict[str, str]:
    """A mistake before the methods part: all of them show it, at this stage first."""
    return dict.fromkeys(("network", *METHODS), stage)


def each(stage: str, *names: str) -> dict[str, str]:
    """A mistake in these methods' own computation."""
    return {name: f"{name}/{stage}" for name in names}


def patched(*patches: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Every (object, attribute, replacement) at once."""

    def inject() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for where, name, value in patches:
            stack.enter_context(mock.patch.object(where, name, value))
        return stack

    return inject


def network(change: Callable[[dict[str, np.ndarray], LayerTable], None]) -> Callable[[], AbstractContextManager[Any]]:
    """The port loads other numbers than it was given."""
    build = networks.build

    def wrong(given: Network) -> nn.Module:
        tensors = {name: array.copy() for name, array in given.tensors.items()}
        change(tensors, given.table)
        return build(replace(given, tensors={name: np.ascontiguousarray(array) for name, array in tensors.items()}))

    return patched((networks, "build", wrong))


def module(change: Callable[[nn.Module], None]) -> Callable[[], AbstractContextManager[Any]]:
    """The port's network has another layer than it should have."""
    build = networks.build

    def wrong(given: Network) -> nn.Module:
        model = build(given)
        change(model)
        return model

    return patched((networks, "build", wrong))


def without_bias(name: str) -> Callable[[], AbstractContextManager[Any]]:
    def change(tensors: dict[str, np.ndarray], table: LayerTable) -> None:
        _, bias = table[name].tensors
        tensors[bias][:] = 0

    return network(change)


def flipped(tensors: dict[str, np.ndarray], table: LayerTable) -> None:
    """Convolution for cross-correlation."""
    weight, _ = table["block2_conv1"].tensors
    tensors[weight] = tensors[weight][:, :, ::-1, ::-1]


def keras_flatten_order(tensors: dict[str, np.ndarray], table: LayerTable) -> None:
    """(H, W, C) where torch flattens (C, H, W)."""
    weight = tensors["classifier.0.weight"]
    height, width, channels = table["fc1"].config["flattened"]
    tensors["classifier.0.weight"] = (
        weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(weight.shape)
    )


def half_precision(tensors: dict[str, np.ndarray], table: LayerTable) -> None:
    for name, array in tensors.items():
        tensors[name] = array.astype(np.float16).astype(np.float32)


def hotter(tensors: dict[str, np.ndarray], table: LayerTable) -> None:
    """A temperature of 2 on the logits."""
    for kind in ("weight", "bias"):
        tensors[f"classifier.6.{kind}"] /= 2


class AlwaysDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.dropout(input, self.p, training=True)


class GuidedReLU(nn.Module):
    """Guided backpropagation: negative gradients are dropped on the way down."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            return gradient.relu() * (x > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.Function.apply(x)


def swapped(kind: type[nn.Module], make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for part in (model.features, model.classifier):
            for index, one in enumerate(part):
                if isinstance(one, kind):
                    part[index] = make()

    return change


def softmax_left_on(model: nn.Module) -> None:
    model.classifier.append(nn.Softmax(dim=1))


def reading(step: int) -> Callable[[], AbstractContextManager[Any]]:
    """The target layer is read at a module that many places further on than the golden network's own."""
    right, target = port.find_layer, 15
    names = {f"features.{target}": f"features.{target + step}"}
    return patched((port, "find_layer", lambda model, name: right(model, names.get(name, name))))


def wrong_preprocess(how: Callable[..., Any]) -> Callable[[], AbstractContextManager[Any]]:
    right = port.preprocess
    return patched((port, "preprocess", lambda pixels, **settings: how(right, pixels, settings)))


def wrong_upsample(
    how: Callable[..., Tensor], *, drawn_only: bool = False
) -> Callable[[], AbstractContextManager[Any]]:
    right = postprocess.upsample
    wrong = lambda maps, size: how(right, maps, size)  # noqa: E731
    return patched((postprocess, "upsample", wrong), *([] if drawn_only else [(port, "upsample", wrong)]))


def wrong_alpha(
    *, epsilon: float = 0.0, normalized: bool = True, mean: bool = False
) -> Callable[[], AbstractContextManager[Any]]:
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


def drawn_by(name: str, function: Callable[[Pass], Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """Another function draws this map."""
    return lambda: mock.patch.dict(DRAWN, {name: Drawing(function, DRAWN[name].needs)})


def averaged(
    before: Callable[[Tensor], Tensor] = lambda gradients: gradients,
    after: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Callable[[], AbstractContextManager[Any]]:
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


def next_class(job: Job) -> Job:
    return replace(job, classes=tuple((one + 1) % job.table.classes for one in job.classes))


CAMS = ("gradcam", "gradcam_plus_plus")
PLUS = "gradcam_plus_plus"

FAULTS: dict[str, Fault] = {
    "RGB for BGR": Fault(
        everything("inputs"),
        "channel order: RGB for BGR, with the mean in BGR order",
        wrong_preprocess(lambda right, pixels, s: right(np.ascontiguousarray(pixels[..., ::-1]), **s)),
    ),
    "inputs flipped to RGB after the mean": Fault(
        everything("inputs"),
        "channel order: RGB where the network wants BGR",
        wrong_preprocess(lambda right, pixels, s: right(pixels, **s).flip(1)),
    ),
    "mean in RGB order": Fault(
        everything("inputs"),
        "the mean in RGB order",
        patched((preprocessing, "CAFFE_MEAN_BGR", preprocessing.CAFFE_MEAN_BGR[::-1])),
    ),
    "missing mean": Fault(
        everything("inputs"),
        "the mean was not subtracted",
        patched((preprocessing, "CAFFE_MEAN_BGR", (0.0, 0.0, 0.0))),
    ),
    "torchvision's statistics": Fault(
        everything("inputs"),
        "torchvision's statistics",
        wrong_preprocess(lambda right, pixels, s: right(pixels, **{**s, "input": "torchvision"})),
    ),
    "a convolution's bias missing": Fault(
        everything("activations/block2_conv2"), "a missing or another bias", without_bias("block2_conv2")
    ),
    "a kernel flipped": Fault(
        everything("activations/block2_conv1"),
        "look for the kernel's layout (HWIO, OIHW), a flipped kernel",
        network(flipped),
    ),
    "average pooling": Fault(
        everything("activations/block1_pool"),
        "look for the pooling: its window, stride, padding, or average for maximum",
        module(swapped(nn.MaxPool2d, lambda: nn.AvgPool2d(2))),
    ),
    "fc1 in Keras's flatten order": Fault(everything("activations/fc1"), "flatten order", network(keras_flatten_order)),
    "a dense layer's bias missing": Fault(everything("activations/fc2"), "bias is missing", without_bias("fc2")),
    "the last layer's bias missing": Fault(
        # No map can show it: it leaves every gradient as it is. Logits and score do.
        {"network": "logits"},
        "the last layer's bias is missing",
        without_bias("predictions"),
        raw_cause=(),
    ),
    "dropout on": Fault(everything("activations/fc2"), "dropout is on", module(swapped(nn.Dropout, AlwaysDropout))),
    "softmax left on": Fault(everything("logits"), "softmax left on", module(softmax_left_on)),
    "a temperature": Fault(
        # Of the final maps only Grad-CAM++'s moves; the raw maps of the other three are half as large.
        everything("logits"),
        "0.5 times",
        network(hotter),
        raw_cause=("0.5 times", "look for"),
    ),
    "class off by one": Fault(everything("score"), "another class: this is the logit of class", job=next_class),
    "guided backpropagation": Fault(
        everything("gradients/fc1"),
        "look for another class, softmax left on, or a backward pass through other switches",
        module(swapped(nn.ReLU, GuidedReLU)),
    ),
    "float16 weights": Fault(
        everything("activations/block1_conv1"),
        "half precision",
        network(half_precision),
        raw_cause=("half precision", "look for"),
    ),
    "float32 for float64": Fault(
        everything("inputs"),
        "float32",
        job=lambda job: replace(job, precision="fp32"),
        precisions=("fp64",),
        raw_cause=("float32", "look for"),
    ),
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
    "a leaky ReLU": Fault(
        everything("activations/block1_conv1"), "a leaky ReLU", module(swapped(nn.ReLU, nn.LeakyReLU))
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
"""Name → mistake. The photograph's resize is not here: the port is given the reference's pixels; see test_faults.py."""
