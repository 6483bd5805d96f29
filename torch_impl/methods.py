"""Each map as a function of tensors, and the table of all of them: the only place where the parts are put together.

For people who already have a model and inputs. Every function leaves the model as it was, and returns maps (N, H, W) in
[0, 1], float32 (float64 for float64 inputs), on the inputs' device. On CUDA they are computed in strict float32, whatever
PyTorch's TF32 switches say; `raw_maps` leaves the switches alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_impl import cam, saliency
from torch_impl.arrays import Images, Logits, Maps, Target
from torch_impl.batching import BatchSize
from torch_impl.names import METHOD_NAMES, canonical_name, check_stock
from torch_impl.postprocess import normalize, upsample
from torch_impl.precision import at_least_fp32, name_of, numerics
from torch_impl.saliency import Progress


@dataclass(frozen=True)
class Settings:
    """What a method may need beside model, inputs and target.

    Attributes:
        target_layer: of the CAMs: a module of the model, or its name.
        noise_level: SmoothGrad's σ as a fraction of each image's range.
        n_samples: SmoothGrad's noisy copies.
        seed: of the noise.
        batch_size: images, or noisy copies, in one pass; "auto" or a number.
        progress: called with (passes done, passes in all).
    """

    target_layer: str | nn.Module = ""
    noise_level: float = 0.2
    n_samples: int = 20
    seed: int = 0
    batch_size: BatchSize = "auto"
    progress: Progress | None = None


class MapError(ArithmeticError):
    """A map is not finite; the message says which and what to do."""


Raw = Callable[[nn.Module, Images, Target, Settings], Tensor]


def _vanilla(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    return saliency.vanilla_saliency(model, inputs, target, batch_size=s.batch_size, progress=s.progress)


def _smoothgrad(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    return saliency.smoothgrad(
        model,
        inputs,
        target,
        noise_level=s.noise_level,
        n_samples=s.n_samples,
        seed=s.seed,
        batch_size=s.batch_size,
        progress=s.progress,
    )


def _gradcam(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    return cam.grad_cam(model, inputs, target, target_layer=s.target_layer, batch_size=s.batch_size)


def _gradcam_plus_plus(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    return cam.grad_cam_plus_plus(model, inputs, target, target_layer=s.target_layer, batch_size=s.batch_size)


def _stock_gradcam(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    from torch_impl import stock

    return stock.pytorch_grad_cam_map(
        "gradcam", model, inputs, target, target_layer=s.target_layer, batch_size=s.batch_size
    )


def _stock_gradcam_plus_plus(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    from torch_impl import stock

    return stock.pytorch_grad_cam_map(
        "gradcam_plus_plus", model, inputs, target, target_layer=s.target_layer, batch_size=s.batch_size
    )


def _stock_smoothgrad(model: nn.Module, inputs: Images, target: Target, s: Settings) -> Tensor:
    from torch_impl import stock

    return stock.captum_smoothgrad(model, inputs, target, noise_level=s.noise_level, n_samples=s.n_samples, seed=s.seed)


METHODS: dict[str, Raw] = {
    "vanilla": _vanilla,
    "smoothgrad": _smoothgrad,
    "gradcam": _gradcam,
    "gradcam_plus_plus": _gradcam_plus_plus,
    "gradcam@pytorch-grad-cam": _stock_gradcam,
    "gradcam_plus_plus@pytorch-grad-cam": _stock_gradcam_plus_plus,
    "smoothgrad@captum": _stock_smoothgrad,
}
"""Name → raw map, at the layer's or the image's resolution. The last three are the libraries' own, for comparison."""

assert tuple(METHODS) == METHOD_NAMES


def raw_maps(method: str, model: nn.Module, inputs: Images, target: Target, settings: Settings) -> Tensor:
    """A method's map before `finish`: (N, h, w) or (N, H, W), ≥ 0.

    Args:
        method: a name of `METHODS`, or the alias `gradcam++`.
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices.
        settings: for this method.

    Raises:
        ValueError: unknown method, or settings that the method cannot use.
        MapError: a value is not finite.
    """
    name = canonical_name(method)
    check_stock([name], name_of(inputs.dtype))
    return finite(method, METHODS[name](model, inputs, target, settings))


def finite(method: str, raw: Tensor) -> Tensor:
    """The raw maps (N, …) themselves.

    Raises:
        MapError: a value is not finite; the message counts the photographs.
    """
    if bool(torch.isfinite(raw).all()):
        return raw
    broken = [str(i) for i, one in enumerate(raw) if not torch.isfinite(one).all()]
    raise MapError(
        f"{method}: the map of photograph {', '.join(broken)} (counted from 0) is not finite: "
        "the inputs hold NaN, or the number format is too narrow; try fp32"
    )


def logits_of(model: nn.Module, inputs: Images) -> Logits:
    """A forward pass, and a look at what came out.

    Raises:
        ValueError: the model's output is not (N, classes).
        MapError: a logit is not finite.
    """
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model's output has shape {shape}; expected logits (N, classes)")
    if not torch.isfinite(logits).all():
        raise MapError("the logits are not finite: the number format is too narrow, or the inputs hold NaN; try fp32")
    return logits


def finish(raw: Tensor, size: tuple[int, int]) -> Maps:
    """Enlarge to the image's size where the map is smaller, then min–max each map.

    Args:
        raw: (N, h, w), any range.
        size: (H, W) of the image.

    Returns:
        In [0, 1]; a constant map is 0.
    """
    full = raw.to(at_least_fp32(raw.dtype))
    return normalize(full if tuple(raw.shape[-2:]) == tuple(size) else upsample(full, size))


def _drawn(method: str, model: nn.Module, inputs: Images, target: Target, settings: Settings) -> Maps:
    size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
    with numerics(name_of(inputs.dtype)):
        return finish(raw_maps(method, model, inputs, target, settings), size)


def vanilla(model: nn.Module, inputs: Images, target: Target, *, batch_size: BatchSize = "auto") -> Maps:
    """Vanilla saliency: see `saliency.vanilla_saliency`; normalized."""
    return _drawn("vanilla", model, inputs, target, Settings(batch_size=batch_size))


def smoothgrad(
    model: nn.Module,
    inputs: Images,
    target: Target,
    *,
    noise_level: float = 0.2,
    n_samples: int = 20,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Maps:
    """SmoothGrad: see `saliency.smoothgrad`; normalized."""
    settings = Settings(noise_level=noise_level, n_samples=n_samples, seed=seed, batch_size=batch_size)
    return _drawn("smoothgrad", model, inputs, target, settings)


def gradcam(
    model: nn.Module, inputs: Images, target: Target, *, target_layer: str | nn.Module, batch_size: BatchSize = "auto"
) -> Maps:
    """Grad-CAM: see `cam.grad_cam`; enlarged to the image, then normalized."""
    return _drawn("gradcam", model, inputs, target, Settings(target_layer=target_layer, batch_size=batch_size))


def gradcam_plus_plus(
    model: nn.Module, inputs: Images, target: Target, *, target_layer: str | nn.Module, batch_size: BatchSize = "auto"
) -> Maps:
    """Grad-CAM++: see `cam.grad_cam_plus_plus`; enlarged to the image, then normalized."""
    return _drawn(
        "gradcam_plus_plus", model, inputs, target, Settings(target_layer=target_layer, batch_size=batch_size)
    )
