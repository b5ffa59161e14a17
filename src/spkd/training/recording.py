"""Recording what a teacher says, and playing it: which tape fits a run, and what it gives each step.

Several processes with a part of each batch record what the teacher says of the whole batch; the first one writes it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import Tensor

from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.errors import InputError, RunFailed
from spkd.files import locked
from spkd.losses.methods import joined_methods
from spkd.losses.objective import Objective, Term
from spkd.models.classifier import same_classes
from spkd.models.inference import InferenceForm, Precision, inference_form
from spkd.pairing import block_ends
from spkd.processes import Division, divide
from spkd.training.batches import LOOKED_AT, first_batch, make_stream, validation_batches
from spkd.training.devices import agreed, given_up, make_fabric, require_one_folder
from spkd.training.evaluation import top1_error
from spkd.training.options import Request, Runtime, seconds
from spkd.training.progress import Display
from spkd.training.setup import Setup, set_up
from spkd.training.signals import stop_signals
from spkd.training.tape import Manifest, Tape, TapeDtype

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Player:
    """Gives what the teacher says of each step: from the tape where it is there, else from the teacher, recording it.

    What it gives is the same in either case, rounded as it is on the tape.

    Args:
        tape: of this teacher and stream, with room for the objective's memories.
        objective: whose terms are to be given what they remember.
        distiller: with the teacher; None where all that is needed has been recorded.
        device: where the values are wanted.
        part: which part of each batch's images this process has, and of how many.
        recorded: the steps that are on the tape, where several processes must all ask the teacher or none. None asks
            it whenever something is missing.
    """

    def __init__(
        self,
        tape: Tape,
        objective: Objective,
        distiller: Distiller | None,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
        recorded: NDArray[np.bool_] | None = None,
    ) -> None:
        self._tape, self._distiller, self._device = tape, distiller, device
        self._part, self._parts = part
        self._recorded = recorded
        self._objective = objective

    def __call__(self, step: int, images: Tensor) -> dict[str, Tensor]:
        """Return by term name what the teacher says of the images of a step.

        Raises:
            RunFailed: when the tape turns out to be damaged at this step, and there is no teacher to ask or the other
                processes play the step.
        """
        found = None
        if self._recorded is None or self._recorded[step]:
            found = self._tape.read(step, self._objective.memories)
        if found is None:
            found = self._record(step, images)
        return {term.name: self._to_device(self._own(term, found[term.memory])) for term in self._objective.terms}

    def _own(self, term: Term, value: Tensor) -> Tensor:
        """Return what this process is to have of a memory: the rows of its images, where the term reads no others."""
        if not term.loss.mean_over_images:
            return value
        return torch.tensor_split(value, self._parts)[self._part].contiguous()

    def _record(self, step: int, images: Tensor) -> dict[str, Tensor]:
        alone = self._recorded is not None and self._recorded[step]
        if self._distiller is None or alone:
            self._tape.forget_damaged()
            raise RunFailed(
                f"--tape {self._tape.folder} is damaged at step {step + 1}: the same command, for a single run that "
                "has a checkpoint with --resume, records that part again"
            )
        said = _said_of_all(self._distiller, self._objective, images)
        return self._tape.rounded(step, said) if self._part else self._tape.write(step, said)

    def _to_device(self, value: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return value.to(self._device)
        return value.pin_memory().to(self._device, non_blocking=True)


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
        memories, steps = setup.objective.memories, setup.recipe.epochs * stream.batches_per_epoch
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


def _prepared(
    setup: Setup, runtime: Runtime, distiller: Distiller, form: InferenceForm, stream: TrainStream, fabric: Fabric
) -> Tape:
    """Return the tape, begun or widened by the first process, which tells the others what it holds."""
    images, _ = first_batch(stream)
    for term in setup.objective.terms:
        if not term.memory:
            raise InputError(f"--tape: what the term {term.name!r} remembers has no name, so it cannot be recorded")
    folder = Path(str(runtime.tape))
    begun = setup.tape or Tape(folder, _manifest(setup, runtime.tape_dtype or "float16", form, stream, images))
    full = _said_of_all(distiller, setup.objective, images)
    last = _said_of_all(distiller, setup.objective, images[: stream.own_size(stream.batches_per_epoch - 1)])
    tape, refusal = begun, None
    if fabric.is_global_zero:
        try:
            # Another run may have begun the same tape, or another one in the same folder, since the setup looked.
            _check_room(Tape.open(folder) or begun, setup, full)
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
        InputError: when the disk has too little room.
    """
    earlier = Tape.open(tape.folder)
    for memory in full:
        if memory not in tape.manifest.memories:
            tape.add(memory, full[memory], last[memory])
    tape.save()
    try:
        tape.reserve(full, _steps(tape, setup))
    except OSError as error:
        Tape.erase(tape.folder) if earlier is None else earlier.save()
        raise _no_room(tape, setup, full, f" ({error.strerror})") from error


def _said_of_all(distiller: Distiller, objective: Objective, images: Tensor) -> dict[str, Tensor]:
    """Return by memory what the teacher says of a batch, of the whole one where processes have divided it."""
    division = divide(len(images), images.device)
    said = distiller.remember(images)
    return {
        term.memory: said[term.name]
        if division is None or not term.loss.mean_over_images
        else _gathered(term, said[term.name], division)
        for term in objective.terms
    }


def _gathered(term: Term, own: Tensor, division: Division) -> Tensor:
    """Return what the term remembers of all images."""
    if own.shape[:1] != (division.sizes[division.rank],):
        raise InputError(
            f"--tape: the term {term.name!r} remembers a tensor of shape {tuple(own.shape)} of "
            f"{division.sizes[division.rank]} images; a loss with mean_over_images must remember a row of each"
        )
    return division.gather_any(own)


def announcement(tape: Tape, setup: Setup) -> str:
    """Return in words how large the tape will be and how much of it is there."""
    names, steps = setup.objective.memories, setup.recipe.epochs * tape.manifest.batches_per_epoch
    size = tape.bytes_of(names, setup.recipe.epochs)
    kept = ", ".join(f"{name} {decimal(tape.manifest.memories[name].slot_bytes)}" for name in names)
    return (
        f"tape {tape.folder}: {tape.recorded(names, steps):,} of {steps:,} steps recorded, {decimal(size)} in all "
        f"({tape.manifest.dtype}; each step {kept})"
    )


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
    limit = seconds(runtime.max_time)
    deadline = None if limit is None else time.monotonic() + limit
    runtime = replace(runtime, tape=str(folder))
    earlier = Tape.open(Path(folder))
    if earlier is not None and (damaged := earlier.forget_damaged()):
        display.say(f"tape {folder}: {damaged:,} damaged steps, which are recorded again")
    setup = set_up(replace(request, method=joined_methods(methods)), runtime)
    fabric = make_fabric(runtime)
    try:
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
    except RuntimeError as error:
        if (told := given_up(error, runtime, "the same command goes on")) is not None:
            raise told from error
        raise
    tape = Tape.open(Path(folder))
    if tape is None:
        raise InputError(f"--tape {folder} could not be opened")
    return {
        "kind": "tape",
        "steps": setup.recipe.epochs * stream.batches_per_epoch,
        "bytes": tape.bytes_of(setup.objective.memories, setup.recipe.epochs),
        "memories": list(setup.objective.memories),
        "precision": tape.manifest.precision,
        **tape.manifest.teacher,
    }


def cheapest_teacher(setup: Setup, stream: TrainStream, fabric: Fabric) -> InferenceForm:
    """Return the teacher on the device in its cheapest form, of one precision in all processes.

    Raises:
        InputError: when the setup has no teacher.
    """
    if setup.teacher is None:
        raise InputError("a teacher is needed: give --teacher")
    teacher, objective = setup.teacher.to(fabric.device), setup.objective
    images = first_batch(stream)[0][:LOOKED_AT]

    def form(precision: Precision) -> InferenceForm:
        return inference_form(
            teacher, objective.teacher_taps, images, logits=objective.reads_teacher_logits, precision=precision
        )

    own = form(setup.recipe.teacher_precision if setup.tape is None else setup.tape.manifest.precision)
    if fabric.world_size == 1:
        return own
    # Each has looked at images of its own, and what they gather must be of one kind.
    short = torch.tensor(int(own.precision == "bf16-true"), device=fabric.device)
    count = cast(Tensor, fabric.all_reduce(short, reduce_op="sum"))
    return form("32-true") if 0 < int(count) < fabric.world_size and own.precision == "bf16-true" else own


def distiller_of(setup: Setup, form: InferenceForm) -> Distiller:
    """Return the setup's student and objective with its teacher in the form in which that is to run."""
    return Distiller(setup.student, form.network, setup.objective, teacher_micro_batch_size=form.micro_batch_size)


def _record_all(
    player: Player, stream: TrainStream, setup: Setup, fabric: Fabric, display: Display, deadline: float | None
) -> bool:
    """Record what is missing; return whether the end was reached."""
    epochs = setup.recipe.epochs
    with display, stop_signals() as received:
        display.begin(f"tape of {setup.request.teacher}", epochs * stream.batches_per_epoch, 0)
        step, images_done, begun = 0, 0, time.perf_counter()
        for epoch in range(epochs):
            for batch, (images, _) in enumerate(stream.epoch(epoch)):
                player(step, images)
                step += 1
                images_done += stream.size(batch)
                rate = images_done / (time.perf_counter() - begun)
                display.update(step, f"epoch {epoch + 1}/{epochs}, {rate:,.0f} images/s")
                stop = bool(received) or (deadline is not None and time.monotonic() >= deadline)
                if agreed(fabric, step, stop):
                    return False
    return True


def _manifest(setup: Setup, dtype: TapeDtype, form: InferenceForm, stream: TrainStream, images: Tensor) -> Manifest:
    try:
        ends = tuple(candidate.name for candidate in block_ends(form.network, images))
    except InputError:
        ends = ()  # a network of vectors, whose layers are named by hand
    device = images.device
    facts: dict[str, float | None] = {"teacher_val_error": None, "teacher_test_error": None}
    if setup.teacher is not None and same_classes(setup.teacher, setup.student):
        for name, split in (("val", setup.data.val), ("test", setup.data.test)):
            if split is not None:
                facts[f"teacher_{name}_error"] = top1_error(setup.teacher, validation_batches(split, setup, device))
    return Manifest(
        identity=setup.tape_identity(),
        dtype=dtype,
        batches_per_epoch=stream.batches_per_epoch,
        precision=form.precision,
        block_ends=ends,
        teacher=facts,
    )


def _steps(tape: Tape, setup: Setup) -> int:
    return setup.recipe.epochs * tape.manifest.batches_per_epoch


def _check_room(tape: Tape, setup: Setup, full: Mapping[str, Tensor]) -> None:
    """Refuse to begin what will not fit; ``full`` is, by memory, what is remembered of a full batch."""
    if _needed(tape, setup, full) > _free(tape.folder):
        raise _no_room(tape, setup, full)


def _needed(tape: Tape, setup: Setup, full: Mapping[str, Tensor]) -> int:
    """Return the bytes for which the disk must have room yet."""
    steps = _steps(tape, setup)

    def missing(name: str, slot: int) -> int:
        return min((steps - tape.recorded([name], steps)) * slot, max(0, steps * slot - tape.room_of(name)))

    return sum(missing(name, tape.slot_bytes(value)) for name, value in full.items())


def _free(folder: Path) -> int:
    above = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(above).free


def _no_room(tape: Tape, setup: Setup, full: Mapping[str, Tensor], why: str = "") -> InputError:
    needed, free = (f"{number / 1e9:,.1f} GB" for number in (_needed(tape, setup, full), _free(tape.folder)))
    return InputError(
        f"--tape {tape.folder}: {needed} are to be recorded and {free} are free there{why}; give a folder on a larger "
        "disk, train for fewer epochs, or use no tape"
    )
