"""The two official weight files: fetched once, checked by hash, kept where torchvision and Keras themselves keep them.

`torch.hub.download_url_to_file` and `keras.utils.get_file` were considered: neither has a timeout (a silent server
holds them forever) nor resumes, the first knows only sha256, and the second downloads into the final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from parity.contract.files import whole
from parity.contract.network import WeightsError

Progress = Callable[[str, int, int], None]
"""Called with (what is done, bytes so far, bytes in all); the last is 0 where the server does not say."""

STALL_SECONDS = 20.0
"""A server that sends nothing for this long, or less than `SLOWEST` on average over it, counts as gone."""

SLOWEST = 1000
"""Bytes per second."""

ATTEMPTS = 6
"""A transfer that breaks off is taken up again where it stopped, this often in all."""

PAUSE_SECONDS = 1.0
"""Before it is taken up again."""

PROBE_SECONDS = 3.0
"""How long `auto` waits for a host to answer at all."""

LOCK_SECONDS = 600.0
"""How long to wait for another process that downloads the same file. Then both do; each replaces the file whole."""

LARGEST = 2**30
"""Bytes; twice the official files. A mirror that sends more is not one."""

CHUNK = 2**18

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """One official file.

    Attributes:
        source: the name under which a user asks for it.
        url: where it is published.
        variable: environment variable that names a mirror instead (http or https; the hash stays the same).
        name: in the cache.
        algorithm: of the hash, as hashlib calls it.
        digest: hexadecimal.
        folder: the cache.
        folder_variable: environment variable that moves the cache.
    """

    source: str
    url: str
    variable: str
    name: str
    algorithm: str
    digest: str
    folder: Callable[[], Path]
    folder_variable: str

    @property
    def path(self) -> Path:
        """Where the file is once it is cached."""
        return self.folder() / self.name


def _torch_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _keras_folder() -> Path:
    # Keras itself takes KERAS_HOME as it stands, tilde included, and expands it when it downloads.
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


IMAGENET = Remote(
    source="imagenet",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    variable="ATTENTION_MAPS_IMAGENET_URL",
    name="vgg16-397923af.pth",
    algorithm="sha256",
    digest="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    folder=_torch_folder,
    folder_variable="TORCH_HOME",
)
"""torchvision's `VGG16_Weights.IMAGENET1K_V1`; torchvision knows the hash's first 8 digits, which are in the name."""

KERAS = Remote(
    source="keras",
    url="https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
    variable="ATTENTION_MAPS_KERAS_URL",
    name="vgg16_weights_tf_dim_ordering_tf_kernels.h5",
    algorithm="md5",
    digest="64373286793e3c8b2b4e3219cbf3544b",
    folder=_keras_folder,
    folder_variable="KERAS_HOME",
)
"""`keras.applications.VGG16(weights="imagenet")`; md5 is the only hash that Keras publishes."""


def cached(remote: Remote) -> Path | None:
    """The cached file, if it is there and whole (its hash is computed each time: 0.3 s for sha256, 0.7 s for md5)."""
    path = remote.path
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: _hasher(remote)).hexdigest()
    except OSError:
        return None
    return path if found == remote.digest else None


def fetch(remote: Remote, progress: Progress | None = None) -> Path:
    """The file, from the cache or downloaded into it; processes that want it at the same time share one download.

    Raises:
        WeightsError: it cannot be had; one line with the host and the reason. The cache is then as it was.
    """
    import filelock

    if path := cached(remote):
        return path
    path = remote.path
    if path.exists():
        _log.warning("%r is damaged (its hash is wrong): downloading it again", str(path))
    lock = path.with_name(path.name + ".lock")
    holder = filelock.FileLock(lock)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            holder.acquire(timeout=0)
        except filelock.Timeout:
            _log.warning("another process is downloading %s: waiting for it", remote.name)
            with contextlib.suppress(filelock.Timeout):
                holder.acquire(timeout=LOCK_SECONDS)
        except NotImplementedError:  # a file system without locks: two may download at once, and either file is whole
            _log.debug("no lock beside %r", str(path))
        try:
            if cached(remote) is None:  # nobody else has fetched it in the meantime
                with whole(path) as temporary, temporary.open("wb") as file:
                    _transfer(remote, file, progress)
        finally:
            if holder.is_locked:
                # Somebody who waits on the removed file may download a second time; nothing can be damaged by that.
                lock.unlink(missing_ok=True)
            holder.release()
    except OSError as error:
        raise WeightsError(
            f"{remote.source}: cannot write {str(path)!r} ({error.strerror or error}); "
            f"{remote.folder_variable} moves the cache"
        ) from None
    return path


def unreachable(remote: Remote) -> str:
    """Why the host does not answer, or "" if it does, within `PROBE_SECONDS` (name lookup included).

    Raises:
        WeightsError: the mirror's URL is none.
    """
    url = address(remote)
    answer: list[str] = []

    def ask() -> None:
        try:
            # One byte, because some mirrors refuse HEAD.
            _open(url, "bytes=0-0", PROBE_SECONDS).close()
            answer.append("")
        except Exception as error:  # a thread has nobody to raise to
            answer.append(_reason(error))

    # In a thread, because no timeout applies to the resolver: without a network it may take half a minute.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if not answer:
        return f"{_host(url)} does not answer"
    return answer[0] and f"{_host(url)}: {answer[0]}"


def address(remote: Remote) -> str:
    """The URL, or the mirror's that the environment names.

    Raises:
        WeightsError: the mirror's is not an http(s) URL.
    """
    url = os.environ.get(remote.variable) or remote.url
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or " " in url:
        raise WeightsError(f"{remote.variable}={url!r} is not an http or https URL")
    return url


def _transfer(remote: Remote, file: BinaryIO, progress: Progress | None) -> None:
    """Write the whole file, taking a broken transfer up again; its hash is right, or WeightsError."""
    url = address(remote)
    failed = f"{remote.source}: downloading from {_host(url)} failed"
    what = f"downloading {remote.name} from {_host(url)}"
    hasher, done = _hasher(remote), 0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            with _open(url, f"bytes={done}-" if done else "", STALL_SECONDS) as response:
                if done and (response.getheader("Content-Range") or "").split("-")[0] != f"bytes {done}":
                    hasher, done = _hasher(remote), 0  # the server cannot resume and starts again, and so do we
                    file.seek(0)
                    file.truncate()
                total = done + int(response.getheader("Content-Length") or -done)
                _room(remote, file, total, done)
                if progress:
                    progress(what, done, total)
                since, before = time.monotonic(), done
                while chunk := response.read1(CHUNK):
                    _write(remote, file, chunk)
                    hasher.update(chunk)
                    done += len(chunk)
                    if done > LARGEST:
                        raise WeightsError(f"{failed}: it sends more than {LARGEST >> 20} MB")
                    if progress:
                        progress(what, done, total)
                    if (now := time.monotonic()) - since > STALL_SECONDS:
                        if done - before < SLOWEST * STALL_SECONDS:
                            raise TimeoutError(f"slower than {SLOWEST} bytes per second")
                        since, before = now, done
            if done >= total:
                break
            reason = f"cut off after {done} of {total} bytes"
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, WeightsError):
                raise
            reason = _reason(error)
            if not done or isinstance(error, urllib.error.HTTPError):
                raise WeightsError(f"{failed}: {reason}") from None
    else:
        raise WeightsError(f"{failed}: {reason}; {ATTEMPTS} attempts")
    _write(remote, file, b"")
    if hasher.hexdigest() != remote.digest:
        raise WeightsError(
            f"{failed}: what it sent is not {remote.name} ({done} bytes, {remote.algorithm} {hasher.hexdigest()[:8]}…, "
            f"expected {remote.digest[:8]}…); a proxy or login page in between?"
        )


def _open(url: str, byte_range: str, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "attention-maps"} | ({"Range": byte_range} if byte_range else {})
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    if not isinstance(response, http.client.HTTPResponse):  # a redirection to another scheme
        response.close()
        raise OSError("redirected away from http")
    return response


def _room(remote: Remote, file: BinaryIO, total: int, done: int) -> None:
    """Say that the disk is too small before half an hour of download, not after."""
    free = shutil.disk_usage(file.name).free
    if total - done > free:
        raise WeightsError(
            f"{remote.source}: no room for {total >> 20} MB in {str(remote.folder())!r} ({free >> 20} MB free); "
            f"{remote.folder_variable} moves the cache"
        )


def _write(remote: Remote, file: BinaryIO, chunk: bytes) -> None:
    """Write and flush, so that an error of the disk is told from one of the network."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise WeightsError(
            f"{remote.source}: cannot write in {str(remote.folder())!r} ({error.strerror}); "
            f"{remote.folder_variable} moves the cache"
        ) from None


def _hasher(remote: Remote) -> hashlib._Hash:
    return hashlib.new(remote.algorithm, usedforsecurity=False)


def _host(url: str) -> str:
    """Without user name and password."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _reason(error: BaseException) -> str:
    """One line."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return _reason(error.reason) if isinstance(error.reason, BaseException) else str(error.reason)
    if isinstance(error, TimeoutError):
        return str(error) if "slower" in str(error) else "no answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
