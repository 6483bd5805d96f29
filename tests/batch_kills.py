"""A batch run killed again and again: `python batch_kills.py WEIGHTS PHOTOGRAPHS FOLDER KILLS SEED`. Prints JSON.

Everything is imported once; each start is a fork, so that a kill costs as long as the run was let go on, not the imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from batch_runs import METHODS

from torch_impl.__main__ import main
from torch_impl.batch import loading

PART_ROWS = "3"


def start(weights: str, photographs: str, out: Path) -> int:
    """One start of the run in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        os._exit(work(weights, photographs, out))
    return child


def work(weights: str, photographs: str, out: Path) -> int:
    given = ["batch", photographs, "--out", str(out), "--weights", weights, "--methods", METHODS, "--loaders", "1"]
    return main([*given, "--part-rows", PART_ROWS, "--device", "cpu", "--batch-size", "2", "--quiet"])


def parts(out: Path) -> dict[str, int]:
    """Finished parts and when they were written; each must be whole, whenever one looks."""
    found = {}
    for path in (out / "rows").glob("part-*.parquet"):
        pq.read_table(path)
        found[path.name] = path.stat().st_mtime_ns
    return found


def until(out: Path, count: int, child: int) -> None:
    """Wait for so many finished parts, or for the child's end."""
    while len(list((out / "rows").glob("part-*.parquet"))) < count:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def run(weights: str, photographs: str, folder: Path, kills: int, seed: int) -> dict[str, object]:
    generator = random.Random(seed)
    loading.PIECE = 2  # or all photographs are there at once, and all parts
    torch.set_num_threads(1)  # no thread of its own may be lost in a fork
    assert work(weights, photographs, folder / "undisturbed") in (0, 3)  # and everything is imported
    clock = time.perf_counter()
    _, status = os.waitpid(start(weights, photographs, folder / "timed"), 0)
    seconds = time.perf_counter() - clock
    assert os.waitstatus_to_exitcode(status) in (0, 3), status
    stages: list[int] = []
    rewritten = finished = 0
    outs: list[str] = []
    while len(stages) < kills:
        out = folder / f"killed{len(outs)}"
        outs.append(out.name)
        before: dict[str, int] = {}
        for attempt in range(200):
            child = start(weights, photographs, out)
            last = attempt > 20 or len(stages) >= kills
            if not last:
                # After some more parts, or none, and then at any moment: so that a busy machine cannot make all kills early.
                until(out, len(before) + generator.randrange(4), child)
                time.sleep(generator.uniform(0.0, 0.3 * seconds))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            now = parts(out)
            rewritten += sum(now.get(name) != written for name, written in before.items())
            before = now
            if os.waitstatus_to_exitcode(status) in (0, 3):
                finished += 1
                break
            if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
                raise SystemExit(f"a start ended with {os.waitstatus_to_exitcode(status)}")
            stages.append(len(now))
    return {"outs": outs, "stages": stages, "rewritten": rewritten, "finished": finished, "seconds": seconds}


if __name__ == "__main__":
    weights, photographs, folder, kills, seed = sys.argv[1:]
    print(json.dumps(run(weights, photographs, Path(folder), int(kills), int(seed))))
