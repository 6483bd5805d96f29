"""Items → rows: the work that both runners do, part by part, in micro-batches cut by index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.contract import classes as imagenet
from parity.contract.network import Network
from torch_impl.batch.entries import Item, readable
from torch_impl.batch.loading import Loaded, Loader
from torch_impl.batch.plan import Part, Plan, RunError, chunks
from torch_impl.batch.store import Row
from torch_impl.batching import AutoSize, OutOfMemoryError, sized
from torch_impl.explainer import Explainer, versions
from torch_impl.methods import MapError, Settings, finish, raw_maps
from torch_impl.names import REFERENCE_METHODS
from torch_impl.precision import at_least_fp32, numerics
from torch_impl.preprocess import preprocess
from torch_impl.shared_pass import Computed


class StrictError(RunError):
    """A photograph that cannot be explained, where none may be missing."""


def shapes(network: Network, methods: Sequence[str], resolution: str) -> dict[str, tuple[int, int]]:
    """(h, w) of each method's maps in the rows: the CAMs' own before they are enlarged, everything else the input's."""
    size = network.architecture.size
    h, w, _ = network.architecture.target.shape
    small = ("gradcam", "gradcam_plus_plus") if resolution == "raw" else ()
    return {method: (h, w) if method in small else (size, size) for method in methods}


def make_explainer(network: Network, plan: Plan, device: str) -> Explainer:
    """The plan's network on a device.

    Raises:
        DeviceError: no such device.
        ValueError: a precision that it does not have.
    """
    return Explainer.vgg16(
        network, input=plan.input, resize=plan.resize, device=device, precision=plan.precision, engine="shared"
    )


def micro_batch(explainer: Explainer, plan: Plan, batch_size: int | str) -> int:
    """Photographs in one pass: as given, or for "auto" what the free memory holds, up to where more gains nothing."""
    inputs = torch.empty((1, 3, plan.size, plan.size), dtype=explainer.dtype, device=explainer.device)
    cams_alone = plan.engine == "shared" and set(plan.methods) <= {"gradcam", "gradcam_plus_plus"}
    size = sized(batch_size, explainer.model, inputs, gradients=not cams_alone)
    if isinstance(size, AutoSize):
        return size.start
    return int(size)


@dataclass
class Worker:
    """One network on one device.

    Attributes:
        explainer: of the network.
        plan: of the run.
        batch_size: photographs in one pass.
        automatic: whether it may be halved when memory runs out.
    """

    explainer: Explainer
    plan: Plan
    batch_size: int
    automatic: bool = True

    def about(self) -> dict[str, Any]:
        """How rows are computed here, for a part's metadata."""
        return {
            "device": str(self.explainer.device),
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def rows(self, loaded: Sequence[Loaded]) -> list[Row]:
        """Explain one micro-batch.

        Raises:
            OutOfMemoryError: not even the batch size asked for, or a single photograph, fits.
        """
        rows: list[Row] = []
        start = 0
        while start < len(loaded):
            piece = loaded[start : start + self.batch_size]
            found = self._tried(piece)
            if found is None:
                self.batch_size = len(piece) // 2
                continue
            rows += found
            start += len(piece)
        return rows

    def _tried(self, piece: Sequence[Loaded]) -> list[Row] | None:
        """Rows; None where there was too little memory and fewer photographs may fit."""
        try:
            return self._explained(piece)
        except OutOfMemoryError:
            if not self.automatic or len(piece) == 1:
                raise
        except torch.OutOfMemoryError:  # outside the network's own passes: inputs, finished maps
            if not self.automatic or len(piece) == 1:
                raise OutOfMemoryError(
                    f"out of memory on {self.explainer.device} with {len(piece)} in a batch: give a smaller --batch-size, "
                    "or make room there"
                ) from None
        # Outside the except blocks, so that no traceback holds the tensors that filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _explained(self, loaded: Sequence[Loaded]) -> list[Row]:
        clock = time.perf_counter()
        rows = [_row(one) for one in loaded]
        good: list[int] = []
        target: list[int | None] = []
        for i, one in enumerate(loaded):
            if one.photograph is None:
                continue
            try:
                asked = one.item.category
                target.append(None if asked is None else imagenet.index(asked, self.plan.n_classes))
                good.append(i)
            except imagenet.ClassError as error:
                rows[i] = replace(rows[i], error=readable(str(error)))
        if good:
            explained = self._maps([loaded[i].photograph for i in good], target)
            seconds = (time.perf_counter() - clock) / len(good)
            for i, values in zip(good, explained, strict=True):
                rows[i] = replace(rows[i], seconds=rows[i].seconds + seconds, **values)
        return rows

    def _maps(self, photographs: Sequence[Any], target: Sequence[int | None]) -> list[dict[str, Any]]:
        """The computed columns of each photograph."""
        pixels = np.stack([photograph.pixels for photograph in photographs])
        try:
            return self._values(self._computed(pixels, target))
        except MapError as error:
            if len(photographs) == 1:
                return [{"error": f"no finite map: {error}"}]
        # One of them is the culprit; its neighbours need not suffer.
        return [self._maps([one], [asked])[0] for one, asked in zip(photographs, target, strict=True)]

    def _computed(self, pixels: np.ndarray, target: Sequence[int | None]) -> Computed:
        compute = partial(
            self.explainer.compute,
            n_samples=self.plan.n_samples,
            noise_level=self.plan.noise_level,
            seed=self.plan.seed,
        )
        self.explainer.batch_size = self.batch_size
        ours = [m for m in self.plan.methods if m in REFERENCE_METHODS] if self.plan.engine == "shared" else []
        wanted = None if all(one is None for one in target) else [one for one in target if one is not None]
        if wanted is not None and len(wanted) < len(target):  # some their own class, some the top-1
            top = compute(pixels, None, []).target.tolist()
            wanted = [t if asked is None else asked for t, asked in zip(top, target, strict=True)]
        computed = compute(pixels, wanted, ours)
        if len(ours) == len(self.plan.methods):
            return computed
        return replace(computed, raw=dict(computed.raw) | self._by_libraries(pixels, computed.target, ours))

    def _by_libraries(self, pixels: np.ndarray, target: Tensor, drawn: Sequence[str]) -> dict[str, Tensor]:
        explainer = self.explainer
        settings = Settings(
            target_layer=explainer.target_layer,
            noise_level=self.plan.noise_level,
            n_samples=self.plan.n_samples,
            seed=self.plan.seed,
            batch_size=self.batch_size,
        )
        with numerics(explainer.precision):
            inputs = preprocess(pixels, input=self.plan.input, dtype=explainer.dtype, device=explainer.device)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            return {
                method: raw_maps(method, explainer.model, inputs, target, settings)
                for method in self.plan.methods
                if method not in drawn
            }

    def _values(self, computed: Computed) -> list[dict[str, Any]]:
        logits = computed.logits.double().cpu()
        probabilities = logits.softmax(dim=1)
        chosen = computed.target.tolist()
        top = logits.topk(min(5, logits.shape[1])).indices.tolist()
        kept: dict[str, tuple[np.ndarray, list[float], list[float]]] = {}
        for method in self.plan.methods:
            kept[method] = self._kept(computed.raw[method].to(at_least_fp32(computed.raw[method].dtype)))
        return [
            {
                "category": chosen[i],
                "label": self._label(chosen[i]),
                "logit": float(logits[i, chosen[i]]),
                "probability": float(probabilities[i, chosen[i]]),
                "top5": [(c, self._label(c), float(probabilities[i, c])) for c in top[i]],
                "maps": {method: maps[i] for method, (maps, _, _) in kept.items()},
                "ranges": {method: (low[i], high[i]) for method, (_, low, high) in kept.items()},
            }
            for i in range(len(chosen))
        ]

    def _kept(self, raw: Tensor) -> tuple[np.ndarray, list[float], list[float]]:
        """float16 (N, h, w) in [0, 1], and each raw map's low and high."""
        low, high = raw.amin(dim=(1, 2)), raw.amax(dim=(1, 2))
        if self.plan.resolution == "full":
            scaled = finish(raw, (self.plan.size, self.plan.size))
        else:
            span = (high - low)[:, None, None]
            scaled = torch.where(span > 0, (raw - low[:, None, None]) / span, 0.0)
        return scaled.to(torch.float16).cpu().numpy(), low.tolist(), high.tolist()

    def _label(self, category: int) -> str:
        return imagenet.label(category, self.plan.n_classes)


def _row(loaded: Loaded) -> Row:
    item, photograph = loaded.item, loaded.photograph
    return Row(
        index=item.index,
        key=item.key,
        path=item.path,
        asked=item.category,
        stamp=item.stamp,
        sha256=photograph.sha256 if photograph else loaded.sha256,
        notes=photograph.notes if photograph else (),
        seconds=loaded.seconds,
        error=readable(loaded.error) if loaded.error is not None else None,
        passing=loaded.passing,
    )


def explained(
    parts: Iterable[Part],
    worker: Worker,
    loader: Loader[tuple[Part, bool]],
    *,
    strict: bool = False,
    report: Callable[[Sequence[Row]], None] | None = None,
) -> Iterator[tuple[Part, list[Row]]]:
    """Parts with their rows, one after another, while the loader is already at the next.

    Args:
        parts: streamed.
        worker: computes.
        loader: decodes ahead, also across the border of two parts.
        strict: stop at the first photograph that cannot be explained.
        report: called with the rows of each micro-batch.

    Raises:
        StrictError: with `strict`.
        OutOfMemoryError: see `Worker.rows`.
    """
    size = worker.batch_size

    def pieces() -> Iterator[tuple[tuple[Part, bool], Sequence[Item]]]:
        for part in parts:
            last = len(part.items)
            for piece in chunks(part.items, size):
                last -= len(piece)
                yield (part, last == 0), piece

    rows: list[Row] = []
    for (part, complete), loaded in loader(pieces()):
        found = worker.rows(loaded)
        bad = next((row for row in found if row.error is not None), None)
        if strict and bad is not None:
            raise StrictError(
                f"{bad.path!r}: {bad.error} (--strict: not one may be missing); finished parts are kept; mend it, or run "
                "the same command without --strict"
            )
        rows += found
        if report:
            report(found)
        if complete:
            yield part, rows
            rows = []
