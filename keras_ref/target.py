"""The layer that class activation maps read: the one tf-keras-vis takes, or the one asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from keras_ref import KerasRefError
from keras_ref.graph import Flat, keras_name
from parity.contract.layers import Layer

CamOptions = dict[str, Any]
"""Arguments by which tf-keras-vis finds the layer."""

LAST: CamOptions = {"penultimate_layer": -1}
"""The lab's own call: the last convolution, which may be linear, 1×1 or one branch of several."""


def choose(flat: Flat, asked: str | None) -> tuple[str, CamOptions, tuple[str, ...]]:
    """The target layer's name, how tf-keras-vis is told of it, and warnings.

    Args:
        flat: the network.
        asked: the layer that the user named, or None.

    Raises:
        KerasRefError: there is none, or it has no feature maps.
    """
    layers = [row.layer for row in flat.rows]
    better = _best(layers)
    suggestion = f"--target-layer {better}" if better else "a convolutional network"
    if asked is None:
        last = _last_convolution(flat.model)
        if last is None:
            raise KerasRefError(f"--model: tf-keras-vis finds no convolution in it: give {suggestion}")
        layer = next(row.layer for row in flat.rows if row.keras_layer is last)
        name, doubts = layer.name, _doubts(layer, layers)
        if doubts and better not in (None, name):
            warning = f"target layer {name}, as tf-keras-vis chooses: it is {', '.join(doubts)}; {suggestion} is the better one"
            return name, LAST, (warning,)
        return name, LAST, ()
    layer = _named(asked, layers)
    if len(layer.shape) != 3 or layer is layers[-1] or not layer.compared or layer.kind == "input" or ":" in asked:
        raise KerasRefError(f"--target-layer {asked}: it has no feature maps of its own to read: give {suggestion}")
    return asked, {"penultimate_layer": keras_name(asked), "seek_penultimate_conv_layer": False}, ()


def _named(name: str, layers: Sequence[Layer]) -> Layer:
    for layer in layers:
        if layer.name == name:
            return layer
    maps = [layer.name for layer in layers if len(layer.shape) == 3 and layer.compared]
    nearest = ", ".join(difflib.get_close_matches(name, maps, n=5, cutoff=0.0))
    raise KerasRefError(f"--target-layer {name}: no such layer; nearest: {nearest}")


def _last_convolution(model: Any) -> Any:
    """The Keras layer that `penultimate_layer=-1` finds; None: there is none."""
    from tf_keras_vis.utils import find_layer
    from tf_keras_vis.utils.model_modifiers import Conv

    return find_layer(model, lambda layer: isinstance(layer, Conv), offset=model.layers[-1])


def _passed_by_all(layers: Sequence[Layer]) -> list[Layer]:
    """The layers through which every path from the input to the output goes: no edge leads past them."""
    last_reader = {name: i for i, layer in enumerate(layers) for name in layer.inbound}
    furthest = 0  # place up to which an edge from before leads
    passed = []
    for i, layer in enumerate(layers):
        if furthest <= i:
            passed.append(layer)
        furthest = max(furthest, last_reader.get(layer.name, i))
    return passed


def _best(layers: Sequence[Layer]) -> str | None:
    """The last feature maps that everything goes through, before they are pooled."""
    silent = ("pool", "globalpool", "pad", "crop", "upsample", "reshape")
    maps = [layer for layer in _passed_by_all(layers)[:-1] if len(layer.shape) == 3 and layer.compared]
    wide = [layer.name for layer in maps if layer.kind not in silent and layer.shape[:2] != (1, 1)]
    return wide[-1] if wide else None


def _doubts(layer: Layer, layers: Sequence[Layer]) -> list[str]:
    """Why maps of this layer may say little."""
    doubts = []
    if layer.config.get("activation") == "linear":
        doubts.append("linear (its activation is a layer of its own)")
    if layer.config.get("kernel") == [1, 1]:
        doubts.append("1×1")
    if layer not in _passed_by_all(layers):
        doubts.append("one branch of several")
    return doubts
