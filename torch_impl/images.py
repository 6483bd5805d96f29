"""Files, bytes and arrays → uint8 RGB pixels, by Pillow. Every bad picture is refused here, in one line.

A photograph is read as a viewer shows it: turned by its EXIF tag, 16 bits scaled to 8, its colour profile honoured,
transparency laid on white, the first frame of an animation. Where that differs from what Keras's ``load_img`` does,
``Photograph.notes`` says so; a plain JPEG without any of that has no notes and comes out identical to Keras, pixel by
pixel. Nothing here is shared or switched, so photographs can be read from any number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from parity.contract.samples import SAMPLES
from parity.contract.text import one_line
from torch_impl import decoding, folders, framing
from torch_impl.framing import AS_IT_IS, RESIZES, Box, Size

Source: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | Image.Image"
"""What can be loaded: a file, an array, or a Pillow image."""

MAX_BYTES = 512 * 2**20
"""Largest file read: a film or an archive that is taken for a photograph would fill the memory."""

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".dib",
    ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
    ".heic", ".heif",  # not readable, but better refused by name than left out of somebody's folder in silence
)  # fmt: skip
"""What a folder's photographs are called, in lower case."""


class ImageError(ValueError):
    """A picture that cannot be used; its text is one line: which, why, and what to do.

    Attributes:
        path: The file as it was given; ``<array>``, ``<image 2>`` and so on for what is no file.
        problem: The line without the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)  # both, so that it survives pickling between processes
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path!r}: {self.problem}"  # repr: a name may hold line breaks and escape sequences


class ImagesError(ImageError):
    """Every picture that cannot be used, one line each.

    Attributes:
        errors: One per bad picture, in the order given.
        path: The first one's.
    """

    def __init__(self, errors: Sequence[ImageError]) -> None:
        ValueError.__init__(self, tuple(errors))
        self.errors = tuple(errors)
        self.path = self.errors[0].path
        self.problem = self.errors[0].problem

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


@dataclass(frozen=True, eq=False)  # eq would compare arrays, which has no yes or no
class Photograph:
    """One photograph as the network sees it.

    Attributes:
        pixels: uint8 (h, w, 3), RGB, of the size asked for; (H, W, 3) where it was not resized.
        name: For display: the file's name without its folder, or ``array``, ``image 2``. Not escaped.
        path: The file as it was given; None for arrays and Pillow images.
        sha256: Of the file's bytes; of the pixels' bytes for arrays and Pillow images.
        original_size: (width, height) as a viewer shows it, that is after the EXIF turn.
        notes: What was done on purpose that Keras's ``load_img`` would not do; empty for a plain photograph.
        seen: Which part of it `pixels` show, in pixels of ``original_size``.
        source: The array or Pillow image that it was given as; None for files.
    """

    pixels: NDArray[np.uint8]
    name: str
    path: str | None
    sha256: str
    original_size: tuple[int, int]
    notes: tuple[str, ...]
    seen: Box
    source: Source | None = field(default=None, repr=False)

    def again(self) -> Photograph:
        """The same photograph at its own size.

        Raises:
            ImageError: It cannot be read any more, or is another one by now.
        """
        given = self.path if self.source is None else self.source
        if given is None:
            raise ImageError(f"<{self.name}>", "was read from bytes, which are not kept: give its file")
        photograph = load(given, resize=AS_IT_IS)
        if photograph.sha256 != self.sha256:
            raise ImageError(self.path or f"<{self.name}>", "has changed since its maps were drawn: draw them again")
        return photograph


# Which files


def find(paths: Iterable[str | os.PathLike[str]], *, skip_bad: bool = False) -> list[Path]:
    """Lists photographs: files as they are, folders as the photographs in them and in their sub-folders.

    A folder's photographs are told by suffix, in natural order (``2.jpg`` before ``10.jpg``), without what is hidden.

    Args:
        paths: Files and folders.
        skip_bad: Keep what cannot be read in the list instead of raising, so that `load_all` reports it together with
            the files that turn out to be bad inside. (Not a URL, which is no path.)

    Returns:
        The files, in the order given.

    Raises:
        ImagesError: Something is missing, is no file, or is a folder without photographs; lists all of them.
    """
    files: list[Path] = []
    errors: list[ImageError] = []
    for path in map(os.fspath, _several(paths)):
        try:
            files += _listed(path)
        except ImageError as error:
            files.append(Path(path))
            errors.append(error)
    changed = any("://" in error.path or not error.path for error in errors)  # by Path: `load_all` would misquote it
    if errors and (changed or not skip_bad):
        raise ImagesError(errors)
    return files


def defaults() -> list[Path]:
    """Finds the four photographs that installed packages carry; see `parity.contract.samples`.

    Raises:
        ImageError: A package, or its picture, is not there.
    """
    files = []
    for sample in SAMPLES:
        try:
            files.append(sample.path())
        except FileNotFoundError as error:
            raise ImageError(sample.name, str(error)) from None
    return files


def read_file(path: str) -> bytes:
    """Reads a photograph's file, once; a pipe or a device, which would block or never end, is never opened.

    Raises:
        ImageError: It cannot be read, is empty or larger than `MAX_BYTES`.
    """
    _listed(path)
    if os.path.isdir(path):
        raise ImageError(path, "a folder, not a photograph")
    try:
        check_length(path, os.path.getsize(path))
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> ImageError:
    """What is raised where a file could not be looked at or opened."""
    if isinstance(error, FileNotFoundError) and re.match(r"[a-z]+:/", path):
        path = re.sub("^([a-z]+):/+", r"\1://", path)  # a Path has lost a slash
        problem = "a URL; nothing is fetched: download it first"
    elif isinstance(error, FileNotFoundError):
        problem = "a link to a file that is not there" if os.path.islink(path) else "no such file"
    elif isinstance(error, PermissionError):
        problem = "may not be read: permission denied"
    else:
        problem = f"cannot be read: {_reason(error)}"
    return ImageError(path, problem)


def _several(sources: Iterable[Any]) -> Iterable[Any]:
    """Takes one file for a list of one: a string is iterable too, and would be read letter by letter."""
    return [sources] if isinstance(sources, str | os.PathLike | Image.Image) else sources


def _listed(path: str) -> list[Path]:
    """A file itself, without opening it, or a folder's photographs; links are followed."""
    try:
        status = os.stat(path)
        files = _folder_files(path) if stat.S_ISDIR(status.st_mode) else [Path(path)]
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    if not files:
        raise ImageError(path, "no photographs in it (.jpg, .png, .webp, .tif and so on; sub-folders included)")
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "a pipe, socket or device, not a photograph")
    return files


def _folder_files(folder: str) -> list[Path]:
    """A folder's photographs, then its sub-folders'. One that cannot be listed stands in the list itself: reading it says why."""
    refused: list[OSError] = []
    files = [
        Path(top, name)
        for top, names in folders.walk(folder, refused.append)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    if refused and refused[0].filename == folder:
        raise refused[0]
    return files + [Path(error.filename) for error in refused]


def check_length(path: str, length: int) -> None:
    """Refuses a photograph by the number of its bytes: raises ImageError if it is empty or larger than `MAX_BYTES`."""
    if length == 0:
        raise ImageError(path, "an empty file (0 bytes)")
    if length > MAX_BYTES:
        problem = f"{length / 2**20:,.0f} MiB, more than the {MAX_BYTES // 2**20} MiB that are read"
        raise ImageError(path, f"{problem}: export it smaller")


# Loading


def load(source: Source, *, size: Size = 224, resize: str = "lab") -> Photograph:
    """Reads one photograph as a viewer would show it, and resizes it for the network.

    Args:
        source: A file; an array (H, W), (H, W, 3) or (H, W, 4) of uint8 in [0, 255] or floats in [0, 1]; or a Pillow
            image, which is taken at its current frame.
        size: Of the result, in pixels: a square's side, or (height, width).
        resize: One of `framing.RESIZES`, or `AS_IT_IS`.

    Returns:
        The photograph, its pixels (height, width, 3).

    Raises:
        ImageError: The picture cannot be used.
        ValueError: ``size`` or ``resize`` is wrong.
    """
    return _load(source, size, resize, "")


def load_bytes(data: bytes, *, name: str, path: str | None = None, size: Size = 224, resize: str = "lab") -> Photograph:
    """Reads one photograph out of bytes that somebody has read already; everything else is as in `load`.

    Args:
        data: What a photograph's file holds.
        name: For display.
        path: Where the bytes come from, for the result and for the error.
        size: Of the result, in pixels: a square's side, or (height, width).
        resize: One of `framing.RESIZES`, or `AS_IT_IS`.

    Returns:
        The photograph, its pixels (height, width, 3).

    Raises:
        ImageError: The picture cannot be used.
        ValueError: ``size`` or ``resize`` is wrong.
    """
    _check_options(size, resize)
    where = f"<{name}>" if path is None else path
    check_length(where, len(data))
    sha256 = hashlib.sha256(data).hexdigest()
    notes: list[str] = []
    with _refusing(where):
        return _photograph(decoding.decoded(data, notes), name, path, sha256, size, resize, notes)


def load_all(
    sources: Iterable[Source], *, size: Size = 224, resize: str = "lab", skip_bad: bool = False
) -> tuple[list[Photograph], list[ImageError]]:
    """Reads photographs, and finds every bad one before it complains.

    Args:
        sources: As for `load`; arrays and Pillow images are named by their place, counted from 1.
        size: Of the results, in pixels: a square's side, or (height, width).
        resize: One of `framing.RESIZES`, or `AS_IT_IS`.
        skip_bad: Return the bad ones' errors instead of raising them, as long as one photograph is good.

    Returns:
        The good photographs in order, and an error for each bad one (always empty without ``skip_bad``).

    Raises:
        ImagesError: Photographs are bad (with ``skip_bad``: all of them); lists every one.
        ValueError: ``size`` or ``resize`` is wrong.
    """
    photographs: list[Photograph] = []
    errors: list[ImageError] = []
    for number, source in enumerate(_several(sources), start=1):
        try:
            photographs.append(_load(source, size, resize, f" {number}"))
        except ImageError as error:
            # Its traceback would keep each bad file's bytes and half-decoded pixels alive.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            errors.append(error)
    if errors and not (skip_bad and photographs):
        raise ImagesError(errors)
    return photographs, errors


def _check_options(size: Size, resize: str) -> None:
    if resize not in (*RESIZES, AS_IT_IS):
        raise ValueError(f"resize is one of {', '.join(RESIZES)}, not {resize!r}")
    framing.sides(size)


def _load(source: Source, size: Size, resize: str, place: str) -> Photograph:
    _check_options(size, resize)
    if isinstance(source, np.ndarray | Image.Image):
        name = ("array" if isinstance(source, np.ndarray) else "image") + place
        notes: list[str] = []
        with _refusing(f"<{name}>"):
            image = source if isinstance(source, Image.Image) else decoding.from_array(source, notes)
            sha256 = hashlib.sha256(source.tobytes()).hexdigest()  # decodes an image, where that is still to be done
            return replace(_photograph(image, name, None, sha256, size, resize, notes), source=source)
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(path, str):
        raise ImageError(f"<{type(source).__name__}{place}>", "not a file, a NumPy array or a Pillow image")
    # A name that is not UTF-8 holds lone surrogates, which no file or figure can be written with.
    name = os.fsencode(os.path.basename(path)).decode("utf-8", "replace") or path
    return load_bytes(read_file(path), name=name, path=path, size=size, resize=resize)


def _photograph(
    image: Image.Image, name: str, path: str | None, sha256: str, size: Size, resize: str, notes: list[str]
) -> Photograph:
    decoding.check_shape(*image.size)
    image = decoding.as_seen(image, notes)
    height_and_width = framing.sides(size)
    pixels = np.array(framing.resized(image, height_and_width, resize))
    seen = framing.seen(image.size, height_and_width, resize)
    return Photograph(pixels, name, path, sha256, image.size, tuple(notes), seen)


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Turns whatever Pillow does about a bad picture into an ImageError: its decoders raise anything on malformed bytes."""
    try:
        yield
    except decoding.RefusedError as error:
        raise ImageError(path, str(error)) from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, twice `Image.MAX_IMAGE_PIXELS`
        problem = f"a decompression bomb? {_reason(error).partition(',')[0]}: export it smaller"
        raise ImageError(path, problem) from error
    except MemoryError as error:
        raise ImageError(path, "more than fits into memory, or damaged so that it seems so") from error
    except Exception as error:
        raise ImageError(path, f"cannot be decoded, truncated or damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Another library's words, which may quote the file's own bytes; without the path that an OSError repeats."""
    return one_line((isinstance(error, OSError) and error.strerror) or error, 200)
