"""The whole VGG16 on embedded weights: each map once, end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import close, run_program
from tolerances import FLOAT64, FLOAT64_ALPHA

from parity.contract.network import offline, offline_random
from parity.contract.vgg import VGG16
from torch_impl import Explainer, images, methods
from torch_impl.network import build
from torch_impl.preprocess import preprocess

TARGET_LAYER = VGG16.modules[VGG16.target]

BOXES = {"chelsea.png": (0.05, 0.0, 1.0, 1.0), "coffee.png": (0.1, 0.1, 0.75, 0.9)}
"""Where the cat's head and the cup with its saucer lie: (left, top, right, bottom) as fractions of the picture."""

MEASURED = """
import resource, subprocess, sys
status = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(used / (1e6 if sys.platform == "darwin" else 1e3))
sys.exit(status)
"""
"""Runs a command and prints its peak memory in MB. A small process between the tests and the command:
of the tests' own children the kernel knows the largest only, and a child starts at its parent's size."""


def test_the_command_finds_the_cat_and_the_cup(tmp_path):
    """`attention-maps explain` as a stranger runs it, but for fewer photographs and samples."""
    photographs = [str(p) for p in images.defaults()[:2]]
    options = ("--weights", "offline", "--samples", "1", "--out", "out")
    result = run_program("-m", "torch_impl", "explain", *photographs, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [p["label"] for p in manifest["photographs"]] == ["Egyptian cat", "espresso"]
    assert [round(p["probability"], 2) for p in manifest["photographs"]] == [0.35, 0.72]
    assert "distilled" in manifest["weights"]["remark"]
    with np.load(tmp_path / "out" / "maps.npz") as file:
        maps = {name: file[name] for name in file.files}
    for name in ("vanilla", "smoothgrad", "gradcam", "gradcam_plus_plus"):
        assert maps[name].shape == (2, 224, 224)
        assert maps[name].dtype == np.float32
        assert np.isfinite(maps[name]).all()
        assert (maps[name].max(axis=(1, 2)) > 0.99).all()
    for photograph, drawn in zip(manifest["photographs"], maps["gradcam"], strict=True):
        left, top, right, bottom = (round(224 * edge) for edge in BOXES[photograph["name"]])
        share = drawn[top:bottom, left:right].sum() / drawn.sum()
        area = (bottom - top) * (right - left) / 224**2
        assert share > min(0.9, 1.25 * area), (photograph["name"], share, area)


@pytest.mark.slow
def test_the_labs_own_setting_in_little_memory(tmp_path):
    """Four photographs, 20 samples: the default command; peak memory below 2.5 GB."""
    result = run_program(
        "-c", MEASURED, "-m", "torch_impl", "explain", "--weights", "offline", "--out", "out", cwd=tmp_path, timeout=900
    )
    assert result.returncode == 0, result.stderr
    peak = float(result.stdout.split()[-1])
    assert peak > 600, f"{peak:.0f} MB: less than the weights alone, so it is not this command that was measured"
    assert peak < 2500, f"{peak:.0f} MB"


@pytest.mark.slow
@pytest.mark.parametrize("network", [offline, lambda: offline_random(0)], ids=["offline", "offline-random:0"])
def test_identities_on_the_full_network(network, device):
    """In float64: order and batch do not matter, a constant on every logit changes nothing, ±100 logits are right."""
    model = build(network()).double().to(device)
    pixels = np.stack([images.load(p).pixels for p in images.defaults()[:2]])
    inputs = preprocess(pixels, dtype=torch.float64, device=device)
    target = torch.tensor([285, 967], device=device)
    plain = methods.vanilla(model, inputs, target)
    close(methods.vanilla(model, inputs.flip(0), target.flip(0), batch_size=1).flip(0), plain, FLOAT64)
    zero = methods.smoothgrad(model, inputs[:1], target[:1], noise_level=0.0, n_samples=1)
    close(zero, plain[:1], FLOAT64)

    def plus_plus() -> torch.Tensor:
        return methods.raw_maps("gradcam++", model, inputs, target, target_layer=TARGET_LAYER)

    before = plus_plus()
    bias = model.get_submodule("classifier.6").bias
    with torch.no_grad():
        score = model(inputs).gather(1, target[:, None])
    for offset in (-100.0, 200.0):
        bias.data += offset
        close(plus_plus(), before, FLOAT64_ALPHA)
        with torch.no_grad():
            moved = model(inputs).gather(1, target[:, None]) - score
        assert ((moved < -99) if offset < 0 else (moved > 99)).all()


@pytest.mark.slow
def test_the_network_matters_for_grad_cam_plus_plus():
    """On the embedded classifier Grad-CAM++'s alpha cancels; on random dense layers the stock map is another one."""
    photographs = images.defaults()[:2]
    names = ["gradcam++", "gradcam++@pytorch-grad-cam"]
    correlation = {}
    for make in (offline, lambda: offline_random(0)):
        network = make()
        maps = Explainer.vgg16(network, device="cpu")(photographs, methods=names)
        pairs = zip(maps[names[0]], maps[names[1]], strict=True)
        correlation[network.source] = min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs)
    assert correlation["offline"] > 0.8
    assert correlation["offline-random:0"] < 0.8


@pytest.mark.slow
@pytest.mark.keras
def test_the_port_is_the_reference_on_the_full_network(tmp_path):
    """Keras and PyTorch, float64 and float32, on the network on which a wrong Grad-CAM++ shows."""
    photographs = [str(p) for p in images.defaults()[:2]]
    result = run_program(
        "-m", "parity", *photographs, "--weights", "offline-random:0", "--samples", "1", "--no-ladder",
        "--out", "out", cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["holds"]
    words = {(v["method"], v["precision"]): v["word"] for v in report["verdicts"]}
    for method in ("network", "vanilla", "smoothgrad", "gradcam", "gradcam_plus_plus"):
        assert words[method, "fp64"] == "the same function"
        assert words[method, "fp32"] == "the same up to rounding"
    assert (tmp_path / "out" / "report.html").stat().st_size < 10e6
    assert (tmp_path / "out" / "reference.safetensors").stat().st_size < 16e6
