"""What the records of a reproduction say: methods compared over seeds, and the paper's statements held against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.published import PublishedPair, published_pair
from spkd.studies.records import BASELINE, Comparison, ComparisonRow, comparison_row, weak_teacher
from spkd.studies.reproduction import PlannedTask, Record, Reproduction
from spkd.studies.statistics import holm, rising


@dataclass(frozen=True)
class Line:
    """One method of one pair of networks.

    Attributes:
        label: what the line is called: the method, or the setting of an experiment about settings.
        planned: how many seeds there are to be.
        result: of the seeds that have finished, against the student alone; None before the first.
        p_holm: the p-value after Holm's correction for all methods that are planned for the pair.
    """

    label: str
    planned: int
    result: ComparisonRow | None
    p_holm: float | None = None

    @property
    def finished(self) -> bool:
        """Whether every seed has."""
        return self.result is not None and len(self.result.seeds) == self.planned


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, with all that was done to the student.

    Attributes:
        student: its label.
        teacher: likewise.
        parameters: of the student; None before its first training has finished.
        teacher_parameters: of the teacher; None where it was not trained here.
        lines: the student alone first, then the methods in the plan's order.
        teacher_error: test error of the teacher that was used; None where it was not trained here.
    """

    student: str
    teacher: str
    parameters: int | None
    teacher_parameters: int | None
    lines: tuple[Line, ...]
    teacher_error: float | None

    def line(self, label: str) -> Line | None:
        """Return the line of that label."""
        return next((line for line in self.lines if line.label == label), None)

    def comparison(self, data: str) -> Comparison:
        """Return the finished part as a comparison, for a figure."""
        return Comparison(
            title=f"{self.student} from {self.teacher}",
            teacher={"spec": self.teacher, "test_error": self.teacher_error},
            student=self.student,
            data=data,
            rows=tuple(line.result for line in self.lines if line.result is not None),
        )

    def order(self) -> tuple[str, ...] | None:
        """Return the labels from the lowest median to the highest; None while a line is unfinished."""
        if not all(line.finished for line in self.lines):
            return None
        return tuple(line.label for line in sorted(self.lines, key=_median))


def pairs_of_records(reproduction: Reproduction) -> tuple[Pair, ...]:
    """Return the pairs of an experiment in the plan's order, with their methods compared over seeds."""
    planned = [task for task in reproduction.tasks if task.kind == "training"]
    rowed = [task for task in planned if task.labels["row"] is not None]
    names = dict.fromkeys((str(task.labels["student"]), str(task.labels["teacher"])) for task in rowed)
    experiment = EXPERIMENTS[reproduction.experiment]
    pairs = [_pair(*pair, planned, reproduction.records) for pair in names]
    if not experiment.trains_teachers:
        pairs = [replace(pair, teacher_error=None, teacher_parameters=None) for pair in pairs]
    if not experiment.independent_seeds:
        pairs = [replace(pair, lines=tuple(_untested(line) for line in pair.lines)) for pair in pairs]
    return tuple(pairs)


def _untested(line: Line) -> Line:
    """Return a line without what supposes independent seeds."""
    result = None if line.result is None else replace(line.result, sem=None, interval=None, p_value=None)
    return replace(line, result=result, p_holm=None)


def _pair(student: str, teacher: str, planned: Sequence[PlannedTask], records: Sequence[Record]) -> Pair:
    own = [task for task in planned if (task.labels["student"], task.labels["teacher"]) == (student, teacher)]
    alone = [record for record in records if record.student == student and record.method == BASELINE]
    seeds = sum(task.labels["student"] == student and task.labels["method"] == BASELINE for task in planned)
    baseline = _compared(BASELINE, alone, None)
    lines = [Line(BASELINE, seeds, baseline)]
    for label in dict.fromkeys(_label(task) for task in own):
        names = {task.name for task in own if _label(task) == label}
        found = [record for record in records if record.task in names]
        lines.append(Line(label, len(names), _compared(label, found, baseline)))
    teachers = [record for record in records if record.student == teacher and record.method == BASELINE]
    used = next((record for record in teachers if record.seed == 0), None)
    return Pair(
        student=student,
        teacher=teacher,
        parameters=alone[0].parameters if alone else None,
        teacher_parameters=used.parameters if used else None,
        lines=_corrected(lines),
        teacher_error=used.test_error if used else None,
    )


def _label(task: PlannedTask) -> str:
    setting = task.labels["setting"]
    if setting is None:
        return str(task.labels["method"])
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def _compared(label: str, records: Sequence[Record], baseline: ComparisonRow | None) -> ComparisonRow | None:
    if not records:
        return None
    return comparison_row(
        label,
        seeds=[record.seed for record in records],
        test_errors=[record.test_error for record in records],
        val_errors=[record.val_error for record in records],
        baseline=baseline,
    )


def _corrected(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Return the lines, of which the first is the student alone, with Holm's correction."""
    alone, *methods = lines
    corrected = holm([line.result.p_value if line.result is not None else None for line in methods])
    return (alone, *(replace(line, p_holm=p_value) for line, p_value in zip(methods, corrected, strict=True)))


def added(pair: Pair) -> list[tuple[str, str, ComparisonRow]]:
    """Return what SP adds to each method that it is joined with: (with, without, comparison over the common seeds)."""
    found = []
    for line in pair.lines:
        terms = line.label.split("+")
        without = pair.line("+".join(term for term in terms if term != "sp")) if "sp" in terms else None
        if without is None or without.result is None or line.result is None:
            continue
        result = line.result
        compared = comparison_row(line.label, result.seeds, result.test_errors, result.val_errors, without.result)
        found.append((line.label, without.label, compared))
    return found


def paper_of(experiment: str, pair: Pair) -> PublishedPair | None:
    """Return the paper's figures for a pair, None where there are none to show."""
    return published_pair(pair.student, pair.teacher) if experiment == "cifar10" else None


def findings(experiment: str, pairs: Sequence[Pair]) -> list[str]:
    """Return in words what came out, with the paper's own outcome beside it where it is known."""
    if experiment == "gamma":
        return [_about_gamma(pair) for pair in pairs]
    lines = [_about(pair, paper_of(experiment, pair)) for pair in pairs]
    if len(pairs) > 1 and all(pair.line("sp") for pair in pairs):
        lines.insert(0, _how_often(pairs, "SP has a lower median than the student alone", _better_than_alone))
        lines.insert(1, _how_often(pairs, "SP has the lowest median of all methods", _is_best))
    if EXPERIMENTS[experiment].trains_teachers:
        lines += _distilled_teachers(pairs)
    return lines


def _about(pair: Pair, paper: PublishedPair | None) -> str:
    name = f"{pair.student} from {pair.teacher}"
    order = pair.order()
    if order is None:
        return f"{name}: unfinished{_weakness(pair)}"
    text = f"{name}: from the lowest median to the highest: {_in_words(pair, order)}"
    if paper is not None and set(paper.methods) == set(order):
        theirs = tuple(sorted(paper.methods, key=lambda method: paper.methods[method].value))
        held = "the same order" if _rises(pair, theirs) else f"another order ({', '.join(theirs)})"
        marks = sorted({figure.certainty.mark for figure in paper.methods.values()})
        text += f"; the paper has {held} {' '.join(marks)}"
        text += _tested(pair, theirs)
    return text + _weakness(pair)


def _rises(pair: Pair, order: Sequence[str]) -> bool:
    """Return whether no median in the order given is below the one before it: equal ones agree with any order."""
    medians = {line.label: _median(line) for line in pair.lines}
    return all(medians[before] <= medians[label] for before, label in pairwise(order))


def _weakness(pair: Pair) -> str:
    """Return the warning of a teacher no better than the student alone, of the seeds there are; else nothing."""
    alone = pair.line(BASELINE)
    if alone is None or alone.result is None:
        return ""
    warning = weak_teacher(pair.teacher_error, _median(alone))
    return "" if warning is None else f"; {warning}"


def _tested(pair: Pair, order: Sequence[str]) -> str:
    """Say how well the seeds of a finished pair agree with an order of its methods, from the lowest error up."""
    results = [line.result for label in order if (line := pair.line(label)) is not None and line.result is not None]
    columns = [[error for _, error in sorted(zip(one.seeds, one.test_errors, strict=True))] for one in results]
    p_value = rising(columns)
    if p_value is None:
        return ""
    seeds = len(columns[0])
    return f"; Page's trend test for the paper's order over {seeds} seeds: p = {p_value:.2g} (one-sided, not corrected)"


def _about_gamma(pair: Pair) -> str:
    """Say how far the error moves with γ, and where it is below that of the student alone."""
    name = f"{pair.student} from {pair.teacher}"
    if pair.order() is None:
        return f"{name}: unfinished{_weakness(pair)}"
    alone, *swept = pair.lines
    medians = [_median(line) for line in swept]
    lower = [line.label for line in swept if _median(line) < _median(alone)]
    return (
        f"{name}: over γ from {swept[0].label} to {swept[-1].label} the median lies between {min(medians):.2f} and "
        f"{max(medians):.2f} %, that of the student alone at {_median(alone):.2f} %; it is lower at γ = "
        f"{', '.join(lower) or 'none of them'}{_weakness(pair)}"
    )


def _in_words(pair: Pair, order: Sequence[str]) -> str:
    """Return the labels in their order, with an equals sign between those whose medians are equal."""
    medians = {line.label: _median(line) for line in pair.lines}
    text = order[0]
    for before, label in pairwise(order):
        text += f" = {label}" if medians[before] == medians[label] else f", {label}"
    return text


def _distilled_teachers(pairs: Sequence[Pair]) -> list[str]:
    """Return a line for each network that is a teacher of one pair and a student of another: is it better distilled?"""
    teachers = {pair.teacher for pair in pairs}
    lines = []
    for pair in pairs:
        alone, distilled = pair.line(BASELINE), pair.line("sp")
        if pair.student not in teachers or alone is None or distilled is None:
            continue
        if not (alone.finished and distilled.finished):
            lines.append(f"{pair.student}, itself a teacher, from {pair.teacher}: unfinished")
            continue
        verdict = "better than" if _median(distilled) < _median(alone) else "NOT better than"
        lines.append(
            f"{pair.student}, itself a teacher: distilled from {pair.teacher} ({_median(distilled):.2f} %) {verdict} "
            f"alone ({_median(alone):.2f} %)"
        )
    return lines


def _how_often(pairs: Sequence[Pair], text: str, holds: Callable[[Pair], bool]) -> str:
    finished = [pair for pair in pairs if pair.order() is not None]
    return f"{text} in {sum(holds(pair) for pair in finished)} of {len(finished)} finished pairs (of {len(pairs)})"


def _better_than_alone(pair: Pair) -> bool:
    alone, distilled = pair.line(BASELINE), pair.line("sp")
    return alone is not None and distilled is not None and _median(distilled) < _median(alone)


def _is_best(pair: Pair) -> bool:
    distilled = pair.line("sp")
    others = [line for line in pair.lines if line.label != "sp"]
    return distilled is not None and _median(distilled) < min(_median(line) for line in others)


def _median(line: Line) -> float:
    return line.result.median if line.result is not None else float("inf")
