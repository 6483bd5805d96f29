"""A run's folder: `run.json`, one Parquet file for each part, and nothing that is half-written.

    DIR/run.json                     the plan, weights, versions; written whole before the first part
    DIR/rows/part-000000.parquet     rows 0 to 255; written under a hidden name, flushed to the disk, then renamed
    DIR/summary.json                 counts of a run that has reached its end
    DIR/.lock                        held while a run works on the folder; the system lets go of it when a process dies

A map is kept in float16, as Arrow's fixed-shape tensor (h, w). A raw map's values may lie anywhere, and float16 ends at 65,504
above and 6e-8 below, so it is kept min–max scaled to [0, 1], and `<method>_low`, `<method>_high` say what 0 and 1 stand for:
value = low + kept · (high − low), within 2.5e-4 of high − low (half of float16's last place below 1).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.contract.files import whole
from torch_impl.batch.plan import FORMAT, START_AFRESH, Part, Plan, RunError

if TYPE_CHECKING:
    import pyarrow as pa

RUN, SUMMARY, ROWS, LOCK = "run.json", "summary.json", "rows", ".lock"

ROW_GROUP = 64
"""Rows of a row group: what a reader that asks for one row decompresses; 25 MB with four maps at 224×224."""

GO_ON = "finished parts are kept; run the same command to go on"

_META = b"attention-maps"


@dataclass(frozen=True, eq=False)
class Row:
    """One photograph and class. With an error, everything that could not be had is None.

    Attributes:
        index: place in the listing.
        key: identity; see `sources.Item`.
        path: for people.
        asked: the class asked for, as it was given; None: the top-1.
        stamp: (size, mtime_ns) of the file.
        sha256: of the photograph's bytes.
        category: index of the class explained.
        label: its name.
        logit: of this class.
        probability: of this class, softmax over all.
        top5: (class, label, probability), the most probable first.
        maps: method → float16 (h, w) in [0, 1].
        ranges: method → (low, high) of the raw map.
        notes: what was done to the photograph on purpose; see `images.Photograph`.
        seconds: spent on this row.
        error: why it could not be explained; None: it was.
        passing: whether another try may succeed; not a column.
    """

    index: int
    key: str
    path: str
    asked: str | None
    stamp: tuple[int, int]
    sha256: str | None = None
    category: int | None = None
    label: str | None = None
    logit: float | None = None
    probability: float | None = None
    top5: Sequence[tuple[int, str, float]] | None = None
    maps: Mapping[str, np.ndarray] | None = field(default=None, repr=False)
    ranges: Mapping[str, tuple[float, float]] | None = None
    notes: Sequence[str] = ()
    seconds: float = 0.0
    error: str | None = None
    passing: bool = False


@dataclass(frozen=True)
class Written:
    """What a part's own metadata say of it.

    Attributes:
        number: of the part.
        rows: how many.
        digest: of its items; see `plan.Part`.
        errors: kind → rows.
        passing: rows among them that another try may mend.
    """

    number: int
    rows: int
    digest: str
    errors: Mapping[str, int]
    passing: int = 0


def schema(plan: Plan) -> pa.Schema:
    """The columns of a run."""
    import pyarrow as pa

    top = pa.struct([("class", pa.int32()), ("label", pa.string()), ("probability", pa.float64())])
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("asked", pa.string()),
        pa.field("class", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("logit", pa.float64()),
        pa.field("probability", pa.float64()),
        pa.field("top5", pa.list_(top)),
    ]
    for method in plan.methods:
        fields += [
            pa.field(method, pa.fixed_shape_tensor(pa.float16(), plan.shapes[method])),
            pa.field(f"{method}_low", pa.float64()),
            pa.field(f"{method}_high", pa.float64()),
        ]
    fields += [
        pa.field("notes", pa.list_(pa.string())),
        pa.field("file_size", pa.int64()),
        pa.field("file_mtime_ns", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("error", pa.string()),
    ]
    return pa.schema(fields)


def table(rows: Sequence[Row], plan: Plan) -> pa.Table:
    """Rows as an Arrow table.

    The maps of a row with an error are NaN, not null: several readers (pyarrow's and Ray's arrays) refuse tensors with nulls.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "index": [row.index for row in rows],
        "key": [row.key for row in rows],
        "path": [row.path for row in rows],
        "sha256": [row.sha256 for row in rows],
        "asked": [row.asked for row in rows],
        "class": [row.category for row in rows],
        "label": [row.label for row in rows],
        "logit": [row.logit for row in rows],
        "probability": [row.probability for row in rows],
        "top5": [
            None if row.top5 is None else [{"class": c, "label": name, "probability": p} for c, name, p in row.top5]
            for row in rows
        ],
        "notes": [list(row.notes) for row in rows],
        "file_size": [row.stamp[0] for row in rows],
        "file_mtime_ns": [row.stamp[1] for row in rows],
        "seconds": [row.seconds for row in rows],
        "error": [row.error for row in rows],
    }
    wanted = schema(plan)
    for method in plan.methods:
        maps = np.full((len(rows), *plan.shapes[method]), np.nan, np.float16)
        for place, row in zip(maps, rows, strict=True):
            if row.maps is not None:
                place[:] = row.maps[method]
        storage = pa.FixedSizeListArray.from_arrays(pa.array(maps.reshape(-1)), maps[0].size)
        columns[method] = pa.ExtensionArray.from_storage(wanted.field(method).type, storage)
        for name, which in (("low", 0), ("high", 1)):
            columns[f"{method}_{name}"] = [None if row.ranges is None else row.ranges[method][which] for row in rows]
    arrays = [
        one if isinstance(one := columns[name], pa.ExtensionArray) else pa.array(one, wanted.field(name).type)
        for name in wanted.names
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


class DamagedError(RunError):
    """A part whose columns cannot be read."""


def _one_line(error: Exception) -> str:
    return "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))[:200]


def kind_of(error: str) -> str:
    """An error without what is particular to one photograph: numbers, quotes, and what follows the first colon."""
    head = re.sub(r"'[^']*'", "…", error).split(":", 1)[0]
    return re.sub(r"[0-9]+(?:[,.][0-9]+)*", "N", head).strip()[:100] or "unknown"


class Store:
    """The folder of one run.

    Attributes:
        folder: as given.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not os.fspath(folder).strip():
            raise RunError("the output folder's name is empty")
        self.folder = Path(folder)

    @property
    def shown(self) -> str:
        """The folder's name for a message."""
        return ascii(os.fspath(self.folder))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if it is not there, and keep everybody else's runs out of it.

        Raises:
            RunError: another run is at work on it, or it cannot be written.
        """
        from filelock import FileLock, Timeout

        with self._told("cannot be written"):
            self.check()
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunError(
                    f"{self.shown}: another run is at work on this folder: wait for it, or choose another --out"
                ) from None
            except NotImplementedError:
                raise RunError(
                    f"{self.shown}: its file system knows no locks, so that a second run could not be kept out: choose an "
                    "--out on another one"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def check(self) -> None:
        """Leave somebody else's files alone; asked before the work, so that nobody waits in vain.

        Raises:
            RunError: no folder, or one with files that are no run of ours.
        """
        with self._told("cannot be read"):
            existing = next(p for p in (self.folder, *self.folder.absolute().parents) if os.path.lexists(p))
            if not existing.is_dir():
                raise RunError(
                    f"output folder {self.shown}: {ascii(str(existing))} is not a folder; choose another name"
                )
            if existing != self.folder:
                return
            names = {name for name in os.listdir(self.folder) if not name.startswith(".part-")}
            if RUN not in names and names - {LOCK, ROWS, SUMMARY}:
                raise RunError(
                    f"output folder {self.shown} holds files that are no run of this program; choose another folder"
                )

    def begin(self, plan: Plan, about: Mapping[str, Any]) -> str:
        """Write `run.json`, or compare with the one that is there. Left-over temporary files are removed.

        Args:
            plan: as it is wanted.
            about: what else to note down: weights, versions, the current folder.

        Returns:
            The run's identity, which every part carries.

        Raises:
            RunError: the folder holds another run; the message names each difference.
        """
        with self._told("cannot be written"):
            (self.folder / ROWS).mkdir(exist_ok=True)
            for place in (self.folder, self.folder / ROWS):
                for left in place.glob(".part-*"):
                    if left.is_dir() and not left.is_symlink():
                        shutil.rmtree(left)
                    else:
                        left.unlink(missing_ok=True)
            rows = any((self.folder / ROWS).glob("part-*.parquet"))
            if not rows or not (self.folder / RUN).exists():  # settings without a single row bind nobody
                if rows:
                    raise RunError(f"{self.shown}: there are rows, and no {RUN} that says whose: {START_AFRESH}")
                said = {
                    "format": FORMAT,
                    "id": uuid.uuid4().hex,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    **about,
                    "plan": plan.as_json(),
                }
                self._write_json(RUN, said)
                return str(said["id"])
        earlier = self.read_run()
        if differences := earlier.plan.differences(plan):
            raise RunError(
                f"{self.shown} holds a run with other settings: {'; '.join(differences)}: give the same, {START_AFRESH}"
            )
        if dict(earlier.plan.shapes) != dict(plan.shapes):
            raise RunError(f"{self.shown} holds maps of another shape: {START_AFRESH}")
        return earlier.id

    def read_run(self) -> Run:
        """What `run.json` says.

        Raises:
            RunError: there is none, or it is not of this program and version.
        """
        path = self.folder / RUN
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.shown}: no batch run there ({RUN} is missing)") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not JSON"
            raise RunError(f"{ascii(os.fspath(path))}: cannot be read ({reason}): {START_AFRESH}") from None
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            found = said.get("format") if isinstance(said, dict) else None
            raise RunError(f"{ascii(os.fspath(path))}: format {found!r}, not {FORMAT!r}: {START_AFRESH}")
        try:
            return Run(str(said["id"]), Plan.from_json(said["plan"]), said)
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{ascii(os.fspath(path))}: damaged: {START_AFRESH}") from None

    def part_path(self, number: int) -> Path:
        """Where a part is kept."""
        return self.folder / ROWS / f"part-{number:06d}.parquet"

    def part_numbers(self) -> list[int]:
        """The parts that are there, in order."""
        try:
            names = os.listdir(self.folder / ROWS)
        except FileNotFoundError:
            return []
        stems = [name[5:-8] for name in names if name.startswith("part-") and name.endswith(".parquet")]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def write_part(self, run: str, part: Part, rows: Sequence[Row], plan: Plan, about: Mapping[str, Any]) -> Written:
        """Write a part whole: hidden name, flush to the disk, rename.

        Args:
            run: the run's identity.
            part: whose rows these are.
            rows: one for each of the part's items, in their order.
            plan: of the run.
            about: how they were computed: device, batch size, versions.

        Raises:
            RunError: the disk is full, or the folder cannot be written; nothing of the part is left.
        """
        import pyarrow.parquet as pq

        if [row.index for row in rows] != [item.index for item in part.items]:
            raise AssertionError("a part's rows are not its items'")
        errors = Counter(kind_of(row.error) for row in rows if row.error is not None)
        passing = sum(row.passing for row in rows)
        said = {
            "format": FORMAT,
            "run": run,
            "number": part.number,
            "first": part.items[0].index,
            "rows": len(rows),
            "items": part.digest,
            "errors": dict(errors),
            "passing": passing,
            **about,
        }
        made = table(rows, plan)
        made = made.replace_schema_metadata({**(made.schema.metadata or {}), _META: json.dumps(said).encode()})
        path = self.part_path(part.number)
        with self._told("cannot be written"), whole(path) as temporary, open(temporary, "wb") as file:
            pq.write_table(made, file, compression="zstd", row_group_size=ROW_GROUP)
            file.flush()
            os.fsync(file.fileno())
        self._flush_names(path.parent)
        return Written(part.number, len(rows), part.digest, errors, passing)

    def begun(self, number: int) -> int:
        """Note on the disk that a part is begun, for whoever comes after a worker that dies.

        Returns:
            How often it has been, this time included.

        Raises:
            RunError: the folder cannot be written.
        """
        with self._told("cannot be written"), open(self._tries(number), "ab") as file:
            file.write(b".")
            return file.tell()

    def ended(self, number: int) -> None:
        """A part has been written: how often it was begun is of no interest any more."""
        with self._told("cannot be written"):
            self._tries(number).unlink(missing_ok=True)

    def _tries(self, number: int) -> Path:
        return self.folder / ROWS / f".part-{number:06d}.tries"

    def read_written(self, number: int, run: str) -> Written | None:
        """A part's own metadata; None where it is damaged or another run's, and so must be done again."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            footer = pq.read_metadata(self.part_path(number))
            said = json.loads((footer.metadata or {})[_META])
            if said["run"] != run or said["number"] != number or footer.num_rows != said["rows"]:
                return None
            errors = {str(kind): int(count) for kind, count in said["errors"].items()}
            return Written(number, int(said["rows"]), str(said["items"]), errors, int(said.get("passing", 0)))
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError):
            return None

    def read_columns(self, number: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of one part, row by row.

        Raises:
            DamagedError: they cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found: list[dict[str, Any]] = pq.read_table(self.part_path(number), columns=list(columns)).to_pylist()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise DamagedError(f"{ascii(os.fspath(self.part_path(number)))}: damaged: {_one_line(error)}") from None
        return found

    def remove_part(self, number: int) -> None:
        """Delete a part that is of no use any more."""
        with self._told("cannot be written"):
            self.part_path(number).unlink(missing_ok=True)

    def finish(self, said: Mapping[str, Any]) -> None:
        """Note down that the run has reached its end."""
        with self._told("cannot be written"):
            self._write_json(SUMMARY, {"format": FORMAT, **said})

    def unfinish(self) -> None:
        """There is work to do again."""
        with self._told("cannot be written"):
            (self.folder / SUMMARY).unlink(missing_ok=True)

    def _write_json(self, name: str, said: Mapping[str, Any]) -> None:
        with whole(self.folder / name) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(said, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        self._flush_names(self.folder)

    def _flush_names(self, folder: Path) -> None:
        """Have a rename reach the disk, where the system can be told to."""
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            return
        try:
            os.fsync(handle)
        except OSError:
            pass
        finally:
            os.close(handle)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """File system errors as one line that says how to go on."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise RunError(f"{self.shown}: no space left ({error.strerror}): make room; {GO_ON}") from None
            reason = error.strerror or str(error)
            raise RunError(f"{self.shown}: {what} ({reason}); {GO_ON} once that is mended") from None


@dataclass(frozen=True)
class Run:
    """What `run.json` says.

    Attributes:
        id: of the run; its parts carry it.
        plan: what decides its rows.
        said: the whole file.
    """

    id: str
    plan: Plan
    said: Mapping[str, Any] = field(repr=False)
