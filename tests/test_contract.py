"""What both frameworks read: the layer table, canonical weights, classes, noise, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from parity.contract import classes, network, noise
from parity.contract.architecture import TINY, VGG16, Architecture
from parity.contract.files import whole
from parity.contract.network import Network, WeightsError, checked, seeded

ROOT = Path(__file__).parent.parent

# The layer table


def test_vgg16_is_torchvisions() -> None:
    import torch
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.vgg16(init_weights=False).state_dict()
    assert list(VGG16.tensor_shapes.items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]
    assert VGG16.parameters == sum(tensor.numel() for tensor in state.values()) == 138_357_544


def test_vgg16_is_kerass() -> None:
    # `keras.applications.VGG16().summary()`, name, output shape, parameters
    table = """
        input_layer 224,224,3 0
        block1_conv1 224,224,64 1792 | block1_conv2 224,224,64 36928 | block1_pool 112,112,64 0
        block2_conv1 112,112,128 73856 | block2_conv2 112,112,128 147584 | block2_pool 56,56,128 0
        block3_conv1 56,56,256 295168 | block3_conv2 56,56,256 590080 | block3_conv3 56,56,256 590080
        block3_pool 28,28,256 0 | block4_conv1 28,28,512 1180160 | block4_conv2 28,28,512 2359808
        block4_conv3 28,28,512 2359808 | block4_pool 14,14,512 0 | block5_conv1 14,14,512 2359808
        block5_conv2 14,14,512 2359808 | block5_conv3 14,14,512 2359808 | block5_pool 7,7,512 0
        flatten 25088 0 | fc1 4096 102764544 | fc2 4096 16781312 | predictions 1000 4097000
    """
    rows = [row.split() for row in table.replace("\n", "|").split("|") if row.strip()]
    shown = [[layer.keras, ",".join(map(str, layer.shape)), str(layer.parameters)] for layer in VGG16.layers]
    assert shown == rows


def test_the_target_is_the_last_convolution_after_its_relu() -> None:
    assert (VGG16.target.keras, VGG16.target.torch, VGG16.target.activation) == (
        "block5_conv3",
        "features.28",
        "features.29",
    )
    assert (TINY.target.activation, TINY.target.shape) == ("features.29", (4, 4, 16))
    assert (VGG16.flatten_chw, TINY.flatten_chw) == ((512, 7, 7), (16, 2, 2))


def test_every_layers_activation_is_the_module_that_computes_it() -> None:
    import torch
    from torch_impl.vgg16 import build

    model = build(seeded(0, TINY))
    for layer in TINY.layers:
        if layer.activation:
            shapes: list[tuple[int, ...]] = []
            module = model.get_submodule(layer.activation)
            with module.register_forward_hook(lambda _, __, out, shapes=shapes: shapes.append(tuple(out.shape[1:]))):
                model(torch.zeros(1, 3, 64, 64))
            *spatial, channels = layer.shape
            assert shapes == [(channels, *spatial)], layer.keras
            rectified = layer.kind == "conv" or layer.keras in ("fc1", "fc2")
            assert isinstance(module, torch.nn.ReLU) == rectified, layer.keras


WIDTHS = st.integers(1, 6)
ARCHITECTURES = st.builds(
    Architecture,
    blocks=st.lists(st.lists(WIDTHS, min_size=1, max_size=4).map(tuple), min_size=1, max_size=5).map(tuple),
    dense=st.tuples(WIDTHS, WIDTHS),
    classes=WIDTHS,
    size=st.just(0),
)


@given(architecture=ARCHITECTURES, side=st.integers(1, 4))
def test_an_architecture_is_found_from_its_shapes(architecture: Architecture, side: int) -> None:
    architecture = Architecture(
        architecture.blocks, architecture.dense, architecture.classes, side * 2 ** len(architecture.blocks)
    )
    assert Architecture.of(architecture.tensor_shapes) == architecture
    assert architecture.parameters == sum(int(np.prod(shape)) for shape in architecture.tensor_shapes.values())


def test_the_known_ones_are_found() -> None:
    assert Architecture.of(VGG16.tensor_shapes) == VGG16
    assert Architecture.of(TINY.tensor_shapes) == TINY


@pytest.mark.parametrize("name", list(TINY.tensor_shapes))
def test_each_missing_tensor_is_noticed(name: str) -> None:
    shapes = {key: shape for key, shape in TINY.tensor_shapes.items() if key != name}
    with pytest.raises(ValueError, match=r"is missing|has shape"):
        Architecture.of(shapes)
    if not name.startswith("features") or name.endswith("bias") or name in ("features.0.weight", "features.28.weight"):
        return
    with pytest.raises(ValueError, match=r"convolution is missing between|tensor features\.\d+\.weight"):
        Architecture.of(shapes)


def test_differences_are_named_in_the_order_of_the_computation() -> None:
    wrong = TINY.tensor_shapes | {"features.10.bias": (1,), "features.2.bias": (1,), "classifier.0.bias": (1,)}
    with pytest.raises(ValueError, match=r"features\.2\.bias has shape \(1,\), expected \(8,\)"):
        Architecture.of(wrong)


NAMES = st.one_of(
    st.sampled_from(
        [*TINY.tensor_shapes, "features.01.weight", "features.².weight", "features..weight", "features.1.weight"]
    ),
    st.integers(-3, 10**30).map(lambda i: f"features.{i}.weight"),
    st.text(max_size=8),
)
SHAPES = st.lists(st.integers(0, 10**12), max_size=5).map(tuple)


@given(changes=st.dictionaries(NAMES, SHAPES, max_size=6), base=st.booleans())
def test_hostile_shapes_are_a_value_error_or_an_architecture(changes: dict[str, Any], base: bool) -> None:
    shapes = (TINY.tensor_shapes if base else {}) | changes
    try:
        found = Architecture.of(shapes)
    except ValueError:
        return
    assert found.tensor_shapes == shapes


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
    assert checked(backwards, source="x", input="torchvision", remark="y").fingerprint == tiny.fingerprint
    strided = {name: np.asfortranarray(array).astype(">f8") for name, array in copied.items()}
    assert checked(strided, source="x", input="caffe").fingerprint == tiny.fingerprint


@pytest.mark.parametrize("name", list(TINY.tensor_shapes))
def test_one_changed_bit_changes_the_fingerprint(tiny: Network, copied: dict[str, np.ndarray], name: str) -> None:
    copied[name].reshape(-1).view(np.uint32)[-1] ^= 1
    assert checked(copied, source="x", input="caffe").fingerprint != tiny.fingerprint


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["features.0.weight", "classifier.6.bias"])
def test_one_bad_number_is_found_and_named(copied: dict[str, np.ndarray], name: str, value: float) -> None:
    copied[name].reshape(-1)[-1] = value
    with pytest.raises(WeightsError, match=rf"x: tensor {name} holds NaN or infinity"):
        checked(copied, source="x", input="caffe")


def test_opposite_infinities_and_large_finite_numbers(copied: dict[str, np.ndarray]) -> None:
    copied["features.0.bias"][:] = 3e38  # their sum overflows, they do not
    checked(copied, source="x", input="caffe")
    copied["features.0.bias"][:2] = np.inf, -np.inf
    with pytest.raises(WeightsError, match="NaN or infinity"):
        checked(copied, source="x", input="caffe")


@pytest.mark.filterwarnings("error")
def test_float64_beyond_float32_is_infinity_and_refused_quietly(copied: dict[str, np.ndarray]) -> None:
    wide = copied | {"features.0.bias": np.full(8, 1e300)}
    with pytest.raises(WeightsError, match=r"features\.0\.bias holds NaN or infinity"):
        checked(wide, source="x", input="caffe")


@pytest.mark.parametrize("dtype", ["i4", "c8", "?", "S4", "O"])
def test_other_types_are_refused(copied: dict[str, np.ndarray], dtype: str) -> None:
    copied["features.0.bias"] = np.zeros(8, dtype)
    with pytest.raises(WeightsError, match="expected floating point"):
        checked(copied, source="x", input="caffe")


def test_an_unknown_preprocessing_is_refused(copied: dict[str, np.ndarray]) -> None:
    with pytest.raises(WeightsError, match="caffe, torchvision"):
        checked(copied, source="x", input="imagenet")


def test_seeded_networks_are_the_same_everywhere() -> None:
    first = np.random.RandomState(3).standard_normal(8 * 27) * np.sqrt(2 / 27)
    network = seeded(3, TINY)
    assert np.array_equal(network.tensors["features.0.weight"].reshape(-1), first.astype(np.float32))
    assert network.fingerprint == seeded(3, TINY).fingerprint != seeded(4, TINY).fingerprint
    # Recorded with NumPy 2.4 on x86-64; RandomState's stream is frozen (NEP 19).
    assert seeded(0, TINY).fingerprint.startswith("438fafd6e2c55b97")
    assert all(np.all(array != 0) for name, array in network.tensors.items() if name.endswith("bias"))


def test_large_draws_do_not_depend_on_the_pieces() -> None:
    wide = Architecture(((2, 2),), (1100, 1000), 3, 4)  # 1.1 million weights: two pieces of 2**20
    network = seeded(0, wide)
    drawn = np.random.RandomState(0).standard_normal(wide.parameters)
    place = 0
    for name, array in network.tensors.items():
        scale = np.sqrt(2 / np.prod(array.shape[1:])) if array.ndim > 1 else 1.0
        expected = (drawn[place : place + array.size] * scale).astype(np.float32)
        assert np.array_equal(array.reshape(-1), expected), name
        place += array.size


@pytest.fixture(scope="module")
def offline() -> Network:
    return network.offline()


def test_the_embedded_file_is_the_one_that_was_given() -> None:
    content = (ROOT / "parity/contract/data/vgg16_offline.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "e9e569addbbabc512219bdaa0fbf35f410d33161eb60ccc524775920ca987aac"


def test_the_offline_network_expands_as_its_table_says(offline: Network) -> None:
    packed = load_file(ROOT / "parity/contract/data/vgg16_offline.safetensors")
    tensors = offline.tensors
    assert sum(array.size for array in tensors.values()) == 138_357_544
    assert (offline.input, offline.source) == ("caffe", "offline")
    assert "not the ImageNet VGG16" in offline.remark
    for i in (0, 14, 28):
        for channel in (0, 1, -1):
            kernel = packed[f"features.{i}.weight"][channel].astype(np.float32)
            kernel *= packed[f"features.{i}.weight.scale"][channel]
            assert np.array_equal(tensors[f"features.{i}.weight"][channel], kernel)
        assert np.array_equal(tensors[f"features.{i}.bias"], packed[f"features.{i}.bias"])
    # The classifier by the function it is: the probe on the means of the last pool, which are never negative.
    pooled = np.random.RandomState(0).uniform(0, 9, (512, 7, 7)).astype(np.float32)
    x = pooled.reshape(-1)
    for name in ("classifier.0", "classifier.3", "classifier.6"):
        if name != "classifier.0":
            assert x.min() >= 0  # so that the ReLU between does nothing
        x = tensors[f"{name}.weight"] @ x + tensors[f"{name}.bias"]
    expected = packed["probe.weight"].astype(np.float64) @ pooled.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(x, expected + packed["probe.bias"], rtol=0, atol=1e-5 * np.abs(expected).max())


def test_offline_random_keeps_the_convolutions_and_draws_the_rest(offline: Network) -> None:
    drawn = network.offline_random(5)
    for name, array in drawn.tensors.items():
        assert array.shape == VGG16.tensor_shapes[name]
        if name.startswith("features"):
            assert np.array_equal(array, offline.tensors[name])
        elif name.endswith("bias"):
            assert np.all(array != 0)
        else:  # He-normal: the standard deviation of n numbers is within 5 / sqrt(2n) of what it should be
            expected = np.sqrt(2 / array.shape[1])
            assert abs(array.std(dtype=np.float64) / expected - 1) < 5 / np.sqrt(2 * array.size)
    head = np.random.RandomState(5).standard_normal(3) * np.sqrt(2 / 25088)
    assert np.array_equal(drawn.tensors["classifier.0.weight"][0, :3], head.astype(np.float32))


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
    found = network.from_source(str(tmp_path / "net.safetensors"))
    assert found is not None
    assert found.fingerprint == tiny.fingerprint


def test_canonical_files_keep_everything(tiny: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    odd = Network(tiny.tensors, TINY, "somewhere", "torchvision", "mind the gap")
    network.write(odd, path)
    read = network.read(path)
    assert read is not None
    assert (read.source, read.input, read.remark) == ("somewhere", "torchvision", "mind the gap")
    assert (read.fingerprint, read.architecture) == (tiny.fingerprint, TINY)
    assert list(read.tensors) == list(TINY.tensor_shapes)


def test_other_safetensors_are_nothing_of_ours(copied: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file(copied, tmp_path / "net.safetensors")
    assert network.read(tmp_path / "net.safetensors") is None


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
    save_file(copied | change, path, {"format": network.FORMAT, **metadata})
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
    assert (classes.label(281), classes.label(967), classes.label(11)) == ("tabby", "espresso", "goldfinch")
    assert classes.label(3, n_classes=10) == "class 3"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (282, 282),
        ("282", 282),
        (" 0 ", 0),
        ("999", 999),
        (np.int64(7), 7),
        ("espresso", 967),
        ("ESPRESSO", 967),
        ("goldfinch", 11),
        ("egyptian_cat", 285),
        ("Egyptian-Cat", 285),
        ("crane", 517),  # not "crane bird"
    ],
)
def test_a_class_by_index_or_label(value: Any, expected: int) -> None:
    assert classes.index(value) == expected


@given(index=st.integers(0, 999))
def test_every_label_names_its_class(index: int) -> None:
    label = classes.label(index)
    assert classes.index(label) == index
    if label.lower() != "cardigan":
        assert classes.index(label.upper().replace(" ", "_")) == index


def test_the_dog_and_the_garment() -> None:
    assert (classes.index("Cardigan"), classes.index("cardigan")) == (264, 474)
    with pytest.raises(classes.ClassError, match=r"ambiguous: Cardigan \(264\), cardigan \(474\)"):
        classes.index("CARDIGAN")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1, "class -1 does not exist: give 0 to 999"),
        (1000, "class 1000 does not exist"),
        ("9" * 100, "does not exist"),
        ("9" * 5000, "not an ImageNet label"),
        ("asdf", "not an ImageNet label"),
        ("", "not an ImageNet label"),
        ("-", "not an ImageNet label"),
        ("goldfinsh", "goldfinch (11)"),
        ("terrier", "nearest: "),
        (1.5, "not an ImageNet label"),
    ],
)
def test_a_class_that_does_not_exist_names_the_nearest(value: Any, expected: str) -> None:
    with pytest.raises(classes.ClassError) as caught:
        classes.index(value)
    assert expected in str(caught.value)


def test_an_ambiguous_label_lists_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple("crane" if i in (134, 517) else f"thing {i}" for i in range(1000))
    monkeypatch.setattr(classes, "labels", lambda: names)
    with pytest.raises(classes.ClassError, match=r"ambiguous: crane \(134\), crane \(517\)"):
        classes.index("Crane")


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
def test_noise_is_numpys_legacy_stream_bit_for_bit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(noise, "CACHE_BYTES", limit)
    sigma = 51.3
    np.random.seed(7)  # what the reference does
    reference = np.random.normal(0.0, sigma, (5, 1, 6, 4, 3))
    ours = np.stack([unit * sigma for unit in noise.unit_noise(7, 5, (6, 4, 3))])[:, None]
    assert np.array_equal(ours, reference)


@pytest.mark.parametrize("limit", [0, 2**30], ids=["streamed", "kept"])
def test_noise_starts_again_and_cannot_be_spoilt(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(noise, "CACHE_BYTES", limit)
    state = np.random.get_state()
    first, again = (list(noise.unit_noise(1, 3, (2, 2, 3))) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[:2], list(noise.unit_noise(1, 2, (2, 2, 3))))  # fewer samples: the beginning
    assert not np.array_equal(first, list(noise.unit_noise(2, 3, (2, 2, 3))))
    with pytest.raises(ValueError, match="read-only"):
        first[0][:] = 0
    assert np.array_equal(state[1], np.random.get_state()[1])  # the user's own generator
    assert list(noise.unit_noise(1, 0, (2, 2, 3))) == []


# Files


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "name.weights.h5"
    with whole(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".weights.h5")
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
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
def test_permissions_are_an_ordinary_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with whole(tmp_path / "name") as temporary:
            temporary.write_text("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", ["a" * 255, "a." + "b" * 253, "a." + "b" * 245 + ".png", "-x", "a\nb", " ", ".hidden"])
def test_names_at_the_limit(tmp_path: Path, name: str) -> None:
    with whole(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert (tmp_path / name).read_text() == "x"


def test_a_folder_that_is_missing_is_the_file_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole(tmp_path / "no" / "name"):
        pass


def test_the_contract_loads_no_framework() -> None:
    program = (
        "import sys, parity.contract.architecture, parity.contract.classes, parity.contract.files, "
        "parity.contract.network, parity.contract.noise\n"
        "print([name for name in ('torch', 'tensorflow', 'keras', 'h5py', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip() == "[]"
