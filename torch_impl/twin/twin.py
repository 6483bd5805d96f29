"""A PyTorch module that claims to be the reference's network: its stages and maps, laid beside the reference's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.artifact import Artifact
from parity.contract.lookup import lookup
from parity.contract.text import one_line, some
from torch_impl import maps  # noqa: F401  (fills the registry)
from torch_impl.capture.draw import draw, opened
from torch_impl.capture.layout import FeatureLayout, LayerError
from torch_impl.capture.target_layer import find_layer
from torch_impl.precision import choose_device, dtype_of, numerics
from torch_impl.preserve import Double
from torch_impl.twin import causes
from torch_impl.twin import pairing as pairings
from torch_impl.twin.pairing import Pair, Pairing, outputs_of
from torch_impl.twin.stages import Tap, as_array, channels_last, map_stages, network_stages
from torch_impl.twin.tensors import TRAINED
from torch_impl.twin.watch import Call

Row = tuple[int, str, np.ndarray]


class TwinError(ValueError):
    """A module that cannot be compared; one line."""


def built(name: str | nn.Module) -> nn.Module:
    """The module that `package.module:callable` gives; a module is itself.

    Raises:
        LookupFailedError: there is no such callable.
        TwinError: it fails, or gives something else.
    """
    make = lookup(name, "--torch") if isinstance(name, str) else name
    if isinstance(make, nn.Module):
        return make
    try:
        model = make()
    except Exception as error:
        raise TwinError(f"--torch {name!r}: calling it failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise TwinError(f"--torch {name!r} gave {type(model).__name__}: it must give an nn.Module")
    return model


class Numbered(nn.Module):
    """A module that runs several times in a pass, one of whose outputs goes through a module of its own, `tap`.

    Args:
        module: that runs.
        number: which time is meant, from 1.
        times: in a pass.
    """

    def __init__(self, module: nn.Module, number: int, times: int) -> None:
        super().__init__()
        self.module, self.number, self.times = module, number, times
        self.tap = nn.Identity()
        self.done = 0

    def forward(self, *given: Any, **named: Any) -> Any:
        """As the module's."""
        self.done = self.done % self.times + 1
        output = self.module(*given, **named)
        return self.tap(output) if self.done == self.number else output


class Twin:
    """A module paired with a reference.

    Args:
        reference: with float64.
        model: any module; it stays as it is.
        inputs: of every photograph, float64 (N, H, W, C), as the reference's network takes them.
        layers: layer → module, where the user knows better.
        target_layer: the module whose output is the reference's target layer; "": found.
        with_maps: whether maps are wanted, for which the target layer must be known.
        inside: see below; None: found out.

    Attributes:
        pairing: of layers and modules.
        inside: whether the module begins with the preprocessing that the reference's network began with.

    Raises:
        TwinError: it cannot be compared with this reference.
    """

    def __init__(
        self,
        reference: Artifact,
        model: nn.Module,
        inputs: np.ndarray,
        layers: Mapping[str, str] | None = None,
        target_layer: str = "",
        *,
        with_maps: bool = True,
        inside: bool | None = None,
    ) -> None:
        self.reference, self.model, self.inputs = reference, model, inputs
        self.layers = dict(layers or {})
        self.target_layer = target_layer
        self.inside = bool(inside)
        self.pairing = self._paired(self.layers)
        if reference.settings.scale and inside is None and not self._begins_alike(self.pairing):
            self.inside = True
            other = self._paired(self.layers)
            if self._begins_alike(other):
                self.pairing = other
            else:
                self.inside = False
        if with_maps:
            self._check_runs()
            self._check_logits()
            self.target = self._target()

    def about(self) -> dict[str, str | int]:
        """How much is compared, and which module is the target layer."""
        table, weights = self.reference.table, self.pairing.weights
        compared = sum(bool(pair.layout) for pair in self.pairing.pairs.values())
        return {
            "weights paired": f"{len(weights.pairs)} of {len(table.tensors)}",
            "layers compared": f"{compared} of {len(table.hidden)}",
            "target layer": f"{self.target.layer} = {self.target.call.name}",
        }

    def remarks(self) -> list[str]:
        """A line for each tensor that is laid out otherwise; which tensors have no partner; what was not reached."""
        weights, lines = self.pairing.weights, []
        for name, pair in weights.pairs.items():
            if pair.permutation:
                lines.append(f"permutation: {pair.name} holds the values of {name}: {pair.permutation}")
        if weights.missing:
            lines.append(f"{len(weights.missing)} of the reference's tensors have no partner: {some(weights.missing)}")
        trained = [name for name in weights.left if name.rpartition(".")[2] in TRAINED]
        if trained:
            lines.append(f"{len(trained)} of the port's tensors have no partner: {some(trained)}")
        lines += self._not_reached()
        if self.inside:
            lines.append("the port begins with the reference's own preprocessing: it was given the inputs before that")
        return lines

    def _not_reached(self) -> list[str]:
        """ReLU6 for ReLU, or the reverse, that the first photograph does not show."""
        lines = []
        for name, pair in self.pairing.pairs.items():
            row, module = self.reference.table[name], find_layer(self.model, pair.call.name)
            bounded = isinstance(module, nn.ReLU6)
            if row.config.get("activation") != "relu" or not isinstance(module, (nn.ReLU, nn.ReLU6)):
                continue
            if bounded != (row.config.get("max_value") == 6) and pair.error <= pairings.limit(self.reference, name):
                kinds = ("ReLU6", "ReLU") if bounded else ("ReLU", "ReLU6")
                lines.append(
                    f"activation of {name}: {kinds[0]} in the port, {kinds[1]} in the reference; 6 was not reached"
                )
        return lines

    def cause(self, stage: str, photograph: int) -> str:
        """The probable cause of the first forward stage that is off, or ""."""
        return causes.cause(self, stage, photograph)

    def _check_runs(self) -> None:
        """Whether the module runs to its end; where not, the first layer that was wrong says why."""
        if self.pairing.failure:
            raise TwinError(
                f"--torch: the module fails on the reference's inputs {tuple(self.photograph(0).shape)}: "
                f"{self.pairing.failure}{self._parts()}"
            )

    def _parts(self) -> str:
        """Where the module first parts from the reference, in brackets; or ""."""
        return f" ({words})" if (words := causes.first_cause(self)) else ""

    def _check_logits(self) -> None:
        """Whether the module gives logits as the reference does."""
        try:
            logits = outputs_of(self.double(), self.photograph(0))
        except RuntimeError as error:
            raise TwinError(f"--torch: the module fails: {one_line(error)}") from error
        expected = int(np.prod(self.reference.stage("logits").shape))
        if logits.numel() != expected:
            raise TwinError(f"--torch: the module gives {logits.numel()} logits, the reference's network {expected}")
        if not torch.isfinite(logits).all():
            raise TwinError("--torch: the module's logits are not finite (NaN or infinity) on the first photograph")

    def double(self) -> nn.Module:
        """The module in float64 on the CPU, in eval mode."""
        return self._prepared(torch.device("cpu"), torch.float64)

    def photograph(self, row: int) -> Tensor:
        """Inputs (1, C, H, W) of one photograph, float64."""
        return torch.from_numpy(np.ascontiguousarray(self.inputs[row : row + 1])).movedim(-1, 1).contiguous()

    def rows(self, methods: Sequence[str], precision: str, device: str, engine: str = "library") -> Iterator[Row]:
        """Every stage of every photograph; see `parity.contract.stages`.

        Args:
            methods: maps that are drawn.
            precision: `fp64`, `fp32`, …
            device: `cpu`, `cuda`, …
            engine: which of the port's.

        Raises:
            TwinError, ModelError, MapError: a map cannot be drawn.
        """
        where, dtype = choose_device(device), dtype_of(precision)
        outputs = int(np.prod(self.reference.stage("logits").shape))
        table = self.reference.table
        pairs = [*self.pairing.pairs.values(), self.target]
        taps = {pair.call.key: Tap(pair.layer, pair.layout, table[pair.layer].shape) for pair in pairs}
        layout: FeatureLayout = {"nchw": "nchw", "same": "nhwc"}.get(self.target.layout)
        with numerics(precision):
            model = self._prepared(where, dtype)
            explained, layer = self._with_target(where, dtype)
            for i in range(len(self.inputs)):
                inputs = self.photograph(i).to(where, dtype)
                target = torch.tensor([self.reference.classes[i]], device=where)
                for stage, array in network_stages(model, taps, inputs, target, outputs).items():
                    yield i, stage, array
                try:
                    capture = opened(explained, layer, engine=engine, feature_layout=layout)
                    drawn = draw(capture, inputs, target, methods, self.reference.settings.options, with_stages=True)
                except LayerError as error:
                    raise TwinError(f"{error}{self._parts()}") from error
                for stage, values in map_stages(drawn, (inputs.shape[-2], inputs.shape[-1])).items():
                    yield i, stage, as_array(channels_last(values[0]))

    def _with_target(self, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        """A double once more, and the one module in it whose output is the target layer's."""
        model, call = self._prepared(device, dtype), self.target.call
        layer = find_layer(model, call.name)
        if (times := self._times(call)) == 1:
            return model, layer
        numbered = Numbered(copy.copy(layer), call.number, times)
        layer.__class__, layer.__dict__ = Numbered, numbered.__dict__  # in its place wherever the model holds it
        return model, numbered.tap

    def _prepared(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The module's double, which takes the reference's inputs."""
        double = Double(self.model, device=device, dtype=dtype)
        if self.inside:
            settings = self.reference.settings
            scale, offset = (
                torch.tensor(values, dtype=dtype, device=device).reshape(1, -1, 1, 1)
                for values in (settings.scale, settings.offset)
            )
            double.model.register_forward_pre_hook(lambda module, given: ((given[0] - offset) / scale, *given[1:]))
        return double.model

    def _paired(self, layers: Mapping[str, str]) -> Pairing:
        """The layers and modules, where the user knows nothing better."""
        return pairings.paired(self.reference, self.double(), self.photograph(0), layers)

    def _begins_alike(self, pairing: Pairing) -> bool:
        """Whether the first layer that can be compared is the same."""
        first = next((layer.name for layer in self.reference.table.hidden if layer.name in pairing.pairs), "")
        pair = pairing.pairs.get(first)
        return pair is not None and pair.error <= pairings.limit(self.reference, first)

    def _target(self) -> Pair:
        """The pair of the target layer: a module that runs once, or a container that returns just its output."""
        name = self.reference.table.target
        if self.target_layer:
            return self._paired({**self.layers, name: self.target_layer}).pairs[name]
        pairing = self.pairing
        if name in pairing.pairs:
            calls = list(pairings.modules_of(pairing, pairing.pairs[name]))
            return replace(pairing.pairs[name], call=next((c for c in calls if self._times(c) == 1), calls[0]))
        near = ", ".join(f"{key} ({error:.1e} off)" for key, error in pairing.near.get(name, ())) or "none of its shape"
        raise TwinError(
            f"no module gives the values of the target layer {name}{self._parts()}; nearest: {near}: name it with --target-layer, or in "
            "layers.toml"
        )

    def _times(self, call: Call) -> int:
        return sum(other.name == call.name for other in self.pairing.calls)


def preprocessed(given: str | Callable[..., Any], pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    """What a user's preprocessing makes of pixels.

    Args:
        given: uint8 (N, H, W, 3) → (N, C, H, W); or its `package.module:function`.
        pixels: uint8 (N, H, W, 3).

    Returns:
        float64 (N, H, W, C); whether it was computed in float64.

    Raises:
        TwinError: it fails, or gives something else.
    """
    function = lookup(given, "--preprocess") if isinstance(given, str) else given
    name = given if isinstance(given, str) else getattr(given, "__qualname__", type(given).__name__)
    try:
        made = function(np.array(pixels))
    except Exception as error:
        raise TwinError(f"--preprocess {name!r} failed: {type(error).__name__}: {one_line(error)}") from error
    values = made.detach().cpu().numpy() if isinstance(made, Tensor) else np.asarray(made)
    if values.ndim != 4 or len(values) != len(pixels) or values.dtype.kind != "f":
        raise TwinError(f"--preprocess {name!r} gave {values.dtype} {values.shape}: it must give floats (N, C, H, W)")
    return np.moveaxis(values.astype(np.float64), 1, -1), values.dtype == np.float64
