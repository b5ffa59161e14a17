"""The command line answers mistakes with one line and the right exit code, and help at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from spkd.cli import showing
from spkd.cli.main import COMMANDS, main
from spkd.files import write_text_atomically


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["distil"], "Did you mean 'distill'"),
        ([], "no command given"),
        (["--bogus"], "unknown option --bogus"),
        (["train", "--modle", "wrn-16-1"], "Did you mean '--model'"),
        (["distill", "--methd=sp"], "Did you mean '--method"),
        (["train", "--epochs", "many"], "--epochs must be a whole number, not 'many'"),
        (["train", "--lr", "fast"], "--lr must be a finite number, not 'fast'"),
        (["train", "--lr", "nan"], "--lr must be a finite number"),
        (["train", "--lr", ".nan"], "--lr must be a finite number above 0"),
        (["train", "--epochs", "-3"], "--epochs must be at least 1"),
        (["train", "--optimizer", "adam"], "--optimizer must be one of sgd, adamw, not 'adam'. Did you mean 'adamw'"),
        (["export", "x", "--weight_bits", "9"], "--weight_bits must be one of 7, 8, not '9'"),
        (["export", "x", "--calibrate", "--check_images", "x.png"], "--calibrate needs labelled images to measure on"),
        (["export", "x", "--weight_bits", "8"], "--weight_bits is for 8-bit integers: give --int8"),
        (["train", "--precision", "fp8"], "--precision must be one of 32-true, bf16-mixed, 16-mixed"),
        (["train", "--milestones", "0.5", "x"], "--milestones must be a finite number, not 'x'"),
        (["train", "--seed", "-1"], "--seed must be from 0"),
        (["train", "--seed", "99999999999999999999999"], "--seed must be from 0"),
        (["train", "--image_size", "100000"], "expected a side length from 2 to 4096 pixels, got 100000"),
        (["train", "--resume", "--overwrite"], "--overwrite cannot be combined with --resume or --finish"),
        (["train", "--accelerator", "cpu", "--precision", "16-mixed"], "float16 needs a GPU"),
        (["train", "--model"], "--model: expected one argument"),
        (["train", "--config", "nowhere.yaml"], "--config: there is no file …/nowhere.yaml'"),
        (["train", "--recipe", "digit"], "Did you mean 'digits'"),
        (["train", "--model", "wrn-17-1"], "try 16 or 22"),
        (["train", "--model", "torchvision/resnet19"], "Did you mean 'resnet18'"),
        (["train", "--model", "timm/mobilenetv3_smal_050"], "Did you mean 'mobilenetv3_small_050'"),
        (["train", "--model", "nowhere.py:Net"], "nowhere.py was not found"),
        (["train", "--model", "wrn-10-1", "--data", "cifar11"], "Did you mean 'cifar10'"),
        (["train", "--model", "wrn-10-1", "--data", "cifar10", "--data_root", "/nonexistent"], "expected /nonexistent"),
        (["train", "--batch_size", "501"], "a batch of 501 is larger than the training set of 500"),
        (["train", "--max_time", "soon"], "--max_time 'soon' is no duration"),
        (["train", "--accelerator", "tpu"], "--accelerator must be one of"),
        (["train", "--weights", "missing.pt"], "there is no file missing.pt"),
        (["distill", "--method", "ps", "--teacher", "x"], "unknown term 'ps'"),
        (["distill", "--gamma", "-1", "--teacher", "x"], "gamma must be a finite number of at least 0, got -1"),
        (["distill", "--gamma", ".nan", "--teacher", "x"], "gamma must be a finite number of at least 0, got nan"),
        (["distill", "--method", "none", "--teacher", "x"], "--method none distils nothing"),
        (["distill", "--teacher", "no/such/folder"], "no/such/folder: unknown, and no folder of this name"),
        (["distill", "--teacher", "wrn-16-1"], "random weights"),
        (["distill", "--student", "wrn-10-1", "--data", "cifar10"], "needs --teacher"),
        (["export", "x", "--image_size", "8"], "has no option --image_size"),
        (["compare", "--seeds", "0"], "--seeds must be at least 1"),
        (["compare", "--methods", "sp", "sp"], "'sp' twice"),
        (["compare", "--jobs", "0"], "--jobs must be at least 1"),
        (["compare", "--jobs_per_gpu", "0"], "--jobs_per_gpu must be at least 1"),
        (["status", "no/such/folder"], "no/such/folder holds no study"),
        (["evaluate", "no/such/folder"], "there is no folder no/such/folder"),
        (["export", "no/such/folder"], "there is no folder no/such/folder"),
        (
            ["taps", "--student", "wrn-10-1", "--teacher", "wrn-16-1", "--taps", "group4=group3"],
            "has no layer 'group4'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = answer(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("spkd: error: ")
    assert all(part in err for part in expected.split("…"))
    assert not list(tmp_path.rglob("*")), "something was written"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epoch: 3\n", "Did you mean '--epochs'"),
        ("a: [", "not a list of"),
        ("- a\n", "not a list of"),
        ("epochs: x\n", "--epochs must be a whole number, not 'x'"),
    ],
)
def test_a_config_with_mistakes_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    code, out, err = answer(capsys, "train", "--config", str(path))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert expected in err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "model"),
        ("distill --teacher models/large", "student"),
        ("compare --teacher models/large", "student"),
        ("tape record t --teacher models/large", "student"),
        ("taps --teacher models/large", "student"),
        ("taps --student wrn-10-1", "teacher"),
    ],
)
def test_only_the_digits_have_networks_of_their_own(
    capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    code, out, err = answer(capsys, *command.split(), "--data", "photos")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"give --{option}, such as timm/mobilenetv3_small_050, for --data photos: only the digits" in err


def test_debug_reaches_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_on: list[list[str]] = []
    monkeypatch.setattr("spkd.training.launch.launch", lambda main, given, *_: handed_on.append(list(given)) or 0)
    given = ["train", "--debug", "--devices", "2"]
    assert main(given) == 0
    assert main(["train", "--devices", "2"]) == 0
    assert handed_on == [given, ["train", "--devices", "2"]]


def test_a_tilde_is_the_home_folder_where_a_shell_leaves_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    _, _, err = answer(capsys, "train", "--model=wrn-10-1", "--data=~/photos")
    assert str(tmp_path / "home" / "photos") in err
    _, _, err = answer(capsys, "status", "~/study")
    assert str(tmp_path / "home" / "study") in err


def test_a_full_memory_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("spkd.training.prediction.predict", fill)
    code, _, err = answer(capsys, "predict", "runs/x", "photos")
    assert code == 1
    assert err.startswith("spkd: error: the device's memory is full (")
    assert err.count("\n") == 1


def test_what_a_terminal_would_obey_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(capsys, "status", "\x1b[2J")[2].startswith("spkd: error: \\x1b[2J holds no study")
    write_text_atomically(
        tmp_path / "\x1b[2Jb" / "study.json",
        json.dumps({"tasks": [{"name": "\x1b[2Jname", "kind": "training", "after": []}]}),
    )
    code, out, _ = answer(capsys, "status", "\x1b[2Jb")
    assert (code, "\x1b" in out, "\\x1b[2Jname" in out) == (0, False, True)
    showing.say("two\nlines of \x1b[2J")
    assert capsys.readouterr().out == "two\nlines of \\x1b[2J\n"


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="wrn"):
        main(["train", "--model", "wrn-17-1", "--debug"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_shared_option(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    shared = ["--config", "--print_config", "--debug"]
    if command not in ("status", "tape", "reproduce", "predict"):
        shared += ["--data", "--data_root", *([] if command == "export" else ["--image_size"])]
    of_training = [
        "--epochs",
        "--batch_size",
        "--lr",
        "--precision",
        "--recipe",
        "--accelerator",
        "--compile",
    ]
    of_training += ["--max_time", "--weights"]
    expected = {
        "train": [*of_training, "--devices", "--model", "--seed", "--out", "--resume", "--overwrite"],
        "distill": [
            *(
                *of_training,
                "--devices",
                "--tape",
                "--teacher",
                "--student",
                "--teacher_weights",
                "--method",
                "--gamma",
                "--taps",
                "--seed",
            ),
            *("--out", "--resume", "--overwrite"),
        ],
        "compare": [
            *of_training,
            "--teacher",
            "--student",
            "--methods",
            "--gamma",
            "--taps",
            "--seeds",
            "--out",
            *("--jobs", "--jobs_per_gpu", "--ray", "--retry_failed", "--no_tapes"),
        ],
        "status": [],
        "tape": [],
        "reproduce": ["--scale", "--data_root", "--only", "--redraw", "--ray", "--max_time"],
        "evaluate": ["--teacher", "--per_class", "--accelerator"],
        "predict": ["--top", "--out", "--accelerator", "--skip_bad_images", "--workers"],
        "taps": ["--teacher", "--student", "--taps", "--teacher_size"],
        "export": ["--format", "--out", "--calibrate"],
    }
    for option in [*shared, *expected[command]]:
        assert option in text, option


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("", "spkd COMMAND ..."),
        ("train", "spkd train [options]"),
        ("tape", "spkd tape ACTION ..."),
        ("tape record", "spkd tape record folder [options]"),
        ("predict", "spkd predict network images [images ...] [options]"),
        ("reproduce", "spkd reproduce [name] [options]"),
    ],
)
def test_a_usage_is_one_line(command: str, usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert capsys.readouterr().out.splitlines()[:2] == [f"usage: {usage}", ""]


def test_options_of_one_network_say_of_which(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("distill", "compare", "tape record"):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert " WEIGHTS the student's initial weights: " in text
        assert " TEACHER_WEIGHTS the teacher's weights: " in text
        assert " NORMALISATION normalisation that the student's weights were trained with: " in text
        assert " TEACHER_NORMALISATION normalisation that the teacher's weights were trained with: " in text


def test_help_needs_no_torch_and_is_quick() -> None:
    code = (
        "import sys\nfrom spkd.cli.main import main\n"
        "try: main(['distill', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'lightning_fabric', 'scipy', 'sklearn', 'matplotlib', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_printed_config_is_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--epochs", "3", "--taps", "stages", "--gamma", "5", "--print_config"])
    printed = capsys.readouterr().out
    path = tmp_path / "config.yaml"
    path.write_text(printed)
    with pytest.raises(SystemExit):
        main(["distill", "--config", str(path), "--print_config"])
    assert capsys.readouterr().out == printed
    assert "gamma: 5.0" in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tape"], "there are record, info"),
        (["tape", "frob"], "unknown command 'frob': there are record, info"),
        (["tape", "info"], "give the folder"),
        (["status"], "give the folder"),
        (["train", "--devices", "0"], "--devices must be at least 1, not 0"),
        (["train", "--devices", "999"], "--devices 999: this machine has"),
        (["distill", "--timeout_seconds", "-1", "--teacher", "x"], "--timeout_seconds must be above 0"),
        (["distill", "--teacher_precision", "fp8"], "--teacher_precision must be one of auto, 32-true, bf16-true"),
    ],
)
def test_mistakes_with_new_options_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    code, out, err = answer(capsys, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tape", "record", "--teacher", "models/large", "--data", "photos"], "see `spkd tape record --help`"),
        (["tape", "record", "t", "--gamma", "3"], "`spkd tape record` has no option --gamma"),
        (["tape", "info", "t", "--gamme", "3"], "See `spkd tape info --help`"),
    ],
)
def test_a_command_of_several_words_is_named_whole(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["predict", "taps"])
def test_a_reader_that_has_seen_enough_is_no_failure(asked: str, teacher: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    arguments = [str(teacher), str(tmp_path), "--accelerator", "cpu"]
    if asked == "taps":  # a table, and nothing that is printed by itself
        arguments = ["--teacher", str(teacher), "--student", "wrn-10-1", "--grey", "--image_size", "8"]
    command = [sys.executable, "-m", "spkd", asked, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=120) == 0


def test_a_training_whose_lines_nobody_reads_goes_on(tmp_path: Path) -> None:
    options = ["--model", "wrn-10-1", "--epochs", "1", "--batch_size", "250", "--accelerator", "cpu"]
    command = [sys.executable, "-m", "spkd", "train", *options, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "result.json").exists()


def test_a_full_log_takes_nothing_from_the_code() -> None:
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-m", "spkd", "distil"], stderr=full, check=False).returncode == 2


@pytest.mark.parametrize("place", ["before", "after", "joined"])
def test_what_is_typed_goes_over_what_the_file_says(
    place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: wrn-10-1\nepochs: 7\nmax_time: '0'\n")
    file = [f"--config={config}"] if place == "joined" else ["--config", str(config)]
    typed = ["--epochs", "2", "--accelerator", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", *(file + typed if place == "before" else typed + file)]) == 3
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "epochs: 2" in written
    assert "model: wrn-10-1" in written


def test_a_user_whom_the_system_does_not_know_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setenv("USER", "")
    monkeypatch.setattr("getpass.getuser", unknown)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert os.environ["USER"] == "user"
