"""A run's rows as others read them: Parquet's readers, `read_maps`, SQL, figures, CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batch_runs import METHODS, batch, make_photographs, table
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tolerances import FLOAT16_KEPT

from torch_impl import read_maps
from torch_impl.__main__ import main
from torch_impl.batch import command
from torch_impl.batch.reading import WhereError, _values, in_sql
from torch_impl.batch.run import RunError
from torch_impl.batch.show import cell
from torch_impl.batch.worker import Worker

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


# Storage

RAW = SimpleNamespace(plan=SimpleNamespace(resolution="raw"))


@given(st.integers(-300, 300), st.lists(st.floats(0, 1), min_size=6, max_size=6), st.floats(-1, 1))
@example(0, [0.0] * 6, 0.7)  # a constant map
def test_a_raw_map_comes_back_whatever_its_scale(exponent, values, offset):
    """Also where float16 would be infinite (above 65,504) or zero (below 6e-8)."""
    raw = (torch.tensor(values, dtype=torch.float64).reshape(1, 2, 3) + offset) * 10.0**exponent
    kept, low, high = Worker._kept(RAW, "gradcam", raw).values()
    # read_maps gives float32; here its arithmetic is followed in the units of the map's own range.
    span = high[0] - low[0]
    back = low[0] + kept[0].astype(np.float64) * span
    assert np.isfinite(kept).all()
    assert float(np.abs(back - raw[0].numpy()).max()) <= FLOAT16_KEPT * span


def test_values_are_what_was_kept_between_low_and_high():
    kept = np.array([[0, 0.25, 0.5, 0.75, 1, 0], [np.nan] * 6, [0, 0.25, 0.5, 0.75, 1, 0]], np.float16)
    kind = pa.fixed_shape_tensor(pa.float16(), (2, 3))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), 6)
    columns = {"gradcam": pa.ExtensionArray.from_storage(kind, storage)}
    columns |= {"gradcam_low": [100.0, None, 1e-9], "gradcam_high": [300.0, None, 5e-9]}
    values = _values(pa.table(columns), "gradcam", RAW.plan)
    np.testing.assert_array_equal(values[0], [[100, 150, 200], [250, 300, 100]])
    assert np.isnan(values[1]).all()
    np.testing.assert_allclose(values[2], [[1e-9, 2e-9, 3e-9], [4e-9, 5e-9, 1e-9]], rtol=1e-6)


def test_the_columns(finished):
    schema = pq.read_schema(finished / "rows" / "part-000001.parquet")
    small, text, number = pa.fixed_shape_tensor(pa.float16(), (4, 4)), pa.string(), pa.float64()
    best = pa.struct([("class", pa.int32()), ("label", text), ("probability", number)])
    assert {field.name: field.type for field in schema.remove_metadata()} == {
        **{"index": pa.int64(), "key": text, "path": text, "sha256": text, "asked": text, "class": pa.int32()},
        **{"label": text, "logit": number, "probability": number, "top5": pa.list_(best)},
        **{"gradcam": small, "gradcam_low": number, "gradcam_high": number},
        **{"gradcam_plus_plus": small, "gradcam_plus_plus_low": number, "gradcam_plus_plus_high": number},
        **{"vanilla": pa.fixed_shape_tensor(pa.float16(), (64, 64)), "vanilla_low": number, "vanilla_high": number},
        **{"notes": pa.list_(text), "file_size": pa.int64(), "file_mtime_ns": pa.int64(), "seconds": number},
        "error": text,
    }
    said = json.loads(schema.metadata[b"attention-maps"])
    assert (said["number"], said["device"], said["runner"]) == (1, "cpu", "local")
    assert pq.read_metadata(finished / "rows" / "part-000001.parquet").row_group(0).column(0).compression == "ZSTD"
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "listing.arrow",
        "rows",
        "run.json",
        "summary.json",
    ]


# Other readers


def _kept(out):
    return np.concatenate([chunk.to_numpy_ndarray() for chunk in table(out)["gradcam"].chunks])


def test_pandas_pyarrow_and_duckdb_read_it(finished):
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    expected = _kept(finished)
    frame = pandas.read_parquet(finished / "rows")
    assert (len(frame), frame["label"].notna().sum()) == (9, 8)
    np.testing.assert_array_equal(np.stack(frame["gradcam"]).reshape(-1, 4, 4), expected)
    tensors = pq.read_table(finished / "rows")["gradcam"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(tensors, expected)
    rows = duckdb.sql(
        f"select gradcam from '{finished}/rows/*.parquet' where error is null order by index"
    ).fetchnumpy()
    maps = np.stack([np.asarray(values) for values in rows["gradcam"]]).reshape(-1, 4, 4)
    np.testing.assert_array_equal(maps, expected[~np.isnan(expected[:, 0, 0])])


# read_maps


def test_read_maps(finished):
    stored = read_maps(finished)
    assert len(stored) == 9
    assert list(stored.maps) == ["gradcam", "gradcam_plus_plus", "vanilla"]
    assert stored["gradcam++"].shape == (9, 4, 4)
    assert stored["vanilla"].shape == (9, 64, 64)
    assert stored["vanilla"].dtype == np.float32
    assert not set(stored.maps) & set(stored.rows.column_names)
    highest = stored.rows["vanilla_high"].to_numpy()
    good = ~np.isnan(highest)
    np.testing.assert_allclose(stored["vanilla"].max(axis=(1, 2))[good], highest[good], rtol=1e-6)
    some = read_maps(finished, "gradcam++", where="index >= 3 AND error IS NULL", limit=3)
    assert some.rows["index"].to_pylist() == [3, 4, 6]
    np.testing.assert_array_equal(some["gradcam_plus_plus"], stored["gradcam_plus_plus"][[3, 4, 6]])
    assert read_maps(finished, limit=5).rows["index"].to_pylist() == [0, 1, 2, 3, 4]
    nothing = read_maps(finished, where="index > 100")
    assert (len(nothing), nothing["gradcam"].shape) == (0, (0, 4, 4))
    assert not read_maps(finished, []).maps
    assert list(read_maps(finished, "vanilla, gradcam++").maps) == ["vanilla", "gradcam_plus_plus"]
    with pytest.raises(KeyError, match="was not read"):
        some["gradcam"]


def test_read_maps_says_what_is_wrong(finished, tmp_path):
    with pytest.raises(ValueError, match="smoothgrad is not in"):
        read_maps(finished, ["smoothgrad"])
    with pytest.raises(RunError, match="no batch run there"):
        read_maps(tmp_path)
    with pytest.raises(ValueError, match="limit 0"):
        read_maps(finished, limit=0)
    (tmp_path / "run.json").write_bytes((finished / "run.json").read_bytes())
    with pytest.raises(RunError, match="no rows yet"):
        read_maps(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "part-000000.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(RunError, match="rows cannot be read"):
        read_maps(tmp_path)


# SQL


def _selected(finished, text):
    return read_maps(finished, [], where=text).rows["index"].to_pylist()


def test_sql_selects(finished):
    rows = table(finished).to_pylist()
    good = [row for row in rows if row["error"] is None]
    category, middle = good[0]["class"], sorted(row["probability"] for row in good)[4]

    def expected(condition):
        return [row["index"] for row in good if condition(row)]

    assert _selected(finished, f"class = {category}") == expected(lambda row: row["class"] == category)
    assert _selected(finished, f'"class" <> {category}') == expected(lambda row: row["class"] != category)
    assert _selected(finished, f"NOT probability > {middle!r}") == expected(lambda row: row["probability"] <= middle)
    assert _selected(finished, f"probability > {middle!r} or index < 2") == [
        row["index"] for row in rows if row["index"] < 2 or (row["probability"] or 0) > middle
    ]
    assert _selected(finished, "index BETWEEN 2 AND 4") == [2, 3, 4]
    assert _selected(finished, "index NOT IN (1, 7) and 3 > index") == [0, 2]
    assert _selected(finished, "path LIKE '%4b%'") == _selected(finished, "error IS NOT NULL") == [5]
    assert _selected(finished, f"label = 'class {category}'") == expected(lambda row: row["class"] == category)
    assert _selected(finished, f"top5[1].class = {category}") == expected(lambda row: row["class"] == category)
    assert _selected(finished, "vanilla_high > vanilla_low AND asked IS NULL -- and no more") == expected(
        lambda row: True
    )


@pytest.mark.parametrize(
    ("python", "sql"),
    [
        ('label == "tabby" and probability > 0.5', "label = 'tabby' AND probability > 0.5"),
        ("class == 282", "class = 282"),
        ("label in ['tabby', \"tiger cat\"] or not class != 3", "label IN ('tabby', 'tiger cat') OR NOT class != 3"),
        ("error is None", "error IS NULL"),
        ("error is not None and asked == None", "error IS NOT NULL AND asked IS NULL"),
        ("(class == 1) & (index > 2) | (index == 7)", "(class = 1) AND (index > 2) OR (index = 7)"),
        ('path == "it\'s" and label != \'a and "b" == c\'', "path = 'it''s' AND label != 'a and \"b\" == c'"),
    ],
)
def test_the_dialect_that_was_is_refused_with_the_same_in_sql(finished, python, sql):
    with pytest.raises(WhereError) as caught:
        _selected(finished, python)
    assert str(caught.value) == f"--where {python!r}: write it in SQL: {sql}"
    assert in_sql(sql, ["index", "class"]) is None
    _selected(finished, sql)  # and it is SQL


NO_SQL_EXPRESSION = r"""class =
colour = 'red'
label > 3
gradcam = 0
sum(class) > 1
error is None
true, false
true; DROP TABLE rows
true) UNION SELECT 1 FROM rows WHERE (true
true ORDER BY index
exists(FROM read_csv('{file}'))
exists(FROM '{part}')
exists(FROM glob('/*'))
exists(FROM read_csv('http://127.0.0.1:1/a.csv'))
exists(FROM sqlite_scan('{file}', 'a'))
exists(FROM selected)
index = getenv('HOME')
__import__('os').system('true')"""


def test_everything_else_is_refused_in_one_line(finished, tmp_path):
    """Neither a file nor the network nor a variable of the function that asks can be reached."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    deep = "(" * 3000 + "true" + ")" * 3000
    for text in ["", "?", "\0", "'\ud800' = label", deep, *NO_SQL_EXPRESSION.splitlines()]:
        with pytest.raises(WhereError) as caught:
            _selected(finished, text.format(file=secret, part=finished / "rows" / "part-000000.parquet"))
        assert len(str(caught.value).splitlines()) == 1


# show


def test_show_lists_rows(finished, capsys):
    assert main(["show", str(finished), "--where", "index < 2 or error IS NOT NULL"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "photographs/4b.jpg" in lines[2]
    assert "not a photograph" in lines[2]
    assert main(["show", str(finished), "--where", "probability > 2"]) == 0
    assert capsys.readouterr().out == "no row where probability > 2\n"


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
        photograph = Image.open(finished.parent / "photographs" / "1.jpg")
        np.testing.assert_array_equal(saved["pixels"][0], photograph.resize((64, 64), Image.Resampling.NEAREST))
    manifest = json.loads(Path("figures/manifest.json").read_text())
    assert [said["path"] for said in manifest["photographs"]] == ["photographs/1.jpg", "photographs/5.jpg"]


def test_show_says_where_a_photograph_has_changed(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_photographs(Path("p"), 4)
    assert batch(weights, "p", "--out", "out", "--part-rows", "2") == 0
    Path("p/1.jpg").write_bytes(Path("p/0.jpg").read_bytes())
    Path("p/2.jpg").unlink()
    assert main(["show", "out", "--out", "figures"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "attention-maps: 'p/1.jpg': has changed since; drawn without it",
        "attention-maps: 'p/2.jpg': No such file or directory; drawn without it",
    ]
    each = ["--at", "photograph", "--each", "--alpha", "0"]
    assert main(["show", "out", "--out", "figures", "--methods", "gradcam", *each]) == 3
    for number, expected in enumerate([Path("p/0.jpg"), None, None, Path("p/3.jpg")], start=1):
        with Image.open(f"figures/{number}-{number - 1}-gradcam.png") as file:
            picture = np.full((64, 64, 3), 128) if expected is None else np.asarray(Image.open(expected))
            np.testing.assert_array_equal(np.asarray(file), picture)
    with np.load("figures/maps.npz") as saved:
        assert [bool((pixels == 128).all()) for pixels in saved["pixels"]] == [False, True, True, False]


def test_show_with_nothing_to_show(finished, capsys):
    assert main(["show", str(finished), "--where", "error IS NOT NULL", "--out", "nothing"]) == 2
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
    assert batch(weights, "--out", "out", "--part-rows", 4, "--", *names) == 0
    assert main(["show", "out", "--csv", "rows.csv"]) == 0
    assert all(letter.isprintable() or letter in "\r\n" for letter in Path("rows.csv").read_text())
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
    assert main(["show", "out", "--csv", "none.csv", "--where", "index > 99"]) == 0
    assert len(Path("none.csv").read_text().splitlines()) == 1
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
