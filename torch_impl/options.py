"""Options that say which network is explained, as `explain` and `batch` take them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.contract.command import auto_or, integer, listed
from parity.contract.lookup import lookup
from parity.contract.network import INPUTS
from parity.contract.stages import PRECISIONS
from torch_impl import capture
from torch_impl.framing import AT, RESIZES

if TYPE_CHECKING:
    from torch_impl.explainer import Explainer
    from torch_impl.images import ImageError, Photograph

IN_PART = 3
"""Exit status: some photographs were left out, or could not be read."""

REPLACED = ("weights", "input", "resize", "device", "precision", "batch_size", "engine", "compile")
"""What `--explainer` says by itself."""


def model_options(command: argparse.ArgumentParser) -> None:
    """Add `--weights`, `--explainer` and `--labels`."""
    command.add_argument(
        "--weights",
        default="auto",
        metavar="SOURCE",
        help="auto (default: imagenet where it is cached, else offline), imagenet (torchvision's), keras (the lab's own), "
        "offline (embedded), offline-random:N, seeded:N, or a file: .pt, .pth, .safetensors, .h5, .weights.h5, .keras",
    )
    command.add_argument(
        "--explainer",
        metavar="MODULE:NAME",
        help="a network of your own: a function without arguments that returns a torch_impl.Explainer; in place of --weights, "
        "--input, --resize, --device, --precision, --batch-size, --engine, --compile",
    )
    command.add_argument(
        "--labels",
        metavar="FILE|imagenet",
        help="the classes' labels, a line each; default: ImageNet's, where they are the network's",
    )


def network_options(command: argparse.ArgumentParser) -> None:
    """Add `--weights`, `--explainer` and what else says which network is run and how."""
    model_options(command)
    add = command.add_argument
    add("--input", choices=INPUTS, help="preprocessing; default: the weights' own")
    resize_option(command)
    add(
        "--target-layer",
        type=listed,
        metavar="LAYER[,LAYER…]",
        help="of the class activation maps: a module's name, of VGG16 also Keras's (block4_conv3); of several each gets maps of "
        "its own; default: the last convolution's ReLU, or the --explainer's own",
    )
    pass_options(command)
    remember_defaults(command)


def pass_options(command: argparse.ArgumentParser, *, engine: str = "library") -> None:
    """Add `--device`, `--precision`, `--batch-size`, `--engine` and `--compile`.

    Args:
        command: whose options.
        engine: where none is asked for.
    """
    add = command.add_argument
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help="default: %(default)s, with TF32 off")
    batch_size = auto_or(integer(1, 65536))
    add("--batch-size", type=batch_size, default="auto", metavar="auto|N", help="images in one pass (%(default)s)")
    add(
        "--engine",
        choices=capture.ENGINES,
        default=engine,
        help="library: Captum and pytorch-grad-cam, map by map; shared: the same maps in the fewest passes, faster (%(default)s)",
    )
    compiled = "compile SmoothGrad's passes first, for long runs: some 20 s for each size of micro-batch; engine shared"
    add("--compile", action="store_true", help=compiled)


def resize_option(command: argparse.ArgumentParser) -> None:
    """Add `--resize`."""
    command.add_argument(
        "--resize",
        choices=RESIZES,
        help="lab: nearest neighbour, squeezed, as Keras's load_img; torchvision: bilinear, centre crop; default: the one that "
        "belongs to the input (caffe: lab, torchvision: torchvision)",
    )


def figure_options(command: argparse.ArgumentParser) -> None:
    """Add `--colormap`, `--at`, `--alpha`, `--colorbar` and `--each`."""
    add = command.add_argument
    colors = "matplotlib's; cividis is safe for colour-blind readers (%(default)s)"
    add("--colormap", default="jet", metavar="NAME", help=colors)
    at = "input: on what the network saw (default); photograph: on the photograph itself, at its own size and shape"
    add("--at", choices=AT, default=AT[0], help=at)
    alpha = "opacity of the maps over the photographs, 0 to 1; default: 0.5 of class activation maps, saliency stands by itself"
    add("--alpha", type=fraction, metavar="F", help=alpha)
    add("--colorbar", action="store_true", help="say which colour is which value")
    add("--each", action="store_true", help="also a file for each photograph and method, pixel for pixel")


def fraction(text: str) -> float:
    """The type of `--alpha`: a number from 0 to 1."""
    if not re.fullmatch(r"[01]|[01]?\.[0-9]+", text) or not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 1, such as 0.5")
    return float(text)


def figures_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `figure_options` added, as `Explanation.save` takes it."""
    return {name: getattr(arguments, name) for name in ("colormap", "at", "alpha", "colorbar", "each")}


def remember_defaults(command: argparse.ArgumentParser) -> None:
    """Note which options of `REPLACED` were left as they are: called when all options are there."""
    command.set_defaults(usual={name: command.get_default(name) for name in REPLACED})


def check_compile(arguments: argparse.Namespace) -> None:
    """Refuse `--compile` where it does nothing, and say what it takes."""
    capture.check_compile(arguments.compile, arguments.engine)
    if arguments.compile and not arguments.quiet:
        words = "SmoothGrad's passes are compiled first: some 20 s for each size of micro-batch"
        print(f"attention-maps: {words}", file=sys.stderr, flush=True)


def explainer_of(arguments: argparse.Namespace) -> Explainer:
    """The explainer that a command's options ask for: VGG16 with some weights, or a network of the user's own."""
    changed = [name for name in REPLACED if getattr(arguments, name) != arguments.usual[name]]
    if arguments.explainer and changed:
        option = changed[0].replace("_", "-")
        raise ValueError(f"--{option} and --explainer exclude each other: say it in {arguments.explainer}")
    check_compile(arguments)
    settings = {name: getattr(arguments, name) for name in REPLACED} | {"progress": not arguments.quiet}
    explainer = make(arguments.explainer, labels_of(arguments.labels), **settings)
    if getattr(arguments, "target_layer", None) is None:  # which not every command takes
        return explainer
    from torch_impl.several import on_layers

    return on_layers(explainer, arguments.target_layer)


def asked_of(
    arguments: argparse.Namespace,
) -> tuple[Explainer, list[Photograph], list[str] | None, list[ImageError]]:
    """The explainer, the photographs as it reads them, their classes; with `--skip-bad` the errors of those that cannot be read."""
    from torch_impl import images, question

    paths = images.find(arguments.photographs, skip_bad=True) if arguments.photographs else images.defaults()
    classes = question.classes_for(arguments.classes, paths)
    explainer = explainer_of(arguments)
    photographs, refused = images.load_all(
        paths, size=explainer.size, resize=explainer.reads_with, skip_bad=arguments.skip_bad
    )
    return explainer, photographs, question.without(classes, paths, refused), refused


def make(name: str | None, labels: Sequence[str] | None, **settings: Any) -> Explainer:
    """An explainer.

    Args:
        name: `module:name` of a function that returns a network of the user's own; none: VGG16.
        labels: of the classes; None: those that the network has by itself.
        settings: of `Explainer.vgg16`.

    Raises:
        ValueError: that function returns something else.
    """
    from torch_impl.explainer import Explainer

    if not name:
        return Explainer.vgg16(**settings, labels=labels)
    explainer = lookup(name, "--explainer")()
    if not isinstance(explainer, Explainer):
        raise ValueError(f"--explainer {name}: it returned {type(explainer).__name__}, not a torch_impl.Explainer")
    if labels is not None:
        explainer.labels = labels
    return explainer


def labels_of(option: str | None) -> tuple[str, ...] | None:
    """The option `--labels`: a label for each class; None where it was not given.

    Raises:
        ValueError: the file holds none.
        OSError: as the file system says.
    """
    if option is None:
        return None
    if option == "imagenet":
        from parity.contract.classes import labels

        return labels()
    lines = tuple(line.strip() for line in Path(option).read_text(encoding="utf-8").splitlines())
    if not any(lines):
        raise ValueError(f"--labels {option!r}: the file is empty: give a label a line, in the order of the classes")
    return lines
