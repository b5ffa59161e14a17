from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.errors import InputError


def test_digits_are_the_default():
    assert load_data(DataOptions()).name == "digits"


def test_a_folder_by_path_and_below_the_root(make_folder, monkeypatch):
    folder = make_folder({"pets/cat": 4, "pets/dog": 4})
    monkeypatch.chdir(folder)
    assert load_data(DataOptions(data=str(folder / "pets"))).classes == ("cat", "dog")
    assert load_data(DataOptions(data="pets")).name == "pets"
    monkeypatch.chdir("/")
    assert load_data(DataOptions(data="pets", data_root=str(folder))).name == "pets"


@pytest.mark.parametrize("name", ["cifar10", "CIFAR-10", "cifar_10"])
def test_spellings_of_a_known_set(tmp_path, name):
    with pytest.raises(InputError, match=r"^data: cifar10 could not be loaded"):
        load_data(DataOptions(data=name, data_root=str(tmp_path)))


def test_a_folder_that_is_spelt_like_a_set(make_folder, monkeypatch):
    monkeypatch.chdir(make_folder({"Food-101/a": 4, "Food-101/b": 4, "dtd/a": 4, "dtd/b": 4}))
    assert load_data(DataOptions(data="Food-101")).classes == ("a", "b")
    assert load_data(DataOptions(data="./dtd")).classes == ("a", "b")
    with pytest.raises(InputError, match=r"for the folder dtd here say --data \./dtd"):
        load_data(DataOptions(data="dtd"))


def test_the_digits_are_not_a_folder_of_that_name(make_folder, monkeypatch):
    monkeypatch.chdir(make_folder({"digits/a": 4, "digits/b": 4}))
    data = load_data(DataOptions())
    assert len(data.classes) == 10
    assert (
        data.notes[0] == "digits is the set of that name and not the folder digits here; for that say --data ./digits"
    )
    assert load_data(DataOptions(data="./digits")).classes == ("a", "b")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifar11", "mean 'cifar10'"), ("digit", "mean 'digits'"), ("zzz", "Known sets: digits, cifar10")],
)
def test_unknown_names_have_hints(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^data: '{name}' is neither [^\n]*{hint}[^\n]*$"):
        load_data(DataOptions(data=name))


def test_a_name_that_is_too_long_for_a_path():
    with pytest.raises(InputError, match=r"^data: 'x+' is neither a known data set nor a folder [^\n]+$"):
        load_data(DataOptions("x" * 300))


def test_a_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"^data: no folder [^\n]+missing; check the path$"):
        load_data(DataOptions(data=str(tmp_path / "missing")))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    line = (
        r"^data: expected a folder or a list of images and labels, got the file [^\n]+unpack it[^\n]+ as CSV, with the"
    )
    with pytest.raises(InputError, match=line):
        load_data(DataOptions(data=str(tmp_path / "images.zip")))


def test_fewer_training_images_are_stratified_and_always_the_same():
    whole, some, more = (load_data(DataOptions(train_images=count)) for count in (None, 50, 100))
    assert torch.bincount(some.train.targets).tolist() == [5] * 10
    pixels = [{tuple(data.train.image(i).flatten().tolist()) for i in range(len(data.train))} for data in (some, more)]
    assert pixels[0] < pixels[1]
    assert len(more.train) == 100
    assert some.fingerprint == load_data(DataOptions(train_images=50)).fingerprint != whole.fingerprint
    assert torch.equal(some.test.targets, whole.test.targets)
    assert torch.equal(some.val.targets, whole.val.targets)
    assert "training set: 50 of the 500 images" in some.notes[-1]
    assert len(load_data(DataOptions(train_images=500)).train) == 500


@pytest.mark.parametrize("count", [5, 495, 501])
def test_as_many_training_images_as_there_can_be(count):
    with pytest.raises(InputError, match=f"train_images: expected from 10 to 490 of the 500 [^\n]+ got {count}"):
        load_data(DataOptions(train_images=count))


def test_how_images_are_read_reaches_each_kind_of_them(make_folder, tmp_path, monkeypatch):
    folder, more = make_folder({"pets/cat": 8, "pets/dog": 8, "more": 3}) / "pets", tmp_path / "more"
    for path in (folder / "cat" / "000.png", more / "000.png"):
        path.write_bytes(b"no image")
    data = load_data(DataOptions(str(folder), skip_bad_images=True), str(more))
    assert sum("left out 1 of" in note and "cannot be read" in note for note in data.notes) == 2
    asked = {}

    def load(*_, **how):
        asked.update(how)
        return data

    monkeypatch.setattr("spkd.data.load.load_vision_set", load)
    load_data(DataOptions("cifar10", download=True, skip_bad_images=True))
    assert (asked["download"], asked["skip_bad_images"]) == (True, True)


def test_fewer_training_images_need_two_of_each_class(make_folder):
    folder = make_folder({"train/a": 9, "train/b": 1, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1})
    with pytest.raises(
        InputError, match=r"train_images: class 'b' of \w+ has fewer than two training images; leave the option out"
    ):
        load_data(DataOptions(str(folder), train_images=4))


@pytest.mark.parametrize("name", ["digits", "CIFAR-10"])
def test_groups_are_told_by_paths_which_only_folders_have(name):
    with pytest.raises(
        InputError, match=r"^groups: (digits|cifar10) is no folder of files whose paths [^\n]+leave it out$"
    ):
        load_data(DataOptions(name, groups="x"))


def test_groups_of_a_folder_are_kept_together(make_folder):
    folder = make_folder({f"{label}/patient{number}": 3 for label in ("a", "b") for number in range(20)})
    options = DataOptions(str(folder), groups=r"patient\d+", grey=True, train_images=60)
    data = load_data(options)
    groups = [{Path(path).parent.name for path in images.paths} for images in (data.train, data.val, data.test)]
    assert [len(images) for images in (data.train, data.val, data.test)] == [60, 18, 18]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert load_data(replace(options, groups=None)).fingerprint != data.fingerprint
