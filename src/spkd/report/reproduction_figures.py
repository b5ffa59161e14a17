"""The figures of a reproduction, drawn from its records and measured arrays alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from spkd.report.drawing import COLOURS, GREY
from spkd.studies.findings import Pair
from spkd.studies.records import BASELINE

Points = Sequence[tuple[str, dict[str, Any]]]
"""What was measured of each student: the pair's name, and ``method``, ``seed``, ``sp_loss``, ``test_error``."""

FEWEST_RANKED = 4
"""Networks that a rank correlation takes at the least: of two it is 1 or −1, whatever they are."""


def gamma_figure(pair: Pair) -> Figure:
    """Draw the test error against γ on a log axis: a dot for each seed, a line through the medians.

    The student alone is a grey line with the span of its seeds, the teacher a dashed one.
    """
    with style.context("default"):
        figure, axes = _figure(7.5, 4.6)
        alone, swept = pair.lines[0].result, [line.result for line in pair.lines[1:] if line.result is not None]
        if alone is not None:
            axes.axhspan(min(alone.test_errors), max(alone.test_errors), color=GREY, alpha=0.15, linewidth=0)
            label = f"{pair.student} alone: median, span of {len(alone.seeds)} seeds"
            axes.axhline(alone.median, color=GREY, linewidth=1.6, label=label)
        if pair.teacher_error is not None:
            axes.axhline(
                pair.teacher_error, color="black", linestyle=(0, (5, 4)), linewidth=1, label=f"teacher {pair.teacher}"
            )
        gammas = [float(row.method) for row in swept]
        for value, row in zip(gammas, swept, strict=True):
            axes.scatter([value] * len(row.seeds), row.test_errors, s=30, color=COLOURS[0], alpha=0.6, linewidths=0)
        axes.plot(
            gammas,
            [row.median for row in swept],
            color=COLOURS[0],
            marker="D",
            markersize=6,
            markeredgecolor="black",
            label=f"{pair.student} with SP: median, a dot for each seed",
        )
        axes.set_xscale("log")
        axes.set_xlabel("γ, weight of the similarity-preserving loss", fontsize=12)
        _error_axis(axes, f"{pair.student} from {pair.teacher}")
        axes.legend(fontsize=9.5, framealpha=0.9)
    return figure


def activations_figure(result: dict[str, Any], folder: Path) -> Figure:
    """Draw how strongly each channel fires on each test image, the images sorted by class.

    The channels are sorted by the class that excites them most; colours end at the 1st and 99th percentile.
    """
    with np.load(folder / "activations.npz", allow_pickle=False) as arrays:
        channels_cn, targets = arrays["channels"], arrays["targets"]
    classes = result["classes"]
    means_ck = np.stack([channels_cn[:, targets == label].mean(axis=1) for label in np.unique(targets)], axis=1)
    ordered_cn = channels_cn[np.argsort(means_ck.argmax(axis=1), kind="stable")]
    low, high = np.percentile(ordered_cn, [1, 99])
    with style.context("default"):
        figure, axes = _figure(10, 5.2)
        drawn = axes.imshow(ordered_cn, aspect="auto", interpolation="antialiased", cmap="viridis", vmin=low, vmax=high)
        _class_ticks(axes, targets, classes, horizontal=True)
        axes.set_xlabel(f"{len(targets):,} test images, sorted by class", fontsize=12)
        axes.set_ylabel(f"channel of {result['layer']}", fontsize=12)
        bar = figure.colorbar(drawn, ax=axes, pad=0.01)
        bar.set_label("spatial mean of the channel", fontsize=11)
    return figure


def similarity_figure(result: dict[str, Any], folder: Path) -> Figure:
    """Draw similarity matrices: a row of panels for each network, a column for each batch, images sorted by class.

    All panels share one scale of colours, from zero to the 99th percentile.
    """
    with np.load(folder / "similarity.npz", allow_pickle=False) as arrays:
        matrices, targets = arrays["matrices"], arrays["targets"]
    labels = list(result["sp_loss"])
    down, across = matrices.shape[:2]
    high = np.percentile(matrices, 99)
    with style.context("default"):
        figure = Figure(figsize=(3.0 * across + 2.2, 3.2 * down + 0.6), dpi=160, layout="compressed")
        panels = figure.subplots(down, across, squeeze=False)
        for row, label in enumerate(labels):
            for column in range(across):
                axes = panels[row, column]
                drawn = axes.imshow(matrices[row, column], cmap="viridis", vmin=0, vmax=high, interpolation="nearest")
                _class_ticks(axes, targets[column], result["classes"] if column == 0 else None, horizontal=False)
                if row == down - 1:
                    axes.set_xlabel(f"test batch {column + 1}", fontsize=11)
            panels[row, across // 2].set_title(_network_text(label, result), fontsize=12)
        bar = figure.colorbar(drawn, ax=panels, pad=0.01, shrink=0.6)
        bar.set_label("similarity (rows of unit length)", fontsize=11)
    return figure


def losses_figure(points: Points) -> Figure:
    """Draw the similarity-preserving loss on test images against the test error, with each pair's rank correlation.

    Each pair has a colour; students alone are open circles, students trained with SP filled diamonds.
    """
    correlations = rank_correlations(points)
    with style.context("default"):
        figure, axes = _figure(7.8, 5.4)
        for place, name in enumerate(dict.fromkeys(name for name, _ in points)):
            own = [point for other, point in points if other == name]
            colour = COLOURS[place % len(COLOURS)]
            rho = correlations[name]
            label = name.replace("-from-", " from ") + ("" if rho is None else f", ρ = {rho:.2f}".replace("-", "−"))
            for method, marker, face in ((BASELINE, "o", "none"), ("sp", "D", colour)):
                some = [point for point in own if point["method"] == method]
                axes.scatter(
                    [point["sp_loss"] for point in some],
                    [point["test_error"] for point in some],
                    marker=marker,
                    s=52,
                    facecolors=face,
                    edgecolors=colour,
                    linewidths=1.6,
                    label=label if method == "sp" else None,
                )
        axes.scatter([], [], marker="o", s=52, facecolors="none", edgecolors="black", label="without SP in training")
        axes.scatter([], [], marker="D", s=52, color="black", label="with SP in training")
        axes.set_xscale("log")
        axes.set_xlabel("SP loss to the teacher, on test images", fontsize=12)
        title = "ρ: Spearman's rank correlation of loss and error within a pair,\nstudents alone and by SP together"
        _error_axis(axes, title)
        axes.legend(fontsize=9.5, framealpha=0.9)
    return figure


def rank_correlations(points: Points) -> dict[str, float | None]:
    """Return Spearman's rank correlation of loss and error by pair, since a pair's students are alike.

    Students alone and those by SP count together. Training with SP lowers the loss, so that the correlation says above
    all whether it lowered the error too. None for fewer than :data:`FEWEST_RANKED` networks, and where all losses
    or all errors are the same.
    """
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(name for name, _ in points):
        losses = [point["sp_loss"] for own, point in points if own == name]
        errors = [point["test_error"] for own, point in points if own == name]
        differ = len(losses) >= FEWEST_RANKED and len(set(losses)) > 1 and len(set(errors)) > 1
        found[name] = float(stats.spearmanr(losses, errors).statistic) if differ else None
    return found


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    return figure, figure.add_subplot()


def _error_axis(axes: Axes, title: str) -> None:
    axes.set_ylabel("test error (%)", fontsize=12)
    axes.set_title(title, fontsize=12)
    axes.tick_params(labelsize=10.5)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _class_ticks(axes: Axes, targets: NDArray[np.int64], classes: Sequence[str] | None, *, horizontal: bool) -> None:
    """Mark where each class begins, and name it in its middle; ``targets`` are sorted."""
    labels, starts, counts = np.unique(targets, return_index=True, return_counts=True)
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="white", linewidth=0.7)
        if not horizontal:
            axes.axhline(start - 0.5, color="white", linewidth=0.7)
    axes.set_xticks([])
    axes.set_yticks([])
    if classes is None:
        return
    middles = starts + (counts - 1) / 2
    names = [classes[label] for label in labels]
    if horizontal:
        axes.set_xticks(middles, names, fontsize=10.5, rotation=30, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
    else:
        axes.set_yticks(middles, names, fontsize=8)
        axes.tick_params(axis="y", length=0)


def _network_text(label: str, result: dict[str, Any]) -> str:
    """Return a network's name with its test error and its loss to the teacher."""
    error = result["test_errors"][label]
    facts = [] if error is None else [f"test error {error:.2f} %"]
    if label != next(iter(result["sp_loss"])):
        facts.append(f"SP loss {result['sp_loss'][label]:.2g}")
    return f"{label}\n{', '.join(facts)}"
