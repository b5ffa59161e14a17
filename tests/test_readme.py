"""What the README, the guide and the page on Python show runs."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import spkd
from spkd.export import export_model

ROOT = Path(__file__).parents[1]
README, GUIDE, PYTHON = ((ROOT / name).read_text() for name in ("README.md", "docs/guide.md", "docs/python.md"))
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
    namespace: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert namespace


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
