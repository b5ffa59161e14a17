"""A real process, killed at several moments, ends with the bits of one that was left alone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import group_lives, wait_for
from PIL import Image
from safetensors.torch import load_file

from spkd.signals import LAST_WORDS

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Give a function that starts a command, all of whose processes are ended after the test, however it ends."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        command, pipe = [sys.executable, "-m", "spkd", *arguments], subprocess.PIPE
        process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env={**os.environ, **variables}
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def test_kills_at_any_moment_change_nothing(tiny: str, teacher: Path, tmp_path: Path, start: Start) -> None:
    """Whatever is computed by several threads too."""
    options = ["--student", tiny, "--teacher", str(teacher), "--method", "sp", "--gamma", "30", "--epochs", "30"]
    options += ["--accelerator", "cpu", "--checkpoint_seconds", "0.05"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"

    def begin(out: Path, *flags: str) -> subprocess.Popen[str]:
        threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
        return start("distill", *options, "--out", str(out), *flags, **threads)

    first = begin(undisturbed)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    epochs: list[tuple[int, int]] = []
    for kills in range(12):
        if kills > 2 and any(batch for _, batch in epochs):
            break
        ready = checkpoint if kills else folder / "config.yaml"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = begin(folder, "--resume")
        wait_for(process, ready, before if ready == checkpoint else 0)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)["state"]
            epochs.append((state["epoch"], state["batch"]))
    assert any(batch for _, batch in epochs), f"no kill was in the middle of an epoch: {epochs}"

    interrupted = begin(folder, "--resume")
    wait_for(interrupted, checkpoint, checkpoint.stat().st_mtime_ns)
    interrupted.terminate()
    assert interrupted.wait() == 3, interrupted.communicate()
    assert "--resume" in interrupted.communicate()[1]

    last = begin(folder, "--resume")
    output, errors = last.communicate()
    assert last.returncode == 0, errors
    assert "continuing from" in errors
    assert "student, sp" in output
    assert first.wait() == 0, first.communicate()
    first.communicate()
    one, other = (load_file(path / "student" / "model.safetensors") for path in (undisturbed, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (undisturbed / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("how", ["ctrl-c", "terminate", "kill"])
def test_a_comparison_that_is_interrupted_stops_and_leaves_no_process(
    tiny: str, teacher: Path, tmp_path: Path, how: str, start: Start
) -> None:
    out = tmp_path / "compare"
    options = ["--student", tiny, "--teacher", str(teacher), "--methods", "none", "sp", "--epochs", "5000"]
    options += ["--seeds", "3", "--jobs", "2", "--accelerator", "cpu", "--checkpoint_seconds", "0.1", "--out", str(out)]
    process = start("compare", *options)
    checkpoints = [out / method / "seed-0" / "checkpoints" / "last.ckpt" for method in ("none", "sp")]
    for checkpoint in checkpoints:
        wait_for(process, checkpoint)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "terminate":
        process.terminate()
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    if how == "kill":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 3, errors
        assert errors.splitlines()[-1] == "stopped before the end; the same command continues"
    assert all(checkpoint.exists() for checkpoint in checkpoints)
    assert not (out / "none" / "seed-1").exists(), "a new run was begun"
    deadline = time.monotonic() + LAST_WORDS + 30
    while group_lives(process.pid):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.1)


def test_a_scheduler_s_sigterm_to_the_group_saves_a_run_that_reads_files(tmp_path: Path, start: Start) -> None:
    random = np.random.default_rng(0)
    for index in range(40):
        folder = tmp_path / "pictures" / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, size=(100 + index, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    options = ["--model", "torchvision/shufflenet_v2_x0_5", "--data", str(tmp_path / "pictures"), "--image_size", "32"]
    options += ["--epochs", "5000", "--batch_size", "4", "--workers", "2", "--accelerator", "cpu"]
    process = start("train", *options, "--checkpoint_seconds", "0.1", "--out", str(tmp_path / "run"))
    wait_for(process, tmp_path / "run" / "checkpoints" / "last.ckpt")
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
