"""`python docs/draw_gallery.py`: the gallery's pictures, from photographs that scikit-image and scikit-learn carry.

One JPEG a photograph and colour map into docs/gallery/, small enough to be kept: the project's own overview figure, whose small
print names the weights and whose photograph it is. Drawn again on another machine they differ by rounding at most.
"""

from __future__ import annotations

from pathlib import Path

from parity.contract.samples import SAMPLES, Sample
from torch_impl import Explainer
from torch_impl.figure import Style, overview_figures

FOLDER = Path(__file__).parent / "gallery"

COLORMAPS = ("jet", "cividis")

PHOTOGRAPHS = (*SAMPLES, Sample("skimage", "scikit-image", "data/rocket.jpg", "public domain, SpaceX"))

CLASSES = ("Egyptian cat", "espresso", "tripod", "palace", "missile")
"""What is explained of each."""


def main() -> None:
    """Draw every picture."""
    FOLDER.mkdir(exist_ok=True)
    explainer = Explainer.vgg16(weights="offline", device="cpu")
    for sample, label in zip(PHOTOGRAPHS, CLASSES, strict=True):
        maps = explainer([sample.path()], classes=[label])
        for colormap in COLORMAPS:
            footer = (
                f"weights: {maps.manifest['weights']['source']} · colour map: {colormap} · photograph: {sample.credit}"
            )
            (drawn,) = overview_figures(maps.pixels, maps.maps, maps.captions, style=Style(colormap), footer=footer)
            name = f"{Path(sample.name).stem}-{colormap}.jpg"
            drawn.savefig(FOLDER / name, pil_kwargs={"quality": 82, "optimize": True})


if __name__ == "__main__":
    main()
