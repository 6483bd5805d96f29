"""Networks that people bring, each map by both captures against plain autograd in float64."""

from __future__ import annotations

import plain
import pytest
import torch
import torchvision.models as tv
from conftest import close, every_engine
from tolerances import FLOAT64, FLOAT64_ALPHA
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from torch_impl import methods
from torch_impl.capture.target_layer import find_layer, found_layer, name_of


def swin(**k):
    return tv.SwinTransformer(
        [4, 4], 24, [2, 2], [3, 6], [4, 4], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2, **k
    )


def convnext(**k):
    return tv.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], layer_scale=0.5, **k)


def efficientnet(**k):
    settings = [MBConvConfig(1, 3, 1, 16, 16, 1, 1, 1), MBConvConfig(6, 5, 2, 16, 24, 2, 1, 1)]
    return tv.EfficientNet(settings, dropout=0.2, last_channel=48, **k)


def vgg(num_classes):
    model = tv.vgg11_bn(num_classes=num_classes, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, num_classes)
    )
    return model


def resnet(**k):
    return tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], **k)


NETWORKS = {
    # name: (network, size, layer that is found when none is given, its layout)
    "resnet": (resnet, 64, "layer4", "nchw"),
    "densenet": (lambda **k: tv.DenseNet(8, (2, 3), 16, **k), 64, "features", "nchw"),
    "efficientnet": (efficientnet, 64, "features", "nchw"),
    "convnext": (convnext, 64, "features", "nchw"),
    "swin_v2": (swin, 64, "norm", "nhwc"),
    "squeezenet1_1": (tv.squeezenet1_1, 96, "classifier.2", "nchw"),
    "googlenet": (lambda **k: tv.googlenet(init_weights=False, **k), 64, "inception5b", "nchw"),
    "vgg11_bn": (vgg, 64, "features.27", "nchw"),
}


@pytest.fixture(scope="module", params=NETWORKS, ids=list(NETWORKS))
def network(request):
    build, size, layer, layout = NETWORKS[request.param]
    torch.manual_seed(0)
    model = plain.randomized(build(num_classes=7)).double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
    return model, inputs, layer, layout


def test_the_layer_that_is_found(network):
    model, inputs, layer, _ = network
    assert name_of(model, found_layer(model, inputs[:1])) == layer


@every_engine
def test_maps_are_those_of_plain_autograd(network, engine):
    model, inputs, layer, layout = network
    target = torch.tensor([3, 5])
    a, g, x = plain.captured(model, find_layer(model, layer), inputs, lambda y: logits(y).gather(1, target[:, None]))
    if layout == "nhwc":
        a, g = a.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)
    for name, expected in (("gradcam", plain.gradcam(a, g)), ("gradcam_plus_plus", plain.gradcam_plus_plus(a, g))):
        signed = methods.raw_maps(name, model, inputs, target, target_layer=layer, engine=engine, relu=False)
        assert float(expected.abs().max()) > 0
        close(signed, expected, FLOAT64 if name == "gradcam" else FLOAT64_ALPHA)
        drawn = methods.raw_maps(name, model, inputs, target, target_layer=layer, engine=engine)
        assert torch.equal(drawn, signed.clamp(min=0))
    close(methods.raw_maps("vanilla", model, inputs, target, engine=engine), plain.vanilla(x), FLOAT64)


def logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits
