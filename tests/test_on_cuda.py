"""Whole programs on a CUDA device: nothing is left on the wrong one, and the maps are the CPU's.

Where there is no real one, on the pretended one.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from batch_runs import identity, make_photographs, same_logits
from conftest import a_cuda_device, close
from PIL import Image
from pretend_cuda import pretended
from tolerances import FLOAT32, FLOAT64, FLOAT64_ALPHA

from parity import port
from parity.candidate import Job
from torch_impl import Explainer, read_maps
from torch_impl.__main__ import main
from torch_impl.names import ENGINES, METHOD_NAMES, NARROW, REFERENCE_METHODS, STOCK_METHODS

pytestmark = pytest.mark.cuda

no_real_one = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device")


@pytest.fixture
def pictures():
    generator = np.random.RandomState(3)
    coarse = [Image.fromarray(generator.randint(0, 255, (6, 7, 3), np.uint8)) for _ in range(3)]
    return [np.asarray(one.resize((64, 64), Image.Resampling.BICUBIC)) for one in coarse]


@no_real_one
def test_what_a_device_refuses_is_refused():
    with pretended() as device:
        there = torch.ones(2, 3, device=device)
        assert there.device == device
        assert there.is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([there, torch.ones(2, 3)])
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.Linear(3, 4)(there)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)
        assert (there * 2).cpu().numpy().sum() == 12
        assert there[[0]].tolist() == [[1, 1, 1]]


@no_real_one
def test_gradients_go_through_it():
    with pretended() as device:
        layer = torch.nn.Linear(3, 2, dtype=torch.float64).to(device)
        x = torch.ones(1, 3, dtype=torch.float64).to(device).requires_grad_()
        (found,) = torch.autograd.grad(layer(x)[0, 1], x)
        assert found.is_cuda
        assert found.tolist() == [layer.weight[1].tolist()]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_explainer(tiny, pictures, engine, precision):
    """fp64: the CPU's maps. The others: that they are computed; their numbers are a GPU's own."""
    methods = REFERENCE_METHODS if precision in NARROW else METHOD_NAMES
    options = {"classes": [2, 7, 5], "methods": methods, "n_samples": 3}
    with a_cuda_device():
        found = Explainer.vgg16(tiny, device="cuda", precision=precision, engine=engine)(pictures, **options)
    assert found.manifest["device"] == "cuda:0"
    for name in methods:
        assert np.isfinite(found.maps[name]).all()
    if precision == "fp64":
        expected = Explainer.vgg16(tiny, device="cpu", precision=precision, engine=engine)(pictures, **options)
        for name in comparable(METHOD_NAMES):
            tolerance = FLOAT64_ALPHA if name.startswith("gradcam_plus_plus") else FLOAT64
            close(torch.tensor(found.maps[name]), torch.tensor(expected.maps[name]), tolerance)


def comparable(names):
    """Captum's noise is drawn by the device's own generator: on a real one it is another map."""
    return [name for name in names if name != "smoothgrad@captum" or not torch.cuda.is_available()]


def test_the_explain_command(tmp_path, monkeypatch, weights, pictures):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures[0]).save("a.png")
    with a_cuda_device():
        methods = ",".join(METHOD_NAMES)
        assert (
            main(["explain", "a.png", "--weights", weights, "--device", "cuda", "--methods", methods, "--out", "o"])
            == 0
        )
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["device"] == "cuda:0"


@pytest.mark.parametrize(
    "more",
    [
        ["--methods", "vanilla,smoothgrad,gradcam,gradcam++", "--samples", "2", "--resolution", "full"],
        ["--methods", "gradcam,gradcam++", "--batch-size", "3"],
        ["--methods", ",".join(STOCK_METHODS), "--samples", "2", "--limit", "3"],
        ["--methods", "gradcam", "--classes", "classes.csv"],
    ],
    ids=["all, full", "CAMs, raw", "the libraries' own", "classes of one's own"],
)
def test_the_batch_command(tmp_path, monkeypatch, weights, more):
    monkeypatch.chdir(tmp_path)
    make_photographs(tmp_path / "p", 7)
    (tmp_path / "p" / "3b.jpg").write_bytes(b"no photograph")
    (tmp_path / "classes.csv").write_text("path,class\n0.jpg,7\n0.jpg,\n1.jpg,2\n")
    common = ["batch", "p", "--quiet", "--weights", weights, "--precision", "fp64", *more]
    with a_cuda_device():
        status = main([*common, "--out", "there", "--device", "cuda"])
    assert main([*common, "--out", "here", "--device", "cpu"]) == status
    assert identity(tmp_path / "there") == identity(tmp_path / "here")
    found, expected = read_maps("there"), read_maps("here")
    same_logits(found, expected)
    for name in comparable(expected.maps):
        maps = expected.maps[name]
        assert np.allclose(found.maps[name], maps, atol=2e-3, equal_nan=True), name  # two steps of float16 below 1


@pytest.mark.parametrize("candidate", [port.candidate, port.shared])
def test_every_stage_of_the_comparison(tiny, pictures, candidate):
    def stages(device):
        job = Job(
            pixels=np.stack(pictures[:2]),
            classes=(2, 7),
            network=tiny,
            input="caffe",
            methods=REFERENCE_METHODS,
            n_samples=2,
            noise_level=0.2,
            seed=0,
            precision="fp64",
            device=device,
        )
        return {(photograph, stage): values for photograph, stage, values in candidate(job)}

    with a_cuda_device():
        found = stages("cuda")
    expected = stages("cpu")
    assert found.keys() == expected.keys()
    for where, values in expected.items():
        tolerance = FLOAT64_ALPHA if "plus_plus" in where[1] else FLOAT32 if where[1] == "final" else FLOAT64
        assert isinstance(found[where], np.ndarray)
        close(torch.tensor(found[where]), torch.tensor(values), tolerance)
