"""The teacher of a run: the form in which it is asked, and how good it is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.errors import InputError
from spkd.models.bfloat16 import is_slow_in_bfloat16
from spkd.models.classifier import same_classes
from spkd.models.inference import InferenceForm, inference_form
from spkd.training.batches import LOOKED_AT, first_batch, own_batches
from spkd.training.devices import sum_of_all
from spkd.training.evaluation import errors_of
from spkd.training.playback import Player
from spkd.training.recipe import TeacherPrecision
from spkd.training.setup import Setup

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def cheapest_teacher(setup: Setup, stream: TrainStream, fabric: Fabric) -> InferenceForm:
    """Return the teacher on the device in its cheapest form, of one precision in all processes.

    Raises:
        InputError: when the setup has no teacher.
    """
    if setup.teacher is None:
        raise InputError("a teacher is needed: give --teacher")
    teacher, objective = setup.teacher.to(fabric.device), setup.objective
    images = first_batch(stream).shown[:LOOKED_AT]

    def form(precision: TeacherPrecision) -> InferenceForm:
        return inference_form(
            teacher, objective.teacher_taps, images, logits=objective.reads_teacher_logits, precision=precision
        )

    own = form(setup.recipe.teacher_precision if setup.tape is None else setup.tape.manifest.precision)
    if own.precision == "bf16-true" and is_slow_in_bfloat16(fabric.device.type):
        why = "" if setup.tape is None else ", in which the tape was recorded,"
        own = replace(own, note=f"{own.note}; bfloat16{why} is no faster here than float32")
    if fabric.world_size == 1:
        return own
    # Each has looked at images of its own, and what they gather must be of one kind.
    short = own.precision == "bf16-true"
    count = int(sum_of_all(fabric, torch.tensor(int(short))))
    return form("32-true") if short and count < fabric.world_size else own


def distiller_of(setup: Setup, form: InferenceForm) -> Distiller:
    """Return the setup's student and objective with its teacher in the form in which that is to run."""
    return Distiller(setup.student, form.network, setup.objective, teacher_micro_batch_size=form.micro_batch_size)


def teacher_errors_of(
    setup: Setup, split: Literal["val", "test"], fabric: Fabric, player: Player | None = None
) -> tuple[float, float | None] | None:
    """Return the teacher's error and balanced error in percent, None where they are not to be had.

    They are those of the run's tape where that has them of the view that is seen here; one of an earlier version has no
    balanced error. All processes must ask for them: each looks at a part of the images.
    """
    if player is not None:
        measured, view = player.tape.manifest.teacher, setup.student.info.view
        known = measured.get(f"teacher_{split}_error")
        if known is not None and measured.get("measured_view", view) == view:
            balanced = measured.get(f"teacher_{split}_balanced_error")
            return float(known), None if balanced is None else float(balanced)
    images = setup.data.val if split == "val" else setup.data.test
    if setup.teacher is None or not same_classes(setup.teacher, setup.student):
        return None
    part = (fabric.global_rank, fabric.world_size)
    batches = own_batches(images, setup, fabric.device, image_size=setup.teacher_size, part=part)
    return errors_of(setup.teacher, batches, len(setup.data.classes), partial(sum_of_all, fabric))
