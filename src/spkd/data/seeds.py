"""Seeds for independent streams of random numbers."""

from __future__ import annotations

import hashlib
from enum import IntEnum


class Use(IntEnum):
    """What random numbers are for, as a seed's first part: those of one use are not to repeat in another."""

    ORDER = 0
    CROPS = 1
    VIEW = 2
    STEP = 3
    LOSSES = 4
    AUGMENT = 5
    MIX = 6
    TURNS = 7


def mixed_seed(*parts: int) -> int:
    """Return 63 bits that depend on every part and its place.

    Neighbouring seeds, epochs and images get unrelated numbers, which sums of them would not give. The
    same on every machine and in every process (``hash`` is not).

    >>> mixed_seed(0, 1) != mixed_seed(1, 0)
    True
    >>> mixed_seed(Use.STEP, 7) == mixed_seed(3, 7)
    True
    """
    plain = tuple(map(int, parts))  # or a member of Use would be written with its name
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
