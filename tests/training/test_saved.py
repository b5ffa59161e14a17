"""A trained network taken up again."""

import json
from pathlib import Path

import pytest

from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.training.run_folder import MARK
from spkd.training.saved import evaluate_saved, own_data, real_images


def test_a_run_remembers_its_images_and_options_go_over_them(teacher: Path, tmp_path: Path) -> None:
    assert own_data(teacher, {"data": None, "workers": None}) == DataOptions(data="digits")
    assert own_data(teacher, {"workers": 0}).workers == 0
    assert own_data(teacher, {"data": "cifar10", "data_root": "x"}) == DataOptions(data="cifar10", data_root="x")
    assert own_data(tmp_path, {"data": "digits"}) == DataOptions(data="digits")
    with pytest.raises(InputError, match="does not tell which images it was trained on: name them by --data"):
        own_data(tmp_path, {"workers": 0})


def test_the_runs_own_images_are_known_however_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    for place in (photos, other, tmp_path / "run"):
        place.mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"{MARK}\ndata: {photos}\ntrain_images: 30\nskip_bad_images: true\n")
    monkeypatch.chdir(other)
    for named in ({"data": str(photos)}, {"data": "../photos"}, {"data": "photos", "data_root": str(tmp_path)}):
        found = own_data(tmp_path / "run", named)
        assert (found.data, found.train_images, found.skip_bad_images) == (named["data"], 30, True)
    assert own_data(tmp_path / "run", {"data": str(other)}).train_images is None
    photos.rmdir()  # what is named now is where they have been moved to
    assert own_data(tmp_path / "run", {"data": str(other)}).train_images == 30


def test_images_that_were_moved_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"{MARK}\ndata: {tmp_path / 'photos'}\ntrain_images: 30\n")
    with pytest.raises(InputError, match=r"the images of .*run are no longer in .*photos: say by --data where"):
        own_data(tmp_path / "run", {"data": None})
    assert own_data(tmp_path / "run", {"data": "elsewhere"}).data == "elsewhere"
    (tmp_path / "photos").mkdir()
    assert own_data(tmp_path / "run", {}).train_images == 30


def test_the_splits_are_the_run_s(teacher: Path) -> None:
    result = json.loads((teacher / "result.json").read_text())
    for split, error, count in (("test", result["test_error"], 1000), ("val", result["val_error"], 297)):
        measured = evaluate_saved(teacher, DataOptions(), split=split, teacher=None, accelerator="cpu", say=print)
        assert measured.top1_error == pytest.approx(error)
        assert measured.images == count
    assert (
        evaluate_saved(teacher, DataOptions(), split="train", teacher=None, accelerator="cpu", say=print).images == 500
    )


def test_a_network_agrees_with_itself(teacher: Path) -> None:
    measured = evaluate_saved(teacher, DataOptions(), split="val", teacher=str(teacher), accelerator="cpu", say=print)
    assert measured.agreement == 100.0


def test_real_images_are_what_the_network_takes(teacher: Path) -> None:
    images = real_images(teacher, DataOptions(), 7)
    assert images.shape == (7, 1, 8, 8)
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize(
    ("split", "other", "expected"), [("testing", None, "--split must be"), ("test", "nowhere", "no saved model")]
)
def test_mistakes_are_one_line(teacher: Path, split: str, other: str | None, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        evaluate_saved(teacher, DataOptions(), split=split, teacher=other, accelerator="cpu", say=print)
