"""The photographs explained where none is named, which installed packages carry; and whose they are."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One photograph out of an installed package.

    Attributes:
        package: What is imported.
        distribution: What is installed.
        file: The photograph within the package.
        credit: Licence and author, to be shown with the picture.
    """

    package: str
    distribution: str
    file: str
    credit: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.file.rpartition("/")[2]

    def path(self) -> Path:
        """Finds the file, without importing the package, which would take seconds.

        Raises:
            FileNotFoundError: It is not there; the text says what to install.
        """
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            path = Path(folder, self.file)
            if path.is_file():
                return path
        raise FileNotFoundError(f"comes with {self.distribution}, which is not installed here: install it")


SAMPLES = (
    Sample("skimage", "scikit-image", "data/chelsea.png", "CC0, Stefan van der Walt"),
    Sample("skimage", "scikit-image", "data/coffee.png", "CC0, Rachel Michetti"),
    Sample("skimage", "scikit-image", "data/camera.png", "CC0, Lav Varshney"),
    Sample(
        "sklearn",
        "scikit-learn",
        "datasets/images/china.jpg",
        "CC BY 2.0, danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
)
"""A cat, a cup, a camera man, a palace."""


def credit_of(path: str | os.PathLike[str] | None) -> str:
    """Whose photograph a file is.

    Args:
        path: Any file; None for what is no file.

    Returns:
        The credit of the very file that a package carries; "" for every other, whatever its name.
    """
    try:
        for sample in SAMPLES:
            if path is not None and Path(path).name == sample.name:
                return sample.credit if os.path.samefile(path, sample.path()) else ""
    except (OSError, ValueError):  # no such package, or (a NUL) no such path
        pass
    return ""
