"""Reports for the page's tests, good, bad and hostile, and what a reader finds in their pages."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from parity import page
from parity.candidate import Job, Stages, job_of, record
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.report import (
    ANOTHER_CLASS,
    ANOTHER_SEED,
    RANDOM_WEIGHTS,
    Conditioning,
    OtherMap,
    ParityReport,
    Pictures,
    PixelsRow,
)
from torch_impl.candidate import candidate

GOLDEN = Path(__file__).parent / "golden" / "tiny.safetensors"
NAN, INF = math.nan, math.inf

SCRIPT = '"><script>alert(1)</script>.jpg'
LONG = "x" * 200 + "\u202egpj.\udcff\x07<img src=http://192.0.2.1/x.png onerror=alert(2)>😀.png"
STYLE = "</style></title></svg><svg onload=alert(3)>&amp;' onfocus=alert(4) autofocus '\"{{ 7 * 7 }}$\\frac$"


def flipped(job: Job) -> Stages:
    return candidate(replace(job, pixels=np.ascontiguousarray(job.pixels[..., ::-1])))


def report_of(run: Any) -> ParityReport:
    reference = Artifact.read(GOLDEN)
    assert reference.network is not None
    jobs = {p: job_of(reference, reference.network, precision=p, device="cpu") for p in ("fp64", "fp32")}
    return compare(
        reference,
        {p: record(run, job, reference.photographs, reference.settings) for p, job in jobs.items()},
        pixels_rows=(PixelsRow(0, 0.0, (), True, True), PixelsRow(1, 0.034, ("turned by EXIF",), False, False)),
        ladder=(OtherMap("gradcam", "plain", (0.31, 0.52)), OtherMap("gradcam", "the port", (1.0, NAN))),
        context=(
            OtherMap("smoothgrad", ANOTHER_SEED, (0.384, 0.3602)),
            OtherMap("gradcam", ANOTHER_CLASS, (-0.3166, -0.0014)),
            OtherMap("gradcam", RANDOM_WEIGHTS, (NAN, -0.0038)),
        ),
        conditioning=(Conditioning("gradcam", 1, 4.48), Conditioning("gradcam_plus_plus", 0, 4321.0)),
    )


@lru_cache(maxsize=1)
def good_report() -> ParityReport:
    return report_of(candidate)


@lru_cache(maxsize=1)
def bad_report() -> ParityReport:
    return report_of(flipped)


def hostile(report: ParityReport) -> ParityReport:
    """Every text that comes from outside tries to get out of its place; one method's figures are no numbers."""
    none = dict.fromkeys(("pearson", "spearman", "ssim", "overlap", "shift"), NAN)
    floors = dict.fromkeys(("floor_l2", "floor_max", "floor_pearson"), NAN)
    errors = {"relative_l2": INF, "max_error": INF}
    lost = f"photograph 1 ({SCRIPT}): exp(score) is out of float32's range (score 95.1)"
    program = {
        "program": STYLE,
        "versions": {STYLE: SCRIPT},
        "warnings": [SCRIPT, lost],
        "flags": {SCRIPT: True, "nested": {STYLE: [LONG]}},
        "weights": {"source": STYLE, "fingerprint": SCRIPT},
    }
    figures = [(f, f.stage.startswith("gradcam/")) for f in report.figures]
    maps = [(m, m.method == "gradcam", "reference" if m.resolution == "raw" else "") for m in report.map_figures]
    names = zip(report.photographs, (SCRIPT, LONG), strict=True)
    pictures = {key: Pictures(0 * pair.reference, NAN * pair.candidate) for key, pair in report.pictures.items()}
    stages = ["inputs", STYLE, LONG, *(f.stage for f in report.figures)]
    return replace(
        report,
        photographs=tuple(replace(p, name=name, label=STYLE, sha256=SCRIPT) for p, name in names),
        figures=tuple(replace(f, **errors, pearson=NAN, **floors) if wrong else f for f, wrong in figures),
        pictures={**report.pictures, **{key: pair for key, pair in pictures.items() if key[0] == "gradcam"}},
        verdicts=tuple(
            replace(v, divergences=tuple(replace(d, cause=STYLE) for d in v.divergences)) for v in report.verdicts
        ),
        map_figures=tuple(replace(m, constant=flat, **none, **errors) if wrong else m for m, wrong, flat in maps),
        pixels_rows=(PixelsRow(0, 0.5, (), True, False, STYLE), PixelsRow(1, NAN, (SCRIPT,), False, False)),
        ladder=(OtherMap("gradcam", SCRIPT, (NAN, 0.5)),),
        context=(OtherMap("gradcam", STYLE, (NAN, NAN)), OtherMap(SCRIPT, ANOTHER_SEED, (NAN, 0.5))),
        conditioning=(Conditioning("gradcam", 0, NAN), Conditioning("gradcam", 1, INF), Conditioning(STYLE, 0, 1e9)),
        reference={**report.reference, **program, "stages": stages},
        candidate={"fp32": program},
    )


def first_alone(report: ParityReport) -> ParityReport:
    """Of the first photograph alone."""

    def of_it(rows: Any) -> Any:
        return tuple(r for r in rows if r.photograph == 0)

    return replace(
        report,
        photographs=report.photographs[:1],
        pixels=report.pixels[:1],
        pictures={key: pair for key, pair in report.pictures.items() if key[1] == 0},
        ladder=(),
        context=(),
        **{name: of_it(getattr(report, name)) for name in ("figures", "pixels_rows", "map_figures", "conditioning")},
    )


EMPTY = ParityReport((), np.zeros((0, 8, 8, 3), np.uint8), (), (), (), (), {}, {})

KINDS = ["good", "bad", "hostile", "one", "empty"]


@lru_cache(maxsize=1)
def all_pages() -> dict[str, str]:
    good, bad = good_report(), bad_report()
    reports = [good, bad, hostile(bad), first_alone(good), EMPTY]
    return {kind: page.render(report) for kind, report in zip(KINDS, reports, strict=True)}


class Reader(HTMLParser):
    """Elements in order, as (tag, attributes, ancestors); complains of what is left open or closed twice."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs}), f"<{tag}> says an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self._open[-1] if self._open else "", data))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def words_of(text: str) -> str:
    words = "".join(data for tag, data in Reader(text).words if tag not in ("style", "title"))
    return re.sub(r"\s+", " ", words)


def section(text: str, name: str) -> str:
    """A section of the page, as HTML."""
    return text[text.index(f'<section id="{name}"') :].partition("</section>")[0] + "</section>"


def article(text: str, photograph: int, method: str) -> str:
    """What the page shows of one photograph and method, as HTML."""
    subject = section(text, "maps").split('<div class="subject">')[photograph + 1]
    return f"<h4>{method}</h4>" + subject.partition(f"<h4>{method}</h4>")[2].partition("</article>")[0]


def rows_of(text: str, kind: str) -> dict[str, list[str]]:
    """The first table of a kind: first cell → the others, as words."""
    table = re.findall(rf'<table class="{kind}">.*?</table>', text, re.DOTALL)[0]
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [[words_of(c).strip() for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.DOTALL)] for r in found]
    return {row[0]: row[1:] for row in cells}
