"""A large run that is stopped or killed, or a process of it: the rows of an undisturbed one; no process is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from batch_runs import bits, identity, run, table
from conftest import ROOT
from weight_files import a_full_disk

from torch_impl.batch import loading, worker
from torch_impl.batch.run import RunError

pytest_plugins = ["batch_runs"]
pytestmark = pytest.mark.usefixtures("one_thread", "photographs")


@pytest.mark.parametrize(("kills", "seed"), [(8, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_rows_are_those_of_an_undisturbed_run(weights, kills, seed):
    program = [
        sys.executable,
        str(ROOT / "tests" / "batch_kills.py"),
        weights,
        "photographs",
        ".",
        str(kills),
        str(seed),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    with open("said.json", "wb") as said, open("errors.txt", "wb") as errors:  # no pipe, which an orphan could hold
        done = subprocess.run(program, env=environment, stdout=said, stderr=errors)
    assert done.returncode == 0, Path("errors.txt").read_text()
    said = json.loads(Path("said.json").read_text())
    assert len(set(said["stages"])) >= 3, f"the kills all came at the same stage: {said['stages']}"
    assert said["rewritten"] == 0, "a finished part was done twice"
    for out in said["outs"]:
        assert bits(Path(out)) == bits(Path("undisturbed")), out
        assert identity(Path(out)) == identity(Path("undisturbed"))
        assert not list(Path(out).rglob(".part-*"))


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_finished_parts_stay_and_the_same_command_goes_on(weights, polite, monkeypatch, capsys):
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
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("writer")]
    assert not psutil.Process().children()
    run(weights, "out", rows=2)
    assert identity(Path("out")) == expected


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_its_processes_are_begun(weights, polite, monkeypatch, capsys):
    """Where PyTorch would leave them half begun, and complain."""
    kind, handler = torch.utils.data.dataloader._MultiProcessingDataLoaderIter, signal.getsignal(signal.SIGTERM)
    reset = kind._reset

    def interrupted(self, *more, **settings):
        os.kill(os.getpid(), polite)
        time.sleep(0.2)
        reset(self, *more, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_reset", interrupted)
        run(weights, "out", "--loaders", 2, status=130)
    signal.signal(signal.SIGTERM, handler)
    assert capsys.readouterr().err.count("\n") == 1
    assert not psutil.Process().children()


def in_the_middle(weights, *more):
    """A run in a process group of its own, and the processes that decode for it, once it has written something."""
    command = [
        sys.executable,
        "-m",
        "torch_impl",
        "batch",
        "photographs",
        "--out",
        "out",
        "--weights",
        weights,
        "--quiet",
    ]
    command += ["--device", "cpu", "--methods", "smoothgrad", "--samples", "200", "--part-rows", "1", "--loaders", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open("errors.txt", "wb") as errors:  # no pipe, which an orphan could hold
        started = subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True)
    while not list(Path("out").glob("rows/part-*")):
        assert started.poll() is None
        time.sleep(0.01)
    return started, psutil.Process(started.pid).children(recursive=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_reaches_all_processes_and_none_is_left(weights):
    started, loaders = in_the_middle(weights)
    assert len(loaders) == 2
    for loader in loaders:  # else one would end with a traceback
        ignored = int(re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{loader.pid}/status").read_text())[1], 16)
        assert ignored >> (signal.SIGINT - 1) & 1
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait() == 130
    assert Path("errors.txt").read_text().count("\n") == 1, Path("errors.txt").read_text()
    assert not psutil.wait_procs(loaders, timeout=10)[1]


def test_no_process_outlives_a_run_that_is_killed(weights):
    """However much they still have to say."""
    for number in range(1000):
        Path("photographs", f"{100 + number}.jpg").write_bytes(b"no photograph")
    started, loaders = in_the_middle(weights)
    started.kill()
    started.wait()
    assert len(loaders) == 2
    assert not psutil.wait_procs(loaders, timeout=10)[1]


def test_a_process_that_is_killed_is_one_line_and_the_same_command_goes_on(weights, monkeypatch, capsys):
    """As by a system that is out of memory."""
    expected = identity(run(weights, "expected"))
    decode = loading.images.load_bytes

    def killed(data, *, path, **more):
        if path.endswith("/17.jpg"):
            while not list(Path("out/rows").glob("part-*")):  # or it may be too early for a finished part
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, path=path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loading.images, "load_bytes", killed)
        patch.setattr(loading, "PIECE", 1)
        handler = signal.getsignal(signal.SIGCHLD)
        run(weights, "out", "--loaders", 2, status=2)
        assert signal.getsignal(signal.SIGCHLD) == handler
    said = capsys.readouterr().err
    assert "a process that decodes has died" in said
    assert "finished parts are kept" in said
    assert said.count("\n") == 1
    assert 0 < table(Path("out")).num_rows < 23
    assert not psutil.Process().children()
    run(weights)
    assert identity(Path("out")) == expected


def test_no_memory_in_a_process_is_one_line(weights, monkeypatch, capsys):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(loading, "decoded", full)
    run(weights, status=2)
    said = capsys.readouterr().err
    assert "out of memory: give fewer --loaders" in said
    assert said.count("\n") == 1
    assert not psutil.Process().children()


def test_no_shared_memory_is_one_line():
    with a_full_disk(6000), pytest.raises(RunError, match="no 5 MB of shared memory"):
        loading._shared((34, 12, 64, 64, 3))
