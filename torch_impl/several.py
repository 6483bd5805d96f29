"""Several target layers: each gets maps of its own, never a mixture."""

from __future__ import annotations

import copy
import difflib
from typing import TYPE_CHECKING, Any

from torch import nn

from parity.contract.layers import LayerTable
from torch_impl.capture.layout import LayerError
from torch_impl.capture.target_layer import find_layer, name_of

if TYPE_CHECKING:
    from torch_impl.explainer import Explainer

Layers = Any
"""One layer, or a list of them: modules, or their names."""

PARTS = ("features", "avgpool", "classifier")
"""Of torchvision's VGG16."""


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
    """Layers of VGG16, also by Keras's names (`block5_conv3`: its ReLU); None: the table's own target layer.

    Raises:
        LayerError: neither Keras nor torchvision has such a name; the message lists Keras's nearest.
    """
    if layers is None:
        return table.modules[table.target]
    listed = layers if isinstance(layers, (list, tuple)) else [layers]
    for layer in listed:
        if isinstance(layer, str) and layer not in table.modules and layer.partition(".")[0] not in PARTS:
            nearest = difflib.get_close_matches(layer, table.modules, n=5, cutoff=0.0)
            raise LayerError(
                f"the model has no layer {layer!r}; nearest: {', '.join(nearest)}, or features.0 and so on"
            )
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
    chosen = [name_of(explainer.model, layer) for layer in found(explainer.model, layers)]
    other = copy.copy(explainer)
    other.target_layer, other.more_layers = chosen[0], chosen[1:]
    return other
