"""`python -m benchmarks`: every contender in turn, on the same photographs, weights and classes; medians, ratios, memory.

    speed      each map alone, the two CAMs together, all four, of 1, 4 and 16 photographs; the machine's limit (the default)
    precision  what each number format costs and gives: seconds, and correlation with the float64 map
    cost       seconds against photographs and against SmoothGrad samples: a line, and its fixed part
    passes     one pass of the network by the size of its batch and number format: what --batch-size auto goes by

Every contender runs in a fresh process, loads the weights, draws each size once to warm up, then is timed. Contenders
alternate (A B C A B C …), so that a machine whose speed drifts slows them alike; ratios are taken round by round. Number
formats share a process, one after another in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from benchmarks import report
from torch_impl import images

ROOT = Path(__file__).resolve().parent.parent

JOBS = ("all", "cams", "vanilla", "smoothgrad", "gradcam", "gradcam_plus_plus")

PRECISIONS = {"cpu": ("fp64", "fp32", "bf16"), "cuda": ("fp64", "fp32", "tf32", "fp16", "bf16")}
"""What is measured where nothing else is asked for: fp16 on a CPU takes minutes, no CPU kernel being made for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark.

    Args:
        argv: without the program's name; None: the process's own.

    Returns:
        0; 1 where a map is not what it claims to be; 2 where a contender did not run.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("speed", "precision", "cost", "passes"), default="speed")
    parser.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda, cuda:1 (%(default)s); on CUDA without TensorFlow"
    )
    parser.add_argument("--samples", type=int, default=20, help="of SmoothGrad (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of each contender (%(default)s)")
    parser.add_argument("--photographs", type=_numbers, default=[1, 4, 16], help="N,N,… (1,4,16)")
    parser.add_argument(
        "--contenders", help="of shared,library,stock,torch-cam,tf-keras-vis; default: all that are here"
    )
    parser.add_argument("--jobs", help=f"default: {','.join(JOBS)}, and the memory of all")
    parser.add_argument("--precision", help="speed: of shared and library (fp32); precision: a list")
    parser.add_argument("--weights", default="offline", help="offline, offline-random:N, or a file (%(default)s)")
    parser.add_argument("--long", action="store_true", help="SmoothGrad of more than 4 photographs, too: minutes more")
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--plot", type=Path, help="cost: draw it here (.svg, .png)")
    options = parser.parse_args(argv)
    options.jobs_given = options.jobs is not None
    options.jobs = options.jobs or ",".join(JOBS)
    try:
        run = {"speed": _speed, "precision": _precision, "cost": _cost, "passes": _passes}[options.what]
        text, data, good = run(options)
    except ChildError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    print(text)
    if options.json:
        about = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
        options.json.write_text(json.dumps(about | data, indent=1), encoding="utf-8")
    return 0 if good else 1


class ChildError(RuntimeError):
    """A contender's process failed; its last line."""


def _child(options: argparse.Namespace, contender: str, jobs: Sequence[Any] = (), **more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.child", contender, "--device", options.device]
    command += ["--weights", options.weights, "--jobs", json.dumps(list(jobs))]
    for name, value in more.items():
        command += [f"--{name}", value]
    print(f"… {contender} {more.get('precision', '')}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ChildError(f"{contender}: {(done.stderr.strip().splitlines() or ['it gave no reason'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _by_precision(
    options: argparse.Namespace, contender: str, jobs: Sequence[Any], precisions: Sequence[str], **more: str
) -> dict[str, dict[str, Any]]:
    """Several number formats in one process → what each took."""
    found = _child(options, contender, jobs, precision=",".join(precisions), **more)
    return found if len(precisions) > 1 else {precisions[0]: found}


def _speed(options: argparse.Namespace) -> tuple[str, dict[str, Any], bool]:
    cuda = options.device.startswith("cuda")
    names = options.contenders.split(",") if options.contenders else _present(cuda)
    jobs = [
        (job, count, options.samples)
        for count in sorted(options.photographs)
        for job in options.jobs.split(",")
        if options.long or cuda or count <= 4 or job not in ("smoothgrad", "all")
    ]
    cams_only = [row for row in jobs if row[0] in ("cams", "gradcam", "gradcam_plus_plus")]
    precision = options.precision or "fp32"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    limits = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        for turn in range(options.rounds):
            limits.append(_child(options, "limit", precision=precision))
            for name in names:
                todo = cams_only if name == "torch-cam" else jobs
                more = {"precision": precision} if name in ("shared", "library") else {}
                if not turn:
                    more["maps"] = folder
                runs[name].append(_child(options, name, todo, **more))
        checks = report.checks(Path(folder), names)
    text = report.speed_table(runs, limits, machine(runs), options)
    memory: dict[str, dict[int, float]] = {}
    if not options.jobs_given:
        memory = _memory(options, [name for name in names if name != "torch-cam"], precision)
        text += f"\n\n{report.memory_table(memory)}"
    data = {"runs": runs, "limits": limits, "memory": memory, "checks": checks}
    return f"{text}\n\n{report.check_table(checks)}", data, report.sound(checks)


def _memory(options: argparse.Namespace, names: Sequence[str], precision: str) -> dict[str, dict[int, float]]:
    """Peaks of all four maps, MB: each number of photographs in a process of its own, since a peak stays in the heap."""
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for count in (4, 16):
        for name in names:
            more = {"precision": precision} if name in ("shared", "library") else {}
            (row,) = _child(options, name, [("all", count, 2)], **more)["rows"]
            found[name][count] = row["peak_mb"]
    return found


def _precision(options: argparse.Namespace) -> tuple[str, dict[str, Any], bool]:
    wanted = options.precision.split(",") if options.precision else PRECISIONS[options.device.partition(":")[0]]
    wanted = ["fp64", *dict.fromkeys(p for p in wanted if p != "fp64")]
    if len(wanted) < 2:
        raise ChildError("--precision: give another format than fp64, which is what they are compared with")
    jobs = [("all", 4, options.samples), ("cams", 4, options.samples)]
    many = 2048 if options.device.startswith("cuda") else 32
    runs: dict[str, list[dict[str, Any]]] = {p: [] for p in wanted}
    fidelity: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        for turn in range(options.rounds):
            # All in one process, one after another: starting one takes longer than a GPU's work. fp64 is the yardstick, timed once.
            these = wanted[1:] if turn else wanted
            drawn = _by_precision(options, "shared", jobs, these, maps=name)
            rates = _by_precision(options, "decoded", [("cams", many, 1)], these)
            for precision in these:
                drawn[precision]["rows"] += rates[precision]["rows"]
                runs[precision].append(drawn[precision])
        for precision in wanted[1:]:
            fidelity[precision] = report.fidelity(Path(name, precision), Path(name, "fp64"))
    text = report.precision_table(runs, fidelity, machine(runs), options, many)
    return text, {"runs": runs, "fidelity": fidelity}, True


def _cost(options: argparse.Namespace) -> tuple[str, dict[str, Any], bool]:
    by_photographs = [("cams", n, 1) for n in (1, 2, 4, 8, 16, 32)] + [("vanilla", n, 1) for n in (1, 2, 4, 8, 16)]
    by_samples = [("smoothgrad", 1, n) for n in (1, 2, 4, 8, 12, 16, 20)]
    runs, starts = [], []
    for _ in range(options.rounds):
        runs.append(_child(options, "shared", by_photographs + by_samples))
        starts.append(_starts(options))
    lines = report.lines(runs)
    if options.plot:
        report.plot(lines, options.plot, machine())
    text = f"{report.cost_table(lines, machine())}\n\n{report.start_line(starts)}"
    return text, {"runs": runs, "lines": lines, "starts": starts}, True


BATCHES = {"cpu": (1, 2, 4, 8), "cuda": (4, 16, 32, 48, 64, 80, 96, 128)}
"""Sizes of one pass that are timed."""


def _passes(options: argparse.Namespace) -> tuple[str, dict[str, Any], bool]:
    kind = options.device.partition(":")[0]
    wanted = options.precision or ",".join(p for p in PRECISIONS[kind] if p != "fp64")
    found = _child(options, "passes", [("pass", batch, 1) for batch in BATCHES[kind]], precision=wanted)
    return report.passes_table(found["passes"], machine({"passes": [found]}), options), found, True


def _starts(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of whole processes: from the command to one photograph's Grad-CAM on the disk, by either engine; `--help`."""
    found = {}
    for name in ("help", "shared", "library"):
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
            command = [sys.executable, "-m", "torch_impl"]
            if name == "help":
                command += ["--help"]
            else:
                command += ["explain", str(images.defaults()[0]), "--weights", options.weights, "--methods", "gradcam"]
                command += ["--engine", name, "--device", options.device, "--quiet", "--out", str(Path(folder, "out"))]
            clock = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            found[name] = time.perf_counter() - clock
            if done.returncode:
                raise ChildError(f"explain: {(done.stderr.strip().splitlines() or ['it gave no reason'])[-1]}")
    return found


def _present(cuda: bool) -> list[str]:
    found = ["shared", "library", "stock"]
    for name, module in (("torch-cam", "torchcam"), ("tf-keras-vis", "tf_keras_vis")):
        if util.find_spec(module) is None:
            print(f"benchmarks: {name} is not installed here, and is left out", file=sys.stderr)
        elif not (cuda and name == "tf-keras-vis"):
            found.append(name)
    return found


def machine(runs: dict[str, list[dict[str, Any]]] | None = None) -> dict[str, str]:
    """What the figures hold for; with runs, also the GPU that they name."""
    device = next((run["device"] for rows in (runs or {}).values() for run in rows), "CPU")
    found = {} if device.endswith("CPU") else {"gpu": device}
    found |= {"cores": str(os.cpu_count()), "python": platform.python_version(), "processor": _processor()}
    for name in ("torch", "captum", "grad-cam", "torchcam", "tensorflow", "tf-keras-vis"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _device(text: str) -> str:
    if text.partition(":")[0] not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"{text!r}: give cpu, cuda or cuda:1")
    return text


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of photographs, such as 1,4,16")
    return found


if __name__ == "__main__":
    sys.exit(main())
