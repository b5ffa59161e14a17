"""Scaling: exact at every magnitude, constant for differentiation, NaN kept."""

from __future__ import annotations

import math

import pytest
import torch

from spkd.functional.numerics import peaks, scale_to_unit_peak, unit_rows, upcast


@pytest.mark.parametrize("width", [1, 3, 1000])
def test_peaks_keep_what_is_not_finite_and_carry_no_gradient(width: int) -> None:
    values = torch.ones(4, width)
    values[1, -1], values[2, 0], values[3] = math.nan, -math.inf, 0
    result = peaks(values.requires_grad_())
    assert not result.requires_grad
    assert result.shape == (4, 1)
    assert result[1].isnan()
    assert result[[0, 2, 3]].flatten().tolist() == [1, math.inf, 0]


@pytest.mark.parametrize("magnitude", [3e38, 1.0, 1e-38, 1e-44])
def test_rows_of_any_magnitude_get_unit_length(magnitude: float) -> None:
    rows = magnitude * torch.tensor([[1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
    torch.testing.assert_close(unit_rows(rows), expected)


def test_gradient_of_unit_rows() -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(unit_rows, rows.requires_grad_())
    zero = torch.zeros(1, 3, requires_grad=True)
    unit_rows(zero).sum().backward()
    assert zero.grad.tolist() == [[0, 0, 0]]


def test_the_scale_is_a_constant_for_differentiation() -> None:
    values = torch.tensor([[2.0, 4.0], [0.0, 0.0]], requires_grad=True)
    scaled = scale_to_unit_peak(values)
    assert scaled.tolist() == [[0.5, 1.0], [0.0, 0.0]]
    scaled.sum().backward()
    assert values.grad.tolist() == [[0.25, 0.25], [1.0, 1.0]]


def test_upcast() -> None:
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.int64]
    assert {upcast(torch.ones(1, dtype=dtype)).dtype for dtype in dtypes} == {torch.float32}
    assert upcast(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
