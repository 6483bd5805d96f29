"""Keras's weight files ↔ canonical tensors: the permutations, and HDF5 without Keras.

Two layouts live in HDF5 files. The legacy one (`vgg16_weights_tf_dim_ordering_tf_kernels.h5`, and a whole model's `.h5`)
lists its layers: attribute `layer_names`, and of each layer's group `weight_names`. Keras 3's (`.weights.h5`, and inside
`.keras`) counts classes: `layers/conv2d_3/vars/0`. A whole model's file also holds its configuration, which says of which
classes its layers are, and it decides (`keras_config`): the same tensors may belong to another network.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from parity.contract.keras_config import MODELS, PASSED_BY, SETTINGS, size_of
from parity.contract.layers import Layer
from parity.contract.network import Network, WeightsError, restored, table_of
from parity.contract.text import one_line
from parity.contract.vgg import VGG16

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".keras", ".h5", ".hdf5")
"""Of Keras's files."""

ATTRIBUTE = "attention_maps"
"""Of an HDF5 file that we wrote: `Network.about`, as JSON."""

KNOWN = {name.lower() for name in (*SETTINGS, *PASSED_BY, *MODELS, "SeedGenerator")}
"""Classes that a Keras 3 file may count: `max_pooling2d_3` without its counter and underscores."""

OWN_NAME = re.compile(r"block\d_conv\d|fc\d|predictions|conv2d(_\d+)?|dense(_\d+)?")
"""A layer's name by which its place is known: VGG16's, or Keras's own counted ones."""

H5PY_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError)
"""What h5py and zipfile raise for a damaged file, depending on where the damage is."""


class Pair(NamedTuple):
    """A layer's kernel and bias as a file holds them: HDF5 datasets, not read yet, or arrays."""

    name: str
    kernel: Any
    bias: Any


# The permutations.


def to_keras(array: np.ndarray, layer: Layer) -> np.ndarray:
    """A canonical tensor in Keras's layout; the inverse of `from_keras`, where the reasons stand.

    Args:
        array: one of the layer's tensors.
        layer: of the network's table.
    """
    if array.ndim == 1:
        return array
    if layer.kind == "conv":
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    if "flattened" in layer.config:
        height, width, channels = layer.config["flattened"]
        split = array.reshape(-1, channels, height, width)
        return np.ascontiguousarray(split.transpose(2, 3, 1, 0)).reshape(height * width * channels, -1)
    return np.ascontiguousarray(array.T)


def from_keras(array: np.ndarray, layer: Layer) -> np.ndarray:
    """A tensor of Keras's in canonical layout, which is PyTorch's.

    Biases are the same. Convolutions: (kh, kw, in, out) → (out, in, kh, kw); both frameworks correlate without flipping,
    so only the axes move. Dense: (in, out) → (out, in), for Keras computes x·W, PyTorch x·Wᵀ. Dense behind a flatten: Keras
    flattens maps as (h, w, c), PyTorch as (c, h, w), so the inputs change their order, too.

    Args:
        array: kernel or bias.
        layer: of the network's table.
    """
    if array.ndim == 1:
        return array
    if layer.kind == "conv":
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    if "flattened" in layer.config:
        height, width, channels = layer.config["flattened"]
        split = array.reshape(height, width, channels, -1)
        return np.ascontiguousarray(split.transpose(3, 2, 0, 1)).reshape(-1, channels * height * width)
    return np.ascontiguousarray(array.T)


def _canonical_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor that has this shape in Keras's layout."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


# Reading.


def read(path: str | os.PathLike[str], *, size: int | None = None) -> Network:
    """The VGG16 in a Keras file: `.h5` (weights or a whole model), `.weights.h5`, `.keras`; recognised by content.

    Args:
        path: the file.
        size: of the pictures, pixels, in place of what the file says. None: what its configuration says, or what we wrote
            beside the tensors; where neither is there, 224.

    Returns:
        Its network; `input` is `caffe`, Keras's for VGG16, where the file does not say otherwise.

    Raises:
        WeightsError: one line: damaged, or not a VGG16, and where it differs.
    """
    name = os.fspath(path)
    try:
        with _opened(name) as (file, configuration):
            about = json.loads(file.attrs.get(ATTRIBUTE, "{}"))
            said = size_of(configuration) if configuration else None
            datasets = _datasets(file)
            group = file.get("model_weights", file)
            pairs = _listed(group, datasets) if "layer_names" in group.attrs else _counted(datasets)
            size = size or said or int(about.get("size", 0)) or None
            tensors = canonical(pairs, size)
    except WeightsError as error:
        raise WeightsError(f"{name!r}: {one_line(error)}") from None
    except (*H5PY_ERRORS, zipfile.BadZipFile) as error:
        raise WeightsError(f"{name!r}: damaged, or not a Keras file ({one_line(error, 200)})") from None
    return restored(tensors, about, name, size=size)


def read_named(arrays: Mapping[str, np.ndarray], size: int | None = None) -> dict[str, np.ndarray]:
    """The canonical tensors of arrays in Keras's layouts, whose names hold VGG16's layers: `block1_conv1/kernel:0`.

    Raises:
        WeightsError: not a VGG16; names the first difference.
    """
    return canonical(_by_name(_paired([(name, arrays[name]) for name in sorted(arrays, key=_natural)])), size)


def canonical(pairs: Sequence[Pair], size: int | None = None) -> dict[str, np.ndarray]:
    """The canonical tensors of a VGG16's layers.

    Args:
        pairs: convolutions in their order, dense layers in theirs.
        size: of the pictures, pixels; None: 224.

    Raises:
        WeightsError: not a VGG16; names the first difference.
    """
    convolutions = [pair for pair in pairs if len(pair.kernel.shape) == 4]
    dense = [pair for pair in pairs if len(pair.kernel.shape) == 2]
    if len(convolutions) == 13 and not dense:
        raise WeightsError("the dense layers fc1, fc2 and predictions are missing (saved with include_top=False?)")
    if (len(convolutions), len(dense)) != (13, 3):
        looks = " (it looks like VGG19)" if len(convolutions) == 16 else ""
        raise WeightsError(
            f"not a VGG16{looks}: {len(convolutions)} convolutions and {len(dense)} dense layers, expected 13 and 3"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    stored: dict[str, Any] = {}
    for layer, pair in zip((row for row in VGG16.layers if row.tensors), convolutions + dense, strict=True):
        weight, bias = layer.tensors
        shapes |= {weight: _canonical_shape(pair.kernel.shape), bias: pair.bias.shape}
        stored |= {weight: pair.kernel, bias: pair.bias}
    table = table_of(shapes, size)
    return {name: from_keras(np.asarray(stored[name]), layer) for layer in table.layers for name in layer.tensors}


@contextmanager
def _opened(path: str) -> Iterator[tuple[h5py.File, Any]]:
    """The HDF5 file at `path`, or inside the archive at `path`, and the model's configuration or None."""
    import h5py

    with open(path, "rb") as start:
        archived = start.read(2) == b"PK"
    if archived:
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as weights, h5py.File(weights) as file:
            yield file, json.loads(archive.read("config.json"))
    else:
        with h5py.File(path) as file:
            configuration = file.attrs.get("model_config")
            yield file, json.loads(configuration) if configuration else None


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset of this very file by its path: links are not followed."""
    import h5py

    datasets: dict[str, h5py.Dataset] = {}
    strange: list[str] = []

    def visit(path: str, item: Any) -> None:
        place = path.split("/")
        if isinstance(item, h5py.Dataset):
            datasets[path] = item
            if item.external or item.is_virtual:
                strange.append(f"{path} keeps its values in another file")
        elif place[0] == "layers" and place[-1] == "vars" and _class(place[-2]) not in KNOWN:
            strange.append(f"not a VGG16: it has a layer {place[-2]}")

    file.visititems(visit)
    if strange:
        raise WeightsError(strange[0])
    return datasets


def _class(counted: str) -> str:
    """`max_pooling2d_3` → `maxpooling2d`."""
    return re.sub(r"_\d+$", "", counted).replace("_", "")


def _listed(group: h5py.Group, datasets: Mapping[str, h5py.Dataset]) -> list[Pair]:
    """The legacy layout: layers in the order of the list. A model inside the model is one layer of it."""
    pairs: list[Pair] = []
    for layer in _texts(group.attrs["layer_names"]):
        paths = [f"{group.name}/{layer}/{name}".lstrip("/") for name in _texts(group[layer].attrs["weight_names"])]
        for path in paths:
            if path not in datasets:
                raise WeightsError(f"{path} is missing, though the file lists it")
        own = _paired([(path, datasets[path]) for path in paths])
        pairs += own if len(own) == 1 else _by_name(own)
    return pairs


def _counted(datasets: Mapping[str, h5py.Dataset]) -> list[Pair]:
    """Keras 3's layout. The counters are numbers: `conv2d_10` comes after `conv2d_9`."""
    weights = [
        (path, datasets[path])
        for path in sorted(datasets, key=_natural)
        if re.fullmatch(r"(layers|_layer_checkpoint_dependencies)/.*/vars/\d+", path) and "seed_generator" not in path
    ]
    if not weights:
        raise WeightsError("it holds no weights of a functional or sequential Keras model")
    pairs = _paired(weights)
    for axes in (4, 2):
        places = {re.sub(r"(_\d+)?/vars/\d+$", "", pair.name) for pair in pairs if len(pair.kernel.shape) == axes}
        if len(places) > 1:
            raise WeightsError(f"not a VGG16: the order of layers in {' and '.join(sorted(places))} is not known")
    return pairs


def _paired(stored: Sequence[tuple[str, Any]]) -> list[Pair]:
    """Kernel and bias of one layer after the other."""
    pairs = []
    for i in range(0, len(stored) - 1, 2):
        (name, kernel), (other, bias) = sorted(stored[i : i + 2], key=lambda tensor: -len(tensor[1].shape))
        if len(kernel.shape) not in (2, 4) or bias.shape != kernel.shape[-1:]:
            raise WeightsError(f"not a VGG16: {name} {kernel.shape} and {other} {bias.shape} are no layer of it")
        pairs.append(Pair(name, kernel, bias))
    if len(stored) % 2:
        raise WeightsError(f"not a VGG16: {stored[-1][0]} {stored[-1][1].shape} is left over")
    return pairs


def _by_name(pairs: Sequence[Pair]) -> list[Pair]:
    """In the order of their names: the list of a nested model's weights ends with those of its frozen layers."""
    for pair in pairs:
        if not any(OWN_NAME.fullmatch(part) for part in re.split("[/.]", pair.name)):
            raise WeightsError(f"not a VGG16 whose layers' order is known: {pair.name} has a name of its own")
    return sorted(pairs, key=lambda pair: _natural(pair.name))


def _natural(name: str) -> list[int | str]:
    """`conv2d` < `conv2d_2` < `conv2d_10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


# Writing.


def write(network: Network, path: Path, *, counted: bool) -> None:
    """Write a weights file that Keras loads.

    Args:
        network: to write.
        path: the file.
        counted: Keras 3's layout, for `model.load_weights`; else the legacy one, for `VGG16(weights=path)`.

    Raises:
        OSError: as the file system says.
    """
    import h5py

    # In memory first: where a disk is full, HDF5 cannot close its file, and takes the whole process down with it.
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs[ATTRIBUTE] = json.dumps(network.about)
        (_write_counted if counted else _write_listed)(file, network)
    path.write_bytes(image.getbuffer())


def _write_listed(file: h5py.File, network: Network) -> None:
    """The layout, names included, of Keras's official VGG16 file."""
    layers = [layer for layer in network.table.layers if layer.kind != "input"]
    file.attrs["layer_names"] = np.array([layer.name.encode() for layer in layers])
    file.attrs["backend"] = np.bytes_(b"tensorflow")
    file.attrs["keras_version"] = np.bytes_(b"2.0.0")  # without it Keras assumes version 1 and its other layouts
    for layer in layers:
        group = file.create_group(layer.name)
        names = [f"{layer.name}_{letter}_1:0" for letter in ("W", "b")] if layer.tensors else []
        group.attrs["weight_names"] = np.array([name.encode() for name in names], dtype=None if names else "S1")
        for name, tensor in zip(names, layer.tensors, strict=True):
            group.create_dataset(name, data=to_keras(network.tensors[tensor], layer))


def _write_counted(file: h5py.File, network: Network) -> None:
    """Keras 3's layout, for a functional or sequential VGG16."""
    classes = {"input": "input_layer", "conv": "conv2d", "pool": "max_pooling2d"}
    counts: Counter[str] = Counter()
    file.create_group("vars").attrs["name"] = "vgg16"
    for layer in network.table.layers:
        name = classes.get(layer.kind, layer.kind)
        counter = f"_{counts[name]}" if counts[name] else ""
        counts[name] += 1
        group = file.create_group(f"layers/{name}{counter}/vars")
        group.attrs["name"] = layer.name
        for i, tensor in enumerate(layer.tensors):
            group.create_dataset(str(i), data=to_keras(network.tensors[tensor], layer))
