"""What ``spkd taps`` finds out."""

from pathlib import Path

import pytest

from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.models.saved_model import save_classifier
from spkd.taps import TapPair
from spkd.training.layers import find_layers
from spkd.training.options import Request
from spkd.training.setup import set_up


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


def test_a_teacher_that_sees_larger_images_has_other_stages(tmp_path: Path) -> None:
    """As in training: a ResNet-18 has a stage more at 64 pixels than at 8, where its last two are of one size."""
    networks = {"student": "wrn-10-1", "teacher": "torchvision/resnet18", "select": ("stages",)}
    same, larger = (find_layers(**networks, image_size=8, teacher_size=size) for size in (None, 64))
    assert (same.image_shape, same.teacher_size) == ((3, 8, 8), None)
    assert (larger.image_shape, larger.teacher_size) == ((3, 8, 8), 64)
    assert larger.student == same.student
    assert larger.teacher[-1].shape == (512, 2, 2)
    assert larger.pairs != same.pairs
    save_classifier(set_up(Request("torchvision/resnet18")).student, tmp_path)
    asked = {"teacher": str(tmp_path), "teacher_size": 64, "data": DataOptions()}
    trained = set_up(Request("wrn-10-1", method="sp", taps=("stages",), **asked)).objective
    assert find_layers(student="wrn-10-1", select=("stages",), **asked).pairs == trained.pairs == larger.pairs


def test_a_teacher_is_made_for_the_size_that_it_sees() -> None:
    """A transformer with places for so many patches refuses images of another size."""
    found = find_layers(
        student="wrn-10-1", teacher="timm/deit_tiny_patch16_224?depth=2", image_size=32, teacher_size=64
    )
    assert found.teacher[-1].shape == (1 + 4 * 4, 192)


def test_a_teacher_that_sees_smaller_images_is_refused() -> None:
    with pytest.raises(InputError, match="--teacher_size 16 is less than the student's 32 pixels"):
        find_layers(student="wrn-10-1", teacher="wrn-10-2", teacher_size=16)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(InputError, match="group4"):
        find_layers(student="wrn-10-1", teacher="wrn-10-2", select=("group4",))


def test_made_up_images_are_grey_where_a_network_takes_such(teacher: Path) -> None:
    assert find_layers(student="wrn-10-1", teacher=str(teacher)).image_shape == (1, 8, 8)
    assert find_layers(student="wrn-10-1", teacher="wrn-10-2", grey=True).image_shape == (1, 32, 32)
