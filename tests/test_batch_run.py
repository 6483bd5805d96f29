"""What is in the rows of a large run: what `explain` says of each photograph, however the run is cut."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batch_runs import batch, bits, identity, make_photographs, run, same_logits, table
from tolerances import FLOAT16_KEPT, FLOAT32

from torch_impl import Explainer, images, read_maps
from torch_impl.batch import loading, worker
from torch_impl.batch.listing import listed
from torch_impl.batch.run import kinds
from torch_impl.batching import OutOfMemoryError
from torch_impl.capture.passes import MapError
from torch_impl.methods import finish

pytest_plugins = ["batch_runs"]
pytestmark = pytest.mark.usefixtures("one_thread", "photographs")


def test_a_row_is_what_explain_says_of_the_photograph(weights, tiny):
    # In float64, so that what is left is the storage alone.
    methods = ["vanilla", "smoothgrad", "gradcam", "gradcam++"]
    options = ["--methods", ",".join(methods), "--samples", "3", "--seed", "5", "--precision", "fp64"]
    stored = read_maps(run(weights, "out", *options), where="error IS NULL")
    assert len(stored) == 20
    rows = stored.rows.to_pylist()
    explain = Explainer.vgg16(tiny, device="cpu", precision="fp64")
    expected = explain([row["path"] for row in rows], methods=methods, n_samples=3, seed=5)
    for row, said in zip(rows, expected.manifest["photographs"], strict=True):
        assert (row["sha256"], row["class"], row["label"]) == (said["sha256"], said["class"], said["label"])
        assert row["logit"] == pytest.approx(said["logit"], rel=FLOAT32)
        assert [best["class"] for best in row["top5"]] == [best["class"] for best in said["top5"]]
    for method in methods:
        worst = float(np.abs(finish(torch.from_numpy(stored[method]), (64, 64)).numpy() - expected[method]).max())
        assert worst <= FLOAT16_KEPT, f"{method}: {worst}"


def test_full_maps_are_the_finished_ones(weights, tiny):
    stored = read_maps(run(weights, "out", "--resolution", "full"), where="error IS NULL", limit=3)
    expected = Explainer.vgg16(tiny, device="cpu")(stored.rows["path"].to_pylist(), methods=["gradcam"])
    assert stored["gradcam"].shape == (3, 64, 64)
    assert float(np.abs(stored["gradcam"] - expected["gradcam"]).max()) <= FLOAT16_KEPT


def test_a_bad_photograph_is_a_row_with_its_reason(weights, capsys):
    assert batch(weights, "photographs", "--out", "out", quiet=False) == 3
    said = capsys.readouterr()
    assert "rows      23: 20 explained, 3 with an error" in said.out
    assert said.err == "", "progress is for terminals"
    bad = {row["path"]: row for row in table(Path("out")).to_pylist() if row["error"]}
    assert list(bad) == ["photographs/3b.jpg", "photographs/5b.jpg", "photographs/9b.png"]
    for name, row in bad.items():
        assert (row["class"], row["top5"], row["gradcam_low"]) == (None, None, None)
        assert row["sha256"] == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert np.isnan(read_maps("out", where="error IS NOT NULL")["gradcam"]).all()
    summary = json.loads(Path("out/summary.json").read_text())
    assert (summary["rows"], sum(summary["errors"].values())) == (23, 3)


def test_kinds_of_errors_leave_out_what_is_particular():
    said = [
        "holds floats from 1.5 to 99, not 0 to 1: scale",
        "5,000 x 20 pixels: x",
        "77 x 1 pixels: y",
        "class 'a' is",
    ]
    expected = {"holds floats from N to N, not N to N": 1, "N x N pixels": 2, "class … is": 1}
    assert kinds(pa.array([*said, None], pa.string())) == expected


def test_classes_from_a_table_and_a_class_that_does_not_exist(weights):
    Path("classes.csv").write_text("path,class\n0.jpg,7\n0.jpg,2\n1.jpg,99\n")
    rows = table(run(weights, "out", "--classes", "classes.csv")).to_pylist()
    assert [(row["asked"], row["class"]) for row in rows if row["path"] == "photographs/0.jpg"] == [("7", 7), ("2", 2)]
    (unknown,) = [row for row in rows if row["path"] == "photographs/1.jpg"]
    assert "class 99 does not exist" in unknown["error"]
    assert unknown["sha256"]
    top = next(row for row in rows if row["path"] == "photographs/2.jpg")
    assert (top["asked"], top["class"]) == (None, top["top5"][0]["class"])


def test_classes_from_folders_by_number_label_or_wordnet_id(weights):
    Path("labels.txt").write_text("n01440764 tench\ncat\n" + "x\n" * 8)
    for name in ("1", "cat", "n01440764", "n99999999"):
        make_photographs(Path("sorted", name), 1)
    assert batch(weights, "sorted", "--out", "out", "--classes", "folder", "--labels", "labels.txt") == 3
    rows = table(Path("out")).to_pylist()
    assert [(row["asked"], row["class"]) for row in rows[:3]] == [("1", 1), ("cat", 1), ("n01440764", 0)]
    assert "'n99999999' is a WordNet id, and none of the labels begins with it" in rows[3]["error"]


# The same rows, however


def test_rows_do_not_depend_on_how_they_are_cut(weights):
    first = run(weights, "first", "--batch-size", "1")
    a = read_maps(first, where="error IS NULL")
    for number, other in enumerate((["--batch-size", "3"], ["--part-rows", "23"], ["--engine", "library"])):
        second = run(weights, f"other{number}", *other)
        assert identity(first) == identity(second)
        b = read_maps(second, where="error IS NULL")
        same_logits(a, b)
        for method in a.maps:
            scale = a[method].max(axis=(1, 2), keepdims=True)
            assert float((np.abs(a[method] - b[method]) / scale).max()) <= 2 * FLOAT16_KEPT + FLOAT32


def test_rows_are_equal_bit_by_bit_for_equal_micro_batches(weights):
    first = run(weights, "first", "--batch-size", "2")
    assert bits(run(weights, "again", "--batch-size", "2", "--loaders", 5)) == bits(first)


def noted(patch, owner, name, what):
    """Have every call noted down in a file, also those of processes that are forked later: a function that gives the lines."""
    function, file = getattr(owner, name), Path(f"calls of {name}.txt").absolute()

    def noting(*given, **more):
        with open(file, "a") as lines:
            lines.write(f"{what(*given)}\n")
        return function(*given, **more)

    patch.setattr(owner, name, noting)
    file.write_text("")
    return lambda: file.read_text().splitlines()


def test_a_photograph_is_read_and_decoded_once(weights, monkeypatch):
    read = noted(monkeypatch, loading.Reader, "read", lambda reader, item: item.path)
    decoded = noted(monkeypatch, loading.images, "load_bytes", lambda data: hashlib.sha256(data).hexdigest())
    run(weights, "out", "--loaders", 3)
    assert len(read()) == len(set(read())) == 23
    assert len(decoded()) == len(set(decoded())) == 23


def test_photographs_come_in_order_and_no_more_than_a_few_ahead(monkeypatch):
    """Whoever is slow; and a process goes through the rows of a table once, since going back would mean to begin it again."""
    names = [f"photographs/{i}.jpg" for i in range(20)]
    expected = [images.load(name, size=64).pixels for name in names]
    pq.write_table(pa.table({"image": [Path(name).read_bytes() for name in names]}), "bytes.parquet", row_group_size=10)
    monkeypatch.setattr(loading, "PIECE", 2)
    monkeypatch.setattr(loading, "AHEAD", 6)
    chance = random.Random(0)
    monkeypatch.setattr(
        loading, "decoded", lambda *of, it=loading.decoded: time.sleep(chance.uniform(0, 0.01)) or it(*of)
    )
    begun = noted(monkeypatch, loading.Reader, "read", lambda reader, item: item.path)
    opened = noted(monkeypatch, pq.ParquetFile, "iter_batches", lambda *_: os.getpid())
    for inputs in (["photographs/[0-9].jpg", "photographs/1[0-9].jpg"], ["bytes.parquet"]):
        items = list(listed(inputs))
        before = len(begun())
        with loading.loaded(items, 64, "lab", 3) as photographs:
            for count, (name, (photograph, pixels)) in enumerate(zip(names, photographs, strict=True)):
                assert photograph.sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest()
                np.testing.assert_array_equal(pixels, expected[count])
                assert len(begun()) - before <= (count // 2 + 1) * 2 + 6
        assert len(begun()) - before == 20
    groups = Counter(process for process in opened() if process != str(os.getpid()))  # which has listed the table
    assert len(groups) == 3, "as many processes"
    assert max(groups.values()) == 2, "of which each begins each row group once"


def test_decoding_begins_before_the_network_is_there(weights, monkeypatch):
    decode, decoded = loading.images.load_bytes, multiprocessing.get_context("fork").Event()
    monkeypatch.setattr(loading.images, "load_bytes", lambda data, **more: decoded.set() or decode(data, **more))
    make = worker.explainer_of
    monkeypatch.setattr(worker, "explainer_of", lambda *args: decoded.wait(60) and make(*args))
    run(weights)


def test_a_map_that_is_not_finite_is_an_error_of_its_photograph_alone(weights, monkeypatch):
    whole = table(run(weights, "whole", "--batch-size", "1")).to_pylist()
    compute, victim = Explainer.compute, images.load(whole[6]["path"], size=64).pixels

    def broken(self, pixels, *rest, **more):
        if any(np.array_equal(photograph, victim) for photograph in pixels):
            raise MapError("gradcam: not finite")
        return compute(self, pixels, *rest, **more)

    monkeypatch.setattr(Explainer, "compute", broken)
    rows = table(run(weights, "out", "--batch-size", "4")).to_pylist()
    assert [i for i, (a, b) in enumerate(zip(whole, rows, strict=True)) if a["error"] != b["error"]] == [6]
    assert rows[6]["error"].startswith("no finite map")


def test_a_writer_that_cannot_keep_up_holds_the_network_back():
    handed, written, waiting = [], [], []

    class Quick:
        about: ClassVar = {}

        def parts(self, listing, numbers, loaders, report):
            for number in numbers:
                handed.append(number)
                waiting.append(len(handed) - len(written))
                yield number, None

    class Slow:
        listing = None

        def write_part(self, number, rows, about):
            time.sleep(0.05)
            written.append(number)
            return Counter(kind=1)

    assert worker.run_local(Slow(), Quick(), range(6), 1, report=None) == {"kind": 6}
    assert written == handed == list(range(6))
    assert max(waiting) <= 2, "parts pile up in memory"


# The command line


def test_what_is_wrong_is_one_line_and_leaves_nothing_behind(weights, monkeypatch, capsys):
    out_of_range = [
        "--workers 0",
        "--workers 5:2",
        "--gpus-per-worker 1.5",
        "--part-rows 0",
        "--limit -1",
        "--loaders 0",
    ]
    for wrong in (*out_of_range, "--resolution half", "--methods grad", "--methods gradcam,,vanilla"):
        with pytest.raises(SystemExit, match="2"):
            batch(weights, "photographs", "--out", "out", *wrong.split())
        assert capsys.readouterr().err.count("\n") == 1
    for arguments in (
        "photographs --device abacus",
        "photographs --root none",
        "nowhere",
        "photographs --weights none",
    ):
        assert batch(weights, *arguments.split(), "--out", "out") == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not Path("out").exists()
    for error in (OutOfMemoryError("out of memory: choose a smaller batch size"), torch.OutOfMemoryError("CUDA …")):
        with monkeypatch.context() as patch:
            patch.setattr(Explainer, "compute", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            run(weights, "out", status=2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "out of memory" in said


def test_progress_is_a_bar_on_a_terminal(weights, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert batch(weights, "photographs", "--out", "out", quiet=False) == 3
    said = capsys.readouterr().err
    assert "explaining" in said
    assert "\n" not in said, "a bar is wiped"
    run(weights, "quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_memory_and_cost_of_a_longer_run(tmp_path):
    """The benchmark itself, short: four times the photographs need no more memory."""
    from benchmarks.__main__ import main as benchmarks

    assert benchmarks(["large", "growth", "--photographs", "1000,4000", "--json", str(tmp_path / "figures.json")]) == 0
    few, many = json.loads((tmp_path / "figures.json").read_text())["runs"]
    # 3000 photographs more, held decoded, would be 37 MB; their maps and rows, 10 MB. Allocators vary by some 5 MB.
    assert many["rss_mb"] - few["rss_mb"] < 10
