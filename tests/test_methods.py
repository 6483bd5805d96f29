"""Each map as a function of tensors, the libraries' own maps, and the figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from conftest import close
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tolerances import FLOAT64, NORMALIZE
from torch_impl.vgg16 import TARGET_LAYER

from torch_impl import figure, methods
from torch_impl.figure import ColormapError, checked_colormap, method_figure, overview_figures
from torch_impl.methods import METHODS, MapError, Settings, finish, raw_maps
from torch_impl.names import STOCK_METHODS, canonical_name, is_cam


def test_every_method_stays_in_range(model, inputs, target):
    for name in METHODS:
        raw = raw_maps(name, model, inputs, target, Settings(target_layer=TARGET_LAYER, n_samples=2))
        assert raw.shape[0] == 3
        assert (raw >= 0).all()
        drawn = finish(raw, (64, 64))
        assert drawn.shape == (3, 64, 64)
        assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_scaling_the_score_changes_the_finished_maps_by_normalizes_constant_at_most(model, inputs, target):
    before = {
        "vanilla": methods.vanilla(model, inputs, target),
        "smoothgrad": methods.smoothgrad(model, inputs, target, n_samples=2),
        "gradcam": methods.gradcam(model, inputs, target, target_layer=TARGET_LAYER),
    }
    smallest = min(
        float((m.amax(dim=(1, 2)) - m.amin(dim=(1, 2))).min())
        for m in (
            raw_maps(name, model, inputs, target, Settings(target_layer=TARGET_LAYER, n_samples=2)) for name in before
        )
    )
    for parameter in model.classifier[6].parameters():
        parameter.data *= 5
    after = {
        "vanilla": methods.vanilla(model, inputs, target),
        "smoothgrad": methods.smoothgrad(model, inputs, target, n_samples=2),
        "gradcam": methods.gradcam(model, inputs, target, target_layer=TARGET_LAYER),
    }
    for name in before:
        assert (after[name] - before[name]).abs().max() <= NORMALIZE / smallest


@pytest.mark.parametrize(("name", "engine"), [("gradcam", GradCAM), ("gradcam++", GradCAMPlusPlus)])
def test_stock_cams_are_the_librarys_own(model, inputs, target, name, engine):
    x = inputs.clone().requires_grad_()
    model.requires_grad_(True)
    expected = engine(model=model, target_layers=[model.features[29]])(
        input_tensor=x, targets=[ClassifierOutputTarget(int(c)) for c in target]
    )
    drawn = raw_maps(f"{name}@pytorch-grad-cam", model, inputs, target, Settings(target_layer=TARGET_LAYER))
    assert np.allclose(drawn.cpu().numpy(), expected, atol=1e-6)


def test_stock_smoothgrad_is_captums_own(model, inputs, target):
    torch.manual_seed(3)
    x = inputs.clone().requires_grad_()
    expected = NoiseTunnel(Saliency(model)).attribute(
        x, nt_type="smoothgrad", nt_samples=3, nt_samples_batch_size=1, stdevs=0.2, target=target
    )
    settings = Settings(n_samples=3, noise_level=0.2, seed=3)
    close(raw_maps("smoothgrad@captum", model, inputs, target, settings), expected.amax(dim=1), FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", STOCK_METHODS)
def test_stock_maps_of_narrow_tensors_are_refused(model, inputs, target, name, dtype):
    with pytest.raises(ValueError, match=r"does not work in .*16: give precision fp32"):
        raw_maps(name, model.to(dtype), inputs.to(dtype), target, Settings(target_layer=TARGET_LAYER))


def test_stock_and_port_are_different_maps(model, inputs, target):
    settings = Settings(target_layer=TARGET_LAYER, n_samples=2)
    for name in ("gradcam", "gradcam_plus_plus"):
        ours = finish(raw_maps(name, model, inputs, target, settings), (64, 64))
        theirs = finish(raw_maps(f"{name}@pytorch-grad-cam", model, inputs, target, settings), (64, 64))
        assert (ours - theirs.to(ours)).abs().max() > 1e-2


def test_not_finite_is_refused_and_named(model, inputs, target, monkeypatch):
    raw = torch.ones(3, 4, 4)
    raw[1, 2, 2] = float("inf")
    monkeypatch.setitem(METHODS, "vanilla", lambda *_: raw)
    with pytest.raises(MapError, match=r"photograph 1 \(counted from 0\)"):
        raw_maps("vanilla", model, inputs, target, Settings())


def test_finish_of_float16_is_float32():
    assert finish(torch.ones(1, 2, 2, dtype=torch.float16), (4, 4)).dtype == torch.float32


def test_names():
    assert canonical_name(" GradCAM++ ") == "gradcam_plus_plus"
    assert canonical_name("gradcam++@pytorch-grad-cam") == "gradcam_plus_plus@pytorch-grad-cam"
    assert [is_cam(n) for n in ("vanilla", "gradcam", "smoothgrad@captum")] == [False, True, False]
    with pytest.raises(ValueError, match="did you mean smoothgrad"):
        canonical_name("smothgrad")


# Figures


def pixels_and_maps(n):
    generator = np.random.RandomState(0)
    return generator.randint(0, 256, (n, 8, 8, 3), dtype=np.uint8), generator.uniform(0, 1, (n, 8, 8))


def test_saliency_stands_alone_and_a_cam_lies_over_its_photograph():
    pixels, maps = pixels_and_maps(3)
    for method, pictures in {"vanilla": 1, "gradcam": 2}.items():
        drawn = method_figure(method, pixels, maps, ["a", "b", "c"])
        axes = [axis for axis in drawn.axes if axis.images]
        assert len(axes) == 3
        for i, axis in enumerate(axes):
            assert len(axis.images) == pictures
            shown = axis.images[-1]
            assert np.array_equal(shown.get_array(), maps[i])
            assert shown.get_clim() == (0, 1)
            assert shown.get_cmap().name == "jet"
            assert shown.get_alpha() == (0.5 if method == "gradcam" else None)


def test_the_overview_has_a_row_for_each_photograph():
    pixels, maps = pixels_and_maps(2)
    (page,) = overview_figures(pixels, {"vanilla": maps, "gradcam": maps}, ["one 0.5", "two $x$"], colormap="cividis")
    assert len(page.axes) == 6
    assert [axis.get_title() for axis in page.axes[::3]] == ["one 0.5", "two $x$"]
    assert page.axes[1].images[0].get_cmap().name == "cividis"
    assert len(overview_figures(*(x[[0] * 30] for x in (pixels,)), {"vanilla": maps[[0] * 30]}, ["x"] * 30)) == 3


def test_unknown_colormap():
    assert checked_colormap("viridis") == "viridis"
    with pytest.raises(ColormapError, match=r"'jett'.*cividis"):
        checked_colormap("jett")


def test_nothing_is_shown():
    import inspect

    source = inspect.getsource(figure)
    assert "pyplot" not in source
