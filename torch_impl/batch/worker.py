"""Rows of a listing → rows of a run, and the runner of this machine.

Both runners work like this: part by part, in micro-batches that are cut by the rows' numbers, never by who comes first.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from parity.contract import classes as imagenet
from parity.contract.text import one_line
from torch_impl.batch.listing import Listing
from torch_impl.batch.loading import Decoded, Photographs, carefully_loaded, has_died, loaded, pieces
from torch_impl.batch.run import LISTED, Plan, Run, RunError
from torch_impl.capture.passes import MapError
from torch_impl.explainer import Explainer
from torch_impl.manifest import program_versions
from torch_impl.maps.postprocess import finish
from torch_impl.question import probabilities_of
from torch_impl.score import are_probabilities

ROWS_AT_ONCE = {"cpu": 16, "cuda": 64}
"""Photographs that are decoded and explained together where no batch size is given; the explainer cuts them to what fits."""

_BEFORE = (
    pa.field("index", pa.int64(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    ("sha256", pa.string()),
    ("asked", pa.string()),
    ("class", pa.int32()),
    ("label", pa.string()),
    ("logit", pa.float64()),
    ("probability", pa.float64()),
    ("top5", pa.list_(pa.struct([("class", pa.int32()), ("label", pa.string()), ("probability", pa.float64())]))),
)
_AFTER = (
    ("notes", pa.list_(pa.string())),
    ("file_size", pa.int64()),
    ("file_mtime_ns", pa.int64()),
    ("seconds", pa.float64()),
    ("error", pa.string()),
)
"""The columns of a run before and after those of its maps."""

Report = Callable[[int, int], object]
"""Called with (rows, rows with an error among them) as they come."""


def run_local(run: Run, worker: Worker, numbers: Sequence[int], processes: int, *, report: Report) -> Counter[str]:
    """Explain parts in this process, and write each beside the next. Whatever happens, complete parts are written.

    Args:
        run: its folder, locked.
        worker: the network.
        numbers: of the parts.
        processes: that decode.
        report: progress.

    Returns:
        Kinds of errors, counted.

    Raises:
        OSError: a part could not be written.
        RunError, OutOfMemoryError: see `Worker.parts`.
    """
    errors, about = Counter[str](), worker.about() | {"runner": "local"}
    left, writing = deque(numbers), deque[Future[Counter[str]]]()

    def write(number: int, rows: pa.Table) -> None:
        while writing:  # one part is written while the next is computed, and no more wait
            errors.update(writing.popleft().result())
        writing.append(writer.submit(run.write_part, number, rows, about))
        left.popleft()

    with ThreadPoolExecutor(1, "writer") as writer:
        while left:
            try:
                with closing(worker.parts(run.listing, list(left), processes, report=report)) as parts:
                    for number, rows in parts:
                        write(number, rows)
            except RuntimeError as error:
                if not has_died(error):
                    raise
                write(left[0], worker.part(run.listing, left[0], processes, careful=True))
        for future in writing:
            errors.update(future.result())
    return errors


class Worker:
    """One network on one device.

    Attributes:
        explainer: of the network.
        plan: of the run.
        strict: whether to stop at the first photograph that cannot be explained.
        rows_at_once: photographs that are decoded and explained together.
    """

    def __init__(self, explainer: Explainer, plan: Plan, *, strict: bool = False) -> None:
        self.explainer, self.plan, self.strict = explainer, plan, strict
        size = explainer.batch_size
        self.rows_at_once = size if isinstance(size, int) else ROWS_AT_ONCE.get(explainer.device.type, 16)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Method → (h, w) of its column: those of the maps of a blank picture, which is the first pass.

        Raises:
            MapError, OutOfMemoryError: as of `Explainer.compute`.
        """
        size = (self.plan.size, self.plan.size)
        logits, _, raw = self._drawn(np.zeros((1, *size, 3), np.uint8), [0], n_samples=1)
        self.n_classes = logits.shape[1]
        full = self.plan.resolution == "full"
        return {name: size if full else tuple(maps.shape[1:]) for name, maps in raw.items()}

    def about(self) -> dict[str, Any]:
        """How rows are computed here, for a part's metadata."""
        return {
            "device": str(self.explainer.device),
            "batch_size": self.explainer.batch_size,
            "threads": torch.get_num_threads(),
            "versions": program_versions(),
        }

    def parts(
        self,
        listing: Path,
        numbers: Sequence[int],
        processes: int,
        *,
        careful: bool = False,
        report: Report = lambda rows, errors: None,
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Explain parts, one after another, while the photographs of the next are being decoded.

        Args:
            listing: the file.
            numbers: of the parts.
            processes: that decode; see `loading.loaded`.
            careful: see `loading.carefully_loaded`.
            report: called after each micro-batch.

        Yields:
            (number, rows).

        Raises:
            RunError: with `strict`, a photograph that cannot be explained.
            RuntimeError: a process that decodes has died; see `loading.has_died`.
        """
        listed = Listing(listing)
        photographs = Photographs(listing, self.plan.size, self.plan.resize)
        wanted = pieces(listed, numbers, self.rows_at_once)
        one_by_one = (carefully_loaded(photographs, piece) for piece in wanted)
        explained: list[pa.RecordBatch] = []
        with nullcontext(one_by_one) if careful else loaded(photographs, wanted, processes) as stream:
            schema = self.schema  # a first pass, while the first photographs are decoded
            for (number, start, stop), decoded in zip(wanted, stream, strict=True):
                index = number * self.plan.part_rows + start
                rows = self._explained(schema, listed.part(number)[start:stop], index, decoded)
                bad = [row for row in rows.select(["path", "error"]).to_pylist() if row["error"] is not None]
                if bad and self.strict:
                    raise RunError(
                        f"{bad[0]['path']!r}: {bad[0]['error']} (--strict: not one may be missing); finished parts are kept; "
                        "mend it, or run the same command without --strict"
                    )
                report(len(rows), len(bad))
                explained.append(rows)
                if stop == listed.length(number):
                    yield number, pa.Table.from_batches(explained)
                    explained = []

    def part(self, listing: Path, number: int, processes: int, *, careful: bool = False) -> pa.Table:
        """Explain one part, whatever becomes of the processes that decode; arguments and errors as of `parts`."""
        try:
            ((_, rows),) = self.parts(listing, [number], processes, careful=careful)
        except RuntimeError as error:
            if careful or not has_died(error):
                raise
            return self.part(listing, number, processes, careful=True)
        return rows

    def _explained(self, schema: pa.Schema, listed: pa.RecordBatch, index: int, decoded: Decoded) -> pa.RecordBatch:
        """The rows of a piece, of which `index` is the first's place in the listing."""
        clock, count = time.perf_counter(), len(listed)
        errors = list(decoded.errors)
        target = self._target(listed["asked"].to_pylist(), errors)
        good = [place for place in range(count) if errors[place] is None]
        columns: dict[str, Any] = {name: [None] * count for name in schema.names}
        for method, shape in self.shapes.items():  # not null: several readers refuse tensors with nulls
            columns[method] = np.full((count, *shape), np.nan, np.float16)
        for places, values in self._columns(good, decoded.pixels.numpy()[good], [target[i] for i in good], errors):
            for name, column in values.items():
                for place, value in zip(places, column, strict=True):
                    columns[name][place] = value
        spent = (time.perf_counter() - clock) / max(1, len(good))
        columns["seconds"] = [seconds + spent * (i in good) for i, seconds in enumerate(decoded.seconds)]
        columns |= {"index": range(index, index + count), "sha256": decoded.sha256, "notes": decoded.notes}
        columns |= {"error": errors} | {name: listed[name] for name in LISTED}
        return pa.record_batch([_array(columns[field.name], field.type) for field in schema], schema=schema)

    def _target(self, asked: Sequence[str | None], errors: list[str | None]) -> list[int | None]:
        """The class of each row, None for the top-1; what is no class is noted down."""
        target: list[int | None] = []
        for place, category in enumerate(asked):
            target.append(None)
            if category is not None and errors[place] is None:
                try:
                    target[place] = imagenet.index(category, self.n_classes, self.explainer.labels)
                except imagenet.ClassError as error:
                    errors[place] = one_line(error)
        return target

    def _columns(
        self, places: list[int], pixels: np.ndarray, target: list[int | None], errors: list[str | None]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(places, computed columns); a photograph whose maps are not finite gets an error, and its neighbours do not."""
        if not places:
            return
        try:
            yield places, self._computed(pixels, target)
        except MapError as error:
            if len(places) == 1:
                errors[places[0]] = f"no finite map: {one_line(error)}"
                return
            for i in range(len(places)):
                yield from self._columns(places[i : i + 1], pixels[i : i + 1], target[i : i + 1], errors)

    def _computed(self, pixels: np.ndarray, target: list[int | None]) -> dict[str, Any]:
        raw_logits, explained, raw = self._drawn(pixels, target, self.plan.n_samples)
        logits, chosen = raw_logits.double().cpu(), explained.cpu()[:, None]
        seen = self.explainer.outputs or ("probabilities" if are_probabilities(raw_logits) else "logits")
        probabilities = probabilities_of(logits, single=self.explainer.single, outputs=seen)
        best = logits.topk(min(5, self.n_classes)).indices
        columns: dict[str, Any] = {
            "class": chosen[:, 0].tolist(),
            "label": [self._label(category) for category in chosen[:, 0].tolist()],
            "logit": logits.gather(1, chosen)[:, 0].tolist(),
            "probability": probabilities.gather(1, chosen)[:, 0].tolist(),
            "top5": [
                [{"class": c, "label": self._label(c), "probability": p} for c, p in zip(classes, values, strict=True)]
                for classes, values in zip(best.tolist(), probabilities.gather(1, best).tolist(), strict=True)
            ],
        }
        for name, maps in raw.items():
            columns |= self._kept(name, maps.double())
        return columns

    def _kept(self, name: str, raw: Tensor) -> dict[str, Any]:
        """A map's columns: float16 (N, h, w) in [0, 1], and the raw map's low and high."""
        low, high = raw.amin(dim=(1, 2), keepdim=True), raw.amax(dim=(1, 2), keepdim=True)
        if self.plan.resolution == "full":
            kept = finish(raw, (self.plan.size, self.plan.size))
        else:
            kept = torch.where(high > low, (raw - low) / (high - low), 0.0)
        return {
            name: kept.to(torch.float16).cpu().numpy(),
            f"{name}_low": low.flatten().tolist(),
            f"{name}_high": high.flatten().tolist(),
        }

    def _label(self, category: int) -> str:
        return imagenet.label(category, self.n_classes, self.explainer.labels)

    def _drawn(
        self, pixels: np.ndarray, target: Sequence[int | None], n_samples: int
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Logits, the explained classes, and every method's raw maps."""
        plan = self.plan
        drawn = self.explainer.compute(
            pixels,
            target,
            plan.methods,
            n_samples=n_samples,
            noise_level=plan.noise_level,
            seed=plan.seed,
            channels=plan.channels,
        )
        assert drawn.logits is not None
        return drawn.logits, drawn.target, drawn.raw

    @property
    def schema(self) -> pa.Schema:
        """The columns of a run."""
        maps: list[tuple[str, pa.DataType]] = []
        for method, shape in self.shapes.items():
            maps.append((method, pa.fixed_shape_tensor(pa.float16(), shape)))
            maps += [(f"{method}_{end}", pa.float64()) for end in ("low", "high")]
        return pa.schema([*_BEFORE, *maps, *_AFTER])


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        return pa.ExtensionArray.from_storage(kind, storage)
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
