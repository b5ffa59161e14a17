"""A table of what a tape holds."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from spkd.errors import printable
from spkd.report.grid import as_text
from spkd.training.tape import Tape


def tape_table(tape: Tape) -> RenderableType:
    """Return two tables: what decided the tape, and how much there is of each memory, all of which is read for it."""
    manifest = tape.manifest
    facts = Table(show_header=False)
    facts.add_column("what")
    facts.add_column("value")
    measured = {
        name.replace("_", " "): value if isinstance(value, str) else f"{value:.2f} %"
        for name, value in manifest.teacher.items()
        if value is not None
    }
    stored = {"teacher precision": manifest.precision, "stored in": manifest.dtype}
    for name, value in {**manifest.identity, **stored, **measured}.items():
        if value not in (None, {}):
            if isinstance(value, dict):
                value = ", ".join(f"{what} {digest[:12]}" for what, digest in value.items())
            facts.add_row(
                as_text(name.replace("_", " ")), Text(printable(str(value)), overflow="ellipsis", no_wrap=True)
            )
    memories = Table("memory", "shape", "each step", "steps recorded", "damaged", "of it on disk")
    for name, memory in manifest.memories.items():
        damaged = len(tape.damaged(name))
        steps = tape.recorded([name], tape.steps(name)) - damaged
        size = memory.slot_bytes
        shape = " × ".join(map(str, memory.full))
        memories.add_row(
            as_text(name), shape, decimal(size), f"{steps:,}", f"{damaged:,}" if damaged else "–", decimal(steps * size)
        )
    epoch = f"{manifest.batches_per_epoch:,} steps make an epoch"
    return Group(facts, memories, epoch)
