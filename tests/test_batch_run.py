"""A large set's run: the same rows however it is cut, stopped and killed; changes noticed; every error one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batch_runs import METHODS, batch, bits, identity, make_photographs, same_logits, table
from conftest import ROOT
from tolerances import FLOAT16_KEPT, FLOAT32

from parity.contract.network import write
from torch_impl import Explainer, images, read_maps
from torch_impl.batch import loading, worker
from torch_impl.batch import run as run_module
from torch_impl.batch.listing import listed
from torch_impl.batch.run import kinds
from torch_impl.batching import OutOfMemoryError
from torch_impl.capture.passes import MapError
from torch_impl.methods import finish

pytestmark = pytest.mark.usefixtures("one_thread")


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
def here(tmp_path, monkeypatch, originals):
    """An empty folder with `photographs` in it; files keep their times."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "photographs"
    target.mkdir()
    for path in originals.iterdir():
        os.link(path, target / path.name)
    return tmp_path


def replaced(path: Path, data: bytes) -> None:
    path.unlink()  # never through the link
    path.write_bytes(data)


def run(weights, out="out", *more, status=3, rows=4, inputs=("photographs",)):
    assert batch(weights, *inputs, "--out", out, "--methods", METHODS, "--part-rows", rows, *more) == status
    return Path(out)


def program(weights, *more, **options):
    """The command as a process of its own."""
    given = ["batch", "photographs", "--out", "out", "--weights", weights, "--device", "cpu", "--quiet", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "torch_impl", *given], env=environment, text=True, **options)


def written_at(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}


# What is in the rows


def test_a_row_is_what_explain_says_of_the_photograph(weights, here, tiny):
    # In float64, so that what is left is the storage alone.
    methods = ["vanilla", "smoothgrad", "gradcam", "gradcam++"]
    stored = read_maps(
        run(weights, "out", "--methods", ",".join(methods), "--samples", "3", "--seed", "5", "--precision", "fp64"),
        where="error IS NULL",
    )
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


def test_full_maps_are_the_finished_ones(weights, here, tiny):
    stored = read_maps(run(weights, "out", "--resolution", "full"), where="error IS NULL", limit=3)
    expected = Explainer.vgg16(tiny, device="cpu")(stored.rows["path"].to_pylist(), methods=["gradcam"])
    assert stored["gradcam"].shape == (3, 64, 64)
    assert float(np.abs(stored["gradcam"] - expected["gradcam"]).max()) <= FLOAT16_KEPT


def test_a_bad_photograph_is_a_row_with_its_reason(weights, here, capsys):
    assert batch(weights, "photographs", "--out", "out", quiet=False) == 3
    assert "rows      23: 20 explained, 3 with an error" in capsys.readouterr().out
    out = Path("out")
    bad = {row["path"]: row for row in table(out).to_pylist() if row["error"]}
    assert list(bad) == ["photographs/3b.jpg", "photographs/5b.jpg", "photographs/9b.png"]
    assert all(row["class"] is None and row["top5"] is None and row["gradcam_low"] is None for row in bad.values())
    assert {name: row["sha256"] for name, row in bad.items()} == {
        name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in bad
    }
    assert np.isnan(read_maps(out, where="error IS NOT NULL")["gradcam"]).all()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], sum(summary["errors"].values())) == (23, 3)


def test_kinds_of_errors_leave_out_what_is_particular():
    said = [
        "holds floats from 1.5 to 99, not 0 to 1: scale",
        "5,000 x 20 pixels: x",
        "77 x 1 pixels: y",
        "class 'dog' is",
        None,
    ]
    expected = {"holds floats from N to N, not N to N": 1, "N x N pixels": 2, "class … is": 1}
    assert kinds(pa.array(said, pa.string())) == expected


def test_classes_from_a_table_and_a_class_that_does_not_exist(weights, here):
    Path("classes.csv").write_text("path,class\n0.jpg,7\n0.jpg,2\n1.jpg,99\n")
    rows = table(run(weights, "out", "--classes", "classes.csv")).to_pylist()
    assert [(row["asked"], row["class"]) for row in rows if row["path"] == "photographs/0.jpg"] == [("7", 7), ("2", 2)]
    (unknown,) = [row for row in rows if row["path"] == "photographs/1.jpg"]
    assert "class 99 does not exist" in unknown["error"]
    assert unknown["sha256"]
    top = next(row for row in rows if row["path"] == "photographs/2.jpg")
    assert (top["asked"], top["class"]) == (None, top["top5"][0]["class"])


def test_classes_from_folders_by_number_label_or_wordnet_id(weights, here):
    Path("labels.txt").write_text("n01440764 tench\ncat\n" + "x\n" * 8)
    for name in ("1", "cat", "n01440764", "n99999999"):
        make_photographs(Path("sorted", name), 1)
    assert batch(weights, "sorted", "--out", "out", "--classes", "folder", "--labels", "labels.txt") == 3
    rows = table(Path("out")).to_pylist()
    assert [(row["asked"], row["class"]) for row in rows[:3]] == [("1", 1), ("cat", 1), ("n01440764", 0)]
    assert "'n99999999' is a WordNet id, and none of the labels begins with it" in rows[3]["error"]


def test_the_same_photographs_in_any_container_give_the_same_maps(weights, here):
    names = [f"photographs/{i}.jpg" for i in range(4)]
    Path("list.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    with tarfile.open("shard.tar", "w") as archive:
        for name in names:
            archive.add(name)
    pq.write_table(pa.table({"image": [Path(name).read_bytes() for name in names]}), "bytes.parquet")
    sources = {name: f"out-{name}" for name in ("photographs/[0-3].jpg", "list.csv", "shard.tar", "bytes.parquet")}
    stored = [read_maps(run(weights, f"out{i}", inputs=[name], status=0)) for i, name in enumerate(sources)]
    for other in stored[1:]:
        np.testing.assert_array_equal(other["gradcam"], stored[0]["gradcam"])
        assert other.rows["sha256"].equals(stored[0].rows["sha256"])


# The same rows, however


@pytest.mark.parametrize(
    "other", [["--batch-size", "3"], ["--part-rows", "23"], ["--loaders", "2"], ["--engine", "library"]]
)
def test_rows_do_not_depend_on_how_they_are_cut(weights, here, other):
    first, second = run(weights, "first", "--batch-size", "1"), run(weights, "second", *other)
    assert identity(first) == identity(second)
    a, b = read_maps(first, where="error IS NULL"), read_maps(second, where="error IS NULL")
    same_logits(a, b)
    for method in a.maps:
        scale = a[method].max(axis=(1, 2), keepdims=True)
        assert float((np.abs(a[method] - b[method]) / scale).max()) <= 2 * FLOAT16_KEPT + FLOAT32


def test_rows_are_equal_bit_by_bit_for_equal_micro_batches(weights, here):
    first = run(weights, "first", "--batch-size", "2")
    for i, loaders in enumerate((1, 2, 5)):
        assert bits(run(weights, f"again{i}", "--batch-size", "2", "--loaders", loaders)) == bits(first)


def test_a_photograph_is_read_and_decoded_once(weights, here, monkeypatch):
    read, decode, calls = loading.Reader.read, loading.images.load_bytes, []
    monkeypatch.setattr(loading.Reader, "read", lambda self, item: calls.append(item.path) or read(self, item))
    monkeypatch.setattr(loading.images, "load_bytes", lambda data, **more: calls.append(data) or decode(data, **more))
    run(weights)
    assert len(calls) == len(set(calls)) == 2 * 23


def test_photographs_come_in_order_and_no_more_than_a_few_ahead(here, monkeypatch):
    """Whoever is slow; and the rows of a table are read one after another, since going back would mean to begin it again."""
    names = [f"photographs/{i}.jpg" for i in range(20)]
    pq.write_table(pa.table({"image": [Path(name).read_bytes() for name in names]}), "bytes.parquet", row_group_size=10)
    read, opened, begun, chance = loading.Reader.read, [], [], random.Random(0)

    def unsteady(self, item):
        begun.append(item)
        time.sleep(chance.uniform(0, 0.01))
        return read(self, item)

    monkeypatch.setattr(loading, "AHEAD", 6)
    monkeypatch.setattr(loading.Reader, "read", unsteady)
    monkeypatch.setattr(
        loading.pq,
        "ParquetFile",
        lambda *args, _open=pq.ParquetFile, **more: opened.append(args) or _open(*args, **more),
    )
    for inputs in (["photographs/[0-9].jpg", "photographs/1[0-9].jpg"], ["bytes.parquet"]):
        items = list(listed(inputs))
        begun.clear()
        opened.clear()
        with loading.loaded(items, 64, "lab", 4) as photographs:
            for count, (name, photograph) in enumerate(zip(names, photographs, strict=True), 1):
                assert photograph.sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest()
                assert len(begun) <= count + 6
        assert len(opened) == (2 if inputs == ["bytes.parquet"] else 0)


def test_decoding_begins_before_the_network_is_there(weights, here, monkeypatch):
    decode, decoded = loading.images.load_bytes, threading.Event()
    monkeypatch.setattr(loading.images, "load_bytes", lambda data, **more: decoded.set() or decode(data, **more))
    make = worker.explainer_of
    monkeypatch.setattr(worker, "explainer_of", lambda *args: decoded.wait(60) and make(*args))
    run(weights)


def test_memory_that_runs_out_is_one_line(weights, here, monkeypatch, capsys):
    for error in (OutOfMemoryError("out of memory: choose a smaller batch size"), torch.OutOfMemoryError("CUDA …")):
        with monkeypatch.context() as patch:
            patch.setattr(Explainer, "compute", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            run(weights, "out", status=2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "out of memory" in said


def test_a_map_that_is_not_finite_is_an_error_of_its_photograph_alone(weights, here, monkeypatch):
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


# Going on


def test_the_same_command_goes_on_where_it_stopped(weights, here, monkeypatch, capsys):
    expected = run(weights, "expected", "--batch-size", "2")
    out = run(weights, "out", "--batch-size", "2", "--limit", "10")
    assert table(out).num_rows == 10
    before = written_at(out)
    run(weights, "out", "--batch-size", "2")
    kept = sorted(name for name, written in written_at(out).items() if before.get(name) == written)
    assert kept == ["part-000000.parquet", "part-000001.parquet"], "two parts were whole, the third has grown"
    assert bits(out) == bits(expected)
    monkeypatch.setattr(worker.Worker, "parts", None)  # a finished run does nothing
    run(weights, "out", "--batch-size", "2")
    run(weights, "out", inputs=["./photographs/"])  # nor does the same listing by another name


def damaged_page(part: Path) -> bytes:
    """The footer stays whole."""
    chunks = pq.read_metadata(part).row_group(0)
    key = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "key")
    start = key.dictionary_page_offset or key.data_page_offset
    data = part.read_bytes()
    middle = bytes(byte ^ 0x5A for byte in data[start : start + key.total_compressed_size])
    return data[:start] + middle + data[start + key.total_compressed_size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: b"PAR1 and then nothing",
        damaged_page,
        lambda part: part.with_name("part-000002.parquet").read_bytes(),
    ],
)
def test_a_damaged_part_is_done_again_and_named(weights, here, capsys, damage):
    out = run(weights)
    expected = identity(out)
    part = out / "rows" / "part-000001.parquet"
    part.write_bytes(damage(part))
    (out / "rows" / ".part-left.parquet").write_bytes(b"half of one")
    (out / ".part-left").mkdir()
    run(weights)
    assert "part 1: damaged, or of another run: done again" in capsys.readouterr().err
    assert identity(out) == expected
    assert not list(out.rglob(".part-*"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_what_may_pass_is_tried_again(weights, here, monkeypatch, number):
    expected = identity(run(weights, "expected"))
    read = loading.Reader.read

    def failing(self, item):
        if item.path.endswith("/5.jpg"):
            raise OSError(number, os.strerror(number))
        return read(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(loading.Reader, "read", failing)
        for _ in range(2):
            run(weights)
            said = {row["path"]: row["error"] for row in table(Path("out")).to_pylist()}["photographs/5.jpg"]
            assert said == f"cannot be read now: {os.strerror(number)}"
    run(weights)
    assert identity(Path("out")) == expected


def _refusal(capsys, weights, *more):
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    run(weights, "out", *more, status=2)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before, "something changed"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--labels", "labels.txt"], "labels a there, b here"),
        (["--methods", "vanilla"], "methods gradcam,gradcam_plus_plus there, vanilla here"),
        (["--resize", "torchvision"], "resize lab there, torchvision here"),
        (["--input", "torchvision"], "input caffe there, torchvision here"),
        (["--resolution", "full"], "resolution raw there, full here"),
        (["--precision", "fp64"], "precision fp32 there, fp64 here"),
        (["--engine", "library"], "engine shared there, library here"),
        (["--part-rows", "5"], "part size 4 there, 5 here"),
        (["--seed", "3"], "seed 0 there, 3 here"),
    ],
)
def test_other_settings_are_refused_by_name(weights, here, capsys, option, said):
    Path("labels.txt").write_text("the same\nb\n" + "c\n" * 8)
    Path("first.txt").write_text("the same\na\n" + "c\n" * 8)
    run(weights, "out", *(["--labels", "first.txt"] if "--labels" in option else []))
    message = _refusal(capsys, weights, *option)
    assert said in message
    assert "another --out" in message


def test_other_weights_are_refused_and_the_same_under_another_name_are_not(weights, here, capsys, tiny):
    run(weights)
    changed = dict(tiny.tensors)
    changed["classifier.6.bias"] = changed["classifier.6.bias"] + 1
    write(replace(tiny, tensors=changed), "other.safetensors")
    assert "weights' fingerprint" in _refusal(capsys, "other.safetensors")
    write(replace(tiny, source="renamed"), "renamed.safetensors")
    run("renamed.safetensors")


def test_settings_without_a_single_row_bind_nobody(weights, here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "parts", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(weights, status=130)
    run(weights, "out", "--methods", "gradcam++")
    run(weights, "out", "--methods", "gradcam", status=2)  # now there are rows


def test_a_changed_photograph_is_refused_by_name_or_done_again(weights, here, capsys):
    out = run(weights)
    replaced(Path("photographs/7.jpg"), Path("photographs/8.jpg").read_bytes())
    said = _refusal(capsys, weights)
    assert "'photographs/7.jpg' has changed: add --redo-changed to do this part again" in said
    before = written_at(out)
    run(weights, "out", "--redo-changed")
    assert "part 2: 'photographs/7.jpg' has changed: done again" in capsys.readouterr().err
    assert [name for name, written in written_at(out).items() if before[name] != written] == ["part-000002.parquet"]
    assert identity(out) == identity(run(weights, "afresh"))


def test_photographs_that_come_or_go(weights, here, capsys):
    out = run(weights)
    data = Path("photographs/19.jpg").read_bytes()
    Path("photographs/4b.jpg").write_bytes(data)
    assert "'photographs/4b.jpg' is listed where 'photographs/5.jpg' was" in _refusal(capsys, weights)
    Path("photographs/4b.jpg").unlink()
    Path("photographs/20.jpg").write_bytes(data)  # at the end: the listing has grown
    run(weights)
    assert table(out).num_rows == 24
    Path("photographs/20.jpg").unlink()
    assert "'photographs/20.jpg' is no longer listed" in _refusal(capsys, weights)
    assert "the rows of part 3 are no longer listed" in _refusal(capsys, weights, "--limit", "12")
    run(weights, "out", "--redo-changed")
    assert identity(out) == identity(run(weights, "afresh"))


def test_changed_classes_are_noticed(weights, here, capsys):
    Path("classes.csv").write_text("path,class\n0.jpg,7\n")
    run(weights, "out", "--classes", "classes.csv")
    Path("classes.csv").write_text("path,class\n0.jpg,8\n")
    assert "'photographs/0.jpg' has changed, or its class" in _refusal(capsys, weights, "--classes", "classes.csv")


def test_what_changes_while_the_run_goes_on_is_noticed_by_the_next_start(weights, here, monkeypatch, capsys):
    """The listing is walked once: what it holds is done, whatever comes."""

    def meddled(*arguments):
        Path("photographs/2b.jpg").write_bytes(Path("photographs/0.jpg").read_bytes())
        Path("photographs/8.jpg").unlink()
        return loading.loaded(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "loaded", meddled)
        run(weights)
    rows = {row["path"]: row["error"] for row in table(Path("out")).to_pylist()}
    assert len(rows) == 23
    assert rows["photographs/8.jpg"] == "no such file"
    assert "'photographs/2b.jpg' is listed where 'photographs/3.jpg' was" in _refusal(capsys, weights)


# Killed


def _killed(weights, kills, seed):
    with open("said.json", "wb") as said, open("errors.txt", "wb") as errors:  # no pipe, which an orphan could hold
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "tests" / "batch_kills.py"),
                weights,
                "photographs",
                ".",
                str(kills),
                str(seed),
            ],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=errors,
        )
    assert done.returncode == 0, Path("errors.txt").read_text()
    said = json.loads(Path("said.json").read_text())
    assert len(set(said["stages"])) >= 3, f"the kills all came at the same stage: {said['stages']}"
    assert said["rewritten"] == 0, "a finished part was done twice"
    for out in said["outs"]:
        assert bits(Path(out)) == bits(Path("undisturbed")), out
        assert identity(Path(out)) == identity(Path("undisturbed"))
        assert not list(Path(out).rglob(".part-*"))


def test_killed_at_any_moment_the_rows_are_those_of_an_undisturbed_run(weights, here):
    _killed(weights, 8, 1)


@pytest.mark.slow
def test_killed_two_hundred_times(weights, here):
    _killed(weights, 200, 2)


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_finished_parts_stay_and_the_same_command_goes_on(weights, here, polite, monkeypatch, capsys):
    expected = identity(run(weights, "expected", rows=2))
    explained, calls = worker.Worker._explained, []

    def slow(self, *more):
        calls.append(more)
        if len(calls) == 4:
            os.kill(os.getpid(), polite)
            time.sleep(1)
        return explained(self, *more)

    handlers = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "_explained", slow)
        run(weights, "out", "--loaders", 2, status=130, rows=2)
    signal.signal(signal.SIGTERM, handlers)
    assert "6 of 23 rows were reached" in capsys.readouterr().err
    assert table(Path("out")).num_rows == 6
    assert not list(Path("out").rglob(".part-*"))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]
    run(weights, "out", rows=2)
    assert identity(Path("out")) == expected


def test_a_command_that_is_told_to_end_does(weights, here):
    """Threads are at work, which Python would wait for."""
    slow = ["--part-rows", "1", "--loaders", "2", "--methods", "smoothgrad", "--samples", "500"]
    with open("errors.txt", "wb") as errors:
        started = program(weights, *slow, stderr=errors)
    while not list(Path("out/rows").glob("part-*")):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait() == 130
    assert "Traceback" not in Path("errors.txt").read_text()


# Errors of the machine


def test_two_runs_on_one_folder_the_second_is_refused(weights, here, capsys):
    holder = "import fcntl, sys; file = open('out/.lock', 'wb'); fcntl.lockf(file, fcntl.LOCK_EX); "
    holder += "print(flush=True); sys.stdin.read()"
    Path("out").mkdir()
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        run(weights, status=2)
        other.stdin.close()
    assert "another run is at work on this folder" in capsys.readouterr().err
    run(weights)  # the lock file that it left does not block


def test_a_run_keeps_others_out_while_it_works(weights, here, monkeypatch):
    explained, said = worker.Worker._explained, []
    other = "import fcntl; fcntl.lockf(open('out/.lock', 'wb'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def watched(self, *more):
        if not said:
            said.append(subprocess.run([sys.executable, "-c", other], capture_output=True, text=True).stderr)
        return explained(self, *more)

    monkeypatch.setattr(worker.Worker, "_explained", watched)
    run(weights)
    assert "BlockingIOError" in said[0]
    assert subprocess.run([sys.executable, "-c", other]).returncode == 0


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(weights, here, monkeypatch, capsys):
    expected = identity(run(weights, "expected"))
    flush, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.os, "fsync", full)
        run(weights, status=2)
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "run the same command to go on" in said
    assert said.count("\n") == 1
    assert not list(Path("out").rglob(".part-*"))
    assert 0 < table(Path("out")).num_rows < 23
    run(weights)
    assert identity(Path("out")) == expected


def test_a_full_disk_for_real(weights, here):
    """The system's own limit on a file's size, in a process of its own."""
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "from torch_impl.__main__ import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "batch", "photographs", "--out", "out", "--weights", weights, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(Path("out/rows").iterdir())
    run(weights, rows=256)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ESTALE])
def test_a_folder_that_cannot_be_written_is_one_line(weights, here, monkeypatch, capsys, code):
    def refused(*args, **more):
        raise OSError(code, os.strerror(code), "out")

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Path, "mkdir", refused)
        run(weights, status=2)
    said = capsys.readouterr().err
    assert os.strerror(code) in said
    assert said.count("\n") == 1


def test_somebody_elses_folder_is_left_alone(weights, here, capsys):
    Path("out").mkdir()
    Path("out/letter.txt").write_text("dear")
    run(weights, status=2)
    assert "no run of this program" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["letter.txt"]
    Path("file").write_text("")
    for out in ("file", "file/below", " "):
        run(weights, out, status=2)
    assert capsys.readouterr().err.count("\n") == 3


def test_strict_stops_at_the_first_bad_photograph(weights, here, capsys):
    run(weights, "out", "--strict", status=2)
    said = capsys.readouterr().err
    assert "'photographs/3b.jpg': not a photograph that can be read" in said
    assert said.count("\n") == 1
    run(weights)
    run(weights, "out", "--strict", status=2)
    assert "3 rows" in capsys.readouterr().err
    for name in ("3b.jpg", "5b.jpg", "9b.png"):
        Path("photographs", name).unlink()
    run(weights, "good", "--strict", status=0)


def test_a_writer_that_cannot_keep_up_holds_the_network_back():
    handed, written, waiting = [], [], []

    class Quick:
        about: ClassVar = {}

        def parts(self, listing, numbers, threads, report):
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


@pytest.mark.parametrize(
    "wrong",
    [
        ["--workers", "0"],
        ["--workers", "5:2"],
        ["--gpus-per-worker", "1.5"],
        ["--part-rows", "0"],
        ["--limit", "-1"],
        ["--loaders", "0"],
        ["--resolution", "half"],
    ],
)
def test_options_out_of_range_are_one_line(weights, here, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        batch(weights, "photographs", "--out", "out", *wrong)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("out").exists()


def test_values_that_are_unknown_are_one_line_and_leave_nothing_behind(weights, here, capsys):
    for wrong in (["--methods", "grad"], ["--methods", "gradcam,,vanilla"]):
        with pytest.raises(SystemExit, match="2"):
            batch(weights, "photographs", "--out", "out", *wrong)
    for wrong in (["--device", "abacus"], ["--root", "none"]):
        assert batch(weights, "photographs", "--out", "out", *wrong) == 2
    assert batch(weights, "nowhere", "--out", "out") == 2
    assert batch("missing.safetensors", "photographs", "--out", "out") == 2
    assert capsys.readouterr().err.count("\n") == 6
    assert not Path("out").exists()


def test_a_run_json_of_another_version_is_refused(weights, here, capsys):
    out = run(weights)
    said = json.loads((out / "run.json").read_text())
    for text, words in (
        (json.dumps(said | {"format": "attention-maps batch 99"}), "attention-maps batch 99"),
        (json.dumps({"format": said["format"]}), "damaged"),
        ("{", "cannot be read"),
        (None, "no run of this program"),
    ):
        (out / "run.json").unlink() if text is None else (out / "run.json").write_text(text)
        assert words in _refusal(capsys, weights)


def test_progress_is_a_bar_on_a_terminal_and_nothing_elsewhere(weights, here, monkeypatch, capsys):
    assert batch(weights, "photographs", "--out", "piped", quiet=False) == 3
    assert capsys.readouterr().err == ""
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
    from benchmarks import large

    assert large.main(["growth", "--photographs", "1000,4000", "--json", str(tmp_path / "figures.json")]) == 0
    few, many = json.loads((tmp_path / "figures.json").read_text())["runs"]
    # 3000 photographs more, held decoded, would be 37 MB; their maps and rows, 10 MB. Allocators vary by some 5 MB.
    assert many["rss_mb"] - few["rss_mb"] < 10
