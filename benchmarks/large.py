"""`python -m benchmarks.large`: what a large set costs, in parts that a long run is made of.

    rate     photographs a second of a local run (two CAMs, VGG16), against the bare network's forward passes on decoded tensors
    growth   seconds and memory of runs over 100 to 20,000 photographs; a small network stands in for VGG16
    ray      two Ray workers of one core each against one local process of two threads, 500 photographs; a quarter-width VGG

Contenders alternate, and ratios are taken round by round. The photographs are made from scikit-image's and scikit-learn's,
500×375, JPEG. `--json` keeps every figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from parity.contract.architecture import TINY, VGG16, Architecture
from parity.contract.network import offline, seeded, write
from torch_impl import Explainer, images
from torch_impl.batch.listing import listed, write_listing
from torch_impl.batch.run import Plan, Run
from torch_impl.batch.worker import Worker, run_local

ROOT = Path(__file__).resolve().parent.parent

METHODS = ("gradcam", "gradcam_plus_plus")

QUARTER = Architecture(
    blocks=tuple(tuple(width // 4 for width in block) for block in VGG16.blocks), dense=(1024, 1024), classes=1000
)
"""VGG16 at a quarter of its width: a sixteenth of the work at the same 224×224, so that what surrounds it weighs more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure.

    Args:
        argv: without the program's name; None: the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "growth", "ray"))
    parser.add_argument(
        "--photographs", help="N, or N,N,… for growth (rate: 64, growth: 100,1000,2000,20000, ray: 500)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of rate and ray (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="photographs in one pass (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        figures = {"rate": _rate, "growth": _growth, "ray": _ray}[options.what](options, Path(folder))
    figures |= {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return 0


def make_photographs(folder: Path, count: int, *, distinct: int = 60, size: tuple[int, int] = (500, 375)) -> None:
    """JPEGs out of the installed packages' photographs; beyond `distinct` of them, further names for the same files."""
    folder.mkdir()
    originals = [Image.open(path).convert("RGB") for path in images.defaults()]
    generator = np.random.RandomState(0)
    for i in range(count):
        path = folder / f"{i:06d}.jpg"
        if i >= distinct:
            os.link(folder / f"{i % distinct:06d}.jpg", path)
            continue
        whole = originals[i % len(originals)]
        width, height = (round(side * generator.uniform(0.6, 1)) for side in whole.size)
        left, top = generator.randint(0, whole.width - width + 1), generator.randint(0, whole.height - height + 1)
        whole.crop((left, top, left + width, top + height)).resize(size).save(path, quality=90)


def plan_for(explainer: Explainer, part_rows: int) -> Plan:
    """A run of both CAMs."""
    network = explainer.network
    assert network is not None
    return Plan(
        methods=METHODS,
        weights=network.source,
        fingerprint=network.fingerprint,
        size=explainer.size,
        input=network.input,
        resize="lab",
        n_samples=20,
        noise_level=0.2,
        seed=0,
        precision="fp32",
        engine="shared",
        resolution="raw",
        part_rows=part_rows,
    )


def begun(plan: Plan, photographs: Path, out: Path) -> tuple[Run, list[int]]:
    """A fresh run and the numbers of its parts."""
    run = Run(out)
    with run.locked(), tempfile.TemporaryFile() as file:
        write_listing(listed([str(photographs)]), file, plan.part_rows)
        return run, run.begin(plan, {}, file).todo


def _rate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count = int(options.photographs or 64)
    make_photographs(folder / "photographs", count)
    explainer = Explainer.vgg16(offline(), device="cpu", batch_size=options.batch_size, engine="shared")
    plan = plan_for(explainer, 256)
    items = list(listed([str(folder / "photographs")]))
    decoded = np.stack([images.load(item.path).pixels for item in items])
    inputs = images.preprocess(decoded).contiguous(memory_format=torch.channels_last)
    size = options.batch_size

    def bare() -> float:
        clock = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, count, size):
                explainer.model(inputs[start : start + size])
        return count / (time.perf_counter() - clock)

    def local(number: int) -> float:
        run, parts = begun(plan, folder / "photographs", folder / f"out{number}")
        clock = time.perf_counter()
        run_local(run, Worker(explainer, plan), parts, 0, report=lambda rows, errors: None)
        return count / (time.perf_counter() - clock)

    explainer.model.eval()
    bare()
    rounds = []
    for number in range(options.rounds):
        rounds.append({"bare": bare(), "local": local(number)})
        print(f"bare {rounds[-1]['bare']:.3f}/s  local {rounds[-1]['local']:.3f}/s", flush=True)
    decode = time.perf_counter()
    for item in items:
        images.load(item.path)
    decode = (time.perf_counter() - decode) / count
    ratio = [one["local"] / one["bare"] for one in rounds]
    print(f"local / bare forward: {_spread(ratio)}; decoding {1000 * decode:.1f} ms a photograph; {count} photographs")
    return {"rounds": rounds, "ratio": ratio, "decode_seconds": decode, "photographs": count}


def _growth(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    counts = [int(one) for one in (options.photographs or "100,1000,2000,20000").split(",")]
    make_photographs(folder / "all", max(counts), size=(100, 75))
    write(seeded(0, TINY), folder / "tiny.safetensors")
    found = []
    for count in counts:
        out = folder / f"out{count}"
        given = ["batch", str(folder / "all"), "--limit", str(count), "--out", str(out), "--quiet", "--device", "cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "torch_impl", *given, "--weights", str(folder / "tiny.safetensors")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"the run of {count} ended with {process.returncode}")
        seconds = json.loads((out / "summary.json").read_text())["seconds"]
        bytes_ = sum(path.stat().st_size for path in (out / "rows").iterdir())
        found.append({"photographs": count, "seconds": seconds, "rss_mb": used.ru_maxrss / 1024, "bytes": bytes_})
        print(
            f"{count:>7,} photographs  {seconds:8.2f} s  {1000 * seconds / count:.2f} ms each  "
            f"peak memory {used.ru_maxrss / 1024:.0f} MB  {bytes_ / count:.0f} bytes a row",
            flush=True,
        )
    return {"runs": found}


def _ray(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from torch_impl.batch.on_ray import Cluster, run_ray

    count = int(options.photographs or 500)
    make_photographs(folder / "photographs", count)
    network = seeded(0, QUARTER)
    explainer = Explainer.vgg16(network, device="cpu", batch_size=options.batch_size, engine="shared")
    plan = plan_for(explainer, 25)
    threads = torch.get_num_threads()
    rounds = []
    for number in range(options.rounds):
        run, parts = begun(plan, folder / "photographs", folder / f"local{number}")
        clock = time.perf_counter()
        run_local(run, Worker(explainer, plan), parts, 0, report=lambda rows, errors: None)
        local = count / (time.perf_counter() - clock)

        run, parts = begun(plan, folder / "photographs", folder / f"ray{number}")
        times: list[tuple[float, int]] = []
        clock = time.perf_counter()
        run_ray(
            run,
            parts,
            network,
            Cluster(workers=(2, 2), cpus=1, batch_size=options.batch_size),
            report=lambda rows, errors, times=times: times.append((time.perf_counter(), rows)),  # type: ignore[misc]
        )
        whole = time.perf_counter() - clock
        # From the first part's end to the last's, so that the actors' start is out of it.
        rate = sum(rows for _, rows in times[1:]) / (times[-1][0] - times[0][0])
        rounds.append({"local": local, "ray": rate, "startup": times[0][0] - clock - 25 / (rate / 2), "whole": whole})
        print(
            f"local ({threads} threads) {local:.2f}/s  ray (2 × 1 core) {rate:.2f}/s  start-up {rounds[-1]['startup']:.1f} s  "
            f"{whole:.1f} s in all",
            flush=True,
        )
    ratio = [one["ray"] / one["local"] for one in rounds]
    print(f"ray / local: {_spread(ratio)}; {count} photographs, VGG16 at a quarter of its width")
    return {"rounds": rounds, "ratio": ratio, "photographs": count}


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(values)} rounds)"


if __name__ == "__main__":
    sys.exit(main())
