"""A CUDA device for machines without one: its tensors lie in the CPU's memory, and everything else is as strict as CUDA.

What a GPU would refuse is refused here: an operation on tensors of both devices, `.numpy()` of a tensor "on the device", a
weight that was left behind. Rounding, speed, streams and memory are the CPU's, so this proves where tensors are, not what a
GPU computes: a test on a real one is still needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor that says it is on `DEVICE`; `host` holds its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> OnDevice:
        shell = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shell)
        made.host = real
        return made

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"OnDevice({self.host!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


MIXED = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
}
"""CUDA takes tensors of both devices here: copies, and indices from the host."""


WAITED: list[str] = []
"""For whatever makes the host wait until the device has done all that it was told: the operator's name."""

ASKING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
"""Operators whose result the host must know; the others that wait copy from the device, or a tensor that is not pinned to it."""


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator, as the device would run it."""
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    here = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.ndim and leaf.device.type == "cpu"]
    if there and here and func not in MIXED:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got cuda:0 and cpu")
    asked = kwargs.get("device")
    index = func in MIXED and "index" in str(func)
    home = asked is not None and torch.device(asked).type == "cpu"
    out = func is torch.ops.aten.copy_.default and not isinstance(args[0], OnDevice)
    if there and (func in ASKING or home or out or (index and here)):
        WAITED.append(str(func))
    to_device = asked is not None and torch.device(asked).type in ("cuda", "meta") and not _truly_meta
    if to_device:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    owners = {id(leaf.host): leaf for leaf in there}
    real_args, real_kwargs = tree_map(lambda x: x.host if isinstance(x, OnDevice) else x, (args, kwargs))
    results = func(*real_args, **real_kwargs)
    if asked is not None:
        on_device = to_device
    elif func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
    else:
        on_device = bool(there)

    def given(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in owners:
            return owners[id(value)]
        return OnDevice(value) if on_device else value

    return tree_map(given, results)


_truly_meta: list[bool] = []
"""Not empty while a call asks for PyTorch's own `meta` device, which is what autograd takes `DEVICE` for."""


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Python calls that would start CUDA before any operator runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            return args[0]
        if func == torch.Tensor.data.__set__ and isinstance(args[0], OnDevice):
            args[0].host = args[1].host
        if name == "detach" and isinstance(args[0], OnDevice):
            return OnDevice(args[0].host)
        if name == "tolist" and isinstance(args[0], OnDevice):
            WAITED.append(name)
            return args[0].host.tolist()
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], OnDevice) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])  # PyTorch itself would make it on `meta`
        if name == "__getitem__" and isinstance(args[0], OnDevice) and torch.is_inference_mode_enabled():
            return OnDevice(args[0].host[tree_map(lambda x: x.host if isinstance(x, OnDevice) else x, args[1])])
        if name in ("to", "cuda") and isinstance(args[0], torch.Tensor):
            return _moved(func, name, args, kwargs)
        if _is_cuda(kwargs.get("device")):
            if name in ("tensor", "as_tensor"):
                WAITED.append(name)
            kwargs["device"] = torch.device("cpu")
            return _on_device(func(*args, **kwargs))
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            _truly_meta.append(True)
            try:
                return func(
                    *(
                        torch.empty(a.shape, dtype=a.dtype, device="meta") if isinstance(a, OnDevice) else a
                        for a in args
                    ),
                    **kwargs,
                )
            finally:
                _truly_meta.pop()
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, OnDevice):
        return tensor
    made = OnDevice(tensor.detach())
    return made.requires_grad_() if tensor.requires_grad else made


def _moved(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    tensor, *rest = args
    if name == "cuda":
        return _on_device(tensor)
    wanted = kwargs.get("device", next((value for value in rest if isinstance(value, str | torch.device)), None))
    if not _is_cuda(wanted):
        return func(*args, **kwargs)
    if not isinstance(tensor, OnDevice) and not kwargs.get("non_blocking"):
        WAITED.append(name)
    rest = [value for value in rest if not isinstance(value, str | torch.device | bool)]
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
    kept = func(tensor, *rest, **kwargs) if rest or kwargs else tensor
    return _on_device(kept)


def _one_device(device: Any) -> None:
    if not isinstance(device, int) and torch.device(device).index is None:
        raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")


@contextlib.contextmanager
def pretended() -> Iterator[torch.device]:
    """Within the block there is one CUDA device."""
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda *_: 0,
        "get_device_name": lambda *_: "pretended",
        "set_device": _one_device,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 10**6,
        "get_rng_state": lambda *_: torch.random.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.random.set_rng_state(state),
    }
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        # Its Python part would come back to itself through `_Calls`, and tests count its calls.
        mock.patch.object(torch.autograd, "has_torch_function", return_value=False),
        _Calls(),
        _Factories(),
    ):
        yield DEVICE
