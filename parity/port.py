"""What the judge asks of this project's port, by name: this package imports neither side.

The port is the default candidate and is found as anybody's is. Beside its maps it reads photographs as it would read them
for a user, loads weights that no one else can, draws what the report shows for comparison, and pairs, fills and
explains modules of other people.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

MODULE = "torch_impl.candidate"
ENGINES = {"library": f"{MODULE}:candidate", "shared": f"{MODULE}:one_pass"}
"""The port's two ways to the same maps, as candidates."""

Preprocess = Callable[[np.ndarray], Any]
"""uint8 (N, H, W, 3) → floats (N, C, H, W), a tensor or an array."""


class Reading(Protocol):
    """A photograph as the port reads it."""

    path: str | None
    pixels: np.ndarray
    """uint8 (H, W, 3), RGB."""
    sha256: str
    """Of the file."""
    notes: tuple[str, ...]
    """What the port did on purpose that Keras does not: turned by EXIF, transparency laid on white, …"""


def candidate() -> Any:
    """The port as a candidate: `photographs`, `load_weights`, `raw_maps` and `rungs` of `torch_impl.candidate`."""
    return importlib.import_module(MODULE)


def twins() -> Any:
    """The port beside others' modules: `paired`, `preprocessed`, `filled` and `write_state` of `torch_impl.twin`."""
    return importlib.import_module("torch_impl.twin")
