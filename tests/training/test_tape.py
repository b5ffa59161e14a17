"""A tape gives back what was written, and never anything else."""

import errno
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spkd.errors import InputError
from spkd.training import tape as tape_module
from spkd.training.tape import Manifest, Tape, TapeDtype

BATCHES, FULL, LAST = 3, 4, 2


def values(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    size = LAST if step % BATCHES == BATCHES - 1 else FULL
    return {
        "similarity of a.b": torch.rand(size, size, generator=generator),
        "logits": torch.randn(size, 10, generator=generator),
    }


def tape(folder: Path, dtype: TapeDtype = "float32") -> Tape:
    identity = {"teacher": "wrn-10-1", "seed": 0, "images": "abc"}
    made = Tape(folder, Manifest(identity, dtype, BATCHES, "32-true", ("a", "a.b"), {"teacher_val_error": 2.5}))
    for name, full in values(0).items():
        made.add(name, full, values(BATCHES - 1)[name])
    made.save()
    return made


def reopened(folder: Path) -> Tape:
    found = Tape.open(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("order", [range(6), (5, 0, 3, 1, 4, 2)])
def test_float32_comes_back_bit_for_bit_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    made = tape(tmp_path)
    names = list(values(0))
    for count, step in enumerate(order):
        assert made.recorded(names, 6) == count
        stored = made.write(step, values(step))
        assert all(torch.equal(stored[name], value) for name, value in values(step).items())
    found = reopened(tmp_path)
    assert found.manifest == made.manifest
    assert found.recorded(names, 6) == 6
    for step in range(6):
        read = found.read(step, names)
        assert read is not None
        assert all(torch.equal(read[name], value) for name, value in values(step).items())
    assert found.read(6, names) is None


def test_float16_comes_back_as_write_said_within_half_a_unit(tmp_path: Path) -> None:
    made = tape(tmp_path, "float16")
    stored = made.write(1, values(1))
    read = reopened(tmp_path).read(1, list(values(1)))
    assert read is not None
    for name, value in values(1).items():
        assert read[name].dtype == torch.float16
        assert torch.equal(read[name], stored[name])
        assert ((read[name].float() - value).abs() <= 2.0**-11 * value.abs() + 2.0**-25).all()


def test_the_size_is_what_the_files_hold(tmp_path: Path) -> None:
    made = tape(tmp_path, "float16")
    for step in range(5):
        made.write(step, values(step))
    full = made.bytes_of(list(values(0)), epochs=1)
    assert full == BATCHES * (FULL * FULL + FULL * 10) * 2
    assert sum(path.stat().st_size for path in tmp_path.glob("*.data")) <= 2 * full


@pytest.mark.parametrize("harm", ["cut", "flipped", "zeros"])
def test_what_a_kill_or_a_fault_left_incomplete_counts_as_not_recorded(tmp_path: Path, harm: str) -> None:
    made = tape(tmp_path)
    for step in range(3):
        made.write(step, values(step))
    path = tmp_path / "similarity-of-a.b.data"
    content = bytearray(path.read_bytes())
    slot = FULL * FULL * 4
    if harm == "cut":
        content = content[: 2 * slot + 5]
    elif harm == "flipped":
        content[2 * slot + 3] ^= 1
    else:
        content[2 * slot :] = bytes(len(content) - 2 * slot)
    path.write_bytes(content)
    found = reopened(tmp_path)
    names = list(values(0))
    assert found.read(2, names) is None
    assert found.read(1, names) is not None
    assert found.read(2, ["logits"]) is not None
    assert {name: found.damaged(name) for name in names} == {names[0]: [2], names[1]: []}
    found.write(2, values(2))
    assert torch.equal(found.read(2, names)["similarity of a.b"], values(2)["similarity of a.b"])  # type: ignore[index]
    assert found.damaged(names[0]) == []
    found.forget(1, names)
    assert found.recorded(names, 3) == 2


@pytest.mark.parametrize(
    ("changed", "precision", "dtype", "line"),
    [
        ({"seed": 1}, "auto", None, "recorded with seed 0, this run has 1"),
        ({"images": "abd"}, "auto", None, "recorded of other images; .*images"),
        ({"flip": True}, "auto", None, "recorded with flip None, this run has True"),
        ({}, "bf16-true", None, "recorded with teacher_precision '32-true', this run has 'bf16-true'"),
        ({}, "auto", "float16", "recorded with tape_dtype 'float32', this run has 'float16'"),
    ],
)
def test_another_identity_is_refused_by_the_name_of_the_field(
    tmp_path: Path, changed: dict[str, object], precision: str, dtype: str | None, line: str
) -> None:
    made = tape(tmp_path)
    made.check(made.manifest.identity, "auto", None)
    made.check(made.manifest.identity, "32-true", "float32")
    with pytest.raises(InputError, match=line):
        made.check({**made.manifest.identity, **changed}, precision, dtype)


def test_what_float16_cannot_hold_is_refused_and_infinity_is_kept(tmp_path: Path) -> None:
    made = tape(tmp_path, "float16")
    for value in (7e4, 2e-8):
        with pytest.raises(
            InputError, match="'logits' holds values that float16 cannot: record to another folder with --tape_dtype"
        ):
            made.write(0, {"logits": torch.full((FULL, 10), value)})
    assert made.write(0, {"logits": torch.full((FULL, 10), torch.inf)})["logits"].isinf().all()


def test_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'logits' had shape \(4, 10\), now \(4, 9\)"):
        tape(tmp_path).write(0, {"logits": torch.zeros(FULL, 9)})


def test_whole_numbers_are_kept_as_they_are(tmp_path: Path) -> None:
    made = tape(tmp_path, "float16")
    made.add("ranks", torch.zeros(FULL, dtype=torch.int64), torch.zeros(LAST, dtype=torch.int64))
    ranks = torch.tensor([2**40 + 1, 0, -3, 5])
    assert torch.equal(made.write(0, {"ranks": ranks})["ranks"], ranks)
    assert torch.equal(made.read(0, ["ranks"])["ranks"], ranks)  # type: ignore[index]


@pytest.mark.usefixtures("keeps_room")
def test_what_has_room_and_was_not_written_is_not_recorded(tmp_path: Path) -> None:
    made, names = tape(tmp_path), list(values(0))
    made.reserve(names, 6)
    assert all(made.room_of(name) >= 6 * made.manifest.memories[name].slot_bytes for name in names)
    assert made.recorded(names, 6) == 0
    assert made.read(0, names) is None
    made.write(1, values(1))
    found = reopened(tmp_path)
    assert found.is_recorded(names, 6).tolist() == [False, True, False, False, False, False]
    assert torch.equal(found.read(1, names)["logits"], values(1)["logits"])  # type: ignore[index]
    assert found.forget_damaged() == 0


def test_room_is_kept_for_all_memories_or_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, (one, other) = tape(tmp_path), list(values(0))
    made.write(0, {one: values(0)[one]})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    reserve = tape_module.reserve

    def too_little(path: Path, size: int) -> None:
        reserve(path, size)
        if path.name == "logits.data":
            raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(tape_module, "reserve", too_little)
    with pytest.raises(OSError, match="no room"):
        made.reserve([one, other], 6)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert reopened(tmp_path).recorded([one], 6) == 1


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tape(tmp_path)
    monkeypatch.setattr("os.pwrite", lambda handle, content, offset: len(content) - 1)
    with pytest.raises(InputError, match=r"cannot write .*no space left"):
        made.write(0, values(0))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("other.txt", "mine", "is not a tape, and not empty"),
        ("tape.json", "{", "is damaged"),
        ("tape.json", '{"format": 99, "memories": {}, "block_ends": []}', "another version"),
        ("tape.json", '{"format": 1, "memories": {}}', "is damaged"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, content: str, line: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=line):
        Tape.open(tmp_path)


@pytest.mark.parametrize("file", ["../mine", "/mine", "a/b", "a\0b", 3])
def test_a_memory_whose_file_may_lie_elsewhere_is_refused(tmp_path: Path, file: object) -> None:
    tape(tmp_path)
    content = json.loads((tmp_path / "tape.json").read_text())
    content["memories"]["logits"]["file"] = file
    (tmp_path / "tape.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tape\.json is damaged \(.*\); remove .* and record again$"):
        Tape.open(tmp_path)


@pytest.mark.parametrize("batches", [0, -3, None])
def test_a_tape_without_a_batch_in_an_epoch_is_refused(tmp_path: Path, batches: int | None) -> None:
    tape(tmp_path)
    content = json.loads((tmp_path / "tape.json").read_text())
    (tmp_path / "tape.json").write_text(json.dumps({**content, "batches_per_epoch": batches}))
    with pytest.raises(InputError, match=r"tape\.json is damaged \(.*\); remove .* and record again$"):
        Tape.open(tmp_path)


@pytest.mark.parametrize("kind", ["data", "sums"])
def test_nothing_is_written_through_a_link(tmp_path: Path, kind: str) -> None:
    made, mine = tape(tmp_path / "tape"), tmp_path / "mine"
    made.write(0, values(0))
    path = tmp_path / "tape" / f"logits.{kind}"
    path.rename(mine)
    path.symlink_to(mine)
    before, found = mine.read_bytes(), reopened(tmp_path / "tape")
    assert found.read(0, ["logits"]) is not None
    with pytest.raises(InputError, match=rf"cannot write .*logits\.{kind}: it is a link; put the file itself there"):
        found.write(1, values(1))
    if kind == "sums":
        with pytest.raises(InputError, match="it is a link"):
            found.forget(0, ["logits"])
    assert mine.read_bytes() == before


def test_no_folder_and_an_empty_one_hold_no_tape(tmp_path: Path) -> None:
    assert Tape.open(tmp_path / "none") is None
    assert Tape.open(tmp_path) is None
    (tmp_path / ".tape.json.x.part.json").touch()  # as a kill leaves it while a tape is begun
    assert Tape.open(tmp_path) is None
