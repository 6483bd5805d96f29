"""The command line: the only place that prints and writes.

Exit status: 0 done; 2 anything that prevented an answer; 3 done in part (`--skip-bad`); 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from torch_impl import __version__
from torch_impl.batch import command as batch_commands
from torch_impl.names import ENGINES, PRECISIONS, REFERENCE_METHODS, STOCK_METHODS, check_stock
from torch_impl.words import listed, methods_of, printable

if TYPE_CHECKING:
    from torch_impl.explainer import Explanation

DONE, FAILED, IN_PART, INTERRUPTED = 0, 2, 3, 130


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import torch

        device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
        print(
            f"attention-maps {__version__} · torch {torch.__version__} · python {platform.python_version()} · {device}"
        )
        parser.exit(DONE)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="attention-maps",
        description="Attention maps of a PyTorch VGG16, as tf-keras-vis draws them: vanilla saliency, SmoothGrad, "
        "Grad-CAM, Grad-CAM++.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the versions and the device, and exit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain",
        help="draw the maps of photographs",
        description="Draw attention maps of photographs: one figure a method, overview.png, maps.npz, manifest.json.",
        epilog="Exit status: 0 done; 2 nothing written, one line says why; 3 some photographs were left out "
        "(--skip-bad); 130 interrupted. A name that starts with a dash goes after --.",
    )
    explain.add_argument(
        "photographs",
        nargs="*",
        metavar="PHOTO|FOLDER",
        help="pictures, or folders of pictures; none: a cat, a cup, a camera man and a palace that scikit-image and "
        "scikit-learn bring along",
    )
    explain.add_argument(
        "--classes",
        metavar="CLASS[,CLASS…]",
        help="the class to explain, an index or a label: one for all or one for each photograph; default: the top-1",
    )
    explain.add_argument(
        "--methods",
        metavar="METHOD[,METHOD…]",
        default=",".join(REFERENCE_METHODS),
        help=f"default: %(default)s (gradcam++ is the same as gradcam_plus_plus); for comparison also "
        f"{', '.join(STOCK_METHODS)}",
    )
    _weights_option(explain)
    explain.add_argument("--input", choices=("caffe", "torchvision"), help="preprocessing; default: the weights' own")
    explain.add_argument(
        "--resize",
        choices=("lab", "torchvision"),
        default="lab",
        help="lab: nearest neighbour to a square, as Keras's load_img (default); torchvision: bilinear, centre crop",
    )
    explain.add_argument(
        "--samples", type=_samples, default=20, metavar="N", help="SmoothGrad's noisy copies (%(default)s)"
    )
    explain.add_argument(
        "--noise",
        type=_noise,
        default=0.2,
        metavar="F",
        help="SmoothGrad's σ, a fraction of the image's range (%(default)s)",
    )
    explain.add_argument("--seed", type=_seed, default=0, metavar="N", help="of SmoothGrad's noise (%(default)s)")
    explain.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    explain.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s, with TF32 off")
    explain.add_argument(
        "--batch-size", type=_batch_size, default="auto", metavar="auto|N", help="images in one pass (%(default)s)"
    )
    explain.add_argument(
        "--engine",
        choices=ENGINES,
        default="library",
        help="library: Captum and pytorch-grad-cam (default); shared: the same maps in the fewest passes, faster",
    )
    explain.add_argument(
        "--colormap",
        default="jet",
        metavar="NAME",
        help="matplotlib's; cividis is safe for colour-blind readers (%(default)s)",
    )
    explain.add_argument("--skip-bad", action="store_true", help="leave out photographs that cannot be read")
    explain.add_argument("--overwrite", action="store_true", help="write into a folder that holds other files, too")
    explain.add_argument("--quiet", action="store_true", help="print errors only")
    explain.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    explain.set_defaults(run=_explain)

    summary = commands.add_parser(
        "summary", help="print the layer table", description="Print the network's layer table."
    )
    summary.add_argument("--weights", metavar="SOURCE", help="default: VGG16, without loading any weights")
    summary.set_defaults(run=_summary)

    convert = commands.add_parser(
        "convert",
        help="convert weights between PyTorch and Keras",
        description="Convert VGG16 weights. The layout of IN is recognised by its content, that of OUT by its suffix: "
        ".safetensors, .pt, .pth (PyTorch), .h5, .weights.h5 (Keras).",
    )
    convert.add_argument("source", metavar="IN", help="a file, or a SOURCE as of explain --weights")
    convert.add_argument("target", metavar="OUT", help="the file to write")
    convert.add_argument(
        "--input", choices=("caffe", "torchvision"), help="preprocessing to note down; default: IN's own"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace OUT")
    convert.add_argument("--quiet", action="store_true", help="print errors only")
    convert.set_defaults(run=_convert)

    types = {"samples": _samples, "noise": _noise, "seed": _seed, "batch_size": _batch_size}
    batch_commands.register(commands, types, _weights_option)
    return top


def _weights_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights",
        default="auto",
        metavar="SOURCE",
        help="auto (default: imagenet, else offline), imagenet (torchvision's), keras (the lab's own), offline "
        "(embedded), offline-random:N, seeded:N, or a file: .pt, .pth, .safetensors, .h5, .weights.h5, .keras",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):  # a label or a file name must not fail on a terminal of another encoding
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # a photograph's notes or error say what matters
    # A polite kill ends like Ctrl-C: `finally` blocks run, and no temporary file stays behind.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        arguments = parser().parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError:
        return _say("out of memory: give fewer photographs or a smaller --batch-size")
    except (ValueError, ArithmeticError) as error:  # every refusal of ours is one of these, with a message for the user
        return _say(
            str(error), known=type(error).__module__.startswith(("torch_impl", "parity")) or type(error) is ValueError
        )
    except OSError as error:
        where = f"{ascii(os.fspath(error.filename))}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; nothing was written")
    except Exception as error:
        if type(error).__module__.startswith(("torch_impl", "parity")):
            return _say(str(error))
        return _say(f"{type(error).__name__}: {error}", known=False)


def _say(message: str, status: int = FAILED, *, known: bool = True) -> int:
    if os.environ.get("ATTENTION_MAPS_TRACEBACK") and status != INTERRUPTED:
        raise  # noqa: PLE0704 (called while an exception is being handled)
    if not known:
        message = f"internal error: {' '.join(message.split())} (a defect of this program: please report it with the "
        message += "output of ATTENTION_MAPS_TRACEBACK=1)"
    for line in message.splitlines() or [""]:
        print(f"attention-maps: error: {line}" if status == FAILED else f"attention-maps: {line}", file=sys.stderr)
    return status


def _explain(arguments: argparse.Namespace) -> int:
    from parity.contract.classes import ClassError
    from torch_impl import figure, images

    started = time.perf_counter()
    methods = methods_of(arguments.methods)
    check_stock(methods, arguments.precision)
    classes = listed(arguments.classes, "--classes") if arguments.classes is not None else None
    figure.checked_colormap(arguments.colormap)

    from torch_impl.explainer import Explainer, check_output, choose_device
    from torch_impl.progress import Progress

    check_output(arguments.out, overwrite=arguments.overwrite)
    device = choose_device(arguments.device)
    paths = images.find(arguments.photographs, skip_bad=True) if arguments.photographs else images.defaults()
    if classes is not None and len(classes) not in (1, len(paths)):
        raise ClassError(
            f"--classes: {len(classes)} classes for {len(paths)} photograph{'s' * (len(paths) != 1)}: "
            "give one for all, or one for each"
        )
    progress = Progress(quiet=arguments.quiet)
    try:
        # Photographs before weights, so that a wrong name is told at once; the tiny networks' size is known only after.
        read, bad = images.load_all(paths, resize=arguments.resize, skip_bad=arguments.skip_bad)
        explainer = Explainer.vgg16(
            arguments.weights,
            input=arguments.input,
            resize=arguments.resize,
            device=device,
            precision=arguments.precision,
            batch_size=arguments.batch_size,
            engine=arguments.engine,
            progress=progress,
        )
        if explainer.size != 224:
            read, bad = images.load_all(
                paths, size=explainer.size, resize=arguments.resize, skip_bad=arguments.skip_bad
            )
        if bad and classes is not None and len(classes) > 1:
            refused = {error.path for error in bad}
            classes = [one for one, path in zip(classes, paths, strict=True) if str(path) not in refused]
        maps = explainer(
            read,
            classes,
            methods,
            n_samples=arguments.samples,
            noise_level=arguments.noise,
            seed=arguments.seed,
            progress=progress,
        )
    finally:
        progress.close()
    written = maps.save(arguments.out, colormap=arguments.colormap, overwrite=arguments.overwrite)

    if not arguments.quiet:
        _report(maps, written, time.perf_counter() - started)
    for error in bad:
        print(f"attention-maps: left out: {error}", file=sys.stderr)
    return IN_PART if bad else DONE


def _report(maps: Explanation, written: list[Path], seconds: float) -> None:
    manifest = maps.manifest
    weights = manifest["weights"]
    print(f"weights   {weights['source']}" + (f" · {weights['remark']}" if weights["remark"] else ""))
    print(f"          fingerprint {weights['fingerprint'][:16]}")
    print(f"input     {manifest['input']}, resize {manifest['resize']}")
    print(
        f"device    {manifest['device']} ({manifest['device_name']}), {manifest['precision']}, engine {manifest['engine']}"
    )
    photographs = manifest["photographs"]
    names = [printable(one["name"]) for one in photographs]
    width = min(40, max(map(len, [*names, *manifest["methods"]])))
    for name, one in zip(names, photographs, strict=True):
        extra = "".join(f" · {note}" for note in one["notes"])
        extra += "".join(f" · {method}: constant, no positive evidence" for method in one["constant_maps"])
        print(f"{name:<{width}}  {one['class']:>4} {one['label']:<24} {one['probability']:.3f}{extra}")
    spent, count = manifest["seconds"], len(photographs)
    for method in manifest["methods"]:
        if method in spent:
            print(f"{method:<{width}}  {spent[method] / count:.2f} s a map")
    if "shared" in spent:
        together = ", ".join(method for method in manifest["methods"] if method not in spent) or "logits"
        print(f"{together}: together {spent['shared'] / count:.2f} s a photograph")
    print(f"total     {seconds:.1f} s")
    for path in written:
        print(f"wrote     {printable(str(path))}")


def _summary(arguments: argparse.Namespace) -> int:
    from parity.contract.architecture import VGG16

    if arguments.weights is None:
        from torch_impl.vgg16 import summary

        print(summary(VGG16))
        return DONE
    from torch_impl.vgg16 import summary
    from torch_impl.weights import load_network

    network = load_network(arguments.weights)
    print(summary(network.architecture))
    print(f"weights: {network.source}, input {network.input}, fingerprint {network.fingerprint}")
    if network.remark:
        print(network.remark)
    return DONE


def _convert(arguments: argparse.Namespace) -> int:
    from torch_impl.progress import Progress
    from torch_impl.weights import load_network, save_network

    progress = Progress(quiet=arguments.quiet)
    try:
        network = load_network(arguments.source, input=arguments.input, progress=progress)
    finally:
        progress.close()
    save_network(network, arguments.target, overwrite=arguments.overwrite)
    if not arguments.quiet:
        print(
            f"wrote {printable(arguments.target)}: {network.architecture.parameters:,} parameters, input {network.input}"
        )
        print(f"fingerprint {network.fingerprint}")
    return DONE


def _samples(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 to 100000")
    return value


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 4294967295")
    return int(text)


def _noise(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a fraction of the image's range, 0 or more, such as 0.2")
    return value


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: give auto, or a number from 1 to 65536")
    return value


if __name__ == "__main__":
    sys.exit(main())
