"""Several target layers: a map each, and a row each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import close
from test_explainer import explainer_of
from tolerances import EXACT

from torch_impl import Explainer
from torch_impl.capture.target_layer import LayerError
from torch_impl.preserve import ModelError

LAYERS = ["features.22", "features.29"]


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.RandomState(4)
    return [generator.randint(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]


def test_each_layer_gets_the_maps_that_it_gets_alone(tiny, pictures):
    """Saliency, which has no layer, is drawn once and stands beside both."""
    asked = "gradcam++,vanilla,layercam"
    both = explainer_of(tiny, target_layer=LAYERS)(pictures, [[2, 5], [7]], asked)
    count = 3  # two classes of one photograph, one of the other
    for number, layer in enumerate(LAYERS):
        alone = explainer_of(tiny, target_layer=layer)(pictures, [[2, 5], [7]], asked)
        rows = slice(number * count, (number + 1) * count)
        for name in alone.maps:
            close(torch.from_numpy(both[name][rows]), torch.from_numpy(alone[name]), EXACT)
        for ours, own in zip(both.manifest["photographs"][rows], alone.manifest["photographs"], strict=True):
            assert ours == {**own, "layer": layer}
    assert not np.allclose(both["layercam"][:count], both["layercam"][count:]), "never a mixture"
    assert both.layers == [LAYERS[0]] * count + [LAYERS[1]] * count
    assert (both.manifest["target_layer"], both.origin.explainer.more_layers) == (LAYERS, LAYERS[1:])
    assert [axis.get_subplotspec().rowspan.start for axis in both.figure("layercam").axes] == [0, 0, 0, 1, 1, 1]
    assert len(both.figure("vanilla").axes) == count, "saliency once"
    (page,) = both.overview()
    titles = [axis.get_title().split("\n")[1] for axis in page.axes[1::4]]
    assert titles == LAYERS * count, "a photograph's layers one below the other"


def test_what_is_asked_of_one_layer_is_refused_of_several(tiny, pictures):
    explainer = explainer_of(tiny, target_layer=LAYERS)
    with pytest.raises(LayerError, match=r"several target layers \(features.22, features.29\)"):
        explainer.compute(np.stack(pictures))
    with pytest.raises((LayerError, ModelError), match="several target layers"):
        explainer(pictures, 2, "gradcam").faithfulness()
    with pytest.raises(LayerError, match="empty list"):
        Explainer(explainer.model, [])
    with pytest.raises(LayerError, match=r"no layer 'features\.99'"):
        Explainer(explainer.model, ["features.22", "features.99"])


def test_layers_by_keras_name_module_and_twice(tiny, pictures):
    explainer = explainer_of(tiny, target_layer=["block4_conv3", "features.22", "block5_conv3"])
    assert [explainer.target_layer, *explainer.more_layers] == LAYERS
    modules = [explainer.model.get_submodule(name) for name in LAYERS]
    again = Explainer(explainer.model, modules, precision="fp32")  # on a copy
    assert [again.target_layer, *again.more_layers] == LAYERS
    assert "layer" not in explainer(pictures, 2, "vanilla").manifest["photographs"][0], "nothing is drawn on a layer"


def test_a_name_of_no_layer_is_told_with_keras_s_nearest(tiny):
    with pytest.raises(LayerError, match=r"no layer 'block5_conv4'; nearest: block5_conv\d, "):
        explainer_of(tiny, target_layer=["block5_conv3", "block5_conv4"])
    assert explainer_of(tiny, target_layer="avgpool").target_layer == "avgpool"  # torchvision's names as they are
