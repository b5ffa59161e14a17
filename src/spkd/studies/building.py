"""The tasks that the paper's experiments are made of: a network alone, a student of a teacher, a teacher's tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spkd.data.options import DataOptions
from spkd.files import slug
from spkd.studies.records import BASELINE
from spkd.studies.scales import Protocol, Scale
from spkd.studies.tasks import Label, Recording, Task
from spkd.training.options import Request


@dataclass(frozen=True)
class Network:
    """A network of an experiment.

    Attributes:
        label: what tables and folders call it.
        spec: what it is built from.
        weights: pretrained ones, or None for a network that is trained from scratch.
        origin: trains it on other images first, instead of ``weights``; it begins, or teaches, with what that leaves.
    """

    label: str
    spec: str
    weights: str | None = None
    origin: Task | None = None


@dataclass(frozen=True)
class Method:
    """How a student is trained.

    Attributes:
        label: what tables and folders call it.
        terms: the method of the request.
        taps: which layers the terms compare.
    """

    label: str
    terms: str
    taps: tuple[str, ...] = ("last",)


PRETRAINING = "pretraining"
"""The method, in the records, of a network that is trained on other images first."""
KD = Method("kd", "kd")
AT = Method("at", "at", ("stages",))
SP = Method("sp", "sp")
"""As in the paper, attention transfer compares the ends of all stages and the similarities only those of the last."""


@dataclass(frozen=True)
class Builder:
    """Makes the tasks of one experiment.

    Attributes:
        study: the folder of the study.
        scale: of all its networks.
        protocol: how they are trained.
        data: the images of a seed.
        remembered: what of a teacher is recorded on a tape: the same in all experiments, which may share it.
        above: begins the names of all tasks, so that networks of other experiments with the same labels lie apart.
    """

    study: Path
    scale: Scale
    protocol: Protocol
    data: Callable[[int], DataOptions]
    remembered: Sequence[Method] = (KD, AT, SP)
    above: str = ""

    def alone(self, network: Network, seed: int, method: str = BASELINE) -> Task:
        """Return the training of a network without a teacher; ``method`` is what records call it."""
        return Task(
            f"{self.above}{method}/{slug(network.label)}/seed-{seed}",
            self._request(network, seed),
            after=() if network.origin is None else (network.origin.name,),
            labels=_labels(student=network.label, method=method, seed=seed),
        )

    def distilled(
        self,
        row: str,
        student: Network,
        teacher: Network,
        method: Method,
        seed: int,
        *,
        setting: Label = None,
        overrides: Mapping[str, object] | None = None,
    ) -> list[Task]:
        """Return the training of a student, after those of its origin, its teacher and its tape where there are any."""
        request = self._with_teacher(self._request(student, seed), teacher, method)
        if overrides:
            request = replace(request, overrides={**request.overrides, **overrides})
        before = [] if student.origin is None else [student.origin]
        if (trained := self._trained(teacher)) is not None:
            before.append(trained)
        if self.scale.tapes:
            before.append(self._recording(teacher, seed, () if trained is None else (trained.name,)))
        task = Task(
            f"{self.above}{method.label}/{slug(row)}/seed-{seed}",
            request,
            after=tuple(task.name for task in before),
            labels=_labels(
                row=row, student=student.label, teacher=teacher.label, method=method.label, setting=setting, seed=seed
            ),
        )
        return [*before, task]

    def _recording(self, teacher: Network, seed: int, after: tuple[str, ...]) -> Task:
        """Return the filling of a tape; in the student's place stands the teacher's own architecture."""
        request = self._request(replace(teacher, weights=None, origin=None), seed)
        request = self._with_teacher(request, teacher, Method("", "sp", ("stages",)))
        return Task(
            f"{self.above}recordings/{slug(teacher.label)}/seed-{seed}",
            Recording((request,), tuple(method.terms for method in self.remembered)),
            after=after,
            labels=_labels(teacher=teacher.label, seed=seed),
        )

    def _request(self, network: Network, seed: int) -> Request:
        protocol = self.protocol
        return Request(
            model=network.spec if network.origin is None else str(network.origin.folder(self.study)),
            weights=network.weights,
            replace_head=network.weights is not None or network.origin is not None,
            data=replace(self.data(seed), image_size=protocol.image_size, train_images=protocol.train_images),
            recipe=protocol.recipe,
            overrides=dict(protocol.overrides),
            seed=seed,
        )

    def _with_teacher(self, request: Request, teacher: Network, method: Method) -> Request:
        trained = self._trained(teacher)
        return replace(
            request,
            teacher=teacher.spec if trained is None else str(trained.folder(self.study)),
            teacher_weights=teacher.weights,
            method=method.terms,
            taps=method.taps,
        )

    def _trained(self, teacher: Network) -> Task | None:
        """Return the task that makes a teacher; None for one with weights."""
        if teacher.origin is not None:
            return teacher.origin
        return None if teacher.weights is not None else self.alone(teacher, 0)


def unique(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks, each once, in the order of their first places."""
    return list({task.name: task for task in tasks}.values())


def _labels(
    *,
    row: Label = None,
    student: Label = None,
    teacher: Label = None,
    method: Label = None,
    setting: Label = None,
    seed: Label = None,
) -> dict[str, Label]:
    """Return the columns that tell the tasks of an experiment apart; a network alone belongs to no row."""
    return {"row": row, "student": student, "teacher": teacher, "method": method, "setting": setting, "seed": seed}
