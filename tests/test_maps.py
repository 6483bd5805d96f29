"""The maps' formulas: on paper, written out again by other means, and in what they must not depend on."""

from __future__ import annotations

import numpy as np
import plain
import pytest
import torch
from conftest import TARGET_LAYER, close, drawn, every_engine, every_map, tolerance_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plain import with_wide_gradients
from tolerances import DIFFERENCE_QUOTIENT, FLOAT32, FLOAT64, NARROW_GRADIENTS
from torch import nn

from parity.contract import noise
from parity.contract.methods import METHODS, REFERENCE
from parity.contract.noise import unit_noise
from torch_impl.capture import libraries, one_pass, passes
from torch_impl.maps.gradcam import class_activation_map, grad_cam_weights
from torch_impl.maps.gradcam_plus_plus import grad_cam_plus_plus_alpha, grad_cam_plus_plus_weights
from torch_impl.maps.registry import DRAWN
from torch_impl.maps.smoothgrad import standard_deviations
from torch_impl.methods import raw_maps
from torch_impl.network import build

NOISY = [name for name in REFERENCE if METHODS[name].noisy]
AT_LAYER = [name for name in REFERENCE if METHODS[name].at_layer]
BY_GRADIENTS = [name for name in REFERENCE if name in NOISY or DRAWN[name].needs & {"gradients", "input_gradients"}]


# On paper


def test_grad_cam_on_paper():
    gradients = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, 0.0], [0.0, 0.0]]]])
    assert grad_cam_weights(gradients).tolist() == [[3.0, -0.25]]
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    assert class_activation_map(activations, torch.tensor([[2.0, -1.0]])).tolist() == [[[0, 4]]]


@pytest.mark.parametrize(
    ("activations", "gradients", "alpha", "weight"),
    [
        ((1, 1), (1, 2), (3 / 5, 2 / 5), 7 / 5),  # ΣA = 2: (1/4, 1/6), over their sum
        ((3, 1), (1, -1), (-1 / 2, 3 / 2), -1 / 2),  # ΣA = 4: (1/6, -1/2), over -1/3; the mean of A would be a pole
        ((5, 1), (0, 2), (0, 1), 2),  # no gradient, no alpha, whatever A is there
        ((5, 1), (0, 0), (0, 0), 0),
        ((1, 2), (-1, -1 / 3), (-1, 1), 0),  # a sum of 0 does not divide
        ((1, 1), (-1, 3), (1, 0), 0),  # a denominator of exactly 0, where the reference has 0/0: the limit
    ],
)
def test_grad_cam_plus_plus_on_paper(activations, gradients, alpha, weight):
    a, g = (torch.tensor([[[values]]], dtype=torch.float64) for values in (activations, gradients))
    close(grad_cam_plus_plus_alpha(a, g), torch.tensor([[[alpha]]], dtype=torch.float64), FLOAT64)
    close(grad_cam_plus_plus_weights(a, g), torch.tensor([[weight]], dtype=torch.float64), FLOAT64)


def test_alpha_beside_a_pole_comes_near_its_limit():
    a = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    alpha = grad_cam_plus_plus_alpha(a, torch.tensor([[[[-1.0 + 1e-9, 3.0]]]], dtype=torch.float64))
    assert (alpha - torch.tensor([1.0, 0.0])).abs().max() < 1e-8


@given(
    arrays(np.float64, (1, 2, 3, 3), elements=st.floats(0, 100)),
    arrays(np.float64, (1, 2, 3, 3), elements=st.floats(-1e3, 1e3)),
)
def test_alpha_sums_to_one_or_nothing_and_is_never_nan(a, g):
    alpha = grad_cam_plus_plus_alpha(torch.tensor(a), torch.tensor(g))
    assert torch.isfinite(alpha).all()
    sums, sizes = alpha.sum(dim=(-2, -1)).flatten(), alpha.abs().amax(dim=(-2, -1)).flatten()
    for total, largest in zip(sums.tolist(), sizes.tolist(), strict=True):
        # Where large terms cancel, the sum is 1 up to their rounding.
        assert total == pytest.approx(1, abs=1e-12 * max(1.0, largest)) or abs(total) < 1e-12


class Layers(nn.Module):
    """One 1×1 convolution, ReLU in place, then weights on each place: gradients can be read off."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.dense = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.conv.weight[:] = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
            self.dense.weight[:] = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 5.0, 1.0]])

    def forward(self, x):
        return self.dense(self.relu(self.conv(x)).flatten(1))


@every_engine
@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        # x = (4, -1): the convolution gives (4, -1), (-8, 2), after ReLU A = (4, 0), (0, 2). Class 0: G = (1, 3), (2, -1).
        ("gradcam", "relu", [8, 1]),  # w = (2, 1/2): 2·(4, 0) + 1/2·(0, 2)
        # ΣA = (4, 2). Channel 0: alpha (1/6, 1/14) → (7/10, 3/10), w = 1.6. Channel 1: 2 − 2 = 0, a pole: w = relu(−1).
        ("gradcam_plus_plus", "relu", [6.4, 0]),
        # The convolution's own output, before the ReLU writes over it: G = (1, 0), (0, -1), w = (1/2, -1/2).
        ("gradcam", "conv", [6, 0]),  # relu((2, -1/2) + (4, -1))
        ("vanilla", "relu", [1, 2]),  # 1·1 where only channel 0 is open; -2·-1 where only channel 1 is
    ],
)
def test_a_whole_network_on_paper(device, engine, name, layer, expected):
    model = Layers().to(device).double()
    x = torch.tensor([[[[4.0, -1.0]]]], device=device, dtype=torch.float64)
    raw = raw_maps(name, model, x, torch.tensor([0], device=device), target_layer=layer, engine=engine)
    close(raw.cpu(), torch.tensor([[expected]], dtype=torch.float64), FLOAT64)


class Product(nn.Module):
    """Logits (2a − 3b, a·b) of a one-pixel, two-channel picture."""

    def forward(self, x):
        a, b = x[:, 0, 0, 0], x[:, 1, 0, 0]
        return torch.stack([2 * a - 3 * b, a * b], dim=1)


@every_engine
def test_the_largest_channel_on_paper(engine):
    x = torch.tensor([[[[5.0]], [[7.0]]], [[[5.0]], [[-7.0]]]])
    raw = raw_maps("vanilla", Product(), x, torch.tensor([0, 1]), engine=engine)
    assert raw.tolist() == [[[3]], [[7]]]  # |(2, −3)|, and |(b, a)| = |(−7, 5)|


@every_engine
@pytest.mark.parametrize(("picture", "level", "n_samples"), [((5.0, -7.0), 0.25, 4), ((0.5, -0.5), 10.0, 50)])
def test_smoothgrad_on_paper(engine, picture, level, n_samples):
    """a·b has the gradient (b, a). In the second case it changes its sign: |mean| would be another number."""
    x = torch.tensor(picture, dtype=torch.float64).view(1, 2, 1, 1)
    z = level * (picture[0] - picture[1]) * np.random.RandomState(9).standard_normal((n_samples, 1, 1, 2))
    a, b = picture[0] + z[..., 0], picture[1] + z[..., 1]
    options = {"noise_level": level, "n_samples": n_samples, "seed": 9, "engine": engine}
    raw = raw_maps("smoothgrad", Product(), x, torch.tensor([1]), **options)
    assert raw.item() == pytest.approx(max(np.abs(a).mean(), np.abs(b).mean()), rel=FLOAT64)
    if level == 10:
        assert raw.item() > 3 * max(abs(a.mean()), abs(b.mean()))


def test_sigma_is_each_images_own_range_over_all_its_values():
    x = torch.zeros(2, 2, 1, 2)
    x[0, 0, 0, 0], x[0, 1, 0, 1] = -3, 7  # in different channels
    x[1, 1] = 5
    assert standard_deviations(x, 0.5).tolist() == [5, 2.5]


def test_unit_noise_is_the_references_draw_kept_or_streamed(monkeypatch):
    np.random.seed(7)
    reference = np.random.normal(0.0, np.full((3, 1, 1, 1, 1), 2.5, np.float32), (3, 1, 4, 5, 3))
    for limit in (noise.CACHE_BYTES, 0):
        monkeypatch.setattr(noise, "CACHE_BYTES", limit)
        for i, unit in enumerate(unit_noise(7, 3, (4, 5, 3))):
            assert (2.5 * unit == reference[i, 0]).all()
            with pytest.raises(ValueError, match="read-only"):
                unit[0] = 1


# Each map written out again: by plain autograd and NumPy


def enlarged(a, height, width):
    """Bilinear, corner on corner: first down every column, then along every row."""
    rows, columns = np.linspace(0, len(a) - 1, height), np.linspace(0, a.shape[1] - 1, width)
    a = np.stack([np.interp(rows, np.arange(len(a)), column) for column in a.T], axis=1)
    return np.stack([np.interp(columns, np.arange(a.shape[1]), row) for row in a])


def scorecam(model, x, category, a, channels):
    """A photograph's, one feature map at a time; the weights are float32."""
    cam = np.zeros(a.shape[1:])
    for k in channels:
        mask = enlarged(a[k], *x.shape[2:])
        mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-7)
        with torch.no_grad():
            logits = model(x * torch.tensor(mask, device=x.device))[0].cpu().numpy()
        exponentials = np.exp(logits - logits.max())
        cam += np.float32(exponentials[category] / exponentials.sum()).astype(float) * a[k]
    return np.maximum(cam, 0)


def widest(a, count):
    return sorted(range(len(a)), key=lambda k: -a[k].std())[:count]


@pytest.fixture
def written_out(model, inputs, target):
    """Map → (N, …)."""
    layer = model.get_submodule(TARGET_LAYER)
    a, g, slopes = plain.captured(model, layer, inputs, lambda logits: logits.gather(1, target[:, None]))

    def chosen(logits, i):
        return logits[:, target[i]]

    def by_scores(channels):
        rows = zip(inputs.split(1), target.tolist(), a.cpu().numpy(), strict=True)
        return torch.tensor(np.stack([scorecam(model, x, category, own, channels(own)) for x, category, own in rows]))

    return {
        "vanilla": plain.vanilla(slopes),
        "smoothgrad": plain.smoothgrad(model, inputs, chosen, 3, 0.1, 4),
        "gradcam": plain.gradcam(a, g).relu(),
        "gradcam_plus_plus": plain.gradcam_plus_plus(a, g).relu(),
        "layercam": (g.relu() * a).sum(dim=1).relu(),
        "scorecam": by_scores(lambda a: range(len(a))),
        "faster_scorecam": by_scores(lambda a: widest(a, 5)),
    }


@every_engine
def test_against_the_formulas_written_out(model, inputs, target, written_out, engine):
    """A map that is new has no entry yet: write it."""
    for name in REFERENCE:
        raw = drawn(name, model, inputs, target, engine=engine, n_samples=3, noise_level=0.1, seed=4, channels=5)
        expected = written_out[name].cpu()
        assert expected.flatten(1).any(dim=1).all(), "a network on which something can be seen"
        close(raw.cpu(), expected, tolerance_of(name))


def test_vanilla_is_the_difference_quotient(model, inputs, target):
    """By central differences of the picture's own score, at every 367th pixel, in its three channels."""
    raw = drawn("vanilla", model, inputs, target)
    step = 1e-3
    for i in range(len(inputs)):
        for place in range(11 * i, 64 * 64, 367):
            moved = inputs[i].repeat(6, 1, 1, 1).flatten(2)
            for channel in range(3):
                moved[channel, channel, place] += step
                moved[channel + 3, channel, place] -= step
            with torch.no_grad():
                scores = model(moved.view(6, 3, 64, 64))[:, target[i]]
            quotient = float((scores[:3] - scores[3:]).abs().max()) / (2 * step)
            expected = float(raw[i].flatten()[place])
            assert quotient == pytest.approx(expected, abs=DIFFERENCE_QUOTIENT * float(raw[i].max()))


# What maps must not depend on, and what they must


@every_engine
@every_map
def test_neighbours_order_batch_size_and_memory_layout_do_not_matter(model, inputs, target, name, engine):
    together = drawn(name, model, inputs, target, engine=engine)
    turned = drawn(name, model, inputs.flip(0), target.flip(0), engine=engine, batch_size=2)
    close(turned.flip(0), together, tolerance_of(name))
    model, inputs = (each.to(memory_format=torch.channels_last) for each in (model, inputs))
    alone = drawn(name, model, inputs[1:2], target[1:2], engine=engine, batch_size=1)
    close(alone, together[1:2], tolerance_of(name))


@every_engine
@every_map
def test_a_constant_on_every_logit_changes_nothing(model, inputs, target, name, engine):
    """exp(±100) is no float32: the reference's own formula of Grad-CAM++ gives nothing there.

    In float64 for what takes a softmax: it reads the logits themselves, whose own last digits are gone with a constant of 200.
    """
    dtype = torch.float32 if name in BY_GRADIENTS else torch.float64
    model, inputs = model.to(dtype), inputs.to(dtype)
    before = drawn(name, model, inputs, target, engine=engine)
    for constant in (-100, 200):
        model.classifier[6].bias.data += constant
        after = drawn(name, model, inputs, target, engine=engine)
        close(after, before, tolerance_of(name) if dtype == torch.float64 else FLOAT32)


@every_engine
@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_it_is_vanilla(model, inputs, target, name, engine, dtype):
    model, inputs = model.to(dtype), inputs.to(dtype)
    expected = drawn("vanilla", model, inputs, target, engine=engine)
    without = drawn(name, model, inputs, target, engine=engine, noise_level=0.0)
    close(without, expected, FLOAT64 if dtype == torch.float64 else FLOAT32)


@every_engine
@pytest.mark.parametrize("name", NOISY)
def test_the_seed_matters_and_the_global_generators_do_not(model, inputs, target, name, engine):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = drawn(name, model, inputs, target, engine=engine, seed=1)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    np.random.seed(5)
    close(drawn(name, model, inputs, target, engine=engine, seed=1), first, FLOAT64)
    assert (drawn(name, model, inputs, target, engine=engine, seed=2) - first).abs().max() > 0.01 * first.max()


@every_engine
@pytest.mark.parametrize("name", AT_LAYER)
def test_the_layer_matters(model, inputs, target, name, engine):
    """Three neighbouring layers, three maps: to name the wrong one is the commonest mistake."""
    # Where a ReLU is shut no gradient goes back: LayerCAM is the same on both sides.
    first = 27 if name == "layercam" else 28
    before, at, after = (
        raw_maps(name, model, inputs, target, target_layer=f"features.{i}", engine=engine) for i in (first, 29, 30)
    )
    assert (before - at).abs().max() > 1e-3 * at.abs().max()
    assert (before.shape, at.shape, after.shape) == ((3, 4, 4), (3, 4, 4), (3, 2, 2))


@every_engine
@every_map
def test_other_sizes_and_pictures_that_are_not_square(model, target, device, name, engine):
    for height, width in ((64, 96), (70, 67)):
        x = torch.tensor(np.random.RandomState(1).uniform(-100, 100, (2, 3, height, width)), device=device)
        raw = drawn(name, model, x, target[:2], engine=engine)
        assert raw.shape == ((2, height // 16, width // 16) if METHODS[name].at_layer else (2, height, width))
        assert raw.amax() > 0


@every_engine
@every_map
def test_narrow_types_give_float32_maps(tiny, inputs, target, device, name, engine):
    """The others' float16 is the next test's."""
    dtype = torch.bfloat16 if name in BY_GRADIENTS else torch.float16
    narrow = build(tiny).to(device, dtype)
    raw = drawn(name, narrow, inputs.to(dtype), target, engine=engine)
    assert raw.dtype == torch.float32
    expected = drawn(name, with_wide_gradients(narrow), inputs.to(dtype), target, engine=engine)
    assert likeness(raw, expected) > NARROW_GRADIENTS


def likeness(a, b):
    """Pearson's r of two maps."""
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])


@every_engine
@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_float16_keeps_small_gradients(tiny, inputs, target, device, name, engine, monkeypatch):
    """Gradients of 1e-8 are below float16's smallest number; scaling the score keeps them."""
    narrow = build(tiny)
    # LayerCAM weighs place by place, SmoothGrad adds up what is left in any copy: the largest gradients alone are nearly the map.
    smaller = 2e-6 if name in ("layercam", *NOISY) else 5e-6
    for layer, factor in ((6, smaller), (3, 0.03 if METHODS[name].at_layer else 1)):
        narrow.classifier[layer].weight = nn.Parameter(narrow.classifier[layer].weight * factor)
    narrow = narrow.to(device, torch.float16)
    expected = drawn(name, with_wide_gradients(narrow), inputs.half(), target, engine=engine)
    raw = drawn(name, narrow, inputs.half(), target, engine=engine)
    assert raw.dtype == torch.float32
    assert likeness(raw, expected) > NARROW_GRADIENTS
    assert 0.9 < raw.double().norm() / expected.norm() < 1.1  # and the scale is taken out again
    for module in (libraries, one_pass, passes):
        monkeypatch.setattr(module, "SCORE_SCALE", 1.0, raising=False)
    assert not likeness(drawn(name, narrow, inputs.half(), target, engine=engine), expected) > 0.7
