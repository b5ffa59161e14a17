"""What goes into a network and comes out of it, of whatever kind: a tensor in; logits, probabilities, tensors out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spkd.errors import InputError, one_line


def first_tensor(output: object) -> Tensor | None:
    """Return the output if it is a tensor, else the first one in a (nested) tuple, mapping or dataclass."""
    if isinstance(output, Tensor):
        return output
    parts: Iterable[object] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    elif dataclasses.is_dataclass(output):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    for part in parts:
        tensor = first_tensor(part)
        if tensor is not None:
            return tensor
    return None


def logits_of(output: object) -> Tensor:
    """Return the logits in a network's output: itself, its ``.logits`` or ``["logits"]``, or first in a tuple.

    Raises:
        InputError: when there are none.
    """
    found = find_logits(output)
    if found is None:
        raise InputError(
            "model: expected logits as a tensor, as `.logits` or ['logits'], or first in a tuple, got "
            f"{type(output).__name__}; wrap the network in a module whose forward returns its logits."
        )
    return found


def find_logits(output: object) -> Tensor | None:
    """Return the same where there are any."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    return first_tensor(output) if isinstance(output, (Tensor, Sequence)) else None


def require_tensor(images: object) -> None:
    """Refuse a batch of another kind.

    Raises:
        InputError: when it is no tensor.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"images: expected a tensor with the batch first, got {type(images).__name__}; wrap the network in a "
            "module that takes what it needs from one tensor."
        )


def are_probabilities(values: Tensor) -> bool:
    """Return whether rows (b, k) are such as a softmax gives, and no logits.

    >>> [are_probabilities(torch.tensor(rows)) for rows in ([[0.2, 0.8], [1.0, 0.0]], [[0.2, 0.8], [3.0, -2.0]])]
    [True, False]
    """
    if values.dim() != 2 or values.shape[1] < 2 or not len(values):
        return False
    rows = values.detach().float()
    return bool((rows >= 0).all() & ((rows.sum(1) - 1).abs() < 1e-2).all())


@contextmanager
def named_where_it_fails(name: str, images: Tensor) -> Iterator[None]:
    """Tell in one line which network, maybe a user's own, fails on the images.

    Raises:
        InputError: for whatever it raises but a full memory.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        size = " × ".join(map(str, images.shape[1:]))
        raise InputError(f"{name}: it fails on images of {size}: {one_line(error)}") from error
