"""The fast engine: whatever set of maps is asked for, in the fewest forward and backward passes.

The library engine draws each map by itself: a forward and a backward pass for vanilla saliency, one of each for either CAM,
and a forward pass for the logits. Here one capture serves them all. The CAMs alone need no gradient below their layer, so the
backward pass ends there, and with it the memory for the layers below. Only SmoothGrad's noisy copies are passes of their own.

The maps are the library engine's: the same formulas (`cam`, `saliency`), the same noise; the tests compare the two in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from torch_impl import cam, saliency
from torch_impl.arrays import ChannelWeights, FeatureMaps, Images, Logits, Target
from torch_impl.batching import BatchSize, Pieces, micro_batches, sized, taken
from torch_impl.methods import Settings, finite, logits_of
from torch_impl.names import REFERENCE_METHODS, canonical_name
from torch_impl.precision import at_least_fp32, score_scale
from torch_impl.preserve import preserved
from torch_impl.saliency import Progress

WEIGHTS: Mapping[str, Callable[[FeatureMaps, FeatureMaps], ChannelWeights]] = MappingProxyType(
    {
        "gradcam": lambda activations, gradients: cam.grad_cam_weights(gradients),
        "gradcam_plus_plus": cam.grad_cam_plus_plus_weights,
    }
)
"""Channel weights of either CAM from A and G."""


@dataclass(frozen=True, eq=False)
class Computed:
    """What one shared pass gives, on the inputs' device.

    Attributes:
        logits: (N, classes); float32, or float64 for float64 inputs.
        target: (N,) the explained class of each image, int64.
        raw: method → (N, h, w) for the CAMs, (N, H, W) for the saliency maps: ≥ 0, as `methods.raw_maps` gives them.
        seconds: `shared`: everything that one forward and backward pass gives; `smoothgrad`; `noise`: its one draw.
    """

    logits: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    raw: Mapping[str, Tensor] = field(repr=False)
    seconds: Mapping[str, float]


def shared_pass(
    model: nn.Module,
    inputs: Images,
    target: Target | None,
    methods: str | Sequence[str],
    settings: Settings,
    *,
    progress: Callable[[str], Progress] | None = None,
) -> Computed:
    """Raw maps and logits of a batch of images.

    Args:
        model: gives logits (N, classes). Comes back as it was.
        inputs: preprocessed.
        target: class indices; None: each image's top-1, from the same pass.
        methods: of `names.REFERENCE_METHODS`; the alias `gradcam++` too. None at all gives the logits alone.
        settings: `target_layer` for the CAMs; SmoothGrad's; `batch_size`. Its `progress` is not used here.
        progress: gives, for a pass's name (`shared`, `smoothgrad`), what is called after each micro-batch.

    Raises:
        ValueError: a method that this engine does not draw (the libraries' own), or settings out of range.
        LayerError: no such layer, or one that cannot carry a map.
        MapError: logits or a map are not finite.

    Matches: `methods.raw_maps`, method by method.
    """
    names = [canonical_name(name) for name in ([methods] if isinstance(methods, str) else methods)]
    if foreign := [name for name in names if name not in REFERENCE_METHODS]:
        raise ValueError(
            f"the shared engine does not draw {foreign[0]}: it is a library's own call; use engine library"
        )
    cams = [name for name in WEIGHTS if name in names]
    raw: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    clock = time.perf_counter()
    logits, target, raw = _first_pass(
        model,
        inputs,
        target,
        layer=cam.find_layer(model, settings.target_layer) if cams else None,
        cams=cams,
        vanilla="vanilla" in names,
        batch_size=sized(settings.batch_size, model, inputs, gradients="vanilla" in names),
        progress=progress("shared") if progress else None,
    )
    seconds["shared"] = _seconds_since(clock, inputs.device)
    if "smoothgrad" in names:
        clock = time.perf_counter()
        saliency.draw_noise(inputs, n_samples=settings.n_samples, seed=settings.seed)
        seconds["noise"] = time.perf_counter() - clock
        clock = time.perf_counter()
        raw["smoothgrad"] = saliency.smoothgrad(
            model,
            inputs,
            target,
            noise_level=settings.noise_level,
            n_samples=settings.n_samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            progress=progress("smoothgrad") if progress else None,
            gradients=absolute_gradients,
        )
        seconds["smoothgrad"] = _seconds_since(clock, inputs.device)
    ordered = {name: finite(name, raw[name]) for name in dict.fromkeys(names)}
    return Computed(logits, target, MappingProxyType(ordered), MappingProxyType(seconds))


def absolute_gradients(model: nn.Module, inputs: Images, target: Target) -> Images:
    """|∂score/∂inputs| straight from autograd; otherwise `saliency.absolute_gradients`."""
    leaf = inputs.detach().requires_grad_()
    score, scale = _score(model(leaf), target)
    (gradients,) = torch.autograd.grad(score, leaf)
    return gradients.to(at_least_fp32(inputs.dtype)).abs_().div_(scale)


def _first_pass(
    model: nn.Module,
    inputs: Images,
    target: Target | None,
    *,
    layer: nn.Module | None,
    cams: Sequence[str],
    vanilla: bool,
    batch_size: BatchSize,
    progress: Progress | None,
) -> tuple[Logits, Target, dict[str, Tensor]]:
    """Everything that one forward pass, and at most one backward pass, of each image gives."""
    found_logits, found_target = Pieces(len(inputs)), Pieces(len(inputs))
    found = {name: Pieces(len(inputs)) for name in (*cams, *(["vanilla"] if vanilla else []))}

    def one_pass(rows: list[int]) -> None:
        images = taken(inputs, rows).detach()
        if vanilla:
            images.requires_grad_()
        captured: list[Tensor] = []

        def capture(module: nn.Module, args: object, output: object) -> Tensor:
            activations = cam.checked_feature_maps(output)
            if not vanilla or not activations.requires_grad:  # nothing below is read: the backward pass ends here
                activations = activations.detach().requires_grad_()
            captured.append(activations)
            return activations.clone()  # what follows may work in place

        handle = layer.register_forward_hook(capture) if layer else None
        try:
            if found:
                logits = logits_of(model, images)
            else:
                with torch.inference_mode():
                    logits = logits_of(model, images)
        finally:
            if handle:
                handle.remove()
        classes = logits.detach().argmax(dim=1) if target is None else taken(target, rows)
        maps: dict[str, Tensor] = {}
        if found:
            if layer and len(captured) != 1:
                raise cam.LayerError(
                    f"the target layer ran {len(captured)} times in one pass: choose a layer that runs once"
                )
            if not logits.requires_grad:
                raise cam.LayerError(cam.NOT_ON_THE_WAY)
            score, scale = _score(logits, classes)
            wanted = ([images] if vanilla else []) + captured
            gradients = list(torch.autograd.grad(score, wanted, allow_unused=True))
            if cams and gradients[-1] is None:
                raise cam.LayerError(cam.NOT_ON_THE_WAY)
            if gradients[0] is None:
                raise ValueError("the model's logits do not depend on its inputs: there is no gradient to draw")
            wide = at_least_fp32(inputs.dtype)
            if vanilla:
                maps["vanilla"] = saliency.channel_maximum(gradients.pop(0).to(wide).abs_().div_(scale))
            if cams:
                a, g = captured[0].detach().to(wide), gradients.pop(0).to(wide).div(scale)
                maps |= {name: cam.class_activation_map(a, WEIGHTS[name](a, g)) for name in cams}
        # Only now, after everything that may run out of memory: see `micro_batches`.
        found_logits.put(rows, logits.detach().to(at_least_fp32(inputs.dtype)))
        found_target.put(rows, classes)
        for name, drawn in maps.items():
            found[name].put(rows, drawn)
        if progress:
            progress(rows[-1] + 1, len(inputs))

    with preserved(model):
        micro_batches(range(len(inputs)), batch_size, inputs.device, one_pass)
    return found_logits.whole, found_target.whole, {name: pieces.whole for name, pieces in found.items()}


def _score(logits: Logits, target: Target) -> tuple[Tensor, float]:
    """Σ of each image's own logit, so that each image's gradient is its own; scaled where float16 needs it."""
    scale = score_scale(logits.dtype)
    chosen = logits.gather(1, target[:, None])
    return (chosen.sum() if scale == 1 else (chosen.float() * scale).sum()), scale


def _seconds_since(clock: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock
