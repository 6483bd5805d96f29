"""Who may import whom: at run time, in a fresh process. (lint-imports says the same of the source.)"""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, run_program

FOREIGN = "torch tensorflow keras tf_keras_vis keras_ref torch_impl matplotlib matplotlib.pyplot h5py scipy captum pytorch_grad_cam cv2 sklearn"

CONTRACT = "artifact classes files layers methods network noise recorder samples stages text vgg"

PROBE = """
import sys, json
seen = set()
for statement in json.loads(sys.argv[1]):
    exec(statement)
    now = {name for name in FOREIGN if name in sys.modules}
    print(json.dumps(sorted(now - seen)))
    seen |= now
""".replace("FOREIGN", repr(["numpy", *FOREIGN.split()]))

DRAWS = """
import torch, parity.contract.methods as m
from torch_impl import methods
model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten())
x, target = torch.rand(1, 3, 8, 8), torch.tensor([1])
for name in m.REFERENCE:
    methods.raw_maps(name, model, x, target, target_layer="0", engine="shared", n_samples=1)
"""

CHAINS = {
    # one statement after the other, and what of all that is foreign to some each brings at the most
    "the judge and the port": [
        ("import parity.contract.command", set()),
        ("import " + ", ".join(f"parity.contract.{name}" for name in CONTRACT.split()), {"numpy"}),
        ("import parity.__main__; parity.__main__.parser()", set()),
        ("import torch_impl", {"torch_impl"}),
        ("import torch_impl.__main__; torch_impl.__main__.parser()", set()),
        ("import benchmarks.worker", set()),
        ("import torch_impl.figure", {"matplotlib"}),
        ("import parity.comparison, parity.child, parity.pixels", {"scipy"}),
        ("from torch_impl import Explainer; import torch_impl.weights", {"torch", "h5py"}),
        (DRAWS, set()),  # of the shared engine: the libraries take seconds to import
    ],
    "the reference": [("import keras_ref, keras_ref.__main__", {"numpy", "keras_ref"})],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_what_an_import_brings(chain):
    statements, allowed = zip(*CHAINS[chain], strict=True)
    result = run_program("-c", PROBE, json.dumps(statements), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    brought = [set(json.loads(line)) for line in result.stdout.splitlines()]
    for statement, names, at_most in zip(statements, brought, allowed, strict=True):
        assert names <= at_most, statement
    assert {"torch", "keras_ref"} & set().union(*brought), "the probe can fail"
