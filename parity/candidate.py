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

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from parity.contract import network as networks
from parity.contract.artifact import Artifact, ArtifactError, JobSettings, Photograph, Weights
from parity.contract.layers import Layer, LayerTable
from parity.contract.lookup import LookupFailedError, lookup
from parity.contract.methods import Options
from parity.contract.network import Network
from parity.contract.noise import unit_noise
from parity.contract.recorder import Recorder
from parity.contract.stages import Stage
from parity.contract.versions import versions

Stages = Mapping[str, np.ndarray] | Iterable[tuple[int, str, np.ndarray]]
Candidate = Callable[["Job"], Stages]

CAUSE = "cause of "
"""Begins the flag that says why a stage is off, where whoever computed it could find that out."""

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
        options: of SmoothGrad.
        precision: `fp64`, `fp32`, `tf32`, `fp16`, `bf16`.
        device: `cpu`, `cuda`, `cuda:1`, `auto`.
    """

    pixels: np.ndarray = field(repr=False)
    classes: tuple[int, ...]
    network: Network
    input: str
    methods: tuple[str, ...]
    options: Options = field(default_factory=Options)
    precision: str = "fp32"
    device: str = "auto"

    @property
    def table(self) -> LayerTable:
        """The network's layers, its target layer, and torchvision's modules beside them."""
        return self.network.table

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The same layers, in the order of the computation, by the reference's names."""
        return self.network.table.layers

    @property
    def n_samples(self) -> int:
        """SmoothGrad's noisy copies."""
        return self.options.n_samples

    @property
    def noise_level(self) -> float:
        """SmoothGrad's σ, a fraction of each image's range."""
        return self.options.noise_level

    @property
    def seed(self) -> int:
        """Of SmoothGrad's noise."""
        return self.options.seed

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
        return unit_noise(self.seed, self.n_samples, self.table.input_shape)


def job_of(reference: Artifact, network: Network, *, precision: str, device: str, methods: Sequence[str] = ()) -> Job:
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
    settings, wanted = reference.settings, methods_of(reference, methods)
    return Job(
        reference.pixels, reference.classes, network, settings.input, wanted, settings.options, precision, device
    )


def methods_of(reference: Artifact, wanted: Sequence[str]) -> tuple[str, ...]:
    """Some of a reference's methods; none wanted: all.

    Raises:
        CandidateError: it does not hold one of them.
    """
    held = reference.settings.methods
    if missing := [method for method in wanted if method not in held]:
        raise CandidateError(f"the reference artifact does not hold {', '.join(missing)}: it holds {', '.join(held)}")
    return tuple(wanted) or held


def load(name: str) -> Candidate:
    """Find a candidate by `module:function`; the current folder is searched too.

    Raises:
        CandidateError: no such module or function.
    """
    try:
        return lookup(name, "candidate")
    except LookupFailedError as error:
        raise CandidateError(str(error)) from error


def record(candidate: Candidate, job: Job, photographs: tuple[Photograph, ...], settings: JobSettings) -> Artifact:
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
    return recorded(
        Recorder(Weights.of(job.network), replace(settings, methods=job.methods), job.pixels),
        photographs,
        _triples(candidate, job),
        _of_another_size,
        program=f"{getattr(candidate, '__module__', '?')}:{getattr(candidate, '__qualname__', '?')}",
        precision=job.precision,
        device=job.device,
    )


def recorded(
    recorder: Recorder,
    photographs: tuple[Photograph, ...],
    triples: Iterable[tuple[int, str, np.ndarray]],
    differs: Callable[[tuple[int, ...], Stage], bool],
    *,
    program: str,
    precision: str,
    device: str,
) -> Artifact:
    """The artifact of what a candidate gives.

    Args:
        recorder: of the job, empty.
        photographs: as the reference names them.
        triples: (photograph, stage, array), computed one after the other.
        differs: whether an array's shape, (shape, stage), is another than the stage's, and a difference, not a mistake.
        program: who gives it.
        precision: in which it computes.
        device: on which.

    Raises:
        CandidateError: see `record`.
    """
    started = time.perf_counter()
    known = {stage.name: stage for stage in recorder.stages}
    flags: dict[str, str | int | bool] = {"device": device, "precision": precision}
    given: Counter[str] = Counter()
    try:
        for photograph, name, array in triples:
            array = np.asarray(array)
            if name in known and differs(array.shape, known[name]):
                flags[f"{SHAPE}{name}"] = "×".join(map(str, array.shape))
                array = np.full(known[name].shape, np.nan)
            recorder.add(precision, photograph, name, array)
            given[name] += 1
        for stage in recorder.stages:
            if stage.quantity == "raw" and given[stage.name] < len(photographs):
                raise CandidateError(f"the candidate gave no {stage.name} for every photograph: raw maps are required")
        return recorder.artifact(
            photographs,
            program=program,
            versions=versions("attention-maps", "numpy", "torch", "torchvision", "captum", "grad-cam"),
            flags=flags,
            seconds={precision: time.perf_counter() - started},
        )
    except ArtifactError as error:
        raise CandidateError(f"the candidate's answer cannot be used: {error}") from None


def _of_another_size(given: tuple[int, ...], stage: Stage) -> bool:
    """A layer or map of another height and width (channels last as it should be), or a map's own numbers of another count.

    That is a difference, not a mistaken answer.
    """
    if len(given) != len(stage.shape) or given == stage.shape or not min(given, default=0):
        return False
    return (len(given) in (2, 3) and given[2:] == stage.shape[2:]) or (len(given) == 1 and bool(stage.method))


def _triples(candidate: Candidate, job: Job) -> Iterator[tuple[int, str, np.ndarray]]:
    """A candidate's answer of either kind as (photograph, stage, array)."""
    answer, count = candidate(job), len(job.pixels)
    if isinstance(answer, Mapping):
        for stage, array in answer.items():
            array = np.asarray(array)
            if array.ndim == 0 or len(array) != count:
                raise CandidateError(f"stage {stage} has shape {array.shape}: expected {count} photographs first")
            yield from ((photograph, stage, row) for photograph, row in enumerate(array))
        return
    for triple in answer if isinstance(answer, Iterable) else [answer]:
        if not isinstance(triple, tuple) or len(triple) != 3:
            raise CandidateError(
                f"the candidate's answer is neither a mapping nor triples but {type(answer).__name__}: "
                "give {stage: array}, or (photograph, stage, array) one by one"
            )
        yield triple
