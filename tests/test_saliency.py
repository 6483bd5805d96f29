"""Vanilla saliency and SmoothGrad against paper, finite differences, and what they must not depend on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import close
from tolerances import DIFFERENCE_QUOTIENT, FLOAT32, FLOAT64
from torch import nn
from torch_impl.saliency import smoothgrad, standard_deviations, vanilla_saliency
from torch_impl.vgg16 import build

from parity.contract import noise
from parity.contract.noise import unit_noise
from torch_impl import saliency


class Toy(nn.Module):
    """Logits (2a − 3b, a·b) of a one-pixel, two-channel picture."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0, -3.0]))

    def forward(self, x):
        a, b = x[:, 0, 0, 0], x[:, 1, 0, 0]
        return torch.stack([self.factor[0] * a + self.factor[1] * b, a * b], dim=1)


def test_vanilla_on_paper(device):
    x = torch.tensor([[[[5.0]], [[7.0]]], [[[5.0]], [[-7.0]]]], device=device)
    target = torch.tensor([0, 1], device=device)
    # Class 0: |(2, −3)| → 3. Class 1: |(b, a)| = |(−7, 5)| → 7.
    assert vanilla_saliency(Toy().to(device), x, target).tolist() == [[[3]], [[7]]]


def test_smoothgrad_on_paper(device):
    # a·b has the gradient (b, a). The range of (5, −7) is 12; noise level 1/4 gives σ = 3.
    x = torch.tensor([[[[5.0]], [[-7.0]]]], device=device, dtype=torch.float64)
    target = torch.tensor([1], device=device)
    z = np.random.RandomState(9).standard_normal((4, 1, 1, 2))
    a, b = 5 + 3 * z[..., 0], -7 + 3 * z[..., 1]
    expected = max(np.abs(b).mean(), np.abs(a).mean())
    drawn = smoothgrad(Toy().to(device).double(), x, target, noise_level=0.25, n_samples=4, seed=9)
    close(drawn.cpu(), torch.tensor([[[expected]]]), FLOAT64)


def test_absolute_value_comes_before_the_mean(device):
    """With enough noise the gradient changes its sign: |mean| and mean of |·| are then different numbers."""
    x = torch.tensor([[[[0.5]], [[-0.5]]]], device=device, dtype=torch.float64)
    z = 10 * np.random.RandomState(0).standard_normal((50, 1, 1, 2))
    a, b = 0.5 + z[..., 0], -0.5 + z[..., 1]
    right, wrong = max(np.abs(a).mean(), np.abs(b).mean()), max(abs(a.mean()), abs(b.mean()))
    assert right > 3 * wrong
    drawn = smoothgrad(Toy().to(device).double(), x, torch.tensor([1], device=device), noise_level=10.0, n_samples=50)
    close(drawn.cpu(), torch.tensor([[[right]]]), FLOAT64)


def test_vanilla_is_the_difference_quotient(model, inputs, target):
    """Every 37th pixel's three channels, by central differences, of the picture's own score."""
    drawn = vanilla_saliency(model, inputs, target)

    def score(x, i):
        with torch.no_grad():
            return float(model(x[None])[0, target[i]])

    step = 1e-6
    for i in range(3):
        for place in range(11 * i, 64 * 64, 367):
            y, x = divmod(place, 64)
            slopes = []
            for channel in range(3):
                ahead, behind = inputs[i].clone(), inputs[i].clone()
                ahead[channel, y, x] += step
                behind[channel, y, x] -= step
                slopes.append(abs(score(ahead, i) - score(behind, i)) / (2 * step))
            assert max(slopes) == pytest.approx(float(drawn[i, y, x]), abs=DIFFERENCE_QUOTIENT * float(drawn[i].max()))


def test_zero_noise_is_vanilla(model, inputs, target):
    plain = vanilla_saliency(model, inputs, target)
    close(smoothgrad(model, inputs, target, noise_level=0.0, n_samples=3), plain, FLOAT64)


def test_sigma_is_each_images_own_range_over_all_its_values():
    x = torch.zeros(2, 2, 1, 2)
    x[0, 0, 0, 0], x[0, 1, 0, 1] = -3, 7  # in different channels
    x[1, 1] = 5
    assert standard_deviations(x, 0.5).tolist() == [5, 2.5]


def test_smoothgrad_is_the_mean_over_the_contracts_noise(model, inputs, target):
    """By hand: one photograph at a time, one sample at a time, channels last as the reference draws them."""
    expected = torch.zeros_like(inputs)
    for i in range(3):
        sigma = 0.2 * float(inputs[i].max() - inputs[i].min())
        np.random.seed(4)
        drawn = np.random.normal(0.0, sigma, (5, 1, 64, 64, 3))
        for sample in drawn[:, 0]:
            x = (inputs[i] + torch.tensor(sample, device=inputs.device).permute(2, 0, 1))[None].requires_grad_()
            (g,) = torch.autograd.grad(model(x)[0, target[i]], x)
            expected[i] += g[0].abs() / 5
    drawn = smoothgrad(model, inputs, target, noise_level=0.2, n_samples=5, seed=4)
    close(drawn, expected.amax(dim=1), FLOAT64)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 15, 100])
def test_batch_size_does_not_matter(model, inputs, target, batch_size):
    expected = smoothgrad(model, inputs, target, n_samples=5, batch_size=3)
    close(smoothgrad(model, inputs, target, n_samples=5, batch_size=batch_size), expected, FLOAT64)


def test_neighbours_do_not_matter(model, inputs, target):
    together = smoothgrad(model, inputs, target, n_samples=3)
    turned = smoothgrad(model, inputs.flip(0), target.flip(0), n_samples=3)
    close(turned.flip(0), together, FLOAT64)
    close(smoothgrad(model, inputs[1:2], target[1:2], n_samples=3), together[1:2], FLOAT64)


def test_the_seed_matters_and_the_global_generators_do_not(model, inputs, target):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = smoothgrad(model, inputs, target, n_samples=2, seed=1)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    close(smoothgrad(model, inputs, target, n_samples=2, seed=1), first, FLOAT64)
    assert (smoothgrad(model, inputs, target, n_samples=2, seed=2) - first).abs().max() > 0.01 * first.max()


def test_a_constant_added_to_every_logit_changes_nothing(model, inputs, target):
    before = vanilla_saliency(model, inputs, target)
    model.classifier[6].bias.data += 50
    close(vanilla_saliency(model, inputs, target), before, FLOAT64)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (70, 67)])
def test_other_sizes_and_non_square_inputs(model, target, device, shape):
    x = torch.tensor(np.random.RandomState(1).uniform(-100, 100, (2, 3, *shape)), device=device)
    drawn = vanilla_saliency(model, x, target[:2])
    assert drawn.shape == (2, *shape)
    (g,) = torch.autograd.grad(model(x.requires_grad_()).gather(1, target[:2, None]).sum(), x)
    close(drawn, g.abs().amax(dim=1), FLOAT64)


def test_float16_keeps_small_gradients(tiny, inputs, target, device, monkeypatch):
    """Gradients of 1e-8 are below float16's smallest number; scaling the score keeps them."""
    narrow = build(tiny)
    narrow.classifier[6].weight = nn.Parameter(narrow.classifier[6].weight * 5e-6)
    narrow = narrow.to(device, torch.float16)
    expected = vanilla_saliency(copy.deepcopy(narrow).double(), inputs.half().double(), target)

    def drawn():
        return vanilla_saliency(narrow, inputs.half(), target).double()

    def likeness():
        return torch.corrcoef(torch.stack([drawn().flatten(), expected.flatten()]))[0, 1]

    # A network's own ReLUs switch in float16, on a GPU in more places than on a CPU; nearly nothing is left without the scale.
    assert likeness() > 0.95
    assert 0.9 < drawn().norm() / expected.norm() < 1.1  # and the scale is taken out again
    monkeypatch.setattr(saliency, "score_scale", lambda dtype: 1.0)
    assert not likeness() > 0.7


def test_smoothgrad_without_noise_is_vanilla_saliency_in_float32(tiny, inputs, target, device):
    wide = build(tiny).to(device)
    expected = vanilla_saliency(wide, inputs.float(), target)
    close(smoothgrad(wide, inputs.float(), target, noise_level=0.0, n_samples=2), expected, FLOAT32)


@pytest.mark.parametrize("wrong", [{"n_samples": 0}, {"noise_level": -0.1}, {"noise_level": float("nan")}])
def test_settings_out_of_range(model, inputs, target, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        smoothgrad(model, inputs, target, **wrong)


def test_unit_noise_is_the_references_draw():
    np.random.seed(7)
    drawn = np.random.normal(0.0, np.full((3, 1, 1, 1, 1), 2.5, np.float32), (3, 1, 4, 5, 3))
    assert all((2.5 * unit == drawn[i, 0]).all() for i, unit in enumerate(unit_noise(7, 3, (4, 5, 3))))


def test_large_draws_are_streamed_and_the_same(monkeypatch):
    kept = [unit.copy() for unit in unit_noise(3, 4, (5, 6, 3))]
    monkeypatch.setattr(noise, "CACHE_BYTES", 0)
    streamed = list(unit_noise(3, 4, (5, 6, 3)))
    assert all((a == b).all() for a, b in zip(kept, streamed, strict=True))
    with pytest.raises(ValueError, match="read-only"):
        streamed[0][0] = 1
