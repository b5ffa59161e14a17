"""When a run folder may be written."""

import os
from pathlib import Path

import pytest

from spkd.errors import InputError
from spkd.files import write_atomically
from spkd.studies.options import RunnerOptions
from spkd.studies.runner import run_study
from spkd.training.options import Runtime
from spkd.training.progress import Display
from spkd.training.run_folder import MARK, RunFolder, refuse_inputs

CONFIG: dict[str, object] = {"model": "wrn-10-1", "seed": 0}
MADE_OF = "a0b1"
_EXPORTED = ("model.onnx", "model-int8.onnx", "model.pt2")


def begun(path: Path, config: dict[str, object] = CONFIG) -> RunFolder:
    folder = RunFolder(path)
    folder.begin(config, MADE_OF, overwrite=False)
    folder.checkpoint.parent.mkdir()
    folder.checkpoint.write_bytes(b"x")
    return folder


def test_a_new_folder_gets_its_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    folder.check(CONFIG, MADE_OF, resume=False, overwrite=False)
    assert not folder.path.exists(), "a check writes nothing"
    folder.begin(CONFIG, MADE_OF, overwrite=False)
    assert folder.config() == CONFIG
    assert folder.result() is None


def test_a_folder_with_a_run_is_refused_unless_asked_for(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        folder.check(CONFIG, MADE_OF, resume=False, overwrite=False)
    folder.check(CONFIG, MADE_OF, resume=True, overwrite=False)
    folder.check(CONFIG, MADE_OF, resume=False, overwrite=True)
    with pytest.raises(InputError, match="--overwrite cannot be combined with --resume or --finish"):
        folder.check(CONFIG, MADE_OF, resume=True, overwrite=True)


def test_a_run_that_was_refused_before_its_first_checkpoint_is_in_nobody_s_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(CONFIG, MADE_OF, overwrite=False)
    other = {**CONFIG, "seed": 1}
    folder.check(other, MADE_OF, resume=False, overwrite=False)
    folder.begin(other, MADE_OF, overwrite=False)
    assert folder.config() == other


def test_resuming_another_configuration_names_what_differs(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(InputError, match="seed was 0, is 1"):
        folder.check({**CONFIG, "seed": 1}, "c2d3", resume=True, overwrite=False)
    with pytest.raises(InputError, match=r"other options: label_smoothing was 0\.0, is 0\.1;"):
        folder.check({**CONFIG, "label_smoothing": 0.1}, "c2d3", resume=True, overwrite=False)
    smoothed = begun(tmp_path / "smoothed", {**CONFIG, "no_flip": True})
    with pytest.raises(InputError, match=r"other options: no_flip was True, is False;"):
        smoothed.check(CONFIG, "c2d3", resume=True, overwrite=False)


def test_what_a_run_is_made_of_decides_and_not_where_that_lies(tmp_path: Path) -> None:
    here, there = ({**CONFIG, "teacher": f"/{place}/teacher"} for place in ("here", "there"))
    folder = begun(tmp_path / "run", here)
    assert folder.identity() == MADE_OF
    folder.check(there, MADE_OF, resume=True, overwrite=False)
    folder.begin(there, MADE_OF, overwrite=False)
    assert folder.config() == there
    assert folder.identity() == MADE_OF
    assert folder.checkpoint.exists()
    with pytest.raises(InputError, match="teacher was '/there/teacher', is '/here/teacher'"):
        folder.check(here, "c2d3", resume=True, overwrite=False)
    with pytest.raises(InputError, match="other weights, code or images"):
        folder.check(there, "c2d3", resume=True, overwrite=False)


def test_overwriting_removes_what_kills_have_left(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    left: list[Path] = []

    def killed(temporary: Path) -> None:
        temporary.write_text("half")
        left.append(temporary.rename(temporary.with_name(temporary.name.replace(".part", "1.part"))))
        raise KeyboardInterrupt

    own = ("config.yaml", "checkpoints/last.ckpt", "student/model.safetensors", "export/model.onnx")
    for name in own:
        with pytest.raises(KeyboardInterrupt):
            write_atomically(folder.path / name, killed)
    mine = folder.path / "student" / ".mine.safetensors.1.part"
    mine.touch()
    assert len(left) == len(own)
    folder.begin(CONFIG, MADE_OF, overwrite=True)
    assert not any(path.exists() for path in left)
    assert mine.exists()
    assert not (folder.path / "export").exists()


def test_a_folder_whose_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"F\xfc")
    line = r"^--out .*F\udcfc is not UTF-8: give a folder of another name$"
    with pytest.raises(InputError, match=line):
        RunFolder(folder).check_place(resume=False, overwrite=False)
    with pytest.raises(InputError, match=line):
        run_study([], folder, RunnerOptions(), Runtime(), Display())
    assert list(tmp_path.iterdir()) == []


def test_overwriting_removes_the_run_s_own_files_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.write_result({"test_error": 1.0})
    (tmp_path / "checkpoints" / "mine.pt").write_text("mine")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.json").write_text("{}")
    folder.begin({**CONFIG, "seed": 1}, MADE_OF, overwrite=True)
    assert folder.result() is None
    assert not folder.checkpoint.exists()
    assert not folder.student.exists()
    assert folder.config() == {**CONFIG, "seed": 1}
    assert (tmp_path / "checkpoints" / "mine.pt").read_text() == "mine"


@pytest.mark.parametrize("linked", ["checkpoints", "student", "tensorboard", "export", "student/export"])
def test_overwriting_removes_a_link_and_not_what_it_leads_to(tmp_path: Path, linked: str) -> None:
    folder, elsewhere = begun(tmp_path / "run"), tmp_path / "elsewhere"
    folder.checkpoint.unlink()
    folder.checkpoint.parent.rmdir()
    own = {"checkpoints": "last.ckpt", "student": "model.json", "tensorboard": "events.out.tfevents.1"}
    elsewhere.mkdir()
    kept = elsewhere / own.get(linked, "model.onnx")
    kept.write_text("other")
    (folder.path / linked).parent.mkdir(exist_ok=True)
    (folder.path / linked).symlink_to(elsewhere)
    folder.write_result({"test_error": 1.0})
    folder.begin({**CONFIG, "seed": 1}, MADE_OF, overwrite=True)
    assert [path.read_text() for path in elsewhere.iterdir()] == ["other"]
    assert not (folder.path / linked).is_symlink()
    assert folder.config() == {**CONFIG, "seed": 1}
    assert not folder.has_begun()


def test_overwriting_leaves_a_configuration_alone_that_is_linked_to(tmp_path: Path) -> None:
    folder, other = begun(tmp_path / "run"), begun(tmp_path / "other")
    (folder.path / "config.yaml").unlink()
    (folder.path / "config.yaml").symlink_to(other.path / "config.yaml")
    folder.begin({**CONFIG, "seed": 1}, MADE_OF, overwrite=True)
    assert other.config() == CONFIG
    assert folder.config() == {**CONFIG, "seed": 1}


def test_a_link_to_an_empty_folder_stays(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.checkpoint.unlink()
    folder.checkpoint.parent.rmdir()
    (tmp_path / "scratch").mkdir()
    folder.checkpoint.parent.symlink_to(tmp_path / "scratch")
    folder.begin_anew()
    folder.begin(CONFIG, MADE_OF, overwrite=False)
    assert folder.checkpoint.parent.is_symlink()


def test_a_folder_in_which_not_all_could_be_removed_is_still_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "run")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "last.ckpt":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match=r"^cannot write .*last\.ckpt: Permission denied$"):
        folder.begin({**CONFIG, "seed": 1}, MADE_OF, overwrite=True)
    monkeypatch.undo()
    folder.check({**CONFIG, "seed": 1}, MADE_OF, resume=False, overwrite=True)
    folder.begin({**CONFIG, "seed": 1}, MADE_OF, overwrite=True)
    assert folder.config() == {**CONFIG, "seed": 1}


@pytest.mark.parametrize("resume", [False, True])
def test_a_trained_model_is_all_that_is_left_of_a_run_and_stays(tmp_path: Path, resume: bool) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(CONFIG, MADE_OF, overwrite=False)
    folder.student.mkdir()
    (folder.student / "model.json").write_text("{}")
    line = (
        "run holds a trained model but no checkpoint to continue from; give --overwrite to train it again, or another"
    )
    with pytest.raises(InputError, match=line):
        folder.check(CONFIG, MADE_OF, resume=resume, overwrite=False)
    folder.check(CONFIG, MADE_OF, resume=False, overwrite=True)
    folder.begin_anew()
    folder.check(CONFIG, MADE_OF, resume=resume, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
def test_a_folder_with_other_files_is_refused_whatever_is_asked(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).write_text("lr: 0.1")
    with pytest.raises(InputError, match="holds files that are not of a run"):
        RunFolder(tmp_path).check(CONFIG, MADE_OF, resume=False, overwrite=overwrite)


def test_what_a_study_writes_beside_a_run_is_no_other_file(tmp_path: Path) -> None:
    for name in ("task.log", "failed.json", "running.json"):
        (tmp_path / name).write_text("{}")
    RunFolder(tmp_path).check(CONFIG, MADE_OF, resume=True, overwrite=False)


def test_a_run_begins_anew_whatever_it_would_go_on_from(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_result({"epochs": 3})
    folder.begin_anew()
    assert folder.result() == {"epochs": 3}, "it is not known to be a run of ours"
    (tmp_path / "result.json").unlink()
    folder.begin(CONFIG, MADE_OF, overwrite=False)
    folder.write_result({"epochs": 3})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").write_text("mine")
    folder.checkpoint.write_text("x")
    folder.begin_anew()
    assert not folder.has_begun()
    assert (tmp_path / "checkpoints" / "mine.pt").exists()
    folder.check({**CONFIG, "seed": 1}, MADE_OF, resume=True, overwrite=False)


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        RunFolder(path).check(CONFIG, MADE_OF, resume=False, overwrite=False)


def test_an_input_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "data" / "student").mkdir(parents=True)
    for out, option, named in (
        ("data", "data", "data"),
        ("data/student", "data", "data"),
        (".", "data", "data"),
        ("data", "teacher", "data/student"),
    ):
        with pytest.raises(InputError, match=f"--{option} "):
            refuse_inputs("--out", tmp_path / out, {option: str(tmp_path / named)})
    refuse_inputs("--out", tmp_path / "run", {"data": str(tmp_path / "data"), "teacher": None, "model": "wrn-10-1"})
    with pytest.raises(
        InputError, match=r"--out .*/new and --tape .*/new overlap, one inside the other: choose another --out"
    ):
        refuse_inputs("--out", tmp_path / "new", {"tape": str(tmp_path / "new")})


def test_a_damaged_result_is_none_and_a_damaged_config_one_clear_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "result.json").write_text("{")
    (tmp_path / "config.yaml").write_text(f"{MARK}\na: [")
    assert folder.result() is None
    with pytest.raises(InputError, match="damaged"):
        folder.config()


def test_metrics_have_the_union_of_the_rows_as_columns(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_metrics([{"epoch": 1, "a": 0.5}, {"epoch": 2, "a": 0.25, "b": 1.0}])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,a,b\n1,0.5,\n2,0.25,1.0\n"


def test_overwriting_removes_every_file_to_deploy(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    made = [folder.path / place / name for place in ("export", "student/export") for name in _EXPORTED]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    mine = folder.path / "export" / "mine.onnx"
    mine.write_bytes(b"x")
    folder.begin(CONFIG, MADE_OF, overwrite=True)
    assert not any(path.exists() for path in made)
    assert mine.exists()
