"""Whole programs on a CUDA device: nothing is left on the wrong one, and the maps are the CPU's.

Where there is no real one, on the pretended one.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import a_cuda_device, close, drawn, tolerance_of
from PIL import Image
from pretend_cuda import WAITED, pretended
from tolerances import FLOAT32, FLOAT64

from parity.contract.methods import LIBRARY, METHODS, REFERENCE, Options
from parity.contract.stages import PRECISIONS
from torch_impl import Explainer
from torch_impl.__main__ import main
from torch_impl.network import build
from torch_impl.preprocess import preprocess

pytestmark = pytest.mark.cuda

QUICK = tuple(name for name in REFERENCE if name != "scorecam")
"""Faster-ScoreCAM takes Score-CAM's way, with fewer passes."""

no_real_one = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device")


@pytest.fixture
def pictures():
    generator = np.random.RandomState(3)
    coarse = [Image.fromarray(generator.randint(0, 255, (6, 7, 3), np.uint8)) for _ in range(3)]
    return [np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)) for picture in coarse]


def comparable(names):
    """Captum's noise is drawn by the device's own generator: on a real one it is another map."""
    return [name for name in names if name != "smoothgrad@captum" or not torch.cuda.is_available()]


@no_real_one
def test_what_a_device_refuses_is_refused():
    with pretended() as device:
        there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
        assert (there.device, there.is_cuda) == (device, True)
        for mixed in (lambda: there + here, lambda: torch.cat([there, here]), lambda: torch.nn.Linear(3, 4)(there)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        for leaves in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises(TypeError, match="numpy"):
                leaves()
        assert (there * 2).cpu().numpy().sum() == 12
        assert there[[0]].tolist() == [[1, 1, 1]]


@no_real_one
def test_gradients_go_through_it():
    with pretended() as device:
        layer = torch.nn.Linear(3, 2, dtype=torch.float64).to(device)
        x = torch.ones(1, 3, dtype=torch.float64).to(device).requires_grad_()
        (gradients,) = torch.autograd.grad(layer(x)[0, 1], x)
        assert gradients.is_cuda
        assert gradients.tolist() == [layer.weight[1].tolist()]


@pytest.mark.parametrize(
    ("precision", "engine"),
    [
        ("fp64", "library"),
        ("fp64", "shared"),
        ("fp32", "shared"),
        ("tf32", "library"),
        ("fp16", "library"),
        ("bf16", "shared"),
    ],
)
def test_an_explainer(tiny, pictures, engine, precision):
    """fp64: the CPU's maps. The others: that they are computed; their numbers are a GPU's own."""
    assert precision in PRECISIONS
    names = tuple(METHODS) if precision == "fp64" else QUICK
    options = {"classes": [2, 7, 5], "methods": names, "n_samples": 2}
    with a_cuda_device():
        there = Explainer.vgg16(tiny, device="cuda", precision=precision, engine=engine)(pictures, **options)
    assert there.manifest["device"] == "cuda:0"
    assert all(np.isfinite(there[name]).all() for name in names)
    if precision == "fp64":
        here = Explainer.vgg16(tiny, device="cpu", precision=precision, engine=engine)(pictures, **options)
        for name in comparable(names):
            # What pytorch-grad-cam computes in NumPy is float32.
            tolerance = FLOAT32 if METHODS[name].library == "pytorch-grad-cam" else tolerance_of(name)
            close(torch.tensor(there[name]), torch.tensor(here[name]), tolerance)


@no_real_one
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_host_waits_for_maps_and_not_between_passes(tiny, pictures, batch_size):
    """However many passes there are: once for each map, and for logits, classes, and why a map is constant; whether all is finite
    where maps have been drawn together and after SmoothGrad; which feature maps are constant, for each Score-CAM."""
    with pretended():
        explainer = Explainer.vgg16(tiny, device="cuda", engine="shared", batch_size=batch_size)
        explainer(pictures[:1], 2, "smoothgrad", n_samples=5)  # whose noise is kept on the device
        WAITED.clear()
        explainer(pictures[:1], 2, REFERENCE, n_samples=5)
    assert len(WAITED) == len(REFERENCE) + 3 + 2 + 2, WAITED


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [(torch.float64, "library"), (torch.float64, "shared"), (torch.float16, "library"), (torch.bfloat16, "shared")],
    ids=str,
)
def test_functions_of_tensors(tiny, pictures, engine, dtype):
    """Of a model and inputs that somebody has on the device; in small passes, the last one smaller."""
    model, options = build(tiny).to(dtype), {"engine": engine, "batch_size": 2}
    x = preprocess(np.stack(pictures), input="caffe", dtype=dtype)
    with a_cuda_device() as device:
        there = {name: drawn(name, model.to(device), x.to(device), 2, **options) for name in QUICK}
        assert all(raw.is_cuda for raw in there.values())
        there = {name: raw.cpu() for name, raw in there.items()}
    model = build(tiny).to(dtype)
    for name, raw in there.items():
        assert raw.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(raw).all()
        if dtype == torch.float64:
            close(raw, drawn(name, model, x, 2, **options), tolerance_of(name))


def test_the_explain_command(tmp_path, monkeypatch, weights, pictures):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures[0]).save("a.png")
    explain = ["explain", "a.png", "--weights", weights, "--device", "cuda", "--methods", "vanilla,smoothgrad,gradcam"]
    with a_cuda_device():
        assert main([*explain, "--samples", "2", "--out", "o"]) == 0
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["device"] == "cuda:0"


@pytest.mark.parametrize(
    "more",
    [
        ["--methods", ",".join(QUICK), "--samples", "2", "--resolution", "full"],
        ["--methods", "gradcam,gradcam++", "--batch-size", "3"],
        ["--methods", ",".join(LIBRARY), "--samples", "2", "--limit", "3"],
        ["--methods", "gradcam", "--classes", "classes.csv"],
    ],
    ids=["all, full", "CAMs, raw", "the libraries' own", "classes of one's own"],
)
def test_the_batch_command(tmp_path, monkeypatch, weights, more):
    from batch_runs import identity, make_photographs, same_logits

    from torch_impl import read_maps

    monkeypatch.chdir(tmp_path)
    make_photographs(tmp_path / "p", 4)
    (tmp_path / "p" / "3b.jpg").write_bytes(b"no photograph")
    (tmp_path / "classes.csv").write_text("path,class\n0.jpg,7\n0.jpg,\n1.jpg,2\n")
    common = ["batch", "p", "--quiet", "--weights", weights, "--precision", "fp64", *more]
    with a_cuda_device():
        status = main([*common, "--out", "there", "--device", "cuda"])
    assert main([*common, "--out", "here", "--device", "cpu"]) == status
    assert identity(tmp_path / "there") == identity(tmp_path / "here")
    there, here = read_maps("there"), read_maps("here")
    same_logits(there, here)
    for name in comparable(here.maps):
        maps = here.maps[name]
        assert np.allclose(there.maps[name], maps, atol=2e-3, equal_nan=True), name  # two steps of float16 below 1


@pytest.mark.parametrize("engine", ["candidate", "one_pass"])
def test_every_stage_of_the_comparison(tiny, pictures, engine):
    from parity.candidate import Job
    from torch_impl import candidate

    def stages(device):
        pixels, options = np.stack(pictures[:2]), Options(n_samples=2)
        job = Job(pixels, (2, 7), tiny, "caffe", QUICK, options, precision="fp64", device=device)
        return {(photograph, stage): values for photograph, stage, values in getattr(candidate, engine)(job)}

    with a_cuda_device():
        there = stages("cuda")
    here = stages("cpu")
    assert there.keys() == here.keys()
    for (photograph, stage), values in here.items():
        method = stage.partition("/")[0]
        tolerance = tolerance_of(method) if method in METHODS else FLOAT64
        assert isinstance(there[photograph, stage], np.ndarray)
        close(torch.tensor(there[photograph, stage]), torch.tensor(values), tolerance)
