"""How much of a photograph is taken away: apart from what does it, so that `--help` needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

RANDOM_LAYERS = 4
"""Networks of which the top layer, more layers, and at last all layers are random, where nobody says how many."""


@dataclass(frozen=True)
class Removals:
    """How much is taken away.

    Attributes:
        shares: of the pixels that ROAD fills in, each in (0, 1).
        steps: in which deletion goes from the whole photograph to none of it.
        seed: of the order of equally relevant pixels, and of the noise in what is filled in.

    Raises:
        ValueError: out of range; the message says what may be given.
    """

    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares are {self.shares}: give one or more between 0 and 1, such as 0.1, 0.5, 0.9")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: deletion needs at least 1")

    @property
    def kinds(self) -> list[tuple[str, float]]:
        """(what is done to a photograph, to which share of it), picture by picture."""
        road = [(kind, share) for kind in ("most", "least") for share in self.shares]
        return [("masked", 1.0), *road, *(("deleted", step / self.steps) for step in range(1, self.steps + 1))]
