from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch_impl.vgg16 import TARGET_LAYER, build, skeleton, summary

from parity.contract.architecture import TINY, VGG16, Architecture
from parity.contract.network import seeded


def test_the_table_is_torchvisions_network():
    model = torchvision.models.vgg16(weights=None, init_weights=False)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == VGG16.tensor_shapes
    assert VGG16.parameters == sum(p.numel() for p in model.parameters()) == 138_357_544


def test_the_target_layer_is_the_last_relu_before_the_pool():
    model = skeleton(VGG16)
    assert VGG16.target.activation == TARGET_LAYER
    assert isinstance(model.get_submodule(TARGET_LAYER), torch.nn.ReLU)
    assert isinstance(model.features[28], torch.nn.Conv2d)
    assert isinstance(model.features[30], torch.nn.MaxPool2d)


def test_every_layers_output_has_the_tables_shape(tiny):
    model = build(tiny)
    shapes = {}
    names = {layer.activation: layer for layer in TINY.layers if layer.activation}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: shapes.update({name: y.shape}))
    model(torch.zeros(1, 3, 64, 64))
    for name, layer in names.items():
        expected = (layer.shape[-1], *layer.shape[:-1]) if len(layer.shape) == 3 else layer.shape
        assert tuple(shapes[name])[1:] == expected


def test_build_is_frozen_in_eval_mode_and_copies_nothing(tiny):
    model = build(tiny)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    weight = model.features[0].weight
    assert weight.data_ptr() == tiny.tensors["features.0.weight"].ctypes.data


def test_a_native_size_passes_the_adaptive_pool_unchanged(tiny):
    model = build(tiny)
    x = torch.tensor(np.random.RandomState(0).uniform(-100, 100, (1, 3, 64, 64)), dtype=torch.float32)
    features = model.features(x.clone())
    assert torch.equal(model.avgpool(features), features)


@pytest.mark.parametrize("architecture", [VGG16, TINY])
def test_an_architecture_is_found_from_its_shapes(architecture):
    assert Architecture.of(architecture.tensor_shapes) == architecture


def test_summary_reads_as_keras_does():
    lines = summary(VGG16).splitlines()
    assert lines[0].split() == ["Keras", "layer", "torchvision", "Output", "shape", "Parameters"]
    assert lines[2].split() == ["input_layer", "(input)", "(None,", "224,", "224,", "3)", "0"]
    assert "block5_conv3 (conv)  features.28   (None, 14, 14, 512)      2,359,808" in lines
    assert "fc1 (dense)          classifier.0  (None, 4096)           102,764,544" in lines
    assert lines[-1] == "Total parameters: 138,357,544"


def test_seeded_networks_are_what_they_say():
    network = seeded(3, TINY)
    assert seeded(3, TINY).fingerprint == network.fingerprint != seeded(4, TINY).fingerprint
    generator = np.random.RandomState(3)
    first = generator.standard_normal((8, 3, 3, 3)) * np.sqrt(2 / 27)
    assert np.array_equal(network.tensors["features.0.weight"], first.astype(np.float32))
    assert np.array_equal(network.tensors["features.0.bias"], generator.standard_normal(8).astype(np.float32))
    assert all((network.tensors[name] != 0).all() for name in network.tensors)
