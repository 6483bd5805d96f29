"""References of small networks without TensorFlow: a layer table, computed row by row as `torch_impl.twin.compute` has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity import formulas
from parity.contract.artifact import Artifact, JobSettings, Photograph, Weights
from parity.contract.fingerprints import Fingerprint
from parity.contract.layers import Layer, LayerTable
from parity.contract.recorder import Recorder
from torch_impl.twin.compute import computed

METHODS = ("vanilla", "gradcam", "gradcam_plus_plus")


class Builder:
    """Rows one after the other; each reads the last one where nothing else is said."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        self.layers = [Layer("input_layer", "input", shape)]
        self.tensors: dict[str, np.ndarray] = {}
        self.random = np.random.RandomState(seed)
        self.target = ""

    @property
    def last(self) -> Layer:
        return self.layers[-1]

    def add(
        self,
        name: str,
        kind: str,
        inbound: Sequence[str] = (),
        tensors: Mapping[str, tuple[int, ...]] | None = None,
        *,
        like: tuple[int, ...] = (),
        **config: Any,
    ) -> str:
        """Append a row; its shape is that of what it computes, which of some kinds goes by a shape `like` this."""
        inbound = tuple(inbound) or (self.last.name,)
        full = {f"{name}.{role}": shape for role, shape in (tensors or {}).items()}
        for key, shape in full.items():
            self.tensors[key] = self._random(key, shape)
        by_name = {layer.name: layer for layer in self.layers}
        given = [torch.zeros(1, *_first(by_name[n].shape), dtype=torch.float64) for n in inbound]
        row = Layer(name, kind, like, inbound, full, config)
        made = computed(row, given, self._tensors_of(row, torch.float64))
        shape = (*made.shape[2:], made.shape[1]) if made.ndim == 4 else tuple(made.shape[1:])
        if kind == "flatten":
            shape = (math.prod(shape),)
        self.layers.append(Layer(name, kind, tuple(map(int, shape)), inbound, full, config))
        return name

    def again(self, name: str, first: str, *, inbound: Sequence[str] = ()) -> str:
        """The same layer once more."""
        row = next(layer for layer in self.layers if layer.name == first)
        return self.add(name, row.kind, inbound, **row.config, shared_with=first)

    def _tensors_of(self, row: Layer, dtype: torch.dtype) -> dict[str, Tensor]:
        own = f"{row.config.get('shared_with', row.name)}."
        return {k[len(own) :]: torch.from_numpy(a).to(dtype) for k, a in self.tensors.items() if k.startswith(own)}

    def _random(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        role = key.rpartition(".")[2]
        if role == "running_var" or (role == "weight" and len(shape) == 1):
            values = self.random.uniform(0.7, 1.3, shape)
        elif role in ("bias", "running_mean"):
            values = self.random.normal(0, 0.1, shape)
        else:
            values = self.random.normal(0, math.sqrt(1.6 / math.prod(shape[1:])), shape)
        return values.astype(np.float32)

    def conv(
        self, name: str, filters: int, kernel: int = 3, stride: int = 1, *, inbound: Sequence[str] = (), **config: Any
    ) -> str:
        channels = self._channels(inbound)
        bias = {"bias": (filters,)} if config.pop("bias", True) else {}
        config = {"padding": "same", "activation": "linear", **config}
        tensors = {"weight": (filters, channels, kernel, kernel), **bias}
        return self.add(name, "conv", inbound, tensors, kernel=[kernel] * 2, strides=[stride] * 2, **config)

    def depthwise(
        self, name: str, kernel: int = 3, stride: int = 1, *, inbound: Sequence[str] = (), **config: Any
    ) -> str:
        tensors = {"weight": (self._channels(inbound), 1, kernel, kernel)}
        config = {"padding": "same", "activation": "linear", **config}
        return self.add(name, "depthwise", inbound, tensors, kernel=[kernel] * 2, strides=[stride] * 2, **config)

    def norm(self, name: str, epsilon: float = 1e-3, *, inbound: Sequence[str] = ()) -> str:
        roles = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self._channels(inbound),))
        return self.add(name, "batchnorm", inbound, roles, epsilon=epsilon)

    def act(self, name: str, activation: str = "relu", *, inbound: Sequence[str] = (), **config: Any) -> str:
        return self.add(name, "activation", inbound, activation=activation, **config)

    def pool(self, name: str, pool: str = "max", window: int = 2, stride: int = 2, padding: str = "valid") -> str:
        return self.add(name, "pool", pool=pool, window=[window] * 2, strides=[stride] * 2, padding=padding)

    def dense(self, name: str, units: int, *, flattened: Sequence[int] = (), **config: Any) -> str:
        config = {"activation": "linear", **config} | ({"flattened": list(flattened)} if flattened else {})
        return self.add(name, "dense", (), {"weight": (units, self.last.shape[-1]), "bias": (units,)}, **config)

    def _channels(self, inbound: Sequence[str]) -> int:
        name = inbound[0] if inbound else self.last.name
        return next(layer for layer in self.layers if layer.name == name).shape[-1]

    def reference(
        self,
        target: str,
        *,
        count: int = 2,
        seed: int = 1,
        affine: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
        moves: Mapping[str, float] | None = None,
        methods: Sequence[str] = METHODS,
    ) -> Artifact:
        """The artifact of the network on random pictures; `affine`: scale and offset of layers before it."""
        table = LayerTable(tuple(self.layers), target)
        pixels = np.random.RandomState(seed).randint(0, 256, (count, *table.size, 3)).astype(np.uint8)
        prints = {name: Fingerprint.of(array) for name, array in self.tensors.items()}
        weights = Weights("table", "tf", "f" * 64, "", table, dict(self.tensors), prints)
        settings = JobSettings(tuple(methods), input="tf", sample=256, scale=affine[0], offset=affine[1])
        self.affine, self.target = affine, target
        recorder = Recorder(weights, settings, pixels)
        rows = []
        for i in range(count):
            for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32)):
                if precision == "fp64":
                    logits = _last(self._values(table, pixels[i], dtype)[table.layers[-1].name])
                    explained = int(logits.argmax()) if len(logits) > 1 else int(logits[0] > 0)
                    rows.append(Photograph(f"{i}.png", "0" * 64, (8, 8), explained, f"class {explained}"))
                for stage, array in self._explained(table, pixels[i], dtype, rows[i].class_index).items():
                    recorder.add(precision, i, stage, array)
        return recorder.artifact(rows, program="table", versions={}, flags={}, moves=moves or {})

    def _values(self, table: LayerTable, pixels: np.ndarray, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = formulas.preprocess(pixels, "tf")[..., : table.input_shape[2]]
        if self.affine[0]:
            inputs = inputs * np.array(self.affine[0]) + np.array(self.affine[1])
        x = torch.from_numpy(np.ascontiguousarray(inputs.transpose(2, 0, 1)))[None].to(dtype).requires_grad_()
        values = {table.layers[0].name: x}
        for row in table.layers[1:]:
            values[row.name] = computed(row, [values[name] for name in row.inbound], self._tensors_of(row, dtype))
        return values

    def _explained(
        self, table: LayerTable, pixels: np.ndarray, dtype: torch.dtype, explained: int
    ) -> dict[str, np.ndarray]:
        values = self._values(table, pixels, dtype)
        logits = values[table.layers[-1].name][0]
        score = logits[explained] if len(logits) > 1 else logits[0] * (2 * explained - 1)
        names = [table.layers[0].name, *(layer.name for layer in table.hidden)]
        slopes = dict(zip(names, torch.autograd.grad(score, [values[n] for n in names]), strict=True))
        stages = {
            "inputs": _last(values[names[0]]),
            "logits": _last(logits[None]),
            "score": score.detach().numpy(),
        }
        stages["gradients/inputs"] = _last(slopes[names[0]])
        for layer in table.hidden:
            stages[f"activations/{layer.name}"] = _last(values[layer.name])
            stages[f"gradients/{layer.name}"] = _last(slopes[layer.name])
        raw = np.abs(stages["gradients/inputs"]).max(-1)
        stages |= {"vanilla/raw": raw, "vanilla/final": formulas.normalize(raw)}
        given = {kind: stages[f"{kind}/{table.target}"] for kind in ("activations", "gradients")}
        for method, formula in (("gradcam", formulas.grad_cam), ("gradcam_plus_plus", formulas.grad_cam_plus_plus)):
            own = formula(given)
            own |= formulas.enlarged(own["raw"], table.size, float(stages["score"]))
            stages |= {
                f"{method}/{name}": array
                for name, array in own.items()
                if method != "gradcam" or name != "final_with_exp"
            }
        return stages


def _first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def _last(values: Tensor) -> np.ndarray:
    array: np.ndarray = values[0].detach().numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
