"""``python -m benchmarks [NAME ...] [--smoke] [--out FILE.json]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import loss, overhead, startup, step, student, tape, teacher, whole
from spkd.training.result import hardware, software

MEASUREMENTS = {
    "step": step.measure,
    "overhead": overhead.measure,
    "teacher": teacher.measure,
    "student": student.measure,
    "tape": tape.measure,
    "whole": whole.measure,
    "loss": loss.measure,
    "startup": startup.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)} (default: all)")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes, once: does it run?")
    parser.add_argument("--out", type=Path, help="write the JSON to this file")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in MEASUREMENTS]:
        parser.error(f"unknown measurement {unknown[0]!r}: there are {', '.join(MEASUREMENTS)}")
    if options.out is not None and (options.out.is_dir() or not options.out.parent.is_dir()):
        parser.error(f"--out {options.out}: expected a file in a folder that is there")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = {
        "hardware": hardware(device),
        "software": software(),
        "measurements": {name: MEASUREMENTS[name](smoke=options.smoke) for name in options.names or MEASUREMENTS},
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
