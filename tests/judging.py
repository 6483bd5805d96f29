"""What the tests of the judge share: a candidate on the golden reference's job, and artifacts with a number changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parity import candidate as candidates
from parity.candidate import Candidate, Job
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.criterion import Divergence, Figure
from parity.report import ParityReport
from torch_impl.candidate import Row
from torch_impl.candidate import candidate as port

BOTH = ("fp64", "fp32")


def job_of(reference: Artifact, precision: str = "fp64", methods: Sequence[str] = ()) -> Job:
    assert reference.network is not None
    return candidates.job_of(reference, reference.network, precision=precision, device="cpu", methods=methods)


def recorded(
    reference: Artifact, candidate: Candidate, precision: str = "fp64", methods: Sequence[str] = ()
) -> Artifact:
    """The candidate's answer."""
    job = job_of(reference, precision, methods)
    return candidates.record(candidate, job, reference.photographs, reference.settings)


def compared(reference: Artifact, candidate: Candidate, *precisions: str) -> ParityReport:
    return compare(reference, {precision: recorded(reference, candidate, precision) for precision in precisions})


def altered(change: Callable[[np.ndarray, int], Any], *stages: str) -> Candidate:
    """The port, but for what `change(array, photograph)` makes of these stages."""

    def candidate(job: Job) -> Iterator[Row]:
        for i, stage, array in port(job):
            yield i, stage, change(np.asarray(array, np.float64), i) if stage in stages else array

    return candidate


def with_array(artifact: Artifact, name: str, change: Callable[[np.ndarray], Any]) -> Artifact:
    """The artifact with one of its arrays changed in place."""
    array = artifact.arrays[name].copy()
    change(array)
    return replace(artifact, arrays={**artifact.arrays, name: array})


def rows(report: ParityReport, stage: str) -> list[Figure]:
    return [figure for figure in report.figures if figure.stage == stage]


def word(report: ParityReport, method: str) -> str:
    return next(verdict.word for verdict in report.verdicts if verdict.method == method)


def divergences(report: ParityReport) -> dict[str, list[Divergence]]:
    """Method that differs → where, photograph by photograph."""
    return {verdict.method: list(verdict.divergences) for verdict in report.verdicts if not verdict.holds}
