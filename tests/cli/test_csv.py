"""Lists of images and labels through the real command line, from training to what the run says of new lists."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from spkd.cli.main import main
from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.training.options import Request, Runtime
from spkd.training.own_images import own_data
from spkd.training.progress import Display
from spkd.training.run import run
from spkd.training.run_folder import MARK, RunFolder

CPU = ["--accelerator", "cpu"]
SHORT = ["--epochs", "1", "--batch_size", "16", "--workers", "0", *CPU]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty images of two classes in one folder, told apart by a list that spreadsheets of some countries write."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    with (tmp_path / "photos.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["id", "Class", "patient"])
        for number in range(40):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8) // (1 + number % 2)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")
            rows.writerow([f"{number:02d}", ("light", "dark")[number % 2], f"p{number // 2}"])
    return tmp_path


NAMED = "photos.csv?path=id&group=patient&root=photos&suffix=.png"


def succeed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, captured.err


def test_a_student_is_distilled_from_a_list_and_evaluated_again(
    capsys: pytest.CaptureFixture[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    _, said = succeed(capsys, "train", "--model", "wrn-10-1", "--data", NAMED, *SHORT)
    assert "photos: 28 training, 6 validation and 6 test images of 2 classes" in said
    assert "no group divided (3 of 20 groups)" in said
    teacher, out = photos / "runs" / "photos-wrn-10-1-seed0", photos / "run"
    options = ["--teacher", str(teacher), "--student", "wrn-10-1", "--data", NAMED, "--alone", *SHORT]
    succeed(capsys, "distill", *options, "--out", str(out))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"] == f"{photos}/photos.csv?path=id&group=patient&root={photos}/photos&suffix=.png"
    error = json.loads((out / "result.json").read_text())["test_error"]
    monkeypatch.chdir("/")
    printed, said = succeed(capsys, "evaluate", str(out), "--out", str(photos / "said.csv"), *CPU)
    assert f"{error:.2f} %" in printed
    assert "warning" not in said
    again, _ = succeed(capsys, "evaluate", str(out), "--data", str(photos / "said.csv"), "--split", "all", *CPU)
    assert f"{error:.2f} %" in again
    succeed(capsys, "export", str(out))
    monkeypatch.chdir(photos)
    succeed(capsys, "taps", "--teacher", str(teacher), "--student", "wrn-10-1", "--data", NAMED)
    options = ["--teacher", str(teacher), "--student", "wrn-10-1", "--data", NAMED]
    succeed(capsys, "tape", "record", "tape", *options, *SHORT)
    succeed(capsys, "predict", str(out), "photos", "--out", "predicted.csv", *CPU)
    taught, _ = succeed(capsys, "evaluate", str(out), "--data", "predicted.csv", "--split", "all", *CPU)
    assert "0.00 %" in taught, "what a network said of images is, by itself, no error of its own"
    assert main(["evaluate", str(out), "--data", "said.csv", "--out", "said.csv"]) == 2
    assert "--out said.csv is the list of --data: give another file" in capsys.readouterr().err
    assert (photos / "said.csv").read_text().startswith("image,label,class,probability,")


def test_a_comparison_is_named_by_its_list(
    capsys: pytest.CaptureFixture[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    options = ["--methods", "none", "--seeds", "1", "--jobs", "1", "--student", "wrn-10-1"]
    succeed(capsys, "train", "--model", "wrn-10-1", "--data", NAMED, *SHORT, "--out", "teacher")
    succeed(capsys, "compare", *options, "--teacher", "teacher", "--data", NAMED, *SHORT)
    assert (photos / "runs" / "compare-photos" / "comparison.json").exists()


def test_a_run_goes_on_where_its_list_was_moved_with_the_images(photos: Path) -> None:
    def wanted(place: Path) -> Request:
        data = DataOptions(f"{place}/photos.csv?path=id&root={place}/photos&suffix=.png")
        return Request(model="wrn-10-1", data=data, overrides={"epochs": 1, "batch_size": 8})

    runtime = Runtime("cpu", max_time="0")
    assert run(wanted(photos), photos / "run", runtime, Display()) is None
    moved = photos / "moved"
    moved.mkdir()
    for name in ("photos", "photos.csv"):
        shutil.move(photos / name, moved / name)
    assert run(wanted(moved), photos / "run", Runtime("cpu"), Display(), resume=True) is not None
    assert str(moved) in RunFolder(photos / "run").config()["data"]


def test_images_that_have_changed_are_told(capsys: pytest.CaptureFixture[str], photos: Path) -> None:
    named = f"{photos}/photos.csv?path=id&root={photos}/photos&suffix=.png"
    succeed(capsys, "train", "--model", "wrn-10-1", "--data", named, *SHORT, "--out", str(photos / "run"))
    _, said = succeed(capsys, "evaluate", str(photos / "run"), *CPU)
    assert "have changed" not in said
    text = (photos / "photos.csv").read_text()
    (photos / "photos.csv").write_text(text.replace("05;dark", "05;light"))
    _, said = succeed(capsys, "evaluate", str(photos / "run"), *CPU)
    assert "warning: the images have changed since" in said


def test_a_teacher_that_learnt_another_column_of_sets_is_told_of(
    capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    """All sets are given, so none is cut; those that were held out from the teacher are others all the same."""
    with (photos / "photos.csv").open(encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file, delimiter=";")
    folds = [("train", "val", "test", "train"), ("test", "train", "train", "val")]
    with (photos / "folds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "fold0", "fold1"])
        writer.writerows([*row, *(fold[place // 2 % 4] for fold in folds)] for place, row in enumerate(rows))

    def named(fold: int) -> str:
        return f"{photos}/folds.csv?path=id&root={photos}/photos&suffix=.png&split=fold{fold}"

    teacher, warning = photos / "teacher", "the teacher was trained with another column of sets or groups, so other"
    succeed(capsys, "train", "--model", "wrn-10-1", "--data", named(0), *SHORT, "--out", str(teacher))
    options = ["--teacher", str(teacher), "--student", "wrn-10-1", *SHORT, "--max_time", "0"]
    for fold, is_told in ((0, False), (1, True)):
        assert main(["distill", "--data", named(fold), *options, "--out", str(photos / f"run{fold}")]) == 3
        assert (warning in " ".join(capsys.readouterr().err.split())) == is_told
    _, said = succeed(capsys, "evaluate", str(teacher), "--data", named(1), *CPU)
    assert f"warning: {teacher} was trained with another column of sets or groups, so that other images" in said


def test_the_runs_own_list_is_known_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    for folder in (own / "photos", tmp_path / "run"):
        folder.mkdir(parents=True)
    (own / "x.csv").touch()
    config = f"{MARK}\ndata: {own}/x.csv?label=kind&root={own}/photos\ntrain_images: 30\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    monkeypatch.chdir(own / "photos")
    for named in (
        {"data": f"{own}/x.csv?root={own}/photos&label=kind"},
        {"data": "../x.csv?label=kind&root=."},
        {"data": "x.csv?label=kind&root=../photos", "data_root": str(own)},
    ):
        assert own_data(tmp_path / "run", named).train_images == 30
    for other in (f"{own}/x.csv?root={own}/photos", f"{own}/x.csv?label=kind"):
        assert own_data(tmp_path / "run", {"data": other}).train_images is None
    (own / "x.csv").rename(own / "y.csv")
    assert own_data(tmp_path / "run", {"data": "../y.csv?label=kind"}).train_images == 30
    with pytest.raises(
        InputError, match=r"no longer in .*x\.csv\?label=kind&root=.*photos: give --data to say where they"
    ):
        own_data(tmp_path / "run", {})
