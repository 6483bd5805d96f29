"""Known mistakes, each made on purpose with the reference's own numbers, to see whether it explains the candidate's.

To add one is to add a row: about what, at which quantity, in which words, and what the mistake would have given there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from parity import formulas
from parity.case import Case
from parity.similarity import relative_l2


@dataclass(frozen=True)
class Mistake:
    """One row.

    Attributes:
        about: one of `Case.subjects`: a kind of layer, a method, …; "" for all.
        quantity: `inputs`, `activations`, `logits`, `alpha`, `raw`, …: see `stages.Stage.quantity`.
        words: the cause, for a reader; `{case.…}` is filled in.
        make: what the mistake would have given at this stage; None where that cannot be computed.
    """

    about: str
    quantity: str
    words: str
    make: Callable[[Case], np.ndarray | None]


def best(case: Case) -> tuple[float, str]:
    """The mistake that comes nearest to the candidate's values: how much of them it leaves unexplained, and its words."""
    return min(((relative_l2(case.actual, values), words) for words, values in tried(case)), default=(np.inf, ""))


def tried(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Every mistake that may be made at this stage: its words, and the values that it would have given, as kept."""
    for row in MISTAKES:
        if row.quantity == case.stage.quantity and row.about in case.subjects:
            made = row.make(case)
            if made is not None and np.shape(made) == case.stage.shape:
                yield row.words.format(case=case), case.kept(made)


CAFFE = np.array(formulas.CAFFE_MEAN_BGR)
MEAN, STD = np.array(formulas.TORCHVISION_MEAN), np.array(formulas.TORCHVISION_STD)


def _rgb(case: Case) -> np.ndarray:
    return np.asarray(case.reference.pixels[case.photograph], np.float64)


def _bgr(case: Case) -> np.ndarray:
    return _rgb(case)[..., ::-1]


def _inputs(case: Case) -> np.ndarray:
    return formulas.inputs_of(case.reference, case.photograph)


_PREPROCESSING = (
    Mistake("", "inputs", "channel order: RGB where the network wants BGR (or the reverse)", lambda c: _inputs(c)[..., ::-1]),
    Mistake("caffe", "inputs", "channel order: RGB for BGR, with the mean in BGR order", lambda c: _rgb(c) - CAFFE),
    Mistake("caffe", "inputs", "the mean in RGB order, on channels in BGR order", lambda c: _bgr(c) - CAFFE[::-1]),
    Mistake("caffe", "inputs", "the mean was not subtracted", _bgr),
    Mistake("caffe", "inputs", "scaled to [0, 1] before the mean was subtracted", lambda c: _bgr(c) / 255 - CAFFE),
    Mistake(
        "caffe",
        "inputs",
        "torchvision's statistics (RGB / 255, mean, deviation) for a caffe-trained network",
        lambda c: (_rgb(c) / 255 - MEAN) / STD,
    ),
    Mistake(
        "torchvision",
        "inputs",
        "caffe statistics (BGR minus mean) for a network trained on torchvision's",
        lambda c: _bgr(c) - CAFFE,
    ),
    Mistake("torchvision", "inputs", "not divided by the standard deviation", lambda c: _rgb(c) / 255 - MEAN),
    Mistake("torchvision", "inputs", "not divided by 255", lambda c: (_rgb(c) - MEAN) / STD),
    Mistake("", "inputs", "no preprocessing: raw pixels", _rgb),
    Mistake("", "inputs", "only scaled to [0, 1]", lambda c: _rgb(c) / 255),
    Mistake("", "inputs", "scaled to [-1, 1]", lambda c: _rgb(c) / 127.5 - 1),
)  # fmt: skip


def _dense(case: Case, *, last: str = "", bias: bool = True, relu: bool = True) -> np.ndarray | None:
    """A hidden dense layer computed again, with a mistake in it.

    Args:
        case: at that layer.
        last: whose channels run last, as Keras flattens them: `inputs`, `kernel`; "" for neither, which is right here.
        bias: whether it is added.
        relu: whether it is applied.
    """
    kernel, offset, features = case.tensor("weight"), case.tensor("bias"), case.layer_input
    if kernel is None or offset is None or features is None:
        return None
    if features.ndim == 3:
        height, width, channels = features.shape
        if last == "kernel":
            kernel = kernel.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(kernel.shape)
        if last != "inputs":
            features = features.transpose(2, 0, 1)
    output = kernel @ features.ravel() + (offset if bias else 0)
    return np.asarray(np.maximum(output, 0) if relu else output)


_ORDER = "flatten order: {case.stage.layer}'s inputs run (H, W, C) in Keras, (C, H, W) in torch"

_LAYERS = (
    Mistake("flattened", "activations", _ORDER, lambda c: _dense(c, last="inputs")),
    Mistake("flattened", "activations", _ORDER, lambda c: _dense(c, last="kernel")),
    Mistake("dense", "activations", "{case.stage.layer}'s bias is missing", lambda c: _dense(c, bias=False)),
    Mistake("dense", "activations", "no ReLU after {case.stage.layer}", lambda c: _dense(c, relu=False)),
)


def _log_softmax(case: Case) -> np.ndarray:
    return np.asarray(case.logits - np.logaddexp.reduce(case.logits))


def _without_last_bias(case: Case) -> np.ndarray | None:
    bias = case.tensor("bias")
    return None if bias is None else case.logits - bias


_OUTPUT = (
    Mistake("", "logits", "softmax left on: these are probabilities, not logits", lambda c: np.exp(_log_softmax(c))),
    Mistake("", "logits", "log-softmax left on", _log_softmax),
    Mistake("", "logits", "the last layer's bias is missing", _without_last_bias),
)


def _enlarged(case: Case, *, half_pixel: bool = False, early: bool = False, order: int = 1) -> np.ndarray:
    """The raw map at the photograph's size, with a mistake in it; only of maps at a layer."""
    raw = formulas.normalize(case.raw) if early else case.raw
    return formulas.upsample(raw, case.reference.table.size, half_pixel=half_pixel, order=order)


def _full_size(case: Case) -> np.ndarray:
    return case.raw if case.raw.shape == case.reference.table.size else _enlarged(case)


def _over_maximum(case: Case) -> np.ndarray | None:
    drawn = _full_size(case)
    return drawn / drawn.max() if drawn.min() > 0 else None


def _wrong_enlargement(words: str, enlarge: Callable[[Case], np.ndarray]) -> tuple[Mistake, Mistake]:
    """A map that is enlarged otherwise, and the final map that is made of it."""
    return (
        Mistake("at a layer", "upsampled", words, enlarge),
        Mistake("at a layer", "final", words, lambda c: formulas.normalize(enlarge(c))),
    )


_EARLY = "normalized before it was enlarged"

_ENLARGING = (
    *_wrong_enlargement(
        "resize grid: half-pixel centres (cv2.resize, align_corners=False) for corner on corner",
        lambda c: _enlarged(c, half_pixel=True),
    ),
    *_wrong_enlargement(
        "enlarged bicubically, on half-pixel centres: it is bilinear, corner on corner",
        lambda c: formulas.bicubic(c.raw, c.reference.table.size, half_pixel=True),
    ),
    *_wrong_enlargement(
        "enlarged bicubically: it is bilinear",
        lambda c: formulas.bicubic(c.raw, c.reference.table.size, half_pixel=False),
    ),
    *_wrong_enlargement(
        "enlarged by cubic splines (the default of scipy.ndimage.zoom): it is order=1, bilinear",
        lambda c: _enlarged(c, order=3),
    ),
    *_wrong_enlargement(
        "enlarged by nearest neighbours: it is bilinear", lambda c: _enlarged(c, order=0, half_pixel=True)
    ),
    Mistake("at a layer", "upsampled", _EARLY, lambda c: _enlarged(c, early=True)),
    Mistake("", "final", "not normalized", _full_size),
    Mistake("", "final", "divided by the maximum, without subtracting the minimum", _over_maximum),
    Mistake("at a layer", "final", _EARLY, lambda c: _enlarged(c, early=True)),
    Mistake(
        "at a layer",
        "final",
        f"{_EARLY}, and again afterwards (or by its range without the 1e-7)",
        lambda c: formulas.normalize(_enlarged(c, early=True)),
    ),
)


def _alpha(case: Case, **mistakes: float) -> np.ndarray:
    return formulas.grad_cam_plus_plus_alpha(case.activations, case.gradients, **mistakes)  # type: ignore[arg-type]


def _plus_weights(case: Case, **mistakes: float) -> np.ndarray:
    return formulas.grad_cam_plus_plus_weights(case.gradients, _alpha(case, **mistakes))


def _wrong_weights(method: str, words: str, weights: Callable[[Case], np.ndarray]) -> tuple[Mistake, Mistake]:
    """Wrong channel weights, and the map that is made of them."""
    return (
        Mistake(method, "weights", words, weights),
        Mistake(method, "raw", words, lambda c: formulas.class_activation_map(c.activations, weights(c))),
    )


def _wrong_alpha(words: str, **mistakes: float) -> tuple[Mistake, ...]:
    """A wrong alpha, and the weights and the map that are made of it."""
    alpha = Mistake("gradcam_plus_plus", "alpha", words, lambda c: _alpha(c, **mistakes))
    return (alpha, *_wrong_weights("gradcam_plus_plus", words, lambda c: _plus_weights(c, **mistakes)))


def _without_relu(method: str, weights: Callable[[Case], np.ndarray]) -> tuple[Mistake, Mistake]:
    return (
        Mistake(method, "raw", "no ReLU on the map", lambda c: c.activations @ weights(c)),
        Mistake(method, "raw", "absolute value for the ReLU on the map", lambda c: np.abs(c.activations @ weights(c))),
    )


_CAMS = (
    *_wrong_weights("gradcam", "sum of the gradients for their mean", lambda c: c.gradients.sum(axis=(0, 1))),
    *_wrong_weights("gradcam", "Grad-CAM++'s weights for Grad-CAM's", _plus_weights),
    *_wrong_weights("gradcam", "absolute gradients", lambda c: np.abs(c.gradients).mean(axis=(0, 1))),
    *_wrong_weights("gradcam", "positive gradients only", lambda c: np.maximum(c.gradients, 0).mean(axis=(0, 1))),
    *_without_relu("gradcam", lambda c: formulas.grad_cam_weights(c.gradients)),
    *_wrong_alpha("alpha was not divided by its own sum", normalized=False),
    *_wrong_alpha(
        "epsilon: 1e-6 added to alpha's denominator (its terms are about 1e-8), and alpha not divided by its sum",
        epsilon=1e-6,
        normalized=False,
    ),
    *_wrong_alpha("epsilon: 1e-6 added to alpha's denominator", epsilon=1e-6),
    *_wrong_alpha("mean(A) for the sum of A in alpha's denominator", mean_of_activations=True),
    *_wrong_weights(
        "gradcam_plus_plus", "Grad-CAM's weights for Grad-CAM++'s", lambda c: formulas.grad_cam_weights(c.gradients)
    ),
    *_without_relu("gradcam_plus_plus", _plus_weights),
    *_wrong_weights("gradcam_plus_plus", "no ReLU on the gradients", lambda c: (c.gradients * _alpha(c)).sum((0, 1))),
)

SQUARED = "squared gradients for their absolute value"

_SALIENCY = (Mistake("vanilla", "raw", SQUARED, lambda c: c.raw**2),)


def _layer_map(gradients: Callable[[np.ndarray], np.ndarray]) -> Callable[[Case], np.ndarray]:
    """LayerCAM's raw map with something else for relu(G)."""
    return lambda c: np.maximum((c.activations * gradients(c.gradients)).sum(axis=-1), 0)


_LAYERCAM = (
    Mistake("layercam", "raw", "no ReLU on the gradients: it stands on their product alone", _layer_map(lambda g: g)),
    Mistake("layercam", "raw", "absolute gradients", _layer_map(np.abs)),
    Mistake("layercam", "raw", "Grad-CAM's weights for LayerCAM's", _layer_map(lambda g: g.mean(axis=(0, 1)))),
    Mistake(
        "layercam",
        "raw",
        "tanh of twice the map over its maximum, which the paper takes for shallow layers",
        lambda c: np.tanh(2 * c.raw / c.raw.max()) if c.raw.any() else None,
    ),
    Mistake("layercam", "raw", "tanh of the map", lambda c: np.tanh(c.raw)),
)


def _scores(case: Case) -> np.ndarray:
    return case.whole(f"{case.stage.method}/scores")


def _over_channels(case: Case) -> np.ndarray:
    scores = np.exp(_scores(case))
    return np.asarray(scores / scores.sum())


def _wrong_score_weights(words: str, weights: Callable[[Case], np.ndarray]) -> tuple[Mistake, Mistake]:
    """Weights that do not follow from the scores, and the map that is made of them."""

    def cam(case: Case) -> np.ndarray:
        return formulas.class_activation_map(case.activations[..., case.channels], weights(case))

    return Mistake("by scores", "weights", words, weights), Mistake("by scores", "raw", words, cam)


def _of_channels(case: Case, channels: np.ndarray) -> np.ndarray | None:
    """Faster-ScoreCAM's map of other channels, where Score-CAM's weights are known too."""
    if not case.reference.has("scorecam/weights", "fp64"):
        return None
    return formulas.class_activation_map(case.activations[..., channels], case.whole("scorecam/weights")[channels])


def _of_all_photographs(case: Case) -> np.ndarray:
    return np.unique(case.reference.whole("faster_scorecam/channels", "fp64")).astype(int)


def _wrong_channels(words: str, spread: Callable[..., np.ndarray]) -> tuple[Mistake, Mistake]:
    """Channels that are largest in something else, and the map that is made of them."""

    def channels(case: Case) -> np.ndarray:
        return formulas.most_varied(case.activations, len(case.channels), spread)

    return (
        Mistake("faster_scorecam", "channels", words, channels),
        Mistake("faster_scorecam", "raw", words, lambda c: _of_channels(c, channels(c))),
    )


UNION = "the channels of the whole batch together: each photograph takes its own alone"
BASELINE = "a baseline's score was subtracted: each is off by the same amount"

_SCORE_CAMS = (
    Mistake("by scores", "scores", "log-softmax over the classes for softmax", lambda c: np.log(_scores(c))),
    *_wrong_score_weights("softmax over the channels", _over_channels),
    *_wrong_score_weights("not rounded to float32, as the library rounds its weights, in float64 too", _scores),
    Mistake("faster_scorecam", "raw", UNION, lambda c: _of_channels(c, _of_all_photographs(c))),
    *_wrong_channels("the channels of the largest maxima, not of the largest deviation", np.max),
    *_wrong_channels("the channels of the largest means, not of the largest deviation", np.mean),
)

MISTAKES = (*_PREPROCESSING, *_LAYERS, *_OUTPUT, *_ENLARGING, *_SALIENCY, *_CAMS, *_LAYERCAM, *_SCORE_CAMS)
