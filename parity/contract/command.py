"""What every command line here shares: errors of one line, exit statuses, signals, and the types of arguments."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

from parity.contract.methods import FASTER_CHANNELS, METHODS, Options, canonical_names
from parity.contract.text import one_line, printable

DONE, FAILED, INTERRUPTED = 0, 2, 130
"""Exit statuses: done; anything that prevented an answer; Ctrl-C or SIGTERM."""

PACKAGES = ("torch_impl", "keras_ref", "parity", "benchmarks")
"""Whose own exceptions are words for the user."""

TRACEBACK = "ATTENTION_MAPS_TRACEBACK"
"""The environment variable that shows where an error comes from."""

Value = TypeVar("Value")


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and end with status 2."""
        self.exit(FAILED, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def run(body: Callable[[], int], program: str, *, memory: str = "close other programs") -> int:
    """Do what a command is for; whatever goes wrong becomes one line on stderr and an exit status.

    A refusal of ours is a `ValueError` itself, or an exception that one of our packages defines: its words are for the
    user. Any other exception is a defect of the program, and says so. With `ATTENTION_MAPS_TRACEBACK=1` it is raised.

    Args:
        body: returns the exit status.
        program: whose words they are: `attention-maps`, `keras_ref`, `parity`.
        memory: what to do where memory ran out.

    Returns:
        The exit status: `body`'s, `FAILED` or `INTERRUPTED`.
    """
    for stream in (sys.stdout, sys.stderr):  # a label or a file name must not fail on a terminal of another encoding
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminated_like_interrupted():
            status = body()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        print(f"{program}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        for line in _words(error, memory).splitlines():
            print(f"{program}: error: {printable(line)}", file=sys.stderr)
        return FAILED


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C: `finally` blocks run, children end, no temporary file stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _words(error: Exception, memory: str) -> str:
    """What a user is told of an error."""
    ours = type(error).__module__.partition(".")[0] in PACKAGES
    if ours or type(error) is ValueError:
        return str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {memory}"
    if isinstance(error, OSError):
        where = f"{ascii(os.fspath(error.filename))}: " if error.filename else ""
        return f"{where}{error.strerror or one_line(error)}; nothing was written"
    said = f"{type(error).__name__}: {one_line(error)}"
    return f"internal error: {said} (a defect of this program: please report it with the output of {TRACEBACK}=1)"


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least `low`, and at most `high`."""
    wanted = f"a number, {low} or more" if high is None else f"a number from {low} to {high}"

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r}: give {wanted}")
        return value

    return parse


def auto_or(parse: Callable[[str], Value]) -> Callable[[str], Value | str]:
    """The type of an argument that is the word `auto`, or what another type takes."""

    def either(text: str) -> Value | str:
        try:
            return text if text == "auto" else parse(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(str(error).replace(": give ", ": give auto, or ", 1)) from None

    return either


def noise_level(text: str) -> float:
    """The type of `--noise`: SmoothGrad's σ, a fraction of the image's range."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a fraction of the image's range, 0 or more, such as 0.2")
    return value


def listed(text: str) -> list[str]:
    """The type of an argument that is several, commas between them."""
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise argparse.ArgumentTypeError(f"{text!r}: an item is empty; separate with single commas")
    return items


def methods(among: Sequence[str] = tuple(METHODS)) -> Callable[[str], tuple[str, ...]]:
    """The type of `--methods`: names of these methods in any spelling, each once, in the order given."""

    def parse(text: str) -> tuple[str, ...]:
        try:
            return canonical_names(listed(text), among)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def map_options(parser: argparse.ArgumentParser, *, n_samples: int = Options().n_samples, unset: bool = False) -> None:
    """Add `--samples`, `--noise`, `--seed` and `--channels`.

    Args:
        parser: of a command.
        n_samples: where none are asked for.
        unset: None where none is asked for, for a command that must know the difference.
    """
    usual = Options(n_samples)
    options: tuple[tuple[str, Callable[[str], float], float, str, str], ...] = (
        ("--samples", integer(1, 100_000), usual.n_samples, "N", "SmoothGrad's noisy copies"),
        ("--noise", noise_level, usual.noise_level, "F", "SmoothGrad's σ, a fraction of the image's range"),
        ("--seed", integer(0, 2**32 - 1), usual.seed, "N", "of SmoothGrad's noise"),
    )
    for name, parse, value, metavar, words in options:
        default = None if unset else value
        parser.add_argument(name, type=parse, default=default, metavar=metavar, help=f"{words} ({value})")
    words = f"feature maps that faster_scorecam takes ({FASTER_CHANNELS}, or all where there are fewer)"
    parser.add_argument("--channels", type=integer(1, 100_000), metavar="M", help=words)


def options_of(arguments: argparse.Namespace) -> Options:
    """What `map_options` added, as it was given."""
    return Options(arguments.samples, arguments.noise, arguments.seed, arguments.channels)
