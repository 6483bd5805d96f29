"""Number formats, devices, and PyTorch's switches, which are put back to what they were."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import drawn, every_engine
from torch.backends import cudnn
from torch.backends.cuda import matmul

from torch_impl.precision import (
    PRECISIONS,
    SCORE_SCALE,
    DeviceError,
    at_least_fp32,
    check_precision,
    choose_device,
    dtype_of,
    name_of,
    numerics,
)

OWNERS = (matmul, cudnn.conv, cudnn.rnn)


@pytest.fixture
def switches():
    """Whatever a test does to PyTorch's switches is undone."""
    before = [owner.fp32_precision for owner in OWNERS], cudnn.benchmark, cudnn.deterministic
    yield
    for owner, value in zip(OWNERS, before[0], strict=True):
        owner.fp32_precision = value
    cudnn.benchmark, cudnn.deterministic = before[1:]


def formats():
    return {owner.fp32_precision for owner in OWNERS}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_on_for_tf32_only_and_put_back_where_the_old_names_were_used(precision, before, switches):
    matmul.allow_tf32 = cudnn.allow_tf32 = before
    with pytest.raises(ZeroDivisionError), numerics(precision):
        assert formats() == {"tf32" if precision == "tf32" else "ieee"}
        raise ZeroDivisionError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (before, before)


@pytest.mark.parametrize("before", ["ieee", "tf32"])
def test_the_new_names_too(before, switches):
    for owner in OWNERS:
        owner.fp32_precision = before
    with numerics("fp32"):
        assert formats() == {"ieee"}
    assert formats() == {before}


@pytest.mark.parametrize("before", [True, False])
def test_convolutions_that_give_the_same_numbers_every_time(before, switches):
    cudnn.benchmark = cudnn.deterministic = before
    with pytest.raises(ZeroDivisionError), numerics("fp32"):
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        raise ZeroDivisionError
    assert (cudnn.benchmark, cudnn.deterministic) == (before, before)


@every_engine
def test_a_map_is_drawn_in_strict_float32(model, inputs, target, engine, switches):
    seen = set()
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    model.features[0].register_forward_hook(lambda *_: seen.update(formats()))
    drawn("gradcam", model.float(), inputs.float(), target, engine=engine)
    assert seen == {"ieee"}


def test_types():
    sizes = {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
    assert {precision: dtype_of(precision).itemsize for precision in PRECISIONS} == sizes
    for precision, size in sizes.items():
        assert name_of(dtype_of(precision)) == precision.replace("tf", "fp")
        assert at_least_fp32(dtype_of(precision)).itemsize == max(size, 4)
    assert math.frexp(SCORE_SCALE)[0] == 0.5  # a power of two changes no digit
    with pytest.raises(ValueError, match=r"fp8.*known: fp32"):
        dtype_of("fp8")
    with pytest.raises(ValueError, match="tf32 exists on CUDA devices only; give fp32"):
        check_precision("tf32", torch.device("cpu"))
    assert check_precision("tf32", torch.device("cuda")) == torch.float32


def test_devices(device):
    assert choose_device(str(device)) == choose_device(device) == device
    if device.type == "cuda":
        assert choose_device().type == "cuda"
    for name, words in {
        "tpu": "'tpu' is unknown; give auto, cpu, cuda",
        "mps": "is not supported",
        "cpu:1": "is not supported",
        "cuda:99": "there are . CUDA devices|finds no CUDA device here; give cpu or auto",
    }.items():
        with pytest.raises(DeviceError, match=words):
            choose_device(name)
