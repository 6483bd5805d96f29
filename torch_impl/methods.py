"""Each map as a function of tensors, for people who already have a model and inputs: one for every map of the reference.

    from torch_impl.methods import gradcam
    maps = gradcam(model, inputs, target, target_layer="layer4")   # (N, H, W) in [0, 1]

Every function leaves the model as it was. On CUDA it computes in strict float32, whatever PyTorch's TF32 switches say.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from parity.contract.methods import METHODS, REFERENCE, Options, canonical_name
from torch_impl import maps  # noqa: F401  (fills the registry)
from torch_impl.arrays import Images, Maps
from torch_impl.batching import BatchSize
from torch_impl.capture.draw import ChooseRows, draw, opened
from torch_impl.capture.layout import FeatureLayout, checked_layout
from torch_impl.capture.target_layer import find_layer
from torch_impl.maps.postprocess import finish
from torch_impl.maps.registry import DRAWN
from torch_impl.precision import name_of, numerics
from torch_impl.score import PROBABILITIES, Score, are_probabilities, checked_inputs, checked_target, within

__all__ = ["finish", "raw_maps"]

_NOISE = ("n_samples", "noise_level", "seed")
_LAYER = ("target_layer", "feature_layout", "relu")
_ALL = ("score", "batch_size", "engine")


def raw_maps(
    method: str,
    model: nn.Module,
    inputs: Images | Sequence[Tensor],
    target: Any = None,
    *,
    target_layer: Any = None,
    score: Score | None = None,
    feature_layout: FeatureLayout = None,
    batch_size: BatchSize = "auto",
    engine: str = "library",
    **options: Any,
) -> Tensor:
    """A map before it is enlarged and normalized.

    Args:
        method: a name of `parity.contract.methods.METHODS`, or an alias.
        model: gives logits (N, classes), an object with `.logits`, or a dict of one entry; anything else with `score`. A
            network with one output has the classes 1 (score: the output) and 0 (score: its negative). Stays as it is.
        inputs: preprocessed (N, C, H, W); or a tuple of a model's inputs, the picture first.
        target: class indices: one for all, or one for each photograph; None: each one's top-1; not used with `score`.
        target_layer: of the class activation maps: a module of the model, its name, or a list of one of these.
        score: what is explained instead of a class's logit: the model's whole output → one number a photograph.
        feature_layout: of the target layer's output, where it cannot be told: see `capture.layout.FeatureLayout`.
        batch_size: images, or noisy copies, in one pass; "auto" or a number.
        engine: `library` or `shared`: see `torch_impl.capture`.
        options: SmoothGrad's `n_samples`, `noise_level`, `seed`; Faster-ScoreCAM's `channels`; the class activation maps' `relu`.

    Returns:
        (N, h, w) at the layer, or (N, H, W) at the input; ≥ 0; float32, or float64 for float64 inputs.

    Raises:
        ValueError: an unknown method, inputs that are no pictures, or options out of range.
        ClassError: no such class, or not one for all or for each.
        LayerError: no such layer, or one that cannot carry a map.
        ModelError: a model that cannot be explained.
        MapError: a value is not finite.
    """
    name = canonical_name(method)
    pictures, others = checked_inputs(inputs)
    layer = None if target_layer is None else find_layer(model, target_layer)
    capture = opened(
        model, layer, engine=engine, batch_size=batch_size, score=score, feature_layout=checked_layout(feature_layout)
    )
    chosen = chooser(None if score else target, len(pictures))
    with numerics(name_of(pictures.dtype)):
        drawn = draw(capture, pictures, chosen, [name], Options(**options), others=others)
    if score is None and drawn.logits is not None and are_probabilities(drawn.logits):
        warnings.warn(PROBABILITIES, stacklevel=3)
    return drawn.raw[name]


def chooser(target: Any, count: int) -> ChooseRows:
    """How a target as people write it becomes a class for each photograph, once the logits say how many there are.

    Raises:
        ClassError: not one class for all, or one for each.
    """
    if target is None:
        return lambda logits, rows: logits.argmax(dim=1)
    indices = checked_target(target, count)
    return lambda logits, rows: within([indices[row] for row in rows], logits)


@lru_cache
def _function(name: str) -> Callable[..., Maps]:
    """A map's function: its signature from the table's row, its words from the function that draws it."""
    row, formula = METHODS[name], DRAWN[name].function
    keywords = (*(_LAYER if row.at_layer else ()), *(_NOISE if row.noisy else ()), *row.options, *_ALL)

    def function(model: nn.Module, inputs: Images | Sequence[Tensor], target: Any = None, **given: Any) -> Maps:
        if unknown := given.keys() - {*keywords}:
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if row.at_layer and given.get("target_layer") is None:
            raise TypeError(f"{name}() needs target_layer: a module of the model, or its name")
        raw = raw_maps(name, model, inputs, target, **given)
        picture = inputs if isinstance(inputs, Tensor) else inputs[0]
        return finish(raw, (int(picture.shape[-2]), int(picture.shape[-1])))

    function.__name__ = function.__qualname__ = name
    words = f"{row.title}, enlarged to the image where it is smaller, then normalized: (N, H, W) in [0, 1].\n\n"
    function.__doc__ = f"{words}    Arguments and errors as `raw_maps`. The raw map: {formula.__doc__}"
    own = inspect.signature(raw_maps).parameters
    usual = {**{key: own[key].default for key in keywords if key in own}, **vars(Options())}
    usual["target_layer"] = inspect.Parameter.empty
    positional = list(inspect.signature(function).parameters.values())[:3]
    named = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=usual[key]) for key in keywords]
    signature = inspect.Signature([*positional, *named], return_annotation=Maps)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def __getattr__(name: str) -> Callable[..., Maps]:
    """The function of a map of the reference."""
    if name in REFERENCE:
        return _function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *REFERENCE])
