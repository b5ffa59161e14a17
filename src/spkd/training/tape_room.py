"""The room on the disk that a run's tape needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spkd.errors import NoRoom
from spkd.training.setup import Setup
from spkd.training.tape import Tape


def check_room(tape: Tape, setup: Setup, full: Mapping[str, Tensor]) -> None:
    """Refuse to begin what will not fit; ``full`` is, by memory, what is remembered of a full batch.

    Raises:
        NoRoom: when the disk has too little room.
    """
    if _needed(tape, setup, full) > _free(tape.folder):
        raise no_room(tape, setup, full)


def no_room(tape: Tape, setup: Setup, full: Mapping[str, Tensor], why: str = "") -> NoRoom:
    """Return the error of a disk with too little room; ``why`` is added to what it says of that."""
    needed, free = (f"{number / 1e9:,.1f} GB" for number in (_needed(tape, setup, full), _free(tape.folder)))
    return NoRoom(
        f"--tape {tape.folder}: recording needs {needed}, but {free} are free there{why}; give a folder on a larger "
        "disk, or train for fewer epochs"
    )


def _needed(tape: Tape, setup: Setup, full: Mapping[str, Tensor]) -> int:
    """Return the bytes for which the disk must have room yet."""
    steps = tape.steps_in(setup.recipe.epochs)

    def missing(name: str, slot: int) -> int:
        return min((steps - tape.recorded([name], steps)) * slot, max(0, steps * slot - tape.room_of(name)))

    return sum(missing(name, tape.slot_bytes(value)) for name, value in full.items())


def _free(folder: Path) -> int:
    above = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(above).free
