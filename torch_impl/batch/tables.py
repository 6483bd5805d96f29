"""Tables: CSV, TSV and Parquet of paths and classes, and Parquet that holds photographs; read piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")

PATH_COLUMNS = ("path", "file_name", "filename", "filepath", "image_path", "file")
"""What a column of paths may be called; case does not matter, the first that is there counts."""

CLASS_COLUMNS = ("class", "label")
"""What a column of classes may be called; the first that is there counts."""

IMAGE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
"""Which column of bytes holds the photographs, where there are several."""


class Columns(NamedTuple):
    """Which columns of a table to read; dotted for a field of a struct, None where there is none."""

    image: str | None
    path: str | None
    asked: str | None


def rows(path: str) -> Iterator[tuple[str, str | None]]:
    """(path, class) as a table's rows have them; "" and None where there is none.

    Raises:
        ValueError, OSError, ArrowException: the table is broken, or has no column of paths.
    """
    for written, asked in _parquet_rows(path) if Path(path).suffix.lower() in PARQUET else _text_rows(path):
        yield written or "", _class(asked)


def holds_photographs(path: str) -> bool:
    """Whether a Parquet table holds photographs, rather than their paths.

    Raises:
        ValueError, OSError, ArrowException: it is broken, or holds neither.
    """
    return _columns(pq.read_schema(path)).image is not None


def cells(path: str) -> Iterator[dict[str, Any]]:
    """The photographs that a Parquet table holds; their bytes are not read.

    Yields:
        `row_group`, and `row` within it, both from 0; `column` of the bytes, as in `Columns`; `name`, the photograph's own, where the
        table has one; `asked`, the class as it is written, None where there is none.

    Raises:
        ValueError, OSError, ArrowException: it is broken.
    """
    columns = _columns(pq.read_schema(path))
    assert columns.image is not None
    for group, rows in _row_groups(path, columns[1:]):
        for row, (name, asked) in enumerate(rows):
            place = {"row_group": group, "row": row, "column": columns.image}
            yield place | {"name": name, "asked": _class(asked)}


def column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column by its name in `Columns`."""
    outer, _, inner = (name, "", "") if name in batch.schema.names else name.partition(".")
    values = batch.column(batch.schema.get_field_index(outer))
    return pc.struct_field(values, inner) if inner else values


def _text_rows(path: str) -> Iterator[tuple[Any, ...]]:
    parse = pa.csv.ParseOptions(delimiter=SEPARATORS[Path(path).suffix.lower()], newlines_in_values=True)
    names = pa.csv.open_csv(path, parse_options=parse).schema.names
    columns = _columns(pa.schema([(name, pa.string()) for name in names]))
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    yield from _values(pa.csv.open_csv(path, parse_options=parse, convert_options=convert), columns[1:])


def _parquet_rows(path: str) -> Iterator[tuple[Any, ...]]:
    columns = _columns(pq.read_schema(path))
    if columns.path is None:
        raise ValueError(f"no column of paths: {', '.join(PATH_COLUMNS)}")
    for _, group in _row_groups(path, columns[1:]):
        yield from group


def _row_groups(path: str, names: Sequence[str | None]) -> Iterator[tuple[int, Iterator[tuple[Any, ...]]]]:
    """Each row group of a Parquet table: its number, and some columns of its rows."""
    wanted = [name for name in names if name is not None]
    with pq.ParquetFile(path) as table:
        for group in range(table.num_row_groups):
            yield group, _values(table.iter_batches(256, [group], wanted, use_threads=False), names)


def _values(batches: Iterable[pa.RecordBatch], names: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
    """Some columns, row by row; None for one that is not there."""
    for batch in batches:
        lists = [[None] * len(batch) if name is None else column(batch, name).to_pylist() for name in names]
        yield from zip(*lists, strict=True)


def _columns(schema: pa.Schema) -> Columns:
    """What a table's columns hold.

    Raises:
        ValueError: neither photographs nor paths.
    """
    kinds = {
        field.name: getattr(field.type, "value_type", field.type) for field in schema
    }  # of a dictionary: its values'
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    images = {name: name for name, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)}
    path, names = _named(texts, PATH_COLUMNS), {}
    for name, kind in kinds.items():  # as Hugging Face keeps pictures: {bytes, path}
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            images[name] = f"{name}.bytes"
            names[name] = f"{name}.path" if kind.get_field_index("path") >= 0 else path
    image = next(iter(images)) if len(images) == 1 else _named(list(images), IMAGE_COLUMNS)
    if images and image is None:
        raise ValueError(f"several columns hold bytes ({', '.join(images)}): call the photographs' one 'image'")
    if image is None and path is None:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(kinds.items())[:8])
        raise ValueError(
            f"no column of paths ({', '.join(PATH_COLUMNS)}), none of image bytes; its columns are {shown}"
        )
    asked = _named(list(kinds), CLASS_COLUMNS)
    return Columns(None, path, asked) if image is None else Columns(images[image], names.get(image, path), asked)


def _named(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The column with the first of these names that is there."""
    lower = {name.strip().lower(): name for name in reversed(columns)}
    return next((lower[name] for name in wanted if name in lower), None)


def _class(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():  # how pandas writes integers with gaps
        value = int(value)
    return str(value).strip() or None
