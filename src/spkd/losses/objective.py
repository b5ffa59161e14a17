"""What a student is trained on: cross-entropy and a weighted sum of distillation losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.errors import InputError, nearest
from spkd.functional.numerics import upcast
from spkd.losses.base import DistillationLoss
from spkd.taps import Activations


@dataclass(frozen=True)
class Term:
    """One distillation loss of an objective: ``weight`` times ``loss``, shown in logs as ``name``."""

    name: str
    weight: float
    loss: DistillationLoss


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
        student_taps: the student's layers that the terms read, each once.
        teacher_taps: the teacher's.

    Raises:
        InputError: when two terms have one name or one is called "ce", when a weight is negative or not
            finite, or when all weights are zero.
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
        pairs = [pair for term in terms for pair in term.loss.pairs]
        self.student_taps = tuple(dict.fromkeys(pair.student for pair in pairs))
        self.teacher_taps = tuple(dict.fromkeys(pair.teacher for pair in pairs))

    @torch.no_grad()
    def remember(self, teacher: Activations) -> dict[str, Tensor]:
        """Return, by term name, what the terms need of the teacher for this batch; without gradients."""
        return {term.name: term.loss.remember(teacher).detach() for term in self.terms}

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
            value = term.loss(student, remembered[term.name])
            if value.dim() != 0:
                raise InputError(
                    f"the loss of term {term.name!r} must be a scalar, got shape {tuple(value.shape)}; "
                    "take its mean or sum"
                )
            values.append((term.name, term.weight, value))
        weighted = [weight * value for _, weight, value in values if weight]
        return LossBreakdown(torch.stack(weighted).sum(), {name: value.detach() for name, _, value in values})


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name == "ce":
            raise InputError("no term may be called 'ce', which is the cross-entropy; give it another name")
        if names.count(name) > 1:
            raise InputError(f"terms must have different names, got {name!r} {names.count(name)} times; rename one")
