"""Rows of a run as figures, as lines, as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.contract.files import whole
from parity.contract.samples import credit_of
from torch_impl import images
from torch_impl.batch import sources
from torch_impl.batch.plan import Plan
from torch_impl.batch.reading import StoredMaps, columns, row_batches
from torch_impl.batch.store import Run, Store
from torch_impl.explainer import FORMAT, Explanation, versions
from torch_impl.methods import finish
from torch_impl.words import printable

_GREY = 128
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def explanation(found: StoredMaps, run: Run) -> tuple[Explanation, list[str]]:
    """Rows without errors as what `explain` gives: photographs read again, maps finished.

    Args:
        found: rows, in the order of the listing.
        run: theirs.

    Returns:
        The explanation, and a line for each photograph that is no longer there or no longer the same; grey in its place.
    """
    plan = found.plan
    rows = found.rows.to_pylist()
    pixels, missing = _photographs(rows, run)
    maps = {}
    for method, stored in found.maps.items():
        finished = (
            stored if plan.resolution == "full" else finish(torch.from_numpy(stored), (plan.size, plan.size)).numpy()
        )
        maps[method] = finished
    photographs = [
        {
            "name": str(row["path"]).rpartition("/")[2] or row["path"],
            "path": row["path"],
            "sha256": row["sha256"],
            "notes": row["notes"],
            "credit": credit_of(row["path"]),
            "class": row["class"],
            "label": row["label"],
            "logit": row["logit"],
            "probability": row["probability"],
            "top5": row["top5"],
            "constant_maps": [m for m in found.maps if row[f"{m}_low"] == row[f"{m}_high"]],
        }
        for row in rows
    ]
    manifest = {
        "format": FORMAT,
        "photographs": photographs,
        "methods": list(maps),
        "weights": {"source": plan.weights, "remark": run.said.get("remark", ""), "fingerprint": plan.fingerprint},
        "run": run.said,
        "versions": versions(),
    }
    return Explanation(maps, pixels, np.zeros((len(rows), 0), np.float32), manifest), missing


def _photographs(rows: list[dict[str, Any]], run: Run) -> tuple[np.ndarray, list[str]]:
    """Read again, through the run's own inputs: they may be in an archive or a table."""
    plan = run.plan
    pixels = np.full((len(rows), plan.size, plan.size, 3), _GREY, np.uint8)
    wanted = {row["index"]: place for place, row in enumerate(rows)}
    missing = dict.fromkeys(wanted.values(), "is no longer listed")
    try:
        for item in _items(plan, run):
            place = wanted.pop(item.index, None)
            if place is not None:
                try:
                    read = sources.photograph(item, size=plan.size, resize=plan.resize)
                    if read.sha256 == rows[place]["sha256"]:
                        pixels[place] = read.pixels
                        del missing[place]
                    else:
                        missing[place] = "has changed since"
                except images.ImageError as error:
                    missing[place] = error.problem
            if not wanted:
                break
    except sources.SourceError as error:
        missing |= {place: str(error) for place in wanted.values()}
    return pixels, [f"{rows[place]['path']!r}: {why}; drawn without it" for place, why in sorted(missing.items())]


def _items(plan: Plan, run: Run) -> Iterator[sources.Item]:
    """The run's listing, from wherever we are now."""
    folder = str(run.said.get("folder", ""))
    names = (*plan.inputs, plan.classes, plan.root)
    if folder != os.getcwd():
        names = tuple(name if name is None or name == sources.TOP1 else os.path.join(folder, name) for name in names)
    *inputs, classes, root = names
    return iter(sources.open_inputs([str(one) for one in inputs], classes=classes, root=root))


def lines(found: StoredMaps) -> Iterator[str]:
    """One printable line a row."""
    for row in found.rows.to_pylist():
        said = row["error"] or f"{row['class']} {row['label']} {row['probability']:.3f}"
        yield f"{row['index']:>8}  {printable(row['path'])}  {printable(said)}"


def write_csv(store: Store, run: Run, where: str | None, limit: int | None, path: str) -> int:
    """Everything but the maps, as CSV; whole or not at all.

    Texts that a spreadsheet would take for a formula begin with an apostrophe, control characters are escaped.

    Args:
        store: the run's folder.
        run: the run.
        where: see `reading.read_maps`.
        limit: the first so many rows.
        path: the file.

    Returns:
        How many rows.

    Raises:
        OSError: as the file system says.
    """
    count = 0
    with whole(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns(run.plan))
        for batch in row_batches(store, run.plan, where=where):
            rows = batch.to_pylist()[: None if limit is None else limit - count]
            writer.writerows([cell(value) for value in row.values()] for row in rows)
            count += len(rows)
            if limit is not None and count >= limit:
                break
    return count


def cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet runs and no terminal obeys."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        value = "; ".join(f"{v['label']} {v['probability']:.4f}" if isinstance(v, dict) else str(v) for v in value)
    text = str(value)
    return printable("'" + text if text.lstrip(" ").startswith(_FORMULA) else text)
