"""A run's rows as others read them: Parquet's readers, `read_maps`, `--where`, figures, CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from batch_runs import METHODS, batch, make_photographs, table
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tolerances import FLOAT16_KEPT

from torch_impl import read_maps
from torch_impl.__main__ import main
from torch_impl.batch import command
from torch_impl.batch.entries import File, Item
from torch_impl.batch.plan import Part, Plan, RunError
from torch_impl.batch.reading import _values
from torch_impl.batch.show import cell
from torch_impl.batch.store import Row, Store, kind_of, schema
from torch_impl.batch.store import table as arrow_table
from torch_impl.batch.where import WhereError, parse

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    """A run over nine photographs, one of them bad, in parts of four rows."""
    folder = tmp_path_factory.mktemp("finished")
    make_photographs(folder / "photographs", 8)
    (folder / "photographs" / "4b.jpg").write_bytes(b"no photograph")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert batch(weights, "photographs", "--out", "out", "--methods", METHODS + ",vanilla", "--part-rows", 4) == 3
    return folder / "out"


PLAN = Plan(
    inputs=("x",),
    classes=None,
    root=None,
    methods=("gradcam",),
    shapes={"gradcam": (2, 3)},
    weights="w",
    fingerprint="f" * 64,
    n_classes=10,
    size=64,
    input="caffe",
    resize="lab",
    n_samples=20,
    noise_level=0.2,
    seed=0,
    precision="fp32",
    engine="shared",
    resolution="raw",
    part_rows=4,
)


# Storage


@given(
    st.integers(-300, 300),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.floats(-1, 1),
)
def test_a_raw_map_comes_back_whatever_its_scale(exponent, values, offset):
    """Also where float16 would be infinite (above 65,504) or zero (below 6e-8)."""
    import torch

    from torch_impl.batch.work import Worker

    raw = (torch.tensor(values, dtype=torch.float64).reshape(1, 2, 3) + offset) * 10.0**exponent
    kept, low, high = Worker._kept(type("W", (), {"plan": PLAN}), raw)
    row = Row(0, "k", "p", None, (1, 2), maps={"gradcam": kept[0]}, ranges={"gradcam": (low[0], high[0])})
    found = arrow_table([row], PLAN)
    # read_maps gives float32; here its arithmetic is followed in the units of the map's own range.
    span = high[0] - low[0]
    back = low[0] + found["gradcam"].chunk(0).to_numpy_ndarray()[0].astype(np.float64) * span
    assert np.isfinite(kept).all()
    assert float(np.abs(back - raw[0].numpy()).max()) <= FLOAT16_KEPT * span


def test_values_are_what_was_kept_between_low_and_high():
    kept = np.array([[0, 0.25, 0.5], [0.75, 1, 0]], np.float16)
    rows = [
        Row(0, "a", "a", None, (1, 2), maps={"gradcam": kept}, ranges={"gradcam": (100.0, 300.0)}),
        Row(1, "b", "b", None, (1, 2), error="broken"),
        Row(2, "c", "c", None, (1, 2), maps={"gradcam": kept}, ranges={"gradcam": (1e-9, 5e-9)}),
    ]
    values = _values(arrow_table(rows, PLAN), "gradcam", PLAN)
    np.testing.assert_array_equal(values[0], [[100, 150, 200], [250, 300, 100]])
    assert np.isnan(values[1]).all()
    np.testing.assert_allclose(values[2], [[1e-9, 2e-9, 3e-9], [4e-9, 5e-9, 1e-9]], rtol=1e-6)


def test_a_constant_map_is_zero_between_equal_ends():
    import torch

    from torch_impl.batch.work import Worker

    kept, low, high = Worker._kept(type("W", (), {"plan": PLAN}), torch.full((1, 2, 3), 7.0))
    assert not kept.any()
    assert low == high == [7.0]


def test_a_part_says_what_it_holds(tmp_path):
    store = Store(tmp_path / "out")
    with store.locked():
        run = store.begin(PLAN, {})
        items = tuple(Item(i, f"k{i}", f"p{i}", None, File("f"), (1, 2)) for i in (4, 5))
        rows = [Row(i, f"k{i}", f"p{i}", None, (1, 2), error=f"broken: {i}") for i in (4, 5)]
        written = store.write_part(run, Part(1, items), rows, PLAN, {"device": "cpu"})
    assert store.read_written(1, run) == written
    assert written.errors == {"broken": 2}
    assert store.read_written(1, "another") is None
    said = json.loads(pq.read_metadata(store.part_path(1)).metadata[b"attention-maps"])
    assert (said["first"], said["rows"], said["device"]) == (4, 2, "cpu")
    store.part_path(2).write_bytes(store.part_path(1).read_bytes())
    assert store.read_written(2, run) is None, "a part under another's name"
    assert pq.read_schema(store.part_path(1)).remove_metadata() == schema(PLAN)
    assert pq.ParquetFile(store.part_path(1)).metadata.row_group(0).column(0).compression == "ZSTD"


def test_kinds_leave_out_what_is_particular():
    assert kind_of("holds floats from 1.5 to 99, not 0 to 1: scale them") == "holds floats from N to N, not N to N"
    assert kind_of("5,000 x 20 pixels, more: export") == kind_of("77 x 1 pixels, more: crop")
    assert kind_of("class 'dog' is not an ImageNet label; nearest: x") == kind_of(
        "class 'cat' is not an ImageNet label; nearest: y"
    )


# Other readers


def test_pandas_reads_it(finished):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(finished / "rows")
    assert len(frame) == 9
    assert frame["label"].notna().sum() == 8
    maps = np.stack(frame["gradcam"]).reshape(-1, 4, 4)
    np.testing.assert_array_equal(maps, _kept(finished))


def test_pyarrow_reads_it(finished):
    found = pq.read_table(finished / "rows")
    np.testing.assert_array_equal(found["gradcam"].combine_chunks().to_numpy_ndarray(), _kept(finished))


def test_duckdb_reads_it(finished):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"""select "class", gradcam from '{finished}/rows/*.parquet' where error is null order by index"""
    )
    columns = found.fetchnumpy()
    maps = np.stack([np.asarray(one) for one in columns["gradcam"]]).reshape(-1, 4, 4)
    expected = _kept(finished)
    np.testing.assert_array_equal(maps, expected[~np.isnan(expected[:, 0, 0])])


def _kept(out):
    return np.concatenate([chunk.to_numpy_ndarray() for chunk in table(out)["gradcam"].chunks])


# read_maps


def test_read_maps(finished):
    found = read_maps(finished)
    assert len(found) == 9
    assert list(found.maps) == ["gradcam", "gradcam_plus_plus", "vanilla"]
    assert found["gradcam++"].shape == (9, 4, 4)
    assert found["vanilla"].shape == (9, 64, 64)
    assert found["vanilla"].dtype == np.float32
    assert not set(found.maps) & set(found.rows.column_names)
    highest = found.rows["vanilla_high"].to_numpy()
    good = ~np.isnan(highest)
    np.testing.assert_allclose(found["vanilla"].max(axis=(1, 2))[good], highest[good], rtol=1e-6)
    some = read_maps(finished, "gradcam++", where="index >= 3 and error is None", limit=3)
    assert some.rows["index"].to_pylist() == [3, 4, 6]
    np.testing.assert_array_equal(some["gradcam_plus_plus"], found["gradcam_plus_plus"][[3, 4, 6]])
    assert len(read_maps(finished, where="index > 100")) == 0
    assert not read_maps(finished, []).maps
    with pytest.raises(KeyError, match="was not read"):
        some["gradcam"]


def test_read_maps_says_what_is_wrong(finished, tmp_path):
    with pytest.raises(ValueError, match="smoothgrad is not in"):
        read_maps(finished, ["smoothgrad"])
    with pytest.raises(RunError, match="no batch run there"):
        read_maps(tmp_path)
    with pytest.raises(ValueError, match="limit 0"):
        read_maps(finished, limit=0)
    with pytest.raises(WhereError):
        read_maps(finished, where="class ==")


# where


def _selected(finished, text):
    return read_maps(finished, [], where=text).rows["index"].to_pylist()


def test_where_selects(finished):
    rows = table(finished).to_pylist()
    good = [row for row in rows if row["error"] is None]
    category, middle = good[0]["class"], sorted(row["probability"] for row in good)[4]

    def expected(condition):
        return [row["index"] for row in good if condition(row)]

    assert _selected(finished, f"class == {category}") == expected(lambda r: r["class"] == category)
    assert _selected(finished, f"class != {category}") == expected(lambda r: r["class"] != category)
    assert _selected(finished, f"probability > {middle!r} or index < 2") == [
        row["index"] for row in rows if row["index"] < 2 or (row["probability"] or 0) > middle
    ]
    assert _selected(finished, f"not probability > {middle!r}") == expected(lambda r: r["probability"] <= middle)
    assert _selected(finished, "2 <= index < 5") == [2, 3, 4]
    assert _selected(finished, "index in (1, 7, 99)") == [1, 7]
    assert _selected(finished, "index not in (1, 7) and 3 > index") == [0, 2]
    assert _selected(finished, "'4b' in path") == [5]
    assert _selected(finished, "error is not None") == _selected(finished, "error != None") == [5]
    assert _selected(finished, "path == 'photographs/6.jpg' and logit > -1e9") == [7]
    assert _selected(finished, f"label == 'class {category}'") == expected(lambda r: r["class"] == category)
    assert _selected(finished, "asked is None") == list(range(9))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "class",
        "class = 3",
        "__import__('os').system('true')",
        "class == __import__('os')",
        "class.__class__ == 3",
        "(lambda: 1)() == 1",
        "[x for x in (1,)]",
        "class == 'tabby'",
        "label == 3",
        "label > None",
        "3 == 4",
        "colour == 'red'",
        "class_ == 3",
        "gradcam == 0",
        "class == True",
        "class == 1j",
        "class == b'x'",
        "class in ()",
        "class in 'abc'",
        "3 in class",
        "class == 99999999999999999999999",
        "class == 1 if 1 else 2",
        "f'{1}' == label",
        "'a' 'b' == label == ",
        "class == 1; index == 2",
        "class ==\n1\nindex == 2",
        "(" * 300 + "class == 1" + ")" * 300,
        "not " * 5000 + "class == 1",
        "class == 1 " + "and class == 1 " * 300,
        "label == '\ud800'",
        "\0",
        "'",
        "index == probability",
        "path := 'x'",
    ],
)
def test_where_refuses_everything_else_in_one_line(text):
    said = "was taken\n!"
    try:
        parse(text)
    except WhereError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


@given(st.text(max_size=40))
def test_where_never_ends_otherwise(text):
    said = "taken"
    try:
        parse(text)
    except WhereError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


# show


def test_show_lists_rows(finished, capsys):
    assert main(["show", str(finished), "--where", "index < 2 or error is not None"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "photographs/4b.jpg" in lines[2]
    assert "not a photograph" in lines[2]


def test_show_says_that_there_are_more(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "SHOWN", 3)
    assert main(["show", str(finished)]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 3
    assert err == "attention-maps: the first 3 rows; for more give --limit N, for others --where\n"
    assert main(["show", str(finished), "--out", str(tmp_path / "figures")]) == 0
    assert "the first 3 rows" in capsys.readouterr().err
    for more in (["--limit", "3"], ["--where", "index < 3"]):
        assert main(["show", str(finished), *more]) == 0
        assert capsys.readouterr().err == ""


def test_show_draws_rows(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # not where the run was started
    assert main(["show", str(finished), "--where", "index in (1, 5, 6)", "--out", "figures"]) == 0
    names = {path.name for path in Path("figures").iterdir()}
    assert names == {"gradcam.png", "gradcam_plus_plus.png", "vanilla.png", "overview.png", "maps.npz", "manifest.json"}
    with np.load("figures/maps.npz") as saved:
        assert saved["gradcam"].shape == (2, 64, 64)
        assert 0.99 < saved["gradcam"].max() <= 1
        expected = np.asarray(
            Image.open(finished.parent / "photographs" / "1.jpg").resize((64, 64), Image.Resampling.NEAREST)
        )
        np.testing.assert_array_equal(saved["pixels"][0], expected)
    assert [p["path"] for p in json.loads(Path("figures/manifest.json").read_text())["photographs"]] == [
        "photographs/1.jpg",
        "photographs/5.jpg",
    ]


def test_show_says_where_a_photograph_has_changed(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_photographs(Path("p"), 3)
    assert batch(weights, "p", "--out", "out") == 0
    Path("p/1.jpg").write_bytes(Path("p/0.jpg").read_bytes())
    assert main(["show", "out", "--out", "figures"]) == 3
    said = capsys.readouterr().err
    assert said == "attention-maps: 'p/1.jpg': has changed since; drawn without it\n"
    with np.load("figures/maps.npz") as saved:
        assert (saved["pixels"][1] == 128).all()
        assert not (saved["pixels"][2] == 128).all()


def test_show_with_nothing_to_show(finished, capsys):
    assert main(["show", str(finished), "--where", "error is not None", "--out", "nothing"]) == 2
    assert "no row with maps" in capsys.readouterr().err
    assert not Path("nothing").exists()
    assert main(["show", str(finished), "--where", "evil()"]) == 2
    assert main(["show", str(finished / "rows")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# Security of what is shown


def test_csv_has_no_formulas_and_no_control_characters(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.jpg", "+x.jpg", "-y.jpg", "@z.jpg", "\tq.jpg", "a\x1b[31mb.jpg", "a\nb.jpg"]
    make_photographs(Path("p"), 1)
    for name in names:
        Path(name).write_bytes(Path("p/0.jpg").read_bytes())
    assert batch(weights, "--out", "out", "--", *names) == 0
    assert main(["show", "out", "--csv", "rows.csv"]) == 0
    text = Path("rows.csv").read_text()
    assert all(c.isprintable() or c in "\r\n" for c in text)
    rows = list(csv.DictReader(Path("rows.csv").open(newline="")))
    assert len(rows) == len(names)
    for row in rows:
        for column in ("key", "path"):
            assert not row[column].startswith(("=", "+", "-", "@", "\t", "\r")), row[column]
    assert rows[0]["path"] == "'=1+1.jpg"
    assert float(rows[0]["logit"]) == table(Path("out"))["logit"][0].as_py()
    assert main(["show", "out", "--csv", "rows.csv"]) == 2
    assert main(["show", "out", "--csv", "rows.csv", "--limit", "2", "--overwrite"]) == 0
    assert len(list(csv.DictReader(Path("rows.csv").open(newline="")))) == 2
    capsys.readouterr()
    assert main(["show", "out"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == len(names)
    assert "\x1b" not in said


def test_cells():
    assert cell(-1.5) == -1.5
    assert cell("  =cmd") == "'  =cmd"
    assert cell("plain = text") == "plain = text"
    assert cell(None) is None
    assert cell(["=a", "b"]) == "'=a; b"


def test_rows_are_found_by_their_key_in_any_container(weights, tmp_path, monkeypatch):
    """The same photographs in a folder, a table, a tar and a table of bytes give the same maps."""
    import tarfile

    import pyarrow as pa

    monkeypatch.chdir(tmp_path)
    make_photographs(Path("p"), 4)
    names = [f"p/{i}.jpg" for i in range(4)]
    Path("list.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    with tarfile.open("shard.tar", "w") as archive:
        for name in names:
            archive.add(name)
    pq.write_table(pa.table({"image": [Path(name).read_bytes() for name in names]}), "bytes.parquet")
    found = {}
    for source in ("p", "list.csv", "shard.tar", "bytes.parquet"):
        assert batch(weights, source, "--out", f"out-{source}", "--batch-size", 2) == 0
        found[source] = read_maps(f"out-{source}")
    for source, one in found.items():
        np.testing.assert_array_equal(one["gradcam"], found["p"]["gradcam"], err_msg=source)
        assert one.rows["sha256"].equals(found["p"].rows["sha256"])
    assert len(set(found["shard.tar"].rows["key"].to_pylist())) == 4
    assert pyarrow.dataset.dataset("out-p/rows").count_rows() == 4
