"""What the judge asks of this project's port, by name: this package imports neither side.

The port is the default candidate and is found as anybody's is. Beside its maps it reads photographs as it would read them
for a user, loads weights that no one else can, and draws what the report shows for comparison.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parity.candidate import Job
from parity.contract.artifact import Artifact
from parity.contract.network import Network

MODULE = "torch_impl.candidate"
TWIN = "torch_impl.twin"
"""Where the port pairs, fills and explains modules of other people."""

DEFAULT = f"{MODULE}:candidate"
ENGINES = {"library": DEFAULT, "shared": f"{MODULE}:one_pass"}
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


class Twin(Protocol):
    """A module that is paired with a reference."""

    pairing: Any

    def rows(
        self, methods: Sequence[str], precision: str, device: str, engine: str
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """(photograph, stage, array) of everything that can be compared."""

    def about(self) -> Mapping[str, str | int]:
        """What a reader must know of the pairing: how much is compared, and the target layer."""

    def remarks(self) -> Sequence[str]:
        """A line for each tensor that is laid out otherwise, and each thing that could not be tested."""

    def cause(self, stage: str, photograph: int) -> str:
        """The probable cause of the first forward stage that is off, or ""."""


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


def twin(
    reference: Artifact,
    model: Any,
    inputs: np.ndarray,
    layers: Mapping[str, str],
    target_layer: str,
    inside: bool | None = None,
) -> Twin:
    """A PyTorch module paired with a reference.

    Args:
        reference: with float64.
        model: an `nn.Module`, or the name of a callable that gives one.
        inputs: float64 (N, H, W, C).
        layers: layer → module, where the user knows better.
        target_layer: the module that is the target layer; "": found.
        inside: whether the module begins with the scaling that the reference's network began with; None: found out.

    Raises:
        ValueError: it cannot be compared; one line.
    """
    return _asked("paired", TWIN)(reference, model, inputs, layers, target_layer, inside)  # type: ignore[no-any-return]


def preprocessed(function: str | Preprocess, pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Inputs (N, H, W, C) by a user's function, float64; whether it computed them in float64.

    Raises:
        ValueError: it cannot be used; one line.
    """
    return _asked("preprocessed", TWIN)(function, pixels)  # type: ignore[no-any-return]


def filled(reference: Artifact, tensors: Mapping[str, np.ndarray], model: Any, inputs: np.ndarray) -> Any:
    """A module's state dict with the reference's weights, and what it took; or in `stopped` why they do not go into it.

    Raises:
        ValueError: it could not be tried.
    """
    return _asked("filled", TWIN)(reference, tensors, model, inputs)


def write_state(state: Any, path: Path) -> None:
    """Write a state dict as `.safetensors`, or as `.pth`."""
    _asked("write_state", TWIN)(state, path)


def _asked(name: str, module: str = MODULE) -> Any:
    return getattr(importlib.import_module(module), name)
