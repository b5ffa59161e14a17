"""A study on a real Ray cluster of two nodes ends as it does on this machine, whatever dies."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spkd.errors import InputError
from spkd.studies.cluster import Cluster, has_gpus
from spkd.studies.options import RunnerOptions
from spkd.studies.runner import run_study
from spkd.studies.state import StudyState, read_running
from spkd.studies.tasks import Task
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display

ray = pytest.importorskip("ray", exc_type=ImportError)

CPU = Runtime(accelerator="cpu", checkpoint_seconds=0.05)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with one processor each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: nothing is left for it on a busy machine
        node: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        yield cluster.address
        cluster.shutdown()


def plan(folder: Path, tiny: str) -> list[Task]:
    teacher = Request(model=f"{tiny}?width=8", overrides={"epochs": 1})
    overrides = {"epochs": 20, "gamma": 30.0}
    students = [
        Task(
            f"sp/seed-{seed}",
            Request(model=tiny, teacher=str(folder / "teacher"), method="sp", seed=seed, overrides=overrides),
            ("teacher",),
        )
        for seed in range(2)
    ]
    failing = Task("failing", Request(model="wrn-17-1"))
    return [*students, Task("teacher", teacher), failing, Task("after", Request(model=tiny), ("failing",))]


def study(folder: Path, tiny: str, ray: str | None = None) -> StudyState:
    return run_study(plan(folder, tiny), folder, RunnerOptions(jobs=2, ray=ray), CPU, Display())


def test_a_study_on_a_cluster_survives_a_kill_and_ends_with_the_bits_of_a_local_one(
    tiny: str, tmp_path: Path, address: str
) -> None:
    victim = tmp_path / "cluster" / "sp" / "seed-1"
    killed: list[int] = []

    deadline = time.monotonic() + 300

    def kill() -> None:
        while not (victim / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline, "there is no checkpoint"
            time.sleep(0.01)
        if (running := read_running(victim)) is not None:
            os.kill(running["pid"], signal.SIGKILL)
            killed.append(running["pid"])

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    on_cluster = study(tmp_path / "cluster", tiny, address)
    killer.join(300)
    assert not killer.is_alive()
    assert killed
    assert "continuing from" in (victim / "task.log").read_text()
    local = study(tmp_path / "local", tiny)
    for state in (on_cluster, local):
        assert list(state.results) == ["sp/seed-0", "sp/seed-1", "teacher"]
        assert "wrn-17-1" in state.failed["failing"]
        assert state.missing == ("after",)
    assert "Traceback" in (tmp_path / "cluster" / "failing" / "task.log").read_text()
    for name, result in on_cluster.results.items():
        assert result["test"] == local.results[name]["test"]
        weights = [tmp_path / where / name / "student" / "model.safetensors" for where in ("cluster", "local")]
        one, other = map(load_file, weights)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_cluster_that_is_not_there_is_one_line(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ray 127.0.0.1:1: there is no Ray cluster .*leave out --ray"):
        study(tmp_path / "study", tiny, "127.0.0.1:1")


def test_a_study_outlives_the_last_gpu_of_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray no longer names a resource of which there is none; a node with one may come back."""
    there = {"CPU": 8.0, "GPU": 2.0}
    connected = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=lambda: there, remote=lambda **needed: lambda function: function
    )
    monkeypatch.setitem(sys.modules, "ray", connected)
    cluster = Cluster("auto", "auto", 2, None)
    assert cluster._size() == 4
    assert has_gpus("auto")
    del there["GPU"]
    assert not has_gpus("auto")
    assert cluster._size() == 1
    assert cluster.has_room()
