"""The command line: reference and candidate on the same job, the verdict, the report.

Exit status: 0 the port holds; 1 it differs; 2 it could not be compared; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity import module_commands
from parity.contract import command, methods, network
from parity.contract.artifact import Artifact
from parity.contract.classes import per_photograph
from parity.contract.keras_files import SUFFIXES
from parity.contract.stages import PRECISIONS
from parity.contract.vgg import VGG16
from parity.module_commands import DIFFERS, HOLDS
from parity.port import ENGINES
from parity.reference import check_installed, run

if TYPE_CHECKING:
    from parity.report import ParityReport, PixelsRow
    from parity.twins import Module

_PROGRAM = "attention-parity"

SAMPLES = 4
"""SmoothGrad's samples where none are asked for: a fifth of the lab's 20, so that the proof takes minutes on two cores."""


def parser() -> command.Parser:
    """The whole command line."""
    top = command.Parser(
        prog=_PROGRAM if Path(sys.argv[0]).name.startswith(_PROGRAM) else "python -m parity",
        description="Compare attention maps with the reference's, Keras and tf-keras-vis, on the same pixels, weights and "
        "noise; name the first place where they part. SmoothGrad's samples are few here; the lab's own number is 20.",
        epilog="Also: python -m parity match, how the layers of a Keras model and a PyTorch module pair; python -m parity "
        "transfer, the weights of the one into the other. Exit status: 0 the port holds; 1 it differs; 2 it could not be "
        "compared; 130 interrupted.",
    )
    add = top.add_argument
    words = "none: four that scikit-image and scikit-learn bring along"
    add("photographs", nargs="*", metavar="PHOTO|FOLDER", help=words)
    add("--weights", default="auto", metavar="SOURCE", help="as of attention-maps explain (%(default)s)")
    words = "one for all or one for each, index or label; default: the top-1"
    add("--classes", type=command.listed, metavar="CLASS[,CLASS…]", help=words)
    names, words = command.methods(methods.REFERENCE), f"default: {','.join(methods.DEFAULT)}"
    add("--methods", type=names, default=(), metavar="METHOD[,METHOD…]", help=words)
    add("--input", choices=network.INPUTS, help="preprocessing, on both sides; default: the weights' own")
    add("--resize", choices=("lab", "torchvision"), default="lab", help="how photographs become squares (%(default)s)")
    command.map_options(top, n_samples=SAMPLES, unset=True)
    words = "made by python -m keras_ref --floor, here or elsewhere; default: make it now"
    add("--reference", metavar="ARTIFACT", help=words)
    _candidate_options(top)
    module_commands.module_options(top)
    add("--no-ladder", action="store_true", help="leave out what the libraries' plain calls draw")
    add("--quiet", action="store_true", help="print the verdict alone")
    add("--out", required=True, metavar="DIR", help="folder for report.html, report.json, reference.safetensors")
    return top


def _candidate_options(top: command.Parser) -> None:
    add = top.add_argument
    words = "a function candidate(job), or what a program wrote; default: this port"
    add("--candidate", metavar="MODULE:NAME|ARTIFACT", help=words)
    words = "this port's engine, where no --candidate is given (%(default)s)"
    add("--engine", choices=tuple(ENGINES), default="library", help=words)
    add("--device", default="auto", help="of the candidate: auto, cpu, cuda, cuda:1 (%(default)s)")
    words = f"of the candidate, of {', '.join(PRECISIONS)} (%(default)s)"
    add("--precision", type=_precisions, default="fp64,fp32", metavar="P[,P…]", help=words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Args:
        argv: without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["match"], ["transfer"]):
        own, body = module_commands.parsers()[arguments[0]]
        asked = own.parse_args(arguments[1:])
        if not asked.torch:
            own.error("give --torch MODULE:NAME, a callable that gives the nn.Module")
        return command.run(lambda: body(asked), "parity")
    options = parser().parse_args(arguments)
    return command.run(lambda: _compared(options), "parity")


def _precisions(text: str) -> list[str]:
    names = list(dict.fromkeys(command.listed(text)))
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; known: {', '.join(PRECISIONS)}")
    return names


def _compared(options: argparse.Namespace) -> int:
    out = Path(options.out)
    _check_output(out)
    module = _module(options)
    _check_candidate(options)
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folder = Path(name)
        if options.reference:
            path = Path(options.reference)
            reference = Artifact.read(path)
            rows = given_reference(options, reference)
        else:
            path = folder / "reference.safetensors"
            rows = _make_reference(options, folder, path)
            reference = Artifact.read(path)
        report = _judged(options, module, reference, path, rows)
        _write(out, report, reference if not options.reference else None)
    if options.quiet:
        print(report.verdict_line)
    else:
        print(report.as_table())
        for written in sorted(out.glob("report.*")):
            print(f"wrote {written}")
    return HOLDS if report.holds else DIFFERS


def _module(options: argparse.Namespace) -> Module | None:
    """The PyTorch module that is compared, where one is; what goes with it is refused without it."""
    if not options.torch:
        if lone := [name for name in ("layers", "target_layer", "preprocess") if getattr(options, name)]:
            raise ValueError(f"--{lone[0].replace('_', '-')} goes with --torch")
        return None
    if options.candidate:
        raise ValueError("--torch and --candidate are two programs: give one")
    if not options.reference:
        raise ValueError("--torch: give --reference, made by python -m keras_ref --model … --floor")
    return module_commands.module_of(options)


def _check_candidate(options: argparse.Namespace) -> None:
    """Find the candidate before the reference takes minutes; a given reference takes none."""
    from parity.child import found, in_child

    if not options.candidate or options.reference:
        return
    if Path(options.candidate).is_file():
        Artifact.read(options.candidate)
    else:
        in_child(partial(found, options.candidate), quiet=options.quiet)


def _judged(
    options: argparse.Namespace, module: Module | None, reference: Artifact, path: Path, rows: list[PixelsRow]
) -> ParityReport:
    from parity import twins
    from parity.child import answer, in_child
    from parity.comparison import compare

    if options.candidate and Path(options.candidate).is_file():
        theirs = Artifact.read(options.candidate)
        return compare(reference, dict.fromkeys(theirs.precisions, theirs), pixels_rows=rows)
    home = "fp32" if "fp32" in options.precision else options.precision[-1]  # where ladder and context are drawn
    answers: dict[str, Artifact] = {}
    drawn: dict[str, list[Any]] = {}
    for precision in options.precision:
        _progress(options, f"candidate in {precision}")
        wanted = ["context"] if options.no_ladder else ["context", "ladder"]
        how = {"precision": precision, "device": options.device, "methods": methods.in_order(options.methods)}
        if module is not None:
            of_module = partial(twins.answer, path, module, engine=options.engine, **how)
            answers[precision] = in_child(of_module, quiet=options.quiet)
            continue
        task = partial(
            answer,
            path,
            options.candidate or ENGINES[options.engine],
            options.weights,
            **how,
            rows=wanted if precision == home else [],
        )
        answers[precision], more = in_child(task, quiet=options.quiet)
        drawn |= more
    return compare(reference, answers, pixels_rows=rows, **drawn)


def _make_reference(options: argparse.Namespace, folder: Path, path: Path) -> list[PixelsRow]:
    """Read the photographs with the port, start the reference on them, and compare how each was read."""
    from parity import pixels, port

    check_installed()
    # Bad photographs and classes are told before minutes of work; the port's reading is the candidate's first stage.
    readings = port.candidate().photographs(options.photographs, VGG16.size, options.resize)
    if options.classes and len(options.classes) not in (1, len(readings)):
        raise ValueError(
            f"--classes: {len(options.classes)} classes for {len(readings)} photographs: one, or one for each"
        )
    options.weights, size = _weights_for_both(options, folder)
    if size != VGG16.size:
        readings = port.candidate().photographs(options.photographs, size, options.resize)
    arguments = {
        "weights": options.weights,
        "out": path,
        "samples": options.samples or SAMPLES,
        "noise": options.noise,
        "seed": options.seed,
        "channels": options.channels,
        "classes": ",".join(options.classes) if options.classes else None,
        "methods": ",".join(methods.in_order(options.methods)) or None,
        "input": options.input,
        "resize": options.resize,
    }
    on_purpose = options.resize != "lab" or any(reading.notes for reading in readings)
    if on_purpose:  # both sides go on with the port's pixels
        arguments["pixels"] = folder / "pixels.npz"
        np.savez(arguments["pixels"], pixels=np.stack([reading.pixels for reading in readings]))
    _progress(options, "reference in fp32 and fp64")
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    run("keras_ref", ["--floor", *given, "--", *(str(reading.path) for reading in readings)], quiet=options.quiet)
    return pixels.rows(readings, options.resize, {} if on_purpose else _pixels_by_file(Artifact.read(path)))


def given_reference(options: argparse.Namespace, reference: Artifact) -> list[PixelsRow]:
    """Refuse, by name, what does not fit an artifact that was made elsewhere; compare the photographs where they are here.

    Raises:
        ValueError: an option, or a photograph, is not the artifact's.
    """
    from parity import pixels, port

    settings, feature_maps = reference.settings, reference.table[reference.table.target].shape[-1]
    for option, wanted, held in (
        ("--samples", options.samples, settings.options.n_samples),
        ("--noise", options.noise, settings.options.noise_level),
        ("--seed", options.seed, settings.options.seed),
        ("--channels", options.channels, settings.options.channels or min(methods.FASTER_CHANNELS, feature_maps)),
        ("--input", options.input, settings.input),
    ):
        if wanted is not None and wanted != held:
            raise ValueError(
                f"{option} {wanted}: the reference artifact was made with {held}; leave it out, or make another"
            )
    if missing := [method for method in options.methods if method not in settings.methods]:
        raise ValueError(f"--methods: the reference artifact does not hold {', '.join(missing)}")
    if options.classes:
        wanted = per_photograph(options.classes, len(reference.photographs), reference.table.classes)
        if tuple(wanted) != reference.classes:
            raise ValueError(f"--classes: the reference artifact explains {', '.join(map(str, reference.classes))}")
    if not options.photographs:
        return []
    readings = port.candidate().photographs(options.photographs, reference.table.size, settings.resize)
    if [reading.sha256 for reading in readings] != [photograph.sha256 for photograph in reference.photographs]:
        names = ", ".join(photograph.name for photograph in reference.photographs)
        raise ValueError(f"the photographs named are not those of the reference artifact ({names}), in that order")
    keras = _pixels_by_file(reference) if settings.pixels == "keras_ref" else {}
    return pixels.rows(readings, settings.resize, keras)


def _pixels_by_file(artifact: Artifact) -> dict[str, np.ndarray]:
    return {photograph.sha256: pixels for photograph, pixels in zip(artifact.photographs, artifact.pixels, strict=True)}


def _weights_for_both(options: argparse.Namespace, folder: Path) -> tuple[str, tuple[int, int]]:
    """A source that both sides read by themselves, and the input's (H, W): every other kind is converted first."""
    from parity import port

    source = options.weights
    by_name = re.fullmatch(r"offline|(offline-random|seeded):.*", source)
    if by_name or (os.path.isfile(source) and source.endswith(SUFFIXES)):
        return source, VGG16.size
    if (canonical := network.from_source(source)) is not None:
        return source, canonical.table.size
    _progress(options, f"weights {source}")
    weights = port.candidate().load_weights(source, options.input)
    path = folder / "weights.safetensors"
    network.write(weights, path)
    return str(path), weights.table.size


def _check_output(out: Path) -> None:
    parent = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise ValueError(f"--out {ascii(str(out))}: {ascii(str(parent))} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"--out {ascii(str(out))}: no permission to write in {ascii(str(parent))}")
    earlier = out / "report.json"
    if earlier.exists():
        try:
            written_as = str(json.loads(earlier.read_text(encoding="utf-8"))["format"])
        except (ValueError, KeyError, TypeError, OSError):
            written_as = ""
        if not written_as.startswith("attention-maps parity report"):
            raise ValueError(f"--out {ascii(str(out))} holds a report.json that is not ours: choose another folder")


def _write(out: Path, report: ParityReport, reference: Artifact | None) -> None:
    from parity.contract.files import whole
    from parity.page import render

    page, data = render(report), report.as_json()  # both made before anything is written
    out.mkdir(parents=True, exist_ok=True)
    if reference is not None:
        reference.write(out / "reference.safetensors")
    for name, text in (("report.html", page), ("report.json", data)):
        with whole(out / name) as path:
            path.write_text(text, encoding="utf-8")


def _progress(options: argparse.Namespace, what: str) -> None:
    if not options.quiet:
        print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
