"""From a run to its tape, begun or widened so that all that the teacher says has a place."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from torch import Tensor

from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.errors import InputError
from spkd.files import locked
from spkd.models.inference import InferenceForm
from spkd.pairing import block_ends
from spkd.training.batches import first_batch
from spkd.training.devices import require_one_folder
from spkd.training.options import Runtime
from spkd.training.playback import Player, said_of_all
from spkd.training.progress import Display
from spkd.training.setup import Setup
from spkd.training.tape import Manifest, Tape, TapeDtype
from spkd.training.tape_room import check_room, no_room
from spkd.training.teacher import teacher_errors_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def recorder(
    setup: Setup,
    runtime: Runtime,
    distiller: Distiller,
    form: InferenceForm,
    stream: TrainStream,
    fabric: Fabric,
    display: Display,
) -> Player:
    """Return what plays the tape that ``runtime`` names and records on it what is missing.

    The tape is begun or widened so that all of the objective's memories have a place.

    Raises:
        InputError: when a term's loss cannot be recorded, or the disk has too little room for the whole run.
    """
    tape = _prepared(setup, runtime, distiller, form, stream, fabric)
    display.say(announcement(tape, setup))
    part, recorded = (fabric.global_rank, fabric.world_size), None
    if fabric.world_size > 1:
        memories, steps = setup.objective.memories, tape.steps_in(setup.recipe.epochs)
        recorded = fabric.broadcast(tape.is_recorded(memories, steps))
        # Another run may have recorded more since the first process looked.
        require_one_folder(fabric, "--tape", tape.folder, [bool((tape.is_recorded(memories, steps) >= recorded).all())])
    return Player(tape, setup.objective, distiller, fabric.device, part, recorded)


def require_one_tape(setup: Setup, runtime: Runtime, fabric: Fabric) -> None:
    """Return when all processes of the run have found the same in the folder of its tape, if it has one.

    Raises:
        InputError: in all of them, when they have not.
    """
    if runtime.tape is not None:
        require_one_folder(fabric, "--tape", Path(runtime.tape), [setup.tape is not None, setup.plays])


def announcement(tape: Tape, setup: Setup) -> str:
    """Return in words how large the tape will be and how much of it is there."""
    names, steps = setup.objective.memories, tape.steps_in(setup.recipe.epochs)
    size = tape.bytes_of(names, setup.recipe.epochs)
    kept = ", ".join(f"{name} {decimal(tape.manifest.memories[name].slot_bytes)}" for name in names)
    return (
        f"tape {tape.folder}: {tape.recorded(names, steps):,} of {steps:,} steps recorded, {decimal(size)} when "
        f"complete ({tape.manifest.dtype}; per step: {kept})"
    )


def _prepared(
    setup: Setup, runtime: Runtime, distiller: Distiller, form: InferenceForm, stream: TrainStream, fabric: Fabric
) -> Tape:
    """Return the tape, begun or widened by the first process, which tells the others what it holds."""
    images = first_batch(stream).shown
    for term in setup.objective.terms:
        if not term.memory:
            raise InputError(f"--tape: what the term {term.name!r} remembers has no name, so it cannot be recorded")
    folder = Path(str(runtime.tape))
    begun = setup.tape or Tape(folder, _manifest(setup, runtime.tape_dtype or "float16", form, stream, images, fabric))
    full = said_of_all(distiller, setup.objective, images)
    last = said_of_all(distiller, setup.objective, images[: stream.own_size(stream.batches_per_epoch - 1)])
    tape, refusal = begun, None
    if fabric.is_global_zero:
        try:
            # Another run may have begun the same tape, or another one in the same folder, since the setup looked.
            check_room(Tape.open(folder) or begun, setup, full)
            with locked(folder, wait=True):
                tape = Tape.open(folder) or begun
                tape.check(setup.tape_identity(), form.precision, runtime.tape_dtype)
                _widen(tape, setup, full, last)
        except InputError as error:
            refusal = error
    manifest, told = fabric.broadcast((tape.manifest, None if refusal is None else str(refusal)))
    if told is not None:
        raise refusal or InputError(told)
    return Tape(folder, manifest)


def _widen(tape: Tape, setup: Setup, full: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> None:
    """Save the tape with a place and room for all memories, or leave the folder as it was.

    Raises:
        InputError: when the disk has too little room, or a file is a link.
    """
    earlier = Tape.open(tape.folder)
    for memory in full:
        if memory not in tape.manifest.memories:
            tape.add(memory, full[memory], last[memory])
    tape.save()
    try:
        tape.reserve(full, tape.steps_in(setup.recipe.epochs))
    except OSError as error:
        Tape.erase(tape.folder) if earlier is None else earlier.save()
        if error.errno == errno.ELOOP:
            raise InputError(f"cannot write {error.filename}: {error.strerror}") from error
        raise no_room(tape, setup, full, f" ({error.strerror})") from error


def _manifest(
    setup: Setup, dtype: TapeDtype, form: InferenceForm, stream: TrainStream, images: Tensor, fabric: Fabric
) -> Manifest:
    try:
        # Of the teacher itself: where a norm was folded away, its block ends elsewhere.
        ends = tuple(candidate.name for candidate in block_ends(setup.teacher or form.network, images))
    except InputError:
        ends = ()  # a network of vectors, whose layers are named by hand
    errors: dict[str, float | None] = {}
    for split in ("val", "test"):
        error, balanced = teacher_errors_of(setup, split, fabric) or (None, None)
        errors |= {f"teacher_{split}_error": error, f"teacher_{split}_balanced_error": balanced}
    return Manifest(
        identity=setup.tape_identity(),
        dtype=dtype,
        batches_per_epoch=stream.batches_per_epoch,
        precision=form.precision,
        block_ends=ends,
        teacher={**errors, "measured_view": setup.student.info.view},
    )
