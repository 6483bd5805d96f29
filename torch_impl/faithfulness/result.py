"""What was measured: the table, the comparisons, and their files."""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.contract.text import aligned
from torch_impl.faithfulness.baselines import BASELINES
from torch_impl.faithfulness.comparison import CONFIDENCE, Comparison, compared, pairs_of, sentence
from torch_impl.faithfulness.metrics import COMPARED, METRICS

WIDTH = 120
"""Of printed prose, in characters."""

ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}

NOT_BY = (
    "alike: Spearman's rank correlation with the map of the network whose top layers were drawn anew (1: the map does not know "
    "their weights; arXiv:1810.03292). It orders nothing: a map of noise would have 0."
)

COUNTED = (
    f"In brackets: on how many photographs it is better, and the {CONFIDENCE:.0%} interval of that share, each comparison for "
    "itself; of fewer than six photographs nothing can be told."
)


@dataclass(frozen=True)
class Faithfulness:
    """Numbers of maps and of baselines, photograph by photograph.

    Attributes:
        methods: whose maps.
        values: metric → map or baseline → (N,), float64.
        likeness: layers of the network drawn anew, from the top → map → (N,): Spearman's rank correlation.
        layers: of the network that have weights.
        settings: shares, steps, seed.
        manifest: of the maps.
    """

    methods: tuple[str, ...]
    values: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    likeness: Mapping[int, Mapping[str, np.ndarray]] = field(repr=False)
    layers: int
    settings: Mapping[str, Any]
    manifest: Mapping[str, Any] = field(repr=False)

    @cached_property
    def comparisons(self) -> list[list[Comparison]]:
        """Every map with every baseline and every other map: for each pair one by every metric that has a direction."""
        pairs = pairs_of(self.methods)
        return [[compared(metric, *pair, self.values[metric]) for metric in COMPARED] for pair in pairs]

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row a map and metric, with mean and standard deviation over the photographs."""
        return [
            {
                "map": name,
                "metric": metric,
                "better": better,
                "mean": float(np.mean(known)) if len(known) else None,
                "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "photographs": len(known),
            }
            for metric, name, better, values in self._columns()
            for known in (values[~np.isnan(values)],)
        ]

    def as_table(self) -> str:
        """The table, what the numbers are, and what may be said."""
        names = [*self.methods, *BASELINES]
        cells = {(row["map"], row["metric"]): _cell(row) for row in self.rows()}
        heads = {name: metric.title + ARROWS[metric.better] for name, metric in METRICS.items()}
        lines = _table("map", names, heads, cells)
        lines += ["", *(f"{metric.title}{ARROWS[metric.better]}: {metric.definition}" for metric in METRICS.values())]
        if self.likeness:
            heads = {f"alike_{count}": f"top {count} of {self.layers}" for count in self.likeness}
            lines += ["", *_table("alike", list(self.methods), heads, cells), "", NOT_BY]
        sentences = self.sentences()
        opening, *_ = sentences[0].partition(", ")
        said = [f"- {sentence.removeprefix(opening + ', ')}" for sentence in sentences]
        lines += ["", COUNTED, "", f"{opening}:", *said]
        return "\n".join(wrapped for line in lines for wrapped in _wrapped(line))

    def sentences(self) -> list[str]:
        """What the numbers allow to say of each map and each baseline, and of each two maps."""
        return [sentence(pair) for pair in self.comparisons]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write faithfulness.csv (the table), photographs.csv (each photograph's numbers), faithfulness.json and manifest.json.

        Args:
            folder: made if it is not there; an earlier result is replaced as a whole.
            overwrite: also into a folder that holds files and no result of ours.

        Returns:
            The files written.

        Raises:
            OutputError: the folder cannot be used.
            OSError: as the file system says.
        """
        from torch_impl import output

        texts = {
            "faithfulness.csv": _csv(self.rows()),
            "photographs.csv": _csv(list(self._photographs())),
            "faithfulness.json": json.dumps(self._document(), indent=2, ensure_ascii=False),
        }
        names = [*texts, output.MANIFEST]
        texts[output.MANIFEST] = json.dumps({**self.manifest, "files": names}, indent=2, ensure_ascii=False)

        def write(staging: Path) -> None:
            for name, text in texts.items():
                (staging / name).write_text(text, encoding="utf-8")

        output.replace(Path(folder), names, write, overwrite=overwrite)
        return [Path(folder, name) for name in names]

    def _columns(self) -> Iterator[tuple[str, str, str, np.ndarray]]:
        """(metric, map, which way is better, (N,)), the likenesses last."""
        for metric, by_map in self.values.items():
            for name, values in by_map.items():
                yield metric, name, METRICS[metric].better, values
        for count, by_map in self.likeness.items():
            for name, values in by_map.items():
                yield f"alike_{count}", name, "", values

    def _photographs(self) -> Iterator[dict[str, Any]]:
        for i, photograph in enumerate(self.manifest["photographs"]):
            for metric, name, _, values in self._columns():
                value = None if np.isnan(values[i]) else float(values[i])
                yield {
                    "photograph": photograph["name"],
                    "class": photograph["class"],
                    "map": name,
                    "metric": metric,
                    "value": value,
                }

    def _document(self) -> dict[str, Any]:
        return {
            "format": "attention-maps faithfulness 1",
            "settings": dict(self.settings),
            "metrics": [asdict(metric) for metric in METRICS.values()],
            "alike": {"definition": NOT_BY, "layers": self.layers},
            "baselines": BASELINES,
            "table": self.rows(),
            "photographs": list(self._photographs()),
            "comparisons": [{**asdict(c), "verdict": c.verdict} for pair in self.comparisons for c in pair],
            "sentences": self.sentences(),
        }


def _wrapped(line: str) -> list[str]:
    """A line of prose as lines of a terminal's width; a table's row, with its columns, stays whole."""
    if len(line) <= WIDTH or "  " in line:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False)


def _cell(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "–"
    return f"{row['mean']:.3f}" + ("" if row["sd"] is None else f" ± {row['sd']:.3f}")


def _table(corner: str, names: list[str], heads: Mapping[str, str], cells: Mapping[tuple[str, str], str]) -> list[str]:
    """Lines of a table: a row a name, a column a head."""
    return aligned([[corner, *heads.values()], *([name, *(cells[name, head] for head in heads)] for name in names)])


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
