"""From inputs to raw maps: pass by pass, every map by its function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.contract.methods import Options
from torch_impl.arrays import Images, Logits, Target
from torch_impl.batching import Pieces, first_size, micro_batches, taken
from torch_impl.capture.passes import Capture, MapError, Progress
from torch_impl.maps.registry import DRAWN
from torch_impl.precision import at_least_fp32
from torch_impl.preserve import preserved

ChooseRows = Callable[[Logits, list[int]], Target]
"""(logits of some photographs, their rows) → the class of each that is explained."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Raw maps, on the inputs' device.

    Attributes:
        target: (N,) the explained class of each photograph, int64.
        raw: method → (N, h, w) at the target layer, or (N, H, W) at the input.
        logits: (N, classes), float32, or float64 for float64 inputs; None where the classes were given and no map needed them.
    """

    target: Tensor = field(repr=False)
    raw: Mapping[str, Tensor] = field(repr=False)
    logits: Tensor | None = field(default=None, repr=False)


def draw(
    capture: Capture,
    inputs: Images,
    target: Target | ChooseRows,
    names: Sequence[str],
    options: Options,
    progress: Progress | None = None,
) -> Drawn:
    """Raw maps of photographs.

    Args:
        capture: of the model, which comes back as it was.
        inputs: preprocessed.
        target: the explained classes, or how they are chosen from the logits.
        names: of `registry.DRAWN`; none: logits and classes alone.
        options: SmoothGrad's.
        progress: called after each pass.

    Raises:
        LayerError: the target layer cannot carry a map.
        MapError: logits or a map are not finite.
    """
    needs = frozenset[str]().union(*(DRAWN[name].needs for name in names))
    wide, count = at_least_fp32(inputs.dtype), len(inputs)
    results = {name: Pieces(count) for name in ("logits", "target", *names)}
    capture.progress = progress

    def one_piece(rows: list[int]) -> None:
        chosen = (lambda logits: target(logits, rows)) if callable(target) else taken(target, rows)
        p = capture.take(taken(inputs, rows), chosen, needs, options)
        raw = {name: DRAWN[name].function(p) for name in names}
        # Only now, after everything that may run out of memory: see `micro_batches`.
        results["target"].put(rows, p.target)
        if p.logits is not None:
            results["logits"].put(rows, p.logits.to(wide))
        for name, maps in raw.items():
            results[name].put(rows, maps)
        if progress and needs:
            progress(rows[-1] + 1, count)

    with preserved(capture.model):
        auto = first_size(inputs, gradients="input_gradients" in needs)
        micro_batches(range(count), capture.batch_size, one_piece, device=inputs.device, auto=auto, count=count)
    logits = results["logits"].whole if callable(target) else None
    if logits is not None and not bool(torch.isfinite(logits).all()):
        raise MapError("the logits are not finite: the number format is too narrow, or the inputs hold NaN; try fp32")
    return Drawn(results["target"].whole, {name: finite(name, results[name].whole) for name in names}, logits)


def finite(name: str, raw: Tensor) -> Tensor:
    """The raw maps (N, …) themselves.

    Raises:
        MapError: a value is not finite; the message counts the photographs.
    """
    if bool(torch.isfinite(raw).all()):
        return raw
    broken = [str(i) for i, values in enumerate(raw) if not torch.isfinite(values).all()]
    raise MapError(
        f"{name}: the map of photograph {', '.join(broken)} (counted from 0) is not finite: "
        "the inputs hold NaN, or the number format is too narrow; try fp32"
    )
