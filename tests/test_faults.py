"""The comparison must be able to say no, name the place and the cause; and to say yes to thirty runs drawn at random.

`pytest tests/test_faults.py -m slow -s` prints the spread of the float32 errors over those runs.
"""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import GOLDEN as TINY
from conftest import ROOT, run_program
from family_faults import FAULTS as FAMILY
from family_faults import METHODS as FAMILY_METHODS
from family_faults import UNSEEN
from faults import FAULTS as OF_MAPS
from faults import Fault
from judging import BOTH, compared, divergences, job_of, recorded
from network_faults import FAULTS as OF_THE_NETWORK
from PIL import Image

from parity import pixels, rounding
from parity.comparison import compare
from parity.contract.artifact import Artifact
from parity.contract.methods import DEFAULT as METHODS
from parity.contract.network import seeded, write
from parity.contract.recorder import merge
from parity.contract.samples import SAMPLES
from parity.contract.vgg import vgg
from parity.report import ParityReport
from torch_impl import framing
from torch_impl.candidate import candidate as port
from torch_impl.candidate import photographs

pytestmark = pytest.mark.usefixtures("one_thread")

FAULTS = {**OF_THE_NETWORK, **OF_MAPS, **FAMILY}

needs_keras = pytest.mark.skipif(util.find_spec("tf_keras_vis") is None, reason="needs TensorFlow and tf-keras-vis")


@pytest.fixture(scope="session")
def quiet() -> Artifact:
    """Keras's maps of the golden network with its last layer a hundred thousand times weaker: tiny gradients, tiny maps."""
    return Artifact.read(TINY.with_name("quiet.safetensors"))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    return FAULTS[request.param]


@pytest.fixture
def reference(fault: Fault, request: pytest.FixtureRequest) -> Artifact:
    return request.getfixturevalue(fault.reference)


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("fault", FAULTS, indirect=True)
def test_a_fault_is_found_where_it_is(fault: Fault, reference: Artifact, precision: str) -> None:
    given = list(fault.candidate(job_of(reference, precision)))
    report = compared(reference, lambda job: given, precision)
    found = divergences(report)
    shows = dict(fault.shows) if precision in fault.precisions else {}
    if precision == "fp32" and shows.get("network", "").startswith("gradients/"):
        del shows["network"]  # in float32 a gradient is shown, and its map is judged
    # The methods that a fault does not touch hold; those it touches all differ.
    assert found.keys() == shows.keys()
    assert report.holds is (not shows)
    for method, stage in shows.items():
        for divergence in found[method]:
            assert divergence.stage == stage, divergence
            assert fault.cause in divergence.cause, divergence
            assert divergence.cause.startswith("look for") is fault.cause.startswith("look for"), divergence
            assert not divergence.figure <= divergence.limit
    check_raw_maps(fault, compared(reference, lambda job: raw_maps(given), precision), precision)


def raw_maps(given: list[tuple[int, str, Any]]) -> list[tuple[int, str, Any]]:
    """A candidate's answer, had it given away nothing else."""
    return [row for row in given if row[1].endswith("/raw")]


def check_raw_maps(fault: Fault, report: ParityReport, precision: str) -> None:
    """Raw maps alone show a fault too, where a map can show it."""
    found = divergences(report)
    touched = {method for method in fault.shows if method != "network"}
    assert found.keys() == (touched if fault.raw_cause and precision in fault.precisions else set())
    for method, rows in found.items():
        for divergence in rows:
            assert divergence.stage == f"{method}/raw"
            assert divergence.not_given > 0
            assert any(words in divergence.cause for words in fault.raw_cause), divergence
    if found:
        assert "earlier stages not given" in report.as_table()


def test_the_table_has_the_classics() -> None:
    assert {one for fault in FAULTS.values() for one in fault.shows} == {"network", *METHODS, *FAMILY_METHODS}
    # No map of any kind can show these; what does is in the table.
    assert [name for name, fault in FAULTS.items() if fault.shows.keys() == {"network"}] == [
        "the last layer's bias missing"
    ]


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_is_no_fault(name: str, family: Artifact) -> None:
    assert compared(family, UNSEEN[name].candidate, "fp64").holds


def test_of_final_maps_a_temperature_moves_only_grad_cam_plus_plus(golden: Artifact) -> None:
    report = compared(golden, FAULTS["a temperature"].candidate, "fp64")
    final = {f.stage: f.max_error for f in report.figures if f.photograph == 0 and f.stage.endswith("/final")}
    assert all(final[f"{method}/final"] < 1e-4 for method in ("vanilla", "smoothgrad", "gradcam"))
    assert final["gradcam_plus_plus/final"] > 1e-3


def test_the_port_without_a_fault_holds_on_tiny_maps(quiet: Artifact) -> None:
    assert np.ptp(quiet.whole("gradcam/raw", "fp64")[0]) < 1e-5
    assert compared(quiet, port, *BOTH).holds


# Photographs: the port is given the reference's pixels, so this fault shows where both read the same file.


def bilinear(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR)


def bgr(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    rgb = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(np.ascontiguousarray(rgb[..., ::-1]))


def cropped(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    side = min(image.size)
    return image.crop((0, 0, side, side)).resize(size, Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("resized", "cause"),
    [(None, ""), (bilinear, "resized with bilinear"), (bgr, "channel order: BGR"), (cropped, "another resize")],
)
def test_another_reading_of_photographs_is_seen(resized: Any, cause: str, golden: Artifact) -> None:
    with mock.patch.object(framing, "resized", resized or framing.resized):
        readings = photographs([str(sample.path()) for sample in SAMPLES[:2]], (32, 32), "lab")
    read = pixels.rows(readings, "lab", {p.sha256: a for p, a in zip(golden.photographs, golden.pixels, strict=True)})
    assert read == pixels.rows(readings, "lab", {})  # Pillow reads it as Keras did
    assert all(row.judged and row.within is not bool(cause) and cause in row.cause for row in read)
    report = compare(golden, {"fp64": recorded(golden, port, methods=["gradcam"])}, pixels_rows=read)
    assert all(v.holds for v in report.verdicts)
    assert report.holds is not bool(cause)
    assert cause in report.as_table()


# Thirty clean runs

MAKE = """
import json, sys
from keras_ref.__main__ import main
for i, job in enumerate(json.load(open(sys.argv[1]))):
    status = main([f"--precision={sys.argv[2]}", f"--out={sys.argv[1]}-{i}-{sys.argv[2]}", "--quiet", *job])
    if status:
        sys.exit(status)
"""


def made_by_keras(folder: Path, jobs: list[list[str]]) -> list[Artifact]:
    """Many references from one TensorFlow process for each precision, because TensorFlow takes seconds to start."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    for precision in BOTH:
        made = run_program("-c", MAKE, str(listed), precision, cwd=ROOT, timeout=500)
        assert made.returncode == 0, made.stderr
    return [merge(*(Artifact.read(f"{listed}-{i}-{p}") for p in BOTH)) for i in range(len(jobs))]


def drawn(folder: Path, count: int, seed: int) -> list[list[str]]:
    """Networks, photographs, classes and settings at random: arguments of keras_ref."""
    draw = np.random.RandomState(seed)
    folders = dict.fromkeys(sample.path().parent for sample in SAMPLES)
    packaged = [p for parent in folders for p in sorted(parent.iterdir()) if p.suffix in (".png", ".jpg")]
    jobs = []
    for run in range(count):
        blocks = tuple(
            tuple(int(draw.randint(4, 11)) for _ in range(draw.randint(1, 4))) for _ in range(draw.randint(2, 5))
        )
        dense = int(draw.randint(8, 25)), int(draw.randint(8, 25))
        size = 2 ** len(blocks) * int(draw.randint(2, 5) if len(blocks) > 2 else draw.randint(4, 9))
        table = vgg(blocks, dense, int(draw.randint(3, 13)), size)
        weights = folder / f"{run}.safetensors"
        write(seeded(int(draw.randint(2**31)), table), weights)
        photographs = []
        for i in range(draw.randint(1, 4)):
            if draw.randint(2):
                photographs.append(str(packaged[draw.randint(len(packaged))]))
                continue
            coarse = Image.fromarray(draw.randint(0, 256, (5, 5, 3)).astype(np.uint8))
            smooth = coarse.resize((int(draw.randint(20, 90)), int(draw.randint(20, 90))), Image.Resampling.BICUBIC)
            smooth.save(folder / f"{run}-{i}.png")
            photographs.append(str(folder / f"{run}-{i}.png"))
        classes = ",".join(str(draw.randint(table.classes)) for _ in photographs)
        job = [f"--weights={weights}", f"--classes={classes}", f"--samples={draw.randint(1, 6)}", "--keep=512"]
        job += [f"--noise={draw.uniform(0.02, 0.4):.3f}", f"--seed={draw.randint(2**31)}"]
        jobs.append([*job, f"--input={('caffe', 'caffe', 'torchvision')[draw.randint(3)]}", "--", *photographs])
    return jobs


def spread(runs: list[tuple[Artifact, ParityReport]]) -> dict[str, np.ndarray]:
    """The port's worst float32 error of each run over the reference's own: method → one ratio for each run that has both."""
    ratios: dict[str, list[float]] = {method: [] for method in METHODS}
    for _, report in runs:
        for method in METHODS:
            rows = [f for f in report.figures if f.stage == f"{method}/raw" and f.precision == "fp32"]
            floors = [f.floor_l2 for f in rows if np.isfinite(f.floor_l2)]
            if floors and max(floors) > 0:
                ratios[method].append(max(f.relative_l2 for f in rows) / max(floors))
    return {method: np.array(values) for method, values in ratios.items()}


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Artifact, ParityReport]]:
    folder = tmp_path_factory.mktemp("thirty")
    references = made_by_keras(folder, drawn(folder, 30, seed=2024))
    return [(one, compared(one, port, *BOTH)) for one in references]


@pytest.mark.slow
@pytest.mark.keras
@needs_keras
def test_thirty_clean_runs_hold(thirty: list[tuple[Artifact, ParityReport]]) -> None:
    assert len(thirty) == 30
    failing = {i: report.as_table() for i, (_, report) in enumerate(thirty) if not report.holds}
    assert not failing, "\n".join(failing.values())
    print("\nfloat32, relative L2 of the raw map: the port's worst over the reference's own worst, in a run")
    for method, ratios in spread(thirty).items():
        low, middle, high = ratios.min(), np.median(ratios), ratios.max()
        print(f"  {method:<18} min {low:.2f}  median {middle:.2f}  max {high:.2f}  ({len(ratios)} runs)")


@pytest.mark.slow
@pytest.mark.keras
@needs_keras
def test_flat_photographs_are_still_judged(thirty: list[tuple[Artifact, ParityReport]]) -> None:
    """Where equal pixels tie in a max-pool the frameworks may choose differently; elsewhere a fault must show all the same."""
    flat = [
        reference
        for reference, _ in thirty
        if any(0.05 < rounding.ties(reference, i).mean() < 0.95 for i in range(len(reference.photographs)))
    ]
    assert flat
    for reference in flat:
        report = compared(reference, FAULTS["mean over channels"].candidate, "fp64")
        assert divergences(report).keys() == {"vanilla", "smoothgrad"}
        assert any("left out of vanilla saliency" in line for line in report.reference["warnings"])
