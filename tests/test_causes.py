"""Causes that the fault suite has no port for: one stage of an otherwise right answer is changed, and the words are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from judging import altered, compared, divergences, recorded, with_array

from parity import causes, formulas, hypotheses
from parity.case import Case
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.contract.methods import DEFAULT
from parity.similarity import relative_l2

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[np.ndarray, int], np.ndarray]


def cause(golden: Artifact, stage: str, change: Change) -> str:
    report = compared(golden, altered(change, stage), "fp64")
    assert not report.holds
    return next(d.cause for where in divergences(report).values() for d in where if d.stage == stage)


def half_of_the_units(values: np.ndarray, i: int) -> np.ndarray:
    return np.where(np.cumsum(values > 0) % 2, 2 * values, 0)


def wavy(values: np.ndarray, i: int) -> np.ndarray:
    return values * (1 + 3e-4 * np.sin(np.arange(values.size)).reshape(values.shape))


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("inputs", lambda x, i: x / 127.5, "0.00784 times the reference's: a constant factor"),
        ("inputs", wavy, "half precision"),
        ("activations/fc1", half_of_the_units, "dropout is on"),
        ("activations/block2_conv1", lambda x, i: x - 0.3 * (x > 0), "a missing or another bias"),
        ("activations/block1_conv2", wavy, "half precision"),
        ("activations/block1_conv2", lambda x, i: x.astype(np.float32), "float32's size"),
        ("logits", lambda x, i: x + 3, "a constant was added to every logit"),
        ("logits", lambda x, i: x - np.logaddexp.reduce(x), "log-softmax left on"),
        ("logits", lambda x, i: x + np.arange(10), "off by the same amount in every photograph"),
        ("logits", lambda x, i: x[::-1], "look for a transposed kernel"),
        ("score", lambda x, i: x * 0.9, "look for another class"),
        ("gradients/block3_conv3", lambda x, i: x / 2, "0.5 times the reference's"),
        ("smoothgrad/noise", lambda x, i: 3 * x, "σ is"),
        ("vanilla/raw", lambda x, i: x * np.linspace(1, 3, x.size).reshape(x.shape), "sum over the colour channels"),
        ("vanilla/raw", lambda x, i: 2.5 * x, "2.5 times the reference's: a constant factor"),
        ("vanilla/raw", lambda x, i: x * (-1) ** np.arange(x.size).reshape(x.shape), "no absolute value"),
        ("gradcam/weights", lambda x, i: np.abs(x) + 1, "look for the target layer"),
        ("gradcam/raw", wavy, "half precision"),
        ("gradcam/final", lambda x, i: x * 0 + np.nan, "not finite"),
    ],
)
def test_a_cause_is_named(stage: str, change: Change, words: str, golden: Artifact) -> None:
    assert words in cause(golden, stage, change)


def test_a_cause_is_not_named_where_it_does_not_explain(golden: Artifact) -> None:
    noise = np.random.RandomState(0)
    layers = ("activations/fc1", "activations/fc2", "activations/block2_conv2", "activations/block1_pool")
    for stage in (*layers, "logits", "vanilla/raw", "gradcam/raw"):
        said = cause(golden, stage, lambda x, i: x * noise.uniform(0.2, 2.5, x.shape))
        assert said.startswith("look for"), (stage, said)


def test_every_mistake_is_named_where_it_is_made(golden: Artifact, family: Artifact) -> None:
    named = set()
    for reference, stage in [(each, stage) for each in (golden, family) for stage in each.stages]:
        for words, values in hypotheses.tried(Case(reference, reference, "fp64", 0, stage)):
            wrong = with_array(reference, f"fp64/{stage.name}", lambda a, v=values: a.reshape(2, -1).__setitem__(0, v))
            assert causes.probable_cause(Case(reference, wrong, "fp64", 0, stage)) == words
            named.add(words)
    everywhere = {row.words for row in hypotheses.MISTAKES if row.about != "torchvision" and "{" not in row.words}
    assert everywhere <= named
    assert {"fc1's bias is missing", "no ReLU after fc2"} <= named


@pytest.mark.parametrize(("kind", "count"), [("caffe", 9), ("torchvision", 7)])
def test_every_wrong_input_is_told_from_the_right_one(kind: str, count: int, golden: Artifact) -> None:
    reference = replace(golden, settings=replace(golden.settings, input=kind))
    inputs = dict(hypotheses.tried(Case(reference, reference, "fp64", 0, golden.stage("inputs"))))
    assert len(inputs) == count
    right = golden.stage("inputs").take(formulas.preprocess(golden.pixels[0], kind)[None])[0]
    everyone = [right, *inputs.values()]
    for i, one in enumerate(everyone):
        for other in everyone[i + 1 :]:
            assert relative_l2(one, other) > 2 * causes.EXPLAINS or kind == "torchvision"


def test_every_row_can_be_reached(golden: Artifact, family: Artifact) -> None:
    """No row is about something that no stage is: a word misspelt would never be said."""
    subjects = {
        (quantity, subject)
        for kind in ("caffe", "torchvision")
        for each in (golden, family)
        for stage in each.stages
        for case in [Case(replace(each, settings=replace(each.settings, input=kind)), each, "fp64", 0, stage)]
        for quantity in [stage.quantity]
        for subject in case.subjects
    }
    for mistake in hypotheses.MISTAKES:
        assert (mistake.quantity, mistake.about) in subjects, mistake
    for sign in causes.SIGNS:
        assert any((quantity, sign.about) in subjects for quantity in sign.quantities.split()), sign


def right_but(golden: Artifact, **stages: Any) -> Any:
    """Raw maps that are right, and what is given beside them."""
    right = {f"{m}/raw": golden.whole(f"{m}/raw", "fp64") for m in DEFAULT}
    return lambda job: {**right, **{name.replace("__", "/"): value for name, value in stages.items()}}


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
    given = right_but(golden, **{stage.replace("/", "__"): np.ones((2, *shape))})
    found = divergences(compare(golden, {"fp64": recorded(golden, given)}))
    assert list(found) == [stage.partition("/")[0]]
    (divergence, _) = found[stage.partition("/")[0]]
    assert divergence.stage == stage
    assert words in divergence.cause
