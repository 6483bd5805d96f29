"""The stages of a network on its way to the maps: inputs, activations, logits, score and gradients of one photograph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.methods import METHODS
from torch_impl.capture.draw import Drawn
from torch_impl.capture.passes import scaled_score
from torch_impl.maps.postprocess import finish, upsample
from torch_impl.precision import SCORE_SCALE
from torch_impl.preserve import own_gradients
from torch_impl.score import Classifier
from torch_impl.twin.layouts import Shape, arranged
from torch_impl.twin.watch import Watch


@dataclass(frozen=True)
class Tap:
    """Where a layer's values are had.

    Attributes:
        layer: the reference's name.
        layout: see `layouts`; "": handed on channels last, of whatever shape.
        shape: of the reference's output, for the other layouts.
    """

    layer: str
    layout: str = ""
    shape: Shape = ()


def network_stages(
    model: nn.Module, taps: Mapping[str, Tap], inputs: Tensor, target: Tensor, outputs: int
) -> dict[str, np.ndarray]:
    """Every stage that all maps share.

    Args:
        model: a double, in eval mode.
        taps: key of a module's call (`layer3.0.relu:2`) → the layer that it is.
        inputs: of one photograph, (1, C, H, W).
        target: (1,), the explained class.
        outputs: how many the network has: with one, the classes are 0 and 1.

    Returns:
        Stage → values of the photograph, channels last.
    """
    classifier = Classifier(model)
    with own_gradients(), Watch(model).keeping(taps) as kept:
        leaf = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        logits = classifier(leaf)
        slopes = torch.autograd.grad(scaled_score(logits, target), [leaf, *kept.values()], allow_unused=True)
    score = logits[0, target[0]]
    stages = {"inputs": channels_last(inputs[0]), "logits": logits[0, -outputs:], "score": score}
    gradients = {"gradients/inputs": None if slopes[0] is None else channels_last(slopes[0][0])}
    for key, slope in zip(kept, slopes[1:], strict=True):
        tap = taps[key]
        stages[f"activations/{tap.layer}"] = _of_layer(kept[key], tap)
        gradients[f"gradients/{tap.layer}"] = None if slope is None else _of_layer(slope, tap)
    arrays = {name: as_array(values) for name, values in stages.items()}
    return arrays | {name: as_array(g) / SCORE_SCALE for name, g in gradients.items() if g is not None}


def map_stages(drawn: Drawn, size: tuple[int, int]) -> dict[str, Tensor]:
    """Every map's own stages, (N, …): what its function kept, the raw map, and what becomes of that at `size` (H, W)."""
    stages = dict(drawn.stages)
    for name, raw in drawn.raw.items():
        stages |= {f"{name}/raw": raw, f"{name}/final": finish(raw, size)}
        if METHODS[name].at_layer:
            stages[f"{name}/upsampled"] = upsample(raw, size)
    return stages


def as_array(values: Tensor) -> np.ndarray:
    """Values of one photograph as NumPy has them: at least float32."""
    values = values.detach()
    array: np.ndarray = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).cpu().numpy()
    return array


def channels_last(values: Tensor) -> Tensor:
    """Values of one photograph, (…, C, h, w) → (…, h, w, C); others as they are."""
    return values.movedim(-3, -1) if values.ndim >= 3 else values


def _of_layer(values: Tensor, tap: Tap) -> Tensor:
    return arranged(values, tap.layout, tap.shape)[0] if tap.layout else channels_last(values[0])
