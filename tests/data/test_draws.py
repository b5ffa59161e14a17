"""How often images come in an epoch, counted."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spkd.data.draws import drawn_images, times_of_classes


def drawn(targets, draw, seed=0):
    return drawn_images(torch.tensor(targets), draw, torch.Generator().manual_seed(seed)).tolist()


def test_plain_is_every_image_once_and_draws_no_number():
    generator = torch.Generator().manual_seed(0)
    assert drawn_images(torch.tensor([3, 3, 1, -100]), "plain", generator).tolist() == [0, 1, 2, 3]
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize(
    ("draw", "times"),
    [("balanced", {0: 40, 5: 40, 7: 40}), ("sqrt", {0: 75, 5: 30, 7: 15})],  # 100, 16 and 4 images: 10 : 4 : 2
)
def test_classes_come_as_often_as_is_said(draw, times):
    targets = [0] * 100 + [7] * 4 + [5] * 16
    assert Counter(targets[place] for place in drawn(targets, draw)) == times
    counts = torch.tensor([100, 0, 0, 0, 0, 16, 0, 4])
    assert times_of_classes(counts, draw).tolist() == [times.get(kind, 0) for kind in range(8)]
    assert times_of_classes(counts, "plain").tolist() == counts.tolist()


@given(
    st.lists(st.sampled_from([-100, 0, 1, 2, 9]), min_size=1, max_size=60),
    st.sampled_from(["balanced", "sqrt"]),
    st.integers(0, 5),
)
def test_an_epoch_is_as_long_and_no_image_comes_two_times_more_than_another_of_its_class(targets, draw, seed):
    places = drawn(targets, draw, seed)
    assert len(places) == len(targets)
    assert places == sorted(places)
    come = Counter(places)
    for kind in set(targets):
        times = [come[place] for place, target in enumerate(targets) if target == kind]
        if kind < 0:
            assert set(times) == {1}
        assert max(times) - min(times) <= 1
    labels = [kind for kind in targets if kind >= 0]
    power = {"balanced": 0.0, "sqrt": 0.5}[draw]
    whole = sum(count**power for count in Counter(labels).values())
    for kind, count in Counter(labels).items():
        often = sum(targets[place] == kind for place in places)
        assert abs(often - len(labels) * count**power / whole) <= 1


def test_which_images_come_more_often_is_the_seed_s():
    targets = [0] * 7 + [1] * 3
    assert drawn(targets, "balanced", 1) == drawn(targets, "balanced", 1)
    assert len({tuple(drawn(targets, "balanced", seed)) for seed in range(20)}) > 3
