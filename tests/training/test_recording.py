"""What is played is what the teacher would have said."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import weights
from PIL import Image

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.data.stream import Batch, TrainStream
from spkd.distiller import Distiller
from spkd.errors import InputError, RunFailed
from spkd.losses.objective import Objective, Term
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.models.saved_model import save_classifier
from spkd.training import setup as setting_up
from spkd.training import tape_setup
from spkd.training.identity import tape_identity
from spkd.training.options import Request, Runtime
from spkd.training.playback import Player, said_of_all
from spkd.training.progress import Display
from spkd.training.recipe import Recipe
from spkd.training.recording import record
from spkd.training.run import run
from spkd.training.setup import set_up
from spkd.training.tape import Tape

CPU = Runtime(accelerator="cpu")


def request(tiny: str, teacher: Path, **changed: Any) -> Request:
    overrides = {"epochs": 2, "gamma": 30.0, "beta": 3.0, "teacher_precision": "32-true"}
    fields = {"method": "sp+kd+at", **changed}
    return Request(model=tiny, teacher=str(teacher), overrides={**overrides, **fields.pop("overrides", {})}, **fields)


def trained(wanted: Request, folder: Path, runtime: Runtime = CPU) -> dict[str, Any]:
    result = run(wanted, folder, runtime, Display())
    assert result is not None
    return result


def assert_same_run(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


@pytest.mark.parametrize("options", [{}, {"mixup": 1.0, "draw": "balanced", "turns": True}])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_float32_played_is_live_bit_for_bit(
    tiny: str, teacher: Path, tmp_path: Path, precision: str, options: dict[str, Any]
) -> None:
    wanted = request(tiny, teacher, data=DataOptions(**options), overrides={"precision": precision})
    taped = replace(CPU, tape=str(tmp_path / "tape"), tape_dtype="float32")
    live = trained(wanted, tmp_path / "live")
    trained(wanted, tmp_path / "recorded", taped)
    played = trained(wanted, tmp_path / "played", taped)
    assert_same_run(tmp_path / "live", tmp_path / "recorded")
    assert_same_run(tmp_path / "live", tmp_path / "played")
    assert played["test"]["teacher_error"] == live["test"]["teacher_error"]
    assert played["teacher_val_error"] == live["teacher_val_error"] is not None


def test_images_without_a_label_are_on_the_tape(tiny: str, teacher: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number in range(9):
        Image.new("L", (8, 8), 20 * number).save(more / f"{number}.png")
    few = request(tiny, teacher, data=DataOptions(train_images=40))
    wanted = replace(few, unlabelled=str(more))
    taped = replace(CPU, tape=str(tmp_path / "tape"), tape_dtype="float32")
    trained(wanted, tmp_path / "live")
    trained(wanted, tmp_path / "recorded", taped)
    trained(wanted, tmp_path / "played", taped)
    assert_same_run(tmp_path / "live", tmp_path / "recorded")
    assert_same_run(tmp_path / "live", tmp_path / "played")
    with pytest.raises(InputError, match="recorded of other images without a label"):
        trained(few, tmp_path / "other", taped)
    Image.new("L", (8, 8), 255).save(more / "0.png")
    with pytest.raises(InputError, match="recorded of other images without a label"):
        trained(wanted, tmp_path / "changed", taped)


def test_recording_ahead_first_use_and_playing_give_the_same(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, ahead, used = request(tiny, teacher), tmp_path / "ahead", tmp_path / "used"
    told = record(wanted, ["kd", "sp+kd", "at?weight=5", "none"], ahead, CPU, Display())
    assert told is not None
    assert told["memories"] == ["logits", "similarity of body", "attention of body"]
    trained(wanted, tmp_path / "first", replace(CPU, tape=str(used)))
    monkeypatch.setattr(setting_up, "_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    for name, tape in (("second", used), ("third", ahead)):
        trained(wanted, tmp_path / name, replace(CPU, tape=str(tape)))
        assert_same_run(tmp_path / "first", tmp_path / name)
    again = record(wanted, ["sp"], ahead, CPU, Display())
    assert again is not None
    assert again["steps"] == told["steps"]


def test_another_student_method_and_weight_play_the_same_tape(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taped = replace(CPU, tape=str(tmp_path / "tape"))
    record(request(tiny, teacher), ["sp"], tmp_path / "tape", CPU, Display())
    monkeypatch.setattr(setting_up, "_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    other = request(f"{tiny}?width=6", teacher, method="sp?weight=1", taps=("stem=body",))
    assert trained(other, tmp_path / "other", taped)["compared_layers"] == ["stem=body"]


def test_a_memory_that_is_missing_is_added(tiny: str, teacher: Path, tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    record(request(tiny, teacher), ["kd"], tape, CPU, Display())
    before = (tape / "logits.data").read_bytes()
    trained(request(tiny, teacher, method="sp"), tmp_path / "run", replace(CPU, tape=str(tape)))
    found = Tape.open(tape)
    assert found is not None
    assert list(found.manifest.memories) == ["logits", "similarity of body"]
    assert (tape / "logits.data").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"overrides": {"batch_size": 32}}, "batch_size"),
        ({"overrides": {"teacher_precision": "bf16-true"}}, "teacher_precision"),
    ],
)
def test_another_stream_is_refused(
    tiny: str, teacher: Path, tmp_path: Path, changed: dict[str, Any], field: str
) -> None:
    record(request(tiny, teacher), ["sp"], tmp_path / "tape", CPU, Display())
    with pytest.raises(InputError, match=f"recorded with {field} "):
        run(request(tiny, teacher, **changed), tmp_path / "run", replace(CPU, tape=str(tmp_path / "tape")), Display())
    assert not (tmp_path / "run").exists()


def test_another_teacher_is_refused(tiny: str, teacher: Path, tmp_path: Path) -> None:
    record(request(tiny, teacher), ["sp"], tmp_path / "tape", CPU, Display())
    other = Request(model=f"{tiny}?width=16", overrides={"epochs": 1})
    trained(other, tmp_path / "other")
    with pytest.raises(InputError, match="recorded with other weights or code of the teacher"):
        record(request(tiny, tmp_path / "other"), ["sp"], tmp_path / "tape", CPU, Display())


def test_more_epochs_lengthen_a_tape(tiny: str, teacher: Path, tmp_path: Path) -> None:
    short = record(request(tiny, teacher), ["sp"], tmp_path / "tape", CPU, Display())
    long = record(request(tiny, teacher, overrides={"epochs": 3}), ["sp"], tmp_path / "tape", CPU, Display())
    assert short is not None
    assert long is not None
    assert long["steps"] == 1.5 * short["steps"]
    found = Tape.open(tmp_path / "tape")
    assert found is not None
    assert found.recorded(["similarity of body"], long["steps"]) == long["steps"]


def test_a_damaged_part_is_noticed_and_recorded_again(tiny: str, teacher: Path, tmp_path: Path) -> None:
    wanted, taped = request(tiny, teacher), replace(CPU, tape=str(tmp_path / "tape"))
    trained(wanted, tmp_path / "sound", taped)
    path = tmp_path / "tape" / "similarity-of-body.data"
    content = bytearray(path.read_bytes())
    content[3 * 64 * 64 * 2] ^= 255  # in the fourth step
    path.write_bytes(content)
    with pytest.raises(RunFailed, match=r"is damaged at step .*: to record that part again, repeat the same command"):
        run(wanted, tmp_path / "damaged", taped, Display())
    assert run(wanted, tmp_path / "damaged", taped, Display(), overwrite=True) is not None
    assert_same_run(tmp_path / "sound", tmp_path / "damaged")


def test_recording_ahead_notices_what_is_damaged(tiny: str, teacher: Path, tmp_path: Path, heard: Any) -> None:
    tape = tmp_path / "tape"
    record(request(tiny, teacher), ["kd"], tape, CPU, Display())
    sound = (tape / "logits.data").read_bytes()
    (tape / "logits.data").write_bytes(sound[:1000])
    record(request(tiny, teacher), ["kd"], tape, CPU, heard)
    assert (tape / "logits.data").read_bytes() == sound
    assert any(re.search("tape .*: 16 steps are damaged, and are recorded again", line) for line in heard.lines)


def test_a_tape_among_the_images_is_refused(tiny: str, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    data = DataOptions("pictures", data_root=str(tmp_path))
    wanted = request(tiny, teacher, data=data)
    with pytest.raises(InputError, match=r"--tape .* overlap, one inside the other"):
        run(wanted, tmp_path / "run", replace(CPU, tape=str(tmp_path / "pictures" / "tape")), Display())
    assert list((tmp_path / "pictures").iterdir()) == [tmp_path / "pictures" / "train"]


def test_recording_that_is_stopped_goes_on(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = tmp_path / "tape"
    assert record(request(tiny, teacher), ["sp"], tape, replace(CPU, max_time="0"), Display()) is None
    found = Tape.open(tape)
    assert found is not None
    assert found.recorded(["similarity of body"], 16) == 1
    given: list[tuple[int, int]] = []
    really = TrainStream.batches

    def batches(stream: TrainStream, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in really(stream, epoch, start):
            given.append((epoch, start))
            yield batch

    for name in ("again", "gap"):
        with monkeypatch.context() as patched:
            patched.setattr(TrainStream, "batches", batches)
            assert record(request(tiny, teacher), ["sp"], tape, CPU, Display()) is not None
        steps = [place for place in given if place != (0, 0)]  # with which the teacher is looked at first
        # What is there is not read again: of the first epoch of eight steps all but one, then a step alone.
        assert steps == {"again": [(0, 1)] * 7 + [(1, 0)] * 8, "gap": [(1, 5)]}[name]
        assert found.recorded(["similarity of body"], 16) == 16
        found.forget(8 + 5, ["similarity of body"])
        given.clear()


def test_too_small_a_disk_is_refused_before_anything_is_recorded(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(InputError, match=r"recording needs .* GB, but 0\.0 GB are free"):
        record(request(tiny, teacher), ["sp"], tmp_path / "tape", CPU, Display())
    assert not (tmp_path / "tape").exists()


def test_what_is_on_the_tape_needs_no_room(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape, wanted = tmp_path / "tape", request(tiny, teacher)
    record(wanted, ["kd"], tape, CPU, Display())
    needed = 16 * 64 * 64 * 2  # float16 similarities of 16 batches; 16 × 64 × 10 × 2 bytes of logits are there
    free = needed - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())
    with pytest.raises(InputError, match="recording needs"):
        record(wanted, ["kd+sp"], tape, CPU, Display())
    free = needed
    assert record(wanted, ["kd+sp"], tape, CPU, Display()) is not None


@pytest.mark.usefixtures("keeps_room")
def test_two_tapes_side_by_side_do_not_count_on_the_same_room(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks at what is free before either has recorded anything, and has room from its beginning."""
    tape, wanted = tmp_path / "tape", request(tiny, teacher)
    assert record(wanted, ["sp"], tape, replace(CPU, max_time="0"), Display()) is None
    data = tape / "similarity-of-body.data"
    assert data.stat().st_blocks * 512 >= 16 * 64 * 64 * 2
    # What it has room for is free no longer, and needed no longer.
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0})())
    assert record(wanted, ["sp"], tape, CPU, Display()) is not None
    assert data.stat().st_size == 16 * 64 * 64 * 2


def test_a_disk_that_fills_up_while_a_tape_is_begun_leaves_none(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_little(path: Path, size: int) -> None:
        path.touch()
        raise OSError(28, "no space left on the device")

    tape, wanted = tmp_path / "tape", request(tiny, teacher)
    line = r"recording needs .* GB, but .* GB are free there \(no space left on the device\); give a folder on a larger"
    with monkeypatch.context() as full:
        full.setattr("spkd.training.tape.reserve", too_little)
        with pytest.raises(InputError, match=line):
            record(wanted, ["sp"], tape, CPU, Display())
    assert Tape.open(tape) is None
    assert record(wanted, ["sp"], tape, CPU, Display()) is not None
    before = {path.name: path.read_bytes() for path in tape.iterdir()}
    monkeypatch.setattr("spkd.training.tape.reserve", too_little)
    with pytest.raises(InputError, match=line):
        record(wanted, ["sp+kd"], tape, CPU, Display())
    assert {path.name: path.read_bytes() for path in tape.iterdir()} == before


def test_a_tape_whose_file_is_a_link_is_told_so_and_stays(tiny: str, teacher: Path, tmp_path: Path) -> None:
    tape, wanted = tmp_path / "tape", request(tiny, teacher)
    assert record(wanted, ["kd"], tape, CPU, Display()) is not None
    (tape / "logits.data").rename(tmp_path / "mine")
    (tape / "logits.data").symlink_to(tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in tape.iterdir()}
    with pytest.raises(InputError, match=r"^cannot write .*logits\.data: it is a link; put the file itself there$"):
        record(wanted, ["sp+kd"], tape, CPU, Display())
    assert {path.name: path.read_bytes() for path in tape.iterdir()} == before


OWN = """
from spkd import DistillationLoss


class Sum(DistillationLoss):
    def remember(self, teacher):
        return teacher.logits.sum(1)

    def forward(self, student, remembered):
        return (student.logits.sum(1) - remembered).square().mean()
"""


def test_an_own_loss_is_recorded_and_a_changed_one_is_another_memory(tiny: str, teacher: Path, tmp_path: Path) -> None:
    own, tape = tmp_path / "own.py", tmp_path / "tape"
    own.write_text(OWN)
    wanted = request(tiny, teacher, method=f"{own}:Sum?weight=0.1")
    record(wanted, [wanted.method], tape, CPU, Display())
    record(wanted, [wanted.method.replace("0.1", "0.2")], tape, CPU, Display())
    own.write_text(OWN.replace("teacher.logits.sum(1)", "teacher.logits.sum(1) + 1"))
    record(wanted, [wanted.method], tape, CPU, Display())
    names = list(json.loads((tape / "tape.json").read_text())["memories"])
    assert len(names) == 2
    assert all(name.startswith("Sum ") for name in names)


PRODUCT = """
from spkd.losses.base import DistillationLoss


class Product(DistillationLoss):
    def remember(self, teacher):
        return teacher.logits

    def forward(self, student, remembered):
        return (student.logits @ remembered.T).square().mean()
"""


def test_an_own_loss_gets_float32_from_a_tape_of_float16_too(tiny: str, teacher: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(PRODUCT)
    wanted = request(tiny, teacher, method=f"{own}:Product?weight=1e-5")
    trained(wanted, tmp_path / "live")
    taped = replace(CPU, tape=str(tmp_path / "tape"))
    assert Tape.open(tmp_path / "tape") is None
    for name in ("recorded", "played"):
        trained(wanted, tmp_path / name, taped)
    assert_same_run(tmp_path / "recorded", tmp_path / "played")
    losses = [(tmp_path / name / "metrics.csv").read_text().splitlines()[1] for name in ("live", "played")]
    live, played = ([float(value) for value in row.split(",")] for row in losses)
    assert played == pytest.approx(live, rel=0.02)


def test_a_tape_without_a_teacher_is_refused(tiny: str, tmp_path: Path) -> None:
    alone = Request(model=tiny, overrides={"epochs": 1})
    with pytest.raises(InputError, match="--tape records what a teacher says: give --teacher"):
        run(alone, tmp_path / "run", replace(CPU, tape=str(tmp_path / "tape")), Display())


def test_two_recorders_of_unlike_streams_do_not_share_a_folder(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins between the first one's look at the folder and its first write."""
    tape, first = tmp_path / "tape", tape_setup.check_room

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(tape_setup, "check_room", first)
        record(request(tiny, teacher, seed=1), ["sp"], tape, CPU, Display())
        first(*arguments)

    monkeypatch.setattr(tape_setup, "check_room", interrupted)
    with pytest.raises(InputError, match="recorded with seed 1, this run has 0"):
        record(request(tiny, teacher), ["sp"], tape, CPU, Display())


RANDOM = """
import torch

from spkd import DistillationLoss


class Projected(DistillationLoss):
    mean_over_images = True

    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.randn(10, 3))

    def remember(self, teacher):
        return teacher.logits @ self.directions

    def forward(self, student, remembered):
        return (student.logits @ self.directions - remembered).square().mean()
"""


def test_an_own_loss_with_random_numbers_plays_what_it_recorded(tiny: str, teacher: Path, tmp_path: Path) -> None:
    own, taped = tmp_path / "own.py", replace(CPU, tape=str(tmp_path / "tape"), tape_dtype="float32")
    own.write_text(RANDOM)
    wanted = request(tiny, teacher, method=f"{own}:Projected?weight=0.01")
    trained(wanted, tmp_path / "live")
    trained(wanted, tmp_path / "recorded", taped)
    trained(wanted, tmp_path / "played", taped)
    assert_same_run(tmp_path / "live", tmp_path / "recorded")
    assert_same_run(tmp_path / "live", tmp_path / "played")


def test_random_numbers_of_a_loss_do_not_depend_on_other_terms(tiny: str, teacher: Path, tmp_path: Path) -> None:
    """A comparison's tape is recorded with all its methods' terms, and each student has some of them."""
    one, other, tape = tmp_path / "one.py", tmp_path / "other.py", tmp_path / "tape"
    one.write_text(RANDOM)
    other.write_text(RANDOM.replace("Projected", "Other"))
    methods = [f"{one}:Projected?weight=0.01", f"{other}:Other?weight=0.01"]
    record(request(tiny, teacher, method=methods[0]), methods, tape, replace(CPU, tape_dtype="float32"), Display())
    for method in methods:
        wanted, name = request(tiny, teacher, method=method), method.partition(":")[2]
        trained(wanted, tmp_path / f"live {name}")
        trained(wanted, tmp_path / f"played {name}", replace(CPU, tape=str(tape)))
        assert_same_run(tmp_path / f"live {name}", tmp_path / f"played {name}")
    first, second = (
        next(iter(set_up(request(tiny, teacher, method=method, seed=seed)).objective.terms)).loss.directions
        for method, seed in ((methods[0], 0), (methods[0], 1))
    )
    assert not torch.equal(first, second)


def test_of_a_tape_that_is_widened_what_is_there_stays(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taped = replace(CPU, tape=str(tmp_path / "tape"), tape_dtype="float32")
    trained(request(tiny, teacher, method="sp"), tmp_path / "first", taped)
    written: set[str] = set()
    write = Tape.write

    def watched(self: Tape, step: int, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        written.update(values)
        return write(self, step, values)

    monkeypatch.setattr(Tape, "write", watched)
    trained(request(tiny, teacher, method="sp+kd"), tmp_path / "wider", taped)
    assert written == {"logits"}


FLAT = """
from torch import nn
from torch.nn import functional as F


class Flat(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(in_channels, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        first = F.relu(self.norm1(self.conv1(images)))
        return self.head(F.relu(self.norm2(self.conv2(first))).mean((2, 3)))
"""


def test_a_teacher_whose_last_norm_is_folded_away_is_not_loaded_again(tiny: str, tmp_path: Path) -> None:
    code = tmp_path / "flat.py"
    code.write_text(FLAT)
    save_classifier(set_up(Request(model=f"{code}:Flat")).student, tmp_path / "flat")
    taped = replace(CPU, tape=str(tmp_path / "tape"))
    wanted = request(tiny, tmp_path / "flat", method="sp")
    first = trained(wanted, tmp_path / "first", taped)
    assert first["compared_layers"] == ["body=norm2"]
    assert set_up(replace(wanted, seed=0), taped).teacher is None
    assert trained(wanted, tmp_path / "second", taped)["compared_layers"] == first["compared_layers"]


def test_an_own_loss_sees_a_bfloat16_teacher_in_float32(tiny: str, teacher: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(RANDOM)
    method, overrides = f"{own}:Projected?weight=0.01", {"teacher_precision": "bf16-true"}
    result = trained(request(tiny, teacher, method=method, overrides=overrides), tmp_path / "run")
    assert result["teacher_precision"] == "bf16-true"


def test_what_decides_the_teacher_s_words_is_in_the_identity(tiny: str, teacher: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(teacher, tmp_path / "teacher")
    wanted = request(tiny, teacher, method="sp")
    own = set_up(wanted).tape_identity()
    changed = {
        "images": replace(wanted, data=replace(wanted.data, train_images=400)),
        "image_size": replace(wanted, data=replace(wanted.data, image_size=12)),
        "batch_size": replace(wanted, overrides={**wanted.overrides, "batch_size": 32}),
        "seed": replace(wanted, seed=1),
        "mixup": replace(wanted, data=replace(wanted.data, mixup=1.0)),
        "turns": replace(wanted, data=replace(wanted.data, turns=True)),
        "draw": replace(wanted, data=replace(wanted.data, draw="sqrt")),
    }
    for field, other in changed.items():
        theirs = set_up(other).tape_identity()
        assert {name for name in own | theirs if theirs.get(name) != own.get(name)} == {field}
    assert "reflect pad" in own["augmentation"]
    description = teacher / "student" / "model.json"
    normalisation = {"mean": [0.4], "std": [0.2]}
    description.write_text(json.dumps({**json.loads(description.read_text()), "normalisation": normalisation}))
    assert set_up(wanted).tape_identity()["teacher_files"] != own["teacher_files"]


def test_a_tape_of_mirrored_images_is_none_of_images_as_they_are(tmp_path: Path) -> None:
    for number in range(24):
        place = tmp_path / "pictures" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(place / f"{number}.png")
    data = DataOptions(str(tmp_path / "pictures"))
    save_classifier(set_up(Request(model="wrn-10-1", data=data)).student, tmp_path / "teacher")
    mirrored = request("wrn-10-1", tmp_path / "teacher", method="kd", data=data, overrides={"batch_size": 4})
    plain = replace(mirrored, data=replace(data, no_flip=True))
    one, other = (set_up(wanted).tape_identity() for wanted in (mirrored, plain))
    assert {name for name in one | other if one.get(name) != other.get(name)} == {"augmentation"}
    record(mirrored, ["kd"], tmp_path / "tape", CPU, Display())
    with pytest.raises(InputError, match="recorded with augmentation "):
        run(plain, tmp_path / "run", replace(CPU, tape=str(tmp_path / "tape")), Display())


def photographs(folder: Path) -> DataOptions:
    """Return images in files too large to be kept in memory, and leave a teacher of them in ``folder / "teacher"``."""
    for number in range(24):
        place = folder / "pictures" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (110, 100), (10 * number, 0, 0)).save(place / f"{number}.png")
    data = DataOptions(str(folder / "pictures"), image_size=8)
    save_classifier(set_up(Request(model="wrn-10-1", data=data)).student, folder / "teacher")
    return data


def test_a_tape_of_images_in_colour_is_none_of_grey_ones(tmp_path: Path) -> None:
    data = photographs(tmp_path)
    colour = request("wrn-10-1", tmp_path / "teacher", method="sp", data=data, overrides={"batch_size": 4})
    grey = replace(colour, data=replace(data, grey=True))
    one, other = (set_up(wanted).tape_identity() for wanted in (colour, grey))
    assert {name for name in one | other if one.get(name) != other.get(name)} == {"channels"}


def test_a_teacher_s_error_in_another_view_is_not_taken_from_a_tape(tmp_path: Path) -> None:
    data = photographs(tmp_path)
    centre = request("wrn-10-1", tmp_path / "teacher", method="kd", data=data, overrides={"batch_size": 4})
    whole = replace(centre, data=replace(data, view="whole"))
    taped = replace(CPU, tape=str(tmp_path / "tape"))
    live = trained(centre, tmp_path / "live", taped)
    played, other = (trained(one, tmp_path / name, taped) for one, name in ((centre, "played"), (whole, "whole")))
    assert played["teacher_val_error"] == live["teacher_val_error"] is not None
    assert other.get("teacher_val_error") is None
    assert "teacher_error" not in other["test"]


def test_a_teacher_s_errors_are_not_measured_twice(tiny: str, teacher: Path, tmp_path: Path) -> None:
    taped = replace(CPU, tape=str(tmp_path / "tape"))
    first = trained(request(tiny, teacher), tmp_path / "first", taped)
    described = json.loads((tmp_path / "tape" / "tape.json").read_text())
    assert described["teacher"]["teacher_val_error"] == first["teacher_val_error"]
    assert described["teacher"]["teacher_test_balanced_error"] == first["test"]["teacher_balanced_error"] > 0
    described["teacher"] |= {"teacher_val_error": 12.5, "teacher_test_error": 25.0}
    described["teacher"] |= {"teacher_val_balanced_error": 15.0, "teacher_test_balanced_error": 30.0}
    (tmp_path / "tape" / "tape.json").write_text(json.dumps(described))
    # By another method, for which the teacher is asked.
    other = trained(request(tiny, teacher, method="kd"), tmp_path / "other", taped)
    assert (other["teacher_val_error"], other["test"]["teacher_error"]) == (12.5, 25.0)
    assert (other["teacher_val_balanced_error"], other["test"]["teacher_balanced_error"]) == (15.0, 30.0)
    for split in ("val", "test"):  # as of a version that did not measure it
        del described["teacher"][f"teacher_{split}_balanced_error"]
    (tmp_path / "tape" / "tape.json").write_text(json.dumps(described))
    again = trained(request(tiny, teacher, method="sp"), tmp_path / "again", taped)
    assert (again["teacher_val_error"], again["test"]["teacher_error"]) == (12.5, 25.0)
    assert again["teacher_val_balanced_error"] is again["test"]["teacher_balanced_error"] is None


def test_of_several_processes_all_ask_the_teacher_or_none(tiny: str, teacher: Path, tmp_path: Path) -> None:
    """One that asked alone would wait for the others."""
    (tmp_path / "own.py").write_text(OWN)
    wanted = request(tiny, teacher, method=f"kd+{tmp_path}/own.py:Sum?weight=0.1")
    record(wanted, [wanted.method], tmp_path / "tape", CPU, Display())
    path = tmp_path / "tape" / "logits.data"
    sound = path.read_bytes()
    path.write_bytes(bytes([sound[0] ^ 255]) + sound[1:-1000])
    setup, tape = set_up(wanted), Tape.open(tmp_path / "tape")
    assert tape is not None
    assert setup.teacher is not None
    distiller = Distiller(setup.student, setup.teacher, setup.objective)
    there = tape.is_recorded(setup.objective.memories, 16)
    player, asked = Player(tape, setup.objective, distiller, torch.device("cpu"), (1, 2), there), []
    setup.teacher.register_forward_pre_hook(lambda *_: asked.append(True))
    with pytest.raises(RunFailed, match=r"is damaged at step 1: to record that part again, repeat the same command"):
        player(0, torch.rand(32, 1, 8, 8))
    assert tape.is_recorded(setup.objective.memories, 16).tolist() == [False, *[True] * 14, False], "all are marked"
    for recorded in (True, False):
        there[1] = recorded  # when the first one looked
        said = player(1, torch.rand(32, 1, 8, 8))
        assert {name: tuple(value.shape) for name, value in said.items()} == {"kd": (32, 10), "Sum": (64,)}
        assert bool(asked) is not recorded


def test_what_is_recorded_is_said_of_the_images_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    division = SimpleNamespace(rank=1, sizes=(2, 1), gather_any=lambda own: torch.cat([torch.zeros(2, 10), own]))
    monkeypatch.setattr("spkd.training.playback.divide", lambda *_: division)
    rows, whole = SoftTargetLoss(), SoftTargetLoss()
    whole.mean_over_images = False
    objective = Objective([Term("rows", 1.0, rows, "rows"), Term("whole", 1.0, whole, "whole")])
    own = {"rows": torch.ones(1, 10), "whole": torch.ones(3, 10)}
    distiller: Any = SimpleNamespace(remember=lambda images: own)
    said = said_of_all(distiller, objective, torch.rand(1, 1, 8, 8))
    assert said["rows"].mean(1).tolist() == [0.0, 0.0, 1.0]
    assert said["whole"] is own["whole"]
    own["rows"] = torch.ones(10)
    with pytest.raises(InputError, match=r"'rows' remembers a tensor of shape \(10,\) of 1 images; .* a row of each$"):
        said_of_all(distiller, objective, torch.rand(1, 1, 8, 8))


def test_other_weights_of_a_library_are_another_teacher() -> None:
    data, own = load_data(DataOptions()), Request(model="wrn-10-1", teacher="torchvision/resnet50", method="kd")
    first, second = (
        tape_identity(replace(own, teacher_weights=f"IMAGENET1K_V{number}"), data, 32, Recipe()) for number in (1, 2)
    )
    assert {name for name in first if first[name] != second[name]} == {"teacher_weights"}
