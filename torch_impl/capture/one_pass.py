"""The fewest passes: one forward and at most one backward pass of each photograph serve all maps.

Class activation maps alone need no gradient below their layer, so the backward pass ends there, and with it the memory
for the layers below.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl.arrays import Images, Logits, Target
from torch_impl.capture.passes import Capture, Choose, Pass, forward, scaled_score
from torch_impl.capture.target_layer import NOT_ON_THE_WAY, LayerError, check_runs, feature_maps
from torch_impl.precision import at_least_fp32


class OnePass(Capture):
    """Hooks and autograd, and nothing else."""

    def take(self, inputs: Images, target: Target | Choose, needs: Collection[str], options: Options) -> Pass:
        """See `Capture.take`."""
        at_input, at_layer = "input_gradients" in needs, "activations" in needs or "gradients" in needs
        if not needs:
            if not callable(target):
                return Pass(inputs=inputs, target=target, options=options, capture=self)
            with torch.no_grad():
                logits = forward(self.model, inputs)
            return Pass(inputs=inputs, target=target(logits), logits=logits, options=options, capture=self)
        leaf = inputs.detach().requires_grad_(at_input)
        captured: list[Tensor] = []

        def capture(module: nn.Module, args: object, output: object) -> Tensor:
            activations = feature_maps(output)
            if not at_input or not activations.requires_grad:  # nothing below is read: the backward pass ends here
                activations = activations.detach().requires_grad_()
            captured.append(activations)
            return activations.clone()  # what follows may work in place

        handle = self.layer.register_forward_hook(capture) if at_layer and self.layer else None
        try:
            logits = forward(self.model, leaf)
        finally:
            if handle:
                handle.remove()
        if at_layer:
            check_runs(len(captured))
        target = target(logits.detach()) if callable(target) else target
        gradients = self._gradients(logits, target, ([leaf] if at_input else []) + captured)
        filled = {"input_gradients": gradients[0]} if at_input else {}
        if at_layer:
            filled |= {"activations": captured[0].detach().to(at_least_fp32(inputs.dtype)), "gradients": gradients[-1]}
        return Pass(inputs=inputs, target=target, logits=logits.detach(), options=options, capture=self, **filled)

    def input_gradients(self, inputs: Images, target: Target) -> Images:
        """See `Capture.input_gradients`."""
        leaf = inputs.detach().requires_grad_()
        return self._gradients(self.model(leaf), target, [leaf])[0]

    def _gradients(self, logits: Logits, target: Target, sources: list[Tensor]) -> list[Tensor]:
        """∂score/∂source of each source, float32 or float64.

        Raises:
            LayerError: the last source does not lie on the way to the logits.
            ValueError: the logits do not depend on the inputs.
        """
        if not logits.requires_grad:
            raise LayerError(NOT_ON_THE_WAY)
        score, scale = scaled_score(logits, target)
        gradients = torch.autograd.grad(score, sources, allow_unused=True)
        if gradients[-1] is None and len(sources) > 1:
            raise LayerError(NOT_ON_THE_WAY)
        if gradients[0] is None:
            raise ValueError("the model's logits do not depend on its inputs: there is no gradient to draw")
        return [gradient.to(at_least_fp32(logits.dtype)) / scale for gradient in gradients]
