"""Speed and memory of the maps against what one would write instead: the same photographs, weights and classes, in one run.

Whole calls are timed, from decoded photographs to maps on the host. Contenders alternate (A B C A B C …), so that a machine
whose speed drifts slows them alike. On a CPU each runs in a fresh process; on CUDA those of one number format share one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import commands, large, on_gpu
from benchmarks.contenders import CONTENDERS, GROUPS, JOBS
from parity.contract.command import DONE, Parser, integer, listed, run
from parity.contract.methods import REFERENCE
from parity.contract.stages import PRECISIONS

PROGRAM = "benchmarks"

Value = TypeVar("Value")

OTHER_MAPS = 1
"""Exit status: a contender that claims the reference's maps draws others; or a part of `on-gpu` failed."""

COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], commands.Outcome], str]] = {
    "speed": (commands.speed, "--weights --rounds --samples --precision --photographs --contenders --jobs --long"),
    "precision": (commands.precision, "--weights --rounds --samples --precision"),
    "cost": (commands.cost, "--weights --rounds --plot"),
    "passes": (commands.passes, "--weights --precision --photographs"),
    "convolutions": (commands.convolutions, "--weights --precision --photographs"),
    "large": (large.large, "what --photographs"),
    "on-gpu": (on_gpu.on_gpu, "--weights --out --reference --minutes"),
}
"""Name → what it does, in the first line of its docstring, and its options beside those that all have."""


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without a command: speed. Exit status: 0 measured; 1 a map is not what it claims to be, or a part of on-gpu "
        "failed; 2 not measured, one line says why; 130 interrupted.",
    )
    options = _options()
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (body, own) in COMMANDS.items():
        words = (body.__doc__ or "").partition("\n")[0]
        command = subparsers.add_parser(name, help=words, description=words)
        command.set_defaults(run=body)
        for option in ("--device", "--json", *own.split()):
            command.add_argument(option, **options[option])
    return top


def _options() -> dict[str, dict[str, Any]]:
    """Every option, as `add_argument` takes it."""
    count = {"type": integer(1), "metavar": "N"}
    names = ",".join(CONTENDERS)
    return {
        "--device": {"default": "cpu", "help": "cpu (default), cuda, cuda:1, auto; on CUDA without TensorFlow"},
        "--weights": {"default": "offline", "help": "offline (default), offline-random:N, or a canonical file"},
        "--json": {"type": Path, "metavar": "FILE", "help": "write every single figure here"},
        "what": {"choices": tuple(large.WHAT)},
        "--rounds": {**count, "default": 3, "help": "counted runs (%(default)s)"},
        "--samples": {**count, "default": 20, "help": "SmoothGrad's noisy copies (%(default)s)"},
        "--precision": {
            "type": _several(_one_of(PRECISIONS)),
            "metavar": "P[,P…]",
            "help": "default: fp32 (speed on CUDA: fp32,tf32; precision, passes: all)",
        },
        "--photographs": {"type": _several(integer(1)), "metavar": "N[,N…]", "help": "in one call; speed: 1,4,16"},
        "--contenders": {
            "type": _several(_one_of(CONTENDERS)),
            "metavar": "NAME[,NAME…]",
            "help": f"of {names}; default: all here",
        },
        "--jobs": {
            "type": _several(_one_of((*GROUPS, *REFERENCE))),
            "metavar": "JOB[,JOB…]",
            "help": f"default: {','.join(JOBS)}",
        },
        "--long": {"action": "store_true", "help": "SmoothGrad of more than 4 photographs, too: minutes more on a CPU"},
        "--plot": {"type": Path, "metavar": "FILE", "help": "draw it here (.svg, .png)"},
        "--out": {"type": Path, "metavar": "FILE", "required": True, "help": "Markdown, written as it is measured"},
        "--reference": {"type": Path, "metavar": "ARTIFACT", "help": "of keras_ref --floor; default: no parity"},
        "--minutes": {**count, "default": 7, "help": "after which what is left is left out (%(default)s)"},
    }


def _several(parse: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """The type of an argument that is several, commas between them, each once."""
    return lambda text: list(dict.fromkeys(parse(item) for item in listed(text)))


def _one_of(known: Iterable[str]) -> Callable[[str], str]:
    """The type of an argument that is one of these names."""

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown; known: {', '.join(known)}")
        return text

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark.

    Args:
        argv: without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "speed")

    def body() -> int:
        options = parser().parse_args(given)
        outcome = options.run(options)
        print(outcome.text)
        if options.json:
            said = {name: str(value) for name, value in vars(options).items() if name != "run"}
            about = {"about": commands.about(commands.device_of(options.device)[0]), "options": said}
            options.json.write_text(json.dumps({**about, **outcome.data}, indent=1), encoding="utf-8")
        return DONE if outcome.good else OTHER_MAPS

    return run(body, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
