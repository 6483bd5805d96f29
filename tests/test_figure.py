"""Figures: which picture lies where, and what is written beside it."""

from __future__ import annotations

import numpy as np
import pytest

from parity.contract.methods import METHODS
from torch_impl import figure as figures
from torch_impl.figure import OVERLAY, ROWS_PER_PAGE, Style, blended, method_figure, overview_figures


def pixels_and_maps(count):
    generator = np.random.RandomState(0)
    return generator.randint(0, 256, (count, 8, 8, 3), dtype=np.uint8), generator.uniform(0, 1, (count, 8, 8))


@pytest.mark.parametrize("method", ["vanilla", "gradcam"])
def test_a_map_stands_alone_or_lies_over_its_photograph(method):
    pixels, maps = pixels_and_maps(3)
    figure = method_figure(method, pixels, maps, ["a", "b", "c"], constant=["", "no positive evidence", ""])
    axes = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in axes] == ["a", "b\nconstant map: no positive evidence", "c"]
    for i, axis in enumerate(axes):
        *below, shown = axis.images
        assert len(below) == METHODS[method].overlay
        assert all(np.array_equal(picture.get_array(), pixels[i]) for picture in below)
        assert np.array_equal(shown.get_array(), maps[i])
        assert (shown.get_clim(), shown.get_cmap().name) == ((0, 1), "jet")
        assert shown.get_alpha() == (OVERLAY if below else 1)
    assert figure.get_suptitle() == METHODS[method].title


def test_the_overview_has_a_row_for_each_photograph():
    pixels, maps = pixels_and_maps(2)
    drawn = {"vanilla": maps, "gradcam": maps}
    captions = ["cup 0.5", "two $x$ " + "y" * 50 + "\n\x1b[31m\nthird"]
    (page,) = overview_figures(
        pixels, drawn, captions, constant={"gradcam": ["no positive evidence", ""]}, style=Style("cividis")
    )
    assert len(page.axes) == 6
    assert [axis.get_title() for axis in page.axes[::3]] == ["cup 0.5", "two $x$ " + "y" * 25 + "…\n\ufffd[31m"]
    assert page.axes[2].get_title() == "Grad-CAM\nconstant: no positive evidence"
    assert page.axes[1].images[0].get_cmap().name == "cividis"


def test_many_photographs_make_pages():
    pixels, maps = pixels_and_maps(2 * ROWS_PER_PAGE + 1)
    pages = overview_figures(pixels, {"vanilla": maps}, ["x"] * len(pixels), footer="credits")
    assert [len(page.axes) // 2 for page in pages] == [ROWS_PER_PAGE, ROWS_PER_PAGE, 1]
    assert {page.get_supxlabel() for page in pages} == {"credits"}


def test_an_opacity_a_colour_bar_and_pictures_of_any_shape():
    pixels, maps = [np.zeros((4, 8, 3), np.uint8), np.zeros((9, 3, 3), np.uint8)], [np.ones((4, 8)), np.ones((9, 3))]
    maps[1][0] = np.nan
    style = Style("cividis", alpha=0.25, colorbar=True)
    figure = method_figure("vanilla", pixels, maps, ["wide", "tall"], style=style)
    wide, tall, bar = figure.axes
    assert [axis.images[1].get_alpha() for axis in (wide, tall)] == [0.25, 0.25]
    assert bar.get_ylabel() == "each map from its least to its greatest value"
    assert bar.get_ylim() == (0, 1)
    (lone,) = method_figure("vanilla", pixels[:1], maps[:1], ["wide"]).axes
    assert len(lone.images) == 1, "saliency stands by itself"
    (cropped,) = method_figure("vanilla", pixels[1:], maps[1:], ["tall"]).axes
    assert len(cropped.images) == 2, "where the map says nothing of a part, the photograph shows"


def test_a_layer_has_a_row_of_its_own():
    pixels, maps = pixels_and_maps(6)
    figure = method_figure("gradcam", pixels, maps, list("abcabc"), layers=["layer3", "layer4"])
    assert [axis.get_title() for axis in figure.axes] == list("abcabc")
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["layer3", "layer4"]
    rows = [axis.get_subplotspec().rowspan.start for axis in figure.axes]
    assert rows == [0, 0, 0, 1, 1, 1]
    (page,) = overview_figures(pixels, {"vanilla": maps, "gradcam": maps}, ["x"] * 6, layers=["layer3"] * 6)
    assert [axis.get_title() for axis in page.axes[1:3]] == ["Vanilla saliency", "Grad-CAM\nlayer3"]


def test_a_map_over_its_photograph_by_hand():
    """jet's ends are (0, 0, 127.5) and (127.5, 0, 0), which matplotlib's bytes cut to 127; halves go to the even number."""
    pixels = np.full((1, 3, 3), 101, np.uint8)
    values = np.array([[0, 1, np.nan]])
    expected = [[[50, 50, 114], [114, 50, 50], [101, 101, 101]]]
    assert blended(pixels, values, alpha=0.5).tolist() == expected
    assert blended(pixels, values, alpha=0).tolist() == pixels.tolist()


def test_unknown_colormap_and_opacity():
    with pytest.raises(figures.ColormapError, match=r"'jett'.*cividis"):
        Style("jett")
    with pytest.raises(ValueError, match="alpha is 2: give 0"):
        Style(alpha=2)
