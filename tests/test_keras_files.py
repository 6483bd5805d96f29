"""Keras's weight files: permutations by the function they preserve, Keras's own files, and HDF5 that is not what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY, run_program
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from weight_files import refusal, same, state_dict

from parity.contract.keras_files import from_keras, to_keras
from parity.contract.layers import Layer
from parity.contract.network import Network, seeded
from parity.contract.vgg import vgg
from torch_impl import images
from torch_impl.preprocess import preprocess
from torch_impl.weights import load_network, save_network

sizes = st.integers(1, 5)


# Each permutation keeps a function, written here from Keras's definition and independently of torch.


@given(kh=sizes, kw=sizes, channels=sizes, units=sizes)
def test_from_keras_keeps_the_convolution(kh: int, kw: int, channels: int, units: int) -> None:
    layer = Layer("c", "conv", (1, 1, units), (), {"w": (units, channels, kh, kw)})
    random = np.random.RandomState(0)
    picture, kernel = random.randn(2, 6, 7, channels), random.randn(kh, kw, channels, units)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (kh, kw), axis=(1, 2))  # type: ignore[call-overload]
    expected = np.einsum("nhwcij,ijco->nhwo", windows, kernel)  # Keras: cross-correlation, channels last
    ours = F.conv2d(torch.tensor(picture).permute(0, 3, 1, 2), torch.tensor(from_keras(kernel, layer)))
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-12)
    assert np.array_equal(to_keras(from_keras(kernel, layer), layer), kernel)


@given(h=sizes, w=sizes, channels=sizes, units=sizes, flattened=st.booleans())
def test_from_keras_keeps_the_product(h: int, w: int, channels: int, units: int, flattened: bool) -> None:
    config = {"flattened": [h, w, channels]} if flattened else {}
    layer = Layer("d", "dense", (units,), (), {"w": (units, h * w * channels)}, config)
    random = np.random.RandomState(0)
    pooled, kernel = random.randn(2, h, w, channels), random.randn(h * w * channels, units)
    expected = pooled.reshape(2, -1) @ kernel  # Keras flattens (h, w, c), torch (c, h, w)
    flat = torch.tensor(pooled).permute(0, 3, 1, 2).flatten(1) if flattened else torch.tensor(pooled).flatten(1)
    ours = F.linear(flat, torch.tensor(from_keras(kernel, layer)))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)
    assert np.array_equal(to_keras(from_keras(kernel, layer), layer), kernel)


def logits(network: Network, x: np.ndarray) -> np.ndarray:
    """The network once more, from its table; `x` channels last."""
    y = torch.tensor(x).permute(0, 3, 1, 2)
    tensors = state_dict(network)
    for layer in network.table.layers:
        weights = [tensors[name] for name in layer.tensors]
        if layer.kind == "conv":
            y = F.relu(F.conv2d(y, *weights, padding=1))
        elif layer.kind == "pool":
            y = F.max_pool2d(y, 2)
        elif layer.kind == "dense":
            y = F.linear(y.flatten(1), *weights)
            y = F.relu(y) if layer.config["activation"] == "relu" else y
    return y.numpy()


# Against Keras itself, in a process of its own.

KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
folder = sys.argv[1]
x = np.load(folder + "/x.npy")
L = keras.layers
def rows(height=64, width=64, final="predictions", activation="softmax", pool=L.MaxPooling2D, bridge=L.Flatten, first=None):
    yield L.Input((height, width, 3))
    if first: yield first
    for b, (n, channels) in enumerate([(2, 8), (2, 8), (3, 16), (3, 16), (3, 16)], 1):
        for c in range(1, n + 1):
            yield L.Conv2D(channels, 3, padding="same", activation="relu", name=f"block{b}_conv{c}")
        yield pool(2, name=f"block{b}_pool")
    yield bridge()
    yield L.Dense(32, activation="relu", name="fc1")
    yield L.Dropout(0.5)
    yield L.Dense(24, activation="relu", name="fc2")
    yield L.Dense(10, name=final, activation=activation)
def functional(**options):
    first, *rest = rows(**options)
    y = first
    for layer in rest:
        y = layer(y)
    return keras.Model(first, y)
def out(name, model, x=x):
    model.layers[-1].activation = keras.activations.linear
    np.save(f"{folder}/{name}.npy", model.predict(x, verbose=0))
def save(name, model):
    for suffix in (".keras", ".h5", ".weights.h5"):
        (model.save_weights if suffix == ".weights.h5" else model.save)(f"{folder}/{name}{suffix}")
for name, model in (("functional", functional()), ("sequential", keras.Sequential(list(rows())))):
    for suffix in (".h5", ".weights.h5"):
        model.load_weights(folder + "/ours" + suffix)
        out(f"ours-{name}{suffix}", model)
model = functional()
for layer in model.layers:  # biases of zero would hide a bias that went astray
    layer.set_weights([w + np.random.RandomState(len(w)).normal(0, 0.1, w.shape) for w in layer.get_weights()])
model.compile("adam", "mse", metrics=["mae"])
model.fit(x, np.zeros((len(x), 10)), verbose=0)
save("flat", model)
renamed = functional(final="my_head")
renamed.set_weights(model.get_weights())
save("renamed", renamed)
base = keras.Model(model.inputs, model.get_layer("block5_pool").output)
for layer in base.layers[:-4]: layer.trainable = False  # all but the last block, as people fine-tune
head = [L.Dense(d.units, activation=d.activation) for d in model.layers if isinstance(d, L.Dense)]
nested = keras.Sequential([L.Input((64, 64, 3)), L.RandomFlip(), base, L.Flatten(), head[0], L.Dropout(0.5), *head[1:]])
nested.layers[-1].set_weights(model.layers[-1].get_weights())
for ours, theirs in zip(head, [d for d in model.layers if isinstance(d, L.Dense)]): ours.set_weights(theirs.get_weights())
save("nested", nested)
out("theirs", model)
save("without top", base)
other = functional(height=70, width=70)
other.set_weights(model.get_weights())
save("70 pixels", other)
out("70 pixels", other, np.load(folder + "/x70.npy"))
save("64 by 96", functional(width=96))
save("global pooling", functional(bridge=L.GlobalAveragePooling2D))
save("average pools", functional(pool=L.AveragePooling2D))
save("rescaling", functional(first=L.Rescaling(1 / 255)))
save("sigmoid", functional(activation="sigmoid"))
pixels = np.stack([np.asarray(keras.utils.load_img(file, target_size=(224, 224))) for file in sys.argv[2:]])
np.save(folder + "/pixels.npy", pixels)
for floatx in ("float32", "float64"):
    keras.backend.set_floatx(floatx)
    pictures = np.stack([keras.utils.img_to_array(each) for each in pixels])
    np.save(f"{folder}/{floatx}.npy", keras.applications.vgg16.preprocess_input(pictures))
"""


@pytest.fixture(scope="session")
def with_keras(tmp_path_factory: pytest.TempPathFactory, tiny: Network) -> Path:
    """A folder in which Keras has read our files and written its own."""
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec("tensorflow") is None:
        pytest.skip("Keras is not installed")
    folder = tmp_path_factory.mktemp("keras")
    for name, size in (("x", 64), ("x70", 70)):
        x = np.random.RandomState(0).uniform(-120, 150, (4, size, size, 3)).astype(np.float32)
        np.save(folder / f"{name}.npy", x)
    for suffix in (".h5", ".weights.h5"):
        save_network(tiny, folder / f"ours{suffix}")
    done = run_program("-c", KERAS, str(folder), *map(str, images.defaults()), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.keras
def test_plain_photographs_and_their_inputs_are_keras_bit_by_bit(with_keras: Path) -> None:
    photographs, _ = images.load_all(images.defaults())
    pixels = np.load(with_keras / "pixels.npy")
    np.testing.assert_array_equal(np.stack([each.pixels for each in photographs]), pixels)
    assert [each.notes for each in photographs] == [()] * 4  # two of them carry an sRGB profile, one is grey
    for precision in ("float32", "float64"):
        inputs = preprocess(pixels, dtype=getattr(torch, precision)).numpy()
        theirs = np.load(with_keras / f"{precision}.npy")
        np.testing.assert_array_equal(inputs, theirs.transpose(0, 3, 1, 2))
        assert inputs.dtype == theirs.dtype == precision


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(theirs).max() > 1e-3
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.keras
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_keras_computes_the_same_from_our_files(with_keras: Path, tiny: Network, kind: str, suffix: str) -> None:
    agree(logits(tiny, np.load(with_keras / "x.npy")), np.load(with_keras / f"ours-{kind}{suffix}.npy"))


@pytest.mark.keras
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize("name", ["flat", "renamed", "nested"])
def test_we_compute_the_same_from_kerass_files(with_keras: Path, name: str, suffix: str) -> None:
    """A whole model says its size, weights alone do not."""
    network = load_network(str(with_keras / f"{name}{suffix}"), size=64 if suffix == ".weights.h5" else None)
    assert network.input == "caffe"
    agree(logits(network, np.load(with_keras / "x.npy")), np.load(with_keras / "theirs.npy"))
    assert network.fingerprint == load_network(str(with_keras / "flat.keras")).fingerprint


@pytest.mark.keras
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_configuration_says_the_size(with_keras: Path, suffix: str) -> None:
    network = load_network(str(with_keras / f"70 pixels{suffix}"))
    assert network.table.size == (70, 70)  # and not 64, though the tensors' shapes are those
    agree(logits(network, np.load(with_keras / "x70.npy")), np.load(with_keras / "70 pixels.npy"))


@pytest.mark.keras
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize(
    ("name", "by_configuration", "by_weights"),
    [
        ("without top", "ends where a VGG16 has Flatten", "dense layers fc1, fc2 and predictions are missing"),
        ("70 pixels", "", "trained on pictures of 64 to 95 pixels, say of how many"),
        ("64 by 96", "pictures of 64×96, and only square ones", "no square picture ends in 96"),
        ("global pooling", "is GlobalAveragePooling2D, where a VGG16 has Flatten", "global_average_pooling2d"),
        ("average pools", "'block1_pool' is AveragePooling2D", "average_pooling2d"),
        ("rescaling", "is Rescaling, where", "a layer rescaling"),
        ("sigmoid", "has activation 'sigmoid', not 'softmax'", "say of how many"),
    ],
)
def test_another_network_of_the_same_tensors_is_refused(
    with_keras: Path, suffix: str, name: str, by_configuration: str, by_weights: str
) -> None:
    expected = by_weights if suffix == ".weights.h5" else by_configuration
    if expected:
        assert expected in refusal(with_keras / f"{name}{suffix}")


def test_counters_are_compared_as_numbers(tmp_path: Path) -> None:
    table = vgg(((4, 4), (4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4)), (6, 6), 3)  # shapes tell nothing
    deep = seeded(0, table)
    save_network(deep, tmp_path / "net.weights.h5")
    with h5py.File(tmp_path / "net.weights.h5", "a") as file:  # as Keras before 3.6 wrote it: without names
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
        del file.attrs["attention_maps"]
    assert same(load_network(str(tmp_path / "net.weights.h5")), deep)
    with h5py.File(tmp_path / "net.weights.h5", "a") as file:  # a head in a model of its own, but for its last layer
        file.move("layers/dense", "layers/sequential/layers/dense")
        file.move("layers/dense_1", "layers/sequential/layers/dense_1")
    assert "the order of layers in layers/dense and layers/sequential" in refusal(tmp_path / "net.weights.h5")


# The same tensors in another network


def weights_only(network: Network, path: Path, inputs: int) -> None:
    """A file that says nothing of its pictures, whose first dense layer reads so many numbers."""
    tensors: dict[str, Any] = dict(network.tensors)
    tensors["classifier.0.weight"] = np.zeros((5, inputs), np.float32)
    if path.suffix == ".pt":
        torch.save({name: torch.tensor(array) for name, array in tensors.items()}, path)
        return
    with h5py.File(path, "w") as file:
        layers = [layer for layer in network.table.layers if layer.tensors]
        file.attrs["layer_names"] = [layer.name for layer in layers]
        for layer in layers:
            kernel, bias = (tensors[name] for name in layer.tensors)
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [f"{layer.name}/kernel:0", f"{layer.name}/bias:0"]
            group[f"{layer.name}/kernel:0"] = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
            group[f"{layer.name}/bias:0"] = bias


@pytest.mark.parametrize("suffix", [".pt", ".h5"])
@pytest.mark.parametrize(
    ("inputs", "expected", "right"),
    [
        (8, "one number a channel comes from a global pooling, and then it is no VGG", None),
        (8 * 16, "trained on pictures of 128 to 159 pixels, say of how many", 150),
        (8 * 4 * 1, "pictures of 64 to 95 pixels, say of how many", 64),  # or 128×32: nobody but the user knows
        (8 * 3, "expected (5, 392) for pictures of 224×224; no square picture ends in 24 numbers", None),
        (8 * 49, "", 224),
    ],
)
def test_a_head_that_may_be_anothers_is_refused_until_the_size_is_said(
    tmp_path: Path, suffix: str, inputs: int, expected: str, right: int | None
) -> None:
    network = seeded(0, vgg(((4, 4), (8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8)), (5, 6), 3))
    path = tmp_path / f"net{suffix}"
    weights_only(network, path, inputs)
    if expected:
        assert expected in refusal(path)
        assert "expected" in refusal(path, size=224)
        assert "need at least 32" in refusal(path, size=-1)
    if right:
        sized = load_network(str(path), size=right)
        assert sized.table.size == (right, right)
        save_network(sized, tmp_path / "converted.safetensors")
        assert same(load_network(str(tmp_path / "converted.safetensors")), sized)


@pytest.mark.keras
def test_a_truncated_keras_archive_is_refused(with_keras: Path, tmp_path: Path) -> None:
    content = (with_keras / "flat.keras").read_bytes()
    (tmp_path / "net.keras").write_bytes(content[: len(content) // 2])
    refusal(tmp_path / "net.keras")


# HDF5 that reaches out, or lies.


def without(path: str, make: Callable[[h5py.File], Any] = lambda _: None) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[path]
        if (value := make(file)) is not None:
            file[path] = value

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((24,), "<f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (24,))
    file.create_virtual_dataset("fc2/fc2_b_1:0", layout)


def external(file: h5py.File) -> None:
    file.create_dataset("fc2/fc2_b_1:0", (24,), "<f4", external=[("/etc/passwd", 0, 96)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("fc2/fc2_b_1:0", lambda _: h5py.ExternalLink("/etc/passwd", "/x")), "is missing, though the file lists"),
        (without("fc2/fc2_b_1:0", external), "in another file"),
        (without("fc2/fc2_b_1:0", virtual), "in another file"),
        (without("fc2/fc2_b_1:0", lambda _: np.zeros(24, np.int32)), "classifier.3.bias holds int32"),
        (without("fc2/fc2_b_1:0", lambda _: np.full(24, np.nan)), "classifier.3.bias holds NaN"),
        (without("fc2/fc2_b_1:0", lambda _: np.zeros(23)), "fc2/fc2_W_1:0 (32, 24) and fc2/fc2_b_1:0 (23,) are no layer"),
        (without("fc2"), "damaged"),
        (lambda file: file.attrs.create("layer_names", file.attrs["layer_names"][:-1]), "13 convolutions and 2 dense layers, expected 13 and 3"),
        (without("block3_conv2/block3_conv2_W_1:0", lambda _: np.zeros((3, 3, 15, 16))), "features.12.weight has shape"),
    ],
)  # fmt: skip
def test_hdf5_that_is_not_what_it_says_is_refused(
    tiny: Network, tmp_path: Path, change: Callable[[h5py.File], None], expected: str
) -> None:
    save_network(tiny, tmp_path / "net.h5")
    with h5py.File(tmp_path / "net.h5", "a") as file:
        change(file)
    assert expected in refusal(tmp_path / "net.h5")


def test_a_nested_models_layers_of_ones_own_names_have_no_known_order(tiny: Network, tmp_path: Path) -> None:
    def nested(names: Mapping[str, str]) -> None:
        with h5py.File(tmp_path / "net.h5", "w") as file:
            group = file.create_group("base")
            file.attrs["layer_names"] = ["base"]
            for layer in reversed([layer for layer in TINY.layers if layer.tensors]):
                for name, part in zip(layer.tensors, ("kernel", "bias"), strict=True):
                    group[f"{names.get(layer.name, layer.name)}/{part}"] = to_keras(tiny.tensors[name], layer)
            group.attrs["weight_names"] = [
                f"{name}/{part}" for name in list(group)[::-1] for part in ("kernel", "bias")
            ]

    nested({})
    assert same(load_network(str(tmp_path / "net.h5"), size=64), tiny)
    nested({"fc2": "my_layer"})
    assert "my_layer/kernel has a name of its own" in refusal(tmp_path / "net.h5", size=64)
