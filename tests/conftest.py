"""What several tests share: a small network of a user's own in a file, and a finished teacher."""

import itertools
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before torch is loaded, here and in the processes that tests start: several of them run beside each other, and threads
# that wait for each other on busy cores make every step many times slower.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from helpers import Heard

from spkd.files import reserve
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.run import run

TINY = '''
"""A network of a user's own, with dropout so that a step's random numbers matter."""
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes=10, width=4, dropout=0.1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images):
        return self.head(self.dropout(self.body(self.stem(images)).mean((2, 3))))
'''


@pytest.fixture(scope="session")
def tiny_source() -> str:
    """The text of a user's file with a small network."""
    return TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a small network in a user's file."""
    path = tmp_path_factory.mktemp("own") / "tiny.py"
    path.write_text(TINY)
    return f"{path}:Tiny"


@pytest.fixture(scope="session")
def teacher(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a small teacher on the digits."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    request = Request(model=f"{tiny}?width=16", overrides={"epochs": 3, "lr": 0.2})
    assert run(request, folder, Runtime(accelerator="cpu"), Display()) is not None
    return folder


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Let what a test draws without a seed of its own be the same whichever tests come before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def heard() -> Heard:
    """A display whose lines can be read afterwards."""
    return Heard()


@pytest.fixture
def ordered_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorBoard read the files of one second in their order: they are sorted by names that end in a count."""
    counter = SimpleNamespace(get=itertools.count(10).__next__)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", counter)


@pytest.fixture
def keeps_room(tmp_path: Path) -> None:
    """Skip what needs a file system that keeps room for files."""
    probe = tmp_path / "probe"
    reserve(probe, 1 << 20)
    kept = 512 * probe.stat().st_blocks
    probe.unlink()
    if kept < 1 << 20:
        pytest.skip("this file system keeps no room for files")
