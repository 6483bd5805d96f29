"""From inputs to raw maps: pass by pass, every map by its function."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from parity.contract.methods import Options
from parity.contract.text import one_line
from torch_impl.arrays import Images, Logits, Target
from torch_impl.batching import BatchSize, OutOfMemoryError, Pieces, first_size, micro_batches, taken
from torch_impl.capture import ENGINES
from torch_impl.capture.layout import FeatureLayout
from torch_impl.capture.passes import Capture, MapError, Pass, Progress
from torch_impl.maps.registry import DRAWN
from torch_impl.precision import at_least_fp32, name_of
from torch_impl.preserve import Double, ModelError, failure, own_gradients
from torch_impl.score import Classifier, Score

ChooseRows = Callable[[Logits, list[int]], Target]
"""(logits of some photographs, their rows) → the class of each that is explained."""


def of_outputs(capture: Capture, target: Target) -> ChooseRows:
    """Indices of the network's outputs as the classes that are explained: an only output is class 1, see `score.Classifier`."""
    return lambda logits, rows: taken(target, rows) + int(bool(capture.model.single))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Raw maps, on the inputs' device.

    Attributes:
        target: (N,) the explained class of each photograph, int64.
        raw: method → (N, h, w) at the target layer, or (N, H, W) at the input.
        no_gradient: method → bool (N,): whether every gradient that the map reads is 0; of maps that read some.
        logits: (N, classes), float32, or float64 for float64 inputs; None where the classes were given.
        stages: `method/quantity` → (N, …), where they were asked for: what the maps' functions kept.
        single: whether the network has one output: see `score.Classifier`.
    """

    target: Tensor = field(repr=False)
    raw: Mapping[str, Tensor] = field(repr=False)
    no_gradient: Mapping[str, Tensor] = field(repr=False)
    logits: Tensor | None = field(default=None, repr=False)
    stages: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    single: bool = False

    def answers_on_host(self) -> Drawn:
        """The same with the logits and classes on the host; the maps stay where they are."""
        return replace(self, logits=None if self.logits is None else self.logits.cpu(), target=self.target.cpu())


GRADIENTS = frozenset(("gradients", "input_gradients"))
"""Attributes of a pass that take a backward pass."""


def opened(
    model: nn.Module,
    target_layer: nn.Module | None,
    *,
    engine: str = "library",
    compile: bool = False,
    batch_size: BatchSize = "auto",
    score: Score | None = None,
    feature_layout: FeatureLayout = None,
) -> Capture:
    """A double of the model, which stays as it is, made ready to be looked into.

    Args:
        model: the network.
        target_layer: one of its modules.
        engine: one of `capture.ENGINES`. Captum and pytorch-grad-cam, which take seconds, are imported for `library` alone.
        compile: see `Explainer`.
        batch_size: photographs in one pass.
        score: see `score.Classifier`.
        feature_layout: see `layout.FeatureLayout`.

    Raises:
        ModelError: a model that cannot be explained.
        ValueError: an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; known: {', '.join(ENGINES)}")
    double = Double(model)
    layer = None if target_layer is None else double.of(target_layer)
    classifier = Classifier(double.model, score)
    if engine == "shared":
        from torch_impl.capture.one_pass import OnePass as Engine
    else:
        from torch_impl.capture.libraries import Libraries as Engine  # type: ignore[assignment]
    capture = Engine(classifier, layer, batch_size, feature_layout)
    capture.double = double
    if compile:
        capture.compiled = torch.compile(classifier, dynamic=False)
    return capture


def draw(
    capture: Capture,
    inputs: Images,
    target: Target | ChooseRows,
    names: Sequence[str],
    options: Options,
    *,
    others: Sequence[Tensor] = (),
    with_stages: bool = False,
    progress: Progress | None = None,
) -> Drawn:
    """Raw maps of photographs.

    Args:
        capture: of the model: see `opened`.
        inputs: preprocessed.
        target: the explained classes, or how they are chosen from the logits.
        names: of `registry.DRAWN`; none: logits and classes alone.
        options: SmoothGrad's.
        others: the model's further inputs, a row for each photograph.
        with_stages: also what each map computes on the way.
        progress: called after each pass.

    Raises:
        LayerError: the target layer cannot carry a map.
        ModelError: the model's output cannot be explained.
        MapError: logits or a map are not finite.
    """
    needs = frozenset[str]().union(*(DRAWN[name].needs for name in names))
    count, results = len(inputs), _Results(len(inputs))

    def one_piece(rows: list[int]) -> None:
        told = capture.progress = _Told(progress, rows, count)
        capture.others = tuple(taken(values.detach(), rows) for values in others)
        chosen = (lambda logits: target(logits, rows)) if callable(target) else taken(target, rows)
        p = capture.take(inputs[rows[0] : rows[-1] + 1], chosen, needs, options)
        own = {name: p.noting() if with_stages else p for name in names}
        raw = {name: DRAWN[name].function(own[name]) for name in names}
        results.put(rows, p, raw, own)  # only now, after everything that may run out of memory: see `micro_batches`
        if needs:
            told.rest()

    with own_gradients():
        inputs = inputs.clone(memory_format=torch.preserve_format) if inputs.is_inference() else inputs.detach()
        auto = first_size(inputs, gradients="input_gradients" in needs)
        with _in_one_line(capture, inputs):
            micro_batches(range(count), capture.batch_size, one_piece, device=inputs.device, auto=auto, count=count)
        answers = results.whole("pass")
        logits = answers["logits"] if callable(target) else None  # where the classes are chosen by them
        kinds = {kind: results.whole(kind) for kind in ("raw", "no_gradient", "stages")}
        drawn = Drawn(answers["target"], logits=logits, single=bool(capture.model.single), **kinds)
        check_finite(drawn, inputs)
        return drawn


def groups(names: Sequence[str], one_by_one: bool) -> Iterator[tuple[str, list[str]]]:
    """(what, maps) that are drawn in one go: those that read the same pass together, the others each by itself.

    The first of them chooses the classes.
    """
    together = [] if one_by_one else [name for name in names if DRAWN[name].needs]
    yield "logits" if one_by_one else "shared", together
    for name in names:
        if name not in together:
            yield name, [name]


class _Told:
    """Progress of one piece of `count` photographs."""

    def __init__(self, progress: Progress | None, rows: list[int], count: int) -> None:
        self._progress, self._rows, self._count, self._said = progress, rows, count, False

    def __call__(self, done: int, of: int) -> None:
        """Passes of a map's own, as parts of those that all photographs take."""
        self._said = True
        if self._progress:
            each = len(self._rows)
            self._progress(self._rows[0] * of // each + done, self._count * of // each)

    def rest(self) -> None:
        """The piece is done; said where no map had passes of its own."""
        if self._progress and not self._said:
            self._progress(self._rows[-1] + 1, self._count)


class _Results:
    """What the passes of `count` photographs give, put together: one block for each `kind` of result of each map."""

    def __init__(self, count: int) -> None:
        self._pieces: dict[str, dict[str, Pieces]] = defaultdict(lambda: defaultdict(lambda: Pieces(count)))

    def put(self, rows: list[int], p: Pass, raw: Mapping[str, Tensor], own: Mapping[str, Pass]) -> None:
        """What one pass gave, the raw maps of it, and the passes in which each map's own stages are noted."""
        of = self._pieces
        of["pass"]["target"].put(rows, p.target)
        if p.logits is not None:
            p.capture.formats.add(str(p.logits.dtype).removeprefix("torch."))
            of["pass"]["logits"].put(rows, p.logits.to(at_least_fp32(p.inputs.dtype)))
        for name, maps in raw.items():
            of["raw"][name].put(rows, maps)
            if DRAWN[name].needs & GRADIENTS:
                of["no_gradient"][name].put(rows, _all_zero(p, name))
            for quantity, values in (own[name].stages or {}).items():
                of["stages"][f"{name}/{quantity}"].put(rows, values)

    def whole(self, kind: str) -> dict[str, Tensor]:
        """All rows of each result of a kind."""
        return {name: pieces.whole for name, pieces in self._pieces[kind].items()}


CHECKPOINTED = (
    "the model runs a part with reentrant checkpointing (torch.utils.checkpoint), through which these gradients cannot be had: "
    "switch it off, or give it use_reentrant=False"
)


@contextlib.contextmanager
def _in_one_line(capture: Capture, inputs: Images) -> Iterator[None]:
    """PyTorch's errors in the passes as ours; what the model's own code raises otherwise stays what it is."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except RuntimeError as error:
        capture.double.check_unchanged()
        if capture.compiled is not None and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            why = one_line(str(error).partition("\n\n")[0])
            raise ModelError(f"the model cannot be compiled here: leave compile out ({why})") from error
        if "checkpoint" in str(error).lower() and ".grad()" in str(error):
            raise ModelError(CHECKPOINTED) from error
        raise failure(error, inputs, capture.model) from error
    capture.double.check_unchanged()


def _all_zero(p: Pass, name: str) -> Tensor:
    """Whether every gradient that a map reads is 0, photograph by photograph."""
    gradients = p.input_gradients if "input_gradients" in DRAWN[name].needs else p.gradients
    return gradients.flatten(1).any(dim=1).logical_not()


def check_finite(drawn: Drawn, inputs: Images) -> None:
    """Refuse logits and maps that are not finite; a device is asked once.

    Raises:
        MapError: the message counts the photographs and says why.
    """
    checked = {} if drawn.logits is None else {"the logits": drawn.logits}
    checked |= {f"{name}: the map": maps for name, maps in drawn.raw.items()}
    finite = [torch.isfinite(values).all() for values in checked.values()]
    if not finite or bool(torch.stack(finite).all()):
        return
    what, values = next((what, values) for what, values in checked.items() if not torch.isfinite(values).all())
    broken = [str(i) for i, row in enumerate(values) if not torch.isfinite(row).all()]
    if not torch.isfinite(inputs).all():
        why = "the inputs hold NaN or infinity"
    elif name_of(inputs.dtype) in ("fp16", "bf16"):
        why = f"{name_of(inputs.dtype)} is too narrow: try fp32"
    elif what == "the logits":
        why = "the model itself gives NaN or infinity for finite inputs"
    else:
        why = "a function in the model has no finite gradient there (the root of 0, a division by 0, a logarithm of 0)"
    raise MapError(f"{what} of photograph {', '.join(broken)} (counted from 0) is not finite: {why}")
