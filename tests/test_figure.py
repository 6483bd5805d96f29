"""Figures: which picture lies where, and what is written beside it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT, run_program

from parity.contract.methods import METHODS
from torch_impl.figure import OVERLAY, ROWS_PER_PAGE, ColormapError, checked_colormap, method_figure, overview_figures


def pixels_and_maps(count):
    generator = np.random.RandomState(0)
    return generator.randint(0, 256, (count, 8, 8, 3), dtype=np.uint8), generator.uniform(0, 1, (count, 8, 8))


@pytest.mark.parametrize("method", METHODS)
def test_a_map_stands_alone_or_lies_over_its_photograph(method):
    pixels, maps = pixels_and_maps(3)
    figure = method_figure(method, pixels, maps, ["a", "b", "c"], constant=[False, True, False])
    axes = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in axes] == ["a", "b\nno positive evidence: constant map", "c"]
    for i, axis in enumerate(axes):
        *below, shown = axis.images
        assert len(below) == METHODS[method].overlay
        assert all(np.array_equal(picture.get_array(), pixels[i]) for picture in below)
        assert np.array_equal(shown.get_array(), maps[i])
        assert (shown.get_clim(), shown.get_cmap().name) == ((0, 1), "jet")
        assert shown.get_alpha() == (OVERLAY if below else None)
    assert figure.get_suptitle() == METHODS[method].title


def test_the_overview_has_a_row_for_each_photograph():
    pixels, maps = pixels_and_maps(2)
    drawn = {"vanilla": maps, "gradcam": maps}
    captions = ["cup 0.5", "two $x$ " + "y" * 50 + "\n\x1b[31m\nthird"]
    (page,) = overview_figures(pixels, drawn, captions, constant={"gradcam": [True, False]}, colormap="cividis")
    assert len(page.axes) == 6
    assert [axis.get_title() for axis in page.axes[::3]] == ["cup 0.5", "two $x$ " + "y" * 25 + "…\n\ufffd[31m"]
    assert page.axes[2].get_title() == "Grad-CAM\nconstant: no positive evidence"
    assert page.axes[1].images[0].get_cmap().name == "cividis"


def test_many_photographs_make_pages():
    pixels, maps = pixels_and_maps(2 * ROWS_PER_PAGE + 1)
    pages = overview_figures(pixels, {"vanilla": maps}, ["x"] * len(pixels), footer="credits")
    assert [len(page.axes) // 2 for page in pages] == [ROWS_PER_PAGE, ROWS_PER_PAGE, 1]
    assert {page.get_supxlabel() for page in pages} == {"credits"}


def test_unknown_colormap():
    assert checked_colormap("viridis") == "viridis"
    with pytest.raises(ColormapError, match=r"'jett'.*cividis"):
        checked_colormap("jett")


def test_nothing_is_shown_and_no_torch_is_needed():
    code = "import sys, torch_impl.figure; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    assert run_program("-c", code, cwd=ROOT).stdout.strip() == "set()"
