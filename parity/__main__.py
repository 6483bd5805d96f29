"""The command line: reference and candidate on the same job, the verdict, the report.

Exit status: 0 the port holds; 1 it differs; 2 it could not be compared; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from parity.contract import stages
from parity.contract.artifact import Artifact, Photograph
from parity.contract.network import INPUTS
from parity.reference import ProcessError, check_installed, run

if TYPE_CHECKING:
    from parity.report import Native, ParityReport, PixelsRow
    from torch_impl import images

_PROGRAM = "attention-parity"

HOLDS, DIFFERS, FAILED, INTERRUPTED = 0, 1, 2, 130

SAMPLES = 4
"""SmoothGrad's samples where none are asked for: a fifth of the lab's 20, so that the proof takes minutes on two cores."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog=_PROGRAM if Path(sys.argv[0]).name.startswith(_PROGRAM) else "python -m parity",
        description="Compare attention maps with the reference's, Keras and tf-keras-vis, on the same pixels, weights and "
        "noise; name the first place where they part.",
        epilog="Exit status: 0 the port holds; 1 it differs; 2 it could not be compared; 130 interrupted.",
    )
    add = top.add_argument
    add(
        "photographs",
        nargs="*",
        metavar="PHOTO|FOLDER",
        help="none: four that scikit-image and scikit-learn bring along",
    )
    add("--weights", default="auto", metavar="SOURCE", help="as of attention-maps explain (%(default)s)")
    add("--classes", metavar="CLASS[,CLASS…]", help="one for all or one for each, index or label; default: the top-1")
    add("--methods", metavar="METHOD[,METHOD…]", help=f"default: {','.join(stages.METHODS)}")
    add("--input", choices=INPUTS, help="preprocessing, on both sides; default: the weights' own")
    add("--resize", choices=("lab", "torchvision"), default="lab", help="how photographs become squares (%(default)s)")
    add("--samples", type=int, metavar="N", help=f"SmoothGrad's ({SAMPLES}; the lab's own number is 20)")
    add("--noise", type=float, metavar="F", help="SmoothGrad's σ, a fraction of the image's range (0.2)")
    add("--seed", type=int, metavar="N", help="of SmoothGrad's noise (0)")
    add("--device", default="auto", help="of the candidate: auto, cpu, cuda, cuda:1 (%(default)s)")
    add(
        "--precision",
        default="fp64,fp32",
        metavar="P[,P…]",
        help=f"of the candidate, of {', '.join(stages.PRECISIONS)} (%(default)s)",
    )
    add(
        "--reference",
        metavar="ARTIFACT",
        help="made by python -m keras_ref --floor, here or elsewhere; default: make it now",
    )
    add(
        "--candidate",
        metavar="MODULE:NAME|ARTIFACT",
        help="a function candidate(job), or what a program wrote; default: this port",
    )
    add(
        "--engine",
        choices=("library", "shared"),
        default="library",
        help="this port's engine, where no --candidate is given (%(default)s)",
    )
    add("--native", action="store_true", help="also torchvision's own ImageNet network beside Keras's own; no verdict")
    add("--no-ladder", action="store_true", help="leave out what the libraries' plain calls draw")
    add("--quiet", action="store_true", help="print the verdict alone")
    add("--out", required=True, metavar="DIR", help="folder for report.html, report.json, reference.npz")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Args:
        argv: without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # a photograph's notes or error say what matters
    try:
        return _compared(parser().parse_args(argv))
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", INTERRUPTED)
    except (ValueError, ArithmeticError) as error:
        return _say(str(error))
    except OSError as error:
        where = f"{ascii(os.fspath(error.filename))}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}")
    except Exception as error:
        return _say(f"internal error: {type(error).__name__}: {error} (a defect of this program: please report it)")


def _say(message: str, status: int = FAILED) -> int:
    if os.environ.get("ATTENTION_MAPS_TRACEBACK") and status == FAILED:
        raise  # noqa: PLE0704 (called while an exception is being handled)
    for line in message.removeprefix("parity: error: ").splitlines() or [""]:  # a worker's words have it already
        print(f"parity: error: {line}" if status == FAILED else f"parity: {line}", file=sys.stderr)
    return status


def _compared(options: argparse.Namespace) -> int:
    from parity.candidate import PORT
    from parity.comparison import compare
    from parity.report import Conditioning, ContextRow, Rung

    out = Path(options.out)
    _check_output(out)
    precisions = list(dict.fromkeys(p.strip() for p in options.precision.split(",")))
    if unknown := [p for p in precisions if p not in stages.PRECISIONS]:
        raise ValueError(f"--precision {unknown[0]!r} is unknown; known: {', '.join(stages.PRECISIONS)}")
    methods = stages.methods(options.methods.split(",")) if options.methods else ()
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folder = Path(name)
        if options.reference:
            reference_path = Path(options.reference)
            reference = Artifact.read(reference_path)
            rows = _given_reference(options, reference, methods)
        else:
            reference_path = folder / "reference.npz"
            rows = _make_reference(options, methods, folder, reference_path)
            reference = Artifact.read(reference_path)
        found: dict[str, Artifact] = {}
        extras: dict[str, list[list[Any]]] = {"ladder": [], "context": [], "conditioning": []}
        if options.candidate and Path(options.candidate).is_file():
            theirs = Artifact.read(options.candidate)
            found = dict.fromkeys(theirs.precisions, theirs)
        else:
            home = "fp32" if "fp32" in precisions else precisions[-1]  # where ladder and context are drawn
            for precision in precisions:
                _progress(options, f"candidate in {precision}")
                written = folder / f"{precision}.npz"
                arguments = [str(reference_path), "--weights", options.weights, "--precision", precision]
                arguments += ["--device", options.device, "--methods", ",".join(methods), "--out", str(written)]
                arguments += ["--input", reference.settings.input]
                arguments += ["--candidate", options.candidate or PORT[options.engine]]
                if precision == home:
                    arguments += ["--context"] if options.no_ladder else ["--context", "--ladder"]
                drawn = folder / f"{precision}.json"
                run("parity.worker", [*arguments, "--extras", str(drawn)], quiet=options.quiet)
                found[precision] = Artifact.read(written)
                for name, more in json.loads(drawn.read_text(encoding="utf-8")).items():
                    extras[name] += more
        report = compare(
            reference,
            found,
            pixels_rows=rows,
            ladder=[Rung(method, what, tuple(values)) for method, what, values in extras["ladder"]],
            context=[ContextRow(method, what, tuple(values)) for method, what, values in extras["context"]],
            conditioning=[Conditioning(*row) for row in extras["conditioning"]],
            native=_native(options, folder),
        )
        _write(out, report, reference if not options.reference else None)
    if options.quiet:
        print(f"Verdict: {report.word}")
    else:
        print(report.as_table())
        for written in sorted(out.glob("report.*")):
            print(f"wrote {written}")
    return HOLDS if report.holds else DIFFERS


def _make_reference(options: argparse.Namespace, methods: tuple[str, ...], folder: Path, path: Path) -> list[PixelsRow]:
    """Read the photographs with the port, start the reference on them, and compare how each was read."""
    from torch_impl import images

    check_installed()
    # Bad photographs and classes are told before minutes of work; the port's reading is the candidate's first stage.
    paths = images.find(options.photographs, skip_bad=True) if options.photographs else images.defaults()
    if options.classes is not None and options.classes.count(",") + 1 not in (1, len(paths)):
        raise ValueError(
            f"--classes: {options.classes.count(',') + 1} classes for {len(paths)} photographs: one, or one for each"
        )
    read, _ = images.load_all(paths, resize=options.resize)
    weights, size = _weights_for_both(options, folder)
    if size != 224:
        read, _ = images.load_all(paths, size=size, resize=options.resize)
    arguments = [f"--weights={weights}", "--floor", f"--out={path}"]
    arguments += [f"--samples={options.samples or SAMPLES}", f"--resize={options.resize}"]
    for name, value in (
        ("noise", options.noise),
        ("seed", options.seed),
        ("classes", options.classes),
        ("input", options.input),
    ):
        if value is not None:
            arguments.append(f"--{name}={value}")
    if methods:
        arguments.append(f"--methods={','.join(methods)}")
    on_purpose = options.resize != "lab" or any(one.notes for one in read)
    if on_purpose:  # both sides go on with the port's pixels
        given = folder / "pixels.npz"
        np.savez(given, pixels=np.stack([one.pixels for one in read]))
        arguments.append(f"--pixels={given}")
    _progress(options, "reference in fp32 and fp64")
    run("keras_ref", [*arguments, "--", *map(str, paths)], quiet=options.quiet)
    options.weights = weights
    keras = {} if on_purpose else {p.sha256: pixels for p, pixels in _named(Artifact.read(path))}
    return [_pixels_row(i, one, keras.get(one.sha256), options.resize) for i, one in enumerate(read)]


def _given_reference(options: argparse.Namespace, reference: Artifact, methods: tuple[str, ...]) -> list[PixelsRow]:
    """Refuse, by name, what does not fit an artifact that was made elsewhere; compare the photographs where they are here."""
    from torch_impl import images

    s = reference.settings
    for option, wanted, held in (
        ("--samples", options.samples, s.n_samples),
        ("--noise", options.noise, s.noise_level),
        ("--seed", options.seed, s.seed),
        ("--input", options.input, s.input),
    ):
        if wanted is not None and wanted != held:
            raise ValueError(
                f"{option} {wanted}: the reference artifact was made with {held}; leave it out, or make another"
            )
    if missing := [m for m in methods if m not in s.methods]:
        raise ValueError(f"--methods: the reference artifact does not hold {', '.join(missing)}")
    if options.classes is not None:
        from parity.contract import classes

        wanted_classes = classes.per_photograph(
            options.classes.split(","), len(reference.photographs), reference.weights.architecture.classes
        )
        if tuple(wanted_classes) != reference.classes:
            raise ValueError(f"--classes: the reference artifact explains {', '.join(map(str, reference.classes))}")
    if not options.photographs:
        return []
    paths = images.find(options.photographs, skip_bad=True)
    read, _ = images.load_all(paths, size=reference.weights.architecture.size, resize=s.resize)
    held_hashes = [p.sha256 for p in reference.photographs]
    if [one.sha256 for one in read] != held_hashes:
        names = ", ".join(p.name for p in reference.photographs)
        raise ValueError(f"the photographs named are not those of the reference artifact ({names}), in that order")
    keras = {p.sha256: pixels for p, pixels in _named(reference)} if s.pixels == "keras_ref" else {}
    return [_pixels_row(i, one, keras.get(one.sha256), s.resize) for i, one in enumerate(read)]


def _named(artifact: Artifact) -> list[tuple[Photograph, np.ndarray]]:
    return list(zip(artifact.photographs, artifact.pixels, strict=True))


def _pixels_row(i: int, read: images.Photograph, keras: np.ndarray | None, resize: str) -> PixelsRow:
    """The port's reading beside Keras's: the reference's own where it read the file, else Pillow's as Keras calls it."""
    from PIL import Image

    from parity.causes import pixels_cause
    from parity.report import PixelsRow

    if resize != "lab" or read.path is None:
        return PixelsRow(i, float("nan"), (*read.notes, f"resize {resize}, on both sides"), False, True)
    size = (read.pixels.shape[1], read.pixels.shape[0])
    try:
        with Image.open(read.path) as image:
            rgb = image.convert("RGB")
    except Exception:  # Keras could not read it at all: then nothing is to be compared
        return PixelsRow(i, float("nan"), read.notes, False, True)
    expected = keras if keras is not None else np.asarray(rgb.resize(size, Image.Resampling.NEAREST))
    differing = float((expected != read.pixels).any(axis=-1).mean())
    cause = ""
    if differing and not read.notes:
        resizes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}  # fmt: skip
        others = {name: np.asarray(rgb.resize(size, how)) for name, how in resizes.items()}
        cause = pixels_cause(read.pixels, expected, others)
    return PixelsRow(i, differing, read.notes, not read.notes, differing == 0, cause)


def _weights_for_both(options: argparse.Namespace, folder: Path) -> tuple[str, int]:
    """A source that both sides read by themselves, and the input's size: every other kind is converted first."""
    from parity.contract.network import WeightsError
    from parity.contract.network import read as read_network

    source = options.weights
    known = source == "offline" or source.startswith(("offline-random:", "seeded:"))
    if not known and os.path.isfile(source) and source.endswith((".h5", ".hdf5", ".keras")):
        known = True
    if known:
        return source, 224
    if source.endswith(".safetensors") and os.path.isfile(source):
        network = read_network(source)
        if network is not None:
            return source, network.architecture.size
    converted = folder / "weights.safetensors"
    _progress(options, f"weights {source}")
    run("torch_impl", ["convert", source, str(converted), "--quiet"], quiet=options.quiet)
    network = read_network(converted)
    if network is None:
        raise WeightsError(f"{source}: could not be converted")
    return str(converted), network.architecture.size


def _native(options: argparse.Namespace, folder: Path) -> Native | None:
    """torchvision's own network beside Keras's own, on the same pixels, by the port; described, never judged."""
    if not options.native:
        return None
    from parity.report import Native
    from parity.similarity import pearson

    drawn: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {}
    for source in ("keras", "imagenet"):
        out = folder / source
        _progress(options, f"native weights: {source}")
        try:
            arguments = [
                "explain",
                "--weights",
                source,
                "--out",
                str(out),
                "--samples",
                str(options.samples or SAMPLES),
            ]
            arguments += ["--device", options.device, "--quiet"]
            if options.classes:
                arguments += ["--classes", options.classes]
            elif drawn:  # both explain the same class
                arguments += ["--classes", ",".join(str(p["class"]) for p in drawn["keras"][1]["photographs"])]
            run("torch_impl", [*arguments, "--", *options.photographs], quiet=options.quiet)
        except ProcessError as error:
            return Native(f"not compared: the official {source} weights cannot be had here ({error})")
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        with np.load(out / "maps.npz", allow_pickle=False) as file:
            drawn[source] = {name: file[name] for name in file.files if name != "pixels"}, manifest
    (ours, manifest), (theirs, _) = drawn["keras"], drawn["imagenet"]
    rows = {
        p["name"]: {method: pearson(theirs[method][i], ours[method][i]) for method in ours}
        for i, p in enumerate(manifest["photographs"])
    }
    return Native(
        "torchvision's ImageNet VGG16 (its statistics) beside Keras's (caffe), two trainings of one architecture, on the same "
        "224×224 pixels and classes, both drawn by the port: Pearson correlation",
        rows,
    )


def _check_output(out: Path) -> None:
    parent = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise ValueError(f"--out {ascii(str(out))}: {ascii(str(parent))} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"--out {ascii(str(out))}: no permission to write in {ascii(str(parent))}")
    earlier = out / "report.json"
    if earlier.exists():
        try:
            ours = str(json.loads(earlier.read_text(encoding="utf-8"))["format"]).startswith(
                "attention-maps parity report"
            )
        except (ValueError, KeyError, TypeError, OSError):
            ours = False
        if not ours:
            raise ValueError(f"--out {ascii(str(out))} holds a report.json that is not ours: choose another folder")


def _write(out: Path, report: ParityReport, reference: Artifact | None) -> None:
    from parity.contract.files import whole
    from parity.page import render

    page, data = render(report), report.as_json()  # both made before anything is written
    out.mkdir(parents=True, exist_ok=True)
    if reference is not None:
        reference.write(out / "reference.npz")
    for name, text in (("report.html", page), ("report.json", data)):
        with whole(out / name) as path:
            path.write_text(text, encoding="utf-8")


def _progress(options: argparse.Namespace, what: str) -> None:
    if not options.quiet:
        print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
