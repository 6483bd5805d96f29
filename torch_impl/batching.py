"""Micro-batches: as many photographs in one pass as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")

BatchSize = int | str
"""Photographs (for SmoothGrad: noisy copies) in one pass; "auto" starts with `AUTO` and halves when memory runs out."""

AUTO = {"cpu": 4, "cuda": 32}
"""Beyond these VGG16 at 224×224 gains nothing, and a CPU pass of 4 stays within 0.6 GB."""


class OutOfMemoryError(RuntimeError):
    """Not even the batch size asked for fits; the message says what to do."""


def micro_batches(
    items: Iterable[Item], batch_size: BatchSize, device: torch.device, work: Callable[[list[Item]], None]
) -> None:
    """Call `work` on consecutive pieces of `items`.

    Args:
        items: streamed; never more than one piece is held.
        batch_size: how many make a piece; "auto" halves it when memory runs out, and goes on with the same piece.
        device: where `work` allocates.
        work: must change nothing outside itself before its memory is allocated: after running out it is called again.

    Raises:
        OutOfMemoryError: a given batch size does not fit, or not even 1 does.
        ValueError: `batch_size` is neither "auto" nor a positive integer.
    """
    if batch_size != "auto" and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ValueError(f'batch size {batch_size!r}: give "auto" or a positive integer')
    size = AUTO.get(device.type, AUTO["cpu"]) if batch_size == "auto" else int(batch_size)
    stream = iter(items)
    while pending := list(islice(stream, size)):
        while pending:
            piece = pending[:size]
            if _fits(work, piece):
                del pending[: len(piece)]
            elif batch_size == "auto" and len(piece) > 1:
                size = len(piece) // 2
            else:
                hint = (
                    "choose a smaller batch size" if len(piece) > 1 else "choose a smaller picture, or another device"
                )
                raise OutOfMemoryError(f"out of memory on {device} with {len(piece)} in a batch: {hint}")


def _fits(work: Callable[[list[Item]], None], piece: list[Item]) -> bool:
    try:
        work(piece)
        return True
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:  # the CPU allocator has no class of its own
        if "alloc" not in str(error) or "memory" not in str(error):
            raise
    # Outside the except block, so that the traceback no longer holds the tensors that filled the memory.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
