"""The official sources, against a server on the loopback interface, and `auto`, which asks no server."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parity.contract import network as contract
from parity.contract.network import Network, WeightsError, seeded
from parity.contract.vgg import vgg
from torch_impl import downloads
from torch_impl.weights import load_network, save_network

MIRRORS = {"imagenet": "ATTENTION_MAPS_IMAGENET_URL", "keras": "ATTENTION_MAPS_KERAS_URL"}


class Handler(BaseHTTPRequestHandler):
    """Counts requests and sends the server's body, whose length may be a lie."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.length or len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    body = b""
    status = 200
    length = 0
    requests = 0


@pytest.fixture(scope="module")
def small() -> Network:
    table = vgg(((2, 2), (2, 2), (3, 3, 3), (3, 3, 3), (3, 3, 3)), (6, 5), 4)
    return dataclasses.replace(seeded(0, table), source="", input="caffe", remark="")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Empty caches, and this server in the place of both hosts."""
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for variable in MIRRORS.values():
            monkeypatch.setenv(variable, f"http://127.0.0.1:{server.server_port}/file")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
        yield server
        server.shutdown()


@pytest.fixture(params=["imagenet", "keras"])
def official(
    request: pytest.FixtureRequest, server: Server, small: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> downloads.Official:
    """A small network in the place of an official file; the server has it."""
    constant = request.param.upper()
    suffix = getattr(downloads, constant).path.suffix
    save_network(small, tmp_path / f"small{suffix}")
    server.body = (tmp_path / f"small{suffix}").read_bytes()
    digest = hashlib.new(getattr(downloads, constant).algorithm, server.body).hexdigest()
    monkeypatch.setattr(downloads, constant, dataclasses.replace(getattr(downloads, constant), digest=digest))
    return getattr(downloads, constant)


def refusal(official: downloads.Official) -> str:
    """The one line with which a source fails; the cache is as it was."""
    before = cache(official)
    with pytest.raises(WeightsError) as caught:
        load_network(official.source)
    assert cache(official) == before
    message = str(caught.value)
    assert message.isprintable()
    assert "--weights offline, or put the file at " + repr(str(official.path)) in message
    return message


def cache(official: downloads.Official) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in official.path.parent.glob("*")}


def test_it_is_downloaded_once_checked_and_read(
    official: downloads.Official, server: Server, small: Network, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        network = load_network(official.source)
        assert network.fingerprint == small.fingerprint
        assert (network.source, network.remark) == (official.source, "")
        assert network.input == {"imagenet": "torchvision", "keras": "caffe"}[official.source]
    assert server.requests == 1
    assert cache(official) == {official.path.name: server.body}
    assert load_network(official.source, input="caffe").input == "caffe"
    assert capfd.readouterr() == ("", "")  # quiet


def test_progress_is_torch_hubs_bar(official: downloads.Official, capfd: pytest.CaptureFixture[str]) -> None:
    load_network(official.source, progress=True)
    output = capfd.readouterr()
    assert "100%" in output.err
    assert output.out == ""  # which is for results


@pytest.mark.parametrize("damage", [b"", b"half a file"])
def test_a_damaged_cached_file_is_replaced(
    official: downloads.Official, server: Server, small: Network, damage: bytes
) -> None:
    official.path.parent.mkdir(parents=True)
    official.path.write_bytes(damage)
    assert load_network(official.source).fingerprint == small.fingerprint
    server.status = 404
    assert load_network(official.source).fingerprint == small.fingerprint


@pytest.mark.parametrize("damaged", [False, True])
def test_what_goes_wrong_is_one_line_and_leaves_the_cache_as_it_was(
    official: downloads.Official, server: Server, damaged: bool
) -> None:
    if damaged:
        official.path.parent.mkdir(parents=True)
        official.path.write_bytes(b"half a file")
    whole = server.body
    server.body = b"<html>Please log in</html>"
    assert "login page" in refusal(official)
    server.body = whole[:-1] + bytes([whole[-1] ^ 1])
    assert "has another" in refusal(official)
    server.body, server.length = whole[:-100], len(whole)
    assert "cut off" in refusal(official)
    server.status = 404
    assert "404: Not Found" in refusal(official)


def test_no_server_no_url_no_cache(official: downloads.Official, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, reason in (("http://127.0.0.1:9/", "refused"), ("not a url", "unknown url"), ("http://[", "Invalid")):
        monkeypatch.setenv(MIRRORS[official.source], url)
        assert reason in refusal(official)
    official.path.parent.rmdir()
    official.path.parent.write_text("a file where the folder should be")
    assert "exists" in refusal(official)


def test_ctrl_c_leaves_nothing(official: downloads.Official, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads.Official, "is_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_network(official.source)
    assert cache(official) == {}


@pytest.mark.parametrize("cached", ["whole", "damaged", "absent"])
def test_auto_takes_what_is_cached_and_asks_nobody(
    server: Server, small: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: str
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, asked)
    embedded = dataclasses.replace(small, source="offline", remark="embedded weights")
    monkeypatch.setattr(contract, "offline", lambda: embedded)
    if cached != "absent":
        path = downloads.IMAGENET.path
        path.parent.mkdir(parents=True)
        save_network(small, tmp_path / "small.pth")
        path.write_bytes((tmp_path / "small.pth").read_bytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if cached == "whole" else "0"
        monkeypatch.setattr(downloads, "IMAGENET", dataclasses.replace(downloads.IMAGENET, digest=digest))
    network = load_network("auto")
    if cached == "whole":
        assert (network.source, network.input, network.remark) == ("imagenet", "torchvision", "")
    else:
        assert network.source == "offline"
        assert re.fullmatch(
            "embedded weights; --weights imagenet downloads torchvision's, 528 MB, once", network.remark
        )
    with pytest.raises((AssertionError, WeightsError)):  # that this test can fail
        downloads.fetch(downloads.KERAS)


def test_the_official_files_are_what_their_publishers_say() -> None:
    from torchvision.models import VGG16_Weights

    assert VGG16_Weights.IMAGENET1K_V1.url == downloads.IMAGENET.url
    assert downloads.IMAGENET.digest.startswith(downloads.IMAGENET.path.name[6:14])  # torch.hub checks these 8 digits
    assert len(downloads.IMAGENET.digest) == 64
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        pytest.skip("Keras is not installed")
    source = (Path(spec.origin).parent / "src/applications/vgg16.py").read_text()  # read, not imported
    assert f'file_hash="{downloads.KERAS.digest}"' in source
    assert downloads.KERAS.url in "".join(source.split()).replace('""', "")


def test_the_caches_are_those_of_torch_and_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "t"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "k"))
    assert downloads.IMAGENET.path == tmp_path / "t/hub/checkpoints/vgg16-397923af.pth"
    assert downloads.KERAS.path == tmp_path / "k/models/vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    monkeypatch.delenv("KERAS_HOME")
    assert downloads.KERAS.path.parent == Path.home() / ".keras/models"
