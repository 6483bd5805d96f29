"""Tables: CSV, TSV and Parquet of paths and classes, and Parquet that holds the photographs themselves.

A table is data from somewhere else. It is read row by row, with a limit on every piece that it could make large (a line,
a cell, what a compressed column unpacks to); columns that would need code to be read (pickles in Arrow's extension
types) are refused; and what its rows name is never fetched.
"""

from __future__ import annotations

import csv
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from torch_impl import images
from torch_impl.batch.entries import Cell, Entry, Locator, Refused, SourceError
from torch_impl.batch.files import stamp_of, why_not

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""Text tables by suffix."""

PARQUET = (".parquet", ".pq")

PATH_COLUMNS = ("path", "file_name", "filename", "filepath", "image_path", "file")
"""What a column of paths may be called; case does not matter, the first that is there counts."""

CLASS_COLUMNS = ("class", "label")
"""What a column of classes may be called; the first that is there counts."""

IMAGE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
"""Which column of bytes holds the photographs, where there are several."""

MAX_RECORD = 2**20
"""Longest row of a text table, bytes; of Parquet's paths and classes, longest cell."""

_MAX_BATCH = 2**26
"""Most bytes that one batch of a column can unpack to: a dictionary can hold one long cell for a million rows."""

_MAX_RATIO = 100
"""How far a column of photographs may be compressed: they hardly are; a bomb is by 1000."""

_KEPT_BYTES, _KEPT_CELLS = 64 * 2**20, 64
"""Neighbours that are kept, for loaders that ask in almost the right order."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table of paths.

    Attributes:
        number: The line (text tables, the header is line 1), or the row from 0 (Parquet).
        path: As it is written; empty where the cell is.
        category: The class as it is written; None where there is none.
        problem: Why the row cannot be used; empty if it can.
    """

    number: int
    path: str
    category: str | None
    problem: str = ""


def plain(error: BaseException) -> str:
    """Another library's words on one line that a terminal can show."""
    text = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200] or type(error).__name__


def open_regular(path: str) -> BinaryIO:
    """Opens an archive or a table; what is no regular file is not opened.

    Raises:
        SourceError: It is not there, is not a regular file, or may not be read.
    """
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            if status.st_size == 0:
                raise SourceError(f"{path!r}: an empty file (0 bytes)")
            return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or our own
        raise (error if isinstance(error, SourceError) else SourceError(f"{path!r}: {why_not(path, error)}")) from None
    raise SourceError(
        f"{path!r}: {'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe, socket or device'}, not a file"
    )


def is_parquet(path: str) -> bool:
    """Whether the suffix says Parquet."""
    return os.path.splitext(path)[1].lower() in PARQUET


def holds_images(path: str) -> bool:
    """Whether a Parquet table holds photographs, rather than their paths.

    Raises:
        SourceError: The table cannot be read, or holds neither.
    """
    with open_regular(path) as file:
        return _columns(_parquet(file, path), path).image is not None


def rows(path: str) -> Iterator[Row]:
    """Reads a table of paths, and of classes where it has them, row by row.

    Raises:
        SourceError: The table is broken, or has no column of paths.
    """
    return _parquet_rows(path) if is_parquet(path) else _text_rows(path)


# Text


class _Lines:
    """A text table's lines, each checked; counts the bytes of a record, which may span several."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file, self.path = file, path
        self.number = self.record = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_RECORD + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.record += len(line)
        where = f"{self.path!r}, line {self.number}"
        if self.record > MAX_RECORD:
            raise SourceError(f"{where}: a row of more than {MAX_RECORD:,} bytes: a quote that is not closed?")
        if self.number == 1:
            _check_start(line, self.path)
        if b"\0" in line:
            raise SourceError(f"{where}: a NUL character: not a text table, or damaged")
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise SourceError(f"{where}: not UTF-8: save the table as UTF-8") from None


def _check_start(line: bytes, path: str) -> None:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError(f"{path!r}: UTF-16 text: save the table as UTF-8")
    if line.startswith(b"PK\x03\x04"):
        raise SourceError(f"{path!r}: a workbook or a ZIP archive, not a text table: save it as CSV")
    if line.startswith(b"\x1f\x8b"):
        raise SourceError(f"{path!r}: compressed with gzip: unpack it")
    if line.startswith(b"PAR1"):
        raise SourceError(f"{path!r}: a Parquet table: call it .parquet")


def _text_rows(path: str) -> Iterator[Row]:
    separator = SEPARATORS[os.path.splitext(path)[1].lower()]
    with open_regular(path) as file:
        lines = _Lines(file, path)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise SourceError(
                    f"{path!r}: no line in it; the first names the columns: path, or path{separator}class"
                )
            names = [name.strip().lower() for name in header]
            place, category = _named(names, PATH_COLUMNS, path), _named(names, CLASS_COLUMNS, path)
            if place is None:
                raise SourceError(f"{path!r}: {_no_column(header, separator)}")
            while True:
                lines.record = 0
                cells = next(reader, None)
                if cells is None:
                    return
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise SourceError(
                        f"{path!r}, line {reader.line_num}: {len(cells)} cells, but {len(names)} columns: "
                        "put quotes around a cell that holds the separator"
                    )
                text = cells[category].strip() if category is not None else ""
                yield Row(reader.line_num, cells[place], text or None)
        except csv.Error as error:
            raise SourceError(
                f"{path!r}, line {max(1, reader.line_num)}: broken quotes or line ends: {plain(error).partition(' - ')[0]}"
            ) from None
        except OSError as error:
            raise SourceError(f"{path!r}: {why_not(path, error)}") from None


def _named(names: list[str], wanted: tuple[str, ...], path: str) -> int | None:
    for name in wanted:
        if names.count(name) > 1:
            raise SourceError(f"{path!r}: two columns are called {name!r}: rename one")
        if name in names:
            return names.index(name)
    return None


def _no_column(header: list[str], separator: str) -> str:
    other = next((each for each in ",;\t" if each != separator and any(each in name for name in header)), None)
    if other is not None and len(header) == 1:
        names = {",": "commas", ";": "semicolons", "\t": "tabs"}
        return f"its columns are separated by {names[other]}: separate them by {names[separator]}"
    shown = ", ".join(repr(name[:40]) for name in header[:8])
    return f"no column of paths; the first line must name one {', '.join(PATH_COLUMNS)}; its columns are {shown}"


# Parquet


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns to read; dotted for a field of a struct, None where there is none."""

    image: str | None
    path: str | None
    category: str | None


def _parquet(file: BinaryIO, path: str) -> ParquetFile:
    from pyarrow import parquet

    try:
        # Streamed, page by page: a row group of photographs may be gigabytes.
        return parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    except Exception as error:  # Arrow raises its own, OSError, and more on damaged metadata
        raise SourceError(f"{path!r}: not a Parquet table, or damaged: {plain(error)}") from None


def _columns(table: ParquetFile, path: str) -> _Columns:
    import pyarrow as pa

    try:
        schema = table.schema_arrow
    except Exception as error:
        raise SourceError(f"{path!r}: its columns cannot be read: {plain(error)}") from None

    def text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def binary(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    names = [field.name.strip().lower() for field in schema]
    for field in schema:
        extension = (field.metadata or {}).get(b"ARROW:extension:name", b"")
        if b"py_extension" in extension or "py_extension" in str(getattr(field.type, "extension_name", "")):
            raise SourceError(f"{path!r}: column {field.name!r} holds a pickle, which would run code: not read")
    usable = {field.name: field.type for field in schema if not isinstance(field.type, pa.BaseExtensionType)}

    pictures: dict[str, str] = {}
    inner_path: dict[str, str] = {}
    for name, kind in usable.items():
        if binary(kind):
            pictures[name] = name
        elif pa.types.is_struct(kind):
            fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
            if "bytes" in fields and binary(fields["bytes"]):
                pictures[name] = f"{name}.bytes"
                if "path" in fields and text(fields["path"]):
                    inner_path[name] = f"{name}.path"
    picture = None
    if len(pictures) == 1:
        (picture,) = pictures
    elif pictures:
        lower = {name.lower(): name for name in pictures}
        picture = next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
        if picture is None:
            shown = ", ".join(map(repr, pictures))
            raise SourceError(f"{path!r}: several columns hold bytes ({shown}): call the photographs' one 'image'")

    place = _named(names, PATH_COLUMNS, path)
    paths = schema.field(place).name if place is not None and text(schema.field(place).type) else None
    if picture is None and paths is None:
        if place is not None:
            raise SourceError(
                f"{path!r}: its column {schema.field(place).name!r} holds {schema.field(place).type}, not text"
            )
        held = [field.name for field in schema if isinstance(field.type, pa.BaseExtensionType)]
        shown = ", ".join(f"{field.name!r} ({field.type})"[:80] for field in list(schema)[:8])
        more = f"; extension types ({', '.join(map(repr, held))}) are not read" if held else ""
        raise SourceError(
            f"{path!r}: neither a column of paths ({', '.join(PATH_COLUMNS)}) nor one of image bytes; "
            f"its columns are {shown}{more}"
        )
    number = _named(names, CLASS_COLUMNS, path)
    category = None
    if number is not None:
        kind = schema.field(number).type
        if not (text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            raise SourceError(f"{path!r}: its column {schema.field(number).name!r} holds {kind}, not classes")
        category = schema.field(number).name
    if picture is not None:
        paths = inner_path.get(picture, paths)
        return _Columns(pictures[picture], paths, category)
    return _Columns(None, paths, category)


def _unpacked(table: ParquetFile, group: int, columns: list[str]) -> tuple[int, int]:
    """Bytes that the columns of a row group unpack to, and those that they are packed in, as the table claims."""
    parts = table.metadata.row_group(group)
    chunks = [parts.column(i) for i in range(parts.num_columns)]
    chosen = [c for c in chunks if any(c.path_in_schema == n or c.path_in_schema.startswith(f"{n}.") for n in columns)]
    return sum(c.total_uncompressed_size for c in chosen), sum(c.total_compressed_size for c in chosen)


def _batches(table: ParquetFile, group: int, columns: list[str]) -> Iterator[RecordBatch]:
    unpacked, _ = _unpacked(table, group, columns)
    size = max(1, min(1024, _MAX_BATCH // max(1, unpacked)))
    yield from table.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)


def _column(batch: RecordBatch, name: str) -> Any:
    if name in batch.schema.names:
        return batch.column(batch.schema.names.index(name))
    from pyarrow import compute

    outer, _, inner = name.partition(".")
    return compute.struct_field(batch.column(batch.schema.names.index(outer)), inner)


def _buffer(scalar: Any) -> Any:
    """The bytes of a cell of text or bytes, without a copy; None where it is empty."""
    scalar = getattr(scalar, "value", scalar) if type(scalar).__name__ == "DictionaryScalar" else scalar
    return scalar.as_buffer() if scalar is not None and scalar.is_valid else None


def _text_cell(scalar: Any) -> str:
    """A cell as text.

    Raises:
        ValueError: Its text is too long, or not UTF-8.
    """
    if not scalar.is_valid:
        return ""
    if type(scalar).__name__ in ("StringScalar", "LargeStringScalar", "DictionaryScalar"):
        held = _buffer(scalar)
        if held is None:
            return ""
        if held.size > MAX_RECORD:
            raise ValueError(f"a cell of {held.size:,} bytes, more than the {MAX_RECORD:,} that are read")
        try:
            return str(held.to_pybytes(), "utf-8")
        except UnicodeDecodeError:
            raise ValueError("a cell that is not UTF-8") from None
    value = scalar.as_py()
    if isinstance(value, float):  # how pandas writes integers with gaps
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _read_rows(
    table: ParquetFile, path: str, place: str | None, category: str | None
) -> Iterator[tuple[int, int, Row]]:
    """(row group, row within it, row of the table)."""
    wanted = [name for name in (place, category) if name is not None]
    number = 0
    try:
        for group in range(table.num_row_groups):
            row = 0
            if not wanted:
                for row in range(table.metadata.row_group(group).num_rows):
                    yield group, row, Row(number, "", None)
                    number += 1
                continue
            for batch in _batches(table, group, wanted):
                places = _column(batch, place) if place is not None else None
                categories = _column(batch, category) if category is not None else None
                for i in range(batch.num_rows):
                    try:
                        text = _text_cell(places[i]) if places is not None else ""
                        chosen = _text_cell(categories[i]).strip() if categories is not None else ""
                        found = Row(number, text, chosen or None)
                    except ValueError as error:
                        found = Row(number, "", None, str(error))
                    yield group, row, found
                    number, row = number + 1, row + 1
                del batch, places, categories  # or there would be two at once
    except SourceError:
        raise
    except Exception as error:  # Arrow raises its own, OSError, and more on damaged pages
        raise SourceError(f"{path!r}, after row {number}: damaged: {plain(error)}") from None


def _parquet_rows(path: str) -> Iterator[Row]:
    with open_regular(path) as file:
        table = _parquet(file, path)
        columns = _columns(table, path)
        if columns.path is None:
            raise SourceError(f"{path!r}: no column of paths: {', '.join(PATH_COLUMNS)}")
        for _, _, row in _read_rows(table, path, columns.path, columns.category):
            yield row


def image_entries(path: str, *, with_classes: bool) -> Iterator[Entry]:
    """Lists the photographs that a Parquet table holds; their bytes are not read.

    Args:
        path: The table.
        with_classes: Whether its column of classes is read.

    Yields:
        An entry for each row, also for those that turn out to be empty.

    Raises:
        SourceError: The table is broken, or holds no photographs.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        stamp = (status.st_size, status.st_mtime_ns)
        table = _parquet(file, path)
        columns = _columns(table, path)
        if columns.image is None:
            raise SourceError(f"{path!r}: no column of image bytes")
        category = columns.category if with_classes else None
        for group, row, found in _read_rows(table, path, columns.path, category):
            where: Locator = Cell(path, group, row, columns.image)
            if found.problem:
                where = Refused(found.problem)
            yield Entry(path, str(found.number), found.path or None, found.category, where, stamp)


# Cells


class _CellReader:
    """Reads a row group's photographs one after another, and keeps a few for those who ask a little out of order."""

    def __init__(self, cell: Cell, stamp: tuple[int, int]) -> None:
        self.path = cell.path
        try:
            self.file = open_regular(cell.path)
        except SourceError as error:
            raise ValueError(str(error).removeprefix(f"{cell.path!r}: ")) from None
        try:
            status = os.fstat(self.file.fileno())
            if stamp != (status.st_size, status.st_mtime_ns):
                raise ValueError("the file that holds it has changed since it was listed: start again")
            try:
                table = _parquet(self.file, cell.path)
            except SourceError as error:
                raise ValueError(str(error).removeprefix(f"{cell.path!r}: ")) from None
            unpacked, packed = _unpacked(table, cell.row_group, [cell.column])
            if unpacked > images.MAX_BYTES and unpacked > _MAX_RATIO * packed:
                raise ValueError(
                    f"its row group unpacks {packed:,} bytes to {unpacked:,} (a decompression bomb?): not read"
                )
            # One row a batch: 12 µs each, and no more than one photograph is unpacked at a time.
            self.batches = table.iter_batches(
                batch_size=1, row_groups=[cell.row_group], columns=[cell.column], use_threads=False
            )
        except BaseException:
            self.file.close()
            raise
        self.next_row = 0
        self.kept: dict[int, bytes | ValueError] = {}
        self.bytes = 0
        self.broken: ValueError | None = None

    def read(self, row: int, column: str) -> bytes:
        while self.next_row <= row and row not in self.kept:
            if self.broken is not None:
                raise self.broken
            try:
                batch = next(self.batches)
                held = _buffer(_column(batch, column)[0])
            except StopIteration:
                self.broken = ValueError("the table has no such row: damaged, or changed since it was listed")
                continue
            except Exception as error:  # Arrow raises its own, OSError, and more on damaged pages
                self.broken = ValueError(f"the table is damaged here: {plain(error)}")
                continue
            found: bytes | ValueError
            if held is None:
                found = ValueError("there are no image bytes in this row, and nothing is fetched")
            else:
                try:
                    images.check_length("", held.size)
                    found = held.to_pybytes()
                except images.ImageError as error:
                    found = ValueError(error.problem)
            self._keep(self.next_row, found)
            self.next_row += 1
        found = self.kept[row]
        if isinstance(found, ValueError):
            raise found.with_traceback(None)
        return found

    def _keep(self, row: int, found: bytes | ValueError) -> None:
        self.kept[row] = found
        self.bytes += len(found) if isinstance(found, bytes) else 0
        while len(self.kept) > 1 and (self.bytes > _KEPT_BYTES or len(self.kept) > _KEPT_CELLS):
            dropped = self.kept.pop(next(iter(self.kept)))
            self.bytes -= len(dropped) if isinstance(dropped, bytes) else 0

    def holds(self, row: int) -> bool:
        return row >= self.next_row or row in self.kept


_reader_lock = threading.Lock()
_reader: tuple[Any, _CellReader] | None = None


def read_cell(cell: Cell, stamp: tuple[int, int]) -> bytes:
    """Reads one photograph out of a Parquet table.

    Quick for rows that are asked for in order, or nearly so, from any number of threads; a row group is read again
    from its start for a row far behind.

    Raises:
        ValueError: It cannot be read; the message says why.
    """
    global _reader
    # The process is part of it: a forked child would move the parent's place in the file.
    wanted = (os.getpid(), cell.path, cell.row_group, cell.column, stamp)
    with _reader_lock:
        unchanged = stamp_of(cell.path) == stamp
        if _reader is None or _reader[0] != wanted or not unchanged or not _reader[1].holds(cell.row):
            if _reader is not None and _reader[0][0] == wanted[0]:
                _reader[1].file.close()
            _reader = None
            _reader = (wanted, _CellReader(cell, stamp))
        return _reader[1].read(cell.row, cell.column)


def _after_fork() -> None:
    global _reader_lock
    _reader_lock = threading.Lock()  # another thread may have held it when the process was forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
