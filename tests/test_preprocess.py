"""Pixels → inputs: on paper, as torchvision has it, and the same wherever it is computed. (Keras: test_images.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from parity.contract.network import INPUTS
from torch_impl.preprocess import preprocess


def test_on_paper() -> None:
    pixels = np.array([[[[10, 20, 30], [255, 255, 255]]]], dtype=np.uint8)  # N 1, H 1, W 2

    caffe = preprocess(pixels, dtype=torch.float64)
    assert caffe.shape == (1, 3, 1, 2)
    expected = [[30 - 103.939, 255 - 103.939], [20 - 116.779, 255 - 116.779], [10 - 123.68, 255 - 123.68]]
    torch.testing.assert_close(caffe[0, :, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)

    inputs = preprocess(pixels, input="torchvision", dtype=torch.float64)
    white = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(inputs[0, :, 0, 1], torch.tensor(white, dtype=torch.float64), rtol=0, atol=1e-14)

    # Narrow types are rounded once, at the end: 255 - 123.68 = 131.32 is 131.375 in float16, 131 in bfloat16.
    assert preprocess(pixels, dtype=torch.float16)[0, 2, 0, 1].item() == 131.375
    assert preprocess(pixels, dtype=torch.bfloat16)[0, 2, 0, 1].item() == 131.0
    assert preprocess(pixels, device="meta").device.type == "meta"


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_as_numpy_bit_for_bit(input: str, dtype: torch.dtype, device: torch.device) -> None:
    """Every value in every channel; on the CPU, or on CUDA where there is one."""
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1).reshape(2, 8, 16, 3)
    pixels.setflags(write=False)
    work = np.float64 if dtype == torch.float64 else np.float32
    if input == "caffe":
        expected = pixels[..., ::-1] - np.array((103.939, 116.779, 123.68), work)
    else:
        expected = (pixels / work(255) - np.array((0.485, 0.456, 0.406), work)) / np.array((0.229, 0.224, 0.225), work)
    inputs = preprocess(pixels, input=input, dtype=dtype, device=device)
    assert (inputs.device.type, inputs.dtype) == (device.type, dtype)
    assert inputs.is_contiguous()
    assert torch.equal(inputs.cpu(), torch.from_numpy(expected).to(dtype).permute(0, 3, 1, 2))


def test_the_pixels_are_left_alone() -> None:
    pixels = np.full((1, 2, 2, 3), 7, np.uint8)
    for name in INPUTS:
        preprocess(pixels, input=name).add_(1)
    assert (pixels == 7).all()


def test_what_is_no_batch_of_pixels() -> None:
    good = np.zeros((1, 2, 2, 3), np.uint8)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (good.astype(np.float32), {}, "not float32"),
        (good[0], {}, r"not uint8 \(2, 2, 3\)"),
        (np.zeros((1, 3, 2, 2), np.uint8), {}, r"not uint8 \(1, 3, 2, 2\)"),
        (good, {"input": "tf"}, "not 'tf'"),
    ]
    for pixels, options, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            preprocess(pixels, **options)
