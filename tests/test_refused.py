"""What cannot be explained is refused in one line that says the true reason and what to do; both captures say the same."""

from __future__ import annotations

import re

import jaxtyping
import numpy as np
import pytest
import torch
from anybodys import LAYER, Gives, Net, Wrapper, net, pictures
from test_any_model import TARGET, by_both
from torch import nn
from torch.utils.checkpoint import checkpoint

from parity.contract.classes import ClassError
from torch_impl import Explainer, methods
from torch_impl.capture.layout import LayerError
from torch_impl.capture.passes import MapError
from torch_impl.preserve import ModelError


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Without the checks of shapes and types that only the tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refused(kind, words, call):
    with pytest.raises(kind, match=re.escape(words)) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def photograph():
    return np.random.RandomState(0).randint(0, 255, (16, 16, 3), dtype=np.uint8)


# Models


def another(kind):
    return kind().double().eval()


def changed(**parts):
    model = net()
    for name, part in parts.items():
        setattr(model, name, part)
    return model.double()


def on_meta():
    with torch.device("meta"):
        return Net()


def lazy():
    return changed(fc=nn.LazyLinear(5))


def quantized():
    return torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear}, dtype=torch.qint8)


MODELS = {
    "a function": (lambda: lambda x: x, "the model is a function: give an nn.Module"),
    "a class": (lambda: Net, "the model is a function: give an nn.Module"),
    "weights": (lambda: net().state_dict(), "the model is OrderedDict: give an nn.Module"),
    "none": (lambda: None, "the model is NoneType: give an nn.Module"),
    "scripted": (lambda: torch.jit.script(net()), "the model is scripted or traced"),
    "traced": (lambda: torch.jit.trace(net(), pictures()), "the model is scripted or traced"),
    "a part scripted": (lambda: Wrapper(torch.jit.script(net())), "the model's part 'module' is scripted or traced"),
    "quantized": (
        quantized,
        "the model holds quantized layers (Linear), which have no gradients: give the float model",
    ),
    "lazy": (lazy, "the model has lazy layers without weights yet: run it once"),
    "on meta": (on_meta, "weights without values (on the meta device: not loaded yet, or offloaded)"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("model", MODELS)
def test_models(model):
    build, words = MODELS[model]
    given = build()
    refused(ModelError, words, lambda: methods.vanilla(given, pictures(), TARGET))
    refused(ModelError, words, lambda: methods.gradcam(given, pictures(), TARGET, target_layer=LAYER))
    refused(ModelError, words, lambda: Explainer(given, LAYER))


# Passes


class NoGrad(Net):
    def forward(self, x):
        with torch.no_grad():
            a = self.f(x)
        return self.fc(a.mean((2, 3)))


class Reentrant(Net):
    def forward(self, x):
        return self.fc(checkpoint(self.f, x, use_reentrant=True).mean((2, 3)))


class Twice(Net):
    def forward(self, x):
        a = self.f(x)
        return self.fc(self.f[3](a - 0.1).mean((2, 3)))


class Branches(Net):
    def __init__(self):
        super().__init__()
        self.unused, self.dead = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.two, self.flip = nn.ModuleList([nn.Identity()]), nn.Identity()

    def forward(self, x):
        self.dead(x)
        both = self.flip(torch.cat([x, x.flip(-1)]))
        return super().forward(both).view(2, len(x), -1).mean(0)


class Root(Net):
    def forward(self, x):
        return self.fc((self.f(x) * 0.0).sum((2, 3)).sqrt() + self.f(x).mean((2, 3)))


class Modifies(Net):
    def forward(self, x):
        return self.fc(self.f(x).sigmoid().mul_(2).add_(1).mean((2, 3)))


def own_statistics():
    model = net()
    model.f[1] = nn.BatchNorm2d(6, track_running_stats=False).double()
    return model


OFF = "the model switches gradients off (torch.no_grad, or reentrant checkpointing) where the target layer runs"
CUT = "no gradient of the logits reaches the inputs"

PASSES = {
    "no_grad, at the layer": (lambda: another(NoGrad), "gradcam", {}, LayerError, OFF),
    "no_grad, at the input": (lambda: another(NoGrad), "vanilla", {}, ModelError, CUT),
    "detached": (lambda: Gives(net(), torch.Tensor.detach), "vanilla", {}, ModelError, CUT),
    "reentrant, at the layer": (lambda: another(Reentrant), "gradcam", {}, LayerError, OFF),
    "reentrant, at the input": (lambda: another(Reentrant), "vanilla", {}, ModelError, "give it use_reentrant=False"),
    "runs twice": (lambda: another(Twice), "gradcam", {}, LayerError, "the target layer ran 2 times in one pass"),
    "unused": (
        lambda: another(Branches),
        "gradcam",
        {"target_layer": "unused"},
        LayerError,
        "the target layer ran 0 times in one pass",
    ),
    "dead end": (
        lambda: another(Branches),
        "gradcam",
        {"target_layer": "dead"},
        LayerError,
        "the target layer does not lie on the way to the logits",
    ),
    "two rows a photograph": (
        lambda: another(Branches),
        "gradcam",
        {"target_layer": "flip"},
        LayerError,
        "holds 4 of something for 2 photographs",
    ),
    "no maps": (net, "gradcam", {"target_layer": "fc"}, LayerError, "output is (2, 5); a class activation map needs"),
    "overwrites what a gradient needs": (
        lambda: another(Modifies),
        "vanilla",
        {},
        ModelError,
        "the model fails on inputs float64 (2, 3, 12, 16): one of the variables needed for gradient computation",
    ),
    "BatchNorm of the batch": (own_statistics, "vanilla", {}, ModelError, "by its neighbours (BatchNorm without"),
    "BatchNorm of the copies": (own_statistics, "smoothgrad", {"target": [1]}, ModelError, "give batch_size=1"),
    "one channel": (
        net,
        "vanilla",
        {"inputs": pictures()[:, :1]},
        ModelError,
        "the model fails on inputs float64 (2, 1, 12, 16): Given groups=1, weight of size [6, 3, 3, 3]",
    ),
    "another number format": (
        net,
        "vanilla",
        {"inputs": pictures().float()},
        ModelError,
        "the model fails on inputs float32 (2, 3, 12, 16) (its weights are float64)",
    ),
    "one input too many": (
        net,
        "vanilla",
        {"inputs": (pictures(), pictures())},
        ModelError,
        "the model fails with 2 inputs: Net.forward() takes 2 positional arguments but 3 were given",
    ),
    "no finite gradient": (lambda: another(Root), "vanilla", {}, MapError, "no finite gradient there (the root of 0"),
    "not finite": (net, "vanilla", {"inputs": pictures() / 0}, MapError, "the inputs hold NaN or infinity"),
}


@by_both
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", PASSES)
def test_passes(case, engine):
    build, name, options, kind, words = PASSES[case]
    options = {"inputs": pictures(), "target": TARGET, **({"target_layer": LAYER} if "cam" in name else {}), **options}
    inputs, target = options.pop("inputs"), options.pop("target")
    inputs = inputs[: len(target)]
    refused(kind, words, lambda: methods.raw_maps(name, build(), inputs, target, engine=engine, **options))


@by_both
def test_batch_norm_of_the_batch_one_by_one(engine):
    model, x = own_statistics(), pictures()
    both = methods.vanilla(model, x, TARGET, engine=engine, batch_size=1)
    assert torch.equal(both[1:], methods.vanilla(model, x[1:], TARGET[1], engine=engine))


# Outputs


OUTPUTS = {
    "two": (lambda y: (y, y), "a tuple of 2, not logits (N, classes): say with score="),
    "none": (lambda y: [], "a list of 0"),
    "None": (lambda y: None, "NoneType"),
    "text": (lambda y: "cat", "str"),
    "a dict": (lambda y: {"a": y, "b": y}, "a dict of a, b"),
    "boxes": (lambda y: [{"boxes": y}] * 2, "a list of 2"),
    "a picture of classes": (
        lambda y: y[:, :, None, None].expand(-1, -1, 4, 4),
        "has shape (2, 5, 4, 4) for 2 photographs",
    ),
    "one number": (lambda y: y.sum(), "has shape () for 2 photographs"),
    "transposed": (lambda y: y.T, "has shape (5, 2) for 2 photographs"),
    "no classes": (lambda y: y[:, :0], "has shape (2, 0)"),
    "class numbers": (lambda y: y.argmax(1), "torch.int64, not floating-point as logits are"),
    "complex": (lambda y: y + 0j, "torch.complex128, not floating-point as logits are"),
}


@by_both
@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs(output, engine):
    change, words = OUTPUTS[output]
    model = Gives(net(), change)
    for name, options in (("gradcam", {"target_layer": "module.f.3"}), ("vanilla", {})):
        refused(
            ModelError,
            words,
            lambda n=name, o=options: methods.raw_maps(n, model, pictures(), TARGET, engine=engine, **o),
        )
    refused(ModelError, "score= fails on the model's output: ", lambda: methods.vanilla(model, pictures(), score=3))


# Inputs, targets, settings


@pytest.mark.parametrize(
    "inputs",
    [
        pictures()[0],
        pictures()[None],
        pictures().permute(0, 2, 3, 1),
        pictures().byte(),
        pictures() + 0j,
        pictures()[:0],
        pictures()[:, :, :0],
        pictures().numpy(),
        [],
        None,
        "cat.jpg",
        (pictures(), 3),
        (pictures(), pictures()[:1]),
        (pictures(), np.zeros(2)),
    ],
    ids=lambda x: f"{type(x).__name__}{tuple(getattr(x, 'shape', ()))}",
)
def test_inputs(inputs):
    refused(ValueError, "give ", lambda: methods.vanilla(net(), inputs, TARGET))


@pytest.mark.parametrize(
    "target",
    [
        None,
        "1",
        1.0,
        True,
        [1.0, 2.0],
        [True, False],
        {1, 2},
        {1: 2},
        [[1], [2]],
        torch.tensor([[1], [2]]),
        [1],
        [1, 2, 3],
        [],
    ]
    + [-1, [-1, 0], 5, [0, 5], 10**30, [None, 1], np.array(["1", "2"]), torch.tensor([True, False]), object()],
    ids=lambda target: str(target)[:20],
)
def test_targets(target):
    refused(ClassError, "class", lambda: methods.gradcam(net(), pictures(), target, target_layer=LAYER))


@pytest.mark.parametrize(
    "classes",
    [5, -1, "cat", 1.0, True, [1, 2, 3], [[1], [2]], [[]], [], [None], {"a": 1}, [[1, "x"]], [[[1]]], object()],
    ids=str,
)
def test_classes(classes):
    refused(ClassError, "class", lambda: Explainer(net().float(), LAYER, size=16)([photograph()], classes, "gradcam"))


WRONG = {
    "engine": ({"engine": "x"}, "engine 'x' is unknown"),
    "labels": ({"labels": 5}, "labels 5: give"),
    "too few labels": ({"labels": ["a"]}, "1 labels for a network of 5 classes"),
    "array": ({"preprocess": lambda image: np.zeros((3, 8, 8))}, "preprocess gave ndarray"),
    "nothing": ({"preprocess": lambda image: None}, "preprocess gave NoneType"),
    "a batch": ({"preprocess": lambda image: torch.zeros(1, 3, 8, 8)}, "preprocess gave torch.float32 (1, 3, 8, 8)"),
    "integers": ({"preprocess": lambda image: torch.zeros(3, 8, 8).byte()}, "preprocess gave torch.uint8 (3, 8, 8)"),
    "channels last": ({"preprocess": lambda image: torch.zeros(8, 8, 3)}, "channels last"),
    "an error": (
        {"preprocess": lambda image: 1 / 0},
        "preprocess fails on 'array 1': ZeroDivisionError: division by zero",
    ),
    "NaN": ({"preprocess": lambda image: torch.full((3, 8, 8), torch.nan)}, "the inputs hold NaN"),
    "score": ({"score": lambda output: output.scores}, "score= fails on the model's output"),
    "scores": ({"score": lambda output: output}, "score= gave (1, 5) for 1 photographs"),
    "layout": (
        {"feature_layout": lambda maps: maps[99]},
        "feature_layout fails on the target layer's output (1, 7, 8, 8)",
    ),
    "batch size": ({"batch_size": 0}, 'batch size 0: give "auto"'),
    "layer of another model": ({"target_layer": net().f[3]}, "is not a module of this model"),
    "no such layer": ({"target_layer": "f.33"}, "the model has no layer 'f.33'; nearest: f.3"),
}


@pytest.mark.parametrize("setting", WRONG)
def test_settings(setting):
    options, words = WRONG[setting]
    options = {"target_layer": LAYER, "size": 16, **options}
    refused(
        (ValueError, MapError), words, lambda: Explainer(net().float(), **options)([photograph()], methods="gradcam")
    )


def test_the_whole_model_is_no_layer():
    model = net()
    refused(LayerError, "the target layer is the whole model", lambda: Explainer(model, model))


def test_a_model_of_two_inputs_is_for_the_functions():
    class Two(Net):
        def forward(self, x, age):
            return super().forward(x)

    refused(
        ModelError, "torch_impl.methods take a tuple", lambda: Explainer(Two().eval(), LAYER, size=16)([photograph()])
    )
