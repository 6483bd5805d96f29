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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from parity.contract.architecture import TINY, VGG16, Architecture
from parity.contract.network import Network, offline, seeded, write
from torch_impl import images
from torch_impl.batch.command import pending
from torch_impl.batch.local import run_local
from torch_impl.batch.plan import Plan
from torch_impl.batch.resume import survey
from torch_impl.batch.sources import open_inputs
from torch_impl.batch.store import Run, Store
from torch_impl.batch.work import Worker, make_explainer, shapes
from torch_impl.preprocess import preprocess

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


def plan_for(network: Network, folder: Path, part_rows: int) -> Plan:
    """A run of both CAMs over a folder."""
    return Plan(
        inputs=(str(folder),),
        classes=None,
        root=None,
        methods=METHODS,
        shapes=shapes(network, METHODS, "raw"),
        weights=network.source,
        fingerprint=network.fingerprint,
        n_classes=network.architecture.classes,
        size=network.architecture.size,
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


def begun(plan: Plan, out: Path) -> tuple[Store, Run, Iterator[Any]]:
    """A fresh run and its parts."""
    store = Store(out)
    out.mkdir()
    store.begin(plan, {})
    run = store.read_run()
    source = open_inputs(list(plan.inputs))
    return store, run, pending(source, plan.part_rows, survey(source, store, run).todo)


def _rate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count = int(options.photographs or 64)
    make_photographs(folder / "photographs", count)
    plan = plan_for(offline(), folder / "photographs", 256)
    explainer = make_explainer(offline(), plan, "cpu")
    items = list(open_inputs([str(folder / "photographs")]))
    decoded = np.stack([images.load(item.path).pixels for item in items])
    inputs = preprocess(decoded).contiguous(memory_format=torch.channels_last)
    size = options.batch_size

    def bare() -> float:
        clock = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, count, size):
                explainer.model(inputs[start : start + size])
        return count / (time.perf_counter() - clock)

    def local(number: int) -> float:
        store, run, parts = begun(plan, folder / f"out{number}")
        worker = Worker(explainer, plan, size)
        clock = time.perf_counter()
        run_local(parts, worker, store, run)
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
    plan = plan_for(network, folder / "photographs", 25)
    explainer = make_explainer(network, plan, "cpu")
    threads = torch.get_num_threads()
    rounds = []
    for number in range(options.rounds):
        store, run, parts = begun(plan, folder / f"local{number}")
        clock = time.perf_counter()
        run_local(parts, Worker(explainer, plan, options.batch_size), store, run)
        local = count / (time.perf_counter() - clock)

        store, run, parts = begun(plan, folder / f"ray{number}")
        times: list[tuple[float, int]] = []
        clock = time.perf_counter()
        run_ray(
            parts,
            network,
            store,
            run,
            Cluster(workers=(2, 2), cpus=1),
            batch_size=options.batch_size,
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
