"""What a figure means: how far a map is from maps that are wrong on purpose, and how far it moves by itself.

Drawn by this project's port, whatever the candidate is, on the reference's job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from parity import formulas, port
from parity.candidate import Job
from parity.contract.artifact import Artifact
from parity.contract.methods import METHODS
from parity.contract.network import Network
from parity.report import ANOTHER_CLASS, ANOTHER_SEED, RANDOM_WEIGHTS, Conditioning, OtherMap
from parity.similarity import pearson, relative_l2

CHANGE = 1e-6
"""Relative change of every input value, up or down at random: about float32's own rounding, times 10."""


def ladder(job: Job, reference: Artifact) -> Iterator[OtherMap]:
    """Correlation of the reference's final maps with those of the libraries' plain calls, one change a rung.

    Args:
        job: drawn in float32.
        reference: with float64 raw maps.
    """
    for method, what, finals in port.candidate().rungs(replace(job, precision="fp32")):
        yield _compared(method, what, finals, reference)


def rows(job: Job, reference: Artifact) -> Iterator[OtherMap]:
    """Correlation of the reference's final maps with those of another seed, another class, and random weights.

    Args:
        job: in float32; a map of noisy copies is drawn with another seed alone, which is its share of the work.
        reference: with float64 raw maps.
    """
    classes = reference.table.classes
    noisy = tuple(method for method in job.methods if METHODS[method].noisy)
    cheap = tuple(method for method in job.methods if not METHODS[method].noisy)
    others = {
        ANOTHER_SEED: (noisy, {"options": replace(job.options, seed=(job.seed + 1) % 2**32)}),
        ANOTHER_CLASS: (cheap, {"classes": tuple((c + classes // 2) % classes for c in job.classes)}),
        RANDOM_WEIGHTS: (cheap, {"network": _without_structure(job.network)} if cheap else {}),
    }
    for what, (methods, change) in others.items():
        if methods:
            drawn = port.candidate().raw_maps(replace(job, methods=methods, **change))  # type: ignore[arg-type]
            for method, raw in drawn.items():
                finals = [formulas.finish(one, reference.table.size) for one in raw]
                yield _compared(method, what, finals, reference)


def conditioning(job: Job, known: Mapping[str, np.ndarray]) -> Iterator[Conditioning]:
    """How far each raw map moves when every input value changes by a millionth of itself.

    Args:
        job: in float64, so that what moves is the map and not its rounding. Noisy copies are moved in the first alone.
        known: raw maps that the port has drawn already, by method.
    """
    inputs = np.stack([formulas.preprocess(pixels, job.input) for pixels in job.pixels])
    signs = np.random.RandomState(0).choice([-1.0, 1.0], inputs.shape)
    single = replace(job, options=replace(job.options, n_samples=1))
    missing = tuple(method for method in job.methods if method not in known or METHODS[method].noisy)
    before = {**known, **(port.candidate().raw_maps(replace(single, methods=missing), inputs) if missing else {})}
    after = port.candidate().raw_maps(single, inputs * (1 + CHANGE * signs))
    for method in job.methods:
        for i, (moved, still) in enumerate(zip(after[method], before[method], strict=True)):
            yield Conditioning(method, i, relative_l2(moved, still) / CHANGE)


def _compared(method: str, what: str, finals: Iterable[np.ndarray], reference: Artifact) -> OtherMap:
    pairs = zip(finals, reference.whole(f"{method}/raw", "fp64"), strict=True)
    return OtherMap(method, what, tuple(pearson(a, formulas.finish(b, reference.table.size)) for a, b in pairs))


def _without_structure(network: Network) -> Network:
    """Random weights of the same spread, tensor by tensor."""
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.standard_normal(array.shape, np.float32) * array.std()
        for name, array in network.tensors.items()
    }
    return replace(network, tensors=tensors)
