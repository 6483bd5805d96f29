"""Why probably: known mistakes, each tried on the reference's own numbers to see whether it explains the candidate's.

A cause is named only where the mistake, made on purpose, gives the candidate's values (relative L2 below `EXPLAINS`), or
where a pattern in the values leaves no other reading. Otherwise the layer's kind says where to look, and the words say
"look for".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity import formulas
from parity.candidate import SHAPE
from parity.contract.artifact import Artifact
from parity.contract.stages import Stage, places
from parity.similarity import relative_l2

EXPLAINS = 0.02
"""A mistake explains a stage when it leaves less than this of it unexplained; float16's rounding is below."""

CONSTANT = 1e-3
"""Numbers that spread by less than this of their size are one number: float16's rounding is below."""

SINGLE = (1e-9, 2e-6)
HALF = (3e-5, 4e-3)
"""Relative L2 that float32, or float16, TF32 and bfloat16, leave on a sum of a few thousand products."""

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
    if shape := candidate.flags.get(f"{SHAPE}{stage_name}"):
        return _shape_words(reference, stage, str(shape))
    if stage.quantity == "final_with_exp" or not candidate.has(stage_name, precision):
        return "the map after multiplying exp(score) back"
    actual = candidate.values(stage_name, precision)[photograph].astype(np.float64)
    expected = reference.values(stage_name, "fp64")[photograph]
    if not np.isfinite(actual).all():
        return "values are not finite: an overflow, exp(score) left in, or a division by zero"
    tried = _hypotheses(reference, candidate, photograph, stage)
    best = min(((relative_l2(actual, values), words) for words, values in tried), default=(np.inf, ""))
    off = relative_l2(actual, expected)
    if best[0] < EXPLAINS and best[0] < 0.5 * off:
        return best[1]
    if precision == "fp64" and SINGLE[0] < off < SINGLE[1]:
        return "an error of float32's size: something is computed or kept in float32 where float64 was asked for"
    return _pattern(reference, candidate, precision, photograph, stage, actual, expected)


def pixels_cause(read: np.ndarray, expected: np.ndarray, resized: dict[str, np.ndarray]) -> str:
    """What explains pixels that are not Keras's.

    Args:
        read: uint8 (H, W, 3), the candidate's.
        expected: Keras's.
        resized: name of a resize → the same photograph by it.
    """
    if np.array_equal(read[..., ::-1], expected):
        return "channel order: BGR for RGB"
    for words, pixels in resized.items():
        if pixels.shape == read.shape and np.abs(pixels.astype(int) - read).mean() < 1:
            return f"resized with {words}: Keras's load_img takes the nearest neighbour and ignores the aspect ratio"
    return "look for another resize, decoder, or colour conversion"


def _hypotheses(reference: Artifact, candidate: Artifact, i: int, stage: Stage) -> Iterator[Hypothesis]:
    """Known mistakes and what each would have given at this stage: (words, values as kept)."""

    def taken(words: str, array: np.ndarray) -> Hypothesis:
        return words, stage.take(np.asarray(array, np.float64)[None])[0]

    size = reference.weights.architecture.size
    if stage.name == "inputs":
        for words, array in _wrong_inputs(reference.pixels[i], reference.settings.input):
            yield taken(words, array)
    elif stage.name in ("activations/fc1", "activations/fc2"):
        yield from ((words, stage.take(array[None])[0]) for words, array in _wrong_dense(reference, i, stage.layer))
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
        yield "the mean in RGB order, on channels in BGR order", rgb[..., ::-1] - caffe[::-1]
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


def _wrong_dense(reference: Artifact, i: int, layer: str) -> Iterator[tuple[str, np.ndarray]]:
    """What known mistakes make of a hidden dense layer; only where the artifact holds the weights and the layer before."""
    network = reference.network
    if network is None:
        return
    architecture = network.architecture
    name = next(row.torch for row in architecture.layers if row.keras == layer)
    weight, bias = (network.tensors[f"{name}.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
    if layer == "fc1":
        pooled = formulas.max_pool(reference.whole(f"activations/{architecture.target.keras}", "fp64")[i])
        before = pooled.transpose(2, 0, 1).ravel()
        wrong = weight @ pooled.ravel() + bias
        yield "flatten order: fc1's inputs run (H, W, C) in Keras, (C, H, W) in torch", np.maximum(wrong, 0)
    elif reference.stage("activations/fc1").whole:
        before = reference.whole("activations/fc1", "fp64")[i]
    else:
        return
    yield f"{layer}'s bias is missing", np.maximum(weight @ before, 0)
    yield f"no ReLU after {layer}", weight @ before + bias


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
            if plain.min() > 0:
                yield "divided by the maximum, without subtracting the minimum", plain / plain.max()
            if raw.shape != (size, size):
                early = formulas.upsample(formulas.normalize(raw), size)
                yield "normalized before it was enlarged", early
                yield (
                    "normalized before it was enlarged, and again afterwards (or by its range without the 1e-7)",
                    formulas.normalize(early),
                )
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
        weights = formulas.grad_cam_plus_plus_weights(g, right)
        if quantity == "raw":
            yield "no ReLU on the map", a @ weights
            yield "absolute value for the ReLU on the map", np.abs(a @ weights)
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
    half = ""
    if HALF[0] < relative_l2(actual, expected) < HALF[1]:
        half = "an error of half precision's size: weights or arithmetic in float16, bfloat16 or TF32 on one side"
    if quantity == "activations":
        if (actual < 0).any() and not (expected < 0).any():
            return "negative values: taken before the ReLU (the convolution's own output, not the layer's)"
        if _offset_by_bias(reference, candidate, precision, i, stage):
            return "a missing or another bias: each channel is off by a constant of its own"
        if kind == "dense" and (
            _dropped(actual, expected) or _dropped_before(reference, candidate, precision, i, stage)
        ):
            return "dropout is on: some units are 0, the others larger (call eval())"
        if half:
            return half
        if stage.layer == "fc1":
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
        if ratio is not None:
            return (
                f"the logits are {ratio:.3g} times the reference's: a temperature, or another scale of the last layer"
            )
        offset = actual - expected
        if np.ptp(offset) < 1e-3 * max(float(np.ptp(expected)), 1e-30):
            return "a constant was added to every logit"
        if _offset_by_bias(reference, candidate, precision, i, stage):
            return (
                "the last layer's bias is missing, or another: each logit is off by the same amount in every photograph"
            )
        if _dropped_before(reference, candidate, precision, i, stage):
            return "dropout is on: gradients of some units of fc2 are 0 (call eval())"
        return half or (
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
        if half:
            return half
        return "look for another class, softmax left on, or a backward pass through other switches (ReLU, max-pool)"
    if quantity == "noise":
        return _noise_pattern(reference, candidate, precision, i)
    if stage.method in ("vanilla", "smoothgrad") and quantity == "raw":
        return _saliency_pattern(reference, candidate, precision, i, stage.method, actual, expected, ratio)
    if ratio is not None:
        return f"{ratio:.3g} times the reference's: a constant factor"
    if half and quantity != "final":
        return half
    if stage.method.startswith("gradcam"):
        return "look for the target layer (after the last ReLU, before the pool) and for how its gradients are weighted"
    return ""


def _noise_pattern(reference: Artifact, candidate: Artifact, precision: str, i: int) -> str:
    """σ from the factor on the reference's noise, where it is the reference's noise."""
    theirs = candidate.values("smoothgrad/noise", precision).astype(np.float64)
    ours = reference.values("smoothgrad/noise", "fp64")
    factors = np.array([_factor(a, b) for a, b in zip(theirs, ours, strict=True)])
    if not np.isfinite(factors[i]):
        return "other noise: another generator, seed, or order of drawing (NumPy's RandomState, channels last, per photograph)"
    level, kind = reference.settings.noise_level, reference.settings.input
    ranges = np.array([np.ptp(formulas.preprocess(pixels, kind)) for pixels in reference.pixels])
    sigmas = factors * level * ranges
    right = f"it is {level:g} times each image's own range, here {level * ranges[i]:.4g}"
    if abs(sigmas[i] - level) < CONSTANT * level:
        return f"σ is {level:g} itself, not a fraction of the range: {right}"
    if len(sigmas) > 1 and np.ptp(sigmas) < CONSTANT * sigmas.mean() and np.ptp(ranges) > CONSTANT * ranges.mean():
        return f"one σ for all photographs, {sigmas[i]:.4g}: {right}"
    return f"σ is {sigmas[i]:.4g}: {right}"


def _saliency_pattern(
    reference: Artifact,
    candidate: Artifact,
    precision: str,
    i: int,
    method: str,
    actual: np.ndarray,
    expected: np.ndarray,
    ratio: float | None,
) -> str:
    if ratio is not None:
        return f"{ratio:.3g} times the reference's: a constant factor"
    positive = expected > 1e-6 * expected.max(initial=0)
    share = actual[positive] / expected[positive]
    if share.size and share.max() <= 1 + 1e-6:
        # Three values ≥ 0: their mean lies between a third of their maximum (one channel alone) and the maximum (all alike).
        if 1 / 3 - 1e-6 <= share.min() < 0.5 and share.max() > 0.75:
            return "mean over the colour channels for their maximum"
        if method == "smoothgrad" and share.min() >= 0:
            # |mean| is never above mean of |·|, but other mistakes make a map smaller too: the plain gradient must be right.
            order = "absolute value after the mean over samples: it belongs before"
            return (
                order
                if _gradient_is_right(reference, candidate, precision, i)
                else f"look for softmax left on, or for {order}"
            )
        if share.min() < 0:
            return "no absolute value: the gradient itself"
        return "smaller everywhere: look for softmax left on, one colour channel for the maximum, or positive gradients only"
    if share.size and share.min() >= 1 - 1e-6 and 2 < share.max() <= 3 + 1e-6:
        return "sum over the colour channels for their maximum"
    return "look for the score (class, softmax), the order of |·|, mean and maximum, or the noise"


def _gradient_is_right(reference: Artifact, candidate: Artifact, precision: str, i: int) -> bool:
    """Whether the candidate gave the gradient without noise, or its map, and it is the reference's."""
    for name in ("gradients/inputs", "vanilla/raw"):
        if all(a.has(name, p) for a, p in ((candidate, precision), (reference, "fp64"))):
            return relative_l2(candidate.values(name, precision)[i], reference.values(name, "fp64")[i]) < CONSTANT
    return False


def _shape_words(reference: Artifact, stage: Stage, shape: str) -> str:
    """A stage of another height and width than the reference's."""
    said = f"its shape is {shape}, the reference's {'×'.join(map(str, stage.shape))}"
    if stage.quantity in ("upsampled", "final"):
        return f"not enlarged to the photograph's size: {said}"
    given = tuple(int(n) for n in shape.split("×"))[:2]
    layers = [
        layer for layer in reference.weights.architecture.layers if len(layer.shape) == 3 and layer.shape[:2] == given
    ]
    target = reference.weights.architecture.target
    if stage.method.startswith("gradcam") or stage.layer == target.keras:
        if given == tuple(n // 2 for n in target.shape[:2]):
            return f"pooled target: {said}; take the last convolution after its ReLU, before the pool"
        where = f", that of {layers[-1].keras}" if layers and layers[-1].kind != "input" else ""
        return f"another target layer: {said}{where}"
    return f"another size: {said}"


def _offset_by_bias(reference: Artifact, candidate: Artifact, precision: str, i: int, stage: Stage) -> bool:
    """Whether each channel (or unit: then over all photographs) is off by a constant wherever the ReLU is open."""
    theirs, ours = candidate.values(stage.name, precision).astype(np.float64), reference.values(stage.name, "fp64")
    if len(stage.shape) == 3:
        place = np.arange(stage.size) if stage.whole else places(stage.name, stage.shape, stage.kept)
        channels, theirs, ours = place % stage.shape[-1], theirs[i], ours[i]
    else:
        channels = np.broadcast_to(np.arange(stage.kept), theirs.shape)
    used = (theirs > 0) & (ours > 0) if stage.quantity == "activations" else np.ones(theirs.shape, bool)
    offsets = theirs - ours
    largest = float(np.abs(offsets[used]).max(initial=0))
    compared = 0
    for channel in np.unique(channels[used]):
        values = offsets[used & (channels == channel)]
        if len(values) > 1:
            compared += 1
            if np.ptp(values) > CONSTANT * largest:
                return False
    return compared > 1 and largest > 0


def _dropped(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Some units 0, the others all larger by one factor."""
    alive = expected > 0
    kept = actual[alive] != 0
    if alive.sum() < 4 or not 0.1 < float(kept.mean()) < 0.9:
        return False
    factors = actual[alive][kept] / expected[alive][kept]
    return bool(factors.min() > 1 and np.ptp(factors) < CONSTANT * factors.mean())


def _dropped_before(reference: Artifact, candidate: Artifact, precision: str, i: int, stage: Stage) -> bool:
    """Whether the score's gradient is 0 at units of the dense layer before, where the reference's is not."""
    name = {"activations/fc2": "gradients/fc1", "logits": "gradients/fc2"}.get(stage.name, "")
    if not name or not candidate.has(name, precision) or not reference.has(name, "fp64"):
        return False
    alive = reference.values(name, "fp64")[i] != 0
    zero = candidate.values(name, precision)[i][alive] == 0
    return bool(zero.size >= 4) and 0.1 < float(zero.mean()) < 0.9


def _factor(actual: np.ndarray, expected: np.ndarray) -> float:
    """actual / expected where that is one number everywhere; NaN elsewhere."""
    scale = float(expected @ expected)
    factor = float(actual @ expected) / scale if scale > 0 else np.nan
    return factor if relative_l2(actual, factor * expected) < CONSTANT else np.nan


def _constant_ratio(actual: np.ndarray, expected: np.ndarray) -> float | None:
    """The factor between the two where it is the same everywhere, and not 1."""
    factor = _factor(actual, expected)
    return None if not np.isfinite(factor) or factor == 0 or abs(factor - 1) < CONSTANT else factor
