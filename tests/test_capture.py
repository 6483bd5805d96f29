"""Both ways to fill a pass: what they compute, how much they compute, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import TARGET_LAYER, close, drawn, every_engine, every_map, run_program, tolerance_of
from pytorch_grad_cam.base_cam import BaseCAM
from tolerances import FLOAT64
from torch import nn

from parity.contract.methods import METHODS, REFERENCE, Options
from torch_impl.capture.draw import draw, opened
from torch_impl.capture.layout import LayerError
from torch_impl.capture.libraries import CapturingCAM, Saliency
from torch_impl.capture.passes import MapError
from torch_impl.capture.target_layer import find_layer
from torch_impl.maps.registry import DRAWN, Drawing
from torch_impl.maps.vanilla import channel_maximum
from torch_impl.methods import raw_maps

SETS = [names for k in (1, 2, len(REFERENCE)) for names in itertools.combinations(REFERENCE, k)]
every_set = pytest.mark.parametrize("names", SETS, ids=",".join)
AT_LAYER = [name for name in REFERENCE if METHODS[name].at_layer]


def draw_by(engine, model, inputs, target, names, *, layer=TARGET_LAYER, batch_size="auto"):
    capture = opened(model, find_layer(model, layer), engine=engine, batch_size=batch_size)
    return draw(capture, inputs, target, names, Options(n_samples=2))


def top_one(logits, rows):
    return logits.argmax(dim=1)


# What is computed


@every_engine
@every_set
def test_every_set_of_maps_is_each_map_alone(model, inputs, target, engine, names):
    together = draw_by(engine, model, inputs, target, names)
    assert list(together.raw) == list(names)
    assert together.target.tolist() == target.tolist()
    for name in names:
        close(together.raw[name], drawn(name, model, inputs, target, engine="library"), tolerance_of(name))


@every_engine
@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_classes_may_be_chosen_by_the_logits(model, inputs, engine, batch_size):
    with torch.no_grad():
        logits = model(inputs)
    for names in ([], *SETS[: len(REFERENCE)]):
        drawing = draw_by(engine, model, inputs, top_one, names, batch_size=batch_size)
        close(drawing.logits, logits, FLOAT64)
        assert drawing.target.tolist() == logits.argmax(dim=1).tolist()
        for name in names:
            close(drawing.raw[name], drawn(name, model, inputs, drawing.target), tolerance_of(name))


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
    """One forward and one backward pass for all that read a pass, and one of each for a noisy map's copies."""
    work = Work(model, monkeypatch)
    draw_by("shared", model, inputs, target, names, batch_size=100)
    noisy = sum(METHODS[name].noisy for name in names)
    reading = any(DRAWN[name].needs for name in names)
    assert (work.forward, work.backward) == (noisy + reading, noisy + reading)
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


def test_the_shared_engine_imports_neither_library(tmp_path):
    """They take seconds to import."""
    code = (
        "import sys, torch, parity.contract.methods as m; from torch_impl import methods; from torch import nn;"
        "model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten());"
        "x, target = torch.rand(1, 3, 8, 8), torch.tensor([1]);"
        "[methods.raw_maps(n, model, x, target, target_layer='0', engine='shared', n_samples=1) for n in m.REFERENCE];"
        "print([name for name in ('captum', 'pytorch_grad_cam', 'sklearn', 'cv2') if name in sys.modules])"
    )
    assert run_program("-c", code, cwd=tmp_path).stdout.strip() == "[]"


# In-place layers, and memory that runs out


class InPlace(nn.Module):
    """Works on its own input."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.no_grad():
            x.sub_(0.5)
        return self.inner(x)


@every_engine
@every_map
def test_a_network_that_works_in_place_leaves_the_inputs_alone(model, inputs, target, name, engine):
    expected = drawn(name, model, inputs - 0.5, target, engine=engine, noise_level=0.0)
    before, layer = inputs.clone(), f"inner.{TARGET_LAYER}"
    for batch_size in (1, 2, 100):
        options = {"target_layer": layer, "noise_level": 0.0, "batch_size": batch_size, "engine": engine}
        close(drawn(name, InPlace(model), inputs, target, **options), expected, tolerance_of(name))
        assert torch.equal(inputs, before)


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


class Toy(nn.Module):
    """A layer beside the way to the logits, one that never runs, one that runs twice, and a flat one."""

    def __init__(self):
        super().__init__()
        self.beside, self.unused, self.twice, self.conv = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.flat = nn.Flatten()

    def forward(self, x):
        self.beside(x.detach())
        return self.flat(self.conv(self.twice(self.twice(x)))).cumsum(dim=1)


@every_engine
@pytest.mark.parametrize("name", AT_LAYER)
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("beside", "does not lie on the way"),
        ("unused", "ran 0 times|does not lie on the way"),
        ("twice", "ran 2 times in one pass: choose a layer that runs once"),
        ("flat", r"output is \(1, 8\); a class activation map needs \(N, K, h, w\)"),
        ("conv2", r"has no layer 'conv2'; nearest: conv"),
        ("", "has no layer ''; nearest: "),
        (nn.ReLU(), "is not a module of this model"),
    ],
)
def test_a_layer_that_cannot_serve_is_refused(name, engine, layer, words):
    model = Toy()
    with pytest.raises(LayerError, match=words):
        raw_maps(name, model, torch.rand(1, 2, 2, 2), torch.tensor([0]), target_layer=layer, engine=engine)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", ["beside", "unused", "twice"])
def test_it_is_refused_beside_other_maps_too(layer):
    with pytest.raises(LayerError, match=r"way|ran"):
        draw_by("shared", Toy(), torch.rand(1, 2, 2, 2), torch.tensor([0]), REFERENCE, layer=layer)


@every_engine
@pytest.mark.parametrize("name", AT_LAYER)
def test_a_layer_that_nobody_named(model, inputs, target, name, engine):
    with pytest.raises(LayerError, match="drawn on a layer of the model: name one"):
        raw_maps(name, model, inputs, target, engine=engine)


@every_engine
@every_map
def test_what_is_not_finite_is_refused(model, inputs, target, name, engine):
    """Of an input that is NaN, gradients may be finite: numbers, and no map."""
    second = torch.tensor([1], device=inputs.device)
    model.classifier[6].register_forward_hook(lambda _, __, logits: logits.index_fill(0, second, torch.nan))
    with pytest.raises(MapError, match=r"the logits of photograph 1 \(counted from 0\): not finite.* try fp32"):
        draw_by(engine, model, inputs, top_one, [name], batch_size=3)
    inputs[1, 0, 3, 3] = float("nan")
    with pytest.raises(MapError, match=r"the inputs of photograph 1 \(counted from 0\): not finite"):
        drawn(name, model, inputs, target, engine=engine)


@every_engine
@every_map
def test_a_map_that_is_not_finite_is_refused(model, inputs, target, name, engine, monkeypatch):
    broken = torch.ones(3, 4, 4, device=inputs.device)
    broken[1, 2, 2] = float("inf")
    monkeypatch.setitem(DRAWN, name, Drawing(lambda p: broken, DRAWN[name].needs))
    with pytest.raises(MapError, match=rf"{name} of photograph 1 \(counted from 0\): not finite"):
        drawn(name, model, inputs, target, engine=engine)


@every_engine
def test_outputs_that_are_no_logits(inputs, engine):
    for output in (lambda x: x, lambda x: x.mean(), lambda x: [x]):
        model = nn.Identity()
        model.forward = output
        with pytest.raises(ValueError, match=r"expected logits \(N, classes\)"):
            draw_by(engine, nn.Sequential(model), inputs, top_one, ["vanilla"], layer="0")


class Deaf(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 9, dtype=x.dtype, device=x.device, requires_grad=True) * 2


def test_logits_that_do_not_depend_on_the_picture(inputs, target):
    with pytest.raises(ValueError, match="do not depend on its inputs"):
        drawn("vanilla", nn.Sequential(Deaf()), inputs, target, target_layer="0", engine="shared")


def test_an_index_error_is_not_swallowed(model, inputs):
    """pytorch-grad-cam's own `with` prints it and goes on."""
    with pytest.raises(IndexError):
        drawn("gradcam", model, inputs, torch.tensor([0, 1, 10]))
    assert not any(module._forward_hooks for module in model.modules())


def test_shapes_are_checked_here():
    """conftest has every jaxtyping signature checked; a wrong shape must not pass."""
    with pytest.raises(Exception, match="Type-check error"):
        channel_maximum(torch.zeros(2, 2))
