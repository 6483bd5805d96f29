"""A VGG and its maps once more, in NumPy and float64: nothing here is shared with Keras, torch or either's layouts."""

from __future__ import annotations

import math

import numpy as np

from parity.contract.network import Network


def forward(network: Network, x: np.ndarray, start: str = "input_layer") -> dict[str, np.ndarray]:
    """Every layer's output behind `start` for one picture (H, W, 3), after ReLU; x is the output of `start`."""
    outputs: dict[str, np.ndarray] = {}
    names = [layer.name for layer in network.table.layers]
    for layer in network.table.layers[names.index(start) + 1 :]:
        weight, bias = (network.tensors[name].astype(float) for name in layer.tensors) if layer.tensors else (None, 0)
        if layer.kind == "conv":
            h, w, _ = x.shape
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            shifted = [padded[i : i + h, j : j + w] @ weight[:, :, i, j].T for i in range(3) for j in range(3)]
            x = np.maximum(sum(shifted) + bias, 0)
        elif layer.kind == "pool":
            h, w, c = x.shape
            x = x.reshape(h // 2, 2, w // 2, 2, c).max((1, 3))
        elif layer.kind == "flatten":
            x = x.transpose(2, 0, 1).ravel()  # the canonical fc1 reads (C, H, W)
        else:
            x = weight @ x + bias
            x = x if layer.name == "predictions" else np.maximum(x, 0)
        outputs[layer.name] = x
    return outputs


def slope(network: Network, x: np.ndarray, place: tuple[int, ...], of_class: int, start: str = "input_layer") -> float:
    """∂score/∂x at one place by finite differences; NaN at a kink, where the two sides differ."""

    def score(step: float) -> float:
        moved = x.copy()
        moved[place] += step
        return float(forward(network, moved, start)["predictions"][of_class])

    step, here = 1e-3, score(0)
    right, left = (score(step) - here) / step, (here - score(-step)) / step
    return (right + left) / 2 if abs(right - left) <= 1e-9 else math.nan


def normalized(m: np.ndarray) -> np.ndarray:
    return (m - m.min()) / (m.max() - m.min() + 1e-7)


def upsampled(cam: np.ndarray, size: int) -> np.ndarray:
    """Linear along rows, then along columns, corners on corners."""
    places, cells = np.linspace(0, len(cam) - 1, size), np.arange(len(cam))
    wide = [np.interp(places, cells, row) for row in cam]
    return np.array([np.interp(places, cells, column) for column in np.transpose(wide)]).T


def plus_plus(activations: np.ndarray, gradients: np.ndarray) -> dict[str, np.ndarray]:
    """Grad-CAM++ without exp(score)."""
    alpha = np.where(gradients != 0, 1 / (2 + gradients * activations.sum((0, 1))), 0)
    mass = alpha.sum((0, 1))
    alpha = alpha / np.where(mass != 0, mass, 1)
    weights = (np.maximum(gradients, 0) * alpha).sum((0, 1))
    return {"alpha": alpha, "weights": weights, "raw": np.maximum((activations * weights).sum(-1), 0)}


def layer_cam(activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Place by place: only what raises the score counts."""
    return np.maximum(np.where(gradients > 0, gradients * activations, 0).sum(-1), 0)


def score_cam(network: Network, x: np.ndarray, activations: np.ndarray, of_class: int, channels: list[int]) -> dict:
    """One forward pass for each mask; the weights are rounded to float32."""
    scores = []
    for k in channels:
        mask = normalized(upsampled(activations[..., k], len(x)))
        logits = forward(network, x * mask[..., None])["predictions"]
        scores.append(1 / sum(math.exp(other - logits[of_class]) for other in logits))
    weights = [float(np.float32(p)) for p in scores]
    raw = np.maximum(sum(w * activations[..., k] for w, k in zip(weights, channels, strict=True)), 0)
    return {"scores": np.array(scores), "weights": np.array(weights), "raw": raw}


def most_varied(activations: np.ndarray, m: int) -> list[int]:
    """By variance; `sorted` keeps the order of equal ones."""
    variances = [((a - a.mean()) ** 2).mean() for a in np.moveaxis(activations, -1, 0)]
    return sorted(range(len(variances)), key=lambda k: -variances[k])[:m]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    error = np.linalg.norm(np.asarray(actual, float) - expected)
    return float(error / np.linalg.norm(expected)) if error else 0.0
