"""Inputs → items: folders, globs, tables and archives, listed one photograph after another without their bytes.

What a table or an archive names is not trusted: a table's paths stay below its own folder, or below `root`, links
resolved; nothing is fetched because a row names a URL; nothing is unpacked to disk. What must not be read is an item
that says why.
"""

from __future__ import annotations

import glob
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from parity.contract.text import one_line
from torch_impl import folders, images
from torch_impl.batch import tables

LARGEST_CLASS = 2**20
"""Longest `.cls` or `.json` member that is read for a class, bytes."""


BROKEN = (ValueError, OSError, OverflowError, MemoryError, RecursionError, pa.ArrowException, tarfile.TarError)
"""What libraries raise on tables and archives that are damaged."""


class SourceError(ValueError):
    """What is wrong with an input as a whole; its text is one line: which, why, and what to do."""


class Item(NamedTuple):
    """One photograph and class asked for; a row of the listing.

    Attributes:
        key: identity, unique in a listing: the file's path, `shard.tar//cat.jpg`, `table.parquet//17`, and `#class`
            behind it where a class is asked for. `%` and `#` in a path are written `%25` and `%23`, so that no two keys
            can be confused.
        path: for people: the same without class and escapes; a Parquet row by its own name, where it has one.
        asked: the class asked for, an index or a label as it was given; None: the top-1.
        file: absolute path of the photograph, or of the archive or table that holds it.
        root: the folder that the real path of `file` must stay below; None: the user named the file.
        offset: where a tar member's bytes start in the archive.
        length: how many they are.
        row_group: of a Parquet table.
        row: within the row group.
        column: of the bytes; see `tables.Columns`.
        problem: why it must not, or cannot, be read; None: it may.
        file_size: of `file` when it was listed, bytes; −1: there was none to be seen.
        file_mtime_ns: its time then.
    """

    key: str
    path: str
    asked: str | None
    file: bytes
    root: bytes | None
    offset: int | None
    length: int | None
    row_group: int | None
    row: int | None
    column: str | None
    problem: str | None
    file_size: int
    file_mtime_ns: int


def items(given: str, *, root: str | None = None, with_classes: bool = True) -> Iterator[Item]:
    """List one input.

    Args:
        given: a photograph, folder, glob, table or archive.
        root: the folder that a table's paths start from and must stay below; None: the table's own.
        with_classes: whether an archive's `.cls` and `.json` members are read for classes.

    Raises:
        SourceError: it is missing, of an unknown kind, or broken.
    """
    if "://" in given:
        raise SourceError(f"{given!r}: a URL; nothing is fetched: download it first")
    path = _clean(given)
    there = bool(given) and os.path.lexists(path)
    if not there and not glob.has_magic(path):
        raise SourceError(f"{given!r}: no such file or folder")
    for match in [path] if there else map(_clean, _matches(path)):
        if os.path.isdir(match):
            yield from _folder(match)
        elif there or _suffix(match) in (*images.SUFFIXES, _suffix(path)):
            yield from _file_items(match, root, with_classes)


def readable(text: str) -> str:
    """Text that UTF-8 can hold: what a file's name holds beside it is written with backslashes."""
    return text.encode("utf-8", "backslashreplace").decode()


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """(size, time) of a file, by which a change is noticed."""
    return status.st_size, status.st_mtime_ns


def is_below(path: Any, folder: Any) -> bool:
    """Whether an absolute path is that of a folder, or of something in it."""
    return bool(os.path.commonpath([path, folder]) == folder)


def _file_items(path: str, root: str | None, with_classes: bool) -> Iterator[Item]:
    """What a file lists; whatever is wrong with it as one line."""
    suffix = _suffix(path)
    try:
        if suffix in images.SUFFIXES:
            yield _photograph(path)
        elif suffix == ".tar":
            yield from _archive(path, with_classes)
        elif suffix in tables.PARQUET and tables.holds_photographs(path):
            yield from _cells(path)
        elif suffix in tables.PARQUET or suffix in tables.SEPARATORS:
            yield from _table(path, root)
        else:
            raise ValueError(
                f"unknown suffix {suffix!r}: give photographs, a folder, .csv, .tsv, .parquet or .tar (a compressed "
                "archive: unpack it; a workbook: save it as CSV)"
            )
    except BROKEN as error:
        raise broken(path, error) from None


def broken(path: str, error: Exception) -> SourceError:
    """What is wrong with a file, as one line."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else error
    return SourceError(f"{path!r}: {one_line(words)}")


def _clean(path: str) -> str:
    """A path without doubled slashes and dots that mean nothing; `..` stays, for a link may be before it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "."


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _item(place: str, inner: str | None = None, stamp: tuple[int, int] = (-1, -1), **more: Any) -> Item:
    """An item of the file `place`, or of the member or row `inner` in it; `name` is what people call the latter."""
    name = more.pop("name", None) or inner
    values: dict[str, Any] = dict.fromkeys(Item._fields) | more
    key = readable(place if inner is None else f"{place}//{inner}")
    values["key"] = key.replace("%", "%25").replace("#", "%23")
    values["path"] = readable(place if name is None else f"{place}//{name}")
    values["file"] = os.fsencode(os.path.abspath(place))
    values["file_size"], values["file_mtime_ns"] = stamp
    return Item(**values)


def _photograph(path: str, **more: Any) -> Item:
    """A file of its own."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # reading it says why
        return _item(path, **more)
    if not stat.S_ISREG(status.st_mode):
        more["problem"] = "a folder, pipe, socket or device, not a photograph"
    return _item(path, None, stamp_of(status), **more)


# Folders and globs


def _folder(top: str) -> Iterator[Item]:
    refused: list[OSError] = []
    for folder, files in folders.walk(top, refused.append):
        for name in files:
            if _suffix(name) in images.SUFFIXES:
                yield _photograph(_clean(os.path.join(folder, name)))
    for error in refused:  # not silently less than was asked for
        yield _item(os.fsdecode(error.filename), problem=f"a folder that cannot be listed: {error.strerror}")


def _matches(pattern: str) -> Iterator[str]:
    """Files and folders that a pattern names; `**/` stands for any number of folders."""
    before, stars, after = pattern.partition("**/")
    for match in sorted(glob.glob(before or "."), key=folders.natural_order):
        if stars:
            for folder, _ in folders.walk(match):
                yield from _matches(os.path.join(glob.escape(folder), after))
        else:
            yield match


# Tables


def _table(path: str, root: str | None) -> Iterator[Item]:
    folder = _clean(root) if root is not None else os.path.dirname(path) or "."
    top, stamp = os.path.abspath(folder), stamp_of(os.stat(path))
    for number, (written, asked) in enumerate(tables.rows(path)):
        place = os.path.normpath(os.path.join(folder, written))
        if not written:
            problem = "the row names no photograph"
        elif "://" in written:
            problem = "names a URL; nothing is fetched: download it, and name the file"
        elif not is_below(os.path.abspath(place), top):
            problem = f"leads out of {readable(folder)!r}: not read; name the folder that all are in with --root"
        else:
            yield _photograph(place, asked=asked, root=os.fsencode(top))
            continue
        yield _item(path, str(number), stamp, name=written, asked=asked, problem=problem)


def _cells(path: str) -> Iterator[Item]:
    stamp = stamp_of(os.stat(path))
    for number, cell in enumerate(tables.cells(path)):
        yield _item(path, str(number), stamp, **cell)


# Archives


def _archive(path: str, with_classes: bool) -> Iterator[Item]:
    """The photographs of an uncompressed tar archive; those of a WebDataset key have the class that it gives."""
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        stamp = stamp_of(os.fstat(file.fileno()))
        names: set[int] = set()
        key, photographs, classes = "", list[dict[str, Any]](), dict[str, tuple[int, int]]()
        rest = list[Item]()

        def of_this_key() -> Iterator[Item]:
            given = _class_of(classes, file) if with_classes and photographs else {}
            for photograph in photographs:
                yield _item(path, stamp=stamp, **(given | photograph))
            photographs.clear()
            classes.clear()

        try:
            for member in _members(archive, file):
                name = "/".join(part for part in member.name.split("/") if part != ".")
                folder, _, base = name.rpartition("/")
                if any(part.startswith(".") and part != ".." for part in name.split("/")):
                    continue  # hidden, as in folders
                stem, _, extension = base.partition(".")
                if f"{folder}/{stem}" != key:
                    yield from of_this_key()
                    key = f"{folder}/{stem}"
                if extension.lower() in ("cls", "json") and member.isreg():
                    classes[extension.lower()] = (member.offset_data, member.size)
                elif _suffix(base) in images.SUFFIXES and not member.isdir():
                    inner = f"{name}@{member.offset}" if hash(name) in names else name  # a second one of this name
                    names.add(hash(name))
                    problem = _problem(member, name)
                    where = {"offset": member.offset_data, "length": member.size}
                    photographs.append({"inner": inner} | ({"problem": problem} if problem else where))
        except BROKEN as error:
            problem = f"the archive is cut off or damaged from here on, and not read further: {one_line(error)}"
            rest = [_item(path, f"byte {archive.offset}", stamp, problem=problem)]
        yield from (*of_this_key(), *rest)


def _members(archive: tarfile.TarFile, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """tarfile's members, without keeping them.

    Raises:
        TarError: the archive breaks off, where tarfile takes a damaged header for the end.
    """
    before = -1
    while (member := archive.next()) is not None:
        if archive.offset <= before or member.size < 0:
            raise tarfile.ReadError("a header leads back")
        before = archive.offset
        archive.members.clear()  # type: ignore[attr-defined]  # or it would keep every header
        yield member
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end mark")


def _problem(member: tarfile.TarInfo, name: str) -> str | None:
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the archive: not read"
    if not member.isreg() or member.issparse():
        return "a link, device or sparse member inside an archive: not read"
    return None


def _class_of(members: dict[str, tuple[int, int]], file: BinaryIO) -> dict[str, str]:
    """The class that a key's `.cls`, or else its `.json`, gives (`asked`), or why it cannot be read (`problem`)."""
    for extension in ("cls", "json"):
        if extension not in members:
            continue
        offset, length = members[extension]
        try:
            text = os.pread(file.fileno(), min(length, LARGEST_CLASS), offset).decode("utf-8-sig")
            value = json.loads(text) if extension == "json" else text.strip()
            value = value.get("class", value.get("label")) if isinstance(value, dict) else value
            if length > LARGEST_CLASS or isinstance(value, bool) or not isinstance(value, int | str | None):
                raise ValueError
            asked = "" if value is None else readable(str(value).strip())
            return {"asked": asked} if asked else {}
        except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, no class
            return {"problem": f"its class cannot be read: the .{extension} beside it is damaged, or holds none"}
    return {}
