from __future__ import annotations

import pytest
import torch

from torch_impl.precision import PRECISIONS, at_least_fp32, dtype_of, numerics, score_scale


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_on_for_tf32_only_and_put_back(precision, before):
    kept = flags()
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
        with pytest.raises(ZeroDivisionError), numerics(precision):
            assert flags() == ((precision == "tf32"),) * 2
            raise ZeroDivisionError
        assert flags() == (before, before)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def test_types():
    assert [dtype_of(p).itemsize for p in PRECISIONS] == [8, 4, 4, 2, 2]
    assert at_least_fp32(torch.float64) == torch.float64
    assert at_least_fp32(torch.bfloat16) == torch.float32
    assert score_scale(torch.float16) > 1 == score_scale(torch.float32)
    with pytest.raises(ValueError, match="fp8.*known: fp64"):
        dtype_of("fp8")
