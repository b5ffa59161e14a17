"""What a step computes on a GPU, recorded once and then started by a single call."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from spkd.errors import one_line
from spkd.losses.objective import LossBreakdown

WARM_UP = 3
"""Steps before the recording, in which compilers, libraries and allocators settle."""

Ask = Callable[[Tensor], Mapping[str, Tensor]]
Compute = Callable[[Tensor, Tensor, Mapping[str, Tensor]], LossBreakdown]


class StepGraph:
    """Computes losses and gradients, from the fourth step on by replaying a CUDA graph.

    A step of a small network is many hundred small works for the GPU, which waits for Python before each. Replayed, it
    waits once. In the graph the teacher looks at the images of the next step while the student learns from what it
    said of these: alone, neither fills the GPU. The works and their order are otherwise the same, and so are values.

    What Python decides while a step is computed is decided at the recording, for good. Steps are computed as they are
    where that cannot be: they draw random numbers from the processor's generators, or wait for the device.

    Args:
        ask: gives what the teacher says of images.
        compute: takes images, targets and what the teacher said, and puts gradients into parameters that have none.
        parameters: those that get gradients.
        say: shows a line of text, where steps cannot be recorded.

    All steps must have tensors of the same shapes.
    """

    def __init__(
        self, ask: Ask, compute: Compute, parameters: Sequence[nn.Parameter], say: Callable[[str], None]
    ) -> None:
        self._ask, self._compute, self._parameters, self._say = ask, compute, parameters, say
        self._steps = 0
        self._recording: _Recording | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._recording is not None

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
        if self._steps == WARM_UP:
            self._record(images, targets, said)
        self._steps += 1
        if self._recording is None:
            return self._beside(images, targets, said)
        return self._recording.replay(images, targets, said, upcoming)

    def _beside(self, images: Tensor, targets: Tensor, said: Mapping[str, Tensor] | None) -> LossBreakdown:
        """Compute a step on a stream beside the current one, as the recording will."""
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            breakdown = self._compute(images, targets, self._ask(images) if said is None else said)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        return breakdown

    def _record(self, images: Tensor, targets: Tensor, said: Mapping[str, Tensor] | None) -> None:
        before = torch.get_rng_state(), random.getstate()
        refusal = ""
        try:
            recording = _Recording(self._ask, self._compute, self._parameters, images, targets, said)
        except RuntimeError as error:
            refusal = one_line(error)
        if not torch.equal(torch.get_rng_state(), before[0]) or random.getstate() != before[1]:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            refusal = refusal or "it draws random numbers on the processor"
        for parameter in self._parameters:
            parameter.grad = None
        if refusal:
            self._say(f"a training step cannot be recorded as a CUDA graph, and runs without: {refusal}")
        else:
            self._recording = recording


class _Recording:
    """The graph, and the memory that it reads and writes."""

    def __init__(
        self,
        ask: Ask,
        compute: Compute,
        parameters: Sequence[nn.Parameter],
        images: Tensor,
        targets: Tensor,
        said: Mapping[str, Tensor] | None,
    ) -> None:
        self._ask = ask if said is None else None
        self._images, self._targets, self._upcoming = images.clone(), targets.clone(), images.clone()
        self._said = {name: value.clone() for name, value in (ask(images) if said is None else said).items()}
        self._asked: Tensor | None = None  # the images that the teacher has spoken of
        self._graph = torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        # The student is longer under way, so it goes first where the two want the same.
        stream = torch.cuda.Stream(images.device, priority=-1)  # type: ignore[no-untyped-call]
        # Other threads may go on reading files into pinned memory.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            current = torch.cuda.current_stream(images.device)
            following: Mapping[str, Tensor] = {}
            if self._ask is not None:
                beside.wait_stream(current)
                with torch.cuda.stream(beside):
                    following = self._ask(self._upcoming)
            self._losses = compute(self._images, self._targets, self._said)
            if self._ask is not None:
                current.wait_stream(beside)
            for name, value in following.items():
                self._said[name].copy_(value)
        self._parameters = parameters
        self._gradients = [parameter.grad for parameter in parameters]

    def replay(
        self, images: Tensor, targets: Tensor, said: Mapping[str, Tensor] | None, upcoming: Tensor | None
    ) -> LossBreakdown:
        if self._ask is not None and self._asked is not images:
            said = self._ask(images)
        for name, value in (said or {}).items():
            self._said[name].copy_(value)
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._asked = None
        if upcoming is not None and upcoming.shape == images.shape:
            self._upcoming.copy_(upcoming)
            self._asked = upcoming
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._graph.replay()
        total, terms = self._losses
        # Out of the memory that the next step writes to.
        return LossBreakdown(total.clone(), {name: value.clone() for name, value in terms.items()})
