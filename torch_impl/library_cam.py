"""pytorch-grad-cam's engine around the formulas of `cam`. A module of its own: the library takes seconds to import."""

from __future__ import annotations

from typing import Any

from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn

from torch_impl import cam
from torch_impl.arrays import Cams, ChannelWeights, Images, Target
from torch_impl.precision import at_least_fp32, score_scale


class _Score:
    """A pytorch-grad-cam target: one class's logit, scaled where float16 needs it."""

    def __init__(self, category: int, scale: float) -> None:
        self.category, self.scale = category, scale

    def __call__(self, logits: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise cam.LayerError(cam.NOT_ON_THE_WAY)
        score = logits[self.category]
        return score if self.scale == 1 else score.float() * self.scale


class ReferenceCAM(BaseCAM):  # type: ignore[misc]  # pytorch-grad-cam has no type information
    """pytorch-grad-cam's engine with the reference's arithmetic.

    The library captures activations and gradients; what it does to them on the way out (NumPy in float32, min–max before
    and after a half-pixel resize) is replaced, so that a call returns the raw map (N, h, w) as a tensor.

    Two hooks stand around the library's own. The one before them cuts the graph at the target layer: the backward pass
    ends there, and a frozen network with a plain input works. The one after them hands a copy to the rest of the network,
    so that an in-place layer that follows cannot overwrite what was captured.

    Close it in a `finally`: as a `with` block the library swallows an IndexError.
    """

    def __init__(self, model: nn.Module, target_layer: nn.Module) -> None:
        self._around = [target_layer.register_forward_hook(_cut)]
        super().__init__(model, [target_layer])
        self._around.append(target_layer.register_forward_hook(_copy))

    def close(self) -> None:
        """Remove every hook."""
        self.activations_and_grads.release()
        for handle in self._around:
            handle.remove()

    def raw(self, inputs: Images, target: Target) -> Cams:
        """The map at the layer's resolution, ≥ 0; float32, or float64 for float64 inputs.

        Raises:
            LayerError: the layer did not run exactly once, or its output is not (N, K, h, w).
        """
        self._scale = score_scale(inputs.dtype)
        drawn: Tensor = self(inputs, [_Score(category, self._scale) for category in target.tolist()])
        return drawn.to(inputs.device)

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> ChannelWeights:
        """Channel weights of this method."""
        raise NotImplementedError

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> list[Cams]:
        """The library's extension point after its capture: here, formulas and nothing else."""
        captured = self.activations_and_grads
        if len(captured.activations) != 1 or len(captured.gradients) != 1:
            raise cam.LayerError(
                f"the target layer ran {len(captured.activations)} times in one pass: choose a layer that runs once"
            )
        dtype = at_least_fp32(input_tensor.dtype)
        activations = captured.activations[0].to(dtype)
        gradients = captured.gradients[0].to(dtype) / self._scale
        weights = self.get_cam_weights(input_tensor, self.target_layers, targets, activations, gradients)
        return [cam.class_activation_map(activations, weights)]

    def aggregate_multi_layers(self, cam_per_target_layer: list[Cams]) -> Cams:
        """One layer: its map, unchanged."""
        return cam_per_target_layer[0]


class GradCAM(ReferenceCAM):
    """Source: arXiv:1610.02391."""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> ChannelWeights:
        """See `cam.grad_cam_weights`."""
        return cam.grad_cam_weights(grads)


class GradCAMPlusPlus(ReferenceCAM):
    """Source: arXiv:1710.11063."""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> ChannelWeights:
        """See `cam.grad_cam_plus_plus_weights`."""
        return cam.grad_cam_plus_plus_weights(activations, grads)


def _cut(module: nn.Module, args: Any, output: Any) -> Tensor:
    return cam.checked_feature_maps(output).detach().requires_grad_()


def _copy(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.clone()
