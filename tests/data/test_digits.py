import numpy as np
import pytest
import torch
from sklearn import datasets

from spkd.data.digits import load_digits


def test_sizes_and_facts():
    digits = load_digits()
    assert (len(digits.train), len(digits.val), len(digits.test)) == (500, 297, 1000)
    assert (digits.channels, digits.native_size, digits.flip) == (1, 8, False)
    assert digits.classes == tuple("0123456789")


def test_the_splits_are_the_whole_set_with_its_labels():
    digits, source = load_digits(), datasets.load_digits()
    parts = (digits.train, digits.val, digits.test)
    ours = sorted(
        (
            *np.round(part.pixels[i].flatten().numpy().astype(float) * 16 / 255).astype(int),
            int(part.targets[i]),
        )
        for part in parts
        for i in range(len(part))
    )
    theirs = sorted((*row.astype(int), label) for row, label in zip(source.data, source.target, strict=True))
    assert ours == theirs


def test_values_fill_the_bytes():
    pixels = load_digits().train.pixels
    assert int(pixels.min()) == 0
    assert int(pixels.max()) == 255
    assert len(pixels.unique()) == 17


def test_the_split_is_stratified():
    digits = load_digits()
    whole = torch.bincount(torch.cat([p.targets for p in (digits.train, digits.val, digits.test)])) / 1797
    for part in (digits.train, digits.val, digits.test):
        expected = whole * len(part)
        assert ((torch.bincount(part.targets) - expected).abs() <= 1.5).all()


def test_the_normalisation_is_that_of_the_training_images_alone():
    digits = load_digits()
    seen = digits.train.pixels.numpy() / 255
    everything = np.round(datasets.load_digits().images * (255 / 16)) / 255
    ours = (*digits.normalisation_mean, *digits.normalisation_std)
    assert ours == pytest.approx((seen.mean(), seen.std()), abs=5.1e-5)
    assert ours != pytest.approx((everything.mean(), everything.std()), abs=2e-4)
