"""A table of the layers of two networks that can be compared, and the pairs chosen."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from spkd.report.grid import as_text
from spkd.training.layers import Layers


def layers_table(layers: Layers) -> RenderableType:
    """Return the block ends of both networks, aligned from the output backwards, with the chosen pairs marked."""
    larger = "" if layers.teacher_size is None else f" (the teacher's at {layers.teacher_size} pixels)"
    table = Table(
        caption=f"for images of shape {layers.image_shape}{larger}; · marks a layer of a chosen pair",
        caption_justify="left",
    )
    for heading in ("student layer", "output", "teacher layer", "output"):
        table.add_column(heading)
    depth = max(len(layers.student), len(layers.teacher))
    paired_students = {pair.student for pair in layers.pairs}
    paired_teachers = {pair.teacher for pair in layers.pairs}
    for place in range(-depth, 0):
        cells = []
        for found, paired in ((layers.student, paired_students), (layers.teacher, paired_teachers)):
            if -place > len(found):
                cells += ["", ""]
                continue
            one = found[place]
            cells += [f"{'· ' if one.name in paired else '  '}{one.name}", " × ".join(map(str, one.shape))]
        table.add_row(*map(as_text, cells))
    chosen = ", ".join(str(pair) for pair in layers.pairs)
    return Group(table, as_text(f"compared (student=teacher): {chosen}"))
