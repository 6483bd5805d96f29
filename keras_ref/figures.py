"""The lab's own figures: per method a row of photographs, saliency in jet, CAMs as jet over the photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity.contract.files import whole
from parity.contract.methods import METHODS

ALPHA = 0.5
"""Of the CAM over the photograph."""


def draw(folder: Path, method: str, pixels: np.ndarray, maps: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Draw one method's row and write it as `<folder>/<method>.png`, whole or not at all.

    Args:
        folder: exists.
        method: a name of `METHODS`.
        pixels: uint8 (N, H, W, 3).
        maps: N of (H, W), in [0, 1]; what is not a number is left blank.
        titles: one for each photograph; shown as they are, never as mathematics.

    Raises:
        OSError: as the file system says.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(maps), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{METHODS[method].title} (Keras, tf-keras-vis)")
    for axes, photograph, values, title in zip(
        figure.subplots(1, len(maps), squeeze=False)[0], pixels, maps, titles, strict=True
    ):
        axes.set_title(title, fontsize=12, parse_math=False)
        if METHODS[method].overlay:
            axes.imshow(photograph)
            heat = np.uint8(255 * np.nan_to_num(values))  # the lab's own: the map as 8 bit, jet, half transparent
            axes.imshow(heat, cmap="jet", alpha=ALPHA, vmin=0, vmax=255)
        else:
            axes.imshow(values, cmap="jet", vmin=0, vmax=1)
        axes.axis("off")
    with whole(folder / f"{method}.png") as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
