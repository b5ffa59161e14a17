from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.network import count_logits, input_channels, replace_head
from spkd.outputs import logits_of


def small(classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes)
    )


def test_finds_logits_in_the_usual_outputs() -> None:
    logits, other = torch.rand(2, 3), torch.rand(2, 4)
    outputs: tuple[object, ...] = (
        logits,
        (logits, other),
        {"aux": other, "logits": logits},
        SimpleNamespace(aux=other, logits=logits),
    )
    for output in outputs:
        assert logits_of(output) is logits
    with pytest.raises(InputError, match="got str"):
        logits_of("logits")


def test_counts_logits_and_leaves_the_network_as_it_was() -> None:
    network = small(5)
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert count_logits(network, "x", channels=1, image_size=8) == 5
    assert network.training
    assert not network[1].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Rearranging(nn.Module):
    """Makes channels of pixels before its first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


class OtherOrder(Rearranging):
    """Makes a layer first that runs last."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.last = nn.Conv2d(8, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), self.last)
        self.head = nn.Linear(4, 5)


@pytest.mark.parametrize("make", [Rearranging, OtherOrder])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_images_have_the_channels_that_the_network_runs_on(make: type[nn.Module], channels: int) -> None:
    network = make().train()
    assert input_channels(network, channels, 8) == 3
    assert all(module.training for module in network.modules())
    assert count_logits(network, "x", channels=channels, image_size=8) == 5
    info = ModelInfo("x", tuple("abcde"), channels, 8, Normalisation((0.5,), (0.25,)))
    images = torch.rand(2, channels, 8, 8)
    expected = network((images.expand(-1, 3, -1, -1) - 0.5) / 0.25)
    torch.testing.assert_close(Classifier(network, info)(images), expected)


class Repeating(nn.Module):
    """Makes three channels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.repeat(1, 3, 1, 1)).mean((2, 3)))
        return logits


def test_a_network_that_makes_its_channels_itself_is_given_what_it_takes() -> None:
    assert input_channels(Repeating(), 1, 8) == 1
    assert count_logits(Repeating(), "x", channels=1, image_size=8) == 5
    info = ModelInfo("x", tuple("abcde"), 1, 8, Normalisation((0.5,), (0.25,)))
    network = Repeating()
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(Classifier(network, info)(images), network((images - 0.5) / 0.25))


class Squeezing(nn.Module):
    """Takes a batch of one for an image without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).squeeze())
        return logits


def test_a_network_that_squeezes_gives_a_row_for_one_image_too() -> None:
    assert count_logits(Squeezing(), "x", channels=3, image_size=8) == 5
    info = ModelInfo("x", tuple("abcde"), 3, 8, Normalisation((0.5,), (0.25,)))
    classifier = Classifier(Squeezing(), info)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(classifier(images[:1]), classifier(images)[:1])


def test_channels_that_no_image_has_are_told_as_the_convolution_tells_them() -> None:
    assert input_channels(nn.Sequential(nn.Conv2d(6, 4, 3)), 3, 8) == 6
    assert input_channels(small(), 1, 8) == 3
    assert input_channels(nn.Linear(2, 2), 3, 8) == 3
    assert input_channels(nn.LazyConv2d(4, 3), 1, 8) == 1


def test_says_when_the_image_is_too_small_or_the_output_no_logits() -> None:
    with pytest.raises(InputError, match=r"cannot run on an image of 3x2x2 .*--image_size"):
        count_logits(small(), "x", channels=3, image_size=2)
    with pytest.raises(InputError, match=r"expected logits of shape \(batch, classes\), got \(2, 5, 6, 6\)"):
        count_logits(nn.Conv2d(3, 5, 3), "x", channels=3, image_size=8)


def test_replaces_the_last_layer_with_as_many_outputs() -> None:
    network = small(5)
    stem = network[0].weight
    replace_head(network, "x", 5, 2, channels=3, image_size=8)
    assert network[4].out_features == 2
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 2)
    assert network[0].weight is stem


def test_replaces_a_convolutional_head() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    replace_head(network, "x", 6, 9, channels=3, image_size=8)
    assert network[1].out_channels == 9
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 9)


def test_says_when_there_is_no_head_to_replace() -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4]

    with pytest.raises(InputError, match="let its callable take num_classes"):
        replace_head(Odd(), "x", 4, 2, channels=3, image_size=8)


class Supervised(nn.Module):
    """Has a second head after its own, of which the logits know nothing."""

    def __init__(self, runs: bool) -> None:
        super().__init__()
        self.body = small(5)
        self.fc = nn.Linear(5, 7)
        self.aux = nn.Linear(5, 7, bias=False)
        self.runs = runs

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.body(images)
        return (self.fc(features), self.aux(features)) if self.runs or self.training else self.fc(features)


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("classes", [4, 7])
def test_says_when_the_last_layer_is_not_the_head(runs: bool, classes: int) -> None:
    line = (
        r"^model x: its logits do not come from aux, its last layer of 7 outputs, [^\n]* let its callable take num_cla"
    )
    with pytest.raises(InputError, match=line), torch.no_grad():
        replace_head(Supervised(runs), "x", 7, classes, channels=3, image_size=8)


def test_says_when_the_network_no_longer_runs_with_the_new_layer() -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.body(images).mean((2, 3))
            return logits

    with pytest.raises(InputError, match=r"its logits do not come from body\.0, its last layer of 7 outputs"):
        replace_head(Headless(), "x", 7, 4, channels=3, image_size=8)


class Frozen(Supervised):
    """Uses a layer's weight without calling it, and shows no gradients."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return nn.functional.linear(self.body(images), self.aux.weight)


@pytest.mark.parametrize("classes", [4, 7])
def test_replaces_a_head_whatever_way_it_is_used(classes: int) -> None:
    network = Frozen(runs=True)
    replaced = network.aux
    replace_head(network, "x", 7, classes, channels=3, image_size=8)
    assert network.aux is not replaced
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, classes)
    assert network.training
