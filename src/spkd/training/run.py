"""One run from the request to the finished folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spkd.data.list_spec import short_name
from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.errors import InputError, RunFailed, one_line, some
from spkd.files import locked, slug
from spkd.losses.methods import term_names
from spkd.machine import is_launched
from spkd.models.bfloat16 import is_slow_in_bfloat16
from spkd.models.depthwise import depthwise_in_float32
from spkd.models.saved_model import savable_state, save_classifier
from spkd.models.student_form import lay_channels_last, synchronised
from spkd.training.batches import LOOKED_AT, first_batch, make_stream, own_batches
from spkd.training.devices import is_full_memory, make_fabric, notes_of_srun, require_one_folder, told_in_one_line
from spkd.training.identity import input_paths
from spkd.training.loop import Training
from spkd.training.notes import are_unequal
from spkd.training.options import Request, Runtime
from spkd.training.playback import Player
from spkd.training.progress import Display
from spkd.training.recipe import learning_rate
from spkd.training.result import result_of
from spkd.training.run_folder import RunFolder, refuse_inputs
from spkd.training.setup import Setup, set_up
from spkd.training.tape_setup import announcement, recorder, require_one_tape
from spkd.training.teacher import cheapest_teacher, distiller_of, teacher_errors_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy


WORTH_COMPILING = 10_000
"""Steps of 8 ms less that make up for a compilation of a minute."""
SMALL_IMAGES = 64
"""Side length in pixels up to which a GPU is done with a batch before Python has told it of the whole."""
STILL_HIGH = 0.1
"""Share of the highest learning rate above which it is said that a run was ended at it."""


def run(
    request: Request,
    out: str | Path,
    runtime: Runtime,
    display: Display,
    *,
    resume: bool = False,
    finish: bool = False,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Train the network of ``request`` into the folder ``out`` and return what its ``result.json`` holds.

    A finished run that is resumed is not run again. The student with the lowest validation error is
    kept; the test set is used once, for it, at the end. With ``finish`` the end of a run that was stopped is where it
    stands.

    Returns:
        The result, or None when the run was stopped by ``runtime.max_time`` or a signal; the folder then holds
        a checkpoint, and ``resume=True`` goes on.

    Raises:
        InputError: for whatever the user can mend; nothing has been written then, or what was there stays.
        RunFailed: when the loss is not finite, the device's memory is full, or another process of the run has died.
    """
    deadline = runtime.deadline()
    folder = RunFolder(Path(out))
    if not is_launched():  # of several processes all look into the folder before one of them leaves
        folder.check_place(resume=resume or finish, overwrite=overwrite)
    setup = set_up(request, runtime)
    fabric = make_fabric(runtime, setup.recipe.precision)
    refuse_inputs("--out", folder.path, {**input_paths(request), "tape": runtime.tape})
    refusal, identity = None, setup.identity()
    try:
        folder.check(setup.config(), identity, resume=resume or finish, overwrite=overwrite)
        if finish and not folder.has_begun():
            raise InputError(f"--finish: there is no run in {folder.path} to end")
    except InputError as error:
        refusal = error
    finished = None if overwrite else folder.result()
    with told_in_one_line(runtime, f"--resume continues from the last checkpoint in {folder.checkpoint.parent}"):
        # Before the first process writes there.
        found = [refusal is not None, finished is not None, folder.checkpoint.exists()]
        require_one_folder(fabric, "--out", folder.path, found)
        if refusal is not None:
            raise refusal
        if finished is not None:
            if fabric.is_global_zero:
                folder.begin(setup.config(), identity, overwrite=False)
            errors = _told(setup, finished["test_error"], finished.get("test_balanced_error"))
            display.say(f"{folder.path} is already finished: test error {errors}")
            return finished
        for note in (*setup.notes, *notes_of_srun()):
            display.say(note)
        if setup.recipe.precision == "bf16-mixed" and is_slow_in_bfloat16(runtime.accelerator):
            what, other = ("GPU", "16-mixed") if fabric.device.type == "cuda" else ("processor", "32-true")
            display.say(
                f"warning: this {what} is no faster in bfloat16 than in float32; --precision {other} will be faster"
            )
        go_on = {"resume": resume or finish, "finish": finish, "overwrite": overwrite}
        return _train(setup, identity, runtime, deadline, fabric, folder, display, **go_on)


def _train(
    setup: Setup,
    identity: str,
    runtime: Runtime,
    deadline: float | None,
    fabric: Fabric,
    folder: RunFolder,
    display: Display,
    *,
    resume: bool,
    finish: bool,
    overwrite: bool,
) -> dict[str, Any] | None:
    """Train from the beginning or from a checkpoint; return the result, or None when stopped."""
    stream = make_stream(setup, fabric.device, (fabric.global_rank, fabric.world_size))
    distiller, player = _distiller(setup, stream, runtime, fabric, display)
    with contextlib.closing(distiller), contextlib.ExitStack() as held:
        teacher_errors = None
        # Lazy weights of a loss are made by the first batch, and the optimizer needs them.
        unmade = any(is_lazy(parameter) for parameter in distiller.parameters())
        if overwrite or unmade or not folder.checkpoint.exists():
            teacher_errors = _look_first(setup, distiller, player, stream, fabric, display)
        if fabric.world_size > 1:
            _await_unused(distiller, player, stream, fabric, display)
        fabric.barrier()
        if fabric.is_global_zero:
            held.enter_context(locked(folder.path, wait=False))
            # Once more: another process may have been at work in it since.
            folder.check(setup.config(), identity, resume=resume, overwrite=overwrite)
            folder.begin(setup.config(), identity, overwrite=overwrite)
        fabric.barrier()
        training = Training(
            distiller,
            stream,
            lambda: own_batches(setup.data.val, setup, fabric.device, part=(fabric.global_rank, fabric.world_size)),
            len(setup.data.classes),
            setup.recipe,
            setup.request.seed,
            identity,
            fabric,
            folder,
            display,
            compiled=runtime.compile,
            player=player,
        )
        if training.restore():
            display.say(f"continuing from {folder.checkpoint}")
        steps = setup.recipe.epochs * stream.batches_per_epoch
        alone = fabric.world_size == 1 and not runtime.compile
        if alone and gains_from_compiling(fabric.device, steps, setup.image_size):
            display.say("--compile makes the steps of a small network several times as fast on a GPU")
        state = training.state
        if finish:
            if not state.best_epoch:
                raise InputError(f"--finish: no epoch of {folder.path} is complete; --resume continues it")
        else:
            with display:
                through = training.run(_title(setup), runtime.checkpoint_seconds, deadline)
            if not through:
                return None
        planned = f" ({setup.recipe.epochs} were planned)" if state.epoch < setup.recipe.epochs else ""
        errors = (state.best_error, state.best_balanced_error)
        display.say(
            f"kept: epoch {state.best_epoch} of {state.epoch}{planned}, validation error {_told(setup, *errors)}"
        )
        if planned:
            share = learning_rate(setup.recipe, training.steps_done() - 1, stream.batches_per_epoch) / setup.recipe.lr
            if share > STILL_HIGH:
                display.say(
                    f"the learning rate was still {share:.0%} of its highest; "
                    f"with --epochs {state.epoch} it would have come to its end"
                )
        if _is_near_chance(setup, *errors):
            display.say(f"warning: that is little better than chance; try {_other_settings(setup)}")
        if teacher_errors is None:
            teacher_errors = teacher_errors_of(setup, "val", fabric, player)
        setup.student.load_state_dict(state.best_weights)
        if fabric.is_global_zero:
            # Before the test, which a single image may spoil; nothing that was trained is lost then.
            save_classifier(setup.student.cpu(), folder.student)
            setup.student.to(fabric.device)
        result = result_of(setup, training, identity, fabric, distiller, teacher_errors, player)
        if fabric.is_global_zero:
            folder.write_result(result)
        fabric.barrier()
        return result


def gains_from_compiling(device: torch.device, steps: int, image_size: int) -> bool:
    """Return whether a run is one that saves minutes by ``--compile``: long, on a GPU that waits for Python.

    >>> gains_from_compiling(torch.device("cuda"), 70_000, 32), gains_from_compiling(torch.device("cpu"), 70_000, 32)
    (True, False)
    """
    return device.type == "cuda" and steps >= WORTH_COMPILING and image_size <= SMALL_IMAGES


def default_out(request: Request) -> str:
    """Return the folder of a run for which the user named none.

    >>> default_out(Request(model="wrn-10-1", teacher="runs/teacher", method="sp+kd"))
    'runs/digits-wrn-10-1-sp+kd-seed0'
    """
    parts = [short_name(request.data.data), request.model]
    if request.teacher is not None or request.method != "none":
        parts.append(request.method)
    return str(Path("runs") / slug("-".join([*parts, f"seed{request.seed}"])))


def _title(setup: Setup) -> str:
    return f"{setup.request.model} {'alone' if setup.request.teacher is None else setup.request.method}"


def _distiller(
    setup: Setup, stream: TrainStream, runtime: Runtime, fabric: Fabric, display: Display
) -> tuple[Distiller, Player | None]:
    """Return student, teacher and objective on the device in their quickest forms, and what plays the tape, if any."""
    device = fabric.device
    require_one_tape(setup, runtime, fabric)
    _prepare_student(setup, runtime, fabric, display)
    if setup.teacher is None:
        distiller = Distiller(setup.student, None, setup.objective).to(device)
        if setup.tape is None:
            return distiller, None
        display.say(announcement(setup.tape, setup))
        part = (fabric.global_rank, fabric.world_size)
        return distiller, Player(setup.tape, setup.objective, None, device, part)
    form = cheapest_teacher(setup, stream, fabric)
    display.say(f"teacher: {form.note}")
    distiller = distiller_of(setup, form).to(device)
    if runtime.tape is None:
        return distiller, None
    return distiller, recorder(setup, runtime, distiller, form, stream, fabric, display)


def _prepare_student(setup: Setup, runtime: Runtime, fabric: Fabric, display: Display) -> None:
    """Lay the student's weights as its device likes them, and see to its batch norms where devices share a batch."""
    student = setup.student
    # Not on Apple's GPUs: the gradients of a batch norm of channels-last images are wrong there in many versions.
    gains = fabric.device.type == "cpu" or (fabric.device.type == "cuda" and setup.recipe.precision != "32-true")
    if gains and not lay_channels_last(student, on_processor=fabric.device.type == "cpu"):
        display.say("student: its weights keep their memory layout, since it cannot be trained with them channels last")
    if fabric.device.type == "cpu" and setup.recipe.precision == "bf16-mixed":
        count = depthwise_in_float32(student)
        if count:
            display.say(f"student: {count} depthwise convolutions run in float32, which is faster here than bfloat16")
    if runtime.sync_batchnorm:
        if fabric.device.type != "cuda":
            raise InputError("--sync_batchnorm needs GPUs: PyTorch has no such batch norm for the CPU")
        student.network = synchronised(student.network)
    elif fabric.world_size > 1 and any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in student.modules()):
        display.say(
            f"{fabric.world_size} processes share each batch; batch norm sees only each process's part"
            + (" (with --sync_batchnorm the whole)" if fabric.device.type == "cuda" else "")
        )


def _look_first(
    setup: Setup,
    distiller: Distiller,
    player: Player | None,
    stream: TrainStream,
    fabric: Fabric,
    display: Display,
) -> tuple[float, float | None] | None:
    """Check, before anything is written, that a step works, that its outcome can be saved, and that the teacher knows
    these images and teaches.

    Returns:
        The teacher's errors on the validation images, as of :func:`~spkd.training.teacher.teacher_errors_of`.
    """
    savable_state(setup.student)
    teacher_errors = teacher_errors_of(setup, "val", fabric, player)
    if teacher_errors is not None:
        display.say(f"teacher: error {_told(setup, *teacher_errors)} on the validation images")
        if _is_near_chance(setup, *teacher_errors):
            told = ", and that images are normalised as its weights were trained (--teacher_normalisation)"
            why = f"check that it is the right one{told if setup.request.teacher_weights is not None else ''}"
            display.say(f"warning: the teacher is little better than chance on these images; {why}")
    distiller.train()
    try:
        few = _few(distiller, stream, player, fabric)
        with fabric.autocast():  # as the steps will, which may have no room otherwise
            distiller.check(*few)
    except (InputError, RunFailed):
        raise
    except Exception as error:
        if is_full_memory(error):
            raise
        size = setup.image_size
        raise InputError(
            f"model {setup.request.model}: a training step on images of {size} × {size} fails: {one_line(error)}"
        ) from error
    return teacher_errors


def _few(
    distiller: Distiller, stream: TrainStream, player: Player | None, fabric: Fabric
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Return images and targets that a run begins with, and the teacher's words on them: a whole batch with a tape."""
    rounded = fabric.strategy.precision.convert_input  # as the steps' images are
    images, targets, shown = first_batch(stream)
    if player is not None:
        return rounded(images), targets, player(0, shown)
    few = slice(LOOKED_AT)
    return rounded(images[few]), targets[few], distiller.remember(shown[few])


def _await_unused(
    distiller: Distiller, player: Player | None, stream: TrainStream, fabric: Fabric, display: Display
) -> None:
    """Have several processes look for weights without a gradient at every step, if there are any, not wait for them."""
    distiller.train()
    few = _few(distiller, stream, player, fabric)
    with fabric.autocast():
        unused = distiller.unused_parameters(*few)
    if unused:
        cast("DDPStrategy", fabric.strategy)._ddp_kwargs["find_unused_parameters"] = True
        display.say(f"no loss depends on {some(unused, 3)}, so the processes look for such weights at every step")


def _told(setup: Setup, error: float, balanced: float | None) -> str:
    """Return the errors in words, the balanced one where it matters and is known."""
    matters = setup.recipe.select == "balanced" or are_unequal(setup.data)
    is_told = matters and balanced is not None and math.isfinite(balanced)
    return f"{error:.2f} %" + (f" (balanced {balanced:.2f} %)" if is_told else "")


def _is_near_chance(setup: Setup, error: float, balanced: float | None) -> bool:
    """Return whether a network of these errors knows next to nothing: chance is always the commonest class.

    That errs on all others: ``1 − max n_c / Σ n_c``, and of k classes balanced ``1 − 1 / k``. By both it must be little
    better.
    """
    counts = torch.bincount(setup.data.val.targets)
    chance, balanced_chance = 1 - float(counts.max() / counts.sum()), 1 - 1 / int(counts.count_nonzero())
    return error > 90 * chance and (balanced is None or balanced > 90 * balanced_chance)


def _other_settings(setup: Setup) -> str:
    """Return what may help a network that has learnt next to nothing."""
    others = [name for name in ("scratch", "finetune") if name != setup.recipe.name]
    tries = ["more --epochs", f"--recipe {' or '.join(others)}", "another --lr"]
    if "sp" in term_names(setup.request.method):
        tries.append("a lower --gamma")
    return f"{', '.join(tries[:-1])}, or {tries[-1]}"
