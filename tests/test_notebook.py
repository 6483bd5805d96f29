"""The lab as a notebook: one source for both languages, no outputs kept, and the whole of it runs."""

from __future__ import annotations

import base64
import io
import re
import sys
from importlib import util

import numpy as np
import pytest
from conftest import ROOT, run_program

nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "notebooks"
NAMES = ("lab.ipynb", "lab.ru.ipynb")


def loaded(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code(book):
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def test_both_come_from_the_same_cells():
    assert run_program(str(FOLDER / "make.py"), "--check", cwd=ROOT).returncode == 0
    english, russian = map(loaded, NAMES)
    assert code(english) == code(russian)
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in russian.cells]
    for one, other in zip(english.cells, russian.cells, strict=True):
        if one.cell_type == "markdown":
            assert not re.search("[а-яё]", one.source)
            assert len(re.findall("[а-яё]", other.source, flags=re.IGNORECASE)) > 20 or one.source.startswith(
                "## VGG16"
            )


def test_a_notebook_that_was_edited_by_hand_is_noticed(tmp_path):
    for name in ("make.py", *NAMES):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    assert run_program(str(tmp_path / "make.py"), "--check", cwd=tmp_path).returncode == 0
    text = (tmp_path / NAMES[0]).read_text(encoding="utf-8")
    (tmp_path / NAMES[0]).write_text(text.replace("gradcam++", "gradcam"), encoding="utf-8")
    done = run_program(str(tmp_path / "make.py"), "--check", cwd=tmp_path)
    assert done.returncode == 1
    assert "run python notebooks/make.py" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_kept(name):
    book = loaded(name)
    nbformat.validate(book)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")


def test_the_labs_order_and_public_names_only():
    book = loaded(NAMES[0])
    titles = [
        line
        for cell in book.cells
        for line in cell.source.splitlines()
        if cell.cell_type == "markdown" and line.startswith("#")
    ]
    wanted = ["Devices", "VGG16", "Four photographs", "Linear output", "A score for each photograph", "Vanilla saliency", "SmoothGrad",
              "Grad-CAM", "Grad-CAM++", "The whole family", "Are they the same maps?", "What the libraries' plain calls would have drawn"]  # fmt: skip
    assert [title.lstrip("# ") for title in titles][2:] == wanted
    assert not re.search(r"\b(import|from) _|\._[a-z]|import \*", "\n".join(code(book)))


def executed(tmp_path, monkeypatch, **environment):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for key, value in {"PYTHONPATH": str(ROOT), "LAB_SAMPLES": "2", "OMP_NUM_THREADS": "2", **environment}.items():
        monkeypatch.setenv(key, value)
    book = loaded(NAMES[0])
    kernel = {"kernel_name": "python3", "timeout": 500, "resources": {"metadata": {"path": str(tmp_path)}}}
    client = nbclient.NotebookClient(book, **kernel)
    # The kernel of this very environment, whatever kernels the machine has.
    manager = client.create_kernel_manager()
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute()
    return book


def pictures(book):
    from PIL import Image

    found = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                found.append(
                    np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB"))
                )
    return found


def printed(book):
    return "".join(
        o.get("text", "") for cell in book.cells for o in cell.get("outputs", []) if o.output_type == "stream"
    )


def verdicts(text):
    """Rows of the report's table that hold, a precision."""
    held = {"fp64": "the same function", "fp32": "the same up to rounding"}
    return {p: len(re.findall(rf"^\w+ +{p} +{word} ", text, flags=re.MULTILINE)) for p, word in held.items()}


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    if util.find_spec("tf_keras_vis") is None:
        pytest.skip("needs TensorFlow; without it the other test does the same")
    book = executed(tmp_path, monkeypatch)
    drawn = pictures(book)
    assert len(drawn) == 7  # photographs, four maps, the family, the plain calls
    assert all(min(picture.shape[:2]) > 150 and picture.std() > 10 for picture in drawn)
    text = printed(book)
    assert "4 photographs × 2 samples" in text
    assert "block5_conv3" in text
    assert verdicts(text) == {"fp64": 5, "fp32": 5}  # the network and four maps


@pytest.mark.slow
def test_it_runs_where_there_is_no_tensorflow(tmp_path, monkeypatch):
    """From a folder of a checkout, as people open it; the reference is then the one that the tests carry."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tf_keras_vis' else find(name, *a)\n"
    )
    book = executed(FOLDER, monkeypatch, PYTHONPATH=f"{hidden}:{ROOT}")
    assert len(pictures(book)) == 7
    assert verdicts(printed(book)) == {"fp64": 5, "fp32": 5}
