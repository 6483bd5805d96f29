"""A Keras layer once more, in the number format of the process, with its weights or random ones."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from keras_ref.rows import each_channel_alone
from parity.contract.text import one_line


def made_again(layer: Any, floatx: str) -> Any:
    """The same layer in another number format."""
    import keras

    if type(layer).__name__ == "Lambda":
        return keras.layers.Lambda(layer.function, arguments=layer.arguments, dtype=floatx)
    try:
        own = {f.__name__: f for f in vars(layer).values() if inspect.isfunction(f)}
        with keras.saving.custom_object_scope(own):
            return type(layer).from_config(_in_format(layer.get_config(), floatx))
    except Exception as error:  # whatever a layer's own code raises
        raise KerasRefError(
            f"--model: layer {layer.name} ({type(layer).__name__}) cannot be made from its configuration "
            f"({one_line(error, 200)}): give it a get_config that from_config takes"
        ) from None


def _depthwise(layer: Any) -> Any:
    """A grouped convolution by TensorFlow's own depthwise one: Keras has XLA do it, fifty times slower in float64."""
    import keras

    def convolve(inputs: Any, kernel: Any) -> Any:
        height, width, _, filters = kernel.shape
        kernel = keras.ops.reshape(kernel, (height, width, layer.groups, filters // layer.groups))
        sizes = {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}
        return keras.ops.depthwise_conv(inputs, kernel, **sizes)

    return convolve


def _in_format(config: Any, floatx: str) -> Any:
    """A configuration with every policy of floating point numbers replaced."""
    if isinstance(config, list):
        return [_in_format(value, floatx) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: floatx if key == "dtype" and "float" in str(value) else _in_format(value, floatx)
        for key, value in config.items()
    }


def fill(made: Any, layer: Any) -> None:
    """A layer's weights, rounded to float32, into the one made again."""
    made.set_weights([array.astype(np.float32) for array in layer.get_weights()])
    if each_channel_alone(made):
        made.convolution_op = _depthwise(made)
    if hasattr(made, "finalize_state"):  # Normalization
        made.finalize_state()


def random_weights(generator: np.random.RandomState, layer: Any, variable: Any) -> np.ndarray:
    """Random weights and batch statistics: fresh ones hide a wrong epsilon or a missing bias."""
    name, shape = variable.path.rsplit("/", 1)[-1], tuple(variable.shape)
    if name in ("gamma", "moving_variance"):
        return generator.uniform(0.7, 1.3, shape).astype(np.float32)
    if name in ("beta", "moving_mean", "bias"):
        return generator.normal(0, 0.1, shape).astype(np.float32)
    fan = (
        shape[0] * shape[1] if "depthwise" in name or type(layer).__name__ == "DepthwiseConv2D" else np.prod(shape[:-1])
    )
    return generator.normal(0, np.sqrt(1.6 / fan), shape).astype(np.float32)
