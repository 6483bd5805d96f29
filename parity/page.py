"""The report as one self-contained HTML file: no script, no network; for a phone, for print and for a screen reader.

Text that comes from outside (file names, labels, remarks, versions) goes through `_text` and nothing else does, so a
photograph may be called whatever it likes. The page's own policy forbids every load but its one style block and the
pictures inside it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from parity.contract.methods import METHODS
from parity.criterion import (
    DESCRIBED,
    DIFFERENT,
    FLOAT64_LIMIT,
    FLOOR_FACTOR,
    FLOOR_LEAST,
    NETWORK,
    PEARSON_LEAST,
    SAME_FUNCTION,
    SAME_ROUNDING,
    Divergence,
    Figure,
    Verdict,
)
from parity.report import (
    ANOTHER_CLASS,
    ANOTHER_SEED,
    ILL_CONDITIONED,
    RANDOM_WEIGHTS,
    ContextRow,
    MapFigures,
    ParityReport,
    Pictures,
)

TITLES = {name: method.title for name, method in METHODS.items()}
FLOAT64_LIMIT_PLUS_PLUS = METHODS["gradcam_plus_plus"].float64_limit

MAP_COLOURS = "jet"
"""As the lab draws maps."""

DIFFERENCE_COLOURS = "cividis"
"""Perceptually uniform, and the same to colour-blind readers."""

OVERLAY = 0.5
"""Opacity of a CAM over its photograph, as the lab draws it."""

LOSSLESS_SIDE = 128
"""Photographs up to this many pixels wide are kept exactly; larger ones become JPEG."""

LABEL = 16
"""Characters of a stage's name that fit beside the chart on a phone; the table has the whole name."""

ILL_FLOOR = 1e-3
"""A raw map whose own float32 in the reference is this far from its float64 (relative L2) is ill-conditioned there."""

FAR = 10.0
"""A port that shares the noise beats the noise ceiling by far: it is this many times nearer to a correlation of 1."""

SILENT = 1e-6
"""A noise ceiling as near to 1 as this says nothing: the noise hardly moves the map."""

READINGS = {
    ANOTHER_SEED: "SmoothGrad's noise ceiling, the reference beside the same computation with the next seed: two correct "
    "programs that draw noise of their own agree no better than this, so with the same noise on both sides, as here, "
    "the port must beat it by far.",
    ANOTHER_CLASS: "The same network asked about another class: where even this number is high, the map hardly depends "
    "on the class, and a high correlation alone proves little.",
    RANDOM_WEIGHTS: "The port with random weights of the same spread: what correlation is left comes from the photograph "
    "and the architecture, not from anything that the network has learnt.",
}
"""How to read each row of context."""

MEANINGS = {
    SAME_FUNCTION: "With 64-bit numbers every stage agrees with the reference but for the last digits: "
    "both compute the same function.",
    SAME_ROUNDING: "The maps are as near to the reference's float64 maps as the reference's own float32 is, "
    "within the stated factor: what is left is rounding.",
    DIFFERENT: "At least one stage is farther from the reference than rounding explains. "
    "The first such stage is named below.",
    DESCRIBED: "This precision rounds more than float32 does. It is measured against the same float64 maps, "
    "and no verdict rests on it.",
}

LIGHT = {
    "page": "#ffffff",
    "card": "#f5f6f8",
    "text": "#1b1b1f",
    "muted": "#55585e",
    "line": "#c5c8ce",
    "link": "#0b50c4",
    "good": "#0a5f2a",
    "good-card": "#e6f4ea",
    "bad": "#a3150f",
    "bad-card": "#fdebe9",
    "note": "#5a4500",
    "note-card": "#fff5d1",
}

DARK = {
    "page": "#15171b",
    "card": "#1f2228",
    "text": "#e9e9ec",
    "muted": "#b3b7be",
    "line": "#4a4e57",
    "link": "#8fb8ff",
    "good": "#86dba2",
    "good-card": "#11301d",
    "bad": "#ffa59c",
    "bad-card": "#3d1613",
    "note": "#f3d878",
    "note-card": "#36300f",
}


def render(report: ParityReport) -> str:
    """The page: the verdict first, then maps, stages, the ladder, and where everything comes from.

    Args:
        report: where its `reference` mapping holds `stages`, the names of all stages in the order of the computation,
            those that the candidate did not give are shown as gaps.

    Returns:
        A whole HTML document; the same report gives the same text.
    """
    sections = [
        ("verdict", "Verdict", _verdict(report)),
        ("maps", "Maps side by side", _maps(report)),
        ("stages", "Stage by stage", _stages(report)),
        ("ladder", "From the libraries' plain calls to the port", _ladder(report)),
        ("context", "What a bad number looks like", _context(report)),
        ("conditioning", "How far the maps move by themselves", _conditioning(report)),
        ("pixels", "How the photographs were read", _pixels(report)),
    ]
    sections.append(("environment", "Criterion and environment", _environment(report)))
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    links = "".join(f'<li><a href="#{name}">{_text(title)}</a></li>' for name, title, _ in sections)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{_text(title)}</h2>{body}</section>\n'
        for name, title, body in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>Parity report: {_text(_word(report))}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the verdict</a>\n'
        f"<header>{_header(report)}</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
        f'<main id="content" tabindex="-1">\n{bodies}</main>\n'
        "<footer><p>Written by attention-maps' parity check. This file loads nothing and runs nothing.</p></footer>\n"
        "</body>\n</html>\n"
    )


# --- text and numbers -------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Text from anywhere, safe in HTML text and attributes; what cannot be printed is shown as an escape."""
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)))


def _error(value: float, nan: str = "–") -> str:
    """An error or limit: scientific, one decimal; words where it is no number."""
    if math.isnan(value):
        return nan
    if math.isinf(value):
        return "not finite"
    return "0" if value == 0 else f"{value:.1e}"


def _cell(value: float, nan: str = "–") -> str:
    """The same for a table, as HTML: never broken at its minus sign."""
    return f'<span class="number">{_error(value, nan)}</span>'


def _pearson(value: float, nan: str = "constant map") -> str:
    """A correlation, six decimals; words where there is none."""
    return nan if math.isnan(value) else f"{value:.6f}"


def _share(value: float) -> str:
    """A part of one as per cent, never rounded down to nothing."""
    if math.isnan(value):
        return "not compared"
    return "none" if value == 0 else "under 0.1 %" if value < 0.001 else f"{100 * value:.1f} %"


def _code(stage: str) -> str:
    """A stage's name, as HTML that may break after its group."""
    return f"<code>{_text(stage).replace('/', '/<wbr>')}</code>"


def _method(name: str) -> str:
    """A method's title, as HTML."""
    return _text("The network" if name == NETWORK else TITLES.get(name, name))


def _photograph(report: ParityReport, i: int) -> str:
    """`1 · cat.jpg`, as HTML: numbered, because two photographs may have one name."""
    name = report.photographs[i].name if 0 <= i < len(report.photographs) else "?"
    return f"{i + 1} · <bdi>{_text(name)}</bdi>"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _photographs(report: ParityReport) -> str:
    return _counted(len(report.photographs), "photograph", "photographs")


def _criterion_of(precision: str) -> str:
    return "of the range" if precision == "fp64" else "relative L2"


def _word(report: ParityReport) -> str:
    return report.word if report.verdicts or not report.holds else "nothing was compared"


# --- building blocks --------------------------------------------------------------------------------------------------


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """A table in a box of its own that scrolls sideways.

    Args:
        caption: plain text.
        head: plain text, a column each.
        rows: cells as HTML; the first of each is the row's header.
        kind: a class of the table.
    """
    if not rows:
        return ""
    columns = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(caption)} (table)">'
        f'<table class="{kind or "plain"}"><caption><span>{_text(caption)}</span></caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _details(summary: str, body: str, *, opened: bool = False) -> str:
    """A long part, closed at first unless `opened`; `summary` and `body` as HTML."""
    return f"<details{' open' * opened}><summary>{summary}</summary><div>{body}</div></details>"


def _listed(items: Iterable[str], kind: str = "") -> str:
    """HTML items → a list, or nothing."""
    lines = "".join(f"<li>{item}</li>" for item in items)
    attribute = f' class="{kind}"' if kind else ""
    return f"<ul{attribute}>{lines}</ul>" if lines else ""


def _badge(word: str) -> str:
    """A verdict's word with a sign; the colour says nothing that they do not."""
    kind, sign = {SAME_FUNCTION: ("good", "✓"), SAME_ROUNDING: ("good", "✓"), DIFFERENT: ("bad", "✗")}.get(
        word, ("note", "–")
    )
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign} </span>{_text(word)}</span>'


def _flag(words: str) -> str:
    """A caution in a few words."""
    return f'<span class="badge note"><span aria-hidden="true">! </span>{_text(words)}</span>'


# --- header and verdict -----------------------------------------------------------------------------------------------


def _header(report: ParityReport) -> str:
    word = _word(report)
    judged = any(v.word in (SAME_FUNCTION, SAME_ROUNDING) for v in report.verdicts)
    kind, sign = ("bad", "✗") if not report.holds else ("good", "✓") if judged else ("note", "–")
    programs = "; ".join(
        f"port in {_text(precision)}: {_text(one.get('program', 'not stated'))}"
        for precision, one in report.candidate.items()
    )
    weights = report.reference.get("weights", {})
    about = (
        f"{_photographs(report)}; reference: "
        f"{_text(report.reference.get('program', 'not stated'))}"
        + (f"; {programs}" if programs else "")
        + f"; weights: {_text(weights.get('source', 'not stated'))} "
        f"(fingerprint {_text(str(weights.get('fingerprint', 'not stated'))[:12])})"
    )
    return (
        '<p class="eyebrow">Parity report: does the port draw the reference\'s attention maps?</p>'
        f'<h1 class="{kind}"><span aria-hidden="true">{sign} </span>{_text(word[:1].upper() + word[1:])}</h1>'
        f'<p class="about">{about}</p>'
    )


def _verdict(report: ParityReport) -> str:
    words = list(dict.fromkeys(v.word for v in report.verdicts))
    if not report.holds and DIFFERENT not in words:
        words.insert(0, DIFFERENT)
    words.sort(key=lambda w: w != DIFFERENT)
    meanings = []
    for word in words:
        precisions = dict.fromkeys(v.precision for v in report.verdicts if v.word == word)
        where = f" ({_text(', '.join(precisions))})" if precisions else ""
        meaning = MEANINGS.get(word, "")
        if word == DIFFERENT and not precisions:
            meaning = "At least one photograph is not read as the reference reads it; everything after it agrees."
        meanings.append(f"<p>{_badge(word)}{where}: {_text(meaning)}</p>")
    lost = _lost(report)
    lines = [r for one in (report.reference, *report.candidate.values()) for r in one.get("warnings", ())]
    remarks = [_text(line) for line in lines if line not in lost]
    return (
        ("".join(meanings) or "<p>The report holds no verdict: nothing was compared.</p>")
        + _out_of_range(lost)
        + _partings(report)
        + _table(
            "Each method in each precision, over all photographs",
            (
                "Method",
                "Precision",
                "Verdict",
                "Worst error",
                "Limit",
                "At stage",
                "Lowest Pearson",
                "Parts first at, and probable cause",
            ),
            [_verdict_row(v) for v in report.verdicts],
            kind="verdicts",
        )
        + _marked(report)
        + (f"<h3>Remarks</h3>{_listed(dict.fromkeys(remarks))}" if remarks else "")
    )


def _lost(report: ParityReport) -> dict[str, int | None]:
    """The reference's remarks that its exp(score) left the range of the type → the photograph; None: not said which."""
    found: dict[str, int | None] = {}
    for line in report.reference.get("warnings", ()):
        of, rest = None, str(line)
        for i, p in enumerate(report.photographs):
            if rest.startswith(start := f"photograph {i + 1} ({p.name}): "):  # a file's name may hold any words
                of, rest = i, rest[len(start) :]
                break
        if "exp(score)" in rest:
            found[line] = of
    return found


def _is_lost(report: ParityReport, method: str, photograph: int) -> bool:
    return method == "gradcam_plus_plus" and any(of in (None, photograph) for of in _lost(report).values())


def _out_of_range(lost: Iterable[str]) -> str:
    lines = _listed(map(_text, lost))
    if not lines:
        return ""
    return (
        '<div class="caution"><p><strong>The reference itself went out of range.</strong> It leaves exp(score) in '
        "Grad-CAM++, though it cancels out of the map, and here it over- or underflowed. "
        f"<strong>This page shows the float64 truth, without exp(score),</strong> and judges by that.</p>{lines}</div>"
    )


def _marked(report: ParityReport) -> str:
    """Which maps are ill-conditioned, in a line for each method."""
    found: dict[str, list[int]] = {}
    for method, i in _drawn_maps(report):
        if _ill(report, method, i):
            found.setdefault(method, []).append(i)
    return "".join(
        f"<p>{_flag('ill-conditioned')} {_method(method)} of {', '.join(_photograph(report, i) for i in of)}: "
        'rounding alone moves the map (<a href="#conditioning">how far</a>).</p>'
        for method, of in found.items()
    )


def _verdict_row(v: Verdict) -> list[str]:
    unit = _criterion_of(v.precision)
    return [
        _method(v.method),
        _text(v.precision),
        _badge(v.word),
        f"{_cell(v.worst)} <small>{unit}</small>",
        _cell(v.limit, "none"),
        _code(v.worst_stage),
        _pearson(v.pearson, "no map" if v.method == NETWORK else "constant map"),
        "<br>".join(f"{_code(stage)}: {_text(cause)}" for stage, cause in _grouped(v.divergences)) or "nowhere",
    ]


def _grouped(divergences: Iterable[Divergence]) -> dict[tuple[str, str], list[Divergence]]:
    """(stage, cause) → the divergences that share it, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Divergence]] = {}
    for d in divergences:
        groups.setdefault((d.stage, d.cause or "cause not known"), []).append(d)
    return groups


def _partings(report: ParityReport) -> str:
    """Where it parts first: one line for each place and cause, not one for each photograph."""
    items = []
    for row in report.pixels_rows:
        if row.judged and not row.within:
            cause = f" Probable cause: {_text(row.cause)}." if row.cause else ""
            items.append(
                f"<code>pixels</code> of {_photograph(report, row.photograph)}: {_share(row.differing)} differ.{cause}"
            )
    groups = _grouped(d for v in report.verdicts if v.word == DIFFERENT for d in v.divergences)
    order = {name: i for i, name in enumerate(_stage_names(report))}
    for (stage, cause), found in sorted(groups.items(), key=lambda item: order.get(item[0][0], len(order))):
        worst = max(
            found, key=lambda d: math.inf if math.isnan(d.figure) else d.figure / d.limit if d.limit > 0 else 0.0
        )
        who = ", ".join(
            f"{_method(method)} ({_text(', '.join(dict.fromkeys(d.precision for d in found if d.method == method)))})"
            for method in dict.fromkeys(d.method for d in found)
        )
        missing = max(d.not_given for d in found)
        items.append(
            f"<strong>{_code(stage)}</strong>. Probable cause: <strong>{_text(cause)}</strong>. "
            f"Worst: {_error(worst.figure)} {_criterion_of(worst.precision)}, limit {_error(worst.limit, 'none')}, "
            f"on {_photograph(report, worst.photograph)}; "
            f"{len({d.photograph for d in found})} of {_photographs(report)}. Concerns: {who}."
            + (
                f" {_counted(missing, 'earlier stage was', 'earlier stages were')} not given: it may begin before."
                if missing
                else ""
            )
        )
    return f"<h3>Where it parts first</h3>{_listed(items, 'partings')}" if items else ""


# --- pictures ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _palette(name: str) -> np.ndarray:
    """uint8 (256, 3): 255 steps of a colour map, and grey for what is not a number."""
    import matplotlib

    colours = np.asarray(matplotlib.colormaps[name](np.linspace(0, 1, 255)))[:, :3]
    return np.concatenate([np.round(colours * 255), [[128, 128, 128]]]).astype(np.uint8)


def _steps(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] → rows of a palette, uint8; 255 where a value is not finite."""
    finite = np.isfinite(values)
    steps = np.round(np.clip(np.where(finite, values, 0), 0, 1) * 254).astype(np.uint8)
    return np.where(finite, steps, np.uint8(255))


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _coloured(steps: np.ndarray, colours: str) -> str:
    """Rows of a palette → a palette PNG, exact, as a data: address."""
    picture = Image.frombytes("P", (steps.shape[1], steps.shape[0]), np.ascontiguousarray(steps).tobytes())
    picture.putpalette(_palette(colours).tobytes())
    return _uri(picture, "PNG", optimize=True)


def _photographic(rgb: np.ndarray) -> str:
    """uint8 (H, W, 3) → PNG where it is small, else JPEG, as a data: address."""
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    if max(rgb.shape[:2]) <= LOSSLESS_SIDE:
        return _uri(picture, "PNG", optimize=True)
    return _uri(picture, "JPEG", quality=88, subsampling=0)  # not optimize: Pillow's buffer is too small for noise


def _drawn(values: np.ndarray, pixels: np.ndarray | None) -> str:
    """A map in the lab's colours: by itself, or half and half with the photograph."""
    steps = _steps(values)
    if pixels is None or pixels.shape[:2] != values.shape:
        return _coloured(steps, MAP_COLOURS)
    mixed = OVERLAY * _palette(MAP_COLOURS)[steps].astype(np.float64) + (1 - OVERLAY) * pixels
    return _photographic(np.round(mixed).astype(np.uint8))


@lru_cache(maxsize=8)
def _bar(colours: str) -> str:
    """The colour scale, left to right."""
    return _coloured(np.arange(255, dtype=np.uint8)[None], colours)


def _figure(address: str, alt: str, size: tuple[int, int], caption: str, scale: str = "") -> str:
    """A picture, its caption and its scale (HTML)."""
    height, width = size
    sharp = ' class="sharp"' if width <= LOSSLESS_SIDE else ""
    return (
        f'<figure><img src="{address}" alt="{_text(alt)}" width="{width}" height="{height}" decoding="async"{sharp}>'
        f"<figcaption>{caption}{scale}</figcaption></figure>"
    )


def _scale(colours: str, low: str, high: str) -> str:
    """A colour bar with numbers at its ends."""
    return (
        f'<span class="scale"><span>{_text(low)}</span><img src="{_bar(colours)}" alt="to" width="255" height="1">'
        f"<span>{_text(high)}</span></span>"
    )


def _described(values: np.ndarray) -> str:
    """What a map shows, in words: for those who do not see it."""
    finite = values[np.isfinite(values)]
    if finite.size < values.size:
        return f"{_share(1 - finite.size / values.size)} of its values are not finite, drawn grey"
    if values.size == 0 or np.ptp(values) == 0:
        return "a constant map"
    top, left = np.unravel_index(int(np.argmax(values)), values.shape)
    where = [round(100 * (k + 0.5) / n) for k, n in zip((left, top), (values.shape[1], values.shape[0]), strict=True)]
    return (
        f"strongest {where[0]} % from the left and {where[1]} % from the top; "
        f"{round(100 * float((values >= 0.5).mean()))} % of the area is at half strength or more"
    )


def _maps(report: ParityReport) -> str:
    if not report.pictures:
        return "<p>The report holds no pictures.</p>"
    methods = list(dict.fromkeys(key[0] for key in report.pictures))
    return (
        "<p>For each method and photograph: the photograph as both sides saw it, the reference's map in float64, "
        "the port's map, and how far they are apart. Maps run from 0 to 1. The difference is |port − reference|, "
        "<strong>each on a scale of its own</strong>: dark blue is 0 and bright yellow is the largest difference "
        "of that picture, however small; the number beside the scale says how small.</p>"
        "<p>The figures below each are of the raw map, as the layer or the image gives it, and of the final one: "
        "correlation of values (Pearson) and of ranks (Spearman), structural similarity (SSIM), relative L2, the largest "
        "error as a part of the reference's range, how much the highest 10 % of the pixels overlap (intersection over "
        "union), and how far the centre of mass shifts, as a part of the map's side. They count every pixel; the verdict "
        "leaves out those whose gradient has no one value, and a remark says where.</p>"
        + "".join(
            f"<h3>{_method(method)}</h3>{_how_drawn(report, method)}{_rows_of(report, method)}" for method in methods
        )
    )


def _how_drawn(report: ParityReport, method: str) -> str:
    if method.startswith("gradcam"):
        return (
            f"<p>Drawn in {MAP_COLOURS} over the photograph, half and half (alpha {OVERLAY}), as the lab draws it.</p>"
        )
    settings = report.reference.get("settings", {})
    noise = ""
    if method == "smoothgrad" and "n_samples" in settings:
        noise = (
            f" {_text(settings['n_samples'])} samples, noise level {_text(settings.get('noise_level', 'not stated'))}, "
            f"seed {_text(settings.get('seed', 'not stated'))}; the same noise on both sides."
        )
    return f"<p>Drawn in {MAP_COLOURS} by itself, as the lab draws it.{noise}</p>"


def _rows_of(report: ParityReport, method: str) -> str:
    blocks = []
    for i in sorted({key[1] for key in report.pictures if key[0] == method}):
        precisions = [key[2] for key in report.pictures if key[:2] == (method, i)]
        main = "fp32" if "fp32" in precisions else precisions[0]
        shown = _photograph_figure(report, i) + _map_figures(report, method, i, main, with_reference=True)
        others = "".join(
            _details(
                f"The port in {_text(p)}: map and difference",
                f'<div class="pictures">{_map_figures(report, method, i, p, with_reference=False)}</div>',
            )
            for p in precisions
            if p != main
        )
        blocks.append(
            f'<article><h4>{_photograph(report, i)}</h4><p class="class">{_class(report, i)}</p>'
            f"{_cautions(report, method, i)}"
            f'<div class="pictures">{shown}</div>{others}{_likeness(report, method, i)}{_map_table(report, method, i)}'
            "</article>"
        )
    return "".join(blocks)


def _cautions(report: ParityReport, method: str, i: int) -> str:
    """What to know before these maps are looked at."""
    lines = []
    if reasons := _ill(report, method, i):
        lines.append(f'{_flag("ill-conditioned")} {"; ".join(reasons)}. <a href="#conditioning">What this means</a>')
    if _is_lost(report, method, i):
        lines.append(
            f"{_flag('reference out of range')} exp(score) over- or underflowed in the reference's own map; "
            "shown is its float64 truth, without exp(score)."
        )
    return "".join(f'<p class="caution">{line}</p>' for line in lines)


def _class(report: ParityReport, i: int) -> str:
    if not 0 <= i < len(report.photographs):
        return ""
    p = report.photographs[i]
    return f"Explained class: {p.class_index}, <bdi>{_text(p.label)}</bdi>"


def _photograph_figure(report: ParityReport, i: int) -> str:
    pixels = report.pixels[i]
    name = report.photographs[i].name
    return _figure(_photographic(pixels), f"Photograph {i + 1}, {name}", pixels.shape[:2], "Photograph")


def _map_figures(report: ParityReport, method: str, i: int, precision: str, *, with_reference: bool) -> str:
    """Reference (where asked for), port, difference."""
    pair: Pictures = report.pictures[method, i, precision]
    name, title = report.photographs[i].name, TITLES.get(method, method)
    over = report.pixels[i] if method.startswith("gradcam") else None
    size = (pair.reference.shape[0], pair.reference.shape[1])
    unit_scale = _scale(MAP_COLOURS, "0", "1")
    raw = _found(report, f"{method}/raw", i, precision)
    figures = []
    if with_reference:
        alt = f"{title} of {name} by the reference in float64: {_described(pair.reference)}"
        truth = ", <strong>float64 truth</strong>" if _is_lost(report, method, i) else ""
        caption = "Reference" + truth + _constant(pair.reference)
        figures.append(_figure(_drawn(pair.reference, over), alt, size, caption, unit_scale))
    alt = f"{title} of {name} by the port in {precision}: {_described(pair.candidate)}"
    caption = f"Port, {_text(precision)}" + _constant(pair.candidate)
    if raw is not None and math.isinf(raw.relative_l2):
        caption += ". <strong>Values that are not finite</strong> may be drawn as 0"
    figures.append(_figure(_drawn(pair.candidate, over), alt, size, caption, unit_scale))
    return "".join(figures) + _difference_figure(pair, f"{title} of {name}", precision)


def _difference_figure(pair: Pictures, what: str, precision: str) -> str:
    with np.errstate(invalid="ignore"):
        apart = np.abs(pair.candidate.astype(np.float64) - pair.reference.astype(np.float64))
    finite = apart[np.isfinite(apart)]
    largest = float(finite.max(initial=0))
    steps = _steps(apart / largest if largest > 0 else apart)
    words = "equal everywhere" if largest == 0 and finite.size == apart.size else f"largest {_error(largest)}"
    if finite.size < apart.size:
        words += ", grey where not finite"
    mean = f", mean {_error(float(finite.mean()))}" if finite.size and largest > 0 else ""
    alt = f"Absolute difference of port ({precision}) and reference, {what}: {words}{mean}"
    scale = _scale(DIFFERENCE_COLOURS, "0", _error(largest)) if largest > 0 else ""
    size = (apart.shape[0], apart.shape[1])
    return _figure(_coloured(steps, DIFFERENCE_COLOURS), alt, size, f"Difference: {words}", scale)


def _constant(values: np.ndarray) -> str:
    return (
        ": <strong>constant map</strong>" if values.size and np.isfinite(values).all() and np.ptp(values) == 0 else ""
    )


def _found(report: ParityReport, stage: str, i: int, precision: str) -> Figure | None:
    return next((f for f in report.figures if (f.stage, f.photograph, f.precision) == (stage, i, precision)), None)


def _likeness(report: ParityReport, method: str, i: int) -> str:
    """How alike the two maps are, a column for each precision and resolution: narrow enough for a phone."""
    of = [m for m in report.map_figures if (m.method, m.photograph) == (method, i)]
    if not of:
        return ""
    rows: list[tuple[str, Callable[[MapFigures], str]]] = [
        ("Pearson", lambda m: _correlation(m.pearson, m)),
        ("Spearman", lambda m: _correlation(m.spearman, m)),
        ("SSIM", _ssim),
        ("Relative L2", lambda m: _cell(m.relative_l2)),
        ("Max error", lambda m: _cell(m.max_error)),
        ("Top 10 %", _overlap),
        ("Centre shift", lambda m: _cell(m.shift, "no mass")),
    ]
    return _table(
        f"How alike the maps are: {TITLES.get(method, method)} of {i + 1} · {report.photographs[i].name}",
        ("", *(f"{m.precision} {m.resolution}" for m in of)),
        [[_text(what), *(figure(m) for m in of)] for what, figure in rows],
        kind="figures likeness",
    )


def _no_correlation(m: MapFigures) -> str:
    """Why two maps have none, in a word or two."""
    if m.constant:
        return {"both": "both constant", "reference": "reference constant", "candidate": "port constant"}.get(
            m.constant, "constant map"
        )
    return "not finite" if math.isinf(m.relative_l2) else "not defined"


def _correlation(value: float, m: MapFigures) -> str:
    return _no_correlation(m) if math.isnan(value) else f"{round(value, 6) + 0.0:.6f}"  # + 0.0: no minus zero


def _ssim(m: MapFigures) -> str:
    small = math.isnan(m.ssim) and not m.constant and not math.isnan(m.pearson)
    return "under 7×7 pixels" if small else _correlation(m.ssim, m)


def _overlap(m: MapFigures) -> str:
    """Per cent, rounded down: 100 means all. Only a map that is not flat has highest pixels."""
    known = not math.isnan(m.pearson) and not math.isnan(m.overlap)
    return f"{math.floor(1000 * m.overlap) / 10:.1f}\u00a0%" if known else _no_correlation(m)


def _map_table(report: ParityReport, method: str, i: int) -> str:
    """Every map stage of one method and photograph, in every precision; folded, unless one is beyond its limit."""
    rows = [f for f in report.figures if f.photograph == i and f.stage.partition("/")[0] == method and _is_map(f.stage)]
    if not rows:
        return "<p>No figures were kept of this map.</p>"
    name = report.photographs[i].name
    beyond = any(f.judged and not f.within for f in rows)
    table = _table(
        f"{TITLES.get(method, method)} of {i + 1} · {name}, against the limits",
        (
            "Map",
            "Precision",
            "Relative L2",
            "Max error of range",
            "Pearson",
            "Reference's float32: L2, max, Pearson",
            "Limit",
            "Within",
        ),
        [
            [
                _text(_short(f.stage)),
                _text(f.precision),
                _cell(f.relative_l2),
                _cell(f.max_error),
                _map_pearson(f.pearson, f.relative_l2),
                f"{_cell(f.floor_l2, 'not kept')}, {_cell(f.floor_max, 'not kept')}, "
                f"{_map_pearson(f.floor_pearson, f.floor_l2)}",
                f"{_cell(f.limit, 'none')} <small>{_criterion_of(f.precision)}</small>",
                _within(f.within, f.judged),
            ]
            for f in rows
        ],
        kind="figures",
    )
    return _details("Against the reference's own rounding and the limits", table, opened=beyond)


def _is_map(stage: str) -> bool:
    return stage.partition("/")[2] in ("raw", "upsampled", "final", "final_with_exp")


def _map_pearson(value: float, error: float) -> str:
    return _pearson(value, "not kept" if math.isnan(error) else "not finite" if math.isinf(error) else "constant map")


def _within(within: bool, judged: bool) -> str:
    sign, word, kind = ("✓", "yes", "good") if within else ("✗", "no", "bad")
    shown = f'<span class="{kind}"><span aria-hidden="true">{sign} </span>{word}</span>'
    return shown if judged else f"{shown} <small>(not judged)</small>"


# --- the stage chart --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """One stage on the chart; `figure` is None where the candidate did not give it."""

    stage: str
    error: float
    floor: float
    limit: float
    judged: bool
    within: bool
    given: bool
    parting: tuple[str, ...]
    """Methods whose computation parts here first."""


@dataclass(frozen=True)
class _Axis:
    """Decades from 10**low to 10**high → per cent of the chart's width."""

    low: int
    high: int

    LABELS: ClassVar[float] = 33.0
    ZERO: ClassVar[float] = 36.5
    LEFT: ClassVar[float] = 45.0
    RIGHT: ClassVar[float] = 89.0
    INFINITE: ClassVar[float] = 98.5

    def place(self, value: float) -> float:
        """Where a value stands; 0 and what is not finite have places of their own."""
        if value == 0:
            return self.ZERO
        if not math.isfinite(value):
            return self.INFINITE
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.LEFT + (self.RIGHT - self.LEFT) * min(max(part, 0.0), 1.0)

    @property
    def ticks(self) -> list[int]:
        """Decades that carry a number: few enough for a phone."""
        step = max(1, math.ceil((self.high - self.low) / 4))
        return list(range(self.low, self.high + 1, step))


def _stages(report: ParityReport) -> str:
    precisions = list(dict.fromkeys(f.precision for f in report.figures))
    if not precisions:
        return "<p>The report holds no stages.</p>"
    several = len(report.photographs) > 1
    parts = [
        "<p>Every stage in the order of the computation, downwards, and its error against the reference's float64, "
        "on a logarithmic scale: further right is worse. Where the candidate gave no such stage there is a gap.</p>",
        _legend(),
    ]
    for precision in precisions:
        of = "the worst of all photographs" if several else "the one photograph"
        unit = "largest error of the stage's range" if precision == "fp64" else "relative L2 error"
        parts.append(f"<h3>{_text(precision)}: {of}</h3><p>The error is the {unit}.</p>")
        parts.append(_chart(report, precision, None))
        parts.append(_details(f"The same in figures, {_text(precision)}", _stage_table(report, precision, None)))
        if several:
            for i in range(len(report.photographs)):
                shown = _chart(report, precision, i) + _stage_table(report, precision, i)
                parts.append(_details(f"{_photograph(report, i)}, {_text(precision)}", shown))
    return "".join(parts)


def _stage_names(report: ParityReport) -> list[str]:
    """All stages that are known, in the order of the computation."""
    asked = {v.method for v in report.verdicts}
    known = [str(name) for name in report.reference.get("stages", ())]
    known = [name for name in known if (method := name.partition("/")[0]) not in TITLES or method in asked]
    given = list(dict.fromkeys(f.stage for f in report.figures))
    return [name for name in dict.fromkeys([*known, *given]) if name != "pixels"] if known else given


def _points(report: ParityReport, precision: str, photograph: int | None) -> list[_Point]:
    """One for each stage: of one photograph, or the worst of all."""
    found: dict[str, list[Figure]] = {}
    for f in report.figures:
        if f.precision == precision and photograph in (None, f.photograph):
            found.setdefault(f.stage, []).append(f)
    parting: dict[str, list[str]] = {}
    for v in report.verdicts:
        for d in v.divergences:
            if d.precision == precision and photograph in (None, d.photograph):
                parting.setdefault(d.stage, []).append(d.method)
    size: Callable[[Figure], float] = (lambda f: f.max_error) if precision == "fp64" else (lambda f: f.relative_l2)
    floor: Callable[[Figure], float] = (lambda f: f.floor_max) if precision == "fp64" else (lambda f: f.floor_l2)
    points = []
    for name in _stage_names(report):
        rows = found.get(name, [])
        points.append(
            _Point(
                name,
                _largest(map(size, rows)),
                _largest(map(floor, rows)),
                _largest(f.limit for f in rows),
                any(f.judged for f in rows),
                all(f.within for f in rows),
                bool(rows),
                tuple(dict.fromkeys(parting.get(name, ()))),
            )
        )
    return points


def _largest(values: Iterable[float]) -> float:
    """NaN where there is none."""
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def _axis(points: Sequence[_Point]) -> _Axis:
    values = [v for p in points for v in (p.error, p.floor, p.limit) if math.isfinite(v) and v > 0]
    low = math.floor(math.log10(min(values, default=1e-9)))
    high = math.ceil(math.log10(max(values, default=1.0)))
    return _Axis(max(low, -20), max(min(high, 12), low + 1, -19))


def _short(stage: str) -> str:
    """A stage's name without its group."""
    name = stage.partition("/")[2] or stage
    return "with exp(score)" if name == "final_with_exp" else name


def _group(stage: str) -> str:
    """What part of the computation a stage belongs to, as HTML."""
    first = stage.partition("/")[0]
    if first in ("inputs", "activations", "logits", "score"):
        return "Forward"
    return "Backward: the score's gradients" if first == "gradients" else _method(first)


def _chart(report: ParityReport, precision: str, photograph: int | None) -> str:
    """Stages downwards, error across: readable on a phone, because only the width gives way."""
    points = _points(report, precision, photograph)
    axis = _axis(points)
    everyone = {v.method for v in report.verdicts if v.precision == precision}
    row, y, group = 18, 34, ""
    shapes: list[str] = []
    before: tuple[float, int] | None = None
    for point in points:
        if _group(point.stage) != group:
            group, before = _group(point.stage), None
            y += 6
            shapes.append(f'<text class="group" x="0" y="{y + 13}">{group}</text>')
            y += row
        middle = y + row // 2
        shapes.append(_mark(point, axis, y, row, before))
        before = (axis.place(point.error), middle) if point.given and 0 < point.error < math.inf else None
        y += row
        if point.parting:
            shapes.append(
                f'<text class="parting" x="100%" y="{y + 13}">▲ parts first: {_some(point.parting, everyone)}</text>'
            )
            y, before = y + row, None
    bottom = y + 4
    lines = "".join(
        f'<line class="grid" x1="{_at(axis.place(10.0**t))}" x2="{_at(axis.place(10.0**t))}" y1="26" y2="{bottom}"/>'
        for t in range(axis.low, axis.high + 1)
    )
    lines += f'<line class="grid" x1="{axis.ZERO}%" x2="{axis.ZERO}%" y1="26" y2="{bottom}"/>'
    infinite = any(math.isinf(v) for p in points for v in (p.error, p.floor))
    labels = [(axis.ZERO, "0")] + [(axis.place(10.0**t), f"1e{t:+03d}") for t in axis.ticks]
    labels += [(axis.INFINITE, "∞")] if infinite else []
    texts = "".join(
        f'<text class="tick" x="{_at(x)}" y="{at}">{label}</text>' for at in (18, bottom + 16) for x, label in labels
    )
    return (
        f'<svg class="chart" width="100%" height="{bottom + 24}" role="img" '
        f'aria-label="{_summary(report, points, precision, photograph)}">'
        f"{lines}{texts}{''.join(shapes)}</svg>"
    )


def _at(percent: float) -> str:
    return f"{percent:.2f}%"


def _mark(point: _Point, axis: _Axis, y: int, row: int, before: tuple[float, int] | None) -> str:
    """One stage's line of the chart."""
    middle = y + row // 2
    label = _short(point.stage)
    label = label if len(label) <= LABEL else label[: LABEL - 1] + "…"
    shapes = [f'<rect class="first" x="0" y="{y}" width="100%" height="{row}"/>'] if point.parting else []
    shapes.append(f'<text class="label" x="{axis.LABELS}%" y="{middle + 4}">{_text(label)}</text>')
    if not point.given:
        shapes.append(f'<text class="missing" x="{axis.LEFT}%" y="{middle + 4}">not given</text>')
        return "".join(shapes)
    x = _at(axis.place(point.error))
    if before is not None and 0 < point.error < math.inf:
        shapes.append(f'<line class="trace" x1="{_at(before[0])}" y1="{before[1]}" x2="{x}" y2="{middle}"/>')
    judged = "judged" if point.judged else "open"
    if not math.isnan(point.limit):
        at = _at(axis.place(point.limit))
        shapes.append(f'<line class="limit {judged}" x1="{at}" x2="{at}" y1="{y + 1}" y2="{y + row - 1}"/>')
    if not math.isnan(point.floor):
        shapes.append(_diamond(_at(axis.place(point.floor)), middle))
    words = (
        f"{point.stage}: error {_error(point.error)}, "
        f"reference's own float32 {_error(point.floor, 'not kept')}, limit {_error(point.limit, 'none')}"
    )
    mark = _dot(x, middle, judged) if point.within else _cross(x, middle, judged)
    shapes.append(f"<g><title>{_text(words)}</title>{mark}</g>")
    return "".join(shapes)


def _dot(x: str, y: int, kind: str) -> str:
    return f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="4"/>'


def _cross(x: str, y: int, kind: str) -> str:
    """A cross about a place given in per cent: an svg of its own carries the offset."""
    return f'<svg x="{x}" y="{y}" class="at"><path class="cross {kind}" d="M-5-5L5 5M-5 5L5-5"/></svg>'


def _diamond(x: str, y: int) -> str:
    return f'<svg x="{x}" y="{y}" class="at"><path class="floor" d="M0-4.5L4.5 0L0 4.5L-4.5 0Z"/></svg>'


def _some(methods: Sequence[str], everyone: set[str]) -> str:
    """A few names that fit beside the chart, as HTML."""
    if len(methods) > 2 and set(methods) >= everyone:
        return "every method"
    more = f" and {len(methods) - 2} more" if len(methods) > 2 else ""
    return ", ".join(_method(m) for m in methods[:2]) + more


def _summary(report: ParityReport, points: Sequence[_Point], precision: str, photograph: int | None) -> str:
    """The chart in words, escaped."""
    of = (
        "worst of all photographs"
        if photograph is None
        else f"photograph {photograph + 1}, {report.photographs[photograph].name}"
    )
    given = [p for p in points if p.given]
    beyond = [p for p in given if p.judged and not p.within]
    first = [p.stage for p in points if p.parting]
    worst = max(given, key=lambda p: p.error, default=None)
    words = f"Stage chart, {precision}, {of}: {len(given)} of {_counted(len(points), 'stage', 'stages')} given"
    words += f", {len(beyond)} beyond the limit"
    words += f"; parts first at {', '.join(first)}" if first else ""
    words += f"; largest error {_error(worst.error)} at {worst.stage}" if worst else ""
    return _text(words + ". The table that follows has every figure.")


def _legend() -> str:
    def sample(mark: str) -> str:
        return f'<svg width="18" height="18" aria-hidden="true">{mark}</svg>'

    return _listed(
        [
            sample(_dot("9", 9, "judged")) + "the port's error, within its limit",
            sample(_cross("9", 9, "judged")) + "the port's error, beyond its limit",
            sample(_dot("9", 9, "open")) + sample(_cross("9", 9, "open")) + "thin or hollow: shown, not judged",
            sample(_diamond("9", 9)) + "the reference's own float32 against its float64",
            sample('<line class="limit judged" x1="9" x2="9" y1="1" y2="17"/>') + "the limit",
            "▲ the first stage beyond its limit on the way to the named methods' maps",
        ],
        "legend",
    )


def _stage_table(report: ParityReport, precision: str, photograph: int | None) -> str:
    if photograph is None:
        of = (
            "worst of all photographs"
            if len(report.photographs) > 1
            else f"1 · {report.photographs[0].name}"
            if report.photographs
            else ""
        )
    else:
        of = f"{photograph + 1} · {report.photographs[photograph].name}"
    known = {(f.stage, f.photograph): f for f in report.figures if f.precision == precision}
    rows = []
    for point in _points(report, precision, photograph):
        if not point.given:
            rows.append([_code(point.stage), "not given", "", "", "", "", ""])
            continue
        figures = [f for (stage, i), f in known.items() if stage == point.stage and photograph in (None, i)]
        correlations = [f.pearson for f in figures if not math.isnan(f.pearson)]
        blank = _map_pearson(math.nan, point.error) if _is_map(point.stage) else "–"
        rows.append(
            [
                f"{_code(point.stage)}"
                + (f" <strong>▲ parts first: {_some(point.parting, set())}</strong>" if point.parting else ""),
                _cell(point.error),
                _cell(point.floor, "not kept"),
                _cell(point.limit, "none"),
                _cell(_largest(f.alone for f in figures)),
                _pearson(min(correlations, default=math.nan), blank),
                _within(point.within, point.judged),
            ]
        )
    return _table(
        f"Stages in {precision}, {of}: {'largest error of the range' if precision == 'fp64' else 'relative L2'}",
        ("Stage", "Error", "Reference's own float32", "Limit", "This step alone (relative L2)", "Pearson", "Within"),
        rows,
        kind="figures",
    )


# --- the ladder -------------------------------------------------------------------------------------------------------


def _ladder(report: ParityReport) -> str:
    if not report.ladder:
        return "<p>The ladder was not computed in this run.</p>"
    methods = list(dict.fromkeys(rung.method for rung in report.ladder))
    finite = [p for rung in report.ladder for p in rung.pearson if not math.isnan(p)]
    low = min(0.0, math.floor(10 * min(finite, default=0.0)) / 10)
    parts = [
        "<p>Each rung changes one thing, from the libraries' calls as their own pages show them to the port. "
        "The numbers are Pearson correlations with the reference's float64 map, a dot for each photograph, from "
        f"{low:g} on the left to 1 on the right. They are computed in this run, in float32.</p>"
    ]
    names = [f"{i + 1} · {p.name}" for i, p in enumerate(report.photographs)]
    for method in methods:
        rungs = [rung for rung in report.ladder if rung.method == method]
        steps = "".join(
            f'<li><span class="what">{_text(rung.what)}</span> '
            f'<span class="range">{_range(rung.pearson)}</span>{_strip(rung.pearson, low)}</li>'
            for rung in rungs
        )
        parts.append(f'<h3>{_method(method)}</h3><ol class="rungs">{steps}</ol>')
        rows = [
            [_text(f"{n}. {rung.what}"), *(_rung_pearson(p) for p in rung.pearson)] for n, rung in enumerate(rungs, 1)
        ]
        title = TITLES.get(method, method)
        parts.append(
            _details(
                f"{_text(title)}: every photograph",
                _table(f"Pearson per rung, {title}", ("Rung", *names), rows, kind="figures"),
            )
        )
    return "".join(parts)


def _rung_pearson(value: float) -> str:
    return "constant map" if math.isnan(value) else f"{value:.4f}"


def _range(values: Sequence[float]) -> str:
    """The lowest and the highest, and how many are no number."""
    shown = sorted(v for v in values if not math.isnan(v))
    ends = dict.fromkeys(f"{v:.4f}" for v in (shown[:1] + shown[-1:]))
    missing = len(values) - len(shown)
    flat = _counted(missing, "constant map", "constant maps") if missing else ""
    return ", ".join(words for words in (" to ".join(ends), flat) if words)


def _strip(values: Sequence[float], low: float, filled: Sequence[float] = ()) -> str:
    """Correlations on a line from `low` to 1: hollow dots, and filled ones for those to compare them with."""

    def at(value: float) -> str:
        return _at(2 + 96 * (value - low) / (1 - low))

    grid = "".join(f'<line class="grid" x1="{at(v)}" x2="{at(v)}" y1="2" y2="18"/>' for v in (low, 0.0, 0.5, 1.0))
    dots = "".join(_dot(at(v), 10, "open") for v in values if not math.isnan(v))
    dots += "".join(_dot(at(v), 10, "judged") for v in filled if not math.isnan(v))
    axis = f'<line class="grid" x1="{at(low)}" x2="{at(1)}" y1="10" y2="10"/>'
    return f'<svg width="100%" height="20" aria-hidden="true">{grid}{axis}{dots}</svg>'


# --- context and conditioning -----------------------------------------------------------------------------------------


def _context(report: ParityReport) -> str:
    """What maps that are other ones on purpose would score, beside the port's own score."""
    if not report.context:
        return "<p>No other maps were drawn for comparison in this run.</p>"
    precisions = list(dict.fromkeys(m.precision for m in report.map_figures))
    main = "fp32" if "fp32" in precisions else precisions[0] if precisions else ""
    port = {row.method: _finals(report, row.method, main) for row in report.context}
    finite = [p for row in report.context for p in (*row.pearson, *port[row.method]) if not math.isnan(p)]
    low = min(0.0, math.floor(10 * min(finite, default=0.0)) / 10)
    parts = [
        "<p>Pearson correlations of the reference's final map with maps that are other ones on purpose, "
        "a hollow dot for each photograph"
        + (f", beside the port's own in {_text(main)}, filled" if any(port.values()) else "")
        + f"; from {low:g} on the left to 1 on the right. The other maps are this project's, "
        "whatever candidate is compared.</p>"
    ]
    for what in dict.fromkeys(row.what for row in report.context):
        rows = [row for row in report.context if row.what == what]
        steps = "".join(
            f'<li><span class="what">{_method(row.method)}</span> <span class="range">{_range(row.pearson)}'
            + (f';</span> <span class="range">the port: {_range(port[row.method])}' if port[row.method] else "")
            + "</span>"
            + f"{_strip(row.pearson, low, port[row.method])}</li>"
            for row in rows
        )
        beaten = "".join(_beaten(report, row, port[row.method], main) for row in rows if what == ANOTHER_SEED)
        parts.append(
            f"<h3>{_text(what[:1].upper() + what[1:])}</h3><p>{_text(READINGS.get(what, ''))}</p>{beaten}"
            f'<ul class="rungs">{steps}</ul>'
        )
    names = [f"{i + 1} · {p.name}" for i, p in enumerate(report.photographs)]
    lines = []
    for method in dict.fromkeys(row.method for row in report.context):
        if port[method]:
            lines.append([f"{_method(method)}: the port, {_text(main)}", *map(_rung_pearson, port[method])])
        lines += [
            [f"{_method(method)}: {_text(row.what)}", *map(_rung_pearson, row.pearson)]
            for row in report.context
            if row.method == method
        ]
    table = _table("Pearson of other maps, photograph by photograph", ("Map", *names), lines, kind="figures")
    return "".join(parts) + _details("Every photograph", table)


def _finals(report: ParityReport, method: str, precision: str) -> tuple[float, ...]:
    """The port's own correlations of final maps, in the order of the photographs."""
    of = {
        m.photograph: m.pearson
        for m in report.map_figures
        if (m.method, m.precision, m.resolution) == (method, precision, "final")
    }
    return tuple(of.get(i, math.nan) for i in range(len(report.photographs))) if of else ()


def _beaten(report: ParityReport, row: ContextRow, port: Sequence[float], precision: str) -> str:
    """Whether the port beats the noise ceiling, in a sentence."""
    apart = [  # photograph, the ceiling's and the port's distance from a correlation of 1
        (i, 1 - ceiling, math.inf if math.isnan(own) else 1 - own)
        for i, (ceiling, own) in enumerate(zip(row.pearson, port, strict=False))
        if not math.isnan(ceiling)
    ]
    if not apart:
        return ""
    if min(ceiling for _, ceiling, _ in apart) < SILENT:
        return "<p>Another seed hardly moves these maps, so here this ceiling says nothing.</p>"
    missed = [i for i, ceiling, own in apart if own > ceiling / FAR]
    if missed:
        of = ", ".join(_photograph(report, i) for i in missed)
        return (
            f'<p><strong class="bad">The port in {_text(precision)} does not beat it by far</strong> on {of}: '
            "suspect that it does not use the same noise.</p>"
        )
    return (
        f"<p>The port in {_text(precision)} beats it by far on every photograph: its correlation is at most "
        f"{_cell(max(own for *_, own in apart))} from 1, the ceiling's at least "
        f"{min(ceiling for _, ceiling, _ in apart):.2g}.</p>"
    )


def _drawn_maps(report: ParityReport) -> list[tuple[str, int]]:
    """(method, photograph) of every map that anything is known about."""
    of = [(c.method, c.photograph) for c in report.conditioning]
    of += [(f.stage.partition("/")[0], f.photograph) for f in report.figures if f.stage.endswith("/raw")]
    order = {method: n for n, method in enumerate(TITLES)}
    return sorted(dict.fromkeys(of), key=lambda key: (order.get(key[0], len(order)), key))


def _moves(report: ParityReport, method: str, i: int) -> tuple[float | None, bool, float]:
    """Amplification (None: not measured), whether that is ill, and the reference's own float32 floor of the raw map."""
    one = next((c for c in report.conditioning if (c.method, c.photograph) == (method, i)), None)
    floor = next((f.floor_l2 for f in report.figures if (f.stage, f.photograph) == (f"{method}/raw", i)), math.nan)
    return (None, False, floor) if one is None else (one.amplification, one.ill, floor)


def _ill(report: ParityReport, method: str, i: int) -> list[str]:
    """Why a map is ill-conditioned, on either side, as HTML; empty where it is not."""
    amplification, ill, floor = _moves(report, method, i)
    reasons = []
    if ill and amplification is not None:
        reasons.append(
            f"The map moves {_times(amplification)} as far as its inputs"
            if math.isfinite(amplification)
            else "The map stops being finite when its inputs move by a millionth"
        )
    if floor > ILL_FLOOR and not _is_lost(report, method, i):  # exp(score) is no matter of conditioning
        away = f"is {_cell(floor)} away from its float64" if math.isfinite(floor) else "cannot be measured: not finite"
        reasons.append(f"{'the' if reasons else 'The'} reference's own float32 {away}")
    return reasons


def _times(amplification: float) -> str:
    if not math.isfinite(amplification):
        return "not finite"
    if amplification == 0:
        return "0"
    words = f"{amplification:.2g}" if 0.01 <= amplification < 100 else f"{amplification:.0f}"
    return f'<span class="number">{words if 0.01 <= amplification < 1e6 else f"{amplification:.1e}"} times</span>'


def _conditioning(report: ParityReport) -> str:
    rows = []
    for method, i in _drawn_maps(report):
        amplification, _, floor = _moves(report, method, i)
        rows.append(
            [
                f"{_method(method)}, <br>{_photograph(report, i)}"
                + f"<br> {_flag('ill-conditioned')}" * bool(_ill(report, method, i)),
                "not measured" if amplification is None else _times(amplification),
                _cell(floor, "not kept") + ("<br><small>exp(score) lost</small>" * _is_lost(report, method, i)),
            ]
        )
    if not rows:
        return "<p>Conditioning was not measured in this run.</p>"
    return (
        "<p>Every input value is changed by a millionth of itself, up or down at random, and the raw map is drawn again "
        f"in float64. One that moves {ILL_CONDITIONED:g} times as far as its inputs is ill-conditioned: float32's rounding "
        "alone moves it by 1e-4, on either side. The gradients of a ReLU network often do not move at all.</p>"
        f"<p>Marked, too, are maps of which the reference's own float32 is more than {ILL_FLOOR:g} (relative L2) away from "
        "its float64; Grad-CAM++ comes to that near a pole of its alpha. Marked maps are judged like all others.</p>"
        + _table(
            "How far each raw map moves, relative to its inputs",
            ("Map", "Moves", "Reference's own float32"),
            rows,
            kind="figures moves",
        )
    )


# --- pixels, native, environment --------------------------------------------------------------------------------------


def _pixels(report: ParityReport) -> str:
    rows = {row.photograph: row for row in report.pixels_rows}
    lines = []
    for i, p in enumerate(report.photographs):
        row = rows.get(i)
        if row is None:
            judged, differing, notes = "not compared", "not compared", ""
        else:
            judged = (
                "no verdict: read otherwise on purpose"
                if not row.judged
                else _within(row.within, True)
                if row.within or not math.isnan(row.differing)
                else "not compared"
            )
            differing = _share(row.differing)
            notes = "; ".join([*map(_text, row.notes), *([f"probable cause: {_text(row.cause)}"] if row.cause else [])])
        lines.append(
            [
                _photograph(report, i),
                f"{p.size[0]}\u00a0×\u00a0{p.size[1]}",
                f"{p.class_index}, <bdi>{_text(p.label)}</bdi>",
                differing,
                notes or "none",
                judged,
                f"<code>{_text(p.sha256[:12])}</code>",
            ]
        )
    return (
        "<p>Reading a photograph is the first stage. Pixels are compared with Keras's own <code>load_img</code>. "
        "Where the port reads a photograph better on purpose, it says how and no verdict rests on it; "
        "both sides then go on with the same pixels.</p>"
        + _table(
            "Photographs",
            (
                "Photograph",
                "Size of the file",
                "Explained class",
                "Pixels that differ",
                "Notes",
                "Same pixels",
                "SHA-256",
            ),
            lines,
        )
    )


def _environment(report: ParityReport) -> str:
    programs: dict[str, Mapping[str, Any]] = {"Reference": report.reference}
    programs.update({f"Port, {precision}": one for precision, one in report.candidate.items()})
    tables = []
    for key, caption in (
        ("versions", "Versions"),
        ("flags", "Flags that may change rounding"),
        ("weights", "Weights"),
        ("settings", "Settings"),
        ("seconds", "Seconds"),
    ):
        columns = [_flat(one.get(key, {}), seconds=key == "seconds") for one in programs.values()]
        names = dict.fromkeys(name for column in columns for name in column)
        rows = [[_text(name), *(_text(column.get(name, "–")) for column in columns)] for name in names]
        if key == "versions":
            rows.insert(0, ["program", *(_text(one.get("program", "not stated")) for one in programs.values())])
        if rows:
            tables.append(_table(caption, ("", *programs), rows, kind="environment"))
    return f"<h3>The criterion</h3>{_criterion()}<h3>The environment</h3>{''.join(tables)}"


def _criterion() -> str:
    return _listed(
        [
            "<strong>fp64</strong>: both sides in float64, the largest error of each stage at most "
            f"{_cell(FLOAT64_LIMIT)} of that stage's range (Grad-CAM++: {_cell(FLOAT64_LIMIT_PLUS_PLUS)}, because its "
            f"denominator comes near zero): <em>{SAME_FUNCTION}</em>.",
            "<strong>fp32</strong>: the port's float32 against the reference's <em>float64</em>: relative L2 at most "
            f"{FLOOR_FACTOR:g} times the worst that the reference's own float32 reaches on that stage in this run "
            f"(at least {_cell(FLOOR_LEAST)}), and for maps a Pearson correlation of at least {PEARSON_LEAST:g}, or no "
            f"worse than the reference's own where that is lower: <em>{SAME_ROUNDING}</em>. "
            "The port's own rounding never widens its limit.",
            "Grad-CAM++ is judged with exp(score), which cancels out of the map, divided out on both sides.",
            "Relative L2 is ‖port − reference‖ / ‖reference‖. A figure is “not finite” where a value of the map is, "
            "or where only the reference is zero; a “constant map” has no correlation.",
        ]
    )


def _flat(values: Mapping[str, Any], *, seconds: bool) -> dict[str, str]:
    """Nested mappings → name → plain text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update({f"{key}.{name}": text for name, text in _flat(value, seconds=seconds).items()})
        elif isinstance(value, bool):
            found[str(key)] = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            found[str(key)] = ", ".join(map(str, value))
        elif seconds and isinstance(value, (int, float)):
            found[str(key)] = f"{value:.1f} s"
        else:
            found[str(key)] = str(value)
    return found


# --- style ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _style() -> str:
    """The style block; colours from `LIGHT` and `DARK`."""

    def variables(colours: Mapping[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"

    return (
        variables(LIGHT)
        + "@media (prefers-color-scheme:dark){"
        + variables(DARK)
        + "}@media print{"
        + variables(LIGHT)
        + "}"
        + _RULES
    )


_RULES = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:72rem;padding:0 1rem 2rem;background:var(--page);color:var(--text);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans","DejaVu Sans",sans-serif;
overflow-wrap:anywhere}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
main:focus{outline:none}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;padding:.5rem 1rem;background:var(--page);z-index:1}
header{padding-top:1.25rem}
.eyebrow,.about,.class{color:var(--muted);margin:.25rem 0}
h1{font-size:clamp(1.4rem,4.5vw,2.1rem);line-height:1.25;margin:.25rem 0;
padding:.75rem 1rem;border-left:.4rem solid;border-radius:.25rem}
h2{font-size:1.4rem;margin:2.5rem 0 .75rem;padding-bottom:.25rem;border-bottom:1px solid var(--line);line-height:1.3}
h3{font-size:1.15rem;margin:1.75rem 0 .5rem}
h4{font-size:1rem;margin:0}
p{margin:.5rem 0}
p,li{max-width:75ch}
code{font:.9em ui-monospace,Menlo,Consolas,"Liberation Mono",monospace}
small{font-size:.85em;color:var(--muted)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0;margin:.75rem 0}
nav a{display:inline-block;padding:.25rem 0}
.good{color:var(--good)}.bad{color:var(--bad)}.note{color:var(--note)}
h1.good,.badge.good{background:var(--good-card)}
h1.bad,.badge.bad{background:var(--bad-card)}
h1.note,.badge.note{background:var(--note-card)}
.badge{display:inline-block;padding:.05rem .5rem;border:1px solid;border-radius:.25rem;font-weight:600}
.partings li{list-style:none;margin:.5rem 0;
padding:.5rem .75rem;background:var(--bad-card);border-left:.25rem solid var(--bad)}
ul.partings{padding:0}
ul.rungs{list-style:none;padding:0}
.caution{margin:.75rem 0;padding:.5rem .75rem;background:var(--note-card);border-left:.25rem solid var(--note);max-width:75ch}
.caution .badge{background:none;padding:0;border:0}
.caution p{margin:0}.caution ul{margin:.25rem 0;padding-left:1.25rem}
.scroll{overflow-x:auto;margin:1rem 0;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;font-weight:600;padding:.25rem 0;overflow-wrap:anywhere}
caption span{display:inline-block;position:sticky;left:0;max-width:min(100%,calc(100vw - 3.75rem))}
th,td{text-align:left;vertical-align:top;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line)}
thead th{vertical-align:bottom;border-bottom:2px solid var(--muted)}
tbody th{font-weight:600}
.figures tbody th,.verdicts tbody th{position:sticky;left:0;background:var(--page)}
article .figures tbody th{background:var(--card)}
th{max-width:22rem;overflow-wrap:break-word}
td{max-width:24rem;overflow-wrap:break-word}
.badge,.number{white-space:nowrap}
table.verdicts td{min-width:3rem}
table.verdicts small{white-space:nowrap}
table.verdicts .badge{padding:0;border:0;background:none}
table.verdicts td:last-child{min-width:10rem}
table.figures td{white-space:nowrap}
table.likeness td,table.moves td{white-space:normal}
table.environment td{overflow-wrap:anywhere;min-width:7rem}
table.environment tbody th{white-space:nowrap}
article{margin:1rem 0;padding:1rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
.pictures{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.75rem;margin:.75rem 0;max-width:66rem}
figure{margin:0;min-width:0}
figure>img{display:block;width:100%;height:auto;border:1px solid var(--line)}
.sharp{image-rendering:pixelated}
figcaption{font-size:.9rem;line-height:1.35;margin-top:.25rem}
.scale{display:flex;align-items:center;gap:.4rem;margin-top:.15rem;font-size:.85rem;white-space:nowrap}
.scale img{flex:1 1 2rem;min-width:1.5rem;width:2rem;height:.7rem;border:1px solid var(--line)}
details{margin:.5rem 0}
summary{cursor:pointer;padding:.4rem 0;color:var(--link);font-weight:600}
details>div{padding:0 0 .5rem}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;font-size:.9rem}
.legend li{display:flex;align-items:center;gap:.35rem}
svg{display:block}
svg text{font-size:12px;fill:var(--text)}
.legend svg{flex:none}
.chart{max-width:50rem;margin:.5rem 0;overflow:visible}
.at{overflow:visible}
.grid{stroke:var(--line);stroke-width:1}
.trace{stroke:var(--link);stroke-width:1.5;opacity:.5}
.dot{fill:var(--link);stroke:var(--link);stroke-width:1.5}
.dot.open{fill:var(--page)}
.cross{stroke:var(--bad);stroke-width:3.5;fill:none}
.cross.open{stroke-width:1.5}
.floor{fill:none;stroke:var(--muted);stroke-width:1.5}
.limit{stroke:var(--text);stroke-width:3}
.limit.open{stroke-width:1}
.first{fill:var(--bad-card)}
svg .label,svg .parting{text-anchor:end}
svg .parting{fill:var(--bad);font-weight:700}
svg .group{font-weight:700}
svg .missing{fill:var(--muted);font-style:italic}
svg .tick{text-anchor:middle;fill:var(--muted)}
.rungs{padding-left:1.5rem;max-width:56rem}
.rungs li{max-width:none;margin:.5rem 0}
.rungs .what{margin-right:.75rem}
.rungs .range{color:var(--muted);font-variant-numeric:tabular-nums;white-space:nowrap}
footer{margin-top:2.5rem;border-top:1px solid var(--line);color:var(--muted);font-size:.9rem}
@media (max-width:40rem){
.pictures{grid-template-columns:repeat(2,minmax(0,1fr))}
article{padding:.75rem;margin-left:-.25rem;margin-right:-.25rem}
.figures tbody th{min-width:6rem;max-width:9rem}
table.likeness{font-size:.8rem}
.likeness caption{font-size:.9rem}
.likeness th,.likeness td{padding-right:.25rem}
.likeness th:last-child,.likeness td:last-child{padding-right:0}
.likeness tbody th{min-width:0;overflow-wrap:normal}
}
@media print{
@page{margin:14mm}
body{max-width:none;padding:0;font-size:10pt}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
nav,.skip,footer{display:none}
.scroll{overflow:visible}
table,table.verdicts{min-width:0;font-size:7.5pt}
table.figures td{white-space:normal}
th,td{padding-right:.4rem}
td,table.plain tbody th,table.environment tbody th{white-space:normal;overflow-wrap:anywhere;min-width:0}
.badge,table.verdicts small{white-space:normal}
h2,h3,h4,caption{break-after:avoid}
tr,figure,.pictures,.partings li,.rungs li{break-inside:avoid}
article{break-inside:avoid}
}
"""
