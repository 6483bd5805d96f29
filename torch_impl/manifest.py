"""What the manifest says: of each photograph, and of the program that drew its maps. Plain JSON types."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from parity.contract import classes as imagenet
from parity.contract.methods import Options
from parity.contract.samples import credit_of
from parity.contract.versions import versions
from torch_impl._version import __version__
from torch_impl.capture.draw import Drawn
from torch_impl.capture.passes import Capture
from torch_impl.output import FORMAT
from torch_impl.question import constant_reason, probabilities_of

if TYPE_CHECKING:
    from torch_impl.explainer import Explainer
    from torch_impl.images import Photograph


def photograph_rows(
    photographs: Sequence[Photograph], drawn: Drawn, labels: Sequence[str] | None, outputs: str
) -> list[dict[str, Any]]:
    """A row for each map's photograph.

    Args:
        photographs: one for each row of the maps.
        drawn: with logits.
        labels: of the classes: see `classes.names_of`.
        outputs: `logits`, `probabilities` or `score`.
    """
    assert drawn.logits is not None
    target, constant, count = drawn.target.tolist(), _constant(drawn), drawn.logits.shape[1]
    scored, logits = outputs == "score", drawn.logits.tolist()
    names = () if scored else imagenet.names_of(count, labels)
    probabilities = None if scored else probabilities_of(drawn.logits, single=drawn.single, outputs=outputs).tolist()
    best = drawn.logits.topk(min(5, count)).indices.tolist()
    rows = []
    for i, photograph in enumerate(photographs):
        chosen = target[i]
        reasons = {name: reason[i] for name, reason in constant.items() if reason[i]}
        rows.append(
            {
                "name": photograph.name,
                "path": photograph.path,
                "sha256": photograph.sha256,
                "size": list(photograph.original_size),
                "seen": list(photograph.seen),
                "notes": list(photograph.notes),
                "credit": credit_of(photograph.path),
                "class": None if scored else chosen,
                "label": "score" if scored else imagenet.label(chosen, count, names),
                "logit": logits[i][chosen],
                "probability": None if probabilities is None else probabilities[i][chosen],
                "top5": [
                    {"class": c, "label": imagenet.label(c, count, names), "probability": probabilities[i][c]}
                    for c in best[i]
                    if probabilities is not None
                ],
                "constant_maps": list(reasons),
                "constant_reasons": reasons,
            }
        )
    return rows


def program_versions() -> dict[str, str]:
    """Of this package and of everything that a map depends on."""
    return {"attention-maps": __version__, **versions("torch", "torchvision", "captum", "grad-cam", "numpy", "pillow")}


def _constant(drawn: Drawn) -> dict[str, list[str]]:
    """Map → why each photograph's is constant, or ""; a device is asked once, for all maps."""
    seen = []
    for name, raw in drawn.raw.items():
        low, high = raw.amin(dim=(1, 2)).double(), raw.amax(dim=(1, 2)).double()
        seen.append(torch.stack([low, high, drawn.no_gradient.get(name, torch.zeros_like(low)).to(low)]))
    return {
        name: [
            constant_reason(low, high, places=raw[0].numel(), no_gradient=bool(zero))
            for low, high, zero in zip(*ranges, strict=True)
        ]
        for (name, raw), ranges in zip(drawn.raw.items(), torch.stack(seen).tolist(), strict=True)
    }


def manifest(
    explainer: Explainer,
    captures: Sequence[Capture],
    answers: Sequence[list[dict[str, Any]]],
    methods: Sequence[str],
    seconds: dict[str, float],
    options: Options,
    outputs: str,
) -> dict[str, Any]:
    """The whole of it.

    Args:
        explainer: whose settings they are.
        captures: of the model that ran, one for each target layer.
        answers: at each of them, see `photograph_rows`.
        methods: names.
        seconds: what each part took.
        options: of the maps.
        outputs: `logits`, `probabilities` or `score`.
    """
    network, device = explainer.weights, explainer.device
    named = isinstance(explainer.preprocess, str)
    layers = [explainer.target_layer, *explainer.more_layers]
    layouts = [at.layout if isinstance(at.layout, (str, tuple)) else None for at in captures]
    several, more = len(layers) > 1, {} if named else {"seen": None}
    photographs = [
        {**row, **more, **({"layer": layer} if several else {})}
        for layer, rows in zip(layers, answers, strict=True)
        for row in rows
    ]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "photographs": photographs,
        "methods": list(methods),
        "model": type(explainer.model).__name__,
        "target_layer": layers if several else layers[0],
        "feature_layout": layouts if several else layouts[0],
        "outputs": "one output: class 1 is it, class 0 its negative" if captures[0].model.single else outputs,
        "weights": {
            "source": network.source if network else "the model that was handed in",
            "remark": network.remark if network else "",
            "fingerprint": network.fingerprint if network else None,
        },
        "input": explainer.preprocess if named else "a function that was handed in",
        "resize": explainer.resize if named else None,
        "engine": explainer.engine,
        "settings": {**vars(options), "batch_size": explainer.batch_size, "compile": explainer.compile},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": explainer.precision,
        "model_computes_in": sorted(captures[0].formats - {str(explainer.dtype).removeprefix("torch.")}),
        "versions": program_versions(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
