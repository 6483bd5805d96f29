"""What the explainer gives: maps with everything that says where they come from; figures and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.contract.methods import canonical_name
from torch_impl._version import __version__
from torch_impl.faithfulness.removals import RANDOM_LAYERS, Removals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from parity.contract.methods import Options
    from torch_impl import images
    from torch_impl.explainer import Explainer
    from torch_impl.faithfulness.measure import Report
    from torch_impl.faithfulness.result import Faithfulness


@dataclass(frozen=True)
class Origin:
    """What maps were drawn from, so that their network can be asked again.

    Attributes:
        explainer: which drew them.
        photographs: one for each map.
        classes: the explained class of each.
        options: of the maps.
    """

    explainer: Explainer
    photographs: Sequence[images.Photograph]
    classes: Sequence[int]
    options: Options


@dataclass(frozen=True)
class Explanation:
    """Maps with everything that says where they come from.

    Attributes:
        maps: method → (N, H, W) in [0, 1]; float32, or float64 where it was computed in float64.
        pixels: (N, H, W, 3) uint8: what the network saw.
        logits: (N, classes), the same type as the maps.
        manifest: photographs, classes, weights, settings, versions, seconds; plain JSON types.
        origin: what they were drawn from; None for maps that were read from files, or pickled.
    """

    maps: Mapping[str, np.ndarray] = field(repr=False)
    pixels: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    manifest: Mapping[str, Any]
    origin: Origin | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the network: what is pickled or copied is the maps."""
        return {**self.__dict__, "origin": None}

    def __getitem__(self, method: str) -> np.ndarray:
        """A method's maps (N, H, W); `gradcam++` is an alias.

        Raises:
            KeyError: this method was not asked for.
        """
        name = canonical_name(method)
        if name not in self.maps:
            raise KeyError(f"{method} was not drawn; drawn: {', '.join(self.maps)}")
        return self.maps[name]

    @property
    def captions(self) -> list[str]:
        """`label probability`, photograph by photograph; with a score of one's own, its value."""
        rows = self.manifest["photographs"]
        return [f"{p['label']} {_number(p):.2f}\n{p['name']}" for p in rows]

    @property
    def footer(self) -> str:
        """The small print of every figure: weights, remarks, credits."""
        weights = self.manifest["weights"]
        credits = [p["credit"] for p in self.manifest["photographs"] if p.get("credit")]
        lines = [f"weights: {weights['source']}" + (f" · {weights['remark']}" if weights["remark"] else "")]
        if self.manifest["outputs"] == "probabilities":
            lines.append("the model's outputs are probabilities, not logits: the maps explain those, which saturate")
        if credits:
            lines.append("photographs: " + "; ".join(dict.fromkeys(credits)))
        return "\n".join(lines)

    def figure(self, method: str, colormap: str = "jet") -> Figure:
        """A method's maps as the lab draws them: a row of photographs.

        Raises:
            KeyError: this method was not asked for.
            ColormapError: no such colour map.
        """
        from torch_impl import figure

        return figure.method_figure(
            canonical_name(method),
            self.pixels,
            self[method],
            self.captions,
            constant=self._constant(canonical_name(method)),
            colormap=figure.checked_colormap(colormap),
            footer=self.footer,
        )

    def overview(self, colormap: str = "jet") -> list[Figure]:
        """Photographs × {photograph, every map}; one figure for every 12 photographs.

        Raises:
            ColormapError: no such colour map.
        """
        from torch_impl import figure

        return figure.overview_figures(
            self.pixels,
            self.maps,
            self.captions,
            constant={name: self._constant(name) for name in self.maps},
            colormap=figure.checked_colormap(colormap),
            footer=self.footer,
        )

    def save(self, folder: str | os.PathLike[str], *, colormap: str = "jet", overwrite: bool = False) -> list[Path]:
        """Write the figures, `overview.png`, `maps.npz` and `manifest.json`: all of them, or nothing.

        Args:
            folder: made if it is not there. An earlier result is replaced as a whole; other files stay.
            colormap: a matplotlib name.
            overwrite: also into a folder that holds files and no result of ours.

        Returns:
            The files written.

        Raises:
            OutputError: the folder cannot be used.
            ColormapError: no such colour map.
            OSError: as the file system says.
        """
        from torch_impl import output

        figures = {f"{name}.png": self.figure(name, colormap) for name in self.maps}
        for page, drawn in enumerate(self.overview(colormap), start=1):
            figures["overview.png" if page == 1 else f"overview-{page}.png"] = drawn
        names = [*figures, "maps.npz", output.MANIFEST]

        def write(staging: Path) -> None:
            for name, drawn in figures.items():
                drawn.savefig(staging / name, metadata={"Software": f"attention-maps {__version__}"})
            np.savez_compressed(staging / "maps.npz", pixels=self.pixels, **self.maps)  # type: ignore[arg-type]
            manifest = {**self.manifest, "files": names, "colormap": colormap}
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (staging / output.MANIFEST).write_text(text, encoding="utf-8")

        output.replace(Path(folder), names, write, overwrite=overwrite)
        return [Path(folder, name) for name in names]

    def faithfulness(
        self,
        *,
        shares: Sequence[float] = Removals.shares,
        steps: int = Removals.steps,
        stages: int = RANDOM_LAYERS,
        seed: int = Removals.seed,
        progress: Report | None = None,
    ) -> Faithfulness:
        """How far the maps agree with the network: parts of the photographs are taken away, and the network is asked again.

        Args:
            shares: of the pixels, which ROAD takes away and fills in.
            steps: in which deletion takes all pixels away.
            stages: networks of which the top layer, more layers, and at last all layers are random; 0: none.
            seed: of what is random.
            progress: called after each pass with (what, done, in all).

        Raises:
            ModelError: maps of a score of one's own, which has no probability, or maps that were read from files.
            ValueError: a setting out of range.
        """
        from torch_impl.faithfulness.measure import measured

        return measured(self, Removals(tuple(shares), steps, seed), stages, progress)

    def _constant(self, name: str) -> list[str]:
        """Why each photograph's map is constant; "" where it is not."""
        return [p["constant_reasons"].get(name, "") for p in self.manifest["photographs"]]


def _number(photograph: Mapping[str, Any]) -> float:
    """What stands behind a label: the class's probability, or a score of one's own."""
    probability = photograph["probability"]
    return float(photograph["logit"] if probability is None else probability)
