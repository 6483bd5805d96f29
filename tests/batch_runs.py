"""What the batch tests share: small photographs, runs of the command within this process, and what a run's rows are."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
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


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Twenty photographs, and three files that are none."""
    folder = tmp_path_factory.mktemp("photographs")
    make_photographs(folder, 20)
    (folder / "3b.jpg").write_bytes(b"not a photograph")
    (folder / "5b.jpg").write_bytes((folder / "5.jpg").read_bytes()[:400])
    (folder / "9b.png").write_bytes(b"")
    return folder


@pytest.fixture
def photographs(tmp_path, monkeypatch, originals):
    """In the working folder, which is empty but for them: `photographs`, whose files keep their times."""
    monkeypatch.chdir(tmp_path)
    Path("photographs").mkdir()
    for path in originals.iterdir():
        os.link(path, Path("photographs", path.name))


def run(weights, out="out", *more, status=3, rows=4, inputs=("photographs",)):
    """A run over these photographs, in parts of four rows."""
    assert batch(weights, *inputs, "--out", out, "--methods", METHODS, "--part-rows", rows, *more) == status
    return Path(out)


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
