"""A model that was handed in stays as it is: what is run is a double of its modules, over the very same weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from parity.contract.text import one_line
from torch_impl.rewiring import Rewiring, inside


class ModelError(ValueError):
    """A model that cannot be explained; the message says why and what to do."""


CHANGED = (
    "the model's weights were changed while its maps were drawn (training in another thread, or a forward pass that writes into "
    "them): explain a copy of it, copy.deepcopy(model)"
)


class Double:
    """A model's modules once more, frozen and in eval mode; parameters share the original's memory.

    Hooks that are set on the double, modes, gradients, buffers and whatever its modules remember of a pass stay on the double,
    so that the original can predict, or train, in another thread meanwhile, and is afterwards what it was, also after an
    error. The original's own hooks are called, as in any prediction.

    The parameters are copies where they are converted, and where a module does something of its own on its way to eval mode,
    such as merging an adapter into the weights.

    Args:
        model: any module; DataParallel's and torch.compile's wrappers are taken off.
        device: where the double is to be; None: where the model is.
        dtype: of its floating-point tensors; None: as the model's.

    Raises:
        ModelError: not a module, or one that takes no hooks or has no gradients.

    Attributes:
        model: the double of the model inside its wrappers.
    """

    def __init__(
        self, model: nn.Module, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        inner = unwrapped(model)
        own_modes = any(module.training for module in inner.modules()) and any(map(_switches_itself, inner.modules()))
        share = device is None and dtype is None and not own_modes
        with torch.inference_mode(False):
            self._rewiring = Rewiring(share=share, device=device, dtype=dtype)
            self.model = self._rewiring.module(inner)
        if own_modes:
            self.model.eval()
        for double in self.model.modules():
            double.training = False
            if isinstance(double, nn.RNNBase):  # cuDNN has gradients in training mode only
                double.training, double.dropout = True, 0.0  # without dropout it is the same
        self._versions = [(p, p._version) for p in self.model.parameters()] if share else []

    def of(self, module: nn.Module) -> nn.Module:
        """The double of a module of the original."""
        return self._rewiring.module(module)

    def check_unchanged(self) -> None:
        """Refuse weights into which somebody wrote since the double was made.

        Raises:
            ModelError: the passes saw two different models, or a mixture of them.
        """
        if any(parameter._version != version for parameter, version in self._versions):
            raise ModelError(CHANGED)


def _switches_itself(module: nn.Module) -> bool:
    """Whether a module does more on its way to eval mode than PyTorch's own do."""
    kind = type(module)
    own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return own or "train" in module.__dict__ or "eval" in module.__dict__


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel's and torch.compile's wrappers.

    Raises:
        ModelError: not a module, or one that takes no hooks or has no gradients.
    """
    if not isinstance(model, nn.Module):
        kind = "a function" if callable(model) else type(model).__name__
        raise ModelError(f"the model is {kind}: give an nn.Module (a function can be wrapped in one)")
    model = inside(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            which = f"the model's part {name!r}" if name else "the model"
            raise ModelError(f"{which} is scripted or traced (TorchScript), which takes no hooks: give the eager model")
        if _quantized(module):
            raise ModelError(
                f"the model holds quantized layers ({type(module).__name__}), which have no gradients: give the float model"
            )
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(nn.parameter.is_lazy, tensors)):
        raise ModelError("the model has lazy layers without weights yet: run it once before it is explained")
    if any(values.device.type == "meta" for values in tensors):
        raise ModelError(
            "the model has weights without values (on the meta device: not loaded yet, or offloaded): load them into memory first"
        )
    return model


def _quantized(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's with integer weights: FloatFunctional, in the same package, is not."""
    package = type(module).__module__
    return package.startswith("torch.") and ".quantized" in package and "FloatFunctional" not in type(module).__name__


def failure(error: Exception, inputs: Tensor, model: nn.Module) -> ModelError:
    """PyTorch's error in a pass, as one line that says on what it happened."""
    kind = str(inputs.dtype).removeprefix("torch.")
    weights = next((str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()), kind)
    beside = f" (its weights are {weights})" if weights != kind else ""
    return ModelError(f"the model fails on inputs {kind} {tuple(inputs.shape)}{beside}: {one_line(error)}")


@contextlib.contextmanager
def own_gradients() -> Iterator[None]:
    """Gradients are had, and nothing is compiled or computed in another number format, whatever the caller has switched on."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        if "torch._dynamo" in sys.modules:  # hooks are not part of what was compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
