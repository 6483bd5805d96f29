"""One candidate in one precision, in a process of its own, so that its memory goes back when it is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from parity import candidate as candidates
from parity import context, port, twins
from parity.candidate import CandidateError
from parity.contract.artifact import Artifact
from parity.contract.command import FAILED, TRACEBACK
from parity.contract.text import one_line

Result = TypeVar("Result")

Drawn = dict[str, list[Any]]
"""`ladder`, `context`, `conditioning` → rows of the report, which the port draws."""


def answer(
    reference: Path,
    candidate: str,
    weights: str,
    *,
    precision: str,
    device: str,
    methods: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> tuple[Artifact, Drawn]:
    """Run a candidate in this process.

    Args:
        reference: its artifact's path.
        candidate: `module:function`.
        weights: where the network comes from, if the artifact does not hold it.
        precision: of the candidate.
        device: likewise.
        methods: some of the reference's; none: all.
        rows: `ladder`, `context`: to be drawn too. `conditioning` is, in float64.

    Raises:
        CandidateError: the candidate cannot be found, or its answer not be used.
        WeightsError: the network cannot be had.
        Exception: whatever the candidate raises.
    """
    artifact = Artifact.read(reference)
    network = artifact.network or port.candidate().load_weights(weights, artifact.settings.input)
    job = candidates.job_of(artifact, network, precision=precision, device=device, methods=methods)
    given = candidates.record(candidates.load(candidate), job, artifact.photographs, artifact.settings)
    drawn: Drawn = {}
    if "ladder" in rows:
        drawn["ladder"] = list(context.ladder(job, artifact))
    if "context" in rows:
        drawn["context"] = list(context.rows(job, artifact))
    if precision == "fp64":
        ours = candidate in port.ENGINES.values()
        known = {method: given.whole(f"{method}/raw", "fp64") for method in job.methods} if ours else {}
        drawn["conditioning"] = list(context.conditioning(job, known))
    return given, drawn


def transferred(reference: Path, weights: str, model: str, out: str) -> tuple[bool, list[str]]:
    """Fill a module with a reference's weights and write its state dict; whether that was done, and lines that say so."""
    try:
        filled = twins.transfer(reference, weights, model, out)
    except twins.TransferStoppedError as error:
        return False, [str(error)]
    counters = [name for name in filled.kept if name.endswith("num_batches_tracked")]
    others = [name for name in filled.kept if name not in counters]
    kept = [f"{len(counters)} counters (num_batches_tracked)"] * bool(counters) + others
    passes = f"{filled.passes} forward pass{'es' if filled.passes > 1 else ''}"
    lines = [
        f"{len(filled.layers)} layers filled in {passes}; logits agree in float64 to {filled.error:.1e} (relative L2)",
        f"stayed as they were: {', '.join(kept)}" if kept else "",
        f"wrote {out}",
    ]
    return True, [line for line in lines if line]


def found(candidate: str) -> None:
    """See whether a candidate is there, in this process; errors as `candidate.load`."""
    candidates.load(candidate)


def in_child(task: Callable[[], Result], *, quiet: bool = False) -> Result:
    """Do a task in a process of its own.

    Args:
        task: `answer` or `found`, say, with its arguments, by `functools.partial`.
        quiet: hide what the candidate prints; otherwise it goes to stderr.

    Raises:
        CandidateError: it failed, in one line, or its process ended.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_main, args=(theirs, task, quiet))
    process.start()
    theirs.close()
    try:
        outcome = ours.recv()
    except EOFError:
        process.join()
        status = process.exitcode or 0
        ended = f"was killed by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
        raise CandidateError(f"the candidate's process {ended}") from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if isinstance(outcome, str):
        raise CandidateError(outcome)
    return outcome  # type: ignore[no-any-return]


def _main(pipe: Connection, task: Callable[[], Any], quiet: bool) -> None:
    """In the new process: send the answer, or the line that says why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's, which ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # so that temporary files go
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    try:
        pipe.send(task())
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        pipe.send(words(error))


def words(error: Exception) -> str:
    """What a user is told of an error in a candidate, which is anybody's code."""
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"the candidate failed: {type(error).__name__}: {one_line(str(error))} ({Path(where.filename).name}:{where.lineno})"
