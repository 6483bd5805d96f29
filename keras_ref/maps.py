"""The maps through unmodified tf-keras-vis, one function each, and every stage on the way.

tf-keras-vis returns maps only. Each layer's activations and gradients, the channel weights and alpha are recomputed
beside it by the same TensorFlow operations, and the map that follows from them is compared with the one it returned: a
mismatch is an error, not a stage.

Everything here takes one photograph, (1, H, W, 3), so that no photograph can touch another's map.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np

from keras_ref import KerasRefError
from keras_ref.passes import Pass, Stages, agree
from parity.contract.exponent import is_lost
from parity.contract.methods import FASTER_CHANNELS, Options
from parity.contract.noise import unit_noise


def vanilla(p: Pass) -> Stages:
    """Vanilla saliency: max over channels of |gradient|, normalized.

    Source: arXiv:1312.6034, by tf-keras-vis's `Saliency`.
    """
    from tf_keras_vis.saliency import Saliency

    saliency = Saliency(p.models.linear)
    raw = np.asarray(saliency(p.score, p.inputs, normalize_map=False))
    final = np.asarray(saliency(p.score, p.inputs))
    agree("vanilla/raw", np.abs(p.shared["gradients/inputs"]).max(-1), raw[0])
    agree("vanilla/final", _normalized(raw), final)
    return {"raw": raw[0], "final": final[0]}


def smoothgrad(p: Pass) -> Stages:
    """SmoothGrad with the seed's noise: max over channels of the mean of |gradient|, normalized.

    The map is normalized by tf-keras-vis's own function here, because its default call would take every sample again;
    that the two are the same is checked on `vanilla`, and by a test.

    Raises:
        KerasRefError: tf-keras-vis drew other numbers than the contract's.

    Source: arXiv:1706.03825, by tf-keras-vis's `Saliency`.
    """
    from tf_keras_vis.saliency import Saliency

    n_samples, noise_level, seed = p.options.n_samples, p.options.noise_level, p.options.seed
    with legacy_seed(seed):
        raw = Saliency(p.models.linear)(
            p.score, p.inputs, smooth_samples=n_samples, smooth_noise=noise_level, normalize_map=False
        )
        following = np.random.standard_normal()
    expected = np.random.RandomState(seed)
    for _ in range(n_samples):  # one after the other: twenty at once would be another 24 MB
        expected.standard_normal(p.inputs.shape)
    if following != expected.standard_normal():
        raise KerasRefError(
            "smoothgrad/noise: tf-keras-vis drew other noise than the contract's: use tf-keras-vis 0.8.6 or 0.8.7, "
            "and unset TF_KERAS_VIS_MAX_STEPS"
        )
    maps = np.asarray(raw)
    return {"noise": noise(p.inputs[0], p.options), "raw": maps[0], "final": _normalized(maps)[0]}


def noise(inputs: np.ndarray, options: Options) -> np.ndarray:
    """What SmoothGrad adds to inputs (H, W, 3): σ·unit noise in float64, cast to their type: (S, H, W, 3).

    σ itself is computed in the inputs' type, as tf-keras-vis does: in float32 it is not the float64 product rounded.
    """
    kind = inputs.dtype.type
    sigma = np.float64(kind(options.noise_level) * (inputs.max() - inputs.min()))
    units = unit_noise(options.seed, options.n_samples, inputs.shape)
    return np.stack([(sigma * unit).astype(kind) for unit in units])


def gradcam(p: Pass) -> Stages:
    """Grad-CAM at the target layer.

    Source: arXiv:1610.02391, by tf-keras-vis's `Gradcam(penultimate_layer=-1)`.
    """
    import tensorflow as tf
    from tf_keras_vis.gradcam import Gradcam

    raw, final = _cams(Gradcam(p.models.linear), p)
    weights = tf.reduce_mean(p.gradients, (0, 1)).numpy()  # NumPy adds in another order
    cam = np.maximum((p.activations * weights).sum(-1), 0)
    return {"weights": weights, **_agreed("gradcam", p, cam, raw, final)}


def gradcam_plus_plus(p: Pass) -> Stages:
    """Grad-CAM++ at the target layer, with exp(score) divided out of weights and raw map.

    Near a pole of alpha one unit in the last place moves the float32 map by a tenth of its range, so another way of
    computing it could not be told from an error: the check repeats the library's very operations on the same A, G and
    score.

    It is remarked where exp(score) leaves the range of the type. Then, in float32, the stages are the library's all the
    same (zero, infinite or NaN, as it has them); in float64 they are the formula's without exp(score), because the
    comparison rests on them. `final_with_exp` is the library's own map in either.

    Source: arXiv:1710.11063, by tf-keras-vis's `GradcamPlusPlus(penultimate_layer=-1)`.
    Differs: from the paper's published code, in that alpha is divided by its own sum.
    """
    import tensorflow as tf
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus

    raw, final = _cams(GradcamPlusPlus(p.models.linear), p)
    exp_score = tf.math.exp(tf.constant(p.shared["score"])).numpy()
    alpha, weights, cam = plus_plus(p.activations, p.gradients, exp_score)
    agree("gradcam_plus_plus/raw", cam, raw[0])
    agree("gradcam_plus_plus/final", _normalized(_upsampled(raw, p.inputs)), final)
    divided, weights = _divided(raw, exp_score), _divided(weights, exp_score)
    kind = p.inputs.dtype.name
    if is_lost(p.gradients, float(p.shared["score"]), kind):
        p.remarks.append(
            f"exp(score) is out of {kind}'s range (score {float(p.shared['score']):.1f}), the reference's own "
            f"Grad-CAM++ in {kind} is unusable there"
        )
        if kind == "float64":
            alpha, weights, cam = plus_plus(p.activations, p.gradients, np.float64(1))
            divided = cam[None]
    upsampled = _upsampled(divided, p.inputs)
    return {
        "alpha": alpha,
        "weights": weights,
        "raw": divided[0],
        "upsampled": upsampled[0],
        "final": _normalized(upsampled)[0],
        "final_with_exp": final[0],
    }


def layercam(p: Pass) -> Stages:
    """LayerCAM at the target layer.

    Source: doi:10.1109/TIP.2021.3089943, by tf-keras-vis's `Layercam(penultimate_layer=-1)`.
    """
    from tf_keras_vis.layercam import Layercam

    raw, final = _cams(Layercam(p.models.linear), p)
    cam = np.maximum((p.activations * np.maximum(p.gradients, 0)).sum(-1), 0)
    return _agreed("layercam", p, cam, raw, final)


def scorecam(p: Pass) -> Stages:
    """Score-CAM over all feature maps of the target layer.

    Source: arXiv:1910.01279, by tf-keras-vis's `Scorecam(penultimate_layer=-1)` on the linear output.
    """
    return _score_weighted("scorecam", p, np.arange(p.activations.shape[-1]), None)


def faster_scorecam(p: Pass) -> Stages:
    """Score-CAM over the feature maps that vary most.

    Source: tf-keras-vis's `Scorecam(penultimate_layer=-1, max_N=m)`.
    """
    import tensorflow as tf

    count = p.activations.shape[-1]
    m = min(FASTER_CHANNELS, count) if p.options.channels is None else p.options.channels
    if m > count:
        raise KerasRefError(f"--channels {m}: the target layer has {count} feature maps")
    channels = tf.math.top_k(tf.math.reduce_std(tf.constant(p.activations), (0, 1)), m).indices.numpy()
    # Asked for all of them, the library leaves them in their own order.
    stages = _score_weighted("faster_scorecam", p, channels if m < count else np.arange(count), m)
    if m == count:
        stages |= {name: stages[name][channels] for name in ("scores", "weights")}
    return {"channels": channels, **stages}


def _score_weighted(name: str, p: Pass, channels: np.ndarray, max_n: int | None) -> Stages:
    """The stages that both Score-CAMs share.

    The library's score function is asked for each mask's probabilities; its final map is its own enlarging and
    normalizing of its raw map, because its default call would take every pass again.
    """
    from tf_keras_vis.scorecam import Scorecam

    if p.shared["logits"].size == 1:
        raise KerasRefError(
            f"{name}: Score-CAM says nothing of a network with one output: it takes the softmax over the classes, which is 1"
        )
    if os.environ.get("TF_KERAS_VIS_MAX_STEPS"):
        raise KerasRefError(f"{name}: TF_KERAS_VIS_MAX_STEPS limits its feature maps: unset it")
    probabilities: list[np.ndarray] = []

    def score(output: Any) -> Any:
        chosen = output[:, p.class_index]
        probabilities.append(np.asarray(chosen)[0])
        return chosen

    with _cast_weights(p), contextlib.redirect_stdout(io.StringIO()):  # Keras's own progress bar
        raw = np.asarray(
            Scorecam(p.models.linear)(
                score, p.inputs, **p.models.cam_options, max_N=max_n, expand_cam=False, normalize_cam=False
            )
        )
    scores = np.array(probabilities)
    if len(channels) == p.activations.shape[-1]:  # where it takes all, the library leaves them in their order
        scores = scores[channels]
    weights = scores.astype(np.float32).astype(raw.dtype)  # the library rounds them, also in float64
    agree(f"{name}/raw", np.maximum((p.activations[..., channels] * weights).sum(-1), 0), raw[0])
    upsampled = _upsampled(raw, p.inputs)
    final = _normalized(upsampled)[0]
    return {"scores": scores, "weights": weights, "raw": raw[0], "upsampled": upsampled[0], "final": final}


@contextlib.contextmanager
def _cast_weights(p: Pass) -> Iterator[None]:
    """In float64 the library multiplies double activations with float32 weights, which TensorFlow refuses: they are cast."""
    from tf_keras_vis.scorecam import K

    if p.inputs.dtype != np.float64:
        yield
        return
    import tensorflow as tf

    product = K.batch_dot
    remark = (
        "Score-CAM in float64: tf-keras-vis's float32 weights were cast to float64 for its product, which else fails"
    )
    if remark not in p.remarks:
        p.remarks.append(remark)
    with mock.patch.object(K, "batch_dot", lambda x, y: product(x, tf.cast(y, x.dtype))):
        yield


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


@contextlib.contextmanager
def legacy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which tf-keras-vis draws from, and put it back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _cams(library: Callable[..., Any], p: Pass) -> tuple[np.ndarray, np.ndarray]:
    """The raw map (1, h, w), and the final one (1, H, W) by the lab's own call."""
    raw = library(p.score, p.inputs, **p.models.cam_options, expand_cam=False, normalize_cam=False)
    return np.asarray(raw), np.asarray(library(p.score, p.inputs, **p.models.cam_options))


def _agreed(name: str, p: Pass, cam: np.ndarray, raw: np.ndarray, final: np.ndarray) -> Stages:
    """The map's stages, once the library's are seen to be the recomputed ones."""
    agree(f"{name}/raw", cam, raw[0])
    upsampled = _upsampled(raw, p.inputs)
    agree(f"{name}/final", _normalized(upsampled), final)
    return {"raw": raw[0], "upsampled": upsampled[0], "final": final[0]}


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


MAPS: Mapping[str, Callable[[Pass], Stages]] = {
    function.__name__: function
    for function in (vanilla, smoothgrad, gradcam, gradcam_plus_plus, layercam, scorecam, faster_scorecam)
}
"""Each map by its name in `parity.contract.methods`: its own stages, as the row there names them."""
