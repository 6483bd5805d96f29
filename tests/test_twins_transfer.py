"""A reference's weights into untrained PyTorch modules: proved where it can be done, explained where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from safetensors.torch import load_file
from table_blocks import BLOCKS, network, of, random_network, stem
from table_networks import Builder
from table_twins import Style, TableNet, Wrong, at, compared, parting
from test_twins import AFFINE, ByHand, Inside
from test_twins_faults import FAULTS, A, standardized
from torch import nn

from parity import transfer
from parity.contract.artifact import Artifact
from parity.contract.network import EXPORT
from parity.twins import TransferStoppedError

UNTRAINED = Style(untrained=True)
STYLES = (
    UNTRAINED,
    Style(untrained=True, shuffled=4, shared=True),
    Style(untrained=True, wrapped=True, functional=True),
)


def exported(builder: Builder, reference: Artifact, folder: Path) -> Path:
    """The weights as `python -m keras_ref --export` writes them."""
    path = folder / "weights.safetensors"
    save_file(builder.tensors, path, {"format": EXPORT, "fingerprint": reference.weights.fingerprint})
    return path


def filled(builder: Builder, reference: Artifact, model: nn.Module, folder: Path, out: str = ""):
    return transfer(reference, exported(builder, reference, folder), model, folder / out if out else "")


def stops(builder: Builder, reference: Artifact, model: nn.Module, folder: Path) -> str:
    """The line that says why; nothing is written."""
    with pytest.raises(TransferStoppedError) as error:
        filled(builder, reference, model, folder, "twin.pth")
    assert [path.name for path in folder.iterdir()] == ["weights.safetensors"]
    assert "\n" not in str(error.value)
    return str(error.value)


EVERY = [*((block,) for block in BLOCKS), ("flattened",), ("residual", "inception", "squeezed")]


@pytest.mark.parametrize(("number", "blocks"), list(enumerate(EVERY)))
def test_the_weights_go_into_an_untrained_module(number, blocks, tmp_path):
    builder, reference = of(*blocks)
    model = TableNet(builder, style=STYLES[number % 3])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = filled(builder, reference, model, tmp_path)
    assert done.error < 1e-12
    assert len(done.layers) == sum(bool(row.tensors) for row in builder.layers)
    assert done.kept == [name for name in before if name.endswith("num_batches_tracked")]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # it stays as it was
    model.load_state_dict(done.state)
    assert compared(reference, model, "fp64").holds


@pytest.mark.parametrize("seed", range(40, 46))
def test_the_weights_of_random_networks(seed, tmp_path):
    builder, target = random_network(seed)
    reference = builder.reference(target, count=1)
    model = TableNet(builder, style=STYLES[seed % 3])
    model.load_state_dict(filled(builder, reference, model, tmp_path).state)
    assert compared(reference, model).holds


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_file_is_the_modules_state_dict(suffix, tmp_path):
    builder, target = network("residual")
    builder.reference(target)
    reference = builder.reference("residual_out")
    model = ByHand()
    filled(builder, reference, model, tmp_path, f"twin{suffix}")
    path = tmp_path / f"twin{suffix}"
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert {name: tensor.dtype for name, tensor in state.items()} == {n: t.dtype for n, t in model.state_dict().items()}
    model.load_state_dict(state)
    assert compared(reference, model).holds


def test_a_module_in_half_precision_keeps_its_format(tmp_path):
    builder, reference = of("plain")
    done = filled(builder, reference, TableNet(builder, style=UNTRAINED).to(torch.bfloat16), tmp_path)
    assert {tensor.dtype for tensor in done.state.values() if tensor.is_floating_point()} == {torch.bfloat16}


COMPUTING = [
    fault
    for fault in FAULTS
    if isinstance(fault.wrong, Wrong)
    and not fault.wrong.tensors
    and not fault.style.functional
    and "order" not in fault.wrong.config.get("fc1", ())
]
"""Faults that are not in the weights, nor in the order that they are laid out for."""


@pytest.mark.parametrize("fault", COMPUTING, ids=lambda fault: fault.name)
def test_a_module_that_cannot_be_equal_stops_where_it_parts(fault, tmp_path):
    builder, reference = of(*fault.blocks, **fault.shape)
    said = stops(builder, reference, TableNet(builder, fault.wrong, UNTRAINED), tmp_path)
    assert "layers were filled" in said
    assert any(word.partition(":")[0].rstrip("s") in said for word in fault.words), said


@pytest.mark.parametrize(
    ("blocks", "wrong", "words"),
    [
        (
            ("residual",),
            at("stem", padding=1),
            ["after stem (stem_0)", "1 of 9", "parts first at stem", "padding: (1, 1)"],
        ),
        (("residual",), at("residual_2_bn", epsilon=1e-5), ["6 of 9", "epsilon: 1e-05 in the port, 1.001e-05"]),
        (("strided",), at("strided_1", strides=[1, 1]), ["stride: (1, 1) in the port, (2, 2)"]),
        (("residual",), Wrong(inputs=standardized), ["at the first layer", "0 of 9", "mean and std", "0.485"]),
        (("flattened",), at("drop", step=lambda x: F.dropout(x, 0.5)), ["after fc1", "training mode: dropout"]),
        (("residual",), Wrong(logits=lambda x: x.softmax(1)), ["every layer found its place", "softmax"]),
        (("dense",), at("dense_0_concat", merge=lambda x: torch.cat(x[::-1], 1)), ["permutation", "dense_0_concat"]),
    ],
    ids=["padding", "epsilon", "stride", "mean and std", "dropout", "softmax", "concatenation"],
)
def test_what_is_said_where_it_stops(blocks, wrong, words, tmp_path):
    builder, reference = of(*blocks)
    said = stops(builder, reference, TableNet(builder, wrong, UNTRAINED), tmp_path)
    assert all(word in said for word in words), said


def test_biases_without_a_place(tmp_path):
    builder, reference = of("residual")
    names = [name for name in builder.tensors if name.endswith(".bias") and "bn" not in name]
    wrong = Wrong(tensors=dict.fromkeys(names))
    said = stops(builder, reference, TableNet(builder, wrong, UNTRAINED), tmp_path)
    assert said.startswith(
        "4 of the reference's tensors have no place in the module (residual_1.bias, residual_2.bias, "
    )
    assert "add biases to the module, or fold them" in said


def test_a_bias_that_the_reference_lacks_is_zero(tmp_path):
    builder, reference = of("dense")
    conv = nn.Conv2d(3, 8, 3, 2)
    padded = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv)
    done = filled(builder, reference, TableNet(builder, at("stem", step=padded), UNTRAINED), tmp_path)
    assert not done.state["stem_0.1.bias"].any()


class Idle(nn.Module):
    """A network beside modules that never run, and with something of its own that nothing fills."""

    def __init__(self, model: nn.Module, *, used: bool) -> None:
        super().__init__()
        self.model, self.auxiliary = model, nn.Linear(3, 2)
        self.register_buffer("table", torch.arange(4))
        if used:
            self.temperature = nn.Parameter(torch.ones(()))
        self.used = used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) / (self.temperature if self.used else 1)


def test_what_nothing_fills_is_named_and_what_never_runs_is_kept(tmp_path):
    builder, reference = of("plain")
    done = filled(builder, reference, Idle(TableNet(builder, style=UNTRAINED), used=False), tmp_path)
    assert {"table", "auxiliary.weight", "auxiliary.bias", "model.stem_bn_0.num_batches_tracked"} == set(done.kept)
    said = stops(builder, reference, Idle(TableNet(builder, style=UNTRAINED), used=True), tmp_path)
    assert "nothing fills 1 of the module's tensors (temperature)" in said


def twins_in_a_row(join: str, *, closed: bool) -> tuple[Builder, Artifact]:
    """Two convolutions of one shape on one input."""
    builder = Builder((12, 12, 3))
    stem(builder, stride=1)
    for name in ("left", "right"):
        builder.conv(name, 4, 1, inbound=("stem_relu",))
        if closed:
            builder.tensors[f"{name}.bias"][:] = -50
        builder.act(f"{name}_relu")
    builder.add("join", join, ("left_relu", "right_relu"))
    builder.conv("last", 5, 3)
    builder.add("gap", "globalpool", pool="average")
    builder.dense("logits", 4)
    return builder, builder.reference("last", count=1)


@pytest.mark.parametrize("join", ["concatenate", "add"])
def test_two_layers_on_one_input_find_their_places(join, tmp_path):
    builder, reference = twins_in_a_row(join, closed=False)
    for style in STYLES:
        model = TableNet(builder, style=style)
        model.load_state_dict(filled(builder, reference, model, tmp_path).state)
        assert compared(reference, model, "fp64").holds or join == "add"  # the sum is the same either way


def test_two_layers_that_one_photograph_cannot_tell_apart_are_named(tmp_path):
    builder, reference = twins_in_a_row("concatenate", closed=True)
    said = stops(builder, reference, TableNet(builder, style=UNTRAINED), tmp_path)
    assert said.startswith("left and right cannot be told apart by this photograph")


def test_what_only_the_second_photograph_shows_is_no_proof(tmp_path):
    builder, target = network("plain")
    reference = builder.reference(target, seed=6)
    largest = reference.values(A + "plain_2", "fp64").max(axis=1)
    assert largest[0] < largest[1]
    between = float(np.mean(largest))
    said = stops(
        builder, reference, TableNet(builder, at("plain_2", step=Clipped(builder, between)), UNTRAINED), tmp_path
    )
    assert "those of photograph 2 differ" in said


class Clipped(nn.Module):
    """A convolution whose ReLU has a limit."""

    def __init__(self, builder: Builder, most: float) -> None:
        super().__init__()
        self.conv, self.most = nn.Conv2d(8, 8, 3, padding=1), most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).clamp(0, self.most)


def used_twice() -> tuple[Builder, Artifact]:
    builder = Builder((10, 10, 3))
    builder.conv("stem", 4, 3, activation="relu")
    builder.conv("shared", 4, 3, activation="relu")
    builder.again("shared:1", "shared")
    builder.norm("norm")
    builder.again("norm:1", "norm")
    builder.conv("last", 5, 3)
    builder.add("gap", "globalpool", pool="average")
    builder.dense("logits", 4)
    return builder, builder.reference("last")


def test_a_layer_that_is_used_twice_is_filled_once(tmp_path):
    builder, reference = used_twice()
    for style in (UNTRAINED, Style(untrained=True, wrapped=True)):
        model = TableNet(builder, style=style)
        done = filled(builder, reference, model, tmp_path)
        assert list(done.layers.values()) == ["stem", "shared", "norm", "last", "logits"]
        model.load_state_dict(done.state)
        report = compared(reference, model)
        assert report.holds
        assert report.candidate["fp64"]["flags"]["layers compared"] == "7 of 7"


def test_a_fault_of_a_layer_that_is_used_twice_is_named():
    builder, reference = used_twice()
    report = compared(reference, TableNet(builder, at("norm", epsilon=1e-5)))
    assert parting(report, "fp64") == (A + "norm", "epsilon: 1e-05 in the port, 0.001 in the reference (layer norm)")


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_that_scales_its_inputs_itself(inside, tmp_path):
    builder, target = network("residual")
    reference = builder.reference(target, affine=AFFINE)
    model = TableNet(builder, style=UNTRAINED)
    whole = Inside(model) if inside else model
    whole.load_state_dict(filled(builder, reference, whole, tmp_path).state)
    assert compared(reference, whole, "fp64").holds


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "cannot be read"),
        ("another kind", "another kind of file"),
        ("another network", "not the weights of the reference"),
    ],
)
def test_a_file_that_is_not_the_references_weights(damage, words, tmp_path):
    builder, reference = of("plain")
    path = exported(builder, reference, tmp_path)
    if damage == "missing":
        path.unlink()
    elif damage == "another kind":
        save_file(builder.tensors, path)
    else:
        save_file(builder.tensors, path, {"format": EXPORT, "fingerprint": "0" * 64})
    with pytest.raises(ValueError, match=words):
        transfer(reference, path, TableNet(builder, style=UNTRAINED))
