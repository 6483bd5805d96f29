"""What a user types and reads on a command line; known without importing PyTorch."""

from __future__ import annotations

from torch_impl.names import canonical_name


def listed(text: str, option: str) -> list[str]:
    """A comma-separated option.

    Raises:
        ValueError: an empty item.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ValueError(f"{option} {text!r}: an item is empty; separate with single commas")
    return items


def methods_of(text: str) -> list[str]:
    """The option `--methods`: each method once, by its key.

    Raises:
        ValueError: an empty item, or an unknown method.
    """
    return list(dict.fromkeys(canonical_name(name) for name in listed(text, "--methods")))


def printable(text: str) -> str:
    """Text that a terminal does not obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
