"""A model that was handed in stays as it is: what is run is a double of its modules, over the very same weights."""

from __future__ import annotations

import contextlib
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, OrderedDict, list, set)


class ModelError(ValueError):
    """A model that cannot be explained; the message says why and what to do."""


class Double:
    """A model's modules once more, frozen and in eval mode; parameters and buffers share the original's memory.

    Hooks that are set on the double, modes, gradients and whatever its modules remember of a pass stay on the double, so
    that the original can predict, or train, in another thread meanwhile, and is afterwards what it was, also after an
    error. The original's own hooks are called, as in any prediction.

    Args:
        model: any module; DataParallel's and torch.compile's wrappers are taken off.

    Raises:
        ModelError: not a module, or one that takes no hooks or has no gradients.

    Attributes:
        model: the double of the model inside its wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = unwrapped(model)
        self._doubles: dict[int, nn.Module] = {}
        parameters: dict[int, nn.Parameter] = {}
        for module in inner.modules():
            double = type(module).__new__(type(module))
            double.__dict__ = {
                key: type(value)(value) if type(value) in _CONTAINERS else value
                for key, value in module.__dict__.items()
            }
            double._parameters = {
                name: None if p is None else parameters.setdefault(id(p), _frozen(p))
                for name, p in module._parameters.items()
            }
            self._doubles[id(module)] = double
        for double in self._doubles.values():
            for key, value in double.__dict__.items():
                if key not in ("_parameters", "_buffers"):
                    double.__dict__[key] = self._rewired(value)
            if isinstance(double, nn.RNNBase):  # it keeps a second list of its parameters
                double._flat_weights = [getattr(double, name, None) for name in double._flat_weights_names]
        self.model = self._doubles[id(inner)].eval()
        for double in self._doubles.values():
            if isinstance(
                double, nn.RNNBase
            ):  # cuDNN has gradients in training mode only; without dropout it is the same
                double.training, double.dropout = True, 0.0

    def of(self, module: nn.Module) -> nn.Module:
        """The double of a module of the original."""
        return self._doubles[id(unwrapped(module))]

    def _rewired(self, value: Any) -> Any:
        """The same value, with doubles wherever it holds modules of the original."""
        if isinstance(value, nn.Module):
            return self._doubles.get(id(value), value)
        if type(value) in (dict, OrderedDict):
            return type(value)((key, self._rewired(item)) for key, item in value.items())
        if type(value) in (list, tuple):
            return type(value)(self._rewired(item) for item in value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._rewired(value.__self__))
        if isinstance(value, functools.partial):
            arguments = {key: self._rewired(item) for key, item in value.keywords.items()}
            return functools.partial(self._rewired(value.func), *map(self._rewired, value.args), **arguments)
        return value


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel's and torch.compile's wrappers.

    Raises:
        ModelError: not a module, or one that takes no hooks or has no gradients.
    """
    if not isinstance(model, nn.Module):
        kind = "a function" if callable(model) else type(model).__name__
        raise ModelError(f"the model is {kind}: give an nn.Module (a function can be wrapped in one)")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(
            getattr(model, "_orig_mod", None), nn.Module
        ):  # torch.compile: hooks are not part of what it made
            model = model._orig_mod  # type: ignore[assignment]
        else:
            break
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                "the model is scripted or traced (TorchScript), which takes no hooks: give the eager model"
            )
        if "quantized" in type(module).__module__:
            raise ModelError(
                f"the model holds quantized layers ({type(module).__name__}), which have no gradients: give the float model"
            )
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise ModelError("the model has lazy layers without weights yet: run it once before it is explained")
    return model


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    """The same memory, without gradients; of a parameter made in inference mode, which can have none, a copy."""
    values: Tensor = parameter.detach()
    with torch.inference_mode(False):
        return nn.Parameter(values.clone() if values.is_inference() else values, requires_grad=False)


@contextlib.contextmanager
def own_gradients() -> Iterator[None]:
    """Gradients are had, and nothing is computed in another number format, whatever the caller has switched on around it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
