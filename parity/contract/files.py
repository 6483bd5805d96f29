"""A file is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the same folder; on success it replaces `path`, on any error it is removed.

    Args:
        path: the file that shall exist, complete, after the block. Its folder must exist.

    Yields:
        The temporary path, with `path`'s suffix: write there.

    Raises:
        OSError: as the file system says (no space, no permission); then `path` is as it was before.
    """
    target = Path(path)
    # Short ones only: what follows a dot in a long name is no suffix, and would make the temporary name too long.
    suffix = "".join(part for part in target.suffixes[-2:] if len(part) <= 16)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".part-", suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 is for secrets; this is a file like any other
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's. Linux says it; elsewhere asking means setting it for a moment, while other threads may write files."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0)
        os.umask(mask)
        return mask
