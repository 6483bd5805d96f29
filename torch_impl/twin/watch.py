"""A module run once, and every call of every module in it seen: also of those that run several times, or in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Softplus),
)

KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv_transpose", (nn.modules.conv._ConvTransposeNd,)),
    ("conv", (nn.modules.conv._ConvNd,)),
    ("dense", (nn.Linear,)),
    ("batchnorm", (nn.modules.batchnorm._BatchNorm,)),
    ("layernorm", (nn.LayerNorm, nn.GroupNorm)),
    ("globalpool", (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)),
    ("pool", (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)),
    ("upsample", (nn.Upsample,)),
    ("pad", (nn.ZeroPad2d, nn.ConstantPad2d)),
    ("prelu", (nn.PReLU,)),
    ("activation", ACTIVATIONS),
)


def kind_of(module: nn.Module) -> str:
    """A module's kind, in the words of the layer table; "" where it is none of them."""
    kind = next((kind for kind, types in KINDS if isinstance(module, types)), "")
    groups = getattr(module, "groups", 1)
    return "depthwise" if kind == "conv" and 1 < groups == getattr(module, "in_channels", 0) else kind


@dataclass(frozen=True)
class Call:
    """One time that a module ran.

    Attributes:
        name: of the module.
        number: which time of this module it was, from 1.
        place: which of all calls it was, in the order in which they ended.
        kind: see `kind_of`; "" also for a module that others ran within.
        shape: of its output, with the leading axis; () where that is no tensor.
        inner: the name of the module within whose very output this one returned; "" where it made its own.
    """

    name: str
    number: int
    place: int
    kind: str
    shape: tuple[int, ...]
    inner: str = ""

    @property
    def key(self) -> str:
        """`layer3.0.relu`, or of a later time `layer3.0.relu:2`."""
        return self.name if self.number == 1 else f"{self.name}:{self.number}"


See = Callable[[Call, nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]
"""Called after each call with its module, tensors given and tensor returned; what it returns takes the output's place."""


def tensors_in(values: object) -> tuple[Tensor, ...]:
    """The tensors among what a module was given or has returned."""
    if isinstance(values, Tensor):
        return (values,)
    if isinstance(values, dict):
        values = tuple(values.values())
    return tuple(v for v in values if isinstance(v, Tensor)) if isinstance(values, Sequence) else ()


@dataclass
class Watch:
    """See the module.

    Args:
        model: is not changed; its hooks stay only as long as `watching`.
    """

    model: nn.Module
    calls: list[Call] = field(default_factory=list)

    @contextmanager
    def watching(self, see: See) -> Iterator[None]:
        """Within, `see` is called with every call."""
        self.calls.clear()
        counts: Counter[str] = Counter()
        last: list[tuple[str, Tensor]] = []
        handles = []

        def hook_of(name: str) -> Callable[[nn.Module, object, object], object]:
            def hook(module: nn.Module, given: object, returned: object) -> object:
                counts[name] += 1
                outputs = tensors_in(returned)
                output = outputs[0] if isinstance(returned, Tensor) or len(outputs) == 1 else None
                before = last[-1] if last else ("", None)
                within = before[0].startswith(f"{name}.") if name else bool(before[0])
                inner = before[0] if within and output is before[1] else ""
                shape = () if output is None else tuple(output.shape)
                ran_within = any(call.name.startswith(f"{name}.") for call in self.calls[-1:]) if name else True
                kind = "" if ran_within else kind_of(module)
                call = Call(name, counts[name], len(self.calls), kind, shape, inner)
                self.calls.append(call)
                if output is None:
                    last.clear()
                    return None
                instead = see(call, module, tensors_in(given), output)
                last[:] = [(name, output if instead is None else instead)]
                return None if instead is None or not isinstance(returned, Tensor) else instead

            return hook

        try:
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_hook(hook_of(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def keeping(self, keys: Container[str]) -> Iterator[dict[str, Tensor]]:
        """Within, the outputs of the calls of these keys are kept, and stay what they are where what follows works in place.

        Without gradients they are copies, since what follows gets the very tensors where a module returns several.
        """
        kept: dict[str, Tensor] = {}

        def see(call: Call, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if call.key not in keys:
                return None
            kept[call.key] = output if torch.is_grad_enabled() else output.clone()
            return output.clone()

        with self.watching(see):
            yield kept

    def run(self, inputs: Tensor, see: See) -> object:
        """The model's output for inputs, without gradients."""
        with self.watching(see), torch.no_grad():
            return self.model(inputs.clone())
