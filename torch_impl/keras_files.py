"""Keras's weight files ↔ canonical tensors: the permutations, and HDF5 without Keras.

Two layouts live in HDF5 files. The legacy one (`vgg16_weights_tf_dim_ordering_tf_kernels.h5`, and `model_weights` in a
whole-model `.h5`) names layers: attribute `layer_names`, in each layer's group attribute `weight_names`. Keras 3's
(`.weights.h5`, and inside `.keras`) counts classes: `layers/conv2d_3/vars/0`.
"""

from __future__ import annotations

import math
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from parity.contract.architecture import VGG16, Architecture
from parity.contract.network import WeightsError

if TYPE_CHECKING:
    import h5py

LARGEST = 4 * VGG16.parameters
"""Weights that a file may declare: room for wider heads and larger inputs, none for a bomb."""

LARGEST_MEMBER = 16 * LARGEST
"""Bytes of the weights inside a `.keras` archive: float32, and Adam's two moments beside them."""

OBJECTS = 10_000
"""Groups and datasets that an HDF5 file may hold (a compiled VGG16 has 300), to any depth up to `DEPTH`."""

DEPTH = 12

TABLE = tuple(layer.keras for layer in VGG16.layers if layer.kind in ("conv", "dense"))
"""Keras's names of the layers that have weights, in order."""

_H5PY_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""What h5py raises for a damaged file, depending on where the damage is."""

_CONVOLUTIONS = sum(map(len, VGG16.blocks))


# The permutations, each with its inverse.


def conv_kernel(kernel: np.ndarray) -> np.ndarray:
    """Keras (kh, kw, in, out) → torch (out, in, kh, kw): both correlate without flipping, so only the axes move."""
    return _copy(kernel.transpose(3, 2, 0, 1))


def keras_conv_kernel(weight: np.ndarray) -> np.ndarray:
    """Torch (out, in, kh, kw) → Keras (kh, kw, in, out)."""
    return _copy(weight.transpose(2, 3, 1, 0))


def dense_kernel(kernel: np.ndarray) -> np.ndarray:
    """Keras (in, out) → torch (out, in): Keras computes x·W, torch x·Wᵀ."""
    return _copy(kernel.T)


def keras_dense_kernel(weight: np.ndarray) -> np.ndarray:
    """Torch (out, in) → Keras (in, out)."""
    return _copy(weight.T)


def dense_after_flatten(kernel: np.ndarray, chw: tuple[int, int, int]) -> np.ndarray:
    """Keras (h·w·c, out) → torch (out, c·h·w): the two flatten in different orders.

    Args:
        kernel: of the first dense layer.
        chw: channels, height and width of what is flattened.
    """
    c, h, w = chw
    return _copy(kernel.reshape(h, w, c, -1).transpose(3, 2, 0, 1)).reshape(-1, c * h * w)


def keras_dense_after_flatten(weight: np.ndarray, chw: tuple[int, int, int]) -> np.ndarray:
    """Torch (out, c·h·w) → Keras (h·w·c, out)."""
    c, h, w = chw
    return _copy(weight.reshape(-1, c, h, w).transpose(2, 3, 1, 0)).reshape(h * w * c, -1)


def _copy(view: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(view)


def to_keras(name: str, array: np.ndarray, architecture: Architecture) -> np.ndarray:
    """A canonical tensor as Keras keeps it."""
    if array.ndim == 4:
        return keras_conv_kernel(array)
    if array.ndim == 2 and name == "classifier.0.weight":
        return keras_dense_after_flatten(array, architecture.flatten_chw)
    return keras_dense_kernel(array) if array.ndim == 2 else array


# Reading.


@dataclass(frozen=True)
class Stored:
    """A tensor that a file holds, not read yet.

    Attributes:
        name: in the file, for messages.
        layer: the layer of `TABLE` that the file says it belongs to, or "".
        shape: as stored.
        read: gives the array.
        kind: what else must be equal among layers whose order is known; "" where the file keeps them in order.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    kind: str = ""


def canonical(stored: Sequence[Stored]) -> dict[str, np.ndarray]:
    """The canonical tensors of a Keras VGG16.

    Args:
        stored: kernel, bias, kernel, bias, …; by name where every layer's name is VGG16's, otherwise in the order of
            the layers, as Keras itself loads them.

    Raises:
        WeightsError: it is not a VGG16; names the first difference.
    """
    pairs: list[tuple[Stored, Stored]] = []
    for first, second in zip(stored[::2], stored[1::2], strict=False):
        kernel, bias = sorted((first, second), key=lambda tensor: -len(tensor.shape))
        if first.layer != second.layer:
            raise WeightsError(f"not a VGG16: {first.name} {first.shape} stands alone, without its kernel or bias")
        if len(kernel.shape) not in (2, 4) or len(bias.shape) != 1:
            raise WeightsError(f"not a VGG16: {first.name} {first.shape} and {second.name} {second.shape} are no layer")
        pairs.append((kernel, bias))
    if len(stored) % 2:
        raise WeightsError(f"not a VGG16: {stored[-1].name} {stored[-1].shape} is left over")
    layers = _by_name(pairs) or _by_order(pairs)
    architecture = _architecture(layers)
    tensors: dict[str, np.ndarray] = {}
    for row in architecture.layers:
        if row.keras not in layers:
            continue
        kernel, bias = layers[row.keras]
        for tensor, canonical_name in ((kernel, f"{row.torch}.weight"), (bias, f"{row.torch}.bias")):
            expected = _keras_shape(canonical_name, architecture)
            if tensor.shape != expected:
                raise WeightsError(
                    f"not a VGG16: {tensor.name} ({row.keras}) has shape {tensor.shape}, expected {expected}"
                )
    for row in architecture.layers:  # only now, when every shape is right, is anything read
        if row.keras in layers:
            kernel, bias = layers[row.keras]
            weight = _floats(kernel)
            if row.kind == "conv":
                weight = conv_kernel(weight)
            elif row.torch == "classifier.0":
                weight = dense_after_flatten(weight, architecture.flatten_chw)
            else:
                weight = dense_kernel(weight)
            tensors[f"{row.torch}.weight"], tensors[f"{row.torch}.bias"] = weight, _floats(bias)
    return tensors


def _by_name(pairs: Sequence[tuple[Stored, Stored]]) -> dict[str, tuple[Stored, Stored]]:
    """Empty where a name is not VGG16's, or occurs twice."""
    layers = {pair[0].layer: pair for pair in pairs}
    if len(layers) != len(pairs) or not layers.keys() <= set(TABLE):
        return {}
    if missing := [name for name in TABLE if name not in layers]:
        raise WeightsError(_missing(missing))
    return layers


def _by_order(pairs: Sequence[tuple[Stored, Stored]]) -> dict[str, tuple[Stored, Stored]]:
    convolutions = [pair for pair in pairs if len(pair[0].shape) == 4]
    dense = [pair for pair in pairs if len(pair[0].shape) == 2]
    for found in (convolutions, dense):
        kinds = sorted({pair[0].kind for pair in found})
        if len(kinds) > 1:
            raise WeightsError(f"not a VGG16: the order of layers in {' and '.join(kinds)} is not known")
    if len(convolutions) == _CONVOLUTIONS and not dense:
        raise WeightsError(_missing(list(TABLE[_CONVOLUTIONS:])))
    if (len(convolutions), len(dense)) != (_CONVOLUTIONS, len(TABLE) - _CONVOLUTIONS):
        vgg19 = " (it looks like VGG19)" if len(convolutions) == 16 and len(dense) in (0, 3) else ""
        raise WeightsError(
            f"not a VGG16{vgg19}: {len(convolutions)} convolutions and {len(dense)} dense layers, expected 13 and 3"
        )
    return dict(zip(TABLE, convolutions + dense, strict=True))


def _missing(names: Sequence[str]) -> str:
    if list(names) == list(TABLE[_CONVOLUTIONS:]):
        return "the dense layers fc1, fc2 and predictions are missing (saved with include_top=False?)"
    return f"not a VGG16: layer {names[0]} is missing"


def _architecture(layers: Mapping[str, tuple[Stored, Stored]]) -> Architecture:
    """The VGG16 of these widths; shapes are checked against it afterwards."""
    for name, (kernel, _) in layers.items():
        if len(kernel.shape) != (4 if name.startswith("block") else 2) or min(kernel.shape) < 1:
            raise WeightsError(f"not a VGG16: {kernel.name} ({name}) has shape {kernel.shape}")
    widths = iter(layers[name][0].shape[-1] for name in TABLE)
    blocks = tuple(tuple(next(widths) for _ in block) for block in VGG16.blocks)
    dense = (next(widths), next(widths))
    side = math.isqrt(layers["fc1"][0].shape[0] // blocks[-1][-1])
    architecture = Architecture(blocks, dense, next(widths), side * 2 ** len(blocks))
    if side < 1 or architecture.parameters > LARGEST:
        raise WeightsError(f"not a VGG16: {architecture.parameters:,} weights are declared")
    return architecture


def _keras_shape(name: str, architecture: Architecture) -> tuple[int, ...]:
    shape = architecture.tensor_shapes[name]
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def _floats(tensor: Stored) -> np.ndarray:
    array = tensor.read()
    if array.dtype.kind != "f":
        raise WeightsError(f"{tensor.name} holds {array.dtype}, expected floating point")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused by name later
        return np.ascontiguousarray(array, dtype=np.float32)


@contextmanager
def opened(path: Path, *, archive: bool) -> Iterator[h5py.File]:
    """Open an HDF5 file, or (`archive`) the one inside a `.keras` file, whose config is never looked at.

    Raises:
        WeightsError: it cannot be read.
    """
    import h5py

    try:
        if archive:
            with zipfile.ZipFile(path) as members, _member(members) as stream, h5py.File(stream, "r") as file:
                yield file
        else:
            with h5py.File(path, "r") as file:
                yield file
    except WeightsError:
        raise
    except (*_H5PY_ERRORS, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise WeightsError(f"damaged or not a Keras file ({' '.join(str(error).split())[:200]})") from None


@contextmanager
def _member(archive: zipfile.ZipFile) -> Iterator[IO[bytes]]:
    """`model.weights.h5`, seekable. Keras stores it uncompressed; a compressed one is unpacked, within bounds."""
    info = archive.getinfo("model.weights.h5")
    if info.file_size > LARGEST_MEMBER:
        raise WeightsError(f"model.weights.h5 inside declares {info.file_size:,} bytes: too large for a VGG16")
    with archive.open(info) as stream:
        if info.compress_type == zipfile.ZIP_STORED:
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            size = 0
            while chunk := stream.read(2**20):
                size += len(chunk)
                if size > info.file_size:
                    raise WeightsError("model.weights.h5 inside is larger than it declares")
                unpacked.write(chunk)
            unpacked.seek(0)
            yield unpacked


def read(file: h5py.File) -> dict[str, np.ndarray]:
    """The canonical tensors of either layout.

    Raises:
        WeightsError: not a VGG16, or something that reaches outside the file.
    """
    found = dict(_datasets(file))
    for root, prefix in ((file, ""), (file.get("model_weights"), "model_weights/")):
        if root is not None and ("layer_names" in root.attrs or "layer_names0" in root.attrs):
            return canonical(_legacy(root, prefix, found))
    return canonical(_counted(found))


def _legacy(group: Any, prefix: str, found: Mapping[str, Any]) -> list[Stored]:
    ours = {path: item for path, item in found.items() if not path.startswith("optimizer_weights/")}
    layers = {path: next((part for part in path.split("/") if part in TABLE), "") for path in ours}
    if ours and all(layers.values()):
        # The names say everything, and damaged lists of strings are what HDF5 itself can loop on for ever.
        order = sorted(ours, key=lambda path: (TABLE.index(layers[path]), -len(ours[path].shape)))
        return [Stored(path, layers[path], ours[path].shape, _reader(ours[path])) for path in order]
    stored, used = [], set()
    for layer in _names(group, "layer_names") or ():
        for name in _names(group[layer], "weight_names") or ():
            path = f"{prefix}{layer}/{name}"
            if path not in ours:
                raise WeightsError(f"{path} is missing, though the file lists it")
            used.add(path)
            # A model inside a model lists its layers' weights under its own name.
            stored.append(Stored(path, layers[path] or layer, ours[path].shape, _reader(ours[path])))
    for path in ours:
        if path not in used:
            raise WeightsError(f"not a VGG16: {path} is left over")
    return stored


def _counted(found: Mapping[str, Any]) -> list[Stored]:
    """Keras 3: `layers/conv2d_10/vars/0` comes after `layers/conv2d_9`, so counters are compared as numbers.

    Keras since 3.6 notes each layer's name in an attribute; it is not needed, and (see `_legacy`) not touched.
    """
    stored = []
    for path in sorted(found, key=_natural):
        parts = path.split("/")
        if "optimizer" in parts or "seed_generator" in parts:  # the training's state, not the network's
            continue
        if len(parts) < 3 or parts[-2] != "vars":
            raise WeightsError(f"not a Keras weights file: it holds {path}")
        place = "/".join(parts[:-2])
        layer = parts[-3] if parts[-3] in TABLE else place
        stored.append(Stored(path, layer, found[path].shape, _reader(found[path]), re.sub(r"_\d+$", "", place)))
    if not stored:
        raise WeightsError("it holds no weights")
    return stored


def _natural(path: str) -> list[tuple[str, int]]:
    """`conv2d` < `conv2d_2` < `conv2d_10`."""
    key = []
    for part in path.split("/"):
        stem, _, counter = part.rpartition("_")
        key.append((stem, int(counter)) if stem and counter.isdecimal() else (part, 0))
    return key


def _reader(dataset: Any) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(dataset[()])


def _names(group: Any, attribute: str) -> list[str] | None:
    """An attribute that lists names; a list too long for one is split over `layer_names0`, `layer_names1` and so on."""
    keys = [attribute] if attribute in group.attrs else []
    while not keys or keys[0] != attribute:
        if f"{attribute}{len(keys)}" not in group.attrs:
            break
        keys.append(f"{attribute}{len(keys)}")
    if not keys:
        return None
    names = [name for key in keys for name in np.asarray(group.attrs[key]).ravel().tolist()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def attribute(file: h5py.File, name: str) -> bytes:
    """A string of fixed length, or b"" if there is none; others, which live elsewhere in the file, are not touched."""
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S":
        return b""
    return bytes(np.bytes_(file.attrs[name]))


def _datasets(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Every dataset by path, through hard links only: a link to another file, or a loop, is refused."""
    import h5py

    waiting: list[tuple[str, Any]] = [("", file)]
    seen = 0
    while waiting:
        prefix, group = waiting.pop()
        for key in group:
            path = f"{prefix}{key}"
            seen += 1
            if seen > OBJECTS or path.count("/") > DEPTH:
                raise WeightsError(f"more than {OBJECTS} objects, or nested deeper than {DEPTH}")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise WeightsError(f"{path} is a link, possibly to another file; links are not followed")
            item = group[key]
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}/", item))
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise WeightsError(f"{path} keeps its values in another file; that is not followed")
                yield path, item


# Writing.


def write_legacy(file: h5py.File, tensors: Mapping[str, np.ndarray], architecture: Architecture) -> None:
    """The layout, names included, of Keras's official VGG16 file: `VGG16(weights=path)` loads it."""
    rows = [row for row in architecture.layers if row.kind != "input"]
    file.attrs["layer_names"] = np.array([row.keras.encode() for row in rows])
    file.attrs["backend"] = np.bytes_(b"tensorflow")
    file.attrs["keras_version"] = np.bytes_(b"2.0.0")  # without it Keras assumes version 1 and its other layouts
    for row in rows:
        group = file.create_group(row.keras)
        names = [f"{row.keras}_W_1:0", f"{row.keras}_b_1:0"] if row.torch else []
        group.attrs["weight_names"] = np.array([name.encode() for name in names], dtype=None if names else "S1")
        for name, part in zip(names, ("weight", "bias"), strict=False):
            canonical_name = f"{row.torch}.{part}"
            group.create_dataset(name, data=to_keras(canonical_name, tensors[canonical_name], architecture))


def write_counted(file: h5py.File, tensors: Mapping[str, np.ndarray], architecture: Architecture) -> None:
    """Keras 3's layout: `model.load_weights` of a functional or sequential VGG16 loads it."""
    classes = {"input": "input_layer", "conv": "conv2d", "pool": "max_pooling2d"}
    counts: Counter[str] = Counter()
    file.create_group("vars").attrs["name"] = "vgg16"
    for row in architecture.layers:
        name = classes.get(row.kind, row.kind)
        counter = f"_{counts[name]}" if counts[name] else ""
        counts[name] += 1
        group = file.create_group(f"layers/{name}{counter}/vars")
        group.attrs["name"] = row.keras
        for i, part in enumerate(("weight", "bias") if row.torch else ()):
            canonical_name = f"{row.torch}.{part}"
            group.create_dataset(str(i), data=to_keras(canonical_name, tensors[canonical_name], architecture))
