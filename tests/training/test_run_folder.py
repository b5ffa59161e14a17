"""When a run folder may be written."""

from pathlib import Path

import pytest

from spkd.errors import InputError
from spkd.training.run_folder import RunFolder

CONFIG = {"model": "wrn-10-1", "seed": 0}


def test_a_new_folder_gets_its_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    folder.prepare(CONFIG, resume=False, overwrite=False)
    assert folder.config() == CONFIG
    assert folder.result() is None


def test_a_folder_with_a_run_is_refused_unless_asked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare(CONFIG, resume=False, overwrite=False)
    with pytest.raises(InputError, match="already holds a run"):
        folder.prepare(CONFIG, resume=False, overwrite=False)
    folder.prepare(CONFIG, resume=True, overwrite=False)


def test_resuming_another_configuration_names_what_differs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare(CONFIG, resume=False, overwrite=False)
    with pytest.raises(InputError, match="seed was 0, is 1"):
        folder.prepare({**CONFIG, "seed": 1}, resume=True, overwrite=False)


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.prepare(CONFIG, resume=False, overwrite=False)
    folder.write_result({"test_error": 1.0})
    folder.checkpoint.parent.mkdir()
    folder.checkpoint.write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("mine")
    folder.prepare({**CONFIG, "seed": 1}, resume=False, overwrite=True)
    assert folder.result() is None
    assert not folder.checkpoint.exists()
    assert folder.config() == {**CONFIG, "seed": 1}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        RunFolder(tmp_path).prepare(CONFIG, resume=False, overwrite=False)


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match=r"not a folder|cannot write"):
        RunFolder(path).prepare(CONFIG, resume=False, overwrite=False)


def test_damaged_files_are_one_clear_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "result.json").write_text("{")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match="readable JSON"):
        folder.result()
    with pytest.raises(InputError, match="readable YAML"):
        folder.config()


def test_metrics_have_the_union_of_the_rows_as_columns(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_metrics([{"epoch": 1, "a": 0.5}, {"epoch": 2, "a": 0.25, "b": 1.0}])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,a,b\n1,0.5,\n2,0.25,1.0\n"
