"""Which runs a comparison has, and which of them play one tape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spkd.data.options import DataOptions
from spkd.studies.planning import Part, plan_parts, tasks_of
from spkd.studies.tasks import Recording, in_order
from spkd.training.options import Request


def part(
    folder: str, tape: str = "recordings/t", *methods: str, epochs: int = 1, memories: tuple[str, ...] = ("sp",)
) -> Part:
    requests = {
        method: Request(model=folder, teacher=None if method == "none" else "large", method=method)
        for method in methods or ("none", "sp", "kd")
    }
    return Part(folder, requests, "digits", "error", tape, epochs, frozenset(memories))


def test_every_method_and_seed_of_every_student_is_a_run_of_its_own() -> None:
    tasks = tasks_of([part("a"), part("b")], 2)
    runs = {task.name: task.work for task in in_order(tasks) if isinstance(task.work, Request)}
    assert set(runs) == {
        f"{student}/{method}/seed-{seed}" for student in "ab" for method in ("none", "sp", "kd") for seed in (0, 1)
    }
    for name, request in runs.items():
        student, method, seed = name.split("/")
        assert (request.model, request.method, request.seed) == (student, method, int(seed.removeprefix("seed-")))


def test_a_single_student_s_runs_lie_in_the_folder_itself() -> None:
    names = {task.name for task in tasks_of([part("", "recordings")], 1)}
    assert names == {"none/seed-0", "sp/seed-0", "kd/seed-0", "recordings/seed-0"}


def test_students_that_hear_the_same_play_one_tape_for_each_seed() -> None:
    tasks = tasks_of([part("a"), part("b"), part("c", "recordings/u")], 2)
    recordings = {task.name: task.work for task in tasks if isinstance(task.work, Recording)}
    assert set(recordings) == {f"recordings/{tape}/seed-{seed}" for tape in "tu" for seed in (0, 1)}
    for name, recording in recordings.items():
        [request] = recording.requests
        assert request.model == ("c" if "/u/" in name else "a")
        assert request.seed == int(name[-1])
        assert recording.methods == ("sp", "kd")
    for task in tasks:
        if isinstance(task.work, Request):
            student, method, seed = task.name.split("/")
            tape = f"recordings/{'u' if student == 'c' else 't'}/{seed}"
            assert task.after == (() if method == "none" else (tape,)), task.name


def test_a_tape_is_recorded_for_all_that_need_unlike_things_of_it() -> None:
    few, more, long = part("a"), part("b", memories=("sp", "sp of stage 1")), part("c", epochs=3)
    [recording] = [task.work for task in tasks_of([few, more, part("d"), long], 1) if isinstance(task.work, Recording)]
    assert [request.model for request in recording.requests] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("parts", "taped"),
    [
        ([part("a", "t", "none", "sp")], False),
        ([part("a", "t", "none", "sp"), part("b", "t", "none", "sp")], True),
        ([part("a", "t", "none", "sp"), part("b", "u", "none", "sp")], False),
        ([part("a", "t", "none"), part("b", "t", "none")], False),
        ([part("a", "t", "sp", "kd")], True),
    ],
)
def test_there_is_a_tape_where_more_than_one_run_would_play_it(parts: list[Part], taped: bool) -> None:
    tasks = tasks_of(parts, 1)
    assert any(isinstance(task.work, Recording) for task in tasks) == taped
    assert all(not task.after for task in tasks if not taped)


@pytest.fixture
def request_of(tiny: str, teacher: Path) -> Request:
    return Request(model=tiny, teacher=str(teacher), overrides={"epochs": 2})


def planned(requests: Mapping[str, Request], out: Path, methods: tuple[str, ...] = ("none", "sp")) -> list[Part]:
    return plan_parts(requests, methods, out, None, overwrite=False)


def test_a_tape_is_where_it_was_whichever_students_are_named_and_in_whatever_order(
    request_of: Request, tmp_path: Path
) -> None:
    asked = {"a": request_of, "b": replace(request_of, overrides={"batch_size": 32}), "c": request_of}
    first = {one.folder: one.tape for one in planned(asked, tmp_path)}
    assert first["a"] == first["c"] != first["b"]
    for order in ("ba", "cb", "b"):
        some = planned({folder: asked[folder] for folder in order}, tmp_path)
        assert {one.folder: one.tape for one in some} == {folder: first[folder] for folder in order}
    assert [one.tape for one in planned({"": request_of}, tmp_path)] == ["recordings"]


@pytest.mark.parametrize(
    "other",
    [
        {"overrides": {"batch_size": 32}},
        {"overrides": {"teacher_precision": "bf16-true"}},
        {"data": DataOptions(train_images=100)},
        {"data": DataOptions(mixup=0.5)},
        {"data": DataOptions(image_size=12)},
        {"teacher": "another"},
    ],
)
def test_students_to_whom_the_teacher_says_something_else_have_another_tape(
    other: dict[str, Any], request_of: Request, tiny: str, tmp_path: Path, teacher: Path
) -> None:
    if "teacher" in other:
        other = {"teacher": f"{tiny}?width=16", "teacher_weights": str(teacher / "student" / "model.safetensors")}
    own, changed = planned({"a": request_of, "b": replace(request_of, **other)}, tmp_path)
    assert own.tape != changed.tape


def test_what_a_tape_can_be_widened_by_does_not_part_students(request_of: Request, tmp_path: Path) -> None:
    longer = replace(request_of, overrides={"epochs": 5})
    stages = replace(request_of, taps=("stages",))
    parts = planned({"a": request_of, "b": longer, "c": stages, "d": replace(request_of, seed=3)}, tmp_path)
    assert len({one.tape for one in parts}) == 1
    assert [one.epochs for one in parts] == [2, 5, 2, 2]
    assert parts[0].memories == parts[1].memories < parts[2].memories
    [also_kd] = planned({"a": request_of}, tmp_path, ("none", "sp", "kd"))
    assert parts[0].memories < also_kd.memories
    [recording] = [task.work for task in tasks_of(parts, 1) if isinstance(task.work, Recording)]
    assert recording.requests == (parts[0].requests["sp"], parts[1].requests["sp"], parts[2].requests["sp"])
