"""The reference, against arithmetic that knows no TensorFlow: NumPy written out, and finite differences.

TensorFlow runs in child processes only; this process has torch in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_program

from parity.contract.architecture import TINY, Architecture
from parity.contract.artifact import Artifact
from parity.contract.network import Network, seeded, write
from parity.contract.noise import unit_noise

HAS_KERAS = all(util.find_spec(name) for name in ("tensorflow", "keras", "tf_keras_vis"))
needs_keras = pytest.mark.skipif(
    not HAS_KERAS, reason='no TensorFlow, Keras and tf-keras-vis here: pip install "attention-maps[keras]"'
)
keras = [pytest.mark.keras, needs_keras]

SAMPLES, NOISE, SEED = 3, 0.2, 7
CLASSES = (5, 7, 8, 6)
"""For which both CAMs of every photograph find something."""

EVERYTHING = 100_000
"""With --keep: every stage of the tiny network whole."""

GOLDEN = Path(__file__).parent / "golden"


def keras_ref(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program("-m", "keras_ref", *map(str, arguments), cwd=cwd, **environment)


def keras_script(script: str, cwd: Path) -> dict:
    """Run a script after Keras is imported; what it prints last, as JSON."""
    start = "import json, sys\nimport numpy as np\nfrom keras_ref import maps, model\nmodel.load_frameworks('fp64')\n"
    result = run_program("-c", start + script, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keras_ref")
    write(seeded(0, TINY), path / "tiny.safetensors")
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> subprocess.CompletedProcess[str]:
    result = keras_ref(
        *("--weights", "tiny.safetensors", "--samples", SAMPLES, "--noise", NOISE, "--seed", SEED, "--floor"),
        *("--classes", ",".join(map(str, CLASSES)), "--keep", EVERYTHING, "--figures", "figures", "--out", "a.npz"),
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def artifact(run: subprocess.CompletedProcess[str], folder: Path) -> Artifact:
    return Artifact.read(folder / "a.npz")


# The network once more, in NumPy and float64: nothing here is shared with Keras, torch or either's layout of weights.


def forward(network: Network, x: np.ndarray, start: str = "") -> dict[str, np.ndarray]:
    """Every layer's output for one picture (H, W, 3), after ReLU; from the output of layer `start` on, where given."""
    outputs: dict[str, np.ndarray] = {}
    running = not start
    for layer in network.architecture.layers:
        weight, bias = (network.tensors.get(f"{layer.torch}.{part}") for part in ("weight", "bias"))
        if layer.keras == start:
            running = True
        elif not running or layer.kind == "input":
            continue
        elif layer.kind == "conv":
            h, w, _ = x.shape
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            x = sum(
                padded[i : i + h, j : j + w] @ weight[:, :, i, j].T.astype(float) for i in range(3) for j in range(3)
            )
            x = np.maximum(x + bias, 0)
        elif layer.kind == "pool":
            h, w, c = x.shape
            x = x.reshape(h // 2, 2, w // 2, 2, c).max((1, 3))
        elif layer.kind == "flatten":
            x = x.transpose(2, 0, 1).ravel()  # the canonical fc1 reads (C, H, W)
        elif layer.kind == "dense":
            x = weight.astype(float) @ x + bias
            x = x if layer.keras == "predictions" else np.maximum(x, 0)
        outputs[layer.keras] = x
    return outputs


def slope(network: Network, x: np.ndarray, place: tuple[int, ...], of_class: int, start: str = "") -> float | None:
    """∂score/∂x at one place by finite differences; None at a kink, where the two sides differ."""

    def score(step: float) -> float:
        moved = x.copy()
        moved[place] += step
        return float(forward(network, moved, start)["predictions"][of_class])

    step, here = 1e-3, score(0)
    right, left = (score(step) - here) / step, (here - score(-step)) / step
    return (right + left) / 2 if abs(right - left) <= 1e-9 else None


def normalized(m: np.ndarray) -> np.ndarray:
    return (m - m.min()) / (m.max() - m.min() + 1e-7)


def upsampled(cam: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, corners on corners, value by value."""
    result = np.empty((size, size))
    side = len(cam)
    for i in range(size):
        for j in range(size):
            y, x = i * (side - 1) / (size - 1), j * (side - 1) / (size - 1)
            t, u = min(int(y), side - 2), min(int(x), side - 2)
            a, b = y - t, x - u
            result[i, j] = (cam[t, u] * (1 - b) + cam[t, u + 1] * b) * (1 - a) + (
                cam[t + 1, u] * (1 - b) + cam[t + 1, u + 1] * b
            ) * a
    return result


def plus_plus(activations: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SEMANTICS' Grad-CAM++ without exp(score), channel by channel and place by place."""
    h, w, channels = activations.shape
    alpha, weights = np.zeros((h, w, channels)), np.zeros(channels)
    for c in range(channels):
        total = activations[:, :, c].sum()
        for i in range(h):
            for j in range(w):
                g = gradients[i, j, c]
                alpha[i, j, c] = g**2 / (2 * g**2 + g**3 * total) if g != 0 else 0
        mass = alpha[:, :, c].sum()
        alpha[:, :, c] /= mass if mass != 0 else 1
        weights[c] = sum(max(gradients[i, j, c], 0) * alpha[i, j, c] for i in range(h) for j in range(w))
    return alpha, weights, np.maximum((activations * weights).sum(-1), 0)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# What it computes


class TestNumbers:
    pytestmark = keras

    def test_every_activation_is_the_network_s(self, artifact):
        for n in range(4):
            expected = forward(artifact.network, artifact.whole("inputs", "fp64")[n])
            for stage in artifact.stages:
                if stage.quantity == "activations":
                    assert relative(artifact.whole(stage.name, "fp64")[n], expected[stage.layer]) < 1e-12, stage.name
            logits = artifact.whole("logits", "fp64")[n]
            assert relative(logits, expected["predictions"]) < 1e-12
            assert artifact.whole("score", "fp64")[n] == logits[CLASSES[n]]

    @pytest.mark.parametrize(
        "layer", ["inputs", "block1_conv1", "block2_pool", "block4_conv3", "block5_conv3", "block5_pool", "fc1", "fc2"]
    )
    def test_gradients_are_the_slopes_of_the_score(self, artifact, layer):
        generator = np.random.RandomState(0)
        checked = 0
        for n in range(2):
            start = "" if layer == "inputs" else layer
            x = artifact.whole(f"activations/{layer}" if start else "inputs", "fp64")[n]
            gradients = artifact.whole(f"gradients/{layer}", "fp64")[n]
            for index in generator.permutation(x.size)[:12]:
                place = np.unravel_index(index, x.shape)
                expected = slope(artifact.network, x, place, CLASSES[n], start)
                if expected is not None:
                    assert gradients[place] == pytest.approx(expected, rel=1e-6, abs=1e-9)
                    checked += 1
        assert checked >= 10

    def test_vanilla_saliency(self, artifact):
        for n in range(4):
            raw = np.abs(artifact.whole("gradients/inputs", "fp64")[n]).max(-1)
            np.testing.assert_array_equal(artifact.whole("vanilla/raw", "fp64")[n], raw)
            np.testing.assert_allclose(artifact.whole("vanilla/final", "fp64")[n], normalized(raw), rtol=0, atol=1e-15)

    @pytest.mark.parametrize(("precision", "kind"), [("fp32", np.float32), ("fp64", np.float64)])
    def test_the_noise_is_numpy_s_legacy_noise_bit_for_bit(self, artifact, precision, kind):
        for n in range(4):
            x = artifact.whole("inputs", precision)[n]
            sigma = kind(NOISE) * (x.max() - x.min())
            drawn = np.random.RandomState(SEED).normal(0.0, np.full((SAMPLES, 1, 1, 1), sigma), (SAMPLES, *x.shape))
            np.testing.assert_array_equal(artifact.whole("smoothgrad/noise", precision)[n], drawn.astype(kind))
            shared = [sigma.astype(np.float64) * unit for unit in unit_noise(SEED, SAMPLES, x.shape)]
            np.testing.assert_array_equal(artifact.whole("smoothgrad/noise", precision)[n], np.array(shared, kind))

    def test_smoothgrad_is_the_mean_of_the_slopes_of_noisy_inputs(self, artifact):
        generator = np.random.RandomState(1)
        checked, size = 0, TINY.size
        x = artifact.whole("inputs", "fp64")[0]
        noise = artifact.whole("smoothgrad/noise", "fp64")[0]
        for index in generator.permutation(size * size)[:8]:
            place = np.unravel_index(index, (size, size))
            slopes = np.array(
                [
                    [slope(artifact.network, x + noise[s], (*place, c), CLASSES[0]) for c in range(3)]
                    for s in range(SAMPLES)
                ],
                dtype=float,
            )
            if np.isnan(slopes).any():
                continue
            expected = np.abs(slopes).mean(0).max()
            assert artifact.whole("smoothgrad/raw", "fp64")[0][place] == pytest.approx(expected, rel=1e-6)
            checked += 1
        assert checked >= 4
        for n in range(4):
            raw = artifact.whole("smoothgrad/raw", "fp64")[n]
            np.testing.assert_allclose(artifact.whole("smoothgrad/final", "fp64")[n], normalized(raw), atol=1e-15)

    def test_gradcam(self, artifact):
        for n in range(4):
            a, g = (artifact.whole(f"{what}/block5_conv3", "fp64")[n] for what in ("activations", "gradients"))
            h, w, channels = a.shape
            weights = [sum(g[i, j, c] for i in range(h) for j in range(w)) / (h * w) for c in range(channels)]
            assert relative(artifact.whole("gradcam/weights", "fp64")[n], np.array(weights)) < 1e-12
            raw = np.maximum(sum(weights[c] * a[:, :, c] for c in range(channels)), 0)
            assert relative(artifact.whole("gradcam/raw", "fp64")[n], raw) < 1e-12
            large = upsampled(raw, TINY.size)
            np.testing.assert_allclose(artifact.whole("gradcam/upsampled", "fp64")[n], large, atol=1e-12 * large.max())
            np.testing.assert_allclose(artifact.whole("gradcam/final", "fp64")[n], normalized(large), atol=1e-12)

    def test_gradcam_plus_plus(self, artifact):
        for n in range(4):
            a, g = (artifact.whole(f"{what}/block5_conv3", "fp64")[n] for what in ("activations", "gradients"))
            alpha, weights, raw = plus_plus(a, g)
            assert relative(artifact.whole("gradcam_plus_plus/alpha", "fp64")[n], alpha) < 1e-9
            assert relative(artifact.whole("gradcam_plus_plus/weights", "fp64")[n], weights) < 1e-9
            assert relative(artifact.whole("gradcam_plus_plus/raw", "fp64")[n], raw) < 1e-9
            large = upsampled(raw, TINY.size)
            final = artifact.whole("gradcam_plus_plus/final", "fp64")[n]
            np.testing.assert_allclose(final, normalized(large), atol=1e-9)
            with_exp = normalized(large * math.exp(artifact.whole("score", "fp64")[n]))
            np.testing.assert_allclose(
                artifact.whole("gradcam_plus_plus/final_with_exp", "fp64")[n], with_exp, atol=1e-9
            )
        assert artifact.whole("gradcam_plus_plus/raw", "fp64").max() > 0

    def test_the_floor_is_rounding(self, artifact):
        for stage in artifact.stages[1:]:
            worst = artifact.floor(stage.name).relative_l2.max()
            assert worst < (1e-3 if stage.method == "gradcam_plus_plus" else 1e-5), stage.name
        assert artifact.floor("vanilla/raw").relative_l2.min() > 1e-9  # and float32 it was

    def test_a_photograph_does_not_know_its_neighbours_and_a_run_repeats(self, artifact, folder):
        photograph = Path(util.find_spec("skimage").submodule_search_locations[0]) / "data" / "coffee.png"
        result = keras_ref(
            *(photograph, "--weights", "tiny.safetensors", "--samples", SAMPLES, "--noise", NOISE, "--seed", SEED),
            *("--classes", CLASSES[1], "--keep", EVERYTHING, "--out", "alone.npz"),
            cwd=folder,
        )
        assert result.returncode == 0, result.stderr
        alone = Artifact.read(folder / "alone.npz")
        assert alone.photographs[0] == artifact.photographs[1]
        for stage in artifact.stages:
            np.testing.assert_array_equal(alone.whole(stage.name)[0], artifact.whole(stage.name)[1], err_msg=stage.name)

    def test_the_top_class_is_explained_where_none_is_named_and_torchvision_s_input_is_rgb(self, folder):
        pixels = np.random.RandomState(3).randint(0, 256, (2, 64, 64, 3)).astype(np.uint8)
        np.savez(folder / "pixels.npz", pixels=pixels)
        result = keras_ref(
            *("--pixels", "pixels.npz", "--input", "torchvision", "--resize", "torchvision", "--methods", "gradcam"),
            *("--weights", "tiny.safetensors", "--precision", "fp64", "--keep", EVERYTHING, "--out", "p.npz"),
            cwd=folder,
        )
        assert result.returncode == 0, result.stderr
        found = Artifact.read(folder / "p.npz")
        np.testing.assert_array_equal(found.pixels, pixels)
        expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(found.whole("inputs", "fp64"), expected, rtol=1e-12)
        assert found.classes == tuple(found.whole("logits", "fp64").argmax(1))
        assert (found.settings.pixels, found.settings.input, found.settings.resize) == ("given", *["torchvision"] * 2)
        assert found.precisions == ("fp64",)
        assert [p.name for p in found.photographs] == ["photograph 1", "photograph 2"]

    def test_the_lab_s_input(self, artifact):
        pixels = artifact.pixels.astype(float)
        expected = pixels[..., ::-1] - [103.939, 116.779, 123.68]
        np.testing.assert_allclose(artifact.whole("inputs", "fp64"), expected, rtol=1e-12)
        np.testing.assert_allclose(artifact.whole("inputs", "fp32"), expected, atol=2e-5)

    def test_exp_of_a_large_score_is_said_and_the_truth_kept(self, folder):
        """Scores of 367, −815, 808 and −570: all leave float32's range, those beyond 700 float64's too."""
        tensors = dict(seeded(0, TINY).tensors)
        for name in ("classifier.6.weight", "classifier.6.bias"):
            tensors[name] = tensors[name] * np.float32(25)
        write(dataclasses.replace(seeded(0, TINY), tensors=tensors, source="scaled"), folder / "scaled.safetensors")
        result = keras_ref(
            *("--weights", "scaled.safetensors", "--methods", "gradcam++", "--classes", "5,0,5,9", "--floor"),
            *("--keep", EVERYTHING, "--out", "scaled.npz"),
            cwd=folder,
        )
        assert result.returncode == 0, result.stderr
        found = Artifact.read(folder / "scaled.npz")
        np.testing.assert_allclose(found.whole("score", "fp64"), [367, -815, 808, -570], rtol=0.01)
        said = {p: [line[:14] for line in found.warnings if f"in {p} is unusable" in line] for p in ("fp32", "fp64")}
        assert said["fp32"] == [f"photograph {n} (" for n in (1, 2, 3, 4)]
        assert said["fp64"] == [f"photograph {n} (" for n in (2, 3)]
        assert "photograph 3 (camera.png): exp(score) is out of float32's range (score 808" in result.stdout
        for n in range(4):
            a, g = (found.whole(f"{what}/block5_conv3", "fp64")[n] for what in ("activations", "gradients"))
            _, weights, raw = plus_plus(a, g)
            assert raw.max() > 0
            assert relative(found.whole("gradcam_plus_plus/weights", "fp64")[n], weights) < 1e-7
            assert relative(found.whole("gradcam_plus_plus/raw", "fp64")[n], raw) < 1e-7
            single = found.whole("gradcam_plus_plus/raw", "fp32")[n]  # the reference's own, as bad as it is
            assert not np.isfinite(single).all() or np.linalg.norm(single) == 0


class TestFrameworks:
    pytestmark = keras

    def test_weights_go_to_keras_and_back(self, folder):
        out = keras_script(
            """
from parity.contract.network import read, from_source
net = from_source("tiny.safetensors")
m = model.build(net.architecture); model.load(m, net)
back = model.canonical(m, net.architecture, net.source, net.input)
files = {}
m.save("full.keras"); m.save("legacy.h5"); m.save_weights("new.weights.h5")
import shutil; shutil.copy("new.weights.h5", "renamed.h5")
for name in ("full.keras", "legacy.h5", "new.weights.h5", "renamed.h5"):
    found = model.from_keras_file(name, "caffe")
    files[name] = [found.fingerprint, found.source]
bad = []
weights = open("full.keras", "rb").read()
damaged = {"d.h5": b"\\x89HDF\\r\\n\\x1a\\n" + b"0" * 999, "d.keras": b"PK00", "e.h5": b"", "t.keras": weights[:9000]}
for name, content in damaged.items():
    open(name, "wb").write(content)
    try:
        model.from_keras_file(name, "caffe")
    except ValueError as error:
        bad.append(str(error).startswith(f"{name!r}: not a readable Keras file") and "\\n" not in str(error))
print(json.dumps({"bad": bad, "there": net.fingerprint, "back": back.fingerprint, "files": files,
    "names": [layer.name for layer in m.layers], "expected": [layer.keras for layer in net.architecture.layers]}))
""",
            folder,
        )
        assert out["there"] == out["back"] == seeded(0, TINY).fingerprint
        for name, found in out["files"].items():
            assert found == [out["there"], name]
        assert out["names"] == out["expected"]
        assert out["bad"] == [True] * 4

    def test_a_layer_s_kernel_on_paper(self, folder):
        """fc1 reads (C, H, W) in canonical form and (H, W, C) in Keras: entry (out 0, c 1, h 0, w 2) of 2 × 2 × 3."""
        out = keras_script(
            """
w = np.zeros((1, 2 * 2 * 3)); w[0, 1 * 6 + 0 * 3 + 2] = 1
k = model.to_keras(w, (2, 2, 3))
c = np.zeros((4, 3, 3, 3)); c[3, 1, 2, 0] = 1
print(json.dumps([int(k.argmax()), list(k.shape), [int(v) for v in np.argwhere(model.to_keras(c))[0]]]))
""",
            folder,
        )
        assert out == [(0 * 3 + 2) * 2 + 1, [12, 1], [2, 0, 1, 3]]

    def test_the_library_s_default_smoothgrad_call_gives_the_final_map(self, folder):
        out = keras_script(
            """
from parity.contract.network import from_source
from tf_keras_vis.saliency import Saliency
from tf_keras_vis.utils.scores import CategoricalScore
net = from_source("tiny.safetensors")
m = model.build(net.architecture); model.load(m, net)
x = np.random.RandomState(0).uniform(-100, 100, (1, 64, 64, 3))
models = maps.linear_models(m, net.architecture, x)
ours = maps.smoothgrad(models, x, 3, 2, 0.2, 9)["smoothgrad/final"]
with maps.legacy_seed(9):
    theirs = Saliency(models.linear)(CategoricalScore([3]), x, smooth_samples=2, smooth_noise=0.2)
print(json.dumps(bool(np.array_equal(ours, theirs[0]))))
""",
            folder,
        )
        assert out is True

    def test_numpy_s_global_generator_is_put_back_also_after_an_error(self, folder):
        out = keras_script(
            """
np.random.seed(5); before = np.random.standard_normal(3).tolist(); np.random.seed(5)
try:
    with maps.legacy_seed(1):
        np.random.standard_normal(100)
        raise ValueError
except ValueError:
    pass
print(json.dumps(before == np.random.standard_normal(3).tolist()))
""",
            folder,
        )
        assert out is True

    def test_a_library_that_computes_something_else_is_named(self, folder):
        """One process, one fault at a time."""
        faults = {
            "gradcam/raw": "gradcam.Gradcam, '_calculate_cam', lambda s, g, a, *_: np.ones(a.shape[:3], 'f4')",
            "vanilla/final": "saliency, 'normalize', lambda m: m",
            "gradcam/final": "gradcam, 'zoom', lambda c, *_, **k: np.zeros((1, 64, 64), 'f4')",
            "gradcam_plus_plus/raw": "gradcam_plus_plus.K, 'sum', lambda a, axis, keepdims=False: "
            "tensorflow.reduce_mean(a, axis, keepdims)",
            "softmax(logits)": "model_modifiers.ReplaceToLinear, '__call__', lambda *_: None",
            "smoothgrad/noise": "saliency, 'get_num_of_steps_allowed', lambda n: 1",
        }
        script = f"""
import contextlib, io, json
from unittest import mock
import numpy as np
from keras_ref import __main__ as program, model
model.load_frameworks("fp32")
import tensorflow
from tf_keras_vis import gradcam, gradcam_plus_plus, saliency
from tf_keras_vis.utils import model_modifiers
arguments = ["--weights", "tiny.safetensors", "--samples", "2", "--out", "fault.npz", "--classes", "5", "--quiet"]
said = {{}}
for stage, patch in {{{", ".join(f"{name!r}: ({patch})" for name, patch in faults.items())}, "": None}}.items():
    with contextlib.redirect_stderr(io.StringIO()) as lines:
        with mock.patch.object(*patch) if patch else contextlib.nullcontext():
            said[stage] = [program.main(arguments)]
    said[stage].append(lines.getvalue())
    said[stage].append(__import__("os").path.exists("fault.npz"))
print(json.dumps(said))
"""
        result = run_program("-c", script, cwd=folder)
        assert result.returncode == 0, result.stderr
        said = json.loads(result.stdout.splitlines()[-1])
        assert said.pop("") == [0, "", True]  # without a fault the same process writes it
        for stage, (status, line, written) in said.items():
            assert (status, written, line.count("\n")) == (2, False, 1), stage
            assert line.startswith(f"keras_ref: error: {stage}: "), line
        assert said.keys() == faults.keys()


class TestProgram:
    pytestmark = keras

    def test_what_it_prints_and_draws(self, run, artifact, folder):
        assert run.stderr == ""
        assert "'chelsea.png': class 5, class 5" in run.stdout
        assert re.search(r"wrote a\.npz \(\d+\.\d MB, fp32\+fp64\)", run.stdout)
        drawn = sorted(path.name for path in (folder / "figures").iterdir())
        assert drawn == ["gradcam.png", "gradcam_plus_plus.png", "smoothgrad.png", "vanilla.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "figures").iterdir())

    def test_the_manifest_says_what_was_done(self, artifact):
        assert artifact.program == "keras_ref"
        assert artifact.precisions == ("fp32", "fp64")
        assert artifact.classes == CLASSES
        assert [p.name for p in artifact.photographs] == ["chelsea.png", "coffee.png", "camera.png", "china.jpg"]
        assert artifact.photographs[0].size == (451, 300)
        assert artifact.weights.fingerprint == seeded(0, TINY).fingerprint
        assert artifact.network.fingerprint == artifact.weights.fingerprint
        assert {"python", "numpy", "keras", "tensorflow", "tf-keras-vis", "scipy", "Pillow"} <= artifact.versions.keys()
        assert {"tf32", "onednn", "threads_intra"} <= artifact.flags.keys()
        assert {"fp32/smoothgrad", "fp64/smoothgrad"} <= artifact.seconds.keys()
        assert artifact.warnings == ()

    def test_the_golden_file_is_what_keras_says_today(self, folder):
        """The command of its README, run again."""
        command = re.search(r"```sh\n(.*?)```", (GOLDEN / "README.md").read_text(), re.DOTALL)[1]
        command = command.replace(".venv/bin/python", sys.executable).replace(
            "/tmp/golden.safetensors", "g.safetensors"
        )
        command = command.replace("tests/golden/tiny.npz", "golden.npz")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        kept, again = Artifact.read(GOLDEN / "tiny.npz"), Artifact.read(folder / "golden.npz")
        np.testing.assert_array_equal(again.pixels, kept.pixels)
        for name in ("photographs", "weights", "settings"):
            assert getattr(again, name) == getattr(kept, name)
        for stage in kept.stages[1:]:
            for n in range(2):
                error = relative(again.values(stage.name, "fp64")[n], kept.values(stage.name, "fp64")[n])
                assert error < 1e-9, stage.name

    def test_an_interrupt_leaves_nothing(self, folder):
        scratch = folder / "scratch"
        scratch.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "keras_ref", "--weights", "tiny.safetensors", "--floor", "--out", "i.npz"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not any(scratch.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not (folder / "i.npz").exists()
        assert list(scratch.iterdir()) == []

    def test_a_photograph_that_is_none_is_refused(self, folder):
        (folder / "-bad \n<b>.png").write_bytes(b"no picture")
        result = keras_ref("--weights", "tiny.safetensors", "--out", "x.npz", "--", "-bad \n<b>.png", cwd=folder)
        refused(result, folder, r"not a readable picture: '-bad \n<b>.png'")


def refused(result: subprocess.CompletedProcess[str], folder: Path, words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("keras_ref: error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr
    assert not (folder / "x.npz").exists()


# Refusals that need no TensorFlow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "lime"], "--methods: method 'lime' is unknown"),
        (["--methods", ","], "unknown"),
        (["--samples", "0"], "--samples 0: give 1"),
        (["--samples", "many"], "invalid int value: 'many'"),
        (["--noise", "-1"], "--noise -1.0"),
        (["--noise", "nan"], "--noise nan"),
        (["--seed", "-1"], "--seed -1"),
        (["--keep", "0"], "--keep 0"),
        (["--precision", "fp16"], "invalid choice: 'fp16'"),
        (["--resize", "torchvision"], "give pixels resized otherwise with --pixels"),
        (["--pixels", "none.npz"], "--pixels 'none.npz': no such file"),
        (["--out", "no/where.npz"], "'no/where.npz': its folder does not exist"),
        (["--out", "."], "'.' is a folder"),
        (["--figures", "tiny.safetensors"], "'tiny.safetensors' is not a folder"),
        (["none.png", "."], "cannot read 'none.png' (no such file), '.' (is a folder)"),
        (["--classes", "10"], "class 10 does not exist: give 0 to 9"),
        (["--classes", "1,2"], "2 classes for 4 photographs"),
        (["--classes", "cat"], "network has 10 classes without labels"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(folder, arguments, words):
    out = [] if "--out" in arguments else ["--out", "x.npz"]
    refused(keras_ref("--weights", "tiny.safetensors", *arguments, *out, cwd=folder), folder, words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "'nowhere': no such file or source: give offline"),
        ("seeded:-1", "'seeded:-1': the seed must be"),
        ("text.txt", "'text.txt': the reference does not read this kind of file"),
        ("bad.safetensors", "not a readable safetensors file"),
    ],
)
def test_bad_weights_are_one_line_and_status_2(folder, source, words):
    (folder / "text.txt").write_text("hello")
    (folder / "bad.safetensors").write_text("hello")
    refused(keras_ref("--weights", source, "--out", "x.npz", cwd=folder), folder, words)


def test_without_tensorflow_it_says_what_to_install(folder):
    script = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from keras_ref.__main__ import main; sys.exit(main(['--weights', 'tiny.safetensors', '--out', 'x.npz']))"
    )
    result = run_program("-c", script, cwd=folder)
    refused(result, folder, 'tensorflow not installed: install them with: pip install "attention-maps[keras]"')


def test_help_is_quick(folder):
    began = time.perf_counter()
    result = keras_ref("--help", cwd=folder)
    assert result.returncode == 0
    assert "--floor" in result.stdout
    # The promise is one second; a busy machine gets three. TensorFlow alone would take four.
    assert time.perf_counter() - began < 3


@pytest.mark.slow
@needs_keras
@pytest.mark.keras
@pytest.mark.timeout(1800)
def test_the_full_network(tmp_path):
    """Sizes, floors and classes on VGG16 itself: 192 s on two cores."""
    result = run_program(
        *("-m", "keras_ref", "--weights", "offline", "--samples", "4", "--floor", "--out", "a.npz"),
        cwd=tmp_path,
        timeout=1700,
    )
    assert result.returncode == 0, result.stderr
    artifact = Artifact.read(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 16e6
    labels = [photograph.label for photograph in artifact.photographs]
    assert labels == ["Egyptian cat", "espresso", "tripod", "palace"]
    assert artifact.network is None
    for stage in artifact.stages[1:]:
        assert artifact.floor(stage.name).relative_l2.max() < 0.02, stage.name
    for n in range(4):
        a, g = (artifact.whole(f"{what}/block5_conv3", "fp64")[n] for what in ("activations", "gradients"))
        _, _, raw = plus_plus(a, g)
        assert relative(artifact.whole("gradcam_plus_plus/raw", "fp64")[n], raw) < 1e-6
        cam = np.maximum((g.mean((0, 1)) * a).sum(-1), 0)
        assert relative(artifact.whole("gradcam/raw", "fp64")[n], cam) < 1e-12
    shutil.rmtree(tmp_path)


def test_the_toy_of_this_file_on_paper():
    """The oracle needs one too: A = (1, 1), G = (1, 2): ΣA = 2, α = (1/4, 1/6) → (3/5, 2/5), w = 3/5·1 + 2/5·2."""
    alpha, weights, cam = plus_plus(np.ones((1, 2, 1)), np.array([[[1.0], [2.0]]]))
    np.testing.assert_allclose(alpha.ravel(), [3 / 5, 2 / 5])
    np.testing.assert_allclose(weights, [7 / 5])
    np.testing.assert_allclose(cam.ravel(), [7 / 5, 7 / 5])
    np.testing.assert_allclose(upsampled(np.array([[0.0, 1], [2, 3]]), 3)[1], [1, 1.5, 2])
    one = Architecture(blocks=((1,),), dense=(1, 1), classes=1, size=2)
    tensors = {name: np.ones(shape, np.float32) for name, shape in one.tensor_shapes.items()}
    outputs = forward(Network(tensors, one, "", "caffe"), np.ones((2, 2, 3)))
    assert outputs["block1_conv1"].ravel().tolist() == [13] * 4  # 4 places × 3 channels, and the bias
    assert outputs["predictions"].tolist() == [16]  # 13 + 1 + 1 + 1
