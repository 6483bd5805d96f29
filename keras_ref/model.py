"""Keras's VGG16 with the weights of a contract network, and Keras's own files as a contract network."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from parity.contract.architecture import VGG16, Architecture
from parity.contract.network import Network, WeightsError, checked

INSTALL = 'install them with: pip install "attention-maps[keras]"'

KERAS_FILE_BYTES = 4 * 2**30
"""A .keras file's weights may inflate to this much; VGG16 with its optimizer's two moments takes 1.7 GB."""


def load_frameworks(precision: str) -> None:
    """Import TensorFlow, Keras and tf-keras-vis, and set them to one precision, silently.

    Must come before anything else of Keras in the process, and once: Keras's precision is a global of the process.

    Args:
        precision: `fp32` or `fp64`.

    Raises:
        KerasRefError: a library is missing or does not import.
    """
    missing = [name for name in ("tensorflow", "keras", "tf_keras_vis") if util.find_spec(name) is None]
    if missing:
        raise KerasRefError(f"{', '.join(missing)} not installed: {INSTALL}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # tf-keras-vis knows no other
    try:
        with _silent():
            import keras
            import tensorflow as tf
            import tf_keras_vis.gradcam
            import tf_keras_vis.saliency  # noqa: F401 (imported here because it logs, and is slow)

            tf.zeros(1)  # the runtime starts, and logs, with the first operation
    except Exception as error:  # a broken installation raises whatever it likes
        raise KerasRefError(
            f"TensorFlow does not import ({type(error).__name__}: {' '.join(str(error).split())[:200]}): {INSTALL}"
        ) from None
    # A user's ~/.keras/keras.json may say otherwise.
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    keras.config.set_floatx({"fp32": "float32", "fp64": "float64"}[precision])
    tf.get_logger().setLevel("ERROR")


def versions() -> dict[str, str]:
    """What computed: Python, the libraries, the platform."""
    import platform

    packages = ("numpy", "keras", "tensorflow", "tf-keras-vis", "scipy", "Pillow")
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    return {**found, "platform": platform.platform()}


def flags() -> dict[str, str | int | bool]:
    """What may change rounding."""
    import tensorflow as tf

    return {
        "device": "gpu" if tf.config.list_physical_devices("GPU") else "cpu",
        "tf32": bool(tf.config.experimental.tensor_float_32_execution_enabled()),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "threads_intra": int(tf.config.threading.get_intra_op_parallelism_threads()),
        "threads_inter": int(tf.config.threading.get_inter_op_parallelism_threads()),
        "cores": os.cpu_count() or 0,
    }


def build(architecture: Architecture) -> Any:
    """The Keras model with its softmax: `keras.applications.VGG16`, or a narrower one of the same layer names."""
    import keras

    if architecture == VGG16:
        return keras.applications.VGG16(weights=None)
    x = inputs = keras.Input((architecture.size, architecture.size, 3))
    for layer in architecture.layers:
        if layer.kind == "conv":
            x = keras.layers.Conv2D(layer.shape[-1], 3, padding="same", activation="relu", name=layer.keras)(x)
        elif layer.kind == "pool":
            x = keras.layers.MaxPooling2D(2, strides=2, name=layer.keras)(x)
        elif layer.kind == "flatten":
            x = keras.layers.Flatten(name=layer.keras)(x)
        elif layer.kind == "dense":
            activation = "softmax" if layer.keras == "predictions" else "relu"
            x = keras.layers.Dense(layer.shape[0], activation=activation, name=layer.keras)(x)
    return keras.Model(inputs, x)


def load(model: Any, network: Network) -> None:
    """Put a network's weights into a Keras model of the same architecture."""
    chw = network.architecture.flatten_chw
    for layer in network.architecture.layers:
        if layer.parameters:
            weight, bias = network.tensors[f"{layer.torch}.weight"], network.tensors[f"{layer.torch}.bias"]
            flat = chw if layer.keras == "fc1" else None
            model.get_layer(layer.keras).set_weights([to_keras(weight, flat), bias])


def canonical(model: Any, architecture: Architecture, source: str, input: str) -> Network:
    """The contract's form of a Keras model's weights.

    Raises:
        WeightsError: a value is not finite.
    """
    tensors: dict[str, np.ndarray] = {}
    for layer in architecture.layers:
        if layer.parameters:
            kernel, bias = model.get_layer(layer.keras).get_weights()
            flat = architecture.flatten_chw if layer.keras == "fc1" else None
            tensors[f"{layer.torch}.weight"] = from_keras(kernel, flat)
            tensors[f"{layer.torch}.bias"] = bias
    return checked(tensors, source=source, input=input)


def to_keras(weight: np.ndarray, flatten_chw: tuple[int, int, int] | None = None) -> np.ndarray:
    """Canonical → Keras: OIHW → HWIO; (out, in) → (in, out).

    Args:
        weight: of a convolution or a dense layer.
        flatten_chw: for the dense layer after Flatten, what that flattened: canonical inputs run (C, H, W), Keras's
            (H, W, C).
    """
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)
    if flatten_chw is None:
        return weight.T
    return weight.reshape(-1, *flatten_chw).transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def from_keras(kernel: np.ndarray, flatten_chw: tuple[int, int, int] | None = None) -> np.ndarray:
    """Keras → canonical: the inverse of `to_keras`."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if flatten_chw is None:
        return kernel.T
    channels, height, width = flatten_chw
    return kernel.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)


def from_keras_file(path: str, input: str) -> Network:
    """Read a Keras file (.h5, .weights.h5, .keras) by Keras itself; weights only, so no code in it can run.

    Args:
        path: the file; its kind is recognised by content.
        input: the preprocessing it was trained with; Keras's files do not say.

    Raises:
        WeightsError: damaged, or not a VGG16 of the family in `Architecture`.
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="keras_ref-") as folder:
        try:
            named = _by_kind(Path(path), Path(folder))
            architecture = _architecture(named)
            model = build(architecture)
            model.load_weights(named)
        except WeightsError:
            raise
        except Exception as error:  # h5py, zipfile and Keras raise a dozen kinds on a damaged file
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{path!r}: not a readable Keras file of VGG16 weights ({reason})") from None
        network = canonical(model, architecture, path, input)
        keras.backend.clear_session()
        return network


def _by_kind(path: Path, folder: Path) -> str:
    """The file under a name by which Keras knows its kind: Keras goes by the name, people rename files."""
    import h5py

    if zipfile.is_zipfile(path):
        target = folder / "model.weights.h5"
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("model.weights.h5")
            if info.file_size > KERAS_FILE_BYTES:
                raise WeightsError(f"{str(path)!r}: claims {info.file_size} bytes of weights, too many for a VGG16")
            with archive.open(info) as packed, target.open("wb") as file:
                while piece := packed.read(2**20):
                    file.write(piece)
        return str(target)
    with h5py.File(path, "r") as file:
        legacy = "layer_names" in file.attrs or "model_weights" in file
    target = folder / ("legacy.h5" if legacy else "model.weights.h5")
    target.symlink_to(path.resolve())
    return str(target)


def _architecture(path: str) -> Architecture:
    """The narrower or full VGG16 whose kernels a file has, in order."""
    import h5py

    kernels: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (2, 4) and not name.startswith("optimizer"):
            kernels[name] = tuple(item.shape)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    ordered = [kernels[name] for name in sorted(kernels, key=_natural)]
    widths = [shape[3] for shape in ordered if len(shape) == 4]
    dense = [shape for shape in ordered if len(shape) == 2]
    sizes = [len(block) for block in VGG16.blocks]
    if len(widths) != sum(sizes) or len(dense) != 3:
        raise ValueError(f"it has {len(widths)} convolutions and {len(dense)} dense layers, VGG16 has 13 and 3")
    starts = np.cumsum([0, *sizes[:-1]])
    blocks = tuple(tuple(widths[s : s + n]) for s, n in zip(starts, sizes, strict=True))
    side = round((dense[0][0] / widths[-1]) ** 0.5)
    return Architecture(blocks, (dense[0][1], dense[1][1]), dense[2][1], side * 2 ** len(blocks))


def _natural(name: str) -> list[tuple[int, str]]:
    """`conv2d_10` after `conv2d_9`, and `conv2d` before both."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)|/", name) if part]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches stderr, not even from C++: TensorFlow logs there before any setting of it is read."""
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
