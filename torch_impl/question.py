"""What is asked of photographs: which ones, which class of each, and how the answer is put into words and probabilities."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from parity.contract import classes as imagenet
from parity.contract.classes import ClassError
from parity.contract.network import INPUTS, Network
from torch_impl.arrays import Logits, Target
from torch_impl.capture import ENGINES
from torch_impl.capture.draw import ChooseRows
from torch_impl.framing import RESIZES
from torch_impl.precision import sent
from torch_impl.score import OUTPUTS
from torch_impl.transform import Transform

if TYPE_CHECKING:
    from torch_impl.images import ImageError

Classes = Any
"""One class for all photographs, or one for each: an index or a label, or a list of several; None: each one's top-1."""

FOLDER = "folder"
"""In place of classes: the name of the folder that each photograph lies in."""

IMAGENET_SOURCES = ("imagenet", "keras", "offline", "offline-random")
"""Sources of weights whose 1000 classes are ImageNet's."""


def listed_photographs(photographs: Any) -> list[Any]:
    """Photographs as a list, also a single one, or an array of several (N, H, W, 3).

    Raises:
        ValueError: none at all.
    """
    if isinstance(photographs, np.ndarray):
        photographs = [photographs] if photographs.ndim < 4 else list(photographs)
    elif isinstance(photographs, (str, os.PathLike)) or not hasattr(photographs, "__iter__"):
        photographs = [photographs]
    if not (photographs := list(photographs)):
        raise ValueError("no photograph was given")
    return photographs


def expanded(count: int, classes: Classes) -> tuple[list[int], list[int | str] | None]:
    """Which photograph each map is of, and the class of each map; several classes of a photograph are several maps.

    Args:
        count: of photographs.
        classes: as the user gave them.

    Returns:
        Rows of the photographs, and a class for all, one for each of these rows, or None.

    Raises:
        ClassError: a class that is neither an index nor a label, or not one for all or for each photograph.
    """
    rows = list(range(count))
    if isinstance(classes, (Tensor, np.ndarray)):
        classes = classes.tolist()
    if classes is None:
        return rows, None
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        classes = [classes]
    several = [list(c) if isinstance(c, (list, tuple)) else [c] for c in classes]
    if not all(several):
        raise ClassError("an empty list of classes: give one index or label at least")
    if all(len(group) == 1 for group in several):
        return rows, [_class(group[0]) for group in several]
    if len(several) == 1:
        several *= count
    if len(several) != count:
        raise ClassError(f"{len(several)} lists of classes for {count} photographs: give one for each")
    pairs = [(row, _class(value)) for row, group in enumerate(several) for value in group]
    return [row for row, _ in pairs], [value for _, value in pairs]


def _class(value: Any) -> int | str:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, str, np.integer)):
        raise ClassError(f"class {value!r}: give an index or a label")
    return value if isinstance(value, str) else int(value)


def classes_for(option: list[str] | None, paths: Sequence[Path]) -> list[str] | None:
    """The option `--classes`: one class for all photographs, or one for each; None: their top-1.

    Args:
        option: as it was given; the word `folder` stands for the names of the photographs' folders.
        paths: of the photographs.

    Raises:
        ClassError: neither one for all nor one for each.
    """
    if option == [FOLDER]:
        return [folder_of(path) for path in paths]
    if option is not None and len(option) not in (1, len(paths)):
        raise ClassError(
            f"--classes: {len(option)} classes for {len(paths)} photograph{'s' * (len(paths) != 1)}: "
            "give one for all, or one for each"
        )
    return option


@contextlib.contextmanager
def said_of_folders(option: list[str] | None) -> Iterator[None]:
    """What is wrong with a class says where it comes from, if it is a folder's name."""
    try:
        yield
    except ClassError as error:
        if option == [FOLDER]:
            raise ClassError(f"--classes folder: {error}") from None
        raise


def folder_of(path: str | os.PathLike[str]) -> str:
    """The name of the folder that a file lies in, which says its class where classes have a folder each."""
    return os.path.basename(os.path.dirname(os.path.abspath(path)))


def without(classes: list[str] | None, paths: Sequence[Path], refused: Sequence[ImageError]) -> list[str] | None:
    """Classes of the photographs that are left where some were refused."""
    if classes is None or len(classes) == 1:
        return classes
    names = {error.path for error in refused}
    return [value for value, path in zip(classes, paths, strict=True) if str(path) not in names]


def class_index(value: int | str, n_classes: int, names: Sequence[str] | None) -> int:
    """The index of a class, given by index, by label, or by the WordNet id that its label begins with.

    Args:
        value: as a user gave it.
        n_classes: of the network.
        names: of the classes: see `classes.names_of`.

    Raises:
        ClassError: there is no such class.
    """
    text = str(value).strip()
    if not re.fullmatch("n[0-9]{8}", text):
        return imagenet.index(value, n_classes, names)
    known = imagenet.names_of(n_classes, names)
    same = [i for i, name in enumerate(known) if name.partition(" ")[0] == text]
    if len(same) != 1:
        raise ClassError(
            f"class {text!r} is a WordNet id, and {len(same) or 'none'} of the labels begin{'s' * (not same)} with it: give "
            "--labels FILE with lines such as 'n02124075 Egyptian cat'"
        )
    return same[0]


def choose(classes: Sequence[int | str | None] | None, count: int, names: Sequence[str] | None) -> ChooseRows:
    """How the explained classes are chosen once the logits say how many classes there are.

    Args:
        classes: one for all maps, or one for each; None: the top-1, of all or of one.
        count: of maps.
        names: of the classes: see `classes.names_of`.

    Raises (when it is called):
        ClassError: a class that does not exist, or neither one for all nor one for each.
    """
    if classes is None:
        return lambda logits, rows: logits.argmax(dim=1)

    def chosen(logits: Logits, rows: list[int]) -> Target:
        given = [0 if value is None else class_index(value, logits.shape[1], names) for value in classes]
        indices = imagenet.per_photograph(given, count, logits.shape[1], names)
        target = sent(torch.tensor([indices[row] for row in rows]), logits.device)
        if None not in classes:
            return target
        top = sent(torch.tensor([classes[row % len(classes)] is None for row in rows]), logits.device)
        return torch.where(top, logits.argmax(dim=1), target)

    return chosen


def names_for(labels: str | Sequence[str] | None, weights: Network | None) -> Sequence[str]:
    """Labels of a network's classes; none where nobody says.

    Args:
        labels: a label for each class, "imagenet", or None: ImageNet's, of networks that are known to be ImageNet's.
        weights: where the network's weights come from.

    Raises:
        ValueError: another word.
    """
    if labels is None:
        known = weights is not None and weights.source.partition(":")[0] in IMAGENET_SOURCES
        return imagenet.labels() if known else ()
    if isinstance(labels, str) and labels == "imagenet":
        return imagenet.labels()
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise ValueError(f'labels {labels!r}: give "imagenet", or a list with a label for each class')
    return tuple(map(str, labels))


def probabilities_of(logits: Logits, *, single: bool, outputs: str) -> Tensor:
    """Probabilities (N, classes), float64, of a network's outputs.

    Args:
        logits: (N, classes); of a network with one output its negative and itself: see `score.Classifier`.
        single: whether the network has one output.
        outputs: `logits` or `probabilities`.
    """
    wide = logits.double()
    if single:
        positive = wide[:, 1] if outputs == "probabilities" else wide[:, 1].sigmoid()
        return torch.stack([1 - positive, positive], dim=1)
    return wide if outputs == "probabilities" else wide.softmax(dim=1)


def constant_reason(low: float, high: float, *, places: int, no_gradient: bool) -> str:
    """Why a raw map is the same everywhere; "" where it is not.

    Args:
        low: its smallest value.
        high: its largest.
        places: how many it has.
        no_gradient: whether every gradient that it reads is 0.
    """
    if high != low:
        return ""
    if places == 1:
        return "one place only"
    if no_gradient:
        return "gradient zero everywhere"
    return "no positive evidence" if low == 0 else "the same everywhere"


def check_words(engine: str, outputs: str | None, preprocess: str | Transform, resize: str) -> None:
    """Refuse, by name, what is none of the known.

    Raises:
        ValueError: the message says what is known.
    """
    if not callable(preprocess) and preprocess not in INPUTS:
        names = ", ".join(INPUTS)
        raise ValueError(
            f"preprocessing {preprocess!r} is unknown; give {names}, or a function from a picture to (C, H, W)"
        )
    for what, given, known in (
        ("engine", engine, ENGINES),
        ("outputs", OUTPUTS[0] if outputs is None else outputs, OUTPUTS),
        ("resize", resize, RESIZES),
    ):
        if given not in known:
            raise ValueError(f"{what} {given!r} is unknown; known: {', '.join(known)}")
