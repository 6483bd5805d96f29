"""Each map as a function of tensors, for people who already have a model and inputs: one for every map of the reference.

    from torch_impl.methods import gradcam
    maps = gradcam(model, inputs, target, target_layer="layer4")   # (N, H, W) in [0, 1]

Every function leaves the model as it was. On CUDA it computes in strict float32, whatever PyTorch's TF32 switches say.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from parity.contract.methods import METHODS, REFERENCE, Options, canonical_name
from torch_impl import maps  # noqa: F401  (fills the registry)
from torch_impl.arrays import Images, Maps, Target
from torch_impl.batching import BatchSize
from torch_impl.capture.draw import draw
from torch_impl.capture.target_layer import find_layer
from torch_impl.maps.postprocess import finish
from torch_impl.maps.registry import DRAWN
from torch_impl.precision import name_of, numerics

__all__ = ["finish", "raw_maps"]

_OPTIONS = ("n_samples", "noise_level", "seed")


def raw_maps(
    method: str,
    model: nn.Module,
    inputs: Images,
    target: Target,
    *,
    target_layer: str | nn.Module | None = None,
    batch_size: BatchSize = "auto",
    engine: str = "library",
    **options: Any,
) -> Tensor:
    """A map before it is enlarged and normalized.

    Args:
        method: a name of `parity.contract.methods.METHODS`, or an alias.
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        target_layer: of the class activation maps: a module of the model, or its name; its output must be (N, K, h, w).
        batch_size: images, or noisy copies, in one pass; "auto" or a number.
        engine: `library` or `shared`: see `torch_impl.capture`.
        options: SmoothGrad's `n_samples`, `noise_level`, `seed`.

    Returns:
        (N, h, w) at the layer, or (N, H, W) at the input; ≥ 0; float32, or float64 for float64 inputs.

    Raises:
        ValueError: an unknown method, or options out of range.
        LayerError: no such layer, or one that cannot carry a map.
        MapError: a value is not finite.
    """
    name = canonical_name(method)
    layer = None if target_layer is None else find_layer(model, target_layer)
    capture = capture_class(engine)(model, layer, batch_size)
    with numerics(name_of(inputs.dtype)):
        return draw(capture, inputs, target, [name], Options(**options)).raw[name]


def capture_class(engine: str) -> Any:
    """The `Capture` of an engine. pytorch-grad-cam and Captum, which take seconds, are imported for `library` alone."""
    if engine == "shared":
        from torch_impl.capture.one_pass import OnePass

        return OnePass
    from torch_impl.capture.libraries import Libraries

    return Libraries


@lru_cache
def _function(name: str) -> Callable[..., Maps]:
    """A map's function: its signature from the table's row, its words from the function that draws it."""
    row, formula = METHODS[name], DRAWN[name].function
    own = (["target_layer"] if row.at_layer else []) + (list(_OPTIONS) if row.noisy else [])

    def function(model: nn.Module, inputs: Images, target: Target, **keywords: Any) -> Maps:
        if unknown := keywords.keys() - {*own, "batch_size"}:
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if row.at_layer and keywords.get("target_layer") is None:
            raise TypeError(f"{name}() needs target_layer: a module of the model, or its name")
        raw = raw_maps(name, model, inputs, target, **keywords)
        return finish(raw, (int(inputs.shape[-2]), int(inputs.shape[-1])))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{row.title}, enlarged to the image where it is smaller, then normalized: (N, H, W) in [0, 1].\n\n"
    )
    function.__doc__ += f"    Arguments and errors as `raw_maps`. The raw map: {formula.__doc__}"
    defaults = {"target_layer": inspect.Parameter.empty, "batch_size": "auto", **vars(Options())}
    positional = list(inspect.signature(function).parameters.values())[:3]
    keyword = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults[key]) for key in (*own, "batch_size")
    ]
    function.__signature__ = inspect.Signature([*positional, *keyword], return_annotation=Maps)  # type: ignore[attr-defined]
    return function


def __getattr__(name: str) -> Callable[..., Maps]:
    """The function of a map of the reference."""
    if name in REFERENCE:
        return _function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *REFERENCE])
