"""How many of many images are done, shown while they are gone through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spkd.training.progress import Display


@contextmanager
def counting(display: Display, title: str, images: int) -> Iterator[Callable[[int], None]]:
    """Show on a display what is done with ``images`` images; what is given takes the number of each batch of them."""
    done, begun = 0, time.monotonic()

    def count(more: int) -> None:
        nonlocal done
        done += more
        rate = done / max(1e-9, time.monotonic() - begun)
        display.update(done, f"{rate:,.0f} images/s")

    with display:
        display.begin(title, images, 0)
        yield count
