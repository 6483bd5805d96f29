"""Photographs → artifact: in this process, or in one child for each precision."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from keras_ref import KerasRefError, keras_files, model, photographs
from keras_ref.maps import MAPS
from keras_ref.passes import Models, Pass, linear_models, pass_through
from parity.contract import classes
from parity.contract.artifact import Artifact, JobSettings, Photograph, Weights
from parity.contract.command import options_of
from parity.contract.layers import LayerTable
from parity.contract.methods import METHODS
from parity.contract.network import Network, from_source
from parity.contract.recorder import Recorder, merge


@dataclass(frozen=True)
class Result:
    """What one run gives.

    Attributes:
        artifact: every stage.
        finals: method → tf-keras-vis's own map of each photograph, (H, W), whole, for figures.
    """

    artifact: Artifact
    finals: dict[str, list[np.ndarray]]


def both_precisions(options: argparse.Namespace) -> Result:
    """One child for each precision, one after the other (each uses every core), then one artifact.

    Args:
        options: of the command line.

    Returns:
        The figures' maps are float32's.
    """
    single = _in_child(options, "fp32")
    # Both must explain the same class, also where rounding decides which is top-1.
    asked = argparse.Namespace(**{**vars(options), "classes": single.artifact.classes})
    return Result(merge(single.artifact, _in_child(asked, "fp64").artifact), single.finals)


def _in_child(options: argparse.Namespace, precision: str) -> Result:
    """`compute` in a process of its own, because Keras's precision is a global of the process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            # Ctrl-C reaches the whole group. The child ignores it, from birth, and is ended below.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            result = pool.submit(compute, options, precision)
            signal.signal(signal.SIGINT, handler)
            return result.result()
        except BrokenProcessPool:
            raise KerasRefError(f"the {precision} run was ended from outside: too little memory, most likely") from None
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def compute(options: argparse.Namespace, precision: str) -> Result:
    """Everything in this process, in one precision.

    Args:
        options: of the command line.
        precision: one of `model.FLOATX`.

    Raises:
        KerasRefError, WeightsError, ClassError: whatever prevents an answer.
    """
    started = time.perf_counter()
    network = _network(options, precision)
    table, weights, kind = network.table, Weights.of(network), options.input or network.input
    if options.pixels:
        pictures = photographs.given(options.pixels, options.photographs, table.size)
    else:
        pictures = photographs.by_keras(options.photographs, table.size)
    asked = _classes(options, len(pictures), table)
    models = _models(network, photographs.preprocessed(pictures[0].pixels, kind))
    del network  # 0.5 GB that are in Keras now
    settings = _settings(options, kind)
    recorder = Recorder(weights, settings, np.stack([picture.pixels for picture in pictures]))
    seconds = {f"{precision}/setup": time.perf_counter() - started}
    rows: list[Photograph] = []
    remarks: list[str] = []
    finals: dict[str, list[np.ndarray]] = {method: [] for method in settings.methods}
    for i, picture in enumerate(pictures):
        progress(options, f"{precision}: photograph {i + 1} of {len(pictures)}")
        with _timed(seconds, f"{precision}/layers"):
            p = pass_through(models, photographs.preprocessed(picture.pixels, kind), asked[i], settings.options)
        stages = p.shared | _maps(p, settings.methods, precision, seconds)
        for stage, array in stages.items():
            recorder.add(precision, i, stage, array)
        for method in settings.methods:  # the last of a map's quantities is what tf-keras-vis itself returns
            finals[method].append(stages[f"{method}/{METHODS[method].quantities[-1].name}"])
        label = classes.label(p.class_index, table.classes)
        rows.append(Photograph(picture.name, picture.sha256, picture.size, p.class_index, label))
        remarks += [f"photograph {i + 1} ({picture.name}): {remark}" for remark in p.remarks]
    artifact = recorder.artifact(
        program="keras_ref",
        photographs=rows,
        versions=model.program_versions(),
        flags=model.flags(),
        warnings=remarks,
        seconds=seconds,
    )
    return Result(artifact, finals)


def progress(options: argparse.Namespace, text: str) -> None:
    """A line for whoever watches."""
    if sys.stderr.isatty() and not options.quiet:
        print(f"keras_ref: {text}", file=sys.stderr)


def _network(options: argparse.Namespace, precision: str) -> Network:
    """The network asked for, and the frameworks loaded."""
    network = from_source(options.weights)  # most mistakes are seen before TensorFlow takes its four seconds
    if network is None:
        keras_files.check_kind(options.weights)
    elif options.photographs:
        _classes(options, len(options.photographs), network.table)
    model.load_frameworks(precision)
    return network or keras_files.from_keras_file(options.weights)


def _models(network: Network, probe: np.ndarray) -> Models:
    keras_model = model.build(network.table)
    model.load(keras_model, network)
    return linear_models(keras_model, network.table, probe)


def _classes(options: argparse.Namespace, n_photographs: int, table: LayerTable) -> list[int | None]:
    """The classes asked for; None, the top-1 prediction, where none was."""
    if options.classes is None:
        return [None] * n_photographs
    return list(classes.per_photograph(options.classes, n_photographs, table.classes))


def _settings(options: argparse.Namespace, kind: str) -> JobSettings:
    return JobSettings(
        methods=options.methods,
        options=options_of(options),
        input=kind,
        resize=options.resize,
        pixels="given" if options.pixels else "keras_ref",
        sample=options.keep,
    )


def _maps(p: Pass, methods: tuple[str, ...], precision: str, seconds: dict[str, float]) -> dict[str, np.ndarray]:
    """Every map's own stages, and in `seconds` what each took."""
    stages: dict[str, np.ndarray] = {}
    for method in methods:
        with _timed(seconds, f"{precision}/{method}"):
            stages |= MAPS[method](p)
    return stages


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started
