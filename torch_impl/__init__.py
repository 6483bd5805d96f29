"""Four attention maps of a PyTorch classifier, as tf-keras-vis draws them: vanilla saliency, SmoothGrad, Grad-CAM, Grad-CAM++.

from torch_impl import Explainer
maps = Explainer.vgg16()(["cat.jpg"], classes=["Egyptian cat"])
maps["gradcam"]  # (1, 224, 224), in [0, 1]
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch_impl._version import __version__

if TYPE_CHECKING:
    from torch_impl.batch.reading import StoredMaps, read_maps
    from torch_impl.explainer import Explainer, Explanation

# PyTorch asks for it at its first large allocation: feature maps on large pages, which saves the CPU some 4 % of a pass in
# page faults. Whoever has set it keeps it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = ["Explainer", "Explanation", "StoredMaps", "__version__", "read_maps"]


def __getattr__(name: str) -> Any:
    """Import PyTorch only when something that needs it is asked for: `--help` answers at once."""
    if name in ("Explainer", "Explanation"):
        from torch_impl import explainer

        return getattr(explainer, name)
    if name in ("StoredMaps", "read_maps"):
        from torch_impl.batch import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
