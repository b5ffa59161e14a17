"""How good a classifier is on images that it has not been trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.modes import evaluating
from spkd.outputs import logits_of, named_where_it_fails

if TYPE_CHECKING:
    from torchmetrics import Metric

CALIBRATION_BINS = 15
TOP5_CLASSES = 6  # with five classes or fewer the top-5 error is zero whatever the model does


@dataclass(frozen=True)
class ClassError:
    """How often images are taken for others than their class, for one class.

    Attributes:
        name: the class.
        images: how many images of the class there were.
        error: percent of them that were given another class; None when there were none.
        taken_for: the class that most of these were given, the first of those with as many; None when there were none.
        taken: percent of the images of the class that were given ``taken_for``.
        precision: percent of the images that were given the class that are of it; None when there were none.
        area: under the ROC curve of the class against all others, where that was asked for and there are both.
    """

    name: str
    images: int
    error: float | None
    taken_for: str | None = None
    taken: float = 0.0
    precision: float | None = None
    area: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured.

    Attributes:
        images: number of images.
        top1_error: percent of images whose largest logit is not the target's.
        balanced_error: mean of the classes' own top-1 errors in percent, over the classes that there are images of:
            1 − balanced accuracy. With classes of unequal size it tells of the small ones too.
        top5_error: percent of images whose target is not among the five largest logits; None with
            fewer than six classes, where it says nothing.
        cross_entropy: mean over the images, in nats.
        calibration_error: expected calibration error in percent (Naeini et al. 2015; Guo et al. 2017,
            equation 3): the images are put into 15 bins of equal width by confidence, the largest softmax
            probability; the absolute difference between a bin's mean confidence and its accuracy is
            averaged over the bins, weighted by their numbers of images.
        agreement: percent of images to which model and teacher give the same class, right or wrong; None
            without a teacher, or when its number of classes is not the model's.
        per_class: the error of every class, in the order of the classes.
    """

    images: int
    top1_error: float
    balanced_error: float
    top5_error: float | None
    cross_entropy: float
    calibration_error: float
    agreement: float | None
    per_class: tuple[ClassError, ...]


class Errors(NamedTuple):
    """How often a classifier errs, in percent.

    Attributes:
        error: top-1 error, ``100 · Σ w_c / Σ n_c`` of ``w_c`` wrong among the ``n_c`` images of class c.
        balanced: mean of the classes' own, ``100 · mean(w_c / n_c)`` over the classes with ``n_c > 0``.
    """

    error: float
    balanced: float


def errors_of_counts(counts: Sequence[Sequence[int]]) -> Errors:
    """Return the errors of classes of which so many images were wrong, and so many there are: (k, 2).

    Raises:
        InputError: when there are no images.

    >>> errors_of_counts([(1, 2), (0, 8), (0, 0)])
    Errors(error=10.0, balanced=25.0)
    """
    images = sum(number for _, number in counts)
    if images == 0:
        raise InputError(_NO_IMAGES)
    own = [100.0 * wrong / number for wrong, number in counts if number]
    return Errors(100.0 * sum(wrong for wrong, _ in counts) / images, sum(own) / len(own))


def errors_of(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    sum_of_all: Callable[[Tensor], Tensor] | None = None,
) -> Errors:
    """Return the percentage of images whose largest logit is not the target's, and the mean of the classes' own.

    The model is in eval mode meanwhile and every submodule gets its own mode back. An image with a NaN
    among its logits counts as an error, one without a label (of a target below 0) not at all. One synchronisation with
    the device, at the end.

    Args:
        model: images (b, c, h, w) to logits (b, k).
        batches: pairs of images and int64 targets (b,), on the model's device.
        classes: k.
        sum_of_all: where several processes have divided the batches among them, from a process's numbers of errors
            and images of each class, int64 (k, 2), to the sums over the processes; some may have no batch.

    Raises:
        InputError: when there are no images, or the model fails on them.

    >>> images, targets = torch.eye(3), torch.tensor([0, 1, 0])
    >>> error, balanced = errors_of(nn.Identity(), [(images, targets)], 3)
    >>> round(error, 2), balanced
    (33.33, 25.0)
    """
    told: list[Tensor] = []  # of each batch, 2 · target, and 1 more where that is right
    with evaluating(model), torch.no_grad():
        for inputs, targets in batches:
            logits = logits_on("model", model, inputs)
            right = (logits.argmax(dim=1) == targets) & ~logits.isnan().any(dim=1)
            told.append(2 * targets + right)
    marks = torch.cat(told).cpu() if told else torch.empty(0, dtype=torch.int64)
    wrong, right = torch.bincount(marks[marks >= 0], minlength=2 * classes).view(-1, 2).unbind(1)
    counts = torch.stack([wrong, wrong + right], dim=1)
    return errors_of_counts((counts if sum_of_all is None else sum_of_all(counts)).tolist())


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    teacher: nn.Module | None = None,
    each: Callable[[Tensor, Tensor, Tensor | None], None] | None = None,
) -> Evaluation:
    """Measure a classifier; see :class:`Evaluation` for what, and in which units.

    Model and teacher are in eval mode and without gradients meanwhile, and every submodule gets its own
    mode back. Under a process group each process measures the batches that it is given.

    Args:
        model: images (b, c, h, w) to logits (b, k).
        batches: pairs of images and int64 targets (b,) in 0..k-1, on the model's device.
        classes: the k names, in the order of the logits.
        teacher: the model to compare decisions with; its classes must mean the same as the model's.
        each: is called for each batch, with the logits, the targets, and the teacher's logits where there is one.

    Raises:
        InputError: when there are no images, a network fails on them, the model has not ``len(classes)`` logits, a
            target is out of range, or a logit of either network is not finite.

    >>> images, targets = torch.eye(3), torch.tensor([0, 1, 0])
    >>> evaluation = evaluate(nn.Identity(), [(images, targets)], ["cat", "dog", "owl"])
    >>> [(one.name, one.error) for one in evaluation.per_class]
    [('cat', 50.0), ('dog', 0.0), ('owl', None)]
    >>> evaluation.balanced_error, evaluation.per_class[0].taken_for
    (25.0, 'owl')
    """
    metrics: _Metrics | None = None
    with evaluating(model, teacher), torch.no_grad():
        for inputs, targets in batches:
            logits = logits_on("model", model, inputs)
            if metrics is None:
                metrics = _Metrics(len(classes), logits.device)
            _check(logits, targets, len(classes))
            said = None
            if teacher is not None:
                said = logits_on("teacher", teacher, inputs)
                check_finite("teacher", said)
            metrics.add(logits, targets, said)
            if each is not None:
                each(logits, targets, said)
    if metrics is None or metrics.images == 0:
        raise InputError(_NO_IMAGES)
    return metrics.result(classes)


class _Metrics:
    """Sums over the batches of one evaluation.

    torchmetrics is imported here because importing it takes seconds, which a training process that only
    asks for :func:`errors_of` need not wait for.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        from torchmetrics.classification import MulticlassCalibrationError

        # Never synchronised: one process may evaluate while the others wait or do something else.
        self.calibration: Metric = MulticlassCalibrationError(
            classes, n_bins=CALIBRATION_BINS, norm="l1", validate_args=False, sync_on_compute=False
        ).to(device)
        self.top5_errors = 0 if classes >= TOP5_CLASSES else None
        self.classes = classes
        self.pairs: list[Tensor] = []  # of each batch, true class · classes + decision
        self.images = 0
        self.cross_entropy = 0.0
        self.agreements: int | None = None

    def add(self, logits: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> None:
        decisions = logits.argmax(dim=1)
        self.images += len(targets)
        self.cross_entropy += float(F.cross_entropy(logits, targets, reduction="sum"))
        self.pairs.append(targets * self.classes + decisions)
        # A confidence of exactly 1 would fall past the last bin's open upper edge, into a bin of its own.
        probabilities = logits.softmax(dim=1).clamp(max=1 - 2**-24)
        self.calibration.update(probabilities, targets)
        if self.top5_errors is not None:
            self.top5_errors += int((logits.topk(5, dim=1).indices != targets.unsqueeze(1)).all(dim=1).sum())
        if teacher_logits is not None and teacher_logits.shape == logits.shape:
            same = int((teacher_logits.argmax(dim=1) == decisions).sum())
            self.agreements = same + (self.agreements or 0)

    def result(self, classes: Sequence[str]) -> Evaluation:
        counts: list[Counter[int]] = [Counter() for _ in classes]  # of each class, the decisions
        pairs, numbers = np.unique(torch.cat(self.pairs).cpu().numpy(), return_counts=True)
        for pair, number in zip(pairs.tolist(), numbers.tolist(), strict=True):
            counts[pair // self.classes][pair % self.classes] = number
        decided = sum(counts, start=Counter())
        per_class = tuple(_class_error(classes, place, given, decided[place]) for place, given in enumerate(counts))
        error, balanced = errors_of_counts(
            [(given.total() - given[place], given.total()) for place, given in enumerate(counts)]
        )
        return Evaluation(
            images=self.images,
            top1_error=error,
            balanced_error=balanced,
            top5_error=None if self.top5_errors is None else 100.0 * self.top5_errors / self.images,
            cross_entropy=self.cross_entropy / self.images,
            calibration_error=100.0 * float(self.calibration.compute()),
            agreement=None if self.agreements is None else 100.0 * self.agreements / self.images,
            per_class=per_class,
        )


def _class_error(classes: Sequence[str], place: int, given: Counter[int], decided: int) -> ClassError:
    """Return the error of the class at ``place``, whose images were given these classes, so often each.

    ``decided`` is how many images of all classes were given it.
    """
    images = given.total()
    precision = 100.0 * given[place] / decided if decided else None
    found = ClassError(classes[place], images, None, precision=precision)
    if not images:
        return found
    wrong = Counter({other: number for other, number in given.items() if other != place})
    found = replace(found, error=100.0 * wrong.total() / images)
    if not wrong:
        return found
    ((other, number),) = wrong.most_common(1)
    return replace(found, taken_for=classes[other], taken=100.0 * number / images)


_NO_IMAGES = "batches: expected at least one image to evaluate on, got none; check that the split is not empty"


def _check(logits: Tensor, targets: Tensor, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise InputError(
            f"model: expected logits of shape (images, {classes}), one for each class of the data, "
            f"got {tuple(logits.shape)}; evaluate on the data that the model was trained for"
        )
    if targets.dtype != torch.int64 or tuple(targets.shape) != (len(logits),):
        raise InputError(
            f"targets: expected class numbers, int64, one for each of {len(logits)} images, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise InputError(
            f"targets: expected class numbers 0 to {classes - 1}, "
            f"got {int(targets.min())} to {int(targets.max())}; check the classes of the data"
        )
    check_finite("model", logits)


def logits_on(network: str, model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits in float32; ``network`` is named in the error when the model, maybe a user's own, fails.

    To be called under ``no_grad`` and not ``inference_mode``: what a model caches there could never take part in
    training.
    """
    with named_where_it_fails(network, images):
        return logits_of(model(images)).float()


def check_finite(network: str, logits: Tensor) -> None:
    """Refuse logits of which one is not finite; ``network`` is named in the error."""
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"{network}: expected finite logits, got NaN or infinity; its weights are broken, or the precision that it "
            "was trained in was too low for it"
        )
