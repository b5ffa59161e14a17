"""The weights of the losses, with their usual values."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

from spkd.errors import InputError


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms and the temperature; the defaults are those of the papers' experiments.

    Those are of 200 epochs in batches of 128. In short training on the digits the best gamma lay between half the
    batch size and five times the batch size.

    Args:
        gamma: weight of sp, the similarity-preserving loss; its effect depends on gamma / batch size.
        alpha: weight of kd, the soft targets, from 0 to 1; the labels' cross-entropy then has the weight 1 - alpha.
        temperature: temperature of the soft targets.
        beta: weight of at, attention transfer; its effect depends on the size of the maps.

    Raises:
        InputError: for a negative or non-finite value, an alpha above 1, or a temperature of 0.
    """

    gamma: float = 3000.0
    alpha: float = 0.9
    temperature: float = 4.0
    beta: float = 1000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                raise InputError(
                    f"{field.name} must be a finite number of at least 0, got {value}; try {field.default}"
                )
            object.__setattr__(self, field.name, float(value))  # of NumPy, say
        if self.alpha > 1:
            raise InputError(f"alpha must lie between 0 and 1, got {self.alpha}; try 0.9")
        if self.temperature == 0:
            raise InputError("temperature must be above 0, got 0; try 4")
