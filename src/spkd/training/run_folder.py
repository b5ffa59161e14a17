"""The folder of one run: what lies where, and when it may be written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from spkd.data.images import ImageData
from spkd.data.list_spec import list_named
from spkd.data.options import CROP_SCALE, DataOptions
from spkd.errors import InputError, UnusableFolder
from spkd.files import (
    csv_text,
    is_file,
    is_folder,
    is_there,
    require_utf8,
    write_json_atomically,
    write_text_atomically,
)
from spkd.models.saved_model import RUN_MARK

MARK = f"{RUN_MARK} To repeat it: spkd train (or distill) --config THIS_FILE --out ANOTHER_FOLDER"
"""First line of ``config.yaml``; a folder without it is somebody's own, and never written into or removed from."""
_IDENTITY = "# Made of: "

OWN_FILES = (
    "metrics.csv",
    "result.json",
    "checkpoints/last.ckpt",
    *(f"{place}export/{name}" for place in ("", "student/") for name in ("model.onnx", "model-int8.onnx", "model.pt2")),
    "student/model.safetensors",
    "student/model.json",
    "tensorboard/events.out.tfevents.*",
)
"""What a run writes beside ``config.yaml``.

``--overwrite`` removes these and folders that they leave empty, and nothing else; of a link the link itself, and not
what it leads to.
"""

_UNFINISHED = tuple(str(Path(name).with_name(f".{Path(name).name}.*.part*")) for name in ("config.yaml", *OWN_FILES))
"""What a kill in the midst of writing one of these leaves (:func:`spkd.files.write_atomically`)."""

NOT_SAID = {
    "no_flip": False,
    "turns": False,
    "grey": False,
    "crop_scale": CROP_SCALE,
    "augment": "none",
    "mixup": 0.0,
    "draw": "plain",
    "view": None,
    "groups": None,
    "label_smoothing": 0.0,
    "class_weights": "none",
    "select": "error",
}
"""Options that a configuration without them has at these values: it is that of versions which did not have them."""

TASK_LOG, FAILED, RUNNING = "task.log", "failed.json", "running.json"
"""What a study writes into the folder of a run that is one of its tasks, before the run begins."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run: ``config.yaml``, ``metrics.csv``, ``checkpoints/``, ``student/``, ``result.json``."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where the latest checkpoint lies."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def student(self) -> Path:
        """The folder of the saved model, there once the run has finished."""
        return self.path / "student"

    @property
    def _model(self) -> Path:
        """What tells of the saved model."""
        return self.student / "model.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard logs."""
        return self.path / "tensorboard"

    def config(self) -> dict[str, Any] | None:
        """Return what ``config.yaml`` holds, or ``None`` where no run of ours has begun."""
        path = self.path / "config.yaml"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if not text.startswith(MARK):
            return None
        try:
            return dict(yaml.safe_load(text))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged; remove it or choose another --out") from error

    def identity(self) -> str | None:
        """Return the hash of what the run is made of, as ``config.yaml`` says it."""
        if self.config() is None:
            return None
        lines = (self.path / "config.yaml").read_text(encoding="utf-8").splitlines()
        return next((line.removeprefix(_IDENTITY) for line in lines if line.startswith(_IDENTITY)), None)

    def result(self) -> dict[str, Any] | None:
        """Return what ``result.json`` holds, or ``None`` where the run has not finished, or the file is damaged.

        A run that goes on from its last checkpoint makes it anew.
        """
        path = self.path / "result.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
        except (ValueError, TypeError):
            return None

    def check(self, config: Mapping[str, Any], identity: str, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that a run of ``config`` may not be written to; write nothing.

        Raises:
            InputError: as :meth:`check_place`, and when ``resume`` meets another run (see :meth:`refuse_other`).
        """
        self.check_place(resume=resume, overwrite=overwrite)
        if self.has_begun() and resume:
            self.refuse_other(config, identity)

    def check_place(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that no run may be written to.

        Raises:
            InputError: when it already holds a run and neither flag is given, when it holds something else, or, unless
                it is to be overwritten, when a trained model is all that it holds of a run; and when it is not UTF-8.
        """
        require_utf8("--out", self.path)
        if resume and overwrite:
            raise InputError("--overwrite cannot be combined with --resume or --finish: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file, not a folder")
        if self.config() is None and self.path.exists() and _holds_files(self.path):
            raise InputError(f"--out {self.path} holds files that are not of a run of spkd: choose another --out")
        if self.has_begun() and not (resume or overwrite):
            is_finished = (self.path / "result.json").exists()
            ways = "--resume to show its result" if is_finished else "--resume to continue it, --finish to end it"
            raise InputError(f"{self.path} already holds a run: give {ways}, --overwrite, or another --out")
        if self.config() is not None and not (self.has_begun() or overwrite) and self._model.exists():
            raise UnusableFolder(
                f"{self.path} holds a trained model but no checkpoint to continue from",
                "give --overwrite to train it again, or another --out",
            )

    def begin(self, config: Mapping[str, Any], identity: str, *, overwrite: bool) -> None:
        """Write ``config.yaml``, for a new run after removing an earlier run's files.

        Of a run that goes on it says anew where weights and images lie.

        Raises:
            InputError: when the folder cannot be written.
        """
        if self.has_begun() and not overwrite:
            if self.config() == config:
                return
        else:
            for pattern in (*OWN_FILES, *_UNFINISHED):
                for path in list(self.path.glob(pattern)):
                    self._remove(path)
            if (self.path / "config.yaml").is_symlink():  # it would be written through
                self._remove(self.path / "config.yaml")
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_text_atomically(self.path / "config.yaml", f"{MARK}\n{_IDENTITY}{identity}\n{text}")

    def begin_anew(self) -> None:
        """Have the next run in this folder begin anew: remove result, checkpoint and what makes weights a saved model.

        Raises:
            InputError: when a file cannot be removed.
        """
        if self.config() is not None:
            for path in (self.path / "result.json", self.checkpoint, self._model):
                if path.exists():
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a file of the run, and its folder if that is then empty; where a link leads to it, the link alone."""
        folders = [self.path / part for part in reversed(path.relative_to(self.path).parents)][1:]
        link = next((folder for folder in folders if folder.is_symlink()), None)
        try:
            (link or path).unlink(missing_ok=True)
            if path.parent in folders and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    def has_begun(self) -> bool:
        """Return whether there is a run to go on with, or its result: one that was refused at once leaves neither."""
        return self.config() is not None and (self.checkpoint.exists() or (self.path / "result.json").exists())

    def epochs(self) -> tuple[int, int]:
        """Return how many epochs are done, and of how many; both 0 where no run has begun."""
        path = self.path / "metrics.csv"
        try:
            done = max(0, len(path.read_text(encoding="utf-8").splitlines()) - 1)
        except OSError:
            done = 0
        return done, int((self.config() or {}).get("epochs", 0))

    def refuse_other(self, config: Mapping[str, Any], identity: str) -> None:
        """Refuse a run that is made of something else, naming the fields that differ; do nothing where there is none.

        The identity decides: a run whose images or weights only lie elsewhere is the same.

        Raises:
            UnusableFolder: when the folder holds another run.
        """
        present = self.config()
        if present is None or self.identity() == identity:
            return
        present, wanted = NOT_SAID | present, NOT_SAID | dict(config)
        differing = [key for key in present | wanted if present.get(key) != wanted.get(key)]
        if not differing:
            raise UnusableFolder(
                f"{self.path} was made with other weights, code or images", "give --overwrite to run again"
            )
        shown = "; ".join(f"{key} was {present.get(key)!r}, is {wanted.get(key)!r}" for key in differing[:3])
        raise UnusableFolder(
            f"{self.path} holds a run with other options: {shown}",
            f"give --overwrite, another --out, or its own options with --config {self.path / 'config.yaml'}",
        )

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write ``metrics.csv`` anew: one row per epoch, the union of the rows' keys as columns."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[row.get(column) for column in columns] for row in rows]
        write_text_atomically(self.path / "metrics.csv", csv_text([columns, *cells]))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``: the last thing that a run does."""
        write_json_atomically(self.path / "result.json", result)


def what_changed(
    network: str | Path, data: ImageData, options: DataOptions
) -> tuple[Literal["images", "groups", "columns"], str] | None:
    """Return why others of these images are held out than when the run of a network was made, None where none are.

    That is in a word and in a sentence: the images of this name, named alike, are others, or divided by other groups or
    by other columns of a list.
    The network is given as its folder, or as a file that was exported to a folder in that.
    """
    path = Path(network)
    above = path.resolve().parents[: 3 if is_file(path) else 1]
    run = next((run for run in map(RunFolder, (path, *above)) if run.result()), None)
    if run is None:
        return None
    config, result = NOT_SAID | (run.config() or {}), run.result() or {}
    alike = all(config.get(name) == getattr(options, name) for name in ("train_images", "grey"))
    is_named_so = result.get("data") == data.name
    if not (alike and is_named_so and result.get("images_fingerprint") not in (None, data.fingerprint)):
        return None
    own, now = list_named(str(config.get("data"))), list_named(options.data)
    if own is not None and now is not None and (own.split, own.group) != (now.split, now.group):
        return (
            "columns",
            f"{network} was trained with another column of sets or groups, so that other images are held out",
        )
    if (groups := config["groups"]) == options.groups:
        return "images", f"the images have changed since {network} was trained"
    given = "without --groups" if groups is None else f"with --groups '{groups}', which must be given here too"
    return "groups", f"{network} was trained {given}, so other images are held out now"


def config_of(folder: str | Path) -> dict[str, Any]:
    """Return the configuration of the run in ``folder``, or of the run whose saved model that is."""
    path = Path(folder)
    if not is_folder(path):
        return {}
    return RunFolder(path).config() or RunFolder(path.resolve().parent).config() or {}


def refuse_inputs(option: str, path: Path, inputs: Mapping[str, str | None]) -> None:
    """Refuse to write where an input lies, or into a folder of images.

    Args:
        option: that names the folder to be written to.
        path: the folder.
        inputs: a path or None, by the option that names it.

    Raises:
        InputError: when an input lies in the folder, or the folder among images.
    """
    own = path.resolve()
    for other, named in inputs.items():
        if named is None or not (other == "tape" or is_there(named)):
            continue
        given = Path(named).resolve()
        if own in (given, *given.parents) or (other in ("data", "unlabelled") and given in own.parents):
            raise InputError(
                f"{option} {path} and --{other} {named} overlap, one inside the other: choose another {option}"
            )


def _holds_files(path: Path) -> bool:
    beside = (TASK_LOG, FAILED, RUNNING)
    return any(not entry.name.startswith(".") and entry.name not in beside for entry in path.iterdir())
