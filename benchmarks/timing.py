"""A stopwatch for single operations, where nobody's memory matters: PyTorch's own timer, on one device in one number format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from torch_impl.precision import dtype_of


@dataclass(frozen=True)
class Bench:
    """Where something is timed.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`.
        precision: a name of `torch_impl.precision`; TF32 is on or off as `numerics` around it says.
        layout: of pictures and kernels.
        at_least: seconds spent on each operation.
    """

    device: str
    precision: str
    layout: torch.memory_format = torch.channels_last
    at_least: float = 0.2

    def seconds(self, work: Callable[[], object]) -> float:
        """Median of one call, warmed up; the device is waited for."""
        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=self.at_least).median)

    def random(self, *shape: int) -> Tensor:
        """Standard normal numbers, in the layout where they have four axes."""
        values = torch.randn(*shape, device=self.device).to(dtype_of(self.precision))
        return values.contiguous(memory_format=self.layout) if len(shape) == 4 else values
