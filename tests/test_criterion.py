"""The criterion and the judge's own formulas: on paper, and at both sides of every limit on the golden reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judging import altered, compared, divergences, recorded, rows, with_array, word
from tolerances import FLOAT64

from parity import criterion, formulas, rounding
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.contract.layers import LayerTable
from parity.contract.methods import METHODS
from parity.contract.vgg import VGG16, vgg
from parity.rounding import Floor, blocks_of, floor_between, undecided
from torch_impl.candidate import candidate as port

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ported(golden: Artifact) -> Artifact:
    """The port's own answer in float64."""
    return recorded(golden, port)


@pytest.fixture(scope="module")
def single(golden: Artifact) -> Artifact:
    """The same in float32."""
    return recorded(golden, port, "fp32")


# The judge's formulas. Its known mistakes are made by the port in `test_faults`, and named there.


@pytest.mark.parametrize("name", ["golden", "family"])
def test_every_step_of_the_reference_is_the_judge_s_formula(name: str, request: pytest.FixtureRequest) -> None:
    reference = request.getfixturevalue(name)
    steps = {f.stage: f.alone for f in criterion.figures(reference, reference, "fp64") if not math.isnan(f.alone)}
    own = [s for s in reference.stages if s.method and s.quantity not in ("noise", "scores", "final_with_exp")]
    assert steps.keys() == {"inputs", "score", *(s.name for s in own if s.name not in AT_INPUT)}
    assert max(steps.values()) < FLOAT64, steps


AT_INPUT = ("vanilla/raw", "smoothgrad/raw")
"""Maps that are gradients, which the judge has no formula of."""


def test_torchvision_s_preprocessing_of_one_pixel() -> None:
    pixel = np.array([[[255, 0, 51]]], np.uint8)  # R, G, B
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(formulas.preprocess(pixel, "torchvision"), [[expected]])
    with pytest.raises(ValueError, match="unknown"):
        formulas.preprocess(pixel, "keras")


def test_channels_of_a_candidate_that_are_none() -> None:
    given = {"activations": np.ones((2, 2, 3)), "channels": np.array([np.nan]), "weights": np.array([2.0])}
    made = formulas.score_cam(given)
    assert "raw" not in made
    assert formulas.most_varied(given["activations"], 2).tolist() == [0, 1]  # of equal ones the first


@pytest.mark.parametrize("half_pixel", [False, True])
def test_bicubic_is_pytorch_s(half_pixel: bool) -> None:
    cam = np.random.RandomState(0).rand(5, 4)
    expected = F.interpolate(torch.tensor(cam)[None, None], (12, 14), mode="bicubic", align_corners=not half_pixel)
    np.testing.assert_allclose(formulas.bicubic(cam, (12, 14), half_pixel=half_pixel), expected[0, 0], atol=1e-12)


def test_pooling_on_paper() -> None:
    features = np.arange(20.0).reshape(4, 5, 1)  # the fifth column has no partner
    np.testing.assert_array_equal(formulas.max_pool(features)[..., 0], [[6, 8], [16, 18]])


def test_the_floor_on_paper() -> None:
    # b = (3, 4, 0), a = (3, 5, 0): ‖a − b‖ = 1, ‖b‖ = 5, range 4
    floor = floor_between(np.array([3, 5, 0.0], np.float32), np.array([3, 4, 0.0]), is_map=True)
    assert (floor.relative_l2, floor.max_error) == (1 / 5, 1 / 4)
    # centred: b (2, 5, −7)/3, a (1, 7, −8)/3: r = (2·1 + 5·7 + 7·8) / √((4 + 25 + 49)(1 + 49 + 64))
    assert floor.pearson == pytest.approx(93 / math.sqrt(78 * 114))
    assert math.isnan(floor_between(np.ones(3), np.arange(3.0), is_map=False).pearson)


# A score halfway between two float32 numbers


def with_score(artifact: Artifact, method: str, score: float, weight: np.float32) -> Artifact:
    """The artifact as if its first photograph's first score of this method were this one, and were rounded to this weight."""

    def put(values: dict[str, np.ndarray]) -> Artifact:
        changed = artifact
        for quantity, array in values.items():
            stage = artifact.stage(f"{method}/{quantity}")
            kept = stage.take(np.asarray(array, np.float64)[None])[0]
            changed = with_array(
                changed, f"fp64/{stage.name}", lambda a, kept=kept: a.reshape(2, -1).__setitem__(0, kept)
            )
        return changed

    own = {name: artifact.whole(f"{method}/{name}", "fp64")[0].copy() for name in ("scores", "weights")}
    own["scores"][0], own["weights"][0] = score, weight
    given = {"activations": artifact.whole(f"activations/{artifact.table.target}", "fp64")[0], **own}
    if method == "faster_scorecam":
        given["channels"] = artifact.whole("faster_scorecam/channels", "fp64")[0]
    raw = formulas.score_cam(given)["raw"]
    drawn = formulas.enlarged(raw, artifact.table.size, 0)
    return put({**own, "raw": raw, "upsampled": drawn["upsampled"], "final": drawn["final"]})


@pytest.mark.parametrize("method", ["scorecam", "faster_scorecam"])
def test_either_rounding_of_a_score_halfway_is_right(method: str, family: Artifact) -> None:
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    middle = (float(low) + float(high)) / 2
    below, above = np.nextafter(middle, 0), np.nextafter(middle, 1)
    assert np.float32(below) == low < np.float32(above) == high
    reference = with_score(family, method, below, low)
    report = compare(reference, {"fp64": with_score(family, method, above, high)})
    assert report.holds, report.as_table()
    title = METHODS[method].title
    assert [line for line in report.reference["warnings"] if f"1 of {title}'s scores lie halfway" in line]
    assert max(row.max_error for row in rows(report, f"{method}/raw")) < 1e-15
    # Rounded the wrong way, or from another score, it differs.
    for score, weight, stage in ((below, high, "weights"), (middle * (1 + 1e-7), high, "scores")):
        wrong = compare(reference, {"fp64": with_score(family, method, score, weight)})
        assert divergences(wrong)[method][0].stage == f"{method}/{stage}"
        assert not any("halfway" in line for line in wrong.reference["warnings"])


# Limits


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
        assert figure.limit == limit == METHODS[method].float64_limit
        assert word(report, method) == (criterion.SAME_FUNCTION if holds else criterion.DIFFERENT)


def test_in_float32_the_limit_is_four_floors_of_the_run(golden: Artifact, single: Artifact) -> None:
    # The golden floors of vanilla saliency are below the least limit; a reference ten times worse sets its own.
    factor = np.array([[[1]], [[1 + 1e-4]]], np.float32)
    worse = with_array(golden, "fp32/vanilla/raw", lambda a: np.multiply(a, factor, out=a))
    for reference, expected in ((golden, 1e-5), (worse, 4e-4)):
        for part, holds in ((0.5, True), (2.0, False)):

            def push(array: np.ndarray, reference: Artifact = reference, factor: float = 1 + part * expected) -> None:
                array[0] = reference.whole("vanilla/raw", "fp64")[0] * factor  # the other photograph

            report = compare(reference, {"fp32": with_array(single, "fp32/vanilla/raw", push)})
            figure = rows(report, "vanilla/raw")[0]
            assert figure.limit == pytest.approx(expected, rel=1e-2)
            assert figure.relative_l2 == pytest.approx(part * expected, rel=2e-2)
            assert report.holds is holds


def test_a_map_must_correlate_as_far_as_the_reference_with_itself() -> None:
    expected = np.arange(4.0)
    own, better, none = Floor(0, 0, 0.99), Floor(0, 0, 1.0), Floor()
    assert criterion._correlates(0.9985, [none], expected) is False
    assert criterion._correlates(0.9991, [none, better], expected) is True
    assert criterion._correlates(0.9901, [own, better, none], expected) is True
    assert criterion._correlates(0.9899, [own, better, none], expected) is False
    assert criterion._correlates(math.nan, [own], expected) is False
    assert criterion._correlates(math.nan, [own], np.ones(4)) is True


def test_the_candidates_own_rounding_never_widens_its_limit(golden: Artifact, single: Artifact) -> None:
    bad = with_array(single, "fp32/gradcam/raw", lambda a: np.multiply(a, np.float32(1.01), out=a))
    limits = [
        {(f.stage, f.photograph): f.limit for f in compare(golden, {"fp32": one}).figures} for one in (single, bad)
    ]
    assert limits[0] == limits[1]


def test_a_lost_exp_of_the_reference_does_not_widen_the_limit(golden: Artifact, single: Artifact) -> None:
    """Where exp(score) overflowed, the reference's float32 is 100 % off or not finite: no measure of rounding."""
    before = {f.stage: f.limit for f in criterion.figures(golden, single, "fp32")}
    lost = with_array(golden, "fp32/gradcam_plus_plus/raw", lambda a: a.__setitem__(1, 0))
    lost = with_array(lost, "fp64/score", lambda a: a.__setitem__(1, 500.0))
    assert [rounding.exp_is_lost(lost, i) for i in (0, 1)] == [False, True]
    assert [rounding.exp_is_lost(golden, i) for i in (0, 1)] == [False, False]
    after = {f.stage: f.limit for f in criterion.figures(lost, single, "fp32")}
    assert after["gradcam_plus_plus/raw"] < 10 * before["gradcam_plus_plus/raw"]


def test_simulated_roundings_are_of_the_size_of_the_real_one_and_widen_the_limit(
    golden: Artifact, single: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = rounding.simulated(golden)
    assert {name.partition("/")[0] for name in simulated} == {"gradcam_plus_plus"}  # the only row that asks for it
    for quantity in ("alpha", "weights", "raw", "final"):
        stage = golden.stage(f"gradcam_plus_plus/{quantity}")
        assert len(simulated[stage.name]) == 2 * METHODS["gradcam_plus_plus"].simulated_roundings
        real = max(rounding.floor(golden, stage, i, np.ones(stage.kept, bool)).relative_l2 for i in (0, 1))
        assert 0.1 < max(floor.relative_l2 for floor in simulated[stage.name]) / real < 30
    limit = rows(compare(golden, {"fp32": single}), "gradcam_plus_plus/raw")[0].limit
    monkeypatch.setattr(rounding, "simulated", lambda reference: {})
    assert rows(compare(golden, {"fp32": single}), "gradcam_plus_plus/raw")[0].limit < limit


def test_a_map_without_a_formula_of_ours_is_compared_all_the_same(golden: Artifact, monkeypatch: Any) -> None:
    monkeypatch.setattr(formulas, "FORMULAS", {"gradcam_plus_plus": formulas.FORMULAS["gradcam_plus_plus"]})
    report = compared(golden, port, "fp64")
    assert word(report, "gradcam") == criterion.SAME_FUNCTION
    assert math.isnan(rows(report, "gradcam/raw")[0].alone)
    assert rows(report, "gradcam_plus_plus/raw")[0].alone < 1e-12
    assert divergences(compared(golden, altered(lambda a, i: 2 * a, "gradcam/raw"), "fp64")).keys() == {"gradcam"}


def test_the_error_of_a_step_alone(golden: Artifact) -> None:
    """Weights twice as large, and the map that follows from them: the map's own step is right."""
    report = compared(golden, altered(lambda a, i: 2 * a, "gradcam/weights", "gradcam/raw"), "fp64")
    assert rows(report, "gradcam/weights")[0].alone == pytest.approx(1)
    assert rows(report, "gradcam/raw")[0].relative_l2 == pytest.approx(1)
    assert rows(report, "gradcam/raw")[0].alone < 1e-12


def test_a_score_near_zero_is_measured_on_the_logits(golden: Artifact, ported: Artifact) -> None:
    near_zero = with_array(golden, "fp64/score", lambda a: a.__setitem__(0, 1e-6))
    pushed = with_array(ported, "fp64/score", lambda a: a.__setitem__(0, 1e-6 + 1e-13))
    figure = rows(compare(near_zero, {"fp64": pushed}), "score")[0]
    assert figure.within
    assert figure.max_error == pytest.approx(1e-13 / np.linalg.norm(golden.whole("logits", "fp64")[0]), rel=1e-3)


def test_a_raw_map_alone_is_judged_with_exp_of_the_reference_s_score(golden: Artifact) -> None:
    report = compared(golden, lambda job: (row for row in port(job) if row[1].endswith("/raw")), "fp64")
    judged = rows(report, "gradcam_plus_plus/final_with_exp")
    assert len(judged) == len(golden.photographs)
    assert all(figure.within for figure in judged)


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "fp64"), (np.inf, "fp32"), (-np.inf, "fp64")])
def test_values_that_are_not_finite_differ(value: float, precision: str, golden: Artifact) -> None:
    def broken(array: np.ndarray, i: int) -> np.ndarray:
        array[0, 0] = value
        return array

    report = compared(golden, altered(broken, "gradcam/raw"), precision)
    divergence = divergences(report)["gradcam"][0]
    assert divergence.stage == "gradcam/raw"
    assert "not finite" in divergence.cause
    assert json.loads(report.as_json())["holds"] is False


def test_a_constant_map_is_found(golden: Artifact) -> None:
    zero = altered(lambda a, i: 0 * a, *(f"gradcam/{q.name}" for q in METHODS["gradcam"].quantities))
    report = compared(golden, zero, "fp32")
    assert word(report, "gradcam") == criterion.DIFFERENT
    assert math.isnan(rows(report, "gradcam/raw")[0].pearson)
    assert next(m for m in report.map_figures if m.method == "gradcam").constant == "candidate"


def test_reduced_precision_is_described_not_judged(golden: Artifact) -> None:
    report = compared(golden, port, "bf16")
    assert {v.word for v in report.verdicts} <= {criterion.DESCRIBED, criterion.SAME_ROUNDING}
    assert word(report, "vanilla") == criterion.DESCRIBED
    assert report.holds  # nothing was judged


def test_a_gradient_that_no_map_is_made_of_does_not_decide(golden: Artifact) -> None:
    """Behind a closed ReLU two right programs may differ: it is shown, and decides nothing."""
    report = compared(golden, altered(lambda a, i: a + 1, "gradients/block1_conv2"), "fp64")
    assert report.holds
    assert not any(figure.within or figure.judged for figure in rows(report, "gradients/block1_conv2"))


def test_the_first_divergence_is_the_first_in_the_order_of_the_computation(golden: Artifact) -> None:
    late_and_early = altered(lambda a, i: 2 * a, "gradcam/raw", "gradcam/weights", "activations/block3_pool")
    found = divergences(compared(golden, late_and_early, "fp64"))
    assert found.keys() == {"network", "gradcam"}
    assert {d.stage for where in found.values() for d in where} == {"activations/block3_pool"}


def test_the_path_of_a_cam_ends_at_its_layer(golden: Artifact) -> None:
    path = criterion.path_to("gradcam", golden.stages, "block3_conv3")
    assert path[0] == "inputs"
    assert "gradients/block3_conv3" in path
    assert "gradients/block3_conv2" not in path
    assert path[-1] == "gradcam/final"
    assert "gradients/inputs" in criterion.path_to("vanilla", golden.stages, "block3_conv3")
    assert not any(name.startswith("gradcam") for name in criterion.path_to(criterion.NETWORK, golden.stages, "x"))


# Ties, on paper: one convolution, so a place of the first block sees 3×3 pixels; a window is 2×2.


def test_a_flat_photograph_ties_all_but_its_corners() -> None:
    """In a corner's window each place sees the padding from another side, and no other window's places see that corner."""
    expected = np.ones((8, 12), bool)
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    np.testing.assert_array_equal(undecided(np.full((8, 12, 3), 7, np.uint8), (1,)), expected)


def test_an_edge_along_the_rows_ties_beside_each_other_only() -> None:
    """Rows all alike from left to right, all different from top to bottom: only left and right neighbours tie."""
    pixels = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None], (8, 8, 3))
    tied = undecided(pixels, (1,))
    # Windows at columns (2, 3) and (4, 5) tie, and see columns 1 to 6; at (0, 1) and (6, 7) one place sees the padding.
    assert tied[:, 1:7].all()
    assert not tied[:, [0, 7]].any()


def test_a_dithered_photograph_ties_in_the_second_block_only() -> None:
    """Alternating columns: neighbours differ, places two pixels apart do not; a window of block 2 spans four pixels."""
    pixels = np.broadcast_to((np.arange(16, dtype=np.uint8) % 2 * 50)[None, :, None], (16, 16, 3)).copy()
    pixels += np.arange(16, dtype=np.uint8)[:, None, None]  # no ties from top to bottom
    assert not undecided(pixels, (1,)).any()
    # A place of block 2 sees its two columns and three more on either side: of eight places the middle four never see the
    # padding, and they see columns 1 to 14.
    tied = undecided(pixels, (1, 1))
    assert tied[:, 1:15].all()
    assert not tied[:, [0, 15]].any()


def flat(golden: Artifact) -> Artifact:
    """The golden reference as if its first photograph had been flat but for a corner."""

    def paint(pixels: np.ndarray) -> None:
        pixels[0] = 7
        pixels[0, :12, :12] = np.random.RandomState(0).randint(0, 256, (12, 12, 3))

    return with_array(golden, "pixels", paint)


def test_tied_pixels_are_left_out_of_gradients_alone(golden: Artifact, ported: Artifact) -> None:
    reference = flat(golden)
    tied = rounding.ties(reference, 0)
    assert 0.3 < tied.mean() < 1

    def spoil(array: np.ndarray) -> None:
        array[0][tied] += np.ptp(array[0])

    theirs = replace(ported, arrays={**ported.arrays, "pixels": reference.pixels})
    for method, holds in (("vanilla", True), ("smoothgrad", False)):
        report = compare(reference, {"fp64": with_array(theirs, f"fp64/{method}/raw", spoil)})
        figure = rows(report, f"{method}/raw")[0]
        assert figure.within is holds
        assert figure.left_out == (pytest.approx(tied.mean()) if holds else 0)
    assert any("left out of vanilla saliency and of the gradients" in line for line in report.reference["warnings"])
    assert rows(report, "gradients/block2_pool")[0].left_out > 0
    assert rows(report, "activations/block2_pool")[0].left_out == 0


def test_ties_are_known_of_chains_of_blocks_only(golden: Artifact, ported: Artifact) -> None:
    assert blocks_of(VGG16) == (2, 2, 3, 3, 3)
    assert blocks_of(vgg(((2,), (3, 3)), (4, 3), 5, 8)) == (1, 2)

    def other(**config: Any) -> LayerTable:
        layers = [
            replace(layer, config={**layer.config, **config})
            if layer.name in ("block2_conv1", "block1_pool")
            else layer
            for layer in golden.table.layers
        ]
        return replace(golden.table, layers=tuple(layers))

    for table in (other(strides=[2, 1]), other(kernel=[1, 1], window=[3, 3]), other(pool="average")):
        assert blocks_of(table) is None
        report = compare(replace(flat(golden), weights=replace(golden.weights, table=table)), {"fp64": replace(
            ported, arrays={**ported.arrays, "pixels": flat(golden).pixels})})  # fmt: skip
        assert rows(report, "gradients/inputs")[0].left_out == 0
        assert "ties in max-pools were not looked for" in report.reference["warnings"][-1]
