"""How an artifact is made: stage by stage, photograph by photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from parity.contract.artifact import (
    Artifact,
    ArtifactError,
    JobSettings,
    Photograph,
    Weights,
    array_name,
    array_shape,
    check_parts,
    frozen,
)
from parity.contract.network import OWN_INPUT
from parity.contract.stages import PRECISIONS, stages


class Recorder:
    """Collects stages photograph by photograph, keeping only what an artifact keeps: memory stays small.

    Args:
        weights: of the network, `Weights.of(network)`; its table says which stages there are.
        settings: likewise.
        pixels: uint8 (N, H, W, 3).
    """

    def __init__(self, weights: Weights, settings: JobSettings, pixels: np.ndarray) -> None:
        whole_inputs = settings.input == OWN_INPUT
        self.stages = stages(
            weights.table, settings.methods, settings.options, settings.sample, whole_inputs=whole_inputs
        )
        self._by_name = {stage.name: stage for stage in self.stages}
        self._weights, self._settings, self._pixels = weights, settings, pixels
        self._rows: dict[tuple[str, str], dict[int, np.ndarray]] = {}

    def add(self, precision: str, photograph: int, stage: str, array: np.ndarray) -> None:
        """Record one stage of one photograph.

        Args:
            precision: one of `stages.PRECISIONS`.
            photograph: its row.
            stage: its name.
            array: the stage's shape, without a leading axis.

        Raises:
            ArtifactError: unknown stage or precision, wrong shape, recorded before, or not real numbers.
        """
        if precision not in PRECISIONS:
            raise ArtifactError(f"precision {precision!r} is unknown; known: {', '.join(PRECISIONS)}")
        if stage not in self._by_name or stage == "pixels":
            raise ArtifactError(f"stage {stage!r} is unknown here; known: {', '.join(self._by_name)}")
        if not 0 <= photograph < len(self._pixels):
            raise ArtifactError(f"stage {stage}: photograph {photograph} of {len(self._pixels)} does not exist")
        array = np.asarray(array)
        if array.dtype.kind not in "fiu":
            raise ArtifactError(f"stage {stage} holds {array.dtype}, expected real numbers")
        rows = self._rows.setdefault((precision, stage), {})
        if photograph in rows:
            raise ArtifactError(f"stage {stage}: photograph {photograph} was recorded twice")
        try:
            kept = self._by_name[stage].take(array[None])[0]
        except ValueError as error:
            raise ArtifactError(str(error)) from None
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinity there
            rows[photograph] = kept.astype(PRECISIONS[precision])

    def artifact(
        self, photographs: Sequence[Photograph], *, undecided: np.ndarray | None = None, **about: Any
    ) -> Artifact:
        """Everything recorded.

        Args:
            photographs: one for each row of every array.
            undecided: bool (N, H, W), see `Artifact.undecided`.
            about: `program`, `versions`, `flags` and what else there is to say: see `Artifact`.

        Raises:
            ArtifactError: a stage lacks a photograph, or the parts do not belong together.
        """
        arrays = {"pixels": np.array(self._pixels, order="C"), **self._stacked()}
        if undecided is not None:
            arrays["undecided"] = undecided.astype(np.uint8)
        arrays.update({f"network/{name}": np.array(a, "<f4", order="C") for name, a in self._weights.tensors.items()})
        artifact = Artifact(
            photographs=tuple(photographs),
            weights=self._weights,
            settings=self._settings,
            stages=self.stages,
            arrays=frozen(arrays),
            **about,
        )
        check_parts(artifact)
        return artifact

    def _stacked(self) -> dict[str, np.ndarray]:
        """Name in the file → what was recorded of a stage in a precision, of every photograph."""
        count = len(self._pixels)
        arrays: dict[str, np.ndarray] = {}
        for stage in self.stages:
            for precision in PRECISIONS:
                rows = self._rows.get((precision, stage.name))
                if rows is None:
                    continue
                if missing := set(range(count)) - rows.keys():
                    raise ArtifactError(f"stage {stage.name} in {precision}: photograph {min(missing)} is missing")
                array = np.stack([rows[i] for i in range(count)])
                arrays[array_name(stage.name, precision)] = array.reshape(array_shape(stage, count))
        return arrays


def merge(first: Artifact, second: Artifact) -> Artifact:
    """One artifact of two runs of the same job in different precisions.

    Raises:
        ArtifactError: they saw other pixels.
    """
    if not np.array_equal(first.pixels, second.pixels):
        raise ArtifactError("the two artifacts differ in their pixels: merge only runs of the same job")
    return replace(
        first,
        warnings=tuple(dict.fromkeys([*first.warnings, *second.warnings])),
        seconds={**first.seconds, **second.seconds},
        arrays={**first.arrays, **second.arrays},
        moves={**first.moves, **second.moves},
        draws={**first.draws, **second.draws},
    )
