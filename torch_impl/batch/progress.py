"""How far a run is: one moving line on a terminal, a plain line a minute in a pipe, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

PLAIN = 60.0
"""Seconds between two plain lines."""


class RunProgress:
    """Counts rows, and says so.

    Attributes:
        done: rows that are there, those of earlier starts included.
        errors: rows among them without a map.
        fresh: rows of this start.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say where to, and whether at all.

        Args:
            quiet: show nothing.
            stream: by default stderr.
            clock: seconds.
        """
        self._given = stream
        self._quiet = quiet
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._open = False
        self.total = self.done = self.errors = self.fresh = 0
        self._began = self._shown = clock()

    @property
    def _stream(self) -> TextIO:
        return self._given or sys.stderr  # as it is now: see `on_ray`

    def listing(self, count: int) -> None:
        """So many photographs have been listed so far."""
        self._show(f"listing: {count:,} photographs", every=1.0 if self._terminal else PLAIN)

    def begin(self, total: int, done: int, errors: int) -> None:
        """The work starts: so many rows in all, so many of them there already."""
        self.close()
        self.total, self.done, self.errors, self.fresh = total, done, errors, 0
        self._began = self._shown = self._clock()

    def add(self, rows: int, errors: int) -> None:
        """So many more rows."""
        self.done, self.errors, self.fresh = self.done + rows, self.errors + errors, self.fresh + rows
        self._show(self.line(), every=0.2 if self._terminal else PLAIN)

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return self._clock() - self._began

    @property
    def rate(self) -> float:
        """Rows a second, of this start."""
        return self.fresh / self.seconds if self.seconds > 0 else 0.0

    def line(self) -> str:
        """`1,234 of 50,000 (2 %), 6.1/s, 2 h 13 min left, 3 errors`."""
        part = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        text = f"{self.done:,} of {self.total:,}{part}, {self.rate:.3g}/s"
        if self.rate > 0 and self.done < self.total:
            text += f", {duration((self.total - self.done) / self.rate)} left"
        return text + f", {self.errors:,} error{'s' * (self.errors != 1)}"

    def close(self) -> None:
        """Wipe the moving line, so that the next line starts at the margin."""
        if self._open:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._open = False

    def _show(self, text: str, every: float) -> None:
        now = self._clock()
        if self._quiet or now - self._shown < every:
            return
        self._shown = now
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2 h 13 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
