"""The closed form against loops, derivatives and ordinary operations; in blocks, in parts, in little memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from helpers import loop_rows, random
from torch import Tensor
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.functional import (
    matrix_preserving_loss,
    similarity_blocks,
    similarity_distance,
    similarity_matrix,
    similarity_preserving_loss,
)


def in_blocks_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONE_PIECE", 0), ("TILE", 1), ("LEAST_ROWS", rows)):
        monkeypatch.setattr(similarity_blocks, name, value)


def loop_loss(own: Tensor, batch: Tensor, teacher_rows: Tensor) -> float:
    pairs = zip(loop_rows(own, batch).flatten().tolist(), teacher_rows.flatten().tolist(), strict=True)
    return math.fsum((a - b) ** 2 for a, b in pairs) / teacher_rows.numel()


def ordinary_loss(own: Tensor, batch: Tensor, teacher_rows: Tensor) -> Tensor:
    return (F.normalize(own.flatten(1) @ batch.flatten(1).T, dim=1) - teacher_rows).square().mean()


# Rows of a divided batch


@pytest.mark.parametrize("block", [None, 1, 2, 3])
def test_rows_of_some_images_equal_loops(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    batch, teacher = random(1, 5, 2, 3), random(2, 5, 4)
    own = batch[1:4]
    expected = loop_rows(own, batch)
    torch.testing.assert_close(similarity_matrix(own, batch), expected)
    torch.testing.assert_close(similarity_matrix(own.clone().requires_grad_(), batch).detach(), expected)
    torch.testing.assert_close(similarity_matrix(batch)[1:4], expected)
    teacher_rows = loop_rows(teacher[1:4], teacher)
    value = loop_loss(own, batch, teacher_rows)
    assert matrix_preserving_loss(own, teacher_rows, batch).item() == pytest.approx(value, rel=1e-12)
    assert matrix_preserving_loss(own.clone().requires_grad_(), teacher_rows, batch).item() == pytest.approx(value)
    assert similarity_distance(expected, teacher_rows).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("sizes", [(3, 4), (1, 6), (2, 2, 3)])
def test_the_parts_of_a_batch_average_to_the_whole_with_its_gradient(sizes: tuple[int, ...]) -> None:
    features, teacher_matrix = random(3, 7, 5).requires_grad_(), similarity_matrix(random(4, 7, 6))
    parts = zip(features.split(sizes), teacher_matrix.split(sizes), strict=True)
    total = torch.stack([len(own) / 7 * matrix_preserving_loss(own, rows, features) for own, rows in parts]).sum()
    whole = matrix_preserving_loss(features, teacher_matrix)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, features), torch.autograd.grad(whole, features))


# Gradients


@pytest.mark.parametrize("block", [None, 1, 2])
def test_gradcheck(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    own, batch = random(5, 2, 3).requires_grad_(), random(6, 5, 3).requires_grad_()
    rows = random(7, 2, 5)
    assert torch.autograd.gradcheck(lambda a, b: matrix_preserving_loss(a, rows, b), (own, batch))
    assert torch.autograd.gradcheck(similarity_matrix, (own, batch))
    teacher = random(8, 5, 4)
    assert torch.autograd.gradcheck(lambda a: similarity_preserving_loss(a, teacher), batch)
    assert torch.autograd.gradcheck(lambda a: matrix_preserving_loss(a, similarity_matrix(teacher)), batch)


def test_only_the_side_that_is_differentiated_gets_a_gradient() -> None:
    own, batch, rows = random(9, 2, 3), random(10, 5, 3), random(11, 2, 5)
    both = [own.clone().requires_grad_(), batch.clone().requires_grad_()]
    expected = torch.autograd.grad(ordinary_loss(*both, rows), both)
    for position in (0, 1):
        sides = [own.clone(), batch.clone()]
        sides[position].requires_grad_()
        matrix_preserving_loss(sides[0], rows, sides[1]).backward()
        torch.testing.assert_close(sides[position].grad, expected[position])
        assert sides[1 - position].grad is None


@pytest.mark.parametrize("block", [None, 2])
def test_images_of_zeros_and_of_unlike_size_in_parts_and_blocks(
    block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    batch = random(12, 5, 8) * torch.tensor([[1e4], [1.0], [1e-4], [0.0], [1e-8]])
    rows = similarity_matrix(random(13, 5, 8))[1:4]
    own, whole = batch[1:4].float().requires_grad_(), batch.float().requires_grad_()
    matrix_preserving_loss(own, rows, whole).backward()
    kept = torch.tensor([0, 1])
    reference = [own.detach().double().requires_grad_(), whole.detach().double().requires_grad_()]
    (ordinary_loss(reference[0][kept], reference[1], rows[kept]) * 2 / 3).backward()
    assert not own.grad[2].any()
    for given, expected in ((own, reference[0]), (whole, reference[1])):
        for row, wanted in zip(given.grad.double(), expected.grad, strict=True):
            length = wanted.norm() or 1.0
            torch.testing.assert_close(row / length, wanted / length, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [None, 3])
def test_one_tiny_image_of_a_part_keeps_its_row(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    batch = torch.tensor([[1e5, 2e5, 0.0], [3e5, 1e5, 0.0], [0.0, 0.0, 1e-25]])
    torch.testing.assert_close(similarity_matrix(batch[2:], batch), loop_rows(batch[2:], batch).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_one_piece_blocks_and_ordinary_operations_agree(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, teacher = (30 * random(14, 11, 6, 2)).to(dtype), random(15, 11, 9).float()
    ordinary = features.clone().requires_grad_()
    expected = similarity_distance(similarity_matrix(ordinary), similarity_matrix(teacher))
    expected.backward()
    whole = features.clone().requires_grad_()
    similarity_preserving_loss(whole, teacher).backward()
    in_blocks_of(rows, monkeypatch)
    divided = features.clone().requires_grad_()
    value = similarity_preserving_loss(divided, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for given in (whole, divided):
        assert given.grad.dtype == dtype
        torch.testing.assert_close(given.grad, ordinary.grad, rtol=tolerance, atol=1e-7)


def test_the_gradient_is_multiplied_before_it_is_rounded_to_half_precision() -> None:
    features, teacher = (20000 * random(16, 64, 8)).clamp(-60000, 60000).half().requires_grad_(), random(17, 64, 8)
    (gradient,) = torch.autograd.grad(similarity_preserving_loss(features, teacher), features)
    assert (gradient == 0).double().mean() > 0.5  # too small for half
    (1e9 * similarity_preserving_loss(features, teacher)).backward()
    exact = features.detach().double().requires_grad_()
    (1e9 * similarity_preserving_loss(exact, teacher)).backward()
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("block", [None, 2])
def test_second_derivatives_of_parts(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    own, batch, rows = random(18, 2, 3).requires_grad_(), random(19, 4, 3).requires_grad_(), random(20, 2, 4)
    assert torch.autograd.gradgradcheck(lambda a, b: matrix_preserving_loss(a, rows, b), (own, batch))
    teacher = random(21, 4, 2)
    assert torch.autograd.gradgradcheck(lambda b: similarity_preserving_loss(b, teacher), batch)


def test_a_graph_can_be_used_twice() -> None:
    features, teacher = random(22, 4, 3).requires_grad_(), random(23, 4, 5)
    loss = similarity_preserving_loss(features, teacher)
    first = torch.autograd.grad(loss, features, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, features)[0], 2 * first[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("block", [None, 2])
def test_what_is_not_finite_shows_in_every_part(
    value: float, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    batch, rows = random(24, 5, 3).float(), random(25, 2, 5)
    batch[4, 1] = value
    assert not matrix_preserving_loss(batch[:2].requires_grad_(), rows, batch).isfinite()


@pytest.mark.parametrize("block", [None, 2])
def test_equal_features_give_exactly_nothing(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        in_blocks_of(block, monkeypatch)
    features = random(26, 5, 7).float()
    student = features.clone().requires_grad_()
    for loss in (
        similarity_preserving_loss(student, features),
        matrix_preserving_loss(student, similarity_matrix(features)),
    ):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, student)[0].any()


# Compilation, autocast and memory


def test_parts_compile_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(own: Tensor, batch: Tensor, rows: Tensor) -> Tensor:
        return matrix_preserving_loss(own, rows, batch) + similarity_preserving_loss(batch, rows.T @ rows)

    in_blocks_of(2, monkeypatch)
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        own, batch = random(27, 2, 3).requires_grad_(), random(28, 4, 3).requires_grad_()
        value = function(own, batch, random(29, 2, 4))
        results.append((value.detach(), *torch.autograd.grad(value, (own, batch))))
    torch.testing.assert_close(results[1], results[0])


def test_autocast_leaves_parts_in_float32() -> None:
    own, batch, rows = random(30, 2, 64).float(), random(31, 5, 64).float(), random(32, 2, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [similarity_matrix(own, batch), matrix_preserving_loss(own.requires_grad_(), rows, batch)]
    torch.testing.assert_close(values[0].double(), loop_rows(own.detach(), batch), rtol=1e-5, atol=1e-6)
    assert values[1].item() == pytest.approx(loop_loss(own.detach(), batch, rows), rel=1e-5)


# Prints by how much the peak of memory exceeds what was there before, in units of one matrix of the batch.
MEMORY = """
import sys, torch
from spkd.functional import matrix_preserving_loss, similarity_preserving_loss

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def run(batch, given):
    student, teacher = torch.randn(batch, 32, requires_grad=True), torch.randn(batch, 32)
    if given:
        teacher = torch.full((batch, batch), batch**-0.5)
    loss = matrix_preserving_loss if given else similarity_preserving_loss
    before = status("VmRSS")
    loss(student, teacher).backward()
    return (status("VmHWM") - before) / (4 * batch**2)

run(16, sys.argv[1] == "matrix")
print(run(8192, sys.argv[1] == "matrix"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("teacher", ["features", "matrix"])
def test_a_large_batch_takes_less_memory_than_its_matrix(teacher: str) -> None:
    # Freed memory is to go back at once: what the allocator keeps depends on what it did before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", MEMORY, teacher]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 0.5


# Errors


def test_errors_say_what_came() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(InputError, match=r"student's, \(2, 4\), got \(2, 2\).*same whole batch"):
        matrix_preserving_loss(x, torch.ones(2, 2), torch.ones(4, 3))
    with pytest.raises(InputError, match="got 2 and 3 images"):
        matrix_preserving_loss(x, torch.eye(3))
    with pytest.raises(InputError, match=r"features and batch .*\(2, 3\) of torch.float32 and \(4, 5\)"):
        similarity_matrix(x, torch.ones(4, 5))
    with pytest.raises(InputError, match=r"student and batch .*torch.float32 and .* of torch.float64"):
        matrix_preserving_loss(x, torch.eye(2), x.double())
    with pytest.raises(InputError, match="batch must have shape"):
        similarity_matrix(x, torch.ones(0, 3))
    with pytest.raises(InputError, match="student must have shape"):
        matrix_preserving_loss(torch.ones(0, 3), torch.eye(2))


def test_both_gradients_of_a_part_are_multiplied_before_they_are_rounded() -> None:
    def gradients(dtype: torch.dtype, factor: float) -> list[Tensor]:
        own = (20000 * random(40, 16, 8)).clamp(-60000, 60000).half().to(dtype).requires_grad_()
        batch = (20000 * random(41, 64, 8)).clamp(-60000, 60000).half().to(dtype).requires_grad_()
        (factor * matrix_preserving_loss(own, random(42, 16, 64), batch)).backward()
        assert own.grad is not None
        assert batch.grad is not None
        return [own.grad, batch.grad]

    for rounded, plain, exact in zip(
        gradients(torch.float16, 1e9), gradients(torch.float16, 1.0), gradients(torch.float64, 1e9), strict=True
    ):
        assert (plain == 0).double().mean() > 0.5  # too small for half
        torch.testing.assert_close(rounded.double(), exact, rtol=2e-3, atol=1e-4)


def test_the_differentiable_matrix_does_not_overflow() -> None:
    features = (3e38 * random(43, 5, 7).clamp(-1, 1)).float()
    expected = similarity_matrix(features)
    matrix = similarity_matrix(features.clone().requires_grad_())
    assert matrix.isfinite().all()
    torch.testing.assert_close(matrix.detach(), expected)


def test_autocast_leaves_a_second_derivative_in_float32() -> None:
    features, teacher = random(44, 6, 64).float(), random(45, 6, 64).float()

    def twice(autocast: bool) -> Tensor:
        given = features.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            (gradient,) = torch.autograd.grad(similarity_preserving_loss(given, teacher), given, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), given)[0]

    torch.testing.assert_close(twice(True), twice(False), rtol=1e-4, atol=1e-7)
