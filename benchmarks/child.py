"""One contender in a process of its own: `python -m benchmarks.child`, started by `python -m benchmarks`."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from parity.contract.network import Network, from_source

METHODS = {
    "vanilla": ["vanilla"],
    "smoothgrad": ["smoothgrad"],
    "gradcam": ["gradcam"],
    "gradcam_plus_plus": ["gradcam_plus_plus"],
    "cams": ["gradcam", "gradcam_plus_plus"],
    "all": ["vanilla", "smoothgrad", "gradcam", "gradcam_plus_plus"],
}
"""What is timed: a job's name → its methods."""

ON_CUDA = 5
"""Times that a job is timed in one process, for their median: milliseconds, against the seconds that a process takes to start."""

ENOUGH = 1.0
"""Seconds of a job after which it is not timed again."""

CLASSES = [285, 967, 872, 698]
"""Of the default photographs: Egyptian cat, espresso, tripod, palace. A network of fewer classes takes the remainder."""


def main() -> int:
    """Do the jobs in order; write one JSON line."""
    parser = argparse.ArgumentParser(prog="benchmarks.child", description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="several, with commas: one after another in this process")
    parser.add_argument("--weights", default="offline")
    parser.add_argument("--jobs", default="[]", help="JSON: [[job, photographs, samples], …]")
    parser.add_argument("--maps", type=Path, help="keep the maps of each job here")
    options = parser.parse_args()
    jobs = [(str(job), int(count), int(samples)) for job, count, samples in json.loads(options.jobs)]
    if options.device.startswith("cuda") and options.contender != "tf-keras-vis":
        import torch

        torch.cuda.set_device(
            torch.device(options.device).index or 0
        )  # whose events, memory and synchronization are meant
    if options.contender == "limit":
        found = _limit(options)
    elif options.contender == "passes":
        found = _passes(options, [count for _, count, _ in jobs])
    elif "," in options.precision:
        found = {p: _run(_with(options, p), jobs) for p in options.precision.split(",")}
    else:
        found = _run(options, jobs)
    print(json.dumps(found))
    return 0


def _with(options: argparse.Namespace, precision: str) -> argparse.Namespace:
    """The same for one of several number formats, with a folder of its own for the maps."""
    folder = options.maps and Path(options.maps, precision)
    if folder:
        folder.mkdir(exist_ok=True)
    return argparse.Namespace(**{**vars(options), "precision": precision, "maps": folder})


def _limit(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import limit
    from torch_impl.batching import AUTO

    batch = AUTO[options.device.partition(":")[0]]
    return limit.measure(options.device, options.precision, batch, _network(options.weights).architecture)


def _passes(options: argparse.Namespace, batches: list[int]) -> dict[str, Any]:
    from benchmarks import limit

    network = _network(options.weights)
    rows = {p: limit.passes(options.device, p, network, batches) for p in options.precision.split(",")}
    return {"passes": rows, "device": _device(options, options.device.startswith("cuda"))}


def _run(options: argparse.Namespace, jobs: list[tuple[str, int, int]]) -> dict[str, Any]:
    from torch_impl import images

    started = time.perf_counter()
    network = _network(options.weights)
    four = images.load_all(images.defaults(), size=network.architecture.size)[0]
    keras = options.contender == "tf-keras-vis"
    if keras:
        from benchmarks import keras_contender

        job = keras_contender.make(network)
    else:
        from benchmarks.contenders import CONTENDERS

        job = CONTENDERS[options.contender](network, options.device, options.precision)
    ready = time.perf_counter() - started
    noise = _draw_noise(network.architecture.size, {samples for _, _, samples in jobs})
    cuda = options.device.startswith("cuda") and not keras
    chosen = [one % network.architecture.classes for one in CLASSES]
    if not cuda:  # to warm up: what is compiled or chosen once for each shape
        for count in sorted({count for _, count, _ in jobs}):
            job(
                (four * count)[:count], (chosen * count)[:count], sorted({m for j, _, _ in jobs for m in METHODS[j]}), 1
            )
    rows = []
    for name, count, samples in jobs:
        photographs, classes = (four * count)[:count], (chosen * count)[:count]
        if cuda:  # every job once, since cuDNN chooses its kernels by the micro-batch, too
            job(photographs, classes, METHODS[name], samples)
        _forget_peak(cuda)
        times: list[float] = []
        while not times or (cuda and len(times) < ON_CUDA and sum(times) < ENOUGH):
            clock = _clock(options.device if cuda else "cpu", keras)
            maps = job(photographs, classes, METHODS[name], samples)
            times.append(clock())
        seconds = statistics.median(times)
        rows.append(
            {"job": name, "photographs": count, "samples": samples, "seconds": seconds, "peak_mb": _peak_mb()}
            | ({"device_peak_mb": _device_peak_mb()} if cuda else {})
        )
        if options.maps:
            np.savez(options.maps / f"{options.contender}-{name}-{count}.npz", **maps)  # type: ignore[arg-type]
    return {
        "rows": rows,
        "ready_s": ready,
        "noise_s": noise,
        "device": _device(options, cuda),
        "threads": _threads(keras),
    }


def _network(source: str) -> Network:
    network = from_source(source)
    if network is None:
        raise SystemExit(f"--weights {source!r}: give offline, offline-random:N or a canonical safetensors file")
    return network


def _draw_noise(size: int, samples: set[int]) -> float:
    """Seconds of the one draw of unit noise, which is kept for every photograph and so is no part of a map's time."""
    from parity.contract.noise import unit_noise

    start = time.perf_counter()
    next(iter(unit_noise(0, max(samples, default=1), (size, size, 3))))
    return time.perf_counter() - start


def _clock(device: str, keras: bool) -> Any:
    if keras:
        start = time.perf_counter()
        return lambda: time.perf_counter() - start
    from benchmarks.limit import Clock

    return Clock(device).stop


def _forget_peak(cuda: bool) -> None:
    """Linux forgets a process's largest size when asked; elsewhere the peak is that of all jobs so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> float:
    """Largest size since `_forget_peak`, MB (10**6 bytes), the interpreter, libraries and weights included."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def _device_peak_mb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 1e6


def _device(options: argparse.Namespace, cuda: bool) -> str:
    if cuda:
        import torch

        return torch.cuda.get_device_name(options.device)
    return f"{platform.machine()} CPU"


def _threads(keras: bool) -> int:
    if keras:
        import os

        return os.cpu_count() or 1
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    sys.exit(main())
