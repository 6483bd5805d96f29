"""Versions of whatever a map depends on, for manifests and artifacts."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata


@lru_cache(maxsize=8)  # each takes a millisecond to be found
def versions(*packages: str) -> Mapping[str, str]:
    """Of Python, the platform, and each of these packages that is installed."""
    known = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known
