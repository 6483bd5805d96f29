"""Folders of files, walked in an order that people expect: by `images`, and by `batch` for large sets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers by value: ``2.jpg`` before ``10.jpg``."""
    parts = re.split(r"([0-9]+)", name.casefold())  # text and number by turns, so that unlike kinds never meet
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def walk(
    top: str | os.PathLike[str], refused: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it, each real one once, in natural order, without what is hidden; links are followed.

    Args:
        top: The folder.
        refused: Called with the error of each folder that cannot be listed.

    Yields:
        A folder, and the names of its files.
    """
    visited = set()
    for folder, below, files in os.walk(top, followlinks=True, onerror=refused):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            below.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        below[:] = sorted((name for name in below if not name.startswith(".")), key=natural_order)
        yield folder, sorted((name for name in files if not name.startswith(".")), key=natural_order)
