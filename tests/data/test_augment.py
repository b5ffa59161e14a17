import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spkd.data.augment import (
    ASPECT,
    Crops,
    _draw_part,
    crop_views,
    draw_crops,
    draw_share,
    fixed_view,
    pad_reflect,
    padding,
    random_resized_crop,
    resize,
    side_for_crop,
    side_for_view,
    to_unit_range,
)
from spkd.data.options import CROP_SCALE

GRADIENT = torch.stack(
    [torch.arange(200).view(-1, 1).expand(200, 250), torch.arange(250).view(1, -1).expand(200, 250)]
).byte()
"""An image whose channels are its rows' and columns' numbers."""


def random_pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@given(size=st.integers(4, 20), margin=st.integers(0, 3))
@settings(max_examples=30)
def test_padding_agrees_with_torchs(size, margin):
    pixels = random_pixels(2, 3, size, size)
    expected = F.pad(pixels.double(), (margin,) * 4, mode="reflect")
    assert torch.equal(pad_reflect(pixels, margin).double(), expected)


def test_margins_are_the_usual_ones():
    assert [padding(size) for size in (4, 8, 32, 96)] == [0, 1, 4, 12]


@pytest.mark.parametrize("channels", [1, 3])
def test_views_agree_with_a_loop(channels):
    size, margin, n = 9, 2, 40
    pixels = random_pixels(n, channels, size, size)
    crops = draw_crops(n, margin, True, seed=3)
    order = torch.randperm(n)[:25]
    views = crop_views(pad_reflect(pixels, margin), order, crops[order], size)
    for view, index in zip(views, order.tolist(), strict=True):
        whole = F.pad(pixels[index : index + 1].double(), (margin,) * 4, mode="reflect")[0]
        top, left = int(crops.top[index]), int(crops.left[index])
        expected = whole[:, top : top + size, left : left + size]
        expected = expected.flip(-1) if crops.mirrored[index] else expected
        assert torch.equal(view.double(), expected)


def test_the_middle_view_is_the_image():
    pixels = random_pixels(3, 3, 8, 8)
    middle = Crops(torch.ones(3).long(), torch.ones(3).long(), torch.zeros(3).bool())
    assert torch.equal(crop_views(pad_reflect(pixels, 1), torch.arange(3), middle, 8), pixels)


def test_every_offset_is_reached_alike():
    count, margin = 8100, 4
    crops = draw_crops(count, margin, True, seed=0)
    places = torch.bincount(crops.top * 9 + crops.left, minlength=81)
    assert len(places) == 81
    # 81 cells of mean 100: the chi-square of 80 degrees of freedom exceeds 136 once in 10,000.
    assert ((places - 100.0) ** 2 / 100).sum() < 136


def test_the_flip_is_fair_and_can_be_left_out():
    mirrored = draw_crops(10_000, 4, True, seed=0).mirrored.sum().item()
    assert abs(mirrored - 5000) < 4 * math.sqrt(10_000 / 4)
    assert not draw_crops(10_000, 4, False, seed=0).mirrored.any()


def test_the_offsets_do_not_depend_on_the_flip():
    flipped, plain = draw_crops(100, 4, True, seed=5), draw_crops(100, 4, False, seed=5)
    assert torch.equal(flipped.top, plain.top)
    assert torch.equal(flipped.left, plain.left)


def test_random_parts_lie_within_their_bounds():
    areas = []
    for seed in range(300):
        # Corners of the view tell which part of the gradient it shows, up to the resizing's half pixels.
        rows, columns = random_resized_crop(GRADIENT, 100, False, seed, CROP_SCALE).float()
        height = (rows[-1, 0] - rows[0, 0]).item() * 100 / 99
        width = (columns[0, -1] - columns[0, 0]).item() * 100 / 99
        areas.append(height * width / (200 * 250))
        assert ASPECT[0] * 0.95 < width / height < ASPECT[1] * 1.05
    assert 0.35 * 0.95 < min(areas) < 0.42
    assert 0.9 < max(areas) <= 1.05


def test_the_least_area_of_a_random_part_can_be_set():
    areas = []
    for seed in range(100):
        rows, columns = random_resized_crop(GRADIENT, 100, False, seed, scale=0.8).float()
        areas.append((rows[-1, 0] - rows[0, 0]).item() * (columns[0, -1] - columns[0, 0]).item() / (199 * 249))
    assert 0.78 < min(areas) < 0.85
    assert max(areas) > 0.9


@pytest.mark.parametrize("shape", [(3, 30, 40), (3, 20, 400)])
def test_a_scale_of_1_shows_the_whole_image(shape):
    image = random_pixels(*shape)
    view = random_resized_crop(image, 16, False, 0, scale=1)
    assert torch.equal(view, fixed_view(image, 16, "whole"))


def test_a_random_part_is_a_function_of_its_seed():
    views = [random_resized_crop(GRADIENT, 32, True, seed, CROP_SCALE) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_random_parts_are_mirrored_one_time_in_two():
    columns = [random_resized_crop(GRADIENT, 16, True, seed, CROP_SCALE)[1].float() for seed in range(400)]
    mirrored = sum(bool(view[0, 0] > view[0, -1]) for view in columns)
    assert abs(mirrored - 200) < 4 * math.sqrt(400 / 4)
    plain = [random_resized_crop(GRADIENT, 16, False, seed, CROP_SCALE)[1].float() for seed in range(50)]
    assert all(view[0, 0] < view[0, -1] for view in plain)


@pytest.mark.parametrize("shape", [(3, 1, 300), (3, 300, 1), (3, 1, 1), (3, 20, 400)])
def test_extreme_shapes_have_views(shape):
    image = random_pixels(*shape)
    assert tuple(random_resized_crop(image, 16, True, 0, CROP_SCALE).shape) == (3, 16, 16)
    assert tuple(fixed_view(image, 16, "centre").shape) == (3, 16, 16)


@given(
    size=st.integers(1, 300),
    scale=st.floats(0.05, 1),
    aspect=st.floats(0.2, 5),
    seed=st.integers(0, 2**32),
)
def test_views_have_three_pixels_for_one(size, scale, aspect, seed):
    shorter = side_for_crop(size, scale)
    height, width = (round(shorter * max(1, side)) for side in (aspect, 1 / aspect))
    part = _draw_part(height, width, random.Random(seed), scale)[2:]
    assert min(part) >= 3 * size - 1  # which is rounded
    assert side_for_view(size, "whole") == 3 * size
    assert side_for_view(size, "centre") * size / round(size * 8 / 7) == pytest.approx(3 * size)


def test_the_centre_is_the_centre():
    rows, columns = fixed_view(GRADIENT, 100, "centre").float()
    # The shorter side, 200, becomes 114; the cut shows 100 / 114 of it, around the middle.
    assert abs((rows[0, 0] + rows[-1, 0]).item() / 2 - 99.5) < 1.5
    assert abs((columns[0, 0] + columns[0, -1]).item() / 2 - 124.5) < 1.5
    assert abs((rows[-1, 0] - rows[0, 0]).item() - 200 * 99 / 114) < 2


@pytest.mark.parametrize("shape", [(3, 40, 60), (3, 61, 40), (3, 30, 29)])
@pytest.mark.parametrize("size", [8, 28, 64])
def test_the_centre_is_what_pillow_makes_of_it(shape, size):
    """In the way in which the page on Python shows it to those who have the exported file alone."""
    pixels = random_pixels(*shape)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = round(size * 8 / 7) / min(image.size)
    image = image.resize([int(scale * side + 1e-9) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    expected = np.array(image.crop((left, top, left + size, top + size)))
    found = fixed_view(pixels, size, "centre").permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_resizing_keeps_a_plain_image_and_its_type():
    pixels = torch.full((3, 1, 32, 32), 77, dtype=torch.uint8)
    smaller = resize(pixels, 8)
    assert smaller.dtype == torch.uint8
    assert torch.equal(smaller, torch.full((3, 1, 8, 8), 77, dtype=torch.uint8))
    assert resize(pixels, 32) is pixels


def test_bytes_to_floats():
    floats = to_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert floats.dtype == torch.float32
    assert torch.allclose(floats, torch.tensor([0.0, 0.2, 1.0]), atol=1e-7)
    assert floats[0] == 0
    assert floats[2] == 1


def test_the_aspect_of_a_random_part_is_log_uniform():
    parts = [_draw_part(4000, 4000, random.Random(seed), CROP_SCALE) for seed in range(4000)]
    aspects = sorted(math.log(width / height) for _, _, height, width in parts)
    assert abs(aspects[2000]) < 0.015  # uniform it would be 0.041


def test_a_random_part_lies_anywhere_and_its_area_is_uniform():
    parts = [_draw_part(4000, 4000, random.Random(seed), CROP_SCALE) for seed in range(10_000)]
    places = [
        (top / (4000 - height), left / (4000 - width))
        for top, left, height, width in parts
        if max(height, width) < 4000
    ]
    for offsets in zip(*places, strict=True):
        assert sum(offsets) / len(offsets) == pytest.approx(0.5, abs=0.012)  # 4 standard errors
        assert min(offsets) < 0.01
        assert max(offsets) > 0.99
    assert abs(torch.corrcoef(torch.tensor(places).T)[0, 1]) < 0.04
    # An area up to 3/4 fits at every aspect, so that none of those is drawn again.
    areas = [height * width / 4000**2 for _, _, height, width in parts]
    small = [area for area in areas if area < 0.75]
    assert sum(small) / len(small) == pytest.approx(0.55, abs=0.006)


@pytest.mark.parametrize(
    ("height", "width", "part"),
    [(1, 300, (0, 149, 1, 1)), (300, 1, (149, 0, 1, 1)), (30, 300, (0, 130, 30, 40)), (300, 30, (130, 0, 40, 30))],
)
def test_of_an_image_too_long_for_any_part_the_middle_is_shown(height, width, part):
    assert all(_draw_part(height, width, random.Random(seed), CROP_SCALE) == part for seed in range(5))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_mean_and_the_variance_of_their_distribution_and_no_precision_rounds_them(alpha):
    shares = torch.tensor([draw_share(alpha, seed) for seed in range(4000)])
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(shares.to(dtype).float(), shares)
        assert torch.equal((1 - shares).to(dtype).float(), 1 - shares)
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 4000))
    assert shares.var().item() == pytest.approx(variance, rel=0.1)
