"""Who may import whom: at run time, in fresh processes. (lint-imports says the same of the source.)"""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, run_program

FOREIGN = ("torch", "tensorflow", "keras", "tf_keras_vis", "keras_ref", "torch_impl", "matplotlib", "h5py")


def loaded(statement: str) -> set[str]:
    probe = f"import sys, json\n{statement}\nprint(json.dumps([m for m in {FOREIGN!r} if m in sys.modules]))"
    result = run_program("-c", probe, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import parity.contract.architecture, parity.contract.network, parity.contract.noise", set()),
        ("import parity.contract.classes, parity.contract.artifact, parity.contract.stages", set()),
        ("import parity.contract.keras_files, parity.contract.keras_config", set()),
        ("import torch_impl", {"torch_impl"}),
        ("import torch_impl.__main__; torch_impl.__main__.parser()", {"torch_impl"}),
        ("from torch_impl import Explainer; import torch_impl.weights", {"torch_impl", "torch", "matplotlib", "h5py"}),
        ("import keras_ref, keras_ref.__main__", {"keras_ref"}),
    ],
)
def test_what_an_import_brings(statement, allowed):
    assert loaded(statement) <= allowed


def test_the_probe_can_fail():
    assert "torch" in loaded("import torch")
