"""Text from elsewhere (names, files, other libraries' errors), made fit for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Text that a terminal does not obey: line breaks, escape sequences and the like as their Python escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(error_or_text: BaseException | str, limit: int = 400) -> str:
    """What an error or a file says, on one printable line.

    Args:
        error_or_text: An error without words gives its type's name; text without words stays empty.
        limit: Letters kept.

    Returns:
        The line: runs of white space as one space, what is not printable as a question mark.
    """
    nameless = "" if isinstance(error_or_text, str) else type(error_or_text).__name__
    text = " ".join(str(error_or_text).split()) or nameless
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:limit]


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and a sign that there are more."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
