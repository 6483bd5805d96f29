"""What the network says of photographs of which parts are gone: pictures made one by one, passes shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from torch_impl.arrays import Image, Images
from torch_impl.batching import Pieces
from torch_impl.capture.passes import Capture
from torch_impl.faithfulness.removals import Removals
from torch_impl.precision import sent
from torch_impl.question import probabilities_of

NOISE = 0.01
"""Of what is filled in: σ, a fraction of the inputs' own. ROAD's 0.01 is meant for inputs of σ = 1; caffe's have about 60."""


def ranks_of(values: np.ndarray, seed: int) -> Tensor:
    """A map (H, W) → the place of each pixel in the order of relevance, in (0, 1), no two alike; equal ones by chance.

    A Grad-CAM is 0 in large parts: a threshold on its values takes away all of such a part at once, or nothing, and not the
    share that was asked for; where it takes everything, nothing is left to fill in from.
    """
    chance = np.random.RandomState(seed).permutation(values.size)
    ranks = np.empty(values.size)
    ranks[np.lexsort((chance, values.ravel()))] = (np.arange(values.size) + 0.5) / values.size
    return torch.from_numpy(ranks.reshape(values.shape).astype(np.float32))


def removed(image: Image, values: np.ndarray, ranks: Tensor, kind: str, share: float, seed: int) -> Image:
    """A preprocessed photograph, on the CPU, without a part of it.

    Args:
        image: one photograph.
        values: its map (H, W).
        ranks: of the map.
        kind: `masked`: times the map. `deleted`: its most relevant pixels 0. `most`, `least`: those pixels filled in from
            their neighbours, by pytorch-grad-cam.
        share: of the pixels.
        seed: of the noise in what is filled in.
    """
    from pytorch_grad_cam.metrics.cam_mult_image import multiply_tensor_with_cam
    from pytorch_grad_cam.metrics.perturbation_confidence import RemoveLeastRelevantFirst, RemoveMostRelevantFirst
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    without: Tensor
    if kind == "masked":
        without = multiply_tensor_with_cam(image, torch.from_numpy(values))
        return without
    if kind == "deleted":
        return image * (ranks < 1 - share)
    order = RemoveMostRelevantFirst if kind == "most" else RemoveLeastRelevantFirst
    imputer = NoisyLinearImputer(noise=NOISE * float(image.std()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        without = order(100 * (1 - share), imputer)(image.float(), ranks)
        return without


def confidences(
    capture: Capture,
    inputs: Images,
    target: Sequence[int],
    maps: Mapping[str, np.ndarray],
    removals: Removals,
    outputs: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities of the explained class, float64: map → `metrics.Confidences`.

    Args:
        capture: of the network.
        inputs: preprocessed.
        target: the class of each.
        maps: name → (N, H, W) in [0, 1].
        removals: what is taken away.
        outputs: `logits` or `probabilities`.
        progress: called after each pass with (pictures done, in all).
    """
    each, parts = len(maps) * len(removals.kinds), len(removals.shares)
    asked = sent(torch.tensor([*target, *np.repeat(target, each)]), inputs.device)
    answers = Pieces(len(asked))

    def one_pass(items: list[tuple[int, Image]]) -> None:
        numbers, pictures = zip(*items, strict=True)
        logits = capture.logits_alone(sent(torch.stack(pictures), inputs.device))
        probabilities = probabilities_of(logits, single=bool(capture.model.single), outputs=outputs)
        answers.put([*numbers], probabilities.gather(1, asked[numbers[0] : numbers[-1] + 1, None])[:, 0])

    capture.progress = progress
    pictures = _pictures(inputs.cpu(), maps, removals)
    capture.in_batches(enumerate(pictures), len(asked), one_pass, like=inputs, gradients=False)
    before, after = np.split(answers.whole.cpu().numpy(), [len(inputs)])
    by_map = after.reshape(len(inputs), len(maps), -1).swapaxes(0, 1)
    told = {}
    for name, values in zip(maps, by_map, strict=True):
        masked, most, least, deleted = np.split(values, [1, 1 + parts, 1 + 2 * parts], axis=1)
        told[name] = {"before": before, "masked": masked[:, 0], "most": most, "least": least, "deleted": deleted}
    return told


def _pictures(inputs: Images, maps: Mapping[str, np.ndarray], removals: Removals) -> Iterator[Image]:
    """Every photograph whole; then each of them, map by map, without each of the parts that are removed."""
    yield from inputs
    for row, image in enumerate(inputs):
        for values in maps.values():
            seed = removals.seed + row
            ranks = ranks_of(values[row], seed)
            for kind, share in removals.kinds:
                yield removed(image, values[row], ranks, kind, share, seed).to(image.dtype)
