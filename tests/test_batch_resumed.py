"""A large run that is gone on with: changes noticed; every error one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from batch_runs import METHODS, batch, bits, identity, run, table
from weight_files import a_full_disk

from parity.contract.network import write
from torch_impl.batch import loading, worker
from torch_impl.batch import run as run_module

pytest_plugins = ["batch_runs"]
pytestmark = pytest.mark.usefixtures("one_thread", "photographs")


def replaced(path: Path, data: bytes) -> None:
    path.unlink()  # never through the link
    path.write_bytes(data)


def written_at(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}


def refusal(capsys, weights, *more, out="out"):
    """One line, and nothing changes."""
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    run(weights, out, *more, status=2)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before, "something changed"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_the_same_command_goes_on_where_it_stopped(weights, monkeypatch, capsys):
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
    given = ["photographs", "--out", "out", "--methods", METHODS, "--part-rows", 4, "--batch-size", 2]
    assert batch(weights, *given, quiet=False) == 3
    assert capsys.readouterr().out.splitlines()[-1].split() == ["kept", "out/rows"]


def damaged_page(part: Path) -> bytes:
    """The footer stays whole."""
    chunks = pq.read_metadata(part).row_group(0)
    key = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "key")
    start = key.dictionary_page_offset or key.data_page_offset
    data = part.read_bytes()
    middle = bytes(byte ^ 0x5A for byte in data[start : start + key.total_compressed_size])
    return data[:start] + middle + data[start + key.total_compressed_size :]


def test_a_damaged_part_is_done_again_and_named(weights, capsys):
    out = run(weights)
    expected, part = identity(out), out / "rows" / "part-000001.parquet"
    another = (out / "rows" / "part-000002.parquet").read_bytes()
    for damage in (b"PAR1 and then nothing", damaged_page(part), another):
        part.write_bytes(damage)
        (out / "rows" / ".part-left.parquet").write_bytes(b"half of one")
        (out / ".part-left").mkdir()
        run(weights)
        assert "part 1: damaged, or of another run: done again" in capsys.readouterr().err
        assert identity(out) == expected
        assert not list(out.rglob(".part-*"))


def test_what_may_pass_is_tried_again(weights, monkeypatch):
    expected = identity(run(weights, "expected"))
    read = loading.Reader.read

    def failing(self, item):
        if item.path.endswith("/5.jpg"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(loading.Reader, "read", failing)
        for _ in range(2):
            run(weights)
            said = {row["path"]: row["error"] for row in table(Path("out")).to_pylist()}["photographs/5.jpg"]
            assert said == "cannot be read now: Too many open files"
    run(weights)
    assert identity(Path("out")) == expected


def test_other_settings_are_refused_by_name(weights, capsys):
    Path("first.txt").write_text("the same\na\n" + "c\n" * 8)
    Path("labels.txt").write_text("the same\nb\n" + "c\n" * 8)
    run(weights, "out", "--labels", "first.txt")
    for option, said in {
        "--labels labels.txt": "labels a there, b here",
        "--methods vanilla": "methods gradcam,gradcam_plus_plus there, vanilla here",
        "--resize torchvision": "resize lab there, torchvision here",
        "--input torchvision": "input caffe there, torchvision here",
        "--resolution full": "resolution raw there, full here",
        "--precision fp64": "precision fp32 there, fp64 here",
        "--engine library": "engine shared there, library here",
        "--part-rows 5": "part size 4 there, 5 here",
        "--seed 3": "seed 0 there, 3 here",
    }.items():
        message = refusal(capsys, weights, "--labels", "first.txt", *option.split())
        assert said in message
        assert "another --out" in message


def test_other_weights_are_refused_and_the_same_under_another_name_are_not(weights, capsys, tiny):
    run(weights)
    changed = dict(tiny.tensors)
    changed["classifier.6.bias"] = changed["classifier.6.bias"] + 1
    write(replace(tiny, tensors=changed), "other.safetensors")
    assert "weights' fingerprint" in refusal(capsys, "other.safetensors")
    write(replace(tiny, source="renamed"), "renamed.safetensors")
    run("renamed.safetensors")


def test_settings_without_a_single_row_bind_nobody(weights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "parts", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(weights, status=130)
    run(weights, "out", "--methods", "gradcam++")
    run(weights, "out", "--methods", "gradcam", status=2)  # now there are rows


def test_a_changed_photograph_is_refused_by_name_or_done_again(weights, capsys):
    out = run(weights)
    replaced(Path("photographs/7.jpg"), Path("photographs/8.jpg").read_bytes())
    said = refusal(capsys, weights)
    assert "'photographs/7.jpg' has changed: add --redo-changed to do this part again" in said
    before = written_at(out)
    run(weights, "out", "--redo-changed")
    assert "part 2: 'photographs/7.jpg' has changed: done again" in capsys.readouterr().err
    assert [name for name, written in written_at(out).items() if before[name] != written] == ["part-000002.parquet"]
    assert identity(out) == identity(run(weights, "afresh"))


def test_photographs_that_come_or_go(weights, capsys):
    out = run(weights)
    data = Path("photographs/19.jpg").read_bytes()
    Path("photographs/4b.jpg").write_bytes(data)
    assert "'photographs/4b.jpg' is listed where 'photographs/5.jpg' was" in refusal(capsys, weights)
    Path("photographs/4b.jpg").unlink()
    Path("photographs/20.jpg").write_bytes(data)  # at the end: the listing has grown
    run(weights)
    assert table(out).num_rows == 24
    Path("photographs/20.jpg").unlink()
    assert "'photographs/20.jpg' is no longer listed" in refusal(capsys, weights)
    assert "the rows of part 3 are no longer listed" in refusal(capsys, weights, "--limit", "12")
    run(weights, "out", "--redo-changed")
    assert identity(out) == identity(run(weights, "afresh"))


def test_changed_classes_are_noticed(weights, capsys):
    Path("classes.csv").write_text("path,class\n0.jpg,7\n")
    run(weights, "out", "--classes", "classes.csv")
    Path("classes.csv").write_text("path,class\n0.jpg,8\n")
    assert "'photographs/0.jpg' has changed, or its class" in refusal(capsys, weights, "--classes", "classes.csv")


def test_what_changes_while_the_run_goes_on_is_noticed_by_the_next_start(weights, monkeypatch, capsys):
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
    assert "'photographs/2b.jpg' is listed where 'photographs/3.jpg' was" in refusal(capsys, weights)


# Errors of the machine

LOCKED = "import fcntl, sys; file = open('out/.lock', 'wb'); fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_two_runs_on_one_folder_the_second_is_refused(weights, capsys):
    Path("out").mkdir()
    holder = [sys.executable, "-c", LOCKED + "; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        run(weights, status=2)
        other.stdin.close()
    assert "another run is at work on this folder" in capsys.readouterr().err
    run(weights)  # the lock file that it left does not block


def test_a_run_keeps_others_out_while_it_works(weights, monkeypatch):
    explained, said = worker.Worker._explained, []

    def watched(self, *more):
        if not said:
            said.append(subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True).stderr)
        return explained(self, *more)

    monkeypatch.setattr(worker.Worker, "_explained", watched)
    run(weights)
    assert "BlockingIOError" in said[0]
    assert subprocess.run([sys.executable, "-c", LOCKED]).returncode == 0


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(weights, monkeypatch, capsys):
    expected = identity(run(weights, "expected"))
    shared = loading._shared((34, loading.PIECE, 64, 64, 3))  # which the limit would count as a file
    with monkeypatch.context() as patch, a_full_disk(6000):
        patch.setattr(loading, "_shared", lambda shape: shared)
        run(weights, status=2, rows=256)
    assert "File too large" in capsys.readouterr().err
    assert not list(Path("out/rows").iterdir())
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


def test_a_folder_that_cannot_be_written_is_one_line(weights, monkeypatch, capsys):
    def refused(*args, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "out")

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Path, "mkdir", refused)
        run(weights, status=2)
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert said.count("\n") == 1


def test_somebody_elses_folder_is_left_alone(weights, capsys):
    Path("out").mkdir()
    Path("out/letter.txt").write_text("dear")
    assert "no run of this program" in refusal(capsys, weights)
    Path("file").write_text("")
    for out in ("file", "file/below", " "):
        refusal(capsys, weights, out=out)


def test_a_run_json_of_another_version_is_refused(weights, capsys):
    file = run(weights) / "run.json"
    said = json.loads(file.read_text())
    for text, words in {
        json.dumps(said | {"format": "attention-maps batch 99"}): "attention-maps batch 99",
        json.dumps({"format": said["format"]}): "damaged",
        "{": "cannot be read",
    }.items():
        file.write_text(text)
        assert words in refusal(capsys, weights)
    file.unlink()
    assert "no run of this program" in refusal(capsys, weights)


def test_strict_stops_at_the_first_bad_photograph(weights, capsys):
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
