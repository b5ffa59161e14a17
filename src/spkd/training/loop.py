"""The training loop, on Lightning Fabric: one engine for a network alone and for a distilled one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from spkd.data.seeds import Use, mixed_seed
from spkd.data.stream import Batch, TrainStream
from spkd.distiller import Distiller, Remembered
from spkd.errors import ReaderDied, RunFailed, UnreadableImage, UnusableFolder
from spkd.files import unfinished
from spkd.losses.objective import LossBreakdown
from spkd.signals import is_past, stop_signals
from spkd.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from spkd.training.crowding import Crowding
from spkd.training.devices import agreed
from spkd.training.event_log import EventLog
from spkd.training.optimizers import lay_as_weights, make_optimizer
from spkd.training.progress import Display
from spkd.training.recipe import Recipe, learning_rate
from spkd.training.run_folder import RunFolder
from spkd.training.step_graph import StepGraph
from spkd.training.validation import errors_of_all, errors_unless
from spkd.training.waiting import Waiting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PENDING_STEPS = 25
"""Steps whose losses are read together at the most: on an accelerator each reading waits for the device."""
READING_SECONDS = 0.1
"""After which a processor reads them sooner: to a person every step, and no cost to the steps of small networks."""

SPARSELY = 20
"""Times as long as the last checkpoint took to write there are at least to the next one."""

Read = TypeVar("Read", Batch, tuple[Tensor, Tensor])

COMPILED_NETWORKS = 64
"""Combinations of networks and losses that one process may compile; equal ones share what was compiled."""


class Training:
    """One run of a recipe: steps, validation, checkpoints.

    What is computed is a pure function of the distiller's first weights, the stream and the recipe; the
    random numbers of a step (dropout, stochastic depth) are seeded by its place in the run. So a run that
    goes on from a checkpoint ends, on the CPU, with the same bits as one that was never stopped.

    Args:
        distiller: student, teacher and objective; the student's weights are trained in place.
        stream: the training batches.
        validation: gives the validation images in batches, as the student takes them, and their targets; of several
            processes, each gives its own part.
        classes: how many there are.
        recipe: how to train.
        seed: of the random numbers in a step.
        identity: of all that decides the result; a checkpoint of another one is refused.
        fabric: from :func:`spkd.training.devices.make_fabric`.
        folder: where checkpoints and metrics are written.
        display: what the user sees.
        compiled: whether to compile the student together with the losses, and on a GPU the teacher; a step of one
            process there becomes one CUDA graph.
        player: gives what the teacher says of each step from a tape; None asks the distiller's teacher.
    """

    def __init__(
        self,
        distiller: Distiller,
        stream: TrainStream,
        validation: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        classes: int,
        recipe: Recipe,
        seed: int,
        identity: str,
        fabric: Fabric,
        folder: RunFolder,
        display: Display,
        compiled: bool = False,
        player: Callable[[int, Tensor], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.student = distiller.student
        self._distiller, self._stream, self._validation, self._classes = distiller, stream, validation, classes
        self._recipe, self._seed, self._identity, self._fabric = recipe, seed, identity, fabric
        self._folder, self._display = folder, display
        self._crowding = Crowding(fabric.device, display.say)
        self._waiting = Waiting(fabric.device, stream.readers, display.say)
        self.state = TrainingState()
        ask, module = distiller.remember, cast(nn.Module, distiller)
        if compiled:
            display.say("compiling: the first step takes up to a minute")
            limits = torch._dynamo.config
            # A process that trains many networks compiles for each, and what goes beyond the limit runs uncompiled.
            limits.recompile_limit = max(limits.recompile_limit, COMPILED_NETWORKS)
            # Said of every product of float32; the similarities are to be exact.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            module = cast(nn.Module, torch.compile(distiller, dynamic=False))
            if fabric.device.type != "cpu":  # where micro-batches that stay in the caches are as quick
                ask = torch.compile(distiller.remember, dynamic=False)
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all steps have the same shapes
            # Said of every DistributedDataParallel that Fabric makes, and of no consequence.
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        self._player = player
        self._trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
        self._module, self._optimizer = fabric.setup(module, make_optimizer(self._trained, recipe))
        self._alone = fabric.world_size == 1
        # Of one process Fabric's wrapper only casts and enters the precision, after looking through all that goes in.
        forward = cast(Callable[..., LossBreakdown], module if self._alone else self._module)
        self._full = self._rest = (ask, forward)
        self._graph: StepGraph | None = None
        if compiled and self._alone:
            # To compile once more, for the smaller last batch of an epoch, would take longer than it saves.
            self._rest = (distiller.remember, distiller)
            if fabric.device.type == "cuda":
                # What a user's own loss remembers may depend on more than the images.
                ahead = not distiller.objective.users_terms
                compute = functools.partial(self._losses, forward)
                self._graph = StepGraph(ask, compute, self._trained, display.say, ahead=ahead)
        self._pending: list[tuple[int, int, LossBreakdown]] = []
        self._read_at, self._patience = 0.0, math.inf
        self._saved_at, self._took_to_save = time.monotonic(), 0.0
        if fabric.device.type == "cpu":
            # Several processes read at the same steps, so that a loss that is not finite ends them together.
            self._patience = READING_SECONDS if self._alone else 0.0

    def restore(self) -> bool:
        """Go back to the folder's checkpoint; return whether there was one.

        Raises:
            UnusableFolder: for a checkpoint that cannot be read, or that was made with other weights files.
        """
        path = self._folder.checkpoint
        for left in unfinished(path):
            left.unlink(missing_ok=True)  # by a kill in the middle of a save; each process looks
        if not path.exists():
            return False
        self.state, tensors = load_checkpoint(path)
        if tensors["identity"] != self._identity:
            raise UnusableFolder(
                f"{path} was made with other weights, code or images", "give --overwrite to begin anew"
            )
        self._distiller.load_state_dict(tensors["distiller"])
        for saved, own in zip(tensors["optimizer"]["param_groups"], self._optimizer.param_groups, strict=True):
            saved["fused"] = own["fused"]  # which this device decides
        self._optimizer.load_state_dict(tensors["optimizer"])
        lay_as_weights(self._optimizer)
        self._fabric.strategy.precision.load_state_dict(tensors["precision"])
        return True

    def save(self) -> None:
        """Write a checkpoint of where the run stands; of several processes the first one does."""
        self._read_pending()
        begun = time.monotonic()
        if self._fabric.is_global_zero:
            tensors: dict[str, Any] = {
                "identity": self._identity,
                "distiller": self._distiller.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "precision": self._fabric.strategy.precision.state_dict(),
            }
            save_checkpoint(self._folder.checkpoint, self.state, tensors)
        self._saved_at = time.monotonic()
        self._took_to_save = self._saved_at - begun

    def run(self, title: str, checkpoint_seconds: float, deadline: float | None) -> bool:
        """Train to the end, or to the deadline or a signal to stop; return whether the end was reached.

        A checkpoint is written every ``checkpoint_seconds``, or less often where that takes long, and at the end;
        ``deadline`` is as of ``time.time()``. SIGINT and SIGTERM end the run after the step under way, or in the midst
        of a validation, with a checkpoint; a second one at once.

        Raises:
            RunFailed: when a loss is not finite. The last checkpoint stays.
            UnreadableImage: when an image can no longer be read. A checkpoint is written, by the first process if it is
                one that cannot.
            ReaderDied: when a process that reads images has died, likewise.
        """
        steps = self._recipe.epochs * self._stream.batches_per_epoch
        self._display.begin(title, steps, self.steps_done())
        # A network from a saved folder comes in eval mode; the teacher stays in it whatever is called.
        self._distiller.train()
        self._saved_at, first = time.monotonic(), self.steps_done()
        with self._log() as log, stop_signals() as received, self._graph or contextlib.nullcontext():

            def is_over() -> bool:
                # A run that has no time makes one step, or many of those would never come to an end.
                return bool(received) or (is_past(deadline) and self.steps_done() > first)

            while self.state.epoch < self._recipe.epochs:
                begun = time.perf_counter()
                batches = self._stream.batches(self.state.epoch, start=self.state.batch)
                batches = self._readable(self._waiting.watched(batches))
                for batch, upcoming in _looking_ahead(batches, 0 if self._graph is None else 1):
                    self._step(batch, upcoming)
                    self.state.seconds += time.perf_counter() - begun
                    stop = agreed(self._fabric, self.steps_done(), is_over())
                    if stop or self._is_due(checkpoint_seconds):
                        self.save()
                    if stop:
                        return False
                    begun = time.perf_counter()
                self._read_pending()
                self.state.seconds += time.perf_counter() - begun
                closed = self._end_epoch(log, is_over)
                if not closed or self._is_due(checkpoint_seconds):
                    self.save()
                if not closed:
                    return False
            self.save()
            # Since the last step, as while it was saved: what comes after the training is left to another call.
            return not agreed(self._fabric, 0, bool(received))

    def _is_due(self, checkpoint_seconds: float) -> bool:
        """Return whether it is time for the next checkpoint."""
        return time.monotonic() - self._saved_at >= max(checkpoint_seconds, SPARSELY * self._took_to_save)

    def _readable(self, batches: Iterator[Read]) -> Iterator[Read]:
        """Give the batches; where an image can no longer be read, or what reads it dies, keep what has been done."""
        try:
            yield from batches
        except (UnreadableImage, ReaderDied):
            self.save()
            raise

    def steps_done(self) -> int:
        """Return how many steps of the run have been made."""
        return self.state.epoch * self._stream.batches_per_epoch + self.state.batch

    def _step(self, batch: Batch, upcoming: Batch | None = None) -> None:
        images, targets, shown = batch
        step = self.steps_done()
        rank = self._fabric.global_rank
        _seed(self._fabric.device, mixed_seed(Use.STEP, self._seed, step, *([rank] if rank else [])))
        rate = learning_rate(self._recipe, step, self._stream.batches_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        size = self._stream.size(self.state.batch)
        said = None if self._player is None else self._player(step, shown)
        is_full = size == self._stream.size(0)
        if is_full and self._graph is not None and shown is images:
            breakdown = self._graph(images, targets, said, None if upcoming is None else upcoming.images)
        else:
            ask, forward = self._full if is_full else self._rest
            breakdown = self._losses(forward, images, targets, ask(shown) if said is None else said)
        self._pending.append((step, size, breakdown))
        if len(self._pending) >= PENDING_STEPS or time.monotonic() - self._read_at >= self._patience:
            self._read_pending()
        if self._recipe.clip_norm:
            self._fabric.clip_gradients(
                self._module, self._optimizer, max_norm=self._recipe.clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        for parameter in self._trained:  # in a third of the time of the optimizer's own zero_grad
            parameter.grad = None
        state = self.state
        state.batch += 1
        state.images_total += size
        if not self._pending and state.batch < self._stream.batches_per_epoch:
            self._show()

    def _losses(
        self, forward: Callable[..., LossBreakdown], images: Tensor, targets: Tensor, said: Mapping[str, Tensor]
    ) -> LossBreakdown:
        """Return the losses of a batch, and leave their gradients in the parameters."""
        # As the wrapper does, so that one process and several see the same rounded images in mixed precision.
        rounded = self._fabric.strategy.precision.convert_input(images)
        with self._fabric.autocast():
            breakdown = forward(rounded, targets, Remembered(said))
        self._fabric.backward(breakdown.total)
        return LossBreakdown(breakdown.total.detach(), breakdown.terms)

    def _read_pending(self) -> None:
        """Add the losses of the steps since the last reading to the epoch's sums; stop at one not finite."""
        pending, self._pending = self._pending, []
        self._read_at = time.monotonic()
        if not pending:
            return
        names = ["total", *pending[0][2].terms]
        table = torch.stack([value.float() for _, _, told in pending for value in (told.total, *told.terms.values())])
        for (step, size, _), values in zip(pending, table.view(len(pending), -1).tolist(), strict=True):
            if not all(math.isfinite(value) for value in values):
                raise RunFailed(self._not_finite(step, dict(zip(names, values, strict=True))))
            for name, value in zip(names, values, strict=True):
                self.state.sums[name] = self.state.sums.get(name, 0.0) + value * size
            self.state.images += size

    def _not_finite(self, step: int, values: Mapping[str, float]) -> str:
        bad = next((name for name, value in values.items() if name != "total" and not math.isfinite(value)), "total")
        epoch, batch = divmod(step, self._stream.batches_per_epoch)
        causes = [f"a learning rate that is too high (--lr {self._recipe.lr:g})", "weights or images with such values"]
        if len(values) > 2:
            causes.append("a distillation weight that is too high (--gamma, --beta)")
        if self._recipe.precision == "16-mixed":
            causes.append("float16 overflow (--precision bf16-mixed or 32-true)")
        kept = self._folder.checkpoint
        rest = f"the last checkpoint stays in {kept}" if kept.exists() else "no checkpoint had been written yet"
        return (
            f"the loss is not finite: term {bad!r} is {values[bad]} in epoch {epoch + 1}, step {batch + 1}. "
            f"Likely causes: {', '.join(causes)}; {rest}"
        )

    def _end_epoch(self, log: EventLog | None, is_over: Callable[[], bool]) -> bool:
        """Validate and close the epoch; return False where the run is over before that."""
        state = self.state
        if self._alone:
            errors = errors_unless(is_over, self.student, self._readable(self._validation()), self._classes)
            if errors is None:
                return False
        else:
            if is_over():
                self.save()  # the others validate to the end, which may take longer than there is time
            errors = errors_of_all(self._fabric, self.student, self._validation(), self._classes, self.save)
        state.epoch, state.batch = state.epoch + 1, 0
        row = {
            "epoch": state.epoch,
            "lr": self._optimizer.param_groups[0]["lr"],
            **{f"train_{name}": value / state.images for name, value in state.sums.items()},
            "val_error": errors.error,
            "val_balanced_error": errors.balanced,
        }
        if log is not None:
            log.add(state.epoch, {name: value for name, value in row.items() if name != "epoch"})
        state.rows.append(row)
        if self._recipe.select == "balanced":
            is_best = errors.balanced <= state.best_balanced_error
        else:
            is_best = errors.error <= state.best_error
        if is_best:
            (state.best_error, state.best_balanced_error), state.best_epoch = errors, state.epoch
            state.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.student.state_dict().items()
            }
        if self._fabric.is_global_zero:
            self._folder.write_metrics(state.rows)
        self._show()
        state.sums, state.images = {}, 0
        return True

    def _show(self) -> None:
        self._crowding.look()
        state = self.state
        epoch = min(state.epoch + (state.batch > 0), self._recipe.epochs)
        parts = [f"epoch {epoch}/{self._recipe.epochs}"]
        parts += [f"{name} {value / state.images:.4g}" for name, value in state.sums.items() if name != "total"]
        if state.rows:
            name = "balanced_error" if self._recipe.select == "balanced" else "error"
            parts.append(f"val {name.replace('_', ' ')} {state.rows[-1][f'val_{name}']:.2f} %")
        if state.seconds:  # not yet after the first step
            parts.append(f"{state.images_total / state.seconds:,.0f} images/s")
        self._display.update(self.steps_done(), ", ".join(parts))

    def _log(self) -> contextlib.AbstractContextManager[EventLog | None]:
        """Return the logs for TensorBoard, which the first process alone writes."""
        if not self._fabric.is_global_zero:
            return contextlib.nullcontext()
        log = EventLog(self._folder.tensorboard, self.state.epoch + 1, self._display.say)
        return contextlib.closing(log)


def _looking_ahead(batches: Iterator[Batch], ahead: int) -> Iterator[tuple[Batch, Batch | None]]:
    """Give the batches, each with the one after it where one is read ahead."""
    waiting: deque[Batch] = deque(itertools.islice(batches, ahead))
    for batch in batches:
        waiting.append(batch)
        yield waiting.popleft(), waiting[0] if waiting else None
    for batch in waiting:
        yield batch, None


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that a step draws from.

    ``torch.manual_seed`` would do it for every kind of device there could be, at half a millisecond a call, and keep a
    note of each call for those that are not there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
