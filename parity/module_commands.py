"""The commands about a PyTorch module and a Keras model: `python -m parity match`, and `transfer`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parity.candidate import CandidateError
from parity.contract import command
from parity.contract.files import whole

if TYPE_CHECKING:
    from parity.twins import Module

HOLDS, DIFFERS = 0, 1

SUFFIXES = (".safetensors", ".pth", ".pt")


def module_options(parser: command.Parser) -> None:
    """Add `--torch` and what belongs to it."""
    add = parser.add_argument
    add("--torch", metavar="MODULE:NAME", help="a callable that gives the nn.Module, or the module")
    add("--layers", metavar="FILE.toml", help="how its layers pair, as `parity match` writes it, corrected by hand")
    add("--target-layer", metavar="MODULE", help="its target layer; default: found by pairing")
    words = "its own preprocessing, uint8 (N, H, W, 3) → (N, C, H, W); default: it is given the reference's inputs"
    add("--preprocess", metavar="MODULE:NAME", help=words)


def module_of(options: argparse.Namespace) -> Module:
    """The module that the options name.

    Raises:
        CandidateError: `--layers` cannot be read.
    """
    from parity.twins import Module, read_layers

    layers = read_layers(options.layers) if options.layers else {}
    return Module(options.torch, layers, options.target_layer or "", options.preprocess or "")


def match(options: argparse.Namespace) -> int:
    """Print how the layers pair, and write it down."""
    from parity.child import in_child
    from parity.twins import matched

    out = Path(options.out)
    _check_folder(out)
    lines, toml = in_child(partial(matched, options.reference, module_of(options)))
    with whole(out) as path:
        path.write_text(toml, encoding="utf-8")
    print("\n".join([*lines, f"wrote {out}"]))
    return HOLDS


def transfer(options: argparse.Namespace) -> int:
    """The reference's weights into an untrained module, proved; exit status 1 where they do not go into it."""
    from parity.child import in_child, transferred

    out = Path(options.out)
    if out.suffix not in SUFFIXES:
        raise CandidateError(f"--out {options.out!r}: name a file that ends in {', '.join(SUFFIXES)}")
    _check_folder(out)
    done, lines = in_child(partial(transferred, Path(options.reference), options.weights, options.torch, options.out))
    print("\n".join(lines))
    return HOLDS if done else DIFFERS


def _check_folder(out: Path) -> None:
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise CandidateError(f"--out {str(out)!r}: name a file in a folder that exists")


def parsers() -> Mapping[str, tuple[command.Parser, Callable[[argparse.Namespace], int]]]:
    """Name → its command line, and what it does."""
    pair = command.Parser(
        prog="python -m parity match",
        description="How the layers of a Keras model pair with a PyTorch module's: by weights, by values, by order.",
    )
    fill = command.Parser(
        prog="python -m parity transfer",
        description="Put a Keras model's weights into an untrained PyTorch module, during forward passes, and prove it.",
        epilog="Exit status: 0 written; 1 they do not go into it, and nothing is written; 2 it could not be tried.",
    )
    for parser in (pair, fill):
        words = "of python -m keras_ref --model … --floor"
        parser.add_argument("--reference", required=True, metavar="ARTIFACT", help=words)
    module_options(pair)
    pair.add_argument("--out", default="layers.toml", metavar="FILE.toml", help="(%(default)s)")
    words = "what keras_ref --export wrote beside the reference"
    fill.add_argument("--weights", required=True, metavar="FILE.safetensors", help=words)
    words = "a callable that gives the nn.Module, untrained"
    fill.add_argument("--torch", required=True, metavar="MODULE:NAME", help=words)
    words = "the state dict's file, .safetensors or .pth"
    fill.add_argument("--out", required=True, metavar="FILE", help=words)
    return {"match": (pair, match), "transfer": (fill, transfer)}
