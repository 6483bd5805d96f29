from __future__ import annotations

import pytest
import torch

from torch_impl import batching
from torch_impl.batching import AUTO, AutoSize, OutOfMemoryError, Pieces, bytes_per_image, micro_batches, sized

CPU = torch.device("cpu")


def pieces(items, batch_size, limit=10**9, error=None, device=CPU, count=None):
    """The pieces that arrive when no more than `limit` fit."""
    seen = []

    def work(piece):
        if len(piece) > limit:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        seen.append(list(piece))

    micro_batches(items, batch_size, device, work, count=count)
    return seen


def test_pieces():
    assert pieces(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert pieces(range(0), 2) == []
    assert max(map(len, pieces(range(100), "auto"))) == AUTO["cpu"]


@pytest.mark.parametrize(
    ("device", "size", "count", "sizes"),
    [
        ("cpu", AutoSize(4), 9, [3, 3, 3]),
        ("cpu", AutoSize(4), 3, [3]),
        ("cpu", 4, 9, [4, 4, 1]),  # a number is taken as it is
        ("cuda", AutoSize(64), 60, [60]),
        ("cuda", AutoSize(64), 80, [48, 32]),
        ("cuda", AutoSize(64), 400, [64] * 6 + [16]),
        ("cuda", AutoSize(90), 170, [64, 64, 42]),
        ("cuda", AutoSize(20), 50, [16, 16, 16, 2]),
        ("cuda", AutoSize(9), 20, [7, 7, 6]),
        ("cuda", AutoSize(1), 3, [1, 1, 1]),
    ],
)
def test_pieces_of_a_found_size_are_about_equal(device, size, count, sizes):
    seen = pieces(range(count), size, device=torch.device(device), count=count)
    assert [len(piece) for piece in seen] == sizes
    assert [i for piece in seen for i in piece] == list(range(count))


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
    seen = pieces(range(9), "auto", limit=1, error=error)
    assert [i for piece in seen for i in piece] == list(range(9))
    assert max(map(len, seen)) == 1
    assert pieces(range(7), AutoSize(4), limit=2) == [[0, 1], [2, 3], [4, 5], [6]]


def test_results_are_put_together_in_order():
    found = Pieces(5)
    found.put([0, 1, 2], torch.tensor([[0.0], [1.0], [2.0]]))
    found.put([3, 4], torch.tensor([[3.0], [4.0]]))
    assert found.whole.tolist() == [[0], [1], [2], [3], [4]]


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


# The size that "auto" finds


class TwoLayers(torch.nn.Module):
    """One image of 8×8: a convolution to 4 channels (4·64 values), a ReLU in place, 5 logits."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(inplace=True)
        self.dense = torch.nn.Linear(256, 5)

    def forward(self, x):
        return self.dense(self.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_of_an_image_on_paper(dtype):
    model, inputs = TwoLayers().to(dtype), torch.zeros(7, 3, 8, 8, dtype=dtype)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    assert bytes_per_image(model, inputs) == 2 * (256 + 5) * dtype.itemsize
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(p.device.type == "cpu" for p in model.parameters())


@pytest.mark.parametrize(
    ("free", "size"), [(10**12, AUTO["cpu"]), (4 * 2088 * 3, AUTO["cpu"]), (4 * 2088 + 8, 2), (1, 1), (0, 1)]
)
def test_auto_takes_what_half_of_the_free_memory_holds(monkeypatch, free, size):
    monkeypatch.setattr(batching, "free_memory", lambda device: free)
    assert sized("auto", TwoLayers(), torch.zeros(7, 3, 8, 8)) == AutoSize(size)
    assert sized(9, TwoLayers(), torch.zeros(7, 3, 8, 8)) == 9


def test_without_gradients_four_times_as_many_fit(monkeypatch):
    for free, size in ((10**12, 4 * AUTO["cpu"]), (2 * 2088, 4), (2088, 2)):
        monkeypatch.setattr(batching, "free_memory", lambda device, free=free: free)
        assert sized("auto", TwoLayers(), torch.zeros(7, 3, 8, 8), gradients=False) == AutoSize(size)


def test_where_nobody_says_auto_starts_high(monkeypatch):
    class Looks(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) if float(x.sum()) > 0 else x  # a value, which a shape has not

    monkeypatch.setattr(batching, "free_memory", lambda device: None)
    assert sized("auto", TwoLayers(), torch.zeros(1, 3, 8, 8)) == AutoSize(AUTO["cpu"])
    monkeypatch.setattr(batching, "free_memory", lambda device: 1)
    assert bytes_per_image(Looks(), torch.zeros(1, 3, 8, 8)) is None
    assert sized("auto", Looks(), torch.zeros(1, 3, 8, 8)) == AutoSize(AUTO["cpu"])


def test_free_memory_is_what_linux_and_the_container_say(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  999 kB\nMemAvailable:  12 kB\n")
    assert batching._available(tmp_path / "meminfo") == 12 * 1024
    assert batching._available(tmp_path / "absent") is None
    assert batching._group(tmp_path) is None
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert batching._group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert batching._group(tmp_path) == 700
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 150\nactive_file 2\n")
    assert batching._group(tmp_path) == 850
    (tmp_path / "memory.stat").unlink()
    (tmp_path / "memory.max").write_text("200\n")
    assert batching._group(tmp_path) == 0


def test_a_group_above_may_be_the_narrower_one(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    monkeypatch.setattr(batching, "OWN_GROUP", own)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder, limit in ((tmp_path / "a", 50), (tmp_path / "a" / "b", 90)):
        (folder / "memory.max").write_text(str(limit))
        (folder / "memory.current").write_text("10")
    assert batching._group(tmp_path) == 40


def test_control_groups_of_version_1(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/elsewhere\n4:memory:/job/7\n0::/\n")
    monkeypatch.setattr(batching, "OWN_GROUP", own)
    inside = tmp_path / "memory" / "job" / "7"
    inside.mkdir(parents=True)
    (inside / "memory.limit_in_bytes").write_text("1000\n")
    (inside / "memory.usage_in_bytes").write_text("400\n")
    (inside / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 50\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("5\n")
    assert batching._group(tmp_path) == 650


def test_a_real_machine_has_memory():
    free = batching.free_memory(CPU)
    assert free is None or free > 2**20


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_cuda_device_says_what_it_has():
    free = batching.free_memory(torch.device("cuda"))
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
