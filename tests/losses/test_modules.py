"""Each loss module is its function in two halves; nothing of the teacher's half carries a gradient."""

from __future__ import annotations

import functools

import helpers
import pytest
import torch
from torch import Tensor

from spkd.errors import InputError
from spkd.functional import attention_transfer_loss, similarity_preserving_loss, soft_target_loss
from spkd.losses.attention import AttentionTransferLoss
from spkd.losses.base import DistillationLoss
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.taps import Activations, TapPair

random = functools.partial(helpers.random, dtype=torch.float32)

PAIR = TapPair(student="features.3", teacher="layer4")


def student_activations() -> Activations:
    return Activations(
        logits=random(1, 4, 10).requires_grad_(), taps={"features.3": random(2, 4, 3, 4, 4).requires_grad_()}
    )


def teacher_activations() -> Activations:
    return Activations(
        logits=random(3, 4, 10).requires_grad_(), taps={"layer4": random(4, 4, 8, 2, 2).requires_grad_()}
    )


def expected_value(loss: DistillationLoss, student: Activations, teacher: Activations) -> Tensor:
    if isinstance(loss, SoftTargetLoss):
        return soft_target_loss(student.logits, teacher.logits, loss.temperature)
    function = similarity_preserving_loss if isinstance(loss, SimilarityPreservingLoss) else attention_transfer_loss
    return function(student.taps["features.3"], teacher.taps["layer4"])


LOSSES = [SimilarityPreservingLoss(PAIR), SoftTargetLoss(2.0), AttentionTransferLoss(PAIR)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_two_halves_make_the_function(loss: DistillationLoss) -> None:
    student, teacher = student_activations(), teacher_activations()
    remembered = loss.remember(teacher)
    value = loss(student, remembered)
    assert value.shape == ()
    torch.testing.assert_close(value, expected_value(loss, student, teacher))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_no_gradient_reaches_the_teacher(loss: DistillationLoss) -> None:
    student, teacher = student_activations(), teacher_activations()
    remembered = loss.remember(teacher)
    assert not remembered.requires_grad
    assert remembered.shape[0] == 4
    loss(student, remembered).backward()
    assert teacher.logits.grad is None
    assert teacher.taps["layer4"].grad is None
    read = student.taps["features.3"] if loss.pairs else student.logits
    assert read.grad.any()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_what_is_remembered_can_be_kept_in_float16(loss: DistillationLoss) -> None:
    student, teacher = student_activations(), teacher_activations()
    large = Activations(teacher.logits, {"layer4": 20000 * teacher.taps["layer4"].detach()})
    kept = loss.remember(large).half()
    assert kept.isfinite().all()
    exact = expected_value(loss, student, teacher).item()
    assert loss(student, kept).item() == pytest.approx(exact, rel=1e-2)


def test_what_is_remembered_is_the_least_that_the_loss_needs() -> None:
    teacher = teacher_activations()
    assert SimilarityPreservingLoss(PAIR).remember(teacher).shape == (4, 4)
    assert AttentionTransferLoss(PAIR).remember(teacher).shape == (4, 2, 2)
    assert torch.equal(SoftTargetLoss().remember(teacher), teacher.logits)


def test_a_part_of_the_batch_is_compared_with_all_of_it() -> None:
    student, teacher = student_activations(), teacher_activations()
    whole = {3: student.taps["features.3"], 8: teacher.taps["layer4"]}

    def part(activations: Activations, images: slice) -> Activations:
        taps = {name: tap[images] for name, tap in activations.taps.items()}
        return Activations(activations.logits[images], taps, gather=lambda tap: whole[tap.shape[1]])

    for loss in LOSSES:
        assert loss.mean_over_images
        values = []
        for images in (slice(1), slice(1, 4)):
            remembered = loss.remember(part(teacher, images))
            torch.testing.assert_close(remembered, loss.remember(teacher)[images])
            values.append(len(remembered) / 4 * loss(part(student, images), remembered))
        torch.testing.assert_close(values[0] + values[1], expected_value(loss, student, teacher))


def test_pairs_say_what_is_read() -> None:
    assert SimilarityPreservingLoss(PAIR).pairs == AttentionTransferLoss(PAIR).pairs == (PAIR,)
    assert SoftTargetLoss().pairs == ()
    assert SoftTargetLoss().temperature == 4.0


def test_attention_of_channels_last_maps() -> None:
    loss = AttentionTransferLoss(PAIR)
    maps = random(5, 2, 8, 3, 3)
    channels_last = maps.permute(0, 2, 3, 1).contiguous()
    logits = random(6, 2, 10)
    torch.testing.assert_close(
        loss.remember(Activations(logits, {"layer4": channels_last})),
        loss.remember(Activations(logits, {"layer4": maps})),
    )
    student = Activations(logits, {"features.3": channels_last})
    assert loss(student, loss.remember(Activations(logits, {"layer4": maps}))).item() == pytest.approx(0, abs=1e-12)
    # As many channels as positions along a side, or a map that is no square: read as channels first.
    for other in (random(7, 2, 3, 3, 3), random(8, 2, 5, 3, 4)):
        expected = other.square().sum(1)
        remembered = loss.remember(Activations(logits, {"layer4": other}))
        torch.testing.assert_close(remembered, expected / expected.amax((1, 2), keepdim=True))


def test_errors_name_what_is_wrong() -> None:
    student = student_activations()
    with pytest.raises(InputError, match=r"'layer4', which was not tapped \(tapped: layer3\).*'layer3'"):
        SimilarityPreservingLoss(PAIR).remember(Activations(student.logits, {"layer3": student.logits}))
    with pytest.raises(InputError, match=r"'features.3', which was not tapped \(tapped: none\)"):
        AttentionTransferLoss(PAIR)(Activations(student.logits, {}), torch.ones(4, 2, 2))
    with pytest.raises(InputError, match="student has 10 and the teacher 47"):
        SoftTargetLoss()(student, torch.ones(4, 47))
    with pytest.raises(InputError, match="got 4 and 3 images"):
        SimilarityPreservingLoss(PAIR)(student, torch.eye(3))
    for temperature in (0.0, -2.0, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            SoftTargetLoss(temperature)


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DistillationLoss()  # type: ignore[abstract]
