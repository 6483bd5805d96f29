"""A large set's run: the same rows however it is cut, stopped and killed; changes noticed; every error one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import test_sources
import torch
from batch_runs import METHODS, Killer, batch, bits, identity, make_photographs, same_logits, table
from conftest import ROOT
from tolerances import FLOAT16_KEPT, FLOAT32

from parity.contract.network import write
from torch_impl import Explainer, read_maps
from torch_impl.batch import local, sources, store, work
from torch_impl.batch.entries import File, Item
from torch_impl.batch.loading import Loader, load
from torch_impl.batch.plan import Part, parts
from torch_impl.batch.progress import RunProgress, duration
from torch_impl.batch.sources import open_inputs
from torch_impl.batch.store import Store
from torch_impl.batching import OutOfMemoryError
from torch_impl.methods import MapError, finish

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


# What is in the rows


def test_a_row_is_what_explain_says_of_the_photograph(weights, here, tiny):
    # In float64, so that what is left is the storage alone.
    more = ["--samples", "3", "--seed", "5", "--precision", "fp64"]
    out = run(weights, "out", "--methods", "vanilla,smoothgrad,gradcam,gradcam++", *more)
    found = read_maps(out, where="error is None")
    assert len(found) == 20
    names = [row["path"] for row in found.rows.to_pylist()]
    expected = Explainer.vgg16(tiny, device="cpu", precision="fp64")(
        names, methods=["vanilla", "smoothgrad", "gradcam", "gradcam++"], n_samples=3, seed=5
    )
    for row, said in zip(found.rows.to_pylist(), expected.manifest["photographs"], strict=True):
        assert (row["sha256"], row["class"], row["label"]) == (said["sha256"], said["class"], said["label"])
        assert row["logit"] == pytest.approx(said["logit"], rel=FLOAT32)
        assert [one["class"] for one in row["top5"]] == [one["class"] for one in said["top5"]]
    for method in ("vanilla", "smoothgrad", "gradcam", "gradcam++"):
        raw = torch.from_numpy(found[method])
        finished = finish(raw, (64, 64)).numpy()
        worst = float(np.abs(finished - expected[method]).max())
        assert worst <= FLOAT16_KEPT, f"{method}: {worst}"


def test_full_maps_are_the_finished_ones(weights, here, tiny):
    found = read_maps(run(weights, "out", "--resolution", "full"), where="error is None", limit=3)
    expected = Explainer.vgg16(tiny, device="cpu")([row["path"] for row in found.rows.to_pylist()], methods=["gradcam"])
    assert found["gradcam"].shape == (3, 64, 64)
    assert float(np.abs(found["gradcam"] - expected["gradcam"]).max()) <= FLOAT16_KEPT


def test_a_bad_photograph_is_a_row_with_its_reason(weights, here):
    out = run(weights)
    bad = {row["path"]: row for row in table(out).to_pylist() if row["error"]}
    assert sorted(bad) == ["photographs/3b.jpg", "photographs/5b.jpg", "photographs/9b.png"]
    assert bad["photographs/3b.jpg"]["error"].startswith("not a photograph")
    assert all(row["class"] is None and row["gradcam_low"] is None for row in bad.values())
    there = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in bad}
    there["photographs/9b.png"] = None  # nothing was read of it
    assert {name: row["sha256"] for name, row in bad.items()} == there
    assert np.isnan(read_maps(out, where="error is not None")["gradcam"]).all()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == 23
    assert sum(summary["errors"].values()) == 3


@pytest.mark.parametrize("contain", [test_sources.in_folder, test_sources.in_tar, test_sources.in_hugging_face])
def test_every_awkward_file_is_a_row_in_any_container(weights, tmp_path, monkeypatch, contain):
    monkeypatch.chdir(tmp_path)
    mixed = [data for pair in zip(test_sources.AWKWARD, test_sources.FINE, strict=False) for data in pair]
    rows = table(run(weights, inputs=contain(mixed))).to_pylist()
    assert len(rows) == len(mixed)
    assert [row["error"] is None for row in rows] == [False, True] * (len(mixed) // 2)
    assert all(row["error"].isprintable() for row in rows if row["error"])
    assert [row["sha256"] for row in rows[1::2]] == [hashlib.sha256(data).hexdigest() for data in mixed[1::2]]


def test_classes_from_a_table_and_a_class_that_does_not_exist(weights, here):
    Path("classes.csv").write_text("path,class\n0.jpg,7\n0.jpg,2\n1.jpg,99\n")
    out = run(weights, "out", "--classes", "classes.csv")
    rows = table(out).to_pylist()
    assert [(r["asked"], r["class"]) for r in rows if r["path"] == "photographs/0.jpg"] == [("7", 7), ("2", 2)]
    (unknown,) = [row for row in rows if row["path"] == "photographs/1.jpg"]
    assert "class 99 does not exist" in unknown["error"]
    assert unknown["sha256"]
    top = next(row for row in rows if row["path"] == "photographs/2.jpg")
    assert top["asked"] is None
    assert top["class"] == top["top5"][0]["class"]


# The same rows, however


@pytest.mark.parametrize(
    "other", [["--batch-size", "3"], ["--part-rows", "23"], ["--loaders", "1"], ["--engine", "library"]]
)
def test_rows_do_not_depend_on_how_they_are_cut(weights, here, other):
    first = run(weights, "first", "--batch-size", "1")
    second = run(weights, "second", *other)
    assert identity(first) == identity(second)
    a, b = read_maps(first, where="error is None"), read_maps(second, where="error is None")
    same_logits(a, b)
    for method in ("gradcam", "gradcam++"):
        scale = a[method].max(axis=(1, 2), keepdims=True)
        assert float((np.abs(a[method] - b[method]) / scale).max()) <= 2 * FLOAT16_KEPT + FLOAT32


def test_rows_are_equal_bit_by_bit_for_equal_micro_batches(weights, here):
    first, second = run(weights, "first", "--batch-size", "2"), run(weights, "second", "--batch-size", "2")
    assert bits(first) == bits(second)
    third = run(weights, "third", "--batch-size", "2", "--loaders", "2")
    assert bits(first) == bits(third)


def test_memory_that_runs_out_halves_the_micro_batch_and_loses_nothing(weights, here, monkeypatch):
    expected = identity(run(weights, "expected"))
    sizes = []
    compute = Explainer.compute

    def scarce(self, pixels, *rest, **more):
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise OutOfMemoryError("out of memory on cuda with 4 in a batch: choose a smaller batch size")
        return compute(self, pixels, *rest, **more)

    monkeypatch.setattr(Explainer, "compute", scarce)
    assert identity(run(weights, "out")) == expected
    assert sizes[:3] == [4, 2, 1] or sizes[:3] == [3, 2, 1]
    assert max(sizes[3:]) == 1, "what was learnt was forgotten"


def test_memory_that_runs_out_with_a_given_batch_size_is_one_line(weights, here, monkeypatch, capsys):
    def scarce(self, pixels, *rest, **more):
        raise OutOfMemoryError("out of memory on cuda with 2 in a batch: choose a smaller batch size")

    monkeypatch.setattr(Explainer, "compute", scarce)
    run(weights, "out", "--batch-size", "2", status=2)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_map_that_is_not_finite_is_an_error_of_its_photograph_alone(weights, here, monkeypatch):
    compute = Explainer.compute
    victim = load(_items()[6:7], 64, "lab")[0].photograph.pixels

    def broken(self, pixels, *rest, **more):
        if any(np.array_equal(one, victim) for one in pixels):
            raise MapError("gradcam: not finite")
        return compute(self, pixels, *rest, **more)

    whole = table(run(weights, "whole", "--batch-size", "1")).to_pylist()
    monkeypatch.setattr(Explainer, "compute", broken)
    rows = table(run(weights, "out", "--batch-size", "4")).to_pylist()
    assert [i for i, (a, b) in enumerate(zip(whole, rows, strict=True)) if a["error"] != b["error"]] == [6]
    assert rows[6]["error"].startswith("no finite map")


def _items():
    return list(open_inputs(["photographs"]))


# Going on


def test_the_same_command_goes_on_where_it_stopped(weights, here):
    expected = run(weights, "expected", "--batch-size", "2")
    out = run(weights, "out", "--batch-size", "2", "--limit", "10", status=3)
    assert table(out).num_rows == 10
    before = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    run(weights, "out", "--batch-size", "2")
    kept = [path for path, written in before.items() if path.stat().st_mtime_ns == written]
    assert len(kept) == 2, "two parts were whole, the third has grown"
    assert bits(out) == bits(expected)


def test_a_finished_run_does_nothing(weights, here, monkeypatch):
    out = run(weights)
    before = bits(out)
    monkeypatch.setattr(work.Worker, "rows", None)
    run(weights)
    assert bits(out) == before


def test_a_damaged_part_is_done_again(weights, here, capsys):
    out = run(weights)
    expected = identity(out)
    (out / "rows" / "part-000001.parquet").write_bytes(b"PAR1 and then nothing")
    (out / "rows" / ".part-left.parquet").write_bytes(b"half of one")
    run(weights)
    assert "part 1 is damaged" in capsys.readouterr().err
    assert identity(out) == expected
    assert not list((out / "rows").glob(".*"))


def _refusal(capsys, weights, *more):
    before = capsys.readouterr() and {path: path.read_bytes() for path in Path("out/rows").iterdir()}
    run(weights, "out", *more, status=2)
    assert {path: path.read_bytes() for path in Path("out/rows").iterdir()} == before, "a refusal changed something"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--methods", "vanilla"], "methods gradcam,gradcam_plus_plus there, vanilla here"),
        (["--resize", "torchvision"], "resize lab there, torchvision here"),
        (["--input", "torchvision"], "input caffe there, torchvision here"),
        (["--resolution", "full"], "resolution raw there, full here"),
        (["--precision", "fp64"], "precision fp32 there, fp64 here"),
        (["--engine", "library"], "engine shared there, library here"),
        (["--classes", "top1"], "classes none there, top1 here"),
        (["--part-rows", "5"], "part size 4 there, 5 here"),
    ],
)
def test_other_settings_are_refused_by_name(weights, here, capsys, option, said):
    run(weights)
    message = _refusal(capsys, weights, *option)
    assert said in message
    assert "another --out" in message


def test_other_weights_are_refused_and_the_same_under_another_name_are_not(weights, here, capsys, tiny):
    from dataclasses import replace

    run(weights)
    changed = dict(tiny.tensors)
    changed["classifier.6.bias"] = changed["classifier.6.bias"] + 1
    write(replace(tiny, tensors=changed), "other.safetensors")
    assert "weights' fingerprint" in _refusal(capsys, "other.safetensors")
    write(replace(tiny, source="renamed"), "renamed.safetensors")
    run("renamed.safetensors")


def test_smoothgrads_settings_count_only_where_it_is_drawn(weights, here, capsys):
    run(weights)
    run(weights, "out", "--seed", "3")
    run(weights, "with", "--methods", "smoothgrad", "--samples", "1")
    run(weights, "with", "--methods", "smoothgrad", "--samples", "1", "--seed", "3", status=2)
    assert "seed 0 there, 3 here" in capsys.readouterr().err


def test_a_changed_photograph_is_refused_by_name_or_done_again(weights, here, capsys):
    out = run(weights)
    replaced(Path("photographs/7.jpg"), Path("photographs/8.jpg").read_bytes())
    assert "'photographs/7.jpg' has changed" in _refusal(capsys, weights)
    assert "--redo-changed" in _refusal(capsys, weights)
    kept = (out / "rows" / "part-000000.parquet").stat().st_mtime_ns
    run(weights, "out", "--redo-changed")
    assert (out / "rows" / "part-000000.parquet").stat().st_mtime_ns == kept
    assert identity(out) == identity(run(weights, "afresh"))


def test_a_touched_photograph_is_the_same(weights, here):
    run(weights)
    replaced(Path("photographs/7.jpg"), Path("photographs/7.jpg").read_bytes())
    os.utime("photographs/7.jpg", (1, 1))
    run(weights)


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
    assert "no longer listed" in _refusal(capsys, weights)
    run(weights, "out", "--redo-changed")
    assert identity(out) == identity(run(weights, "afresh"))


def test_changed_classes_are_noticed(weights, here, capsys):
    Path("classes.csv").write_text("path,class\n0.jpg,7\n")
    run(weights, "out", "--classes", "classes.csv")
    Path("classes.csv").write_text("path,class\n0.jpg,8\n")
    assert "photographs/0.jpg" in _refusal(capsys, weights, "--classes", "classes.csv")


def test_inputs_that_change_while_the_run_goes_on(weights, here, monkeypatch, capsys):
    rows = work.Worker.rows
    make_photographs(Path("late"), 4, seed=1)
    both = ("photographs", "late")

    def meddled(self, loaded):
        Path("late/0b.jpg").write_bytes(Path("late/0.jpg").read_bytes())
        return rows(self, loaded)

    with monkeypatch.context() as patch:
        patch.setattr(work.Worker, "rows", meddled)
        run(weights, "out", status=2, rows=2, inputs=both)
    said = capsys.readouterr().err
    assert "the inputs have changed while the run went on, at or after 'late/0b.jpg'" in said
    Path("late/0b.jpg").unlink()
    assert 0 < table(Path("out")).num_rows < 27
    run(weights, "out", rows=2, inputs=both)
    assert identity(Path("out")) == identity(run(weights, "afresh", rows=2, inputs=both))


# Killed


def _killed(weights, here, kills, seed):
    found = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "batch_kills.py"), weights, "photographs", ".", str(kills), str(seed)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert len(set(said["stages"])) >= 3, f"the kills all came at the same stage: {said['stages']}"
    assert said["rewritten"] == 0, "a finished part was done twice"
    for out in said["outs"]:
        assert bits(Path(out)) == bits(Path("undisturbed")), out
        assert identity(Path(out)) == identity(Path("undisturbed"))
        assert not list(Path(out).rglob(".part-*"))


def test_killed_at_any_moment_the_rows_are_those_of_an_undisturbed_run(weights, here):
    _killed(weights, here, 20, 1)


@pytest.mark.slow
def test_killed_two_hundred_times(weights, here):
    _killed(weights, here, 200, 2)


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_finished_parts_stay_and_the_same_command_goes_on(weights, here, polite, monkeypatch, capsys):
    expected = identity(run(weights, "expected", rows=2))
    rows, calls = work.Worker.rows, []

    def slow(self, loaded):
        calls.append(loaded)
        if len(calls) == 4:
            os.kill(os.getpid(), polite)
            time.sleep(1)
        return rows(self, loaded)

    handlers = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(work.Worker, "rows", slow)
        run(weights, "out", status=130, rows=2)
    signal.signal(signal.SIGTERM, handlers)
    assert "run the same command to go on" in capsys.readouterr().err
    assert table(Path("out")).num_rows == 6
    assert not list(Path("out").rglob(".part-*"))
    run(weights, "out", rows=2)
    assert identity(Path("out")) == expected


# Errors of the machine


def test_two_runs_on_one_folder_the_second_is_refused(weights, here, monkeypatch, capsys):
    inside, done = threading.Event(), threading.Event()
    rows = work.Worker.rows

    def waiting(self, loaded):
        inside.set()
        assert done.wait(60)
        return rows(self, loaded)

    with monkeypatch.context() as patch:
        patch.setattr(work.Worker, "rows", waiting)
        first = threading.Thread(target=run, args=(weights,))
        first.start()
        assert inside.wait(60)
        try:
            run(weights, status=2)
        finally:
            done.set()
            first.join()
    assert "another run is at work on this folder" in capsys.readouterr().err
    assert table(Path("out")).num_rows == 23


def test_a_lock_file_that_a_dead_process_left_does_not_block(weights, here):
    Path("out").mkdir()
    Path("out/.lock").write_text("")
    run(weights)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(weights, here, monkeypatch, capsys):
    expected = identity(run(weights, "expected"))
    flush, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        run(weights, status=2)
    said = capsys.readouterr().err
    assert "no space left" in said
    assert "run the same command to go on" in said
    assert said.count("\n") == 1
    assert not list(Path("out").rglob(".part-*"))
    assert 0 < table(Path("out")).num_rows < 23
    run(weights)
    assert identity(Path("out")) == expected


def test_a_full_disk_for_real(weights, here):
    """The system's own limit on a file's size, in a process of its own."""
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from torch_impl.__main__ import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); sys.exit(main(sys.argv[1:]))"
    found = subprocess.run(
        [sys.executable, "-c", code, "batch", "photographs", "--out", "out", "--weights", weights, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2, found.stderr
    assert "no space left (File too large)" in found.stderr
    assert found.stderr.count("\n") == 1
    assert not list(Path("out/rows").iterdir())
    run(weights, rows=256)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ESTALE])
def test_a_folder_that_cannot_be_written_is_one_line(weights, here, monkeypatch, capsys, code):
    def refused(*args, **more):
        raise OSError(code, os.strerror(code), "out")

    with monkeypatch.context() as patch:
        patch.setattr(store.Path, "mkdir", refused)
        run(weights, status=2)
    said = capsys.readouterr().err
    assert os.strerror(code) in said
    assert said.count("\n") == 1


def test_a_file_system_without_locks_is_one_line(weights, here, monkeypatch, capsys):
    def none(*args, **more):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    run(weights, status=2)
    said = capsys.readouterr().err
    assert "knows no locks" in said
    assert said.count("\n") == 1


def test_somebody_elses_folder_is_left_alone(weights, here, capsys):
    Path("out").mkdir()
    Path("out/letter.txt").write_text("dear")
    run(weights, status=2)
    assert "no run of this program" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["letter.txt"]
    Path("file").write_text("")
    run(weights, "file", status=2)
    run(weights, "file/below", status=2)
    run(weights, " ", status=2)
    assert capsys.readouterr().err.count("\n") == 3


def test_a_photograph_that_vanishes_after_it_was_listed_is_a_row(weights, here, monkeypatch):
    original = sources.read

    def vanishing(item, **more):
        if item.path.endswith("/8.jpg"):
            Path("photographs/8.jpg").unlink()
        return original(item, **more)

    monkeypatch.setattr("torch_impl.batch.loading.sources.read", vanishing)
    rows = table(run(weights)).to_pylist()
    assert [row["error"] for row in rows if row["path"] == "photographs/8.jpg"] == ["no such file"]


def test_strict_stops_at_the_first_bad_photograph(weights, here, capsys):
    run(weights, "out", "--strict", status=2)
    said = capsys.readouterr().err
    assert "'photographs/3b.jpg': not a photograph" in said
    assert said.count("\n") == 1
    run(weights)
    run(weights, "out", "--strict", status=2)
    assert "3 rows" in capsys.readouterr().err
    for name in ("3b.jpg", "5b.jpg", "9b.png"):
        Path("photographs", name).unlink()
    run(weights, "good", "--strict", status=0)


def test_a_loader_process_that_dies_costs_its_photograph_alone(here, monkeypatch):
    items = [Item(i, f"{i}", f"{i}", None, File(f"photographs/{i}.jpg"), (1, 1)) for i in range(8)]
    items[5] = Item(5, "5", "5", None, Killer(), (1, 1))
    loader: Loader[int] = Loader(64, "lab", processes=1)
    with loader:
        found = [one for _, piece in loader((i, items[i : i + 2]) for i in range(0, 8, 2)) for one in piece]
    assert [one.item.index for one in found] == list(range(8))
    assert [one.item.index for one in found if one.error] == [5]
    assert "the process that decoded it died" in found[5].error


def test_the_loader_is_bounded(here, monkeypatch):
    asked = []

    def pieces():
        for item in _items():
            asked.append(item.index)
            yield item.index, [item]

    loader: Loader[int] = Loader(64, "lab", ahead=3)
    with loader:
        for number, _ in loader(pieces()):
            assert asked[-1] - number <= 4


def test_a_writer_that_cannot_keep_up_holds_the_network_back(here, monkeypatch):
    written, release = [], threading.Event()

    class Slow:
        def write_part(self, run, part, rows, plan, about):
            assert release.wait(60)
            written.append(part)

    class Fake:
        id, plan = "x", None

    handed = []

    def feed():
        with local.Writer(Slow(), Fake(), {}) as writer:
            for i in range(5):
                writer.write(i, [])
                handed.append(i)

    thread = threading.Thread(target=feed)
    thread.start()
    time.sleep(0.3)
    assert len(handed) <= 2, "parts pile up in memory"
    release.set()
    thread.join()
    assert written == [0, 1, 2, 3, 4]


# Parts, progress, command line


def test_parts_are_cut_by_index_and_known_by_what_they_hold():
    items = [Item(i, f"k{i}", f"p{i}", None, File("f"), (1, 2)) for i in range(7)]
    cut = list(parts(items, 3))
    assert [[item.index for item in part.items] for part in cut] == [[0, 1, 2], [3, 4, 5], [6]]
    assert cut[0].digest == Part(0, tuple(items[:3])).digest
    others = [
        Item(0, "x", "p0", None, File("f"), (1, 2)),
        Item(0, "k0", "p0", "3", File("f"), (1, 2)),
        Item(0, "k0", "p0", None, File("f"), (1, 3)),
    ]
    for other in others:
        assert Part(0, (other, *items[1:3])).digest != cut[0].digest


class Terminal:
    def __init__(self, is_terminal):
        self.text, self.is_terminal = "", is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.is_terminal


def test_progress_is_a_plain_line_a_minute_in_a_pipe():
    now = [0.0]
    stream = Terminal(False)
    progress = RunProgress(stream=stream, clock=lambda: now[0])
    progress.begin(1000, 100, 1)
    for _ in range(300):
        now[0] += 1
        progress.add(2, 0)
    progress.close()
    lines = stream.text.splitlines()
    assert len(lines) == 5
    assert lines[0] == "220 of 1,000 (22 %), 2/s, 6 min left, 1 error"
    assert "\r" not in stream.text


def test_progress_moves_one_line_on_a_terminal_and_leaves_none():
    now = [0.0]
    stream = Terminal(True)
    progress = RunProgress(stream=stream, clock=lambda: now[0])
    progress.begin(10, 0, 0)
    now[0] = 1
    progress.add(5, 2)
    assert stream.text == "\r\x1b[K5 of 10 (50 %), 5/s, 1 s left, 2 errors"
    progress.close()
    assert stream.text.endswith("\r\x1b[K")
    quiet = Terminal(True)
    RunProgress(stream=quiet, quiet=True).add(1, 0)
    assert not quiet.text


def test_durations():
    assert [duration(s) for s in (3, 89, 600, 7980, 273600)] == ["3 s", "89 s", "10 min", "2 h 13 min", "3 d 4 h"]


def test_the_summary_counts_and_sorts_the_errors(weights, here, capsys):
    assert batch(weights, "photographs", "--out", "out", quiet=False) == 3
    said = capsys.readouterr().out
    assert "rows      23: 20 explained, 3 with an error" in said
    assert "1 not a photograph" in said
    assert "fingerprint" in said


@pytest.mark.parametrize(
    "wrong",
    [
        ["--workers", "0"],
        ["--workers", "5:2"],
        ["--gpus-per-worker", "1.5"],
        ["--part-rows", "0"],
        ["--limit", "-1"],
        ["--loaders", "many"],
        ["--resolution", "half"],
    ],
)
def test_options_out_of_range_are_one_line(weights, here, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        batch(weights, "photographs", "--out", "out", *wrong)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("wrong", [["--methods", "grad"], ["--methods", "gradcam,,vanilla"], ["--device", "abacus"]])
def test_values_that_are_unknown_are_one_line_and_leave_nothing_behind(weights, here, capsys, wrong):
    assert batch(weights, "photographs", "--out", "out", *wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert batch(weights, "nowhere", "--out", "out") == 2
    assert batch("missing.safetensors", "photographs", "--out", "out") == 2
    assert not Path("out").exists()
    run(weights)


def test_a_run_json_of_another_version_is_refused(weights, here, capsys):
    out = run(weights)
    said = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(said | {"format": "attention-maps batch 99"}))
    run(weights, status=2)
    assert "attention-maps batch 99" in capsys.readouterr().err
    (out / "run.json").write_text('{"format": "attention-maps batch 1"}')
    run(weights, status=2)
    assert "damaged" in capsys.readouterr().err
    (out / "run.json").unlink()
    run(weights, status=2)
    assert "no run.json" in capsys.readouterr().err


def test_store_refuses_rows_of_another_part():
    with pytest.raises(AssertionError):
        Store("x").write_part("id", Part(0, (Item(0, "k", "p", None, File("f"), (1, 2)),)), [], None, {})


@pytest.mark.slow
def test_memory_and_cost_of_a_longer_run(tmp_path):
    """The benchmark itself, short: four times the photographs need no more memory, and no more seconds each."""
    from benchmarks import large

    assert large.main(["growth", "--photographs", "1000,4000", "--json", str(tmp_path / "figures.json")]) == 0
    few, many = json.loads((tmp_path / "figures.json").read_text())["runs"]
    # 3000 photographs more, held decoded, would be 37 MB; their maps and rows, 10 MB. Allocators vary by some 5 MB.
    assert many["rss_mb"] - few["rss_mb"] < 10
    assert many["seconds"] < 4 * few["seconds"], "the fixed part is paid once"
