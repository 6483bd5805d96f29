"""A PyTorch module that claims to be the reference's network: compared, its layers listed, or filled with the weights."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file

from parity import criterion, formulas, port
from parity.candidate import CAUSE, CandidateError, methods_of, recorded
from parity.contract.artifact import Artifact
from parity.contract.files import whole
from parity.contract.network import EXPORT
from parity.contract.recorder import Recorder
from parity.contract.text import aligned, one_line
from parity.similarity import relative_l2

FLOAT32 = 1e-6
"""Relative L2 that a preprocessing computed in float32 may be off."""


@dataclass(frozen=True)
class Module:
    """A module as the user names it.

    Attributes:
        model: `package.module:callable` that gives an `nn.Module`; in Python also the module itself.
        layers: layer → module, where the user knows better.
        target_layer: the module that is the target layer; "": found.
        preprocess: a function, uint8 (N, H, W, 3) → (N, C, H, W), or its `package.module:function`; "": it takes the
            reference's inputs.
    """

    model: Any
    layers: Mapping[str, str] = field(default_factory=dict)
    target_layer: str = ""
    preprocess: str | port.Preprocess = ""

    @property
    def name(self) -> str:
        """What it is called in a report."""
        return self.model if isinstance(self.model, str) else type(self.model).__qualname__


def answer(
    reference: Artifact | str | os.PathLike[str],
    module: Module,
    *,
    precision: str,
    device: str = "cpu",
    methods: Sequence[str] = (),
    engine: str = "library",
) -> Artifact:
    """The module's stages and maps, and why the first wrong one is wrong.

    Args:
        reference: with float64; or its path.
        module: what is compared.
        precision: of the module.
        device: likewise.
        methods: some of the reference's; none: all.
        engine: the port's that draws the maps.

    Raises:
        CandidateError: it cannot be compared; one line.
    """
    reference = Artifact.of(reference)
    wanted = methods_of(reference, methods)
    twin, inputs, remark = _paired(reference, module)
    made = recorded(
        Recorder(
            replace(reference.weights, tensors={}, prints={}),
            replace(reference.settings, methods=wanted),
            reference.pixels,
        ),
        reference.photographs,
        twin.rows(wanted, precision, device, engine),
        lambda shape, stage: shape != stage.shape,  # then its output is another
        program=module.name,
        precision=precision,
        device=device,
    )
    return replace(
        made,
        flags={**made.flags, **twin.about(), **_causes(reference, made, twin, inputs)},
        warnings=(*twin.remarks(), *filter(None, [remark])),
    )


def check_general(reference: Artifact) -> None:
    """Refuse a reference whose weights are not known by their values.

    Raises:
        CandidateError: it was made without `--model`.
    """
    if not reference.weights.prints:
        raise CandidateError(
            "the reference was made of a network known by name: make it with python -m keras_ref --model"
        )
    if "fp64" not in reference.precisions:
        raise CandidateError("the reference artifact holds no float64: write it with python -m keras_ref --floor")


def _paired(reference: Artifact, module: Module) -> tuple[Any, np.ndarray, str]:
    """A `torch_impl.twin.twin.Twin` of the module, its inputs, and a remark of its own preprocessing, or ""."""
    check_general(reference)
    inputs, inside, remark = _given(reference, module)
    return (
        port.twins().paired(reference, module.model, inputs, module.layers, module.target_layer, inside),
        inputs,
        remark,
    )


def _given(reference: Artifact, module: Module) -> tuple[np.ndarray, bool | None, str]:
    """The reference's inputs, or what the module's own preprocessing makes of the pixels.

    Returns:
        Inputs, float64 (N, H, W, C), as the reference's network takes them; whether the module begins with the scaling
        that the reference's network began with, None where that is to be found out; a remark, or "".
    """
    expected = formulas.all_inputs(reference)
    if not module.preprocess:
        return expected, None, ""
    inputs, exact = port.twins().preprocessed(module.preprocess, reference.pixels)
    if inputs.shape != expected.shape:
        raise CandidateError(
            f"the preprocessing gave {inputs.shape[1:3]} pixels and {inputs.shape[3]} channels, the "
            f"reference's inputs have {expected.shape[1:3]} and {expected.shape[3]}"
        )
    settings = reference.settings
    if settings.scale:  # its pixels may be those before that scaling, which is then the module's
        scaled = inputs * np.array(settings.scale) + np.array(settings.offset)
        if relative_l2(scaled.ravel(), expected.ravel()) < FLOAT32:
            return (scaled if exact else expected), True, ""
    if not exact and relative_l2(inputs.ravel(), expected.ravel()) < FLOAT32:
        remark = "the port's preprocessing is the reference's up to float32's rounding, in which it was computed"
        return expected, False, remark
    return inputs, False, ""


def _causes(reference: Artifact, made: Artifact, twin: Any, inputs: np.ndarray) -> dict[str, str]:
    """A flag for the first forward stage that is off, where its cause is known."""
    precision = made.precisions[0]
    if precision not in ("fp64", "fp32"):
        return {}
    off = [row for row in criterion.figures(reference, made, precision) if not row.within and row.judged]
    first = next((row for row in off if row.stage.partition("/")[0] in ("inputs", "activations", "logits")), None)
    if first is None:
        return {}
    if first.stage == "inputs":
        i = first.photograph
        words = preprocessing_cause(reference.pixels[i], inputs[i], formulas.inputs_of(reference, i))
    else:
        words = twin.cause(first.stage, first.photograph)
    return {f"{CAUSE}{first.stage}": words} if words else {}


def preprocessing_cause(pixels: np.ndarray, inputs: np.ndarray, expected: np.ndarray) -> str:
    """How two preprocessings differ, where each shifts and scales every channel, or one does so to the other's; or "".

    Args:
        pixels: uint8 (H, W, 3) of one photograph, RGB.
        inputs: what the port makes of them, (H, W, C).
        expected: what the reference does.
    """
    channels = inputs.shape[-1]
    seen, orders = pixels[..., :channels], ("RGB", "BGR") if channels == 3 else ("pixels",)
    port_takes, reference_takes = (Affine.of(values, seen, orders) for values in (inputs, expected))
    if port_takes and reference_takes:
        differing = [
            *["permutation of the channels"] * (port_takes.order != reference_takes.order),
            *["mean and std"] * (not port_takes.scales_as(reference_takes)),
        ]
        return (
            f"preprocessing: {', '.join(differing)}: the port takes {port_takes.words()}, "
            f"the reference {reference_takes.words()}"
        )
    if between := Affine.of(inputs, expected, ("inputs",)):
        return f"preprocessing: mean and std: the port takes {between.words()} of the reference"
    return ""


@dataclass(frozen=True)
class Affine:
    """Values that are (source − mean) / std, channel by channel.

    Attributes:
        order: the source's channels: `RGB` as they are, `BGR` turned round, or another name for as they are.
        mean: of each channel of the values.
        std: likewise.
    """

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray, source: np.ndarray, orders: Sequence[str]) -> Affine | None:
        """What makes values (H, W, C) of a source (H, W, C); None where nothing does."""
        if values.shape != source.shape:
            return None
        theirs = values.reshape(-1, values.shape[-1]).astype(np.float64)
        for order in orders:
            given = (source[..., ::-1] if order == "BGR" else source).reshape(theirs.shape).astype(np.float64)
            slope = ((given - given.mean(0)) * (theirs - theirs.mean(0))).sum(0) / ((given - given.mean(0)) ** 2).sum(0)
            offset = theirs.mean(0) - slope * given.mean(0)
            if np.isfinite(slope).all() and slope.all() and relative_l2(given * slope + offset, theirs) < FLOAT32:
                return cls(order, tuple(map(float, -offset / slope)), tuple(map(float, 1 / slope)))
        return None

    def scales_as(self, other: Affine) -> bool:
        """Whether each of the source's channels has another's mean and deviation, up to float32's rounding."""
        ours, theirs = (
            np.array([side.mean, side.std])[:, :: -1 if side.order == "BGR" else 1] for side in (self, other)
        )
        return bool(np.abs(ours - theirs).max() <= FLOAT32 * max(np.abs(theirs).max(), 1.0) * 10)

    def words(self) -> str:
        """As a formula."""
        mean, std = (", ".join(f"{round(value, 6) + 0.0:.6g}" for value in values) for values in (self.mean, self.std))
        return f"({self.order} − mean ({mean})) / std ({std})"


# Layers


def read_layers(path: str | os.PathLike[str]) -> dict[str, str]:
    """Layer → module, of a file that `python -m parity match` wrote and somebody corrected.

    Raises:
        CandidateError: it cannot be read, or says something else.
    """
    try:
        with open(path, "rb") as file:
            said = tomllib.load(file)
    except OSError as error:
        raise CandidateError(f"--layers {os.fspath(path)!r}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise CandidateError(f"--layers {os.fspath(path)!r}: not TOML: {one_line(error)}") from None
    layers = said.get("layers", said)
    if not isinstance(layers, dict) or not all(isinstance(name, str) for name in layers.values()):
        raise CandidateError(f'--layers {os.fspath(path)!r}: give "layer" = "module" lines under [layers]')
    return {layer: name for layer, name in layers.items() if name}


def matched(reference: Artifact | str | os.PathLike[str], module: Module) -> tuple[list[str], str]:
    """Pair the layers of a reference, or of the one at a path, with a module's.

    Returns:
        The lines of a table for a reader; the file that can be corrected and given back, TOML.

    Raises:
        CandidateError: it cannot be compared.
    """
    reference = Artifact.of(reference)
    twin, _, _ = _paired(reference, module)
    pairing = twin.pairing
    rows = [("layer", "kind", "module", "told by", "error (float64)")]
    toml = [f"# {module.name}: correct by hand, give back with --layers", "[layers]"]
    for layer in reference.table.hidden:
        pair = pairing.pairs.get(layer.name)
        if pair is None:
            near = ", ".join(f"{key} {error:.0e}" for key, error in pairing.near.get(layer.name, ()))
            rows.append((layer.name, layer.kind, "not compared", "", f"nearest {near}" if near else ""))
            toml.append(f'# "{layer.name}" = ""  # not compared' + (f"; nearest: {near}" if near else ""))
            continue
        error = f"{pair.error:.1e}" if pair.layout else f"another shape, {'×'.join(map(str, pair.call.shape[1:]))}"
        rows.append((layer.name, layer.kind, pair.call.key, pair.how, error))
        toml.append(f'"{layer.name}" = "{pair.call.key}"  # {pair.how}, {error}')
    lines = [*aligned(rows), *(f"remark: {line}" for line in twin.remarks())]
    lines += [f"{what}: {said}" for what, said in twin.about().items()]
    return lines, "\n".join([*toml, ""])


# Weights


class TransferStoppedError(CandidateError):
    """The weights do not go into the module; one line: where it stops, how far it came, and why."""


def read_tensors(reference: Artifact, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The weights that `python -m keras_ref --export` wrote beside a reference.

    Raises:
        CandidateError: it cannot be read, or holds another network's weights.
    """
    where = f"--weights {os.fspath(path)!r}"
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CandidateError(f"{where}: cannot be read ({one_line(error)})") from None
    if metadata.get("format") != EXPORT:
        raise CandidateError(f"{where}: another kind of file: write it with python -m keras_ref --export")
    if metadata.get("fingerprint") != reference.weights.fingerprint or set(tensors) != set(reference.table.tensors):
        raise CandidateError(f"{where}: not the weights of the reference: write both with one python -m keras_ref")
    return tensors


def transfer(
    reference: Artifact | str | os.PathLike[str],
    weights: str | os.PathLike[str],
    module: Any,
    out: str | os.PathLike[str] = "",
) -> Any:
    """A reference's weights into an untrained PyTorch module.

    Args:
        reference: an artifact that `python -m keras_ref --model … --floor` wrote, or its path.
        weights: what `--export` wrote beside it.
        module: an `nn.Module`, or `package.module:callable` that gives one; it stays as it is.
        out: a file for its state dict, `.safetensors` or `.pth`; "": none.

    Returns:
        `state`, the module's state dict with the weights in it; `layers`, module → the reference's layer; `passes`; `kept`;
        `error`, the logits' relative L2 in float64.

    Raises:
        TransferStoppedError: they do not go into it. Nothing is written.
        ValueError: it could not be tried.
    """
    reference = Artifact.of(reference)
    check_general(reference)
    tensors = read_tensors(reference, weights)
    filled = port.twins().filled(reference, tensors, module, formulas.all_inputs(reference))
    if filled.stopped:
        raise TransferStoppedError(filled.stopped)
    if out:
        with whole(out) as path:
            port.twins().write_state(filled.state, path)
    return filled
