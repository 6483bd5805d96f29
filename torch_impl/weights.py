"""Where a network's weights come from and go to: official downloads, and files of either framework, in canonical form.

Everything ends in a `parity.contract.network.Network`, checked strictly: nothing missing, nothing left over, every
value finite. A file's layout is recognised by what it holds, not by what it is called, and nothing in it is executed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.contract import keras_files
from parity.contract import network as contract
from parity.contract.files import whole
from parity.contract.network import Network, WeightsError
from parity.contract.text import one_line
from torch_impl import downloads

if TYPE_CHECKING:
    import torch

__all__ = ["SOURCES", "Network", "WeightsError", "load_network", "save_network"]

SOURCES = ("auto", "imagenet", "keras", "offline", "offline-random:N", "seeded:N")
"""What a user may write beside a path."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".weights.h5", ".h5", ".hdf5")
"""What `save_network` writes."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Below these keys training scripts keep the state dict."""

TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
"""timm's names of VGG16's dense layers → torchvision's."""

ABOUT = "attention_maps"
"""Key under which a state dict remembers `Network.about`."""


def load_network(
    source: str = "auto", *, input: str | None = None, size: int | None = None, progress: bool = False
) -> Network:
    """The weights that a user asked for.

    Args:
        source: one of
            `auto`: `imagenet` if it is cached, otherwise `offline`; the internet is never asked;
            `imagenet`: torchvision's `VGG16_Weights.IMAGENET1K_V1`, in torch's cache (TORCH_HOME moves it,
            ATTENTION_MAPS_IMAGENET_URL names a mirror);
            `keras`: Keras's ImageNet VGG16, in Keras's cache (KERAS_HOME, ATTENTION_MAPS_KERAS_URL);
            `offline`, `offline-random:N`, `seeded:N`: see `parity.contract.network`;
            a path (write `./offline` for a file of such a name) of a torch state dict (`.pt`, `.pth`; also below one of
            `WRAPPERS`, also with prefixes such as `module.` before every name, also timm's), safetensors (canonical,
            torch's names or Keras's), Keras `.h5`, `.weights.h5` or `.keras`.
        input: preprocessing, in place of what the source knows: `caffe` for Keras's layouts, `torchvision` for torch's,
            unless the file says otherwise.
        size: of the pictures that a file's network takes, pixels, in place of what the file says; 224 where it says nothing.
        progress: show a download's bar.

    Returns:
        Canonical float32 tensors, memory-mapped where the file allows it.

    Raises:
        WeightsError: one line: which source, what is wrong with it, what to do.
    """
    source = os.fspath(source)
    if input is not None and input not in contract.INPUTS:
        raise WeightsError(f"preprocessing {input!r} is unknown; known: {', '.join(contract.INPUTS)}")
    if source == "auto":
        network = _auto()
    elif source == "imagenet":
        network = _official(downloads.fetch(downloads.IMAGENET, progress=progress), "imagenet", "torchvision")
    elif source == "keras":
        network = _official(downloads.fetch(downloads.KERAS, progress=progress), "keras", "caffe")
    elif source == "offline" or source.startswith(("offline-random:", "seeded:")):
        network = contract.from_source(source) or _read(source, size)
    else:
        network = _read(source, size)
    return network if input is None else replace(network, input=input)


def save_network(network: Network, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a file that the other framework, or this one, can load.

    Source, preprocessing, remark and the pictures' size travel along, and `load_network` finds them again.

    Args:
        network: to write.
        path: its suffix says the layout: `.safetensors` canonical; `.pt`, `.pth` a torch state dict;
            `.h5`, `.hdf5` Keras's legacy layout (`keras.applications.VGG16(weights=path)`);
            `.weights.h5` Keras 3's (`model.load_weights(path)`).
        overwrite: replace a file that exists.

    Raises:
        WeightsError: another suffix, the file exists, or it cannot be written; nothing is left at `path` then.
    """
    target = Path(path)
    name = repr(str(target))
    suffix = next((s for s in SUFFIXES if target.name.lower().endswith(s)), "")
    if target.suffix.lower() == ".keras":
        raise WeightsError(
            f"{name}: a .keras file holds a whole model, which only Keras can write; "
            "write .weights.h5 and give it to model.load_weights, or .h5 and give it to keras.applications.VGG16"
        )
    if not suffix:
        raise WeightsError(f"{name}: unknown suffix; known: {', '.join(SUFFIXES)}")
    if target.is_dir():
        raise WeightsError(f"{name} is a folder")
    if os.path.lexists(target) and not overwrite:
        raise WeightsError(f"{name} exists; --overwrite (overwrite=True) replaces it")
    try:
        with whole(target) as temporary:
            if suffix == ".safetensors":
                contract.write(network, temporary)
            elif suffix in (".pt", ".pth"):
                _write_torch(network, temporary)
            else:
                keras_files.write(network, temporary, counted=suffix == ".weights.h5")
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise WeightsError(f"{name} cannot be written ({reason})") from None


def _auto() -> Network:
    if path := downloads.cached(downloads.IMAGENET):
        return _official(path, "imagenet", "torchvision")
    network = contract.offline()
    return replace(network, remark=f"{network.remark}; --weights imagenet downloads torchvision's, 528 MB, once")


def _official(path: Path, source: str, input: str) -> Network:
    return replace(_read(str(path), None), source=source, input=input)


def _read(path: str, size: int | None) -> Network:
    """A file of any layout.

    Raises:
        WeightsError: with the path, on one line.
    """
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise WeightsError(f"{path!r} is a folder")
        raise WeightsError(f"{path!r} is neither a file nor a known source; known: {', '.join(SOURCES)}, or a path")
    kind = _kind(path)
    if kind == "keras":
        return keras_files.read(path, size=size)
    if kind == "safetensors" and (network := contract.read(path, framework="pt", size=size)):
        return network
    try:
        tensors, about = (_safetensors(path), {}) if kind == "safetensors" else _state_dict(path)
        if any("block1_conv1" in name for name in tensors):
            arrays, input = keras_files.read_named(_arrays(tensors), size), "caffe"
        else:
            arrays, input = _arrays(_torchvision(tensors)), "torchvision"
    except WeightsError as error:
        raise WeightsError(f"{path!r}: {one_line(error)}") from None
    return contract.restored(arrays, about, path, input=input, size=size)


def _kind(path: str) -> str:
    """`safetensors`, `keras` or `torch`, by the first bytes, and for archives by their members."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:] == b"{":  # after the length of its header; first, because a length may look like anything
            return "safetensors"
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return "keras"
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                return "keras" if "model.weights.h5" in archive.namelist() else "torch"
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path!r}: it cannot be read, or is cut off ({one_line(error, 200)})") from None
    if head.startswith(b"\x80"):  # a pickle: torch's format before 1.6, or somebody's objects
        return "torch"
    raise WeightsError(f"{path!r}: not a weights file (neither PyTorch, nor safetensors, nor HDF5, nor .keras)")


def _safetensors(path: str) -> dict[str, torch.Tensor]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"not a readable safetensors file ({one_line(error, 200)})") from None


def _state_dict(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A state dict and what it remembers.

    `weights_only` builds tensors and plain containers and nothing else: no code in the file runs.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever its readers run into
        if "TorchScript" in str(error):
            raise WeightsError("a TorchScript program, which is not run: save model.state_dict() instead") from None
        if isinstance(error, pickle.UnpicklingError):  # its advice, to load without weights_only, is not passed on
            culprit = re.search(r"GLOBAL ([\w.]*\.[\w.]+)", str(error))
            raise WeightsError(
                f"it holds pickled Python objects{f' ({culprit[1]})' if culprit else ''}, which could run code and are "
                "not loaded: save model.state_dict() instead"
            ) from None
        raise WeightsError(f"truncated, damaged or no state dict ({one_line(error, 200)})") from None
    while wrappers := [key for key in WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)]:
        if len(wrappers) > 1:
            raise WeightsError(f"it holds several state dicts ({', '.join(wrappers)}): save the one that is meant")
        loaded = loaded[wrappers[0]]
    if not isinstance(loaded, dict):
        raise WeightsError(f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"entry {name!r} is a {type(value).__name__}, not a named tensor")
    root = getattr(loaded, "_metadata", {}).get("", {})
    return dict(loaded), json.loads(root.get(ABOUT, "{}"))


def _torchvision(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With torchvision's names: without the prefixes that wrappers put before every name, and timm's names translated.

    timm writes the first dense layer as a convolution over the whole last map, the second as one of 1×1. Flattened from
    (out, channels, h, w), they are torchvision's numbers in torchvision's order.
    """
    plain = dict(tensors)
    while len({name.partition(".")[0] for name in plain}) == 1 and all("." in name for name in plain):
        if next(iter(plain)).startswith(("features.", "classifier.")):  # half of a VGG
            break
        plain = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
    renamed = {}
    for name, tensor in plain.items():
        module, _, part = name.rpartition(".")
        if module in TIMM:
            name, tensor = f"{TIMM[module]}.{part}", tensor.flatten(1) if tensor.dim() == 4 else tensor
        renamed[name] = tensor
    return renamed


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Floating ones as float32; they share the tensors' memory where they are float32 and contiguous."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        try:
            floats = tensor.detach().float() if tensor.is_floating_point() else tensor
            arrays[name] = floats.contiguous().numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, without values
            raise WeightsError(f"tensor {name} is no plain array ({one_line(error, 200)})") from None
    return arrays


def _write_torch(network: Network, path: Path) -> None:
    import torch

    with warnings.catch_warnings():  # memory-mapped arrays are read-only; they are only read here
        warnings.simplefilter("ignore", UserWarning)
        state: Any = OrderedDict((name, torch.from_numpy(array)) for name, array in network.tensors.items())
    # Where Module.state_dict keeps its versions: load_state_dict ignores the entry, load_network reads it.
    state._metadata = {"": {"version": 1, ABOUT: json.dumps(network.about)}}
    torch.save(state, path)
