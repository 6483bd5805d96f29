"""The four maps through unmodified tf-keras-vis, and every stage on the way.

tf-keras-vis returns maps only. Each layer's activations and gradients, the channel weights and alpha are recomputed
beside it by the same TensorFlow operations, and the map that follows from them is compared with the one it returned: a
mismatch is an error, not a stage.

Everything here takes one photograph, (1, H, W, 3), so that no photograph can touch another's map.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from parity.contract.architecture import Architecture
from parity.contract.noise import unit_noise

Stages = dict[str, np.ndarray]
"""Stage name → array of one photograph, without a leading axis."""

AGREEMENT = {"float32": 1e-5, "float64": 1e-12}
"""Relative L2 between tf-keras-vis's map and the recomputed one. The operations are the same, so it is 0 in practice;
this leaves room for a TensorFlow that adds in another order from call to call."""

SIGNIFICANT = 1e-3
"""Gradients below this fraction of the largest do not show in a map, and may vanish in e·G³ unnoticed."""


@dataclass(frozen=True)
class Models:
    """One network, two views.

    Attributes:
        linear: as the lab has it: softmax replaced by linear.
        layers: the same layers, every hidden output in the order of the computation, logits last.
        names: Keras's names of those hidden layers.
        target: Keras's name of the layer that Grad-CAM reads.
    """

    linear: Any
    layers: Any
    names: tuple[str, ...]
    target: str


def linear_models(model: Any, architecture: Architecture, probe: np.ndarray) -> Models:
    """Replace the softmax as the lab does, with tf-keras-vis's ReplaceToLinear.

    Args:
        model: with softmax; changed in place (a clone, as tf-keras-vis can make, would cost 1.1 GB more in float64).
        architecture: of the model.
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
    _agree("softmax(logits)", after.numpy(), before.numpy())
    hidden = [layer.keras for layer in architecture.layers if layer.kind in ("conv", "pool", "dense")][:-1]
    outputs = [model.get_layer(name).output for name in hidden]
    return Models(
        model, keras.Model(model.inputs, [*outputs, *model.outputs]), tuple(hidden), architecture.target.keras
    )


def shared_stages(models: Models, inputs: np.ndarray, class_index: int | None) -> tuple[Stages, int]:
    """Activations, logits, score and the score's gradients at every layer.

    Args:
        models: the network.
        inputs: (1, H, W, 3).
        class_index: whose score; None for the top-1 prediction.

    Returns:
        Stages, and the class.
    """
    import tensorflow as tf

    x = tf.constant(inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        *hidden, logits = models.layers(x, training=False)
        chosen = int(tf.argmax(logits[0])) if class_index is None else class_index
        score = logits[0, chosen]
    gradients = tape.gradient(score, [x, *hidden])
    stages = {"inputs": inputs[0], "logits": logits.numpy()[0], "score": score.numpy()}
    stages["gradients/inputs"] = gradients[0].numpy()[0]
    for name, activation, gradient in zip(models.names, hidden, gradients[1:], strict=True):
        stages[f"activations/{name}"] = activation.numpy()[0]
        stages[f"gradients/{name}"] = gradient.numpy()[0]
    return stages, chosen


def vanilla(models: Models, inputs: np.ndarray, class_index: int, shared: Stages) -> Stages:
    """Vanilla saliency: max over channels of |gradient|, normalized.

    Source: arXiv:1312.6034, by tf-keras-vis's `Saliency`.
    """
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    saliency, score = Saliency(models.linear), CategoricalScore([class_index])
    raw = np.asarray(saliency(score, inputs, normalize_map=False))
    final = np.asarray(saliency(score, inputs))
    _agree("vanilla/raw", np.abs(shared["gradients/inputs"]).max(-1), raw[0])
    _agree("vanilla/final", _normalized(raw), final)
    return {"vanilla/raw": raw[0], "vanilla/final": final[0]}


def smoothgrad(
    models: Models, inputs: np.ndarray, class_index: int, n_samples: int, noise_level: float, seed: int
) -> Stages:
    """SmoothGrad with the seed's noise: max over channels of the mean of |gradient|, normalized.

    The map is normalized by tf-keras-vis's own function here, because its default call would take every sample again;
    that the two are the same is checked on `vanilla`, and by a test.

    Raises:
        KerasRefError: tf-keras-vis drew other numbers than the contract's.

    Source: arXiv:1706.03825, by tf-keras-vis's `Saliency`.
    """
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    with legacy_seed(seed):
        raw = Saliency(models.linear)(
            CategoricalScore([class_index]),
            inputs,
            smooth_samples=n_samples,
            smooth_noise=noise_level,
            normalize_map=False,
        )
        drawn = np.random.get_state(legacy=False)
    expected = np.random.RandomState(seed)
    for _ in range(n_samples):  # one after the other: twenty at once would be another 24 MB
        expected.standard_normal(inputs.shape)
    if not _same_state(drawn, expected.get_state(legacy=False)):
        raise KerasRefError(
            "smoothgrad/noise: tf-keras-vis drew other noise than the contract's: use tf-keras-vis 0.8.6 or 0.8.7, "
            "and unset TF_KERAS_VIS_MAX_STEPS"
        )
    return {
        "smoothgrad/noise": noise(inputs[0], n_samples, noise_level, seed),
        "smoothgrad/raw": np.asarray(raw)[0],
        "smoothgrad/final": _normalized(np.asarray(raw))[0],
    }


def noise(inputs: np.ndarray, n_samples: int, noise_level: float, seed: int) -> np.ndarray:
    """What SmoothGrad adds: σ·unit noise in float64, cast to the inputs' type: (S, H, W, 3).

    σ itself is computed in the inputs' type, as tf-keras-vis does: in float32 it is not the float64 product rounded.
    """
    kind = inputs.dtype.type
    sigma = np.float64(kind(noise_level) * (inputs.max() - inputs.min()))
    return np.stack([(sigma * unit).astype(kind) for unit in unit_noise(seed, n_samples, inputs.shape)])


def gradcam(models: Models, inputs: np.ndarray, class_index: int, shared: Stages) -> Stages:
    """Grad-CAM at the last convolution.

    Source: arXiv:1610.02391, by tf-keras-vis's `Gradcam(penultimate_layer=-1)`.
    """
    import tensorflow as tf
    from tf_keras_vis.gradcam import Gradcam

    raw, final = _cams(Gradcam(models.linear), inputs, class_index)
    weights = tf.reduce_mean(shared[f"gradients/{models.target}"], (0, 1)).numpy()  # NumPy adds in another order
    cam = np.maximum((shared[f"activations/{models.target}"] * weights).sum(-1), 0)
    _agree("gradcam/raw", cam, raw[0])
    upsampled = _upsampled(raw, inputs)
    _agree("gradcam/final", _normalized(upsampled), final)
    return {
        "gradcam/weights": weights,
        "gradcam/raw": raw[0],
        "gradcam/upsampled": upsampled[0],
        "gradcam/final": final[0],
    }


def gradcam_plus_plus(models: Models, inputs: np.ndarray, class_index: int, shared: Stages) -> tuple[Stages, str]:
    """Grad-CAM++ at the last convolution, with exp(score) divided out of weights and raw map.

    Near a pole of alpha one unit in the last place moves the float32 map by a tenth of its range, so another way of
    computing it could not be told from an error: the check repeats the library's very operations on the same A, G and
    score.

    Returns:
        Stages, and one line if exp(score) left the range of the type ("" otherwise). Then, in float32, the stages are
        the library's all the same (zero, infinite or NaN, as it has them); in float64 they are the formula's without
        exp(score), because the comparison rests on them. `final_with_exp` is the library's own map in either.

    Source: arXiv:1710.11063, by tf-keras-vis's `GradcamPlusPlus(penultimate_layer=-1)`.
    Differs: from the paper's published code, in that alpha is divided by its own sum.
    """
    import tensorflow as tf
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus

    raw, final = _cams(GradcamPlusPlus(models.linear), inputs, class_index)
    activations, gradients = shared[f"activations/{models.target}"], shared[f"gradients/{models.target}"]
    exp_score = tf.math.exp(tf.constant(shared["score"])).numpy()
    alpha, weights, cam = plus_plus(activations, gradients, exp_score)
    _agree("gradcam_plus_plus/raw", cam, raw[0])
    _agree("gradcam_plus_plus/final", _normalized(_upsampled(raw, inputs)), final)
    divided = _divided(raw, exp_score)
    weights = _divided(weights, exp_score)
    remark = ""
    if out_of_range(gradients, exp_score):
        kind = inputs.dtype.name
        remark = f"exp(score) is out of {kind}'s range (score {float(shared['score']):.1f})"
        if kind == "float64":
            alpha, weights, cam = plus_plus(activations, gradients, np.float64(1))
            divided = cam[None]
    upsampled = _upsampled(divided, inputs)
    return {
        "gradcam_plus_plus/alpha": alpha,
        "gradcam_plus_plus/weights": weights,
        "gradcam_plus_plus/raw": divided[0],
        "gradcam_plus_plus/upsampled": upsampled[0],
        "gradcam_plus_plus/final": _normalized(upsampled)[0],
        "gradcam_plus_plus/final_with_exp": final[0],
    }, remark


def plus_plus(
    activations: np.ndarray, gradients: np.ndarray, exp_score: np.floating[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tf-keras-vis's operations one by one, in its order: rounding included.

    Args:
        activations: A, (h, w, K).
        gradients: G, (h, w, K).
        exp_score: e; 1 gives the formula without it.

    Returns:
        alpha (h, w, K), weights (K,), cam (h, w); weights and cam with e in them.
    """
    import tensorflow as tf

    a, g, e = tf.constant(activations), tf.constant(gradients), tf.constant(exp_score)
    first = e * g
    second = first * g
    third = second * g
    total = tf.reduce_sum(a, (0, 1), keepdims=True)
    denominator = second * 2.0 + third * total
    denominator = denominator + tf.cast(second == 0.0, second.dtype)
    alpha = second / denominator
    constant = tf.reduce_sum(alpha, (0, 1), keepdims=True)
    alpha = alpha / (constant + tf.cast(constant == 0.0, constant.dtype))
    weights = tf.reduce_sum(tf.nn.relu(first) * alpha, (0, 1), keepdims=True)
    cam = tf.nn.relu(tf.reduce_sum(weights * a, -1))
    return alpha.numpy(), weights.numpy()[0, 0], cam.numpy()


def out_of_range(gradients: np.ndarray, exp_score: np.floating[Any]) -> bool:
    """Whether e·G, e·G² or e·G³ overflows, or loses digits to underflow, at a gradient that matters."""
    limits = np.finfo(gradients.dtype)
    magnitudes = np.abs(gradients.astype(np.float64))
    significant = magnitudes[(magnitudes > SIGNIFICANT * magnitudes.max()) & (magnitudes > 0)]
    if significant.size == 0:
        return False
    if not 0 < exp_score < math.inf:
        return True
    logs = np.log([significant.min(), significant.max()])
    spans = [math.log(exp_score) + k * logs for k in (0, 1, 2, 3)]  # logarithms: the products would leave float64 too
    return bool(min(s[0] for s in spans) < math.log(limits.tiny) or max(s[1] for s in spans) > math.log(limits.max))


@contextlib.contextmanager
def legacy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which tf-keras-vis draws from, and put it back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _cams(library: Callable[..., Any], inputs: np.ndarray, class_index: int) -> tuple[np.ndarray, np.ndarray]:
    """The raw map (1, h, w), and the final one (1, H, W) by the lab's own call."""
    from tf_keras_vis.utils.scores import CategoricalScore

    score = CategoricalScore([class_index])
    raw = library(score, inputs, penultimate_layer=-1, expand_cam=False, normalize_cam=False)
    return np.asarray(raw), np.asarray(library(score, inputs, penultimate_layer=-1))


def _upsampled(cam: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """As tf-keras-vis does it: (1, h, w) → (1, H, W)."""
    from scipy.ndimage import zoom
    from tf_keras_vis.utils import zoom_factor

    return np.asarray(zoom(cam, zoom_factor(cam.shape, inputs.shape), order=1))


def _normalized(maps: np.ndarray) -> np.ndarray:
    from tf_keras_vis.utils import normalize

    with np.errstate(all="ignore"):
        return np.asarray(normalize(maps))


def _divided(array: np.ndarray, exp_score: np.floating[Any]) -> np.ndarray:
    """Without e: divided in float64, so that the division adds no rounding of its own that shows."""
    with np.errstate(all="ignore"):
        quotient: np.ndarray = (array.astype(np.float64) / np.float64(exp_score)).astype(array.dtype)
    return quotient


def _agree(stage: str, recomputed: np.ndarray, returned: np.ndarray) -> None:
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


def _same_state(one: Any, other: Any) -> bool:
    return (
        np.array_equal(one["state"]["key"], other["state"]["key"])
        and one["state"]["pos"] == other["state"]["pos"]
        and one["has_gauss"] == other["has_gauss"]
    )
