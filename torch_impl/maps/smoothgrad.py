"""SmoothGrad, and its noise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from parity.contract.methods import Options
from parity.contract.noise import CACHE_BYTES, unit_noise
from torch_impl.arrays import Image, Images, Maps
from torch_impl.capture.passes import Pass
from torch_impl.maps.registry import drawn
from torch_impl.maps.vanilla import channel_maximum
from torch_impl.precision import at_least_fp32, sent

Unit = np.ndarray | Tensor
"""Standard normal noise of one copy, float64: an array (H, W, C) as it was drawn, or a tensor (C, H, W) on the device."""


@drawn("smoothgrad")
def smoothgrad(p: Pass) -> Maps:
    """Mean of |∂score/∂inputs| over noisy copies, then the largest over the colour channels; ≥ 0.

    A map depends on its own photograph, class and the seed alone: not on its neighbours, the batch size or the device
    (beyond rounding), because the noise is drawn for each photograph from the start of the seed's stream.

    Source: arXiv:1706.03825, Equation 1, with |·| before the mean.
    Matches: tf-keras-vis 0.8.7, `Saliency(smooth_samples=n, smooth_noise=s)` on one image after `np.random.seed(seed)`.
    Differs: Captum's `NoiseTunnel` takes one absolute σ for all images, and draws from PyTorch's generator.
    """
    sigma = standard_deviations(p.inputs, p.options.noise_level)
    p.keep(noise=lambda: torch.stack([torch.stack(list(noise_of(image, p.options))) for image in p.inputs]))
    total = torch.zeros(p.inputs.shape, dtype=at_least_fp32(p.inputs.dtype), device=p.inputs.device)
    n = p.options.n_samples
    last = p.inputs.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    row_of = torch.arange(len(p.inputs), device=p.inputs.device).repeat_interleave(n)

    def add(copies: list[tuple[int, Unit]]) -> None:
        numbers, units = zip(*copies, strict=True)
        rows, of = [number // n for number in numbers], row_of[numbers[0] : numbers[-1] + 1]
        noisy = (p.inputs[of] + scaled(units, sigma[of], p.inputs)).contiguous(memory_format=layout)
        p.capture.attend(rows)
        gradients = p.capture.input_gradients(noisy, p.target[of]).abs()
        # Each photograph's own sum, in order: on CUDA an indexed addition would add in another order each time.
        runs = Counter(rows)
        sums = [part.sum(dim=0) for part in torch.split(gradients, [*runs.values()])]
        for row, part in zip(runs, sums, strict=True):  # after everything that may run out of memory
            total[row] += part

    units = (unit for image in p.inputs for unit in units_of(image, p.options))
    p.capture.in_batches(enumerate(units), len(row_of), add, like=p.inputs)
    return channel_maximum(total.div_(n))


def standard_deviations(inputs: Images, noise_level: float) -> Tensor:
    """σ of each image (N,): `noise_level` times its range over height, width and channels together."""
    flat = inputs.flatten(1).to(at_least_fp32(inputs.dtype))
    return noise_level * (flat.amax(dim=1) - flat.amin(dim=1))


def noise_of(image: Image, options: Options) -> Iterator[Image]:
    """What is added to one image, sample by sample: unit noise times σ in float64, then cast to the image's type."""
    sigma = standard_deviations(image[None], options.noise_level)[0]
    for unit in units_of(image, options):
        yield scaled([unit], sigma[None], image)[0]


def scaled(units: Sequence[Unit], sigma: Tensor, like: Tensor) -> Images:
    """σ of each copy (n,) times its unit noise: (n, C, H, W), of the type and on the device of `like`."""
    there = [unit for unit in units if isinstance(unit, Tensor)]
    wide = torch.stack(there) if there else sent(torch.from_numpy(np.stack(units)), like.device).permute(0, 3, 1, 2)
    return (wide * sigma.double()[:, None, None, None]).to(like.dtype)


def units_of(image: Image, options: Options) -> Iterator[Unit]:
    """Unit noise of an image's size: as it is drawn, or, where it is small enough to be kept, copied to the device once."""
    channels, height, width = image.shape
    shape, count = (height, width, channels), options.n_samples
    if image.device.type == "cpu" or 8 * count * math.prod(shape) > CACHE_BYTES:
        yield from unit_noise(options.seed, count, shape)
    else:
        yield from _kept_on_device(options.seed, count, shape, image.device)


@lru_cache(maxsize=2)
def _kept_on_device(seed: int, n_samples: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    units = torch.from_numpy(np.stack(list(unit_noise(seed, n_samples, shape))))
    return sent(units, device).permute(0, 3, 1, 2)
