"""What a listing is made of: where one photograph's bytes are, without the bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TypeAlias


class SourceError(ValueError):
    """What is wrong with an input as a whole; its text is one line: which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of its own.

    Attributes:
        path: The file.
        root: The folder that its real path must stay below, links resolved; None: wherever it is, the user named it.
    """

    path: str
    root: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A piece of an uncompressed tar archive.

    Attributes:
        path: The archive.
        offset: Where the photograph's bytes start, from the archive's start.
        size: How many they are.
    """

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a Parquet table.

    Attributes:
        path: The table.
        row_group: From 0.
        row: Within the row group, from 0.
        column: ``image``, or ``image.bytes`` for a field of a struct.
    """

    path: str
    row_group: int
    row: int
    column: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No photograph: what was named must not, or cannot, be read.

    Attributes:
        problem: Why, in one line.
    """

    problem: str


Locator: TypeAlias = File | Member | Cell | Refused


@dataclass(frozen=True, slots=True)
class Item:
    """One photograph and class asked for. Small, hashable, and goes between processes.

    Attributes:
        index: Place in the listing, from 0.
        key: Identity, unique within a run: the file's path, ``shard.tar//member.jpg`` or ``table.parquet//17``, and
            ``#class`` behind it where a class is asked for. As in a URL, ``%`` and ``#`` in a path are written ``%25``
            and ``%23``, so that no two keys can be confused; bytes that are not UTF-8 are written the same way.
        path: For people: the same without the class and without escapes, a Parquet row by its own name where it has one.
        category: The class asked for, an index or a label as it was given; None: the top-1.
        locator: Where the bytes are.
        stamp: (size, mtime_ns) of the file, or of the archive or table that holds the photograph, when it was listed;
            (-1, -1) where there was none to be seen.
    """

    index: int
    key: str
    path: str
    category: str | None
    locator: Locator
    stamp: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A photograph found in an input, before it has a number.

    Attributes:
        place: The file, or the archive or table that holds it.
        inner: Member name or row within that; None for a file of its own.
        name: How people know it, where that is not ``inner``.
        category: The class that the input itself names; None: it names none.
        locator: Where the bytes are.
        stamp: As in `Item`.
        remark: Tells apart what would have the same key, such as the second member of one name.
    """

    place: str
    inner: str | None
    name: str | None
    category: str | None
    locator: Locator
    stamp: tuple[int, int]
    remark: str = ""

    def item(self, index: int, category: str | None, here: str) -> Item:
        """The entry as number ``index`` of a listing, with the class asked for; its locator starts from ``here``."""
        key = _escaped(self.place if self.inner is None else f"{self.place}//{self.inner}")
        if category is not None:
            category = readable(category)
            key += f"#{category}"
        where = self.locator
        if not isinstance(where, Refused):  # a worker may have another current folder
            where = replace(where, path=os.path.join(here, where.path))
        if isinstance(where, File) and where.root is not None:
            where = replace(where, root=os.path.join(here, where.root))
        return Item(index, key + self.remark, self.path, category, where, self.stamp)

    @property
    def path(self) -> str:
        """As `Item.path`."""
        inner = self.name if self.name is not None else self.inner
        return readable(self.place if inner is None else f"{self.place}//{inner}")


def readable(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes of a file's name that are not UTF-8 come out as ``\xe9``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:  # half of a surrogate pair that no file name holds
            return text.encode("utf-8", "backslashreplace").decode()
    return text


def _escaped(path: str) -> str:
    path = path.replace("%", "%25").replace("#", "%23")
    if path.isascii():
        return path
    return "".join(
        f"%{ord(letter) - 0xDC00:02X}"
        if "\udc80" <= letter <= "\udcff"  # how Python holds a byte that is not UTF-8
        else f"%u{ord(letter):04X}"
        if "\ud800" <= letter <= "\udfff"
        else letter
        for letter in path
    )
