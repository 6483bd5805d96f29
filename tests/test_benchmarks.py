"""The benchmark: arithmetic on paper, checks that can say no, and the whole of it on a tiny network."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
from conftest import ROOT, a_cuda_device, run_program

from benchmarks import child, limit, report
from benchmarks.__main__ import machine, main
from parity.contract.architecture import VGG16, Architecture
from parity.contract.network import write


def test_operations_on_paper():
    # One 3×3 convolution 3→2 at 4×4, pooled to 2×2; dense 8→5, 5→4, 4→3: 2·(9·3·2·16 + 40 + 20 + 12).
    small = Architecture(blocks=((2,),), dense=(5, 4), classes=3, size=4)
    assert limit.flops(small) == 2 * (864 + 72)
    assert limit.flops(VGG16) == pytest.approx(30.9e9, rel=0.01)  # the literature's 15.5 G multiply-adds


def test_operations_of_a_job():
    forward = limit.flops()
    assert limit.flops_of("vanilla", 20) == 2 * forward
    assert limit.flops_of("all", 20) == limit.flops_of("vanilla", 20) + limit.flops_of("smoothgrad", 20)
    assert forward < limit.flops_of("cams", 20) < 1.01 * forward  # the dense layers' gradient is all that is added
    assert set(child.METHODS) == set(report.TITLES)


def test_a_straight_line_is_found():
    rows = [{"job": j, "photographs": n, "samples": s, "seconds": 0.5 + 0.1 * n * s} for j, n, s in
            [("cams", 1, 1), ("cams", 4, 1), ("cams", 9, 1), ("vanilla", 1, 1), ("vanilla", 2, 1), ("smoothgrad", 1, 2),
             ("smoothgrad", 1, 8)]]  # fmt: skip
    for line in report.lines([{"rows": rows}]).values():
        assert line["fixed"] == pytest.approx(0.5)
        assert line["each"] == pytest.approx(0.1)
        assert line["off"] == pytest.approx(0, abs=1e-9)


def test_a_map_that_is_another_is_noticed(tmp_path):
    generator = np.random.RandomState(0)
    maps = {m: generator.uniform(size=(1, 8, 8)) for m in child.METHODS["all"]}
    np.savez(tmp_path / "tf-keras-vis-all-1.npz", **maps)
    np.savez(tmp_path / "shared-all-1.npz", **maps)
    np.savez(tmp_path / "stock-all-1.npz", **{m: generator.uniform(size=(1, 8, 8)) for m in maps})
    checked = report.checks(tmp_path, ["shared", "stock", "tf-keras-vis"])
    assert report.sound(checked)  # stock is another map and does not claim to be this one
    assert min(checked["shared"]["gradcam"]) == pytest.approx(1)
    assert max(checked["stock"]["gradcam"]) < 0.5
    for name in ("shared", "tf-keras-vis"):  # a right map in another job does not make up for a wrong one
        np.savez(tmp_path / f"{name}-cams-1.npz", gradcam=maps["gradcam"])
    assert report.sound(report.checks(tmp_path, ["shared", "stock", "tf-keras-vis"]))
    maps["gradcam"] = maps["gradcam"][:, ::-1]
    np.savez(tmp_path / "shared-all-1.npz", **maps)
    assert not report.sound(report.checks(tmp_path, ["shared", "stock", "tf-keras-vis"]))


def test_a_contender_that_was_never_compared_is_not_sound(tmp_path):
    assert not report.sound(report.checks(tmp_path, ["shared", "tf-keras-vis"]))


@pytest.mark.cuda
def test_every_contender_on_a_cuda_device(weights, monkeypatch, capsys):
    jobs = json.dumps([["all", 2, 2], ["smoothgrad", 4, 2], ["cams", 1, 1]])
    runs, limits = {}, []
    with a_cuda_device():
        for name in ("limit", "shared", "library", "decoded", "stock"):
            command = ["child", name, "--device", "cuda", "--weights", weights, "--jobs", jobs]
            monkeypatch.setattr("sys.argv", command)
            assert child.main() == 0
            (limits if name == "limit" else runs.setdefault(name, [])).append(json.loads(capsys.readouterr().out))
        here = machine(runs)
    for (run,) in runs.values():
        assert [row["job"] for row in run["rows"]] == ["all", "smoothgrad", "cams"]
        assert all(row["seconds"] > 0 and row["device_peak_mb"] > 0 for row in run["rows"])
    table = report.speed_table(runs, limits, here, Namespace(device="cuda", weights="tiny", samples=20, rounds=1))
    assert f"device cuda ({runs['shared'][0]['device']})" in table
    assert "The lab's SmoothGrad" in table
    assert "Peak memory on the device" in table


def test_the_peak_is_that_of_the_job_alone():
    child._forget_peak(False)
    before = child._peak_mb()
    block = np.ones(40_000_000, np.uint8)
    assert child._peak_mb() >= before + 39
    del block
    child._forget_peak(False)
    assert child._peak_mb() < before + 30


@pytest.fixture
def weights(tmp_path, tiny):
    write(tiny, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def test_speed_from_end_to_end(tmp_path, weights, capsys):
    arguments = ["--rounds", "1", "--samples", "2", "--photographs", "1,2", "--jobs", "all,cams", "--weights", weights]
    assert main([*arguments, "--contenders", "shared,library,stock", "--json", str(tmp_path / "all.json")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "| all four maps | 1 |",
        "| Grad-CAM and Grad-CAM++ | 2 |",
        "GFLOP/s",
        "times faster the shared engine",
    ):
        assert line in printed
    found = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [row["job"] for row in found["runs"]["shared"][0]["rows"]] == ["all", "cams"] * 2
    assert min(found["checks"]["library"]["smoothgrad"]) > report.SAME
    assert max(found["checks"]["stock"]["smoothgrad"]) < report.SAME
    assert found["machine"]["torch"]


def test_precision_from_end_to_end(weights, capsys):
    assert main(["precision", "--rounds", "2", "--samples", "1", "--precision", "bf16", "--weights", weights]) == 0
    printed = capsys.readouterr().out
    assert "| fp64 |" in printed
    row = next(line for line in printed.splitlines() if line.startswith("| bf16 |"))
    assert 0.5 < float(row.split("|")[5]) < 1  # vanilla saliency: near the float64 map, and not the same


def test_passes_from_end_to_end(weights, capsys):
    assert main(["passes", "--weights", weights]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()[3:]
    assert header == "| | 1 | 2 | 4 | 8 |"
    assert [row.split("|")[1].strip() for row in rows] == ["fp32", "bf16"]
    for cell in rows[0].split("|")[2:-1]:
        both, forward = (float(part) for part in cell.split("/"))
        assert both > forward > 0


def test_a_wrong_command_is_one_line(tmp_path):
    done = run_program("-m", "benchmarks", "--weights", "nothing", "--rounds", "1", "--contenders", "shared", cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "benchmarks: error: limit: --weights 'nothing': give offline, offline-random:N or a canonical safetensors file"
    )
    assert "Traceback" not in done.stderr
    assert run_program("-m", "benchmarks", "--photographs", "0", cwd=ROOT).returncode == 2
    refused = run_program("-m", "benchmarks", "precision", "--device", "auto", cwd=ROOT)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("'auto': give cpu, cuda or cuda:1")
