"""What a student is trained on: cross-entropy and a weighted sum of distillation losses."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.errors import InputError, nearest
from spkd.functional.numerics import upcast
from spkd.imports import failure
from spkd.losses.base import DistillationLoss
from spkd.taps import Activations


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
    """

    total: Tensor
    terms: Mapping[str, Tensor]


class Objective(nn.Module):
    """``total = cross_entropy * CE + sum of weight * term``.

    Terms are summed, never averaged. A term of weight 0 is computed and reported but is no part of the
    total, so that not even its NaN reaches the gradient. Cross-entropy is in nats, the mean over the
    batch, computed in float32.

    Args:
        terms: the distillation losses with their names and weights.
        cross_entropy: the weight of the cross-entropy with the labels.

    Attributes:
        terms: as given.
        pairs: the layers that the terms compare, each pair once.
        memories: the names of what the terms remember, each once.
        student_taps: the student's layers that the terms read, each once.
        teacher_taps: the teacher's.
        reads_teacher_logits: whether any term reads the teacher's logits.

    Raises:
        InputError: when two terms have one name or one is called "ce", when a weight is negative or not
            finite, or when all weights are zero.

    A user's own loss that raises an error of another kind, or returns what it must not, is answered with an
    ``InputError`` as well, which names the term and its class.
    """

    def __init__(self, terms: Sequence[Term] = (), cross_entropy: float = 1.0) -> None:
        super().__init__()
        _check_names([term.name for term in terms])
        weights = [
            ("cross_entropy", cross_entropy),
            *((f"the weight of {term.name}", term.weight) for term in terms),
        ]
        for name, weight in weights:
            if not math.isfinite(weight) or weight < 0:
                raise InputError(f"{name} must be a finite number of at least 0, got {weight}; try 1")
        if not any(weight for _, weight in weights):
            raise InputError("all weights of the objective are 0, so nothing would be learnt; give one above 0")
        self.terms = tuple(terms)
        self.cross_entropy = cross_entropy
        self.losses = nn.ModuleList(term.loss for term in terms)
        self._foreign = tuple(term.name for term in terms if not type(term.loss).__module__.startswith("spkd."))
        self.pairs = tuple(dict.fromkeys(pair for term in terms for pair in term.loss.pairs))
        self.student_taps = tuple(dict.fromkeys(pair.student for pair in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(pair.teacher for pair in self.pairs))
        self.memories = tuple(dict.fromkeys(term.memory for term in terms))
        self.reads_teacher_logits = any(term.loss.reads_teacher_logits for term in terms)

    @torch.no_grad()
    def remember(self, teacher: Activations) -> dict[str, Tensor]:
        """Return, by term name, what the terms need of the teacher for this batch; without gradients."""
        remembered = {}
        for term in self.terms:
            value = self._run(term, "remember", teacher)
            if not isinstance(value, Tensor):
                raise InputError(f"{_title(term)}: remember() must return a tensor, got {_kind(value)}")
            remembered[term.name] = value.detach()
        return remembered

    def forward(self, student: Activations, targets: Tensor, remembered: Mapping[str, Tensor]) -> LossBreakdown:
        """Return the weighted sum and its terms.

        Args:
            student: the student's activations for a batch, logits ``(b, k)``.
            targets: class indices ``(b,)``, int64.
            remembered: what :meth:`remember` returned for the same batch.

        Raises:
            InputError: when ``remembered`` lacks a term or a loss is no scalar, or as the losses do.
        """
        with torch.autocast(device_type=student.logits.device.type, enabled=False):
            values = [("ce", self.cross_entropy, F.cross_entropy(upcast(student.logits), targets))]
        for term in self.terms:
            if term.name not in remembered:
                known = ", ".join(remembered) or "nothing"
                raise InputError(
                    f"remembered lacks the term {term.name!r} (it holds {known}); pass what "
                    f"remember() returned for this objective.{nearest(term.name, remembered)}"
                )
            value = self._run(term, "forward", student, remembered[term.name])
            if not isinstance(value, Tensor):
                raise InputError(f"{_title(term)}: forward() must return a scalar tensor, got {_kind(value)}")
            if value.dim() != 0:
                raise InputError(
                    f"{_title(term)}: forward() must return a scalar tensor, got shape {tuple(value.shape)}; "
                    "take its mean or sum"
                )
            values.append((term.name, term.weight, value))
        weighted = [weight * value for _, weight, value in values if weight]
        return LossBreakdown(torch.stack(weighted).sum(), {name: value.detach() for name, _, value in values})

    def _run(self, term: Term, half: Literal["remember", "forward"], *arguments: object) -> object:
        call: Callable[..., object] = term.loss if half == "forward" else term.loss.remember
        # A compiler is to see no try around the losses of the package.
        if term.name not in self._foreign:
            return call(*arguments)
        try:
            return call(*arguments)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            file = getattr(sys.modules.get(type(term.loss).__module__), "__file__", None)
            raise InputError(f"{_title(term)} failed in {half}(): {failure(error, file)}") from error


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
