"""What is explained: VGG16 by the name of its weights, or any Keras model; and how its input is made."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_ref import KerasRefError, keras_files, model, models, photographs
from keras_ref.front import Front
from keras_ref.graph import Flat, Flattener
from keras_ref.passes import Models, linear_models
from keras_ref.target import CamOptions, choose
from parity.contract import classes
from parity.contract.artifact import JobSettings, Weights
from parity.contract.command import options_of
from parity.contract.fingerprints import Fingerprint
from parity.contract.layers import LayerTable
from parity.contract.lookup import lookup
from parity.contract.network import OWN_INPUT, Network, from_source
from parity.contract.stages import MANY, SAMPLE, SMALL_SAMPLE

KINDS = {"caffe": "caffe", "tf": "tf", "torch": "torchvision", "none": "none"}
"""`--preprocess` → the contract's kind of input."""

Preprocess = Callable[[np.ndarray], np.ndarray]

AGREEMENT = 2e-2
"""Between the outputs of the user's model, which may be of half precision, and of the flat one, of the largest."""


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        table: of its layers.
        weights: for the artifact.
        settings: likewise.
        pictures: (H, W) of the photographs.
        corner: (top, left) of what the network's own cropping leaves of them.
        preprocess: uint8 (H, W, 3) → inputs (1, H, W, C), in the precision of the process.
        models: inputs of one photograph, on which they are checked, and its (H, W, 3) → the network in Keras.
        labels: of the classes, or ().
        warnings: for every reader.
        tensors: canonical, for `--export`.
        any_model: whether it came by `--model`.
    """

    table: LayerTable
    weights: Weights
    settings: JobSettings
    pictures: tuple[int, int]
    corner: tuple[int, int]
    preprocess: Preprocess
    models: Callable[[np.ndarray, np.ndarray], Models]
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tensors: dict[str, np.ndarray] | None = None
    any_model: bool = False

    @property
    def n_classes(self) -> int:
        """How many may be explained: a model of one output has two, it and its negative."""
        return 2 if self.any_model and self.table.classes == 1 else self.table.classes

    def cropped(self, pixels: np.ndarray) -> np.ndarray:
        """The part of (H, W, 3) that the network sees."""
        (top, left), (height, width) = self.corner, self.table.size
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])

    def label(self, index: int) -> str:
        """Of a class."""
        return classes.label(index, self.n_classes, self.labels or None)

    def classes_of(self, options: argparse.Namespace, n_photographs: int) -> list[int | None]:
        """The classes asked for; None, the top-1 prediction, where none was."""
        if options.classes is None:
            return [None] * n_photographs
        return list(classes.per_photograph(options.classes, n_photographs, self.n_classes, self.labels or None))


def of(options: argparse.Namespace, precision: str) -> Subject:
    """What the command line names, with the frameworks loaded in one precision.

    Raises:
        KerasRefError, WeightsError, ClassError: it cannot be had.
    """
    return _any_model(options, precision) if options.model else _vgg(options, precision)


def _vgg(options: argparse.Namespace, precision: str) -> Subject:
    network = from_source(options.weights)  # most mistakes are seen before TensorFlow takes its four seconds
    if network is None:
        keras_files.check_kind(options.weights)
    else:
        _check_classes(options, network.table)
    model.load_frameworks(precision)
    network = network or keras_files.from_keras_file(options.weights)
    labels = _labels(options, network.table.classes)
    kind = options.input or network.input
    kept: list[Network] = [network]  # let go once it is in Keras: 0.5 GB

    def built(probe: np.ndarray, _: np.ndarray) -> Models:
        held = kept.pop()
        keras_model = model.build(held.table)
        model.load(keras_model, held)
        return linear_models(keras_model, held.table, probe)

    def preprocess(pixels: np.ndarray) -> np.ndarray:
        return photographs.preprocessed(pixels, kind)

    settings = _settings(options, kind, options.keep or SAMPLE, labels)
    weights = Weights.of(network)
    return Subject(network.table, weights, settings, network.table.size, (0, 0), preprocess, built, labels)


def _check_classes(options: argparse.Namespace, table: LayerTable) -> None:
    labels = _labels(options, table.classes)
    if options.photographs and options.classes is not None:
        classes.per_photograph(options.classes, len(options.photographs), table.classes, labels or None)


def _any_model(options: argparse.Namespace, precision: str) -> Subject:
    model.load_frameworks(precision, onednn=False)
    floatx = model.FLOATX[precision]
    seed = models.seed_of(options.weights)
    original = models.load(options.model, options.weights, trust=options.trust)
    function, shape = models.functional(original, options.model, options.size)
    flat = Flattener(shape, None if seed is None else np.random.RandomState(seed), floatx).flatten(function)
    front = flat.front
    target, cam_options, warnings = choose(flat, options.target_layer)
    table = LayerTable(tuple(row.layer for row in flat.rows), target)
    if len(table.layers[-1].shape) != 1:
        raise KerasRefError(f"--model: its output has the shape {table.layers[-1].shape}, expected (classes,)")
    kind, prepare = _preprocessing(options, front, floatx)
    tensors = {f"{row.layer.name}.{what}": array for row in flat.rows for what, array in row.tensors.items()}
    for row in flat.rows:
        row.tensors = {}
    labels = _labels(options, max(2, table.classes))
    keep = options.keep or (SMALL_SAMPLE if len(table.layers) > MANY else SAMPLE)
    scale, offset = front.affine

    kept = [function] if precision == "fp32" else []  # let go once it is seen to be the same network
    if not kept:
        front.taken.clear()  # they lead to it too
    del function, original
    gc.collect()  # the original is full of cycles, and holds every weight once more

    def built(probe: np.ndarray, picture: np.ndarray) -> Models:
        layered = _layered(flat, table, cam_options, probe)
        if kept:
            _check_same(kept.pop(), flat, prepare, picture, probe)
        front.taken.clear()
        return layered

    def preprocess(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(front.scale * np.float64(prepare(pixels)) + front.offset, floatx)

    exported = options.export and (precision == "fp32" or not options.floor)
    return Subject(
        table,
        _weights(options, kind, table, tensors),
        replace(_settings(options, kind, keep, labels), scale=scale, offset=offset),
        front.pictures,
        front.corner,
        preprocess,
        built,
        labels,
        (*front.remarks, *warnings),
        tensors if exported else None,
        any_model=True,
    )


def _layered(flat: Flat, table: LayerTable, cam_options: CamOptions, probe: np.ndarray) -> Models:
    """The flat model, and the same with every layer's output; its inputs of one photograph show whether it gives numbers."""
    import keras

    if not np.isfinite(np.asarray(flat.model(probe, training=False))).all():
        raise KerasRefError("--model: its output holds NaN or infinity")
    hidden = [row.output for row in flat.rows if row.layer in table.hidden]
    layered = keras.Model(flat.model.inputs, [*hidden, *flat.model.outputs])
    return Models(flat.model, layered, table, cam_options, binary=table.classes == 1)


def _check_same(original: Any, flat: Flat, prepare: Preprocess, picture: np.ndarray, inputs: np.ndarray) -> None:
    """Whether the flat model is the user's.

    Args:
        original: the user's, functional.
        flat: what is explained.
        prepare: makes of a picture what the original reads.
        picture: uint8 (H, W, 3), as the flat model's inputs begin.
        inputs: what the flat model reads of it. Where the original resizes, it reads a larger or smaller one, and its own layers
            give the flat model's inputs.

    Raises:
        KerasRefError: they differ, or give what is no number.
    """
    import keras

    if flat.front.resized:
        rows, columns = (
            np.arange(wanted) * had // wanted
            for wanted, had in zip(original.inputs[0].shape[1:3], picture.shape[:2], strict=True)
        )
        given = prepare(picture[rows][:, columns])
        inputs = keras.Sequential(flat.front.taken)(given, training=False)
    else:
        given = prepare(picture)
    before = np.asarray(original(given, training=False), np.float64)
    logits = flat.model(inputs, training=False)
    after = np.asarray(getattr(keras.ops, flat.ended)(logits) if flat.ended else logits, np.float64)
    if not np.abs(before - after).max() <= AGREEMENT * max(1.0, np.abs(before).max()):
        raise KerasRefError(
            "--model: made again layer by layer it gives another output: report it, with the model's summary"
        )


def _weights(options: argparse.Namespace, kind: str, table: LayerTable, tensors: dict[str, np.ndarray]) -> Weights:
    source = options.model + (f" --weights {options.weights}" if options.weights else "")
    weights = Weights.of(Network(tensors, table, source, kind))
    return replace(weights, prints={name: Fingerprint.of(array) for name, array in tensors.items()})


def _preprocessing(options: argparse.Namespace, front: Front, floatx: str) -> tuple[str, Preprocess]:
    """The kind of the input, and the function that makes it."""
    asked = options.preprocess or models.own_preprocessing(options.model)
    channels = front.shape[2]
    own = lookup(asked, "--preprocess") if ":" in asked else None
    if own is None and asked not in KINDS:
        raise KerasRefError(f"--preprocess {asked!r}: give {', '.join(KINDS)} or package.module:function")
    if own is None and channels != 3 and (channels != 1 or asked in ("caffe", "torch")):
        raise KerasRefError(f"--preprocess {asked}: the model has {channels} channels: give package.module:function")

    def prepare(pixels: np.ndarray) -> np.ndarray:
        if own is not None:
            return _by_own(own, asked, pixels, channels)
        exact = pixels.astype(np.float64) if front.layers else pixels  # else as Keras does it
        return photographs.preprocessed(exact, KINDS[asked])[..., :channels]

    return (OWN_INPUT if own else KINDS[asked]), prepare


def _by_own(function: Preprocess, name: str, pixels: np.ndarray, channels: int) -> np.ndarray:
    shape = (*pixels.shape[:2], channels)
    try:
        inputs = np.asarray(function(pixels[None].copy()))
    except Exception as error:  # whatever the user's code raises
        raise KerasRefError(f"--preprocess {name}: {type(error).__name__}: {error}") from None
    if inputs.shape != (1, *shape) or inputs.dtype.kind not in "fiu":
        raise KerasRefError(f"--preprocess {name}: gave {inputs.dtype} {inputs.shape}, expected numbers {(1, *shape)}")
    if not np.isfinite(inputs).all():
        raise KerasRefError(f"--preprocess {name}: its inputs hold NaN or infinity")
    return inputs


def _labels(options: argparse.Namespace, n_classes: int) -> tuple[str, ...]:
    """The lines of `--labels`, one for each class."""
    if not options.labels:
        return ()
    try:
        labels = tuple(Path(options.labels).read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError:
        raise KerasRefError(f"--labels {options.labels!r}: not a text in UTF-8") from None
    return tuple(classes.names_of(n_classes, labels))


def _settings(options: argparse.Namespace, kind: str, keep: int, labels: tuple[str, ...]) -> JobSettings:
    return JobSettings(
        methods=options.methods,
        options=options_of(options),
        input=kind,
        labels=labels,
        resize=options.resize,
        pixels="given" if options.pixels else "keras_ref",
        sample=keep,
    )
