"""The one exception for what a person can mend, and its hints."""

from __future__ import annotations

import pickle

import pytest

from spkd.errors import InputError, UnusableFolder, nearest


def test_it_is_a_value_error_that_shows_its_line() -> None:
    with pytest.raises(ValueError, match=r"^layer: unknown$") as caught:
        raise InputError("layer: unknown")
    assert type(caught.value) is InputError


def test_an_unusable_folder_is_told_with_and_without_what_helps() -> None:
    error = UnusableFolder("the run is another's", "give --overwrite")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one) == "the run is another's; give --overwrite"
        assert one.what == "the run is another's"


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("wrn-16-11", ["wrn-16-1", "resnet"], " Did you mean 'wrn-16-1'?"),
        ("cifar-10", ["cifar10", "cifar100", "svhn"], " Did you mean 'cifar10' or 'cifar100'?"),
        ("quite-another", ["sp", "kd"], ""),
        ("sp", [], ""),
    ],
)
def test_hints_name_what_is_near_and_nothing_else(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint


def test_a_hint_names_three_at_the_most_and_takes_any_iterable() -> None:
    hint = nearest("layer", (f"layer{number}" for number in range(9)))
    assert hint.count("layer") == 3
    assert hint.endswith("?")
