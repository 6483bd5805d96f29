"""The library as a notebook uses it."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
import torch
import torchvision
from conftest import TARGET_LAYER, close, every_engine, run_program, tolerance_of
from PIL import Image
from tolerances import EXACT, FLOAT32, FLOAT64
from torch import nn

from parity.contract.classes import ClassError
from parity.contract.methods import DEFAULT, LIBRARY, REFERENCE
from torch_impl import Explainer
from torch_impl.capture.passes import MapError
from torch_impl.images import ImagesError
from torch_impl.methods import finish, raw_maps
from torch_impl.precision import DeviceError

ALL = (*REFERENCE, *LIBRARY)


@pytest.fixture(scope="module")
def pictures():
    """Two smooth pictures of the tiny network's size."""
    generator = np.random.RandomState(3)
    coarse = [Image.fromarray(generator.randint(0, 255, (6, 7, 3), np.uint8)) for _ in range(2)]
    return [np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)) for picture in coarse]


def explainer_of(tiny, **options):
    return Explainer.vgg16(tiny, **{"device": "cpu", "precision": "fp64", **options})


@pytest.fixture(scope="module")
def explanation(tiny, pictures):
    """Every map of both pictures."""
    return explainer_of(tiny, engine="shared")(pictures, classes=[2, 7], methods=ALL, n_samples=3)


def caffe(pictures):
    """BGR minus the mean of ImageNet, channels first."""
    values = np.stack(pictures)[..., ::-1] - np.array([103.939, 116.779, 123.68])
    return torch.tensor(values.transpose(0, 3, 1, 2).copy())


# What it gives


def test_maps_are_those_of_the_functions(tiny, pictures, explanation):
    model, inputs, target = explainer_of(tiny).model, caffe(pictures), torch.tensor([2, 7])
    assert list(explanation) == list(explanation.maps) == list(ALL)
    for name in ALL:
        raw = raw_maps(name, model, inputs, target, target_layer=TARGET_LAYER, n_samples=3)
        close(torch.from_numpy(explanation[name]), finish(raw, (64, 64)).to(torch.float64), tolerance_of(name))
        assert explanation[name].shape == (2, 64, 64)
        assert 0 <= explanation[name].min() <= explanation[name].max() <= 1
    with torch.no_grad():
        close(torch.from_numpy(explanation.logits), model(inputs), FLOAT64)


def test_both_engines_give_the_same(tiny, pictures, explanation):
    maps = explainer_of(tiny, engine="library", batch_size=1)(pictures, [2, 7], REFERENCE, n_samples=3)
    for name in REFERENCE:
        close(torch.from_numpy(maps[name]), torch.from_numpy(explanation[name]), tolerance_of(name))
    assert [made.manifest["engine"] for made in (maps, explanation)] == ["library", "shared"]
    for key in ("class", "label", "sha256"):
        ours, theirs = ([row[key] for row in made.manifest["photographs"]] for made in (maps, explanation))
        assert ours == theirs


@pytest.mark.parametrize(("precision", "dtype"), [("fp64", np.float64), ("fp32", np.float32), ("bf16", np.float32)])
def test_number_formats(tiny, pictures, precision, dtype):
    maps = explainer_of(tiny, precision=precision)(pictures, 2, "vanilla")
    assert (maps["vanilla"].dtype, maps.logits.dtype) == (dtype, dtype)
    assert maps.manifest["precision"] == precision


def test_classes(tiny, pictures, explanation):
    explainer = explainer_of(tiny, engine="shared")
    top = explainer(pictures, methods="gradcam")
    assert [row["class"] for row in top.manifest["photographs"]] == top.logits.argmax(axis=1).tolist()
    for classes in (2, "2", [2], np.int64(2), [2, 2], np.array([2, 2]), ["2", 2]):
        maps = explainer(pictures, classes, "gradcam")
        assert [row["class"] for row in maps.manifest["photographs"]] == [2, 2]
        close(torch.tensor(maps["gradcam"][0]), torch.tensor(explanation["gradcam"][0]), FLOAT64)
    with pytest.raises(ClassError, match="class 10 does not exist: give 0 to 9"):
        explainer(pictures, classes=10)
    with pytest.raises(ClassError, match="3 classes for 2 photographs"):
        explainer(pictures, classes=[1, 2, 3])


def test_files_arrays_and_pillow_images_are_the_same(tiny, pictures, explanation, tmp_path):
    image = Image.fromarray(pictures[0])
    image.save(tmp_path / "a.png")
    maps = explainer_of(tiny)([pictures[0], image, tmp_path / "a.png"], classes=2, methods=["vanilla", "gradcam++"])
    for i in range(3):
        assert np.array_equal(maps.pixels[i], pictures[0])
        close(torch.tensor(maps["vanilla"][i]), torch.tensor(explanation["vanilla"][0]), FLOAT64)
    assert maps.manifest["photographs"][2]["name"] == "a.png"


def test_the_manifest_says_where_maps_come_from(explanation, tiny):
    manifest = json.loads(json.dumps(dict(explanation.manifest)))
    assert manifest["weights"] == {"source": "seeded:0", "remark": "random weights", "fingerprint": tiny.fingerprint}
    assert manifest["target_layer"] == TARGET_LAYER
    more = {"channels": None, "relu": True, "batch_size": "auto", "compile": False}
    assert manifest["settings"] == {"n_samples": 3, "noise_level": 0.2, "seed": 0, **more}
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(manifest["seconds"]) == {"photographs", "shared", "smoothgrad", *LIBRARY, "finish"}
    for i, row in enumerate(manifest["photographs"]):
        logits = torch.tensor(explanation.logits[i])
        assert (row["class"], row["label"]) == ([2, 7][i], f"class {[2, 7][i]}")
        assert row["probability"] == pytest.approx(float(logits.softmax(0)[row["class"]]))
        assert [top["class"] for top in row["top5"]] == logits.topk(5).indices.tolist()


def test_compute_gives_raw_maps_of_pixels(tiny, pictures, explanation):
    explainer, pixels = explainer_of(tiny, engine="shared"), np.stack(pictures)
    drawing = explainer.compute(pixels, [2, 7], REFERENCE, n_samples=3)
    for name in REFERENCE:
        finished = finish(drawing.raw[name], (64, 64)).to(torch.float64)
        close(finished, torch.from_numpy(explanation[name]), tolerance_of(name))
    assert explainer.compute(pixels, methods=[]).target.tolist() == drawing.logits.argmax(dim=1).tolist()
    for arguments, words in (
        ((pixels, [1, 10], "gradcam"), "class 10 does not exist"),
        ((pixels, [1, 2, 3], "gradcam"), "3 classes for 2 photographs"),
        ((pixels[:0], None, "gradcam"), "no photograph"),
        ((pixels / 255, None, "gradcam"), "uint8"),
        ((pixels, None, "gradcan"), "method 'gradcan' is unknown"),
    ):
        with pytest.raises(ValueError, match=words):
            explainer.compute(*arguments)


@every_engine
def test_progress_tells_each_pass(tiny, pictures, engine):
    told = []
    explainer = explainer_of(tiny, engine=engine, batch_size=2)
    explainer([*pictures, pictures[0]], 1, n_samples=3, progress=lambda *what: told.append(what))
    noisy = [("smoothgrad", done, 9) for done in (2, 4, 6, 8, 9)]
    if engine == "shared":
        assert told == [("shared", 2, 3), ("shared", 3, 3), *noisy]
    else:
        assert [row for row in told if row[0] == "vanilla"] == [("vanilla", 2, 3), ("vanilla", 3, 3)]
        assert {what for what, _, _ in told} == set(DEFAULT)


@every_engine
@torch.inference_mode()
def test_an_explainer_made_in_inference_mode(tiny, pictures, engine):
    maps = explainer_of(tiny, engine=engine)(pictures, 2, REFERENCE, n_samples=1)
    assert all(maps[name].max() > 0.9 for name in REFERENCE)


# Any classifier


def test_another_model_with_its_own_transform(pictures):
    torch.manual_seed(0)
    resnet = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5).train()
    resnet.fc.weight.grad = torch.ones_like(resnet.fc.weight)
    size = (32, 56)
    transform = torchvision.transforms.Compose([torchvision.transforms.Resize(size), torchvision.transforms.ToTensor()])
    before = copy.deepcopy(resnet.state_dict())
    maps = Explainer(resnet, target_layer=resnet.layer1, preprocess=transform)(pictures, [1, 4], REFERENCE, n_samples=2)
    assert all(torch.equal(before[key], value) for key, value in resnet.state_dict().items())  # batch statistics, too
    assert resnet.training
    assert resnet.fc.weight.grad.sum() == 5 * 512
    inputs = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
    for name in REFERENCE:
        raw = raw_maps(name, resnet, inputs, torch.tensor([1, 4]), target_layer="layer1", n_samples=2)
        close(torch.from_numpy(maps[name]), finish(raw, size), FLOAT32)
    assert maps.pixels.shape == (2, *size, 3)
    assert maps.manifest["weights"]["fingerprint"] is None
    assert (maps.manifest["target_layer"], maps.manifest["model"]) == ("layer1", "ResNet")


def test_a_model_handed_in_stays_where_it_is_and_what_it_is(model, pictures):
    """Another number format, or another device, is a copy's."""
    explainer = Explainer(model, TARGET_LAYER, preprocess="caffe", size=64, device="cpu", precision="fp32")
    assert explainer(pictures, 2, n_samples=1)["vanilla"].dtype == np.float32
    kept = next(model.parameters())
    assert (kept.dtype, kept.device) == (torch.float64, model.features[0].bias.device)
    assert Explainer(model, TARGET_LAYER).model is model


def replaced_weight(explainer):
    layer = explainer.model.features[0]
    layer.weight.data = -layer.weight.data


def written_weight(explainer):
    explainer.model.features[0].weight.neg_()


def hooked(explainer):
    explainer.model.features[0].register_forward_hook(lambda module, args, output: -output)


def unpooled(explainer):
    explainer.model.features[4].kernel_size = 1  # of 2: the corner of each four instead of the largest


def retyped(explainer):
    explainer.model.features[1].__class__ = nn.Identity


@every_engine
@pytest.mark.parametrize("change", [replaced_weight, written_weight, hooked, unpooled, retyped])
def test_what_has_changed_since_the_last_call_counts(tiny, pictures, engine, change):
    explainer, options = explainer_of(tiny, engine=engine), {"classes": 2, "methods": ("vanilla", "gradcam")}
    before = explainer(pictures[:2], **options)
    change(explainer)
    after, right = explainer(pictures[:2], **options), copy.deepcopy(explainer)(pictures[:2], **options)
    for name in before:
        assert np.array_equal(after[name], right[name])
        assert not np.array_equal(after[name], before[name])


def test_transforms_that_give_pictures_of_two_sizes(tiny, pictures):
    explainer = Explainer(explainer_of(tiny).model, TARGET_LAYER, preprocess=torchvision.transforms.ToTensor())
    with pytest.raises(ValueError, match="let it resize to one size"):
        explainer([pictures[0], pictures[1][:32]])


class Flat(nn.Module):
    """Its score falls with every feature: no positive evidence anywhere."""

    def __init__(self, factor):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 2, 1), factor
        nn.init.constant_(self.conv.weight, 0.01)  # positive activations everywhere, and not the same everywhere
        nn.init.constant_(self.conv.bias, 1.0)

    def forward(self, x):
        return self.factor * self.conv(x).relu().mean(dim=(2, 3))


def test_a_constant_map_is_drawn_and_said_to_be(pictures, tmp_path):
    maps = Explainer(Flat(-1), "conv", size=32)(pictures, classes=0, methods="gradcam,vanilla")
    assert [row["constant_maps"] for row in maps.manifest["photographs"]] == [["gradcam", "vanilla"]] * 2
    close(torch.tensor(maps["gradcam"]), torch.zeros(2, 32, 32), EXACT)
    assert any("no positive evidence" in axis.get_title() for axis in maps.figure("gradcam").axes)
    with pytest.raises(MapError, match=r"the logits of photograph 0, 1 .*not finite"):
        Explainer(Flat(float("nan")), "conv")(pictures, classes=0)


# Errors


def test_errors_name_what_is_wrong(tiny, pictures, explanation):
    explainer = explainer_of(tiny)
    for wrong, error, words in (
        (lambda: explainer(["absent.jpg"]), ImagesError, "no such file"),
        (lambda: explainer([]), ValueError, "no photograph"),
        (lambda: explainer("absent.jpg"), ImagesError, "no such file"),
        (lambda: explainer(pictures, methods=["gradcan"]), ValueError, r"'gradcan' is unknown; did you mean gradcam\?"),
        (lambda: explainer(pictures, methods=[]), ValueError, "no method"),
        (lambda: explainer(pictures, seed=-1), ValueError, "seed"),
        (lambda: explainer(pictures, n_samples=0), ValueError, "n_samples"),
        (lambda: explainer(pictures, methods="vanilla")["gradcam"], KeyError, "gradcam was not drawn"),
        (lambda: Explainer(explainer.model, preprocess="tf"), ValueError, "preprocessing 'tf' is unknown"),
        (lambda: Explainer(explainer.model, preprocess=5), ValueError, "preprocessing 5 is unknown"),
        (lambda: Explainer(explainer.model, labels="cat"), ValueError, 'give "imagenet", or a list with a label'),
        (lambda: Explainer(explainer.model, labels=np.array(["cat", "dog"])), ValueError, "or a list with a label"),
        (lambda: Explainer(explainer.model, outputs="odds"), ValueError, "outputs 'odds' is unknown; known: logits"),
        (lambda: explainer_of(tiny, resize="crop"), ValueError, "resize 'crop' is unknown"),
        (lambda: explainer_of(tiny, engine="fast"), ValueError, "engine 'fast' is unknown; known: library, shared"),
        (lambda: explainer_of(tiny, precision="tf32"), ValueError, "tf32 exists on CUDA"),
        (lambda: explainer_of(tiny, device="tpu"), DeviceError, "'tpu' is unknown"),
    ):
        with pytest.raises(error, match=words):
            wrong()


# Files


def test_save_writes_everything(tiny, pictures, tmp_path):
    drawn = explainer_of(tiny, engine="shared")(pictures, 2, "vanilla,gradcam")
    written = drawn.save(tmp_path / "a" / "out")
    names = ["vanilla.png", "gradcam.png", "overview.png", "maps.npz", "manifest.json"]
    assert [path.name for path in written] == names
    assert sorted(names) == sorted(os.listdir(tmp_path / "a" / "out"))
    with np.load(tmp_path / "a" / "out" / "maps.npz", allow_pickle=False) as file:
        assert set(file.files) == {"vanilla", "gradcam", "pixels"}
        assert all(np.array_equal(file[name], drawn[name]) for name in drawn.maps)
        assert np.array_equal(file["pixels"], drawn.pixels)
    manifest = json.loads((tmp_path / "a" / "out" / "manifest.json").read_text())
    assert (manifest["files"], manifest["colormap"]) == (names, "jet")


def test_a_full_disk_leaves_the_earlier_result(tiny, pictures, tmp_path, monkeypatch):
    maps = explainer_of(tiny)(pictures, 2, "gradcam")
    maps.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    for out in ("out", "new"):
        with pytest.raises(OSError, match="No space left"):
            maps.save(tmp_path / out)
    assert os.listdir(tmp_path) == ["out"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_figures_hold_hostile_names_and_make_pages(tiny, pictures, tmp_path):
    name = "$x^{ <b>&\n\x1b[31m" + "y" * 100 + ".png"
    Image.fromarray(pictures[0]).save(tmp_path / name)
    maps = explainer_of(tiny)([tmp_path / name] * 13, classes=2, methods="gradcam")
    names = {path.name for path in maps.save(tmp_path / "out")}
    assert {"overview.png", "overview-2.png"} <= names
    assert (tmp_path / "out" / "overview.png").stat().st_size > 5000


# The process


def test_the_process_is_left_as_it_was(tmp_path, monkeypatch):
    """By the import, the constructor and a call: environment, threads, switches, signals, warnings, generators."""
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    code = """
import os, random, signal, sys, warnings
import numpy as np, torch
from torch import nn

def state():
    numbers = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    switches = [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_default_dtype(),
                torch.backends.cuda.matmul.fp32_precision, torch.get_num_threads(), torch.is_grad_enabled()]
    process = [dict(os.environ), os.getcwd(), os.umask(18), signal.getsignal(signal.SIGTERM), list(warnings.filters)]
    os.umask(process[2])
    return [numbers, switches, process, sys.excepthook, sys.stdout]

model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
for engine in ("shared", "library"):
    if engine == "library":
        import captum.attr, pytorch_grad_cam  # what they do themselves is theirs
    before = state()
    from torch_impl import Explainer
    explainer = Explainer(model, "0", size=16, engine=engine)
    explainer([np.zeros((16, 16, 3), np.uint8) + np.arange(16, dtype=np.uint8)[:, None]], 1, n_samples=1)
    for was, now in zip(before, state(), strict=True):
        assert was == now, (engine, was, now)
"""
    result = run_program("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert os.listdir(tmp_path) == []
