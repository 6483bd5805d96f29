"""tf-keras-vis as the lab calls it: all photographs in one call of each method. Never in a process with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keras_ref import model as keras_model
from parity.contract.methods import FASTER_CHANNELS
from parity.contract.network import Network
from torch_impl.images import Photograph


def make(network: Network) -> Callable[[list[Photograph], list[int], Sequence[str], int], dict[str, np.ndarray]]:
    """All maps; see `contenders.Draw`.

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
    saliency = Saliency(model, model_modifier=ReplaceToLinear(), clone=False)
    cams = {"gradcam": Gradcam, "gradcam_plus_plus": GradcamPlusPlus, "layercam": Layercam}
    cams |= {"scorecam": Scorecam, "faster_scorecam": Scorecam}
    drawers = {name: method(model, model_modifier=ReplaceToLinear(), clone=False) for name, method in cams.items()}

    def run(
        photographs: list[Photograph], classes: list[int], methods: Sequence[str], samples: int
    ) -> dict[str, np.ndarray]:
        inputs = preprocess_input(np.stack([p.pixels for p in photographs]).astype(np.float32))
        score = CategoricalScore(classes)
        drawn: dict[str, np.ndarray] = {}
        if "vanilla" in methods:
            drawn["vanilla"] = np.asarray(saliency(score, inputs))
        if "smoothgrad" in methods:
            np.random.seed(0)  # one photograph's noise is then the port's
            drawn["smoothgrad"] = np.asarray(saliency(score, inputs, smooth_samples=samples, smooth_noise=0.2))
        for name, drawer in drawers.items():
            if name in methods:
                few = {"max_N": FASTER_CHANNELS} if name == "faster_scorecam" else {}
                drawn[name] = np.asarray(drawer(score, inputs, penultimate_layer=-1, **few))
        return drawn

    return run
