"""What a person sees: plain lines on a pipe, a bar on a terminal, nothing from a worker."""

import errno
import io

import pytest
from rich.console import Console

from spkd.training import progress
from spkd.training.progress import Bar, Display, Lines, display


def test_lines_are_spaced_and_the_last_one_is_always_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Lines() as lines:
        lines.begin("student sp", steps=100, done=0)
        for step in range(1, 101):
            now[0] += 1.0
            lines.update(step, f"step {step}")
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "student sp: step 10, 1:30 left"
    assert shown[-1] == "student sp: step 100, 0:00 left"
    assert len(shown) == 10


def test_of_what_takes_no_time_nothing_is_shown_in_brief(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for seconds, shown in ((0.4, []), (4.0, ["images: 3 of 5, quick, 0:08 left", "images: 5 of 5, quick, 0:00 left"])):
        with Lines(brief=True) as lines:
            lines.begin("images", steps=5, done=0)
            for done in range(1, 6):
                now[0] += seconds
                lines.update(done, "quick")
        assert capsys.readouterr().err.splitlines() == shown


def test_the_time_left_counts_from_where_the_run_went_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Lines() as lines:
        lines.begin("run", steps=100, done=80)
        now[0] = 3600.0
        lines.update(90, "")
    assert capsys.readouterr().err.endswith("1:00:00 left\n")


def test_a_bar_shows_its_text_and_lines_above_it() -> None:
    written = io.StringIO()
    bar = Bar(Console(file=written, force_terminal=True, width=120))
    with bar:
        bar.say("recipe [digits]")
        bar.begin("student [sp] of [/a]", steps=10, done=0)
        bar.update(10, "epoch 1/1, [ce] 0.5 [/b]")
    assert "recipe [digits]" in written.getvalue()
    assert "student [sp] of [/a]" in written.getvalue()
    assert "epoch 1/1, [ce] 0.5 [/b]" in written.getvalue()


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as lines:
        lines.begin("\x1b]0;run\a", 1, 0)
        lines.say("photos/\x1b[2J\n.jpg")
        lines.update(1, "\r")
    shown = capsys.readouterr().err
    assert shown == "photos/\\x1b[2J\\n.jpg\n\\x1b]0;run\\x07: \\r, 0:00 left\n"
    written = io.StringIO()
    with Bar(Console(file=written, force_terminal=True, width=120)) as bar:
        bar.say("photos/\x1b[8m.jpg")
        bar.begin("\x1b[9mrun", 1, 0)
        bar.update(1, "\x1b[7mtext")
    for sign in "789":
        assert f"\x1b[{sign}m" not in written.getvalue()
        assert f"\\x1b[{sign}m" in written.getvalue()


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as silent:
        silent.say("x")
        silent.begin("x", 1, 0)
        silent.update(1, "x")
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display(), Lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(display(), Bar)


def test_a_line_that_a_full_disk_does_not_take_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Log(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    log = Log()
    monkeypatch.setattr("sys.stderr", log)
    Lines().say("one")
    log.full = False
    Lines().say("two")
    assert log.getvalue() == "one\ntwo\n"


def test_a_time_left_that_is_known_better_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Lines() as lines:
        lines.begin("tasks", steps=10, done=0)
        now[0] = 20.0
        lines.update(5, "running: a", left=3600.0)
    assert capsys.readouterr().err == "tasks: running: a, 1:00:00 left\n"
    written = io.StringIO()
    with Bar(Console(file=written, force_terminal=True, width=120)) as bar:
        bar.begin("tasks", steps=10, done=0)
        bar.update(5, "running: a", left=5000.0)
    assert "1:23:" in written.getvalue()


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_shows_the_count_and_the_time_left_whole(width: int) -> None:
    written = io.StringIO()
    with Bar(Console(file=written, force_terminal=True, color_system=None, width=width)) as bar:
        bar.begin("wrn-16-1 sp+kd", 78_200, 0)
        bar.update(12_345, "epoch 32/200, ce 0.1234, sp 0.0009126, val error 12.02 %, 2,254 images/s", 3700.0)
    assert "12345/78200 1:01:40 epoch 3" in written.getvalue()
