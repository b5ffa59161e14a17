"""The paper's figures are those of the fact sheet, and none is shown as surer than it is."""

from __future__ import annotations

import pytest

from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.published import CIFAR10, STATEMENTS, Certainty, Published, published_pair

TABLE = """
wrn-16-1 wrn-40-1 8.74q 8.48m 8.30m 8.13q 6.51q
wrn-16-1 wrn-16-2 8.74q 7.94m 8.28m 7.52m 6.07m
wrn-16-2 wrn-40-2 6.07m 6.00m 5.89m 5.52m 5.18q
wrn-16-2 wrn-16-8 6.07m 5.62m 5.47m 5.34m 4.24q
wrn-40-2 wrn-16-8 5.18q 4.86m 4.47m 4.55q 4.24q
"""


def figure(published: Published) -> str:
    letters = {Certainty.QUOTED: "q", Certainty.UNVERIFIED: "m"}
    return f"{published.value:.2f}{letters[published.certainty]}"


def test_the_table_is_the_fact_sheets() -> None:
    lines = []
    for pair in CIFAR10:
        cells = [pair.methods[method] for method in ("none", "kd", "at", "sp")]
        lines.append(" ".join([pair.student, pair.teacher, *map(figure, [*cells, pair.teacher_alone])]))
    assert lines == TABLE.split("\n")[1:-1]


def test_what_is_quoted_of_the_whole_table_holds_in_it() -> None:
    best = [min(pair.methods, key=lambda method: pair.methods[method].value) for pair in CIFAR10]
    assert best == ["sp", "sp", "sp", "sp", "at"]
    gains = [pair.methods["none"].value - pair.methods["sp"].value for pair in CIFAR10]
    assert round(min(gains), 2) >= 0.5
    assert round(max(gains), 1) == 1.2


@pytest.mark.parametrize("certainty", [Certainty.QUOTED, Certainty.UNVERIFIED])
def test_a_figure_is_printed_with_its_mark(certainty: Certainty) -> None:
    assert certainty.mark
    assert str(Published(7.5, certainty)) == f"7.50 {certainty.mark}"


def test_every_experiment_says_what_is_known_of_it() -> None:
    assert set(STATEMENTS) == set(EXPERIMENTS)
    assert published_pair("wrn-16-1", "wrn-40-2") is None
