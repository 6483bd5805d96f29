"""The file between the two sides. No framework here: NumPy, safetensors and json, as any reader has them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from parity.contract import artifact as contract
from parity.contract import files, stages
from parity.contract.artifact import Artifact, ArtifactError, JobSettings, Photograph, Weights
from parity.contract.layers import Layer, LayerTable
from parity.contract.methods import DEFAULT, Options
from parity.contract.network import Network, seeded
from parity.contract.recorder import Recorder, merge
from parity.contract.vgg import vgg

MICRO = vgg(((2,), (3,)), dense=(4, 3), classes=5, size=8)
SAMPLE = 40
SETTINGS = JobSettings(options=Options(n_samples=3), sample=SAMPLE)
PHOTOGRAPHS = (
    Photograph('a "b"\n<c>.png', "0" * 64, (4, 3), 1, "élan"),
    Photograph("b", "1" * 64, (9, 9), 0, "x"),
)
PIXELS = np.random.RandomState(1).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
RANDOM = np.random.RandomState(0)
NUMBERS = {
    stage.name: RANDOM.standard_normal((2, *stage.shape))
    for stage in stages.stages(MICRO, DEFAULT, Options(n_samples=3), SAMPLE)
    if stage.name != "pixels"
}
"""What is given of every stage, in every precision."""


def made(
    precisions: tuple[str, ...] = ("fp32", "fp64"),
    given: dict[str, np.ndarray] = NUMBERS,
    weights: Weights | None = None,
    settings: JobSettings = SETTINGS,
    pixels: np.ndarray = PIXELS,
    photographs: tuple[Photograph, ...] = PHOTOGRAPHS,
    **more: Any,
) -> Artifact:
    """An artifact of two photographs of random numbers."""
    recorder = Recorder(weights or Weights.of(seeded(0, MICRO)), settings, pixels)
    for precision in precisions:
        for stage, array in given.items():
            for i, row in enumerate(array):
                recorder.add(precision, i, stage, row)
    flags: dict[str, str | int | bool] = {"tf32": False, "threads": 2, "device": "cpu"}
    said = {"program": "test", "versions": {"numpy": "2"}, "flags": flags, "warnings": ("exp(score) left float32",)}
    return recorder.artifact(photographs, **{**said, **more})


def same(one: Artifact, other: Artifact) -> bool:
    records = [field.name for field in dataclasses.fields(Artifact) if field.name != "arrays"]
    exactly = lambda a: (a.dtype, a.shape, a.tobytes())  # noqa: E731
    return (
        all(getattr(one, name) == getattr(other, name) for name in records)
        and one.arrays.keys() == other.arrays.keys()
        and all(exactly(array) == exactly(other.arrays[name]) for name, array in one.arrays.items())
    )


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return made()


@pytest.fixture(scope="module")
def file(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "whatever it is called"
    artifact.write(path)
    return path


def contents(file: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def rewritten(file: Path, target: Path, *, seal: bool = True, manifest: Any = None, **changes: Any) -> Path:
    """Write the file again, changed; `seal` makes the checksum right again."""
    metadata, arrays = contents(file)
    if manifest:
        plain = json.loads(metadata["manifest"])
        manifest(plain)
        metadata["manifest"] = json.dumps(plain)
    for name, array in changes.items():
        if array is None:
            del arrays[name]
        elif isinstance(array, str):
            metadata[name] = array
        else:
            arrays[name] = array
    if seal:
        metadata["sha256"] = contract._checksum(metadata["manifest"], arrays)
    save_file(arrays, target, metadata)
    return target


# What is in it


def test_what_is_read_is_what_was_written(artifact: Artifact, file: Path, tmp_path: Path) -> None:
    assert same(Artifact.read(file), artifact)
    Artifact.read(file).write(tmp_path / "copy")
    assert same(Artifact.read(tmp_path / "copy"), artifact)


def test_safetensors_and_json_alone_can_read_it(file: Path) -> None:
    metadata, arrays = contents(file)
    assert metadata["format"] == "attention-maps artifact"
    assert metadata["version"] == "2"
    digest = hashlib.sha256(metadata["manifest"].encode())
    for name in sorted(arrays):  # as the documentation has it
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode() + arrays[name].tobytes())
    assert digest.hexdigest() == metadata["sha256"]
    manifest = json.loads(metadata["manifest"])
    assert manifest["photographs"][0]["label"] == "élan"
    assert [layer["name"] for layer in manifest["table"]["layers"]][:3] == [
        "input_layer",
        "block1_conv1",
        "block1_pool",
    ]
    assert [stage["name"] for stage in manifest["stages"]][:2] == ["pixels", "inputs"]
    assert arrays["fp64/gradcam/raw"].shape == (2, 4, 4)
    assert arrays["pixels"].dtype == np.uint8


def test_a_whole_stage_is_whole_and_a_sampled_one_lies_where_its_places_say(artifact: Artifact) -> None:
    np.testing.assert_array_equal(
        artifact.whole("activations/block2_conv1", "fp64"), NUMBERS["activations/block2_conv1"]
    )
    name = "gradients/block1_conv1"  # 8 × 8 × 2 = 128 values, 40 kept
    size, kept = 128, SAMPLE
    seed = int.from_bytes(hashlib.sha256(b"gradients/block1_conv1 (8, 8, 2)").digest()[:4], "little")
    fractions = np.random.RandomState(seed).random_sample(kept)
    for n in range(2):
        flat = NUMBERS[name][n].ravel()
        for k in range(kept):  # one in each of 40 parts, as the documentation has it
            start, end = k * size // kept, (k + 1) * size // kept
            assert artifact.values(name, "fp64")[n, k] == flat[start + int(fractions[k] * (end - start))]
    with pytest.raises(ArtifactError, match="sampled"):
        artifact.whole(name)


def test_nothing_in_an_artifact_can_be_changed(artifact: Artifact, file: Path) -> None:
    for one in (artifact, Artifact.read(file)):
        assert not any(array.flags.writeable for array in one.arrays.values())
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.program = "other"  # type: ignore[misc]


def test_what_is_not_a_number_is_kept_as_it_is(tmp_path: Path) -> None:
    raw, weights = NUMBERS["gradcam_plus_plus/raw"].copy(), NUMBERS["gradcam_plus_plus/weights"].copy()
    raw[1], weights[1, 0] = math.nan, 1e300
    made(given={**NUMBERS, "gradcam_plus_plus/raw": raw, "gradcam_plus_plus/weights": weights}).write(tmp_path / "a")
    read = Artifact.read(tmp_path / "a")
    assert np.isnan(read.whole("gradcam_plus_plus/raw")[1]).all()
    assert np.isfinite(read.whole("gradcam_plus_plus/raw")[0]).all()
    assert read.whole("gradcam_plus_plus/weights")[1, 0] == math.inf  # beyond float32
    assert read.whole("gradcam_plus_plus/weights", "fp64")[1, 0] == 1e300


def test_small_networks_travel_and_large_ones_do_not(file: Path) -> None:
    network, original = Artifact.read(file).network, seeded(0, MICRO)
    assert isinstance(network, Network)
    assert network.fingerprint == original.fingerprint
    assert network.table == MICRO
    for name, tensor in original.tensors.items():
        np.testing.assert_array_equal(network.tensors[name], tensor)
    assert Weights.of(seeded(0, TINY)).tensors
    assert not Weights.of(seeded(0, vgg(((2,), (3,)), (600, 600), 5, 8))).tensors


# What is refused


def refused_or_same(damaged: Path, artifact: Artifact) -> bool:
    try:
        return same(Artifact.read(damaged), artifact)
    except ArtifactError as error:
        return "\n" not in str(error) and damaged.name in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_region_is_refused_or_makes_no_difference(
    file: Path, artifact: Artifact, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    start = data.draw(st.one_of(st.integers(0, header + 8), st.integers(0, len(content) - 1)))
    length = min(data.draw(st.sampled_from([1, 1, 2, 4, 30, 500])), len(content) - start)
    mask = data.draw(st.sampled_from([0x01, 0x80, 0xFF, 0x20]))
    for i in range(start, start + length):
        content[i] ^= mask
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    assert refused_or_same(damaged, artifact)


def test_a_truncated_file_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for length in [0, 1, 10, 100, *range(1000, len(content), 5000), len(content) - 1]:
        (tmp_path / "short").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"short"):
            Artifact.read(tmp_path / "short")


def test_what_is_no_artifact_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", manifest=np.zeros(3))
    save_file({"weights": np.zeros(3)}, tmp_path / "foreign")
    save_file({"weights": np.zeros(3)}, tmp_path / "other", {"format": "somebody else"})
    for name, words in {
        "missing": "No such file",
        "": "directory",
        "old.npz": "version 1 of the format.*write it again with python -m keras_ref",
        "foreign": "another program's",
        "other": "another program's",
        "newer": "version 3 of the format, this program reads 2: update it",
    }.items():
        if name == "newer":
            rewritten(file, tmp_path / name, version="3", manifest=lambda m: m.clear())
        with pytest.raises(ArtifactError, match=words) as caught:
            Artifact.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": lambda m: m["photographs"][0].update(class_index=2)},
        {"fp32/logits": NUMBERS["logits"].astype(np.float32)[::-1].copy()},
        {"fp32/logits": NUMBERS["logits"].astype(np.float32).reshape(5, 2)},
        {"fp32/logits": None},
        {"more": np.zeros(3)},
        {"sha256": "0" * 64},
    ],
)
def test_what_was_edited_afterwards_is_refused(file: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="do not match their sha256"):
        Artifact.read(rewritten(file, tmp_path / "b", seal=False, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest": lambda m: m["photographs"].clear()}, "pixels are"),
        ({"manifest": lambda m: m["photographs"].pop()}, "pixels are"),
        ({"manifest": lambda m: m["photographs"][0].update(class_index=5)}, "class 5 does not exist"),
        ({"manifest": lambda m: m["photographs"][0].update(class_index=-1)}, "class -1 does not exist"),
        ({"manifest": lambda m: m["photographs"][0].update(age=3)}, "age"),
        ({"manifest": lambda m: m["settings"].update(methods=["lime"])}, "does not know: lime"),
        ({"manifest": lambda m: m["settings"]["options"].update(n_samples=0)}, "n_samples is 0"),
        ({"manifest": lambda m: m["table"].update(target="block9_conv1")}, "block9_conv1"),
        ({"manifest": lambda m: m["stages"][3].update(kept=3)}, "activations/block1_pool in fp32"),
        ({"manifest": lambda m: m.pop("weights")}, "weights"),
        ({"pixels": PIXELS.astype(np.float32)}, "pixels are float32"),
        ({"pixels": None}, "pixels"),
        ({"fp32/logits": NUMBERS["logits"]}, "logits in fp32 is float64"),
        ({"fp64/gradcam/raw": np.zeros((2, 3, 4))}, "gradcam/raw in fp64"),
        ({"network/features.0.bias": None}, "features.0.bias"),
    ],
)
def test_an_artifact_that_contradicts_itself_is_refused(
    file: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        Artifact.read(rewritten(file, tmp_path / "b", **changes))
    assert "not as this program writes it" in str(caught.value)


# Writing


def test_a_failed_write_leaves_what_was_there(artifact: Artifact, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def full(arrays: Any, target: Path, metadata: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixels": PIXELS.astype(float)}, "pixels are float64"),
        ({"photographs": PHOTOGRAPHS[:1]}, "pixels are uint8"),
        ({"photographs": tuple(dataclasses.replace(p, class_index=5) for p in PHOTOGRAPHS)}, "class 5 does not exist"),
        ({"given": {"vanilla/row": np.zeros((2, 8, 8))}}, "'vanilla/row' is unknown"),
        ({"given": {"pixels": PIXELS}}, "'pixels' is unknown"),
        ({"precisions": ("fp8",)}, "'fp8' is unknown"),
        ({"given": {"vanilla/raw": np.zeros((2, 3, 8))}}, "vanilla/raw has shape"),
        ({"given": {"score": np.zeros(2, complex)}}, "score holds complex"),
        ({"given": {"score": np.zeros(3)}}, "photograph 2 of 2 does not exist"),
        ({"given": {"score": np.zeros(1)}}, "photograph 1 is missing"),
    ],
)
def test_what_does_not_belong_together_is_not_recorded(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        made(**change)


def test_two_precisions_merge_into_what_one_run_would_have_written(artifact: Artifact, tmp_path: Path) -> None:
    halves = [made(precisions=(p,), seconds={p: 1.0}) for p in ("fp32", "fp64")]
    for merged in (merge(*halves), merge(*halves[::-1])):
        assert merged.precisions == ("fp32", "fp64")
        assert merged.seconds == {"fp32": 1.0, "fp64": 1.0}
        assert same(dataclasses.replace(merged, seconds={}), artifact)
        merged.write(tmp_path / "merged")
        assert same(Artifact.read(tmp_path / "merged"), merged)


def test_different_photographs_do_not_merge(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="differ in their pixels"):
        merge(artifact, made(precisions=("fp64",), pixels=PIXELS ^ 1))


def test_what_was_not_given_is_said() -> None:
    one = made(
        precisions=("fp32",),
        settings=dataclasses.replace(SETTINGS, methods=("gradcam",)),
        given={"gradcam/raw": NUMBERS["gradcam/raw"]},
    )
    assert one.precisions == ("fp32",)
    assert not one.has("gradcam/raw", "fp64")
    with pytest.raises(ArtifactError, match="gradcam/raw was not given in fp64 by test"):
        one.values("gradcam/raw", "fp64")
    with pytest.raises(ArtifactError, match=r"no stage 'vanilla/raw'.*gradcam"):
        one.values("vanilla/raw")


@pytest.mark.parametrize("name", ["tiny", "quiet"])
def test_the_golden_artifacts_read(name: str) -> None:
    """Written once; this program must stay able to read them."""
    golden = Artifact.read(GOLDEN.with_name(f"{name}.safetensors"))
    assert golden.precisions == ("fp32", "fp64")
    assert golden.network is not None
    assert golden.network.fingerprint == golden.weights.fingerprint
    assert golden.settings.methods == DEFAULT
    assert len(set(golden.classes)) == len(golden.classes) == 2


def test_an_artifact_of_another_kind_of_network(tmp_path: Path) -> None:
    """A table that is no VGG's, and no square: the stages follow from it alone."""
    layers = (
        Layer("pictures", "input", (4, 6, 3)),
        Layer("mixed", "conv", (2, 3, 5), ("pictures",), {"mixed.weight": (5, 3, 2, 2)}, {"strides": [2, 2]}),
        Layer("normed", "norm", (2, 3, 5), ("mixed",), {"normed.weight": (5,)}, {"epsilon": 1e-3}),
        Layer("head", "dense", (2,), ("normed",), {"head.weight": (2, 30)}),
    )
    table = LayerTable(layers, "normed")
    weights = Weights("anywhere", "torchvision", "f" * 64, "", table)
    settings = JobSettings(methods=("gradcam",))
    shapes = {stage.name: stage.shape for stage in stages.stages(table, ("gradcam",)) if stage.name != "pixels"}
    assert shapes["activations/mixed"] == shapes["gradients/normed"] == (2, 3, 5)
    assert (shapes["gradcam/raw"], shapes["gradcam/upsampled"]) == ((2, 3), (4, 6))
    one = made(
        weights=weights,
        settings=settings,
        pixels=np.zeros((2, 4, 6, 3), np.uint8),
        given={name: np.zeros((2, *shape)) for name, shape in shapes.items()},
    )
    one.write(tmp_path / "other")
    read = Artifact.read(tmp_path / "other")
    assert same(read, one)
    assert read.table == table
    assert read.network is None
