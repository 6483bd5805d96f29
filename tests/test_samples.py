"""The default photographs, whose they are; and text that is fit for a terminal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from parity.contract.samples import SAMPLES, credit_of
from parity.contract.text import one_line, printable
from torch_impl import images


def test_found_without_importing_their_packages() -> None:
    program = (
        "import sys; from torch_impl import images; files = images.defaults(); images.load_all(files)\n"
        "assert [file.name for file in files] == ['chelsea.png', 'coffee.png', 'camera.png', 'china.jpg'], files\n"
        "print(*sorted({'torch', 'skimage', 'sklearn', 'keras', 'tensorflow'} & set(sys.modules)))\n"
    )
    done = run_program("-c", program, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"^comes with scikit-image, which is not installed here: install it$"):
        SAMPLES[0].path()
    with pytest.raises(images.ImageError, match=r"^'chelsea\.png': comes with scikit-image, which is not installed"):
        images.defaults()
    assert credit_of("images/coffee.png") == ""


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_credit_is_for_the_very_file(sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = sample.path()
    assert credit_of(carried) == sample.credit
    (tmp_path / "link").symlink_to(carried.parent)
    assert credit_of(tmp_path / "link" / sample.name) == sample.credit
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "data"):  # a user's own, called as ours is
        Path(folder).mkdir()
        shutil.copy(carried, folder)
        assert credit_of(f"{folder}/{sample.name}") == ""
    assert credit_of(None) == credit_of(f"gone/{sample.name}") == credit_of(f"nul\0/{sample.name}") == ""


def test_text() -> None:
    assert printable("a\nb\x1b[31m\u202eé") == "a\\nb\\x1b[31m\\u202eé"
    assert one_line(ValueError(" a\n  b\x1b[31m\ud800")) == "a b?[31m?"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("") == ""
    assert one_line("x" * 500) == "x" * 400
    assert one_line("xyz", limit=2) == "xy"
