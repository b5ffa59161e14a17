"""The report of a reproduction: its tables, figures and findings, from records alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from spkd.files import write_text_atomically
from spkd.report import reproduction_figures as figures
from spkd.report import reproduction_tables as tables
from spkd.report.drawing import write_figure
from spkd.report.figures import comparison_figure
from spkd.report.grid import Grid, grid_markdown, write_grid
from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.findings import Pair, findings, pairs_of_records
from spkd.studies.published import STATEMENTS
from spkd.studies.reproduction import Reproduction, load_reproduction

_FIGURE_ONLY = ("activations", "similarity", "loss-vs-error")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        main: the table to show.
        findings: what came out, in words.
        paths: the files.
    """

    main: Grid
    findings: tuple[str, ...]
    paths: tuple[Path, ...]


def write_report(name: str, study: Path) -> Report:
    """Draw the tables and figures of an experiment into its folder in ``study``, from its records, without any model.

    ``report.md`` shows all of them; ``tables/`` holds each table as Markdown, CSV and LaTeX, ``figures/`` each
    figure as PNG and SVG. What is unfinished is shown as such.

    Raises:
        InputError: when there are no records, or the files cannot be written.
    """
    reproduction = load_reproduction(name, study)
    folder = reproduction.folder
    pairs = pairs_of_records(reproduction)
    grids = _grids(reproduction, pairs)
    found = _findings(reproduction, pairs)
    paths = [path for title, grid in grids.items() for path in write_grid(grid, folder / "tables" / title)]
    figure = _figure(reproduction, pairs)
    if figure is not None:
        paths += write_figure(figure, folder / "figures" / name)
    write_text_atomically(folder / "report.md", _markdown(reproduction, grids, found, figure is not None))
    return Report(next(iter(grids.values())), tuple(found), (folder / "report.md", *paths))


def experiments_grid() -> Grid:
    """Return the list of experiments."""
    rows = tuple((name, experiment.summary) for name, experiment in EXPERIMENTS.items())
    return Grid("spkd reproduce NAME", ("name", "what"), rows, texts=2)


def _grids(reproduction: Reproduction, pairs: tuple[Pair, ...]) -> dict[str, Grid]:
    """Return the tables by the names of their files, the one to show first."""
    if reproduction.experiment in _FIGURE_ONLY:
        grids = {"distances": tables.distances(reproduction), "networks": tables.networks(reproduction)}
    elif reproduction.experiment in ("gamma", "layers"):
        grids = {"statistics": tables.statistics(reproduction, pairs)}
    else:
        grids = {
            "overview": tables.overview(reproduction, pairs),
            "statistics": tables.statistics(reproduction, pairs),
            "additions": tables.additions(reproduction, pairs),
        }
    return {name: grid for name, grid in grids.items() if grid is not None}


def _figure(reproduction: Reproduction, pairs: tuple[Pair, ...]) -> Figure | None:
    """Return the experiment's figure, None while there is nothing to draw in it."""
    name, measured = reproduction.experiment, list(reproduction.measured().values())
    if name == "activations":
        return figures.activations_figure(*measured[0]) if measured else None
    if name == "similarity":
        return figures.similarity_figure(*measured[0]) if measured else None
    if name == "loss-vs-error":
        points = _points(reproduction)
        return figures.losses_figure(points) if points else None
    drawn = [pair for pair in pairs if any(line.result is not None for line in pair.lines[1:])]
    if not drawn:
        return None
    if name == "gamma":
        return figures.gamma_figure(drawn[0])
    return comparison_figure(*(pair.comparison(reproduction.records[0].data) for pair in drawn))


def _points(reproduction: Reproduction) -> figures.Points:
    return [
        (task.removeprefix("measurements/"), point)
        for task, (result, _) in reproduction.measured().items()
        for point in result["points"]
    ]


def _correlations(points: figures.Points) -> list[str]:
    lines = []
    for name, rho in figures.rank_correlations(points).items():
        count = sum(own == name for own, _ in points)
        said = "too few that differ for a rank correlation" if rho is None else f"rank correlation (Spearman) {rho:.2f}"
        pooled = f"SP loss and test error of {count} networks, students alone and by SP together"
        lines.append(f"{name.replace('-from-', ' from ')}: {pooled}: {said}")
    return lines


def _findings(reproduction: Reproduction, pairs: tuple[Pair, ...]) -> list[str]:
    if reproduction.experiment == "loss-vs-error":
        return _correlations(_points(reproduction))
    if reproduction.experiment in _FIGURE_ONLY:
        return []
    return findings(reproduction.experiment, pairs)


def _markdown(reproduction: Reproduction, grids: dict[str, Grid], found: list[str], drawn: bool) -> str:
    states = [task.state for task in reproduction.tasks]
    lines = [f"# {EXPERIMENTS[reproduction.experiment].title}", ""]
    if unfinished := len(states) - states.count("done"):
        lines += [f"**Unfinished: {unfinished} of {len(states)} tasks.**", ""]
    lines += [f"- {task.name} failed: {task.reason}" for task in reproduction.tasks if task.state == "failed"]
    for grid in grids.values():
        lines += ["", grid_markdown(grid)]
    if drawn:
        lines += [f"![{reproduction.experiment}](figures/{reproduction.experiment}.png)", ""]
    if found:
        lines += ["What came out:", "", *(f"- {text}" for text in found), ""]
    if statements := STATEMENTS[reproduction.experiment]:
        lines += [
            "What is said of the paper, not seen in a primary source:",
            "",
            *(f"- {text}" for text in statements),
            "",
        ]
    lines += [f"```\n{reproduction.command}\n```", ""]
    lines += [f"Software: {software}" for software in dict.fromkeys(record.software for record in reproduction.records)]
    return "\n".join(lines) + "\n"
