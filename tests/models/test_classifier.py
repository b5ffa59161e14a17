from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.models.classifier import Classifier, ModelInfo, Normalisation, same_classes

HALF = Normalisation((0.5,), (0.25,))


class Recorder(nn.Module):
    """Keeps the images that it is given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.conv(images).mean((2, 3))


def info(channels: int, normalisation: Normalisation = HALF) -> ModelInfo:
    return ModelInfo("own", ("a", "b"), channels, 8, normalisation)


def test_normalises_each_channel() -> None:
    network = Recorder(3)
    classifier = Classifier(network, info(3, Normalisation((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))))
    assert classifier(torch.full((2, 3, 4, 4), 0.5)).shape == (2, 2)
    torch.testing.assert_close(network.seen[1, :, 3, 3], torch.tensor([0.4, 0.15, 0.05]))


def test_repeats_grey_images_for_a_network_of_three_channels() -> None:
    network = Recorder(3)
    normalisation = Normalisation((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    images = torch.rand(2, 1, 4, 4)
    Classifier(network, info(1, normalisation))(images)
    expected = torch.cat([(images - 0.1) / 1, (images - 0.2) / 2, (images - 0.3) / 4], dim=1)
    torch.testing.assert_close(network.seen, expected)


def test_spreads_one_value_and_averages_three() -> None:
    network = Recorder(3)
    Classifier(network, info(3))(torch.full((1, 3, 2, 2), 0.75))
    assert (network.seen == 1).all()
    network = Recorder(1)
    Classifier(network, info(1, Normalisation((0.2, 0.3, 0.4), (0.1, 0.2, 0.3))))(torch.full((1, 1, 2, 2), 0.5))
    torch.testing.assert_close(network.seen, torch.ones(1, 1, 2, 2))


def test_its_state_dict_is_the_networks() -> None:
    assert set(Classifier(Recorder(3), info(3)).state_dict()) == {"network.conv.weight", "network.conv.bias"}


def test_refuses_images_that_it_cannot_take() -> None:
    classifier = Classifier(Recorder(1), info(1))
    with pytest.raises(InputError, match=r"expected \(batch, 1, height, width\), got \(2, 3, 8, 8\)"):
        classifier(torch.rand(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"got \(8, 8\)"):
        classifier(torch.rand(8, 8))
    with pytest.raises(InputError, match="divide bytes by 255"):
        classifier(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"takes 1 channel\(s\) and the images have 3"):
        Classifier(Recorder(1), info(3))
    with pytest.raises(InputError, match="expected one value or 3"):
        Classifier(Recorder(3), info(3, Normalisation((0.1, 0.2), (1.0, 1.0))))


@pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.5,), (1.0, 1.0)), ((0.5,), (0.0,)), ((float("nan"),), (1.0,))])
def test_refuses_a_normalisation_that_is_none(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="normalisation"):
        Normalisation(mean, std)


@pytest.mark.parametrize(("classes", "same"), [(("a", "b"), True), (("b", "a"), False), (("a", "b", "c"), False)])
def test_the_same_classes_are_those_of_one_order(classes: tuple[str, ...], same: bool) -> None:
    one, other = (
        Classifier(nn.Identity(), ModelInfo("own", names, 3, 8, Normalisation((0.5,) * 3, (0.25,) * 3)))
        for names in (("a", "b"), classes)
    )
    assert same_classes(one, other) == same


def test_what_is_known_of_a_network_may_be_of_other_kinds_of_numbers() -> None:
    normalisation = Normalisation(np.float32([0.5, 0.25]), torch.tensor([1, 2]))  # type: ignore[arg-type]
    assert normalisation == Normalisation((0.5, 0.25), (1.0, 2.0))
    assert json.dumps([normalisation.mean, normalisation.std]) == "[[0.5, 0.25], [1.0, 2.0]]"
    info = ModelInfo("wrn-10-1", ["a", "b"], np.int64(3), torch.tensor(8), normalisation)  # type: ignore[arg-type]
    assert info == ModelInfo("wrn-10-1", ("a", "b"), 3, 8, normalisation)
    json.dumps([info.classes, info.channels, info.image_size])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("classes", "cat", "classes: expected a list of the classes' names, got 'cat'"),
        ("classes", (), "classes: expected a list"),
        ("classes", (1, 2), "classes: expected a list"),
        ("channels", 0, "channels: expected 1 to 4096, got 0"),
        ("image_size", 0, "image_size: expected 1 to 65536, got 0"),
        ("image_size", 10**9, "image_size: expected 1 to 65536, got 1000000000"),
        ("image_size", math.inf, "image_size: expected a whole number, got inf"),
        ("image_size", None, "image_size: expected a whole number, got None"),
    ],
)
def test_what_cannot_be_known_of_a_network_is_refused(field: str, value: object, said: str) -> None:
    known: dict[str, Any] = {"spec": "wrn-10-1", "classes": ("a", "b"), "channels": 3, "image_size": 8}
    with pytest.raises(InputError, match=said):
        ModelInfo(**{**known, field: value}, normalisation=Normalisation((0.5,), (0.25,)))


def test_a_normalisation_of_no_numbers_is_refused() -> None:
    for value in (0.5, ("a",), None):
        with pytest.raises(InputError, match="normalisation: expected a number for each channel as std"):
            Normalisation((0.5,), value)  # type: ignore[arg-type]
