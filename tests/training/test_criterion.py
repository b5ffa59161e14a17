"""What stands in the place of the cross-entropy, held against a loop over images and classes in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spkd.data.digits import load_digits
from spkd.data.options import Draw
from spkd.training.criterion import WeighedCrossEntropy, balancing_weights, criterion_of
from spkd.training.recipe import preset


def of_a_label(logits: Tensor, label: int, weights: Tensor, smoothing: float) -> float:
    """The cross-entropy of one image with one label, smoothed and weighed, by its definition."""
    likely = logits - math.log(sum(math.exp(value) for value in logits.tolist()))
    even = -sum(likely.tolist()) / len(likely)
    return float(weights[label]) * ((1 - smoothing) * -float(likely[label]) + smoothing * even)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_a_mixed_image_it_is_the_sum_over_its_labels(smoothing: float) -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 0.25, 3.0, 2.0], dtype=torch.float64)
    labels, others = torch.tensor([0, 1, 2, -100, -100]), torch.tensor([3, 1, -100, 0, -100])
    share, places = 0.75, torch.arange(4)
    targets = share * (labels[:, None] == places).double() + (1 - share) * (others[:, None] == places).double()
    values = WeighedCrossEntropy(weights, smoothing)(logits, targets)
    for row, value in enumerate(values.tolist()):
        expected = 0.0
        for label, part in ((int(labels[row]), share), (int(others[row]), 1 - share)):
            expected += part * of_a_label(logits[row], label, weights, smoothing) if label >= 0 else 0.0
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_an_image_that_is_mixed_with_itself_it_is_that_of_its_label(smoothing: float) -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    criterion = WeighedCrossEntropy(torch.tensor([1.0, 0.25, 3.0, 2.0]), smoothing)
    labels = torch.tensor([2, 0, -100])
    rows = (labels[:, None] == torch.arange(4)).float()
    torch.testing.assert_close(criterion(logits, rows), criterion(logits, labels))


def test_classes_that_are_drawn_more_often_are_not_weighed_for_it_once_more() -> None:
    data = load_digits()
    threes, others = (torch.nonzero(wanted).squeeze(1) for wanted in (data.train.targets == 3, data.train.targets > 3))
    data = replace(data, train=data.train.select(torch.cat([threes[:4], others])))
    counts = torch.bincount(data.train.targets, minlength=10)
    draws: tuple[Draw, ...] = ("plain", "sqrt", "balanced")
    plain, half, drawn = (balancing_weights(replace(data, draw=draw)) for draw in draws)
    torch.testing.assert_close(plain[3:], len(data.train) / (7 * counts[3:]))
    assert plain[:3].tolist() == [0, 0, 0] == drawn[:3].tolist()
    torch.testing.assert_close(drawn[3:], torch.ones(7), rtol=1 / 40, atol=0)  # 44 of a class, or 45
    assert 1 < half[3] < plain[3]


def test_which_one_is_taken() -> None:
    data, recipe = load_digits(), preset("digits")
    assert criterion_of(recipe, data) is None
    mixed = criterion_of(recipe, replace(data, mixup=1.0))
    assert isinstance(mixed, WeighedCrossEntropy)
    assert mixed.of_labels.tolist() == [1.0] * 10
    both = criterion_of(replace(recipe, class_weights="balanced", label_smoothing=0.1), replace(data, mixup=1.0))
    assert isinstance(both, WeighedCrossEntropy)
    assert torch.equal(both.of_labels, balancing_weights(data))  # type: ignore[arg-type]
    assert both.label_smoothing == 0.1
