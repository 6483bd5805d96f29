"""One candidate in one precision, in a process of its own, so that its memory goes back when it is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from parity import candidate as candidates
from parity import context, port
from parity.candidate import CandidateError
from parity.contract.artifact import Artifact
from parity.contract.command import FAILED, TRACEBACK
from parity.contract.text import one_line
from parity.report import Conditioning, ContextRow, Rung


@dataclass(frozen=True)
class Task:
    """What the process is to do.

    Attributes:
        reference: its artifact's path.
        candidate: `module:function`.
        weights: where the network comes from, if the artifact does not hold it.
        precision: of the candidate.
        device: likewise.
        methods: some of the reference's; none: all.
        ladder: also what the libraries' plain calls draw.
        context: also what other maps on purpose would score.
    """

    reference: Path
    candidate: str
    weights: str
    precision: str
    device: str
    methods: tuple[str, ...] = ()
    ladder: bool = False
    context: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of it: the candidate's artifact, and rows of the report that the port draws."""

    artifact: Artifact
    ladder: tuple[Rung, ...]
    context: tuple[ContextRow, ...]
    conditioning: tuple[Conditioning, ...]


def answer(task: Task) -> Answer:
    """Do it in this process.

    Raises:
        CandidateError: the candidate cannot be found, or its answer not be used.
        WeightsError: the network cannot be had.
        Exception: whatever the candidate raises.
    """
    reference = Artifact.read(task.reference)
    network = reference.network or port.load_weights(task.weights, reference.settings.input)
    job = candidates.job_of(reference, network, precision=task.precision, device=task.device, methods=task.methods)
    artifact = candidates.record(candidates.load(task.candidate), job, reference.photographs, reference.settings)
    conditioning: tuple[Conditioning, ...] = ()
    if task.precision == "fp64":
        ours = task.candidate in port.ENGINES.values()
        known = {method: artifact.whole(f"{method}/raw", "fp64") for method in job.methods} if ours else {}
        conditioning = tuple(context.conditioning(job, known))
    return Answer(
        artifact,
        tuple(context.ladder(job, reference)) if task.ladder else (),
        tuple(context.rows(job, reference)) if task.context else (),
        conditioning,
    )


def answer_of_child(task: Task, *, quiet: bool = False) -> Answer:
    """Do it in a process of its own.

    Args:
        task: what to do.
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
        raise CandidateError(f"the process of candidate {task.candidate} {ended}") from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if isinstance(outcome, str):
        raise CandidateError(outcome)
    return outcome  # type: ignore[no-any-return]


def _main(pipe: Connection, task: Task, quiet: bool) -> None:
    """In the new process: send the answer, or the line that says why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's, which ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # so that temporary files go
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    try:
        pipe.send(answer(task))
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
