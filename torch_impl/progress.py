"""Progress of long work: a moving bar on a terminal, nothing in a pipe."""

from __future__ import annotations

from typing import Any


class Progress:
    """Call it with (what, done, total). By tqdm, on stderr, so that a pipe carries results alone.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._what = ""
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; each new `what` begins a new bar."""
        from tqdm import tqdm

        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(desc=what, total=total, leave=False, disable=True if self._quiet else None)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Wipe the bar, so that the next line starts at the margin."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
