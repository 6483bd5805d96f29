"""Tables, checks and the plot of what was measured."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

LAB = {"of CPU time": 2.36, "in all": 2.64}
"""Seconds that the lab's notebook noted for SmoothGrad of four photographs, 20 samples, on its GPU."""

TITLES = {
    "all": "all four maps",
    "cams": "Grad-CAM and Grad-CAM++",
    "vanilla": "vanilla saliency",
    "smoothgrad": "SmoothGrad",
    "gradcam": "Grad-CAM",
    "gradcam_plus_plus": "Grad-CAM++",
}

SAME = 0.9999
"""Pearson correlation at which two float32 programs that draw the same map stay on every photograph: rounding costs 1e-5."""

EXACT_TO_KERAS = ("shared", "library")
"""Contenders that claim tf-keras-vis's maps."""

Runs = dict[str, list[dict[str, Any]]]


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Of two maps; 0 where one is constant."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return 0.0 if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])


def checks(folder: Path, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Contender → method → correlation with the reference map of each photograph.

    The reference is tf-keras-vis where it ran, else the shared engine. SmoothGrad is compared on one photograph alone, where
    the lab's joint noise and the port's are the same numbers.
    """
    base = "tf-keras-vis" if "tf-keras-vis" in names else "shared"
    found: dict[str, dict[str, list[float]]] = {}
    for name in names:
        if name == base:
            continue
        found[name] = {}
        for theirs_path in sorted(folder.glob(f"{base}-*.npz")):
            ours_path = folder / f"{name}{theirs_path.name.removeprefix(base)}"
            if not ours_path.is_file():
                continue
            with np.load(ours_path) as ours, np.load(theirs_path) as theirs:
                for method in ours.files:
                    if method == "smoothgrad" and len(ours[method]) > 1:
                        continue
                    values = [pearson(a, b) for a, b in zip(ours[method], theirs[method], strict=True)]
                    found[name].setdefault(method, []).extend(values)
    reference: dict[str, dict[str, list[float]]] = {"reference": {base: []}}
    return reference | found


def sound(checked: dict[str, dict[str, list[float]]]) -> bool:
    """Whether every contender that claims the reference's maps was compared with it, and draws them."""
    claims = [checked[name] for name in EXACT_TO_KERAS if name in checked]
    return all(rows and all(value >= SAME for values in rows.values() for value in values) for rows in claims)


def check_table(checked: dict[str, dict[str, list[float]]]) -> str:
    """Markdown."""
    base = next(iter(checked["reference"]))
    methods = list(TITLES)[2:]
    lines = [
        f"The maps, as Pearson correlation with {base}'s, lowest of the photographs (SmoothGrad: of the first one):",
        "",
        "| | " + " | ".join(TITLES[m] for m in methods) + " |",
        "|---|" + "---|" * len(methods),
    ]
    for name, rows in checked.items():
        if name != "reference":
            cells = [f"{min(rows[m]):.4f}" if rows.get(m) else "–" for m in methods]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(runs: list[dict[str, Any]], job: str, count: int) -> list[float]:
    return [row["seconds"] for run in runs for row in run["rows"] if (row["job"], row["photographs"]) == (job, count)]


def _peak(runs: list[dict[str, Any]], job: str, count: int) -> str:
    """Of the device's memory, MB."""
    rows = [row for run in runs for row in run["rows"] if (row["job"], row["photographs"]) == (job, count)]
    return f"{max(row['device_peak_mb'] for row in rows):.0f}" if rows else "–"


def _spread(values: list[float], digits: int = 2) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def speed_table(runs: Runs, limits: list[dict[str, Any]], machine: dict[str, str], options: argparse.Namespace) -> str:
    """Markdown: seconds, ratios to the shared engine, memory, the limit."""
    from benchmarks.limit import flops_of

    names = list(runs)
    digits = 4 if options.device.startswith("cuda") else 2
    rate = statistics.median(limit["rate"] for limit in limits)
    seen = {(row["job"], row["photographs"]): None for run in runs[names[0]] for row in run["rows"]}
    lines = [
        _about(machine, options),
        f"Seconds, median (lowest to highest) of {options.rounds}; the limit is the job's operations at {rate / 1e9:.0f} GFLOP/s, "
        "the best product or convolution measured in the same run.",
        "",
        "| | photographs | " + " | ".join(names) + " | limit |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for job, count in seen:
        cells = [_spread(_times(runs[name], job, count), digits) for name in names]
        bound = count * flops_of(job, options.samples) / rate
        lines.append(f"| {TITLES[job]} | {count} | " + " | ".join(cells) + f" | {bound:.{digits}f} |")
    lines += ["", "How many times faster the shared engine is, round by round:", ""]
    others = [name for name in names if name != "shared"]
    if "shared" in names and others:
        lines += ["| | photographs | " + " | ".join(others) + " |", "|---|---|" + "---|" * len(others)]
        for job, count in seen:
            mine = _times(runs["shared"], job, count)
            cells = []
            for name in others:
                theirs = _times(runs[name], job, count)
                cells.append(_spread([b / a for a, b in zip(mine, theirs, strict=False)]))
            lines.append(f"| {TITLES[job]} | {count} | " + " | ".join(cells) + " |")
    if "library" in names and "stock" in names and _times(runs["library"], "all", 4):
        pairs = zip(_times(runs["library"], "all", 4), _times(runs["stock"], "all", 4), strict=True)
        lines += ["", f"stock / library, all four maps of 4 photographs: {_spread([b / a for a, b in pairs])}."]
    if options.device.startswith("cuda"):
        counts = sorted({count for job, count in seen if job == "all"})
        lines += ["", "Peak memory on the device, MB, all four maps:", ""]
        lines += ["| photographs | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for count in counts:
            cells = [_peak(runs[name], "all", count) for name in names]
            lines.append(f"| {count} | " + " | ".join(cells) + " |")
        lines.append("")
        for name in names:
            smooth = _times(runs[name], "smoothgrad", 4)
            if smooth and options.samples == 20:
                lab = " and ".join(f"{seconds / statistics.median(smooth):.1f} ({how})" for how, seconds in LAB.items())
                lines.append(
                    f"The lab's SmoothGrad, 4 × 20 (2.36 s of CPU time, 2.64 s in all, on its GPU) / {name}: {lab}."
                )
    for name in ("shared", "library"):
        smooth = _times(runs.get(name, []), "smoothgrad", 4)
        if smooth:
            parts = [
                limit["layers_s"] * options.samples * 4 / seconds
                for limit, seconds in zip(limits, smooth, strict=False)
            ]
            lines += [
                "",
                f"SmoothGrad of 4 photographs by {name} runs at {_spread([100 * p for p in parts], 0)} % of the rate of its own "
                f"layers, each timed alone in batches of {limits[0]['batch']}, forward and input gradient.",
            ]
    return "\n".join(lines)


def passes_table(found: dict[str, dict[str, list[float]]], machine: dict[str, str], options: argparse.Namespace) -> str:
    """Markdown: a row a number format, a column a batch size."""
    batches = list(next(iter(found.values())))
    lines = [
        f"{_machine(machine)}; {_device(machine, options)}.",
        "Milliseconds an image, forward and backward to the input / forward alone, by the images in one pass; median of 5.",
        "",
        "| | " + " | ".join(batches) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for precision, row in found.items():
        cells = [f"{1e3 * both:.2f} / {1e3 * forward:.2f}" for both, forward in row.values()]
        lines.append(f"| {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fidelity(folder: Path, yardstick: Path) -> dict[str, list[float]]:
    """Method → correlation with the float64 map of each photograph."""
    with np.load(folder / "shared-all-4.npz") as ours, np.load(yardstick / "shared-all-4.npz") as exact:
        return {m: [pearson(a, b) for a, b in zip(ours[m], exact[m], strict=True)] for m in ours.files}


def precision_table(
    runs: Runs,
    fidelities: dict[str, dict[str, list[float]]],
    machine: dict[str, str],
    options: argparse.Namespace,
    many: int,
) -> str:
    """Markdown: a row a number format."""
    methods = list(TITLES)[2:]
    lines = [
        _about(machine, options),
        "Shared engine, four photographs: seconds, and the lowest Pearson correlation with the float64 map; and photographs a "
        f"second, both CAMs of {many} from pixels in memory.",
        "",
        "| | all four maps, s | both CAMs, s | CAMs of photographs a second | "
        + " | ".join(TITLES[m] for m in methods)
        + " |",
        "|---|---|---|---|" + "---|" * len(methods),
    ]
    for precision, rows in runs.items():
        digits = 4 if options.device.startswith("cuda") else 3
        cells = [_spread(_times(rows, job, 4), digits) for job in ("all", "cams")]
        cells.append(_spread([many / seconds for seconds in _times(rows, "cams", many)], 1))
        if precision == "fp64":
            cells += ["1"] * len(methods)
        else:
            cells += [f"{min(fidelities[precision][m]):.5f}" for m in methods]
        lines.append(f"| {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lines(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Seconds against work, with the straight line through them: `fixed` + `each` · work; `off`: the worst point's deviation."""
    found: dict[str, dict[str, Any]] = {}
    kinds = {
        "two CAMs, against photographs": ("cams", "photographs"),
        "vanilla saliency, against photographs": ("vanilla", "photographs"),
        "SmoothGrad of one photograph, against samples": ("smoothgrad", "samples"),
    }
    for title, (job, axis) in kinds.items():
        points: dict[int, list[float]] = {}
        for run in runs:
            for row in run["rows"]:
                if row["job"] == job:
                    points.setdefault(row[axis], []).append(row["seconds"])
        x = np.array(sorted(points), float)
        y = np.array([statistics.median(points[int(n)]) for n in x])
        each, fixed = np.polyfit(x, y, 1, w=1 / y)
        off = float(np.abs(fixed + each * x - y).max() / y.max())
        found[title] = {
            "x": x.tolist(), "y": y.tolist(), "low": [min(points[int(n)]) for n in x],
            "high": [max(points[int(n)]) for n in x], "fixed": float(fixed), "each": float(each), "off": off,
        }  # fmt: skip
    return found


def cost_table(found: dict[str, dict[str, Any]], machine: dict[str, str]) -> str:
    """Markdown."""
    rows = [
        _machine(machine),
        "",
        "| shared engine | fixed, s | each, s | farthest from the line |",
        "|---|---|---|---|",
    ]
    for title, line in found.items():
        rows.append(
            f"| {title} | {line['fixed']:.3f} | {line['each']:.4f} | {100 * line['off']:.0f} % of the longest |"
        )
    return "\n".join(rows)


def memory_table(memory: dict[str, dict[int, float]]) -> str:
    """Markdown: peaks, and what each further photograph adds."""
    lines = [
        "Peak memory of the whole process, MB, all four maps, each in a process of its own:",
        "",
        "| photographs | " + " | ".join(memory) + " |",
        "|---|" + "---|" * len(memory),
    ]
    for count in (4, 16):
        lines.append(f"| {count} | " + " | ".join(f"{peaks[count]:.0f}" for peaks in memory.values()) + " |")
    each = [f"{(peaks[16] - peaks[4]) / 12:.1f}" for peaks in memory.values()]
    return "\n".join([*lines, "| each further one | " + " | ".join(each) + " |"])


def start_line(starts: list[dict[str, float]]) -> str:
    """From the command to the first map."""
    cells = {name: _spread([start[name] for start in starts]) for name in starts[0]}
    return (
        f"Seconds from the command to one photograph's Grad-CAM on the disk: {cells['shared']} by the shared engine, "
        f"{cells['library']} by the libraries; --help: {cells['help']}."
    )


def plot(found: dict[str, dict[str, Any]], path: Path, machine: dict[str, str]) -> None:
    """Points with their spread, and the line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, line) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        what, _, against = title.partition(", against ")
        x, y = np.array(line["x"]), np.array(line["y"])
        axis.errorbar(x, y, [y - line["low"], np.array(line["high"]) - y], fmt="o", markersize=4, color="#0072B2")
        ends = np.array([0, x.max()])
        axis.plot(ends, line["fixed"] + line["each"] * ends, color="#D55E00", linewidth=1)
        axis.set_title(f"{what}\n{line['fixed']:.2f} s + {line['each']:.3f} s each", fontsize=9)
        axis.set_xlabel(against, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds", fontsize=8)
    figure.suptitle(_machine(machine), fontsize=7, color="#555555")
    figure.savefig(path)


def _about(machine: dict[str, str], options: argparse.Namespace) -> str:
    return f"{_machine(machine)}; {_device(machine, options)}, weights {options.weights}, {options.samples} SmoothGrad samples."


def _device(machine: dict[str, str], options: argparse.Namespace) -> str:
    return f"device {options.device}" + (f" ({machine['gpu']})" if "gpu" in machine else "")


def _machine(machine: dict[str, str]) -> str:
    versions = ", ".join(
        f"{name} {value}" for name, value in machine.items() if name not in ("cores", "processor", "gpu")
    )
    return f"{machine['cores']} cores of {machine['processor']}, {versions}"
