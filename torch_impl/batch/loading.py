"""Photographs read and decoded ahead of the network, in the order of the listing, a bounded number at a time."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Generic, TypeVar

from torch_impl import images
from torch_impl.batch import sources
from torch_impl.batch.entries import Item

Tag = TypeVar("Tag")


@dataclass(frozen=True, eq=False)
class Loaded:
    """One item's photograph, or why there is none.

    Attributes:
        item: out of the listing.
        photograph: decoded; None with an error.
        error: one line, without the path.
        seconds: spent reading and decoding.
        sha256: of the bytes; None where they could not be read.
        passing: whether another try may succeed; see `images.ImageError`.
    """

    item: Item
    photograph: images.Photograph | None
    error: str | None
    seconds: float
    sha256: str | None = None
    passing: bool = False


def load(items: Sequence[Item], size: int, resize: str) -> list[Loaded]:
    """Read and decode; what cannot be is said in its place."""
    found = []
    for item in items:
        clock = time.perf_counter()
        photograph, error, digest, passing = None, None, None, False
        try:
            data = sources.read(item)
            digest = hashlib.sha256(data).hexdigest()
            photograph = sources.decoded(item, data, size=size, resize=resize)
        except images.ImageError as refused:
            error, passing = refused.problem, refused.passing
        found.append(Loaded(item, photograph, error, time.perf_counter() - clock, digest, passing))
    return found


def _begin() -> None:
    """In each process: Ctrl-C is the parent's business, and without a parent, however it went, there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, name="orphan", daemon=True).start()


class Loader(Generic[Tag]):
    """Decodes in the background: one thread, or processes where one is not enough for the device.

    A process that a damaged photograph brings down (a decoder's crash) costs that photograph alone: it gets an error.
    """

    def __init__(self, size: int, resize: str, *, processes: int = 0, ahead: int = 4) -> None:
        """Start nothing yet.

        Args:
            size: of the network's input.
            resize: see `images`.
            processes: 0: a thread of this process.
            ahead: micro-batches that may wait decoded, beside those being decoded.
        """
        self.size, self.resize, self.processes = size, resize, processes
        self.ahead = ahead + processes
        self._pool: Executor | None = None

    def __enter__(self) -> Loader[Tag]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def __call__(self, pieces: Iterable[tuple[Tag, Sequence[Item]]]) -> Iterator[tuple[Tag, list[Loaded]]]:
        """The pieces, loaded, in the same order.

        Args:
            pieces: micro-batches, each with whatever the caller wants to know it by.
        """
        waiting: deque[tuple[Tag, Sequence[Item], Future[list[Loaded]]]] = deque()
        for tag, items in pieces:
            waiting.append((tag, items, self._submit(items)))
            if len(waiting) > self.ahead:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _submit(self, items: Sequence[Item]) -> Future[list[Loaded]]:
        if self._pool is None:
            self._pool = self._started()
        try:
            return self._pool.submit(load, items, self.size, self.resize)
        except BrokenProcessPool as error:
            failed: Future[list[Loaded]] = Future()
            failed.set_exception(error)
            return failed

    def _started(self) -> Executor:
        if not self.processes:
            return ThreadPoolExecutor(1, "loader")
        # Not fork: this process has threads, and maybe a CUDA context.
        return ProcessPoolExecutor(self.processes, get_context("spawn"), _begin)

    def _next(self, waiting: deque[tuple[Tag, Sequence[Item], Future[list[Loaded]]]]) -> tuple[Tag, list[Loaded]]:
        tag, items, future = waiting.popleft()
        try:
            return tag, future.result()
        except BrokenProcessPool:
            self._close()
        one_by_one = [self._alone(item) for item in items]
        again = [(t, i, self._submit(i)) for t, i, _ in waiting]
        waiting.clear()
        waiting.extend(again)
        return tag, one_by_one

    def _alone(self, item: Item) -> Loaded:
        """One photograph, after a process has died: whether this was the one that killed it."""
        try:
            return self._submit([item]).result()[0]
        except BrokenProcessPool:
            self._close()
            problem = "the process that decoded it died: damaged so that the decoder crashes, or too little memory"
            return Loaded(item, None, problem, 0.0, passing=True)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
