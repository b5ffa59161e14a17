"""What a step computes on a GPU, recorded once and then started by a single call."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from spkd.errors import one_line
from spkd.losses.objective import LossBreakdown

WARM_UP = 3
"""Steps before the recording, in which compilers, libraries and allocators settle; the last one is watched."""

Ask = Callable[[Tensor], Mapping[str, Tensor]]
Compute = Callable[[Tensor, Tensor, Mapping[str, Tensor]], LossBreakdown]


class StepGraph:
    """Computes losses and gradients, from the fourth step on by replaying a CUDA graph.

    A step of a small network launches hundreds of short kernels, and the GPU waits for Python before each. Replayed, it
    waits once, and the kernels are the same. With ``ahead``, the teacher looks in the graph at the images of the next
    step while the student learns from what it said of these: alone, neither fills the GPU. (The compiler's own graphs,
    ``reduce-overhead``, are several for a step, with Python between them.)

    What Python decides while a step is computed, and which memory of the processor is read, is decided at the recording
    for good. Where the step before the recording draws random numbers from the processor's generators or waits
    for the device, and where the recording fails, steps are computed as they are.

    As a context manager it gives the graph and its memory back at the end.

    Args:
        ask: gives what the teacher says of images.
        compute: takes images, targets and what the teacher said, and puts gradients into parameters that have none.
        parameters: those that get gradients.
        say: shows a line of text, where steps are not recorded.
        ahead: whether the teacher may be asked a step early, which it may where ``ask`` depends on the images alone.

    All steps must have tensors of the same shapes.
    """

    def __init__(
        self,
        ask: Ask,
        compute: Compute,
        parameters: Sequence[nn.Parameter],
        say: Callable[[str], None],
        *,
        ahead: bool,
    ) -> None:
        self._ask, self._compute, self._parameters, self._say = ask, compute, parameters, say
        self._ahead = ahead
        self._steps = 0
        self._refusal = ""
        self._stream: torch.cuda.Stream | None = None
        self._step: _Step | None = None

    def __enter__(self) -> StepGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step, self._steps, self._refusal = None, 0, ""

    @property
    def is_recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._step is not None and self._step.is_recorded

    def __call__(
        self, images: Tensor, targets: Tensor, said: Mapping[str, Tensor] | None, upcoming: Tensor | None
    ) -> LossBreakdown:
        """Return the losses; their gradients are in the parameters.

        Args:
            images: of this step.
            targets: their classes.
            said: what the teacher said of them, from a tape; None asks it.
            upcoming: the tensor that will be the images of the next step, if that is known.
        """
        if self._step is None:
            self._step = _Step(self._ask, self._compute, self._parameters, images, targets, said, ahead=self._ahead)
        step = self._step
        self._steps += 1
        if self._steps > WARM_UP and not step.is_recorded and not self._refusal:
            self._record(step)
        take = functools.partial(step.take, images, targets, said, upcoming)
        if self._steps < WARM_UP:
            self._beside(take, images.device)
        elif self._steps == WARM_UP:
            self._watched(take, images.device)
        else:
            take()
        return step.losses()

    def _beside(self, take: Callable[[], None], device: torch.device) -> None:
        """Take a step on a stream beside the current one, as the recording will."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            take()
        current.wait_stream(self._stream)

    def _watched(self, take: Callable[[], None], device: torch.device) -> None:
        """Take a step and look for what a recording would lose or fail at."""
        before, mode = _random_state(), torch.cuda.get_sync_debug_mode()
        # Other warnings have been shown at the steps before.
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._beside(take, device)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        if any("synchronizing CUDA operation" in str(warning.message) for warning in told):
            self._refuse("it waits for the device")
        elif _random_state() != before:
            self._refuse("it draws random numbers on the processor")

    def _record(self, step: _Step) -> None:
        try:
            step.record()
        except Exception as error:
            self._refuse(one_line(error))
        for parameter in self._parameters:
            parameter.grad = None

    def _refuse(self, reason: str) -> None:
        self._refusal, self._stream = reason, None
        with contextlib.suppress(RuntimeError):  # after a recording that failed the allocator may refuse
            torch.cuda.empty_cache()  # of what lies ready for a stream on which no step will be any more
        self._say(f"a training step cannot be recorded as a CUDA graph, so it runs without one: {reason}")


class _Step:
    """A step that reads and writes the same memory each time, from the first on.

    So what has been compiled before the recording fits it: what a network puts out and a copy of that may lie
    differently in memory.
    """

    def __init__(
        self,
        ask: Ask,
        compute: Compute,
        parameters: Sequence[nn.Parameter],
        images: Tensor,
        targets: Tensor,
        said: Mapping[str, Tensor] | None,
        *,
        ahead: bool,
    ) -> None:
        self._ask, self._compute, self._parameters = ask, compute, parameters
        self._images, self._targets = images.clone(), targets.clone()
        self._is_told, self._ahead = said is not None, ahead and said is None
        self._asked: Tensor | None = None  # the images that the teacher has spoken of
        if self._ahead:
            self._upcoming = images.clone()
            self._beside = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
            said, self._asked = ask(self._upcoming), images
        self._said = {name: value.clone() for name, value in (said or {}).items()}
        self._start: Callable[[], None] | None = None
        self._failure: Exception | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether the step is replayed."""
        return self._start is not None

    def record(self) -> None:
        """Have the step replayed from here on, or raise what went wrong first."""
        try:
            # To compile anew during the recording would spoil it.
            with torch.compiler.set_stance("fail_on_recompile"):
                self._start = recorded(self._work, self._images.device)
        except Exception as error:
            # PyTorch's own is of the end of the recording, which fails where the work has.
            failure, self._failure = self._failure or error, None
            try:
                raise failure from None
            finally:
                del failure  # whose traceback would otherwise hold this frame, and this frame all that the work made
        self._gradients = [parameter.grad for parameter in self._parameters]

    def take(self, images: Tensor, targets: Tensor, said: Mapping[str, Tensor] | None, upcoming: Tensor | None) -> None:
        """Compute the step, or have the graph do it."""
        self._fill(images, targets, said, upcoming)
        if self._start is None:
            self._learn()
            return
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._start()

    def losses(self) -> LossBreakdown:
        """Return the losses of the step, out of the memory that the next one writes to."""
        told = self._losses
        return LossBreakdown(told.total.clone(), {name: value.clone() for name, value in told.terms.items()})

    def _fill(
        self, images: Tensor, targets: Tensor, said: Mapping[str, Tensor] | None, upcoming: Tensor | None
    ) -> None:
        """Put in what the step is to be computed of."""
        self._images.copy_(images)
        self._targets.copy_(targets)
        if self._ahead and self._asked is not images:
            self._upcoming.copy_(images)
            said = self._ask(self._upcoming)
        for name, value in (said or {}).items():
            self._said[name].copy_(value)
        if self._ahead:
            self._asked = None
            if self.is_recorded and upcoming is not None and upcoming.shape == images.shape:
                self._upcoming.copy_(upcoming)
                self._asked = upcoming

    def _learn(self) -> None:
        said = self._said if self._is_told or self._ahead else self._ask(self._images)
        self._losses = self._compute(self._images, self._targets, said)

    def _work(self) -> None:
        """Do what is recorded."""
        try:
            if self._ahead:
                self._learn_and_ask()
            else:
                self._learn()
        except Exception as error:
            self._failure = error
            raise

    def _learn_and_ask(self) -> None:
        """Have the teacher look at the next images meanwhile."""
        current = torch.cuda.current_stream(self._images.device)
        self._beside.wait_stream(current)
        try:
            with torch.cuda.stream(self._beside):
                following = self._ask(self._upcoming)
            self._learn()
        except BaseException:
            # A recording must not end with works on another stream, not even when it has failed.
            with contextlib.suppress(RuntimeError):  # for the device may have given it up
                current.wait_stream(self._beside)
            raise
        current.wait_stream(self._beside)
        for name, value in following.items():
            self._said[name].copy_(value)


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what ``work`` gives a GPU to do, without doing it, and return what has it done.

    After one that fails, the stream is the one before and random numbers can be drawn, which PyTorch does not see to
    where the device has given it up. Up to PyTorch 2.12 the memory that such a recording has taken stays reserved.
    """
    graph = torch.cuda.CUDAGraph()
    # The student is longer under way than the teacher, so it goes first where the two want the same.
    stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    current, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[device.index]
    before = generator.clone_state()
    # Other threads may go on reading files into pinned memory.
    capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    try:
        with _without_collection(), warnings.catch_warnings():
            # Said where the first work fails already, which is told.
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            with capture:
                work()
    except BaseException:
        torch.cuda.set_stream(current)
        generator.graphsafe_set_state(before)  # or it refuses every random number from here on
        raise
    return graph.replay


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Collect what is garbage before and not within: a graph of an earlier run that is destroyed spoils a recording."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _random_state() -> tuple[bytes, object, str]:
    """Return where the processor's generators of random numbers stand."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state())
