"""The reference's command: what it refuses before TensorFlow is loaded, and what ends early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from test_keras_ref import THREE_BLOCKS, needs_keras

from keras_ref import model
from keras_ref.__main__ import main
from keras_ref.maps import MAPS
from parity.contract.methods import REFERENCE
from parity.contract.network import seeded, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(seeded(0, THREE_BLOCKS), tmp_path / "tiny.safetensors")
    return tmp_path


@pytest.mark.keras
@needs_keras
@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("Ctrl-C", 130, "interrupted; nothing was written"),
        ("SIGTERM", 130, "interrupted; nothing was written"),
        ("out of memory", 2, "error: the fp32 run was ended from outside: too little memory, most likely"),
    ],
)
def test_what_ends_early_leaves_nothing(folder, how, status, words):
    command = [sys.executable, "-m", "keras_ref", "--weights", "tiny.safetensors", "--floor", "--out", "early"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = psutil.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (workers := [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.1)  # its interpreter starts: an interrupt would be a traceback there
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "SIGTERM":
        process.terminate()
    else:
        workers[0].kill()
    _, errors = process.communicate(timeout=60)  # which also waits for the child: it holds the pipe, too
    assert (process.returncode, errors) == (status, f"keras_ref: {words}\n")
    assert not (folder / "early").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "gradcam@pytorch-grad-cam"], "is unknown"),
        (["--resize", "torchvision"], "give pixels resized otherwise with --pixels"),
        (["--out", "no/where"], "'no/where': its folder does not exist"),
        (["--out", "."], "'.' is a folder"),
        (["--figures", "tiny.safetensors"], "'tiny.safetensors' is not a folder"),
        (["none.png", "."], "cannot read 'none.png' (no such file), '.' (is a folder)"),
        (["--classes", "1,2"], "2 classes for 4 photographs"),
        (["--weights", "nowhere"], "'nowhere': no such file or source: give offline"),
        (["--weights", "text.txt"], "'text.txt': the reference does not read this kind of file"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(folder, arguments, words, monkeypatch, capsys):
    (folder / "text.txt").write_text("hello")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(model, "load_frameworks", lambda *_, **__: pytest.fail("TensorFlow is loaded first"))
    try:
        status = main(["--weights", "tiny.safetensors", "--out", "x", *arguments])
    except SystemExit as ended:  # argparse's
        status = ended.code
    errors = capsys.readouterr().err
    assert (status, errors.count("\n")) == (2, 1), errors
    assert errors.startswith("keras_ref: error: ")
    assert words in errors
    assert not (folder / "x").exists()


def test_every_map_of_the_reference_has_a_function():
    assert MAPS.keys() == set(REFERENCE)
