"""``python -m benchmarks.memory FORM BATCH WIDTH``: one loss with its gradient, once, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import similarity_loss
from spkd.functional import similarity_preserving_loss

FORMS = {"textbook": similarity_loss, "spkd": similarity_preserving_loss}


def once_in_a_process(form: str, batch: int, width: int) -> dict[str, Any]:
    """Return the value, the seconds, and by how many bytes memory's peak exceeds the features."""
    command = [sys.executable, "-m", "benchmarks.memory", form, str(batch), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    torch.manual_seed(0)
    form, batch, width = FORMS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(student: torch.Tensor, teacher: torch.Tensor) -> float:
        loss = form(student, teacher)
        loss.backward()
        return float(loss.detach())

    # What is loaded and started at the first use is not the loss's.
    run(torch.randn(8, 16, device=device, requires_grad=True), torch.randn(8, 16, device=device))
    student, teacher = (
        torch.randn(batch, width, device=device, requires_grad=True),
        torch.randn(batch, width, device=device),
    )
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far
    before = _memory(device, peak=False)
    begun = time.perf_counter()
    value = run(student, teacher)
    seconds = time.perf_counter() - begun
    print(json.dumps({"value": value, "seconds": seconds, "bytes": _memory(device, peak=True) - before}))


def _memory(device: str, *, peak: bool) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM" if peak else "VmRSS"
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
