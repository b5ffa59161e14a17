"""What tests of several folders build, wait for and read."""

from __future__ import annotations

import contextlib
import io
import math
import os
import subprocess
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from rich.console import Console, RenderableType
from safetensors.torch import load_file
from torch import Tensor

from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.saved_model import save_classifier
from spkd.models.wrn import WideResNet
from spkd.training.progress import Display

# The same examples in every call, however slow the machine is; before CASES, which follows it.
settings.register_profile("spkd", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spkd")
CASES = settings(max_examples=25)


class Heard(Display):
    """Keeps the lines that are shown, in a list of one's own."""

    def __init__(self, lines: list[str] | None = None) -> None:
        self.lines = [] if lines is None else lines

    def say(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line)


class Counted(Display):
    """Keeps what is shown of how much is done; ``steps`` begins with how many there are of what."""

    def __init__(self) -> None:
        self.steps: list[object] = []
        self.texts: list[str] = []

    def begin(self, title: str, steps: int, done: int) -> None:
        """Keep what is begun."""
        self.steps.append((title, steps))

    def update(self, done: int, text: str, left: float | None = None) -> bool:
        """Keep what is done."""
        self.steps.append(done)
        self.texts.append(text)
        return True


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loop_rows(own: Tensor, batch: Tensor) -> Tensor:
    """Return the rows of G of some images of a batch, one number at a time: the paper's equations 1 and 2."""
    images, others = ([image.flatten().tolist() for image in part.double()] for part in (own, batch))
    rows = []
    for image in images:
        row = [math.fsum(a * b for a, b in zip(image, other, strict=True)) for other in others]
        norm = math.sqrt(math.fsum(value * value for value in row))
        rows.append([value / norm if norm else 0.0 for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights that a run has saved."""
    return load_file(folder / "student" / "model.safetensors")


def wait_for(process: subprocess.Popen[str], ready: Path, changed_since: int = 0) -> None:
    """Wait until a process has written a file, after the time ``changed_since`` in nanoseconds."""
    deadline = time.monotonic() + 500
    while process.poll() is None:
        assert time.monotonic() < deadline, f"{ready} is not written"
        if ready.exists() and ready.stat().st_mtime_ns > changed_since:
            return
        time.sleep(0.005)
    raise AssertionError(f"the process ended by itself: {process.communicate()}")


def group_lives(group: int) -> bool:
    """Return whether any process of a group has not ended, though nobody may yet have asked for its exit code."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it is gone
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            states |= {state} if int(of) == group else set()
    return states != {"Z"}


def printed(renderable: RenderableType, width: int = 160) -> str:
    """Return what rich shows, without colours."""
    written = io.StringIO()
    Console(width=width, file=written, color_system=None).print(renderable)
    return written.getvalue()


def compress(path: Path) -> None:
    """Compress the entries of a zip archive, as torch.save leaves them not."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))


def save_grey(folder: Path, classes: Sequence[str], width: int, batches: int) -> Classifier:
    """Save a classifier of grey images as a run does, whose normalisation matters and whose norms have seen images."""
    torch.manual_seed(3)
    info = ModelInfo(f"wrn-10-{width}", tuple(classes), 1, 8, Normalisation((0.3,), (0.2,)))
    classifier = Classifier(WideResNet(10, width, num_classes=len(classes), in_channels=1), info)
    classifier.train()
    with torch.no_grad():
        for _ in range(batches):
            classifier(torch.rand(32, 1, 8, 8))
    classifier.eval()
    save_classifier(classifier, folder / "student")
    return classifier


def never(name: str) -> bool:
    """Say of no task that another process is at it."""
    return False
