"""A network with canonical weights as PyTorch modules, and its layer table in words."""

from __future__ import annotations

import hashlib
import warnings

import torch
from torch import nn

from parity.contract.layers import LayerTable
from parity.contract.network import Network
from parity.contract.vgg import VGG16, blocks_of
from torch_impl.convolutions import Convolution
from torch_impl.dense import Dense
from torch_impl.precision import dtype_of


def skeleton(table: LayerTable) -> nn.Module:
    """The modules, without memory for their weights (on PyTorch's `meta` device).

    `torchvision.models.vgg16` for VGG16 itself; for a narrower VGG the same class and names.

    Raises:
        ValueError: the table is no VGG's.
    """
    import torchvision

    with torch.device("meta"):
        if table == VGG16:
            full: nn.Module = torchvision.models.vgg16(weights=None, init_weights=False)
            return full
        widths: list[int | str] = []
        for block in blocks_of(table):
            widths += [*block, "M"]
        features = torchvision.models.vgg.make_layers(widths)
        model: nn.Module = torchvision.models.VGG(features, num_classes=table.classes, init_weights=False)
        height, width, _ = table["fc1"].config["flattened"]
        model.avgpool = nn.AdaptiveAvgPool2d((height, width))  # identity at the native size, as in VGG16
        classifier = model.get_submodule("classifier")
        assert isinstance(classifier, nn.Sequential)
        for index, layer in zip((0, 3, 6), (table["fc1"], table["fc2"], table["predictions"]), strict=True):
            units, inputs = layer.tensors[f"classifier.{index}.weight"]
            classifier[index] = nn.Linear(inputs, units)
        return model


def build(network: Network) -> nn.Module:
    """A frozen network in eval mode whose outputs are logits (N, classes).

    The weights are the network's own arrays, not a copy of them.

    Args:
        network: canonical weights.

    Returns:
        torchvision's modules on the CPU, float32; inputs (N, 3, H, W), preprocessed as `network.input` says.
    """
    model = skeleton(network.table)
    with warnings.catch_warnings():  # a memory-mapped file is read-only, and so is a frozen network
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        state = {name: torch.from_numpy(array) for name, array in network.tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def prepared(network: Network, device: torch.device, precision: str) -> nn.Module:
    """The network as it is computed fastest: `build`, on its device, in its number format.

    Channels last is the layout that both cuDNN and oneDNN compute fastest in, and the one TensorFlow rounds in, except in strict
    float32 on CUDA, where no tensor core multiplies: there channels first took 5 to 9 % less on an H200, and the convolutions are
    `convolutions.Convolution`. The dense layers are `dense.Dense`.
    """
    strict = device.type == "cuda" and precision == "fp32"
    with torch.inference_mode(False):  # tensors made in inference mode could never be part of a gradient
        model: nn.Module = build(network).to(device, dtype_of(precision))
        if not strict:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
    quicken(model, nn.Linear, Dense)
    if strict:
        quicken(model, nn.Conv2d, Convolution)
    return model


def quicken(model: nn.Module, plain: type[nn.Module], quick: type[nn.Module]) -> None:
    """Make a kind of layers of a VGG that is ours the quick one: same parameters, same names, same result up to rounding."""
    for module in model.modules():
        if type(module) is plain:
            module.__class__ = quick


def layout_of(model: nn.Module) -> torch.memory_format:
    """The layout of a model's own kernels, in which its inputs are handed to it."""
    kernels = (p for p in model.parameters() if p.ndim == 4)
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)
    return torch.channels_last if last else torch.contiguous_format


def summary(table: LayerTable) -> str:
    """The layer table as `keras.Model.summary` shows it, with torchvision's names beside Keras's."""
    rows = [("Keras layer", "torchvision", "Output shape", "Parameters")]
    for layer in table.layers:
        tensor = next(iter(layer.tensors), "")
        module = tensor.rpartition(".")[0] or table.modules.get(layer.name, "")
        shape = ", ".join(map(str, (None, *layer.shape)))
        rows.append((f"{layer.name} ({layer.kind})", module, f"({shape})", f"{layer.parameters:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows]
    rule = "─" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, f"Total parameters: {table.parameters:,}"])


def fingerprint_of(model: nn.Module) -> str:
    """sha256 over names, shapes and values of any model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(
                tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                if tensor.ndim
                else str(tensor.item()).encode()
            )
    return digest.hexdigest()
