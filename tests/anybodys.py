"""A small network, and the many forms in which people hold one: each gives the same logits, so each has the same maps."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import threading
import types
import weakref

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

LAYER = "f.3"


class Net(nn.Module):
    """Two convolutions and a dense layer, with what training mode would change in between."""

    def __init__(self):
        super().__init__()
        convolutions = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1, stride=2)
        self.f = nn.Sequential(convolutions[0], nn.BatchNorm2d(6), convolutions[1], nn.ReLU())
        self.dropout, self.fc = nn.Dropout(), nn.Linear(7, 5)

    def forward(self, x):
        return self.fc(self.dropout(self.f(x).mean((2, 3))))


def net(seed=0):
    torch.manual_seed(seed)
    model = Net().double()
    model.f[1].running_mean.uniform_(-0.3, 0.3)
    model.f[1].running_var.uniform_(0.5, 1.5)
    return model.eval()


def pictures(count=2, size=(12, 16)):
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


FORMS = {}


def form(function):
    """A function from the network to another form of it."""
    FORMS[function.__name__] = function
    return function


# Modes, weights


@form
def as_it_is(model):
    return model


@form
def in_training_mode(model):
    return model.train()


@form
def partly_frozen_with_gradients(model):
    model.f.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    return model.train()


@form
def born_in_inference_mode(model):
    with torch.inference_mode():
        return copy.deepcopy(model)


class Adapter(nn.Linear):
    """Merges on its way to eval mode, and takes that back on its way to training."""

    merged = False

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += (-1.0 if mode else 1.0) * self.delta
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        y = super().forward(x)
        return y if self.merged else y + x @ self.delta.T


@form
def adapter_that_merges(model):
    own = Adapter(7, 5).double()
    own.delta = torch.full((5, 7), 0.25, dtype=torch.float64)
    with torch.no_grad():
        own.weight.copy_(model.fc.weight - own.delta)
        own.bias.copy_(model.fc.bias)
    model.fc = own
    return model.train()


@form
def weight_norm_by_a_hook(model):
    torch.nn.utils.weight_norm(model.f[2])
    return model.train()


@form
def weight_norm_by_parametrization(model):
    parametrizations.weight_norm(model.f[2])
    return model


class Symmetric(nn.Module):
    def forward(self, x):
        return x + 0.0


@form
def two_layers_of_one_parametrization(model):
    shared = Symmetric()
    for i in (0, 2):
        parametrize.register_parametrization(model.f[i], "weight", shared)
    return model


@form
def pruned_by_nothing(model):
    prune.identity(model.f[2], "weight")
    return model.train()


# Ways to a module


class Holder(nn.Module):
    """Holds its modules in all the places that PyTorch does not look into."""

    def __init__(self, model, keep):
        super().__init__()
        self.model, self.kept = model, keep(model)


class FromList(Holder):
    def forward(self, x):
        return self.kept[1](self.model.dropout(self.kept[0](x).mean((2, 3))))


class FromNames(Holder):
    def forward(self, x):
        return self.kept.fc(self.model.dropout(self.kept.f(x).mean((2, 3))))


class Called(Holder):
    def forward(self, x):
        return self.kept(x)


class Referred(Holder):
    def forward(self, x):
        return self.kept()(x)


class ByKey(Holder):
    def forward(self, x):
        return self.kept[self.model](x)


Pair = collections.namedtuple("Pair", "f fc")


class Helper:
    """No module."""

    def __init__(self, model):
        self.model, self.f, self.fc = model, model.f, model.fc

    def run(self, x):
        return self.model(x)


def by_closure(model):
    return lambda x: model.fc(model.dropout(model.f(x).mean((2, 3))))


def by_default(model):
    return lambda x, inner=model: inner(x)


def by_global(model):
    scope = {"inner": model.forward}
    exec("def run(x):\n    return inner(x)", scope)  # as in a notebook's cell
    return scope["run"]


def hidden(kind, keep):
    def made(model):
        return kind(model.train(), keep).train()

    return made


FORMS |= {
    "in a list": hidden(FromList, lambda m: [m.f, m.fc]),
    "in a tuple": hidden(FromList, lambda m: (m.f, m.fc)),
    "in a deque": hidden(FromList, lambda m: collections.deque([m.f, m.fc])),
    "in a dict": hidden(FromList, lambda m: {0: m.f, 1: m.fc}),
    "in a defaultdict": hidden(FromList, lambda m: collections.defaultdict(list, {0: m.f, 1: m.fc})),
    "in a named tuple": hidden(FromNames, lambda m: Pair(m.f, m.fc)),
    "in a namespace": hidden(FromNames, lambda m: types.SimpleNamespace(f=m.f, fc=m.fc)),
    "in an object": hidden(FromNames, Helper),
    "as a key": hidden(ByKey, lambda m: {m: m}),
    "by a bound method": hidden(Called, lambda m: m.forward),
    "by an object's method": hidden(Called, lambda m: Helper(m).run),
    "by a partial": hidden(Called, lambda m: functools.partial(Net.forward, m)),
    "by a closure": hidden(Called, by_closure),
    "by a default": hidden(Called, by_default),
    "by a global name": hidden(Called, by_global),
    "by weak proxies": hidden(FromNames, lambda m: Pair(weakref.proxy(m.f), weakref.proxy(m.fc))),
    "by a weak reference": hidden(Referred, weakref.ref),
}


@form
def forward_replaced_by_a_closure(model):
    before = model.forward
    model.forward = lambda x: before(x) + 0.0
    return model.train()


@form
def forward_replaced_as_accelerate_does(model):
    def new_forward(module, *args, **kwargs):
        args = module.hook.before(*args)
        return module._old_forward(*args, **kwargs)

    model.hook, model._old_forward = types.SimpleNamespace(before=lambda *args: args), model.forward
    model.forward = functools.update_wrapper(functools.partial(new_forward, model), model._old_forward)
    return model.train()


# Wrappers


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


FORMS["wrapped"] = Wrapper
FORMS["wrapped twice"] = lambda model: Wrapper(Wrapper(model))
FORMS["data parallel"] = nn.DataParallel
FORMS["data parallel within"] = lambda model: Wrapper(nn.DataParallel(model))
FORMS["compiled"] = lambda model: torch.compile(model.train(), backend="eager")
FORMS["compiled within"] = lambda model: Wrapper(torch.compile(model, backend="eager")).train()
FORMS["compiled, switched off"] = lambda model: torch.compile(model, disable=True)
FORMS["fx"] = torch.fx.symbolic_trace


@form
def compiled_in_place(model):
    model.compile(backend="eager")
    return model


@form
def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model.train()


# What a forward pass does besides


class InPlace(Net):
    def forward(self, x):
        x.mul_(2).div_(2)
        return self.fc(self.f(x).mean((2, 3)).mul_(3).div_(3))


class Checkpointed(Net):
    def forward(self, x):
        return self.fc(checkpoint(self.f, x, use_reentrant=False).mean((2, 3)))


class Remembers(Net):
    """Tables made on first use, by shape and number format."""

    table = None

    def forward(self, x):
        if self.table is None or self.table.shape != x.shape[-1:] or self.table.dtype != x.dtype:
            self.table = torch.ones(x.shape[-1], dtype=x.dtype)
        return super().forward(x * self.table)


class Switches(Net):
    """Autocast of its own, switched off where it would be felt."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            return super().forward(x)


class HookInForward(Net):
    """As the tutorials write it."""

    def forward(self, x):
        a = self.f(x)
        a.register_hook(self.keep)
        return self.fc(a.mean((2, 3)))

    def keep(self, gradient):
        self.gradient = gradient


class Lock(Net):
    """What cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock, self.numbers, self.generator = threading.Lock(), (i for i in range(3)), torch.Generator()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64)) * 1.0  # no leaf

    def forward(self, x):
        with self.lock:
            return super().forward(x * self.scale.to(x.dtype))


class CompiledMethod(Net):
    forward = torch.compile(Net.forward, backend="eager", fullgraph=True)


for kind in (CompiledMethod, InPlace, Checkpointed, Remembers, Switches, HookInForward, Lock):

    def another(model, kind=kind):
        made = kind().double()
        made.load_state_dict(model.state_dict())
        return made.eval()

    FORMS[kind.__name__] = another


# Outputs


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class ModelOutput(collections.OrderedDict):
    """As Hugging Face's."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Named = collections.namedtuple("Named", "logits aux")


class Gives(Wrapper):
    def __init__(self, module, change):
        super().__init__(module)
        self.change = change

    def forward(self, x):
        return self.change(self.module(x))


OUTPUTS = {
    "a tuple": lambda y: (y,),
    "a list": lambda y: [y],
    "a dict": lambda y: {"out": y},
    "a dict of logits and more": lambda y: {"loss": None, "logits": y, "hidden": y.sum()},
    "an ordered dict": lambda y: collections.OrderedDict(out=y),
    "a dataclass": lambda y: Answer(y, y),
    "a named tuple": lambda y: Named(y, y),
    "a model output": lambda y: ModelOutput(logits=y, states=(y,)),
    "of a convolution": lambda y: y[:, :, None, None],
    "not contiguous": lambda y: y.T.contiguous().T,
}
FORMS |= {f"gives {what}": functools.partial(Gives, change=change) for what, change in OUTPUTS.items()}
