"""Any classifier, in whatever form: the maps are those of plain autograd, by both captures."""

from __future__ import annotations

import functools

import plain
import pytest
import torch
from anybodys import FORMS, LAYER, net, pictures
from conftest import close
from tolerances import FLOAT64

from torch_impl import Explainer, methods
from torch_impl.capture import ENGINES
from torch_impl.capture.target_layer import find_layer

TARGET = [1, 3]
by_both = pytest.mark.parametrize("engine", ENGINES)


def chosen(y, row=None):
    return y[:, TARGET[row]] if row is not None else y[range(len(y)), TARGET[: len(y)]]


@functools.cache
def expected():
    model, x = net(), pictures()
    a, g, slope = plain.captured(model, model.f[3], x, chosen)
    return {
        "gradcam": plain.gradcam(a, g).relu(),
        "vanilla": plain.vanilla(slope),
        "smoothgrad": plain.smoothgrad(model, x, chosen, 2, 0.2, 0),
    }


def layer_of(model):
    """The last layer of the features, by whatever name."""
    return next(name for name, _ in model.named_modules(remove_duplicate=False) if name.endswith(LAYER))


def check(model, engine, names=("gradcam", "vanilla", "smoothgrad"), inputs=None):
    for name in names:
        options = {"target_layer": layer_of(model)} if name == "gradcam" else {}
        options |= {"n_samples": 2} if name == "smoothgrad" else {}
        x = pictures() if inputs is None else inputs
        close(methods.raw_maps(name, model, x, TARGET, engine=engine, **options), expected()[name], FLOAT64)


@by_both
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_network_has_its_maps(form, engine):
    check(FORMS[form](net()), engine)
