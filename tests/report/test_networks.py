"""What is shown of networks is what they are called, whatever stands in the name."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from spkd.report.networks import evaluation_table, network_table
from spkd.studies.records import NetworkRow
from spkd.training.evaluation import ClassError, Evaluation


def printed(table: RenderableType) -> str:
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(table)
    text = console.file.getvalue()
    assert isinstance(text, str)
    return text


def test_brackets_in_names_of_networks_are_kept() -> None:
    row = NetworkRow("[bold]sp[/bold]", "net.py:Net?sizes=[a, b]", 2_500_000, 950, 1.234, None, 3.0)
    line = next(line for line in printed(network_table([row])).splitlines() if "2.50 M" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["[bold]sp[/bold]", "net.py:Net?sizes=[a, b]", "2.50 M", "950", "1.23 ms", "3.00 %", "–"]


def test_brackets_in_names_of_classes_are_kept() -> None:
    classes = (ClassError("[red]", 2, 50.0), ClassError("[/]", 1, 0.0))
    measured = Evaluation(3, 33.3, None, 0.5, 1.0, None, classes)
    text = printed(evaluation_table(measured, per_class=True))
    assert "[red]" in text
    assert "[/]" in text
    assert "[red]" not in printed(evaluation_table(measured))
