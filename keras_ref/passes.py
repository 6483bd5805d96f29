"""One photograph forward and back through the network: what every map reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from keras_ref.target import LAST, CamOptions
from parity.contract.layers import LayerTable
from parity.contract.methods import Options

Stages = dict[str, np.ndarray]
"""Name of a stage, or of one of a map's own → array of one photograph, without a leading axis."""

AGREEMENT = {"float32": 1e-5, "float64": 1e-12}
"""Relative L2 between tf-keras-vis's map and the recomputed one. The operations are the same, so it is 0 in practice;
this leaves room for a TensorFlow that adds in another order from call to call."""


@dataclass(frozen=True)
class Models:
    """One network, two views.

    Attributes:
        linear: as the lab has it: softmax replaced by linear.
        layers: the same layers, every hidden output in the order of the computation, logits last.
        table: what those layers are.
        cam_options: how tf-keras-vis finds the target layer.
        binary: whether its one output stands for two classes: 1, and its negative for 0.
    """

    linear: Any
    layers: Any
    table: LayerTable
    cam_options: CamOptions = field(default_factory=lambda: dict(LAST))
    binary: bool = False


@dataclass(frozen=True)
class Pass:
    """One photograph forward and back through the network: what a map may read.

    Attributes:
        models: the network.
        inputs: (1, H, W, 3), preprocessed, in the precision of the process.
        class_index: whose score is explained.
        shared: the stages that every map shares: inputs, activations, logits, score, gradients.
        options: SmoothGrad's.
        remarks: a map adds a line here where its result needs one.
    """

    models: Models
    inputs: np.ndarray
    class_index: int
    shared: Stages
    options: Options
    remarks: list[str] = field(default_factory=list)

    @property
    def score(self) -> Any:
        """The explained class's logit, as tf-keras-vis takes it."""
        from tf_keras_vis.utils.scores import BinaryScore, CategoricalScore

        return BinaryScore(bool(self.class_index)) if self.models.binary else CategoricalScore([self.class_index])

    @property
    def read_by_maps(self) -> tuple[str, ...]:
        """Names of the shared stages that maps read."""
        target = self.models.table.target
        return ("inputs", "logits", "score", "gradients/inputs", f"activations/{target}", f"gradients/{target}")

    @property
    def activations(self) -> np.ndarray:
        """A of the target layer, (h, w, K)."""
        return self.shared[f"activations/{self.models.table.target}"]

    @property
    def gradients(self) -> np.ndarray:
        """G, the score's at the target layer, (h, w, K)."""
        return self.shared[f"gradients/{self.models.table.target}"]


def linear_models(model: Any, table: LayerTable, probe: np.ndarray) -> Models:
    """Replace the softmax as the lab does, with tf-keras-vis's ReplaceToLinear.

    Args:
        model: with softmax; changed in place (a clone, as tf-keras-vis can make, would cost 1.1 GB more in float64).
        table: of the model.
        probe: inputs (1, H, W, 3) on which the replacement is checked.

    Raises:
        KerasRefError: it did not take effect.
    """
    import keras
    import tensorflow as tf
    from tf_keras_vis.utils.model_modifiers import ReplaceToLinear

    before = model(tf.constant(probe), training=False)
    ReplaceToLinear()(model)
    after = tf.nn.softmax(model(tf.constant(probe), training=False))
    agree("softmax(logits)", after.numpy(), before.numpy())
    hidden = [model.get_layer(layer.name).output for layer in table.hidden]
    return Models(model, keras.Model(model.inputs, [*hidden, *model.outputs]), table)


def pass_through(models: Models, inputs: np.ndarray, class_index: int | None, options: Options) -> Pass:
    """Activations, logits, score and the score's gradients at every layer.

    Args:
        models: the network.
        inputs: (1, H, W, 3).
        class_index: whose score; None for the top-1 prediction.
        options: for the maps.
    """
    import tensorflow as tf

    x = tf.constant(inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        *hidden, logits = models.layers(x, training=False)
        if class_index is None:
            class_index = int(logits[0, 0] > 0) if models.binary else int(tf.argmax(logits[0]))
        score = _score(models, logits, class_index)
    gradients = tape.gradient(score, [x, *hidden], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    shared = {"inputs": inputs[0], "logits": logits.numpy()[0], "score": score.numpy()}
    shared["gradients/inputs"] = gradients[0].numpy()[0]
    for layer, activation, gradient in zip(models.table.hidden, hidden, gradients[1:], strict=True):
        shared[f"activations/{layer.name}"] = activation.numpy()[0]
        shared[f"gradients/{layer.name}"] = gradient.numpy()[0]
    return Pass(models, inputs, class_index, shared, options)


def input_gradients(models: Models, inputs: np.ndarray, class_index: int) -> np.ndarray:
    """The score's gradients at inputs (1, H, W, C)."""
    import tensorflow as tf

    x = tf.constant(inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        score = _score(models, models.linear(x, training=False), class_index)
    return np.asarray(tape.gradient(score, x))


def _score(models: Models, logits: Any, class_index: int) -> Any:
    return logits[0, 0] * (2 * class_index - 1) if models.binary else logits[0, class_index]


def agree(stage: str, recomputed: np.ndarray, returned: np.ndarray) -> None:
    """Raise KerasRefError unless what was recomputed is what the library returned."""
    if np.array_equal(recomputed, returned, equal_nan=True):
        return
    with np.errstate(all="ignore"):
        scale = float(np.linalg.norm(returned.astype(np.float64)))
        error = float(np.linalg.norm(recomputed.astype(np.float64) - returned.astype(np.float64)))
    if not error <= AGREEMENT[returned.dtype.name] * scale:
        raise KerasRefError(
            f"{stage}: recomputed beside tf-keras-vis it is {error / scale if scale else error:.2g} (relative L2) from "
            "what tf-keras-vis returned: these versions of Keras and tf-keras-vis do not compute what is documented"
        )
