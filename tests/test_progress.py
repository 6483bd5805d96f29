from __future__ import annotations

import io

from torch_impl import progress
from torch_impl.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_one_moving_line_that_goes_away():
    stream = Terminal()
    show = Progress(stream)
    show("smoothgrad", 5, 20)
    assert "smoothgrad" in stream.getvalue()
    assert "5 of 20" in stream.getvalue()
    assert "\n" not in stream.getvalue()
    show("smoothgrad", 20, 20)
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_pipe_sees_a_plain_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    show = Progress(stream)
    for done in range(1, 101):
        now[0] += 0.5
        show("smoothgrad", done, 100)
    assert stream.getvalue().splitlines() == [f"smoothgrad: {n} of 100" for n in (21, 41, 61, 81)]


def test_bytes_and_unknown_totals():
    stream = Terminal()
    show = Progress(stream)
    show("download", 3_000_000, 553_000_000)
    assert "3 of 553 MB" in stream.getvalue()
    show("other", 2_000_000, 0)
    assert "2 MB" in stream.getvalue()


def test_a_download_in_a_pipe_says_that_it_begins():
    stream = io.StringIO()
    Progress(stream)("download", 1000, 553_000_000)
    assert stream.getvalue() == "download: 0 of 553 MB\n"


def test_quiet():
    stream = Terminal()
    show = Progress(stream, quiet=True)
    show("smoothgrad", 1, 2)
    show.close()
    assert stream.getvalue() == ""
