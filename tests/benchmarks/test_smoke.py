"""Every measurement runs, and what it compares computes the same."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_measurement_runs(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["measurements"]
    assert set(found) == {"step", "overhead", "teacher", "student", "tape", "whole", "loss", "startup"}
    differences = found["step"]["relative_difference_of_the_first_loss"]
    assert differences["float32 throughout"] < 1e-4
    assert max(differences.values()) < 0.02
    assert set(found["tape"]["seconds"]) == {"plain teacher", "record", "play"}
    assert all(timing["median"] > 0 for timing in found["student"]["MobileNet-V3-S"]["seconds"].values())
    assert found["overhead"]["seconds"]["spkd"]["median"] > 0
    assert all(rate > 0 for rate in found["whole"]["training_images_per_second"].values())
    # Of random features: in a step of untrained networks the similarity term hides behind the cross-entropy.
    (size,) = found["loss"]["sizes"]
    assert size["relative_difference"] < 1e-5
    assert size["seconds"].keys() == size["bytes"].keys() == {"textbook", "spkd"}
    assert found["step"]["reference_over"]["plain eager reference"] == 1.0
    assert all(timing["median"] > 0 for timing in found["startup"]["seconds"].values())


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "nowhere" / "record.json"):
        command = [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(f"--out {out}: expected a file in a folder that is there")
