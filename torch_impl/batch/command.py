"""The commands `batch` and `show`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from parity.contract.command import DONE, INTERRUPTED, auto_or, integer, map_options, methods
from parity.contract.methods import LIBRARY, REFERENCE
from parity.contract.network import INPUTS
from parity.contract.text import printable
from torch_impl import options
from torch_impl.batch.plan import PART_ROWS, RESOLUTIONS

if TYPE_CHECKING:
    from parity.contract.network import Network
    from torch_impl.batch.plan import Plan
    from torch_impl.batch.run import Run
    from torch_impl.explainer import Explainer

SHOWN = 24
"""Rows that `show` draws unless it is told otherwise: two pages."""


def register(commands: Any) -> None:
    """Add both commands to a command line; `commands` is what `add_subparsers` gave."""
    batch = commands.add_parser(
        "batch",
        help="maps of a large set, into Parquet",
        description="Explain a set of any size: one row a photograph and class, in Parquet. Run the same command again "
        "to go on after whatever stopped it. INPUT: photographs; folders, with those in them; globs in quotes; .csv, "
        ".tsv or .parquet of paths and classes; .tar (WebDataset); .parquet with image bytes.",
        epilog="Exit status: 0 all rows explained; 2 stopped, one line says why; 3 all done, some photographs could "
        "not be read (their rows say why); 130 interrupted. Finished parts always stay.",
    )
    batch.add_argument("inputs", nargs="+", metavar="INPUT", help="what to explain")
    _options_of_the_rows(batch)
    options.model_options(batch)
    options.pass_options(batch, engine="shared")  # the passes are the cost of a large set
    _options_of_the_machine(batch.add_argument)
    batch.set_defaults(run=_batch)
    options.remember_defaults(batch)

    show = commands.add_parser(
        "show",
        help="draw or list rows of a batch run",
        description="Rows of a batch run: listed, drawn (--out), or written as CSV (--csv). EXPR is SQL over the "
        "columns, index key path sha256 asked class label logit probability seconds error and others: "
        "class = 282 AND probability > 0.5; label LIKE '%cat%'; label IN ('tabby', 'lynx'); error IS NOT NULL.",
        epilog="Exit status: 0 done; 2 one line says why; 3 some photographs are no longer what they were.",
    )
    add = show.add_argument
    add("folder", metavar="DIR", help="the --out of a batch run")
    add("--where", metavar="EXPR", help="which rows; default: all")
    add("--limit", type=integer(1), metavar="N", help=f"the first N of them (default: {SHOWN}; CSV: all)")
    add("--out", metavar="DIR", help="folder for the figures; default: the rows are listed")
    add("--csv", metavar="FILE", help="write the rows' columns, all but the maps")
    add("--methods", type=methods(), metavar="METHOD[,METHOD…]", help="default: all that the run has")
    options.figure_options(show)
    add("--overwrite", action="store_true", help="write into a folder that holds other files, too; replace FILE")
    show.set_defaults(run=_show)


def _options_of_the_rows(batch: argparse.ArgumentParser) -> None:
    add = batch.add_argument
    names = f"of {', '.join(REFERENCE)}; for comparison {', '.join(LIBRARY)} (gradcam,gradcam_plus_plus)"
    add("--out", required=True, metavar="DIR", help="the run's folder; the same one to go on")
    add(
        "--classes",
        metavar="FILE|top1|folder",
        help="a table of paths and classes, top1, or folder: the name of each one's folder; default: the input's, else the top-1",
    )
    add("--root", metavar="DIR", help="the folder that a table's paths must stay below (default: the table's own)")
    usual = ("gradcam", "gradcam_plus_plus")
    add("--methods", type=methods(), metavar="METHOD[,METHOD…]", default=usual, help=names)
    add("--input", choices=INPUTS, help="preprocessing; default: the weights' own")
    options.resize_option(batch)
    map_options(batch)
    add("--resolution", choices=RESOLUTIONS, default="raw", help="raw (default): before enlarging; full: normalized")
    add("--limit", type=integer(1), metavar="N", help="the first N rows only; a larger N goes on from there")
    add("--part-rows", type=integer(1), default=PART_ROWS, metavar="N", help="rows of one Parquet file (%(default)s)")


def _options_of_the_machine(add: Callable[..., object]) -> None:
    loaders = (
        "processes that read and decode (auto: one less than there are cores, or, of a Ray worker, CPUs; at least 1)"
    )
    add("--loaders", type=auto_or(integer(1, 999)), default="auto", metavar="auto|N", help=loaders)
    add("--runner", choices=("local", "ray"), default="local", help="this process (default), or a Ray cluster")
    add("--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: one is started here")
    add(
        "--workers", type=_range, metavar="N|MIN:MAX", help="Ray actors, the least and the most (default: all that fit)"
    )
    add("--cpus-per-worker", type=integer(1), default=1, metavar="N", help="and threads (%(default)s)")
    add(
        "--gpus-per-worker",
        type=_fraction,
        metavar="F",
        help="a fraction shares a GPU (default: 1 where there are any)",
    )
    add("--strict", action="store_true", help="stop at the first photograph that cannot be explained")
    add("--redo-changed", action="store_true", help="do parts again whose inputs have changed, instead of refusing")
    add("--quiet", action="store_true", help="print errors only")


class _Progress:
    """Counts rows; a bar on a terminal, nothing elsewhere.

    Attributes:
        done: rows that are there, those of earlier starts included.
        errors: rows among them without a map.
        total: rows in all; 0: not known yet.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.hidden = True if quiet else None  # None: where it is no terminal
        self.bar: tqdm[Any] | None = None
        self.done = self.errors = self.total = 0

    def begin(self, total: int, done: int, errors: int) -> None:
        """The rows are listed, and so many of them are there already."""
        self.close()
        self.total, self.done, self.errors = total, done, errors

    def __call__(self, rows: int, errors: int = 0) -> None:
        """So many more rows."""
        if self.bar is None:  # only now: see `on_ray` for what becomes of the standard error
            what = "explaining" if self.total else "listing"
            self.bar = tqdm(
                desc=what, total=self.total or None, initial=self.done, unit=" rows", leave=False, disable=self.hidden
            )
        self.done, self.errors = self.done + rows, self.errors + errors
        self.bar.set_postfix(errors=self.errors, refresh=False)
        self.bar.update(rows)

    def close(self) -> None:
        """Wipe the bar, so that the next line starts at the margin."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def _batch(arguments: argparse.Namespace) -> int:
    import torch

    from torch_impl.batch.run import GO_ON, Run, RunError
    from torch_impl.stock import check_narrow

    check_narrow(arguments.methods, arguments.precision)
    options.check_compile(arguments)
    run = Run(arguments.out)
    progress = _Progress(quiet=arguments.quiet)
    try:
        return _explain(arguments, run, progress)
    except KeyboardInterrupt:
        progress.close()
        reached = f"{progress.done:,} of {progress.total:,} rows were reached; " if progress.total else ""
        print(f"attention-maps: interrupted; {reached}{GO_ON}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = ascii(os.fspath(error.filename)) if error.filename else run.shown
        raise RunError(f"{where}: {error.strerror or error}; {GO_ON} once that is mended") from None
    except torch.OutOfMemoryError:
        raise RunError(f"out of memory on {arguments.device}: give a smaller --batch-size; {GO_ON}") from None
    except MemoryError:
        raise RunError(f"out of memory: give fewer --loaders, or a smaller --batch-size; {GO_ON}") from None
    finally:
        progress.close()


def _explain(arguments: argparse.Namespace, run: Run, progress: _Progress) -> int:
    from torch_impl.batch.listing import Listing, listed, write_listing

    if arguments.runner == "ray":
        from torch_impl.batch.on_ray import require_ray

        require_ray()
    run.check()
    with tempfile.TemporaryFile() as file:  # the folder is not touched before all is well
        items = listed(arguments.inputs, classes=arguments.classes, root=arguments.root, limit=arguments.limit)
        write_listing(items, file, arguments.part_rows, progress)
        progress.close()
        total = Listing(file).rows
        network, explainer, plan, about = _planned(arguments)
        with run.locked():
            survey = run.begin(plan, about, file, redo_changed=arguments.redo_changed, strict=arguments.strict)
            for remark in survey.remarks:
                print(f"attention-maps: {printable(remark)}", file=sys.stderr)
            errors, fresh, started = survey.errors, total - survey.done, time.perf_counter()
            if survey.todo:
                if not arguments.quiet:
                    _head(plan, about["remark"], total, survey.done)
                progress.begin(total, survey.done, errors.total())
                errors = errors + _computed(arguments, network, explainer, run, survey.todo, progress)
                progress.close()
                counts = {"rows": total, "errors": dict(errors.most_common())}
                run.finish(counts | {"seconds": round(time.perf_counter() - started, 3), "rows_of_last_start": fresh})
            if not arguments.quiet:
                _tail(run, total, errors, fresh, time.perf_counter() - started)
    return options.IN_PART if errors else DONE


def _planned(arguments: argparse.Namespace) -> tuple[Network | None, Explainer | None, Plan, dict[str, Any]]:
    """VGG16's weights, or the user's own explainer; what decides the rows; and what else `run.json` says."""
    from torch_impl.batch.plan import Plan
    from torch_impl.framing import usual_resize
    from torch_impl.manifest import program_versions
    from torch_impl.precision import check_precision, choose_device
    from torch_impl.weights import load_network

    network = explainer = None
    if arguments.explainer:
        explainer = options.explainer_of(arguments)
        decided = _decided(arguments.explainer, explainer)
    else:
        if arguments.runner == "local":  # before the weights, which may be a long download
            check_precision(arguments.precision, choose_device(arguments.device))
        network = load_network(arguments.weights, input=arguments.input, progress=not arguments.quiet)
        decided = {"weights": network.source, "fingerprint": network.fingerprint, "size": network.table.size[0]}
        decided |= {name: getattr(arguments, name) for name in ("precision", "engine")}
        decided["input"] = arguments.input or network.input
        decided["resize"] = arguments.resize or usual_resize(decided["input"])
    decided |= {name: getattr(arguments, name) for name in ("methods", "seed", "resolution", "part_rows", "channels")}
    plan = Plan(
        **decided,
        n_samples=arguments.samples,
        noise_level=arguments.noise,
        explainer=arguments.explainer or "",
        labels=options.labels_of(arguments.labels),
    )
    given = {name: getattr(arguments, name) for name in ("inputs", "classes", "root")}
    remark = network.remark if network else ""
    about = {**given, "folder": os.getcwd(), "remark": remark, "versions": program_versions()}
    return network, explainer, plan, about


def _decided(name: str, explainer: Explainer) -> dict[str, Any]:
    """What a network of the user's own decides of a plan."""
    from torch_impl.batch.run import RunError
    from torch_impl.network import fingerprint_of
    from torch_impl.several import check_one

    check_one(explainer)
    if not isinstance(explainer.preprocess, str):
        raise RunError(
            f"--explainer {name}: batch reads photographs with preprocess caffe or torchvision and size=, not with a "
            "function: make the Explainer so"
        )
    network = explainer.weights
    return {
        "weights": network.source if network else type(explainer.model).__name__,
        "fingerprint": network.fingerprint if network else fingerprint_of(explainer.model),
        "input": explainer.preprocess,
        **{name: getattr(explainer, name) for name in ("size", "resize", "precision", "engine")},
    }


def _computed(
    arguments: argparse.Namespace,
    network: Network | None,
    explainer: Explainer | None,
    run: Run,
    numbers: list[int],
    progress: _Progress,
) -> Counter[str]:
    """Explain parts by the runner that was asked for; kinds of errors, counted."""
    if arguments.runner == "ray":
        from torch_impl.batch.on_ray import Cluster, run_ray

        cluster = Cluster(
            workers=arguments.workers,
            cpus=arguments.cpus_per_worker,
            gpus=arguments.gpus_per_worker,
            **{name: getattr(arguments, name) for name in ("device", "batch_size", "compile", "loaders", "strict")},
        )
        return run_ray(run, numbers, network, cluster, address=arguments.address, report=progress)
    from torch_impl.batch.loading import automatic
    from torch_impl.batch.worker import Worker, explainer_of, run_local

    def make() -> Explainer:
        return explainer or explainer_of(run.plan, network, arguments.device, arguments.batch_size, arguments.compile)

    worker = Worker(make, run.plan, strict=arguments.strict)
    loaders = automatic(os.cpu_count()) if arguments.loaders == "auto" else arguments.loaders
    return run_local(run, worker, numbers, loaders, report=progress)


def _head(plan: Plan, remark: str, total: int, done: int) -> None:
    print(f"weights   {printable(plan.weights)}" + (f" · {printable(remark)}" if remark else ""))
    print(f"          fingerprint {plan.fingerprint[:16]}")
    print(f"methods   {', '.join(plan.methods)}; {plan.resolution}; {plan.precision}, engine {plan.engine}")
    print(f"rows      {total:,}" + (f", of which {done:,} are done" if done else ""), flush=True)


def _tail(run: Run, total: int, errors: Counter[str], fresh: int, seconds: float) -> None:
    bad = errors.total()
    print(f"rows      {total:,}: {total - bad:,} explained, {bad:,} with an error")
    for kind, count in errors.most_common(10):
        print(f"          {count:,} {printable(kind)}")
    if fresh:
        print(f"rate      {fresh / seconds:.3g}/s ({fresh:,} rows in {seconds:.1f} s)")
    print(f"{'wrote' if fresh else 'kept ':<9} {printable(str(run.part_path(0).parent))}")


def _show(arguments: argparse.Namespace) -> int:
    from torch_impl.batch.reading import stored_maps
    from torch_impl.batch.run import Run, RunError
    from torch_impl.batch.show import explained, lines, write_csv

    run = Run(arguments.folder)
    if arguments.csv is not None:
        if os.path.lexists(arguments.csv) and not arguments.overwrite:
            raise RunError(f"{arguments.csv!r} is there already: add --overwrite to replace it")
        count = write_csv(run, arguments.where, arguments.limit, arguments.csv)
        print(f"wrote     {printable(arguments.csv)}: {count:,} rows")
        if arguments.out is None:
            return DONE
    limit = arguments.limit or SHOWN
    drawing = arguments.out is not None
    methods = [] if not drawing else None if arguments.methods is None else list(arguments.methods)
    stored = stored_maps(run, methods, arguments.where, limit=limit + 1, explained=drawing)
    if len(stored) > limit and arguments.limit is None:
        print(f"attention-maps: the first {limit} rows; for more give --limit N, for others --where", file=sys.stderr)
    stored = stored.first(limit)
    if not drawing:
        print(*([*lines(stored.rows)] or [f"no row where {arguments.where}"]), sep="\n")
        return DONE
    if not len(stored):
        raise RunError(f"{run.shown}: no row with maps" + (f" where {arguments.where}" if arguments.where else ""))
    explanation, missing = explained(stored, run)
    for path in explanation.save(arguments.out, overwrite=arguments.overwrite, **options.figures_of(arguments)):
        print(f"wrote     {printable(str(path))}")
    for line in missing:
        print(f"attention-maps: {line}", file=sys.stderr)
    return options.IN_PART if missing else DONE


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})(?::([0-9]{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of workers, or the least and the most, such as 2:8")
    return least, most


def _fraction(text: str) -> float:
    value = float(text) if re.fullmatch(r"[0-9]{1,2}|0?\.[0-9]+", text) else -1.0
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a fraction of a GPU such as 0.5, or a whole number")
    return value
