"""Keras and its VGG16: in one precision, from a table of layers, with the weights of a contract network."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from parity.contract.keras_files import from_keras, to_keras
from parity.contract.layers import Layer, LayerTable
from parity.contract.network import Network
from parity.contract.text import one_line
from parity.contract.vgg import VGG16

INSTALL = 'install them with: pip install "attention-maps[keras]"'

FLOATX = {"fp32": "float32", "fp64": "float64"}
"""The precisions of the reference, as Keras calls them."""


def load_frameworks(precision: str, *, onednn: bool = True) -> None:
    """Import TensorFlow, Keras and tf-keras-vis, and set them to one precision, silently.

    Must come before anything else of Keras in the process, and once: Keras's precision is a global of the process.

    Args:
        precision: one of `FLOATX`.
        onednn: whether TensorFlow may compute with oneDNN, unless TF_ENABLE_ONEDNN_OPTS says it. TensorFlow 2.21's filter
            gradient of a strided 1×1 convolution with few channels writes beyond its memory there, and the process ends.

    Raises:
        KerasRefError: a library is missing or does not import.
    """
    warnings.simplefilter("ignore")  # the libraries' deprecations are not our reader's business
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not onednn:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
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
            f"TensorFlow, Keras or tf-keras-vis does not import ({type(error).__name__}: {one_line(error, 200)}): {INSTALL}"
        ) from None
    # A user's ~/.keras/keras.json may say otherwise.
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    keras.config.set_floatx(FLOATX[precision])
    tf.get_logger().setLevel("ERROR")


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


def build(table: LayerTable) -> Any:
    """The Keras model of a table, with softmax at its end: for VGG16's the one of `keras.applications`.

    Raises:
        KerasRefError: a layer of a kind that is not known here.
    """
    import keras

    if table == VGG16:
        return keras.applications.VGG16(weights=None)
    outputs: dict[str, Any] = {}
    for layer in table.layers:
        if layer.kind == "input":
            outputs[layer.name] = keras.Input(layer.shape, name=layer.name)
        else:
            outputs[layer.name] = _keras_layer(layer, last=layer is table.layers[-1])(outputs[layer.inbound[0]])
    return keras.Model(outputs[table.layers[0].name], outputs[table.layers[-1].name])


def _keras_layer(layer: Layer, *, last: bool) -> Any:
    from keras import layers

    config = layer.config
    match layer.kind:
        case "conv":
            sizes = {name: config[name] for name in ("strides", "padding", "activation")}
            return layers.Conv2D(layer.shape[-1], config["kernel"], **sizes, name=layer.name)
        case "pool":
            return layers.MaxPooling2D(config["window"], config["strides"], config["padding"], name=layer.name)
        case "flatten":
            return layers.Flatten(name=layer.name)
        case "dense":
            activation = "softmax" if last else config["activation"]
            return layers.Dense(layer.shape[0], activation=activation, name=layer.name)
    raise KerasRefError(f"layer {layer.name}: the reference cannot build a layer of kind {layer.kind!r}")


def load(model: Any, network: Network) -> None:
    """Put a network's weights into the Keras model of its table."""
    for layer in network.table.layers:
        if layer.tensors:
            model.get_layer(layer.name).set_weights([to_keras(network.tensors[name], layer) for name in layer.tensors])


def canonical(model: Any, table: LayerTable) -> dict[str, np.ndarray]:
    """The contract's form of a Keras model's weights, float32."""
    tensors: dict[str, np.ndarray] = {}
    for layer in table.layers:
        if layer.tensors:
            for name, array in zip(layer.tensors, model.get_layer(layer.name).get_weights(), strict=True):
                tensors[name] = from_keras(array, layer).astype(np.float32)
    return tensors


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
