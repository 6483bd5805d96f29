"""What the tests of weights' files share."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.contract.network import Network, WeightsError
from parity.contract.vgg import vgg
from torch_impl.weights import load_network

STANDARD = vgg(((2, 2), (2, 2), (3, 3, 3), (3, 3, 3), (3, 3, 3)), (6, 5), 4)
"""At 224×224, as a file has it that says nothing of its pictures."""


def same(network: Network, expected: Network) -> bool:
    """Bit for bit."""
    return network.table == expected.table and network.fingerprint == expected.fingerprint


def state_dict(network: Network) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in network.tensors.items()}


def refusal(path: Path | str, **options: Any) -> str:
    """The one printable line, which begins with the path."""
    with pytest.raises(WeightsError) as caught:
        load_network(str(path), **options)
    message = str(caught.value)
    assert message.isprintable(), message
    assert message.startswith(repr(str(path))), message
    assert "weights_only" not in message  # torch's own advice is to switch the protection off
    return message


@contextlib.contextmanager
def a_full_disk(length: int) -> Iterator[None]:
    """The system's own limit: a file that grows beyond so many bytes is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
