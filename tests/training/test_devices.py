"""The device of a run, wherever it is started."""

import pytest

from spkd.errors import InputError, ReaderDied, RunFailed, UnreadableImage
from spkd.training.devices import make_fabric, notes_of_srun, told_in_one_line
from spkd.training.options import Runtime


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "4"},
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
        {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "1"},
    ],
)
def test_one_device_is_one_process_whatever_slurm_has_started(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_NAME": "study", **variables}.items():
        monkeypatch.setenv(name, value)
    for precision in ("32-true", "bf16-mixed"):
        fabric = make_fabric(Runtime(accelerator="cpu"), precision)
        assert (fabric.world_size, fabric.global_rank, fabric.is_global_zero) == (1, 0, True)


def test_weights_that_a_step_leaves_out_are_told_of() -> None:
    text = "Expected to have finished reduction in the prior iteration before starting a new one."
    expected = pytest.raises(RunFailed, match="skips layers at random; train it in one process")
    with expected, told_in_one_line(Runtime(), "--resume goes on"):
        raise RuntimeError(text)


def test_an_image_that_can_no_longer_be_read_is_told_with_what_goes_on() -> None:
    line = r"^image x cannot be read \(stale\), though it could before; once it can be read again, --resume goes on$"
    with pytest.raises(InputError, match=line), told_in_one_line(Runtime(), "--resume goes on"):
        raise UnreadableImage("image x cannot be read (stale)")


def test_a_death_among_the_readers_is_told_with_what_goes_on() -> None:
    expected = pytest.raises(ReaderDied, match=r"^a reader has died; --resume goes on$")
    with expected, told_in_one_line(Runtime(), "--resume goes on"):
        raise ReaderDied("a reader has died")


def test_several_runs_of_one_srun_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert notes_of_srun() == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert notes_of_srun() == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert notes_of_srun()[0].startswith("warning: srun has started this command 4 times, each a run of its own;")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert notes_of_srun() == []
