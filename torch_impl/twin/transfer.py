"""Another program's weights into an untrained module, during forward passes: a layer is known by its input.

Just before a module with weights is called, its input is compared with the inputs of the reference's layers that are left:
the one whose input it is and whose tensors fit is its partner, whatever names and order say. Its weights go in, and the pass
goes on. So a finished transfer is a proof, and an unfinished one names the place where the module computes something else.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.artifact import Artifact
from parity.contract.layers import Layer
from parity.contract.text import some
from torch_impl.score import logits_of
from torch_impl.twin.given import orders
from torch_impl.twin.pairing import SAME, relative
from torch_impl.twin.watch import kind_of, tensors_in

PASSES = 400
"""Forward passes after which it is given up: each takes one choice back."""

MOVES = 4.0
"""Times the reference's own move: how far an input may be off."""

SCALE = "layerscale"
"""What a module of the user's own may be that has one parameter and no modules in it."""

FITTING = {
    "conv": ("conv", "depthwise"),
    "depthwise": ("depthwise", "conv"),
    "dense": ("dense", "conv"),
    "conv_transpose": ("conv_transpose",),
    "batchnorm": ("batchnorm",),
    "layernorm": ("layernorm",),
    "prelu": ("prelu",),
    "layerscale": (SCALE,),
}
"""A reference's kind → kinds of modules that may hold it."""

STRENGTHS = (1.0, 1e3)
"""Of the noise that tells apart what one photograph does not: the second is beyond any bias that closes a ReLU."""

DEFAULTS = {"weight": 1.0, "running_var": 1.0, "bias": 0.0, "running_mean": 0.0}
"""What a module's tensor is where the reference's layer has none: nothing scaled, nothing added."""


class TransferError(ValueError):
    """The weights do not go into this module; one line: where it stops, how far it came, and why."""


@dataclass
class Filled:
    """What a transfer did.

    Attributes:
        state: the module's state dict, in its own number formats.
        layers: module → the reference's layer that filled it, in the order of the computation.
        passes: forward passes that it took.
        kept: integer tensors, and those of modules that never ran, which stay as they were.
        error: of the logits, relative L2 in float64, the worst of all photographs.
        stopped: why it was not done, in one line; "": it was.
    """

    state: dict[str, Tensor] = field(repr=False)
    layers: dict[str, str]
    passes: int
    kept: list[str]
    error: float
    stopped: str = ""


class _DeadEndError(Exception):
    """No layer that is left has this input and these tensors."""


@dataclass
class _Attempt:
    """One forward pass."""

    layers: dict[str, str] = field(default_factory=dict)
    fitting: list[list[str]] = field(default_factory=list)
    filled: set[str] = field(default_factory=set)
    placed: set[str] = field(default_factory=set)
    homeless: list[str] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    stopped: str = ""
    stopped_at: tuple[str, Tensor] | None = None


class Transfer:
    """See the module.

    Args:
        reference: with float64.
        tensors: canonical name → array, every tensor of the reference's network.
        model: untrained; stays as it is.
        inputs: of every photograph, float64 (N, C, H, W).

    Attributes:
        work: the copy that is filled, float64.
        best: the attempt that came farthest.
    """

    def __init__(
        self, reference: Artifact, tensors: Mapping[str, np.ndarray], model: nn.Module, inputs: Tensor
    ) -> None:
        self.reference, self.tensors, self.model, self.inputs = reference, tensors, model, inputs
        self.work = copy.deepcopy(model).to(torch.float64).eval().requires_grad_(False)
        self.units = {layer.name: layer for layer in reference.table.layers if layer.tensors}
        self.best = _Attempt()
        self.passes = 0

    def run(self) -> Filled:
        """Fill the copy, taking choices back where they lead nowhere.

        Raises:
            TransferError: it cannot be done; nothing was changed.
        """
        choices: Counter[int] = Counter()
        attempt = self._forward(choices)
        while attempt.stopped and self.passes < PASSES:
            more = [i for i, fits in enumerate(attempt.fitting) if choices[i] + 1 < len(fits)]
            if not more:
                break
            choices = Counter({i: choices[i] for i in range(more[-1])} | {more[-1]: choices[more[-1]] + 1})
            attempt = self._forward(choices)
        if attempt.stopped:
            best = enumerate(zip(self.best.fitting, self.best.layers.values(), strict=False))
            self._forward(
                Counter({i: fits.index(name) for i, (fits, name) in best})
            )  # the copy is left as by that attempt
            raise TransferError(self.best.stopped)
        self._check_told_apart(attempt, choices)
        kept = self._complete(attempt)
        error = 0.0
        for i, photograph in enumerate(self.inputs):
            error = max(error, off := self._error(self.work(photograph[None]), i))
            if off > self._limit("logits"):
                raise TransferError(
                    f"the first photograph's logits agree, but those of photograph {i + 1} differ by {off:.1e}"
                )
        return Filled(self._state(), attempt.layers, self.passes, kept, error)

    def _forward(self, choices: Counter[int]) -> _Attempt:
        """One pass, which takes of the layers that fit a module the one of this number: the first where none is chosen."""
        attempt = _Attempt()
        self.passes += 1
        self._restore()

        def fill(name: str, module: nn.Module, given: tuple[object, ...]) -> None:
            attempt.ran.add(name)
            if name in attempt.layers or not _kind(module) or next(module.parameters(recurse=False), None) is None:
                return
            values = tensors_in(given)[0]
            fits = [unit for unit in self.units if unit not in attempt.placed and self._is_of(module, values, unit)]
            if not fits and _kind(module) == SCALE:
                return
            if not fits:
                attempt.stopped, attempt.stopped_at = self._where(name, attempt), (name, values)
                raise _DeadEndError
            unit = fits[min(choices[len(attempt.fitting)], len(fits) - 1)]
            attempt.fitting.append(fits)
            attempt.layers[name] = unit
            self._load(module, name, self.units[unit], values, attempt)

        named = self.work.named_modules()
        handles = [module.register_forward_pre_hook(partial(fill, name)) for name, module in named]
        try:
            with torch.no_grad():
                output = self.work(self.inputs[:1])
        except _DeadEndError:
            output = None
        finally:
            for handle in handles:
                handle.remove()
        if output is not None and (off := self._error(output, 0)) > self._limit("logits"):
            attempt.stopped = (
                f"every layer found its place, but the logits differ by {off:.1e} (relative L2): something after "
                f"{list(attempt.layers.values())[-1]} computes something else"
            )
        if not self.best.stopped or len(attempt.layers) > len(self.best.layers):
            self.best = attempt
        return attempt

    def _restore(self) -> None:
        """The copy's untrained weights."""
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, tensor in (*self.work.named_parameters(), *self.work.named_buffers()):
            if name in own:
                tensor.data.copy_(own[name].data)
        for module in self.work.modules():
            for role in module.__dict__.pop("lent", ()):
                setattr(module, role, None)

    def that_fit(self, name: str) -> Iterator[Layer]:
        """The layers without a place that a module could hold, in the order of the computation, whatever it reads."""
        module = self.work.get_submodule(name)
        for unit, layer in self.units.items():
            if unit not in self.best.placed and _fits(module, layer):
                yield layer

    def _is_of(self, module: nn.Module, values: Tensor, unit: str) -> bool:
        layer = self.units[unit]
        return _fits(module, layer) and any(True for _ in orders(self.reference, values, layer, self._limit))

    def _limit(self, stage: str) -> float:
        return max(SAME, MOVES * self.reference.moves.get(stage, 0.0))

    def _load(self, module: nn.Module, name: str, layer: Layer, values: Tensor, attempt: _Attempt) -> None:
        by_role = {full.rpartition(".")[2]: full for full in layer.tensors}
        names = {role: role for role in DEFAULTS}
        if layer.kind == SCALE:
            ((own, _),) = module.named_parameters(recurse=False)
            names = {"weight": own}
        for role, own in names.items():
            current, full = getattr(module, own, None), by_role.get(role)
            if isinstance(current, Tensor):
                tensor = torch.tensor(DEFAULTS[role]) if full is None else self._tensor(full, layer, values)
                current.data.copy_(tensor.reshape(current.shape) if tensor.ndim else tensor)
                attempt.filled.add(f"{name}.{own}")
            elif full is not None:  # lent, to come farther, and name all of them
                attempt.homeless.append(full)
                setattr(module, role, nn.Parameter(self._tensor(full, layer, values), requires_grad=False))
                module.__dict__.setdefault("lent", []).append(role)
        attempt.placed.add(layer.name)
        self._load_following(name, layer, attempt)

    def _tensor(self, full: str, layer: Layer, values: Tensor) -> Tensor:
        """One of the reference's; a dense kernel in the order in which the module flattens the `values` it is given."""
        tensor = torch.from_numpy(np.array(self.tensors[full], np.float64))
        flattened = layer.config.get("flattened") if tensor.ndim == 2 else None
        if flattened and next(orders(self.reference, values, layer, self._limit), "") == "same":
            height, width, channels = flattened
            tensor = tensor.reshape(-1, channels, height, width).permute(0, 2, 3, 1).reshape(tensor.shape)
        return tensor

    def _load_following(self, name: str, layer: Layer, attempt: _Attempt) -> None:
        """A scale that follows (ConvNeXt's) is a parameter of some module around this one, without a module of its own."""
        following = [u for u in self.units.values() if u.kind == "layerscale" and u.inbound == (layer.name,)]
        for unit in following:
            tensor = torch.from_numpy(np.array(self.tensors[next(iter(unit.tensors))], np.float64))
            around = name
            while around:
                around = around.rpartition(".")[0]
                container = self.work.get_submodule(around)
                for own, parameter in container.named_parameters(recurse=False):
                    full = f"{around}.{own}" if around else own
                    if parameter.numel() == tensor.numel() and full not in attempt.filled and not kind_of(container):
                        parameter.data.copy_(tensor.reshape(parameter.shape))
                        attempt.filled.add(full)
                        attempt.placed.add(unit.name)
                        around = ""
                        break

    def _where(self, name: str, attempt: _Attempt) -> str:
        before = list(attempt.layers.items())[-1:]
        after = f"after {before[0][1]} ({before[0][0]})" if before else "at the first layer"
        return f"stopped {after}: no layer that is left has the input and the tensors of {name}"

    def _check_told_apart(self, attempt: _Attempt, choices: Counter[int]) -> None:
        """Two layers of which either gives the reference's logits, though other inputs would tell them apart: no guess is made."""
        names, passes, usual = list(attempt.layers.values()), self.passes, self._answers()
        for i, fits in enumerate(attempt.fitting):
            for other in range(choices[i] + 1, len(fits)):
                again = self._forward(Counter({k: choices[k] for k in range(i)} | {i: other}))
                if not again.stopped and not torch.allclose(self._answers(), usual, rtol=SAME, atol=0):
                    raise TransferError(
                        f"{names[i]} and {fits[other]} cannot be told apart by this photograph, as either gives the same "
                        "logits: make the reference with other photographs"
                    )
        if self.passes > passes:
            self.best = attempt
            self._forward(choices)
        self.passes = passes

    def _answers(self) -> Tensor:
        """The filled copy's logits of noise, faint and strong: what is the same function gives the same."""
        noise = torch.randn(self.inputs[:1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with torch.no_grad():
            return torch.stack([logits_of(self.work(noise * strength), 1).flatten() for strength in STRENGTHS])

    def _complete(self, attempt: _Attempt) -> list[str]:
        """Whether everything has a place, both ways; the names of what stays as it was."""
        homeless = [*attempt.homeless]
        for unit in self.units.values():
            if unit.name not in attempt.placed:
                homeless += unit.tensors
        if homeless:
            biases = sum(name.endswith(".bias") for name in homeless)
            advice = "add biases to the module, or fold them" if biases == len(homeless) else "the module lacks them"
            raise TransferError(
                f"{len(homeless)} of the reference's tensors have no place in the module ({some(homeless)}): {advice}"
            )
        kept: list[str] = []
        unfilled: list[str] = []
        lent = {f"{n}.{role}" for n, module in self.work.named_modules() for role in module.__dict__.get("lent", ())}
        for name, tensor in (*self.work.named_parameters(), *self.work.named_buffers()):
            if name in attempt.filled or name in lent:
                continue
            idle = name.rpartition(".")[0] not in attempt.ran
            (kept if idle or not tensor.is_floating_point() else unfilled).append(name)
        if unfilled:
            raise TransferError(f"nothing fills {len(unfilled)} of the module's tensors ({some(unfilled)})")
        return kept

    def _error(self, output: object, row: int) -> float:
        logits = logits_of(output, 1).reshape(-1).double().numpy()
        expected = self.reference.values("logits", "fp64")[row]
        if logits.shape != expected.shape:
            raise TransferError(f"the module gives {logits.size} logits, the reference {expected.size}")
        return relative(logits, expected)

    def _state(self) -> dict[str, Tensor]:
        """The filled copy's tensors, in the module's own formats."""
        filled = self.work.state_dict()
        return {
            name: filled[name].to(tensor.dtype).contiguous().clone() for name, tensor in self.model.state_dict().items()
        }


def _kind(module: nn.Module) -> str:
    """As `kind_of`; also `SCALE`."""
    alone = next(module.children(), None) is None and len(list(module.parameters(recurse=False))) == 1
    return kind_of(module) or (SCALE if alone else "")


def _fits(module: nn.Module, layer: Layer) -> bool:
    """Whether a module's kind may hold a layer, and its weight has the layer's shape, but for axes of length 1."""
    if _kind(module) not in FITTING.get(layer.kind, ()):
        return False
    shapes = {name.rpartition(".")[2]: shape for name, shape in layer.tensors.items()}
    weight = getattr(module, "weight", None)
    if layer.kind == "batchnorm":
        return int(module.num_features) == shapes["running_mean"][0]  # type: ignore[arg-type]
    if layer.kind == SCALE:
        return next(module.parameters()).numel() == shapes["weight"][0]
    if "weight" not in shapes or not isinstance(weight, Tensor):
        return False
    ours, theirs = tuple(shapes["weight"]), tuple(weight.shape)
    return ours == theirs or tuple(n for n in ours if n > 1) == tuple(n for n in theirs if n > 1)
