"""A network with its own input normalisation and class names, and the folder that it is saved in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.files import is_file, is_folder, is_there, sha256, write_bytes_atomically, write_text_atomically
from spkd.imports import is_of_python
from spkd.models.answers import agree, answer, steady_answer
from spkd.models.network import count_logits, input_channels
from spkd.models.spec import names_architecture, parse_spec, rebuild
from spkd.models.weights import load_exactly, read_tensors
from spkd.taps import levels, logits_of

_FORMAT = 1


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from images in [0, 1], and what they are then divided by.

    One value per channel, or a single one for all channels.

    Raises:
        InputError: when the lengths differ, a value is not finite or a deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"normalisation: expected as many means as deviations, got {len(self.mean)} and {len(self.std)}."
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(
                "normalisation: expected finite means and deviations above zero, "
                f"got mean {self.mean} and std {self.std}."
            )


@dataclass(frozen=True)
class ModelInfo:
    """What is to be known of a classifier besides its weights.

    Attributes:
        spec: the string from which :func:`spkd.models.build.build_model` makes the same architecture.
        classes: the names of the classes, in the order of the logits.
        channels: channels of the images that it takes.
        image_size: side length, in pixels, of the images that it was made for.
        normalisation: what the classifier does to images in [0, 1] before the network sees them.
        view: what it was made to see of an image: the ``whole``, or the ``centre``, the shorter side at 8/7 of
            ``image_size`` before cutting; None where that is not known.

    Raises:
        InputError: for another view.
    """

    spec: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    normalisation: Normalisation
    view: Literal["whole", "centre"] | None = None

    def __post_init__(self) -> None:
        if self.view not in ("whole", "centre", None):
            raise InputError(f"view: expected 'whole' or 'centre', or None where it is not known, got {self.view!r}.")


class Classifier(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself.

    The state dict is the network's under ``network.``; the normalisation is part of ``info`` instead.

    Args:
        network: any network from images to logits: a tensor ``(b, k)``, or an output with ``.logits``,
            ``["logits"]`` or the logits first in a tuple.
        info: see :class:`ModelInfo`. A normalisation of three channels on a network that takes one is
            averaged over the channels.

    Shapes:
        Floating-point images ``(b, channels, h, w)`` in [0, 1] to logits ``(b, k)``. Grey images
        ``(b, 1, h, w)`` are repeated to three channels when the network's first convolution takes three.

    Raises:
        InputError: when the network's first convolution takes another number of channels than
            ``info.channels``; on a forward pass, for images of another number of channels or integers.

    >>> from spkd.models.wrn import WideResNet
    >>> normalisation = Normalisation(mean=(0.5,), std=(0.25,))
    >>> info = ModelInfo("wrn-10-1", ("cat", "dog"), channels=3, image_size=32, normalisation=normalisation)
    >>> classifier = Classifier(WideResNet(10, 1, num_classes=2), info)
    >>> classifier(torch.rand(4, 3, 32, 32)).shape
    torch.Size([4, 2])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        super().__init__()
        self.network = network
        self.info = info
        self.network_channels = input_channels(network, info.channels, info.image_size)
        repeated = info.channels == 1 and self.network_channels == 3
        if info.channels != self.network_channels and not repeated:
            raise InputError(
                f"model {info.spec}: its first convolution takes {self.network_channels} channel(s) and the "
                f"images have {info.channels}; build the model for {info.channels} "
                f"(with timm: ?in_chans={info.channels})."
            )
        for name, values in (("mean", info.normalisation.mean), ("std", info.normalisation.std)):
            self.register_buffer(name, _per_channel(values, self.network_channels), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(b, k)`` of images ``(b, channels, h, w)`` in [0, 1]."""
        grey = images.ndim == 4 and images.shape[1] == 1 and self.network_channels == 3
        if not grey and (images.ndim != 4 or images.shape[1] != self.network_channels):
            raise InputError(
                f"images: expected (batch, {self.info.channels}, height, width), got {tuple(images.shape)}."
            )
        if not images.is_floating_point():
            raise InputError(
                f"images: expected floating-point values in [0, 1], got {images.dtype}; divide bytes by 255."
            )
        if grey:
            images = images.expand(-1, 3, -1, -1)
        return logits_of(self.network((images - self.mean) / self.std))


def same_classes(one: Classifier, other: Classifier) -> bool:
    """Return whether two networks tell the same classes apart, in the same order."""
    return one.info.classes == other.info.classes


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write ``folder/model.safetensors`` (the network's own state dict) and ``folder/model.json``.

    Each file is moved into place whole, the weights first. A network that ``torch.compile`` wraps is saved
    under its own names. What it answers to a made-up picture is kept beside, so that it is noticed when other code
    builds the network that is loaded.

    Raises:
        InputError: when the folder cannot be written, or the state dict holds something that is no tensor.
    """
    # A copy of each: safetensors refuses tied weights that share memory.
    tensors = {
        name.replace("_orig_mod.", ""): value.detach().cpu().contiguous().clone()
        for name, value in savable_state(classifier).items()
    }
    info = classifier.info
    network = getattr(classifier.network, "_orig_mod", classifier.network)
    told = {"answer": steady_answer(network, classifier.network_channels, info.image_size)}
    text = json.dumps({"format": _FORMAT, **asdict(info), **told}, indent=2, ensure_ascii=False)
    # Metadata as the transformers and timm libraries expect it of a PyTorch file.
    # Serialised in memory first: a disk that fills up then shows as an OSError with its reason.
    content = save(tensors, {"format": "pt"})
    write_bytes_atomically(folder / "model.safetensors", content)
    write_text_atomically(folder / "model.json", text + "\n")


def save_model(network: nn.Module, folder: str | Path, info: ModelInfo | None = None) -> None:
    """Save a network that was trained in a loop of one's own, for :func:`load_classifier` and every command.

    Args:
        network: the network, wrapped or not, with any weights; or a classifier, which brings its own ``info``.
        folder: where to.
        info: what is to be known of it. Its ``spec`` must build the same architecture: ``wrn-16-1``, ``timm/NAME``, or
            ``path/file.py:callable`` for one of your own. Its ``normalisation`` is what the loop did to images in
            [0, 1], since a saved model takes those.

    Raises:
        InputError: when ``info`` is missing or superfluous, does not fit the network, its spec builds another one, or
            the folder cannot be written. Nothing is written then.

    >>> import tempfile
    >>> from spkd.models.wrn import WideResNet
    >>> info = ModelInfo("wrn-10-1", ("cat", "dog"), 3, 32, Normalisation((0.5,), (0.25,)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(WideResNet(10, 1, num_classes=2), folder, info)
    ...     load_classifier(folder).info.classes
    ('cat', 'dog')
    """
    wrapped = levels(network)
    own = next((level for level in wrapped if isinstance(level, Classifier)), None)
    if own is not None:
        if info is not None:
            raise InputError("info: the network is a classifier and brings its own; leave it out.")
        network, info = own.network, own.info
        wrapped = levels(network)
    if info is None:
        raise InputError("info: expected a ModelInfo, which tells what builds the network and what its classes are.")
    info = replace(info, spec=parse_spec(info.spec).spec)  # with the whole path of a file
    again = _built(info)
    names = again.state_dict().keys()
    bare = next((level for level in wrapped if level.state_dict().keys() == names), wrapped[-1])
    classifier = Classifier(bare, info)
    load_exactly(again, savable_state(classifier), f"the network and {info.spec}")
    size, channels = info.image_size, classifier.network_channels
    given, built = steady_answer(bare, channels, size), answer(again, channels, size)
    if given is not None and built is not None and not agree(given, built):
        raise InputError(f"info: with its weights, {info.spec} answers otherwise than the network; name what built it.")
    if (found := count_logits(again, info.spec, channels, size)) != len(info.classes):
        raise InputError(f"info: {len(info.classes)} classes are named, and the network has {found} logits.")
    save_classifier(classifier, Path(folder))


def _built(info: ModelInfo) -> nn.Module:
    """Return the architecture that ``info`` names, with random weights; the random generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return rebuild(
            parse_spec(info.spec),
            classes=len(info.classes),
            channels=info.channels,
            image_size=info.image_size,
        )


def savable_state(classifier: Classifier) -> dict[str, Tensor]:
    """Return the network's own state dict.

    Raises:
        InputError: when it holds something that is no tensor.
    """
    state: dict[str, Tensor] = classifier.network.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"model {classifier.info.spec}: {name} in its state dict is a {type(value).__name__}, "
                "which safetensors cannot hold; keep extra state in tensors."
            )
    return state


def load_classifier(folder: str | Path) -> Classifier:
    """Return the classifier saved in ``folder``, or in ``folder/student`` for a run folder.

    The architecture is built from the saved spec without pretrained weights, so nothing is downloaded, then
    given the saved weights; it answers bit for bit as the one that was saved. It comes in eval mode, on the
    CPU; the state of the random generators is left as it was.

    Raises:
        InputError: when there is no saved model, a file of it is damaged, the spec's own file or package is
            gone, the weights do not fit what the spec now builds, or that answers otherwise than what was saved.
    """
    saved = find_saved(folder)
    if saved is None:
        raise InputError(not_saved(Path(folder)))
    info = read_info(saved)
    path = saved / "model.safetensors"
    network = _built(info)
    load_exactly(network, read_tensors(path), f"{path} and {info.spec}")
    check_answer(network, saved)
    return Classifier(network, info).eval()


def check_answer(network: nn.Module, saved: Path) -> None:
    """Look whether a network with the weights saved in a folder answers as the one that was saved there.

    Raises:
        InputError: when it does not.
    """
    info, told = _description(saved)
    if told is None:
        return
    now = answer(network, input_channels(network, info.channels, info.image_size), info.image_size)
    if now is not None and not agree(told, now):
        raise InputError(
            f"model {saved}: with its weights, {info.spec} answers otherwise now than when it was saved: its code or a "
            "library has changed since; put that back, or, if it is meant, take the answer out of model.json."
        )


def find_saved(folder: str | Path) -> Path | None:
    """Return the folder that holds the saved model: ``folder``, or its ``student`` subfolder; else None."""
    candidates = (Path(folder), Path(folder) / "student")
    return next((path for path in candidates if is_file(path / "model.json")), None)


def find_meant(spec: str) -> Path | None:
    """Return the folder of the saved model that a network's spec means, None where it means an architecture.

    An architecture's name goes before a folder of that name, which ``./wrn-16-1`` means.
    """
    saved = find_saved(spec)
    return None if saved is not None and names_architecture(spec) else saved


def read_info(folder: Path) -> ModelInfo:
    """Return what ``folder/model.json`` says of the model.

    A file of code that has been moved is looked for in the folders above this one, then in the working folder.

    Raises:
        InputError: when it is not JSON, lacks a field or has a spec that would call what belongs to Python.
    """
    return _description(folder)[0]


def _description(folder: Path) -> tuple[ModelInfo, tuple[float, ...] | None]:
    """Return what ``folder/model.json`` says of the model, and what that answered, if it is told."""
    path = folder / "model.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        normalisation = Normalisation(
            mean=tuple(float(value) for value in content["normalisation"]["mean"]),
            std=tuple(float(value) for value in content["normalisation"]["std"]),
        )
        spec = _where_it_lies(str(content["spec"]), folder)
        if is_of_python(spec):
            raise ValueError(f"its spec {spec!r} names no network but a part of Python")
        info = ModelInfo(
            spec=spec,
            classes=tuple(str(name) for name in content["classes"]),
            channels=int(content["channels"]),
            image_size=int(content["image_size"]),
            normalisation=normalisation,
            view=content.get("view"),
        )
        told = content.get("answer")
        return info, None if told is None else tuple(float(value) for value in told)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path} does not describe a saved model: {reason}; save the model again.") from error


def description_digest(path: Path) -> str:
    """Return a hash of a ``model.json`` but for the answer in it, which may be taken out."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "view" not in content:  # one of a version that kept no answers
        return sha256(path)
    content.pop("answer", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _where_it_lies(spec: str, folder: Path) -> str:
    """Return a spec whose file of code is there, if it can be found: the network may have been moved with its code."""
    reference, mark, arguments = spec.partition("?")
    where, _, name = reference.rpartition(":")
    path = Path(where)
    if path.suffix != ".py" or is_file(path):
        return spec
    for above in (*folder.resolve().parents, Path.cwd()):
        for first in range(1, len(path.parts)):
            candidate = above.joinpath(*path.parts[first:])
            if is_file(candidate):
                return f"{candidate}:{name}{mark}{arguments}"
    return spec


def not_saved(folder: Path) -> str:
    """Return the line that says why no saved model is found in ``folder``."""
    if not is_there(folder):
        return f"model: there is no folder {folder}; give a run folder or a saved model's."
    if is_folder(folder / "checkpoints"):
        return (
            f"model: {folder} is a run that has not finished; --resume it, then its model is in {folder / 'student'}."
        )
    return (
        f"model: {folder} holds no saved model (neither model.json nor student/model.json); give a run "
        "folder or a saved model's."
    )


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Return ``values`` as (1, channels, 1, 1): as they are, repeated from one, or averaged to one."""
    if len(values) not in (1, channels) and channels != 1:
        raise InputError(f"normalisation: expected one value or {channels} for {channels} channels, got {len(values)}.")
    if channels == 1:
        values = (sum(values) / len(values),)
    return torch.tensor(values, dtype=torch.float32).expand(channels).clone().view(1, channels, 1, 1)
