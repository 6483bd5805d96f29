"""Inputs of large runs: listed in order, each photograph the same whatever holds it; nothing leads astray."""

from __future__ import annotations

import os
import pickle
import socket
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from source_files import JPEG, NAMED, OTHER, items, keys, parquet, paths, problem, problems, refused, tar, write

from torch_impl.batch.listing import Listing, write_listing
from torch_impl.batch.loading import Reader

BAD = [JPEG[:200], b"no photograph", b"", b"import os\n" + pickle.dumps([1, 2, 3]), b"\x89PNG\r\n\x1a\n"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The same photograph, or the same problem, whatever holds it


def containers(each: list[bytes]) -> dict[str, str]:
    """The same photographs, in every kind of input."""
    files = [write(f"folder/{number}.jpg", data) for number, data in enumerate(each)]
    in_structs = pa.array([{"bytes": data, "path": None} for data in each], NAMED)
    return {
        "folder": "folder",
        "glob": "fol*/**/*.jp[g]",
        "table": write("list.csv", "path\n" + "".join(f"{file}\n" for file in files)),
        "Parquet of paths": parquet("list.parquet", path=files),
        "tar": tar("shard.tar", ((f"{number}.jpg", data) for number, data in enumerate(each))),
        "bytes": parquet("bytes.parquet", image=pa.array(each, pa.binary())),
        "Hugging Face": parquet("hf.parquet", image=in_structs),
        "dictionary": parquet("dictionary.parquet", image=pa.array(each, pa.large_binary()).dictionary_encode()),
    }


def test_photographs_are_the_same_in_every_container() -> None:
    each = [data for pair in zip(BAD, [JPEG, OTHER] * 3, strict=False) for data in pair]
    reader = Reader()
    inputs = containers(each)
    expected = problems("folder")
    assert [line == "" for line in expected] == [False, True] * len(BAD)
    for kind, given_input in inputs.items():
        assert [reader.read(item) for item in items(given_input)] == each, kind
        assert problems(given_input) == expected, kind


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

PARTS = st.tuples(st.text("ab#%235", min_size=1, max_size=5), st.none() | st.text("a%#23", min_size=1, max_size=4))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, unique=True, min_size=1, max_size=9))
@example([("a", "2"), ("a#2", None), ("a%232", None), ("a", "#2"), ("a", None)])
def test_no_two_keys_are_confused(parts: list[tuple[str, str | None]]) -> None:
    asked = pa.array([asked for _, asked in parts], pa.string())
    parquet("t.parquet", path=[path for path, _ in parts], **{"class": asked})
    assert len(set(keys("t.parquet"))) == len(parts)


NAMES = ["a b.jpg", "é.jpg", 'quo"te.jpg', "new\nline.jpg", "\x1b[31m.jpg", "%41#3.jpg", "日本.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    write(f"d/{name}", b"")
    tar("s.tar", [(name, b"")])
    parquet("hf.parquet", image=pa.array([{"bytes": b"", "path": name}], NAMED))
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
    for number in range(7):
        write(f"folder/{number}.jpg")
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
    expected = ["9.JPG", "10.jpg", "a2/y.png", "a2/1/z.webp", "a10/x.png", "b.jpg/c.jpg"]
    for name in (*expected[::-1], ".h.jpg", ".git/a.jpg", "n.txt"):
        write(f"d/{name}")
    assert paths("d") == [f"d/{name}" for name in expected]
    os.chdir("d")
    assert paths(".") == expected


def test_links_between_folders_are_no_endless_loop() -> None:
    for name in ("d/a/1.jpg", "d/b/2.jpg", "elsewhere/3.jpg"):
        write(name)
    for name, target in {"a/up": "..", "a/self": "self", "b/a": "../a", "c": "../elsewhere"}.items():
        Path("d", name).symlink_to(target)
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
        "http://example.org/a.jpg": "a URL; nothing is fetched",
        "nul\0.csv": "no such file or folder",
        "": "no such file or folder",
    }.items():
        assert refused(name).startswith(f"{name!r}: {said}")
    assert refused("a.jpg", root="missing") == "--root 'missing': no such folder"


# Tables of paths


def test_tables() -> None:
    names = ["a.jpg", "with, comma.jpg", 'quo"te.jpg', "new\nline.jpg", "é.jpg"]
    asked = ["282", None, "tiger cat", "7", "007"]
    body = ""
    for name, wanted in zip(names, asked, strict=True):
        write(f"d/{name}")
        body += '"{}",x,{}\n\n'.format(name.replace('"', '""'), f'" {wanted} "' if wanted else "")
    unix, windows = f"path,extra,Class\n{body}", f"path,extra,class\n{body}".replace("\n\n", "\r\n")
    for text in (unix, f"\ufeffFile_Name,extra,label\n{body}", windows):
        listing = items(write("d/list.csv", text))
        assert [(item.path, item.asked) for item in listing] == list(zip([f"d/{n}" for n in names], asked, strict=True))
        assert [problem(item) for item in listing] == [""] * 5
    write("d/list.tsv", "file_name\tlabel\na.jpg\t3\nwith, comma.jpg\t\n")
    assert keys("d/list.tsv") == ["d/a.jpg#3", "d/with, comma.jpg"]


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
    for name in ("secret.jpg", "set/in.jpg", "set/sub/in.jpg"):
        write(name)
    for name, target in {"link.jpg": "../secret.jpg", "out": "..", "fine.jpg": "sub/in.jpg"}.items():
        Path("set", name).symlink_to(target)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket"))
    inside = ("in.jpg", "sub/../in.jpg", "./sub//in.jpg", "fine.jpg", f"{here}/set/in.jpg")
    outside = ("../secret.jpg", "sub/../../secret.jpg", "/etc/passwd", f"{here}/set/../secret.jpg", f"{here}/set-b/x")
    urls = ("http://example.org/a.jpg", "file:///etc/passwd")
    said = dict.fromkeys(inside, "") | dict.fromkeys(outside, "leads out of 'set'")
    said |= dict.fromkeys(("link.jpg", "out/secret.jpg"), "a link that leads out of")
    said |= dict.fromkeys(urls, "names a URL; nothing is fetched")
    for row, words in said.items():
        for table in (write("set/list.csv", f'path\n"{row}"\n'), parquet("set/list.parquet", path=[row])):
            (message,) = problems(table)
            assert message.startswith(words), row
            assert bool(message) == bool(words), row
    write("set/list.csv", f"path\nset/link.jpg\nset/out/secret.jpg\n{here}/secret.jpg\nset/../secret.jpg\n../x.jpg\n")
    said_of_rows = [line[:9] for line in problems("set/list.csv", root=".")]
    assert said_of_rows == ["", "", "", "leads out"]  # the fourth is the third


# Classes


def test_a_table_of_classes() -> None:
    for name in ("pets/cat.jpg", "pets/dog.jpg", "wild/cat.jpg", "wild/fox.jpg"):
        write(f"photos/{name}")
    tar("s.tar", [("x/owl.jpg", JPEG), ("x/owl.cls", b"24")])
    parquet("hf.parquet", image=pa.array([{"bytes": JPEG, "path": "emu.jpg"}] * 2, NAMED), label=[1, 2])
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
