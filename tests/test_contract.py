"""What both frameworks read: canonical weights, classes, noise, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, TINY
from safetensors.numpy import load_file, save_file

from parity.contract import classes, network, noise
from parity.contract.files import whole
from parity.contract.network import Network, WeightsError, restored, seeded
from parity.contract.vgg import vgg

# Canonical weights


@pytest.fixture
def copied(tiny: Network) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in tiny.tensors.items()}


def test_the_fingerprint_is_over_names_shapes_and_values(tiny: Network, copied: dict[str, np.ndarray]) -> None:
    digest = hashlib.sha256()
    for name, array in copied.items():  # re-derived, the slow way
        digest.update(f"{name} {array.shape}\n".encode() + array.astype("<f4").tobytes())
    assert tiny.fingerprint == digest.hexdigest()
    backwards = dict(reversed(copied.items()))
    assert restored(backwards, {"input": "torchvision", "remark": "y"}, "x", size=64).fingerprint == tiny.fingerprint
    strided = {name: np.asfortranarray(array).astype(">f8") for name, array in copied.items()}
    assert restored(strided, {}, "x", size=64).fingerprint == tiny.fingerprint
    copied["classifier.6.bias"].view(np.uint32)[-1] ^= 1
    assert restored(copied, {}, "x", size=64).fingerprint != tiny.fingerprint


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("features.0.weight", np.nan, "tensor features.0.weight holds NaN or infinity"),
        ("classifier.6.bias", -np.inf, "tensor classifier.6.bias holds NaN or infinity"),
        ("features.0.bias", [np.inf, -np.inf], "holds NaN or infinity"),  # whose sum is no infinity
        ("features.0.bias", np.full(8, 1e300), "holds NaN or infinity"),  # beyond float32
        ("features.0.bias", np.zeros(8, "i4"), "expected floating point"),
        ("features.0.bias", np.zeros(8, "c8"), "expected floating point"),
        ("features.0.bias", np.zeros(8, "O"), "expected floating point"),
        ("features.0.bias", np.full(8, 3e38, "f4"), ""),  # their sum overflows, they do not
    ],
)
def test_one_bad_number_is_seen_and_named(copied: dict[str, np.ndarray], name: str, value: Any, words: str) -> None:
    if isinstance(value, np.ndarray):
        copied[name] = value
    else:
        flat = copied[name].reshape(-1)
        flat[: np.size(value)] = value
    if not words:
        assert restored(copied, {}, "x", size=64).tensors[name] is value
        return
    with pytest.raises(WeightsError, match=rf"^'x': .*{words}"):
        restored(copied, {}, "x", size=64)


def test_an_unknown_preprocessing_is_refused(copied: dict[str, np.ndarray]) -> None:
    with pytest.raises(WeightsError, match="caffe, torchvision"):
        restored(copied, {}, "x", input="imagenet", size=64)


def test_seeded_networks_are_the_same_everywhere() -> None:
    first = np.random.RandomState(3).standard_normal(8 * 27) * np.sqrt(2 / 27)
    drawn = seeded(3, TINY)
    assert np.array_equal(drawn.tensors["features.0.weight"].reshape(-1), first.astype(np.float32))
    assert drawn.fingerprint == seeded(3, TINY).fingerprint != seeded(4, TINY).fingerprint
    # Recorded with NumPy 2.4 on x86-64; RandomState's stream is frozen (NEP 19).
    assert seeded(0, TINY).fingerprint.startswith("438fafd6e2c55b97")
    assert all(np.all(array != 0) for name, array in drawn.tensors.items() if name.endswith("bias"))


def test_large_draws_do_not_depend_on_the_pieces() -> None:
    wide = vgg(((2, 2),), (1100, 1000), 3, 4)  # 1.1 million weights: two pieces of 2**20
    numbers, place = np.random.RandomState(0).standard_normal(wide.parameters), 0
    for name, array in seeded(0, wide).tensors.items():
        scale = np.sqrt(2 / np.prod(array.shape[1:])) if array.ndim > 1 else 1.0
        expected = (numbers[place : place + array.size] * scale).astype(np.float32)
        assert np.array_equal(array.reshape(-1), expected), name
        place += array.size


EMBEDDED = ROOT / "parity/contract/data/vgg16_offline.safetensors"


def test_the_embedded_networks_are_what_their_words_say() -> None:
    digest = hashlib.sha256(EMBEDDED.read_bytes()).hexdigest()
    assert digest == "e9e569addbbabc512219bdaa0fbf35f410d33161eb60ccc524775920ca987aac"
    packed, offline = load_file(EMBEDDED), network.offline()
    tensors = offline.tensors
    assert sum(array.size for array in tensors.values()) == 138_357_544
    assert (offline.input, offline.source) == ("caffe", "offline")
    assert "not the ImageNet VGG16" in offline.remark
    for i, channel in ((0, 0), (14, 1), (28, -1)):
        kernel = packed[f"features.{i}.weight"][channel].astype(np.float32)
        kernel *= packed[f"features.{i}.weight.scale"][channel]
        assert np.array_equal(tensors[f"features.{i}.weight"][channel], kernel)
        assert np.array_equal(tensors[f"features.{i}.bias"], packed[f"features.{i}.bias"])
    # The classifier by the function it is: the probe on the means of the last pool, which are never negative.
    pooled = np.random.RandomState(0).uniform(0, 9, (512, 7, 7)).astype(np.float32)
    x = pooled.reshape(-1)
    for name in ("classifier.0", "classifier.3", "classifier.6"):
        assert x.min() >= 0  # so that the ReLU before does nothing
        x = tensors[f"{name}.weight"] @ x + tensors[f"{name}.bias"]
    expected = packed["probe.weight"].astype(np.float64) @ pooled.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(x, expected + packed["probe.bias"], rtol=0, atol=1e-5 * np.abs(expected).max())
    drawn = network.offline_random(5).tensors
    assert all(np.array_equal(drawn[name], tensors[name]) for name in drawn if name.startswith("features"))
    head = np.random.RandomState(5).standard_normal(3) * np.sqrt(2 / 25088)
    assert np.array_equal(drawn["classifier.0.weight"][0, :3], head.astype(np.float32))
    assert all(np.all(drawn[f"classifier.{i}.bias"] != 0) for i in (0, 3, 6))


@pytest.mark.parametrize("damage", ["absent", "damaged"])
def test_damaged_embedded_weights_are_the_installation_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    (tmp_path / "data").mkdir()
    if damage == "damaged":
        (tmp_path / "data/vgg16_offline.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    monkeypatch.setattr(network.resources, "files", lambda _: tmp_path)
    with pytest.raises(WeightsError, match=r"the embedded weights are damaged \(.*\): install the package again"):
        network.offline()


def test_sources_by_name(tmp_path: Path, tiny: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "seeded", lambda seed: f"seeded {seed}")
    monkeypatch.setattr(network, "offline_random", lambda seed: f"random {seed}")
    assert network.from_source("seeded:4294967295") == "seeded 4294967295"
    assert network.from_source("offline-random:0") == "random 0"
    for other in ("imagenet", "auto", "keras", "nowhere.safetensors", "x.pt", "seeded", ""):
        assert network.from_source(other) is None
    for wrong in ("seeded:", "seeded:4294967296", "seeded:-1", "seeded:1.5", "offline-random:x\r"):
        with pytest.raises(WeightsError, match="0 to 4294967295") as caught:
            network.from_source(wrong)
        assert str(caught.value).isprintable()
    network.write(tiny, tmp_path / "net.safetensors")
    read = network.from_source(str(tmp_path / "net.safetensors"))
    assert read is not None
    assert read.fingerprint == tiny.fingerprint


def test_canonical_files_keep_everything_and_others_are_nothing_of_ours(tiny: Network, tmp_path: Path) -> None:
    network.write(Network(tiny.tensors, TINY, "somewhere", "torchvision", "mind the gap"), tmp_path / "net")
    read = network.read(tmp_path / "net")
    assert read is not None
    assert (read.source, read.input, read.remark) == ("somewhere", "torchvision", "mind the gap")
    assert (read.fingerprint, read.table) == (tiny.fingerprint, TINY)
    assert list(read.tensors) == list(TINY.tensors)
    save_file(dict(tiny.tensors), tmp_path / "other")
    assert network.read(tmp_path / "other") is None


@pytest.mark.parametrize(
    ("metadata", "change", "expected"),
    [
        ({"input": "vgg"}, {}, "preprocessing 'vgg' is unknown"),
        ({"source": "a\nb\x1b[31m"}, {"features.0.bias": np.full(8, np.nan, np.float32)}, "holds NaN"),
        ({}, {"features.0.bias": np.zeros(9, np.float32)}, "not the weights of a VGG16"),
    ],
)
def test_a_canonical_file_that_lies_is_refused_with_its_path(
    copied: dict[str, np.ndarray], tmp_path: Path, metadata: dict[str, str], change: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "line\nbreak.safetensors"
    save_file(copied | change, path, {"format": network.FORMAT, "size": "64", **metadata})
    with pytest.raises(WeightsError) as caught:
        network.read(path)
    message = str(caught.value)
    assert expected in message
    assert message.isprintable()
    assert repr(str(path)) in message


def test_types_that_numpy_lacks_are_refused(tiny: Network, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save

    state = {name: torch.tensor(array).bfloat16() for name, array in tiny.tensors.items()}
    save(state, tmp_path / "net.safetensors", {"format": network.FORMAT})
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        network.read(tmp_path / "net.safetensors")


# Classes


def test_there_are_a_thousand_labels() -> None:
    from torchvision.models import VGG16_Weights

    assert list(classes.labels()) == VGG16_Weights.IMAGENET1K_V1.meta["categories"]
    assert classes.label(3, n_classes=10) == "class 3"
    for index, label in enumerate(classes.labels()):
        assert classes.index(label) == index
        if label.lower() != "cardigan":
            assert classes.index(label.upper().replace(" ", "_")) == index


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((282, 282), ("282", 282), (" 0 ", 0), ("999", 999), (np.int64(7), 7)),
        *(("Egyptian-Cat", 285), ("crane", 517), ("Cardigan", 264), ("cardigan", 474)),
        ("CARDIGAN", "ambiguous: Cardigan (264), cardigan (474)"),
        *((-1, "class -1 does not exist: give 0 to 999"), (1000, "class 1000 does not exist")),
        *(("9" * 100, "does not exist"), ("9" * 5000, "not an ImageNet label"), ("", "not an ImageNet label")),
        *(("goldfinsh", "goldfinch (11)"), ("terrier", "nearest: "), (1.5, "not an ImageNet label")),
    ],
)
def test_a_class_by_index_or_label_or_the_nearest(value: Any, expected: int | str) -> None:
    if isinstance(expected, int):
        assert classes.index(value) == expected
        return
    with pytest.raises(classes.ClassError) as caught:
        classes.index(value)
    assert expected in str(caught.value)


def test_a_small_network_has_numbers_only() -> None:
    assert classes.index("9", n_classes=10) == 9
    for value in ("10", "espresso"):
        with pytest.raises(classes.ClassError, match="give 0 to 9"):
            classes.index(value, n_classes=10)


def test_one_class_for_all_or_one_for_each() -> None:
    assert classes.per_photograph(["espresso"], 3) == [967, 967, 967]
    assert classes.per_photograph([1, "2"], 2) == [1, 2]
    for values, photographs in (([1, 2], 3), ([1, 2, 3], 2), ([], 1), ([1, 2], 1)):
        with pytest.raises(classes.ClassError, match="one for all, or one for each"):
            classes.per_photograph(values, photographs)


# Noise


@pytest.mark.parametrize("limit", [0, 2**30], ids=["streamed", "kept"])
def test_noise_is_numpys_legacy_stream_and_cannot_be_spoilt(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(noise, "CACHE_BYTES", limit)
    np.random.seed(7)  # what the reference does
    reference = np.random.normal(0.0, 51.3, (5, 1, 6, 4, 3))
    assert np.array_equal(np.stack([unit * 51.3 for unit in noise.unit_noise(7, 5, (6, 4, 3))])[:, None], reference)
    state = np.random.get_state()
    first, again = (list(noise.unit_noise(1, 3, (2, 2, 3))) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[:2], list(noise.unit_noise(1, 2, (2, 2, 3))))  # fewer samples: the beginning
    assert not np.array_equal(first, list(noise.unit_noise(2, 3, (2, 2, 3))))
    with pytest.raises(ValueError, match="read-only"):
        first[0][:] = 0
    assert np.array_equal(state[1], np.random.get_state()[1])  # the user's own generator


# Files


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "name.weights.h5"
    with whole(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".weights.h5")
        temporary.write_text("new")
        assert not path.exists()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [False, True])
def test_or_not_at_all(tmp_path: Path, error: type[BaseException], existed: bool) -> None:
    path = tmp_path / "name"
    if existed:
        path.write_text("old")
    with pytest.raises(error), whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * existed


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("name", ["a" * 255, "a." + "b" * 245 + ".png", "-x", "a\nb", " ", ".hidden"])
def test_an_ordinary_file_under_any_name(tmp_path: Path, name: str, mask: int) -> None:
    before = os.umask(mask)
    try:
        with whole(tmp_path / name) as temporary:
            save_file({"x": np.zeros(1)}, temporary)  # which writes a file of mode 0600
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert load_file(tmp_path / name).keys() == {"x"}
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_a_folder_that_is_missing_is_the_file_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole(tmp_path / "no" / "name"):
        pass
