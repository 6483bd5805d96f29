"""Keras's own weight files as a network of the contract, read by Keras itself."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from keras_ref import model
from parity.contract.layers import LayerTable
from parity.contract.network import Network, WeightsError, checked
from parity.contract.text import one_line
from parity.contract.vgg import BLOCKS, vgg

SUFFIXES = (".h5", ".hdf5", ".keras")

SOURCES = "offline, offline-random:N, seeded:N, a Keras file (.h5, .weights.h5, .keras) or a canonical .safetensors"
"""What `--weights` takes."""


def check_kind(source: str) -> None:
    """Refuse what is no Keras file, going by its name.

    Raises:
        WeightsError: says what can be given.
    """
    if not os.path.isfile(source):
        raise WeightsError(f"--weights {source!r}: no such file or source: give {SOURCES}")
    if not source.endswith(SUFFIXES):
        raise WeightsError(f"--weights {source!r}: the reference does not read this kind of file: give {SOURCES}")


def from_keras_file(path: str) -> Network:
    """Read a Keras file (.h5, .weights.h5, .keras): weights only, so no code in it can run.

    Args:
        path: the file; its kind is recognised by content.

    Returns:
        Its network; the preprocessing is Keras's own for VGG16, since the file does not say.

    Raises:
        WeightsError: damaged, or not a VGG16.
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="keras_ref-") as folder:
        try:
            named = Path(folder) / f"model{_kind(path)}"  # Keras goes by the name; people rename files
            named.symlink_to(Path(path).resolve())
            table = _table(named)
            keras_model = model.build(table)
            keras_model.load_weights(named)
        except Exception as error:  # h5py, zipfile and Keras raise a dozen kinds on a damaged file
            reason = one_line(error, 200)
            raise WeightsError(f"{path!r}: not a readable Keras file of VGG16 weights ({reason})") from None
    network = checked(model.canonical(keras_model, table), source=path, input="caffe")
    keras.backend.clear_session()
    return network


def _kind(path: str) -> str:
    """The suffix by which Keras knows what a file contains."""
    import h5py

    if zipfile.is_zipfile(path):
        return ".keras"
    with h5py.File(path, "r") as file:
        return ".h5" if "layer_names" in file.attrs or "model_weights" in file else ".weights.h5"


def _table(path: Path) -> LayerTable:
    """The layers of the narrower or full VGG16 whose kernels a file has, in order."""
    import h5py

    kernels: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (2, 4) and not name.startswith("optimizer"):
            kernels[name] = tuple(item.shape)

    with contextlib.ExitStack() as stack:
        opened: Any = path
        if path.suffix == ".keras":
            opened = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open("model.weights.h5"))
        stack.enter_context(h5py.File(opened, "r")).visititems(visit)
    ordered = [kernels[name] for name in sorted(kernels, key=_natural)]
    widths = [shape[3] for shape in ordered if len(shape) == 4]
    dense = [shape for shape in ordered if len(shape) == 2]
    if len(widths) != sum(map(len, BLOCKS)) or len(dense) != 3:
        raise ValueError(f"it has {len(widths)} convolutions and {len(dense)} dense layers, VGG16 has 13 and 3")
    remaining = iter(widths)
    blocks = [[next(remaining) for _ in block] for block in BLOCKS]
    side = round((dense[0][0] / widths[-1]) ** 0.5)
    return vgg(blocks, (dense[0][1], dense[1][1]), dense[2][1], side * 2 ** len(blocks))


def _natural(name: str) -> list[tuple[int, str]]:
    """`conv2d_10` after `conv2d_9`, and `conv2d` before both."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)|/", name) if part]
