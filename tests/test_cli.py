"""The command line as a person meets it: in a process, in another folder, without a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_program
from PIL import Image

from torch_impl.__main__ import main
from torch_impl.names import REFERENCE_METHODS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.RandomState(0)
    for name in ("a.png", "b 'quoted'\n.png", "-dash.png"):
        Image.fromarray(generator.randint(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def failed(capsys, *arguments, words=()):
    """It ends with 2, says why in lines of its own, and leaves nothing."""
    before = sorted(os.listdir())
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") >= 1
    assert all(line.startswith("attention-maps") and ": error: " in line for line in captured.err.splitlines())
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    assert sorted(os.listdir()) == before
    return captured.err


def test_explain_end_to_end(folder, weights, capsys):
    assert main(["explain", "--weights", weights, "--samples", "2", "--out", "out", "--", "a.png", "-dash.png"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "fingerprint" in out
    assert "cpu" in out
    assert "s a map" in out
    for name in [*(f"{m}.png" for m in REFERENCE_METHODS), "overview.png", "maps.npz", "manifest.json"]:
        assert f"wrote     {os.path.join('out', name)}" in out
        assert os.path.getsize(os.path.join("out", name)) > 0
    with np.load("out/maps.npz") as file:
        assert file["gradcam_plus_plus"].shape == (2, 64, 64)
    manifest = json.load(open("out/manifest.json"))
    assert [p["name"] for p in manifest["photographs"]] == ["a.png", "-dash.png"]
    # Again into the same folder: ours, so it is replaced.
    assert main(["explain", "a.png", "--weights", weights, "--methods", "gradcam++", "--out", "out", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert sorted(os.listdir("out")) == ["gradcam_plus_plus.png", "manifest.json", "maps.npz", "overview.png"]


def test_folders_labels_and_stock_maps(folder, weights, capsys):
    stock = "gradcam@pytorch-grad-cam,gradcam++@pytorch-grad-cam,smoothgrad@captum"
    status = main(
        ["explain", ".", "--weights", weights, "--classes", "2", "--methods", stock, "--samples", "2", "--out", "out"]
    )
    assert status == 0
    with np.load("out/maps.npz") as file:
        assert set(file.files) == {
            "pixels", "gradcam@pytorch-grad-cam", "gradcam_plus_plus@pytorch-grad-cam", "smoothgrad@captum",
        }  # fmt: skip
        assert file["smoothgrad@captum"].shape == (3, 64, 64)
    assert "\\n" in capsys.readouterr().out, "a line break in a name is shown, not obeyed"


def test_bad_photographs_are_all_named(folder, weights, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    error = failed(capsys, "explain", "a.png", "broken.jpg", "absent.jpg", "--weights", weights, "--out", "out")
    assert len(error.splitlines()) == 2
    assert "broken.jpg" in error
    assert "absent.jpg" in error
    status = main(
        ["explain", "broken.jpg", "a.png", "absent.jpg", "--classes", "1,2,3", "--skip-bad", "--weights", weights]
        + ["--methods", "gradcam", "--out", "out"]
    )
    assert status == 3
    assert capsys.readouterr().err.count("left out") == 2
    manifest = json.load(open("out/manifest.json"))
    assert [(p["name"], p["class"]) for p in manifest["photographs"]] == [("a.png", 2)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "a.png", "--classes", "-1"], ["class -1 does not exist"]),
        (["explain", "a.png", "--classes", "10"], ["class 10 does not exist", "0 to 9"]),
        (["explain", "a.png", "--classes", "asdf"], ["'asdf'", "without labels"]),
        (["explain", "a.png", "--classes", "1,2"], ["2 classes for 1 photograph"]),
        (["explain", "a.png", "--classes", "1,,2"], ["item is empty"]),
        (["explain", "a.png", "--methods", "gradcan"], ["did you mean gradcam?"]),
        (["explain", "a.png", "--colormap", "jett"], ["'jett'", "cividis"]),
        (["explain", "a.png", "--samples", "0"], ["--samples"]),
        (["explain", "a.png", "--noise", "nan"], ["--noise"]),
        (["explain", "a.png", "--seed", "-1"], ["--seed"]),
        (["explain", "a.png", "--batch-size", "many"], ["--batch-size"]),
        (["explain", "a.png", "--precision", "fp8"], ["--precision"]),
        (["explain", "a.png", "--precision", "tf32", "--device", "cpu"], ["tf32", "CUDA"]),
        (["explain", "a.png", "--methods", "smoothgrad@captum", "--precision", "bf16"], ["smoothgrad@captum", "bf16", "fp32"]),
        (["batch", "a.png", "--methods", "gradcam@pytorch-grad-cam", "--precision", "fp16"], ["gradcam@", "fp16", "fp32"]),
        (["explain", "a.png", "--device", "tpu"], ["'tpu'"]),
        (["explain", "a.png", "--device", "cuda:99"], ["cuda:99"]),
        (["explain", "a.png", "--out", "a.png"], ["not a folder"]),
        (["explain", "a.png", "--out", "."], ["not a result", "--overwrite"]),
        (["explain", "a.png", "--weights", "nonsense"], ["nonsense", "offline-random:N"]),
        (["explain", "a.png", "--weights", "a.png"], ["a.png"]),
        (["summary", "--weights", "absent.h5"], ["absent.h5"]),
        (["convert", "a.png", "b.pth"], ["a.png"]),
        (["paint"], ["paint", "--help"]),
        ([], ["--help"]),
    ],
)  # fmt: skip
def test_wrong_commands(folder, weights, capsys, arguments, words):
    if arguments[:1] in (["explain"], ["batch"]):
        arguments = [*arguments] + ([] if "--weights" in arguments else ["--weights", weights])
        arguments += [] if "--out" in arguments else ["--out", "out"]
    failed(capsys, *arguments, words=words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder, weights, capsys):
    (folder / "locked").mkdir(mode=0o500)
    failed(capsys, "explain", "a.png", "--weights", weights, "--out", "locked/out", words=["no permission"])


def test_a_full_disk_is_one_line(folder, weights, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    failed(
        capsys,
        "explain",
        "a.png",
        "--weights",
        weights,
        "--methods",
        "gradcam",
        "--out",
        "out",
        words=["No space left"],
    )


def test_our_own_crash_is_one_line_too(folder, weights, capsys, monkeypatch):
    monkeypatch.setattr("torch_impl.methods.finish", lambda *_: 1 / 0)
    monkeypatch.setattr("torch_impl.explainer.finish", lambda *_: {}["oops"])
    failed(
        capsys, "explain", "a.png", "--weights", weights, "--out", "out", words=["internal error: KeyError", "report"]
    )


def test_summary_and_version():
    result = run_program("-m", "torch_impl", "summary", cwd=ROOT.parent)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "Total parameters: 138,357,544"
    result = run_program("-m", "torch_impl", "--version", cwd=ROOT.parent)
    assert result.stdout.startswith("attention-maps ")
    assert "torch" in result.stdout


def test_convert_there_and_back(folder, weights, tiny, capsys):
    assert main(["convert", weights, "k.weights.h5"]) == 0
    assert main(["convert", "k.weights.h5", "t.pth", "--quiet"]) == 0
    assert main(["convert", "t.pth", "s.safetensors"]) == 0
    out = capsys.readouterr().out
    assert out.count(tiny.fingerprint) == 2
    failed(capsys, "convert", weights, "t.pth", words=["t.pth"])


def test_help_needs_no_torch():
    """So that it answers at once; the time itself is not asserted on machines whose speed drifts."""
    probe = "import sys, torch_impl.__main__ as m\ntry: m.main(['explain', '--help'])\nexcept SystemExit: pass\n"
    probe += "print(sorted({'torch', 'matplotlib', 'h5py', 'skimage'} & set(sys.modules)), file=sys.stderr)"
    result = run_program("-c", probe, cwd=ROOT)
    assert result.returncode == 0
    assert "--skip-bad" in result.stdout
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(folder, weights, kind):
    process = subprocess.Popen(
        [sys.executable, "-m", "torch_impl", "explain", "a.png", "--weights", weights, "--samples", "100000"]
        + ["--out", "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:  # the first line of progress says that it works
        if "smoothgrad" in line:
            break
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not any(name.startswith((".part", "out")) for name in os.listdir(folder))


def test_a_reader_that_goes_away(folder, weights):
    command = f"{sys.executable} -m torch_impl explain a.png --weights {weights} --methods gradcam --out out | head -1"
    result = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
