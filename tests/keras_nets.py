"""Small Keras networks of every kind of block, by name, as `--model keras_nets:NAME` takes them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as L


def _conv(x: Any, filters: int, kernel: int = 3, activation: str | None = "relu", **options: Any) -> Any:
    x = L.Conv2D(filters, kernel, padding="same", use_bias=False, **options)(x)
    x = L.BatchNormalization()(x)
    return L.Activation(activation)(x) if activation else x


def _head(inputs: Any, x: Any, classes: int = 5, activation: str | None = "softmax") -> Any:
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(classes, activation=activation, name="head")(x))


def plain() -> Any:
    """Convolution, batch norm, ReLU, pool, and a dense layer behind flattened maps; a softmax that is a layer of its own."""
    inputs = keras.Input((16, 20, 3))
    x = L.MaxPooling2D()(_conv(inputs, 6))
    x = L.Dropout(0.3)(L.Flatten()(x))
    x = L.BatchNormalization()(x)
    x = L.Dense(7, activation="tanh")(x)
    return keras.Model(inputs, L.Softmax()(L.Dense(5)(x)))


def sequential() -> Any:
    """LeakyReLU of Keras's slope, PReLU, a transposed convolution, a reshape, no softmax."""
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            L.Conv2D(4, 3, activation="leaky_relu"),
            L.Conv2DTranspose(5, 4, strides=2, padding="same"),
            L.LeakyReLU(),
            L.PReLU(shared_axes=[1, 2]),
            L.AveragePooling2D(4),
            L.Reshape((125,)),
            L.Dense(5),
        ]
    )


def residual() -> Any:
    """Two residual blocks, one with a shortcut and a stride."""
    inputs = keras.Input((17, 17, 3))
    x = _conv(inputs, 4)
    x = L.ReLU()(L.Add()([x, _conv(_conv(x, 4), 4, activation=None)]))
    y = _conv(_conv(x, 6, strides=2), 6, activation=None)
    return _head(inputs, keras.ops.relu(y + _conv(x, 6, 1, None, strides=2)))


def dense() -> Any:
    """A dense block."""
    inputs = keras.Input((16, 16, 3))
    x = _conv(inputs, 4)
    for _ in range(2):
        x = L.Concatenate()([x, _conv(_conv(x, 6, 1), 4, groups=2)])
    return _head(inputs, _conv(x, 5, 1))


def inverted() -> Any:
    """Inverted residuals of stride 2, "same", on even and on odd sides, with ReLU6."""
    inputs = keras.Input((18, 18, 3))
    x = inputs
    for filters in (4, 6):
        y = L.ReLU(6.0)(_conv(x, 8, 1, None))
        y = L.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, depth_multiplier=2)(y)
        y = L.Activation("relu6")(L.BatchNormalization()(y))
        x = _conv(y, filters, 1, None)
    return _head(inputs, x)


def inception() -> Any:
    """Branches, one with an average pool."""
    inputs = keras.Input((15, 15, 3))
    x = _conv(inputs, 4)
    pooled = _conv(L.AveragePooling2D(3, strides=1, padding="same")(x), 3, 1)
    return _head(inputs, L.Concatenate()([_conv(x, 3, 1), _conv(x, 4), pooled]))


def separable() -> Any:
    """Separable convolutions, one of them called twice."""
    inputs = keras.Input((16, 16, 4))
    x = L.SeparableConv2D(6, 3, padding="same", activation="relu", depth_multiplier=2)(inputs)
    again = L.SeparableConv2D(6, 3, padding="same", use_bias=False)
    x = L.ReLU()(again(L.ReLU()(again(x))))
    return _head(inputs, _conv(x, 4))


def squeeze() -> Any:
    """Squeeze and excite, swish, and a hard sigmoid written with operators."""
    inputs = keras.Input((16, 16, 3))
    x = L.ZeroPadding2D(((0, 1), (0, 1)))(inputs)
    x = L.Conv2D(6, 3, strides=2, padding="valid", activation="swish")(x)
    s = L.GlobalAveragePooling2D(keepdims=True)(x)
    s = L.Conv2D(6, 1)(L.Conv2D(3, 1, activation="relu")(s))
    x = L.Multiply()([x, L.ReLU(6.0)(s + 3.0) * (1.0 / 6.0)])
    return _head(inputs, x)


def convnext() -> Any:
    """A block of ConvNeXt: layer norm, gelu, layer scale; Rescaling and Normalization inside the model."""
    from keras.src.applications.convnext import LayerScale

    inputs = keras.Input((16, 16, 3))
    x = L.Rescaling(1 / 255.0)(inputs)
    x = L.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.05, 0.06])(x)
    x = L.LayerNormalization(epsilon=1e-6)(L.Conv2D(6, 4, strides=4)(x))
    y = L.Conv2D(6, 7, padding="same", groups=6)(x)
    y = L.Dense(12)(L.LayerNormalization(epsilon=1e-6)(y))
    y = LayerScale(0.5, 6)(L.Dense(6)(L.Activation("gelu")(y)))
    return _head(inputs, L.Add()([x, y]))


def grey() -> Any:
    """One channel."""
    inputs = keras.Input((16, 16, 1))
    return _head(inputs, L.Conv2D(4, 3, activation="elu")(L.Rescaling(1 / 127.5, -1)(inputs)))


def one_output() -> Any:
    """A sigmoid."""
    inputs = keras.Input((16, 16, 3))
    return _head(inputs, L.Conv2D(4, 3, activation="relu", groups=1)(inputs), 1, "sigmoid")


class Block(keras.layers.Layer):
    """Layers in a layer of one's own."""

    def __init__(self, filters: int, **options: Any) -> None:
        super().__init__(**options)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same", name="conv")
        self.norm = L.BatchNormalization(name="norm")

    def call(self, x: Any) -> Any:
        return keras.ops.relu(self.norm(self.conv(x)))


def nested() -> Any:
    """A model in a model, cropping and scaling within, called twice in part; the head freezes its base."""
    x = inputs = keras.Input((20, 20, 3))
    x = L.Cropping2D(2)(L.Rescaling(1 / 127.5, -1.0)(L.RandomFlip()(x)))
    base = keras.Model(inputs, Block(4, name="block")(x), name="base")
    outer = keras.Input((20, 20, 3))
    twice = L.Conv2D(4, 3, padding="same", activation="relu", name="twice")
    x = twice(twice(base(outer, training=False)))
    return _head(outer, keras.Sequential([L.Conv2D(6, 3), L.ReLU()], name="top")(x))


def resized() -> Any:
    """Pictures are made smaller by the model itself; so are feature maps, where `training` is True by default and means nothing."""
    inputs = keras.Input((32, 24, 3))
    x = L.Conv2D(4, 3, activation="relu")(L.Rescaling(1 / 255)(L.Resizing(16, 16)(inputs)))
    return _head(inputs, L.Conv2D(5, 3, activation="relu")(L.CenterCrop(6, 6)(L.Resizing(8, 8)(x))))


class Subclassed(keras.Model):
    """A model that is a class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = L.Conv2D(4, 3, activation="relu"), Block(5)
        self.pool, self.head = L.GlobalAveragePooling2D(), L.Dense(5, activation="softmax")

    def call(self, x: Any) -> Any:
        return self.head(self.pool(self.block(self.first(x))))


def subclassed() -> Any:
    """See `Subclassed`; it does not say for pictures of which size."""
    return Subclassed()


def four_channels(pixels: Any) -> Any:
    """A preprocessing of one's own, for `separable`."""
    return np.concatenate([pixels / 255.0, pixels[..., :1] / 100.0], -1)


def with_lambda() -> Any:
    """Code in a model's file."""
    inputs = keras.Input((16, 16, 3))
    return _head(inputs, L.Lambda(lambda x: 2 * x)(_conv(inputs, 4)))


class Doubled(keras.layers.Layer):
    """A class that Keras does not know."""

    def call(self, x: Any) -> Any:
        return 2 * x


def with_own_class() -> Any:
    """See `Doubled`."""
    inputs = keras.Input((16, 16, 3))
    return _head(inputs, Doubled()(_conv(inputs, 4)))


def two_inputs() -> Any:
    """More than is compared."""
    inputs = [keras.Input((16, 16, 3)), keras.Input((16, 16, 3))]
    return _head(inputs, L.Add()(inputs))


def two_outputs() -> Any:
    """More than is compared."""
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, [L.Flatten()(_conv(inputs, 2)), L.Flatten()(inputs)])


def no_number() -> Any:
    """NaN among the weights."""
    model = one_output()
    model.layers[-1].set_weights([array * float("nan") for array in model.layers[-1].get_weights()])
    return model


def random_when_used() -> Any:
    """Dropout that is always on."""
    inputs = keras.Input((16, 16, 3))
    return _head(inputs, L.Dropout(0.5)(_conv(inputs, 2), training=True))


def failing() -> Any:
    """A function that fails."""
    raise RuntimeError("no\nluck")


def no_model() -> Any:
    """A function that gives something else."""
    return 3


BLOCKS = (
    "plain",
    "sequential",
    "residual",
    "dense",
    "inverted",
    "inception",
    "separable",
    "squeeze",
    "convnext",
    "grey",
    "one_output",
    "nested",
    "subclassed",
)
