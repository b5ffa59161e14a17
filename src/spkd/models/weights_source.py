"""Where a model's weights come from, and what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spkd.data.options import View
from spkd.errors import InputError, nearest
from spkd.files import is_file, is_folder, is_there
from spkd.models import libraries
from spkd.models.classifier import ModelInfo, Normalisation
from spkd.models.saved_model import find_meant, not_saved, read_info
from spkd.models.spec import Architecture, construct, names_architecture, parse_spec, takes
from spkd.models.weights import read_checkpoint, read_tensors


@dataclass(frozen=True)
class Origin:
    """Where the architecture and the weights come from.

    Attributes:
        architecture: what is built.
        weights: what is loaded into it.
        info: of the saved model that the architecture is of, if it is.
        described: of the saved model that the weights are of, as far as that is known.
    """

    architecture: Architecture
    weights: str | None
    info: ModelInfo | None
    described: ModelInfo | None


@dataclass(frozen=True)
class Weights:
    """Weights that were read, and what is known of them.

    Attributes:
        label: what they are called in messages.
        tensors: by name.
        normalisation: what they were trained with; of a file for a library's architecture, that of the library's own.
        classes: names of the classes of their head.
        folder: of the saved model that is taken up whole.
        notes: lines to say of them.
        says_itself: whether it is of these weights that the normalisation is known.
    """

    label: str
    tensors: Mapping[str, Tensor]
    normalisation: Normalisation | None
    classes: tuple[str, ...] | None
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    says_itself: bool = True


@dataclass(frozen=True)
class Defaults:
    """What the metadata of a model's weights say; None where there are none.

    Attributes:
        image_size: side length of the images.
        normalisation: what the weights expect of the images.
        view: what they were made to see of an image.
        size_of: whose own weights the image size is of, where these do not say theirs; None where they do.
    """

    image_size: int | None
    normalisation: Normalisation | None
    view: View | None = None
    size_of: str | None = None

    def unsaid_size(self) -> str:
        """Return in words that the image size is that of others' weights."""
        size = self.image_size
        return f"these weights do not say their image size; {self.size_of}'s own are for {size} × {size} pixels"


def find_origin(spec: str, weights: str | None) -> Origin:
    """Return what a model's spec and its weights mean; nothing is built or downloaded.

    Raises:
        InputError: for an unknown model, or a saved one whose description cannot be read.
    """
    saved = find_meant(spec)
    if saved is None:
        return Origin(_parse(spec), weights, None, None if weights is None else _info_beside(weights))
    info = read_info(saved)
    if weights is None or weights == "pretrained":
        return Origin(parse_spec(info.spec), str(saved / "model.safetensors"), info, info)
    return Origin(parse_spec(info.spec), weights, info, _info_beside(weights))


def model_defaults(spec: str, weights: str | None) -> Defaults:
    """Return the image size and normalisation that the weights of a model were made for.

    They come from a saved model's ``model.json``, or from torchvision's or timm's metadata of the pretrained
    weights (also for a local file of weights for such an architecture). For other weights in a saved model's
    architecture, the size is the saved model's. A file for one of timm's vision transformers tells its own size.
    Nothing is built or downloaded.

    Raises:
        InputError: for an unknown model, an unknown name of weights, or a file that would tell and cannot be read.
    """
    origin = find_origin(spec, weights)
    if (described := origin.described) is not None:
        return Defaults(described.image_size, described.normalisation, described.view)
    size = None if origin.info is None else origin.info.image_size
    size_of = None if size is None else "the saved model"
    known = None if origin.weights is None else _metadata(origin.architecture, origin.weights)
    if size is None and known is not None:
        size = known.image_size
        size_of = None if is_of_library(spec, weights) else origin.architecture.source
    if (told := _told_size(origin)) is not None:
        size, size_of = told, None
    return Defaults(size, None if known is None else Normalisation(known.mean, known.std), size_of=size_of)


def _told_size(origin: Origin) -> int | None:
    """Return for what image size a file of weights was made, where these tell it."""
    source, file = origin.architecture.source, origin.weights
    if source == "wrn" or source == "callable" or file is None or not is_file(file):
        return None
    if not libraries.has_positions(source, origin.architecture.name):
        return None
    state = Path(file).stat()
    return _size_in(file, state.st_mtime_ns, state.st_size)


@cache
def _size_in(file: str, changed: int, size: int) -> int | None:
    """Return what a file tells of its image size; asked for several times, and read once while it stays the same."""
    return libraries.size_by_positions(read_tensors(Path(file)))


def has_foreign_weights(spec: str, weights: str | None) -> bool:
    """Return whether a saved model's architecture is to get weights of which its description says nothing."""
    origin = find_origin(spec, weights)
    return origin.info is not None and origin.described is None


def is_of_library(spec: str, weights: str | None) -> bool:
    """Return whether the weights are pretrained ones of torchvision or timm."""
    origin = find_origin(spec, weights)
    named = ("pretrained", *_weights_names(origin.architecture))
    return origin.architecture.source in ("torchvision", "timm") and origin.weights in named


def has_pretrained(spec: str) -> bool:
    """Return whether torchvision or timm has pretrained weights of a model."""
    origin = find_origin(spec, None)
    return origin.info is None and _metadata(origin.architecture, "pretrained") is not None


def is_saved_by_us(spec: str, weights: str | None) -> bool:
    """Return whether the weights are those of a saved model, whose ``model.json`` says what they were trained with."""
    return find_origin(spec, weights).described is not None


def _metadata(architecture: Architecture, weights: str) -> libraries.Pretrained | None:
    """Return what the architecture's library says of the weights, or of its own where they are a file; else None.

    Raises:
        InputError: for an unknown name of weights.
    """
    named = weights in _weights_names(architecture)
    if weights != "pretrained" and not named:
        _check_file(architecture, weights)
    if architecture.source == "wrn" or architecture.source == "callable":
        return None
    return libraries.pretrained(architecture.source, architecture.name, weights if named else None)


def read_weights(origin: Origin, channels: int, image_size: int) -> Weights | None:
    """Read or download the weights; None for random ones.

    Raises:
        InputError: when there are none of that name, or they cannot be read.
    """
    architecture, weights = origin.architecture, origin.weights
    if weights is None:
        return None
    if (described := origin.described) is not None:
        file = Path(weights)
        folder = file.parent if described is origin.info else None
        return Weights(weights, read_tensors(file), described.normalisation, described.classes, folder)
    known = _metadata(architecture, weights)
    normalisation = Normalisation(known.mean, known.std) if known is not None else None
    classes = known.classes if known is not None else None
    if weights == "pretrained" or weights in _weights_names(architecture):
        network = _pretrained(architecture, known, channels, image_size)
        return Weights(f"weights {weights!r}", network.state_dict(), normalisation, classes)
    tensors, notes = read_checkpoint(Path(weights))
    return Weights(weights, tensors, normalisation, classes, notes=notes, says_itself=False)


def _pretrained(
    architecture: Architecture, known: libraries.Pretrained | None, channels: int, image_size: int
) -> nn.Module:
    """Return the architecture with pretrained weights and the head that belongs to them."""
    if architecture.source == "torchvision" or architecture.source == "timm":
        if known is None:
            raise InputError(
                f"weights: {architecture.source} has no pretrained weights of {architecture.name}; give a file."
            )
        return libraries.make_pretrained(architecture.source, architecture.name, architecture.arguments, known)
    if architecture.source == "wrn":
        raise InputError(
            f"weights: there are no pretrained ones of {architecture.spec}; give a file, or a run folder as the model."
        )
    network = _loading_itself(architecture, channels, image_size)
    if takes(architecture, "pretrained"):
        return network
    if not any(_says_something(value) for value in _steady(network, architecture, channels, image_size).values()):
        raise InputError(
            f"weights: 'pretrained' are those that {architecture.spec} loads by itself, and its weights are others "
            "each time it is called: random ones. Give a file, or have it load them."
        )
    return network


def _loading_itself(architecture: Architecture, channels: int, image_size: int) -> nn.Module:
    return construct(architecture, classes=None, channels=channels, image_size=image_size, pretrained=True)


def _steady(network: nn.Module, architecture: Architecture, channels: int, image_size: int) -> dict[str, Tensor]:
    """Return what a network has in common with another that is made alike: not what is drawn anew, as a new head is."""
    with torch.random.fork_rng(devices=[]):
        again = _loading_itself(architecture, channels, image_size).state_dict()
    found = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    return {name: value for name, value in found.items() if name in again and torch.equal(value, again[name])}


def _says_something(value: Tensor) -> bool:
    """Return whether a tensor is a matrix or filter that is more than a constant."""
    return value.dim() > 1 and bool((value != value.flatten()[0]).any())


def loaded_digest(spec: str, weights: str | None, channels: int, image_size: int) -> str | None:
    """Return a hash of the weights that a user's callable loads by itself; None where it is not asked to.

    What it draws anew is left out. The random generators stay as they were.
    """
    origin = find_origin(spec, weights)
    if origin.architecture.source != "callable" or origin.weights != "pretrained":
        return None
    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        network = _loading_itself(origin.architecture, channels, image_size)
        steady = _steady(network, origin.architecture, channels, image_size)
    for name, value in steady.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_file(architecture: Architecture, weights: str) -> None:
    """Check that weights which are no known name are a file."""
    if is_there(weights):
        return
    known = ["pretrained", *_weights_names(architecture)]
    raise InputError(
        f"weights: there is no file {weights}; expected a .safetensors, .pt, .pth or .ckpt file, or one of "
        f"{', '.join(known)}.{nearest(weights, known)}"
    )


def _weights_names(architecture: Architecture) -> tuple[str, ...]:
    """Return the names that the architecture's library has for weights of it, beside "pretrained"."""
    if architecture.source == "wrn" or architecture.source == "callable":
        return ()
    return libraries.weights_names(architecture.source, architecture.name)


def _info_beside(weights: str) -> ModelInfo | None:
    """Return what the ``model.json`` beside a weights file of ours says."""
    path = Path(weights)
    described = path.name == "model.safetensors" and is_file(path.parent / "model.json")
    return read_info(path.parent) if described else None


def _parse(spec: str) -> Architecture:
    if is_folder(spec) and not names_architecture(spec):
        raise InputError(not_saved(Path(spec)))
    return parse_spec(spec)
