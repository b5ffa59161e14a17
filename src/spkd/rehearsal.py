"""Rehearsing a training step, so that a mistake shows before hours are spent on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from spkd.errors import InputError
from spkd.losses.objective import UNLABELLED
from spkd.models.classifier import Classifier, require_unit_range
from spkd.modes import keeping_buffers
from spkd.outputs import are_probabilities
from spkd.processes import in_ddp
from spkd.taps import Taps, levels

if TYPE_CHECKING:
    from spkd.division import Division

HALF_PRECISION_SCALE = 2.0**16
"""By which a loss is scaled in a rehearsal whose gradients are all zero: as much as PyTorch's scaler begins with."""


def refuse_shards(student: nn.Module) -> None:
    """Look whether the gradients of single parameters can be asked for.

    Raises:
        InputError: when the student's parameters are sharded (``fully_shard``).
    """
    if distributed.is_available() and distributed.is_initialized():
        from torch.distributed.tensor import DTensor

        if any(isinstance(parameter, DTensor) for parameter in student.parameters()):
            raise InputError(
                "student: its weights are divided among processes (fully_shard), so that their gradients cannot be "
                "asked for one by one; call this before they are."
            )


@contextlib.contextmanager
def undisturbed(module: nn.Module, student: nn.Module, taps: Taps, device: torch.device) -> Iterator[None]:
    """Give buffers and random generators back as they were, and run the student past its wrappers and compiler.

    Args:
        module: whose buffers are to stay.
        student: as it is run otherwise.
        taps: of the student.
        device: whose random generator is to stay, as the processor's is.
    """
    # DDP waits for gradients that are accumulated, and none are here; Fabric takes those only that it is asked for.
    if (wrapped := in_ddp(student)) is not None:
        taps.model = wrapped.module
    elif isinstance(bare := getattr(student, "_original_module", None), nn.Module):
        taps.model = bare
    devices = [device] if device.type == "cuda" else []
    # A backward pass that was compiled for a step can only be run once; the compiler takes a second to import.
    is_compiled = "torch._dynamo" in sys.modules
    stance = torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
    try:
        with stance, keeping_buffers(module), torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        taps.model = student


def check_place(name: str, network: nn.Module, images: Tensor) -> None:
    """Look whether a network is where the images are.

    Raises:
        InputError: when its weights are on another device.
    """
    parameter = next(network.parameters(), None)
    if parameter is not None and parameter.device != images.device:
        raise InputError(
            f"{name}: its weights are on {parameter.device} and the images on {images.device}; move all to one device "
            "(distiller.to(device) moves both networks)."
        )


def check_range(name: str, network: nn.Module, images: Tensor) -> None:
    """Look whether a network that normalises images itself is given images that are not normalised yet.

    Raises:
        InputError: when they are further from [0, 1] than augmentation takes them.
    """
    if any(isinstance(level, Classifier) for level in levels(network)):
        require_unit_range(images, f"the {name} is a saved model, which")


def check_logits(name: str, logits: Tensor) -> None:
    """Look whether a network puts out logits, and not probabilities, of which a softmax would be taken again.

    Raises:
        InputError: when it has a softmax of its own.
    """
    if are_probabilities(logits):
        raise InputError(
            f"{name}: it returns probabilities instead of logits, so that the loss would apply softmax again; leave "
            "out the network's softmax, or take the logarithm of its output."
        )


def check_all_or_none(targets: Tensor | None, images: Tensor, division: Division) -> None:
    """Look whether all processes have targets or none has, since what they say to each other depends on it.

    Raises:
        InputError: in every process, when some have and some have not.
    """
    flags = torch.tensor([targets is None, targets is not None], device=images.device)
    if bool(division.any(flags).all()):
        raise InputError(
            f"targets: some processes have targets and others None; give {UNLABELLED} for each image without a label."
        )


def check_targets(logits: Tensor, targets: Tensor, images: int, division: Division | None, needed: bool = True) -> None:
    """Look whether the student has a logit for every target of a batch, of which this process has ``images``.

    Raises:
        InputError: when a target has none, or is no probability; where they are not ``needed``, since no loss reads
            them and the cross-entropy weighs nothing, the line says that there need be none.
    """
    try:
        _check_targets(logits, targets, images, division)
    except InputError as error:
        if needed:
            raise
        raise InputError("targets: give None, as the cross-entropy, which cannot read these, weighs 0.") from error


def _check_targets(logits: Tensor, targets: Tensor, images: int, division: Division | None) -> None:
    # Of a divided batch every process sees what the others do, so that all of them fail or none.
    if division is not None:
        targets, images = division.gather(targets), sum(division.sizes)
    if targets.is_floating_point():
        _check_probabilities(logits, targets)
        return
    if logits.dim() == 2 and (tuple(targets.shape) != (images,) or targets.dtype != torch.int64):
        raise InputError(
            f"targets: expected class indices, int64, one for each of {images} images, or rows of probabilities, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    labels = targets[targets != UNLABELLED]
    if not len(labels):
        return
    classes, least, most = logits.shape[-1], int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise InputError(
            f"targets: expected class indices from 0 to {classes - 1}, as the student has {classes} logits, "
            f"got {least} to {most}; give the student a head of as many classes as the data."
        )


def _check_probabilities(logits: Tensor, targets: Tensor) -> None:
    if targets.shape[1:] != logits.shape[1:] or targets.dim() != 2:
        raise InputError(
            f"targets: expected class indices, int64, or as many probabilities as the student has logits "
            f"({logits.shape[-1]}), got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    if bool((targets < 0).any()) or bool(((targets.sum(1) - 1).abs() > 1e-2).any()):
        raise InputError(
            "targets: expected probabilities of the classes, whose sum is 1 for each image; for labels that do not "
            "exclude each other, give the objective a criterion of your own."
        )


def check_terms(student: nn.Module, values: Mapping[str, Tensor], division: Division | None) -> None:
    """Look whether every term is finite and teaches the student; the cross-entropy beside others need not.

    Raises:
        InputError: when one is or does not; the line names it.
    """
    for name, value in values.items():
        _check_finite(name, value if division is None else division.sum(division.share * value))
        if name != "ce":
            _check_gradient(student, name, value, division)
            continue
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        if value.requires_grad and parameters:
            # For the errors of a backward pass, which may go where no other term's does.
            torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        elif len(values) == 1:
            raise InputError("student: its logits depend on no trainable weight, so it cannot learn; unfreeze some.")


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(value.isfinite()):
        raise InputError(
            f"term {name!r}: expected a finite loss on the first batch, got {float(value.detach())}; look for "
            "NaN or infinity in the images and in the weights of both networks."
        )


def _check_gradient(student: nn.Module, name: str, value: Tensor, division: Division | None) -> None:
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    is_not_finite = is_given = False
    for scale in (1.0, HALF_PRECISION_SCALE):  # the second where float16 makes small gradients vanish
        gradients: tuple[Tensor | None, ...] = ()
        if value.requires_grad and parameters:
            gradients = torch.autograd.grad(scale * value, parameters, retain_graph=True, allow_unused=True)
        flags = torch.zeros(2, dtype=torch.bool, device=value.device)
        for gradient in (gradient for gradient in gradients if gradient is not None):
            flags |= torch.stack([~gradient.isfinite().all(), gradient.any()])
        is_not_finite, is_given = (flags if division is None else division.any(flags)).tolist()
        if is_not_finite or is_given:
            break
    if is_not_finite:
        raise InputError(
            f"term {name!r}: its gradient with respect to the student is not finite; try 32-bit "
            "precision, or look for infinities in the student's activations."
        )
    if not is_given:
        raise InputError(
            f"term {name!r}: its gradient with respect to the student is zero, so it would teach "
            "nothing: no trainable parameter comes before the tapped layer, or the layer puts out zeros, "
            "or there is one image in the batch, or the student equals the teacher; tap another layer or "
            "unfreeze the student."
        )


def unused(trainable: Mapping[str, nn.Parameter], total: Tensor, division: Division | None) -> tuple[str, ...]:
    """Return the names of the parameters on which ``total`` depends in no process."""
    gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    used = torch.tensor([gradient is not None for gradient in gradients], device=total.device)
    used = used if division is None else division.any(used)
    return tuple(name for name, flag in zip(trainable, used.tolist(), strict=True) if not flag)
