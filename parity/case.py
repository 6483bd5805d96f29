"""One stage of one photograph with both sides' numbers: what is judged, and what every test for a cause looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parity import formulas
from parity.contract.artifact import Artifact
from parity.contract.layers import Layer
from parity.contract.methods import METHODS
from parity.contract.stages import Stage
from parity.rounding import is_max_pool
from parity.similarity import relative_l2

CONSTANT = 1e-3
"""Numbers that spread by less than this of their size are one number: float16's rounding is below."""

SINGLE = (1e-9, 2e-6)
HALF = (3e-5, 4e-3)
"""Relative L2 that float32, or float16, TF32 and bfloat16, leave on a sum of a few thousand products."""


@dataclass(frozen=True)
class Case:
    """See the module.

    Attributes:
        reference: with float64.
        candidate: the same job.
        precision: the candidate's.
        photograph: its row.
        stage: which.
    """

    reference: Artifact
    candidate: Artifact
    precision: str
    photograph: int
    stage: Stage

    @cached_property
    def subjects(self) -> frozenset[str]:
        """What a row of a table may be about, here: the kind of layer, `flattened`, the method and its kind, the input's kind."""
        names = {"", self.stage.method, self.layer.kind if self.layer else ""}
        if self.layer and "flattened" in self.layer.config:
            names.add("flattened")
        if self.stage.method:
            method = METHODS[self.stage.method]
            names |= {"at a layer" if method.at_layer else "at the input"}
            names |= {"by scores"} if any(quantity.name == "scores" for quantity in method.quantities) else set()
        if self.stage.name == "inputs":
            names.add(self.reference.settings.input)
        return frozenset(names)

    @cached_property
    def layer(self) -> Layer | None:
        """The layer of an activation or gradient; the last one of the logits."""
        if self.stage.name == "logits":
            return self.reference.table.layers[-1]
        return next((layer for layer in self.reference.table.layers if layer.name == self.stage.layer), None)

    @cached_property
    def before(self) -> str:
        """The name of the layer that this one reads."""
        return self.layer.inbound[0] if self.layer and self.layer.inbound else ""

    @property
    def is_given(self) -> bool:
        """Whether the candidate gave what it takes to compare this stage."""
        of_raw = self.stage.quantity == "final_with_exp"
        name = f"{self.stage.method}/raw" if of_raw else self.stage.name
        return self.candidate.has(name, self.precision)

    @cached_property
    def actual(self) -> np.ndarray:
        """The candidate's values, float64 (kept,).

        The library leaves exp(score) in `final_with_exp`. It is multiplied back here, so that the library's absolute 1e-7
        squeezes the candidate's map as it does its own. The score is the reference's: exp makes of one unit in the last
        place of a score of 85 a hundred thousandth of the map, and the candidate's score is judged as `score`.
        """
        if self.stage.quantity != "final_with_exp":
            return np.asarray(self.candidate.values(self.stage.name, self.precision)[self.photograph], np.float64)
        score = float(self.reference.values("score", "fp64")[self.photograph, 0])
        return self.kept(formulas.enlarged(self.their_raw, self.candidate.table.size, score)["final_with_exp"])

    @cached_property
    def their_raw(self) -> np.ndarray:
        """The candidate's raw map of this method, float64."""
        raw = self.candidate.whole(f"{self.stage.method}/raw", self.precision)[self.photograph]
        return np.asarray(raw, np.float64)

    def kept(self, array: np.ndarray) -> np.ndarray:
        """The values of a whole stage that an artifact keeps."""
        return np.asarray(self.stage.take(np.asarray(array, np.float64)[None])[0])

    @cached_property
    def expected(self) -> np.ndarray:
        """The reference's."""
        return np.asarray(self.reference.values(self.stage.name, "fp64")[self.photograph])

    @cached_property
    def off(self) -> float:
        """Relative L2 between the two."""
        return relative_l2(self.actual, self.expected)

    @cached_property
    def ratio(self) -> float:
        """The factor between the two where it is the same everywhere, and not 1; else NaN."""
        factor = factor_between(self.actual, self.expected)
        return factor if math.isfinite(factor) and factor != 0 and abs(factor - 1) >= CONSTANT else math.nan

    @property
    def explained(self) -> int:
        """The class whose score it is."""
        return self.reference.classes[self.photograph]

    def both(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """What is kept of a stage by the candidate and by the reference; None where one of them did not give it."""
        if not self.candidate.has(name, self.precision) or not self.reference.has(name, "fp64"):
            return None
        theirs, ours = self.candidate.values(name, self.precision), self.reference.values(name, "fp64")
        return theirs[self.photograph], ours[self.photograph]

    @property
    def of_all(self) -> tuple[np.ndarray, np.ndarray]:
        """The stage's kept values on every photograph, the candidate's and the reference's: float64 (N, kept)."""
        theirs = self.candidate.values(self.stage.name, self.precision).astype(np.float64)
        return theirs, self.reference.values(self.stage.name, "fp64")

    def ours(self, name: str) -> np.ndarray | None:
        """One of the reference's stages, float64, whole; None where it is not given whole."""
        return _whole(self.reference, name, "fp64", self.photograph)

    def theirs(self, name: str) -> np.ndarray | None:
        """The same of the candidate's, in its precision."""
        return _whole(self.candidate, name, self.precision, self.photograph)

    @cached_property
    def logits(self) -> np.ndarray:
        """The reference's."""
        return self.whole("logits")

    @cached_property
    def scores(self) -> np.ndarray:
        """The reference's, of every class."""
        return formulas.class_scores(self.logits)

    @cached_property
    def raw(self) -> np.ndarray:
        """The reference's raw map of this method."""
        return self.whole(f"{self.stage.method}/raw")

    @cached_property
    def activations(self) -> np.ndarray:
        """The reference's A: of the target layer, (h, w, K)."""
        return self.whole(f"activations/{self.reference.table.target}")

    @cached_property
    def gradients(self) -> np.ndarray:
        """The reference's G, (h, w, K)."""
        return self.whole(f"gradients/{self.reference.table.target}")

    @cached_property
    def channels(self) -> np.ndarray:
        """The feature maps that this method takes: (m,) of Faster-ScoreCAM, else all of them."""
        given = self.ours(f"{self.stage.method}/channels")
        return np.arange(self.activations.shape[-1]) if given is None else given.astype(int)

    def whole(self, name: str) -> np.ndarray:
        """One of the reference's stages that are kept whole, float64."""
        return np.asarray(self.reference.whole(name, "fp64")[self.photograph])

    def tensor(self, kind: str) -> np.ndarray | None:
        """The layer's `weight` or `bias`, float64, where the artifact holds it."""
        names = [name for name in self.layer.tensors if name.endswith(f".{kind}")] if self.layer else []
        if not names or self.reference.network is None:
            return None
        return self.reference.network.tensors[names[0]].astype(np.float64)

    @cached_property
    def layer_input(self) -> np.ndarray | None:
        """What the layer read in the reference, where that can be known: (units,), or (h, w, K) before a flatten."""
        table, name = self.reference.table, self.before
        if name and table[name].kind == "flatten":
            name = table[name].inbound[0]
        given = self.ours(f"activations/{name}")
        if given is None and name and is_max_pool(table[name]):
            unpooled = self.ours(f"activations/{table[name].inbound[0]}")
            given = None if unpooled is None else formulas.max_pool(unpooled)
        return given


def _whole(artifact: Artifact, name: str, precision: str, photograph: int) -> np.ndarray | None:
    given = artifact.has(name, precision) and artifact.stage(name).whole
    return np.asarray(artifact.whole(name, precision)[photograph]) if given else None


def factor_between(actual: np.ndarray, expected: np.ndarray) -> float:
    """actual / expected where that is one number everywhere; NaN elsewhere."""
    scale = float(expected @ expected)
    factor = float(actual @ expected) / scale if scale > 0 else math.nan
    return factor if relative_l2(actual, factor * expected) < CONSTANT else math.nan
