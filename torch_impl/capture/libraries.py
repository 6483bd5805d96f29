"""The libraries: gradients of the input by Captum's `Saliency`, those of the target layer by pytorch-grad-cam's `BaseCAM`.

Import this file where it is needed only: the libraries take seconds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from captum.attr import Saliency
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl.arrays import FeatureMaps, Images, Target
from torch_impl.capture.passes import Capture, Choose, Pass, forward
from torch_impl.capture.target_layer import NOT_ON_THE_WAY, LayerError, check_runs, feature_maps
from torch_impl.precision import at_least_fp32, score_scale


class Libraries(Capture):
    """Captum and pytorch-grad-cam, map by map."""

    one_by_one = True

    def take(self, inputs: Images, target: Target | Choose, needs: Collection[str], options: Options) -> Pass:
        """See `Capture.take`."""
        filled: dict[str, Tensor] = {}
        if callable(target):
            with torch.no_grad():
                filled["logits"] = forward(self.model, inputs.clone(memory_format=torch.preserve_format))
            target = target(filled["logits"])
        if "input_gradients" in needs:
            filled["input_gradients"] = self.input_gradients(inputs, target)
        if "activations" in needs or "gradients" in needs:
            assert self.layer is not None
            filled["activations"], filled["gradients"] = self._at_layer(self.layer, inputs, target)
        return Pass(inputs=inputs, target=target, options=options, capture=self, **filled)

    def input_gradients(self, inputs: Images, target: Target) -> Images:
        """See `Capture.input_gradients`."""
        scale = score_scale(inputs.dtype)

        def score(x: Images) -> Tensor:
            logits: Tensor = self.model(x)
            return logits if scale == 1 else logits.float() * scale

        leaf = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        gradients: Tensor = Saliency(score).attribute(leaf, target=target, abs=False)
        return gradients.detach().to(at_least_fp32(inputs.dtype)) / scale

    def _at_layer(self, layer: nn.Module, inputs: Images, target: Target) -> tuple[FeatureMaps, FeatureMaps]:
        """A and G.

        Two hooks stand around the library's own. The one before them cuts the graph at the target layer: the backward
        pass ends there, and a frozen network with a plain input works. The one after them hands a copy to the rest of
        the network, so that an in-place layer that follows cannot overwrite what was captured.
        """
        scale = score_scale(inputs.dtype)
        cut = layer.register_forward_hook(lambda module, args, output: feature_maps(output).detach().requires_grad_())
        engine = CapturingCAM(self.model, [layer])  # no `with` block: in one the library swallows an IndexError
        copy = layer.register_forward_hook(lambda module, args, output: output.clone())
        try:
            activations, gradients = engine(inputs, [_Score(category, scale) for category in target.tolist()])
        finally:
            engine.activations_and_grads.release()
            cut.remove()
            copy.remove()
        wide = at_least_fp32(inputs.dtype)
        return activations.to(inputs.device, wide), gradients.to(inputs.device, wide) / scale


class _Score:
    """A pytorch-grad-cam target: one class's logit, scaled where float16 needs it."""

    def __init__(self, category: int, scale: float) -> None:
        self.category, self.scale = category, scale

    def __call__(self, logits: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise LayerError(NOT_ON_THE_WAY)
        score = logits[self.category]
        return score if self.scale == 1 else score.float() * self.scale


class CapturingCAM(BaseCAM):  # type: ignore[misc]  # pytorch-grad-cam has no type information
    """pytorch-grad-cam's engine; a call returns what it captured: (activations, gradients), on the CPU.

    What the library does to them on the way out (NumPy in float32, min–max before and after a half-pixel resize) is
    replaced at its extension points.
    """

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> list[Any]:
        """A and G of the one layer.

        Raises:
            LayerError: it did not run exactly once.
        """
        captured = self.activations_and_grads
        check_runs(len(captured.activations))
        check_runs(len(captured.gradients))
        return [(captured.activations[0], captured.gradients[0])]

    def aggregate_multi_layers(self, per_layer: list[Any]) -> Any:
        """One layer: its own, unchanged."""
        return per_layer[0]
