"""A PyTorch module beside a network of another program that it claims to be: paired, compared, explained, filled.

What `parity.port` asks for by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from parity.contract.artifact import Artifact
from torch_impl.twin.causes import cause, cause_before, first_cause, unsteady
from torch_impl.twin.transfer import Filled, Transfer, TransferError
from torch_impl.twin.twin import Twin, TwinError, built, preprocessed

__all__ = ["filled", "paired", "preprocessed", "write_state"]


def paired(
    reference: Artifact,
    model: nn.Module | str,
    inputs: np.ndarray,
    layers: Mapping[str, str],
    target_layer: str,
    inside: bool | None = None,
) -> Twin:
    """A module, or what the callable of this name gives, paired with a reference; for the others see `Twin`."""
    return Twin(reference, built(model), inputs, layers, target_layer, inside=inside)


def filled(
    reference: Artifact, tensors: Mapping[str, np.ndarray], model: nn.Module | str, inputs: np.ndarray
) -> Filled:
    """A module's state dict with the reference's weights, and what it took; or in `stopped` why they do not go into it.

    Raises:
        ValueError: it could not be tried.
    """
    module, settings = built(model), reference.settings
    before = [(inputs - np.array(settings.offset)) / np.array(settings.scale)] if settings.scale else []
    for given in (inputs, *before):  # the module may begin with the scaling that the reference's network began with
        transfer = Transfer(reference, tensors, module, torch.from_numpy(given).movedim(-1, 1).contiguous())
        try:
            return transfer.run()
        except TransferError as error:
            came = f"{len(transfer.best.layers)} of {len(transfer.units)} layers were filled"
            words = "; ".join(filter(None, (str(error), came, _why(transfer))))
            stopped = Filled({}, transfer.best.layers, transfer.passes, [], float("nan"), words)
        if transfer.best.layers:
            break
    return stopped


def _why(transfer: Transfer) -> str:
    """Where a module that could not be filled leaves the reference, and the probable cause; or ""."""
    best = transfer.best
    if not best.stopped:
        return ""
    try:
        twin = Twin(transfer.reference, transfer.work, transfer.inputs.movedim(1, -1).numpy(), {}, "", with_maps=False)
    except TwinError:
        return ""
    if best.stopped_at is None:
        return first_cause(twin) or cause(twin, "logits")
    name, given = best.stopped_at
    words = first_cause(twin, name) or unsteady(twin)
    return words or next(filter(None, (cause_before(twin, layer, given) for layer in transfer.that_fit(name))), "")


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as `.safetensors`, or as `.pth`."""
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save(dict(state), path)
