"""Whole runs: what a folder holds, stopping and going on, refusing."""

import contextlib
import csv
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers import Heard, weights
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchvision import models

import spkd
from spkd.data.augment import resize, to_unit_range
from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.distiller import Distiller
from spkd.errors import InputError, RunFailed
from spkd.export import export_model
from spkd.files import locked
from spkd.imports import import_object
from spkd.models.saved_model import save_classifier
from spkd.studies.side_by_side import alone_request, distill
from spkd.taps import Activations, Taps
from spkd.training import run as running
from spkd.training.batches import make_stream, own_batches
from spkd.training.criterion import balancing_weights
from spkd.training.identity import input_paths
from spkd.training.loop import Training
from spkd.training.options import Request, Runtime
from spkd.training.own_images import images_to_quantise_with, own_data, real_images
from spkd.training.progress import Display, Lines
from spkd.training.result import hardware
from spkd.training.run import default_out, run
from spkd.training.run_folder import RunFolder
from spkd.training.saved import evaluate_saved
from spkd.training.setup import pinned, set_up

CPU = Runtime(accelerator="cpu")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distillation(tiny: str, teacher: Path, seed: int = 0, **overrides: object) -> Request:
    return Request(
        model=tiny,
        teacher=str(teacher),
        method="sp+kd",
        seed=seed,
        overrides={"epochs": 2, "gamma": 30.0, **overrides},
    )


@pytest.fixture(scope="module")
def finished(tiny: str, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run(distillation(tiny, teacher), folder, CPU, Display()) is not None
    return folder


def assert_logged(folder: Path) -> None:
    """Hold what TensorBoard shows against the metrics."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    shown = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert {"epoch", *shown} == rows[0].keys()
    for name, values in shown.items():
        assert values == [(int(row["epoch"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows]


def test_a_run_folder_holds_what_is_promised(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert (result["kind"], result["method"], result["seed"], result["epochs"]) == ("distill", "sp+kd", 0, 2)
    assert result["steps"] == 2 * math.ceil(500 / 64)
    assert 0 <= result["test_error"] <= 100
    assert 0 <= result["val_error"] <= 100
    assert result["parameters"] == sum(p.numel() for p in spkd.load_model(finished).parameters())
    assert result["images_per_second"] > 0
    assert result["images"] == {"train": 500, "unlabelled": 0, "val": 297, "test": 1000}
    lines = (finished / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,lr,train_total,train_ce,train_sp,train_kd,val_error,val_balanced_error"
    assert len(lines) == 3
    assert_logged(finished)
    assert (finished / "checkpoints" / "last.ckpt").is_file()
    assert yaml.safe_load((finished / "config.yaml").read_text())["gamma"] == 30.0


def test_the_logged_total_is_the_weighted_sum_of_the_logged_terms(finished: Path) -> None:
    header, *rows = (finished / "metrics.csv").read_text().splitlines()
    for row in rows:
        value = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
        expected = 0.1 * value["train_ce"] + 0.9 * value["train_kd"] + 30.0 * value["train_sp"]
        assert value["train_total"] == pytest.approx(expected, rel=1e-5)


def test_the_saved_model_has_the_reported_test_error(finished: Path) -> None:
    from spkd.data.load import load_data
    from spkd.data.options import DataOptions

    data = load_data(DataOptions())
    images = torch.stack([data.test.image(i) for i in range(len(data.test))]).float() / 255
    with torch.no_grad():
        wrong = spkd.load_model(finished)(images).argmax(1) != data.test.targets
    assert json.loads((finished / "result.json").read_text())["test_error"] == pytest.approx(
        100 * wrong.float().mean().item()
    )


def test_the_kept_student_is_the_best_on_validation(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    header, *rows = (finished / "metrics.csv").read_text().splitlines()
    errors = [float(row.split(",")[header.split(",").index("val_error")]) for row in rows]
    assert result["val_error"] == min(errors)
    assert errors[result["best_epoch"] - 1] == min(errors)


def test_the_kept_student_is_not_the_last_where_that_is_worse(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.loop.learning_rate", lambda recipe, step, batches: 100.0 * (step >= batches))
    result = run(Request(model=str(teacher), overrides={"epochs": 2}), tmp_path / "run", CPU, Display())
    assert result is not None
    assert result["best_epoch"] == 1
    own = evaluate_saved(tmp_path / "run", DataOptions(), split="val", teacher=None, accelerator="cpu")
    assert (own.top1_error, own.balanced_error) == pytest.approx((result["val_error"], result["val_balanced_error"]))


def test_the_same_request_gives_the_same_bits_and_another_seed_others(
    tiny: str, teacher: Path, finished: Path, tmp_path: Path
) -> None:
    run(distillation(tiny, teacher), tmp_path / "again", CPU, Display())
    run(distillation(tiny, teacher, seed=1), tmp_path / "other", CPU, Display())
    assert equal(finished, tmp_path / "again")
    assert not equal(finished, tmp_path / "other")


def test_every_number_of_a_run_is_explained_in_the_guide(finished: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()

    def explained(file: str) -> dict[str, str]:
        table = re.search(rf"^\| in `{file}`.*\n.*\n((?:\|.*\n)+)", guide, re.MULTILINE)
        assert table is not None
        rows = [row.strip("| ").split(" | ") for row in table[1].splitlines()]
        return {key: text for keys, text in rows for key in re.findall(r"`(\w+)`", keys)}

    with (finished / "metrics.csv").open() as file:
        assert set(explained("metrics.csv")) == set(next(csv.reader(file)))
    result, told = json.loads((finished / "result.json").read_text()), explained("result.json")
    assert set(told) == set(result)
    assert set(re.findall(r"`(\w+)`", told["test"])) == set(result["test"])
    assert set(re.findall(r"`(\w+)`", told["images"])) == set(result["images"])


@pytest.mark.usefixtures("ordered_logs")
def test_a_run_stopped_in_time_goes_on_to_the_same_bits(
    tiny: str, teacher: Path, finished: Path, tmp_path: Path
) -> None:
    folder, request = tmp_path / "run", distillation(tiny, teacher)
    stops = 0
    while run(request, folder, Runtime(accelerator="cpu", max_time="0"), Display(), resume=True) is None:
        assert not (folder / "result.json").exists()
        stops += 1
    assert stops == 2 * math.ceil(500 / 64), "a run that has no time makes one step"
    assert equal(finished, folder)
    assert (folder / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()
    assert_logged(folder)
    at_once, in_parts = (json.loads((place / "result.json").read_text()) for place in (finished, folder))
    assert at_once.keys() == in_parts.keys()
    assert {key for key in at_once if at_once[key] != in_parts[key]} <= {"training_seconds", "images_per_second"}


LAZY_LOSS = '''
"""What the student's layer is projected to be, and the teacher's: FitNets, with the channels found by itself."""
from torch import nn
from spkd import DistillationLoss, TapPair


class Projected(DistillationLoss):
    reads_teacher_logits = False

    def __init__(self, pair: TapPair, channels: int) -> None:
        super().__init__()
        self.pairs = (pair,)
        self.projection = nn.LazyConv2d(channels, 1)

    def remember(self, teacher):
        return teacher.taps[self.pairs[0].teacher]

    def forward(self, student, remembered):
        return (self.projection(student.taps[self.pairs[0].student].float()) - remembered).square().mean()
'''


def test_a_loss_whose_weights_are_made_by_the_first_batch_goes_on(tiny: str, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(LAZY_LOSS)
    method = f"{tmp_path}/own.py:Projected?channels=32"
    request = replace(distillation(tiny, teacher, epochs=1), method=method)
    at_once, folder = tmp_path / "at_once", tmp_path / "run"
    assert run(request, at_once, CPU, Display()) is not None
    assert run(request, folder, Runtime(accelerator="cpu", max_time="0"), Display()) is None
    assert run(request, folder, CPU, Display(), resume=True) is not None
    assert equal(at_once, folder)
    assert (folder / "metrics.csv").read_text() == (at_once / "metrics.csv").read_text()
    assert "projection.weight" not in weights(folder)


def test_a_stopped_run_can_be_ended_where_it_stands(
    tiny: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, request = tmp_path / "run", distillation(tiny, teacher)
    with pytest.raises(InputError, match=r"^--finish: there is no run in .*run to end$"):
        run(request, folder, CPU, Display(), finish=True)
    assert not folder.exists()
    for step in range(math.ceil(500 / 64)):
        assert run(request, folder, Runtime(accelerator="cpu", max_time="0"), Display(), resume=True) is None
        if step == 0:
            with pytest.raises(InputError, match=r"^--finish: no epoch of .*run is complete; --resume continues it$"):
                run(request, folder, CPU, Display(), finish=True)
    assert run(request, folder, Runtime(accelerator="cpu", max_time="0"), Display(), resume=True) is None
    shutil.copytree(folder, tmp_path / "copy")
    result = run(request, folder, CPU, Lines(), finish=True)
    told = capsys.readouterr().err
    assert "kept: epoch 1 of 1 (2 were planned), validation error" in told
    # Of the ninth of 16 steps, after a warm-up of 8.
    share = 0.5 * (1 + math.cos(math.pi * 8 / 16))
    assert (
        f"the learning rate was still {share:.0%} of its highest; with --epochs 1 it would have come to its end" in told
    )
    monkeypatch.setattr("spkd.training.run.STILL_HIGH", 0.51)
    assert run(request, tmp_path / "copy", CPU, Lines(), finish=True) is not None
    assert "learning rate" not in capsys.readouterr().err
    assert result is not None
    assert (result["epochs"], result["best_epoch"]) == (1, 1)
    for split in ("val", "test"):
        own = evaluate_saved(folder, DataOptions(), split=split, teacher=None, accelerator="cpu")
        assert own.top1_error == pytest.approx(result[f"{split}_error"])
    for way in ("resume", "finish"):
        assert run(request, folder, CPU, Display(), **{way: True}) == result


def test_a_finished_run_is_not_run_again(tiny: str, teacher: Path, finished: Path) -> None:
    before = (finished / "result.json").stat().st_mtime_ns
    result = run(distillation(tiny, teacher), finished, CPU, Display(), resume=True)
    assert result == json.loads((finished / "result.json").read_text())
    assert (finished / "result.json").stat().st_mtime_ns == before


def test_a_folder_with_a_run_is_refused(tiny: str, teacher: Path, finished: Path) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        run(distillation(tiny, teacher), finished, CPU, Display())


def test_resuming_with_another_option_names_it(tiny: str, teacher: Path, finished: Path) -> None:
    with pytest.raises(InputError, match=r"gamma was 30.0, is 31.0"):
        run(distillation(tiny, teacher, gamma=31.0), finished, CPU, Display(), resume=True)


def test_a_checkpoint_made_with_another_teacher_is_refused(tiny: str, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    run(Request(model=tiny, overrides={"epochs": 1}), teacher, CPU, Display())
    folder = tmp_path / "run"
    assert run(distillation(tiny, teacher), folder, Runtime("cpu", max_time="0"), Display()) is None
    run(Request(model=tiny, overrides={"epochs": 1}, seed=1), teacher, CPU, Display(), overwrite=True)
    with pytest.raises(InputError, match="other weights"):
        run(distillation(tiny, teacher), folder, CPU, Display(), resume=True)


def test_a_run_that_was_moved_with_all_that_it_names_goes_on(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_pictures(old / "pictures")
    short = {"epochs": 1, "batch_size": 8}

    def wanted(place: Path) -> Request:
        data, weights = DataOptions("pictures", data_root=str(place)), place / "first" / "student" / "model.safetensors"
        taught = Request(model="wrn-10-1", data=data, overrides=short, weights=str(weights), method="sp")
        return replace(taught, teacher=str(place / "first"))

    begun = Request(model="wrn-10-1", data=DataOptions(str(old / "pictures")), overrides=short)
    assert run(begun, old / "first", CPU, Display()) is not None
    assert run(wanted(old), old / "run", Runtime("cpu", max_time="0"), Display()) is None
    old.rename(new)
    result = run(wanted(new), new / "run", CPU, Display(), resume=True)
    assert result is not None
    assert RunFolder(new / "run").config()["data_root"] == str(new)
    new.rename(old)
    (old / "pictures").rename(old / "photos")
    renamed = replace(wanted(old), data=DataOptions(str(old / "photos")))
    assert run(renamed, old / "run", CPU, Display(), resume=True) == result
    # Of a finished run too, since its images are looked for where its configuration says.
    assert RunFolder(old / "run").config()["data"] == str(old / "photos")


def write_unlabelled(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(torch.randint(256, (count, 8, 8), generator=torch.Generator().manual_seed(5))):
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number:02d}.png")
    return folder


def test_images_without_a_label_are_learnt_from_and_belong_to_the_run(tiny: str, teacher: Path, tmp_path: Path) -> None:
    few = replace(distillation(tiny, teacher, batch_size=10), data=DataOptions(train_images=50))
    wanted = replace(few, unlabelled=str(write_unlabelled(tmp_path / "more")))
    without = run(few, tmp_path / "without", CPU, Display())
    result = run(wanted, tmp_path / "run", CPU, Display())
    assert without is not None
    assert result is not None
    assert result["images"] == {"train": 50, "unlabelled": 20, "val": 297, "test": 1000}
    assert not equal(tmp_path / "run", tmp_path / "without")
    assert result["images_fingerprint"] == without["images_fingerprint"]
    said: list[str] = []
    evaluate_saved(tmp_path / "run", few.data, split="test", teacher=None, accelerator="cpu", display=Heard(said))
    assert not any("have changed" in line for line in said)
    folder = tmp_path / "stopped"
    while run(wanted, folder, Runtime(accelerator="cpu", max_time="0"), Display(), resume=True) is None:
        pass
    assert equal(tmp_path / "run", folder)
    moved = replace(wanted, unlabelled=str((tmp_path / "more").rename(tmp_path / "elsewhere")))
    assert run(moved, tmp_path / "run", CPU, Display(), resume=True) == result
    (tmp_path / "elsewhere" / "00.png").unlink()
    with pytest.raises(InputError, match=r"/run was made with other weights, code or images"):
        run(moved, tmp_path / "run", CPU, Display(), resume=True)


def test_images_without_a_label_need_a_teacher_and_nothing_is_written_among_them(
    tiny: str, teacher: Path, tmp_path: Path
) -> None:
    more = write_unlabelled(tmp_path / "more")
    with pytest.raises(InputError, match="--unlabelled: without labels, a student can only learn what a teacher says"):
        run(Request(model=tiny, unlabelled=str(more)), tmp_path / "run", CPU, Display())
    with pytest.raises(InputError, match="overlap, one inside the other"):
        run(replace(distillation(tiny, teacher), unlabelled=str(more)), more / "run", CPU, Display())


def test_another_teacher_is_refused_before_anything_is_written(tiny: str, teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(distillation(tiny, teacher), folder, Runtime("cpu", max_time="0"), Display()) is None
    run(Request(model=tiny, overrides={"epochs": 1}), tmp_path / "other", CPU, Display())
    before = (folder / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"teacher was .*/run', is .*/other'"):
        run(distillation(tiny, tmp_path / "other"), folder, CPU, Display(), resume=True)
    assert (folder / "config.yaml").read_text() == before


def identity(request: Request) -> str:
    return set_up(request).identity()


def test_what_a_call_has_made_is_told_apart_by_its_file(tiny_source: str, tmp_path: Path) -> None:
    made, path = set(), tmp_path / "net.py"
    for width in (4, 8):
        path.write_text(f"import functools\n{tiny_source}\nSmall = functools.partial(Tiny, width={width})\n")
        made.add(identity(Request(model=f"{path}:Small")))
    assert len(made) == 2


def test_how_images_are_seen_is_part_of_the_run(tiny: str) -> None:
    setup = set_up(Request(model=tiny))
    changes = (
        {},
        {"flip": True},
        {"normalisation_mean": (0.4,)},
        {"normalisation_std": (0.4,)},
        {"chosen_view": "centre"},
    )
    assert len({replace(setup, data=replace(setup.data, **change)).identity() for change in changes}) == len(changes)


def test_an_image_that_has_changed_is_noticed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    wanted = Request(model="wrn-10-1", data=DataOptions(str(tmp_path / "pictures")))
    before = identity(wanted)
    assert identity(wanted) == before
    path = sorted((tmp_path / "pictures").rglob("*.png"))[0]
    with Image.open(path) as picture:
        inverted = picture.point(lambda value: 255 - value)
    inverted.save(path)
    assert identity(wanted) != before


def test_a_neighbour_that_the_code_imports_is_noticed(tiny_source: str, tmp_path: Path) -> None:
    neighbour, path = tmp_path / "noticed_rate.py", tmp_path / "net.py"
    neighbour.write_text("def rate():\n    return 0.1\n")
    path.write_text(f"import noticed_rate\n{tiny_source}")
    wanted = Request(model=f"{path}:Tiny")
    before = identity(wanted)
    (tmp_path / "unused.py").write_text("")
    assert identity(wanted) == before
    neighbour.write_text("def rate():\n    return 0.2\n")
    assert identity(wanted) != before


def test_a_saved_network_finds_its_code_after_both_were_moved(tiny_source: str, tiny: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "c++"
    (old / "nets").mkdir(parents=True)
    (old / "nets" / "net.py").write_text(tiny_source)
    made = Request(model=f"{old}/nets/net.py:Tiny?width=8", overrides={"epochs": 1})
    run(made, old / "runs" / "teacher", CPU, Display())
    taped = replace(CPU, tape=str(tmp_path / "tape"))
    short = distillation(tiny, old / "runs" / "teacher", epochs=1)
    result = run(short, tmp_path / "run", taped, Display())
    old.rename(new)
    moved = distillation(tiny, new / "runs" / "teacher", epochs=1)
    assert spkd.load_model(new / "runs" / "teacher").info.spec == f"{new}/nets/net.py:Tiny?width=8"
    assert run(moved, tmp_path / "run", CPU, Display(), resume=True) == result
    assert run(moved, tmp_path / "played", taped, Display()) is not None
    again = replace(made, model=f"{new}/nets/net.py:Tiny?width=8")
    assert run(again, new / "runs" / "teacher", CPU, Display(), resume=True) is not None
    with pytest.raises(InputError, match="other options"):
        run(
            replace(made, model=f"{new}/nets/net.py:Tiny?width=4"),
            new / "runs" / "teacher",
            CPU,
            Display(),
            resume=True,
        )


def test_the_code_of_a_saved_teacher_and_what_lies_beside_weights_are_noticed(
    tiny_source: str, tiny: str, tmp_path: Path
) -> None:
    code, folder = tmp_path / "net.py", tmp_path / "teacher"
    code.write_text(tiny_source)
    run(Request(model=f"{code}:Tiny", overrides={"epochs": 1}), folder, CPU, Display())
    taught, weights = distillation(tiny, folder), str(folder / "student" / "model.safetensors")
    begun = Request(model=tiny, weights=weights)
    before = identity(taught), identity(begun)
    code.write_text(tiny_source.replace("dropout=0.1", "dropout=0.2"))
    assert identity(taught) != before[0]
    description = folder / "student" / "model.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "normalisation": {"mean": [0.4], "std": [0.2]}}))
    assert identity(begun) != before[1]


def test_a_folder_called_like_a_method_is_not_the_method(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = distillation(tiny, teacher)
    before = identity(wanted)
    (tmp_path / "sp+kd").mkdir()
    monkeypatch.chdir(tmp_path)
    assert identity(wanted) == before


def test_a_network_file_that_was_edited_is_noticed(tiny_source: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(tiny_source)
    request = Request(model=f"{path}:Tiny", overrides={"epochs": 1})
    assert run(request, tmp_path / "run", CPU, Display()) is not None
    path.write_text(tiny_source.replace("dropout=0.1", "dropout=0.5"))
    with pytest.raises(InputError, match="other weights, code or images"):
        run(request, tmp_path / "run", CPU, Display(), resume=True)


def write_pictures(data: Path, kind: str = "png", blue: int = 0) -> None:
    for index in range(24):
        folder = data / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (index * 10, 0, blue)).save(folder / f"{index}.{kind}")


def test_other_images_of_the_same_names_and_sizes_are_noticed(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    write_pictures(data, "bmp")
    sizes = {path: path.stat().st_size for path in data.rglob("*.bmp")}
    request = Request(model="wrn-10-1", data=DataOptions(str(data)), overrides={"epochs": 1, "batch_size": 8})
    assert run(request, tmp_path / "run", CPU, Display()) is not None
    write_pictures(data, "bmp", blue=200)
    assert sizes == {path: path.stat().st_size for path in data.rglob("*.bmp")}
    with pytest.raises(InputError, match="other weights, code or images"):
        run(request, tmp_path / "run", CPU, Display(), resume=True)


def test_images_that_were_added_are_noticed(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    write_pictures(data)
    request = Request(model="wrn-10-1", data=DataOptions(str(data)), overrides={"epochs": 1, "batch_size": 8})
    folder = tmp_path / "run"
    assert run(request, folder, CPU, Display()) is not None
    assert run(request, folder, CPU, Display(), resume=True) is not None
    said: list[str] = []
    evaluate_saved(folder, request.data, split="test", teacher=None, accelerator="cpu", display=Heard(said))
    assert said == list(load_data(request.data).notes)
    exported = export_model(folder, images=real_images(folder, request.data, 2)).path
    said.clear()
    Image.new("RGB", (16, 16), (5, 5, 5)).save(data / "class 0" / "another.png")
    with pytest.raises(InputError, match="other weights, code or images"):
        run(request, folder, CPU, Display(), resume=True)
    evaluate_saved(folder, request.data, split="test", teacher=None, accelerator="cpu", display=Heard(said))
    evaluate_saved(exported, request.data, split="test", teacher=None, accelerator="cpu", display=Heard(said))
    images_to_quantise_with(folder, request.data, said.append)
    assert sum("the images have changed" in line for line in said) == 3
    further = replace(request, model=str(folder))
    taught = replace(request, teacher=str(folder), method="sp")
    for one, name in ((further, "student"), (taught, "teacher")):
        told = [note for note in set_up(one).notes if "has changed since" in note]
        assert len(told) == 1
        assert told[0].startswith(f"warning: pictures has changed since the {name} was trained on it, so other images")
        fewer = replace(one, data=replace(one.data, train_images=8))
        assert not any("has changed since" in note for note in set_up(fewer).notes)
    (data / "class 0" / "another.png").unlink()
    for one in (further, taught):
        assert not any("has changed since" in note for note in set_up(one).notes)


def test_a_network_that_cannot_train_leaves_no_folder(tiny_source: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        tiny_source.replace("return self.head", "assert not self.training, 'no training'\n        return self.head")
    )
    with pytest.raises(InputError, match="a training step on images of 8 × 8 fails: AssertionError: no training"):
        run(Request(model=f"{path}:Tiny"), tmp_path / "run", CPU, Display())
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_saved_is_refused_before_it_is_trained(tiny_source: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        f"{tiny_source}\n    def get_extra_state(self):\n        return 'mine'\n"
        "\n    def set_extra_state(self, state):\n        pass\n"
    )
    with pytest.raises(InputError, match="_extra_state in its state dict is a str"):
        run(Request(model=f"{path}:Tiny"), tmp_path / "run", CPU, Display())
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_clear_line(tiny: str, teacher: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    run(distillation(tiny, teacher), folder.path, Runtime("cpu", max_time="0"), Display())
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match="no readable checkpoint"):
        run(distillation(tiny, teacher), folder.path, CPU, Display(), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny: str, teacher: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    request = Request(model=tiny, overrides={"epochs": 3, "lr": 1e30, "warmup_epochs": 0.0})
    runtime = Runtime(accelerator="cpu", checkpoint_seconds=0.0)
    with pytest.raises(
        RunFailed, match=r"term 'ce' is (nan|inf) in epoch 1, step \d+.*--lr 1e\+30.*stays in"
    ) as caught:
        run(request, folder.path, runtime, Display())
    assert "\n" not in str(caught.value)
    assert folder.result() is None
    saved = torch.load(folder.checkpoint, weights_only=True)
    assert all(math.isfinite(value) for value in saved["state"]["sums"].values())


@pytest.mark.parametrize("full", [(torch.OutOfMemoryError, "CUDA"), (RuntimeError, "MPS backend")], ids=["cuda", "mps"])
@pytest.mark.parametrize("where", [Distiller, Training])
def test_a_full_memory_is_told_in_one_line(
    where: type,
    full: tuple[type[Exception], str],
    tiny: str,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, device = full

    def fill(*arguments: object) -> None:
        raise kind(f"{device} out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(where, "check" if where is Distiller else "run", fill)
    with pytest.raises(
        RunFailed,
        match=r"^the device's memory is full \(.*2 GiB\); smaller batches.*; if other programs hold .*--resume contin",
    ):
        run(distillation(tiny, teacher), tmp_path / "run", CPU, Display())


def test_a_machine_that_cannot_compile_is_told_in_one_line(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling begins with the first step, after all that is looked at before."""

    def backend(*arguments: object) -> None:
        raise OSError("no working C++ compiler\nfound")

    monkeypatch.setattr(Training, "run", lambda *arguments: torch.compile(torch.neg, backend=backend)(torch.ones(2)))
    with pytest.raises(
        InputError, match=r"^--compile: PyTorch cannot compile this here \(OSError: no [^\n]*leave it out$"
    ):
        run(distillation(tiny, teacher), tmp_path / "run", replace(CPU, compile=True), Display())


@pytest.mark.parametrize(
    ("images", "method", "overrides", "said"),
    [
        (None, "sp", {}, "cross-entropy 1, sp 100"),
        (50, "sp+kd", {}, "cross-entropy 0.1, sp 12.5, kd 0.9"),
        (50, "sp+at", {"gamma": 100.0}, "cross-entropy 1, sp 100, at 3"),
        (50, "sp?weight=7", {}, "cross-entropy 1, sp 7"),
        (None, "sp", {"batch_size": 32}, "cross-entropy 1, sp 50"),
        (None, "sp", {"batch_size": 32, "gamma": 100.0}, "cross-entropy 1, sp 100"),
    ],
)
def test_the_weight_of_the_similarity_loss_follows_the_batch_unless_it_is_given(
    images: int | None, method: str, overrides: dict[str, object], said: str, tiny: str, teacher: Path
) -> None:
    data = DataOptions(train_images=images)
    request = Request(model=tiny, teacher=str(teacher), method=method, data=data, overrides=overrides)
    assert f"loss weights: {said}" in set_up(request).notes


@pytest.mark.parametrize(
    ("method", "recipe", "said"),
    [
        ("none", None, "more --epochs, --recipe scratch or finetune, or another --lr"),
        ("none", "scratch", "more --epochs, --recipe finetune, or another --lr"),
        ("sp", None, "more --epochs, --recipe scratch or finetune, another --lr, or a lower --gamma"),
    ],
)
def test_networks_that_know_next_to_nothing_are_warned_of(
    method: str, recipe: str | None, said: str, tiny: str, heard: Any, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    save_classifier(set_up(Request(model=tiny)).student, teacher)
    request = Request(model=tiny, recipe=recipe, method=method, overrides={"epochs": 1, "lr": 1e-9})
    run(request if method == "none" else replace(request, teacher=str(teacher)), tmp_path / "run", CPU, heard)
    warnings = [line for line in heard.lines if "little better than chance" in line]
    assert warnings[-1] == f"warning: that is little better than chance; try {said}"
    of_teacher = "warning: the teacher is little better than chance on these images; check that it is the right one"
    assert warnings[:-1] == ([] if method == "none" else [of_teacher])


def test_chance_is_always_the_commonest_class(tiny: str) -> None:
    setup = set_up(Request(model=tiny))
    val = setup.data.val
    for fives, chance in ((1, 45.0), (3, 22.5), (9, 9.0)):
        few = torch.cat([torch.where(val.targets == 5)[0][:fives], torch.where(val.targets == 7)[0][:1]])
        unequal = replace(setup, data=replace(setup.data, val=val.select(few)))
        for error, balanced, is_near in (
            (chance + 0.1, None, True),
            (chance + 0.1, 45.1, True),
            (chance + 0.1, 44.9, False),
            (chance - 0.1, 45.1, False),
        ):
            assert running._is_near_chance(unequal, error, balanced) == is_near


def test_smoothed_labels_are_learnt_from_and_part_of_the_run(tiny: str, teacher: Path, tmp_path: Path) -> None:
    plain, smoothed = (set_up(distillation(tiny, teacher, **options)) for options in ({}, {"label_smoothing": 0.1}))
    assert "label_smoothing" not in plain.config()
    assert smoothed.config()["label_smoothing"] == 0.1
    assert plain.identity() == set_up(distillation(tiny, teacher, label_smoothing=0.0)).identity()
    assert plain.identity() != smoothed.identity()
    assert any(note.endswith(", label smoothing 0.1") for note in smoothed.notes)
    images, targets = plain.data.train.image(0).float()[None] / 255, plain.data.train.targets[:1]
    log_p = plain.student.eval()(images).log_softmax(1)[0]
    remembered = smoothed.objective.remember(Taps(plain.teacher, smoothed.objective.teacher_taps)(images))
    seen = Taps(plain.student, smoothed.objective.student_taps)(images)
    expected = -(0.9 * log_p[targets[0]] + 0.1 * log_p.mean())
    assert smoothed.objective.values(seen, targets, remembered)["ce"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(InputError, match="--label_smoothing must be a number from 0 to below 1, not 1"):
        set_up(distillation(tiny, teacher, label_smoothing=1.0))


def test_the_measure_that_an_epoch_is_kept_by_is_part_of_the_run(tiny: str, teacher: Path) -> None:
    plain, said, balanced = (
        set_up(distillation(tiny, teacher, **given)) for given in ({}, {"select": "error"}, {"select": "balanced"})
    )
    assert "select" not in plain.config()
    assert balanced.config()["select"] == "balanced"
    assert plain.identity() == said.identity() != balanced.identity()
    told = [any(note.endswith(", select balanced") for note in one.notes) for one in (said, balanced)]
    assert told == [False, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_labels_of_rare_classes_weigh_more(smoothing: float, tiny: str, teacher: Path) -> None:
    wanted = {"label_smoothing": smoothing, "class_weights": "balanced"}
    plain, weighed = (set_up(distillation(tiny, teacher, **given)) for given in ({}, wanted))
    assert "class_weights" not in plain.config()
    assert weighed.config()["class_weights"] == "balanced"
    assert plain.identity() == set_up(distillation(tiny, teacher, class_weights="none")).identity()
    assert len({plain.identity(), weighed.identity(), set_up(distillation(tiny, teacher, **wanted)).identity()}) == 2
    assert any(note.endswith(", class weights balanced") for note in weighed.notes)
    data, student = weighed.data, weighed.student.eval()
    images = torch.stack([data.train.image(index).float() / 255 for index in range(8)])
    targets = data.train.targets[:8].clone()
    targets[3] = -100
    counts = [int((data.train.targets == place).sum()) for place in range(10)]
    weights = [len(data.train) / (10 * count) for count in counts]
    expected = 0.0
    for log_p, target in zip(student(images).log_softmax(1).tolist(), targets.tolist(), strict=True):
        if target != -100:
            expected -= weights[target] * ((1 - smoothing) * log_p[target] + smoothing * sum(log_p) / 10)
    remembered = weighed.objective.remember(Taps(plain.teacher, weighed.objective.teacher_taps)(images))
    seen = Taps(student, weighed.objective.student_taps)(images)
    found = weighed.objective.values(seen, targets, remembered)["ce"].item()
    assert found == pytest.approx(expected / 8, rel=1e-5)


def test_weights_of_classes_go_to_the_device_and_into_no_checkpoint(tiny: str) -> None:
    setup = set_up(Request(model=tiny, overrides={"class_weights": "balanced"}))
    assert not setup.objective.state_dict()
    assert [name for name, _ in setup.objective.named_buffers()] == ["criterion.of_labels"]
    assert setup.objective.to("meta")(
        Activations(torch.zeros(4, 10, device="meta"), {}), torch.zeros(4, dtype=torch.int64, device="meta"), {}
    ).total.is_meta


def test_all_classes_that_have_images_weigh_the_same_together(tiny: str) -> None:
    data = set_up(Request(model=tiny)).data
    of = [torch.where(data.train.targets == place)[0] for place in range(10)]
    few = replace(data, train=data.train.select(torch.cat([of[2][:1], of[5][:9], of[7][:30]])))
    weights = balancing_weights(few)
    expected = torch.zeros(10)
    expected[[2, 5, 7]] = torch.tensor([40 / 3, 40 / 27, 40 / 90])
    torch.testing.assert_close(weights, expected)
    assert weights[few.train.targets].mean().item() == pytest.approx(1)


def test_pictures_of_one_s_own_are_mirrored_unless_that_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    mirrored = set_up(Request(model="wrn-10-1", data=DataOptions(str(tmp_path / "pictures"))))
    plain = set_up(Request(model="wrn-10-1", data=DataOptions(str(tmp_path / "pictures"), no_flip=True)))
    said = "training images are mirrored half the time; if a mirror image may be of another class, give --no_flip"
    assert (mirrored.data.flip, said in mirrored.notes) == (True, True)
    assert (plain.data.flip, said in plain.notes) == (False, False)
    assert "no_flip" not in mirrored.config()
    assert plain.config()["no_flip"] is True
    assert mirrored.identity() != plain.identity()


def write_noise(data: Path) -> None:
    numbers = np.random.default_rng(0)
    for index in range(24):
        folder = data / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (12, 15, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def test_the_head_of_a_library_s_weights_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They tell ImageNet's classes apart, which nobody asks for by giving other images."""
    made = models.shufflenet_v2_x0_5()
    monkeypatch.setattr("spkd.models.libraries.make_pretrained", lambda *arguments: made)
    write_noise(tmp_path / "pictures")
    data = DataOptions(str(tmp_path / "pictures"), image_size=32)
    setup = set_up(Request(model="torchvision/shufflenet_v2_x0_5", weights="pretrained", data=data))
    said = "the head of 1000 classes was replaced by a new one of 2, with random weights"
    assert any(note.endswith(said) for note in setup.notes)
    assert setup.recipe.name == "finetune"
    found, expected = setup.student.network.state_dict(), made.state_dict()
    assert found["fc.weight"].shape == (2, 1024)
    assert all(torch.equal(found[name], value) for name, value in expected.items() if not name.startswith("fc."))


def test_trained_weights_that_are_not_asked_for_are_told_of(tmp_path: Path) -> None:
    write_noise(tmp_path / "pictures")
    data = DataOptions(str(tmp_path / "pictures"), image_size=32)
    said = "--weights pretrained usually does better"
    for model, told in (("torchvision/shufflenet_v2_x0_5", True), ("wrn-10-1", False)):
        assert any(note.endswith(said) for note in set_up(Request(model=model, data=data)).notes) == told
    digits = set_up(Request(model="torchvision/shufflenet_v2_x0_5", data=DataOptions(image_size=32)))
    assert not any(note.endswith(said) for note in digits.notes)


@pytest.fixture
def loading(tiny: str, tiny_source: str, teacher: Path, tmp_path: Path) -> Request:
    """A distillation from a callable that loads ``best.pt`` by itself, and another in its file with a new head."""
    weights = tmp_path / "best.pt"
    torch.save(load_file(teacher / "student" / "model.safetensors"), weights)
    (tmp_path / "own.py").write_text(
        f"{tiny_source}\ndef loads():\n    import torch\n    network = Tiny(width=16)\n"
        f"    network.load_state_dict(torch.load({str(weights)!r}))\n    return network\n"
        "\ndef headed():\n    import torch\n    network = loads()\n"
        "    last = [name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)][-1]\n"
        "    old = network.get_submodule(last)\n"
        "    setattr(network, last, torch.nn.Linear(old.in_features, old.out_features))\n    return network\n"
    )
    return replace(distillation(tiny, teacher), teacher=f"{tmp_path}/own.py:loads", teacher_weights="pretrained")


def test_weights_that_a_callable_loads_are_part_of_run_and_tape(
    loading: Request, teacher: Path, tmp_path: Path
) -> None:
    request, weights = loading, tmp_path / "best.pt"
    tape = Runtime("cpu", tape=str(tmp_path / "tape"))
    result = run(request, tmp_path / "run", tape, Display())
    assert result is not None
    assert result["teacher_val_error"] == json.loads((teacher / "result.json").read_text())["val_error"]
    before = set_up(request).identity()
    state = load_file(teacher / "student" / "model.safetensors")
    torch.save({name: 2 * value if name.endswith("weight") else value for name, value in state.items()}, weights)
    assert set_up(request).identity() != before
    with pytest.raises(InputError, match=r"was recorded with other weights of the teacher.*\(teacher_weights_loaded\)"):
        run(request, tmp_path / "again", tape, Display())


def test_a_moving_average_is_another_teacher_than_what_lies_beside_it(tiny: str, teacher: Path, tmp_path: Path) -> None:
    state = load_file(teacher / "student" / "model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "alone.pt")
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "both.pt")
    torch.save({"state_dict": state, "ema": state}, tmp_path / "other.pt")  # under no name that is known
    request = replace(distillation(tiny, teacher), teacher=f"{tiny}?width=16")
    alone, both, other = (
        set_up(replace(request, teacher_weights=str(tmp_path / name))).tape_identity()
        for name in ("alone.pt", "both.pt", "other.pt")
    )
    assert not any("teacher_weights_taken" in identity for identity in (alone, other))
    assert both["teacher_weights_taken"] == "moving average"


def test_a_teacher_with_a_head_of_its_own_making_is_recorded(loading: Request, tmp_path: Path) -> None:
    """And told as the same one each time, though its head is another at every call."""
    tape = Runtime("cpu", tape=str(tmp_path / "tape"))
    request = replace(loading, teacher=f"{tmp_path}/own.py:headed", method="sp")
    for name in ("one", "two"):
        assert run(request, tmp_path / name, tape, Display()) is not None
    assert equal(tmp_path / "one", tmp_path / "two")


def test_what_is_seen_of_a_large_image_can_be_chosen(tmp_path: Path) -> None:
    write_noise(tmp_path / "pictures")
    usual, chosen = (
        set_up(Request(model="wrn-10-1", data=DataOptions(str(tmp_path / "pictures"), image_size=8, **options)))
        for options in ({}, {"crop_scale": 1.0, "view": "whole"})
    )
    assert (usual.data.view, usual.student.info.view) == ("centre", "centre")
    assert (chosen.data.view, chosen.student.info.view) == ("whole", "whole")
    assert not {"crop_scale", "view"} & usual.config().keys()
    assert usual.identity() != chosen.identity()
    for setup, least in ((usual, "0.35"), (chosen, "1")):
        done = f"reflect pad 1/8 and crop, or resized crop of {least} to 1 and flip, JPEGs decoded at 3 pixels to one"
        assert setup.tape_identity()["augmentation"] == done
    images = chosen.data.train
    whole = {resize(images.image(index), 8).numpy().tobytes() for index in range(len(images))}
    whole |= {resize(images.image(index), 8).flip(-1).numpy().tobytes() for index in range(len(images))}
    stream = make_stream(chosen, torch.device("cpu"))
    for batch, _ in stream.epoch(0):
        assert {(255 * one).round().to(torch.uint8).numpy().tobytes() for one in batch} <= whole
    (first, _), *_ = own_batches(chosen.data.val, chosen, torch.device("cpu"))
    assert torch.equal((255 * first[0]).round().to(torch.uint8), resize(chosen.data.val.image(0), 8))


def test_a_student_that_was_made_to_see_whole_images_still_does(tmp_path: Path) -> None:
    write_noise(tmp_path / "pictures")
    data = DataOptions(str(tmp_path / "pictures"), image_size=8, view="whole")
    run(Request(model="wrn-10-1", data=data, overrides={"epochs": 1}), tmp_path / "first", CPU, Display())
    model = str(tmp_path / "first")
    usual = set_up(Request(model=model, data=replace(data, view=None)))
    assert (usual.student.info.view, usual.data.view) == ("whole", "whole")
    said = (
        f"{model} was made to see whole images, so it is shown that in evaluation; training shows crops of at least 35%"
    )
    assert [note.partition(", or with")[0] for note in usual.notes if "was made to see" in note] == [said]
    other = set_up(Request(model=model, data=replace(data, view="centre")))
    assert (other.student.info.view, other.data.view) == ("centre", "centre")
    assert not any("was made to see" in note for note in other.notes)


def test_a_folder_that_holds_a_run_is_refused_before_images_are_looked_at(
    finished: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.setup.load_data", lambda *arguments: pytest.fail("images were loaded"))
    with pytest.raises(InputError, match="already holds a run"):
        run(Request(model=tiny), finished, CPU, Display())


def test_images_that_are_changed_besides_make_another_run_and_another_tape(tmp_path: Path) -> None:
    write_noise(tmp_path / "pictures")
    usual, chosen = (
        set_up(Request(model="wrn-10-1", data=DataOptions(str(tmp_path / "pictures"), image_size=8, **options)))
        for options in ({}, {"augment": "trivial"})
    )
    assert "augment" not in usual.config()
    assert chosen.config()["augment"] == "trivial"
    assert usual.identity() != chosen.identity()
    said, changed_besides = (setup.tape_identity()["augmentation"] for setup in (usual, chosen))
    assert changed_besides == f"{said}, trivial"
    (plain, _), *_ = make_stream(usual, torch.device("cpu")).epoch(0)
    (changed, _), *_ = make_stream(chosen, torch.device("cpu")).epoch(0)
    assert not torch.equal(plain, changed)


def test_turned_mixed_and_drawn_images_are_other_runs(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"mixup": 0.5}, {"draw": "balanced"}, {"turns": True}]
    setups = [set_up(Request(model="wrn-10-1", data=DataOptions(**one))) for one in options]
    assert not {"mixup", "draw", "turns"} & setups[0].config().keys()
    assert [setup.config().get("mixup") for setup in setups] == [None, 0.5, None, None]
    assert [setup.config().get("draw") for setup in setups] == [None, None, "balanced", None]
    assert [setup.config().get("turns") for setup in setups] == [None, None, None, True]
    assert len({setup.identity() for setup in setups}) == 4
    assert len({str(setup.tape_identity()) for setup in setups}) == 4
    plain, mixed, drawn, turned = (next(iter(make_stream(setup, torch.device("cpu")).batches(0))) for setup in setups)
    assert mixed.targets.shape == (len(plain.targets), 10)
    assert not torch.equal(drawn.targets, plain.targets)
    assert torch.equal(turned.targets, plain.targets)
    assert not torch.equal(turned.images, plain.images)


def test_a_teacher_that_was_made_to_see_images_otherwise_is_told(tmp_path: Path) -> None:
    write_noise(tmp_path / "pictures")
    data = DataOptions(str(tmp_path / "pictures"), image_size=8, view="whole")
    finished = tmp_path / "teacher"
    run(Request(model="wrn-10-1", data=data, overrides={"epochs": 1}), finished, CPU, Display())
    said = "teacher: it was made to see whole images, but evaluation shows the centre of images; give --view whole"
    wanted = Request(model="wrn-10-1", teacher=str(finished), method="kd", data=replace(data, view=None))
    assert said in set_up(wanted).notes
    assert said not in set_up(replace(wanted, data=data)).notes


def test_weights_from_elsewhere_in_a_saved_architecture_are_another_run(teacher: Path, tmp_path: Path) -> None:
    """What they are normalised with is not that of the version that took it from the folder."""
    own = teacher / "student" / "model.safetensors"
    torch.save(load_file(own), tmp_path / "best.pt")
    for named in (None, str(own), str(tmp_path / "best.pt")):
        setup = set_up(Request(model="wrn-10-1", teacher=str(teacher), teacher_weights=named, method="sp"))
        assert ("teacher_weights_from" in setup.tape_identity()) == (named == str(tmp_path / "best.pt"))
    student = set_up(Request(model=str(teacher), weights=str(tmp_path / "best.pt")))
    other = set_up(Request(model=str(teacher), weights=str(own)))
    assert student.config() == {**other.config(), "weights": str(tmp_path / "best.pt")}
    assert student.identity() != other.identity()


def test_images_have_the_size_that_the_teacher_was_made_for(tmp_path: Path) -> None:
    """Not that of the student's first weights: those will change."""
    write_pictures(tmp_path / "pictures")
    common = Request(model="wrn-10-1", data=DataOptions(str(tmp_path / "pictures"), image_size=24))
    for name, size in (("student", 24), ("teacher", 16)):
        save_classifier(set_up(replace(common, data=replace(common.data, image_size=size))).student, tmp_path / name)
    saved = replace(common, model=str(tmp_path / "student"), teacher=str(tmp_path / "teacher"), method="sp")
    own = set_up(replace(saved, data=replace(common.data, image_size=None)))
    assert own.image_size == 16
    assert "student: its weights were made for images of 24 × 24 pixels, but it is shown 16 × 16" in own.notes
    asked = set_up(replace(saved, data=replace(common.data, image_size=20)))
    assert asked.image_size == 20
    assert "teacher: its weights were made for images of 16 × 16 pixels, but it is shown 20 × 20" in asked.notes


def test_a_teacher_that_is_shown_smaller_images_than_its_own_is_warned_of(tmp_path: Path) -> None:
    """With the option that shows it the same crops at its size."""
    write_pictures(tmp_path / "pictures")
    data = DataOptions(str(tmp_path / "pictures"), image_size=24)
    save_classifier(set_up(Request(model="wrn-10-1", data=data)).student, tmp_path / "teacher")
    smaller = Request(
        model="wrn-10-1", teacher=str(tmp_path / "teacher"), data=replace(data, image_size=16), method="sp"
    )

    def warned(request: Request) -> list[str]:
        return [note for note in set_up(request).notes if "were made for" in note]

    assert warned(smaller) == [
        "warning: the teacher's weights were made for images of 24 × 24 pixels, but it is shown 16 × 16; "
        "--teacher_size 24 shows it the same crops at its own size"
    ]
    assert warned(replace(smaller, teacher_size=24)) == []


def test_of_what_size_a_file_of_weights_is_is_not_known(tmp_path: Path) -> None:
    """It may be another than that of the library's own weights."""
    write_pictures(tmp_path / "pictures")
    file = str(tmp_path / "best.pt")
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), file)
    unsaid = "these weights do not say their image size; timm's own are for 160 × 160 pixels"
    data = DataOptions(str(tmp_path / "pictures"))
    taught = Request(model="timm/test_resnet", teacher="timm/test_resnet", teacher_weights=file, data=data, method="sp")
    advice = "if they were trained at another size, give --image_size, or for the teacher alone --teacher_size"

    def of_sizes(request: Request) -> list[str]:
        return [note for note in set_up(request).notes if "own are for" in note or "were made for" in note]

    assert of_sizes(taught) == [f"teacher: {unsaid}; {advice}"]
    assert of_sizes(replace(taught, teacher_size=200)) == [f"teacher: {unsaid}; it is shown 200 × 200"]
    assert of_sizes(replace(taught, data=replace(data, image_size=160))) == []
    student = replace(taught, teacher=None, teacher_weights=None, method="none", weights=file)
    assert of_sizes(student) == []
    assert of_sizes(replace(student, data=replace(data, image_size=96))) == [f"network: {unsaid}; it is shown 96 × 96"]
    torch.save(timm.create_model("test_vit", num_classes=2, img_size=48).state_dict(), file)
    known = replace(taught, model="wrn-10-1", teacher="timm/test_vit")
    assert (set_up(known).image_size, of_sizes(known)) == (48, [])


def test_a_batch_larger_than_the_data_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a batch of 501 .* 500 images"):
        run(Request(model=tiny, overrides={"batch_size": 501}), tmp_path / "run", CPU, Display())
    assert not (tmp_path / "run").exists()


def test_a_student_from_a_saved_folder_goes_on_training_in_train_mode(teacher: Path, tmp_path: Path) -> None:
    run(Request(model=str(teacher), overrides={"epochs": 1, "lr": 1e-30}), tmp_path / "run", CPU, Display())
    before, after = weights(teacher), weights(tmp_path / "run")
    assert not torch.equal(before["stem.1.running_mean"], after["stem.1.running_mean"])
    assert torch.allclose(before["head.weight"], after["head.weight"])


def test_names_of_networks_and_images_are_not_the_folders_that_a_run_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(model="wrn-10-1", overrides={"epochs": 1})
    for out in ("wrn-10-1", "digits", "third"):
        assert run(request, out, CPU, heard) is not None
        assert run(request, out, CPU, heard, resume=True) is not None
    assert equal(Path("wrn-10-1"), Path("third"))  # and does not begin with what the first has learnt
    assert RunFolder(Path("wrn-10-1")).identity() == RunFolder(Path("third")).identity()
    assert (
        "wrn-10-1 is taken as the architecture, not as the folder of that name; for the folder, write ./wrn-10-1"
        in heard.lines
    )
    assert not input_paths(set_up(request).request)["model"]
    begun = set_up(replace(request, model="./wrn-10-1")).student.network.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in weights(Path("wrn-10-1")).items())
    with pytest.raises(InputError, match=r"random weights.* or a run folder as --teacher, \./wrn-10-1 for the folder"):
        set_up(replace(request, teacher="wrn-10-1", method="sp"))


def test_a_network_whose_spec_is_longer_than_a_path(
    tiny_source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(tiny_source + "\n\ndef make(num_classes, blocks):\n    return Tiny(num_classes)\n")
    spec = f"net.py:make?blocks={[(number, 3) for number in range(60)]}"
    torch.save(set_up(Request(model=spec)).student.network.state_dict(), "w.pt")
    request = Request(model=spec, teacher=spec, teacher_weights="w.pt", method="kd", overrides={"epochs": 1})
    runtime = Runtime(accelerator="cpu", tape="tape")
    out = default_out(request)
    assert run(request, out, runtime, Display()) is not None
    assert run(request, out, runtime, Display(), resume=True) is not None
    other = default_out(replace(request, seed=1))
    assert other != out
    assert max(len(name) for name in (Path(out).name, Path(other).name)) <= 255 - len("-alone")
    distill(replace(request, seed=1), other, CPU, Display(), alone=True)
    assert (Path(f"{other}-alone") / "result.json").is_file()
    with pytest.raises(InputError, match=r"there is no folder net\.py:make"):
        own_data(spec, {})


def test_a_random_teacher_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"random weights.*--teacher_weights"):
        run(Request(model=tiny, teacher=tiny, method="sp"), tmp_path / "run", CPU, Display())
    assert not (tmp_path / "run").exists()


def test_a_method_without_a_teacher_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a teacher"):
        run(Request(model=tiny, method="sp"), tmp_path / "run", CPU, Display())


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (Runtime(accelerator="tpu"), "--accelerator must be one of"),
        (Runtime(accelerator="cpu", devices=2), "--devices 2"),
        (Runtime(accelerator="cpu", max_time="soon"), "--max_time"),
    ],
    ids=["unknown", "devices", "time"],
)
def test_a_device_or_time_that_is_not_there_is_refused(
    tiny: str, tmp_path: Path, runtime: Runtime, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        run(Request(model=tiny), tmp_path / "run", runtime, Display())
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--accelerator cuda cannot be used here"):
        run(Request(model=tiny), tmp_path / "run", Runtime(accelerator="cuda"), Display())


def test_a_result_is_json_whatever_the_logits(tiny_source: str, tmp_path: Path) -> None:
    """The cross-entropy of finite logits can be infinite, which JSON has no word for."""
    loud = "class Loud(Tiny):\n    def forward(self, images):\n        logits = super().forward(images)\n"
    loud += "        return logits if self.training else 3e38 * logits.sign()\n"
    (tmp_path / "loud.py").write_text(f"{tiny_source}\n\n{loud}")
    request = Request(model=f"{tmp_path / 'loud.py'}:Loud", overrides={"epochs": 1})
    result = run(request, tmp_path / "run", CPU, Display())
    assert result is not None
    assert result["test"]["top1_error"] == result["test_error"]
    assert "cross_entropy" not in result["test"]
    assert RunFolder(tmp_path / "run").result() == result


def test_mixed_precision_trains_and_resumes(tiny: str, teacher: Path, tmp_path: Path) -> None:
    request = distillation(tiny, teacher, precision="bf16-mixed", epochs=1)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run(request, straight, CPU, Display()) is not None
    assert run(request, stopped, Runtime("cpu", max_time="0"), Display()) is None
    assert run(request, stopped, CPU, Display(), resume=True) is not None
    assert equal(straight, stopped)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_depthwise_convolutions_stay_in_float32_in_mixed_precision(precision: str, heard: Any, tmp_path: Path) -> None:
    model = "spkd.models.mobilenet_v1:mobilenet_v1?width=0.05"
    request = Request(model=model, overrides={"epochs": 1, "precision": precision})
    assert run(request, tmp_path / "run", Runtime("cpu", max_time="0"), heard) is None
    said = any(line.startswith("student: 13 depthwise convolutions run in float32") for line in heard.lines)
    assert said == (precision == "bf16-mixed")


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_slow_bfloat16_is_warned_of(
    slow: bool, precision: str, tiny: str, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.models.bfloat16.gains_from_bfloat16", lambda device: not slow)
    request = Request(model=tiny, overrides={"epochs": 1, "precision": precision})
    assert run(request, tmp_path / "run", Runtime("cpu", max_time="0"), heard) is None
    warned = any("--precision 32-true will be faster" in line for line in heard.lines)
    assert warned == (slow and precision == "bf16-mixed")


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "distilled"])
def test_a_compiled_run_is_the_run_up_to_rounding(alone: bool, tiny: str, teacher: Path, tmp_path: Path) -> None:
    model = f"{tiny}?dropout=0"  # which a compiler draws otherwise
    request = distillation(model, teacher, epochs=1)
    if alone:
        request = Request(model=model, overrides={"epochs": 1})
    totals = []
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        assert run(request, folder, Runtime(accelerator="cpu", compile=compiled), Display()) is not None
        header, row = (folder / "metrics.csv").read_text().splitlines()
        totals.append(float(row.split(",")[header.split(",").index("train_total")]))
    assert totals[1] == pytest.approx(totals[0], rel=1e-3)
    assert counters["unique_graphs"] == 1  # the smaller batch at the end of the epoch is not compiled for


def test_float16_on_a_cpu_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--precision 16-mixed.*Try"):
        run(Request(model=tiny, overrides={"precision": "16-mixed"}), tmp_path / "run", CPU, Display())
    assert not (tmp_path / "run").exists()


def test_two_runs_at_once_in_one_folder_are_refused(tiny: str, teacher: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder, wait=False), pytest.raises(InputError, match="another process is at work"):
        run(distillation(tiny, teacher), folder, CPU, Display())
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert run(distillation(tiny, teacher), folder, CPU, Display()) is not None
    assert equal(finished, folder)


def test_what_another_process_did_meanwhile_is_not_overwritten(
    tiny: str, teacher: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    @contextlib.contextmanager
    def after_another(path: Path, *, wait: bool) -> Iterator[None]:
        shutil.copytree(finished, folder)
        yield

    monkeypatch.setattr("spkd.training.run.locked", after_another)
    with pytest.raises(InputError, match="already holds a run"):
        run(distillation(tiny, teacher, seed=1), folder, CPU, Display())
    assert (folder / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes()
    assert equal(finished, folder)


def test_a_folder_called_as_weights_are_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef made(num_classes=10, pretrained=False):\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    request = Request(model="net.py:made", weights="pretrained")
    before = set_up(request)
    (tmp_path / "pretrained").mkdir()
    after = set_up(request)
    assert before.config()["weights"] == after.config()["weights"] == "pretrained"
    assert before.identity() == after.identity()


def test_a_test_that_fails_does_not_lose_the_student(
    tiny: str, teacher: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("model: expected finite logits")

    folder, request = tmp_path / "run", distillation(tiny, teacher)
    with monkeypatch.context() as patched:
        patched.setattr("spkd.training.result.evaluate", refuse)
        with pytest.raises(InputError, match="finite logits"):
            run(request, folder, CPU, Display())
    assert not (folder / "result.json").exists()
    assert equal(finished, folder)
    result = run(request, folder, CPU, Display(), resume=True)
    assert result is not None
    assert result["test_error"] == json.loads((finished / "result.json").read_text())["test_error"]


@pytest.mark.parametrize(
    ("method", "overrides", "said"),
    [
        (
            "none",
            {"milestones": (0.5,), "lr_decay": 0.1},
            {"milestones": "schedule cosine", "lr_decay": "schedule cosine"},
        ),
        (
            "kd",
            {"gamma": 3.0, "optimizer": "adamw", "momentum": 0.5},
            {"gamma": "method kd", "momentum": "optimizer adamw"},
        ),
        ("sp", {"alpha": 0.5, "temperature": 2.0}, {"alpha": "method sp", "temperature": "method sp"}),
        ("sp", {"beta": 5.0}, {"beta": "method sp"}),
        ("sp+kd+at", {"gamma": 3.0, "alpha": 0.5, "temperature": 2.0, "beta": 5.0}, {}),
        ("none", {"momentum": 0.5, "schedule": "step", "milestones": (0.5,), "lr_decay": 0.1}, {}),
        ("none", {"milestones": (0.3, 0.6, 0.8), "gamma": 100.0}, {}),  # as the recipe has them
    ],
)
def test_what_is_chosen_to_no_effect_is_said(
    teacher: Path, method: str, overrides: dict[str, Any], said: dict[str, str]
) -> None:
    taught = None if method == "none" else str(teacher)
    notes = set_up(Request(model="wrn-10-1", teacher=taught, method=method, overrides=overrides)).notes
    expected = [f"--{name} has no effect with the {why}" for name, why in said.items()]
    assert [note for note in notes if "has no effect" in note] == expected


@pytest.mark.parametrize(
    ("epochs", "gamma", "said"), [(12, None, True), (50, None, True), (51, None, False), (12, 300.0, False)]
)
def test_a_weight_that_is_for_longer_runs_is_warned_of(
    teacher: Path, epochs: int, gamma: float | None, said: bool
) -> None:
    overrides = {"epochs": epochs, "gamma": gamma}
    taught = Request(model="wrn-10-1", teacher=str(teacher), method="sp", recipe="paper", overrides=overrides)
    for request in (taught, replace(taught, method="sp?layers=last+kd")):
        assert any("is for 200 epochs and may do harm in" in note for note in set_up(request).notes) == said
    others = ({"method": "kd"}, {"recipe": "digits"}, {"method": "kd+sp?layers=last&weight=300"})
    for request in (replace(taught, **other) for other in others):
        assert not any("is for 200 epochs" in note for note in set_up(request).notes)


def test_the_kind_of_device_is_recorded() -> None:
    assert hardware(torch.device("cpu")).endswith(("thread", "threads"))
    assert hardware(torch.device("mps")).endswith(" MPS")


def test_other_layers_are_another_run(tiny: str, teacher: Path) -> None:
    last = set_up(distillation(tiny, teacher))
    other = set_up(replace(distillation(tiny, teacher), taps=("stem=body",)))
    assert (last.config()["taps"], other.config()["taps"]) == (["last"], ["stem=body"])
    assert last.identity() != other.identity()


def test_no_run_is_written_over_what_it_is_made_of(tiny: str, teacher: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(teacher, tmp_path / "run-alone"))
    file, wide = str(own / "student" / "model.safetensors"), f"{tiny}?width=16"
    for option, wanted in (
        ("model", Request(model=str(own))),
        ("student", replace(distillation(tiny, teacher), model=str(own))),
        ("weights", Request(model=wide, weights=file)),
        ("teacher", distillation(tiny, own)),
        ("teacher_weights", replace(distillation(tiny, teacher), teacher=wide, teacher_weights=file)),
    ):
        with pytest.raises(InputError, match=f"--{option} .* overlap, one inside the other"):
            run(wanted, own, CPU, Display(), overwrite=True)
    asked = distillation(tiny, own)
    with pytest.raises(InputError, match=r"--teacher .*run-alone overlap, one inside the other"):
        distill(asked, tmp_path / "run", CPU, Display(), alone=True, overwrite=True)
    assert Path(file).exists()


def test_weights_that_a_student_s_callable_loads_are_part_of_the_run(loading: Request, tmp_path: Path) -> None:
    student = Request(model=str(loading.teacher), weights="pretrained")
    before = set_up(student).identity()
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    torch.save({name: 2 * value if value.dim() > 1 else value for name, value in state.items()}, tmp_path / "best.pt")
    assert set_up(student).identity() != before


def test_a_teacher_can_see_larger_images_than_the_student(tiny: str, teacher: Path, tmp_path: Path) -> None:
    """The same crops; it is asked, and its errors are measured, at its own size."""
    request = replace(distillation(tiny, teacher), teacher_size=16, data=DataOptions(image_size=8))
    setup = set_up(request)
    assert (setup.image_size, setup.teacher_size, setup.student.info.image_size) == (8, 16, 8)
    assert setup.tape_identity()["image_size"] == 16
    assert "the teacher sees the same crops at 16 × 16 pixels" in setup.notes
    alone = alone_request(pinned(request, setup))
    assert (alone.teacher_size, alone.data.image_size) == (None, 8)
    streams = (make_stream(one, torch.device("cpu")) for one in (setup, set_up(alone)))
    for batch, own in zip(*(stream.batches(0) for stream in streams), strict=True):
        assert torch.equal(batch.images, own.images), "the student sees what it sees alone"
        assert own.shown is own.images
        assert torch.equal(to_unit_range(resize((255 * own.images).round().to(torch.uint8), 16)), batch.shown)
    result = run(request, tmp_path / "run", CPU, Display())
    assert result is not None
    assert "agreement" not in {name for name, value in result["test"].items() if value is not None}
    at_16 = evaluate_saved(teacher, DataOptions(image_size=16), split="test", teacher=None, accelerator="cpu")
    assert result["test"]["teacher_error"] == pytest.approx(at_16.top1_error)
    own = evaluate_saved(tmp_path / "run", DataOptions(), split="test", teacher=None, accelerator="cpu")
    assert own.top1_error == pytest.approx(result["test_error"])
    assert own.agreement is None
    played = replace(CPU, tape=str(tmp_path / "tape"), tape_dtype="float32")
    for name in ("recorded", "played"):
        assert run(request, tmp_path / name, played, Display()) is not None
        assert equal(tmp_path / name, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["image_size"], config["teacher_size"]) == (8, 16)
    unsaid = set_up(replace(request, data=DataOptions()))
    assert unsaid.image_size == 8, "the digits' own, and not the teacher's"
    for size, line in ((4, "--teacher_size 4 is less than the student's 8 pixels"), (1, "must be from 2 to 4096")):
        with pytest.raises(InputError, match=line):
            set_up(replace(request, teacher_size=size))
    with pytest.raises(InputError, match="--teacher_size: there is no teacher"):
        Request(model=tiny, teacher_size=16)


OWN_LOSS = """
import torch
from torch import nn
from spkd.losses.base import DistillationLoss

backwards = []


class Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        backwards.append(torch.is_autocast_enabled("cpu"))
        return gradient


class Own(DistillationLoss):
    def remember(self, teacher):
        return teacher.logits

    def forward(self, student, remembered):
        return Watched.apply(student.logits.float()).sub(remembered).square().mean()
"""


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_is_rehearsed_in_the_precision_of_the_steps(
    precision: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a batch that just fits in the memory would be refused. Forwards alone, and never of what the teacher says."""
    seen: dict[str, tuple[bool, torch.dtype]] = {}
    for name in ("check", "remember"):
        really = getattr(Distiller, name)

        def watched(self: Distiller, images: Tensor, *given: Any, name: str = name, really: Any = really) -> Any:
            seen.setdefault(name, (torch.is_autocast_enabled("cpu"), images.dtype))
            return really(self, images, *given)

        monkeypatch.setattr(Distiller, name, watched)
    (tmp_path / "own.py").write_text(OWN_LOSS)
    method = f"{tmp_path}/own.py:Own"
    request = Request(
        model="wrn-10-1", teacher=str(teacher), method=method, overrides={"epochs": 1, "precision": precision}
    )
    run(request, tmp_path / "run", Runtime(accelerator="cpu", max_time="0"), Display())
    is_mixed = precision == "bf16-mixed"
    assert seen["remember"] == (False, torch.float32)
    assert seen["check"] == (is_mixed, torch.bfloat16 if is_mixed else torch.float32)
    backwards = sys.modules[import_object(method).__module__].backwards
    assert len(backwards) >= 2
    assert not any(backwards)
