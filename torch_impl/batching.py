"""Micro-batches: as many photographs in one pass as is fast, and fewer where a device runs out of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

BatchSize = int | str
"""Photographs (for SmoothGrad: noisy copies) in one pass; "auto": see `first_size`."""

AUTO = {"cpu": 4, "cuda": 96}
"""Photographs of 224×224 in the first pass. Beyond these VGG16 gains next to nothing: on 2 cores, seconds an image in batches
of 1, 2, 4, 5, 7, 10 were 0.153, 0.147, 0.146, 0.144, 0.148, 0.143, where runs differ by 0.005; a CPU pass of 4 stays within 0.6 GB.
On an NVIDIA H200, milliseconds an image in batches of 32, 48, 64, 80, 96, 112, 128 were 1.07, 1.07, 0.91, 1.00, 0.91, 0.92, 0.85 in
float32 and 0.24, 0.24, 0.23, 0.23, 0.23, 0.23, 0.22 in float16."""

USUAL_PIXELS = 224 * 224
"""Of a photograph that `AUTO` is meant for: larger ones are taken in smaller numbers."""

MULTIPLE = {"cuda": 32}
"""Of which a batch is where one pass does not do, as cuDNN's kernels like it: see `AUTO`."""

WITHOUT_GRADIENTS = 4
"""Times as many images in one pass where no gradient goes below the last layers, as for the CAMs alone.

They take a third more memory than a pass with gradients (1,331 MB against 1,220 in all, VGG16), since feature maps are let go
at once, and the dense layers' weights are read that much less often.
"""


class OutOfMemoryError(RuntimeError):
    """Not even the batch size asked for fits; the message says what to do."""


def first_size(inputs: Tensor, *, gradients: bool = True) -> int:
    """How many photographs the first pass takes where nobody says.

    Args:
        inputs: (N, C, H, W), on the device of the passes.
        gradients: whether the passes go back to the input; see `WITHOUT_GRADIENTS`.
    """
    usual = AUTO.get(inputs.device.type, AUTO["cpu"]) * (1 if gradients else WITHOUT_GRADIENTS)
    pixels = int(inputs.shape[-2]) * int(inputs.shape[-1])
    return max(1, min(usual, usual * USUAL_PIXELS // max(1, pixels)))


def micro_batches(
    items: Iterable[Item],
    batch_size: BatchSize,
    work: Callable[[list[Item]], None],
    *,
    device: torch.device,
    auto: int,
    count: int,
) -> None:
    """Call `work` on consecutive pieces of `items`.

    Args:
        items: streamed; never more than one piece is held.
        batch_size: how many make a piece; "auto" is halved when memory runs out, and the work goes on with the same piece.
        work: must change nothing outside itself before its memory is allocated: after running out it is called again.
        device: where `work` allocates.
        auto: the first piece's size for "auto"; pieces are then about equally large, since a small last one takes a GPU
            nearly as long as a large one.
        count: how many items there are.

    Raises:
        OutOfMemoryError: a given batch size does not fit, or not even 1 does.
        ValueError: `batch_size` is neither "auto" nor a positive integer.
    """
    automatic = batch_size == "auto"
    size = _even(auto, count, MULTIPLE.get(device.type, 1)) if automatic else batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f'batch size {batch_size!r}: give "auto" or a positive integer')
    stream = iter(items)
    while pending := list(islice(stream, size)):
        while pending:
            piece = pending[:size]
            if _fits(work, piece):
                del pending[: len(piece)]
            elif automatic and len(piece) > 1:
                size = len(piece) // 2
            else:
                smaller = "batch size" if len(piece) > 1 else "picture, or another device"
                raise OutOfMemoryError(
                    f"out of memory on {device} with {len(piece)} in a batch: choose a smaller {smaller}"
                )


def _even(size: int, count: int, multiple: int) -> int:
    """The size of about equally large pieces, none above `size`; of a multiple where one piece does not do."""
    multiple = multiple if size >= multiple else 1
    if count > size:
        size -= size % multiple
    even = math.ceil(count / math.ceil(count / size)) if count else size
    return min(size, multiple * math.ceil(even / multiple))


def taken(values: Tensor, rows: list[int]) -> Tensor:
    """A copy of a piece of a range, of the first dimension, on its own device: where it is sliced, nothing waits for the host.

    A copy, since a network may work in place on what it is given.
    """
    return values[rows[0] : rows[-1] + 1].clone(memory_format=torch.preserve_format)


class Pieces:
    """Results of micro-batches put together, in one block that is allocated with the first of them.

    Kept one by one they would lie between the feature maps of two passes, and what is freed around them could be used again in
    part only.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._whole: Tensor | None = None

    def put(self, rows: list[int], piece: Tensor) -> None:
        """Rows of a range, with their results (n, …)."""
        if self._whole is None:
            self._whole = piece.new_empty((self._count, *piece.shape[1:]))
        self._whole[rows[0] : rows[-1] + 1] = piece

    @property
    def whole(self) -> Tensor:
        """All of them (N, …)."""
        assert self._whole is not None
        return self._whole


_OUT_OF_MEMORY = ("out of memory", "status_alloc_failed", "unable to find an engine")
"""CUDA, cuBLAS, cuDNN; the last is what is left when none of cuDNN's algorithms found room for its workspace."""


def _fits(work: Callable[[list[Item]], None], piece: list[Item]) -> bool:
    try:
        work(piece)
        return True
    except OutOfMemoryError:  # passes within this one have said what to do
        raise
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:  # neither the CPU allocator's nor CUDA's libraries' have a class of their own
        text = str(error).lower()
        if not ("alloc" in text and "memory" in text) and not any(words in text for words in _OUT_OF_MEMORY):
            raise
    # Outside the except block, so that the traceback no longer holds the tensors that filled the memory.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
