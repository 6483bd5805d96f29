"""Something of the user's own, by name: `package.module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


class LookupFailedError(ValueError):
    """There is nothing of this name; one line."""


def lookup(name: str, what: str) -> Callable[..., Any]:
    """A callable by `module:name`; the current folder is searched too.

    Args:
        name: `package.module:name`, or `package.module:Class.method`.
        what: it is for, in messages: `--explainer`, `candidate`.

    Raises:
        LookupFailedError: no such module or name, or the module cannot be imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise LookupFailedError(f"{what} {name!r}: give module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise LookupFailedError(f"{what} {name!r}: {error}; run it from the folder that holds the module") from None
    except Exception as error:  # whatever the module does when it is imported
        raise LookupFailedError(
            f"{what} {name!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise LookupFailedError(f"{what} {name!r}: {module_name} has no function {attribute}")
    return value  # type: ignore[no-any-return]
