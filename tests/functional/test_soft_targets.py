"""Soft targets against closed forms, plain loops in float64 and wrong variants."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CASES, random
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.functional import soft_target_loss


def loop_loss(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 KL(softmax(z_T/T) || softmax(z_S/T)), mean over the batch, one number at a time."""
    total = 0.0
    for z_s, z_t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):

        def log_softmax(z: list[float]) -> list[float]:
            top = max(z)
            log_sum = math.log(math.fsum(math.exp((v - top) / temperature) for v in z))
            return [(v - top) / temperature - log_sum for v in z]

        p_s, p_t = log_softmax(z_s), log_softmax(z_t)
        total += math.fsum(math.exp(t) * (t - s) for s, t in zip(p_s, p_t, strict=True))
    return temperature**2 * total / len(student)


def test_closed_form_fixes_direction_and_unit() -> None:
    three_to_one = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    even = torch.zeros(1, 2, dtype=torch.float64)
    # KL(teacher || student), in nats.
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_target_loss(even, three_to_one, 1.0).item() == pytest.approx(expected)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert soft_target_loss(three_to_one, even, 1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_equals_loops(temperature: float) -> None:
    student, teacher = 5 * random(1, 7, 10), 5 * random(2, 7, 10)
    expected = loop_loss(student, teacher, temperature)
    assert soft_target_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_default_temperature_is_four() -> None:
    student, teacher = random(1, 3, 5), random(2, 3, 5)
    assert soft_target_loss(student, teacher).item() == pytest.approx(loop_loss(student, teacher, 4.0), rel=1e-10)


def test_limit_of_high_temperature_is_half_the_variance_of_the_difference() -> None:
    student, teacher = random(3, 4, 6), random(4, 4, 6)
    expected = 0.5 * (student - teacher).var(dim=1, correction=0).mean()
    torch.testing.assert_close(soft_target_loss(student, teacher, 1e4), expected, rtol=1e-3, atol=0)


def test_gradient_is_temperature_times_the_difference_of_probabilities() -> None:
    student, teacher = random(5, 4, 6).requires_grad_(), random(6, 4, 6)
    soft_target_loss(student, teacher, 3.0).backward()
    expected = 3.0 / 4 * (F.softmax(student.detach() / 3, 1) - F.softmax(teacher / 3, 1))
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("b", [1, 2, 3])
def test_gradcheck(b: int) -> None:
    student, teacher = random(7, b, 5).requires_grad_(), random(8, b, 5)
    assert torch.autograd.gradcheck(lambda z: soft_target_loss(z, teacher, 2.0), student)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random(7, 2, 5).requires_grad_(), random(8, 2, 5).requires_grad_()
    soft_target_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


@CASES
@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(2, 8), st.floats(0.5, 10))
def test_properties(seed: int, b: int, k: int, temperature: float) -> None:
    student, teacher = 3 * random(seed, b, k), 3 * random(seed + 1, b, k)
    loss = soft_target_loss(student, teacher, temperature)
    assert loss.item() >= -1e-12
    assert soft_target_loss(student, student.clone(), temperature).item() == 0
    shifted = soft_target_loss(student + random(seed + 2, b, 1), teacher - random(seed + 3, b, 1), temperature)
    torch.testing.assert_close(shifted, loss, rtol=1e-8, atol=1e-10)
    generator = torch.Generator().manual_seed(seed)
    images, classes = torch.randperm(b, generator=generator), torch.randperm(k, generator=generator)
    reordered = soft_target_loss(student[images][:, classes], teacher[images][:, classes], temperature)
    torch.testing.assert_close(reordered, loss, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    teacher = random(9, 5, 10).to(dtype)
    student = (teacher + 0.05 * random(10, 5, 10)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = soft_target_loss(student, teacher)
    assert loss.dtype == torch.float32
    # A student near its teacher: in half precision nothing of so small a divergence is left.
    assert loss.item() == pytest.approx(loop_loss(student.detach(), teacher, 4.0), rel=5e-3)
    loss.backward()
    assert student.grad.isfinite().all()


def test_largest_float16_logits() -> None:
    student = torch.tensor([[65504.0, -65504.0], [0.0, 65504.0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-65504.0, 65504.0], [0.0, 65504.0]], dtype=torch.float16)
    loss = soft_target_loss(student, teacher)
    assert loss.item() == pytest.approx(loop_loss(student.detach(), teacher, 4.0), rel=1e-6)
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_is_not_finite_is_never_hidden(value: float, side: str) -> None:
    student, teacher = random(11, 2, 3), random(12, 2, 3)
    (student if side == "student" else teacher)[1, 2] = value
    assert not soft_target_loss(student, teacher).isfinite()


def test_mistakes_lose_a_factor() -> None:
    student, teacher = random(13, 3, 8), random(14, 3, 8)
    right = soft_target_loss(student, teacher, 4.0)
    log_s, p_t = F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1)
    without_square = F.kl_div(log_s, p_t, reduction="batchmean")
    assert (right / without_square).item() == pytest.approx(16)
    mean_over_classes_too = 16 * F.kl_div(log_s, p_t, reduction="none").mean()
    assert (right / mean_over_classes_too).item() == pytest.approx(8)


def test_errors_say_what_came() -> None:
    logits = torch.ones(2, 10)
    with pytest.raises(InputError, match="student has 10 and the teacher 47"):
        soft_target_loss(logits, torch.ones(2, 47))
    with pytest.raises(InputError, match="got 2 and 3 images"):
        soft_target_loss(logits, torch.ones(3, 10))
    with pytest.raises(InputError, match=r"teacher_logits.*\(2, 10, 1\)"):
        soft_target_loss(logits, logits[..., None])
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="temperature"):
            soft_target_loss(logits, logits, temperature)


def test_one_logit_says_nothing() -> None:
    with pytest.raises(InputError, match="the softmax of one is always 1"):
        soft_target_loss(torch.rand(3, 1), torch.rand(3, 1))
