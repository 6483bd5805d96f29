"""Weights: files of every layout both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weight_files import STANDARD, a_full_disk, refusal, same, state_dict

from parity.contract.keras_files import to_keras
from parity.contract.network import Network, WeightsError, seeded
from parity.contract.vgg import vgg
from torch_impl.weights import load_network, save_network

SUFFIXES = (".safetensors", ".pt", ".pth", ".h5", ".hdf5", ".weights.h5")


@pytest.fixture(scope="session")
def standard() -> Network:
    return seeded(0, STANDARD)


# Files


@pytest.mark.parametrize("size", [64, 70])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_there_and_back_is_bit_identical(tmp_path: Path, suffix: str, size: int) -> None:
    """A file of ours remembers everything, the size of the pictures too: tensors are the same at 64 and at 70."""
    table = vgg(((8, 8), (8, 8), (16, 16, 16), (16, 16, 16), (16, 16, 16)), (32, 24), 10, size)
    network = dataclasses.replace(seeded(1, table), source="a lab", input="torchvision", remark="not for sale")
    save_network(network, tmp_path / f"net{suffix}")
    loaded = load_network(str(tmp_path / f"net{suffix}"))
    assert same(loaded, network)
    assert loaded.about == network.about
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]


def with_prefix(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def below(*keys: str) -> Callable[[dict[str, Any]], Any]:
    def wrap(state: Any) -> Any:
        for key in reversed(keys):
            state = {"epoch": 3, key: OrderedDict(state), "optimizer": {"lr": 0.1}}
        return state

    return wrap


def timm(state: dict[str, Any]) -> dict[str, Any]:
    """As timm's `VGG` names and shapes them: two convolutions, then a linear layer."""
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    kernels = {"classifier.0.weight": (6, 3, 7, 7), "classifier.3.weight": (5, 6, 1, 1)}
    state = {name: tensor.reshape(kernels.get(name, tensor.shape)) for name, tensor in state.items()}
    return {re.sub("|".join(names), lambda m: names[m[0]], name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        *map(below, ("model", "state_dict", "model_state_dict", "net")),
        below("state_dict", "model"),
        *map(with_prefix, ("module.", "model.", "_orig_mod.module.", "net.backbone.")),
        lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
        timm,
        lambda state: below("state_dict")(with_prefix("model.")(timm(state))),
    ],
)
def test_torch_state_dicts_as_people_save_them(
    standard: Network, tmp_path: Path, wrap: Callable[[dict[str, Any]], Any]
) -> None:
    path = tmp_path / "net.bin"  # the suffix says nothing
    for zipped in (True, False):
        torch.save(wrap(state_dict(standard)), path, _use_new_zipfile_serialization=zipped)
        loaded = load_network(str(path))
        assert same(loaded, standard)
        assert (loaded.input, loaded.source) == ("torchvision", str(path))
    assert load_network(str(path), input="caffe").input == "caffe"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts_become_contiguous_float32(
    standard: Network, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state_dict(standard).items()}
    save_file(state, tmp_path / "net.safetensors")
    strided = {"features.2.weight": state["features.2.weight"].to(memory_format=torch.channels_last)}
    torch.save(state | strided, tmp_path / "net.pt")
    for path in tmp_path.iterdir():
        for name, array in load_network(str(path)).tensors.items():
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            assert np.array_equal(array, state[name].float().numpy())


@pytest.mark.parametrize("form", ["{}/kernel:0", "vgg16.{}.kernel"])
def test_safetensors_with_kerass_names(standard: Network, tmp_path: Path, form: str) -> None:
    state = {}
    for layer in STANDARD.layers:
        for name, part in zip(layer.tensors, ("kernel", "bias"), strict=False):
            own_name = form.format(layer.name).replace("kernel", part)
            state[own_name] = torch.tensor(to_keras(standard.tensors[name], layer))
    save_file(state, tmp_path / "net.safetensors")
    loaded = load_network(str(tmp_path / "net.safetensors"))
    assert same(loaded, standard)
    assert loaded.input == "caffe"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_are_mapped_not_copied_and_may_be_replaced(tiny: Network, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    save_network(tiny, path)
    loaded = load_network(str(path))
    assert path.name in Path("/proc/self/maps").read_text()
    save_network(loaded, path, overwrite=True)
    assert same(loaded, tiny)
    assert same(load_network(str(path)), tiny)


# What is refused


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("nested", [False, True])
def test_pickled_code_is_refused_and_does_not_run(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's own switch does not reach it
    code = Code(tmp_path / "ran")
    content = {**state_dict(tiny), "extra": code} if nested else code
    for zipped in (True, False):
        torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
        assert "pickled Python objects (posix.system)" in refusal(tmp_path / "net.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(content))
    refusal(tmp_path / "bare.pt")
    assert not code.path.exists()


def test_a_whole_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "net.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "net.pt")
    assert "TorchScript" in refusal(tmp_path / "net.pt")


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name: t for name, t in (state | changes).items() if t is not None}


VGG19 = vgg(((4, 4), (4, 4), (4,) * 4, (4,) * 4, (4,) * 4), (6, 6), 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed(**{"features.7.bias": None}), "tensor features.7.bias is missing"),
        (changed(**{"classifier.3.weight": None}), "tensor classifier.3.weight is missing"),
        (changed(extra=torch.zeros(2)), "tensor extra does not belong"),
        (changed(**{"features.7.bias": torch.zeros(9)}), r"features.7.bias has shape \(9,\), expected \(2,\)"),
        (changed(**{"features.7.bias": torch.zeros(2, dtype=torch.int32)}), "features.7.bias holds int32"),
        (changed(**{"features.7.bias": torch.full((2,), torch.nan)}), "features.7.bias holds NaN or infinity"),
        (changed(**{"features.7.bias": torch.zeros(2).to_sparse()}), "features.7.bias is no plain array"),
        (changed(**{"features.7.bias": torch.zeros(2, device="meta")}), "features.7.bias is no plain array"),
        (changed(**{"features.1.running_mean": torch.zeros(2), "features.1.weight": torch.zeros(2)}), "vgg16_bn"),
        (lambda state: {name: t for name, t in state.items() if "features" in name}, "classifier.0.weight is missing"),
        (changed(epoch=3), "entry 'epoch' is a int"),
        (lambda state: {"model": state, "net": state}, r"several state dicts \(model, net\)"),
        (lambda state: {**with_prefix("model.")(state), "loss.weight": torch.zeros(2)}, "first tensor is model.f"),
        (lambda _: torch.zeros(3), "holds a Tensor, not a state dict"),
        (lambda _: {}, "tensor features.0.weight is missing"),
        (lambda _: {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}, "looks like a ResNet"),
    ],
)
def test_a_wrong_state_dict_is_refused_by_the_first_difference(
    standard: Network, tmp_path: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    torch.save(change(state_dict(standard)), tmp_path / "net.pt")
    assert re.search(expected, refusal(tmp_path / "net.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".h5", ".weights.h5"])
def test_vgg19_is_recognised(tmp_path: Path, suffix: str) -> None:
    save_network(seeded(0, VGG19), tmp_path / f"net{suffix}")
    assert "it looks like VGG19" in refusal(tmp_path / f"net{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused(tiny: Network, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    save_network(tiny, path)
    content = path.read_bytes()
    for keep in (0, 1, 9, len(content) // 10, len(content) // 2, int(0.999 * len(content))):
        path.write_bytes(content[:keep])
        refusal(path)


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello, this is not a network at all")
    assert "not a weights file" in refusal(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme", "hello")
    refusal(tmp_path / "zip.pt")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    refusal(tmp_path / "pipe.pt")  # and does not wait for a writer
    with h5py.File(tmp_path / "net.h5", "w"):
        pass
    assert "holds no weights" in refusal(tmp_path / "net.h5")


@pytest.mark.parametrize("name", ['it\'s "é".pt', "line\nbreak.pt", "\x1b[31m.pt", "s" * 200])
def test_names_are_shown_safely_and_read_rightly(standard: Network, tmp_path: Path, name: str) -> None:
    torch.save(state_dict(standard), tmp_path / name)
    assert same(load_network(str(tmp_path / name)), standard)
    torch.save({}, tmp_path / name)
    refusal(tmp_path / name)


@pytest.mark.parametrize("word", ["imagnet", "seeded", "", "AUTO", "x" * 300, "seeded:", "offline-random:-1"])
def test_an_unknown_word_says_what_is_right(word: str) -> None:
    seed = ":" in word
    known = "0 to 4294967295" if seed else "auto, imagenet, keras, offline, offline-random:N, seeded:N, or a path"
    assert known in refusal(word)


def test_an_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(WeightsError, match="caffe, torchvision"):
        load_network("offline", input="vgg")


def test_metadata_is_shown_safely(tiny: Network, tmp_path: Path) -> None:
    save_network(dataclasses.replace(tiny, source="a\nb\x1b" + "x" * 9999, remark="\r\n"), tmp_path / "net.h5")
    loaded = load_network(str(tmp_path / "net.h5"))
    assert loaded.source.isprintable()
    assert len(loaded.source) < 1000


# Saving


@pytest.mark.parametrize(
    ("name", "expected"),
    [("net.keras", "only Keras"), ("net.onnx", "unknown suffix"), ("net", "unknown suffix"), ("no/net.pt", "cannot")],
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


def test_a_full_disk_leaves_nothing_and_is_one_line(tiny: Network, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with a_full_disk(30_000), pytest.raises(WeightsError) as caught:
            save_network(tiny, tmp_path / f"net{suffix}")
        assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []
