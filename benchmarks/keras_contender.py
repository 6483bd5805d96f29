"""tf-keras-vis as the lab calls it: all photographs in one call of each method. Never in a process with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.contenders import Draw, Maps, Photographs
from keras_ref import model as keras_model
from parity.contract.methods import FASTER_CHANNELS
from parity.contract.network import Network


def make(network: Network) -> Draw:
    """All maps.

    Each method's object is made once, as in the lab, where a cell that is run again uses it again.
    """
    keras_model.load_frameworks("fp32")
    from keras.applications.vgg16 import preprocess_input
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.layercam import Layercam
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.scorecam import Scorecam
    from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
    from tf_keras_vis.utils.scores import CategoricalScore

    model = keras_model.build(network.table)
    keras_model.load(model, network)

    def drawer(kind: Any, **options: Any) -> Callable[..., Any]:
        return partial(kind(model, model_modifier=ReplaceToLinear(), clone=False), **options)

    drawers = {
        "vanilla": drawer(Saliency),
        "smoothgrad": drawer(Saliency, smooth_noise=0.2),
        "gradcam": drawer(Gradcam, penultimate_layer=-1),
        "gradcam_plus_plus": drawer(GradcamPlusPlus, penultimate_layer=-1),
        "layercam": drawer(Layercam, penultimate_layer=-1),
        "scorecam": drawer(Scorecam, penultimate_layer=-1),
        "faster_scorecam": drawer(Scorecam, penultimate_layer=-1, max_N=FASTER_CHANNELS),
    }

    def draw(photographs: Photographs, classes: list[int], maps: Sequence[str], samples: int) -> Maps:
        inputs = preprocess_input(np.stack([p.pixels for p in photographs]).astype(np.float32))
        np.random.seed(0)  # one photograph's noise is then the port's
        drawn = {}
        for name in maps:
            copies = {"smooth_samples": samples} if name == "smoothgrad" else {}
            drawn[name] = np.asarray(drawers[name](CategoricalScore(classes), inputs, **copies))
        return drawn

    return draw
