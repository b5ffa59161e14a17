"""Weights from a file: read without running code, matched to a network's own names, loaded."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spkd.errors import InputError, some
from spkd.files import is_file, is_folder

_PREFIXES = ("module.", "model.", "_orig_mod.", "network.")
_INSIDE = ("state_dict", "model", "model_state_dict", "net")
_AVERAGED = ("state_dict_ema", "model_ema")
_BLOCKED = re.compile(r"GLOBAL ([\w.]+)")
# Batch norms count batches since PyTorch 0.4.1; older files lack the counts, which evaluation does not use.
_COUNTER = "num_batches_tracked"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file, on the CPU, without running any code that the file may hold.

    Args:
        path: a safetensors file, or one of ``torch.save`` (``.pt``, ``.pth``, ``.ckpt``, ``.bin``) that holds
            a state dict by itself or under ``state_dict_ema``, ``model_ema``, ``state_dict``, ``model``,
            ``model_state_dict`` or ``net``.
            The content decides, not the name.

    Raises:
        InputError: when there is no such file, or it is truncated, something else, or a pickle with Python
            objects in it that only running code could restore.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the same as :func:`read_tensors`, and lines to say of it.

    Where a training has left the moving average of its weights beside them (timm, torchvision), that is taken: it is
    what such a training is judged by. A line says which of several state dicts beside each other is.
    """
    content = _read(path)
    if isinstance(content, Mapping):
        key = _place(content)
        inside = content if key is None else content[key]
        tensors = {str(key): value for key, value in inside.items() if isinstance(value, Tensor)}
        if tensors:
            # What has about as many is no part of these, nor an optimizer's.
            others = [
                repr(other)
                for other, held in content.items()
                if key not in (None, other) and 2 * _tensors_in(held) > len(tensors)
            ]
            used = f"the moving average in the file, {key!r}," if key in _AVERAGED else f"{key!r} in the file"
            said = f"weights: {used} is used, not {' nor '.join(others)}"
            return tensors, (said,) if others else ()
        found = ", ".join(map(repr, list(content)[:5])) or "nothing"
    else:
        found = f"a {type(content).__name__}"
    raise InputError(
        f"weights: {path} holds no state dict, neither by itself nor under {', '.join(_INSIDE)}; it holds "
        f"{found}. Save model.state_dict()."
    )


def takes_average(path: Path) -> bool:
    """Return whether a file's moving average is taken in the place of weights beside it."""
    content = _read(path)
    return (
        isinstance(content, Mapping)
        and _place(content) in _AVERAGED
        and any(_holds_tensors(content.get(key)) for key in _INSIDE)
    )


def refuse_unreadable(weights: str | None) -> None:
    """Look into a file of weights, if it is one, before what may take long.

    Raises:
        InputError: as :func:`read_checkpoint`.
    """
    if weights is not None and is_file(weights):
        read_checkpoint(Path(weights))


def _place(content: Mapping[Any, object]) -> str | None:
    """Return the key below which a file's state dict lies; None where it is the content itself."""
    return next((key for key in (*_AVERAGED, *_INSIDE) if _holds_tensors(content.get(key))), None)


def _holds_tensors(content: object) -> bool:
    return _tensors_in(content) > 0


def _tensors_in(content: object) -> int:
    return sum(isinstance(value, Tensor) for value in content.values()) if isinstance(content, Mapping) else 0


def _read(path: Path) -> object:
    if not is_file(path):
        kind = "is a folder; give the file in it" if is_folder(path) else "does not exist; check the path"
        raise InputError(f"weights: {path} {kind} (.safetensors, .pt, .pth or .ckpt).")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file begins with the length of its header, eight bytes, and the header is JSON.
        if start[8:] == b"{":
            return load_file(path)
        refuse_compressed(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content: object = torch.load(path, map_location="cpu", weights_only=True)
            return content
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        blocked = _BLOCKED.search(str(error))
        if blocked is None:
            raise InputError(_unreadable(path)) from error
        raise InputError(
            f"weights: {path} holds Python objects ({blocked[1]}) that only running code from the file could "
            "restore, so it was not loaded; where you trust it, load it yourself and save model.state_dict()."
        ) from error
    except PermissionError as error:
        raise InputError(f"weights: {path} cannot be read: {error.strerror}.") from error
    # A damaged file has no error class of its own: torch.load may raise nearly any.
    except Exception as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"weights: {path} is a TorchScript program, not a state dict; save model.state_dict() instead."
            ) from error
        raise InputError(_unreadable(path)) from error


def refuse_compressed(path: Path) -> None:
    """Refuse an archive with compressed content, which ``torch.load`` unpacks however much memory that takes.

    Raises:
        InputError: naming the file.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # by which torch.load goes
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(
                    f"weights: {path} is compressed inside, as torch.save never leaves it (TorchScript does): load it "
                    "yourself where you trust it, and save model.state_dict()."
                )


def _unreadable(path: Path) -> str:
    size = path.stat().st_size
    return (
        f"weights: {path} ({size:,} bytes) is not a weights file or is damaged, truncated perhaps; copy or "
        "download it again (.safetensors, .pt, .pth or .ckpt)."
    )


@dataclass(frozen=True)
class Match:
    """A file's tensors held against a network's state dict.

    Attributes:
        tensors: the file's, with prefixes stripped.
        notes: lines to say: which prefixes were stripped, what was left out.
        missing: names that the network has and the file has not.
        unexpected: names that the file has and the network has not.
        reshaped: names in both with unlike shapes.
        expected: the shapes in the network.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    expected: Mapping[str, tuple[int, ...]]

    @property
    def problems(self) -> int:
        """How many names do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def head_classes(self, outputs: int) -> int | None:
        """Return the file's class count when nothing but the head differs, 0 when it has no head, else None.

        The head is the layer, or the layers, whose first dimension is the network's ``outputs`` and whose
        other dimensions agree with the file's.
        """
        if self.unexpected or not (self.missing or self.reshaped):
            return None
        names = (*self.missing, *self.reshaped)
        if any(self.expected[name][:1] != (outputs,) for name in names):
            return None
        if any(self.expected[name][1:] != tuple(self.tensors[name].shape[1:]) for name in self.reshaped):
            return None
        if self.missing:
            return None if self.reshaped else 0
        counts = {self.tensors[name].shape[:1] for name in self.reshaped}
        count = counts.pop()
        return None if counts or not count else count[0]

    def complaint(self) -> str:
        """Return what does not fit, with a few names and how many there are."""
        shapes = tuple(
            f"{name}: {_size(self.tensors[name].shape)} in the file, {_size(self.expected[name])} in the network"
            for name in self.reshaped
        )
        parts = (
            _listed("missing from the file", self.missing),
            _listed("unknown to the network", self.unexpected),
            _listed("of another shape", shapes),
        )
        return "; ".join(filter(None, parts))


def match(network: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Hold a file's tensors against a network, without the prefixes that wrappers leave in the names.

    ``module.`` (DDP), ``model.`` (Lightning), ``_orig_mod.`` (``torch.compile``) and ``network.``, else whatever most
    names begin with, are stripped, repeatedly, as far as the names then fit better; what stands beside them (a
    criterion's weights, say) is left out and said so.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    best, stripped = dict(tensors), ""
    candidate, prefix = best, ""
    while True:
        counts = {known: sum(name.startswith(known) for name in candidate) for known in _PREFIXES}
        commonest = max(_PREFIXES, key=lambda known: counts[known])
        if not counts[commonest]:
            firsts = Counter(f"{name.partition('.')[0]}." for name in candidate if "." in name)
            if not firsts:
                break
            commonest = firsts.most_common(1)[0][0]
        prefix += commonest
        candidate = {
            name.removeprefix(commonest): value for name, value in candidate.items() if name.startswith(commonest)
        }
        if len(expected.keys() & candidate) > len(expected.keys() & best):
            best, stripped = candidate, prefix
    notes = [f"weights: the prefix {stripped!r} was stripped from the names in the file"] if stripped else []
    beside = [name for name in tensors if not name.startswith(stripped)]
    if beside:
        notes.append(f"weights: {_listed(f'outside {stripped!r} left out', beside)}")
        if copies := _other_copies(expected, best, {name: tensors[name] for name in beside}):
            notes.append(
                f"weights: the file holds {len(copies) + 1} whole copies, of which {stripped!r} is used, not "
                f"{' nor '.join(map(repr, copies))}; to use another, save it in a file of its own"
            )
    return Match(
        tensors=best,
        notes=tuple(notes),
        missing=tuple(name for name in expected if name not in best and not name.endswith(_COUNTER)),
        unexpected=tuple(name for name in best if name not in expected),
        reshaped=tuple(name for name in best if name in expected and tuple(best[name].shape) != expected[name]),
        expected=expected,
    )


def _other_copies(expected: Collection[str], used: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes below which there are all weights of the network once more, with other values."""
    names = [name for name in expected if not name.endswith(_COUNTER)]
    prefixes = [name.removesuffix(names[0]) for name in beside if name.endswith(names[0])] if names else []
    return [
        prefix
        for prefix in prefixes
        if all(name in used and prefix + name in beside for name in names)
        and any(not torch.equal(used[name], beside[prefix + name]) for name in names)
    ]


def load(network: nn.Module, found: Match) -> None:
    """Copy the matched tensors into the network, but for those of another shape, as a head's may be."""
    # Over the network's own state dict, which carries the layers' versions: some layers ask for theirs.
    state = network.state_dict()
    state.update((name, value) for name, value in found.tensors.items() if name not in found.reshaped)
    network.load_state_dict(state)


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], label: str) -> None:
    """Copy a saved model's tensors into the network; every name and shape must agree.

    Raises:
        InputError: when one does not; the line begins with ``label``.
    """
    found = match(network, tensors)
    if found.problems:
        raise InputError(f"{label} do not fit each other: {found.complaint()}; save the model again.")
    load(network, found)


def _listed(what: str, names: Collection[str]) -> str:
    """Return "3 missing from the file (a, b, ...)", or nothing for no names."""
    return f"{len(names)} {what} ({some(names, 3)})" if names else ""


def _size(shape: Collection[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
