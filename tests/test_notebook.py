"""The lab as a notebook: one source for both languages, stored with its figures, and the whole of it runs."""

from __future__ import annotations

import ast
import base64
import importlib
import io
import json
import re
from importlib import util

import numpy as np
import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "notebooks"
NAMES = ("lab.ipynb", "lab.ru.ipynb")

PICTURES = 7
"""The photographs, four maps, the family, the plain calls."""


def loaded(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code(book):
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def untold(source):
    """Code without what is told to the reader: comments and texts."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = ""
    return ast.dump(tree)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("make")


def test_both_come_from_the_same_cells(make):
    assert make.main(["--check"]) == 0
    english, russian = map(loaded, NAMES)
    assert [*map(untold, code(english))] == [*map(untold, code(russian))]
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in russian.cells]
    for one, other in zip(english.cells, russian.cells, strict=True):
        assert not re.search("[а-яё]", one.source)
        if one.cell_type == "markdown":
            assert len(re.findall("[а-яё]", other.source, flags=re.IGNORECASE)) > 20 or one.source.startswith(
                "## VGG16"
            )
        else:  # comments are Russian there
            assert all(re.search("[а-яё]", comment) for comment in re.findall(r"  # (.+)", other.source))


def test_a_notebook_that_was_edited_by_hand_is_noticed(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in NAMES]
    for name, text in zip(NAMES, (texts[0].replace("gradcam++", "gradcam"), texts[1]), strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert make.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{tmp_path / NAMES[0]}: not up to date: run python notebooks/make.py\n"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_with_its_figures(name):
    book = loaded(name)
    nbformat.validate(book)
    drawn = pictures(book)
    assert len(drawn) == PICTURES
    assert all(min(picture.shape[:2]) > 150 and picture.std() > 10 for picture in drawn)
    assert (FOLDER / name).stat().st_size < 1_500_000
    outputs = json.dumps([cell.get("outputs", []) for cell in book.cells])
    assert not re.search(r"Traceback|Warning|site-packages|/home/|/tmp/|\"stderr\"", outputs)
    assert verdicts(printed(book)) == {"fp64": 5, "fp32": 5}
    with_pictures = [
        cell for cell in book.cells if any("image/jpeg" in o.get("data", {}) for o in cell.get("outputs", []))
    ]
    assert all(cell.metadata["alt"] for cell in with_pictures)


def test_the_labs_order_and_public_names_only():
    book = loaded(NAMES[0])
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    titles = re.findall("^#.*", prose, flags=re.MULTILINE)
    wanted = ["Settings", "Devices", "VGG16", "Four photographs", "preprocess_input", "Linear output", "A score for each photograph", "Vanilla saliency", "SmoothGrad",
              "Grad-CAM", "Grad-CAM++", "The whole family", "Is the map right?", "Are they the same maps?", "What the libraries' plain calls would have drawn"]  # fmt: skip
    assert [title.lstrip("# ") for title in titles][1:] == wanted
    assert not re.search(r"\b(import|from) _|\._[a-z]|import \*", "\n".join(code(book)))


def executed(make, folder, monkeypatch, *, cells=None, name=NAMES[0], **environment):
    """Run a notebook, or its first cells, in a folder, as `make notebooks` does."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for key, value in {"PYTHONPATH": str(ROOT), "LAB_SAMPLES": "2", "OMP_NUM_THREADS": "2", **environment}.items():
        monkeypatch.setenv(key, value)
    book = loaded(name)
    book.cells = book.cells[:cells]
    make.run(book, folder)
    return book


def pictures(book):
    from PIL import Image

    kinds = ("image/png", "image/jpeg")
    data = [output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])]
    encoded = [values[kind] for values in data for kind in kinds if kind in values]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in encoded]


def printed(book):
    return "".join(
        o.get("text", "") for cell in book.cells for o in cell.get("outputs", []) if o.output_type == "stream"
    )


def verdicts(text):
    """Rows of the report's table that hold, a precision."""
    held = {"fp64": "the same function", "fp32": "the same up to rounding"}
    return {p: len(re.findall(rf"^\w+ +{p} +{word} ", text, flags=re.MULTILINE)) for p, word in held.items()}


def test_the_first_cells_run(make, tmp_path, monkeypatch, weights):
    """To the linear output, on a small network's weights."""
    titles = [cell.source.splitlines()[0] for cell in loaded(NAMES[0]).cells]
    book = executed(
        make, tmp_path, monkeypatch, cells=titles.index("## A score for each photograph"), LAB_WEIGHTS=weights
    )
    text = printed(book)
    assert "chelsea.png coffee.png camera.png china.jpg" in text
    assert "(4, 3, 64, 64), torch.float32, from -123" in text
    assert len(pictures(book)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(make, tmp_path, monkeypatch, name):
    if util.find_spec("tf_keras_vis") is None:
        pytest.skip("needs TensorFlow; without it the other test does the same")
    book = executed(make, tmp_path, monkeypatch, name=name)
    assert len(pictures(book)) == PICTURES
    assert {path.name for path in tmp_path.glob("*.png")} == {"smoothgrad.png", "gradcam_plus_plus.png"}
    text = printed(book)
    assert "Wall time" in text
    assert "block5_conv3" in text
    assert "On these 4 photographs and this network" in text
    assert verdicts(text) == {"fp64": 5, "fp32": 5}  # the network and four maps


@pytest.mark.slow
def test_it_runs_where_there_is_no_tensorflow(make, tmp_path, monkeypatch):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tf_keras_vis' else find(name, *a)\n"
    )
    book = executed(make, tmp_path, monkeypatch, PYTHONPATH=f"{hidden}:{ROOT}")
    assert len(pictures(book)) == PICTURES
    assert "pip install 'attention-maps[keras]', then run this cell again" in printed(book)
