"""ImageNet's 1000 labels, and a class given by index or by label."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources


class ClassError(ValueError):
    """No such class, or more than one; the message names the nearest."""


@lru_cache(maxsize=1)
def labels() -> tuple[str, ...]:
    """The 1000 ImageNet labels in index order, as torchvision spells them (`tabby` is 281, `espresso` 967)."""
    text = resources.files("parity.contract").joinpath("data/imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def names_of(n_classes: int, names: Sequence[str] | None) -> Sequence[str]:
    """Labels of a network's classes: those given, one for each class; None: ImageNet's where there are 1000; else none.

    Raises:
        ClassError: their number is another one.
    """
    if names is None:
        return labels() if n_classes == len(labels()) else ()
    if names and len(names) != n_classes:
        raise ClassError(f"{len(names)} labels for a network of {n_classes} classes: give one for each, in their order")
    return names


def label(index: int, n_classes: int = 1000, names: Sequence[str] | None = None) -> str:
    """The label of a class; `class 3` where there are none. For `names` see `names_of`."""
    known = names_of(n_classes, names)
    return known[index] if known else f"class {index}"


def index(value: int | str, n_classes: int = 1000, names: Sequence[str] | None = None) -> int:
    """The index of a class.

    Args:
        value: an index, also as text, or a label; case, underscores and hyphens do not matter, unless only
            they tell two labels apart.
        n_classes: of the network.
        names: of the classes: see `names_of`.

    Raises:
        ClassError: out of range, unknown or ambiguous.
    """
    text = str(value).strip()
    if re.fullmatch(r"[+-]?[0-9]{1,100}", text):  # Python itself refuses thousands of digits, in its own words
        if not 0 <= int(text) < n_classes:
            label = ", or a label" if names_of(n_classes, names) else ""
            raise ClassError(f"class {text} does not exist: give 0 to {n_classes - 1}{label}")
        return int(text)
    known = names_of(n_classes, names)
    if not known:
        raise ClassError(
            f"class {text!r}: this network has {n_classes} classes without labels; give 0 to {n_classes - 1}"
        )
    if list(known).count(text) == 1:  # as it is spelt: "Cardigan" is a dog (264), "cardigan" a garment (474)
        return list(known).index(text)
    folded = [_fold(name) for name in known]
    wanted = _fold(text)
    exact = [i for i, name in enumerate(folded) if name == wanted]
    if len(exact) == 1:
        return exact[0]
    if exact:
        raise ClassError(f"class {text!r} is ambiguous: {_listed(exact, known)}; give the index")
    words = [i for i, name in enumerate(folded) if wanted and wanted in name.split(" ")]
    close = [folded.index(name) for name in difflib.get_close_matches(wanted, folded, n=5, cutoff=0.0)]
    nearest = list(dict.fromkeys(words + close))[:5]
    whose = "an ImageNet label" if known is labels() else "a label of this network"
    raise ClassError(f"class {text!r} is not {whose}; nearest: {_listed(nearest, known)}")


def per_photograph(
    values: Sequence[int | str], n_photographs: int, n_classes: int = 1000, names: Sequence[str] | None = None
) -> list[int]:
    """One class for all photographs, or one for each; for `names` see `names_of`.

    Raises:
        ClassError: a class that does not exist, or their number is neither 1 nor `n_photographs`.
    """
    indices = [index(value, n_classes, names) for value in values]
    if len(indices) == 1:
        return indices * n_photographs
    if len(indices) != n_photographs:
        raise ClassError(
            f"{len(indices)} classes for {n_photographs} photograph{'s' * (n_photographs != 1)}: "
            "give one for all, or one for each"
        )
    return indices


def _fold(text: str) -> str:
    return re.sub(r"[\s_\-']+", " ", text).strip().casefold()


def _listed(indices: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(f"{names[i]} ({i})" for i in indices)
