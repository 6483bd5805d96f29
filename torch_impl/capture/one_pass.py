"""The fewest passes: one forward and at most one backward pass of each photograph serve all maps.

Class activation maps alone need no gradient below their layer, so the backward pass ends there, and with it the memory
for the layers below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from parity.contract.methods import Options
from torch_impl.arrays import Images, Logits, Target
from torch_impl.capture.layout import LayerError
from torch_impl.capture.passes import NO_INPUT_GRADIENT, Capture, Choose, Pass, scaled_score
from torch_impl.capture.target_layer import NOT_ON_THE_WAY, check_runs, cut_off, in_place_of, tensor_of
from torch_impl.precision import SCORE_SCALE, at_least_fp32
from torch_impl.preserve import ModelError


class OnePass(Capture):
    """Hooks and autograd, and nothing else."""

    def take(self, inputs: Images, target: Target | Choose, needs: Collection[str], options: Options) -> Pass:
        """See `Capture.take`."""
        at_input, at_layer = "input_gradients" in needs, "activations" in needs or "gradients" in needs
        backward = at_input or "gradients" in needs
        if not needs and not callable(target):
            return Pass(inputs=inputs, target=target, options=options, capture=self)
        self.attend()
        if not needs:
            logits = self.logits_alone(inputs)
            return Pass(inputs=inputs, target=_of(target, logits), logits=logits, options=options, capture=self)
        leaf = inputs.detach().requires_grad_(at_input)
        captured: list[Tensor] = []
        reach = self._capturing(captured, at_input, backward) if at_layer else contextlib.nullcontext()
        with reach:
            logits = self.model(leaf) if backward else self.logits_alone(leaf)
            if at_layer:
                check_runs(len(captured))
            target = _of(target, logits)
            sources = ([leaf] if at_input else []) + captured
            gradients = self._gradients(logits, target, sources, at_input) if backward else []
        filled: dict[str, Any] = {"input_gradients": gradients[0].to(at_least_fp32(inputs.dtype))} if at_input else {}
        if at_layer:
            filled["activations"] = self.feature_maps(captured[0].detach(), inputs)
            filled |= {"gradients": self.feature_maps(gradients[-1], inputs)} if backward else {}
        return Pass(inputs=inputs, target=target, logits=logits.detach(), options=options, capture=self, **filled)

    @contextlib.contextmanager
    def _capturing(self, captured: list[Tensor], at_input: bool, backward: bool) -> Iterator[None]:
        """Within, the target layer's output is appended to `captured`, each time that it runs.

        The hook stays on the way back too: where a part is checkpointed, it runs once more then, and as it ran before.
        """
        assert self.layer is not None

        def capture(module: nn.Module, args: object, output: object) -> object:
            activations = tensor_of(output, gradients=backward)
            if not backward:
                captured.append(activations.clone())
                return output
            if not at_input or not activations.requires_grad:  # nothing below is read: the backward pass ends here
                activations = activations.detach().requires_grad_()
            captured.append(activations)
            return in_place_of(output, activations.clone())  # what follows may work in place

        handles = [self.layer.register_forward_hook(capture)]
        # See `logits_alone`'s second try.
        handles.append(self.model.register_forward_pre_hook(lambda *_: captured.clear()))
        try:
            with contextlib.nullcontext() if at_input else cut_off(self.layer):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def input_gradients(self, inputs: Images, target: Target) -> Images:
        """See `Capture.input_gradients`."""
        leaf = inputs.detach().requires_grad_()
        if self.compiled is None:
            return self._gradients(self.model(leaf), target, [leaf], True)[0].to(at_least_fp32(inputs.dtype))
        with torch.compiler.set_stance("default"):  # see `own_gradients`
            return self._gradients(self.compiled(leaf), target, [leaf], True)[0].to(at_least_fp32(inputs.dtype))

    def _gradients(self, logits: Logits, target: Target, sources: list[Tensor], at_input: bool) -> list[Tensor]:
        """∂score/∂source of each source; the first is the input, if `at_input`, the last else the target layer's output.

        Raises:
            LayerError: the target layer does not lie on the way to the logits.
            ModelError: no gradient reaches the input.
        """
        gradients: list[Tensor | None] = [None] * len(sources)
        if logits.requires_grad:
            gradients = list(torch.autograd.grad(scaled_score(logits, target), sources, allow_unused=True))
        if at_input and gradients[0] is None:
            raise ModelError(NO_INPUT_GRADIENT)
        if gradients[-1] is None:
            raise LayerError(NOT_ON_THE_WAY)
        wide = at_least_fp32(logits.dtype)
        return [gradient.to(wide) / SCORE_SCALE for gradient in gradients if gradient is not None]


def _of(target: Target | Choose, logits: Logits) -> Target:
    return target(logits.detach()) if callable(target) else target
