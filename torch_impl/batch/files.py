"""Pieces of files, and the stamp by which a change is noticed."""

from __future__ import annotations

import os

from torch_impl import images
from torch_impl.images import ImageError


def read_piece(path: str, offset: int, length: int, stamp: tuple[int, int]) -> bytes:
    """Reads the piece of an archive that holds a photograph.

    Args:
        path: The archive.
        offset: Where the piece starts, bytes.
        length: Of the piece, bytes.
        stamp: What `stamp_of` gave when the piece was found in it.

    Raises:
        ImageError: It cannot be read, is empty or too large, or the archive is not the file it was.
    """
    try:
        status = os.stat(path)
        if stamp != (status.st_size, status.st_mtime_ns):
            raise ImageError(path, "the file that holds it has changed since it was listed: start again")
        if offset + length > status.st_size:
            raise ImageError(path, "the file that holds it ends before it does: truncated, copy it again")
        images.check_length(path, length)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise images.unreadable(path, error) from error


def stamp_of(path: str) -> tuple[int, int]:
    """(size, mtime_ns) of a file, by which a change is noticed later; (-1, -1) where there is none to be seen."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def why_not(path: str, error: Exception) -> str:
    """Says why a file could not be looked at or opened."""
    return images.unreadable(path, error).problem
