"""The reference of any Keras model: its stages against the model's own outputs, its table against PyTorch's formulas.

TensorFlow runs in child processes only; this process has torch in it.
"""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run_program
from safetensors import safe_open
from tolerances import FLOAT64

from parity.contract.artifact import Artifact
from parity.contract.fingerprints import Fingerprint
from parity.contract.network import Network
from parity.contract.samples import SAMPLES

HAS_KERAS = all(util.find_spec(name) for name in ("tensorflow", "keras", "tf_keras_vis"))
pytestmark = [
    pytest.mark.keras,
    pytest.mark.skipif(not HAS_KERAS, reason='no Keras here: pip install "attention-maps[keras]"'),
]

NETWORKS = ("plain", "sequential", "residual", "dense", "inverted", "inception", "separable", "squeeze", "convnext")
NETWORKS += ("grey", "one_output", "nested", "subclassed")

REFUSED = {
    "--model keras_nets:two_inputs": "it has 2 inputs, and one is compared",
    "--model keras_nets:two_outputs": "it has 2 outputs, and one is compared",
    "--model keras_nets:no_number": "layer head: its weight holds NaN or infinity",
    "--model keras_nets:random_when_used": "called with training=True",
    "--model keras_nets:failing": "RuntimeError: no luck",
    "--model keras_nets:no_model": "gave int, expected a Keras model",
    "--model keras_nets:absent": "keras_nets has no function absent",
    "--model nowhere:absent": "No module named 'nowhere'",
    "--model nowhere.keras": "no such file",
    "--model cut.keras": "Keras does not load it",
    "--model class.keras": "its class Doubled is not known here",
    "--model lambda.keras": "give --trust if it is yours",
    "--model lambda.h5": "give --trust if it is yours",
    "--model keras_nets:subclassed": "give --size",
    "--model keras_nets:subclassed --size 2": "cannot trace",
    "--model keras_nets:subclassed --size 0": "give pixels",
    "--model own.keras --size 20": "the model is made for 16x16",
    "--model own.keras --target-layer activatoin": "no such layer; nearest: activation",
    "--model own.keras --target-layer head": "no feature maps of its own to read: give --target-layer add",
    "--model own.keras --classes 5": "give 0 to 4",
    "--model own.keras --labels four.txt": "4 labels for a network of 5 classes",
    "--model own.keras --labels absent.txt": "no such file",
    "--model own.keras --preprocess other": "give caffe, tf, torch, none or package.module:function",
    "--model own.keras --preprocess keras_nets:four_channels": "gave float64 (1, 16, 16, 4), expected numbers (1, 16, 16, 3)",
    "--model own.keras --weights imagenet": "this model brings its own",
    "--model keras_nets:separable": "the model has 4 channels: give package.module:function",
    "--model keras_nets:one_output --methods scorecam": "Score-CAM says nothing",
    "--model keras.applications:NoSuchNet": "has no function NoSuchNet",
    "--model keras.applications:MobileNet --weights random:x": "the seed must be 0 to 4294967295",
    "--trust": "--trust goes with --model",
}
"""Commands, and what is said of them."""

DONE = (
    "--model own.h5",
    "--model lambda.keras --trust",
    "--model lambda.h5 --trust",
    "--model keras_nets:resized --precision fp32",
    "--model own.keras --labels five.txt --classes c --target-layer add",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keras_any")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict:
    """What `any_in_keras.py` says, which leaves an artifact of each network and files of models."""
    script = str(ROOT / "tests" / "any_in_keras.py")
    photographs = [str(sample.path()) for sample in SAMPLES[:2]]
    result = run_program(script, json.dumps([*REFUSED, *DONE]), *photographs, cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def artifact(said: dict, folder: Path):
    """A network's, by its name."""
    return lambda name: Artifact.read(folder / name)


def rows(artifact: Artifact) -> list[str]:
    return [f"{layer.kind} {layer.name}" for layer in artifact.table.layers]


def values(artifact: Artifact, row: str) -> torch.Tensor:
    """What a row gave, channels first."""
    stage = "inputs" if artifact.table[row].kind == "input" else f"activations/{row}"
    array = torch.tensor(artifact.values(stage, "fp64").reshape(-1, *artifact.table[row].shape))
    return array.movedim(-1, 1) if array.ndim == 4 else array


def tensor(artifact: Artifact, name: str) -> torch.Tensor:
    return torch.tensor(artifact.weights.tensors[name]).double()


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= FLOAT64 * theirs.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_stage_is_the_model_s_own(said, name):
    errors = said["networks"][name]
    assert "error" not in errors, errors
    assert max(errors.values()) < FLOAT64, max(errors, key=errors.get)
    assert len(errors) > 3 or name in ("nested", "subclassed")


def test_convolutions_are_torch_s(artifact):
    a = artifact("sequential")
    first = F.leaky_relu(
        F.conv2d(values(a, "input_layer"), tensor(a, "conv2d.weight"), tensor(a, "conv2d.bias")), np.float32(0.2)
    )
    agree(first, values(a, "conv2d"))
    kernel, bias = tensor(a, "conv2d_transpose.weight"), tensor(a, "conv2d_transpose.bias")
    agree(F.conv_transpose2d(values(a, "conv2d"), kernel, bias, 2, 1), values(a, "conv2d_transpose"))
    slopes = tensor(a, "p_re_lu.weight")
    agree(F.prelu(values(a, "leaky_re_lu"), slopes), values(a, "p_re_lu"))
    a = artifact("convnext")
    kernel, bias = tensor(a, "conv2d_1.weight"), tensor(a, "conv2d_1.bias")
    assert a.table["conv2d_1"].kind == "depthwise"
    agree(F.conv2d(values(a, "layer_normalization"), kernel, bias, padding=3, groups=6), values(a, "conv2d_1"))


def test_a_separable_convolution_is_two_rows(artifact):
    a = artifact("separable")
    name = "separable_conv2d"
    between = F.conv2d(values(a, "input_layer"), tensor(a, f"{name}/depthwise.weight"), padding=1, groups=4)
    agree(between, values(a, f"{name}/depthwise"))
    agree(F.relu(F.conv2d(between, tensor(a, f"{name}.weight"), tensor(a, f"{name}.bias"))), values(a, name))
    again = a.table[f"{name}_1:1"]
    assert again.config["shared_with"] == f"{name}_1"
    assert not again.tensors
    assert again.inbound == (f"{name}_1/depthwise:1",)


def test_flattened_maps_are_read_channels_first(artifact):
    a = artifact("plain")
    height, width, channels = a.table["dense"].config["flattened"]
    assert (height, width, channels) == (8, 10, 6)
    maps = values(a, "batch_normalization_1").reshape(-1, height, width, channels).movedim(-1, 1)
    expected = torch.tanh(F.linear(maps.flatten(1), tensor(a, "dense.weight"), tensor(a, "dense.bias")))
    agree(expected, values(a, "dense"))
    assert a.table.layers[-1].name == "dense_1"  # without the softmax behind it


def test_models_within_models(artifact):
    a = artifact("nested")
    assert rows(a) == [
        f"input {a.table.layers[0].name}",
        "conv base/block/conv",
        "batchnorm base/block/norm",
        "activation base/block/relu",
        "conv twice",
        "conv twice:1",
        "conv top/conv2d",
        "activation top/re_lu",
        "globalpool global_average_pooling2d",
        "dense head",
    ]
    assert a.table["twice:1"].config["shared_with"] == "twice"
    assert a.table.target == "top/conv2d"
    assert "--target-layer top/re_lu is the better one" in a.warnings[-1]


def test_layers_that_scale_and_crop_are_left_out(artifact):
    a = artifact("convnext")
    deviation = np.sqrt([0.04, 0.05, 0.06])
    np.testing.assert_allclose(a.settings.scale, 1 / 255 / deviation, rtol=FLOAT64)
    np.testing.assert_allclose(a.settings.offset, -np.array([0.4, 0.5, 0.6]) / deviation, rtol=FLOAT64)
    inputs = a.values("inputs", "fp64").reshape(a.pixels.shape)
    np.testing.assert_allclose(inputs, a.pixels * a.settings.scale + a.settings.offset, rtol=FLOAT64, atol=FLOAT64)
    assert "starts behind rescaling, normalization" in a.warnings[0]
    nested = artifact("nested")
    assert nested.pixels.shape[1:] == (16, 16, 3)
    assert nested.settings.scale == (1 / 127.5,) * 3
    assert nested.settings.offset == (-1.0,) * 3


def test_one_channel_and_one_output(artifact):
    a = artifact("grey")
    assert a.table.input_shape == (16, 16, 1)
    assert len(a.settings.scale) == 1
    assert (a.pixels == a.pixels[..., :1]).all()
    assert a.pixels.std() > 0
    a = artifact("one_output")
    assert a.classes == (0,)
    assert a.whole("score", "fp64")[0] == -a.whole("logits", "fp64")[0, 0]


def test_the_target_layer_that_is_asked_for(artifact):
    a = artifact("residual")
    assert a.table.target == "re_lu"
    assert a.settings.input == "tf"
    assert not any("target layer" in line for line in a.warnings)


def test_the_reference_s_own_error(artifact):
    """TensorFlow's gelu has a float32 constant: 5e-9 off; nothing else moves by more than a nudge."""
    convnext, inverted = artifact("convnext"), artifact("inverted")
    before, behind = convnext.moves["activations/dense"], convnext.moves["activations/activation"]
    assert before < 1e-12
    assert 1e-10 < behind < 1e-7
    assert max(move for stage, move in inverted.moves.items() if "activations" in stage) < 1e-12
    assert set(inverted.moves) <= {stage.name for stage in inverted.stages}


def test_both_precisions_of_a_saved_model(said, artifact, folder):
    """The file's layers say float32; the reference's float64 is float64 all the same."""
    status, errors, output = said["commands"]["floor"]
    assert (status, errors) == (0, "")
    assert "target layer: conv2d" in output
    a = artifact("floor")
    assert a.precisions == ("fp32", "fp64")
    assert len(a.photographs) == 2
    pooled = values(a, "global_average_pooling2d")
    logits = F.linear(pooled, tensor(a, "head.weight"), tensor(a, "head.bias"))
    agree(logits, torch.tensor(a.whole("logits", "fp64")))
    exported = {}
    with safe_open(folder / "floor.export", "numpy") as file:
        assert file.metadata() == {
            "format": "attention-maps tensors 1",
            "fingerprint": a.weights.fingerprint,
            "source": "own.keras",
        }
        exported = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert {name: array.shape for name, array in exported.items()} == a.table.tensors
    ordered = {name: exported[name] for name in a.table.tensors}
    assert Network(ordered, a.table, "", "").fingerprint == a.weights.fingerprint
    assert {name: Fingerprint.of(array) for name, array in ordered.items()} == dict(a.weights.prints)


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line(said, command):
    status, errors, _ = said["commands"][command]
    assert status == 2, errors
    assert REFUSED[command] in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", DONE)
def test_done(said, command):
    assert said["commands"][command][:2] == [0, ""]
