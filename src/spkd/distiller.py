"""Teacher, student and objective as one module for any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from spkd.errors import InputError
from spkd.losses.objective import LossBreakdown, Objective
from spkd.outputs import require_tensor
from spkd.processes import divide, in_ddp
from spkd.rehearsal import (
    check_all_or_none,
    check_logits,
    check_place,
    check_range,
    check_targets,
    check_terms,
    refuse_shards,
    undisturbed,
    unused,
)
from spkd.taps import Activations, Taps, unwrap

if TYPE_CHECKING:
    from spkd.division import Division


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

    With several processes under ``torch.distributed``, a step with gradients is one of all of them on one batch:

    - Each passes images of its own, at least one and not necessarily as many as the others.
    - A loss that compares images with each other gathers the features of all, so that a similarity matrix is that of
      the whole batch and not one per device.
    - Values, and gradients once ``DistributedDataParallel`` has averaged them, are those of one process with the whole
      batch (with batch norms as they are in evaluation, or synchronised).
    - Either the student or the whole distiller may be wrapped; the distiller, where a loss that is a mean over images
      has weights to learn, so that these are averaged too.
    - The processes are those of the default group, whose images must all be different: under tensor parallelism, where
      some see the same ones, the similarities would be wrong.
    - Without gradients every process is by itself. One that waits in vain for another is ended by the timeout of
      ``init_process_group``.

    Gradients that are accumulated over several calls are of as many batches, not of one large one.

    Args:
        student: the network to train. Its layers are tapped by hooks; it is not changed otherwise.
        teacher: the trained network; ``None`` trains the student alone, on an objective without terms, or on what
            is passed as ``remembered``.
        objective: what to compute; it names the layers to tap.
        teacher_micro_batch_size: the largest number of images in one pass of the teacher, which bounds its memory and,
            on a processor, keeps its layers in the caches; see :class:`~spkd.taps.Taps`. Default: the whole batch.

    Attributes:
        student: as given; may be exchanged for a wrapping of the same network. Another network is an ``InputError``.
        objective: as given; may be exchanged for one that reads nothing else of both networks, with other weights, say.
            Another is an ``InputError``.

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
        _require_objective(objective)
        self.student = student
        self.objective = objective
        self._reads = _what_is_read(objective)
        # In a tuple, so that it is no submodule.
        self._teachers = () if teacher is None else (teacher,)
        both = set(student.modules())  # an activation, say, that follows the student's mode
        own = [] if teacher is None else [module for module in teacher.modules() if module not in both]
        self._teacher_modules = tuple(own)
        for name, one in (("student", student), ("teacher", teacher)):
            _refuse_data_parallel(name, one)
        _check_all_are_averaged(student, objective)
        self._student_taps = Taps(
            student, objective.student_taps, differentiated=True, logits=objective.reads_student_logits
        )
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
            self._teacher_taps = Taps(
                teacher,
                objective.teacher_taps,
                stop=not objective.reads_teacher_logits,
                logits=objective.reads_teacher_logits,
                micro_batch_size=teacher_micro_batch_size,
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
            remembered: what :meth:`remember` returned for these images in this order, and for the same layers of the
                teacher; the teacher then does not run.

        Returns:
            the weighted total, to call ``backward()`` on, the unweighted terms, and the student's logits.

        Raises:
            InputError: a tap fails (see :class:`~spkd.taps.Taps`), or a loss cannot compare what it gets.
        """
        self._look_for_another()
        student, said, division = self._run(images, remembered)
        return self.objective(student, targets, said, division)  # type: ignore[no-any-return]

    def remember(self, images: Tensor) -> dict[str, Tensor]:
        """Run the teacher on a batch and return, by term name and without gradients, what the terms need.

        With several processes that is, unless gradients are off, what they need for this process's images in the
        batch of all: every process must call it.

        Raises:
            InputError: the objective compares with a teacher and there is none.
        """
        return self._remember(images, _divided(images))

    def _run(
        self, images: Tensor, remembered: Mapping[str, Tensor] | Remembered | None
    ) -> tuple[Activations, Mapping[str, Tensor], Division | None]:
        """Return the student's activations, what the terms need of the teacher, and how the batch is divided."""
        division = _divided(images)
        if isinstance(remembered, Remembered):
            remembered = remembered.values
        said = self._remember(images, division) if remembered is None else remembered
        return self._student_taps(images), said, division

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

    def check(
        self, images: Tensor, targets: Tensor | None, remembered: Mapping[str, Tensor] | Remembered | None = None
    ) -> None:
        """Rehearse a training step on a real batch, so that a mistake shows before hours are spent on it.

        ``remembered`` is as for :meth:`forward`.

        Weights, gradients, buffers such as batch statistics, and the random number generators of the processor and
        of CUDA are afterwards as they were. With several processes all must call it, each with its images.

        Raises:
            InputError: a network puts out probabilities in the place of logits, a target has no logit or is no
                probability, a term of a weight above 0 is not finite, or such a distillation term has no gradient with
                respect to the student's trainable parameters; the line names the term. Or images are far from [0, 1]
                and go to a saved model, which normalises them itself, or are on another device than a network; or the
                student's parameters are sharded (``fully_shard``).
        """
        self._look_for_another()
        require_tensor(images)
        refuse_shards(self.student)
        if not self.student.training:
            warnings.warn("the student is in eval mode, and would be trained so: call distiller.train()", stacklevel=2)
        for name, network in (("student", self.student), ("teacher", self.teacher)):
            if network is not None:
                check_place(name, network, images)
                check_range(name, network, images)
        with undisturbed(self, self.student, self._student_taps, images.device):
            student, said, division = self._run(images, remembered)
            if division is not None:
                check_all_or_none(targets, images, division)
            if targets is not None and self.objective.criterion is None:
                needed = self.objective.cross_entropy > 0 or bool(self.objective.users_terms)
                check_targets(student.logits, targets, len(images), division, needed)
            values = self.objective.values(student, targets, said, division)
            for name, logits in self.objective.softened(student, targets, said):
                check_logits(name, logits)
            counted = {term.name for term in self.objective.terms if term.weight}
            if self.objective.cross_entropy:
                counted.add("ce")
            with torch.autocast(images.device.type, enabled=False):  # backwards, as in a training
                check_terms(self.student, {name: value for name, value in values.items() if name in counted}, division)

    def unused_parameters(
        self, images: Tensor, targets: Tensor | None, remembered: Mapping[str, Tensor] | Remembered | None = None
    ) -> tuple[str, ...]:
        """Return the names of trainable parameters on which no term of the objective depends, in any process.

        The arguments are those of :meth:`forward`; all is left as it was, and all processes must call it, as for
        :meth:`check`.
        """
        self._look_for_another()
        require_tensor(images)
        refuse_shards(self.student)
        trainable = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        with undisturbed(self, self.student, self._student_taps, images.device):
            student, said, division = self._run(images, remembered)
            total = self.objective(student, targets, said, division).total
            with torch.autocast(images.device.type, enabled=False):
                return unused(trainable, total, division)

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
        if name == "objective" and "_student_taps" in self.__dict__:
            self._check_reads_no_more(value)
        super().__setattr__(name, value)  # type: ignore[arg-type]

    def _look_for_another(self) -> None:
        """Follow a student that was put in its place by ``add_module``, say."""
        if not torch.compiler.is_compiling() and self._student_taps.model is not self.student:
            self._follow(self.student)

    def _check_reads_no_more(self, objective: object) -> None:
        """Look whether another objective needs nothing but the layers and logits that are read."""
        other = _require_objective(objective)
        present, wanted = self._reads, _what_is_read(other)
        if differing := next((what for what in present if not wanted[what] <= present[what]), None):
            was, is_now = (" and ".join(sorted(one[differing])) or "nothing" for one in (present, wanted))
            raise InputError(
                f"objective: another is put in its place, which reads other {differing} ({is_now}, not {was}); make a "
                "new Distiller with it."
            )
        _check_all_are_averaged(self.student, other)

    def _follow(self, student: object) -> None:
        """Run what is put in the student's place, which may be the student in a wrapper."""
        taps = self._student_taps
        if getattr(self, "_is_replica", False):
            raise InputError(
                "nn.DataParallel copies a Distiller for each GPU, whose layers cannot be read then; use "
                "DistributedDataParallel, with a process for each."
            )
        if not isinstance(student, nn.Module) or unwrap(student) is not unwrap(taps.model):
            raise InputError(
                "student: another network is put in its place, whose layers are not read; make a new Distiller of it, "
                "and its optimizer anew."
            )
        _refuse_data_parallel("student", student)
        _check_all_are_averaged(student, self.objective)
        taps.model = student


def _require_objective(objective: object) -> Objective:
    if not isinstance(objective, Objective):
        raise InputError(f"objective: expected an Objective, as build_objective makes it, got {objective!r}")
    return objective


def _refuse_data_parallel(name: str, network: nn.Module | None) -> None:
    if isinstance(network, nn.DataParallel) and len(network.device_ids) > 1:
        raise InputError(
            f"{name}: nn.DataParallel runs a layer once for each GPU, so that it cannot be read; use "
            "DistributedDataParallel, with a process for each (torchrun, accelerate launch)."
        )


def _what_is_read(objective: Objective) -> dict[str, set[str]]:
    logits = {"student": objective.reads_student_logits, "teacher": objective.reads_teacher_logits}
    return {
        "layers of the student": set(objective.student_taps),
        "layers of the teacher": set(objective.teacher_taps),
        "logits": {f"the {network}'s" for network, is_read in logits.items() if is_read},
    }


def _check_all_are_averaged(student: nn.Module, objective: Objective) -> None:
    if in_ddp(student) is None or distributed.get_world_size() == 1:
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


def _divided(images: Tensor) -> Division | None:
    """Return how the processes have divided the batch; ``None`` where each is by itself."""
    require_tensor(images)
    return divide(images) if torch.is_grad_enabled() else None
