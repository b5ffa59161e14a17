"""The options of each command, made from the dataclasses that own them."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from spkd.cli.parser import new_parser
from spkd.data.options import DataOptions
from spkd.export_options import TOLERANCE, WEIGHT_BITS, WeightBits
from spkd.losses.weights import LossWeights
from spkd.studies.options import RunnerOptions
from spkd.studies.scales import ReproduceOptions
from spkd.training.options import DEFAULT_STUDENT, DEFAULT_TEACHER, NORMALISATIONS, Runtime
from spkd.training.recipe import PRESETS, Recipe

_ARCHITECTURES = (
    "wrn-DEPTH-WIDTH, torchvision/NAME, timm/NAME, package.module:callable, file.py:callable (arguments follow as "
    "?argument=value&...)"
)
_SPECS = f"{_ARCHITECTURES}, or the folder of a run or saved model"
_WEIGHTS = (
    "'pretrained' (the library's own, or those that your callable loads itself), the name of torchvision weights, or "
    "a .safetensors, .pt, .pth or .ckpt file"
)
_METHOD = (
    "losses joined by +: sp (similarity-preserving), kd (soft targets), at (attention transfer), "
    "package.module:Class, file.py:Class; each may have weights of its own, as in sp?weight=300, "
    "at?weight=10&layers=last, kd?alpha=0.5&temperature=2"
)
_SEE_ACTION = "`spkd tape ACTION --help` shows the options of each."
_TRAINING_VIEWS = ("no_flip", "turns", "crop_scale", "augment", "mixup", "draw")
_DIVIDING = ("devices", "sync_batchnorm", "timeout_seconds")
_RECIPE = (
    f"preset of the options below: {', '.join(PRESETS)} (default: chosen by images, weights and network; a line says "
    "which)"
)


def train_parser() -> ArgumentParser:
    """Return the options of ``spkd train``."""
    parser = new_parser("Train a network alone, for example a teacher.")
    group = parser.add_argument_group("network")
    _add_text(group, "model", f"the network: {_SPECS} (default: on the digits {DEFAULT_TEACHER})")
    _add_weights(group, "the network's")
    _add_fields(parser, DataOptions, "images")
    _add_training(parser, distilled=False)
    _add_out(parser)
    return parser


def distill_parser() -> ArgumentParser:
    """Return the options of ``spkd distill``."""
    parser = new_parser(
        "Train a small network (the student) with the help of a large one (the teacher). On the digits, without "
        "--teacher, a teacher is trained first, and the student is trained alone too, to compare."
    )
    _add_networks(parser)
    group = parser.add_argument_group("method")
    _add_text(group, "method", _METHOD, "sp+kd")
    group.add_argument("--alone", action="store_true", help="also train the student without the teacher, and show both")
    _add_images(parser)
    _add_training(parser)
    _add_fields(parser, LossWeights, "loss weights (default: the recipe's)", optional=True)
    _add_out(parser)
    return parser


def compare_parser() -> ArgumentParser:
    """Return the options of ``spkd compare``."""
    parser = new_parser(
        "Train every method with every seed, and test, paired by seed, whether it helped. With several --students, "
        "also show what each costs, to choose one. When the command is called again, finished runs are not repeated."
    )
    _add_networks(parser)
    group = parser.add_argument_group("several students")
    text = "students to choose from, instead of --student; each is written as for --student"
    group.add_argument("--students", type=str, nargs="+", metavar="STUDENT", help=text)
    group = parser.add_argument_group("methods")
    methods = ["none", "kd", "at", "sp", "sp+kd"]
    text = f"none (the student alone), or {_METHOD}"
    group.add_argument("--methods", type=str, nargs="+", default=methods, metavar="METHOD", help=text)
    against = "method that the others are compared with (default: none, or the first if none is not among the methods)"
    _add_text(group, "against", against)
    group.add_argument("--seeds", type=int, default=5, help="number of seeds, which are 0, 1, ...")
    _add_images(parser)
    _add_training(parser, seed=False, but=("tape", *_DIVIDING))
    _add_fields(parser, LossWeights, "loss weights (default: the recipe's)", optional=True)
    _add_fields(parser, RunnerOptions, "where the runs are carried out")
    group = parser.add_argument_group("output")
    _add_text(
        group, "out", "folder of the comparison (default: runs/compare-DATA, with several students runs/students-DATA)"
    )
    group.add_argument("--overwrite", action="store_true", help="also repeat what has finished")
    return parser


def tape_parser() -> ArgumentParser:
    """Return the options of ``spkd tape``, still without its actions."""
    return new_parser("Record once what a teacher says of every training batch, for any number of students.")


def add_tape_actions(parser: ArgumentParser) -> None:
    """Add ``record`` and ``info`` to the options of ``spkd tape``."""
    added = parser.add_subcommands(
        required=True, dest="action", metavar="ACTION", title="actions", description=_SEE_ACTION
    )
    texts = {"record": "record a tape before training", "info": "show what a tape holds, and how much is recorded"}
    for name, action in tape_actions().items():
        added.add_subcommand(name, action, help=texts[name])


def tape_actions() -> dict[str, ArgumentParser]:
    """Return the options of each action of ``spkd tape``."""
    return {"record": _record_parser(), "info": _info_parser()}


def _record_parser() -> ArgumentParser:
    parser = new_parser(
        "Record a tape before the runs that will play it with `spkd distill --tape DIR`. Those must have the same "
        "teacher, images, batch size and seed; student, method, loss weights and epochs may differ. If a student would "
        "get another recipe, give its run the same --batch_size. After a stop, the same command continues."
    )
    parser.add_argument("folder", type=str, help="folder of the tape")
    _add_networks(parser, "required")
    group = parser.add_argument_group("methods")
    group.add_argument("--methods", type=str, nargs="+", default=["sp+kd"], metavar="METHOD", help=_METHOD)
    _add_images(parser)
    _add_training(parser, but=("tape", "compile", "checkpoint_seconds", "sync_batchnorm"))
    return parser


def _info_parser() -> ArgumentParser:
    parser = new_parser("Show what a tape holds, and how much of it is recorded.")
    parser.add_argument("folder", type=str, help="folder of the tape")
    return parser


def evaluate_parser() -> ArgumentParser:
    """Return the options of ``spkd evaluate``."""
    parser = new_parser("Measure how good a trained network is: the network of a run, or any other with its weights.")
    parser.add_argument(
        "network",
        type=str,
        help=f"folder of a run or saved model, or an exported .onnx file; or with --weights: {_ARCHITECTURES}",
    )
    _add_text(parser, "weights", f"weights of a network that is not a saved model: {_WEIGHTS}")
    _add_normalisation(parser, "normalisation", "the network's")
    text = "folder of a teacher, to measure how often both decide alike (default: the run's own teacher)"
    _add_text(parser, "teacher", text)
    _add_text(parser, "split", "images to evaluate on: test, val, train or all", "test")
    parser.add_argument("--per_class", action="store_true", help="also show error, precision and AUC of each class")
    _add_text(
        parser,
        "out",
        "also write each image's label, the class it is taken for and the probability of every class to this CSV file",
    )
    _add_text(parser, "save", "also save the network in this new folder, which every command accepts")
    _add_text(parser, "accelerator", "cpu, cuda, mps, or auto for the best available", "auto")
    _add_fields(parser, DataOptions, "images (default: the run's)", optional=True, but=_TRAINING_VIEWS)
    return parser


def predict_parser() -> ArgumentParser:
    """Return the options of ``spkd predict``."""
    parser = new_parser("Classify images with a trained network, and write the classes as comma-separated values.")
    parser.add_argument("network", type=str, help="folder of a run or saved model, or an exported .onnx file")
    parser.add_argument("images", type=str, nargs="+", help="image files, or folders that are searched at any depth")
    parser.add_argument("--top", type=int, default=1, help="number of classes to show for each image, likeliest first")
    parser.add_argument("--probabilities", action="store_true", help="also write the probability of every class")
    _add_text(parser, "out", "CSV file to write (default: print)")
    _add_text(parser, "accelerator", "cpu, cuda, mps, or auto for the best available", "auto")
    others = [field.name for field in fields(DataOptions) if field.name not in ("skip_bad_images", "workers")]
    _add_fields(parser, DataOptions, "reading", but=others)
    return parser


def status_parser() -> ArgumentParser:
    """Return the options of ``spkd status``."""
    parser = new_parser("Show how far a study has got: what is done, running, failed or missing.")
    parser.add_argument("folder", type=str, help="folder of a comparison or another study")
    return parser


def taps_parser() -> ArgumentParser:
    """Return the options of ``spkd taps``."""
    parser = new_parser("List the layers of teacher and student that can be compared, and the pairs chosen.")
    _add_networks(parser, f"default: without --data {DEFAULT_TEACHER}", train=False)
    _add_fields(
        parser, DataOptions, "images (default: made-up ones)", optional=True, but=("groups", "view", *_TRAINING_VIEWS)
    )
    return parser


def export_parser() -> ArgumentParser:
    """Return the options of ``spkd export``."""
    parser = new_parser(
        "Write a trained network to a file to deploy, which takes images in [0, 1]. Before the file is put in place, "
        "it is checked against PyTorch on real images."
    )
    parser.add_argument("folder", type=str, help="folder of a run or a saved model")
    _add_text(parser, "format", "onnx, or torch for a torch.export file", "onnx")
    text = "compute in 8-bit integers, and show on validation images what that costs (ONNX only)"
    parser.add_argument("--int8", action="store_true", help=text)
    text = (
        "with --int8: bits of each weight, 7 or 8; 8 is for processors with VNNI only, others give wrong answers "
        f"(default: {WEIGHT_BITS})"
    )
    parser.add_argument("--weight_bits", type=WeightBits | None, default=None, help=text)
    text = (
        "divide the logits by the temperature at which the probabilities fit validation images best, and show what "
        "that changes; decisions stay the same"
    )
    parser.add_argument("--calibrate", action="store_true", help=text)
    text = (
        "make the file for exactly this many images at a time, for converters and runtimes that need a fixed shape "
        "(default: any number)"
    )
    parser.add_argument("--batch", type=int | None, default=None, help=text)
    _add_text(
        parser, "out", "file to write (default: in FOLDER/export, model.onnx, model.pt2 or with --int8 model-int8.onnx)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest allowed difference from PyTorch's logits, relative to the largest logit",
    )
    text = "image files, or folders of any kind, to check the file on (default: test images)"
    parser.add_argument("--check_images", type=str, nargs="+", metavar="IMAGE", help=text)
    but = ("image_size", "view", "grey", *_TRAINING_VIEWS)
    _add_fields(parser, DataOptions, "images (default: the run's)", optional=True, but=but)
    return parser


def reproduce_parser() -> ArgumentParser:
    """Return the options of ``spkd reproduce``."""
    parser = new_parser(
        "Run one of the paper's experiments, and write its records, tables and figures. Without a name, list the "
        "experiments. When the command is called again, what has finished is not repeated."
    )
    parser.add_argument("name", type=str | None, nargs="?", help="experiment to run")
    _add_fields(parser, ReproduceOptions, "what to run")
    parser.add_argument("--redraw", action="store_true", help="only draw tables and figures again, from the records")
    _add_fields(parser, RunnerOptions, "where the runs are carried out")
    _add_fields(parser, Runtime, "running", but=("tape", *_DIVIDING))
    out = "folder; experiments may share it, and train common networks once (default: runs/reproduce-SCALE)"
    _add_text(parser.add_argument_group("output"), "out", out)
    return parser


def _add_text(group: Any, name: str, text: str, default: str | None = None) -> None:
    group.add_argument(f"--{name}", type=str if default else str | None, default=default, help=text)


def _add_fields(
    parser: ArgumentParser, owner: type, title: str, *, optional: bool = False, but: Iterable[str] = ()
) -> None:
    """Add an option for each field of a dataclass, with the help in its docstring.

    ``optional`` options have no default: what is not given is found elsewhere.
    """
    group = parser.add_argument_group(title)
    parsed = docstring_parser.parse(owner.__doc__ or "")
    texts = {one.arg_name: " ".join((one.description or "").split()).removesuffix(".") for one in parsed.params}
    hints = typing.get_type_hints(owner)
    for field in fields(owner):
        if field.name in but:
            continue
        hint: Any = hints[field.name]
        option, text = f"--{field.name}", texts[field.name].replace("%", "%%")
        default = None if optional or field.default is MISSING else field.default
        if hint is bool:
            group.add_argument(option, action="store_true", default=default, help=text)
        else:
            many = typing.get_origin(hint) is tuple
            kind = typing.get_args(hint)[0] if many else hint
            default = list(default) if many and default is not None else default
            nargs = "+" if many else None
            group.add_argument(option, type=kind | None if optional else kind, default=default, nargs=nargs, help=text)


def _add_networks(
    parser: ArgumentParser,
    default: str = f"default: on the digits {DEFAULT_TEACHER}, trained first and kept",
    *,
    train: bool = True,
) -> None:
    group = parser.add_argument_group("networks")
    _add_text(group, "teacher", f"the large network: {_SPECS} ({default})")
    _add_text(group, "teacher_weights", f"the teacher's weights: {_WEIGHTS}")
    if train:
        _add_normalisation(group, "teacher_normalisation", "the teacher's")
    text = "side length at which the teacher sees the same crops, if larger than the student's (default: --image_size)"
    group.add_argument("--teacher_size", type=int | None, default=None, help=text)
    where = "on the digits" if train else "without --data"
    text = f"the small network, written in the same way (default: {where} {DEFAULT_STUDENT})"
    _add_text(group, "student", text)
    _add_weights(group, "the student's", train=train)
    taps = "layers to compare: last, stages (all), or pairs STUDENT_LAYER=TEACHER_LAYER, as `spkd taps` lists them"
    group.add_argument("--taps", type=str, nargs="+", default=["last"], metavar="TAP", help=taps)


def _add_images(parser: ArgumentParser) -> None:
    """Add the options of the images that a student is taught with."""
    _add_fields(parser, DataOptions, "images")
    group = parser.add_argument_group("images without a label")
    text = "folder, searched at any depth, of more training images, on which the student learns from the teacher only"
    _add_text(group, "unlabelled", text)


def _add_weights(group: Any, whose: str, *, train: bool = True) -> None:
    _add_text(group, "weights", f"{whose} initial weights: {_WEIGHTS} (default: random, or a saved model's own)")
    if train:
        _add_normalisation(group, "normalisation", whose)
        text = f"replace {whose} head if its weights are for other classes (automatic for a library's pretrained ones)"
        group.add_argument("--replace_head", action="store_true", help=text)


def _add_normalisation(group: Any, name: str, whose: str) -> None:
    text = (
        f"normalisation that {whose} weights were trained with: {NORMALISATIONS} (default: what comes with the "
        "weights, otherwise the library's, otherwise chosen by these images; a line says which)"
    )
    _add_text(group, name, text)


def _add_training(
    parser: ArgumentParser, *, seed: bool = True, distilled: bool = True, but: Iterable[str] = ()
) -> None:
    """Add the options of recipe and runtime, but for some."""
    left_out = ("name", "losses", *but, *(() if distilled else ("teacher_precision", "tape", "tape_dtype")))
    group = parser.add_argument_group("training")
    _add_text(group, "recipe", _RECIPE)
    if seed:
        group.add_argument(
            "--seed", type=int, default=0, help="random seed of initial weights, batches and augmentation"
        )
    _add_fields(parser, Recipe, "training, one by one (default: the recipe's)", optional=True, but=left_out)
    _add_fields(parser, Runtime, "running", but=left_out)


def _add_out(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    _add_text(group, "out", "folder of the run (default: below runs/, named by data, network, method and seed)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue the folder's run from its checkpoint, with the same options (or --config OUT/config.yaml)",
    )
    text = "end a stopped run where it stands: test and save its best epoch so far"
    group.add_argument("--finish", action="store_true", help=text)
    group.add_argument("--overwrite", action="store_true", help="remove the run that the folder holds, and begin again")


def pick(owner: type, options: Namespace) -> dict[str, Any]:
    """Return those of the parsed options that are fields of a dataclass, by name."""
    return {field.name: options[field.name] for field in fields(owner) if field.name in options}
