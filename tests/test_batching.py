"""Micro-batches: every item once and in order, smaller where memory runs out."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import a_cuda_device

from torch_impl.batching import AUTO, WITHOUT_GRADIENTS, OutOfMemoryError, Pieces, first_size, micro_batches, taken

CPU = torch.device("cpu")


def pieces(count, batch_size, *, auto=4, limit=10**9, error=None, device="cpu"):
    """The pieces that arrive when no more than `limit` fit."""
    seen = []

    def work(piece):
        if len(piece) > limit:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        seen.append(list(piece))

    micro_batches(iter(range(count)), batch_size, work, device=torch.device(device), auto=auto, count=count)
    assert [item for piece in seen for item in piece] == list(range(count))
    return [len(piece) for piece in seen]


@pytest.mark.parametrize(
    ("device", "batch_size", "auto", "count", "sizes"),
    [
        ("cpu", 2, 99, 5, [2, 2, 1]),  # a number is taken as it is
        ("cpu", 4, 99, 9, [4, 4, 1]),
        ("cpu", "auto", 4, 9, [3, 3, 3]),  # about equally large: a small last one takes nearly as long as a large one
        ("cpu", "auto", 4, 3, [3]),
        ("cpu", "auto", 4, 0, []),
        ("cuda", "auto", 64, 60, [60]),
        ("cuda", "auto", 64, 80, [64, 16]),  # in multiples of 32 where one piece does not do
        ("cuda", "auto", 96, 130, [96, 34]),
        ("cuda", "auto", 96, 400, [96] * 4 + [16]),
        ("cuda", "auto", 70, 170, [64, 64, 42]),
        ("cuda", "auto", 20, 50, [17, 17, 16]),
        ("cuda", "auto", 1, 3, [1, 1, 1]),
    ],
)
def test_sizes_of_pieces(device, batch_size, auto, count, sizes):
    assert pieces(count, batch_size, auto=auto, device=device) == sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
)
def test_auto_halves_and_goes_on_with_the_same_piece(error):
    assert pieces(9, "auto", limit=1, error=error) == [1] * 9
    assert pieces(7, "auto", limit=2, error=error) == [2, 2, 2, 1]


def test_a_given_size_is_not_changed_silently():
    with pytest.raises(OutOfMemoryError, match="out of memory on cpu with 8 in a batch: choose a smaller batch size"):
        pieces(9, 8, limit=4)
    for batch_size in (1, "auto"):
        with pytest.raises(OutOfMemoryError, match="with 1 in a batch: choose a smaller picture, or another device"):
            pieces(9, batch_size, limit=0)


def test_passes_within_a_pass_say_it_themselves():
    """SmoothGrad's copies of one photograph: it is the copies that are too many."""
    with pytest.raises(OutOfMemoryError, match="with 8 in a batch: choose a smaller batch size"):
        micro_batches([0], 8, lambda _: pieces(20, 8, limit=4), device=CPU, auto=4, count=1)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"):
        pieces(3, 4, limit=1, error=RuntimeError("wrong shape"))


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "8", True, None])
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match='give "auto" or a positive integer'):
        pieces(3, wrong)


def test_the_stream_is_never_held():
    seen = []

    def stream():
        for i in range(6):
            seen.append(i)
            yield i

    micro_batches(stream(), 2, lambda piece: seen.append(-len(piece)), device=CPU, auto=4, count=6)
    assert seen == [0, 1, -2, 2, 3, -2, 4, 5, -2]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_first_size_goes_by_device_area_and_what_is_computed(kind):
    usual = AUTO[kind]
    for side, gradients, size in (
        (224, True, usual),
        (64, True, usual),  # no more than usual
        (448, True, usual // 4),
        (224, False, WITHOUT_GRADIENTS * usual),
        (224 * 100, True, 1),
    ):
        with contextlib.nullcontext(torch.device("cpu")) if kind == "cpu" else a_cuda_device() as device:
            inputs = torch.empty(1, 1, 1, 1).to(device).expand(7, 3, side, side)
            assert first_size(inputs, gradients=gradients) == size


def test_results_are_put_together_and_taken_apart(device):
    whole = Pieces(5)
    values = torch.arange(10.0, device=device).view(5, 2)
    for rows in ([0, 1, 2], [3, 4]):
        piece = taken(values, rows)
        whole.put(rows, piece)
        piece.zero_()  # a copy: a network may work in place on what it is given
    assert whole.whole.tolist() == values.tolist() == torch.arange(10).view(5, 2).tolist()
