"""Reference and candidate → report; and the same as an assertion for anybody's test suite."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity import candidate as candidates
from parity import criterion, formulas, rounding, twins
from parity.candidate import Candidate, CandidateError
from parity.causes import probable_cause
from parity.contract.artifact import Artifact
from parity.contract.methods import METHODS
from parity.contract.network import Network
from parity.port import Preprocess
from parity.report import Conditioning, MapFigures, OtherMap, ParityReport, Pictures, PixelsRow, provenance
from parity.similarity import error_of_range, overlap, pearson, relative_l2, shift, spearman, ssim

MEASURES = (pearson, spearman, ssim, relative_l2, error_of_range, overlap, shift)
"""How alike two maps are, in the order of `MapFigures`."""


def compare(
    reference: Artifact,
    answers: Mapping[str, Artifact],
    *,
    pixels_rows: Iterable[PixelsRow] = (),
    ladder: Iterable[OtherMap] = (),
    context: Iterable[OtherMap] = (),
    conditioning: Iterable[Conditioning] = (),
) -> ParityReport:
    """Judge candidates by the reference.

    Args:
        reference: with float64; with float32 too (`--floor`), or float32 is judged by the least limits alone.
        answers: precision → the candidate's artifact.
        pixels_rows: how photographs were read.
        ladder: from plain calls to the port.
        context: what other maps on purpose would score.
        conditioning: how far maps move by themselves.

    Raises:
        CandidateError: the two did not do the same job, or the reference lacks float64.
    """
    if "fp64" not in reference.precisions:
        raise CandidateError("the reference artifact holds no float64: write it with python -m keras_ref --floor")
    figures: list[criterion.Figure] = []
    verdicts: list[criterion.Verdict] = []
    pictures: dict[tuple[str, int, str], Pictures] = {}
    map_figures: list[MapFigures] = []
    for precision, answer in answers.items():
        _check_same_job(reference, answer, precision)
        rows = criterion.figures(reference, answer, precision)
        figures += rows
        verdicts += criterion.verdicts(reference, answer, precision, rows, probable_cause)
        map_figures += _maps(reference, answer, precision, pictures)
    roundings = _roundings(reference, answers["fp64"]) if "fp64" in answers else []
    return ParityReport(
        photographs=reference.photographs,
        pixels=reference.pixels,
        verdicts=tuple(verdicts),
        figures=tuple(figures),
        pixels_rows=tuple(pixels_rows),
        ladder=tuple(ladder),
        context=tuple(context),
        conditioning=tuple(conditioning),
        map_figures=tuple(map_figures),
        reference={**provenance(reference), "warnings": [*reference.warnings, *_remarks(reference), *roundings]},
        candidate={precision: provenance(answer) for precision, answer in answers.items()},
        pictures=pictures,
    )


def assert_parity(
    candidate: Candidate | Artifact | Any,
    reference: Artifact | str | os.PathLike[str],
    *,
    precisions: Sequence[str] = ("fp64", "fp32"),
    methods: Sequence[str] = (),
    device: str = "cpu",
    network: Network | None = None,
    layers: Mapping[str, str] | None = None,
    target_layer: str = "",
    preprocess: str | Preprocess = "",
) -> ParityReport:
    """Fail unless the candidate computes the reference's maps. For other people's test suites.

    Args:
        candidate: a PyTorch module; a function `candidate(job)`, as of `parity.candidate`; its `module:name`; an artifact or its path.
        reference: an artifact that `python -m keras_ref --floor` wrote, or its path.
        precisions: to run a function in, one after the other.
        methods: some of the reference's; none: all.
        device: to run a function on.
        network: the weights; None: those embedded in the artifact (networks under 1 MB).
        layers: of a PyTorch module, the reference's layer → the module that is it, where pairing needs to be told.
        target_layer: of a PyTorch module, the one that is the target layer; "": found by pairing.
        preprocess: of a PyTorch module, its own preprocessing, uint8 (N, H, W, 3) → (N, C, H, W), or its
            `module:name`; "": it is given the reference's inputs.

    Returns:
        The report, for whoever wants its figures.

    Raises:
        AssertionError: it differs; the message names method, photograph, stage, figure, limit and probable cause.
        CandidateError: it could not be compared.
        ArtifactError: an artifact cannot be read.
    """
    reference = Artifact.of(reference)
    if isinstance(candidate, (str, os.PathLike)):
        name = os.fspath(candidate)
        candidate = Artifact.read(name) if os.path.exists(name) or ":" not in name else candidates.load(name)
    how: dict[str, Any] = {"device": device, "methods": methods}
    if isinstance(candidate, Artifact):
        answers = dict.fromkeys(candidate.precisions, candidate)
    elif hasattr(candidate, "state_dict"):  # an nn.Module, which this package does not import
        module = twins.Module(candidate, layers or {}, target_layer, preprocess)
        answers = {p: twins.answer(reference, module, precision=p, **how) for p in precisions}
    else:
        answers = {p: _answer(candidate, reference, network, precision=p, **how) for p in precisions}
    report = compare(reference, answers)
    if not report.holds:
        raise AssertionError(f"the candidate does not draw the reference's maps\n{report.as_table()}")
    return report


def _answer(candidate: Candidate, reference: Artifact, network: Network | None, **how: Any) -> Artifact:
    """What a function gives; `how` as of `candidate.job_of`."""
    weights = network or reference.network
    if weights is None:
        raise CandidateError("the reference's weights are too large to be in its artifact: give network=…")
    job = candidates.job_of(reference, weights, **how)
    return candidates.record(candidate, job, reference.photographs, reference.settings)


def _check_same_job(reference: Artifact, answer: Artifact, precision: str) -> None:
    """Refuse, by name, artifacts that did different jobs."""
    if precision not in answer.precisions:
        given = ", ".join(answer.precisions) or "nothing"
        raise CandidateError(f"the candidate's artifact holds {given}, not {precision}")
    if not np.array_equal(answer.pixels, reference.pixels):
        raise CandidateError(
            "different pixels: the candidate's artifact is of other photographs, or reads them otherwise"
        )
    jobs = [
        {
            "weights": f"those of fingerprint {side.weights.fingerprint[:12]}",
            "classes": side.classes,
            **vars(side.settings.options),
            "input": side.settings.input,
            "sample": side.settings.sample,
        }
        for side in (answer, reference)
    ]
    for what, theirs in jobs[0].items():
        if theirs != jobs[1][what]:
            raise CandidateError(f"different {what}: the candidate has {theirs}, the reference {jobs[1][what]}")
    for method in candidates.methods_of(reference, answer.settings.methods):
        if not answer.has(f"{method}/raw", precision):
            raise CandidateError(f"the candidate's artifact lacks {method}/raw in {precision}: raw maps are required")


def _remarks(reference: Artifact) -> list[str]:
    """What a reader must know of the photographs themselves."""
    at_input = [METHODS[name] for name in reference.settings.methods if not METHODS[name].at_layer]
    exact = [method.title for method in at_input if not method.noisy]
    if not exact:
        return []
    looked_for = reference.undecided is not None or rounding.blocks_of(reference.table) is not None
    if not looked_for and any(layer.kind == "pool" for layer in reference.table.layers):
        return [
            "ties in max-pools were not looked for: the network is no chain of 3×3 convolutions and 2×2 max-pools, so where "
            "equal pixels tie a gradient may differ"
        ]
    lines = []
    for i, photograph in enumerate(reference.photographs):
        share = float(rounding.ties(reference, i).mean())
        if share:
            lines.append(
                f"photograph {i + 1} ({photograph.name}): {share:.1%} of its pixels are left out of "
                f"{' and '.join(exact).lower()} and of the gradients: equal pixels tie in a max-pool there, and the "
                "gradient has no one value"
            )
    return lines


def _roundings(reference: Artifact, answer: Artifact) -> list[str]:
    """Where the two sides round Score-CAM's weights apart; see `rounding.rounded_otherwise`."""
    lines = []
    for method in answer.settings.methods:
        for i, photograph in enumerate(reference.photographs):
            moved = rounding.rounded_otherwise(reference, answer, method, i)
            if moved is not None:
                lines.append(
                    f"photograph {i + 1} ({photograph.name}): {np.count_nonzero(moved)} of {METHODS[method].title}'s scores "
                    "lie halfway between two float32 numbers, and the two sides round them apart: compared with the "
                    "reference's weights"
                )
    return lines


def _maps(
    reference: Artifact, answer: Artifact, precision: str, pictures: dict[tuple[str, int, str], Pictures]
) -> Iterator[MapFigures]:
    """How alike every raw and final map is; both sides' final ones, drawn from the raw ones, go into `pictures`."""
    size = reference.table.size
    for method in answer.settings.methods:
        raw = zip(reference.whole(f"{method}/raw", "fp64"), answer.whole(f"{method}/raw", precision), strict=True)
        for i, (ours, theirs) in enumerate(raw):
            drawn = Pictures(formulas.finish(ours, size), _drawn(theirs, size))
            pictures[method, i, precision] = drawn
            yield _alike(method, i, precision, "raw", theirs, ours)
            yield _alike(method, i, precision, "final", drawn.candidate, drawn.reference)


def _alike(
    method: str, photograph: int, precision: str, resolution: str, theirs: np.ndarray, ours: np.ndarray
) -> MapFigures:
    flat = [name for name, drawn in (("reference", ours), ("candidate", theirs)) if np.ptp(drawn) == 0]
    constant = "both" if len(flat) == 2 else "".join(flat)
    values = (measure(theirs, ours) for measure in MEASURES)
    return MapFigures(method, photograph, precision, resolution, constant, *values)


def _drawn(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A candidate's map as a picture, whatever it holds."""
    safe = np.where(np.isfinite(raw), raw.astype(np.float64), 0.0)
    largest = float(np.abs(safe).max(initial=0))
    return formulas.finish(safe / largest if largest > 1e300 or math.isinf(largest) else safe, size)
