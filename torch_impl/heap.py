"""Freed memory goes back to the system, so that a long run needs no more of it than a short one."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

MAPPED = 12 * 2**20
"""Bytes from which a block is mapped by itself: the larger feature maps of a CPU's micro-batch (from 12.25 MiB for four photographs at
56×56×256), but not oneDNN's copies of the weights (9 MiB and less), which each pass makes anew."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>


@lru_cache(maxsize=1)
def return_freed_blocks() -> bool:
    """Have glibc map every block of `MAPPED` bytes or more by itself, for the whole process.

    By default it stops doing so for blocks of up to 32 MiB once one of that size has been freed. Feature maps then lie in one
    heap among the results that are kept, and what is freed between two of those can be used again in part only: for all four maps,
    each photograph beyond the fourth took 5 to 17 MB, of which 2 MB are kept. With this it is 3 to 8 MB, and the peak 100 MB lower.
    Mapping anew costs page faults, 1 to 2 % of a pass; from 6 MiB on it was 2 MB a photograph, and 5 to 8 % of a pass.

    Returns:
        Whether it was set: not where the user has (`GLIBC_TUNABLES`, `MALLOC_MMAP_THRESHOLD_`, or either's trim threshold), nor
        without glibc.

    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "") + "".join(name for name in os.environ if name.startswith("MALLOC_"))
    theirs = any(word in chosen.lower() for word in ("mmap_threshold", "trim_threshold"))
    if not sys.platform.startswith("linux") or theirs:
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED) and mallopt(_TRIM_THRESHOLD, MAPPED))
