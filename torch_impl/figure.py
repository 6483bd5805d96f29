"""Pixels and maps → matplotlib figures. No torch, and nothing is shown or written here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from parity.contract.methods import METHODS

OVERLAY = 0.5
"""Opacity of a CAM over its photograph, as the lab draws it."""

COLUMNS = 8
"""Photographs in a row before the next row starts."""

ROWS_PER_PAGE = 12
"""Photographs on one page of the overview: more could not be read, and matplotlib ends at 65,536 pixels."""

_DPI = 110


class ColormapError(ValueError):
    """No such colour map; the message lists the nearest."""


def checked_colormap(name: str) -> str:
    """The name of a colour map that matplotlib has.

    Raises:
        ColormapError: it has none of this name.
    """
    if name not in matplotlib.colormaps:
        raise ColormapError(
            f"colour map {name!r} is unknown; give a matplotlib name: jet, viridis, cividis (safe for colour-blind "
            "readers), inferno, magma, gray, …"
        )
    return name


def method_figure(
    method: str,
    pixels: np.ndarray,
    maps: np.ndarray,
    captions: Sequence[str],
    *,
    constant: Sequence[str] = (),
    colormap: str = "jet",
    footer: str = "",
) -> Figure:
    """One method, a row of photographs: saliency by itself, a CAM over the photograph.

    Args:
        method: a method's name.
        pixels: (N, H, W, 3) uint8.
        maps: (N, H, W) in [0, 1].
        captions: N lines, drawn literally (no mathtext).
        constant: why a map is constant, "" where it is not; said in the picture.
        colormap: a matplotlib name.
        footer: one or two lines of small print.
    """
    count = len(pixels)
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(3.4, 2.6 * columns), 2.95 * rows + 0.8), dpi=_DPI, layout=_layout())
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for i in range(count):
        _draw(axes[i], method, pixels[i], maps[i], colormap)
        note = f"\nconstant map: {constant[i]}" if len(constant) and constant[i] else ""
        axes[i].set_title(_shortened(captions[i]) + note, fontsize=9, parse_math=False)
    figure.suptitle(METHODS[method].title, fontsize=13)
    _footer(figure, footer)
    return figure


def overview_figures(
    pixels: np.ndarray,
    maps: Mapping[str, np.ndarray],
    captions: Sequence[str],
    *,
    constant: Mapping[str, Sequence[str]] | None = None,
    colormap: str = "jet",
    footer: str = "",
) -> list[Figure]:
    """Photographs downwards; the photograph and every map across. One figure a page.

    Args:
        pixels: (N, H, W, 3) uint8.
        maps: method → (N, H, W) in [0, 1].
        captions: N lines, drawn literally.
        constant: method → as of `method_figure`.
        colormap: a matplotlib name.
        footer: one or two lines of small print.
    """
    pages = []
    for start in range(0, len(pixels), ROWS_PER_PAGE):
        shown = range(start, min(start + ROWS_PER_PAGE, len(pixels)))
        size = (2.15 * (1 + len(maps)), 2.4 * len(shown) + 0.75)
        figure = Figure(figsize=(max(size[0], 4.3), size[1]), dpi=_DPI, layout=_layout())
        axes = figure.subplots(len(shown), 1 + len(maps), squeeze=False)
        for row, i in enumerate(shown):
            axes[row, 0].imshow(pixels[i])
            axes[row, 0].set_title(_shortened(captions[i]), fontsize=9, fontweight="bold", parse_math=False)
            for column, (method, drawn) in enumerate(maps.items(), start=1):
                _draw(axes[row, column], method, pixels[i], drawn[i], colormap)
                reasons = (constant or {}).get(method, ())
                name = METHODS[method].title + (f"\nconstant: {reasons[i]}" if len(reasons) and reasons[i] else "")
                axes[row, column].set_title(name, fontsize=9)
            for axis in axes[row]:
                axis.set_axis_off()
        _footer(figure, footer)
        pages.append(figure)
    return pages


def _layout() -> ConstrainedLayoutEngine:
    """Room around every picture, so that no title touches the edge."""
    return ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.04)


def _draw(axis: Axes, method: str, pixels: np.ndarray, drawn: np.ndarray, colormap: str) -> None:
    if METHODS[method].overlay:
        axis.imshow(pixels)
        axis.imshow(drawn, cmap=colormap, vmin=0, vmax=1, alpha=OVERLAY)
    else:
        axis.imshow(drawn, cmap=colormap, vmin=0, vmax=1)


def _shortened(text: str, width: int = 34) -> str:
    """A caption of at most two lines that fit; control characters are replaced."""
    lines = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in text.split("\n")]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines[:2])


def _footer(figure: Figure, text: str) -> None:
    if text:
        figure.supxlabel(text, fontsize=7, color="0.35", parse_math=False, wrap=True)
