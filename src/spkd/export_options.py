"""What a user can say of an exported file."""

from __future__ import annotations

from typing import Literal

TOLERANCE = 1e-4
"""Greatest difference of a logit from PyTorch's, relative to the greatest absolute logit."""
WeightBits = Literal[7, 8]
"""Bits of a weight in 8-bit integers; 8 is for processors with VNNI alone."""
WEIGHT_BITS: WeightBits = 7
