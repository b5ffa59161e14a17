"""A signal that comes twice at once is one; a later second one ends at once."""

import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from spkd import signals
from spkd.signals import signals_blocked, stop_signals


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_same_signal_from_two_sides_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    with stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        now[0] = 0.9
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        now[0] = 1.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_signal_is_left_to_the_block_around(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    with stop_signals() as outer, stop_signals() as inner:
        signal.raise_signal(signal.SIGTERM)
        now[0] = 2.0
        signal.raise_signal(signal.SIGTERM)
        assert (inner, outer) == ([signal.SIGTERM], [signal.SIGTERM])


def test_what_a_block_has_collected_counts_around_it_too() -> None:
    with stop_signals() as outer:
        with stop_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert (inner, outer) == ([signal.SIGTERM], [])
        assert outer == [signal.SIGTERM]
        with stop_signals() as inner:
            assert inner == [signal.SIGTERM]
        assert outer == [signal.SIGTERM]


def test_what_spawning_starts_first_leaves_signals_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some versions of Python multiprocessing's tracker of resources unblocked them when it started."""
    begun = []

    def ensure_running() -> None:
        begun.append(signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP))

    monkeypatch.setattr(signals.resource_tracker, "ensure_running", ensure_running)
    for spawning in (False, True):
        with signals_blocked(spawning=spawning):
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(signals.STOP)
        assert len(begun) == spawning
