"""Dense layers by oneDNN against float64, and where they must stay out of the way."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import close
from tolerances import FLOAT32
from torch import nn

from torch_impl import dense, network
from torch_impl.dense import Dense
from torch_impl.network import quicken

pytestmark = pytest.mark.skipif(not dense._available(), reason="this PyTorch has no oneDNN")


def quick_linear(inputs=300, outputs=70, **options):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, **options).requires_grad_(False)
    quicken(layer, nn.Linear, Dense)
    assert type(layer) is Dense
    return layer


@pytest.fixture
def calls(monkeypatch):
    """The rows of every call of oneDNN's product."""
    shapes = []
    product = dense._one_dnn
    monkeypatch.setattr(dense, "_one_dnn", lambda *a: shapes.append(a[0].shape) or product(*a))
    return shapes


@pytest.mark.parametrize("rows", [1, 4, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_float64(rows, bias, calls):
    layer = quick_linear(bias=bias)
    x = torch.randn(rows, 300).requires_grad_()
    upstream = torch.randn(70, rows).T  # not contiguous
    output = layer(x)
    (gradients,) = torch.autograd.grad(output, x, upstream)
    weight = layer.weight.double()
    expected = x.detach().double() @ weight.T + (layer.bias.double() if bias else 0)
    close(output.detach().double(), expected, FLOAT32)
    close(gradients.double(), upstream.double() @ weight, FLOAT32)
    assert calls == [(rows, 300), (rows, 70)]


def test_it_stays_out_of_the_way(calls):
    """Trainable weights get their gradient; other types and shapes go PyTorch's way."""
    layer = quick_linear()
    layer.double()(torch.randn(2, 300, dtype=torch.float64))
    layer.float()(torch.randn(2, 5, 300))
    layer.requires_grad_(True)
    layer(torch.randn(2, 300)).sum().backward()
    assert layer.weight.grad is not None
    assert not calls


def test_the_network_is_the_same_one(tiny, inputs, target):
    """The same names and weights, and the same logits and gradients up to rounding."""
    plain, quick = network.build(tiny), network.prepared(tiny, torch.device("cpu"), "fp32")
    assert list(plain.state_dict()) == list(quick.state_dict())
    assert sum(isinstance(module, Dense) for module in quick.modules()) == 3
    assert not any(isinstance(module, Dense) for module in plain.modules())
    target = target.cpu()
    logits, gradients = [], []
    for model in (plain, quick):
        x = inputs.cpu().float().requires_grad_()
        logits.append(model(x))
        gradients += torch.autograd.grad(logits[-1].gather(1, target[:, None]).sum(), x)
    close(logits[1].detach(), logits[0].detach(), FLOAT32)
    close(gradients[1], gradients[0], FLOAT32)


def test_second_derivatives_and_functional_transforms():
    """A user may take the explainer's own model for more than maps."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).requires_grad_(False)
    quick = copy.deepcopy(plain)
    quicken(quick, nn.Linear, Dense)
    x = torch.arange(12.0).reshape(2, 6).div(6).requires_grad_()
    second = []
    for model in (plain, quick):
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        second += torch.autograd.grad(first.square().sum(), x)
    assert second[0].abs().max() > 1e-3
    close(second[1], second[0], FLOAT32)
    slopes = torch.func.vmap(torch.func.grad(lambda z: quick(z[None]).sum()))(x.detach())
    close(slopes, torch.autograd.grad(plain(x).sum(), x)[0], FLOAT32)
