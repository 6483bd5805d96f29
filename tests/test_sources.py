"""Inputs of large runs: listed in order, lazily, each photograph the same whatever holds it; nothing leads astray."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import random
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_images
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_images import FILES, NAMES, OPAQUE, PLAIN, TRANSPARENT, encoded, flat, png

from torch_impl import images
from torch_impl.batch import archives, tables
from torch_impl.batch.entries import Entry, Refused
from torch_impl.batch.seen import Seen
from torch_impl.batch.sources import Cell, Item, SourceError, open_inputs, photograph, read
from torch_impl.images import ImageError

JPEG = FILES["JPEG"]
OTHER = encoded(flat((9, 9, 9)), "PNG")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Making inputs


def write(path: str, data: bytes | str = JPEG) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def header(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def tar(path: str, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=format) as archive:
        for member, data in members:
            info = header(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def parquet(path: str, /, **columns: Any) -> str:
    group = columns.pop("row_group_size", 3)
    options = {name: columns.pop(name) for name in ("compression", "store_schema") if name in columns}
    pq.write_table(pa.table(columns), path, row_group_size=group, **options)
    return path


def keys(source: Iterable[Item]) -> list[str]:
    return [item.key for item in source]


def problem(item: Item) -> str:
    """Why it cannot be read; empty if it can."""
    try:
        photograph(item)
    except ImageError as error:
        return error.problem if error.path == item.path and str(error).isprintable() else f"not for people: {error!r}"
    return ""


def refused(*arguments: Any, **options: Any) -> str:
    """What `open_inputs`, or going through, says: one line."""
    with pytest.raises(SourceError) as caught:
        open_inputs(*arguments, **options).check()
    assert str(caught.value).isprintable()
    return str(caught.value)


# The same photograph, or the same problem, whatever holds it

NOT_PHOTOGRAPHS = [data for data, _ in test_images.test_not_a_photograph.pytestmark[0].args[1]]  # type: ignore[attr-defined]
NO_BRIGHTNESS = [data for data, _ in test_images.test_numbers_that_are_no_brightness.pytestmark[0].args[1]]  # type: ignore[attr-defined]
AWKWARD = [
    *(data[: int(len(data) * kept)] for data in FILES.values() for kept in (0.05, 0.5, 0.9)),
    *NOT_PHOTOGRAPHS,
    *NO_BRIGHTNESS,
    png(13_000, 13_000, 8, 2, b"\0"),  # a bomb, by its header
    png(60_000, 60_000, 8, 2, b"\0"),
    encoded(flat((1, 2, 3), size=(1, 51)), "PNG"),
    b"\x89PNG\r\n\x1a\n",
    b"import os\n" + pickle.dumps([1, 2, 3]),
]
FINE = [data for data, *_ in (*TRANSPARENT.values(), *OPAQUE.values(), *PLAIN.values())] + list(FILES.values())


def in_folder(each: list[bytes]) -> list[str]:
    for number, data in enumerate(each):
        write(f"folder/{number}.jpg", data)
    return ["folder"]


def in_glob(each: list[bytes]) -> list[str]:
    in_folder(each)
    return ["fol*/**/*.jp[g]"]


def in_csv(each: list[bytes]) -> list[str]:
    in_folder(each)
    return [write("list.csv", "path\n" + "".join(f"folder/{number}.jpg\n" for number in range(len(each))))]


def in_parquet_of_paths(each: list[bytes]) -> list[str]:
    in_folder(each)
    return [parquet("list.parquet", path=[f"folder/{number}.jpg" for number in range(len(each))])]


def in_tar(each: list[bytes]) -> list[str]:
    return [tar("shard.tar", ((f"{number}.jpg", data) for number, data in enumerate(each)))]


def in_parquet(each: list[bytes]) -> list[str]:
    return [parquet("bytes.parquet", image=pa.array(each, pa.binary()))]


def in_hugging_face(each: list[bytes]) -> list[str]:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return [parquet("hf.parquet", image=pa.array([{"bytes": data, "path": None} for data in each], kind))]


def in_dictionary(each: list[bytes]) -> list[str]:
    return [parquet("dictionary.parquet", image=pa.array(each, pa.large_binary()).dictionary_encode())]


CONTAINERS = [in_folder, in_glob, in_csv, in_parquet_of_paths, in_tar, in_parquet, in_hugging_face, in_dictionary]


@pytest.mark.parametrize("contain", CONTAINERS)
def test_awkward_files_have_the_same_problem_in_every_container(contain: Callable[[list[bytes]], list[str]]) -> None:
    expected = []
    for data in AWKWARD:
        with pytest.raises(ImageError) as caught:
            images.load(write("plain", data))
        expected.append(caught.value.problem)
    items = list(open_inputs(contain(AWKWARD)))
    assert [problem(item) for item in items] == expected
    assert [item.index for item in items] == list(range(len(AWKWARD)))


@pytest.mark.parametrize("contain", CONTAINERS)
def test_photographs_are_the_same_in_every_container(contain: Callable[[list[bytes]], list[str]]) -> None:
    items = list(open_inputs(contain(FINE)))
    for item, data in zip(items, FINE, strict=True):
        expected = images.load(write("plain", data), size=8, resize="torchvision")
        found = photograph(item, size=8, resize="torchvision")
        assert read(item) == data
        assert (found.sha256, found.notes, found.original_size) == (
            expected.sha256,
            expected.notes,
            expected.original_size,
        )
        assert (found.pixels == expected.pixels).all()
        assert found.path == item.path


@pytest.mark.parametrize("contain", CONTAINERS)
def test_large_files_are_not_read(contain: Callable[[list[bytes]], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(open_inputs(contain([JPEG, bytes(3 * 2**20), JPEG])))
    monkeypatch.setattr(images, "MAX_BYTES", 2 * 2**20)
    assert [problem(item) for item in items] == ["", "3 MiB, more than the 2 MiB that are read: export it smaller", ""]
    with pytest.raises(ImageError, match="3 MiB, more than"):  # refused before its bytes are taken, not by the decoder
        read(items[1])


def test_files_that_are_not_there(here: Path) -> None:
    write("d/good.jpg")
    Path("d/dangling.jpg").symlink_to("gone.jpg")
    Path("d/loop.jpg").symlink_to("loop.jpg")
    os.mkfifo("d/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("d/socket.jpg")
    expected = {
        "dangling.jpg": "a link to a file that is not there",
        "good.jpg": "",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "pipe.jpg": "a pipe, socket or device, not a photograph",
        "socket.jpg": "a pipe, socket or device, not a photograph",
    }
    assert {Path(item.path).name: problem(item) for item in open_inputs(["d"])} == expected

    expected |= {"missing.jpg": "no such file", "x" * 300: "cannot be read: File name too long"}
    write("d/folder.jpg/inside.jpg")
    expected["folder.jpg"] = "a folder, not a photograph"
    lists = [
        write("d/list.csv", "path\n" + "\n".join(expected)),
        parquet("d/list.parquet", path=list(expected)),
    ]
    for listed in lists:
        assert {Path(item.path).name: problem(item) for item in open_inputs([listed])} == expected
    nul = parquet("d/nul.parquet", path=["nul\0.jpg"])
    assert [problem(item) for item in open_inputs([nul])] == ["cannot be read: embedded null byte"]


def test_what_vanishes_or_changes_after_it_was_listed() -> None:
    def make() -> list[Item]:
        write("a.jpg")
        tar("s.tar", [("a.jpg", JPEG)])
        parquet("t.parquet", image=[JPEG, JPEG])
        return list(open_inputs(["a.jpg", "s.tar", "t.parquet"]))

    items = make()
    assert [problem(item) for item in items] == [""] * 4
    for name in ("a.jpg", "s.tar", "t.parquet"):
        os.utime(name, ns=(1, 1))
    # A file of its own is what it is; an offset or a row of another file would be another photograph.
    changed = "the file that holds it has changed since it was listed: start again"
    assert [problem(item) for item in items] == ["", changed, changed, changed]
    items = make()
    for name in ("a.jpg", "s.tar", "t.parquet"):
        os.remove(name)
    assert [problem(item) for item in items] == ["no such file"] * 4
    assert refused(["s.tar"]) == "'s.tar': no such file"


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    name = name.replace("/", "_")
    write(f"d/{name}", b"")
    tar("s.tar", [(name, b"")])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet("hf.parquet", image=pa.array([{"bytes": b"", "path": name}], kind))
    quoted = name.replace('"', '""')
    write("list.csv", f'path\n"d/{quoted}"\n')
    items = list(open_inputs(["d", "s.tar", "hf.parquet"]))
    assert [item.path for item in items] == [f"d/{name}", f"s.tar//{name}", f"hf.parquet//{name}"]
    assert [item.path for item in open_inputs(["list.csv"])] == [f"d/{name}"]
    assert [problem(item) for item in items] == ["an empty file (0 bytes)"] * 3


def test_names_that_are_not_utf8() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write(f"d/{name}")
    tar("s.tar", [(name, JPEG)], format=tarfile.GNU_FORMAT)
    items = list(open_inputs(["d", "s.tar"]))
    assert [item.path for item in items] == ["d/caf\\xe9.jpg", "s.tar//caf\\xe9.jpg"]
    assert keys(items) == ["d/caf%E9.jpg", "s.tar//caf%E9.jpg"]
    assert [problem(item) for item in items] == ["", ""]


# Items


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text("ab/#%2350", max_size=6),
            st.one_of(st.none(), st.text("ab/#%2350", max_size=6)),
            st.one_of(st.none(), st.text("ab%2350", max_size=4)),
        ),
        unique=True,
        max_size=12,
    )
)
@example([("a", None, "282"), ("a#282", None, None), ("a%23282", None, None), ("a", "#282", None), ("a", None, None)])
def test_no_two_keys_are_confused(parts: list[tuple[str, str | None, str | None]]) -> None:
    parts = [(place.strip("/").replace("//", "/"), inner, category) for place, inner, category in parts]
    parts = list(dict.fromkeys(part for part in parts if "//" not in part[0] and part[0]))
    found = [
        Entry(place, inner, None, None, Refused(""), (0, 0)).item(0, category, "/").key
        for place, inner, category in parts
    ]
    assert len(set(found)) == len(parts)


def test_items_are_small_and_travel_between_processes(here: Path) -> None:
    write("d/a.jpg")
    write("list.csv", "path,class\nd/a.jpg,282\n")
    tar("s.tar", [("a.jpg", JPEG)])
    parquet("t.parquet", image=[JPEG])
    source = open_inputs(["list.csv", "s.tar", "t.parquet"])
    for item in source:
        data = pickle.dumps(item)
        assert len(data) < 600
        assert pickle.loads(data) == item
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    Path("list").write_bytes(pickle.dumps(list(source)))
    program = (
        "import pickle, sys\n"
        "from torch_impl.batch.sources import read\n"
        "print([len(read(item)) for item in pickle.load(open(sys.argv[1], 'rb'))])\n"
    )
    done = subprocess.run(  # in another folder: a worker's is not ours
        [sys.executable, "-c", program, str(here / "list")],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (f"{[len(JPEG)] * 3}\n", "")


def test_a_forked_child_opens_the_table_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing the parent's open file, each would move the other's place in it between a seek and a read."""
    draw = random.Random(0)
    datas = [draw.randbytes(100_000) for _ in range(40)]
    items = list(open_inputs([parquet("t.parquet", image=datas, row_group_size=40)]))
    assert read(items[0]) == datas[0]
    opened: list[str] = []
    regular = tables.open_regular
    monkeypatch.setattr(tables, "open_regular", lambda path: opened.append(path) or regular(path))
    child = os.fork()
    if child == 0:
        status = 2
        try:
            same = all(read(item) == data for item, data in zip(items, datas, strict=True))
            status = 0 if same and len(opened) == 1 else 1
        finally:
            os._exit(status)
    assert all(read(item) == data for item, data in zip(items, datas, strict=True))
    assert opened == []  # and the parent goes on with its own
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_listing_again_gives_the_same() -> None:
    in_folder([JPEG] * 20)
    write("folder/list.csv", "path,class\n3.jpg,5\n3.jpg,6\n")
    tar("s.tar", [("a.jpg", JPEG), ("a.cls", b"4")])
    parquet("t.parquet", image=[JPEG] * 7, label=list(range(7)))
    source = open_inputs(["folder", "folder/list.csv", "s.tar", "t.parquet"])
    first = list(source)
    assert len(first) == 30
    assert list(source) == first
    half, whole = iter(source), iter(source)  # two at once
    assert [next(half) for _ in range(13)] == first[:13]
    assert list(whole) == first
    assert list(half) == first[13:]
    assert source.check() == 30
    assert list(open_inputs(["folder", "s.tar"], limit=21)) == list(open_inputs(["folder", "s.tar"]))
    assert open_inputs(["folder"], limit=7).check() == 7
    assert keys(open_inputs(["folder"], limit=2)) == ["folder/0.jpg", "folder/1.jpg"]


def test_the_same_photograph_and_class_is_listed_once(here: Path) -> None:
    write("d/a.jpg")
    write("d/b.jpg")
    tar("s.tar", [("a.jpg", JPEG)])
    write("list.csv", "path,class\nd/a.jpg,3\nd/a.jpg,4\nd/a.jpg,3\nd/b.jpg,\n./d//b.jpg,\n")
    assert keys(open_inputs(["d", "d/a.jpg", "./d/", "s.tar", f"{here}/d/b.jpg", "s.tar"])) == [
        "d/a.jpg",
        "d/b.jpg",
        "s.tar//a.jpg",
    ]
    assert keys(open_inputs(["list.csv"])) == ["d/a.jpg#3", "d/a.jpg#4", "d/b.jpg"]
    assert keys(open_inputs(["list.csv"], classes="top1")) == ["d/a.jpg", "d/b.jpg"]


@given(st.lists(st.text(max_size=3), max_size=60), st.integers(0, 3000))
def test_seen_is_a_set(texts: list[str], more: int) -> None:
    seen, expected = Seen(), set[str]()
    for text in [*texts, *map(str, range(more)), *texts]:
        assert seen.add(text) == (text not in expected)
        expected.add(text)
    assert len(seen) == len(expected)


# Folders and globs


def names(source: Iterable[Item]) -> list[str]:
    return [item.path for item in source]


def test_folders_are_recursive_in_natural_order() -> None:
    for name in (
        "10.jpg",
        "9.JPG",
        "a10/x.png",
        "a2/y.png",
        "a2/1/z.webp",
        ".hidden.jpg",
        ".git/a.jpg",
        "n.txt",
        "b.jpg/c.jpg",
    ):
        write(f"d/{name}")
    write("d/labels.csv", "path\n9.JPG\n")
    assert names(open_inputs(["d"])) == [
        "d/9.JPG",
        "d/10.jpg",
        "d/a2/y.png",
        "d/a2/1/z.webp",
        "d/a10/x.png",
        "d/b.jpg/c.jpg",
    ]
    os.chdir("d")
    assert names(open_inputs(["."]))[:3] == ["9.JPG", "10.jpg", "a2/y.png"]


def test_links_between_folders_are_no_endless_loop() -> None:
    write("d/a/1.jpg")
    write("d/b/2.jpg")
    write("elsewhere/3.jpg")
    Path("d/a/up").symlink_to("..")
    Path("d/a/self").symlink_to("self")
    Path("d/b/a").symlink_to("../a")
    Path("d/c").symlink_to("../elsewhere")
    assert names(open_inputs(["d"])) == ["d/a/1.jpg", "d/b/2.jpg", "d/c/3.jpg"]
    assert len(names(open_inputs(["d/**/*.jpg"]))) == 3
    for n in range(30):  # 2³⁰ ways down, were each one gone
        Path(f"deep/{n}").mkdir(parents=True)
        for link in ("l", "r"):
            Path(f"deep/{n}/{link}").symlink_to(f"../{n + 1}")
    write("deep/30/x.jpg")
    assert len(names(open_inputs(["deep/0"]))) == 1
    assert len(names(open_inputs(["deep/0/**/*.jpg"]))) == 1


def test_a_folder_that_cannot_be_listed_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    write("d/a.jpg")
    write("d/private/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # root, which tests may run as, is never refused
        if os.path.basename(path) == "private":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert {item.path: problem(item) for item in open_inputs(["d"])} == {
        "d/a.jpg": "",
        "d/private": "a folder that cannot be listed: may not be read: permission denied",
    }
    assert refused(["d/private"]) == "'d/private': may not be read: permission denied"


def test_globs() -> None:
    for name in (
        "train/n1/a.jpg",
        "train/n1/b.png",
        "train/n2/c.jpg",
        "train/n2/deep/d.jpg",
        "train/.n3/e.jpg",
        "train/n1/f.txt",
    ):
        write(f"d/{name}")
    for pattern, expected in {
        "d/train/n*/*.jpg": "ac",
        "d/train/*/*": "abcd",  # the folder `deep` with what is in it
        "d/train/n[2-9]": "cd",
        "d/**/*.jpg": "acd",
        "d/**": "abcd",
        "**/d*/*.jpg": "d",
        "d/train/**/n1/?.???": "ab",
        "d/train/.n*/*": "e",
        "*/train/n1/a.jpg": "a",
    }.items():
        assert [Path(name).stem for name in names(open_inputs([pattern]))] == list(expected), pattern
        absolute = names(open_inputs([os.path.abspath(pattern)]))
        assert [Path(name).stem for name in absolute] == list(expected), pattern
    write("odd[1].jpg")
    assert names(open_inputs(["odd[1].jpg"])) == ["odd[1].jpg"]  # what exists is not a pattern
    write("d/labels.csv", "path\ntrain/n1/a.jpg\n")
    tar("d/s.tar", [("x.jpg", JPEG)])
    assert names(open_inputs(["d/*.csv"])) == ["d/train/n1/a.jpg"]
    assert names(open_inputs(["d/*.tar"])) == ["d/s.tar//x.jpg"]
    assert all("train" in name for name in names(open_inputs(["d/*"])))  # a table beside photographs is not an input


def test_inputs_that_are_wrong_as_a_whole() -> None:
    Path("empty").mkdir()
    write("shards/x.tar")
    write("zero.csv", "")
    write("plain.txt", "a.jpg\n")
    os.mkfifo("pipe.csv")
    Path("dir.csv").mkdir()
    tar("none.tar", [("a.txt", b"")])
    write("header.csv", "path,class\n")
    write("nothing.parquet", b"PAR1")
    write("z.tar.gz", b"\x1f\x8b\x08")
    write("z.tar", b"\x1f\x8b\x08\0")
    write("noise.tar", bytes(range(256)) * 8)
    write("a.jpg")
    for name, said in {
        "missing": "no such file",
        "missing.csv": "no such file",
        "empty": "a folder without photographs (.jpg, .png, .webp, .tif and so on), sub-folders included",
        "shards": "a folder without photographs (.jpg, .png, .webp, .tif and so on), sub-folders included; for its .tar "
        "files give 'shards/*.tar', in quotes",
        "nothing/*.jpg": "matches no photographs, folders, or, where it ends with their suffix, tables or archives",
        "zero.csv": "an empty file (0 bytes)",
        "plain.txt": "unknown suffix '.txt': give photographs, a folder, .csv, .tsv, .parquet or .tar",
        "pipe.csv": "a pipe, socket or device, not a file",
        "dir.csv": "a folder without photographs (.jpg, .png, .webp, .tif and so on), sub-folders included",
        "none.tar": "no photographs in it",
        "header.csv": "no rows in it",
        "z.tar.gz": ".gz archives are compressed and cannot be read at any place: unpack it to a folder or a plain .tar",
        "z.tar": "a gzip file: compressed archives cannot be read at any place; unpack it",
        "noise.tar": "not a tar archive: invalid header",
        "http://example.org/a.jpg": "a URL; nothing is fetched: download it first",
        "s3://bucket/list.parquet": "a URL; nothing is fetched: download it first",
        "file:///etc/passwd": "a URL; nothing is fetched: download it first",
        "nul\0.csv": "cannot be read: embedded null byte",
        "": "no such file",
    }.items():
        assert refused([name]) == f"{name!r}: {said}"
    assert refused(["nothing.parquet"]).startswith("'nothing.parquet': not a Parquet table, or damaged: ")
    assert refused([]) == "no input: give photographs, folders, tables or archives"
    assert refused(["a.jpg"], root="missing") == "root 'missing': no such folder"
    with pytest.raises(ValueError, match="limit 0: give 1 or more"):
        open_inputs(["a.jpg"], limit=0)


# Tables of paths


def test_text_tables() -> None:
    write("d/a.jpg")
    write("d/with, comma.jpg")
    write('d/quo"te.jpg')
    write("d/new\nline.jpg")
    write("d/é.jpg")
    body = 'path,extra,Class\na.jpg,1, 282 \n"with, comma.jpg",,\n\n"quo""te.jpg",,"tiger cat"\r\n"new\nline.jpg",,7\né.jpg,,0\n'
    expected = [
        ("d/a.jpg", "282"),
        ("d/with, comma.jpg", None),
        ('d/quo"te.jpg', "tiger cat"),
        ("d/new\nline.jpg", "7"),
        ("d/é.jpg", "0"),
    ]
    write("d/list.csv", body)
    write("d/bom.csv", "\ufeff" + body)
    write("d/crlf.csv", body.replace("\n", "\r\n").replace("new\r\n", "new\n").replace("\r\r", "\r"))
    for name in ("list", "bom", "crlf"):
        items = list(open_inputs([f"d/{name}.csv"]))
        assert [(item.path, item.category) for item in items] == expected, name
        assert [problem(item) for item in items] == [""] * 5
    write("d/list.tsv", "file_name\tlabel\na.jpg\t3\nwith, comma.jpg\t\n")
    assert keys(open_inputs(["d/list.tsv"])) == ["d/a.jpg#3", "d/with, comma.jpg"]


def test_broken_text_tables_are_told_in_one_line() -> None:
    huge = "x" * (tables.MAX_RECORD + 1)
    for data, said in {
        b"path\n" + "caf\xe9.jpg".encode("latin-1") + b"\n": ", line 2: not UTF-8: save the table as UTF-8",
        "path\na.jpg\n".encode("utf-16"): ": UTF-16 text: save the table as UTF-8",
        b"path\na\0.jpg\n": ", line 2: a NUL character: not a text table, or damaged",
        b'path\n"a.jpg\n': ", line 2: broken quotes or line ends: unexpected end of data",
        b'path\n"a"b.jpg\n': ", line 2: broken quotes or line ends: ',' expected after '\"'",
        b"path\na.jpg\rb.jpg\rc.jpg\n": ", line 2: broken quotes or line ends: new-line character seen in unquoted field",
        b"path\na.jpg,3\n": ", line 2: 2 cells, but 1 columns: put quotes around a cell that holds the separator",
        b"path,class\na.jpg\n": ", line 2: 1 cells, but 2 columns: put quotes around a cell that holds the separator",
        b"path;class\na.jpg;3\n": ": its columns are separated by semicolons: separate them by commas",
        b"path\tclass\na.jpg\t3\n": ": its columns are separated by tabs: separate them by commas",
        b"a.jpg,282\n": f": no column of paths; the first line must name one {', '.join(tables.PATH_COLUMNS)}; its "
        "columns are 'a.jpg', '282'",
        b"path,path\na,b\n": ": two columns are called 'path': rename one",
        b"PK\x03\x04": ": a workbook or a ZIP archive, not a text table: save it as CSV",
        b"\x1f\x8b\x08\0": ": compressed with gzip: unpack it",
        b"PAR1": ": a Parquet table: call it .parquet",
        f"path\n{huge}\n".encode(): ", line 2: a row of more than 1,048,576 bytes: a quote that is not closed?",
        f"path\n{huge}".encode() * 3: ", line 2: a row of more than 1,048,576 bytes: a quote that is not closed?",
        b'path\n"' + b"a.jpg\n" * 400_000: ", line ",
    }.items():
        write("t.csv", data)
        message = refused(["t.csv"])
        assert message == f"'t.csv'{said}" or (len(data) > 10**6 and message.startswith(f"'t.csv'{said}")), message


def test_parquet_tables_of_paths() -> None:
    write("d/a.jpg")
    parquet("d/t.parquet", path=["a.jpg", "b.jpg", "a.jpg", None, ""], **{"class": [1, None, 3, 4, 5]})
    assert keys(open_inputs(["d/t.parquet"])) == [
        "d/a.jpg#1",
        "d/b.jpg",
        "d/a.jpg#3",
        "d/t.parquet//3#4",
        "d/t.parquet//4#5",
    ]
    assert [problem(i) for i in open_inputs(["d/t.parquet"])][3:] == ["the row names no photograph"] * 2
    for column in (
        pa.array(["282", None, " tabby "]),
        pa.array(["282", None, "tabby"]).dictionary_encode(),
        pa.array(["282", "", "tabby"], pa.large_string()),
    ):
        parquet("d/t.parquet", filename=pa.array(["a.jpg"] * 3, pa.large_string()).dictionary_encode(), label=column)
        assert [item.category for item in open_inputs(["d/t.parquet"])] == ["282", None, "tabby"]
    parquet("d/t.parquet", path=["a.jpg"] * 3, label=pa.array([1.0, None, 2.5]))  # how pandas writes gaps
    assert [item.category for item in open_inputs(["d/t.parquet"])] == ["1", None, "2.5"]
    parquet("d/t.parquet", path=["a.jpg", "x" * (tables.MAX_RECORD + 1)])
    assert [problem(item) for item in open_inputs(["d/t.parquet"])] == [
        "",
        "a cell of 1,048,577 bytes, more than the 1,048,576 that are read",
    ]
    for columns, said in {
        ("x",): "neither a column of paths",
        ("path", "class"): "its column 'class' holds bool, not classes",
    }.items():
        parquet("d/t.parquet", **{name: [True] if name != "path" else ["a.jpg"] for name in columns})
        assert said in refused(["d/t.parquet"])
    parquet("d/t.parquet", path=[3])
    assert "its column 'path' holds int64, not text" in refused(["d/t.parquet"])


def test_rows_never_lead_out_of_the_tables_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("secret.jpg")
    write("set/in.jpg")
    write("set/sub/in.jpg")
    Path("set/link.jpg").symlink_to("../secret.jpg")
    Path("set/out").symlink_to("..")
    Path("set/fine.jpg").symlink_to("sub/in.jpg")
    out = "leads out of the table's folder, 'set': not read; name the folder that all are in as the root"
    link = f"a link that leads out of {str(here / 'set')!r}: not read; name the folder that all are in as the root"
    expected = {
        "in.jpg": "",
        "sub/../in.jpg": "",
        "./sub//in.jpg": "",
        "fine.jpg": "",
        f"{here}/set/in.jpg": "",
        "../secret.jpg": out,
        "sub/../../secret.jpg": out,
        f"{here}/secret.jpg": out,
        "/etc/passwd": out,
        f"{here}/set/../secret.jpg": out,
        f"{here}/set-other/x.jpg": out,
        "link.jpg": link,
        "out/secret.jpg": link,
        "http://example.org/a.jpg": "names a URL; nothing is fetched: download it, and name the file",
        "S3://bucket/a.jpg": "names a URL; nothing is fetched: download it, and name the file",
        "file:///etc/passwd": "names a URL; nothing is fetched: download it, and name the file",
        "data:image/png;base64,AAAA": "names a URL; nothing is fetched: download it, and name the file",
    }
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket"))
    for row, said in expected.items():
        listed = write("set/list.csv", f'path\n"{row}"\n'), parquet("set/list.parquet", path=[row])
        for table in listed:
            assert [problem(item) for item in open_inputs([table])] == [said], row
    write("set/list.csv", f"path\nset/link.jpg\nset/out/secret.jpg\n{here}/secret.jpg\nset/../secret.jpg\n../x.jpg\n")
    found = list(open_inputs(["set/list.csv"], root="."))
    assert [problem(item)[:9] for item in found] == ["", "", "", "leads out"]  # the fourth is the third again
    assert [problem(item) for item in open_inputs(["set/list.csv"], root="/")][2] == ""


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["..", ".", "", "in", "out", "up", "a.jpg", "secret.jpg", "HERE", "HERE/set"]), max_size=7)
)
def test_no_path_of_any_shape_reads_what_is_outside(here: Path, parts: list[str]) -> None:
    if not os.path.exists("set"):
        write("secret.jpg", OTHER)
        write("a.jpg", OTHER)
        write("set/a.jpg")
        write("set/in/a.jpg")
        Path("set/out").symlink_to("..")
        Path("set/in/up").symlink_to("..")
        Path("set/in/secret.jpg").symlink_to("../../secret.jpg")
    row = "/".join(parts).replace("HERE", str(here))
    parquet("set/list.parquet", path=[row])
    (item,) = open_inputs(["set/list.parquet"])
    try:
        data = read(item)
    except ImageError:
        data = b""
    real = os.path.realpath(os.path.join("set", row))
    assert data != OTHER
    if os.path.isfile(real) and real.startswith(f"{here}/set/") and ".." not in parts:  # and nothing inside is refused
        assert data == JPEG


# Classes


def classes_of(source: Iterable[Item]) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for item in source:
        found.setdefault(item.path, []).append(item.category)
    return found


def test_classes_table() -> None:
    for name in ("pets/cat.jpg", "pets/dog.jpg", "wild/cat.jpg", "wild/fox.jpg"):
        write(f"photos/{name}")
    tar("s.tar", [("x/owl.jpg", JPEG), ("x/owl.cls", b"24")])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet("hf.parquet", image=pa.array([{"bytes": JPEG, "path": "emu.jpg"}] * 2, kind), label=[1, 2])
    inputs = ["photos", "s.tar", "hf.parquet"]
    write("c.csv", "path,class\npets/cat.jpg,282\nfox.jpg,red fox\nfox.jpg,278\nfox.jpg,278\nphotos/wild/cat.jpg,\n"
          "s.tar//x/owl.jpg,20\nhf.parquet//1,9\n")  # fmt: skip
    assert [(item.path, item.category) for item in open_inputs(inputs, classes="c.csv")] == [
        ("photos/pets/cat.jpg", "282"),
        ("photos/pets/dog.jpg", None),
        ("photos/wild/cat.jpg", None),
        ("photos/wild/fox.jpg", "red fox"),
        ("photos/wild/fox.jpg", "278"),
        ("s.tar//x/owl.jpg", "20"),
        ("hf.parquet//emu.jpg", None),
        ("hf.parquet//emu.jpg", "9"),
    ]
    write("c.csv", f"path,class\ncat.jpg,1\npets/cat.jpg,2\n{os.path.abspath('photos/pets/dog.jpg')},3\n")
    assert classes_of(open_inputs(["photos"], classes="c.csv")) == {  # the longer end first
        "photos/pets/cat.jpg": ["2"],
        "photos/pets/dog.jpg": ["3"],
        "photos/wild/cat.jpg": ["1"],
        "photos/wild/fox.jpg": [None],
    }
    write("tables/c.csv", "path,class\n../photos/pets/dog.jpg,3\n")
    assert classes_of(open_inputs(["photos/pets"], classes="tables/c.csv"))["photos/pets/dog.jpg"] == ["3"]
    parquet("c.parquet", path=["owl.jpg"], **{"class": [5]})
    assert classes_of(open_inputs(["s.tar"], classes="c.parquet")) == {"s.tar//x/owl.jpg": ["5"]}
    assert classes_of(open_inputs(["s.tar"], classes="top1")) == {"s.tar//x/owl.jpg": [None]}
    assert classes_of(open_inputs(["s.tar"])) == {"s.tar//x/owl.jpg": ["24"]}
    assert keys(open_inputs(["photos"], classes="c.csv", limit=2)) == ["photos/pets/cat.jpg#2", "photos/pets/dog.jpg#3"]


def test_classes_that_match_nothing_or_too_much_are_refused_before_anything_is_done() -> None:
    for name in ("a/cat.jpg", "b/cat.jpg", "b/dog.jpg"):
        write(f"d/{name}")
    write("c.csv", "path,class\ndog.jpg,3\ncow.jpg,3\nold/dog.jpg,1\n")
    lost = "'c.csv': 2 paths match no photograph: 'cow.jpg' (row 3), 'old/dog.jpg' (row 4)"
    with pytest.raises(SourceError) as caught:
        open_inputs(["d"], classes="c.csv", limit=1)
    assert str(caught.value) == lost
    write("c.csv", "path,class\n" + "".join(f"{n}.jpg,\n" for n in range(1000)))
    assert refused(["d"], classes="c.csv").startswith("'c.csv': 1,000 paths match no photograph: '0.jpg' (row 2), ")
    write("c.csv", "path,class\ncat.jpg,3\n")
    message = refused(["d"], classes="c.csv")
    assert message.startswith("'c.csv', row 2: 'cat.jpg' is more than one photograph, ")
    assert message.endswith("/d/b/cat.jpg': give more of the path")
    for classes, said in {
        "c.txt": "classes 'c.txt': give top1, or a table of paths and classes: .csv, .tsv or .parquet",
        "281": "classes '281': give top1, or a table of paths and classes: .csv, .tsv or .parquet",
        "gone.csv": "'gone.csv': no such file",
        "https://x/c.csv": "'https://x/c.csv': a URL; nothing is fetched: download it first",
        write("e.csv", "path,class\n,3\n"): "'e.csv', row 2: names no photograph",
        write("h.csv", "path,class\n"): "'h.csv': no rows in it",
    }.items():
        assert refused(["d"], classes=classes) == said


# Archives


def test_webdataset_classes() -> None:
    members = [
        ("n/1.jpg", JPEG), ("n/1.cls", b"282\n"),
        ("n/2.json", b'{"label": 7, "caption": "x"}'), ("n/2.png", OTHER),
        ("n/3.jpg", JPEG), ("n/3.json", b'{"label": 1}'), ("n/3.cls", b"9"),  # .cls before .json
        ("n/4.left.jpg", JPEG), ("n/4.right.jpg", JPEG), ("n/4.cls", b"tiger cat"),
        ("n/5.jpg", JPEG), ("n/5.txt", b"a caption"),
        ("n/6.jpg", JPEG), ("n/6.json", b'{"class": "tabby", "label": 3}'),
        ("n/7.jpg", JPEG), ("n/7.json", b"[1, 2"),
        ("n/8.jpg", JPEG), ("n/8.json", b'{"label": [1]}'),
        ("n/9.jpg", JPEG), ("n/9.json", b"[" * 100_000),
        ("n/10.jpg", JPEG), ("n/10.cls", b"1" * 5000),
        ("n/11.jpg", JPEG), ("n/11.json", b"9" * 5000),
        ("n/12.jpg", JPEG), ("n/12.cls", b"\xff\xfe"),
        ("n/13.jpg", JPEG), ("n/13.json", b'{"label": true}'),
        ("n/14.jpg", JPEG), ("n/14.json", b"5"),
    ]  # fmt: skip
    items = list(open_inputs([tar("s.tar", members)]))
    found = [item.category for item in items]
    assert found == ["282", "7", "9", "tiger cat", "tiger cat", None, "tabby", *[None] * 7, "5"]
    assert [problem(item) for item in items[:7]] == [""] * 7
    unread = "its class cannot be read: "
    assert [problem(item) for item in items[7:]] == [
        f"{unread}the .json beside it is damaged",
        f"{unread}in the .json beside it, it is neither a number nor a text",
        f"{unread}the .json beside it is damaged",
        f"{unread}the .cls beside it is 5,000 bytes long",
        f"{unread}the .json beside it is damaged",
        f"{unread}the .cls beside it is damaged",
        f"{unread}in the .json beside it, it is neither a number nor a text",
        "",
    ]
    assert [problem(item) for item in open_inputs(["s.tar"], classes="top1")] == [""] * 15  # then nobody asks


def test_a_class_for_very_many_photographs_is_for_all_or_refused() -> None:
    many = [(f"p.{n}.jpg", JPEG) for n in range(archives.MAX_GROUP + 5)]
    first = open_inputs([tar("s.tar", [("p.cls", b"3"), *many])])
    assert {item.category for item in first} == {"3"}
    assert "'p.cls' comes after more than 1000 photographs of its class" in refused(
        [tar("s.tar", [*many, ("p.cls", b"3")])]
    )
    assert len(list(open_inputs([tar("s.tar", many)]))) == len(many)


def test_members_that_lead_astray_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = write("secret.jpg")
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("./fine.jpg", JPEG),
        ("../secret.jpg", JPEG),
        ("a/../../secret.jpg", JPEG),
        ("/etc/x.jpg", JPEG),
        (header("soft.jpg", type=tarfile.SYMTYPE, linkname=os.path.abspath(secret)), b""),
        (header("hard.jpg", type=tarfile.LNKTYPE, linkname="fine.jpg"), b""),
        (header("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), b""),
        (header("pipe.jpg", type=tarfile.FIFOTYPE), b""),
        (header("folder.jpg", type=tarfile.DIRTYPE), b""),
        ("._mac.jpg", b"x"),
        ("__MACOSX/.hidden/a.jpg", b"x"),
        ("fine.jpg", OTHER),
        ("notes.txt", b"x"),
        ("l" * 300 + ".jpg", JPEG),
    ]
    out = "its name leads out of the archive: not read"
    link = "a link inside an archive: not followed"
    device = "a pipe, socket or device, not a photograph"
    again = "the archive holds another photograph of this name before it: only that one is read"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        items = list(open_inputs([tar("s.tar", members, format)]))
        assert [problem(item) for item in items] == ["", out, out, out, link, link, device, device, again, ""]
        assert len(set(keys(items))) == len(items)
        assert items[0].key == "s.tar//fine.jpg"
    before = sorted(os.listdir())
    list(open_inputs(["s.tar"]))
    assert sorted(os.listdir()) == before  # nothing is unpacked


def test_an_archive_that_breaks_off_says_so() -> None:
    whole = Path(tar("w.tar", [(f"{n}.jpg", JPEG) for n in range(4)])).read_bytes()
    step = len(whole[:0]) + 512 + -(-len(JPEG) // 512) * 512
    short = "the file that holds it ends before it does: truncated, copy it again"
    end = "the archive has no end mark: it was probably cut off; copy it again"
    for data, said in {
        whole[: 2 * step]: ["", "", end],
        whole[: 2 * step + 100]: [
            "",
            "",
            f"the archive is damaged from byte {2 * step:,} on, and not read further: no header there",
        ],
        whole[: 2 * step - 600]: [
            "",
            short,
            f"the archive is damaged from byte {2 * step:,} on, and not read further: unexpected end of data",
        ],
        whole[:step] + b"\xff" * 512 + whole[step:]: [
            "",
            f"the archive is damaged from byte {step:,} on, and not read further: no header there",
        ],
        whole[: 4 * step] + bytes(1024) + whole: [
            *[""] * 4,
            "the archive goes on behind its end mark (two joined into one?), and is not read there: split it",
        ],
        whole + bytes(5_000_000): [""] * 4,
    }.items():
        write("s.tar", data)
        assert [problem(item) for item in open_inputs(["s.tar"])] == said
    classed = Path(tar("w.tar", [("1.jpg", JPEG), ("1.cls", b"1"), ("2.jpg", JPEG), ("2.cls", b"2")])).read_bytes()
    write("s.tar", classed[: 2 * step + 1024])
    assert [(item.category, problem(item)) for item in open_inputs(["s.tar"])] == [
        ("1", ""),
        (None, "its class cannot be read: the archive breaks off behind it"),  # its top-1 would be a guess
        (None, end),
    ]


def raw_header(name: bytes, size: bytes, kind: bytes) -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[0:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_headers_that_lie() -> None:
    fine = Path(tar("w.tar", [("a.jpg", JPEG)])).read_bytes()[: 512 + -(-len(JPEG) // 512) * 512]
    backwards = b"\xff" + b"\xff" * 9 + b"\xf0\x00"  # base 256: -4096
    gigabytes = b"\x80" + bytes(5) + (2**40).to_bytes(6, "big")
    record = b"18 size=-99999999\n"
    evil = {
        "negative": raw_header(b"b.jpg", backwards, b"0"),
        "negative name": raw_header(b"b.jpg", backwards, b"L"),
        "name of a terabyte": raw_header(b"././@LongLink", gigabytes, b"L"),
        "pax of a terabyte": raw_header(b"pax", gigabytes, b"x"),
        "pax size": raw_header(b"pax", b"%011o\0" % len(record), b"x") + record.ljust(512, b"\0") + fine,
        "chain": raw_header(b"././@LongLink", b"%011o\0" % 0, b"L") * 5000,
    }
    for name, data in evil.items():
        write("s.tar", fine + data + bytes(1024))
        items = list(open_inputs(["s.tar"]))
        assert [problem(item).partition(", and")[0] for item in items] == [
            "",
            f"the archive is damaged from byte {len(fine):,} on",
        ], name
        assert items[1].key == f"s.tar#byte {len(fine)}"
        write("s.tar", data + fine + bytes(1024))
        try:
            said = problem(list(open_inputs(["s.tar"]))[-1])
        except SourceError as error:
            said = str(error)
        assert said.startswith(("'s.tar': not a tar archive: ", "the archive is damaged from byte 0 on")), name
    write("s.tar", fine + raw_header(b"b.jpg", gigabytes, b"0") + bytes(1024))
    items = list(open_inputs(["s.tar"]))
    assert problem(items[1]) == "the file that holds it ends before it does: truncated, copy it again"


@pytest.mark.parametrize("kind", ["tar", "csv", "parquet", "paths"])
def test_damaged_containers_are_rows_or_one_line(kind: str) -> None:
    if kind == "tar":
        whole = Path(tar("s.tar", [(n + ".jpg", JPEG) for n in "abc"] + [("c.json", b'{"label": 1}')])).read_bytes()
    elif kind == "csv":
        whole = Path(write("s.csv", 'path,class\na.jpg,"1"\nb.jpg,2\n')).read_bytes()
    elif kind == "parquet":
        whole = Path(parquet("s.parquet", image=[JPEG] * 5, label=[1, 2, 3, 4, 5])).read_bytes()
    else:
        whole = Path(parquet("s.parquet", path=["a.jpg"] * 5)).read_bytes()
    name = "s." + {"paths": "parquet"}.get(kind, kind)
    draw = random.Random(3)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            place = (
                draw.randrange(len(data))
                if draw.random() < 0.5
                else draw.choice([-1, 1]) * draw.randrange(min(600, len(data)))
            )
            data[place] ^= draw.randint(1, 255)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        write(name, bytes(data))
        said: list[str] = []
        try:
            said.extend(problem(item) for item in itertools.islice(open_inputs([name]), 1000))
        except SourceError as error:
            said.append(str(error))
        assert all(line.isprintable() for line in said)


# Parquet with image bytes


def test_rows_in_any_order_from_many_threads() -> None:
    datas = [str(n).encode() * (n + 1) for n in range(300)]
    items = list(open_inputs([parquet("t.parquet", image=datas, row_group_size=70)]))
    assert [item.locator.row_group for item in items if isinstance(item.locator, Cell)] == [n // 70 for n in range(300)]
    assert keys(items)[::150] == ["t.parquet//0", "t.parquet//150"]
    order = list(range(300)) * 2
    random.Random(0).shuffle(order)
    for n in order:
        assert read(items[n]) == datas[n]
    wrong: list[int] = []

    def several(start: int) -> None:
        wrong.extend(n for n in range(start, 300, 4) if read(items[n]) != datas[n])

    threads = [threading.Thread(target=several, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_nearly_in_order_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    regular = tables.open_regular
    items = list(open_inputs([parquet("t.parquet", image=[b"x" * n for n in range(1, 401)], row_group_size=400)]))
    monkeypatch.setattr(tables, "open_regular", lambda path: opened.append(path) or regular(path))
    for start in range(0, 400, 20):
        for n in reversed(range(start, start + 20)):
            assert len(read(items[n])) == n + 1
    assert len(opened) == 1


def test_columns_of_photographs() -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = pa.array([{"bytes": JPEG, "path": "a/b.jpg"}, {"bytes": None, "path": "http://x/c.jpg"}, None], kind)
    items = list(open_inputs([parquet("t.parquet", photo=both, label=pa.array([3, 4, None]))]))
    assert keys(items) == ["t.parquet//0#3", "t.parquet//1#4", "t.parquet//2"]
    assert names(items) == ["t.parquet//a/b.jpg", "t.parquet//http://x/c.jpg", "t.parquet//2"]
    assert [problem(item) for item in items] == [
        "",
        *["there are no image bytes in this row, and nothing is fetched"] * 2,
    ]
    write("a.jpg", OTHER)
    items = list(open_inputs([parquet("t.parquet", path=["a.jpg"], mask=[OTHER], image=[JPEG])]))
    assert [(item.key, item.path, read(item) == JPEG) for item in items] == [("t.parquet//0", "t.parquet//a.jpg", True)]
    parquet("t.parquet", mask=[OTHER], depth=[JPEG])
    assert "several columns hold bytes ('mask', 'depth'): call the photographs' one 'image'" in refused(["t.parquet"])


class Pickled(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(print)

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
        raise AssertionError("unpickled")


def test_pickles_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    column = pa.ExtensionArray.from_storage(Pickled(), pa.array([pickle.dumps([1])]))
    parquet("t.parquet", image=column)
    assert "column 'image' holds a pickle, which would run code: not read" in refused(["t.parquet"])
    parquet("t.parquet", image=[JPEG], other=column)
    assert "column 'other' holds a pickle, which would run code: not read" in refused(["t.parquet"])
    for name in ("x.pkl", "x.npy", "x.pt"):
        assert "a pickle, which may run code: not read" in refused([write(name)])


def peak(work: Callable[[], Any]) -> float:
    """The most memory that Python and Arrow held at once, MiB."""
    most = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, pa.total_allocated_bytes() / 2**20)

    watcher = threading.Thread(target=watch)
    tracemalloc.start()
    watcher.start()
    try:
        work()
        return most + tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        done.set()
        watcher.join()
        tracemalloc.stop()


def test_bombs_of_repeated_and_packed_cells() -> None:
    cell = bytes(20 * 2**20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([cell, b""]))
    # Without Arrow's own schema it is plain bytes to a reader, unpacked for every row.
    parquet("t.parquet", image=repeated, row_group_size=2000, store_schema=False)
    assert os.path.getsize("t.parquet") < 2**21  # and 40 GB, all unpacked
    items = list(itertools.islice(open_inputs(["t.parquet"]), 3))
    assert peak(lambda: [problem(item) for item in items]) < 400
    # Two batches are held while the second is read, and Arrow doubles a buffer that grows: some 64 + 2 × 64 MiB, and a page.
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * (20 * 2**20)]))
    parquet("t.parquet", path=text, row_group_size=2000, store_schema=False)
    assert peak(lambda: list(itertools.islice(open_inputs(["t.parquet"]), 50))) < 400


def test_row_groups_that_unpack_too_far_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(open_inputs([parquet("t.parquet", image=[bytes(2**20 + n) for n in range(3)], compression="zstd")]))
    assert problem(items[0]).startswith("not a photograph that can be read")
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    monkeypatch.setattr(tables, "_reader", None)
    assert "(a decompression bomb?): not read" in problem(items[0])


# Size


def test_a_long_table_is_read_as_it_is_needed() -> None:
    with open("t.csv", "w") as file:
        file.write("path,class\n")
        file.writelines(f"folder/photo{n}.jpg,{n % 1000}\n" for n in range(100_000))
        file.write('"broken')
    source = open_inputs(["t.csv"])
    start = time.perf_counter()
    assert [item.category for item in itertools.islice(source, 3)] == ["0", "1", "2"]  # before the end is seen
    assert time.perf_counter() - start < 0.5
    tracemalloc.start()
    try:
        count = 0
        with pytest.raises(SourceError, match="line 100002: broken quotes"):
            for _ in source:
                count += 1
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 100_000
    assert most < 6 * 2**20  # a list of the items takes 60 MiB; what was seen, 3


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_long_listings_hold_no_entries(kind: str) -> None:
    if kind == "tar":
        name = tar("s.tar", ((f"{n}.jpg", b"x") for n in range(20_000)))
    elif kind == "parquet":
        name = parquet("s.parquet", image=[b"x"] * 20_000, label=list(range(20_000)), row_group_size=20_000)
    else:
        name = "d"
        for n in range(2_000):
            write(f"d/{n // 100}/{n}.jpg", b"x")
    source = open_inputs([name])
    expected = 2_000 if kind == "folder" else 20_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in source) == expected
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * 2**20  # 20,000 items take 12 MiB
