"""Every command, through the real command line, on the digits and on a folder of pictures."""

import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from scipy import stats

import spkd
from spkd.cli.commands import _request
from spkd.cli.main import main
from spkd.cli.options import distill_parser
from spkd.data import load as loading
from spkd.data.images import ImageData
from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.files import slug
from spkd.models.cost import parameter_count
from spkd.models.saved_model import load_classifier
from spkd.studies.state import claimed
from spkd.training.own_images import images_in
from spkd.training.recipe import PRESETS
from spkd.training.run_folder import RunFolder

CPU = ["--accelerator", "cpu"]


def succeed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was said beside the results, on one line."""
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def student(tiny: str, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "run"
    options = ["--teacher", str(teacher), "--student", tiny, "--method", "sp+kd", "--gamma", "30", "--epochs", "2"]
    assert main(["distill", *options, *CPU, "--out", str(folder)]) == 0
    return folder


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_train_says_what_it_made(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "teacher"
    printed = succeed(capsys, "train", "--model", tiny, "--data", "digits", "--epochs", "1", *CPU, "--out", str(out))
    result = json.loads((out / "result.json").read_text())
    assert f"{result['test_error']:.2f} %" in printed
    assert str(out / "student") in printed
    assert (result["kind"], result["method"]) == ("train", "none")


def test_every_option_of_the_networks_reaches_the_request() -> None:
    given = ["--weights", "a.pt", "--normalisation", "none", "--replace_head", "--teacher", "x"]
    given += ["--teacher_weights", "b.pt", "--teacher_normalisation", "0.5/0.25", "--taps", "stages"]
    options = distill_parser().parse_args([*given, "--unlabelled", "more", "--recipe", "scratch"])
    found = _request(options, options.student, 3)
    assert (found.weights, found.normalisation, found.replace_head) == ("a.pt", "none", True)
    assert (found.teacher_weights, found.teacher_normalisation) == ("b.pt", "0.5/0.25")
    assert (found.taps, found.seed, found.unlabelled, found.recipe) == (("stages",), 3, "more", "scratch")


@pytest.mark.parametrize(
    ("called", "given", "expected"),
    [
        (
            "spkd.training.run.run",
            ["train", "--finish", "--resume", "--overwrite"],
            {"finish": True, "resume": True, "overwrite": True},
        ),
        (
            "spkd.studies.side_by_side.distill",
            ["distill", "--finish", "--resume", "--overwrite", "--alone"],
            {"finish": True, "resume": True, "overwrite": True, "alone": True},
        ),
        (
            "spkd.training.saved.evaluate_saved",
            ["evaluate", "net", "--weights", "w.pt", "--data", "new", "--split", "all", "--teacher", "t"],
            {"weights": "w.pt", "split": "all", "teacher": "t"},
        ),
        (
            "spkd.training.saved.evaluate_saved",
            ["evaluate", "net", "--data", "new", "--normalisation", "none", "--save", "s", "--out", "o"],
            {"normalisation": "none", "save": "s", "out": "o"},
        ),
        (
            "spkd.training.prediction.predict",
            ["predict", "net", "a.png", "--skip_bad_images", "--top", "3", "--workers", "5"],
            {"skip_bad_images": True, "top": 3, "workers": 5},
        ),
    ],
)
def test_every_option_reaches_what_it_is_for(
    called: str, given: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def ask(*_: object, **how: object) -> None:
        asked.update(how)
        raise InputError("that is all")

    monkeypatch.setattr(called, ask)
    assert main(given) == 2
    assert {name: asked[name] for name in expected} == expected


def test_what_to_do_next_is_what_can_be_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits' own teacher is trained first; where that is stopped, nothing is there to be resumed."""
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "--max_time", "0", *CPU, "--out", "run"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "stopped before the end; the same command continues"
    assert "there is no run in run to end" in failing(capsys, "distill", *CPU, "--out", "run", "--finish")
    assert "give --tape, or leave it out" in failing(capsys, "distill", *CPU, "--tape_dtype", "float32")
    assert "name them by --data" in failing(capsys, "taps", "--data_root", "data", "--student", "wrn-10-1")


def test_a_run_to_be_resumed_that_is_not_there_is_said(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path
) -> None:
    """Its name may be mistyped."""
    command = ["train", "--model", tiny, "--epochs", "1", *CPU, "--out", str(tmp_path / "run"), "--resume"]
    for first in (True, False):
        assert main(command) == 0
        assert (f"--resume: there is no run in {tmp_path / 'run'} yet" in capsys.readouterr().err) == first


def test_a_stopped_distillation_is_ended_with_what_there_is(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["--teacher", str(teacher), "--student", tiny, "--epochs", "3", "--batch_size", "500", "--out", str(out)]
    for resume in ([], ["--resume"]):  # one step, which is an epoch, and another
        assert main(["distill", *options, *CPU, "--alone", "--max_time", "0", *resume]) == 3
        assert "--resume continues from the checkpoint in" in capsys.readouterr().err
    printed = succeed(capsys, "distill", *options, *CPU, "--alone", "--finish")
    assert "student alone" in printed
    assert "alone, but after 1 epochs, and alone after 3" in printed
    epochs = [json.loads((folder / "result.json").read_text())["epochs"] for folder in (out, Path(f"{out}-alone"))]
    assert epochs == [1, 3]
    assert "--overwrite cannot be combined with --resume or --finish" in failing(
        capsys, "distill", *options, *CPU, "--finish", "--overwrite"
    )


@pytest.mark.parametrize("recipe", PRESETS)
def test_every_recipe_trains(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, recipe: str) -> None:
    options = ["--model", tiny, "--recipe", recipe, "--epochs", "2", "--batch_size", "125", *CPU]
    succeed(capsys, "train", *options, "--out", str(tmp_path / "run"))
    header, first, second = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["recipe"] == recipe
    place = header.split(",").index("train_ce")
    assert float(second.split(",")[place]) < float(first.split(",")[place])


def test_a_run_is_repeated_from_its_config(capsys: pytest.CaptureFixture[str], student: Path, tmp_path: Path) -> None:
    succeed(capsys, "distill", "--config", str(student / "config.yaml"), *CPU, "--out", str(tmp_path / "again"))
    first, second = (json.loads((path / "result.json").read_text()) for path in (student, tmp_path / "again"))
    assert first["identity"] == second["identity"]
    assert first["test"] == second["test"]


def test_distill_without_a_teacher_does_the_whole_job_and_keeps_what_is_finished(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spkd.studies.side_by_side.DEFAULT_TEACHER", f"{tiny}?width=8")
    monkeypatch.setattr("spkd.studies.side_by_side.TEACHER_EPOCHS", 1)
    options = ["distill", "--student", tiny, "--epochs", "1", *CPU]
    printed = succeed(capsys, *options)
    for label in ("teacher", "student alone", "student, sp+kd", "in this one run"):
        assert label in printed
    results = sorted(tmp_path.rglob("result.json"))
    assert len(results) == 3
    made = [path.stat().st_mtime_ns for path in results]
    assert succeed(capsys, *options).count("%") == printed.count("%")
    assert [path.stat().st_mtime_ns for path in results] == made
    succeed(capsys, *options, "--train_images", "50", "--skip_bad_images", "--out", "few")
    assert [path.stat().st_mtime_ns for path in results] == made  # fewer images for the student: the same teacher
    succeed(capsys, *options, "--image_size", "12", "--out", "larger")
    assert len(list((tmp_path / "runs").glob("*-12px/result.json"))) == 1


def test_the_digits_own_teacher_is_apart_from_a_training_of_the_same_network(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spkd.studies.side_by_side.DEFAULT_TEACHER", tiny)
    monkeypatch.setattr("spkd.studies.side_by_side.TEACHER_EPOCHS", 2)
    succeed(capsys, "train", "--model", tiny, "--epochs", "1", *CPU)
    succeed(capsys, "distill", "--data", "Digits", "--student", tiny, "--epochs", "1", "--batch_size", "125", *CPU)
    assert json.loads((tmp_path / "runs" / "digits-teacher" / "result.json").read_text())["epochs"] == 2


def test_images_without_a_label_help_the_student_and_not_the_one_alone(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    more, out = tmp_path / "more", tmp_path / "run"
    more.mkdir()
    for number in range(30):
        Image.effect_noise((8, 8), 60).save(more / f"{number}.png")
    options = ["--teacher", str(teacher), "--student", tiny, "--train_images", "20", "--unlabelled", str(more)]
    options += ["--epochs", "2", *CPU]
    too_many = ["distill", *options, "--alone", "--batch_size", "25", "--out", str(out)]
    assert main(too_many) == 2
    assert "a batch of 25 is larger than the training set of 20 images" in capsys.readouterr().err
    assert not out.exists()
    printed = succeed(capsys, "distill", *options, "--alone", "--out", str(out))
    # 20 images in batches of 4, and 50 in batches of 8, the last two by themselves.
    said = "the student alone had 10 steps, with the teacher 14; "
    assert f"warning: {said}`spkd train --epochs 3 ...` gives it as many" in " ".join(printed.split())
    compared = succeed(
        capsys, "compare", *options, "--methods", "none", "sp", "--seeds", "1", "--out", str(tmp_path / "compare")
    )
    assert f"Warning: {said}--methods none --epochs 3 with another --out gives it as many." in " ".join(
        compared.split()
    )
    for folder, count in ((out, 30), (Path(f"{out}-alone"), 0)):
        images = RunFolder(folder).result()["images"]
        assert (images["train"], images["unlabelled"]) == (20, count)
    assert main(["train", "--model", tiny, "--unlabelled", str(more), *CPU]) == 2
    config = out / "config.yaml"
    assert yaml.safe_load(config.read_text())["unlabelled"] == str(more)
    succeed(capsys, "distill", "--config", str(config), *CPU, "--out", str(tmp_path / "again"))
    assert RunFolder(tmp_path / "again").result()["test_error"] == RunFolder(out).result()["test_error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in float16")
@pytest.mark.parametrize(
    ("command", "mistake", "named"),
    [
        ("distill", ["--student", "nonsense-3"], "nonsense-3"),
        ("distill", ["--taps", "blk.4=foo"], "blk.4"),
        ("distill", ["--gamma", "-3"], "gamma"),
        ("distill", ["--precision", "16-mixed"], "--precision 16-mixed"),
        ("compare", ["--methods", "none", "sp", "sp+own.py:Loss"], "own.py"),
        ("compare", ["--methods", "none", "sp", "--taps", "blk.4=foo"], "blk.4"),
    ],
)
def test_mistakes_are_told_before_the_digits_teacher_is_trained(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    mistake: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, *CPU, *mistake]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def comparison(tiny: str, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("comparison") / "compare"
    options = ["--teacher", str(teacher), "--student", tiny, "--epochs", "1", "--gamma", "30", "--seeds", "3"]
    command = ["compare", *options, "--methods", "none", "sp", "kd", *CPU, "--jobs", "2", "--out", str(folder)]
    assert main(command) == 0
    return folder, command


@pytest.fixture
def own_comparison(comparison: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """The same in a folder that a test may change."""
    folder, command = comparison
    own = shutil.copytree(folder, tmp_path / "compare")
    return own, [*command[:-1], str(own)]


def test_compare_does_not_overwrite_what_is_being_worked_on(
    capsys: pytest.CaptureFixture[str], comparison: tuple[Path, list[str]]
) -> None:
    folder, command = comparison
    plan = (folder / "study.json").read_bytes()
    with claimed(folder / "sp" / "seed-1", None):
        assert "is being worked on by process" in failing(capsys, *command, "--overwrite")
    changed = [*command, "--overwrite"]
    changed[command.index("none") : command.index("kd") + 1] = ["kd", "at"]
    with claimed(folder / "sp" / "seed-1", None):  # which plays the tape that these would erase
        assert "is being worked on by process" in failing(capsys, *changed)
        assert "is being worked on by process" in failing(capsys, *changed, "--no_tapes")
    assert (folder / "study.json").read_bytes() == plan
    assert (folder / "recordings" / "seed-1" / "tape" / "tape.json").exists()
    assert (folder / "none" / "seed-0" / "result.json").exists()


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        (["--accelerator", "tpu"], "--accelerator must be one of"),
        (["--precision", "16-mixed"], "float16 needs a GPU"),
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: "),
    ],
)
def test_compare_removes_nothing_where_it_is_refused(
    capsys: pytest.CaptureFixture[str], comparison: tuple[Path, list[str]], mistake: list[str], line: str
) -> None:
    folder, command = comparison
    there = {path for path in folder.rglob("*") if path.is_file()}
    assert line in failing(capsys, *command, *mistake, "--overwrite")
    assert there <= {path for path in folder.rglob("*") if path.is_file()}


def test_compare_writes_figures_that_follow_from_its_runs(comparison: tuple[Path, list[str]]) -> None:
    folder, _ = comparison
    rows = {row["method"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    assert list(rows) == ["none", "sp", "kd"]
    errors, val_errors = {}, {}
    for method, row in rows.items():
        runs = [json.loads((folder / method / f"seed-{seed}" / "result.json").read_text()) for seed in range(3)]
        errors[method] = [run["test_error"] for run in runs]
        val_errors[method] = [run["val_error"] for run in runs]
        assert row["val_errors"] == val_errors[method]
        assert row["test_errors"] == errors[method]
        assert row["seeds"] == [0, 1, 2]
        assert row["median"] == pytest.approx(np.median(errors[method]))
        assert row["mean"] == pytest.approx(np.mean(errors[method]))
        assert row["sem"] == pytest.approx(stats.sem(errors[method]))
    for method in ("sp", "kd"):
        expected = stats.ttest_rel(errors[method], errors["none"])
        low, high = expected.confidence_interval(0.95)
        row = rows[method]
        assert row["p_value"] == pytest.approx(expected.pvalue)
        assert row["interval"] == pytest.approx([low, high])
        assert row["difference"] == pytest.approx(np.mean(errors[method]) - np.mean(errors["none"]))
    assert rows["none"]["difference"] is None
    assert (folder / "comparison.csv").read_text().count("\n") == 10
    table = (folder / "comparison.md").read_text()
    for method, row in rows.items():
        val = f"{np.mean(val_errors[method]):.2f}"
        assert f"| {method} | 3 | {val} | {row['median']:.2f} | {row['mean']:.2f} ± {row['sem']:.2f} |" in table
    with Image.open(folder / "comparison.png") as picture:
        assert min(picture.size) > 200
    assert (folder / "comparison.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("methods", "against", "baseline"), [(("none", "sp", "kd"), "kd", "kd"), (("sp", "kd"), None, "sp")]
)
def test_compare_tests_against_the_method_that_is_asked_for(
    methods: tuple[str, ...], against: str | None, baseline: str, own_comparison: tuple[Path, list[str]]
) -> None:
    folder, command = own_comparison
    first, last = command.index("--methods") + 1, command.index("kd") + 1
    asked = [] if against is None else ["--against", against]
    assert main([*command[:first], *methods, *command[last:], *asked]) == 0
    found = json.loads((folder / "comparison.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert (list(rows), found["baseline"]) == (list(methods), baseline)
    for method, row in rows.items():
        if method == baseline:
            assert row["p_value"] is row["difference"] is None
            continue
        expected = stats.ttest_rel(row["test_errors"], rows[baseline]["test_errors"])
        assert row["p_value"] == pytest.approx(expected.pvalue)
        assert row["difference"] == pytest.approx(np.mean(row["test_errors"]) - np.mean(rows[baseline]["test_errors"]))
    assert f"| difference to {baseline} |" in (folder / "comparison.md").read_text()


def test_compare_refuses_to_test_against_what_it_does_not_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--methods", "none", "sp", "--against", "kd"]) == 2
    assert capsys.readouterr().err == "spkd: error: --against kd is not among the --methods: none, sp\n"


def test_compare_does_not_repeat_finished_runs(
    capsys: pytest.CaptureFixture[str], own_comparison: tuple[Path, list[str]]
) -> None:
    folder, command = own_comparison
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    (folder / "sp" / "seed-1" / "result.json").unlink()
    printed = succeed(capsys, *command)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert [path for path in after if after[path] != before[path]] == [folder / "sp" / "seed-1" / "result.json"]
    for text in ("median", "sp", "kd", "none"):
        assert text in printed


def test_a_comparison_s_students_play_one_tape_and_its_status_is_shown(
    capsys: pytest.CaptureFixture[str], comparison: tuple[Path, list[str]]
) -> None:
    folder, _ = comparison
    printed = succeed(capsys, "status", str(folder))
    assert "12 tasks: 12 done, 0 running, 0 failed, 0 stopped, 0 missing" in printed
    error = json.loads((folder / "sp" / "seed-1" / "result.json").read_text())["test_error"]
    row = next(line for line in printed.splitlines() if "sp/seed-1" in line)
    assert row.split()[1:] == ["training", "done", "test", "error", f"{error:.2f}", "%"]
    for seed in range(3):
        tape = folder / "recordings" / f"seed-{seed}" / "tape"
        for method in ("sp", "kd"):
            assert f"tape {tape}: " in (folder / method / f"seed-{seed}" / "task.log").read_text()
        assert "tape" not in (folder / "none" / f"seed-{seed}" / "task.log").read_text()


def test_what_is_compared_shares_image_size_and_recipe(
    capsys: pytest.CaptureFixture[str], tiny: str, pictures: Path, tmp_path: Path
) -> None:
    """The teacher's image size decides, for the student alone too, though that knows no teacher."""
    common = ["--data", str(pictures), "--epochs", "1", "--batch_size", "16", "--workers", "0", *CPU]
    teacher, out = tmp_path / "teacher", tmp_path / "compare"
    succeed(capsys, "train", "--model", "timm/test_resnet", "--image_size", "48", *common, "--out", str(teacher))
    options = ["--teacher", str(teacher), "--student", "torchvision/shufflenet_v2_x0_5", "--methods", "none", "sp"]
    succeed(capsys, "compare", *options, *common, "--gamma", "1", "--seeds", "1", "--jobs", "1", "--out", str(out))
    configs = [yaml.safe_load((out / method / "seed-0" / "config.yaml").read_text()) for method in ("none", "sp")]
    for field in ("image_size", "recipe", "batch_size", "lr"):
        assert configs[0][field] == configs[1][field], field
    assert configs[0]["image_size"] == 48


def test_compare_refuses_a_folder_of_another_configuration(
    capsys: pytest.CaptureFixture[str], comparison: tuple[Path, list[str]]
) -> None:
    _, command = comparison
    code = main([*command, "--lr", "0.05"])
    captured = capsys.readouterr()
    assert code == 2
    assert "lr was 0.1, is 0.05: give another --out, the options that it was" in captured.err.splitlines()[-1]


def test_a_comparison_among_the_images_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    assert main(["compare", "--data", str(tmp_path), "--student", "wrn-10-1", "--out", str(tmp_path / "cmp")]) == 2
    assert "overlap, one inside the other: choose another --out" in capsys.readouterr().err
    assert not (tmp_path / "cmp").exists()


def test_going_on_with_a_run_on_other_images_without_its_options_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RunFolder(tmp_path / "run").begin({"data": "/home/me/photos"}, "a0b1", overwrite=False)
    assert main(["distill", "--resume", "--out", "run"]) == 2
    assert "run holds a run on /home/me/photos" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "a teacher was trained first"


def test_compare_warns_of_what_a_run_would_and_names_all_software(
    capsys: pytest.CaptureFixture[str], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "compare"
    options = ["--teacher", str(teacher), "--student", "wrn-10-1", "--recipe", "paper", "--epochs", "1"]
    command = ["compare", *options, "--methods", "none", "kd", "sp", "--seeds", "1", *CPU, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["spkd", *command, "--overwrite"])
    assert main([*command, "--overwrite"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said[0].startswith("warning: γ = 1500 is for 200 epochs and may do harm in 1")
    record = json.loads((out / "comparison.json").read_text())
    assert record["command"] == shlex.join(["spkd", *command])
    result = out / "sp" / "seed-0" / "result.json"
    changed = json.loads(result.read_text())
    changed["software"]["torch"] = "1.0"
    result.write_text(json.dumps(changed))
    succeed(capsys, *command)
    assert json.loads((out / "comparison.json").read_text())["software"] == {
        **record["software"],
        "torch": f"{record['software']['torch']} or 1.0",
    }


def test_compare_runs_again_what_it_is_told_to_overwrite(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "compare"
    options = ["--teacher", str(teacher), "--student", tiny, "--methods", "sp", "--seeds", "1", "--gamma", "1"]
    command = ["compare", *options, *CPU, "--jobs", "1", "--out", str(out)]
    succeed(capsys, *command, "--epochs", "1")
    assert main([*command, "--epochs", "2"]) == 2
    capsys.readouterr()
    assert main([*command, "--epochs", "2", "--overwrite", "--max_time", "0"]) == 3
    assert "the same command without --overwrite continues" in capsys.readouterr().err
    assert not (out / "sp" / "seed-0" / "result.json").exists()
    succeed(capsys, *command, "--epochs", "2", "--overwrite")
    # Beyond the command line's own values: an equal configuration may be made of other weights.
    config = out / "sp" / "seed-0" / "config.yaml"
    config.write_text(re.sub("Made of: .*", "Made of: other weights", config.read_text()))
    error = failing(capsys, *command, "--epochs", "2", "--seeds", "2")
    assert "was made with other weights, code or images: give another --out" in error
    assert not (out / "sp" / "seed-1").exists()
    assert json.loads((out / "sp" / "seed-0" / "result.json").read_text())["epochs"] == 2


def test_compare_stops_in_time(capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path) -> None:
    options = ["--teacher", str(teacher), "--student", tiny, "--methods", "none", "--seeds", "1", "--epochs", "1"]
    assert main(["compare", *options, *CPU, "--max_time", "0", "--out", str(tmp_path / "compare")]) == 3
    assert "stopped" in capsys.readouterr().err
    assert not (tmp_path / "compare" / "comparison.json").exists()


def test_images_are_loaded_once_for_all_that_is_done_with_them_here(
    tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[DataOptions] = []
    load = loading._load_whole

    def watched(options: DataOptions, divided: bool) -> ImageData:
        loaded.append(options)
        return load(options, divided)

    monkeypatch.setattr(loading, "_load_whole", watched)
    options = ["--teacher", str(teacher), "--student", tiny, "--epochs", "1", *CPU]
    assert main(["distill", *options, "--alone", "--out", str(tmp_path / "run")]) == 0
    assert len(loaded) == 1
    assert main(["compare", *options, "--max_time", "0", "--out", str(tmp_path / "compare")]) == 3
    assert len(loaded) == 2


def test_a_failed_run_is_reported_and_the_others_are_kept(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    options = ["--teacher", str(teacher), "--student", tiny, "--methods", "none", "sp?weight=1e38", "--seeds", "1"]
    out = tmp_path / "compare"
    assert main(["compare", *options, "--epochs", "1", *CPU, "--jobs", "1", "--out", str(out)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 tasks failed, what has finished is kept" in error
    assert "not finite" in error
    assert (out / "none" / "seed-0" / "result.json").exists()
    log = out / "sp-weight=1e38" / "seed-0" / "task.log"
    for retried, times in (([], 1), (["--retry_failed"], 2)):
        assert main(["compare", *options, "--epochs", "1", *CPU, "--jobs", "1", "--out", str(out), *retried]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == error
        assert log.read_text().count("Traceback") == times


def test_a_teacher_from_a_weights_file_is_seen_as_it_was_trained_and_stands_in_the_table(
    capsys: pytest.CaptureFixture[str], tiny: str, pictures: Path, tmp_path: Path
) -> None:
    """The model.json beside the file gives image size and normalisation."""
    source = tmp_path / "net.py"
    source.write_text(Path(tiny.rpartition(":")[0]).read_text().replace("Conv2d(1,", "Conv2d(3,"))
    common = ["--data", str(pictures), "--epochs", "1", "--workers", "0", *CPU]
    own, out = f"{source}:Tiny", tmp_path / "student"
    succeed(capsys, "train", "--model", own, "--image_size", "40", *common, "--out", str(tmp_path / "teacher"))
    weights = tmp_path / "teacher" / "student" / "model.safetensors"
    options = ["--teacher", own, "--teacher_weights", str(weights), "--student", own, "--method", "kd"]
    printed = succeed(capsys, "distill", *options, *common, "--out", str(out))
    assert yaml.safe_load((out / "config.yaml").read_text())["image_size"] == 40
    assert spkd.load_model(out).info.image_size == 40
    row = next(line for line in printed.splitlines() if "teacher" in line)
    measured = json.loads((tmp_path / "teacher" / "result.json").read_text())
    assert row.split()[-4:] == [f"{measured['val_error']:.2f}", "%", f"{measured['test_error']:.2f}", "%"]
    assert "net.py:Tiny" in row
    assert str(tmp_path) not in row


def test_a_teacher_s_errors_are_those_on_the_student_s_images(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    """And not those in its own run, which may have been on others."""
    moved, options = tmp_path / "teacher", ["--student", tiny, "--epochs", "1", *CPU]
    shutil.copytree(teacher, moved)
    result = json.loads((teacher / "result.json").read_text())
    (moved / "result.json").write_text(json.dumps(result | {"test_error": 0.11, "val_error": 0.12}))
    printed = succeed(capsys, "distill", "--teacher", str(moved), *options, "--out", str(tmp_path / "student"))
    (row,) = [line for line in printed.splitlines() if line.startswith(" teacher")]
    assert row.split()[-4:] == [f"{result['val_error']:.2f}", "%", f"{result['test_error']:.2f}", "%"]
    study = tmp_path / "study"
    asked = ["--methods", "none", "kd", "--seeds", "1", "--out", str(study)]
    succeed(capsys, "compare", "--teacher", str(moved), *options, *asked)
    told = json.loads((study / "comparison.json").read_text())["teacher"]
    assert {name: told[name] for name in ("test_error", "val_error")} == {
        name: pytest.approx(result[name]) for name in ("test_error", "val_error")
    }


def test_a_small_set_lowers_the_batch_of_the_recipe(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path
) -> None:
    options = ["--model", "wrn-10-1", "--data", str(pictures), "--image_size", "16", "--epochs", "1", "--workers", "0"]
    assert main(["train", *options, *CPU, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    images = json.loads((tmp_path / "run" / "result.json").read_text())["images"]["train"]
    assert f"batch lowered from 128 for {images} images" in said
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["batch_size"] == 8
    assert "kept: epoch 1 of 1" in said


def test_evaluate_agrees_with_the_run_and_shows_classes(
    capsys: pytest.CaptureFixture[str], student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.progress.PLAIN_INTERVAL", 0.0)
    assert main(["evaluate", str(student), "--per_class", *CPU]) == 0
    printed, told = capsys.readouterr()
    assert re.fullmatch(r"evaluating: 1,000 of 1,000, [\d,]+ images/s, 0:00 left", told.splitlines()[-1])
    tested = json.loads((student / "result.json").read_text())["test"]
    for key in ("top1_error", "top5_error", "calibration_error", "agreement"):
        assert f"{tested[key]:.2f} %" in printed, key
    assert f"{tested['cross_entropy']:.4f}" in printed
    assert printed.count("\n") > 15


def test_evaluate_writes_what_it_is_asked_to(
    capsys: pytest.CaptureFixture[str], tiny: str, student: Path, tmp_path: Path
) -> None:
    weights, kept, out = student / "student" / "model.safetensors", tmp_path / "kept", tmp_path / "test.csv"
    own = ["--weights", str(weights), "--data", "digits", "--save", str(kept), "--out", str(out)]
    shown = succeed(capsys, "evaluate", tiny, *own)
    assert f"saved in {kept}\nwritten: {out}\n" in shown
    assert len(out.read_text().splitlines()) == 1001
    succeed(capsys, "export", str(kept), "--data", "digits")


def test_taps_shows_both_networks_and_the_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "taps", "--teacher", "wrn-16-2", "--student", "wrn-10-1", "--taps", "stages")
    assert "group3=group3" in printed
    assert "128 × 8 × 8" in printed
    assert "64 × 8 × 8" in printed
    named = succeed(
        capsys, "taps", "--teacher", "torchvision/resnet18", "--student", "wrn-10-1", "--taps", "group2=layer3"
    )
    assert "group2=layer3" in named
    larger = succeed(capsys, "taps", "--teacher", "wrn-16-2", "--image_size", "16", "--teacher_size", "32")
    assert "(3, 16, 16) (the teacher's at 32 pixels)" in larger
    assert "group3=group3" in succeed(capsys, "taps"), "the digits' own networks, on images that are made up"


def test_colour_files_are_read_as_grey_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for place in range(40):
        folder = tmp_path / "photos" / f"{place % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shade = (200, 0, 0) if place % 2 else (0, 0, 60 + place)
        Image.new("RGB", (10, 8), shade).save(folder / f"{place}.png")
    options = ["train", "--model", "wrn-10-1", "--data", str(tmp_path / "photos"), "--image_size", "8"]
    run = ["--epochs", "1", "--batch_size", "8", "--recipe", "digits", *CPU, "--out", str(tmp_path / "run")]
    succeed(capsys, *options, "--grey", *run)
    assert spkd.load_model(tmp_path / "run").info.channels == 1
    assert "with other options: grey was True, is False" in failing(capsys, *options, *run, "--resume")
    succeed(capsys, "evaluate", str(tmp_path / "run"))
    succeed(capsys, "export", str(tmp_path / "run"))
    succeed(capsys, "export", str(tmp_path / "run"), "--int8")
    succeed(capsys, "predict", str(tmp_path / "run"), str(tmp_path / "photos"))
    succeed(
        capsys,
        "distill",
        "--teacher",
        str(tmp_path / "run"),
        "--student",
        "wrn-10-1",
        *options[3:],
        "--grey",
        *run[:-1],
        str(tmp_path / "student"),
    )
    wrong = ["distill", "--teacher", str(tmp_path / "run"), "--student", "wrn-10-1", *options[3:]]
    wrong += ["--out", str(tmp_path / "wrong")]
    assert "or read the images as grey ones (--grey)" in failing(capsys, *wrong)


def test_export_is_checked_on_any_images(capsys: pytest.CaptureFixture[str], student: Path, tmp_path: Path) -> None:
    """As of a model that has left its images behind."""
    shutil.copytree(student / "student", tmp_path / "model")
    numbers = np.random.default_rng(0)
    for place in range(130):
        folder = tmp_path / "any" / str(place % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    given = ["--check_images", str(tmp_path / "any" / "0"), str(tmp_path / "any" / "1"), str(tmp_path / "any" / "2")]
    assert f"written: {tmp_path}" in succeed(capsys, "export", str(tmp_path / "model"), *given)
    images = images_in(given[1:], tmp_path / "model", 64)
    assert images.shape == (44, 1, 8, 8)
    assert len({image.numpy().tobytes() for image in images}) == 44
    assert main(["export", str(tmp_path / "model"), "--check_images", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"spkd: error: there is no image {tmp_path / 'none'}\n"
    assert main(["export", str(tmp_path / "model"), *given, "--skip_bad_images"]) == 2
    assert "--check_images takes files as they are: leave out --skip_bad_images" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--int8",), ("--check_images", "nowhere.png")])
def test_a_file_that_cannot_be_written_is_refused_before_the_images_are_looked_at(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str], student: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "x.onnx"
    given = ["--data", "nowhere"] if "--check_images" not in options else []
    assert main(["export", str(student), "--out", str(out), *options, *given]) == 2
    assert f"cannot write {out}" in capsys.readouterr().err


def test_export_in_8_bits_tells_what_it_costs_on_validation_images(
    capsys: pytest.CaptureFixture[str], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small.onnx"
    monkeypatch.setattr("spkd.training.progress.PLAIN_INTERVAL", 0.0)
    assert main(["export", str(student), "--int8", "--batch", "4", "--out", str(out)]) == 0
    assert onnxruntime.InferenceSession(out).get_inputs()[0].shape == [4, 1, 8, 8]
    shown, told = capsys.readouterr()
    assert f"written: {out}" in shown
    assert re.fullmatch(r"comparing: 297 of 297, [\d,]+ images/s, 0:00 left", told.splitlines()[-1])
    errors = re.findall(r"│ onnx(?:, int8)? +│ +[\d.]+ kB │ +[\d.]+ ms │ +([\d.]+) % │", shown)
    assert float(errors[0]) == pytest.approx(json.loads((student / "result.json").read_text())["val_error"], abs=0.01)
    assert re.search(r"in 8-bit integers [\d.]+ % of the 297 validation images keep their class", shown)
    for wrong, line in (
        (["--format", "torch"], "--int8 makes an ONNX file"),
        (["--check_images", "x.png"], "--int8 needs labelled images"),
        (["--batch", "0"], "batch: expected 1 image or more, got 0"),
    ):
        assert main(["export", str(student), "--int8", *wrong]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--format", "torch"], ["--int8"]])
def test_export_calibrates_on_validation_images(
    capsys: pytest.CaptureFixture[str],
    teacher: Path,
    tmp_path: Path,
    form: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spkd.training.progress.PLAIN_INTERVAL", 0.0)
    assert main(["export", str(teacher), "--calibrate", *form, "--out", str(tmp_path)]) == 0
    shown, told = capsys.readouterr()
    title = "comparing" if form == ["--int8"] else "calibrating"
    assert re.fullmatch(rf"{title}: 297 of 297, [\d,]+ images/s, 0:00 left", told.splitlines()[-1])
    measured = r"calibration error ([\d.]+ %) \(was [\d.]+ %\), cross-entropy ([\d.]+) \(was ([\d.]+)\)"
    line = rf"^temperature [\d.]+ ± [\d.]+: {measured}, on the 297 validation images that it was chosen on$"
    ((error, loss, loss_before),) = re.findall(line, shown, re.MULTILINE)
    assert float(loss) < float(loss_before)
    (path,) = tmp_path.iterdir()
    assert f"written: {path}" in shown
    if path.suffix == ".onnx":
        table = succeed(capsys, "evaluate", str(path), "--data", "digits", "--split", "val", *CPU)
        assert re.search(rf"cross-entropy +│ +{loss} ", table)
        assert re.search(rf"calibration error +│ +{error} ", table)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_export_writes_a_file_with_the_student_s_answers(
    capsys: pytest.CaptureFixture[str], student: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / {"onnx": "student.onnx", "torch": "student.pt2"}[form]
    printed = succeed(capsys, "export", str(student), "--format", form, "--batch", "5", "--out", str(path))
    assert str(path) in printed
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        expected = spkd.load_model(student)(images)
    if form == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answer = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    else:
        answer = torch.export.load(path).module()(images)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


OWN_LOSS = '''
"""A loss of a user's own: the squared distance of the logits."""
from spkd import DistillationLoss


class LogitDistance(DistillationLoss):
    def __init__(self, power=2.0):
        super().__init__()
        self.power = power

    def remember(self, teacher):
        return teacher.logits

    def forward(self, student, remembered):
        return (student.logits - remembered).abs().pow(self.power).mean()
'''


def test_an_own_network_and_an_own_loss_from_files(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN_LOSS)
    method = f"sp?weight=10+{tmp_path / 'own.py'}:LogitDistance?power=2&weight=0.5"
    options = ["--teacher", str(teacher), "--student", tiny, "--method", method, "--epochs", "1", *CPU]
    succeed(capsys, "distill", *options, "--out", str(tmp_path / "run"))
    header, row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    value = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    expected = value["train_ce"] + 10 * value["train_sp"] + 0.5 * value["train_LogitDistance"]
    assert value["train_total"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEG files of several sizes in class folders: stripes that lie, stand or make a board."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("lying", "standing", "board"):
        (folder / name).mkdir()
        for index in range(16):
            height, width = random.integers(40, 70, size=2)
            y, x = np.mgrid[:height, :width]
            wave = {"lying": y // 6 % 2, "standing": x // 6 % 2, "board": (x // 6 + y // 6) % 2}[name]
            pixels = wave[..., None] * 180 + random.integers(0, 60, size=(height, width, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.jpg")
    return folder


def test_a_torchvision_student_learns_from_a_timm_teacher_on_a_folder_of_jpegs(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path
) -> None:
    common = [
        "--data",
        str(pictures),
        "--image_size",
        "64",
        "--epochs",
        "1",
        "--batch_size",
        "16",
        "--workers",
        "0",
        *CPU,
    ]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    succeed(capsys, "train", "--model", "timm/mobilenetv3_small_050", *common, "--out", str(teacher))
    options = ["--teacher", str(teacher), "--student", "torchvision/shufflenet_v2_x0_5", "--method", "sp+kd+at"]
    succeed(capsys, "distill", *options, *common, "--gamma", "30", "--beta", "1", "--out", str(student))
    config = yaml.safe_load((student / "config.yaml").read_text())
    assert (config["recipe"], config["image_size"]) == ("scratch", 64)
    assert json.loads((student / "result.json").read_text())["compared_layers"]
    assert spkd.load_model(student).info.classes == ("board", "lying", "standing")
    succeed(capsys, "evaluate", str(student), *CPU)
    succeed(capsys, "export", str(student))


def test_the_module_can_be_run(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "spkd", "--version"], capture_output=True, text=True, check=True)
    assert spkd.__version__ in done.stdout


def test_a_folder_of_the_student_alone_that_is_refused_is_refused_first(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    out, beside = tmp_path / "run", tmp_path / "run-alone"
    options = ["distill", "--teacher", str(teacher), "--student", tiny, "--alone", *CPU, "--out", str(out)]
    succeed(capsys, *options, "--epochs", "1")
    shutil.rmtree(out)
    assert main([*options, "--epochs", "2"]) == 2
    assert f"{beside} holds a run with other options: epochs was 1, is 2" in capsys.readouterr().err
    assert not out.exists()
    succeed(capsys, *options, "--epochs", "2", "--overwrite")
    assert json.loads((beside / "result.json").read_text())["epochs"] == 2


def test_a_tape_is_recorded_and_played_beside_the_student_alone(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path
) -> None:
    tape = str(tmp_path / "tape")
    common = ["--teacher", str(teacher), "--student", tiny, "--epochs", "1", *CPU]
    printed = succeed(capsys, "tape", "record", tape, *common, "--methods", "sp", "kd")
    assert "similarity of body" in printed
    assert "64 × 64" in printed
    succeed(capsys, "distill", *common, "--method", "sp+kd", "--alone", "--tape", tape, "--out", str(tmp_path / "run"))
    assert succeed(capsys, "tape", "info", tape) == printed
    code = main(["distill", *common, "--seed", "1", "--tape", tape, "--out", str(tmp_path / "other")])
    assert code == 2
    assert "recorded with seed 0, this run has 1" in capsys.readouterr().err.splitlines()[-1]
    assert main(["tape", "info", str(tmp_path / "none")]) == 2
    assert "there is no tape in" in capsys.readouterr().err


def test_predict_shows_or_writes_a_line_for_each_image(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, grey in (("a.png", 0), ("b.png", 255)):
        Image.new("L", (8, 8), grey).save(tmp_path / name)
    command = ["predict", str(teacher), str(tmp_path), "--accelerator", "cpu", "--top", "2"]
    assert main(command) == 0
    shown, told = capsys.readouterr()
    assert told == "", "of what is done at once nothing is shown"
    header, first, second = csv.reader(shown.splitlines())
    assert header == ["image", "class", "probability", "class 2", "probability 2"]
    assert (first[0], second[0]) == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    for line in (first, second):
        assert {line[1], line[3]} < set("0123456789")
        assert 1 >= float(line[2]) >= float(line[4]) >= 0
    out = tmp_path / "found" / "predictions.csv"
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_text() == shown
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("2 images: ")
    assert told[1] == f"written: {out}"
    assert main([*command, "--probabilities"]) == 0
    header, first, _ = csv.reader(capsys.readouterr().out.splitlines())
    assert header[5:] == [f"p({name})" for name in "0123456789"]
    assert sum(map(float, first[5:])) == pytest.approx(1, rel=1e-4)


def test_predict_refuses_a_place_that_cannot_be_written_before_it_begins(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.prediction.predict", None)
    assert main(["predict", str(teacher), str(tmp_path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"spkd: error: cannot write {tmp_path}: Is a directory\n"


@pytest.fixture(scope="module")
def unequal(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of small pictures, of one class few, and the run of a teacher of these."""
    folder, random = tmp_path_factory.mktemp("unequal"), np.random.default_rng(0)
    for name, count, grey in (("many", 120, 90), ("few", 16, 120)):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(count):
            pixels = (grey + random.integers(-60, 60, size=(8, 8, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")
    options = ["--model", f"{tiny}?width=8", "--data", str(folder / "images"), "--grey", "--epochs", "3"]
    assert main(["train", *options, *CPU, "--out", str(folder / "teacher")]) == 0
    return folder / "images", folder / "teacher"


def test_several_students_are_compared_to_choose_one(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, students = tmp_path / "students", [tiny, f"{tiny}?width=6"]
    command = ["compare", "--teacher", str(teacher), "--students", *students, "--methods", "none", "sp"]
    command += ["--epochs", "1", "--gamma", "30", "--seeds", "2", *CPU, "--jobs", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["spkd", *command])
    printed = succeed(capsys, *command)
    choice = json.loads((out / "students.json").read_text())
    assert choice["command"] == shlex.join(["spkd", *command])
    assert {one["student"]: one["parameters"] for one in choice["candidates"]} == {
        student: parameter_count(load_classifier(out / slug(student) / "none" / "seed-0")) for student in students
    }
    tapes = [path.parent for path in out.glob("recordings/*/seed-*/tape")]
    assert sorted(tape.name for tape in tapes) == ["seed-0", "seed-1"]
    for one in choice["candidates"]:
        folder = out / slug(one["student"])
        comparison = json.loads((folder / "comparison.json").read_text())
        assert comparison["student"] == one["student"]
        assert (folder / "comparison.md").exists()
        means = {row["method"]: np.mean(row["val_errors"]) for row in comparison["rows"]}
        assert one["val_error"] == pytest.approx(min(means.values()))
        assert means[one["method"]] == min(means.values())
        for row in comparison["rows"]:
            runs = [RunFolder(folder / row["method"] / f"seed-{seed}").result() for seed in (0, 1)]
            assert row["test_errors"] == [run["test_error"] for run in runs]
            assert {run["model"] for run in runs} == {one["student"]}
        for tape in tapes:  # one for both students
            assert f"tape {tape / 'tape'}: " in (folder / "sp" / tape.name / "task.log").read_text()
    assert choice["teacher"]["parameters"] == parameter_count(load_classifier(teacher))
    lines = (out / "students.md").read_text().splitlines()
    assert "Students on digits" in printed
    assert [line.split(" | ")[0].strip("| ") for line in lines[4:6]] == [
        one["student"] for one in sorted(choice["candidates"], key=lambda one: one["latency_ms"])
    ]
    with Image.open(out / "students.png") as picture:
        assert min(picture.size) > 200
    made = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert len(made) == 2 * 2 * 2 + 2
    place = command.index("--students") + 1
    succeed(capsys, *command[:place], f"{tiny}?width=2", students[1], *command[place + 2 :])
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list(out.glob("recordings/*/seed-*/tape"))) == 2
    found = json.loads((out / "students.json").read_text())["candidates"]
    assert {one["student"] for one in found} == {students[1], f"{tiny}?width=2"}


def test_students_that_would_be_trained_otherwise_are_told_of(
    capsys: pytest.CaptureFixture[str], tiny: str, pictures: Path, tmp_path: Path
) -> None:
    options = ["--students", "wrn-10-1", tiny, "--methods", "none", "--seeds", "1", "--epochs", "1", "--grey"]
    options += ["--data", str(pictures), "--image_size", "16", "--batch_size", "8", "--workers", "0", *CPU]
    warning = f"the students are not trained alike (wrn-10-1: recipe paper, 16 pixels; {tiny}: recipe scratch, 16"
    for recipe, told_of in (([], True), (["--recipe", "scratch"], False)):
        out = ["--max_time", "0", "--out", str(tmp_path / f"students{told_of}")]
        assert main(["compare", *options, *recipe, *out]) == 3
        assert (warning in " ".join(capsys.readouterr().err.split())) == told_of


def test_no_student_that_is_compared_is_written_over(
    capsys: pytest.CaptureFixture[str], tiny: str, teacher: Path, student: Path
) -> None:
    options = ["--teacher", str(teacher), "--students", tiny, str(student), *CPU]
    assert "overlap, one inside the other: choose another --out" in failing(
        capsys, "compare", *options, "--out", str(student)
    )


@pytest.mark.parametrize(
    ("students", "line"),
    [
        (["--students", "wrn-10-1", "wrn-10-1"], "--students names 'wrn-10-1' twice"),
        (["--students", "timm/a", "timm:a"], "'timm/a' and 'timm:a' have names too much alike"),
        (["--students", "a", "b", "a", "b"], "--students names 'a' twice"),
        (["--students", "wrn-10-1", "--student", "wrn-10-1"], "--students is given instead of --student"),
        (["--students", "wrn-10-1", "wrn-11-1"], "wrn-11-1"),
    ],
)
def test_students_that_cannot_be_compared_are_refused(
    students: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in failing(capsys, "compare", *students, *CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("select", ["error", "balanced"])
def test_compare_goes_by_the_measure_that_is_selected(
    select: str, capsys: pytest.CaptureFixture[str], tiny: str, unequal: tuple[Path, Path], tmp_path: Path
) -> None:
    data, teacher = unequal
    out = tmp_path / "compare"
    options = ["--teacher", str(teacher), "--student", tiny, "--data", str(data), "--grey", "--epochs", "2"]
    options += ["--methods", "none", "kd", "--seeds", "2", "--select", select, *CPU, "--jobs", "1", "--out", str(out)]
    assert main(["compare", *options]) == 0
    said = capsys.readouterr().err.splitlines()
    for note in (
        "classes are unequal, from ",
        "images: 96 training, ",
        "validation set: only 2 images of 'few', so each",
    ):
        assert sum(line.startswith(note) for line in said) == 1
    runs = {method: [RunFolder(out / method / f"seed-{seed}").result() for seed in (0, 1)] for method in ("none", "kd")}
    comparison = json.loads((out / "comparison.json").read_text())
    keys = ["test_error", "test_balanced_error"]
    for rows, key in zip(
        (comparison["rows"], comparison["other_rows"]), keys if select == "error" else keys[::-1], strict=True
    ):
        assert {row["method"]: row["test_errors"] for row in rows} == {
            method: [result[key] for result in own] for method, own in runs.items()
        }
    assert comparison["measure"] == select
    assert comparison["teacher"]["test_balanced_error"] == runs["kd"][0]["test"]["teacher_balanced_error"]
    title = (out / "comparison.md").read_text().splitlines()[0]
    assert title.endswith(", by the balanced error**") == (select == "balanced")
    for own in runs.values():
        for seed, result in enumerate(own):
            lines = (out / result["method"] / f"seed-{seed}" / "metrics.csv").read_text().splitlines()
            rows = list(csv.DictReader(lines))
            kept = rows[result["best_epoch"] - 1]
            column = "val_balanced_error" if select == "balanced" else "val_error"
            assert float(kept[column]) == min(float(row[column]) for row in rows) == result[column]
    if select == "error":  # and one run was begun by a version without the balanced error
        begun = out / "kd" / "seed-1" / "result.json"
        begun.write_text(json.dumps(runs["kd"][1] | {"val_balanced_error": None}))
        succeed(capsys, "compare", *options)
        assert json.loads((out / "comparison.json").read_text())["other_rows"] == []


def test_distill_tells_both_errors_of_unequal_classes(
    capsys: pytest.CaptureFixture[str], tiny: str, unequal: tuple[Path, Path], tmp_path: Path
) -> None:
    data, teacher = unequal
    out = tmp_path / "run"
    options = ["--teacher", str(teacher), "--student", tiny, "--data", str(data), "--grey", "--epochs", "1"]
    assert main(["distill", *options, "--method", "kd", "--alone", *CPU, "--out", str(out)]) == 0
    said, told = capsys.readouterr()
    results = [RunFolder(folder).result() for folder in (out, Path(f"{out}-alone"))]
    measured = [results[0]["test"]["teacher_balanced_error"], *[result["test_balanced_error"] for result in results]]
    for error in measured:
        assert f"{error:.2f} %" in said
    assert "balanced error" in said.splitlines()[-3]
    of_teacher = f"teacher: error {results[0]['teacher_val_error']:.2f} % (balanced "
    assert f"{of_teacher}{results[0]['teacher_val_balanced_error']:.2f} %) on the validation images" in told
    assert f" % (balanced {results[0]['val_balanced_error']:.2f} %)" in told


def test_a_table_in_a_file_is_plain_whatever_colours_a_notebook_asks_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    printed = succeed(capsys, "taps", "--student", "wrn-10-1")
    assert "group3" in printed
    assert "\x1b" not in printed
    assert "…" not in printed


def test_images_of_one_patient_stay_together_in_every_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, random = tmp_path / "photos", np.random.default_rng(0)
    for patient, name in itertools.product(range(30), ("benign", "malign")):
        for shot in range(1 + patient % 3):
            (photos / name).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / name / f"patient{patient}_{shot}.png")
    monkeypatch.chdir(tmp_path)
    common = ["--model", "wrn-10-1", "--data", "photos", "--epochs", "1", *CPU]
    grouped = [*common, "--groups", r"(patient\d+)_", "--out", "run"]
    assert main(["train", *grouped]) == 0
    assert re.search(r"validation set: 18 of the 120 images, .*, no group divided \(\d of 30 groups\)", told(capsys))
    assert yaml.safe_load(Path("run/config.yaml").read_text())["groups"] == r"(patient\d+)_"
    tested = {}
    for split in ("train", "val", "test"):
        succeed(capsys, "evaluate", "run", "--split", split, "--out", f"{split}.csv", *CPU)
        tested[split] = set(re.findall(r"patient\d+", Path(f"{split}.csv").read_text()))
    assert sum(map(len, tested.values())) == len(set.union(*tested.values())) == 30
    succeed(capsys, "export", "run")
    assert "groups was '(patient\\\\d+)_', is None" in failing(capsys, "train", *common, "--out", "run", "--resume")
    assert main(["train", *grouped, "--resume"]) == 0
    succeed(capsys, "train", "--config", "run/config.yaml", *CPU, "--out", "again")
    first, second = (RunFolder(Path(name)).result() for name in ("run", "again"))
    assert (first["identity"], first["test"]) == (second["identity"], second["test"])

    # A teacher that has learnt other patients is warned of; a run without groups says nothing of them.
    succeed(capsys, "train", *common, "--out", "torn")
    assert "groups" not in yaml.safe_load(Path("torn/config.yaml").read_text())
    assert RunFolder(Path("torn")).result()["identity"] != first["identity"]
    for teacher, warned in (("torn", True), ("run", False)):
        student = [
            "--teacher",
            teacher,
            "--student",
            "wrn-10-1",
            *common[2:],
            *grouped[-4:-2],
            "--out",
            f"of-{teacher}",
        ]
        assert main(["distill", *student]) == 0
        line = (
            "warning: the teacher was trained with other --groups, so other images are held out now, of which the "
            "teacher may have learnt some"
        )
        assert (line in told(capsys)) == warned


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--groups", "(x"], "groups: expected a regular expression, got '(x': missing ), unterminated subpattern at"),
        (["--data", "digits", "--groups", "x"], "groups: digits is no folder of files whose paths tell groups"),
        (["--groups", r"/1\d\."], "is not found in the paths of 30 of the 48 images, the first: board/0.jpg in "),
        (["--groups", "."], "have images of too few groups to be split between 3 sets: 'board' (1), "),
    ],
)
def test_mistakes_with_groups_are_one_line(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path, options: list[str], line: str
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--model", "wrn-10-1", "--data", str(pictures), *options, *CPU, "--out", str(out)]
    error = failing(capsys, *arguments)
    assert line in error
    assert error.count("\n") == 1
    assert not out.exists()
