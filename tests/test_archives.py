"""Tar archives and Parquet tables that hold photographs: each one found, none that leads astray, nothing held in memory."""

from __future__ import annotations

import contextlib
import os
import random
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from source_files import JPEG, NAMED, OTHER, header, items, keys, parquet, paths, problem, problems, tar, write

from torch_impl.batch.listing import Listing, listed, write_listing
from torch_impl.batch.loading import Reader
from torch_impl.batch.sources import SourceError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


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
    expected = ["282", "7", "9", "tiger cat", "tiger cat", None, "tabby", "5", None]
    assert [item.asked for item in items(tar("s.tar", members))] == expected
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
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert problems(tar("s.tar", members, format)) == ["", out, out, out, link, link, link, "", ""]
        again = items("s.tar")[7]  # a second member of the same name is a photograph of its own
        assert again.key.startswith("s.tar//fine.jpg@")
        assert Reader().read(again) == OTHER
    assert sorted(os.listdir()) == ["s.tar", "secret.jpg"]  # nothing is unpacked


CUT = "the archive is cut off or damaged from here on, and not read further: "
SHORT = "the archive ends before it does: cut off, copy it again"


def test_an_archive_that_breaks_off_says_so() -> None:
    whole = Path(tar("w.tar", [(f"{n}.jpg", JPEG) for n in range(4)])).read_bytes()
    step = 512 + -(-len(JPEG) // 512) * 512
    noise = whole[:step] + b"\xff" * 512 + whole[step:]
    for data, good in {whole[: 2 * step]: 2, whole[: 2 * step + 100]: 2, noise: 1}.items():
        said = problems(write("s.tar", data))
        assert said[:-1] == [""] * good
        assert said[-1].startswith(CUT)
    assert problems(write("s.tar", whole[: 2 * step - 600]))[1] == SHORT
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
        good, said = problems(write("s.tar", fine + evil + bytes(1024)))
        assert good == ""
        assert said.startswith(CUT)
    assert problems(write("s.tar", fine + raw_header(b"b.jpg", terabyte, b"0") + bytes(1024)))[1] == SHORT


def damaged_container(kind: str) -> str:
    if kind == "tar":
        return tar("s.tar", [(n + ".jpg", JPEG) for n in "abc"] + [("c.json", b'{"label": 1}')])
    if kind == "csv":
        return write("s.csv", 'path,class\na.jpg,"1"\nb.jpg,2\n')
    if kind == "paths":
        return parquet("s.parquet", path=["a.jpg"] * 5)
    return parquet("s.parquet", image=[JPEG] * 5, label=[1, 2, 3, 4, 5])


@pytest.mark.parametrize("kind", ["tar", "csv", "parquet", "paths"])
def test_damaged_containers_are_rows_or_one_line(kind: str) -> None:
    name, draw = damaged_container(kind), random.Random(3)
    whole = Path(name).read_bytes()
    for _ in range(60):
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


def test_columns_of_photographs() -> None:
    both = pa.array([{"bytes": JPEG, "path": "a/b.jpg"}, {"bytes": None, "path": "http://x/c.jpg"}, None], NAMED)
    parquet("t.parquet", photo=both, label=pa.array([3, 4, None]))
    assert keys("t.parquet") == ["t.parquet//0#3", "t.parquet//1#4", "t.parquet//2"]
    assert paths("t.parquet") == ["t.parquet//a/b.jpg", "t.parquet//http://x/c.jpg", "t.parquet//2"]
    nothing = "there are no image bytes in this row, and nothing is fetched"
    assert problems("t.parquet") == ["", nothing, nothing]
    write("a.jpg", OTHER)
    (item,) = items(parquet("t.parquet", path=["a.jpg"], mask=[OTHER], image=[JPEG]))
    assert (item.key, item.path, Reader().read(item)) == ("t.parquet//0", "t.parquet//a.jpg", JPEG)


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


def long_input(kind: str, count: int) -> str:
    if kind == "tar":
        return tar("s.tar", ((f"{n}.jpg", b"x") for n in range(count)))
    if kind == "parquet":
        return parquet("s.parquet", image=[b"x"] * count, label=list(range(count)), row_group_size=count)
    if kind == "csv":
        return write("s.csv", "path,class\n" + "".join(f"folder/photo{n}.jpg,{n % 1000}\n" for n in range(count)))
    for n in range(count):
        write(f"d/{n // 100}/{n}.jpg", b"x")
    return "d"


@pytest.mark.parametrize(("kind", "count"), [("tar", 20_000), ("parquet", 20_000), ("csv", 20_000), ("folder", 2_000)])
def test_long_listings_hold_one_part(kind: str, count: int) -> None:
    name = long_input(kind, count)
    tracemalloc.start()
    try:
        with open("listing.arrow", "wb") as file:
            write_listing(listed([name]), file, 256)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert Listing("listing.arrow").rows == count
    assert most < 8 * 2**20  # what was seen, and a block of a table; 20,000 items take 12 MiB
