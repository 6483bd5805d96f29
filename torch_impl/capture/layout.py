"""How a layer's output is laid out, and how it becomes feature maps (N, K, h, w)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, pooling

from parity.contract.text import one_line
from torch_impl.arrays import FeatureMaps

FeatureLayout = str | tuple[int, int] | Callable[[Tensor], Tensor] | None
"""`nchw`, `nhwc`, `tokens`; (h, w): tokens of that grid behind any others; a rearrangement to (N, K, h, w); None: found out."""

LAYOUTS = ("nchw", "nhwc", "tokens")

POOLS = (pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd)

_CHANNELS_FIRST = (conv._ConvNd, batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm, *POOLS)
_CHANNELS_LAST = (nn.Linear,)

ADVICE = 'say how with feature_layout="nchw", "nhwc", "tokens", or a function to (N, K, h, w)'


class LayerError(ValueError):
    """The target layer does not exist, or cannot carry a class activation map."""


def told_by(module: nn.Module) -> str:
    """The layout that a module without parts gives 4-dimensional outputs in; "" where it does not say."""
    if type(module).__name__ == "Permute":  # torchvision's
        dims = list(getattr(module, "dims", []))
        return {(0, 3, 1, 2): "nchw", (0, 2, 3, 1): "nhwc"}.get(tuple(dims), "")
    if isinstance(module, nn.LayerNorm):  # LayerNorm2d, a subclass in several libraries, permutes there and back
        return "nchw" if "2d" in type(module).__name__.lower() else "nhwc"
    if isinstance(module, _CHANNELS_FIRST):
        return "nchw"
    return "nhwc" if isinstance(module, _CHANNELS_LAST) else ""


class Told:
    """What the modules say of the layout as they run: heard after each of them.

    Attributes:
        layout: what was said last; "" where nobody says.
    """

    def __init__(self) -> None:
        self.layout = ""
        self._last: object = None
        self._all: set[str] = set()

    def hear(self, module: nn.Module, args: object, output: object) -> None:
        """A forward hook."""
        if isinstance(output, Tensor) and output.ndim == 4 and (says := told_by(module)):
            self.layout, self._last = says, output
            self._all.add(says)

    def sure(self, output: object) -> bool:
        """Whether that holds for this output: it is the very one of which it was said, or nobody said otherwise before."""
        return output is self._last or self._all == {"nchw"}

    def forget(self) -> None:
        """The last output: it is memory."""
        self._last = None


def layout_of(shape: Sequence[int], told: str, inputs: Sequence[int], *, sure: bool = True) -> str:
    """The layout of a layer's output, from the modules before it and from the picture's own shape.

    Args:
        shape: of the output, (N, …).
        told: by the last module that says: see `told_by`; "" where none does.
        inputs: shape of the network's inputs (N, C, H, W).
        sure: whether nothing can have moved the axes since: else the shape must say the same, and nothing else.

    Raises:
        LayerError: it cannot be told, or the two contradict each other; the message names the option.
    """
    if len(shape) == 3:
        raise LayerError(f"the target layer's output is {tuple(shape)}, tokens rather than feature maps: {ADVICE}")
    if len(shape) != 4:
        raise LayerError(f"the target layer's output is {tuple(shape)}; a class activation map needs (N, K, h, w)")
    fitting = [layout for layout, grid in (("nchw", shape[2:]), ("nhwc", shape[1:3])) if _fits(grid, inputs[-2:])]
    if told and (fitting == [told] or (sure and (told in fitting or not fitting))):
        return told
    if not told and len(fitting) == 1:
        return fitting[0]
    against = told and fitting and told not in fitting
    what = (
        f"the layers before it give {told}, its shape says otherwise" if against else "nothing says which axis is which"
    )
    raise LayerError(f"the target layer's output is {tuple(shape)}, and {what}: {ADVICE}")


def _fits(grid: Sequence[int], picture: Sequence[int]) -> bool:
    """Whether a grid (h, w) has the picture's proportions, to less than a cell, and no more places than pixels."""
    (h, w), (height, width) = grid, picture
    return h <= height and w <= width and abs(h * width - w * height) < max(height, width)


def arranged(output: Tensor, layout: FeatureLayout, inputs: Sequence[int]) -> FeatureMaps:
    """A layer's output, or the gradient with respect to it, as feature maps.

    Args:
        output: (N, …).
        layout: never None here.
        inputs: shape of the network's inputs (N, C, H, W).

    Raises:
        LayerError: the output is not laid out so, or holds another number of photographs.
    """
    shape = tuple(output.shape)
    if callable(layout):
        try:
            rearranged: Any = layout(output)
        except Exception as error:
            what = f"{type(error).__name__}: {one_line(error)}"
            raise LayerError(f"feature_layout fails on the target layer's output {shape}: {what}") from error
        if not isinstance(rearranged, Tensor) or rearranged.ndim != 4:
            given = tuple(rearranged.shape) if isinstance(rearranged, Tensor) else type(rearranged).__name__
            raise LayerError(
                f"feature_layout gave {given} for the target layer's output {shape}; it must give (N, K, h, w)"
            )
        maps = rearranged
    elif layout in ("nchw", "nhwc"):
        if len(shape) != 4:
            raise LayerError(f'the target layer\'s output is {shape}, which is not "{layout}": {ADVICE}')
        maps = output if layout == "nchw" else output.permute(0, 3, 1, 2)
    else:
        if len(shape) != 3:
            raise LayerError(f"the target layer's output is {shape}; tokens are (N, tokens, K): {ADVICE}")
        h, w = layout if isinstance(layout, tuple) else _grid(shape[1], inputs[-2:])
        if h * w > shape[1]:
            raise LayerError(f"feature_layout ({h}, {w}): the target layer has {shape[1]} tokens, fewer than {h * w}")
        picture = output[:, shape[1] - h * w :]  # the class token, and registers, stand first
        maps = picture.transpose(1, 2).reshape(shape[0], shape[2], h, w)
    if len(maps) != inputs[0]:
        raise LayerError(
            f"the target layer's output holds {len(maps)} of something for {inputs[0]} photographs (crops, frames, or both "
            "sides of a flip?): its maps cannot be told apart; choose a layer with one row a photograph"
        )
    return maps


def _patches(grid: tuple[int, int], picture: Sequence[int]) -> bool:
    """Whether square patches, side by side, make a grid (h, w) of the picture; of a square picture, any square grid."""
    (h, w), (height, width) = grid, picture
    if height == width:
        return h == w
    return any(
        (height // p, width // p) == grid or (-(-height // p), -(-width // p)) == grid for p in range(1, height + 1)
    )


def _grid(tokens: int, picture: Sequence[int]) -> tuple[int, int]:
    """(h, w) of so many tokens, one of which may be the class's.

    Raises:
        LayerError: neither this number nor one less makes a grid of the picture's proportions.
    """
    for count in (tokens, tokens - 1):
        for h in range(1, count + 1):
            if count % h == 0 and count > 1 and _patches((h, count // h), picture):
                return h, count // h
    raise LayerError(
        f"{tokens} tokens make no grid of the picture's proportions, with or without a class token: give "
        "feature_layout=(h, w); tokens before the last h·w are left out"
    )


def checked_layout(layout: FeatureLayout) -> FeatureLayout:
    """The layout itself.

    Raises:
        ValueError: unknown.
    """
    grid = isinstance(layout, tuple) and len(layout) == 2 and all(isinstance(n, int) and n > 0 for n in layout)
    if layout is None or layout in LAYOUTS or callable(layout) or grid:
        return layout
    raise ValueError(f"feature_layout {layout!r} is unknown; give {', '.join(LAYOUTS)}, (h, w), or a function")
