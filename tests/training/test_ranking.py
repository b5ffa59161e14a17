"""Areas under ROC curves held against counts over all pairs of images."""

from __future__ import annotations

import pytest
import torch
from helpers import CASES
from hypothesis import given
from hypothesis import strategies as st

from spkd.training.evaluation import ClassError, Evaluation
from spkd.training.prediction import probabilities_of
from spkd.training.ranking import Ranking, has_room


def area_by_pairs(shares: list[list[float]], targets: list[int], place: int) -> float | None:
    own = [row[place] for row, target in zip(shares, targets, strict=True) if target == place]
    others = [row[place] for row, target in zip(shares, targets, strict=True) if target != place]
    wins = sum((one > other) + (one == other) / 2 for one in own for other in others)
    return wins / (len(own) * len(others)) if own and others else None


@CASES
@given(classes=st.integers(2, 5), count=st.integers(1, 30), size=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_the_areas_are_those_of_all_pairs_of_images(classes: int, count: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Of few values, so that many are equal.
    logits = torch.randint(3, (count, classes), generator=generator).float()
    targets = torch.randint(classes, (count,), generator=generator)
    ranking = Ranking(count, classes)
    for some, theirs in zip(logits.split(size), targets.split(size), strict=True):
        ranking.add(probabilities_of(some), theirs)
    shares = logits.double().softmax(dim=1).tolist()
    for place, area in enumerate(ranking.areas()):
        expected = area_by_pairs(shares, targets.tolist(), place)
        assert area == (expected if expected is None else pytest.approx(expected))


def test_sure_answers_are_ranked_too() -> None:
    """In float32 all but the last would have the same probability of the first class, 1."""
    ranking = Ranking(4, 2)
    ranking.add(probabilities_of(torch.tensor([[30.0, 0], [28, 0], [26, 0], [0, 0]])), torch.tensor([0, 0, 1, 1]))
    assert ranking.areas() == [1.0, 1.0]


def test_the_areas_stand_beside_the_errors() -> None:
    ranking = Ranking(2, 3)
    ranking.add(probabilities_of(torch.eye(2, 3)), torch.tensor([0, 1]))
    classes = tuple(ClassError(name, 1, 0.0, precision=100.0) for name in "abc")
    measured = Evaluation(2, 0.0, 0.0, None, 0.5, 1.0, None, classes)
    found = ranking.put_into(measured)
    assert [(one.name, one.precision, one.area) for one in found.per_class] == [
        ("a", 100.0, 1.0),
        ("b", 100.0, 1.0),
        ("c", 100.0, None),
    ]


def test_the_probabilities_of_imagenet_s_validation_images_have_room() -> None:
    assert has_room(50_000, 1_000)
    assert not has_room(1_300_000, 1_000)
