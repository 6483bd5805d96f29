"""PyTorch twins of small networks, made of a layer table and nn modules: right ones, and wrong in one row on purpose.

Written beside `torch_impl.twin.compute`, from PyTorch's own modules, as people write them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from table_networks import Builder
from torch import Tensor, nn

from parity import twins
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.contract.layers import Layer
from parity.report import ParityReport
from parity.twins import Module

Step = Callable[[Tensor], Tensor]
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Style:
    """How a module is written.

    Attributes:
        functional: activations, pools and flattening as functions.
        shared: one ReLU for all.
        wrapped: each layer in a Sequential within a Sequential.
        shuffled: layers defined in another order, under names that say nothing.
        untrained: random weights in place of the network's.
    """

    functional: bool = False
    shared: bool = False
    wrapped: bool = False
    shuffled: int = 0
    untrained: bool = False


@dataclass(frozen=True)
class Wrong:
    """What is wrong on purpose.

    Attributes:
        config: layer → settings in place of the table's; `drop`: it is left out; `step`: a function in its place.
        tensors: name → what is done to the weight.
        inputs: what the module does to its inputs first.
        logits: what it does to its logits.
    """

    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tensors: Mapping[str, Edit | None] = field(default_factory=dict)
    inputs: Edit | None = None
    logits: Edit | None = None


def at(layer: str, **config: Any) -> Wrong:
    """One layer with other settings."""
    return Wrong(config={layer: config})


def weight(name: str, edit: Edit | None) -> Wrong:
    """One tensor otherwise; None: it is missing."""
    return Wrong(tensors={name: edit})


class TableNet(nn.Module):
    """The network of a builder's rows."""

    def __init__(self, builder: Builder, wrong: Wrong | None = None, style: Style | None = None) -> None:
        super().__init__()
        self.wrong, self.style = wrong or Wrong(), style or Style()
        self.rows, self.target = builder.layers, builder.target
        self.readers = [name for row in self.rows for name in row.inbound]
        self.own: dict[str, Tensor | None] = {}
        for name, array in builder.tensors.items():
            edit = self.wrong.tensors.get(name, _same)
            self.own[name] = None if edit is None else edit(torch.from_numpy(array.copy())).contiguous()
        self.relu = nn.ReLU(inplace=False) if self.style.shared else None
        self.steps: dict[str, list[Any]] = {}
        for row in self.rows[1:]:
            first = row.config.get("shared_with")
            self.steps[row.name] = self.steps[first] if first else self._steps(row)
        self._register()

    def _register(self) -> None:
        own = [row.name for row in self.rows[1:] if "shared_with" not in row.config]
        modules = [(name, i, step) for name in own for i, step in enumerate(self.steps[name])]
        modules = [(name, i, s) for name, i, s in modules if isinstance(s, nn.Module) and s is not self.relu]
        chance = random.Random(self.style.shuffled)
        if self.style.shuffled:
            chance.shuffle(modules)
        for number, (name, i, step) in enumerate(modules):
            if self.style.wrapped:
                self.steps[name][i] = step = nn.Sequential(nn.Sequential(step))
            own = f"part_{number}" if self.style.shuffled else f"{name.replace('/', '_')}_{i}"
            self.add_module(own, step)

    def _steps(self, row: Layer) -> list[Any]:
        changed = self.wrong.config.get(row.name, {})
        if "step" in changed:
            return [changed["step"]]
        if changed.get("drop"):
            return []
        config = {**row.config, **changed}
        own = {key.rpartition(".")[2]: self.own[key] for key in row.tensors}
        made = STEPS[row.kind](row, config, own, self.style) if row.kind in STEPS else []
        if row.kind in ("conv", "depthwise", "conv_transpose", "dense", "activation"):
            made = [*made, *self._activation(row, config)]
        if self.style.untrained:
            for step in made:
                if isinstance(step, nn.Module):
                    _forget(step)
        return made

    def _activation(self, row: Layer, config: Mapping[str, Any]) -> list[Any]:
        name = str(config.get("activation") or "linear")
        name = "relu6" if name == "relu" and config.get("max_value") == 6 else name
        if name == "linear":
            return []
        if name == "relu" and self.relu is not None:
            return [self.relu]
        if self.style.functional and name in FUNCTIONS and row.name != self.target:
            return [FUNCTIONS[name]]
        if name == "leaky_relu":
            return [nn.LeakyReLU(config["slope"])]
        if name == "gelu":
            return [nn.GELU(approximate="tanh" if config.get("approximate") else "none")]
        alone = row.kind != "activation" or self.readers.count(row.inbound[0]) == 1
        return [nn.ReLU(inplace=alone)] if name == "relu" else [MODULES[name]()]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, classes)."""
        values = {self.rows[0].name: x if self.wrong.inputs is None else self.wrong.inputs(x)}
        for row in self.rows[1:]:
            given = [values[name] for name in row.inbound]
            merge = self.wrong.config.get(row.name, {}).get("merge", MERGES.get(row.kind))
            value = merge(given) if merge else given[0]
            for step in self.steps[row.name]:
                value = step(value)
            values[row.name] = value
        logits = values[self.rows[-1].name]
        return logits if self.wrong.logits is None else self.wrong.logits(logits)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _forget(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)


MERGES: Mapping[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "add": lambda given: given[0] + given[1],
    "multiply": lambda given: given[0] * given[1],
    "concatenate": lambda given: torch.cat(list(given), 1),
}

FUNCTIONS: Mapping[str, Step] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}

MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hard_silu": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "softmax": lambda: nn.Softmax(1),
    "softplus": nn.Softplus,
}

Own = Mapping[str, Tensor | None]


def _filled(module: nn.Module, own: Own) -> nn.Module:
    for role in ("weight", "bias", "running_mean", "running_var"):
        if (tensor := own.get(role)) is not None:
            getattr(module, role).data = tensor.clone()
    return module


def _borders(size: Sequence[int], window: Sequence[int], stride: Sequence[int], dilation: int = 1) -> list[int]:
    """(left, right, top, bottom) of Keras's `same`."""
    sides: list[int] = []
    for n, k, s in zip(size[::-1], window[::-1], stride[::-1], strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * dilation + 1 - n, 0)
        sides += [total // 2, total - total // 2]
    return sides


class Same:
    """Keras's `same` before a convolution or max-pool, whatever the side."""

    def __init__(self, window: Sequence[int], stride: Sequence[int], value: float = 0.0) -> None:
        self.window, self.stride, self.value = window, stride, value

    def __call__(self, x: Tensor) -> Tensor:
        return F.pad(x, _borders(x.shape[2:], self.window, self.stride), value=self.value)


def _conv(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    kernel, stride, padding = config["kernel"], config["strides"], config["padding"]
    dilation = (config.get("dilation") or [1])[0]
    weights = own["weight"]
    out, per_group = weights.shape[:2]
    groups = out // int(config.get("multiplier", 1)) if row.kind == "depthwise" else int(config.get("groups", 1))
    before: list[Any] = []
    if padding == "same" and max(stride) == 1:
        padding = dilation * (kernel[0] - 1) // 2
    elif padding == "same":
        before, padding = [Same(kernel, stride)], 0
    padding = 0 if padding == "valid" else padding
    module = nn.Conv2d(
        per_group * groups, out, kernel, stride, padding, dilation, groups, bias=own.get("bias") is not None
    )
    return [*before, _filled(module, own)]


def _transposed(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    (k, _), (s, _) = config["kernel"], config["strides"]
    into, out = own["weight"].shape[:2]
    more = max(k - s, 0)
    padding = config["padding"] if isinstance(config["padding"], int) else more // 2
    extra = config.get("output_padding", 0)
    module = nn.ConvTranspose2d(into, out, k, s, padding, extra, bias=own.get("bias") is not None)
    cut = (more % 2) and config["padding"] == "same"
    return [_filled(module, own), *([lambda x: x[:, :, :-1, :-1]] if cut else [])]


def _dense(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    units, inputs = own["weight"].shape
    linear = _filled(nn.Linear(inputs, units, bias=own.get("bias") is not None), own)
    if config.get("flattened"):
        if config.get("order") == "last":
            return [lambda x: x.movedim(1, -1).flatten(1), linear]
        return [(lambda x: x.flatten(1)) if style.functional else nn.Flatten(), linear]
    if len(row.shape) == 3:  # at every place, channels last, as ConvNeXt's
        return [lambda x: x.permute(0, 2, 3, 1), linear, lambda x: x.permute(0, 3, 1, 2)]
    return [linear]


class BatchStatistics(nn.BatchNorm2d):
    """As in training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, eps=self.eps)


def _batchnorm(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    kind = BatchStatistics if config.get("training") else nn.BatchNorm2d if len(row.shape) == 3 else nn.BatchNorm1d
    return [_filled(kind(len(own["running_mean"]), eps=config["epsilon"]), own)]


class LayerNorm2d(nn.LayerNorm):
    """torchvision's, over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def _layernorm(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    kind = LayerNorm2d if len(row.shape) == 3 else nn.LayerNorm
    return [_filled(kind(row.shape[-1], eps=config["epsilon"]), own)]


def _pool(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    window, stride, padding = config["window"][0], config["strides"][0], config["padding"]
    if padding == "same" and (stride > 1 or window % 2 == 0):
        if config["pool"] == "max":
            return [Same([window] * 2, [stride] * 2, -torch.inf), nn.MaxPool2d(window, stride)]
        pad = Same([window] * 2, [stride] * 2)
        sums = lambda x: F.avg_pool2d(pad(x), window, stride)  # noqa: E731
        return [lambda x: sums(x) / sums(torch.ones_like(x))]
    padding = (window - 1) // 2 if padding == "same" else 0 if padding == "valid" else padding
    ceil = bool(config.get("ceil"))
    if config["pool"] == "max":
        if style.functional:
            return [lambda x: F.max_pool2d(x, window, stride, padding)]
        return [nn.MaxPool2d(window, stride, padding, ceil_mode=ceil)]
    return [nn.AvgPool2d(window, stride, padding, ceil_mode=ceil, count_include_pad=bool(config.get("counts")))]


def _global(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    keep = len(row.shape) == 3
    if config["pool"] == "max":
        return [nn.AdaptiveMaxPool2d(1), *([] if keep else [nn.Flatten()])]
    if style.functional:
        return [lambda x: x.mean((2, 3), keepdim=keep)]
    return [nn.AdaptiveAvgPool2d(1), *([] if keep else [nn.Flatten()])]


class Scale(nn.Module):
    """ConvNeXt's layer scale."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(values.clone().reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def _prelu(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    return [_filled(nn.PReLU(own["weight"].numel()), {"weight": own["weight"].flatten()})]


def _upsample(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    mode = config.get("interpolation", "nearest")
    corners = None if mode == "nearest" else bool(config.get("corners"))
    return [nn.Upsample(scale_factor=tuple(map(float, config["size"])), mode=mode, align_corners=corners)]


def _pad(row: Layer, config: Mapping[str, Any], own: Own, style: Style) -> list[Any]:
    (top, bottom), (left, right) = config["sides"]
    sign = -1 if row.kind == "crop" else 1
    sides = [sign * n for n in (left, right, top, bottom)]
    return [lambda x: F.pad(x, sides)]


STEPS: Mapping[str, Callable[[Layer, Mapping[str, Any], Own, Style], list[Any]]] = {
    "conv": _conv,
    "depthwise": _conv,
    "conv_transpose": _transposed,
    "dense": _dense,
    "batchnorm": _batchnorm,
    "layernorm": _layernorm,
    "pool": _pool,
    "globalpool": _global,
    "prelu": _prelu,
    "upsample": _upsample,
    "pad": _pad,
    "crop": _pad,
    "layerscale": lambda row, config, own, style: [Scale(own["weight"])],
    "reshape": lambda row, config, own, style: [lambda x: x.reshape(len(x), row.shape[-1], *row.shape[:-1])],
}


def compared(reference: Artifact, model: nn.Module, *precisions: str, **how: Any) -> ParityReport:
    """The verdict on a module; `how` as of `twins.Module`."""
    module = Module(model, **how)
    answers = {p: twins.answer(reference, module, precision=p) for p in precisions or ("fp64", "fp32")}
    return compare(reference, answers)


def parting(report: ParityReport, precision: str) -> tuple[str, str]:
    """The stage at which the network first parts from the reference's, and the cause."""
    verdict = next(v for v in report.verdicts if v.precision == precision and not v.holds)
    return verdict.divergences[0].stage, verdict.divergences[0].cause
