"""Faithfulness: every number by hand on a toy network, the libraries' own where they are right, and no more said than is known."""

from __future__ import annotations

import csv
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import FLOAT32, FLOAT64
from torch import nn

from torch_impl import Explainer
from torch_impl.__main__ import main
from torch_impl.capture.draw import opened
from torch_impl.faithfulness.baselines import BASELINES, baseline_maps
from torch_impl.faithfulness.comparison import compared, sentence
from torch_impl.faithfulness.metrics import COMPARED, METRICS, metrics_of
from torch_impl.faithfulness.passes import Removals, confidences, ranks_of
from torch_impl.faithfulness.randomized import likeness, stages_of, weighted_layers, with_random_layers
from torch_impl.preserve import ModelError

HEIGHT, WIDTH = 5, 6


@pytest.fixture
def toy():
    """A linear network of two classes on pictures of 5×6, float64: its probabilities are easily had by hand."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * HEIGHT * WIDTH, 2)).double()


@pytest.fixture
def given():
    """Two preprocessed pictures of σ = 1, and their maps, all values different."""
    generator = np.random.RandomState(2)
    inputs = torch.tensor(generator.normal(size=(2, 3, HEIGHT, WIDTH)))
    inputs /= inputs.std(dim=(1, 2, 3), keepdim=True)
    return inputs, generator.permutation(2 * HEIGHT * WIDTH).reshape(2, HEIGHT, WIDTH) / (2.0 * HEIGHT * WIDTH)


def asked(model, inputs, maps, removals, target=(0, 1), batch_size="auto"):
    capture = opened(model, None, engine="shared", batch_size=batch_size)
    return confidences(capture, inputs, target, maps, removals, "logits")


def by_hand(toy, image, chosen):
    logits = toy[1].weight.detach().numpy() @ np.asarray(image).ravel() + toy[1].bias.detach().numpy()
    return np.exp(logits[chosen]) / np.exp(logits).sum()


@pytest.mark.parametrize("target", [(0, 1), (1, 0)])
def test_every_number_by_hand(toy, given, target):
    inputs, maps = given
    removals = Removals(shares=(0.2, 0.5), steps=5, seed=7)
    told = asked(toy, inputs, {"map": maps}, removals, target)["map"]
    values = metrics_of(told, maps, removals.steps)
    for i, chosen in enumerate(target):
        image, order = inputs[i].numpy(), maps[i].ravel().argsort().argsort().reshape(HEIGHT, WIDTH)
        before, masked = by_hand(toy, image, chosen), by_hand(toy, image * maps[i], chosen)
        curve = [by_hand(toy, image * (order < HEIGHT * WIDTH * (1 - step / 5)), chosen) for step in range(6)]
        expected = {
            "drop": max(0, before - masked) / before,
            "increase": float(masked > before),
            "deletion": sum((a + b) / 2 / 5 for a, b in itertools.pairwise(curve)),
            "area": maps[i].mean(),
            "road_most": sum(told["most"][i]) / 2 - before,
            "road_least": sum(told["least"][i]) / 2 - before,
            "road": (values["road_least"][i] - values["road_most"][i]) / 2,
        }
        for name, value in expected.items():
            assert values[name][i] == pytest.approx(value, rel=FLOAT64), name


def test_as_pytorch_grad_cam_where_it_is_right(toy, given):
    from pytorch_grad_cam.metrics import cam_mult_image, road
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    inputs, maps = given[0][:1].float(), given[1][:1].astype(np.float32)
    toy = toy.float()
    told = asked(toy, inputs, {"map": maps}, Removals(shares=(0.3, 0.6)), target=(1,))["map"]
    values = metrics_of(told, maps, 10)
    target = [ClassifierOutputSoftmaxTarget(1)]
    drop = cam_mult_image.DropInConfidence()(inputs, maps, target, toy)
    # A difference there, a fraction in the paper.
    assert values["drop"] * told["before"] == pytest.approx(drop, abs=FLOAT32)
    assert values["increase"] == cam_mult_image.IncreaseInConfidence()(inputs, maps, target, toy)
    for kind, metric in (("most", road.ROADMostRelevantFirst), ("least", road.ROADLeastRelevantFirst)):
        for place, percentile in enumerate((70, 40)):
            torch.manual_seed(0)
            change = metric(percentile)(inputs, maps, target, toy)
            assert told[kind][:, place] - told["before"] == pytest.approx(change, abs=FLOAT32)


def test_the_noise_goes_with_the_inputs(toy, given):
    """Twice the inputs, half the weights: the same pictures."""
    inputs, maps = given
    told = asked(toy, inputs, {"map": maps}, Removals())["map"]
    toy[1].weight.data /= 2
    twice = asked(toy, 2 * inputs, {"map": maps}, Removals())["map"]
    for kind, values in told.items():
        np.testing.assert_allclose(twice[kind], values, rtol=FLOAT32)


def test_of_equal_pixels_a_share_is_taken(toy):
    """pytorch-grad-cam's threshold takes all of this map away, and has nothing left to fill in from."""
    half_zero = np.zeros((1, HEIGHT, WIDTH))
    half_zero[0, :, 4:] = np.arange(1, 11).reshape(HEIGHT, 2) / 10
    ranks = ranks_of(half_zero[0], 0)
    assert len(ranks.unique()) == HEIGHT * WIDTH
    assert (ranks[:, 4:] > ranks[:, :4].max()).all()
    assert (ranks_of(half_zero[0], 1) != ranks).any()
    inputs = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.float64) + torch.arange(3)[:, None, None]
    told = asked(toy, inputs, {"map": half_zero}, Removals(shares=(0.9,)), target=(0,))["map"]
    assert told["most"][0, 0] == pytest.approx(told["before"][0], abs=0.1)  # an even picture is filled in as it was


@pytest.mark.parametrize("batch_size", [1, 3])
def test_passes_are_shared_and_say_the_same(toy, given, batch_size):
    inputs, maps = given
    first = asked(toy, inputs, {"a": maps, "b": 1 - maps}, Removals())
    second = asked(toy, inputs, {"a": maps, "b": 1 - maps}, Removals(), batch_size=batch_size)
    for name in first:
        for kind, values in first[name].items():
            np.testing.assert_allclose(values, second[name][kind], rtol=FLOAT64)


def test_a_map_of_what_the_network_sees_is_better_by_every_metric():
    """The network sees the left half alone; one map points there, the other elsewhere."""

    class Left(nn.Module):
        def forward(self, inputs):
            score = inputs[..., :4].mean(dim=(1, 2, 3))
            return torch.stack([score, -score], dim=1)

    picture = torch.full((1, 3, 8, 8), 2.0) + torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture[..., 4:] = -2
    left = np.tile(np.r_[1, 0.9, 0.9, 0.9, 0.3, 0.2, 0.1, 0].astype(np.float32), (1, 8, 1))
    told = asked(Left(), picture, {"left": left, "right": left[..., ::-1].copy()}, Removals(), target=(0,))
    values = {name: metrics_of(told[name], left, 10) for name in told}
    for metric in COMPARED:
        comparison = compared(metric, "left", "right", {name: values[name][metric] for name in values})
        assert comparison.worse == 0
        assert comparison.better == (metric != "increase"), metric


# Baselines and comparisons


def test_baselines_know_the_photograph_and_nothing_else():
    pixels = np.zeros((2, 9, 11, 3), np.uint8)
    pixels[1, :, 6:] = 200
    maps = baseline_maps(pixels, seed=3)
    assert tuple(maps) == tuple(BASELINES)
    for values in maps.values():
        assert (values.shape, values.dtype) == ((2, 9, 11), np.float32)
        assert values.min() >= 0
        assert values.max() <= 1
    assert maps["centre"][0, 4, 5] == 1
    assert maps["centre"][0, 0, 0] == pytest.approx(0, abs=1e-7)
    assert not maps["edges"][0].any()
    assert set(np.argwhere(maps["edges"][1] == 1)[:, 1]) == {5, 6}
    assert (maps["random"][0] != maps["random"][1]).any()
    assert (maps["random"] == baseline_maps(pixels, seed=3)["random"]).all()


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [(5, 0, "undecided"), (6, 0, "better"), (0, 6, "worse"), (17, 7, "undecided"), (18, 6, "better")],
)
def test_a_comparison_says_no_more_than_its_photographs(better, worse, verdict):
    values = {"a": np.r_[np.zeros(better), np.ones(worse), 5.0], "b": np.r_[np.ones(better), np.zeros(worse), 5.0]}
    comparison = compared("drop", "a", "b", values)
    assert (comparison.better, comparison.worse, comparison.ties, comparison.verdict) == (better, worse, 1, verdict)
    other = compared("drop", "b", "a", values)
    assert (other.better, other.worse) == (worse, better)
    assert other.low == pytest.approx(1 - comparison.high)
    assert compared("road", "b", "a", values).better == better  # higher is better there


def test_sentences():
    six, mixed, tied = np.arange(6.0), np.r_[np.zeros(3), np.ones(3)], np.zeros(6)
    pair = [
        compared("drop", "a", "b", {"a": six, "b": six + 1}),
        compared("road", "a", "b", {"a": six, "b": six + 1}),
        compared("deletion", "a", "b", {"a": mixed, "b": 1 - mixed}),
        compared("increase", "a", "b", {"a": tied, "b": tied}),
    ]
    assert sentence(pair) == (
        "On these 6 photographs and this network, a is better than b in drop (6 of 6, 0.54 to 1.00); it is worse than b in ROAD "
        "(0 of 6, 0.00 to 0.46); it cannot be told from b in deletion (3 of 6, 0.12 to 0.88), increase (all tied)."
    )
    lost = [compared("drop", "a", "edges", {"a": mixed, "edges": 1 - mixed})]
    assert "a is not shown to beat edges in drop (3 of 6" in sentence(lost)


# Random layers


def test_layers_become_random_from_the_top_and_the_users_network_stays(tiny):
    explainer = Explainer.vgg16(tiny, device="cpu")
    before = {name: values.clone() for name, values in explainer.model.state_dict().items()}
    layers = len(weighted_layers(explainer.model))
    assert layers == 16
    for count, random in with_random_layers(explainer, 3, seed=0):
        changed = {n.rpartition(".")[0] for n, v in random.model.state_dict().items() if not torch.equal(v, before[n])}
        top = [name for name, m in explainer.model.named_modules() if m in weighted_layers(explainer.model)][-count:]
        assert changed == set(top)
    assert count == layers
    for name, values in explainer.model.state_dict().items():
        assert torch.equal(values, before[name])


def test_stages():
    assert stages_of(16, 4) == [1, 6, 11, 16]
    assert stages_of(16, 1) == [16]
    assert stages_of(2, 9) == [1, 2]
    assert stages_of(16, 0) == []


def test_likeness():
    maps = np.random.RandomState(0).random_sample((4, 5, 5))
    others = maps**3  # the same order
    maps[1], others[2], others[3] = 0.5, 0.5, 1 - maps[3]
    assert likeness(maps, others) == pytest.approx([1, np.nan, 0, -1], nan_ok=True)


# All of it


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.RandomState(3)
    return [generator.randint(0, 255, (64, 64, 3), np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def explanation(tiny, pictures):
    return Explainer.vgg16(tiny, device="cpu", engine="shared")(pictures, [2, 7], ["gradcam", "vanilla"])


def test_faithfulness_of_an_explanation(explanation, tmp_path):
    told = []
    result = explanation.faithfulness(shares=(0.5,), steps=2, stages=2, progress=lambda *said: told.append(said))
    assert {said[0] for said in told} >= {"classifying", "shared, 16 random layers"}
    assert ("classifying", 2 * (1 + 5 * 5), 2 * (1 + 5 * 5)) in told
    assert set(result.values) == set(METRICS)
    assert all(set(values) == {"gradcam", "vanilla", *BASELINES} for values in result.values.values())
    assert list(result.likeness) == [1, 16]
    table = result.as_table()
    assert "vanilla" in table
    assert "On these 2 photographs and this network:\n- gradcam " in table
    assert "- vanilla cannot be told from gradcam in drop" in table
    assert max(map(len, table.partition("On these")[2].splitlines())) <= 120
    assert "is not shown to beat edges" in table
    written = [path.name for path in result.save(tmp_path / "out")]
    assert written == ["faithfulness.csv", "photographs.csv", "faithfulness.json", "manifest.json"]
    rows = list(csv.DictReader((tmp_path / "out" / "faithfulness.csv").open()))
    assert len(rows) == 5 * 7 + 2 * 2
    drop = result.values["drop"]["gradcam"]
    assert float(rows[0]["mean"]) == pytest.approx(drop.mean())
    assert float(rows[0]["sd"]) == pytest.approx(drop.std(ddof=1))
    document = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert document["settings"] == {"shares": [0.5], "steps": 2, "seed": 0, "random_layers": [1, 16]}
    assert len(document["comparisons"]) == 7 * len(COMPARED)
    assert len(document["photographs"]) == 2 * len(rows)


def test_what_cannot_be_measured_is_refused(explanation, tiny, pictures):
    with pytest.raises(ModelError, match="without their network"):
        pickle.loads(pickle.dumps(explanation)).faithfulness()
    for wrong, words in (
        ({"shares": (0.5, 1)}, "between 0 and 1"),
        ({"steps": 0}, "steps is 0"),
        ({"stages": -1}, "stages is"),
    ):
        with pytest.raises(ValueError, match=words):
            explanation.faithfulness(**wrong)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    own = Explainer(model, "0", size=64, score=lambda output: output.sum(dim=1))(pictures, methods="gradcam")
    with pytest.raises(ModelError, match="a score of one's own has none"):
        own.faithfulness()


def test_a_network_with_one_output_and_a_function_of_ones_own(pictures):
    """Probabilities are the sigmoid's; inputs are what the function makes of the photographs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    explainer = Explainer(model, "1", preprocess=lambda p: torch.tensor(np.array(p)).permute(2, 0, 1) / 255 - 0.5)
    maps = explainer(pictures, [0, 1], methods="gradcam")
    result = maps.faithfulness(shares=(0.5,), steps=1, stages=0)
    negative, positive = (row["probability"] for row in maps.manifest["photographs"])
    gone = float(model(torch.zeros(1, 3, 64, 64)).detach().sigmoid())
    expected = [(negative + 1 - gone) / 2, (positive + gone) / 2]
    assert result.values["deletion"]["random"] == pytest.approx(expected, abs=FLOAT32)
    assert result.likeness == {}


@pytest.fixture
def run(weights, tmp_path, monkeypatch, capsys, pictures):
    """The command on two photographs and one that is none: its status, what it prints, and its errors."""
    monkeypatch.chdir(tmp_path)
    for name, pixels in zip("ab", pictures, strict=True):
        Image.fromarray(pixels).save(f"{name}.png")
    few = f"--weights {weights} --methods gradcam --shares 50 --steps 2 --random 1 --engine shared --out out"

    def command(*arguments):
        try:
            status = main(["faithfulness", *few.split(), *arguments])
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    return command


def test_the_command(run):
    status, out, err = run(".")
    assert (status, err) == (
        0,
        "attention-maps: 2 photographs, 1 map and 3 baselines: 42 pictures to classify, 16 of them to fill in, and the maps again "
        "from 1 networks with random layers\n",
    )
    assert "alike    top 16 of 16" in out
    assert "wrote     out/faithfulness.json" in out
    assert run("a.png", "--quiet") == (0, "", "")  # ours, so it is replaced


def test_the_command_where_photographs_cannot_be_read(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    status, out, err = run("bad.png", "b.png", "none.png", "--skip-bad", "--classes", "1,2,3")
    said, *left_out = err.splitlines()
    assert said.startswith("attention-maps: 1 photograph, ")
    assert [line.partition(":")[2][:15] for line in left_out] == [" left out: 'bad", " left out: 'non"]
    assert status == 3
    assert "gradcam" in out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("--target-layer features.22,features.29 a.png", "several target layers"),
        ("none.png", "none.png"),
        ("--shares 0", "a number from 1 to 99"),
        ("--random -1", "a number from 0"),
    ],
)
def test_a_wrong_command_is_one_line(run, tmp_path, wrong, words):
    status, out, err = run(*wrong.split())
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
    assert not (tmp_path / "out").exists()
