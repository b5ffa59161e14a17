"""What a student is trained on: cross-entropy and a weighted sum of distillation losses."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.errors import InputError, nearest
from spkd.functional.numerics import upcast
from spkd.imports import failure
from spkd.losses.base import DistillationLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.taps import Activations

if TYPE_CHECKING:
    from spkd.division import Division

UNLABELLED = -100
"""The target of an image without a label: PyTorch's own for what a cross-entropy passes over."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits and targets to a value for each image, (b,)."""


@dataclass(frozen=True)
class Term:
    """One distillation loss of an objective: ``weight`` times ``loss``, shown in logs as ``name``.

    Attributes:
        name: in logs.
        weight: its factor in the total.
        loss: what it computes.
        memory: a name for what ``loss.remember`` returns; terms that share it remember the same. Empty where that
            is not known, and then nothing can be recorded for the term.
    """

    name: str
    weight: float
    loss: DistillationLoss
    memory: str = ""


class LossBreakdown(NamedTuple):
    """The value of an objective for one batch. A named tuple, because Fabric and DDP look into those.

    Attributes:
        total: the weighted sum, a scalar to call ``backward()`` on.
        terms: each term by name, unweighted and detached; cross-entropy is always among them, as "ce".
        logits: the student's, detached; of this process's images. The package's own training loop leaves them out.

    Where several processes have divided a batch, all of them get the values of the whole batch.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    logits: Tensor | None = None


class Objective(nn.Module):
    """``total = cross_entropy * CE + sum of weight * term``.

    Terms are summed, never averaged. A term of weight 0 is computed and reported but is no part of the
    total, so that not even its NaN reaches the gradient. Cross-entropy is in nats, the mean over the
    batch, computed in float32; an image without a label (target -100) counts as zero in it, so that each
    labelled one weighs the same in an epoch, however many there are without.

    Args:
        terms: the distillation losses with their names and weights.
        cross_entropy: the weight of the cross-entropy with the labels.
        criterion: what takes the place of the cross-entropy, and its name "ce": from the student's logits in float32
            and the targets to a value for each image, ``(b,)``, of which the mean is taken. Label smoothing, say, is
            ``nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")``, and labels that do not exclude each other
            ``lambda logits, targets: F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)``.
            A module's weights are parameters of the objective.

    Attributes:
        terms: as given.
        pairs: the layers that the terms compare, each pair once.
        memories: the names of what the terms remember, each once.
        student_taps: the student's layers that the terms read, each once.
        teacher_taps: the teacher's.
        reads_teacher_logits: whether any term reads the teacher's logits.
        reads_student_logits: whether the student's may be read: by a term that reads the teacher's, or with labels.
        users_terms: the names of the terms whose losses are not the package's.

    Raises:
        InputError: when a term is none, two have one name or one is called "ce", when a weight is no number, negative
            or not finite, when all weights are zero, or for a criterion that cannot be called.

    A user's own loss that raises an error of another kind, or returns what it must not, is answered with an
    ``InputError`` as well, which names the term and its class.
    """

    def __init__(
        self, terms: Iterable[Term] = (), cross_entropy: float = 1.0, *, criterion: Criterion | None = None
    ) -> None:
        super().__init__()
        terms = tuple(terms)
        for term in terms:
            if not isinstance(term, Term) or not isinstance(term.loss, DistillationLoss):
                raise InputError(f"terms: expected Term(name, weight, loss) with a DistillationLoss made, got {term!r}")
        if isinstance(criterion, type) or (criterion is not None and not callable(criterion)):
            raise InputError(
                f"criterion: expected a function of logits and targets or a module that is made, got {criterion!r}; "
                'try nn.CrossEntropyLoss(reduction="none")'
            )
        _check_names([term.name for term in terms])
        weights = [
            ("cross_entropy", cross_entropy),
            *((f"the weight of {term.name}", term.weight) for term in terms),
        ]
        for name, weight in weights:
            if not _is_weight(weight):
                raise InputError(f"{name} must be a finite number of at least 0, got {weight}; try 1")
        if not any(weight for _, weight in weights):
            raise InputError("all weights of the objective are 0, so nothing would be learnt; give one above 0")
        self.terms = terms
        self.cross_entropy = cross_entropy
        self.criterion = criterion
        self.losses = nn.ModuleList(term.loss for term in terms)
        self.users_terms = tuple(term.name for term in terms if not type(term.loss).__module__.startswith("spkd."))
        self.pairs = tuple(dict.fromkeys(pair for term in terms for pair in term.loss.pairs))
        self.student_taps = tuple(dict.fromkeys(pair.student for pair in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(pair.teacher for pair in self.pairs))
        self.memories = tuple(dict.fromkeys(term.memory for term in terms))
        self.reads_teacher_logits = any(term.loss.reads_teacher_logits for term in terms)
        self.reads_student_logits = self.reads_teacher_logits or cross_entropy > 0

    @torch.no_grad()
    def remember(self, teacher: Activations, division: Division | None = None) -> dict[str, Tensor]:
        """Return, by term name, what the terms need of the teacher for this batch; without gradients.

        Args:
            teacher: the teacher's activations for the batch, or for this process's images of it.
            division: how several processes have divided the batch, if they have.
        """
        remembered = {}
        for term, activations in self._seen(teacher, division):
            # The teacher may run in bfloat16, which losses of the package are made for.
            exact = _in_float32(activations) if term.name in self.users_terms else activations
            value = self._run(term, "remember", exact)
            if not isinstance(value, Tensor):
                raise InputError(f"{_title(term)}: remember() must return a tensor, got {_kind(value)}")
            remembered[term.name] = value.detach()
        return remembered

    def forward(
        self,
        student: Activations,
        targets: Tensor | None,
        remembered: Mapping[str, Tensor],
        division: Division | None = None,
    ) -> LossBreakdown:
        """Return the weighted sum and its terms.

        Where several processes have divided the batch, the values are those of the whole batch. The gradient of the
        total is such that its mean over the processes, which ``DistributedDataParallel`` takes, is the whole batch's.

        Args:
            student: the student's activations for a batch, logits ``(b, k)``, or for this process's images of it.
            targets: class indices ``(b,)``, int64, of the same images, -100 where there is no label; or the
                probabilities of the classes ``(b, k)``, as mixed images have them; or what the criterion takes. None
                where no image has a label: the logits may then be of any shape.
            remembered: what :meth:`remember` returned for the same images.
            division: as for :meth:`remember`.

        Raises:
            InputError: as :meth:`values`.
        """
        values = self.values(student, targets, remembered, division)
        own = 1.0 if division is None else division.processes * division.share
        factors = {"ce": self.cross_entropy * own}
        for term in self.terms:
            factors[term.name] = term.weight * (own if term.loss.mean_over_images else 1.0)
        # Not 1 * value, which a compiler folds into the very tensor that is detached below: pytorch/pytorch#194760.
        first, *others = [
            value if factors[name] == 1 else factors[name] * value for name, value in values.items() if factors[name]
        ]
        total = sum(others, start=first)
        terms = {name: value.detach() for name, value in values.items()}
        if division is not None:
            total, terms = _of_the_whole_batch(total, terms, division)
        return LossBreakdown(total, terms, student.logits.detach())

    def values(
        self,
        student: Activations,
        targets: Tensor | None,
        remembered: Mapping[str, Tensor],
        division: Division | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms by name, unweighted and with their gradients; cross-entropy comes first, as "ce".

        Of a divided batch, a term that is a mean over images is that of this process's images.

        Raises:
            InputError: when ``remembered`` lacks a term or a loss is no scalar, or as the losses do.
        """
        if targets is not None and targets.is_floating_point():
            targets = upcast(targets)  # which a wrapper in mixed precision has rounded
        values = {"ce": self._cross_entropy(student.logits, targets)}
        labelled = Activations(student.logits, student.taps, student.gather, targets)
        for term, activations in self._seen(labelled, division):
            if term.name not in remembered:
                known = ", ".join(remembered) or "nothing"
                raise InputError(
                    f"remembered lacks the term {term.name!r} (it holds {known}); pass what "
                    f"remember() returned for this objective.{nearest(term.name, remembered)}"
                )
            known_of_teacher = remembered[term.name]
            if term.name in self.users_terms and known_of_teacher.is_floating_point():
                known_of_teacher = upcast(known_of_teacher)  # a tape gives float16
            value = self._run(term, "forward", activations, known_of_teacher)
            if not isinstance(value, Tensor):
                raise InputError(f"{_title(term)}: forward() must return a scalar tensor, got {_kind(value)}")
            if value.dim() != 0:
                raise InputError(
                    f"{_title(term)}: forward() must return a scalar tensor, got shape {tuple(value.shape)}; "
                    "take its mean or sum"
                )
            values[term.name] = value
        return values

    def softened(
        self, student: Activations, targets: Tensor | None, remembered: Mapping[str, Tensor]
    ) -> list[tuple[str, Tensor]]:
        """Return the outputs, with the name of the network that each is of, whose softmax the objective takes."""
        soft = [term.name for term in self.terms if term.weight and type(term.loss) is SoftTargetLoss]
        plain = self.criterion is None or isinstance(self.criterion, nn.CrossEntropyLoss)
        of_labels = targets is not None and self.cross_entropy and plain
        outputs = [("student", student.logits)] if soft or of_labels else []
        return [*outputs, *(("teacher", remembered[name]) for name in soft)]

    def _cross_entropy(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            return logits.new_zeros((), dtype=torch.float32)
        if self.criterion is not None:
            return _mean_of(self.criterion, upcast(logits), targets)
        if logits.dim() != 2:
            raise InputError(
                f"student: expected logits of shape (images, classes), got {tuple(logits.shape)}; give the objective a "
                "criterion of your own for targets of another kind, or None as targets where there are no labels."
            )
        # Autocast leaves a cross-entropy of float32 as it is.
        return F.cross_entropy(upcast(logits), targets, ignore_index=UNLABELLED, reduction="sum") / len(targets)

    def _seen(self, activations: Activations, division: Division | None) -> list[tuple[Term, Activations]]:
        """Return the terms with what each is to see of a network."""
        if division is None:
            return [(term, activations) for term in self.terms]
        own = replace(activations, gather=division.gather)
        everything = own
        if whole := [term.name for term in self.terms if not term.loss.mean_over_images]:
            everything = own.of_the_whole_batch()
            if activations.targets is not None and any(name in self.users_terms for name in whole):
                everything = replace(everything, targets=division.gather_any(activations.targets))
        return [(term, own if term.loss.mean_over_images else everything) for term in self.terms]

    def _run(self, term: Term, half: Literal["remember", "forward"], *arguments: object) -> object:
        call: Callable[..., object] = term.loss if half == "forward" else term.loss.remember
        # A compiler is to see no try around the losses of the package.
        if term.name not in self.users_terms:
            return call(*arguments)
        try:
            return call(*arguments)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            file = getattr(sys.modules.get(type(term.loss).__module__), "__file__", None)
            raise InputError(f"{_title(term)} failed in {half}(): {failure(error, file)}") from error


def _mean_of(criterion: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the images of a user's own criterion."""
    values = criterion(logits, targets)
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else _kind(values)
        raise InputError(
            f"criterion: expected a value for each image, of shape ({len(logits)},), got {got}; give it "
            'reduction="none", and take the mean over what is left of each image.'
        )
    return values.mean()


def _of_the_whole_batch(
    total: Tensor, terms: Mapping[str, Tensor], division: Division
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the values of all processes together, with this process's gradient."""
    parts = [total.detach() / division.processes, *(division.share * value for value in terms.values())]
    whole = division.sum(torch.stack(parts))
    return total + (whole[0] - total.detach()), dict(zip(terms, whole[1:], strict=True))


def _in_float32(activations: Activations) -> Activations:
    taps = {name: upcast(tap) if tap.is_floating_point() else tap for name, tap in activations.taps.items()}
    return replace(activations, logits=upcast(activations.logits), taps=taps)


def _title(term: Term) -> str:
    """Return the term's name, and its class where the name does not tell it."""
    own = type(term.loss).__name__
    return f"term {term.name!r}" + ("" if term.name.partition("/")[0] == own else f" (class {own})")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name == "ce":
            raise InputError("no term may be called 'ce', which is the cross-entropy; give it another name")
        if names.count(name) > 1:
            raise InputError(f"terms must have different names, got {name!r} {names.count(name)} times; rename one")


def _is_weight(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and float(value) >= 0
