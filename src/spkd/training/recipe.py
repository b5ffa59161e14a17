"""How a network is trained: presets, what decides between them, and the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from spkd.errors import InputError, nearest
from spkd.losses.weights import LossWeights

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "cosine"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
TeacherPrecision = Literal["auto", "32-true", "bf16-true"]
ClassWeights = Literal["none", "balanced"]
Select = Literal["error", "balanced"]
_CHOICES = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "teacher_precision": get_args(TeacherPrecision),
    "class_weights": get_args(ClassWeights),
    "select": get_args(Select),
}


@dataclass(frozen=True)
class Recipe:
    """Everything about the training that is neither data nor models.

    The defaults are the paper's protocol for CIFAR-10 (Tung & Mori 2019, section 4.1, following
    Zagoruyko & Komodakis 2016): 200 epochs of SGD with Nesterov momentum and a step schedule.

    Args:
        name: the preset that the values come from.
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: 'sgd', with Nesterov momentum, or 'adamw'.
        lr: highest learning rate.
        momentum: momentum of sgd.
        weight_decay: L2 penalty (sgd) or decoupled decay (adamw).
        schedule: how the rate falls: 'step' multiplies it by lr_decay at each milestone, 'cosine' lowers it to zero.
        milestones: when the step schedule lowers the rate, as fractions of all epochs.
        lr_decay: factor of the step schedule at each milestone.
        warmup_epochs: epochs over which the rate rises linearly from near zero; fractions allowed.
        clip_norm: largest L2 norm of the gradient; 0 for no clipping.
        label_smoothing: share of each label that the cross-entropy spreads evenly over all classes.
        class_weights: weights of labels in the cross-entropy: 'none', or 'balanced', so that all classes count the
            same: n / (k n_c) for a class with n_c of the n training images of k classes; 1 on average.
        select: validation error by which the epoch to keep is chosen (the latest of equals), and which a comparison
            uses: 'error', the share of images, or 'balanced', the mean of the classes' own errors.
        precision: precision of training: '32-true' (float32), or mixed, 'bf16-mixed' or '16-mixed'.
        teacher_precision: precision of the teacher: '32-true' (float32), 'bf16-true', or 'auto' for bfloat16 if the
            device is faster in it and nothing that is compared moves by more than 2 percent.
        losses: weights of the distillation terms.

    Raises:
        InputError: for a value that is not finite or out of its range.
    """

    name: str = "paper"
    epochs: int = 200
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "step"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    lr_decay: float = 0.2
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    select: Select = "error"
    precision: Precision = "32-true"
    teacher_precision: TeacherPrecision = "auto"
    losses: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            given = getattr(self, name)
            _require(given in choices, name, repr(given), f"one of {', '.join(choices)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, not {getattr(self, name)}")
        _require(self.lr > 0 and math.isfinite(self.lr), "lr", self.lr, "a finite number above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0 to below 1")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a number from 0 to below 1")
        _require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "a number above 0, at most 1")
        for name in ("weight_decay", "warmup_epochs", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0 and math.isfinite(value), name, value, "a finite number, 0 or more")
        ordered = all(0 < fraction < 1 for fraction in self.milestones) and list(self.milestones) == sorted(
            self.milestones
        )
        _require(ordered, "milestones", list(self.milestones), "rising fractions of the epochs, between 0 and 1")

    def override(self, values: Mapping[str, object]) -> Recipe:
        """Return the recipe with the named fields (of it or of its loss weights) replaced; ``None`` keeps one."""
        given = {name: value for name, value in values.items() if value is not None}
        of_losses = {f.name for f in fields(LossWeights)}
        if unknown := sorted(set(given) - of_losses - {f.name for f in fields(Recipe)}):
            raise InputError(f"unknown recipe field {unknown[0]!r}.{nearest(unknown[0], overridable())}")
        losses = {name: given.pop(name) for name in sorted(of_losses & set(given))}
        return replace(self, **given, losses=replace(self.losses, **losses))  # type: ignore[arg-type]

    def for_batches_of(self, images: int) -> Recipe:
        """Return the recipe with batches of so many images, and γ changed in proportion.

        Rows of G have length one, so that ‖G_T - G_S‖² grows as b, and the loss, which divides it by b², falls as
        1 / b; the cross-entropy beside it does not change. At a given γ / b the two are to each other as before.

        >>> recipe = PRESETS["digits"].for_batches_of(16)
        >>> recipe.batch_size, recipe.losses.gamma, PRESETS["digits"].losses.gamma
        (16, 25.0, 100.0)
        """
        gamma = self.losses.gamma * images / self.batch_size
        return replace(self, batch_size=images, losses=replace(self.losses, gamma=gamma))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"--{name} must be {expected}, not {value}")


PRESETS: Mapping[str, Recipe] = {
    "paper": Recipe(),
    "finetune": Recipe(
        name="finetune",
        epochs=30,
        batch_size=32,
        optimizer="adamw",
        lr=3e-4,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=1.0,
        clip_norm=1.0,
        # These and those below were chosen on validation images: docs/decisions.md has the figures.
        losses=LossWeights(gamma=30.0, beta=10.0),
    ),
    "scratch": Recipe(
        name="scratch",
        epochs=100,
        batch_size=64,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=5.0,
        clip_norm=1.0,
        losses=LossWeights(gamma=128.0, beta=10.0),
    ),
    "digits": Recipe(
        name="digits",
        epochs=30,
        batch_size=64,
        schedule="cosine",
        warmup_epochs=1.0,
        losses=LossWeights(gamma=100.0, beta=3.0),
    ),
}


def overridable() -> list[str]:
    """Return the names of the fields that a user may set one by one."""
    return [f.name for owner in (Recipe, LossWeights) for f in fields(owner) if f.name not in ("name", "losses")]


def preset(name: str) -> Recipe:
    """Return the preset called ``name``.

    Raises:
        InputError: for an unknown name, with the nearest ones.
    """
    if name not in PRESETS:
        raise InputError(f"unknown recipe {name!r}: there are {', '.join(PRESETS)}.{nearest(name, PRESETS)}")
    return PRESETS[name]


def choose_preset(digits: bool, model: str, trained: bool) -> tuple[Recipe, str]:
    """Return the preset that suits what is given, and the reason in words;
    ``digits`` tells whether the data are the embedded ones, ``model`` is what the user named.

    >>> recipe, reason = choose_preset(False, "timm/resnet18", trained=True)
    >>> recipe.name, reason
    ('finetune', 'the network starts from trained weights')
    """
    if digits:
        return PRESETS["digits"], "the data are the digits"
    if trained:
        return PRESETS["finetune"], "the network starts from trained weights"
    if model.startswith("wrn-"):
        return PRESETS["paper"], "a wide residual network from scratch"
    return PRESETS["scratch"], "a network from scratch"


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (from 0), a pure function of the recipe.

    With warm-up over ``w`` steps the rate of step ``t < w`` is multiplied by ``(t + 1) / w``. The step schedule counts
    whole epochs, as in the paper, and leaves the first one the full rate; the cosine is ``(1 + cos(π t / T)) / 2`` over
    all ``T`` steps.

    >>> [round(learning_rate(Recipe(), epoch * 10, 10), 6) for epoch in (0, 59, 60, 120, 160)]
    [0.1, 0.1, 0.02, 0.004, 0.0008]
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    rate = recipe.lr * min(1.0, (step + 1) / warmup) if warmup else recipe.lr
    if recipe.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * step / (recipe.epochs * steps_per_epoch)))
    epoch = step // steps_per_epoch
    passed = sum(epoch >= max(1, round(fraction * recipe.epochs)) for fraction in recipe.milestones)
    return rate * float(recipe.lr_decay**passed)
