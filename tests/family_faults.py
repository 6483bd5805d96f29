"""Mistakes in LayerCAM, Score-CAM and Faster-ScoreCAM, each made on purpose in the port's own code; see `faults`."""

from __future__ import annotations

import torch
from faults import Fault, drawn_by, each, patched
from torch import Tensor, nn

from torch_impl.capture.passes import Pass
from torch_impl.maps import scorecam
from torch_impl.maps.postprocess import normalize, upsample
from torch_impl.preprocess import CAFFE_MEAN_BGR

METHODS = ("gradcam", "layercam", "scorecam", "faster_scorecam")
BY_SCORES = METHODS[2:]

MASKS = "look for the masks (each feature map enlarged corner on corner, then normalized by itself, times the preprocessed inputs"


def family(shows: dict[str, str], cause: str, inject, *, raw_cause: tuple[str, ...] = (), **settings) -> Fault:
    """A fault that the family's artifact shows; raw maps alone say the same, or what is given here."""
    return Fault(shows, cause, inject, reference="family", raw_cause=raw_cause or (cause,), **settings)


def layercam(function) -> object:
    """LayerCAM from A and G by another formula."""
    return drawn_by("layercam", lambda p: function(p.activations, p.gradients))


def tanh(activations: Tensor, gradients: Tensor) -> Tensor:
    cam = (gradients.relu() * activations).sum(dim=1)
    return torch.tanh(2 * cam / cam.amax(dim=(1, 2), keepdim=True))


right_probabilities, right_channels = scorecam._probabilities, scorecam.chosen_channels


def above_a_baseline(p: Pass, channels: Tensor) -> Tensor:
    """Each mask's probability less that of an empty picture."""
    probabilities = p.capture.logits_alone(torch.zeros_like(p.inputs)).softmax(dim=1)
    return right_probabilities(p, channels) - probabilities.gather(1, p.target[:, None])


def of_pixels(pictures: Tensor, activations: Tensor) -> Tensor:
    """The mask times the photograph; what is masked is black, not the mean colour."""
    mean = pictures.new_tensor(CAFFE_MEAN_BGR)[:, None, None]
    return (pictures + mean) * scorecam.masks_of(activations, tuple(pictures.shape[2:]))[:, None] - mean


def half_pixel(activations: Tensor, size: tuple[int, int]) -> Tensor:
    return normalize(nn.functional.interpolate(activations[None], size=size, mode="bilinear")[0])


def of_the_batch(activations: Tensor, m: int) -> Tensor:
    """What tf-keras-vis takes for a batch: every photograph's channels, for each of them."""
    union = right_channels(activations, m).unique()
    return union.expand(len(activations), -1)


def largest(activations: Tensor, m: int) -> Tensor:
    return activations.amax(dim=(2, 3)).sort(dim=1, descending=True, stable=True).indices[:, :m]


def by_sample_deviation(activations: Tensor, m: int) -> Tensor:
    return activations.std(dim=(2, 3), unbiased=True).sort(dim=1, descending=True, stable=True).indices[:, :m]


FAULTS: dict[str, Fault] = {
    "LayerCAM without the ReLU on the gradients": family(
        each("raw", "layercam"), "no ReLU on the gradients", layercam(lambda a, g: (a * g).sum(dim=1).relu())
    ),
    "LayerCAM of absolute gradients": family(
        each("raw", "layercam"), "absolute gradients", layercam(lambda a, g: (a * g.abs()).sum(dim=1))
    ),
    "LayerCAM's tanh": family(each("raw", "layercam"), "tanh of twice the map over its maximum", layercam(tanh)),
    "LayerCAM's plain tanh": family(
        each("raw", "layercam"), "tanh of the map", layercam(lambda a, g: (a * g.relu()).sum(dim=1).tanh())
    ),
    "Score-CAM of logits": family(
        each("scores", *BY_SCORES),
        "no softmax over the classes: these are no probabilities but logits",
        patched((torch.Tensor, "softmax", lambda logits, dim: logits)),
        raw_cause=("look for the masks",),
    ),
    "Score-CAM of log-probabilities": family(
        each("scores", *BY_SCORES),
        "log-softmax over the classes for softmax",
        patched((torch.Tensor, "softmax", torch.Tensor.log_softmax)),
        raw_cause=("look for the masks",),
    ),
    "Score-CAM's softmax over channels": family(
        each("weights", *BY_SCORES),
        "softmax over the channels",
        patched((torch.Tensor, "float", lambda p: p.softmax(1))),
    ),
    "Score-CAM less a baseline": family(
        each("scores", *BY_SCORES),
        "a baseline's score was subtracted",
        patched((scorecam, "_probabilities", above_a_baseline)),
        raw_cause=("look for the masks",),
    ),
    "Score-CAM's weights not rounded": family(
        each("weights", *BY_SCORES),
        "not rounded to float32",
        patched((torch.Tensor, "float", lambda probabilities: probabilities)),
        precisions=("fp64",),
    ),
    "masks normalized before they are enlarged": family(
        each("scores", *BY_SCORES),
        MASKS,
        patched((scorecam, "masks_of", lambda activations, size: upsample(normalize(activations), size))),
    ),
    "masks on half-pixel centres": family(
        each("scores", *BY_SCORES), MASKS, patched((scorecam, "masks_of", half_pixel))
    ),
    "masks over pixels": family(each("scores", *BY_SCORES), MASKS, patched((scorecam, "_seen_through", of_pixels))),
    "Faster-ScoreCAM over the batch": family(
        each("channels", "faster_scorecam"),
        "the channels of the whole batch together: each photograph takes its own alone",
        patched((scorecam, "chosen_channels", of_the_batch)),
    ),
    "Faster-ScoreCAM by maximum": family(
        each("channels", "faster_scorecam"),
        "the channels of the largest maxima, not of the largest deviation",
        patched((scorecam, "chosen_channels", largest)),
    ),
}
"""Name → mistake."""

UNSEEN: dict[str, Fault] = {
    "sample deviation for the population's": family(
        {}, "", patched((scorecam, "chosen_channels", by_sample_deviation)), raw_cause=("",)
    ),
    "LayerCAM's ReLU on the product": family({}, "", layercam(lambda a, g: (a * g).relu().sum(dim=1)), raw_cause=("",)),
}
"""Mistakes that change nothing: dividing by n − 1 makes every deviation larger by one factor, so their order stays; and where
A ≥ 0, as after a ReLU, relu(G·A) is relu(G)·A. (A target layer before its ReLU is a fault of its own.)"""
