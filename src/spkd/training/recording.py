"""Recording what a teacher says, and playing it: which tape fits a run, and what it gives each step."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.errors import InputError, RunFailed
from spkd.files import locked
from spkd.losses.methods import joined_methods
from spkd.losses.objective import Objective
from spkd.models.classifier import same_classes
from spkd.models.inference import InferenceForm, inference_form
from spkd.pairing import block_ends
from spkd.training.batches import LOOKED_AT, first_batch, make_stream, validation_batches
from spkd.training.devices import make_fabric
from spkd.training.evaluation import top1_error
from spkd.training.options import Request, Runtime, seconds
from spkd.training.progress import Display
from spkd.training.setup import Setup, set_up
from spkd.training.signals import stop_signals
from spkd.training.tape import Manifest, Tape, TapeDtype


class Player:
    """Gives what the teacher says of each step: from the tape where it is there, else from the teacher, recording it.

    What it gives is the same in either case, rounded as it is on the tape.

    Args:
        tape: of this teacher and stream, with room for the objective's memories.
        objective: whose terms are to be given what they remember.
        distiller: with the teacher; None where all that is needed has been recorded.
        device: where the values are wanted.
        part: which part of each batch's images this process has, and of how many.
    """

    def __init__(
        self,
        tape: Tape,
        objective: Objective,
        distiller: Distiller | None,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._tape, self._distiller, self._device = tape, distiller, device
        self._part, self._parts = part
        self._divided = {term.name: term.loss.mean_over_images for term in objective.terms}
        self._names = objective.memories
        self._memories = {term.name: term.memory for term in objective.terms}

    def __call__(self, step: int, images: Tensor) -> dict[str, Tensor]:
        """Return by term name what the teacher says of the images of a step.

        Raises:
            RunFailed: when the tape turns out to be damaged at this step and there is no teacher to ask.
        """
        found = self._tape.read(step, self._names)
        if found is None:
            found = self._record(step, images)
        return {
            name: self._to_device(self._own(found[memory]) if self._divided[name] else found[memory])
            for name, memory in self._memories.items()
        }

    def _own(self, value: Tensor) -> Tensor:
        """Return the rows of this process's images."""
        return torch.tensor_split(value, self._parts)[self._part].contiguous()

    def _record(self, step: int, images: Tensor) -> dict[str, Tensor]:
        if self._distiller is None:
            self._tape.forget(step, self._names)
            raise RunFailed(
                f"--tape {self._tape.folder} is damaged at step {step + 1}: the same command records that part again"
            )
        said = self._distiller.remember(images)
        return self._tape.write(step, {self._memories[name]: value for name, value in said.items()})

    def _to_device(self, value: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return value.to(self._device)
        return value.pin_memory().to(self._device, non_blocking=True)


def prepared_tape(
    setup: Setup, runtime: Runtime, distiller: Distiller, form: InferenceForm, stream: TrainStream
) -> Tape:
    """Return the tape that ``runtime`` names, begun or widened so that all of the objective's memories have a place.

    Raises:
        InputError: when a term's loss cannot be recorded, or the disk has too little room for the whole run.
    """
    images, _ = first_batch(stream)
    rest = stream.last_batch_size
    for term in setup.objective.terms:
        if not term.memory:
            raise InputError(f"--tape: what the term {term.name!r} remembers has no name, so it cannot be recorded")
    folder = Path(str(runtime.tape))
    begun = setup.tape or Tape(folder, _manifest(setup, runtime.tape_dtype or "float16", form, stream, images))
    full = distiller.remember(images)
    last = full if rest == len(images) else distiller.remember(images[:rest])
    _check_room(begun, setup, full)
    # Another process may have begun the same tape, or another one in the same folder, since the setup looked.
    with locked(folder, wait=True):
        tape = Tape.open(folder) or begun
        tape.check(setup.tape_identity(), form.precision, runtime.tape_dtype)
        for term in setup.objective.terms:
            if term.memory not in tape.manifest.memories:
                tape.add(term.memory, full[term.name], last[term.name])
        tape.save()
    return tape


def announcement(tape: Tape, setup: Setup) -> str:
    """Return in words how large the tape will be and how much of it is there."""
    names, steps = setup.objective.memories, setup.recipe.epochs * tape.manifest.batches_per_epoch
    size = tape.bytes_of(names, setup.recipe.epochs)
    kept = ", ".join(f"{name} {tape.manifest.memories[name].slot_bytes / 1e3:,.1f} kB" for name in names)
    return (
        f"tape {tape.folder}: {tape.recorded(names, steps):,} of {steps:,} steps recorded, {size / 1e6:,.1f} MB in all "
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
    setup = set_up(replace(request, method=joined_methods(methods)), runtime)
    for note in setup.notes:
        display.say(note)
    device = make_fabric(runtime).device
    stream = make_stream(setup, device)
    tape = setup.tape
    if setup.teacher is not None:
        form = cheapest_teacher(setup, stream, device)
        display.say(f"teacher: {form.note}")
        with contextlib.closing(distiller_of(setup, form).to(device)) as distiller:
            tape = prepared_tape(setup, runtime, distiller, form, stream)
            display.say(announcement(tape, setup))
            player = Player(tape, setup.objective, distiller, device)
            if not _record_all(player, stream, setup, display, deadline):
                return None
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


def cheapest_teacher(setup: Setup, stream: TrainStream, device: torch.device) -> InferenceForm:
    """Return the teacher on the device in its cheapest form.

    Raises:
        InputError: when the setup has no teacher.
    """
    if setup.teacher is None:
        raise InputError("a teacher is needed: give --teacher")
    objective = setup.objective
    return inference_form(
        setup.teacher.to(device),
        objective.teacher_taps,
        first_batch(stream)[0][:LOOKED_AT],
        logits=objective.reads_teacher_logits,
        precision=setup.recipe.teacher_precision if setup.tape is None else setup.tape.manifest.precision,
    )


def distiller_of(setup: Setup, form: InferenceForm) -> Distiller:
    """Return the setup's student and objective with its teacher in the form in which that is to run."""
    return Distiller(setup.student, form.network, setup.objective, teacher_micro_batch_size=form.micro_batch_size)


def _record_all(player: Player, stream: TrainStream, setup: Setup, display: Display, deadline: float | None) -> bool:
    """Record what is missing; return whether the end was reached."""
    epochs = setup.recipe.epochs
    with display, stop_signals() as received:
        display.begin(f"tape of {setup.request.teacher}", epochs * stream.batches_per_epoch, 0)
        step, images_done, begun = 0, 0, time.perf_counter()
        for epoch in range(epochs):
            for images, _ in stream.epoch(epoch):
                player(step, images)
                step += 1
                images_done += len(images)
                rate = images_done / (time.perf_counter() - begun)
                display.update(step, f"epoch {epoch + 1}/{epochs}, {rate:,.0f} images/s")
                if received or (deadline is not None and time.monotonic() >= deadline):
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


def _check_room(tape: Tape, setup: Setup, full: Mapping[str, Tensor]) -> None:
    """Refuse to begin what will not fit; ``full`` is what the terms remember of a full batch."""
    steps = setup.recipe.epochs * tape.manifest.batches_per_epoch
    missing = steps - tape.recorded(setup.objective.memories, steps)
    kinds = {term.memory: full[term.name] for term in setup.objective.terms}
    needed = missing * sum(tape.slot_bytes(value) for value in kinds.values())
    above = next(path for path in (tape.folder, *tape.folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise InputError(
            f"--tape {tape.folder}: {needed / 1e9:,.1f} GB are to be recorded and {free / 1e9:,.1f} GB are free there; "
            "give a folder on a larger disk, fewer --epochs, or no tape"
        )
