import hashlib
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spkd.data.digits import load_digits
from spkd.data.images import MemoryImages
from spkd.data.seeds import mixed_seed
from spkd.data.splits import SPLIT_SEED, complete_splits, hold_out
from spkd.errors import InputError


def images_of(targets):
    """Return images whose single pixel is their number."""
    numbers = torch.arange(len(targets), dtype=torch.uint8)
    return MemoryImages(numbers.view(-1, 1, 1, 1), targets)


def numbers_of(images):
    return images.pixels.flatten().tolist()


@given(sizes=st.lists(st.integers(2, 40), min_size=2, max_size=8), share=st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_every_class_gives_its_share_and_keeps_some(sizes, share):
    targets = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    count = round(share * len(targets))
    stay, held = hold_out(targets, count, [str(size) for size in sizes])
    assert sorted(stay.tolist() + held.tolist()) == list(range(len(targets)))
    given_by = torch.bincount(targets[held], minlength=len(sizes))
    for size, from_class in zip(sizes, given_by.tolist(), strict=True):
        assert 1 <= from_class <= size - 1
    if len(sizes) <= count <= len(targets) - len(sizes):
        assert len(held) == count


def test_shares_are_proportional():
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 50, 10]))
    held = hold_out(targets, 16, "abc")[1]
    assert torch.bincount(targets[held]).tolist() == [10, 5, 1]


def test_the_choice_is_the_same_whatever_the_global_seed():
    targets = torch.arange(200) % 4
    choices = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        choices.append(hold_out(targets, 40, "abcd")[1])
    assert torch.equal(*choices)


def test_the_choice_does_not_favour_a_place():
    targets = torch.zeros(400, dtype=torch.int64)
    targets[::2] = 1
    held = hold_out(targets, 200, "ab")[1]
    # 200 of 400 places without replacement: mean 199.5, standard error about 5.8.
    assert abs(held.double().mean() - 199.5) < 4 * 5.8


def drawn_class_by_class(targets, shares):
    """Return what is split off where each class in turn is looked for among all images."""
    held = torch.zeros(len(targets), dtype=torch.bool)
    generator = torch.Generator().manual_seed(mixed_seed(SPLIT_SEED))
    for label, share in enumerate(shares):
        members = torch.nonzero(targets == label).squeeze(1)
        held[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return torch.nonzero(held).squeeze(1)


@pytest.mark.parametrize("classes", [2, 7, 60])
def test_the_draw_is_that_of_one_class_after_another(classes):
    targets = torch.randint(classes, (2000,), generator=torch.Generator().manual_seed(classes))
    stay, held = hold_out(targets, 300, [str(label) for label in range(classes)])
    shares = torch.bincount(targets[held], minlength=classes).tolist()
    assert torch.equal(held, drawn_class_by_class(targets, shares))
    assert torch.equal(torch.cat([stay, held]).sort().values, torch.arange(2000))


def test_many_classes_of_many_images_take_no_look_through_all_for_each():
    targets = torch.arange(400_000).flip(0) % 4000
    begun = time.thread_time()
    held = hold_out(targets, 40_000, [str(label) for label in range(4000)])[1]
    took = time.thread_time() - begun
    begun = time.thread_time()
    assert torch.equal(held, drawn_class_by_class(targets, [10] * 4000))
    assert took < 0.4 * (time.thread_time() - begun)


def test_a_class_of_one_image_is_named():
    line = (
        r"^data: 1 of 2 classes has too few images to be split between 2 sets: 'rare' \(1\); add images of it [^\n]+$"
    )
    with pytest.raises(InputError, match=line):
        hold_out(torch.tensor([0, 0, 0, 1]), 1, ["common", "rare"])


@pytest.mark.parametrize("grouped", [False, True])
def test_all_classes_of_too_few_are_named_and_counted(grouped):
    targets = torch.tensor([0] * 9 + [1] * 2 + [2] * 5 + [3])
    groups = {"train": torch.arange(len(targets))} if grouped else None
    what, more = ("images of too few groups", "images of other groups") if grouped else ("too few images", "images of")
    line = rf"^data: 2 of 4 classes have {what} to be split between 3 sets: 'b' \(2\), 'd' \(1\); add {more}"
    with pytest.raises(InputError, match=line):
        complete_splits(images_of(targets), None, None, "abcd", groups)
    many = torch.arange(20)
    with pytest.raises(InputError, match=r"^data: 20 of 20 classes have .* '9' \(1\), \.\.\.; add"):
        complete_splits(images_of(many), None, None, [str(label) for label in range(20)], groups and {"train": many})


def test_without_other_sets_both_are_cut():
    splits = complete_splits(images_of(torch.arange(200) % 2), None, None, "ab")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (140, 30, 30)
    everything = numbers_of(splits.train) + numbers_of(splits.val) + numbers_of(splits.test)
    assert sorted(everything) == list(range(200))
    assert [note.split(":")[0] for note in splits.notes] == ["test set", "validation set"]


def test_with_a_test_set_only_validation_is_cut():
    test = images_of(torch.arange(10) % 2)
    splits = complete_splits(images_of(torch.arange(200) % 2), None, test, "ab")
    assert (len(splits.train), len(splits.val)) == (180, 20)
    assert splits.test is test
    assert len(splits.notes) == 1


def test_with_a_validation_set_that_is_halved():
    train, val = images_of(torch.arange(200) % 2), images_of(torch.arange(41) % 2)
    splits = complete_splits(train, val, None, "ab")
    assert splits.train is train
    assert (len(splits.val), len(splits.test)) == (21, 20)
    assert sorted(numbers_of(splits.val) + numbers_of(splits.test)) == list(range(41))
    for part in (splits.val, splits.test):
        counts = torch.bincount(part.targets)
        assert abs(int(counts[0] - counts[1])) <= 1
    assert splits.notes == (
        "test set: 20 of the 41 validation images, cut by a fixed seed, stratified by class; 21 stay for validation",
    )


@pytest.mark.parametrize("targets", [[0, 0, 0, 1], [0, 0, 0]])
def test_validation_images_of_which_a_class_has_one_are_not_halved(targets):
    train, val = images_of(torch.arange(200) % 2), images_of(torch.tensor(targets))
    splits = complete_splits(train, val, None, "ab")
    assert splits.val is val
    assert (len(splits.train), len(splits.test)) == (170, 30)
    assert splits.notes == (
        "test set: 30 of the 200 training images, cut by a fixed seed, stratified by class, since val/ has fewer "
        "than two of 'b'; a network that has learnt train/ already knows them",
    )


@pytest.mark.parametrize(("given", "needed"), [((), 3), (("val",), 2), (("test",), 2)])
def test_a_class_must_have_an_image_for_every_set(given, needed):
    def cut(rare):
        other = images_of(torch.tensor([0, 1]))
        val, test = (other if name in given else None for name in ("val", "test"))
        return complete_splits(images_of(torch.tensor([0] * 40 + [1] * rare)), val, test, ["common", "rare"])

    splits = cut(needed)
    for part in (splits.train, splits.val, splits.test):
        assert (part.targets == 1).any()
    for count in range(needed):
        line = rf"^data: 1 of 2 classes has too few images to be split between {needed} sets: 'rare' \({count}\); add"
        with pytest.raises(InputError, match=line):
            cut(count)


def test_given_sets_are_left_alone():
    train, val, test = (images_of(torch.arange(10) % 2) for _ in range(3))
    splits = complete_splits(train, val, test, "ab")
    assert (splits.train, splits.val, splits.test, splits.notes) == (train, val, test, ())


def test_the_label_stays_with_its_image():
    targets = torch.arange(120) % 3
    splits = complete_splits(images_of(targets), None, None, "abc")
    for part in (splits.train, splits.val, splits.test):
        assert targets[numbers_of(part)].tolist() == part.targets.tolist()


@pytest.mark.parametrize(
    ("given", "sizes", "digest"),
    [
        ((), (81, 18, 18), "790cdba515e65040384b6e6d64173942c67fb7733a37a40df1ff5be7a1c2f771"),
        (("test",), (105, 12, 117), "3442da9fa6472ac0e2b335e820389008873cfd36f89302f74aed8a9512cb4cfd"),
        (("val",), (117, 59, 58), "af62249c56c77013e956118a02a54ff2c38401dccb901178cc34a007ffe97f46"),
    ],
)
def test_what_is_cut_is_that_of_every_version(given, sizes, digest):
    whole = images_of(torch.arange(117) % 3)
    val, test = (whole if name in given else None for name in ("val", "test"))
    splits = complete_splits(whole, val, test, "abc")
    parts = [numbers_of(part) for part in (splits.train, splits.val, splits.test)]
    assert tuple(map(len, parts)) == sizes
    assert hashlib.sha256(str(parts).encode()).hexdigest() == digest


def test_the_digits_split_is_that_of_every_version():
    data = load_digits()
    digest = hashlib.sha256(b"".join(part.pixels.numpy().tobytes() for part in (data.train, data.val, data.test)))
    assert digest.hexdigest() == "0fdf610d06fa5069f7d1e98f2e7077ca78995b4f4f470a173b64021555ccbdb1"


def groups_of_three(images):
    """Return a number for every three neighbours, of whichever classes."""
    return torch.arange(len(images)) // 3


def check_undivided(parts, per_group=3):
    groups = [{number // per_group for number in numbers_of(part)} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    return [len(one) for one in groups]


def test_groups_are_cut_as_wholes():
    whole = images_of(torch.arange(240) % 2)
    splits = complete_splits(whole, None, None, "ab", {"train": groups_of_three(whole)})
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [168, 36, 36]
    assert check_undivided(parts) == [56, 12, 12]
    assert sorted(number for part in parts for number in numbers_of(part)) == list(range(240))
    assert splits.notes == (
        "test set: 36 of the 240 images, cut by a fixed seed, stratified by class, no group divided (12 of 80 groups)",
        "validation set: 36 of the 240 images, cut by a fixed seed, stratified by class, no group divided (12 of 80 "
        "groups)",
    )


def test_only_validation_is_cut_in_groups():
    whole, test = images_of(torch.arange(240) % 2), images_of(torch.arange(10) % 2)
    splits = complete_splits(whole, None, test, "ab", {"train": groups_of_three(whole), "test": torch.zeros(10).long()})
    assert splits.test is test
    assert [len(splits.train), len(splits.val)] == [216, 24]
    check_undivided((splits.train, splits.val))
    assert splits.notes[0].endswith("no group divided (8 of 80 groups)")


def test_validation_images_are_halved_in_groups():
    train, val = images_of(torch.arange(30) % 2), images_of(torch.arange(60) % 2)
    groups = {"train": groups_of_three(train), "val": groups_of_three(val)}
    splits = complete_splits(train, val, None, "ab", groups)
    assert splits.train is train
    assert check_undivided((splits.val, splits.test)) == [10, 10]
    assert splits.notes == (
        "test set: 30 of the 60 validation images, cut by a fixed seed, stratified by class, no group divided (10 of "
        "20 groups); 30 stay for validation",
    )


def test_validation_images_of_one_group_are_not_halved():
    train, val = images_of(torch.arange(240) % 2), images_of(torch.arange(20) % 2)
    groups = {"train": groups_of_three(train), "val": torch.tensor([0, 1] + [0, 2] * 9)}
    splits = complete_splits(train, val, None, "ab", groups)
    assert splits.val is val
    assert [len(splits.train), len(splits.test)] == [204, 36]
    assert splits.notes == (
        "test set: 36 of the 240 training images, cut by a fixed seed, stratified by class, no group divided (12 of 80 "
        "groups), since val/ has fewer than two groups of 'a'; a network that has learnt train/ already knows them",
    )


def test_a_class_of_too_few_groups_is_named():
    whole = images_of(torch.tensor([0] * 30 + [1] * 10))
    groups = torch.cat([torch.arange(30), torch.tensor([30, 31] * 5)])
    with pytest.raises(
        InputError, match=r"^data: 1 of 2 classes has images of too few groups to be split between 3 sets: 'b' \(2\);"
    ):
        complete_splits(whole, None, None, "ab", {"train": groups})
