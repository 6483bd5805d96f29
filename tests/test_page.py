"""The page: escaped, well formed, within its size, and saying everything that the report holds."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import math
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from page_reports import (
    INF,
    KINDS,
    NAN,
    SCRIPT,
    STYLE,
    Reader,
    all_pages,
    article,
    bad_report,
    good_report,
    hostile,
    rows_of,
    section,
    words_of,
)
from PIL import Image

from parity import charts, page, pictures, tables
from parity.criterion import DESCRIBED, DIFFERENT, SAME_FUNCTION, SAME_ROUNDING
from parity.report import OtherMap, ParityReport, Pictures, PixelsRow


@pytest.fixture(scope="module")
def good() -> ParityReport:
    return good_report()


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return all_pages()


@pytest.fixture(scope="module")
def read(pages: dict[str, str]) -> dict[str, Reader]:
    return {kind: Reader(text) for kind, text in pages.items()}


# --- form -------------------------------------------------------------------------------------------------------------

KNOWN_TAGS = """
    html head meta title link style body a header p h1 h2 h3 h4 span nav ul li main section article div footer
    table caption thead tbody tr th td small code strong em bdi figure img figcaption details summary meter
"""


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_elements_and_nothing_is_loaded(read: dict[str, Reader], pages: dict[str, str], kind: str) -> None:
    assert {tag for tag, _ in read[kind].elements} <= set(KNOWN_TAGS.split())
    for tag, attributes in read[kind].elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")], tag
        for name in {"src", "href", "data", "poster"} & attributes.keys():
            assert str(attributes[name]).startswith("data:" if tag != "a" else "#"), (tag, attributes[name])
    style = re.findall(r"<style>(.*?)</style>", pages[kind], re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]


def test_the_policy_allows_its_own_style_and_pictures_and_nothing_else(pages: dict[str, str]) -> None:
    style = re.findall(r"<style>(.*?)</style>", pages["good"], re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policies = [a["content"] for a in Reader(pages["good"]).all("meta") if a.get("http-equiv")]
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_screen_reader_finds_its_way(read: dict[str, Reader], kind: str) -> None:
    reader = read[kind]
    assert reader.all("html")[0]["lang"] == "en-GB"
    assert [len(reader.all(landmark)) for landmark in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert reader.all("a")[0]["href"] == "#content"  # the skip link comes first
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [str(a["href"])[1:] for a in reader.all("a")]
    wanted += [str(a["aria-labelledby"]) for _, a in reader.elements if "aria-labelledby" in a]
    assert set(wanted) <= set(ids)
    assert all(a.get("alt") for a in reader.all("img"))
    assert all(-1 <= float(str(a["value"])) <= 1 for a in reader.all("meter"))
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table"))
    scrolled = [a for a in reader.all("div") if a.get("class") == "scroll"]
    assert all((a["role"], a["tabindex"], bool(a["aria-label"])) == ("region", "0", True) for a in scrolled)


def test_a_chart_is_one_picture_that_names_no_address_and_keeps_names_as_they_are() -> None:
    shown = charts.stage_charts(hostile(bad_report()), "fp64")
    assert len({c.picture.address for c in shown}) == len(shown) == 6  # forward, backward, four methods
    drawn = [base64.b64decode(c.picture.address.partition("base64,")[2]).decode() for c in shown]
    for text in drawn:
        assert "<!DOCTYPE" not in text
        for element in ElementTree.fromstring(text).iter():
            assert not element.tag.endswith(("script", "date"))
            assert all(v.startswith("#") for k, v in element.attrib.items() if k.endswith("href"))
    words = [element.text for element in ElementTree.fromstring(drawn[0]).iter()]
    assert "▲ inputs" in words
    assert words.count("not given") == 2  # `STYLE` and `LONG` are stages that nobody gave
    names = {'a$\\frac$b"<i>&😀\x07': bad_report().figures[:1]}  # no formula, no markup, nothing that XML forbids
    picture = charts._chart("x", names, set(), -9, 0)
    text = base64.b64decode(picture.address.partition("base64,")[2]).decode()
    assert 'a$\\frac$b"<i>&😀…' in [element.text for element in ElementTree.fromstring(text).iter()]


def test_the_scale_has_a_place_for_everything() -> None:
    values = (1e-4, 1.0, 1e-2, 1e-300, 1e300, 0, INF)
    assert [charts.place(value, -4, 0) for value in values] == pytest.approx([-4, 0, -2, -4, 0, -4.8, 0.8])


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first(pages: dict[str, str], read: dict[str, Reader], good: ParityReport) -> None:
    headings = [words for tag, words in read["good"].words if tag in ("h1", "h2")]
    assert headings == [
        "The same function (fp64); the same up to rounding (fp32)",
        "Verdict",
        "Maps side by side",
        "Stage by stage",
        "From the libraries' plain calls to the port",
        "What a bad number looks like",
        "Criterion and environment",
    ]
    words = words_of(pages["good"])
    for said in (SAME_FUNCTION, SAME_ROUNDING):
        assert f"{said} (" in words
        assert page.MEANINGS[said] in words
    assert "Where it parts first" not in words
    shown = re.findall(r'<table class="verdicts">.*?</table>', pages["good"], re.DOTALL)[0]
    for v in good.verdicts:
        assert all(said in shown for said in (f"{v.worst:.1e}", v.worst_stage, f"{v.limit:.1e}"))
    assert "Nothing was compared" in pages["empty"]
    assert "The report holds no pictures" in pages["empty"]


def test_a_failure_names_stage_and_cause_once(pages: dict[str, str]) -> None:
    top = words_of(section(pages["bad"], "verdict"))
    top = top[top.index("Where it parts first") : top.index("Each method in each precision")]
    assert top.count("channel order") == 1  # for 20 divergences
    assert "inputs. Probable cause" in top
    assert "2 of 2 photographs. Concerns: The network (fp64, fp32), Vanilla saliency (fp64, fp32)" in top
    assert '<h1 class="bad">' in pages["bad"]
    assert "parts first at inputs; largest error" in pages["bad"]
    assert "▲ parts first" in pages["bad"]
    assert "▲ parts first" not in pages["good"]


def test_photographs_that_are_read_otherwise(good: ParityReport, pages: dict[str, str]) -> None:
    words = words_of(pages["good"])
    assert "✓ read as Keras's load_img reads it" in words
    assert "read otherwise on purpose, no verdict turned by EXIF; 3.4 % of its pixels differ" in words
    rows = (PixelsRow(0, 0.25, (), True, False, "resized bilinearly"),)
    words = words_of(page.render(replace(good, pixels_rows=rows)))
    assert "✗ Different" in words
    assert "a photograph is not read as the reference reads it; everything after it agrees" in words
    assert "25.0 % differ. Probable cause: resized bilinearly." in words
    assert "not compared with Keras's load_img" in words  # the other one


def test_a_precision_that_is_only_described_is_no_alarm() -> None:
    bad = bad_report()
    verdicts = tuple(replace(v, precision="bf16", word=DESCRIBED, holds=True) for v in bad.verdicts)
    text = page.render(replace(bad, verdicts=verdicts))
    assert '<h1 class="note">' in text
    assert page.MEANINGS[DESCRIBED] in words_of(text)
    assert "Where it parts first" not in text
    assert DIFFERENT not in words_of(section(text, "verdict"))


def test_numbers_that_are_none_are_words(pages: dict[str, str]) -> None:
    words = words_of(pages["hostile"])
    assert all(said in words for said in ("not finite", "constant map", "not given"))
    assert not re.search(r"\b(nan|inf)\b", words, re.IGNORECASE)
    assert not re.search(r"[>\s\"](nan|inf)[<\s,;%\"]", pages["hostile"], re.IGNORECASE)


@pytest.mark.parametrize(("method", "i"), [("vanilla", 0), ("gradcam_plus_plus", 1)])
def test_every_map_has_its_figures(good: ParityReport, pages: dict[str, str], method: str, i: int) -> None:
    maps = [m for m in good.map_figures if (m.method, m.photograph) == (method, i)]
    assert rows_of(article(pages["good"], i, tables.title(method)), "likeness") == {
        "": ["fp64 raw", "fp64 final", "fp32 raw", "fp32 final"],
        "Pearson": [f"{m.pearson:.6f}" for m in maps],
        "Spearman": [f"{m.spearman:.6f}" for m in maps],
        "SSIM": [f"{m.ssim:.6f}" for m in maps],
        "Relative L2": [f"{m.relative_l2:.1e}" for m in maps],
        "Max error": [f"{m.max_error:.1e}" for m in maps],
        "Top 10 %": [f"{math.floor(1000 * m.overlap) / 10:.1f} %" for m in maps],
        "Centre shift": [tables.error(m.shift) for m in maps],
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"constant": "both", "relative_l2": 0.0}, "both constant"),
        ({"constant": "reference", "relative_l2": INF}, "reference constant"),
        ({"constant": "candidate"}, "port constant"),
        ({"relative_l2": INF}, "not finite"),
        ({"relative_l2": 1e-300}, "not defined"),
    ],
)
def test_a_map_without_correlation_says_why(good: ParityReport, change: dict[str, Any], expected: str) -> None:
    none = dict.fromkeys(("pearson", "spearman", "ssim", "shift"), NAN)
    figures = replace(good.map_figures[0], **none, overlap=1.0, **change)
    table = tables.likeness(replace(good, map_figures=(figures,)), "vanilla", 0)
    rows = {row[0]: row[1] for row in table.rows}
    assert [rows[what] for what in ("Pearson", "Spearman", "SSIM", "Top 10 %")] == [expected] * 4
    assert rows["Centre shift"] == "no mass"


def test_figures_are_neither_rounded_up_nor_minus_nothing(good: ParityReport) -> None:
    figures = replace(good.map_figures[0], overlap=5017 / 5019, pearson=-1e-9, ssim=NAN)
    rows = {row[0]: row[1] for row in tables.likeness(replace(good, map_figures=(figures,)), "vanilla", 0).rows}
    assert (rows["Top 10 %"], rows["Pearson"], rows["SSIM"]) == ("99.9 %", "0.000000", "under 7×7 pixels")
    assert [tables.share(v) for v in (0, 1e-9, 0.5, NAN)] == ["none", "under 0.1 %", "50.0 %", "not compared"]


def test_a_table_that_counts_what_the_verdict_leaves_out_says_so(good: ParityReport) -> None:
    figures = tuple(
        replace(f, left_out=0.095) if f.stage.startswith("vanilla/") and f.photograph == 1 else f for f in good.figures
    )
    ladder = (*good.ladder, OtherMap("vanilla", "plain", (0.5, 0.5)))
    text = page.render(replace(good, figures=figures, ladder=ladder))
    assert "Counts every pixel. The verdict leaves out 9.5 % of them" in words_of(article(text, 1, "Vanilla saliency"))
    assert "every pixel, tied ones too" in words_of(article(text, 1, "Vanilla saliency"))
    assert "leaves out" not in words_of(article(text, 0, "Vanilla saliency") + article(text, 1, "SmoothGrad"))
    assert "Every pixel counts" in words_of(section(text, "ladder"))
    assert "Every pixel counts" not in words_of(section(text, "context"))  # that has no vanilla saliency
    lines = re.findall(r"<tr>.*?</tr>", section(text, "verdict"))
    assert {"Vanilla saliency" in line for line in lines if "ties left out" in line} == {True}
    assert "without 9.5 %, ties" in words_of(section(text, "stages"))
    assert "ties left out" not in page.render(good)


def test_context_shows_what_a_bad_number_looks_like(pages: dict[str, str]) -> None:
    shown = section(pages["good"], "context")
    words = words_of(shown)
    for what, reading in page.READINGS.items():
        assert f"{what[0].upper()}{what[1:]}: {reading}" in words
    assert "The port beats it by far" in words
    assert "the ceiling at least 0.62." in words
    rows = rows_of(shown, "figures")
    assert rows["random weights"] == ["constant map", "-0.0038"]
    assert rows["the port, fp32"] == ["1.0000", "1.0000"]
    assert rows["another seed"] == ["0.3840", "0.3602"]
    assert rows_of(section(pages["good"], "ladder"), "figures")["plain"] == ["0.3100", "0.5200"]
    assert '<meter aria-hidden="true" value="0.5200"></meter>' in pages["good"]
    assert "No other maps were drawn" in words_of(pages["empty"])


@pytest.mark.parametrize("own", [0.35, 0.9, NAN])
def test_a_port_that_does_not_beat_the_noise_ceiling_is_named(good: ParityReport, own: float) -> None:
    assert "does not beat it by far on 2 · coffee.png" in page._beaten(good, (0.38, 0.38), (1.0, own)).words
    assert "this ceiling says nothing" in page._beaten(good, (0.38, 1.0), (1.0, 1.0)).words


@pytest.mark.parametrize(("floor", "marked"), [(2e-3, True), (9e-4, False), (NAN, False), (INF, True)])
def test_ill_conditioned_maps_are_marked_on_either_side(good: ParityReport, floor: float, marked: bool) -> None:
    """Grad-CAM of the second photograph by the reference's own float32; Grad-CAM++ of the first by how far it moves."""
    figures = tuple(
        replace(f, floor_l2=floor) if (f.stage, f.photograph) == ("gradcam/raw", 1) else f for f in good.figures
    )
    text = page.render(replace(good, figures=figures))
    titles = ("Vanilla saliency", "SmoothGrad", "Grad-CAM", "Grad-CAM++")
    ill = [(m, i) for m in titles for i in (0, 1) if "ill-conditioned" in article(text, i, m)]
    assert ill == [("Grad-CAM", 1)] * marked + [("Grad-CAM++", 0)]
    assert "moves 4321 times as far as its inputs" in words_of(article(text, 0, "Grad-CAM++"))
    assert "Moves 4.5 times as far" in words_of(article(text, 1, "Grad-CAM")) or marked
    top = words_of(section(text, "verdict"))
    assert ("ill-conditioned Grad-CAM of 2 · coffee.png: rounding alone moves the map" in top) is marked
    assert "ill-conditioned Grad-CAM++ of 1 · chelsea.png: rounding alone moves the map" in top
    assert not re.search(r"\b(nan|inf)\b", words_of(text), re.IGNORECASE)


def test_a_reference_out_of_range_is_said_first_and_the_truth_is_shown(good: ParityReport) -> None:
    line = "photograph 2 (coffee.png): exp(score) is out of float32's range (score 95.1), it is unusable there"
    photographs = (replace(good.photographs[0], name="exp(score).png"), good.photographs[1])
    other = "photograph 1 (exp(score).png): 3.0% of its pixels are left out"  # no alarm: that is only its name
    figures = tuple(
        replace(f, floor_l2=INF) if f.stage == "gradcam_plus_plus/raw" and f.photograph == 1 else f
        for f in good.figures
    )
    reference = {**good.reference, "warnings": [line, other]}
    text = page.render(replace(good, photographs=photographs, figures=figures, reference=reference))
    top = words_of(section(text, "verdict"))
    assert top.index("The reference itself went out of range") < top.index("Each method in each precision")
    assert "This page shows the float64 truth" in top
    assert top.count(line) == 1
    assert top.rstrip().endswith(f"Remarks {other}")
    words = words_of(article(text, 1, "Grad-CAM++"))
    assert "! reference out of range" in words
    assert "ill-conditioned" not in words  # it was the range, not the condition
    for i, method in ((0, "Grad-CAM++"), (1, "Grad-CAM")):
        assert "out of range" not in words_of(article(text, i, method))


def test_gaps_are_stages_that_were_asked_for_and_not_given(good: ParityReport) -> None:
    only = replace(
        good,
        verdicts=tuple(v for v in good.verdicts if not v.method.startswith("gradcam")),
        figures=tuple(f for f in good.figures if f.stage != "logits" and not f.stage.startswith("gradcam")),
    )
    stages = tables.gathered(only, "fp64")
    assert [name for name, figures in stages.items() if not figures] == ["logits"]
    assert list(stages)[:2] == ["inputs", "activations/block1_conv1"]  # pixels have a place of their own
    assert not [name for name in stages if name.startswith("gradcam")]
    assert "not given" in words_of(section(page.render(only), "stages"))


def test_hostile_text_is_shown_as_it_is(read: dict[str, Reader], pages: dict[str, str]) -> None:
    shown = "".join(data for _, data in read["hostile"].words)
    escaped = r"\u202egpj.\udcff\x07<img src=http://192.0.2.1/x.png onerror=alert(2)>😀.png"
    assert all(text in shown for text in (SCRIPT, STYLE, escaped))  # the template's own braces, too, are only text
    assert f"Photograph 1, {SCRIPT}" in [a["alt"] for a in read["hostile"].all("img")]
    assert not {"\u202e", "\udcff", "\x07"} & set(pages["hostile"])


def test_the_same_report_gives_the_same_page(good: ParityReport, pages: dict[str, str]) -> None:
    assert page.render(good) == pages["good"]
    slower = {**good.reference, "seconds": {"fp32/setup": 4321.04}}
    assert "4321.0" in words_of(section(page.render(replace(good, reference=slower)), "environment"))


def test_noise_in_two_precisions_stays_below_four_megabytes(good: ParityReport) -> None:
    """The worst case, which no format makes smaller."""
    generator = np.random.RandomState(0)
    noise = {key: Pictures(*generator.uniform(size=(2, 224, 224))) for key in good.pictures}
    pixels = generator.randint(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    assert len(page.render(replace(good, pixels=pixels, pictures=noise)).encode()) < 4 * 10**6


def seen(picture: pictures.Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.address.partition(",")[2]))).convert("RGB"))


def test_maps_are_drawn_as_the_lab_draws_them(good: ParityReport) -> None:
    """Saliency alone in jet; a CAM half and half with its photograph; a difference on its own scale; each in words."""
    values = np.array([[0.0, 1.0], [NAN, 0.5]])
    pair = Pictures(values, np.array([[0.0, 2e-9], [1e-9, 0.0]]))
    shown = {(method, 0, "fp32"): pair for method in ("vanilla", "gradcam")}
    report = replace(good, pixels=np.full((1, 2, 2, 3), 100, np.uint8), pictures=shown)
    alone = seen(pictures.reference(report, "vanilla", 0, "fp32").picture)
    assert alone.tolist()[0] == [[0, 0, 128], [128, 0, 0]]  # jet's ends are dark blue and dark red
    assert alone[1, 0].tolist() == [128, 128, 128]  # no number
    over = pictures.reference(report, "gradcam", 0, "fp32")
    assert seen(over.picture)[0].tolist() == [[50, 50, 114], [114, 50, 50]]
    assert over.alt.startswith(
        "Grad-CAM of chelsea.png by the reference in float64: 25.0 % of its values are not finite"
    )

    pair = Pictures(np.zeros((2, 2)), pair.candidate)
    same = Pictures(pair.reference, pair.reference)
    report = replace(report, pictures={("vanilla", 0, "fp32"): pair, ("smoothgrad", 0, "fp32"): same})
    apart = pictures.difference(report, "vanilla", 0, "fp32")
    assert apart.caption == "Difference ≤ 2.0e-09"
    assert seen(apart.picture)[0, 1].tolist() == [254, 232, 56]  # cividis's end, however small the difference
    assert pictures.difference(report, "smoothgrad", 0, "fp32").caption == "No difference"
    assert pictures.reference(report, "vanilla", 0, "fp32").caution == "constant map"
    assert "strongest 75 % from the left and 25 % from the top" in pictures.port(report, "vanilla", 0, "fp32").alt
