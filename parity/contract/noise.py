"""SmoothGrad's noise: the same numbers for every photograph, batch size, device and framework."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

CACHE_BYTES = 64 * 2**20
"""Draws up to this size are kept (20 samples at 224×224: 24 MB); larger ones are drawn again for each photograph."""


def unit_noise(seed: int, n_samples: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Standard normal noise, sample by sample, from the start of the seed's stream.

    Multiply by a photograph's σ in float64, then cast to the inputs' type: that is what NumPy's
    `np.random.seed(seed); np.random.normal(0., sigma, (n_samples, 1, H, W, C))` draws, bit for bit.

    Args:
        seed: 0 to 2**32 − 1.
        n_samples: how many noisy copies.
        shape: (H, W, C), channels last.

    Yields:
        float64 arrays (H, W, C), read-only.

    Source: tf-keras-vis 0.8.7, `Saliency.__call__`, which draws from NumPy's global legacy generator.
    """
    if 8 * n_samples * int(np.prod(shape)) <= CACHE_BYTES:
        yield from _kept(seed, n_samples, shape)
    else:
        generator = np.random.RandomState(seed)
        for _ in range(n_samples):
            yield _read_only(generator.standard_normal(shape))


@lru_cache(maxsize=2)
def _kept(seed: int, n_samples: int, shape: tuple[int, int, int]) -> np.ndarray:
    return _read_only(np.random.RandomState(seed).standard_normal((n_samples, *shape)))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
