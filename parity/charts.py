"""The page's stage charts, as SVG by matplotlib.

Each is an image of its own, a `data:` address, so that the ids and styles of one cannot reach another, or the page.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing

from parity.contract.text import printable
from parity.criterion import Figure
from parity.pictures import Picture, Shown, address
from parity.report import ParityReport
from parity.tables import error, gathered, largest, part, title

INK, MUTED, LINE, BLUE, RED, ROSE = "#1b1b1f", "#55585e", "#d3d6db", "#0b50c4", "#a3150f", "#fdebe9"

WIDTH, ROW, LABELS, RIGHT, TOP = 3.6, 0.16, 1.35, 0.15, 0.4
"""Inches of a chart: a phone's width, so that its text needs no shrinking there; a line; stage names; margins."""

ROWS = 26
"""Stages in one chart: as many as fit a phone, or a third of a page of paper."""

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "parity",  # the same report gives the same page
    "text.parse_math": False,  # a layer may have any name
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9.0,
    "text.color": INK,
}

MARKS: dict[tuple[str, bool], dict[str, Any]] = {  # what, and whether it is judged; those that come later lie on top
    ("other", True): {"marker": ".", "color": BLUE, "markersize": 4},
    ("other", False): {"marker": ".", "color": BLUE, "markersize": 4},
    ("floor", True): {"marker": "D", "color": MUTED, "markerfacecolor": "none", "markersize": 4.5},
    ("floor", False): {"marker": "D", "color": MUTED, "markerfacecolor": "none", "markersize": 4.5},
    ("limit", True): {"marker": "|", "color": INK, "markersize": 9, "markeredgewidth": 2.4},
    ("limit", False): {"marker": "|", "color": INK, "markersize": 9, "markeredgewidth": 0.8},
    ("within", True): {"marker": "o", "color": BLUE, "markersize": 5},
    ("within", False): {"marker": "o", "color": BLUE, "markersize": 5, "markerfacecolor": "white"},
    ("beyond", True): {"marker": "x", "color": RED, "markersize": 6, "markeredgewidth": 2.4},
    ("beyond", False): {"marker": "x", "color": RED, "markersize": 6},
}


def stage_charts(report: ParityReport, precision: str) -> list[Shown]:
    """One precision over all photographs: a chart for each part of the computation, all on one scale."""
    firsts = {d.stage for v in report.verdicts for d in v.divergences if d.precision == precision}
    parts: dict[str, dict[str, list[Figure]]] = defaultdict(dict)
    for stage, figures in gathered(report, precision).items():
        parts[title(part(report, stage))][stage] = figures
    used = (f for f in report.figures if f.precision == precision)
    values = [v for f in used for v in (f.error, f.floor, f.limit) if math.isfinite(v) and v > 0]
    low = max(math.floor(math.log10(min(values, default=1e-9))), -20)
    high = max(min(math.ceil(math.log10(max(values, default=1.0))), 12), low + 1)
    shown = []
    for heading, stages in parts.items():
        for start in range(0, len(stages), ROWS):
            piece = {name: stages[name] for name in list(stages)[start : start + ROWS]}
            words = heading + (", continued" if start else "")
            picture = _chart(words, piece, firsts, low, high)
            shown.append(Shown(picture, f"{words}: {_summary(piece, firsts)}", ""))
    return shown


def place(value: float, low: int, high: int) -> float:
    """Where a value stands between `low` and `high`, in decades; 0 and what is not finite stand outside of them."""
    beyond = 0.2 * (high - low)
    if value == 0:
        return low - beyond
    return min(max(math.log10(value), low), high) if math.isfinite(value) else high + beyond


def _summary(stages: Mapping[str, list[Figure]], firsts: set[str]) -> str:
    """A chart in words."""
    worst = {stage: largest(f.error for f in figures) for stage, figures in stages.items() if figures}
    beyond = sum(any(f.judged and not f.within for f in figures) for figures in stages.values())
    words = f"{len(worst)} of {len(stages)} stages given, {beyond or 'none'} beyond the limit"
    if named := [stage for stage in stages if stage in firsts]:
        words += f"; parts first at {', '.join(named)}"
    if worst:
        stage = max(worst, key=lambda name: worst[name])
        words += f"; largest error {error(worst[stage])} at {stage}"
    return words + ". The tables that follow have every figure."


def _chart(heading: str, stages: Mapping[str, list[Figure]], firsts: set[str], low: int, high: int) -> Picture:
    """Stages downwards, errors across on a logarithmic scale; a gap where a stage was not given.

    Args:
        heading: of the part of the computation.
        stages: name → its figures, in the order of the computation.
        firsts: the stages where a method parts first.
        low: the power of ten on the left.
        high: on the right.
    """
    height = TOP + ROW * len(stages)
    drawing = Drawing(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasSVG(drawing)
    with matplotlib.rc_context(RC):
        axes = drawing.add_axes((LABELS / WIDTH, 0, 1 - (LABELS + RIGHT) / WIDTH, 1 - TOP / height))
        drawing.text(0, 1, printable(heading), va="top", weight="bold")
        axes.set(ylim=(len(stages) - 0.5, -0.5), xlim=(place(0, low, high), place(math.inf, low, high)))
        ticks = range(low, high + 1, math.ceil((high - low) / 3))
        edges = {place(0, low, high): "0", place(math.inf, low, high): "∞"}
        axes.set_xticks([*ticks, *edges], [*(f"1e{k}" for k in ticks), *edges.values()], color=MUTED)
        axes.set_yticks(range(len(stages)), [_label(name, name in firsts) for name in stages])
        axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False, pad=1)
        axes.tick_params(axis="y", pad=7, labelcolor=INK)
        axes.grid(axis="x", color=LINE)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        for y, name in enumerate(stages):
            if name in firsts:
                axes.axhspan(y - 0.5, y + 0.5, color=ROSE, zorder=0)
                axes.get_yticklabels()[y].set(color=RED, weight="bold")
            if not stages[name]:
                axes.text(low, y, "not given", style="italic", va="center", color=MUTED)
        _draw(axes, list(stages.values()), low, high)
        return _encoded(drawing)


def _label(stage: str, first: bool) -> str:
    """A stage's name without its group, short enough for its place."""
    name = printable(stage.partition("/")[2] or stage).replace("final_with_exp", "with exp(score)")
    return "▲ " * first + (name if len(name) <= 16 else name[:15] + "…")


def _draw(axes: Axes, rows: list[list[Figure]], low: int, high: int) -> None:
    """The worst error of each stage, the other photographs', the reference's own rounding, and the limit."""
    places: dict[tuple[str, bool], list[tuple[float, int]]] = defaultdict(list)
    for y, figures in enumerate(rows):
        judged = any(f.judged for f in figures)
        errors = [f.error for f in figures]
        worst = largest(errors)
        values = [("other", e) for e in errors if e != worst]
        values += [("floor", largest(f.floor for f in figures)), ("limit", largest(f.limit for f in figures))]
        values += [("within" if all(f.within for f in figures) else "beyond", worst)]
        for what, value in values:
            if not math.isnan(value):
                places[what, judged].append((place(value, low, high), y))
    for kind, style in MARKS.items():
        if kind in places:
            axes.plot(*zip(*places[kind], strict=True), linestyle="none", clip_on=False, **style)


def _encoded(drawing: Drawing) -> Picture:
    """The chart as SVG: without a date, and without the DOCTYPE, which names another address."""
    buffer = io.StringIO()
    with warnings.catch_warnings():  # the reader's fonts draw the words, not matplotlib's
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        drawing.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    content = buffer.getvalue()
    width, height = (round(96 * inches) for inches in drawing.get_size_inches())
    return Picture(address(content[content.index("<svg") :].encode(), "svg+xml"), width, height)
