"""The digits' own teacher, which several calls may want at once."""

import os
import threading
import time
from pathlib import Path

import pytest
from helpers import Heard

from spkd.files import locked
from spkd.models.saved_model import load_classifier
from spkd.studies.side_by_side import Network, digits_teacher, measured
from spkd.studies.state import claimed
from spkd.training.options import Request, Runtime


def test_a_teacher_that_another_call_trains_is_waited_for(
    tiny: str, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spkd.studies.side_by_side.DEFAULT_TEACHER", tiny)
    monkeypatch.setattr("spkd.studies.side_by_side.TEACHER_EPOCHS", 1)
    folder, has_begun = Path("runs/digits-teacher"), threading.Event()
    folder.mkdir(parents=True)
    waiting = f"waiting for process {os.getpid()} on {os.uname().nodename}, which trains {folder}"

    def train() -> None:
        with claimed(folder, None), locked(folder, wait=False):
            has_begun.set()
            until = time.monotonic() + 60
            while waiting not in heard.lines and time.monotonic() < until:
                time.sleep(0.01)

    other = threading.Thread(target=train, daemon=True)
    other.start()
    assert has_begun.wait(60)
    requests, runtime = [Request(model=tiny, method="sp")], Runtime(accelerator="cpu")
    teacher = digits_teacher(requests, runtime, heard)
    other.join()
    assert waiting in heard.lines
    assert teacher == str(folder)
    assert (folder / "result.json").exists()
    assert not (folder / "running.json").exists()
    assert digits_teacher(requests, runtime, heard) == teacher


def test_latencies_are_measured_in_turn_and_the_lowest_counts(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])
    monkeypatch.setattr("spkd.studies.side_by_side.latency_ms", lambda classifier, image: next(times))
    facts = {"test_error": 2.5, "val_error": 1.5}
    networks = [Network(label, load_classifier(teacher), facts) for label in ("a", "b")]
    rows = measured(networks, rounds=3)
    assert [(row.label, row.latency_ms, row.test_error, row.val_error) for row in rows] == [
        ("a", 1.0, 2.5, 1.5),
        ("b", 10.0, 2.5, 1.5),
    ]
    assert next(times, None) is None
