"""What cannot be compared: one line that says what and what to do, exit status 2, nothing written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, ROOT, run_program
from safetensors.numpy import save_file
from table_blocks import of

from parity import child
from parity.__main__ import main
from parity.candidate import CandidateError
from parity.contract.artifact import Artifact
from parity.contract.network import EXPORT


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.safetensors"
    of("plain")[1].write(path)
    return path


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process of its own for each candidate, whose start takes seconds."""

    def direct(task: Any, *, quiet: bool = False) -> Any:
        try:
            return task()
        except Exception as error:
            raise CandidateError(child.words(error)) from error

    monkeypatch.setattr(child, "in_child", direct)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status, and the one line on standard error."""
    capsys.readouterr()
    quiet = [] if arguments[0] in ("match", "transfer") else ["--quiet"]
    try:
        status = main([*map(str, arguments), *quiet])
    except SystemExit as ended:
        status = int(ended.code or 0)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return status, error


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *arguments: object) -> None:
    """Exit status 2, and one line that has these words."""
    status, error = said(capsys, *arguments)
    assert (status, error.count("\n")) == (2, 1), error
    assert all(word in error for word in words), error


def here(name: str) -> str:
    return f"twin_modules:{name}"


REFUSED = {
    "another_size": ["fails on the reference's inputs (1, 3, 20, 20)", "shapes"],
    "grey": ["fails on the reference's inputs (1, 3, 20, 20)", "channels"],
    "fewer_classes": ["gives 4 logits", "reference's network 6"],
    "not_numbers": ["not finite", "NaN"],
    "two_of_a_tuple": ["a tuple of 2", "not logits"],
    "a_dict_of_others": ["a dict of left, right", "not logits"],
    "no_tensor": ["str", "not logits"],
    "raises": ["KeyError", "heads"],
    "stranger": ["no module gives the values of the target layer plain_2", "--target-layer", "layers.toml"],
    "no_module": ["gave str", "nn.Module"],
    "fails": ["FileNotFoundError", "weights.pth is not here"],
    "missing_name": ["missing_name"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_cannot_be_compared(name, reference, tmp_path, capsys):
    refused(capsys, REFUSED[name], "--reference", reference, "--torch", here(name), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["one_of_a_tuple", "a_dict"])
def test_logits_inside_a_tuple_or_dict_are_found(name, reference, tmp_path, capsys):
    status, _ = said(capsys, "--reference", reference, "--torch", here(name), "--out", tmp_path / "out")
    assert status == 0


def test_the_three_exit_statuses_and_what_is_printed(reference, tmp_path, capsys):
    options = ("--reference", reference, "--out", tmp_path / "out")
    assert main([*map(str, options), "--torch", here("right")]) == 0
    assert "weights paired" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*map(str, options), "--torch", here("wrong")]) == 1
    printed = capsys.readouterr().out
    assert "parts first at activations/stem_bn" in printed
    assert "epsilon: 1e-05 in the port, 0.001 in the reference" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--torch", "no_such_package:build"], ["--torch", "no_such_package"]),
        (["--torch", "right"], ["--torch"]),
        (["--torch", here("right"), "--preprocess", here("twice_as_large")], ["(40, 40)", "(20, 20)"]),
        (["--torch", here("right"), "--preprocess", here("integers")], ["uint8", "floats (N, C, H, W)"]),
        (["--torch", here("right"), "--preprocess", here("broken")], ["OSError", "no mean.npy"]),
        (["--torch", here("right"), "--preprocess", here("nothing")], ["nothing"]),
        (["--torch", here("right"), "--target-layer", "conv9"], ["conv9"]),
        (["--torch", here("right"), "--candidate", here("right")], ["give one"]),
        (["--layers", "layers.toml"], ["--layers goes with --torch"]),
        (["--torch", here("right"), "--methods", "scorecam"], ["does not hold scorecam"]),
    ],
)
def test_options_that_cannot_be_followed(options, words, reference, tmp_path, capsys):
    refused(capsys, words, "--reference", reference, "--out", tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[layers]\n"plain_9" = "plain_1_0"\n', ["no layer 'plain_9'", "parity match"]),
        ('[layers]\n"plain_1" = "conv9"\n', ["no module 'conv9'", "parity match"]),
        ('"plain_1" = "conv9"\n', ["no module 'conv9'"]),
        ("[layers]\nplain_1 = 3\n", ["layers.toml", '"layer" = "module"']),
        ("[layers\n", ["layers.toml", "not TOML"]),
        (None, ["layers.toml", "No such file"]),
    ],
)
def test_a_layers_file_that_is_wrong(text, words, reference, tmp_path, capsys):
    file = tmp_path / "layers.toml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    options = ("--torch", here("right"), "--layers", file, "--out", tmp_path / "out")
    refused(capsys, words, "--reference", reference, *options)


def test_references_that_cannot_be_used(reference, tmp_path, capsys):
    whole = Artifact.read(reference)
    single = replace(whole, arrays={name: a for name, a in whole.arrays.items() if not name.startswith("fp64/")})
    single.write(tmp_path / "single.safetensors")
    for path, words in (
        (tmp_path / "single.safetensors", "no float64"),
        (GOLDEN, "known by name"),
        (tmp_path / "none.safetensors", "No such file"),
    ):
        for command in ((), ("match",)):
            out = tmp_path / ("layers.toml" if command else "out")
            refused(capsys, [words], *command, "--reference", path, "--torch", here("right"), "--out", out)
            assert not out.exists()
    refused(capsys, ["give --reference"], "--torch", here("right"), "--out", tmp_path / "out")


def test_match_writes_what_can_be_given_back(reference, tmp_path, capsys):
    file = tmp_path / "layers.toml"
    assert main(["match", "--reference", str(reference), "--torch", here("right"), "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "weights paired: 11 of 11" in printed
    assert f"wrote {file}" in printed
    given = ("--reference", reference, "--torch", here("right"), "--layers", file, "--out", tmp_path / "out")
    assert said(capsys, *given)[0] == 0


@pytest.mark.parametrize(
    ("name", "out", "status", "words"),
    [
        ("untrained", "twin.safetensors", 0, ["5 layers filled in 1 forward pass", "wrote"]),
        ("untrained", "twin.pth", 0, ["num_batches_tracked"]),
        ("untrained", "twin.npz", 2, [".safetensors, .pth"]),
        ("untrained", "none/twin.pth", 2, ["a folder that exists"]),
        ("stranger", "twin.pth", 1, ["stopped at the first layer", "0 of 5 layers"]),
        ("fewer_classes", "twin.pth", 1, ["4 logits", "6"]),
        ("two_of_a_tuple", "twin.pth", 2, ["tuple"]),
        ("raises", "twin.pth", 2, ["KeyError"]),
        ("fails", "twin.pth", 2, ["FileNotFoundError"]),
        ("grey", "twin.pth", 1, ["stopped at the first layer"]),
        ("another_size", "twin.pth", 1, ["stopped at the first layer"]),
    ],
)
def test_the_transfer_command(name, out, status, words, reference, tmp_path, capsys):
    builder, artifact = of("plain")
    weights = tmp_path / "weights.safetensors"
    save_file(builder.tensors, weights, {"format": EXPORT, "fingerprint": artifact.weights.fingerprint})
    path = tmp_path / out
    given = ["--reference", reference, "--weights", weights, "--torch", here(name), "--out", path]
    capsys.readouterr()
    assert main(["transfer", *map(str, given)]) == status
    printed = capsys.readouterr()
    text = printed.err if status == 2 else printed.out
    assert status == 0 or text.count("\n") == 1, text
    assert all(word in text for word in words), text
    assert path.exists() == (status == 0)


def test_it_is_so_in_a_process_of_its_own_too(reference, tmp_path):
    given = ["--reference", reference, "--torch", here("wrong"), "--precision", "fp64", "--out", "out"]
    paths = f"{ROOT}:{ROOT / 'tests'}"
    done = run_program("-m", "parity", *map(str, given), cwd=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 1, done.stderr
    assert "parts first at activations/stem_bn" in done.stdout
