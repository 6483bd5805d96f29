"""The weights of a module beside the reference's: each finds its partner by its values, whatever its name, order and layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from parity.contract.fingerprints import Fingerprint
from parity.contract.layers import Layer, LayerTable

TRAINED = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class TensorPair:
    """The module's own tensor for one of the reference.

    Attributes:
        name: in the module.
        permutation: in which other order the module has the same values; "" for the right one.
    """

    name: str
    permutation: str = ""


@dataclass(frozen=True)
class Weighted:
    """What the pairing of tensors gave.

    Attributes:
        pairs: reference's name → its pair.
        modules: layer → name of the module that holds most of its tensors.
        missing: the reference's tensors without a partner.
        left: the module's floating-point tensors without one.
    """

    pairs: Mapping[str, TensorPair]
    modules: Mapping[str, str]
    missing: tuple[str, ...]
    left: tuple[str, ...] = field(default=())


def named_tensors(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers of floating point by name; a shared one once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: t.detach().cpu().double().numpy() for name, t in tensors.items() if t.is_floating_point() and t.numel()
    }


def paired_tensors(table: LayerTable, prints: Mapping[str, Fingerprint], model: nn.Module) -> Weighted:
    """Find every tensor's partner.

    Args:
        table: of the reference.
        prints: of its tensors.
        model: the other program's.
    """
    tensors = named_tensors(model)
    theirs = {name: Fingerprint.of(array) for name, array in tensors.items()}
    by_size: dict[int, list[str]] = {}
    for name, print_ in theirs.items():
        by_size.setdefault(print_.size, []).append(name)
    pairs: dict[str, TensorPair] = {}
    modules: dict[str, str] = {}
    free = dict.fromkeys(tensors)
    for layer in table.layers:
        fitting = {
            ours: [n for n in by_size.get(prints[ours].size, ()) if n in free and theirs[n].same_values(prints[ours])]
            for ours in layer.tensors
        }
        owner = _owner(fitting, free)
        for ours, names in fitting.items():
            role = ours.rpartition(".")[2]
            of_owner = [name for name in names if owner is not None and name.rpartition(".")[0] == owner]
            # Of equal ones (fresh biases are all 0) the one of the same role, then the first that is left.
            ordered = sorted(of_owner or names, key=lambda n: n.rpartition(".")[2] != role)
            if not ordered:
                continue
            name = ordered[0]
            del free[name]
            pairs[ours] = TensorPair(name, _permutation(layer, ours, prints[ours], tensors[name]))
        if owner is not None:
            modules[layer.name] = owner
    missing = tuple(name for name in table.tensors if name not in pairs)
    return Weighted(pairs, modules, missing, tuple(free))


def _owner(fitting: Mapping[str, list[str]], free: Mapping[str, None]) -> str | None:
    """The first module, in the order of definition, that holds the most of a layer's tensors; None where there is none."""
    counts: dict[str, int] = {}
    for names in fitting.values():
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in names):
            counts[owner] = counts.get(owner, 0) + 1
    order = {name.rpartition(".")[0]: i for i, name in reversed(list(enumerate(free)))}
    return min(counts, key=lambda owner: (-counts[owner], order[owner]), default=None)


def _permutation(layer: Layer, name: str, print_: Fingerprint, tensor: np.ndarray) -> str:
    """In which order another program has a tensor's values; "" for the right one."""
    shape = layer.tensors[name]
    if print_.same_order(tensor):
        return ""
    for words, rearranged in rearrangements(layer, shape, tensor):
        if print_.same_order(rearranged):
            return words
    return "the same values in an order that is not known here"


def rearrangements(layer: Layer, shape: tuple[int, ...], tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What a tensor would be if a known mistake in its layout were taken back: (the mistake, the right tensor)."""
    flat = tensor.ravel()
    if len(shape) == 4:
        out, into, height, width = shape
        kernel = flat.reshape(shape)
        if layer.kind == "depthwise":
            yield from _depthwise(layer, shape, flat)
        yield "kernel flipped", kernel[:, :, ::-1, ::-1]
        yield "kernel flipped top to bottom", kernel[:, :, ::-1]
        yield "kernel flipped left to right", kernel[:, :, :, ::-1]
        if height == width:
            yield "kernel transposed (height and width exchanged)", kernel.transpose(0, 1, 3, 2)
        yield "kernel layout: HWIO taken for OIHW", flat.reshape(height, width, into, out).transpose(3, 2, 0, 1)
        yield (
            "kernel layout: input and output channels exchanged",
            flat.reshape(into, out, height, width).swapaxes(0, 1),
        )
        yield "kernel layout: OHWI taken for OIHW", flat.reshape(out, height, width, into).transpose(0, 3, 1, 2)
        if height == width:
            turned = flat.reshape(into, out, height, width).transpose(1, 0, 3, 2)
            yield "kernel layout: all four axes reversed (WHIO… transposed as a whole)", turned
        yield "its input channels in reverse (BGR for RGB)", kernel[:, ::-1]
    if len(shape) == 2:
        units, inputs = shape
        yield "kernel transposed: (in, out) taken for (out, in)", flat.reshape(inputs, units).T
        if layer.config.get("flattened"):
            height, width, channels = layer.config["flattened"]
            right = flat.reshape(units, height, width, channels).transpose(0, 3, 1, 2)
            yield "flatten order: columns run (H, W, C), the module flattens (C, H, W)", right
            wrong = flat.reshape(inputs, units).T.reshape(units, height, width, channels).transpose(0, 3, 1, 2)
            yield "flatten order (H, W, C), and the kernel transposed", wrong
    if len(shape) >= 2 or len(flat) < 2:
        return
    yield "reversed", flat[::-1]


def _depthwise(layer: Layer, shape: tuple[int, ...], flat: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    maps, _, height, width = shape
    multiplier = int(layer.config.get("multiplier", 1))
    channels = maps // multiplier
    as_keras = flat.reshape(height, width, channels, multiplier).transpose(2, 3, 0, 1)
    yield "depthwise kernel layout: (h, w, C, multiplier) taken for (C·multiplier, 1, h, w)", as_keras
    if multiplier > 1:
        exchanged = flat.reshape(multiplier, channels, height, width).swapaxes(0, 1)
        yield "depthwise kernel: the multiplier before the channels", exchanged
