"""The command line of the reference: photographs → artifact."""

from __future__ import annotations

import os
import re
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from keras_ref import KerasRefError, models, run
from keras_ref.keras_files import SOURCES
from keras_ref.model import FLOATX
from parity.contract import command
from parity.contract.files import save_tensors
from parity.contract.methods import DEFAULT, REFERENCE, in_order
from parity.contract.network import EXPORT, INPUTS
from parity.contract.samples import SAMPLES
from parity.contract.stages import MANY, SAMPLE, SMALL_SAMPLE

MEMORY = "full VGG16 needs 3 GB in fp32 and 5 GB in fp64; close other programs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 anything that prevented an answer, 130 interrupted."""
    return command.run(lambda: _answer(_parser().parse_args(arguments)), "keras_ref", memory=MEMORY)


def _parser() -> command.Parser:
    parser = command.Parser(
        "keras_ref",
        description="Draw the lab's attention maps with Keras and tf-keras-vis, and write every stage to an artifact.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("photographs", nargs="*", metavar="PHOTO", help="files; none: four that scikit-image and scikit-learn carry")
    model_help = "any Keras model: a .keras or .h5 file, package.module:function, or keras.applications:NAME"
    add("--model", metavar="MODEL", help=f"{model_help} (VGG16)")
    weights = f"{SOURCES} (offline); with --model keras.applications:NAME a file or random:N (ImageNet's)"
    add("--weights", metavar="SOURCE|FILE", help=weights)
    own = (
        "of --model: caffe, tf, torch, none or package.module:function, uint8 (N, H, W, 3) → inputs (its own, or none)"
    )
    add("--preprocess", metavar="KIND", help=own)
    add("--size", type=size, metavar="N|HxW", help="of the pictures, where --model does not say")
    layer = "layer of --model that class activation maps read (tf-keras-vis's choice)"
    add("--target-layer", metavar="NAME", help=layer)
    add("--labels", metavar="FILE", help="of the classes, one a line")
    add("--trust", action="store_true", help="run the code of Lambda layers in --model")
    add("--export", metavar="FILE", help="also write the tensors of --model, for python -m parity transfer")
    one_or_each = "an index or label for all photographs, or one for each (top-1)"
    add("--classes", type=command.listed, metavar="A,B", help=one_or_each)
    names = f"of {', '.join(REFERENCE)} ({','.join(DEFAULT)})"
    add("--methods", type=command.methods(REFERENCE), default=DEFAULT, metavar="A,B", help=names)
    command.map_options(parser)
    add("--precision", choices=tuple(FLOATX), default="fp32", help="(%(default)s)")
    add("--floor", action="store_true", help="both precisions, one process each, in one artifact")
    pixels = "use its array `pixels`, uint8 (N, H, W, 3), instead of reading photographs"
    add("--pixels", metavar="FILE.npz", help=pixels)
    add("--input", choices=INPUTS, help="preprocessing of VGG16 (the weights' own)")
    resize = "how photographs became squares: files lab, Keras's load_img; other ways with --pixels (%(default)s)"
    add("--resize", choices=("lab", "torchvision"), default="lab", help=resize)
    keep = f"values kept of a stage that is not kept whole ({SAMPLE}; {SMALL_SAMPLE} of more than {MANY} layers)"
    add("--keep", type=command.integer(1, 2**20), metavar="N", help=keep)
    add("--figures", metavar="DIR", help="also draw the lab's figures, one .png for each method")
    add("--out", required=True, metavar="ARTIFACT", help="the file to write, in safetensors' format")
    add("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _answer(options: Namespace) -> int:
    started = time.perf_counter()
    _check(options)
    result = run.both_precisions(options) if options.floor else run.compute(options, options.precision)
    if options.figures:
        _draw(Path(options.figures), result)
    result.artifact.write(options.out)
    if options.export:
        export(Path(options.export), result)
    if not options.quiet:
        _report(options, result, time.perf_counter() - started)
    return command.DONE


def _check(options: Namespace) -> None:
    """Refuse what can be refused before TensorFlow is imported, and name the default photographs."""
    options.methods = in_order(options.methods)
    _check_model(options)
    if options.resize != "lab" and not options.pixels:
        raise KerasRefError(
            f"--resize {options.resize}: the reference reads files with Keras's load_img, which is `lab`; "
            "give pixels resized otherwise with --pixels FILE.npz"
        )
    for name, file in (("--out", options.out), ("--export", options.export)):
        if file and Path(file).is_dir():
            raise KerasRefError(f"{name} {file!r} is a folder: name a file")
        if file and not Path(file).resolve().parent.is_dir():
            raise KerasRefError(f"{name} {file!r}: its folder does not exist: create it first")
    if options.figures and Path(options.figures).exists() and not Path(options.figures).is_dir():
        raise KerasRefError(f"--figures {options.figures!r} is not a folder: name another")
    if options.pixels and not os.path.isfile(options.pixels):
        raise KerasRefError(f"--pixels {options.pixels!r}: no such file")
    if not options.photographs and not options.pixels:
        options.photographs = _default_photographs()
    missing = [
        f"{path!r} ({'is a folder' if os.path.isdir(path) else 'no such file'})"
        for path in options.photographs
        if not os.path.isfile(path)
    ]
    if missing:
        raise KerasRefError(f"cannot read {', '.join(missing)}: check the paths")


def _check_model(options: Namespace) -> None:
    """Refuse options of --model without it, and those of VGG16 with it."""
    if options.model is None:
        options.weights = options.weights or "offline"
        for name in ("preprocess", "size", "target_layer", "trust", "export"):
            if getattr(options, name):
                raise KerasRefError(f"--{name.replace('_', '-')} goes with --model; without it VGG16 is explained")
    else:
        if options.input:
            raise KerasRefError("--input goes with VGG16's --weights; with --model give --preprocess")
        models.check(options.model, options.weights)
    if options.labels and not os.path.isfile(options.labels):
        raise KerasRefError(f"--labels {options.labels!r}: no such file")


def size(text: str) -> tuple[int, int]:
    """The type of `--size`: `224` or `240x320`, height first."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (height and width):
        raise ArgumentTypeError(f"{text!r}: give pixels, such as 224, or height and width, such as 240x320")
    return height, width


def export(path: Path, result: run.Result) -> None:
    """Write the canonical tensors, float32, in the order of the layer table, for `python -m parity transfer`.

    Raises:
        OSError: as the file system says; then nothing is left at `path` that was not there before.
    """
    weights = result.artifact.weights
    metadata = {"format": EXPORT, "fingerprint": weights.fingerprint, "source": weights.source}
    save_tensors(result.tensors or {}, path, metadata)


def _default_photographs() -> list[str]:
    try:
        return [str(sample.path()) for sample in SAMPLES]
    except FileNotFoundError as error:
        raise KerasRefError(f"a default photograph {error}, or name photographs") from None


def _draw(folder: Path, result: run.Result) -> None:
    from keras_ref import figures

    folder.mkdir(parents=True, exist_ok=True)
    titles = [photograph.label for photograph in result.artifact.photographs]
    for method, maps in result.finals.items():
        figures.draw(folder, method, result.artifact.pixels, maps, titles)


def _report(options: Namespace, result: run.Result, seconds: float) -> None:
    artifact, megabytes = result.artifact, os.path.getsize(options.out) / 1e6
    print(f"weights: {artifact.weights.source} (fingerprint {artifact.weights.fingerprint[:16]})")
    if options.model:
        print(f"target layer: {artifact.table.target}, of {len(artifact.table.layers)}")
    for photograph in artifact.photographs:
        print(f"{photograph.name!r}: class {photograph.class_index}, {photograph.label}")
    for line in artifact.warnings:
        print(f"warning: {line}")
    print(f"wrote {options.out} ({megabytes:.1f} MB, {'+'.join(artifact.precisions)}) in {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
