"""Metrics held against values worked out by hand and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CASES
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from spkd.errors import InputError
from spkd.training.evaluation import errors_of, evaluate


class Lookup(nn.Module):
    """Gives row i of a table for an 'image' that holds i, so that a test decides every logit."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.table = logits
        self.seen_training: list[bool] = []
        self.seen_grad: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen_training.append(self.training or self.norm.training)
        self.seen_grad.append(torch.is_grad_enabled())
        return self.table[images.flatten().long()]


def images(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)


def in_batches(targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images(len(targets)).split(size), targets.split(size), strict=True))


def log_probabilities(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log().float()


# Four images, three classes; decisions 0, 0, 1, 2.
PROBABILITIES = [[0.90, 0.05, 0.05], [0.90, 0.06, 0.04], [0.20, 0.50, 0.30], [0.30, 0.20, 0.50]]
TARGETS = torch.tensor([0, 1, 1, 0])


def test_every_number_of_a_case_worked_by_hand() -> None:
    model = Lookup(log_probabilities(PROBABILITIES))
    result = evaluate(model, in_batches(TARGETS, 3), ["a", "b", "c"])
    assert result.images == 4
    assert result.top1_error == 50.0
    assert result.top5_error is None
    assert result.agreement is None
    expected = -(math.log(0.9) + math.log(0.06) + math.log(0.5) + math.log(0.3)) / 4
    assert result.cross_entropy == pytest.approx(expected, rel=1e-5)
    # Two of four in the bin that holds 0.9 (confidence 0.9, accuracy 1/2), two in that of 0.5 (0.5, 1/2).
    assert result.calibration_error == pytest.approx(100 * (2 / 4 * 0.4 + 2 / 4 * 0.0), rel=1e-4)
    assert [(one.name, one.images, one.error) for one in result.per_class] == [
        ("a", 2, 50.0),
        ("b", 2, 50.0),
        ("c", 0, None),
    ]


@CASES
@given(classes=st.integers(2, 9), count=st.integers(1, 40), size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_errors_by_class_are_those_of_the_confusion_matrix(classes: int, count: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    result = evaluate(Lookup(logits), in_batches(targets, size), [str(k) for k in range(classes)])
    decisions = logits.argmax(dim=1)
    confusion = MulticlassConfusionMatrix(classes)(decisions, targets)
    assert [one.images for one in result.per_class] == confusion.sum(dim=1).tolist()
    for one, row, right in zip(result.per_class, confusion, confusion.diag().tolist(), strict=True):
        of = int(row.sum())
        assert one.error == (100 * (of - right) / of if of else None)
    assert result.top1_error == 100 * (count - int(confusion.diag().sum())) / count
    recall = recall_score(targets, decisions, labels=targets.unique(), average="macro")
    assert result.balanced_error == pytest.approx(100 * (1 - recall))
    for place, (one, of) in enumerate(zip(result.per_class, confusion.sum(dim=0).tolist(), strict=True)):
        assert one.precision == (100 * int(confusion[place, place]) / of if of else None)
    for place, (one, row) in enumerate(zip(result.per_class, confusion.tolist(), strict=True)):
        most = max(number for other, number in enumerate(row) if other != place)
        if not most:
            assert one.taken_for is None
            continue
        assert one.taken_for == str(next(k for k, number in enumerate(row) if k != place and number == most))
        assert one.taken == 100 * most / sum(row)


def test_two_hundred_thousand_classes_take_no_matrix_of_classes() -> None:
    classes = 200_000  # a matrix of them would have 320 GB
    logits = torch.zeros(3, classes)
    logits[[0, 1, 2], [7, 199_999, 7]] = 1
    result = evaluate(Lookup(logits), in_batches(torch.tensor([7, 199_999, 0]), 2), [str(k) for k in range(classes)])
    assert result.top1_error == 100 * 1 / 3
    assert {one.name: one.error for one in result.per_class if one.images} == {"7": 0.0, "199999": 0.0, "0": 100.0}


def test_calibration_error_is_weighted_by_the_number_of_images_and_takes_absolute_values() -> None:
    # Bins 0.6..0.667 (three images, confidence 0.65, accuracy 1) and 0.933..1 (one, 0.95, accuracy 0).
    model = Lookup(log_probabilities([[0.65, 0.35]] * 3 + [[0.95, 0.05]]))
    result = evaluate(model, in_batches(torch.tensor([0, 0, 0, 1]), 2), ["a", "b"])
    assert result.calibration_error == pytest.approx(100 * (0.75 * 0.35 + 0.25 * 0.95), rel=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [(0.61, 0.66, True), (0.66, 0.68, False), (0.74, 0.79, True), (0.72, 0.74, False)],
)
def test_there_are_fifteen_bins(first: float, second: float, together: bool) -> None:
    """Bounds lie at 0.6, 0.667, 0.733 and 0.8; the first image is right, the second wrong."""
    model = Lookup(log_probabilities([[first, 1 - first], [second, 1 - second]]))
    result = evaluate(model, in_batches(torch.tensor([0, 1]), 2), ["a", "b"])
    expected = abs((first + second) / 2 - 1 / 2) if together else (1 - first + second) / 2
    assert result.calibration_error == pytest.approx(100 * expected, rel=1e-4)


def test_a_confidence_of_one_shares_the_last_of_the_fifteen_bins() -> None:
    # float32 softmax saturates: the first image has confidence 1 and is wrong, the second 0.96 and is right.
    # In one bin: |(1 + 0.96) / 2 - 1/2| = 0.48; in two bins it would be (1 + 0.04) / 2 = 0.52.
    logits = torch.cat([torch.tensor([[200.0, 0.0]]), log_probabilities([[0.96, 0.04]])])
    assert float(logits.softmax(1)[0, 0]) == 1.0
    result = evaluate(Lookup(logits), in_batches(torch.tensor([1, 0]), 2), ["a", "b"])
    assert result.calibration_error == pytest.approx(48.0, rel=1e-4)


def test_top5_error_counts_targets_outside_the_five_largest() -> None:
    torch.manual_seed(0)
    logits = torch.randn(37, 8)
    targets = torch.randint(0, 8, (37,))
    result = evaluate(Lookup(logits), in_batches(targets, 10), [str(k) for k in range(8)])
    missed = sum(
        target not in sorted(range(8), key=lambda k: -row[k])[:5]
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    )
    assert missed > 0
    assert result.top5_error == 100 * missed / 37


@pytest.mark.parametrize(("classes", "given"), [(5, False), (6, True)])
def test_top5_error_is_given_from_six_classes_on(classes: int, given: bool) -> None:
    result = evaluate(
        Lookup(torch.randn(4, classes)),
        in_batches(torch.zeros(4, dtype=torch.int64), 4),
        [str(k) for k in range(classes)],
    )
    assert (result.top5_error is not None) == given


def test_agreement_counts_equal_decisions_right_or_wrong() -> None:
    model = Lookup(log_probabilities(PROBABILITIES))  # 0, 0, 1, 2
    teacher = Lookup(torch.eye(3)[[0, 0, 2, 2]])
    result = evaluate(model, in_batches(TARGETS, 3), ["a", "b", "c"], teacher)
    assert result.agreement == 75.0


def test_agreement_of_never_is_zero_and_not_none() -> None:
    model = Lookup(log_probabilities(PROBABILITIES))
    teacher = Lookup(torch.eye(3)[[1, 1, 2, 0]])
    assert evaluate(model, in_batches(TARGETS, 3), ["a", "b", "c"], teacher).agreement == 0.0


def test_a_teacher_of_other_classes_has_no_agreement() -> None:
    model = Lookup(log_probabilities(PROBABILITIES))
    assert evaluate(model, in_batches(TARGETS, 2), ["a", "b", "c"], Lookup(torch.eye(4))).agreement is None


def test_batches_of_unlike_size_do_not_weigh_the_mean() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(11, 7), torch.randint(0, 7, (11,))
    names = [str(k) for k in range(7)]
    whole = evaluate(Lookup(logits), in_batches(targets, 11), names)
    parts = evaluate(Lookup(logits), in_batches(targets, 4), names)
    assert parts.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-6)
    assert parts.calibration_error == pytest.approx(whole.calibration_error, rel=1e-6)
    assert (parts.top1_error, parts.top5_error) == (whole.top1_error, whole.top5_error)


def test_errors_equal_the_full_evaluations() -> None:
    torch.manual_seed(2)
    logits, targets = torch.randn(23, 4), torch.randint(0, 4, (23,))
    model = Lookup(logits)
    wrong = sum(int(row.argmax() != target) for row, target in zip(logits, targets, strict=True))
    recall = recall_score(targets, logits.argmax(1), average="macro")
    whole = evaluate(model, in_batches(targets, 5), list("abcd"))
    assert errors_of(model, in_batches(targets, 5), 4) == (whole.top1_error, whole.balanced_error)
    assert whole.top1_error == 100 * wrong / 23
    assert whole.balanced_error == pytest.approx(100 * (1 - recall))


def test_the_balanced_error_is_of_the_classes_that_there_are_and_of_labelled_images() -> None:
    """Eight images of one class, one of them wrong, one of another, wrong too, and none of two more."""
    logits = torch.eye(4)[[0] * 7 + [1, 3, 3, 0]]
    targets = torch.tensor([0] * 8 + [2, -100, -100])
    assert errors_of(Lookup(logits), in_batches(targets, 3), 4) == (100 * 2 / 9, (12.5 + 100) / 2)
    with pytest.raises(InputError, match="image"):
        errors_of(Lookup(logits), in_batches(torch.tensor([-100]), 1), 4)


@pytest.mark.parametrize("processes", [2, 7])
def test_the_errors_of_a_part_are_those_of_all(processes: int) -> None:
    """With seven processes two of them have no batch."""
    targets, counts = torch.randint(4, (23,), generator=torch.Generator().manual_seed(0)), []
    batches = in_batches(targets, 5)
    model = Lookup(torch.randn(23, 4, generator=torch.Generator().manual_seed(1)))
    for place in range(processes):
        errors_of(model, batches[place::processes], 4, lambda own: counts.append(own) or torch.tensor([[0, 1]]))
    total = torch.stack(counts).sum(0)
    assert total[:, 1].tolist() == torch.bincount(targets, minlength=4).tolist()
    assert errors_of(model, batches[:1], 4, lambda own: total) == errors_of(model, batches, 4)
    with pytest.raises(InputError, match="image"):
        errors_of(model, [], 4, lambda own: own)


def test_an_image_with_a_nan_logit_is_an_error() -> None:
    logits = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    assert errors_of(Lookup(logits), in_batches(torch.tensor([0, 0]), 2), 2).error == 50.0


@pytest.mark.parametrize("measure", ["top1", "all"])
def test_runs_in_eval_mode_without_gradients_and_gives_every_mode_back(measure: str) -> None:
    model, teacher = Lookup(torch.eye(3)), Lookup(torch.eye(3))
    model.train()
    model.norm.eval()
    batches = in_batches(torch.tensor([0, 1, 2]), 2)
    if measure == "top1":
        errors_of(model, batches, 3)
    else:
        evaluate(model, batches, list("abc"), teacher)
        assert not any(teacher.seen_training)
        assert teacher.training
    assert model.seen_training == [False, False]
    assert model.seen_grad == [False, False]
    assert (model.training, model.norm.training) == (True, False)


def test_modes_come_back_after_an_error() -> None:
    model = Lookup(torch.eye(3)).train()
    with pytest.raises(InputError, match="model: it fails on images of 1 × 1 × 1: IndexError"):
        errors_of(model, [(torch.full((1, 1, 1, 1), 99.0), torch.tensor([0]))], 3)
    assert model.training
    assert model.norm.training


def test_half_precision_logits_are_measured_in_float32() -> None:
    logits = torch.tensor([[300.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    result = evaluate(Lookup(logits), in_batches(torch.tensor([1, 1]), 2), ["a", "b"])
    assert result.cross_entropy == pytest.approx((300 + math.log(1 + math.exp(-1))) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.eye(4), [0, 1], r"expected logits of shape \(images, 3\).*got \(2, 4\)"),
        (torch.eye(3), [0, 3], "expected class numbers 0 to 2, got 0 to 3"),
        (torch.eye(3), [-1, 0], "expected class numbers 0 to 2, got -1 to 0"),
        (torch.full((3, 3), math.inf), [0, 1], "expected finite logits"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(logits: Tensor, targets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate(Lookup(logits), in_batches(torch.tensor(targets), 2), list("abc"))
    assert "\n" not in str(caught.value)


def test_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one image"):
        evaluate(nn.Identity(), [], ["a"])
    with pytest.raises(InputError, match="at least one image"):
        errors_of(nn.Identity(), [], 1)


def test_a_teacher_s_logits_must_be_finite_too() -> None:
    """Of NaN the largest would be the first class."""

    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * float("nan")

    with pytest.raises(InputError, match="teacher: expected finite logits"):
        evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 0]))], ["cat", "dog", "owl"], Broken())


def test_networks_are_evaluated_whatever_their_logits_come_in() -> None:
    """As a teacher's are taken."""

    class InDict(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": images.flatten(1)}

    images, targets = torch.rand(6, 1, 1, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = 100 * (images.flatten(1).argmax(1) != targets).double().mean().item()
    assert evaluate(InDict(), [(images, targets)], ["a", "b", "c"]).top1_error == pytest.approx(expected)
    assert errors_of(InDict(), [(images, targets)], 3).error == pytest.approx(expected)


@pytest.mark.parametrize(
    "targets", [torch.tensor([0, 1, 1], dtype=torch.uint8), torch.tensor([0, 1]), torch.zeros(3, 2)]
)
def test_targets_that_are_no_class_numbers_are_refused(targets: Tensor) -> None:
    """In bytes, what is counted would begin anew at 256."""
    with pytest.raises(InputError, match=r"^targets: expected class numbers, int64, one for each of 3 images, got "):
        evaluate(nn.Identity(), [(torch.rand(3, 2), targets)], ["a", "b"])
