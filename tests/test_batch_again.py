"""A run that is started again: what may have passed is tried again, what is damaged is done again, and nothing binds for ever."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from batch_runs import batch, identity, make_photographs, table
from conftest import ROOT

from torch_impl import images
from torch_impl.batch import work
from torch_impl.images import ImageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photographs(tmp_path / "p", 8)
    return tmp_path


def run(weights, *more, status=0):
    assert batch(weights, "p", "--out", "out", "--methods", "gradcam", "--part-rows", 4, *more) == status


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_may_pass_is_tried_again(weights, here, monkeypatch, number):
    run(weights)
    undisturbed = identity(here / "out")
    for path in (here / "out" / "rows").iterdir():
        path.unlink()
    read = images.read_file

    def failing(path):
        if path.endswith("5.jpg"):
            raise images.unreadable(path, OSError(number, os.strerror(number)))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read_file", failing)
        run(weights, status=3)
        assert [row["path"] for row in table(here / "out").to_pylist() if row["error"]] == ["p/5.jpg"]
        run(weights, status=3)
    run(weights)
    assert identity(here / "out") == undisturbed


def test_what_does_not_pass_is_not_done_again(weights, here, monkeypatch):
    (here / "p" / "3.jpg").write_bytes(b"no photograph")
    run(weights, status=3)
    monkeypatch.setattr(work.Worker, "rows", lambda *_: pytest.fail("done again"))
    run(weights, status=3)
    os.utime(here / "p" / "3.jpg")  # another time, the same bytes
    run(weights, status=3)


def test_a_file_that_was_not_there_and_is_back(weights, here):
    (here / "list.csv").write_text("path\n" + "".join(f"p/{i}.jpg\n" for i in range(8)))
    data = (here / "p" / "6.jpg").read_bytes()
    (here / "p" / "6.jpg").unlink()
    for status in (3, 3):
        assert batch(weights, "list.csv", "--out", "out", "--methods", "gradcam", "--part-rows", 4) == status
    (here / "p" / "6.jpg").write_bytes(data)
    assert batch(weights, "list.csv", "--out", "out", "--methods", "gradcam", "--part-rows", 4) == 0


def test_an_error_says_whether_it_may_pass_also_across_processes():
    import pickle

    for passing in (True, False):
        error = pickle.loads(pickle.dumps(ImageError("a", "b", passing)))
        assert (error.path, error.problem, error.passing) == ("a", "b", passing)


def test_a_part_with_a_damaged_page_is_done_again_and_named(weights, here, capsys):
    run(weights)
    undisturbed = identity(here / "out")
    part = here / "out" / "rows" / "part-000001.parquet"
    chunks = pq.read_metadata(part).row_group(0)
    key = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "key")
    start = key.dictionary_page_offset or key.data_page_offset
    data = bytearray(part.read_bytes())
    for i in range(start, start + key.total_compressed_size):  # the footer stays whole
        data[i] ^= 0x5A
    part.write_bytes(bytes(data))
    os.utime(here / "p" / "6.jpg")
    capsys.readouterr()
    run(weights)
    assert "part 1: damaged: done again" in capsys.readouterr().err
    assert identity(here / "out") == undisturbed


def test_settings_without_a_single_row_bind_nobody(weights, here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(work.Worker, "rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        run(weights, status=130)
    assert batch(weights, "p", "--out", "out", "--methods", "gradcam++") == 0
    assert batch(weights, "p", "--out", "out", "--methods", "gradcam") == 2  # now there are rows


def test_what_a_killed_program_left_behind_goes(weights, here):
    run(weights)
    left = here / "out" / ".part-left"
    left.mkdir()
    (left / "figure.png").write_bytes(b"")
    run(weights)
    assert not left.exists()


def test_memory_that_runs_out_outside_the_network(weights, here, monkeypatch):
    compute, sizes = work.Explainer.compute, []

    def tight(self, pixels, *more, **named):
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, pixels, *more, **named)

    monkeypatch.setattr(work.Explainer, "compute", tight)
    run(weights)
    assert sizes[:3] == [4, 2, 1]
    assert set(sizes[3:]) == {1}


def test_with_a_given_batch_size_it_is_one_line(weights, here, monkeypatch, capsys):
    monkeypatch.setattr(work.Explainer, "compute", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("…")))
    run(weights, "--batch-size", 2, status=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "with 2 in a batch: give a smaller --batch-size" in line


def test_processes_that_decode_do_not_outlive_their_parent(here):
    code = (
        "import sys, time; from torch_impl.batch.loading import Loader\n"
        "if __name__ == '__main__':\n"
        "    loader = Loader(64, 'lab', processes=2); loader._submit([]).result()\n"
        "    print(*loader._pool._processes, flush=True); time.sleep(60)\n"
    )
    (here / "parent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "parent.py"], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    children = [int(text) for text in parent.stdout.readline().split()]
    assert children
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(child) for child in children):
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
