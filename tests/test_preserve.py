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
def test_after_success(model, inputs, target, name, engine):
    """Handed in while it trains, within somebody's inference mode: the map of eval mode, and all stays as it was."""
    expected = drawn(name, model, inputs, target, engine=engine)
    owned(model)
    before, values, seen = state(model), inputs.tolist(), []
    with torch.inference_mode():
        assert torch.equal(drawn(name, model, inputs, target, engine=engine), expected)
    assert state(model) == before
    assert inputs.tolist() == values
    assert not inputs.requires_grad
    assert inputs.grad is None
    # Meanwhile parameters are frozen: a gradient that nobody reads costs time and memory.
    model.features[0].register_forward_hook(
        lambda module, *_: seen.append((module.weight.requires_grad, module.training))
    )
    drawn(name, model, inputs, target, engine=engine)
    assert set(seen) == {(False, False)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("given", [torch.float16, torch.channels_last], ids=str)
def test_in_another_form(model, inputs, target, engine, given):
    kind = "dtype" if isinstance(given, torch.dtype) else "memory_format"
    model, inputs = model.to(**{kind: given}), inputs.to(**{kind: given})
    before = state(owned(model))
    for name in ("gradcam", "vanilla"):
        drawn(name, model, inputs, target, engine=engine)
    assert state(model) == before


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
