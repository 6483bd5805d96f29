"""The shared engine against the library engine, on paper where that is possible, and by counting what it runs."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from conftest import close, run_program
from tolerances import FLOAT32, FLOAT64, FLOAT64_ALPHA
from torch import nn

from torch_impl import Explainer, images, saliency, shared_pass
from torch_impl.batching import AutoSize
from torch_impl.cam import LayerError
from torch_impl.methods import MapError, Settings, raw_maps
from torch_impl.names import REFERENCE_METHODS, canonical_name
from torch_impl.preprocess import preprocess
from torch_impl.shared_pass import shared_pass as draw
from torch_impl.vgg16 import TARGET_LAYER, build

SUBSETS = [s for k in range(1, 5) for s in itertools.combinations(REFERENCE_METHODS, k)]
TOLERANCE = dict.fromkeys(REFERENCE_METHODS, FLOAT64) | {"gradcam_plus_plus": FLOAT64_ALPHA}


def settings(**changed):
    return Settings(**{"target_layer": TARGET_LAYER, "n_samples": 3, "seed": 2, **changed})


@pytest.mark.parametrize("methods", SUBSETS, ids=",".join)
def test_every_set_of_maps_is_the_library_engines(model, inputs, target, methods):
    found = draw(model, inputs, target, methods, settings())
    assert list(found.raw) == list(methods)
    for name in methods:
        close(found.raw[name], raw_maps(name, model, inputs, target, settings()), TOLERANCE[name])
    with torch.no_grad():
        close(found.logits, model(inputs), FLOAT64)
    assert found.target.tolist() == target.tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 5, "auto", AutoSize(2)])
def test_the_batch_size_does_not_matter(model, inputs, target, batch_size):
    expected = draw(model, inputs, target, REFERENCE_METHODS, settings(batch_size=3))
    found = draw(model, inputs, target, REFERENCE_METHODS, settings(batch_size=batch_size))
    close(found.logits, expected.logits, FLOAT64)
    for name in REFERENCE_METHODS:
        close(found.raw[name], expected.raw[name], TOLERANCE[name])


def test_channels_last_does_not_matter(model, inputs, target):
    expected = draw(model, inputs, target, REFERENCE_METHODS, settings())
    found = draw(
        model.to(memory_format=torch.channels_last),
        inputs.contiguous(memory_format=torch.channels_last),
        target,
        REFERENCE_METHODS,
        settings(),
    )
    for name in REFERENCE_METHODS:
        close(found.raw[name], expected.raw[name], TOLERANCE[name])


def test_without_classes_each_image_explains_its_top_one(model, inputs):
    with torch.no_grad():
        top = model(inputs).argmax(dim=1)
    found = draw(model, inputs, None, "vanilla", settings())
    assert found.target.tolist() == top.tolist()
    close(found.raw["vanilla"], saliency.vanilla_saliency(model, inputs, top), FLOAT64)


def test_no_method_gives_the_logits(model, inputs):
    found = draw(model, inputs, None, [], settings())
    assert not found.raw
    with torch.no_grad():
        close(found.logits, model(inputs), FLOAT64)


class Work:
    """Counts forward passes of the whole network, backward passes, and convolutions that a backward pass reaches."""

    def __init__(self, model, monkeypatch):
        self.forward = self.backward = 0
        self.reached = set()
        model.register_forward_hook(self._run)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, output, name=name: self._watch(output, name))
        grad = torch.autograd.grad

        def counted(*args, **kwargs):
            self.backward += 1
            return grad(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", counted)

    def _run(self, *_):
        self.forward += 1

    def _watch(self, output, name):
        if output.requires_grad:
            output.register_hook(lambda _: self.reached.add(name))


@pytest.mark.parametrize("methods", SUBSETS, ids=",".join)
def test_the_fewest_passes(model, inputs, target, methods, monkeypatch):
    work = Work(model, monkeypatch)
    draw(model, inputs, target, methods, settings(batch_size=100))
    noisy = "smoothgrad" in methods
    alone = methods == ("smoothgrad",)
    assert work.forward == 1 + noisy  # one for everything, and the noisy copies in one batch
    assert work.backward == 1 - alone + noisy
    if "vanilla" not in methods and not noisy:
        assert work.reached == set()  # the CAMs' gradient ends at their layer


def test_no_parameter_has_a_gradient(model, inputs, target):
    model.requires_grad_(True)
    seen = []
    model.features[0].register_forward_hook(lambda module, *_: seen.append(module.weight.requires_grad))
    draw(model, inputs, target, REFERENCE_METHODS, settings())
    assert not any(seen)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_layer_that_is_overwritten_in_place(model, inputs, target):
    """features.28 is the convolution whose output the next ReLU overwrites."""
    assert model.features[29].inplace
    at = settings(target_layer="features.28")
    for methods in (["gradcam", "gradcam++"], ["vanilla", "gradcam", "gradcam++"]):
        found = draw(model, inputs, target, methods, at)
        for name in ("gradcam", "gradcam_plus_plus"):
            close(found.raw[name], raw_maps(name, model, inputs, target, at), TOLERANCE[name])


class Toy(nn.Module):
    """A 2×2 picture of two channels; A = relu(2·x); logits: Σ(A₀ − A₁) and Σ A₀·A₁."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1, bias=False)
        self.layer.weight = nn.Parameter(2 * torch.eye(2)[:, :, None, None])
        self.relu = nn.ReLU()
        self.aside = nn.Identity()

    def forward(self, x):
        a = self.relu(self.layer(x))
        self.aside(a.detach())
        return torch.stack([(a[:, 0] - a[:, 1]).sum((1, 2)), (a[:, 0] * a[:, 1]).sum((1, 2))], 1)


def test_on_paper(device):
    x = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]], [[2.0, 1.0], [0.0, 0.0]]]], device=device, dtype=torch.float64)
    found = draw(
        Toy().to(device).double(),
        x,
        torch.tensor([1], device=device),
        REFERENCE_METHODS[::2],
        settings(target_layer="relu"),
    )
    # A = ((2, 0, 6, 0), (4, 2, 0, 0)), G = (A₁, A₀), means (6/4, 8/4): 3/2·A₀ + 2·A₁ = (11, 4, 9, 0).
    assert found.raw["gradcam"][0].flatten().tolist() == [11, 4, 9, 0]
    # ∂/∂x = 2·G where x > 0, else 0: 2·(4, –, 0, –) and 2·(2, 0, –, –), the larger one at each place.
    assert found.raw["vanilla"][0].flatten().tolist() == [8, 0, 0, 0]
    assert found.logits.tolist() == [[2, 8]]


# What cannot be done


def test_stock_maps_are_not_its_own(model, inputs, target):
    with pytest.raises(ValueError, match=r"does not draw smoothgrad@captum.*use engine library"):
        draw(model, inputs, target, ["vanilla", "smoothgrad@captum"], settings())


@pytest.mark.parametrize("methods", [["gradcam"], ["vanilla", "gradcam"]])
def test_layers_that_carry_no_map(model, inputs, target, methods):
    x, one = torch.rand(1, 2, 2, 2, dtype=torch.float64, device=inputs.device), target[:1] * 0
    toy = Toy().to(inputs.device).double()
    with pytest.raises(LayerError, match="does not lie on the way"):
        draw(toy, x, one, methods, settings(target_layer="aside"))
    with pytest.raises(LayerError, match=r"needs \(N, K, h, w\)"):
        draw(model, inputs, target, methods, settings(target_layer="classifier.0"))
    with pytest.raises(LayerError, match=r"no layer 'features\.99'"):
        draw(model, inputs, target, methods, settings(target_layer="features.99"))
    twice = nn.Sequential(toy.relu, toy.relu, nn.Flatten())
    with pytest.raises(LayerError, match="ran 2 times"):
        draw(twice, x, one, methods, settings(target_layer="0"))
    never = nn.Sequential(nn.Flatten())
    never.unused = nn.Conv2d(2, 2, 1)
    never.forward = lambda x: x.flatten(1)
    with pytest.raises(LayerError, match="ran 0 times"):
        draw(never, x, one, methods, settings(target_layer="unused"))


def test_values_that_are_not_finite_are_refused(model, inputs, target):
    inputs[1, 0, 3, 3] = float("nan")
    with pytest.raises(MapError, match="logits are not finite"):
        draw(model, inputs, target, ["vanilla"], settings())


def test_hooks_are_gone_after_an_error(model, inputs, target):
    before = [(len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()]
    model.train()
    handle = model.classifier[6].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(model, inputs, target, REFERENCE_METHODS, settings())
    handle.remove()
    assert [(len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()] == before
    assert model.training


def test_memory_that_runs_out_is_survived(model, inputs, target, monkeypatch):
    """The first pass and the noisy copies: every batch above 1 fails, after part of its work is done."""
    expected = draw(model, inputs, target, REFERENCE_METHODS, settings(batch_size=1))
    grad = torch.autograd.grad

    def tight(outputs, wanted, **kwargs):
        first = wanted[0] if isinstance(wanted, list) else wanted
        if len(first) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad(outputs, wanted, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", tight)
    found = draw(model, inputs, target, REFERENCE_METHODS, settings(batch_size=AutoSize(4)))
    for name in REFERENCE_METHODS:
        close(found.raw[name], expected.raw[name], TOLERANCE[name])


def test_float16_keeps_small_gradients(tiny, inputs, target, device, monkeypatch):
    """Gradients of 1e-8 are below float16's smallest number; scaling the score keeps them."""
    narrow = build(tiny)
    narrow.classifier[6].weight = nn.Parameter(narrow.classifier[6].weight * 5e-6)
    narrow = narrow.to(device, torch.float16)
    wide = copy.deepcopy(narrow).double()
    expected = draw(wide, inputs.half().double(), target, REFERENCE_METHODS, settings())
    found = draw(narrow, inputs.half(), target, REFERENCE_METHODS, settings())
    likeness = {}
    for name in REFERENCE_METHODS:
        assert found.raw[name].dtype == torch.float32
        pair = torch.stack([found.raw[name].double().flatten(), expected.raw[name].flatten()])
        likeness[name] = torch.corrcoef(pair)[0, 1]
        # As in `saliency`'s test: the ReLUs' own switching in float16 is allowed for, and nearly nothing is left without.
        assert likeness[name] > 0.95, name
        assert 0.9 < pair[0].norm() / pair[1].norm() < 1.1, name  # and the scale is taken out again
    monkeypatch.setattr("torch_impl.shared_pass.score_scale", lambda dtype: 1.0)
    lost = draw(narrow, inputs.half(), target, ["vanilla"], settings()).raw["vanilla"].double()
    assert not torch.corrcoef(torch.stack([lost.flatten(), expected.raw["vanilla"].flatten()]))[0, 1] > 0.7


@pytest.mark.parametrize("engine", ["library", "shared"])
def test_a_network_that_works_in_place_leaves_the_inputs_alone(model, inputs, target, engine):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x.sub_(0.5))

    before = inputs.clone()
    cams = ["gradcam", "gradcam_plus_plus"]
    drawn = settings(target_layer=f"inner.{TARGET_LAYER}", batch_size=2)
    for _ in range(2):
        if engine == "shared":
            draw(InPlace(), inputs, target, cams, drawn)
            draw(InPlace(), inputs, None, [], drawn)
        else:
            for name in cams:
                raw_maps(name, InPlace(), inputs, target, drawn)
    assert torch.equal(inputs, before)


def test_logits_that_do_not_depend_on_the_picture(inputs, target):
    class Deaf(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 9, dtype=x.dtype, device=x.device, requires_grad=True) * 2

    with pytest.raises(ValueError, match="do not depend on its inputs"):
        draw(Deaf(), inputs, target, ["vanilla"], settings())


# The explainer


@pytest.fixture(scope="module")
def photographs():
    return images.load_all(images.defaults()[:3], size=64)[0]


@pytest.mark.parametrize("classes", [None, [2, 7, 5], 3])
def test_the_explainers_engines_draw_the_same(tiny, photographs, classes):
    library, shared = (Explainer.vgg16(tiny, device="cpu", precision="fp64", engine=e) for e in ("library", "shared"))
    expected = library(photographs, classes, n_samples=2)
    found = shared(photographs, classes, n_samples=2)
    for name in REFERENCE_METHODS:
        close(torch.tensor(found[name]), torch.tensor(expected[name]), TOLERANCE[name])
    assert np.allclose(found.logits, expected.logits, rtol=FLOAT64)
    assert found.manifest["engine"] == "shared"
    for key in ("class", "label", "constant_maps", "sha256"):
        assert [p[key] for p in found.manifest["photographs"]] == [p[key] for p in expected.manifest["photographs"]]


def test_the_libraries_own_maps_beside_shared_ones(tiny, photographs):
    names = ["gradcam", "gradcam@pytorch-grad-cam", "smoothgrad@captum"]
    shared = Explainer.vgg16(tiny, device="cpu", engine="shared")(photographs, 3, names, n_samples=2)
    library = Explainer.vgg16(tiny, device="cpu")(photographs, 3, names, n_samples=2)
    assert list(shared.maps) == [canonical_name(name) for name in names]
    for name in names:
        close(torch.tensor(shared[name]), torch.tensor(library[name]), FLOAT32)


def test_a_class_that_does_not_exist(tiny, photographs):
    from parity.contract.classes import ClassError

    for engine in ("library", "shared"):
        with pytest.raises(ClassError, match="class 10 does not exist: give 0 to 9"):
            Explainer.vgg16(tiny, device="cpu", engine=engine)(photographs, 10, "gradcam")
        with pytest.raises(ClassError, match="class 99 does not exist"):
            model = build(tiny)
            Explainer(model, TARGET_LAYER, preprocess="caffe", size=64, engine=engine)(photographs, 99, "gradcam")


def test_unknown_engine(tiny):
    with pytest.raises(ValueError, match="engine 'fast' is unknown; known: library, shared"):
        Explainer.vgg16(tiny, engine="fast")


def test_compute_gives_raw_maps_of_pixels(tiny, photographs):
    explainer = Explainer.vgg16(tiny, device="cpu", precision="fp64")
    pixels = np.stack([p.pixels for p in photographs])
    found = explainer.compute(pixels, [2, 7, 5], ["gradcam", "vanilla"], n_samples=2)
    inputs = preprocess(pixels, dtype=torch.float64)
    for name in ("gradcam", "vanilla"):
        expected = raw_maps(name, explainer.model, inputs, torch.tensor([2, 7, 5]), settings())
        close(found.raw[name], expected, FLOAT64)
    assert explainer.compute(pixels, methods=[]).target.tolist() == found.logits.argmax(dim=1).tolist()


def test_compute_refuses_what_it_cannot_do(tiny, photographs):
    from parity.contract.classes import ClassError

    explainer = Explainer.vgg16(tiny, device="cpu")
    pixels = np.stack([p.pixels for p in photographs])
    with pytest.raises(ClassError, match="class 10 does not exist"):
        explainer.compute(pixels, [1, 10, 2], "gradcam")
    with pytest.raises(ClassError, match="2 classes for 3 photographs"):
        explainer.compute(pixels, [1, 2], "gradcam")
    with pytest.raises(ValueError, match="no photograph"):
        explainer.compute(pixels[:0], None, "gradcam")


@torch.inference_mode()
def test_an_explainer_made_in_inference_mode(tiny, photographs):
    for engine in ("library", "shared"):
        maps = Explainer.vgg16(tiny, device="cpu", engine=engine)(photographs, 2, ["vanilla", "gradcam"])
        assert maps["vanilla"].max() > 0.9


def test_progress_tells_each_pass(tiny, photographs):
    told = []
    explainer = Explainer.vgg16(tiny, device="cpu", engine="shared", batch_size=2)
    explainer(photographs, 1, n_samples=3, progress=lambda *what: told.append(what))
    assert told == [("shared", 2, 3), ("shared", 3, 3)] + [("smoothgrad", n, 9) for n in (2, 4, 6, 8, 9)]


@pytest.mark.parametrize("given", [None, "0"])
def test_large_pages_are_asked_for_and_a_users_choice_is_kept(tmp_path, given, monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    code = "import os, torch_impl; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    environment = {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    assert run_program("-c", code, cwd=tmp_path, **environment).stdout.strip() == (given or "1")


def test_neither_library_is_imported(tmp_path):
    """They take seconds to import, and the shared engine draws without them."""
    code = (
        "import sys, numpy as np; from parity.contract.architecture import TINY; from parity.contract.network import seeded;"
        "from torch_impl import Explainer; e = Explainer.vgg16(seeded(0, TINY), device='cpu', engine='shared');"
        "e([np.zeros((64, 64, 3), np.uint8)], 1, n_samples=1);"
        "print([m for m in ('captum', 'pytorch_grad_cam', 'sklearn', 'cv2') if m in sys.modules])"
    )
    assert run_program("-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_the_module_is_shape_checked():
    """conftest checks every jaxtyping signature of these modules; a wrong shape must not pass."""
    with pytest.raises(Exception, match="Type-check error"):
        shared_pass.absolute_gradients(Toy(), torch.zeros(2, 2), torch.tensor([0]))
