from __future__ import annotations

import pytest
import torch

from torch_impl.batching import AUTO, AutoSize, OutOfMemoryError, micro_batches

CPU = torch.device("cpu")


def pieces(items, batch_size, limit=10**9, error=None):
    """The pieces that arrive when no more than `limit` fit."""
    seen = []

    def work(piece):
        if len(piece) > limit:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        seen.append(list(piece))

    micro_batches(items, batch_size, CPU, work)
    return seen


def test_pieces():
    assert pieces(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert pieces(range(0), 2) == []
    assert max(map(len, pieces(range(100), "auto"))) == AUTO["cpu"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        MemoryError(),
    ],
)
def test_auto_halves_and_goes_on_with_the_same_piece(error):
    seen = pieces(range(9), "auto", limit=1, error=error)
    assert [i for piece in seen for i in piece] == list(range(9))
    assert max(map(len, seen)) == 1
    assert pieces(range(7), AutoSize(4), limit=2) == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_given_size_is_not_changed_silently():
    with pytest.raises(OutOfMemoryError, match="with 8 in a batch: choose a smaller batch size"):
        pieces(range(9), 8, limit=4)
    with pytest.raises(OutOfMemoryError, match="with 1 in a batch: choose a smaller picture"):
        pieces(range(9), "auto", limit=0)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"):
        pieces(range(3), 4, limit=1, error=RuntimeError("wrong shape"))


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "8", True])
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match="batch size"):
        pieces(range(3), wrong)


def test_the_stream_is_never_held():
    drawn = []

    def stream():
        for i in range(6):
            drawn.append(i)
            yield i

    micro_batches(stream(), 2, CPU, lambda piece: drawn.append(-len(piece)))
    assert drawn == [0, 1, -2, 2, 3, -2, 4, 5, -2]
