"""The network: torchvision's VGG16, with weights in canonical form; and its layer table."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from parity.contract.architecture import VGG16, Architecture
from parity.contract.network import Network
from torch_impl.dense import quicken

TARGET_LAYER = "features.29"
"""ReLU after conv5_3, (N, 512, 14, 14): Keras's block5_conv3. Not .28 (overwritten in place), not .30 (pooled)."""


def skeleton(architecture: Architecture) -> nn.Module:
    """The modules, without memory for their weights (on PyTorch's `meta` device).

    `torchvision.models.vgg16` for VGG16 itself; for a narrower network of the family the same class and names.
    """
    import torchvision

    with torch.device("meta"):
        if architecture == VGG16:
            full: nn.Module = torchvision.models.vgg16(weights=None, init_weights=False)
            return full
        widths: list[int | str] = []
        for block in architecture.blocks:
            widths += [*block, "M"]
        features = torchvision.models.vgg.make_layers(widths)
        model: nn.Module = torchvision.models.VGG(features, num_classes=architecture.classes, init_weights=False)
        channels, height, width = architecture.flatten_chw
        model.avgpool = nn.AdaptiveAvgPool2d((height, width))  # identity at the native size, as in VGG16
        first, second = architecture.dense
        classifier = model.get_submodule("classifier")
        assert isinstance(classifier, nn.Sequential)
        classifier[0] = nn.Linear(channels * height * width, first)
        classifier[3] = nn.Linear(first, second)
        classifier[6] = nn.Linear(second, architecture.classes)
        return model


def build(network: Network) -> nn.Module:
    """A frozen network in eval mode whose outputs are logits (N, classes).

    The weights are the network's own arrays, not a copy of them.

    Args:
        network: canonical weights.

    Returns:
        torchvision's modules on the CPU, float32; inputs (N, 3, H, W), preprocessed as `network.input` says.
    """
    model = skeleton(network.architecture)
    with warnings.catch_warnings():  # a memory-mapped file is read-only, and so is a frozen network
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        state = {name: torch.from_numpy(array) for name, array in network.tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def prepared(network: Network, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network as it is computed fastest: `build`, on its device, in its number format.

    Channels last is the layout that both cuDNN and oneDNN compute fastest in, and the one TensorFlow rounds in; in strict float32 on
    CUDA, where no tensor core multiplies, the other one was 5 % faster for some batches and slower for others. The dense layers are
    `dense.Dense`.
    """
    with torch.inference_mode(False):  # tensors made in inference mode could never be part of a gradient
        model: nn.Module = build(network).to(device, dtype)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
    quicken(model)
    return model


def summary(architecture: Architecture) -> str:
    """The layer table as `keras.Model.summary` shows it, with torchvision's names beside Keras's."""
    rows = [("Keras layer", "torchvision", "Output shape", "Parameters")]
    for layer in architecture.layers:
        names = layer.torch or layer.activation
        shape = ", ".join(map(str, (None, *layer.shape)))
        rows.append((f"{layer.keras} ({layer.kind})", names, f"({shape})", f"{layer.parameters:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows]
    rule = "─" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, f"Total parameters: {architecture.parameters:,}"])
