"""Grad-CAM and Grad-CAM++ against paper, against SEMANTICS written out in NumPy, and against what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import close
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tolerances import FLOAT32, FLOAT64, FLOAT64_ALPHA
from torch import nn
from torch_impl.cam import (
    LayerError,
    class_activation_map,
    grad_cam,
    grad_cam_plus_plus,
    grad_cam_plus_plus_alpha,
    grad_cam_plus_plus_weights,
    grad_cam_weights,
)
from torch_impl.library_cam import GradCAM, ReferenceCAM
from torch_impl.vgg16 import TARGET_LAYER, build


def captured(model, inputs, target, layer=TARGET_LAYER):
    """A and G of a layer, by running the network in two halves: no hook, no library."""
    children = list(model.features.children())
    cut = int(layer.split(".")[1]) + 1
    with torch.enable_grad():
        x = inputs
        for module in children[:cut]:
            x = module(x.clone())
        activations = x.detach().clone().requires_grad_()
        x = activations.clone()
        for module in children[cut:]:
            x = module(x)
        logits = model.classifier(torch.flatten(model.avgpool(x), 1))
        score = logits.gather(1, target[:, None]).sum()
        (gradients,) = torch.autograd.grad(score, activations)
    return activations.detach(), gradients


def naive_grad_cam(a, g):
    """relu(Σ_c mean(G_c)·A_c), value by value, channels first."""
    n, k, h, w = a.shape
    out = np.zeros((n, h, w))
    for i in range(n):
        for c in range(k):
            weight = sum(g[i, c, y, x] for y in range(h) for x in range(w)) / (h * w)
            out[i] += weight * a[i, c]
    return np.maximum(out, 0)


def naive_grad_cam_plus_plus(a, g, score):
    """The reference's own order of operations, exp(score) and all, then exp(score) divided out."""
    n, k, h, w = a.shape
    out = np.zeros((n, h, w))
    for i in range(n):
        e = np.exp(score[i])
        for c in range(k):
            d1 = e * g[i, c]
            d2 = d1 * g[i, c]
            d3 = d2 * g[i, c]
            denominator = 2 * d2 + d3 * a[i, c].sum()
            denominator[d2 == 0] = 1
            alpha = d2 / denominator
            total = alpha.sum()
            alpha = alpha / (total if total != 0 else 1)
            out[i] += (np.maximum(d1, 0) * alpha).sum() * a[i, c]
        out[i] /= e
    return np.maximum(out, 0)


# On paper


def test_grad_cam_weight_is_the_mean():
    gradients = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, 0.0], [0.0, 0.0]]]])
    assert grad_cam_weights(gradients).tolist() == [[3.0, -0.25]]


def test_grad_cam_plus_plus_weight_on_paper():
    # A = (1, 1), G = (1, 2): ΣA = 2, alpha = (1/4, 1/6) → (3/5, 2/5), w = 3/5·1 + 2/5·2
    a, g = torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    close(grad_cam_plus_plus_alpha(a, g), torch.tensor([[[[3 / 5, 2 / 5]]]], dtype=torch.float64), FLOAT64)
    close(grad_cam_plus_plus_weights(a, g), torch.tensor([[7 / 5]], dtype=torch.float64), FLOAT64)


def test_the_sum_of_a_counts_not_its_mean():
    # A = (3, 1), G = (1, -1): ΣA = 4, alpha = (1/6, -1/2), sum -1/3 → (-1/2, 3/2), w = relu(1)·(-1/2) + 0
    # With mean(A) = 2: alpha = (1/4, undefined).
    a, g = torch.tensor([[[[3.0, 1.0]]]], dtype=torch.float64), torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    close(grad_cam_plus_plus_weights(a, g), torch.tensor([[-1 / 2]], dtype=torch.float64), FLOAT64)


def test_where_there_is_no_gradient_there_is_no_alpha():
    # G = (0, 2): only the second place counts, whatever A is there.
    a, g = torch.tensor([[[[5.0, 1.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert grad_cam_plus_plus_alpha(a, g).tolist() == [[[[0, 1]]]]
    assert grad_cam_plus_plus_weights(a, g).tolist() == [[2]]
    assert grad_cam_plus_plus_weights(a, torch.zeros_like(g)).tolist() == [[0]]


def test_alpha_whose_sum_is_zero_is_not_divided():
    # ΣA = 0, G = (1, 1): alpha = (1/2, 1/2), sum 1. Then ΣA = 3, G = (-1, -1/3): (-1, 1), sum 0: left alone.
    a = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    alpha = grad_cam_plus_plus_alpha(a, torch.tensor([[[[-1.0, -1 / 3]]]], dtype=torch.float64))
    close(alpha, torch.tensor([[[[-1.0, 1.0]]]], dtype=torch.float64), FLOAT64)


def test_alpha_at_a_pole_is_its_limit():
    # ΣA = 2, G = (-1, 3): the first denominator is exactly 0, where the reference has 0/0.
    a = torch.tensor([[[[1.0, 1.0]]]], dtype=torch.float64)
    at_pole = grad_cam_plus_plus_alpha(a, torch.tensor([[[[-1.0, 3.0]]]], dtype=torch.float64))
    assert at_pole.tolist() == [[[[1, 0]]]]
    beside = grad_cam_plus_plus_alpha(a, torch.tensor([[[[-1.0 + 1e-9, 3.0]]]], dtype=torch.float64))
    assert (beside - at_pole).abs().max() < 1e-8


def test_class_activation_map_on_paper():
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    assert class_activation_map(activations, torch.tensor([[2.0, -1.0]])).tolist() == [[[0, 4]]]


class Toy(nn.Module):
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


@pytest.mark.parametrize("double", [False, True])
def test_a_whole_network_on_paper(double, device):
    # x = (4, -1): conv (4, -1), (-8, 2); after ReLU A = (4, 0), (0, 2). Class 0: G = (1, 3), (2, -1).
    # Grad-CAM: w = (2, 1/2); cam = relu(2·(4, 0) + 1/2·(0, 2)) = (8, 1).
    # Grad-CAM++: ΣA = (4, 2). Channel 0: alpha (1/6, 1/14) → (7/10, 3/10), w = 0.7·1 + 0.3·3 = 1.6.
    #   Channel 1: 2 + 2·2 = 6, 2 − 2 = 0: a pole: alpha (0, 1), relu(−1) = 0: w = 0. cam = (6.4, 0).
    model = Toy().to(device)
    x = torch.tensor([[[[4.0, -1.0]]]], device=device)
    if double:
        model, x = model.double(), x.double()
    target = torch.tensor([0], device=device)
    assert grad_cam(model, x, target, target_layer="relu").tolist() == [[[8, 1]]]
    expected = torch.tensor([[[6.4, 0.0]]], dtype=x.dtype, device=device)
    close(grad_cam_plus_plus(model, x, target, target_layer="relu"), expected, FLOAT64 if double else FLOAT32)


def test_a_layer_that_is_overwritten_in_place_gives_its_own_values(device):
    # The convolution's own A = (4, -1), (-8, 2), before the ReLU writes over it; G = (1, 0), (0, -1) through the ReLU.
    # w = (1/2, -1/2); cam = relu((2, -1/2) + (4, -1)) = (6, 0).
    model = Toy().to(device)
    x, target = torch.tensor([[[[4.0, -1.0]]]], device=device), torch.tensor([0], device=device)
    assert grad_cam(model, x, target, target_layer="conv").tolist() == [[[6, 0]]]


# Against the formulas, written out


def test_against_the_formulas_in_numpy(model, inputs, target):
    activations, gradients = captured(model, inputs, target)
    a, g = activations.cpu().numpy(), gradients.cpu().numpy()
    with torch.no_grad():
        score = model(inputs).gather(1, target[:, None])[:, 0].cpu().numpy()
    assert (g != 0).any(axis=(2, 3)).all(), "a network on which something can be seen"
    ours = grad_cam(model, inputs, target, target_layer=TARGET_LAYER)
    close(ours.cpu(), torch.tensor(naive_grad_cam(a, g)), FLOAT64)
    ours = grad_cam_plus_plus(model, inputs, target, target_layer=TARGET_LAYER)
    close(ours.cpu(), torch.tensor(naive_grad_cam_plus_plus(a, g, score)), FLOAT64_ALPHA)


@settings(deadline=None, max_examples=100)
@given(
    arrays(np.float64, (1, 2, 3, 3), elements=st.floats(0, 100)),
    arrays(np.float64, (1, 2, 3, 3), elements=st.floats(-1e3, 1e3)),
)
def test_alpha_sums_to_one_or_nothing_and_is_never_nan(a, g):
    alpha = grad_cam_plus_plus_alpha(torch.tensor(a), torch.tensor(g))
    assert torch.isfinite(alpha).all()
    total, size = alpha.sum(dim=(-2, -1)), alpha.abs().amax(dim=(-2, -1))
    for one, largest in zip(total.flatten(), size.flatten(), strict=True):
        # Where large terms cancel, the sum is 1 up to their rounding.
        assert float(one) == pytest.approx(1, abs=1e-12 * max(1.0, float(largest))) or abs(float(one)) < 1e-12


# What they must not depend on


@pytest.mark.parametrize("offset", [-100.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_at_extreme_scores(model, inputs, target, offset, dtype):
    """exp(±100) is not a float32: the reference's own formula gives nothing there."""
    expected = grad_cam_plus_plus(model, inputs, target, target_layer=TARGET_LAYER)
    model = model.to(dtype)
    bias = model.classifier[6].bias
    bias.data += offset
    shifted = grad_cam_plus_plus(model, inputs.to(dtype), target, target_layer=TARGET_LAYER)
    plain = expected
    if dtype == torch.float32:
        bias.data -= offset
        plain = grad_cam_plus_plus(model, inputs.float(), target, target_layer=TARGET_LAYER)
    close(shifted, plain, FLOAT64 if dtype == torch.float64 else FLOAT32)


@pytest.mark.parametrize("method", [grad_cam, grad_cam_plus_plus])
def test_neighbours_order_and_batch_size_do_not_matter(model, inputs, target, method):
    together = method(model, inputs, target, target_layer=TARGET_LAYER)
    turned = method(model, inputs.flip(0), target.flip(0), target_layer=TARGET_LAYER, batch_size=2)
    close(turned.flip(0), together, FLOAT64)
    alone = [method(model, inputs[i : i + 1], target[i : i + 1], target_layer=TARGET_LAYER) for i in range(3)]
    close(torch.cat(alone), together, FLOAT64)


def test_scaling_the_score_scales_grad_cam_and_changes_grad_cam_plus_plus(model, inputs, target):
    before = grad_cam(model, inputs, target, target_layer=TARGET_LAYER)
    before_plus = grad_cam_plus_plus(model, inputs, target, target_layer=TARGET_LAYER)
    model.classifier[6].weight.data *= 3
    close(grad_cam(model, inputs, target, target_layer=TARGET_LAYER), 3 * before, FLOAT64)
    after_plus = grad_cam_plus_plus(model, inputs, target, target_layer=TARGET_LAYER)
    shapes = [m / m.amax(dim=(1, 2), keepdim=True) for m in (before_plus, after_plus)]
    assert (shapes[0] - shapes[1]).abs().max() > 1e-2


def test_the_layer_matters(model, inputs, target):
    """Three neighbouring layers, three maps: naming the wrong one is the commonest mistake."""
    maps = [grad_cam(model, inputs, target, target_layer=f"features.{i}") for i in (28, 29)]
    assert maps[0].shape == maps[1].shape == (3, 4, 4)
    assert (maps[0] - maps[1]).abs().max() > 1e-3 * maps[1].abs().max()
    assert grad_cam(model, inputs, target, target_layer="features.30").shape == (3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_do_not_raise(tiny, inputs, target, device, dtype):
    narrow = build(tiny).to(device, dtype)
    maps = grad_cam(narrow, inputs.to(dtype), target, target_layer=TARGET_LAYER)
    assert maps.dtype == torch.float32
    wide = grad_cam(build(tiny).to(device), inputs.float(), target, target_layer=TARGET_LAYER)
    # 8 bits of bfloat16 through 13 layers leave about a tenth of the map.
    assert (maps - wide).abs().max() < 0.3 * wide.max()


# Errors


def test_unknown_layer_names_the_nearest(model, inputs, target):
    with pytest.raises(LayerError, match=r"no layer 'feature\.29'.*features\.29"):
        grad_cam(model, inputs, target, target_layer="feature.29")


def test_a_dense_layer_has_no_map(model, inputs, target):
    with pytest.raises(LayerError, match=r"\(3, 32\).*\(N, K, h, w\)"):
        grad_cam(model, inputs, target, target_layer="classifier.0")
    assert not any(module._forward_hooks for module in model.modules())


class Detour(nn.Module):
    """A layer beside the way to the logits, one that runs twice, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.beside, self.unused = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        self.beside(x)
        return self.conv(self.conv(x)).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("layer", "words"), [("beside", "way to the logits"), ("unused", "way to the logits"), ("conv", "ran 2 times")]
)
def test_a_layer_that_cannot_serve_is_refused(layer, words):
    model = Detour()
    with pytest.raises(LayerError, match=words):
        grad_cam(model, torch.ones(2, 3, 4, 4), torch.tensor([0, 1]), target_layer=layer)
    assert not any(module._forward_hooks for module in model.modules())


def test_index_errors_are_not_swallowed(model, inputs):
    """pytorch-grad-cam's own `with` prints an IndexError and goes on."""
    with pytest.raises(IndexError):
        grad_cam(model, inputs, torch.tensor([0, 1, 10]), target_layer=TARGET_LAYER)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_engine_is_pytorch_grad_cams(model):
    from pytorch_grad_cam.base_cam import BaseCAM

    assert issubclass(GradCAM, BaseCAM)
    assert ReferenceCAM.forward is BaseCAM.forward
