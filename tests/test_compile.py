"""`compile`: SmoothGrad's passes by torch.compile, in processes of their own, which the tests' shape checks are not part of."""

from __future__ import annotations

import pytest
from conftest import ROOT, run_program

from parity.contract.samples import SAMPLES
from torch_impl.__main__ import main

SAME = """
import functools
import sys
import numpy as np
import torch

torch.set_num_threads(1)
graphs = []

def counted(graph, inputs):
    graphs.append(graph)
    return torch._dynamo.lookup_backend("BACKEND")(graph, inputs)

torch.compile = functools.partial(torch.compile, backend=counted)
from torch_impl import Explainer

photographs = [np.random.RandomState(i).randint(0, 255, (64, 64, 3), np.uint8) for i in range(3)]
settings = {"weights": sys.argv[1], "device": "cpu", "engine": "shared", "batch_size": 4}
options = {"classes": [2, 7, 5], "methods": ["smoothgrad", "gradcam"], "n_samples": 2}
expected = Explainer.vgg16(**settings)(photographs, **options)
compiled = Explainer.vgg16(**settings, compile=True)
for _ in range(2):
    maps = compiled(photographs, **options)
    assert maps.manifest["settings"]["compile"]
    for name in expected.maps:
        np.testing.assert_allclose(maps[name], expected[name], rtol=0, atol=1e-5)
print(len(graphs))
"""

BROKEN = """
import functools
import sys
import torch

def broken(graph, inputs):
    raise RuntimeError("no compiler here")

torch.compile = functools.partial(torch.compile, backend=broken)
torch.set_num_threads(1)
from torch_impl.__main__ import main

given = sys.argv[1:]
print([main([command, *given]) for command in ("explain", "batch")])
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_same_maps_and_one_graph_for_each_size_of_micro_batch(weights, backend):
    """Six copies in passes of 4 and 2; the second call, whose network is another double, compiles nothing."""
    result = run_program("-c", SAME.replace("BACKEND", backend), weights, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "2"


def arguments(weights, out, engine):
    options = ["--weights", weights, "--methods", "smoothgrad", "--samples", "2", "--compile", "--engine", engine]
    return [str(SAMPLES[0].path()), *options, "--device", "cpu", "--quiet", "--out", str(out)]


def test_what_cannot_be_compiled_is_refused_in_one_line(weights, tmp_path):
    result = run_program("-c", BROKEN, *arguments(weights, tmp_path / "out", "shared"), cwd=ROOT)
    words = (
        "the model cannot be compiled here: leave compile out (backend='broken' raised: RuntimeError: no compiler here)"
    )
    assert result.stdout == "[2, 2]\n", result.stderr
    assert [words in line for line in result.stderr.splitlines()] == [True, True], result.stderr


@pytest.mark.parametrize("command", ["explain", "batch"])
def test_the_libraries_passes_are_not_compiled(weights, tmp_path, command, capsys):
    assert main([command, *arguments(weights, tmp_path / "out", "library")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "compile is for engine shared, whose passes are our own; the engine is library" in line
