"""Rows of a run as figures, as lines, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from parity.contract.files import whole
from parity.contract.samples import credit_of
from parity.contract.text import one_line, printable
from torch_impl import images
from torch_impl.batch.listing import Listing
from torch_impl.batch.loading import Reader, decoded
from torch_impl.batch.plan import Plan
from torch_impl.batch.reading import StoredMaps, rows_where
from torch_impl.batch.run import Run
from torch_impl.explanation import Explanation
from torch_impl.framing import AS_IT_IS, Size
from torch_impl.images import ImageError, Photograph
from torch_impl.manifest import program_versions
from torch_impl.maps.postprocess import finish
from torch_impl.output import FORMAT

_GREY = 128
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def explained(stored: StoredMaps, run: Run) -> tuple[Explanation, list[str]]:
    """Rows without errors as what `explain` gives: photographs read again, maps finished.

    Args:
        stored: rows, in the order of the listing.
        run: theirs.

    Returns:
        The explanation, and a line for each photograph that is not there any more, or not the same; grey in its place.
    """
    plan, size, rows = stored.plan, stored.plan.sides, stored.rows.to_pylist()
    maps = stored.maps
    if plan.resolution == "raw":
        maps = {method: finish(torch.from_numpy(values), size).numpy() for method, values in maps.items()}
    listing, reader = Listing(run.listing), Reader()
    grey = images.load(np.full((*size, 3), _GREY, np.uint8), size=size, resize=AS_IT_IS)
    photographs, missing = list[Photograph](), list[str]()
    for row in rows:
        try:
            photographs.append(_photograph(row, listing, reader, plan, plan.size, plan.resize))
        except ImageError as error:
            photographs.append(grey)
            missing.append(f"{row['path']!r}: {error.problem}; drawn without it")

    def reread(i: int) -> np.ndarray:
        again = grey if photographs[i] is grey else _photograph(rows[i], listing, reader, plan, 1, AS_IT_IS)
        return again.pixels

    manifest = {
        "format": FORMAT,
        "photographs": [_said(*pair, list(maps)) for pair in zip(rows, photographs, strict=True)],
        "methods": list(maps),
        "weights": {"source": plan.weights, "remark": run.said.get("remark", ""), "fingerprint": plan.fingerprint},
        "resize": plan.resize,
        "run": run.said,
        "versions": program_versions(),
        "outputs": "logits",
    }
    pixels = np.stack([photograph.pixels for photograph in photographs])
    return Explanation(maps, pixels, np.zeros((len(rows), 0), np.float32), manifest, None, reread), missing


def _photograph(
    row: Mapping[str, Any], listing: Listing, reader: Reader, plan: Plan, size: Size, resize: str
) -> Photograph:
    """Read a row's photograph again.

    Raises:
        ImageError: it is not there any more, or another one.
    """
    number, start = divmod(row["index"], plan.part_rows)
    try:
        (item,) = listing.items(number, start, start + 1)
        photograph = decoded(item, reader.read(item), size, resize)
    except (OSError, ValueError, pa.ArrowException) as error:
        why = getattr(error, "problem", None) or getattr(error, "strerror", None) or error
        raise ImageError(row["path"], one_line(why)) from None
    if photograph.sha256 != row["sha256"]:
        raise ImageError(row["path"], "has changed since")
    return photograph


def _said(row: Mapping[str, Any], photograph: Photograph, methods: list[str]) -> dict[str, Any]:
    """What a manifest says of a photograph."""
    columns = ("path", "sha256", "notes", "class", "label", "logit", "probability", "top5")
    constant = [method for method in methods if row[f"{method}_low"] == row[f"{method}_high"]]
    return {
        "name": row["path"].rpartition("/")[2] or row["path"],
        **{column: row[column] for column in columns},
        "credit": credit_of(row["path"]),
        "constant_maps": constant,
        "constant_reasons": dict.fromkeys(constant, "the same everywhere"),
        "size": list(photograph.original_size),
        "seen": list(photograph.seen),
    }


def lines(rows: pa.Table) -> Iterator[str]:
    """One printable line a row."""
    for row in rows.to_pylist():
        said = row["error"] or f"{row['class']} {row['label']} {row['probability']:.3f}"
        yield f"{row['index']:>8}  {printable(row['path'])}  {printable(said)}"


def write_csv(run: Run, where: str | None, limit: int | None, path: str) -> int:
    """Everything but the maps, as CSV; whole or not at all.

    Args:
        run: the run.
        where: see `reading.read_maps`.
        limit: the first so many rows.
        path: the file.

    Returns:
        How many rows.

    Raises:
        OSError: as the file system says.
        RunError, WhereError: see `reading.read_maps`.
    """
    count = 0
    with whole(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for number, rows in enumerate(rows_where(run, [], where, limit=limit)):
            if not number:
                writer.writerow(rows.column_names)
            writer.writerows([cell(value) for value in row.values()] for row in rows.to_pylist())
            count += rows.num_rows
    return count


def cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet runs and no terminal obeys."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        value = "; ".join(f"{v['label']} {v['probability']:.4f}" if isinstance(v, dict) else str(v) for v in value)
    text = str(value)
    return printable("'" + text if text.lstrip(" ").startswith(_FORMULA) else text)
