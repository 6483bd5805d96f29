"""Freed memory goes back to the system."""

from __future__ import annotations

import os
import platform

import pytest
from conftest import run_program

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own habit")

KEPT_AND_FREED = """
import numpy as np
from torch_impl.heap import return_freed_blocks

def size():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS:"))

print(return_freed_blocks())
large = np.ones(30_000_000, np.uint8)
del large  # from this glibc learns to take blocks of up to 30 MB from the heap
before = size()
kept, freed = [], []
for _ in range(40):
    freed.append(np.ones(16_000_000, np.uint8))
    kept.append(np.ones(100_000, np.uint8))
freed.clear()
print(size() - before)
"""
"""640 MB freed between 4 MB that are kept, as feature maps are among results."""


def kept_mb(tmp_path, **environment: str) -> tuple[bool, float]:
    result = run_program("-c", KEPT_AND_FREED, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    was_set, kept = result.stdout.split()
    return was_set == "True", float(kept)


@pytest.fixture(autouse=True)
def nobody_has_chosen(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


def test_blocks_freed_between_kept_ones_go_back_to_the_system(tmp_path):
    was_set, kept = kept_mb(tmp_path)
    assert was_set
    assert kept < 20


@pytest.mark.parametrize(
    "environment",
    [{"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}, {"MALLOC_MMAP_THRESHOLD_": "33554432"}],
    ids=lambda e: next(iter(e)),
)
def test_whoever_has_chosen_keeps_their_choice(tmp_path, environment):
    """And glibc then does what it is told: all of it stays, which is also what the other test would see without us."""
    was_set, kept = kept_mb(tmp_path, **environment)
    assert not was_set
    assert kept > 400


def test_an_explainer_sets_it(tmp_path):
    code = (
        "from torch import nn; from torch_impl import Explainer, heap; "
        "Explainer(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), '0'); print(heap.return_freed_blocks.cache_info().currsize)"
    )
    result = run_program("-c", code, cwd=tmp_path)
    assert result.stdout.strip() == "1", result.stderr
