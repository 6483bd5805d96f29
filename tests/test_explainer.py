"""The library as a notebook uses it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
import torchvision
from conftest import close
from PIL import Image
from tolerances import FLOAT32, FLOAT64
from torch import nn
from torch_impl.cam import LayerError

from parity.contract.classes import ClassError
from torch_impl import Explainer, images, methods
from torch_impl.explainer import DeviceError, OutputError, check_output, choose_device
from torch_impl.images import ImagesError
from torch_impl.methods import MapError
from torch_impl.names import REFERENCE_METHODS
from torch_impl.preprocess import preprocess


@pytest.fixture(scope="module")
def explainer(tiny):
    return Explainer.vgg16(tiny, device="cpu")


@pytest.fixture(scope="module")
def photographs():
    return images.defaults()[:2]


@pytest.fixture(scope="module")
def maps(explainer, photographs):
    return explainer(photographs, classes=[2, 7], n_samples=3)


def test_maps_are_those_of_the_functions(explainer, maps):
    inputs = preprocess(maps.pixels)
    target = torch.tensor([2, 7])
    model = explainer.model
    layer = explainer.target_layer
    expected = {
        "vanilla": methods.vanilla(model, inputs, target),
        "smoothgrad": methods.smoothgrad(model, inputs, target, n_samples=3),
        "gradcam": methods.gradcam(model, inputs, target, target_layer=layer),
        "gradcam++": methods.gradcam_plus_plus(model, inputs, target, target_layer=layer),
    }
    for name, drawn in expected.items():
        assert maps[name].dtype == np.float32
        assert maps[name].min() >= 0
        assert maps[name].max() <= 1
        close(torch.from_numpy(maps[name]), drawn, FLOAT32)


def test_logits_classes_and_probabilities(explainer, maps):
    with torch.no_grad():
        logits = explainer.model(preprocess(maps.pixels))
    assert np.allclose(maps.logits, logits.numpy(), rtol=1e-5)
    for i, row in enumerate(maps.manifest["photographs"]):
        assert row["class"] == [2, 7][i]
        assert row["label"] == f"class {[2, 7][i]}"
        assert row["probability"] == pytest.approx(float(logits[i].double().softmax(0)[row["class"]]), rel=1e-4)
        assert [t["class"] for t in row["top5"]] == logits[i].topk(5).indices.tolist()


def test_the_top_class_is_explained_by_default(explainer, photographs):
    found = explainer(photographs, methods="gradcam")
    assert [p["class"] for p in found.manifest["photographs"]] == found.logits.argmax(axis=1).tolist()


def test_files_arrays_and_pillow_images_are_one(explainer, photographs, maps):
    with Image.open(photographs[0]) as image:
        rgb = image.convert("RGB")
    again = explainer([np.asarray(rgb), rgb, photographs[0]], classes=2, methods=["vanilla", "gradcam++"])
    for i in range(3):
        assert np.array_equal(again.pixels[i], maps.pixels[0])
        close(torch.from_numpy(again["vanilla"][i]), torch.from_numpy(maps["vanilla"][0]), FLOAT32)
        close(torch.from_numpy(again["gradcam_plus_plus"][i]), torch.from_numpy(maps["gradcam++"][0]), FLOAT32)


def test_float64(tiny, photographs):
    found = Explainer.vgg16(tiny, device="cpu", precision="fp64")(photographs, classes=2, methods="vanilla")
    assert found["vanilla"].dtype == np.float64
    assert found.manifest["precision"] == "fp64"


def test_a_manifest_says_where_maps_come_from(maps, tiny, photographs):
    manifest = json.loads(json.dumps(dict(maps.manifest)))
    assert manifest["weights"]["fingerprint"] == tiny.fingerprint
    assert manifest["weights"]["source"] == "seeded:0"
    assert manifest["photographs"][0]["sha256"] == images.load(photographs[0]).sha256
    assert manifest["settings"] == {"n_samples": 3, "noise_level": 0.2, "seed": 0, "batch_size": "auto"}
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(manifest["seconds"]) >= set(REFERENCE_METHODS)
    assert manifest["photographs"][0]["credit"].startswith("CC0")


# Any classifier


@pytest.mark.parametrize("size", [(96, 96), (64, 112)])
def test_another_model_with_its_own_transform(photographs, size):
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    transform = torchvision.transforms.Compose([torchvision.transforms.Resize(size), torchvision.transforms.ToTensor()])
    before = [p.requires_grad for p in resnet.parameters()]
    found = Explainer(resnet, target_layer="layer4", preprocess=transform)(photographs, classes=[1, 4], n_samples=2)
    with Image.open(photographs[0]) as image:
        inputs = transform(image.convert("RGB"))[None]
    expected = methods.gradcam(resnet, inputs, torch.tensor([1]), target_layer=resnet.layer4)
    close(torch.from_numpy(found["gradcam"][:1]), expected, FLOAT32)
    assert found["smoothgrad"].shape == (2, *size)
    assert found.pixels.shape == (2, *size, 3)
    assert found.manifest["weights"]["fingerprint"] is None
    assert [p.requires_grad for p in resnet.parameters()] == before
    found.figure("gradcam")


def test_a_model_handed_in_stays_where_it_is_and_what_it_is(model, photographs):
    """Another precision works on a copy."""
    found = Explainer(model, "features.29", preprocess="caffe", size=64, device="cpu", precision="fp32")(
        photographs, 2, n_samples=1
    )
    assert found["vanilla"].dtype == np.float32
    assert next(model.parameters()).dtype == torch.float64


def test_transforms_that_cannot_be_used(tiny, photographs, explainer):
    with pytest.raises(ValueError, match=r"expected a floating-point tensor \(C, H, W\)"):
        Explainer(explainer.model, "features.29", preprocess=lambda image: image)(photographs)
    to_tensor = torchvision.transforms.ToTensor()
    with pytest.raises(ValueError, match="let it resize to one size"):
        Explainer(explainer.model, "features.29", preprocess=to_tensor)(photographs)


# Errors


def test_errors_name_what_is_wrong(explainer, photographs, tiny):
    with pytest.raises(ClassError, match="class 10 does not exist"):
        explainer(photographs, classes=10)
    with pytest.raises(ClassError, match="3 classes for 2 photographs"):
        explainer(photographs, classes=[1, 2, 3])
    with pytest.raises(ImagesError, match="no such file"):
        explainer(["absent.jpg"])
    with pytest.raises(ValueError, match="no photograph"):
        explainer([])
    with pytest.raises(ValueError, match="give a list"):
        explainer("cat.jpg")
    with pytest.raises(ValueError, match=r"method 'gradcan' is unknown; did you mean gradcam\?"):
        explainer(photographs, methods=["gradcan"])
    with pytest.raises(ValueError, match="seed"):
        explainer(photographs, seed=-1)
    with pytest.raises(KeyError, match="gradcam was not drawn"):
        explainer(photographs, methods="vanilla")["gradcam"]
    with pytest.raises(LayerError, match="layer4"):
        Explainer(explainer.model, "layer4")
    with pytest.raises(ValueError, match="tf32 exists on CUDA"):
        Explainer.vgg16(tiny, device="cpu", precision="tf32")
    with pytest.raises(ValueError, match=r"smoothgrad@captum is the library's own call, which does not work in bf16"):
        Explainer.vgg16(tiny, device="cpu", precision="bf16")(photographs, methods=["smoothgrad@captum"])
    for device, words in {"tpu": "unknown", "mps": "not supported", "cuda:99": "cuda:99|no CUDA"}.items():
        with pytest.raises(DeviceError, match=words):
            choose_device(device)


class Broken(nn.Module):
    """Gives NaN."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3)) * float("nan")


def test_nan_is_refused_not_drawn(photographs):
    with pytest.raises(MapError, match="not finite"):
        Explainer(Broken(), "conv")(photographs, classes=0)


class Flat(nn.Module):
    """Its score falls with every feature: no positive evidence anywhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        nn.init.constant_(self.conv.weight, 0.0)
        nn.init.constant_(self.conv.bias, 1.0)
        with torch.no_grad():
            self.conv.weight[0, 0] = 0.01  # positive activations everywhere, and not the same everywhere

    def forward(self, x):
        return -self.conv(x).relu().mean(dim=(2, 3))


def test_a_constant_map_is_drawn_and_said_to_be(photographs, tmp_path):
    found = Explainer(Flat(), "conv", size=32)(photographs, classes=0, methods="gradcam")
    constant = [p["constant_maps"] for p in found.manifest["photographs"]]
    # G < 0 and A > 0 everywhere: relu(Σ w·A) is 0 everywhere.
    assert constant == [["gradcam"], ["gradcam"]]
    assert (found["gradcam"] == 0).all()
    texts = [t.get_text() for axis in found.figure("gradcam").axes for t in [axis.title]]
    assert any("no positive evidence" in text for text in texts)
    found.save(tmp_path / "out")


# Files


def test_save_writes_everything(maps, tmp_path):
    written = maps.save(tmp_path / "a" / "out")
    names = sorted(p.name for p in written)
    expected = sorted([*(f"{m}.png" for m in REFERENCE_METHODS), "overview.png", "maps.npz", "manifest.json"])
    assert names == expected == sorted(os.listdir(tmp_path / "a" / "out"))
    with np.load(tmp_path / "a" / "out" / "maps.npz", allow_pickle=False) as file:
        assert set(file.files) == {*REFERENCE_METHODS, "pixels"}
        for name in REFERENCE_METHODS:
            assert np.array_equal(file[name], maps[name])
        assert np.array_equal(file["pixels"], maps.pixels)
    manifest = json.loads((tmp_path / "a" / "out" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == expected


def test_an_earlier_result_is_replaced_and_other_files_stay(explainer, photographs, maps, tmp_path):
    out = tmp_path / "out"
    maps.save(out)
    (out / "notes.txt").write_text("mine")
    explainer(photographs, classes=2, methods="gradcam").save(out)
    assert sorted(os.listdir(out)) == ["gradcam.png", "manifest.json", "maps.npz", "notes.txt", "overview.png"]


def test_a_folder_that_is_not_ours_is_refused(maps, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="holds files that are not a result"):
        maps.save(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    maps.save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_file_in_the_folders_place(maps, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        check_output(tmp_path / "out" / "below")


def test_a_full_disk_leaves_nothing(maps, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        maps.save(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_figures_hold_hostile_names(explainer, maps, photographs, tmp_path):
    name = "$x^{ <b>&\n\x1b[31m" + "y" * 200 + ".png"
    try:
        os.link(photographs[0], tmp_path / name)
    except OSError:
        name = "$x^{ <b>&\n\x1b[31m" + "y" * 100 + ".png"
        (tmp_path / name).write_bytes(photographs[0].read_bytes())
    explainer([tmp_path / name], classes=2, methods="gradcam").save(tmp_path / "out")
    assert (tmp_path / "out" / "overview.png").stat().st_size > 5000


def test_many_photographs_make_pages(explainer, photographs, tmp_path):
    found = explainer([photographs[0]] * 26, classes=2, methods="gradcam")
    names = {p.name for p in found.save(tmp_path / "out")}
    assert {"overview.png", "overview-2.png", "overview-3.png"} <= names


def test_batch_sizes_give_the_same_maps(tiny, photographs):
    found = [
        Explainer.vgg16(tiny, device="cpu", precision="fp64", batch_size=size)(photographs, classes=2, n_samples=3)
        for size in (1, 5, "auto")
    ]
    for name in REFERENCE_METHODS:
        for other in found[1:]:
            close(
                torch.from_numpy(other[name]),
                torch.from_numpy(found[0][name]),
                FLOAT64 * 1000 if "plus" in name else FLOAT64,
            )
