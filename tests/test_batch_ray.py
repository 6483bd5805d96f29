"""The Ray runner, on clusters really started: the same rows, a worker killed in the middle, errors as lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import util
from pathlib import Path

import numpy as np
import psutil
import pytest
from batch_runs import METHODS, batch, bits, identity, make_photographs, table
from conftest import ROOT

from torch_impl.batch import on_ray, worker
from torch_impl.batch.run import Run, RunError
from torch_impl.weights import load_network

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(util.find_spec("ray") is None, reason="no Ray here"),
]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, in processes of their own, and this process connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        head = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args=head)
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
    Path("classes.csv").write_text("path,class\n0.jpg,a cup\n0.jpg,2\n1.jpg,99\n")
    Path("labels.txt").write_text("\n".join("abcdefg") + "\na cup\ni\nj\n")
    return tmp_path


def run(weights, out, *more, status=3, runner="ray"):
    options = ["--classes", "classes.csv", "--labels", "labels.txt", "--methods", METHODS]
    options += ["--part-rows", 3, "--runner", runner]
    assert batch(weights, "photographs", "--out", out, *options, *more) == status
    return Path(out)


def workers() -> list[psutil.Process]:
    """The actors' processes, on any node of this machine."""
    lines = {process: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
    return [process for process, line in lines.items() if line.startswith("ray::") and "Actor" in line]


@pytest.mark.slow
def test_two_nodes_go_on_with_a_run_of_this_process_and_a_killed_worker_loses_nothing(cluster, weights, here):
    import ray.data

    slow = ["--batch-size", "1", "--methods", "gradcam,smoothgrad", "--samples", "40"]
    expected = run(weights, "expected", *slow, runner="local")
    out = run(weights, "out", *slow, "--limit", "4", runner="local")
    first, killed, stop = out / "rows" / "part-000000.parquet", [], threading.Event()
    kept = first.stat().st_mtime_ns

    def parts() -> int:
        return len(list(Path("out/rows").glob("part-*")))

    def kill() -> None:
        while not stop.wait(0.02) and not killed:
            for process in workers()[:1] if parts() > 2 else []:
                process.send_signal(signal.SIGKILL)
                killed.append(parts())

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        run(weights, "out", *slow, "--workers", "1:2")
    finally:
        stop.set()
        thread.join()
    assert killed, "nobody was killed"
    assert killed[0] < parts(), "too late to be in the middle"
    assert first.stat().st_mtime_ns == kept
    assert identity(out) == identity(expected)
    assert bits(out) == bits(expected), "equal micro-batches, threads and device"
    rows = ray.data.read_parquet(str(first.parent.absolute())).take_all()  # as the documentation reads them
    rows.sort(key=lambda row: row["index"])
    assert rows[0]["label"] == "a cup"
    maps = table(expected)["gradcam"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(np.stack([np.asarray(row["gradcam"]) for row in rows]), maps)


@pytest.mark.slow
def test_errors_are_one_line(cluster, weights, here, capfd):
    run(weights, "strict", "--strict", "--workers", "1", status=2)
    for more in (["--cpus-per-worker", "64"], ["--gpus-per-worker", "0.5"], ["--device", "cuda"]):
        run(weights, "out", *more, status=2)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("attention-maps: ")]
    assert len(lines) == 4, lines
    assert "--strict" in lines[0]
    assert "an actor needs 64 CPUs and 0 GPUs, and this Ray cluster has 2 and 0 in all" in lines[1]
    assert "this Ray cluster has no GPUs" in lines[3]


def test_an_actor_that_does_not_see_the_runs_folder_says_so(weights, here):
    out = run(weights, "out", "--limit", "1", status=0, runner="local")
    for folder in ("elsewhere", str(out)):
        actor = on_ray.Actor(folder, "the id of this run", on_ray.Cluster(loaders=1), [])
        (said,) = actor({"number": np.array([0])})["failure"]
        assert "is not the folder of this run: --out must be on a file system that all nodes share" in said


def test_a_cluster_holds_so_many_actors_and_gives_them_so_much():
    def fitted(resources, **wanted):
        cluster, actors = on_ray._fitted(on_ray.Cluster(**wanted), resources)
        return cluster.device, cluster.gpus, cluster.loaders, actors

    assert fitted({"CPU": 16, "GPU": 2}, gpus=0.5) == ("cuda", 0.5, 1, (4, 4))
    assert fitted({"CPU": 3, "GPU": 2}, gpus=0.5) == ("cuda", 0.5, 1, (3, 3))
    assert fitted({"CPU": 8}, cpus=3) == ("cpu", 0, 2, (2, 2))
    assert fitted({"CPU": 8, "GPU": 8}, cpus=2, device="cuda:1", workers=(1, 9)) == ("cuda", 1, 1, (1, 9))
    with pytest.raises(RunError, match="an actor needs 1 CPU and 1 GPUs"):
        fitted({"CPU": 8}, gpus=1.0)


def test_a_part_that_kills_its_workers_is_given_up(weights, here):
    """After the fourth, one line; one that is done is forgiven."""
    out = run(weights, "out", "--batch-size", "2", runner="local")
    actor = on_ray.Actor.__new__(on_ray.Actor)
    actor.run, actor.loaders = Run(out), 1
    plan = actor.run.plan
    actor.worker = worker.Worker(lambda: worker.explainer_of(plan, load_network(weights), "cpu", 2), plan)
    tries, expected = out / "rows" / ".part-000001.tries", bits(out)
    tries.write_bytes(b"." * (on_ray.TRIES - 1))
    assert actor.done(1) == (3, {"not a photograph that can be read": 1})
    assert not tries.exists()
    assert bits(out) == expected
    tries.write_bytes(b"." * on_ray.TRIES)
    with pytest.raises(RunError, match="has lost its worker 4 times"):
        actor.done(1)


def test_without_ray_one_line_says_what_to_install(weights, here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    run(weights, "out", status=2)
    said = capsys.readouterr().err
    assert "pip install 'attention-maps[ray]'" in said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def program(weights, *more, **variables):
    given = ["photographs", "--out", "out", "--classes", "classes.csv", "--labels", "labels.txt", "--part-rows", "3"]
    given += ["--runner", "ray", "--weights", weights, "--methods", METHODS, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "torch_impl", "batch", *given]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_no_cluster_at_an_address_is_one_line(weights, here):
    """In a process of its own, which is connected to nothing."""
    started = program(weights, "--address", "127.0.0.1:1", RAY_NUM_REDIS_GET_RETRIES="1")
    _, said = started.communicate(timeout=200)
    assert started.returncode == 2
    (line,) = [line for line in said.splitlines() if line.startswith("attention-maps: error:")]
    assert "no Ray cluster at '127.0.0.1:1'" in line


@pytest.mark.slow
def test_a_cluster_is_started_and_is_quiet_and_interrupted_goes_on(weights, here):
    expected = run(weights, "expected", runner="local")
    started = program(weights)
    while not list(Path("out").glob("rows/part-*")):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=120)
    assert started.returncode in (130, 3), said
    started = program(weights)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 3, said
    assert identity(Path("out")) == identity(expected)
    assert not [line for line in said.splitlines() if "ray" in line.lower()], said
