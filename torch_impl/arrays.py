"""Shapes for signatures. N photographs, C input channels of H×W; K feature maps of h×w; S samples."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "N C H W"]
"""The network's input, preprocessed."""

Image = Float[Tensor, "C H W"]
"""One photograph, preprocessed."""

FeatureMaps = Float[Tensor, "N K h w"]
"""Activations of a layer, or the score's gradients with respect to them."""

ChannelWeights = Float[Tensor, "N K"]
"""One weight for each feature map."""

Cams = Float[Tensor, "N h w"]
"""Raw class activation maps, at the layer's resolution."""

Maps = Float[Tensor, "N H W"]
"""Maps at the photographs' resolution."""

Logits = Float[Tensor, "N classes"]
"""The last layer's outputs, before any softmax."""

Target = Int[Tensor, "N"]
"""Class index of each photograph."""
