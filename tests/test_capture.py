"""Both ways to fill a pass: what they compute, how much they compute, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import TARGET_LAYER, close, drawn, every_engine, every_map, tolerance_of
from pytorch_grad_cam.base_cam import BaseCAM
from tolerances import FLOAT64
from torch import nn

from parity.contract.classes import ClassError
from parity.contract.methods import METHODS, REFERENCE, Options
from torch_impl.capture import ENGINES
from torch_impl.capture.draw import GRADIENTS, draw, opened
from torch_impl.capture.libraries import CapturingCAM, Saliency
from torch_impl.capture.passes import MapError
from torch_impl.capture.target_layer import find_layer
from torch_impl.maps.registry import DRAWN, Drawing
from torch_impl.maps.vanilla import channel_maximum
from torch_impl.preserve import ModelError

KINDS = tuple({DRAWN[name].needs: name for name in REFERENCE}.values())  # one for each part of a pass that maps read
SETS = [*(names for k in (1, 2) for names in itertools.combinations(KINDS, k)), REFERENCE]
every_set = pytest.mark.parametrize("names", SETS, ids=",".join)
AT_LAYER = [name for name in REFERENCE if METHODS[name].at_layer]


def draw_by(engine, model, inputs, target, names, *, layer=TARGET_LAYER, batch_size="auto"):
    capture = opened(model, find_layer(model, layer), engine=engine, batch_size=batch_size)
    return draw(capture, inputs, target, names, Options(n_samples=2))


def top_one(logits, rows):
    return logits.argmax(dim=1)


@pytest.fixture
def close_to_alone(model, inputs):
    """Compare maps with each one drawn by itself, by the libraries."""

    def compare(drawing):
        for name, raw in drawing.raw.items():
            close(raw, drawn(name, model, inputs, drawing.target), tolerance_of(name))

    return compare


# What is computed


@every_engine
@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_all_maps_together_are_each_map_alone(model, inputs, target, engine, batch_size, close_to_alone):
    together = draw_by(engine, model, inputs, target, REFERENCE, batch_size=batch_size)
    assert (list(together.raw), together.logits) == ([*REFERENCE], None)
    assert together.target.tolist() == target.tolist()
    close_to_alone(together)


@every_set
def test_classes_may_be_chosen_by_the_logits(model, inputs, names, close_to_alone):
    with torch.no_grad():
        logits = model(inputs)
    for engine in ENGINES:
        drawing = draw_by(engine, model, inputs, top_one, names, batch_size=2)
        close(drawing.logits, logits, FLOAT64)
        assert drawing.target.tolist() == logits.argmax(dim=1).tolist()
        if engine == "shared":
            close_to_alone(drawing)


class Work:
    """Counts forward passes of the whole network, backward passes, and convolutions that a backward pass reaches."""

    def __init__(self, model, monkeypatch):
        self.forward = self.backward = 0
        self.reached = set()
        model.register_forward_hook(self._run)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, output, name=name: self._watch(output, name))
        gradients = torch.autograd.grad

        def counted(*args, **kwargs):
            self.backward += 1
            return gradients(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", counted)

    def _run(self, *_):
        self.forward += 1

    def _watch(self, output, name):
        if output.requires_grad:
            output.register_hook(lambda _: self.reached.add(name))


@every_set
def test_the_fewest_passes(model, inputs, target, names, monkeypatch):
    """One forward and one backward pass for all that read a pass; those of noisy copies; a forward pass of all masks."""
    work = Work(model, monkeypatch)
    draw_by("shared", model, inputs, target, names, batch_size=100)
    noisy = sum(METHODS[name].noisy for name in names)
    masked = sum("scorecam" in name for name in names)
    reading = any(DRAWN[name].needs for name in names)
    backward = any(DRAWN[name].needs & GRADIENTS for name in names)
    assert (work.forward, work.backward) == (noisy + masked + reading, noisy + backward)
    if set(names) <= set(AT_LAYER):
        assert work.reached == set()  # the gradient ends at the target layer


def test_the_library_engine_is_the_libraries(model, inputs, target, monkeypatch):
    calls = []
    for owner, method in ((BaseCAM, "forward"), (Saliency, "attribute")):
        own = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *a, own=own, **k: calls.append(own) or own(*a, **k))
    assert "forward" not in vars(CapturingCAM)
    for name in REFERENCE:
        calls.clear()
        drawn(name, model, inputs, target)
        assert calls, name


# In-place layers, and memory that runs out


class InPlace(nn.Module):
    """Works on its own input."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.no_grad():
            x.mul_(0.5)
        return self.inner(x)


@every_engine
def test_a_network_that_works_in_place_leaves_the_inputs_alone(model, inputs, target, engine):
    """Also within a pass, where SmoothGrad and Score-CAM read them once more; a half changes no digit."""
    before = inputs.clone()
    capture = opened(InPlace(model), model.features[29], engine=engine, batch_size=2)
    together = draw(capture, inputs, lambda logits, rows: target[rows], REFERENCE, Options(n_samples=2))
    assert torch.equal(inputs, before)
    for name, raw in together.raw.items():
        close(raw, drawn(name, model, inputs / 2, target), tolerance_of(name))


@pytest.mark.parametrize("name", AT_LAYER)
def test_a_layer_that_the_next_one_overwrites(model, inputs, target, name):
    assert model.features[29].inplace
    maps = [drawn(name, model, inputs, target, target_layer="features.28", engine=e) for e in ("library", "shared")]
    model.features[29].inplace = False
    expected = drawn(name, model, inputs, target, target_layer="features.28")
    for raw in maps:
        close(raw, expected, tolerance_of(name))


@every_engine
@every_map
def test_memory_that_runs_out_is_survived(model, inputs, target, name, engine):
    """Every batch above 1 fails, after most of its forward pass is done."""
    expected = drawn(name, model, inputs, target, engine=engine, batch_size=1)
    sizes = []

    def tight(module, args, output):
        sizes.append(len(output))
        if len(output) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.classifier[6].register_forward_hook(tight)
    close(drawn(name, model, inputs, target, engine=engine), expected, tolerance_of(name))
    assert sizes[0] > 1


# What cannot be done


@every_engine
def test_what_is_not_finite_is_refused(model, inputs, target, engine):
    """Of an input that is NaN, gradients may be finite: numbers, and no map."""
    words = r"the logits of photograph 1 \(counted from 0\) is not finite: the inputs hold NaN"
    broken = inputs.clone()
    broken[1, 0, 3, 3] = float("nan")
    for name in KINDS:
        with pytest.raises(MapError, match=words):
            drawn(name, model, broken, target, engine=engine)
    model.classifier[6].register_forward_hook(
        lambda _, __, logits: logits / torch.tensor([[1.0], [0.0], [1.0]]).to(logits)
    )
    for dtype, why in ((torch.float64, "the model itself gives NaN"), (torch.bfloat16, "bf16 is too narrow: try fp32")):
        with pytest.raises(MapError, match=rf"the logits of photograph 1 .* is not finite: {why}"):
            draw_by(engine, model.to(dtype), inputs.to(dtype), top_one, ["vanilla"], batch_size=3)


@every_engine
@pytest.mark.parametrize("name", KINDS)
def test_a_map_that_is_not_finite_is_refused(model, inputs, target, name, engine, monkeypatch):
    broken = torch.ones(3, 4, 4, device=inputs.device)
    broken[1, 2, 2] = float("inf")
    monkeypatch.setitem(DRAWN, name, Drawing(lambda p: broken, DRAWN[name].needs))
    with pytest.raises(MapError, match=rf"{name}: the map of photograph 1 \(counted from 0\) is not finite"):
        drawn(name, model, inputs, target, engine=engine)


@every_engine
def test_an_index_error_is_not_swallowed(model, inputs, engine):
    """pytorch-grad-cam's own `with` prints it and goes on. On the CPU: on a GPU it would end all work of this process there."""
    with pytest.raises(ClassError, match="class 10 does not exist: the network has 10, 0 to 9"):
        drawn("gradcam", model, inputs, [0, 1, 10], engine=engine)
    with pytest.raises((IndexError, RuntimeError, ModelError), match="out of bounds"):
        draw_by(engine, model.cpu(), inputs.cpu(), torch.tensor([0, 1, 10]), ["gradcam"])


def test_shapes_are_checked_here():
    """conftest has every jaxtyping signature checked; a wrong shape must not pass."""
    with pytest.raises(Exception, match="Type-check error"):
        channel_maximum(torch.zeros(2, 2))
