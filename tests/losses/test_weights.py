"""The weights' defaults are the papers' and bad ones are refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from spkd.errors import InputError
from spkd.losses.weights import LossWeights


def test_defaults_are_those_of_the_papers() -> None:
    weights = LossWeights()
    assert (weights.gamma, weights.alpha, weights.temperature, weights.beta) == (3000, 0.9, 4, 1000)


@pytest.mark.parametrize("name", ["gamma", "alpha", "temperature", "beta"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "3", True, None])
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be .* got {value}; try") as caught:
        LossWeights(**{name: value})
    assert "\n" not in str(caught.value)


def test_ends_of_the_ranges() -> None:
    assert LossWeights(gamma=0, alpha=0, beta=0).alpha == 0
    assert LossWeights(alpha=1).alpha == 1
    with pytest.raises(InputError, match=r"alpha must lie between 0 and 1, got 1\.5"):
        LossWeights(alpha=1.5)
    with pytest.raises(InputError, match="temperature must be above 0"):
        LossWeights(temperature=0)


@pytest.mark.parametrize("value", [np.int64(32), np.float32(32), np.float64(32), 32])
def test_numbers_of_numpy_are_numbers(value: Any) -> None:
    gamma = LossWeights(gamma=value).gamma
    assert gamma == 32
    assert type(gamma) is float


def test_importing_them_does_not_import_torch() -> None:
    code = "import sys, spkd.losses.weights, spkd.imports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
