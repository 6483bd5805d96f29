"""The command line of the comparison, as a user would: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, run_program
from judging import recorded, with_array
from PIL.Image import Resampling

import keras_ref.__main__
from parity import __main__ as command
from parity import child, reference
from parity.candidate import CandidateError
from parity.contract.artifact import Artifact
from parity.contract.methods import DEFAULT
from parity.contract.network import write
from parity.contract.samples import SAMPLES
from parity.reference import ProcessError
from torch_impl import framing
from torch_impl.candidate import candidate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ported(golden: Artifact) -> Artifact:
    return recorded(golden, candidate)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate without a process of its own: the tests that need one have it."""

    def in_this_process(task: Any, *, quiet: bool = False) -> Any:
        try:
            return task()
        except Exception as error:
            raise CandidateError(child.words(error)) from None

    monkeypatch.setattr(child, "in_child", in_this_process)


def arguments(out: Path, *more: str) -> list[str]:
    return ["--reference", str(GOLDEN), "--device", "cpu", "--no-ladder", "--out", str(out), *more]


WRONG = """
import os, sys

def candidate(job):
    from torch_impl.candidate import candidate as right
    print("a candidate may print")
    for photograph, stage, array in right(job):
        yield photograph, stage, array * 64 if stage in ("gradcam/weights", "gradcam/raw") else array

def broken(job):
    return 1 / 0

def noisy(job):
    raise ValueError("a line\\nand another")

def killed(job):
    os.kill(os.getpid(), 9)

def leaving(job):
    os._exit(3)

def waiting(job):
    import time
    job.weights.with_name("here").touch()
    print(job.weights.parent, file=sys.stderr, flush=True)
    time.sleep(300)
"""


def test_the_command_ends_with_1_where_a_candidate_differs(tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(WRONG)
    more = ["--candidate", "somebodys:candidate", "--precision", "fp64", "--methods", "gradcam"]
    done = run_program("-m", "parity", *arguments(tmp_path / "out", *more), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "parts first at gradcam/weights" in done.stdout
    assert "sum of the gradients for their mean" in done.stdout
    assert "may print" not in done.stdout
    assert "may print" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["holds"] is False
    assert report["verdict"] == "different"
    assert report["reference"]["settings"]["n_samples"] == 4
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("broken", "the candidate failed: ZeroDivisionError: division by zero (somebodys_own.py:11)"),
        ("noisy", "a line and another"),
    ],
)
def test_the_command_ends_with_2_where_a_candidate_breaks(
    name: str, line: str, tmp_path: Path, in_process: None, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "somebodys_own.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    more = ["--candidate", f"somebodys_own:{name}", "--precision", "fp64", "--quiet"]
    assert refused(capsys, *arguments(tmp_path / "out", *more)) == f"parity: error: {line}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("killed", "the candidate's process was killed by signal 9 (out of memory?)"),
        ("leaving", "the candidate's process ended with status 3"),
        ("broken", "the candidate failed: ZeroDivisionError: division by zero (somebodys.py:11)"),
    ],
)
def test_a_process_that_ends_early_is_told(name: str, words: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "somebodys.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    task = partial(child.answer, GOLDEN, f"somebodys:{name}", "auto", precision="fp64", device="cpu")
    with pytest.raises(CandidateError) as caught:
        child.in_child(task, quiet=True)
    assert str(caught.value) == words


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_child(kind: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(WRONG)
    line = [sys.executable, "-m", "parity", *arguments(tmp_path / "out", "--candidate", "somebodys:waiting")]
    environment = {**os.environ, "PYTHONPATH": str(Path(command.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    folder = next(Path(said.strip()) for said in process.stderr if said.startswith("/"))
    assert (folder / "here").exists()
    process.send_signal(kind)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == "parity: interrupted; nothing was written\n"
    assert not folder.exists()  # the child tidied up before the first process ended
    assert not (tmp_path / "out").exists()


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of a command that ends with 2."""
    try:
        status = command.main(list(options))
    except SystemExit as exited:
        status = int(exited.code or 0)
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith(("[", "  "))]
    assert status == 2
    assert len(lines) == 1, said.err
    assert "error: " in lines[0]
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "fp8"], "--precision: 'fp8' is unknown; known: "),
        (["--methods", "lime"], "method 'lime' is unknown"),
        (["--methods", "smoothgrad@captum"], "method 'smoothgrad@captum' is unknown"),
        (["--samples", "9"], "--samples 9: the reference artifact was made with 4"),
        (["--samples", "0"], "--samples: '0': give a number from 1"),
        (["--noise", "0.5"], "--noise 0.5: the reference artifact was made with 0.2"),
        (["--seed", "3"], "--seed 3: the reference artifact was made with 0"),
        (["--channels", "7"], "--channels 7: the reference artifact was made with 8; leave it out, or make another"),
        (["--methods", "scorecam"], "--methods: the reference artifact does not hold scorecam"),
        (["--input", "torchvision"], "made with caffe"),
        (["--classes", "1,2"], "--classes: the reference artifact explains 4, 7"),
        (["--classes", "1,2,3"], "classes"),
        (["--resize", "half"], "invalid choice"),
        (["--candidate", "nowhere_at_all:x", "--precision", "fp64"], "No module named 'nowhere_at_all'"),
        (["--candidate", "nowhere.safetensors", "--precision", "fp64"], "nowhere.safetensors"),
        (["--reference", "nowhere.safetensors"], "artifact 'nowhere.safetensors': No such file"),
        (["--reference", __file__], "test_parity.py': damaged, or not an artifact"),
        (["no-such-photograph.png"], "no-such-photograph.png"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    options: list[str], words: str, tmp_path: Path, in_process: None, capsys: Any
) -> None:
    line = refused(capsys, *arguments(tmp_path / "out"), *options)
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["nowhere_at_all:x", "nowhere.safetensors", "json:x", __file__])
def test_a_wrong_candidate_is_told_before_the_reference_is_computed(
    named: str, tmp_path: Path, in_process: None, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(command, "_make_reference", lambda *_: pytest.fail("the reference was computed"))
    line = refused(capsys, "--weights", "seeded:0", "--candidate", named, "--out", str(tmp_path / "out"))
    assert "candidate" in line or "artifact" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda(tmp_path: Path, in_process: None, capsys: Any) -> None:
    line = refused(capsys, *arguments(tmp_path / "out"), "--device", "cuda", "--precision", "fp32")
    assert "cuda" in line.lower()


def test_without_tensorflow(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    # Whether the others are installed here must not matter.
    monkeypatch.setattr(reference.util, "find_spec", lambda name, *_: None if name == "tensorflow" else object())
    line = refused(capsys, "--out", str(tmp_path / "out"))
    assert "the reference needs tensorflow: pip install 'attention-maps[keras]'" in line
    assert "--reference" in line


def test_the_folder_is_not_touched_before_everything_is_there(
    tmp_path: Path, in_process: None, capsys: Any, monkeypatch: Any
) -> None:
    from parity import page

    monkeypatch.setattr(page, "render", lambda report: 1 / 0)
    assert command.main(arguments(tmp_path / "out", "--precision", "fp64", "--methods", "gradcam")) == 2
    assert not (tmp_path / "out").exists()
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err
    (tmp_path / "a file").write_text("mine")
    assert "is not a folder" in refused(capsys, *arguments(tmp_path / "a file"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "report.json").write_text('{"format": "another program"}')
    assert "not ours" in refused(capsys, *arguments(tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "report.json").read_text() == '{"format": "another program"}'


def test_another_reading_of_photographs_ends_the_command_with_1(
    tmp_path: Path, in_process: None, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(framing, "resized", lambda image, size, resize: image.resize(size[::-1], Resampling.BILINEAR))
    photographs = [str(sample.path()) for sample in SAMPLES[:2]]
    more = ["--precision", "fp64", "--methods", "gradcam"]
    assert command.main([*photographs, *arguments(tmp_path / "out", *more)]) == 1
    said = capsys.readouterr().out
    assert "pixels: chelsea.png: " in said
    assert "resized with bilinear" in said


def without_times(text: str) -> Any:
    report = json.loads(text)
    for side in (report["reference"], *report["candidate"].values()):
        side["seconds"] = None
    return report


def test_two_runs_say_the_same(tmp_path: Path, in_process: None, capsys: Any) -> None:
    texts = []
    for name in ("one", "two"):
        out = tmp_path / name
        assert command.main(arguments(out)) == 0
        assert "Verdict: the same function (fp64); the same up to rounding (fp32)" in capsys.readouterr().out
        assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.json"]
        texts.append((out / "report.json").read_text())
    first, second = map(without_times, texts)
    assert first == second
    assert first["holds"] is True
    assert len(first["verdicts"]) == 10
    assert {row["what"] for row in first["context"]} == {"another seed", "another class", "random weights"}
    assert {row["method"] for row in first["conditioning"]} == set(DEFAULT)


def test_an_artifact_as_candidate(tmp_path: Path, ported: Artifact, capsys: Any) -> None:
    ported.write(tmp_path / "theirs")
    assert command.main(arguments(tmp_path / "out", "--candidate", str(tmp_path / "theirs"), "--quiet")) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("Verdict: the same function (fp64)\n", "")
    wrong = with_array(ported, "fp64/gradcam/raw", lambda a: np.multiply(a, 1.1, out=a))
    wrong.write(tmp_path / "wrong")
    assert command.main(arguments(tmp_path / "out", "--candidate", str(tmp_path / "wrong"), "--quiet")) == 1
    assert capsys.readouterr().out == "Verdict: different\n"


@pytest.mark.parametrize("name", ["tiny", "family"])
def test_the_ladder_ends_at_the_reference(name: str, tmp_path: Path, in_process: None) -> None:
    reference = GOLDEN.with_name(f"{name}.safetensors")
    options = ["--reference", str(reference), "--device", "cpu", "--out", str(tmp_path / "out"), "--quiet"]
    assert command.main([*options, "--precision", "fp32"]) == 0
    ladder = json.loads((tmp_path / "out" / "report.json").read_text())["ladder"]
    methods = Artifact.read(reference).settings.methods
    assert {rung["method"] for rung in ladder} == set(methods) - {"faster_scorecam"}  # no library draws that one
    for method in dict.fromkeys(rung["method"] for rung in ladder):
        rungs = [rung for rung in ladder if rung["method"] == method]
        assert min(rungs[-1]["pearson"]) > 0.99999, rungs[-1]
        assert rungs[-1]["what"].endswith("(the port)")
        assert min(rungs[0]["pearson"]) < 0.999


# The reference made now, by a stand-in for `python -m keras_ref`


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, golden: Artifact) -> list[list[str]]:
    """What the reference is started with, which it takes; it answers with the golden artifact."""
    started: list[list[str]] = []

    def run(module: str, given: list[str], *, quiet: bool = False) -> None:
        started.append([module, *given])
        options = keras_ref.__main__._parser().parse_args(given)
        keras_ref.__main__._check(options)
        golden.write(options.out)

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "check_installed", lambda: None)
    return started


def test_the_reference_is_made_of_what_the_user_asked(
    tmp_path: Path, stand_in: list[list[str]], in_process: None, golden: Artifact, capsys: Any
) -> None:
    assert golden.network is not None
    write(golden.network, tmp_path / "tiny.safetensors")
    photographs = [str(sample.path()) for sample in SAMPLES[:2]]
    options = ["--weights", str(tmp_path / "tiny.safetensors"), "--classes", "4,7", "--methods", "gradcam++,gradcam"]
    out = tmp_path / "out"
    more = ["--seed", "0", "--precision", "fp64", "--no-ladder", "--out", str(out)]
    assert command.main([*options, *more, *photographs]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["reference.safetensors", "report.html", "report.json"]
    assert Artifact.read(out / "reference.safetensors").weights.fingerprint == golden.weights.fingerprint
    (given,) = stand_in
    assert given[:2] == ["keras_ref", "--floor"]
    assert {"--classes=4,7", "--methods=gradcam,gradcam_plus_plus", "--samples=4", "--seed=0", "--resize=lab"} <= set(
        given
    )
    assert not any(option.startswith(("--noise", "--input", "--pixels")) for option in given)
    assert given[-3:] == ["--", *photographs]
    report = json.loads((out / "report.json").read_text())
    assert [row["differing"] for row in report["pixels"]] == [0, 0]


def test_pixels_that_keras_would_not_read_go_to_both_sides(
    tmp_path: Path, stand_in: list[list[str]], golden: Artifact
) -> None:
    options = command.parser().parse_args(["--weights", "seeded:0", "--resize", "torchvision", "--out", "x"])
    rows = command._make_reference(options, tmp_path, tmp_path / "reference")
    (given,) = stand_in
    assert f"--pixels={tmp_path / 'pixels.npz'}" in given
    with np.load(tmp_path / "pixels.npz") as file:
        assert file["pixels"].shape == (4, 224, 224, 3)
    assert [(row.judged, row.within) for row in rows] == [(False, True)] * 4


def test_a_wrong_number_of_classes_is_told_before_work(tmp_path: Path, stand_in: list[list[str]], capsys: Any) -> None:
    line = refused(capsys, "--classes", "1,2", "--out", str(tmp_path / "out"))
    assert "2 classes for 4 photographs" in line
    assert not stand_in


def test_what_the_reference_refuses_is_the_commands_one_line(
    tmp_path: Path, stand_in: list[list[str]], monkeypatch: Any, capsys: Any
) -> None:
    def refuse(module: str, given: list[str], *, quiet: bool = False) -> None:
        raise ProcessError("scorecam: no: do otherwise")

    monkeypatch.setattr(command, "run", refuse)
    line = refused(capsys, "--weights", "seeded:0", "--quiet", "--out", str(tmp_path / "out"))
    assert line == "parity: error: scorecam: no: do otherwise"
    assert not (tmp_path / "out").exists()


REFERENCE = """
import sys
print("photograph 1 of 2", file=sys.stderr)
if sys.argv[1] == "refuse":
    print("keras_ref: error: no such thing: look elsewhere", file=sys.stderr)
sys.exit({"refuse": 2, "interrupt": 130, "break": 7}.get(sys.argv[1], 0))
"""


def test_the_references_words_are_ours(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "pretended.py").write_text(REFERENCE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reference.run("pretended", ["work"])
    assert capsys.readouterr().err == "  photograph 1 of 2\n"
    with pytest.raises(ProcessError, match=r"^no such thing: look elsewhere$"):
        reference.run("pretended", ["refuse"])
    with pytest.raises(ProcessError, match=r"^photograph 1 of 2$"):
        reference.run("pretended", ["break"], quiet=True)
    assert capsys.readouterr().err == "  photograph 1 of 2\n"
    with pytest.raises(KeyboardInterrupt):
        reference.run("pretended", ["interrupt"], quiet=True)
