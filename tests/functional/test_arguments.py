"""Student and teacher that were given in the wrong order are noticed, where that can be seen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from helpers import random
from torch import Tensor

from spkd.errors import InputError
from spkd.functional import (
    attention_distance,
    attention_transfer_loss,
    similarity_distance,
    similarity_preserving_loss,
    soft_target_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: list[Loss] = [
    similarity_preserving_loss,
    similarity_distance,
    attention_transfer_loss,
    attention_distance,
    soft_target_loss,
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def pair(loss: Loss) -> tuple[Tensor, Tensor]:
    shape = (4, 3, 2, 2) if loss is attention_transfer_loss else (4, 4)
    return random(1, *shape), random(2, *shape)


@every_loss
def test_exchanged_arguments_are_refused(loss: Loss) -> None:
    student, teacher = pair(loss)
    student.requires_grad_()
    with pytest.raises(InputError, match=r"look exchanged: .* give the student's first") as error:
        loss(teacher, student)
    assert "\n" not in str(error.value)


@every_loss
@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, False)], ids=["both", "student", "none"])
def test_other_arguments_are_taken(loss: Loss, grads: tuple[bool, bool]) -> None:
    student, teacher = (one.requires_grad_(needs) for one, needs in zip(pair(loss), grads, strict=True))
    assert loss(student, teacher) > 0


@every_loss
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_any_order_is_taken(
    loss: Loss, context: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    student, teacher = pair(loss)
    with context():
        assert loss(student, teacher.requires_grad_()) > 0


@pytest.mark.parametrize("loss", [similarity_preserving_loss, attention_transfer_loss])
def test_one_student_layer_that_learns_is_enough(loss: Callable[..., Tensor]) -> None:
    frozen, learning, teacher = (random(seed, 4, 3, 2, 2) for seed in (3, 4, 5))
    learning.requires_grad_()
    loss([frozen, learning], [teacher.clone().requires_grad_(), teacher]).backward()
    assert learning.grad.any()
    with pytest.raises(InputError, match="exchanged"):
        loss([frozen, teacher], [frozen, learning])


@every_loss
def test_transforms_of_a_student_beside_a_teacher_in_training(loss: Loss) -> None:
    if loss is similarity_preserving_loss:
        pytest.skip("its closed form knows no transforms")
    student, teacher = pair(loss)
    expected = torch.autograd.grad(loss(student.requires_grad_(), teacher), student)[0]
    teacher.requires_grad_()
    plain = student.detach()
    torch.testing.assert_close(torch.func.grad(loss)(plain, teacher), expected)
    several = torch.func.vmap(torch.func.grad(loss), (0, None))(torch.stack([plain, plain]), teacher)
    torch.testing.assert_close(several[1], expected)

    def total(students: Tensor) -> Tensor:
        return torch.func.vmap(loss, (0, None))(students, teacher).sum()

    torch.testing.assert_close(torch.func.grad(total)(torch.stack([plain, plain]))[1], expected)


def test_a_compiled_loss_notices_it_too() -> None:
    student, teacher = pair(soft_target_loss)
    with pytest.raises(InputError, match="exchanged"):
        torch.compile(soft_target_loss, backend="eager")(teacher, student.requires_grad_())
