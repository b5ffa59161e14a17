"""What a user should know of images, networks and recipe before a training."""

from __future__ import annotations

import re
from statistics import median

import torch

from spkd.data.decoding import header_size
from spkd.data.images import FileImages, ImageData
from spkd.data.list_spec import list_named
from spkd.losses.methods import term_names
from spkd.models.saved_model import find_meant
from spkd.training.options import Request
from spkd.training.recipe import Recipe, preset
from spkd.training.run_folder import what_changed

LOOKED_AT = 16
"""Files whose size is looked at."""
LARGE = 4
"""How many times the side that the networks see an image's shorter side has from which on it is called large."""
UNEQUAL = 3
"""How many times as many images the largest class has from which on classes are called unequal."""
FEW_HELD_OUT = 20
"""Validation images of a class below which they are called few."""
SHIFT = 32
"""Pixels by which TrivialAugment shifts an image at the most, whatever its size."""
FEW_STEPS = 1000
"""Steps below which those of a recipe are called few."""


def notes_of_images(data: ImageData, image_size: int) -> list[str]:
    """Return a line where classes are of unequal size, where few images of one are held out, where files are large, and
    where images are shifted away.
    """
    notes = (_unequal(data), _few_held_out(data), _large(data, image_size), _shifted(data, image_size))
    return [note for note in notes if note is not None]


def notes_of_learnt(request: Request, data: ImageData) -> list[str]:
    """Return a line for each network that may have learnt from images which are held out here.

    It is one that was trained on the same folder when that held other images, or with other groups, so that others were
    cut off; or on the same list by another column of sets or groups.
    """
    networks = [("teacher", request.teacher, request.teacher_weights), ("student", request.model, request.weights)]
    notes = []
    for name, spec, weights in networks:
        folder = None if spec is None or weights is not None else find_meant(spec)
        if folder is None or not (data.cut or list_named(request.data.data)):
            continue
        changed = what_changed(folder, data, request.data)
        if changed is not None and (data.cut or changed[0] == "columns"):
            why = f"{data.name} has changed since the {name} was trained on it"
            advice = "if a set grows, make its val/ and test/ yourself"
            if changed[0] == "groups":
                why, advice = f"the {name} was trained with other --groups", "train it with these groups"
            elif changed[0] == "columns":
                why, advice = f"the {name} was trained with another column of sets or groups", "train it with this one"
            notes.append(
                f"warning: {why}, so other images are held out now, of which the {name} may have learnt some: errors "
                f"may be too low; {advice}"
            )
    return notes


def notes_of_recipe(request: Request, recipe: Recipe, images: int) -> list[str]:
    """Return a line for each thing that the user chose to no effect, and one where a run is too short for its γ, or
    with so many training images is short at all.
    """
    terms = term_names(request.method)
    usual = preset(recipe.name).for_batches_of(recipe.batch_size)
    weights = {"gamma": "sp", "alpha": "kd", "temperature": "kd", "beta": "at"}
    idle = {name: f"method {request.method}" for name, term in weights.items() if term not in terms}
    if recipe.schedule != "step":
        idle |= dict.fromkeys(("milestones", "lr_decay"), f"schedule {recipe.schedule}")
    if recipe.optimizer != "sgd":
        idle["momentum"] = f"optimizer {recipe.optimizer}"
    as_usual = {**vars(usual), **vars(usual.losses)}
    notes = [
        f"--{name} has no effect with the {idle[name]}"
        for name, value in request.overrides.items()
        if name in idle and value not in (None, as_usual[name])
    ]
    is_chosen = request.overrides.get("gamma") is not None or re.search(r"\bsp\?[^+]*weight=", request.method)
    if recipe.name == "paper" and "sp" in terms and recipe.epochs <= usual.epochs // 4 and not is_chosen:
        gamma = recipe.losses.gamma
        notes.append(
            f"warning: γ = {gamma:g} is for {usual.epochs} epochs and may do harm in {recipe.epochs}; try --gamma "
            f"{gamma / 10:g}: on small images of CIFAR-10, a tenth did better in 12 epochs"
        )
    steps = recipe.epochs * (images // recipe.batch_size)
    if steps < FEW_STEPS and request.overrides.get("epochs") is None and recipe.name != "digits":
        notes.append(f"the run has only {steps} steps: more --epochs may lower the error by more than any method does")
    return notes


def _shifted(data: ImageData, image_size: int) -> str | None:
    if data.augment != "trivial" or image_size > SHIFT:
        return None
    return (
        f"warning: --augment trivial shifts one image in seven by up to {SHIFT} pixels, which leaves little or nothing "
        "of images this small; --augment rand shifts by a share of their size"
    )


def are_unequal(data: ImageData) -> bool:
    """Return whether the largest class has at least ``UNEQUAL`` times as many training images as the smallest."""
    counts = torch.bincount(data.train.targets, minlength=len(data.classes))
    return bool(counts.max() >= UNEQUAL * counts.min())


def _unequal(data: ImageData) -> str | None:
    if not are_unequal(data):
        return None
    counts = torch.bincount(data.train.targets, minlength=len(data.classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    is_met = data.draw != "plain"
    return (
        f"classes are unequal, from {counts[least]} training images of {data.classes[least]!r} to {counts[most]} of "
        f"{data.classes[most]!r}: the balanced error, the mean of the classes' own, is shown too; --select balanced "
        f"chooses by it{'' if is_met else ', --class_weights balanced or --draw balanced trains for it'}"
    )


def _few_held_out(data: ImageData) -> str | None:
    """Return a line where one validation image of the smallest class decides more of that class than of others."""
    counts = torch.bincount(data.val.targets, minlength=len(data.classes))
    least, count = int(counts.argmin()), int(counts.min())
    if count >= FEW_HELD_OUT or not (are_unequal(data) or counts.max() >= max(FEW_HELD_OUT, UNEQUAL * count)):
        return None
    name = data.classes[least]
    if not count:
        return f"validation set: no image of {name!r}, so the error of that class is not known"
    images = f"{count} image{'s' * (count > 1)} of {name!r}"
    return f"validation set: only {images}, so each is {100 / count:.1f} points of that class's error"


def _large(data: ImageData, image_size: int) -> str | None:
    if not isinstance(data.train, FileImages):
        return None
    paths = data.train.paths
    sizes = [header_size(path) for path in paths[:: -(-len(paths) // LOOKED_AT)]]
    side = median([min(size) for size in sizes if size is not None] or [0])
    if side <= LARGE * image_size:
        return None
    return (
        f"images are large, with a shorter side of {side:.0f} pixels, and are read again in every epoch: copies with "
        f"{2 * image_size} pixels are enough for an image size of {image_size}, and are read in a fraction of the time"
    )
