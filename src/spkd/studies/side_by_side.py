"""Teacher, student alone and distilled student, side by side."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spkd.data.kept import keeping_last
from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.files import require_writable
from spkd.losses.methods import term_names
from spkd.machine import is_launched
from spkd.models.classifier import Classifier
from spkd.models.cost import latency_ms, multiply_adds, parameter_count
from spkd.models.saved_model import find_meant, load_classifier, save_classifier
from spkd.studies.outcome import counts_balanced
from spkd.studies.records import NetworkRow
from spkd.studies.state import claimed, read_running
from spkd.training.devices import make_fabric
from spkd.training.identity import input_paths
from spkd.training.options import DEFAULT_TEACHER, Request, Runtime
from spkd.training.progress import Display
from spkd.training.run import run
from spkd.training.run_folder import RUNNING, RunFolder, refuse_inputs
from spkd.training.setup import pinned, set_up

_CODE_FOLDER = re.compile(r"^.*/(?=[^/]+\.py:)")
_OF_TEACHER = ("teacher", "teacher_weights", "teacher_normalisation", "teacher_size", "unlabelled")
TEACHER_EPOCHS = 60
"""Epochs of the digits' own teacher: a teacher with little more to know has little to teach."""


@dataclass(frozen=True)
class Network:
    """A trained network to put beside others.

    Attributes:
        label: its part, as of :class:`~spkd.studies.records.NetworkRow`.
        classifier: the network.
        facts: what else its row tells: errors, epochs and steps.
    """

    label: str
    classifier: Classifier
    facts: Mapping[str, Any]


@keeping_last()
def distill(
    request: Request,
    out: str | Path,
    runtime: Runtime,
    display: Display,
    *,
    alone: bool = False,
    resume: bool = False,
    finish: bool = False,
    overwrite: bool = False,
) -> list[NetworkRow] | None:
    """Distil ``request.model`` into ``out`` and return a row for each network there is to compare.

    Without a teacher, the digits' own is trained first (and kept for the next call), and the student is trained
    alone as well, into ``<out>-alone``, as it is with ``alone``: on the same images at the same size, with the same
    recipe and seed. Of these two, a run that has finished before is not repeated unless ``overwrite`` is given. With
    ``finish`` the student's run ends where it was stopped, as does that of the student alone if it was.

    Returns:
        Rows of the teacher, the student alone (where asked) and the distilled student, or None when a run was stopped
        in time.

    Raises:
        InputError: without a teacher on other data than the digits, and as :func:`spkd.training.run.run` does.
    """
    if not term_names(request.method):
        raise InputError("--method none distils nothing: use `spkd train`, or --alone beside another method")
    deadline = runtime.deadline()
    alone = alone or request.teacher is None
    if request.teacher is None:
        begun = RunFolder(Path(out)).config()
        if resume and begun is not None and begun.get("data") != request.data.data:
            config = Path(out) / "config.yaml"
            raise InputError(
                f"{out} holds a run on {begun.get('data')}: to continue it, give its options with --config {config}"
            )
        if finish and not RunFolder(Path(out)).has_begun():
            raise InputError(f"--finish: there is no run in {out} to end")
        teacher = digits_teacher([request], runtime, display)
        if teacher is None:
            return None
        request = replace(request, teacher=teacher)
    if alone:
        request = pinned(request, set_up(request))
        _check_alone(request, Path(f"{out}-alone"), overwrite=overwrite)
    # The student first: a folder that is refused is refused before hours are spent on another.
    student = run(request, out, runtime.until(deadline), display, resume=resume, finish=finish, overwrite=overwrite)
    if student is None:
        return None
    rows = [network_row(f"student, {request.method}", Path(out), student)]
    if alone:
        single, folder = alone_request(request), Path(f"{out}-alone")
        own = runtime.until(deadline).without_tape()
        ended = finish and RunFolder(folder).has_begun()
        result = run(single, folder, own, display, resume=not overwrite, finish=ended, overwrite=overwrite)
        if result is None:
            return None
        # One architecture, measured once: its latency twice would differ by the machine's noise.
        rows.insert(0, replace(rows[0], label="student alone", **_facts(result)))
    return [*measured([teacher_of(request, student)]), *rows]


def _check_alone(request: Request, out: Path, *, overwrite: bool) -> None:
    """Refuse before the student's run what would be refused after it, when the student is to be trained alone."""
    single, folder = alone_request(request), RunFolder(out)
    refuse_inputs("--out", out, input_paths(request))  # the teacher is none of its inputs, but still wanted
    if request.unlabelled is not None or out.exists():
        setup = set_up(single)  # without the images that have no label a batch may be too large
        folder.check(setup.config(), setup.identity(), resume=not overwrite, overwrite=overwrite)


def teacher_of(request: Request, student: Mapping[str, Any]) -> Network:
    """Return a request's teacher, with its errors as a student's result has them: its own run may have seen others."""
    folder = find_meant(str(request.teacher))
    teacher = set_up(request).teacher if folder is None else load_classifier(folder)
    if teacher is None:
        raise InputError(f"--teacher {request.teacher} cannot be built again")
    return Network("teacher", teacher, teacher_errors(student))


def teacher_errors(student: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the teacher's errors in percent as a student's result has them: on the student's own images."""
    return {
        "test_error": student["test"].get("teacher_error"),
        "val_error": student.get("teacher_val_error"),
        "test_balanced_error": student["test"].get("teacher_balanced_error") if counts_balanced(student) else None,
    }


def alone_request(request: Request) -> Request:
    """Return the request for the same student trained alone: same labelled images, recipe and seed, no teacher."""
    without: dict[str, Any] = dict.fromkeys(_OF_TEACHER)
    return replace(request, **without, method="none", taps=("last",))


def digits_teacher(requests: Sequence[Request], runtime: Runtime, display: Display) -> str | None:
    """Train the digits' own teacher, on all of them, if it has not been trained before.

    Where another call is training it, that is waited for.

    Args:
        requests: students to be taught by it, all on the same images.
        runtime: how it is trained.
        display: shows how.

    Returns:
        Its folder, or None when its training was stopped in time.

    Raises:
        InputError: when the data are not the digits, or a student cannot be taught as asked, which is found out before
            the teacher is trained.
    """
    data = requests[0].data
    if not data.is_digits:
        raise InputError(
            f"--data {data.data} needs --teacher: a run folder (`spkd train --data {data.data}` makes one), or a model "
            "with --teacher_weights"
        )
    size = data.image_size
    own = Request(model=DEFAULT_TEACHER, data=DataOptions(image_size=size), overrides={"epochs": TEACHER_EPOCHS})
    # Not the folder of `spkd train`, which may hold another training of the same network.
    folder = RunFolder(Path("runs/digits-teacher" + ("" if size is None else f"-{size}px")))
    deadline = runtime.deadline()
    with contextlib.ExitStack() as held:
        if folder.result() is None:
            _rehearse(requests, own, runtime)
            if not is_launched():  # whose processes are all at work on it
                require_writable(folder.path / RUNNING)
                if (live := read_running(folder.path)) is not None:
                    display.say(f"waiting for process {live['pid']} on {live['host']}, which trains {folder.path}")
                if not held.enter_context(claimed(folder.path, deadline)):
                    return None
        if run(own, folder.path, runtime.until(deadline).without_tape(), display, resume=True) is None:
            return None
    return str(folder.path)


def _rehearse(requests: Sequence[Request], teacher: Request, runtime: Runtime) -> None:
    """Set up what is asked for with the teacher as it is before its training, so that mistakes are told at once."""
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(set_up(teacher).student, Path(folder))
        for request in requests:
            setup = set_up(replace(request, teacher=folder))
            make_fabric(runtime, setup.recipe.precision)


def network_row(label: str, folder: Path, result: Mapping[str, Any]) -> NetworkRow:
    """Measure a saved network's size and speed and put its run's errors beside them."""
    return measured([saved_network(label, folder, result)])[0]


def saved_network(label: str, folder: Path, result: Mapping[str, Any]) -> Network:
    """Return the network of a run, with the errors in its result."""
    return Network(label, load_classifier(folder), _facts(result))


def _facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row tells of a run: its epochs and steps, and its errors in percent, the balanced one where it is
    to be shown.
    """
    balanced = result["test_balanced_error"] if counts_balanced(result) else None
    errors = {name: result[name] for name in ("test_error", "val_error")}
    trained = {name: result.get(name) for name in ("epochs", "steps")}
    return {**errors, "test_balanced_error": balanced, **trained}


def measured(networks: Sequence[Network], rounds: int = 1) -> list[NetworkRow]:
    """Return a row for each network.

    Their latencies are measured in turn, in each of several ``rounds``, and of each the lowest counts: that which other
    programs delayed least.
    """
    times = [[_latency_ms(network.classifier) for network in networks] for _ in range(rounds)]
    return [_row(network, min(own)) for network, own in zip(networks, zip(*times, strict=True), strict=True)]


def _latency_ms(classifier: Classifier) -> float:
    info = classifier.info
    return latency_ms(classifier, torch.rand(1, info.channels, info.image_size, info.image_size))


def _row(network: Network, latency: float) -> NetworkRow:
    info = network.classifier.info
    row = NetworkRow(
        label=network.label,
        model=_CODE_FOLDER.sub("", info.spec),
        parameters=parameter_count(network.classifier),
        multiply_adds=multiply_adds(network.classifier, (info.channels, info.image_size, info.image_size)),
        latency_ms=latency,
        test_error=None,
        val_error=None,
    )
    return replace(row, **network.facts)
