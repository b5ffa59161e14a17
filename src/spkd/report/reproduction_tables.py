"""The tables of a reproduction, with the paper's figures beside ours and how sure those are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spkd.report.grid import Grid
from spkd.report.tables import NOT_KNOWN, p_value_text, pairs_text, statistics_cells
from spkd.studies.building import PRETRAINING
from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.findings import Line, Pair, added, paper_of
from spkd.studies.published import SCHEDULE_NOT_KNOWN, Certainty, Published
from spkd.studies.reproduction import Record, Reproduction

_STATISTICS = ("seeds", "median", "mean ± s.e.m.", "difference to none", "95 % interval", "p", "p (Holm)")
_UNTESTED = (
    "Test error in %. The partitions share images, so that no standard error, interval or test over them would hold, "
    "and none is given."
)
_TESTED = (
    "Test error in %. p: two-sided t-test against the student alone, paired by seed; p (Holm): corrected for the "
    "number of methods of the pair."
)

_BATCH_NOT_SAID = 128
"""Images in the batches of a measurement whose result does not say it."""


def overview(reproduction: Reproduction, pairs: Sequence[Pair]) -> Grid:
    """Return the paper's form of the table: a line for each pair, a column for each method, medians over the seeds.

    A figure of the paper stands in brackets behind ours, with the mark of its certainty.
    """
    methods = list(dict.fromkeys(line.label for pair in pairs for line in pair.lines))
    shown: list[Published] = []
    rows = []
    for pair in pairs:
        paper = paper_of(reproduction.experiment, pair)
        cells = [_cell(pair.line(method), paper.methods.get(method) if paper else None, shown) for method in methods]
        theirs = paper.teacher_alone if paper else None
        teacher = NOT_KNOWN if pair.teacher_error is None else f"{pair.teacher_error:.2f}"
        rows.append(
            (
                _network(pair.student, pair.parameters),
                _network(pair.teacher, pair.teacher_parameters),
                *cells,
                _beside(teacher, theirs, shown),
            )
        )
    taught = any(pair.teacher_error is not None for pair in pairs)
    of_teacher = ("Teacher alone: the run of seed 0, which taught, not a median.",) if taught else ()
    return Grid(
        title=f"{_title(reproduction)}: test error in %, median",
        headings=("student", "teacher", *(heading(method) for method in methods), "teacher alone"),
        rows=tuple(rows),
        notes=(*of_teacher, *_setting_notes(reproduction), *_paper_notes(shown)),
        texts=2,
    )


def statistics(reproduction: Reproduction, pairs: Sequence[Pair]) -> Grid:
    """Return a line for each method of each pair: median, mean, difference to the student alone and its tests."""
    shown: list[Published] = []
    rows = []
    for pair in pairs:
        paper = paper_of(reproduction.experiment, pair)
        for line in pair.lines:
            theirs = paper.methods.get(line.label) if paper else None
            if theirs is not None:
                shown.append(theirs)
            first = (pair.student, pair.teacher, heading(line.label))
            rows.append((*first, *_statistics(line), *((str(theirs) if theirs else NOT_KNOWN,) if paper else ())))
    independent = EXPERIMENTS[reproduction.experiment].independent_seeds
    headings = _STATISTICS if independent else ("mean" if name.startswith("mean") else name for name in _STATISTICS)
    column = ("paper's median",) if shown else ()
    return Grid(
        title=f"{_title(reproduction)}: over the seeds",
        headings=("student", "teacher", _first_heading(reproduction), *headings, *column),
        rows=tuple(rows),
        notes=(_TESTED if independent else _UNTESTED, *_setting_notes(reproduction), *_paper_notes(shown)),
        texts=3,
    )


def additions(reproduction: Reproduction, pairs: Sequence[Pair]) -> Grid | None:
    """Return what SP adds to each method that it is joined with; None where it is joined with none."""
    rows = []
    for pair in pairs:
        for joined, without, compared in added(pair):
            cells = statistics_cells(compared)
            rows.append((pair.student, pair.teacher, joined, without, str(compared.pairs or 0), *cells[2:]))
    if not rows:
        return None
    return Grid(
        title=f"{_title(reproduction)}: what SP adds",
        headings=("student", "teacher", "method", "against", "seeds", "difference", "95 % interval", "p"),
        rows=tuple(rows),
        notes=("Mean difference of the test error in %. p: two-sided t-test, paired by seed, not corrected.",),
        texts=4,
    )


def networks(reproduction: Reproduction) -> Grid:
    """Return the trained networks of an experiment that is a figure: a line for each training, finished or not."""
    finished = {record.task: record for record in reproduction.records}
    rows = []
    for task in (task for task in reproduction.tasks if task.kind == "training"):
        record = finished.get(task.name)
        labels = [str(task.labels[key] or NOT_KNOWN) for key in ("student", "teacher", "method")]
        error = f"{record.test_error:.2f}" if record else task.state
        rows.append((*labels, str(task.labels["seed"]), f"{record.parameters:,}" if record else NOT_KNOWN, error))
    return Grid(
        title=f"{_title(reproduction)}: networks",
        headings=("network", "teacher", "method", "seed", "parameters", "test error (%)"),
        rows=tuple(rows),
        notes=_setting_notes(reproduction),
        texts=3,
    )


def distances(reproduction: Reproduction) -> Grid | None:
    """Return the similarity-preserving loss of every measured network to its teacher; None where none was measured."""
    rows: list[tuple[str, ...]] = []
    measured = reproduction.measured()
    batches = dict.fromkeys(str(result.get("batch", _BATCH_NOT_SAID)) for result, _ in measured.values())
    for name, (result, _) in measured.items():
        for label, loss in result.get("sp_loss", {}).items():
            rows.append((label, f"{loss:.3g}", _percent(result["test_errors"][label])))
        for point in result.get("points", []):
            label = f"{name.removeprefix('measurements/')}, {point['method']}, seed {point['seed']}"
            rows.append((label, f"{point['sp_loss']:.3g}", _percent(point["test_error"])))
    if not rows:
        return None
    return Grid(
        title=f"{_title(reproduction)}: SP loss to the teacher on test images",
        headings=("network", "SP loss", "test error (%)"),
        rows=tuple(rows),
        notes=(f"Mean over test batches of {' or '.join(batches)} images, not weighted by γ.",),
    )


def heading(label: str) -> str:
    """Return a method as a heading.

    >>> heading("none"), heading("kd+sp"), heading("group3")
    ('alone', 'KD+SP', 'group3')
    """
    if label == "none":
        return "alone"
    return label.upper() if set(label.split("+")) <= {"kd", "at", "sp"} else label


def _title(reproduction: Reproduction) -> str:
    return f"{EXPERIMENTS[reproduction.experiment].title} ({reproduction.scale})"


def _first_heading(reproduction: Reproduction) -> str:
    return {"gamma": "γ", "layers": "layers"}.get(reproduction.experiment, "method")


def _network(label: str, parameters: int | None) -> str:
    return label if parameters is None else f"{label} ({parameters / 1e6:.2f} M)"


def _cell(line: Line | None, theirs: Published | None, shown: list[Published]) -> str:
    if line is None:
        return NOT_KNOWN
    return _beside(_median(line), theirs, shown)


def _beside(ours: str, theirs: Published | None, shown: list[Published]) -> str:
    if theirs is None:
        return ours
    shown.append(theirs)
    return f"{ours} ({theirs})"


def _median(line: Line) -> str:
    if line.finished and line.result is not None:
        return f"{line.result.median:.2f}"
    return f"unfinished {_seeds(line)}"


def _seeds(line: Line) -> str:
    done = len(line.result.seeds) if line.result is not None else 0
    return str(done) if done == line.planned else f"{done} of {line.planned}"


def _statistics(line: Line) -> tuple[str, ...]:
    if line.result is None:
        return (_seeds(line), "unfinished", *[NOT_KNOWN] * (len(_STATISTICS) - 2))
    seeds = f"{_seeds(line)}{pairs_text(line.result)}"
    return (seeds, *statistics_cells(line.result), p_value_text(line.p_holm))


def _setting_notes(reproduction: Reproduction) -> tuple[str, ...]:
    """Return in a line what the figures were made with, from the records."""
    records = [record for record in reproduction.records if record.method != PRETRAINING]
    if not records:
        return ("Nothing has finished yet.",)
    made_up = ("The images are made up, so the figures say nothing.",) if reproduction.scale == "smoke" else ()

    def values(of: Iterable[object]) -> str:
        return " or ".join(str(value) for value in dict.fromkeys(of))

    def each(field: str) -> str:
        return values(getattr(record, field) for record in records)

    note = (
        f"Ours: {each('train_images')} training images at {each('image_size')} pixels, {each('epochs')} epochs, model "
        f"selection on {each('val_images')} validation images, {each('test_images')} test images; {each('hardware')}."
    )
    stand_ins = _stand_ins(records)
    smaller = (f"Smaller networks stand in for those named: {stand_ins}.",) if stand_ins else ()
    schedule = SCHEDULE_NOT_KNOWN.get(reproduction.experiment) if reproduction.scale == "paper" else None
    unknown = () if schedule is None else (schedule,)
    return (*made_up, note, *unknown, *_pretraining_notes(reproduction), *smaller)


def _pretraining_notes(reproduction: Reproduction) -> tuple[str, ...]:
    """Return in a line on which images the networks were trained first, where that is part of the experiment."""
    first = [record for record in reproduction.records if record.method == PRETRAINING]
    if not first:
        return ()
    one = first[0]
    errors = ", ".join(f"{record.student} {record.test_error:.2f} %" for record in first)
    return (
        f"In the place of ImageNet the networks were trained on {one.train_images} images of CIFAR-10 at "
        f"{one.image_size} pixels for {one.epochs} epochs; test errors there: {errors}.",
    )


def _stand_ins(records: Sequence[Record]) -> str:
    pairs = {record.student: record.model for record in records if record.student.startswith("wrn-")}
    return ", ".join(f"{model} for {label}" for label, model in pairs.items() if model != label)


def _paper_notes(shown: Sequence[Published]) -> tuple[str, ...]:
    """Return what stands in brackets and the footnotes of the marks that are shown."""
    if not shown:
        return ()
    marks = [certainty for certainty in Certainty if certainty in {figure.certainty for figure in shown}]
    notes = [f"{certainty.mark} {certainty.meaning}." for certainty in marks]
    return (
        "Paper's figures (medians of five runs, 200 epochs on all images) in brackets or in their own column.",
        *notes,
    )


def _percent(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.2f}"
