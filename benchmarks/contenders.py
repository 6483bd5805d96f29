"""Who is timed: each draws the same maps of the same photographs with the same weights, classes and number of passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import NoiseTunnel, Saliency
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from parity.contract.network import Network
from torch_impl import images, vgg16
from torch_impl.explainer import Explainer
from torch_impl.images import Photograph

Job = Callable[[list[Photograph], list[int], int], dict[str, np.ndarray]]
"""(photographs, classes, SmoothGrad samples) → method → maps (N, 224, 224)."""

MICRO_BATCH = 4
"""Noisy copies in one pass of stock Captum: all at once, as its README shows, would take 20 times the memory."""


def ours(network: Network, device: str, precision: str = "fp32") -> Job:
    """`Explainer.vgg16`, as `attention-maps explain` uses it."""
    explainer = Explainer.vgg16(network, device=device, precision=precision)

    def run(photographs: list[Photograph], classes: list[int], samples: int) -> dict[str, np.ndarray]:
        return dict(explainer(photographs, classes, n_samples=samples).maps)

    return run


def stock(network: Network, device: str) -> Job:
    """Captum and pytorch-grad-cam as their READMEs call them, on torchvision's network as it comes (with gradients)."""
    model = vgg16.build(network).to(device).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # as both READMEs advise
    layer = [model.get_submodule(vgg16.TARGET_LAYER)]

    def run(photographs: list[Photograph], classes: list[int], samples: int) -> dict[str, np.ndarray]:
        inputs = images.preprocess(np.stack([p.pixels for p in photographs]), device=device)
        target = torch.tensor(classes, device=device)
        targets = [ClassifierOutputTarget(c) for c in classes]
        maps = {}
        inputs.requires_grad_()
        maps["vanilla"] = Saliency(model).attribute(inputs, target=target).amax(dim=1)
        maps["smoothgrad"] = (
            NoiseTunnel(Saliency(model))
            .attribute(inputs, nt_type="smoothgrad", nt_samples=samples, nt_samples_batch_size=1 if len(inputs) > 1
                       else MICRO_BATCH, stdevs=0.2, target=target)
            .amax(dim=1)
        )  # fmt: skip
        drawn = {name: tensor.detach().cpu().numpy() for name, tensor in maps.items()}
        drawn["gradcam"] = GradCAM(model=model, target_layers=layer)(input_tensor=inputs, targets=targets)
        drawn["gradcam_plus_plus"] = GradCAMPlusPlus(model=model, target_layers=layer)(
            input_tensor=inputs, targets=targets
        )
        return drawn

    return run


CONTENDERS: dict[str, Callable[[Network, str], Job]] = {"ours": ours, "stock": stock}
