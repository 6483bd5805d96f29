"""Do two programs draw the same attention maps? The comparison, and the first place where they part.

from parity import assert_parity
assert_parity(my_candidate, "reference.safetensors")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.candidate import Job
    from parity.comparison import assert_parity, compare
    from parity.contract.artifact import Artifact
    from parity.report import ParityReport
    from parity.twins import transfer

__all__ = ["Artifact", "Job", "ParityReport", "assert_parity", "compare", "transfer"]

_HOMES = {
    "assert_parity": "parity.comparison",
    "compare": "parity.comparison",
    "Artifact": "parity.contract.artifact",
    "Job": "parity.candidate",
    "ParityReport": "parity.report",
    "transfer": "parity.twins",
}


def __getattr__(name: str) -> Any:
    """Import on demand: `parity.contract` is imported by programs that need nothing else of this package."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
