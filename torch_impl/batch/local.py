"""One process: a loader decodes ahead, the network computes, a thread writes; each waits for the next, so memory is bounded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from torch_impl.batch.loading import Loader
from torch_impl.batch.plan import Part
from torch_impl.batch.store import Row, Run, Store
from torch_impl.batch.work import Worker, explained

Report = Callable[[int, int], None]
"""Called with (rows, rows with an error among them) as they come."""


def run_local(
    parts: Iterable[Part],
    worker: Worker,
    store: Store,
    run: Run,
    *,
    processes: int = 0,
    strict: bool = False,
    report: Report | None = None,
) -> None:
    """Explain parts, and write each as soon as it is complete. Whatever happens, complete parts are written.

    Args:
        parts: streamed, in any order.
        worker: the network.
        store: the run's folder, locked.
        run: the run.
        processes: that decode; 0: a thread.
        strict: see `work.explained`.
        report: progress.

    Raises:
        RunError: disk full, folder gone, inputs changed; with `strict`, a bad photograph.
        OutOfMemoryError: see `Worker.rows`.
    """

    def told(rows: Sequence[Row]) -> None:
        if report:
            report(len(rows), sum(row.error is not None for row in rows))

    loader: Loader[tuple[Part, bool]] = Loader(worker.explainer.size, run.plan.resize, processes=processes)
    with loader, Writer(store, run, worker.about() | {"runner": "local"}) as writer:
        for part, rows in explained(parts, worker, loader, strict=strict, report=told):
            writer.write(part, rows)


class Writer:
    """Writes parts in a thread of its own; one may wait while another is being written."""

    def __init__(self, store: Store, run: Run, about: dict[str, Any]) -> None:
        self._store, self._run, self._about = store, run, about
        self._waiting: queue.Queue[tuple[Part, list[Row]] | None] = queue.Queue(1)
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._failed is not None and error is None:
            raise self._failed

    def write(self, part: Part, rows: list[Row]) -> None:
        """Have a part written.

        Raises:
            RunError: an earlier one could not be.
        """
        self._waiting.put((part, rows))
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            if self._failed is None:  # else only empty the queue, so that nobody waits for ever
                try:
                    self._store.write_part(self._run.id, *job, self._run.plan, self._about)
                except BaseException as error:
                    self._failed = error
