"""Tables and checks of what was measured. Rows are `worker.Row`s; a figure is a median, in brackets the lowest and the highest."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import CONTENDERS, title_of
from parity.contract.methods import DEFAULT, METHODS, in_order

SAME = 0.9999
"""Pearson correlation at which two float32 programs that draw the same map stay on every photograph: rounding costs 1e-5."""

Rows = Sequence[Mapping[str, Any]]

Cell = Callable[[dict[str, list[float]], str], str]
"""(contender → a figure of each round, of one job; the contender) → what is written in the table."""

Checks = dict[str, dict[str, list[float]]]
"""`<contender>-<precision>` → map → correlation with the yardstick's of each photograph; the yardstick itself first, and empty."""


def table(header: Sequence[str], body: Iterable[Sequence[str]], *titles: str) -> str:
    """Markdown, below its titles."""
    rule = "|" + "---|" * len(header)
    return "\n".join([*titles, "", line_of(header), rule, *map(line_of, body)])


def line_of(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"


def figure(value: float) -> str:
    """Three significant digits: 0.0823, 12.3, 1234."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest of several; a dash where there is none."""
    return spread_around(statistics.median(values), values) if values else "–"


def spread_around(middle: float, values: Sequence[float]) -> str:
    """A figure of several values, lowest and highest."""
    return f"{figure(middle)} ({figure(min(values))} to {figure(max(values))})" if len(values) > 1 else figure(middle)


def pivot(rows: Rows, names: Sequence[str], cell: Cell, title: str, figures: str = "seconds") -> str:
    """A table of a row for each job and number of photographs, a column for each contender.

    Args:
        rows: of one number format.
        names: the columns.
        cell: of a contender who did the job.
        title: above the table.
        figures: which of the rows'.
    """
    body = []
    for case in dict.fromkeys((row["job"], row["photographs"]) for row in rows):
        measured: dict[str, list[float]] = {}
        for row in rows:
            if (row["job"], row["photographs"]) == case and figures in row:
                measured.setdefault(row["contender"], []).append(row[figures])
        cells = (cell(measured, name) if name in measured else "–" for name in names)
        body.append([title_of(case[0]), str(case[1]), *cells])
    return table(["", "photographs", *names], body, title)


def seconds_table(rows: Rows, names: Sequence[str], title: str) -> str:
    """Seconds of every contender."""
    return pivot(rows, names, lambda measured, name: spread(measured[name]), title)


def memory_table(rows: Rows, names: Sequence[str], title: str) -> str:
    """The highest peak of the rounds."""
    return pivot(rows, names, lambda measured, name: figure(max(measured[name])), title, "memory_mb")


def ratio_table(rows: Rows, ours: str, names: Sequence[str]) -> str:
    """How many times as long the others take: the ratio of the medians; in brackets the lowest and highest of a round."""

    def cell(measured: dict[str, list[float]], name: str) -> str:
        theirs, own = measured[name], measured[ours]
        ratios = [b / a for a, b in zip(own, theirs, strict=True)]
        return spread_around(statistics.median(theirs) / statistics.median(own), ratios)

    title = f"Times as long as {ours}: the ratio of the medians above (the lowest and the highest of a round):"
    return pivot(rows, names, cell, title)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Of two maps; 0 where one is constant."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return 0.0 if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])


def checks_of(folder: Path, columns: Sequence[str], job: str = "*") -> Checks:
    """Compare maps that were kept in a folder with tf-keras-vis's where it is there, else with the first column's.

    Args:
        folder: of `worker.Task.maps`.
        columns: `<contender>-<precision>`.
        job: in which they were drawn; `*`: any.

    SmoothGrad and Faster-ScoreCAM are compared with tf-keras-vis's on one photograph alone: of several at once it draws joint
    noise, and takes everybody's feature maps for each.
    """
    base = next((column for column in columns if column.startswith("tf-keras-vis")), columns[0])
    checks: Checks = {base: {}, **{column: {} for column in columns}}
    for column, path in itertools.product(columns, sorted(folder.glob(f"{base}-{job}-*.npz"))):
        other = folder / f"{column}{path.name.removeprefix(base)}"
        if column == base or not other.is_file():
            continue
        with np.load(path) as expected, np.load(other) as drawn:
            for name in drawn.files:
                joint = METHODS[name].noisy or METHODS[name].options
                if not (joint and len(drawn[name]) > 1 and base.startswith("tf-keras-vis")):
                    pairs = zip(drawn[name], expected[name], strict=True)
                    checks[column].setdefault(name, []).extend(pearson(a, b) for a, b in pairs)
    return checks


def sound(checks: Checks) -> bool:
    """Whether everyone who claims the reference's maps was compared, and draws them."""
    _, *compared = checks
    claims = [checks[column] for column in compared if CONTENDERS[column.rpartition("-")[0]].exact]
    return all(by_map and min(map(min, by_map.values())) >= SAME for by_map in claims)


def check_table(checks: Checks) -> str:
    """The lowest correlation of the photographs."""
    base, *compared = checks
    title = f"The maps, as Pearson correlation with {base}'s, lowest of the photographs (SmoothGrad: of a single one):"
    names = in_order(itertools.chain(*checks.values()))
    body = [[c, *(f"{min(checks[c][m]):.5f}" if m in checks[c] else "–" for m in names)] for c in compared]
    return table(["", *(METHODS[m].title for m in names)], body, title)


def precision_table(rows: Rows, checks: Checks, many: int, title: str) -> str:
    """A row a number format: seconds of four photographs, photographs a second, likeness to the float64 map."""
    body = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        seconds: dict[tuple[str, str], list[float]] = {}
        for row in (row for row in rows if row["precision"] == precision):
            seconds.setdefault((row["contender"], row["job"]), []).append(row["seconds"])
        rates = [many / value for value in seconds["decoded", "cams"]]
        cells = [spread(values) for values in (seconds["shared", "all"], seconds["shared", "cams"], rates)]
        by_map = checks[f"shared-{precision}"]
        body.append([precision, *cells, *(f"{min(by_map[m]):.5f}" if by_map else "1" for m in DEFAULT)])
    header = ["", f"{title_of('all')}, s", "both CAMs, s", "CAMs of photographs a second"]
    return table([*header, *(METHODS[m].title for m in DEFAULT)], body, title)


def line(points: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The straight line through medians: `fixed` + `each` · x; `off`: the worst deviation, as a part of the longest.

    Args:
        points: x → what was measured there; weighted by 1 / median, so that the small ones count as well.
    """
    x = np.array(sorted(points), float)
    y = np.array([statistics.median(points[int(n)]) for n in x])
    each, fixed = np.polyfit(x, y, 1, w=1 / y)
    low, high = ([f(points[int(n)]) for n in x] for f in (min, max))
    off = float(np.abs(fixed + each * x - y).max() / y.max())
    both = {"x": x.tolist(), "y": y.tolist(), "low": low, "high": high}
    return {**both, "fixed": float(fixed), "each": float(each), "off": off}


def cost_table(lines: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """A row a line."""
    body = [
        [name, figure(fit["fixed"]), figure(fit["each"]), f"{100 * fit['off']:.0f} % of the longest"]
        for name, fit in lines.items()
    ]
    return table(["shared engine", "fixed, s", "each, s", "farthest from the line"], body, title)


def plot(lines: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Points with their spread, and the lines."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, (name, fit) in zip(drawing.subplots(1, len(lines)), lines.items(), strict=True):
        what, _, against = name.partition(", against ")
        x, y = np.array(fit["x"]), np.array(fit["y"])
        axis.errorbar(x, y, [y - fit["low"], np.array(fit["high"]) - y], fmt="o", markersize=4, color="#0072B2")
        ends = np.array([0, x.max()])
        axis.plot(ends, fit["fixed"] + fit["each"] * ends, color="#D55E00", linewidth=1)
        axis.set_title(f"{what}\n{fit['fixed']:.2f} s + {fit['each']:.3f} s each", fontsize=9)
        axis.set_xlabel(against, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel("seconds", fontsize=8)
    drawing.suptitle(title, fontsize=7, color="#555555")
    drawing.savefig(path)


def passes_table(took: Mapping[str, Mapping[int, tuple[float, float]]], title: str) -> str:
    """A row a number format, a column a number of photographs in one pass."""
    body = [
        [precision, *(f"{1e3 * both:.2f} / {1e3 * forward:.2f}" for both, forward in by_batch.values())]
        for precision, by_batch in took.items()
    ]
    return table(["", *map(str, next(iter(took.values())))], body, title)


CONVOLUTIONS = ("channels", "feature maps", "as a convolution", "as an input gradient", "the rule chooses")
"""The header above `convolution_cells`."""


def convolution_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `benchmarks.convolutions`: milliseconds (TFLOP/s) of either operation."""
    took = [f"{figure(1e3 * s)} ({figure(row['operations'] / s / 1e12)})" for s in row["seconds"].values()]
    return [" → ".join(map(str, row["channels"])), "×".join(map(str, row["size"])), *took, row["chosen"]]
