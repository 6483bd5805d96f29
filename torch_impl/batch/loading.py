"""Photographs read, hashed and decoded ahead of the network, once each, in processes: threads would fight for Python's lock.

They are `torch.utils.data.DataLoader`'s, which end with the one that started them, however that ends.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from parity.contract.text import one_line
from torch_impl import images
from torch_impl.batch import tables
from torch_impl.batch.run import AGAIN, GO_ON, RunError
from torch_impl.batch.sources import Item, is_below, readable, stamp_of
from torch_impl.framing import Size, sides

AHEAD = 400
"""Photographs that are decoded, or being decoded, before somebody takes them, but for one piece a process at least."""

SHARED = 60 * 2**20
"""Bytes that they may take, where that is less: a container has 64 MB of shared memory where nobody gives it more."""

PIECE = 12
"""Photographs that go to a process, and come back, together."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What is known of one photograph, or why there is none.

    Attributes:
        sha256: of its bytes; None where they could not be read.
        notes: what was done to it on purpose; see `images.Photograph`.
        error: why there is none; None: there is one.
        seconds: spent on it.
    """

    sha256: str | None = None
    notes: Sequence[str] = ()
    error: str | None = None
    seconds: float = 0.0


class Reader:
    """Reads photographs' bytes, without decoding them.

    Quick where a Parquet table's rows are asked for in order; to come to a row, those before it in its row group are read,
    one after another. So each of N processes reads the rows of the others too, without decoding them: a table is read up to
    N times.
    """

    def __init__(self) -> None:
        self._place: tuple[Any, ...] = ()
        self._row = -1
        self._cell: pa.Scalar = None
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def read(self, item: Item) -> bytes:
        """What a photograph's file, member or cell holds.

        Raises:
            OSError: as the file system says.
            ValueError, ArrowException: it must not, or cannot, be read.
        """
        if item.problem is not None:
            raise ValueError(item.problem)
        if item.root is not None and not is_below(os.path.realpath(item.file), os.path.realpath(item.root)):
            raise ValueError(
                f"a link that leads out of {readable(os.fsdecode(item.root))!r}: not read; name the folder that all "
                "are in with --root"
            )
        if item.column is not None:
            return self._read_cell(item, item.column, item.row or 0)
        with open(item.file, "rb") as file:
            if item.offset is None or item.length is None:
                return file.read(images.MAX_BYTES + 1)  # which is refused
            _check_unchanged(file, item)
            file.seek(item.offset)
            wanted = min(item.length, images.MAX_BYTES + 1)
            data = file.read(wanted)
            if len(data) < wanted:
                raise ValueError("the archive ends before it does: cut off, copy it again")
            return data

    def _read_cell(self, item: Item, column: str, row: int) -> bytes:
        place = (item.file, item.file_mtime_ns, item.row_group, column)
        if place != self._place or row < self._row:
            self._place = ()
            file = open(item.file, "rb")  # noqa: SIM115 (closed with the last that holds it)
            _check_unchanged(file, item)
            # Streamed, one row a batch: a row group of photographs may be gigabytes.
            table = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            self._batches = table.iter_batches(1, row_groups=[item.row_group], columns=[column], use_threads=False)
            self._place, self._row = place, -1
        while self._row < row:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("the table is damaged before this row")
            self._row += 1
            self._cell = tables.column(batch, column)[0]
        data = self._cell.as_py()
        if data is None:
            raise ValueError("there are no image bytes in this row, and nothing is fetched")
        return bytes(data)


def _check_unchanged(file: BinaryIO, item: Item) -> None:
    """An offset or a row of another file would be another photograph."""
    if stamp_of(os.fstat(file.fileno())) != (item.file_size, item.file_mtime_ns):
        raise ValueError("the file that holds it has changed since it was listed: run the command again")


@contextmanager
def loaded(
    items: Iterable[Item], size: Size, resize: str, loaders: int
) -> Iterator[Iterator[tuple[Loaded, np.ndarray]]]:
    """Photographs in order; the work on the first of them begins now, and all of it ends with the block.

    To be entered before CUDA is used, and before there is much in memory: on Linux the processes are forks.

    Args:
        items: rows of a listing.
        size: of the results: see `framing.Size`.
        resize: one of `framing.RESIZES`.
        loaders: processes that read and decode.

    Yields:
        Each photograph with its pixels, uint8 (H, W, 3), which mean nothing where there is an error. They lie in shared
        memory that others will come to lie in: copy them before asking for the next.

    Raises:
        RunError: a process has died, or there is not enough shared memory.
        MemoryError: a process has no memory left.
    """
    shape = (PIECE, *sides(size), 3)
    ahead = max(1, min(AHEAD // PIECE, SHARED // math.prod(shape)) // loaders)
    places = ahead * loaders + 1  # one of them is read here
    pixels = _shared((places, *shape))
    stream = iter(items)
    pieces = iter(lambda: list(islice(stream, PIECE)), [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more processes than cores are the user's choice
        loader = DataLoader(
            _Photographs(size, resize, pixels),
            batch_size=None,
            sampler=((number % places, piece) for number, piece in enumerate(pieces)),
            num_workers=loaders,
            prefetch_factor=ahead,
            worker_init_fn=_begun,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        results = _started(loader)
    try:
        each = enumerate(results)
        yield (pair for number, piece in each for pair in zip(piece, pixels[number % places].numpy(), strict=False))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        why = one_line(str(error).strip().splitlines()[-1])
        raise RunError(
            f"a process that decodes has died: {why}; {GO_ON}, or with fewer --loaders if memory is short"
        ) from None
    finally:
        results._shutdown_workers()  # not whenever the last traceback lets go of it


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Bytes that processes share.

    Raises:
        RunError: there is not enough memory of that kind.
    """
    try:
        return torch.empty(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-any-return, no-untyped-call]
    except RuntimeError:
        size = f"{math.prod(shape) / 2**20:.0f} MB"
        raise RunError(
            f"no {size} of shared memory: give the container more (--shm-size), or fewer --loaders"
        ) from None


def _started(loader: DataLoader[Any]) -> Any:
    """The iterator, whose processes are at work. A signal that comes while they are begun is answered when they all are."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        return iter(loader)
    came = list[int]()
    # SIGCHLD: PyTorch's own would raise an error in the midst of anything, where `next` says the same within 5 s.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        results: Any = iter(loader)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if came:
        results._shutdown_workers()
        signal.raise_signal(came[0])
    return results


def _begun(number: int) -> None:
    """At the start of a process: it is sent Ctrl-C, too, and leaves it to the one that started it.

    At its end it does not wait until its results are taken, for all who would may be dead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Finalize(None, os._exit, args=(0,), exitpriority=0)


class _Photographs(Dataset[list[Loaded]]):
    """Some rows of a listing → what is known of them; their pixels go to a place of (places, PIECE, H, W, 3).

    Works in the processes, each of which has its own.
    """

    def __init__(self, size: Size, resize: str, pixels: Tensor) -> None:
        self._size, self._resize, self._pixels, self._reader = size, resize, pixels, Reader()

    def __getitem__(self, piece: tuple[int, list[Item]]) -> list[Loaded]:
        place, items = piece
        return [self._loaded(item, pixels) for item, pixels in zip(items, self._pixels[place].numpy(), strict=False)]

    def _loaded(self, item: Item, pixels: np.ndarray) -> Loaded:
        """One photograph; whatever is wrong with it as one line."""
        clock = time.perf_counter()
        try:
            data = self._reader.read(item)
        except (FileNotFoundError, NotADirectoryError):
            return Loaded(error="no such file")
        except (OSError, MemoryError) as error:
            return Loaded(error=f"{AGAIN}: {one_line(getattr(error, 'strerror', None) or error)}")
        except (ValueError, pa.ArrowException) as error:
            return Loaded(error=one_line(error))
        try:
            photograph = decoded(item, data, self._size, self._resize)
        except images.ImageError as error:
            return Loaded(hashlib.sha256(data).hexdigest(), error=one_line(error.problem))
        pixels[:] = photograph.pixels
        return Loaded(photograph.sha256, photograph.notes, None, time.perf_counter() - clock)


def automatic(cores: int | None) -> int:
    """How many processes decode where nobody says: one core is left to the network."""
    return max(1, (cores or 1) - 1)


def decoded(item: Item, data: bytes, size: Size, resize: str) -> images.Photograph:
    """A row's photograph, of the bytes that `Reader.read` gave.

    Raises:
        ImageError: they are none that can be used.
    """
    name = item.path.rpartition("/")[2] or item.path
    return images.load_bytes(data, name=name, path=item.path, size=size, resize=resize)
