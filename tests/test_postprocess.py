"""From a raw map to one in [0, 1] at the photograph's size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import zoom
from tolerances import EXACT, FLOAT64

from torch_impl.maps.postprocess import finish, normalize, upsample


def test_corner_lies_on_corner(device):
    # 0 and 6 over four pixels with the corners kept: steps of 2. A half-pixel grid would give 0, 1.5, 4.5, 6.
    assert upsample(torch.tensor([[[0.0, 6.0]]], device=device), (1, 4)).tolist() == [[[0, 2, 4, 6]]]


def test_upsample_is_scipys_zoom(device):
    cam = np.random.RandomState(0).uniform(0, 5, (2, 14, 14))
    expected = zoom(cam, (1, 16, 16), order=1)
    close(upsample(torch.tensor(cam, device=device), (224, 224)).cpu(), torch.tensor(expected), FLOAT64)


def test_normalize_on_paper(device):
    maps = torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]], device=device, dtype=torch.float64)
    half = 1 / (2 + 1e-7)
    assert normalize(maps).tolist() == [[[0, 2 * half], [half, 0]], [[0, 0], [0, 0]]]
    small = torch.tensor([[[0.0, 1e-7]]], device=device, dtype=torch.float64)  # as small as the reference's constant
    assert float(normalize(small).max()) == pytest.approx(0.5)


@given(arrays(np.float64, (2, 3, 4), elements=st.floats(-1e30, 1e30)), st.floats(-1e3, 1e3))
def test_normalize_stays_in_range_and_forgets_the_offset(values, offset):
    normal = normalize(torch.tensor(values))
    assert torch.isfinite(normal).all()
    assert normal.min() == 0
    assert normal.max() <= 1
    small = torch.tensor(np.clip(values, -1e3, 1e3))
    # Adding the offset rounds every value by up to 1e-13; a map within that of constant says nothing.
    spread = small.amax(dim=(1, 2)) - small.amin(dim=(1, 2))
    for before, after in zip(normalize(small)[spread > 1e-3], normalize(small + offset)[spread > 1e-3], strict=True):
        assert (before - after).abs().max() < 1e-8


def test_finish_enlarges_what_is_smaller_and_widens_what_is_narrow():
    raw = torch.rand(2, 4, 6, dtype=torch.float64)
    close(finish(raw, (4, 6)), normalize(raw), EXACT)
    close(finish(raw, (8, 6)), normalize(upsample(raw, (8, 6))), EXACT)
    assert finish(raw.half(), (8, 6)).dtype == torch.float32
