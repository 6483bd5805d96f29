"""PyTorch's own networks, made the exact twins of Keras's: what `test_real_networks.py` names with `--torch`."""

from __future__ import annotations

import os
from types import SimpleNamespace
from unittest import mock

import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import inception, resnet

KERAS_EPSILON = 1.001e-5
"""Of the batch norms of Keras's ResNet and DenseNet."""


def with_epsilon(model: nn.Module, epsilon: float = KERAS_EPSILON) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon
    return model


def densenet121() -> nn.Module:
    return with_epsilon(torchvision.models.densenet121(weights=None))


def resnet50() -> nn.Module:
    """Version 1: the stride in the first 1×1 convolution of a stage; and biases, which Keras's has."""
    model = resnet50_v15()
    for module in model.modules():
        if isinstance(module, resnet.Bottleneck) and module.conv2.stride != (1, 1):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return model


def resnet50_v15() -> nn.Module:
    model = with_epsilon(torchvision.models.resnet50(weights=None))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_parameter("bias", nn.Parameter(module.weight.new_zeros(module.out_channels)))
    return model


def resnet50_without_biases() -> nn.Module:
    model = resnet50()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_parameter("bias", None)
    return model


class Inception(nn.Module):
    """InceptionV3, whose average pools do not count their padding: they are function calls in torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.inception_v3(weights=None, transform_input=False, init_weights=False)

    def forward(self, x: Tensor) -> Tensor:
        def avg_pool2d(*given: object, **named: object) -> Tensor:
            return F.avg_pool2d(*given, **named, count_include_pad=False)

        functions = SimpleNamespace(**{**vars(F), "avg_pool2d": avg_pool2d})
        with mock.patch.object(inception, "F", functions):
            return self.model(x)


def inception_v3_stock() -> nn.Module:
    return torchvision.models.inception_v3(weights=None, transform_input=False, init_weights=False)


def convnext_tiny() -> nn.Module:
    return torchvision.models.convnext_tiny(weights=None)


def mobilenet_v2() -> nn.Module:
    return with_epsilon(torchvision.models.mobilenet_v2(weights=None), 1e-3)


def filled() -> nn.Module:
    """The skeleton that TWIN names, with the weights of the file that WEIGHTS names."""
    model: nn.Module = globals()[os.environ["TWIN"]]()
    model.load_state_dict(load_file(os.environ["WEIGHTS"]))
    return model
