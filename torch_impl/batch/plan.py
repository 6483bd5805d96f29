"""What decides the rows of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import zip_longest

from parity.contract.text import one_line
from torch_impl.framing import Size, sides

RESOLUTIONS = ("raw", "full")
"""raw: CAMs at the layer's resolution, before they are enlarged. full: normalized, at the network's input size."""

PART_ROWS = 256
"""Rows of a part: what a kill can cost, some 20 s on two cores, and 5,000 files for ImageNet's training set."""


@dataclass(frozen=True)
class Plan:
    """Everything that a row depends on beside its photograph and class.

    How fast and where it is computed (device, batch size, runner) is not in it: that may change from start to start.

    Attributes:
        methods: canonical names, in the order of the columns.
        weights: where the weights came from, in words; not compared.
        fingerprint: of the weights.
        size: of the network's input, pixels: a square's side, or (height, width).
        input: preprocessing.
        resize: `lab` or `torchvision`.
        n_samples: SmoothGrad's noisy copies.
        noise_level: SmoothGrad's σ, a fraction of each image's range.
        seed: of SmoothGrad's noise.
        precision: number format of the passes.
        engine: `shared` or `library`.
        resolution: one of `RESOLUTIONS`.
        part_rows: rows of a part, all but the last.
        channels: feature maps that Faster-ScoreCAM takes.
        explainer: `module:name` of a network of the user's own; "" for VGG16.
        labels: of the classes, where they were given.
    """

    methods: tuple[str, ...]
    weights: str = field(compare=False)
    fingerprint: str
    size: Size
    input: str
    resize: str
    n_samples: int
    noise_level: float
    seed: int
    precision: str
    engine: str
    resolution: str
    part_rows: int
    channels: int | None = None
    explainer: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return sides(self.size)

    def difference(self, other: Plan) -> str:
        """The first setting that differs, in words: `methods gradcam there, vanilla here`. Empty: the same rows.

        Args:
            other: as it is wanted now; self is as it was.
        """
        for setting in fields(self):
            there, here = getattr(self, setting.name), getattr(other, setting.name)
            if setting.compare and there != here:
                if setting.name == "labels":  # a thousand, of which the first that differ
                    there, here = next(pair for pair in zip_longest(there or (), here or ()) if len(set(pair)) > 1)
                return f"{_WORDS.get(setting.name, setting.name)} {_shown(there)} there, {_shown(here)} here"
        return ""


_WORDS = {
    "fingerprint": "weights' fingerprint",
    "n_samples": "samples",
    "noise_level": "noise",
    "part_rows": "part size",
}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else one_line(str(value))[:16]
