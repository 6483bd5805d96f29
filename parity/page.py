"""The report as one HTML file: what `page.html.jinja` and `page.css` show, out of a `ParityReport`.

Nothing here is HTML. Whatever a file or a user can name goes through the template, which escapes everything.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from parity import charts, pictures, tables
from parity.contract.text import printable
from parity.criterion import (
    DESCRIBED,
    DIFFERENT,
    FLOOR_FACTOR,
    FLOOR_LEAST,
    PEARSON_LEAST,
    SAME_FUNCTION,
    SAME_ROUNDING,
    Divergence,
    float64_limit,
    origin_of,
)
from parity.report import ANOTHER_CLASS, ANOTHER_SEED, ILL_CONDITIONED, RANDOM_WEIGHTS, ParityReport, grouped
from parity.tables import KINDS, Cell, error, is_overlay, numbered, title

ILL_FLOOR = 1e-3
"""A raw map whose own float32 in the reference is this far from its float64 (relative L2) is ill-conditioned there."""

FAR = 10.0
"""A port that shares the noise beats the noise ceiling by far: it is this many times nearer to a correlation of 1."""

SILENT = 1e-6
"""A noise ceiling as near to 1 as this says nothing: the noise hardly moves the map."""

MEANINGS = {
    SAME_FUNCTION: "in 64-bit numbers every stage agrees with the reference but for the last digits.",
    SAME_ROUNDING: "the maps are as near to the reference's float64 as its own float32 is, within the stated factor.",
    DIFFERENT: "a stage is farther from the reference than rounding explains. The first such stage is named below.",
    DESCRIBED: "this precision rounds more than float32 does. It is measured, and no verdict rests on it.",
}
"""What each verdict's word means."""

READINGS = {
    ANOTHER_SEED: "SmoothGrad's noise ceiling, the reference beside the same computation with the next seed. Two correct "
    "programs with noise of their own agree no better; with the same noise, as here, the port must beat it by far.",
    ANOTHER_CLASS: "the same network asked about another class. Where even this is high, the map hardly depends on the "
    "class, and a high correlation proves little.",
    RANDOM_WEIGHTS: "the port with random weights of the same spread. What is left comes from the photograph and the "
    "architecture, not from what the network has learnt.",
}
"""How to read each row of context."""


def render(report: ParityReport) -> str:
    """The page: the verdict first, then maps, stages, the ladder, and where everything comes from.

    Args:
        report: where its `reference` mapping holds `stages`, the names of all stages in the order of the computation,
            those that the candidate did not give are shown as gaps.

    Returns:
        A whole HTML document; the same report gives the same text.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(error=error, method=title, share=tables.share, unit=tables.unit)
    style = (here / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment.get_template("page.html.jinja")
    return page.render(style=style, digest=digest, report=report, **_view(report))


def _shown(value: Any) -> Any:
    """A value as the template writes it: text with what cannot be printed as an escape; but not what it wrote itself."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _view(report: ParityReport) -> dict[str, Any]:
    """Everything that the template shows beside the report itself, by name."""
    return {
        "word": report.word if report.verdicts or not report.holds else "nothing was compared",
        "kind": _kind(report),
        "kinds": KINDS,
        "meanings": MEANINGS,
        "readings": READINGS,
        "reference": report.reference.get("program", "not stated"),
        "weights": {"source": "not stated", "fingerprint": "not stated", **report.reference.get("weights", {})},
        "programs": _programs(report),
        "words": _words(report),
        "misread": [row for row in report.pixels_rows if row.judged and not row.within],
        "out_of_range": list(_out_of_range(report)),
        "remarks": _remarks(report),
        "partings": _partings(report),
        "verdicts": tables.verdicts(report),
        "marked": _marked(report),
        "bars": [pictures.bar(colours) for colours in (pictures.MAP_COLOURS, pictures.DIFFERENCE_COLOURS)],
        "drawn": _how_drawn(report),
        "subjects": [_subject(report, i) for i in sorted({key[1] for key in report.pictures})],
        "stages": [_stages(report, precision) for precision in dict.fromkeys(f.precision for f in report.figures)],
        "ladder": tables.correlations(report, [(rung.method, rung.what, rung.pearson) for rung in report.ladder]),
        "context": _context(report) if report.context else None,
        "criterion": _criterion(report),
        "environment": tables.environment(report),
    }


# --- header and verdict -----------------------------------------------------------------------------------------------


def _kind(report: ParityReport) -> str:
    """How the answer is shown."""
    if not report.holds:
        return "bad"
    return "good" if any(KINDS.get(v.word) == "good" for v in report.verdicts) else "note"


def _programs(report: ParityReport) -> dict[str, list[str]]:
    """The port's programs → the precisions that each computed in."""
    return grouped((str(side.get("program", "not stated")), precision) for precision, side in report.candidate.items())


def _words(report: ParityReport) -> dict[str, list[str]]:
    """Each verdict's word → the precisions that it is said of; what differs comes first."""
    words = grouped((v.word, v.precision) for v in report.verdicts)
    return words if report.holds else {DIFFERENT: [], **words}


def _partings(report: ParityReport) -> list[dict[str, Any]]:
    """Where it parts first: an item for each place and cause, not one for each photograph."""
    divergences = [d for v in report.verdicts if v.word == DIFFERENT for d in v.divergences]
    groups = grouped(((d.stage, d.cause or "not known"), d) for d in divergences)
    order = {name: k for k, name in enumerate(tables.stage_names(report))}
    items = []
    for (stage, cause), group in sorted(groups.items(), key=lambda item: order.get(item[0][0], len(order))):
        methods = grouped((title(d.method), d.precision) for d in group)
        items.append(
            {
                "stage": stage,
                "cause": cause,
                "worst": max(group, key=_excess),
                "photographs": len({d.photograph for d in group}),
                "methods": ", ".join(f"{method} ({', '.join(precisions)})" for method, precisions in methods.items()),
                "missing": max(d.not_given for d in group),
            }
        )
    return items


def _excess(d: Divergence) -> float:
    """How many times its limit a divergence is."""
    if math.isnan(d.figure):
        return math.inf
    return d.figure / d.limit if d.limit > 0 else 0.0


def _out_of_range(report: ParityReport) -> dict[str, int | None]:
    """The reference's remarks that its exp(score) left the range of the type → the photograph; None: not said which."""
    lost: dict[str, int | None] = {}
    for line in map(str, report.reference.get("warnings", ())):
        starts = {f"photograph {i + 1} ({p.name}): ": i for i, p in enumerate(report.photographs)}
        start = next((start for start in starts if line.startswith(start)), "")  # a file's name may hold any words
        if "exp(score)" in line.removeprefix(start):
            lost[line] = starts.get(start)
    return lost


def _is_out_of_range(report: ParityReport, method: str, i: int) -> bool:
    """Whether the reference's own map of a photograph went out of range: of methods that leave exp(score) in."""
    leaves_it_in = any(name == f"{method}/final_with_exp" for name in tables.stage_names(report))
    return leaves_it_in and any(photograph in (None, i) for photograph in _out_of_range(report).values())


def _remarks(report: ParityReport) -> list[str]:
    """What every program warned of, each once, but what is shown above already."""
    sides = (report.reference, *report.candidate.values())
    lines = dict.fromkeys(str(line) for side in sides for line in side.get("warnings", ()))
    lost = _out_of_range(report)
    return [line for line in lines if line not in lost]


def _criterion(report: ParityReport) -> dict[str, Any]:
    """The numbers that the verdict rests on; float64's own out of the figures: most stages' limit, and the exceptions."""
    limited = [f for f in report.figures if f.precision == "fp64" and not math.isnan(f.limit)]
    own = {f.stage for f in limited if origin_of(f)}
    limits = {tables.part(report, f.stage): float64_limit(f.stage.partition("/")[0]) for f in limited}
    least = min(limits.values(), default=None)
    others = {title(part): limit for part, limit in limits.items() if limit != least}
    return {
        "fp64": least,
        "others": others,
        "own": len(own),
        "drawn": report.reference.get("draws", 0),
        "factor": FLOOR_FACTOR,
        "least": FLOOR_LEAST,
        "pearson": PEARSON_LEAST,
        "moves": ILL_CONDITIONED,
        "floor": ILL_FLOOR,
    }


# --- maps -------------------------------------------------------------------------------------------------------------


def _how_drawn(report: ParityReport) -> dict[str, Any]:
    """Which maps are laid over the photograph, and which draw noise, with what settings."""
    methods = list(dict.fromkeys(key[0] for key in report.pictures))
    noisy = [m for m in methods if f"{m}/noise" in tables.stage_names(report)]
    return {
        "overlaid": ", ".join(title(m) for m in methods if is_overlay(m)),
        "noisy": ", ".join(map(title, noisy)),
        "settings": report.reference.get("settings", {}),
    }


def _subject(report: ParityReport, i: int) -> dict[str, Any]:
    """A photograph and its maps."""
    methods = dict.fromkeys(key[0] for key in report.pictures if key[1] == i)
    return {
        "i": i,
        "picture": pictures.photographic(report.pixels[i]),
        "reading": _reading(report, i),
        "maps": [_maps(report, method, i) for method in methods],
    }


def _maps(report: ParityReport, method: str, i: int) -> dict[str, Any]:
    """One method's maps of one photograph: those of the main precision, and the others'."""
    drawn = {
        key[2]: [pictures.port(report, *key), pictures.difference(report, *key)]
        for key in report.pictures
        if key[:2] == (method, i)
    }
    main = _main(drawn)
    words, ill = _moves(report, method, i)
    return {
        "method": method,
        "moves": words,
        "ill": ill,
        "out_of_range": _is_out_of_range(report, method, i),
        "shown": [pictures.reference(report, method, i, main), *drawn.pop(main)],
        "others": drawn,
        "likeness": tables.likeness(report, method, i),
    }


def _marked(report: ParityReport) -> dict[str, list[int]]:
    """Method → the photographs whose maps are ill-conditioned."""
    return grouped(key[:2] for key in report.pictures if _moves(report, *key[:2])[1])


def _stages(report: ParityReport, precision: str) -> dict[str, Any]:
    """One precision: charts of all photographs, and the same in figures."""
    each = range(len(report.photographs))
    return {
        "precision": precision,
        "charts": charts.stage_charts(report, precision),
        "tables": [tables.stages(report, precision, i) for i in ([None, *each] if len(each) > 1 else each)],
    }


def _main(precisions: Iterable[str]) -> str:
    """The precision that is shown first."""
    precisions = list(precisions)
    return "fp32" if "fp32" in precisions else next(iter(precisions), "")


def _reading(report: ParityReport, i: int) -> Cell:
    """Whether a photograph was read as Keras reads it."""
    row = next((row for row in report.pixels_rows if row.photograph == i), None)
    if row is None or (row.judged and not row.within and math.isnan(row.differing)):
        return Cell("not compared with Keras's load_img", "note")
    differ = f"{tables.share(row.differing)} of its pixels differ from Keras's load_img"
    if row.judged:
        return Cell("read as Keras's load_img reads it", "good") if row.within else Cell(differ, "bad", row.cause)
    return Cell("read otherwise on purpose, no verdict", "note", "; ".join([*row.notes, differ]))


def _moves(report: ParityReport, method: str, i: int) -> tuple[list[str], bool]:
    """How far a map moves by itself, and whether that makes it ill-conditioned, on either side."""
    moved = next((c for c in report.conditioning if (c.method, c.photograph) == (method, i)), None)
    floors = (f.floor_l2 for f in report.figures if (f.stage, f.photograph) == (f"{method}/raw", i))
    floor = math.nan if _is_out_of_range(report, method, i) else next(floors, math.nan)  # exp(score) is another matter
    words = []
    if moved:
        words.append(f"moves {_times(moved.amplification)} as far as its inputs")
    if not math.isnan(floor):
        words.append(f"reference's own float32 error: {error(floor)}")
    return words, floor > ILL_FLOOR or (moved is not None and moved.ill)


def _times(value: float) -> str:
    """How many times, in words."""
    if not math.isfinite(value):
        return "infinitely many times"
    if value == 0 or 0.01 <= value < 1e6:
        return f"{value:.2g} times" if value < 100 else f"{value:.0f} times"
    return f"{value:.1e} times"


# --- ladder and context -----------------------------------------------------------------------------------------------


def _context(report: ParityReport) -> dict[str, Any]:
    """What maps that are other ones on purpose would score, beside the port's own score."""
    main = _main(m.precision for m in report.map_figures)
    port: dict[str, list[float]] = {row.method: [] for row in report.context}
    for m in report.map_figures:
        if m.method in port and (m.precision, m.resolution) == (main, "final"):
            port[m.method].append(m.pearson)
    rows: list[tuple[str, str, Sequence[float]]] = []
    for method, own in port.items():
        rows += [(method, f"the port, {main}", own)] if own else []
        rows += [(method, row.what, row.pearson) for row in report.context if row.method == method]
    return {
        "whats": list(dict.fromkeys(row.what for row in report.context)),
        "beaten": [
            _beaten(report, row.pearson, port[row.method]) for row in report.context if row.what == ANOTHER_SEED
        ],
        "table": tables.correlations(report, rows),
    }


def _beaten(report: ParityReport, ceiling: Sequence[float], port: Sequence[float]) -> Cell:
    """Whether the port beats the noise ceiling, in a sentence."""
    apart = {  # photograph → the ceiling's and the port's distance from a correlation of 1
        i: (1 - other, math.inf if math.isnan(own) else 1 - own)
        for i, (other, own) in enumerate(zip(ceiling, port, strict=False))
        if not math.isnan(other)
    }
    if not apart:
        return Cell("")
    least = min(other for other, _ in apart.values())
    if least < SILENT:
        return Cell("Another seed hardly moves these maps, so here this ceiling says nothing.")
    if missed := [numbered(report, i) for i, (other, own) in apart.items() if own > other / FAR]:
        names = ", ".join(missed)
        return Cell(f"The port does not beat it by far on {names}: suspect that it does not use the same noise.", "bad")
    most = max(own for _, own in apart.values())
    return Cell(f"The port beats it by far: it is at most {error(most)} from 1, the ceiling at least {least:.2g}.")
