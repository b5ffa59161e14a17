"""A real process, killed at several moments, ends with the bits of one that was left alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spkd", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], ready: Path, changed_since: int = 0) -> None:
    while process.poll() is None:
        if ready.exists() and ready.stat().st_mtime_ns > changed_since:
            return
        time.sleep(0.005)
    raise AssertionError(f"the process ended by itself: {process.communicate()}")


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
