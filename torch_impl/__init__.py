"""Attention maps of a PyTorch classifier, as tf-keras-vis draws them: saliency, SmoothGrad, Grad-CAM(++), LayerCAM, Score-CAM.

from torch_impl import Explainer
maps = Explainer.vgg16()(["cat.jpg"], classes=["Egyptian cat"])
maps["gradcam"]  # (1, 224, 224), in [0, 1]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_impl._version import __version__

if TYPE_CHECKING:
    from torch_impl.batch.reading import StoredMaps, read_maps
    from torch_impl.explainer import Explainer
    from torch_impl.explanation import Explanation

__all__ = ["Explainer", "Explanation", "StoredMaps", "__version__", "read_maps"]


_HOMES = {
    "Explainer": "torch_impl.explainer",
    "Explanation": "torch_impl.explanation",
    "StoredMaps": "torch_impl.batch.reading",
    "read_maps": "torch_impl.batch.reading",
}


def __getattr__(name: str) -> Any:
    """Import PyTorch only when something that needs it is asked for: `--help` answers at once."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
