"""Images and weights are found where they may lie, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from spkd.data.load import load_data
from spkd.errors import InputError
from spkd.models.build import build_model
from spkd.models.classifier import Normalisation
from spkd.studies import smoke, sources


def test_cifar10_as_torchvision_keeps_it(tmp_path: Path) -> None:
    smoke.cifar10(tmp_path)
    found = sources.cifar10(str(tmp_path))
    assert (found.data, found.data_root) == ("cifar10", str(tmp_path))
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"cifar-10-batches-py lacks data_batch_3; unpack"):
        sources.cifar10(str(tmp_path))


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_as_folders_of_images(tmp_path: Path, below: str) -> None:
    for split in ("train", "test"):
        (tmp_path / below / split).mkdir(parents=True)
    assert sources.cifar10(str(tmp_path)).data == str(tmp_path / below)


@pytest.mark.parametrize("below", ["", "cinic-10"])
def test_cinic10_at_its_root_or_below(tmp_path: Path, below: str) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / below / split).mkdir(parents=True)
    assert sources.cinic10(str(tmp_path)).data == str(tmp_path / below)
    (tmp_path / below / "valid").rmdir()
    with pytest.raises(InputError, match="no CINIC-10: expected train/, valid/ and test/ in"):
        sources.cinic10(str(tmp_path))


def test_a_partition_of_the_textures(tmp_path: Path) -> None:
    smoke.dtd(tmp_path, 1)
    assert sources.dtd(str(tmp_path), 2).data == "dtd?partition=2"
    with pytest.raises(InputError, match=r"no DTD: expected [^\n]+train3\.txt"):
        sources.dtd(str(tmp_path), 3)


def test_weights_in_any_of_their_formats(tmp_path: Path) -> None:
    (tmp_path / "one.pth").touch()
    assert sources.weights_file(str(tmp_path), "one") == str(tmp_path / "one.pth")
    assert sources.weights_file(str(tmp_path), "two") is None
    assert sources.weights_file(None, "one") is None
    with pytest.raises(InputError, match=r"is no folder; give the one that holds one\.safetensors"):
        sources.weights_file(str(tmp_path / "nowhere"), "one")


def test_made_up_images_are_read_by_the_real_loaders_and_differ_by_class(tmp_path: Path) -> None:
    options = [smoke.cifar10(tmp_path), smoke.cinic10(tmp_path), smoke.dtd(tmp_path, 1)]
    cifar, cinic, dtd = (load_data(one) for one in options)
    assert cifar.classes == cinic.classes == smoke.CIFAR_CLASSES
    assert [len(cifar.train), len(cifar.val), len(cifar.test)] == [108, 12, 24]
    assert [len(cinic.train), len(cinic.val), len(cinic.test)] == [60, 20, 20]
    assert (cifar.native_size, cinic.native_size, dtd.native_size) == (32, 32, None)
    for data in (cifar, cinic):
        means = [data.train.image(place).float().mean((1, 2)) for place in range(len(data.train))]
        same = [means[place] for place in range(len(means)) if data.train.targets[place] == 0]
        other = [means[place] for place in range(len(means)) if data.train.targets[place] == 1]
        assert (same[0] - same[1]).norm() < (same[0] - other[0]).norm()
    written = (tmp_path / "cinic-10").stat().st_mtime_ns
    assert smoke.cinic10(tmp_path) == options[1]
    assert (tmp_path / "cinic-10").stat().st_mtime_ns == written


def test_made_up_weights_fit_their_networks_and_no_others(tmp_path: Path) -> None:
    specs = {"narrow": "spkd.models.mobilenet_v1:mobilenet_v1?width=0.25"}
    file = sources.weights_file(str(smoke.pretrained(tmp_path, specs)), "narrow")
    arguments = {"classes": None, "channels": 3, "image_size": 32, "normalisation": Normalisation((0.5,), (0.5,))}
    built = build_model(specs["narrow"], weights=file, **arguments)
    assert built.trained
    assert len(built.classifier.info.classes) == 1000
    with pytest.raises(InputError, match="does not fit"):
        build_model(specs["narrow"].replace("0.25", "0.5"), weights=file, **arguments)
