"""How the layers of a reference and the modules of a PyTorch network pair: by weights, then by values, then by order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.artifact import Artifact
from parity.contract.layers import Layer
from parity.contract.text import one_line
from torch_impl.score import logits_of
from torch_impl.twin.layouts import layouts, places_in
from torch_impl.twin.tensors import Weighted, paired_tensors
from torch_impl.twin.watch import Call, Watch

SAME = 1e-9
"""Relative L2, in float64, of a layer's values on both sides; more only as far as the reference's own float64 is off."""

VALUES, WEIGHTS, ORDER, GIVEN = "values", "weights", "order", "given"


@dataclass(frozen=True)
class Pair:
    """A layer and the call of a module whose output is the layer's.

    Attributes:
        layer: the reference's name.
        call: of the module.
        layout: see `layouts`; "" where the output has another shape: then the program differs.
        how: what told it: `values`, `weights`, `order`, or `given` by the user.
        error: relative L2 of their float64 values on the first photograph; NaN where the shape is another.
    """

    layer: str
    call: Call
    layout: str
    how: str
    error: float


@dataclass(frozen=True)
class Pairing:
    """See the module.

    Attributes:
        pairs: layer → its pair.
        weights: of the tensors.
        calls: every call of the pass, in order.
        near: layer → its nearest outputs of the same shape, (key of the call, relative L2), nearest first.
        failure: PyTorch's words, where the pass came no farther than these calls; "": it came to its end.
    """

    pairs: Mapping[str, Pair]
    weights: Weighted
    calls: tuple[Call, ...]
    near: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    failure: str = ""


def limit(reference: Artifact, layer: str) -> float:
    """What a layer's float64 values may be off for the two to be the same."""
    return max(SAME, 4 * reference.moves.get(f"activations/{layer}", 0.0))


def paired(reference: Artifact, model: nn.Module, inputs: Tensor, given: Mapping[str, str] | None = None) -> Pairing:
    """Pair a reference with a module.

    Args:
        reference: with float64.
        model: in float64.
        inputs: of the first photograph, (1, C, H, W).
        given: layer → `module`, or `module:2` for its second call, where the user knows better.

    Raises:
        ValueError: a layer or module that is given does not exist.
    """
    table, watch = reference.table, Watch(model)
    weights = paired_tensors(table, reference.weights.prints, model)
    seen = _Seen(reference)
    failure = ""
    try:
        watch.run(inputs, seen)
    except RuntimeError as error:  # two shapes that do not go together, say
        failure = one_line(error)
    calls = tuple(watch.calls)
    pairs = {name: pair for name, pair in seen.best(calls).items() if pair.error <= limit(reference, name)}
    unpaired = [layer for layer in table.hidden if layer.name not in pairs]
    for layer in unpaired:
        if (call := _by_weights(layer, weights, calls, table.layers)) is not None:
            pairs[layer.name] = seen.pair(layer, call, WEIGHTS)
    _by_order(table.layers, calls, pairs, seen)
    for name, pair in list(pairs.items()):
        if not pair.layout and (_cut_later(table[name], pair.call) or _right_again(name, table.layers, pairs)):
            del pairs[name]
    for name, key in (given or {}).items():
        known = next((layer for layer in table.layers if layer.name == name), None)
        call = next((call for call in calls if key in (call.key, f"{call.name}:{call.number}")), None)
        if known is None:
            raise ValueError(f"layers: the reference has no layer {name!r}: see python -m parity match")
        if call is None:
            raise ValueError(f"layers: no module {key!r} ran in the network: see python -m parity match")
        pairs[name] = seen.pair(known, call, GIVEN)
    return Pairing(pairs, weights, calls, seen.near(), failure)


class _Seen:
    """Compares each output with every layer that it may be."""

    def __init__(self, reference: Artifact) -> None:
        self.layers: dict[int, list[Layer]] = {}
        self.expected: dict[str, np.ndarray] = {}
        self.places: dict[str, np.ndarray] = {}
        for layer in reference.table.hidden:
            name = f"activations/{layer.name}"
            if reference.has(name, "fp64"):
                self.layers.setdefault(int(np.prod(layer.shape)), []).append(layer)
                self.expected[layer.name] = reference.values(name, "fp64")[0]
                self.places[layer.name] = reference.stage(name).places()
        self.errors: dict[str, list[tuple[float, Call, str]]] = {}

    def __call__(self, call: Call, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not output.is_floating_point() or len(output) != 1:
            return None
        flat = output.detach().reshape(-1)
        for layer in self.layers.get(flat.numel(), ()):
            for layout in layouts(call.shape, layer.shape):
                values = flat[places_in(call.shape, layout, layer.shape, self.places[layer.name])].double().numpy()
                error = relative(values, self.expected[layer.name])
                self.errors.setdefault(layer.name, []).append((error, call, layout))
        return output.clone()  # what follows may work in place

    def best(self, calls: Sequence[Call]) -> dict[str, Pair]:
        """Of each layer the nearest output; of equally near ones a module that runs once, then the first."""
        pairs, times = {}, Counter(call.name for call in calls)
        for name, rows in self.errors.items():
            nearest = min(error for error, *_ in rows)
            same = [row for row in rows if row[0] <= max(SAME, nearest)]
            error, call, layout = min(same, key=lambda row: (times[row[1].name] > 1, row[1].place))
            pairs[name] = Pair(name, call, layout, VALUES, error)
        return pairs

    def pair(self, layer: Layer, call: Call, how: str) -> Pair:
        """A pair that something else than values told."""
        rows = [row for row in self.errors.get(layer.name, ()) if row[1] == call]
        if rows:
            error, _, layout = min(rows, key=lambda row: row[0])
            return Pair(layer.name, call, layout, how, error)
        return Pair(layer.name, call, "", how, float("nan"))

    def near(self) -> dict[str, list[tuple[str, float]]]:
        """See `Pairing`."""
        answer = {}
        for name, rows in self.errors.items():
            ordered = sorted(rows, key=lambda row: (row[0], row[1].place))
            answer[name] = [(call.key, error) for error, call, _ in ordered[:3]]
        return answer


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 between values and those expected; infinite where these alone are all 0."""
    scale, off = float(np.linalg.norm(expected)), float(np.linalg.norm(values - expected))
    return off / scale if scale > 0 else (0.0 if off == 0 else float("inf"))


def _by_weights(layer: Layer, weights: Weighted, calls: Sequence[Call], layers: Sequence[Layer]) -> Call | None:
    """The call of the module that holds a layer's weights; of a layer with an activation inside, the activation's that follows."""
    first = str(layer.config.get("shared_with") or layer.name)
    own = [call for call in calls if call.name == weights.modules.get(first) and (call.kind or _is_leaf(call, calls))]
    times = [row.name for row in layers if row.name == first or row.config.get("shared_with") == first]
    if len(own) <= times.index(layer.name) or not own:
        return None
    return _with_activation(layer, own[times.index(layer.name)], calls)


def _is_leaf(call: Call, calls: Sequence[Call]) -> bool:
    """Whether no other module ran within: a layer of the user's own making."""
    within = f"{call.name}." if call.name else ""  # all of them are within the model itself
    return not any(other.name.startswith(within) for other in calls if other.name != call.name)


def _with_activation(layer: Layer, call: Call, calls: Sequence[Call]) -> Call | None:
    """The output of a layer with an activation inside is that of the activation after its module; None where that is a function."""
    if layer.kind == "activation" or layer.config.get("activation", "linear") in ("linear", None):
        return call
    following = next((other for other in calls[call.place + 1 :] if other.kind), None)
    return following if following is not None and following.kind in ("activation", "prelu") else None


def _by_order(layers: Sequence[Layer], calls: Sequence[Call], pairs: dict[str, Pair], seen: _Seen) -> None:
    """Between two layers that are paired, the k-th of a kind is the k-th of that kind; of the same shape where there are such."""
    anchors = [i for i, layer in enumerate(layers) if layer.name in pairs]
    places = [pairs[layers[i].name].call.place for i in anchors]
    for start, stop, first, last in zip(
        [-1, *anchors], [*anchors, len(layers) - 1], [-1, *places], [*places, len(calls) - 1], strict=True
    ):
        between = [layer for layer in layers[start + 1 : stop] if layer.compared and layer.kind != "input"]
        used = {pair.call.key for pair in pairs.values()}
        open_calls = [call for call in calls[first + 1 : last] if call.kind and call.key not in used]
        for kind in dict.fromkeys(layer.kind for layer in between):
            ours = [layer for layer in between if layer.kind == kind]
            theirs = [call for call in open_calls if call.kind == kind]
            if len(ours) != len(theirs):
                fits = [call for call in theirs if any(layouts(call.shape, layer.shape) for layer in ours)]
                theirs = fits if len(fits) == len(ours) else []
            for layer, call in zip(ours, theirs, strict=len(theirs) > 0) if theirs else ():
                if (following := _with_activation(layer, call, calls)) is not None:
                    pairs[layer.name] = seen.pair(layer, following, ORDER)


def _cut_later(layer: Layer, call: Call) -> bool:
    """Whether an output has the rows and columns more that Keras's transposed convolution cuts off, and PyTorch's cannot."""
    if layer.kind != "conv_transpose" or len(call.shape) != 4:
        return False
    more = [theirs - ours for theirs, ours in zip(call.shape[2:], layer.shape, strict=False)]
    most = max(k - s for k, s in zip(layer.config["kernel"], layer.config["strides"], strict=True))
    return all(0 < n <= most for n in more)


def _right_again(name: str, layers: Sequence[Layer], pairs: Mapping[str, Pair]) -> bool:
    """Whether the next layers that can be compared are right: then what has another shape is cut to it by a function."""
    reached, following = {name}, []
    for layer in layers:
        if reached & set(layer.inbound):
            if layer.name in pairs:
                following.append(pairs[layer.name].how == VALUES)
            else:
                reached.add(layer.name)
    return bool(following) and all(following)


def modules_of(pairing: Pairing, pair: Pair) -> Iterator[Call]:
    """Calls whose output is a layer's: its pair's, and containers that return the same."""
    yield pair.call
    inner = pair.call
    for call in pairing.calls[pair.call.place + 1 :]:
        if call.inner != inner.name:
            return
        inner = call
        yield call


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's logits, (1, classes).

    Raises:
        ModelError: its output is no logits.
    """
    with torch.no_grad():
        return logits_of(model(inputs.clone()), len(inputs))
