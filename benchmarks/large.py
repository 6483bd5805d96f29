"""What a large set costs, as whole `attention-maps batch` commands over more and more photographs: `python -m benchmarks large`.

    rate     a run of both CAMs, VGG16, and the bare network's forward pass beside it
    growth   seconds and memory of runs over 100 to 20,000 photographs; a small network stands in for VGG16
    ray      two Ray workers of one core each beside one local process; a VGG of a quarter of its width
    decode   for a GPU: 4,000 and 20,000 different JPEGs of 640×480, in fp16, as fast as they can be decoded

A photograph's share is the slope of the line through the commands' seconds; starting is its fixed part.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from benchmarks import report
from benchmarks.commands import Outcome, about, device_of
from benchmarks.worker import ROOT, WorkerError
from parity.contract.network import Network, offline, seeded, write
from parity.contract.vgg import BLOCKS, vgg
from torch_impl import images

QUARTER = vgg([[width // 4 for width in block] for block in BLOCKS], dense=(1024, 1024))
"""VGG16 at a quarter of its width: a sixteenth of the work at the same 224×224, so that what surrounds it weighs more."""

TINY = vgg([[8, 8], [8, 8], [16, 16, 16], [16, 16, 16], [16, 16, 16]], dense=(32, 24), classes=10, size=64)

WHAT: dict[str, tuple[Callable[[], Network], list[int], tuple[int, int], list[str]]] = {
    "rate": (offline, [32, 96], (500, 375), ["local"]),
    "growth": (lambda: seeded(0, TINY), [100, 1000, 2000, 20000], (100, 75), ["local"]),
    "ray": (lambda: seeded(0, QUARTER), [250, 750], (500, 375), ["local", "ray"]),
    "decode": (offline, [4000, 20000], (640, 480), ["local"]),
}
"""Name → network, numbers of photographs, their size, runners."""

DIFFERENT = 200
"""JPEGs that differ; all others are further names of these."""

RUNNERS = {"local": [], "ray": ["--runner", "ray", "--workers", "2:2"]}

Row = dict[str, Any]
"""Of a command: `runner, photographs, seconds, rss_mb` (its process at the largest), `bytes` (of its rows)."""


def large(options: argparse.Namespace) -> Outcome:
    """What a large set costs, as whole batch commands: rate (VGG16), growth (to 20,000 photographs), ray, decode (a GPU)."""
    device, kind = device_of(options.device)
    network, counts, size, runners = WHAT[options.what]
    counts, rows, bare = sorted(options.photographs or counts), list[Row](), ""
    precision = "fp16" if options.what == "decode" and kind == "cuda" else "fp32"
    if len(counts) < 2:
        raise ValueError("--photographs: give at least two numbers, for a line")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        folder = Path(name)
        write(network(), folder / "network.safetensors")
        make_photographs(folder / "photographs", counts[-1], size)
        for count, runner in itertools.product(counts, runners):
            print(f"… {runner}, {count} photographs", file=sys.stderr, flush=True)
            rows.append(_batch(folder, device, precision, runner, count))
    if options.what == "rate":
        from benchmarks import limit
        from benchmarks.timing import Bench
        from torch_impl.batching import AUTO, WITHOUT_GRADIENTS

        batch = AUTO[kind] * WITHOUT_GRADIENTS
        (took,) = limit.passes(Bench(device, "fp32", at_least=5), network(), [batch]).values()
        bare = f"\n\nthe bare network's forward pass, {batch} at once: {report.figure(took[1])} s a photograph"
    return Outcome(f"{about(device)}\n\n{table_of(rows)}{bare}", {"runs": rows})


def make_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of the palace that scikit-learn brings along, each further to the left, under many names."""
    folder.mkdir()
    palace = Image.open(images.defaults()[-1]).resize(size)
    for i in range(min(count, DIFFERENT)):
        ImageChops.offset(palace, i).save(folder / f"{i}.jpg", quality=90)
    for i in range(DIFFERENT, count):
        os.link(folder / f"{i % DIFFERENT}.jpg", folder / f"{i}.jpg")


def _batch(folder: Path, device: str, precision: str, runner: str, count: int) -> Row:
    """Run one command."""
    out = folder / f"{runner}-{count}"
    command = ["batch", str(folder / "photographs"), "--limit", str(count), "--device", device, "--quiet"]
    command += ["--weights", str(folder / "network.safetensors"), "--out", str(out), "--precision", precision]
    clock = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "torch_impl", *command, *RUNNERS[runner]], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    seconds, process.returncode = time.perf_counter() - clock, os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise WorkerError(f"the {runner} run of {count} photographs ended with status {process.returncode}")
    size = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    took = {"seconds": seconds, "rss_mb": used.ru_maxrss / 1024, "bytes": size}
    return {"runner": runner, "photographs": count, **took}


def table_of(rows: Sequence[Row]) -> str:
    """A row a command; then each runner's line."""
    body, points = [], dict[str, dict[int, list[float]]]()
    for row in rows:
        runner, count = row["runner"], row["photographs"]
        points.setdefault(runner, {})[count] = [row["seconds"]]
        figures = map(report.figure, (row["seconds"], count / row["seconds"], row["rss_mb"], row["bytes"] / count))
        body.append([runner, f"{count:,}", *figures])
    lines = []
    for runner, by_count in points.items():
        fixed, each = (report.figure(report.line(by_count)[key]) for key in ("fixed", "each"))
        lines.append(f"{runner}: {fixed} s to start, {each} s a photograph")
    header = ["", "photographs", "seconds", "a second", "largest size of the process, MB", "bytes a row"]
    return "\n\n".join([report.table(header, body, "Whole commands:"), *lines])
