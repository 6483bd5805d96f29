"""Contenders in a process of their own: `python -m benchmarks.worker`, a `Task` as JSON on its input, `Row`s on its output.

A process of one contender shows what memory that one takes. On CUDA the device tells, and several share a process.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import CONTENDERS, Draw, maps_of
from parity.contract.network import Network, WeightsError, from_source
from parity.contract.noise import unit_noise
from torch_impl import images

ROOT = Path(__file__).resolve().parent.parent
"""Where `benchmarks` is imported from: it is no part of an installation."""

CLASSES = (285, 967, 872, 698)
"""Of the default photographs: Egyptian cat, espresso, tripod, palace. A network of fewer classes takes the remainder."""

REPEATS, ENOUGH = 5, 0.5
"""On CUDA a job is timed so often in each round, for the median, or until so many seconds are spent; on a CPU once."""

Job = tuple[str, int, int]
"""(name, photographs, SmoothGrad's samples)."""

Row = dict[str, Any]
"""`contender, precision, job, photographs, samples, round, seconds`; `memory_mb`: the peak meanwhile (10**6 bytes), weights
included: on a CPU of the whole process, on CUDA on the device."""


class WorkerError(RuntimeError):
    """A contender failed; which, and why."""


@dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
        plan: (contender, number format, jobs), in turn in each round.
        rounds: their numbers.
        device: `cpu`, `cuda`, `cuda:1`.
        weights: a source of `parity.contract.network.from_source`.
        maps: the folder that keeps the first round's maps, `<contender>-<precision>-<job>-<photographs>.npz`; None: nowhere.
    """

    plan: Sequence[tuple[str, str, Sequence[Job]]]
    rounds: Sequence[int]
    device: str
    weights: str
    maps: str | None = None


def start(task: Task) -> list[Row]:
    """Do a task in a fresh process: TensorFlow and PyTorch never meet, and no heap is anybody else's.

    Raises:
        WorkerError: it failed.
    """
    names = ", ".join(f"{contender} {precision}" for contender, precision, _ in task.plan)
    print(f"… {names}", file=sys.stderr, flush=True)
    given, command = json.dumps(asdict(task)), [sys.executable, "-m", "benchmarks.worker"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise WorkerError(f"{names}: {lines[-1] if lines else f'its process ended with status {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def network_of(source: str) -> Network:
    """The network of `--weights`.

    Raises:
        WeightsError: there is none.
    """
    network = from_source(source)
    if network is None:
        raise WeightsError(f"--weights {source!r}: give offline, offline-random:N or a canonical safetensors file")
    return network


def measure(task: Task) -> list[Row]:
    """Do a task in this process: round by round, contender by contender, job by job."""
    network, cuda = network_of(task.weights), task.device.startswith("cuda")
    four, classes = images.load_all(images.defaults(), size=network.table.size[0])[0], network.table.classes
    # Drawn here once, and kept for all photographs: no part of a map's time.
    for samples in {samples for _, _, jobs in task.plan for _, _, samples in jobs}:
        next(iter(unit_noise(0, samples, network.table.input_shape)))

    def call(draw: Draw, maps: Sequence[str], count: int, samples: int) -> tuple[float, Any]:
        photographs, chosen = (four * count)[:count], [c % classes for c in (CLASSES * count)[:count]]
        clock = time.perf_counter()
        drawn = draw(photographs, chosen, maps, samples)  # arrays on the host: whatever a device had to do is done
        return time.perf_counter() - clock, drawn

    rows: list[Row] = []
    ready: dict[tuple[str, str], tuple[Draw, float]] = {}
    for turn in task.rounds:
        for name, precision, jobs in task.plan:
            if (name, precision) not in ready:
                before = _held_mb(task.device)
                draw = CONTENDERS[name].make(network, task.device, precision)
                ready[name, precision] = draw, _held_mb(task.device) - before
                for maps, count, samples in _warm_up(jobs, cuda):
                    call(draw, maps, count, samples)
            draw, own_mb = ready[name, precision]
            for job, count, samples in jobs:
                others_mb, times = _held_mb(task.device) - own_mb, list[float]()
                _forget_peak(task.device)
                while not times or (cuda and len(times) < REPEATS and sum(times) < ENOUGH):
                    seconds, drawn = call(draw, maps_of(job), count, samples)
                    times.append(seconds)
                row = {"contender": name, "precision": precision, "job": job, "photographs": count, "samples": samples}
                memory = _peak_mb(task.device) - others_mb
                rows.append({**row, "round": turn, "seconds": statistics.median(times), "memory_mb": memory})
                if task.maps and turn == 0:
                    np.savez(Path(task.maps, f"{name}-{precision}-{job}-{count}.npz"), **drawn)
    return rows


def _warm_up(jobs: Sequence[Job], cuda: bool) -> list[tuple[Sequence[str], int, int]]:
    """(maps, photographs, samples) of the calls that are not counted: whatever is chosen or compiled once for each shape.

    On CUDA every job once, since cuDNN's kernels are chosen by the micro-batch; on a CPU every number of photographs, and
    Score-CAM, which takes a minute of a core there, by few of its passes.
    """
    if cuda:
        return [(maps_of(job), count, samples) for job, count, samples in jobs]
    few = {"scorecam": "faster_scorecam"}
    maps = dict.fromkeys(few.get(name, name) for job, _, _ in jobs for name in maps_of(job))
    return [(list(maps), count, 1) for count in sorted({count for _, count, _ in jobs})]


def _held_mb(device: str) -> float:
    """What is allocated on a GPU now, MB; 0 on a CPU, where a process holds one contender."""
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.memory_allocated(device) / 1e6


def _forget_peak(device: str) -> None:
    """From now on the peak is that of what follows; on a CPU on Linux only, elsewhere it is that of all before, too."""
    if device == "cpu":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    else:
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def _peak_mb(device: str) -> float:
    """The largest size, MB: on a GPU what was allocated; on a CPU this process, interpreter, libraries and weights included."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    print(json.dumps(measure(Task(**json.load(sys.stdin)))))
