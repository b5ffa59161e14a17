"""Tables of networks: what each costs, how well it does, how its exported file compares."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from spkd.calibration import Calibration
from spkd.export import ExportReport
from spkd.quantisation import Int8Report
from spkd.report.grid import as_text
from spkd.report.tables import signed
from spkd.studies.records import NetworkRow, unlike_steps, weak_teacher
from spkd.training.evaluation import Evaluation

UNEQUAL = 1.5
"""How many times the images of the smallest class the largest has from which on the balanced error is shown."""
UNSURE = 0.2
"""The standard error of a temperature, as a part of it, above which it is warned of."""


def network_table(rows: Sequence[NetworkRow]) -> Table:
    """Return a table with a line for each network: parameters, multiply-adds and latency for one image, errors.

    The balanced test error is among these where a network has one to show.
    """
    headings = ["parameters", "MACs", "CPU latency", "validation error", "test error"]
    shows_balanced = any(row.test_balanced_error is not None for row in rows)
    if shows_balanced:
        headings.append("balanced test error")
    lines = [
        (
            short_count(row.parameters),
            short_count(row.multiply_adds),
            f"{row.latency_ms:.2f} ms",
            _percent(row.val_error),
            _percent(row.test_error),
            *([_percent(row.test_balanced_error)] if shows_balanced else []),
        )
        for row in rows
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("network", overflow="fold")
    table.add_column("model", overflow="fold")
    for place, heading in enumerate(headings):
        # A heading takes several lines, no number does, and names have the rest of the room.
        words = max(map(len, heading.split()))
        width = max([words, *(len(line[place]) for line in lines)])
        table.add_column(heading, justify="right", width=width)
    for row, line in zip(rows, lines, strict=True):
        table.add_row(as_text(row.label), as_text(row.model), *line)
    return table


def gain_text(rows: Sequence[NetworkRow]) -> str | None:
    """Return in words what the teacher's help changed, where the student alone is among the rows and last the other.

    >>> alone = NetworkRow("student alone", "wrn-10-1", 1, 1, 1.0, test_error=3.0, val_error=3.0)
    >>> gain_text([alone, NetworkRow("student, sp", "wrn-10-1", 1, 1, 1.0, test_error=2.25, val_error=2.0)])
    'student, sp: 0.75 points fewer test errors than alone, in this one run; `spkd compare` tests it over seeds'

    Where both have a balanced error to show, it is told too, and where the two disagree neither is a verdict. Further
    lines warn of unlike numbers of steps, and of a teacher that is no better than the student alone.
    """
    alone = next((row for row in rows if row.label == "student alone"), None)
    if alone is None or alone.test_error is None or rows[-1].test_error is None:
        return None
    gain = alone.test_error - rows[-1].test_error
    gains, said = [gain], f"{abs(gain):.2f} points {'fewer' if gain > 0 else 'MORE'} test errors than alone"
    if gain == 0:
        said = "as many test errors as alone"
    if alone.test_balanced_error is not None and rows[-1].test_balanced_error is not None:
        gains.append(alone.test_balanced_error - rows[-1].test_balanced_error)
        said = _both_gains(*gains)
    if alone.epochs != rows[-1].epochs:
        return f"{rows[-1].label}: {said}, but after {rows[-1].epochs} epochs, and alone after {alone.epochs}"
    text = f"{rows[-1].label}: {said}, in this one run; `spkd compare` tests it over seeds"
    if max(gains) <= 0 and min(gains) < 0 and "sp" in rows[-1].label.removeprefix("student, ").split("+"):
        text += ", and a lower --gamma may help"
    if (unlike := unlike_steps(alone.steps, rows[-1].steps, alone.epochs)) is not None:
        said, epochs = unlike
        text += f"\nwarning: {said}; `spkd train --epochs {epochs} ...` gives it as many"
    teacher = next((row for row in rows if row.label == "teacher"), None)
    if teacher is None:
        return text
    balanced = (teacher.test_balanced_error, alone.test_balanced_error)
    warning = weak_teacher(teacher.test_error, alone.test_error, balanced)
    return text if warning is None else f"{text}\nwarning: {warning}"


def _both_gains(gain: float, balanced: float) -> str:
    """Return in words how test error and balanced test error differ from those of the student alone.

    >>> print(_both_gains(0.5, 1.25))
    0.50 points fewer test errors than alone, and a balanced error 1.25 points lower
    >>> print(_both_gains(-0.5, 0.0))
    0.50 points MORE test errors than alone, and the same balanced error
    >>> print(_both_gains(-0.5, 1.25))
    a test error 0.50 points higher than alone, but a balanced error 1.25 points lower: the two disagree
    """
    own = "the same balanced error"
    if balanced:
        own = f"a balanced error {abs(balanced):.2f} points {'lower' if balanced > 0 else 'higher'}"
    if gain * balanced < 0:
        than = f"{abs(gain):.2f} points {'lower' if gain > 0 else 'higher'} than alone"
        return f"a test error {than}, but {own}: the two disagree"
    if gain == 0:
        return f"as many test errors as alone, and {own}"
    return f"{abs(gain):.2f} points {'fewer' if gain > 0 else 'MORE'} test errors than alone, and {own}"


def evaluation_table(measured: Evaluation, *, per_class: bool = False) -> RenderableType:
    """Return a table of an evaluation, and one of its classes where asked."""
    table = Table(show_header=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("images", f"{measured.images:,}")
    table.add_row("top-1 error", _percent(measured.top1_error))
    if _unequal([one.images for one in measured.per_class]):
        table.add_row("balanced error (mean of the classes)", _percent(measured.balanced_error))
    if measured.top5_error is not None:
        table.add_row("top-5 error", _percent(measured.top5_error))
    table.add_row("cross-entropy", f"{measured.cross_entropy:.4f}")
    table.add_row("expected calibration error", _percent(measured.calibration_error))
    if measured.agreement is not None:
        table.add_row("agreement with the teacher", _percent(measured.agreement))
    if not per_class:
        return table
    classes = Table("class")
    for heading in ("images", "top-1 error", "precision", "AUC"):
        classes.add_column(heading, justify="right")
    classes.add_column("most often taken for")
    for one in measured.per_class:
        taken = "" if one.taken_for is None else f"{one.taken_for} ({_percent(one.taken)})"
        area = "–" if one.area is None else f"{one.area:.4f}"
        figures = (f"{one.images:,}", _percent(one.error), _percent(one.precision), area)
        classes.add_row(as_text(one.name), *figures, as_text(taken))
    return Group(table, classes)


def export_table(report: ExportReport) -> Table:
    """Return a table that sets an exported file beside the network that it came from."""
    table = Table()
    table.add_column("form")
    table.add_column("size", justify="right")
    table.add_column("CPU latency, one image", justify="right")
    table.add_row("PyTorch", decimal(report.source_bytes), f"{report.latency_torch_ms:.2f} ms")
    table.add_row(report.format, decimal(report.bytes), f"{report.latency_exported_ms:.2f} ms")
    return table


def int8_table(report: Int8Report) -> Table:
    """Return a table that sets a file in 8-bit integers beside the network that it came from."""
    headings, shown = ["size", "CPU latency, one image", "validation error"], 1
    if _unequal([one.images for one in report.per_class]):
        headings, shown = [*headings, "balanced error"], 2
    table = Table()
    table.add_column("form")
    for heading in headings:
        table.add_column(heading, justify="right")
    for form, size, latency, errors in (
        ("PyTorch", report.source_bytes, report.source_latency_ms, (None, None)),
        ("onnx", report.float_bytes, report.float_latency_ms, (report.float_error, report.float_balanced_error)),
        ("onnx, int8", report.bytes, report.latency_ms, (report.error, report.balanced_error)),
    ):
        table.add_row(form, decimal(size), f"{latency:.2f} ms", *map(_percent, errors[:shown]))
    return table


def int8_text(report: Int8Report) -> str:
    """Return in words how often 8-bit integers decide otherwise, with a warning where they cost a point or more.

    That is of the error or of the balanced error; the class that loses most is named.
    """
    text = f"in 8-bit integers {report.agreement:.2f} % of the {report.images:,} validation images keep their class"
    loss, balanced = report.error - report.float_error, report.balanced_error - report.float_balanced_error
    if max(loss, balanced) < 1:
        return text
    most = max(report.per_class, key=lambda one: one.error - one.float_error)
    own = f"{most.name!r} {signed(most.error - most.float_error)} ({most.images} images)"
    losses = f"validation error {signed(loss)} points, balanced error {signed(balanced)}, worst class {own}"
    return f"{text}\nwarning: {losses}; without --int8 the file is exact"


def calibration_text(found: Calibration) -> str:
    """Return in words what a temperature changed, with a warning where the images tell too little of it."""
    before, after, wide = found.before, found.after, found.standard_error
    text = (
        f"temperature {found.temperature:.3g} ± {wide:.2g}: calibration error {_percent(after.calibration_error)} (was "
        f"{_percent(before.calibration_error)}), cross-entropy {after.cross_entropy:.4f} (was "
        f"{before.cross_entropy:.4f}), on the {after.images:,} validation images that it was chosen on"
    )
    wrong = f"{round(after.images * after.top1_error / 100):,} wrong answers among {after.images:,} images"
    if abs(found.temperature - 1) < 2 * wide:
        unsure = f"{wrong} are too few to tell it from 1: the probabilities may be as good without --calibrate"
        return f"{text}\nwarning: {unsure}"
    if wide > UNSURE * found.temperature:
        return f"{text}\nwarning: {wrong} determine it only roughly: more validation images would help"
    return text


def _unequal(counts: Sequence[int]) -> bool:
    """Return whether there are so many more images of one class than of another that the balanced error is shown."""
    some = [count for count in counts if count]
    return max(some) >= UNEQUAL * min(some)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def short_count(count: int) -> str:
    """Return a count with a unit.

    >>> short_count(175066), short_count(2243546), short_count(950)
    ('175.1 k', '2.24 M', '950')
    """
    for unit, factor, digits in (("G", 1e9, 2), ("M", 1e6, 2), ("k", 1e3, 1)):
        if count >= factor:
            return f"{count / factor:.{digits}f} {unit}"
    return str(count)
