"""The error that a person can mend, and how names are told in it."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable


class InputError(ValueError):
    """What the user gave cannot be used.

    ``str(error)`` is one line that names the argument, what was expected, what came, and what to try.
    The command line prints that line alone and exits with code 2; in Python it is a ``ValueError``.
    """


class UnusableFolder(InputError):
    """What lies in the folder of a run or a tape is not what is asked for, or cannot be read.

    Args:
        what: what is wrong, for commands that have other options.
        advice: what helps where a single run is asked for.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what = what

    def __str__(self) -> str:
        return "; ".join(self.args)


class NoRoom(InputError):
    """A disk has too little room for a tape."""


class UnreadableImage(InputError):
    """A file that cannot be read, and what to do before a run begins.

    Attributes:
        brief: what is wrong, alone.
    """

    def __init__(self, brief: str) -> None:
        super().__init__(brief)
        self.brief = brief

    def __str__(self) -> str:
        return f"{self.brief}; repair or remove it, or leave out such files with --skip_bad_images"


class RunFailed(RuntimeError):
    """A run that began well cannot go on; ``str(error)`` is one line that says why and what was kept.

    The command line prints that line alone and exits with code 1.
    """


PEER_LOST = 4
"""Exit code of a process of several whose run ends by no fault of its own."""


class PeerLost(RunFailed):
    """Another process of a run has died or does not answer; why, that one says where it can."""


class ReaderDied(RunFailed):
    """A process that reads images has died, as where memory is short for a while: the same may do another time."""


def one_line(error: BaseException) -> str:
    """Return an error's type and the beginning of its message on one line.

    >>> one_line(ValueError("first\\n  second"))
    'ValueError: first second'
    """
    message = " ".join(str(error).split())
    message = message if len(message) <= 200 else message[:197] + "..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def printable(line: str) -> str:
    r"""Return a line as a terminal is to be given it: what would not be seen there, but done, is written as in Python.

    That is control characters, line breaks, half of a sign, and what turns the direction of writing.

    >>> printable("Füße, 猫.jpg"), printable("\x1b[2J\n.jpg")
    ('Füße, 猫.jpg', '\\x1b[2J\\n.jpg')
    """
    return "".join(repr(sign)[1:-1] if _is_control(sign) else sign for sign in line)


def _is_control(sign: str) -> bool:
    is_direction = "\u202a" <= sign <= "\u202e" or "\u2066" <= sign <= "\u2069"
    return is_direction or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known names nearest to ``name``, to be appended to an error's line.

    The hint begins with a space and is empty when there is nothing to suggest.

    >>> nearest("layer5", ["layer3", "layer4", "fc"])
    " Did you mean 'layer4' or 'layer3'?"
    >>> nearest("xyzzy", ["layer3"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def some(names: Collection[str], most: int) -> str:
    """Return names on one line, with an ellipsis for those past ``most``.

    >>> some(["conv", "bn", "fc"], most=2), some(["conv", "bn"], most=2)
    ('conv, bn, ...', 'conv, bn')
    """
    return ", ".join(list(names)[:most]) + (", ..." if len(names) > most else "")
