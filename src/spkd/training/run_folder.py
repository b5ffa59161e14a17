"""The folder of one run: what lies where, and when it may be written."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spkd.errors import InputError
from spkd.files import write_text_atomically

OWN = ("config.yaml", "metrics.csv", "checkpoints", "student", "tensorboard", "result.json", "export")
"""What a run writes; ``--overwrite`` removes these and nothing else."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run: ``config.yaml``, ``metrics.csv``, ``checkpoints/``, ``student/``, ``result.json``."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where the latest checkpoint lies."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def student(self) -> Path:
        """The folder of the saved model, there once the run has finished."""
        return self.path / "student"

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard logs."""
        return self.path / "tensorboard"

    def config(self) -> dict[str, Any] | None:
        """Return what ``config.yaml`` holds, or ``None`` where no run has begun."""
        path = self.path / "config.yaml"
        if not path.exists():
            return None
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(f"{path} is no readable YAML; remove it or choose another --out") from error
        return dict(loaded)

    def result(self) -> dict[str, Any] | None:
        """Return what ``result.json`` holds, or ``None`` where the run has not finished."""
        path = self.path / "result.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
        except ValueError as error:
            raise InputError(f"{path} is no readable JSON; give --overwrite to run again") from error

    def prepare(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a run of ``config``, or refuse.

        Raises:
            InputError: when it already holds a run and neither flag is given, when ``resume`` meets a run of
                another configuration (the differing fields are named), when it holds something else, or when
                it cannot be written.
        """
        present = self.config()
        if present is not None and not (resume or overwrite):
            raise InputError(f"{self.path} already holds a run: give --resume, --overwrite or another --out")
        if present is None and not overwrite and self.path.exists() and any(_visible(self.path)):
            raise InputError(f"{self.path} holds other files and no run: choose another --out")
        if present is not None and resume:
            _refuse_other(present, config, self.path)
            return
        for name in OWN:
            _remove(self.path / name)
        write_text_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write ``metrics.csv`` anew: one row per epoch, the union of the rows' keys as columns."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.path / "metrics.csv", text.getvalue())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``: the last thing that a run does."""
        write_text_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")


def _visible(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"--out {path} is a file, not a folder")
    return [entry for entry in path.iterdir() if not entry.name.startswith(".")]


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _refuse_other(present: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    differing = [key for key in dict(present) | dict(config) if present.get(key) != config.get(key)]
    if differing:
        shown = "; ".join(f"{key} was {present.get(key)!r}, is {config.get(key)!r}" for key in differing[:3])
        raise InputError(f"{path} holds a run of another configuration: {shown}. Give --overwrite or another --out")
