"""Recording a whole tape ahead of the runs that play it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spkd.data.stream import TrainStream
from spkd.errors import InputError
from spkd.losses.methods import joined_methods
from spkd.signals import is_past, stop_signals
from spkd.training.batches import make_stream
from spkd.training.devices import agreed, make_fabric, told_in_one_line
from spkd.training.options import Request, Runtime
from spkd.training.playback import Player
from spkd.training.progress import Display
from spkd.training.setup import Setup, set_up
from spkd.training.tape import Tape
from spkd.training.tape_setup import recorder, require_one_tape
from spkd.training.teacher import cheapest_teacher, distiller_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def record(
    request: Request, methods: Sequence[str], folder: str | Path, runtime: Runtime, display: Display
) -> dict[str, Any] | None:
    """Fill the tape in ``folder`` with all that ``methods`` need of the request's teacher, for all of its epochs.

    What has been recorded before stays, so that the same call goes on after a stop.

    Returns:
        What there is to tell of it, or None when it was stopped by ``runtime.max_time`` or a signal.

    Raises:
        InputError: for whatever the user can mend, such as a tape of another teacher or a full disk.
    """
    deadline = runtime.deadline()
    runtime = replace(runtime, tape=str(folder))
    earlier = Tape.open(Path(folder))
    if earlier is not None and (damaged := earlier.forget_damaged()):
        display.say(f"tape {folder}: {damaged:,} steps are damaged, and are recorded again")
    setup = set_up(replace(request, method=joined_methods(methods)), runtime)
    fabric = make_fabric(runtime)
    with told_in_one_line(runtime, "the same command continues"):
        require_one_tape(setup, runtime, fabric)
        for note in setup.notes:
            display.say(note)
        stream = make_stream(setup, fabric.device, (fabric.global_rank, fabric.world_size))
        if setup.teacher is not None:
            form = cheapest_teacher(setup, stream, fabric)
            display.say(f"teacher: {form.note}")
            with contextlib.closing(distiller_of(setup, form).to(fabric.device)) as distiller:
                player = recorder(setup, runtime, distiller, form, stream, fabric, display)
                if not _record_all(player, stream, setup, fabric, display, deadline):
                    return None
    tape = Tape.open(Path(folder))
    if tape is None:
        raise InputError(f"--tape {folder} could not be opened")
    return {
        "kind": "tape",
        "steps": tape.steps_in(setup.recipe.epochs),
        "bytes": tape.bytes_of(setup.objective.memories, setup.recipe.epochs),
        "memories": list(setup.objective.memories),
        "precision": tape.manifest.precision,
        **tape.manifest.teacher,
    }


def _record_all(
    player: Player, stream: TrainStream, setup: Setup, fabric: Fabric, display: Display, deadline: float | None
) -> bool:
    """Record what is missing; return whether the end was reached."""
    epochs, in_epoch = setup.recipe.epochs, stream.batches_per_epoch
    missing = np.flatnonzero(~player.is_recorded(epochs * in_epoch))
    with display, stop_signals() as received:
        display.begin(f"tape of {setup.request.teacher}", epochs * in_epoch, int(missing[0]) if len(missing) else 0)
        images_done, begun = 0, time.perf_counter()
        for epoch in range(epochs):
            gaps = missing[missing // in_epoch == epoch]
            if not len(gaps):
                continue
            start = int(gaps[0]) % in_epoch
            for number, batch in enumerate(stream.batches(epoch, start), start):
                step = epoch * in_epoch + number
                player(step, batch.shown)
                images_done += stream.size(number)
                rate = images_done / (time.perf_counter() - begun)
                display.update(step + 1, f"epoch {epoch + 1}/{epochs}, {rate:,.0f} images/s")
                stop = bool(received) or is_past(deadline)
                if agreed(fabric, step + 1, stop):
                    return False
                if step == gaps[-1]:
                    break
    return True
