"""Small networks of every kind of block, written down as layer tables; and random ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache

from table_networks import Builder

from parity.contract.artifact import Artifact

Network = tuple[Builder, str]
"""The rows, and the target layer."""


def stem(b: Builder, filters: int = 8, stride: int = 2) -> None:
    """Convolution without bias, batch norm, ReLU."""
    b.conv("stem", filters, 3, stride, bias=False)
    b.norm("stem_bn")
    b.act("stem_relu")


def head(b: Builder, classes: int = 6) -> None:
    """Mean of each feature map, then the logits."""
    b.add("gap", "globalpool", pool="average")
    b.dense("logits", classes)


def residual(b: Builder, name: str = "res", filters: int = 8, stride: int = 1) -> None:
    """ResNet's bottleneck, the stride in the first 1×1 (v1), biases and all."""
    x = b.last
    b.conv(f"{name}_1", filters // 2, 1, stride, padding="valid")
    b.norm(f"{name}_1_bn", 1.001e-5)
    b.act(f"{name}_1_relu")
    b.conv(f"{name}_2", filters // 2, 3)
    b.norm(f"{name}_2_bn", 1.001e-5)
    b.act(f"{name}_2_relu")
    b.conv(f"{name}_3", filters, 1, padding="valid")
    last, short = b.norm(f"{name}_3_bn", 1.001e-5), x.name
    if stride > 1 or x.shape[-1] != filters:
        short = b.conv(f"{name}_0", filters, 1, stride, inbound=(x.name,), padding="valid")
        short = b.norm(f"{name}_0_bn", 1.001e-5)
    b.add(f"{name}_add", "add", (short, last))
    b.act(f"{name}_out")


def dense(b: Builder, name: str = "dense", growth: int = 4, count: int = 2) -> None:
    """DenseNet's: batch norm, ReLU, convolution, concatenated to what came before; then a transition."""
    for i in range(count):
        x = b.last.name
        b.norm(f"{name}_{i}_0_bn", 1.001e-5)
        b.act(f"{name}_{i}_0_relu")
        b.conv(f"{name}_{i}_1", 2 * growth, 1, bias=False)
        b.norm(f"{name}_{i}_1_bn", 1.001e-5)
        b.act(f"{name}_{i}_1_relu")
        b.conv(f"{name}_{i}_2", growth, 3, bias=False)
        b.add(f"{name}_{i}_concat", "concatenate", (x, f"{name}_{i}_2"), axis=-1)
    b.norm(f"{name}_bn", 1.001e-5)
    b.act(f"{name}_relu")
    b.pool(f"{name}_pool", "average")


def inverted(b: Builder, name: str = "inv", filters: int = 8, stride: int = 1) -> None:
    """MobileNetV2's."""
    x = b.last
    b.conv(f"{name}_expand", 2 * x.shape[-1], 1, bias=False)
    b.norm(f"{name}_expand_bn")
    b.act(f"{name}_expand_relu", max_value=6.0)
    b.depthwise(f"{name}_depthwise", 3, stride)
    b.norm(f"{name}_depthwise_bn")
    b.act(f"{name}_depthwise_relu", max_value=6.0)
    b.conv(f"{name}_project", filters, 1, bias=False)
    last = b.norm(f"{name}_project_bn")
    if stride == 1 and x.shape[-1] == filters:
        b.add(f"{name}_add", "add", (x.name, last))


def inception(b: Builder, name: str = "mixed", filters: int = 4) -> None:
    """Branches of 1×1, 3×3 and an average pool whose border is not counted."""
    x = b.last.name
    for i, kernel in ((1, 1), (2, 3)):
        b.conv(f"{name}_{i}", filters, kernel, inbound=(x,), bias=False)
        b.norm(f"{name}_{i}_bn")
        b.act(f"{name}_{i}_relu")
    b.add(f"{name}_pool", "pool", (x,), pool="average", window=[3, 3], strides=[1, 1], padding="same")
    b.conv(f"{name}_3", filters, 1, bias=False)
    b.norm(f"{name}_3_bn")
    b.act(f"{name}_3_relu")
    b.add(f"{name}", "concatenate", [f"{name}_{i}_relu" for i in (1, 2, 3)], axis=-1)


def separable(b: Builder, name: str = "sep", filters: int = 8, stride: int = 1) -> None:
    """Keras's SeparableConv2D, two rows, with a batch norm and swish."""
    b.depthwise(f"{name}/depthwise", 3, stride)
    b.conv(name, filters, 1, padding="valid")
    b.norm(f"{name}_bn")
    b.act(f"{name}_swish", "silu")


def squeezed(b: Builder, name: str = "se") -> None:
    """Squeeze and excite, as EfficientNet's."""
    x = b.last
    channels = x.shape[-1]
    b.add(f"{name}_squeeze", "globalpool", pool="average")
    b.add(f"{name}_reshape", "reshape", like=(1, 1, channels), target=[1, 1, channels])
    b.conv(f"{name}_reduce", max(channels // 2, 1), 1, activation="silu")
    b.conv(f"{name}_expand", channels, 1, activation="sigmoid")
    b.add(f"{name}_excite", "multiply", (x.name, f"{name}_expand"))


def convnext(b: Builder, name: str = "next") -> None:
    """ConvNeXt's: depthwise 7×7, layer norm, two dense layers with gelu between, a scale of each channel."""
    x = b.last
    channels = x.shape[-1]
    b.depthwise(f"{name}_depthwise", 7)
    b.add(f"{name}_ln", "layernorm", (), {"weight": (channels,), "bias": (channels,)}, epsilon=1e-3, axes=[-1])
    b.dense(f"{name}_1", 2 * channels)
    b.act(f"{name}_gelu", "gelu", approximate=False)
    b.dense(f"{name}_2", channels)
    b.add(f"{name}_gamma", "layerscale", (), {"weight": (channels,)})
    b.add(f"{name}_add", "add", (x.name, f"{name}_gamma"))


def plain(b: Builder, name: str = "plain", filters: int = 8, padding: str = "valid") -> None:
    """VGG's: two convolutions with their ReLUs inside, a max-pool."""
    b.conv(f"{name}_1", filters, activation="relu")
    b.conv(f"{name}_2", filters, activation="relu")
    b.pool(f"{name}_pool", "max", 3 if padding == "same" else 2, 2, padding)


def enlarged(b: Builder, name: str = "up", filters: int = 6, interpolation: str = "bilinear") -> None:
    """A transposed convolution, a PReLU and an enlargement, a LeakyReLU."""
    channels = b.last.shape[-1]
    tensors = {"weight": (channels, filters, 3, 3), "bias": (filters,)}
    b.add(f"{name}_t", "conv_transpose", (), tensors, kernel=[3, 3], strides=[2, 2], padding="same")
    b.add(f"{name}_prelu", "prelu", (), {"weight": (filters, 1, 1)})
    b.conv(f"{name}_conv", filters, 3, 2)
    b.act(f"{name}_leaky", "leaky_relu", slope=0.3)
    b.add(f"{name}_up", "upsample", size=[2, 2], interpolation=interpolation)
    b.conv(f"{name}_last", filters, 3, 1, dilation=[2, 2])
    b.act(f"{name}_elu", "elu")


BLOCKS: Mapping[str, Callable[[Builder, str], None]] = {
    "residual": residual,
    "strided": lambda b, name: residual(b, name, 12, 2),
    "dense": dense,
    "inverted": inverted,
    "inverted2": lambda b, name: inverted(b, name, 6, 2),
    "inception": inception,
    "separable": separable,
    "separable2": lambda b, name: separable(b, name, 10, 2),
    "squeezed": squeezed,
    "convnext": convnext,
    "plain": plain,
    "plain_same": lambda b, name: plain(b, name, 6, "same"),
    "enlarged": enlarged,
}


def network(*blocks: str, shape: tuple[int, int, int] = (20, 20, 3), classes: int = 6, seed: int = 0) -> Network:
    """A stem, blocks, a head; the target layer is what the head reads, or what a pool at its end reads."""
    b = Builder(shape, seed)
    stem(b)
    for i, block in enumerate(blocks):
        BLOCKS[block](b, block if blocks.count(block) == 1 else f"{block}{i}")
    target = b.last
    while target.kind in ("add", "concatenate", "multiply", "pool"):  # of which PyTorch has no module, or a pool
        name = target.inbound[-1] if target.kind != "multiply" else target.inbound[0]
        target = next(layer for layer in b.layers if layer.name == name)
    head(b, classes)
    return b, target.name


def flattened(shape: tuple[int, int, int] = (12, 16, 3)) -> Network:
    """VGG's end: a flatten of maps that are not square, dense layers, a dropout between."""
    b = Builder(shape)
    plain(b)
    b.conv("last", 5, activation="relu")
    b.add("flatten", "flatten")
    height, width, channels = b.layers[-2].shape
    b.dense("fc1", 12, flattened=(height, width, channels), activation="relu")
    b.add("drop", "dropout", rate=0.5)
    b.dense("fc2", 10, activation="tanh")
    b.dense("logits", 5)
    return b, "last"


def random_network(seed: int) -> Network:
    """Blocks at random, one after the other, on inputs of random sides."""
    chance = random.Random(seed)
    shape = (chance.randint(14, 23), chance.randint(14, 23), chance.choice((1, 3, 3)))
    blocks = [chance.choice(list(BLOCKS)) for _ in range(chance.randint(1, 3))]
    return network(*blocks, shape=shape, classes=chance.choice((1, 2, 5, 9)), seed=seed)


@lru_cache(maxsize=64)
def of(
    *blocks: str, height: int = 20, width: int = 20, channels: int = 3, classes: int = 6
) -> tuple[Builder, Artifact]:
    """A network of blocks and its reference."""
    if blocks == ("flattened",):
        builder, target = flattened((height, width, channels))
    else:
        builder, target = network(*blocks, shape=(height, width, channels), classes=classes)
    return builder, builder.reference(target)
