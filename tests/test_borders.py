"""Who may import whom: at run time, in fresh processes. (lint-imports says the same of the source.)"""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, run_program

FOREIGN = ("torch", "tensorflow", "keras", "tf_keras_vis", "keras_ref", "torch_impl", "matplotlib", "h5py", "scipy")

CONTRACT = "artifact classes files layers methods network noise recorder samples stages text vgg"


def loaded(statement: str, *modules: str) -> set[str]:
    probe = f"import sys, json\n{statement}\nprint(json.dumps([m for m in {modules or FOREIGN!r} if m in sys.modules]))"
    result = run_program("-c", probe, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        (f"import {', '.join(f'parity.contract.{name}' for name in CONTRACT.split())}", set()),
        ("import parity.__main__; parity.__main__.parser()", set()),
        ("import parity.comparison, parity.child, parity.pixels", {"scipy"}),
        ("import torch_impl", {"torch_impl"}),
        ("import torch_impl.__main__; torch_impl.__main__.parser()", {"torch_impl"}),
        (
            "from torch_impl import Explainer; import torch_impl.weights",
            {"torch_impl", "torch", "matplotlib", "h5py", "scipy"},
        ),
        ("import keras_ref, keras_ref.__main__", {"keras_ref"}),
    ],
)
def test_what_an_import_brings(statement, allowed):
    assert loaded(statement) <= allowed


def test_a_command_line_needs_no_numpy_to_be_shared():
    assert loaded("import parity.contract.command", "numpy") == set()


def test_the_probe_can_fail():
    assert "torch" in loaded("import torch")
