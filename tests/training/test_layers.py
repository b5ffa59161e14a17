"""What ``spkd taps`` finds out."""

from pathlib import Path

import pytest

from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.taps import TapPair
from spkd.training.layers import find_layers


def test_the_paper_s_layers_of_wide_residual_networks() -> None:
    found = find_layers(student="wrn-16-1", teacher="wrn-40-2")
    assert found.image_shape == (3, 32, 32)
    assert [one.name for one in found.student] == ["group1", "group2", "group3"]
    assert [one.shape for one in found.student] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [one.shape for one in found.teacher] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]
    assert found.pairs == (TapPair("group3", "group3"),)


def test_the_images_of_a_data_set_decide_the_shape() -> None:
    found = find_layers(student="wrn-10-1", teacher="wrn-10-2", data=DataOptions("digits"), select=("stages",))
    assert found.image_shape == (1, 8, 8)
    assert [one.shape for one in found.student] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert len(found.pairs) == 3


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(InputError, match="group4"):
        find_layers(student="wrn-10-1", teacher="wrn-10-2", select=("group4",))


def test_made_up_images_are_grey_where_a_network_takes_such(teacher: Path) -> None:
    assert find_layers(student="wrn-10-1", teacher=str(teacher)).image_shape == (1, 8, 8)
    assert find_layers(student="wrn-10-1", teacher="wrn-10-2", grey=True).image_shape == (1, 32, 32)
