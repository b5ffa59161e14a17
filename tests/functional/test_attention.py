"""Attention transfer against closed forms, plain loops in float64 and wrong variants."""

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
from spkd.functional import (
    attention_distance,
    attention_map,
    attention_transfer_loss,
    relative_attention_map,
)


def loop_unit_map(image: Tensor) -> list[float]:
    """vec(sum_c A^2) of one (c, h, w) image, divided by its L2 norm, one number at a time."""
    c, h, w = image.shape
    values = [math.fsum(float(image[k, y, x]) ** 2 for k in range(c)) for y in range(h) for x in range(w)]
    norm = math.sqrt(math.fsum(v * v for v in values))
    return [v / norm for v in values]


def loop_loss(students: list[Tensor], teachers: list[Tensor]) -> float:
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        squares = [
            (s - t) ** 2
            for image_s, image_t in zip(student, teacher, strict=True)
            for s, t in zip(loop_unit_map(image_s), loop_unit_map(image_t), strict=True)
        ]
        total += math.fsum(squares) / len(squares)
    return total


def test_map_is_the_sum_of_squares_over_channels() -> None:
    features = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.5]]]])  # (1, 2, 1, 2)
    assert attention_map(features).tolist() == [[[10.0, 4.25]]]
    tokens = features.flatten(2).transpose(1, 2)  # (1, 2, 2)
    assert attention_map(tokens).tolist() == [[10.0, 4.25]]
    torch.testing.assert_close(relative_attention_map(features), torch.tensor([[[1.0, 0.425]]]))


def test_the_map_of_half_precision_is_squared_and_summed_in_float32() -> None:
    features = torch.full((1, 3, 1, 2), 60000.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = attention_map(features)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.full((1, 1, 2), 3 * 60000.0**2))


def test_looking_at_different_places_costs_two_over_the_positions() -> None:
    student, teacher = torch.zeros(3, 5, 2, 2), torch.zeros(3, 4, 2, 2)
    student[:, :, 0, 0] = 7.0
    teacher[:, 1, 1, 1] = 0.1
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(2 / 4)


def test_equals_loops_and_sums_over_pairs() -> None:
    students = [random(1, 3, 4, 3, 5), random(2, 3, 2, 2, 2)]
    teachers = [random(3, 3, 7, 3, 5), random(4, 3, 5, 2, 2)]
    expected = loop_loss(students, teachers)
    assert attention_transfer_loss(students, teachers).item() == pytest.approx(expected, rel=1e-12)


def test_tokens_are_positions() -> None:
    student, teacher = random(5, 2, 3, 2, 2), random(6, 2, 6, 2, 2)
    tokens = [x.flatten(2).transpose(1, 2) for x in (student, teacher)]
    torch.testing.assert_close(attention_transfer_loss(*tokens), attention_transfer_loss(student, teacher))


@pytest.mark.parametrize(("student_size", "teacher_size"), [((4, 4), (2, 2)), ((2, 3), (4, 6)), ((4, 2), (2, 4))])
def test_the_larger_map_is_averaged_before_it_is_normalised(
    student_size: tuple[int, int], teacher_size: tuple[int, int]
) -> None:
    student, teacher = random(7, 2, 3, *student_size), random(8, 2, 5, *teacher_size)
    height, width = (min(pair) for pair in zip(student_size, teacher_size, strict=True))

    def pooled(features: Tensor) -> Tensor:
        squares = features.square().sum(1)
        rows, columns = squares.shape[1] // height, squares.shape[2] // width
        return squares.reshape(2, height, rows, width, columns).mean((2, 4))

    expected = loop_loss([pooled(student).sqrt()[:, None]], [pooled(teacher).sqrt()[:, None]])
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@CASES
@given(st.integers(0, 2**31 - 1), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
def test_properties(seed: int, b: int, c: int, size: int) -> None:
    student, teacher = random(seed, b, c, size, size), random(seed + 1, b, c + 1, size, size)
    loss = attention_transfer_loss(student, teacher)
    assert 0 <= loss.item() <= 2 / size**2 + 1e-12
    assert attention_transfer_loss(student, student.clone()).item() == 0
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(random(seed + 2, c, c)).Q
    channels = torch.randperm(c + 1, generator=generator)
    images = torch.randperm(b, generator=generator)
    places = torch.randperm(size**2, generator=generator)
    factors = random(seed + 3, b, 1, 1, 1).exp()

    def moved(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, places].reshape(x.shape)

    for changed in (
        attention_transfer_loss(torch.einsum("bchw,cd->bdhw", student, rotation), teacher),
        attention_transfer_loss(student, teacher[:, channels]),
        attention_transfer_loss(factors * student, teacher / factors),
        attention_transfer_loss(student[images], teacher[images]),
        attention_transfer_loss(moved(student), moved(teacher)),
    ):
        torch.testing.assert_close(changed, loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("b", [1, 2])
def test_gradcheck(b: int) -> None:
    student, teacher = random(9, b, 2, 4, 4).requires_grad_(), random(10, b, 3, 2, 2)
    assert torch.autograd.gradcheck(lambda x: attention_transfer_loss(x, teacher), student)
    maps = random(11, b, 5).abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: attention_distance(m, random(12, b, 5).abs()), maps)
    assert torch.autograd.gradcheck(attention_map, student)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random(13, 2, 3, 2, 2).requires_grad_(), random(14, 2, 3, 2, 2).requires_grad_()
    attention_transfer_loss([student], [teacher]).backward()
    attention_distance(attention_map(student), attention_map(teacher)).backward()
    assert teacher.grad is None
    assert student.grad.any()


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [
        (torch.float16, 65504.0),
        (torch.float16, 6e-8),
        (torch.bfloat16, 3e38),
        (torch.bfloat16, 1e-38),
        (torch.float32, 3e38),
        (torch.float32, 1e-38),
        (torch.float64, 1e300),
    ],
)
def test_no_magnitude_overflows_or_vanishes(dtype: torch.dtype, magnitude: float) -> None:
    on = (random(15, 2, 16, 3, 3) > 0).double()
    features = (magnitude * on).to(dtype)
    assert features.isfinite().all()
    teacher = random(16, 2, 4, 3, 3)
    expected = loop_loss([on], [teacher])
    assert attention_transfer_loss(features, teacher).item() == pytest.approx(expected, rel=1e-5)
    if dtype != torch.float64:
        assert attention_transfer_loss(features, teacher).dtype == torch.float64
        assert relative_attention_map(features).dtype == torch.float32


def test_gradient_at_the_edge_of_float16_is_that_of_float64() -> None:
    features = (60000 * random(17, 3, 8, 3, 3).clamp(-1, 1)).half()
    teacher = random(18, 3, 8, 3, 3)
    student = features.float().requires_grad_()
    attention_transfer_loss(student, teacher).backward()
    reference = features.double().requires_grad_()
    unit = [F.normalize(x.square().sum(1).flatten(1), dim=1) for x in (reference, teacher)]
    (unit[0] - unit[1]).square().mean().backward()
    scale = reference.grad.abs().max()
    torch.testing.assert_close(student.grad.double() / scale, reference.grad / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    student = (1000 * random(19, 2, 16, 4, 4)).to(dtype).requires_grad_()
    teacher = random(20, 2, 4, 2, 2).float()
    with torch.autocast("cpu", dtype=dtype):
        loss = attention_transfer_loss(student, teacher)
    assert loss.dtype == torch.float32
    exact = attention_transfer_loss(student.detach().double(), teacher.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert student.grad.isfinite().all()


def test_a_relative_map_survives_float16() -> None:
    features = 65504 * random(21, 3, 512, 4, 4).clamp(-1, 1)
    kept = relative_attention_map(features.half())
    assert kept.flatten(1).amax(1).tolist() == [1, 1, 1]
    student_map = relative_attention_map(random(22, 3, 8, 4, 4))
    exact = attention_distance(student_map, attention_map(features)).item()
    assert attention_distance(student_map, kept.half()).item() == pytest.approx(exact, rel=1e-2)
    assert not attention_map(features.half()).half().isfinite().all()


def test_a_dark_image_gives_a_zero_map_and_a_zero_gradient() -> None:
    student, teacher = random(23, 3, 2, 2, 2).float(), random(24, 3, 2, 2, 2)
    student[1] = 0
    student.requires_grad_()
    loss = attention_transfer_loss(student, teacher)
    loss.backward()
    bright = torch.tensor([0, 2])
    # The dark image is at distance 1 from any unit map.
    expected = (loop_loss([student.detach()[bright]], [teacher[bright]]) * 8 + 1) / 12
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert not student.grad[1].any()
    assert student.grad.isfinite().all()
    assert student.grad[0].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("size", [2, 4])
def test_what_is_not_finite_is_never_hidden(value: float, side: str, size: int) -> None:
    student, teacher = random(25, 2, 3, size, size).float(), random(26, 2, 3, 2, 2).float()
    (student if side == "student" else teacher)[1, 0, 1, 1] = value
    assert not attention_transfer_loss(student, teacher).isfinite()


def test_mistakes_differ_by_a_factor() -> None:
    students, teachers = [random(27, 2, 3, 2, 2)] * 3, [random(28, 2, 3, 2, 2)] * 3
    right = attention_transfer_loss(students, teachers)
    unit = [F.normalize(x[0].square().sum(1).flatten(1), dim=1) for x in (students, teachers)]
    squares = (unit[0] - unit[1]).square()
    assert (right / squares.mean()).item() == pytest.approx(3)  # averaged over pairs
    assert (right / (3 * squares.sum())).item() == pytest.approx(1 / 8)  # summed over elements
    halved = students[0].half() * 1000
    assert not halved.square().sum(1).isfinite().all()  # squared in half precision
    assert attention_transfer_loss(halved, teachers[0]).isfinite()


def test_errors_say_what_came() -> None:
    maps = torch.ones(2, 3, 4, 4)
    with pytest.raises(InputError, match=r"got \(2, 10\)"):
        attention_map(torch.ones(2, 10))
    with pytest.raises(InputError, match=r"got \(2, 10\)"):
        attention_transfer_loss(torch.ones(2, 10), maps)
    with pytest.raises(InputError, match=r"\(2, 5\).*\(2, 7\)"):
        attention_transfer_loss(torch.ones(2, 5, 3), torch.ones(2, 7, 3))
    with pytest.raises(InputError, match=r"\(2, 4, 4\).*\(2, 16\)"):
        attention_transfer_loss(maps, torch.ones(2, 16, 3))
    with pytest.raises(InputError, match="got 2 and 3 images"):
        attention_transfer_loss(maps, torch.ones(3, 3, 4, 4))
    with pytest.raises(InputError, match="got 2 and 1"):
        attention_transfer_loss([maps, maps], [maps])
    with pytest.raises(InputError, match="at least one element"):
        relative_attention_map(torch.ones(0, 3, 4, 4))
    with pytest.raises(InputError, match=r"student_map.*\(2,\)"):
        attention_distance(torch.ones(2), torch.ones(2))
