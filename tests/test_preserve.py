"""A model that was handed in comes back as it was, after success and after failure."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_impl.vgg16 import TARGET_LAYER

from torch_impl import methods
from torch_impl.methods import METHODS, Settings, raw_maps
from torch_impl.precision import numerics


def prepared(model):
    """Half in training mode, half frozen, with gradients and a hook of its owner's."""
    model.train()
    model.features.eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    model.features[0].register_forward_hook(lambda *_: None)
    return model


def state(model):
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "parameters": [p.detach().clone() for p in model.parameters()],
        "types": [(p.dtype, p.device, p.is_contiguous()) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "leaves": [p.is_leaf for p in model.parameters()],
    }


def assert_same(before, after):
    for name in before:
        if name == "grads":
            for a, b in zip(before[name], after[name], strict=True):
                assert (a is None) == (b is None)
                assert a is None or (a[0] == b[0] and torch.equal(a[1], b[1]))
        elif name == "parameters":
            assert all(torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
        else:
            assert before[name] == after[name], name


@pytest.mark.parametrize("method", METHODS)
def test_after_success(model, inputs, target, method):
    before = state(prepared(model))
    raw_maps(method, model, inputs.float().double(), target, Settings(target_layer=TARGET_LAYER, n_samples=2))
    assert_same(before, state(model))
    assert not inputs.requires_grad
    assert inputs.grad is None


class Fuse(nn.Module):
    """Breaks the pass after the target layer has run."""

    def forward(self, x):
        raise IndexError("blown")


@pytest.mark.parametrize("method", METHODS)
def test_after_failure(model, inputs, target, method):
    prepared(model)
    model.classifier[4] = Fuse()
    before = state(model)
    with pytest.raises(IndexError, match="blown"):
        raw_maps(method, model, inputs, target, Settings(target_layer=TARGET_LAYER, n_samples=2))
    assert_same(before, state(model))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_the_callers_no_grad(model, inputs, target, method, mode):
    """A notebook's cell under no_grad draws the same map."""
    settings = Settings(target_layer=TARGET_LAYER, n_samples=2)
    with numerics("fp64"):
        expected = raw_maps(method, model, inputs, target, settings)
        with mode():
            assert torch.equal(raw_maps(method, model, inputs, target, settings), expected)


def test_dropout_is_off(model, inputs, target):
    model.train()
    assert model.classifier[2].p > 0
    first = methods.vanilla(model, inputs, target)
    assert torch.equal(methods.vanilla(model, inputs, target), first)
    assert model.classifier[2].training
