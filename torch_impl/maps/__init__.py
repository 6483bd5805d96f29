"""The maps: one file each, a pure function of what it needs. Importing this package fills `registry.DRAWN`."""

from torch_impl import stock
from torch_impl.maps import gradcam, gradcam_plus_plus, layercam, scorecam, smoothgrad, vanilla

__all__ = ["gradcam", "gradcam_plus_plus", "layercam", "scorecam", "smoothgrad", "stock", "vanilla"]
