"""Name layers of a network and capture what they put out, without editing the network."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from spkd.errors import InputError, nearest
from spkd.outputs import find_logits, first_tensor, logits_of, require_tensor

# Where DDP and DataParallel, torch.compile, Lightning Fabric and Classifier keep the network.
_WRAPPED_AS = frozenset({"module", "_orig_mod", "_forward_module", "_original_module", "network"})


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclasses.dataclass(frozen=True)
class Activations:
    """What one forward pass gave.

    Attributes:
        logits: the network's class scores, (b, k).
        taps: the output of each tapped layer by the layer's name, (b, ...), with its gradient history.
        gather: from one of these to the same of the whole batch, where several processes have divided it; gradients
            flow back to the processes that they belong to. All processes must call it alike. In one process it
            returns its argument.
        targets: of a student in an :class:`~spkd.losses.objective.Objective`, what that was given as targets for these
            images; None of a teacher, whose words do not depend on labels.
    """

    logits: Tensor
    taps: Mapping[str, Tensor]
    gather: Callable[[Tensor], Tensor] = _as_it_is
    targets: Tensor | None = None

    def of_the_whole_batch(self) -> Activations:
        """Return the activations of all processes' images, without targets."""
        return Activations(self.gather(self.logits), {name: self.gather(tap) for name, tap in self.taps.items()})


@dataclasses.dataclass(frozen=True)
class TapPair:
    """A layer of the student and the layer of the teacher that it is compared with, by module path."""

    student: str
    teacher: str

    @classmethod
    def parse(cls, text: str) -> TapPair:
        """Read ``"student_path=teacher_path"``; one path alone stands for the same name in both networks.

        >>> TapPair.parse("blocks.5=layer4")
        TapPair(student='blocks.5', teacher='layer4')
        >>> TapPair.parse("layer4")
        TapPair(student='layer4', teacher='layer4')

        Raises:
            InputError: a path is empty, or there is more than one ``=``.
        """
        paths = [path.strip() for path in text.split("=")]
        if len(paths) > 2 or not all(paths):
            raise InputError(
                f"taps: expected 'student_path=teacher_path' or one path for both, got {text!r}; "
                "`spkd taps` lists the paths of both networks."
            )
        return cls(student=paths[0], teacher=paths[-1])

    def __str__(self) -> str:
        return f"{self.student}={self.teacher}"


class Taps:
    """Run a network and give its logits together with the outputs of named layers.

    A hook is registered on each named layer when the ``Taps`` is made, and nothing else of the network is
    changed. The hooks are removed by :meth:`remove`, at the end of a ``with`` block, or when the ``Taps`` is
    garbage-collected. They record only during a call of the ``Taps``, so that the network can be used by
    itself in between without holding on to activations.

    Names are those of the user's own network, as in ``dict(network.named_modules())``: wrapping it by DDP,
    ``torch.compile``, Lightning Fabric or :class:`~spkd.models.classifier.Classifier` leaves them as they are
    (names that begin with the wrappers' own attributes, such as ``module.layer4``, are understood too). Wrap
    first or tap first: both work, but taps are to be set before a compiled network's first run. In a compiled
    network, and in inference mode, a tap is a copy of the layer's output, since whether the output is
    overwritten later cannot be seen there.

    Args:
        model: the network, wrapped or not. It may return its logits as a tensor, as an attribute or item
            called ``logits``, or as the first tensor of a tuple or list.
        names: module paths such as ``layer4`` or ``features.12``. Of a layer that puts out a tuple, list,
            dict or dataclass, the first tensor in it is taken.
        stop: end the pass as soon as every named layer has run, and give logits of shape (b, 0). What comes
            after is then not computed, and cannot be seen to run a layer twice or to overwrite its output. A
            compiled network is run to its end, where the compiler leaves out what nobody reads.
        micro_batch_size: the largest number of images in one pass of the network; a larger batch is run in parts
            of nearly equal size, whose outputs are joined. Only for a network that treats every image by itself, as
            batch norms do in evaluation. Default: the whole batch.
        differentiated: refuse, in a call with gradients, a layer that runs without them, as in reentrant activation
            checkpointing: nothing that is computed from its output could teach.
        logits: whether logits are wanted. Otherwise the network may put out anything, and where no logits are found in
            it they are of shape (b, 0).

    Attributes:
        model: as given; may be exchanged for another wrapping of the same network, which is then what a call runs.
        names: as given, each once.

    Raises:
        InputError: the network has no layer of that name, or ``micro_batch_size`` is below one.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    >>> with Taps(network, ["0"]) as taps:
    ...     activations = taps(torch.rand(2, 3, 8, 8))
    >>> activations.logits.shape, activations.taps["0"].shape
    (torch.Size([2, 10]), torch.Size([2, 4, 6, 6]))
    """

    model: nn.Module
    names: tuple[str, ...]

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        *,
        stop: bool = False,
        micro_batch_size: int | None = None,
        differentiated: bool = False,
        logits: bool = True,
    ) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        if micro_batch_size is not None and micro_batch_size < 1:
            raise InputError(f"micro_batch_size: expected at least 1 image, got {micro_batch_size}")
        self._micro_batch_size, self._differentiated, self._logits = micro_batch_size, differentiated, logits
        self.model = model
        self.names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        layers = {name: find_layer(model, name) for name in self.names}
        self._captures = {name: _Capture() for name in self.names}
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(self._captures[name]))
        if stop:
            captures = tuple(self._captures.values())
            for layer in layers.values():
                self._handles.append(layer.register_forward_hook(functools.partial(_end_pass, captures)))

    def __call__(self, images: Tensor) -> Activations:
        """Run the network on a batch.

        Args:
            images: (b, channels, h, w), or another tensor that the network takes, with the batch first.

        Raises:
            InputError: a tapped layer did not run, ran more than once, put out no tensor or one in which the batch does
                not come first, had its output overwritten in place later in the same pass, or, where it is to be
                differentiated, ran without gradients; or the network's output holds no logits that are wanted.
        """
        require_tensor(images)
        most = self._micro_batch_size
        if most is None or len(images) <= most:
            return self._run(images)
        parts = [self._run(part) for part in images.tensor_split(math.ceil(len(images) / most))]
        return Activations(
            logits=torch.cat([part.logits for part in parts]),
            taps={name: torch.cat([part.taps[name] for part in parts]) for name in self.names},
        )

    def _run(self, images: Tensor) -> Activations:
        captures = self._captures
        for capture in captures.values():
            capture.start()
        try:
            try:
                output = self.model(images)
                logits = logits_of(output) if self._logits else find_logits(output)
            except _PassEnded:
                logits = None
            if logits is None:
                logits = images.new_empty(len(images), 0)
            wanted = self._differentiated and torch.is_grad_enabled()
            taps = {name: capture.result(name, len(images), wanted) for name, capture in captures.items()}
        finally:
            for capture in captures.values():
                capture.stop()
        return Activations(logits=logits, taps=taps)

    def remove(self) -> None:
        """Take the hooks off the network; no tap fires afterwards. A second removal does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __del__(self) -> None:
        self.remove()


class _PassEnded(Exception):
    """Every layer that is wanted has run."""


def _end_pass(captures: Sequence[_Capture], layer: nn.Module, inputs: object, output: object) -> None:
    """Leave the network from a layer's forward hook, once all captures have what they wait for."""
    recording = all(capture.recording and capture.outputs for capture in captures)
    if recording and not torch.compiler.is_compiling():
        raise _PassEnded


class _Capture:
    """The forward hook of one tap. It does not refer to its ``Taps``, so a forgotten one is collected."""

    def __init__(self) -> None:
        self.recording = False
        self.outputs: list[Tensor | None] = []
        self.versions: list[int] = []
        self.has_gradients = True

    def __call__(self, layer: nn.Module, inputs: object, output: object) -> None:
        if not self.recording:
            return
        self.has_gradients = torch.is_grad_enabled()
        tensor = first_tensor(output)
        if tensor is not None and (torch.compiler.is_compiling() or tensor.is_inference()):
            self.outputs.append(tensor.clone())
        else:
            self.outputs.append(tensor)
            self.versions.append(0 if tensor is None else tensor._version)

    def start(self) -> None:
        self.outputs = []
        self.versions = []
        self.has_gradients = self.recording = True

    def stop(self) -> None:
        self.recording = False
        self.outputs = []

    def result(self, name: str, images: int, differentiated: bool) -> Tensor:
        if not self.outputs:
            raise InputError(
                f"tap {name!r}: the layer did not run in this forward pass: the network does not use it (or "
                "uses its weights without calling it), or was compiled and run before the taps were set, or "
                "the taps were removed; set taps before the first run, or tap a layer that `spkd taps` lists."
            )
        if len(self.outputs) > 1:
            raise InputError(
                f"tap {name!r}: the layer ran {len(self.outputs)} times in one forward pass, so which output "
                "is meant is ambiguous; tap a layer that runs once, such as the block around it."
            )
        tensor = self.outputs[0]
        if tensor is None:
            raise InputError(f"tap {name!r}: expected a layer that puts out a tensor, and this one puts out none.")
        if tensor.shape[:1] != (images,):
            raise InputError(
                f"tap {name!r}: expected the batch of {images} as the first dimension, and the layer puts out "
                f"{tuple(tensor.shape)}; tap a layer around it, or put one behind it that turns its output."
            )
        if self.versions and tensor._version != self.versions[0]:
            raise InputError(
                f"tap {name!r}: the layer's output is overwritten in place later in the forward pass (by an "
                "in-place ReLU or addition, say); tap the layer that overwrites it, or the block around both."
            )
        if differentiated and not self.has_gradients:
            raise InputError(
                f"tap {name!r}: the layer runs without gradients, so a loss on it would teach nothing: give activation "
                "checkpointing use_reentrant=False, take the layer out of `torch.no_grad`, or tap one around it."
            )
        return tensor


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own network from under its wrappers (DDP, ``torch.compile``, Fabric, classifier).

    A wrapper is a module all of whose children are called ``module``, ``_orig_mod``, ``network`` or, for
    Fabric, ``_forward_module`` and ``_original_module``; wrappers may be nested.

    >>> network = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(network)) is network
    True
    """
    return levels(model)[-1]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the layer of that name in a network, wrapped or not.

    Raises:
        InputError: there is none; the line gives the nearest names.
    """
    for level in reversed(levels(model)):
        layers: dict[str, nn.Module] = dict(level.named_modules(remove_duplicate=False))
        if name and name in layers:
            return layers[name]
    network = unwrap(model)
    known = [layer for layer, _ in network.named_modules() if layer]
    raise InputError(
        f"taps: {type(network).__name__} has no layer {name!r}.{nearest(name, known)} `spkd taps` lists the candidates."
    )


def levels(model: nn.Module) -> list[nn.Module]:
    """Return the model and what it wraps, outermost first."""
    found = [model]
    while True:
        children = dict(found[-1].named_children())
        if not children or not _WRAPPED_AS.issuperset(children):
            return found
        found.append(list(children.values())[-1])
