"""Every experiment of the paper at the smoke scale, through the real command line.

The tasks run in this process: what takes them to other processes has tests of its own.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from spkd.cli.main import main
from spkd.studies import smoke
from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.scales import SCALES, Protocol
from spkd.studies.work import Job, Outcome, carry_out

SMOKE = ["--scale", "smoke", "--accelerator", "cpu"]
ROWS = {
    "cifar10": ("--only", "wrn-16-1-from-wrn-16-2", "wrn-16-2-from-wrn-40-2"),
    "combinations": ("--only", "shufflenet_v2-0.5-from-shufflenet_v2-2.0", "--seeds", "1"),
    "architectures": ("--only", "mobilenet_v2-0.35-from-shufflenet_v2-2.0", "--seeds", "1"),
    "transfer": ("--only", "mobilenet_v1-0.25-from-mobilenet_v1-0.5"),
    "layers": ("--only", "group3", "group2=group3", "--seeds", "1"),
    "loss-vs-error": ("--only", "wrn-16-1-from-wrn-40-1", "--seeds", "1"),
}


class InThisProcess:
    """Carries out a job when it is waited for."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def has_room(self) -> bool:
        return not self.jobs

    def begin(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        done = [(job.task.name, carry_out(job)) for job in self.jobs]
        self.jobs.clear()
        return done

    def stop(self) -> list[tuple[str, Outcome]]:
        return []


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spkd.studies.runner._workers", lambda *_: InThisProcess())


def reproduce(name: str, out: Path, *options: str) -> int:
    return main(["reproduce", name, *SMOKE, "--out", str(out), *options])


def records(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name / "records.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def planned(out: Path, name: str, kind: str) -> list[str]:
    return [
        task["name"]
        for task in json.loads((out / name / "reproduction.json").read_text())["tasks"]
        if task["kind"] == kind
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_and_is_drawn_again_from_its_records_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert reproduce(name, out, *ROWS.get(name, ())) == 0, capsys.readouterr().err
    lines = records(out, name)
    assert [line["task"] for line in lines] == planned(out, name, "training")
    for line in lines:
        result = json.loads((out / line["task"] / "result.json").read_text())
        assert float(line["test_error"]) == result["test_error"]
        assert line["identity"] == result["identity"]
    with Image.open(out / name / "figures" / f"{name}.png") as image:
        assert image.size[0] >= 800
    report = (out / name / "report.md").read_text(encoding="utf-8")
    assert "unfinished" not in report.lower()
    assert _without_models(out, tmp_path / "published", name) == (
        files(out / name / "tables"),
        files(out / name / "figures"),
    )


def test_the_small_transfer_learns_on_cifar10_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the small scale with less of everything, on made-up images in the layouts of the real ones."""
    root, out = tmp_path / "data", tmp_path / "study"
    smoke.dtd(root, 1)
    for split, seed in (("train", 0), ("test", 1)):
        for label, name in enumerate(("cat", "dog", "ship")):
            (root / split / name).mkdir(parents=True)
            for number, pixels in enumerate(smoke._pictures(label, 16, (32, 32), seed)):
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    one_epoch = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0.0}
    short = replace(
        SCALES["small"],
        pretraining=Protocol("scratch", one_epoch, image_size=64, train_images=36),
        dtd=Protocol("finetune", one_epoch, image_size=64),
    )
    monkeypatch.setitem(SCALES, "small", short)
    pair = "mobilenet_v1-0.25-from-mobilenet_v1-0.5"
    options = ["--data_root", str(root), "--accelerator", "cpu", "--seeds", "1", "--only", pair, "--out", str(out)]
    assert main(["reproduce", "transfer", *options]) == 0
    found = {line["task"]: line for line in records(out, "transfer")}
    first = {f"transfer/pretraining/mobilenet_v1-{width}/seed-0" for width in ("0.25", "0.5")}
    students = {f"transfer/{method}/{pair}/seed-0" for method in ("at", "sp")}
    assert set(found) == {*first, "transfer/none/mobilenet_v1-0.25/seed-0", *students}
    for task, line in found.items():
        result = json.loads((out / task / "result.json").read_text())
        classes = json.loads((out / task / "student" / "model.json").read_text())["classes"]
        assert classes == (["cat", "dog", "ship"] if task in first else ["banded", "dotted", "woven"])
        assert bool(result["compared_layers"]) == (task in students)
        assert int(line["image_size"]) == 64
        spec = "spkd.models.mobilenet_v1:mobilenet_v1?width="
        assert line["model"] == "transfer/pretraining/mobilenet_v1-0.25/seed-0" or line["model"].startswith(spec)
    # A student begins with what its own network learnt on the other images: no layer but the head is random.
    began = load_file(out / "transfer/pretraining/mobilenet_v1-0.25/seed-0/student/model.safetensors")
    ended = load_file(out / "transfer/sp" / pair / "seed-0/student/model.safetensors")
    stem = next(name for name in began if name.endswith("conv_stem.weight"))
    assert (began[stem] - ended[stem]).norm() < 0.1 * began[stem].norm()
    assert "In the place of ImageNet" in (out / "transfer" / "report.md").read_text(encoding="utf-8")


def test_records_that_are_all_that_is_left_are_not_run_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, published = tmp_path / "study", tmp_path / "published"
    assert reproduce("gamma", out, "--seeds", "1") == 0
    shutil.copytree(out / "gamma", published / "gamma")
    kept = {name: (published / "gamma" / name).read_bytes() for name in ("records.csv", "reproduction.json")}
    count = len(records(out, "gamma"))
    capsys.readouterr()
    for options in ([], ["--seeds", "1"], ["--only", "gamma-10"], ["--max_time", "0s"]):
        assert reproduce("gamma", published, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{published / 'gamma'} holds records of trainings whose folders are gone ({count} of {count}," in error
        assert "--redraw, or give another --out" in error
    assert {name: (published / "gamma" / name).read_bytes() for name in kept} == kept
    assert [path.name for path in published.iterdir()] == ["gamma"]
    assert reproduce("gamma", published, "--redraw") == 0

    (published / "gamma" / "records.csv").unlink()
    assert reproduce("gamma", published, "--max_time", "0s") == 3


def test_records_whose_folders_are_there_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert reproduce("gamma", out, "--seeds", "1") == 0
    assert reproduce("gamma", out, "--seeds", "1", "--only", "gamma-10") == 0
    assert reproduce("gamma", out, "--max_time", "0s") == 3
    found = records(out, "gamma")
    gone = out / found[-1]["task"]
    shutil.rmtree(gone)
    assert reproduce("gamma", out, "--max_time", "0s") == 2
    assert f"whose folders are gone (1 of {len(found)}, such as {gone})" in capsys.readouterr().err


def _without_models(out: Path, copy: Path, name: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Draw again from a copy that holds no network, and return the tables and figures."""
    kept = [out / name / "records.csv", out / name / "reproduction.json", *(out / "measurements").rglob("*.npz")]
    kept += (out / "measurements").rglob("result.json")
    for path in kept:
        target = copy / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert reproduce(name, copy, "--redraw") == 0
    return files(copy / name / "tables"), files(copy / name / "figures")


def test_what_has_finished_is_not_run_again_and_what_has_not_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert reproduce("gamma", out, "--max_time", "0s") == 3
    assert "the same command continues" in capsys.readouterr().err
    table = (out / "gamma" / "tables" / "statistics.md").read_text(encoding="utf-8")
    assert table.count("| 0 of 2 | unfinished |") == 3
    assert records(out, "gamma") == []
    assert reproduce("gamma", out, "--seeds", "1") == 0
    made = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert reproduce("gamma", out, "--seeds", "1") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == made


def test_experiments_in_one_folder_share_their_networks(tmp_path: Path) -> None:
    out, row = tmp_path / "study", "wrn-16-1-from-wrn-40-2"
    assert reproduce("similarity", out) == 0
    made = {path: path.stat().st_mtime_ns for path in (out / "none").rglob("result.json")}
    assert (out / "sp" / row / "seed-0" / "result.json").exists()
    assert reproduce("activations", out) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "none").rglob("result.json")} == made
    assert [len(records(out, name)) for name in ("similarity", "activations")] == [3, 1]


def test_without_a_name_the_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["gama"], ["unknown experiment 'gama'", "Did you mean 'gamma'"]),
        (["gamma", "--scale", "tiny"], ["--scale must be one of smoke, small, paper"]),
        (["gamma", "--scale", "smoke", "--only", "gamma-11"], ["no row 'gamma-11'", "Did you mean 'gamma-10'"]),
        (["gamma", "--scale", "smoke", "--seeds", "0"], ["--seeds must be at least 1"]),
        (["gamma", "--scale", "smoke", "--data_root", "."], ["leave out --data_root"]),
        (["transfer", "--data_root", "nowhere"], ["no DTD", "https://"]),
        (["transfer", "--scale", "smoke", "--seeds", "3"], ["made-up textures", "2 partitions"]),
        (["gamma", "--data_root", "nowhere"], ["no CIFAR-10", "cifar-10-batches-py", "https://", "no such folder"]),
        (["architectures", "--scale", "paper"], ["no CINIC-10", "cinic-10", "https://"]),
        (["transfer", "--scale", "paper"], ["no DTD", "https://"]),
        (["gamma", "--redraw"], ["no records to draw from", "run it first"]),
    ],
)
def test_mistakes_are_one_line(
    arguments: Sequence[str],
    parts: Sequence[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
