"""One row a map: all that anybody but its formula must know of it.

To add a map is to add a row here, and one function of this name on each side (`torch_impl.maps`, `keras_ref.maps`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Quantity:
    """One stage of a map's own computation.

    Attributes:
        name: `weights`, `alpha`, `raw`, `upsampled`, `final`, …
        axes: of one photograph: `H W C` the input's, `h w K` the target layer's, `S` SmoothGrad's samples, `m` the feature
            maps that Faster-ScoreCAM takes.
        whole: whether an artifact keeps every value of it.
    """

    name: str
    axes: str
    whole: bool = False

    @property
    def is_map(self) -> bool:
        """Whether it is a picture, of which a correlation says something."""
        return self.axes in ("h w", "H W")


@dataclass(frozen=True)
class Method:
    """A map.

    Attributes:
        name: its key everywhere: in files, columns, stages.
        title: its name for a reader.
        quantities: its own stages in the order of the computation; none for a library's own map, which is not compared.
        aliases: other spellings that a user may give.
        overlay: whether it is shown over the photograph; otherwise by itself.
        library: whose own call draws it, for comparison; "" for a map of the reference.
        default: whether it is drawn where no method is named.
        float64_limit: what two float64 programs may differ by, of a stage's range.
        simulated_roundings: how often its rounding is simulated, where one float32 run of the reference says too little.
    """

    name: str
    title: str
    quantities: tuple[Quantity, ...] = ()
    aliases: tuple[str, ...] = ()
    overlay: bool = False
    library: str = ""
    default: bool = False
    float64_limit: float = 1e-9
    simulated_roundings: int = 0

    @property
    def at_layer(self) -> bool:
        """Whether it is drawn at the target layer and then enlarged; otherwise at the input."""
        return any(quantity.name == "raw" and quantity.axes == "h w" for quantity in self.quantities)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the `Options` that it alone takes."""
        return ("channels",) if any(quantity.axes == "m" for quantity in self.quantities) else ()

    @property
    def noisy(self) -> bool:
        """Whether it looks at noisy copies of the input."""
        return any(quantity.name == "noise" for quantity in self.quantities)


_WEIGHTS, _RAW = Quantity("weights", "K", whole=True), Quantity("raw", "h w", whole=True)
_ENLARGED = (Quantity("upsampled", "H W"), Quantity("final", "H W"))
_AT_INPUT = (Quantity("raw", "H W", whole=True), Quantity("final", "H W"))

_ROWS = (
    Method("vanilla", "Vanilla saliency", _AT_INPUT, default=True),
    Method("smoothgrad", "SmoothGrad", (Quantity("noise", "S H W C"), *_AT_INPUT), default=True),
    Method("gradcam", "Grad-CAM", (_WEIGHTS, _RAW, *_ENLARGED), overlay=True, default=True),
    Method(
        "gradcam_plus_plus",
        "Grad-CAM++",
        (Quantity("alpha", "h w K"), _WEIGHTS, _RAW, *_ENLARGED, Quantity("final_with_exp", "H W")),
        aliases=("gradcam++",),
        overlay=True,
        default=True,
        float64_limit=1e-6,
        simulated_roundings=16,  # both, because it divides by 2 + G·ΣA, which comes near 0 and magnifies rounding
    ),
    Method("layercam", "LayerCAM", (_RAW, *_ENLARGED), overlay=True),
    Method("scorecam", "Score-CAM", (Quantity("scores", "K", whole=True), _WEIGHTS, _RAW, *_ENLARGED), overlay=True),
    Method(
        "faster_scorecam",
        "Faster-ScoreCAM",
        (*(Quantity(name, "m", whole=True) for name in ("channels", "scores", "weights")), _RAW, *_ENLARGED),
        overlay=True,
    ),
    *(
        Method(
            f"{name}@pytorch-grad-cam",
            f"pytorch-grad-cam's {title}",
            aliases=tuple(f"{alias}@pytorch-grad-cam" for alias in aliases),
            overlay=True,
            library="pytorch-grad-cam",
        )
        for name, title, aliases in (
            ("gradcam", "GradCAM", ()),
            ("gradcam_plus_plus", "GradCAMPlusPlus", ("gradcam++",)),
            ("layercam", "LayerCAM", ()),
            ("scorecam", "ScoreCAM", ()),
        )
    ),
    Method("smoothgrad@captum", "Captum's NoiseTunnel", library="captum"),
)

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
"""Every map by its name, in the order in which they are drawn."""

REFERENCE = tuple(row.name for row in _ROWS if not row.library)
"""The maps of tf-keras-vis: those that are compared."""

LIBRARY = tuple(row.name for row in _ROWS if row.library)
"""What the libraries draw by themselves, for comparison."""

DEFAULT = tuple(row.name for row in _ROWS if row.default)
"""The lab's own."""


FASTER_CHANNELS = 10
"""Feature maps that Faster-ScoreCAM takes where nobody says, or all of them where there are fewer."""


@dataclass(frozen=True)
class Options:
    """What a map may be told beside the photograph and its class.

    Attributes:
        n_samples: SmoothGrad's noisy copies, at least 1.
        noise_level: SmoothGrad's σ, a fraction of each image's own range, ≥ 0.
        seed: of SmoothGrad's noise, 0 to 2**32 − 1.
        channels: feature maps that Faster-ScoreCAM takes, at least 1; None: 10, or all where there are fewer.
        relu: whether a class activation map ends in its ReLU, as the papers' do; without it, evidence against is negative.

    Raises:
        ValueError: out of range; the message says what may be given.
    """

    n_samples: int = 20
    noise_level: float = 0.2
    seed: int = 0
    channels: int | None = None
    relu: bool = True

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ValueError(f"n_samples is {self.n_samples}: SmoothGrad needs at least 1")
        if not 0 <= self.noise_level < math.inf:
            raise ValueError(f"noise_level is {self.noise_level}: give a fraction of the image's range, 0 or more")
        if isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed}: give 0 to 4294967295")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels is {self.channels}: Faster-ScoreCAM needs at least 1")


def canonical_name(text: str, among: Sequence[str] = tuple(METHODS)) -> str:
    """The name of a method, from any spelling.

    Args:
        text: a name or an alias.
        among: the names that may be given here.

    Raises:
        ValueError: unknown; the message says the nearest, and what is known.
    """
    folded = text.strip().lower()
    names = {spelling: name for name in among for spelling in (name, *METHODS[name].aliases)}
    if folded not in names:
        nearest = difflib.get_close_matches(folded, names, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        known = ", ".join((*METHODS[name].aliases, name)[0] for name in among)
        raise ValueError(f"method {text!r} is unknown{hint} (known: {known})")
    return names[folded]


def canonical_names(texts: str | Iterable[str], among: Sequence[str] = tuple(METHODS)) -> tuple[str, ...]:
    """Names of methods, each once, in the order given.

    Args:
        texts: names or aliases, or one text in which commas stand between them.
        among: the names that may be given here.

    Raises:
        ValueError: an unknown method, an empty name, or none at all.
    """
    spellings = texts.split(",") if isinstance(texts, str) else list(texts)
    if not spellings:
        raise ValueError(f"no method: give one or more of {', '.join(among)}")
    return tuple(dict.fromkeys(canonical_name(text, among) for text in spellings))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The same names in the order of the table."""
    wanted = set(names)
    return tuple(name for name in METHODS if name in wanted)
