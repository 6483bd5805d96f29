"""What cannot be explained is refused in one line that says the true reason and what to do; both captures say the same."""

from __future__ import annotations

import re

import jaxtyping
import numpy as np
import pytest
import torch
from anybodys import LAYER, Gives, Net, Wrapper, net, pictures
from conftest import every_engine
from test_any_model import TARGET, photograph
from torch import nn
from torch.utils.checkpoint import checkpoint

from parity.contract.classes import ClassError
from parity.contract.methods import REFERENCE
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


def refused(kind, words, call, *args, **options):
    with pytest.raises(kind, match=re.escape(words)) as caught:
        call(*args, **options)
    assert len(str(caught.value).splitlines()) == 1


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
    refused(ModelError, words, methods.vanilla, given, pictures(), TARGET)
    refused(ModelError, words, methods.gradcam, given, pictures(), TARGET, target_layer=LAYER)
    refused(ModelError, words, Explainer, given, LAYER)


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


class Deaf(Net):
    def forward(self, x):
        return torch.ones(len(x), 5, dtype=x.dtype, requires_grad=True) * 2


OFF = "the model switches gradients off (torch.no_grad, or reentrant checkpointing) where the target layer runs"
CUT = "no gradient of the logits reaches the inputs"
OFTEN = "the target layer ran {} times in one pass"

AT_THE_LAYER = {
    # name: (network, layer, what is said, whether it is said where no gradient is wanted as well)
    "no_grad": (NoGrad, LAYER, OFF, False),
    "reentrant": (Reentrant, LAYER, OFF, False),
    "runs twice": (Twice, LAYER, f"{OFTEN.format(2)}: choose a layer that runs once", True),
    "unused": (Branches, "unused", OFTEN.format(0), True),
    "dead end": (Branches, "dead", "the target layer does not lie on the way to the logits", False),
    "two rows a photograph": (Branches, "flip", "holds 4 of something for 2 photographs", True),
    "no maps": (Net, "fc", "output is (2, 5); a class activation map needs (N, K, h, w)", True),
    "no such layer": (Net, "f.33", "the model has no layer 'f.33'; nearest: f.3", True),
    "no name": (Net, "", "the model has no layer ''; nearest: ", True),
    "of another model": (Net, nn.ReLU(), "is not a module of this model", True),
    "not named": (Net, None, "drawn on a layer of the model: name one as target_layer", True),
}


@every_engine
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("case", "names"),
    [(case, ["gradcam"] + ["faster_scorecam"] * row[-1]) for case, row in AT_THE_LAYER.items()],
    ids=[*AT_THE_LAYER],
)
def test_a_layer_that_cannot_serve(case, names, engine):
    kind, layer, words, _ = AT_THE_LAYER[case]
    model, options = another(kind), {"target_layer": layer, "engine": engine}
    for name in names:
        refused(LayerError, words, methods.raw_maps, name, model, pictures(), TARGET, **options)


def test_a_layer_that_cannot_serve_beside_other_maps():
    for case in ("runs twice", "unused", "dead end"):
        kind, layer, words, _ = AT_THE_LAYER[case]
        explainer = Explainer(another(kind).float(), layer, size=16, engine="shared")
        refused(LayerError, words, explainer, [photograph()], 1, REFERENCE, n_samples=1)


FAILS = "the model fails on inputs "

AT_THE_INPUT = {
    # name: (network, what is said, options)
    "no_grad": (lambda: another(NoGrad), CUT, {}),
    "detached": (lambda: Gives(net(), torch.Tensor.detach), CUT, {}),
    "deaf": (lambda: another(Deaf), CUT, {}),
    "deaf to copies": (lambda: another(Deaf), CUT, {"name": "smoothgrad"}),
    "reentrant": (lambda: another(Reentrant), "give it use_reentrant=False", {}),
    "overwrites what a gradient needs": (
        lambda: another(Modifies),
        f"{FAILS}float64 (2, 3, 12, 16): one of the variables needed for gradient computation",
        {},
    ),
    "BatchNorm of the batch": (own_statistics, "by its neighbours (BatchNorm without", {}),
    "BatchNorm of the copies": (own_statistics, "give batch_size=1", {"name": "smoothgrad", "target": [1]}),
    "one channel": (
        net,
        f"{FAILS}float64 (2, 1, 12, 16): Given groups=1, weight of size [6, 3, 3, 3]",
        {"inputs": pictures()[:, :1]},
    ),
    "another number format": (
        net,
        f"{FAILS}float32 (2, 3, 12, 16) (its weights are float64)",
        {"inputs": pictures().float()},
    ),
    "one input too many": (
        net,
        "the model fails with 2 inputs: Net.forward() takes 2 positional arguments but 3 were given",
        {"inputs": (pictures(), pictures())},
    ),
    "no finite gradient": (lambda: another(Root), "no finite gradient there (the root of 0", {}),
    "not finite": (net, "the inputs hold NaN or infinity", {"inputs": pictures() / 0}),
}


@every_engine
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", AT_THE_INPUT)
def test_passes(case, engine):
    build, words, options = AT_THE_INPUT[case]
    kind = MapError if "finite" in case else ModelError
    given = {"name": "vanilla", "inputs": pictures(), "target": TARGET, **options}
    name, inputs, target = given["name"], given["inputs"][: len(given["target"])], given["target"]
    refused(kind, words, methods.raw_maps, name, build(), inputs, target, engine=engine)


@every_engine
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
    "a picture of classes": (lambda y: y[:, :, None, None].expand(-1, -1, 4, 4), "has shape (2, 5, 4, 4) for 2"),
    "one number": (lambda y: y.sum(), "has shape () for 2 photographs"),
    "transposed": (lambda y: y.T, "has shape (5, 2) for 2 photographs"),
    "no classes": (lambda y: y[:, :0], "has shape (2, 0)"),
    "class numbers": (lambda y: y.argmax(1), "torch.int64, not floating-point as logits are"),
    "complex": (lambda y: y + 0j, "torch.complex128, not floating-point as logits are"),
}


@every_engine
@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs(output, engine):
    change, words = OUTPUTS[output]
    model = Gives(net(), change)
    for name, options in (("gradcam", {"target_layer": "module.f.3"}), ("vanilla", {})):
        refused(ModelError, words, methods.raw_maps, name, model, pictures(), TARGET, engine=engine, **options)
    refused(ModelError, "score= fails on the model's output: ", methods.vanilla, model, pictures(), score=3)


# Inputs, targets, settings


def test_inputs():
    x = pictures()
    axes = [x[0], x[None], x.permute(0, 2, 3, 1), x[:0], x[:, :, :0]]
    types = [x.byte(), x + 0j, x.numpy(), [], None, "cat.jpg"]
    for inputs in [*axes, *types, (x, 3), (x, x[:1]), (x, np.zeros(2))]:
        refused(ValueError, "give ", methods.vanilla, net(), inputs, TARGET)


NO_CLASSES = [1.0, True, {1, 2}, {1: 2}, [[1], [2]], [1, 2, 3], [], -1, 5, 10**30, object()]


def test_targets():
    typed = [torch.tensor([[1], [2]]), torch.tensor([True, False]), np.array(["1", "2"])]
    lists = [[1.0, 2.0], [True, False], [1], [-1, 0], [0, 5], [None, 1]]
    for target in [*NO_CLASSES, *typed, *lists, "1"]:
        refused(ClassError, "class", methods.gradcam, net(), pictures(), target, target_layer=LAYER)


def test_classes():
    explainer = Explainer(net().float(), LAYER, size=16)
    for classes in [*NO_CLASSES, "cat", [[]], [None], [[1, "x"]], [[[1]]]]:
        refused(ClassError, "class", explainer, [photograph()], classes, "gradcam")


WRONG = {
    "engine": ({"engine": "x"}, "engine 'x' is unknown"),
    "labels": ({"labels": 5}, "labels 5: give"),
    "too few labels": ({"labels": ["a"]}, "1 labels for a network of 5 classes"),
    "array": ({"preprocess": lambda image: np.zeros((3, 8, 8))}, "preprocess gave ndarray"),
    "nothing": ({"preprocess": lambda image: None}, "preprocess gave NoneType"),
    "a batch": ({"preprocess": lambda image: torch.zeros(1, 3, 8, 8)}, "preprocess gave torch.float32 (1, 3, 8, 8)"),
    "integers": ({"preprocess": lambda image: torch.zeros(3, 8, 8).byte()}, "preprocess gave torch.uint8 (3, 8, 8)"),
    "channels last": ({"preprocess": lambda image: torch.zeros(8, 8, 3)}, "channels last"),
    "an error": ({"preprocess": lambda image: 1 / 0}, "preprocess fails on 'array 1': ZeroDivisionError: division by"),
    "NaN": ({"preprocess": lambda image: torch.full((3, 8, 8), torch.nan)}, "the inputs hold NaN"),
    "score": ({"score": lambda output: output.scores}, "score= fails on the model's output"),
    "scores": ({"score": lambda output: output}, "score= gave (1, 5) for 1 photographs"),
    "layout": ({"feature_layout": lambda maps: maps[99]}, "feature_layout fails on the target layer's output (1, 7, 8"),
    "batch size": ({"batch_size": 0}, 'batch size 0: give "auto"'),
}


@pytest.mark.parametrize("setting", WRONG)
def test_settings(setting):
    options, words = WRONG[setting]

    def draw():
        Explainer(net().float(), **{"target_layer": LAYER, "size": 16, **options})([photograph()], methods="gradcam")

    refused((ValueError, MapError), words, draw)


def test_the_whole_model_is_no_layer():
    model = net()
    refused(LayerError, "the target layer is the whole model", Explainer, model, model)


def test_a_model_of_two_inputs_is_for_the_functions():
    class Two(Net):
        def forward(self, x, age):
            return super().forward(x)

    explainer = Explainer(Two().eval(), LAYER, size=16)
    refused(ModelError, "torch_impl.methods take a tuple", explainer, [photograph()])
