"""From maps to their faithfulness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from torch_impl import several
from torch_impl.capture.draw import opened
from torch_impl.faithfulness.baselines import BASELINES, baseline_maps
from torch_impl.faithfulness.metrics import metrics_of
from torch_impl.faithfulness.passes import confidences
from torch_impl.faithfulness.randomized import likeness, stages_of, weighted_layers, with_random_layers
from torch_impl.faithfulness.removals import RANDOM_LAYERS, Removals
from torch_impl.faithfulness.result import Faithfulness
from torch_impl.precision import numerics
from torch_impl.preserve import ModelError

if TYPE_CHECKING:
    from torch_impl.explanation import Explanation, Origin

Report = Callable[[str, int, int], None]
"""Progress: called with (what, passes done, passes in all)."""

NO_PROBABILITY = "faithfulness measures the explained class's probability, and a score of one's own has none: explain a class instead"
NO_NETWORK = "these maps came without their network (read from files, or pickled), which faithfulness asks: let an Explainer draw them"


def cost(photographs: int, methods: int, removals: Removals, stages: int) -> str:
    """What measuring takes, in words: said before it begins."""
    rows = photographs * (methods + len(BASELINES))
    passes = photographs + rows * len(removals.kinds)
    filled = 2 * rows * len(removals.shares)
    again = f", and the maps again from {stages} networks with random layers" if stages else ""
    return (
        f"{photographs} photograph{'s' * (photographs != 1)}, {methods} map{'s' * (methods != 1)} and {len(BASELINES)} baselines: "
        f"{passes:,} pictures to classify, {filled:,} of them to fill in{again}"
    )


def measured(
    explanation: Explanation, removals: Removals, stages: int = RANDOM_LAYERS, progress: Report | None = None
) -> Faithfulness:
    """Every metric of every map, and of the baselines.

    Args:
        explanation: maps, straight from an `Explainer`.
        removals: what is taken away of the photographs.
        stages: networks with random layers, from the top layer alone to all of them; 0: none.
        progress: called after each pass.

    Raises:
        ModelError: maps of a score of one's own, or maps without their network.
        ValueError: `stages` is negative.
    """
    origin = explanation.origin
    if origin is None:
        raise ModelError(NO_NETWORK)
    if explanation.manifest["outputs"] == "score":
        raise ModelError(NO_PROBABILITY)
    several.check_one(origin.explainer)
    if stages < 0:
        raise ValueError(f"stages is {stages}: give 0 or more")
    explainer, methods = origin.explainer, tuple(explanation.maps)
    outputs = explainer.outputs or ("probabilities" if explanation.manifest["outputs"] == "probabilities" else "logits")
    maps = {**explanation.maps, **baseline_maps(explanation.pixels, removals.seed)}
    with numerics(explainer.precision):
        inputs = explainer.prepared(list(origin.photographs))[2]
        capture = opened(explainer.model, None, engine="shared", batch_size=explainer.batch_size)
        report = (lambda done, total: progress("classifying", done, total)) if progress else None
        told = confidences(capture, inputs, origin.classes, maps, removals, outputs, report)
    by_map = {name: metrics_of(told[name], maps[name], removals.steps) for name in maps}
    values = {metric: {name: by_map[name][metric] for name in maps} for metric in by_map[methods[0]]}
    layers = len(weighted_layers(explainer.model))
    alike = {
        count: {name: likeness(explanation.maps[name], others[name]) for name in methods}
        for count, others in _drawn_again(origin, methods, stages, removals.seed, progress)
    }
    settings = {"shares": list(removals.shares), "steps": removals.steps, "seed": removals.seed}
    settings["random_layers"] = stages_of(layers, stages)
    return Faithfulness(methods, values, alike, layers, settings, explanation.manifest)


def _drawn_again(
    origin: Origin, methods: tuple[str, ...], stages: int, seed: int, progress: Report | None
) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
    """(random layers, the same maps of a network that has them)."""
    for count, random in with_random_layers(origin.explainer, stages, seed):

        def report(what: str, done: int, total: int, count: int = count) -> None:
            if progress:
                progress(f"{what}, {count} random layers", done, total)

        again = random(list(origin.photographs), list(origin.classes), methods, **vars(origin.options), progress=report)
        yield count, again.maps
