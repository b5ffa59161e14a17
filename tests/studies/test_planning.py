"""Which runs a comparison has, and which of them play one tape."""

from __future__ import annotations

import pytest

from spkd.studies.planning import Part, tasks_of
from spkd.studies.tasks import Recording, in_order
from spkd.training.options import Request


def part(folder: str, heard: str = "the same", methods: tuple[str, ...] = ("none", "sp", "kd")) -> Part:
    requests = {
        method: Request(model=folder, teacher=None if method == "none" else "large", method=method)
        for method in methods
    }
    return Part(folder, requests, "digits", "error", heard if len(methods) > 1 or methods != ("none",) else "")


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
    names = {task.name for task in tasks_of([part("")], 1)}
    assert names == {"none/seed-0", "sp/seed-0", "kd/seed-0", "recordings/seed-0"}


def test_students_that_hear_the_same_play_one_tape_for_each_seed() -> None:
    tasks = tasks_of([part("a"), part("b"), part("c", "other layers")], 2)
    recordings = {task.name: task.work for task in tasks if isinstance(task.work, Recording)}
    assert set(recordings) == {
        "recordings/seed-0", "recordings/seed-1", "recordings/c/seed-0", "recordings/c/seed-1"
    }  # fmt: skip
    for name, recording in recordings.items():
        assert recording.request.model == ("c" if "/c/" in name else "a")
        assert recording.request.seed == int(name[-1])
        assert recording.methods == ("sp", "kd")
    for task in tasks:
        if isinstance(task.work, Request):
            student, method, seed = task.name.split("/")
            tape = f"recordings/c/{seed}" if student == "c" else f"recordings/{seed}"
            assert task.after == (() if method == "none" else (tape,)), task.name


@pytest.mark.parametrize(
    ("parts", "taped"),
    [
        ([part("a", methods=("none", "sp"))], False),
        ([part("a", methods=("none", "sp")), part("b", methods=("none", "sp"))], True),
        ([part("a", methods=("none", "sp")), part("b", "others", methods=("none", "sp"))], False),
        ([part("a", methods=("none",)), part("b", methods=("none",))], False),
        ([part("a", methods=("sp", "kd"))], True),
    ],
)
def test_there_is_a_tape_where_more_than_one_run_would_play_it(parts: list[Part], taped: bool) -> None:
    tasks = tasks_of(parts, 1)
    assert any(isinstance(task.work, Recording) for task in tasks) == taped


def test_the_tapes_keep_their_names_when_a_student_is_added() -> None:
    few, more = ([one.name for one in tasks_of(parts, 1)] for parts in ([part("a")], [part("a"), part("b", "others")]))
    assert set(few) < set(more)
