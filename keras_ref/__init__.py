"""The reference: the lab's four attention maps by Keras and unmodified tf-keras-vis, written as one artifact.

Imports of ours `parity.contract` only, and never torch: what it says is independent of the port.
"""

__all__ = ["KerasRefError"]


class KerasRefError(Exception):
    """Whatever keeps the reference from an answer; one line: what, where, what to do."""
