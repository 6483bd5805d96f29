"""Photographs read, hashed and decoded ahead of the network, once each, in threads: Pillow and hashlib let go of Python's lock."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from parity.contract.text import one_line
from torch_impl import images
from torch_impl.batch import tables
from torch_impl.batch.run import AGAIN
from torch_impl.batch.sources import Item, is_below, readable, stamp_of
from torch_impl.framing import Size

AHEAD = 512
"""Photographs that are decoded, or being decoded, before somebody takes them: 77 MB at 224×224."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """One photograph, or why there is none.

    Attributes:
        sha256: of its bytes; None where they could not be read.
        notes: what was done to it on purpose; see `images.Photograph`.
        error: why there is none; None: there is one.
        pixels: uint8 (H, W, 3); None where there is none.
        seconds: spent on it.
    """

    sha256: str | None = None
    notes: Sequence[str] = ()
    error: str | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)
    seconds: float = 0.0


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
def loaded(items: Iterable[Item], size: Size, resize: str, threads: int) -> Iterator[Iterator[Loaded]]:
    """Photographs in order; the work on the first `AHEAD` of them begins now, and all of it ends with the block.

    Args:
        items: rows of a listing.
        size: of the results: see `framing.Size`.
        resize: one of `framing.RESIZES`.
        threads: that read and decode.
    """
    pool, reader, stream = ThreadPoolExecutor(threads, "loader"), Reader(), iter(items)
    cell_read = threading.Event()  # of the last cell that was asked for: a table's are read one after another
    cell_read.set()

    def begin(item: Item) -> Future[Loaded]:
        nonlocal cell_read
        read = partial(reader.read, item)
        if item.column is not None:
            before, cell_read = cell_read, threading.Event()
            read = partial(_in_turn, read, before, cell_read)
        return pool.submit(_loaded, item, read, size, resize)

    def in_order() -> Iterator[Loaded]:
        while ahead:
            photograph = ahead.popleft().result()
            ahead.extend(map(begin, islice(stream, 1)))
            yield photograph

    try:
        ahead = deque(map(begin, islice(stream, AHEAD)))
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


def _in_turn(read: Callable[[], bytes], before: threading.Event, after: threading.Event) -> bytes:
    """Read once the one before has been read; threads begin in order, so that nobody waits for one that never comes."""
    before.wait()
    try:
        return read()
    finally:
        after.set()


def _loaded(item: Item, read: Callable[[], bytes], size: Size, resize: str) -> Loaded:
    """One photograph; whatever is wrong with it as one line."""
    clock = time.perf_counter()
    try:
        data = read()
    except (FileNotFoundError, NotADirectoryError):
        return Loaded(error="no such file")
    except (OSError, MemoryError) as error:
        return Loaded(error=f"{AGAIN}: {one_line(getattr(error, 'strerror', None) or error)}")
    except (ValueError, pa.ArrowException) as error:
        return Loaded(error=one_line(error))
    try:
        photograph = decoded(item, data, size, resize)
    except images.ImageError as error:
        return Loaded(hashlib.sha256(data).hexdigest(), error=one_line(error.problem))
    return Loaded(photograph.sha256, photograph.notes, None, photograph.pixels, time.perf_counter() - clock)


def automatic(cores: int | None) -> int:
    """How many threads decode where nobody says: one core is left to the network."""
    return max(1, (cores or 1) - 1)


def decoded(item: Item, data: bytes, size: Size, resize: str) -> images.Photograph:
    """A row's photograph, of the bytes that `Reader.read` gave.

    Raises:
        ImageError: they are none that can be used.
    """
    name = item.path.rpartition("/")[2] or item.path
    return images.load_bytes(data, name=name, path=item.path, size=size, resize=resize)
