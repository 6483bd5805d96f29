"""A model that was handed in comes back as it was, after success and after failure."""

from __future__ import annotations

import pytest
import torch
from conftest import drawn
from test_left_as_it_was import state
from torch import nn

from parity.contract.methods import LIBRARY, REFERENCE
from torch_impl.capture import ENGINES

CASES = [(name, engine) for name in REFERENCE for engine in ENGINES] + [(name, "library") for name in LIBRARY]
every_case = pytest.mark.parametrize(("name", "engine"), CASES)


def owned(model):
    """Half in training mode, half frozen, with gradients and a hook of its owner's."""
    model.train()
    model.features.eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    model.features[0].register_forward_hook(lambda *_: None)
    return model


@every_case
@pytest.mark.parametrize("given", ["float64", "float16", "channels last"])
def test_after_success(model, inputs, target, name, engine, given):
    if given == "float16":
        if name in LIBRARY:
            pytest.skip("refused: see test_methods")
        model, inputs = model.half(), inputs.half()
    if given == "channels last":
        model = model.to(memory_format=torch.channels_last)
    before, values = state(owned(model)), inputs.tolist()
    drawn(name, model, inputs, target, engine=engine)
    assert state(model) == before
    assert inputs.tolist() == values
    assert not inputs.requires_grad
    assert inputs.grad is None


class Fuse(nn.Module):
    """Breaks the pass, forwards or backwards, after the target layer has run."""

    def __init__(self, backwards):
        super().__init__()
        self.backwards = backwards

    def forward(self, x):
        if not self.backwards:
            raise IndexError("blown")
        if x.requires_grad:
            x.register_hook(self.blow)
        return x

    def blow(self, gradient):
        raise IndexError("blown")


@every_case
@pytest.mark.parametrize("backwards", [False, True])
def test_after_failure(model, inputs, target, name, engine, backwards):
    if backwards and "scorecam" in name:
        pytest.skip("there is no backward pass")
    owned(model).classifier[4] = Fuse(backwards)
    before = state(model)
    with pytest.raises(IndexError, match="blown"):
        drawn(name, model, inputs, target, engine=engine)
    assert state(model) == before


@every_case
def test_parameters_are_frozen_meanwhile(model, inputs, target, name, engine):
    """A gradient that nobody reads costs time and memory."""
    seen = []
    model.requires_grad_(True).features[0].register_forward_hook(
        lambda module, *_: seen.append((module.weight.requires_grad, module.training))
    )
    drawn(name, model.train(), inputs, target, engine=engine)
    assert set(seen) == {(False, False)}
    assert all(p.grad is None for p in model.parameters())


@every_case
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_the_callers_no_grad(model, inputs, target, name, engine, mode):
    """A notebook's cell under no_grad draws the same map."""
    expected = drawn(name, model, inputs, target, engine=engine)
    with mode():
        assert torch.equal(drawn(name, model, inputs, target, engine=engine), expected)


@every_case
def test_dropout_is_off(model, inputs, target, name, engine):
    expected = drawn(name, model, inputs, target, engine=engine)
    assert model.train().classifier[2].p > 0
    assert torch.equal(drawn(name, model, inputs, target, engine=engine), expected)
