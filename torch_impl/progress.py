"""Progress of long work: one moving line on a terminal, a few plain lines in a pipe, nothing when quiet."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LARGE = 2**20
"""Totals from here on are bytes of a download; no job has a million passes."""

STEP = 10.0
"""Seconds between two plain lines."""


class Progress:
    """Call it with (what, done, total); it decides what is worth showing.

    Attributes:
        stream: stderr, so that a pipe carries results alone.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        """Say where to, and whether at all.

        Args:
            stream: by default stderr.
            quiet: show nothing.
        """
        self.stream = stream or sys.stderr
        self._quiet = quiet
        self._terminal = self.stream.isatty()
        self._what = ""
        self._started = self._shown = 0.0
        self._open = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; total 0 or less: unknown."""
        if self._quiet:
            return
        now = time.monotonic()
        if what != self._what:
            self.close()
            self._what, self._started = what, now
            # In a pipe a job of seconds says nothing, a download of half a gigabyte says that it begins.
            self._shown = now if not self._terminal and total < LARGE else -STEP
        finished = 0 < total <= done
        if self._terminal and (finished or now - self._shown > 0.1):
            part = done / total if total > 0 else 0
            left = f", {(now - self._started) * (1 / part - 1):.0f} s left" if 0 < part < 1 else ""
            bar = "█" * round(20 * part) + "░" * (20 - round(20 * part))
            self.stream.write(f"\r\x1b[K{what} {bar} {_amount(done, total)}{left}")
            self.stream.flush()
            self._shown, self._open = now, True
            if finished:
                self.close()
        elif not self._terminal and now - self._shown >= STEP and not finished:
            print(f"{what}: {_amount(done, total)}", file=self.stream, flush=True)
            self._shown = now

    def close(self) -> None:
        """Wipe the moving line, so that the next line starts at the margin."""
        if self._open:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._open = False


def _amount(done: int, total: int) -> str:
    if max(done, total) >= LARGE:
        return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total > 0 else f"{done / 1e6:.0f} MB"
    return f"{done} of {total}"
