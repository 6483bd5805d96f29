"""What decides a run's rows, noted down before the first of them, and compared when the run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from torch_impl.batch.entries import Item

FORMAT = "attention-maps batch 1"
"""Of `run.json` and of the parts. Counted up when a column changes its meaning."""

RESOLUTIONS = ("raw", "full")
"""raw: CAMs at the layer's resolution, before they are enlarged. full: normalized, at the network's input size."""

PART_ROWS = 256
"""Rows of a part: what a kill can cost, some 20 s on two cores, and 5,000 files for ImageNet's training set."""

START_AFRESH = "choose another --out, or delete that folder to start afresh"


class RunError(ValueError):
    """A run that cannot begin or go on; its text is one line: what, where, what to do."""


@dataclass(frozen=True)
class Plan:
    """Everything that a row depends on beside its photograph and class.

    How fast and where it is computed (device, batch size, runner) is not in it: that may change from one start to the next.

    Attributes:
        inputs: as given.
        classes: as given: a table, `top1`, or None.
        root: as given; see `sources.open_inputs`.
        methods: canonical names, in the order of the columns.
        shapes: method → (h, w) of its column.
        weights: where the weights came from, in words.
        fingerprint: of the weights.
        n_classes: of the network.
        size: of the network's input, pixels.
        input: preprocessing.
        resize: `lab` or `torchvision`.
        n_samples: SmoothGrad's.
        noise_level: SmoothGrad's.
        seed: SmoothGrad's.
        precision: number format of the passes.
        engine: `shared` or `library`.
        resolution: one of `RESOLUTIONS`.
        part_rows: rows of a part, all but the last.
    """

    inputs: tuple[str, ...]
    classes: str | None
    root: str | None
    methods: tuple[str, ...]
    shapes: Mapping[str, tuple[int, int]] = field(hash=False)
    weights: str
    fingerprint: str
    n_classes: int
    size: int
    input: str
    resize: str
    n_samples: int
    noise_level: float
    seed: int
    precision: str
    engine: str
    resolution: str
    part_rows: int = PART_ROWS

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Plan:
        """The inverse of `as_json`.

        Raises:
            ValueError, KeyError, TypeError: not what `as_json` gives.
        """
        values = dict(said)
        for name in ("inputs", "methods"):
            values[name] = tuple(values[name])
        values["shapes"] = {name: (int(h), int(w)) for name, (h, w) in values["shapes"].items()}
        return cls(**values)

    def differences(self, other: Plan) -> list[str]:
        """What is set otherwise, in words: `methods gradcam there, vanilla here`. Empty: the same rows.

        Args:
            other: as it is wanted now; self is as it was.
        """
        names = [
            *("inputs", "classes", "root", "methods", "fingerprint", "input", "resize", "precision", "engine"),
            *("resolution", "part_rows"),
        ]
        if any(method.startswith("smoothgrad") for method in (*self.methods, *other.methods)):
            names += ["n_samples", "noise_level", "seed"]
        found = []
        for name in names:
            there, here = getattr(self, name), getattr(other, name)
            if there != here:
                found.append(f"{_WORDS.get(name, name)} {_shown(there)} there, {_shown(here)} here")
        return found


_WORDS = {
    "fingerprint": "weights' fingerprint",
    "n_samples": "samples",
    "noise_level": "noise",
    "part_rows": "part size",
}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(v) if str(v).isprintable() else ascii(v) for v in value)
    if value is None:
        return "none"
    text = str(value)
    return text[:16] if len(text) == 64 else text if text.isprintable() else ascii(text)


@dataclass(frozen=True)
class Part:
    """The unit of work: consecutive items, and one file of rows.

    Attributes:
        number: from 0; its first item has the index `number * part_rows`.
        items: up to `part_rows` of them.
    """

    number: int
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """sha256 over what was listed: indices, keys, classes asked for, sizes and times of the files."""
        digest = hashlib.sha256()
        for item in self.items:
            said = [item.index, item.key, item.path, item.category, *item.stamp]
            digest.update(json.dumps(said).encode() + b"\n")
        return digest.hexdigest()


def parts(items: Iterable[Item], rows: int) -> Iterator[Part]:
    """Cut a listing into parts, by index, so that the same listing gives the same parts however it is worked on."""
    stream, number = iter(items), 0
    while piece := tuple(islice(stream, rows)):
        yield Part(number, piece)
        number += 1


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a part's items into micro-batches, by index within the part."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
