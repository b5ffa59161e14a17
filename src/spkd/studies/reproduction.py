"""One of the paper's experiments, run, and what is kept of it: records from which all tables and figures are drawn.

Several experiments may share a study's folder, and with it the networks that they have in common. What belongs to
one experiment lies in the folder of its name in there: ``records.csv``, a line for each finished training, and
``reproduction.json``, what was asked for and where each task stands. With the study's ``measurements`` they are all
that a report needs.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from spkd.errors import InputError, nearest
from spkd.files import csv_text, read_json, write_json_atomically, write_text_atomically
from spkd.models.bfloat16 import is_slow_in_bfloat16
from spkd.studies.building import unique
from spkd.studies.experiments import EXPERIMENTS, Experiment, Setting
from spkd.studies.options import RunnerOptions
from spkd.studies.runner import run_study
from spkd.studies.scales import SCALES, ReproduceOptions, ScaleName, in_float32
from spkd.studies.state import StudyState
from spkd.studies.tasks import Label, Task
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.run_folder import RunFolder

PLAN, RECORDS = "reproduction.json", "records.csv"


@dataclass(frozen=True)
class Record:
    """One finished training, as a line of ``records.csv``; errors are in percent."""

    experiment: str
    scale: str
    task: str
    row: str
    student: str
    teacher: str
    method: str
    setting: str
    seed: int
    test_error: float
    val_error: float
    best_epoch: int
    epochs: int
    parameters: int
    model: str
    data: str
    train_images: int
    val_images: int
    test_images: int
    image_size: int
    seconds: float
    images_per_second: float
    hardware: str
    software: str
    command: str
    identity: str


@dataclass(frozen=True)
class PlannedTask:
    """A task of the plan and where it stands: done, failed or missing."""

    name: str
    kind: str
    labels: Mapping[str, Label]
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Reproduction:
    """All that a report of an experiment is drawn from.

    Attributes:
        experiment: its name.
        scale: its size.
        command: the command line that made it.
        tasks: the plan, in the order of the rows.
        records: of the trainings that have finished.
        study: the folder in which the measurements lie.
    """

    experiment: str
    scale: str
    command: str
    tasks: tuple[PlannedTask, ...]
    records: tuple[Record, ...]
    study: Path

    @property
    def folder(self) -> Path:
        """What belongs to the experiment alone."""
        return self.study / self.experiment

    def measured(self) -> dict[str, tuple[dict[str, Any], Path]]:
        """Return what each finished measurement found, and the folder of its arrays, by its name."""
        done = [task.name for task in self.tasks if task.kind == "measurement" and task.state == "done"]
        return {name: (_read_json(self.study / name / "result.json"), self.study / name) for name in done}


def experiment_named(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        InputError: for an unknown name, with the nearest ones.
    """
    if name not in EXPERIMENTS:
        raise InputError(
            f"unknown experiment {name!r}: there are {', '.join(EXPERIMENTS)}.{nearest(name, EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]


def plan(name: str, options: ReproduceOptions, study: Path, *, bfloat16: bool = True) -> list[Task]:
    """Return the tasks of an experiment, each once, in the order in which they are best begun.

    At the smoke scale the made-up images are written into ``study``. Without ``bfloat16`` all is in float32.

    Raises:
        InputError: for an unknown experiment or row, for images or weights that are not there, and for options that
            do not go together.
    """
    experiment, scale = experiment_named(name), SCALES[options.scale]
    if not bfloat16:
        scale = in_float32(scale)
    if scale.name == "smoke" and (options.data_root or options.weights_root):
        raise InputError("--scale smoke makes its own images: leave out --data_root and --weights_root")
    seeds = options.seeds if options.seeds is not None else _usual_seeds(name, options.scale)
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    rows = experiment.rows(
        Setting(study.resolve(), scale, seeds, options.data_root, options.weights_root, options.only)
    )
    if unknown := [row for row in options.only if row not in rows]:
        raise InputError(
            f"--only: {name} has no row {unknown[0]!r}; there are {', '.join(rows)}.{nearest(unknown[0], rows)}"
        )
    chosen = [task for row, tasks in rows.items() if row in (options.only or rows) for task in tasks]
    # One seed of every row before the next, so that a study that is stopped early shows something of each.
    return sorted(unique(chosen), key=lambda task: int(task.labels.get("seed") or 0))


def reproduce(
    name: str,
    options: ReproduceOptions,
    study: Path,
    *,
    runner: RunnerOptions,
    runtime: Runtime,
    display: Display,
    command: str,
) -> StudyState:
    """Run what is not finished of an experiment in the folder ``study``, and write its records.

    Raises:
        InputError: as :func:`plan` and :func:`spkd.studies.runner.run_study`, where records would be lost, and where
            the folder holds another scale.
    """
    _refuse_other_scale(options.scale, study)
    _refuse_lost(name, study)
    tasks = plan(name, options, study)
    if why := _why_float32(tasks, study, runner, runtime):
        display.say(f"{why}: networks are trained in float32, not in bf16-mixed")
        tasks = plan(name, options, study, bfloat16=False)
    state = run_study(tasks, study, runner, runtime, display)
    save_records(name, options, tasks, state, study, command)
    return state


def _refuse_other_scale(scale: ScaleName, study: Path) -> None:
    """Refuse a folder that holds an experiment at another scale, whose networks have the same names.

    Raises:
        InputError: for such a folder.
    """
    for name in EXPERIMENTS:
        try:
            found = load_reproduction(name, study).scale
        except InputError:  # there is none, or a damaged one
            continue
        if found != scale:
            raise InputError(f"{study} holds {name} at the scale {found}, not {scale}: give another --out")


def _refuse_lost(name: str, study: Path) -> None:
    """Refuse a folder whose records are all that is left of trainings: a run would begin those anew and write over it.

    Raises:
        InputError: for such a folder.
    """
    try:
        records = load_reproduction(name, study).records
    except InputError:  # there are none yet, or damaged ones, which running again mends
        return
    if lost := [study / record.task for record in records if not (study / record.task).is_dir()]:
        raise InputError(
            f"{study / name} holds records of trainings whose folders are gone ({len(lost)} of {len(records)}, such as "
            f"{lost[0]}): draw them with --redraw, or give another --out; to train again here, remove its {RECORDS}"
        )


def _why_float32(tasks: Sequence[Task], study: Path, runner: RunnerOptions, runtime: Runtime) -> str:
    """Return why what is planned in bf16-mixed is to be trained in float32; nothing where it is not, or none is.

    What has begun decides, so that all are of one kind on whichever machine they go on.
    """
    trainings = [(task.folder(study), task.work) for task in tasks if isinstance(task.work, Request)]
    mixed = [folder for folder, request in trainings if request.overrides.get("precision") == "bf16-mixed"]
    configs = (RunFolder(folder).config() for folder in mixed)
    begun = next((config for config in configs if config is not None), None)
    if begun is not None:
        return f"those in {study} were begun so" if begun.get("precision") == "32-true" else ""
    if not mixed or not _slow_in_bfloat16(runner, runtime):
        return ""
    return "this processor is no faster in bfloat16"


def _slow_in_bfloat16(runner: RunnerOptions, runtime: Runtime) -> bool:
    """Return whether bfloat16 gains nothing where networks train; processors of a cluster are taken to be like this."""
    if runner.ray is None:
        return is_slow_in_bfloat16(runtime.accelerator)
    from spkd.studies.cluster import has_gpus

    on_gpus = runtime.accelerator != "cpu" and has_gpus(runner.ray)
    return not on_gpus and is_slow_in_bfloat16("cpu")


def _usual_seeds(name: str, scale: ScaleName) -> int:
    if name == "transfer" and scale == "paper":
        return 10
    return SCALES[scale].seeds


def save_records(
    name: str, options: ReproduceOptions, tasks: Sequence[Task], state: StudyState, study: Path, command: str
) -> None:
    """Write ``records.csv`` and ``reproduction.json`` into the experiment's folder in that of a study.

    What earlier calls have finished, of other rows or more seeds, stays in them.

    Raises:
        InputError: when they cannot be written.
    """
    kept, others, places = _others_finished(name, study, {task.name for task in tasks})
    records = [
        _record(name, options.scale, task, task.work, state.results[task.name], study, command)
        for task in tasks
        if isinstance(task.work, Request) and task.name in state.results
    ]
    records = sorted([*records, *others], key=lambda record: places.get(record.task, len(places)))
    planned = sorted(
        [*(_planned(task, state) for task in tasks), *kept], key=lambda task: places.get(task.name, len(places))
    )
    lines = [[field.name for field in fields(Record)], *map(dataclasses.astuple, records)]
    write_text_atomically(study / name / RECORDS, csv_text(lines))
    content = {
        "experiment": name,
        "scale": options.scale,
        "command": command,
        "tasks": [dataclasses.asdict(task) for task in planned],
    }
    write_json_atomically(study / name / PLAN, content)


def _others_finished(
    name: str, study: Path, names: Collection[str]
) -> tuple[list[PlannedTask], list[Record], dict[str, int]]:
    """Return the tasks, none of these, that earlier calls have finished, their records, and the places of all before.

    Where there are no such tasks, places are free.
    """
    try:
        earlier = load_reproduction(name, study)
    except InputError:  # there are none, or damaged ones
        return [], [], {}
    kept = [task for task in earlier.tasks if task.state == "done" and task.name not in names]
    places = {task.name: place for place, task in enumerate(earlier.tasks)} if kept else {}
    return kept, [record for record in earlier.records if record.task not in names], places


def load_reproduction(name: str, study: Path) -> Reproduction:
    """Read back what :func:`save_records` wrote of the experiment ``name``.

    Raises:
        InputError: when it is not there, or cannot be read.
    """
    folder = study / name
    if not (folder / PLAN).is_file():
        raise InputError(
            f"{folder} holds no records to draw from: expected {PLAN} and {RECORDS}; run it first, or give --out"
        )
    content = _read_json(folder / PLAN)
    try:
        with (folder / RECORDS).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [field.name for field in fields(Record) if field.name not in (reader.fieldnames or ())]:
                raise ValueError(f"the column {missing[0]} is missing")
            records = tuple(_parsed(line) for line in reader)
        return Reproduction(
            experiment=content["experiment"],
            scale=content["scale"],
            command=content["command"],
            tasks=tuple(PlannedTask(**task) for task in content["tasks"]),
            records=records,
            study=study,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the records in {folder} cannot be read ({error!r}); run the experiment again") from error


def _record(
    name: str, scale: str, task: Task, request: Request, result: Mapping[str, Any], study: Path, command: str
) -> Record:
    labels = {key: "" if value is None else value for key, value in task.labels.items()}
    config = RunFolder(task.folder(study)).config() or {}
    return Record(
        experiment=name,
        scale=scale,
        task=task.name,
        row=str(labels["row"]),
        student=str(labels["student"]),
        teacher=str(labels["teacher"]),
        method=str(labels["method"]),
        setting=str(labels["setting"]),
        seed=int(labels["seed"]),
        test_error=result["test_error"],
        val_error=result["val_error"],
        best_epoch=result["best_epoch"],
        epochs=result["epochs"],
        parameters=result["parameters"],
        model=request.model.removeprefix(f"{study.resolve()}/"),  # it may begin with what another task has left
        data=result["data"],
        train_images=result["images"]["train"],
        val_images=result["images"]["val"],
        test_images=result["images"]["test"],
        image_size=int(config.get("image_size", 0)),
        seconds=result["training_seconds"],
        images_per_second=result["images_per_second"],
        hardware=result["hardware"],
        software=" ".join(f"{package}={version}" for package, version in result["software"].items()),
        command=command,
        identity=result["identity"],
    )


def _planned(task: Task, state: StudyState) -> PlannedTask:
    where = "done" if task.name in state.results else "failed" if task.name in state.failed else "missing"
    return PlannedTask(task.name, task.kind, dict(task.labels), where, state.failed.get(task.name, ""))


def _parsed(line: Mapping[str, str]) -> Record:
    """Return a line of the CSV with every column in its type."""
    kinds = {"int": int, "float": float, "str": str}
    values: dict[str, Any] = {field.name: kinds[str(field.type)](line[field.name]) for field in fields(Record)}
    return Record(**values)


def _read_json(path: Path) -> dict[str, Any]:
    if (content := read_json(path)) is None:
        raise InputError(f"{path} cannot be read: is it damaged? Run the experiment again")
    return content
