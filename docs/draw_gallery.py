"""`python docs/draw_gallery.py`: the gallery's pictures, from photographs that scikit-image and scikit-learn carry.

One JPEG a photograph and colour map into docs/gallery/, small enough to be kept: the project's own overview figure, whose small
print names the weights and whose photograph it is. Drawn again on another machine they differ by rounding at most.
"""

from __future__ import annotations

import importlib.util
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from parity.contract.samples import SAMPLES
from torch_impl import Explainer
from torch_impl.figure import Style, overview_figures

FOLDER = Path(__file__).parent / "gallery"

COLORMAPS = ("jet", "cividis")

PHOTOGRAPHS = (
    ("skimage", "data/chelsea.png", "Egyptian cat"),
    ("skimage", "data/coffee.png", "espresso"),
    ("skimage", "data/camera.png", "tripod"),
    ("skimage", "data/rocket.jpg", "missile"),
    ("sklearn", "datasets/images/china.jpg", "palace"),
)
"""Package, file inside it, and the class that is explained."""

CREDITS = {
    **{sample.name: sample.credit for sample in SAMPLES},
    "rocket.jpg": "public domain, SpaceX",
}


def main() -> int:
    """Draw every picture; returns the exit status."""
    FOLDER.mkdir(exist_ok=True)
    explainer = Explainer.vgg16(weights="offline", device="cpu")
    for package, name, label in PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            print(f"draw_gallery: error: {package} is not installed", file=sys.stderr)
            return 2
        path = Path(spec.submodule_search_locations[0], name)
        maps = explainer([path], classes=[label])
        found = maps.manifest["photographs"][0]
        print(f"{path.name}: {found['label']} {found['probability']:.3f}; top: {found['top5'][0]['label']}")
        for colormap in COLORMAPS:
            (drawn,) = overview_figures(
                maps.pixels, maps.maps, maps.captions, style=Style(colormap),
                footer=f"weights: {maps.manifest['weights']['source']} · colour map: {colormap} · "
                f"photograph: {CREDITS[path.name]}",
            )  # fmt: skip
            raw = BytesIO()
            drawn.savefig(raw, format="png")
            with Image.open(raw) as picture:
                picture.convert("RGB").save(FOLDER / f"{path.stem}-{colormap}.jpg", quality=82, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
