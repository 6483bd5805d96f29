"""The file between the two sides. No framework here: NumPy, zipfile and json, as any reader has them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity.contract import stages
from parity.contract.architecture import TINY, VGG16, Architecture
from parity.contract.artifact import (
    Artifact,
    ArtifactError,
    Photograph,
    Recorder,
    Settings,
    Weights,
    build,
    floor_between,
    merge,
)
from parity.contract.network import Network, seeded

MICRO = Architecture(blocks=((2,), (3,)), dense=(4, 3), classes=5, size=8)
SAMPLE = 40
GOLDEN = Path(__file__).parent / "golden" / "tiny.npz"


def job(precisions=("fp32", "fp64"), methods=stages.METHODS, seed=0, **changed):
    """Arguments of `build` for two photographs of random numbers."""
    generator = np.random.RandomState(seed)
    chosen = Settings(methods=methods, n_samples=3, sample=SAMPLE)
    table = stages.stages(MICRO, methods, 3, SAMPLE)
    given = {s.name: generator.standard_normal((2, *s.shape)) for s in table if s.name != "pixels"}
    return {
        "stages_by_precision": {p: dict(given) for p in precisions},
        "pixels": generator.randint(0, 256, (2, 8, 8, 3)).astype(np.uint8),
        "program": "test",
        "photographs": [
            Photograph('a "b"\n<c>.png', "0" * 64, (4, 3), 1, "élan"),
            Photograph("b", "1" * 64, (9, 9), 0, "x"),
        ],
        "weights": Weights.of(seeded(0, MICRO)),
        "settings": chosen,
        "versions": {"numpy": np.__version__},
        "flags": {"tf32": False, "threads": 2, "device": "cpu"},
        "warnings": ["exp(score) left float32's range"],
        **changed,
    }


def same(one: Artifact, other: Artifact) -> bool:
    records = ("program", "photographs", "weights", "settings", "versions", "flags", "warnings", "seconds")
    return (
        all(getattr(one, name) == getattr(other, name) for name in records)
        and list(one.arrays) == list(other.arrays)
        and all(exactly(array) == exactly(other.arrays[name]) for name, array in one.arrays.items())
    )


def exactly(array: np.ndarray) -> tuple[object, ...]:
    return (array.dtype, array.shape, array.tobytes())


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return build(**job())


@pytest.fixture(scope="module")
def file(artifact: Artifact, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "a.npz"
    artifact.write(path)
    return path


def altered(file: Path, target: Path, edit: Callable[[dict[str, bytes]], None], seal: bool = True) -> Path:
    """Write the file again with its members edited; `seal` makes the manifest's hash right again."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    edit(members)
    if seal and "manifest.npy" in members:
        members["manifest_sha256.npy"] = npy(text(hashlib.sha256(payload(members["manifest.npy"])).hexdigest()))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def text(line: str) -> np.ndarray:
    return np.frombuffer(line.encode(), np.uint8)


def payload(member: bytes) -> bytes:
    return np.load(io.BytesIO(member)).tobytes()


def manifest_edit(change: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    def edit(members):
        manifest = json.loads(payload(members["manifest.npy"]))
        change(manifest)
        members["manifest.npy"] = npy(text(json.dumps(manifest)))

    return edit


# What is in it


def test_what_is_read_is_what_was_written(artifact, file):
    assert same(Artifact.read(file), artifact)


def test_equal_artifacts_are_equal_bytes(artifact, file, tmp_path):
    build(**job()).write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()
    Artifact.read(file).write(tmp_path / "copy.npz")
    assert (tmp_path / "copy.npz").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # no clock


def test_numpy_and_json_alone_can_read_it(file):
    with np.load(file, allow_pickle=False) as members:
        manifest = json.loads(members["manifest"].tobytes())
        assert (
            members["manifest_sha256"].tobytes().decode() == hashlib.sha256(members["manifest"].tobytes()).hexdigest()
        )
        for name, entry in manifest["arrays"].items():
            assert hashlib.sha256(members[name].tobytes()).hexdigest() == entry["sha256"]
            assert (members[name].dtype.str, list(members[name].shape)) == (entry["dtype"], entry["shape"])
        assert members["fp64/gradcam/raw"].shape == (2, 4, 4)
    assert manifest["photographs"][0]["label"] == "élan"
    assert manifest["weights"]["architecture"]["blocks"] == [[2], [3]]


def test_a_whole_stage_is_whole_and_a_sampled_one_lies_where_its_places_say(artifact):
    given = job()["stages_by_precision"]["fp64"]
    np.testing.assert_array_equal(artifact.whole("activations/block2_conv1", "fp64"), given["activations/block2_conv1"])
    name = "gradients/block1_conv1"  # 8 × 8 × 2 = 128 values, 40 kept
    size, kept = 128, SAMPLE
    seed = int.from_bytes(hashlib.sha256(b"gradients/block1_conv1 (8, 8, 2)").digest()[:4], "little")
    fractions = np.random.RandomState(seed).random_sample(kept)
    for n in range(2):
        flat = given[name][n].ravel()
        for k in range(kept):  # one in each of 40 parts, as the documentation has it
            start, end = k * size // kept, (k + 1) * size // kept
            assert artifact.sampled(name, "fp64")[n, k] == flat[start + int(fractions[k] * (end - start))]
        assert artifact.norm(name, "fp64")[n] == pytest.approx(math.sqrt(sum(v * v for v in flat)), rel=1e-12)
        assert artifact.max_abs(name, "fp64")[n] == max(abs(flat))
    with pytest.raises(ArtifactError, match="sampled"):
        artifact.whole(name)


def test_precision_is_the_storage_type(artifact):
    assert artifact.values("logits", "fp32").dtype == np.float32
    assert artifact.values("logits", "fp64").dtype == np.float64
    given = job()["stages_by_precision"]["fp64"]["logits"]
    np.testing.assert_array_equal(artifact.values("logits", "fp32"), given.astype(np.float32))


def test_nothing_in_an_artifact_can_be_changed(artifact, file):
    for one in (artifact, Artifact.read(file)):
        assert not any(array.flags.writeable for array in one.arrays.values())
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.program = "other"  # type: ignore[misc]


def test_floor_on_paper():
    # b = (3, 4, 0), a = (3, 5, 0): ‖a − b‖ = 1, ‖b‖ = 5, range 4
    floor = floor_between(np.array([[3, 5, 0.0]], np.float32), np.array([[3, 4, 0.0]]), is_map=True)
    np.testing.assert_allclose(floor[0, :2], [1 / 5, 1 / 4])
    # centred: b (2, 5, −7)/3, a (1, 7, −8)/3: r = (2·1 + 5·7 + 7·8) / √((4 + 25 + 49)(1 + 49 + 64))
    assert floor[0, 2] == pytest.approx(93 / math.sqrt(78 * 114))


def test_a_constant_map_has_no_correlation_and_no_error():
    floor = floor_between(np.zeros((1, 4), np.float32), np.zeros((1, 4)), is_map=True)
    assert (floor[0, 0], floor[0, 1]) == (0, 0)
    assert math.isnan(floor[0, 2])
    tenth = np.full((1, 49), 0.1)
    assert math.isnan(floor_between(tenth.astype(np.float32), tenth, is_map=True)[0, 2])
    assert floor_between(np.ones((1, 4), np.float32), np.zeros((1, 4)), is_map=True)[0, 0] == math.inf


def test_the_floor_is_there_only_with_both_precisions(artifact):
    assert artifact.floor("gradcam/raw").relative_l2.max() < 1e-7
    assert np.isnan(artifact.floor("pixels").relative_l2).all()
    one = build(**job(precisions=("fp32",)))
    assert np.isnan(one.floor("gradcam/raw").relative_l2).all()
    assert one.precisions == ("fp32",)


def test_norms_of_huge_and_tiny_values_neither_overflow_nor_vanish():
    arguments = job(precisions=("fp64",))
    arguments["stages_by_precision"] = {
        "fp64": {"logits": np.full((2, 5), 3e200), "gradcam/raw": np.full((2, 4, 4), 1e-200)}
    }
    artifact = build(**arguments)
    assert artifact.norm("logits", "fp64")[0] == pytest.approx(3e200 * math.sqrt(5))
    assert artifact.norm("gradcam/raw", "fp64")[0] == pytest.approx(4e-200)


def test_what_is_not_a_number_is_kept_as_it_is(tmp_path):
    arguments = job()
    arguments["stages_by_precision"]["fp32"]["gradcam_plus_plus/raw"][1] = math.nan
    arguments["stages_by_precision"]["fp32"]["gradcam_plus_plus/weights"][1, 0] = math.inf
    build(**arguments).write(tmp_path / "a.npz")
    read = Artifact.read(tmp_path / "a.npz")
    assert np.isnan(read.whole("gradcam_plus_plus/raw")[1]).all()
    assert np.isfinite(read.whole("gradcam_plus_plus/raw")[0]).all()
    assert read.max_abs("gradcam_plus_plus/weights")[1] == math.inf
    assert np.isnan(read.floor("gradcam_plus_plus/raw").relative_l2).tolist() == [False, True]


# Stages


def test_the_stages_of_vgg16_in_the_order_of_the_computation():
    names = [stage.name for stage in stages.stages(VGG16)]
    layers = [
        *("block1_conv1", "block1_conv2", "block1_pool"),
        *("block2_conv1", "block2_conv2", "block2_pool"),
        *("block3_conv1", "block3_conv2", "block3_conv3", "block3_pool"),
        *("block4_conv1", "block4_conv2", "block4_conv3", "block4_pool"),
        *("block5_conv1", "block5_conv2", "block5_conv3", "block5_pool"),
        *("fc1", "fc2"),
    ]
    shared = ["pixels", "inputs", *(f"activations/{n}" for n in layers), "logits", "score"]
    shared += [*(f"gradients/{n}" for n in reversed(layers)), "gradients/inputs"]
    assert names[: len(shared)] == shared
    assert names[len(shared) :] == [
        *("vanilla/raw", "vanilla/final"),
        *("smoothgrad/noise", "smoothgrad/raw", "smoothgrad/final"),
        *("gradcam/weights", "gradcam/raw", "gradcam/upsampled", "gradcam/final"),
        *("gradcam_plus_plus/alpha", "gradcam_plus_plus/weights", "gradcam_plus_plus/raw"),
        *("gradcam_plus_plus/upsampled", "gradcam_plus_plus/final", "gradcam_plus_plus/final_with_exp"),
    ]


def test_which_stages_are_whole():
    whole = {stage.name for stage in stages.stages(VGG16) if stage.whole and stage.size > 4096}
    assert whole == {"pixels", "activations/block5_conv3", "gradients/block5_conv3", "vanilla/raw", "smoothgrad/raw"}
    assert all(stage.kept == min(stage.size, 4096) for stage in stages.stages(VGG16) if stage.name not in whole)


@pytest.mark.parametrize("stage", stages.stages(VGG16), ids=lambda stage: stage.name)
def test_places_are_distinct_and_inside(stage):
    found = stages.places(stage.name, stage.shape, stage.kept)
    assert len(np.unique(found)) == stage.kept
    assert 0 <= found[0] <= found[-1] < stage.size


def test_places_are_the_same_forever():
    """Files written long ago must stay comparable."""
    found = stages.places("activations/block1_conv1", (224, 224, 64), 4096)
    assert found[[0, 1, 2047, 4095]].tolist() == PLACES


PLACES = [309, 1496, 1604901, 3210488]


def test_methods_by_any_spelling():
    assert stages.methods(["GradCAM++", "vanilla", "gradcam_plus_plus"]) == ("vanilla", "gradcam_plus_plus")
    with pytest.raises(ValueError, match="'lime' is unknown"):
        stages.methods(["lime"])
    with pytest.raises(ValueError, match="no method"):
        stages.methods([])


# What is refused


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_region_is_refused_or_makes_no_difference(file, artifact, tmp_path, data):
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    length = min(data.draw(st.sampled_from([1, 1, 2, 4, 30, 500])), len(content) - start)
    mask = data.draw(st.sampled_from([b"\x01", b"\x80", b"\xff"])) if length > 4 else data.draw(
        st.binary(min_size=length, max_size=length).filter(any)
    )  # fmt: skip
    for i in range(length):
        content[start + i] ^= mask[i % len(mask)]
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    assert refused_or_same(damaged, artifact)


def test_every_byte_of_the_directory_flipped(file, artifact, tmp_path):
    """The part of a zip that no checksum covers, byte by byte."""
    content = file.read_bytes()
    directory = content.rindex(b"PK\x05\x06")
    start = int.from_bytes(content[directory + 16 : directory + 20], "little")
    damaged = tmp_path / "damaged.npz"
    for i in [*range(start, start + 200), *range(directory, len(content))]:
        damaged.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :])
        assert refused_or_same(damaged, artifact)


def refused_or_same(damaged: Path, artifact: Artifact) -> bool:
    try:
        return same(Artifact.read(damaged), artifact)
    except ArtifactError as error:
        return "\n" not in str(error) and damaged.name in str(error)


def test_a_truncated_file_is_refused(file, tmp_path):
    content = file.read_bytes()
    for length in [0, 1, 10, 100, *range(1000, len(content), 5000), len(content) - 1]:
        (tmp_path / "short.npz").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"short\.npz"):
            Artifact.read(tmp_path / "short.npz")


def test_what_is_no_artifact_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    np.savez(tmp_path / "other.npz", manifest=text('{"format": "somebody else"}'))
    np.savez(tmp_path / "nonsense.npz", manifest=text("[" * 100_000))
    np.savez(tmp_path / "objects.npz", manifest=np.array([{}], object))
    np.save(tmp_path / "array.npz", np.zeros(3))
    for name, words in {
        "missing.npz": "No such file",
        "": "directory",
        "foreign.npz": "not an artifact, it has no manifest",
        "other.npz": "another program's",
        "nonsense.npz": "damaged",
        "objects.npz": "damaged",
        "array.npz.npy": "not a whole .npz",
    }.items():
        with pytest.raises(ArtifactError, match=words) as caught:
            Artifact.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "words"), [(0, "older version 0"), (2, "newer version 2.*update"), ("x", "older")])
def test_another_version_is_refused_before_anything_else(file, tmp_path, version, words):
    def change(manifest):
        manifest.clear()
        manifest.update(format="attention-maps artifact", version=version)  # nothing else need be as we know it

    with pytest.raises(ArtifactError, match=words):
        Artifact.read(altered(file, tmp_path / "b.npz", manifest_edit(change)))


def test_an_edited_manifest_is_refused(file, tmp_path):
    def change(manifest):
        manifest["photographs"][0]["class_index"] = 2

    with pytest.raises(ArtifactError, match="manifest does not match its sha256"):
        Artifact.read(altered(file, tmp_path / "b.npz", manifest_edit(change), seal=False))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["photographs"].clear(), "no photographs"),
        (lambda m: m["photographs"][0].update(class_index=5), "class 5 does not exist"),
        (lambda m: m["photographs"][0].update(class_index=-1), "not a number"),
        (lambda m: m["photographs"].pop(), "not described as"),
        (lambda m: m["settings"].update(methods=["lime"]), "unknown method"),
        (lambda m: m["settings"].update(n_samples=4), "not described as"),
        (lambda m: m["settings"].update(sample=41), "not described as"),
        (lambda m: m["settings"].update(sample=-1), "not a number"),
        (lambda m: m["weights"]["architecture"].update(size=16), "not described as"),
        (lambda m: m["weights"].update(fingerprint="0" * 64), "not the one of its fingerprint"),
        (lambda m: m["weights"].update(embedded=False), "does not belong"),
        (lambda m: m["stages"].pop(), "not those that its settings call for"),
        (lambda m: m["stages"][3].update(kept=3), "not described as"),
        (lambda m: m["stages"][3].update(precisions=["fp32", "fp64", "fp16"]), "is missing"),
        (lambda m: m["arrays"].pop("floor"), "KeyError.*floor"),
        (lambda m: m["arrays"]["fp32/logits"].update(sha256="0" * 64), "fp32/logits does not match its sha256"),
        (lambda m: m["arrays"]["fp32/logits"].update(dtype="<f8"), "fp32/logits is not described as <f4"),
        (lambda m: m.pop("weights"), "damaged"),
        (lambda m: m.update(flags={"a": [1]}), "damaged"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(file, tmp_path, change, words):
    with pytest.raises(ArtifactError, match=words):
        Artifact.read(altered(file, tmp_path / "b.npz", manifest_edit(change)))


@pytest.mark.parametrize(
    ("member", "data", "words"),
    [
        ("fp32/logits.npy", None, "fp32/logits is missing"),
        ("manifest_sha256.npy", None, "manifest_sha256 is missing"),
        ("more.npy", npy(np.zeros(3)), "'more' does not belong"),
        ("fp32/logits.npy", npy(np.zeros((2, 5))), "fp32/logits"),
        ("fp32/logits.npy", npy(np.zeros((5, 2), np.float32)), "fp32/logits is float32 .5, 2."),
        ("fp32/logits.npy", npy(np.zeros((2, 5), ">f4")), "fp32/logits"),
        ("fp32/logits.npy", npy(np.zeros((2, 5), np.float32)), "fp32/logits does not match its sha256"),
        ("fp32/logits.npy", npy(np.array([{}] * 5, object), allow_pickle=True), "fp32/logits"),
        ("fp32/logits.npy", b"", "fp32/logits"),
        ("fp32/logits.npy", b"x" * 168, "damaged"),
    ],
)
def test_members_that_are_wrong_are_refused(file, tmp_path, member, data, words):
    def edit(members):
        if data is None:
            del members[member]
        else:
            members[member] = data

    with pytest.raises(ArtifactError, match=words):
        Artifact.read(altered(file, tmp_path / "b.npz", edit, seal=False))


def test_a_pickle_in_a_member_never_runs(file, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for member in ("manifest.npy", "fp32/logits.npy"):
        array = np.empty(5, object)
        array[:] = [Evil()] * 5
        edit = lambda members, member=member, array=array: members.update({member: npy(array, allow_pickle=True)})  # noqa: E731
        with pytest.raises(ArtifactError):
            Artifact.read(altered(file, tmp_path / "b.npz", edit, seal=False))
    assert not (tmp_path / "ran").exists()


def test_a_member_that_occurs_twice_is_refused(file, tmp_path):
    target = altered(file, tmp_path / "b.npz", lambda members: None)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(target, "a") as archive:
        archive.writestr("fp32/logits.npy", npy(np.zeros((2, 5), np.float32)))
    with pytest.raises(ArtifactError, match="twice"):
        Artifact.read(target)


@pytest.mark.parametrize("member", ["pixels.npy", "manifest.npy", "more.npy", "fp64/logits.npy"])
def test_a_bomb_is_refused_before_it_inflates(file, tmp_path, member):
    bomb = npy(np.zeros(300 * 2**20, np.uint8))
    target = altered(file, tmp_path / "bomb.npz", lambda members: members.update({member: bomb}), seal=False)
    del bomb
    assert target.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError):
            Artifact.read(target)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_a_bomb_that_lies_about_its_size_is_refused(file, tmp_path):
    """The directory says 4 KB; the stream holds 300 MB."""
    bomb = npy(np.zeros(300 * 2**20, np.uint8))
    target = altered(file, tmp_path / "bomb.npz", lambda members: members.update({"manifest.npy": bomb}), seal=False)
    content = bytearray(target.read_bytes())
    size = len(bomb).to_bytes(4, "little")
    while (at := content.find(size)) >= 0:
        content[at : at + 4] = (4096).to_bytes(4, "little")
    target.write_bytes(content)
    del bomb
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError):
            Artifact.read(target)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


# Writing


def test_a_failed_write_leaves_what_was_there(artifact, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(b"before")
    original, calls = zipfile.ZipFile.writestr, []

    def full(self, *arguments):
        calls.append(1)
        if len(calls) == 20:
            raise OSError(28, "No space left on device")
        return original(self, *arguments)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_small_networks_travel_and_large_ones_do_not(artifact, file):
    network, original = Artifact.read(file).network, seeded(0, MICRO)
    assert isinstance(network, Network)
    assert network.fingerprint == original.fingerprint
    assert network.architecture == MICRO
    for name, tensor in original.tensors.items():
        np.testing.assert_array_equal(network.tensors[name], tensor)
    assert Weights.of(seeded(0, TINY)).tensors
    assert not Weights.of(seeded(0, dataclasses.replace(MICRO, dense=(600, 600)))).tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixels": np.zeros((2, 8, 8, 3))}, "pixels are float64"),
        ({"pixels": np.zeros((3, 8, 8, 3), np.uint8)}, "2 photographs, pixels have 3"),
        ({"photographs": job()["photographs"][:1]}, "pixels are"),
        (
            {"photographs": [dataclasses.replace(p, class_index=5) for p in job()["photographs"]]},
            "class 5 does not exist",
        ),
        ({"stages_by_precision": {"fp32": {"vanilla/row": np.zeros((2, 8, 8))}}}, "'vanilla/row' is unknown"),
        ({"stages_by_precision": {"fp32": {"pixels": np.zeros((2, 8, 8, 3))}}}, "'pixels' is unknown"),
        ({"stages_by_precision": {"fp8": {"score": np.zeros(2)}}}, "'fp8' is unknown"),
        ({"stages_by_precision": {"fp32": {"vanilla/raw": np.zeros((2, 3, 8))}}}, "vanilla/raw has shape"),
        ({"stages_by_precision": {"fp32": {"score": np.zeros(2, complex)}}}, "score holds complex"),
    ],
)
def test_what_does_not_belong_together_is_not_built(change, words):
    with pytest.raises(ArtifactError, match=words):
        build(**job(**change))


def test_every_photograph_must_be_recorded_once():
    arguments = job()
    recorder = Recorder(MICRO, arguments["settings"], arguments["pixels"])
    recorder.add("fp32", 1, "score", np.float32(1))
    with pytest.raises(ArtifactError, match="twice"):
        recorder.add("fp32", 1, "score", np.float32(1))
    with pytest.raises(ArtifactError, match="does not exist"):
        recorder.add("fp32", 2, "score", np.float32(1))
    kept = {k: arguments[k] for k in ("program", "photographs", "weights", "versions", "flags")}
    with pytest.raises(ArtifactError, match="photograph 0 is missing"):
        recorder.artifact(**kept)


def test_two_precisions_merge_into_what_one_run_would_have_written(artifact, tmp_path):
    halves = [build(**job(precisions=(p,), seconds={p: 1.0})) for p in ("fp32", "fp64")]
    merged = merge(*halves)
    assert merged.precisions == ("fp32", "fp64")
    assert merged.seconds == {"fp32": 1.0, "fp64": 1.0}
    assert same(dataclasses.replace(merged, seconds={}), artifact)
    assert same(dataclasses.replace(merge(*halves[::-1]), seconds={}), artifact)
    merged.write(tmp_path / "m.npz")
    assert same(Artifact.read(tmp_path / "m.npz"), merged)


def test_different_jobs_do_not_merge(artifact):
    other = job(precisions=("fp64",))
    for change, words in (
        ({}, "both artifacts hold fp64"),
        ({"weights": Weights.of(seeded(1, MICRO))}, "weights"),
        ({"photographs": other["photographs"][::-1]}, "photographs"),
        ({"pixels": other["pixels"] ^ 1}, "pixels"),
        ({"settings": dataclasses.replace(other["settings"], seed=1)}, "settings"),
    ):
        with pytest.raises(ArtifactError, match=words):
            merge(artifact, build(**{**other, **change}))


def test_what_was_not_given_is_said(artifact):
    one = build(**job(precisions=("fp32",), methods=("gradcam",)))
    with pytest.raises(ArtifactError, match="gradcam/raw was not given in fp64 by test"):
        one.values("gradcam/raw", "fp64")
    with pytest.raises(ArtifactError, match=r"no stage 'vanilla/raw'.*gradcam"):
        one.values("vanilla/raw")
    assert not one.has("gradcam/raw", "fp64")


def test_the_golden_artifact_reads():
    """Written once; this program must stay able to read it."""
    golden = Artifact.read(GOLDEN)
    assert GOLDEN.stat().st_size < 200_000
    assert golden.precisions == ("fp32", "fp64")
    assert golden.network is not None
    assert golden.settings.methods == stages.METHODS
    assert len(set(golden.classes)) == len(golden.classes) == 2
