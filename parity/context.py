"""What a figure means: how far a map is from maps that are wrong on purpose, and how far it moves by itself.

Drawn by this project's port, whatever the candidate is, on the reference's job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from parity import formulas
from parity.candidate import Job
from parity.contract.artifact import Artifact
from parity.report import ANOTHER_CLASS, ANOTHER_SEED, RANDOM_WEIGHTS, Conditioning, ContextRow
from parity.similarity import pearson, relative_l2
from torch_impl import vgg16
from torch_impl.explainer import choose_device
from torch_impl.methods import Settings, raw_maps
from torch_impl.precision import dtype_of, numerics
from torch_impl.preprocess import preprocess

CHANGE = 1e-6
"""Relative change of every input value, up or down at random: about float32's own rounding, times 10."""


def _raw(job: Job, inputs: torch.Tensor | None = None, *, seed_of_weights: int | None = None) -> dict[str, np.ndarray]:
    """Raw maps (N, …) of all the job's methods by the port."""
    device = choose_device(job.device)
    with numerics(job.precision):
        model = vgg16.build(job.network).to(device, dtype_of(job.precision))
        if seed_of_weights is not None:
            generator = torch.Generator(device="cpu").manual_seed(seed_of_weights)
            with torch.no_grad():
                for parameter in model.parameters():  # the same spread, no structure
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                    spread = parameter.float().std(unbiased=False).cpu()
                    parameter.data = (noise * spread).to(parameter)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if inputs is None:
            inputs = _inputs(job)
        inputs = inputs.to(device).contiguous(memory_format=torch.channels_last)
        settings = Settings(
            target_layer=job.architecture.target.activation,
            noise_level=job.noise_level,
            n_samples=job.n_samples,
            seed=job.seed,
        )
        target = torch.tensor(job.classes, device=device)
        return {m: raw_maps(m, model, inputs, target, settings).cpu().numpy() for m in job.methods}


def _inputs(job: Job) -> torch.Tensor:
    return preprocess(job.pixels, input=job.input, dtype=dtype_of(job.precision))


def rows(job: Job, reference: Artifact) -> Iterator[ContextRow]:
    """Correlation of the reference's final maps with those of another seed, another class, and random weights.

    Args:
        job: in float32; SmoothGrad's share of the work is done for the seed alone.
        reference: with float64 raw maps.
    """
    classes = job.architecture.classes
    cheap = tuple(m for m in job.methods if m != "smoothgrad")
    if "smoothgrad" in job.methods:
        other = replace(job, methods=("smoothgrad",), seed=(job.seed + 1) % 2**32)
        yield from _compared(ANOTHER_SEED, _raw(other), reference)
    if cheap:
        other = replace(job, methods=cheap, classes=tuple((c + classes // 2) % classes for c in job.classes))
        yield from _compared(ANOTHER_CLASS, _raw(other), reference)
        yield from _compared(RANDOM_WEIGHTS, _raw(replace(job, methods=cheap), seed_of_weights=0), reference)


def _compared(what: str, drawn: dict[str, np.ndarray], reference: Artifact) -> Iterator[ContextRow]:
    size = reference.weights.architecture.size
    for method, raw in drawn.items():
        expected = reference.whole(f"{method}/raw", "fp64")
        pairs = zip(raw, expected, strict=True)
        values = tuple(pearson(formulas.finish(a, size), formulas.finish(b, size)) for a, b in pairs)
        yield ContextRow(method, what, values)


def conditioning(job: Job, known: Mapping[str, np.ndarray]) -> Iterator[Conditioning]:
    """How far each raw map moves when every input value changes by a millionth of itself.

    Args:
        job: in float64, so that what moves is the map and not its rounding. SmoothGrad is moved in its first sample alone.
        known: raw maps that the port has drawn already, by method.
    """
    inputs = _inputs(job)
    signs = torch.from_numpy(np.random.RandomState(0).choice([-1.0, 1.0], tuple(inputs.shape)))
    one = replace(job, n_samples=1)
    missing = tuple(m for m in job.methods if m not in known or m == "smoothgrad")
    before = {**known, **(_raw(replace(one, methods=missing), inputs) if missing else {})}
    after = _raw(one, inputs * (1 + CHANGE * signs.to(inputs)))
    for method in job.methods:
        for i, (a, b) in enumerate(zip(after[method], before[method], strict=True)):
            yield Conditioning(method, i, relative_l2(a, b) / CHANGE)
