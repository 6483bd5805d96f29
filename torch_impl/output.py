"""A folder of results: whether it may be written, and replacing an earlier result whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = "attention-maps explanation 1"


class OutputError(ValueError):
    """The output folder cannot be used; the message says why."""


def check_output(folder: str | os.PathLike[str], *, overwrite: bool = False) -> set[str]:
    """Whether results may be written here; asked before the work, so that nobody waits in vain.

    Returns:
        Names of the files that an earlier result of ours left here.

    Raises:
        OutputError: a file of this name, a folder with somebody's files, or no permission.
    """
    out = Path(folder)
    shown = ascii(os.fspath(folder))
    if not os.fspath(folder).strip():
        raise OutputError("the output folder's name is empty")
    parent = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise OutputError(f"output folder {shown}: {ascii(str(parent))} is not a folder; choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {shown}: no permission to write in {ascii(str(parent))}")
    if parent != out:
        return set()
    earlier = _earlier_result(out)
    if earlier is not None:
        return earlier
    if not overwrite and any(not entry.is_dir() for entry in out.iterdir()):
        raise OutputError(
            f"output folder {shown} holds files that are not a result of this program; "
            "choose another folder, or add --overwrite to write beside them"
        )
    return set()


def replace(out: Path, names: Sequence[str], write: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Put files into a folder, all of them or none; files of an earlier result that are not among them go.

    A folder that holds our result alone is exchanged whole. Where others' files lie in it, or where it cannot be renamed,
    ours are moved in one by one, the manifest last.

    Args:
        out: the folder; made if it is not there.
        names: of the files that `write` makes, the manifest last.
        write: given an empty folder, writes them.
        overwrite: also into a folder that holds files and no result of ours.

    Raises:
        OutputError: the folder cannot be used.
        OSError: as the file system says.
    """
    earlier = check_output(out, overwrite=overwrite)
    inside = out.is_dir() and not _exchangeable(out, earlier)
    existing = out if inside else next(p for p in out.absolute().parents if p.is_dir())
    # The same file system as the result, so that what is complete is moved into place, never copied.
    with tempfile.TemporaryDirectory(dir=existing, prefix=".part-") as staging:
        new = Path(staging, "new")
        new.mkdir()
        write(new)
        if not inside:
            out.parent.mkdir(parents=True, exist_ok=True)
            _exchange(out, new, Path(staging, "old"))
            return
        for name in names:
            os.replace(new / name, out / name)
    for name in earlier - set(names):
        (out / name).unlink(missing_ok=True)


def _exchangeable(out: Path, earlier: set[str]) -> bool:
    """Whether a folder may be renamed: ours alone, no link, no mounted volume, nobody's working directory."""
    fixed = out.is_symlink() or out.is_mount() or out.resolve() == Path.cwd()
    renamable = os.access(out.absolute().parent, os.W_OK | os.X_OK)
    return renamable and not fixed and {entry.name for entry in out.iterdir()} <= earlier


def _exchange(out: Path, new: Path, old: Path) -> None:
    """Put `new` into the place of `out`; whatever goes wrong on the way, `out` is what it was."""
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise


def _earlier_result(out: Path) -> set[str] | None:
    """Names of the files of a result of ours; None where there is none."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        return {str(name) for name in manifest["files"] if Path(str(name)).name == str(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
