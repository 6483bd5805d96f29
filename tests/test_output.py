"""A folder of results: the whole new result or the whole old one, and nothing of anybody else's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from torch_impl import output
from torch_impl.output import FORMAT, MANIFEST, OutputError, check_output, replace


def result(folder: Path, *names: str, text: str = "new", **options) -> None:
    """A result of ours of these files."""
    files = [*names, MANIFEST]

    def write(staging):
        for name in names:
            (staging / name).write_text(text)
        (staging / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}))

    replace(folder, files, write, **options)


def contents(folder: Path) -> dict[str, str]:
    """Text of every file but the manifest."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != MANIFEST}


@pytest.fixture
def out(tmp_path):
    """An earlier result."""
    result(tmp_path / "out", "a.png", "b.png", text="old")
    return tmp_path / "out"


def test_a_new_folder(tmp_path):
    result(tmp_path / "deep" / "out", "a.png")
    assert contents(tmp_path / "deep" / "out") == {"a.png": "new"}
    assert os.listdir(tmp_path) == ["deep"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_earlier_result_is_replaced_whole(out):
    assert check_output(out) == {"a.png", "b.png", MANIFEST}
    result(out, "a.png", "c.png")
    assert contents(out) == {"a.png": "new", "c.png": "new"}
    assert os.listdir(out.parent) == ["out"]


def test_others_files_stay(out):
    (out / "notes.txt").write_text("mine")
    (out / "folder").mkdir()
    result(out, "a.png", "c.png")
    assert sorted(os.listdir(out)) == ["a.png", "c.png", "folder", MANIFEST, "notes.txt"]
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("how", ["a link", "a volume", "the working directory", "a parent that is not ours"])
def test_a_folder_that_cannot_be_renamed(out, how, monkeypatch):
    if how == "a link":
        out.rename(out.parent / "there")
        out.symlink_to("there")
    elif how == "a volume":
        monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    elif how == "the working directory":
        monkeypatch.chdir(out)
    else:
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out.parent and access(path, mode))
    before = out.stat().st_ino, out.is_symlink()
    result(out, "a.png", "c.png")
    assert contents(out) == {"a.png": "new", "c.png": "new"}
    assert (out.stat().st_ino, out.is_symlink()) == before


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_result(out, step, error, monkeypatch):
    """While it is written, and at each of the two renames."""
    rename, calls = Path.rename, []

    def failing(path, target):
        calls.append(path)
        if len(calls) == step:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    if step == 0:
        monkeypatch.setattr(json, "dumps", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        result(out, "a.png", "c.png")
    assert contents(out) == {"a.png": "old", "b.png": "old"}
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("mine", [False, True])
def test_a_kill_while_it_is_written_leaves_the_old_result(out, mine):
    """Its own process, since nothing cleans up after a kill."""
    if mine:
        (out / "notes.txt").write_text("mine")
    before = contents(out)
    child = os.fork()
    if not child:
        try:
            replace(out, ["a.png", MANIFEST], lambda staging: (staging / "a.png").write_text("new") and os._exit(9))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert contents(out) == before
    result(out, "a.png")
    assert contents(out) == {"a.png": "new"} | ({"notes.txt": "mine"} if mine else {})


def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for manifest in (None, "", "[]", '{"format": "another"}', f'{{"format": "{FORMAT}"}}'):
        if manifest is not None:
            (tmp_path / MANIFEST).write_text(manifest)
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(OutputError, match=r"holds files that are not a result.*--overwrite"):
            result(tmp_path, "a.png")
        assert sorted(os.listdir(tmp_path)) == before
    result(tmp_path, "a.png", overwrite=True)
    assert contents(tmp_path) == {"a.png": "new", "thesis.tex": "mine"}


def test_a_manifest_names_files_of_its_own_folder_only(tmp_path, out):
    (tmp_path / "thesis.tex").write_text("mine")
    (out / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": ["../thesis.tex", "a.png", MANIFEST]}))
    assert check_output(out) == {"a.png", MANIFEST}
    result(out, "c.png")
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_of_folders_may_be_used(tmp_path):
    (tmp_path / "photographs").mkdir()
    assert check_output(tmp_path) == set()
    result(tmp_path, "a.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png", MANIFEST, "photographs"]


def test_what_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    for place in ("file", "file/below", "dangling"):
        with pytest.raises(OutputError, match="is not a folder; choose another name"):
            check_output(tmp_path / place)
    with pytest.raises(OutputError, match="name is empty"):
        check_output(" ")
    monkeypatch.setattr(output.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission to write"):
        check_output(tmp_path / "out")
