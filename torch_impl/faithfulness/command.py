"""The command `faithfulness`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from parity.contract.command import DONE, integer, listed, map_options, methods, options_of
from parity.contract.methods import DEFAULT
from parity.contract.text import printable
from torch_impl import options
from torch_impl.faithfulness.removals import RANDOM_LAYERS, Removals


def register(commands: Any) -> None:
    """Add the command to a command line; `commands` is what `add_subparsers` gave."""
    command = commands.add_parser(
        "faithfulness",
        help="measure how far maps agree with the network",
        description="Take away what maps point at, and ask the network again: confidence drop and increase, ROAD, deletion, "
        "random layers; beside maps that know nothing (random, centre, edges), and pair by pair.",
        epilog="Exit status: 0 done; 2 nothing written, one line says why; 3 some photographs were left out (--skip-bad); "
        "130 interrupted.",
    )
    add = command.add_argument
    add("photographs", nargs="*", metavar="PHOTO|FOLDER", help="as of explain; none: the four that the libraries bring")
    add("--classes", type=listed, metavar="CLASS[,CLASS…]|folder", help="as of explain; default: the top-1")
    add("--methods", type=methods(), metavar="METHOD[,METHOD…]", default=DEFAULT, help=f"default: {','.join(DEFAULT)}")
    options.network_options(command)
    map_options(command)
    usual = ",".join(f"{share:.0%}".removesuffix("%") for share in Removals.shares)
    shares = f"percent of the pixels that ROAD takes away ({usual}; pytorch-grad-cam's: 10,20,…,90)"
    add("--shares", type=_shares, default=Removals.shares, metavar="P[,P…]", help=shares)
    steps = "in which deletion takes all away (%(default)s)"
    add("--steps", type=integer(1, 1000), default=Removals.steps, metavar="N", help=steps)
    stages = "networks with random layers, from the top one alone to all (%(default)s; 0: none)"
    add("--random", type=integer(0, 1000), default=RANDOM_LAYERS, metavar="N", help=stages)
    add("--skip-bad", action="store_true", help="leave out photographs that cannot be read")
    add("--overwrite", action="store_true", help="write into a folder that holds other files, too")
    add("--quiet", action="store_true", help="print errors only")
    add("--out", required=True, metavar="DIR", help="folder for the tables; an earlier result in it is replaced")
    command.set_defaults(run=_faithfulness)


def _shares(text: str) -> tuple[float, ...]:
    """The type of `--shares`: percentages as fractions."""
    percent = integer(1, 99)
    return tuple(percent(item) / 100 for item in listed(text))


def _faithfulness(arguments: argparse.Namespace) -> int:
    from torch_impl import question, several
    from torch_impl.faithfulness.measure import cost
    from torch_impl.output import check_output
    from torch_impl.progress import Progress

    removals = Removals(arguments.shares, arguments.steps, arguments.seed)
    check_output(arguments.out, overwrite=arguments.overwrite)
    progress = Progress(quiet=arguments.quiet)
    try:
        explainer, photographs, classes, refused = options.asked_of(arguments)
        several.check_one(explainer)
        if not arguments.quiet:
            said = cost(len(photographs), len(arguments.methods), removals, arguments.random)
            print(f"attention-maps: {said}", file=sys.stderr, flush=True)
        map_settings = vars(options_of(arguments))
        with question.said_of_folders(arguments.classes):
            maps = explainer(photographs, classes, arguments.methods, **map_settings, progress=progress)
        result = maps.faithfulness(
            shares=removals.shares,
            steps=removals.steps,
            stages=arguments.random,
            seed=removals.seed,
            progress=progress,
        )
    finally:
        progress.close()
    written = result.save(arguments.out, overwrite=arguments.overwrite)
    if not arguments.quiet:
        print(result.as_table())
        for path in written:
            print(f"wrote     {printable(str(path))}")
    for error in refused:
        print(f"attention-maps: left out: {error}", file=sys.stderr)
    return options.IN_PART if refused else DONE
