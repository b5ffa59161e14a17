"""A real process, killed at several moments, ends with the bits of one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import wait_for
from PIL import Image
from safetensors.torch import load_file


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spkd", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_kills_at_any_moment_change_nothing(tiny: str, teacher: Path, tmp_path: Path) -> None:
    options = [
        "--student",
        tiny,
        "--teacher",
        str(teacher),
        "--method",
        "sp",
        "--gamma",
        "30",
        "--epochs",
        "30",
    ]
    options += ["--accelerator", "cpu", "--checkpoint_seconds", "0.05"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    first = start("distill", *options, "--out", str(undisturbed))
    checkpoint = folder / "checkpoints" / "last.ckpt"
    epochs = []
    for ready in (folder / "config.yaml", checkpoint, checkpoint):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = start("distill", *options, "--out", str(folder), "--resume")
        wait_for(process, ready, before if ready == checkpoint else 0)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)["state"]
            epochs.append((state["epoch"], state["batch"]))
    assert any(batch for _, batch in epochs), f"no kill was in the middle of an epoch: {epochs}"

    interrupted = start("distill", *options, "--out", str(folder), "--resume")
    wait_for(interrupted, checkpoint, checkpoint.stat().st_mtime_ns)
    interrupted.terminate()
    assert interrupted.wait() == 3, interrupted.communicate()
    assert "--resume" in interrupted.communicate()[1]

    last = start("distill", *options, "--out", str(folder), "--resume")
    output, errors = last.communicate()
    assert last.returncode == 0, errors
    assert "going on from" in errors
    assert "student, sp" in output
    assert first.wait() == 0, first.communicate()
    first.communicate()
    one, other = (load_file(path / "student" / "model.safetensors") for path in (undisturbed, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (undisturbed / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("how", ["ctrl-c", "terminate", "kill"])
def test_a_comparison_that_is_interrupted_stops_and_leaves_no_process(
    tiny: str, teacher: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "compare"
    options = ["--student", tiny, "--teacher", str(teacher), "--methods", "none", "sp", "--epochs", "5000"]
    options += ["--seeds", "3", "--jobs", "2", "--accelerator", "cpu", "--checkpoint_seconds", "0.1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "spkd", "compare", *options], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
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
        assert errors.splitlines()[-1] == "stopped before the end; the same command goes on"
    assert all(checkpoint.exists() for checkpoint in checkpoints)
    assert not (out / "none" / "seed-1").exists(), "a new run was begun"
    for _ in range(100):
        if not group_lives(process.pid):
            break
        time.sleep(0.1)
    assert not group_lives(process.pid), "a process was left behind"


def test_a_scheduler_s_sigterm_to_the_group_saves_a_run_that_reads_files(tiny: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(40):
        folder = tmp_path / "pictures" / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, size=(100 + index, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    options = ["--model", "torchvision/shufflenet_v2_x0_5", "--data", str(tmp_path / "pictures"), "--image_size", "32"]
    options += ["--epochs", "5000", "--batch_size", "4", "--workers", "2", "--accelerator", "cpu"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "spkd",
            "train",
            *options,
            "--checkpoint_seconds",
            "0.1",
            "--out",
            str(tmp_path / "run"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(process, tmp_path / "run" / "checkpoints" / "last.ckpt")
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
