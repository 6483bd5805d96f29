"""What each command measures. A command takes its options and gives an `Outcome`; nothing is printed or written here."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contenders import CONTENDERS, JOBS, NOISY, maps_of, title_of
from benchmarks.worker import ROOT, Job, Row, Task, WorkerError, network_of, start
from parity.contract.methods import DEFAULT, METHODS
from parity.contract.text import one_line
from parity.contract.versions import versions

PRECISIONS = {"cpu": ("fp64", "fp32", "bf16"), "cuda": ("fp64", "fp32", "tf32", "fp16", "bf16")}
"""What `precision` and `passes` measure where nothing else is asked for: no CPU kernel is made for fp16, which takes minutes."""

FLOAT32 = {"cpu": ("fp32",), "cuda": ("fp32", "tf32")}
"""What `speed` compares in: on CUDA both, since PyTorch's own default for convolutions is TF32."""

BATCHES = {"cpu": (1, 2, 4, 8), "cuda": (4, 16, 32, 48, 64, 80, 96, 128)}
"""Photographs in one pass that `passes` times."""

PLACES = {"cpu": (2,), "cuda": (4, 16, 96)}
"""Photographs in one convolution."""

DECODED = {"cpu": 32, "cuda": 2048}
"""Photographs whose CAMs `precision` has drawn from pixels in memory."""

CLEARLY = 1.1
"""Times as long as the other operation: more than two runs of the same one differ."""

LIMIT = "limit"
"""The column of what nobody can be faster than."""

WORK = {"photographs": (1, 2, 4, 8, 16, 32), "samples": (1, 2, 4, 8, 12, 16, 20)}
"""Against what `cost` is drawn."""


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Attributes:
        text: for the terminal.
        data: every single figure, as JSON.
        good: whether the maps are what they claim to be.
    """

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    good: bool = True


def speed(options: argparse.Namespace) -> Outcome:
    """Each map alone, the CAMs together, all of them, by everybody in turn: seconds, ratios, memory, the machine's limit."""
    device, kind = device_of(options.device)
    names, rounds = options.contenders or present(kind), list(range(options.rounds))
    jobs = [
        (job, count, options.samples)
        for count in sorted(options.photographs or (1, 4, 16))
        for job in options.jobs or JOBS
        if options.long or kind == "cuda" or count <= 4 or not set(maps_of(job)) & set(NOISY)
    ]
    plans = {p: _plan(names, p, kind, jobs) for p in options.precision or FLOAT32[kind]}
    if not all(plans.values()):
        raise ValueError(f"none of {', '.join(names)} draws that on {device} in {' and '.join(plans)}")
    rows: list[Row] = []
    rates: dict[str, list[float]] = {p: [] for p in plans}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        common = (device, options.weights, folder)
        if kind == "cuda":  # those of one format share a process, which takes longer to start than to do its work
            tasks = [Task(plan, rounds, *common) for plan in plans.values()]
        else:
            tasks = [Task([entry], [turn], *common) for turn in rounds for plan in plans.values() for entry in plan]
        for task in tasks:
            rates[task.plan[0][1]].append(_rate(device, task.plan[0][1], options.weights))
            rows += start(task)
        checks = {p: report.checks_of(Path(folder), [f"{name}-{p}" for name, _, _ in plans[p]]) for p in plans}
    tables = [f"{about(device)}, weights {options.weights}, {options.samples} SmoothGrad samples."]
    for p in plans:
        rows += _limits(max(rates[p]), p, options.weights, jobs)
        tables += _speed_tables([row for row in rows if row["precision"] == p], options.rounds)
        tables.append(report.check_table(checks[p]))
    good = all(report.sound(checks[p]) for p in plans if p in ("fp32", "fp64"))
    return Outcome("\n\n".join(tables), {"rows": rows, "checks": checks}, good)


def precision(options: argparse.Namespace) -> Outcome:
    """What each number format costs and gives: seconds, and correlation with the float64 map."""
    device, kind = device_of(options.device)
    narrow = [name for name in options.precision or PRECISIONS[kind] if name != "fp64"]
    if not narrow:
        raise ValueError("--precision: give another format than fp64, which is what they are compared with")
    jobs, many = [("all", 4, options.samples), ("cams", 4, options.samples)], DECODED[kind]
    plan = [entry for p in ("fp64", *narrow) for entry in (("shared", p, jobs), ("decoded", p, [("cams", many, 1)]))]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        # fp64 is the yardstick, timed once. The others take turns in one process: starting one takes longer than a GPU's work.
        rows = start(Task(plan[:2], [0], device, options.weights, folder))
        rows += start(Task(plan[2:], list(range(options.rounds)), device, options.weights, folder))
        checks = report.checks_of(Path(folder), [f"shared-{name}" for name in ("fp64", *narrow)], job="all")
    title = (
        f"{about(device)}, weights {options.weights}, {options.samples} SmoothGrad samples.\nShared engine, four photographs: "
        "seconds, and the lowest Pearson correlation with the float64 map; and photographs a second, both CAMs of "
        f"{many} from pixels in memory."
    )
    return Outcome(report.precision_table(rows, checks, many, title), {"rows": rows, "checks": checks})


def cost(options: argparse.Namespace) -> Outcome:
    """Seconds against photographs and against SmoothGrad samples: a line, and its fixed part; and of whole commands."""
    device, _ = device_of(options.device)
    axes = {"cams": "photographs"}
    axes |= {m: "samples" if m in NOISY else "photographs" for m in DEFAULT if not METHODS[m].at_layer}
    jobs = [(job, n, 1) if axis == "photographs" else (job, 1, n) for job, axis in axes.items() for n in WORK[axis]]
    rows, starts = [], []
    for turn in range(options.rounds):
        rows += start(Task([("shared", "fp32", jobs)], [turn], device, options.weights))
        starts.append(_starts(device, options.weights))
    lines = {}
    for job, axis in axes.items():
        of_job = [row for row in rows if row["job"] == job]
        points = {n: [row["seconds"] for row in of_job if row[axis] == n] for n in WORK[axis]}
        lines[f"{title_of(job)}, against {axis}"] = report.line(points)
    if options.plot:
        report.plot(lines, options.plot, about(device))
    commands = {name: report.spread([seconds[name] for seconds in starts]) for name in starts[0]}
    text = (
        f"{report.cost_table(lines, about(device))}\n\nSeconds from the command to one photograph's Grad-CAM on the disk: "
        f"{commands['shared']} by the shared engine, {commands['library']} by the libraries; `--help`: {commands['help']}."
    )
    return Outcome(text, {"rows": rows, "lines": lines, "starts": starts})


def passes(options: argparse.Namespace) -> Outcome:
    """One pass of the network by photographs and number format: what --batch-size auto goes by."""
    from benchmarks import limit
    from benchmarks.timing import Bench
    from torch_impl.batching import AUTO

    device, kind = device_of(options.device)
    network = network_of(options.weights)
    formats = options.precision or [name for name in PRECISIONS[kind] if name != "fp64"]
    batches = options.photographs or BATCHES[kind]
    at_least = 3 if kind == "cpu" else 0.5
    took = {name: limit.passes(Bench(device, name, at_least=at_least), network, batches) for name in formats}
    first, batch = formats[0], min(batches, key=lambda n: abs(n - AUTO[kind]))
    alone = limit.convolutions(Bench(device, first, at_least=at_least / 10), batch, network.table)
    share = f"{first}, {batch} in a pass: at {alone / took[first][batch][0]:.0%} of the rate of its own convolutions, each timed alone."
    title = (
        f"{about(device)}.\nMilliseconds a photograph, forward and backward to the input / forward alone, by the photographs in "
        "one pass; medians."
    )
    return Outcome(f"{report.passes_table(took, title)}\n\n{share}", {"passes": took, "convolutions": alone})


def convolutions(options: argparse.Namespace) -> Outcome:
    """Each convolution of the network by either of two operations that give the same numbers: which one is faster?"""
    import torch

    from benchmarks.convolutions import time_layers
    from benchmarks.timing import Bench

    device, kind = device_of(options.device)
    table, rows, wrong = network_of(options.weights).table, list[Row](), list[str]()
    print(f"{about(device)}.", flush=True)
    for name, batch in itertools.product(options.precision or ("fp32",), options.photographs or PLACES[kind]):
        case = f"{name}, channels first, {batch} photographs"
        print(report.table(report.CONVOLUTIONS, [], f"\n{case}, ms (TFLOP/s):"), flush=True)
        for row in time_layers(table, batch, Bench(device, name, torch.contiguous_format, at_least=0.1)):
            cells = report.convolution_cells(row)
            print(report.line_of(cells), flush=True)  # at once: nobody is to wait for the last one
            rows.append({"precision": name, "photographs": batch, **row})
            if row["seconds"][row["chosen"]] > CLEARLY * min(row["seconds"].values()):
                wrong.append(f"- {case}, {cells[0]} at {cells[1]}")
    verdict = "\n".join(
        ["The rule (for strict float32 on CUDA) chooses the clearly slower one for:", *(wrong or ["- none"])]
    )
    return Outcome(f"\n{verdict}", {"convolutions": rows})


def device_of(name: str) -> tuple[str, str]:
    """A device that is here, and its kind: `cpu` or `cuda`.

    Raises:
        DeviceError: it is not here.
    """
    import torch

    from torch_impl.precision import choose_device

    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # the one that PyTorch's timer waits for
    return str(device), device.type


def present(kind: str) -> list[str]:
    """Contenders that can be timed here; says who is left out."""
    usual = {name: row.package for name, row in CONTENDERS.items() if row.usual and kind in row.kinds}
    here = [name for name, package in usual.items() if util.find_spec(package)]
    for name in (name for name in usual if name not in here):
        print(f"benchmarks: {name} is not installed here, and is left out", file=sys.stderr)
    return here


def about(device: str) -> str:
    """What the figures hold for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        import torch

        device += f" ({torch.cuda.get_device_name(device)})"
    packages = versions("torch", "captum", "grad-cam", "torchcam", "tensorflow", "tf-keras-vis")
    named = ", ".join(f"{name} {version}" for name, version in packages.items() if name != "platform")
    return f"{os.cpu_count()} cores of {processor}, {named}; device {device}"


def _plan(names: Iterable[str], precision: str, kind: str, jobs: Sequence[Job]) -> list[tuple[str, str, list[Job]]]:
    """Who of them does which jobs in a number format."""
    plan = []
    for name, row in ((name, CONTENDERS[name]) for name in names):
        own = [job for job in jobs if set(maps_of(job[0])) <= set(row.maps)]
        if own and precision in row.precisions and kind in row.kinds:
            plan.append((name, precision, own))
    return plan


def _rate(device: str, precision: str, weights: str) -> float:
    """Floating-point operations per second of this machine at the best, now."""
    from benchmarks import limit
    from benchmarks.timing import Bench
    from torch_impl.batching import AUTO

    bench, batch = Bench(device, precision, at_least=0.05), AUTO[device.partition(":")[0]]
    return limit.rate(bench, batch, network_of(weights).table)


def _limits(rate: float, precision: str, weights: str, jobs: Sequence[Job]) -> list[Row]:
    """What each job takes at this rate, as rows of a contender `limit`."""
    from benchmarks import limit

    table, common = network_of(weights).table, {"contender": LIMIT, "precision": precision, "gflop/s": rate / 1e9}
    return [
        {"job": job, "photographs": n, "seconds": n * limit.operations(maps_of(job), samples, table) / rate, **common}
        for job, n, samples in jobs
    ]


def _speed_tables(rows: list[Row], rounds: int) -> list[str]:
    """The tables of one number format."""
    (rate,) = {row["gflop/s"] for row in rows if row["contender"] == LIMIT}
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    title = (
        f"{rows[0]['precision']}: seconds, median (lowest to highest) of {rounds}; the limit is the job's operations at "
        f"{rate:.0f} GFLOP/s, the best product or convolution measured in the same run."
    )
    tables = [report.seconds_table(rows, [*names, LIMIT], title)]
    for ours in (name for name in names if CONTENDERS[name].exact):
        tables.append(report.ratio_table(rows, ours, [name for name in names if name != ours]))
    title = "Peak memory, MB: on a CPU of the whole process, on CUDA on the device, the network's weights included:"
    return [*tables, report.memory_table(rows, names, title)]


def _starts(device: str, weights: str) -> dict[str, float]:
    """Seconds of whole commands: `--help`, and one photograph's Grad-CAM on the disk by either engine."""
    from torch_impl import images

    explain = ["explain", str(images.defaults()[0]), "--weights", weights, "--methods", "gradcam", "--device", device]
    took = {}
    for name in ("help", "shared", "library"):
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
            arguments = ["--help"] if name == "help" else [*explain, "--engine", name, "--quiet", "--out", folder]
            clock = time.perf_counter()
            command = [sys.executable, "-m", "torch_impl", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            took[name] = time.perf_counter() - clock
        if done.returncode:
            raise WorkerError(f"explain: {one_line(done.stderr)}")
    return took
