"""Several target layers: each gets maps of its own, never a mixture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from parity.contract.layers import LayerTable
from parity.contract.methods import METHODS, Options
from torch_impl.capture.layout import LayerError
from torch_impl.capture.target_layer import find_layer, name_of
from torch_impl.explanation import Explanation, Origin

if TYPE_CHECKING:
    from torch_impl.explainer import Explainer

Layers = Any
"""One layer, or a list of them: modules, or their names."""


def found(model: nn.Module, layers: Layers) -> list[nn.Module]:
    """The modules of a model that are meant, each once.

    Raises:
        LayerError: one of them is no layer of it, or there is none.
    """
    listed = layers if isinstance(layers, (list, tuple)) else [layers]
    if not listed:
        raise LayerError("target_layer is an empty list: give one layer at least")
    return list(dict.fromkeys(find_layer(model, layer) for layer in listed))


def torchvision_names(table: LayerTable, layers: Layers) -> Layers:
    """Layers of VGG16, also by Keras's names (`block5_conv3`: its ReLU); None: the table's own target layer."""
    if layers is None:
        return table.modules[table.target]
    listed = layers if isinstance(layers, (list, tuple)) else [layers]
    return [table.modules.get(layer, layer) if isinstance(layer, str) else layer for layer in listed]


def check_one(explainer: Explainer) -> None:
    """Refuse an explainer of several layers where one is wanted.

    Raises:
        LayerError: it has several.
    """
    if explainer.more_layers:
        names = ", ".join(map(str, [explainer.target_layer, *explainer.more_layers]))
        raise LayerError(f"several target layers ({names}) where one is taken: give one")


def on_layers(explainer: Explainer, layers: Layers) -> Explainer:
    """The same explainer for other layers.

    Raises:
        LayerError: one of them is no layer of its model.
    """
    if explainer.weights is not None:
        layers = torchvision_names(explainer.weights.table, layers)
    chosen: list[str | None] = [name_of(explainer.model, layer) for layer in found(explainer.model, layers)]
    other = copy.copy(explainer)
    other.target_layer, other.more_layers = chosen[0], chosen[1:]
    return other


def explanation(
    explainer: Explainer,
    photographs: Any,
    classes: Any,
    methods: Sequence[str],
    options: Options,
    progress: Callable[[str, int, int], None] | None,
) -> Explanation:
    """Maps of several layers: photographs at the first layer, then the same ones at the next. Saliency is drawn once.

    Arguments and errors as a call of the explainer.
    """
    layers = [str(explainer.target_layer), *map(str, explainer.more_layers)]
    first = on_layers(explainer, layers[0])(photographs, classes, methods, **vars(options), progress=progress)
    origin = first.origin
    assert origin is not None
    cams = [name for name in methods if METHODS[name].overlay]
    if not cams:
        return first
    drawn = [first]
    for layer in layers[1:]:
        report = partial(_reported, progress, layer) if progress else None
        there = on_layers(explainer, layer)
        drawn.append(there(list(origin.photographs), list(origin.classes), cams, **vars(options), progress=report))
    return _joined(explainer, layers, drawn, origin)


def _reported(progress: Callable[[str, int, int], None], layer: str, what: str, done: int, total: int) -> None:
    progress(f"{what}, {layer}", done, total)


def _joined(explainer: Explainer, layers: Sequence[str], drawn: Sequence[Explanation], origin: Origin) -> Explanation:
    """Explanations of the same photographs and classes at different layers, as one."""
    first, count = drawn[0], len(drawn)
    maps = {name: np.concatenate([at.maps.get(name, first.maps[name]) for at in drawn]) for name in first.maps}
    rows = []
    for layer, at in zip(layers, drawn, strict=True):
        for row, own in zip(first.manifest["photographs"], at.manifest["photographs"], strict=True):
            shared = {name: reason for name, reason in row["constant_reasons"].items() if name not in at.maps}
            reasons = {**shared, **own["constant_reasons"]}
            rows.append({**row, "layer": layer, "constant_maps": list(reasons), "constant_reasons": reasons})
    seconds: dict[str, float] = {}
    for at in drawn:
        for what, spent in at.manifest["seconds"].items():
            seconds[what] = round(seconds.get(what, 0) + spent, 4)
    layouts = [at.manifest["feature_layout"] for at in drawn]
    said = {**first.manifest, "target_layer": list(layers), "feature_layout": layouts}
    return replace(
        first,
        maps=maps,
        pixels=np.concatenate([first.pixels] * count),
        logits=np.concatenate([first.logits] * count),
        manifest={**said, "photographs": rows, "seconds": seconds},
        origin=Origin(explainer, [*origin.photographs] * count, [*origin.classes] * count, origin.options),
    )
