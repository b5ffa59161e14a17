"""What the README, the guide and the page on Python show runs."""

import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

import spkd
from spkd import load_model, save_model
from spkd.data.folder import load_folder
from spkd.data.images import MemoryImages
from spkd.export import export_model
from spkd.models.classifier import ModelInfo, Normalisation
from spkd.models.wrn import WideResNet
from spkd.rows import Rows
from spkd.training.prediction import Answers, probabilities_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("guide.md", "python.md", "performance.md"))]
README, GUIDE, PYTHON, _ = (page.read_text() for page in PAGES)
BLOCKS = re.findall(r"```python\n(.*?)```", README + PYTHON, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(
    block: str, teacher: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits-teacher").symlink_to(teacher)
    Image.new("RGB", (30, 20), (200, 100, 50)).save(tmp_path / "photo.jpg")
    if "model.onnx" in block:
        export_model(teacher, "model.onnx", images=torch.rand(4, 1, 8, 8))
    namespace: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert namespace.keys() > {"__builtins__"}, "the block defines nothing"


def test_the_guide_makes_smaller_copies_of_photos_of_which_the_sets_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.{('jpg', 'JPEG', 'png')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned = Image.Exif()
        turned[0x0112] = 6  # to be shown upright
        Image.new("RGB", (1000, 500), (number, 0, 0)).save(path, exif=turned)
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"`(cp -rL photos .*?)`", GUIDE)
    subprocess.run(["bash", "-c", command], check=True)
    large, small = (load_folder(tmp_path / name) for name in ("photos", "smaller"))
    for split in ("train", "val", "test"):
        own, copied = (getattr(data, split).paths for data in (large, small))
        assert [Path(path).relative_to(tmp_path / "smaller") for path in copied] == [
            Path(path).relative_to(tmp_path / "photos") for path in own
        ]
        for path in copied:
            with Image.open(path) as image:
                assert ImageOps.exif_transpose(image).size == ((500, 1000) if path.endswith("png") else (400, 800))


def test_the_guide_computes_an_area_under_the_curve_from_what_evaluate_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    images = MemoryImages(torch.zeros(40, 1, 1, 1, dtype=torch.uint8), torch.randint(3, (40,)))
    logits = torch.randn(40, 3)
    with Rows() as rows:
        Answers(images, ["dog", "cat", "owl"], rows).add(probabilities_of(logits), images.targets, None)
        rows.save(tmp_path / "test.csv")
    monkeypatch.chdir(tmp_path)
    block, _ = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(compile(block, "guide.md", "exec"), {})
    shares = logits.softmax(1)[:, 1].tolist()
    cats, others = (
        [share for share, k in zip(shares, images.targets, strict=True) if (k == 1) == is_cat]
        for is_cat in (True, False)
    )
    above = [cat > other for cat in cats for other in others]
    assert float(capsys.readouterr().out) == pytest.approx(sum(above) / len(above))


def test_the_guide_finds_a_threshold_and_counts_false_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """400 defects of two kinds, of which the four least likely may be missed, and 100 that are ok."""
    images = MemoryImages(torch.zeros(500, 1, 1, 1, dtype=torch.uint8), torch.tensor([0] * 200 + [1] * 100 + [2] * 200))
    defect = images.targets != 1
    score = torch.empty(500)
    score[defect] = torch.linspace(0.1, 0.9, 400)
    score[~defect] = torch.linspace(0.0, 0.2, 100)
    shares = torch.stack([score / 2, 1 - score, score / 2], 1)
    with Rows() as rows:
        Answers(images, ["crack", "ok", "dent"], rows).add(shares.double(), images.targets, None)
        rows.save(tmp_path / "val.csv")
    monkeypatch.chdir(tmp_path)
    _, block = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(block, "guide.md", "exec"), namespace)
    threshold = sorted(score[defect].tolist())[3]
    assert namespace["threshold"] == pytest.approx(threshold, abs=1e-6)
    false = int((score[~defect] >= threshold).sum())
    assert capsys.readouterr().out == (
        f"threshold {threshold:.4g}: {397 / (397 + false):.1%} of alarms are right\n"
        f"{false / 100:.1%} of what is ok sets one off\n"
    )


def test_an_ensemble_gives_the_logarithm_of_the_mean_of_its_members_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = [block for block in BLOCKS if "class Ensemble" in block]
    folders = []
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        folders.append(tmp_path / "runs" / name)
        info = ModelInfo("wrn-10-1", ("cat", "dog"), 3, 8, Normalisation((0.1 * seed,), (0.5,)))
        save_model(WideResNet(10, 1, num_classes=2), folders[-1], info)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(compile(block, "python.md", "exec"), namespace)
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        told = namespace["Ensemble"]()(images)
        shares = [load_model(folder)(images).softmax(1) for folder in folders]
    torch.testing.assert_close(told.exp(), sum(shares) / 3)
    torch.testing.assert_close(told.exp().sum(1), torch.ones(4))


def test_the_weighted_cross_entropy_is_pytorch_s_weighted_mean_over_the_training_images() -> None:
    namespace: dict[str, Any] = {}
    exec(next(block for block in BLOCKS if "balanced = " in block), namespace)
    torch.manual_seed(0)
    targets = torch.arange(10).repeat_interleave(namespace["counts"].long())
    logits = torch.randn(len(targets), 10, dtype=torch.float64)
    balanced = namespace["balanced"].double()
    objective = spkd.Objective([], criterion=balanced)
    total = objective(spkd.Activations(logits, {}), targets, {}).total
    assert total.item() == pytest.approx(torch.nn.CrossEntropyLoss(balanced.weight)(logits, targets).item())


def test_the_decoupled_loss_is_the_sum_that_its_paper_has() -> None:
    """Zhao et al. 2022: two Kullback-Leibler divergences, worked out class by class."""
    namespace: dict[str, Any] = {}
    exec(next(block for block in BLOCKS if "class Decoupled" in block), namespace)
    torch.manual_seed(0)
    images, classes, temperature = 5, 4, 2.0
    student, teacher = torch.randn(2, images, classes, dtype=torch.float64) * 3
    targets = torch.tensor([0, 3, 1, 1, 2])
    own, known = ((logits / temperature).softmax(1).tolist() for logits in (student, teacher))
    target = others = 0.0
    for place, right in enumerate(targets.tolist()):
        p, q = known[place], own[place]
        target += p[right] * math.log(p[right] / q[right])
        target += (1 - p[right]) * math.log((1 - p[right]) / (1 - q[right]))
        for other in set(range(classes)) - {right}:
            of_teacher, of_student = p[other] / (1 - p[right]), q[other] / (1 - q[right])
            others += of_teacher * math.log(of_teacher / of_student)
    term = spkd.Term("dkd", 1.0, namespace["Decoupled"](alpha=0.7, beta=3.0, temperature=temperature))
    seen = [spkd.Activations(logits, {}) for logits in (student, teacher)]
    objective = spkd.Objective([term])
    found = objective.values(seen[0], targets, objective.remember(seen[1]))["dkd"]
    expected = temperature**2 * (0.7 * target + 3.0 * others) / images
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_there_are_python_blocks_with_a_distiller() -> None:
    assert any("Distiller(" in block for block in BLOCKS)


def test_every_public_name_is_explained() -> None:
    table = PYTHON.partition("## All names")[2]
    assert set(re.findall(r"`(\w+)`", re.sub(r"\| [^|]*\|$", "|", table, flags=re.MULTILINE))) == set(spkd.__all__) - {
        "__version__"
    }


def test_every_command_and_option_in_it_exists() -> None:
    from spkd.cli import options
    from spkd.cli.main import COMMANDS

    lines = re.findall(r"(?:^|`)spkd ([^`\n]+)(?:$|`)", README + GUIDE, re.MULTILINE)
    lines = [line for line in lines if not line.startswith("COMMAND ")]
    assert {line.split()[0] for line in lines} == set(COMMANDS)
    for line in lines:
        command, *rest = line.split()
        parser = options.tape_actions()[rest[0]] if command == "tape" else COMMANDS[command].parser()
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in rest if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    """Beside a command or by itself, but for those of Docker, TensorBoard and torchrun."""
    from spkd.cli import options
    from spkd.cli.main import COMMANDS

    code = re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)
    named = {option for piece in code for option in re.findall(r"(?<![\w-])--\w[\w-]*", piece)}
    parsers = [*(command.parser() for command in COMMANDS.values()), *options.tape_actions().values()]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    others = {"--shm-size", "--logdir", "--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"}
    assert named
    assert named <= known | others
