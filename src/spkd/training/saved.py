"""A trained network taken up again and evaluated, beside its teacher where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.images import ImageData
from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.files import is_file, is_folder, is_there, require_writable
from spkd.models.build import build_model
from spkd.models.classifier import Classifier, Normalisation, same_classes
from spkd.models.cost import latency_ms
from spkd.models.exported import fixed_batch, is_exported, load_either
from spkd.models.network import HeadMismatch
from spkd.models.saved_model import find_meant, find_saved, load_classifier, not_saved, savable_state, save_classifier
from spkd.models.weights import refuse_unreadable
from spkd.models.weights_source import model_defaults
from spkd.outputs import are_probabilities
from spkd.rows import Rows
from spkd.training.batches import batches_for
from spkd.training.counting import counting
from spkd.training.devices import make_fabric
from spkd.training.evaluation import Evaluation, evaluate
from spkd.training.identity import data_place
from spkd.training.normalisation import read_normalisation
from spkd.training.options import Runtime
from spkd.training.own_images import SPLITS, numbered_as, part_of
from spkd.training.prediction import Answers, probabilities_of
from spkd.training.progress import Display
from spkd.training.ranking import Ranking, has_room
from spkd.training.run_folder import config_of, what_changed
from spkd.training.seen import STREAMED_SIZE


def evaluate_saved(
    network: str | Path,
    options: DataOptions,
    *,
    split: str,
    teacher: str | None,
    accelerator: str,
    display: Display | None = None,
    weights: str | None = None,
    normalisation: str | None = None,
    save: str | None = None,
    out: str | None = None,
    per_class: bool = False,
) -> Evaluation:
    """Evaluate a network on one split of ``options``' images.

    It is the one saved in the folder ``network`` or exported to the ONNX file ``network``, or the architecture that
    this names, with ``weights``, which were trained with ``normalisation``. Agreement is measured with ``teacher`` (the
    folder of a saved network), or with the run's own teacher where that is such a folder and tells the same classes
    apart. A ``display`` shows how many images are done, and lines for what is to be known of them and of the network,
    as how quick an exported file is here; one when the images of the run's own data are no longer those that it was
    trained with. A network with ``weights`` is kept in the new folder ``save``, as one of a saved model. Into the file
    ``out`` goes what the network said of each image. With ``per_class`` the area under the ROC curve of each class is
    measured, unless the probabilities are too many.

    Raises:
        InputError: when there is no such network, its classes are not those of the images, there is no such split, or
            ``save`` or ``out`` cannot be written.
    """
    shown = display or Display()
    say = shown.say
    # All that needs no images comes before them, which may take long.
    if split not in SPLITS:
        raise InputError(f"--split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {split!r}")
    device = make_fabric(Runtime(accelerator=accelerator)).device  # which knows how many threads there may be
    saved = None if weights is not None else _saved(network, normalisation)
    if saved is None:
        _require_weights(str(network), weights, normalisation)
    elif is_exported(network):
        _note_exported(saved, options, say)
    if teacher is not None and find_saved(teacher) is None:
        raise InputError(f"--teacher {teacher} holds no saved model")
    if save is not None:
        _check_new(network, Path(save), is_saved=saved is not None)
        _require_beside(options, "--save", Path(save) / "model.json")
    if out is not None:
        _require_beside(options, "--out", Path(out))
    data = load_data(options, divided=split != "all")
    for note in data.notes:
        say(note)
    images = part_of(data, split)
    classifier = saved or _built(str(network), weights, normalisation, data, options, say)
    images = numbered_as(classifier.info, images, data, say)
    if save is not None:
        savable_state(classifier)
    size = options.image_size or classifier.info.image_size
    if saved is None:
        say(f"images are shown at {size} × {size} pixels")
    batches = batches_for(classifier.info, images, device, workers=options.workers, image_size=size, view=options.view)
    if saved is not None and split != "all" and (changed := what_changed(network, data, options)):
        say(f"warning: {changed[1]}; it may have been trained on some of the images that it is evaluated on")
    beside = None if teacher is None and saved is None else _teacher(Path(network), teacher, classifier, say)
    if beside is not None:
        if beside.info.image_size != size:
            made = beside.info.image_size
            say(f"warning: the teacher was made for images of {made} × {made} pixels, but is shown {size} × {size}")
        beside.to(device)
    probable: list[bool] = []
    with Rows(None if out is None else Path(out)) as rows:
        answers = None if out is None else Answers(images, classifier.info.classes, rows)
        ranking = _ranking(len(images), len(classifier.info.classes), say) if per_class else None

        def each(logits: Tensor, targets: Tensor, said: Tensor | None) -> None:
            probable.append(are_probabilities(logits))
            if answers is not None or ranking is not None:
                shares = probabilities_of(logits)
            if answers is not None:
                answers.add(shares, targets, said)
            if ranking is not None:
                ranking.add(shares, targets)
            count(len(targets))

        with counting(shown, "evaluating", len(images)) as count:
            measured = evaluate(classifier.to(device), batches, classifier.info.classes, beside, each)
        if all(probable):
            say(
                "warning: the network returns probabilities instead of logits, so that softmax is applied twice, here "
                "and in `predict`; leave out the network's softmax, or take the logarithm of its output"
            )
        if save is not None:
            save_classifier(classifier.cpu(), Path(save))
        if out is not None:
            rows.save(Path(out))
    return measured if ranking is None else ranking.put_into(measured)


def _ranking(images: int, classes: int, say: Callable[[str], None]) -> Ranking | None:
    """Return what measures the areas under the ROC curves; None where that would take too much memory."""
    if has_room(images, classes):
        return Ranking(images, classes)
    say(f"AUC is not shown: {images:,} images have too many probabilities of {classes:,} classes to rank them")
    return None


def _saved(network: str | Path, normalisation: str | None) -> Classifier | None:
    """Return the saved model that is meant, None where an architecture is."""
    if not is_exported(network) and find_saved(network) is None:
        if is_folder(network):
            raise InputError(not_saved(Path(network)))
        return None
    if normalisation is not None:
        raise InputError(f"--normalisation: {network} is a saved model and brings its own; leave it out")
    return load_either(network)


def _note_exported(exported: Classifier, options: DataOptions, say: Callable[[str], None]) -> None:
    """Say how quick an exported file is here; its images have one size."""
    info = exported.info
    if options.image_size not in (None, info.image_size):
        raise InputError(f"--image_size: {info.spec} takes images of {info.image_size} × {info.image_size} pixels only")
    batch = fixed_batch(exported) or 1
    took = latency_ms(exported, torch.rand(batch, info.channels, info.image_size, info.image_size))
    shown = "one image" if batch == 1 else f"{batch} images, as it takes them"
    say(f"{info.spec} takes {took:.2f} ms for {shown}, by onnxruntime (threads: {torch.get_num_threads()})")


def _require_weights(spec: str, weights: str | None, normalisation: str | None) -> None:
    """Refuse an architecture of which no weights are there to be evaluated, as far as that shows without images."""
    model_defaults(spec, weights)
    refuse_unreadable(weights)
    read_normalisation("normalisation", normalisation, spec, weights)
    if weights is None:
        raise InputError(
            f"{spec} seems to have random weights: give --weights FILE, or 'pretrained' for the library's own or those "
            "that your callable loads itself, or a saved model's folder"
        )


def _require_beside(options: DataOptions, option: str, file: Path) -> None:
    """Refuse a file that cannot be written, is the list of images, or would lie in a folder of images of a class."""
    place = data_place(options)
    if place is not None and is_file(place) and Path(place).resolve() == file.resolve():
        raise InputError(f"{option} {file} is the list of --data: give another file")
    if place is not None and is_folder(place) and Path(place).resolve() in file.resolve().parents[1:]:
        raise InputError(
            f"{option} lies inside --data {place}, in a folder that would be taken for a class: give another"
        )
    require_writable(file)


def _check_new(network: str | Path, folder: Path, *, is_saved: bool) -> None:
    if is_saved:
        raise InputError(f"--save: {network} is a saved model already; leave it out")
    if is_there(folder) and not (is_folder(folder) and all(entry.name.startswith(".") for entry in folder.iterdir())):
        raise InputError(f"--save {folder} already exists: give a new folder")


def _built(
    spec: str,
    weights: str | None,
    normalisation: str | None,
    data: ImageData,
    options: DataOptions,
    say: Callable[[str], None],
) -> Classifier:
    """Return a network of the user's, for the classes of the images."""
    known = model_defaults(spec, weights)
    sizes = (options.image_size, known.image_size, data.native_size, STREAMED_SIZE)
    try:
        built = build_model(
            spec,
            classes=data.classes,
            channels=data.channels,
            image_size=next(size for size in sizes if size is not None),
            normalisation=Normalisation(data.normalisation_mean, data.normalisation_std),
            weights=weights,
            own_normalisation=read_normalisation("normalisation", normalisation, spec, weights),
            view=options.view or known.view or data.view,
        )
    except HeadMismatch as error:
        differing = f"has {error.found} classes, {data.name} has {error.wanted}"
        if error.found == error.wanted:
            differing = f"has other classes than {data.name}"
        raise InputError(f"{spec} with {weights} {differing}") from error
    for note in built.notes:
        say(note)
    if options.image_size is None and known.size_of is not None:
        say(f"{known.unsaid_size()}; if they were trained at another size, give --image_size")
    return built.classifier


def _teacher(folder: Path, named: str | None, student: Classifier, say: Callable[[str], None]) -> Classifier | None:
    """Return the teacher that is named, or else the run's own where it can be had."""
    if named is not None:
        teacher = load_classifier(named)
        if not same_classes(teacher, student):
            raise InputError(f"--teacher {named} has other classes than {folder}")
        return teacher
    config = config_of(folder)
    own = find_meant(str(config.get("teacher")))
    if own is None or config.get("teacher_weights") is not None or config.get("teacher_size") is not None:
        return None  # not to be had, or it sees larger images
    try:
        teacher = load_classifier(own)
    except InputError as error:
        say(f"agreement with the teacher is not measured: {error}")
        return None
    return teacher if same_classes(teacher, student) else None
