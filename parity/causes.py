"""Why probably: the known mistake that explains a stage, or a sign in its values, or where to look.

A cause is named only where the mistake, made on purpose, gives the candidate's values (`hypotheses`, relative L2 below
`EXPLAINS`), or where a sign in the values leaves no other reading. Otherwise the words say "look for".
To add a sign is to add a row to `SIGNS`: about what, at which quantity, the test, the words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parity import formulas, hypotheses
from parity.candidate import CAUSE, SHAPE
from parity.case import CONSTANT, HALF, SINGLE, Case, factor_between
from parity.contract.methods import METHODS
from parity.similarity import relative_l2

LEAK = 0.35
"""Negative values of a leaky ReLU are 0.01 (torch) to 0.3 (Keras) times as large as what a ReLU cuts off."""

EXPLAINS = 0.02
"""A mistake explains a stage when it leaves less than this of it unexplained; float16's rounding is below."""


def probable_cause(case: Case) -> str:
    """The most likely mistake behind a stage that is off, or ""."""
    known, shape = (case.candidate.flags.get(f"{kind}{case.stage.name}") for kind in (CAUSE, SHAPE))
    if known or shape:
        return "; ".join(filter(None, (str(known or ""), _shape_words(case, str(shape)) if shape else "")))
    if case.stage.quantity == "final_with_exp":
        return "the map after multiplying exp(score) back"
    if not np.isfinite(case.actual).all():
        return "values are not finite: an overflow, exp(score) left in, or a division by zero"
    unexplained, words = hypotheses.best(case)
    if unexplained < EXPLAINS and unexplained < 0.5 * case.off:
        return words
    if case.precision == "fp64" and SINGLE[0] < case.off < SINGLE[1]:
        return "an error of float32's size: something is computed or kept in float32 where float64 was asked for"
    for sign in SIGNS:
        if case.stage.quantity in sign.quantities.split() and sign.about in case.subjects and sign.test(case):
            return sign.words(case) if callable(sign.words) else sign.words.format(case=case)
    return ""


@dataclass(frozen=True)
class Sign:
    """One row.

    Attributes:
        about: one of `Case.subjects`: a kind of layer, a method, …; "" for all.
        quantities: where, spaces between them: see `stages.Stage.quantity`.
        test: whether the values show it. The first row whose test holds is the answer.
        words: for a reader; `{case.…}` is filled in, or a function that says more.
    """

    about: str
    quantities: str
    test: Callable[[Case], bool | np.bool_]
    words: str | Callable[[Case], str]


def _always(case: Case) -> bool:
    return True


def _is_scaled(case: Case) -> bool:
    return not math.isnan(case.ratio)


def _is_half(case: Case) -> bool:
    return HALF[0] < case.off < HALF[1]


def _before_relu(case: Case) -> str:
    """Where the layers after it are right, only the tensor was taken at another place; else the network itself is another."""
    readers = (layer.name for layer in case.reference.table.hidden if case.stage.layer in layer.inbound)
    following = case.both(f"activations/{next(readers, '')}")
    if following and relative_l2(*following) < CONSTANT:
        return _BEFORE_RELU
    negative, positive = case.actual[case.actual < 0], case.actual[case.actual > 0]
    leaks = positive.size > 0 and np.square(negative).mean() < LEAK**2 * np.square(positive).mean()
    return _LEAKY if leaks else _NO_RELU


def _is_offset_by_bias(case: Case) -> bool:
    """Whether each channel (or unit: then over all photographs) is off by a constant wherever the ReLU is open."""
    theirs, ours = case.of_all
    if len(case.stage.shape) == 3:
        channels = case.stage.places() % case.stage.shape[-1]
        theirs, ours = theirs[case.photograph], ours[case.photograph]
    else:
        channels = np.broadcast_to(np.arange(case.stage.kept), theirs.shape)
    used = (theirs > 0) & (ours > 0) if case.stage.quantity == "activations" else np.ones(theirs.shape, bool)
    offsets = theirs - ours
    largest = float(np.abs(offsets[used]).max(initial=0))
    of_channels = [offsets[used & (channels == channel)] for channel in np.unique(channels[used])]
    spreads = [np.ptp(values) for values in of_channels if len(values) > 1]
    return len(spreads) > 1 and largest > 0 and max(spreads) <= CONSTANT * largest


def _is_constant_added(case: Case) -> bool:
    """Off by the same amount everywhere."""
    offsets = case.actual - case.expected
    return bool(np.ptp(offsets) < CONSTANT * abs(float(offsets.mean())))


def _is_dropped(case: Case) -> bool:
    """Some units 0, the others all larger by one factor."""
    alive = case.expected > 0
    kept = case.actual[alive] != 0
    if alive.sum() < 4 or not 0.1 < float(kept.mean()) < 0.9:
        return False
    factors = case.actual[alive][kept] / case.expected[alive][kept]
    return bool(factors.min() > 1 and np.ptp(factors) < CONSTANT * factors.mean())


def _is_dropped_before(case: Case) -> bool:
    """Whether the score's gradient is 0 at units of the dense layer before, where the reference's is not."""
    gradients = case.both(f"gradients/{case.before}")
    if gradients is None or case.reference.table[case.before].kind != "dense":
        return False
    theirs, ours = gradients
    zero = theirs[ours != 0] == 0
    return zero.size >= 4 and 0.1 < float(zero.mean()) < 0.9


def _is_of_another_class(case: Case) -> bool:
    nearest = _nearest_class(case)
    return nearest != case.explained and abs(case.scores[nearest] - case.actual[0]) <= 1e-3 * np.ptp(case.scores)


def _nearest_class(case: Case) -> int:
    return int(np.abs(case.scores - case.actual[0]).argmin())


def _of_another_class(case: Case) -> str:
    return f"another class: this is the logit of class {_nearest_class(case)}, not {case.explained}"


def _is_probability(case: Case) -> bool:
    probability = math.exp(case.scores[case.explained] - np.logaddexp.reduce(case.scores))
    return bool(abs(case.actual[0] - probability) < 1e-4)


def _noise(case: Case) -> str:
    """σ from the factor on the reference's noise, where it is the reference's noise."""
    reference = case.reference
    factors = np.array([factor_between(a, b) for a, b in zip(*case.of_all, strict=True)])
    i = case.photograph
    if not np.isfinite(factors[i]):
        return "other noise: another generator, seed, or order of drawing (NumPy's RandomState, channels last, per photograph)"
    level = reference.settings.options.noise_level
    ranges = np.array([np.ptp(formulas.inputs_of(reference, i)) for i in range(len(reference.photographs))])
    sigmas = factors * level * ranges
    right = f"it is {level:g} times each image's own range, here {level * ranges[i]:.4g}"
    if abs(sigmas[i] - level) < CONSTANT * level:
        return f"σ is {level:g} itself, not a fraction of the range: {right}"
    if len(sigmas) > 1 and np.ptp(sigmas) < CONSTANT * sigmas.mean() and np.ptp(ranges) > CONSTANT * ranges.mean():
        return f"one σ for all photographs, {sigmas[i]:.4g}: {right}"
    return f"σ is {sigmas[i]:.4g}: {right}"


def _shares(case: Case) -> np.ndarray:
    """The candidate's map over the reference's, where that is above 0; a single NaN where it is nowhere."""
    positive = case.expected > 1e-6 * case.expected.max(initial=0)
    return case.actual[positive] / case.expected[positive] if positive.any() else np.array([math.nan])


def _is_smaller(case: Case) -> bool:
    return bool(_shares(case).max() <= 1 + 1e-6)


def _is_mean_over_channels(case: Case) -> bool:
    """Three values ≥ 0: their mean lies between a third of their maximum (one channel alone) and the maximum (all alike)."""
    shares = _shares(case)
    return _is_smaller(case) and 1 / 3 - 1e-6 <= float(shares.min()) < 0.5 and float(shares.max()) > 0.75


def _is_sum_over_channels(case: Case) -> bool:
    shares = _shares(case)
    return float(shares.min()) >= 1 - 1e-6 and 2 < float(shares.max()) <= 3 + 1e-6


def _is_squared(case: Case) -> bool:
    """mean(g²) lies between mean(|g|)² and as many times that as there are copies."""
    positive = case.expected > 1e-6 * case.expected.max(initial=0)
    squares = case.actual[positive] / case.expected[positive] ** 2
    copies = case.reference.settings.options.n_samples
    return bool(positive.any() and squares.min() >= 1 - 1e-6 and squares.max() <= copies * (1 + 1e-6))


def _late_absolute(case: Case) -> str:
    """|mean| is never above mean of |·|, but other mistakes make a map smaller too: the plain gradient must be right."""
    order = "absolute value after the mean over samples: it belongs before"
    return order if _gradient_is_right(case) else f"look for softmax left on, or for {order}"


def _gradient_is_right(case: Case) -> bool:
    """Whether the candidate gave the gradient without noise, or its map, and it is the reference's."""
    given = case.both("gradients/inputs") or case.both("vanilla/raw")
    return given is not None and relative_l2(*given) < CONSTANT


def _is_signed(case: Case) -> bool:
    return _is_smaller(case) and float(_shares(case).min()) < 0


_DROPOUT = "dropout is on: some units are 0, the others larger (call eval())"
_HALF_WORDS = "an error of half precision's size: weights or arithmetic in float16, bfloat16 or TF32 on one side"
_ORDER = "look for the flatten order of {case.stage.layer}'s inputs ((H, W, C) in Keras, (C, H, W) in torch), or a missing bias"
_KERNEL = "look for the kernel's layout (HWIO, OIHW), a flipped kernel, a missing bias, the padding, or the ReLU"
_SMALLER = (
    "smaller everywhere: look for softmax left on, one colour channel for the maximum, or positive gradients only"
)
_TARGET = "look for the target layer (after the last ReLU, before the pool) and for how its gradients are weighted"
_BEFORE_RELU = "negative values: taken before the ReLU (the convolution's own output, not the layer's)"
_LEAKY = "small negative values: a leaky ReLU (or ELU, GELU, swish) for the ReLU"
_NO_RELU = "negative values: no ReLU, or a leaky one of a large slope, or taken before the ReLU"
_MASKS = (
    "look for the masks (each feature map enlarged corner on corner, then normalized by itself, times the preprocessed "
    "inputs, not the pixels), and for the softmax over the classes"
)
_LOGITS = "no softmax over the classes: these are no probabilities but logits"
_CHANNELS = "look for how feature maps are chosen: the largest deviation over their places, before they are enlarged"
_SAME_CHANNELS = (
    "the same feature maps in another order: give them, their scores and weights from the largest deviation down"
)
_ENLARGED = (
    "look for how the map is enlarged: bilinear, corner on corner (scipy.ndimage.zoom with order=1, align_corners=True)"
)
_FINISHED = "look for the normalization: min–max of each map with 1e-7 on its range, after it is enlarged"
_LAST_BIAS = "the last layer's bias is missing, or another: each logit is off by the same amount in every photograph"
_OWN = "alpha weights raw upsampled final"

SIGNS = (
    Sign("", "activations", lambda c: (c.actual < 0).any() and not (c.expected < 0).any(), _before_relu),
    Sign("", "activations", _is_offset_by_bias, "a missing or another bias: each channel is off by a constant of its own"),
    Sign("dense", "activations", _is_dropped, _DROPOUT),
    Sign("dense", "activations", _is_dropped_before, _DROPOUT),
    Sign("", "activations", _is_half, _HALF_WORDS),
    Sign("flattened", "activations", _always, _ORDER),
    Sign("dense", "activations", _always, "look for a transposed kernel, a missing bias, or dropout left on"),
    Sign("conv", "activations", _always, _KERNEL),
    Sign("pool", "activations", _always, "look for the pooling: its window, stride, padding, or average for maximum"),
    Sign(
        "",
        "logits",
        _is_scaled,
        "the logits are {case.ratio:.3g} times the reference's: a temperature, or another scale of the last layer",
    ),
    Sign("", "logits", _is_constant_added, "a constant was added to every logit"),
    Sign("", "logits", _is_offset_by_bias, _LAST_BIAS),
    Sign("", "logits", _is_dropped_before, "dropout is on: gradients of some units of {case.before} are 0 (call eval())"),
    Sign("", "inputs logits", _is_half, _HALF_WORDS),
    Sign(
        "",
        "logits",
        _always,
        "look for a transposed kernel or a missing bias of the last layer, softmax left on, or another class order",
    ),
    Sign("", "score", _is_of_another_class, _of_another_class),
    Sign("", "score", _is_probability, "softmax left on: the score is a probability"),
    Sign("", "score", _always, "look for another class, softmax left on, or the score of the whole batch"),
    Sign(
        "",
        "gradients",
        _is_scaled,
        "the gradients are {case.ratio:.3g} times the reference's: a scaled score, a mean for a sum, or softmax left on",
    ),
    Sign("", "gradients", _is_half, _HALF_WORDS),
    Sign(
        "",
        "gradients",
        _always,
        "look for another class, softmax left on, or a backward pass through other switches (ReLU, max-pool)",
    ),
    Sign("", "noise", _always, _noise),
    Sign("", f"inputs scores {_OWN}", _is_scaled, "{case.ratio:.3g} times the reference's: a constant factor"),
    Sign("smoothgrad", "raw", _is_squared, hypotheses.SQUARED),
    Sign("at the input", "raw", _is_mean_over_channels, "mean over the colour channels for their maximum"),
    Sign("smoothgrad", "raw", lambda c: _is_smaller(c) and _shares(c).min() >= 0, _late_absolute),
    Sign("at the input", "raw", _is_signed, "no absolute value: the gradient itself"),
    Sign("at the input", "raw", _is_smaller, _SMALLER),
    Sign("at the input", "raw", _is_sum_over_channels, "sum over the colour channels for their maximum"),
    Sign(
        "at the input",
        "raw",
        _always,
        "look for the score (class, softmax), the order of |·|, mean and maximum, or the noise",
    ),
    Sign("faster_scorecam", "channels", lambda c: sorted(c.actual) == sorted(c.expected), _SAME_CHANNELS),
    Sign("faster_scorecam", "channels", _always, _CHANNELS),
    Sign("by scores", "scores", _is_constant_added, hypotheses.BASELINE),
    Sign("by scores", "scores", lambda c: c.actual.min() < 0 or c.actual.max() > 1, _LOGITS),
    Sign("at a layer", "alpha scores weights raw upsampled", _is_half, _HALF_WORDS),
    Sign("by scores", "scores", _always, _MASKS),
    Sign("by scores", "weights", _always, "look for what stands between scores and weights: a rounding to float32 alone"),
    Sign("by scores", "raw", _always, f"{_MASKS}, no baseline, and for the target layer"),
    Sign("at a layer", "upsampled", _always, _ENLARGED),
    Sign("at a layer", "final", _always, _FINISHED),
    Sign("at a layer", "alpha weights raw", _always, _TARGET),
)  # fmt: skip


def _shape_words(case: Case, shape: str) -> str:
    """A stage of another height and width than the reference's."""
    stage, table = case.stage, case.reference.table
    said = f"its shape is {shape}, the reference's {'×'.join(map(str, stage.shape))}"
    if stage.quantity in ("upsampled", "final"):
        return f"not enlarged to the photograph's size: {said}"
    if stage.method and len(stage.shape) == 1:
        union = "channels" in METHODS[stage.method].options
        return f"{hypotheses.UNION}: {said}" if union else f"another target layer: {said}"
    if "at a layer" not in case.subjects and stage.layer != table.target:
        return f"another size: {said}"
    given = tuple(int(n) for n in shape.split("×"))[:2]
    if given == tuple(n // 2 for n in table[table.target].shape[:2]):
        return f"pooled target: {said}; take the last convolution after its ReLU, before the pool"
    layers = [layer.name for layer in table.hidden if len(layer.shape) == 3 and layer.shape[:2] == given]
    return f"another target layer: {said}" + (f", that of {layers[-1]}" if layers else "")
