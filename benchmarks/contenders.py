"""Who is timed: each draws maps of the same photographs, weights and classes in one call, from decoded pixels to maps on the host.

A framework is imported by the contender that needs it: TensorFlow and PyTorch never meet in one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.contract.methods import DEFAULT, FASTER_CHANNELS, METHODS, REFERENCE
from parity.contract.network import Network
from parity.contract.stages import PRECISIONS
from torch_impl.images import Photograph

if TYPE_CHECKING:
    from torch import Tensor, nn

Photographs = list[Photograph]

Maps = Mapping[str, np.ndarray]
"""Map → array (N, …)."""

Draw = Callable[[Photographs, list[int], Sequence[str], int], Maps]
"""(photographs, their classes, names of maps, SmoothGrad's samples) → the maps."""

GROUPS = {"all": DEFAULT, "cams": tuple(name for name in DEFAULT if METHODS[name].at_layer)}
"""Jobs of several maps; every map by itself is a job, too."""

JOBS = (*GROUPS, *DEFAULT)
"""What is timed where nothing else is asked for."""

NOISY = tuple(name for name in DEFAULT if METHODS[name].noisy)
"""Those of them that take most of the time: SmoothGrad."""

MICRO_BATCH = 4
"""Noisy copies in one pass of stock Captum: all at once, as its README shows, would take 20 times the memory."""


def maps_of(job: str) -> tuple[str, ...]:
    """The maps that a job draws."""
    return GROUPS.get(job, (job,))


def title_of(job: str) -> str:
    """A job's name for a reader."""
    return f"all {len(DEFAULT)} maps" if job == "all" else " and ".join(METHODS[name].title for name in maps_of(job))


def ours(engine: str, network: Network, device: str, precision: str) -> Draw:
    """`Explainer.vgg16`, as `attention-maps explain` uses it: with feature maps on large pages."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from torch_impl.explainer import Explainer

    explainer = Explainer.vgg16(network, device=device, precision=precision, engine=engine)

    def draw(photographs: Photographs, classes: list[int], maps: Sequence[str], samples: int) -> Maps:
        return explainer(photographs, classes, maps, n_samples=samples).maps

    return draw


def decoded(network: Network, device: str, precision: str) -> Draw:
    """`Explainer.compute`, as runs over large sets use it: from one array of pixels to raw maps."""
    from torch_impl.explainer import Explainer

    explainer = Explainer.vgg16(network, device=device, precision=precision, engine="shared")
    stacked: dict[int, np.ndarray] = {}  # by their number: putting them together is no part of what is timed

    def draw(photographs: Photographs, classes: list[int], maps: Sequence[str], samples: int) -> Maps:
        if len(photographs) not in stacked:
            stacked[len(photographs)] = np.stack([p.pixels for p in photographs])
        raw = explainer.compute(stacked[len(photographs)], classes, maps, n_samples=samples).raw
        return {name: values.cpu().numpy() for name, values in raw.items()}

    return draw


OneMap = Callable[["nn.Module", "nn.Module", str, "Tensor", list[int], int], np.ndarray]
"""(model, the CAMs' layer, name of a map, preprocessed photographs, their classes, SmoothGrad's samples) → the map."""


def plain(one_map: OneMap, network: Network, device: str, precision: str) -> Draw:
    """A library as one would call it: map by map, on torchvision's network as it comes, its parameters with gradients."""
    from torch.nn import ReLU

    from torch_impl.network import build
    from torch_impl.precision import numerics
    from torch_impl.preprocess import preprocess

    model = build(network).to(device).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, ReLU):
            module.inplace = False  # as the libraries' READMEs advise
    layer = model.get_submodule(network.table.modules[network.table.target])

    def draw(photographs: Photographs, classes: list[int], maps: Sequence[str], samples: int) -> Maps:
        with numerics(precision):
            inputs = preprocess(np.stack([p.pixels for p in photographs]), input=network.input, device=device)
            return {name: one_map(model, layer, name, inputs, classes, samples) for name in maps}

    return draw


def stock(
    model: nn.Module, layer: nn.Module, name: str, inputs: Tensor, classes: list[int], samples: int
) -> np.ndarray:
    """Captum and pytorch-grad-cam as their READMEs call them."""
    import pytorch_grad_cam
    import torch
    from captum.attr import NoiseTunnel, Saliency
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from torch_impl.stock import CLASSES

    if METHODS[name].at_layer:
        kind = few_channels() if name == "faster_scorecam" else getattr(pytorch_grad_cam, CLASSES[name])
        cam = kind(model=model, target_layers=[layer])
        drawn: np.ndarray = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(c) for c in classes])
        cam.activations_and_grads.release()
        return drawn
    asked: dict[str, Any] = {"target": torch.tensor(classes, device=inputs.device)}
    explained: Any = Saliency(model)
    if METHODS[name].noisy:
        explained = NoiseTunnel(explained)
        asked |= {"nt_type": "smoothgrad", "stdevs": 0.2, "nt_samples": samples}
        asked["nt_samples_batch_size"] = 1 if len(inputs) > 1 else MICRO_BATCH
    gradients = explained.attribute(inputs.clone().requires_grad_(), **asked)
    return gradients.amax(dim=1).detach().cpu().numpy()  # type: ignore[no-any-return]


def few_channels() -> Any:
    """pytorch-grad-cam's ScoreCAM, which has no such choice, over the feature maps that Faster-ScoreCAM takes: the same work."""
    from pytorch_grad_cam import ScoreCAM

    class Few(ScoreCAM):  # type: ignore[misc]  # pytorch-grad-cam has no type information
        def get_cam_image(
            self, inputs: Tensor, layer: nn.Module, targets: Any, activations: np.ndarray, *more: Any
        ) -> np.ndarray:
            varied = np.argsort(-activations.std((2, 3)), 1)[:, :FASTER_CHANNELS, None, None]
            few = np.take_along_axis(activations, varied, 1)
            return super().get_cam_image(inputs, layer, targets, few, *more)  # type: ignore[no-any-return]

    return Few


TORCH_CAM = {"gradcam": "GradCAM", "gradcam_plus_plus": "GradCAMpp"}
"""Map → torch-cam's class."""


def torch_cam(
    model: nn.Module, layer: nn.Module, name: str, inputs: Tensor, classes: list[int], samples: int
) -> np.ndarray:
    """torch-cam as its README calls it, then enlarged as its README does (bilinear, by torchvision)."""
    from torchcam import methods
    from torchvision.transforms.functional import resize

    with getattr(methods, TORCH_CAM[name])(model, layer) as extractor:
        (cam,) = extractor(classes, model(inputs))
    return resize(cam, list(inputs.shape[-2:])).detach().cpu().numpy()  # type: ignore[no-any-return]


def tf_keras_vis(network: Network, device: str, precision: str) -> Draw:
    """tf-keras-vis as the lab calls it: all photographs in one call of each method.

    Each method's object is made once, as in the lab, where a cell that is run again uses it again.
    """
    from keras_ref import model as keras_model

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


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        make: (network, device, number format) → how it draws.
        maps: that it draws.
        precisions: number formats that it can be told to compute in.
        package: what must be installed for it.
        exact: whether it claims to draw the reference's maps.
        kinds: of devices that it is timed on.
        usual: whether it is timed where nobody is named.
    """

    make: Callable[[Network, str, str], Draw]
    maps: tuple[str, ...]
    precisions: tuple[str, ...]
    package: str = "torch_impl"
    exact: bool = False
    kinds: tuple[str, ...] = ("cpu", "cuda")
    usual: bool = True


_ALL, _FLOAT32 = tuple(PRECISIONS), ("fp32", "tf32")

CONTENDERS = {
    "shared": Contender(partial(ours, "shared"), REFERENCE, _ALL, exact=True),
    "library": Contender(partial(ours, "library"), REFERENCE, _ALL, exact=True),
    "stock": Contender(partial(plain, stock), REFERENCE, _FLOAT32),
    "torch-cam": Contender(partial(plain, torch_cam), tuple(TORCH_CAM), _FLOAT32, package="torchcam"),
    "tf-keras-vis": Contender(tf_keras_vis, REFERENCE, ("fp32",), package="tf_keras_vis", kinds=("cpu",)),
    "decoded": Contender(decoded, REFERENCE, _ALL, usual=False),
}
"""Everybody, by name, in the order of the columns."""
