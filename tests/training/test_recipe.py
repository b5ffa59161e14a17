"""Recipes: the paper's protocol, overriding one field, refusing what makes no sense."""

import math

import pytest
import torch

from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.functional import similarity_preserving_loss
from spkd.training.recipe import PRESETS, Recipe, choose_preset, learning_rate, overridable, preset


def test_the_paper_preset_is_the_published_protocol() -> None:
    recipe = preset("paper")
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (200, 128, 0.9, 5e-4)
    rates = [learning_rate(recipe, epoch * 391, 391) for epoch in range(200)]
    expected = [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
    assert rates == pytest.approx(expected)
    assert (recipe.losses.gamma, recipe.losses.alpha, recipe.losses.temperature) == (3000, 0.9, 4)
    assert recipe.losses.beta == 1000


def test_cosine_goes_from_the_rate_to_zero_and_is_half_in_the_middle() -> None:
    recipe = Recipe(schedule="cosine", epochs=10, lr=0.4)
    assert learning_rate(recipe, 0, 6) == 0.4
    assert learning_rate(recipe, 30, 6) == pytest.approx(0.2)
    assert learning_rate(recipe, 59, 6) == pytest.approx(0.2 * (1 + math.cos(math.pi * 59 / 60)))
    assert learning_rate(recipe, 60, 6) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_first_epoch_of_a_short_run_has_the_full_rate(epochs: int) -> None:
    recipe = Recipe(epochs=epochs, milestones=(0.05, 0.3, 0.6))
    assert {learning_rate(recipe, step, 7) for step in range(7)} == {recipe.lr}
    if epochs > 1:
        assert learning_rate(recipe, 7, 7) < recipe.lr


def test_a_milestone_falls_on_the_nearest_epoch() -> None:
    rates = [learning_rate(Recipe(epochs=7), 3 * epoch, 3) for epoch in range(7)]
    assert rates == pytest.approx([0.1] * 2 + [0.02] * 2 + [0.004] * 2 + [0.0008])


def test_warmup_rises_linearly_to_the_full_rate() -> None:
    recipe = Recipe(warmup_epochs=2, lr=0.1)
    assert [learning_rate(recipe, step, 5) for step in range(10)] == pytest.approx([0.01 * (k + 1) for k in range(10)])
    assert learning_rate(recipe, 10, 5) == 0.1


def test_override_reaches_the_recipe_and_its_loss_weights_and_none_leaves_them() -> None:
    recipe = Recipe().override({"epochs": 3, "lr": None, "gamma": 10.0, "milestones": (0.5,)})
    assert (recipe.epochs, recipe.lr, recipe.losses.gamma, recipe.milestones) == (3, 0.1, 10.0, (0.5,))
    assert recipe.losses.alpha == 0.9


@pytest.mark.parametrize("name", PRESETS)
def test_a_similarity_loss_weighs_as_much_in_another_batch(name: str) -> None:
    """As much as the cross-entropy beside it: of four batches alike, each of which has no more to say than one."""
    one = preset(name)
    several = one.for_batches_of(4 * one.batch_size)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    # Images of other batches are like none of this one.
    apart = [torch.block_diag(*[features] * 4) for features in (student, teacher)]
    expected = one.losses.gamma * similarity_preserving_loss(student, teacher)
    found = several.losses.gamma * similarity_preserving_loss(*apart)
    torch.testing.assert_close(found, expected)
    assert (several.batch_size, several.losses.beta) == (4 * one.batch_size, one.losses.beta)


def test_every_field_can_be_overridden() -> None:
    values = {
        "epochs": 3,
        "batch_size": 5,
        "optimizer": "adamw",
        "lr": 0.3,
        "momentum": 0.5,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "milestones": (0.5,),
        "lr_decay": 0.7,
        "warmup_epochs": 2.0,
        "clip_norm": 1.5,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "select": "balanced",
        "precision": "bf16-mixed",
        "teacher_precision": "32-true",
        "gamma": 10.0,
        "alpha": 0.4,
        "temperature": 2.0,
        "beta": 20.0,
    }
    changed = Recipe().override(values)
    assert set(overridable()) == set(values)
    assert {name: getattr(changed, name, None) or getattr(changed.losses, name) for name in values} == values


def test_a_mistyped_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="epochs"):
        Recipe().override({"epoch": 3})


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"momentum": 1.0},
        {"momentum": math.nan},
        {"weight_decay": -1.0},
        {"warmup_epochs": math.nan},
        {"clip_norm": math.inf},
        {"lr_decay": 0.0},
        {"milestones": (0.6, 0.3)},
        {"milestones": (0.5, 1.5)},
        {"class_weights": "equal"},
        {"select": "best"},
        {"gamma": -1.0},
        {"gamma": math.nan},
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(values))) as caught:
        Recipe().override(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "model", "trained", "expected"),
    [
        ("digits", "wrn-10-1", False, "digits"),
        ("Digits", "wrn-16-1", False, "digits"),
        ("cifar10", "wrn-16-1", False, "paper"),
        ("cifar10", "timm/resnet18", True, "finetune"),
        ("photos", "timm/resnet18", False, "scratch"),
        ("photos", "wrn-16-1", True, "finetune"),
        ("./digits", "net.py:Net", False, "scratch"),
    ],
)
def test_the_preset_follows_from_what_is_given(data: str, model: str, trained: bool, expected: str) -> None:
    recipe, reason = choose_preset(DataOptions(data).is_digits, model, trained)
    assert recipe is PRESETS[expected]
    assert recipe.name == expected
    assert reason


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'finetune'"):
        preset("fine-tune")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("finetune", (30, 32, "adamw", 3e-4, 0.05, "cosine", 1.0, 1.0, 30.0, 10.0)),
        ("scratch", (100, 64, "adamw", 1e-3, 0.05, "cosine", 5.0, 1.0, 128.0, 10.0)),
        ("digits", (30, 64, "sgd", 0.1, 5e-4, "cosine", 1.0, 0.0, 100.0, 3.0)),
    ],
)
def test_the_presets_are_as_they_were_chosen(name: str, values: tuple[object, ...]) -> None:
    one = preset(name)
    found = (one.epochs, one.batch_size, one.optimizer, one.lr, one.weight_decay, one.schedule)
    assert (*found, one.warmup_epochs, one.clip_norm, one.losses.gamma, one.losses.beta) == values
