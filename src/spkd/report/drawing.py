"""What all figures share: colours that anyone can tell apart, and files that are the same every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from spkd.files import write_atomically

# Okabe and Ito (2008), distinguishable with any colour vision; grey for the student alone.
GREY = "#6E6E6E"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

SVG_DPI = 100
"""Of the pictures in an SVG, such as matrices with more cells than pixels; lines and letters have none."""


def write_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure to ``path`` with the suffix ``.png``, and beside it with ``.svg``.

    The same figure gives the same files: no date is written, and an SVG's ids are not random.

    Returns:
        The paths of the PNG and the SVG.

    Raises:
        InputError: for a folder that cannot be written.
    """
    # Not with_suffix, which would cut a name such as "v1.2" short.
    stem = path.name.removesuffix(".png").removesuffix(".svg")
    png, svg = path.parent / f"{stem}.png", path.parent / f"{stem}.svg"
    with style.context("default"), matplotlib.rc_context({"svg.hashsalt": "spkd"}):
        FigureCanvasAgg(figure)
        write_atomically(png, lambda file: figure.savefig(file, metadata={"Software": "spkd"}))
        FigureCanvasSVG(figure)
        write_atomically(
            svg, lambda file: figure.savefig(file, dpi=SVG_DPI, metadata={"Date": None, "Creator": "spkd"})
        )
    return png, svg
