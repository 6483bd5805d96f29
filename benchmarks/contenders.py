"""Who is timed on PyTorch: each draws the same maps of the same photographs with the same weights and classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from captum.attr import NoiseTunnel, Saliency
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from parity.contract.network import Network
from torch_impl import vgg16
from torch_impl.explainer import Explainer
from torch_impl.images import Photograph
from torch_impl.preprocess import preprocess

Job = Callable[[list[Photograph], list[int], Sequence[str], int], dict[str, np.ndarray]]
"""(photographs, classes, methods, SmoothGrad samples) → method → maps (N, 224, 224)."""

MICRO_BATCH = 4
"""Noisy copies in one pass of stock Captum: all at once, as its README shows, would take 20 times the memory."""


def ours(engine: str) -> Callable[[Network, str, str], Job]:
    """`Explainer.vgg16`, as `attention-maps explain` uses it."""

    def make(network: Network, device: str, precision: str) -> Job:
        explainer = Explainer.vgg16(network, device=device, precision=precision, engine=engine)

        def run(
            photographs: list[Photograph], classes: list[int], methods: Sequence[str], samples: int
        ) -> dict[str, np.ndarray]:
            return dict(explainer(photographs, classes, methods, n_samples=samples).maps)

        return run

    return make


def decoded(network: Network, device: str, precision: str) -> Job:
    """`Explainer.compute`, as runs over large sets use it: from one array of pixels to raw maps on the device."""
    explainer = Explainer.vgg16(network, device=device, precision=precision, engine="shared")
    stacked: dict[
        int, np.ndarray
    ] = {}  # the same photographs each time: putting them together is no part of what is timed

    def run(
        photographs: list[Photograph], classes: list[int], methods: Sequence[str], samples: int
    ) -> dict[str, np.ndarray]:
        if len(photographs) not in stacked:
            stacked[len(photographs)] = np.stack([p.pixels for p in photographs])
        explainer.compute(stacked[len(photographs)], classes, methods, n_samples=samples)
        return {}

    return run


def _plain_network(network: Network, device: str) -> torch.nn.Module:
    """torchvision's network as it comes: contiguous, its parameters with gradients."""
    model = vgg16.build(network).to(device).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # as the libraries' READMEs advise
    return model


def _inputs(photographs: list[Photograph], device: str) -> torch.Tensor:
    return preprocess(np.stack([p.pixels for p in photographs]), device=device)


def stock(network: Network, device: str, precision: str) -> Job:
    """Captum and pytorch-grad-cam as their READMEs call them."""
    model = _plain_network(network, device)
    layer = [model.get_submodule(vgg16.TARGET_LAYER)]

    def run(
        photographs: list[Photograph], classes: list[int], methods: Sequence[str], samples: int
    ) -> dict[str, np.ndarray]:
        inputs = _inputs(photographs, device)
        target = torch.tensor(classes, device=device)
        targets = [ClassifierOutputTarget(c) for c in classes]
        drawn: dict[str, np.ndarray] = {}
        if "vanilla" in methods:
            maps = Saliency(model).attribute(inputs.requires_grad_(), target=target).amax(dim=1)
            drawn["vanilla"] = maps.detach().cpu().numpy()
        if "smoothgrad" in methods:
            maps = NoiseTunnel(Saliency(model)).attribute(
                inputs.requires_grad_(),
                nt_type="smoothgrad",
                nt_samples=samples,
                nt_samples_batch_size=1 if len(inputs) > 1 else MICRO_BATCH,
                stdevs=0.2,
                target=target,
            )
            drawn["smoothgrad"] = maps.amax(dim=1).detach().cpu().numpy()
        for name, method in (("gradcam", GradCAM), ("gradcam_plus_plus", GradCAMPlusPlus)):
            if name in methods:
                cam = method(model=model, target_layers=layer)
                drawn[name] = cam(input_tensor=inputs.detach(), targets=targets)
                cam.activations_and_grads.release()
        return drawn

    return run


def torch_cam(network: Network, device: str, precision: str) -> Job:
    """torch-cam as its README calls it, then enlarged as its README does (bilinear, by torchvision)."""
    from torchcam.methods import GradCAM as Cam
    from torchcam.methods import GradCAMpp as CamPlusPlus
    from torchvision.transforms.functional import resize

    model = _plain_network(network, device)

    def run(
        photographs: list[Photograph], classes: list[int], methods: Sequence[str], samples: int
    ) -> dict[str, np.ndarray]:
        inputs = _inputs(photographs, device)
        drawn: dict[str, np.ndarray] = {}
        for name, method in (("gradcam", Cam), ("gradcam_plus_plus", CamPlusPlus)):
            if name in methods:
                with method(model, vgg16.TARGET_LAYER) as extractor:
                    (cam,) = extractor(classes, model(inputs))
                drawn[name] = resize(cam, list(inputs.shape[-2:])).detach().cpu().numpy()
        return drawn

    return run


CONTENDERS: dict[str, Callable[[Network, str, str], Job]] = {
    "shared": ours("shared"),
    "library": ours("library"),
    "decoded": decoded,
    "stock": stock,
    "torch-cam": torch_cam,
}
