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
from typing import TextIO

from benchmarks.commands import Outcome, about, device_of
from benchmarks.worker import ROOT

NAMED = "Parity in TF32, which is to be named"
"""The part in which status 1, another function, is the right answer."""


def parts_of(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """(title, command after `python -m`, why it is left out or ""), the most wanted first."""
    where = ["--device", options.device, "--weights", options.weights]
    missing = "" if options.reference else "no --reference was given"
    reference = ["--reference", os.path.abspath(options.reference or ""), "--no-ladder", "--out"]
    yield "Parity", ["parity", *where, "--precision", "fp64,fp32", *reference, str(folder / "float")], missing
    yield NAMED, ["parity", *where, "--precision", "tf32", *reference, str(folder / "tf32")], missing
    yield "Speed", ["benchmarks", "speed", "--photographs", "4", *where], ""
    yield "Large sets", ["benchmarks", "large", "decode", "--device", options.device], ""
    yield "CUDA tests", ["pytest", "-m", "cuda and not slow", "--tb", "short"], ""
    yield "Convolutions", ["benchmarks", "convolutions", *where], ""
    yield "Passes", ["benchmarks", "passes", *where], ""
    yield "Number formats", ["benchmarks", "precision", *where], ""


def on_gpu(options: argparse.Namespace) -> Outcome:
    """For whoever has a GPU, once: CUDA tests, parity, a large set, the convolutions and all tables, into one file."""
    header = about(device_of(options.device)[0])  # no such device: refused at once
    end = time.monotonic() + 60 * options.minutes
    summary, good = list[str](), True
    # Written line by line, where it is to stay: whatever ends this early, what was measured is there.
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, options.out.open("w", encoding="utf-8") as file:
        print(f"# On a GPU\n\n{header}", file=file)
        for title, command, missing in parts_of(options, Path(folder)):
            print(f"… {title}", file=sys.stderr, flush=True)
            print(f"\n## {title}\n\n`python -m {' '.join(command)}`\n", file=file, flush=True)
            status = f"left out: {missing}" if missing else run_part(command, end - time.monotonic(), file)
            good = good and (bool(missing) or status.startswith("done") or (title == NAMED and "status 1)" in status))
            summary.append(f"- {title}: {status}")
            print(f"\n{status}", file=file)
        print("\n## Summary\n", *summary, sep="\n", file=file)
    return Outcome("\n".join([*summary, f"wrote {options.out}"]), good=good)


def run_part(command: list[str], seconds: float, file: TextIO) -> str:
    """Run one command, for so many seconds at the most; what it prints goes to the file at once, its errors among it.

    Returns:
        Its status in words: `done in 9 s`.
    """
    if seconds <= 0:
        return "left out: the time is over"
    began, arguments = time.monotonic(), [sys.executable, "-u", "-m", *command]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # ours end what they have started
    took = f"{time.monotonic() - began:.0f} s"
    return f"done in {took}" if process.returncode == 0 else f"FAILED (status {process.returncode}) after {took}"
