"""The static checks are part of the one test command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)],
    ids=["ruff-lint", "ruff-format", "mypy-strict"],
)
def test_the_code_passes(command: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_type_checkers_know_the_public_names(tmp_path: Path) -> None:
    options = ["--config-file=", "--ignore-missing-imports", "--no-site-packages", "--follow-imports=silent"]
    options += ["--cache-dir", str(tmp_path)]
    code = "from spkd import Distiller, Distillr"
    command = [sys.executable, "-m", "mypy", *options, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=False)
    assert 'has no attribute "Distillr"' in done.stdout
    assert "Found 1 error" in done.stdout
