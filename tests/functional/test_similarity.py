"""Similarity matrices and loss against hand-worked values, plain loops in float64 and known mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CASES, loop_rows, random
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.functional import (
    matrix_preserving_loss,
    similarity_distance,
    similarity_matrix,
    similarity_preserving_loss,
)

SEEDS = st.integers(0, 2**31 - 1)
BATCHES = st.integers(1, 6)
WIDTHS = st.integers(1, 9)

# Gram matrices of these have entries ±1 only: the student finds all images alike, the teacher two groups.
ONE_GROUP = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
TWO_GROUPS = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])


def loop_loss(students: list[Tensor], teachers: list[Tensor]) -> float:
    """The paper's equation 4."""
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        g_s, g_t = loop_rows(student, student).tolist(), loop_rows(teacher, teacher).tolist()
        b = len(g_s)
        total += math.fsum((g_t[i][j] - g_s[i][j]) ** 2 for i in range(b) for j in range(b)) / b**2
    return total


def textbook_matrix(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T, p=2, dim=1)


# Closed forms


def test_two_orthogonal_images_against_two_equal_ones() -> None:
    # G_T = I, G_S = 1/sqrt(2) everywhere: 2 [(1 - 1/sqrt 2)^2 + 1/2] / 4 = 1 - 1/sqrt(2).
    loss = similarity_preserving_loss(torch.ones(2, 3, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(1 - 1 / math.sqrt(2), abs=1e-15)


def test_rows_not_columns_are_normalised() -> None:
    # Q = (1), (2): the Gram matrix [[1, 2], [2, 4]] has rows along (1, 2) and so has every row of G.
    expected = torch.tensor([1.0, 2.0]).expand(2, 2) / math.sqrt(5)
    torch.testing.assert_close(similarity_matrix(torch.tensor([[1.0], [2.0]])), expected)
    # Q = (1, 0), (1, 1): [[1, 1], [1, 2]] is not symmetric once its rows are normalised.
    expected = torch.tensor([[1 / math.sqrt(2), 1 / math.sqrt(2)], [1 / math.sqrt(5), 2 / math.sqrt(5)]])
    torch.testing.assert_close(similarity_matrix(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), expected)


def test_value_of_one_group_against_two() -> None:
    # Half of the b^2 entries differ, by 2/sqrt(b): 4/b * 1/2.
    assert similarity_preserving_loss(ONE_GROUP, TWO_GROUPS).item() == pytest.approx(2 / 4)


def test_value_does_not_grow_with_the_batch() -> None:
    losses = [similarity_preserving_loss(ONE_GROUP.repeat(n, 1), TWO_GROUPS.repeat(n, 1)).item() for n in (1, 4, 16)]
    assert losses == pytest.approx([2 / 4, 2 / 16, 2 / 64])


# Loops


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4), (5, 2, 3, 3), (5,), (1, 4), (2, 4), (3, 2, 2, 2, 2)])
def test_matrix_equals_loops_for_features_of_any_shape(shape: tuple[int, ...]) -> None:
    features = random(1, *shape)
    matrix = similarity_matrix(features)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, loop_rows(features, features))
    single = similarity_matrix(features.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), matrix, rtol=1e-5, atol=1e-6)


def test_loss_equals_loops_for_unlike_architectures_and_several_pairs() -> None:
    students = [random(2, 6, 3, 4, 4), random(3, 6, 8)]
    teachers = [random(4, 6, 5, 2, 2), random(5, 6, 7, 10)]
    expected = loop_loss(students, teachers)
    assert similarity_preserving_loss(students, tuple(teachers)).item() == pytest.approx(expected, rel=1e-12)


def test_memory_layout_does_not_matter() -> None:
    features = random(6, 4, 3, 5, 5)
    channels_last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(similarity_matrix(channels_last), similarity_matrix(features))


# Properties


@CASES
@given(SEEDS, BATCHES, WIDTHS, st.floats(1e-3, 1e3))
def test_rotation_permutation_and_scale_of_either_side_change_nothing(seed: int, b: int, d: int, scale: float) -> None:
    student, teacher = random(seed, b, d), random(seed + 1, b, d + 2)
    expected = similarity_preserving_loss(student, teacher)
    rotation = torch.linalg.qr(random(seed + 2, d, d)).Q
    order = torch.randperm(d + 2, generator=torch.Generator().manual_seed(seed))
    for changed in (
        similarity_preserving_loss(student @ rotation, teacher),
        similarity_preserving_loss(student, teacher[:, order]),
        similarity_preserving_loss(scale * student, teacher),
        similarity_preserving_loss(student, -scale * teacher),
        similarity_preserving_loss(student @ rotation.flip(1), scale * teacher[:, order]),
    ):
        torch.testing.assert_close(changed, expected, rtol=1e-9, atol=1e-12)


@CASES
@given(SEEDS, BATCHES, WIDTHS)
def test_equal_features_give_zero_value_and_gradient(seed: int, b: int, d: int) -> None:
    features = random(seed, b, d).requires_grad_()
    loss = similarity_preserving_loss(features, features.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


@CASES
@given(SEEDS, BATCHES, WIDTHS)
def test_order_of_the_batch_does_not_matter(seed: int, b: int, d: int) -> None:
    student, teacher = random(seed, b, d), random(seed + 1, b, d)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(similarity_matrix(student[order]), similarity_matrix(student)[order][:, order])
    torch.testing.assert_close(
        similarity_preserving_loss(student[order], teacher[order]),
        similarity_preserving_loss(student, teacher),
    )


@CASES
@given(SEEDS, BATCHES, WIDTHS)
def test_rows_have_unit_length_and_the_loss_is_bounded(seed: int, b: int, d: int) -> None:
    student, teacher = random(seed, b, d), random(seed + 1, b, d)
    torch.testing.assert_close(similarity_matrix(student).norm(dim=1), torch.ones(b, dtype=torch.float64))
    assert 0 <= similarity_preserving_loss(student, teacher).item() <= 4 / b


# Gradients


@pytest.mark.parametrize("b", [1, 2, 4])
def test_gradcheck(b: int) -> None:
    student, teacher = random(7, b, 2, 3).requires_grad_(), random(8, b, 4)
    assert torch.autograd.gradcheck(lambda x: similarity_preserving_loss(x, teacher), student)
    assert torch.autograd.gradcheck(similarity_matrix, student)


def test_second_derivative() -> None:
    student, teacher = random(7, 3, 4).requires_grad_(), random(8, 3, 4)
    assert torch.autograd.gradgradcheck(lambda x: similarity_preserving_loss(x, teacher), student)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random(9, 3, 4).requires_grad_(), random(10, 3, 4).requires_grad_()
    similarity_preserving_loss([student, student], [teacher, teacher]).backward()
    assert teacher.grad is None
    assert student.grad.any()
    matrix = similarity_matrix(random(11, 3, 4)).requires_grad_()
    similarity_distance(similarity_matrix(student), matrix).backward()
    assert matrix.grad is None


def test_a_zero_image_gives_a_zero_row_and_column_and_the_gradient_of_the_other_rows() -> None:
    student, teacher = random(12, 4, 6), random(13, 4, 6)
    student[1] = 0
    student = student.float().requires_grad_()
    matrix = similarity_matrix(student)
    assert not matrix[1].any()
    assert not matrix[:, 1].any()
    similarity_preserving_loss(student, teacher).backward()

    reference = student.detach().double().requires_grad_()
    kept = torch.tensor([0, 2, 3])
    difference = textbook_matrix(teacher)[kept] - F.normalize(reference[kept] @ reference.T, dim=1)
    (difference.square().sum() / 16).backward()
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


def test_a_zero_image_beside_tiny_ones() -> None:
    features = torch.tensor([[1e-42, 0.0], [0.0, 0.0], [0.0, 1e-42]])
    assert similarity_matrix(features).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("b", [1, 2, 5])
def test_features_of_zeros_only(b: int, dtype: torch.dtype) -> None:
    student = torch.zeros(b, 3, 2, 2, dtype=dtype, requires_grad=True)
    loss = similarity_preserving_loss(student, torch.eye(b))
    loss.backward()
    assert loss.item() == pytest.approx(1 / b)
    assert not student.grad.any()


# Range and precision


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [
        (torch.float16, 65504.0),
        (torch.float16, 6e-8),
        (torch.bfloat16, 3e38),
        (torch.bfloat16, 1e-38),
        (torch.float32, 3e38),
        (torch.float32, 1e-38),
        (torch.float32, 1e-44),
        (torch.float64, 1e300),
        (torch.float64, 1e-300),
    ],
)
def test_no_magnitude_overflows_or_vanishes(dtype: torch.dtype, magnitude: float) -> None:
    signs = random(14, 4, 512, 2, 2).sign()
    features = (magnitude * signs).to(dtype)
    assert features.isfinite().all()
    assert features.all()
    expected = loop_rows(signs, signs)
    torch.testing.assert_close(similarity_matrix(features).double(), expected, rtol=1e-5, atol=1e-6)


def test_gradient_at_the_edge_of_float16_is_that_of_float64() -> None:
    features = (60000 * random(15, 6, 64).clamp(-1, 1)).half()
    features[0, 0] = 65504
    teacher = random(16, 6, 9)
    student = features.float().requires_grad_()
    similarity_preserving_loss(student, teacher).backward()
    reference = features.double().requires_grad_()
    ((textbook_matrix(reference) - textbook_matrix(teacher)).square().sum() / 36).backward()
    scale = reference.grad.abs().max()
    torch.testing.assert_close(student.grad.double() / scale, reference.grad / scale, rtol=1e-4, atol=1e-5)


def test_one_tiny_image_beside_large_ones_keeps_its_row() -> None:
    # Orthogonal to the others, so only its own product, (1e-25)^2, tells its row from zero.
    features = torch.tensor([[1e5, 2e5, 0.0], [3e5, 1e5, 0.0], [0.0, 0.0, 1e-25]])
    expected = loop_rows(features, features)
    assert expected[2].tolist() == [0, 0, 1]
    torch.testing.assert_close(similarity_matrix(features).double(), expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_images_of_unlike_size() -> None:
    student = random(17, 4, 8) * torch.tensor([[1e4], [1.0], [1e-4], [1e-8]])
    teacher = random(18, 4, 8)
    single = student.float().requires_grad_()
    similarity_preserving_loss(single, teacher).backward()
    reference = single.detach().double().requires_grad_()
    ((textbook_matrix(reference) - textbook_matrix(teacher)).square().sum() / 16).backward()
    for row, expected in zip(single.grad.double(), reference.grad, strict=True):
        torch.testing.assert_close(row / expected.norm(), expected / expected.norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_product_in_float32(dtype: torch.dtype) -> None:
    half = (100 * random(19, 6, 256)).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    teacher = random(20, 6, 32)
    with torch.autocast("cpu", dtype=dtype):
        assert (full @ full.T).dtype == dtype
        loss = similarity_preserving_loss(full, teacher.float())
        half_loss = similarity_preserving_loss(half, teacher.float())
    assert loss.dtype == half_loss.dtype == torch.float32
    expected = loop_loss([full.detach()], [teacher])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert half_loss.item() == pytest.approx(expected, rel=1e-5)
    half_loss.backward()
    assert half.grad.isfinite().all()
    assert half.grad.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_is_not_finite_is_never_hidden(value: float, side: str) -> None:
    student, teacher = random(21, 4, 5).float(), random(22, 4, 5).float()
    (student if side == "student" else teacher)[2, 3] = value
    assert not similarity_preserving_loss(student, teacher).isfinite()
    sparse = torch.zeros(3, 5)
    sparse[0, 0] = value
    assert not similarity_matrix(sparse).isfinite().any()


# Known mistakes of other implementations


def test_mistake_l1_rows_make_the_loss_b_times_too_small() -> None:
    def wrong(student: Tensor, teacher: Tensor) -> Tensor:
        g_s, g_t = (F.normalize(x @ x.T, 1) for x in (student, teacher))
        return (g_t - g_s).square().sum() / 16

    right = similarity_preserving_loss(ONE_GROUP, TWO_GROUPS)
    assert (right / wrong(ONE_GROUP, TWO_GROUPS)).item() == pytest.approx(4)


def test_mistake_mean_over_pairs_divides_gamma_by_their_number() -> None:
    students, teachers = [ONE_GROUP] * 3, [TWO_GROUPS] * 3
    each = [similarity_preserving_loss(s, t) for s, t in zip(students, teachers, strict=True)]
    wrong = torch.stack(each).mean()
    assert (similarity_preserving_loss(students, teachers) / wrong).item() == pytest.approx(3)


def test_mistake_product_in_half_precision_overflows() -> None:
    student, teacher = (300 * random(23, 4, 16)).half(), (300 * random(24, 4, 16)).half()

    def wrong(x: Tensor) -> Tensor:
        return F.normalize(x @ x.T, dim=1)

    assert not (wrong(student) - wrong(teacher)).square().sum().isfinite()
    expected = loop_loss([student], [teacher])
    assert similarity_preserving_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_mistake_a_matrix_for_each_half_of_the_batch_is_another_method() -> None:
    # Within each half student and teacher agree; only the whole batch shows that they differ.
    halves = [similarity_preserving_loss(ONE_GROUP[i : i + 2], TWO_GROUPS[i : i + 2]).item() for i in (0, 2)]
    assert halves == pytest.approx([0, 0], abs=1e-12)
    assert similarity_preserving_loss(ONE_GROUP, TWO_GROUPS).item() == pytest.approx(0.5)


def test_mistake_normalising_the_matrix_as_a_whole_makes_the_loss_b_times_too_small() -> None:
    def wrong(student: Tensor, teacher: Tensor) -> Tensor:
        g_s, g_t = (x @ x.T / (x @ x.T).norm() for x in (student, teacher))
        return (g_t - g_s).square().sum() / 16

    right = similarity_preserving_loss(ONE_GROUP, TWO_GROUPS)
    assert (right / wrong(ONE_GROUP, TWO_GROUPS)).item() == pytest.approx(4)


def test_mistake_normalising_features_before_the_product_is_another_matrix() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    unit = F.normalize(features, dim=1)
    assert not torch.allclose(similarity_matrix(features), unit @ unit.T, atol=0.1)
    assert not torch.allclose(similarity_matrix(features), F.normalize(unit @ unit.T, dim=1), atol=0.1)
    # Gram [[1, 3], [3, 18]] by hand.
    expected = torch.tensor([[1 / math.sqrt(10), 3 / math.sqrt(10)], [3 / math.sqrt(333), 18 / math.sqrt(333)]])
    torch.testing.assert_close(similarity_matrix(features), expected)


# Errors


def test_errors_say_what_came() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(InputError, match="got 1 and 2"):
        similarity_preserving_loss([x], [x, x])
    with pytest.raises(InputError, match="no layer"):
        similarity_preserving_loss([], [])
    with pytest.raises(InputError, match="got 2 and 3 images"):
        similarity_preserving_loss(x, torch.ones(3, 3))
    for empty in (torch.ones(()), torch.ones(0, 3), torch.ones(3, 0)):
        with pytest.raises(InputError, match="at least one element"):
            similarity_matrix(empty)
    with pytest.raises(InputError, match=r"student's, \(2, 3\), got \(2, 2\)"):
        similarity_distance(x, torch.ones(2, 2))
    with pytest.raises(InputError, match=r"student_matrix.*\(2, 3, 1\)"):
        similarity_distance(x[..., None], x)
    with pytest.raises(InputError, match=r"teacher_matrix.*\(4,\)"):
        similarity_distance(torch.ones(2, 2), torch.ones(4))
    for matrix in (torch.tensor(1.0), torch.ones(2), torch.ones(2, 2, 1)):
        with pytest.raises(InputError, match="teacher_matrix must have the shape of the student's"):
            matrix_preserving_loss(x, matrix)
