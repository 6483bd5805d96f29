"""The command line `attention-maps`: the only place of the port that prints, writes and sets process-wide switches."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from parity.contract.command import (
    DONE,
    Parser,
    integer,
    listed,
    map_options,
    methods,
    options_of,
    run,
)
from parity.contract.methods import DEFAULT, LIBRARY, METHODS
from parity.contract.network import INPUTS
from parity.contract.text import printable
from torch_impl import __version__, options
from torch_impl.batch import command as batch_commands
from torch_impl.faithfulness import command as faithfulness_command

if TYPE_CHECKING:
    from torch_impl.explanation import Explanation

PROGRAM = "attention-maps"


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import torch

        device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
        print(f"{PROGRAM} {__version__} · torch {torch.__version__} · python {platform.python_version()} · {device}")
        parser.exit(DONE)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(
        prog=PROGRAM,
        description="Attention maps of a PyTorch VGG16, or of a network of your own, as tf-keras-vis draws them: vanilla "
        "saliency, SmoothGrad, Grad-CAM, Grad-CAM++, LayerCAM, Score-CAM, Faster-ScoreCAM.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the versions and the device, and exit")
    top.set_defaults(run=lambda arguments: print(top.format_help(), end=""))  # no command
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    _explain_parser(commands)
    summary = commands.add_parser(
        "summary", help="print the layer table", description="Print the network's layer table."
    )
    summary.add_argument("--weights", metavar="SOURCE", help="default: VGG16, without loading any weights")
    summary.set_defaults(run=_summary)
    _convert_parser(commands)
    faithfulness_command.register(commands)
    batch_commands.register(commands)
    return top


def _explain_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    explain = commands.add_parser(
        "explain",
        help="draw the maps of photographs",
        description="Draw attention maps of photographs: one figure a method, overview.png, maps.npz, manifest.json.",
        epilog="Exit status: 0 done; 2 nothing written, one line says why; 3 some photographs were left out "
        "(--skip-bad); 130 interrupted. A name that starts with a dash goes after --.",
    )
    add = explain.add_argument
    add(
        "photographs",
        nargs="*",
        metavar="PHOTO|FOLDER",
        help="pictures, or folders of pictures with their sub-folders; none: a cat, a cup, a camera man and a palace that "
        "scikit-image and scikit-learn bring along",
    )
    add(
        "--classes",
        type=listed,
        metavar="CLASS[,CLASS…]|folder",
        help="the class to explain, an index or a label: one for all or one for each photograph; folder: what the folder that a "
        "photograph lies in is called, an index, a label or a WordNet id; default: the top-1",
    )
    add(
        "--methods",
        type=methods(),
        metavar="METHOD[,METHOD…]",
        default=DEFAULT,
        help=f"default: {','.join(DEFAULT)} (gradcam++ is the same as gradcam_plus_plus); for comparison also "
        f"{', '.join(LIBRARY)}",
    )
    options.network_options(explain)
    map_options(explain)
    options.figure_options(explain)
    add("--skip-bad", action="store_true", help="leave out photographs that cannot be read")
    add("--overwrite", action="store_true", help="write into a folder that holds other files, too")
    add("--quiet", action="store_true", help="print errors only")
    add("--out", required=True, metavar="DIR", help="folder for the results; an earlier result in it is replaced")
    explain.set_defaults(run=_explain)


def _convert_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert weights between PyTorch and Keras",
        description="Convert VGG16 weights. The layout of IN is recognised by its content, that of OUT by its suffix: "
        ".safetensors, .pt, .pth (PyTorch), .h5, .weights.h5 (Keras).",
    )
    convert.add_argument("source", metavar="IN", help="a file, or a SOURCE as of explain --weights")
    convert.add_argument("target", metavar="OUT", help="the file to write")
    convert.add_argument("--input", choices=INPUTS, help="preprocessing to note down; default: IN's own")
    size = "of the pictures IN was trained on; default: what IN says, else 224"
    convert.add_argument("--size", type=integer(1, 10_000), metavar="PIXELS", help=size)
    convert.add_argument("--overwrite", action="store_true", help="replace OUT")
    convert.add_argument("--quiet", action="store_true", help="print errors only")
    convert.set_defaults(run=_convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    # PyTorch asks for it at its first large allocation: feature maps on large pages, which saves the CPU some 4 % of a pass
    # in page faults. Whoever has set it keeps it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    warnings.filterwarnings("ignore", module="PIL")  # a photograph's notes or error say what matters

    def body() -> int:
        arguments = parser().parse_args(argv)
        return int(arguments.run(arguments) or DONE)

    return run(body, PROGRAM, memory="give fewer photographs or a smaller --batch-size")


def _explain(arguments: argparse.Namespace) -> int:
    from torch_impl import figure, framing, question
    from torch_impl.output import check_output
    from torch_impl.progress import Progress
    from torch_impl.stock import check_narrow

    started = time.perf_counter()
    check_narrow(arguments.methods, arguments.precision)  # before the weights, which may be a long download
    figure.Style(arguments.colormap)
    earlier = check_output(arguments.out, overwrite=arguments.overwrite)
    with contextlib.closing(Progress(quiet=arguments.quiet)) as progress:
        explainer, photographs, classes, refused = options.asked_of(arguments)
        if arguments.at == "photograph" and not isinstance(explainer.preprocess, str):
            raise framing.FramingError(framing.UNKNOWN)
        with question.said_of_folders(arguments.classes):
            map_settings = vars(options_of(arguments))
            maps = explainer(photographs, classes, arguments.methods, **map_settings, progress=progress)
    if earlier and not arguments.quiet:
        print(f"{PROGRAM}: replacing the earlier result in {printable(arguments.out)}", file=sys.stderr)
    written = maps.save(arguments.out, overwrite=arguments.overwrite, **options.figures_of(arguments))
    if not arguments.quiet:
        _report(maps, written, time.perf_counter() - started)
    for error in refused:
        print(f"{PROGRAM}: left out: {error}", file=sys.stderr)
    return options.IN_PART if refused else DONE


def _report(maps: Explanation, written: list[Path], seconds: float) -> None:
    manifest = maps.manifest
    weights = manifest["weights"]
    print(f"weights   {weights['source']}" + (f" · {weights['remark']}" if weights["remark"] else ""))
    if weights["fingerprint"]:
        print(f"          fingerprint {weights['fingerprint'][:16]}")
    else:
        print(f"network   {manifest['model']}")
    layers = manifest["target_layer"]
    print(f"layer     {layers if isinstance(layers, str) else ', '.join(layers)}")
    print(f"input     {manifest['input']}" + (f", resize {manifest['resize']}" if manifest["resize"] else ""))
    device = f"{manifest['device']} ({manifest['device_name']})"
    print(f"device    {device}, {manifest['precision']}, engine {manifest['engine']}")
    photographs = manifest["photographs"]
    names = [printable(row["name"]) for row in photographs]
    width = min(40, max(map(len, [*names, *manifest["methods"]])))
    for name, row in zip(names, photographs, strict=True):
        extra = "".join(f" · {note}" for note in [*filter(None, [row.get("layer")]), *row["notes"]])
        extra += "".join(f" · {method}: constant, {reason}" for method, reason in row["constant_reasons"].items())
        value = row["logit"] if row["probability"] is None else row["probability"]
        print(
            f"{name:<{width}}  {'' if row['class'] is None else row['class']:>4} {row['label']:<24} {value:.3f}{extra}"
        )
    spent, count = manifest["seconds"], len(photographs)
    for method in manifest["methods"]:
        if method in spent:
            drawn = count if METHODS[method].overlay else count // max(1, len(set(maps.layers)))
            print(f"{method:<{width}}  {spent[method] / drawn:.2f} s a map")
    if "shared" in spent:
        together = ", ".join(method for method in manifest["methods"] if method not in spent) or "logits"
        print(f"{together}: together {spent['shared'] / count:.2f} s a photograph")
    print(f"total     {seconds:.1f} s")
    for path in written:
        print(f"wrote     {printable(str(path))}")


def _summary(arguments: argparse.Namespace) -> int:
    from parity.contract.vgg import VGG16
    from torch_impl.network import summary

    if arguments.weights is None:
        print(summary(VGG16))
        return DONE
    from torch_impl.weights import load_network

    network = load_network(arguments.weights)
    print(summary(network.table))
    print(f"weights: {network.source}, input {network.input}, fingerprint {network.fingerprint}")
    if network.remark:
        print(network.remark)
    return DONE


def _convert(arguments: argparse.Namespace) -> int:
    from torch_impl.weights import load_network, save_network

    network = load_network(arguments.source, input=arguments.input, size=arguments.size, progress=not arguments.quiet)
    save_network(network, arguments.target, overwrite=arguments.overwrite)
    if not arguments.quiet:
        print(f"wrote {printable(arguments.target)}: {network.table.parameters:,} parameters, input {network.input}")
        print(f"fingerprint {network.fingerprint}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
