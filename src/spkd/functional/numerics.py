"""Scaling and normalisation that no finite input can overflow or make vanish."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(values: Tensor) -> Tensor:
    """Return float64 as it is and every other dtype as float32."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def peaks(values: Tensor) -> Tensor:
    """Return the largest absolute value of each item of a batch, ``(b, 1)``, without gradient.

    NaN and infinity are kept, so that they reach whatever is divided by the result.

    >>> peaks(torch.tensor([[1.0, -3.0], [0.0, 0.0]])).tolist()
    [[3.0], [0.0]]
    """
    flat = values.detach().reshape(values.shape[0], -1)
    # Two passes, but without a copy; on a CPU the infinity norm takes over ten times as long.
    return torch.maximum(flat.amax(dim=1, keepdim=True), -flat.amin(dim=1, keepdim=True))


def scale_to_unit_peak(values: Tensor) -> Tensor:
    """Divide each item of a batch by its own largest absolute value; an item of zeros stays as it is.

    The divisor is a constant for differentiation. The gradient is therefore right for whatever does not
    change when an item is multiplied by a positive number, which is all that this is used before.

    Args:
        values: floating point, shape ``(b, ...)``.

    Returns:
        The same shape and dtype, absolute values at most 1.
    """
    peak = peaks(values)
    divisor = torch.where(peak == 0, 1.0, peak)
    return values / divisor.reshape(-1, *[1] * (values.dim() - 1))


def unit_rows(matrix: Tensor) -> Tensor:
    """Divide each row by its L2 norm; a row of zeros stays zero and has a gradient of zero.

    Rows are brought to a peak of one before they are squared: squares then neither overflow nor vanish,
    whatever the size of the entries, and no epsilon has to be chosen. (An epsilon such as 1e-12 in the
    denominator would multiply the gradient of a zero row by 1e12.)

    Args:
        matrix: float32 or float64, shape ``(b, n)``.

    Returns:
        The same shape and dtype.

    >>> unit_rows(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    scaled = scale_to_unit_peak(matrix)
    squared_norm = scaled.square().sum(dim=1, keepdim=True)
    is_zero = squared_norm == 0
    # Both branches of a `where` are differentiated: the square root must not see the zero.
    norm = torch.where(is_zero, 1.0, squared_norm).sqrt()
    return torch.where(is_zero, 0.0, scaled / norm)
