"""A step of one process is what Fabric's wrapper, through which several processes go, would make of it."""

from __future__ import annotations

import copy
import itertools
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.data.stream import Batch, TrainStream, evaluation_batches
from spkd.distiller import Distiller, Remembered
from spkd.errors import InputError, ReaderDied, RunFailed, UnreadableImage
from spkd.losses.objective import Objective
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.wrn import WideResNet
from spkd.training import validation
from spkd.training.checkpoint import load_checkpoint, save_checkpoint
from spkd.training.devices import make_fabric
from spkd.training.evaluation import Errors
from spkd.training.loop import PENDING_STEPS, Training, _looking_ahead
from spkd.training.optimizers import make_optimizer
from spkd.training.options import Runtime
from spkd.training.progress import Display
from spkd.training.recipe import Precision, Select, preset
from spkd.training.run_folder import RunFolder


def made(folder: Path, precision: Precision = "32-true", optimizer: Literal["sgd", "adamw"] | None = None) -> Training:
    """Return a training of a small network alone on the digits, of one epoch."""
    torch.manual_seed(0)
    data = load_data(DataOptions())
    info = ModelInfo("wrn-10-1", data.classes, 1, 8, Normalisation(data.normalisation_mean, data.normalisation_std))
    network = Classifier(WideResNet(10, 1, in_channels=1), info)
    return Training(
        Distiller(network, None, Objective()),
        TrainStream(data.train, image_size=8, flip=False, batch_size=16, seed=0, device=torch.device("cpu")),
        lambda: evaluation_batches(data.val, image_size=8, batch_size=100, device=torch.device("cpu")),
        len(data.classes),
        replace(preset("digits"), precision=precision, epochs=1, **({"optimizer": optimizer} if optimizer else {})),
        0,
        "identity",
        make_fabric(Runtime(accelerator="cpu"), precision),
        RunFolder(folder),
        Display(),
    )


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_one_process_sees_what_fabrics_wrapper_shows(precision: Precision, dtype: torch.dtype, tmp_path: Path) -> None:
    training = made(tmp_path, precision)
    network = training.student
    batch = next(iter(training._stream.batches(0)))
    network.train()
    before = copy.deepcopy(network.state_dict())
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    wrapped = training._module(batch.images, batch.targets, Remembered({}))
    network.load_state_dict(before)  # the running means of the batch norms have moved
    training._step(batch)
    assert [shown.dtype for shown in seen] == [dtype, dtype]
    assert torch.equal(*seen)
    assert training.state.sums["total"] / training.state.images == pytest.approx(wrapped.total.item(), rel=1e-12)


def test_losses_that_wait_to_be_read_are_in_the_checkpoint(tmp_path: Path) -> None:
    """As on a GPU, where reading each step's would wait for the device."""
    whole, stopped = made(tmp_path / "whole"), made(tmp_path / "stopped")
    assert whole.run("", math.inf, None)
    stopped._patience = math.inf
    stopped._distiller.train()
    for batch in itertools.islice(stopped._stream.batches(0), 3):
        stopped._step(batch)
    assert len(stopped._pending) == 3
    stopped.save()
    resumed = made(tmp_path / "stopped")
    assert resumed.restore()
    assert resumed.run("", math.inf, None)
    assert resumed.state.rows == whole.state.rows


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("begun", [torch.channels_last, torch.contiguous_format])
def test_a_run_goes_on_where_weights_lie_otherwise_in_memory(
    begun: torch.memory_format, optimizer: Literal["sgd", "adamw"], tmp_path: Path
) -> None:
    """As on a GPU what was begun on a processor."""

    def laid(where: torch.memory_format) -> Training:
        training = made(tmp_path, optimizer=optimizer)
        training.student.to(memory_format=where)
        training._distiller.train()
        return training

    first = laid(begun)
    for batch in itertools.islice(first._stream.batches(0), 3):
        first._step(batch)
    first.save()
    ends = []
    for where in (torch.channels_last, torch.contiguous_format):
        again = laid(where)
        assert again.restore()
        for batch in itertools.islice(again._stream.batches(0, 3), 2):
            again._step(batch)
        ends.append(again.student.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.usefixtures("ordered_logs")
def test_an_epoch_that_is_trained_again_is_logged_once(tmp_path: Path) -> None:
    """As after a kill between its end and the next checkpoint."""
    training = made(tmp_path)
    training.save()
    begun = training._folder.checkpoint.read_bytes()
    assert training.run("", math.inf, None)
    training._folder.checkpoint.write_bytes(begun)
    again = made(tmp_path)
    assert again.restore()
    assert again.run("", math.inf, None)
    logged = EventAccumulator(str(training._folder.tensorboard)).Reload().Scalars("val_error")
    assert [one.step for one in logged] == [1]


@pytest.mark.parametrize(("patience", "most"), [(0.0, 0), (math.inf, PENDING_STEPS - 1)])
def test_losses_wait_no_longer_than_they_may(patience: float, most: int, tmp_path: Path) -> None:
    training = made(tmp_path)
    training._patience = patience
    training._distiller.train()
    waiting = []
    for batch in itertools.islice(training._stream.batches(0), PENDING_STEPS + 1):
        training._step(batch)
        waiting.append(len(training._pending))
    assert max(waiting) == most
    assert waiting[PENDING_STEPS - 1] == 0


@pytest.mark.parametrize("patience", [0.0, math.inf])
def test_a_loss_that_is_not_finite_is_told_by_its_step_whenever_it_is_read(patience: float, tmp_path: Path) -> None:
    training = made(tmp_path)
    training._patience = patience
    training._distiller.train()
    batches = training._stream.batches(0)
    for _ in range(2):
        training._step(next(batches))
    broken = next(batches)

    def go_on() -> None:
        training._step(broken._replace(images=broken.images * math.nan))
        training._step(next(batches))
        training.save()

    with pytest.raises(RunFailed, match="in epoch 1, step 3"):
        go_on()
    assert not training._folder.checkpoint.exists()


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1])
def test_batches_come_with_the_next(count: int, ahead: int) -> None:
    batches = [Batch(torch.tensor(step), torch.tensor(-step), torch.tensor(step)) for step in range(count)]
    given = list(_looking_ahead(iter(batches), ahead))
    assert [batch for batch, _ in given] == batches
    following = batches[1:] if ahead else [None] * (count - 1)
    assert [upcoming for _, upcoming in given] == [*following, None][:count]


@pytest.mark.parametrize(
    ("select", "best", "shown"), [("error", 4, "error 9.00"), ("balanced", 3, "balanced error 7.00")]
)
def test_the_epoch_that_is_kept_is_the_best_by_the_measure(
    select: Select, best: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Errors(9.0, 20.0), Errors(10.0, 5.0), Errors(10.0, 5.0), Errors(9.0, 19.0), Errors(9.5, 7.0)]
    training, texts = made(tmp_path), []
    training._recipe = replace(training._recipe, epochs=5, select=select)
    given = iter(found)
    monkeypatch.setattr("spkd.training.loop.errors_unless", lambda *arguments: next(given))
    monkeypatch.setattr(training._stream, "batches", lambda epoch, start=0: iter(()))
    monkeypatch.setattr(training._display, "update", lambda done, text, left=None: texts.append(text))
    assert training.run("", math.inf, None)
    state = training.state
    assert (state.best_epoch, (state.best_error, state.best_balanced_error)) == (best, found[best - 1])
    assert [(row["val_error"], row["val_balanced_error"]) for row in state.rows] == found
    assert f"val {shown} %" in texts[-1 if select == "balanced" else -2]


def test_a_checkpoint_of_another_identity_is_refused(tmp_path: Path) -> None:
    training = made(tmp_path)
    assert not training.restore()
    training.save()
    other = made(tmp_path)
    other._identity = "another"
    with pytest.raises(InputError, match="made with other weights, code or images"):
        other.restore()
    assert training.restore()


def test_the_state_of_mixed_precision_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scaler of float16 gradients has it, on a GPU."""
    stopped, resumed, loaded = made(tmp_path), made(tmp_path), []
    monkeypatch.setattr(stopped._fabric.strategy.precision, "state_dict", lambda: {"scale": 8.0})
    monkeypatch.setattr(resumed._fabric.strategy.precision, "load_state_dict", loaded.append)
    stopped.save()
    assert resumed.restore()
    assert loaded == [{"scale": 8.0}]


def test_the_first_process_alone_writes_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = made(tmp_path)
    monkeypatch.setattr(Fabric, "is_global_zero", False)
    training.save()
    assert not training._folder.checkpoint.exists()


def test_what_another_process_has_removed_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = made(tmp_path)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder / ".last.ckpt.gone"]))
    assert not training.restore()


def test_a_network_that_comes_in_eval_mode_is_trained(tmp_path: Path) -> None:
    training = made(tmp_path)
    training.student.eval()
    norm = next(one for one in training.student.modules() if isinstance(one, torch.nn.BatchNorm2d))
    assert training.run("", math.inf, None)
    assert norm.num_batches_tracked == training._stream.batches_per_epoch


def unfused(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    recipe = preset("digits")
    return torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=False
    )


def test_a_first_step_that_overflows_leaves_no_trace_in_the_momentum() -> None:
    """As the scaler of 16-mixed has it: the fused kernel then writes nothing."""
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 64)) for _ in range(2))
    optimizer, reference = make_optimizer([ours], preset("digits")), unfused([theirs])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)  # type: ignore[attr-defined]
    ours.grad = torch.full_like(ours, math.inf)
    optimizer.step()
    assert torch.equal(ours, theirs)
    optimizer.found_inf.zero_()  # type: ignore[attr-defined]
    for gradient in torch.randn(3, 64, generator=torch.Generator().manual_seed(0)):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_weight_may_get_its_first_gradient_later_than_others() -> None:
    (early, late), theirs = ([torch.nn.Parameter(torch.ones(8)) for _ in range(2)] for _ in range(2))
    optimizer, reference = make_optimizer([early, late], preset("digits")), unfused(theirs)
    for step in range(3):
        early.grad, theirs[0].grad = torch.full((8,), 0.5), torch.full((8,), 0.5)
        late.grad, theirs[1].grad = (torch.ones(8), torch.ones(8)) if step else (None, None)
        optimizer.step()
        reference.step()
        torch.testing.assert_close([early, late], theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("precision", "clip_norm", "kind", "fused"),
    [
        ("32-true", 0.0, "cpu", True),
        ("32-true", 1.0, "cpu", True),
        ("bf16-mixed", 1.0, "cpu", True),
        ("16-mixed", 0.0, "cpu", True),
        ("16-mixed", 1.0, "cpu", False),
        ("16-mixed", 0.0, "mps", False),
    ],
)
def test_where_a_step_is_fused(optimizer: str, precision: str, clip_norm: float, kind: str, fused: bool) -> None:
    recipe = replace(preset("digits"), optimizer=optimizer, precision=precision, clip_norm=clip_norm)

    class Placed(torch.nn.Parameter):
        device = torch.device(kind)

    assert make_optimizer([Placed(torch.ones(2))], recipe).param_groups[0]["fused"] == fused


def test_how_a_step_is_computed_is_the_device_s_and_not_the_checkpoint_s(tmp_path: Path) -> None:
    training = made(tmp_path)
    training.save()
    path = training._folder.checkpoint
    state, tensors = load_checkpoint(path)
    tensors["optimizer"]["param_groups"][0]["fused"] = False  # as of an Apple GPU
    save_checkpoint(path, state, tensors)
    again = made(tmp_path)
    assert again.restore()
    assert again._optimizer.param_groups[0]["fused"] is True


def test_random_numbers_differ_between_processes_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all processes would drop the same places of their images' features."""

    def drawn(rank: int) -> list[float]:
        monkeypatch.setattr(Fabric, "global_rank", rank)
        training, numbers = made(tmp_path), []
        training.student.register_forward_pre_hook(lambda layer, inputs: numbers.append(torch.rand(()).item()))
        for batch in itertools.islice(training._stream.batches(0), 2):
            training._step(batch)
        return numbers

    first, other = drawn(0), drawn(1)
    assert len({*first, *other}) == 4
    assert drawn(1) == other


def test_each_step_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is a second on whenever it is looked at."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), monotonic=time.monotonic)
    monkeypatch.setattr("spkd.training.loop.time", clock)
    training = made(tmp_path)
    assert training.run("", math.inf, None)
    assert training.state.seconds == training._stream.batches_per_epoch + 1  # and once at the epoch's end
    assert training.state.images_total == 500


@pytest.mark.parametrize("by_signal", [True, False], ids=["signal", "time"])
def test_a_run_is_over_in_the_midst_of_a_validation_and_goes_on_with_it(by_signal: bool, tmp_path: Path) -> None:
    whole, stopped = made(tmp_path / "whole"), made(tmp_path / "stopped")
    assert whole.run("", 1e9, None)
    given = stopped._validation

    def validation() -> Iterator[tuple[Tensor, Tensor]]:
        for count, batch in enumerate(given()):
            assert count < 2, "it is asked for no more than one batch after the signal"
            if by_signal and count == 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    stopped._validation = validation
    if not by_signal:
        looks = iter([False] * (32 + 1))  # after each step, and before the first batch of the validation
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("spkd.training.loop.is_past", lambda deadline: next(looks, True))
            assert not stopped.run("", 1e9, 1e9)
    else:
        assert not stopped.run("", 1e9, None)
    assert (stopped.state.epoch, stopped.state.batch) == (0, 32)
    assert stopped.student.training
    again = made(tmp_path / "stopped")
    assert again.restore()
    assert again.run("", 1e9, 0.0), "the validation that it begins with is carried through"
    assert [again.state.rows, again.state.best_epoch] == [whole.state.rows, 1]
    for name, value in whole.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[name], value)


@pytest.mark.parametrize(
    ("place", "error"), list(itertools.product(["training", "validation"], [UnreadableImage, ReaderDied]))
)
def test_images_that_can_no_longer_be_read_end_a_run_that_goes_on(
    place: str, error: type[Exception], tmp_path: Path
) -> None:
    whole, failing = made(tmp_path / "whole"), made(tmp_path / "failing")
    assert whole.run("", 1e9, None)
    batches = failing._stream.batches(0) if place == "training" else failing._validation()

    def fail(*arguments: object, **options: object) -> Iterator[tuple[Tensor, Tensor]]:
        yield from itertools.islice(batches, 2)
        raise error("image x.jpg cannot be read (Stale file handle)")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(failing._stream, "batches", fail) if place == "training" else patched.setattr(
            failing, "_validation", fail
        )
        with pytest.raises(error):
            failing.run("", 1e9, None)
    again = made(tmp_path / "failing")
    assert again.restore()
    assert again.state.batch == (2 if place == "training" else 32)
    assert again.run("", 1e9, None)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[name], value)


@pytest.mark.parametrize("linked", [False, True])
def test_what_kills_have_left_of_a_checkpoint_is_removed(linked: bool, tmp_path: Path) -> None:
    training = made(tmp_path / "run")
    training.save()
    path = training._folder.checkpoint
    if linked:
        (tmp_path / "large").mkdir()
        path = path.rename(tmp_path / "large" / "a[b]c.ckpt")
        training._folder.checkpoint.symlink_to(path)
    left, other = path.with_name(f".{path.name}.abc.part.ckpt"), path.with_name(".other.ckpt.abc.part.ckpt")
    left.touch()
    other.touch()
    assert training.restore()
    assert sorted(path.parent.iterdir()) == sorted([other, path])


def test_a_signal_in_the_last_save_ends_the_run_before_what_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = made(tmp_path)
    save = stopped.save

    def interrupted() -> None:
        save()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(stopped, "save", interrupted)
    assert not stopped.run("", 1e9, None)
    again = made(tmp_path)
    assert again.restore()
    assert again.state.epoch == 1
    assert again.run("", 1e9, None)


@pytest.mark.parametrize(("took", "saves"), [(0.0, 33), (0.06, 17), (1e6, 2)])
def test_checkpoints_that_take_long_are_few(
    took: float, saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second here."""
    training, now, written = made(tmp_path), [0.0], []
    step = training._step
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("spkd.training.loop.time", clock)

    def slowly(*given: object) -> None:
        step(*given)
        now[0] += 1.0

    def save(*given: object) -> None:
        written.append(now[0])
        now[0] += took

    monkeypatch.setattr(training, "_step", slowly)
    monkeypatch.setattr("spkd.training.loop.save_checkpoint", save)
    assert training.run("", 1.0, None)
    assert len(written) == saves, "the one at the end among them"


@pytest.mark.parametrize("error", [ReaderDied, UnreadableImage])
@pytest.mark.parametrize("own", [True, False])
def test_an_image_that_one_process_cannot_read_ends_the_run_of_all_with_a_checkpoint(
    own: bool, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other process says is made up."""
    training = made(tmp_path)
    summed: list[Tensor] = []
    others = torch.tensor(
        [1, 100, *[0] * 18, *(int(not own and error is kind) for kind in (ReaderDied, UnreadableImage))]
    )

    def unreadable() -> Iterator[tuple[Tensor, Tensor]]:
        yield next(training._validation())
        raise error("image a.png cannot be read (stale)")

    def sum_of_all(fabric: Fabric, counts: Tensor) -> Tensor:
        summed.append(counts + others)
        return summed[-1]

    monkeypatch.setattr(validation, "share_buffers", lambda network: None)
    monkeypatch.setattr(validation, "sum_of_all", sum_of_all)
    monkeypatch.setattr(validation, "first_said", lambda said: (said or ["image b.png cannot be read"])[0])
    training._distiller.train()
    training._step(next(training._stream.batches(0)))
    batches = unreadable() if own else training._validation()
    with pytest.raises(error, match="a.png" if own else "b.png"):
        validation.errors_of_all(training._fabric, training.student, batches, 10, training.save)
    assert training._folder.checkpoint.exists()
    others[-2:] = 0
    wrongly, balanced = validation.errors_of_all(
        training._fabric, training.student, training._validation(), 10, training.save
    )
    wrong, images = summed[-1][:-2].view(10, 2).double().T
    assert (int(images.sum()), summed[-1][-2:].tolist()) == (397, [0, 0])
    assert wrongly == 100 * int(wrong.sum()) / 397
    assert balanced == pytest.approx(100 * float((wrong / images).mean()))
