"""A file is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from parity.contract.text import one_line


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
    temporary = target.with_name(f".part-{secrets.token_hex(8)}{suffix}")
    temporary.touch(0o666, exist_ok=False)
    usual = temporary.stat().st_mode  # less what the process's umask takes away
    try:
        yield temporary
        temporary.chmod(usual)  # a file like any other: safetensors makes its own, which nobody else may read
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, np.ndarray], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: as the file system says; then nothing is left at `path` that was not there before.
    """
    with whole(path) as temporary:
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(one_line(error)) from None
