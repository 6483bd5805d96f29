"""Photographs read, hashed and decoded ahead of the network, once each, by processes of PyTorch's `DataLoader`."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from parity.contract.text import one_line
from torch_impl import images
from torch_impl.batch import tables
from torch_impl.batch.listing import Listing
from torch_impl.batch.run import AGAIN
from torch_impl.batch.sources import Item, is_below, readable, stamp_of

LARGEST_PHOTOGRAPH = 2**29
"""Bytes that are read of a file, and one more; `images` refuses what is larger."""

Piece = tuple[int, int, int]
"""A part's number; its first row, and the one behind its last, counted within the part."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The photographs of a few rows.

    Attributes:
        pixels: uint8 (N, H, W, 3); 0 where there is no photograph.
        sha256: of each one's bytes; None where they could not be read.
        notes: what was done to each on purpose; see `images.Photograph`.
        errors: why there is none; None: there is one.
        seconds: spent on each.
    """

    pixels: Tensor = field(repr=False)
    sha256: list[str | None]
    notes: list[list[str]]
    errors: list[str | None]
    seconds: list[float]


class Reader:
    """Reads photographs' bytes, without decoding them. Quick where a Parquet table's rows are asked for in order."""

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
                f"a link that leads out of {readable(os.fsdecode(item.root))!r}: not read; name the folder that all are in "
                "with --root"
            )
        if item.column is not None:
            return self._read_cell(item, item.column, item.row or 0)
        with open(item.file, "rb") as file:
            if item.offset is None or item.length is None:
                return file.read(LARGEST_PHOTOGRAPH + 1)
            _check_unchanged(file, item)
            file.seek(item.offset)
            data = file.read(min(item.length, LARGEST_PHOTOGRAPH + 1))
            if len(data) < min(item.length, LARGEST_PHOTOGRAPH + 1):
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


class Photographs(Dataset[Decoded]):
    """A listing's photographs, read, hashed and decoded by whoever asks, in whatever process.

    Attributes:
        listing: the file.
        size: of the result, pixels.
        resize: one of `images.RESIZES`.
    """

    def __init__(self, listing: Path, size: int, resize: str) -> None:
        self.listing, self.size, self.resize = listing, size, resize
        self._reader = Reader()

    @cached_property
    def _listing(self) -> Listing:
        return Listing(self.listing)

    def __getitem__(self, piece: Piece) -> Decoded:
        """The photographs of a piece."""
        listed = self._listing.items(*piece)
        decoded = Decoded(torch.zeros((len(listed), self.size, self.size, 3), dtype=torch.uint8), [], [], [], [])
        if get_worker_info() is not None:  # else the queue's own thread would do it, and be alone with its error
            decoded.pixels.share_memory_()  # type: ignore[no-untyped-call]
        for item, place in zip(listed, decoded.pixels.numpy(), strict=True):
            clock = time.perf_counter()
            sha256, notes, error = self._photograph(item, place)
            decoded.sha256.append(sha256)
            decoded.notes.append(list(notes))
            decoded.errors.append(error and readable(error))
            decoded.seconds.append(time.perf_counter() - clock)
        return decoded

    def _photograph(self, item: Item, place: np.ndarray) -> tuple[str | None, Sequence[str], str | None]:
        """(sha256, notes, error) of one photograph; its pixels are put in their place."""
        try:
            data = self._reader.read(item)
        except (FileNotFoundError, NotADirectoryError):
            return None, (), "no such file"
        except (OSError, MemoryError) as error:
            return None, (), f"{AGAIN}: {one_line(getattr(error, 'strerror', None) or error)}"
        except (ValueError, pa.ArrowException) as error:
            return None, (), one_line(error)
        try:
            photograph = decoded(item, data, self.size, self.resize)
        except images.ImageError as error:
            return hashlib.sha256(data).hexdigest(), (), one_line(error.problem)
        place[:] = photograph.pixels
        return photograph.sha256, photograph.notes, None


def decoded(item: Item, data: bytes, size: int, resize: str) -> images.Photograph:
    """A row's photograph, of the bytes that `Reader.read` gave.

    Raises:
        ImageError: they are none that can be used.
    """
    name = item.path.rpartition("/")[2] or item.path
    return images.load_bytes(data, name=name, path=item.path, size=size, resize=resize)


def pieces(listing: Listing, numbers: Sequence[int], size: int) -> list[Piece]:
    """Parts cut into micro-batches."""
    return [
        (number, start, min(start + size, listing.length(number)))
        for number in numbers
        for start in range(0, listing.length(number), size)
    ]


@contextmanager
def loaded(photographs: Photographs, wanted: Sequence[Piece], processes: int) -> Iterator[Iterator[Decoded]]:
    """The photographs of pieces, in order; the work on them begins now, and ends with the block.

    Args:
        photographs: of the listing.
        wanted: the pieces.
        processes: that decode, each two pieces ahead; 0: a thread, one piece ahead.

    Raises:
        RuntimeError: a process has died; see `has_died`.
    """
    if not processes:
        with ThreadPoolExecutor(1, "loader") as thread:
            yield _one_ahead(thread, map(photographs.__getitem__, wanted))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more processes than cores: so the user wishes
        loader = DataLoader(photographs, None, sampler=wanted, num_workers=processes, worker_init_fn=_begin)
        before = signal.getsignal(signal.SIGCHLD)
        iterator: Any = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # PyTorch would raise a process's death wherever the program is; the next piece says it too, after 5 seconds.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    try:
        yield _whole(iterator)
    finally:
        iterator._shutdown_workers()  # now, and not when somebody lets go of the last frame


def _whole(stream: Iterator[Decoded]) -> Iterator[Decoded]:
    try:
        yield from stream
    except (ConnectionError, EOFError) as error:  # while a piece was on its way
        raise RuntimeError(f"DataLoader worker died: {one_line(error)}") from None


def _one_ahead(thread: ThreadPoolExecutor, stream: Iterator[Decoded]) -> Iterator[Decoded]:
    first = thread.submit(next, stream, None)

    def pieces() -> Iterator[Decoded]:
        waiting = first
        while (decoded := waiting.result()) is not None:
            waiting = thread.submit(next, stream, None)
            yield decoded

    return pieces()


def _begin(number: int) -> None:
    """In each process: one thread; Ctrl-C is the parent's business. PyTorch ends it where the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def has_died(error: RuntimeError) -> bool:
    """Whether it says that a process of `loaded` is dead."""
    return "DataLoader worker" in str(error)


def carefully_loaded(photographs: Photographs, piece: Piece) -> Decoded:
    """A piece in a process of its own; where that dies, by halves, until the one that kills it is alone and has an error."""
    number, start, stop = piece
    try:
        with loaded(photographs, [piece], 1) as stream:
            return next(stream)
    except RuntimeError as error:
        if not has_died(error):
            raise
    if stop - start == 1:
        nothing = torch.zeros((1, photographs.size, photographs.size, 3), dtype=torch.uint8)
        return Decoded(nothing, [None], [[]], [f"{AGAIN}: the process that decodes it died"], [0.0])
    middle = (start + stop) // 2
    first, second = (carefully_loaded(photographs, half) for half in ((number, start, middle), (number, middle, stop)))
    return Decoded(
        torch.cat([first.pixels, second.pixels]),
        first.sha256 + second.sha256,
        first.notes + second.notes,
        first.errors + second.errors,
        first.seconds + second.seconds,
    )
