"""Everything that needs a GPU, once: `python -m benchmarks on-gpu --out FILE`. A part that fails is told, and the next one runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import Outcome, about, device_of
from benchmarks.worker import ROOT
from parity.contract.files import whole

NAMED = "Parity in TF32, which is to be named"
"""The part in which status 1, another function, is the right answer."""

TAIL = 20
"""Lines of a failed part's errors that are kept."""


def parts_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """(title, command after `python -m`, why it is left out or ""), the most wanted first."""
    where = ["--device", options.device, "--weights", options.weights]
    yield "CUDA tests", ["pytest", "-m", "cuda and not slow"], ""
    missing = "" if options.reference else "no --reference was given"
    reference = ["--reference", os.path.abspath(options.reference or ""), "--no-ladder", "--out"]
    yield "Parity", ["parity", *where, "--precision", "fp64,fp32", *reference, str(folder / "float")], missing
    yield NAMED, ["parity", *where, "--precision", "tf32", *reference, str(folder / "tf32")], missing
    yield "Convolutions", ["benchmarks", "convolutions", *where], ""
    yield "Speed", ["benchmarks", "speed", *where], ""
    yield "Passes", ["benchmarks", "passes", *where], ""
    yield "Number formats", ["benchmarks", "precision", *where], ""


def on_gpu(options: argparse.Namespace) -> Outcome:
    """For whoever has a GPU, once: CUDA tests, parity, the convolutions and all tables, into one file."""
    header = about(device_of(options.device)[0])  # no such device: refused at once
    end = time.monotonic() + 60 * options.minutes
    summary, sections, good = list[str](), list[str](), True
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        for title, command, missing in parts_of(options, Path(folder)):
            print(f"… {title}", file=sys.stderr, flush=True)
            status, output = (f"left out: {missing}", "") if missing else run_part(command, end - time.monotonic())
            good = good and (bool(missing) or status.startswith("done") or (title == NAMED and "status 1)" in status))
            summary.append(f"- {title}: {status}")
            sections.append(f"## {title}: {status}\n\n`python -m {' '.join(command)}`\n\n{output}")
            with whole(options.out) as path:
                path.write_text("\n\n".join(["# On a GPU", header, "\n".join(summary), *sections]), encoding="utf-8")
    return Outcome("\n".join([*summary, f"wrote {options.out}"]), good=good)


def run_part(command: list[str], seconds: float) -> tuple[str, str]:
    """Run one command, for so many seconds at the most.

    Returns:
        Its status in words, `done in 9 s`; what it printed, and of a failed one the end of its errors.
    """
    if seconds <= 0:
        return "left out: the time is over", ""
    began, arguments = time.monotonic(), [sys.executable, "-m", *command]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # ours end what they have started
            output, errors = process.communicate()
    took = f"{time.monotonic() - began:.0f} s"
    if process.returncode == 0:
        return f"done in {took}", output.strip()
    kept = "\n".join([output, *errors.splitlines()[-TAIL:]])
    return f"FAILED (status {process.returncode}) after {took}", kept.strip()
