"""`python -m benchmarks`: every contender in turn, each run in a fresh process, medians and ratios.

Every process loads the weights, draws one photograph to warm up, then is timed over all four maps of the photographs; its
peak memory is the operating system's own figure for the whole process. Contenders alternate (A B A B …), so that a machine
whose speed drifts slows them alike; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, or with `--child` one contender.

    Args:
        argv: without the program's name; None: the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--photographs", type=int, default=4, help="1 to 4, scikit-image's and scikit-learn's (%(default)s)"
    )
    parser.add_argument("--samples", type=int, default=20, help="of SmoothGrad (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each contender (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", default="offline")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(_child(options)))
        return 0
    names = ["ours", "stock"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.runs):
        for name in names:
            command = [sys.executable, "-m", "benchmarks", "--child", name, "--photographs", str(options.photographs)]
            command += ["--samples", str(options.samples), "--device", options.device, "--weights", options.weights]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if result.returncode:
                print(result.stderr.strip().splitlines()[-1], file=sys.stderr)
                return 2
            runs[name].append(json.loads(result.stdout.splitlines()[-1]))
            print(f"run {number + 1}: {name} {runs[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    print(_table(options, runs))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": _machine(), "options": vars(options), "runs": runs}, default=str, indent=1)
        )
    return 0


def _child(options: argparse.Namespace) -> dict[str, Any]:
    import resource
    import time

    import torch

    from benchmarks.contenders import CONTENDERS
    from parity.contract.network import from_source
    from torch_impl import images

    network = from_source(options.weights)
    assert network is not None
    photographs = images.load_all(images.defaults()[: options.photographs])[0]
    classes = [285, 967, 872, 698][: options.photographs]
    job = CONTENDERS[options.child](network, options.device)
    job(photographs[:1], classes[:1], 1)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    clock = time.perf_counter()
    maps = job(photographs, classes, options.samples)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - clock
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_peak_mb": torch.cuda.max_memory_allocated() / 2**20 if options.device.startswith("cuda") else 0.0,
        "maps": {name: [len(drawn), float(drawn.max())] for name, drawn in maps.items()},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
    }


def _table(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"{options.photographs} photographs, four maps, {options.samples} samples, {options.weights}, fp32; "
        f"{options.runs} runs each, in turn; {_machine()}",
        "",
        "| | seconds, median (min to max) | peak memory, MB |",
        "|---|---|---|",
    ]
    for name, rows in runs.items():
        times = [row["seconds"] for row in rows]
        peak = max(row["peak_mb"] for row in rows)
        lines.append(f"| {name} | {statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f}) | {peak:.0f} |")
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["ours"], runs["stock"], strict=True)]
    lines.append("")
    lines.append(
        f"stock / ours, pair by pair: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    return "\n".join(lines)


def _machine() -> str:
    import os
    from importlib import metadata

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "captum", "grad-cam"))
    return f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
