"""The reference, against arithmetic that knows no TensorFlow: NumPy written out, and finite differences.

TensorFlow runs in child processes only; this process has torch in it.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_program
from judging import compared
from oracle import forward, layer_cam, most_varied, normalized, plus_plus, relative, score_cam, slope, upsampled
from tolerances import DIFFERENCE_QUOTIENT, EXACT, FLOAT32, FLOAT64, FLOAT64_ALPHA

from parity.contract.artifact import Artifact
from parity.contract.methods import DEFAULT, METHODS, REFERENCE
from parity.contract.network import from_source, seeded, write
from parity.contract.samples import SAMPLES
from parity.contract.vgg import vgg

HAS_KERAS = all(util.find_spec(name) for name in ("tensorflow", "keras", "tf_keras_vis"))
needs_keras = pytest.mark.skipif(
    not HAS_KERAS, reason='no TensorFlow, Keras and tf-keras-vis here: pip install "attention-maps[keras]"'
)
keras = [pytest.mark.keras, needs_keras]

GOLDEN = Path(__file__).parent / "golden"

THREE_BLOCKS = vgg(((4, 4), (6, 6), (8, 8, 8)), (16, 12), 10, 32)
"""The network of the golden file."""

ONE_OUTPUT = vgg(((4, 4), (6, 6), (8, 8, 8)), (16, 12), 1, 32)

FAMILY = "layercam,scorecam,faster_scorecam"

THIRTEEN_CONVOLUTIONS = vgg(((2, 2), (2, 2), (3, 3, 3), (3, 3, 3), (3, 3, 3)), (5, 4), 10)
"""What Keras's files are recognised by."""

N_SAMPLES, NOISE_LEVEL, SEED = 4, 0.2, 0
CLASSES = (4, 7)

EVERYTHING = 100_000
"""With --keep: every stage of a tiny network whole."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keras_ref")
    write(seeded(0, THREE_BLOCKS), path / "tiny.safetensors")
    write(seeded(0, ONE_OUTPUT), path / "one.safetensors")
    write(seeded(0, THIRTEEN_CONVOLUTIONS), path / "thirteen.safetensors")
    network = seeded(0, THREE_BLOCKS)
    scaled = {n: a * np.float32(50) if "classifier.6" in n else a for n, a in network.tensors.items()}
    write(replace(network, tensors=scaled, source="scaled"), path / "scaled.safetensors")
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """The command of the golden file's README, but that every value is kept and the figures are drawn."""
    command = re.search(r"```sh\n(.*?)```", (GOLDEN / "README.md").read_text(), re.DOTALL)[1]
    for theirs, ours in (
        (".venv/bin/python", sys.executable),
        ("/tmp/golden.safetensors", "g.safetensors"),
        ("--keep 128", f"--keep {EVERYTHING} --figures figures"),
        ("tests/golden/tiny.safetensors", "a.artifact"),
    ):
        assert theirs in command
        command = command.replace(theirs, ours)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def artifact(run: subprocess.CompletedProcess[str], folder: Path) -> Artifact:
    assert run.returncode == 0, run.stderr
    return Artifact.read(folder / "a.artifact")


@pytest.fixture(scope="module")
def photographs(artifact: Artifact) -> list[dict[str, np.ndarray]]:
    """Of each photograph every stage in float64; under A and G those of the target layer."""
    target = artifact.table.target
    arrays = {stage.name: artifact.whole(stage.name, "fp64") for stage in artifact.stages[1:]}
    arrays |= {"A": arrays[f"activations/{target}"], "G": arrays[f"gradients/{target}"]}
    return [{name: array[n] for name, array in arrays.items()} for n in range(len(CLASSES))]


@pytest.fixture(scope="module")
def family(said: dict, folder: Path) -> list[dict[str, np.ndarray]]:
    """The same of LayerCAM and the Score-CAMs, of one photograph."""
    artifact = done(said, folder, "family")
    assert [line.split(": ")[1] for line in artifact.warnings] == ["Score-CAM in float64"]
    target = artifact.table.target
    arrays = {stage.name: artifact.whole(stage.name, "fp64")[0] for stage in artifact.stages[1:]}
    return [arrays | {"A": arrays[f"activations/{target}"], "G": arrays[f"gradients/{target}"]}]


def test_the_oracle_on_paper():
    """A = (1, 1), G = (1, 2): ΣA = 2, α = (1/4, 1/6) → (3/5, 2/5), w = 3/5·1 + 2/5·2."""
    expected = plus_plus(np.ones((1, 2, 1)), np.array([[[1.0], [2.0]]]))
    np.testing.assert_allclose(expected["alpha"].ravel(), [3 / 5, 2 / 5])
    np.testing.assert_allclose(expected["weights"], [7 / 5])
    np.testing.assert_allclose(expected["raw"].ravel(), [7 / 5, 7 / 5])
    np.testing.assert_allclose(upsampled(np.array([[0.0, 1], [2, 3]]), 3)[1], [1, 1.5, 2])


class TestNumbers:
    pytestmark = keras

    def test_the_golden_file_is_what_keras_says_today(self, artifact):
        kept = Artifact.read(GOLDEN / "tiny.safetensors")
        np.testing.assert_array_equal(artifact.pixels, kept.pixels)
        assert artifact.settings == replace(kept.settings, sample=EVERYTHING)
        for name in ("photographs", "weights", "warnings"):
            assert getattr(artifact, name) == getattr(kept, name)
        for stage in kept.stages[1:]:
            again = stage.take(artifact.whole(stage.name, "fp64"))
            for ours, theirs in zip(again, kept.values(stage.name, "fp64"), strict=True):
                assert relative(ours, theirs) < FLOAT64_ALPHA, stage.name

    def test_the_lab_s_input(self, artifact):
        expected = artifact.pixels[..., ::-1] - np.array([103.939, 116.779, 123.68])
        np.testing.assert_allclose(artifact.whole("inputs", "fp64"), expected, rtol=FLOAT64)
        np.testing.assert_allclose(artifact.whole("inputs", "fp32"), expected, atol=2e-5)

    def test_every_activation_is_the_network_s(self, artifact, photographs):
        for p, class_index in zip(photographs, CLASSES, strict=True):
            expected = forward(artifact.network, p["inputs"])
            for layer in artifact.table.hidden:
                assert relative(p[f"activations/{layer.name}"], expected[layer.name]) < FLOAT64, layer.name
            assert relative(p["logits"], expected["predictions"]) < FLOAT64
            assert p["score"] == p["logits"][class_index]

    @pytest.mark.parametrize("layer", ["", "block1_conv1", "block2_pool", "block3_conv3", "block3_pool", "fc1", "fc2"])
    def test_gradients_are_the_slopes_of_the_score(self, artifact, photographs, layer):
        slopes, gradients = [], []
        for p, class_index in zip(photographs, CLASSES, strict=True):
            x = p[f"activations/{layer}" if layer else "inputs"]
            for index in np.random.RandomState(0).permutation(x.size)[:12]:
                place = np.unravel_index(index, x.shape)
                slopes.append(slope(artifact.network, x, place, class_index, layer or "input_layer"))
                gradients.append(p[f"gradients/{layer or 'inputs'}"][place])
        smooth = ~np.isnan(slopes)
        assert smooth.sum() >= 10
        np.testing.assert_allclose(np.array(gradients)[smooth], np.array(slopes)[smooth], DIFFERENCE_QUOTIENT, 1e-9)

    @pytest.mark.parametrize(("precision", "kind"), [("fp32", np.float32), ("fp64", np.float64)])
    def test_the_noise_is_numpy_s_legacy_noise_bit_for_bit(self, artifact, precision, kind):
        for x, noise in zip(
            artifact.whole("inputs", precision), artifact.whole("smoothgrad/noise", precision), strict=True
        ):
            sigma = kind(NOISE_LEVEL) * (x.max() - x.min())
            drawn = np.random.RandomState(SEED).normal(0.0, np.full((N_SAMPLES, 1, 1, 1), sigma), noise.shape)
            np.testing.assert_array_equal(noise, drawn.astype(kind))

    def test_smoothgrad_is_the_mean_of_the_slopes_of_noisy_inputs(self, artifact, photographs):
        p, checked = photographs[0], 0
        for place in np.random.RandomState(1).randint(0, THREE_BLOCKS.size[0], (8, 2)):
            noisy = p["inputs"] + p["smoothgrad/noise"]
            slopes = [[slope(artifact.network, x, (*place, c), CLASSES[0]) for c in range(3)] for x in noisy]
            expected = np.abs(slopes).mean(0).max()
            if not math.isnan(expected):
                assert p["smoothgrad/raw"][tuple(place)] == pytest.approx(expected, rel=DIFFERENCE_QUOTIENT)
                checked += 1
        assert checked >= 4

    def test_vanilla_gradcam_and_gradcam_plus_plus(self, photographs):
        for p in photographs:
            np.testing.assert_array_equal(p["vanilla/raw"], np.abs(p["gradients/inputs"]).max(-1))
            weights = p["G"].sum((0, 1)) / p["G"][..., 0].size
            assert relative(p["gradcam/weights"], weights) < FLOAT64
            raw = np.maximum(sum(weights[k] * p["A"][..., k] for k in range(len(weights))), 0)
            assert relative(p["gradcam/raw"], raw) < FLOAT64
            for name, expected in plus_plus(p["A"], p["G"]).items():
                assert relative(p[f"gradcam_plus_plus/{name}"], expected) < FLOAT64_ALPHA, name
            with_exp = normalized(p["gradcam_plus_plus/upsampled"] * math.exp(p["score"]))
            np.testing.assert_allclose(p["gradcam_plus_plus/final_with_exp"], with_exp, atol=FLOAT64_ALPHA)
            assert min(p["gradcam/raw"].max(), p["gradcam_plus_plus/raw"].max()) > 0

    def test_layercam_and_score_cam(self, family, said, folder):
        network = seeded(0, THREE_BLOCKS)
        for p in family:
            assert relative(p["layercam/raw"], layer_cam(p["A"], p["G"])) < FLOAT64
            assert p["faster_scorecam/channels"].tolist() == most_varied(p["A"], 5)
            for method, channels in (("scorecam", range(8)), ("faster_scorecam", most_varied(p["A"], 5))):
                expected = score_cam(network, p["inputs"], p["A"], CLASSES[1], list(channels))
                for name, array in expected.items():
                    assert relative(p[f"{method}/{name}"], array) < FLOAT64, name
                assert p[f"{method}/raw"].max() > 0
        # Where all are taken the library leaves them in their order; the stages have them from the largest deviation down.
        every = done(said, folder, "all channels")
        channels = every.whole("faster_scorecam/channels", "fp64")[0].astype(int)
        assert channels.tolist() == most_varied(family[0]["A"], 8)
        scores = every.whole("faster_scorecam/scores", "fp64")[0]
        np.testing.assert_allclose(scores, family[0]["scorecam/scores"][channels], rtol=FLOAT64)
        asked = done(said, folder, "as many channels as there are")
        for name in ("channels", "scores", "weights", "raw"):
            stage = f"faster_scorecam/{name}"
            np.testing.assert_array_equal(asked.whole(stage, "fp64"), every.whole(stage, "fp64"))

    @pytest.mark.parametrize("method", REFERENCE)
    def test_a_map_is_enlarged_and_normalized(self, photographs, family, method):
        for p in photographs if method in DEFAULT else family:
            large = p[f"{method}/upsampled" if METHODS[method].at_layer else f"{method}/raw"]
            np.testing.assert_allclose(p[f"{method}/final"], normalized(large), rtol=0, atol=EXACT)
            if METHODS[method].at_layer:
                expected = upsampled(p[f"{method}/raw"], THREE_BLOCKS.size[0])
                np.testing.assert_allclose(large, expected, rtol=0, atol=FLOAT64 * large.max())

    def test_single_precision_is_off_by_rounding_only(self, artifact):
        for stage in artifact.stages[1:]:
            limit = 1e-3 if stage.method == "gradcam_plus_plus" else FLOAT32  # alpha magnifies rounding: 2e-5 here
            for single, double in zip(artifact.whole(stage.name), artifact.whole(stage.name, "fp64"), strict=True):
                assert relative(single, double) < limit, stage.name
        assert relative(artifact.whole("vanilla/raw"), artifact.whole("vanilla/raw", "fp64")) > 1e-9

    def test_exp_of_a_large_score_is_said_and_the_truth_kept(self, folder):
        """Scores of 1625, −735, 450 and −195: all leave float32's range, those beyond 700 float64's too."""
        chelsea, coffee = (str(sample.path()) for sample in SAMPLES[:2])
        job = "--weights scaled.safetensors --methods gradcam++ --floor --classes 4,3,4,1 --out scaled"
        result = run_program("-m", "keras_ref", coffee, coffee, chelsea, chelsea, *job.split(), cwd=folder)
        assert result.returncode == 0, result.stderr
        artifact = Artifact.read(folder / "scaled")
        np.testing.assert_allclose(artifact.whole("score", "fp64"), [1625, -735, 450, -195], rtol=0.01)
        for kind, where in (("float32", (1, 2, 3, 4)), ("float64", (1, 2))):
            lines = [line[:14] for line in artifact.warnings if f"Grad-CAM++ in {kind} is unusable" in line]
            assert lines == [f"photograph {n} (" for n in where]
        printed = "warning: photograph 1 (coffee.png): exp(score) is out of float32's range (score 16"
        assert printed in result.stdout + result.stderr
        target, raw = artifact.table.target, artifact.whole("gradcam_plus_plus/raw", "fp64")
        for n, single in enumerate(artifact.whole("gradcam_plus_plus/raw", "fp32")):
            a, g = (artifact.whole(f"{what}/{target}", "fp64")[n] for what in ("activations", "gradients"))
            assert relative(raw[n], plus_plus(a, g)["raw"]) < 1e-7
            assert raw[n].max() > 0
            assert not np.isfinite(single).all() or np.linalg.norm(single) == 0  # the reference's own, as bad as it is


@pytest.fixture(scope="module")
def said(folder: Path) -> dict:
    """What one process says of several commands (each job's name is its artifact's) and of other checks."""
    np.savez(folder / "pixels.npz", pixels=np.random.RandomState(3).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8))
    (folder / "-bad \n<b>.png").write_bytes(b"no picture")
    np.save(folder / "x.npy", np.random.RandomState(4).uniform(-100, 100, (2, 32, 32, 3)))
    weights, photograph = "--weights=tiny.safetensors", [f"--classes={CLASSES[1]}", str(SAMPLES[1].path())]
    photographs = [str(sample.path()) for sample in SAMPLES]
    jobs = {
        "alone": [weights, f"--samples={N_SAMPLES}", *photograph],
        "pixels": [weights, "--pixels=pixels.npz", "--input=torchvision", "--resize=torchvision", "--methods=gradcam"],
        "picture": [weights, "--", "-bad \n<b>.png"],
        "family": [weights, f"--methods={FAMILY}", "--channels=5", *photograph],
        "all channels": [weights, "--methods=faster_scorecam", *photograph],
        "as many channels as there are": [weights, "--methods=faster_scorecam", "--channels=8", *photograph],
        "too many channels": [weights, "--methods=faster_scorecam", "--channels=9", *photograph],
        "one output": ["--weights=one.safetensors", "--methods=scorecam", str(SAMPLES[1].path())],
        "the only output": ["--weights=one.safetensors", "--floor", "--methods=vanilla,gradcam,layercam", *photographs],
    }
    result = run_program(str(Path(__file__).parent / "in_keras.py"), json.dumps(jobs), cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def done(said: dict, folder: Path, job: str) -> Artifact:
    """The artifact of a job that went well."""
    assert said["runs"][job][:2] == [0, ""]
    return Artifact.read(folder / job)


class TestKeras:
    pytestmark = keras

    def test_a_photograph_does_not_know_its_neighbours_and_a_run_repeats(self, artifact, said, folder):
        alone = done(said, folder, "alone")
        assert alone.photographs[0] == artifact.photographs[1]
        for stage in artifact.stages[1:]:
            ours, theirs = alone.whole(stage.name, "fp64")[0], artifact.whole(stage.name, "fp64")[1]
            np.testing.assert_array_equal(ours, theirs, err_msg=stage.name)

    def test_the_top_class_is_explained_where_none_is_named_and_torchvision_s_input_is_rgb(self, said, folder):
        artifact, pixels = done(said, folder, "pixels"), np.load(folder / "pixels.npz")["pixels"]
        np.testing.assert_array_equal(artifact.pixels, pixels)
        expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(artifact.whole("inputs", "fp64"), expected, rtol=FLOAT64)
        assert artifact.classes == tuple(artifact.whole("logits", "fp64").argmax(1))
        settings = artifact.settings
        assert (settings.pixels, settings.input, settings.resize) == ("given", "torchvision", "torchvision")
        assert [p.name for p in artifact.photographs] == ["photograph 1", "photograph 2"]

    @pytest.mark.parametrize(
        ("job", "words"),
        [
            ("picture", r"not a readable picture: '-bad \n<b>.png' (cannot identify"),
            ("one output", "scorecam: Score-CAM says nothing of a network with one output"),
            ("too many channels", "--channels 9: the target layer has 8 feature maps"),
        ],
    )
    def test_what_cannot_be_explained_is_one_line(self, said, folder, job, words):
        status, errors, _ = said["runs"][job]
        assert (status, errors.count("\n"), (folder / job).exists()) == (2, 1, False)
        assert errors.startswith(f"keras_ref: error: {words}")

    @pytest.mark.parametrize(
        ("path", "name", "arguments"),
        [
            ("tiny.safetensors", "class 3", {"target": 3}),
            ("tiny.safetensors", "own", {"score": lambda y: 2 * y[:, 2] - y[:, 5] * y[:, 5]}),
            ("one.safetensors", "class 1", {"target": 1}),
            ("one.safetensors", "class 0", {"target": 0}),
        ],
    )
    def test_a_score_means_the_same_on_both_sides(self, said, folder, path, name, arguments):
        """`CategoricalScore`, a function of one's own, `BinaryScore(True)` and `BinaryScore(False)`."""
        import torch

        from torch_impl import methods
        from torch_impl.network import build

        network = from_source(str(folder / path))
        inputs = torch.tensor(np.load(folder / "x.npy")).permute(0, 3, 1, 2)
        layer = network.table.modules[network.table.target]
        for method in ("vanilla", "gradcam", "layercam"):
            at_layer = {"target_layer": layer} if METHODS[method].at_layer else {}
            ours = getattr(methods, method)(build(network).double(), inputs, **arguments, **at_layer).numpy()
            theirs = np.load(folder / "scores.npz")[f"{path}/{name}/{method}"]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT64)
            assert ours.max() > 0.9, method

    @pytest.mark.parametrize("engine", ["candidate", "one_pass"])
    def test_an_only_output_is_explained_on_both_sides(self, said, folder, engine):
        from torch_impl import candidate

        artifact = done(said, folder, "the only output")
        report = compared(artifact, getattr(candidate, engine), "fp64", "fp32")
        assert report.holds, report.as_table()
        assert sum(artifact.whole("gradcam/raw", "fp64").max((1, 2)) > 0) >= 2

    def test_keras_s_files_hold_the_network_whatever_they_are_called(self, said):
        read, damaged = said["files"]["read"], said["files"]["damaged"]
        assert len(read) == 4
        assert set(read.values()) == {seeded(0, THIRTEEN_CONVOLUTIONS).fingerprint}
        assert len(damaged) == 3
        for name, line in damaged.items():
            assert line.startswith(f"{name!r}: ")
            assert "\n" not in line

    def test_smoothgrad_is_the_library_s_default_call_and_leaves_numpy_s_generator_alone(self, said):
        assert said["smoothgrad"] == {"same": True, "alone": True}

    def test_a_library_that_computes_something_else_is_named(self, said):
        faults = dict(said["faults"])
        assert faults.pop("") == [0, "", True]  # without a fault the same process writes it
        assert len(faults) == 8
        for stage, (status, line, written) in faults.items():
            assert (status, written, line.count("\n")) == (2, False, 1), stage
            assert line.startswith(f"keras_ref: error: {stage}: "), line


class TestProgram:
    pytestmark = keras

    def test_what_it_prints_and_draws(self, run, artifact, folder):
        assert run.stderr == ""
        assert "'chelsea.png': class 4, class 4" in run.stdout
        assert re.search(r"wrote a\.artifact \(\d+\.\d MB, fp32\+fp64\)", run.stdout)
        drawn = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        assert drawn.keys() == {f"{method}.png" for method in DEFAULT}
        assert all(content.startswith(b"\x89PNG") for content in drawn.values())

    def test_the_manifest_says_what_was_done(self, artifact):
        assert (artifact.program, artifact.precisions) == ("keras_ref", ("fp32", "fp64"))
        assert artifact.photographs[0].size == (451, 300)
        assert artifact.network.fingerprint == artifact.weights.fingerprint == seeded(0, THREE_BLOCKS).fingerprint
        assert {"python", "numpy", "keras", "tensorflow", "tf-keras-vis", "scipy", "Pillow"} <= artifact.versions.keys()
        assert {"tf32", "onednn", "threads_intra"} <= artifact.flags.keys()
        parts = ("setup", "layers", *DEFAULT)
        assert artifact.seconds.keys() == {f"{p}/{part}" for p in artifact.precisions for part in parts}
