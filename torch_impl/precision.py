"""Number formats and devices by name, and the switches that go with them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from parity.contract.stages import PRECISIONS

_DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def dtype_of(precision: str) -> torch.dtype:
    """The storage type of weights and activations.

    Raises:
        ValueError: unknown name.
    """
    if precision not in _DTYPES:
        raise ValueError(f"precision {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
    return _DTYPES[precision]


class DeviceError(ValueError):
    """No such device here; the message says what there is."""


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: CUDA where there is one, else the CPU; or `cpu`, `cuda`, `cuda:1`.

    Raises:
        DeviceError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise DeviceError(f"device {name!r} is not supported; give auto, cpu, cuda or cuda:1")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(f"device {name!r}: PyTorch finds no CUDA device here; give cpu or auto")
        if (device.index or 0) >= count:
            raise DeviceError(f"device {name!r}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return device


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device, without waiting for what the device is still doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """The storage type of a number format, on a device that has it.

    Raises:
        ValueError: unknown, or not to be had there.
    """
    dtype = dtype_of(precision)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("precision tf32 exists on CUDA devices only; give fp32")
    return dtype


def name_of(dtype: torch.dtype) -> str:
    """The format of tensors of a type: `fp32` for float32, and for every type that is none of the others."""
    return {torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "fp32")


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The type in which maps are summed, upsampled and normalized: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


SCORE_SCALE = 2.0**10
"""Factor on every score before its gradient is taken, so that small gradients survive float16 (smallest: 6e-8), wherever in
the model it is used. A power of two, which changes no digit of the other formats."""

TURNS = threading.RLock()
"""Explanations take turns: the switches below are the process's."""


@contextlib.contextmanager
def numerics(precision: str) -> Iterator[None]:
    """TF32 on for tf32 and off for everything else, within the block, one block at a time; on CUDA, convolutions that give the same numbers every time.

    cuDNN chooses among its deterministic algorithms by rule (`deterministic`), not by timing them (`benchmark`): for VGG16 that
    took 8 to 30 seconds for each new shape and gained a sixth at most, and a clock's choice may be another one the next time. cuDNN's
    TF32 is on by default in PyTorch: "fp32" without this is not fp32 on an NVIDIA GPU. All switches are put back to what they were,
    TF32's in whichever of PyTorch's two ways (`allow_tf32`, `fp32_precision`) they had been set.
    """
    with TURNS:
        switches = _switches()
        before = [getattr(owner, name) for owner, name, _, _ in switches]
        try:
            for owner, name, on, off in switches:
                setattr(owner, name, on if precision == "tf32" else off)
            yield
        finally:
            for (owner, name, _, _), value in zip(switches, before, strict=True):
                setattr(owner, name, value)


def _switches() -> list[tuple[Any, str, Any, Any]]:
    """(owner, attribute, value for tf32, value for every other precision)."""
    cuda, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    algorithms = [(cudnn, "benchmark", False, False), (cudnn, "deterministic", True, True)]
    # PyTorch 2.9 and later refuse to read the old names once the new ones were used.
    if hasattr(cuda, "fp32_precision"):
        return algorithms + [(owner, "fp32_precision", "tf32", "ieee") for owner in (cuda, cudnn.conv, cudnn.rnn)]
    return [*algorithms, (cuda, "allow_tf32", True, False), (cudnn, "allow_tf32", True, False)]
