"""A PyTorch module beside a reference of any network: right twins hold, however they are written, and pair."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from table_blocks import BLOCKS, network, of, random_network
from table_networks import Builder
from table_twins import Style, TableNet, compared, parting, weight
from torch import Tensor, nn

from parity import assert_parity
from parity.twins import Module, matched

SAME = "the same function (fp64); the same up to rounding (fp32)"

STYLES = (Style(), Style(functional=True), Style(shared=True, shuffled=3), Style(wrapped=True))
"""Modules in order; activations, pools and means as functions; one ReLU for all, layers in disorder; in containers."""


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("height", "width"), [(20, 20), (21, 17)], ids=["even", "odd"])
def test_a_right_twin_of_each_kind_of_block_holds(block, height, width):
    builder, reference = of(block, height=height, width=width)
    report = compared(reference, TableNet(builder))
    assert report.word == SAME, report.as_table()


@pytest.mark.parametrize("shape", [{"classes": 2}, {"height": 15, "width": 22, "channels": 1, "classes": 1}])
def test_networks_of_other_inputs_and_outputs(shape):
    builder, reference = of("residual", **shape)
    assert compared(reference, TableNet(builder)).word == SAME


@pytest.mark.parametrize("positive", [True, False])
def test_both_classes_of_a_network_with_one_output(positive):
    builder, target = network("inverted", classes=1)
    builder.tensors["logits.bias"][:] = 5 if positive else -5
    reference = builder.reference(target)
    assert reference.classes == (int(positive),) * 2
    assert (reference.whole("score", "fp64") > 0).all()
    assert compared(reference, TableNet(builder)).word == SAME


@pytest.mark.parametrize("style", STYLES[1:], ids=["functions", "shared and shuffled", "wrapped"])
@pytest.mark.parametrize("blocks", [("flattened",), ("residual", "inception", "squeezed"), ("convnext", "dense")])
def test_however_a_twin_is_written(blocks, style):
    builder, reference = of(*blocks)
    report = compared(reference, TableNet(builder, style=style))
    assert report.word == SAME, report.as_table()
    about = report.candidate["fp64"]["flags"]
    assert about["weights paired"] == f"{len(builder.tensors)} of {len(builder.tensors)}"
    if not style.functional:
        merges = sum(row.kind in ("add", "concatenate", "multiply") for row in builder.layers)
        hidden = len(reference.table.hidden)
        assert about["layers compared"] == f"{hidden - merges} of {hidden}"


@pytest.mark.parametrize("seed", range(12))
def test_a_right_twin_of_a_random_network_holds(seed):
    builder, target = random_network(seed)
    reference = builder.reference(target, count=1)
    report = compared(reference, TableNet(builder, style=STYLES[seed % 4]))
    assert report.word == SAME, report.as_table()


class ByHand(nn.Module):
    """A residual network as people write them: one ReLU, in place, a container within a container, much as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)
        self.body = nn.ModuleDict({name: nn.Conv2d(8, 8, 1) for name in ("out", "skip")})
        self.inner = nn.Sequential(nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, eps=1.001e-5)), nn.ReLU(True))
        self.body["out"] = nn.Conv2d(4, 8, 1)
        self.body["skip"] = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1.001e-5))
        self.norms = nn.ModuleList([nn.BatchNorm2d(8, eps=1.001e-5), nn.BatchNorm2d(8, eps=1e-3)])
        self.first = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu_(self.norms[1](self.first(F.pad(x, (0, 1, 0, 1)))))
        y = self.relu(self.body["skip"](self.inner(x)))
        x = self.relu(x + self.norms[0](self.body["out"](y)))
        return {"logits": self.fc(x.mean((2, 3)))}


HAND = {
    "first": "stem",
    "norms.1": "stem_bn",
    "inner.0.0": "residual_1",
    "inner.0.1": "residual_1_bn",
    "body.skip.0": "residual_2",
    "body.skip.1": "residual_2_bn",
    "body.out": "residual_3",
    "norms.0": "residual_3_bn",
    "fc": "logits",
}


@pytest.fixture
def by_hand() -> SimpleNamespace:
    builder, target = network("residual")
    builder.reference(target)
    reference = builder.reference("residual_out")
    model, state = ByHand(), {}
    for name, tensor in model.state_dict().items():
        owner, _, role = name.rpartition(".")
        full = f"{HAND[owner]}.{role}"
        state[name] = torch.from_numpy(builder.tensors[full]) if full in builder.tensors else tensor
    model.load_state_dict(state)
    return SimpleNamespace(builder=builder, reference=reference, model=model)


def test_a_module_written_by_hand_pairs_and_holds(by_hand):
    lines, _ = matched(by_hand.reference, Module(by_hand.model))
    told = {line.split()[0]: line.split()[2] for line in lines if line.startswith(("res", "stem"))}
    right = {
        "residual_out": "relu:2",
        "residual_2_relu": "relu",
        "residual_1_relu": "inner.1",
        "residual_3": "body.out",
        "residual_2": "body.skip.0",
        "residual_add": "not",  # compared: a plus sign
    }
    assert right.items() <= told.items()
    assert f"weights paired: {len(by_hand.builder.tensors)} of {len(by_hand.builder.tensors)}" in lines
    report = assert_parity(by_hand.model, by_hand.reference)
    assert report.word == SAME
    assert report.candidate["fp64"]["flags"]["target layer"] == "residual_out = relu"


def test_what_the_user_says_of_the_layers_counts(by_hand):
    layers = {"residual_3_bn": "norms.0", "residual_out": "relu:2"}
    assert assert_parity(by_hand.model, by_hand.reference, layers=layers).holds
    with pytest.raises(AssertionError, match=r"parts first at activations/residual_3_bn"):
        assert_parity(by_hand.model, by_hand.reference, layers={"residual_3_bn": "norms.1"})
    with pytest.raises(ValueError, match=r"no layer 'conv9'"):
        assert_parity(by_hand.model, by_hand.reference, layers={"conv9": "fc"})
    with pytest.raises(ValueError, match=r"no module 'relu:3'"):
        assert_parity(by_hand.model, by_hand.reference, layers={"residual_out": "relu:3"})


def test_the_module_stays_as_it_is(by_hand):
    by_hand.model.train()
    before = {name: tensor.clone() for name, tensor in by_hand.model.state_dict().items()}
    assert assert_parity(by_hand.model, by_hand.reference).holds
    after = by_hand.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(module.training and not module._forward_hooks for module in by_hand.model.modules())
    assert after["fc.weight"].dtype == torch.float32


AFFINE = ((0.5, 0.25, 2.0), (0.1, -0.2, 0.3))


def scaled(x: Tensor) -> Tensor:
    scale, offset = (torch.tensor(v, dtype=x.dtype).reshape(1, 3, 1, 1) for v in AFFINE)
    return x * scale + offset


def plain_inputs(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2) / 127.5 - 1


def scaled_inputs(pixels: np.ndarray) -> np.ndarray:
    return scaled(torch.from_numpy(plain_inputs(pixels))).numpy()


class Inside(nn.Module):
    """Scales its inputs first, as the Keras model did."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(scaled(x))


@pytest.mark.parametrize(
    ("inside", "preprocess", "holds"),
    [
        (False, "", True),
        (True, "", True),
        (False, "scaled_inputs", True),
        (True, "plain_inputs", True),
        (False, "plain_inputs", False),
        (True, "scaled_inputs", False),
    ],
)
def test_the_scaling_that_the_model_begins_with_may_be_inside_or_outside_but_once(inside, preprocess, holds):
    builder, target = network("residual")
    reference = builder.reference(target, affine=AFFINE)
    model = TableNet(builder)
    report = compared(
        reference, Inside(model) if inside else model, preprocess=preprocess and f"{__name__}:{preprocess}"
    )
    assert report.holds == holds, report.as_table()
    if not holds:
        assert "mean and std" in report.as_table()


def test_a_scaling_that_is_right_is_not_blamed_for_what_follows():
    builder, target = network("residual")
    reference = builder.reference(target, affine=AFFINE)
    noise = 1 + 0.1 * torch.rand(8, generator=torch.Generator().manual_seed(0)).double()
    wrong = weight("stem.weight", lambda kernel: kernel * noise[:, None, None, None])
    for model in (TableNet(builder, wrong), Inside(TableNet(builder, wrong))):
        stage, cause = parting(compared(reference, model), "fp64")
        assert stage == "activations/stem"
        assert "mean and std" not in cause


class Tupled(nn.Module):
    """Its layers return tuples, on which the next one works in place."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3, padding=padding), nn.Conv2d(6, 8, 3), nn.Linear(8, 5)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        (x,) = self.first(x)
        (x,) = self.second(F.relu_(x))
        return self.head(self.relu(x).mean((2, 3)))


def test_a_layer_that_returns_a_tuple_is_seen_as_it_was():
    """Not as what works in place on it has left it."""
    builder = Builder((16, 16, 3))
    builder.conv("first", 6)
    builder.act("first_relu")
    builder.conv("second", 8, padding="valid")
    builder.act("second_relu")
    builder.add("gap", "globalpool", pool="average")
    builder.dense("head", 5)
    module = Tupled(2)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in builder.tensors.items()})
    for layer in (module.first, module.second):
        layer.register_forward_hook(lambda module, given, output: (output,))
    stage, cause = parting(compared(builder.reference("second_relu"), module), "fp64")
    assert stage == "activations/first"
    assert "padding: (2, 2) in the port, (1, 1) in the reference" in cause


class NormalizedByHand(nn.Module):
    """A batch norm's numbers are the model's own, and no module does its work."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Linear(6, 5)
        for role in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(role, torch.from_numpy(tensors[f"norm.{role}"]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("right", [True, False])
def test_numbers_that_are_the_model_s_own_are_no_layer(right):
    builder = Builder((16, 16, 3))
    builder.norm("norm")
    builder.conv("conv", 6, activation="relu")
    builder.add("gap", "globalpool", pool="average")
    builder.dense("head", 5)
    module = NormalizedByHand(builder.tensors)
    own = {name: torch.from_numpy(array) for name, array in builder.tensors.items() if "norm" not in name}
    module.load_state_dict(own, strict=False)
    if not right:
        module.conv.weight.data = module.conv.weight.data.flip(0) * 1.01
    reference = builder.reference("conv")
    report = compared(reference, module)
    assert report.holds == right
    if not right:
        assert parting(report, "fp64")[0] in ("activations/conv", "activations/gap", "logits")
