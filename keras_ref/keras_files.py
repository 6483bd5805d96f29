"""Keras's own weight files, read by Keras itself."""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

from keras_ref import model
from parity.contract.keras_files import SUFFIXES, read
from parity.contract.network import Network, WeightsError
from parity.contract.text import one_line

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

    The contract's reader says what the layers are, and refuses what is no VGG16; the values are those that Keras loads.

    Args:
        path: the file; its kind is recognised by content.

    Raises:
        WeightsError: damaged, or not a VGG16.
    """
    import keras

    network = read(path)
    keras_model = model.build(network.table)
    with tempfile.TemporaryDirectory(prefix="keras_ref-") as folder:
        named = Path(folder) / f"model{_kind(path)}"  # Keras goes by the name; people rename files
        named.symlink_to(Path(path).resolve())
        try:
            keras_model.load_weights(named)
        except Exception as error:  # Keras raises whatever it likes
            raise WeightsError(f"{path!r}: Keras does not load it ({one_line(error, 200)})") from None
    network = replace(network, tensors=model.canonical(keras_model, network.table))
    keras.backend.clear_session()
    return network


def _kind(path: str) -> str:
    """The suffix by which Keras knows what a file contains."""
    import h5py

    if zipfile.is_zipfile(path):
        return ".keras"
    with h5py.File(path, "r") as file:
        return ".h5" if "layer_names" in file.attrs or "model_weights" in file else ".weights.h5"
