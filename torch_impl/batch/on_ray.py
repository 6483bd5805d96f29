"""The same work on a Ray cluster: Ray Data hands out the numbers of parts, and each actor writes what it has done.

A part is done by one actor from reading to writing, so its rows do not depend on who does it or in which order. What
comes back to the driver is a few numbers a part. Where an actor or a node dies, Ray starts another and gives it the
part again; a part is renamed into place when it is whole, so doing one twice does no harm. Everything that Ray's own
job-level checkpointing (`ray.data.checkpoint`) would note down, the parts themselves say already, and to both runners.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from parity.contract.network import Network
from parity.contract.text import one_line
from torch_impl.batch.loading import automatic
from torch_impl.batch.run import GO_ON, ROWS, Run, RunError

INSTALL = "pip install 'attention-maps[ray]'"

TRIES = 4
"""How often a part is begun before it is given up. Ray gives it out again whenever its actor dies; without a limit,
what kills its worker would be tried for ever."""

BLOCKS = 5000
"""Pieces that the parts' numbers are handed over in: beyond a few thousand, Ray's own bookkeeping would be the work."""


@dataclass(frozen=True)
class Cluster:
    """How much of a cluster to use, and what for.

    Attributes:
        workers: actors, the least and the most; the pool grows within these. None: as many as the resources hold.
        cpus: of one actor: its threads.
        gpus: of one actor; a fraction shares a GPU between several. None: one where the cluster has any.
        device: of each actor: `auto`, `cpu`, `cuda`.
        batch_size: photographs in one pass, or "auto".
        compile: see `Explainer`.
        loaders: processes that decode, of each actor; "auto": see `loading.automatic`.
        strict: stop at the first photograph that cannot be explained.
    """

    workers: tuple[int, int] | None = None
    cpus: int = 1
    gpus: float | None = None
    device: str = "auto"
    batch_size: int | str = "auto"
    compile: bool = False
    loaders: int | str = "auto"
    strict: bool = False


def require_ray() -> Any:
    """The `ray` module.

    Raises:
        RunError: it is not installed; the message says how to.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RunError(f"--runner ray needs Ray, which is not installed here ({error}): {INSTALL}") from None
    return ray


def run_ray(
    run: Run,
    numbers: Sequence[int],
    network: Network | None,
    cluster: Cluster,
    *,
    address: str | None = None,
    report: Callable[[int, int], object] = lambda rows, errors: None,
) -> Counter[str]:
    """Explain parts on a cluster.

    Args:
        run: its folder, locked; on a file system that all nodes share.
        numbers: of the parts.
        network: handed to the actors through Ray's object store, so that no node needs the weights' file; None: the plan's
            explainer is made on each node.
        cluster: how much of it.
        address: of a cluster that runs, `auto` for the one of this machine; None: one is started here for the run.
        report: called with (rows, rows with an error among them) of each part.

    Returns:
        Kinds of errors, counted.

    Raises:
        RunError: Ray is missing or cannot be reached; an actor cannot work (a message of its own); parts fail for good.
    """
    ray = require_ray()
    errors: Counter[str] = Counter()
    with _connected(ray, address, network):
        cluster, (least, most) = _fitted(cluster, ray.cluster_resources())
        pool = ray.data.ActorPoolStrategy(min_size=min(least, len(numbers)), max_size=min(most, len(numbers)))
        blocks = min(len(numbers), BLOCKS)
        data = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=blocks).map_batches(
            Actor,
            batch_size=1,
            compute=pool,
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus or None,
            fn_constructor_args=(str(run.folder.absolute()), run.said["id"], cluster, [ray.put(network)]),
        )
        try:
            for done in data.iter_rows():
                if done["failure"]:
                    raise RunError(done["failure"])
                counted = Counter(json.loads(done["errors"]))
                errors += counted
                report(int(done["rows"]), counted.total())
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray gave up ({_why(error)}); {GO_ON}") from None
    return errors


class Actor:
    """One worker of the pool. What goes wrong comes back as a `failure`, for the driver to tell."""

    def __init__(self, folder: str, run_id: str, cluster: Cluster, network: list[Any]) -> None:
        import ray
        import torch

        from torch_impl.batch.worker import Worker, explainer_of

        torch.set_num_threads(cluster.cpus)
        self.run, self.loaders, self.failure = Run(folder), int(cluster.loaders), ""
        try:
            if self.run.said["id"] != run_id:
                raise RunError("another run's")
            plan = self.run.plan
        except RunError:
            where = f"{self.run.shown} on node {platform.node()}"
            self.failure = f"{where} is not the folder of this run: --out must be on a file system that all nodes share"
            return
        make = partial(explainer_of, plan, ray.get(network[0]), cluster.device, cluster.batch_size, cluster.compile)
        self.worker = Worker(make, plan, strict=cluster.strict)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Do one part, and say how it went."""
        number = int(batch["number"][0])
        rows, errors = 0, Counter[str]()
        if not self.failure:
            try:
                rows, errors = self.done(number)
            except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
                self.failure = one_line(error)
        return {"rows": [rows], "errors": [json.dumps(errors)], "failure": [self.failure]}

    def done(self, number: int) -> tuple[int, Counter[str]]:
        """Do a part, unless a worker has that died later, and say its rows and errors.

        Raises:
            RunError: it has lost too many workers; or, where none may, a photograph cannot be explained.
        """
        tries = self.run.folder / ROWS / f".part-{number:06d}.tries"
        with tries.open("ab") as file:
            file.write(b".")
            begun = file.tell()
        if begun > TRIES:
            raise RunError(
                f"part {number} has lost its worker {TRIES} times: too little memory for it, or for its neighbours on "
                f"the node, or a photograph that brings the decoder down? {GO_ON}"
            )
        ((_, table),) = self.worker.parts(self.run.listing, [number], self.loaders)
        errors = self.run.write_part(number, table, self.worker.about | {"runner": "ray"})
        tries.unlink()
        return table.num_rows, errors


def _fitted(cluster: Cluster, resources: dict[str, float]) -> tuple[Cluster, tuple[int, int]]:
    """With device, GPUs and threads of this cluster where "auto" was asked for; the least and most actors.

    Raises:
        RunError: not one fits.
    """
    cpus, there = cluster.cpus, resources.get("GPU", 0)
    gpus = float(there >= 1 and cluster.device != "cpu") if cluster.gpus is None else cluster.gpus
    if cluster.device.startswith("cuda") and not gpus:
        raise RunError(f"device {cluster.device!r}: this Ray cluster has no GPUs; give --device cpu or auto")
    held = int(resources.get("CPU", 0) // cpus)
    held = min(held, int(there / gpus + 1e-9)) if gpus else held
    if held < 1:
        raise RunError(
            f"an actor needs {cpus} CPU{'s' * (cpus != 1)} and {gpus:g} GPUs, and this Ray cluster has "
            f"{resources.get('CPU', 0):g} and {there:g} in all: ask for less"
        )
    device = ("cuda" if gpus else "cpu") if cluster.device == "auto" else cluster.device.partition(":")[0]
    loaders = automatic(cpus) if cluster.loaders == "auto" else cluster.loaders
    return replace(cluster, gpus=gpus, device=device, loaders=loaders), cluster.workers or (held, held)


@contextmanager
def _connected(ray: Any, address: str | None, network: Network | None) -> Iterator[None]:
    """A cluster for the time of the run, quiet, and with a bounded object store where it is ours."""
    if ray.is_initialized():
        yield  # the caller's own, and left as it is
        return
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if not address:  # room for the weights; parts do not pass through it
        weights = sum(array.nbytes for array in network.tensors.values()) if network else 0
        options |= {"include_dashboard": False, "object_store_memory": 256 * 2**20 + 2 * weights}
    before = signal.getsignal(signal.SIGTERM)
    with _quiet():
        try:
            ray.init(**options)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own handler would end the process without a word
        except Exception as error:  # whatever it is that does not start, it is not a row's fault
            where = f"at {address!r}" if address else "on this machine"
            raise RunError(f"no Ray cluster {where}: {_why(error)}") from None
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            yield
        finally:
            ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's C++ parts, which write to the process's standard error by themselves, from it; ours is seen."""
    if os.environ.get("ATTENTION_MAPS_TRACEBACK"):
        yield
        return
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing, open(kept, "w", buffering=1, errors="backslashreplace") as ours:
        os.dup2(nothing.fileno(), 2)
        try:
            with redirect_stderr(ours):
                yield
        finally:
            os.dup2(kept, 2)


def _why(error: BaseException) -> str:
    """The last line of what Ray says, which is the cause; the rest is its traceback."""
    lines = str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__]
    return one_line(lines[-1])
