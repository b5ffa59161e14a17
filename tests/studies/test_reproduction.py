"""Records survive the way to disk and back, and what is unfinished stays so."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spkd.errors import InputError
from spkd.studies import reproduction
from spkd.studies.measure import activations
from spkd.studies.options import RunnerOptions
from spkd.studies.reproduction import load_reproduction, reproduce, save_records
from spkd.studies.scales import ReproduceOptions
from spkd.studies.state import StudyState
from spkd.studies.tasks import Measurement, Recording, Task
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.run_folder import RunFolder

REQUEST = Request(model="wrn-16-1")
RESULT = {
    "test_error": 8.25,
    "val_error": 8.0,
    "best_epoch": 3,
    "epochs": 4,
    "parameters": 175066,
    "model": "wrn-16-1",
    "data": "cifar10",
    "images": {"train": 45000, "val": 5000, "test": 10000},
    "training_seconds": 12.5,
    "images_per_second": 1000.5,
    "hardware": "two cores",
    "software": {"spkd": "0.1.0", "torch": "2.14"},
    "identity": "abc",
}


def labels(**given: object) -> dict[str, object]:
    return {**dict.fromkeys(("row", "student", "teacher", "method", "setting", "seed")), **given}


TASKS = [
    Task("none/wrn-16-1/seed-0", REQUEST, labels=labels(student="wrn-16-1", method="none", seed=0)),
    Task("recordings/t/seed-0", Recording((REQUEST,), ("sp",)), labels=labels(teacher="t", seed=0)),
    Task("sp/a, b/seed-0", REQUEST, labels=labels(row="a, b", student="wrn-16-1", method="sp", setting=10.0, seed=0)),
    Task("sp/c/seed-0", REQUEST, labels=labels(row="c", student="wrn-16-1", method="sp", setting=20.0, seed=0)),
    Task("measurements/m", Measurement(activations, {}), labels={"student": "wrn-16-1"}),
]
STATE = StudyState(
    results={"none/wrn-16-1/seed-0": RESULT, "sp/a, b/seed-0": RESULT, "recordings/t/seed-0": {}},
    failed={"sp/c/seed-0": "the disk is full"},
    missing=("measurements/m",),
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    save_records("gamma", ReproduceOptions(scale="small"), TASKS, STATE, tmp_path, "spkd reproduce gamma")
    return tmp_path


def test_there_and_back(study: Path) -> None:
    loaded = load_reproduction("gamma", study)
    assert (loaded.experiment, loaded.scale, loaded.command) == ("gamma", "small", "spkd reproduce gamma")
    assert [record.task for record in loaded.records] == ["none/wrn-16-1/seed-0", "sp/a, b/seed-0"]
    record = loaded.records[1]
    assert (record.row, record.setting, record.seed, record.teacher) == ("a, b", "10.0", 0, "")
    assert (record.test_error, record.seconds, record.train_images) == (8.25, 12.5, 45000)
    assert record.software == "spkd=0.1.0 torch=2.14"
    assert (record.val_error, record.best_epoch, record.epochs, record.parameters) == (8.0, 3, 4, 175066)
    assert (record.val_images, record.test_images) == (5000, 10000)
    assert (record.images_per_second, record.hardware, record.identity) == (1000.5, "two cores", "abc")
    assert [task.state for task in loaded.tasks] == ["done", "done", "done", "failed", "missing"]
    assert [task.kind for task in loaded.tasks] == ["training", "recording", "training", "training", "measurement"]
    assert loaded.tasks[3].reason == "the disk is full"
    assert loaded.tasks[2].labels["setting"] == 10.0
    assert loaded.measured() == {}


def test_the_csv_is_tidy(study: Path) -> None:
    with (study / "gamma" / "records.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    assert {line["experiment"] for line in lines} == {"gamma"}
    assert None not in lines[0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("reproduction.json", "{}", "cannot be read"),
        ("reproduction.json", "{", "is it damaged"),
        ("records.csv", "experiment\ngamma\n", "cannot be read"),
        ("records.csv", None, "cannot be read"),
        ("reproduction.json", None, "no records to draw from"),
    ],
)
def test_damaged_records_are_one_line(study: Path, file: str, text: str | None, message: str) -> None:
    if text is None:
        (study / "gamma" / file).unlink()
    else:
        (study / "gamma" / file).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_reproduction("gamma", study)
    assert "\n" not in str(caught.value)
    assert str(study) in str(caught.value)


def test_a_record_of_a_later_version_is_refused_not_misread(study: Path) -> None:
    content = json.loads((study / "gamma" / "reproduction.json").read_text())
    content["tasks"][0]["colour"] = "red"
    (study / "gamma" / "reproduction.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="run the experiment again"):
        load_reproduction("gamma", study)


FLOAT32 = ["this processor is no faster in bfloat16: networks are trained in float32, not in bf16-mixed"]


@pytest.mark.parametrize(
    ("accelerator", "ray", "gpus", "begun", "said"),
    [
        ("auto", None, False, None, FLOAT32),
        ("auto", "auto", True, None, []),
        ("cuda", "auto", True, None, []),
        ("cpu", "auto", True, None, FLOAT32),
        ("auto", "auto", False, None, FLOAT32),
        ("auto", None, False, "bf16-mixed", []),
        ("cuda", "auto", True, "32-true", ["those in {study} were begun so{rest}"]),
    ],
)
def test_the_precision_is_that_of_what_has_begun_or_of_the_devices_that_train(
    accelerator: str,
    ray: str | None,
    gpus: bool,
    begun: str | None,
    said: list[str],
    heard: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calling machine is a processor that gains nothing from bfloat16."""

    def planned(*_: object, bfloat16: bool = True) -> list[Task]:
        precision = "bf16-mixed" if bfloat16 else "32-true"
        requests = [Request(model="wrn-16-1", seed=seed, overrides={"precision": precision}) for seed in range(2)]
        return [Task(f"seed-{request.seed}", request) for request in requests]

    trained: list[object] = []

    def run(tasks: Sequence[Task], *_: object) -> StudyState:
        trained.extend(task.work.overrides["precision"] for task in tasks if isinstance(task.work, Request))
        return StudyState({}, {}, ())

    monkeypatch.setattr(reproduction, "plan", planned)
    monkeypatch.setattr(reproduction, "run_study", run)
    monkeypatch.setattr(reproduction, "is_slow_in_bfloat16", lambda _: True)
    monkeypatch.setattr("spkd.studies.cluster.has_gpus", lambda _: gpus)
    if begun is not None:
        RunFolder(tmp_path / "seed-1").begin({"precision": begun}, "", overwrite=False)
    runner, runtime = RunnerOptions(ray=ray), Runtime(accelerator=accelerator)
    reproduce(
        "gamma", ReproduceOptions(), tmp_path, runner=runner, runtime=runtime, display=heard, command="spkd reproduce"
    )
    rest = FLOAT32[0].partition("bfloat16")[2]
    assert heard.lines == [line.format(study=tmp_path, rest=rest) for line in said]
    assert trained == ["32-true" if said else "bf16-mixed"] * 2


def test_what_earlier_calls_have_finished_stays_in_the_records(study: Path) -> None:
    first, last = TASKS[0], TASKS[3]
    state = StudyState(results={first.name: {**RESULT, "test_error": 7.0}, last.name: RESULT}, failed={}, missing=())
    save_records("gamma", ReproduceOptions(scale="small"), [last, first], state, study, "spkd reproduce gamma --only c")
    loaded = load_reproduction("gamma", study)
    assert [(record.task, record.test_error) for record in loaded.records] == [
        ("none/wrn-16-1/seed-0", 7.0),
        ("sp/a, b/seed-0", 8.25),
        ("sp/c/seed-0", 8.25),
    ]
    assert [(task.name, task.state) for task in loaded.tasks] == [
        ("none/wrn-16-1/seed-0", "done"),
        ("recordings/t/seed-0", "done"),
        ("sp/a, b/seed-0", "done"),
        ("sp/c/seed-0", "done"),
    ]


def test_a_folder_has_one_scale(study: Path) -> None:
    with pytest.raises(InputError, match=r"holds gamma at the scale small, not smoke: give another --out$"):
        reproduce(
            "similarity",
            ReproduceOptions(scale="smoke"),
            study,
            runner=RunnerOptions(),
            runtime=Runtime(accelerator="cpu"),
            display=Display(),
            command="",
        )
    assert [path.name for path in study.iterdir()] == ["gamma"]
