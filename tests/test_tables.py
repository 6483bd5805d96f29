"""A network as a table of its layers, the stages that follow from it, and the maps by their names."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.contract import stages
from parity.contract.layers import LayerTable
from parity.contract.methods import REFERENCE, canonical_names, in_order
from parity.contract.network import seeded
from parity.contract.vgg import VGG16, blocks_of, vgg, vgg_of


def test_vgg16_is_torchvisions() -> None:
    import torch
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.vgg16(init_weights=False).state_dict()
    assert list(VGG16.tensors.items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]
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
    shown = [[layer.name, ",".join(map(str, layer.shape)), str(layer.parameters)] for layer in VGG16.layers]
    assert shown == rows
    assert (VGG16.target, VGG16.modules[VGG16.target]) == ("block5_conv3", "features.29")
    assert VGG16["fc1"].config["flattened"] == [7, 7, 512]
    assert all(after.inbound == (before.name,) for before, after in zip(VGG16.layers, VGG16.layers[1:], strict=False))


def test_every_layers_module_is_the_one_that_computes_it() -> None:
    import torch

    from torch_impl.network import build

    model = build(seeded(0, TINY))
    assert TINY.modules.keys() == {layer.name for layer in TINY.layers if layer.compared}
    for name, path in TINY.modules.items():
        shapes: list[tuple[int, ...]] = []
        module = model.get_submodule(path)
        with module.register_forward_hook(lambda _, __, out, shapes=shapes: shapes.append(tuple(out.shape[1:]))):
            model(torch.zeros(1, 3, 64, 64))
        *spatial, channels = TINY[name].shape
        assert shapes == [(channels, *spatial)], name
        assert isinstance(module, torch.nn.ReLU) == (TINY[name].config.get("activation") == "relu"), name


WIDTHS = st.integers(1, 6)
TABLES = st.builds(
    lambda blocks, dense, classes, side: vgg(blocks, dense, classes, side * 2 ** len(blocks)),
    st.lists(st.lists(WIDTHS, min_size=1, max_size=4), min_size=1, max_size=5),
    st.tuples(WIDTHS, WIDTHS),
    WIDTHS,
    st.integers(1, 4),
)


@given(table=TABLES)
def test_a_table_is_known_from_its_shapes_and_survives_json(table: LayerTable) -> None:
    assert vgg_of(table.tensors, table.size[0]) == table
    assert LayerTable.from_json(json.loads(json.dumps(asdict(table)))) == table
    assert table.parameters == sum(int(np.prod(shape)) for shape in table.tensors.values())
    assert vgg(blocks_of(table), (table["fc1"].shape[0], table["fc2"].shape[0]), table.classes, table.size[0]) == table


@pytest.mark.parametrize("name", list(TINY.tensors))
def test_each_missing_tensor_is_noticed(name: str) -> None:
    shapes = {key: shape for key, shape in TINY.tensors.items() if key != name}
    inside = (
        name.startswith("features")
        and name.endswith("weight")
        and name not in ("features.0.weight", "features.28.weight")
    )
    words = r"convolution is missing between|tensor features\.\d+\.weight" if inside else r"is missing|has shape"
    with pytest.raises(ValueError, match=words):
        vgg_of(shapes)


def test_differences_are_named_in_the_order_of_the_computation() -> None:
    wrong = TINY.tensors | {"features.10.bias": (1,), "features.2.bias": (1,), "classifier.0.bias": (1,)}
    with pytest.raises(ValueError, match=r"features\.2\.bias has shape \(1,\), expected \(8,\)"):
        vgg_of(wrong, 64)


NAMES = st.one_of(
    st.sampled_from(
        [*TINY.tensors, "features.01.weight", "features.².weight", "features..weight", "features.1.weight"]
    ),
    st.integers(-3, 10**30).map(lambda i: f"features.{i}.weight"),
    st.text(max_size=8),
)
SHAPES = st.lists(st.integers(0, 10**12), max_size=5).map(tuple)


@settings(max_examples=30)
@given(changes=st.dictionaries(NAMES, SHAPES, max_size=6), base=st.booleans())
def test_hostile_shapes_are_a_value_error_or_a_table(changes: dict[str, Any], base: bool) -> None:
    shapes = (TINY.tensors if base else {}) | changes
    try:
        table = vgg_of(shapes)
    except ValueError:
        return
    assert table.tensors == shapes


# Stages


def test_the_stages_of_vgg16_in_the_order_of_the_computation() -> None:
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


def test_which_stages_are_whole() -> None:
    whole = {stage.name for stage in stages.stages(VGG16) if stage.whole and stage.size > 4096}
    assert whole == {"pixels", "activations/block5_conv3", "gradients/block5_conv3", "vanilla/raw", "smoothgrad/raw"}
    assert all(stage.kept == min(stage.size, 4096) for stage in stages.stages(VGG16) if stage.name not in whole)


@pytest.mark.parametrize("stage", stages.stages(VGG16), ids=lambda stage: stage.name)
def test_places_are_distinct_and_inside(stage: stages.Stage) -> None:
    places = stage.places()
    assert len(np.unique(places)) == stage.kept
    assert 0 <= places[0] <= places[-1] < stage.size


def test_places_are_the_same_forever() -> None:
    """Files written long ago must stay comparable."""
    places = stages.sampled_places("activations/block1_conv1", (224, 224, 64), 4096)
    assert places[[0, 1, 2047, 4095]].tolist() == [309, 1496, 1604901, 3210488]


def test_methods_by_any_spelling() -> None:
    assert canonical_names(["GradCAM++", "vanilla", "gradcam_plus_plus"]) == ("gradcam_plus_plus", "vanilla")
    assert canonical_names("gradcam++, vanilla") == ("gradcam_plus_plus", "vanilla")
    assert in_order(["gradcam_plus_plus", "vanilla"]) == ("vanilla", "gradcam_plus_plus")
    for wrong, words in (("lime", "'lime' is unknown"), ("gradcan", "did you mean gradcam"), ([], "no method")):
        with pytest.raises(ValueError, match=words):
            canonical_names(wrong)
    with pytest.raises(ValueError, match="is unknown"):
        canonical_names("smoothgrad@captum", among=REFERENCE)
