"""A model that was handed in is afterwards what it was, and can predict and train meanwhile."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import torch
from anybodys import FORMS, LAYER, Adapter, Net, net, pictures
from conftest import every_engine
from test_any_model import TARGET, Branches, check, layer_of, photograph

from torch_impl import Explainer, methods
from torch_impl.preserve import ModelError


def state(model):
    """Everything that must stay: tensors as identity, version and values; what modules hold as the same objects."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "modes": [m.training for m in modules],
        "hooks": [list(getattr(m, kind).items()) for m in modules for kind in hooks],
        "attributes": [sorted((key, id(value)) for key, value in vars(m).items()) for m in modules],
        "tensors": [(id(t), t.requires_grad, t.is_leaf, t.dtype, t.stride()) for t in tensors],
        "versions": [t._version for t in tensors if not t.is_inference()],
        "values": [t.tolist() for t in tensors],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()],
    }


def draw_all(model, engine, names=("gradcam", "vanilla", "smoothgrad", "scorecam")):
    for name in names:
        options = {"target_layer": layer_of(model)} if "cam" in name else {"n_samples": 2} if name[0] == "s" else {}
        methods.raw_maps(name, model, pictures(), TARGET, engine=engine, **options)


def gradients_of_a_step(model):
    """Of a training step, whatever the model gives."""
    torch.manual_seed(0)
    output = model(pictures())
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if logits is None:
        logits = output["logits" if "logits" in output else "out"] if isinstance(output, dict) else output[0]
    logits.sum().backward()
    return [p.grad for p in model.parameters()]


@every_engine
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_its_maps_and_stays_what_it_is(form, engine):
    """And trains afterwards as one that was not explained: the same gradients."""
    model = FORMS[form](net())
    before = state(model)
    check(model, engine)
    draw_all(model, engine, ["scorecam"])
    assert state(model) == before
    if form in ("born_in_inference_mode", "InPlace"):  # which cannot be trained
        return
    expected, actual = gradients_of_a_step(FORMS[form](net()).train()), gradients_of_a_step(model.train())
    for a, b in zip(expected, actual, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


class Writes(Net):
    """Writes into a buffer, a plain tensor, a list, an object and a generator on every pass, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.mean, self.seen, self.generator = torch.zeros(3, dtype=torch.float64), [], torch.Generator()
        self.helper = type("Helper", (), {})()
        self.helper.count, self.helper.cache = 0, {}
        self.random = torch.nn.Parameter(torch.ones(1)) * 2.0  # hangs on a graph of its owner's

    def forward(self, x):
        self.calls += 1
        self.mean.add_(x.detach().mean((0, 2, 3)))
        self.seen.append(1)
        self.helper.count += 1
        self.helper.cache[x.shape] = x
        torch.rand(1, generator=self.generator)
        return super().forward(x) * self.random


@every_engine
def test_what_a_pass_leaves_behind_stays_on_the_double(engine):
    model = Writes().double()
    before = state(model), model.generator.get_state().tolist()
    draw_all(model, engine)
    assert (state(model), model.generator.get_state().tolist()) == before
    assert float(model.mean.abs().sum()) == model.helper.count == len(model.seen) == len(model.helper.cache) == 0
    model.random.sum().backward()  # its graph is still there


@every_engine
def test_its_owners_hooks_are_called_and_keep_what_they_note(engine):
    model, seen = net(), []
    model.f[3].register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    model.f[3].register_full_backward_hook(lambda module, inputs, outputs: seen.append("back"))
    check(model, engine, ("gradcam", "vanilla"))
    assert {(2, 7, 6, 8), "back"} <= set(seen)


@every_engine
@pytest.mark.parametrize("layer", ["f.3", "side"])
def test_inputs_stay(layer, engine):
    """Also where the picture goes past the target layer."""
    model, x = Branches().double(), pictures().requires_grad_()
    values = x.tolist()
    for name, options in (("gradcam", {"target_layer": layer}), ("vanilla", {}), ("smoothgrad", {"n_samples": 2})):
        methods.raw_maps(name, model, x, TARGET, engine=engine, **options)
    assert x.grad is None
    assert x.requires_grad
    assert x.tolist() == values


def test_another_number_format_is_a_copy():
    model = FORMS["adapter_that_merges"](net())
    before = state(model)
    for precision in ("fp32", "bf16"):
        Explainer(model, LAYER, size=16, precision=precision)([photograph()], methods=("gradcam", "vanilla"))
    assert state(model) == before
    assert isinstance(model.fc, Adapter)


# Threads


def beside(work, meanwhile):
    """Run `work` in eight threads, `meanwhile` in another one until they are done; errors are raised here."""
    done, errors = threading.Event(), []

    def guarded(function):
        try:
            function()
        except Exception as error:
            errors.append(error)

    def loop():
        while not done.is_set():
            meanwhile()

    other = threading.Thread(target=guarded, args=(loop,))
    workers = [threading.Thread(target=guarded, args=(lambda i=i: work(i),)) for i in range(8)]
    for thread in (other, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    other.join()
    if errors:
        raise errors[0]


@every_engine
def test_eight_threads_share_an_explainer_and_predictions_stay_right(engine, one_thread):
    model, x = net().float(), pictures().float()
    explainer = Explainer(model, LAYER, size=16, engine=engine)
    expected = [explainer([photograph(i)], 1, methods=("gradcam", "vanilla")) for i in range(8)]
    with torch.no_grad():
        logits = model(x)

    def explain(i):
        maps = explainer([photograph(i)], 1, methods=("gradcam", "vanilla"))
        assert all(np.array_equal(maps[name], expected[i][name]) for name in ("gradcam", "vanilla"))

    def predict():
        with torch.no_grad():
            assert torch.equal(model(x), logits)

    beside(explain, predict)


@every_engine
def test_training_in_another_thread_goes_on_undisturbed(engine, one_thread):
    model, twin = net().float().train(), net().float().train()
    x, steps = pictures().float(), []

    def step(which):
        torch.manual_seed(len(steps))
        which.zero_grad()
        which.f(x).mean().backward()
        with torch.no_grad():
            for parameter in which.f.parameters():
                parameter.sub_(parameter.grad, alpha=0.01)

    def train():
        step(model)
        steps.append(1)

    def explain(i):
        with contextlib.suppress(ModelError):  # the weights were changed meanwhile
            methods.vanilla(model, x, TARGET, engine=engine)

    beside(explain, train)
    done = len(steps)
    for _ in range(done):
        step(twin)
    assert done
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@every_engine
@pytest.mark.parametrize("name", ["gradcam", "vanilla"])
def test_weights_that_change_meanwhile_are_refused(name, engine):
    """As an optimizer in another thread does it, here between the target layer and the logits."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.f[0].weight.grad = torch.ones_like(model.f[0].weight)
    model.dropout.register_forward_pre_hook(lambda *_: optimizer.step())
    with pytest.raises(ValueError, match="weights were changed while its maps were drawn"):
        draw_all(model, engine, (name,))
