"""Candidates: a port that shares nothing with ours, answers that cannot be used, `assert_parity`, and two different jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from judging import altered, compared, job_of, recorded, with_array
from tolerances import FLOAT64

from parity import assert_parity, candidate, formulas
from parity.candidate import Candidate, CandidateError, Job
from parity.comparison import compare
from parity.contract import network
from parity.contract.artifact import Artifact
from parity.contract.methods import DEFAULT, Options
from parity.contract.vgg import vgg
from parity.port import ENGINES
from torch_impl import methods
from torch_impl.candidate import candidate as port
from torch_impl.candidate import one_pass
from torch_impl.network import build
from torch_impl.preprocess import preprocess

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ported(golden: Artifact) -> Artifact:
    return recorded(golden, port)


# A candidate that shares nothing with this project's port


def foreign(job: Job) -> dict[str, np.ndarray]:
    """Somebody else's port: plain PyTorch, in a page."""
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[job.precision]
    tensors = {name: torch.tensor(array, dtype=dtype) for name, array in job.network.tensors.items()}
    mean = torch.tensor([103.939, 116.779, 123.68], dtype=dtype)
    inputs = (torch.tensor(job.pixels[..., ::-1].copy(), dtype=dtype) - mean).permute(0, 3, 1, 2)

    def gradients(image: torch.Tensor, category: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = leaf = kept = image[None].clone().requires_grad_()
        for layer in job.layers:
            weights = [tensors[name] for name in layer.tensors]
            if layer.kind == "conv":
                x = F.conv2d(x, *weights, padding=1).relu()
                kept = x if layer.name == job.table.target else kept
            elif layer.kind == "pool":
                x = F.max_pool2d(x, 2)
            elif layer.kind == "dense":
                x = F.linear(x.flatten(1), *weights)
                x = x.relu() if layer.config["activation"] == "relu" else x
        return *torch.autograd.grad(x[0, category], [leaf, kept]), kept.detach()

    maps: dict[str, list[torch.Tensor]] = {f"{method}/raw": [] for method in job.methods}
    for image, category in zip(inputs, job.classes, strict=True):
        to_input, g, a = gradients(image, category)
        maps["vanilla/raw"].append(to_input.abs().amax(1)[0])
        sigma = job.noise_level * float(image.max() - image.min())
        noisy = [image + torch.tensor(sigma * unit).permute(2, 0, 1).to(dtype) for unit in job.noise()]
        total = torch.stack([gradients(x, category)[0].abs() for x in noisy]).sum(0)
        maps["smoothgrad/raw"].append(total.amax(1)[0] / job.n_samples)
        maps["gradcam/raw"].append((g.mean((2, 3), keepdim=True) * a).sum(1)[0].relu())
        alpha = torch.where(g != 0, 1 / (2 + g * a.sum((2, 3), keepdim=True)), 0)
        total = alpha.sum((2, 3), keepdim=True)
        weights = (g.relu() * alpha / torch.where(total == 0, 1, total)).sum((2, 3), keepdim=True)
        maps["gradcam_plus_plus/raw"].append((weights * a).sum(1)[0].relu())
    return {stage: torch.stack(drawn).numpy() for stage, drawn in maps.items()}


def test_a_foreign_port_holds_in_both_precisions(golden: Artifact) -> None:
    report = assert_parity(foreign, golden)
    assert {(v.method, v.precision) for v in report.verdicts} == {(m, p) for m in DEFAULT for p in ("fp64", "fp32")}


def test_both_engines_of_the_port_hold(golden: Artifact) -> None:
    """Every map of either engine against Keras's and tf-keras-vis's own, in both precisions, and every stage given."""
    for engine in (port, one_pass):
        report = compared(golden, engine, "fp64", "fp32")
        assert report.holds, report.as_table()
        assert not any(v.divergences for v in report.verdicts)
        given = {figure.stage for figure in report.figures}
        assert given == {stage.name for stage in golden.stages} - {"pixels"}


@pytest.mark.parametrize("engine", [port, one_pass])
def test_an_only_output_is_explained_itself(engine: Candidate) -> None:
    """The reference's class 0 of such a network is the output; the port's is the output's negative, and 1 the output."""
    only = network.seeded(0, vgg([[8], [8]], dense=(16, 12), classes=1, size=32))
    pixels = np.random.RandomState(1).randint(0, 256, (2, 32, 32, 3), np.uint8)
    job = Job(pixels, (0, 0), only, "caffe", ("vanilla", "gradcam"), Options(), precision="fp64", device="cpu")
    stages = {(photograph, stage): np.asarray(array) for photograph, stage, array in engine(job)}
    layer = {"target_layer": only.table.modules[only.table.target]}
    inputs = preprocess(pixels, dtype=torch.float64)
    for method, more in (("vanilla", {}), ("gradcam", layer)):
        maps = methods.raw_maps(method, build(only).double(), inputs, 1, **more).numpy()
        for i, expected in enumerate(maps):
            np.testing.assert_allclose(stages[i, f"{method}/raw"], expected, rtol=FLOAT64)
    assert all(stages[i, "score"] == stages[i, "logits"][0] for i in (0, 1))
    assert any(stages[i, "gradcam/raw"].max() > 0 for i in (0, 1))


def test_the_jobs_weights_are_a_file_too(golden: Artifact) -> None:
    job = job_of(golden)
    read = network.read(job.weights)
    assert read is not None
    assert read.fingerprint == golden.weights.fingerprint
    assert job.weights == job.weights  # written once


def test_the_jobs_noise_is_the_references(golden: Artifact) -> None:
    job = job_of(golden)
    x = formulas.preprocess(golden.pixels[0], "caffe")
    noise = np.stack([job.noise_level * np.ptp(x) * unit for unit in job.noise(0)])
    stage = golden.stage("smoothgrad/noise")
    np.testing.assert_allclose(stage.take(noise[None])[0], golden.values("smoothgrad/noise", "fp64")[0], rtol=1e-12)
    assert (job.n_samples, job.noise_level, job.seed) == (4, 0.2, 0)


# assert_parity


def test_assert_parity_returns_the_report() -> None:
    report = assert_parity(port, GOLDEN, precisions=["fp64"], methods=["gradcam"])
    assert report.holds
    assert {v.method for v in report.verdicts} == {"network", "gradcam"}


def test_assert_parity_says_where_and_why(golden: Artifact) -> None:
    wrong = altered(lambda weights, i: 64 * weights if i == 1 else weights, "gradcam/weights")
    with pytest.raises(AssertionError) as caught:
        assert_parity(wrong, golden, precisions=["fp64"])
    message = str(caught.value)
    # method, photograph, precision, stage, figure, limit, cause
    assert "gradcam, coffee.png, fp64: parts first at gradcam/weights (" in message
    assert "limit 1e-09): sum of the gradients for their mean" in message
    assert "chelsea.png" not in message


def test_assert_parity_takes_a_name_and_an_artifact(golden: Artifact, ported: Artifact, tmp_path: Path) -> None:
    assert assert_parity(ENGINES["library"], golden, precisions=["fp64"], methods=["gradcam"]).holds
    assert assert_parity(ported, golden).holds
    ported.write(tmp_path / "theirs")
    assert assert_parity(tmp_path / "theirs", GOLDEN).holds
    with pytest.raises(AssertionError, match="gradcam/raw"):
        assert_parity(with_array(ported, "fp64/gradcam/raw", lambda a: np.multiply(a, 1.1, out=a)), golden)


def test_a_network_too_large_for_the_artifact_must_be_given(golden: Artifact) -> None:
    without = replace(golden, weights=replace(golden.weights, tensors={}))
    with pytest.raises(CandidateError, match="give network="):
        assert_parity(port, without)
    assert assert_parity(port, without, precisions=["fp64"], methods=["gradcam"], network=golden.network).holds


# Candidates that cannot be loaded or used


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere_at_all:candidate", "No module named 'nowhere_at_all'"),
        ("torch_impl.candidate:nothing", "has no function nothing"),
        ("parity.candidate:SHAPE", "has no function SHAPE"),
        ("torch_impl.candidate", "give module:function"),
        (":candidate", "give module:function"),
        ("torch_impl.candidate:", "give module:function"),
    ],
)
def test_a_candidate_that_is_not_there(name: str, words: str) -> None:
    with pytest.raises(CandidateError, match=words) as caught:
        candidate.load(name)
    assert "\n" not in str(caught.value)


def answers(golden: Artifact, **stages: Any) -> Candidate:
    """Raw maps that are right, and what is given beside them."""
    right = {f"{m}/raw": golden.whole(f"{m}/raw", "fp64") for m in DEFAULT}
    return lambda job: {**right, **{name.replace("__", "/"): value for name, value in stages.items()}}


def test_the_right_maps_alone_are_enough(golden: Artifact) -> None:
    report = compared(golden, answers(golden), "fp64")
    assert report.holds
    assert {v.method for v in report.verdicts} == set(DEFAULT)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"gradcam__mask": np.zeros((2, 8, 8))}, "stage 'gradcam/mask' is unknown here"),
        ({"gradcam__raw": np.zeros((3, 8, 8))}, r"gradcam/raw has shape \(3, 8, 8\): expected 2 photographs first"),
        ({"gradcam__raw": np.zeros(())}, "expected 2 photographs first"),
        ({"gradcam__raw": np.zeros((2, 64))}, r"gradcam/raw has shape"),
        ({"gradcam__raw": np.zeros((2, 0, 0))}, r"gradcam/raw has shape"),
        ({"activations__block1_pool": np.zeros((2, 4, 16, 16))}, r"expected \(N, 16, 16, 4\)"),
        ({"logits": np.zeros((2, 9))}, r"expected \(N, 10\)"),
        ({"gradcam__raw": np.full((2, 8, 8), "x")}, "expected real numbers"),
        ({"gradcam__raw": [None, None]}, "gradcam/raw"),
        ({"pixels": np.zeros((2, 32, 32, 3))}, "'pixels' is unknown here"),
    ],
)
def test_an_answer_that_cannot_be_used(stages: dict[str, Any], words: str, golden: Artifact) -> None:
    with pytest.raises(CandidateError, match=words) as caught:
        recorded(golden, answers(golden, **stages))
    assert "\n" not in str(caught.value)


def test_raw_maps_are_required_once_each(golden: Artifact) -> None:
    once = [(0, "gradcam/raw", np.zeros((8, 8)))]
    with pytest.raises(CandidateError, match="no gradcam/raw for every photograph: raw maps are required"):
        recorded(golden, lambda job: iter(once), methods=["gradcam"])
    with pytest.raises(CandidateError, match="no vanilla/raw"):
        recorded(golden, lambda job: {})
    with pytest.raises(CandidateError, match="recorded twice"):
        recorded(golden, lambda job: iter(2 * once), methods=["gradcam"])


@pytest.mark.parametrize("answer", [None, 3, [1, 2], [("gradcam/raw", 0)], iter([None])])
def test_an_answer_of_another_kind(answer: Any, golden: Artifact) -> None:
    with pytest.raises(CandidateError, match="neither a mapping"):
        recorded(golden, lambda job: answer)


def test_a_size_survives_the_file(golden: Artifact, tmp_path: Path) -> None:
    recorded(golden, answers(golden, gradcam__raw=np.ones((2, 4, 4)))).write(tmp_path / "a")
    with pytest.raises(AssertionError, match="pooled target"):
        assert_parity(tmp_path / "a", golden)


# Two artifacts that did different jobs


def with_options(artifact: Artifact, **changes: Any) -> dict[str, Any]:
    return {"settings": replace(artifact.settings, options=replace(artifact.settings.options, **changes))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {"weights": replace(a.weights, fingerprint="0" * 64)}, "different weights: .*000000000000"),
        (lambda a: {"photographs": (replace(a.photographs[0], class_index=9), a.photographs[1])}, "different classes"),
        (lambda a: {"arrays": {**a.arrays, "pixels": a.pixels ^ 1}}, "different pixels"),
        (lambda a: with_options(a, n_samples=5), "different n_samples: .*5, the reference 4"),
        (lambda a: with_options(a, noise_level=0.1), "different noise_level"),
        (lambda a: with_options(a, seed=1), "different seed"),
        (lambda a: {"settings": replace(a.settings, input="torchvision")}, "different input"),
        (lambda a: {"settings": replace(a.settings, sample=7)}, "different sample"),
    ],
)
def test_another_job_is_refused_by_name(
    change: Callable[[Artifact], Any], words: str, golden: Artifact, ported: Artifact
) -> None:
    with pytest.raises(CandidateError, match=words):
        compare(golden, {"fp64": replace(ported, **change(ported))})


def test_what_is_not_in_the_artifacts_is_refused(golden: Artifact, ported: Artifact) -> None:
    with pytest.raises(CandidateError, match="holds fp64, not fp32"):
        compare(golden, {"fp32": ported})
    single = {n: a for n, a in golden.arrays.items() if "fp64" not in n}
    with pytest.raises(CandidateError, match="no float64"):
        compare(replace(golden, arrays=single), {"fp64": ported})
    only = replace(golden, settings=replace(golden.settings, methods=("gradcam",)))
    with pytest.raises(CandidateError, match="does not hold vanilla, smoothgrad, gradcam_plus_plus"):
        compare(only, {"fp64": ported})
    with pytest.raises(CandidateError, match="does not hold vanilla: it holds gradcam"):
        job_of(only, methods=["vanilla"])
    without = {n: a for n, a in ported.arrays.items() if n != "fp64/vanilla/raw"}
    with pytest.raises(CandidateError, match="lacks vanilla/raw in fp64: raw maps are required"):
        compare(golden, {"fp64": replace(ported, arrays=without)})


def test_other_weights_are_refused_before_work(golden: Artifact) -> None:
    with pytest.raises(CandidateError, match="are not those of the reference"):
        candidate.job_of(golden, network.seeded(1, golden.table), precision="fp64", device="cpu")
