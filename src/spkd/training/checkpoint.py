"""A run's checkpoint: one file, written atomically, that holds all that the run needs to go on."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spkd.errors import UnusableFolder
from spkd.files import not_now, write_bytes_atomically
from spkd.models.weights import refuse_compressed

FORMAT = 1


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        epoch: the epoch under way, from 0.
        batch: batches of it that are done.
        sums: running sums of each loss term over this epoch's images, by name.
        images: images of this epoch that are done.
        rows: one row of numbers for each finished epoch, as in ``metrics.csv``.
        best_error: validation error in percent of the best epoch so far, by the measure that the recipe selects.
        best_balanced_error: its balanced validation error; infinite where an earlier version did not measure it.
        best_epoch: that epoch, from 1; the latest of equals.
        best_weights: the student's weights then, on the CPU.
        seconds: time spent in training steps.
        images_total: images trained on in these seconds.
    """

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best_error: float = float("inf")
    best_balanced_error: float = float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    images_total: int = 0


def save_checkpoint(path: Path, state: TrainingState, tensors: dict[str, Any]) -> None:
    """Write ``state`` and the state dicts in ``tensors`` to ``path``, atomically.

    Raises:
        InputError: when it cannot be written (a full disk, say); the earlier checkpoint is untouched.
    """
    # Serialised in memory first: a disk that fills up then shows as an OSError with its reason.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "state": {**vars(state)}, **tensors}, buffer)
    write_bytes_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Return what :func:`save_checkpoint` wrote. No code is unpickled.

    Raises:
        UnusableFolder: for a file that is no such checkpoint.
        InputError: for one that cannot be read at the moment.
    """
    try:
        refuse_compressed(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if loaded.pop("format") != FORMAT:
            raise UnusableFolder(f"{path} was written by another version", "give --overwrite to begin anew")
        return TrainingState(**loaded.pop("state")), loaded
    except UnusableFolder:
        raise
    except (OSError, MemoryError) as error:
        raise not_now(path, error) from error
    except Exception as error:
        raise UnusableFolder(f"{path} is no readable checkpoint", "give --overwrite to begin anew") from error
