"""What the batch tests share: small photographs, runs of the command within this process, and what a run's rows are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.dataset
from PIL import Image
from tolerances import FLOAT32

from torch_impl.__main__ import main
from torch_impl.batch.reading import StoredMaps

METHODS = "gradcam,gradcam++"


def make_photographs(folder: Path, count: int, *, seed: int = 0) -> None:
    """Smooth random pictures, `0.jpg` and so on, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.RandomState(seed)
    for i in range(count):
        coarse = Image.fromarray(generator.randint(0, 255, (6, 7, 3), np.uint8))
        coarse.resize((70, 60), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)


def batch(weights: str, *arguments: object, quiet: bool = True) -> int:
    """`batch ARGUMENTS`, in this process; the exit status."""
    given = ["batch", *(["--quiet"] if quiet else []), "--weights", weights, "--device", "cpu", "--loaders", "1"]
    return main([*given, *map(str, arguments)])


def table(out: Path):
    """All rows of a run, in the order of its parts."""
    files = sorted((out / "rows").glob("part-*.parquet"))
    return pyarrow.dataset.dataset([str(file) for file in files], format="parquet").to_table()


def identity(out: Path) -> str:
    """A hash over what must not depend on who computed the rows: keys, classes, labels, errors, in order."""
    names = ["index", "key", "path", "sha256", "asked", "class", "label", "error", "notes", "file_size"]
    rows = table(out).select(names).to_pylist()
    assert [row["index"] for row in rows] == list(range(len(rows))), "a row is missing, double or out of place"
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()


def bits(out: Path) -> bytes:
    """Every number of every row, bit by bit, but for the seconds."""
    rows = table(out)
    digest = hashlib.sha256()
    for name in rows.column_names:
        if name == "seconds":
            continue
        for chunk in rows[name].chunks:
            storage = getattr(chunk, "storage", chunk)
            values = storage.flatten().to_numpy() if hasattr(storage.type, "list_size") else None
            digest.update(values.tobytes() if values is not None else repr(storage.to_pylist()).encode())
    return digest.digest()


def same_logits(a: StoredMaps, b: StoredMaps) -> None:
    """Equal up to float32's rounding, which is relative to the largest logit that the same sums give."""
    first, second = (stored.rows["logit"].to_numpy() for stored in (a, b))
    assert np.array_equal(np.isnan(first), np.isnan(second))  # rows with errors
    assert float(np.nanmax(np.abs(first - second))) <= FLOAT32 * float(np.nanmax(np.abs(first)))
