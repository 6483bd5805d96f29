"""Why a module's first wrong layer is wrong: the layer computed again, from what the module itself had right before it.

Everything before the first difference is the same on both sides, so the module's own values are the reference's. From them
the table's rows are computed as Keras defines them, then once more for each known mistake; the one that gives the module's
values is the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.layers import Layer
from torch_impl.twin.compute import NotComputedError, Tensors, computed
from torch_impl.twin.given import without_border
from torch_impl.twin.layouts import channels_first, layouts
from torch_impl.twin.mistakes import Change, changes
from torch_impl.twin.pairing import limit, outputs_of, relative
from torch_impl.twin.tensors import named_tensors, rearrangements
from torch_impl.twin.watch import Call, Watch

if TYPE_CHECKING:
    from torch_impl.twin.twin import Twin

EXPLAINS = 1e-6
"""Relative L2 in float64 between a module's values and those of a mistake that explains them: weights went through float32."""

BETTER = 0.1
"""Share of the error without a mistake that one which explains it may leave."""

RIGHT_AGAIN = 1e-4
"""The same of values that were computed in another order, with weights that were folded in float32."""


def cause(twin: Twin, stage: str, row: int = 0) -> str:
    """The probable cause of a forward stage that is off, or "".

    Args:
        twin: the pair.
        stage: `inputs`, `activations/NAME`, `logits`: the first one that is off.
        row: of the photograph.
    """
    if stage == "inputs":
        return ""
    layers = twin.reference.table.layers
    layer = layers[-1] if stage == "logits" else twin.reference.table[stage.partition("/")[2]]
    with torch.no_grad():
        return _Layer(twin, layer, row).cause()


def first_cause(twin: Twin, before: str = "") -> str:
    """Where a module first leaves the reference, as far as their layers pair, and the probable cause; or "".

    Args:
        twin: the pair.
        before: only what ran before this module counts; "": everything.
    """
    calls = twin.pairing.calls
    end = next((call.place for call in calls if call.name == before), len(calls))
    off = [pair for name, pair in twin.pairing.pairs.items() if not pair.error <= limit(twin.reference, name)]
    off = [pair for pair in off if pair.call.place < end]
    if not off:
        return ""
    pair = min(off, key=lambda pair: pair.call.place)
    words = cause(twin, f"activations/{pair.layer}")
    return f"parts first at {pair.layer} ({pair.call.key})" + (f": {words}" if words else "")


def cause_before(twin: Twin, layer: Layer, given: Tensor) -> str:
    """Why what a module is given is not what a layer reads, where a function in between went wrong; or "".

    Args:
        twin: the pair.
        layer: that the module may be.
        given: to the module, (1, C, …), on the first photograph.
    """
    row = twin.reference.table[layer.inbound[0]]
    if row.kind == "input":
        words = _channels_between(given, twin)
        return f"parts first at the inputs: {words}" if words else ""
    pair = twin.pairing.pairs.get(row.name)
    if not row.compared or (pair is not None and pair.error <= limit(twin.reference, row.name)):
        return ""
    with torch.no_grad():
        words = _Layer(twin, row, 0, given).cause()
    return f"parts first at {row.name}, before {layer.name}: {words}" if words else ""


def unsteady(twin: Twin) -> str:
    """Whether the module differs from itself, in words; or ""."""
    if twin.pairing.failure:
        return ""
    inputs, model = twin.photograph(0), twin.double()
    first, second = (outputs_of(model, inputs) for _ in range(2))
    return (
        "" if torch.equal(first, second) else "training mode: dropout is on, two runs of the port differ (call eval())"
    )


def _channels_between(given: Tensor, twin: Twin) -> str:
    """What was done to the channels of the inputs before they were given to a module, which may have padded them; or ""."""
    inputs = twin.photograph(0)
    for values in without_border(given, twin.reference.table.input_shape):
        if values.shape == inputs.shape:
            ones = torch.ones_like(inputs[0, :1])
            matrix = torch.cat([inputs[0], ones]).flatten(1).T
            wanted = values[0].flatten(1).T
            solution = torch.linalg.lstsq(matrix, wanted).solution
            if _between(matrix @ solution, wanted) < EXPLAINS:
                return _channels_words(solution[:-1].T, solution[-1])
    return ""


@dataclass
class _Layer:
    """The layer that is off, and the rows between it and what is right."""

    twin: Twin
    layer: Layer
    row: int
    given: Tensor | None = None
    """What the module has in its place, where no module computes it."""

    def cause(self) -> str:
        if permuted := self._permuted():
            return permuted
        if words := unsteady(self.twin):
            return words
        try:
            right = self._computed[self.layer.name]
        except (NotComputedError, KeyError, RuntimeError):
            right = None
        if words := self._folded():
            return words
        if right is None:
            return ""
        best, words = min(EXPLAINS, BETTER * _between(right, self._captured[1])), ""
        for row in self.section:
            inputs = [self._computed[name] for name in row.inbound]
            for change in changes(row, inputs, self.tensors[row.name]):
                off = self._off(row.name, change)
                if off < best:
                    best, words = off, f"{change.words} (layer {row.name})"
        if words.startswith("a missing bias") and (following := self._right_again()):
            return f"folded bias: the port adds it in {following}; off here, right again there"
        if not words and (eps := self._epsilon()):
            return eps
        if not words and self.section and any(name == self._input for name in self._sources):
            words = self._normalized_again()
        return words

    @cached_property
    def _input(self) -> str:
        return self.twin.reference.table.layers[0].name

    @cached_property
    def _right(self) -> dict[str, Call]:
        """Layers whose values the module has right."""
        pairs = self.twin.pairing.pairs.values()
        return {
            p.layer: p.call
            for p in pairs
            if p.error <= limit(self.twin.reference, p.layer) and p.layer != self.layer.name
        }

    @cached_property
    def section(self) -> list[Layer]:
        """The rows that lie between what is right and this layer, with it, in their order."""
        table, wanted, known = self.twin.reference.table, {self.layer.name}, {self._input, *self._right}
        for row in reversed(table.layers):
            if row.name in wanted and (row is self.layer or row.name not in known):
                wanted |= set(row.inbound)
        return [row for row in table.layers if row.name in wanted and (row is self.layer or row.name not in known)]

    @cached_property
    def _sources(self) -> list[str]:
        """What the section reads."""
        inside = {row.name for row in self.section}
        return list(dict.fromkeys(name for row in self.section for name in row.inbound if name not in inside))

    @cached_property
    def _captured(self) -> tuple[dict[str, Tensor], Tensor]:
        """The module's values: those that the section reads, and those of the layer itself; channels first."""
        table, pairs = self.twin.reference.table, self.twin.pairing.pairs
        read = [pairs[name] for name in self._sources if name in self._right]
        own = pairs.get(self.layer.name)
        inputs, logits = self.twin.photograph(self.row), torch.empty(0)
        keys = [pair.call.key for pair in (*read, *filter(None, [own]))]
        # A wrong shape may end the pass behind the layer.
        with Watch(self.model).keeping(keys) as kept, suppress(RuntimeError):
            logits = outputs_of(self.model, inputs)
        had = [pair for pair in read if pair.call.key in kept]
        values = {p.layer: channels_first(kept[p.call.key], p.layout, table[p.layer].shape) for p in had}
        theirs = self.given
        if theirs is None and own is not None and own.call.key in kept:
            theirs = kept[own.call.key]
            fitting = layouts(own.call.shape, self.layer.shape)
            theirs = channels_first(theirs, fitting[0], self.layer.shape) if fitting else theirs
        return {**values, self._input: inputs}, logits if theirs is None else theirs

    @cached_property
    def model(self) -> nn.Module:
        return self.twin.double()

    @cached_property
    def tensors(self) -> dict[str, Tensors]:
        """The section's weights: the reference's own where its artifact has them, else the module's, in the right order."""
        module = named_tensors(self.model)
        reference, weights = self.twin.reference.weights.tensors, self.twin.pairing.weights
        answer: dict[str, Tensors] = {}
        for row in self.section:
            own: dict[str, Tensor] = {}
            holder = self.twin.reference.table[row.config.get("shared_with", row.name)]
            for name, shape in holder.tensors.items():
                role = name.rpartition(".")[2]
                if name in reference:
                    own[role] = torch.from_numpy(reference[name].astype(np.float64)).reshape(shape)
                elif name in weights.pairs:
                    pair = weights.pairs[name]
                    array = module[pair.name]
                    if pair.permutation:
                        array = dict(rearrangements(holder, shape, array)).get(pair.permutation, array)
                    own[role] = torch.from_numpy(np.ascontiguousarray(array)).reshape(shape)
            answer[row.name] = own
        return answer

    @cached_property
    def _computed(self) -> dict[str, Tensor]:
        """What the section's rows give, as Keras defines them, and what they read."""
        return self._values()

    def _values(
        self, changed: str = "", change: Change | None = None, sources: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The section's values from those before it, with one row changed."""
        values = dict(sources or self._captured[0])
        for row in self.section:
            given = [values[name] for name in row.inbound]
            own = self.tensors[row.name]
            missing = [name for name in row.tensors if name.rpartition(".")[2] not in own]
            if missing and not (change and changed == row.name):
                raise NotComputedError(missing[0])
            output = change.output(row, given, own) if change and changed == row.name else computed(row, given, own)
            values[row.name] = output
        return values

    def _off(self, changed: str, change: Change) -> float:
        """Relative L2 between what a change gives and what the module gave."""
        try:
            made = self._values(changed, change)[self.layer.name]
        except (NotComputedError, KeyError, RuntimeError, ValueError, TypeError):
            return float("inf")
        return _between(made, self._captured[1])

    def _permuted(self) -> str:
        for row in self.section:
            for name in row.tensors:
                pair = self.twin.pairing.weights.pairs.get(name)
                if pair is not None and pair.permutation:
                    return f"permutation: {pair.name} holds {row.name}'s values in another order: {pair.permutation}"
        return ""

    @property
    def _norms_behind(self) -> list[Layer]:
        rows = self.twin.reference.table.layers
        return [row for row in rows if row.kind == "batchnorm" and row.inbound == (self.layer.name,)]

    def _folded(self) -> str:
        """A batch norm folded into the layer before it: off here, and the batch norm's values are had here already."""
        reference = self.twin.reference
        for row in self._norms_behind:
            stage = reference.stage(f"activations/{row.name}")
            theirs = self._captured[1]
            last = theirs.movedim(1, -1) if theirs.ndim == 4 else theirs
            if tuple(last.shape[1:]) != row.shape:
                continue
            expected = torch.from_numpy(reference.values(stage.name, "fp64")[self.row].astype(np.float64))
            if _between(torch.from_numpy(stage.take(last.numpy())[0]), expected) < RIGHT_AGAIN:
                return f"folded batch norm: {row.name} is inside the port's weights; off here, right again there"
        return ""

    def _right_again(self) -> str:
        """The batch norm behind the layer, where the module has that right."""
        pairs = self.twin.pairing.pairs
        again = (row.name for row in self._norms_behind if row.name in pairs and pairs[row.name].error < RIGHT_AGAIN)
        return next(again, "")

    def _epsilon(self) -> str:
        """Of a batch norm: the one epsilon that explains every channel's factor."""
        row = self.layer
        if row.kind != "batchnorm":
            return ""
        t, theirs, x = self.tensors[row.name], self._captured[1], self._computed[row.inbound[0]]
        if theirs.shape != x.shape:
            return ""
        scale = t.get("weight", torch.ones_like(t["running_var"]))
        bias = t.get("bias", torch.zeros_like(t["running_var"]))
        shape = (1, -1, *[1] * (x.ndim - 2))
        centred = (x - t["running_mean"].reshape(shape)) * scale.reshape(shape)
        factors = ((theirs - bias.reshape(shape)) * centred).flatten(2).sum((0, 2)) / (centred**2).flatten(2).sum(
            (0, 2)
        )
        epsilon = float((1 / factors**2 - t["running_var"]).median())
        change = Change(
            f"epsilon: {epsilon:.4g} in the port, {row.config['epsilon']:g} in the reference", {"epsilon": epsilon}
        )
        return f"{change.words} (layer {row.name})" if epsilon > 0 and self._off(row.name, change) < EXPLAINS else ""

    def _normalized_again(self) -> str:
        """Whether the module scales, shifts or exchanges the channels of its inputs first: told by least squares."""
        captured, theirs = self._captured
        x = captured[self._input]
        linear = Change("", {"activation": "linear"}) if self.layer.config.get("activation") else None

        def of(inputs: Tensor) -> Tensor:
            values = self._values(self.layer.name if linear else "", linear, {**captured, self._input: inputs})
            return values[self.layer.name].flatten()

        open_places = (theirs > 0 if linear else torch.ones_like(theirs, dtype=torch.bool)).flatten()
        nothing = of(torch.zeros_like(x))
        if nothing.shape != open_places.shape:
            return ""
        columns = []
        for channel in range(x.shape[1]):
            for values in (*x[0], torch.ones_like(x[0, 0])):
                alone = torch.zeros_like(x)
                alone[:, channel] = values
                columns.append((of(alone) - nothing)[open_places])
        matrix, wanted = torch.stack(columns, 1), (theirs.flatten() - nothing)[open_places]
        solution = torch.linalg.lstsq(matrix, wanted[:, None]).solution[:, 0]
        if _between(matrix @ solution, wanted) > EXPLAINS:
            return ""
        mixed = solution.reshape(x.shape[1], -1)
        return _channels_words(mixed[:, :-1], mixed[:, -1])


def _channels_words(factors: Tensor, offsets: Tensor) -> str:
    """What a module does to its inputs' channels, of which it takes Σ factors · inputs + offsets, in words; or ""."""
    taken = factors.abs().argmax(1)
    own = factors.gather(1, taken[:, None])[:, 0]
    if (
        sorted(taken.tolist()) != list(range(len(own)))
        or (factors.abs().sum(1) - own.abs() > EXPLAINS * own.abs()).any()
    ):
        return ""
    words = []
    if taken.tolist() != sorted(taken.tolist()):
        words.append(
            f"permutation: the port takes the input's channels in the order {tuple(taken.tolist())} (BGR for RGB?)"
        )
    if (own - 1).abs().max() > EXPLAINS or offsets.abs().max() > EXPLAINS:
        mean, std = (", ".join(f"{value:.4g}" for value in values.tolist()) for values in (-offsets / own, 1 / own))
        words.append(
            f"mean and std: the port takes (inputs − mean ({mean})) / std ({std}) where the reference takes its inputs as "
            "they are"
        )
    return "; ".join(words)


def _between(made: Tensor, theirs: Tensor) -> float:
    """Relative L2, whether or not axes of one place stand behind the channels; infinite for other shapes."""
    made, theirs = (values.flatten(1) if values.shape[2:] == (1, 1) else values for values in (made, theirs))
    return relative(made.double().numpy(), theirs.double().numpy()) if made.shape == theirs.shape else float("inf")
