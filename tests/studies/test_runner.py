"""Small studies on the digits, run for real: in order, through failures, kills and stops, each task once."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spkd.errors import InputError, RunFailed
from spkd.signals import stop_signals
from spkd.studies import state
from spkd.studies.options import RunnerOptions
from spkd.studies.pool import Pool, visible_gpus
from spkd.studies.runner import run_study
from spkd.studies.state import StudyState, claimed, read_running, study_state
from spkd.studies.tasks import Measurement, Recording, Task
from spkd.studies.work import Job, Outcome, carry_out, tape_folder
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display, Lines
from spkd.training.recording import record
from spkd.training.run import run
from spkd.training.tape import Tape

CPU = Runtime(accelerator="cpu", checkpoint_seconds=0.05)
HOST = os.uname().nodename

FUNCTIONS = '''
import os
import time
from pathlib import Path

from spkd.errors import ReaderDied


def note(folder, runtime, *, path, text, seconds=0.0):
    """Write a line to a file shared by all, wait, and give the line back."""
    with open(path, "a") as file:
        file.write(f"{text} begins\\n")
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{text} ends\\n")
    left = None if runtime.max_time is None else float(runtime.max_time)
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    return {"text": text, "seconds_left": left, **variables}


def fail(folder, runtime, *, switch):
    """Fail as long as there is no file at ``switch``."""
    if not Path(switch).exists():
        raise ZeroDivisionError("no switch")
    return {"mended": True}


def die(folder, runtime, *, path, times):
    """Kill the process the first ``times`` times."""
    with open(path, "a") as file:
        file.write("x")
    if len(Path(path).read_text()) <= times:
        os.kill(os.getpid(), 9)
    return {"survived": True}


def lose_a_reader(folder, runtime, *, path):
    """Fail the first time as where a process that reads images dies."""
    if not Path(path).exists():
        Path(path).touch()
        raise ReaderDied("a process that reads images has died")
    return {"survived": True}
'''


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of measurements that other processes can import too."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "measurements_of_a_test.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield importlib.import_module("measurements_of_a_test")
    del sys.modules["measurements_of_a_test"]


def study(
    tasks: list[Task],
    folder: Path,
    *,
    runtime: Runtime = CPU,
    jobs: int = 2,
    retry: bool = False,
    no_tapes: bool = False,
) -> StudyState:
    options = RunnerOptions(jobs=jobs, retry_failed=retry, no_tapes=no_tapes)
    return run_study(tasks, folder, options, runtime, Display())


def states(folder: Path) -> dict[str, str]:
    return {task.name: task.state for task in study_state(folder)}


def once(ready: Callable[[], bool], do: Callable[[], object]) -> threading.Thread:
    """Do something as soon as something else is so, beside the running study."""

    deadline = time.monotonic() + 300

    def watch() -> None:
        while not ready():
            assert time.monotonic() < deadline, "it has not come to that"
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def student(tiny: str, teacher: Path | str, method: str = "sp", *, epochs: int = 2, seed: int = 0) -> Request:
    overrides = {"epochs": epochs, "gamma": 30.0}
    return Request(model=tiny, teacher=str(teacher), method=method, seed=seed, overrides=overrides)


def test_a_study_runs_in_order_and_only_once(
    tiny: str, functions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # which is not what they are to have
    folder, path = tmp_path / "study", str(tmp_path / "noted")
    (tmp_path / "noted").touch()

    def tasks(folder: Path) -> list[Task]:
        request = student(tiny, folder / "teacher")
        return [
            Task("measured", Measurement(functions.note, {"path": path, "text": "last"}), ("sp/seed-0", "kd/seed-0")),
            Task("sp/seed-0", request, ("tape",), {"method": "sp", "seed": 0}),
            Task("kd/seed-0", student(tiny, folder / "teacher", "kd"), ("tape",), {"method": "kd", "seed": 0}),
            Task("tape", Recording((request,), ("sp", "kd")), ("teacher",)),
            Task("teacher", Request(model=f"{tiny}?width=8", overrides={"epochs": 1})),
        ]

    state = study(tasks(folder), folder)
    assert not state.failed
    assert list(state.results) == [task.name for task in tasks(folder)]
    assert state.results["measured"]["OMP_NUM_THREADS"] == "1"
    made = {name: (folder / name / "result.json").stat().st_mtime_ns for name in state.results}
    order = sorted(made, key=lambda name: made[name])
    assert order[:2] == ["teacher", "tape"]
    assert order[-1] == "measured"
    for method in ("sp", "kd"):
        log = (folder / method / "seed-0" / "task.log").read_text()
        assert re.search(r"tape .*: (\d+) of \1 steps recorded", log), "it did not play the tape"
    assert set(states(folder).values()) == {"done"}
    assert json.loads((folder / "study.json").read_text())["tasks"][1]["labels"] == {"method": "sp", "seed": 0}

    assert study(tasks(folder), folder) == state
    folder = folder.rename(tmp_path / "moved")
    assert study(tasks(folder), folder) == state
    assert {name: (folder / name / "result.json").stat().st_mtime_ns for name in made} == made
    assert Path(path).read_text() == "last begins\nlast ends\n"

    # A student that is to be trained again plays a tape, though that is gone too.
    Tape.erase(tape_folder(folder, "tape"))
    shutil.rmtree(folder / "sp" / "seed-0")
    assert study(tasks(folder), folder).results.keys() == state.results.keys()
    log = (folder / "sp" / "seed-0" / "task.log").read_text()
    assert re.search(r"tape .*: (\d+) of \1 steps recorded", log), "the tape was not recorded again before it"


def test_a_tape_that_failed_or_is_gone_matters_only_to_what_is_to_play_it(tiny: str, tmp_path: Path) -> None:
    folder, teacher = tmp_path / "study", tmp_path / "study" / "teacher"
    tasks = [
        Task("teacher", Request(model=f"{tiny}?width=8", overrides={"epochs": 1})),
        Task("tape", Recording((student(tiny, teacher),), ("sp", "kd")), ("teacher",)),
        Task("sp", student(tiny, teacher, epochs=1), ("tape",)),
        Task("kd", student(tiny, teacher, "kd", epochs=1), ("tape",)),
    ]
    finished = study(tasks, folder)
    assert len(finished.results) == 4

    shutil.rmtree(folder / "tape")
    again = study(tasks, folder)
    assert again.results == {**finished.results, "tape": {}}
    assert not again.failed
    assert not (folder / "tape").exists()
    assert set(states(folder).values()) == {"done"}

    state.mark_failed(tasks[1], folder, "no room")
    assert study(tasks, folder) == again
    assert set(states(folder).values()) == {"done"}

    shutil.rmtree(folder / "kd")
    left = study(tasks, folder)
    assert left.results == {name: finished.results[name] for name in ("teacher", "sp")}
    assert (left.failed, left.missing) == ({"tape": "no room"}, ("kd",))
    assert states(folder) == {"teacher": "done", "tape": "failed", "sp": "done", "kd": "missing"}

    live = study(tasks, folder, no_tapes=True)
    assert list(live.results) == ["teacher", "sp", "kd"]
    assert not live.failed
    assert "steps recorded" not in (folder / "kd" / "task.log").read_text()
    assert states(folder) == {"teacher": "done", "tape": "failed", "sp": "done", "kd": "done"}
    shutil.rmtree(folder / "kd")

    retried = study(tasks, folder, retry=True)
    assert list(retried.results) == [task.name for task in tasks]
    assert retried.results["tape"]["kind"] == "tape"

    # Its teacher decides what a student is, beyond the tape: without it nothing is known of the student.
    shutil.rmtree(teacher)
    changed = [Task("teacher", Request(model="wrn-17-1")), *tasks[1:]]
    assert list(study(changed, folder).results) == []


def test_what_has_finished_is_known_on_a_machine_without_the_device(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one is often that hands a study to a cluster."""
    folder = tmp_path / "study"
    task = Task("network", Request(model=tiny, overrides={"epochs": 1}))
    state = study([task], folder)
    assert state.results
    changed = Task("network", Request(model=tiny, overrides={"epochs": 2}))
    options, elsewhere = RunnerOptions(ray="auto"), Runtime(accelerator="cuda")
    monkeypatch.setattr("spkd.studies.runner._workers", lambda *_: Pool(1, 1))
    assert run_study([task], folder, options, elsewhere, Display()) == state
    refused = run_study([changed], folder, options, elsewhere, Display())
    assert "epochs was 1, is 2" in refused.failed["network"]


def test_a_refusal_names_what_helps_in_a_study(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no option that its command lacks, nor another try, which would be refused too."""
    folder = tmp_path / "study"
    task = Task("network", Request(model=tiny, overrides={"epochs": 1}))
    assert study([task], folder).results
    config = folder / "network" / "config.yaml"
    config.write_text(re.sub("Made of: .*", "Made of: other images", config.read_text()))
    made = f"{folder / 'network'} was made with other weights, code or images"
    helps = f"; remove {folder / 'network'} to make it anew, or give another --out"
    refused = study([task], folder)
    assert refused.failed == {"network": made + helps}
    with pytest.raises(RunFailed) as caught:
        refused.raise_failure(folder)
    assert (
        str(caught.value)
        == f"1 of 1 tasks failed, what has finished is kept. First, {folder / 'network'}: {made}{helps}"
    )

    # What the task itself meets is noted beside its log.
    other = student(tiny, teacher)
    record(other, ["sp"], tape_folder(folder, "tape"), CPU, Display())
    other = replace(other, overrides={**other.overrides, "batch_size": 16})
    state = study([Task("tape", Recording((other,), ("sp",)))], folder)
    with pytest.raises(RunFailed) as caught:
        state.raise_failure(folder)
    assert "--tape" not in str(caught.value)
    assert re.search(
        rf"tape was recorded with batch_size \d+, this run has 16; remove {folder / 'tape'} to make it anew, or give "
        r"another --out \(its task.log says more; --retry_failed tries again\)$",
        str(caught.value),
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    larger = Task("larger", Recording((student(tiny, teacher),), ("sp",)))
    outcome = carry_out(Job(larger, str(folder), CPU))
    assert outcome.failure is not None
    assert outcome.failure.endswith(" or train for fewer epochs, or do without tapes by --no_tapes")


def test_what_is_measured_is_measured_again_when_the_networks_are_others(
    tiny: str, functions: ModuleType, tmp_path: Path
) -> None:
    folder, path = tmp_path / "study", tmp_path / "noted"
    network = Task("network", Request(model=tiny, overrides={"epochs": 1}))

    def measured(text: str) -> Task:
        return Task("measured", Measurement(functions.note, {"path": str(path), "text": text}), ("network",))

    assert study([network, measured("a")], folder).results["measured"]["text"] == "a"
    assert study([network, measured("b")], folder).results["measured"]["text"] == "b"
    result = json.loads((folder / "network" / "result.json").read_text())
    (folder / "network" / "result.json").write_text(json.dumps({**result, "training_seconds": 1.0}))
    study([network, measured("b")], folder)
    assert [line for line in path.read_text().splitlines() if "begins" in line] == ["a begins", "b begins", "b begins"]


def test_a_failure_stops_what_waits_for_it_alone_and_is_retried_when_asked(
    functions: ModuleType, tmp_path: Path
) -> None:
    folder, path, switch = tmp_path / "study", tmp_path / "noted", tmp_path / "switch"

    def note(name: str, *after: str) -> Task:
        return Task(name, Measurement(functions.note, {"path": str(path), "text": name}), after)

    tasks = [
        Task("bad", Measurement(functions.fail, {"switch": str(switch)})),
        note("after bad", "bad"),
        note("after that", "after bad"),
        note("good"),
        note("after good", "good"),
    ]
    for _ in range(2):
        state = study(tasks, folder)
        assert list(state.results) == ["good", "after good"]
        assert state.failed == {"bad": "ZeroDivisionError: no switch"}
        assert state.missing == ("after bad", "after that")
        assert states(folder)["bad"] == "failed"
        with pytest.raises(RunFailed, match=r"1 of 5 tasks failed.*study/bad: ZeroDivisionError: no switch"):
            state.raise_failure(folder)
    log = (folder / "bad" / "task.log").read_text()
    assert log.count("Traceback (most recent call last)") == 1, "it was tried again, or there is no traceback"
    assert 'raise ZeroDivisionError("no switch")' in log
    switch.touch()
    state = study(tasks, folder, retry=True)
    assert not state.failed
    assert not state.missing
    assert set(states(folder).values()) == {"done"}


def test_a_failed_task_that_has_become_another_is_tried(functions: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    assert study([Task("x", Measurement(functions.fail, {"switch": str(tmp_path / "none")}))], folder).failed
    assert study([Task("x", Measurement(functions.fail, {"switch": str(tmp_path)}))], folder).results


def test_a_killed_process_costs_its_own_task_nothing_but_time(
    tiny: str, teacher: Path, tmp_path: Path, functions: ModuleType
) -> None:
    """The process of one training is killed in the middle; it goes on elsewhere, and its neighbour does not notice."""
    folder, request = tmp_path / "study", student(tiny, teacher, epochs=15)
    tasks = [
        Task("victim", request),
        Task("neighbour", Measurement(functions.note, {"path": str(tmp_path / "x"), "text": "", "seconds": 2.0})),
    ]

    def kill() -> None:
        running = read_running(folder / "victim")
        assert running is not None
        assert states(folder)["victim"] == "running"
        os.kill(running["pid"], signal.SIGKILL)

    killer = once((folder / "victim" / "checkpoints" / "last.ckpt").exists, kill)
    state = study(tasks, folder)
    killer.join(300)
    assert not killer.is_alive()
    assert set(state.results) == {"victim", "neighbour"}
    log = (folder / "victim" / "task.log").read_text()
    assert "continuing from" in log
    assert log.count(", process ") == 2
    assert (tmp_path / "x").read_text().count("begins") == 1
    assert run(request, tmp_path / "alone", CPU, Display()) is not None
    one, other = (load_file(path / "student" / "model.safetensors") for path in (folder / "victim", tmp_path / "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_task_that_kills_its_process_is_tried_three_times(functions: ModuleType, tmp_path: Path) -> None:
    def dying(name: str, times: int) -> Task:
        return Task(name, Measurement(functions.die, {"path": str(tmp_path / name), "times": times}))

    state = study([dying("twice", 2), dying("always", 9)], tmp_path / "study")
    assert state.results["twice"]["survived"]
    assert "killed by SIGKILL" in state.failed["always"]
    assert (tmp_path / "always").read_text() == "xxx"
    assert states(tmp_path / "study") == {"twice": "done", "always": "failed"}
    assert study([dying("always", 9)], tmp_path / "study").failed == {"always": state.failed["always"]}
    assert list(states(tmp_path / "study")) == ["twice", "always"], "the plan of the call before is lost"


def test_a_task_that_lost_what_reads_its_images_is_tried_again(functions: ModuleType, tmp_path: Path) -> None:
    task = Task("task", Measurement(functions.lose_a_reader, {"path": str(tmp_path / "switch")}))
    assert study([task], tmp_path / "study").results["task"]["survived"]


def test_the_time_for_all_stops_what_is_running_and_begins_nothing_more(
    functions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "study", tmp_path / "noted"
    seconds = {"first": 0.0, "slow": 600.0, "next": 0.0}
    tasks = [
        Task(name, Measurement(functions.note, {"path": str(path), "text": name, "seconds": long}))
        for name, long in seconds.items()
    ]
    deadlines: list[float] = []

    def is_past(deadline: float) -> bool:
        """Say that the time is over once the second task is under way."""
        deadlines.append(deadline)
        return path.exists() and "slow begins" in path.read_text()

    monkeypatch.setattr("spkd.studies.runner.is_past", is_past)
    begun = time.time()
    state = study(tasks, folder, runtime=Runtime(accelerator="cpu", max_time="600"), jobs=1)
    assert begun + 600 <= deadlines[0] == deadlines[-1] <= time.time() + 600
    assert (list(state.results), state.failed, state.missing) == (["first"], {}, ("slow", "next"))
    assert 0 < state.results["first"]["seconds_left"] < 600
    assert path.read_text() == "first begins\nfirst ends\nslow begins\n"
    assert states(folder) == {"first": "done", "slow": "missing", "next": "missing"}


def test_a_signal_stops_with_checkpoints_and_the_next_call_goes_on(tiny: str, teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    tasks = [Task(f"seed-{seed}", student(tiny, teacher, epochs=30, seed=seed)) for seed in range(3)]
    checkpoints = [folder / f"seed-{seed}" / "checkpoints" / "last.ckpt" for seed in range(2)]
    stopper = once(lambda: any(path.exists() for path in checkpoints), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with stop_signals():  # so that one that comes too late does not end this process
        state = study(tasks, folder)
        stopper.join(300)
        assert not stopper.is_alive()
    assert not state.failed
    assert state.missing
    assert not (folder / "seed-2").exists()
    stopped = [task for task in study_state(folder) if task.state == "stopped"]
    assert stopped
    assert all(0 <= done < total == 30 for done, total in (task.epochs for task in stopped))
    assert states(folder)["seed-2"] == "missing"
    again = study(tasks, folder)
    assert not again.missing
    assert "continuing from" in "".join((folder / f"seed-{seed}" / "task.log").read_text() for seed in range(2))


def test_two_calls_share_a_study(functions: ModuleType, tmp_path: Path) -> None:
    """Each task is begun by one of them, and the other waits for its end."""
    folder, path = tmp_path / "study", tmp_path / "noted"
    tasks = [
        Task(name, Measurement(functions.note, {"path": str(path), "text": name, "seconds": 0.3})) for name in "abcd"
    ]
    states_of_both: list[StudyState] = []
    other = threading.Thread(target=lambda: states_of_both.append(study(tasks[::-1], folder)))
    other.start()
    states_of_both.append(study(tasks, folder))
    other.join()
    assert states_of_both[0].results == states_of_both[1].results
    assert sorted(states_of_both[0].results) == list("abcd")
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {what}" for name in "abcd" for what in ("begins", "ends"))


def test_a_claim_of_the_dead_is_void(functions: ModuleType, tmp_path: Path) -> None:
    task = Task("x", Measurement(functions.note, {"path": str(tmp_path / "noted"), "text": "x"}))
    note = tmp_path / "study" / "x" / "running.json"
    note.parent.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid, host in ((dead.pid, os.uname().nodename), (1, "another")):
        note.write_text(json.dumps({"pid": pid, "host": host, "since": 0}))
        if host == "another":
            os.utime(note, (0, 0))
        (tmp_path / "study" / "x" / "result.json").unlink(missing_ok=True)
        assert study([task], tmp_path / "study").results
        assert not note.exists()


def test_a_number_that_counts_elsewhere_says_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers of one host name, and machines that are all called localhost, have processes of the same numbers."""
    note = tmp_path / "running.json"
    dead = subprocess.Popen(["true"])
    dead.wait()
    with claimed(tmp_path, None) as ours:
        assert ours
        written = json.loads(note.read_text())
        note.write_text(json.dumps({**written, "pid": dead.pid}))
        assert read_running(tmp_path) is None
        monkeypatch.setattr(state, "numbering_of_processes", lambda: "another container")
        assert read_running(tmp_path) is not None
        os.utime(note, (0, 0))
        assert read_running(tmp_path) is None
        note.write_text(json.dumps(written))
    assert note.exists(), "the claim of a process of the same number was removed"


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_a_claim_is_no_older_where_clocks_differ(ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(tmp_path, None) as ours:
        assert ours
        monkeypatch.setattr(state, "time", SimpleNamespace(time=lambda: time.time() + ahead, sleep=time.sleep))
        assert read_running(tmp_path) is not None
        os.utime(tmp_path / "running.json", (time.time() - 61,) * 2)  # until its next sign of life
        assert read_running(tmp_path) is None
        os.utime(tmp_path / "running.json")
        os.truncate(tmp_path / "running.json", 0)  # as where another has just begun to write it
        assert not state._claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["running.json"]


@pytest.mark.parametrize(
    "noted",
    [{}, {"pid": 1}, {"pid": "1", "host": HOST, "since": 0}, {"pid": 1 << 80, "host": HOST, "since": 0}, [["pid", 1]]],
)
def test_a_damaged_claim_is_nobody_s(noted: object, functions: ModuleType, tmp_path: Path) -> None:
    task = Task("x", Measurement(functions.note, {"path": str(tmp_path / "noted"), "text": "x"}))
    state.save_plan([task], tmp_path / "study")
    note = tmp_path / "study" / "x" / "running.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(noted))
    assert read_running(note.parent) is None
    assert [one.state for one in study_state(tmp_path / "study")] == ["missing"]
    assert study([task], tmp_path / "study").results
    assert not note.exists()
    with claimed(tmp_path, None) as ours:
        assert ours
        (tmp_path / "running.json").write_text(json.dumps(noted))
    assert (tmp_path / "running.json").exists()


def test_a_failure_is_forgotten_once_there_is_a_result(functions: ModuleType, tmp_path: Path) -> None:
    task = Task("x", Measurement(functions.note, {"path": str(tmp_path / "noted"), "text": "x"}))
    folder = tmp_path / "study"
    assert study([task], folder).results
    state.mark_failed(task, folder, "no memory")
    result, failure = (folder / "x" / name for name in ("result.json", "failed.json"))
    os.utime(failure, (result.stat().st_mtime + 5,) * 2)
    assert [one.state for one in study_state(folder)] == ["failed"]
    assert study([task], folder).failed == {"x": "no memory"}
    os.utime(result, (failure.stat().st_mtime + 5,) * 2)  # another call or the user has finished it
    assert [one.state for one in study_state(folder)] == ["done"]
    assert study([task], folder).results
    assert not failure.exists()


def test_only_ones_own_claim_is_given_back(tmp_path: Path) -> None:
    note = tmp_path / "running.json"
    with claimed(tmp_path, None) as ours:
        assert ours
        other = json.dumps({**json.loads(note.read_text()), "pid": os.getpid() + 1})
        note.write_text(other)
    assert note.read_text() == other


def test_a_claim_that_is_made_while_a_stale_one_is_looked_at_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "running.json"
    note.write_text(json.dumps({"pid": 1, "host": "another", "since": 0}))
    os.utime(note, (0, 0))
    live = json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "since": 0})
    read = state.read_running
    looked_at: list[Path] = []

    def slowly(folder: Path) -> dict[str, Any] | None:
        found = read(folder)
        if not looked_at:
            note.write_text(live)  # another process removes the stale one and makes its own
        looked_at.append(folder)
        return found

    monkeypatch.setattr(state, "read_running", slowly)
    with claimed(tmp_path, time.time() + 1) as ours:
        assert not ours
    assert note.read_text() == live
    assert len(looked_at) > 1
    assert list(tmp_path.iterdir()) == [note]


def test_a_live_claim_is_respected_until_the_time_is_over(functions: ModuleType, tmp_path: Path) -> None:
    task = Task("x", Measurement(functions.note, {"path": str(tmp_path / "noted"), "text": "x"}))
    (tmp_path / "study" / "x").mkdir(parents=True)
    with claimed(tmp_path / "study" / "x", None) as ours:
        assert ours
        state = study([task], tmp_path / "study", runtime=Runtime(accelerator="cpu", max_time="1"))
    assert state.missing == ("x",)
    assert not (tmp_path / "noted").exists()


def test_a_signal_while_a_claim_is_waited_for_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "running.json"
    note.write_text(json.dumps({"pid": os.getpid(), "host": HOST, "since": 0}))

    def sleep(seconds: float) -> None:
        signal.raise_signal(signal.SIGTERM)
        note.unlink()  # the other has ended meanwhile

    monkeypatch.setattr(state, "time", SimpleNamespace(sleep=sleep, time=time.time))
    with stop_signals() as received:
        with claimed(tmp_path, None) as ours:
            assert not ours
        assert received
    assert not note.exists()


def test_processes_are_dealt_out_to_the_gpus(functions: ModuleType, tmp_path: Path) -> None:
    names = [str(number) for number in range(5)]
    pool, outcomes = Pool(slots=5, threads=3, gpus=["2", "GPU-a"]), {}
    for name in names:
        arguments = {"path": str(tmp_path / "noted"), "text": name, "seconds": 0.5}
        pool.begin(Job(Task(name, Measurement(functions.note, arguments)), str(tmp_path), CPU))
    assert not pool.has_room()
    while len(outcomes) < len(names):
        outcomes.update(pool.wait(10))
    assert pool.stop() == []
    results = [outcomes[name].result for name in names]
    assert [result["CUDA_VISIBLE_DEVICES"] for result in results] == ["2", "GPU-a", "2", "GPU-a", "2"]
    assert {result["OMP_NUM_THREADS"] for result in results} == {"3"}


def test_only_gpus_that_this_process_may_use_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3")
    assert visible_gpus() == ["GPU-a", "3"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_gpus() == []


@pytest.mark.parametrize("number", ["0", "-1"])
def test_options_are_checked(number: str) -> None:
    with pytest.raises(InputError, match=f"--jobs must be at least 1, not {number}"):
        RunnerOptions(jobs=int(number))


def test_a_task_is_claimed_by_one_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    note = tmp_path / "running.json"
    for _ in range(2):
        with claimed(tmp_path, None) as ours:
            assert ours
            assert json.loads(note.read_text())["pid"] == os.getpid()
            with claimed(tmp_path, 0.0) as others:
                assert not others
        assert list(tmp_path.iterdir()) == []
    note.touch()  # just begun by another
    with claimed(tmp_path, 0.0) as ours:
        assert not ours
    assert note.exists()
    os.utime(note, (0, 0))  # and never written to
    with claimed(tmp_path, None) as ours:
        assert ours


def test_what_ends_as_the_study_is_stopped_is_not_tried_again(
    functions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Ctrl-C goes to the workers too, and one may have saved before the study has looked."""

    class Workers:
        def has_room(self) -> bool:
            return True

        def begin(self, job: Job) -> None:
            pass

        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            os.kill(os.getpid(), signal.SIGINT)
            return [("x", Outcome())]

        def stop(self) -> list[tuple[str, Outcome]]:
            return []

    monkeypatch.setattr("spkd.studies.runner._workers", lambda *_: Workers())
    task = Task("x", Measurement(functions.note, {"path": str(tmp_path / "noted"), "text": "x"}))
    found = run_study([task], tmp_path / "study", RunnerOptions(), CPU, Lines())
    assert found.missing == ("x",)
    assert "interrupted" not in capsys.readouterr().err


def test_a_machine_whose_clock_is_ahead_has_as_much_time(
    functions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    class Workers:
        def has_room(self) -> bool:
            return not jobs

        def begin(self, job: Job) -> None:
            jobs.append(job)

        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            now = time.time
            with monkeypatch.context() as there:
                there.setattr("time.time", lambda: now() + 7200)
                return [("x", carry_out(jobs.pop()))]

        def stop(self) -> list[tuple[str, Outcome]]:
            return []

    monkeypatch.setattr("spkd.studies.runner._workers", lambda *_: Workers())
    task = Task("x", Measurement(functions.note, {"path": str(tmp_path / "noted"), "text": "x"}))
    runtime = replace(CPU, max_time="1h")
    found = run_study([task], tmp_path / "study", RunnerOptions(), runtime, Display())
    assert 3500 < found.results["x"]["seconds_left"] <= 3600


def test_a_long_task_keeps_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "BEAT", 0.01)
    with claimed(tmp_path, None):
        os.utime(tmp_path / "running.json", (0, 0))
        deadline = time.time() + 60
        while read_running(tmp_path) is None:
            assert time.time() < deadline
            time.sleep(0.01)
    assert 2 * state.BEAT < state.SILENCE
