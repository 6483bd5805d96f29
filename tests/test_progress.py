from __future__ import annotations

import contextlib
import io

import pytest

from torch_impl.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, *, quiet=False):
    """What a stream gets of two kinds of work."""
    with contextlib.redirect_stderr(stream):
        show = Progress(quiet=quiet)
        for what in ("smoothgrad", "gradcam"):
            for done in range(1, 21):
                show(what, done, 20)
        show.close()
        show.close()
    return stream.getvalue()


def test_a_terminal_sees_one_moving_line_that_goes_away():
    text = shown(Terminal())
    assert "smoothgrad:   0%" in text
    assert "0/20" in text[text.index("gradcam:   0%") :]
    assert "\n" not in text
    assert text.endswith("\r")
    assert text.split("\r")[-2].isspace()


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)])
def test_a_pipe_sees_nothing_and_nobody_does_where_it_is_quiet(stream, quiet):
    assert shown(stream, quiet=quiet) == ""
