"""The page's tables: a report's figures in words, as plain rows. Nothing here is HTML: the template escapes every word."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.contract.methods import METHODS
from parity.criterion import DIFFERENT, NETWORK, SAME_FUNCTION, SAME_ROUNDING, Figure, origin_of
from parity.report import MapFigures, ParityReport

MAPS = ("raw", "upsampled", "final", "final_with_exp")
"""The quantities of a method that are pictures."""

KINDS = {SAME_FUNCTION: "good", SAME_ROUNDING: "good", DIFFERENT: "bad"}
"""How a verdict's word is shown; any other is a note."""

FORWARD, BACKWARD = "Forward", "Backward: the score's gradients"


@dataclass(frozen=True)
class Cell:
    """Words, how they are shown (`good`, `bad`, `note`, `code`, `name`, `bar`), and small print after them."""

    words: str
    kind: str = ""
    note: str = ""


Row = Sequence[str | Cell]
"""The first cell heads the row; a row of one cell is a heading across the table."""


@dataclass(frozen=True)
class Table:
    """A caption, the columns' heads, rows, small print under the caption, and a class."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    kind: str = ""


# --- methods and stages -----------------------------------------------------------------------------------------------


def title(method: str) -> str:
    """A map's name for a reader."""
    return "The network" if method == NETWORK else METHODS[method].title if method in METHODS else method


def is_overlay(method: str) -> bool:
    """Whether a map is shown over the photograph."""
    return method in METHODS and METHODS[method].overlay


def part(report: ParityReport, stage: str) -> str:
    """What a stage belongs to: a method, `FORWARD` or `BACKWARD`."""
    first = stage.partition("/")[0]
    if first in {v.method for v in report.verdicts} | {key[0] for key in report.pictures}:
        return first
    return BACKWARD if first == "gradients" else FORWARD


def stage_names(report: ParityReport) -> list[str]:
    """All stages in the order of the computation, without the pixels and without methods that nobody asked for."""
    asked = {v.method for v in report.verdicts}
    unasked = {"pixels", *report.reference.get("settings", {}).get("methods", ())} - asked
    known = [*map(str, report.reference.get("stages", ())), *(f.stage for f in report.figures)]
    return [name for name in dict.fromkeys(known) if name.partition("/")[0] not in unasked]


def gathered(report: ParityReport, precision: str, photograph: int | None = None) -> dict[str, list[Figure]]:
    """Every stage in the order of the computation → its figures, of one photograph or of all; none: not given."""
    stages: dict[str, list[Figure]] = {name: [] for name in stage_names(report)}
    for f in report.figures:
        if f.stage in stages and f.precision == precision and photograph in (None, f.photograph):
            stages[f.stage].append(f)
    return stages


def left_out(figures: Iterable[Figure]) -> float:
    """The largest share of values that the verdict leaves out, because equal pixels tie in a max-pool; 0 to 1."""
    return max((f.left_out for f in figures), default=0.0)


# --- words ------------------------------------------------------------------------------------------------------------


def error(value: float, none: str = "–") -> str:
    """An error or limit: scientific, one decimal; words where it is no number."""
    if math.isnan(value):
        return none
    return "not finite" if math.isinf(value) else "0" if value == 0 else f"{value:.1e}"


def correlation(value: float, none: str = "constant map", digits: int = 6) -> str:
    """A correlation; words where there is none."""
    return none if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus zero


def share(value: float) -> str:
    """A part of one as per cent, never rounded down to nothing."""
    if math.isnan(value):
        return "not compared"
    return "none" if value == 0 else "under 0.1 %" if value < 0.001 else f"{100 * value:.1f} %"


def unit(precision: str) -> str:
    """What an error in a precision is measured in."""
    return "of the range" if precision == "fp64" else "relative L2"


def numbered(report: ParityReport, i: int) -> str:
    """`1 · cat.jpg`: numbered, because two photographs may have one name."""
    return f"{i + 1} · {report.photographs[i].name}"


def largest(values: Iterable[float]) -> float:
    """NaN where there is none."""
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def smallest(values: Iterable[float]) -> float:
    """NaN where there is none."""
    return min((v for v in values if not math.isnan(v)), default=math.nan)


# --- tables -----------------------------------------------------------------------------------------------------------


def verdicts(report: ParityReport) -> Table:
    """A row for each method in each precision."""
    head = ("Method", "Precision", "Verdict", "Worst error", "Limit", "At stage", "Lowest Pearson")
    rows = []
    for v in report.verdicts:
        parts = (BACKWARD, FORWARD) if v.method == NETWORK else (v.method,)
        tied = left_out(f for f in report.figures if part(report, f.stage) in parts)
        rows.append(
            (
                title(v.method),
                v.precision,
                Cell(v.word, KINDS.get(v.word, "note")),
                Cell(error(v.worst), note=unit(v.precision) + (", ties left out" if tied else "")),
                error(v.limit, "none"),
                Cell(v.worst_stage, "code"),
                correlation(v.pearson, "no map" if v.method == NETWORK else "constant map"),
            )
        )
    return Table("Each method in each precision, over all photographs", head, rows, kind="verdicts")


def likeness(report: ParityReport, method: str, i: int) -> Table:
    """How alike two maps are, a column for each precision and resolution: narrow enough for a phone."""
    maps = [m for m in report.map_figures if (m.method, m.photograph) == (method, i)]
    figures: dict[str, Callable[[MapFigures], str]] = {
        "Pearson": lambda m: correlation(m.pearson, _why_none(m)),
        "Spearman": lambda m: correlation(m.spearman, _why_none(m)),
        "SSIM": lambda m: correlation(m.ssim, _why_none(m) if math.isnan(m.pearson) else "under 7×7 pixels"),
        "Relative L2": lambda m: error(m.relative_l2),
        "Max error": lambda m: error(m.max_error),
        "Top 10 %": _overlap,
        "Centre shift": lambda m: error(m.shift, "no mass"),
    }
    tied = left_out(f for f in report.figures if f.photograph == i and part(report, f.stage) == method)
    note = (
        f"Counts every pixel. The verdict leaves out {share(tied)} of them: equal pixels tie in a max-pool there, and "
        "the gradient has no one value."
    )
    return Table(
        f"How alike: {title(method)} of {numbered(report, i)}",
        ("", *(f"{m.precision} {m.resolution}" for m in maps)),
        [(what, *map(figure, maps)) for what, figure in figures.items()] if maps else [],
        note if tied else "",
        "likeness",
    )


def _why_none(m: MapFigures) -> str:
    """Why two maps have no correlation, in a word or two."""
    if m.constant:
        return {"both": "both constant", "reference": "reference constant"}.get(m.constant, "port constant")
    return "not finite" if math.isinf(m.relative_l2) else "not defined"


def _overlap(m: MapFigures) -> str:
    """Per cent, rounded down: 100 means all. Only a map that is not flat has highest pixels."""
    known = not math.isnan(m.pearson) and not math.isnan(m.overlap)
    return f"{math.floor(1000 * m.overlap) / 10:.1f} %" if known else _why_none(m)


def stages(report: ParityReport, precision: str, photograph: int | None = None) -> Table:
    """A row for each stage, of one photograph, or of the worst of all."""
    firsts = {(d.stage, d.photograph) for v in report.verdicts for d in v.divergences if d.precision == precision}
    rows: list[Row] = []
    before = ""
    for stage, figures in gathered(report, precision, photograph).items():
        if (now := part(report, stage)) != before:
            before = now
            rows.append((title(now),))
        if not figures:
            rows.append((Cell(stage, "code"), "not given", "", "", "", "", ""))
            continue
        first = any((f.stage, f.photograph) in firsts for f in figures)
        tied = f"without {share(left_out(figures))}, ties" if left_out(figures) else ""
        judged = "" if any(f.judged for f in figures) else "not judged"
        rows.append(
            (
                Cell(stage, "code", "▲ parts first" if first else ""),
                Cell(error(largest(f.error for f in figures)), note=tied),
                error(largest(f.floor for f in figures), "not kept"),
                _limit(figures),
                error(largest(f.alone for f in figures)),
                _pearson(stage, figures),
                Cell("yes", "good", judged) if all(f.within for f in figures) else Cell("no", "bad", judged),
            )
        )
    who = "worst of all photographs" if photograph is None else numbered(report, photograph)
    head = (
        "Stage",
        f"Error ({unit(precision)})",
        "Reference's own float32",
        "Limit",
        "This step alone (relative L2)",
        "Pearson",
        "Within",
    )
    return Table(f"{precision} in figures: {who}", head, rows, kind="figures")


def _limit(figures: Sequence[Figure]) -> str | Cell:
    """The largest limit, and where it comes from."""
    known = [figure for figure in figures if not math.isnan(figure.limit)]
    if not known:
        return "none"
    widest = max(known, key=lambda figure: figure.limit)
    return Cell(error(widest.limit), note=origin_of(widest))


def _pearson(stage: str, figures: Sequence[Figure]) -> str | Cell:
    """The lowest correlation of a map's stage, and the lowest of the reference's own float32."""
    if stage.partition("/")[2] not in MAPS:
        return "–"
    none = "not finite" if any(math.isinf(f.relative_l2) for f in figures) else "constant map"
    floor = smallest(f.floor_pearson for f in figures)
    note = "" if math.isnan(floor) else f"reference's own {correlation(floor)}"
    return Cell(correlation(smallest(f.pearson for f in figures), none), note=note)


def correlations(report: ParityReport, rows: Iterable[tuple[str, str, Sequence[float]]]) -> Table:
    """Pearson correlations with the reference's final maps, a column for each photograph.

    Args:
        report: whose photographs.
        rows: method, what its map is compared with, and a number for each photograph.
    """
    rows, lines, before = list(rows), list[Row](), ""
    for method, what, values in rows:
        if method != before:
            before = method
            lines.append((title(method),))
        lines.append((what, *(Cell(correlation(v, digits=4), "" if math.isnan(v) else "bar") for v in values)))
    tied = left_out(f for f in report.figures if part(report, f.stage) in {method for method, *_ in rows})
    note = "Every pixel counts, also those that the verdict leaves out: equal pixels that tie in a max-pool." if tied else ""  # fmt: skip
    names = [numbered(report, i) for i in range(len(report.photographs))]
    return Table("Pearson correlation with the reference's map", ("Map", *names), lines, note, "figures")


def environment(report: ParityReport) -> Table:
    """Programs, versions, flags, weights, settings and seconds of both sides; what the port's precisions share stands once."""
    sides = [[report.reference], [*report.candidate.values()]]
    rows: list[Row] = [("Program", *(_joined(str(p.get("program", "not stated")) for p in side) for side in sides))]
    for key, heading in (
        ("versions", "Versions"),
        ("flags", "Flags that may change rounding"),
        ("weights", "Weights"),
        ("settings", "Settings"),
        ("seconds", "Seconds"),
    ):
        digits = 1 if key == "seconds" else 17
        columns = [[_plain(program.get(key, {}), digits) for program in side] for side in sides]
        names = dict.fromkeys(name for side in columns for column in side for name in column)
        if names:
            rows.append((heading,))
        rows += [
            (name, *(_joined(column[name] for column in side if name in column) for side in columns)) for name in names
        ]
    return Table(
        "What computed it", ("", "Reference", f"Port ({', '.join(report.candidate)})"), rows, kind="environment"
    )


def _joined(words: Iterable[str]) -> str:
    """The same words once, others one after the other."""
    words = list(words)
    return " / ".join(words if len(set(words)) > 1 else words[:1]) or "–"


def _plain(values: Mapping[str, Any], digits: int) -> dict[str, str]:
    """Name → words; fractions to so many digits."""
    plain: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, bool):
            plain[str(key)] = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            plain[str(key)] = ", ".join(map(str, value))
        else:
            plain[str(key)] = str(round(value, digits) if isinstance(value, float) else value)
    return plain
