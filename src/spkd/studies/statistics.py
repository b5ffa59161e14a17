"""What can be said of a handful of runs: summaries, and comparisons paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from spkd.errors import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """One method's results over its seeds, in the unit of the values.

    Attributes:
        median: the middle value, or the mean of the two in the middle.
        mean: the arithmetic mean.
        sem: standard error of the mean, ``s / sqrt(n)`` of n values with the sample standard deviation ``s``
            (divisor n - 1); None for a single value, which says nothing of the spread.
    """

    median: float
    mean: float
    sem: float | None


@dataclass(frozen=True)
class PairedComparison:
    """How two methods differ over the seeds that both were run with.

    Attributes:
        difference: mean of ``value - baseline`` over the seeds; below zero when the values are lower.
        interval: 95 % confidence interval of the difference by Student's t distribution with n - 1 degrees
            of freedom; None where ``p_value`` is.
        p_value: of the two-sided paired t-test against no difference. None for a single pair, and when all
            pairs differ by the same amount: the test judges a difference by its spread over the seeds, and a
            spread of zero among a few values comes of their coarse steps (one image of a thousand), not of
            certainty.
        pairs: how many there are.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    pairs: int


def summarise(values: Sequence[float]) -> Summary:
    """Summarise the results of one method.

    Raises:
        InputError: when there is no value, or one that is not finite.

    >>> summarise([2.0, 4.0, 9.0])
    Summary(median=4.0, mean=5.0, sem=2.0816659994661326)
    """
    array = _checked("values", values)
    sem = float(array.std(ddof=1) / np.sqrt(array.size)) if array.size > 1 else None
    return Summary(float(np.median(array)), float(array.mean()), sem)


def compare_paired(values: Sequence[float], baseline: Sequence[float]) -> PairedComparison:
    """Compare two methods whose i-th values come from the same seed.

    Raises:
        InputError: when the lengths differ, there is no value, or one is not finite.

    >>> comparison = compare_paired([1.0, 2.0, 2.0, 4.0], [2.0, 4.0, 4.0, 5.0])
    >>> comparison.difference, round(comparison.p_value, 4)
    (-1.5, 0.0138)
    """
    array, base = _checked("values", values), _checked("baseline", baseline)
    if array.size != base.size:
        raise InputError(
            f"baseline: expected one value for each of the {array.size} values, got {base.size}; "
            "give both in the order of the same seeds"
        )
    differences = array - base
    mean = float(differences.mean())
    # Equal steps such as 3.4 - 3.1 and 3.3 - 3.0 differ in their last bits only.
    rounding = 1e-12 * max(float(np.abs(array).max()), float(np.abs(base).max()), 1.0)
    if array.size < 2 or float(np.ptp(differences)) <= rounding:
        return PairedComparison(mean, None, None, array.size)
    freedom = array.size - 1
    sem = float(differences.std(ddof=1) / np.sqrt(array.size))
    half_width = float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * sem
    p_value = 2.0 * float(special.stdtr(freedom, -abs(mean) / sem))
    return PairedComparison(mean, (mean - half_width, mean + half_width), p_value, array.size)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values corrected for their number (Holm 1979), in their order.

    The i-th smallest of m is multiplied by m - i (from i = 0), and none is below one before it nor above 1. Then the
    chance of calling any difference real that is none is at most the level, whatever the tests have in common.

    What has no p-value (nothing finished yet, or the same difference in all seeds) has none after it, but is counted as
    one of 1: how many tests there are is decided by what was planned, not by what came out.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    >>> holm([0.01, None])
    [0.02, None]
    """
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for smaller, (p_value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(p_values) - smaller) * p_value))
        corrected[place] = highest
    return corrected


def rising(columns: Sequence[Sequence[float]]) -> float | None:
    """Return the p-value of Page's trend test (Page 1963) that the columns rise in the order given; None for one seed.

    The i-th values of all columns come from the same seed and are ranked among each other. Page's L is the sum over
    the columns of the column's place times its sum of ranks; the p-value is the chance of as large an L where all
    orders within a seed are equally likely, exactly for values without ties. It is one-sided: near 1 means that they
    fall.

    Raises:
        InputError: for fewer than three columns, columns of unlike length, no value, or one that is not finite.

    >>> round(rising([[1.0, 2.0], [1.5, 2.5], [3.0, 4.0]]), 4)  # one of (3!)^2 orders is as clear
    0.0278
    """
    arrays = [_checked("columns", column) for column in columns]
    if len(arrays) < 3 or len({array.size for array in arrays}) > 1:
        raise InputError(
            f"columns: expected three or more of one length, got {[array.size for array in arrays]}; give one value "
            "for each seed"
        )
    if arrays[0].size < 2:
        return None
    from scipy.stats import page_trend_test  # slow to import, and needed here alone

    return float(page_trend_test(np.stack(arrays, axis=1), method="exact").pvalue)


def _checked(name: str, values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if array.size == 0:
        raise InputError(f"{name}: expected one value or more, got none; has any run finished?")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: expected finite numbers, got {list(values)}; leave out the runs that failed")
    return array
