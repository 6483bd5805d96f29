"""The same work on a Ray cluster: Ray Data hands parts to a pool of actors, and each actor writes the parts it has done.

A part is done by one actor from reading to writing, so its rows do not depend on who does it or in which order. What comes
back to the driver is a few numbers a part. Where an actor or a node dies, Ray starts another and gives it the part again;
a part is renamed into place when it is whole, so doing one twice does no harm. Everything that Ray's own job-level
checkpointing (`ray.data.checkpoint`) would note down, the parts themselves say already, and to both runners.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.contract.network import Network
from torch_impl.batch.plan import Part, RunError
from torch_impl.batch.store import GO_ON, Run, Store

INSTALL = "pip install 'attention-maps[ray]'"

TRIES = 4
"""How often a part is begun before it is given up. Ray gives it out again whenever its actor dies; without a limit, what kills
its worker would be tried for ever."""

BLOCKS = 5000
"""Pieces that the listing is handed over in: beyond a few thousand, Ray's own bookkeeping would be the work."""

_MB = 2**20


@dataclass(frozen=True)
class Cluster:
    """Where to run, and on how much of it.

    Attributes:
        address: of a cluster that runs, `auto` for the one of this machine; None: a cluster is started here for the run.
        workers: actors, the least and the most; the pool grows within these. None: as many as the resources hold.
        cpus: of one actor: its threads.
        gpus: of one actor; a fraction shares a GPU between several. None: one where the cluster has any.
    """

    address: str | None = None
    workers: tuple[int, int] | None = None
    cpus: int = 1
    gpus: float | None = None


@dataclass(frozen=True)
class Settings:
    """What an actor must know beside the plan.

    Attributes:
        folder: of the run, absolute; the same for every node.
        device: `auto`, `cpu`, `cuda`.
        batch_size: photographs in one pass, or "auto".
        processes: that decode, in each actor.
        strict: stop at the first bad photograph.
        threads: of PyTorch.
    """

    folder: str
    device: str
    batch_size: int | str
    processes: int
    strict: bool
    threads: int


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
    parts: Iterable[Part],
    network: Network,
    store: Store,
    run: Run,
    cluster: Cluster,
    *,
    device: str = "auto",
    batch_size: int | str = "auto",
    processes: int = 0,
    strict: bool = False,
    report: Callable[[int, int], None] | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Explain parts on a cluster.

    Args:
        parts: streamed; held compressed, some 30 bytes a photograph.
        network: handed to the actors through Ray's object store, so that no node needs the weights' file.
        store: the run's folder, locked; on a file system that all nodes share.
        run: the run.
        cluster: where.
        device: of each actor.
        batch_size: photographs in one pass.
        processes: that decode, in each actor.
        strict: stop at the first bad photograph.
        report: called with (rows, errors) of each part.
        ready: called when the first part is there.

    Raises:
        RunError: Ray is missing or cannot be reached; an actor cannot work (a message of its own); parts fail for good.
    """
    ray = require_ray()
    listing = [
        {"number": part.number, "part": zlib.compress(pickle.dumps(part, pickle.HIGHEST_PROTOCOL))} for part in parts
    ]
    if not listing:
        return
    with _connected(ray, cluster, network):
        resources = ray.cluster_resources()
        gpus = cluster.gpus
        if gpus is None:
            gpus = 1.0 if resources.get("GPU", 0) >= 1 and device != "cpu" else 0.0
        if device.startswith("cuda") and not gpus:
            raise RunError(f"device {device!r}: this Ray cluster has no GPUs; give --device cpu or auto")
        most = _capacity(resources, cluster.cpus, gpus)
        if most < 1:
            raise RunError(
                f"an actor needs {cluster.cpus} CPU{'s' * (cluster.cpus != 1)} and {gpus:g} GPUs, and this Ray cluster has "
                f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g} in all: ask for less"
            )
        least, most = cluster.workers or (min(most, len(listing)), min(most, len(listing)))
        settings = Settings(
            folder=str(store.folder.absolute()),
            device=("cuda" if gpus else "cpu") if device == "auto" else device.partition(":")[0],
            batch_size=batch_size,
            processes=processes,
            strict=strict,
            threads=cluster.cpus,
        )
        arguments = {"run": run, "settings": settings, "network": [ray.put(network)]}
        data = ray.data.from_items(listing, override_num_blocks=min(len(listing), BLOCKS)).map_batches(
            Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(least, len(listing)), max_size=max(1, min(most, len(listing)))
            ),
            num_cpus=cluster.cpus,
            num_gpus=gpus or None,
            fn_constructor_kwargs=arguments,
        )
        try:
            for done in data.iter_rows():
                if ready:
                    ready()
                    ready = None
                if done["failure"]:
                    raise RunError(str(done["failure"]))
                if report:
                    report(int(done["rows"]), int(done["errors"]))
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray gave up ({_why(error)}); {GO_ON}") from None


class Actor:
    """One worker of the pool: a network on a device, and a loader. Its errors are rows too, for the driver to tell."""

    def __init__(self, run: Run, settings: Settings, network: list[Any]) -> None:
        import ray
        import torch

        from torch_impl.batch.work import Worker, make_explainer, micro_batch

        torch.set_num_threads(settings.threads)
        self.run, self.settings = run, settings
        self.store = Store(settings.folder)
        self.failure = ""
        try:
            if self.store.read_run().id != run.id:
                raise RunError("another run's")
        except RunError:
            self.failure = (
                f"{self.store.shown} on node {platform.node()} is not the folder of this run: "
                "--out must be on a file system that all nodes share"
            )
            return
        try:
            explainer = make_explainer(ray.get(network[0]), run.plan, settings.device)
            size = micro_batch(explainer, run.plan, settings.batch_size)
            self.worker = Worker(explainer, run.plan, size, automatic=settings.batch_size == "auto")
        except ValueError as error:
            self.failure = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Do one part, and say how it went."""
        numbers = [int(number) for number in batch["number"]]
        rows = errors = 0
        if not self.failure:
            try:
                for packed in batch["part"]:
                    written = self._done(pickle.loads(zlib.decompress(packed)))
                    rows, errors = rows + written[0], errors + written[1]
            except (ValueError, OSError) as error:
                self.failure = str(error)
            except RuntimeError as error:
                if not type(error).__module__.startswith("torch_impl"):
                    raise
                self.failure = str(error)
        return {"number": numbers, "rows": [rows], "errors": [errors], "failure": [self.failure]}

    def _done(self, part: Part) -> tuple[int, int]:
        from torch_impl.batch.loading import Loader
        from torch_impl.batch.work import explained

        there = self.store.read_written(part.number, self.run.id)
        if there is not None and there.digest == part.digest and not there.passing:
            return there.rows, sum(there.errors.values())  # by a worker that died later, with others of its block to do
        tries = self.store.begun(part.number)
        if tries > TRIES:
            raise RunError(
                f"part {part.number} ({part.items[0].path!r} and {len(part.items) - 1} more) has lost its worker {TRIES} times: "
                f"too little memory for it, or for its neighbours on the node? {GO_ON}"
            )
        # Its worker may have died of a photograph: from the second time on, a process of its own decodes them.
        processes = max(self.settings.processes, int(tries > 1))
        loader: Loader[tuple[Part, bool]] = Loader(self.run.plan.size, self.run.plan.resize, processes=processes)
        with loader:
            ((_, rows),) = explained([part], self.worker, loader, strict=self.settings.strict)
        about = self.worker.about() | {"runner": "ray"}
        written = self.store.write_part(self.run.id, part, rows, self.run.plan, about)
        self.store.ended(part.number)
        return written.rows, sum(written.errors.values())


def _capacity(resources: dict[str, float], cpus: int, gpus: float) -> int:
    """How many actors the cluster holds at once."""
    held = int(resources.get("CPU", 0) // cpus)
    if gpus:
        held = min(held, int(resources.get("GPU", 0) / gpus + 1e-9))
    return held


@contextmanager
def _connected(ray: Any, cluster: Cluster, network: Network) -> Iterator[None]:
    """A cluster for the time of the run, quiet, and with a bounded object store where it is ours."""
    if ray.is_initialized():
        yield  # the caller's own, and left as it is
        return
    weights = sum(array.nbytes for array in network.tensors.values())
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address:
        options["address"] = cluster.address
    else:
        # The weights, and room for the listing; parts do not pass through it.
        options |= {"include_dashboard": False, "object_store_memory": 256 * _MB + 2 * weights}
    before = signal.getsignal(signal.SIGTERM)
    with _quiet():
        try:
            ray.init(**options)
        except Exception as error:  # whatever it is that does not start, it is not a row's fault
            where = f"at {cluster.address!r}" if cluster.address else "on this machine"
            raise RunError(f"no Ray cluster {where}: {_why(error)}") from None
        with _ours(ray, before):
            yield


@contextmanager
def _ours(ray: Any, before: Any) -> Iterator[None]:
    """The cluster just connected to, without bars and logs, left when the run ends."""
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would end the process without a word
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's C++ parts, which write to the process's standard error by themselves, from the terminal; ours is seen."""
    try:
        shared = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        shared = False
    if not shared or os.environ.get("ATTENTION_MAPS_TRACEBACK"):
        yield
        return
    ours, kept = sys.stderr, os.dup(2)
    sys.stderr = open(os.dup(kept), "w", buffering=1, encoding=ours.encoding, errors="backslashreplace")  # noqa: SIM115
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        sys.stderr.close()
        sys.stderr = ours
        os.dup2(kept, 2)
        os.close(kept)


def _why(error: BaseException) -> str:
    """The last line of what Ray says, which is the cause; the rest is its traceback."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()] or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in lines[-1])[:300]
