"""The libraries: gradients of the input by Captum's `Saliency`, those of the target layer by pytorch-grad-cam's `BaseCAM`.

Import this file where it is needed only: the libraries take seconds.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from captum.attr import Saliency
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl.arrays import Images, Target
from torch_impl.capture.layout import LayerError
from torch_impl.capture.passes import NO_INPUT_GRADIENT, Capture, Choose, Pass
from torch_impl.capture.target_layer import NOT_ON_THE_WAY, check_runs, cut_off, in_place_of, tensor_of
from torch_impl.precision import SCORE_SCALE, at_least_fp32
from torch_impl.preserve import ModelError


class Libraries(Capture):
    """Captum and pytorch-grad-cam, map by map."""

    one_by_one = True

    def take(self, inputs: Images, target: Target | Choose, needs: Collection[str], options: Options) -> Pass:
        """See `Capture.take`."""
        filled: dict[str, Any] = {}
        self.attend()
        if callable(target):
            filled["logits"] = self.logits_alone(inputs)
            target = target(filled["logits"])
        if "input_gradients" in needs:
            filled["input_gradients"] = self.input_gradients(inputs, target)
        if "activations" in needs or "gradients" in needs:
            assert self.layer is not None
            with cut_off(self.layer):
                activations, gradients = self._at_layer(self.layer, inputs, target, "gradients" in needs)
            filled["activations"] = self.feature_maps(activations.to(inputs.device), inputs)
            if gradients is not None:
                filled["gradients"] = self.feature_maps(gradients.to(inputs.device), inputs) / SCORE_SCALE
        return Pass(inputs=inputs, target=target, options=options, capture=self, **filled)

    def input_gradients(self, inputs: Images, target: Target) -> Images:
        """See `Capture.input_gradients`."""
        leaf = inputs.detach().requires_grad_()

        def score(x: Images) -> Tensor:
            logits: Tensor = self.model(x)
            if not logits.requires_grad:
                raise ModelError(NO_INPUT_GRADIENT)
            return logits.to(at_least_fp32(logits.dtype)) * SCORE_SCALE

        try:
            gradients: Tensor = Saliency(score).attribute(leaf, target=target, abs=False)
        except RuntimeError as error:
            if "not have been used in the graph" in str(error):
                raise ModelError(NO_INPUT_GRADIENT) from None
            raise
        return gradients.detach().to(at_least_fp32(inputs.dtype)) / SCORE_SCALE

    def _at_layer(
        self, layer: nn.Module, inputs: Images, target: Target, backward: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output and, if wanted, the scaled score's gradient with respect to it, on the CPU.

        Two hooks stand around the library's own. The one before them cuts the graph at the target layer: the backward
        pass ends there, and a frozen network with a plain input works. The one after them hands a copy to the rest of
        the network, so that an in-place layer that follows cannot overwrite what was captured.
        """
        wrapped: list[object] = []

        def cut(module: nn.Module, args: object, output: object) -> Tensor:
            wrapped.append(output)
            return tensor_of(output).detach().requires_grad_()

        handles = [layer.register_forward_hook(cut)]
        # No `with` block: in one the library swallows an IndexError.
        engine = CapturingCAM(self.model, [layer], uses_gradients=backward)
        engine.device = inputs.device
        handles.append(layer.register_forward_hook(lambda *given: in_place_of(wrapped[-1], given[2].clone())))
        # Counted on the way there: where a part is checkpointed, it runs once more on the way back.
        handles.append(self.model.register_forward_hook(lambda *_: check_runs(len(wrapped))))
        try:
            activations, gradients = engine(inputs, [partial(_score, category) for category in target.tolist()])
        finally:
            engine.activations_and_grads.release()
            for handle in handles:
                handle.remove()
        return activations, gradients


def _score(category: int, logits: Tensor) -> Tensor:
    """What pytorch-grad-cam calls a target: one class's logit, scaled."""
    if not logits.requires_grad:
        raise LayerError(NOT_ON_THE_WAY)
    return logits[category].to(at_least_fp32(logits.dtype)) * SCORE_SCALE


class CapturingCAM(BaseCAM):  # type: ignore[misc]  # pytorch-grad-cam has no type information
    """pytorch-grad-cam's engine; a call returns what it captured: (activations, gradients), on the CPU.

    What the library does to them on the way out (NumPy in float32, min–max before and after a half-pixel resize) is
    replaced at its extension points.
    """

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> list[Any]:
        """A and G of the one layer.

        Raises:
            LayerError: no gradient reached it.
        """
        captured = self.activations_and_grads
        if self.uses_gradients and not captured.gradients:
            raise LayerError(NOT_ON_THE_WAY)
        return [(captured.activations[0], captured.gradients[0] if captured.gradients else None)]

    def aggregate_multi_layers(self, per_layer: list[Any]) -> Any:
        """One layer: its own, unchanged."""
        return per_layer[0]
