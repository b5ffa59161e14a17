"""A disk that is full, or does not answer: one line, and the last good checkpoint stays."""

import errno
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import compress

from spkd.errors import InputError, UnusableFolder
from spkd.studies.state import planned, study_state
from spkd.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from spkd.training.tape import Tape

CODE = """
import resource, sys
from spkd.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_at_checkpoint_time_is_one_line_and_loses_nothing(tiny: str, tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    folder = tmp_path / "run"
    options = ["train", "--model", f"{tiny}?width=16", "--epochs", "2", "--accelerator", "cpu", "--out", str(folder)]
    stopped = [sys.executable, "-m", "spkd", *options, "--max_time", "0"]
    assert subprocess.run(stopped, capture_output=True, check=False).returncode == 3
    checkpoint = folder / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    limited = [sys.executable, "-c", CODE.format(limit=len(before) // 2), *options, "--resume"]
    done = subprocess.run([*limited, "--checkpoint_seconds", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"spkd: error: cannot write {checkpoint}")
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]
    last = subprocess.run([sys.executable, "-m", "spkd", *options, "--resume"], capture_output=True, check=False)
    assert last.returncode == 0


@pytest.mark.parametrize(
    ("format", "line"), [(None, "is no readable checkpoint"), (99, "was written by another version")]
)
def test_a_checkpoint_that_is_none_is_told_with_and_without_what_helps(
    format: int | None, line: str, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"no checkpoint")
    if format is not None:
        torch.save({"format": format}, path)
    with pytest.raises(UnusableFolder) as caught:
        load_checkpoint(path)
    assert caught.value.what == f"{path} {line}"
    assert str(caught.value) == f"{path} {line}; give --overwrite to begin anew"


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(errno.EIO, "Input/output error"), "Input/output error"), (MemoryError(), "Memory")]
)
def test_a_disk_that_does_not_answer_is_no_reason_to_begin_anew(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "tape.json").write_text("{}")
    monkeypatch.setattr("torch.load", fail)
    save_checkpoint(tmp_path / "last.ckpt", TrainingState(), {})
    readers: list[Callable[[], object]] = [lambda: load_checkpoint(tmp_path / "last.ckpt")]
    if isinstance(error, OSError):
        monkeypatch.setattr(Path, "read_text", fail)
        readers += [lambda: Tape.open(tmp_path), lambda: planned(tmp_path), lambda: study_state(tmp_path)]
    for read in readers:
        with pytest.raises(InputError, match=rf" cannot be read now \({reason}.*\); it is left as it is") as caught:
            read()
        assert not isinstance(caught.value, UnusableFolder)


def test_a_checkpoint_that_is_compressed_is_not_unpacked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", TrainingState(), {})
    compress(tmp_path / "last.ckpt")
    with pytest.raises(UnusableFolder, match="is no readable checkpoint"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = TrainingState(epoch=3, batch=5, sums={"ce": 0.25}, rows=[{"epoch": 1, "val_error": 2.5}], best_error=2.5)
    state.best_weights = {"w": torch.arange(3.0)}
    save_checkpoint(tmp_path / "last.ckpt", state, {"optimizer": {"lr": 0.1}})
    loaded, tensors = load_checkpoint(tmp_path / "last.ckpt")
    assert tensors == {"optimizer": {"lr": 0.1}}
    assert torch.equal(loaded.best_weights.pop("w"), state.best_weights.pop("w"))
    assert loaded == state


def test_a_checkpoint_of_a_version_without_the_balanced_error_is_read(tmp_path: Path) -> None:
    path, state = tmp_path / "last.ckpt", TrainingState(best_error=2.5, best_balanced_error=3.5, best_epoch=1)
    save_checkpoint(path, state, {})
    written = torch.load(path, weights_only=True)
    del written["state"]["best_balanced_error"]
    torch.save(written, path)
    loaded, _ = load_checkpoint(path)
    assert (loaded.best_error, loaded.best_epoch, loaded.best_balanced_error) == (2.5, 1, math.inf)
