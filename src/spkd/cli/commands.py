"""What each command does: call the library with the parsed options, and print."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from spkd.cli.options import pick
from spkd.cli.showing import say, show
from spkd.data.list_spec import short_name
from spkd.data.options import DataOptions
from spkd.errors import InputError, UnusableFolder
from spkd.files import require_writable, slug, write_text_atomically
from spkd.losses.weights import LossWeights
from spkd.studies.options import RunnerOptions
from spkd.studies.scales import ReproduceOptions
from spkd.training.options import DEFAULT_STUDENT, DEFAULT_TEACHER, Request, Runtime
from spkd.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jsonargparse import Namespace

    from spkd.studies.compare import Compared
    from spkd.training.progress import Display

STOPPED = 3
"""Exit code of a run that was stopped in time, with a checkpoint to go on from."""


def train(options: Namespace) -> int:
    """Train a network alone."""
    from spkd.report.networks import network_table
    from spkd.studies.side_by_side import network_row
    from spkd.training.progress import display
    from spkd.training.run import default_out, run

    request = _request(options, _network("model", options.model, options.data, DEFAULT_TEACHER), options.seed)
    out = Path(options.out or default_out(request))
    shown = display()
    _note_new_run(options, shown)
    result = run(
        request,
        out,
        _runtime(options),
        shown,
        resume=options.resume or (options.out is None and not options.overwrite),
        finish=options.finish,
        overwrite=options.overwrite,
    )
    if result is None:
        return _stopped(_how_to_go_on(out))
    show(network_table([network_row("trained", out, result)]))
    say(f"saved in {out / 'student'}")
    return 0


def distill(options: Namespace) -> int:
    """Train a student from a teacher, and show what there is to compare."""
    from spkd.report.networks import gain_text, network_table
    from spkd.studies import side_by_side
    from spkd.training.progress import display
    from spkd.training.run import default_out

    if options.tape_dtype is not None and options.tape is None:
        raise InputError("--tape_dtype is the precision of a tape: give --tape, or leave it out")
    request = _request(options, _student(options), options.seed)
    out = Path(options.out or default_out(request))
    shown = display()
    _note_new_run(options, shown)
    rows = side_by_side.distill(
        request,
        out,
        _runtime(options),
        shown,
        alone=options.alone,
        resume=options.resume or (options.out is None and not options.overwrite),
        finish=options.finish,
        overwrite=options.overwrite,
    )
    if rows is None:
        return _stopped(_how_to_go_on(out))
    show(network_table(rows))
    if (gain := gain_text(rows)) is not None:
        say(gain)
    if len(rows) > 2:
        say(f"the student alone is in {out}-alone")
    say(f"saved in {out / 'student'}; for a file to deploy: spkd export {shlex.quote(str(out))}")
    return 0


def compare(options: Namespace) -> int:
    """Compare methods over seeds, of one student or of several."""
    from spkd.report.drawing import write_figure
    from spkd.report.figures import comparison_figure
    from spkd.report.tables import comparison_markdown, comparison_table
    from spkd.studies.compare import compare as compare_methods

    students = _students(options)
    several = options.students is not None
    data = slug(short_name(options.data))
    out = Path(options.out or f"runs/{'students' if several else 'compare'}-{data}")
    compared = compare_methods(
        {slug(student) if several else "": _request(options, student, 0) for student in students},
        methods=options.methods,
        seeds=options.seeds,
        out=out,
        runtime=_runtime(options),
        options=RunnerOptions(**pick(RunnerOptions, options)),
        against=options.against,
        overwrite=options.overwrite,
        # Called again as it was, it would begin anew.
        command=shlex.join(["spkd", *(word for word in sys.argv[1:] if word != "--overwrite")]),
    )
    if compared is None:
        return _stopped(f"the same command{' without --overwrite' if options.overwrite else ''} continues")
    for one in compared:
        folder = out / one.part.folder
        write_figure(comparison_figure(one.comparison), folder / "comparison.png")
        write_text_atomically(folder / "comparison.md", comparison_markdown(one.comparison))
        show(comparison_table(one.comparison))
    files = "comparison.json, comparison.csv, comparison.md, comparison.png, comparison.svg"
    if several:
        _show_choice(compared, out)
        say(f"written, for each student in a folder of its own in {out}: {files}")
    else:
        say(f"written: {out / files}")
    return 0


def _show_choice(compared: Sequence[Compared], out: Path) -> None:
    from spkd.report.choice import choice_figure, choice_markdown, choice_table
    from spkd.report.drawing import write_figure
    from spkd.studies.choice import choose

    choice = choose(compared, out)
    write_figure(choice_figure(choice), out / "students.png")
    write_text_atomically(out / "students.md", choice_markdown(choice))
    show(choice_table(choice))
    say(f"written: {out / 'students.json'}, students.md, students.png, students.svg")


def status(options: Namespace) -> int:
    """Show where a study stands."""
    from spkd.report.status import status_table, status_text
    from spkd.studies.state import study_state

    states = study_state(Path(options.folder))
    show(status_table(states))
    say(status_text(states))
    return 0


def tape(options: Namespace) -> int:
    """Record a tape, or tell what it holds."""
    from spkd.report.tapes import tape_table
    from spkd.training.tape import Tape

    chosen: Namespace = options[options.action]
    folder = Path(chosen.folder)
    if options.action == "record":
        from spkd.training.progress import display
        from spkd.training.recording import record

        request = _request(chosen, _student(chosen), chosen.seed)
        if record(request, chosen.methods, folder, _runtime(chosen), display()) is None:
            return _stopped("the same command continues")
    try:
        found = Tape.open(folder)
    except UnusableFolder as error:
        raise InputError(error.what) from error
    if found is None:
        raise InputError(f"there is no tape in {folder}: `spkd tape record {folder} --teacher ...` makes one")
    show(tape_table(found))
    return 0


def evaluate(options: Namespace) -> int:
    """Evaluate a saved network."""
    from spkd.report.networks import evaluation_table
    from spkd.training.own_images import data_to_evaluate_on
    from spkd.training.progress import display
    from spkd.training.saved import evaluate_saved

    measured = evaluate_saved(
        options.network,
        data_to_evaluate_on(options.network, options.weights, pick(DataOptions, options)),
        split=options.split,
        teacher=options.teacher,
        accelerator=options.accelerator,
        display=display(brief=True),
        weights=options.weights,
        normalisation=options.normalisation,
        save=options.save,
        out=options.out,
        per_class=options.per_class,
    )
    show(evaluation_table(measured, per_class=options.per_class))
    for what, where in (("saved in", options.save), ("written:", options.out)):
        if where is not None:
            say(f"{what} {where}")
    return 0


def predict(options: Namespace) -> int:
    """Classify images by a saved network."""
    from spkd.rows import Rows
    from spkd.training.prediction import predict as classify
    from spkd.training.progress import display

    out = None if options.out is None else Path(options.out)
    if out is not None:
        require_writable(out)
    with Rows(out) as rows:
        found = classify(
            options.network,
            options.images,
            top=options.top,
            accelerator=options.accelerator,
            workers=options.workers,
            skip_bad_images=options.skip_bad_images,
            display=display(brief=True),
            rows=rows,
            probabilities=options.probabilities,
        )
        for note in found.notes:
            say(note, sys.stderr)
        if out is None:
            for line in rows.lines():
                if sys.stdout.isatty():
                    say(line.removesuffix("\n"))
                else:  # the names as they are
                    sys.stdout.write(line)
            sys.stdout.flush()
            return 0
        rows.save(out)
    counts = Counter(one.classes[0] for one in found.predictions)
    say(f"{len(found.predictions)} images: {', '.join(f'{count} {name}' for name, count in counts.most_common())}")
    say(f"written: {out}")
    return 0


def taps(options: Namespace) -> int:
    """Show the layers that can be compared."""
    from spkd.report.layers import layers_table
    from spkd.training.layers import find_layers

    given = {name: value for name, value in pick(DataOptions, options).items() if value is not None}
    if options.data is None and (useless := sorted(given.keys() - {"image_size", "grey"})):
        raise InputError(f"--{useless[0]} is about images: name them by --data, or leave it out")
    found = find_layers(
        student=_network("student", options.student, options.data, DEFAULT_STUDENT),
        teacher=_network("teacher", options.teacher, options.data, DEFAULT_TEACHER),
        weights=options.weights,
        teacher_weights=options.teacher_weights,
        data=None if options.data is None else DataOptions(**given),
        image_size=options.image_size,
        teacher_size=options.teacher_size,
        grey=bool(options.grey),
        select=tuple(options.taps),
    )
    show(layers_table(found))
    return 0


def reproduce(options: Namespace) -> int:
    """Run an experiment of the paper, or list them."""
    from spkd.report.grid import grid_table
    from spkd.report.reproduction import experiments_grid, write_report
    from spkd.studies.reproduction import experiment_named, reproduce
    from spkd.training.progress import display

    if options.name is None:
        show(grid_table(experiments_grid()))
        return 0
    experiment_named(options.name)
    if options.redraw and options.only:
        raise InputError("--redraw draws all that the records hold: leave out --only")
    out = Path(options.out or f"runs/reproduce-{options.scale}")
    state = None
    if not options.redraw:
        state = reproduce(
            options.name,
            ReproduceOptions(**{**pick(ReproduceOptions, options), "only": tuple(options.only)}),
            out,
            runner=RunnerOptions(**pick(RunnerOptions, options)),
            runtime=_runtime(options),
            display=display(),
            command=shlex.join(["spkd", *sys.argv[1:]]),
        )
    report = write_report(options.name, out)
    show(grid_table(report.main))
    for text in report.findings:
        say(text)
    say(f"written: {report.paths[0]}, records.csv, tables/, figures/")
    if state is not None:
        state.raise_failure(out)
    return _stopped("the same command continues") if state is not None and state.missing else 0


def _student(options: Namespace) -> str:
    return _network("student", options.student, options.data, DEFAULT_STUDENT)


def _students(options: Namespace) -> list[str]:
    """Return the students that are to be compared."""
    if options.students is None:
        return [_student(options)]
    if options.student is not None:
        raise InputError("--students is given instead of --student: leave one of them out")
    for place, student in enumerate(options.students):
        for other in options.students[:place]:
            if student == other:
                raise InputError(f"--students names {student!r} twice")
            if slug(student) == slug(other):
                raise InputError(f"--students: {other!r} and {student!r} have names too much alike for two folders")
    return list(options.students)


def _network(option: str, named: str | None, data: str | None, default: str) -> str:
    """Return the network that is named; where none is, that of the digits, which is none for other images."""
    if named is None and data is not None and not DataOptions(data=data).is_digits:
        raise InputError(
            f"give --{option}, such as timm/mobilenetv3_small_050, for --data {data}: only the digits have "
            "a default for it"
        )
    return default if named is None else named


def _request(options: Namespace, model: str, seed: int) -> Request:
    overrides = {name: value for owner in (Recipe, LossWeights) for name, value in pick(owner, options).items()}
    if overrides.get("milestones") is not None:
        overrides["milestones"] = tuple(overrides["milestones"])
    distilled = "student" in options
    return Request(
        model=model,
        weights=options.weights,
        normalisation=options.normalisation,
        replace_head=options.replace_head,
        teacher=options.teacher if distilled else None,
        teacher_weights=options.teacher_weights if distilled else None,
        teacher_normalisation=options.teacher_normalisation if distilled else None,
        teacher_size=options.teacher_size if distilled else None,
        method=options.get("method", "none"),
        taps=tuple(options.taps) if distilled else ("last",),
        data=DataOptions(**pick(DataOptions, options)),
        unlabelled=options.unlabelled if distilled else None,
        recipe=options.recipe,
        overrides=overrides,
        seed=seed,
    )


def _runtime(options: Namespace) -> Runtime:
    return Runtime(**pick(Runtime, options))


def _note_new_run(options: Namespace, shown: Display) -> None:
    """Say it where a run that is to be resumed is not there: its name may be mistyped."""
    from spkd.training.run_folder import RunFolder

    if options.resume and options.out is not None and not RunFolder(Path(options.out)).has_begun():
        shown.say(f"--resume: there is no run in {options.out} yet, so it begins now")


def _how_to_go_on(out: Path) -> str:
    from spkd.training.run_folder import RunFolder

    if not RunFolder(out).has_begun():
        return "the same command continues"
    return f"--resume continues from the checkpoint in {out}, --finish ends the run with its best epoch so far"


def _stopped(how_to_go_on: str) -> int:
    say(f"stopped before the end; {how_to_go_on}", sys.stderr)
    return STOPPED
