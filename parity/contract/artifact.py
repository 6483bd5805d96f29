"""The artifact: everything one program computed on one job, in one file that any other can read and compare.

A safetensors file, whatever it is called (version 2 of the format):

    metadata   format, version; `manifest`: JSON with photographs, weights and their fingerprints, the layer table,
               settings, the list of stages, versions, flags, warnings, seconds, moves; `sha256`: one checksum over the manifest and every array
    pixels     uint8 (N, H, W, 3)
    <precision>/<stage>   kept whole: (N, *shape); sampled: (N, kept), at `Stage.places`
    undecided  uint8 (N, H, W), 1 where the score has no one gradient; of networks that are not known by name
    network/<tensor>      of networks under 1 MB, canonical

Written whole or not at all. A damaged, foreign, older or newer file is refused in one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import safetensors

from parity.contract.files import save_tensors
from parity.contract.fingerprints import Fingerprint
from parity.contract.layers import LayerTable
from parity.contract.methods import DEFAULT, METHODS, Options
from parity.contract.network import Network
from parity.contract.stages import PRECISIONS, SAMPLE, Stage
from parity.contract.text import one_line

FORMAT = "attention-maps artifact"
VERSION = "2"

EMBED_BYTES = 10**6
"""Networks smaller than this travel in the artifact."""


class ArtifactError(ValueError):
    """An artifact that cannot be read, built or used; one line: where, what, what to do."""


@dataclass(frozen=True)
class Photograph:
    """What was looked at.

    Attributes:
        name: the file's name without its folders.
        sha256: of the file's bytes; of its pixels, where there was no file.
        size: (width, height) of the file's picture, before any resize.
        class_index: whose score is explained.
        label: of that class.
    """

    name: str
    sha256: str
    size: tuple[int, int]
    class_index: int
    label: str


@dataclass(frozen=True)
class Weights:
    """Whose maps they are.

    Attributes:
        source, input, fingerprint, remark, table: as `network.Network`'s.
        tensors: of a network under 1 MB; empty otherwise.
        prints: canonical name → by what the tensor is known in another program; none of a network that is known by name.
    """

    source: str
    input: str
    fingerprint: str
    remark: str
    table: LayerTable
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    prints: Mapping[str, Fingerprint] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, network: Network) -> Weights:
        """What the artifact keeps of a network; a large network's tensors are not held on to."""
        small = 4 * network.table.parameters < EMBED_BYTES
        tensors = dict(network.tensors) if small else {}
        return cls(network.source, network.input, network.fingerprint, network.remark, network.table, tensors)


@dataclass(frozen=True)
class JobSettings:
    """What the program was asked for.

    Attributes:
        methods: names of `methods.METHODS`, in its order.
        options: SmoothGrad's samples, noise level and seed.
        input: the preprocessing applied: one of `network.INPUTS`; for other networks also `tf`, `none`, or `own`: a
            function of the user's, and then the inputs are kept whole.
        labels: of the classes, where the user gave them.
        scale, offset: what the network's own first layers (Rescaling, Normalization) make of each preprocessed channel:
            inputs = scale · preprocessed + offset; empty: nothing.
        resize: how photographs became squares: `lab` or `torchvision`.
        pixels: who read the photographs: `keras_ref`, or `given`.
        sample: values kept of each stage that is not kept whole.
    """

    methods: tuple[str, ...] = DEFAULT
    options: Options = field(default_factory=Options)
    input: str = "caffe"
    labels: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    resize: str = "lab"
    pixels: str = "keras_ref"
    sample: int = SAMPLE


@dataclass(frozen=True, eq=False)
class Artifact:
    """See the module. Make one with a `recorder.Recorder` or `Artifact.read`; every array is read-only.

    Attributes:
        program: who computed it: `keras_ref`, `torch_impl`, anybody.
        photographs: one for each row of every array.
        weights: whose maps they are.
        settings: what was asked for.
        stages: every stage that the settings call for, in the order of the computation.
        arrays: name in the file → array; the methods below are the way in.
        versions: of Python, the libraries and the platform.
        flags: whatever may change rounding: TF32, oneDNN, threads, device.
        warnings: one line each, for a reader of the comparison.
        seconds: wall time of named parts; the one thing that differs between two equal runs.
        moves: stage → how far the reference's own float64 is off or moves there, of the stage's range: see `criterion`.
        draws: stage → how far gradients and maps of the reference's own float32 move with inputs that are moved by 1e-5, relative
            L2, the worst of several: ReLUs and max-pools flip there, and may in another program.
    """

    program: str
    photographs: tuple[Photograph, ...]
    weights: Weights
    settings: JobSettings
    stages: tuple[Stage, ...]
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    versions: Mapping[str, str]
    flags: Mapping[str, str | int | bool]
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    moves: Mapping[str, float] = field(default_factory=dict, repr=False)
    draws: Mapping[str, float] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read an artifact and check all of it.

        Raises:
            ArtifactError: it cannot be opened, or is damaged, foreign, older or newer.
        """
        where = f"artifact {os.fspath(path)!r}"
        manifest, arrays = _contents(path, where)
        try:
            return _parsed(manifest, arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{where}: not as this program writes it ({one_line(error)}): write it again") from None

    @classmethod
    def of(cls, artifact: Artifact | str | os.PathLike[str]) -> Artifact:
        """An artifact as it is, or the one at a path; errors as of `read`."""
        return artifact if isinstance(artifact, Artifact) else cls.read(artifact)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: as the file system says; then nothing is left at `path` that was not there before.
        """
        manifest = json.dumps(_manifest(self), ensure_ascii=False, allow_nan=False)
        checksum = _checksum(manifest, self.arrays)
        metadata = {"format": FORMAT, "version": VERSION, "manifest": manifest, "sha256": checksum}
        save_tensors(self.arrays, path, metadata)

    @property
    def table(self) -> LayerTable:
        """The network's layers."""
        return self.weights.table

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB."""
        return self.arrays["pixels"]

    @property
    def undecided(self) -> np.ndarray | None:
        """Pixels where the score has no one gradient, bool (N, H, W); None where that was not looked for."""
        return self.arrays["undecided"].astype(bool) if "undecided" in self.arrays else None

    @property
    def classes(self) -> tuple[int, ...]:
        """The explained class of each photograph."""
        return tuple(photograph.class_index for photograph in self.photographs)

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that at least one stage was given in."""
        return tuple(p for p in PRECISIONS if any(name.startswith(f"{p}/") for name in self.arrays))

    @cached_property
    def network(self) -> Network | None:
        """The embedded network; None where it was too large to embed."""
        w = self.weights
        return Network(w.tensors, w.table, w.source, w.input, w.remark) if w.tensors else None

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            ArtifactError: the settings do not call for it.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ArtifactError(f"no stage {name!r} in this artifact: it holds {', '.join(self.settings.methods)}")

    def has(self, stage: str, precision: str) -> bool:
        """Whether the stage was given in this precision (`pixels` has none: any will do)."""
        return array_name(stage, precision) in self.arrays

    def whole(self, stage: str, precision: str = "fp32") -> np.ndarray:
        """A stage that is kept whole: (N, *shape), float32 (float64 for fp64), uint8 for `pixels`.

        Raises:
            ArtifactError: not given, or sampled.
        """
        if not self.stage(stage).whole:
            raise ArtifactError(f"stage {stage} is sampled, not whole: use values()")
        return self._given(stage, precision)

    def values(self, stage: str, precision: str = "fp32") -> np.ndarray:
        """The values kept of any stage, flattened: (N, kept). `stage(name).take(array)` picks the same of an array.

        Raises:
            ArtifactError: not given.
        """
        array = self._given(stage, precision)
        return array.reshape(array.shape[0], -1)

    def _given(self, stage: str, precision: str) -> np.ndarray:
        self.stage(stage)
        if not self.has(stage, precision):
            raise ArtifactError(f"stage {stage} was not given in {precision} by {self.program}")
        return self.arrays[array_name(stage, precision)]


def array_name(stage: str, precision: str) -> str:
    """The name of a stage's array in the file."""
    return stage if stage == "pixels" else f"{precision}/{stage}"


def array_shape(stage: Stage, count: int) -> tuple[int, ...]:
    """The shape of a stage's array for so many photographs."""
    return (count, *stage.shape) if stage.whole else (count, stage.kept)


def frozen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays, read-only."""
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _checksum(manifest: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


SAID = ("program", "versions", "flags", "warnings", "seconds", "moves", "draws")
"""What the manifest has of an artifact as it is."""


def _manifest(artifact: Artifact) -> dict[str, Any]:
    w = artifact.weights
    return {
        **{name: getattr(artifact, name) for name in SAID},
        "photographs": [asdict(photograph) for photograph in artifact.photographs],
        "weights": {"source": w.source, "input": w.input, "fingerprint": w.fingerprint, "remark": w.remark},
        "prints": {name: asdict(print_) for name, print_ in w.prints.items()},
        "table": asdict(w.table),
        "settings": asdict(artifact.settings),
        "stages": [asdict(stage) for stage in artifact.stages],
    }


def _contents(path: str | os.PathLike[str], where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and arrays, once their checksum is right."""
    try:
        with open(path, "rb"):  # whose words are better than safetensors'
            pass
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            ours = metadata.get("format") == FORMAT and metadata.get("version") == VERSION
            arrays = {name: file.get_tensor(name) for name in file.keys()} if ours else {}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise ArtifactError(f"{where}: {error.strerror or 'cannot be read'}: check the path") from None
    except safetensors.SafetensorError as error:
        if zipfile.is_zipfile(path):  # version 1 was an .npz
            raise ArtifactError(
                f"{where}: an .npz, as version 1 of the format was; this program reads version {VERSION}: "
                "write it again with python -m keras_ref"
            ) from None
        raise ArtifactError(f"{where}: damaged, or not an artifact ({one_line(error)}): get it again") from None
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"{where}: another program's file: make an artifact with python -m keras_ref")
    if not ours:
        version = one_line(metadata.get("version", "?"))
        raise ArtifactError(f"{where}: version {version} of the format, this program reads {VERSION}: update it")
    if metadata.get("sha256") != _checksum(metadata.get("manifest", ""), arrays):
        raise ArtifactError(f"{where}: damaged, its contents do not match their sha256: get it again")
    return json.loads(metadata["manifest"]), frozen(arrays)


def _parsed(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> Artifact:
    """The artifact of a manifest.

    Raises:
        KeyError, TypeError, ValueError: it is not as this program writes it.
    """
    w, s = manifest["weights"], manifest["settings"]
    tensors = {n.removeprefix("network/"): array for n, array in arrays.items() if n.startswith("network/")}
    table = LayerTable.from_json(manifest["table"])
    tensors = {name: tensors[name] for name in table.tensors if tensors}  # in the order of the computation
    if unknown := set(s["methods"]) - METHODS.keys():
        raise ValueError(f"maps that this version does not know: {', '.join(sorted(unknown))}")
    lists = {name: tuple(s.get(name, ())) for name in ("methods", "labels", "scale", "offset")}
    settings = JobSettings(**{**s, **lists, "options": Options(**s["options"])})
    prints = {
        n: Fingerprint(p["size"], tuple(p["sorted"]), p["projection"]) for n, p in manifest.get("prints", {}).items()
    }
    said = {name: manifest[name] for name in SAID if name in manifest}  # the first files say nothing of some
    artifact = Artifact(
        photographs=tuple(Photograph(**{**row, "size": tuple(row["size"])}) for row in manifest["photographs"]),
        weights=Weights(w["source"], w["input"], w["fingerprint"], w["remark"], table, tensors, prints),
        settings=settings,
        stages=tuple(Stage(**{**row, "shape": tuple(row["shape"])}) for row in manifest["stages"]),
        arrays=arrays,
        **{**said, "warnings": tuple(manifest["warnings"])},
    )
    check_parts(artifact)
    return artifact


def check_parts(artifact: Artifact) -> None:
    """Whether photographs, pixels, classes and arrays belong together.

    Raises:
        ArtifactError: names the first that does not.
    """
    count, pixels = len(artifact.photographs), artifact.arrays["pixels"]
    expected = (count, *artifact.table.size, 3)
    if pixels.dtype != np.uint8 or pixels.shape != expected or not count:
        raise ArtifactError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 {expected}, at least 1")
    undecided = artifact.arrays.get("undecided")
    if undecided is not None and (undecided.dtype != np.uint8 or undecided.shape != pixels.shape[:3]):
        raise ArtifactError(
            f"undecided pixels are {undecided.dtype} {undecided.shape}, expected uint8 {pixels.shape[:3]}"
        )
    for photograph in artifact.photographs:
        if not 0 <= photograph.class_index < max(2, artifact.table.classes):  # one output stands for two
            raise ArtifactError(f"photograph {photograph.name!r}: class {photograph.class_index} does not exist")
    for stage in artifact.stages:
        for precision, dtype in PRECISIONS.items():
            array = artifact.arrays.get(f"{precision}/{stage.name}")
            if array is not None and (array.dtype != dtype or array.shape != array_shape(stage, count)):
                raise ArtifactError(f"stage {stage.name} in {precision} is {array.dtype} {array.shape}")
