"""The page: escaped, well formed, within its size; and opened in a real browser, at a desk, on a phone and on paper."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity import page
from parity.candidate import Job, Stages, job_of, record
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.port import candidate
from parity.report import (
    ANOTHER_CLASS,
    ANOTHER_SEED,
    RANDOM_WEIGHTS,
    Conditioning,
    ContextRow,
    Native,
    ParityReport,
    Pictures,
    PixelsRow,
    Rung,
)
from parity.verdict import DESCRIBED, DIFFERENT, SAME_FUNCTION, SAME_ROUNDING

GOLDEN = Path(__file__).parent / "golden" / "tiny.npz"

SCRIPT = '"><script>alert(1)</script>.jpg'
LONG = "x" * 200 + "\u202egpj.\udcff\x07<img src=http://192.0.2.1/x.png onerror=alert(2)>.png"
STYLE = "</style></title></svg><svg onload=alert(3)>&amp;' onfocus=alert(4) autofocus '\""


def _flipped(job: Job) -> Stages:
    return candidate(dataclasses.replace(job, pixels=np.ascontiguousarray(job.pixels[..., ::-1])))


def _report(run: Any) -> ParityReport:
    reference = Artifact.read(GOLDEN)
    assert reference.network is not None
    found = {
        p: record(
            run,
            job_of(reference, reference.network, precision=p, device="cpu"),
            reference.photographs,
            reference.settings,
        )
        for p in ("fp64", "fp32")
    }
    rows = (PixelsRow(0, 0.0, (), True, True), PixelsRow(1, 0.034, ("turned by EXIF",), False, False))
    ladder = (Rung("gradcam", "plain", (0.31, 0.52)), Rung("gradcam", "the port", (1.0, math.nan)))
    context = (
        ContextRow("smoothgrad", ANOTHER_SEED, (0.384, 0.3602)),
        ContextRow("gradcam", ANOTHER_CLASS, (-0.3166, -0.0014)),
        ContextRow("gradcam", RANDOM_WEIGHTS, (math.nan, -0.0038)),
    )
    moved = {"vanilla": (0.0, 0.0), "gradcam": (2.6, 4.48), "gradcam_plus_plus": (4321.0, 87.4)}
    conditioning = tuple(Conditioning(m, i, a) for m, pair in moved.items() for i, a in enumerate(pair))
    return compare(reference, found, pixels_rows=rows, ladder=ladder, context=context, conditioning=conditioning)


@pytest.fixture(scope="module")
def good() -> ParityReport:
    return _report(candidate)


@pytest.fixture(scope="module")
def bad() -> ParityReport:
    return _report(_flipped)


def _hostile(report: ParityReport) -> ParityReport:
    """Every text that comes from outside tries to get out of its place; one method's figures are no numbers."""
    nan, inf = math.nan, math.inf
    photographs = tuple(
        dataclasses.replace(p, name=name, label=STYLE)
        for p, name in zip(report.photographs, (SCRIPT, LONG), strict=True)
    )
    figures = tuple(
        dataclasses.replace(
            f, relative_l2=inf, max_error=inf, pearson=nan, floor_l2=nan, floor_max=nan, floor_pearson=nan
        )
        if f.stage.startswith("gradcam/")
        else f
        for f in report.figures
    )
    pictures = {
        key: Pictures(np.zeros_like(pair.reference), np.full_like(pair.candidate, nan)) if key[0] == "gradcam" else pair
        for key, pair in report.pictures.items()
    }
    verdicts = tuple(
        dataclasses.replace(v, divergences=tuple(dataclasses.replace(d, cause=STYLE) for d in v.divergences))
        for v in report.verdicts
    )
    map_figures = tuple(
        dataclasses.replace(
            m,
            constant="reference" if m.resolution == "raw" else "",
            **dict.fromkeys(("pearson", "spearman", "ssim", "overlap", "shift"), nan),
            relative_l2=inf,
            max_error=inf,
        )
        if m.method == "gradcam"
        else m
        for m in report.map_figures
    )
    warnings = [SCRIPT, f"photograph 1 ({SCRIPT}): exp(score) is out of float32's range (score 95.1)"]
    program = {"program": STYLE, "versions": {STYLE: SCRIPT}, "warnings": warnings, "flags": {SCRIPT: True}}
    return dataclasses.replace(
        report,
        photographs=photographs,
        figures=figures,
        pictures=pictures,
        verdicts=verdicts,
        pixels_rows=(PixelsRow(0, 0.5, (SCRIPT,), True, False, STYLE), PixelsRow(1, nan, (), False, False)),
        ladder=(Rung("gradcam", SCRIPT, (nan, 0.5)),),
        map_figures=map_figures,
        context=(ContextRow("gradcam", STYLE, (nan, nan)), ContextRow(SCRIPT, ANOTHER_SEED, (nan, 0.5))),
        conditioning=(Conditioning("gradcam", 0, nan), Conditioning("gradcam", 1, inf), Conditioning(STYLE, 0, 1e9)),
        native=Native(STYLE, {SCRIPT: {"gradcam": nan}, LONG: {STYLE: 0.5}}),
        reference={**report.reference, **program, "stages": ["inputs", STYLE, *(f.stage for f in report.figures)]},
        candidate={"fp32": program},
    )


def _one(report: ParityReport) -> ParityReport:
    return dataclasses.replace(
        report,
        photographs=report.photographs[:1],
        pixels=report.pixels[:1],
        figures=tuple(f for f in report.figures if f.photograph == 0),
        verdicts=tuple(
            dataclasses.replace(v, divergences=tuple(d for d in v.divergences if d.photograph == 0))
            for v in report.verdicts
        ),
        pixels_rows=report.pixels_rows[:1],
        ladder=tuple(dataclasses.replace(r, pearson=r.pearson[:1]) for r in report.ladder),
        pictures={key: pair for key, pair in report.pictures.items() if key[1] == 0},
        map_figures=tuple(m for m in report.map_figures if m.photograph == 0),
        context=tuple(dataclasses.replace(r, pearson=r.pearson[:1]) for r in report.context),
        conditioning=tuple(c for c in report.conditioning if c.photograph == 0),
    )


def _many(report: ParityReport, count: int) -> ParityReport:
    """The same photographs again and again under other names."""
    n = len(report.photographs)
    again = range(count)
    return dataclasses.replace(
        report,
        photographs=tuple(dataclasses.replace(report.photographs[i % n], name=f"{i}.jpg") for i in again),
        pixels=report.pixels[np.arange(count) % n],
        figures=tuple(
            dataclasses.replace(f, photograph=j) for f in report.figures for j in again if j % n == f.photograph
        ),
        verdicts=tuple(
            dataclasses.replace(
                v,
                divergences=tuple(
                    dataclasses.replace(d, photograph=j) for d in v.divergences for j in again if j % n == d.photograph
                ),
            )
            for v in report.verdicts
        ),
        ladder=tuple(dataclasses.replace(r, pearson=(r.pearson * count)[:count]) for r in report.ladder),
        pictures={(m, j, p): pair for (m, i, p), pair in report.pictures.items() for j in again if j % n == i},
        map_figures=tuple(
            dataclasses.replace(m, photograph=j) for m in report.map_figures for j in again if j % n == m.photograph
        ),
        context=tuple(dataclasses.replace(r, pearson=(r.pearson * count)[:count]) for r in report.context),
        conditioning=tuple(
            dataclasses.replace(c, photograph=j) for c in report.conditioning for j in again if j % n == c.photograph
        ),
    )


EMPTY = ParityReport((), np.zeros((0, 8, 8, 3), np.uint8), (), (), (), (), None, {}, {})

KINDS = ["good", "bad", "hostile", "one", "many", "empty"]


@pytest.fixture(scope="module")
def pages(good: ParityReport, bad: ParityReport) -> dict[str, str]:
    reports = {
        "good": good,
        "bad": bad,
        "hostile": _hostile(bad),
        "one": _one(good),
        "many": _many(bad, 12),
        "empty": EMPTY,
    }
    return {kind: page.render(report) for kind, report in reports.items()}


class _Reader(HTMLParser):
    """Elements in order, as (tag, attributes, ancestors); complains of what is left open or closed twice."""

    VOID = frozenset({"meta", "link", "img", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.words: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs}), f"<{tag}> says an attribute twice"
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self._open[-1] if self._open else "", data))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


@pytest.fixture(scope="module")
def read(pages: dict[str, str]) -> dict[str, _Reader]:
    return {kind: _Reader(text) for kind, text in pages.items()}


# --- form -------------------------------------------------------------------------------------------------------------

KNOWN_TAGS = """
    html head meta title link style body a header p h1 h2 h3 h4 span nav ul ol li main section article div footer
    table caption thead tbody tr th td small code wbr br strong em bdi figure img figcaption details summary
    svg g line text rect circle path
"""


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_elements_and_no_handler(read: dict[str, _Reader], kind: str) -> None:
    tags = {tag for tag, _, _ in read[kind].elements}
    assert tags <= set(KNOWN_TAGS.split())
    for tag, attributes, _ in read[kind].elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")], tag


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_from_anywhere(read: dict[str, _Reader], pages: dict[str, str], kind: str) -> None:
    for tag, attributes, _ in read[kind].elements:
        for name in ("src", "href", "xlink:href", "data", "poster"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith("data:" if tag != "a" else "#"), (tag, name, value[:80])
    style = re.findall(r"<style>(.*?)</style>", pages[kind], re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]


def test_the_policy_allows_its_own_style_and_pictures_and_nothing_else(pages: dict[str, str]) -> None:
    style = re.findall(r"<style>(.*?)</style>", pages["good"], re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policies = [a["content"] for a in _Reader(pages["good"]).all("meta") if a.get("http-equiv")]
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_headings_go_down_one_at_a_time(read: dict[str, _Reader], kind: str) -> None:
    levels = [int(tag[1]) for tag, _, _ in read[kind].elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_every_reference_finds_one(read: dict[str, _Reader], kind: str) -> None:
    ids = [a["id"] for _, a, _ in read[kind].elements if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [str(a["href"])[1:] for a in read[kind].all("a")]
    wanted += [str(a["aria-labelledby"]) for _, a, _ in read[kind].elements if "aria-labelledby" in a]
    assert wanted
    assert set(wanted) <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_screen_reader_finds_its_way(read: dict[str, _Reader], kind: str) -> None:
    reader = read[kind]
    assert reader.all("html")[0]["lang"] == "en-GB"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(reader.all(landmark)) == 1
    assert reader.all("a")[0]["href"] == "#content"  # the skip link comes first
    assert all(a.get("alt") for a in reader.all("img"))
    for _, attributes, ancestors in [e for e in reader.elements if e[0] == "svg"]:
        if "svg" not in ancestors:
            assert attributes.get("aria-hidden") == "true" or (attributes["role"], bool(attributes["aria-label"])) == (
                "img",
                True,
            )
    assert all(a.get("scope") in ("col", "row") for a in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table"))


def test_alternative_texts_say_what_is_seen_and_its_figures(read: dict[str, _Reader], good: ParityReport) -> None:
    alts = [str(a["alt"]) for a in read["good"].all("img")]
    assert "Photograph 1, chelsea.png" in alts
    pair = good.pictures["vanilla", 0, "fp32"]
    largest = f"{np.abs(pair.candidate - pair.reference).max():.1e}"
    assert any("difference" in a and "Vanilla saliency of chelsea.png" in a and f"largest {largest}" in a for a in alts)
    assert any(re.search(r"Grad-CAM of coffee.png by the reference.*strongest \d+ % from the left", a) for a in alts)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [page.LIGHT, page.DARK], ids=["light", "dark"])
def test_text_stands_out(colours: dict[str, str]) -> None:
    pairs = [(ink, ground) for ink in ("text", "muted", "link", "good", "bad") for ground in ("page", "card")]
    pairs += [(ink, "bad-card") for ink in ("text", "bad", "link")]
    pairs += [("good", "good-card"), ("note", "page"), ("note", "card")]
    pairs += [(ink, "note-card") for ink in ("text", "note", "link", "muted")]
    for ink, ground in pairs:
        light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# --- what it says -----------------------------------------------------------------------------------------------------


def _words(text: str) -> str:
    words = "".join(data for tag, data in _Reader(text).words if tag not in ("style", "title"))
    return re.sub(r"\s+", " ", words)


def test_the_verdict_comes_first(pages: dict[str, str], read: dict[str, _Reader]) -> None:
    headings = [words for tag, words in read["good"].words if tag in ("h1", "h2")]
    assert headings[0] == "The same function (fp64); the same up to rounding (fp32)"
    assert [h.split(":")[0] for h in headings[1:]] == [
        "Verdict",
        "Maps side by side",
        "Stage by stage",
        "From the libraries' plain calls to the port",
        "What a bad number looks like",
        "How far the maps move by themselves",
        "How the photographs were read",
        "Criterion and environment",
    ]
    words = _words(pages["good"])
    assert SAME_FUNCTION in words
    assert SAME_ROUNDING in words
    assert "Where it parts first" not in words
    assert "no verdict: read otherwise on purpose" in words
    assert "Nothing was compared" in pages["empty"]


def test_a_failure_names_stage_and_cause_once(bad: ParityReport) -> None:
    words = _words(page.render(bad))
    top = words[words.index("Where it parts first") : words.index("Each method in each precision")]
    assert top.count("channel order") == 1  # for 20 divergences
    assert "inputs" in top
    assert "2 of 2 photographs" in top
    assert DIFFERENT in words
    assert "▲ parts first: every method" in words


def test_pixels_alone_can_differ(good: ParityReport) -> None:
    rows = (PixelsRow(0, 0.25, (), True, False, "resized bilinearly"), good.pixels_rows[1])
    words = _words(page.render(dataclasses.replace(good, pixels_rows=rows)))
    assert "✗ Different" in words
    assert "At least one photograph is not read as the reference reads it" in words
    assert "25.0 % differ. Probable cause: resized bilinearly." in words


def test_a_precision_that_is_only_described_is_no_alarm(bad: ParityReport) -> None:
    verdicts = tuple(dataclasses.replace(v, precision="bf16", word=DESCRIBED, holds=True) for v in bad.verdicts)
    text = page.render(dataclasses.replace(bad, verdicts=verdicts))
    assert '<h1 class="note">' in text
    assert "Where it parts first" not in text


def test_numbers_that_are_none_are_words(pages: dict[str, str]) -> None:
    words = _words(pages["hostile"])
    assert "not finite" in words
    assert "constant map" in words
    assert "not given" in words  # `STYLE` is a stage that nobody gave
    assert not re.search(r"\b(nan|inf)\b", words, re.IGNORECASE)
    assert not re.search(r"[>\s](nan|inf)[<\s,;%]", pages["hostile"], re.IGNORECASE)


def _part(text: str, name: str) -> str:
    """A section of the page, as HTML."""
    return text[text.index(f'<section id="{name}"') :].partition("</section>")[0] + "</section>"


def _article(text: str, method: str, photograph: int) -> str:
    """What the page shows of one method and photograph, as HTML."""
    of = _part(text, "maps").partition(f"<h3>{method}</h3>")[2].partition("<h3>")[0]
    return re.findall(r"<article>.*?</article>", of, re.DOTALL)[photograph]


def _rows(text: str, kind: str) -> dict[str, list[str]]:
    """The first table of a kind: first cell → the others, as words."""
    table = re.findall(rf'<table class="{kind}">.*?</table>', text, re.DOTALL)[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    return {_words(row[0]): [_words(cell) for cell in row[1:]] for row in cells}


def test_every_map_has_its_figures(good: ParityReport, pages: dict[str, str]) -> None:
    maps = {(m.method, m.photograph, m.precision, m.resolution): m for m in good.map_figures}
    for method, title in (("vanilla", "Vanilla saliency"), ("gradcam_plus_plus", "Grad-CAM++")):
        for i in (0, 1):
            rows = _rows(_article(pages["good"], title, i), "figures likeness")
            assert rows.pop("") == ["fp64 raw", "fp64 final", "fp32 raw", "fp32 final"]
            of = [maps[method, i, p, r] for p in ("fp64", "fp32") for r in ("raw", "final")]
            assert rows == {
                "Pearson": [f"{m.pearson:.6f}" for m in of],
                "Spearman": [f"{m.spearman:.6f}" for m in of],
                "SSIM": [f"{m.ssim:.6f}" for m in of],
                "Relative L2": [page._error(m.relative_l2) for m in of],
                "Max error": [page._error(m.max_error) for m in of],
                "Top 10 %": [f"{math.floor(1000 * m.overlap) / 10:.1f} %" for m in of],
                "Centre shift": [page._error(m.shift) for m in of],
            }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"constant": "both", "relative_l2": 0.0}, "both constant"),
        ({"constant": "reference", "relative_l2": math.inf}, "reference constant"),
        ({"constant": "candidate"}, "port constant"),
        ({"relative_l2": math.inf}, "not finite"),
        ({"relative_l2": 1e-300}, "not defined"),
    ],
)
def test_a_map_without_correlation_says_why(good: ParityReport, change: dict[str, Any], expected: str) -> None:
    none = dict.fromkeys(("pearson", "spearman", "ssim", "shift"), math.nan)
    one = dataclasses.replace(good.map_figures[0], **none, overlap=1.0)
    report = dataclasses.replace(good, map_figures=(dataclasses.replace(one, **change), *good.map_figures[1:]))
    text = page.render(report)
    rows = _rows(_article(text, "Vanilla saliency", 0), "figures likeness")
    for what in ("Pearson", "Spearman", "SSIM", "Top 10 %"):
        assert rows[what][0] == expected  # the highest pixels of a flat map are none
    assert rows["Centre shift"][0] == "no mass"
    assert not re.search(r"\bnan\b", _words(text), re.IGNORECASE)


def test_an_overlap_is_all_only_if_it_is_all(good: ParityReport) -> None:
    one = dataclasses.replace(good.map_figures[0], overlap=5017 / 5019)
    assert page._overlap(one) == "99.9\u00a0%"


def test_a_map_too_small_for_ssim_says_so(good: ParityReport) -> None:
    one = dataclasses.replace(good.map_figures[0], ssim=math.nan, pearson=-1e-9)
    text = page.render(dataclasses.replace(good, map_figures=(one, *good.map_figures[1:])))
    rows = _rows(_article(text, "Vanilla saliency", 0), "figures likeness")
    assert rows["SSIM"][0] == "under 7×7 pixels"
    assert rows["Pearson"][0] == "0.000000"  # not −0


def test_the_limits_are_unfolded_where_one_is_broken(good: ParityReport, bad: ParityReport) -> None:
    of = "Against the reference's own rounding"
    for report, opening in ((good, "<details>"), (bad, "<details open>")):
        text = _article(page.render(report), "Grad-CAM", 0)
        assert text.count(f"{opening}<summary>{of}".replace("'", "&#x27;")) + text.count(f"{opening}<summary>{of}") == 1


def test_context_shows_what_a_bad_number_looks_like(pages: dict[str, str]) -> None:
    words = _words(_part(pages["good"], "context"))
    for what, reading in page.READINGS.items():
        assert what[0].upper() + what[1:] in words
        assert reading in words
    assert "SmoothGrad 0.3602 to 0.3840; the port: 1.0000" in words
    assert "Grad-CAM -0.0038, 1 constant map" in words
    assert "The port in fp32 beats it by far on every photograph" in words
    assert "the ceiling's at least 0.62." in words
    rows = _rows(_part(pages["good"], "context"), "figures")
    assert rows["Grad-CAM: random weights"] == ["constant map", "-0.0038"]
    assert rows["SmoothGrad: the port, fp32"] == ["1.0000", "1.0000"]
    assert "No other maps were drawn" in _words(pages["empty"])


@pytest.mark.parametrize("own", [0.35, 0.9, math.nan])
def test_a_port_that_does_not_beat_the_noise_ceiling_is_named(good: ParityReport, own: float) -> None:
    maps = tuple(
        dataclasses.replace(m, pearson=own) if m.method == "smoothgrad" and m.photograph == 1 else m
        for m in good.map_figures
    )
    words = _words(_part(page.render(dataclasses.replace(good, map_figures=maps)), "context"))
    assert "The port in fp32 does not beat it by far on 2 · coffee.png: suspect" in words


def test_a_ceiling_without_noise_says_nothing(good: ParityReport) -> None:
    context = (ContextRow("smoothgrad", ANOTHER_SEED, (1.0, 1.0)),)
    words = _words(_part(page.render(dataclasses.replace(good, context=context)), "context"))
    assert "says nothing" in words
    assert "beat it by far on" not in words


def _with_floor(report: ParityReport, floor: float) -> ParityReport:
    """The reference's own float32 of Grad-CAM of the second photograph is this far from its float64."""
    figures = tuple(
        dataclasses.replace(f, floor_l2=floor) if (f.stage, f.photograph) == ("gradcam/raw", 1) else f
        for f in report.figures
    )
    return dataclasses.replace(report, figures=figures)


def test_ill_conditioned_maps_are_marked_on_either_side(good: ParityReport) -> None:
    text = page.render(_with_floor(good, 2e-3))
    marked = {
        (method, i): _words(_article(text, method, i))
        for method in ("Vanilla saliency", "SmoothGrad", "Grad-CAM", "Grad-CAM++")
        for i in (0, 1)
        if "ill-conditioned" in _article(text, method, i)
    }
    assert sorted(marked) == [("Grad-CAM", 1), ("Grad-CAM++", 0)]
    assert "The reference's own float32 is 2.0e-03 away from its float64" in marked["Grad-CAM", 1]
    assert "The map moves 4321 times as far as its inputs" in marked["Grad-CAM++", 0]
    rows = _rows(_part(text, "conditioning"), "figures moves")
    assert rows["Grad-CAM++, 1 · chelsea.png ! ill-conditioned"][0] == "4321 times"
    assert rows["Grad-CAM, 2 · coffee.png ! ill-conditioned"] == ["4.5 times", "2.0e-03"]
    assert rows["Grad-CAM, 1 · chelsea.png"][0] == "2.6 times"
    assert rows["Vanilla saliency, 1 · chelsea.png"][0] == "0"
    assert rows["SmoothGrad, 1 · chelsea.png"][0] == "not measured"
    top = _words(_part(text, "verdict"))
    assert "ill-conditioned Grad-CAM of 2 · coffee.png: rounding alone moves the map" in top
    assert "ill-conditioned Grad-CAM++ of 1 · chelsea.png: rounding alone moves the map" in top


@pytest.mark.parametrize(("floor", "marked"), [(9e-4, False), (math.nan, False), (math.inf, True)])
def test_the_reference_marks_by_its_own_float32(good: ParityReport, floor: float, marked: bool) -> None:
    text = page.render(_with_floor(good, floor))
    assert ("ill-conditioned" in _article(text, "Grad-CAM", 1)) is marked
    assert not re.search(r"\b(nan|inf)\b", _words(text), re.IGNORECASE)


def test_a_reference_out_of_range_is_said_first_and_the_truth_is_shown(good: ParityReport) -> None:
    line = "photograph 2 (coffee.png): exp(score) is out of float32's range (score 95.1), it is unusable there"
    report = dataclasses.replace(good, reference={**good.reference, "warnings": [line, "another remark"]})
    figures = tuple(
        dataclasses.replace(f, floor_l2=math.inf) if f.stage == "gradcam_plus_plus/raw" and f.photograph == 1 else f
        for f in report.figures
    )
    text = page.render(dataclasses.replace(report, figures=figures))
    top = _words(_part(text, "verdict"))
    assert top.index("The reference itself went out of range") < top.index("Each method in each precision")
    assert "This page shows the float64 truth" in top
    assert top.count(line) == 1
    assert top.endswith("Remarksanother remark")
    article = _words(_article(text, "Grad-CAM++", 1))
    assert "! reference out of range" in article
    assert "Reference, float64 truth" in article
    assert "ill-conditioned" not in article  # it was the range, not the condition
    for method, i in (("Grad-CAM++", 0), ("Grad-CAM", 1)):
        assert "out of range" not in _words(_article(text, method, i))


def test_a_file_called_exp_score_is_no_alarm(good: ParityReport) -> None:
    name = "exp(score) is out of range.png"
    photographs = (dataclasses.replace(good.photographs[0], name=name), good.photographs[1])
    line = f"photograph 1 ({name}): 3.0% of its pixels are left out"
    report = dataclasses.replace(good, photographs=photographs, reference={**good.reference, "warnings": [line]})
    words = _words(page.render(report))
    assert "went out of range" not in words
    assert line in words


def test_methods_that_nobody_asked_for_are_no_gaps(good: ParityReport) -> None:
    assert "gradcam/raw" in good.reference["stages"]
    only = dataclasses.replace(
        good,
        verdicts=tuple(v for v in good.verdicts if not v.method.startswith("gradcam")),
        figures=tuple(f for f in good.figures if not f.stage.startswith("gradcam")),
    )
    names = page._stage_names(only)
    assert "vanilla/raw" in names
    assert not [n for n in names if n.startswith("gradcam")]
    assert len(page._stage_names(good)) > len(names)


def test_stages_not_given_are_gaps_in_their_place(good: ParityReport) -> None:
    def raw_only(job: Job) -> Stages:
        return {f"{m}/raw": np.zeros((2, 8, 8) if m.startswith("gradcam") else (2, 32, 32)) for m in job.methods}

    names = [s.name for s in Artifact.read(GOLDEN).stages]
    report = _report(raw_only)
    report = dataclasses.replace(report, reference={**report.reference, "stages": names})
    text = page.render(report)
    charts = re.findall(r'<svg class="chart".*?(?=<details>)', text, re.DOTALL)
    labels = re.findall(r'class="label"[^>]*>([^<]*)<', charts[0])
    assert labels[:2] == ["inputs", "block1_conv1"]
    assert len(labels) == len(names) - 1  # pixels have a section of their own
    assert charts[0].count(">not given<") == len(names) - 1 - 4
    assert charts[0].count("▲ parts first") == 4


def test_hostile_text_is_shown_as_it_is(read: dict[str, _Reader]) -> None:
    shown = "".join(data for _, data in read["hostile"].words)
    assert SCRIPT in shown
    assert STYLE in shown
    assert r"\u202egpj.\udcff\x07<img src=http://192.0.2.1/x.png onerror=alert(2)>.png" in shown
    assert "\u202e" not in shown
    assert not read["hostile"].all("script")


def test_the_same_report_gives_the_same_page_but_for_times(good: ParityReport) -> None:
    text = page.render(good)
    assert page.render(good) == text
    slower = dataclasses.replace(good, reference={**good.reference, "seconds": {"fp32/setup": 4321.0}})
    assert "4321.0 s" in page.render(slower)

    def timeless(page_text: str) -> str:
        return re.sub(r'<div class="scroll"[^>]*aria-label="Seconds .*?</table></div>', "", page_text, flags=re.DOTALL)

    assert timeless(page.render(slower)) == timeless(text)


def test_four_photographs_stay_below_ten_megabytes(good: ParityReport) -> None:
    """The worst case: noise, which no format makes smaller, in two precisions."""
    generator = np.random.RandomState(0)
    four = _many(good, 4)

    def noise() -> np.ndarray:
        return generator.uniform(size=(224, 224))

    text = page.render(
        dataclasses.replace(
            four,
            pixels=generator.randint(0, 256, (4, 224, 224, 3)).astype(np.uint8),
            pictures={key: Pictures(noise(), noise()) for key in four.pictures},
        )
    )
    assert len(text.encode()) < 10 * 10**6


def test_maps_are_drawn_as_the_lab_draws_them() -> None:
    """Saliency alone in jet; a CAM half and half with its photograph; a difference on its own scale."""
    import io

    from PIL import Image

    def picture(address: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))

    values = np.array([[0.0, 1.0], [math.nan, 0.5]])
    alone = picture(page._drawn(values, None))
    assert alone[0, 0].tolist() == [0, 0, 128]  # jet's ends are dark blue and dark red
    assert alone[0, 1].tolist() == [128, 0, 0]
    assert alone[1, 0].tolist() == [128, 128, 128]  # no number
    photograph = np.full((2, 2, 3), 100, np.uint8)
    assert picture(page._drawn(values, photograph))[0].tolist() == [[50, 50, 114], [114, 50, 50]]
    pair = Pictures(np.zeros((2, 2)), np.array([[0.0, 2e-9], [1e-9, 0.0]]))
    shown = page._difference_figure(pair, "x", "fp32")
    assert "largest 2.0e-09" in shown
    drawn = picture(re.findall(r'src="([^"]*)"', shown)[0])
    assert drawn[0, 1].tolist() == [254, 232, 56]  # cividis's end, however small the difference
    assert "equal everywhere" in page._difference_figure(Pictures(pair.reference, pair.reference), "x", "fp32")


def test_the_axis_has_a_place_for_everything() -> None:
    axis = page._Axis(-4, 0)
    assert axis.place(1e-4) == axis.LEFT
    assert axis.place(1.0) == axis.RIGHT
    assert axis.place(1e-2) == pytest.approx((axis.LEFT + axis.RIGHT) / 2)
    assert axis.place(0) < axis.LEFT
    assert axis.place(math.inf) > axis.RIGHT
    assert axis.place(1e-300) == axis.LEFT
    assert axis.place(1e300) == axis.RIGHT


def test_it_needs_neither_framework() -> None:
    code = "import sys, parity.page; print(sorted({'torch', 'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- in a browser -----------------------------------------------------------------------------------------------------

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --disable-dev-shm-usage --hide-scrollbars"
)


class _Browser:
    """A headless Chromium: opens a page and says what it did."""

    def __init__(self, profile: Path) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        chromedriver = shutil.which("chromedriver")
        if not chromium or not chromedriver:
            pytest.skip("no browser: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.unhandled_prompt_behavior = "ignore"
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))

    def open(self, path: Path, *, width: int = 1280, medium: str = "screen", unfold: bool = True) -> list[str]:
        """Open a file, with every closed part opened.

        Returns:
            Complaints: alerts, console lines, requests beyond the file and its data: addresses.
        """
        from selenium.common.exceptions import NoAlertPresentException

        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium})
        self.driver.get(path.as_uri())
        complaints = []
        try:
            complaints.append(f"alert: {self.driver.switch_to.alert.text}")
            self.driver.switch_to.alert.accept()
        except NoAlertPresentException:
            pass
        if unfold:
            self.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
        complaints += [f"console: {entry['message']}" for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url != path.as_uri() and not url.startswith(("data:", "chrome:")):  # its own first tab
                    complaints.append(f"request: {url}")
        return complaints

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Browser]:
    opened = _Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def files(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for kind, text in pages.items():
        (folder / f"{kind}.html").write_text(text, encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in pages}


@pytest.mark.parametrize("kind", KINDS)
def test_the_browser_has_nothing_to_complain_of(browser: _Browser, files: dict[str, Path], kind: str) -> None:
    assert browser.open(files[kind]) == []
    assert browser.ask("return document.scripts.length") == 0
    assert browser.ask("return [...document.images].filter(i => !(i.complete && i.naturalWidth)).length") == 0
    if kind != "empty":
        assert browser.ask("return document.images.length") > 20
    # the style block is in force: the policy's digest is that of the block
    assert browser.ask("return getComputedStyle(document.querySelector('.skip')).position") == "absolute"


def test_the_browser_would_have_complained(browser: _Browser, tmp_path: Path) -> None:
    """The control: the same names, unescaped and without the policy."""
    path = tmp_path / "naive.html"
    path.write_text(f'<!DOCTYPE html><img alt="{SCRIPT}"><img src="http://127.0.0.1:9/x.png">', encoding="utf-8")
    complaints = browser.open(path)
    assert "alert: 1" in complaints
    assert any(c.startswith("request: http://127.0.0.1:9/") for c in complaints)
    assert any(c.startswith("console: ") for c in complaints)


def test_the_policy_stops_what_escaping_might_miss(browser: _Browser, pages: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "slipped.html"
    slip = '<script>alert(1)</script><img src="http://127.0.0.1:9/x.png" alt="x"><p style="color:red">x</p>'
    path.write_text(pages["one"].replace("</main>", f"{slip}</main>"), encoding="utf-8")
    complaints = browser.open(path)
    assert len(complaints) >= 3
    assert all("Content Security Policy" in c for c in complaints if not c.startswith("request: "))
    assert not [c for c in complaints if c.startswith("alert")]
    assert browser.ask("return [...document.images].some(i => i.src.startsWith('http') && i.naturalWidth)") is False


OVERFLOW = """
return [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') && !e.matches('.scroll') || e.matches('.skip') || e.closest('svg.at')) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).slice(0, 5).map(e => e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + e.textContent.slice(0, 40))
"""


@pytest.mark.parametrize(("width", "medium"), [(390, "screen"), (320, "screen"), (1280, "screen"), (688, "print")])
@pytest.mark.parametrize("kind", ["good", "bad", "hostile"])
def test_nothing_sticks_out_sideways(
    browser: _Browser, files: dict[str, Path], kind: str, width: int, medium: str
) -> None:
    browser.open(files[kind], width=width, medium=medium)
    assert browser.ask("return innerWidth") == width
    assert browser.ask("return document.documentElement.scrollWidth") <= width
    assert browser.ask(OVERFLOW) == []
    if medium == "print":  # a box that scrolls would be cut off on paper
        wider = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
        assert browser.ask(wider) == []


def test_the_figures_of_a_map_fit_a_phone(browser: _Browser, files: dict[str, Path]) -> None:
    browser.open(files["good"], width=390)
    wider = """
        const boxes = [...document.querySelectorAll('.scroll:has(.likeness), .scroll:has(.moves)')];
        return [boxes.length, boxes.filter(e => e.scrollWidth > e.clientWidth).map(e => e.scrollWidth - e.clientWidth)];
    """
    assert browser.ask(wider) == [9, []]


@pytest.mark.parametrize("width", [390, 1280])
def test_no_text_is_tiny(browser: _Browser, files: dict[str, Path], width: int) -> None:
    browser.open(files["bad"], width=width)
    smallest = browser.ask(
        "return Math.min(...[...document.querySelectorAll('body *')]"
        ".filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12


def test_labels_of_the_chart_do_not_cover_each_other(browser: _Browser, files: dict[str, Path]) -> None:
    browser.open(files["hostile"], width=390)
    covered = browser.ask(
        """
        return [...document.querySelectorAll('svg.chart')].flatMap(chart => {
          const boxes = [...chart.querySelectorAll('text.tick')].map(t => [t.textContent, t.getBoundingClientRect()]);
          return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
            .filter(([b, q]) => Math.abs(p.top - q.top) < 4 && p.left < q.right && q.left < p.right).map(([b]) => a + ' ' + b));
        })
        """
    )
    assert covered == []


def test_the_keyboard_reaches_the_content(browser: _Browser, files: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(files["good"], unfold=False)
    ActionChains(browser.driver).send_keys(Keys.TAB).perform()
    assert browser.ask("return document.activeElement.className") == "skip"
    assert browser.ask("return document.activeElement.getBoundingClientRect().left") >= 0  # it comes into view
    assert browser.ask("return parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    assert browser.ask("return document.activeElement.id") == "content"
    ActionChains(browser.driver).send_keys(Keys.TAB).perform()  # the first thing after: the verdict's table
    assert browser.ask("return document.activeElement.getAttribute('aria-label')").startswith("Each method")
