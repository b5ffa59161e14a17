"""Teacher, student and objective as one module for any training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spkd.errors import InputError
from spkd.losses.objective import UNLABELLED, LossBreakdown, Objective
from spkd.modes import keeping_buffers
from spkd.processes import Division, divide
from spkd.taps import Taps, unwrap

HALF_PRECISION_SCALE = 2.0**16
"""By which a loss is scaled in a rehearsal whose gradients are all zero: as much as PyTorch's scaler begins with."""


class Remembered:
    """What a teacher said of a batch, in a box that wrappers do not look into.

    Lightning Fabric's mixed precision rounds every tensor among a step's inputs; what is in here stays exact.

    Args:
        values: what :meth:`Distiller.remember` returned.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = values


class Distiller(nn.Module):
    """A student that learns from a teacher: images and targets in, the loss out.

    ``parameters()``, ``state_dict()`` and ``modules()`` are the student's and the objective's; the teacher
    only moves along with ``to()``. It is frozen: its parameters do not require gradients, it is in eval mode
    whatever ``train()`` is called, and it runs without gradients.

    With several processes under ``torch.distributed``, a step with gradients is one of all of them on one batch, of
    which each brings its images, at least one and not necessarily as many as the others. Each computes the loss of
    its own; where a loss compares images with each other, it gathers features of all, so that a similarity matrix is
    one of the whole batch and not one per device. The gradients, averaged over the processes as
    ``DistributedDataParallel`` does, and the values are those that one process with the whole batch would have found
    (with batch norms as they are in evaluation, or synchronised). Either the student or the whole distiller may be
    wrapped; the distiller, where a loss that is a mean over images has weights to learn, so that these are averaged
    too. Without gradients every process is by itself. A process that waits in vain for another is ended by the timeout
    of ``init_process_group``.

    Args:
        student: the network to train. Its layers are tapped by hooks; it is not changed otherwise.
        teacher: the trained network; ``None`` trains the student alone, on an objective without terms, or on what
            is passed as ``remembered``.
        objective: what to compute; it names the layers to tap.
        teacher_micro_batch_size: the largest number of images in one pass of the teacher, which bounds its memory and,
            on a processor, keeps its layers in the caches; see :class:`~spkd.taps.Taps`. Default: the whole batch.

    The processes are those of the default group, whose images must all be different: under tensor parallelism, where
    some see the same ones, the similarities would be wrong. Gradients that are accumulated over several calls are of
    as many batches, not of one large one.

    Attributes:
        student: as given; may be exchanged for a wrapping of the same network. Another network is an ``InputError``.
        objective: as given.

    Raises:
        InputError: a network has no layer that the objective names, the teacher shares weights with the student, the
            student alone is wrapped though a loss learns, either is wrapped by ``nn.DataParallel`` for several GPUs, or
            ``teacher_micro_batch_size`` is below one.

    >>> from spkd.losses.methods import build_objective
    >>> from spkd.losses.weights import LossWeights
    >>> from spkd.taps import TapPair
    >>> teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> student = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    >>> objective = build_objective("sp+kd", [TapPair("1", "1")], LossWeights())
    >>> distiller = Distiller(student, teacher, objective)
    >>> breakdown = distiller(torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4]))
    >>> breakdown.total.backward()
    >>> sorted(breakdown.terms)
    ['ce', 'kd', 'sp']
    """

    student: nn.Module
    objective: Objective

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        *,
        teacher_micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        # In a tuple, so that it is no submodule.
        self._teachers = () if teacher is None else (teacher,)
        both = set(student.modules())  # an activation, say, that follows the student's mode
        own = [] if teacher is None else [module for module in teacher.modules() if module not in both]
        self._teacher_modules = tuple(own)
        for name, one in (("student", student), ("teacher", teacher)):
            if isinstance(one, nn.DataParallel) and len(one.device_ids) > 1:
                raise InputError(
                    f"{name}: nn.DataParallel runs a layer once for each GPU, so that it cannot be read; use "
                    "DistributedDataParallel, with a process for each."
                )
        _check_all_are_averaged(student, objective)
        self._student_taps = Taps(student, objective.student_taps, differentiated=True)
        self._teacher_taps = None
        if teacher is not None:
            trained = {id(parameter) for parameter in student.parameters()}
            if any(id(parameter) in trained for parameter in teacher.parameters()):
                raise InputError(
                    "teacher: it shares weights with the student, and freezing it would freeze the student; "
                    "give copy.deepcopy(student) or a network of its own."
                )
            teacher.requires_grad_(False)
            teacher.eval()
            stop = not objective.reads_teacher_logits
            self._teacher_taps = Taps(
                teacher, objective.teacher_taps, stop=stop, micro_batch_size=teacher_micro_batch_size
            )

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher."""
        return self._teachers[0] if self._teachers else None

    def forward(
        self, images: Tensor, targets: Tensor | None, remembered: Mapping[str, Tensor] | Remembered | None = None
    ) -> LossBreakdown:
        """Run both networks on a batch and compute the objective.

        Args:
            images: (b, channels, h, w), given to both networks as they are.
            targets: class indices (b,), int64, -100 for an image without a label; or probabilities of the classes
                (b, k), as mixup and cutmix give them; or what the objective's criterion takes. None where no image
                has a label.
            remembered: what :meth:`remember` returned for these images; the teacher then does not run.

        Returns:
            the weighted total, to call ``backward()`` on, the unweighted terms, and the student's logits.

        Raises:
            InputError: a tap fails (see :class:`~spkd.taps.Taps`), or a loss cannot compare what it gets.
        """
        if isinstance(remembered, Remembered):
            remembered = remembered.values
        if not torch.compiler.is_compiling() and self._student_taps.model is not self.student:
            self._follow(self.student)  # it was put in by add_module, say
        division = _divided(images)
        if remembered is None:
            remembered = self._remember(images, division)
        student = self._student_taps(images)
        return self.objective(student, targets, remembered, division)  # type: ignore[no-any-return]

    def remember(self, images: Tensor) -> dict[str, Tensor]:
        """Run the teacher on a batch and return, by term name and without gradients, what the terms need.

        With several processes that is, unless gradients are off, what they need for this process's images in the
        batch of all: every process must call it.

        Raises:
            InputError: the objective compares with a teacher and there is none.
        """
        return self._remember(images, _divided(images))

    def _remember(self, images: Tensor, division: Division | None) -> dict[str, Tensor]:
        if not self.objective.terms:
            return {}
        if self._teacher_taps is None:
            names = ", ".join(term.name for term in self.objective.terms)
            raise InputError(
                f"teacher: the objective compares with one ({names}), got None; give a trained network, or pass what "
                "it said as `remembered`."
            )
        with torch.no_grad():
            for teacher in self._teachers:
                if self._is_in_training(teacher):
                    teacher.eval()
            before = _version(images)
            activations = self._teacher_taps(images)
            if _version(images) != before:
                raise InputError(
                    "teacher: it changes the images in place, so that the student would see others; let it work on a "
                    "copy, as in `x = x - mean` for `x.sub_(mean)`."
                )
            return self.objective.remember(activations, division)

    def _is_in_training(self, teacher: nn.Module) -> bool:
        # A part of it may belong to another module as well, whose train() passes the whole over.
        if torch.compiler.is_compiling():
            return teacher.training
        return any(module.training for module in self._teacher_modules)

    def check(self, images: Tensor, targets: Tensor | None, remembered: Mapping[str, Tensor] | None = None) -> None:
        """Rehearse a training step on a real batch, so that a mistake shows before hours are spent on it.

        ``remembered`` is as for :meth:`forward`.

        Weights, gradients, buffers such as batch statistics, and the random number generators of the processor and
        of CUDA are afterwards as they were.

        Raises:
            InputError: a target has no logit or is no probability, a term is not finite, or a distillation term has no
                gradient with respect to the student's trainable parameters; the line names the term. Or the
                student's parameters are sharded (``fully_shard``).
        """
        _refuse_shards(self.student)
        with self._undisturbed(images.device):
            division = _divided(images)
            if remembered is None:
                remembered = self._remember(images, division)
            student = self._student_taps(images)
            if targets is not None and self.objective.criterion is None:
                # Of a divided batch every process sees what the others do, so that all of them fail or none.
                whole = targets if division is None else division.gather(targets)
                _check_targets(student.logits, whole, len(images) if division is None else sum(division.sizes))
            for name, value in self.objective.values(student, targets, remembered, division).items():
                _check_finite(name, value if division is None else division.sum(division.share * value))
                if name != "ce":
                    self._check_gradient(name, value, division)

    def unused_parameters(
        self, images: Tensor, targets: Tensor | None, remembered: Mapping[str, Tensor] | None = None
    ) -> tuple[str, ...]:
        """Return the names of trainable parameters on which no term of the objective depends, in any process.

        The arguments are those of :meth:`forward`; all is left as it was, as by :meth:`check`.
        """
        _refuse_shards(self.student)
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        with self._undisturbed(images.device):
            division = _divided(images)
            if remembered is None:
                remembered = self._remember(images, division)
            total = self.objective(self._student_taps(images), targets, remembered, division).total
            gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
        used = torch.tensor([gradient is not None for gradient in gradients], device=images.device)
        used = used if division is None else division.any(used)
        return tuple(name for (name, _), flag in zip(named, used.tolist(), strict=True) if not flag)

    def close(self) -> None:
        """Take the hooks off both networks; the distiller cannot be used with taps afterwards.

        Before the student is scripted or pickled as a whole: the hooks would go along.
        """
        self._student_taps.remove()
        if self._teacher_taps is not None:
            self._teacher_taps.remove()

    def to_empty(self, *, device: str | torch.device | int | None, recurse: bool = True) -> Distiller:
        """Move student and objective to ``device`` without their values, the teacher with its own where it has some."""
        super()._apply(lambda tensor: torch.empty_like(tensor, device=device), recurse)  # type: ignore[no-untyped-call]
        for teacher in self._teachers:
            has_values = not any(parameter.is_meta for parameter in teacher.parameters())
            teacher.to(device) if has_values else teacher.to_empty(device=device, recurse=recurse)
        return self

    def _apply(self, fn: object, recurse: bool = True) -> Distiller:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for teacher in self._teachers:
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __setattr__(self, name: str, value: object) -> None:
        if name == "student" and "_student_taps" in self.__dict__:
            self._follow(value)
        super().__setattr__(name, value)  # type: ignore[arg-type]

    def _follow(self, student: object) -> None:
        """Run what is put in the student's place, which may be the student in a wrapper."""
        taps = self._student_taps
        if not isinstance(student, nn.Module) or unwrap(student) is not unwrap(taps.model):
            raise InputError(
                "student: another network is put in its place, whose layers are not read; make a new Distiller of it, "
                "and its optimizer anew."
            )
        _check_all_are_averaged(student, self.objective)
        taps.model = student

    @contextlib.contextmanager
    def _undisturbed(self, device: torch.device) -> Iterator[None]:
        # Past DDP, which waits for gradients that are accumulated, and none are here.
        if (wrapped := _in_ddp(self.student)) is not None:
            self._student_taps.model = wrapped.module
        devices = [device] if device.type == "cuda" else []
        try:
            with keeping_buffers(self), torch.random.fork_rng(devices), torch.enable_grad():
                yield
        finally:
            self._student_taps.model = self.student

    def _check_gradient(self, name: str, value: Tensor, division: Division | None) -> None:
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
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


def _in_ddp(network: nn.Module) -> DistributedDataParallel | None:
    """Return the wrapper of PyTorch that averages a network's gradients over the processes, if it has one."""
    wrapped = getattr(network, "_orig_mod", network)
    return wrapped if isinstance(wrapped, DistributedDataParallel) else None


def _check_all_are_averaged(student: nn.Module, objective: Objective) -> None:
    if _in_ddp(student) is None or distributed.get_world_size() == 1:
        return
    parts: list[tuple[str, object]] = [("criterion: it", objective.criterion)]
    parts += [(f"term {term.name!r}: its loss", term.loss) for term in objective.terms if term.loss.mean_over_images]
    for name, part in parts:
        if not isinstance(part, nn.Module):
            continue
        if any(parameter.requires_grad for parameter in part.parameters()):
            raise InputError(
                f"{name} learns, and the processes would each learn something else; wrap the distiller in "
                "DistributedDataParallel, not the student."
            )


def _version(images: Tensor) -> int | None:
    """Return how often a batch has been changed in place, None where that is not counted."""
    if torch.compiler.is_compiling() or not isinstance(images, Tensor) or images.is_inference():
        return None
    return images._version


def _refuse_shards(student: nn.Module) -> None:
    if distributed.is_available() and distributed.is_initialized():
        from torch.distributed.tensor import DTensor

        if any(isinstance(parameter, DTensor) for parameter in student.parameters()):
            raise InputError(
                "student: its weights are divided among processes (fully_shard), so that their gradients cannot be "
                "asked for one by one; call this before they are."
            )


def _divided(images: Tensor) -> Division | None:
    """Return how the processes have divided the batch; ``None`` where each is by itself."""
    return divide(images.shape[0], images.device) if torch.is_grad_enabled() else None


def _check_targets(logits: Tensor, targets: Tensor, images: int) -> None:
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


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(value.isfinite()):
        raise InputError(
            f"term {name!r}: expected a finite loss on the first batch, got {float(value.detach())}; look for "
            "NaN or infinity in the images and in the weights of both networks."
        )
