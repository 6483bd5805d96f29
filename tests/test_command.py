"""What the command lines share: how they end, and what their arguments may be."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_program

from parity.contract import command
from parity.contract.network import WeightsError


def raising(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no such class"), 2, "p: error: no such class"),
        (WeightsError("a\x1b[31m: damaged"), 2, "p: error: a\\x1b[31m: damaged"),
        (OSError(28, "No space left", "/x\ny"), 2, r"p: error: '/x\ny': No space left; nothing was written"),
        (MemoryError(), 2, "p: error: out of memory: give fewer"),
        (KeyboardInterrupt(), 130, "p: interrupted; nothing was written"),
        (KeyError("x"), 2, "p: error: internal error: KeyError: 'x' (a defect of this program: please report it with "
         "the output of ATTENTION_MAPS_TRACEBACK=1)"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bad"), 2, "internal error: UnicodeDecodeError"),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_one_line(error: BaseException, status: int, line: str, capsys: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert command.run(raising(error), "p", memory="give fewer") == status
    said = capsys.readouterr()
    assert said.out == ""
    assert line in said.err
    assert len(said.err.splitlines()) == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_traceback_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command.TRACEBACK, "1")
    with pytest.raises(KeyError):
        command.run(raising(KeyError("x")), "p")
    assert command.run(raising(KeyboardInterrupt()), "p") == 130


def test_the_status_is_the_bodys() -> None:
    assert command.run(lambda: 3, "p") == 3


PROGRAM = "import sys, time; from parity.contract.command import run; sys.exit(run(lambda: {}, 'p'))"


def test_in_a_thread(capsys: Any) -> None:
    """Where no signal may be set: a server, a window."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(command.run, lambda: 3, "p").result() == 3
        assert pool.submit(command.run, raising(ValueError("no such class")), "p").result() == 2
    assert capsys.readouterr().err == "p: error: no such class\n"


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    line = (
        f'{sys.executable} -c "{PROGRAM.format("print(9 * 10**6 * str(0)) or 0")}" | head -c 1; exit ${{PIPESTATUS[0]}}'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (2, "")


def test_a_terminal_of_another_encoding(tmp_path: Path) -> None:
    done = run_program("-c", PROGRAM.format("print('σ') or 0"), cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "\\u03c3\n")


def test_sigterm_is_an_interrupt(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM.format("print(1, flush=True) or time.sleep(60) or 0")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "p: interrupted; nothing was written\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("parse", "texts", "words"),
    [
        (command.integer(1, 9), ("0", "10", "-1", "x", "1.5", "²", "1" * 5000), "give a number from 1 to 9"),
        (command.integer(1), ("0",), "give a number, 1 or more"),
        (command.auto_or(command.integer(0, 9)), ("10", "Auto"), "give auto, or a number from 0 to 9"),
        (command.noise_level, ("-0.1", "nan", "inf", "x"), "0 or more, such as 0.2"),
        (command.listed, ("", "a,,b", "a,"), "an item is empty"),
        (command.methods(("vanilla",)), ("gradcam",), "'gradcam' is unknown (known: vanilla)"),
    ],
)
def test_arguments_that_are_refused(parse: Callable[[str], Any], texts: tuple[str, ...], words: str) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            parse(text)
        assert words in str(caught.value)


def test_the_maps_options(capsys: Any) -> None:
    parser = command.Parser(prog="p")
    command.map_options(parser, n_samples=4)
    assert vars(parser.parse_args([])) == {"samples": 4, "noise": 0.2, "seed": 0, "channels": None}
    asked = parser.parse_args(["--samples", "1", "--noise", "0", "--seed", "4294967295", "--channels", "5"])
    assert vars(asked) == {"samples": 1, "noise": 0.0, "seed": 4294967295, "channels": 5}
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--seed", "4294967296"])
    assert (
        capsys.readouterr().err
        == "p: error: argument --seed: '4294967296': give a number from 0 to 4294967295; see p --help\n"
    )
    unset = command.Parser()
    command.map_options(unset, unset=True)
    assert set(vars(unset.parse_args([])).values()) == {None}
