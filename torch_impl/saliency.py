"""Vanilla saliency and SmoothGrad, on Captum's `Saliency`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.noise import CACHE_BYTES, unit_noise
from torch_impl.arrays import Image, Images, Maps, Target
from torch_impl.batching import BatchSize, micro_batches, sized, taken
from torch_impl.precision import at_least_fp32, score_scale
from torch_impl.preserve import preserved

Progress = Callable[[int, int], None]
"""Called with (passes done, passes in all)."""

Unit = np.ndarray | Tensor
"""Standard normal noise of one copy, float64: an array (H, W, C) as it was drawn, or a tensor (C, H, W) on the device."""

Gradients = Callable[[nn.Module, Images, Target], Images]
"""(frozen model, inputs, target) → |∂score/∂inputs|, as `absolute_gradients`."""


def absolute_gradients(model: nn.Module, inputs: Images, target: Target) -> Images:
    """|∂score/∂inputs|, where the score is image i's logit `target[i]`.

    Args:
        model: gives logits (N, classes); frozen and in eval mode, see `preserve.preserved`.
        inputs: preprocessed.
        target: class indices.

    Returns:
        The inputs' shape and device; float32, or float64 for float64 inputs. ≥ 0.

    Source: arXiv:1312.6034, Section 3.
    """
    from captum.attr import Saliency  # here, because it takes a while to import and the shared engine does without

    scale = score_scale(inputs.dtype)

    def score(x: Images) -> Tensor:
        logits: Tensor = model(x)
        return logits if scale == 1 else logits.float() * scale

    leaf = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    gradients: Tensor = Saliency(score).attribute(leaf, target=target, abs=True)
    return gradients.detach().to(at_least_fp32(inputs.dtype)) / scale


def channel_maximum(absolute: Images) -> Maps:
    """The largest of the colour channels at each pixel."""
    return absolute.amax(dim=1)


def vanilla_saliency(
    model: nn.Module,
    inputs: Images,
    target: Target,
    *,
    batch_size: BatchSize = "auto",
    progress: Progress | None = None,
) -> Maps:
    """The largest |∂score/∂inputs| over the colour channels; raw, not yet normalized.

    Args:
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        batch_size: images in one pass.
        progress: called after each pass.

    Returns:
        ≥ 0, logits per unit of the preprocessed input.

    Source: arXiv:1312.6034, Section 3.1.
    Matches: tf-keras-vis 0.8.7, `Saliency` with `normalize_map=False`.
    """
    found: list[Maps] = []

    def one_pass(rows: list[int]) -> None:
        found.append(channel_maximum(absolute_gradients(model, taken(inputs, rows), taken(target, rows))))
        if progress:
            progress(rows[-1] + 1, len(inputs))

    with preserved(model):
        micro_batches(range(len(inputs)), sized(batch_size, model, inputs), inputs.device, one_pass)
    return torch.cat(found)


def smoothgrad(
    model: nn.Module,
    inputs: Images,
    target: Target,
    *,
    noise_level: float = 0.2,
    n_samples: int = 20,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    progress: Progress | None = None,
    gradients: Gradients | None = None,
) -> Maps:
    """Mean of |∂score/∂inputs| over noisy copies, then the largest over the colour channels; raw.

    A map depends on its own photograph, class and the seed alone: not on its neighbours, the batch size or the device
    (beyond rounding), because the noise is drawn for each photograph from the start of the seed's stream.

    Args:
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        noise_level: σ as a fraction of each image's own range (maximum minus minimum over all its values).
        n_samples: noisy copies of each image.
        seed: of the noise, 0 to 2**32 − 1.
        batch_size: noisy copies in one pass.
        progress: called after each pass.
        gradients: another engine's; None: `absolute_gradients`.

    Returns:
        ≥ 0, logits per unit of the preprocessed input.

    Raises:
        ValueError: `n_samples` < 1, or `noise_level` negative or not finite.

    Source: arXiv:1706.03825, Equation 1, with |·| before the mean.
    Matches: tf-keras-vis 0.8.7, `Saliency(smooth_samples=n, smooth_noise=s)` on one image after `np.random.seed(seed)`.
    Differs: Captum's `NoiseTunnel` takes one absolute σ for all images, and draws from PyTorch's generator.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}: SmoothGrad needs at least 1")
    if not 0 <= noise_level < float("inf"):
        raise ValueError(f"noise_level is {noise_level}: give a fraction of the image's range, 0 or more")
    done = 0
    gradients = gradients or absolute_gradients
    sigma = standard_deviations(inputs, noise_level)

    def one_pass(copies: list[tuple[int, Unit]]) -> None:
        nonlocal done
        runs = [(row, [unit for _, unit in run]) for row, run in groupby(copies, key=itemgetter(0))]
        noisy = torch.cat([inputs[row] + _scaled(units, sigma[row], inputs) for row, units in runs])
        if inputs.is_contiguous(memory_format=torch.channels_last):
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        classes = torch.cat([target[row].expand(len(units)) for row, units in runs])
        drawn = torch.split(gradients(model, noisy, classes), [len(units) for _, units in runs])
        # Each image's own sum, in order: on CUDA an indexed addition would add in another order each time.
        sums = [one.sum(dim=0) for one in drawn]
        for (row, _), one in zip(runs, sums, strict=True):  # after everything that may run out of memory
            total[row] += one
        done += len(copies)
        if progress:
            progress(done, n_samples * len(inputs))

    with preserved(model):
        total = torch.zeros(inputs.shape, dtype=at_least_fp32(inputs.dtype), device=inputs.device)
        copies = _unit_copies(inputs, n_samples=n_samples, seed=seed)
        micro_batches(copies, sized(batch_size, model, inputs), inputs.device, one_pass, count=n_samples * len(inputs))
    return channel_maximum(total.div_(n_samples))


def noisy_copies(inputs: Images, *, noise_level: float, n_samples: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """All noisy copies, image by image.

    Args:
        inputs: preprocessed.
        noise_level: σ as a fraction of each image's own range.
        n_samples: copies of each image.
        seed: of the noise.

    Yields:
        The image's row and a copy (C, H, W) of the inputs' type.
    """
    for row, sigma in enumerate(standard_deviations(inputs, noise_level)):
        for noise in scaled_noise(inputs[row], sigma, n_samples=n_samples, seed=seed):
            yield row, inputs[row] + noise


def _unit_copies(inputs: Images, *, n_samples: int, seed: int) -> Iterator[tuple[int, Unit]]:
    """Each image's row with its unit noise, sample by sample."""
    for row, image in enumerate(inputs):
        for unit in _units(image, n_samples=n_samples, seed=seed):
            yield row, unit


def draw_noise(inputs: Images, *, n_samples: int, seed: int) -> None:
    """Draw the unit noise of these images' size, once: `smoothgrad` then finds it, unless it is too large to be kept.

    20 samples at 224×224 take a CPU about 0.1 s. Calling this is never necessary; it tells the draw's time from the passes'.
    """
    _, channels, height, width = inputs.shape
    if 8 * n_samples * channels * height * width <= CACHE_BYTES:
        for _ in unit_noise(seed, n_samples, (height, width, channels)):
            break


def scaled_noise(image: Image, sigma: Tensor, *, n_samples: int, seed: int) -> Iterator[Image]:
    """Noise for one image: unit noise times σ in float64, then cast to the image's type.

    Args:
        image: gives shape, type and device.
        sigma: a scalar.
        n_samples: how many.
        seed: every image's noise starts here.
    """
    for unit in _units(image, n_samples=n_samples, seed=seed):
        yield _scaled([unit], sigma, image)[0]


def _scaled(units: Sequence[Unit], sigma: Tensor, like: Tensor) -> Images:
    """σ times unit noise (n, C, H, W), with a type and a device."""
    there = [unit for unit in units if isinstance(unit, Tensor)]
    wide = torch.stack(there) if there else torch.from_numpy(np.stack(units)).permute(0, 3, 1, 2).to(like.device)
    return (wide * sigma.double()).to(like.dtype)


def _units(image: Image, *, n_samples: int, seed: int) -> Iterable[Unit]:
    """Unit noise of an image's size: as it is drawn, or, where it is small enough to be kept, copied to the device once."""
    channels, height, width = image.shape
    shape = (height, width, channels)
    if image.device.type == "cpu" or 8 * n_samples * math.prod(shape) > CACHE_BYTES:
        return unit_noise(seed, n_samples, shape)
    return _kept_on_device(seed, n_samples, shape, image.device)


@lru_cache(maxsize=2)
def _kept_on_device(seed: int, n_samples: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    drawn = torch.tensor(np.stack(list(unit_noise(seed, n_samples, shape))))
    return drawn.pin_memory().to(device, non_blocking=True).permute(0, 3, 1, 2)


def standard_deviations(inputs: Images, noise_level: float) -> Tensor:
    """σ of each image (N,): `noise_level` times its range over height, width and channels together."""
    flat = inputs.flatten(1).to(at_least_fp32(inputs.dtype))
    return noise_level * (flat.amax(dim=1) - flat.amin(dim=1))
