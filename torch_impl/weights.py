"""Where a network's weights come from and go to: official downloads, and files of either framework, in canonical form.

Everything ends in a `parity.contract.network.Network`, checked strictly: nothing missing, nothing left over, every
value finite. A file's layout is recognised by what it holds, not by what it is called, and nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import re
import stat
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.contract import network as contract
from parity.contract.architecture import VGG16, Architecture
from parity.contract.files import whole
from parity.contract.network import Network, WeightsError
from torch_impl import downloads, keras_files
from torch_impl.downloads import Progress
from torch_impl.keras_files import (
    conv_kernel,
    dense_after_flatten,
    dense_kernel,
    keras_conv_kernel,
    keras_dense_after_flatten,
    keras_dense_kernel,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "SOURCES",
    "Network",
    "Progress",
    "WeightsError",
    "conv_kernel",
    "dense_after_flatten",
    "dense_kernel",
    "imagenet_is_cached",
    "keras_conv_kernel",
    "keras_dense_after_flatten",
    "keras_dense_kernel",
    "load_network",
    "save_network",
]

SOURCES = ("auto", "imagenet", "keras", "offline", "offline-random:N", "seeded:N")
"""What a user may write beside a path."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".weights.h5", ".h5", ".hdf5")
"""What `save_network` writes."""

_KERAS_LAYER = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(keras_files.TABLE)})(?![A-Za-z0-9])")
"""In a tensor's name, whatever stands around it: `block1_conv1/kernel:0`, `vgg16.block1_conv1.kernel`."""

_METADATA = "attention_maps"
"""Key under which a file of a foreign layout remembers source, input and remark."""


def load_network(source: str = "auto", *, input: str | None = None, progress: Progress | None = None) -> Network:
    """The weights that a user asked for.

    Args:
        source: one of
            `auto`: `imagenet` if it is cached or its host answers within 3 seconds, otherwise `offline`, whose
            `remark` then says why;
            `imagenet`: torchvision's `VGG16_Weights.IMAGENET1K_V1`, in torchvision's cache (TORCH_HOME moves it,
            ATTENTION_MAPS_IMAGENET_URL names a mirror);
            `keras`: Keras's ImageNet VGG16, in Keras's cache (KERAS_HOME, ATTENTION_MAPS_KERAS_URL);
            `offline`, `offline-random:N`, `seeded:N`: see `parity.contract.network`;
            a path (write `./offline` for a file of such a name) of a torch state dict (`.pt`, `.pth`; also below
            "state_dict" or "model_state_dict", also with DataParallel's "module." before each name), safetensors
            (canonical, torch's names or Keras's), Keras `.h5`, `.weights.h5` or `.keras`.
        input: preprocessing, in place of what the source knows: `caffe` for Keras's layouts, `torchvision` for torch's,
            unless the file says otherwise.
        progress: told of a download's bytes.

    Returns:
        Canonical float32 tensors, memory-mapped where the file allows it.

    Raises:
        WeightsError: one line: which source, what is wrong with it, what to do.
    """
    source = os.fspath(source)
    if input is not None and input not in contract.INPUTS:
        raise WeightsError(f"preprocessing {input!r} is unknown; known: {', '.join(contract.INPUTS)}")
    if source == "auto":
        network = _auto(progress)
    elif source == "imagenet":
        network = _imagenet(downloads.fetch(downloads.IMAGENET, progress))
    elif source == "keras":
        network = _named(_read(downloads.fetch(downloads.KERAS, progress)), "keras", "caffe")
    elif source == "offline" or source.startswith(("offline-random:", "seeded:")):
        network = contract.from_source(source) or _read(_regular(source))
    else:
        network = _read(_regular(source))
    return network if input is None else dataclasses.replace(network, input=input)


def save_network(network: Network, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a file that the other framework, or this one, can load.

    Source, preprocessing and remark travel in the file's metadata, where `load_network` finds them again.

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
        raise WeightsError(f"{name} exists; it is replaced only when asked to")
    try:
        if suffix == ".safetensors":
            contract.write(network, target)
        else:
            with whole(target) as temporary:
                if suffix in (".pt", ".pth"):
                    _write_torch(network, temporary)
                else:
                    _write_keras(network, temporary, counted=suffix == ".weights.h5")
    except (OSError, RuntimeError, ValueError) as error:  # torch raises RuntimeError for a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise WeightsError(f"{name} cannot be written ({_line(reason)})") from None


def imagenet_is_cached() -> bool:
    """Whether `imagenet` needs no download (its hash is checked when it is loaded)."""
    return downloads.IMAGENET.path.is_file()


# Sources


def _auto(progress: Progress | None) -> Network:
    try:
        path = downloads.cached(downloads.IMAGENET)
        why = "" if path else downloads.unreachable(downloads.IMAGENET)
        if not why:
            return _imagenet(path or downloads.fetch(downloads.IMAGENET, progress))
    except WeightsError as error:
        why = str(error)
    network = contract.offline()
    return dataclasses.replace(network, remark=f"no ImageNet weights ({why}); {network.remark}")


def _imagenet(path: Path) -> Network:
    return _named(_read(path), "imagenet", "torchvision")


def _named(network: Network, source: str, input: str) -> Network:
    return dataclasses.replace(network, source=source, input=input)


def _regular(source: str) -> Path:
    """The path of a file that can be read to its end: no folder, no pipe, no device."""
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(source):
            raise WeightsError(
                f"{source!r} is neither a file nor a known source; known: {', '.join(SOURCES)}, or a path"
            ) from None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WeightsError(f"{source!r} cannot be read ({reason})") from None
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{source!r} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")
    return Path(source)


# Reading files


def _read(path: Path) -> Network:
    """Any layout.

    Raises:
        WeightsError: with the path, on one line.
    """
    try:
        kind = _kind(path)
        if kind == "safetensors":
            network = contract.read(path, framework="pt")
            if network is not None:
                _vgg16({name: array.shape for name, array in network.tensors.items()})
                return network
            tensors, metadata = _safetensors(path)
        elif kind == "torch":
            tensors, metadata = _torch(path)
        else:
            with keras_files.opened(path, archive=kind == "keras") as file:
                tensors, metadata = keras_files.read(file), _metadata(keras_files.attribute(file, _METADATA), "caffe")
        return dataclasses.replace(
            contract.checked(tensors, source=str(path), input=metadata["input"], remark=metadata["remark"]),
            source=metadata["source"] or str(path),
        )
    except WeightsError as error:
        text = _line(str(error))
        prefix = repr(str(path))
        plain = str(path) + ": "
        if text.startswith(prefix):
            raise WeightsError(text) from None
        raise WeightsError(f"{prefix}: {text.removeprefix(plain)}") from None
    except MemoryError:
        raise WeightsError(f"{str(path)!r}: not enough memory to read it") from None


def _kind(path: Path) -> str:
    """`safetensors`, `torch`, `hdf5` or `keras`, by the first bytes, and for archives by their members."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"it cannot be read ({error.strerror})") from None
    if not head:
        raise WeightsError("it is empty")
    # First, because it begins with a length, whose bytes may look like any other format.
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**27:
        return "safetensors"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise WeightsError(f"a truncated or damaged archive ({error})") from None
        if "model.weights.h5" in names:
            return "keras"
        if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in names):
            return "torch"
        raise WeightsError("an archive, but neither PyTorch's nor Keras's")
    if head[0] == 0x80:  # a pickle: torch's format before 1.6, or somebody's objects
        return "torch"
    raise WeightsError("not a weights file (neither PyTorch, nor safetensors, nor HDF5, nor .keras)")


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """PyTorch's names or Keras's, any floating type."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # whatever its readers run into
        raise WeightsError(f"not a readable safetensors file ({_line(str(error))})") from None
    layers = {name: next(iter(_KERAS_LAYER.findall(name)), "") for name in tensors}
    if not any(layers.values()):
        return _canonical_torch(tensors), _metadata(said, "torchvision")
    stored = [
        keras_files.Stored(name, layers[name], tuple(tensors[name].shape), partial(_array, name, tensors[name]))
        for name in sorted(tensors, key=lambda name: (layers[name], -tensors[name].dim()))
    ]
    return keras_files.canonical(stored), _metadata(said, "caffe")


def _torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A state dict. `weights_only` builds tensors and plain containers and nothing else: no code in the file runs."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever its readers run into
        if "TorchScript" in str(error):
            raise WeightsError("a TorchScript program, which is not run: save model.state_dict() instead") from None
        if isinstance(error, pickle.UnpicklingError):  # its advice, to load without weights_only, is not passed on
            found = re.search(r"GLOBAL ([\w.]*\.[\w.]+)", str(error))
            raise WeightsError(
                f"it holds pickled Python objects{f' ({found[1]})' if found else ''}, which could run code and are not "
                "loaded: save model.state_dict() instead"
            ) from None
        raise WeightsError(f"truncated, damaged or no state dict ({_line(str(error))[:160]})") from None
    for key in ("state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise WeightsError(f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"entry {name!r} is a {type(value).__name__}, not a named tensor")
    about = getattr(loaded, "_metadata", None)
    said = about.get("") if isinstance(about, dict) else None
    if loaded and all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return _canonical_torch(loaded), _metadata(said.get(_METADATA) if isinstance(said, dict) else None, "torchvision")


def _canonical_torch(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    _vgg16({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return {name: _array(name, tensor) for name, tensor in tensors.items()}


def _array(name: str, tensor: torch.Tensor) -> np.ndarray:
    """Shares the tensor's memory if it is float32 and contiguous."""
    import torch

    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
        raise WeightsError(f"tensor {name} holds {tensor.dtype}, {tensor.layout}; expected floating point")
    array: np.ndarray = tensor.detach().to(torch.float32).contiguous().numpy()
    return array


def _vgg16(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what is not VGG16's table before anything is converted, by name where the name is easy."""
    known = {
        "features.34.weight": "VGG19",
        "features.1.running_mean": "a VGG with batch normalization (vgg16_bn)",
        "layer1.0.conv1.weight": "a ResNet",
    }
    looks = next((f" (it looks like {what})" for name, what in known.items() if name in shapes), "")
    try:
        architecture = Architecture.of(shapes)
    except ValueError as error:
        raise WeightsError(f"not the weights of a VGG16{looks}: {error}") from None
    counts = [len(block) for block in architecture.blocks]
    if counts != [len(block) for block in VGG16.blocks]:
        raise WeightsError(
            f"not the weights of a VGG16{looks}: convolutions per block {counts}, expected 2, 2, 3, 3, 3"
        )
    if architecture.parameters > keras_files.LARGEST:
        raise WeightsError(f"{architecture.parameters:,} weights are declared: too many for a VGG16")


def _metadata(said: Any, input: str) -> dict[str, str]:
    """Source, input and remark, from a file that may say anything."""
    if isinstance(said, (str, bytes)):
        try:
            said = json.loads(said)
        except ValueError:
            said = {}
    said = said if isinstance(said, Mapping) else {}
    texts = {key: str(said.get(key) or "") for key in ("source", "input", "remark")}
    found = {key: "".join(c if c.isprintable() else " " for c in text)[:300] for key, text in texts.items()}
    return found | {"input": found["input"] or input}


# Writing files


def _write_torch(network: Network, path: Path) -> None:
    import torch

    with warnings.catch_warnings():  # memory-mapped arrays are read-only; they are only read here
        warnings.simplefilter("ignore", UserWarning)
        state: Any = OrderedDict((name, torch.from_numpy(array)) for name, array in network.tensors.items())
    # Where Module.state_dict keeps its versions: load_state_dict ignores the entry, load_network reads it.
    state._metadata = {"": {"version": 1, _METADATA: _about(network)}}
    torch.save(state, path)


def _write_keras(network: Network, path: Path, *, counted: bool) -> None:
    import h5py

    write = keras_files.write_counted if counted else keras_files.write_legacy
    # In memory first: where a disk is full, HDF5 cannot close its file, and takes the whole process down with it.
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs[_METADATA] = np.bytes_(json.dumps(_about(network)))  # of fixed length: see keras_files.attribute
        write(file, network.tensors, network.architecture)
    path.write_bytes(image.getbuffer())


def _about(network: Network) -> dict[str, str]:
    return {"source": network.source, "input": network.input, "remark": network.remark}


def _line(text: str) -> str:
    """One printable line of bounded length, whatever a file or a library said."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in text)[:400] or "no reason given"
