"""Downloads, against a server on the loopback interface that misbehaves as told."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from parity.contract.network import WeightsError
from torch_impl import downloads

ROOT = Path(__file__).parent.parent
BODY = np.random.RandomState(0).bytes(1_000_003)
Script = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each GET to the server's script, with the request's number."""

    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range", ""))
        with contextlib.suppress(ConnectionError):
            self.server.script(self, len(self.server.ranges))

    def send(self, body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> None:
        """Announce `length` bytes and send `body`."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def resumable(self, stop: int | None = None) -> None:
        """Send from where the client asks, breaking off before byte `stop`."""
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        length = len(BODY) - start
        about = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
        self.send(BODY[start:stop], status=206 if start else 200, length=length, **about)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    script: Script

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.script = lambda handler, _: handler.send(BODY)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("ATTENTION_MAPS_KERAS_URL", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "PROBE_SECONDS", 0.5)
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(tmp_path: Path) -> downloads.Remote:
    digest = hashlib.sha256(BODY).hexdigest()
    folder = tmp_path / "cache"
    return dataclasses.replace(downloads.KERAS, algorithm="sha256", digest=digest, folder=lambda: folder)


def files(remote: downloads.Remote) -> list[str]:
    folder = remote.folder()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refusal(remote: downloads.Remote) -> str:
    """The one line with which a download fails, leaving nothing behind."""
    before = files(remote)
    with pytest.raises(WeightsError) as caught:
        downloads.fetch(remote)
    assert files(remote) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_file_arrives_whole_with_progress_and_nothing_else(server: Server, remote: downloads.Remote) -> None:
    seen: list[tuple[str, int, int]] = []
    path = downloads.fetch(remote, lambda *report: seen.append(report))
    assert path.read_bytes() == BODY
    assert files(remote) == [remote.name]
    assert [report[1:] for report in (seen[0], seen[-1])] == [(0, len(BODY)), (len(BODY), len(BODY))]
    assert remote.name in seen[0][0]
    assert "127.0.0.1" in seen[0][0]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()  # a cache that other users may read


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_cached_file_is_not_asked_for_again(server: Server, remote: downloads.Remote) -> None:
    downloads.fetch(remote)
    downloads.fetch(remote)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("damage", [b"", BODY[:500], BODY[:-1] + b"?"])
def test_a_damaged_cached_file_is_replaced_and_said(
    server: Server, remote: downloads.Remote, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    remote.path.parent.mkdir()
    remote.path.write_bytes(damage)
    assert downloads.fetch(remote).read_bytes() == BODY
    assert "damaged" in caplog.text


def test_no_length_announced(server: Server, remote: downloads.Remote) -> None:
    def script(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.script = script
    assert downloads.fetch(remote).read_bytes() == BODY


def test_a_cut_transfer_is_resumed(server: Server, remote: downloads.Remote) -> None:
    server.script = lambda handler, n: handler.resumable(stop=300_000 * n if n < 3 else None)
    assert downloads.fetch(remote).read_bytes() == BODY
    assert server.ranges == ["", "bytes=300000-", "bytes=600000-"]


def test_a_cut_transfer_starts_again_where_the_server_cannot_resume(server: Server, remote: downloads.Remote) -> None:
    server.script = lambda handler, n: handler.send(BODY[: 300_000 if n == 1 else None], length=len(BODY))
    assert downloads.fetch(remote).read_bytes() == BODY
    assert server.ranges == ["", "bytes=300000-"]


def test_what_a_longer_first_answer_left_behind_is_cut_away(server: Server, remote: downloads.Remote) -> None:
    longer = b"?" * (len(BODY) + 500)
    server.script = lambda handler, n: handler.send(longer, length=2 * len(longer)) if n == 1 else handler.send(BODY)
    assert downloads.fetch(remote).read_bytes() == BODY


def test_a_server_that_always_cuts_is_given_up(server: Server, remote: downloads.Remote) -> None:
    server.script = lambda handler, _: handler.send(BODY[:1000], length=len(BODY))
    assert "cut off after 1000 of 1000003 bytes" in refusal(remote)
    assert len(server.ranges) == downloads.ATTEMPTS


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_http_error_is_named(server: Server, remote: downloads.Remote, status: int) -> None:
    server.script = lambda handler, _: handler.send(b"sorry", status=status)
    assert f"HTTP {status}" in refusal(remote)
    assert len(server.ranges) == 1


def test_another_file_is_refused(server: Server, remote: downloads.Remote) -> None:
    server.script = lambda handler, _: handler.send(b"<html>Please log in</html>")
    assert "is not vgg16_weights" in refusal(remote)


def test_a_failed_repair_leaves_the_cache_as_it_was(server: Server, remote: downloads.Remote) -> None:
    remote.path.parent.mkdir()
    remote.path.write_bytes(b"damaged")
    server.script = lambda handler, _: handler.send(b"no", status=404)
    refusal(remote)
    assert remote.path.read_bytes() == b"damaged"


def test_a_server_that_never_answers_is_left(server: Server, remote: downloads.Remote) -> None:
    server.script = lambda _, __: server.closing.wait(20) and None
    started = time.monotonic()
    assert "no answer in time" in refusal(remote)
    assert time.monotonic() - started < 5


def test_a_transfer_that_stalls_is_resumed(server: Server, remote: downloads.Remote) -> None:
    def script(handler: Handler, n: int) -> None:
        handler.resumable(stop=400_000 if n == 1 else None)
        if n == 1:
            server.closing.wait(20)

    server.script = script
    assert downloads.fetch(remote).read_bytes() == BODY
    assert server.ranges == ["", "bytes=400000-"]


def test_a_trickle_is_a_stall(server: Server, remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(handler: Handler, n: int) -> None:
        handler.send(b"", length=len(BODY))
        while not server.closing.wait(0.05):
            handler.wfile.write(b"x")

    server.script = script
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    started = time.monotonic()
    assert "slower than" in refusal(remote)
    assert time.monotonic() - started < 5


def test_too_large_a_body_is_not_swallowed(
    server: Server, remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LARGEST", 1000)
    assert "sends more than" in refusal(remote)


def test_too_small_a_disk_is_said_before_the_download(
    server: Server, remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    message = refusal(remote)
    assert "no room" in message
    assert "KERAS_HOME" in message


def test_a_cache_that_cannot_be_written_is_named(server: Server, remote: downloads.Remote, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="KERAS_HOME moves the cache"):
        downloads.fetch(remote)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "host/x", "http://", "http://[", "http://h/a b", "http://h/\nX: y"]
)
def test_a_mirror_must_be_http(remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ATTENTION_MAPS_KERAS_URL", url)
    with pytest.raises(WeightsError, match="is not an http or https URL"):
        downloads.address(remote)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:text/plain,x", "gopher://x/"])
def test_a_redirection_away_from_http_is_not_followed(server: Server, remote: downloads.Remote, location: str) -> None:
    server.script = lambda handler, _: handler.send(b"", status=302, Location=location)
    assert "failed: HTTP 302" in refusal(remote)


def test_a_password_in_the_url_is_not_shown(
    server: Server, remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENTION_MAPS_KERAS_URL", server.url.replace("127.0.0.1", "me:secret@127.0.0.1"))
    assert "secret" not in refusal(remote)


def test_whether_a_host_answers(server: Server, remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    assert downloads.unreachable(remote) == ""
    server.script = lambda handler, _: handler.send(b"", status=503)
    assert "HTTP 503" in downloads.unreachable(remote)
    server.script = lambda _, __: server.closing.wait(20) and None
    started = time.monotonic()
    assert downloads.unreachable(remote)
    assert time.monotonic() - started < 2
    monkeypatch.setenv("ATTENTION_MAPS_KERAS_URL", "http://127.0.0.1:9/")
    assert "refused" in downloads.unreachable(remote)


def test_a_resolver_that_hangs_does_not_hold_auto(remote: downloads.Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    started = time.monotonic()
    assert "does not answer" in downloads.unreachable(remote)
    assert time.monotonic() - started < 2


PROGRAM = """
import dataclasses, pathlib, sys
from torch_impl import downloads
remote = dataclasses.replace(
    downloads.KERAS, algorithm="sha256", digest=sys.argv[2], folder=lambda: pathlib.Path(sys.argv[1])
)
if len(sys.argv) > 3:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    downloads.fetch(remote)
except downloads.WeightsError as error:
    sys.exit(str(error))
assert "torch" not in sys.modules
"""


def start(remote: downloads.Remote, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(remote.folder()), remote.digest, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_start_together_share_one_download(server: Server, remote: downloads.Remote) -> None:
    together = threading.Event()

    def script(handler: Handler, _: int) -> None:
        handler.send(BODY[:1000], length=len(BODY))
        together.wait(20)  # the others have arrived by now
        time.sleep(0.3)
        handler.wfile.write(BODY[1000:])

    server.script = script
    processes = [start(remote) for _ in range(3)]
    while not server.ranges:
        time.sleep(0.01)
    time.sleep(1.0)
    together.set()
    for process in processes:
        assert process.communicate(timeout=60)[1].count("Error") == 0
        assert process.returncode == 0
    assert remote.path.read_bytes() == BODY
    assert files(remote) == [remote.name]
    assert len(server.ranges) == 1


def test_ctrl_c_leaves_nothing(server: Server, remote: downloads.Remote) -> None:
    server.script = lambda handler, _: handler.send(BODY[:5000], length=len(BODY)) or server.closing.wait(20)
    process = start(remote)
    while not any(name.startswith(".part-") for name in files(remote)):
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert files(remote) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(server: Server, remote: downloads.Remote) -> None:
    process = start(remote, "limit the size of files")
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "cannot write" in errors
    assert files(remote) == []


def test_the_official_files_are_what_their_publishers_say() -> None:
    from torchvision.models import VGG16_Weights

    assert VGG16_Weights.IMAGENET1K_V1.url == downloads.IMAGENET.url
    assert downloads.IMAGENET.name == downloads.IMAGENET.url.rpartition("/")[2]
    assert downloads.IMAGENET.digest.startswith(downloads.IMAGENET.name[6:14])  # torch.hub checks these 8 digits
    assert len(downloads.IMAGENET.digest) == 64


def test_the_keras_file_is_what_keras_says() -> None:
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        pytest.skip("Keras is not installed")
    source = (Path(spec.origin).parent / "src/applications/vgg16.py").read_text()  # read, not imported
    assert f'file_hash="{downloads.KERAS.digest}"' in source
    assert "".join(source.split()).replace('""', "").find(downloads.KERAS.url) > 0


def test_the_caches_are_those_of_torch_and_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "t"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "k"))
    assert downloads.IMAGENET.path == tmp_path / "t/hub/checkpoints/vgg16-397923af.pth"
    assert downloads.KERAS.path == tmp_path / "k/models/vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    monkeypatch.delenv("KERAS_HOME")
    assert downloads.KERAS.path.parent == Path.home() / ".keras/models"
