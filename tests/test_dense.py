"""Dense layers by oneDNN against float64, and where they must stay out of the way."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import close
from tolerances import FLOAT32
from torch import nn

from torch_impl import dense, vgg16
from torch_impl.dense import Dense, quicken

pytestmark = pytest.mark.skipif(not dense._available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = nn.Linear(300, 70).requires_grad_(False)
    quicken(layer)
    assert type(layer) is Dense
    return layer


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN's product is called."""
    found = []
    product = dense._one_dnn
    monkeypatch.setattr(dense, "_one_dnn", lambda *a: found.append(a[0].shape) or product(*a))
    return found


@pytest.mark.parametrize("rows", [1, 2, 4, 33])
def test_values_and_gradients_are_those_of_float64(layer, rows, calls):
    x = torch.randn(rows, 300).requires_grad_()
    upstream = torch.randn(rows, 70)
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    weight, bias = layer.weight.double(), layer.bias.double()
    close(layer(x).detach().double(), x.detach().double() @ weight.T + bias, FLOAT32)
    close(found.double(), upstream.double() @ weight, FLOAT32)
    assert calls == [(rows, 300), (rows, 70), (rows, 300)]


def test_a_gradient_that_is_not_contiguous(layer):
    x = torch.randn(3, 300).requires_grad_()
    (found,) = torch.autograd.grad(layer(x), x, torch.randn(70, 3).T)
    assert found.shape == (3, 300)
    (spread,) = torch.autograd.grad(layer(x).sum(), x)  # sum's gradient is one number, expanded
    close(spread, layer.weight.sum(0).expand(3, 300), FLOAT32)


def test_without_a_bias(calls):
    layer = nn.Linear(8, 3, bias=False).requires_grad_(False)
    quicken(layer)
    x = torch.randn(2, 8)
    close(layer(x), x @ layer.weight.T, FLOAT32)
    assert len(calls) == 1


def test_it_stays_out_of_the_way(layer, calls):
    """Trainable weights get their gradient; other types and shapes go PyTorch's way."""
    layer.double()(torch.randn(2, 300, dtype=torch.float64))
    layer.float()(torch.randn(2, 5, 300))
    layer.requires_grad_(True)
    layer(torch.randn(2, 300)).sum().backward()
    assert layer.weight.grad is not None
    assert not calls


def test_the_network_is_the_same_one(tiny, inputs, target):
    """The same modules' names and weights, and the same logits and gradients up to rounding."""
    plain, quick = vgg16.build(tiny), vgg16.prepared(tiny, torch.device("cpu"), torch.float32)
    assert list(plain.state_dict()) == list(quick.state_dict())
    assert sum(isinstance(m, Dense) for m in quick.modules()) == 3
    assert not any(isinstance(m, Dense) for m in plain.modules())
    x, y = (inputs.cpu().float().requires_grad_() for _ in range(2))
    close(quick(y), plain(x), FLOAT32)
    scores = [model(z).gather(1, target.cpu()[:, None]).sum() for model, z in ((plain, x), (quick, y))]
    (a,), (b,) = (torch.autograd.grad(score, z) for score, z in zip(scores, (x, y), strict=True))
    close(b, a, FLOAT32)


def test_second_derivatives_and_functional_transforms():
    """A user may take the explainer's own model for more than maps."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).requires_grad_(False)
    quick = copy.deepcopy(plain)
    quicken(quick)
    x, y = (torch.arange(12.0).reshape(2, 6).div(6).requires_grad_() for _ in range(2))
    found = []
    for model, z in ((plain, x), (quick, y)):
        (first,) = torch.autograd.grad(model(z).sum(), z, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), z)[0])
    assert found[0].abs().max() > 1e-3
    close(found[1], found[0], FLOAT32)
    slope = torch.func.vmap(torch.func.grad(lambda z: quick(z[None]).sum()))(x.detach())
    close(slope, torch.autograd.grad(plain(x).sum(), x)[0], FLOAT32)
