"""The folder that a classifier is saved in: its weights, and what is to be known of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from spkd.errors import InputError, nearest
from spkd.files import (
    is_file,
    is_folder,
    is_there,
    names_beside,
    sha256,
    write_bytes_atomically,
    write_json_atomically,
)
from spkd.imports import is_of_python
from spkd.models.answers import KEPT, agree, answer, steady_answer
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.network import count_logits, input_channels
from spkd.models.spec import names_architecture, parse_spec, rebuild
from spkd.models.weights import load_exactly, read_tensors
from spkd.modes import usual_defaults
from spkd.taps import levels

_FORMAT = 1

RUN_MARK = "# A run of spkd."
"""How the ``config.yaml`` of a run begins, whose model is in the folder ``student`` beside it."""


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
    # Metadata as the transformers and timm libraries expect it of a PyTorch file.
    # Serialised in memory first: a disk that fills up then shows as an OSError with its reason.
    content = save(tensors, {"format": "pt"})
    write_bytes_atomically(folder / "model.safetensors", content)
    write_json_atomically(folder / "model.json", {"format": _FORMAT, **asdict(info), **told})


def save_model(network: nn.Module, folder: str | Path, info: ModelInfo | None = None) -> None:
    """Save a network that was trained in a loop of one's own, for ``spkd.load_model`` and every command.

    A model that is in the folder already is replaced. A network in half or double precision comes back in float32.

    Args:
        network: the network, wrapped or not, with any weights; or a classifier, which brings its own ``info``.
        folder: where to; not the folder of a run, whose own student would not be found any more.
        info: what is to be known of it. Its ``spec`` must build the same architecture: ``wrn-16-1``, ``timm/NAME``, or
            ``path/file.py:callable`` for one of your own. Its ``normalisation`` is what the loop did to images in
            [0, 1], since a saved model takes those.

    Raises:
        InputError: when ``info`` is missing or superfluous, does not fit the network, its spec builds another one, or
            the folder is a run's or cannot be written. Nothing is written then.

    >>> import tempfile
    >>> from spkd.models.wrn import WideResNet
    >>> info = ModelInfo("wrn-10-1", ("cat", "dog"), 3, 32, Normalisation((0.5,), (0.25,)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(WideResNet(10, 1, num_classes=2), folder, info)
    ...     load_classifier(folder).info.classes
    ('cat', 'dog')
    """
    if _is_of_run(Path(folder)):
        raise InputError(f"folder: {folder} is a run's, or has a model in student/, which this hides; save beside it.")
    wrapped = levels(network)
    own = next((level for level in wrapped if isinstance(level, Classifier)), None)
    if own is not None:
        if info is not None:
            raise InputError("info: the network is a classifier and brings its own; leave it out.")
        network, info = own.network, own.info
        wrapped = levels(network)
    if info is None:
        raise InputError("info: expected a ModelInfo, which tells what builds the network and what its classes are.")
    if info.spec.startswith("__main__:"):
        raise InputError(
            f"info: {info.spec} is known to this process alone; write the code to a file, and name "
            f"path/file.py:{info.spec.removeprefix('__main__:')}."
        )
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


def _is_of_run(folder: Path) -> bool:
    """Return whether a folder holds a run, or a model in ``student`` as a run does."""
    if is_file(folder / "student" / "model.json"):
        return True
    config = folder / "config.yaml"
    try:
        return is_file(config) and config.read_bytes().startswith(RUN_MARK.encode())
    except OSError:
        return False  # nobody's who may write there


def _built(info: ModelInfo) -> nn.Module:
    """Return the architecture that ``info`` names, with random weights; the random generators stay as they are."""
    with usual_defaults(), torch.random.fork_rng(devices=[]):
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
    given the saved weights, in float32; one that was saved in float32 answers to the same bits. It comes in eval mode,
    on the CPU; the state of the random generators is left as it was. Where the spec names code of your own, that is
    imported, which runs it. A classifier takes images in [0, 1] and has an ``info``, a :class:`ModelInfo`.

    Raises:
        InputError: when there is no saved model, a file of it is damaged, the spec's own file or package is
            gone, the weights do not fit what the spec now builds, or that answers otherwise than what was saved.
    """
    saved = _saved(folder)
    info = read_info(saved)
    path = saved / "model.safetensors"
    network = _built(info)
    load_exactly(network, read_tensors(path), f"{path} and {info.spec}")
    check_answer(network, saved)
    with usual_defaults():
        return Classifier(network, info).eval()


def saved_info(folder: str | Path) -> ModelInfo:
    """Return what is told of the classifier that :func:`load_classifier` would load.

    Raises:
        InputError: when there is no saved model, or its description is damaged.
    """
    return read_info(_saved(folder))


def _saved(folder: str | Path) -> Path:
    saved = find_saved(folder)
    if saved is None:
        raise InputError(not_saved(Path(folder)))
    return saved


def check_answer(network: nn.Module, saved: Path) -> None:
    """Look whether a network with the weights saved in a folder answers as the one that was saved there.

    Raises:
        InputError: when it does not.
    """
    info, told = _description(saved)
    if told is None:
        return
    now = answer(network, input_channels(network, info.channels, info.image_size), info.image_size)
    if now is not None and len(now) != min(KEPT, len(info.classes)):
        raise InputError(
            f"model {saved}: model.json names {len(info.classes)} classes, and the network has another head."
        )
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
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and this version reads {_FORMAT}")
        normalisation = Normalisation(content["normalisation"]["mean"], content["normalisation"]["std"])
        spec = _where_it_lies(str(content["spec"]), folder)
        if is_of_python(spec):
            raise ValueError(f"its spec {spec!r} names no network but a part of Python")
        info = ModelInfo(
            spec=spec,
            classes=content["classes"],
            channels=content["channels"],
            image_size=content["image_size"],
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
        hint = nearest(folder.name, names_beside(folder))
        return f"model: there is no folder {folder}; give a run folder or a saved model's.{hint}"
    if is_folder(folder / "checkpoints"):
        return (
            f"model: {folder} is a run that has not finished; once --resume or --finish has ended it, its model is in "
            f"{folder / 'student'}."
        )
    return (
        f"model: {folder} holds no saved model (neither model.json nor student/model.json); give a run "
        "folder or a saved model's."
    )
