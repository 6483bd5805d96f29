"""The stages of the computation: their names, order and shapes, and how much of each the artifact keeps.

Everything is channels last under Keras's layer names, activations after their ReLU, photographs first. The order is the
order of the computation, so that the first stage that is off names the fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parity.contract.architecture import CHANNELS, Architecture

METHODS = ("vanilla", "smoothgrad", "gradcam", "gradcam_plus_plus")
"""Every method, in the order in which they are drawn."""

ALIASES = {"gradcam++": "gradcam_plus_plus"}
"""Other spellings that a user may give."""

PRECISIONS: dict[str, str] = {"fp32": "<f4", "fp64": "<f8", "tf32": "<f4", "fp16": "<f4", "bf16": "<f4"}
"""What a program may have computed in, and the type that holds its results. The reference knows fp32 and fp64."""

SAMPLE = 4096
"""Values kept of a stage that is not kept whole, per photograph."""


@dataclass(frozen=True)
class Stage:
    """One quantity of the computation.

    Attributes:
        name: `activations/block5_conv3`, `gradcam/raw`.
        method: whose stage it is; "" for those that every method shares.
        shape: for one photograph, channels last; () for a number.
        kept: values kept per photograph. Equal to the stage's size: it is kept whole.
        is_map: a picture, of which a correlation says something.
    """

    name: str
    method: str
    shape: tuple[int, ...]
    kept: int
    is_map: bool = False

    @property
    def size(self) -> int:
        """Values for one photograph."""
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether every value is kept."""
        return self.kept == self.size

    @property
    def quantity(self) -> str:
        """The name without its layer or method: `inputs`, `activations`, `gradients`, `alpha`, `raw`, `final`, …."""
        return self.name.partition("/")[2] if self.method else self.name.partition("/")[0]

    @property
    def layer(self) -> str:
        """Keras's layer name of an activation or gradient (`inputs` for the input's gradient); "" otherwise."""
        return "" if self.method else self.name.partition("/")[2]

    def take(self, array: np.ndarray) -> np.ndarray:
        """The values that an artifact keeps: (N, *shape) → (N, kept), in the order of the places.

        Raises:
            ValueError: the array has another shape.
        """
        if array.shape[1:] != self.shape or array.ndim == 0:
            raise ValueError(f"stage {self.name} has shape {array.shape}, expected (N, {_listed(self.shape)}")
        flat = array.reshape(array.shape[0], self.size)
        return flat if self.whole else flat[:, places(self.name, self.shape, self.kept)]


def method(text: str) -> str:
    """The name of a method, from any spelling.

    Raises:
        ValueError: no such method.
    """
    folded = text.strip().lower()
    folded = ALIASES.get(folded, folded)
    if folded not in METHODS:
        raise ValueError(f"method {text!r} is unknown; known: vanilla, smoothgrad, gradcam, gradcam++")
    return folded


def methods(texts: Iterable[str]) -> tuple[str, ...]:
    """Methods in their canonical order, each once.

    Raises:
        ValueError: an unknown method, or none at all.
    """
    wanted = {method(text) for text in texts}
    if not wanted:
        raise ValueError("no method named; known: vanilla, smoothgrad, gradcam, gradcam++")
    return tuple(name for name in METHODS if name in wanted)


def stages(
    architecture: Architecture, methods: Sequence[str] = METHODS, n_samples: int = 20, sample: int = SAMPLE
) -> tuple[Stage, ...]:
    """Every stage in the order of the computation.

    Args:
        architecture: of the network.
        methods: canonical names (`METHODS`).
        n_samples: of SmoothGrad.
        sample: values kept of each stage that is not kept whole.

    """
    layers = {layer.keras: layer.shape for layer in architecture.layers}
    hidden = [layer.keras for layer in architecture.layers if layer.kind in ("conv", "pool", "dense")][:-1]
    target = architecture.target
    image = (architecture.size, architecture.size, CHANNELS)
    whole = {f"activations/{target.keras}", f"gradients/{target.keras}"}
    rows: list[Stage] = []

    def add(name: str, shape: tuple[int, ...], *, whole: bool, method: str = "", is_map: bool = False) -> None:
        size = math.prod(shape)
        rows.append(Stage(name, method, shape, size if whole else min(size, sample), is_map))

    add("pixels", image, whole=True)
    add("inputs", image, whole=False)
    for name in hidden:
        add(f"activations/{name}", layers[name], whole=f"activations/{name}" in whole)
    add("logits", (architecture.classes,), whole=True)
    add("score", (), whole=True)
    for name in reversed(hidden):
        add(f"gradients/{name}", layers[name], whole=f"gradients/{name}" in whole)
    add("gradients/inputs", image, whole=False)
    for method in methods:
        if method == "smoothgrad":
            add("smoothgrad/noise", (n_samples, *image), whole=False, method=method)
        if method == "gradcam_plus_plus":
            add("gradcam_plus_plus/alpha", target.shape, whole=False, method=method)
        if method.startswith("gradcam"):
            add(f"{method}/weights", target.shape[-1:], whole=True, method=method)
            add(f"{method}/raw", target.shape[:2], whole=True, method=method, is_map=True)
            add(f"{method}/upsampled", image[:2], whole=False, method=method, is_map=True)
        else:
            add(f"{method}/raw", image[:2], whole=True, method=method, is_map=True)
        add(f"{method}/final", image[:2], whole=False, method=method, is_map=True)
        if method == "gradcam_plus_plus":
            add("gradcam_plus_plus/final_with_exp", image[:2], whole=False, method=method, is_map=True)
    return tuple(rows)


@lru_cache(maxsize=256)
def places(name: str, shape: tuple[int, ...], kept: int = SAMPLE) -> np.ndarray:
    """Where a stage's kept values lie in one photograph's flattened array: one at random in each of `kept` equal parts.

    Args:
        name: of the stage; with the shape it is the seed, so that every program finds the same places.
        shape: of one photograph's array.
        kept: how many, at most the array's size.

    Returns:
        int64 (kept,), rising, read-only.
    """
    size = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:4], "little")
    edges = np.arange(kept + 1, dtype=np.int64) * size // kept
    lengths = np.diff(edges)
    offsets = (np.random.RandomState(seed).random_sample(kept) * lengths).astype(np.int64)
    found: np.ndarray = edges[:-1] + np.minimum(offsets, lengths - 1)
    found.flags.writeable = False
    return found


def _listed(shape: tuple[int, ...]) -> str:
    return "".join(f"{n}, " for n in shape).removesuffix(", ") + ")"
