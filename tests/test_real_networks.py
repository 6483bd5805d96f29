"""Keras's own networks at real size beside torchvision's: the weights carried over, every map proved. Minutes each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from parity.contract.artifact import Artifact

MODULES = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

pytestmark = pytest.mark.slow


def python(*arguments: str, cwd: Path, status: int = 0, **environment: str) -> str:
    """What a command prints, with the exit status that is expected."""
    done = run_program("-m", *arguments, cwd=cwd, timeout=900, PYTHONPATH=MODULES, **environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def reference(name: str, cwd: Path) -> None:
    """Reference and weights of a network with random weights and batch statistics."""
    options = ["--weights", "random:0", "--floor", "--samples", "2", "--out", "reference", "--export", "weights"]
    python("keras_ref", str(photograph(cwd)), "--model", f"keras.applications:{name}", *options, cwd=cwd)
    assert (cwd / "reference").stat().st_size < 25e6 / 4  # of four photographs, less than 25 MB


def photograph(cwd: Path) -> Path:
    from PIL import Image
    from skimage import data

    Image.fromarray(data.chelsea()).save(cwd / "cat.png")
    return cwd / "cat.png"


def transferred(twin: str, cwd: Path, status: int = 0) -> str:
    options = ["--reference", "reference", "--weights", "weights", "--out", "twin.safetensors"]
    return python("parity", "transfer", *options, "--torch", f"real_twins:{twin}", cwd=cwd, status=status)


@pytest.mark.parametrize(
    ("name", "twin", "layers", "wrong"),
    [
        ("DenseNet121", "densenet121", 242, {}),
        (
            "ResNet50",
            "resnet50",
            107,
            {
                "resnet50_without_biases": ["53 of the reference's tensors", "add biases to the module, or fold them"],
                "resnet50_v15": ["stopped after conv3_block1_1_conv (layer2.0.conv1)", "stride"],
            },
        ),
        (
            "InceptionV3",
            "Inception",
            189,
            {"inception_v3_stock": ["parts first at average_pooling2d", "padding", "count_include_pad"]},
        ),
        ("ConvNeXtTiny", "convnext_tiny", 82, {}),
    ],
)
def test_an_exact_twin_is_filled_and_draws_the_same_maps(name, twin, layers, wrong, tmp_path):
    reference(name, tmp_path)
    for other, words in wrong.items():
        said = transferred(other, tmp_path, status=1)
        assert all(word in said for word in words), said
        assert not (tmp_path / "twin.safetensors").exists()
    assert f"{layers} layers filled" in transferred(twin, tmp_path)
    options = ["--reference", "reference", "--torch", "real_twins:filled", "--out", "report"]
    said = python("parity", *options, cwd=tmp_path, TWIN=twin, WEIGHTS=str(tmp_path / "twin.safetensors"))
    assert "Verdict: the same function (fp64); the same up to rounding (fp32)" in said
    tensors = len(Artifact.read(tmp_path / "reference").table.tensors)
    assert f"{tensors} of {tensors} weights" in said


def test_torchs_padding_is_where_mobilenet_stops(tmp_path):
    reference("MobileNetV2", tmp_path)
    said = transferred("mobilenet_v2", tmp_path, status=1)
    assert "stopped after Conv1 (features.0.0)" in said
    assert "padding: (1, 1) in the port, (0, 1) in the reference" in said
