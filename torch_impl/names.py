"""Names that a user gives: methods and number formats, known without importing PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from parity.contract.methods import REFERENCE as REFERENCE_METHODS

"""The four maps of tf-keras-vis."""

STOCK_METHODS = ("gradcam@pytorch-grad-cam", "gradcam_plus_plus@pytorch-grad-cam", "smoothgrad@captum")
"""What the libraries draw by themselves, for comparison."""

METHOD_NAMES = (*REFERENCE_METHODS, *STOCK_METHODS)

TITLES = {
    "vanilla": "Vanilla saliency",
    "smoothgrad": "SmoothGrad",
    "gradcam": "Grad-CAM",
    "gradcam_plus_plus": "Grad-CAM++",
    "gradcam@pytorch-grad-cam": "pytorch-grad-cam's GradCAM",
    "gradcam_plus_plus@pytorch-grad-cam": "pytorch-grad-cam's GradCAMPlusPlus",
    "smoothgrad@captum": "Captum's NoiseTunnel",
}


PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16")
"""fp32 is strict: TF32 off. tf32 is float32 storage with TF32 products, on CUDA only."""


ENGINES = ("library", "shared")
"""Who computes: Captum and pytorch-grad-cam, map by map; or one pass for all of them. The maps are the same."""


NARROW = ("fp16", "bf16")
"""Formats in which the libraries' own calls fail or lose small gradients: their noise and their NumPy are float32."""


def check_stock(methods: Iterable[str], precision: str) -> None:
    """Refuse a library's own method in a number format that the library does not draw it in.

    Raises:
        ValueError: the message says which method and what to give instead.
    """
    stock = [name for name in methods if name in STOCK_METHODS] if precision in NARROW else []
    if stock:
        raise ValueError(
            f"method {stock[0]} is the library's own call, which does not work in {precision}: give precision fp32, "
            "or leave the method out"
        )


def canonical_name(name: str) -> str:
    """The key of a method: `gradcam++` is an alias of `gradcam_plus_plus`.

    Raises:
        ValueError: unknown; the message lists what is known.
    """
    key = name.strip().lower().replace("gradcam++", "gradcam_plus_plus")
    if key not in METHOD_NAMES:
        nearest = difflib.get_close_matches(key, METHOD_NAMES, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"method {name!r} is unknown{hint} (known: {', '.join(METHOD_NAMES)})")
    return key


def is_cam(name: str) -> bool:
    """Whether the method draws on feature maps, and so is shown over the photograph."""
    return canonical_name(name).startswith("gradcam")


def title(name: str) -> str:
    """The method's name for a reader."""
    return TITLES[canonical_name(name)]
