"""How the double of a model is put together: its modules once more, and whatever they hold that leads to a module, led to the double."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, tuple, set, deque)

_USUAL = frozenset((dict, list, set, deque, OrderedDict))

_PLAIN = frozenset((type(None), bool, int, float, str))

_REGISTRIES = frozenset(vars(nn.Module()))
"""What PyTorch keeps in every module. Most of it is empty, and none of it another module's too."""

_OWN_COPYING = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__del__")
"""An object whose class has one of these says itself how it is copied, or ends something when it goes: it is shared."""


def inside(module: nn.Module) -> nn.Module:
    """The module inside DataParallel's and torch.compile's wrappers."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled
        else:
            return module


class Rewiring:
    """Doubles of modules, made once each, and of what leads to them.

    A module may be reached by other ways than as a part: through a list, a bound method that replaces `forward`, a closure, a
    name that a function looks up. All lead to the double.

    Args:
        share: whether parameters share the original's memory; else they are copies.
        device: where tensors are to be; None: where they are.
        dtype: of floating-point tensors; None: their own.
    """

    def __init__(self, *, share: bool, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self._share, self._device, self._dtype = share, device, dtype
        self._made: dict[int, tuple[Any, Any]] = {}  # id → (original, which must live as long as its id counts; double)

    def module(self, module: nn.Module) -> nn.Module:
        """The double of a module; TorchScript's, which has no attributes of its own, is itself."""
        module = inside(module)
        if id(module) in self._made:
            double: nn.Module = self._made[id(module)][1]
            return double
        if isinstance(module, torch.jit.ScriptModule):
            return module
        double = self._note(module, object.__new__(type(module)))
        attributes = dict(module.__dict__)  # all at once: another thread may be adding one
        attributes.pop("_compiled_call_impl", None)  # module.compile()
        for key, value in attributes.items():
            kind = type(value)
            if kind in _USUAL and not value and key in _REGISTRIES:
                value = value.copy()
            elif key.endswith("_hooks") and isinstance(value, dict):  # what a hook notes down is its owner's
                value = self._container(value, self._one_step, new=True)
            elif kind not in _PLAIN:  # what a module remembers is its own
                value = self._own(value)
            double.__dict__[key] = value
        return double

    def _note(self, original: Any, double: Any) -> Any:
        self._made[id(original)] = (original, double)
        return double

    def _own(self, value: Any, objects: bool = True) -> Any:
        """An attribute of a double: containers and tensors are copies, and so is an object that is one step away."""
        if type(value) in _PLAIN:
            return value
        if id(value) in self._made:
            return self._made[id(value)][1]
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if type(value) not in weakref.ProxyTypes and isinstance(value, _CONTAINERS):
            self._note(value, value)  # it may hold itself
            return self._note(value, self._container(value, functools.partial(self._own, objects=objects), new=True))
        if objects and _is_plain(value):
            return self._object(value, functools.partial(self._own, objects=False), new=True)
        return self._led(value)

    def _one_step(self, value: Any) -> Any:
        """As `_led`; also through the attributes of an object, but not of those that it leads to."""
        return self._object(value, self._led) if id(value) not in self._made and _is_plain(value) else self._led(value)

    def _led(self, value: Any) -> Any:
        """The same value, led to doubles; a copy only where it holds a module, or a parameter."""
        if id(value) in self._made:
            return self._made[id(value)][1]
        if type(value) in weakref.ProxyTypes:
            return weakref.proxy(self._led(value.__repr__.__self__))
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, nn.Parameter):
            return self._tensor(value)
        if isinstance(value, _CONTAINERS):
            self._note(value, value)  # it may hold itself
            return self._note(value, self._container(value, self._led))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            led = self._one_step(value.__self__)
            return value if led is value.__self__ else types.MethodType(value.__func__, led)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            func, args, keywords = led = tuple(map(self._led, parts))
            same = all(a is b for a, b in zip(led, parts, strict=True))
            return value if same else functools.partial(func, *args, **keywords)
        if type(value) is weakref.ref and (referent := value()) is not None:
            led = self._led(referent)
            return value if led is referent else weakref.ref(led)
        return value

    def _tensor(self, values: Tensor) -> Tensor:
        """A frozen parameter, or a copy of another tensor, without the graph that it may hang on."""
        detached: Tensor = values.detach()
        parameter = isinstance(values, nn.Parameter)
        if not (parameter and self._share) or values.is_inference():  # an inference tensor can have no gradients
            detached = detached.clone()
        if self._device is not None or self._dtype is not None:
            detached = detached.to(device=self._device, dtype=self._dtype if values.is_floating_point() else None)
        made: Tensor = nn.Parameter(detached, requires_grad=False) if parameter else detached
        self._note(values, made)
        return made

    def _container(self, value: Any, change: Callable[[Any], Any], *, new: bool = False) -> Any:
        """A container with its entries changed; itself if that leaves them all, and no `new` one is wanted."""
        if new and not value and type(value) in _USUAL:  # as most of a module's are: a tenth of the time
            return value.copy()
        flat = [x for pair in dict(value).items() for x in pair] if isinstance(value, dict) else list(value)
        keys = slice(0, None, 2) if isinstance(value, dict) else slice(0)
        changed = [*map(change, flat)]
        changed[keys] = [self._led(key) if isinstance(key, nn.Module) else key for key in flat[keys]]
        if all(a is b for a, b in zip(flat, changed, strict=True)) and (isinstance(value, tuple) or not new):
            return value
        if isinstance(value, tuple):
            return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
        try:
            double = copy.copy(value)
            double.clear()
            if isinstance(value, dict):
                double.update(zip(changed[::2], changed[1::2], strict=True))
            else:
                double.update(changed) if isinstance(value, set) else double.extend(changed)
        except Exception:  # a subclass with rules of its own
            return value
        return double

    def _object(self, value: Any, change: Callable[[Any], Any], *, new: bool = False) -> Any:
        """An object of somebody's class with its attributes changed; itself as `_container`."""
        self._note(value, value)  # it may lead back to itself
        attributes = dict(value.__dict__)
        changed = {key: change(item) for key, item in attributes.items()}
        if all(changed[key] is item for key, item in attributes.items()) and not new:
            return value
        try:
            double = copy.copy(value)
        except TypeError:  # of a class written in C
            return value
        double.__dict__.update(changed)
        return self._note(value, double)

    def _function(self, function: types.FunctionType) -> Any:
        """A function with doubles in its closure, its defaults and the names that it looks up."""
        if (compiled := getattr(function, "_torchdynamo_orig_callable", None)) is not None:
            return self._led(compiled)
        self._note(function, function)  # it may hold itself
        cells = tuple(map(self._cell, function.__closure__ or ()))
        defaults, keywords = self._led(function.__defaults__), self._led(function.__kwdefaults__)
        names = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
        kinds = (nn.Module, types.MethodType, functools.partial, list, tuple, dict)
        led = {name: self._led(value) for name, value in names.items() if isinstance(value, kinds)}
        led = {name: value for name, value in led.items() if value is not names[name]}
        same = all(a is b for a, b in zip(cells, function.__closure__ or (), strict=True))
        if same and not led and defaults is function.__defaults__ and keywords is function.__kwdefaults__:
            return function
        scope = {**function.__globals__, **led} if led else function.__globals__
        double = types.FunctionType(function.__code__, scope, function.__name__, defaults, cells)
        double.__kwdefaults__ = keywords
        double.__dict__.update(function.__dict__)
        return self._note(function, double)

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            value = cell.cell_contents
        except ValueError:  # still empty
            return cell
        led = self._one_step(value)
        return cell if led is value else types.CellType(led)


def _is_plain(value: Any) -> bool:
    """Whether an object is of a class of somebody's that copies as any does, and holds something."""
    kind = type(value)
    if not getattr(value, "__dict__", None) or isinstance(
        value, (type, nn.Module, types.ModuleType, types.FunctionType)
    ):
        return False
    usual = all(getattr(kind, name, None) is getattr(object, name, None) for name in _OWN_COPYING)
    return usual or kind is types.SimpleNamespace


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function looks up, also in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
