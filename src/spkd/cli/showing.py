"""What a person sees of a command: lines and tables, as they are."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from spkd.errors import printable


def say(text: str, where: TextIO | None = None) -> None:
    """Print lines, of which what would not be seen is escaped."""
    print("\n".join(map(printable, text.split("\n"))), file=where)


def show(renderable: Any) -> None:
    """Print a table, in a file without colours and wide enough to be whole."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # as print() does, for there is one answer to it

    # A notebook, or what runs tests elsewhere, tells rich to colour, whatever the output is.
    is_shown = sys.stdout.isatty()
    console = Plain(highlight=False) if is_shown else Plain(highlight=False, force_terminal=False, width=140)
    console.print(renderable)
