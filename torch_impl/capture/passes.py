"""A pass: what one forward and at most one backward pass of a few photographs gave. Every map is a function of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl.arrays import FeatureMaps, Images, Logits, Target
from torch_impl.batching import BatchSize, Item, first_size, micro_batches
from torch_impl.capture.layout import FeatureLayout, LayerError, Told, arranged, layout_of, told_by
from torch_impl.precision import SCORE_SCALE, at_least_fp32, sent
from torch_impl.preserve import Double
from torch_impl.score import Classifier

Choose = Callable[[Logits], Target]
"""Logits of some photographs → the class of each that is explained."""

Progress = Callable[[int, int], None]
"""Called with (passes done, passes in all)."""


NO_INPUT_GRADIENT = (
    "no gradient of the logits reaches the inputs: the model does not use them, or cuts the gradient (torch.no_grad around a "
    "part, detach, rounding, argmax)"
)


class MapError(ArithmeticError):
    """A map or a logit is not finite; the message says which and what to do."""


@dataclass(eq=False, kw_only=True)
class Pass:
    """See the module. A map finds here what it asked for; the rest may be None.

    Attributes:
        inputs: preprocessed.
        target: the explained class of each photograph.
        options: SmoothGrad's.
        capture: for a map that takes passes of its own.
        logits: the network's outputs, where the classes had to be chosen by them.
        activations: A, of the target layer; float32, or float64 for float64 inputs.
        gradients: G = ∂score/∂A, where the score is each photograph's own logit.
        input_gradients: ∂score/∂inputs, signed.
        stages: filled by `keep` where a comparison wants a map's own stages; else None.
    """

    inputs: Images
    target: Target
    options: Options
    capture: Capture
    logits: Logits = field(default=None)  # type: ignore[assignment]
    activations: FeatureMaps = field(default=None)  # type: ignore[assignment]
    gradients: FeatureMaps = field(default=None)  # type: ignore[assignment]
    input_gradients: Images = field(default=None)  # type: ignore[assignment]
    stages: dict[str, Tensor] | None = None

    def noting(self) -> Pass:
        """The same pass, for a map whose own stages are wanted."""
        noting = copy.copy(self)
        noting.stages = {}
        return noting

    def keep(self, **stages: Callable[[], Tensor]) -> None:
        """Note a map's own stages, (N, …) each, under their names in `parity.contract.methods`; made only where wanted."""
        if self.stages is not None:
            self.stages.update({name: make() for name, make in stages.items()})


class Capture(ABC):
    """A model, and how its activations and gradients are had.

    Args:
        model: gives logits (N, classes); frozen, in eval mode, and nobody else's: see `preserve.Double`.
        layer: that class activation maps are drawn on; None where no map needs one.
        batch_size: photographs, or copies of them, in one pass.
        layout: of the layer's output; None: found out in the first pass.

    Attributes:
        others: the model's further inputs, a row for each photograph of the pass.
        double: of the model: it knows whether its weights are still the same. Set by `draw.opened`.
        compiled: the model, for the passes of `input_gradients`; None: they are run as they are written.
        formats: number formats in which the model gave feature maps and logits: its own autocast shows here.
    """

    double: Double
    one_by_one = False
    """Whether each map is drawn by a call of its own."""

    def __init__(
        self, model: Classifier, layer: nn.Module | None, batch_size: BatchSize = "auto", layout: FeatureLayout = None
    ) -> None:
        self.model, self.batch_size, self.layout = model, batch_size, layout
        self._layer = layer
        self.progress: Progress | None = None
        self.others: tuple[Tensor, ...] = ()
        self.formats: set[str] = set()
        self.compiled: Callable[[Images], Logits] | None = None
        self._told, self._told_at_layer, self._sure = Told(), "", True
        if layer is not None and layout is None:
            for module in model.modules():
                if told_by(module):
                    module.register_forward_hook(self._told.hear)
            layer.register_forward_hook(self._note_layout)

    @property
    def layer(self) -> nn.Module:
        """The layer that class activation maps are drawn on.

        Raises:
            LayerError: none was named.
        """
        if self._layer is None:
            raise LayerError("this map is drawn on a layer of the model: name one as target_layer")
        return self._layer

    @abstractmethod
    def take(self, inputs: Images, target: Target | Choose, needs: Collection[str], options: Options) -> Pass:
        """One pass.

        Args:
            inputs: preprocessed; they stay as they are, also where the network works in place on what it is given.
            target: the explained classes, or how they are chosen.
            needs: names of a `Pass`'s attributes that are to be filled.
            options: handed on.

        Raises:
            LayerError: the layer cannot carry a map.
        """

    @abstractmethod
    def input_gradients(self, inputs: Images, target: Target) -> Images:
        """∂score/∂inputs of any inputs, float32 or float64: for maps that take passes of their own.

        Source: arXiv:1312.6034, Section 3.
        """

    def logits_alone(self, inputs: Images) -> Logits:
        """A forward pass without gradients; with them, where the model itself asks for some (a hook on a tensor)."""
        try:
            with torch.no_grad():
                logits: Logits = self.model(inputs)
        except RuntimeError as error:
            if "require grad" not in str(error) and "require gradient" not in str(error):
                raise
            logits = self.model(inputs.detach().requires_grad_())
        return logits.detach()

    def attend(self, rows: list[int] | None = None) -> None:
        """Give the model its further inputs: those of the pass, or of these rows of it."""
        of_rows = (values[sent(torch.tensor(rows), values.device)] for values in self.others)
        self.model.others = self.others if rows is None else tuple(of_rows)

    def feature_maps(self, output: Tensor, inputs: Images) -> FeatureMaps:
        """What the target layer gave, or its gradient, as (N, K, h, w).

        Raises:
            LayerError: it cannot be told how, or it is another number of photographs.
        """
        self.formats.add(str(output.dtype).removeprefix("torch."))
        if self.layout is None:
            self.layout = layout_of(output.shape, self._told_at_layer, inputs.shape, sure=self._sure)
        return arranged(output, self.layout, inputs.shape).to(at_least_fp32(inputs.dtype))

    def in_batches(
        self,
        items: Iterable[Item],
        count: int,
        work: Callable[[list[Item]], None],
        like: Images,
        *,
        gradients: bool = True,
    ) -> None:
        """Call `work` on consecutive pieces of items, each small enough for one pass.

        Args:
            items: streamed.
            count: how many there are.
            work: changes nothing outside itself before its memory is allocated: after running out it is called again.
            like: inputs of the passes, for their size and device.
            gradients: whether the passes go back to the input.
        """
        done = 0

        def counted(piece: list[Item]) -> None:
            nonlocal done
            work(piece)
            done += len(piece)
            if self.progress:
                self.progress(done, count)

        auto = first_size(like, gradients=gradients)
        micro_batches(items, self.batch_size, counted, device=like.device, auto=auto, count=count)

    def _note_layout(self, module: nn.Module, args: object, output: object) -> None:
        self._told_at_layer, self._sure = self._told.layout, self._told.sure(output)
        self._told.forget()


def scaled_score(logits: Logits, target: Target) -> Tensor:
    """`SCORE_SCALE` · Σ of each photograph's own logit, so that each one's gradient is its own."""
    chosen = logits.gather(1, target[:, None])
    return chosen.to(at_least_fp32(logits.dtype)).sum() * SCORE_SCALE
