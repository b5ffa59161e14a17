"""Recording a tape, and playing it, beside the teacher's plain forward pass."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import PAIR, Bench
from benchmarks.timing import interleaved
from spkd.distiller import Distiller
from spkd.losses.methods import build_objective
from spkd.losses.weights import LossWeights
from spkd.models.classifier import Classifier
from spkd.models.inference import inference_form
from spkd.training.playback import Player
from spkd.training.tape import Manifest, Tape


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of a batch: the teacher's plain forward pass, recording it for SP and KD, playing it."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), smoke=smoke)
        original = Classifier(bench.teacher, bench.info).to(bench.device).eval()
        form = inference_form(original, (PAIR.teacher,), bench.images[:16], precision="auto")
        objective = build_objective("sp+kd", [PAIR], LossWeights())
        student = Classifier(bench.student, bench.info)
        distiller = Distiller(student, form.network, objective, teacher_micro_batch_size=form.micro_batch_size)
        distiller.to(bench.device)
        tape = Tape(Path(folder) / "tape", Manifest({}, "float16", 1 << 30, form.precision, (), {}))
        said = distiller.remember(bench.images)
        for term in objective.terms:
            tape.add(term.memory, said[term.name], said[term.name])
        tape.save()
        recorder, player = Player(tape, objective, distiller, bench.device), Player(tape, objective, None, bench.device)
        steps = iter(range(10**6))

        @torch.no_grad()
        def plain() -> None:
            bench.teacher(bench.images)

        functions = {
            "plain teacher": plain,
            "record": lambda: recorder(next(steps), bench.images),
            "play": lambda: player(0, bench.images),
        }
        timings = interleaved(functions, rounds=1 if smoke else 15)
        size = sum(tape.manifest.memories[name].slot_bytes for name in objective.memories)
    return {
        "what": f"what WRN-40-2 says of {bench.batch} images for sp+kd, float16, {bench.device.type}",
        "teacher": form.note,
        "bytes_per_batch": size,
        "seconds": {name: vars(timing) for name, timing in timings.items()},
    }
