"""TensorBoard's logs of a run, on a disk that takes them and on one that does not."""

import errno
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from spkd.training.event_log import EventLog


@pytest.mark.parametrize("place", ["__init__", "add_scalar", "flush", "close"])
def test_a_full_disk_is_told_of_once_and_nothing_more_is_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fail(*_: object, **__: object) -> None:
        tried.append(place)
        raise OSError(errno.ENOSPC, "No space left on device")

    said: list[str] = []
    monkeypatch.setattr(SummaryWriter, place, fail)
    log = EventLog(tmp_path, 1, said.append)
    for epoch in (1, 2):
        log.add(epoch, {"val_error": 2.5})
    log.close()
    assert len(tried) == 1
    expected = (
        f"warning: cannot write {tmp_path}: No space left on device; the run continues without TensorBoard's logs"
    )
    assert said == [expected]


def test_what_was_logged_of_an_epoch_that_is_done_again_is_void(tmp_path: Path) -> None:
    for first, error in ((1, 9.0), (2, 1.0)):
        log = EventLog(tmp_path, first, pytest.fail)
        for epoch in (1, 2, 3)[first - 1 :]:
            log.add(epoch, {"val_error": error})
        log.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("val_error")
    assert [(event.step, event.value) for event in events] == [(1, 9.0), (2, 1.0), (3, 1.0)]
