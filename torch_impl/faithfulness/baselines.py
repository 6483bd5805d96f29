"""Maps that know nothing of the network: whatever explains it should be better."""

from __future__ import annotations

import numpy as np

BASELINES = {
    "random": "a number for each pixel, drawn evenly from [0, 1]",
    "centre": "1 in the middle of the photograph, falling evenly to 0 in its corners",
    "edges": "the photograph's own edges: the Sobel filter's magnitude of its grey values, from 0 to 1",
}


def baseline_maps(pixels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Maps (N, H, W) in [0, 1], float32, of photographs uint8 (N, H, W, 3)."""
    from scipy.ndimage import sobel

    shape = pixels.shape[:3]
    y, x = (np.abs(np.linspace(-1, 1, size)) for size in shape[1:])
    centre = 1 - np.hypot(y[:, None], x[None, :]) / np.sqrt(2)
    edges = np.stack([np.hypot(sobel(grey, axis=0), sobel(grey, axis=1)) for grey in pixels.mean(axis=3)])
    highest = edges.max(axis=(1, 2), keepdims=True)
    maps = {
        "random": np.random.RandomState(seed).random_sample(shape),
        "centre": np.broadcast_to(centre, shape),
        "edges": edges / np.where(highest == 0, 1, highest),
    }
    return {name: values.astype(np.float32) for name, values in maps.items()}
