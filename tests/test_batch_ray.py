"""The Ray runner, on clusters really started: the same rows, a worker killed in the middle, errors as lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from batch_runs import METHODS, batch, bits, identity, make_photographs, same_logits, table
from conftest import ROOT

from torch_impl import read_maps
from torch_impl.batch import on_ray
from torch_impl.batch.plan import RunError

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, in processes of their own, and this process connected to them."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False},
        )
        started.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photographs(Path("photographs"), 22)
    Path("photographs/3b.jpg").write_bytes(b"not a photograph")
    Path("classes.csv").write_text("path,class\n0.jpg,7\n0.jpg,2\n1.jpg,99\n")
    return tmp_path


def run(weights, out, *more, status=3, runner="ray"):
    options = ["--classes", "classes.csv", "--methods", METHODS, "--part-rows", 3, "--runner", runner]
    assert batch(weights, "photographs", "--out", out, *options, *more) == status
    return Path(out)


def workers() -> list[psutil.Process]:
    """The actors' processes, on any node of this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::") and "Actor" in line:
            found.append(process)
    return found


def test_two_nodes_give_the_same_rows_as_this_process(cluster, weights, here):
    local = run(weights, "local", "--batch-size", "2", runner="local")
    distributed = run(weights, "ray", "--batch-size", "2")
    assert identity(distributed) == identity(local)
    assert bits(distributed) == bits(local), "equal micro-batches, threads and device"
    other = run(weights, "other", "--batch-size", "1", "--workers", "1:2")
    assert identity(other) == identity(local)
    a, b = read_maps(local, where="error is None"), read_maps(other, where="error is None")
    same_logits(a, b)


def test_a_run_begun_by_one_runner_is_gone_on_with_by_the_other(cluster, weights, here):
    expected = run(weights, "expected", "--batch-size", "2", runner="local")
    out = run(weights, "out", "--batch-size", "2", "--limit", "7", runner="local")
    kept = (out / "rows" / "part-000001.parquet").stat().st_mtime_ns
    run(weights, "out", "--batch-size", "2")
    assert (out / "rows" / "part-000001.parquet").stat().st_mtime_ns == kept
    assert bits(out) == bits(expected)


def test_a_worker_killed_in_the_middle_loses_nothing(cluster, weights, here):
    expected = run(weights, "expected", "--batch-size", "1", runner="local")
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set() and len(killed) < 2:
            begun = len(list(Path("out/rows").glob("part-*"))) if Path("out/rows").exists() else 0
            for process in workers() if begun > 2 * len(killed) else []:
                process.send_signal(signal.SIGKILL)
                killed.append(begun)
                break
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        run(weights, "out", "--batch-size", "1", "--methods", "gradcam,gradcam++,smoothgrad", "--samples", "40")
    finally:
        stop.set()
        thread.join()
    run(
        weights,
        "whole",
        "--batch-size",
        "1",
        "--methods",
        "gradcam,gradcam++,smoothgrad",
        "--samples",
        "40",
        runner="local",
    )
    total = len(list(Path("out/rows").glob("part-*")))
    assert killed, "nobody was killed"
    assert killed[0] < total, "too late to be in the middle"
    assert identity(Path("out")) == identity(expected)
    assert bits(Path("out")) == bits(Path("whole"))


def test_strict_and_wrong_classes_stop_with_one_line(cluster, weights, here, capfd):
    run(weights, "out", "--strict", status=2)
    said = capfd.readouterr().err
    assert "--strict" in said
    assert said.count("\n") == 1, said


def test_a_disk_that_is_full_for_a_worker_is_one_line(cluster, weights, here, capfd, monkeypatch):
    out = Path("out")
    survey = on_ray.run_ray

    def then(*args, **more):
        for path in out.rglob("*"):  # the folder goes away between the driver's look and the workers'
            if path.is_file():
                path.unlink()
        return survey(*args, **more)

    monkeypatch.setattr(on_ray, "run_ray", then)
    run(weights, out, status=2)
    said = capfd.readouterr().err
    assert "is not the folder of this run" in said
    assert "all nodes share" in said
    assert said.count("\n") == 1, said


def test_more_than_the_cluster_has_is_one_line(cluster, weights, here, capfd):
    run(weights, "out", "--cpus-per-worker", "64", status=2)
    run(weights, "out", "--gpus-per-worker", "0.5", status=2)
    run(weights, "out", "--device", "cuda", status=2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3, lines
    assert "an actor needs 64 CPUs and 0 GPUs, and this Ray cluster has 2 and 0 in all" in lines[0]
    assert "this Ray cluster has no GPUs" in lines[2]


def test_capacity_counts_fractions_of_a_gpu():
    assert on_ray._capacity({"CPU": 16, "GPU": 2}, 1, 0.5) == 4
    assert on_ray._capacity({"CPU": 3, "GPU": 2}, 1, 0.5) == 3
    assert on_ray._capacity({"CPU": 8}, 3, 0) == 2
    assert on_ray._capacity({"CPU": 8}, 1, 1) == 0


def test_a_part_that_kills_its_workers_is_given_up(weights, here, monkeypatch):
    """From the second try on a process of its own decodes; after the fourth, one line."""
    from torch_impl.batch import loading, work
    from torch_impl.batch.entries import File, Item
    from torch_impl.batch.plan import Part
    from torch_impl.batch.store import Store

    store = Store(run(weights, "out", "--batch-size", "2", runner="local"))
    actor = on_ray.Actor.__new__(on_ray.Actor)
    actor.run, actor.store = store.read_run(), store
    actor.settings = on_ray.Settings("out", "cpu", 2, 0, False, 1)
    actor.worker = work.Worker(work.make_explainer(tiny_network(weights), actor.run.plan, "cpu"), actor.run.plan, 2)
    part = Part(0, tuple(Item(i, f"{i}", f"{i}", None, File(f"photographs/{i}.jpg"), (1, 1)) for i in range(3)))
    used = []
    start = loading.Loader.__init__

    def noted(self, *args, processes=0, **more):
        used.append(processes)
        start(self, *args, processes=0, **more)

    monkeypatch.setattr(loading.Loader, "__init__", noted)
    assert actor._done(part) == (3, 0)
    assert actor._done(part) == (3, 0)  # it is there: a worker that died later need not do it again
    assert used == [0]
    store.remove_part(0)
    store.begun(0)  # and then it died
    assert actor._done(part) == (3, 0)
    assert used == [0, 1]
    store.remove_part(0)
    for _ in range(on_ray.TRIES):
        store.begun(0)
    with pytest.raises(RunError, match="has lost its worker 4 times"):
        actor._done(part)


def tiny_network(path):
    from torch_impl.weights import load_network

    return load_network(path)


def test_without_ray_one_line_says_what_to_install(weights, here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    run(weights, "out", status=2)
    said = capsys.readouterr().err
    assert "pip install 'attention-maps[ray]'" in said
    assert said.count("\n") == 1
    assert not Path("out").exists()
    with pytest.raises(RunError):
        on_ray.require_ray()


@pytest.mark.slow
def test_no_cluster_at_an_address_is_one_line(weights, here):
    """In a process of its own, which is connected to nothing."""
    found = program(weights, "--address", "127.0.0.1:1", timeout=200, RAY_NUM_REDIS_GET_RETRIES="1")
    assert found.returncode == 2
    lines = [line for line in found.stderr.splitlines() if line.startswith("attention-maps: error:")]
    assert len(lines) == 1, found.stderr
    assert "no Ray cluster at '127.0.0.1:1'" in lines[0]


@pytest.mark.slow
def test_a_cluster_is_started_and_is_quiet_and_interrupted_goes_on(weights, here):
    expected = run(weights, "expected", runner="local")
    started = subprocess.Popen(
        command(weights, "--methods", METHODS),
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(Path("out").glob("rows/part-*")):
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=120)
    assert started.returncode in (130, 3), said
    found = program(weights)
    assert found.returncode == 3, found.stderr
    assert identity(Path("out")) == identity(expected)
    assert not [line for line in found.stderr.splitlines() if "ray" in line.lower()], found.stderr
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["rows"] == table(Path("out")).num_rows


def command(weights, *more):
    given = ["photographs", "--out", "out", "--classes", "classes.csv", "--part-rows", "3", "--runner", "ray"]
    return [sys.executable, "-m", "torch_impl", "batch", *given, "--weights", weights, "--methods", METHODS, *more]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def program(weights, *more, timeout=300, **variables):
    return subprocess.run(
        command(weights, *more), env=environment(**variables), capture_output=True, text=True, timeout=timeout
    )


def test_the_readme_of_ray_reads_the_rows(cluster, weights, here):
    out = run(weights, "out", "--batch-size", "2", runner="local")
    rows = ray.data.read_parquet(str((out / "rows").absolute())).take_all()
    rows.sort(key=lambda row: row["index"])
    assert len(rows) == 24
    expected = table(out)["gradcam"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(np.stack([np.asarray(row["gradcam"]) for row in rows]), expected)
    assert torch.get_num_threads() == 1
