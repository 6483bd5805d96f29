"""A set of texts that only answers whether one was there before."""

from __future__ import annotations

import hashlib
import os
from array import array


class Seen:
    """Remembers texts by 64 bits each: 12 to 24 bytes an entry, where a set of paths takes 150.

    Two texts are taken for one with a probability of n² / 2⁶⁵: 4e-8 for 1.28 million. The hash is keyed at random, so
    that nobody can choose names that hide one another.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._count = 0
        self._slots = array("Q", bytes(8 * 1024))

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> bool:
        """Adds a text; True if it is new."""
        data = text.encode("utf-8", "surrogatepass")
        # 0 marks an empty slot.
        value = int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._key).digest(), "little") or 1
        if not self._put(self._slots, value):
            return False
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            larger = array("Q", bytes(16 * len(self._slots)))
            for old in self._slots:
                if old:
                    self._put(larger, old)
            self._slots = larger
        return True

    @staticmethod
    def _put(slots: array[int], value: int) -> bool:
        mask = len(slots) - 1
        place = value & mask
        while slots[place]:
            if slots[place] == value:
                return False
            place = (place + 1) & mask
        slots[place] = value
        return True
