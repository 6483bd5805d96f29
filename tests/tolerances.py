"""Every tolerance of the suite, each with its reason. None is loosened for one case."""

EXACT = 0.0
"""The same operations on the same numbers."""

FLOAT64 = 1e-12
"""Relative to the largest value: float64's 2e-16 times the few thousand terms of the longest sum, rounded up."""

FLOAT64_ALPHA = 1e-9
"""Grad-CAM++ divides by 2 + G·ΣA, which may come close to 0 and then magnifies FLOAT64."""

FLOAT32 = 1e-5
"""Relative to the largest value: float32's 6e-8 times the longest sum's growth; no ReLU near 0 flips in these cases."""

DIFFERENCE_QUOTIENT = 1e-8
"""Of a map's peak (here 0.03): a float64 score of 31 is off by some 1e-14 a network, over a step of 2e-3 by 1e-11 to 1e-10. A piecewise
linear network has no truncation, and no ReLU or max-pool switches within the step."""

LOGITS_ACROSS_FRAMEWORKS = 1e-5
"""Relative, float32: two implementations sum in different orders; measured 1e-6."""

NORMALIZE = 1e-7
"""normalize()'s own constant, against the map's range."""

NARROW_GRADIENTS = 0.999
"""Pearson's r of a map whose gradients are bfloat16 or float16: bfloat16 rounds each by 2⁻⁹ at most, sixteen layers by 4 times that at
random: 0.8 %, whose square is 6e-5."""

FLOAT16 = 0.1
"""A map's peak: float16's 5e-4 times sixteen layers forward and back, and the ReLUs and pools that switch on the way."""

FLOAT16_KEPT = 2.5e-4
"""Of a map's range, where it is kept min–max scaled in float16: half of the last place below 1 is 2⁻¹² = 2.44e-4."""
