"""What a map explains: from whatever a model gives to logits (N, classes), and from those to one score a photograph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.classes import ClassError
from parity.contract.text import one_line
from torch_impl.arrays import Images, Logits, Target
from torch_impl.precision import sent
from torch_impl.preserve import ModelError

TOGETHER = (
    "the model normalizes each photograph by its neighbours (BatchNorm without running statistics): its maps depend on what else "
    "is in the pass; give batch_size=1 for those of each photograph by itself"
)

Score = Callable[[Any], Tensor]
"""A model's whole output for N photographs → one number for each, (N,)."""

OUTPUTS = ("logits", "probabilities")
"""What a model's outputs may be said to be."""

SUM_TOLERANCE = 1e-2
"""How far the outputs of a photograph may be from 1 in sum, for probabilities: bfloat16's rounding of a thousand classes."""


PROBABILITIES = (
    "the model's outputs are probabilities already (none negative, sum 1): the maps explain those, which saturate; give a "
    "model that ends in logits, without its softmax"
)


class Classifier(nn.Module):
    """A model whose output is logits (N, classes), or one score a photograph, whatever the model itself gives.

    A network with one output has two classes, as tf-keras-vis's `BinaryScore` has: 1, whose score is the output, and 0, whose
    score is its negative.

    Args:
        model: the network.
        score: what is explained instead of a class's logit: a function of the model's whole output.

    Attributes:
        others: the model's further inputs, a tensor each with a row for every photograph of the pass.
        together: whether what the model gives for a photograph depends on its neighbours in the pass.
        single: whether the network has one output; None before it has run.
    """

    def __init__(self, model: nn.Module, score: Score | None = None) -> None:
        super().__init__()
        self.model, self.score = model, score
        self.others: tuple[Tensor, ...] = ()
        self.single: bool | None = None
        batch_norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.together = any(m.running_mean is None for m in batch_norms)
        if next(model.parameters(), None) is None:  # pytorch-grad-cam asks the first one where the model is
            self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def train(self, mode: bool = True) -> Classifier:
        """Nothing: the libraries' `eval()` is not for a double, which is prepared already."""
        return self

    def forward(self, inputs: Images) -> Logits:
        """Inputs (N, C, H, W) → (N, classes); with a score of one's own (N, 1).

        Raises:
            ModelError: the output is no logits, and there is no score to say what is meant.
        """
        if self.together and len(inputs) > 1:
            raise ModelError(TOGETHER)
        inputs = inputs.clone(memory_format=torch.preserve_format)  # the model may work in place on it
        try:
            output = self.model(inputs, *self.others)
        except TypeError as error:
            alone = "one input (torch_impl.methods take a tuple of several)"
            given = f"{1 + len(self.others)} inputs" if self.others else alone
            raise ModelError(f"the model fails with {given}: {one_line(error)}") from error
        if self.score is not None:
            return scores_of(self.score, output, len(inputs))[:, None]
        logits = logits_of(output, len(inputs))
        self.single = logits.shape[1] == 1
        return torch.cat([-logits, logits], dim=1) if self.single else logits


def check_pictures(inputs: Any) -> None:
    """Refuse what is no batch of pictures.

    Raises:
        ValueError: not a floating-point tensor (N, C, H, W).
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point() or 0 in inputs.shape:
        given = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs are {given}: give preprocessed pictures, floating-point (N, C, H, W)")
    if inputs.shape[-1] in (1, 3, 4) and inputs.shape[1] > 4:
        raise ValueError(
            f"inputs are {tuple(inputs.shape)}, channels last: give (N, C, H, W), as inputs.permute(0, 3, 1, 2)"
        )


def checked_inputs(inputs: Any) -> tuple[Images, list[Tensor]]:
    """A model's inputs: the pictures, and what else it takes.

    Args:
        inputs: the pictures, or a list or tuple of all inputs, the pictures first.

    Raises:
        ValueError: no floating-point tensor (N, C, H, W), or another input without a row for each photograph.
    """
    pictures, *others = inputs if isinstance(inputs, (tuple, list)) and inputs else [inputs]
    check_pictures(pictures)
    count = len(pictures)
    for number, values in enumerate(others, start=2):
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != count:
            given = f"{tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"input {number} is {given}: give a tensor with a row for each of the {count} photographs")
    return pictures, others


def logits_of(output: Any, count: int) -> Logits:
    """The logits (N, classes) in a model's output: itself, its `.logits`, its entry "logits", or the one entry it has.

    Raises:
        ModelError: it is something else; the message says what, and names `score=`.
    """
    values = output
    if isinstance(getattr(values, "logits", None), Tensor):
        values = values.logits
    elif isinstance(values, Mapping):
        values = values["logits"] if "logits" in values else next(iter(values.values())) if len(values) == 1 else values
    elif isinstance(values, (tuple, list)) and len(values) == 1:
        values = values[0]
    advice = "say with score= what is explained, a function of the whole output that gives one number a photograph"
    if not isinstance(values, Tensor):
        kind = type(values).__name__
        if isinstance(values, Mapping):
            kind = f"a dict of {', '.join(map(str, values))}"
        elif isinstance(values, (tuple, list)):
            kind = f"a {kind} of {len(values)}"
        raise ModelError(f"the model's output is {kind}, not logits (N, classes): {advice}")
    while values.ndim > 2 and values.shape[-1] == 1:  # (N, classes, 1, 1) of a convolution
        values = values[..., 0]
    if values.ndim == 1 and len(values) == count:
        values = values[:, None]
    if values.ndim != 2 or len(values) != count or not values.shape[1]:
        raise ModelError(
            f"the model's output has shape {tuple(values.shape)} for {count} photographs, not (N, classes): {advice}"
        )
    if not values.is_floating_point():
        raise ModelError(f"the model's output is {values.dtype}, not floating-point as logits are: {advice}")
    return values


def scores_of(score: Score, output: Any, count: int) -> Tensor:
    """What a score of one's own gives, (N,).

    Raises:
        ModelError: it is not one number a photograph.
    """
    try:
        values = score(output)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ModelError(f"score= fails on the model's output: {type(error).__name__}: {one_line(error)}") from error
    if isinstance(values, (list, tuple)) and all(isinstance(v, Tensor) and v.numel() == 1 for v in values):
        values = torch.stack([v.reshape(()) for v in values])
    if isinstance(values, Tensor) and values.shape == (count, 1):
        values = values[:, 0]
    if not isinstance(values, Tensor) or values.shape != (count,) or not values.is_floating_point():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ModelError(
            f"score= gave {shape} for {count} photographs: it must give one number for each, shape ({count},)"
        )
    return values


def are_probabilities(logits: Logits) -> bool:
    """Whether outputs (N, classes) are probabilities already: none negative, each photograph's sum 1."""
    wide = logits.detach().cpu().double()
    return wide.shape[1] > 1 and bool((wide >= 0).all()) and bool(((wide.sum(dim=1) - 1).abs() < SUM_TOLERANCE).all())


def checked_target(target: Any, count: int) -> list[int]:
    """A target as people write it → the class of each photograph.

    Args:
        target: one index, or one for each photograph: an int, a list, an array or a tensor of integers.
        count: photographs.

    Raises:
        ClassError: anything else.
    """
    wanted = f"give one class index, or one for each of the {count} photographs"
    if isinstance(target, (Tensor, np.ndarray)):
        target = target.tolist()
    values = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    values = [v.item() if isinstance(v, (Tensor, np.ndarray)) and v.shape == () else v for v in values]
    if not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values):
        raise ClassError(f"target {_short(target)}: {wanted}")
    if any(v < 0 for v in values):
        raise ClassError(f"target {_short(target)}: a class index is 0 or more; {wanted}")
    if len(values) not in (1, count) or (len(values) == 1 != count and isinstance(target, Sequence)):
        raise ClassError(f"target {_short(target)} holds {len(values)} classes: {wanted}")
    return [int(v) for v in values] * (count if len(values) == 1 else 1)


def within(indices: list[int], logits: Logits) -> Target:
    """Class indices as a tensor beside the logits.

    Raises:
        ClassError: the network has no such class.
    """
    if max(indices) >= logits.shape[1]:
        raise ClassError(
            f"class {max(indices)} does not exist: the network has {logits.shape[1]}, 0 to {logits.shape[1] - 1}"
        )
    return sent(torch.tensor(indices), logits.device)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
