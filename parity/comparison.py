"""Reference and candidate → report; and the same as an assertion for anybody's test suite."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from parity import candidate as candidates
from parity import formulas, similarity, verdict
from parity.candidate import Candidate, CandidateError, Job
from parity.causes import probable_cause
from parity.contract.artifact import Artifact
from parity.contract.network import Network
from parity.report import (
    Conditioning,
    ContextRow,
    MapFigures,
    Native,
    ParityReport,
    Pictures,
    PixelsRow,
    Rung,
    provenance,
)


def compare(
    reference: Artifact,
    found: Mapping[str, Artifact],
    *,
    pixels_rows: Iterable[PixelsRow] = (),
    ladder: Iterable[Rung] = (),
    context: Iterable[ContextRow] = (),
    conditioning: Iterable[Conditioning] = (),
    native: Native | None = None,
) -> ParityReport:
    """Judge candidates by the reference.

    Args:
        reference: with float64; with float32 too (`--floor`), or float32 is judged by the least limits alone.
        found: precision → the candidate's artifact.
        pixels_rows: how photographs were read.
        ladder: from plain calls to the port.
        context: what other maps on purpose would score.
        conditioning: how far maps move by themselves.
        native: torchvision's own network beside Keras's.

    Raises:
        CandidateError: the two did not do the same job, or the reference lacks float64.
    """
    if "fp64" not in reference.precisions:
        raise CandidateError("the reference artifact holds no float64: write it with python -m keras_ref --floor")
    figures: list[verdict.Figure] = []
    verdicts: list[verdict.Verdict] = []
    pictures: dict[tuple[str, int, str], Pictures] = {}
    maps: list[MapFigures] = []
    size = reference.weights.architecture.size
    for precision, one in found.items():
        _same_job(reference, one, precision)
        rows = verdict.figures(reference, one, precision)
        figures += rows
        verdicts += verdict.verdicts(reference, one, precision, rows, probable_cause)
        for method in one.settings.methods:
            ours, theirs = (x.whole(f"{method}/raw", p) for x, p in ((reference, "fp64"), (one, precision)))
            for i in range(len(reference.photographs)):
                drawn = Pictures(formulas.finish(ours[i], size), _drawn(theirs[i], size))
                pictures[method, i, precision] = drawn
                maps.append(_map_figures(method, i, precision, "raw", theirs[i], ours[i]))
                maps.append(_map_figures(method, i, precision, "final", drawn.candidate, drawn.reference))
    return ParityReport(
        photographs=reference.photographs,
        pixels=reference.pixels,
        verdicts=tuple(verdicts),
        figures=tuple(figures),
        pixels_rows=tuple(pixels_rows),
        ladder=tuple(ladder),
        context=tuple(context),
        conditioning=tuple(conditioning),
        map_figures=tuple(maps),
        native=native,
        reference={**provenance(reference), "warnings": [*reference.warnings, *_remarks(reference)]},
        candidate={precision: provenance(one) for precision, one in found.items()},
        pictures=pictures,
    )


def assert_parity(
    candidate: Candidate | Artifact | str | os.PathLike[str],
    reference: Artifact | str | os.PathLike[str],
    *,
    precisions: Sequence[str] = ("fp64", "fp32"),
    methods: Sequence[str] = (),
    device: str = "cpu",
    network: Network | None = None,
) -> ParityReport:
    """Fail unless the candidate computes the reference's maps. For other people's test suites.

    Args:
        candidate: a function `candidate(job)` (see `parity.candidate`), its `module:name`, an artifact, or an artifact's path.
        reference: an artifact that `python -m keras_ref --floor` wrote, or its path.
        precisions: to run a function in, one after the other.
        methods: some of the reference's; none: all.
        device: to run a function on.
        network: the weights; None: those embedded in the artifact (networks under 1 MB).

    Returns:
        The report, for whoever wants its figures.

    Raises:
        AssertionError: it differs; the message names method, photograph, stage, figure, limit and probable cause.
        CandidateError: it could not be compared.
        ArtifactError: an artifact cannot be read.
    """
    if not isinstance(reference, Artifact):
        reference = Artifact.read(reference)
    if isinstance(candidate, (str, os.PathLike)):
        name = os.fspath(candidate)
        candidate = Artifact.read(name) if os.path.exists(name) or ":" not in name else candidates.load(name)
    if isinstance(candidate, Artifact):
        found = dict.fromkeys(candidate.precisions, candidate)
    else:
        known = network or reference.network
        if known is None:
            raise CandidateError("the reference's weights are too large to be in its artifact: give network=…")
        found = {}
        for precision in precisions:
            job: Job = candidates.job_of(reference, known, precision=precision, device=device, methods=methods)
            found[precision] = candidates.record(candidate, job, reference.photographs, reference.settings)
    report = compare(reference, found)
    if not report.holds:
        raise AssertionError(f"the candidate does not draw the reference's maps\n{report.as_table()}")
    return report


def _same_job(reference: Artifact, one: Artifact, precision: str) -> None:
    """Refuse, by name, artifacts that did different jobs."""
    if precision not in one.precisions:
        raise CandidateError(
            f"the candidate's artifact holds {', '.join(one.precisions) or 'nothing'}, not {precision}"
        )
    if one.weights.fingerprint != reference.weights.fingerprint:
        raise CandidateError(
            f"different weights: the candidate's have fingerprint {one.weights.fingerprint[:12]}, "
            f"the reference's {reference.weights.fingerprint[:12]}"
        )
    if one.classes != reference.classes:
        raise CandidateError(
            f"different classes: the candidate explains {one.classes}, the reference {reference.classes}"
        )
    if not np.array_equal(one.pixels, reference.pixels):
        raise CandidateError(
            "different pixels: the candidate's artifact is of other photographs, or reads them otherwise"
        )
    s, t = one.settings, reference.settings
    for what in ("n_samples", "noise_level", "seed", "input", "sample"):
        if getattr(s, what) != getattr(t, what):
            raise CandidateError(
                f"different {what}: the candidate has {getattr(s, what)}, the reference {getattr(t, what)}"
            )
    if missing := [m for m in s.methods if m not in t.methods]:
        raise CandidateError(f"the reference artifact does not hold {', '.join(missing)}")
    for method in s.methods:
        if not one.has(f"{method}/raw", precision):
            raise CandidateError(f"the candidate's artifact lacks {method}/raw in {precision}: raw maps are required")


def _remarks(reference: Artifact) -> list[str]:
    """What a reader must know of the photographs themselves."""
    lines = []
    for i, photograph in enumerate(reference.photographs):
        share = float(verdict.undecided(reference, i).mean())
        if share and "vanilla" in reference.settings.methods:
            lines.append(
                f"photograph {i + 1} ({photograph.name}): {share:.1%} of its pixels are left out of vanilla saliency and of "
                "the gradients: equal pixels tie in a max-pool there, and the gradient has no one value"
            )
    return lines


def _map_figures(
    method: str, photograph: int, precision: str, resolution: str, theirs: np.ndarray, ours: np.ndarray
) -> MapFigures:
    flat = [name for name, drawn in (("reference", ours), ("candidate", theirs)) if np.ptp(drawn) == 0]
    return MapFigures(
        method,
        photograph,
        precision,
        resolution,
        "both" if len(flat) == 2 else "".join(flat),
        similarity.pearson(theirs, ours),
        similarity.spearman(theirs, ours),
        similarity.ssim(theirs, ours),
        similarity.relative_l2(theirs, ours),
        similarity.error_of_range(theirs, ours),
        similarity.overlap(theirs, ours),
        similarity.shift(theirs, ours),
    )


def _drawn(raw: np.ndarray, size: int) -> np.ndarray:
    """A candidate's map as a picture, whatever it holds."""
    safe = np.where(np.isfinite(raw), raw.astype(np.float64), 0.0)
    largest = float(np.abs(safe).max(initial=0))
    return formulas.finish(safe / largest if largest > 1e300 or math.isinf(largest) else safe, size)
