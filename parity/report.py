"""The answer, frozen, with where it comes from: → JSON, a table, and the page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.contract.artifact import Artifact, Photograph
from parity.contract.text import aligned, printable
from parity.criterion import DESCRIBED, DIFFERENT, Figure, Verdict

FORMAT = "attention-maps parity report 1"


@dataclass(frozen=True)
class PixelsRow:
    """How the port read a photograph, beside how Keras read it.

    Attributes:
        photograph: its row.
        differing: share of pixels that differ, 0 to 1; NaN where the two were not compared.
        notes: what the port did on purpose: turned by EXIF, alpha flattened, …
        judged: False where a note says that the port reads better on purpose.
        within: no pixel differs.
        cause: the probable cause in words, or "".
    """

    photograph: int
    differing: float
    notes: tuple[str, ...]
    judged: bool
    within: bool
    cause: str = ""


ANOTHER_SEED = "another seed"
ANOTHER_CLASS = "another class"
RANDOM_WEIGHTS = "random weights"


@dataclass(frozen=True)
class OtherMap:
    """How like the reference's map another one is that is not the port's.

    Attributes:
        method: whose map.
        what: on the ladder from the libraries' plain calls to the port: the call, or the one thing changed. For
            comparison, what a bad number looks like: `ANOTHER_SEED` (SmoothGrad's noise ceiling: the reference against
            the same computation with the next seed), `ANOTHER_CLASS`, or `RANDOM_WEIGHTS` (of the same spread).
        pearson: with the reference's float64 final map, photograph by photograph; NaN where a map is constant.
    """

    method: str
    what: str
    pearson: tuple[float, ...]


ILL_CONDITIONED = 1e3
"""A map that moves a thousand times as far as its inputs turns float32's rounding, 1e-7, into 1e-4."""


@dataclass(frozen=True)
class Conditioning:
    """How far a raw map moves, relative to a relative change of 1e-6 of its inputs.

    Attributes:
        method: whose map.
        photograph: its row.
        amplification: relative L2 of the map's change over 1e-6.
    """

    method: str
    photograph: int
    amplification: float

    @property
    def ill(self) -> bool:
        """Whether rounding alone may move the map visibly."""
        return not self.amplification < ILL_CONDITIONED


@dataclass(frozen=True)
class MapFigures:
    """How alike two maps are, in the field's usual figures.

    Attributes:
        method, photograph, precision: which.
        resolution: `raw` (the layer's or the image's) or `final` (the image's, normalized).
        constant: "" or `both`, `reference`, `candidate`: which map is constant; then the correlations are NaN.
        pearson: correlation of values.
        spearman: correlation of ranks.
        ssim: structural similarity (Wang et al. 2004), of maps scaled by the reference's range; NaN below 7×7.
        relative_l2: ‖candidate − reference‖ / ‖reference‖.
        max_error: of the reference's range.
        overlap: of the highest 10 % of the pixels: intersection over union.
        shift: distance between the centres of mass, as a fraction of the map's side.
    """

    method: str
    photograph: int
    precision: str
    resolution: str
    constant: str
    pearson: float
    spearman: float
    ssim: float
    relative_l2: float
    max_error: float
    overlap: float
    shift: float


@dataclass(frozen=True)
class Pictures:
    """What the page shows of one method, photograph and precision: float64 maps (H, W) in [0, 1]."""

    reference: np.ndarray
    candidate: np.ndarray


@dataclass(frozen=True)
class ParityReport:
    """See the module.

    Attributes:
        photographs: in the order of every row.
        pixels: uint8 (N, H, W, 3), what both sides saw.
        verdicts: one for each method (and the network's own stages) and precision.
        figures: every stage of every photograph.
        pixels_rows: how photographs were read.
        ladder: from plain library calls to the port.
        reference: provenance: program, versions, flags, seconds, weights, settings, warnings.
        candidate: precision → the same of the candidate.
        pictures: (method, photograph, precision) → the two maps.
        map_figures: of every raw and final map.
        context: what other maps on purpose would score.
        conditioning: how far maps move by themselves.
    """

    photographs: tuple[Photograph, ...]
    pixels: np.ndarray = field(repr=False)
    verdicts: tuple[Verdict, ...]
    figures: tuple[Figure, ...] = field(repr=False)
    pixels_rows: tuple[PixelsRow, ...]
    ladder: tuple[OtherMap, ...]
    reference: Mapping[str, Any] = field(repr=False)
    candidate: Mapping[str, Mapping[str, Any]] = field(repr=False)
    pictures: Mapping[tuple[str, int, str], Pictures] = field(repr=False, default_factory=dict)
    map_figures: tuple[MapFigures, ...] = field(repr=False, default=())
    context: tuple[OtherMap, ...] = ()
    conditioning: tuple[Conditioning, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing that is judged differs."""
        return all(v.word != DIFFERENT for v in self.verdicts) and all(
            r.within or not r.judged for r in self.pixels_rows
        )

    @property
    def word(self) -> str:
        """The answer in one sentence."""
        if not self.holds:
            return DIFFERENT
        judged_first = sorted(self.verdicts, key=lambda v: v.word == DESCRIBED)
        precisions = grouped((v.word, v.precision) for v in judged_first)
        return "; ".join(f"{word} ({', '.join(which)})" for word, which in precisions.items())

    @property
    def coverage(self) -> str:
        """How much of a module was compared; "" of a candidate that gives its stages itself."""
        flags = next(iter(self.candidate.values()), {}).get("flags", {})
        if "layers compared" not in flags:
            return ""
        return f"{flags['weights paired']} weights, {flags['layers compared']} layers; target layer {flags['target layer']}"

    def as_json(self) -> str:
        """Everything but the pictures; numbers that are not finite become null."""
        renamed = {"pixels_rows": "pixels", "map_figures": "maps"}
        left_out = ("pixels", "pictures")
        fields = [field.name for field in dataclasses.fields(self) if field.name not in left_out]
        said = {"format": FORMAT, "holds": self.holds, "verdict": self.word, "coverage": self.coverage}
        said |= {renamed.get(name, name): getattr(self, name) for name in fields}
        return json.dumps(_plain(said), indent=1, ensure_ascii=False, allow_nan=False)

    def as_table(self) -> str:
        """For a terminal: a line for each method and precision, then where it parts, then the ladder."""
        lines = [*self._verdict_lines(), *self._divergence_lines()]
        words = "From the libraries' plain calls to the reference's map (Pearson, photograph by photograph):"
        lines += _correlation_lines(words, self.ladder)
        words = "For comparison, the reference's map beside another one on purpose (Pearson):"
        lines += _correlation_lines(words, self.context)
        for moved in self.conditioning:
            if moved.ill:
                lines.append(
                    f"ill-conditioned: {moved.method}, {self._name(moved.photograph)}: the map moves "
                    f"{moved.amplification:.0e} times as far as its inputs, so float32 rounding shows"
                )
        lines += [f"remark: {line}" for line in self.reference.get("warnings", ())]
        sides = {"reference": self.reference, **{f"candidate {p}": side for p, side in self.candidate.items()}}
        times = [f"{name} {sum(side.get('seconds', {}).values()):.0f}" for name, side in sides.items()]
        return "\n".join([*lines, "", f"Seconds: {', '.join(times)}", self.verdict_line])

    @property
    def verdict_line(self) -> str:
        """The answer, and how much of a module it covers."""
        return f"Verdict: {self.word}" + (f" (compared: {self.coverage})" if self.coverage else "")

    def _verdict_lines(self) -> list[str]:
        rows = [("", "precision", "verdict", "worst error", "limit", "at", "Pearson")]
        for v in self.verdicts:
            correlation = "" if math.isnan(v.pearson) else f"{v.pearson:.6f}"
            rows.append((v.method, v.precision, v.word, f"{v.worst:.1e}", f"{v.limit:.0e}", v.worst_stage, correlation))
        return aligned(rows)

    def _divergence_lines(self) -> list[str]:
        lines = []
        for r in self.pixels_rows:
            why = f" on purpose: {', '.join(r.notes)}" if not r.judged else f" · {r.cause}" if r.cause else ""
            if not r.within:
                lines.append(f"pixels: {self._name(r.photograph)}: {r.differing:.1%} differ from Keras's load_img{why}")
        for v in self.verdicts:
            for d in v.divergences:
                lines.append(
                    f"{v.method}, {self._name(d.photograph)}, {d.precision}: parts first at {d.stage} "
                    f"({d.figure:.1e}, limit {d.limit:.0e})"
                    + (f": {d.cause}" if d.cause else "")
                    + (f" [{d.not_given} earlier stages not given]" if d.not_given else "")
                )
        return lines

    def _name(self, photograph: int) -> str:
        return printable(self.photographs[photograph].name)


def grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """Key → its values, each once, in the order in which they come."""
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        if value not in groups.setdefault(key, []):
            groups[key].append(value)
    return groups


def provenance(artifact: Artifact) -> dict[str, Any]:
    """Where an artifact comes from, in plain JSON types."""
    w, settings = artifact.weights, dataclasses.asdict(artifact.settings)
    options = settings.pop("options")
    return {
        **{name: getattr(artifact, name) for name in ("program", "versions", "flags", "warnings", "seconds")},
        "stages": [stage.name for stage in artifact.stages],
        "draws": len(artifact.draws),
        "weights": {"source": w.source, "input": w.input, "fingerprint": w.fingerprint, "remark": w.remark},
        "settings": {**settings, **options},  # flat, for readers who look for `n_samples`
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _correlation_lines(title: str, rows: Sequence[OtherMap]) -> list[str]:
    if not rows:
        return []
    width = max(len(row.what) for row in rows)
    lines = ["", title]
    for row in rows:
        values = " ".join("constant" if math.isnan(value) else f"{value:8.4f}" for value in row.pearson)
        lines.append(f"  {row.method:<18} {row.what:<{width}}  {values}")
    return lines
