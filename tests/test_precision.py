from __future__ import annotations

import pytest
import torch

from torch_impl.precision import PRECISIONS, at_least_fp32, dtype_of, numerics, score_scale


def new():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def old():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def switches():
    """Whatever a test does to PyTorch's switches is undone."""
    owners = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    before = [owner.fp32_precision for owner in owners]
    yield
    for owner, value in zip(owners, before, strict=True):
        owner.fp32_precision = value


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_on_for_tf32_only_and_put_back_where_the_old_names_were_used(precision, before, switches):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
    with pytest.raises(ZeroDivisionError), numerics(precision):
        assert new() == ("tf32" if precision == "tf32" else "ieee",) * 2
        raise ZeroDivisionError
    assert old() == (before, before)


@pytest.mark.parametrize("before", ["ieee", "tf32"])
def test_the_new_names_too(before, switches):
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = before
    with numerics("fp32"):
        assert new() == ("ieee", "ieee")
    assert new() == (before, before)


def test_types():
    assert [dtype_of(p).itemsize for p in PRECISIONS] == [8, 4, 4, 2, 2]
    assert at_least_fp32(torch.float64) == torch.float64
    assert at_least_fp32(torch.bfloat16) == torch.float32
    assert score_scale(torch.float16) > 1 == score_scale(torch.float32)
    with pytest.raises(ValueError, match=r"fp8.*known: fp64"):
        dtype_of("fp8")


@pytest.mark.parametrize("before", [True, False])
def test_convolutions_that_give_the_same_numbers_every_time(before):
    cudnn = torch.backends.cudnn
    kept = cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.benchmark = cudnn.deterministic = before
        with pytest.raises(ZeroDivisionError), numerics("fp32"):
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
            raise ZeroDivisionError
        assert (cudnn.benchmark, cudnn.deterministic) == (before, before)
    finally:
        cudnn.benchmark, cudnn.deterministic = kept
