"""Freed memory goes back to the system, so that a long run needs no more of it than a short one."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

MAPPED = 4 * 2**20
"""Bytes from which a block is mapped by itself: feature maps and noise, but not the maps and pictures that are kept."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>


@lru_cache(maxsize=1)
def return_freed_blocks() -> bool:
    """Have glibc map every block of `MAPPED` bytes or more by itself, for the whole process.

    By default it stops doing so for blocks of up to 32 MiB once one of that size has been freed. Feature maps then lie in one
    heap among the results that are kept, and what is freed between two of those cannot be given back: 5 to 13 MB a photograph
    were lost, against 2 MB that its results take; the memory of all four maps was 200 to 300 MB larger. Mapping anew costs
    page faults, 1 % of a pass or less.

    Returns:
        Whether it was set: not where the user has (`GLIBC_TUNABLES`, `MALLOC_MMAP_THRESHOLD_`), nor without glibc.

    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "") + "".join(name for name in os.environ if name.startswith("MALLOC_"))
    if not sys.platform.startswith("linux") or "mmap_threshold" in chosen.lower():
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED) and mallopt(_TRIM_THRESHOLD, MAPPED))
