"""Find the block ends of any network by tracing one batch, and pair them between two networks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from spkd.errors import InputError, nearest
from spkd.modes import evaluating, keeping_buffers
from spkd.outputs import first_tensor, named_where_it_fails
from spkd.taps import TapPair, find_layer, unwrap

_KEYWORDS = ("last", "stages")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer that ends a block, and so is worth tapping.

    Attributes:
        name: its module path in the user's own network.
        shape: of its output, without the batch: (c, h, w), channels-last (h, w, c), or (n, c) of tokens.
    """

    name: str
    shape: tuple[int, ...]


def block_ends(model: nn.Module, images: Tensor) -> list[Candidate]:
    """Return the ends of a network's blocks, in order of execution.

    The first two images run through the network, in eval mode and without gradients; mode, buffers and hooks
    are afterwards as they were. What is returned depends on the kind of network:

    - *Feature maps*, channels first or last: for each spatial size the last block that has weights, so that a
      final norm or activation, which has none or one per channel, is never taken. A container that goes
      through three or more sizes is not a block itself: its parts are looked at. Where a size has no block,
      its last convolution counts, together with the norm and the activation that directly follow it. A size
      of 1x1, which comes up with very small images, counts only before the final pooling.
    - *Tokens* (b, n, c) of one number throughout, as in a vision transformer: every block.
    - *Tokens* whose number shrinks, or into which a pyramid of maps turns: for each size the last block.

    Args:
        model: the network, wrapped or not.
        images: (b, channels, h, w), of the size that will be trained on: block ends depend on it.

    Raises:
        InputError: there is no layer with such outputs, as in a perceptron.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3))
    >>> for candidate in block_ends(network, torch.rand(2, 3, 16, 16)):
    ...     print(candidate.name, candidate.shape)
    1 (8, 14, 14)
    3 (16, 5, 5)
    """
    images = images[:2]
    trace = _Trace(model, images)
    stages = _stages(trace, _units(trace, trace.root))
    if stages and not stages[-1].is_map:
        # A head of another kind, as an LSTM, may follow the maps.
        stages = _token_stages(trace, stages) or [stage for stage in stages if stage.is_map]
    else:
        stages = [stage for stage in stages if stage.is_map]
    if not stages:
        raise InputError(_nothing_found(trace))
    return [Candidate(name=stage.name, shape=stage.shape[1:]) for stage in stages]


def pair_taps(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    select: Sequence[str] = ("last",),
    *,
    teacher_images: Tensor | None = None,
) -> list[TapPair]:
    """Pair layers of the student with layers of the teacher.

    Args:
        student: the student, wrapped or not.
        teacher: the teacher, wrapped or not.
        images: (b, channels, h, w), a batch that both networks take, or the student alone with ``teacher_images``.
        select: ``("last",)``, the last block of each (the paper's choice); ``("stages",)``, all block ends,
            paired from the output backwards until the shorter list ends; or explicit
            ``"student_path=teacher_path"`` pairs, where one path alone stands for both networks.
        teacher_images: a batch for a teacher that takes others, larger ones, say.

    Returns:
        the pairs, those of block ends in order of execution, explicit ones as they are given.

    Raises:
        InputError: no pair is given, one is given twice or cannot be read, there is no such layer, or block
            ends were asked for and a network has none.

    >>> small = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(196, 10))
    >>> large = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten())
    >>> pair_taps(small, large, torch.rand(2, 3, 16, 16))
    [TapPair(student='0', teacher='2')]
    """
    chosen = (select,) if isinstance(select, str) else tuple(select)
    if _by_keyword(chosen):
        ends = block_ends(teacher, images if teacher_images is None else teacher_images)
        return pair_with_ends(student, [candidate.name for candidate in ends], images, chosen)
    return _explicit_pairs(student, teacher, chosen)


def pair_with_ends(
    student: nn.Module, teacher_ends: Sequence[str], images: Tensor, select: Sequence[str]
) -> list[TapPair]:
    """Pair layers of the student with a teacher's of which only the names of its block ends are known.

    What is chosen, returned and raised is as for :func:`pair_taps`; the teacher's side of explicit pairs is believed.
    """
    chosen = tuple(select)
    if not _by_keyword(chosen):
        return _explicit_pairs(student, None, chosen)
    student_ends = [candidate.name for candidate in block_ends(student, images)]
    pairs = [TapPair(*names) for names in zip(student_ends[::-1], teacher_ends[::-1], strict=False)]
    return pairs[:1] if chosen[0] == "last" else pairs[::-1]


def _by_keyword(chosen: Sequence[str]) -> bool:
    return len(chosen) == 1 and chosen[0] in _KEYWORDS


def _explicit_pairs(student: nn.Module, teacher: nn.Module | None, chosen: Sequence[str]) -> list[TapPair]:
    if not chosen:
        raise InputError("taps: expected 'last', 'stages' or 'student_path=teacher_path' pairs, got none; try 'last'.")
    pairs = []
    for text in map(str, chosen):
        pair = TapPair.parse(text)
        if text in _KEYWORDS:
            raise InputError(f"taps: expected {text!r} alone or explicit pairs, got both; leave one of them out.")
        try:
            find_layer(student, pair.student)
            if teacher is not None:
                find_layer(teacher, pair.teacher)
        except InputError as error:
            raise InputError(f"{error}{nearest(text, _KEYWORDS)}") from None
        if pair in pairs:
            raise InputError(f"taps: the pair '{pair}' is given twice; leave one out.")
        pairs.append(pair)
    return pairs


@dataclasses.dataclass
class _Record:
    """What one module did in the trace. Tensors are kept, so that identity and overwriting can be told."""

    name: str
    module: nn.Module
    order: int
    calls: int
    source: Tensor | None
    output: Tensor
    version: int
    size: tuple[int, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.output.shape)

    @property
    def is_map(self) -> bool:
        return self.size is not None and len(self.size) == 2

    @property
    def is_single(self) -> bool:
        """Whether the output is one position only: pooled, or a class token."""
        return self.size is not None and math.prod(self.size) == 1

    @property
    def is_tappable(self) -> bool:
        return self.calls == 1 and self.output._version == self.version

    @property
    def is_container(self) -> bool:
        return any(True for _ in self.module.children())

    @property
    def has_weights(self) -> bool:
        return any(parameter.dim() >= 2 for parameter in self.module.parameters())


class _Trace:
    """The records of one forward pass, by module, in order of completion."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.images = images
        self.records: dict[nn.Module, _Record] = {}
        self._clock = itertools.count()
        self.root = unwrap(model)
        names = {module: name for name, module in self.root.named_modules() if name}
        handles = [
            module.register_forward_hook(functools.partial(self._record, name)) for module, name in names.items()
        ]
        try:
            with (
                keeping_buffers(model),
                torch.inference_mode(False),
                torch.no_grad(),
                # A compiled network would run as it was compiled, without these hooks.
                torch.compiler.set_stance("force_eager"),
                evaluating(model),
                named_where_it_fails(type(self.root).__name__, images),
            ):
                model(images)
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        tensor = first_tensor(output)
        if tensor is None:
            return
        known = self.records.pop(module, None)
        self.records[module] = _Record(
            name=name,
            module=module,
            order=next(self._clock),
            calls=known.calls + 1 if known else 1,
            source=first_tensor(inputs),
            output=tensor,
            version=tensor._version,
            size=self.size(tensor),
        )

    def size(self, tensor: Tensor | None) -> tuple[int, ...] | None:
        """Return (h, w) of feature maps, channels first or last, (n,) of tokens, None of anything else."""
        if tensor is None or tensor.shape[:1] != self.images.shape[:1]:
            return None
        if tensor.dim() == 3:
            return (tensor.shape[1],)
        if tensor.dim() != 4 or 0 in tensor.shape:
            return None
        _, first, second, third = tensor.shape
        return (first, second) if first == second != third else (second, third)


def _units(trace: _Trace, module: nn.Module) -> list[_Record]:
    """Return the blocks and layers that a network is made of, in order of completion."""
    units: dict[nn.Module, _Record] = {}
    for child in module.children():
        record = trace.records.get(child)
        if record is None or _goes_through_stages(trace, record):
            units.update((unit.module, unit) for unit in _units(trace, child))
        else:
            units[child] = record
    return sorted(units.values(), key=lambda unit: unit.order)


def _parts(trace: _Trace, module: nn.Module) -> Iterator[_Record]:
    """Give the records of a module's children, or of theirs where a child never ran itself (a ModuleList)."""
    for child in module.children():
        if child in trace.records:
            yield trace.records[child]
        else:
            yield from _parts(trace, child)


def _goes_through_stages(trace: _Trace, record: _Record) -> bool:
    parts = list(_parts(trace, record.module))
    # A single position inside a block on larger maps is a gate's (squeeze-and-excitation), not a stage's.
    sizes = {part.size for part in parts if record.is_single or not part.is_single} | {trace.size(record.source)}
    if record.size is None and any(part.size is not None and not part.is_single for part in parts):
        return True  # it ends in a vector, and is no stage itself
    maps = [size for size in sizes if size is not None and len(size) == 2]
    tokens = [size for size in sizes if size is not None and len(size) == 1]
    return max(len(maps), len(tokens)) >= 3


def _stages(trace: _Trace, units: Sequence[_Record]) -> list[_Record]:
    """Return the best unit of each size, in order of completion."""
    pooled = [unit.order for unit in units if _pools_globally(trace, unit)]
    end = pooled[-1] if pooled else math.inf
    has_larger = any(unit.is_map and not unit.is_single for unit in units)
    by_size: dict[tuple[int, ...], list[_Record]] = {}
    for unit in units:
        is_late = unit.order >= end or (has_larger and _is_dense(trace, unit))
        if unit.size is not None and (not unit.is_single or (unit.is_map and not is_late)):
            by_size.setdefault(unit.size, []).append(unit)
    # No stride leads from larger maps than 4x4 to a single position, but a classifier's convolution does.
    smallest = min((max(size) for size in by_size if len(size) == 2 and max(size) > 1), default=1)
    best = [_best(units, alike) for alike in by_size.values()]
    stages = sorted((stage for stage in best if stage is not None), key=lambda stage: stage.order)
    last_larger = max((stage.order for stage in stages if not stage.is_single), default=-1)
    return [stage for stage in stages if not stage.is_single or (smallest <= 4 and stage.order > last_larger)]


def _is_dense(trace: _Trace, unit: _Record) -> bool:
    """Whether a unit holds a convolution of all places of its input at once: a linear layer of a classifier."""
    for layer in unit.module.modules():
        record = trace.records.get(layer)
        if (
            record is None
            or not isinstance(layer, nn.Conv2d)
            or set(layer.stride) != {1}
            or max(layer.kernel_size) == 1
        ):
            continue
        if layer.kernel_size == trace.size(record.source):
            return True
    return False


def _pools_globally(trace: _Trace, unit: _Record) -> bool:
    """Whether a layer, or the last part of a block, pools maps of any size to one position or a vector."""
    parts = sorted(_parts(trace, unit.module), key=lambda part: part.order)
    names = [type(record.module).__name__.lower() for record in (unit, *parts[-1:])]
    is_global = any("pool" in name and ("adaptive" in name or "global" in name) for name in names)
    return is_global and (unit.is_single or unit.output.dim() == 2)


def _best(units: Sequence[_Record], alike: Sequence[_Record]) -> _Record | None:
    """Choose among units of one size: the last block with weights, else the last layer with weights."""
    weighted = [unit for unit in reversed(alike) if unit.has_weights]
    for unit in sorted(weighted, key=lambda unit: not unit.is_container):
        followed = [unit] if unit.is_container else _followed(units, unit)
        tappable = [record for record in followed if record.is_tappable]
        if tappable:
            return tappable[-1]
    # Overwritten or shared, every one of them: a pooling or activation of this size is better than no stage.
    return next((unit for unit in reversed(alike) if weighted and unit.is_tappable), None)


def _followed(units: Sequence[_Record], layer: _Record) -> list[_Record]:
    """Return a layer and the norm and activation that directly follow it."""
    chain = [layer]
    for unit in units:
        name = type(unit.module).__name__.lower()
        if (
            unit.source is chain[-1].output
            and unit.shape == layer.shape
            and not unit.has_weights
            and not any(other in name for other in ("drop", "pool", "identity"))
        ):
            chain.append(unit)
    return chain


def _token_stages(trace: _Trace, stages: Sequence[_Record]) -> list[_Record]:
    """Return the blocks of a network that ends in tokens."""
    tokens = [stage for stage in stages if not stage.is_map and stage.is_container and stage.has_weights]
    counts = [math.prod(stage.size or ()) for stage in tokens]
    maps = [stage for stage in stages if stage.is_map and math.prod(stage.size or ()) > max(counts, default=0)]
    shrinks = bool(counts) and counts[0] >= 2 * counts[-1]  # and not grows, by tokens that are no places
    # A block that takes maps and gives tokens goes on where a pyramid of maps left off.
    if shrinks or (tokens and len(trace.size(tokens[-1].source) or ()) == 2):
        return [*maps, *tokens]
    groups = list(_token_groups(trace, trace.root))
    return max(reversed(groups), key=len, default=tokens)


def _token_groups(trace: _Trace, module: nn.Module) -> Iterator[list[_Record]]:
    """Give the outermost groups of sibling blocks of one class that put out tokens of one shape."""
    groups: dict[tuple[type[nn.Module], tuple[int, ...]], list[_Record]] = {}
    others = []
    for child in module.children():
        record = trace.records.get(child)
        if record is None or (not record.is_map and not (record.is_container and record.is_tappable)):
            others.append(child)
        elif not record.is_map:
            groups.setdefault((type(child), record.shape), []).append(record)
    for group in groups.values():
        if len(group) > 1 and group[0].size is not None and not group[0].is_single:
            yield group
        else:
            others.extend(record.module for record in group)
    for other in others:
        yield from _token_groups(trace, other)


def _nothing_found(trace: _Trace) -> str:
    seen = [f"{record.name} {record.shape[1:]}" for record in trace.records.values() if record.is_tappable]
    shown = ", ".join(seen[-6:])
    return (
        f"taps: expected a network with feature maps or tokens, and {type(trace.root).__name__} has no block "
        f"ends; name the layers as 'student_path=teacher_path' (its last ones: {shown})."
    )
