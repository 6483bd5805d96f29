"""Comparison, verdict, causes, candidates and the command line: on paper, on the golden reference, as a user would."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_NPZ, run_program

from parity import __main__ as command
from parity import assert_parity, causes, formulas, port, similarity, verdict, worker
from parity import candidate as candidates
from parity.candidate import CandidateError, Job
from parity.comparison import compare
from parity.contract.artifact import Artifact, Recorder
from parity.contract.stages import METHODS
from parity.reference import ProcessError

pytestmark = pytest.mark.usefixtures("one_thread")


def recorded(golden: Artifact, candidate: candidates.Candidate, precision: str = "fp64", methods: Any = ()) -> Artifact:
    assert golden.network is not None
    job = candidates.job_of(golden, golden.network, precision=precision, device="cpu", methods=methods)
    return candidates.record(candidate, job, golden.photographs, golden.settings)


@pytest.fixture(scope="session")
def ported(golden: Artifact) -> Artifact:
    """The port's own answer in float64."""
    return recorded(golden, port.candidate)


def changed(artifact: Artifact, **changes: Any) -> Artifact:
    return replace(artifact, **changes)


def with_array(artifact: Artifact, member: str, change: Callable[[np.ndarray], Any]) -> Artifact:
    array = artifact.arrays[member].copy()
    change(array)
    return replace(artifact, arrays={**artifact.arrays, member: array})


# Similarity


def test_relative_l2_on_paper() -> None:
    assert similarity.relative_l2(np.array([3.0, 4.0]), np.array([0.0, 4.0])) == 3 / 4
    assert similarity.relative_l2(np.zeros(3), np.zeros(3)) == 0
    assert similarity.relative_l2(np.ones(1), np.zeros(1)) == math.inf
    assert similarity.relative_l2(np.array([np.nan, 1]), np.ones(2)) == math.inf
    assert similarity.relative_l2(np.array([np.inf, 1]), np.array([np.inf, 1])) == math.inf  # agreement on nothing


def test_error_of_range_on_paper() -> None:
    assert similarity.error_of_range(np.array([1.0, 5.0, 3.0]), np.array([1.0, 5.0, 4.0])) == 1 / 4
    assert similarity.error_of_range(np.array([2.5]), np.array([2.0])) == 1 / 4  # one value: over its magnitude
    assert similarity.error_of_range(np.array([np.nan]), np.array([2.0])) == math.inf
    assert similarity.error_of_range(np.zeros(2), np.zeros(2)) == 0
    assert similarity.error_of_range(np.zeros(0), np.zeros(0)) == 0


def test_pearson_on_paper() -> None:
    assert similarity.pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1)
    assert similarity.pearson(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert similarity.pearson(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(0)
    assert math.isnan(similarity.pearson(np.ones(3), np.arange(3.0)))
    assert math.isnan(similarity.pearson(np.array([np.nan, 1.0]), np.arange(2.0)))


# The judge's formulas: answers worked out by hand


def test_preprocessing_of_one_pixel() -> None:
    pixel = np.array([[[255, 0, 51]]], np.uint8)  # R, G, B
    np.testing.assert_allclose(formulas.preprocess(pixel, "caffe"), [[[51 - 103.939, 0 - 116.779, 255 - 123.68]]])
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(formulas.preprocess(pixel, "torchvision"), [[expected]])
    with pytest.raises(ValueError, match="unknown"):
        formulas.preprocess(pixel, "tf")


def test_grad_cam_on_paper() -> None:
    gradients = np.array([[[1.0, -4.0], [3.0, 0.0]]])  # (1, 2, 2): means 2 and −2
    activations = np.array([[[1.0, 0.0], [2.0, 5.0]]])
    weights = formulas.grad_cam_weights(gradients)
    np.testing.assert_allclose(weights, [2, -2])
    np.testing.assert_allclose(formulas.class_activation_map(activations, weights), [[2, 0]])  # 2·2 − 2·5 < 0


def test_grad_cam_plus_plus_on_paper() -> None:
    # A = (1, 1), G = (1, 2): ΣA = 2, alpha = (1/4, 1/6) → (3/5, 2/5), w = 3/5·1 + 2/5·2
    a, g = np.ones((1, 2, 1)), np.array([[[1.0], [2.0]]])
    np.testing.assert_allclose(formulas.grad_cam_plus_plus_alpha(a, g, normalized=False).ravel(), [1 / 4, 1 / 6])
    alpha = formulas.grad_cam_plus_plus_alpha(a, g)
    np.testing.assert_allclose(alpha.ravel(), [3 / 5, 2 / 5])
    np.testing.assert_allclose(formulas.grad_cam_plus_plus_weights(g, alpha), [7 / 5])
    # mean(A) = 1: (1/3, 1/4); an epsilon of 1 beside 4 and 24: (1/5, 4/25)
    wrong = formulas.grad_cam_plus_plus_alpha(a, g, normalized=False, mean_of_activations=True)
    np.testing.assert_allclose(wrong.ravel(), [1 / 3, 1 / 4])
    wrong = formulas.grad_cam_plus_plus_alpha(a, g, normalized=False, epsilon=1.0)
    np.testing.assert_allclose(wrong.ravel(), [1 / 5, 4 / 25])
    assert not formulas.grad_cam_plus_plus_alpha(a, np.zeros_like(g)).any()


def test_upsampling_lays_corner_on_corner() -> None:
    cam = np.array([[0.0, 3.0], [6.0, 9.0]])
    np.testing.assert_allclose(formulas.upsample(cam, 4), np.add.outer([0, 2, 4, 6], [0, 1, 2, 3]), atol=1e-12)
    # Half-pixel centres at −1/4, 1/4, 3/4, 5/4, held at the rim
    np.testing.assert_allclose(formulas.upsample(cam, 4, half_pixel=True)[0], [0, 0.75, 2.25, 3], atol=1e-12)


def test_normalizing_and_finishing() -> None:
    np.testing.assert_allclose(formulas.normalize(np.array([[1.0, 3.0]])), [[0, 2 / (2 + 1e-7)]], rtol=1e-15)
    assert not formulas.normalize(np.full((2, 2), 5.0)).any()
    drawn = np.array([[0.0, 1.0], [2.0, 4.0]])
    np.testing.assert_allclose(formulas.finish(drawn, 2), drawn / 4, atol=1e-7)
    assert formulas.finish(drawn, 8).shape == (8, 8)


def test_pooling_on_paper() -> None:
    features = np.arange(20.0).reshape(4, 5, 1)  # the fifth column has no partner
    np.testing.assert_array_equal(formulas.max_pool(features)[..., 0], [[6, 8], [16, 18]])


# The criterion


def rows(report: Any, stage: str) -> list[verdict.Figure]:
    return [figure for figure in report.figures if figure.stage == stage]


def word(report: Any, method: str) -> str:
    return next(v.word for v in report.verdicts if v.method == method)


@pytest.mark.parametrize(("method", "limit"), [("vanilla", 1e-9), ("gradcam", 1e-9), ("gradcam_plus_plus", 1e-6)])
def test_in_float64_the_limit_is_of_the_range(method: str, limit: float, golden: Artifact, ported: Artifact) -> None:
    span = np.ptp(golden.whole(f"{method}/raw", "fp64")[1])
    for off, holds in ((0.5 * limit, True), (2 * limit, False)):

        def push(array: np.ndarray, off: float = off) -> None:
            array[1].reshape(-1)[7] += off * span

        report = compare(golden, {"fp64": with_array(ported, f"fp64/{method}/raw", push)})
        assert report.holds is holds
        figure = rows(report, f"{method}/raw")[1]
        assert figure.max_error == pytest.approx(off, rel=1e-3)
        assert figure.limit == limit
        assert word(report, method) == (verdict.SAME_FUNCTION if holds else verdict.DIFFERENT)


def test_in_float32_the_limit_is_four_floors_of_the_run(golden: Artifact) -> None:
    theirs = recorded(golden, port.candidate, "fp32")
    # The golden floors of vanilla saliency are below the least limit; a reference ten times worse sets its own.
    worse = with_array(
        golden, "fp32/vanilla/raw", lambda a: np.multiply(a, [[[1]], [[1 + 1e-4]]], out=a, casting="unsafe")
    )
    for reference, expected in ((golden, 1e-5), (worse, 4e-4)):
        for part, holds in ((0.5, True), (2.0, False)):

            def push(
                array: np.ndarray, part: float = part, reference: Artifact = reference, limit: float = expected
            ) -> None:
                array[0] = reference.whole("vanilla/raw", "fp64")[0] * (1 + part * limit)  # the other photograph

            one = with_array(theirs, "fp32/vanilla/raw", push)
            report = compare(reference, {"fp32": with_array(one, "fp32/vanilla/final", lambda a: None)})
            figure = rows(report, "vanilla/raw")[0]
            assert figure.limit == pytest.approx(expected, rel=1e-2)
            assert figure.relative_l2 == pytest.approx(part * expected, rel=2e-2)
            assert report.holds is holds


def test_the_candidates_own_rounding_never_widens_its_limit(golden: Artifact, ported: Artifact) -> None:
    good, bad = recorded(golden, port.candidate, "fp32"), recorded(golden, port.candidate, "fp32")
    bad = with_array(bad, "fp32/gradcam/raw", lambda a: np.multiply(a, 1.01, out=a))
    limits = [{(f.stage, f.photograph): f.limit for f in compare(golden, {"fp32": one}).figures} for one in (good, bad)]
    assert limits[0] == limits[1]


def test_a_lost_exp_of_the_reference_does_not_widen_the_limit(golden: Artifact) -> None:
    """Where exp(score) overflowed, the reference's float32 is 100 % off or not finite: no measure of rounding."""
    before = {f.stage: f.limit for f in verdict.figures(golden, recorded(golden, port.candidate, "fp32"), "fp32")}

    def overflow(array: np.ndarray) -> None:
        array[1] = 0

    lost = with_array(golden, "fp32/gradcam_plus_plus/raw", overflow)
    lost = with_array(lost, "fp64/score", lambda a: a.__setitem__(1, 500.0))
    assert [verdict.exp_is_lost(lost, i) for i in (0, 1)] == [False, True]
    assert [verdict.exp_is_lost(golden, i) for i in (0, 1)] == [False, False]
    after = {f.stage: f.limit for f in verdict.figures(lost, recorded(golden, port.candidate, "fp32"), "fp32")}
    assert after["gradcam_plus_plus/raw"] < 10 * before["gradcam_plus_plus/raw"]


def test_simulated_rounding_is_of_the_size_of_the_real_one(golden: Artifact) -> None:
    simulated = verdict._simulated(golden)
    for quantity in ("alpha", "weights", "raw", "final"):
        real = golden.floor(f"gradcam_plus_plus/{quantity}").relative_l2.max()
        assert 0.1 < simulated[f"gradcam_plus_plus/{quantity}"][0] / real < 30


def test_a_score_near_zero_is_measured_on_the_logits(golden: Artifact, ported: Artifact) -> None:
    near_zero = with_array(golden, "fp64/score", lambda a: a.__setitem__(0, 1e-6))

    def push(array: np.ndarray) -> None:
        array[0] = 1e-6 + 1e-13

    report = compare(near_zero, {"fp64": with_array(ported, "fp64/score", push)})
    figure = rows(report, "score")[0]
    assert figure.within
    assert figure.max_error == pytest.approx(1e-13 / np.linalg.norm(golden.whole("logits", "fp64")[0]), rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_values_that_are_not_finite_differ(value: float, precision: str, golden: Artifact) -> None:
    def broken(job: Job) -> Iterator[port.Row]:
        for i, stage, array in port.candidate(job):
            if stage == "gradcam/raw":
                array = array.copy()
                array[0, 0] = value
            yield i, stage, array

    report = compare(golden, {precision: recorded(golden, broken, precision)})
    assert not report.holds
    assert word(report, "gradcam") == verdict.DIFFERENT
    divergence = next(v for v in report.verdicts if v.method == "gradcam").divergences[0]
    assert divergence.stage == "gradcam/raw"
    assert "not finite" in divergence.cause
    assert json.loads(report.as_json())["holds"] is False


def test_a_constant_map_is_found(golden: Artifact) -> None:
    def zero(job: Job) -> Iterator[port.Row]:
        return ((i, s, array * 0 if s.startswith("gradcam/") else array) for i, s, array in port.candidate(job))

    report = compare(golden, {"fp32": recorded(golden, zero, "fp32")})
    assert word(report, "gradcam") == verdict.DIFFERENT
    assert math.isnan(rows(report, "gradcam/raw")[0].pearson)


def test_reduced_precision_is_described_not_judged(golden: Artifact) -> None:
    report = compare(golden, {"bf16": recorded(golden, port.candidate, "bf16")})
    assert {v.word for v in report.verdicts} <= {verdict.DESCRIBED, verdict.SAME_ROUNDING}
    assert word(report, "vanilla") == verdict.DESCRIBED
    assert report.holds  # nothing was judged


def test_the_path_of_a_cam_ends_at_its_layer(golden: Artifact) -> None:
    path = verdict.path_to("gradcam", golden.stages, "block3_conv3")
    assert path[0] == "inputs"
    assert "gradients/block3_conv3" in path
    assert "gradients/block3_conv2" not in path
    assert path[-1] == "gradcam/final"
    assert "gradients/inputs" in verdict.path_to("vanilla", golden.stages, "block3_conv3")


# assert_parity


def gradcam_of(change: Callable[[np.ndarray], np.ndarray]) -> candidates.Candidate:
    def candidate(job: Job) -> Iterator[port.Row]:
        for i, stage, array in port.candidate(job):
            yield i, stage, change(array) if stage == "gradcam/weights" and i == 1 else array

    return candidate


def test_assert_parity_returns_the_report() -> None:
    report = assert_parity(port.candidate, TINY_NPZ, precisions=["fp64"], methods=["gradcam"])
    assert report.holds
    assert {v.method for v in report.verdicts} == {"network", "gradcam"}


def test_assert_parity_says_where_and_why(golden: Artifact) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_parity(gradcam_of(lambda weights: 64 * weights), golden, precisions=["fp64"])
    message = str(caught.value)
    # method, photograph, precision, stage, figure, limit, cause
    assert "gradcam, coffee.png, fp64: parts first at gradcam/weights (" in message
    assert "limit 1e-09): sum of the gradients for their mean" in message
    assert "chelsea.png" not in message


def test_assert_parity_takes_a_name_and_an_artifact(golden: Artifact, ported: Artifact, tmp_path: Path) -> None:
    assert assert_parity("parity.port:candidate", golden, precisions=["fp64"], methods=["gradcam"]).holds
    assert assert_parity(ported, golden).holds
    ported.write(tmp_path / "theirs.npz")
    assert assert_parity(tmp_path / "theirs.npz", TINY_NPZ).holds
    with pytest.raises(AssertionError, match="gradcam/raw"):
        assert_parity(with_array(ported, "fp64/gradcam/raw", lambda a: np.multiply(a, 1.1, out=a)), golden)


# A candidate that shares nothing with this project's port


def foreign(job: Job) -> dict[str, np.ndarray]:
    """Somebody else's port: plain PyTorch, in a page."""
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[job.precision]
    tensors = {name: torch.tensor(array, dtype=dtype) for name, array in job.network.tensors.items()}
    mean = torch.tensor([103.939, 116.779, 123.68], dtype=dtype)
    inputs = (torch.tensor(job.pixels[..., ::-1].copy(), dtype=dtype) - mean).permute(0, 3, 1, 2)

    def gradients(image: torch.Tensor, category: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = leaf = image[None].clone().requires_grad_()
        for layer in job.layers:
            w, b = (tensors.get(f"{layer.torch}.{kind}") for kind in ("weight", "bias"))
            if layer.kind == "conv":
                x = F.conv2d(x, w, b, padding=1).relu()
                target = x if layer == job.architecture.target else None
                kept = target if target is not None else leaf
            elif layer.kind == "pool":
                x = F.max_pool2d(x, 2)
            elif layer.kind == "dense":
                x = F.linear(x.flatten(1), w, b)
                x = x if layer.keras == "predictions" else x.relu()
        return *torch.autograd.grad(x[0, category], [leaf, kept]), kept.detach()

    found: dict[str, list[torch.Tensor]] = {f"{method}/raw": [] for method in job.methods}
    for image, category in zip(inputs, job.classes, strict=True):
        to_input, g, a = gradients(image, category)
        found["vanilla/raw"].append(to_input.abs().amax(1)[0])
        sigma = job.noise_level * float(image.max() - image.min())
        noisy = [image + torch.tensor(sigma * unit).permute(2, 0, 1).to(dtype) for unit in job.noise()]
        found["smoothgrad/raw"].append(sum(gradients(x, category)[0].abs() for x in noisy).amax(1)[0] / job.n_samples)  # type: ignore[union-attr]
        found["gradcam/raw"].append((g.mean((2, 3), keepdim=True) * a).sum(1)[0].relu())
        alpha = torch.where(g != 0, 1 / (2 + g * a.sum((2, 3), keepdim=True)), 0)
        total = alpha.sum((2, 3), keepdim=True)
        weights = (g.relu() * alpha / torch.where(total == 0, 1, total)).sum((2, 3), keepdim=True)
        found["gradcam_plus_plus/raw"].append((weights * a).sum(1)[0].relu())
    return {stage: torch.stack(maps).numpy() for stage, maps in found.items()}


def test_a_foreign_port_holds_in_both_precisions(golden: Artifact) -> None:
    report = assert_parity(foreign, golden)
    assert {(v.method, v.precision) for v in report.verdicts} == {(m, p) for m in METHODS for p in ("fp64", "fp32")}


def test_the_jobs_weights_are_a_file_too(golden: Artifact) -> None:
    from parity.contract.network import read

    assert golden.network is not None
    job = candidates.job_of(golden, golden.network, precision="fp64", device="cpu")
    network = read(job.weights)
    assert network is not None
    assert network.fingerprint == golden.weights.fingerprint
    assert job.weights == job.weights  # written once


def test_the_jobs_noise_is_the_references(golden: Artifact, ported: Artifact) -> None:
    job = candidates.job_of(golden, golden.network, precision="fp64", device="cpu")  # type: ignore[arg-type]
    x = formulas.preprocess(golden.pixels[0], "caffe")
    noise = np.stack([job.noise_level * np.ptp(x) * unit for unit in job.noise()])
    stage = golden.stage("smoothgrad/noise")
    np.testing.assert_allclose(stage.take(noise[None])[0], golden.values("smoothgrad/noise", "fp64")[0], rtol=1e-12)


# Candidates that cannot be loaded or used


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere_at_all:candidate", "No module named 'nowhere_at_all'"),
        ("parity.port:nothing", "has no function nothing"),
        ("parity.candidate:DEFAULT", "has no function DEFAULT"),
        ("parity.port", "give module:function"),
        (":candidate", "give module:function"),
        ("parity.port:", "give module:function"),
    ],
)
def test_a_candidate_that_is_not_there(name: str, words: str) -> None:
    with pytest.raises(CandidateError, match=words) as caught:
        candidates.load(name)
    assert "\n" not in str(caught.value)


def answers(golden: Artifact, **stages: Any) -> candidates.Candidate:
    """Raw maps that are right, and what is given beside them."""
    right = {f"{m}/raw": golden.whole(f"{m}/raw", "fp64") for m in METHODS}
    return lambda job: {**right, **{name.replace("__", "/"): value for name, value in stages.items()}}


def test_the_right_maps_alone_are_enough(golden: Artifact) -> None:
    report = compare(golden, {"fp64": recorded(golden, answers(golden))})
    assert report.holds
    assert {v.method for v in report.verdicts} == set(METHODS)


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
        ({"gradcam__raw": np.zeros((2, 8, 8), complex)}, "expected real numbers"),
        ({"gradcam__raw": [None, None]}, "gradcam/raw"),
        ({"pixels": np.zeros((2, 32, 32, 3))}, "'pixels' is unknown here"),
    ],
)
def test_an_answer_that_cannot_be_used(stages: dict[str, Any], words: str, golden: Artifact) -> None:
    with pytest.raises(CandidateError, match=words) as caught:
        recorded(golden, answers(golden, **stages))
    assert "\n" not in str(caught.value)


def test_raw_maps_are_required(golden: Artifact) -> None:
    one = lambda job: iter([(0, "gradcam/raw", np.zeros((8, 8)))])  # noqa: E731
    with pytest.raises(CandidateError, match="no gradcam/raw for every photograph: raw maps are required"):
        recorded(golden, one, methods=["gradcam"])
    with pytest.raises(CandidateError, match="no vanilla/raw"):
        recorded(golden, lambda job: {})


@pytest.mark.parametrize("answer", [None, 3, [1, 2], [("gradcam/raw", 0)], iter([None])])
def test_an_answer_of_another_kind(answer: Any, golden: Artifact) -> None:
    with pytest.raises(CandidateError, match="neither a mapping"):
        recorded(golden, lambda job: answer)


def test_a_photograph_given_twice(golden: Artifact) -> None:
    twice = lambda job: iter(2 * [(0, "gradcam/raw", np.zeros((8, 8)))])  # noqa: E731
    with pytest.raises(CandidateError, match="recorded twice"):
        recorded(golden, twice, methods=["gradcam"])


@pytest.mark.parametrize(
    ("stage", "shape", "words"),
    [
        ("gradcam/raw", (4, 4), "pooled target: its shape is 4×4, the reference's 8×8"),
        (
            "gradcam/raw",
            (16, 16),
            "another target layer: its shape is 16×16, the reference's 8×8, that of block2_conv2",
        ),
        ("gradcam/raw", (7, 5), "another target layer: its shape is 7×5"),
        ("gradcam/final", (8, 8), "not enlarged to the photograph's size"),
        ("vanilla/raw", (28, 28), "another size: its shape is 28×28, the reference's 32×32"),
    ],
)
def test_a_map_of_another_size_differs(stage: str, shape: tuple[int, int], words: str, golden: Artifact) -> None:
    report = compare(
        golden, {"fp64": recorded(golden, answers(golden, **{stage.replace("/", "__"): np.ones((2, *shape))}))}
    )
    method = stage.partition("/")[0]
    assert [v.method for v in report.verdicts if not v.holds] == [method]
    divergence = next(v for v in report.verdicts if not v.holds).divergences[0]
    assert divergence.stage == stage
    assert words in divergence.cause


def test_a_size_survives_the_file(golden: Artifact, tmp_path: Path) -> None:
    recorded(golden, answers(golden, gradcam__raw=np.ones((2, 4, 4)))).write(tmp_path / "a.npz")
    with pytest.raises(AssertionError, match="pooled target"):
        assert_parity(tmp_path / "a.npz", golden)


# Two artifacts that did different jobs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {"weights": replace(a.weights, fingerprint="0" * 64)}, "different weights: .*000000000000"),
        (lambda a: {"photographs": (replace(a.photographs[0], class_index=9), a.photographs[1])}, "different classes"),
        (lambda a: {"arrays": {**a.arrays, "pixels": a.pixels ^ 1}}, "different pixels"),
        (lambda a: {"settings": replace(a.settings, n_samples=5)}, "different n_samples: .*5, the reference 4"),
        (lambda a: {"settings": replace(a.settings, noise_level=0.1)}, "different noise_level"),
        (lambda a: {"settings": replace(a.settings, seed=1)}, "different seed"),
        (lambda a: {"settings": replace(a.settings, input="torchvision")}, "different input"),
        (lambda a: {"settings": replace(a.settings, sample=7)}, "different sample"),
    ],
)
def test_another_job_is_refused_by_name(
    change: Callable[[Artifact], Any], words: str, golden: Artifact, ported: Artifact
) -> None:
    with pytest.raises(CandidateError, match=words):
        compare(golden, {"fp64": changed(ported, **change(ported))})


def test_what_is_not_in_the_artifacts_is_refused(golden: Artifact, ported: Artifact) -> None:
    with pytest.raises(CandidateError, match="holds fp64, not fp32"):
        compare(golden, {"fp32": ported})
    single = {n: a for n, a in golden.arrays.items() if "fp64" not in n}
    with pytest.raises(CandidateError, match="no float64"):
        compare(changed(golden, arrays=single), {"fp64": ported})
    only = changed(golden, settings=replace(golden.settings, methods=("gradcam",)))
    with pytest.raises(CandidateError, match="does not hold vanilla, smoothgrad, gradcam_plus_plus"):
        compare(only, {"fp64": ported})
    without = {n: a for n, a in ported.arrays.items() if n != "fp64/vanilla/raw"}
    with pytest.raises(CandidateError, match="lacks vanilla/raw in fp64: raw maps are required"):
        compare(golden, {"fp64": changed(ported, arrays=without)})


def test_other_weights_and_methods_are_refused_before_work(golden: Artifact) -> None:
    from parity.contract.network import seeded

    with pytest.raises(CandidateError, match="are not those of the reference"):
        candidates.job_of(golden, seeded(1, golden.weights.architecture), precision="fp64", device="cpu")
    only = changed(golden, settings=replace(golden.settings, methods=("gradcam",)))
    with pytest.raises(CandidateError, match="does not hold vanilla: it holds gradcam"):
        candidates.job_of(only, golden.network, precision="fp64", device="cpu", methods=["vanilla"])  # type: ignore[arg-type]


# Causes that the fault suite has no port for


def cause(
    golden: Artifact, stage: str, change: Callable[[np.ndarray, int], np.ndarray], precision: str = "fp64"
) -> str:
    """What is said when one stage of an otherwise right answer is changed: change(array, photograph)."""

    def candidate(job: Job) -> Iterator[port.Row]:
        for i, name, array in port.candidate(job):
            yield i, name, change(np.asarray(array, np.float64), i) if name == stage else array

    report = compare(golden, {precision: recorded(golden, candidate, precision)})
    assert not report.holds
    return next(d.cause for v in report.verdicts for d in v.divergences if d.stage == stage)


def half_of_the_units(values: np.ndarray, i: int) -> np.ndarray:
    return np.where(np.cumsum(values > 0) % 2, 2 * values, 0)


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("inputs", lambda x, i: x / 127.5, ""),
        ("activations/fc1", half_of_the_units, "dropout is on"),
        ("activations/block2_conv1", lambda x, i: x - 0.3 * (x > 0), "a missing or another bias"),
        (
            "activations/block1_conv2",
            lambda x, i: x * (1 + 3e-4 * np.sin(np.arange(x.size)).reshape(x.shape)),
            "half precision",
        ),
        ("activations/block1_conv2", lambda x, i: x.astype(np.float32), "float32's size"),
        ("logits", lambda x, i: x + 3, "a constant was added to every logit"),
        ("logits", lambda x, i: x - np.logaddexp.reduce(x), "log-softmax left on"),
        ("logits", lambda x, i: x + np.arange(10), "off by the same amount in every photograph"),
        ("logits", lambda x, i: x[::-1], "look for"),
        ("score", lambda x, i: x * 0.9, "look for another class"),
        ("gradients/block3_conv3", lambda x, i: x / 2, "0.5 times the reference's"),
        ("smoothgrad/noise", lambda x, i: 3 * x, "σ is"),
        ("vanilla/raw", lambda x, i: x * np.linspace(1, 3, x.size).reshape(x.shape), "sum over the colour channels"),
        ("vanilla/raw", lambda x, i: 2.5 * x, "2.5 times the reference's: a constant factor"),
        ("gradcam/weights", lambda x, i: np.abs(x) + 1, "look for the target layer"),
        ("gradcam/final", lambda x, i: x * 0 + np.nan, "not finite"),
    ],
)
def test_a_cause_is_named(
    stage: str, change: Callable[[np.ndarray, int], np.ndarray], words: str, golden: Artifact
) -> None:
    assert words in cause(golden, stage, change)


def test_a_gradient_that_no_map_is_made_of_does_not_decide(golden: Artifact) -> None:
    """Behind a closed ReLU two right programs may differ: it is shown, and decides nothing."""

    def candidate(job: Job) -> Iterator[port.Row]:
        for i, name, array in port.candidate(job):
            yield i, name, array + 1 if name == "gradients/block1_conv2" else array

    report = compare(golden, {"fp64": recorded(golden, candidate)})
    assert report.holds
    assert not any(figure.within or figure.judged for figure in rows(report, "gradients/block1_conv2"))


def test_a_cause_is_not_named_where_it_does_not_explain(golden: Artifact) -> None:
    noise = np.random.RandomState(0)
    for stage in (
        "activations/fc1",
        "activations/fc2",
        "activations/block2_conv2",
        "logits",
        "vanilla/raw",
        "gradcam/raw",
    ):
        said = cause(golden, stage, lambda x, i: x * noise.uniform(0.2, 2.5, x.shape))
        assert said.startswith("look for"), (stage, said)


@pytest.mark.parametrize("kind", ["caffe", "torchvision"])
def test_every_wrong_input_is_told_from_the_right_one(kind: str, golden: Artifact) -> None:
    right = formulas.preprocess(golden.pixels[0], kind)
    wrong = dict(causes._wrong_inputs(golden.pixels[0], kind))
    assert len(wrong) >= 7
    everyone = [right, *wrong.values()]
    for i, one in enumerate(everyone):
        for other in everyone[i + 1 :]:
            assert similarity.relative_l2(one, other) > 2 * causes.EXPLAINS or kind == "torchvision"


# The command line


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The worker without a process of its own: the tests that need one have it."""

    def run(module: str, arguments: list[str], *, quiet: bool = False) -> None:
        assert module == "parity.worker"
        before = capsys.readouterr()
        status = worker.main(list(arguments))
        said = capsys.readouterr().err
        sys.stderr.write(before.err)
        sys.stdout.write(before.out)
        if status:
            raise ProcessError(said.strip())

    monkeypatch.setattr(command, "run", run)


def arguments(out: Path, *more: str) -> list[str]:
    return ["--reference", str(TINY_NPZ), "--device", "cpu", "--no-ladder", "--out", str(out), *more]


def test_the_command_ends_with_0_where_the_port_holds(tmp_path: Path) -> None:
    done = run_program("-m", "parity", *arguments(tmp_path / "out", "--precision", "fp64"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Verdict: the same function (fp64)" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    assert "Traceback" not in done.stderr


WRONG = """
import numpy as np
from parity.port import candidate as right

def candidate(job):
    print("a candidate may print")
    for photograph, stage, array in right(job):
        yield photograph, stage, array * 64 if stage in ("gradcam/weights", "gradcam/raw") else array

def broken(job):
    return 1 / 0

def noisy(job):
    raise ValueError("a line\\nand another")
"""


def test_the_command_ends_with_1_where_a_candidate_differs(tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(WRONG)
    more = ["--candidate", "somebodys:candidate", "--precision", "fp64", "--methods", "gradcam"]
    done = run_program("-m", "parity", *arguments(tmp_path / "out", *more), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "parts first at gradcam/weights" in done.stdout
    assert "sum of the gradients for their mean" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["holds"] is False
    assert report["verdict"] == "different"
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("broken", "the candidate failed: ZeroDivisionError: division by zero (somebodys_own.py:11)"),
        ("noisy", "a line and another"),
    ],
)
def test_the_command_ends_with_2_where_a_candidate_breaks(
    name: str,
    line: str,
    tmp_path: Path,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "somebodys_own.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    more = ["--candidate", f"somebodys_own:{name}", "--precision", "fp64", "--quiet"]
    assert refused(capsys, *arguments(tmp_path / "out", *more)) == f"parity: error: {line}"
    assert not (tmp_path / "out").exists()


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of a command that ends with 2."""
    try:
        status = command.main(list(options))
    except SystemExit as exited:
        status = int(exited.code or 0)
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith(("[", "  "))]
    assert status == 2
    assert len(lines) == 1, said.err
    assert "error: " in lines[0]
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "fp8"], "--precision 'fp8' is unknown; known: "),
        (["--methods", "lime"], "method 'lime' is unknown"),
        (["--samples", "9"], "--samples 9: the reference artifact was made with 4"),
        (["--noise", "0.5"], "--noise 0.5: the reference artifact was made with 0.2"),
        (["--seed", "3"], "--seed 3: the reference artifact was made with 0"),
        (["--input", "torchvision"], "made with caffe"),
        (["--classes", "1,2"], "--classes: the reference artifact explains 4, 7"),
        (["--classes", "1,2,3"], "classes"),
        (["--resize", "half"], "invalid choice"),
        (["--candidate", "nowhere_at_all:x", "--precision", "fp64"], "No module named 'nowhere_at_all'"),
        (["--candidate", "nowhere.npz", "--precision", "fp64"], "nowhere.npz"),
        (["no-such-photograph.png"], "no-such-photograph.png"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    options: list[str], words: str, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *arguments(tmp_path / "out"), *options)
    assert words in line
    assert not (tmp_path / "out").exists()


def test_artifacts_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(TINY_NPZ.read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(data)
    (tmp_path / "text.npz").write_text("hello")
    for name, words in (("damaged.npz", "damaged"), ("missing.npz", "No such file"), ("text.npz", "not a whole .npz")):
        line = refused(capsys, "--reference", str(tmp_path / name), "--out", str(tmp_path / "out"))
        assert words in line
        assert name in line
        line = refused(capsys, *arguments(tmp_path / "out"), "--candidate", str(tmp_path / name))
        assert name in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda(tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *arguments(tmp_path / "out"), "--device", "cuda", "--precision", "fp32")
    assert "cuda" in line.lower()


def test_without_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from parity import reference

    # Whether the others are installed here must not matter.
    monkeypatch.setattr(reference.util, "find_spec", lambda name, *_: None if name == "tensorflow" else object())
    line = refused(capsys, "--out", str(tmp_path / "out"))
    assert "the reference needs tensorflow: pip install 'attention-maps[keras]'" in line
    assert "--reference" in line


def test_the_folder_is_not_touched_before_everything_is_there(
    tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pytest.importorskip("parity.page")
    monkeypatch.setattr(page, "render", lambda report: 1 / 0)
    assert command.main(arguments(tmp_path / "out", "--precision", "fp64", "--methods", "gradcam")) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    (tmp_path / "a file").write_text("mine")
    assert "is not a folder" in refused(capsys, *arguments(tmp_path / "a file"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "report.json").write_text('{"format": "another program"}')
    assert "not ours" in refused(capsys, *arguments(tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "report.json").read_text() == '{"format": "another program"}'


def without_times(text: str) -> Any:
    report = json.loads(text)
    for side in (report["reference"], *report["candidate"].values()):
        side["seconds"] = None
    return report


def test_two_runs_say_the_same(tmp_path: Path, in_process: None) -> None:
    texts = []
    for name in ("one", "two"):
        out = tmp_path / name
        assert command.main([*arguments(out), "--quiet"]) == 0
        texts.append((out / "report.json").read_text())
    first, second = map(without_times, texts)
    assert first == second
    assert first["holds"] is True
    assert len(first["verdicts"]) == 10


def test_an_artifact_as_candidate(
    tmp_path: Path, golden: Artifact, ported: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    ported.write(tmp_path / "theirs.npz")
    assert command.main(arguments(tmp_path / "out", "--candidate", str(tmp_path / "theirs.npz"), "--quiet")) == 0
    assert capsys.readouterr().out == "Verdict: the same function (fp64)\n"
    wrong = with_array(ported, "fp64/gradcam/raw", lambda a: np.multiply(a, 1.1, out=a))
    rewritten(wrong, golden).write(tmp_path / "wrong.npz")
    assert command.main(arguments(tmp_path / "out", "--candidate", str(tmp_path / "wrong.npz"), "--quiet")) == 1
    assert capsys.readouterr().out == "Verdict: different\n"


def rewritten(artifact: Artifact, golden: Artifact) -> Artifact:
    """The raw maps of an artifact as another program would write them."""
    recorder = Recorder(golden.weights.architecture, golden.settings, golden.pixels)
    for method in METHODS:
        for i, drawn in enumerate(artifact.whole(f"{method}/raw", "fp64")):
            recorder.add("fp64", i, f"{method}/raw", drawn)
    return recorder.artifact(
        program="another program", photographs=golden.photographs, weights=golden.weights, versions={}, flags={}
    )


def test_quiet_prints_the_verdict_alone(tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(arguments(tmp_path / "out", "--precision", "fp64", "--methods", "gradcam", "--quiet"))
    said = capsys.readouterr()
    assert said.out == "Verdict: the same function (fp64)\n"
    assert said.err == ""


def test_the_ladder_ends_at_the_reference(tmp_path: Path, in_process: None) -> None:
    options = [
        "--reference",
        str(TINY_NPZ),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--precision",
        "fp32",
        "--quiet",
    ]
    assert command.main(options) == 0
    ladder = json.loads((tmp_path / "out" / "report.json").read_text())["ladder"]
    for method in METHODS:
        rungs = [rung for rung in ladder if rung["method"] == method]
        assert min(rungs[-1]["pearson"]) > 0.99999, rungs[-1]
        assert rungs[-1]["what"].endswith("(the port)")
        assert min(rungs[0]["pearson"]) < 0.999


def test_the_shared_engine_is_the_reference_too(golden):
    """Every map of the shared engine holds against Keras's and tf-keras-vis's own, in both precisions."""
    found = {p: recorded(golden, port.shared, p) for p in ("fp64", "fp32")}
    report = compare(golden, found)
    assert report.holds, report.as_table()
