"""Inputs of large runs: listed in order, each photograph the same whatever holds it; nothing leads astray."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import socket
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from parity.contract.text import one_line
from torch_impl.batch.listing import Listing, listed, write_listing
from torch_impl.batch.loading import Reader, decoded
from torch_impl.batch.sources import Item, SourceError
from torch_impl.images import ImageError


def encoded(colour: tuple[int, int, int], format: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), colour, np.uint8)).save(data, format)
    return data.getvalue()


JPEG, OTHER = encoded((200, 100, 50)), encoded((9, 9, 9), "PNG")
BAD = [JPEG[:200], b"no photograph", b"", b"import os\n" + pickle.dumps([1, 2, 3]), b"\x89PNG\r\n\x1a\n"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    options = {"row_group_size": 3} | {n: columns.pop(n) for n in ("row_group_size", "store_schema") if n in columns}
    pq.write_table(pa.table(columns), path, **options)
    return path


def items(*inputs: str, **options: Any) -> list[Item]:
    return list(listed(inputs, **options))


def keys(*inputs: str, **options: Any) -> list[str]:
    return [item.key for item in items(*inputs, **options)]


def paths(*inputs: str) -> list[str]:
    return [item.path for item in items(*inputs)]


def problem(item: Item) -> str:
    """Why it cannot be read; empty if it can."""
    try:
        decoded(item, Reader().read(item), 8, "lab")
    except ImageError as error:
        return error.problem
    except (OSError, ValueError, pa.ArrowException) as error:
        return one_line(getattr(error, "strerror", None) or error)
    return ""


def problems(*inputs: str, **options: Any) -> list[str]:
    said = [problem(item) for item in items(*inputs, **options)]
    assert all(line.isprintable() for line in said)
    return said


def refused(*inputs: str, **options: Any) -> str:
    """What is said of an input as a whole: one line."""
    with pytest.raises(SourceError) as caught:
        items(*inputs, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


# The same photograph, or the same problem, whatever holds it


def in_folder(each: list[bytes]) -> str:
    for number, data in enumerate(each):
        write(f"folder/{number}.jpg", data)
    return "folder"


def in_glob(each: list[bytes]) -> str:
    in_folder(each)
    return "fol*/**/*.jp[g]"


def in_csv(each: list[bytes]) -> str:
    in_folder(each)
    return write("list.csv", "path\n" + "".join(f"folder/{number}.jpg\n" for number in range(len(each))))


def in_parquet_of_paths(each: list[bytes]) -> str:
    in_folder(each)
    return parquet("list.parquet", path=[f"folder/{number}.jpg" for number in range(len(each))])


def in_tar(each: list[bytes]) -> str:
    return tar("shard.tar", ((f"{number}.jpg", data) for number, data in enumerate(each)))


def in_parquet(each: list[bytes]) -> str:
    return parquet("bytes.parquet", image=pa.array(each, pa.binary()))


def in_hugging_face(each: list[bytes]) -> str:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return parquet("hf.parquet", image=pa.array([{"bytes": data, "path": None} for data in each], kind))


def in_dictionary(each: list[bytes]) -> str:
    return parquet("dictionary.parquet", image=pa.array(each, pa.large_binary()).dictionary_encode())


CONTAINERS = [in_folder, in_glob, in_csv, in_parquet_of_paths, in_tar, in_parquet, in_hugging_face, in_dictionary]


@pytest.mark.parametrize("contain", CONTAINERS)
def test_photographs_are_the_same_in_every_container(contain: Callable[[list[bytes]], str]) -> None:
    each = [data for pair in zip(BAD, [JPEG, OTHER] * 3, strict=False) for data in pair]
    reader = Reader()
    assert [reader.read(item) for item in items(contain(each))] == each
    said = problems(contain(each))
    assert [line == "" for line in said] == [False, True] * len(BAD)
    assert said == problems(in_folder(each))


def test_files_that_are_not_there() -> None:
    write("d/good.jpg")
    Path("d/dangling.jpg").symlink_to("gone.jpg")
    os.mkfifo("d/pipe.jpg")
    device = "a folder, pipe, socket or device, not a photograph"
    expected = {"dangling.jpg": "No such file or directory", "good.jpg": "", "pipe.jpg": device}
    assert dict(zip(map(os.path.basename, paths("d")), problems("d"), strict=True)) == expected
    Path("d/folder.jpg").mkdir()
    expected |= {"missing.jpg": "No such file or directory", "folder.jpg": device, "x" * 300: "File name too long"}
    for listing in (write("d/list.csv", "path\n" + "\n".join(expected)), parquet("d/l.parquet", path=list(expected))):
        assert problems(listing) == list(expected.values())
    assert "embedded null" in problems(parquet("d/nul.parquet", path=["nul\0.jpg"]))[0]


def test_an_archive_or_table_that_changes_after_it_was_listed() -> None:
    """A file of its own is what it is; an offset or a row of another file would be another photograph."""
    write("a.jpg")
    before = items("a.jpg", tar("s.tar", [("a.jpg", JPEG)]), parquet("t.parquet", image=[JPEG]))
    assert [problem(item) for item in before] == [""] * 3
    for name in ("a.jpg", "s.tar", "t.parquet"):
        os.utime(name, ns=(1, 1))
    assert [problem(item)[:37] for item in before] == ["", *["the file that holds it has changed si"] * 2]


# Keys and names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text("ab#%235", min_size=1, max_size=5), st.none() | st.text("a%#23", min_size=1, max_size=4)),
        unique=True,
        min_size=1,
        max_size=9,
    )
)
@example([("a", "2"), ("a#2", None), ("a%232", None), ("a", "#2"), ("a", None)])
def test_no_two_keys_are_confused(parts: list[tuple[str, str | None]]) -> None:
    parquet(
        "t.parquet", path=[path for path, _ in parts], **{"class": pa.array([asked for _, asked in parts], pa.string())}
    )
    assert len(set(keys("t.parquet"))) == len(parts)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "é.jpg", 'quo"te.jpg', "new\nline.jpg", "\x1b[31m.jpg", "%41#3.jpg", "日本.jpg"]
)
def test_names(name: str) -> None:
    write(f"d/{name}", b"")
    tar("s.tar", [(name, b"")])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet("hf.parquet", image=pa.array([{"bytes": b"", "path": name}], kind))
    quoted = name.replace('"', '""')
    write("list.csv", f'path\n"d/{quoted}"\n')
    assert paths("d", "s.tar", "hf.parquet") == [f"d/{name}", f"s.tar//{name}", f"hf.parquet//{name}"]
    assert paths("list.csv") == [f"d/{name}"]
    assert len(set(problems("d", "s.tar", "hf.parquet", "list.csv"))) == 1


def test_names_that_are_not_utf8() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write(f"d/{name}")
    tar("s.tar", [(name, JPEG)], format=tarfile.GNU_FORMAT)
    assert paths("d", "s.tar") == ["d/caf\\udce9.jpg", "s.tar//caf\\udce9.jpg"]
    assert problems("d", "s.tar") == ["", ""]


def test_the_same_photograph_and_class_is_listed_once(here: Path) -> None:
    write("d/a.jpg")
    write("d/b.jpg")
    tar("s.tar", [("a.jpg", JPEG)])
    write("list.csv", "path,class\nd/a.jpg,3\nd/a.jpg,4\nd/a.jpg,3\nd/b.jpg,\n./d//b.jpg,\n")
    twice = ("d", "d/a.jpg", "./d/", "s.tar", f"{here}/d/b.jpg", "s.tar")
    assert keys(*twice) == ["d/a.jpg", "d/b.jpg", "s.tar//a.jpg"]
    assert keys("list.csv") == ["d/a.jpg#3", "d/a.jpg#4", "d/b.jpg"]
    assert keys("list.csv", classes="top1") == ["d/a.jpg", "d/b.jpg"]
    assert keys(*twice, limit=2) == ["d/a.jpg", "d/b.jpg"]


def test_the_listing_comes_back_part_by_part() -> None:
    in_folder([JPEG] * 7)
    write("folder/list.csv", "path,class\n3.jpg,5\n")
    everything = items("folder", "folder/list.csv", tar("s.tar", [("a.jpg", JPEG)]), parquet("t.parquet", image=[JPEG]))
    with open("listing.arrow", "wb") as file:
        write_listing(iter(everything), file, 4)
    listing = Listing("listing.arrow")
    assert (listing.parts, listing.rows, len(listing.part(0)), len(listing.part(2))) == (3, 10, 4, 2)
    assert [item for part in range(3) for item in listing.items(part, 0, 4)] == everything
    assert list(listing.items(2, 1, 2)) == everything[9:10]


# Folders and globs


def test_folders_are_recursive_in_natural_order() -> None:
    for name in (
        "10.jpg",
        "9.JPG",
        "a10/x.png",
        "a2/y.png",
        "a2/1/z.webp",
        ".h.jpg",
        ".git/a.jpg",
        "n.txt",
        "b.jpg/c.jpg",
    ):
        write(f"d/{name}")
    expected = ["9.JPG", "10.jpg", "a2/y.png", "a2/1/z.webp", "a10/x.png", "b.jpg/c.jpg"]
    assert paths("d") == [f"d/{name}" for name in expected]
    os.chdir("d")
    assert paths(".") == expected


def test_links_between_folders_are_no_endless_loop() -> None:
    write("d/a/1.jpg")
    write("d/b/2.jpg")
    write("elsewhere/3.jpg")
    Path("d/a/up").symlink_to("..")
    Path("d/a/self").symlink_to("self")
    Path("d/b/a").symlink_to("../a")
    Path("d/c").symlink_to("../elsewhere")
    assert paths("d") == ["d/a/1.jpg", "d/b/2.jpg", "d/c/3.jpg"]
    assert len(paths("d/**/*.jpg")) == 3
    for n in range(30):  # 2³⁰ ways down, were each one gone
        Path(f"deep/{n}").mkdir(parents=True)
        for link in ("l", "r"):
            Path(f"deep/{n}/{link}").symlink_to(f"../{n + 1}")
    write("deep/30/x.jpg")
    assert len(paths("deep/0")) == len(paths("deep/0/**/*.jpg")) == 1


def test_a_folder_that_cannot_be_listed_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    write("d/a.jpg")
    write("d/private/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # root, which tests may run as, is never refused
        if os.path.basename(path) == "private":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert paths("d") == ["d/a.jpg", "d/private"]
    assert problems("d") == ["", "a folder that cannot be listed: Permission denied"]


def test_globs() -> None:
    for name in ("n1/a.jpg", "n1/b.png", "n2/c.jpg", "n2/deep/d.jpg", ".n3/e.jpg", "n1/f.txt"):
        write(f"d/train/{name}")
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
        for given_pattern in (pattern, os.path.abspath(pattern)):
            assert [Path(name).stem for name in paths(given_pattern)] == list(expected), pattern
    write("odd[1].jpg")
    assert paths("odd[1].jpg") == ["odd[1].jpg"]  # what exists is not a pattern
    write("d/labels.csv", "path\ntrain/n1/a.jpg\n")
    tar("d/s.tar", [("x.jpg", JPEG)])
    assert paths("d/*.csv") == ["d/train/n1/a.jpg"]
    assert paths("d/*.tar") == ["d/s.tar//x.jpg"]
    assert all("train" in name for name in paths("d/*"))  # a table beside photographs is not an input


def test_inputs_that_are_wrong_as_a_whole() -> None:
    Path("empty").mkdir()
    write("a.jpg")
    for name, said in {
        "missing": "no such file or folder",
        "empty": "no photographs in it",
        "nothing/*.jpg": "no photographs in it",
        write("zero.csv", ""): "Empty CSV file",
        write("header.csv", "path,class\n"): "no photographs in it",
        write("plain.txt", "a.jpg\n"): "unknown suffix '.txt'",
        write("z.tar.gz", b"\x1f\x8b\x08"): "unknown suffix '.gz'",
        write("z.tar", b"\x1f\x8b\x08\0"): "",
        write("noise.tar", bytes(range(256)) * 8): "invalid header",
        tar("none.tar", [("a.txt", b"")]): "no photographs in it",
        write("cut.parquet", b"PAR1"): "",
        write("x.pkl", pickle.dumps([1])): "unknown suffix '.pkl'",
        "http://example.org/a.jpg": "a URL; nothing is fetched",
        "nul\0.csv": "no such file or folder",
        "": "no such file or folder",
    }.items():
        message = refused(name)
        assert message.startswith(f"{name!r}: {said}"), message
    assert refused("a.jpg", root="missing") == "--root 'missing': no such folder"


# Tables of paths


def test_tables() -> None:
    names = ["a.jpg", "with, comma.jpg", 'quo"te.jpg', "new\nline.jpg", "é.jpg"]
    asked = ["282", None, "tiger cat", "7", "007"]
    for name in names:
        write(f"d/{name}")
    rows = zip(names, asked, strict=True)
    body = "".join(
        '"{}",x,{}\n\n'.format(name.replace('"', '""'), f'" {wanted} "' if wanted else "") for name, wanted in rows
    )
    for text in (
        f"path,extra,Class\n{body}",
        f"\ufeffFile_Name,extra,label\n{body}",
        f"path,extra,class\n{body}".replace("\n\n", "\r\n"),
    ):
        listing = items(write("d/list.csv", text))
        assert [(item.path, item.asked) for item in listing] == list(zip([f"d/{n}" for n in names], asked, strict=True))
        assert [problem(item) for item in listing] == [""] * 5
    assert keys(write("d/list.tsv", "file_name\tlabel\na.jpg\t3\nwith, comma.jpg\t\n")) == [
        "d/a.jpg#3",
        "d/with, comma.jpg",
    ]


def test_parquet_tables_of_paths() -> None:
    write("d/a.jpg")
    table = parquet("d/t.parquet", path=["a.jpg", "b.jpg", "a.jpg", None, ""], **{"class": [1, None, 3, 4, 5]})
    assert keys(table) == ["d/a.jpg#1", "d/b.jpg", "d/a.jpg#3", "d/t.parquet//3#4", "d/t.parquet//4#5"]
    assert problems(table)[3:] == ["the row names no photograph"] * 2
    for column, expected in (
        (pa.array(["282", None, " tabby "]), ["282", None, "tabby"]),
        (pa.array(["282", "", "tabby"], pa.large_string()).dictionary_encode(), ["282", None, "tabby"]),
        (pa.array([1.0, None, 2.5]), ["1", None, "2.5"]),  # how pandas writes gaps
    ):
        parquet(table, filename=pa.array(["a.jpg"] * 3, pa.large_string()).dictionary_encode(), label=column)
        assert [item.asked for item in items(table)] == expected


def test_broken_tables_are_told_in_one_line() -> None:
    for data, said in {
        b"path\n" + "caf\xe9.jpg".encode("latin-1") + b"\n": "UTF8",
        "path\na.jpg\n".encode("utf-16"): "utf-8",
        b"path,class\na.jpg\n": "Expected 2 columns, got 1",
        b"path;class\na.jpg;3\n": "no column of paths (path, file_name",
        b"PK\x03\x04": "",
        f"path\n{'x' * 3_000_000}\n".encode(): "",
    }.items():
        message = refused(write("t.csv", data))
        assert message.startswith("'t.csv': ")
        assert said in message
    for columns in ({"x": [True]}, {"path": [3]}):
        assert "no column of paths" in refused(parquet("t.parquet", **columns))
    parquet("t.parquet", mask=[OTHER], depth=[JPEG])
    assert "several columns hold bytes (mask, depth): call the photographs' one 'image'" in refused("t.parquet")


def test_rows_never_lead_out_of_the_tables_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("secret.jpg")
    write("set/in.jpg")
    write("set/sub/in.jpg")
    Path("set/link.jpg").symlink_to("../secret.jpg")
    Path("set/out").symlink_to("..")
    Path("set/fine.jpg").symlink_to("sub/in.jpg")
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket"))
    for row, said in {
        "in.jpg": "",
        "sub/../in.jpg": "",
        "./sub//in.jpg": "",
        "fine.jpg": "",
        f"{here}/set/in.jpg": "",
        "../secret.jpg": "leads out of 'set'",
        "sub/../../secret.jpg": "leads out of 'set'",
        "/etc/passwd": "leads out of 'set'",
        f"{here}/set/../secret.jpg": "leads out of 'set'",
        f"{here}/set-other/x.jpg": "leads out of 'set'",
        "link.jpg": "a link that leads out of",
        "out/secret.jpg": "a link that leads out of",
        "http://example.org/a.jpg": "names a URL; nothing is fetched",
        "file:///etc/passwd": "names a URL; nothing is fetched",
    }.items():
        for table in (write("set/list.csv", f'path\n"{row}"\n'), parquet("set/list.parquet", path=[row])):
            (message,) = problems(table)
            assert message.startswith(said), row
            assert bool(message) == bool(said), row
    write("set/list.csv", f"path\nset/link.jpg\nset/out/secret.jpg\n{here}/secret.jpg\nset/../secret.jpg\n../x.jpg\n")
    assert [line[:9] for line in problems("set/list.csv", root=".")] == [
        "",
        "",
        "",
        "leads out",
    ]  # the fourth is the third


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["..", ".", "", "in", "out", "up", "a.jpg", "secret.jpg", "HERE", "HERE/set"]), max_size=7)
)
def test_no_path_of_any_shape_reads_what_is_outside(here: Path, parts: list[str]) -> None:
    if not os.path.exists("set"):
        write("secret.jpg", OTHER)
        write("a.jpg", OTHER)
        write("set/in/a.jpg")
        write("set/a.jpg")
        Path("set/out").symlink_to("..")
        Path("set/in/up").symlink_to("..")
        Path("set/in/secret.jpg").symlink_to("../../secret.jpg")
    row = "/".join(parts).replace("HERE", str(here))
    (item,) = items(parquet("set/list.parquet", path=[row]))
    try:
        data = Reader().read(item)
    except (OSError, ValueError):
        data = b""
    real = os.path.realpath(os.path.join("set", row))
    assert data != OTHER
    if os.path.isfile(real) and real.startswith(f"{here}/set/") and ".." not in parts:  # and nothing inside is refused
        assert data == JPEG


# Classes


def test_a_table_of_classes() -> None:
    for name in ("pets/cat.jpg", "pets/dog.jpg", "wild/cat.jpg", "wild/fox.jpg"):
        write(f"photos/{name}")
    tar("s.tar", [("x/owl.jpg", JPEG), ("x/owl.cls", b"24")])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet("hf.parquet", image=pa.array([{"bytes": JPEG, "path": "emu.jpg"}] * 2, kind), label=[1, 2])
    write("c.csv", "path,class\npets/cat.jpg,282\nfox.jpg,red fox\nfox.jpg,278\nfox.jpg,278\nphotos/wild/cat.jpg,\n"
          "s.tar//x/owl.jpg,20\nhf.parquet//1,9\n")  # fmt: skip
    assert [(item.path, item.asked) for item in items("photos", "s.tar", "hf.parquet", classes="c.csv")] == [
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
    assert keys("photos", classes="c.csv") == [  # the longer end first
        *("photos/pets/cat.jpg#2", "photos/pets/dog.jpg#3", "photos/wild/cat.jpg#1", "photos/wild/fox.jpg")
    ]
    write("tables/c.csv", "path,class\n../photos/pets/dog.jpg,3\n")
    assert "photos/pets/dog.jpg#3" in keys("photos/pets", classes="tables/c.csv")
    assert keys("s.tar", classes=parquet("c.parquet", path=["owl.jpg"], **{"class": [5]})) == ["s.tar//x/owl.jpg#5"]
    assert keys("s.tar", classes="top1") == ["s.tar//x/owl.jpg"]
    assert keys("s.tar") == ["s.tar//x/owl.jpg#24"]


def test_classes_by_the_names_of_folders() -> None:
    for name in ("photos/tabby/1.jpg", "photos/tabby/more/2.jpg", "photos/282/3.jpg"):
        write(name)
    tar("s.tar", [("n02124075/owl.jpg", JPEG), ("n02124075/owl.cls", b"24"), ("top.jpg", JPEG)])
    listed = items("photos", "photos/tabby/1.jpg", "s.tar", classes="folder")
    assert sorted(item.asked or "" for item in listed) == ["282", "more", "n02124075", "s.tar", "tabby"]


def test_classes_that_match_nothing_or_too_much_are_refused() -> None:
    for name in ("a/cat.jpg", "b/cat.jpg", "b/dog.jpg"):
        write(f"d/{name}")
    write("c.csv", "path,class\ndog.jpg,3\ncow.jpg,3\nold/dog.jpg,1\n")
    assert refused("d", classes="c.csv") == "'c.csv': 2 of its paths match no photograph: 'cow.jpg', 'old/dog.jpg'"
    assert keys("d", classes="c.csv", limit=2) == ["d/a/cat.jpg", "d/b/cat.jpg"]  # what is left out may be the others'
    assert "'cat.jpg' is more than one photograph" in refused("d", classes=write("c.csv", "path,class\ncat.jpg,3\n"))
    for classes, said in {
        "281": "classes '281': give top1, folder, or a table of paths and classes",
        "gone.csv": "'gone.csv': ",
        write("e.csv", "path,class\n,3\n"): "'e.csv': a row names no photograph",
        write("h.csv", "path,class\n"): "'h.csv': no rows in it",
    }.items():
        assert refused("d", classes=classes).startswith(said)


# Archives


def test_webdataset_classes() -> None:
    members = [
        ("n/1.jpg", JPEG), ("n/1.cls", b"282\n"),
        ("n/2.json", b'{"label": 7, "caption": "x"}'), ("n/2.png", OTHER),
        ("n/3.jpg", JPEG), ("n/3.json", b'{"label": 1}'), ("n/3.cls", b"9"),  # .cls before .json
        ("n/4.left.jpg", JPEG), ("n/4.right.jpg", JPEG), ("n/4.cls", b"tiger cat"),
        ("n/5.jpg", JPEG), ("n/5.txt", b"a caption"),
        ("n/6.jpg", JPEG), ("n/6.json", b'{"class": "tabby", "label": 3}'),
        ("n/7.jpg", JPEG), ("n/7.json", b"5"),
        ("n/8.jpg", JPEG), ("n/8.json", b'{"label": null}'),
    ]  # fmt: skip
    assert [item.asked for item in items(tar("s.tar", members))] == [
        *("282", "7", "9", "tiger cat", "tiger cat", None, "tabby", "5", None)
    ]
    assert set(problems("s.tar")) == {""}
    for data in (b"[1, 2", b'{"label": [1]}', b"[" * 60_000, b"9" * 5000, b'{"label": true}', b"1" * 100_000):
        tar("s.tar", [("1.jpg", JPEG), ("1.json", data)])
        assert problems("s.tar") == ["its class cannot be read: the .json beside it is damaged, or holds none"]
        assert problems("s.tar", classes="top1") == [""]  # then nobody asks
    assert "the .cls beside it" in problems(tar("s.tar", [("1.jpg", JPEG), ("1.cls", b"\xff\xfe")]))[0]


def test_members_that_lead_astray_are_rows() -> None:
    secret = write("secret.jpg")
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("./fine.jpg", JPEG),
        ("../secret.jpg", JPEG),
        ("a/../../secret.jpg", JPEG),
        ("/etc/x.jpg", JPEG),
        (header("soft.jpg", type=tarfile.SYMTYPE, linkname=os.path.abspath(secret)), b""),
        (header("hard.jpg", type=tarfile.LNKTYPE, linkname="fine.jpg"), b""),
        (header("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), b""),
        (header("folder.jpg", type=tarfile.DIRTYPE), b""),
        ("._mac.jpg", b"x"),
        ("__MACOSX/.hidden/a.jpg", b"x"),
        ("fine.jpg", OTHER),
        ("notes.txt", b"x"),
        ("l" * 300 + ".jpg", JPEG),
    ]
    out = "its name leads out of the archive: not read"
    link = "a link, device or sparse member inside an archive: not read"
    before = sorted(os.listdir())
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert problems(tar("s.tar", members, format)) == ["", out, out, out, link, link, link, "", ""]
        again = items("s.tar")[7]  # a second member of the same name is a photograph of its own
        assert again.key.startswith("s.tar//fine.jpg@")
        assert Reader().read(again) == OTHER
    assert sorted(os.listdir()) == sorted([*before, "s.tar"])  # nothing is unpacked


def test_an_archive_that_breaks_off_says_so() -> None:
    whole = Path(tar("w.tar", [(f"{n}.jpg", JPEG) for n in range(4)])).read_bytes()
    step = 512 + -(-len(JPEG) // 512) * 512
    for data, good in {
        whole[: 2 * step]: 2,
        whole[: 2 * step + 100]: 2,
        whole[:step] + b"\xff" * 512 + whole[step:]: 1,
    }.items():
        said = problems(write("s.tar", data))
        assert said[:-1] == [""] * good
        assert said[-1].startswith("the archive is cut off or damaged from here on, and not read further: ")
    assert (
        problems(write("s.tar", whole[: 2 * step - 600]))[1]
        == "the archive ends before it does: cut off, copy it again"
    )
    assert problems(write("s.tar", whole + bytes(5_000_000))) == [""] * 4


def raw_header(name: bytes, size: bytes, kind: bytes) -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[0:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_headers_that_lie() -> None:
    fine = Path(tar("w.tar", [("a.jpg", JPEG)])).read_bytes()[: 512 + -(-len(JPEG) // 512) * 512]
    backwards = b"\xff" + b"\xff" * 9 + b"\xf0\x00"  # base 256: -4096
    terabyte = b"\x80" + bytes(5) + (2**40).to_bytes(6, "big")
    for evil in (
        raw_header(b"b.jpg", backwards, b"0"),
        raw_header(b"b.jpg", backwards, b"L"),
        raw_header(b"././@LongLink", terabyte, b"L"),
        raw_header(b"pax", terabyte, b"x"),
        raw_header(b"././@LongLink", b"%011o\0" % 0, b"L") * 5000,
    ):
        said = problems(write("s.tar", fine + evil + bytes(1024)))
        assert said[0] == ""
        assert said[1].startswith("the archive is cut off or damaged from here on")
        assert len(said) == 2
    said = problems(write("s.tar", fine + raw_header(b"b.jpg", terabyte, b"0") + bytes(1024)))
    assert said[1] == "the archive ends before it does: cut off, copy it again"


@pytest.mark.parametrize("kind", ["tar", "csv", "parquet", "paths"])
def test_damaged_containers_are_rows_or_one_line(kind: str) -> None:
    name = {"tar": "s.tar", "csv": "s.csv"}.get(kind, "s.parquet")
    if kind == "tar":
        tar(name, [(n + ".jpg", JPEG) for n in "abc"] + [("c.json", b'{"label": 1}')])
    elif kind == "csv":
        write(name, 'path,class\na.jpg,"1"\nb.jpg,2\n')
    else:
        parquet(
            name, **({"image": [JPEG] * 5, "label": [1, 2, 3, 4, 5]} if kind == "parquet" else {"path": ["a.jpg"] * 5})
        )
    whole, draw = Path(name).read_bytes(), random.Random(3)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            data[draw.choice([-1, 1]) * draw.randrange(min(600, len(data)))] ^= draw.randint(1, 255)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        write(name, bytes(data))
        with contextlib.suppress(SourceError):
            problems(name)


# Parquet with image bytes


def test_cells_in_any_order() -> None:
    datas = [str(n).encode() * (n + 1) for n in range(90)]
    cells = items(parquet("t.parquet", image=datas, row_group_size=40))
    assert [item.key for item in cells][::45] == ["t.parquet//0", "t.parquet//45"]
    order = [*range(90), *random.Random(0).sample(range(90), 60), 7, 7]
    reader = Reader()
    assert [reader.read(cells[n]) for n in order] == [datas[n] for n in order]


def test_cells_in_order_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    cells = items(parquet("t.parquet", image=[b"x" * n for n in range(1, 101)], row_group_size=100))
    table = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda *args, **more: opened.append(args) or table(*args, **more))
    reader = Reader()
    for item in cells[::2]:
        reader.read(item)
        reader.read(item)  # the same photograph with another class
    assert len(opened) == 1


def test_columns_of_photographs() -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = pa.array([{"bytes": JPEG, "path": "a/b.jpg"}, {"bytes": None, "path": "http://x/c.jpg"}, None], kind)
    parquet("t.parquet", photo=both, label=pa.array([3, 4, None]))
    assert keys("t.parquet") == ["t.parquet//0#3", "t.parquet//1#4", "t.parquet//2"]
    assert paths("t.parquet") == ["t.parquet//a/b.jpg", "t.parquet//http://x/c.jpg", "t.parquet//2"]
    nothing = "there are no image bytes in this row, and nothing is fetched"
    assert problems("t.parquet") == ["", nothing, nothing]
    write("a.jpg", OTHER)
    (item,) = items(parquet("t.parquet", path=["a.jpg"], mask=[OTHER], image=[JPEG]))
    assert (item.key, item.path, Reader().read(item)) == ("t.parquet//0", "t.parquet//a.jpg", JPEG)


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
    with contextlib.suppress(SourceError):
        assert problems("t.parquet") != [""]
    assert problems(parquet("t.parquet", image=[JPEG], other=column)) == [""]


def test_bombs_of_repeated_cells() -> None:
    cell = bytes(20 * 2**20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([cell, b""]))
    # Without Arrow's own schema it is plain bytes to a reader, unpacked for every row.
    parquet("t.parquet", image=repeated, row_group_size=2000, store_schema=False)
    assert os.path.getsize("t.parquet") < 2**21  # and 40 GB, all unpacked
    cells, most, done = items("t.parquet", limit=3), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, pa.total_allocated_bytes() / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert all(problem(item) for item in cells)
    finally:
        done.set()
        watcher.join()
    assert most < 400


@pytest.mark.parametrize("kind", ["tar", "parquet", "csv", "folder"])
def test_long_listings_hold_one_part(kind: str) -> None:
    count = 2_000 if kind == "folder" else 20_000
    if kind == "tar":
        name = tar("s.tar", ((f"{n}.jpg", b"x") for n in range(count)))
    elif kind == "parquet":
        name = parquet("s.parquet", image=[b"x"] * count, label=list(range(count)), row_group_size=count)
    elif kind == "csv":
        name = write("s.csv", "path,class\n" + "".join(f"folder/photo{n}.jpg,{n % 1000}\n" for n in range(count)))
    else:
        for n in range(count):
            write(f"d/{n // 100}/{n}.jpg", b"x")
        name = "d"
    tracemalloc.start()
    try:
        with open("listing.arrow", "wb") as file:
            write_listing(listed([name]), file, 256)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert Listing("listing.arrow").rows == count
    assert most < 8 * 2**20  # what was seen, and a block of a table; 20,000 items take 12 MiB
