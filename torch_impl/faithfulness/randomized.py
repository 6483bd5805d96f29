"""Whether maps know the weights: the network's layers drawn anew, from the top down, and how alike the maps stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from torch_impl.preserve import Double

if TYPE_CHECKING:
    from torch_impl.explainer import Explainer


def weighted_layers(model: nn.Module) -> list[nn.Module]:
    """The modules with floating-point weights of their own, in the model's order, the top last."""
    return [m for m in model.modules() if any(p.is_floating_point() for p in m.parameters(recurse=False))]


def stages_of(layers: int, stages: int) -> list[int]:
    """Numbers of layers from the top: evenly from 1 to all of them; of a single stage all."""
    return sorted({round(float(count)) for count in np.linspace(layers, 1, stages)}) if layers else []


def with_random_layers(explainer: Explainer, stages: int, seed: int) -> Iterator[tuple[int, Explainer]]:
    """(layers from the top that were drawn anew, an explainer of that network); the user's own network stays as it is.

    Each weight is drawn from a normal distribution with its tensor's own mean and standard deviation, so that the network
    neither fades nor overflows.

    Source: arXiv:1810.03292, cascading randomization.
    """
    random = copy.copy(explainer)
    random.model = Double(explainer.model, device=explainer.device).model  # weights of its own
    layers = weighted_layers(random.model)
    generator = torch.Generator(explainer.device).manual_seed(seed)
    done = 0
    for count in stages_of(len(layers), stages):
        with torch.no_grad():
            for layer in layers[len(layers) - count : len(layers) - done]:
                for values in layer.parameters(recurse=False):
                    if values.is_floating_point():
                        mean, spread = float(values.mean()), float(values.std(unbiased=False))
                        values.normal_(mean, spread, generator=generator)
        done = count
        yield count, random


def likeness(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of maps (N, H, W) with others, photograph by photograph; NaN where the first is constant.

    Where the second is constant nothing is left of the first: 0.
    """
    from scipy.stats import spearmanr

    values = []
    for one, other in zip(maps, others, strict=True):
        if one.min() == one.max() or other.min() == other.max():
            values.append(np.nan if one.min() == one.max() else 0.0)
        else:
            values.append(float(spearmanr(one, other, axis=None).statistic))
    return np.array(values)
