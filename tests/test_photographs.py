"""Photographs' files: found in folders, read once, and every bad one refused in one line."""

from __future__ import annotations

import os
import pickle
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import FILES, encoded, flat, png, read

from torch_impl import framing, images
from torch_impl.images import ImageError, ImagesError


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "an empty file (0 bytes)"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a photograph that can be read: damaged, or not JPEG, PNG"),
        (b"a shopping list: caf\xc3\xa9\n", "not a photograph"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a photograph"),  # which would start Ghostscript
        (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC photograph, which Pillow does not read: export it as JPEG"),
        (b"\0" * 100, "not a photograph"),
        (
            png(14_000, 14_000, 8, 2, b"\0"),
            "a decompression bomb? Image size (196000000 pixels) exceeds limit of 1789569",
        ),
        (encoded(flat(0, size=(1, 51)), "PNG"), "1 x 51 pixels: empty, or one side over 50 times the other: crop it"),
        (encoded(flat(0, size=(50_000, 1)), "PNG"), "one side over 50 times the other"),
    ],
)
def test_not_a_photograph(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.jpg").touch()
    (tmp_path / "hollow.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse: takes no room
    for name, problem in {
        "missing.jpg": "no such file",
        "folder.jpg": "a folder, not a photograph",
        "hollow.jpg": "no photographs in it (.jpg, .png, .webp, .tif and so on; sub-folders included)",
        "dangling.jpg": "a link to a file that is not there",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "huge.jpg": "512 MiB, more than the 512 MiB that are read: export it smaller",
        "missing.jpg/x.jpg": "no such file",
        "x" * 300: "cannot be read: File name too long",
        "nul\0.jpg": "cannot be read: embedded null byte",
    }.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(ImageError) as caught:
            images.load(path)
        assert (str(caught.value), caught.value.path) == (f"{path!r}: {problem}", path)
    for path, problem in (("", "no such file"), ("https://example.org/a.jpg", "a URL; nothing is fetched: download")):
        for call in (images.load, images.find, lambda path: images.find([path], skip_bad=True)):
            with pytest.raises(ImageError, match=f"^{path!r}: {problem}"):
                call(path)


def test_pipes_and_devices_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path may have no more than about 100 letters
        server.bind("socket.jpg")
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("opened"))
    for path in ("pipe.jpg", "socket.jpg", "/dev/zero"):
        for call in (images.load, images.find):
            with pytest.raises(ImageError, match="a pipe, socket or device, not a photograph"):
                call(path)


def test_bytes_are_read_as_their_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(FILES["JPEG"])
    for resize in (*framing.RESIZES, framing.AS_IT_IS):
        file = images.load(path, size=16, resize=resize)
        photograph = images.load_bytes(FILES["JPEG"], name="a.jpg", path=str(path), size=16, resize=resize)
        np.testing.assert_array_equal(photograph.pixels, file.pixels)
        assert photograph.pixels.shape == ((48, 48, 3) if resize == "none" else (16, 16, 3))
        for name in ("name", "path", "sha256", "original_size", "notes", "seen"):
            assert getattr(photograph, name) == getattr(file, name)
    with pytest.raises(ImageError, match=r"^'s\.tar//a\.jpg': an empty file"):
        images.load_bytes(b"", name="a.jpg", path="s.tar//a.jpg")
    # `printf 'P5 1 1 255\nA' | sha256sum`
    expected = "ab47e2e0763aa3c57324c0942aea26bc15ef6997f27d159c4a49fc14ab79d168"
    assert images.load_bytes(b"P5 1 1 255\nA", name="a").sha256 == expected


NAMES = ["quote'\".jpg", "new\nline.jpg", "\x1b[31mred\x07.jpg", "right\u202eleft.jpg", "-dash%s{0}$HOME日本 é.jpg"]


@pytest.mark.parametrize("name", [*NAMES, "n" * 200 + ".jpg"])
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(FILES["JPEG"])
    assert images.find([name]) == [Path(name)]
    photograph = images.load(name)
    assert (photograph.name, photograph.path) == (name, name)
    Path(name).write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        images.load(name)
    assert str(caught.value).isprintable()  # no line break, no escape sequence, no reversed writing
    assert caught.value.path == name


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    Path(path).write_bytes(FILES["JPEG"])
    assert images.load(path).name == "caf\ufffd.jpg"


def test_errors_survive_pickling() -> None:
    error = ImageError("a\nb.jpg", "an empty file (0 bytes)")
    both = ImagesError([error, ImageError("c.jpg", "no such file")])
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "'a\\nb.jpg': an empty file (0 bytes)"
    assert str(pickle.loads(pickle.dumps(both))) == str(both) == f"{error}\n'c.jpg': no such file"
    assert isinstance(both, ImageError)
    assert both.path == "a\nb.jpg"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", FILES)
def test_damaged_bytes_are_a_photograph_or_an_error(format: str) -> None:
    random = np.random.default_rng(0)
    refused = []
    for kept in (0.05, 0.5, 0.9):
        with pytest.raises(ImageError) as caught:
            read(FILES[format][: int(len(FILES[format]) * kept)])
        refused.append(str(caught.value))
    for trial in range(60):
        data = np.frombuffer(FILES[format], np.uint8).copy()
        reach = 64 if trial % 2 else len(data)  # half of them in the header
        for place in random.integers(0, reach, random.integers(1, 9)):
            data[place] ^= random.integers(1, 256)
        try:
            assert read(data.tobytes(), size=16).pixels.shape == (16, 16, 3)
        except ImageError as error:
            refused.append(str(error))
    assert all(map(str.isprintable, refused))


# Several


def test_find_lists_a_folder_and_its_sub_folders_in_natural_order(tmp_path: Path) -> None:
    shown = ["9.JPG", "10.jpg", "a2.png", "b.webp", "IMG_1.tiff", "Alpha/z.jpg", "sub2/c.jpg", "sub10/deep/b.heic"]
    hidden = [".hidden.jpg", "notes.txt", "jpg", ".thumbs/d.jpg"]
    top = tmp_path / "top"
    for name in reversed([*shown, *hidden, "../elsewhere/e.jpg"]):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (top / "sub2" / "circle").symlink_to(top)
    (top / "sub10" / "link").symlink_to(tmp_path / "elsewhere")
    assert images.find(top) == [top / name for name in (*shown, "sub10/link/e.jpg")]
    twice = images.find([str(top / "notes.txt"), top / "Alpha", top / "notes.txt"])
    assert [path.name for path in twice] == ["notes.txt", "z.jpg", "notes.txt"]  # named files need no suffix
    assert images.find(str(top / "Alpha")) == [top / "Alpha" / "z.jpg"]  # not letter by letter


def test_find_lists_everything_that_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty/below", "locked", "folder/locked"):
        Path(folder).mkdir(parents=True)
    Path("folder/good.jpg").write_bytes(FILES["JPEG"])
    Path("folder/dangling.jpg").symlink_to("nowhere")
    os.mkfifo("folder/pipe.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # root, which tests may run as, is never refused
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    paths = ["empty", "locked", "folder", "missing.jpg"]
    empty = "no photographs in it (.jpg, .png, .webp, .tif and so on; sub-folders included)"
    problems = {"empty": empty, "locked": "may not be read: permission denied", "missing.jpg": "no such file"}
    with pytest.raises(ImagesError) as caught:
        images.find(paths)
    assert {error.path: error.problem for error in caught.value.errors} == problems
    assert len(str(caught.value).splitlines()) == 3

    photographs, errors = images.load_all(images.find(paths, skip_bad=True), skip_bad=True)
    assert [each.name for each in photographs] == ["good.jpg"]
    assert {error.path: error.problem for error in errors} == problems | {
        "folder/dangling.jpg": "a link to a file that is not there",
        "folder/pipe.png": "a pipe, socket or device, not a photograph",
        "folder/locked": problems["locked"],
    }


def test_load_all_finds_every_bad_one_before_it_complains(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(FILES["JPEG"])
    (tmp_path / "bad.jpg").write_bytes(b"")
    hole = np.full((2, 2), np.nan)
    sources: list[images.Source] = [tmp_path / "bad.jpg", tmp_path / "good.jpg", hole, tmp_path / "gone.jpg"]
    with pytest.raises(ImagesError) as caught:
        images.load_all(sources)
    assert [error.path for error in caught.value.errors] == [str(sources[0]), "<array 3>", str(sources[3])]

    photographs, errors = images.load_all(sources, skip_bad=True)
    assert [each.name for each in photographs] == ["good.jpg"]
    assert list(map(str, errors)) == list(map(str, caught.value.errors))
    with pytest.raises(ImagesError):  # nothing would be left
        images.load_all([sources[0], sources[3]], skip_bad=True)
    assert images.find([]) == images.load_all([])[0] == []


def test_bad_photographs_are_not_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(FILES["JPEG"])
    (tmp_path / "bad.png").write_bytes(FILES["PNG"][:200] + bytes(4_000_000))
    tracemalloc.start()
    try:
        _, errors = images.load_all([tmp_path / "good.jpg", *[tmp_path / "bad.png"] * 5], skip_bad=True)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(errors) == 5
    assert kept < 4_000_000
