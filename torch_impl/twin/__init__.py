"""A PyTorch module beside a network of another program that it claims to be: paired, compared, explained, filled.

What `parity.port` asks for by name.
"""

from torch_impl.twin.asked import filled, paired, preprocessed, write_state

__all__ = ["filled", "paired", "preprocessed", "write_state"]
