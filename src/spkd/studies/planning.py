"""The runs of a comparison: every method with every seed, of one student or of several, and the tapes they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from spkd.data.kept import keeping_last
from spkd.errors import InputError, UnusableFolder
from spkd.files import slug
from spkd.losses.methods import method_label
from spkd.studies.records import BASELINE
from spkd.studies.side_by_side import alone_request
from spkd.studies.state import planned, read_running
from spkd.studies.tasks import Label, Recording, Task
from spkd.studies.work import tape_folder
from spkd.training.devices import make_fabric
from spkd.training.options import Request, Runtime
from spkd.training.progress import display
from spkd.training.recipe import Select
from spkd.training.run_folder import RunFolder
from spkd.training.setup import Setup, pinned, set_up
from spkd.training.tape import Tape


@dataclass(frozen=True)
class Part:
    """One student's part of a comparison.

    Attributes:
        folder: where its runs lie, below the folder of the comparison; empty for that itself.
        requests: by method, all with one image size and recipe.
        data: the name of the images.
        select: by which error epochs are kept.
        tape: where the tapes that its runs can play lie, one for each seed, below the folder of the comparison; parts
            to which the teacher says the same share it.
        epochs: of each run.
        memories: what its runs need of the teacher, of which a tape that is shared may hold more.
    """

    folder: str
    requests: Mapping[str, Request]
    data: str
    select: Select
    tape: str
    epochs: int
    memories: frozenset[str]

    @property
    def taught(self) -> list[str]:
        """The methods that have a teacher."""
        return [method for method, request in self.requests.items() if request.teacher is not None]

    def name(self, method: str, seed: int) -> str:
        """Return the name of a run, which is its folder below that of the comparison."""
        return str(PurePosixPath(self.folder, slug(method), f"seed-{seed}"))


@keeping_last()
def plan_parts(
    requests: Mapping[str, Request], methods: Sequence[str], out: Path, here: Runtime | None, *, overwrite: bool
) -> list[Part]:
    """Return the part of each student, whose request is given by the folder of its runs below ``out``.

    Each method is tried once. What is to be said of the images, and what is warned of, is said once, and of several
    students with the name of the one that it is about. ``here`` is how the runs are carried out where that is on this
    machine.

    Raises:
        InputError: as :func:`spkd.training.setup.set_up` does, when the device or its precision is not to be had here,
            and when ``out`` holds runs that are made of others.
    """
    parts: list[Part] = []
    said: dict[str, None] = {}
    trained_as: dict[str, str] = {}
    for folder, request in requests.items():
        part, of_data, warnings = _plan_part(folder, request, methods, out, here, overwrite=overwrite)
        of_data = [note for note in of_data if note not in said]
        if parts:
            of_data = [_named(note, request.model) for note in of_data]
        if len(requests) > 1:
            warnings = [_named(note, request.model) for note in warnings]
        said |= dict.fromkeys([*of_data, *warnings])
        pinned_to = next(iter(part.requests.values()))
        trained_as[request.model] = f"recipe {pinned_to.recipe}, {pinned_to.data.image_size} pixels"
        parts.append(part)
    if len(set(trained_as.values())) > 1:
        each = "; ".join(f"{model}: {how}" for model, how in trained_as.items())
        said[f"warning: the students are not trained alike ({each}): give --recipe and --image_size"] = None
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, not a folder")
    for note in said:
        display().say(note)
    return parts


def _plan_part(
    folder: str, request: Request, methods: Sequence[str], out: Path, here: Runtime | None, *, overwrite: bool
) -> tuple[Part, list[str], list[str]]:
    """Return a student's part, what is to be said of the images, and what is warned of."""
    leading = next((method for method in methods if method != BASELINE), BASELINE)
    first = set_up(with_method(request, leading))
    if here is not None:
        make_fabric(here, first.recipe.precision)
    asked: dict[str, Request] = {}
    memories: set[str] = set()
    warnings: list[str] = []
    for method in methods:
        setup = set_up(with_method(pinned(request, first), method))
        others = (note for note in setup.notes if note not in first.notes_of_data)
        warnings += [note for note in others if note.startswith("warning:")]
        if not overwrite:
            _refuse_others(setup, out / folder / slug(method))
        asked[method] = setup.request
        memories.update(setup.objective.memories)
    part = Part(
        folder=folder,
        requests=asked,
        data=first.data.name,
        select=first.recipe.select,
        tape=f"recordings/{_digest(first)}" if folder and first.request.teacher is not None else "recordings",
        epochs=first.recipe.epochs,
        memories=frozenset(memories),
    )
    return part, list(first.notes_of_data), warnings


def with_method(request: Request, method: str) -> Request:
    """Return the request for a student by that method, which may be alone."""
    return alone_request(request) if method == BASELINE else replace(request, method=method)


def _named(note: str, student: str) -> str:
    """Return a line with the student that it is about.

    >>> _named("warning: too short", "wrn-10-1"), _named("seen at 32 x 32", "wrn-10-1")
    ('warning: wrn-10-1: too short', 'wrn-10-1: seen at 32 x 32')
    """
    is_warning = note.startswith("warning: ")
    return f"{'warning: ' * is_warning}{student}: {note.removeprefix('warning: ')}"


def _digest(setup: Setup) -> str:
    """Return a hash of everything that decides what the teacher says of each batch, whatever the seed."""
    decided = {**setup.tape_identity(), "seed": None, "precision": setup.recipe.teacher_precision}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]


def _refuse_others(setup: Setup, runs: Path) -> None:
    """Refuse a folder that holds runs, one for each seed, which are made of others than ``setup``."""
    is_first = True
    for path in sorted(runs.glob("seed-*")):
        folder, seed = RunFolder(path), path.name.removeprefix("seed-")
        if not seed.isdigit() or not folder.has_begun():
            continue
        own = replace(setup, request=replace(setup.request, seed=int(seed)))
        # Of one run for each method all is looked at, files and images too, which takes long for all of them.
        if is_first or folder.config() != own.config():
            is_first = False
            try:
                folder.refuse_other(own.config(), own.identity())
            except UnusableFolder as error:  # whose advice is for a run by itself
                raise InputError(
                    f"{error.what}: give another --out, the options that it was made with, or --overwrite"
                ) from error


def tasks_of(parts: Sequence[Part], seeds: int) -> list[Task]:
    """Return the runs, and for each seed a recording of what a teacher says where several students hear the same."""
    listeners: dict[str, list[Part]] = {}
    for part in parts:
        if part.taught:
            listeners.setdefault(part.tape, []).append(part)
    taped = {tape: sharing for tape, sharing in listeners.items() if sum(len(part.taught) for part in sharing) > 1}
    tasks = []
    for seed in range(seeds):
        for tape, sharing in taped.items():
            unlike: dict[tuple[int, frozenset[str]], Request] = {}
            for part in sharing:
                unlike.setdefault((part.epochs, part.memories), part.requests[part.taught[0]])
            requests = tuple(replace(request, seed=seed) for request in unlike.values())
            recording = Recording(requests, tuple(sharing[0].taught))
            tasks.append(Task(f"{tape}/seed-{seed}", recording, labels={"seed": seed}))
        for part in parts:
            for method, request in part.requests.items():
                after = (f"{part.tape}/seed-{seed}",) if method in part.taught and part.tape in taped else ()
                labels: dict[str, Label] = {"student": request.model, "method": method, "seed": seed}
                tasks.append(Task(part.name(method, seed), replace(request, seed=seed), after, labels=labels))
    return tasks


def begin_anew(tasks: Sequence[Task], out: Path) -> None:
    """Have every task begin anew, tapes included.

    Raises:
        InputError: when another process is at work on one, or plays a tape; nothing has been removed then.
    """
    recordings = {task.name for task in tasks if isinstance(task.work, Recording)}
    players = [name for name, after in planned(out).items() if not recordings.isdisjoint(after)]
    for folder in (*(task.folder(out) for task in tasks), *(out / name for name in players)):
        if (live := read_running(folder)) is not None:
            raise InputError(
                f"--overwrite: {folder} is being worked on by process {live['pid']} on {live['host']}: "
                "wait for its end, or end it"
            )
    for task in tasks:
        if isinstance(task.work, Recording):
            Tape.erase(tape_folder(out, task.name))
            (task.folder(out) / "result.json").unlink(missing_ok=True)
        else:
            RunFolder(task.folder(out)).begin_anew()


def checked_methods(methods: Sequence[str], seeds: int) -> list[str]:
    """Return the methods in their usual spelling.

    Raises:
        InputError: for what needs neither images nor networks to be refused.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    labels = [method_label(method) for method in methods]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"--methods names {repeated[0]!r} twice")
    return labels


def chosen_baseline(methods: Sequence[str], against: str | None) -> str:
    """Return the method that the others are compared with.

    Raises:
        InputError: when ``against`` is not among them.
    """
    if against is None:
        return BASELINE if BASELINE in methods else methods[0]
    label = method_label(against)
    if label not in methods:
        raise InputError(f"--against {against} is not among the --methods: {', '.join(methods)}")
    return label
