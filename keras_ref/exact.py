"""How far the reference's own float64 is off: the functions in which TensorFlow has float32 constants, exactly."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np

from keras_ref.rows import affine_of

NUDGE = 1 + 1e-14
"""Times which the inputs are computed once more: what moves then by more is not known better than that."""


JITTER = 1e-14
"""Of the largest input: so far two values apart are as good as equal, and rounding decides which is the larger."""

TRIALS = 3
"""Jitters, each there and back: of two values that tie, one is the larger first and the other then."""

LEAST = 1e-5
"""Relative L2 by which float32 inputs are moved to see which ReLUs and max-pools flip: what every stage may be off by."""

DRAWS = 2
"""How often: one run of float32 is one draw, and what flips in another is no fault."""

FLAT = 1e-6
"""A stage whose range is below this fraction of its largest value is constant, but for rounding: that fraction is its range."""


@contextlib.contextmanager
def exact_formulas() -> Iterator[None]:
    """gelu, leaky ReLU, Rescaling and Normalization with constants of the type that they compute in."""
    import keras
    import tensorflow as tf

    def gelu(x: Any, approximate: bool = False, name: str | None = None) -> Any:
        half = tf.constant(0.5, x.dtype)
        if approximate:
            inner = x + tf.constant(0.044715, x.dtype) * x**3
            return half * x * (1 + tf.tanh(tf.constant(math.sqrt(2 / math.pi), x.dtype) * inner))
        return half * x * (1 + tf.math.erf(x * tf.constant(math.sqrt(0.5), x.dtype)))

    def leaky_relu(x: Any, alpha: float = 0.2, name: str | None = None) -> Any:
        return tf.where(x > 0, x, tf.constant(alpha, x.dtype) * x)

    def affine(layer: Any, x: Any) -> Any:
        scale, offset = affine_of(layer)
        return x * tf.constant(scale, x.dtype) + tf.constant(offset, x.dtype)

    with (
        mock.patch.object(tf.nn, "gelu", gelu),
        mock.patch.object(tf.nn, "leaky_relu", leaky_relu),
        mock.patch.object(keras.layers.Rescaling, "call", affine),
        mock.patch.object(keras.layers.Normalization, "call", affine),
    ):
        yield


def moved(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far each stage moved, of its range: stage → max |difference| / (max − min)."""
    moves: dict[str, float] = {}
    for name, values in first.items():
        a, b = np.float64(values), np.float64(second[name])
        with np.errstate(all="ignore"):
            span = np.abs(first["logits"]).max() if name == "score" else max(np.ptp(a), FLAT * np.abs(a).max())
            moves[name] = _finite(np.abs(a - b).max() / span)
    return moves


def _finite(distance: np.floating[Any]) -> float:
    """Itself; 0 where there is nothing to divide by, or to compare."""
    return float(distance) if np.isfinite(distance) else 0.0


def undecided(gradients: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Pixels at which the score has no one gradient: equal values tie in a max-pool, or a value is just where a ReLU bends.

    Each framework then takes what its own rounding makes the larger by a last bit, and both are right, in float64 too.

    Args:
        gradients: inputs → the score's gradients at them, both (1, H, W, C), float64.
        inputs: of one photograph.

    Returns:
        bool (H, W).
    """
    own = gradients(inputs)
    pixels = np.zeros(inputs.shape[1:3], bool)
    generator = np.random.RandomState(0)
    for _ in range(TRIALS):
        jitter = JITTER * np.abs(inputs).max() * generator.uniform(-1, 1, inputs.shape)
        for moved_inputs in (inputs + jitter, inputs - jitter):
            change = np.abs(gradients(moved_inputs) - own).max(-1)[0]
            usual = 100 * float(np.quantile(change, 0.1))  # what every pixel's gradient moves by
            pixels |= change > max(1e-9 * float(np.abs(own).max()), usual)
        if not pixels.any():
            break
    return pixels


def jittered(inputs: np.ndarray, draw: int) -> np.ndarray:
    """Inputs, moved at random by `LEAST` of their norm."""
    jitter = np.random.RandomState(draw).uniform(-1, 1, inputs.shape)
    jitter *= LEAST * np.linalg.norm(inputs) / max(float(np.linalg.norm(jitter)), 1.0)
    return (inputs + jitter).astype(inputs.dtype)


def apart(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far two runs' gradients and maps are apart: stage → relative L2; the other stages move with the inputs alone."""
    distances: dict[str, float] = {}
    for name, values in first.items():
        if name.partition("/")[0] in ("inputs", "activations", "logits", "score") or name.endswith("/noise"):
            continue
        a, b = np.float64(values), np.float64(second[name])
        with np.errstate(all="ignore"):
            distances[name] = _finite(np.linalg.norm(a - b) / np.linalg.norm(a))
    return distances
