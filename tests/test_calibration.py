"""The temperature is the one of least cross-entropy, held against closed forms, a grid and many draws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CASES, random
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.calibration import calibrated, standard_error_of, temperature_of
from spkd.errors import InputError


def drawn(temperature: float, images: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits in float64 and targets that softmax(logits / temperature) has drawn."""
    logits = 4 * random(seed, images, classes)
    generator = torch.Generator().manual_seed(seed + 1000)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5, 8.0])
def test_the_temperature_that_drew_the_targets_is_found_and_is_the_best_of_a_grid(temperature: float) -> None:
    logits, targets = drawn(temperature, 4000)
    found = temperature_of(logits, targets)
    assert found == pytest.approx(temperature, rel=0.1)
    assert abs(found - temperature) < 4 * standard_error_of(logits, found)
    values, places = logits.numpy(), targets.numpy()
    grid = np.geomspace(0.01, 100, 4001)  # in steps of 0.23 %
    losses = []
    for one in grid:
        scaled = values / one
        highest = scaled.max(1)
        sums = np.log(np.exp(scaled - highest[:, None]).sum(1)) + highest
        losses.append((sums - scaled[np.arange(len(places)), places]).mean())
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.0024)


@given(st.integers(2, 40), st.integers(1, 20), st.floats(0.1, 10))
@CASES
def test_of_two_classes_the_share_that_is_right_becomes_the_probability(right: int, wrong: int, margin: float) -> None:
    """Every image has one margin, so that p / (1 - p) = exp(margin / T) gives T by hand."""
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64).expand(right + wrong, 2)
    targets = torch.tensor([0] * right + [1] * wrong)
    if right <= wrong:
        with pytest.raises(InputError, match="none below 100 is the best: equal probabilities"):
            temperature_of(logits, targets)
    elif (expected := margin / math.log(right / wrong)) < 100:
        assert temperature_of(logits, targets) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_it_follows_the_scale_and_no_number_that_an_image_has_added(dtype: torch.dtype) -> None:
    logits, targets = drawn(1.5, 300)
    logits = logits.to(dtype).requires_grad_()
    found = temperature_of(logits, targets)
    exact = logits.detach().double()
    assert temperature_of(exact, targets) == found
    assert temperature_of(7 * exact, targets) == pytest.approx(7 * found, rel=1e-9)
    assert temperature_of(exact + 1000 * random(1, 300, 1), targets) == pytest.approx(found, rel=1e-9)


def test_the_standard_error_is_the_spread_over_many_sets_of_images() -> None:
    found, told = [], []
    for seed in range(200):
        logits, targets = drawn(2.0, 300, seed=seed)
        found.append(temperature_of(logits, targets))
        told.append(standard_error_of(logits, found[-1]))
    assert np.std(found) == pytest.approx(np.mean(told), rel=0.15)


LOGITS, TARGETS = drawn(1.0, 50)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (LOGITS, LOGITS.argmax(1), "none above 0.01 is the best: 50 of 50 images are right, .*take more images"),
        (1e4 * LOGITS, LOGITS.argmax(1), "none above 0.01 is the best: 50 of 50 images are right"),
        (LOGITS, LOGITS.argmin(1), "none below 100 is the best: .*numbered as the network's classes"),
        (torch.zeros(50, 5), TARGETS, "equal probabilities of all classes fit these images better"),
        (LOGITS.clone().index_fill_(0, torch.tensor([3]), math.nan), TARGETS, "logits: expected finite values"),
        (LOGITS.clone().index_fill_(0, torch.tensor([3]), math.inf), TARGETS, "logits: expected finite values"),
        (LOGITS[:, :1], torch.zeros(50, dtype=torch.int64), r"logits: .*two classes or more, got .*\(50, 1\)"),
        (LOGITS[:0], TARGETS[:0], r"logits: .*of one image .*\(0, 5\)"),
        (LOGITS[0], TARGETS[:1], r"logits: .*\(5,\)"),
        (LOGITS.long(), TARGETS, "logits: expected floating-point values .*got torch.int64"),
        (LOGITS, TARGETS[1:], r"targets: .*for each of 50 images, got torch.int64 of shape \(49,\)"),
        (LOGITS, TARGETS.float(), "targets: expected class numbers, int64, .*got torch.float32"),
        (LOGITS, TARGETS.index_fill(0, torch.tensor([3]), -100), "numbers 0 to 4, got -100 to .*without a label"),
        (LOGITS, TARGETS.index_fill(0, torch.tensor([3]), 5), "numbers 0 to 4, got 0 to 5"),
    ],
)
def test_what_has_no_temperature_is_refused_in_one_line(logits: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        temperature_of(logits, targets)
    assert "\n" not in str(caught.value)


def test_a_single_wrong_answer_among_many_sure_ones_is_enough() -> None:
    """All have one margin, so that one of n has the probability 1 / n."""
    logits = torch.tensor([[10.0, 0.0]], dtype=torch.float64).repeat(1000, 1)
    targets = torch.zeros(1000, dtype=torch.int64)
    targets[0] = 1
    assert temperature_of(logits, targets) == pytest.approx(10 / math.log(999), rel=1e-9)


def test_a_calibration_tells_what_changed_on_its_images_and_no_decision_does() -> None:
    logits, targets = drawn(3.0, 500)
    logits = logits.float()
    counted: list[int] = []
    batches = list(zip(logits.split(200), targets.split(200), strict=True))
    found = calibrated(nn.Identity(), batches, "abcde", counted.append)
    assert counted == [200, 200, 100]
    assert found.temperature == temperature_of(logits, targets)
    assert found.standard_error == standard_error_of(logits, found.temperature)
    for measured, scaled in ((found.before, logits), (found.after, logits / found.temperature)):
        assert measured.cross_entropy == pytest.approx(F.cross_entropy(scaled, targets).item(), rel=1e-5)
        assert measured.calibration_error == pytest.approx(100 * calibration_error(scaled, targets), abs=1e-3)
    assert found.after.calibration_error < 0.3 * found.before.calibration_error
    assert replace(found.after, cross_entropy=0, calibration_error=0) == replace(
        found.before, cross_entropy=0, calibration_error=0
    )


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Return Guo et al.'s equation 3, bin by bin."""
    confidence, decisions = logits.double().softmax(1).max(1)
    bins = (confidence * 15).floor()
    total = 0.0
    for place in bins.unique():
        own = bins == place
        accuracy = (decisions[own] == targets[own]).double().mean()
        total += float(own.double().mean() * (accuracy - confidence[own].mean()).abs())
    return total
