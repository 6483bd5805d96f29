"""The stages of the computation: their names, order and shapes, and how much of each an artifact keeps.

Everything is channels last under the reference's layer names, activations after their ReLU, photographs first. The order
is the order of the computation, so that the first stage that is off names the fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parity.contract.layers import LayerTable
from parity.contract.methods import DEFAULT, FASTER_CHANNELS, METHODS, Options, Quantity

PRECISIONS: dict[str, str] = {"fp32": "<f4", "fp64": "<f8", "tf32": "<f4", "fp16": "<f4", "bf16": "<f4"}
"""What a program may have computed in, and the type that holds its results. The reference knows fp32 and fp64."""

SAMPLE = 4096
"""Values kept of a stage that is not kept whole, per photograph."""

SMALL_SAMPLE = 256
"""The same in networks of more than `MANY` layers, whose artifacts would else be large."""

MANY = 48


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
        """The layer's name of an activation or gradient (`inputs` for the input's gradient); "" otherwise."""
        return "" if self.method else self.name.partition("/")[2]

    def places(self) -> np.ndarray:
        """Where the kept values lie in one photograph's flattened array: int64 (kept,), rising."""
        return np.arange(self.size) if self.whole else sampled_places(self.name, self.shape, self.kept)

    def take(self, array: np.ndarray) -> np.ndarray:
        """The values that an artifact keeps: (N, *shape) → (N, kept), in the order of the places.

        Raises:
            ValueError: the array has another shape.
        """
        if array.shape[1:] != self.shape or array.ndim == 0:
            axes = "".join(f", {n}" for n in self.shape)
            raise ValueError(f"stage {self.name} has shape {array.shape}, expected (N{axes})")
        flat = array.reshape(array.shape[0], self.size)
        return flat if self.whole else flat[:, self.places()]


def stages(
    table: LayerTable,
    methods: Sequence[str] = DEFAULT,
    options: Options | None = None,
    sample: int = SAMPLE,
    *,
    whole_inputs: bool = False,
) -> tuple[Stage, ...]:
    """Every stage in the order of the computation: the network's forwards and back, then each map's own.

    Args:
        table: the network's layers.
        methods: names of `methods.METHODS`.
        options: of the maps.
        sample: values kept of each stage that is not kept whole.
        whole_inputs: whether the inputs are kept whole, because nobody else can make them of the pixels.
    """
    image, target = table.input_shape, table.target
    rows: list[Stage] = []

    def add(name: str, shape: tuple[int, ...], *, whole: bool, method: str = "", is_map: bool = False) -> None:
        size = math.prod(shape)
        rows.append(Stage(name, method, shape, size if whole else min(size, sample), is_map))

    add("pixels", (*table.size, 3), whole=True)
    add("inputs", image, whole=whole_inputs)
    for layer in table.hidden:
        add(f"activations/{layer.name}", layer.shape, whole=layer.name == target)
    add("logits", (table.classes,), whole=True)
    add("score", (), whole=True)
    for layer in reversed(table.hidden):
        add(f"gradients/{layer.name}", layer.shape, whole=layer.name == target)
    add("gradients/inputs", image, whole=False)
    for name in methods:
        for quantity in METHODS[name].quantities:
            shape = shape_of(quantity, table, options or Options())
            add(f"{name}/{quantity.name}", shape, whole=quantity.whole, method=name, is_map=quantity.is_map)
    return tuple(rows)


def shape_of(quantity: Quantity, table: LayerTable, options: Options) -> tuple[int, ...]:
    """A quantity's shape for one photograph of this network."""
    lengths = dict(zip("HWC", table.input_shape, strict=True)) | {"S": options.n_samples}
    lengths |= dict(zip("hwK", table[table.target].shape, strict=True))
    lengths["m"] = options.channels or min(FASTER_CHANNELS, lengths["K"])
    return tuple(lengths[axis] for axis in quantity.axes.split())


@lru_cache(maxsize=1024)
def sampled_places(name: str, shape: tuple[int, ...], kept: int = SAMPLE) -> np.ndarray:
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
    places: np.ndarray = edges[:-1] + np.minimum(offsets, lengths - 1)
    places.flags.writeable = False
    return places
