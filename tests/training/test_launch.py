"""Several real processes with one batch: the same weights as one process, and an end when one of them ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import group_lives, wait_for
from safetensors.torch import load_file

from spkd.data.options import DataOptions
from spkd.training.devices import AGREE_EVERY
from spkd.training.launch import _watch
from spkd.training.saved import evaluate_saved

PLAIN = '''
"""A network without batch norm, whose gradients do not depend on how a batch is divided."""
from torch import nn


class Plain(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(128, num_classes),
        )
'''
SPARE = (
    PLAIN.replace("class Plain", "class Body")
    + '''

class Spare(nn.Module):
    """Gives the logits of another head besides, which the losses do not read, and has a layer that never runs."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.body, self.other, self.never = Body(num_classes), nn.Linear(64, 3), nn.Linear(3, 3)

    def forward(self, images):
        return self.body(images), self.other(images.flatten(1))
'''
)
LONG = ["--epochs", "5000", "--checkpoint_seconds", "0.2"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> list[str]:
    source = tmp_path_factory.mktemp("plain") / "plain.py"
    source.write_text(PLAIN)
    common = ["--student", f"{source}:Plain", "--teacher", str(teacher), "--method", "sp+kd+at", "--gamma", "30"]
    return [*common, "--lr", "0.05", "--batch_size", "63", "--accelerator", "cpu"]


def command(*arguments: str, of: Sequence[str] = ("distill",)) -> list[str]:
    return [sys.executable, "-m", "spkd", *of, *arguments]


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes of the ranks, in their order."""
    numbers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(number) for number in numbers if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()]


@pytest.fixture
def running() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give a function that starts a command, all of whose processes are ended after the test, however it ends."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command(*arguments), stdout=pipe, stderr=pipe, text=True, start_new_session=True))
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            for number in (*children(process), process.pid):
                os.kill(number, signal.SIGKILL)
        process.communicate()


def test_two_processes_end_with_the_weights_of_one_with_a_tape_and_a_stop_too(
    options: list[str], tmp_path: Path
) -> None:
    tapes = {name: ["--tape", str(tmp_path / name), "--tape_dtype", "float32"] for name in ("tape", "of_one")}
    exact = [*options, "--epochs", "2", "--teacher_precision", "32-true", "--mixup", "1", "--turns"]
    begun = [str(tmp_path / "tape"), *without_method(exact), "--methods", "sp+kd+at", *tapes["tape"][2:]]
    stopped = subprocess.run(
        command(*begun, "--devices", "2", "--max_time", "0", of=("tape", "record")), capture_output=True, text=True
    )
    assert stopped.returncode == 3, stopped.stderr
    runs = {
        "one": [*tapes["of_one"], "--devices", "1"],
        "two": ["--devices", "2"],
        "recorded": [*tapes["tape"], "--devices", "2"],
        "played": [*tapes["tape"], "--devices", "2"],
    }
    said = {}
    for name, arguments in runs.items():
        arguments = [*exact, *arguments, "--out", str(tmp_path / name)]
        for flag in ("--max_time=0", "--resume") if name == "two" else ("--resume",):
            done = subprocess.run(command(*arguments, flag), capture_output=True, text=True)
            assert done.returncode == (3 if flag == "--max_time=0" else 0), done.stderr
        said[name] = done.stderr
    assert f"{AGREE_EVERY} of 16 steps recorded" in said["recorded"]
    assert "16 of 16 steps recorded" in said["played"]
    last = {name: torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in runs}
    weights = {name: checkpoint["distiller"] for name, checkpoint in last.items()}
    metrics = {name: (tmp_path / name / "metrics.csv").read_text() for name in runs}
    assert metrics["two"] == metrics["recorded"] == metrics["played"]
    columns = {name: [float(value) for value in text.splitlines()[-1].split(",")] for name, text in metrics.items()}
    assert columns["two"] == pytest.approx(columns["one"], rel=1e-3)
    for key, value in weights["one"].items():
        torch.testing.assert_close(weights["two"][key], value, rtol=2e-4, atol=2e-5)
        assert torch.equal(weights["recorded"][key], weights["two"][key])
        assert torch.equal(weights["played"][key], weights["two"][key])
    for path in (tmp_path / "of_one").glob("*.data"):
        one, two = (np.fromfile(tmp_path / tape / path.name, np.float32) for tape in ("of_one", "tape"))
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_an_error_is_that_of_the_network_that_is_saved(tmp_path: Path) -> None:
    """Each process sees a part of the validation images, and its batch norms have statistics of its own before."""
    arguments = ["--model", "wrn-10-1", "--epochs", "1", "--devices", "2", "--accelerator", "cpu"]
    run = command(*arguments, "--out", str(tmp_path / "run"), of=("train",))
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    own = evaluate_saved(tmp_path / "run", DataOptions(), split="val", teacher=None, accelerator="cpu")
    assert result["images"]["val"] == own.images > 256, "one batch would leave nothing to one of them"
    assert (result["val_error"], result["val_balanced_error"]) == (own.top1_error, own.balanced_error)


def test_weights_on_which_no_loss_depends_stay_as_they_are_in_several_processes_too(
    options: list[str], tmp_path: Path
) -> None:
    source = tmp_path / "spare.py"
    source.write_text(SPARE)
    arguments = [*options, "--student", f"{source}:Spare", "--taps", "body.3=body", "--epochs", "1"]
    arguments += ["--teacher_precision", "32-true"]
    for count in ("1", "2"):
        own = ["--devices", count, "--out", str(tmp_path / count)]
        done = subprocess.run(command(*arguments, *own), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "no loss depends on student.network.other.weight, " in done.stderr
    longer = [*arguments, "--epochs", "2", "--out", str(tmp_path / "both")]
    for count, flag in (("2", "--max_time=0"), ("1", "--resume")):  # the same optimizer, whatever the devices
        done = subprocess.run(command(*longer, "--devices", count, flag), capture_output=True, text=True)
        assert done.returncode == (3 if count == "2" else 0), done.stderr
    assert "continuing from" in done.stderr
    one, two = (load_file(tmp_path / count / "student" / "model.safetensors") for count in ("1", "2"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=2e-4, atol=2e-5)
        assert torch.equal(two[key], value) or key.startswith("body")


def without_method(options: list[str]) -> list[str]:
    at = options.index("--method")
    return options[:at] + options[at + 4 :]  # nor the loss's weight, which a tape does not depend on


def test_torchrun_starts_the_same_run(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--epochs", "1", "--out", str(tmp_path / "run")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, "-m", "spkd", "distill", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kept: epoch 1 of 1") == 1
    assert (tmp_path / "run" / "result.json").exists()


def two_machines(
    arguments: list[str], folders: tuple[Path, Path], option: str = "--out"
) -> list[subprocess.CompletedProcess[str]]:
    """Run the command under a launcher of its own for each of two machines, and return both when they are done.

    Each has its own folder for ``option``.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "-m", "spkd", "distill", *arguments]
    begun = [
        subprocess.Popen([*launcher, option, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    try:
        said = [process.communicate(timeout=300) for process in begun]
    finally:
        for process in begun:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(begun, said, strict=True)
    ]


def test_two_machines_are_one_run(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = two_machines([*options, "--epochs", "1"], (folder, folder))
    assert [process.returncode for process in done] == [0, 0], done
    assert sum(process.stderr.count("kept: epoch 1 of 1") for process in done) == 1
    assert (folder / "result.json").exists()


@pytest.mark.parametrize("flags", [["--resume"], []])
def test_a_folder_that_machines_do_not_share_is_noticed(flags: list[str], options: list[str], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    stopped = subprocess.run(command(*options, "--max_time", "0", "--out", str(one)), capture_output=True, text=True)
    assert stopped.returncode == 3, stopped.stderr
    done = two_machines([*options, *flags], (one, other))
    assert all(process.returncode for process in done)
    told = "".join(process.stderr for process in done)
    assert re.search(r"spkd: error: \S+ is not the same folder for all 2 processes.*--out", told), told
    assert not other.exists()


def test_a_tape_that_machines_do_not_share_is_noticed(options: list[str], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    arguments = [str(one), *without_method(options), "--epochs", "1", "--methods", "sp"]
    filled = subprocess.run(command(*arguments, of=("tape", "record")), capture_output=True, text=True)
    assert filled.returncode == 0, filled.stderr
    short = [*options, "--method", "sp", "--epochs", "1", "--timeout_seconds", "60", "--out", str(tmp_path / "run")]
    done = two_machines(short, (one, other), "--tape")
    assert all(process.returncode for process in done)
    told = "".join(process.stderr for process in done)
    assert re.search(r"spkd: error: \S+ is not the same folder for all 2 processes.*--tape", told), told


def test_bad_input_is_told_once(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--taps", "nowhere", "--devices", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("error") == 1
    assert "has no layer 'nowhere'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_all_at_once(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--lr", "1e30", "--epochs", "300", "--devices", "2", "--out", str(tmp_path / "run")]
    begun = time.monotonic()
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert re.search("the loss is not finite: term .* in epoch 1, step [0-9]+", done.stderr), done.stderr
    assert time.monotonic() - begun < 300, "one has waited for the other"


def test_a_stop_leaves_a_checkpoint_that_goes_on(
    options: list[str], tmp_path: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "run"
    process = running(*options, *LONG, "--devices", "2", "--out", str(folder))
    wait_for(process, folder / "checkpoints" / "last.ckpt")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "--resume continues from the checkpoint" in errors
    again = subprocess.run(
        command(*options, *LONG, "--devices", "2", "--out", str(folder), "--resume", "--max_time", "5"),
        capture_output=True,
        text=True,
    )
    assert again.returncode == 3, again.stderr
    assert "continuing from" in again.stderr


def test_a_signal_before_there_is_anything_to_save_is_an_interruption(
    options: list[str], tmp_path: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    process = running(*options, "--devices", "2", "--out", str(tmp_path / "run"))
    while len(children(process)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (130, "spkd: error: interrupted")


def test_a_second_signal_is_an_interruption_too(
    options: list[str], tmp_path: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "run"
    process = running(*options, *LONG, "--devices", "2", "--out", str(folder))
    wait_for(process, folder / "checkpoints" / "last.ckpt")
    first, second = children(process)
    os.kill(second, signal.SIGSTOP)  # so that neither can end by the first one
    deadline = time.monotonic() + 60
    while group_lives(first):  # two that come at once are one
        assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "spkd: error: interrupted"


@pytest.mark.parametrize(
    ("number", "patience", "line"),
    [
        (signal.SIGKILL, [], r"process 2 of 2 died \(SIGKILL\), so the run has ended; --resume continues"),
        (
            signal.SIGSTOP,
            ["--timeout_seconds", "20"],  # which must be enough to start, too
            "another process of this run has died or has not answered for 20 s .*--resume continues",
        ),
    ],
)
def test_when_one_dies_or_hangs_the_run_ends_with_a_line(
    options: list[str],
    tmp_path: Path,
    running: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
    patience: list[str],
    line: str,
) -> None:
    folder = tmp_path / "run"
    process = running(*options, *LONG, "--devices", "2", *patience, "--out", str(folder))
    wait_for(process, folder / "checkpoints" / "last.ckpt")
    ranks = children(process)
    assert len(ranks) == 2
    os.kill(ranks[1], number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert re.search(line, errors.splitlines()[-1]), errors
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)


class Ended:
    """A process with an exit code; with None, one that is at work until it is killed."""

    def __init__(self, code: int | None) -> None:
        self.exitcode = code

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.exitcode = -signal.SIGKILL if self.exitcode is None else self.exitcode


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ((0, 0), None),
        ((0, 3, 1), 1),
        ((1, -signal.SIGKILL), 1),
        ((1, None, -signal.SIGKILL), 2),
        ((4, 1), 1),
        ((4, 1, -signal.SIGKILL), 2),
        ((4, 4), 0),
        ((0, -signal.SIGTERM, -signal.SIGKILL), 1),
    ],
)
def test_what_others_follow_from_is_told_rather_than_they(codes: tuple[int | None, ...], first: int | None) -> None:
    """Where the launcher looks only once both have ended."""
    workers = [Ended(code) for code in codes]
    assert _watch(workers) == first
    assert not any(worker.is_alive() for worker in workers)
