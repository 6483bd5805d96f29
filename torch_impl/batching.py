"""Micro-batches: as many photographs in one pass as memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Item = TypeVar("Item")


@dataclass(frozen=True)
class AutoSize:
    """A batch size that was found, and may be halved when memory runs out all the same.

    Attributes:
        start: the first micro-batch's size.
    """

    start: int


BatchSize = int | str | AutoSize
"""Photographs (for SmoothGrad: noisy copies) in one pass; "auto" takes what memory holds, at most `AUTO`; see `sized`."""

AUTO = {"cpu": 4, "cuda": 64}
"""Beyond these VGG16 at 224×224 gains next to nothing. On 2 cores, seconds an image in batches of 1, 2, 4, 5, 7, 10 were 0.153, 0.147,
0.146, 0.144, 0.148, 0.143, where runs differ by 0.005; a CPU pass of 4 stays within 0.6 GB. On an NVIDIA H200, milliseconds an image
in batches of 4, 16, 32, 48, 64, 80, 128 were 3.97, 2.17, 1.43, 1.44, 1.43, 1.50, 1.37 in float32 and 0.91, 0.27, 0.24, 0.23, 0.23, 0.23,
0.22 in float16."""

MULTIPLE = {"cuda": 16}
"""Of which a found size is where one pass does not do, as cuDNN's kernels like it: in float32 the H200 took 1.6 ms an image in batches
of 40."""

WITHOUT_GRADIENTS = 4
"""Times as many images in one pass where no gradient goes below the last layers, as for the CAMs alone.

They take a third more memory than a pass with gradients (1,331 MB against 1,220 in all, VGG16), since feature maps are let go
at once, and the dense layers' weights are read that much less often.
"""

MEMORY_PART = 0.5
"""Of the memory that is free, the part that "auto" plans with: others use the machine too, and an estimate is an estimate."""


OWN_GROUP = Path("/proc/self/cgroup")
"""Where Linux says which control group a process is in."""


class OutOfMemoryError(RuntimeError):
    """Not even the batch size asked for fits; the message says what to do."""


def micro_batches(
    items: Iterable[Item],
    batch_size: BatchSize,
    device: torch.device,
    work: Callable[[list[Item]], None],
    *,
    count: int | None = None,
) -> None:
    """Call `work` on consecutive pieces of `items`.

    Args:
        items: streamed; never more than one piece is held.
        batch_size: how many make a piece; "auto" and an `AutoSize` are halved when memory runs out, and the work goes on
            with the same piece.
        device: where `work` allocates.
        work: must change nothing outside itself before its memory is allocated: after running out it is called again.
        count: how many items there are, where they cannot say so themselves: pieces of a size that was found are then about equally large, since a
            small last one takes a GPU nearly as long as a large one.

    Raises:
        OutOfMemoryError: a given batch size does not fit, or not even 1 does.
        ValueError: `batch_size` is neither "auto" nor a positive integer.
    """
    size = batch_size
    if size == "auto":
        size = AutoSize(AUTO.get(device.type, AUTO["cpu"]))
    automatic = isinstance(size, AutoSize)
    if isinstance(size, AutoSize):
        size = size.start
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f'batch size {batch_size!r}: give "auto" or a positive integer')
    if count is None and isinstance(items, Sized):
        count = len(items)
    if automatic and count:
        multiple = MULTIPLE.get(device.type, 1)
        if size < multiple:
            multiple = 1
        if count > size:
            size -= size % multiple
        even = math.ceil(count / math.ceil(count / size))
        size = min(size, multiple * math.ceil(even / multiple))
    stream = iter(items)
    while pending := list(islice(stream, size)):
        while pending:
            piece = pending[:size]
            if _fits(work, piece):
                del pending[: len(piece)]
            elif automatic and len(piece) > 1:
                size = len(piece) // 2
            else:
                hint = (
                    "choose a smaller batch size" if len(piece) > 1 else "choose a smaller picture, or another device"
                )
                raise OutOfMemoryError(f"out of memory on {device} with {len(piece)} in a batch: {hint}")


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


def sized(batch_size: BatchSize, model: nn.Module, inputs: Tensor, *, gradients: bool = True) -> BatchSize:
    """A batch size for "auto": what the free memory holds of this network, at most `AUTO`. A number stays as it is.

    On a CPU nothing raises when memory runs out (the system ends the process instead), so it is asked beforehand.

    Args:
        batch_size: as the user gave it.
        model: as it will be run.
        inputs: (N, C, H, W), of the type and on the device of the passes.
        gradients: whether the passes go back to the input; see `WITHOUT_GRADIENTS`.
    """
    if batch_size != "auto":
        return batch_size
    more = 1 if gradients else WITHOUT_GRADIENTS
    most = more * AUTO.get(inputs.device.type, AUTO["cpu"])
    free, image = free_memory(inputs.device), bytes_per_image(model, inputs)
    if free is None or image is None:
        return AutoSize(most)
    return AutoSize(max(1, min(most, int(MEMORY_PART * free) * more // image)))


_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int | None]] = WeakKeyDictionary()
"""What `bytes_per_image` found: it takes milliseconds, which is as long as a GPU's pass."""


def bytes_per_image(model: nn.Module, inputs: Tensor) -> int | None:
    """An estimate of what one image's forward and backward pass needs: every layer's output twice.

    The model runs once on PyTorch's `meta` device, where shapes are computed and nothing else; once for each model and shape.
    None where it does not.

    Args:
        model: comes back as it was.
        inputs: (N, C, H, W); their shape and type count.
    """
    known = _known.setdefault(model, {})
    kind = (*inputs.shape[1:], inputs.dtype)
    if known.get(kind) is None:
        known[kind] = _measured(model, inputs)
    return known[kind]


def _measured(model: nn.Module, inputs: Tensor) -> int | None:
    total = 0

    def add(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor) and not getattr(module, "inplace", False):
            total += output.numel() * output.element_size()

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(add) for module in leaves]
    try:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        nothing = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        with torch.no_grad():
            torch.func.functional_call(model, nothing, (torch.empty_like(inputs[:1], device="meta"),))
    except Exception:  # a model that looks at values, or makes tensors on a device of its own
        return None
    finally:
        for handle in handles:
            handle.remove()
    return 2 * total or None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had, or None where nobody says.

    On CUDA: the device's free memory and what PyTorch holds unused. On a CPU: Linux's `MemAvailable`, or what the control
    group (a container) leaves, if that is less.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return _least(_available(Path("/proc/meminfo")), _group(Path("/sys/fs/cgroup")))


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return int(found[1]) * 1024 if found else None


@dataclass(frozen=True)
class _Names:
    """What a version of control groups calls things: its line in `OWN_GROUP`, its folder, its files, its word in `memory.stat`."""

    line: str
    folder: str
    limit: str
    used: str
    reclaimable: str


_VERSIONS = (
    _Names("", "", "memory.max", "memory.current", "inactive_file"),
    _Names("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _group(root: Path) -> int | None:
    """What control groups leave, of version 2 or 1: the least over this process's group and those above it."""
    left: int | None = None
    for names in _VERSIONS:
        inside = _own_group(names.line)
        top = root / names.folder
        for folder in (top / inside, *(top / parent for parent in Path(inside).parents)):
            try:
                limit = (folder / names.limit).read_text(encoding="ascii").strip()
                used = int((folder / names.used).read_text(encoding="ascii"))
                used -= _reclaimable(folder / "memory.stat", names.reclaimable)
            except (OSError, ValueError):
                continue
            if limit.isdigit():  # version 1 writes a number near 2**63 where there is no limit
                left = _least(left, max(0, int(limit) - used))
    return left


def _own_group(line: str) -> str:
    """The group's path below its folder, from `number:controllers:/path`."""
    try:
        rows = [row.split(":", 2) for row in OWN_GROUP.read_text(encoding="utf-8").splitlines()]
        return next(path[1:] for _, controllers, path in rows if line in controllers.split(","))
    except (OSError, ValueError, StopIteration):
        return ""


def _reclaimable(stat: Path, word: str) -> int:
    """Bytes of files that were read and can be dropped: counted as used, but no less free."""
    try:
        found = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return 0
    return next((int(value) for name, value in found if name == word), 0)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
