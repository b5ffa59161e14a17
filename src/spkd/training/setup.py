"""From what a user asked for to what is trained: data, networks, layer pairs, objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spkd.data.images import ImageData
from spkd.data.load import load_data, named_set
from spkd.data.seeds import Use, mixed_seed
from spkd.data.stream import evaluation_batches
from spkd.data.vision_sets import VISION_SETS
from spkd.errors import InputError
from spkd.files import is_folder
from spkd.losses.methods import build_objective, method_label, term_names
from spkd.losses.objective import Objective
from spkd.models.build import BuiltModel, build_model
from spkd.models.classifier import Classifier, Normalisation
from spkd.models.network import HeadMismatch
from spkd.models.saved_model import find_meant, read_info
from spkd.models.weights import refuse_unreadable
from spkd.models.weights_source import has_pretrained, is_of_library
from spkd.pairing import pair_taps, pair_with_ends
from spkd.taps import TapPair
from spkd.training.criterion import criterion_of
from spkd.training.identity import (
    absolute,
    absolute_data,
    absolute_network,
    absolute_weights,
    if_given,
    input_paths,
    run_identity,
    tape_identity,
    with_absolute_code,
)
from spkd.training.normalisation import read_normalisation
from spkd.training.notes import notes_of_images, notes_of_learnt, notes_of_recipe
from spkd.training.options import Request, Runtime
from spkd.training.recipe import Recipe, choose_preset, preset
from spkd.training.run_folder import NOT_SAID, refuse_inputs
from spkd.training.seen import (
    another_view,
    as_the_student_sees,
    image_size_for,
    other_sizes,
    own_sizes,
    teacher_size_for,
)
from spkd.training.tape import Tape


@dataclass(frozen=True)
class Setup:
    """All that a run needs, built and checked.

    Attributes:
        request: what was asked for.
        recipe: the recipe with the user's values in it.
        data: the images.
        image_size: side length at which the student sees them.
        teacher_size: side length at which the teacher sees the same.
        student: the network to train.
        teacher: the trained network; None where there is none, or where a tape holds all that it has to say.
        objective: the loss.
        notes: lines to say to the user, those about the images first.
        notes_of_data: those about the images.
        tape: what there is in the folder of the tape that was asked for, None where nothing is.
    """

    request: Request
    recipe: Recipe
    data: ImageData
    image_size: int
    teacher_size: int
    student: Classifier
    teacher: Classifier | None
    objective: Objective
    notes: tuple[str, ...]
    notes_of_data: tuple[str, ...]
    tape: Tape | None = None

    @property
    def plays(self) -> bool:
        """Whether the tape holds all that the teacher has to say, which is then not loaded."""
        return self.request.teacher is not None and self.teacher is None

    def tape_identity(self) -> dict[str, Any]:
        """Return everything that decides what the teacher says of each batch, by name."""
        return tape_identity(self.request, self.data, self.teacher_size, self.recipe)

    def config(self) -> dict[str, Any]:
        """Return everything that decides the result, flat, as the command line's options."""
        request, recipe = self.request, asdict(self.recipe)
        losses = recipe.pop("losses")
        network: dict[str, Any] = {
            "model" if request.teacher is None else "student": absolute_network(request.model),
            "weights": absolute_weights(request.weights),
            **if_given("normalisation", request.normalisation),
        }
        data = asdict(request.data)
        for how in ("workers", "download"):
            data.pop(how)
        if request.teacher is None:
            recipe.pop("teacher_precision")
        else:
            network |= {
                "teacher": absolute_network(request.teacher),
                "teacher_weights": absolute_weights(request.teacher_weights),
                **if_given("teacher_normalisation", request.teacher_normalisation),
                **if_given("teacher_size", request.teacher_size),
                "method": with_absolute_code(request.method),
                "taps": list(request.taps),
            }
        config = {
            **network,
            "replace_head": request.replace_head,
            **data,
            "data": self._data_name(),
            "data_root": absolute(data["data_root"]),
            **if_given("unlabelled", absolute(request.unlabelled)),
            "image_size": self.image_size,
            "seed": request.seed,
            "recipe": recipe.pop("name"),
            **recipe,
            "milestones": list(self.recipe.milestones),
            **(losses if request.teacher is not None else {}),
        }
        return {name: value for name, value in config.items() if (name, value) not in NOT_SAID.items()}

    def _data_name(self) -> str:
        """Return the data's name, or the absolute path of their folder or list."""
        named = self.request.data
        if named.is_digits:
            return "digits"
        return named.data if named.data in VISION_SETS else absolute_data(named.data)

    def identity(self) -> str:
        """Return a hash of everything that decides the result, wherever it lies."""
        return run_identity(self.request, self.config(), self.data, self.image_size)


def pinned(request: Request, setup: Setup) -> Request:
    """Return ``request`` with image size and recipe as in ``setup``, so that networks to be compared share them."""
    data = replace(request.data, image_size=setup.image_size)
    return replace(request, data=data, recipe=setup.recipe.name)


def set_up(request: Request, runtime: Runtime | None = None) -> Setup:
    """Build and check everything that ``request`` names.

    The student's first weights are a function of the request's seed alone. Where the tape that ``runtime`` names
    holds all that the teacher has to say, the teacher is not loaded.

    Raises:
        InputError: for anything that does not exist, does not fit, or would train on nothing.
    """
    request = replace(request, method=method_label(request.method))
    _check_request(request)
    if runtime is not None and runtime.tape is not None:
        refuse_inputs("--tape", Path(runtime.tape), input_paths(request))
    data = as_the_student_sees(load_data(request.data, request.unlabelled), request)
    notes = list(data.notes)
    image_size = image_size_for(request, data)
    teacher_size = teacher_size_for(request, image_size)
    without = "" if data.unlabelled is None else f" (and {len(data.unlabelled)} without a label)"
    counts = f"{len(data.train)} training{without}, {len(data.val)} validation and {len(data.test)} test images"
    notes.append(f"{data.name}: {counts} of {len(data.classes)} classes, seen at {image_size} × {image_size} pixels")
    if teacher_size != image_size:
        notes.append(f"the teacher sees the same crops at {teacher_size} × {teacher_size} pixels")
    notes += notes_of_images(data, teacher_size)
    if data.flip and named_set(request.data) is None:
        notes.append(
            "training images are mirrored half the time; if a mirror image may be of another class, give --no_flip"
        )
    notes_of_data = tuple(notes)
    notes += notes_of_learnt(request, data)
    notes += other_sizes(request, image_size, teacher_size)
    notes += another_view(request, data)
    notes += _unasked_weights(request, data)
    normalisation = Normalisation(data.normalisation_mean, data.normalisation_std)
    torch.manual_seed(request.seed)
    student = build_model(
        request.model,
        classes=data.classes,
        channels=data.channels,
        image_size=image_size,
        normalisation=normalisation,
        weights=request.weights,
        own_normalisation=read_normalisation("normalisation", request.normalisation, request.model, request.weights),
        view=data.view,
        replace_head=request.replace_head or is_of_library(request.model, request.weights),
    )
    notes += student.notes
    recipe = _recipe(request, data, student.trained, notes)
    notes += notes_of_recipe(request, recipe, len(data.seen()))
    tape = _tape(request, runtime, data, teacher_size, recipe)
    teacher = None
    objective = _played_objective(request, recipe, student.classifier, tape, data, image_size)
    if request.teacher is not None and objective is None:
        built = _teacher(request, data, teacher_size, normalisation)
        notes += [f"teacher: {note.replace('--normalisation', '--teacher_normalisation')}" for note in built.notes]
        teacher = built.classifier
    if objective is None:
        sizes = (image_size, teacher_size)
        objective = _objective(request, _pairs(request, student.classifier, teacher, data, sizes), recipe, data)
    if objective.pairs:
        notes.append(
            "compared layers (student = teacher): "
            + ", ".join(f"{pair.student} = {pair.teacher}" for pair in objective.pairs)
        )
    if objective.terms:
        weights = {"cross-entropy": objective.cross_entropy, **{term.name: term.weight for term in objective.terms}}
        notes.append("loss weights: " + ", ".join(f"{name} {weight:g}" for name, weight in weights.items()))
    return Setup(
        request,
        recipe,
        data,
        image_size,
        teacher_size,
        student.classifier,
        teacher,
        objective,
        tuple(notes),
        notes_of_data,
        tape,
    )


def _check_request(request: Request) -> None:
    """Refuse what needs neither data nor networks to be refused."""
    if not 0 <= request.seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, not {request.seed}")
    (Recipe() if request.recipe is None else preset(request.recipe)).override(request.overrides)
    if term_names(request.method) and request.teacher is None:
        raise InputError(f"--method {request.method} needs a teacher: give --teacher")
    own_sizes(request)  # of which weights that are not there are noticed
    for weights in (request.weights, request.teacher_weights):
        refuse_unreadable(weights)
    student = find_meant(request.model)
    if request.data.grey and student is not None and read_info(student).channels == 3:
        raise InputError(
            f"--grey: {request.model} was made for colour images, and would be shown those again later; leave it out"
        )
    if request.unlabelled is not None and request.teacher is None:
        raise InputError("--unlabelled: without labels, a student can only learn what a teacher says: give --teacher")
    if request.teacher is not None and not term_names(request.method):
        raise InputError("--method none learns nothing from a teacher: leave out --teacher, or name a method")


def _unasked_weights(request: Request, data: ImageData) -> list[str]:
    """Return a line where a network that is to see photographs begins at random though its library has weights."""
    if request.weights is not None or data.native_size is not None or not has_pretrained(request.model):
        return []
    return [f"{request.model} starts from random weights; with few images, --weights pretrained usually does better"]


def _recipe(request: Request, data: ImageData, trained: bool, notes: list[str]) -> Recipe:
    if request.recipe is not None:
        chosen, reason = preset(request.recipe), ""
    else:
        chosen, why = choose_preset(request.data.is_digits, request.model, trained)
        reason = f" ({why})"
    images = len(data.train) + len(data.unlabelled or ())
    size = chosen.override(request.overrides).batch_size
    if request.overrides.get("batch_size") is None and size > images // 4:
        size = max(2, 2 ** int(math.log2(max(2, images // 4))))
        reason += f", batch lowered from {chosen.batch_size} for {images} images"
    recipe = chosen.for_batches_of(size).override(request.overrides)
    if recipe.batch_size > images:
        raise InputError(
            f"a batch of {recipe.batch_size} is larger than the training set of {images} images: "
            f"give a smaller one, such as --batch_size {max(2, images // 4)}"
        )
    notes.append(
        f"recipe {recipe.name}{reason}: {recipe.epochs} epochs, batch {recipe.batch_size}, "
        f"{recipe.optimizer}, lr {recipe.lr:g}, {recipe.schedule}, {recipe.precision}"
        + (f", label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else "")
        + (", class weights balanced" if recipe.class_weights == "balanced" else "")
        + (", select balanced" if recipe.select == "balanced" else "")
    )
    return recipe


def _teacher(request: Request, data: ImageData, image_size: int, normalisation: Normalisation) -> BuiltModel:
    """Build the trained teacher: with the data's classes where its head has as many, else with its own."""
    spec, weights = str(request.teacher), request.teacher_weights
    own = read_normalisation("teacher_normalisation", request.teacher_normalisation, spec, weights)

    def build(classes: tuple[str, ...] | None) -> BuiltModel:
        return build_model(
            spec,
            classes=classes,
            channels=data.channels,
            image_size=image_size,
            normalisation=normalisation,
            weights=weights,
            own_normalisation=own,
        )

    try:
        built = build(data.classes)
    except HeadMismatch as error:
        if not error.found:
            raise InputError(
                f"--teacher {spec}: {weights} holds no head: build the network without one (with timm: ?num_classes=0),"
                " and compare layers by --method sp or at"
            ) from error
        if "kd" in term_names(request.method):
            raise InputError(
                f"--teacher {spec} has other classes than the data, so kd cannot compare their logits: use --method sp "
                f"or at, or a teacher of these classes (its head has {error.found}, the data have {error.wanted})"
            ) from error
        built = build(None)
    if not built.trained:
        folder = f"./{spec} for the folder of that name" if is_folder(spec) else "such as `spkd train` writes"
        raise InputError(
            f"--teacher {spec} seems to have random weights: give --teacher_weights FILE, or 'pretrained' for the "
            f"library's own or those that your callable loads itself, or a run folder as --teacher, {folder}"
        )
    return built


def _pairs(
    request: Request,
    student: Classifier,
    teacher: Classifier | Sequence[str] | None,
    data: ImageData,
    sizes: tuple[int, int],
) -> tuple[TapPair, ...]:
    """Return the pairs of layers that the method compares; of the teacher its block ends will do.

    ``sizes`` are those at which student and teacher see images.
    """
    if teacher is None or set(term_names(request.method)) <= {"kd"}:
        return ()
    images = _two_images(data, sizes[0])
    if isinstance(teacher, Classifier):
        shown = _two_images(data, sizes[1])
        return tuple(pair_taps(student, teacher, images, request.taps, teacher_images=shown))
    return tuple(pair_with_ends(student, teacher, images, request.taps))


def _two_images(data: ImageData, image_size: int) -> Tensor:
    return next(evaluation_batches(data.val, image_size=image_size, batch_size=2, device=torch.device("cpu")))[0]


def _tape(request: Request, runtime: Runtime | None, data: ImageData, image_size: int, recipe: Recipe) -> Tape | None:
    """Return the tape that is to be played or widened, None where there is none yet.

    Raises:
        InputError: when it was recorded from another teacher or another stream.
    """
    if runtime is None or runtime.tape is None:
        return None
    if request.teacher is None:
        raise InputError("--tape records what a teacher says: give --teacher as well")
    tape = Tape.open(Path(runtime.tape))
    if tape is not None:
        identity = tape_identity(request, data, image_size, recipe)
        tape.check(identity, recipe.teacher_precision, runtime.tape_dtype)
    return tape


def _played_objective(
    request: Request, recipe: Recipe, student: Classifier, tape: Tape | None, data: ImageData, image_size: int
) -> Objective | None:
    """Return the objective where the tape holds all that it needs of the teacher, else None."""
    if tape is None:
        return None
    pairs = _pairs(request, student, tape.manifest.block_ends, data, (image_size, image_size))
    objective = _objective(request, pairs, recipe, data)
    steps = tape.steps_in(recipe.epochs)
    return objective if tape.recorded(objective.memories, steps) == steps else None


def _objective(request: Request, pairs: tuple[TapPair, ...], recipe: Recipe, data: ImageData) -> Objective:
    """Return the objective; random numbers that a loss starts from are those of the seed, with a teacher or a tape."""
    seed = mixed_seed(Use.LOSSES, request.seed)
    torch.manual_seed(seed)
    return build_objective(request.method, pairs, recipe.losses, criterion=criterion_of(recipe, data), seed=seed)
