"""What the explainer gives: maps with everything that says where they come from; figures and files of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from parity.contract.methods import METHODS, canonical_name
from torch_impl import framing
from torch_impl._version import __version__
from torch_impl.faithfulness.removals import RANDOM_LAYERS, Removals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from parity.contract.methods import Options
    from torch_impl import images
    from torch_impl.explainer import Explainer
    from torch_impl.faithfulness.measure import Report
    from torch_impl.faithfulness.result import Faithfulness
    from torch_impl.figure import Style

Pictures: TypeAlias = Any
"""N arrays in a list, or one (N, …) where they are of one size."""

SOFTWARE = f"attention-maps {__version__}"
"""Said in every picture that is written."""

SHOWN = 512
"""Longest side of a photograph in a figure, pixels: more than its place has."""


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
        maps: method → (N, H, W) in [0, 1]; float32, or float64 where it was computed in float64. Of several layers N counts
            each photograph once a layer, one layer after another; the manifest's photographs say which.
        pixels: (N, H, W, 3) uint8: what the network saw.
        logits: (N, classes), the same type as the maps.
        manifest: photographs, classes, weights, settings, versions, seconds; plain JSON types.
        origin: what they were drawn from; None for maps that were read from files, or pickled.
        reread: reads a map's photograph once more, at its own size; None: the file that the manifest names.
    """

    maps: Mapping[str, np.ndarray] = field(repr=False)
    pixels: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    manifest: Mapping[str, Any]
    origin: Origin | None = field(default=None, repr=False, compare=False)
    reread: Callable[[int], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the network: what is pickled or copied is the maps."""
        return {**self.__dict__, "origin": None, "reread": None}

    def __iter__(self) -> Iterator[str]:
        """The maps' names."""
        return iter(self.maps)

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

    @property
    def layers(self) -> list[str]:
        """Which layer each map is drawn on, where several were asked for; else none."""
        return [p["layer"] for p in self.manifest["photographs"] if "layer" in p]

    @property
    def _photographs(self) -> int:
        """How many there are, each counted once, however many layers it was drawn on."""
        return len(self.pixels) // max(1, len(set(self.layers)))

    def photograph(self, i: int) -> np.ndarray:
        """The photograph of map `i` as a viewer shows it, at its own size: uint8 (H, W, 3).

        Raises:
            ImageError: it cannot be read any more, or is another one by now.
        """
        from torch_impl import images

        if self.reread is not None:
            return self.reread(i)
        if self.origin is not None:
            return self.origin.photographs[i].again().pixels
        row = self.manifest["photographs"][i]
        if row["path"] is None:
            raise images.ImageError(f"<{row['name']}>", "an array is not kept with the maps: draw them again")
        kept = images.Photograph(self.pixels[i], row["name"], row["path"], row["sha256"], row["size"], (), row["seen"])
        return kept.again().pixels

    def at_photograph(self, i: int, method: str, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Map `i` at its photograph's own size and shape, pixel for pixel: (H, W) in [0, 1]; NaN where a crop left it out.

        Args:
            i: which map.
            method: its name.
            shape: of a smaller picture of the photograph, (H, W); None: the photograph's own.

        Raises:
            KeyError: this method was not asked for.
            FramingError: nobody knows what the network saw of the photograph.
        """
        self._check_framing()
        row = self.manifest["photographs"][i]
        width, height = row["size"]
        return framing.laid_over(self[method][i], row["seen"], (width, height), shape or (height, width))

    def _check_framing(self) -> None:
        """Refuse what nobody can lay over its photograph."""
        if self.manifest.get("resize") is None:
            raise framing.FramingError(framing.UNKNOWN)

    def overlay(
        self, i: int, method: str, *, at: str = "input", alpha: float | None = 0.5, colormap: str = "jet"
    ) -> np.ndarray:
        """A map over its photograph, pixel for pixel: uint8 (H, W, 3).

        Args:
            i: which map.
            method: its name.
            at: `input`: on what the network saw; `photograph`: on the photograph, at its own size and shape; what a crop
                left out of it stays plain.
            alpha: opacity of the map, 0 to 1; None: as in figures.
            colormap: a matplotlib name.

        Raises:
            KeyError: this method was not asked for.
            FramingError: nobody knows what the network saw of the photograph.
            ImageError: the photograph cannot be read any more, or is another one by now.
            ColormapError: no such colour map.
            ValueError: `at` or `alpha` is none of these.
        """
        from torch_impl import figure

        style = figure.Style(colormap, alpha)
        if framing.checked_at(at) == "input":
            pixels, values = self.pixels[i], self[method][i]
        else:
            values, pixels = self.at_photograph(i, method), self.photograph(i)
        opacity = style.opacity(canonical_name(method))
        return figure.blended(pixels, values, alpha=opacity, colormap=colormap)

    def figure(
        self,
        method: str,
        colormap: str = "jet",
        *,
        at: str = "input",
        alpha: float | None = None,
        colorbar: bool = False,
    ) -> Figure:
        """A method's maps as the lab draws them: a row of photographs; of several layers a row each.

        Args:
            method: its name.
            colormap: a matplotlib name.
            at: `input` or `photograph`; see `overlay`.
            alpha: opacity of the maps over the photographs, 0 to 1; None: a CAM over it, saliency by itself.
            colorbar: whether a bar says which colour is which value.

        Raises:
            As `overlay`.
        """
        from torch_impl.figure import Style

        name = canonical_name(method)
        return self._figure(name, *self._shown(at, [name]), Style(colormap, alpha, colorbar))

    def overview(
        self, colormap: str = "jet", *, at: str = "input", alpha: float | None = None, colorbar: bool = False
    ) -> list[Figure]:
        """Photographs × {photograph, every map}; one figure for every 12 photographs. Arguments and errors as `figure`."""
        from torch_impl.figure import Style

        return self._overview(*self._shown(at, list(self.maps)), Style(colormap, alpha, colorbar))

    def _shown(self, at: str, names: Sequence[str]) -> tuple[Pictures, Mapping[str, Pictures]]:
        """What figures show: pictures, and the maps on their grids."""
        if framing.checked_at(at) == "input":
            return self.pixels, {name: self[name] for name in names}
        pixels: list[np.ndarray] = []
        maps: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self._check_framing()
        for i in range(len(self.pixels)):
            picture = Image.fromarray(self.photograph(i))
            picture.thumbnail((SHOWN, SHOWN))
            pixels.append(np.asarray(picture))
            for name in names:
                maps[name].append(self.at_photograph(i, name, (picture.height, picture.width)))
        return pixels, maps

    def _figure(self, name: str, pixels: Pictures, maps: Mapping[str, Pictures], style: Style) -> Figure:
        from torch_impl import figure

        layers = list(dict.fromkeys(self.layers)) if METHODS[name].overlay else []
        count = len(pixels) if layers else self._photographs
        return figure.method_figure(
            name,
            pixels[:count],
            maps[name][:count],
            self.captions,
            constant=self._constant(name),
            style=style,
            footer=self.footer,
            layers=layers or [""],
        )

    def _overview(self, pixels: Pictures, maps: Mapping[str, Pictures], style: Style) -> list[Figure]:
        from torch_impl import figure

        count = self._photographs
        order = [row for i in range(count) for row in range(i, len(pixels), count)]  # a photograph's layers together
        return figure.overview_figures(
            [pixels[i] for i in order],
            {name: [drawn[i] for i in order] for name, drawn in maps.items()},
            [self.captions[i] for i in order],
            constant={name: [self._constant(name)[i] for i in order] for name in maps},
            style=style,
            footer=self.footer,
            layers=[self.layers[i] for i in order] if self.layers else [],
        )

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        colormap: str = "jet",
        overwrite: bool = False,
        at: str = "input",
        alpha: float | None = None,
        colorbar: bool = False,
        each: bool = False,
    ) -> list[Path]:
        """Write the figures, `overview.png`, `maps.npz` and `manifest.json`: all of them, or nothing.

        Args:
            folder: made if it is not there. An earlier result is replaced as a whole; other files stay.
            colormap: a matplotlib name.
            overwrite: also into a folder that holds files and no result of ours.
            at: `input` or `photograph`; see `overlay`. `maps.npz` holds the maps at the input, whatever it is.
            alpha: see `figure`.
            colorbar: see `figure`.
            each: also a file for each map: its overlay, pixel for pixel.

        Returns:
            The files written.

        Raises:
            OutputError: the folder cannot be used.
            OSError: as the file system says.
            Else as `overlay`.
        """
        from torch_impl import figure, output

        style, shown = figure.Style(colormap, alpha, colorbar), self._shown(at, list(self.maps))
        figures = {f"{name}.png": self._figure(name, *shown, style) for name in self.maps}
        for page, drawn in enumerate(self._overview(*shown, style), start=1):
            figures["overview.png" if page == 1 else f"overview-{page}.png"] = drawn
        overlays = self._files() if each else {}
        names = [*figures, *overlays, "maps.npz", output.MANIFEST]

        def write(staging: Path) -> None:
            for name, drawn in figures.items():
                drawn.savefig(staging / name, metadata={"Software": SOFTWARE})
            for name, (i, method) in overlays.items():
                _write_png(self.overlay(i, method, at=at, alpha=alpha, colormap=colormap), staging / name)
            np.savez_compressed(staging / "maps.npz", pixels=self.pixels, **self.maps)  # type: ignore[arg-type]
            said = {**self.manifest, "files": names, "colormap": colormap, "at": at}
            _write_json(said, staging / output.MANIFEST)

        output.replace(Path(folder), names, write, overwrite=overwrite)
        return [Path(folder, name) for name in names]

    def _files(self) -> dict[str, tuple[int, str]]:
        """The name of each map's own file: the photograph's number and name, the layer where there are several, the method."""
        files = {}
        count = self._photographs
        for i, row in enumerate(self.manifest["photographs"]):
            number, stem = f"{i % count + 1:0{len(str(count))}}", Path(row["name"]).stem[:60]
            for method in self.maps:
                layer = self.layers[i : i + 1] if METHODS[method].overlay else ()
                files[re.sub(r"[^\w.@+-]", "_", "-".join([number, stem, *layer, method])) + ".png"] = (i, method)
        return files

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


def _write_json(said: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_png(pixels: np.ndarray, path: Path) -> None:
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    Image.fromarray(pixels).save(path, pnginfo=about)


def _number(photograph: Mapping[str, Any]) -> float:
    """What stands behind a label: the class's probability, or a score of one's own."""
    probability = photograph["probability"]
    return float(photograph["logit"] if probability is None else probability)
