"""A run's rows as arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_impl.batch.plan import Plan, RunError
from torch_impl.batch.store import ROWS, Store, schema
from torch_impl.batch.where import parse
from torch_impl.names import canonical_name

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """Rows of a run, in the order of the listing.

    Attributes:
        maps: method → (N, h, w) float32: raw values, or in [0, 1] for a run of `--resolution full`; NaN where a row has an error.
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
        methods: None: all that the run has; an empty list: the rows alone.
        where: rows, such as `class == 282 and probability > 0.5`; see `where`.
        limit: the first so many of them.

    Raises:
        RunError: no run there, or a damaged part.
        WhereError: `where` is no such expression.
        ValueError: a method that the run has not.
    """
    import pyarrow as pa

    store = Store(folder)
    plan = store.read_run().plan
    asked = plan.methods if methods is None else [methods] if isinstance(methods, str) else methods
    names = list(dict.fromkeys(canonical_name(method) for method in asked))
    if missing := [name for name in names if name not in plan.methods]:
        raise ValueError(f"{missing[0]} is not in {store.shown}; it has {', '.join(plan.methods)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: give 1 or more")
    wanted = pa.schema([schema(plan).field(name) for name in columns(plan, names)])
    found = pa.Table.from_batches(list(_first(row_batches(store, plan, names, where), limit)), schema=wanted)
    maps = {name: _values(found, name, plan) for name in names}
    kept = [name for name in found.column_names if name not in names]
    return StoredMaps(maps, found.select(kept), plan)


def row_batches(store: Store, plan: Plan, methods: Sequence[str] = (), where: str | None = None) -> Iterator[Any]:
    """A run's rows, streamed as Arrow record batches, in the order of the listing.

    Args:
        store: the run's folder.
        plan: of the run.
        methods: whose maps to read beside the other columns.
        where: see `read_maps`.

    Raises:
        RunError: a damaged part.
        WhereError: see `read_maps`.
    """
    import pyarrow as pa
    import pyarrow.dataset

    condition = parse(where) if where is not None else None
    wanted = columns(plan, methods)
    files = [str(store.part_path(number)) for number in store.part_numbers()]
    try:
        data = pyarrow.dataset.dataset(files, schema=schema(plan), format="parquet")
        # Little ahead: a reader that stops after a few rows has not read the rest.
        yield from data.to_batches(columns=wanted, filter=condition, batch_readahead=1, fragment_readahead=1)
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())[:300]
        raise RunError(f"{ascii(str(store.folder / ROWS))}: rows cannot be read ({line})") from None


def columns(plan: Plan, methods: Sequence[str] = ()) -> list[str]:
    """The columns of a run, of its maps these only."""
    return [name for name in schema(plan).names if name not in plan.methods or name in methods]


def _first(batches: Iterator[Any], limit: int | None) -> Iterator[Any]:
    count = 0
    for batch in batches:
        if limit is not None and count + batch.num_rows >= limit:
            yield batch.slice(0, limit - count)
            return
        count += batch.num_rows
        yield batch


def _values(found: pa.Table, method: str, plan: Plan) -> np.ndarray:
    """What the kept maps stand for: float32 (N, h, w)."""
    values = np.empty((found.num_rows, *plan.shapes[method]), np.float32)
    start = 0
    for batch in found.select([method, f"{method}_low", f"{method}_high"]).to_batches():
        kept = batch.column(0).to_numpy_ndarray()
        if plan.resolution == "raw":
            low, high = (batch.column(i).to_numpy(zero_copy_only=False)[:, None, None] for i in (1, 2))
            kept = low + kept * (high - low)  # in float64
        values[start : start + len(kept)] = kept
        start += len(kept)
    return values
