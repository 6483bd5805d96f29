"""Each map as a function of tensors, by its row of the table; and the libraries' own maps, untouched."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from captum.attr import NoiseTunnel, Saliency
from conftest import TARGET_LAYER, close, drawn, every_engine, every_map, tolerance_of
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tolerances import EXACT, FLOAT64, NORMALIZE

from parity.contract.methods import LIBRARY, METHODS, REFERENCE, Options, canonical_name, canonical_names, in_order
from torch_impl import Explainer, methods
from torch_impl.maps.registry import DRAWN
from torch_impl.methods import finish, raw_maps
from torch_impl.stock import CLASSES, NARROW, check_narrow


def own(name):
    """The keywords that a map's function needs or takes."""
    row = METHODS[name]
    return {"target_layer": TARGET_LAYER} if row.at_layer else {"n_samples": 2} if row.noisy else {}


@pytest.mark.parametrize("name", [name for name in REFERENCE if name != "scorecam"])
def test_the_function_of_a_map(model, inputs, target, name):
    function = getattr(methods, name)
    maps = function(model, inputs, target, **own(name), batch_size=2)
    close(maps, finish(drawn(name, model, inputs, target, engine="shared"), (64, 64)), tolerance_of(name))
    assert (maps.amin(), maps.dtype) == (0, torch.float64)
    assert 0.9 < maps.amax() < 1


@every_map
def test_its_signature_and_its_words(name):
    function, row = getattr(methods, name), METHODS[name]
    parameters = inspect.signature(function).parameters
    at_layer, noisy = ["target_layer", "feature_layout", "relu"], ["n_samples", "noise_level", "seed"]
    expected = [*at_layer * row.at_layer, *noisy * row.noisy, *row.options, "score", "batch_size", "engine"]
    assert list(parameters) == ["model", "inputs", "target", *expected]
    for option, value in vars(Options()).items():
        assert option not in parameters or parameters[option].default == value
    assert function.__name__ == name in dir(methods)
    assert function.__doc__.startswith(row.title)
    assert "Source: " in function.__doc__
    assert "Matches: tf-keras-vis" in function.__doc__


@every_map
def test_keywords_that_do_not_belong_to_a_map(model, inputs, target, name):
    function = getattr(methods, name)
    unknown = "n_samples" if METHODS[name].at_layer else "target_layer"
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument '{unknown}'"):
        function(model, inputs, target, **{**own(name), unknown: 1})
    if METHODS[name].at_layer:
        with pytest.raises(TypeError, match="needs target_layer"):
            function(model, inputs, target)
    with pytest.raises(AttributeError, match="no attribute 'gradcan'"):
        methods.gradcan  # noqa: B018


@every_engine
@pytest.mark.parametrize("name", ["vanilla", "smoothgrad", "gradcam"])  # those that are linear in the score
def test_scaling_the_score_moves_a_finished_map_by_normalizes_constant_at_most(model, inputs, target, name, engine):
    before = drawn(name, model, inputs, target, engine=engine)
    for parameter in model.classifier[6].parameters():
        parameter.data *= 5
    after = drawn(name, model, inputs, target, engine=engine)
    close(after, 5 * before, FLOAT64)
    smallest = (before.amax(dim=(1, 2)) - before.amin(dim=(1, 2))).min()
    assert (finish(after, (64, 64)) - finish(before, (64, 64))).abs().max() <= NORMALIZE / smallest


@pytest.mark.parametrize(
    "wrong", [{"n_samples": 0}, {"noise_level": -0.1}, {"noise_level": float("nan")}, {"seed": -1}]
)
def test_settings_out_of_range(model, inputs, target, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        raw_maps("smoothgrad", model, inputs, target, **wrong)


# The libraries' own maps


@pytest.mark.parametrize("name", CLASSES)
def test_stock_cams_are_the_librarys_own_and_not_ours(model, inputs, target, name):
    raw = drawn(f"{name}@pytorch-grad-cam", model, inputs, target)
    ours = finish(drawn(name, model, inputs, target), (64, 64))
    assert (raw.to(ours) - ours).abs().max() > 1e-2
    model.requires_grad_(True)
    engine = getattr(pytorch_grad_cam, CLASSES[name])(model=model, target_layers=[model.features[29]])
    targets = [ClassifierOutputTarget(category) for category in target.tolist()]
    expected = engine(input_tensor=inputs.clone().requires_grad_(), targets=targets)
    close(raw.cpu(), torch.from_numpy(expected), EXACT)


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_stock_smoothgrad_is_captums_own(model, inputs, target, batch_size):
    rows = []
    for i in range(3):
        torch.manual_seed(3)
        options = {"nt_type": "smoothgrad", "nt_samples": 3, "nt_samples_batch_size": 1, "stdevs": 0.2}
        leaf = inputs[i : i + 1].clone().requires_grad_()
        rows.append(NoiseTunnel(Saliency(model)).attribute(leaf, target=target[i : i + 1], **options).amax(dim=1))
    options = {"n_samples": 3, "noise_level": 0.2, "seed": 3, "batch_size": batch_size}
    close(drawn("smoothgrad@captum", model, inputs, target, **options), torch.cat(rows), FLOAT64)


@pytest.mark.parametrize("name", LIBRARY)
def test_stock_maps_stay_in_range_and_need_wide_numbers(tiny, model, inputs, target, name):
    raw = drawn(name, model, inputs, target)
    assert (raw >= 0).all()
    assert finish(raw, (64, 64)).shape == (3, 64, 64)
    for precision in NARROW:
        words = f"{name} is the library's own call, which does not work in {precision}: give precision fp32"
        with pytest.raises(ValueError, match=words):
            check_narrow(["vanilla", name], precision)
        with pytest.raises(ValueError, match=words):
            Explainer.vgg16(tiny, device="cpu", precision=precision)([np.zeros((64, 64, 3), np.uint8)], 1, name)
    check_narrow(LIBRARY, "fp32")
    check_narrow(REFERENCE, "bf16")


# The table


def test_every_row_is_drawn():
    assert set(DRAWN) == set(METHODS) == {*REFERENCE, *LIBRARY}


def test_names():
    assert canonical_name(" GradCAM++ ") == "gradcam_plus_plus"
    assert canonical_name("gradcam++@pytorch-grad-cam") == "gradcam_plus_plus@pytorch-grad-cam"
    assert canonical_names("gradcam++, vanilla,gradcam_plus_plus") == ("gradcam_plus_plus", "vanilla")
    assert in_order(reversed(REFERENCE)) == REFERENCE
    for row in METHODS.values():
        assert {canonical_name(spelling) for spelling in (row.name, *row.aliases)} == {row.name}
    with pytest.raises(ValueError, match=r"'smothgrad' is unknown; did you mean smoothgrad\? \(known: vanilla, "):
        canonical_name("smothgrad")
    with pytest.raises(ValueError, match="unknown"):
        canonical_name("smoothgrad@captum", among=REFERENCE)
    for nothing in ([], ""):
        with pytest.raises(ValueError, match="method"):
            canonical_names(nothing)
