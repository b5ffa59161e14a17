"""A run is what a plain loop makes that is written from the recipe's description alone."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spkd import load_model
from spkd.data.images import Images
from spkd.data.options import DataOptions
from spkd.data.seeds import mixed_seed
from spkd.data.stream import TrainStream, evaluation_batches
from spkd.distiller import Distiller
from spkd.training.batches import first_batch, make_stream
from spkd.training.evaluation import Errors
from spkd.training.options import Request, Runtime
from spkd.training.run import run
from spkd.training.setup import set_up

CPU, SEED, EPOCHS, BATCHES = torch.device("cpu"), 3, 5, 4  # 100 images: 30, 30, 30 and 10

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.8, "weight_decay": 0.02, "clip_norm": 0.1, "warmup_epochs": 0.0}
STEPS = {"schedule": "step", "milestones": (0.4, 0.8), "lr_decay": 0.3}
ADAMW = {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.5, "clip_norm": 0.0, "warmup_epochs": 1.5}
COSINE = {"schedule": "cosine"}


def rate_by_steps(step: int) -> float:
    return 0.1 * 0.3 ** sum(step >= milestone * BATCHES for milestone in (2, 4))


def rate_by_cosine(step: int) -> float:
    return 0.02 * min(1.0, (step + 1) / 6) * (1 + math.cos(math.pi * step / (EPOCHS * BATCHES))) / 2


def error(network: nn.Module, images: Images) -> float:
    network.eval()
    (whole,) = evaluation_batches(images, image_size=8, batch_size=len(images), device=CPU)
    with torch.no_grad():
        wrong = network(whole[0]).argmax(1) != whole[1]
    return 100 * int(wrong.sum()) / len(images)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "rate"), [(SGD, STEPS, rate_by_steps), (ADAMW, COSINE, rate_by_cosine)]
)
def test_a_run_equals_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch,
    tiny_source: str,
    teacher: Path,
    tmp_path: Path,
    heard: Any,
    optimizer: dict[str, Any],
    schedule: dict[str, Any],
    rate: Any,
) -> None:
    overrides = {**optimizer, **schedule, "epochs": EPOCHS, "batch_size": 30, "gamma": 20.0, "alpha": 0.5}
    overrides |= {"temperature": 2.0, "teacher_precision": "32-true"}
    data = DataOptions(train_images=100)
    # Without the biases before batch norms, whose gradients are rounding alone.
    path = tmp_path / "own.py"
    path.write_text(tiny_source.replace("padding=1)", "padding=1, bias=False)").replace("2, 1)", "2, 1, bias=False)"))
    wanted = Request(
        model=f"{path}:Tiny",
        teacher=str(teacher),
        method="sp+kd",
        data=data,
        recipe="paper",
        overrides=overrides,
        seed=SEED,
    )
    evaluated: list[int] = []
    # Of the teacher before training, of the student after each epoch, of the teacher on the test images.
    errors = iter([40.0, 3.0, 1.0, 1.0, 2.0, 4.0, 50.0])

    def scripted(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *given: object) -> Errors:
        evaluated.append(sum(len(targets) for _, targets in batches))
        error = next(errors)
        return Errors(error, 60.0 - error)

    for module in ("validation", "teacher"):
        monkeypatch.setattr(f"spkd.training.{module}.errors_of", scripted)
    result = run(wanted, tmp_path / "run", Runtime(accelerator="cpu"), heard)
    assert result is not None

    setup = set_up(wanted)
    student, teaching, images = setup.student, setup.teacher, setup.data
    assert teaching is not None
    stream = TrainStream(images.train, image_size=8, flip=False, batch_size=30, seed=SEED, device=CPU)
    distiller = Distiller(student, teaching, setup.objective)
    made: torch.optim.Optimizer
    if optimizer["optimizer"] == "sgd":
        made = torch.optim.SGD(student.parameters(), lr=1.0, momentum=0.8, nesterov=True, weight_decay=0.02)
    else:
        made = torch.optim.AdamW(student.parameters(), lr=1.0, weight_decay=0.5)
    rows: list[dict[str, float]] = []
    kept: list[dict[str, Tensor]] = []
    for epoch in range(EPOCHS):
        student.train()
        sums = dict.fromkeys(("total", "ce", "sp", "kd"), 0.0)
        for batch, (pixels, targets) in enumerate(stream.epoch(epoch)):
            step = epoch * BATCHES + batch
            torch.manual_seed(mixed_seed(3, SEED, step))
            made.param_groups[0]["lr"] = rate(step)
            made.zero_grad()
            losses = distiller(pixels, targets)
            losses.total.backward()
            if optimizer["clip_norm"]:
                nn.utils.clip_grad_norm_(student.parameters(), optimizer["clip_norm"])
            made.step()
            for name, value in {"total": losses.total, **losses.terms}.items():
                sums[name] += value.item() * len(targets) / 100
        told = {f"train_{name}": value for name, value in sums.items()}
        told_error = (3.0, 1.0, 1.0, 2.0, 4.0)[epoch]
        told |= {"val_error": told_error, "val_balanced_error": 60.0 - told_error}
        rows.append({"epoch": epoch + 1, "lr": rate(step), **told})
        kept.append({name: value.clone() for name, value in student.state_dict().items()})

    with (tmp_path / "run" / "metrics.csv").open() as file:
        written = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    for row, expected in zip(written, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert evaluated == [*[len(images.val)] * (1 + EPOCHS), len(images.test)]
    assert (result["best_epoch"], result["val_error"], result["test"]["teacher_error"]) == (3, 1.0, 50.0)
    assert (result["val_balanced_error"], result["test"]["teacher_balanced_error"]) == (59.0, 10.0)
    assert (result["teacher_val_error"], result["teacher_val_balanced_error"]) == (40.0, 20.0)
    assert "teacher: error 40.00 % on the validation images" in heard.lines
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    student.load_state_dict(kept[2])
    saved = load_model(tmp_path / "run").state_dict()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-5)
    assert result["test_error"] == pytest.approx(error(student, images.test), abs=0.31)


def test_first_weights_and_batches_are_a_function_of_the_seed(tiny: str, teacher: Path) -> None:
    def first(seed: int, method: str = "none") -> list[Tensor]:
        setup = set_up(
            Request(model=tiny, seed=seed, teacher=None if method == "none" else str(teacher), method=method)
        )
        return [*setup.student.state_dict().values(), *first_batch(make_stream(setup, CPU))]

    alone = first(0)
    for method in ("none", "sp", "sp+kd"):
        assert all(torch.equal(one, other) for one, other in zip(first(0, method), alone, strict=True))
    weights, images = first(1)[0], first(1)[-2]
    assert not torch.equal(weights, alone[0])
    assert not torch.equal(images, alone[-2])
