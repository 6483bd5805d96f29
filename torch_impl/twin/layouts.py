"""How an output of a PyTorch module lies beside the reference's, whose channels are last."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


def layouts(output: Shape, shape: Shape) -> tuple[str, ...]:
    """The ways in which an output (1, …) may hold what the reference has as `shape`.

    Returns:
        `nchw` (channels first), `same` (the axes as they are), `flat` (the same numbers in one row).
    """
    given, answers = tuple(output[1:]), []
    if len(shape) == 3 and given == (shape[2], shape[0], shape[1]):
        answers.append("nchw")
    if given == shape:
        answers.append("same")
    one_place = math.prod(shape[:-1]) == 1 and math.prod(given) == shape[-1]
    if one_place and not answers:
        answers.append("flat")
    return tuple(answers)


def arranged(output: Tensor, layout: str, shape: Shape) -> Tensor:
    """An output (N, …) as the reference has it, (N, *shape)."""
    if layout == "nchw":
        return output.movedim(1, -1)
    return output if layout == "same" else output.reshape(len(output), *shape)


def channels_first(values: Tensor, layout: str, shape: Shape) -> Tensor:
    """An output (N, …) with its channels as the second axis, as `compute` takes it."""
    values = arranged(values, layout, shape)
    return values.movedim(-1, 1) if values.ndim == 4 else values


def places_in(output: Shape, layout: str, shape: Shape, places: np.ndarray) -> Tensor:
    """Where the reference's kept values, at `places` of its flattened `shape`, lie in the flattened output of one photograph."""
    if layout != "nchw":
        return torch.tensor(places)
    rows, columns, channels = np.unravel_index(places, shape)
    height, width = shape[:2]
    return torch.from_numpy((channels * height + rows) * width + columns)
