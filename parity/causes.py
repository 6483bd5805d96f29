"""Why probably: known mistakes, each tried on the reference's own numbers to see whether it explains the candidate's.

A cause is named only where the mistake, made on purpose, gives the candidate's values (relative L2 below `EXPLAINS`), or
where a pattern in the values leaves no other reading. Otherwise the layer's kind says where to look, and the words say
"look for".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity import formulas
from parity.contract.artifact import Artifact
from parity.contract.stages import Stage
from parity.similarity import relative_l2

EXPLAINS = 0.02
"""A mistake explains a stage when it leaves less than this of it unexplained; float16's rounding is below."""

Hypothesis = tuple[str, np.ndarray]


def probable_cause(reference: Artifact, candidate: Artifact, precision: str, photograph: int, stage_name: str) -> str:
    """The most likely mistake behind a stage that is off, or "".

    Args:
        reference: with float64.
        candidate: the same job.
        precision: the candidate's.
        photograph: its row.
        stage_name: the first stage beyond its limit.
    """
    stage = candidate.stage(stage_name)
    if stage.quantity == "final_with_exp" or not candidate.has(stage_name, precision):
        return "the map after multiplying exp(score) back"
    actual = candidate.values(stage_name, precision)[photograph].astype(np.float64)
    expected = reference.values(stage_name, "fp64")[photograph]
    if not np.isfinite(actual).all():
        return "values are not finite: an overflow, exp(score) left in, or a division by zero"
    tried = _hypotheses(reference, candidate, photograph, stage)
    best = min(((relative_l2(actual, values), words) for words, values in tried), default=(np.inf, ""))
    if best[0] < EXPLAINS and best[0] < 0.5 * relative_l2(actual, expected):
        return best[1]
    return _pattern(reference, candidate, precision, photograph, stage, actual, expected)


def pixels_cause(read: np.ndarray, resized: dict[str, np.ndarray]) -> str:
    """Which resize explains pixels that are not Keras's.

    Args:
        read: uint8 (H, W, 3), the candidate's.
        resized: name of a resize → the same photograph by it.
    """
    for words, pixels in resized.items():
        if pixels.shape == read.shape and np.abs(pixels.astype(int) - read).mean() < 1:
            return f"resized with {words}: Keras's load_img takes the nearest neighbour and ignores the aspect ratio"
    if read.shape[-1] == 3 and any(np.array_equal(read[..., ::-1], p) for p in resized.values()):
        return "channels in the order BGR"
    return "look for another resize, decoder, or colour conversion"


def _hypotheses(reference: Artifact, candidate: Artifact, i: int, stage: Stage) -> Iterator[Hypothesis]:
    """Known mistakes and what each would have given at this stage: (words, values as kept)."""
    taken = lambda words, array: (words, stage.take(np.asarray(array, np.float64)[None])[0])  # noqa: E731
    size = reference.weights.architecture.size
    if stage.name == "inputs":
        for words, array in _wrong_inputs(reference.pixels[i], reference.settings.input):
            yield taken(words, array)
    elif stage.name == "logits":
        logits = reference.whole("logits", "fp64")[i]
        e = np.exp(logits - logits.max())
        yield taken("softmax left on: these are probabilities, not logits", e / e.sum())
        yield taken("log-softmax left on", logits - logits.max() - np.log(e.sum()))
        if (network := candidate.network) is not None:
            name = list(network.tensors)[-1]
            yield taken("the last layer's bias is missing", logits - network.tensors[name])
    elif stage.quantity in ("weights", "alpha", "raw", "upsampled", "final") and stage.method:
        yield from ((words, stage.take(array[None])[0]) for words, array in _wrong_maps(reference, i, stage, size))


def _wrong_inputs(pixels: np.ndarray, input: str) -> Iterator[tuple[str, np.ndarray]]:
    rgb, right = pixels.astype(np.float64), formulas.preprocess(pixels, input)
    caffe = np.array(formulas.CAFFE_MEAN_BGR)
    mean, std = np.array(formulas.TORCHVISION_MEAN), np.array(formulas.TORCHVISION_STD)
    yield "channel order: RGB where the network wants BGR (or the reverse)", right[..., ::-1]
    if input == "caffe":
        yield "channel order: RGB for BGR, with the mean in BGR order", rgb - caffe
        yield "the mean was not subtracted", rgb[..., ::-1]
        yield "scaled to [0, 1] before the mean was subtracted", rgb[..., ::-1] / 255 - caffe
        yield (
            "torchvision's statistics (RGB / 255, mean, deviation) for a caffe-trained network",
            (rgb / 255 - mean) / std,
        )
    else:
        yield "caffe statistics (BGR minus mean) for a network trained on torchvision's", rgb[..., ::-1] - caffe
        yield "not divided by the standard deviation", rgb / 255 - mean
        yield "not divided by 255", (rgb - mean) / std
    yield "no preprocessing: raw pixels", rgb
    yield "only scaled to [0, 1]", rgb / 255
    yield "scaled to [-1, 1]", rgb / 127.5 - 1


def _wrong_maps(reference: Artifact, i: int, stage: Stage, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """What known mistakes make of the reference's own activations and gradients."""
    target = reference.weights.architecture.target.keras
    method, quantity = stage.method, stage.quantity
    if quantity in ("upsampled", "final"):
        raw = reference.whole(f"{method}/raw", "fp64")[i]
        if raw.shape != (size, size):
            half = formulas.upsample(raw, size, half_pixel=True)
            if quantity == "upsampled":
                yield "resize grid: half-pixel centres (cv2.resize, align_corners=False) for corner on corner", half
                yield "normalized before it was enlarged", formulas.upsample(formulas.normalize(raw), size)
            else:
                yield (
                    "resize grid: half-pixel centres (cv2.resize, align_corners=False) for corner on corner",
                    (formulas.normalize(half)),
                )
        if quantity == "final":
            plain = raw if raw.shape == (size, size) else formulas.upsample(raw, size)
            yield "not normalized", plain
            if plain.max() > 0:
                yield "divided by the maximum, without subtracting the minimum", plain / plain.max()
            if raw.shape != (size, size):
                yield "normalized before it was enlarged", formulas.upsample(formulas.normalize(raw), size)
        return
    if method not in ("gradcam", "gradcam_plus_plus"):
        return
    a, g = (reference.whole(f"{kind}/{target}", "fp64")[i] for kind in ("activations", "gradients"))
    if method == "gradcam":
        candidates = {
            "sum of the gradients for their mean": g.sum(axis=(0, 1)),
            "Grad-CAM++'s weights for Grad-CAM's": formulas.grad_cam_plus_plus_weights(
                g, formulas.grad_cam_plus_plus_alpha(a, g)
            ),
            "absolute gradients": np.abs(g).mean(axis=(0, 1)),
            "positive gradients only": np.maximum(g, 0).mean(axis=(0, 1)),
        }
        for words, weights in candidates.items():
            yield words, weights if quantity == "weights" else formulas.class_activation_map(a, weights)
        if quantity == "raw":
            right = formulas.grad_cam_weights(g)
            yield "no ReLU on the map", a @ right
            yield "absolute value for the ReLU on the map", np.abs(a @ right)
        return
    variants = {
        "alpha was not divided by its own sum": {"normalized": False},
        "epsilon: 1e-6 added to alpha's denominator (its terms are about 1e-8), and alpha not divided by its sum": {
            "epsilon": 1e-6,
            "normalized": False,
        },
        "epsilon: 1e-6 added to alpha's denominator": {"epsilon": 1e-6},
        "mean(A) for the sum of A in alpha's denominator": {"mean_of_activations": True},
    }
    for words, keywords in variants.items():
        alpha = formulas.grad_cam_plus_plus_alpha(a, g, **keywords)  # type: ignore[arg-type]
        if quantity == "alpha":
            yield words, alpha
            continue
        weights = formulas.grad_cam_plus_plus_weights(g, alpha)
        yield words, weights if quantity == "weights" else formulas.class_activation_map(a, weights)
    if quantity != "alpha":
        plain = formulas.grad_cam_weights(g)
        yield (
            "Grad-CAM's weights for Grad-CAM++'s",
            plain if quantity == "weights" else formulas.class_activation_map(a, plain),
        )
        right = formulas.grad_cam_plus_plus_alpha(a, g)
        signed = np.asarray((g * right).sum(axis=(0, 1)))
        yield "no ReLU on the gradients", signed if quantity == "weights" else formulas.class_activation_map(a, signed)


def _pattern(
    reference: Artifact,
    candidate: Artifact,
    precision: str,
    i: int,
    stage: Stage,
    actual: np.ndarray,
    expected: np.ndarray,
) -> str:
    """A pattern in the values themselves, or where to look."""
    architecture = reference.weights.architecture
    kinds = {layer.keras: layer.kind for layer in architecture.layers}
    kind = kinds.get(stage.layer, "")
    ratio = _constant_ratio(actual, expected)
    quantity = stage.quantity
    if quantity == "activations":
        if (actual < 0).any() and not (expected < 0).any():
            return "negative values: taken before the ReLU (the convolution's own output, not the layer's)"
        if kind == "dense" and stage.layer != "predictions" and _dropped(actual, expected):
            return "dropout is on: some units are 0, the others larger (call eval())"
        if kind == "dense" and stage.layer == "fc1":
            return (
                "look for the flatten order of fc1's inputs ((H, W, C) in Keras, (C, H, W) in torch), or a missing bias"
            )
        if kind == "dense":
            return "look for a transposed kernel, a missing bias, or dropout left on"
        if kind == "conv":
            return (
                "look for the kernel's layout (HWIO, OIHW), a flipped kernel, a missing bias, the padding, or the ReLU"
            )
        return "look for the pooling: its window, stride, padding, or average for maximum"
    if quantity == "logits":
        offset = actual - expected
        if np.ptp(offset) < 1e-3 * max(float(np.ptp(expected)), 1e-30):
            return "a constant was added to every logit"
        return (
            "look for a transposed kernel or a missing bias of the last layer, softmax left on, or another class order"
        )
    if quantity == "score":
        logits = reference.whole("logits", "fp64")[i]
        nearest = int(np.abs(logits - actual[0]).argmin())
        if nearest != reference.classes[i] and abs(logits[nearest] - actual[0]) <= 1e-3 * np.ptp(logits):
            return f"another class: this is the logit of class {nearest}, not {reference.classes[i]}"
        e = np.exp(logits - logits.max())
        if abs(actual[0] - (e / e.sum())[reference.classes[i]]) < 1e-4:
            return "softmax left on: the score is a probability"
        return "look for another class, softmax left on, or the score of the whole batch"
    if quantity == "gradients":
        if ratio is not None:
            return f"the gradients are {ratio:.3g} times the reference's: a scaled score, a mean for a sum, or softmax left on"
        return "look for another class, softmax left on, or a backward pass through other switches (ReLU, max-pool)"
    if quantity == "noise":
        return _noise_pattern(reference, candidate, precision, i)
    if stage.method in ("vanilla", "smoothgrad") and quantity == "raw":
        return _saliency_pattern(stage.method, actual, expected, ratio)
    if ratio is not None:
        return f"{ratio:.3g} times the reference's: a constant factor"
    if stage.method.startswith("gradcam"):
        return "look for the target layer (after the last ReLU, before the pool) and for how its gradients are weighted"
    return ""


def _noise_pattern(reference: Artifact, candidate: Artifact, precision: str, i: int) -> str:
    theirs = candidate.values("smoothgrad/noise", precision).astype(np.float64)
    ours = reference.values("smoothgrad/noise", "fp64")
    ratio = _constant_ratio(theirs[i], ours[i])
    if ratio is None:
        return "other noise: another generator, seed, or order of drawing (NumPy's RandomState, channels last, per photograph)"
    sigmas = theirs.std(axis=1)
    if len(sigmas) > 1 and np.ptp(sigmas) < 1e-3 * sigmas.mean() and np.ptp(ours.std(axis=1)) > 1e-3 * ours.std():
        level = reference.settings.noise_level
        absolute = abs(sigmas.mean() - level) < 0.05 * level
        what = f"σ is {level} itself, not a fraction of the range" if absolute else "one σ for all photographs"
        return f"{what}: σ is {reference.settings.noise_level} times each image's own range (here {ratio:.3g} times too small or large)"
    return f"σ is {ratio:.3g} times the reference's: it is noise level times (max − min) of each preprocessed image"


def _saliency_pattern(method: str, actual: np.ndarray, expected: np.ndarray, ratio: float | None) -> str:
    if ratio is not None:
        return f"{ratio:.3g} times the reference's: a constant factor"
    positive = expected > 1e-6 * expected.max(initial=0)
    share = actual[positive] / expected[positive]
    if share.size and share.max() <= 1 + 1e-6:
        # Three values ≥ 0: their mean lies between a third of their maximum and the maximum.
        if share.min() >= 1 / 3 - 1e-6:
            return "mean over the colour channels for their maximum"
        if method == "smoothgrad" and share.min() >= 0:
            return "absolute value after the mean over samples: it belongs before (|mean| is never above mean of |·|)"
        if share.min() < 0:
            return "no absolute value: the gradient itself"
        return "smaller everywhere: look for one colour channel instead of the maximum, or positive gradients only"
    if share.size and share.min() >= 1 - 1e-6 and share.max() <= 3 + 1e-6:
        return "sum over the colour channels for their maximum"
    return "look for the score (class, softmax), the order of |·|, mean and maximum, or the noise"


def _constant_ratio(actual: np.ndarray, expected: np.ndarray) -> float | None:
    """The factor between the two where it is the same everywhere, and not 1."""
    scale = float(expected @ expected)
    if scale == 0:
        return None
    ratio = float(actual @ expected) / scale
    if ratio == 0 or abs(ratio - 1) < 1e-3 or relative_l2(actual, ratio * expected) > 1e-3:
        return None
    return ratio


def _dropped(actual: np.ndarray, expected: np.ndarray) -> bool:
    alive = expected > 0
    return bool(alive.sum() >= 4) and 0.1 < float((actual[alive] == 0).mean()) < 0.9
