"""Where activations and gradients come from: two ways to fill the same `passes.Pass`, from which every map is drawn.

`library` asks Captum and pytorch-grad-cam, map by map; `shared` takes one pass for all maps. The maps are the same.
"""

ENGINES = ("library", "shared")
"""What a user may ask for."""


def check_compile(compile: bool, engine: str) -> None:
    """Refuse to compile another engine's passes.

    Raises:
        ValueError: the engine is not `shared`.
    """
    if compile and engine != "shared":
        raise ValueError(f"compile is for engine shared, whose passes are our own; the engine is {engine}")
