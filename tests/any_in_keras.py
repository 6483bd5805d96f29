"""What `test_keras_any.py` runs in a process with TensorFlow in it, in float64; prints JSON. The folder gets artifacts."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from typing import Any
from unittest import mock

import numpy as np
from in_keras import run
from safetensors.numpy import load_file

from keras_ref import exact, model, models
from parity.contract.artifact import Artifact

model.load_frameworks("fp64", onednn=False)

import keras  # noqa: E402 (after its precision is set)
import keras_nets  # noqa: E402
import tensorflow as tf  # noqa: E402
from tf_keras_vis.gradcam import Gradcam  # noqa: E402
from tf_keras_vis.saliency import Saliency  # noqa: E402
from tf_keras_vis.utils.model_modifiers import ReplaceToLinear  # noqa: E402
from tf_keras_vis.utils.scores import BinaryScore, CategoricalScore  # noqa: E402

MORE = {
    "separable": "--preprocess keras_nets:four_channels",
    "subclassed": "--size 16x20",
    "one_output": "--classes 0",
    "residual": "--target-layer re_lu --preprocess tf",
}
"""What else a network's command needs."""

BRIEFLY = ("dense", "inverted", "inception", "separable", "squeeze", "grey", "nested", "subclassed")
"""Networks of which not every map is drawn."""


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    distance = float(np.abs(ours - theirs).max())
    return distance / float(np.abs(theirs).max()) if distance else 0.0


def explained(name: str, photograph: str) -> dict[str, Any]:
    """How far the artifact of a network is from what the network itself says, stage by stage."""
    keras.backend.clear_session()
    given: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        given.append(loaded(*arguments, **options))
        return given[0]

    loaded = models.load
    methods = "vanilla,gradcam" if name in BRIEFLY else "vanilla,smoothgrad,gradcam,gradcam++"
    command = f"--model keras_nets:{name} --weights random:0 --precision fp64 --keep 1000000 --out {name}"
    more = f"--samples 2 --methods {methods} {MORE.get(name, '')} --export {name}.export {photograph}"
    with mock.patch.object(models, "load", load):
        status, errors, _ = run(*shlex.split(f"{command} {more}"))
    if status:
        return {"error": errors}
    artifact = Artifact.read(name)
    assert load_file(f"{name}.export").keys() == artifact.table.tensors.keys(), name
    own, pixels = given[0], artifact.pixels.astype(np.float64)
    inputs = {"separable": keras_nets.four_channels(pixels), "residual": pixels / 127.5 - 1}.get(name, pixels)
    if name == "nested":
        inputs = np.pad(inputs, ((0, 0), (2, 2), (2, 2), (0, 0)))  # what it crops again
    inputs = inputs[..., : artifact.table.input_shape[2]]
    gelu = tf.nn.gelu
    with contextlib.ExitStack() as stack:
        if artifact.settings.scale:  # else with Keras's constant, which is float32
            stack.enter_context(exact.exact_formulas())
            stack.enter_context(mock.patch.object(tf.nn, "gelu", gelu))
        return compared(artifact, own, tf.constant(inputs))


def compared(artifact: Artifact, own: Any, inputs: Any) -> dict[str, Any]:
    """The same, of the model's own output, the layers that have names there, and the library's maps of it."""
    logits = artifact.whole("logits", "fp64")
    output = np.asarray(own(inputs, training=False))
    last = own.layers[-1]
    ends = {"softmax": keras.ops.softmax, "sigmoid": keras.ops.sigmoid, "linear": np.asarray}
    end = "softmax" if type(last).__name__ == "Softmax" else last.activation.__name__
    errors = {"output": relative(ends[end](logits), output)}
    if not hasattr(own, "_nodes_by_depth") and not isinstance(own, keras.Sequential):
        return errors
    names = {layer.name for layer in own.layers}
    hidden = [layer.name for layer in artifact.table.hidden]
    rows = [row for row in hidden if row in names and f"{row}:1" not in hidden]
    layers = keras.Model(own.inputs, [own.get_layer(name).output for name in rows])
    for row, values in zip(rows, layers(inputs, training=False), strict=True):
        errors[row] = relative(artifact.whole(f"activations/{row}", "fp64"), values)
    if (end == "softmax" and last.name != "head") or "top" in names:  # not for ReplaceToLinear, or for its search
        return errors
    if end != "linear":
        ReplaceToLinear()(own)
    index = artifact.classes[0]
    score = BinaryScore(bool(index)) if logits.shape[-1] == 1 else CategoricalScore([index])
    asked = {"penultimate_layer": "re_lu", "seek_penultimate_conv_layer": False}
    options = asked if artifact.table.target == "re_lu" else {"penultimate_layer": -1}
    errors["gradcam/final"] = relative(artifact.whole("gradcam/final", "fp64"), Gradcam(own)(score, inputs, **options))
    if artifact.settings.scale:  # then its gradient is to other inputs
        return errors
    errors["vanilla/final"] = relative(artifact.whole("vanilla/final", "fp64"), Saliency(own)(score, inputs))
    return errors


def saved(photographs: list[str]) -> dict[str, Any]:
    """Both precisions of what is saved in float32, and what is refused."""
    keras.backend.clear_session()
    keras.config.set_floatx("float32")
    keras.utils.set_random_seed(0)
    own = keras_nets.convnext()
    own.save("own.keras")
    keras_nets.inverted().save("own.h5")
    keras_nets.with_lambda().save("lambda.keras")
    keras_nets.with_lambda().save("lambda.h5")
    keras_nets.with_own_class().save("class.keras")
    with open("own.keras", "rb") as whole, open("cut.keras", "wb") as cut:
        cut.write(whole.read()[:3000])
    keras.config.set_floatx("float64")
    with open("five.txt", "w") as labels, open("four.txt", "w") as fewer:
        labels.write("a\nb\nc\nd\ne\n")
        fewer.write("a\nb\nc\nd\n")
    start = "--precision fp64 --samples 2 --methods gradcam --out refused"
    said = {command: run(*shlex.split(f"{start} {command}"), photographs[0]) for command in COMMANDS}
    floor = "--model own.keras --floor --samples 2 --out floor --export floor.export"
    return said | {"floor": run(*floor.split(), *photographs)}


PHOTOGRAPHS, COMMANDS = sys.argv[2:], json.loads(sys.argv[1])

said = {name: explained(name, PHOTOGRAPHS[0]) for name in keras_nets.BLOCKS}
print(json.dumps({"networks": said, "commands": saved(PHOTOGRAPHS)}))
