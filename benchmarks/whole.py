"""A whole run, from image files to a tested student: a plain script against the command, and on 1 and 2 processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spkd.data.options import DataOptions
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.run import run


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of whole processes that distil WRN-16-1 from WRN-40-2, by a script and by the command."""
    sizes = {"train": 40, "test": 20} if smoke else {"train": 1280, "test": 300}
    epochs, networks = (1, ("wrn-10-1", "wrn-10-1")) if smoke else (2, ("wrn-40-2", "wrn-16-1"))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _write_images(folder / "images", sizes)
        data = ["--data", str(folder / "images"), "--epochs", str(epochs), "--batch_size", "16" if smoke else "128"]
        request = Request(
            model=networks[0],
            data=DataOptions(data=str(folder / "images")),
            overrides={"epochs": 1, "batch_size": 16 if smoke else 128},
        )
        run(request, folder / "teacher", Runtime(), Display())
        command = ["spkd", "distill", "--teacher", str(folder / "teacher"), "--student", networks[1], *data]
        command += ["--recipe", "paper", "--method", "sp", "--gamma", "300"]
        tape = ["--tape", str(folder / "tape")]
        kinds = {
            "plain script": [
                "benchmarks.plain_run",
                str(folder / "images"),
                str(folder / "teacher"),
                networks[1],
                str(epochs),
            ],
            "spkd, float32": [*command, "--teacher_precision", "32-true"],
            "spkd": command,
            "spkd, recording a tape": [*command, *tape],
            "spkd, playing it": [*command, *tape],
            "spkd, bf16-mixed, playing it": [*command, *tape, "--precision", "bf16-mixed"],
            "spkd, 2 processes": [*command, "--devices", "2"],
        }
        seconds, rates = {}, {}
        for number, (name, arguments) in enumerate(kinds.items()):
            out = folder / f"run{number}"
            arguments = arguments if number == 0 else [*arguments, "--out", str(out)]
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", *arguments], capture_output=True, check=True)
            seconds[name] = time.perf_counter() - begun
            if number:
                rates[name] = json.loads((out / "result.json").read_text())["images_per_second"]
    return {
        "what": f"{networks[0]} to {networks[1]}, {sizes['train']} PNG files, {epochs} epochs, a process each, once",
        "seconds": seconds,
        "training_images_per_second": rates,
    }


def _write_images(folder: Path, sizes: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    for split, count in sizes.items():
        for index in range(count):
            path = folder / split / f"class{index % 10}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
