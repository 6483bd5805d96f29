"""The command line as a person meets it: one line for an error, an exit status, and nothing half-written."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_program
from PIL import Image

from parity.contract.methods import DEFAULT, LIBRARY, METHODS, REFERENCE
from torch_impl.__main__ import main
from torch_impl.capture import ENGINES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder but for three pictures with awkward names."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.RandomState(0)
    for name in ("a.png", "b 'quoted'\n.png", "-dash.png"):
        Image.fromarray(generator.randint(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def failed(capsys, *arguments, words=()):
    """It ends with 2, says why in lines of its own, and leaves everything as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.endswith("\n")
    assert all(line.startswith("attention-maps") and ": error: " in line for line in err.splitlines())
    for word in words:
        assert word in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return err.splitlines()


def manifest():
    return json.loads(Path("out/manifest.json").read_text())


# What it does


@pytest.mark.parametrize("engine", ENGINES)
def test_explain_end_to_end(folder, weights, capsys, engine):
    explain = ["explain", "--weights", weights, "--samples", "2", "--engine", engine, "--out", "out"]
    assert main([*explain, "--", "a.png", "-dash.png"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "random weights" in out
    assert "fingerprint" in out
    assert f"fp32, engine {engine}" in out
    assert ("together" if engine == "shared" else "s a map") in out
    for name in [*(f"{method}.png" for method in DEFAULT), "overview.png", "maps.npz", "manifest.json"]:
        assert f"wrote     {os.path.join('out', name)}" in out
        assert os.path.getsize(os.path.join("out", name)) > 0
    with np.load("out/maps.npz") as file:
        assert {name: file[name].shape for name in DEFAULT} == dict.fromkeys(DEFAULT, (2, 64, 64))
    assert [row["name"] for row in manifest()["photographs"]] == ["a.png", "-dash.png"]
    # Again into the same folder: ours, so it is replaced, and said to be.
    assert main([*explain, "a.png", "--methods", "gradcam++"]) == 0
    assert capsys.readouterr().err == "attention-maps: replacing the earlier result in out\n"
    assert sorted(os.listdir("out")) == ["gradcam_plus_plus.png", "manifest.json", "maps.npz", "overview.png"]
    assert main([*explain, "a.png", "--methods", "gradcam", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_folders_classes_and_every_map(folder, weights, capsys):
    os.remove("a.png")
    arguments = ["explain", ".", "--weights", weights, "--classes", "2,7", "--methods", ",".join(METHODS)]
    assert main([*arguments, "--samples", "1", "--seed", "3", "--noise", "0.1", "--out", "out"]) == 0
    with np.load("out/maps.npz") as file:
        assert {name: file[name].shape for name in METHODS} == dict.fromkeys(METHODS, (2, 64, 64))
    options = {"n_samples": 1, "noise_level": 0.1, "seed": 3, "channels": None, "relu": True}
    assert manifest()["settings"] == {**options, "batch_size": "auto", "compile": False}
    assert [row["class"] for row in manifest()["photographs"]] == [2, 7]
    assert "quoted'\\n.png" in capsys.readouterr().out, "a line break in a name is shown, not obeyed"


def test_at_the_photographs_own_size_class_by_folder_and_two_layers(folder, weights, capsys):
    for name in ("7/a.png", "cat/b.png"):
        Path(name).parent.mkdir()
        Image.fromarray(np.full((30, 90, 3), 99, np.uint8)).save(name)
    Path("labels.txt").write_text("0\n1\ncat\n" + "x\n" * 7)
    options = ["--classes", "folder", "--labels", "labels.txt", "--target-layer", "block4_conv3,features.29"]
    figures = ["--at", "photograph", "--each", "--colorbar", "--alpha", "0", "--methods", "gradcam,vanilla"]
    assert main(["explain", "7", "cat", "--weights", weights, *options, *figures, "--out", "out"]) == 0
    rows = manifest()["photographs"]
    assert [(row["class"], row["layer"]) for row in rows] == [
        (7, "features.22"), (2, "features.22"), (7, "features.29"), (2, "features.29")
    ]  # fmt: skip
    each = [name for name in manifest()["files"] if name[0] in "12"]
    assert sorted(each) == [
        *("1-a-features.22-gradcam.png", "1-a-features.29-gradcam.png", "1-a-vanilla.png"),
        *("2-b-features.22-gradcam.png", "2-b-features.29-gradcam.png", "2-b-vanilla.png"),
    ]
    for name in each:
        assert (np.asarray(Image.open(Path("out", name))) == np.full((30, 90, 3), 99)).all()
    assert "layer     features.22, features.29\n" in capsys.readouterr().out


def test_bad_photographs_are_all_named(folder, weights, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    names = ["broken.jpg", "a.png", "absent.jpg"]
    lines = failed(capsys, "explain", *names, "--weights", weights, "--out", "out", words=["broken.jpg", "absent.jpg"])
    assert len(lines) == 2
    more = ["--classes", "1,2,3", "--skip-bad", "--weights", weights, "--methods", "gradcam", "--out", "out"]
    assert main(["explain", *names, *more]) == 3
    assert capsys.readouterr().err.count("attention-maps: left out: ") == 2
    assert [(row["name"], row["class"]) for row in manifest()["photographs"]] == [("a.png", 2)]


def test_convert_there_and_back(folder, weights, tiny, capsys):
    assert main(["convert", weights, "k.weights.h5"]) == 0
    assert main(["convert", "k.weights.h5", "t.pth", "--quiet"]) == 0
    assert main(["convert", "t.pth", "s.safetensors"]) == 0
    assert capsys.readouterr().out.count(tiny.fingerprint) == 2
    failed(capsys, "convert", weights, "t.pth", words=["t.pth"])


def test_without_a_command_it_says_what_there_is(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[0], err) == ("usage: attention-maps [-h] [--version] COMMAND ...", "")
    assert "faithfulness" in out


def test_summary_and_version(weights, capsys):
    assert main(["summary"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Total parameters: 138,357,544"
    assert main(["summary", "--weights", weights]) == 0
    assert "Total parameters: 24,826\nweights: seeded:0, input caffe, fingerprint" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("attention-maps ")


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "-1"], ["class -1 does not exist"]),
        (["--classes", "10"], ["class 10 does not exist", "0 to 9"]),
        (["--classes", "asdf"], ["'asdf'", "without labels"]),
        (["--classes", "1,2"], ["2 classes for 1 photograph"]),
        (["--classes", "1,,2"], ["--classes", "item is empty"]),
        (["--methods", "gradcan"], ["did you mean gradcam?"]),
        (["--methods", "smoothgrad@captum", "--precision", "bf16"], ["smoothgrad@captum", "bf16", "fp32"]),
        (["--colormap", "jett"], ["'jett'", "cividis"]),
        (["--alpha", "1.5"], ["--alpha", "0 to 1"]),
        (["--at", "home"], ["--at", "photograph"]),
        (["--target-layer", "features.99"], ["no layer 'features.99'"]),
        (["--classes", "folder"], ["--classes folder: class "]),
        (["--samples", "0"], ["--samples"]),
        (["--noise", "nan"], ["--noise"]),
        (["--seed", "-1"], ["--seed"]),
        (["--batch-size", "many"], ["--batch-size", "auto"]),
        (["--precision", "fp8"], ["--precision"]),
        (["--precision", "tf32", "--device", "cpu"], ["tf32", "CUDA"]),
        (["--engine", "fast"], ["--engine"]),
        (["--device", "tpu"], ["'tpu'"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--out", "a.png"], ["not a folder"]),
        (["--out", "."], ["not a result", "--overwrite"]),
        (["--weights", "nonsense"], ["nonsense", "offline-random:N"]),
        (["--weights", "a.png"], ["a.png"]),
    ],
)
def test_wrong_options(folder, weights, capsys, arguments, words):
    (line,) = failed(capsys, "explain", "a.png", "--weights", weights, "--out", "out", *arguments, words=words)
    assert len(line) < 700


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "a.png"], ["--out", "--help"]),
        (["summary", "--weights", "absent.h5"], ["absent.h5"]),
        (["convert", "a.png", "b.pth"], ["a.png"]),
        (["paint"], ["paint", "--help"]),
    ],
)
def test_wrong_commands(folder, capsys, arguments, words):
    assert len(failed(capsys, *arguments, words=words)) == 1


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ("torch_impl.output.os.access", None, ["no permission"]),
        ("numpy.savez_compressed", OSError(28, "No space left on device"), ["No space left"]),
        ("torch_impl.explainer.finish", MemoryError(), ["out of memory", "--batch-size"]),
        ("torch_impl.explainer.finish", KeyError("oops"), ["internal error: KeyError: 'oops'", "report"]),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line_too(folder, weights, capsys, monkeypatch, where, error, words):
    def broken(*_, **__):
        if error:
            raise error
        return False

    monkeypatch.setattr(where, broken)
    arguments = ["a.png", "--weights", weights, "--methods", "gradcam", "--out", "out"]
    assert len(failed(capsys, "explain", *arguments, words=words)) == 1


# The process


def test_help_needs_no_torch():
    """So that it answers at once."""
    probe = "import sys, torch_impl.__main__ as m\ntry: m.main(['explain', '--help'])\nexcept SystemExit: pass\n"
    probe += "print(sorted({'torch', 'matplotlib', 'h5py', 'skimage'} & set(sys.modules)), file=sys.stderr)"
    result = run_program("-c", probe, cwd=ROOT, COLUMNS="999")  # short lines break names at hyphens
    assert (result.returncode, result.stderr.strip()) == (0, "[]")
    words = ["--skip-bad", "Exit status", *REFERENCE, *LIBRARY, *ENGINES]
    assert [word for word in words if word not in result.stdout.replace("\n", " ")] == []


@pytest.mark.parametrize("given", [None, "0"])
def test_the_program_asks_for_large_pages_and_a_users_choice_is_kept(given, monkeypatch):
    """`test_explainer` says that nothing else does."""
    environment = {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    monkeypatch.setattr(os, "environ", dict(environment))
    assert main([]) == 0
    assert os.environ == (environment or {"THP_MEM_ALLOC_ENABLE": "1"})


def test_interrupted(folder, weights):
    """On a terminal, whose progress says that the work has begun."""
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "torch_impl", "explain", "a.png", "--weights", weights, "--samples", "100000"]
        + ["--out", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=stderr,
    )
    os.close(stderr)
    said = b""
    while b"smoothgrad" not in said:
        said += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(terminal)
    assert process.wait(timeout=60) == 130
    assert said.endswith(b"attention-maps: interrupted; nothing was written\r\n")
    assert b"Traceback" not in said
    assert sorted(os.listdir(folder)) == ["-dash.png", "a.png", "b 'quoted'\n.png"]
