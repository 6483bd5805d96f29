"""Score-CAM and Faster-ScoreCAM: no gradient, but a forward pass for every feature map."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from parity.contract.methods import FASTER_CHANNELS
from torch_impl.arrays import Cams, FeatureMaps, Images
from torch_impl.batching import Pieces
from torch_impl.capture.passes import Pass
from torch_impl.maps.gradcam import class_activation_map
from torch_impl.maps.postprocess import normalize, upsample
from torch_impl.maps.registry import drawn
from torch_impl.precision import at_least_fp32, sent
from torch_impl.preserve import ModelError

Channels = Int[Tensor, "N m"]
"""Some feature maps of each photograph, by their numbers."""


@drawn("scorecam", needs=("activations",))
def scorecam(p: Pass) -> Cams:
    """relu(Σ p_k·A_k), p_k the class's probability with the picture seen through feature map k; ≥ 0.

    Source: arXiv:1910.01279, Equations 4 to 6, without a baseline.
    Matches: tf-keras-vis 0.8.7, `Scorecam` on a linear output, with `expand_cam=False, normalize_cam=False`.
    Differs: pytorch-grad-cam takes a softmax over the channels of raw logits, and other masks; torch-cam masks that are
        normalized before they are enlarged, and logits above a baseline's.
    """
    count, channels = p.activations.shape[:2]
    return _weighted(p, torch.arange(channels, device=p.inputs.device).expand(count, -1))


@drawn("faster_scorecam", needs=("activations",))
def faster_scorecam(p: Pass) -> Cams:
    """Score-CAM over the m feature maps that vary most: `options.channels`, else 10, or all where there are fewer.

    Source: tabayashi0117, Faster-ScoreCAM.
    Matches: tf-keras-vis 0.8.7, `Scorecam(max_N=m)` for one photograph; a batch's union there depends on the neighbours.
    """
    channels = chosen_channels(p.activations, p.options.channels)
    p.keep(channels=lambda: channels)
    return _weighted(p, channels)


def chosen_channels(activations: FeatureMaps, m: int | None) -> Channels:
    """The m feature maps of the largest population standard deviation over their places; of equal ones the first.

    Raises:
        ValueError: there are fewer.
    """
    count = activations.shape[1]
    m = min(FASTER_CHANNELS, count) if m is None else m
    if m > count:
        raise ValueError(f"channels is {m}: the target layer has {count} feature maps")
    spread = activations.flatten(2).std(dim=2, unbiased=False)
    return spread.sort(dim=1, descending=True, stable=True).indices[:, :m]


def masks_of(activations: Float[Tensor, "m h w"], size: tuple[int, int]) -> Float[Tensor, "m H W"]:
    """Feature maps enlarged to the picture corner on corner, then min–max normalized, each by itself."""
    return normalize(upsample(activations, size))


def _seen_through(pictures: Images, activations: Float[Tensor, "N h w"]) -> Images:
    """Preprocessed pictures, each times the mask of one feature map of it."""
    size = (int(pictures.shape[-2]), int(pictures.shape[-1]))
    return pictures * masks_of(activations, size)[:, None].to(pictures.dtype)


def _weighted(p: Pass, channels: Channels) -> Cams:
    """relu(Σ w·A) over some channels, w their probabilities rounded to float32, as the library rounds them."""
    if p.capture.model.single or p.capture.model.score is not None:
        raise ModelError(
            "Score-CAM says nothing of a network with one output, or a score of one's own: it takes the softmax over the "
            "classes, which is 1 for every mask; choose another map"
        )
    chosen = torch.gather(p.activations, 1, channels[:, :, None, None].expand(-1, -1, *p.activations.shape[2:]))
    probabilities = _probabilities(p, chosen)
    channel_weights = probabilities.float().to(probabilities.dtype)
    p.keep(scores=lambda: probabilities, weights=lambda: channel_weights)
    return class_activation_map(chosen, channel_weights, relu=p.options.relu)


def _probabilities(p: Pass, chosen: FeatureMaps) -> Float[Tensor, "N m"]:
    """The explained class's probability seen through each feature map. Constant ones give empty masks, and share one pass.

    Whatever a pass takes is on the device before the first one: nothing waits for the host in between.
    """
    device, wide = chosen.device, at_least_fp32(p.inputs.dtype)
    flat = chosen.flatten(2)
    constant = flat.amax(dim=2) == flat.amin(dim=2)
    shown = torch.where(constant[:, :, None, None], 0, chosen)  # enlarged, a constant might not be one any more
    first = constant.int().argmax(dim=1, keepdim=True)
    stands_in = torch.where(constant, first, torch.arange(chosen.shape[1], device=device))
    masks = [(row, place) for row, places in enumerate(stands_in.tolist()) for place in dict.fromkeys(places)]
    rows = [row for row, _ in masks]
    row, place = sent(torch.tensor(masks), device).T
    maps, target, seen = shown[row, place], p.target[row], Pieces(len(masks))

    def look(numbers: list[int]) -> None:
        piece = slice(numbers[0], numbers[-1] + 1)
        p.capture.attend(rows[piece])
        logits = p.capture.logits_alone(_seen_through(p.inputs[row[piece]], maps[piece]))
        seen.put(numbers, logits.to(wide).softmax(dim=1).gather(1, target[piece, None])[:, 0])

    p.capture.in_batches(range(len(masks)), len(masks), look, like=p.inputs, gradients=False)
    number = torch.zeros_like(stands_in)
    number[row, place] = torch.arange(len(masks), device=device)
    return seen.whole[number.gather(1, stands_in)]
