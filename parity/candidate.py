"""The other side of the comparison: this port, or anybody's, given the job that the reference was given.

A candidate is a function `candidate(job)`. It returns a mapping {stage: array (N, …)}, or yields (photograph, stage,
array) one by one where everything at once would be too large. Stages and layouts are those of `parity.contract.stages`:
channels last, Keras's layer names, after the ReLU. Raw maps are required; every other stage is welcome, because the
first one that is off names the bug.

    def candidate(job):
        inputs = my_preprocess(job.pixels)
        return {"gradcam/raw": my_gradcam(inputs, job.classes)}   # (N, h, w)
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.contract import network as networks
from parity.contract.architecture import Architecture, Layer
from parity.contract.artifact import Artifact, ArtifactError, Photograph, Recorder, Settings, Weights
from parity.contract.network import Network
from parity.contract.noise import unit_noise

Stages = Mapping[str, np.ndarray] | Iterable[tuple[int, str, np.ndarray]]
Candidate = Callable[["Job"], Stages]

DEFAULT = "parity.port:candidate"

PORT = {"library": DEFAULT, "shared": "parity.port:shared"}
"""This port's engines."""

SHAPE = "shape of "
"""Begins the flag that says which other height and width a stage had: then the program differs, and its values are NaN."""


class CandidateError(ValueError):
    """The candidate cannot be found or run, or what it gives cannot be compared; one line."""


@dataclass(frozen=True, eq=False)
class Job:
    """What the reference was asked, for a candidate to be asked the same.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB: the very pixels that the reference saw.
        classes: the explained class of each photograph.
        network: the weights in canonical form; `job.weights` is the same as a file.
        input: preprocessing, `caffe` or `torchvision`.
        methods: canonical names.
        n_samples: of SmoothGrad.
        noise_level: of SmoothGrad, a fraction of each image's range.
        seed: of SmoothGrad's noise.
        precision: `fp64`, `fp32`, `tf32`, `fp16`, `bf16`.
        device: `cpu`, `cuda`, `cuda:1`, `auto`.
    """

    pixels: np.ndarray = field(repr=False)
    classes: tuple[int, ...]
    network: Network
    input: str
    methods: tuple[str, ...]
    n_samples: int
    noise_level: float
    seed: int
    precision: str = "fp32"
    device: str = "auto"

    @property
    def architecture(self) -> Architecture:
        """The network's layer table and sizes."""
        return self.network.architecture

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Keras's layers, with torchvision's names beside them."""
        return self.network.architecture.layers

    @cached_property
    def weights(self) -> Path:
        """The weights as a canonical safetensors file (torchvision's tensor names and layouts); gone with the process."""
        folder = tempfile.TemporaryDirectory(prefix="parity-")
        self.__dict__["_folder"] = folder  # deleted with the job
        path = Path(folder.name, "weights.safetensors")
        networks.write(self.network, path)
        return path

    def noise(self, photograph: int = 0) -> Iterator[np.ndarray]:
        """SmoothGrad's unit noise for a photograph, sample by sample: float64 (H, W, 3).

        It is the same for every photograph; times that photograph's σ it is what was added to its inputs.
        """
        del photograph
        size = self.architecture.size
        return unit_noise(self.seed, self.n_samples, (size, size, 3))


def job_of(reference: Artifact, network: Network, *, precision: str, device: str, methods: Iterable[str] = ()) -> Job:
    """The job that the reference did, in this precision and on this device.

    Args:
        reference: its artifact.
        network: the weights, of the artifact's fingerprint.
        precision: of the candidate.
        device: of the candidate.
        methods: some of the reference's; none: all.

    Raises:
        CandidateError: other weights, or methods that the reference does not hold.
    """
    if network.fingerprint != reference.weights.fingerprint:
        raise CandidateError(
            f"the weights {network.source} (fingerprint {network.fingerprint[:12]}) are not those of the reference, "
            f"{reference.weights.source} (fingerprint {reference.weights.fingerprint[:12]}): give --weights as it was given"
        )
    s = reference.settings
    missing = [m for m in methods if m not in s.methods]
    if missing:
        raise CandidateError(
            f"the reference artifact does not hold {', '.join(missing)}: it holds {', '.join(s.methods)}"
        )
    return Job(
        pixels=reference.pixels,
        classes=reference.classes,
        network=network,
        input=s.input,
        methods=tuple(methods) or s.methods,
        n_samples=s.n_samples,
        noise_level=s.noise_level,
        seed=s.seed,
        precision=precision,
        device=device,
    )


def load(name: str) -> Candidate:
    """Find a candidate by `module:function`; the current folder is searched too.

    Raises:
        CandidateError: no such module or function.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise CandidateError(f"candidate {name!r}: give module:function, or an artifact's path")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CandidateError(f"candidate {name!r}: {error}; run it from the folder that holds the module") from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise CandidateError(f"candidate {name!r}: {module_name} has no function {attribute}")
    return found  # type: ignore[no-any-return]


def record(candidate: Candidate, job: Job, photographs: tuple[Photograph, ...], settings: Settings) -> Artifact:
    """Run a candidate and keep of it what an artifact keeps.

    Args:
        candidate: see the module.
        job: what to do.
        photographs: as the reference names them.
        settings: the reference's.

    Raises:
        CandidateError: it gave a stage that is unknown or laid out otherwise, or not the raw maps. One of another height
            and width (a map of the pool, say) is kept as NaN: then the program differs.
    """
    recorder = Recorder(job.architecture, replace(settings, methods=job.methods), job.pixels)
    started = time.perf_counter()
    given = candidate(job)
    triples = _rows(given, len(job.pixels)) if isinstance(given, Mapping) else _triples(given)
    seen: dict[str, int] = {}
    expected = {stage.name: stage.shape for stage in recorder.stages}
    flags: dict[str, str | int | bool] = {"device": job.device, "precision": job.precision}
    try:
        for photograph, stage, array in triples:
            array = np.asarray(array)
            if _of_another_size(array.shape, expected.get(stage, ())):
                flags[f"{SHAPE}{stage}"] = "×".join(map(str, array.shape))
                array = np.full(expected[stage], np.nan)
            recorder.add(job.precision, photograph, stage, array)
            seen[stage] = seen.get(stage, 0) + 1
        for method in job.methods:
            if seen.get(f"{method}/raw", 0) < len(job.pixels):
                raise CandidateError(f"the candidate gave no {method}/raw for every photograph: raw maps are required")
        return recorder.artifact(
            program=f"{getattr(candidate, '__module__', '?')}:{getattr(candidate, '__qualname__', '?')}",
            photographs=photographs,
            weights=Weights.of(job.network),
            versions=_versions(),
            flags=flags,
            seconds={job.precision: time.perf_counter() - started},
        )
    except ArtifactError as error:
        raise CandidateError(f"the candidate's answer cannot be used: {error}") from None


def _of_another_size(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """A layer or map of another height and width, channels last as it should be: a difference, not a mistaken answer."""
    return (
        len(given) == len(expected) and len(given) in (2, 3) and given != expected
        and given[2:] == expected[2:] and min(given) > 0
    )  # fmt: skip


def _triples(given: object) -> Iterator[tuple[int, str, np.ndarray]]:
    wanted = "give {stage: array}, or (photograph, stage, array) one by one"
    if not isinstance(given, Iterable):
        raise CandidateError(
            f"the candidate's answer is neither a mapping nor triples but {type(given).__name__}: {wanted}"
        )
    for triple in given:
        if not isinstance(triple, tuple) or len(triple) != 3:
            raise CandidateError(f"the candidate's answer is neither a mapping nor triples: {wanted}")
        yield triple


def _rows(stages: Mapping[str, np.ndarray], count: int) -> Iterator[tuple[int, str, np.ndarray]]:
    for stage, array in stages.items():
        array = np.asarray(array)
        if array.ndim == 0 or len(array) != count:
            raise CandidateError(f"stage {stage} has shape {array.shape}: expected {count} photographs first")
        for photograph, row in enumerate(array):
            yield photograph, stage, row


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("attention-maps", "numpy", "torch", "torchvision", "captum", "grad-cam"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
