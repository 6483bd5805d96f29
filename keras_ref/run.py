"""Photographs → artifact: in this process, or in one child for each precision."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from keras_ref import KerasRefError, model, photographs
from keras_ref import subject as subjects
from keras_ref.exact import DRAWS, NUDGE, apart, exact_formulas, jittered, moved, undecided
from keras_ref.maps import MAPS
from keras_ref.passes import Models, Pass, input_gradients, pass_through
from parity.contract.artifact import Artifact, JobSettings, Photograph
from parity.contract.methods import METHODS
from parity.contract.recorder import Recorder, merge
from parity.contract.stages import Stage
from parity.contract.versions import versions

COSTLY = ("scorecam", "faster_scorecam")
"""A pass for every feature map, and no gradient that may flip."""


@dataclass(frozen=True)
class Result:
    """What one run gives.

    Attributes:
        artifact: every stage.
        finals: method → tf-keras-vis's own map of each photograph, (H, W), whole, for figures.
        tensors: canonical, of a model that `--export` may write.
    """

    artifact: Artifact
    finals: dict[str, list[np.ndarray]]
    tensors: dict[str, np.ndarray] | None = None


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
    double = _in_child(asked, "fp64")
    if single.artifact.weights.fingerprint != double.artifact.weights.fingerprint:
        raise KerasRefError("--model: its weights are others each time it is made: give a file, or --weights random:0")
    return Result(merge(single.artifact, double.artifact), single.finals, single.tensors)


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
    subject = subjects.of(options, precision)
    pictures = _pictures(options, subject)
    asked = subject.classes_of(options, len(pictures))
    pixels = np.stack([subject.cropped(picture.pixels) for picture in pictures])
    models = subject.models(subject.preprocess(pixels[0]), pictures[0].pixels)
    recorder = Recorder(subject.weights, subject.settings, pixels)
    job = _Job(models, subject.settings, recorder.stages, {f"{precision}/setup": time.perf_counter() - started})
    rows: list[Photograph] = []
    remarks = list(subject.warnings)
    own = _Own()
    finals: dict[str, list[np.ndarray]] = {method: [] for method in subject.settings.methods}
    for i, picture in enumerate(pictures):
        progress(options, f"{precision}: photograph {i + 1} of {len(pictures)}")
        inputs = subject.preprocess(pixels[i])
        p, drawn, kept = job.computed(precision, inputs, asked[i], partial(recorder.add, precision, i))
        for method, final in drawn.items():
            finals[method].append(final)
        label = subject.label(p.class_index)
        rows.append(Photograph(picture.name, picture.sha256, picture.size, p.class_index, label))
        remarks += [f"photograph {i + 1} ({picture.name}): {remark}" for remark in p.remarks]
        if subject.any_model:
            own.look(job, precision, inputs, p, kept)
    artifact = recorder.artifact(
        rows,
        program="keras_ref",
        versions=versions("numpy", "keras", "tensorflow", "tf-keras-vis", "scipy", "Pillow"),
        flags=model.flags(),
        warnings=tuple(remarks),
        seconds=job.seconds,
        moves=own.moves,
        draws=own.draws,
        undecided=np.stack(own.undecided) if own.undecided else None,
    )
    return Result(artifact, finals, subject.tensors)


def _pictures(options: argparse.Namespace, subject: subjects.Subject) -> list[photographs.Picture]:
    if options.pixels:
        return photographs.given(options.pixels, options.photographs, subject.pictures)
    return photographs.by_keras(options.photographs, subject.pictures, subject.table.input_shape[2])


def progress(options: argparse.Namespace, text: str) -> None:
    """A line for whoever watches."""
    if sys.stderr.isatty() and not options.quiet:
        print(f"keras_ref: {text}", file=sys.stderr)


@dataclass(frozen=True)
class _Job:
    """What is done to each photograph.

    Attributes:
        models: the network.
        settings: which maps.
        stages: of the artifact.
        seconds: part → wall time so far.
    """

    models: Models
    settings: JobSettings
    stages: Sequence[Stage]
    seconds: dict[str, float]

    def computed(
        self,
        part: str,
        inputs: np.ndarray,
        class_index: int | None,
        record: Callable[[str, np.ndarray], None] | None = None,
        but: Sequence[str] = (),
    ) -> tuple[Pass, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """One photograph forward and back, and every map.

        Args:
            part: under which `seconds` has what each took.
            inputs: (1, H, W, C).
            class_index: whose score; None for the top-1 prediction.
            record: is given each stage. What no map reads is then let go: all layers at once would be a gigabyte.
            but: methods that are left out.

        Returns:
            The pass, with what maps read; method → tf-keras-vis's own map, (H, W); stage → the values that an artifact keeps.
        """
        by_name = {stage.name: stage for stage in self.stages}
        finals: dict[str, np.ndarray] = {}
        kept: dict[str, np.ndarray] = {}

        def keep(stage: str, array: np.ndarray) -> None:
            kept[stage] = np.array(by_name[stage].take(np.asarray(array)[None]))
            if record is not None:
                record(stage, array)

        with self._timed(f"{part}/layers"):
            p = pass_through(self.models, inputs, class_index, self.settings.options)
        for stage in tuple(p.shared):
            keep(stage, p.shared[stage])
            if stage not in p.read_by_maps:
                del p.shared[stage]
        for method in (name for name in self.settings.methods if name not in but):
            with self._timed(f"{part}/{method}"):
                stages = MAPS[method](p)
            for quantity, array in stages.items():
                keep(f"{method}/{quantity}", array)
            finals[method] = stages[METHODS[method].quantities[-1].name]  # what tf-keras-vis returns
        return p, finals, kept

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


@dataclass
class _Own:
    """What the reference's own numbers are worth, over all photographs so far.

    Attributes:
        moves, draws: as the artifact's.
        undecided: of each photograph, bool (H, W).
    """

    moves: dict[str, float] = field(default_factory=dict)
    draws: dict[str, float] = field(default_factory=dict)
    undecided: list[np.ndarray] = field(default_factory=list)

    def look(self, job: _Job, precision: str, inputs: np.ndarray, p: Pass, kept: dict[str, np.ndarray]) -> None:
        """Run a photograph again, moved by next to nothing.

        Args:
            job: as before.
            precision: of the process.
            inputs: of the photograph.
            p: its pass.
            kept: stage → the values that the artifact keeps of it.
        """
        if precision == "fp32":
            for draw in range(DRAWS):
                _, _, again = job.computed("draws", jittered(inputs, draw), p.class_index, but=COSTLY)
                _note(self.draws, apart({name: kept[name] for name in again}, again))
            return
        with exact_formulas():
            _, _, again = job.computed("moves", inputs * NUDGE, p.class_index)
        _note(self.moves, moved(kept, again))
        self.undecided.append(undecided(partial(input_gradients, p.models, class_index=p.class_index), inputs))


def _note(worst: dict[str, float], values: dict[str, float]) -> None:
    """Keep the largest that is not 0."""
    for stage, value in values.items():
        if value > worst.get(stage, 0.0):
            worst[stage] = value
