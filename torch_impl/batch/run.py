"""A run's folder: what decides its rows, which parts are done, and nothing that is half-written.

    DIR/run.json                     the plan, weights, versions; written before the first part
    DIR/listing.arrow                what is explained, one row each; see `listing`
    DIR/rows/part-000000.parquet     rows 0 to 255; written under a hidden name, flushed to the disk, then renamed
    DIR/summary.json                 counts of a run that has reached its end
    DIR/.lock                        held while a run works on the folder; the system lets go of it when a process dies

A part is done if its rows are those that the listing has in its place. So nothing else need be noted down, and whatever
stops a run, the same command goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from parity.contract.files import whole
from parity.contract.text import one_line
from torch_impl.batch.listing import Listing
from torch_impl.batch.plan import Plan
from torch_impl.output import check_output

FORMAT = "attention-maps batch 2"
"""Of `run.json`. Counted up when a file or a column changes its meaning."""

RUN, LISTING, SUMMARY, ROWS, LOCK = "run.json", "listing.arrow", "summary.json", "rows", ".lock"

ROW_GROUP = 64
"""Rows of a row group: what a reader that asks for one row decompresses; 25 MB with four maps at 224×224."""

AGAIN = "cannot be read now"
"""How the error of a row begins that another try may mend: the same command does its part again."""

GO_ON = "finished parts are kept; run the same command to go on"
START_AFRESH = "choose another --out, or delete that folder to start afresh"

LISTED = ["key", "path", "asked", "file_size", "file_mtime_ns"]
"""The columns that a listing and its rows share."""

_META = b"attention-maps"


class RunError(ValueError):
    """A run that cannot begin or go on; its text is one line: what, where, what to do."""


@dataclass
class Survey:
    """A listing against the parts that are there.

    Attributes:
        todo: numbers of the parts to be done.
        done: rows kept.
        errors: kind → rows among those kept.
        useless: numbers of parts whose rows are not the listing's.
        changes: how the listing has changed, one for each part concerned.
        remarks: what is done again, and why; for the user.
    """

    todo: list[int] = field(default_factory=list)
    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    useless: list[int] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def kinds(errors: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """Errors without what is particular to one photograph (numbers, quotes, what follows the first colon), counted."""
    shortened = (re.sub(r"'[^']*'", "…", error).split(":", 1)[0] for error in errors.drop_null().to_pylist())
    return Counter(re.sub(r"[0-9]+(?:[,.][0-9]+)*", "N", error).strip()[:100] or "unknown" for error in shortened)


class Run:
    """The folder of one run.

    Attributes:
        folder: as given.
        listing: its listing's file.
        shown: the folder's name for a message.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not os.fspath(folder).strip():
            raise RunError("the output folder's name is empty")
        self.folder = Path(folder)
        self.listing = self.folder / LISTING
        self.shown = ascii(os.fspath(folder))

    @cached_property
    def said(self) -> Mapping[str, Any]:
        """What `run.json` says.

        Raises:
            RunError: there is none, or it is not of this program and version.
        """
        shown = ascii(str(self.folder / RUN))
        try:
            said = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.shown}: no batch run there ({RUN} is missing): give the --out of one") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{shown}: cannot be read ({one_line(error)}): {START_AFRESH}") from None
        version = said.get("format") if isinstance(said, dict) else None
        if version != FORMAT:
            raise RunError(f"{shown}: format {version!r}, not {FORMAT!r}: {START_AFRESH}")
        return dict(said)

    @property
    def plan(self) -> Plan:
        """What decides the run's rows.

        Raises:
            RunError: as `said`.
        """
        try:
            plan: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in self.said["plan"].items()
            }
            return Plan(**plan)
        except (KeyError, TypeError, AttributeError):
            raise RunError(f"{ascii(str(self.folder / RUN))}: damaged: {START_AFRESH}") from None

    def check(self) -> None:
        """Leave somebody else's files alone; asked before the work, so that nobody waits in vain.

        Raises:
            OutputError: no folder.
            RunError: one with files that are no run of ours.
        """
        check_output(self.folder, overwrite=True)
        names = {path.name for path in self.folder.glob("*") if not path.name.startswith(".part-")} - {LOCK}
        if names and RUN not in names:
            raise RunError(
                f"output folder {self.shown} holds files that are no run of this program ({RUN} is missing): give another --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if it is not there, and keep everybody else's runs out of it.

        Raises:
            RunError: another run is at work on it, or nobody could be kept out.
        """
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "wb") as file:
            try:
                # Not flock, which a process that is started meanwhile could inherit and hold.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise RunError(
                    f"{self.shown}: another run is at work on this folder: wait, or choose another --out"
                ) from None
            yield

    def begin(
        self,
        plan: Plan,
        about: Mapping[str, Any],
        listing: BinaryIO,
        *,
        redo_changed: bool = False,
        strict: bool = False,
    ) -> Survey:
        """Compare settings and listing with those of the parts that are there, and note them down.

        The folder is locked. Nothing is changed on the disk unless all is well, or `redo_changed` says so.

        Args:
            plan: as it is wanted.
            about: what else to note down: weights, versions, inputs.
            listing: as it is now; see `listing.write_listing`.
            redo_changed: do again what has changed, instead of refusing.
            strict: refuse where rows that are kept have an error.

        Raises:
            RunError: settings or inputs have changed; the message says the first difference. With `strict`, an error.
        """
        self._settle(plan, about)
        survey = self._survey(Listing(listing))
        if survey.changes and not redo_changed:
            count = len(survey.changes)
            raise RunError(
                f"the inputs are not what they were when {self.shown} was begun: {survey.changes[0]}: add "
                f"--redo-changed to do {'this part' if count == 1 else f'these {count} parts'} again, or {START_AFRESH}"
            )
        if strict and survey.errors:
            raise RunError(
                f"--strict: {survey.errors.total():,} rows of {self.shown} have an error "
                f"({survey.errors.most_common(1)[0][0]}, …): run without --strict, or mend these photographs and add "
                "--redo-changed"
            )
        self._tidy(survey)
        listing.seek(0)
        with self._whole(self.listing) as file:
            shutil.copyfileobj(listing, file)
        (self.folder / ROWS).mkdir(exist_ok=True)
        return survey

    def _settle(self, plan: Plan, about: Mapping[str, Any]) -> None:
        """Note down the settings, or compare them with those of the parts that are there."""
        if not self.part_numbers():  # settings without a single row bind nobody
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.said = {"format": FORMAT, "id": uuid.uuid4().hex, "created": now, **about, "plan": asdict(plan)}
            self._write_json(RUN, self.said)
        elif difference := self.plan.difference(plan):
            raise RunError(
                f"{self.shown} holds a run with other settings: {difference}: give the same, or {START_AFRESH}"
            )

    def _tidy(self, survey: Survey) -> None:
        """Remove what a program that was killed has left, and what is wrong: it does not lie about until it is replaced."""
        for left in self.folder.rglob(".part-*"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
        for number in survey.useless:
            self.part_path(number).unlink(missing_ok=True)
        if survey.todo:
            (self.folder / SUMMARY).unlink(missing_ok=True)

    def _survey(self, listing: Listing) -> Survey:
        survey = Survey()
        there = set(self.part_numbers())
        for number in range(listing.parts):
            if number not in there:
                survey.todo.append(number)
                continue
            rows, now = self._part(number), pa.Table.from_batches([listing.part(number)]).select(LISTED)
            again = False
            if rows is None:
                why = "damaged, or of another run"
            elif why := _change(rows.select(LISTED), now):
                survey.changes.append(why)
            elif rows.num_rows < now.num_rows:
                why = f"{now.num_rows - rows.num_rows} more rows are listed"
            elif again := pc.any(pc.starts_with(rows["error"], AGAIN)).as_py():
                why = "photographs that could not be read"  # until it is done what is there is of use
            else:
                survey.done += rows.num_rows
                survey.errors += kinds(rows["error"])
                continue
            survey.todo.append(number)
            survey.remarks.append(f"part {number}: {why}: done again")
            survey.useless += [] if again else [number]
        gone = sorted(there - set(range(listing.parts)))
        survey.changes += [f"the rows of part {number} are no longer listed" for number in gone]
        survey.useless += gone
        return survey

    # Parts

    def part_path(self, number: int) -> Path:
        """Where a part is kept."""
        return self.folder / ROWS / f"part-{number:06d}.parquet"

    def part_numbers(self) -> list[int]:
        """The parts that are there, in order."""
        names = (path.name for path in (self.folder / ROWS).glob("part-*.parquet"))
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"part-([0-9]+)\.parquet", name)))

    def write_part(self, number: int, rows: pa.Table, about: Mapping[str, Any]) -> Counter[str]:
        """Write a part whole, and count its errors.

        Args:
            number: of the part.
            rows: its rows.
            about: how they were computed: device, batch size, versions.

        Raises:
            OSError: as the file system says; nothing of the part is left.
        """
        said = {"format": FORMAT, "run": self.said["id"], "number": number, **about}
        rows = rows.replace_schema_metadata({_META: json.dumps(said)})
        with self._whole(self.part_path(number)) as file:
            pq.write_table(rows, file, compression="zstd", row_group_size=ROW_GROUP)
        return kinds(rows["error"])

    def _part(self, number: int) -> pa.Table | None:
        """What a part shares with the listing, and its errors; None where it is damaged, or another run's."""
        try:
            with pq.ParquetFile(self.part_path(number)) as file:
                said = json.loads((file.schema_arrow.metadata or {})[_META])
                if (said["run"], said["number"]) != (self.said["id"], number):
                    return None
                return file.read([*LISTED, "error"], use_threads=False)
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None

    def finish(self, said: Mapping[str, Any]) -> None:
        """Note down that the run has reached its end."""
        self._write_json(SUMMARY, {"format": FORMAT, **said})

    def _write_json(self, name: str, said: Mapping[str, Any]) -> None:
        with self._whole(self.folder / name) as file:
            file.write(json.dumps(said, indent=2, ensure_ascii=False).encode())

    @contextmanager
    def _whole(self, path: Path) -> Iterator[IO[bytes]]:
        """A file that is on the disk, whole, or not there."""
        with whole(path) as temporary, open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def _change(before: pa.Table, now: pa.Table) -> str:
    """The first of a part's rows that is listed otherwise now; empty where there is none, and at most more rows."""
    if before.equals(now.slice(0, before.num_rows)):
        return ""
    listed = now.to_pylist()
    for place, row in enumerate(before.to_pylist()):
        if place >= len(listed):
            return f"{row['path']!r} is no longer listed"
        if row != listed[place]:
            if row["path"] != listed[place]["path"]:
                return f"{listed[place]['path']!r} is listed where {row['path']!r} was"
            return f"{row['path']!r} has changed{', or its class' if row['asked'] != listed[place]['asked'] else ''}"
    return ""
