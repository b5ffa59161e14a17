"""What decides what a run or a tape is, wherever it lies: hashes of files and code, names without folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from spkd.data.augment import augmentation
from spkd.data.images import FileImages, ImageData
from spkd.data.list_spec import list_named, place_of
from spkd.data.load import named_set
from spkd.data.options import DataOptions
from spkd.files import is_file, is_folder, is_there, sha256
from spkd.imports import code_digest, import_object
from spkd.losses.methods import term_names
from spkd.models.saved_model import description_digest, find_meant, read_info
from spkd.models.spec import names_architecture
from spkd.models.weights import takes_average
from spkd.models.weights_source import has_foreign_weights, loaded_digest
from spkd.training.options import Request
from spkd.training.recipe import Recipe

Value = TypeVar("Value")

CODE_FILE = re.compile(r"[^+?]+\.py(?=:)")
"""A file of code in the spec of a network or a method."""


def run_identity(request: Request, config: Mapping[str, Any], data: ImageData, image_size: int) -> str:
    """Return a hash of a run's configuration, of the weights and code files that it names, and of the images.

    Where these lie is left out.
    """
    config = {name: value for name, value in config.items() if name not in ("data", "data_root", "unlabelled")}
    for name in ("model", "student", "teacher"):
        if name in config:
            config[name] = "a saved model" if find_meant(config[name]) is not None else code_name(config[name])
    for name in ("weights", "teacher_weights"):
        if config.get(name) is not None and Path(config[name]).is_file():
            config[name] = "a file"
    config["method"] = CODE_FILE.sub(lambda found: Path(found[0]).name, request.method)
    decided = {
        "config": config,
        "files": file_hashes(request),
        "images": data.fingerprint,
        "seen": [data.flip, data.normalisation_mean, data.normalisation_std],
        **if_given("view", data.chosen_view if request.data.view is None else None),
        **unlabelled_images(data),
        **weights_taken("weights", request.model, request.weights, data, image_size),
        **weights_taken("teacher_weights", request.teacher, request.teacher_weights, data, image_size),
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def tape_identity(request: Request, data: ImageData, image_size: int, recipe: Recipe) -> dict[str, Any]:
    """Return everything that decides what the teacher says of each batch, by name."""
    files = file_hashes(replace(request, model="", weights=None, method="none"))
    saved = find_meant(str(request.teacher))
    return {
        "teacher": code_name(str(request.teacher) if saved is None else read_info(saved).spec),
        "teacher_weights": None if "teacher_weights" in files else request.teacher_weights,
        "teacher_files": files,
        **if_given("teacher_normalisation", request.teacher_normalisation),
        **weights_taken("teacher_weights", request.teacher, request.teacher_weights, data, image_size),
        "images": data.fingerprint,
        **unlabelled_images(data),
        **if_given("mixup", repr(data.mixup) if data.mixup else None),
        **if_given("turns", "by multiples of 90 degrees" if data.turns else None),
        **if_given("draw", data.draw if data.draw != "plain" else None),
        "image_size": image_size,
        **if_given("channels", "1" if data.channels == 1 and isinstance(data.train, FileImages) else None),
        "augmentation": augmentation(
            data.flip, data.crop_scale, data.augment, in_files=isinstance(data.train, FileImages)
        ),
        "batch_size": recipe.batch_size,
        "seed": request.seed,
    }


def if_given(option: str, value: Value | None) -> dict[str, Value]:
    """Return an option where it is given: an identity without it is that of versions which did not have it."""
    return {} if value is None else {option: value}


def weights_taken(
    option: str, spec: str | None, weights: str | None, data: ImageData, image_size: int
) -> dict[str, str]:
    """Return what an identity holds of weights besides their name and file: nothing as a rule.

    Of weights in a saved model's architecture that are not its own, since earlier versions took that model's
    normalisation for theirs; of those that a user's callable loads by itself, a hash; of a file whose moving average
    is taken, since earlier versions took what lies beside it.
    """
    taken = {}
    if spec is not None and weights is not None and has_foreign_weights(spec, weights):
        taken[f"{option}_from"] = "elsewhere"
    if spec is not None and (digest := loaded_digest(spec, weights, data.channels, image_size)) is not None:
        taken[f"{option}_loaded"] = digest
    if weights is not None and is_file(weights) and takes_average(Path(weights)):
        taken[f"{option}_taken"] = "moving average"
    return taken


def unlabelled_images(data: ImageData) -> dict[str, str]:
    """Return what an identity holds of images without a label: nothing where there are none."""
    return if_given("unlabelled", data.unlabelled_fingerprint)


def file_hashes(request: Request) -> dict[str, str]:
    """Return a hash of each file of weights or code that the request names, so that a changed one is noticed."""
    named = {
        "model": request.model,
        "weights": request.weights,
        "teacher": request.teacher,
        "teacher_weights": request.teacher_weights,
        "method": request.method,
    }
    hashes = {}
    for option, text in named.items():
        if not text:
            continue
        for reference in term_names(text) if option == "method" else (text.partition("?")[0],):
            if ":" in reference and not is_there(reference):
                hashes[f"{option} {Path(reference).name}"] = code_digest(import_object(reference), reference)
        saved = find_meant(text) if option in ("model", "teacher") else None
        file = saved / "model.safetensors" if saved is not None else Path(text)
        if is_file(file):
            hashes[option] = sha256(file)
            description = file.with_name("model.json")
            if file.name == "model.safetensors" and is_file(description):
                hashes[f"{option} description"] = description_digest(description)
        if saved is not None and ":" in (reference := read_info(saved).spec.partition("?")[0]):
            hashes[f"{option} {Path(reference).name}"] = code_digest(import_object(reference), reference)
    return hashes


def code_name(spec: str) -> str:
    """Return a network's spec with the name of its file of code, without the path."""
    reference, mark, arguments = spec.partition("?")
    where, _, name = reference.rpartition(":")
    return f"{Path(where).name}:{name}{mark}{arguments}" if where.endswith(".py") else spec


def absolute(text: str | None) -> str | None:
    """Return ``text`` with the paths in it that exist made absolute, so that it means the same from any folder."""
    if text is None or is_there(text):
        return None if text is None else str(Path(text).resolve())
    return with_absolute_code(text)


def absolute_data(data: str) -> str:
    """Return the same of what names images; of a list's also ``root``.

    A file that is a link stays one: its paths begin where the link lies.
    """
    listed = list_named(data)
    if listed is None or is_folder(data):
        return str(absolute(data))
    file = Path(listed.file)
    there = str(file.parent.resolve() / file.name) if is_file(file) else listed.file
    return str(replace(listed, file=there, root=absolute(listed.root)))


def absolute_weights(weights: str | None) -> str | None:
    """Return the same of weights; a name of some, such as ``pretrained``, is no path, whatever is called so."""
    return absolute(weights) if weights is not None and is_file(weights) else weights


def absolute_network(spec: str) -> str:
    """Return the same of a network's spec; an architecture's name is no path."""
    return spec if names_architecture(spec) else str(absolute(spec))


def with_absolute_code(text: str) -> str:
    """Return a text with the paths of files of code in it made absolute."""
    return CODE_FILE.sub(lambda found: str(Path(found[0]).resolve()) if is_file(found[0]) else found[0], text)


def data_place(options: DataOptions) -> str | None:
    """Return where the images, or the list of them, lie or would lie, None where that is not known."""
    data, root = place_of(options.data), options.data_root
    below = Path(root or ".") / data
    if named_set(options) is not None:
        return None if root is None else str(below)
    return str(below) if not is_there(data) and is_there(below) else data


def input_paths(request: Request) -> dict[str, str | None]:
    """Return by option what may be a path, which is not to be written to."""
    model, teacher = (
        None if spec is None or names_architecture(spec) else spec for spec in (request.model, request.teacher)
    )
    return {
        "data": data_place(request.data),
        "data_root": request.data.data_root,
        "unlabelled": request.unlabelled,
        "model" if request.teacher is None else "student": model,
        "weights": request.weights,
        "teacher": teacher,
        "teacher_weights": request.teacher_weights,
    }
