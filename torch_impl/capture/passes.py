"""A pass: what one forward and at most one backward pass of a few photographs gave. Every map is a function of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl.arrays import FeatureMaps, Images, Logits, Target
from torch_impl.batching import BatchSize, Item, first_size, micro_batches
from torch_impl.precision import score_scale

Choose = Callable[[Logits], Target]
"""Logits of some photographs → the class of each that is explained."""

Progress = Callable[[int, int], None]
"""Called with (passes done, passes in all)."""


class MapError(ArithmeticError):
    """A map or a logit is not finite; the message says which and what to do."""


@dataclass(frozen=True, eq=False, kw_only=True)
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
    """

    inputs: Images
    target: Target
    options: Options
    capture: Capture
    logits: Logits = field(default=None)  # type: ignore[assignment]
    activations: FeatureMaps = field(default=None)  # type: ignore[assignment]
    gradients: FeatureMaps = field(default=None)  # type: ignore[assignment]
    input_gradients: Images = field(default=None)  # type: ignore[assignment]


class Capture(ABC):
    """A model, and how its activations and gradients are had.

    Args:
        model: gives logits (N, classes). Frozen and in eval mode when it is run: see `preserve.preserved`.
        layer: that class activation maps are drawn on; None where no map needs one.
        batch_size: photographs, or copies of them, in one pass.
    """

    one_by_one = False
    """Whether each map is drawn by a call of its own."""

    def __init__(self, model: nn.Module, layer: nn.Module | None, batch_size: BatchSize = "auto") -> None:
        self.model, self.layer, self.batch_size = model, layer, batch_size
        self.progress: Progress | None = None

    @abstractmethod
    def take(self, inputs: Images, target: Target | Choose, needs: Collection[str], options: Options) -> Pass:
        """One pass.

        Args:
            inputs: preprocessed; may be changed by a network that works in place.
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

    def in_batches(self, items: Iterable[Item], count: int, work: Callable[[list[Item]], None], like: Images) -> None:
        """Call `work` on consecutive pieces of items, each small enough for one pass with gradients.

        Args:
            items: streamed.
            count: how many there are.
            work: changes nothing outside itself before its memory is allocated: after running out it is called again.
            like: inputs of the passes, for their size and device.
        """
        done = 0

        def counted(piece: list[Item]) -> None:
            nonlocal done
            work(piece)
            done += len(piece)
            if self.progress:
                self.progress(done, count)

        micro_batches(items, self.batch_size, counted, device=like.device, auto=first_size(like), count=count)


def forward(model: nn.Module, inputs: Images) -> Logits:
    """A forward pass, and a look at what came out.

    Raises:
        ValueError: the model's output is not (N, classes).
    """
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model's output has shape {shape}; expected logits (N, classes)")
    return logits


def scaled_score(logits: Logits, target: Target) -> tuple[Tensor, float]:
    """Σ of each photograph's own logit, so that each one's gradient is its own; and its scale, where float16 needs one."""
    scale = score_scale(logits.dtype)
    chosen = logits.gather(1, target[:, None])
    return (chosen.sum() if scale == 1 else (chosen.float() * scale).sum()), scale
