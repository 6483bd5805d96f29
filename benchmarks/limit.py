"""The machine's own limit: how fast it multiplies, and how long the network's layers take when each is run alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch_impl.shared_pass import absolute_gradients
from torch_impl.vgg16 import prepared

from parity.contract.architecture import VGG16, Architecture
from parity.contract.network import Network
from torch_impl.dense import quicken
from torch_impl.precision import dtype_of, numerics


def flops(architecture: Architecture = VGG16) -> int:
    """Multiplications and additions of one photograph's forward pass; the input's gradient takes as many again."""
    total = 0
    for layer in architecture.layers:
        if layer.kind in ("conv", "dense"):
            weights = layer.parameters - layer.shape[-1]
            total += 2 * weights * (math.prod(layer.shape[:-1]) if layer.kind == "conv" else 1)
    return total


def flops_of(job: str, samples: int, architecture: Architecture = VGG16) -> int:
    """Of a job (`vanilla`, `smoothgrad`, `gradcam`, `gradcam_plus_plus`, `cams`, `all`), for one photograph, in the fewest passes."""
    forward = flops(architecture)
    head = 2 * sum(layer.parameters - layer.shape[-1] for layer in architecture.layers if layer.kind == "dense")
    passes = {
        "vanilla": 2 * forward,
        "smoothgrad": 2 * samples * forward,
        "gradcam": forward + head,
        "gradcam_plus_plus": forward + head,
        "cams": forward + head,
        "all": 2 * (samples + 1) * forward,
    }
    return passes[job]


def measure(device: str, precision: str, batch: int, architecture: Architecture = VGG16) -> dict[str, Any]:
    """Rates of this machine, now.

    Args:
        device: `cpu` or a CUDA device.
        precision: of `torch_impl.names.PRECISIONS`.
        batch: photographs in one call of a layer.
        architecture: whose layers.

    Returns:
        `rate`: floating-point operations per second of the best of a few large products and convolutions; `layers_s`: seconds
        of one photograph's forward pass and input gradient, every convolution and dense layer timed alone and added up.
    """
    dtype = dtype_of(precision)
    with numerics(precision), torch.no_grad():
        best = 0.0
        for size in (2048,) if device == "cpu" else (4096, 8192):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            best = max(best, 2 * size**3 / _seconds(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
        layers = 0.0
        for layer, incoming in zip(architecture.layers[1:], architecture.layers, strict=False):
            if layer.kind == "conv":
                x, g = (_picture(batch, one.shape, device, dtype) for one in (incoming, layer))
                weight = torch.randn(layer.shape[-1], incoming.shape[-1], 3, 3, device=device).to(dtype)
                weight = weight.contiguous(memory_format=torch.channels_last)
                bias = torch.zeros(layer.shape[-1], device=device, dtype=dtype)
                forward = _seconds(lambda x=x, w=weight, b=bias: F.conv2d(x, w, b, padding=1), device)  # type: ignore[misc]
                one = [1, 1]
                backward = _seconds(
                    lambda x=x, g=g, w=weight, one=one: torch.ops.aten.convolution_backward(  # type: ignore[misc]
                        g, x, w, [0], one, one, one, False, [0, 0], 1, [True, False, False]
                    ),
                    device,
                )
                work = 2 * batch * (layer.parameters - layer.shape[-1]) * math.prod(layer.shape[:-1])
                best = max(best, work / forward, work / backward)
            elif layer.kind == "dense":
                units = (layer.parameters - layer.shape[-1]) // layer.shape[-1]
                x, g = (torch.randn(batch, n, device=device).to(dtype) for n in (units, layer.shape[-1]))
                dense = torch.nn.Linear(units, layer.shape[-1], device=device, dtype=dtype).requires_grad_(False)
                quicken(dense)  # as the network's own
                forward = _seconds(lambda x=x, dense=dense: dense(x), device)  # type: ignore[misc]
                backward = _seconds(_gradient(dense, x, g), device)
            else:
                continue
            layers += forward + backward
    return {"rate": best, "layers_s": layers / batch, "flops": flops(architecture), "batch": batch}


def passes(device: str, precision: str, network: Network, batches: Sequence[int]) -> dict[int, tuple[float, float]]:
    """What one pass of the network as `Explainer.vgg16` has it takes.

    Args:
        device: `cpu` or a CUDA device.
        precision: of `torch_impl.names.PRECISIONS`.
        network: whose.
        batches: images in one pass.

    Returns:
        Images in one pass → seconds an image: forward and backward to the input; forward alone.
    """
    found = {}
    with numerics(precision):
        model = prepared(network, torch.device(device), dtype_of(precision))
        size = network.architecture.size
        for batch in batches:
            images = (
                _picture(batch, (size, size, 3), device, dtype_of(precision)) * 50
            )  # about as far from 0 as photographs
            target = torch.zeros(batch, dtype=torch.int64, device=device)
            both = _seconds(lambda x=images, t=target: absolute_gradients(model, x, t), device)  # type: ignore[misc]
            with torch.inference_mode():
                forward = _seconds(lambda x=images: model(x), device)  # type: ignore[misc]
            found[batch] = (both / batch, forward / batch)
    return found


def _gradient(layer: torch.nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> Callable[[], object]:
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
    return lambda: torch.autograd.grad(y, leaf, upstream, retain_graph=True)


def _picture(batch: int, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(batch, shape[-1], *shape[:-1], device=device).to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def _seconds(work: Callable[[], object], device: str, times: int = 5) -> float:
    """Median, after one call that is not counted."""
    work()
    found = []
    for _ in range(times):
        clock = Clock(device)
        work()
        found.append(clock.stop())
    return statistics.median(found)


class Clock:
    """Seconds since it was made: by the device's own events on CUDA, which measure the device and not the queue."""

    def __init__(self, device: str) -> None:
        self._events: list[Any] = []
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            self._events[0].record()
        self._start = time.perf_counter()

    def stop(self) -> float:
        """Seconds."""
        if self._events:
            self._events[1].record()
            torch.cuda.synchronize()
            return float(self._events[0].elapsed_time(self._events[1])) / 1e3
        return time.perf_counter() - self._start
