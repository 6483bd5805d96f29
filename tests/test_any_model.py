"""Any classifier, in whatever form: the maps are those of plain autograd, by both captures."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import plain
import pytest
import torch
from anybodys import FORMS, LAYER, Adapter, Net, net, pictures
from conftest import close, every_engine, every_map
from tolerances import FLOAT32, FLOAT64
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.utils.checkpoint import checkpoint

from torch_impl import Explainer, methods
from torch_impl.capture.layout import LayerError
from torch_impl.capture.target_layer import find_layer
from torch_impl.maps.postprocess import finish

TARGET = [1, 3]
NAMES = ("gradcam", "vanilla", "smoothgrad")


def chosen(y, row=None):
    return y[:, TARGET[row]] if row is not None else y[range(len(y)), TARGET[: len(y)]]


def by_autograd(model, layer=LAYER, inputs=None, maps=lambda a: a):
    """Map → what plain autograd gives; `maps` makes feature maps (N, K, h, w) of the layer's output."""
    x = pictures() if inputs is None else inputs
    a, g, slope = plain.captured(model, find_layer(model, layer), x, chosen)
    return {
        "gradcam": plain.gradcam(maps(a), maps(g)).relu(),
        "vanilla": plain.vanilla(slope),
        "smoothgrad": plain.smoothgrad(model, x, chosen, 2, 0.2, 0),
    }


expected = functools.cache(lambda: by_autograd(net()))
in_float32 = functools.cache(
    lambda: Explainer(net().float(), LAYER, size=16)([photograph()], 1, methods=("gradcam", "vanilla"))
)


def photograph(seed=0):
    return np.random.RandomState(seed).randint(0, 255, (16, 16, 3), dtype=np.uint8)


def layer_of(model):
    """The last layer of the features, by whatever name."""
    return next(name for name, _ in model.named_modules(remove_duplicate=False) if name.endswith(LAYER))


def check(model, engine, names=NAMES, inputs=None, layer=None, wanted=None, **cam):
    for name in names:
        options = {"target_layer": layer or layer_of(model), **cam} if name == "gradcam" else {}
        options |= {"n_samples": 2} if name == "smoothgrad" else {}
        x = pictures() if inputs is None else inputs
        raw = methods.raw_maps(name, model, x, TARGET, engine=engine, **options)
        close(raw, (wanted or expected())[name], FLOAT64)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_another_number_format(form):
    """float32 of a float64 network: its own copy, as the network itself converted."""
    model, names = FORMS[form](net()), ("gradcam", "vanilla")
    drawn = Explainer(model, layer_of(model), size=16, precision="fp32")([photograph()], 1, names)
    for name in names:
        close(torch.from_numpy(drawn[name]), torch.from_numpy(in_float32()[name]), FLOAT32)


# Networks of their own: what PyTorch itself gives is the measure


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.rnn = kind(6, 8, num_layers=2, batch_first=True, bidirectional=True, dropout=0.5)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.rnn(self.conv(x).relu().mean(2).transpose(1, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.encoder(self.conv(x).flatten(2).transpose(1, 2)).mean(1))


class InPlace(nn.Module):
    """What follows the layer overwrites its output."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.how, self.fc = how, nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.how(self, self.conv(x)).mean((2, 3)))


def added(self, a):
    a += 1
    return self.bn(a)


class Branches(Net):
    def __init__(self):
        super().__init__()
        self.side, self.same = nn.Conv2d(3, 7, 3, padding=1, stride=2), nn.Identity()
        self.other_name = self.f[3]

    def forward(self, x):
        return self.fc(self.same(self.f(x) + self.side(x)).mean((2, 3)))


class ChecksTheHead(Net):
    def forward(self, x):
        return self.fc(checkpoint(lambda a: a.relu().mean((2, 3)), self.f(x), use_reentrant=False))


def hooked(layer, kind, hook):
    def build():
        model = net()
        getattr(model.f[layer], f"register_{kind}")(hook)
        return model

    return build


def normed(normalize, train=False):
    """A spectral norm as it is after a pass of training."""
    model = net()
    normalize(model.f[2])
    model.train()(pictures())
    return model.eval()


def pruned():
    model = net()
    prune.ln_structured(model.f[2], "weight", 0.5, 2, 0)
    return model


def tied():
    model = net()
    model.f = nn.Sequential(*model.f, nn.Conv2d(7, 7, 1), nn.ReLU(), nn.Conv2d(7, 7, 1)).double()
    model.f[6].weight = model.f[4].weight
    return model


TOKENS = {"feature_layout": "tokens", "maps": lambda a: a.transpose(1, 2).reshape(len(a), -1, 3, 4)}

NETWORKS = {
    # name: (network, layer, further options)
    "LSTM": (lambda: Recurrent(nn.LSTM), "conv", {}),
    "GRU": (lambda: Recurrent(nn.GRU), "conv", {}),
    "attention": (Attention, "conv", {}),
    "attention, tokens": (Attention, "encoder", TOKENS),
    "in-place ReLU behind": (lambda: InPlace(lambda self, a: self.relu(self.bn(a))), "bn", {}),
    "in-place addition behind": (lambda: InPlace(added), "conv", {}),
    "in a branch": (Branches, "side", {}),
    "an Identity": (Branches, "same", {}),
    "a Sequential": (Branches, "f", {}),
    "a second name": (Branches, "other_name", {}),
    "checkpointed behind": (ChecksTheHead, LAYER, {}),
    "spectral norm": (lambda: normed(spectral_norm), LAYER, {}),
    "spectral norm, parametrized": (lambda: normed(parametrizations.spectral_norm), LAYER, {}),
    "pruned": (pruned, LAYER, {}),
    "tied weights": (tied, LAYER, {}),
    "merged adapter": (lambda: FORMS["adapter_that_merges"](net()).eval(), LAYER, {}),
    "forward hook": (hooked(3, "forward_hook", lambda m, a, o: o * 2), LAYER, {}),
    "pre-hook": (hooked(2, "forward_pre_hook", lambda m, a: (a[0] + 1,)), LAYER, {}),
    "backward hook": (hooked(3, "full_backward_hook", lambda m, i, o: (i[0] * 2,)), LAYER, {}),
    "backward pre-hook": (hooked(3, "full_backward_pre_hook", lambda m, o: (o[0] * 3,)), LAYER, {}),
}


@every_engine
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_their_own(network, engine):
    build, layer, options = NETWORKS[network]
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        model(pictures())  # weights that a hook makes are then without a graph, and can be copied
    maps = options.get("maps", lambda a: a)
    cam = {key: value for key, value in options.items() if key != "maps"}
    wanted = by_autograd(model, layer, maps=maps)
    assert all(float(values.max()) > 0 for values in wanted.values())
    check(model, engine, layer=layer, wanted=wanted, **cam)
    if not isinstance(model.fc, Adapter):
        check(model.train(), engine, layer=layer, wanted=wanted, **cam)


# Layouts


class ConvNeXtBlock(nn.Module):
    """As its authors write it: channels last within, by a function that no module tells of."""

    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.pointwise = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.pointwise(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Vision(nn.Module):
    """Patches of 4×4 to a ConvNeXt block, or to tokens behind others."""

    def __init__(self, width=8, others=None):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, width, 4, stride=4), ConvNeXtBlock(width)
        self.others = None if others is None else nn.Parameter(torch.randn(1, others, width))
        self.tokens, self.fc = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x):
        maps = self.block(self.stem(x))
        if self.others is None:
            return self.fc(maps.mean((2, 3)))
        tokens = torch.cat([self.others.expand(len(x), -1, -1), maps.flatten(2).transpose(1, 2)], 1)
        return self.fc(self.tokens(tokens).relu().mean(1))


def last(a):
    return a.permute(0, 3, 1, 2)


LAYOUTS = {
    # name: (network, layer, size, options, feature maps of its output, or what is said)
    "depthwise": (Vision, "block.depthwise", (12, 16), {}, lambda a: a),
    "inner norm": (Vision, "block.norm", (12, 16), {}, last),
    "pointwise": (Vision, "block.pointwise", (12, 16), {}, last),
    "square, inner norm": (lambda: Vision(4), "block.norm", (16, 16), {}, last),
    "square, the block": (lambda: Vision(4), "block", (16, 16), {}, "nothing says which axis is which"),
    "square, the block, said": (lambda: Vision(4), "block", (16, 16), {"feature_layout": "nchw"}, lambda a: a),
    "the block": (Vision, "block", (12, 16), {}, "the layers before it give nhwc, its shape says otherwise"),
}
for others in (0, 1, 2, 4, 5):  # a class token; a distilled one; registers

    def grid(a):
        return a[:, -12:].transpose(1, 2).reshape(2, -1, 3, 4)

    build = functools.partial(Vision, others=others)
    said = grid if others < 2 else f"{12 + others} tokens make no grid of the picture's proportions"
    LAYOUTS[f"tokens behind {others}"] = (build, "tokens", (12, 16), {"feature_layout": "tokens"}, said)
    LAYOUTS[f"tokens behind {others}, said"] = (build, "tokens", (12, 16), {"feature_layout": (3, 4)}, grid)


@every_engine
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, engine):
    build, layer, size, options, maps = LAYOUTS[layout]
    torch.manual_seed(1)
    model, x = build().double().eval(), pictures(size=size)
    if isinstance(maps, str):
        with pytest.raises(LayerError, match=maps):
            check(model, engine, ("gradcam",), x, layer, {}, **options)
    else:
        check(model, engine, ("gradcam",), x, layer, by_autograd(model, layer, x, maps), **options)


# Inputs and surroundings


@every_engine
@pytest.mark.parametrize(
    "inputs",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.clone().requires_grad_() * 1.0,
        lambda x: (x,),
        lambda x: [x],
    ],
    ids=["channels last", "not contiguous", "leaf", "graph", "tuple", "list"],
)
def test_inputs(inputs, engine):
    check(net(), engine, inputs=inputs(pictures()))


@every_engine
@every_map
def test_further_inputs_go_with_their_picture(name, engine):
    class Two(Net):
        def forward(self, x, more):
            return self.fc(self.f(x).mean((2, 3)) * more)

    torch.manual_seed(0)
    model, x, more = Two().double(), pictures(), torch.randn(2, 7, dtype=torch.float64)
    options = {"target_layer": LAYER} if "cam" in name else {}
    both = methods.raw_maps(name, model, (x, more), TARGET, engine=engine, **options)
    for i in (0, 1):
        alone = methods.raw_maps(name, model, (x[i : i + 1], more[i : i + 1]), TARGET[i], engine=engine, **options)
        assert float(alone.max()) > 0
        close(both[i : i + 1], alone, FLOAT64)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@every_engine
@pytest.mark.parametrize("around", AROUND)
def test_whatever_is_switched_on_around(around, engine):
    with AROUND[around]():
        check(net(), engine)
    drawn = []
    for context in (contextlib.nullcontext, AROUND[around]):
        model = net().float()
        with context():
            explainer = Explainer(model, size=16, engine=engine)  # the layer is found within
            drawn.append(explainer([photograph()], 1, methods="gradcam"))
        assert explainer.target_layer == "f"
    assert np.array_equal(drawn[0]["gradcam"], drawn[1]["gradcam"])


@every_engine
@pytest.mark.parametrize(
    "target", [TARGET, tuple(TARGET), np.array(TARGET), torch.tensor(TARGET), [*torch.tensor(TARGET)]]
)
def test_forms_of_a_target(target, engine):
    raw = methods.raw_maps("gradcam", net(), pictures(), target, target_layer=LAYER, engine=engine)
    close(raw, expected()["gradcam"], FLOAT64)


@pytest.mark.parametrize("target", [None, 1])
def test_one_target_for_all_and_none(target):
    """None is the top-1 of each photograph, as an explainer has it."""
    model, x = net(), pictures()
    classes = model(x).argmax(dim=1).tolist() if target is None else [1, 1]
    right = methods.raw_maps("gradcam", model, x, classes, target_layer=LAYER)
    assert torch.equal(methods.raw_maps("gradcam", model, x, target, target_layer=LAYER), right)


def test_a_list_of_one_layer():
    """As pytorch-grad-cam takes its `target_layers`."""
    model, x = net(), pictures()
    right = methods.raw_maps("gradcam", model, x, 1, target_layer=LAYER)
    assert torch.equal(methods.raw_maps("gradcam", model, x, 1, target_layer=[LAYER]), right)
    with pytest.raises(LayerError, match="target_layer holds 2 layers: give one"):
        methods.raw_maps("gradcam", model, x, 1, target_layer=[LAYER, LAYER])


@every_engine
def test_a_model_without_parameters(engine):
    model, x = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures().abs()
    channels = [1, 2]
    raw = methods.raw_maps("gradcam", model, x, channels, target_layer="0", engine=engine)
    pooled = model[0](x)[[0, 1], channels] / (6 * 8)  # the gradient of a mean over 6 · 8 places
    close(raw, pooled / (6 * 8) * (6 * 8), FLOAT64)
    close(methods.gradcam(model, x, channels, target_layer="0", engine=engine), finish(raw, (12, 16)), FLOAT64)
