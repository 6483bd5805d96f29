"""The command line of the reference: photographs → artifact.

One process computes in one precision, because Keras's precision is a global of the process; `--floor` starts one child
for each and merges what they wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from keras_ref import KerasRefError
from parity.contract import classes, network
from parity.contract.architecture import Architecture
from parity.contract.artifact import Artifact, ArtifactError, Photograph, Recorder, Settings, Weights, merge
from parity.contract.files import whole
from parity.contract.network import INPUTS, WeightsError
from parity.contract.samples import SAMPLES
from parity.contract.stages import METHODS, SAMPLE
from parity.contract.stages import methods as method_names

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")

PIXELS_BYTES = 2**30


@dataclass(frozen=True)
class Read:
    """Photographs as the network will see them.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB.
        names, sha256, sizes: of the files; see `Photograph`.
    """

    pixels: np.ndarray
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise KerasRefError(f"{' '.join(message.split())}: see python -m keras_ref --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 anything that prevented an answer, 130 interrupted."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        options = _options(arguments)
        if options.floor:
            _both(options)
        else:
            _one(options)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except _ChildError as failed:  # it has said why
        return failed.status
    except (KerasRefError, WeightsError, ArtifactError, classes.ClassError, OSError) as error:
        return _say(f"error: {_line(error)}", 2)
    except MemoryError:
        return _say("error: out of memory: full VGG16 needs 3 GB in fp32 and 5 GB in fp64; close other programs", 2)
    except Exception as error:
        if os.environ.get("KERAS_REF_DEBUG"):
            raise
        return _say(
            f"error: unexpected {type(error).__name__} ({_line(error)}): "
            "set KERAS_REF_DEBUG=1 for the traceback, and report it",
            2,
        )
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        allow_abbrev=False,
        prog="keras_ref",
        description="Draw the lab's attention maps with Keras and tf-keras-vis, and write every stage to an artifact.",
    )
    add = parser.add_argument
    add("photographs", nargs="*", metavar="PHOTO", help="files; none: four that scikit-image and scikit-learn carry")
    add("--weights", default="offline", metavar="SOURCE|FILE", help="offline, offline-random:N, seeded:N, "
        "a Keras file (.h5, .weights.h5, .keras) or a canonical .safetensors (default: %(default)s)")  # fmt: skip
    add("--classes", metavar="A,B", help="an index or label for all photographs, or one for each (default: top-1)")
    add("--methods", default=",".join(METHODS), metavar="A,B", help="of vanilla,smoothgrad,gradcam,gradcam++")
    add("--samples", type=int, default=20, metavar="N", help="of SmoothGrad (default: %(default)s)")
    add("--noise", type=float, default=0.2, metavar="F", help="SmoothGrad's σ over the image's range (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of SmoothGrad's noise (default: %(default)s)")
    add("--precision", choices=("fp32", "fp64"), default="fp32", help="(default: %(default)s)")
    add("--floor", action="store_true", help="both precisions, one process each, and the error between them")
    add(
        "--pixels",
        metavar="FILE.npz",
        help="use its array `pixels`, uint8 (N, H, W, 3), instead of reading photographs",
    )
    add("--input", choices=INPUTS, help="preprocessing (default: the weights' own)")
    add("--resize", choices=("lab", "torchvision"), default="lab", help="how photographs became squares; from files "
        "only lab, which is Keras's load_img; others with --pixels (default: %(default)s)")  # fmt: skip
    add("--keep", type=int, default=SAMPLE, metavar="N", help="values kept of a stage that is not kept whole "
        "(default: %(default)s)")  # fmt: skip
    add("--figures", metavar="DIR", help="also draw the lab's figures, one .png for each method")
    add("--out", required=True, metavar="ARTIFACT", help="the .npz to write")
    add("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before TensorFlow is imported, and name the default photographs."""
    try:
        options.methods = method_names(options.methods.split(","))
    except ValueError as error:
        raise KerasRefError(f"--methods: {error}") from None
    if not 1 <= options.samples <= 10_000:
        raise KerasRefError(f"--samples {options.samples}: give 1 to 10000")
    if not (math.isfinite(options.noise) and options.noise >= 0):
        raise KerasRefError(f"--noise {options.noise}: give a number from 0, as a fraction of the image's range")
    if not 0 <= options.seed < 2**32:
        raise KerasRefError(f"--seed {options.seed}: give 0 to 4294967295")
    if not 1 <= options.keep <= 2**20:
        raise KerasRefError(f"--keep {options.keep}: give 1 to 1048576")
    if options.resize != "lab" and not options.pixels:
        raise KerasRefError(
            f"--resize {options.resize}: the reference reads files with Keras's load_img, which is `lab`; "
            "give pixels resized otherwise with --pixels FILE.npz"
        )
    out = Path(options.out)
    if out.is_dir():
        raise KerasRefError(f"--out {options.out!r} is a folder: name a file")
    if not out.resolve().parent.is_dir():
        raise KerasRefError(f"--out {options.out!r}: its folder does not exist: create it first")
    if options.figures and Path(options.figures).exists() and not Path(options.figures).is_dir():
        raise KerasRefError(f"--figures {options.figures!r} is not a folder: name another")
    if not options.photographs and not options.pixels:
        options.photographs = _default_photographs()
    _refuse_missing(options.photographs)
    if options.pixels and not os.path.isfile(options.pixels):
        raise KerasRefError(f"--pixels {options.pixels!r}: no such file")


def _default_photographs() -> list[str]:
    found = []
    for sample in SAMPLES:
        try:
            found.append(str(sample.path()))
        except FileNotFoundError as error:
            raise KerasRefError(f"{sample.name!r}: {error}") from None
    return found


def _refuse_missing(paths: Sequence[str]) -> None:
    bad = [f"{path!r} ({'is a folder' if os.path.isdir(path) else 'no such file'})" for path in paths
           if not os.path.isfile(path)]  # fmt: skip
    if bad:
        raise KerasRefError(f"cannot read {', '.join(bad)}: check the paths")


def _both(options: argparse.Namespace) -> None:
    """One child for each precision, one after the other (each uses every core), then one artifact."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="keras_ref-") as folder:
        drawn = Path(folder) / "figures" if options.figures else None
        first = _child(options, "fp32", Path(folder) / "fp32.npz", options.classes, drawn)
        # Both must explain the same class, also where rounding decides which is top-1.
        chosen = ",".join(map(str, first.classes))
        second = _child(options, "fp64", Path(folder) / "fp64.npz", chosen, None)
        merged = merge(first, second)
        if drawn:  # only now: a run that fails later leaves no figures behind
            Path(options.figures).mkdir(parents=True, exist_ok=True)
            for figure in sorted(drawn.iterdir()):
                with whole(Path(options.figures) / figure.name) as temporary:
                    shutil.copyfile(figure, temporary)
    _written(merged, options, started)


def _child(
    options: argparse.Namespace, precision: str, out: Path, classes: str | None, figures: Path | None
) -> Artifact:
    command = [sys.executable, "-m", "keras_ref", f"--weights={options.weights}", f"--precision={precision}"]
    command += [f"--methods={','.join(options.methods)}", f"--samples={options.samples}", f"--noise={options.noise!r}"]
    command += [f"--seed={options.seed}", f"--resize={options.resize}", f"--keep={options.keep}", f"--out={out}"]
    for name, value in (
        ("classes", classes),
        ("figures", figures),
        ("pixels", options.pixels),
        ("input", options.input),
    ):
        command += [f"--{name}={value}"] if value is not None else []
    command += ["--quiet", "--", *options.photographs]
    here = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    _progress(options, f"computing in {precision}")
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        status = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if status < 0:
        raise KerasRefError(f"the {precision} run was ended by signal {-status}: too little memory, most likely")
    if status:
        raise _ChildError(status)
    return Artifact.read(out)


def _one(options: argparse.Namespace) -> None:
    """Compute in this process."""
    started = time.perf_counter()
    warnings.simplefilter("ignore")  # the libraries' deprecations are not our reader's business
    from keras_ref import maps, model

    found = network.from_source(options.weights)  # most mistakes are seen before TensorFlow takes its four seconds
    if found is None:
        _refuse_unknown(options.weights)
    elif options.photographs:
        _classes(options, len(options.photographs), found.architecture)
    model.load_frameworks(options.precision)
    net = found or model.from_keras_file(options.weights, options.input or "caffe")
    del found
    kind = options.input or net.input
    read = _given_pixels(options, net.architecture) if options.pixels else _photographs(options, net.architecture)
    chosen = _classes(options, len(read.names), net.architecture)
    settings = Settings(
        methods=options.methods,
        n_samples=options.samples,
        noise_level=options.noise,
        seed=options.seed,
        input=kind,
        resize=options.resize,
        pixels="given" if options.pixels else "keras_ref",
        sample=options.keep,
    )
    weights, architecture = Weights.of(net), net.architecture
    keras_model = model.build(architecture)
    model.load(keras_model, net)
    del net  # 0.5 GB that are in Keras now
    models = maps.linear_models(keras_model, architecture, _preprocessed(read.pixels[:1], kind))
    recorder = Recorder(architecture, settings, read.pixels)
    seconds: dict[str, float] = {f"{options.precision}/setup": time.perf_counter() - started}
    photographs: list[Photograph] = []
    remarks: list[str] = []
    finals: dict[str, list[np.ndarray]] = {method: [] for method in options.methods}
    for i, name in enumerate(read.names):
        _progress(options, f"photograph {i + 1} of {len(read.names)}")
        inputs = _preprocessed(read.pixels[i : i + 1], kind)
        stages, index, remark = _stages(maps, models, inputs, chosen[i], settings, options.precision, seconds)
        for stage, array in stages.items():
            recorder.add(options.precision, i, stage, array)
        photographs.append(
            Photograph(name, read.sha256[i], read.sizes[i], index, classes.label(index, architecture.classes))
        )
        for method in options.methods:
            final = "final_with_exp" if method == "gradcam_plus_plus" else "final"
            finals[method].append(stages[f"{method}/{final}"])
        if remark:
            remarks.append(
                f"photograph {i + 1} ({name}): {remark}, the reference's own Grad-CAM++ in "
                f"{options.precision} is unusable there"
            )
    artifact = recorder.artifact(
        program="keras_ref",
        photographs=photographs,
        weights=weights,
        versions=model.versions(),
        flags=model.flags(),
        warnings=remarks,
        seconds=seconds,
    )
    if options.figures:
        _draw(options.figures, artifact, finals)
    _written(artifact, options, started)


def _stages(
    maps: Any,
    models: Any,
    inputs: np.ndarray,
    class_index: int | None,
    settings: Settings,
    precision: str,
    seconds: dict[str, float],
) -> tuple[dict[str, np.ndarray], int, str]:
    """Every stage of one photograph, its class, and a remark or "". Adds to `seconds` what each part took."""
    remark = ""
    clock = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[f"{precision}/{part}"] = seconds.get(f"{precision}/{part}", 0.0) + now - clock
        clock = now

    stages, index = maps.shared_stages(models, inputs, class_index)
    shared = dict(stages)
    lap("layers")
    for method in settings.methods:
        if method == "vanilla":
            stages |= maps.vanilla(models, inputs, index, shared)
        elif method == "smoothgrad":
            stages |= maps.smoothgrad(models, inputs, index, settings.n_samples, settings.noise_level, settings.seed)
        elif method == "gradcam":
            stages |= maps.gradcam(models, inputs, index, shared)
        else:
            found, remark = maps.gradcam_plus_plus(models, inputs, index, shared)
            stages |= found
        lap(method)
    return stages, index, remark


def _classes(options: argparse.Namespace, n_photographs: int, architecture: Architecture) -> list[int | None]:
    """The classes asked for; None, the top-1 prediction, where none was."""
    if options.classes is None:
        return [None] * n_photographs
    return list(classes.per_photograph(options.classes.split(","), n_photographs, architecture.classes))


def _refuse_unknown(source: str) -> None:
    """Raise WeightsError unless it is a Keras file, going by its name."""
    if os.path.isfile(source) and source.endswith(KERAS_SUFFIXES):
        return
    known = (
        "give offline, offline-random:N, seeded:N, a Keras file (.h5, .weights.h5, .keras) or a canonical .safetensors"
    )
    if os.path.isfile(source):
        raise WeightsError(f"--weights {source!r}: the reference does not read this kind of file: {known}")
    raise WeightsError(f"--weights {source!r}: no such file or source: {known}")


def _photographs(options: argparse.Namespace, architecture: Architecture) -> Read:
    """Photographs as Keras reads them: `load_img`, nearest neighbour."""
    import keras

    size = (architecture.size, architecture.size)
    pixels, names, hashes, sizes, bad = [], [], [], [], []
    for path in options.photographs:
        try:
            pixels.append(keras.utils.img_to_array(keras.utils.load_img(path, target_size=size), dtype="uint8"))
            sizes.append(_size(path))
            hashes.append(_sha256(path))
            names.append(os.path.basename(path))
        except Exception as error:  # Pillow raises a dozen kinds on what is not a picture
            bad.append(f"{path!r} ({_line(error)[:120]})")
    if bad:
        raise KerasRefError(f"not a readable picture: {', '.join(bad)}: remove it, or repair it")
    return Read(np.stack(pixels), tuple(names), tuple(hashes), tuple(sizes))


def _given_pixels(options: argparse.Namespace, architecture: Architecture) -> Read:
    """Pixels that somebody else read; photographs, where named, give names and hashes only."""
    where = f"--pixels {options.pixels!r}"
    wanted = (architecture.size, architecture.size, 3)
    try:
        if os.path.getsize(options.pixels) > PIXELS_BYTES:
            raise KerasRefError(f"{where}: larger than {PIXELS_BYTES} bytes: give fewer photographs")
        with np.load(options.pixels, allow_pickle=False) as file:
            pixels = file["pixels"]
    except KerasRefError:
        raise
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on a damaged file
        raise KerasRefError(f"{where}: not an .npz with an array `pixels` ({_line(error)[:120]})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != wanted or not len(pixels):
        raise KerasRefError(
            f"{where}: pixels are {pixels.dtype} {pixels.shape}, expected uint8 {('N', *wanted)} for these weights"
        )
    paths = options.photographs
    if not paths:
        names = tuple(f"photograph {i + 1}" for i in range(len(pixels)))
        hashes = tuple(hashlib.sha256(p.tobytes()).hexdigest() for p in pixels)
        return Read(pixels, names, hashes, ((architecture.size, architecture.size),) * len(pixels))
    if len(paths) != len(pixels):
        raise KerasRefError(f"{where}: {len(pixels)} photographs, but {len(paths)} are named: name them all or none")
    sizes = tuple(_size(path) for path in paths)
    return Read(pixels, tuple(map(os.path.basename, paths)), tuple(map(_sha256, paths)), sizes)


def _preprocessed(pixels: np.ndarray, kind: str) -> np.ndarray:
    """Keras's own preprocessing, in the precision of the process: uint8 (N, H, W, 3) → (N, H, W, 3)."""
    import keras

    mode = {"caffe": "caffe", "torchvision": "torch"}[kind]  # caffe: what vgg16.preprocess_input calls
    return np.ascontiguousarray(keras.applications.imagenet_utils.preprocess_input(pixels, mode=mode))


def _size(path: str) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draw(folder: str, artifact: Artifact, finals: dict[str, list[np.ndarray]]) -> None:
    from keras_ref import figures

    Path(folder).mkdir(parents=True, exist_ok=True)
    titles = [photograph.label for photograph in artifact.photographs]
    for method, maps in finals.items():
        figures.draw(Path(folder), method, artifact.pixels, np.stack(maps), titles)


def _written(artifact: Artifact, options: argparse.Namespace, started: float) -> None:
    artifact.write(options.out)
    if options.quiet:
        return
    megabytes = os.path.getsize(options.out) / 1e6
    print(f"weights: {artifact.weights.source} (fingerprint {artifact.weights.fingerprint[:16]})")
    for photograph in artifact.photographs:
        print(f"{photograph.name!r}: class {photograph.class_index}, {photograph.label}")
    for line in artifact.warnings:
        print(f"warning: {line}")
    print(f"wrote {options.out} ({megabytes:.1f} MB, {'+'.join(artifact.precisions)}) "
          f"in {time.perf_counter() - started:.0f} s")  # fmt: skip


class _ChildError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM as Ctrl-C: children end, temporary files go."""
    raise KeyboardInterrupt


def _progress(options: argparse.Namespace, text: str) -> None:
    if sys.stderr.isatty() and not options.quiet:
        print(f"keras_ref: {text}", file=sys.stderr)


def _say(text: str, status: int) -> int:
    print(f"keras_ref: {text}", file=sys.stderr)
    return status


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
