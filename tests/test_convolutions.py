"""Convolutions by cuDNN's faster operation: the same numbers as `nn.Conv2d`'s, and only where they are meant to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import a_cuda_device, close, every_engine
from pretend_cuda import pretended
from tolerances import FLOAT32, FLOAT64
from torch import nn

from parity.contract.methods import DEFAULT, REFERENCE
from parity.contract.stages import PRECISIONS
from torch_impl import Explainer, convolutions
from torch_impl.convolutions import Convolution, by_input_gradient, convolved, turned
from torch_impl.network import build, prepared, quicken
from torch_impl.precision import numerics

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])

SHAPES = pytest.mark.parametrize(
    ("channels", "size", "by_gradient"),
    [((32, 40), (15, 16), True), ((40, 32), (20, 11), True), ((3, 64), (15, 16), False), ((32, 32), (14, 14), False)],
)
"""Channels (in, out), feature maps, and what the rule says of sixteen of them in both directions."""

no_real_one = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device")


def usual(channels, layout=torch.contiguous_format, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Conv2d(*channels, 3, padding=1, dtype=dtype).requires_grad_(False).to(memory_format=layout)


def pictures(channels, size, layout=torch.contiguous_format, dtype=torch.float64, count=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, *size, generator=generator, dtype=dtype).contiguous(memory_format=layout)


@pytest.fixture
def calls(monkeypatch):
    """The inputs of every convolution that goes the other way."""
    inputs = []
    monkeypatch.setattr(convolutions, "convolved", lambda *a: inputs.append(a[0]) or convolved(*a))
    return inputs


@LAYOUTS
@SHAPES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_the_usual_ones(device, channels, size, by_gradient, layout, dtype):
    layer = usual(channels, layout)
    x, upstream = (pictures(n, size, layout).requires_grad_(n == channels[0]) for n in channels)
    expected = layer(x)
    (slopes,) = torch.autograd.grad(expected, x, upstream)
    there = [tensor.detach().to(device, dtype) for tensor in (x, layer.weight, layer.bias, upstream)]
    for direction in (there[0], there[3]):
        assert by_input_gradient(direction, there[1]) == by_input_gradient(direction, turned(there[1])) == by_gradient
        assert not by_input_gradient(direction[:15], there[1])
    with numerics("fp32"):
        y = convolved(there[0].requires_grad_(), *there[1:3])
        (gradients,) = torch.autograd.grad(y, there[0], there[3])
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32
    close(y.detach().cpu().double(), expected.detach(), tolerance)
    close(gradients.cpu().double(), slopes, tolerance)
    if dtype == torch.float32:  # cuDNN has no other layout for float64 than channels first
        assert y.is_contiguous(memory_format=layout)
        assert gradients.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("by_gradient", [True, False])
def test_gradients_once_and_twice(monkeypatch, by_gradient):
    monkeypatch.setattr(convolutions, "by_input_gradient", lambda x, kernel: by_gradient)
    layer, x = usual((3, 2)), pictures(3, (4, 5), count=2).requires_grad_()
    torch.autograd.gradcheck(lambda x: convolved(x, layer.weight, layer.bias), x)
    torch.autograd.gradgradcheck(lambda x: convolved(x, layer.weight, layer.bias).square(), x)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("size", [(15, 16), (14, 14)])
def test_what_is_not_finite_passes_through(value, size):
    layer, x = usual((32, 32)), pictures(32, size)
    upstream = pictures(32, size)
    x[0, 3, 7, 7] = upstream[1, 5, 2, 9] = value
    leaf = x.clone().requires_grad_()
    expected, values = layer(leaf), convolved(leaf, layer.weight, layer.bias)
    slopes, gradients = (torch.autograd.grad(y, leaf, upstream)[0] for y in (expected, values))
    for actual, right in ((values, expected), (gradients, slopes)):
        assert (~right.isfinite()).sum() == 32 * 9
        assert torch.equal(actual.isfinite(), right.isfinite())


@no_real_one
@pytest.mark.parametrize(("kind", "precision"), [("cpu", "fp32"), *(("cuda", precision) for precision in PRECISIONS)])
def test_only_strict_float32_on_cuda(tiny, kind, precision):
    strict = (kind, precision) == ("cuda", "fp32")
    with pretended():
        model = prepared(tiny, torch.device(kind), precision)
        assert sum(isinstance(module, Convolution) for module in model.modules()) == 13 * strict
        last = [p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4]
        assert all(last) == (not strict)
    assert list(model.state_dict()) == list(build(tiny).state_dict())


@no_real_one
@every_engine
def test_the_maps_are_the_same(tiny, photographs, calls, engine, monkeypatch):
    """On the pretended device, whose rounding is the CPU's; the larger layers by one operation, the smaller ones by the other."""
    monkeypatch.setattr(convolutions, "by_input_gradient", lambda x, kernel: x.shape[-1] > 14)
    options = {"classes": [2, 7, 5], "methods": REFERENCE, "n_samples": 3}
    exact = Explainer.vgg16(tiny, device="cpu", precision="fp64", engine=engine)(photographs, **options)
    assert not calls
    with pretended():
        there = Explainer.vgg16(tiny, device="cuda", engine=engine)(photographs, **options)
    assert len(calls) >= 13 * 3
    assert all(x.is_contiguous() for x in calls)
    for name in REFERENCE:
        close(torch.tensor(there[name]), torch.tensor(exact[name]), FLOAT32)


@pytest.fixture
def photographs():
    generator = np.random.RandomState(3)
    return [generator.randint(0, 255, (64, 64, 3), np.uint8) for _ in range(3)]


@no_real_one
def test_a_model_that_was_handed_in_is_left_alone(tiny, photographs, calls):
    model = build(tiny)
    with pretended():
        explainer = Explainer(model, size=64, device="cuda", precision="fp32")
        explainer(photographs[:1], classes=2, methods=DEFAULT, n_samples=2)
    assert not calls
    assert not any(isinstance(module, Convolution) for module in [*model.modules(), *explainer.model.modules()])


@no_real_one
def test_it_stays_out_of_the_way(calls):
    """Trainable weights get their gradient; other types, functional transforms and other devices go PyTorch's way."""
    layer = usual((3, 4), dtype=torch.float32)
    quicken(layer, nn.Conv2d, Convolution)
    assert type(layer) is Convolution
    x = pictures(3, (5, 5), dtype=torch.float32)
    layer(x)
    with pretended() as there:
        layer.to(there)(x.to(there))
        assert len(calls) == 1
        layer.double()(x.double().to(there))
        layer.float().bias.requires_grad_(True)
        layer(x.to(there))
    assert len(calls) == 1


@pytest.mark.cuda
@every_engine
def test_maps_are_the_same_bits_from_run_to_run(tiny, photographs, engine):
    with a_cuda_device():
        explainer = Explainer.vgg16(tiny, device="cuda", engine=engine)
        first, second = (explainer(photographs, classes=[2, 7, 5], methods=DEFAULT, n_samples=3) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in DEFAULT)
