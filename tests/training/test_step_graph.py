"""A replayed step is the step: on a GPU for real, on the processor with a graph that does the same works again."""

import contextlib
import functools
import gc
import random
import warnings
import weakref
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.losses.objective import LossBreakdown
from spkd.training import step_graph
from spkd.training.step_graph import WARM_UP, StepGraph

HAS_GPU = torch.cuda.is_available()
NEEDS_GPU = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")


class NoStream:
    """Stands for a stream where there are none."""

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        self.waits: list[NoStream] = []

    def wait_stream(self, other: "NoStream") -> None:
        self.waits.append(other)


def again(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return what does the works anew, with gradients written where the first ones lie, as a graph writes them."""
    recording = work.__self__  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        work()

    def start() -> None:
        names = [parameter.grad for parameter in recording._parameters]
        for parameter in recording._parameters:
            parameter.grad = None
        work()
        for parameter, kept, before in zip(recording._parameters, recording._gradients, names, strict=True):
            if kept is not None:
                kept.copy_(parameter.grad)
            parameter.grad = before

    return start


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "cpu":
        monkeypatch.setattr(step_graph, "recorded", again)
        monkeypatch.setattr("torch.cuda.Stream", NoStream)
        for name in ("current_stream", "set_stream"):
            monkeypatch.setattr(f"torch.cuda.{name}", NoStream)
        monkeypatch.setattr("torch.cuda.stream", contextlib.nullcontext)
        modes: list[object] = [0]
        monkeypatch.setattr("torch.cuda.get_sync_debug_mode", lambda: modes[-1])
        monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)
    return torch.device(request.param)


def square(layer: nn.Module, images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
    loss = (layer(images) - sum(said.values()) - targets.view(len(targets), -1)).square().mean()
    loss.backward()
    return LossBreakdown(loss.detach(), {"ce": loss.detach()})


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("source", ["teacher", "teacher that shows images", "tape", "alone"])
def test_replayed_steps_see_new_images_weights_and_seeds(source: str, ahead: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    linear, unused = nn.Linear(4, 64), nn.Linear(2, 2)
    layer = nn.Sequential(linear, nn.Dropout() if device.type == "cuda" else nn.Identity()).to(device)
    told: list[str] = []
    asked: list[Tensor] = []

    def ask(images: Tensor) -> dict[str, Tensor]:
        asked.append(images)
        if source == "teacher that shows images":
            return {"own": images[:, :1]}
        return {} if source == "alone" else {"own": images.sin().sum(1, keepdim=True)}

    def played(images: Tensor) -> dict[str, Tensor]:
        return {"own": images.cos().sum(1, keepdim=True)}

    parameters = [*layer.parameters(), *unused.to(device).parameters()]
    batches = [torch.full((8, 4), float(step), device=device) for step in range(WARM_UP + 9)]
    found = []
    with StepGraph(ask, functools.partial(square, layer), parameters, told.append, ahead=ahead) as graph:
        for step, images in enumerate(batches):
            with torch.no_grad():
                linear.weight.add_(0.1)
            # At the end of an epoch the next images are not known, or are fewer.
            upcoming = [*batches, None][step + 1]
            if step % 4 == 3:
                upcoming = None if step % 8 == 3 else images[:3]
            elif step % 4 == 1:
                upcoming = -images  # and then others come
            targets = torch.arange(8, device=device) * step
            torch.manual_seed(step // 2)
            asked.clear()
            first = graph(images, targets, played(images) if source == "tape" else None, upcoming).total
            if device.type == "cpu" and ahead and source != "tape" and step > WARM_UP:
                # What has been announced is asked for once: a step before.
                assert len(asked) == (2 if (step - 1) % 4 in (1, 3) else 1)
            kept = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            torch.manual_seed(step // 2)
            expected = square(layer, images, targets, played(images) if source == "tape" else ask(images))
            torch.testing.assert_close(first, expected.total)
            for gradient, parameter in zip(kept, parameters, strict=True):
                if parameter.grad is None:
                    assert gradient is None
                else:
                    torch.testing.assert_close(gradient, parameter.grad)
                parameter.grad = None
            found.append(float(first))
            assert graph.is_recorded == (step >= WARM_UP)
    assert not told
    assert not graph.is_recorded
    assert len(set(found)) == len(found)


def drawn(kind: str, images: Tensor) -> float:
    if kind == "waits":
        if images.device.type == "cpu" and torch.cuda.get_sync_debug_mode() == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return float(images.sum())
    draw: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.rand(()),
        "python": random.random,
        "numpy": np.random.rand,
    }
    return float(draw[kind]())  # type: ignore[arg-type]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("where", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["torch", "python", "numpy", "waits"])
def test_what_cannot_be_recorded_runs_without(kind: str, where: str, ahead: bool, device: torch.device) -> None:
    linear = nn.Linear(4, 4)
    layer = nn.Sequential(linear, nn.Dropout() if device.type == "cuda" else nn.Identity()).to(device)
    told: list[str] = []

    def compute(images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
        factor = drawn(kind, images) if where == "student" else 1.0
        return square(layer, factor * images, targets, said)

    def ask(images: Tensor) -> dict[str, Tensor]:
        return {"own": drawn(kind, images) * images} if where == "teacher" else {}

    def seed(step: int) -> None:
        torch.manual_seed(step)
        random.seed(step)
        np.random.seed(step)

    graph = StepGraph(ask, compute, [*layer.parameters()], told.append, ahead=ahead)
    for step in range(WARM_UP + 3):
        images = torch.full((8, 4), 1.0 + step, device=device)
        seed(step)
        found = graph(images, images, None, None).total
        layer.zero_grad()
        seed(step)
        torch.testing.assert_close(found, compute(images, images, ask(images)).total)
        layer.zero_grad()
    assert torch.cuda.get_sync_debug_mode() == 0
    assert len(told) == 1
    assert "CUDA graph" in told[0]
    assert ("waits for the device" if kind == "waits" else "draws random numbers") in told[0]


@pytest.mark.parametrize("where", ["teacher", "student"])
@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("kind", [RuntimeError, InputError, TypeError])
def test_a_recording_that_fails_is_told_with_its_cause(
    kind: type[Exception], ahead: bool, where: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(4, 4).to(device)
    told: list[str] = []
    steps: list[int] = []
    recording = False
    whole = step_graph.recorded

    def watched(work: Callable[[], None], on: torch.device) -> Callable[[], None]:
        nonlocal recording
        recording = True
        try:
            return whole(work, on)
        except (RuntimeError, InputError, TypeError):
            if ahead:  # and the device has given the recording up, at the end of which PyTorch has an error of its own
                raise RuntimeError("previous error")  # noqa: B904
            raise
        finally:
            recording = False

    monkeypatch.setattr(step_graph, "recorded", watched)
    if device.type == "cpu":
        # As a device does that has given the recording up.
        monkeypatch.setattr(NoStream, "wait_stream", lambda stream, other: fail("give up") if failed else None)

    def fail(reason: str) -> None:
        raise RuntimeError(reason)

    failed: list[int] = []

    def perhaps_fail(here: str) -> None:
        if recording and here == where:
            failed.append(0)
            try:
                fail("inner")
            except RuntimeError as error:
                raise kind("cannot be recorded") from error
        failed.clear()

    def ask(images: Tensor) -> dict[str, Tensor]:
        perhaps_fail("teacher")
        return own

    def compute(images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
        steps.append(0)
        breakdown = square(layer, images, targets, said)
        perhaps_fail("student")
        return breakdown

    own = {"own": torch.ones(8, 4, device=device)}
    graph = StepGraph(ask, compute, [*layer.parameters()], told.append, ahead=ahead)
    before = None if device.type == "cpu" else torch.cuda.current_stream()
    for step in range(WARM_UP + 2):
        images = torch.full((8, 4), 1.0 + step, device=device)
        found = graph(images, images, None, None).total
        kept = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
        layer.zero_grad()
        torch.testing.assert_close(found, square(layer, images, images, own).total)
        torch.testing.assert_close(kept, [parameter.grad for parameter in layer.parameters()])
        layer.zero_grad()
    assert len(steps) == WARM_UP + 2 + (where == "student")
    reason = f"{kind.__name__}: cannot be recorded"
    assert told == [f"a training step cannot be recorded as a CUDA graph, so it runs without one: {reason}"]
    if before is not None:
        assert torch.cuda.current_stream() == before


def counting(compiled: list[int]) -> Callable[..., object]:
    """Return a compiler that notes every graph it is given and leaves it as it is."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(1)
        return graph.forward

    return backend


@pytest.mark.parametrize("source", ["teacher", "tape"])
@pytest.mark.parametrize("ahead", [True, False])
def test_nothing_is_compiled_for_the_recording_alone(ahead: bool, source: str, device: torch.device) -> None:
    """Even where the teacher's words, images and targets do not lie in memory as copies of them do."""
    layer = nn.Linear(4, 1).to(device)
    told: list[str] = []
    compiled: list[int] = []

    def ask(images: Tensor) -> dict[str, Tensor]:
        padded = images.new_zeros(len(images), 4)
        padded[:, :1] = images.sin().sum(1, keepdim=True)
        return {"own": padded[:, :1]}

    @functools.partial(torch.compile, backend=counting(compiled), dynamic=False)
    def loss_of(images: Tensor, targets: Tensor, own: Tensor) -> Tensor:
        return (layer(images) - own - targets.view(len(targets), -1)).square().mean()

    def compute(images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
        loss = loss_of(images, targets, said["own"])
        loss.backward()
        return LossBreakdown(loss.detach(), {"ce": loss.detach()})

    asked = torch.compile(ask, backend=counting(compiled), dynamic=False)
    wide = torch.arange(8.0 * 8, device=device).view(8, 8)
    with StepGraph(asked, compute, [*layer.parameters()], told.append, ahead=ahead) as graph:
        for step in range(WARM_UP + 4):
            images, targets = (wide + step)[:, ::2], (wide * step)[:, 3]
            found = graph(images, targets, ask(images) if source == "tape" else None, None)
            layer.zero_grad()
            torch.testing.assert_close(found.total, square(layer, images, targets, ask(images)).total)
            layer.zero_grad()
            if step == 0:
                compiled_at_first = len(compiled)
        assert graph.is_recorded
    assert len(compiled) == compiled_at_first >= 1
    assert told == []


def test_a_recording_that_would_need_another_compilation_is_told(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(4, 4).to(device)
    told: list[str] = []
    compiled: list[int] = []
    factor = [1.0]
    whole = step_graph.recorded

    def later(work: Callable[[], None], on: torch.device) -> Callable[[], None]:
        factor[0] = 2.0
        return whole(work, on)

    monkeypatch.setattr(step_graph, "recorded", later)

    @functools.partial(torch.compile, backend=counting(compiled), dynamic=False)
    def loss_of(images: Tensor) -> Tensor:
        return factor[0] * layer(images).square().mean()

    def compute(images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
        loss = loss_of(images)
        loss.backward()
        return LossBreakdown(loss.detach(), {})

    graph = StepGraph(lambda images: {}, compute, [*layer.parameters()], told.append, ahead=True)
    for step in range(WARM_UP + 2):
        images = torch.full((8, 4), 1.0 + step, device=device)
        found = graph(images, images, None, None).total
        layer.zero_grad()
        torch.testing.assert_close(found, factor[0] * layer(images).square().mean())
    assert len(told) == 1
    assert "recompile" in told[0]
    assert len(compiled) == 2


def test_nothing_of_a_recording_that_fails_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that found too little memory least of all: the step is then computed without."""
    made: list[weakref.ref[Tensor]] = []

    def compute(images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
        activation = images + 1
        made.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(step_graph, "recorded", again)
    step = step_graph._Step(lambda images: {}, compute, [], torch.ones(2, 2), torch.ones(2), None, ahead=False)
    gc.disable()
    try:
        with contextlib.suppress(torch.OutOfMemoryError):
            step.record()
        assert not step.is_recorded
        assert made[0]() is None
    finally:
        gc.enable()


@NEEDS_GPU
def test_a_recording_that_the_device_gives_up_leaves_its_random_numbers() -> None:
    layer = nn.Sequential(nn.Linear(4, 64), nn.Dropout()).cuda()
    told: list[str] = []

    def compute(images: Tensor, targets: Tensor, said: Mapping[str, Tensor]) -> LossBreakdown:
        breakdown = square(layer, images, targets, said)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return breakdown

    graph = StepGraph(lambda images: {}, compute, [*layer.parameters()], told.append, ahead=True)
    for step in range(WARM_UP + 3):
        images = torch.full((8, 4), 1.0 + step, device="cuda")
        torch.manual_seed(step)
        found = graph(images, images[:, :1], None, None).total
        layer.zero_grad()
        torch.manual_seed(step)
        torch.testing.assert_close(found, compute(images, images[:, :1], {}).total)
        layer.zero_grad()
    assert len(told) == 1
    assert not graph.is_recorded
