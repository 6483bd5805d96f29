"""What is left to do: the listing against the parts that are there.

Every part's metadata carry a digest of the items it was made of (index, key, class asked for, file's size and time). A part
whose digest is that of the listing's same rows is kept. Where it is not, its rows say why, and the rule is:

    a file's time or size differs, its bytes do not (sha256)       kept
    a photograph could not be read for a passing reason            done again (a full table of files, a disk, memory, rights)
    one that was not there is there now                            done again
    the part's rows are the first of more rows now                 done again: the listing has grown at its end
    bytes differ; rows have gone, come in between, or changed      refused by name, or done again with `--redo-changed`
    the part is damaged, or of another run                         done again
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch_impl import images
from torch_impl.batch import sources
from torch_impl.batch.entries import Item
from torch_impl.batch.plan import START_AFRESH, Part, RunError, parts
from torch_impl.batch.store import DamagedError, Run, Store

REDO = "--redo-changed"


@dataclass
class Survey:
    """A listing against what is there.

    Attributes:
        total: items listed.
        todo: numbers of the parts to be done, in order, with the digest that each must have.
        done: rows kept.
        errors: kind → rows among those kept.
        remarks: what is done again, and why; for the user.
    """

    total: int = 0
    todo: dict[int, str] = field(default_factory=dict)
    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


def survey(
    source: Iterable[Item],
    store: Store,
    run: Run,
    *,
    redo_changed: bool = False,
    report: Callable[[int], None] | None = None,
) -> Survey:
    """Go through the listing once, and through the metadata of the parts that are there.

    Nothing is changed on the disk unless all is well, or `redo_changed` says so.

    Args:
        source: the listing.
        store: the run's folder, locked.
        run: as `Store.read_run` gives it.
        redo_changed: do again what has changed, instead of refusing.
        report: called with the number of items listed so far.

    Raises:
        RunError: inputs have changed.
        SourceError: the listing breaks off.
    """
    found = Survey()
    there = set(store.part_numbers())
    changes: list[str] = []
    useless: list[int] = []
    for part in parts(source, run.plan.part_rows):
        found.total += len(part.items)
        if report:
            report(found.total)
        number, digest = part.number, part.digest
        if number not in there:
            found.todo[number] = digest
            continue
        there.discard(number)
        written = store.read_written(number, run.id)
        if written is None:
            found.remarks.append(f"part {number} is damaged or of another run: done again")
        elif written.digest == digest and written.passing:
            n = written.passing
            found.remarks.append(f"part {number}: {n} photograph{'s' * (n != 1)} may be readable by now: done again")
            found.todo[number] = digest  # until then what is there is of use
            continue
        elif written.digest == digest:
            found.done += written.rows
            found.errors.update(written.errors)
            continue
        else:
            try:
                change, remark = _compare(part, store)
            except DamagedError:
                change, remark = "", "damaged"
            if not change and not remark:
                found.done += written.rows
                found.errors.update(written.errors)
                continue
            if change:
                changes.append(change)
            if remark:
                found.remarks.append(f"part {number}: {remark}: done again")
        found.todo[number] = digest
        useless.append(number)
    for number in sorted(there):
        changes.append(f"{_rows_of(store, number)} no longer listed")
        useless.append(number)
    if changes and not redo_changed:
        more = f" (and in {len(changes) - 1} more parts)" if len(changes) > 1 else ""
        raise RunError(
            f"the inputs are not what they were when {store.shown} was begun: {changes[0]}{more}: "
            f"add {REDO} to do the {len(changes)} part{'s' * (len(changes) != 1)} again that this concerns, or {START_AFRESH}"
        )
    found.remarks += [f"changed: {change}: done again" for change in changes]
    for number in useless:  # what is wrong does not lie about until it is replaced
        store.remove_part(number)
    return found


def _rows_of(store: Store, number: int) -> str:
    try:
        rows = store.read_columns(number, ["path"])
        return f"{rows[0]['path']!r}" + (f" and {len(rows) - 1} more are" if len(rows) > 1 else " is")
    except Exception:  # damaged: whatever it held, it has gone
        return f"the rows of part {number} are"


def _compare(part: Part, store: Store) -> tuple[str, str]:
    """(what has changed, what was only added); both empty: the bytes are the same."""
    rows = store.read_columns(part.number, ["key", "path", "asked", "sha256", "file_size", "file_mtime_ns"])
    for row, item in zip(rows, part.items, strict=False):
        if (row["key"], row["asked"]) != (item.key, item.category):
            return f"{item.path!r} is listed where {row['path']!r} was", ""
    if len(rows) > len(part.items):
        return f"{rows[len(part.items)]['path']!r} is no longer listed", ""
    readable = ""
    for row, item in zip(rows, part.items, strict=False):
        if (row["file_size"], row["file_mtime_ns"]) != item.stamp and row["sha256"] != (now := _sha256(item)):
            if row["sha256"] is not None or now is None:
                return f"{item.path!r} has changed", ""
            readable = readable or f"{item.path!r} can be read now"
    if readable:
        return "", readable
    if len(rows) < len(part.items):
        return "", f"{len(part.items) - len(rows)} more photographs are listed"
    return "", ""


def _sha256(item: Item) -> str | None:
    """Of the photograph's bytes as they are now; None where they cannot be read."""
    try:
        return hashlib.sha256(sources.read(item)).hexdigest()
    except images.ImageError:
        return None
