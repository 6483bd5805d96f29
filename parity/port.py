"""What the judge asks of this project's port, by name: this package imports neither side.

The port is the default candidate and is found as anybody's is. Beside its maps it reads photographs as it would read them
for a user, loads weights that no one else can, and draws what the report shows for comparison.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from parity.candidate import Job
from parity.contract.network import Network

MODULE = "torch_impl.candidate"

DEFAULT = f"{MODULE}:candidate"
ENGINES = {"library": DEFAULT, "shared": f"{MODULE}:one_pass"}
"""The port's two ways to the same maps, as candidates."""


class Reading(Protocol):
    """A photograph as the port reads it."""

    path: str | None
    pixels: np.ndarray
    """uint8 (H, W, 3), RGB."""
    sha256: str
    """Of the file."""
    notes: tuple[str, ...]
    """What the port did on purpose that Keras does not: turned by EXIF, transparency laid on white, …"""


def photographs(paths: Sequence[str], size: tuple[int, int], resize: str) -> list[Reading]:
    """Read photographs.

    Args:
        paths: files and folders; none: the four default photographs.
        size: (H, W) wanted, pixels.
        resize: `lab` or `torchvision`.

    Raises:
        ValueError: one cannot be read; the message names each that cannot.
    """
    return _asked("photographs")(paths, size, resize)  # type: ignore[no-any-return]


def load_weights(source: str, input: str | None) -> Network:
    """The weights that a user asked for, of any kind that the port knows.

    Args:
        source: as of `--weights`.
        input: the preprocessing, in place of the weights' own.

    Raises:
        WeightsError: they cannot be had.
    """
    return _asked("load_weights")(source, input)  # type: ignore[no-any-return]


def raw_maps(job: Job, inputs: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
    """Method → raw maps (N, …) of a job.

    Args:
        job: what to draw.
        inputs: preprocessed (N, H, W, 3), in place of the job's pixels.
    """
    return _asked("raw_maps")(job, inputs)  # type: ignore[no-any-return]


def ladder(job: Job) -> Iterator[tuple[str, str, np.ndarray]]:
    """From the libraries' plain calls to the port, one change a rung: (method, what was changed, final maps (N, H, W))."""
    return _asked("rungs")(job)  # type: ignore[no-any-return]


def _asked(name: str) -> Any:
    return getattr(importlib.import_module(MODULE), name)
