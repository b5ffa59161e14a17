"""The options of each command, made from the dataclasses that own them."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from spkd.data.options import DataOptions
from spkd.export_options import TOLERANCE, WEIGHT_BITS, WeightBits
from spkd.losses.weights import LossWeights
from spkd.studies.options import RunnerOptions
from spkd.studies.scales import ReproduceOptions
from spkd.training.options import DEFAULT_STUDENT, DEFAULT_TEACHER, NORMALISATIONS, Runtime
from spkd.training.recipe import PRESETS, Recipe

_ARCHITECTURES = (
    "wrn-DEPTH-WIDTH, torchvision/NAME, timm/NAME, package.module:callable, file.py:callable (each with "
    "?argument=value&... if need be)"
)
_SPECS = f"{_ARCHITECTURES}, or the folder of a run or saved model"
_WEIGHTS = (
    "'pretrained' (the library's, or what your callable loads by itself), the name of torchvision weights, or a "
    ".safetensors, .pt, .pth or .ckpt file"
)
_METHOD = (
    "terms joined by +: sp, kd, at, package.module:Class, file.py:Class; with their own weights as in "
    "sp?weight=300, at?weight=10&layers=last, kd?alpha=0.5&temperature=2"
)
_NORMALISATION = (
    f"what its weights were trained with: {NORMALISATIONS} (default: as they say, else as the library's own, or "
    "by these images; a line says which)"
)
_TRAINING_VIEWS = ("no_flip", "turns", "crop_scale", "augment", "mixup", "draw")
_DIVIDING = ("devices", "sync_batchnorm", "timeout_seconds")
_RECIPE = f"one of {', '.join(PRESETS)} (default: chosen by images, weights and network, and said)"


def train_parser() -> ArgumentParser:
    """Return the options of ``spkd train``."""
    parser = _new_parser("Train a network alone: the teacher, say.")
    group = parser.add_argument_group("network")
    _add_text(group, "model", f"{_SPECS} (default on the digits: {DEFAULT_TEACHER})")
    _add_weights(group)
    _add_fields(parser, DataOptions, "images")
    _add_training(parser, distilled=False)
    _add_out(parser)
    return parser


def distill_parser() -> ArgumentParser:
    """Return the options of ``spkd distill``."""
    parser = _new_parser(
        "Train a small network with the help of a large one. Without --teacher the digits' own is trained first, and "
        "the student alone as well, to compare."
    )
    _add_networks(parser)
    group = parser.add_argument_group("method")
    _add_text(group, "method", _METHOD, "sp+kd")
    group.add_argument("--alone", action="store_true", help="train the student alone as well, and show both")
    _add_images(parser)
    _add_training(parser)
    _add_fields(parser, LossWeights, "weights of the losses (not given: as the recipe says)", optional=True)
    _add_out(parser)
    return parser


def compare_parser() -> ArgumentParser:
    """Return the options of ``spkd compare``."""
    parser = _new_parser(
        "Train every method with every seed and say whether it helped, with a paired test over the seeds; of several "
        "--students, tell what each costs too, to choose one. Runs that have finished are not repeated when the "
        "command is called again."
    )
    _add_networks(parser)
    group = parser.add_argument_group("several students")
    text = f"students to choose from, in the place of --student, each one of: {_SPECS}"
    group.add_argument("--students", type=str, nargs="+", metavar="STUDENT", help=text)
    group = parser.add_argument_group("methods")
    methods = ["none", "kd", "at", "sp", "sp+kd"]
    text = f"none, or {_METHOD}"
    group.add_argument("--methods", type=str, nargs="+", default=methods, metavar="METHOD", help=text)
    against = "the method that the others' differences are to (default: none; where that is left out, the first)"
    _add_text(group, "against", against)
    group.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 on")
    _add_images(parser)
    _add_training(parser, seed=False, but=("tape", *_DIVIDING))
    _add_fields(parser, LossWeights, "weights of the losses (not given: as the recipe says)", optional=True)
    _add_fields(parser, RunnerOptions, "where the runs are carried out")
    group = parser.add_argument_group("where to")
    _add_text(
        group, "out", "folder of the comparison (default: runs/compare-DATA, of several students runs/students-DATA)"
    )
    group.add_argument("--overwrite", action="store_true", help="run again what has finished")
    return parser


def tape_parser() -> ArgumentParser:
    """Return the options of ``spkd tape``, still without its actions."""
    return _new_parser("Record what a teacher says of every training batch, once, for any number of students.")


def add_tape_actions(parser: ArgumentParser) -> None:
    """Add ``record`` and ``info`` to the options of ``spkd tape``."""
    added = parser.add_subcommands(required=True, dest="action", metavar="ACTION", title="actions")
    texts = {"record": "fill a tape ahead of training", "info": "what a tape holds, and how much of it is there"}
    for name, action in tape_actions().items():
        added.add_subcommand(name, action, help=texts[name])


def tape_actions() -> dict[str, ArgumentParser]:
    """Return the options of each action of ``spkd tape``."""
    return {"record": _record_parser(), "info": _info_parser()}


def _record_parser() -> ArgumentParser:
    parser = _new_parser(
        "Fill a tape ahead of the runs that will play it with `spkd distill --tape DIR`. Those must have the same "
        "teacher, images, batch size and seed; student, method, weights of the losses and epochs are free (a student "
        "that would choose another recipe is to have the same --batch_size). The same command goes on after a stop."
    )
    parser.add_argument("folder", type=str, help="folder of the tape")
    _add_networks(parser, "needed")
    group = parser.add_argument_group("methods")
    group.add_argument("--methods", type=str, nargs="+", default=["sp+kd"], metavar="METHOD", help=_METHOD)
    _add_images(parser)
    _add_training(parser, but=("tape", "compile", "checkpoint_seconds", "sync_batchnorm"))
    return parser


def _info_parser() -> ArgumentParser:
    parser = _new_parser("Say what a tape holds.")
    parser.add_argument("folder", type=str, help="folder of the tape")
    return parser


def evaluate_parser() -> ArgumentParser:
    """Return the options of ``spkd evaluate``."""
    parser = _new_parser("Evaluate a trained network: one of a run, or any other with its weights.")
    parser.add_argument(
        "network",
        type=str,
        help=f"folder of a run or saved model, or an exported .onnx file; with --weights: {_ARCHITECTURES}",
    )
    _add_text(parser, "weights", f"of a network that is no saved model: {_WEIGHTS}")
    _add_text(parser, "normalisation", _NORMALISATION)
    _add_text(parser, "teacher", "folder to measure agreement with (default: the run's own teacher)")
    _add_text(parser, "split", "test, val, train, or all of them", "test")
    parser.add_argument("--per_class", action="store_true", help="show error, precision and AUC of each class too")
    _add_text(
        parser,
        "out",
        "also write what is said of each image, with the probability of every class, to this comma-separated file",
    )
    _add_text(parser, "save", "also keep the network as a new folder of a saved model, which every command takes")
    _add_text(parser, "accelerator", "cpu, cuda, mps, or auto for the best there is", "auto")
    _add_fields(parser, DataOptions, "images (not given: the run's)", optional=True, but=_TRAINING_VIEWS)
    return parser


def predict_parser() -> ArgumentParser:
    """Return the options of ``spkd predict``."""
    parser = _new_parser("Say what a trained network takes images for, as comma-separated values.")
    parser.add_argument("network", type=str, help="folder of a run or saved model, or an exported .onnx file")
    parser.add_argument("images", type=str, nargs="+", help="image files, or folders with images anywhere below")
    parser.add_argument("--top", type=int, default=1, help="how many classes to show of each image, likeliest first")
    parser.add_argument("--probabilities", action="store_true", help="also write the probability of every class")
    _add_text(parser, "out", "the file to write (default: shown)")
    _add_text(parser, "accelerator", "cpu, cuda, mps, or auto for the best there is", "auto")
    others = [field.name for field in fields(DataOptions) if field.name not in ("skip_bad_images", "workers")]
    _add_fields(parser, DataOptions, "reading", but=others)
    return parser


def status_parser() -> ArgumentParser:
    """Return the options of ``spkd status``."""
    parser = _new_parser("Show where a study stands: what is done, running, failed or missing.")
    parser.add_argument("folder", type=str, help="folder of a comparison or another study")
    return parser


def taps_parser() -> ArgumentParser:
    """Return the options of ``spkd taps``."""
    parser = _new_parser("Show the layers of teacher and student that can be compared, and the pairs chosen.")
    _add_networks(parser, f"default without --data: {DEFAULT_TEACHER}", train=False)
    _add_fields(
        parser, DataOptions, "images (not given: made up)", optional=True, but=("groups", "view", *_TRAINING_VIEWS)
    )
    return parser


def export_parser() -> ArgumentParser:
    """Return the options of ``spkd export``."""
    parser = _new_parser(
        "Write a trained network alone to a file to deploy, which takes images in [0, 1]. The file is checked against "
        "PyTorch on real images before it is put in place."
    )
    parser.add_argument("folder", type=str, help="folder of a run or a saved model")
    _add_text(parser, "format", "onnx, or torch (torch.export)", "onnx")
    text = "compute in 8-bit integers, and tell on validation images what that costs (ONNX only)"
    parser.add_argument("--int8", action="store_true", help=text)
    text = (
        "with --int8: bits of the weights, 7, or 8 for processors with VNNI only, others answer wrongly "
        f"(default: {WEIGHT_BITS})"
    )
    parser.add_argument("--weight_bits", type=WeightBits | None, default=None, help=text)
    text = (
        "divide the logits by the temperature at which the probabilities fit validation images best, and tell what "
        "that changes; no decision does"
    )
    parser.add_argument("--calibrate", action="store_true", help=text)
    text = (
        "how many images the file is to take at a time, exactly, for converters and runtimes that need a fixed shape "
        "(default: any number)"
    )
    parser.add_argument("--batch", type=int | None, default=None, help=text)
    _add_text(parser, "out", "the file (default: FOLDER/export/model.onnx or .pt2, in 8 bits model-int8.onnx)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest difference of a logit, relative to the largest logit",
    )
    text = "images to check the file on, in files or folders of any kind (default: test images)"
    parser.add_argument("--check_images", type=str, nargs="+", metavar="IMAGE", help=text)
    but = ("image_size", "view", "grey", *_TRAINING_VIEWS)
    _add_fields(parser, DataOptions, "images (not given: the run's)", optional=True, but=but)
    return parser


def reproduce_parser() -> ArgumentParser:
    """Return the options of ``spkd reproduce``."""
    parser = _new_parser(
        "Run one of the paper's experiments, and write its records, tables and figures. Without a name the experiments "
        "are listed. What has finished is not repeated when the command is called again."
    )
    parser.add_argument("name", type=str | None, nargs="?", help="which experiment")
    _add_fields(parser, ReproduceOptions, "what")
    parser.add_argument("--redraw", action="store_true", help="only draw tables and figures anew, from the records")
    _add_fields(parser, RunnerOptions, "where")
    _add_fields(parser, Runtime, "running", but=("tape", *_DIVIDING))
    out = "folder, which experiments may share: common networks are trained once (default: runs/reproduce-SCALE)"
    _add_text(parser.add_argument_group("where to"), "out", out)
    return parser


_USAGES: dict[int | str | None, str] = {None: "{0}", "?": "[{0}]", "+": "{0} [{0} ...]", argparse.PARSER: "{0} ..."}
"""How a usage shows an argument, by how often it may be given."""


class Help(DefaultHelpFormatter):
    """Help without the types of Python, with a default only where there is one, and with a usage of one line."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Leave out the options, which stand below and would fill half a screen."""
        arguments = [one for one in actions if not one.option_strings]
        shown = [_USAGES[one.nargs].format(one.metavar or one.dest) for one in arguments]
        optional = [] if any(one.nargs == argparse.PARSER for one in arguments) else ["[options]"]
        command = self._prog.replace(" [options]", "")
        super().add_usage(" ".join([command, *shown, *optional]), actions, groups, prefix)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, False, argparse.SUPPRESS) and "default:" not in text
        default = " ".join(action.default) if isinstance(action.default, list) else action.default
        return f"{text} (default: {default})" if shown else text


def _new_parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description, exit_on_error=False, formatter_class=Help, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="read options from this YAML file")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
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
    default: str = f"default on the digits: {DEFAULT_TEACHER}, trained first and kept",
    *,
    train: bool = True,
) -> None:
    group = parser.add_argument_group("networks")
    _add_text(group, "teacher", f"{_SPECS} ({default})")
    _add_text(group, "teacher_weights", f"of the teacher: {_WEIGHTS}")
    if train:
        _add_text(group, "teacher_normalisation", f"of the teacher: {_NORMALISATION}")
    text = "side length in pixels at which the teacher sees the same crops, if larger ones (default: --image_size)"
    group.add_argument("--teacher_size", type=int | None, default=None, help=text)
    _add_text(
        group, "student", f"{_SPECS} (default {'on the digits' if train else 'without --data'}: {DEFAULT_STUDENT})"
    )
    _add_weights(group, "of the student: ", train=train)
    taps = "layers to compare: last, stages, or pairs as student_path=teacher_path (see `spkd taps`)"
    group.add_argument("--taps", type=str, nargs="+", default=["last"], metavar="TAP", help=taps)


def _add_images(parser: ArgumentParser) -> None:
    """Add the options of the images that a student is taught with."""
    _add_fields(parser, DataOptions, "images")
    group = parser.add_argument_group("images without a label")
    text = "folder of more training images, in any folders below it, of which only the teacher tells the student"
    _add_text(group, "unlabelled", text)


def _add_weights(group: Any, of: str = "", *, train: bool = True) -> None:
    _add_text(group, "weights", f"{of or 'to start from: '}{_WEIGHTS} (default: random; of a saved model, its own)")
    if train:
        _add_text(group, "normalisation", f"{of}{_NORMALISATION}")
        text = "put a new head on weights made for other classes (on a library's pretrained ones it is by itself)"
        group.add_argument("--replace_head", action="store_true", help=f"{of}{text}")


def _add_training(
    parser: ArgumentParser, *, seed: bool = True, distilled: bool = True, but: Iterable[str] = ()
) -> None:
    """Add the options of recipe and runtime, but for some."""
    left_out = ("name", "losses", *but, *(() if distilled else ("teacher_precision", "tape", "tape_dtype")))
    group = parser.add_argument_group("training")
    _add_text(group, "recipe", _RECIPE)
    if seed:
        group.add_argument("--seed", type=int, default=0, help="random seed of first weights, batches and augmentation")
    _add_fields(parser, Recipe, "one by one (not given: as the recipe says)", optional=True, but=left_out)
    _add_fields(parser, Runtime, "running", but=left_out)


def _add_out(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("where to")
    _add_text(group, "out", "folder of the run (default: below runs/, named by what is trained)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the folder's checkpoint, with the same options (or --config OUT/config.yaml)",
    )
    text = "end a stopped run where it stands: take its best epoch so far, test it and save it"
    group.add_argument("--finish", action="store_true", help=text)
    group.add_argument("--overwrite", action="store_true", help="remove the run that the folder holds")


def pick(owner: type, options: Namespace) -> dict[str, Any]:
    """Return those of the parsed options that are fields of a dataclass, by name."""
    return {field.name: options[field.name] for field in fields(owner) if field.name in options}
