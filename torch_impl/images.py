"""Photograph → uint8 RGB → the network's input. Every bad picture is refused here, in one line.

A photograph is read as a viewer shows it: turned by its EXIF tag, 16 bits scaled to 8, its colour profile honoured,
transparency laid on white, the first frame of an animation. Where that differs from what Keras's ``load_img`` does,
``Photograph.notes`` says so; a plain JPEG without any of that has no notes and comes out identical to Keras, pixel by
pixel.

Files are untrusted. A file's bytes are read once (hash and pixels are of the same bytes), only raster formats are
tried (never EPS, which would start Ghostscript), and size and shape are checked in the header, before decoding. With
the limits below one photograph needs at most about 2.2 GB of memory (measured; WebP with alpha is the worst).
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import importlib.util
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from parity.contract.network import INPUTS

if TYPE_CHECKING:
    import torch

Source: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | Image.Image"
"""What can be loaded: a file, an array, or a Pillow image."""

RESIZES = ("lab", "torchvision")
"""lab: Keras's ``load_img``, nearest neighbour to a square. torchvision: shorter side to 256, bilinear, centre crop."""

AS_IT_IS = "none"
"""In place of a resize: the photograph's own size, for those who resize it themselves."""

MAX_PIXELS = 105_000_000
"""Largest picture decoded: above the largest medium-format cameras (102 million pixels), below Pillow's own limit."""

MAX_BYTES = 512 * 2**20
"""Largest file read."""

MAX_RATIO = 50
"""Longest picture, in widths (or widest, in heights): panoramas stay below 20; beyond this, nothing would be seen."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are tried, by content and not by suffix. All raster, none runs another program."""

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".dib",
    ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
    ".heic", ".heif",  # not readable, but better refused by name than left out of somebody's folder in silence
)  # fmt: skip
"""What a folder's photographs are called, in lower case."""

LICENCES = {
    "chelsea.png": "CC0, Stefan van der Walt",
    "coffee.png": "CC0, Rachel Michetti",
    "camera.png": "CC0, Lav Varshney",
    "china.jpg": "CC BY 2.0, danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
}
"""Licence and author of each of `defaults`, to be shown with the picture."""

_DEFAULTS = (  # (package, how to get it, file inside it)
    ("skimage", "scikit-image", "data/chelsea.png"),
    ("skimage", "scikit-image", "data/coffee.png"),
    ("skimage", "scikit-image", "data/camera.png"),
    ("sklearn", "scikit-learn", "datasets/images/china.jpg"),
)

_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_TORCHVISION_MEAN_RGB, _TORCHVISION_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_ORIENTATION = 0x0112
_TURNS = {  # EXIF orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

_pillow_lock = threading.Lock()


class ImageError(ValueError):
    """A picture that cannot be used; its text is one line: which, why, and what to do.

    Attributes:
        path: The file as it was given; ``<array>``, ``<image 2>`` and so on for what is no file.
        problem: The line without the path.
        passing: Whether it lies with the machine (a disk, a network, memory) rather than the picture, so that another try
            may succeed.
    """

    def __init__(self, path: str, problem: str, passing: bool = False) -> None:
        super().__init__(path, problem, passing)  # all of them, so that it survives pickling between processes
        self.path = path
        self.problem = problem
        self.passing = passing

    def __str__(self) -> str:
        # repr, because a name may hold line breaks and escape sequences, which a terminal would obey.
        return f"{self.path!r}: {self.problem}"


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
        self.passing = self.errors[0].passing

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


class _RefusedError(Exception):
    """Why a picture is refused, raised where its name is not known."""

    def __init__(self, problem: str, passing: bool = False) -> None:
        super().__init__(problem)
        self.passing = passing


@dataclass(frozen=True, eq=False)  # eq would compare arrays, which has no yes or no
class Photograph:
    """One photograph as the network sees it.

    Attributes:
        name: For display: the file's name without its folder, or ``array``, ``image 2``. Not escaped.
        path: The file as it was given; None for arrays and Pillow images.
        sha256: Of the file's bytes; of the pixels' bytes for arrays and Pillow images.
        original_size: (width, height) as a viewer shows it, that is after the EXIF turn.
        pixels: uint8 (size, size, 3), RGB; (H, W, 3) where it was not resized.
        notes: What was done on purpose that Keras's ``load_img`` would not do; empty for a plain photograph.
    """

    name: str
    path: str | None
    sha256: str
    original_size: tuple[int, int]
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


def find(paths: Iterable[str | os.PathLike[str]], *, skip_bad: bool = False) -> list[Path]:
    """Lists photographs: files as they are, folders as the photographs in them.

    A folder's photographs are told by suffix, in natural order (``2.jpg`` before ``10.jpg``), without hidden files
    and without sub-folders. Nothing is opened; a pipe or a device would block or never end.

    Args:
        paths: Files and folders.
        skip_bad: Keep what cannot be read in the list instead of raising, so that `load_all` reports it together with
            the files that turn out to be bad inside.

    Returns:
        The files, in the order given.

    Raises:
        ImagesError: Something is missing, is no file, or is a folder without photographs; lists all of them.
    """
    found: list[Path] = []
    errors: list[ImageError] = []
    for given in map(os.fspath, _several(paths)):
        try:
            files = _folder_files(given) if stat.S_ISDIR(_status(given).st_mode) else [Path(given)]
        except _RefusedError as refusal:
            files = [Path(given)]
            errors.append(ImageError(given, str(refusal)))
        else:
            for file in files:
                try:
                    _check_regular(_status(file))
                except _RefusedError as refusal:
                    errors.append(ImageError(str(file), str(refusal)))
        found += files
    if errors and not skip_bad:
        raise ImagesError(errors)
    return found


def defaults() -> list[Path]:
    """Finds the four photographs that installed packages carry: a cat, a cup, a camera man, a palace.

    Returns:
        Their files; `LICENCES` says whose they are.

    Raises:
        ImageError: A package, or its picture, is not there.
    """
    files = []
    for package, distribution, name in _DEFAULTS:
        spec = importlib.util.find_spec(package)  # finds without importing, which would take seconds
        folders = (spec.submodule_search_locations if spec else None) or []
        file = next((Path(folder, name) for folder in folders if Path(folder, name).is_file()), None)
        if file is None:
            raise ImageError(Path(name).name, f"comes with {distribution}, which is not installed here: install it")
        files.append(file)
    return files


def load(source: Source, *, size: int = 224, resize: str = "lab") -> Photograph:
    """Reads one photograph as a viewer would show it, and resizes it for the network.

    Args:
        source: A file; an array (H, W), (H, W, 3) or (H, W, 4) of uint8 in [0, 255] or floats in [0, 1]; or a Pillow
            image, which is taken at its current frame.
        size: Side of the result, in pixels.
        resize: One of `RESIZES`, or `AS_IT_IS`.

    Returns:
        The photograph, its pixels (size, size, 3).

    Raises:
        ImageError: The picture cannot be used.
        ValueError: ``size`` or ``resize`` is wrong.
    """
    return _load(source, size, resize, "")


def load_bytes(data: bytes, *, name: str, path: str | None = None, size: int = 224, resize: str = "lab") -> Photograph:
    """Reads one photograph out of bytes that somebody has read already; everything else is as in `load`.

    Args:
        data: What a photograph's file holds.
        name: For display.
        path: Where the bytes come from, for the result and for the error.
        size: Side of the result, in pixels.
        resize: One of `RESIZES`, or `AS_IT_IS`.

    Returns:
        The photograph, its pixels (size, size, 3).

    Raises:
        ImageError: The picture cannot be used.
        ValueError: ``size`` or ``resize`` is wrong.
    """
    _check_options(size, resize)
    with _refusing(path if path is not None else f"<{name}>"):
        _check_length(len(data))
        return _from_bytes(data, name, path, size, resize)


def read_file(path: str, *, offset: int = 0, length: int | None = None, stamp: tuple[int, int] | None = None) -> bytes:
    """Reads a photograph's file, or the piece of an archive that holds one, once; a pipe or a device is never opened.

    Args:
        path: The file.
        offset: Where the piece starts, bytes.
        length: Of the piece, bytes; None: the whole file.
        stamp: (size, mtime_ns) that the file had when the piece was found in it; None: not compared.

    Raises:
        ImageError: It cannot be read, is empty or larger than `MAX_BYTES`, or is not the file it was.
    """
    try:
        return _read(path, offset, length, stamp)
    except _RefusedError as refusal:
        raise ImageError(path, str(refusal), refusal.passing) from None


def check_length(length: int) -> None:
    """Refuses a photograph by the number of its bytes.

    Raises:
        ValueError: It is empty, or larger than `MAX_BYTES`; the message is an ImageError's problem.
    """
    try:
        _check_length(length)
    except _RefusedError as refusal:
        raise ValueError(str(refusal)) from None


def stamp_of(path: str) -> tuple[int, int]:
    """(size, mtime_ns) of a file, by which a change is noticed later; (-1, -1) where there is none to be seen."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers by value: ``2.jpg`` before ``10.jpg``.

    The parts alternate text and number, so that unlike kinds never meet.
    """
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def load_all(
    sources: Iterable[Source], *, size: int = 224, resize: str = "lab", skip_bad: bool = False
) -> tuple[list[Photograph], list[ImageError]]:
    """Reads photographs, and finds every bad one before it complains.

    Args:
        sources: As for `load`; arrays and Pillow images are named by their place, counted from 1.
        size: Side of the results, in pixels.
        resize: One of `RESIZES`.
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


def preprocess(
    pixels: NDArray[np.uint8],
    *,
    input: str = "caffe",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Turns pixels into what the network was trained on.

    The arithmetic is done in float64 for float64 and in float32 for everything narrower, so that the inputs are Keras's bit
    for bit. For a CUDA device the bytes are copied there, a quarter of the floats, and the arithmetic, the same, is done
    there.

    Args:
        pixels: uint8 (N, H, W, 3), RGB.
        input: One of `INPUTS`.
        dtype: Floating-point type of the result; float32 if None.
        device: Where the result goes; the CPU if None.

    Returns:
        (N, 3, H, W), contiguous. caffe: channels B, G, R in about [-124, 152]. torchvision: R, G, B in about
        [-2.1, 2.7].

    Raises:
        ValueError: ``pixels`` is not uint8 (N, H, W, 3), or ``input`` or ``dtype`` is wrong.

    Matches: keras.applications.vgg16.preprocess_input, in float32 and in float64 (``floatx``), bit for bit;
        torchvision's ToTensor and Normalize in float32, bit for bit.
    """
    import torch

    dtype = dtype or torch.float32
    if input not in INPUTS:
        raise ValueError(f"input is one of {', '.join(INPUTS)}, not {input!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"inputs are floating-point numbers, not {dtype}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels are uint8 (N, H, W, 3), not {pixels.dtype} {pixels.shape}")
    if device is not None and torch.device(device).type == "cuda":
        there = torch.from_numpy(np.ascontiguousarray(pixels)).pin_memory().to(device, non_blocking=True)
        return _preprocessed(there, input, torch.float64 if dtype == torch.float64 else torch.float32).to(dtype)
    work = np.float64 if dtype == torch.float64 else np.float32
    # In place, and laid out once: a copy of the inputs is 0.6 MB a photograph.
    inputs_nchw: NDArray[np.floating[Any]] = np.empty((len(pixels), 3, *pixels.shape[1:3]), work)
    inputs_nhwc = inputs_nchw.transpose(0, 2, 3, 1)
    if input == "caffe":
        np.subtract(pixels[..., ::-1], np.array(_CAFFE_MEAN_BGR, work), out=inputs_nhwc, dtype=work)
    else:
        np.divide(pixels, work(255), out=inputs_nhwc, dtype=work)
        inputs_nhwc -= np.array(_TORCHVISION_MEAN_RGB, work)
        inputs_nhwc /= np.array(_TORCHVISION_STD_RGB, work)
    return torch.from_numpy(inputs_nchw).to(dtype).to(device or "cpu")


def _preprocessed(pixels: torch.Tensor, input: str, work: torch.dtype) -> torch.Tensor:
    """`preprocess` in PyTorch: uint8 (N, H, W, 3) → (N, 3, H, W), contiguous, where the pixels are.

    The constants are tensors on that device: CUDA divides by a number by multiplying with its inverse, which is not the
    same, and by a tensor as IEEE 754 says.
    """
    import torch

    def constant(values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=work, device=pixels.device)

    inputs_nhwc = pixels.to(work)
    if input == "caffe":
        inputs_nhwc = inputs_nhwc.flip(-1) - constant(_CAFFE_MEAN_BGR)
    else:
        inputs_nhwc = (inputs_nhwc / constant((255.0,)) - constant(_TORCHVISION_MEAN_RGB)) / constant(
            _TORCHVISION_STD_RGB
        )
    return inputs_nhwc.permute(0, 3, 1, 2).contiguous()


# Files


def _several(sources: Iterable[Any]) -> Iterable[Any]:
    """Takes one file for a list of one: a string is iterable too, and would be read letter by letter."""
    return [sources] if isinstance(sources, str | os.PathLike | Image.Image) else sources


def _status(path: str | os.PathLike[str]) -> os.stat_result:
    """Looks at a file without opening it; links are followed."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _RefusedError(why_not(path, error), _may_pass(error)) from error


def _may_pass(error: Exception) -> bool:
    """Whether reading may succeed another time: not where there is no such file, which only a new file mends."""
    gone = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
    return isinstance(error, OSError) and error.errno not in gone


def why_not(path: str | os.PathLike[str], error: Exception) -> str:
    """Says why a file could not be looked at or opened: the problem of an ImageError."""
    if isinstance(error, FileNotFoundError):
        return "a link to a file that is not there" if os.path.islink(path) else "no such file"
    if isinstance(error, PermissionError):
        return "may not be read: permission denied"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "no such file: the name is too long"
    return f"cannot be read: {_one_line(error)}"


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _RefusedError("a folder, not a photograph")
    if not stat.S_ISREG(status.st_mode):
        raise _RefusedError("a pipe, socket or device, not a photograph")


def _folder_files(folder: str) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _RefusedError(why_not(folder, error)) from error
    names = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
    if not names:
        raise _RefusedError("a folder without photographs (.jpg, .png, .webp, .tif and so on)")
    return [Path(folder, name) for name in sorted(names, key=natural_order)]


def _check_length(length: int) -> None:
    if length == 0:
        raise _RefusedError("an empty file (0 bytes)")
    if length > MAX_BYTES:
        raise _RefusedError(
            f"{length / 2**20:,.0f} MiB, more than the {MAX_BYTES // 2**20} MiB that are read: export it smaller"
        )


def _read(path: str, offset: int = 0, length: int | None = None, stamp: tuple[int, int] | None = None) -> bytes:
    """Reads a file once, or a piece of it; what is no regular file is never opened."""
    _check_regular(_status(path))
    try:
        # Without waiting, for the case that a pipe has been put in the file's place since.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            _check_regular(status)
            if stamp is not None and stamp != (status.st_size, status.st_mtime_ns):
                raise _RefusedError("the file that holds it has changed since it was listed: start again")
            if length is None:
                length = status.st_size
            elif offset + length > status.st_size:
                raise _RefusedError("the file that holds it ends before it does: truncated, copy it again")
            _check_length(length)
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise _RefusedError(why_not(path, error), _may_pass(error)) from error
    if len(data) < length:
        raise _RefusedError("changed while it was being read: try again", passing=True)
    return data


# Decoding


def _check_options(size: int, resize: str) -> None:
    if resize not in (*RESIZES, AS_IT_IS):
        raise ValueError(f"resize is one of {', '.join(RESIZES)}, not {resize!r}")
    if not isinstance(size, int | np.integer) or not 1 <= size <= 4096:
        raise ValueError(f"size is a number of pixels from 1 to 4096, not {size!r}")


def _load(source: Source, size: int, resize: str, place: str) -> Photograph:
    _check_options(size, resize)
    path = None
    if isinstance(source, np.ndarray):
        name = f"array{place}"
    elif isinstance(source, Image.Image):
        name = f"image{place}"
    elif isinstance(source, str | os.PathLike) and isinstance(os.fspath(source), str):
        path = os.fspath(source)
        # A name that is not UTF-8 holds lone surrogates, which no file or figure can be written with.
        name = os.fsencode(os.path.basename(path)).decode("utf-8", "replace") or path
    else:
        raise ImageError(f"<{type(source).__name__}{place}>", "not a file, a NumPy array or a Pillow image")

    notes: list[str] = []
    with _refusing(path if path is not None else f"<{name}>"):
        if path is not None:
            return _from_bytes(_read(path), name, path, size, resize)
        if isinstance(source, np.ndarray):
            image = _from_array(source, notes)
            digest = hashlib.sha256(source.tobytes()).hexdigest()
        else:
            assert isinstance(source, Image.Image)
            image = source
            _check_size(*image.size)
            with _silent_libtiff(image):
                digest = hashlib.sha256(image.tobytes()).hexdigest()  # decodes it, where that is still to be done
        return _seen(image, name, None, digest, size, resize, notes)


def _from_bytes(data: bytes, name: str, path: str | None, size: int, resize: str) -> Photograph:
    notes: list[str] = []
    digest = hashlib.sha256(data).hexdigest()
    image = _decode(data, notes)
    del data  # before the copies that the rest makes
    return _seen(image, name, path, digest, size, resize, notes)


def _seen(
    image: Image.Image, name: str, path: str | None, digest: str, size: int, resize: str, notes: list[str]
) -> Photograph:
    image = _as_seen(image, notes)
    pixels = np.array(_resized(image, int(size), resize))
    return Photograph(name, path, digest, image.size, pixels, tuple(notes))


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Turns whatever Pillow does about a bad file into an ImageError, and keeps it quiet.

    Pillow's decoders raise anything at all on malformed bytes, warn about what we decide ourselves (size, broken EXIF),
    and log, which lands on the terminal where nobody has set up logging. A process may have told Pillow to fill
    truncated pictures with grey; a map of that would be a lie. These settings belong to the whole process, hence the
    lock, and are put back.
    """
    unheard = logging.NullHandler()  # the application's own handlers still hear
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("PIL").addHandler(unheard)
        tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        except Exception as error:
            passing = isinstance(error, MemoryError) or (isinstance(error, _RefusedError) and error.passing)
            if isinstance(error, _RefusedError):
                problem = str(error)
            elif isinstance(error, MemoryError):
                problem = "more than fits into memory, or damaged so that it seems so"
            else:
                problem = f"cannot be decoded, truncated or damaged: {_one_line(error)}"
            error.__traceback__ = None  # its frames hold the file's bytes, and Python 3.12 holds on to it
            raise ImageError(path, problem, passing) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
            logging.getLogger("PIL").removeHandler(unheard)


@contextmanager
def _silent_libtiff(image: Image.Image) -> Iterator[None]:
    """Keeps libtiff, which writes to the process's standard error by itself, from adding lines to the ImageError's."""
    try:
        kept = os.dup(2) if image.format == "TIFF" else None
    except OSError:  # closed: there is nothing to keep clean
        kept = None
    if kept is None:
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _one_line(error: Exception) -> str:
    """Another library's words, which may quote the file's own bytes, as something that fits a terminal's line."""
    text = " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200] or type(error).__name__


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise _RefusedError(f"{width} x {height}: there is no pixel in it")
    if width * height > MAX_PIXELS:
        raise _RefusedError(
            f"{width} x {height} pixels, more than the {MAX_PIXELS:,} that are decoded (a decompression bomb?):"
            " export it smaller"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise _RefusedError(f"{width} x {height} pixels, one side over {MAX_RATIO} times the other: crop it")


def _decode(data: bytes, notes: list[str]) -> Image.Image:
    """Decodes the first frame, after a look at the header."""
    Image.init()  # formats that this Pillow was built without are absent, and asking for them would be a KeyError
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise _RefusedError(_what_it_is(data)) from None
    except Image.DecompressionBombError as error:  # far beyond our limit, or beyond the one that this process has set
        raise _RefusedError(f"a decompression bomb? {_one_line(error).partition(',')[0]}: export it smaller") from None
    _check_size(*image.size)
    with _silent_libtiff(image):
        image.load()

    frames = _count_frames(data, formats)
    if frames > 1:
        notes.append(f"first frame of {frames}")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # A 16-bit PNG: Pillow keeps the high byte of the pixels, but all of their transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _count_frames(data: bytes, formats: list[str]) -> int:
    """Counts in a copy: counting a GIF's or TIFF's frames moves away from the first, over others that may be broken."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


def _what_it_is(data: bytes) -> str:
    """Names what Pillow does not know: mostly an honest mistake with a suffix."""
    start = data[:65536].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<?xml", b"<svg", b"<!doctype svg", b"<!--")) and b"<svg" in start:
        return "an SVG drawing, not a photograph: export it as PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a photograph: download the picture itself"
    if start.startswith((b"%pdf", b"%!ps", b"\xc5\xd0\xd3\xc6")):
        return "a PDF or PostScript page, not a photograph: export it as PNG"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the photograph: fetch it with 'git lfs pull'"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "an HEIC photograph, which Pillow does not read: export it as JPEG"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # the cut may fall within a letter
    except UnicodeDecodeError:
        text = "\0"
    if "".join(text.split()).isprintable():
        return "text, not a photograph"
    return "not a photograph that can be read: damaged, or not JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000 or PPM"


def _from_array(array: NDArray[Any], notes: list[str]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise _RefusedError(f"an array of shape {array.shape}: pictures are (H, W), (H, W, 3) or (H, W, 4)")
    _check_size(array.shape[1], array.shape[0])
    if np.issubdtype(array.dtype, np.floating):
        array = _scaled_floats(array, (1,), notes)
    elif array.dtype != np.uint8:
        raise _RefusedError(f"an array of {array.dtype}: pictures are uint8 in [0, 255] or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _scaled_floats(values: NDArray[Any], tops: tuple[int, ...], notes: list[str]) -> NDArray[np.uint8]:
    """Maps [0, top] to [0, 255], with the first of ``tops`` that the values stay within."""
    low, high = float(values.min()), float(values.max())  # NaN if there is any
    if not np.isfinite((low, high)).all():
        raise _RefusedError("holds NaN or infinity")
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        wanted = " or ".join(f"0 to {top}" for top in tops)
        raise _RefusedError(f"holds floats from {low:g} to {high:g}, not {wanted}: scale them, or export it as 8 bit")
    notes.append(f"floats from 0 to {top} scaled to 8 bit")
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


# What a viewer shows


def _as_seen(image: Image.Image, notes: list[str]) -> Image.Image:
    """Decoded picture of any mode → RGB, as a viewer shows it.

    Each step works pixel by pixel, so the turn can come last and everything before it can read the original's tags.
    """
    turn = _TURNS.get(_orientation(image))
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bit(image, notes)
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow leads from there to nothing but its plain sister
        image = image.convert(image.mode.upper())

    alpha = None
    if image.has_transparency_data:  # RGBA is not converted to itself: that would copy it
        alpha = (image if image.mode == "RGBA" else image.convert("RGBA")).getchannel("A")
    is_lab = image.mode == "LAB"  # its colours are absolute, whatever profile lies beside them
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    if image.mode != mode:
        image = image.convert(mode)
    if profile and not is_lab:
        image = _to_srgb(image, profile, notes)
    if image.mode != "RGB":
        image = image.convert("RGB")

    if alpha is not None and alpha.getextrema() != (255, 255):
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        image = white
        notes.append("alpha flattened on white")
    if turn is not None:
        image = image.transpose(turn)
        notes.append("turned by EXIF")
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 (upright) also where the EXIF data are absent or broken. Pillow itself turns TIFFs, and then says 1."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _eight_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scales 16 bits, 12 bits and floats to 8 bits, where Pillow's own conversion would clip them."""
    if image.mode == "F":
        return Image.fromarray(_scaled_floats(np.asarray(image), (1, 255), notes))
    tags = getattr(image, "tag_v2", {})
    wide = image.convert("I")
    low, high = wide.getextrema()
    assert not isinstance(low, tuple)  # one band, so one number each
    assert not isinstance(high, tuple)
    if low < 0 or high > 65535:
        raise _RefusedError(f"holds integers from {low} to {high}, not 0 to 65535: export it as 8 or 16 bit")
    if image.mode == "I" and image.format != "PPM" and high <= 255:
        top = 255  # 32-bit integers say nothing of their range; nobody means one that is all but black
    else:
        top = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
        notes.append(f"{12 if top == 4095 else 16} bit scaled to 8")
    table = [min(255, round(value * 255 / top)) for value in range(65536)]
    if image.mode != "I" and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow sees to that up to 8 bits only
        table = [255 - value for value in table]
    grey = wide.point(table, "L")
    key = grey.info.pop("transparency", None)  # in 16 bits, so it must be applied before they are gone
    if key is not None:
        grey.putalpha(wide.point([0 if value == key else 255 for value in range(65536)], "L"))
    return grey


def _to_srgb(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image:
    """Applies a colour profile to an L, RGB or CMYK picture, unless it is sRGB already."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if image.mode == "L" and profile.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode != "CMYK" and _changes_nothing(transform, image.mode):
            return image
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # None is for in-place use
    except Exception:  # broken, for another kind of picture, or a Pillow without LittleCMS: viewers show it plain
        notes.append("unusable ICC profile ignored")
        return image
    notes.append("ICC profile converted to sRGB")
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a profile means sRGB, told by what it does: there are dozens, under all sorts of names.

    They differ by the rounding of their tables, 1 of 255 in the common one (sRGB IEC61966-2.1); Adobe RGB by 100.
    """
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    colours = np.stack(np.meshgrid(ramp, ramp, ramp, indexing="ij"), axis=-1).reshape(16, 256, 3)
    probe = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[np.newaxis])
    result = ImageCms.applyTransform(probe, transform)
    change = np.asarray(result, dtype=np.int16) - np.asarray(probe.convert("RGB"), dtype=np.int16)
    return bool(np.abs(change).max() <= 2)


# Resizing


def _resized(image: Image.Image, size: int, resize: str) -> Image.Image:
    """RGB of any size → RGB (size, size).

    Matches: keras.utils.load_img(target_size=(size, size)) for "lab"; torchvision's Resize and CenterCrop on Pillow
        images for "torchvision", their roundings included.
    """
    if resize == AS_IT_IS:
        return image
    if resize == "lab":
        return image.resize((size, size), Image.Resampling.NEAREST)
    shorter = round(256 * size / 224)
    longer = int(shorter * max(image.size) / min(image.size))
    width, height = (shorter, longer) if image.width <= image.height else (longer, shorter)
    _check_size(width, height)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def credit_of(name: str, path: str | None) -> str:
    """Whose photograph it is, for the figures: of those that installed packages carry; "" for every other."""
    ours = path is not None and Path(path).parent.name in ("data", "images")
    return LICENCES.get(name, "") if ours else ""
