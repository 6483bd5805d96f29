"""Who draws which map: name → function of a `Pass`. Files of maps enter themselves here; `torch_impl.maps` imports them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from parity.contract.methods import METHODS
from torch_impl.capture.passes import Pass

Function = Callable[[Pass], Tensor]
"""A pass → the raw map, (N, h, w) at the layer or (N, H, W) at the input: not enlarged, not normalized."""


@dataclass(frozen=True)
class Drawing:
    """A map's function and what of a pass it reads: `activations`, `gradients`, `input_gradients`."""

    function: Function
    needs: frozenset[str]


DRAWN: dict[str, Drawing] = {}
"""Filled by `drawn`."""


def drawn(name: str, *, needs: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Enter a function as the one that draws a map.

    Args:
        name: a row of `parity.contract.methods`.
        needs: attributes of a `Pass` that it reads; without gradients, passes are shorter.
    """
    assert name in METHODS, name

    def enter(function: Function) -> Function:
        DRAWN[name] = Drawing(function, frozenset(needs))
        return function

    return enter
