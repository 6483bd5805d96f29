"""Rows of a listing → rows of a run, and the runner of this machine.

Both runners work like this: part by part, in micro-batches that are cut by the rows' numbers, never by who comes first.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from parity.contract import classes as imagenet
from parity.contract.network import Network
from parity.contract.text import one_line
from torch_impl.batch.listing import Listing
from torch_impl.batch.loading import Loaded, loaded
from torch_impl.batch.plan import Plan
from torch_impl.batch.run import LISTED, Run, RunError
from torch_impl.batching import BatchSize
from torch_impl.capture.draw import Drawn
from torch_impl.capture.passes import MapError
from torch_impl.explainer import Explainer
from torch_impl.manifest import program_versions
from torch_impl.maps.postprocess import finish
from torch_impl.options import make
from torch_impl.question import class_index, probabilities_of
from torch_impl.score import are_probabilities

ROWS_AT_ONCE = {"cpu": 16, "cuda": 256}
"""Photographs that are explained together where no batch size is given; a pass takes as many as fit."""

_CLASS = pa.struct([("class", pa.int32()), ("label", pa.string()), ("probability", pa.float64())])

_BEFORE = (
    pa.field("index", pa.int64(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    ("sha256", pa.string()),
    ("asked", pa.string()),
)
_EXPLAINED = (
    ("class", pa.int32()),
    ("label", pa.string()),
    ("logit", pa.float64()),
    ("probability", pa.float64()),
    ("top5", pa.list_(_CLASS)),
)
_AFTER = (
    ("notes", pa.list_(pa.string())),
    ("file_size", pa.int64()),
    ("file_mtime_ns", pa.int64()),
    ("seconds", pa.float64()),
    ("error", pa.string()),
)
"""The columns of a run before and after those of its maps, which come behind `_EXPLAINED`."""

Report = Callable[[int, int], object]
"""Called with (rows, rows with an error among them) as they come."""


def run_local(run: Run, worker: Worker, numbers: Sequence[int], loaders: int, *, report: Report) -> Counter[str]:
    """Explain parts in this process, and write each beside the next. Whatever happens, complete parts are written.

    Args:
        run: its folder, locked.
        worker: the network.
        numbers: of the parts.
        loaders: processes that decode.
        report: progress.

    Returns:
        Kinds of errors, counted.

    Raises:
        OSError: a part could not be written.
        RunError, OutOfMemoryError: see `Worker.parts`.
    """
    errors, writing = Counter[str](), deque[Future[Counter[str]]]()
    parts = worker.parts(run.listing, numbers, loaders, report=report)
    with ThreadPoolExecutor(1, "writer") as writer, closing(parts):
        for number, rows in parts:
            while writing:  # one part is written while the next is computed, and no more wait
                errors.update(writing.popleft().result())
            writing.append(writer.submit(run.write_part, number, rows, worker.about | {"runner": "local"}))
        for future in writing:
            errors.update(future.result())
    return errors


def explainer_of(
    plan: Plan, network: Network | None, device: str, batch_size: BatchSize, compile: bool = False
) -> Explainer:
    """The explainer of a run, on a device.

    Args:
        plan: of the run.
        network: VGG16's weights; None: the plan names a network of the user's own, which has its own device.
        device: of VGG16: `auto`, `cpu`, `cuda`, `cuda:1`.
        batch_size: of VGG16: photographs in one pass, or "auto".
        compile: of VGG16: see `Explainer`.

    Raises:
        ValueError, RuntimeError: see `options.make`.
    """
    settings = {name: getattr(plan, name) for name in ("input", "resize", "precision", "engine")}
    settings |= {"device": device, "batch_size": batch_size, "compile": compile}
    return make(plan.explainer, plan.labels, weights=network, **settings)


class Worker:
    """One network on one device.

    Attributes:
        plan: of the run.
        strict: whether to stop at the first photograph that cannot be explained.
    """

    def __init__(self, make: Callable[[], Explainer], plan: Plan, *, strict: bool = False) -> None:
        """Note down what is to be done; nothing is loaded yet.

        Args:
            make: gives the explainer: called once, when the first photographs are being decoded already.
            plan: see above.
            strict: see above.
        """
        self._make, self.plan, self.strict = make, plan, strict

    @cached_property
    def explainer(self) -> Explainer:
        """Of the network."""
        return self._make()

    @property
    def rows_at_once(self) -> int:
        """Photographs that are explained together."""
        size = self.explainer.batch_size
        return size if isinstance(size, int) else ROWS_AT_ONCE.get(self.explainer.device.type, ROWS_AT_ONCE["cpu"])

    @cached_property
    def _blank(self) -> Drawn:
        """The maps of a blank picture, which is the first pass: it shows how large everything is.

        Raises:
            MapError, OutOfMemoryError: as of `Explainer.compute`.
        """
        return self._drawn(np.zeros((1, *self.plan.sides, 3), np.uint8), [0], n_samples=1)

    @cached_property
    def labels(self) -> pa.Array:
        """Of every class of the network."""
        assert self._blank.logits is not None
        count = self._blank.logits.shape[1]
        return pa.array(
            [imagenet.label(category, count, self.explainer.labels) for category in range(count)], pa.string()
        )

    @cached_property
    def about(self) -> dict[str, Any]:
        """How rows are computed here, for a part's metadata."""
        return {
            "device": str(self.explainer.device),
            "batch_size": self.explainer.batch_size,
            "compile": self.explainer.compile,
            "threads": torch.get_num_threads(),
            "versions": program_versions(),
        }

    def parts(
        self,
        listing: Path,
        numbers: Sequence[int],
        loaders: int,
        *,
        report: Report = lambda rows, errors: None,
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Explain parts, one after another, while the photographs of the next are being decoded.

        Args:
            listing: the file.
            numbers: of the parts.
            loaders: processes that decode; see `loading.loaded`.
            report: called after each micro-batch.

        Yields:
            (number, rows).

        Raises:
            RunError: with `strict`, a photograph that cannot be explained.
        """
        listed = Listing(listing)
        items = (item for number in numbers for item in listed.items(number))
        with loaded(items, self.plan.size, self.plan.resize, loaders) as photographs:
            schema = self.schema  # the network is made, and its first pass, while the first photographs are decoded
            pixels = np.empty((min(self.rows_at_once, self.plan.part_rows), *self.plan.sides, 3), np.uint8)
            for number in numbers:
                part, explained = listed.part(number), []
                for start in range(0, len(part), self.rows_at_once):
                    rows = part[start : start + self.rows_at_once]
                    index = number * self.plan.part_rows + start
                    taken = self._taken(photographs, pixels[: len(rows)])
                    explained.append(self._explained(rows, index, taken, pixels[: len(rows)]))
                    self._tell(explained[-1], report)
                yield number, pa.Table.from_batches(explained, schema)

    @staticmethod
    def _taken(photographs: Iterator[tuple[Loaded, np.ndarray]], pixels: np.ndarray) -> list[Loaded]:
        """As many photographs as `pixels` (N, H, W, 3) has room for, which theirs are copied to."""
        taken = list[Loaded]()
        for place, (photograph, each) in zip(pixels, photographs, strict=False):
            taken.append(photograph)
            place[:] = each
        return taken

    def _tell(self, rows: pa.RecordBatch, report: Report) -> None:
        """Report rows; with `strict`, refuse those that have an error."""
        bad = rows.filter(rows["error"].is_valid())
        if len(bad) and self.strict:
            raise RunError(
                f"{bad['path'][0].as_py()!r}: {bad['error'][0].as_py()} (--strict: not one may be missing); finished parts "
                "are kept; mend it, or run the same command without --strict"
            )
        report(len(rows), len(bad))

    def _explained(
        self, listed: pa.RecordBatch, index: int, photographs: list[Loaded], pixels: np.ndarray
    ) -> pa.RecordBatch:
        """The rows of a few photographs, of which `index` is the first's place in the listing."""
        clock, count = time.perf_counter(), len(listed)
        errors = [photograph.error for photograph in photographs]
        target = self._target(listed["asked"].to_pylist(), errors)
        good = [place for place in range(count) if errors[place] is None]
        computed = self._finite(good, pixels, target, errors)
        done = [place for place in good if errors[place] is None]
        row = np.full(count, len(done))
        row[done] = np.arange(len(done))
        table = pa.Table.from_batches([*computed, self.nothing]).take(pa.array(row))
        spent = (time.perf_counter() - clock) / max(1, len(good))
        columns: dict[str, Any] = {name: listed[name] for name in LISTED}
        columns |= {name: table[name].combine_chunks() for name in table.column_names}
        columns["index"] = np.arange(index, index + count)
        columns["sha256"] = [photograph.sha256 for photograph in photographs]
        columns["notes"] = [photograph.notes for photograph in photographs]
        columns["seconds"] = [photograph.seconds + spent * (photograph.error is None) for photograph in photographs]
        columns["error"] = errors
        return _record_batch(columns, self.schema)

    def _target(self, asked: Sequence[str | None], errors: list[str | None]) -> list[int | None]:
        """The class of each row, None for the top-1; what is no class is noted down."""
        target: list[int | None] = [None] * len(asked)
        for place, category in enumerate(asked):
            if category is not None and errors[place] is None:
                try:
                    target[place] = class_index(category, len(self.labels), self.explainer.labels)
                except imagenet.ClassError as error:
                    errors[place] = one_line(error)
        return target

    def _finite(
        self, places: list[int], pixels: np.ndarray, target: list[int | None], errors: list[str | None]
    ) -> list[pa.RecordBatch]:
        """Computed columns of some places; a photograph whose maps are not finite gets an error, its neighbours do not."""
        if not places:
            return []
        try:
            good = pixels if len(places) == len(pixels) else pixels[places]
            return [self._computed(good, [target[i] for i in places])]
        except MapError as error:
            if len(places) == 1:
                errors[places[0]] = f"no finite map: {one_line(error)}"
                return []
            return [rows for i in places for rows in self._finite([i], pixels, target, errors)]

    def _computed(self, pixels: np.ndarray, target: list[int | None]) -> pa.RecordBatch:
        """Everything that the network says of photographs (N, H, W, 3) and classes: the columns of `computed`."""
        drawn = self._drawn(pixels, target, self.plan.n_samples)
        assert drawn.logits is not None
        logits, chosen = drawn.logits.double().cpu(), drawn.target.cpu()[:, None]
        seen = self.explainer.outputs or ("probabilities" if are_probabilities(logits) else "logits")
        probabilities = probabilities_of(logits, single=drawn.single, outputs=seen)
        best = logits.topk(min(5, len(self.labels))).indices
        columns: dict[str, Any] = {
            "class": chosen[:, 0].numpy(),
            "label": self.labels.take(pa.array(chosen[:, 0].numpy())),
            "logit": logits.gather(1, chosen)[:, 0].numpy(),
            "probability": probabilities.gather(1, chosen)[:, 0].numpy(),
            "top5": self._lists(best.numpy(), probabilities.gather(1, best).numpy()),
        }
        for name, maps in drawn.raw.items():
            columns |= self._kept(name, maps.double())
        return _record_batch(columns, self.computed)

    @cached_property
    def nothing(self) -> pa.RecordBatch:
        """A row of the computed columns where nothing is computed: nulls, and maps of NaN; readers refuse tensors of null."""
        columns = [
            _array(np.full((1, *field.type.shape), np.nan, np.float16), field.type)
            if isinstance(field.type, pa.FixedShapeTensorType)
            else pa.nulls(1, field.type)
            for field in self.computed
        ]
        return pa.record_batch(columns, schema=self.computed)

    def _lists(self, categories: np.ndarray, probabilities: np.ndarray) -> pa.Array:
        """Some classes of each photograph (N, K), as the column `top5`."""
        count, length = categories.shape
        flat = pa.array(categories.ravel(), pa.int32())
        entries = [flat, self.labels.take(flat), pa.array(probabilities.ravel())]
        offsets = pa.array(np.arange(0, (count + 1) * length, length), pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(entries, fields=list(_CLASS.fields)))

    def _kept(self, name: str, raw: Tensor) -> dict[str, np.ndarray]:
        """A map's columns: float16 (N, h, w) in [0, 1], and the raw map's low and high."""
        low, high = raw.amin(dim=(1, 2), keepdim=True), raw.amax(dim=(1, 2), keepdim=True)
        if self.plan.resolution == "full":
            kept = finish(raw, self.plan.sides)
        else:
            kept = torch.where(high > low, (raw - low) / (high - low), 0.0)
        ends = {f"{name}_low": low, f"{name}_high": high}
        columns = {name: kept.to(torch.float16)} | {end: values.flatten() for end, values in ends.items()}
        return {column: values.cpu().numpy() for column, values in columns.items()}

    def _drawn(self, pixels: np.ndarray, target: Sequence[int | None], n_samples: int) -> Drawn:
        """Logits, the explained classes, and every method's raw maps."""
        settings = {name: getattr(self.plan, name) for name in ("noise_level", "seed", "channels")}
        return self.explainer.compute(pixels, target, self.plan.methods, n_samples=n_samples, **settings)

    @cached_property
    def computed(self) -> pa.Schema:
        """The columns that are computed."""
        maps: list[tuple[str, pa.DataType]] = []
        for method, raw in self._blank.raw.items():
            shape = self.plan.sides if self.plan.resolution == "full" else tuple(raw.shape[1:])
            maps.append((method, pa.fixed_shape_tensor(pa.float16(), shape)))
            maps += [(f"{method}_{end}", pa.float64()) for end in ("low", "high")]
        return pa.schema([*_EXPLAINED, *maps])

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of a run."""
        return pa.schema([*_BEFORE, *self.computed, *_AFTER])


def _record_batch(columns: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        return pa.ExtensionArray.from_storage(kind, storage)
    return pa.array(values, kind)
