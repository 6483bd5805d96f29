"""Inputs of a large run: folders, globs, tables, archives → photographs, one after another, without their bytes.

`open_inputs` looks at each input and says what is wrong with it as a whole; iterating over the `Source` it gives lists the
photographs, in the same order each time, holding one folder, or one piece of a table, at a time. `read` and `photograph`
fetch one, and say what is wrong with it.

What may be named:
    a photograph: by its suffix (`images.SUFFIXES`).
    a folder: its photographs and those of its sub-folders, each folder in natural order (`2.jpg` before `10.jpg`), files
        before sub-folders; hidden ones left out; links followed, each real folder once, so that no loop is endless.
    a glob, quoted, with `*`, `?`, `[...]` and `**` for any number of folders: photographs and folders; tables and archives
        where the pattern ends with their suffix (`'shards/*.tar'`). What exists by that very name is taken as it is.
    a table, `.csv`, `.tsv` or `.parquet`, with a column `path` (or `file_name`, ...) and maybe `class` (or `label`).
    an archive, `.tar`, WebDataset's or any other; `key.cls` or `key.json` beside `key.jpg` gives the class.
    a Parquet table with image bytes: a column of bytes, or Hugging Face's struct of `bytes` and `path`.

Which class is asked for: `classes="top1"`, each photograph's own top-1, whatever the inputs say; None, the class that the
input gives (its column, its `.cls`), and the top-1 where it gives none; a table, the classes of its rows, and the top-1 for
photographs without a row. The same photograph with the same class is listed once, at its first place.

What a table or an archive names is not trusted: its paths stay below the table's folder, or below ``root``, links
resolved; nothing is fetched because a row names a URL; nothing is unpacked to disk.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch_impl import images
from torch_impl.batch import archives, tables
from torch_impl.batch.entries import Cell, Entry, File, Item, Locator, Member, Refused, SourceError, readable
from torch_impl.batch.files import read_piece, stamp_of, why_not
from torch_impl.batch.seen import Seen

__all__ = [
    "Cell",
    "File",
    "Item",
    "Locator",
    "Member",
    "Refused",
    "Source",
    "SourceError",
    "open_inputs",
    "photograph",
    "read",
]

TOP1 = "top1"
"""In place of a table of classes: each photograph's own top-1."""

COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".zip", ".7z", ".rar")
"""Archives that cannot be read at any place."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|(data|file|hf|s3|gs):", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")


def open_inputs(
    inputs: Sequence[str], *, classes: str | None = None, limit: int | None = None, root: str | None = None
) -> Source:
    """Opens what is to be explained; looks at each input's start, or through all of them where classes must be matched.

    Args:
        inputs: Photographs, folders, globs, tables and archives; see the module.
        classes: None: the class that an input gives, else the top-1. ``top1``: the top-1. Else a table (``.csv``, ``.tsv``,
            ``.parquet``) of paths and classes. Its rows are matched by the longest end of the path that they have
            in common with a photograph's (``cat.jpg`` and ``pets/cat.jpg`` both match ``photos/pets/cat.jpg``, the
            second first); several rows for one photograph ask for several classes.
        limit: Only so many, the first ones.
        root: The folder that a table's relative paths start from and that its paths must stay below; None: the
            table's own.

    Returns:
        The listing.

    Raises:
        SourceError: An input is missing, of an unknown kind, broken or without photographs; rows of ``classes`` match
            no photograph, or more than one.
        ValueError: ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: give 1 or more")
    if isinstance(inputs, str):
        inputs = [inputs]
    if not inputs:
        raise SourceError("no input: give photographs, folders, tables or archives")
    if root is not None and not os.path.isdir(root):
        raise SourceError(f"root {root!r}: no such folder")
    source = Source(tuple(map(os.fspath, inputs)), classes, limit, root)
    source._open()
    return source


class Source:
    """A listing that can be gone through any number of times; made by `open_inputs`. Holds no photographs.

    Attributes:
        inputs: As given.
        classes: As given.
        limit: As given.
        root: As given.
    """

    def __init__(self, inputs: tuple[str, ...], classes: str | None, limit: int | None, root: str | None) -> None:
        self.inputs = inputs
        self.classes = classes
        self.limit = limit
        self.root = root
        self._table: _ClassTable | None = None
        self._count: int | None = None

    def __iter__(self) -> Iterator[Item]:
        """Lists the photographs, numbered from 0.

        Raises:
            SourceError: A table breaks off, or an input has gone, since it was opened.
        """
        return itertools.islice(self._items(None), self.limit)

    def check(self) -> int:
        """Goes through the whole listing once (1 to 2 seconds for 100,000 rows), so that a broken table stops nothing later.

        Returns:
            How many items there are.

        Raises:
            SourceError: See `open_inputs`.
        """
        if self._count is None:
            matches: dict[int, str] | None = None if self._table is None else {}
            # With a table of classes beyond the limit, too: a row may belong to what is left out.
            items = iter(self) if matches is None else self._items(matches)
            count = sum(1 for _ in items)
            if self._table is not None and matches is not None:
                self._table.check(matches)
            self._count = count if self.limit is None else min(count, self.limit)
        return self._count

    def _open(self) -> None:
        for given in self.inputs:
            if next(_entries(given, self._with_classes, self.root), None) is None:
                raise SourceError(f"{given!r}: {_nothing_in(given)}")
        if self.classes not in (None, TOP1):
            assert self.classes is not None
            self._table = _ClassTable(self.classes)
            self.check()

    @property
    def _with_classes(self) -> bool:
        return self.classes is None

    def _items(self, matches: dict[int, str] | None) -> Iterator[Item]:
        seen = Seen()
        index = 0
        here = os.getcwd()
        for given in self.inputs:
            for entry in _entries(given, self._with_classes, self.root):
                asked: Sequence[str | None] = (entry.category if self._with_classes else None,)
                if self._table is not None:
                    asked = self._table.of(entry, here, matches)
                for category in asked:
                    identity = (os.path.join(here, entry.place), entry.inner, category, entry.remark)
                    if seen.add("\0".join("" if part is None else f"={part}" for part in identity)):
                        yield entry.item(index, category, here)
                        index += 1
        if not index:
            raise SourceError(f"no photographs in {', '.join(map(repr, self.inputs[:5]))}")


def read(item: Item) -> bytes:
    """Reads a photograph's bytes, without decoding them. Can be called from any thread and process.

    Args:
        item: Out of a `Source`.

    Returns:
        What the photograph's file holds.

    Raises:
        ImageError: It cannot be read; under ``item.path``.
    """
    where = item.locator
    passing = False
    try:
        if isinstance(where, File):
            if where.root is not None:
                _check_below(where.path, where.root)
            return images.read_file(where.path)
        if isinstance(where, Member):
            return read_piece(where.path, where.offset, where.size, item.stamp)
        if isinstance(where, Cell):
            return tables.read_cell(where, item.stamp)
        problem = where.problem
    except images.ImageError as error:
        problem, passing = error.problem, error.passing
    except ValueError as error:
        problem = str(error)
    raise images.ImageError(item.path, problem, passing)


def photograph(item: Item, *, size: int = 224, resize: str = "lab") -> images.Photograph:
    """Reads and decodes a photograph; see `images.load`, whose checks all apply.

    Args:
        item: Out of a `Source`.
        size: Side of the result, in pixels.
        resize: One of `images.RESIZES`, or `images.AS_IT_IS`.

    Returns:
        The photograph.

    Raises:
        ImageError: It cannot be used.
        ValueError: ``size`` or ``resize`` is wrong.
    """
    return decoded(item, read(item), size=size, resize=resize)


def decoded(item: Item, data: bytes, *, size: int, resize: str) -> images.Photograph:
    """The second half of `photograph`: bytes that `read` gave → pixels. Arguments, result and errors as there."""
    return images.load_bytes(
        data, name=item.path.rpartition("/")[2] or item.path, path=item.path, size=size, resize=resize
    )


# Inputs


def _entries(given: str, with_classes: bool, root: str | None) -> Iterator[Entry]:
    """Lists one input.

    Raises:
        SourceError: It is missing, of an unknown kind, or broken.
    """
    if _URL.match(given):
        raise SourceError(f"{given!r}: a URL; nothing is fetched: download it first")
    path = _clean(given)
    try:
        status = os.stat(path if given else "")  # nothing is not the current folder
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if _MAGIC.search(path) and isinstance(error, FileNotFoundError):
            for match in _matches(path):
                yield from _matched(match, path, with_classes, root)
            return
        raise SourceError(f"{given!r}: {why_not(path, error)}") from None
    if stat.S_ISDIR(status.st_mode):
        try:
            os.scandir(path).close()
        except OSError as error:
            raise SourceError(f"{given!r}: {why_not(path, error)}") from None
        yield from _folder(path)
    else:
        listed = _file(path, with_classes, root)
        if listed is None:
            raise SourceError(f"{given!r}: {_unknown(path)}")
        yield from listed


def _clean(path: str) -> str:
    """A path without doubled slashes and dots that mean nothing; `..` stays, for a link may be before it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "."


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _file(path: str, with_classes: bool, root: str | None) -> Iterator[Entry] | None:
    suffix = _suffix(path)
    if suffix in images.SUFFIXES:
        return iter([_file_entry(path)])
    if suffix == ".tar":
        return archives.entries(path, with_classes=with_classes)
    if suffix in tables.PARQUET and tables.holds_images(path):
        return tables.image_entries(path, with_classes=with_classes)
    if suffix in tables.SEPARATORS or suffix in tables.PARQUET:
        return _table(path, root)
    return None


def _file_entry(path: str, category: str | None = None, root: str | None = None) -> Entry:
    return Entry(path, None, None, category, File(path, root), stamp_of(path))


def _unknown(path: str) -> str:
    suffix = _suffix(path)
    if suffix in COMPRESSED:
        return (
            f"{suffix} archives are compressed and cannot be read at any place: unpack it to a folder or a plain .tar"
        )
    if suffix in (".xlsx", ".xls", ".ods"):
        return "a workbook: save it as CSV"
    if suffix in (".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth"):
        return "arrays or a pickle, which may run code: not read; give the photographs"
    return f"unknown suffix {suffix!r}: give photographs, a folder, .csv, .tsv, .parquet or .tar"


def _nothing_in(given: str) -> str:
    path = _clean(given)
    if os.path.isdir(path):
        try:
            held = sorted({_suffix(name) for name in os.listdir(path)} & {".tar", ".csv", ".tsv", *tables.PARQUET})
        except OSError:
            held = []
        hint = f"; for its {held[0]} files give '{path}/*{held[0]}', in quotes" if held else ""
        return f"a folder without photographs (.jpg, .png, .webp, .tif and so on), sub-folders included{hint}"
    if not os.path.exists(path):
        return "matches no photographs, folders, or, where it ends with their suffix, tables or archives"
    return "no photographs in it" if _suffix(path) == ".tar" else "no rows in it"


# Folders


def _children(folder: str) -> tuple[list[str], list[str]]:
    """A folder's files and sub-folders, in natural order, hidden ones left out; links count as what they lead to.

    Raises:
        OSError: It cannot be listed.
    """
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as found:
        for each in found:
            if each.name.startswith("."):
                continue
            try:
                is_folder = each.is_dir()
            except OSError:  # a link to itself: reading it says so
                is_folder = False
            (folders if is_folder else files).append(each.name)
    return sorted(files, key=images.natural_order), sorted(folders, key=images.natural_order)


def _joined(folder: str, name: str) -> str:
    return name if folder == "." else os.path.join(folder, name)


def _folder(top: str) -> Iterator[Entry]:
    visited: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            files, folders = _children(folder)
        except OSError as error:  # not silently less than was asked for
            problem = f"a folder that cannot be listed: {why_not(folder, error)}"
            yield Entry(folder, None, None, None, Refused(problem), (-1, -1))
            continue
        for name in files:
            if _suffix(name) in images.SUFFIXES:
                yield _file_entry(_joined(folder, name))
        waiting += [_joined(folder, name) for name in reversed(folders)]


# Globs


def _matches(pattern: str) -> Iterator[str]:
    top = "/" if pattern.startswith("/") else "."
    visited: set[tuple[int, int, int]] = set()
    yield from _expanded(top, pattern.strip("/").split("/"), visited)


def _expanded(folder: str, parts: list[str], visited: set[tuple[int, int, int]]) -> Iterator[str]:
    head, tail = parts[0], parts[1:]
    if not _MAGIC.search(head):
        path = _joined(folder, head)
        if not tail:
            if os.path.lexists(path):
                yield path
        elif os.path.isdir(path):
            yield from _expanded(path, tail, visited)
        return
    try:
        if head == "**":
            # The same folder with the same rest of the pattern gives the same again: links cannot make this endless.
            status = os.stat(folder)
            state = (status.st_dev, status.st_ino, len(parts))
            if state in visited:
                return
            visited.add(state)
        files, folders = _children(folder) if not head.startswith(".") else ([], [])
        hidden = sorted(os.listdir(folder), key=images.natural_order) if head.startswith(".") else []
    except OSError as error:
        raise SourceError(f"{folder!r}: {why_not(folder, error)}") from None
    if head == "**":
        if not tail:
            yield folder
            return
        yield from _expanded(folder, tail, visited)
        for name in folders:
            yield from _expanded(_joined(folder, name), parts, visited)
        return
    fits = re.compile(fnmatch.translate(head)).match
    for name in [*files, *folders, *hidden]:
        if not fits(name):
            continue
        path = _joined(folder, name)
        if not tail:
            yield path
        elif os.path.isdir(path):
            yield from _expanded(path, tail, visited)


def _matched(path: str, pattern: str, with_classes: bool, root: str | None) -> Iterator[Entry]:
    if os.path.isdir(path):
        yield from _folder(path)
    elif _suffix(path) in images.SUFFIXES or _suffix(path) == _suffix(pattern):
        yield from _file(path, with_classes, root) or ()


# Tables of paths


def _table(path: str, root: str | None) -> Iterator[Entry]:
    folder = _clean(root) if root is not None else os.path.dirname(path) or "."
    stamp = stamp_of(path)
    for row in tables.rows(path):
        problem, place = row.problem, ""
        if not problem and not row.path:
            problem = "the row names no photograph"
        elif not problem:
            place, problem = _resolved(row.path, folder, named=root is not None)
        if problem:
            name = row.path or None
            yield Entry(path, str(row.number), name, row.category, Refused(problem), stamp)
        else:
            yield _file_entry(place, row.category, folder)


def _resolved(written: str, folder: str, *, named: bool) -> tuple[str, str]:
    """Where a table's path leads, and why it must not be followed, if it must not."""
    if _URL.match(written):
        return "", "names a URL; nothing is fetched: download it, and name the file"
    place = posixpath.normpath(posixpath.join(os.path.abspath(folder), written))
    if not _is_below(place, os.path.abspath(folder)):
        whose = "the root" if named else "the table's folder"
        return "", f"leads out of {whose}, {readable(folder)!r}: not read; name the folder that all are in as the root"
    if written.startswith("/"):
        return place, ""
    return posixpath.normpath(_joined(folder, posixpath.normpath(written))), ""


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _check_below(path: str, root: str) -> None:
    """Refuses a file whose links lead out of the root.

    Raises:
        ValueError: They do.
    """
    if "\0" not in path and not _is_below(os.path.realpath(path), os.path.realpath(root)):
        raise ValueError(
            f"a link that leads out of {readable(root)!r}: not read; name the folder that all are in as the root"
        )


# Classes


@dataclass(slots=True)
class _Asked:
    """The rows of one path in a table of classes."""

    number: int
    path: str
    categories: list[str | None]


class _ClassTable:
    """A table of paths and classes, held in memory, found by the end of a path."""

    def __init__(self, path: str) -> None:
        if _URL.match(path):
            raise SourceError(f"{path!r}: a URL; nothing is fetched: download it first")
        if _suffix(path) not in tables.SEPARATORS and _suffix(path) not in tables.PARQUET:
            raise SourceError(f"classes {path!r}: give {TOP1}, or a table of paths and classes: .csv, .tsv or .parquet")
        self.path = path
        self.asked: list[_Asked] = []
        self.by_path: dict[str, int] = {}
        folder = os.path.dirname(os.path.abspath(path))
        for row in tables.rows(path):
            if row.problem or not row.path:
                raise SourceError(f"{path!r}, row {row.number}: {row.problem or 'names no photograph'}")
            key = "/".join(part for part in row.path.split("/") if part not in ("", "."))
            if row.path.startswith("/") or ".." in key.split("/"):
                key = _clean(posixpath.normpath(posixpath.join(folder, row.path)))
            place = self.by_path.setdefault(key, len(self.asked))
            if place == len(self.asked):
                self.asked.append(_Asked(row.number, row.path, []))
            if row.category not in self.asked[place].categories:
                self.asked[place].categories.append(row.category)
        if not self.asked:
            raise SourceError(f"{path!r}: no rows in it")

    def of(self, entry: Entry, here: str, matches: dict[int, str] | None) -> Sequence[str | None]:
        """The classes asked for; ``matches`` notes which row was for which photograph.

        Raises:
            SourceError: A row is for two photographs.
        """
        place = os.path.join(here, entry.place)
        for inner in dict.fromkeys((entry.name, entry.inner)):
            full = _clean(place if inner is None else f"{place}/{inner}")
            parts = full[1:].split("/")
            for i in range(-1, len(parts) - (inner is not None and inner.isdigit())):
                found = self.by_path.get(full if i < 0 else "/".join(parts[i:]))
                if found is None:
                    continue
                if matches is not None and matches.setdefault(found, full) != full:
                    row = self.asked[found]
                    raise SourceError(
                        f"{self.path!r}, row {row.number}: {row.path!r} is more than one photograph, "
                        f"{matches[found]!r} and {full!r}: give more of the path"
                    )
                return self.asked[found].categories
        return (None,)

    def check(self, matches: dict[int, str]) -> None:
        """Refuses rows that were for nothing.

        Raises:
            SourceError: There are such rows; names the first.
        """
        lost = [row for i, row in enumerate(self.asked) if i not in matches]
        if lost:
            names = ", ".join(f"{row.path!r} (row {row.number})" for row in lost[:5]) + ", ..." * (len(lost) > 5)
            raise SourceError(
                f"{self.path!r}: {len(lost):,} path{'s match' if len(lost) > 1 else ' matches'} no photograph: {names}"
            )
