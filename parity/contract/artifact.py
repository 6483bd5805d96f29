"""The artifact: everything one program computed on one job, in one file that any other can read and compare.

An .npz that NumPy and json alone can read (`numpy.load(path, allow_pickle=False)`), deterministic but for the seconds
it states, written whole or not at all:

    manifest            JSON as uint8: format, version, stages, photographs, weights, settings, versions, flags,
                        warnings, and the sha256 of every other array
    manifest_sha256     of the manifest, hexadecimal, as uint8
    pixels              uint8 (N, H, W, 3)
    <precision>/<stage> kept whole: (N, *shape); sampled: (N, kept), at `stages.places`
    norms/<precision>   float64 (stages, N, 2): L2 norm and largest magnitude over the whole array, in the manifest's
                        order of stages; NaN where the stage was not given
    floor               float64 (stages, N, 3): how far float32 is from float64, where both are given; see `Floor`
    network/<tensor>    networks under 1 MB only, canonical

A damaged, foreign, older or newer file is refused by name, and nothing in it is inflated before its size is known.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from parity.contract.architecture import Architecture
from parity.contract.files import whole as whole_file
from parity.contract.network import INPUTS, Network, WeightsError, checked
from parity.contract.stages import METHODS, PRECISIONS, SAMPLE, Stage
from parity.contract.stages import stages as all_stages

FORMAT = "attention-maps artifact"
VERSION = 1

EMBED_BYTES = 10**6
"""Networks smaller than this travel in the artifact."""

MANIFEST_BYTES = 8 * 2**20
TOTAL_BYTES = 2 * 2**30
"""Larger than any artifact that this program writes (170 photographs or so): beyond it the file is refused unread."""

HEADER_BYTES = 1024
"""An .npy header is 128 bytes as NumPy writes ours; one that is longer than this is not ours."""


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
        source, input, fingerprint, remark, architecture: as `network.Network`'s.
        tensors: of a network under 1 MB; empty otherwise.
    """

    source: str
    input: str
    fingerprint: str
    remark: str
    architecture: Architecture
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, network: Network) -> Weights:
        """What the artifact keeps of a network; a large network's tensors are not held on to."""
        small = 4 * network.architecture.parameters < EMBED_BYTES
        return cls(
            network.source,
            network.input,
            network.fingerprint,
            network.remark,
            network.architecture,
            dict(network.tensors) if small else {},
        )


@dataclass(frozen=True)
class Settings:
    """What the program was asked for.

    Attributes:
        methods: canonical names in canonical order.
        n_samples: of SmoothGrad.
        noise_level: σ as a fraction of the image's range.
        seed: of SmoothGrad's noise.
        input: the preprocessing applied, one of `network.INPUTS`.
        resize: how photographs became squares: `lab` or `torchvision`.
        pixels: who read the photographs: `keras_ref`, or `given`.
        sample: values kept of each stage that is not kept whole.
    """

    methods: tuple[str, ...] = METHODS
    n_samples: int = 20
    noise_level: float = 0.2
    seed: int = 0
    input: str = "caffe"
    resize: str = "lab"
    pixels: str = "keras_ref"
    sample: int = SAMPLE


class Floor(NamedTuple):
    """The rounding floor of one stage: its float32 run against its float64 run, per photograph, float64 (N,).

    Over the values kept. relative_l2: ‖a − b‖ / ‖b‖; max_error: max|a − b| / (max b − min b); 0/0 counts as 0, x/0 as
    infinity. pearson: of maps; NaN for other stages and where a map is constant. All NaN where a precision is missing.
    """

    relative_l2: np.ndarray
    max_error: np.ndarray
    pearson: np.ndarray


@dataclass(frozen=True, eq=False)
class Artifact:
    """See the module. Make one with `build`, `Recorder` or `Artifact.read`; every array is read-only.

    Attributes:
        program: who computed it: `keras_ref`, `torch_impl`, anybody.
        photographs: one for each row of every array.
        weights: whose maps they are.
        settings: what was asked for.
        versions: of Python, the libraries and the platform.
        flags: whatever may change rounding: TF32, oneDNN, threads, device.
        warnings: one line each, for a reader of the comparison.
        seconds: wall time of named parts; the one thing that differs between two equal runs.
        arrays: member name → array; the accessors below are the way in.
    """

    program: str
    photographs: tuple[Photograph, ...]
    weights: Weights
    settings: Settings
    versions: Mapping[str, str]
    flags: Mapping[str, str | int | bool]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read an artifact and check all of it.

        Raises:
            ArtifactError: it cannot be opened, or is damaged, foreign, older or newer.
        """
        return _read(os.fspath(path))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: as the file system says; then nothing is left at `path` that was not there before.
        """
        manifest = json.dumps(_manifest(self), ensure_ascii=False, allow_nan=False, indent=1).encode()
        members = {"manifest": manifest, "manifest_sha256": hashlib.sha256(manifest).hexdigest().encode()}
        with whole_file(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                _write_member(archive, name, np.frombuffer(data, np.uint8))
            for name, array in self.arrays.items():
                _write_member(archive, name, array)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage that the settings call for, in the order of the computation, given or not."""
        chosen = self.settings
        return all_stages(self.weights.architecture, chosen.methods, chosen.n_samples, chosen.sample)

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            ArtifactError: the settings do not call for it.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ArtifactError(f"no stage {name!r} in this artifact: it holds {', '.join(self.settings.methods)}")

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that at least one stage was given in."""
        return tuple(p for p in PRECISIONS if f"norms/{p}" in self.arrays)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (N, H, W, 3), RGB."""
        return self.arrays["pixels"]

    @property
    def classes(self) -> tuple[int, ...]:
        """The explained class of each photograph."""
        return tuple(photograph.class_index for photograph in self.photographs)

    @cached_property
    def network(self) -> Network | None:
        """The embedded network; None where it was too large to embed."""
        if not self.weights.tensors:
            return None
        w = self.weights
        return Network(w.tensors, w.architecture, w.source, w.input, w.remark)

    def has(self, stage: str, precision: str) -> bool:
        """Whether the stage was given in this precision (`pixels` has none: any will do)."""
        return _member(stage, precision) in self.arrays

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

    sampled = values

    def norm(self, stage: str, precision: str = "fp32") -> np.ndarray:
        """L2 norm over the whole array, float64 (N,)."""
        return self._norms(stage, precision)[:, 0]

    def max_abs(self, stage: str, precision: str = "fp32") -> np.ndarray:
        """Largest magnitude over the whole array, float64 (N,)."""
        return self._norms(stage, precision)[:, 1]

    def floor(self, stage: str) -> Floor:
        """The rounding floor of a stage; all NaN where the artifact has one precision only."""
        row = self.stages.index(self.stage(stage))
        table = self.arrays["floor"][row]
        return Floor(table[:, 0], table[:, 1], table[:, 2])

    def _given(self, stage: str, precision: str) -> np.ndarray:
        self.stage(stage)
        if not self.has(stage, precision):
            raise ArtifactError(f"stage {stage} was not given in {precision} by {self.program}")
        return self.arrays[_member(stage, precision)]

    def _norms(self, stage: str, precision: str) -> np.ndarray:
        self._given(stage, precision)
        return cast(np.ndarray, self.arrays[f"norms/{precision}"][self.stages.index(self.stage(stage))])


class Recorder:
    """Collects stages photograph by photograph, keeping only what an artifact keeps: memory stays small.

    Args:
        architecture: of the network.
        settings: which stages there will be.
        pixels: uint8 (N, H, W, 3).
    """

    def __init__(self, architecture: Architecture, settings: Settings, pixels: np.ndarray) -> None:
        self.stages = all_stages(architecture, settings.methods, settings.n_samples, settings.sample)
        self._by_name = {stage.name: stage for stage in self.stages}
        self._settings = settings
        self._pixels = pixels
        self._rows: dict[tuple[str, str], dict[int, tuple[np.ndarray, float, float]]] = {}

    def add(self, precision: str, photograph: int, stage: str, array: np.ndarray) -> None:
        """Record one stage of one photograph.

        Args:
            precision: one of `stages.PRECISIONS`.
            photograph: its row.
            stage: its name.
            array: the stage's shape, without a leading axis.

        Raises:
            ArtifactError: unknown stage or precision, wrong shape, recorded before, or not real numbers.
        """
        if precision not in PRECISIONS:
            raise ArtifactError(f"precision {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
        if stage not in self._by_name or stage == "pixels":
            raise ArtifactError(f"stage {stage!r} is unknown here; known: {', '.join(self._by_name)}")
        if not 0 <= photograph < len(self._pixels):
            raise ArtifactError(f"stage {stage}: photograph {photograph} of {len(self._pixels)} does not exist")
        array = np.asarray(array)
        if array.dtype.kind not in "fiu":
            raise ArtifactError(f"stage {stage} holds {array.dtype}, expected real numbers")
        rows = self._rows.setdefault((precision, stage), {})
        if photograph in rows:
            raise ArtifactError(f"stage {stage}: photograph {photograph} was recorded twice")
        try:
            kept = self._by_name[stage].take(array[None])[0]
        except ValueError as error:
            raise ArtifactError(str(error)) from None
        with np.errstate(all="ignore"):
            largest = float(np.abs(array).max(initial=0))
            # scaled by the largest, so that squares neither overflow nor vanish
            scaled = array.ravel().astype(np.float64) / largest if 0 < largest < math.inf else array.ravel()
            norm = float(np.linalg.norm(scaled)) * (largest if 0 < largest < math.inf else 1.0)
            rows[photograph] = (kept.astype(PRECISIONS[precision]), norm, largest)

    def artifact(
        self,
        *,
        program: str,
        photographs: Sequence[Photograph],
        weights: Weights,
        versions: Mapping[str, str],
        flags: Mapping[str, str | int | bool],
        warnings: Sequence[str] = (),
        seconds: Mapping[str, float] | None = None,
    ) -> Artifact:
        """Everything recorded, with the floor where float32 and float64 are both there. For arguments see `Artifact`.

        Raises:
            ArtifactError: a stage lacks a photograph, or the parts do not belong together.
        """
        n = len(self._pixels)
        arrays: dict[str, np.ndarray] = {"pixels": np.array(self._pixels, order="C")}
        norms: dict[str, np.ndarray] = {}
        for stage_index, stage in enumerate(self.stages):
            for precision in PRECISIONS:
                rows = self._rows.get((precision, stage.name))
                if rows is None:
                    continue
                if len(rows) != n:
                    missing = min(set(range(n)) - rows.keys())
                    raise ArtifactError(f"stage {stage.name} in {precision}: photograph {missing} is missing")
                shape = (n, *stage.shape) if stage.whole else (n, stage.kept)
                arrays[_member(stage.name, precision)] = np.stack([rows[i][0] for i in range(n)]).reshape(shape)
                table = norms.setdefault(f"norms/{precision}", np.full((len(self.stages), n, 2), np.nan))
                table[stage_index] = [rows[i][1:] for i in range(n)]
        arrays.update({name: norms[name] for name in (f"norms/{p}" for p in PRECISIONS) if name in norms})
        return _assembled(
            program, photographs, weights, self._settings, versions, flags, warnings, seconds or {}, arrays
        )


def build(
    stages_by_precision: Mapping[str, Mapping[str, np.ndarray]],
    *,
    pixels: np.ndarray,
    program: str,
    photographs: Sequence[Photograph],
    weights: Weights,
    settings: Settings,
    versions: Mapping[str, str],
    flags: Mapping[str, str | int | bool],
    warnings: Sequence[str] = (),
    seconds: Mapping[str, float] | None = None,
) -> Artifact:
    """Make an artifact from whole arrays, as any program can.

    Args:
        stages_by_precision: precision → stage name → (N, *shape), channels last. Any subset of the stages.
        pixels: uint8 (N, H, W, 3), RGB.
        program: see `Artifact`, as the following.
        photographs: one for each row.
        weights: `Weights.of(network)`.
        settings: whose methods, samples and sample size decide which stages there are.
        versions: free names.
        flags: free names.
        warnings: one line each.
        seconds: free names.

    Raises:
        ArtifactError: an unknown stage or precision, a wrong shape, or parts that do not belong together.
    """
    recorder = Recorder(weights.architecture, settings, pixels)
    for precision, given in stages_by_precision.items():
        for name, array in given.items():
            if len(array) != len(pixels):
                raise ArtifactError(f"stage {name} has {len(array)} photographs, pixels have {len(pixels)}")
            for photograph, row in enumerate(array):
                recorder.add(precision, photograph, name, np.asarray(row))
    return recorder.artifact(
        program=program,
        photographs=photographs,
        weights=weights,
        versions=versions,
        flags=flags,
        warnings=warnings,
        seconds=seconds,
    )


def merge(first: Artifact, second: Artifact) -> Artifact:
    """One artifact of two that did the same job in different precisions.

    Raises:
        ArtifactError: they did different jobs, or share a precision.
    """
    for what in ("program", "photographs", "weights", "settings", "versions", "flags"):
        if getattr(first, what) != getattr(second, what):
            raise ArtifactError(f"the two artifacts differ in their {what}: merge only runs of the same job")
    if not np.array_equal(first.pixels, second.pixels):
        raise ArtifactError("the two artifacts differ in their pixels: merge only runs of the same job")
    if shared := sorted(set(first.precisions) & set(second.precisions)):
        raise ArtifactError(f"both artifacts hold {', '.join(shared)}: merge only runs in different precisions")
    both = {**first.arrays, **second.arrays}
    arrays = {"pixels": first.pixels}
    for stage in first.stages:
        arrays.update({m: both[m] for m in (_member(stage.name, p) for p in PRECISIONS) if m in both})
    arrays.update({m: both[m] for m in (f"norms/{p}" for p in PRECISIONS) if m in both})
    return _assembled(
        first.program,
        first.photographs,
        first.weights,
        first.settings,
        first.versions,
        first.flags,
        list(dict.fromkeys([*first.warnings, *second.warnings])),
        {**first.seconds, **second.seconds},
        arrays,
    )


def floor_between(single: np.ndarray, double: np.ndarray, is_map: bool) -> np.ndarray:
    """float32 against float64, both (N, values): float64 (N, 3), the columns of `Floor`."""
    rows = []
    with np.errstate(all="ignore"):
        for a, b in zip(single.astype(np.float64), double.astype(np.float64), strict=True):
            error, spread = a - b, float(b.max(initial=-math.inf) - b.min(initial=math.inf))
            pearson = math.nan
            if is_map and a.max() > a.min() and b.max() > b.min():  # the std of a constant need not be 0
                pearson = float(np.mean((a - a.mean()) / a.std() * ((b - b.mean()) / b.std())))
            largest = float(np.abs(error).max(initial=0))
            l2 = _ratio(float(np.linalg.norm(error)), float(np.linalg.norm(b)))
            rows.append((l2, _ratio(largest, spread if b.size > 1 else float(np.abs(b).max(initial=0))), pearson))
    return np.array(rows, np.float64).reshape(len(single), 3)


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale != 0 else math.inf


def _member(stage: str, precision: str) -> str:
    return stage if stage == "pixels" else f"{precision}/{stage}"


def _assembled(
    program: str,
    photographs: Sequence[Photograph],
    weights: Weights,
    settings: Settings,
    versions: Mapping[str, str],
    flags: Mapping[str, str | int | bool],
    warnings: Sequence[str],
    seconds: Mapping[str, float],
    arrays: dict[str, np.ndarray],
) -> Artifact:
    """Add floor and embedded network, check that the parts belong together, and freeze the arrays."""
    pixels = arrays["pixels"]
    size = weights.architecture.size
    if pixels.dtype != np.uint8 or pixels.shape != (len(photographs), size, size, 3) or not len(photographs):
        raise ArtifactError(
            f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 {(len(photographs), size, size, 3)}, at least 1"
        )
    for photograph in photographs:
        if not 0 <= photograph.class_index < weights.architecture.classes:
            raise ArtifactError(f"photograph {photograph.name!r}: class {photograph.class_index} does not exist")
    chosen = all_stages(weights.architecture, settings.methods, settings.n_samples, settings.sample)
    floor = np.full((len(chosen), len(photographs), 3), np.nan)
    for row, stage in enumerate(chosen):
        pair = [arrays.get(_member(stage.name, p)) for p in ("fp32", "fp64")]
        if stage.name != "pixels" and pair[0] is not None and pair[1] is not None:
            n = len(photographs)
            floor[row] = floor_between(pair[0].reshape(n, -1), pair[1].reshape(n, -1), stage.is_map)
    arrays["floor"] = floor
    arrays.update({f"network/{name}": np.asarray(a, "<f4") for name, a in weights.tensors.items()})
    return Artifact(
        program,
        tuple(photographs),
        weights,
        settings,
        dict(versions),
        dict(flags),
        tuple(warnings),
        dict(seconds),
        {name: _frozen(array) for name, array in arrays.items()},
    )


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray turns () into (1,)
    array.flags.writeable = False
    return array


def _manifest(artifact: Artifact) -> dict[str, Any]:
    given = {
        stage.name: [p for p in PRECISIONS if stage.name != "pixels" and artifact.has(stage.name, p)]
        for stage in artifact.stages
    }
    weights = artifact.weights
    return {
        "format": FORMAT,
        "version": VERSION,
        "program": artifact.program,
        "photographs": [asdict(photograph) for photograph in artifact.photographs],
        "weights": {
            "source": weights.source,
            "input": weights.input,
            "fingerprint": weights.fingerprint,
            "remark": weights.remark,
            "architecture": asdict(weights.architecture),
            "embedded": bool(weights.tensors),
        },
        "settings": asdict(artifact.settings),
        "versions": dict(artifact.versions),
        "flags": dict(artifact.flags),
        "warnings": list(artifact.warnings),
        "seconds": dict(artifact.seconds),
        "stages": [
            {
                "name": stage.name,
                "shape": list(stage.shape),
                "kind": "whole" if stage.whole else "sampled",
                "kept": stage.kept,
                "precisions": given[stage.name],
            }
            for stage in artifact.stages
        ],
        "arrays": {
            name: {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": _digest(array)}
            for name, array in artifact.arrays.items()
        },
    }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # a clock would make equal runs differ
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    archive.writestr(info, buffer.getvalue())


_AGAIN = "get the file again, or write it again"


def _read(path: str) -> Artifact:
    where = f"artifact {path!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            return _parsed(archive, where)
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"{where}: {error.strerror or 'cannot be read'}: check the path") from None
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{where}: not a whole .npz file ({_line(error)}): {_AGAIN}") from None
    except Exception as error:  # damage makes zipfile, zlib, json and numpy raise a dozen kinds; all mean the same
        raise ArtifactError(f"{where}: damaged ({type(error).__name__}: {_line(error)}): {_AGAIN}") from None


def _parsed(archive: zipfile.ZipFile, where: str) -> Artifact:
    members = archive.infolist()
    names = [info.filename.removesuffix(".npy") for info in members]
    if "manifest" not in names:
        raise ArtifactError(f"{where}: not an artifact, it has no manifest: make one with python -m keras_ref")
    if len(set(names)) != len(names):
        raise ArtifactError(f"{where}: damaged, a member occurs twice: {_AGAIN}")
    by_name = dict(zip(names, members, strict=True))
    total = sum(info.file_size for info in members)
    if total > TOTAL_BYTES:
        raise ArtifactError(f"{where}: claims to inflate to {total} bytes, more than any artifact: do not trust it")

    raw = _member_bytes(archive, by_name["manifest"], where, MANIFEST_BYTES)
    manifest = json.loads(raw.decode())
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{where}: not an artifact, its manifest is another program's: make one with python -m keras_ref"
        )
    if manifest.get("version") != VERSION:
        age = "newer" if isinstance(manifest.get("version"), int) and manifest["version"] > VERSION else "older"
        advice = "update attention-maps" if age == "newer" else "write it again with this version"
        raise ArtifactError(
            f"{where}: written in the {age} version {manifest.get('version')!r} of the format, "
            f"this program reads version {VERSION}: {advice}"
        )
    if "manifest_sha256" not in by_name:
        raise ArtifactError(f"{where}: damaged, member manifest_sha256 is missing: {_AGAIN}")
    stated = _member_bytes(archive, by_name["manifest_sha256"], where, 64)
    if stated != hashlib.sha256(raw).hexdigest().encode():
        raise ArtifactError(f"{where}: damaged, the manifest does not match its sha256: {_AGAIN}")

    described = _described(manifest)
    expected = _expected(manifest, described)
    known = expected.keys() | {"manifest", "manifest_sha256"}
    for name in sorted(known - by_name.keys()):
        raise ArtifactError(f"{where}: damaged, array {name} is missing: {_AGAIN}")
    for name in sorted(by_name.keys() - known):
        raise ArtifactError(f"{where}: member {name!r} does not belong to an artifact: {_AGAIN}")
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in expected.items():
        entry = manifest["arrays"][name]
        if (entry["dtype"], tuple(entry["shape"])) != (dtype, shape):
            raise ArtifactError(f"{where}: array {name} is not described as {dtype} {shape}: {_AGAIN}")
        arrays[name] = _member_array(archive, by_name[name], where, dtype, shape)
        if _digest(arrays[name]) != entry["sha256"]:
            raise ArtifactError(f"{where}: damaged, array {name} does not match its sha256: {_AGAIN}")
    return _complete(described, arrays, where)


def _described(manifest: dict[str, Any]) -> Artifact:
    """The manifest's records, checked, without arrays.

    Raises:
        KeyError, TypeError, ValueError: as they come; the caller says which file is damaged.
    """
    w, s = manifest["weights"], manifest["settings"]
    a = w["architecture"]
    architecture = Architecture(
        blocks=tuple(tuple(_count(n) for n in block) for block in a["blocks"]),
        dense=(_count(a["dense"][0]), _count(a["dense"][1])),
        classes=_count(a["classes"]),
        size=_count(a["size"]),
    )
    settings = Settings(
        methods=tuple(_text(m) for m in s["methods"]),
        n_samples=_count(s["n_samples"], least=0),
        noise_level=float(s["noise_level"]),
        seed=_count(s["seed"], least=0),
        input=_text(s["input"]),
        resize=_text(s["resize"]),
        pixels=_text(s["pixels"]),
        sample=_count(s["sample"]),
    )
    if any(m not in METHODS for m in settings.methods) or settings.input not in INPUTS or w["input"] not in INPUTS:
        raise ValueError("unknown method or preprocessing")
    photographs = tuple(
        Photograph(
            _text(p["name"]),
            _text(p["sha256"]),
            (_count(p["size"][0]), _count(p["size"][1])),
            _count(p["class_index"], least=0),
            _text(p["label"]),
        )
        for p in manifest["photographs"]
    )
    if not photographs:
        raise ValueError("no photographs")
    return Artifact(
        _text(manifest["program"]),
        photographs,
        Weights(_text(w["source"]), _text(w["input"]), _text(w["fingerprint"]), _text(w["remark"]), architecture),
        settings,
        {_text(k): _text(v) for k, v in manifest["versions"].items()},
        {_text(k): _flag(v) for k, v in manifest["flags"].items()},
        tuple(_text(line) for line in manifest["warnings"]),
        {_text(k): float(v) for k, v in manifest["seconds"].items()},
        {},
    )


def _expected(manifest: dict[str, Any], described: Artifact) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Member name → (dtype, shape) that must be there: from the settings, not from what arrays say of themselves."""
    n, size = len(described.photographs), described.weights.architecture.size
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"pixels": ("|u1", (n, size, size, 3))}
    used: set[str] = set()
    listed = manifest["stages"]
    if [entry["name"] for entry in listed] != [stage.name for stage in described.stages]:
        raise ValueError("its stages are not those that its settings call for")
    for entry, stage in zip(listed, described.stages, strict=True):
        if (tuple(entry["shape"]), entry["kept"]) != (stage.shape, stage.kept):
            raise ValueError(f"stage {stage.name} is not described as {stage.shape}")
        for precision in entry["precisions"]:
            used.add(precision)
            shape = (n, *stage.shape) if stage.whole else (n, stage.kept)
            expected[_member(stage.name, precision)] = (PRECISIONS[precision], shape)
    for precision in PRECISIONS:
        if precision in used:
            expected[f"norms/{precision}"] = ("<f8", (len(listed), n, 2))
    expected["floor"] = ("<f8", (len(listed), n, 3))
    if manifest["weights"]["embedded"]:
        shapes = described.weights.architecture.tensor_shapes
        expected.update({f"network/{name}": ("<f4", shape) for name, shape in shapes.items()})
    return expected


def _complete(described: Artifact, arrays: dict[str, np.ndarray], where: str) -> Artifact:
    weights = described.weights
    tensors = {n.removeprefix("network/"): array for n, array in arrays.items() if n.startswith("network/")}
    if tensors:
        try:
            found = checked(tensors, source=weights.source, input=weights.input, remark=weights.remark).fingerprint
        except WeightsError as error:
            raise ArtifactError(f"{where}: its embedded network is damaged ({_line(error)}): {_AGAIN}") from None
        if found != weights.fingerprint:
            raise ArtifactError(f"{where}: its embedded network is not the one of its fingerprint: {_AGAIN}")
    complete = Weights(
        weights.source, weights.input, weights.fingerprint, weights.remark, weights.architecture, tensors
    )
    for photograph in described.photographs:
        if photograph.class_index >= weights.architecture.classes:
            raise ArtifactError(f"{where}: class {photograph.class_index} does not exist: {_AGAIN}")
    return Artifact(
        described.program,
        described.photographs,
        complete,
        described.settings,
        described.versions,
        described.flags,
        described.warnings,
        described.seconds,
        arrays,
    )


def _member_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, most: int) -> bytes:
    """A uint8 array's bytes, never inflating more than `most`."""
    name = info.filename.removesuffix(".npy")
    length = info.file_size
    if not 0 < length <= most + HEADER_BYTES:
        raise ArtifactError(f"{where}: member {name} claims {length} bytes, more than it may have: {_AGAIN}")
    with archive.open(info) as file:
        data = file.read(length + 1)
    header = io.BytesIO(data[:HEADER_BYTES])
    shape, _, dtype = _header(header)
    if dtype != np.uint8 or len(shape) != 1 or len(data) - header.tell() != shape[0]:
        raise ArtifactError(f"{where}: damaged, member {name} is not a row of bytes: {_AGAIN}")
    return data[header.tell() :]


def _member_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    """An array of just this type and shape, never inflating more than it takes."""
    name = info.filename.removesuffix(".npy")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size < info.file_size <= size + HEADER_BYTES:
        raise ArtifactError(f"{where}: array {name} has {info.file_size} bytes, expected {dtype} {shape}: {_AGAIN}")
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    header = io.BytesIO(data[:HEADER_BYTES])
    found, fortran, kind = _header(header)
    if found != shape or kind.str != dtype or (fortran and len(shape) > 1) or len(data) - header.tell() != size:
        raise ArtifactError(f"{where}: array {name} is {kind} {found}, expected {dtype} {shape}: {_AGAIN}")
    return np.frombuffer(data, dtype, offset=header.tell()).reshape(shape)  # over bytes: read-only as it is


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, fortran order, dtype) of an .npy; an object type is seen here, and never unpickled."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an .npy version that artifacts do not use")
    return np.lib.format.read_array_header_1_0(file)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _flag(value: object) -> str | int | bool:
    if not isinstance(value, str | int):  # bool is an int
        raise TypeError(f"{value!r} is not a flag")
    return value


def _count(value: object, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:
        raise TypeError(f"{value!r} is not a number from {least}")
    return value


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
