"""Fixtures of the whole suite: the devices, the tiny networks, shape checks on every annotated function."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# No deadlines: they measure the machine. The same examples on every run of CI; new ones at a desk.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")

# Before anything of torch_impl is imported: in tests every jaxtyping signature is checked at each call.
CHECKED = ["maps", "capture", "methods", "stock", "transform", "score"]
install_import_hook([f"torch_impl.{name}" for name in CHECKED], "beartype.beartype")

pytest.register_assert_rewrite("batch_runs")  # a helper of several files, whose asserts are to be read as a test's

import torch  # noqa: E402
from pretend_cuda import pretended  # noqa: E402
from tolerances import FLOAT64, FLOAT64_ALPHA  # noqa: E402

from parity.contract.artifact import Artifact  # noqa: E402
from parity.contract.methods import METHODS, REFERENCE  # noqa: E402
from parity.contract.network import Network, seeded, write  # noqa: E402
from parity.contract.vgg import vgg  # noqa: E402
from torch_impl.capture import ENGINES  # noqa: E402

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "tiny.safetensors"

TINY = vgg(((8, 8), (8, 8), (16, 16, 16), (16, 16, 16), (16, 16, 16)), dense=(32, 24), classes=10, size=64)
"""Every layer of VGG16, small enough for a test: 4×4 activations at block5_conv3."""

TARGET_LAYER = TINY.modules[TINY.target]

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param(
        "cuda",
        id="cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
    ),
]


@contextlib.contextmanager
def a_cuda_device() -> Iterator[torch.device]:
    """A real one where there is one, else the pretended one."""
    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        with pretended() as there:
            yield there


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and CUDA where there is one: `test_on_cuda` shows where tensors are, on a pretended one too."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def tiny() -> Network:
    """`TINY` with random weights, biases nonzero."""
    return seeded(0, TINY)


@pytest.fixture(scope="session")
def weights(tiny: Network, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny network as a file, for `--weights`."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write(tiny, path)
    return str(path)


@pytest.fixture
def model(tiny: Network, device: torch.device) -> torch.nn.Module:
    """The tiny network in float64."""
    from torch_impl.network import build

    return build(tiny).to(device, torch.float64)


@pytest.fixture
def inputs(device: torch.device) -> torch.Tensor:
    """Three pictures as the tiny network sees them: smooth, within the range of preprocessed photographs."""
    generator = np.random.RandomState(5)
    coarse = torch.tensor(generator.uniform(-120, 150, (3, 3, 9, 9)))
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")
    return (smooth + torch.tensor(generator.normal(0, 10, smooth.shape))).to(device)


@pytest.fixture
def target(device: torch.device) -> torch.Tensor:
    """A class for each picture: those for which both CAMs find something."""
    return torch.tensor([2, 7, 5], device=device)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> Artifact:
    """The reference's artifact of a tiny network, both precisions: see tests/golden."""
    return Artifact.read(GOLDEN)


@pytest.fixture(scope="session")
def family() -> Artifact:
    """Keras's Grad-CAM, LayerCAM and Score-CAMs of the golden network."""
    return Artifact.read(GOLDEN.with_name("family.safetensors"))


def run_program(
    *arguments: str, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` as a user would: in another folder, with no terminal."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest expected value."""
    assert actual.shape == expected.shape
    scale = float(expected.abs().max())
    error = float((actual.to(expected) - expected).abs().max())
    assert error <= tolerance * scale, f"off by {error / scale:.2e} of the largest value, allowed {tolerance:.0e}"


every_map = pytest.mark.parametrize("name", REFERENCE)
every_engine = pytest.mark.parametrize("engine", ENGINES)


def drawn(name: str, model: torch.nn.Module, inputs: torch.Tensor, target: torch.Tensor, **options) -> torch.Tensor:
    """Any map's raw maps on the tiny network; of a noisy one, few copies."""
    from torch_impl.methods import raw_maps

    return raw_maps(name, model, inputs, target, **{"target_layer": TARGET_LAYER, "n_samples": 2, **options})


def tolerance_of(name: str) -> float:
    """What two float64 computations of a map may differ by."""
    return FLOAT64 if METHODS[name].float64_limit <= 1e-9 else FLOAT64_ALPHA
