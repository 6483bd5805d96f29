"""Wrong twins: each is named at the stage where it first parts, with its cause; in float32 too where that is above rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from table_blocks import network, of
from table_networks import Builder
from table_twins import Style, TableNet, Wrong, at, compared, parting, weight
from torch import Tensor, nn

PLAINLY = Style()


@dataclass(frozen=True)
class Fault:
    """A wrong twin and what is to be said of it.

    Attributes:
        name: for the test's report.
        blocks: of the network.
        wrong: what is wrong, or what makes that of the network.
        stage: where it first parts.
        words: each of which the cause has.
        shape: of the network, where another than the usual.
        single: whether float32 shows it.
        style: how the module is written.
    """

    name: str
    blocks: tuple[str, ...]
    wrong: Wrong | Callable[[Builder], Wrong]
    stage: str
    words: tuple[str, ...]
    shape: dict[str, int] = field(default_factory=dict)
    single: bool = True
    style: Style = PLAINLY


def hwio(kernel: Tensor) -> Tensor:
    """Keras's numbers in Keras's order, read as if they ran as torch's."""
    return kernel.permute(2, 3, 1, 0).reshape(kernel.shape)


def depthwise_as_keras(kernel: Tensor) -> Tensor:
    return kernel[:, 0].permute(1, 2, 0).reshape(kernel.shape)


def flattened_last(builder: Builder) -> Wrong:
    """The dense layer's columns as Keras has them."""
    height, width, channels = next(row for row in builder.layers if row.name == "fc1").config["flattened"]

    def edit(kernel: Tensor) -> Tensor:
        return kernel.reshape(-1, channels, height, width).permute(0, 2, 3, 1).reshape(kernel.shape)

    return weight("fc1.weight", edit)


def folded_bias(builder: Builder) -> Wrong:
    bias = torch.from_numpy(builder.tensors["residual_2.bias"])
    return Wrong(tensors={"residual_2.bias": None, "residual_2_bn.running_mean": lambda mean: mean - bias})


def folded_norm(builder: Builder, conv: str, norm: str) -> Wrong:
    """A batch norm folded into the convolution before it, as for inference."""
    own = {name: torch.from_numpy(array) for name, array in builder.tensors.items()}
    row = next(row for row in builder.layers if row.name == norm)
    factor = own[f"{norm}.weight"] / (own[f"{norm}.running_var"] + row.config["epsilon"]).sqrt()
    offset = own[f"{norm}.bias"] - own[f"{norm}.running_mean"] * factor
    kernel = own[f"{conv}.weight"] * factor[:, None, None, None]
    module = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding=kernel.shape[2] // 2)
    bias = own.get(f"{conv}.bias", torch.zeros_like(offset)) * factor + offset
    module.load_state_dict({"weight": kernel, "bias": bias})
    return Wrong(config={norm: {"drop": True}, conv: {"step": module}})


def standardized(x: Tensor) -> Tensor:
    """ImageNet's mean and standard deviation, which the reference does not want."""
    mean, std = (
        torch.tensor(v, dtype=x.dtype).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (x - mean) / std


V1_5 = Wrong(config={"strided_1": {"strides": [1, 1]}, "strided_2": {"strides": [2, 2], "padding": 1}})
"""ResNet v1.5 for v1."""

RES, PLAIN, NEXT, INV = ("residual",), ("plain",), ("convnext", "plain"), ("inverted",)
A = "activations/"

FAULTS = (
    Fault("padding of a strided convolution", RES, at("stem", padding=1), A + "stem", ("padding: (1, 1)", "(0, 1)")),
    Fault("padding of a strided max-pool", ("plain_same",), at("plain_same_pool", padding=1), A + "plain_same_pool", ("padding",)),
    Fault("padding of a depthwise one", ("inverted2",), at("inverted2_depthwise", padding=1), A + "inverted2_depthwise", ("padding",)),
    Fault("padding of a separable one", ("separable2",), at("separable2/depthwise", padding=1), A + "separable2/depthwise", ("padding",)),
    Fault("padding left out", PLAIN, at("plain_2", padding=0), A + "plain_2", ("padding: (0, 0)", "shape", "8×8×8")),
    Fault("padding of a transposed one", ("enlarged",), at("enlarged_t", padding=1, output_padding=1), A + "enlarged_t", ("padding: 1",)),
    Fault("padding, as functions", ("plain_same", "residual"), at("plain_same_pool", padding=1), A + "residual_1", ("padding", "layer plain_same_pool"), style=Style(functional=True)),
    Fault("average pool counts its padding", ("inception",), at("inception_pool", counts=True), A + "inception_pool", ("padding", "counts")),
    Fault("epsilon", INV, at("inverted_expand_bn", epsilon=1e-5), A + "inverted_expand_bn", ("epsilon: 1e-05", "0.001")),
    Fault("epsilon of any value", RES, at("residual_2_bn", epsilon=3.3e-4), A + "residual_2_bn", ("epsilon: 0.00033",)),
    Fault("epsilon below float32", ("dense",), at("dense_1_0_bn", epsilon=1e-5), A + "dense_1_0_bn", ("epsilon: 1e-05", "1.001e-05"), single=False),
    Fault("layer norm's epsilon", NEXT, at("convnext_ln", epsilon=1e-5), A + "convnext_ln", ("epsilon: 1e-05", "0.001")),
    Fault("kernel layout", PLAIN, weight("plain_1.weight", hwio), A + "plain_1", ("permutation", "HWIO")),
    Fault("depthwise layout", INV, weight("inverted_depthwise.weight", depthwise_as_keras), A + "inverted_depthwise", ("permutation", "depthwise")),
    Fault("kernel flipped", RES, weight("stem.weight", lambda k: k.flip(-1, -2)), A + "stem", ("permutation", "flipped")),
    Fault("dense kernel transposed", RES, weight("logits.weight", lambda k: k.T.reshape(k.shape)), "logits", ("permutation", "transposed")),
    Fault("flatten order of the maps", ("flattened",), at("fc1", order="last"), A + "fc1", ("flatten order",), {"height": 12, "width": 16}),
    Fault("flatten order of the weights", ("flattened",), flattened_last, A + "fc1", ("flatten order",), {"height": 12, "width": 16}),
    Fault("gelu's approximation", NEXT, at("convnext_gelu", approximate=True), A + "convnext_gelu", ("activation: gelu_tanh",)),
    Fault("hard-swish for swish", ("separable",), at("separable_swish", activation="hard_silu"), A + "separable_swish", ("activation: hard_silu",)),
    Fault("hard sigmoid", ("squeezed",), at("squeezed_expand", activation="hard_sigmoid"), A + "squeezed_expand", ("activation: hard_sigmoid",)),
    Fault("LeakyReLU's slope", ("enlarged",), at("enlarged_leaky", slope=0.01), A + "enlarged_leaky", ("activation", "slope 0.01", "slope 0.3")),
    Fault("leaky for ReLU", PLAIN, at("plain_1", activation="leaky_relu", slope=0.01), A + "plain_1", ("activation: leaky_relu of slope 0.01",)),
    Fault("no activation", RES, at("residual_1_relu", activation="linear"), A + "residual_2", ("activation: none", "layer residual_1_relu")),
    Fault("mean and std inside too", RES, Wrong(inputs=standardized), A + "stem", ("mean and std", "0.485, 0.456, 0.406", "0.229, 0.224, 0.225")),
    Fault("channel order", RES, Wrong(inputs=lambda x: x.flip(1)), A + "stem", ("permutation", "(2, 1, 0)")),
    Fault("channel order of the weights", RES, weight("stem.weight", lambda k: k.flip(1)), A + "stem", ("permutation", "BGR")),
    Fault("batch statistics", RES, at("residual_1_bn", training=True), A + "residual_1_bn", ("training mode", "statistics")),
    Fault("dropout is on", ("flattened",), at("drop", step=lambda x: F.dropout(x, 0.5)), A + "fc2", ("training mode", "dropout")),
    Fault("a missing bias", RES, weight("residual_2.bias", None), A + "residual_2", ("missing bias",)),
    Fault("the last bias is missing", RES, weight("logits.bias", None), "logits", ("missing bias",)),
    Fault("a folded bias", RES, folded_bias, A + "residual_2", ("folded bias", "right again")),
    Fault("a folded batch norm", RES, partial(folded_norm, conv="residual_2", norm="residual_2_bn"), A + "residual_2", ("folded batch norm", "right again")),
    Fault("one folded into no bias", ("dense",), partial(folded_norm, conv="dense_0_1", norm="dense_0_1_bn"), A + "dense_0_1", ("folded batch norm",)),
    Fault("softmax", RES, Wrong(logits=lambda x: x.softmax(1)), "logits", ("softmax",)),
    Fault("softmax twice", RES, Wrong(logits=lambda x: x.softmax(1).softmax(1)), "logits", ("softmax twice",)),
    Fault("sigmoid of one output", INV, Wrong(logits=torch.sigmoid), "logits", ("sigmoid",), {"classes": 1}),
    Fault("the stride's place", ("strided",), V1_5, A + "strided_1", ("stride: (1, 1)", "shape", "10×10×6")),
    Fault("average for max", PLAIN, at("plain_pool", pool="average"), A + "plain_pool", ("average pool",)),
    Fault("max for average", ("squeezed",), at("squeezed_squeeze", pool="max"), A + "squeezed_squeeze", ("max pool",)),
    Fault("sizes rounded up", PLAIN, at("plain_pool", ceil=True), A + "plain_pool", ("shape", "6×6×8"), {"height": 21, "width": 21}),
    Fault("dilation", ("enlarged",), at("enlarged_last", dilation=[1, 1], padding=1), A + "enlarged_last", ("dilation",)),
    Fault("order of concatenation", ("dense",), at("dense_0_concat", merge=lambda x: torch.cat(x[::-1], 1)), A + "dense_1_0_bn", ("permutation", "layer dense_0_concat")),
    Fault("a shortcut left out", RES, at("residual_add", merge=lambda x: x[1]), A + "residual_out", ("leaves out what stem_relu",)),
    Fault("layer scale left out", NEXT, at("convnext_gamma", drop=True), A + "plain_1", ("scale", "layer convnext_gamma")),
    Fault("corner on corner", ("enlarged",), at("enlarged_up", corners=True), A + "enlarged_up", ("align_corners",)),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_wrong_twin_is_named(fault):
    builder, reference = of(*fault.blocks, **fault.shape)
    wrong = fault.wrong if isinstance(fault.wrong, Wrong) else fault.wrong(builder)
    report = compared(reference, TableNet(builder, wrong, fault.style))
    assert not report.holds
    for precision in ("fp64", "fp32") if fault.single else ("fp64",):
        stage, cause = parting(report, precision)
        assert stage == fault.stage, cause
        assert all(word in cause for word in fault.words), cause
    if not fault.single:
        assert all(v.holds for v in report.verdicts if v.precision == "fp32")
    assert f"parts first at {fault.stage}" in report.as_table()


@pytest.mark.parametrize(
    ("block", "wrong", "kinds"),
    [
        ("plain", at("plain_1", max_value=6), "ReLU6 in the port, ReLU in the reference"),
        ("inverted", at("inverted_expand_relu", max_value=None), "ReLU in the port, ReLU6 in the reference"),
    ],
)
def test_another_relu_whose_limit_is_not_reached_holds_and_is_remarked_on(block, wrong, kinds):
    builder, reference = of(block)
    report = compared(reference, TableNet(builder, wrong))
    assert report.holds
    assert any(kinds in line and "not reached" in line for line in report.candidate["fp64"]["warnings"])


def test_another_relu_whose_limit_is_reached_is_a_fault():
    builder, target = network("plain")
    builder.tensors["plain_1.weight"] *= 40
    report = compared(builder.reference(target), TableNet(builder, at("plain_1", max_value=6)))
    assert parting(report, "fp64") == (
        A + "plain_1",
        "activation: relu6 in the port, relu in the reference (layer plain_1)",
    )


def test_what_hardly_changes_anything_is_no_cause():
    """Weights off by some 2e-7, in front of a variance of 1e5: another epsilon is as near, and explains a fiftieth of it."""
    builder, target = network("inverted")
    builder.tensors["inverted_expand_bn.running_var"] += 1e5
    noise = 3e-7 * torch.rand(
        builder.tensors["inverted_expand_bn.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    wrong = weight("inverted_expand_bn.weight", lambda values: values * (1 + noise.double()))
    stage, cause = parting(compared(builder.reference(target), TableNet(builder, wrong)), "fp64")
    assert stage == A + "inverted_expand_bn"
    assert "epsilon" not in cause


def caffe(pixels: Any) -> Any:
    """Another preprocessing, without a fault of the network's."""
    return pixels.transpose(0, 3, 1, 2)[:, ::-1] - torch.tensor([103.939, 116.779, 123.68]).numpy().reshape(1, 3, 1, 1)


def imagenet(pixels: Any) -> Any:
    return standardized(torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 255)).numpy()


@pytest.mark.parametrize(
    ("preprocess", "words"), [("caffe", ("permutation",)), ("imagenet", ("mean and std", "58.395"))]
)
def test_another_preprocessing_is_named_at_the_inputs(preprocess, words):
    builder, reference = of("residual")
    report = compared(reference, TableNet(builder), preprocess=f"{__name__}:{preprocess}")
    stage, cause = parting(report, "fp64")
    assert stage == "inputs"
    assert all(word in cause for word in words), cause
