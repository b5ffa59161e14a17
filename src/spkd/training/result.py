"""What a run's ``result.json`` holds: how good the student became, of what, and on what."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from spkd import __version__
from spkd.distiller import Distiller
from spkd.models.classifier import same_classes
from spkd.models.cost import parameter_count
from spkd.training.batches import own_batches
from spkd.training.evaluation import evaluate
from spkd.training.loop import Training
from spkd.training.notes import are_unequal
from spkd.training.playback import Player
from spkd.training.setup import Setup
from spkd.training.teacher import teacher_errors_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def result_of(
    setup: Setup,
    training: Training,
    identity: str,
    fabric: Fabric,
    distiller: Distiller,
    teacher_errors: tuple[float, float | None] | None,
    player: Player | None,
) -> dict[str, Any]:
    """Evaluate the student once on the test set, and return the result."""
    state, student = training.state, setup.student
    teacher = setup.teacher if setup.teacher is not None and same_classes(setup.teacher, student) else None
    if setup.teacher_size != setup.image_size:
        teacher = None  # which sees larger images, so that it cannot be asked about these
    batches = own_batches(setup.data.test, setup, fabric.device)
    measured = evaluate(student, batches, setup.data.classes, teacher)
    # JSON has no infinity, which the cross-entropy of finite logits may be.
    tested = {key: value for key, value in asdict(measured).items() if key != "per_class" and value != math.inf}
    if (errors := teacher_errors_of(setup, "test", fabric, player)) is not None:
        tested |= dict(zip(("teacher_error", "teacher_balanced_error"), errors, strict=True))
    teacher_error, teacher_balanced_error = teacher_errors or (None, None)
    # A run that was begun by an earlier version may have kept an epoch of which it is not known.
    balanced = state.best_balanced_error if math.isfinite(state.best_balanced_error) else None
    return {
        "kind": "train" if setup.request.teacher is None else "distill",
        "method": setup.request.method,
        "seed": setup.request.seed,
        "epochs": state.epoch,
        "steps": training.steps_done(),
        "test_error": measured.top1_error,
        "test_balanced_error": measured.balanced_error,
        "val_error": state.best_error,
        "val_balanced_error": balanced,
        "teacher_val_error": teacher_error,
        "teacher_val_balanced_error": teacher_balanced_error,
        "select": setup.recipe.select,
        "classes_unequal": are_unequal(setup.data),
        "best_epoch": state.best_epoch,
        "parameters": parameter_count(student),
        "images_per_second": state.images_total / max(state.seconds, 1e-9),
        "training_seconds": state.seconds,
        "model": setup.request.model,
        "teacher": setup.request.teacher,
        "data": setup.data.name,
        "images": {
            "train": len(setup.data.train),
            "unlabelled": len(setup.data.unlabelled or ()),
            "val": len(setup.data.val),
            "test": len(setup.data.test),
        },
        "compared_layers": [str(pair) for pair in setup.objective.pairs],
        "teacher_precision": _teacher_precision(setup, distiller),
        "test": tested,
        "identity": identity,
        "images_fingerprint": setup.data.fingerprint,
        "software": software(),
        "hardware": hardware(fabric.device),
    }


def _teacher_precision(setup: Setup, distiller: Distiller) -> str | None:
    """Return in which precision the teacher computed, None without one."""
    if setup.plays and setup.tape is not None:
        return setup.tape.manifest.precision
    if distiller.teacher is None:
        return None
    short = any(parameter.dtype == torch.bfloat16 for parameter in distiller.teacher.parameters())
    return "bf16-true" if short else "32-true"


def software() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import lightning_fabric

    return {
        "spkd": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm")},
        # Not by the name of its package: conda has it as a part of pytorch-lightning.
        "lightning-fabric": str(lightning_fabric.__version__),  # type: ignore[attr-defined]
    }


def hardware(device: torch.device) -> str:
    """Return what a run was computed on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type.upper()}"
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
