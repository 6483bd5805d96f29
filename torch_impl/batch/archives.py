"""Tar archives, WebDataset's among them: listed by their headers, never unpacked.

An archive is data from somewhere else. Its members' names open nothing; links and devices are not followed; a name that
leads out of the archive is refused, although nothing would be written there, because a name like that is no accident.
Headers are read through a file that refuses to hand out more than `MAX_HEADER` bytes at once, so that a header cannot
claim a name of gigabytes; every step must lead forward; and an archive that breaks off is told, where tarfile itself
takes a damaged header for the end.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from typing import IO, BinaryIO

from torch_impl import images
from torch_impl.batch.entries import Entry, Locator, Member, Refused, SourceError, readable
from torch_impl.batch.seen import Seen
from torch_impl.batch.tables import open_regular, plain

MAX_HEADER = 2**20
"""Longest extended header (a long name, PAX records), bytes."""

MAX_CLASS_MEMBER = {"cls": 2**10, "json": 2**20}
"""Longest member that is read for a class, bytes."""

MAX_GROUP = 1000
"""Most photographs that share one WebDataset key, and so one class."""

_AFTER_END = 2**20
"""How far behind the end mark zeros are expected: tar pads to its record, 10 KiB and rarely more."""

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "Zstandard", b"PK\x03\x04": "ZIP"}


class _Headers:
    """A file that tarfile may read headers from, and nothing large."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tell = file.tell
        self.seek = file.seek

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {length:,} bytes")
        return self.file.read(length)


class _Group:
    """Members of one WebDataset key: its photographs, and the class that a `.cls` or `.json` beside them gives."""

    def __init__(self, key: str | None = None, before: _Group | None = None) -> None:
        self.key = key
        self.goes_on = before is not None
        self.photographs: list[tuple[str, Locator, str]] = []
        self.classes: dict[str, tuple[int, int]] = before.classes if before is not None else {}


def entries(path: str, *, with_classes: bool) -> Iterator[Entry]:
    """Lists the photographs of an uncompressed tar archive, in its own order.

    Args:
        path: The archive.
        with_classes: Whether `.cls` and `.json` members are read for classes.

    Yields:
        An entry for each photograph by suffix; what cannot be read is an entry that is refused, at its place.

    Raises:
        SourceError: It is no tar archive, or cannot be opened.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        stamp = (status.st_size, status.st_mtime_ns)
        start = file.read(8)
        for magic, name in _MAGIC.items():
            if start.startswith(magic):
                raise SourceError(
                    f"{path!r}: a {name} file: compressed archives cannot be read at any place; unpack it"
                )
        file.seek(0)
        try:
            archive = tarfile.TarFile(fileobj=_Headers(file), errors="surrogateescape", encoding="utf-8")  # type: ignore[arg-type]
        except (tarfile.TarError, ValueError, RecursionError, OSError, OverflowError) as error:
            raise SourceError(f"{path!r}: not a tar archive: {plain(error)}") from None
        group, names, has_classes = _Group(), Seen(), False
        for member in _members(archive, file, status.st_size):
            if isinstance(member, tuple):
                at, problem = member
                if with_classes and has_classes and not group.classes:  # top-1 would be a guess
                    lost = Refused("its class cannot be read: the archive breaks off behind it")
                    group.photographs = [
                        (name, where if isinstance(where, Refused) else lost, remark)
                        for name, where, remark in group.photographs
                    ]
                yield from _flushed(group, file, path, stamp, with_classes)
                group = _Group()
                yield Entry(path, None, None, None, Refused(problem), stamp, f"#byte {at}")
                continue
            name = "/".join(part for part in member.name.split("/") if part != ".") or "."
            folder, _, base = name.rpartition("/")
            if base.startswith(".") or any(part.startswith(".") and part != ".." for part in folder.split("/")):
                continue  # hidden, as in folders
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}"
            if key != group.key or len(group.photographs) >= MAX_GROUP:
                yield from _flushed(group, file, path, stamp, with_classes)
                has_classes = has_classes or bool(group.classes)
                group = _Group(key, group if key == group.key else None)
            extension = extension.lower()
            if extension in MAX_CLASS_MEMBER and member.isreg() and not member.issparse():
                if with_classes and group.goes_on and not group.classes:
                    raise SourceError(
                        f"{path!r}: {readable(name)!r} comes after more than {MAX_GROUP} photographs of its class: "
                        "put it before them"
                    )
                group.classes.setdefault(extension, (member.offset_data, member.size))
            elif os.path.splitext(base)[1].lower() in images.SUFFIXES and not member.isdir():
                fresh = names.add(name)
                problem = _problem(member, name)
                if not problem and not fresh:
                    problem = "the archive holds another photograph of this name before it: only that one is read"
                where = Refused(problem) if problem else Member(path, member.offset_data, member.size)
                group.photographs.append((name, where, "" if fresh else f"#byte {member.offset}"))
        yield from _flushed(group, file, path, stamp, with_classes)


def _members(archive: tarfile.TarFile, file: BinaryIO, length: int) -> Iterator[tarfile.TarInfo | tuple[int, str]]:
    """tarfile's members, without keeping them; at last, where the archive breaks off, the byte and why."""
    before = 0  # and not archive.offset: opening it has read the first header
    damaged = "the archive is damaged from byte {:,} on, and not read further: {}"
    while True:
        try:
            member = archive.next()
        except Exception as error:  # tarfile raises all sorts of things on bytes that are no header
            yield before, damaged.format(before, plain(error))
            return
        if member is None:
            break
        if member.size < 0 or archive.offset <= before:
            yield before, damaged.format(before, "a header leads back")
            return
        before = archive.offset
        archive.members.clear()  # type: ignore[attr-defined]  # or it would keep every header
        yield member
    end = archive.offset
    if end >= length:
        yield end, "the archive has no end mark: it was probably cut off; copy it again"
        return
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):
        yield end, damaged.format(end, "no header there")
    elif any(file.read(_AFTER_END)):
        yield end, "the archive goes on behind its end mark (two joined into one?), and is not read there: split it"


def _problem(member: tarfile.TarInfo, name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the archive: not read"
    if member.issym() or member.islnk():
        return "a link inside an archive: not followed"
    if not member.isreg():
        return "a pipe, socket or device, not a photograph"
    if member.issparse():
        return "a sparse member of an archive: not read; pack it without --sparse"
    return ""


def _flushed(group: _Group, file: BinaryIO, path: str, stamp: tuple[int, int], with_classes: bool) -> Iterator[Entry]:
    if not group.photographs:
        return
    category: str | None = None
    problem = ""
    if with_classes:
        try:
            category = _class(group.classes, file)
        except ValueError as error:
            problem = str(error)
    for name, where, remark in group.photographs:
        if problem and not isinstance(where, Refused):
            where = Refused(problem)
        yield Entry(path, name, None, category, where, stamp, remark)


def _class(members: dict[str, tuple[int, int]], file: IO[bytes]) -> str | None:
    """The class that a group's `.cls`, or else its `.json`, gives.

    Raises:
        ValueError: There is one, and it cannot be read.
    """
    for extension in ("cls", "json"):
        if extension not in members:
            continue
        offset, length = members[extension]
        if length > MAX_CLASS_MEMBER[extension]:
            raise ValueError(f"its class cannot be read: the .{extension} beside it is {length:,} bytes long")
        data = os.pread(file.fileno(), length, offset)
        try:
            text = data.decode("utf-8-sig")
            if extension == "cls":
                return text.strip() or None
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"its class cannot be read: the .{extension} beside it is damaged") from None
        value = found.get("class", found.get("label")) if isinstance(found, dict) else found
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("its class cannot be read: in the .json beside it, it is neither a number nor a text")
        try:
            return str(value).strip() or None
        except ValueError:  # an integer of thousands of digits
            raise ValueError("its class cannot be read: a number of thousands of digits") from None
    return None
