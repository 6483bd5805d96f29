"""The two official weight files: fetched once, checked by hash, kept where torchvision and Keras themselves keep them."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from parity.contract.network import WeightsError
from parity.contract.text import one_line


@dataclass(frozen=True)
class Official:
    """One official file.

    Attributes:
        source: the name under which a user asks for it.
        url: where it is published.
        mirror: environment variable that names another URL; the hash stays the same.
        algorithm: of the hash, as hashlib calls it.
        digest: hexadecimal.
    """

    source: str
    url: str
    mirror: str
    algorithm: str
    digest: str

    @property
    def path(self) -> Path:
        """Where it is once it is here: in torch's own cache, or in Keras's."""
        name = self.url.rpartition("/")[2]
        if self.source == "keras":
            return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / name
        import torch

        return Path(torch.hub.get_dir(), "checkpoints", name)

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` is this one, by its hash (half a second)."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest() == self.digest


IMAGENET = Official(
    source="imagenet",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    mirror="ATTENTION_MAPS_IMAGENET_URL",
    algorithm="sha256",
    digest="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
"""torchvision's `VGG16_Weights.IMAGENET1K_V1`; torchvision knows the hash's first 8 digits, which are in the name."""

KERAS = Official(
    source="keras",
    url="https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
    mirror="ATTENTION_MAPS_KERAS_URL",
    algorithm="md5",
    digest="64373286793e3c8b2b4e3219cbf3544b",
)
"""`keras.applications.VGG16(weights="imagenet")`; md5 is the only hash that Keras publishes."""


def cached(official: Official) -> Path | None:
    """The file, if it is here and whole; the network is not asked."""
    path = official.path
    return path if path.is_file() and official.is_at(path) else None


def fetch(official: Official, *, progress: bool = False) -> Path:
    """The file, from the cache or downloaded into it.

    Args:
        official: which.
        progress: show `torch.hub`'s bar.

    Raises:
        WeightsError: it cannot be had; one line. The cache is then as it was.
    """
    if path := cached(official):
        return path
    import torch

    path = official.path
    url = os.environ.get(official.mirror) or official.url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder beside it, for torch.hub leaves a file of its own behind where the URL is none.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            arrived = Path(folder, path.name)
            torch.hub.download_url_to_file(url, str(arrived), progress=progress)
            if not official.is_at(arrived):
                raise ValueError(f"what was sent has another {official.algorithm}: cut off, or a login page in between")
            os.replace(arrived, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise WeightsError(
            f"{official.source}: {path.name} cannot be had from {url!r} ({one_line(error, 200)}); "
            f"give --weights offline, or put the file at {str(path)!r}"
        ) from None
    return path
