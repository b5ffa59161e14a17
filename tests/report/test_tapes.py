"""The table of a tape says how much of it can be played."""

from pathlib import Path

import torch
from helpers import printed

from spkd.report.tapes import tape_table
from spkd.training.tape import Manifest, Tape


def shown(tape: Tape) -> list[list[str]]:
    """The cells of the line of each memory."""
    lines = [
        line for line in printed(tape_table(tape), width=200).splitlines() if "logits" in line or "similarity" in line
    ]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_damaged_steps_are_counted_and_not_taken_for_recorded(tmp_path: Path) -> None:
    tape = Tape(tmp_path, Manifest({"seed": 0}, "float32", 2, "32-true", (), {}))
    full = {"logits": torch.ones(4, 10), "similarity": torch.ones(4, 4)}
    for name, value in full.items():
        tape.add(name, value, value)
    tape.save()
    for step in range(3):
        tape.write(step, full)
    assert shown(tape) == [
        ["logits", "4 × 10", "160 bytes", "3", "–", "480 bytes"],
        ["similarity", "4 × 4", "64 bytes", "3", "–", "192 bytes"],
    ]
    content = bytearray((tmp_path / "logits.data").read_bytes())
    content[0] ^= 1
    (tmp_path / "logits.data").write_bytes(content)
    reopened = Tape.open(tmp_path)
    assert reopened is not None
    assert [cells[3:5] for cells in shown(reopened)] == [["2", "1"], ["3", "–"]]


def test_the_terminal_is_given_no_sign_of_a_tape_that_it_would_obey(tmp_path: Path) -> None:
    odd = "\x1b[2J"
    tape = Tape(tmp_path, Manifest({odd: odd}, "float32", 2, "32-true", (), {f"{odd}x": odd}))
    tape.add(odd, torch.ones(4, 10), torch.ones(4, 10))
    text = printed(tape_table(tape))
    assert odd not in text
    assert text.count("\\x1b[2J") == 5
