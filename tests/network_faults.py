"""Classic porting mistakes before the methods part, in preprocessing and in the network: see `faults`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from faults import Fault, Injection, everything, patched
from torch import Tensor, nn

from parity.candidate import Job
from parity.contract.layers import LayerTable
from parity.contract.network import Network
from torch_impl import candidate as port
from torch_impl import network as networks
from torch_impl import preprocess as preprocessing


def network(change: Callable[[dict[str, np.ndarray], LayerTable], None]) -> Injection:
    """The port loads other numbers than it was given."""
    build = networks.build

    def wrong(given: Network) -> nn.Module:
        tensors = {name: array.copy() for name, array in given.tensors.items()}
        change(tensors, given.table)
        return build(replace(given, tensors={name: np.ascontiguousarray(array) for name, array in tensors.items()}))

    return patched((networks, "build", wrong))


def module(change: Callable[[nn.Module], None]) -> Injection:
    """The port's network has another layer than it should have."""
    build = networks.build

    def wrong(given: Network) -> nn.Module:
        model = build(given)
        change(model)
        return model

    return patched((networks, "build", wrong))


def without_bias(name: str) -> Injection:
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


def wrong_preprocess(how: Callable[..., Any]) -> Injection:
    right = port.preprocess
    return patched((port, "preprocess", lambda pixels, **settings: how(right, pixels, settings)))


def next_class(job: Job) -> Job:
    return replace(job, classes=tuple((one + 1) % job.table.classes for one in job.classes))


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
    "a leaky ReLU": Fault(
        everything("activations/block1_conv1"), "a leaky ReLU", module(swapped(nn.ReLU, nn.LeakyReLU))
    ),
}
"""Name → mistake. The photograph's resize is not here: the port is given the reference's pixels; see test_faults.py."""
