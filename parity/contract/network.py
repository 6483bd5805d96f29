"""A network's weights in canonical form, their fingerprint, and the networks that need no download."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources

import numpy as np
import safetensors
from safetensors.numpy import load_file

from parity.contract.files import save_tensors
from parity.contract.layers import LayerTable
from parity.contract.text import one_line
from parity.contract.vgg import BLOCKS, VGG16, blocks_of, vgg_of

INPUTS = ("caffe", "torchvision")
"""Kinds of preprocessing. caffe: BGR minus (103.939, 116.779, 123.68). torchvision: RGB / 255, mean and std."""

ANY_INPUT = (*INPUTS, "tf", "none")
"""The same for any network. tf: RGB / 127.5 − 1. none: pixels as they are, 0 to 255."""

OWN_INPUT = "own"
"""Preprocessing by a function of the user's."""

FORMAT = "attention-maps network 1"
"""What a canonical safetensors file says of itself."""

EXPORT = "attention-maps tensors 1"
"""What a file of any network's tensors says of itself; `python -m keras_ref --export` writes it."""

SMALLEST = 32
"""Height and width of the smallest picture that VGG16 leaves anything of, pixels."""

LOOKS = {
    "features.34.weight": "VGG19",
    "features.1.running_mean": "a VGG with batch normalization, vgg16_bn",
    "layer1.0.conv1.weight": "a ResNet",
}
"""Tensors by which other networks are known, for a message."""


class WeightsError(ValueError):
    """Weights that cannot be had, read or used; one line that says which, why and what to do."""


@dataclass(frozen=True)
class Network:
    """Weights that either framework can load.

    Attributes:
        tensors: canonical name → float32 array: torchvision's names (`features.0.weight`, `classifier.6.bias`) and
            layouts (convolutions OIHW; dense (out, in), the first reading (C, H, W)), in the order of the computation.
        table: the layers whose they are.
        source: where they came from, in words for a reader: `offline`, `seeded:3`, a path.
        input: the preprocessing that these weights were trained with, one of `INPUTS`.
        remark: one line that belongs beside every result, or "".
    """

    tensors: Mapping[str, np.ndarray] = field(repr=False)
    table: LayerTable
    source: str
    input: str
    remark: str = ""

    @property
    def about(self) -> dict[str, str]:
        """What a file remembers beside the tensors; `restored` reads it."""
        size = str(self.table.size[0])
        return {"source": self.source, "input": self.input, "remark": self.remark, "size": size}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, shapes and values: equal for equal networks, whatever file or layout they came from."""
        digest = hashlib.sha256()
        for name, array in self.tensors.items():
            digest.update(f"{name} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array, dtype="<f4").data)
        return digest.hexdigest()


def table_of(shapes: Mapping[str, tuple[int, ...]], size: int | None = None, *, vgg16: bool = True) -> LayerTable:
    """The table of VGG16, or of a narrower one, whose tensors have these shapes.

    Args:
        shapes: canonical name → canonical shape.
        size: of the square pictures, pixels; None: 224. See `vgg_of` why tensors do not say it.
        vgg16: refuse VGGs with other blocks than VGG16's, such as VGG19.

    Raises:
        WeightsError: it is another network; names the first difference.
    """
    if vgg16 and size is not None and size < SMALLEST:
        raise WeightsError(f"pictures of {size} pixels: a VGG16's five poolings need at least {SMALLEST}")
    looks = next((f" (it looks like {network})" for name, network in LOOKS.items() if name in shapes), "")
    if shapes and not looks and "features.0.weight" not in shapes:
        looks = f" (its first tensor is {next(iter(shapes))})"
    try:
        table = vgg_of(shapes, size)
    except ValueError as error:
        raise WeightsError(f"not the weights of a VGG16{looks}: {error}") from None
    counts = [len(block) for block in blocks_of(table)]
    if (vgg16 or looks) and counts != [len(block) for block in BLOCKS]:
        raise WeightsError(
            f"not the weights of a VGG16{looks}: blocks of {counts} convolutions, expected 2, 2, 3, 3, 3"
        )
    return table


def restored(
    tensors: Mapping[str, np.ndarray],
    about: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    input: str = "caffe",
    size: int | None = None,
    vgg16: bool = True,
) -> Network:
    """The network that a file holds, strictly: nothing missing or left over, every shape right, every value finite.

    Args:
        tensors: canonical names and layouts; any floating type (converted to float32).
        about: what the file remembers, as `Network.about`; any part may be missing.
        path: the file.
        input: the preprocessing where the file remembers none.
        size: of the pictures, in place of the one that the file remembers; see `table_of`.
        vgg16: see `table_of`.

    Raises:
        WeightsError: with the path; names the first tensor that is wrong.
    """
    said = {key: one_line(str(about.get(key, ""))) for key in ("source", "input", "remark", "size")}
    size = size or (int(said["size"]) if said["size"].isdecimal() else None)
    name, input = os.fspath(path), said["input"] or input
    if input not in INPUTS:
        raise WeightsError(f"{name!r}: preprocessing {input!r} is unknown; known: {', '.join(INPUTS)}")
    try:
        table = table_of({key: tuple(array.shape) for key, array in tensors.items()}, size, vgg16=vgg16)
    except WeightsError as error:
        raise WeightsError(f"{name!r}: {error}") from None
    ordered: dict[str, np.ndarray] = {}
    for key in table.tensors:
        if tensors[key].dtype.kind != "f":
            raise WeightsError(f"{name!r}: tensor {key} holds {tensors[key].dtype}, expected floating point")
        with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinity, and is refused below
            ordered[key] = np.asarray(tensors[key], dtype=np.float32)
        if not np.isfinite([ordered[key].min(), ordered[key].max()]).all():  # without a copy
            raise WeightsError(f"{name!r}: tensor {key} holds NaN or infinity")
    return Network(ordered, table, said["source"] or name, input, said["remark"])


def offline() -> Network:
    """The embedded network: ImageNet convolutions of VGG16 (int8) under a distilled linear classifier.

    Not the ImageNet VGG16: its classifier is linear in the mean of the last pool. Expanded here to the full VGG16 of
    138,357,544 parameters, exactly in float32.
    """
    packed = _embedded()
    tensors = _convolutions(packed)
    shapes = VGG16.tensors
    height, width, channels = VGG16["fc1"].config["flattened"]
    tensors.update({name: np.zeros(shape, np.float32) for name, shape in shapes.items() if "classifier" in name})
    first = tensors["classifier.0.weight"].reshape(-1, channels, height * width)
    units = np.arange(channels)
    first[units, units] = np.float32(1 / (height * width))  # unit c: the mean of channel c
    tensors["classifier.3.weight"][units, units] = 1
    tensors["classifier.6.weight"][:, :channels] = packed["probe.weight"].astype(np.float32)
    tensors["classifier.6.bias"][:] = packed["probe.bias"]
    return Network(
        tensors,
        VGG16,
        "offline",
        "caffe",
        "embedded weights: ImageNet convolutions, distilled linear classifier (not the ImageNet VGG16)",
    )


def offline_random(seed: int) -> Network:
    """The embedded convolutions under random dense layers: a network on which a wrong Grad-CAM++ shows.

    Args:
        seed: of `numpy.random.RandomState`, 0 to 2**32 − 1.
    """
    tensors = _convolutions(_embedded())
    dense = {name: shape for name, shape in VGG16.tensors.items() if name.startswith("classifier")}
    tensors.update(_he_normal(dense, seed))
    return Network(tensors, VGG16, f"offline-random:{seed}", "caffe", "embedded convolutions, random dense layers")


def seeded(seed: int, table: LayerTable = VGG16) -> Network:
    """Every weight random: the same on every machine.

    Args:
        seed: of `numpy.random.RandomState`, 0 to 2**32 − 1.
        table: VGG16's, or a smaller one for tests.
    """
    tensors = _he_normal(table.tensors, seed)
    return Network(tensors, table, f"seeded:{seed}", "caffe", "random weights")


def from_source(source: str) -> Network | None:
    """The networks that need no framework: `offline`, `offline-random:N`, `seeded:N`, a canonical safetensors file.

    Returns:
        The network; None where `source` names something else (a download, another kind of file).

    Raises:
        WeightsError: it names one of these, and it cannot be had.
    """
    if source == "offline":
        return offline()
    if match := re.fullmatch(r"(offline-random|seeded):(.*)", source):
        if not re.fullmatch(r"\d{1,10}", match[2]) or int(match[2]) >= 2**32:
            raise WeightsError(f"{source!r}: the seed must be 0 to 4294967295, as in {match[1]}:0")
        return (offline_random if match[1] == "offline-random" else seeded)(int(match[2]))
    if source.endswith(".safetensors") and os.path.isfile(source):
        return read(source)
    return None


def read(path: str | os.PathLike[str], *, framework: str = "numpy", size: int | None = None) -> Network | None:
    """Read a canonical safetensors file, as `write` writes it.

    Args:
        path: the file.
        framework: whose reader: `numpy` copies the tensors into memory; `pt`, where PyTorch is, maps the file instead.
        size: of the pictures, in place of the one that the file remembers.

    Returns:
        The network; None where the file is a sound safetensors file that does not say it is canonical.

    Raises:
        WeightsError: the file is damaged, or holds something else than a VGG16.
    """
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        tensors = {name: tensor if framework == "numpy" else tensor.numpy() for name, tensor in stored.items()}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The last two: NumPy has no bfloat16 and no float8.
        raise WeightsError(f"{os.fspath(path)!r}: not a readable safetensors file ({one_line(error)})") from None
    return restored(tensors, metadata, path, size=size, vgg16=False)


def write(network: Network, path: str | os.PathLike[str]) -> None:
    """Write the canonical safetensors file: the tensors, and in its metadata the format and `Network.about`.

    Raises:
        OSError: as the file system says; then nothing is left at `path`.
    """
    save_tensors(network.tensors, path, {"format": FORMAT, **network.about})


def _embedded() -> dict[str, np.ndarray]:
    with resources.as_file(resources.files("parity.contract").joinpath("data/vgg16_offline.safetensors")) as path:
        try:
            return load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(
                f"the embedded weights are damaged ({one_line(error)}): install the package again"
            ) from None


def _convolutions(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """int8 times one scale per output channel, in float32."""
    tensors: dict[str, np.ndarray] = {}
    for name in VGG16.tensors:
        if name.startswith("features") and name.endswith("weight"):
            scale = packed[f"{name}.scale"][:, None, None, None]
            tensors[name] = packed[name].astype(np.float32) * scale
        elif name.startswith("features"):
            tensors[name] = packed[name]
    return tensors


def _he_normal(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights N(0, 2 / fan_in), biases N(0, 1), drawn in float64 in the order of the computation, kept as float32."""
    generator = np.random.RandomState(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 1.0
        tensors[name] = np.empty(shape, np.float32)
        flat = tensors[name].reshape(-1)
        for start in range(0, flat.size, 2**20):  # in pieces: fc1 at once in float64 would be 822 MB
            piece = flat[start : start + 2**20]
            piece[:] = generator.standard_normal(piece.size) * scale
    return tensors
