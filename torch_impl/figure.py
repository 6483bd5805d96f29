"""Pixels and maps → matplotlib figures. No torch, and nothing is shown or written here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
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


@dataclass(frozen=True)
class Style:
    """How maps are drawn.

    Attributes:
        colormap: a matplotlib name.
        alpha: opacity of a map over its photograph, 0 to 1; None: a CAM over it as the lab draws it, saliency by itself.
        colorbar: whether a bar says which colour is which value.

    Raises:
        ColormapError: matplotlib has no colour map of this name.
        ValueError: an opacity out of range.
    """

    colormap: str = "jet"
    alpha: float | None = None
    colorbar: bool = False

    def __post_init__(self) -> None:
        if self.colormap not in matplotlib.colormaps:
            raise ColormapError(
                f"colour map {self.colormap!r} is unknown; give a matplotlib name: jet, viridis, cividis (safe for "
                "colour-blind readers), inferno, magma, gray, …"
            )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: give 0 (the photograph alone) to 1 (the map alone)")

    def opacity(self, method: str) -> float:
        """Of a method's maps over their photographs."""
        usual = OVERLAY if METHODS[method].overlay else 1.0
        return usual if self.alpha is None else self.alpha


def blended(pixels: np.ndarray, values: np.ndarray, *, alpha: float, colormap: str = "jet") -> np.ndarray:
    """A map over its photograph, pixel for pixel: uint8 (H, W, 3).

    Args:
        pixels: the photograph, uint8 (H, W, 3).
        values: the map (H, W) in [0, 1]; NaN leaves the photograph as it is.
        alpha: opacity of the map.
        colormap: a matplotlib name.
    """
    nothing = np.isnan(values)
    colors = matplotlib.colormaps[colormap](np.where(nothing, 0, values), bytes=True)[..., :3]
    opacity = np.where(nothing, 0, alpha).astype(np.float32)[..., np.newaxis]
    return np.rint(pixels * (1 - opacity) + colors * opacity).astype(np.uint8)


def method_figure(
    method: str,
    pixels: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    constant: Sequence[str] = (),
    style: Style | None = None,
    footer: str = "",
    layers: Sequence[str] = ("",),
) -> Figure:
    """One method, a row of photographs: saliency by itself, a CAM over the photograph.

    Args:
        method: a method's name.
        pixels: N pictures (H, W, 3) uint8, which need not be of one size.
        maps: (H, W) in [0, 1] of each; NaN where a map says nothing.
        captions: N lines, drawn literally (no mathtext).
        constant: why a map is constant, "" where it is not; said in the picture.
        style: colours, opacity, colour bar.
        footer: one or two lines of small print.
        layers: names of the layers, of which each has the same number of maps, one layer after another: a row each.
    """
    style = style or Style()
    count = len(pixels) // len(layers)
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    size = (max(3.4, 2.6 * columns), (2.6 * _tallest(pixels) + 0.35) * rows * len(layers) + 0.8)
    figure = Figure(figsize=size, dpi=_DPI, layout=_layout())
    axes = figure.subplots(rows * len(layers), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, layer in enumerate(layers):
        own = axes[number * rows : (number + 1) * rows]
        for axis, i in zip(own.flat, range(number * count, (number + 1) * count), strict=False):
            _draw(axis, method, pixels[i], maps[i], style)
            note = f"\nconstant map: {constant[i]}" if len(constant) and constant[i] else ""
            axis.set_title(_shortened(captions[i]) + note, fontsize=9, parse_math=False)
        where = {"transform": own[0, 0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
        own[0, 0].text(-0.04, 0.5, _shortened(layer), fontsize=10, parse_math=False, **where)
    figure.suptitle(METHODS[method].title, fontsize=13)
    _finish(figure, footer, style)
    return figure


def overview_figures(
    pixels: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    captions: Sequence[str],
    *,
    constant: Mapping[str, Sequence[str]] | None = None,
    style: Style | None = None,
    footer: str = "",
    layers: Sequence[str] = (),
) -> list[Figure]:
    """Photographs downwards; the photograph and every map across. One figure a page.

    Args:
        pixels: N pictures (H, W, 3) uint8, which need not be of one size.
        maps: method → (H, W) in [0, 1] of each.
        captions: N lines, drawn literally.
        constant: method → as of `method_figure`.
        style: colours, opacity, colour bar.
        footer: one or two lines of small print.
        layers: which layer each photograph's class activation maps are drawn on; none: it is not said.
    """
    style = style or Style()
    pages = []
    for start in range(0, len(pixels), ROWS_PER_PAGE):
        shown = range(start, min(start + ROWS_PER_PAGE, len(pixels)))
        tallest = _tallest([pixels[i] for i in shown])
        size = (2.15 * (1 + len(maps)), (2.15 * tallest + 0.25) * len(shown) + 0.75)
        figure = Figure(figsize=(max(size[0], 4.3), size[1]), dpi=_DPI, layout=_layout())
        axes = figure.subplots(len(shown), 1 + len(maps), squeeze=False)
        for row, i in enumerate(shown):
            axes[row, 0].imshow(pixels[i])
            axes[row, 0].set_title(_shortened(captions[i]), fontsize=9, fontweight="bold", parse_math=False)
            for column, (method, drawn) in enumerate(maps.items(), start=1):
                _draw(axes[row, column], method, pixels[i], drawn[i], style)
                reasons = (constant or {}).get(method, ())
                title = METHODS[method].title
                if len(layers) and METHODS[method].overlay:
                    title += f"\n{_shortened(layers[i])}"
                if len(reasons) and reasons[i]:
                    title += f"\nconstant: {reasons[i]}"
                axes[row, column].set_title(title, fontsize=9, parse_math=False)
            for axis in axes[row]:
                axis.set_axis_off()
        _finish(figure, footer, style)
        pages.append(figure)
    return pages


def _tallest(pixels: Sequence[np.ndarray]) -> float:
    """Height over width of the tallest picture, within what a page takes."""
    return float(np.clip(max(picture.shape[0] / picture.shape[1] for picture in pixels), 0.4, 2.0))


def _layout() -> ConstrainedLayoutEngine:
    """Room around every picture, so that no title touches the edge."""
    return ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.04)


def _draw(axis: Axes, method: str, pixels: np.ndarray, drawn: np.ndarray, style: Style) -> None:
    """A map, over its photograph where it lets that through, or says nothing of a part of it."""
    opacity = style.opacity(method)
    if opacity < 1 or np.isnan(drawn).any():
        axis.imshow(pixels)
    axis.imshow(drawn, cmap=style.colormap, vmin=0, vmax=1, alpha=opacity)


def _shortened(text: str, width: int = 34) -> str:
    """A caption of at most two lines that fit; control characters are replaced."""
    lines = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in text.split("\n")]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines[:2])


def _finish(figure: Figure, footer: str, style: Style) -> None:
    """The colour bar, where it is asked for, and the small print."""
    if style.colorbar:
        colors = ScalarMappable(Normalize(0, 1), style.colormap)
        bar = figure.colorbar(colors, ax=figure.axes, shrink=min(1.0, 2 / figure.get_figheight()), aspect=15)
        bar.set_label("each map from its least to its greatest value", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    if footer:
        figure.supxlabel(footer, fontsize=7, color="0.35", parse_math=False, wrap=True)
