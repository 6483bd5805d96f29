"""The commands `batch` and `show`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch_impl.batch.plan import PART_ROWS, RESOLUTIONS, Part, Plan, RunError, parts
from torch_impl.names import ENGINES, PRECISIONS, REFERENCE_METHODS, STOCK_METHODS, check_stock
from torch_impl.words import methods_of, printable

if TYPE_CHECKING:
    from torch_impl.batch.entries import Item
    from torch_impl.batch.store import Run, Store

DONE, IN_PART, INTERRUPTED = 0, 3, 130

SHOWN = 24
"""Rows that `show` draws unless it is told otherwise: two pages."""


def register(
    commands: Any, types: Mapping[str, Callable[[str], Any]], weights_option: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add both commands to a command line.

    Args:
        commands: what `add_subparsers` gave.
        types: argparse types of `samples`, `noise`, `seed`, `batch_size`.
        weights_option: adds `--weights`.
    """
    batch = commands.add_parser(
        "batch",
        help="maps of a large set, into Parquet",
        description="Explain a set of any size: one row a photograph and class, in Parquet. Run the same command again to "
        "go on after whatever stopped it.",
        epilog="Exit status: 0 all rows explained; 2 stopped, one line says why; 3 all done, some photographs could not be "
        "read (their rows say why); 130 interrupted. Finished parts always stay.",
    )
    batch.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="photographs; folders, with those in them; globs in quotes; .csv, .tsv or .parquet of paths and classes; "
        ".tar (WebDataset); .parquet with image bytes",
    )
    batch.add_argument("--out", required=True, metavar="DIR", help="the run's folder; the same one to go on")
    batch.add_argument(
        "--classes",
        metavar="FILE|top1",
        help="a table of paths and classes, or top1; default: the classes that the input gives, else the top-1",
    )
    batch.add_argument(
        "--root", metavar="DIR", help="the folder that a table's paths must stay below (default: the table's own)"
    )
    batch.add_argument(
        "--methods",
        metavar="METHOD[,METHOD…]",
        default="gradcam,gradcam_plus_plus",
        help=f"default: %(default)s; of {', '.join(REFERENCE_METHODS)}; for comparison {', '.join(STOCK_METHODS)}",
    )
    weights_option(batch)
    batch.add_argument("--input", choices=("caffe", "torchvision"), help="preprocessing; default: the weights' own")
    batch.add_argument("--resize", choices=("lab", "torchvision"), default="lab", help="as of explain (%(default)s)")
    batch.add_argument(
        "--samples", type=types["samples"], default=20, metavar="N", help="SmoothGrad's noisy copies (%(default)s)"
    )
    batch.add_argument(
        "--noise",
        type=types["noise"],
        default=0.2,
        metavar="F",
        help="SmoothGrad's σ, a fraction of the range (%(default)s)",
    )
    batch.add_argument("--seed", type=types["seed"], default=0, metavar="N", help="of SmoothGrad's noise (%(default)s)")
    batch.add_argument(
        "--resolution",
        choices=RESOLUTIONS,
        default="raw",
        help="raw (default): CAMs at 14×14, before enlarging; full: normalized 224×224",
    )
    batch.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s, with TF32 off")
    batch.add_argument("--engine", choices=ENGINES, default="shared", help="default: %(default)s, the fewest passes")
    batch.add_argument("--limit", type=_count, metavar="N", help="the first N rows only; a larger N goes on from there")
    batch.add_argument(
        "--part-rows", type=_count, default=PART_ROWS, metavar="N", help="rows of one Parquet file (%(default)s)"
    )
    batch.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    batch.add_argument(
        "--batch-size",
        type=types["batch_size"],
        default="auto",
        metavar="auto|N",
        help="photographs in one pass (%(default)s)",
    )
    batch.add_argument(
        "--loaders",
        type=_loaders,
        default="auto",
        metavar="auto|N",
        help="processes that decode; 0: one thread. auto (default): the thread on a CPU, up to 8 processes for a GPU",
    )
    batch.add_argument(
        "--runner", choices=("local", "ray"), default="local", help="this process (default), or a Ray cluster"
    )
    batch.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: one is started here")
    batch.add_argument(
        "--workers",
        type=_range,
        metavar="N|MIN:MAX",
        help="Ray actors; the pool grows from MIN to MAX (default: all that fit)",
    )
    batch.add_argument("--cpus-per-worker", type=_count, default=1, metavar="N", help="and threads (%(default)s)")
    batch.add_argument(
        "--gpus-per-worker",
        type=_fraction,
        metavar="F",
        help="a fraction shares a GPU (default: 1 where there are any)",
    )
    batch.add_argument("--strict", action="store_true", help="stop at the first photograph that cannot be explained")
    batch.add_argument(
        "--redo-changed",
        action="store_true",
        help="do those parts again whose inputs have changed, instead of refusing",
    )
    batch.add_argument("--quiet", action="store_true", help="print errors only")
    batch.set_defaults(run=_batch)

    show = commands.add_parser(
        "show",
        help="draw or list rows of a batch run",
        description="Rows of a batch run: listed, drawn (--out), or written as CSV (--csv).",
        epilog="EXPR compares columns (index key path sha256 asked class label logit probability seconds error): "
        "class == 282 and probability > 0.5; 'cat' in label; label in ('tabby', 'lynx'); error is not None. "
        "Exit status: 0 done; 2 one line says why; 3 some photographs are no longer what they were.",
    )
    show.add_argument("folder", metavar="DIR", help="the --out of a batch run")
    show.add_argument("--where", metavar="EXPR", help="which rows; default: all")
    show.add_argument("--limit", type=_count, metavar="N", help=f"the first N of them (default: {SHOWN}; CSV: all)")
    show.add_argument("--out", metavar="DIR", help="folder for the figures; default: the rows are listed")
    show.add_argument("--csv", metavar="FILE", help="write the rows' columns, all but the maps")
    show.add_argument("--methods", metavar="METHOD[,METHOD…]", help="default: all that the run has")
    show.add_argument("--colormap", default="jet", metavar="NAME", help="matplotlib's (%(default)s)")
    show.add_argument(
        "--overwrite", action="store_true", help="write into a folder that holds other files, too; replace FILE"
    )
    show.set_defaults(run=_show)


def _batch(arguments: argparse.Namespace) -> int:
    from torch_impl.batch.progress import RunProgress
    from torch_impl.batch.store import GO_ON, Store

    methods = tuple(methods_of(arguments.methods))
    check_stock(methods, arguments.precision)
    progress = RunProgress(quiet=arguments.quiet)
    store = Store(arguments.out)
    try:
        return _run(arguments, methods, store, progress)
    except KeyboardInterrupt:
        progress.close()
        kept = f"{progress.done:,} of {progress.total:,} rows were reached; " if progress.total else ""
        print(f"attention-maps: interrupted; {kept}{GO_ON}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = f"{ascii(os.fspath(error.filename))}: " if error.filename else ""
        raise RunError(f"{where}{error.strerror or error}; {GO_ON} once that is mended") from None
    finally:
        progress.close()


def _run(arguments: argparse.Namespace, methods: tuple[str, ...], store: Store, progress: Any) -> int:
    from torch_impl.batch import sources
    from torch_impl.batch.resume import survey
    from torch_impl.batch.store import Run

    if arguments.runner == "ray":
        from torch_impl.batch.on_ray import require_ray

        require_ray()
    store.check()
    source = sources.open_inputs(
        arguments.inputs, classes=arguments.classes, limit=arguments.limit, root=arguments.root
    )
    network, plan, about = _planned(arguments, methods)
    with store.locked():
        identity = store.begin(plan, about)
        run = Run(identity, store.read_run().plan, about)
        found = survey(source, store, run, redo_changed=arguments.redo_changed, report=progress.listing)
        progress.close()
        for remark in found.remarks:
            print(f"attention-maps: {printable(remark)}", file=sys.stderr)
        if arguments.strict and found.errors:
            raise RunError(
                f"--strict: {sum(found.errors.values()):,} rows of {store.shown} have an error ({_kinds(found.errors)}): "
                f"run without --strict, or mend these photographs and add --redo-changed"
            )
        progress.begin(found.total, found.done, sum(found.errors.values()))
        started = time.perf_counter()
        if found.todo:
            store.unfinish()
            if not arguments.quiet:
                _head(plan, about, found.total, found.done)
            work = pending(source, plan.part_rows, found.todo)
            start = _ray if arguments.runner == "ray" else _local
            start(arguments, network, store, run, work, progress)
        progress.close()
        errors = found.errors + _errors_of(store, run, found.todo)
        seconds = time.perf_counter() - started
        said = {"rows": found.total, "errors": dict(errors.most_common()), "seconds": round(seconds, 3)}
        if found.todo:
            store.finish(said | {"rows_of_last_start": progress.fresh})
    if not arguments.quiet:
        _tail(store, found.total, errors, progress, seconds)
    return IN_PART if errors else DONE


def _planned(arguments: argparse.Namespace, methods: tuple[str, ...]) -> tuple[Any, Plan, dict[str, Any]]:
    """The network, and what decides the rows."""
    from torch_impl.batch.work import shapes
    from torch_impl.explainer import versions
    from torch_impl.weights import load_network

    if arguments.runner == "local":
        from torch_impl.explainer import choose_device

        choose_device(arguments.device)  # refused before the weights, which may be a long download
    network = load_network(arguments.weights, input=arguments.input, progress=not arguments.quiet)
    plan = Plan(
        inputs=tuple(arguments.inputs),
        classes=arguments.classes,
        root=arguments.root,
        methods=methods,
        shapes=shapes(network, methods, arguments.resolution),
        weights=network.source,
        fingerprint=network.fingerprint,
        n_classes=network.architecture.classes,
        size=network.architecture.size,
        input=arguments.input or network.input,
        resize=arguments.resize,
        n_samples=arguments.samples,
        noise_level=arguments.noise,
        seed=arguments.seed,
        precision=arguments.precision,
        engine=arguments.engine,
        resolution=arguments.resolution,
        part_rows=arguments.part_rows,
    )
    return network, plan, {"folder": os.getcwd(), "remark": network.remark, "versions": versions()}


def _local(
    arguments: argparse.Namespace, network: Any, store: Store, run: Run, work: Iterator[Part], progress: Any
) -> None:
    from torch_impl.batch.local import run_local
    from torch_impl.batch.work import Worker, make_explainer, micro_batch

    explainer = make_explainer(network, run.plan, arguments.device)
    size = micro_batch(explainer, run.plan, arguments.batch_size)
    worker = Worker(explainer, run.plan, size, automatic=arguments.batch_size == "auto")
    processes = arguments.loaders
    if processes == "auto":
        processes = 0 if explainer.device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))
    run_local(work, worker, store, run, processes=processes, strict=arguments.strict, report=progress.add)


def _ray(
    arguments: argparse.Namespace, network: Any, store: Store, run: Run, work: Iterator[Part], progress: Any
) -> None:
    from torch_impl.batch.on_ray import Cluster, run_ray

    cluster = Cluster(
        address=arguments.address,
        workers=arguments.workers,
        cpus=arguments.cpus_per_worker,
        gpus=arguments.gpus_per_worker,
    )
    run_ray(
        work,
        network,
        store,
        run,
        cluster,
        device=arguments.device,
        batch_size=arguments.batch_size,
        processes=0 if arguments.loaders == "auto" else arguments.loaders,
        strict=arguments.strict,
        report=progress.add,
    )


def pending(source: Iterable[Item], rows: int, todo: Mapping[int, str]) -> Iterator[Part]:
    """The parts to be done, out of a second walk through the listing.

    Args:
        source: the listing.
        rows: of a part.
        todo: part → the digest that it had when the listing was surveyed.

    Raises:
        RunError: the listing is no longer the one that was surveyed.
    """
    left = set(todo)
    for part in parts(source, rows):
        if part.number not in left:
            continue
        if part.digest != todo[part.number]:
            raise RunError(
                f"the inputs have changed while the run went on, at or after {part.items[0].path!r}: finished parts are "
                "kept; run the same command to go on when they are at rest"
            )
        left.discard(part.number)
        yield part
        if not left:
            return
    if left:
        raise RunError(
            "the inputs have become fewer while the run went on: finished parts are kept; run the same command to go on "
            "when they are at rest"
        )


def _errors_of(store: Store, run: Run, numbers: Iterable[int]) -> Counter[str]:
    errors: Counter[str] = Counter()
    for number in numbers:
        written = store.read_written(number, run.id)
        if written is None:
            raise RunError(
                f"{store.shown}: part {number} is not there, though it was written: run the same command again"
            )
        errors.update(written.errors)
    return errors


def _head(plan: Plan, about: Mapping[str, Any], total: int, done: int) -> None:
    print(f"weights   {printable(plan.weights)}" + (f" · {printable(about['remark'])}" if about["remark"] else ""))
    print(f"          fingerprint {plan.fingerprint[:16]}")
    print(f"methods   {', '.join(plan.methods)}; {plan.resolution}; {plan.precision}, engine {plan.engine}")
    print(f"rows      {total:,}" + (f", of which {done:,} are done" if done else ""), flush=True)


def _tail(store: Store, total: int, errors: Counter[str], progress: Any, seconds: float) -> None:
    from torch_impl.batch.store import ROWS

    bad = sum(errors.values())
    print(f"rows      {total:,}: {total - bad:,} explained, {bad:,} with an error")
    for kind, count in errors.most_common(10):
        print(f"          {count:,} {printable(kind)}")
    if len(errors) > 10:
        print(f"          {sum(n for _, n in errors.most_common()[10:]):,} of {len(errors) - 10} further kinds")
    if progress.fresh:
        print(f"rate      {progress.fresh / seconds:.3g}/s ({progress.fresh:,} rows in {seconds:.1f} s)")
    print(f"wrote     {printable(str(store.folder / ROWS))}")


def _kinds(errors: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in errors.most_common(3))


def _show(arguments: argparse.Namespace) -> int:
    from torch_impl import figure
    from torch_impl.batch.reading import read_maps
    from torch_impl.batch.store import Store
    from torch_impl.batch.where import parse

    store = Store(arguments.folder)
    run = store.read_run()
    if arguments.where is not None:
        parse(arguments.where)
    if arguments.csv is not None:
        from torch_impl.batch.show import write_csv

        if os.path.lexists(arguments.csv) and not arguments.overwrite:
            raise RunError(f"{arguments.csv!r} is there already: add --overwrite to replace it")
        count = write_csv(store, run, arguments.where, arguments.limit, arguments.csv)
        print(f"wrote     {printable(arguments.csv)}: {count:,} rows")
        if arguments.out is None:
            return DONE
    limit = arguments.limit or SHOWN
    if arguments.out is None:
        from torch_impl.batch.show import lines

        listed = read_maps(store.folder, [], arguments.where, limit=limit)
        for line in lines(listed):
            print(line)
        _say_if_there_are_more(arguments, store, arguments.where, len(listed))
        return DONE
    from torch_impl.batch.show import explanation
    from torch_impl.explainer import check_output

    figure.checked_colormap(arguments.colormap)
    check_output(arguments.out, overwrite=arguments.overwrite)
    methods = methods_of(arguments.methods) if arguments.methods is not None else None
    where = "error is None" if arguments.where is None else f"({arguments.where}) and error is None"
    found = read_maps(store.folder, methods, where, limit=limit)
    if not len(found):
        raise RunError(f"{store.shown}: no row with maps" + (f" where {arguments.where}" if arguments.where else ""))
    drawn, missing = explanation(found, run)
    _say_if_there_are_more(arguments, store, where, len(found))
    for path in drawn.save(arguments.out, colormap=arguments.colormap, overwrite=arguments.overwrite):
        print(f"wrote     {printable(str(path))}")
    for line in missing:
        print(f"attention-maps: {line}", file=sys.stderr)
    return IN_PART if missing else DONE


def _say_if_there_are_more(arguments: argparse.Namespace, store: Store, where: str | None, seen: int) -> None:
    from torch_impl.batch.reading import read_maps

    if arguments.limit is None and seen == SHOWN and len(read_maps(store.folder, [], where, limit=SHOWN + 1)) > SHOWN:
        print(f"attention-maps: the first {SHOWN} rows; for more give --limit N, for others --where", file=sys.stderr)


def _count(text: str) -> int:
    value = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, 1 or more")
    return value


def _loaders(text: str) -> int | str:
    if text == "auto":
        return text
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give auto, or a number of processes from 0 to 999")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})(?::([0-9]{1,6}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of workers, or the least and the most, such as 2:8")
    return least, most


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 64 or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: give a fraction of a GPU such as 0.5, or a whole number")
    return value
