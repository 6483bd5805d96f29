"""What the tests of a large run's inputs share: photographs in files, tables and archives, and what is listed of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from parity.contract.text import one_line
from torch_impl.batch.listing import listed
from torch_impl.batch.loading import Reader, decoded
from torch_impl.batch.sources import Item, SourceError
from torch_impl.images import ImageError

NAMED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""A photograph with its name, as Hugging Face keeps it."""


def encoded(colour: tuple[int, int, int], format: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), colour, np.uint8)).save(data, format)
    return data.getvalue()


JPEG, OTHER = encoded((200, 100, 50)), encoded((9, 9, 9), "PNG")


def write(path: str, data: bytes | str = JPEG) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def header(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def tar(path: str, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=format) as archive:
        for member, data in members:
            info = header(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def parquet(path: str, /, *, row_group_size: int = 3, store_schema: bool = True, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, store_schema=store_schema)
    return path


def items(*inputs: str, **options: Any) -> list[Item]:
    return list(listed(inputs, **options))


def keys(*inputs: str, **options: Any) -> list[str]:
    return [item.key for item in items(*inputs, **options)]


def paths(*inputs: str) -> list[str]:
    return [item.path for item in items(*inputs)]


def problem(item: Item) -> str:
    """Why it cannot be read; empty if it can."""
    try:
        decoded(item, Reader().read(item), 8, "lab")
    except ImageError as error:
        return error.problem
    except (OSError, ValueError, pa.ArrowException) as error:
        return one_line(getattr(error, "strerror", None) or error)
    return ""


def problems(*inputs: str, **options: Any) -> list[str]:
    said = [problem(item) for item in items(*inputs, **options)]
    assert all(line.isprintable() for line in said)
    return said


def refused(*inputs: str, **options: Any) -> str:
    """What is said of an input as a whole: one line."""
    with pytest.raises(SourceError) as caught:
        items(*inputs, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)
