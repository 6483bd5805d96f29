"""This port as a candidate of `parity`: its maps by its own code, every stage between them, and what the report shows beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from parity.candidate import Job
from parity.contract.network import Network
from torch_impl import images, ladder, maps, weights  # noqa: F401  (maps fills the registry)
from torch_impl.capture.draw import Drawn, draw, of_outputs, opened
from torch_impl.capture.target_layer import find_layer
from torch_impl.network import layout_of, prepared
from torch_impl.precision import choose_device, dtype_of, numerics
from torch_impl.preprocess import preprocess
from torch_impl.preserve import Double
from torch_impl.twin.stages import Tap, as_array, channels_last, map_stages, network_stages

Row = tuple[int, str, np.ndarray]
"""(photograph, stage, array): what a candidate gives."""


def candidate(job: Job) -> Iterator[Row]:
    """The library engine: Captum and pytorch-grad-cam, with the reference's formulas.

    Args:
        job: what to do.

    Yields:
        (photograph, stage, array) for every stage of `parity.contract.stages` but `pixels`.
    """
    return _stages(job, "library")


def one_pass(job: Job) -> Iterator[Row]:
    """The shared engine: every map that is asked for in one call. Arguments and result as `candidate`."""
    return _stages(job, "shared")


def photographs(paths: Sequence[str], size: tuple[int, int], resize: str) -> list[images.Photograph]:
    """Photographs as `explain` reads them.

    Args:
        paths: files and folders; none: the four default photographs.
        size: (H, W) wanted, pixels.
        resize: `lab` or `torchvision`.

    Raises:
        ValueError: one cannot be read; the message names each that cannot.
    """
    files = images.find(paths, skip_bad=True) if paths else images.defaults()
    return images.load_all(files, size=size, resize=resize)[0]


def load_weights(source: str, input: str | None) -> Network:
    """The weights of `--weights`, of any kind that the port knows; `input` in place of the weights' own preprocessing.

    Raises:
        WeightsError: they cannot be had.
    """
    return weights.load_network(source, input=input)


def raw_maps(job: Job, inputs: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Method → raw maps (N, …) of a job; of `inputs`, preprocessed (N, H, W, 3), in place of the job's pixels."""
    with numerics(job.precision):
        model, given, target = _prepared(job, inputs)
        return {name: raw.cpu().numpy() for name, raw in _drawn(job, "library", model, given, target).raw.items()}


def rungs(job: Job) -> Iterator[tuple[str, str, np.ndarray]]:
    """From the libraries' plain calls to the port, one change a rung: (method, what was changed, final maps (N, H, W))."""
    with numerics(job.precision):
        model, inputs, target = _prepared(job)
        layer = job.table.modules[job.table.target]
        for method, what, drawn in ladder.rungs(job.methods, model, inputs, target, layer, job.options):
            yield method, what, drawn.double().cpu().numpy()


def _prepared(job: Job, inputs: np.ndarray | None = None) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs (N, C, H, W) and target of a job."""
    device, dtype = choose_device(job.device), dtype_of(job.precision)
    model = prepared(job.network, device, job.precision)
    if inputs is None:
        given = preprocess(job.pixels, input=job.input, dtype=dtype, device=device)
    else:
        given = torch.from_numpy(inputs).permute(0, 3, 1, 2).to(device, dtype)
    return model, given.contiguous(memory_format=layout_of(model)), torch.tensor(job.classes, device=device)


def _drawn(job: Job, engine: str, model: nn.Module, inputs: Tensor, target: Tensor) -> Drawn:
    """The job's maps, and what their functions kept on the way."""
    capture = opened(model, find_layer(model, job.table.modules[job.table.target]), engine=engine)
    return draw(capture, inputs, of_outputs(capture, target), job.methods, job.options, with_stages=True)


def _stages(job: Job, engine: str) -> Iterator[Row]:
    with numerics(job.precision):
        model, inputs, target = _prepared(job)
        drawn = _drawn(job, engine, model, inputs, target)
        stages = map_stages(drawn, (inputs.shape[-2], inputs.shape[-1]))
        taps = {job.table.modules[layer.name]: Tap(layer.name) for layer in job.table.hidden}
        own = target + int(job.table.classes == 1)  # an only output is class 1, see `score.Classifier`
        for i in range(len(inputs)):
            yield from ((i, stage, as_array(channels_last(values[i]))) for stage, values in stages.items())
            at = slice(i, i + 1)
            shared = network_stages(Double(model).model, taps, inputs[at], own[at], job.table.classes)
            yield from ((i, stage, array) for stage, array in shared.items())
