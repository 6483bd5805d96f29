"""Weights: permutations by the function they preserve, files of every layout both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch_impl.vgg16 import build

from parity.contract import network as contract
from parity.contract.architecture import TINY, VGG16, Architecture
from parity.contract.network import Network, WeightsError, seeded
from torch_impl import downloads, keras_files
from torch_impl.weights import (
    conv_kernel,
    dense_after_flatten,
    dense_kernel,
    imagenet_is_cached,
    keras_conv_kernel,
    keras_dense_after_flatten,
    keras_dense_kernel,
    load_network,
    save_network,
)

ROOT = Path(__file__).parent.parent
SUFFIXES = (".safetensors", ".pt", ".pth", ".h5", ".hdf5", ".weights.h5")
sizes = st.integers(1, 5)


def same(network: Network, expected: Network) -> bool:
    """Bit for bit."""
    return network.fingerprint == expected.fingerprint and all(
        np.array_equal(network.tensors[name], array) for name, array in expected.tensors.items()
    )


def state_dict(network: Network) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in network.tensors.items()}


# Each permutation keeps a function, written here from Keras's definition and independently of torch.


@given(kh=sizes, kw=sizes, channels=sizes, units=sizes)
def test_conv_kernel_keeps_the_convolution(kh: int, kw: int, channels: int, units: int) -> None:
    random = np.random.RandomState(0)
    picture, kernel = random.randn(2, 6, 7, channels), random.randn(kh, kw, channels, units)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (kh, kw), axis=(1, 2))  # type: ignore[call-overload]
    expected = np.einsum("nhwcij,ijco->nhwo", windows, kernel)  # Keras: cross-correlation, channels last
    ours = F.conv2d(torch.tensor(picture).permute(0, 3, 1, 2), torch.tensor(conv_kernel(kernel)))
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-12)


@given(inputs=sizes, units=sizes)
def test_dense_kernel_keeps_the_product(inputs: int, units: int) -> None:
    random = np.random.RandomState(0)
    x, kernel = random.randn(3, inputs), random.randn(inputs, units)
    ours = F.linear(torch.tensor(x), torch.tensor(dense_kernel(kernel)))
    np.testing.assert_allclose(ours.numpy(), x @ kernel, rtol=0, atol=1e-12)


@given(h=sizes, w=sizes, channels=sizes, units=sizes)
def test_dense_after_flatten_keeps_the_product_of_the_flattened(h: int, w: int, channels: int, units: int) -> None:
    random = np.random.RandomState(0)
    pooled, kernel = random.randn(2, h, w, channels), random.randn(h * w * channels, units)
    expected = pooled.reshape(2, -1) @ kernel  # Keras flattens (h, w, c)
    flat = torch.tensor(pooled).permute(0, 3, 1, 2).flatten(1)  # torch flattens (c, h, w)
    ours = F.linear(flat, torch.tensor(dense_after_flatten(kernel, (channels, h, w))))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


@given(h=sizes, w=sizes, channels=sizes, units=sizes)
def test_permutations_are_inverted_exactly(h: int, w: int, channels: int, units: int) -> None:
    kernel = np.random.RandomState(0).randn(h, w, channels, units).astype(np.float32)
    flat = kernel.reshape(-1, units)
    assert np.array_equal(keras_conv_kernel(conv_kernel(kernel)), kernel)
    assert np.array_equal(keras_dense_kernel(dense_kernel(flat)), flat)
    assert np.array_equal(
        keras_dense_after_flatten(dense_after_flatten(flat, (channels, h, w)), (channels, h, w)), flat
    )


# Files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_there_and_back_is_bit_identical(tiny: Network, tmp_path: Path, suffix: str) -> None:
    odd = dataclasses.replace(tiny, source="a lab", input="torchvision", remark="not for sale")
    path = tmp_path / f"net{suffix}"
    save_network(odd, path)
    loaded = load_network(str(path))
    assert same(loaded, tiny)
    assert (loaded.source, loaded.input, loaded.remark) == ("a lab", "torchvision", "not for sale")
    assert loaded.architecture == TINY
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_chain_through_every_layout_is_bit_identical(tiny: Network, tmp_path: Path) -> None:
    network = tiny
    for i, suffix in enumerate(SUFFIXES):
        save_network(network, tmp_path / f"{i}{suffix}")
        network = load_network(str(tmp_path / f"{i}{suffix}"))
    assert same(network, tiny)


def test_the_legacy_layout_is_that_of_the_official_file(tiny: Network, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "net.h5")
    with h5py.File(tmp_path / "net.h5") as file:
        assert file["block1_conv1/block1_conv1_W_1:0"].shape == (3, 3, 3, 8)
        assert file["fc1/fc1_W_1:0"].shape == (64, 32)
        assert file["predictions/predictions_b_1:0"].shape == (10,)
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert names == [layer.keras for layer in VGG16.layers if layer.kind != "input"]
        assert set(names) == set(file)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model_state_dict", "module"])
def test_torch_state_dicts_as_people_save_them(tiny: Network, tmp_path: Path, legacy: bool, wrap: str) -> None:
    state: dict[str, Any] = state_dict(tiny)
    if wrap == "module":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    elif wrap != "plain":
        state = {"epoch": 3, wrap: OrderedDict(state), "optimizer": {"lr": 0.1}}
    path = tmp_path / "net.bin"  # the suffix says nothing
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_network(str(path))
    assert same(loaded, tiny)
    assert (loaded.input, loaded.source) == ("torchvision", str(path))
    assert load_network(str(path), input="caffe").input == "caffe"


def test_a_model_s_own_state_dict(tiny: Network, tmp_path: Path) -> None:
    model = build(tiny)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    assert same(load_network(str(tmp_path / "net.pt")), tiny)
    save_network(tiny, tmp_path / "ours.pt")
    other = build(seeded(1, TINY))
    other.load_state_dict(torch.load(tmp_path / "ours.pt", weights_only=True))  # torch takes ours as its own
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_floating_types_become_float32(tiny: Network, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state_dict(tiny).items()}
    path = tmp_path / f"net{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    loaded = load_network(str(path))
    assert loaded.input == "torchvision"
    for name, array in loaded.tensors.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, state[name].float().numpy())


def test_strided_tensors_become_contiguous(tiny: Network, tmp_path: Path) -> None:
    state = state_dict(tiny)
    state["features.2.weight"] = state["features.2.weight"].to(memory_format=torch.channels_last)
    torch.save(state, tmp_path / "net.pt")
    loaded = load_network(str(tmp_path / "net.pt"))
    assert same(loaded, tiny)
    assert all(array.flags.c_contiguous for array in loaded.tensors.values())


@pytest.mark.parametrize("form", ["{}/kernel:0", "{}.kernel", "vgg16/{}/kernel", "{}_W_1:0"])
def test_safetensors_with_kerass_names(tiny: Network, tmp_path: Path, form: str) -> None:
    state = {}
    for layer in TINY.layers:
        for part, keras in (("weight", "kernel"), ("bias", "bias")) if layer.torch else ():
            name = f"{layer.torch}.{part}"
            name_there = form.format(layer.keras).replace("kernel", keras).replace("_W_", f"_{keras[0]}_")
            state[name_there] = torch.tensor(keras_files.to_keras(name, tiny.tensors[name], TINY))
    save_file(state, tmp_path / "net.safetensors")
    loaded = load_network(str(tmp_path / "net.safetensors"))
    assert same(loaded, tiny)
    assert loaded.input == "caffe"


def test_torch_files_are_mapped_not_copied(tiny: Network, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "net.pt")
    before = load_network(str(tmp_path / "net.pt"))
    with open("/proc/self/maps") as maps:
        assert "net.pt" in maps.read()
    assert same(before, tiny)


def test_saving_over_the_file_that_was_loaded(tiny: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    save_network(tiny, path)
    loaded = load_network(str(path))  # memory-mapped
    save_network(loaded, path, overwrite=True)
    assert same(loaded, tiny)
    assert same(load_network(str(path)), tiny)


# Against Keras itself, in a process of its own.

KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
folder = sys.argv[1]
x = np.load(folder + "/x.npy")
L = keras.layers
def rows(final="predictions"):
    yield L.Input((64, 64, 3))
    for b, (n, width) in enumerate([(2, 8), (2, 8), (3, 16), (3, 16), (3, 16)], 1):
        for c in range(1, n + 1):
            yield L.Conv2D(width, 3, padding="same", activation="relu", name=f"block{b}_conv{c}")
        yield L.MaxPooling2D(name=f"block{b}_pool")
    yield L.Flatten(name="flatten")
    yield L.Dense(32, activation="relu", name="fc1")
    yield L.Dropout(0.5)
    yield L.Dense(24, activation="relu", name="fc2")
    yield L.Dense(10, name=final)
def functional(**names):
    first, *rest = rows(**names)
    y = first
    for layer in rest:
        y = layer(y)
    return keras.Model(first, y)
def out(name, model):
    np.save(f"{folder}/{name}.npy", model.predict(x, verbose=0))
for name, model in (("functional", functional()), ("sequential", keras.Sequential(list(rows())))):
    for suffix in (".h5", ".weights.h5"):
        model.load_weights(folder + "/ours" + suffix)
        out(f"ours-{name}{suffix}", model)
model = functional()
for layer in model.layers:  # biases of zero would hide a bias that went astray
    layer.set_weights([w + np.random.RandomState(len(w)).normal(0, 0.1, w.shape) for w in layer.get_weights()])
model.compile("adam", "mse", metrics=["mae"])
model.fit(x, np.zeros((len(x), 10)), verbose=0)
out("theirs", model)
model.save(folder + "/theirs.keras")
model.save(folder + "/theirs.h5")
model.save_weights(folder + "/theirs.weights.h5")
nested = keras.Sequential([L.Input((64, 64, 3)), model])
nested.save(folder + "/nested.h5")
nested.save_weights(folder + "/nested.weights.h5")
renamed = functional(final="my_head")
renamed.set_weights(model.get_weights())
renamed.save(folder + "/renamed.h5")
renamed.save_weights(folder + "/renamed.weights.h5")
notop = keras.Model(model.inputs, model.get_layer("block5_pool").output)
notop.save(folder + "/notop.h5")
notop.save_weights(folder + "/notop.weights.h5")
"""


@pytest.fixture(scope="session")
def with_keras(tmp_path_factory: pytest.TempPathFactory, tiny: Network) -> Path:
    """A folder in which Keras has read our files and written its own."""
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec("tensorflow") is None:
        pytest.skip("Keras is not installed")
    folder = tmp_path_factory.mktemp("keras")
    np.save(folder / "x.npy", np.random.RandomState(0).uniform(-120, 150, (4, 64, 64, 3)).astype(np.float32))
    for suffix in (".h5", ".weights.h5"):
        save_network(tiny, folder / f"ours{suffix}")
    command = [sys.executable, "-c", KERAS, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def logits(network: Network, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output: torch.Tensor = build(network)(torch.tensor(x).permute(0, 3, 1, 2).contiguous())
    return output.numpy()


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(theirs).max() > 1e-3
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.keras
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_keras_computes_the_same_from_our_files(with_keras: Path, tiny: Network, kind: str, suffix: str) -> None:
    agree(logits(tiny, np.load(with_keras / "x.npy")), np.load(with_keras / f"ours-{kind}{suffix}.npy"))


@pytest.mark.keras
@pytest.mark.parametrize(
    "name", [f"{kind}{s}" for kind in ("theirs", "nested", "renamed") for s in (".h5", ".weights.h5")]
)
def test_we_compute_the_same_from_kerass_files(with_keras: Path, name: str) -> None:
    network = load_network(str(with_keras / name))
    assert network.input == "caffe"
    agree(logits(network, np.load(with_keras / "x.npy")), np.load(with_keras / "theirs.npy"))


@pytest.mark.keras
def test_every_file_of_one_keras_model_has_one_fingerprint(with_keras: Path, tmp_path: Path) -> None:
    files = [with_keras / f"theirs{suffix}" for suffix in (".h5", ".weights.h5", ".keras")]
    with zipfile.ZipFile(files[-1]) as archive, zipfile.ZipFile(tmp_path / "deflated.keras", "w", 8) as again:
        for name in archive.namelist():
            again.writestr(name, archive.read(name))
    prints = {load_network(str(path)).fingerprint for path in (*files, tmp_path / "deflated.keras")}
    assert len(prints) == 1


@pytest.mark.keras
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_a_keras_file_without_its_top_is_named(with_keras: Path, suffix: str) -> None:
    with pytest.raises(WeightsError, match="dense layers fc1, fc2 and predictions are missing"):
        load_network(str(with_keras / f"notop{suffix}"))


@pytest.mark.slow
@pytest.mark.keras
def test_the_full_vgg16_in_keras(tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    program = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
folder = sys.argv[1]
x = np.load(folder + "/x.npy")
model = keras.applications.VGG16(weights=folder + "/net.h5", classifier_activation=None)
np.save(folder + "/h5.npy", model.predict(x, verbose=0))
model = keras.applications.VGG16(weights=None, classifier_activation=None)
model.load_weights(folder + "/net.weights.h5")
np.save(folder + "/weights.h5.npy", model.predict(x, verbose=0))
"""
    network = contract.offline_random(1)
    x = np.random.RandomState(0).uniform(-120, 150, (2, 224, 224, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for suffix in (".h5", ".weights.h5"):
        save_network(network, tmp_path / f"net{suffix}")
        assert load_network(str(tmp_path / f"net{suffix}")).fingerprint == network.fingerprint
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=600)
    ours = logits(network, x)
    agree(ours, np.load(tmp_path / "h5.npy"))
    agree(ours, np.load(tmp_path / "weights.h5.npy"))


# Keras 3 counts classes, and ten comes after nine.


def test_counters_are_compared_as_numbers(tmp_path: Path) -> None:
    deep = seeded(
        0, Architecture(((4, 4), (4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4)), (6, 6), 3, 32)
    )  # shapes tell nothing
    path = tmp_path / "net.weights.h5"
    save_network(deep, path)
    with h5py.File(path, "a") as file:  # as Keras before 3.6 wrote it: without names
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
        del file.attrs["attention_maps"]
    assert same(load_network(str(path)), deep)


def test_strings_of_varying_length_are_not_touched(tiny: Network, tmp_path: Path) -> None:
    # Where such a string is damaged, libhdf5 (1.14) can loop for ever, deaf to Ctrl-C. Fuzzing found it.
    for suffix, name in ((".weights.h5", "name"), (".h5", "weight_names")):
        path = tmp_path / f"net{suffix}"
        save_network(tiny, path)
        with h5py.File(path, "a") as file:

            def lie(_: str, item: Any, name: str = name) -> None:
                if name in item.attrs:
                    item.attrs[name] = "a string of varying length, and wrong"

            file.visititems(lie)
            file.attrs["attention_maps"] = '{"source": "another"}'
        loaded = load_network(str(path))
        assert same(loaded, tiny)
        assert loaded.source == str(path)


# What is refused


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


def refusal(path: Path | str, **options: Any) -> str:
    """The one printable line, which begins with the path."""
    with pytest.raises(WeightsError) as caught:
        load_network(str(path), **options)
    message = str(caught.value)
    assert message.isprintable(), message
    assert message.startswith(repr(str(path))), message
    assert "weights_only" not in message  # torch's own advice is to switch the protection off
    return message


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_pickled_code_is_refused_and_does_not_run(tiny: Network, tmp_path: Path, legacy: bool, nested: bool) -> None:
    code = Code(tmp_path / "ran")
    content = {**state_dict(tiny), "extra": code} if nested else code
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=not legacy)
    assert "pickled Python objects (posix.system)" in refusal(tmp_path / "net.pt")
    assert not code.path.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    code = Code(tmp_path / "ran")
    (tmp_path / "net.pt").write_bytes(pickle.dumps(code, protocol))
    refusal(tmp_path / "net.pt")
    assert not code.path.exists()


def test_the_protection_cannot_be_switched_off_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    code = Code(tmp_path / "ran")
    torch.save(code, tmp_path / "net.pt")
    refusal(tmp_path / "net.pt")
    assert not code.path.exists()


def test_a_whole_model_is_refused_with_what_to_do(tiny: Network, tmp_path: Path) -> None:
    torch.save(build(tiny), tmp_path / "net.pt")
    assert "torchvision.models.vgg.VGG" in refusal(tmp_path / "net.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "net.pt")
    assert "TorchScript" in refusal(tmp_path / "net.pt")


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name: t for name, t in (state | changes).items() if t is not None}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed(**{"features.7.bias": None}), "tensor features.7.bias is missing"),
        (changed(**{"features.7.weight": None}), "convolution is missing between features.5 and features.10"),
        (changed(**{"classifier.3.weight": None}), "tensor classifier.3.weight is missing"),
        (changed(extra=torch.zeros(2)), "tensor extra does not belong"),
        (changed(**{"features.7.bias": torch.zeros(9)}), r"features.7.bias has shape \(9,\), expected \(8,\)"),
        (changed(**{"features.7.bias": torch.zeros(8, dtype=torch.int32)}), "features.7.bias holds torch.int32"),
        (changed(**{"features.7.bias": torch.full((8,), torch.nan)}), "features.7.bias holds NaN or infinity"),
        (changed(**{"features.7.bias": torch.full((8,), torch.inf)}), "features.7.bias holds NaN or infinity"),
        (
            changed(**{"features.7.bias": torch.full((8,), 1e300, dtype=torch.float64)}),
            "features.7.bias holds NaN or infinity",
        ),
        (changed(**{"features.7.bias": torch.zeros(8).to_sparse()}), "features.7.bias holds"),
        (changed(**{"features.7.bias": torch.zeros(8, device="meta")}), "features.7.bias holds"),
        (changed(**{"features.0.weight": torch.zeros(())}), r"features.0.weight has shape \(\)"),
        (changed(**{"features.01.weight": torch.zeros(1)}), "features.01.weight does not belong"),
        (changed(**{"features.1.running_mean": torch.zeros(8), "features.1.weight": torch.zeros(8)}), "vgg16_bn"),
        (changed(epoch=3), "entry 'epoch' is a int"),
        (lambda _: torch.zeros(3), "holds a Tensor, not a state dict"),
        (lambda _: {}, "tensor features.0.weight is missing"),
        (lambda _: {"layer1.0.conv1.weight": torch.zeros(1)}, "looks like a ResNet"),
    ],
)
def test_a_wrong_state_dict_is_refused_by_the_first_difference(
    tiny: Network, tmp_path: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    torch.save(change(state_dict(tiny)), tmp_path / "net.pt")
    assert re.search(expected, refusal(tmp_path / "net.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".h5", ".weights.h5"])
def test_vgg19_is_recognised(tmp_path: Path, suffix: str) -> None:
    vgg19 = seeded(0, Architecture(((4, 4), (4, 4), (4,) * 4, (4,) * 4, (4,) * 4), (6, 6), 3, 32))
    save_network(vgg19, tmp_path / f"net{suffix}")
    assert "it looks like VGG19" in refusal(tmp_path / f"net{suffix}")


def test_a_huge_declared_shape_costs_nothing(tiny: Network, tmp_path: Path) -> None:
    one = torch.zeros(1)  # a terabyte, made of one number that is repeated
    huge = {"features.0.weight": one.expand(10**6, 3, 3, 3), "features.0.bias": one.expand(10**6)}
    huge |= {"features.2.weight": one.expand(8, 10**6, 3, 3), "classifier.0.weight": one.expand(10**7, 64)}
    huge |= {"classifier.0.bias": one.expand(10**7), "classifier.3.weight": one.expand(24, 10**7)}
    torch.save(state_dict(tiny) | huge, tmp_path / "net.pt")
    assert "too many for a VGG16" in refusal(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0, 1, 9, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny: Network, tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"net{suffix}"
    save_network(tiny, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert keep or "it is empty" in refusal(path)
    refusal(path)


@given(data=st.data())
def test_damaged_bytes_never_do_worse_than_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from((".safetensors", ".pt", ".h5", ".weights.h5")))
    path = tmp_path_factory.mktemp("damaged") / f"net{suffix}"
    save_network(seeded(0, TINY), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.one_of(st.integers(0, min(4095, len(content) - 1)), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    said = ""
    try:
        load_network(str(path))  # damage among the values cannot be seen without a hash
    except WeightsError as error:
        said = str(error)
    assert said.isprintable()


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello, this is not a network at all")
    assert "not a weights file" in refusal(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme", "hello")
    assert "neither PyTorch's nor Keras's" in refusal(tmp_path / "zip.pt")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in refusal(tmp_path / "pipe.pt")  # and does not wait for a writer
    assert "not a regular file" in refusal("/dev/zero")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.pt")
    assert "cannot be read" in refusal(tmp_path / "dangling.pt")
    assert "null byte" in refusal("a\0b")
    assert "too long" in refusal("x" * 300)


@pytest.mark.parametrize(
    "name", ["a b.pt", "it's.pt", 'q".pt', "line\nbreak.pt", "\x1b[31m.pt", "-dash.pt", "é.pt", "s" * 200]
)
def test_names_are_shown_safely_and_read_rightly(tiny: Network, tmp_path: Path, name: str) -> None:
    torch.save(state_dict(tiny), tmp_path / name)
    assert same(load_network(str(tmp_path / name)), tiny)
    torch.save({}, tmp_path / name)
    refusal(tmp_path / name)


@pytest.mark.parametrize("word", ["imagnet", "seeded", "", "AUTO", "seeded:1\n2"])
def test_an_unknown_word_lists_the_known_ones(word: str) -> None:
    message = refusal(word)
    assert "auto, imagenet, keras, offline, offline-random:N, seeded:N, or a path" in message


@pytest.mark.parametrize("word", ["seeded:", "seeded:x", "seeded:-1", "offline-random:4294967296", "seeded:1\x1b"])
def test_a_wrong_seed_says_what_is_right(word: str) -> None:
    assert "0 to 4294967295" in refusal(word)


def test_an_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(WeightsError, match="caffe, torchvision"):
        load_network("offline", input="vgg")


# HDF5 that reaches out, or loops, or lies.


def legacy(tiny: Network, path: Path, change: Callable[[h5py.File], None]) -> None:
    save_network(tiny, path)
    with h5py.File(path, "a") as file:
        change(file)


def external_link(file: h5py.File) -> None:
    del file["fc2/fc2_W_1:0"]
    file["fc2/fc2_W_1:0"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(file: h5py.File) -> None:
    del file["fc2/fc2_b_1:0"]
    file["fc2/fc2_b_1:0"] = h5py.SoftLink("/fc1/fc1_b_1:0")


def external_storage(file: h5py.File) -> None:
    del file["fc2/fc2_b_1:0"]
    file.create_dataset("fc2/fc2_b_1:0", (24,), "<f4", external=[("/etc/passwd", 0, 96)])


def virtual(file: h5py.File) -> None:
    del file["fc2/fc2_b_1:0"]
    layout = h5py.VirtualLayout((24,), "<f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (24,))
    file.create_virtual_dataset("fc2/fc2_b_1:0", layout)


def loop(file: h5py.File) -> None:
    file["fc2/again"] = file["fc2"]


def fan(file: h5py.File) -> None:
    group = file["fc2"]
    for _ in range(11):
        following = group.create_group("a")
        group["b"], group["c"], group["d"] = following, following, following
        group = following


def bomb(file: h5py.File) -> None:
    for name, shape in (("fc1/fc1_W_1:0", (64, 10**11)), ("fc1/fc1_b_1:0", (10**11,)), ("fc2/fc2_W_1:0", (10**11, 24))):
        del file[name]
        file.create_dataset(name, shape, "<f4", chunks=True)


def integers(file: h5py.File) -> None:
    del file["fc2/fc2_b_1:0"]
    file["fc2/fc2_b_1:0"] = np.zeros(24, np.int32)


def text(file: h5py.File) -> None:
    del file["fc2/fc2_b_1:0"]
    file["fc2/fc2_b_1:0"] = np.array([b"x"] * 24)


def not_a_number(file: h5py.File) -> None:
    file["fc2/fc2_b_1:0"][3] = np.nan


def left_over(file: h5py.File) -> None:
    file["fc2/more"] = np.zeros(3)


def left_over_elsewhere(file: h5py.File) -> None:
    file["more"] = np.zeros(3)


def lost_layer(file: h5py.File) -> None:
    file["fc2"].clear()
    file["fc2"].attrs["weight_names"] = np.array([], "S1")


def lost_dataset(file: h5py.File) -> None:
    del file["fc2/fc2_b_1:0"]


def wrong_shape(file: h5py.File) -> None:
    del file["block3_conv2/block3_conv2_W_1:0"]
    file["block3_conv2/block3_conv2_W_1:0"] = np.zeros((3, 3, 15, 16), np.float32)


def wrong_attribute(file: h5py.File) -> None:
    file.move("fc2", "my_fc2")  # so that the order is asked for
    file.attrs["layer_names"] = 3.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (external_link, "links are not followed"),
        (soft_link, "links are not followed"),
        (external_storage, "in another file"),
        (virtual, "in another file"),
        (loop, "nested deeper"),
        (fan, "more than 10000 objects"),
        (bomb, "weights are declared"),
        (integers, "holds int32"),
        (text, "holds |S1"),
        (not_a_number, "classifier.3.bias holds NaN"),
        (left_over, "fc2/more (3,) stands alone"),
        (left_over_elsewhere, "more is left over"),
        (lost_layer, "fc2 is missing"),
        (lost_dataset, "fc2/fc2_W_1:0 (32, 24) stands alone"),
        (wrong_shape, "(block3_conv2) has shape (3, 3, 15, 16), expected (3, 3, 16, 16)"),
        (wrong_attribute, "damaged"),
    ],
)
def test_hostile_hdf5_is_refused(
    tiny: Network, tmp_path: Path, change: Callable[[h5py.File], None], expected: str
) -> None:
    legacy(tiny, tmp_path / "net.h5", change)
    assert expected in refusal(tmp_path / "net.h5")


def test_an_empty_hdf5_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.h5", "w"):
        pass
    assert "holds no weights" in refusal(tmp_path / "net.h5")


def test_a_long_list_of_names_is_read_in_its_parts(tiny: Network, tmp_path: Path) -> None:
    def split(file: h5py.File) -> None:
        names = file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:9], names[9:]
        del file.attrs["layer_names"]

    legacy(tiny, tmp_path / "net.h5", split)
    assert same(load_network(str(tmp_path / "net.h5")), tiny)


def test_a_zip_bomb_is_refused_from_its_directory(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_files, "LARGEST_MEMBER", 10**6)
    with zipfile.ZipFile(tmp_path / "net.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2 * 10**6))
    assert "too large" in refusal(tmp_path / "net.keras")


def test_a_keras_config_is_never_looked_at(tiny: Network, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "net.weights.h5")
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.write(tmp_path / "net.weights.h5", "model.weights.h5")
        archive.writestr("config.json", json.dumps({"class_name": "Lambda"}) + "\0 not JSON")
    assert same(load_network(str(tmp_path / "net.keras")), tiny)


def test_metadata_is_not_trusted(tiny: Network, tmp_path: Path) -> None:
    save_network(dataclasses.replace(tiny, source="a\nb\x1b" + "x" * 9999, remark="\r\n"), tmp_path / "net.h5")
    loaded = load_network(str(tmp_path / "net.h5"))
    assert loaded.source.isprintable()
    assert len(loaded.source) < 1000
    for content in ("3", "[]", "{", '{"input": "vgg"}', '{"input": 7, "source": {}}'):
        with h5py.File(tmp_path / "net.h5", "a") as file:
            file.attrs["attention_maps"] = np.bytes_(content)
        if "input" in content:
            assert "is unknown" in refusal(tmp_path / "net.h5")
        else:
            assert load_network(str(tmp_path / "net.h5")).input == "caffe"


# Saving


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("net.keras", "only Keras can write"),
        ("net.onnx", "unknown suffix"),
        ("net", "unknown suffix"),
        ("no/net.pt", "cannot"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tiny: Network, tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(WeightsError, match=expected):
        save_network(tiny, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(tiny: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_text("mine")
    with pytest.raises(WeightsError, match="exists"):
        save_network(tiny, path)
    assert path.read_text() == "mine"
    save_network(tiny, path, overwrite=True)
    assert same(load_network(str(path)), tiny)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(WeightsError, match="is a folder"):
        save_network(tiny, tmp_path / "folder.pt", overwrite=True)


def test_a_full_disk_leaves_nothing_and_is_one_line(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from parity.contract.architecture import TINY
from parity.contract.network import seeded
from torch_impl.weights import WeightsError, save_network
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
for suffix in sys.argv[2:]:
    try:
        save_network(seeded(0, TINY), Path(sys.argv[1]) / f"net{suffix}")
    except WeightsError as error:
        print(str(error).isprintable())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *SUFFIXES],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "True\n" * len(SUFFIXES), done.stderr
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


# Sources that are fetched


@pytest.fixture
def hosted(tmp_path: Path, tiny: Network, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny networks in the place of the two official files, cached; the hosts refuse."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for remote, suffix in (("IMAGENET", ".pth"), ("KERAS", ".h5")):
        official = getattr(downloads, remote)
        anonymous = dataclasses.replace(tiny, source="", input="caffe")
        save_network(anonymous, cache / f"temporary{suffix}")
        (cache / f"temporary{suffix}").rename(cache / official.name)
        digest = hashlib.new(official.algorithm, (cache / official.name).read_bytes()).hexdigest()
        monkeypatch.setattr(downloads, remote, dataclasses.replace(official, digest=digest, folder=lambda: cache))
        monkeypatch.setenv(official.variable, "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(
        contract, "offline", lambda: dataclasses.replace(seeded(9, TINY), source="offline", remark="small")
    )
    return cache


def test_the_official_sources_know_their_preprocessing(hosted: Path, tiny: Network) -> None:
    for source, input in (("imagenet", "torchvision"), ("keras", "caffe"), ("auto", "torchvision")):
        network = load_network(source)
        assert same(network, tiny)
        assert (network.source, network.input) == ("imagenet" if source == "auto" else source, input)
        assert network.remark == tiny.remark
    assert load_network("keras", input="torchvision").input == "torchvision"
    assert imagenet_is_cached()


@pytest.mark.parametrize("damaged", [False, True])
def test_auto_without_a_network_is_offline_and_says_why(hosted: Path, damaged: bool) -> None:
    if damaged:
        (hosted / downloads.IMAGENET.name).write_bytes(b"half a file")
    else:
        (hosted / downloads.IMAGENET.name).unlink()
    network = load_network("auto")
    assert network.source == "offline"
    assert re.fullmatch(r"no ImageNet weights \(127.0.0.1:9: .*refused\); small", network.remark)
    with pytest.raises(WeightsError, match=r"imagenet: downloading from 127\.0\.0\.1:9 failed: .*refused"):
        load_network("imagenet")
    assert imagenet_is_cached() == damaged


def test_auto_with_a_wrong_mirror_is_offline(hosted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hosted / downloads.IMAGENET.name).unlink()
    monkeypatch.setenv("ATTENTION_MAPS_IMAGENET_URL", "file:///etc/passwd")
    assert "is not an http or https URL" in load_network("auto").remark
