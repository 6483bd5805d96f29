"""The maps by plain autograd, written out: what any capture must give, for any model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from parity.contract.noise import unit_noise


def captured(model: nn.Module, layer: nn.Module, inputs: Tensor, score) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output, ∂Σscore/∂that output, and ∂Σscore/∂inputs; the output is kept before anything works on it in place."""
    model = copy.deepcopy((model, layer))
    model, layer = model[0].eval(), model[1]
    kept: list[Tensor] = []

    def keep(module, args, output):
        kept.append(output if output.requires_grad else output.requires_grad_())
        return output.clone()

    leaf = inputs.clone().requires_grad_()
    handle = layer.register_forward_hook(keep)
    total = score(model(leaf)).sum()
    handle.remove()
    gradients = torch.autograd.grad(total, [kept[0], leaf])
    return kept[0].detach(), gradients[0], gradients[1]


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """Σ mean(G)·A of (N, K, h, w) twice, signed."""
    return (g.mean(dim=(2, 3), keepdim=True) * a).sum(dim=1)


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """With exp(score) divided out, as the paper and tf-keras-vis write it; signed."""
    first, second, third = g, g**2, g**3
    denominator = 2 * second + third * a.sum(dim=(2, 3), keepdim=True)
    alpha = torch.where(second == 0, 0, second / torch.where(denominator == 0, 1, denominator))
    sums = alpha.sum(dim=(2, 3), keepdim=True)
    alpha = alpha / torch.where(sums == 0, 1, sums)
    weights = (first.clamp(min=0) * alpha).sum(dim=(2, 3), keepdim=True)
    return (weights * a).sum(dim=1)


def vanilla(gradients: Tensor) -> Tensor:
    """max over channels of |gradient|."""
    return gradients.abs().max(dim=1).values


def smoothgrad(model: nn.Module, inputs: Tensor, score, n_samples: int, noise_level: float, seed: int) -> Tensor:
    """One photograph and copy at a time."""
    model = copy.deepcopy(model).eval()
    maps = []
    for i, image in enumerate(inputs):
        sigma = float(noise_level * (image.max() - image.min()))
        total = torch.zeros_like(image)
        for unit in unit_noise(seed, n_samples, tuple(image.permute(1, 2, 0).shape)):
            noise = torch.from_numpy(sigma * unit).permute(2, 0, 1).to(image)
            leaf = (image + noise)[None].requires_grad_()
            total += torch.autograd.grad(score(model(leaf), i).sum(), leaf)[0][0].abs()
        maps.append((total / n_samples).max(dim=0).values)
    return torch.stack(maps)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch statistics too: fresh ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return model


def with_wide_gradients(model):
    """The same forward pass, bit for bit, and so the same ReLUs and max-pools; gradients in float64.

    Against a wider forward pass, a map tells how many of them switch by rounding: as many as the device likes.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            model.set_submodule(name, WideGradients(module))
    return model


class WideGradients(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.narrow, self.wide = layer, copy.deepcopy(layer).double()

    def forward(self, x):
        slopes = self.wide(x.double())
        return self.narrow(x.detach().to(self.narrow.weight.dtype)).double() + (slopes - slopes.detach())
