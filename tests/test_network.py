"""Canonical weights as PyTorch modules: torchvision's network; `test_tables` has the table that describes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TARGET_LAYER, TINY

from parity.contract.network import seeded
from parity.contract.vgg import VGG16
from torch_impl.network import build, prepared, skeleton, summary


@pytest.mark.parametrize("table", [VGG16, TINY], ids=["vgg16", "tiny"])
def test_the_target_layer_is_the_last_relu_before_the_pool(table):
    model = skeleton(table)
    assert table.modules[table.target] == TARGET_LAYER == "features.29"
    kinds = [type(model.features[i]) for i in (28, 29, 30)]
    assert kinds == [torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_build_is_frozen_in_eval_mode_and_copies_nothing(tiny):
    model = build(tiny)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == {
        name: array.ctypes.data for name, array in tiny.tensors.items()
    }


@torch.inference_mode()
def test_prepared_is_on_its_device_in_its_format_and_can_be_differentiated(tiny, device):
    model = prepared(tiny, device, "fp64")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device.type, torch.float64)}
    assert not any(p.is_inference() for p in model.parameters())
    assert model.features[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert tiny.tensors["features.2.weight"].flags.c_contiguous


def test_a_native_size_passes_the_adaptive_pool_unchanged(tiny):
    model = build(tiny)
    x = torch.tensor(np.random.RandomState(0).uniform(-100, 100, (1, 3, 64, 64)), dtype=torch.float32)
    features = model.features(x.clone())
    assert torch.equal(model.avgpool(features), features)


def test_summary_reads_as_keras_does():
    lines = summary(VGG16).splitlines()
    assert lines[0].split() == ["Keras", "layer", "torchvision", "Output", "shape", "Parameters"]
    assert lines[2].split() == ["input_layer", "(input)", "(None,", "224,", "224,", "3)", "0"]
    assert "block5_conv3 (conv)  features.28   (None, 14, 14, 512)      2,359,808" in lines
    assert "fc1 (dense)          classifier.0  (None, 4096)           102,764,544" in lines
    assert lines[-1] == "Total parameters: 138,357,544"
    assert summary(TINY).splitlines()[-1] == "Total parameters: 24,826"


def test_seeded_networks_are_what_they_say():
    network = seeded(3, TINY)
    assert seeded(3, TINY).fingerprint == network.fingerprint != seeded(4, TINY).fingerprint
    generator = np.random.RandomState(3)
    first = generator.standard_normal((8, 3, 3, 3)) * np.sqrt(2 / 27)
    assert np.array_equal(network.tensors["features.0.weight"], first.astype(np.float32))
    assert np.array_equal(network.tensors["features.0.bias"], generator.standard_normal(8).astype(np.float32))
    assert all(tensor.all() for tensor in network.tensors.values())
