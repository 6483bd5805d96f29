"""Convolution and ReLU in one: the same numbers and gradients as two layers, and their place taken where it helps alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import close
from tolerances import FLOAT64
from torch import nn

from torch_impl import conv
from torch_impl.conv import Rectified, RectifiedConv2d, rectify
from torch_impl.precision import name_of, numerics
from torch_impl.vgg16 import prepared


@pytest.fixture
def layers():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, (3, 1), stride=2, padding=(1, 0), groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1, bias=False),
        nn.ReLU(),
    )
    return made.double().requires_grad_(False)


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


@pytest.fixture
def one_kernel(monkeypatch):
    """What cuDNN's kernel computes, by two operators, on any device and for every type; and how often it was asked."""
    calls = []

    def two(x, weight, bias, stride, padding, dilation, groups):
        calls.append(tuple(weight.shape))
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    monkeypatch.setattr(conv, "one_kernel", two)
    return calls


def test_the_one_kernel_is_both_layers(layers, one_kernel):
    x = torch.randn(2, 3, 10, 9, dtype=torch.float64, requires_grad=True)
    for layer in (layers[0], layers[2]):
        expected = layer(x).relu()
        found = conv._Rectified.apply(x, layer.weight, layer.bias, layer)
        close(found.detach(), expected.detach(), FLOAT64)
        upstream = torch.randn_like(expected)
        close(torch.autograd.grad(found, x, upstream)[0], torch.autograd.grad(expected, x, upstream)[0], FLOAT64)
        assert torch.autograd.gradcheck(
            lambda y, layer=layer: conv._Rectified.apply(y, layer.weight, layer.bias, layer), x
        )
        x = found.detach().requires_grad_()
    assert len(set(one_kernel)) == 2


def test_layers_are_joined_in_pairs(layers):
    x = torch.randn(2, 3, 10, 9, dtype=torch.float64)
    expected, names = layers(x), [name for name, _ in layers.named_parameters()]
    rectify(layers)
    kinds = [type(layer) for layer in layers]
    assert kinds[:4] == [RectifiedConv2d, Rectified] * 2
    assert kinds[5:7] == [nn.Conv2d, nn.ReLU]  # it pads in a way that the kernel does not know
    assert torch.equal(layers(x), expected)
    assert [name for name, _ in layers.named_parameters()] == names
    rectify(layers)
    assert [type(layer) for layer in layers] == kinds


def test_where_parameters_are_trained_it_is_pytorchs_own(layers, one_kernel):
    rectify(layers)
    layers[0].weight.requires_grad_(True)
    (layers(torch.randn(1, 3, 8, 8, dtype=torch.float64)).sum()).backward()
    assert layers[0].weight.grad is not None
    assert not one_kernel


def test_on_a_cpu_nothing_is_joined(tiny):
    model = prepared(tiny, torch.device("cpu"), "fp32")
    assert not any(isinstance(module, RectifiedConv2d) for module in model.modules())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", conv.TYPES)
def test_cudnns_kernel(dtype, monkeypatch):
    monkeypatch.setattr(conv, "WORTH", 0)
    torch.manual_seed(0)
    there = torch.device("cuda")
    layers = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1), nn.ReLU())
    layers = layers.to(there, dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(3, 16, 20, 24, device=there, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def run():
        leaf = x.detach().requires_grad_()
        made = layers(leaf)
        return made.detach(), torch.autograd.grad(made.float().square().sum(), leaf)[0]

    with numerics(name_of(dtype)):
        expected = run()
        rectify(layers)
        monkeypatch.setattr(conv, "one_kernel", counted := Counted(conv.one_kernel))
        found = run()
    assert counted.calls == 2
    # Both sum in float32; ours rounds to the narrow type once, two layers round the product and then the sum with the bias.
    close(found[0], expected[0], 8 * torch.finfo(dtype).eps)
    # A ReLU that this switches lets a gradient through, or not: there are few, so all gradients together are near.
    away, whole = (found[1] - expected[1]).double().norm(), expected[1].double().norm()
    assert away < 0.03 * whole
