"""The benchmark: arithmetic on paper, checks that can say no, and the whole of it on a tiny network. Nothing here looks at a clock."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import a_cuda_device

from benchmarks import commands, convolutions, large, limit, on_gpu, report, worker
from benchmarks.__main__ import COMMANDS, main, parser
from benchmarks.contenders import CONTENDERS, GROUPS, JOBS, maps_of, title_of
from benchmarks.timing import Bench
from parity.contract.methods import DEFAULT
from parity.contract.stages import PRECISIONS
from parity.contract.vgg import VGG16, vgg
from torch_impl.__main__ import parser as explain_parser


@pytest.fixture
def no_clock(monkeypatch):
    """Every operation is done once, and takes a second."""
    monkeypatch.setattr(Bench, "seconds", lambda bench, work: work() is not None and 1.0)


@pytest.fixture
def little(monkeypatch):
    """In this process, of few photographs, each once."""
    monkeypatch.setattr(commands, "start", worker.measure)
    monkeypatch.setattr(worker, "REPEATS", 1)
    monkeypatch.setattr(commands, "DECODED", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(commands, "WORK", {"photographs": (1, 2), "samples": (1, 2)})
    monkeypatch.setattr(commands, "BATCHES", {"cpu": (1, 2, 4), "cuda": (2, 3)})
    monkeypatch.setattr(commands, "PLACES", {"cpu": (2,), "cuda": (2,)})


def cells(table):
    """The rows of a Markdown table, header first, without the rule."""
    lines = [line for line in table.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_operations_on_paper():
    # One 3×3 convolution 3→2 at 4×4, pooled to 2×2; dense 8→5, 5→4, 4→3.
    forward, head = 2 * (9 * 3 * 2 * 16 + 40 + 20 + 12), 2 * (40 + 20 + 12)
    small = vgg([[2]], dense=(5, 4), classes=3, size=4)
    assert limit.operations(["vanilla"], 20, small) == 2 * forward
    assert limit.operations(GROUPS["cams"], 20, small) == limit.operations(["gradcam"], 20, small) == forward + head
    assert limit.operations(GROUPS["all"], 20, small) == 2 * (1 + 20) * forward
    literature = 2 * 2 * 15.5e9  # multiply-adds of VGG16, there and back
    assert limit.operations(["vanilla"], 20, VGG16) == pytest.approx(literature, rel=0.01)


def test_a_straight_line_is_found():
    fit = report.line({n: [0.5 + 0.1 * n] * 3 for n in (1, 4, 9)})
    assert [fit["fixed"], fit["each"], fit["off"]] == pytest.approx([0.5, 0.1, 0])


def test_a_map_that_is_another_is_noticed(tmp_path):
    generator, columns = np.random.RandomState(0), ["shared-fp32", "stock-fp32", "tf-keras-vis-fp32"]
    assert not report.sound(report.checks_of(tmp_path, columns)), "nothing was compared"
    maps = {name: generator.uniform(size=(1, 8, 8)) for name in DEFAULT}
    np.savez(tmp_path / "tf-keras-vis-fp32-all-1.npz", **maps)
    np.savez(tmp_path / "shared-fp32-all-1.npz", **maps)
    np.savez(tmp_path / "stock-fp32-all-1.npz", **{name: generator.uniform(size=(1, 8, 8)) for name in maps})
    checks = report.checks_of(tmp_path, columns)
    assert report.sound(checks)  # stock is another map, and does not claim to be this one
    assert max(checks["stock-fp32"]["gradcam"]) < 0.5
    assert [row[0] for row in cells(report.check_table(checks))] == ["", "shared-fp32", "stock-fp32"]
    for column in ("shared-fp32", "tf-keras-vis-fp32"):  # a right map in another job does not make up for a wrong one
        np.savez(tmp_path / f"{column}-cams-1.npz", gradcam=maps["gradcam"])
    nearly = maps["gradcam"] + 0.02 * generator.uniform(size=(1, 8, 8))  # correlates by 0.9998
    np.savez(tmp_path / "shared-fp32-all-1.npz", **{**maps, "gradcam": nearly})
    assert not report.sound(report.checks_of(tmp_path, columns))


def test_ratios_are_those_of_the_printed_medians():
    seconds = {"shared": [1.0, 2.0, 4.0], "stock": [3.0, 3.0, 8.0], "torch-cam": [5.0, 5.0, 5.0]}
    rows = [
        {"contender": name, "job": job, "photographs": 4, "round": turn, "seconds": value}
        for name, values in seconds.items()
        for job in (["cams"] if name == "torch-cam" else ["all", "cams"])
        for turn, value in enumerate(values)
    ]
    printed = cells(report.seconds_table(rows, list(seconds), ""))
    ratios = cells(report.ratio_table(rows, "shared", ["stock", "torch-cam"]))
    assert printed[2][2:] == ["2.00 (1.00 to 4.00)", "3.00 (3.00 to 8.00)", "5.00 (5.00 to 5.00)"]
    assert ratios[2] == [title_of("cams"), "4", "1.50 (1.50 to 3.00)", "2.50 (1.25 to 5.00)"]
    assert printed[1][4] == ratios[1][3] == "–"  # torch-cam draws CAMs alone


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "tf-keras-vis"])
def test_every_contender_draws_its_maps(name, weights, tmp_path):
    jobs = [(job, 2, 1) for job in JOBS if set(maps_of(job)) <= set(CONTENDERS[name].maps)]
    rows = worker.measure(worker.Task([(name, "fp32", jobs)], [0, 1], "cpu", weights, str(tmp_path)))
    assert [(row["job"], row["round"]) for row in rows] == [(job, turn) for turn in (0, 1) for job, _, _ in jobs]
    assert all(row["seconds"] > 0 and row["memory_mb"] > 50 for row in rows)
    for job, _, _ in jobs:
        with np.load(tmp_path / f"{name}-fp32-{job}-2.npz") as maps:
            assert set(maps.files) == set(maps_of(job))
            assert all(maps[m].shape[0] == 2 and np.isfinite(maps[m]).all() and maps[m].max() > 0 for m in maps.files)


def test_the_peak_is_that_of_the_job_alone():
    worker._forget_peak("cpu")
    before = worker._peak_mb("cpu")
    with mmap.mmap(-1, 40_000_000) as block:  # new to this process, as what malloc gives need not be
        block.write(b"x" * 40_000_000)
        assert worker._peak_mb("cpu") >= before + 39
    worker._forget_peak("cpu")
    assert worker._peak_mb("cpu") < before + 30


@pytest.mark.cuda
def test_like_beside_like_on_a_cuda_device(weights, little, monkeypatch, capsys):
    monkeypatch.setattr(limit, "rate", lambda *_: 1e12)
    tasks = []
    monkeypatch.setattr(commands, "start", lambda task: tasks.append(task) or worker.measure(task))
    given = ["--device", "cuda", "--jobs", "cams,smoothgrad", "--photographs", "1", "--samples", "1", "--rounds", "2"]
    with a_cuda_device():
        assert main([*given, "--weights", weights]) == 0
    assert [{precision for _, precision, _ in task.plan} for task in tasks] == [{"fp32"}, {"tf32"}]
    assert all([name for name, _, _ in task.plan] == ["shared", "library", "stock", "torch-cam"] for task in tasks)
    printed = capsys.readouterr().out
    assert printed.count("seconds, median (lowest to highest) of 2") == printed.count("MB: on a CPU") == 2
    assert "tf32: seconds" in printed


def test_convolutions_from_end_to_end(weights, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(convolutions, "by_input_gradient", lambda x, kernel: True)
    seconds = iter([1.0, 1.05, 1.0, 1.2, *[1.0] * 100])
    monkeypatch.setattr(Bench, "seconds", lambda bench, work: work() is not None and next(seconds))
    written = tmp_path / "all.json"
    assert main(["convolutions", "--photographs", "2", "--weights", weights, "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    shapes = ["3 → 8", "8 → 3", "8 → 8", "8 → 8", "8 → 16", "16 → 8", "16 → 16", "16 → 16", "16 → 16"]
    assert [row[0] for row in cells(printed)] == ["channels", *shapes]  # each shape once
    # Of two that are slower, not the one by 5 %.
    assert printed.splitlines()[-1] == "- fp32, channels first, 2 photographs, 8 → 3 at 64×64"
    rows = json.loads(written.read_text(encoding="utf-8"))["convolutions"]
    assert rows[0]["operations"] == 2 * 2 * (9 * 3 * 8) * 64 * 64


@pytest.mark.keras
@pytest.mark.slow
def test_speed_from_end_to_end(tmp_path, weights, capsys):
    arguments = ["--rounds", "1", "--samples", "1", "--photographs", "1", "--jobs", "all", "--weights", weights]
    assert main([*arguments, "--contenders", "shared,tf-keras-vis", "--json", str(tmp_path / "all.json")]) == 0
    printed = capsys.readouterr().out
    assert "GFLOP/s" in printed
    seconds, ratios, memory = [row for row in cells(printed) if row[0] == title_of("all")]
    assert (len(seconds), len(ratios), len(memory)) == (5, 3, 4)  # seconds: and the limit; ratios: of the other one
    written = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    ours, theirs = (row["seconds"] for row in written["rows"] if row["contender"] != commands.LIMIT)
    assert (seconds[2], seconds[3]) == (report.figure(ours), report.figure(theirs))
    assert ratios[2].startswith(report.figure(theirs / ours))
    assert min(map(min, written["checks"]["fp32"]["shared-fp32"].values())) > report.SAME


def test_precision_and_cost_from_end_to_end(weights, little, tmp_path, monkeypatch, capsys):
    common = ["--rounds", "2", "--weights", weights]
    assert main(["precision", *common, "--samples", "1", "--precision", "bf16"]) == 0
    _, exact, narrow = cells(capsys.readouterr().out)
    assert (exact[0], exact[4:], narrow[0]) == ("fp64", ["1"] * 4, "bf16")
    assert 0.5 < float(narrow[4]) < 1  # vanilla saliency: near the float64 map, and not the same
    started = []
    finished = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(
        commands, "subprocess", SimpleNamespace(run=lambda command, **_: started.append(command) or finished)
    )
    assert main(["cost", *common, "--rounds", "1", "--plot", str(tmp_path / "cost.svg")]) == 0
    axes = [row[0].rpartition(" ")[2] for row in cells(capsys.readouterr().out)[1:]]
    assert axes == ["photographs", "photographs", "samples"]
    assert "<svg" in (tmp_path / "cost.svg").read_text(encoding="utf-8")
    of_help, *explain = [command[3:] for command in started]  # whole commands, which are timed; test_cli runs such ones
    assert of_help == ["--help"]
    assert [explain_parser().parse_args(given).engine for given in explain] == ["shared", "library"]


def test_passes_from_end_to_end(weights, little, no_clock, capsys):
    assert main(["passes", "--weights", weights]) == 0
    printed = capsys.readouterr().out
    header, *rows = cells(printed)
    assert header == ["", "1", "2", "4"]
    # A second for each of 13 convolutions there and back, and for the pass of all of them.
    assert printed.splitlines()[-1].startswith("fp32, 4 in a pass: at 2600% of the rate of its own convolutions")
    assert [row[0] for row in rows] == ["fp32", "bf16"]
    assert rows[0][3] == "250.00 / 250.00"  # ms a photograph, four of them in a second


def test_large_sets_on_paper():
    row = {"runner": "local", "rss_mb": 900}
    text = large.table_of([{**row, "photographs": n, "seconds": 2 + n / 10, "bytes": 950 * n} for n in (10, 30)])
    assert cells(text)[2] == ["local", "30", "5.00", "6.00", "900", "950"]
    assert "local: 2.00 s to start, 0.100 s a photograph" in text


def test_on_gpu_goes_past_a_failing_part(tmp_path, monkeypatch):
    parts = [("First", ["benchmarks", "--helpless"], ""), ("Second", [], "no"), ("Third", ["benchmarks", "--help"], "")]
    monkeypatch.setattr(on_gpu, "parts_of", lambda options, folder: parts)
    out = tmp_path / "results.md"
    assert main(["on-gpu", "--device", "cpu", "--out", str(out)]) == 1
    text = out.read_text(encoding="utf-8")
    assert re.findall(r"^- (\w+: \w+)", text, re.MULTILINE) == ["First: FAILED", "Second: left", "Third: done"]
    assert "unrecognized arguments: --helpless" in text
    assert "usage: python -m benchmarks" in text
    monkeypatch.setattr(on_gpu, "run_part", lambda command, seconds, file: "FAILED (status 1) after 9 s")
    for title, status in (("Parity", 1), (on_gpu.NAMED, 0)):
        parts[:] = [(title, [], ""), ("Left out", [], "no")]
        assert main(["on-gpu", "--device", "cpu", "--out", str(out)]) == status


def test_on_gpu_runs_commands_that_exist(tmp_path):
    options = parser().parse_args(["on-gpu", "--device", "cuda", "--out", "x"])
    parts = list(on_gpu.parts_of(options, tmp_path))
    assert [title for title, _, missing in parts if missing] == ["Parity", on_gpu.NAMED]
    ours = [command[1:] for _, command, _ in parts if command[0] == "benchmarks"]
    assert {parser().parse_args(command).command for command in ours} == COMMANDS.keys() - {"cost", "on-gpu"}


@pytest.mark.cuda
@pytest.mark.parametrize("title", ["Convolutions", "Passes", "Number formats"])
def test_the_parts_of_on_gpu_run_on_a_cuda_device(title, weights, tmp_path, little, no_clock, capsys):
    """As they are called there; speed has a test of its own."""
    options = parser().parse_args(["on-gpu", "--device", "cuda", "--out", "x", "--weights", weights])
    (command,) = [command for name, command, _ in on_gpu.parts_of(options, tmp_path) if name == title]
    few = ["--samples", "1", "--rounds", "1"] if title == "Number formats" else []
    with a_cuda_device():
        assert main([*command[1:], *few]) == 0
    formats = {row[0] for row in cells(capsys.readouterr().out)} & {*PRECISIONS}
    assert formats == {"Convolutions": set(), "Passes": {*PRECISIONS} - {"fp64"}}.get(title, {*PRECISIONS})


def test_what_a_part_prints_is_in_the_file_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "ROOT", tmp_path)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (tmp_path / "part.py").write_text("print('a line')\nassert open('results.md').read() == 'a line\\n'")
    with (tmp_path / "results.md").open("w") as file:
        assert on_gpu.run_part(["part"], 60, file).startswith("done in")
        assert on_gpu.run_part(["part"], 0, file) == "left out: the time is over"


def test_a_wrong_command_is_one_line(capsys):
    for arguments, words in [
        ("--weights nothing", "--weights 'nothing': give offline, offline-random:N or a canonical safetensors file"),
        ("--contenders torch-cam --jobs vanilla", "none of torch-cam draws that on cpu in fp32"),
        ("precision --precision fp64", "give another format than fp64"),
    ]:
        assert main(arguments.split()) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit, match="2"):
        main(["--photographs", "0"])
    assert "'0': give a number, 1 or more" in capsys.readouterr().err
