"""A run's rows as arrays, and which of them: SQL by DuckDB, for `read_maps(where=…)` and `show --where`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from parity.contract.methods import canonical_name, canonical_names
from parity.contract.text import one_line
from torch_impl.batch.plan import Plan
from torch_impl.batch.run import ROWS, Run, RunError

EXAMPLE = "class = 282 AND probability > 0.5"


class WhereError(ValueError):
    """An expression that selects nothing sensible; the message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """Rows of a run, in the order of the listing.

    Attributes:
        maps: method → (N, h, w) float32: raw values, or in [0, 1] for a run of `--resolution full`; NaN where a row has
            an error.
        rows: N rows of every other column, a pyarrow Table: `rows.to_pandas()`, `rows["class"].to_numpy()`.
        plan: the run's settings.
    """

    maps: Mapping[str, np.ndarray] = field(repr=False)
    rows: pa.Table = field(repr=False)
    plan: Plan

    def __len__(self) -> int:
        """How many rows."""
        return int(self.rows.num_rows)

    def __getitem__(self, method: str) -> np.ndarray:
        """A method's maps; `gradcam++` is an alias.

        Raises:
            KeyError: it was not read.
        """
        name = canonical_name(method)
        if name not in self.maps:
            raise KeyError(f"{method} was not read; read: {', '.join(self.maps)}")
        return self.maps[name]

    def first(self, count: int) -> StoredMaps:
        """The first so many rows."""
        return StoredMaps(
            {name: maps[:count] for name, maps in self.maps.items()}, self.rows.slice(0, count), self.plan
        )


def read_maps(
    folder: str | os.PathLike[str],
    methods: str | Sequence[str] | None = None,
    where: str | None = None,
    *,
    limit: int | None = None,
) -> StoredMaps:
    """Read a run's maps, or some of them. Also while it is still going on: the parts that are complete.

    Args:
        folder: the run's `--out`.
        methods: as a list or with commas between them; None: all that the run has; an empty list: the rows alone.
        where: rows, as SQL: `class = 282 AND probability > 0.5`, `label LIKE '%cat%'`, `error IS NOT NULL`.
        limit: the first so many of them.

    Raises:
        RunError: no run there, no part of it yet, or a damaged one.
        WhereError: `where` is no such expression.
        ValueError: a method that the run has not.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: give 1 or more")
    return stored_maps(Run(folder), methods, where, limit=limit)


def stored_maps(
    run: Run, methods: str | Sequence[str] | None, where: str | None, *, limit: int | None, explained: bool = False
) -> StoredMaps:
    """As `read_maps`; with `explained`, only rows without an error."""
    plan = run.plan
    names = list(plan.methods if methods is None else canonical_names(methods) if len(methods) else ())
    if missing := [name for name in names if name not in plan.methods]:
        raise ValueError(f"{missing[0]} is not in {run.shown}; it has {', '.join(plan.methods)}")
    rows = pa.concat_tables(list(rows_where(run, names, where, limit=limit, explained=explained)))
    maps = {name: _values(rows, name, plan) for name in names}
    return StoredMaps(maps, rows.drop_columns(names), plan)


def rows_where(
    run: Run, methods: Sequence[str], where: str | None, *, limit: int | None = None, explained: bool = False
) -> Iterator[pa.Table]:
    """A run's rows in the order of the listing: first the columns alone, without a row, then a table a part.

    Args:
        run: the run.
        methods: whose maps to read beside the other columns.
        where: see `read_maps`.
        limit: the first so many rows.
        explained: only those without an error.

    Raises:
        RunError, WhereError: as `read_maps`.
    """
    plan, numbers = run.plan, run.part_numbers()
    if not numbers:
        raise RunError(f"{run.shown}: no rows yet")
    conditions = ([] if where is None else [where]) + ["error IS NULL"] * explained
    try:
        unwanted, schema = set(plan.methods) - set(methods), pq.read_schema(run.part_path(numbers[0]))
        columns = [name for name in schema.names if name not in unwanted]
        yield schema.empty_table().select(columns)
        chosen = _chosen(run, conditions, limit) if conditions else islice(_all(run), limit)
        for number, indices in groupby(chosen, lambda index: index // plan.part_rows):
            with pq.ParquetFile(run.part_path(number)) as file:
                yield file.read(columns).take([index % plan.part_rows for index in indices])
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{ascii(str(run.folder / ROWS))}: rows cannot be read ({one_line(error)})") from None


def _all(run: Run) -> Iterator[int]:
    """The indices of all rows that are there, in order."""
    for number in run.part_numbers():
        first = number * run.plan.part_rows
        yield from range(first, first + pq.read_metadata(run.part_path(number)).num_rows)


def _chosen(run: Run, conditions: Sequence[str], limit: int | None) -> list[int]:
    """The indices of the rows for which all conditions hold, in order.

    An expression sees the rows and nothing else: no file, no network, no variable of Python's.

    Raises:
        WhereError: one is no such expression.
    """
    import duckdb

    files = [str(run.part_path(number)) for number in run.part_numbers()]
    plain = pa.schema([column for column in pq.read_schema(files[0]) if column.name not in run.plan.methods])
    if (sql := in_sql(conditions[0], plain.names)) is not None:
        raise WhereError(f"--where {conditions[0]!r}: write it in SQL: {sql}")
    with duckdb.connect(config={"enable_external_access": "false"}) as database:
        database.register("rows", pyarrow.dataset.dataset(files, schema=plain, format="parquet"))
        database.execute("SET lock_configuration = true")
        selected = database.table("rows")
        try:
            for condition in conditions:
                selected = selected.filter(condition)  # takes a single expression, and no statement
            selected = selected.project('"index"').order('"index"')
            if limit is not None:
                selected = selected.limit(limit)
            return [index for (index,) in selected.fetchall()]
        except (duckdb.Error, ValueError, RuntimeError) as error:
            raise WhereError(
                f"--where {conditions[0]!r}: {one_line(str(error).partition('LINE 1')[0])}; such as: {EXAMPLE}"
            ) from None


_PYTHON = re.compile(
    r"""(?P<text>'(?:[^']|'')*')|"(?P<quoted>[^"]*)"|(?P<none>(?:\bis\s+not\s|\bis\s|==|!=)\s*None)\b"""
    r"""|\bin\s*\[(?P<list>[^\]]*)\]|(?P<equal>==)|(?P<sign>&&?|(?<!\|)\|(?!\|))|\b(?P<word>and|or|not)\b"""
)
"""What an expression of the dialect that was, Python's, has and SQL has not; and the words that SQL writes large."""


def in_sql(condition: str, columns: Collection[str]) -> str | None:
    """An expression in the dialect that was, Python's, as SQL; None: it is none.

    Args:
        condition: an expression.
        columns: names that may stand in double quotes.
    """
    was_python = False

    def translated(match: re.Match[str]) -> str:
        nonlocal was_python
        kind, text = match.lastgroup, match[0]
        if kind == "text" or (kind == "quoted" and match["quoted"] in columns):
            return text
        if kind == "word":
            return text.upper()
        was_python = True
        if kind == "quoted":
            return "'" + match["quoted"].replace("'", "''") + "'"
        if kind == "list":
            return f"IN ({_PYTHON.sub(translated, match['list'])})"
        if kind == "none":
            return "IS NOT NULL" if "not" in text or "!" in text else "IS NULL"
        return {"=": "=", "&": "AND", "|": "OR"}[text[0]]

    sql = _PYTHON.sub(translated, condition)
    return sql if was_python else None


def _values(rows: pa.Table, method: str, plan: Plan) -> np.ndarray:
    """What the kept maps stand for: float32 (N, h, w)."""
    values = np.empty((rows.num_rows, *rows.schema.field(method).type.shape), np.float32)
    start = 0
    for batch in rows.select([method, f"{method}_low", f"{method}_high"]).to_batches():
        kept, low, high = batch.columns
        maps = kept.to_numpy_ndarray()
        if plan.resolution == "raw":
            least, most = (ends.to_numpy(zero_copy_only=False)[:, None, None] for ends in (low, high))
            maps = least + maps * (most - least)  # in float64
        values[start : start + len(maps)] = maps
        start += len(maps)
    return values
