"""The figures of two maps, on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity.similarity import error_of_range, overlap, pearson, relative_l2, shift, spearman, ssim


def test_relative_l2_and_error_of_range():
    expected, actual = np.array([3.0, 4.0]), np.array([3.0, 5.0])
    assert relative_l2(actual, expected) == pytest.approx(1 / 5)
    assert error_of_range(np.array([1.0, 5.0, 3.0]), np.array([1.0, 5.0, 4.0])) == 1 / 4
    assert relative_l2(expected, expected) == error_of_range(expected, expected) == 0
    assert relative_l2(actual, np.zeros(2)) == math.inf
    assert relative_l2(np.zeros(2), np.zeros(2)) == error_of_range(np.zeros(2), np.zeros(2)) == 0
    assert error_of_range(np.array([2.5, 2.5]), np.array([2.0, 2.0])) == 0.25, "of a constant, over its magnitude"
    assert error_of_range(np.zeros(0), np.zeros(0)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_agrees_with_nothing(value):
    one, other = np.array([value, 4.0]), np.array([3.0, 4.0])
    for actual, expected in ((one, other), (one, one)):
        assert relative_l2(actual, expected) == error_of_range(actual, expected) == math.inf
    assert math.isnan(pearson(one, other))
    assert math.isnan(spearman(one, other))


def test_pearson_and_spearman():
    a = np.array([1.0, 2.0, 4.0])
    assert pearson(a, 3 * a - 7) == pytest.approx(1)
    assert pearson(a, -a) == pytest.approx(-1)
    # (−4/3, −1/3, 5/3)·(−1, 1, 0) / (sqrt(42)/3·sqrt(2)) with b = (0, 2, 1)
    assert pearson(a, np.array([0.0, 2.0, 1.0])) == pytest.approx(1 / (math.sqrt(42) / 3 * math.sqrt(2)))
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, np.array([0.0, 2.0, 1.0])) == pytest.approx(0.5)
    tenth = np.full(49, 0.1)  # whose mean is not 0.1
    assert math.isnan(pearson(tenth.astype(np.float32), tenth))
    assert math.isnan(pearson(a, np.ones(3)))


def test_overlap_and_shift():
    expected = np.zeros((10, 10))
    expected[0] = 1
    half = np.zeros((10, 10))
    half[0, :5] = half[9, :5] = 1
    assert overlap(expected, expected) == 1
    assert overlap(half, expected) == pytest.approx(5 / 15)
    assert shift(expected, expected) == 0
    assert shift(expected[::-1], expected) == pytest.approx(9 / 10)
    assert math.isnan(shift(np.zeros((10, 10)), expected))
    assert math.isnan(shift(np.full((10, 10), np.inf), expected))


def test_ssim():
    expected = np.random.RandomState(0).uniform(size=(20, 20))
    assert ssim(expected, expected) == pytest.approx(1)
    assert ssim(1 - expected, expected) < 0
    assert math.isnan(ssim(np.ones((4, 4)), np.ones((4, 4))))
