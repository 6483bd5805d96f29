"""Two maps of the same photographs compared, and the sentence that the comparison allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torch_impl.faithfulness.baselines import BASELINES
from torch_impl.faithfulness.metrics import METRICS

CONFIDENCE = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Comparison:
    """How often a map is better than another, photograph by photograph.

    Attributes:
        metric: one of `metrics.COMPARED`.
        first: a map.
        second: another, or a baseline.
        better: photographs on which the first is better.
        worse: on which it is worse.
        ties: on which both are equal; they count for neither.
        low: lower end of the 95 % interval of better / (better + worse), Clopper and Pearson's.
        high: its upper end.
    """

    metric: str
    first: str
    second: str
    better: int
    worse: int
    ties: int
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval leaves one half out; else chance does as well, and it is `undecided`."""
        return "better" if self.low > 0.5 else "worse" if self.high < 0.5 else "undecided"

    @property
    def words(self) -> str:
        """The metric and the count: `drop (20 of 24, 0.63 to 0.95)`."""
        ties = f", {self.ties} tied" if self.ties else ""
        count = f"{self.better} of {self.better + self.worse}{ties}, {self.low:.2f} to {self.high:.2f}"
        return f"{METRICS[self.metric].title} ({count if self.better + self.worse else 'all tied'})"


def compared(metric: str, first: str, second: str, values: Mapping[str, np.ndarray]) -> Comparison:
    """Two maps by one metric.

    The interval is the exact one: Wilson's, which is shorter, would already call 4 of 4 photographs more than chance, which
    chance gives, for one map or the other, once in eight times.

    Args:
        metric: one of `metrics.COMPARED`.
        first: a map.
        second: another.
        values: map → (N,).
    """
    from scipy.stats import binomtest

    sign = 1 if METRICS[metric].better == "higher" else -1
    difference = sign * (values[first] - values[second])
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = 0.0, 1.0
    if better + worse:
        interval = binomtest(better, better + worse).proportion_ci(CONFIDENCE, method="exact")
        low, high = float(interval.low), float(interval.high)
    return Comparison(metric, first, second, better, worse, len(difference) - better - worse, low, high)


def pairs_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Every map with every baseline, then every later map with every earlier one."""
    others = [(first, second) for i, first in enumerate(methods) for second in methods[:i]]
    return [(method, baseline) for method in methods for baseline in BASELINES] + others


def sentence(pair: Sequence[Comparison]) -> str:
    """What may be said of two maps, of these photographs and this network, and no more.

    Args:
        pair: the same two maps by several metrics.
    """
    first, second = pair[0].first, pair[0].second
    count = pair[0].better + pair[0].worse + pair[0].ties
    beats = second in BASELINES
    verbs = {
        "better": f"beats {second} in" if beats else f"is better than {second} in",
        "worse": f"is worse than {second} in",
        "undecided": f"is not shown to beat {second} in" if beats else f"cannot be told from {second} in",
    }
    by = {verdict: ", ".join(c.words for c in pair if c.verdict == verdict) for verdict in verbs}
    parts = [f"{verb} {by[verdict]}" for verdict, verb in verbs.items() if by[verdict]]
    which = "this photograph" if count == 1 else f"these {count} photographs"
    return f"On {which} and this network, {first} {'; it '.join(parts)}."
