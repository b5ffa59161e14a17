"""Sets that divide no group, held against what must be true of any such sets and against all ways to make them."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spkd.data.group_splits import hold_out_groups
from spkd.errors import InputError

Groups = list[dict[int, int]]
"""How many images of which class each group holds."""


def images_of(groups: Groups) -> tuple[Tensor, Tensor]:
    """Return class and group of each image; groups have numbers with gaps."""
    pairs = [
        (label, 10 + 3 * number)
        for number, inside in enumerate(groups)
        for label, count in inside.items()
        for _ in range(count)
    ]
    return torch.tensor([label for label, _ in pairs]), torch.tensor([number for _, number in pairs])


def names(targets: Tensor) -> list[str]:
    return [f"class {label}" for label in range(int(targets.max()) + 1)]


def check(parts: Sequence[Tensor], targets: Tensor, groups: Tensor) -> None:
    """Every image is in one set, every group in one, every class in all."""
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(len(targets)))
    assert sum(len(groups[part].unique()) for part in parts) == len(groups.unique())
    for part in parts:
        assert torch.equal(targets[part].unique(), targets.unique())
        assert torch.equal(part, part.sort().values)


def can_be_divided(groups: Groups, sets: int) -> bool:
    """Try all ways."""
    everything = {label for inside in groups for label in inside}
    for places in itertools.product(range(sets), repeat=len(groups)):
        there: list[set[int]] = [set() for _ in range(sets)]
        for place, inside in zip(places, groups, strict=True):
            there[place] |= inside.keys()
        if all(labels == everything for labels in there):
            return True
    return False


one_class = st.builds(lambda label, count: {label: count}, st.integers(0, 3), st.integers(1, 9))
several_classes = st.dictionaries(st.integers(0, 3), st.integers(1, 9), min_size=1, max_size=3)


@given(st.lists(one_class, min_size=8, max_size=60), st.integers(2, 3), st.sampled_from([0.1, 0.15, 0.5]))
@settings(max_examples=150)
def test_groups_of_one_class_are_divided_wherever_there_are_enough(groups: Groups, sets: int, share: float) -> None:
    targets, numbers = images_of(groups)
    assume(len(targets.unique()) == int(targets.max()) + 1)
    share = min(share, 1 / sets)
    counts = [round(share * len(targets))] * (sets - 1)
    spread = {label: sum(label in inside for inside in groups) for label in targets.unique().tolist()}
    few = {label: number for label, number in spread.items() if number < sets}
    if not few:
        check(hold_out_groups(targets, numbers, counts, names(targets), 0), targets, numbers)
    else:
        named = ", ".join(f"'class {label}' ({number})" for label, number in few.items())
        line = rf"^data: {len(few)} of .* images of too few groups to be split between {sets} sets: {re.escape(named)};"
        with pytest.raises(InputError, match=line):
            hold_out_groups(targets, numbers, counts, names(targets), 0)


@given(st.lists(several_classes, min_size=3, max_size=6), st.integers(2, 3))
@settings(max_examples=300)
def test_groups_of_several_classes_are_divided_or_refused(groups: Groups, sets: int) -> None:
    targets, numbers = images_of(groups)
    assume(len(targets.unique()) == int(targets.max()) + 1)
    with contextlib.suppress(InputError):
        check(hold_out_groups(targets, numbers, [1] * (sets - 1), names(targets), 0), targets, numbers)
        assert can_be_divided(groups, sets)


def test_nearly_all_small_cases_that_can_be_divided_are() -> None:
    draw = np.random.default_rng(1)
    able, divided = 0, 0
    while able < 200:
        groups = [
            {int(label): int(draw.integers(1, 5)) for label in draw.choice(4, draw.integers(1, 4), replace=False)}
            for _ in range(draw.integers(4, 8))
        ]
        targets, numbers = images_of(groups)
        if len(targets.unique()) != int(targets.max()) + 1 or not can_be_divided(groups, 3):
            continue
        able += 1
        try:
            check(hold_out_groups(targets, numbers, [2, 2], names(targets), 0), targets, numbers)
        except InputError:
            continue
        divided += 1
    assert divided >= 0.98 * able


def test_what_hinders_is_named() -> None:
    """Three groups with two of three classes each: any two of them hold all, and one alone does not."""
    targets, numbers = images_of([{0: 1, 1: 1}, {0: 1, 2: 1}, {1: 1, 2: 1}])
    line = (
        r"^data: 1 of 3 classes has images of too few groups to be split between 2 sets, since these hold images of "
        r"other classes too: 'class \d' \(2\); add"
    )
    with pytest.raises(InputError, match=line):
        hold_out_groups(targets, numbers, [3], names(targets), 0)


def test_classes_of_too_few_groups_are_named() -> None:
    targets, numbers = images_of([{0: 1}, {0: 1}, {1: 1}, {2: 1}, {2: 1}, {2: 1}])
    with pytest.raises(
        InputError, match=r"^data: 2 of 3 classes have images of too few .* 3 sets: 'class 0' \(2\), 'class 1' \(1\);"
    ):
        hold_out_groups(targets, numbers, [1, 1], names(targets), 0)


def unlike_groups(seed: int, groups: int, classes: int, mean: float) -> tuple[Tensor, Tensor]:
    """Return images of groups of very unlike sizes, which hold unlike shares of the classes."""
    draw = np.random.default_rng(seed)
    sizes = np.ceil(mean * draw.lognormal(size=groups)).astype(int)
    targets = [draw.choice(classes, size, p=draw.dirichlet(np.full(classes, 0.5))) for size in sizes]
    return torch.from_numpy(np.concatenate(targets)), torch.from_numpy(np.repeat(np.arange(groups), sizes))


@pytest.mark.parametrize("shares", [[0.15, 0.15], [0.1], [0.5]])
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_near_those_wanted(shares: list[float], seed: int) -> None:
    targets, numbers = unlike_groups(seed, groups=600, classes=5, mean=5)
    counts = [round(share * len(targets)) for share in shares]
    parts = hold_out_groups(targets, numbers, counts, names(targets), seed)
    check(parts, targets, numbers)
    of_classes = torch.bincount(targets)
    for part, share in zip(parts[1:], shares, strict=True):
        assert abs(len(part) / len(targets) - share) < 0.002
        assert (torch.bincount(targets[part]) / of_classes - share).abs().max() < 0.01


def test_groups_of_one_image_come_to_the_shares_of_single_images() -> None:
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([1000, 200, 40]))
    parts = hold_out_groups(targets, torch.arange(len(targets)), [186, 186], "abc", 0)
    assert [torch.bincount(targets[part]).tolist() for part in parts] == [[700, 140, 28], [150, 30, 6], [150, 30, 6]]


def test_many_small_classes_do_not_add_up_to_too_large_a_set() -> None:
    """Ten images of a class are 7, 1.5 and 1.5: were all rounded alike, one set had 20 % and the other 10 %."""
    targets = torch.arange(100).repeat(10)
    parts = hold_out_groups(targets, torch.arange(1000), [150, 150], names(targets), 0)
    for part in parts[1:]:
        assert abs(len(part) - 150) <= 5


def test_neither_the_order_of_images_nor_the_global_seed_decides() -> None:
    targets, numbers = unlike_groups(0, groups=80, classes=3, mean=6)
    torch.manual_seed(1)
    first = hold_out_groups(targets, numbers, [60, 60], "abc", 5)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(9))
    torch.manual_seed(2)
    np.random.seed(3)
    second = hold_out_groups(targets[order], numbers[order], [60, 60], "abc", 5)
    for one, other in zip(first, second, strict=True):
        assert one.tolist() == sorted(order[other].tolist())


def test_equal_groups_are_drawn_and_not_taken_in_their_order() -> None:
    targets, numbers = torch.arange(800) % 2, torch.arange(800) // 2
    held = hold_out_groups(targets, numbers, [400], "ab", 0)[1]
    # 200 of 400 groups without replacement: mean 199.5, standard error about 5.8.
    assert abs(numbers[held].double().mean() - 199.5) < 4 * 5.8
    gaps = numbers[held].unique().diff()
    assert len(gaps.unique()) > 3
    assert not torch.equal(held, hold_out_groups(targets, numbers, [400], "ab", 1)[1])


def test_the_choice_is_that_of_every_version() -> None:
    targets, numbers = torch.arange(48) % 3, torch.arange(48) // 4
    parts = hold_out_groups(targets, numbers, [7, 7], "abc", 2019)
    assert [numbers[part].unique().tolist() for part in parts[1:]] == [[8, 10], [4, 9]]
