"""The listing: every photograph and class of a run, one row each, written once and read by everything after.

It is an Arrow file. Its record batches are the run's parts, so that a part is found without reading what is before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from torch_impl.batch import tables
from torch_impl.batch.sources import BROKEN, Item, SourceError, broken, items
from torch_impl.question import folder_of

TOP1 = "top1"
"""In place of a table of classes: each photograph's own top-1, whatever the inputs say."""

OF_FOLDER = "folder"
"""In place of a table of classes: what the folder that a photograph lies in is called, also inside an archive."""

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("key", "path")),
        ("asked", pa.string()),
        *((name, pa.binary()) for name in ("file", "root")),
        *((name, pa.int64()) for name in ("offset", "length", "row_group", "row")),
        *((name, pa.string()) for name in ("column", "problem")),
        *((name, pa.int64()) for name in ("file_size", "file_mtime_ns")),
    ]
)
"""Columns of the file: the attributes of `Item`."""

assert tuple(SCHEMA.names) == Item._fields


def listed(
    inputs: Sequence[str], *, classes: str | None = None, root: str | None = None, limit: int | None = None
) -> Iterator[Item]:
    """Everything that is to be explained, in order; the same photograph with the same class once, at its first place.

    Args:
        inputs: photographs, folders, globs, tables and archives.
        classes: None: the class that an input gives, else the top-1. `top1`: the top-1. `folder`: the folder's name. Else a table of paths and
            classes. Its rows are matched by the longest end of a path that they share with a photograph's (`cat.jpg`
            and `pets/cat.jpg` both match `photos/pets/cat.jpg`, the second first); several rows for one photograph ask
            for several classes.
        root: the folder that a table's paths start from and must stay below; None: the table's own.
        limit: only so many, the first ones.

    Raises:
        SourceError: an input is missing, of an unknown kind, broken or without photographs; rows of `classes` match no
            photograph (not looked at with a limit), or more than one.
    """
    if root is not None and not os.path.isdir(root):
        raise SourceError(f"--root {root!r}: no such folder")
    table = None if classes in (None, TOP1, OF_FOLDER) else _Classes(str(classes))
    seen: set[int] = set()  # 64 bits of each: two are taken for one with a probability of n² / 2⁶⁵
    for given in inputs:
        empty = True
        for item in items(given, root=root, with_classes=classes is None):
            empty = False
            usual = folder_of(item.path) if classes == OF_FOLDER else item.asked if classes is None else None
            for asked in table.of(item) if table else [usual]:
                identity = hash((item.file, item.key.partition("//")[2], asked))
                if identity not in seen:
                    seen.add(identity)
                    yield item._replace(key=item.key if asked is None else f"{item.key}#{asked}", asked=asked)
                if len(seen) == limit:
                    return
        if empty:
            raise SourceError(
                f"{given!r}: no photographs in it (for a folder's tables or archives: '{given}/*.tar', in quotes)"
            )
    if table:
        table.check()


class _Classes:
    """A table of paths and classes, held in memory, found by the end of a path."""

    def __init__(self, path: str) -> None:
        if os.path.splitext(path)[1].lower() not in (*tables.SEPARATORS, *tables.PARQUET):
            raise SourceError(
                f"classes {path!r}: give {TOP1}, {OF_FOLDER}, or a table of paths and classes: .csv, .tsv or .parquet"
            )
        self.table = path
        self.asked: dict[str, dict[str | None, None]] = {}  # in order, each once
        self.matched: dict[str, str] = {}
        folder = os.path.dirname(os.path.abspath(path))
        try:
            for written, asked in tables.rows(path):
                parts = [part for part in written.split("/") if part not in ("", ".")]
                if written.startswith("/") or ".." in parts:
                    parts = os.path.abspath(os.path.join(folder, written)).strip("/").split("/")
                self.asked.setdefault("/".join(parts), {})[asked] = None
        except BROKEN as error:
            raise broken(path, error) from None
        if not self.asked or "" in self.asked:
            raise SourceError(f"{path!r}: {'a row names no photograph' if self.asked else 'no rows in it'}")

    def of(self, item: Item) -> Iterable[str | None]:
        """The classes asked for; the top-1 where there is no row.

        Raises:
            SourceError: a row is for two photographs.
        """
        for name in (item.path, item.key):
            parts = os.path.abspath(name).strip("/").split("/")
            for end in ("/".join(parts[start:]) for start in range(len(parts))):
                if end in self.asked:
                    if self.matched.setdefault(end, item.key) != item.key:
                        both = f"{self.matched[end]!r} and {item.key!r}"
                        raise SourceError(
                            f"{self.table!r}: {end!r} is more than one photograph, {both}: give more of the path"
                        )
                    return self.asked[end]
        return [None]

    def check(self) -> None:
        """Refuse rows that were for nothing.

        Raises:
            SourceError: there are such rows; names the first.
        """
        lost = [path for path in self.asked if path not in self.matched]
        if lost:
            names = ", ".join(map(repr, lost[:5])) + ", …" * (len(lost) > 5)
            raise SourceError(f"{self.table!r}: {len(lost):,} of its paths match no photograph: {names}")


def write_listing(
    rows: Iterable[Item], file: BinaryIO, part_rows: int, report: Callable[[int], object] = lambda count: None
) -> None:
    """Write a listing, a record batch for each part.

    Args:
        rows: streamed; one part is held at a time.
        file: open for writing.
        part_rows: rows of a part, all but the last.
        report: called with the number of rows of each part.
    """
    stream = iter(rows)
    with pa.ipc.new_file(file, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        while part := list(islice(stream, part_rows)):
            columns = zip(zip(*part, strict=True), SCHEMA.types, strict=True)
            writer.write_batch(pa.record_batch([pa.array(values, kind) for values, kind in columns], schema=SCHEMA))
            report(len(part))


class Listing:
    """A listing that has been written.

    Attributes:
        parts: how many.
        rows: how many, of all parts.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        """Open it.

        Args:
            source: its file; a name is mapped into memory, and not read whole.
        """
        self._reader = pa.ipc.open_file(pa.memory_map(str(source)) if isinstance(source, str | Path) else source)
        self.parts: int = self._reader.num_record_batches
        self.rows: int = (self.parts - 1) * len(self.part(0)) + len(self.part(self.parts - 1))

    def part(self, number: int) -> pa.RecordBatch:
        """The rows of a part, columns as `SCHEMA`."""
        return self._reader.get_batch(number)

    def items(self, number: int, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Rows of a part, all or some, counted from the part's first."""
        columns = [column.to_pylist() for column in self.part(number)[start:stop].columns]
        return map(Item._make, zip(*columns, strict=True))
