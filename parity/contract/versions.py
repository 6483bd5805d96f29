"""Versions of whatever a map depends on, for manifests and artifacts."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata


@lru_cache(maxsize=8)  # each takes a millisecond to be found
def _installed(packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = [("python", platform.python_version()), ("platform", platform.platform())]
    for package in packages:
        try:
            pairs.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(pairs)


def versions(*packages: str) -> dict[str, str]:
    """Of Python, the platform, and each of these packages that is installed."""
    return dict(_installed(packages))
