"""One training step, WRN-40-2 to WRN-16-1: the plain reference, and the package's loop in every setting."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from benchmarks.reference import PlainStep
from benchmarks.timing import interleaved
from spkd.data.images import MemoryImages
from spkd.data.stream import Batch, TrainStream
from spkd.distiller import Distiller
from spkd.losses.methods import build_objective
from spkd.losses.weights import LossWeights
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.inference import inference_form
from spkd.models.wrn import WideResNet
from spkd.taps import TapPair
from spkd.training.devices import make_fabric
from spkd.training.loop import Training
from spkd.training.options import Runtime
from spkd.training.playback import Player
from spkd.training.progress import Display
from spkd.training.recipe import Precision, Recipe, TeacherPrecision
from spkd.training.run_folder import RunFolder
from spkd.training.tape import Manifest, Tape

PAIR = TapPair("group3", "group3")
CALLS_ON_A_GPU = 25
"""Steps in a row, as many as the loop takes between two readings of the losses."""
Teacher = Literal["live", "taped", "none"]


class Steps(NamedTuple):
    """A function that takes a step, and the loss of the first one, which has been taken."""

    take: Callable[[], object]
    first_loss: float


class Bench:
    """Teacher, student and one batch, and steps of the package's own loop on them."""

    def __init__(self, folder: Path, *, smoke: bool) -> None:
        torch.manual_seed(0)
        self.folder, self.batch = folder, 4 if smoke else 128
        self.device = make_fabric(Runtime()).device
        self.info = ModelInfo("wrn", tuple("0123456789"), 3, 32, Normalisation((0.0,) * 3, (1.0,) * 3))
        self.teacher = WideResNet(10 if smoke else 40, 2).to(self.device)
        self.student = WideResNet(10 if smoke else 16, 1).to(self.device)
        pixels = torch.randint(0, 256, (2 * self.batch, 3, 32, 32), dtype=torch.uint8)
        self.pixels = MemoryImages(pixels, torch.randint(10, (2 * self.batch,)))
        self.images, self.targets = next(iter(self.stream().epoch(0)))
        self.notes: dict[str, str] = {}

    def stream(self) -> TrainStream:
        return TrainStream(self.pixels, image_size=32, flip=True, batch_size=self.batch, seed=0, device=self.device)

    def plain(self) -> Steps:
        step = PlainStep(copy.deepcopy(self.student), copy.deepcopy(self.teacher), PAIR.teacher, 3000.0)
        return Steps(lambda: step(self.images, self.targets), float(step(self.images, self.targets)))

    def ours(
        self,
        name: str,
        teacher: Teacher,
        precision: Precision = "32-true",
        teacher_precision: TeacherPrecision = "32-true",
        *,
        compiled: bool = False,
    ) -> Steps:
        """Return a step of the loop, after the first one."""
        student: nn.Module = Classifier(copy.deepcopy(self.student), self.info).to(self.device)
        if self.device.type == "cpu" or precision != "32-true":
            student = student.to(memory_format=torch.channels_last)
        objective = build_objective("none" if teacher == "none" else "sp", [PAIR], LossWeights())
        frozen, micro_batch_size = None, None
        if teacher != "none":
            original = Classifier(copy.deepcopy(self.teacher), self.info).to(self.device).eval()
            form = inference_form(
                original, (PAIR.teacher,), self.images[:16], logits=False, precision=teacher_precision
            )
            frozen, self.notes[name] = form.network, form.note
            micro_batch_size = form.micro_batch_size
        distiller = Distiller(student, frozen, objective, teacher_micro_batch_size=micro_batch_size).to(self.device)
        player = self._player(name, distiller) if teacher == "taped" else None
        recipe = replace(Recipe(), precision=precision, batch_size=self.batch)
        training = Training(
            distiller,
            self.stream(),
            lambda: iter(()),
            len(self.info.classes),
            recipe,
            0,
            name,
            make_fabric(Runtime(), precision),
            RunFolder(self.folder / name),
            Display(),
            compiled=compiled,
            player=player,
        )
        distiller.train()
        batch = Batch(self.images, self.targets, self.images)

        def step() -> None:
            training.state.batch = 0
            training._step(batch, batch)

        step()
        training._read_pending()
        return Steps(step, training.state.sums["total"] / training.state.images)

    def compiled(self) -> dict[str, Steps]:
        """Return the steps that are compiled; on a GPU all there are, since only there it is a matter of multiples."""
        steps = {
            "bf16-mixed, compiled": self.ours("compiled", "live", "bf16-mixed", "bf16-true", compiled=True),
            "float32, compiled": self.ours("compiled float32", "live", compiled=True),
        }
        if self.device.type == "cuda":
            steps |= {
                "teacher bf16, student float32, compiled": self.ours(
                    "compiled teacher", "live", "32-true", "bf16-true", compiled=True
                ),
                "tape, student float32, compiled": self.ours("compiled tape", "taped", compiled=True),
                "tape, bf16-mixed, compiled": self.ours("compiled tape mixed", "taped", "bf16-mixed", compiled=True),
                "student alone, float32, compiled": self.ours("compiled alone", "none", compiled=True),
                "student alone, bf16-mixed, compiled": self.ours(
                    "compiled alone mixed", "none", "bf16-mixed", compiled=True
                ),
            }
        return steps

    def _player(self, name: str, distiller: Distiller) -> Player:
        """Return a player of a tape on which the step is already recorded."""
        tape = Tape(self.folder / f"tape {name}", Manifest({}, "float16", 2, "32-true", (), {}))
        said = distiller.remember(self.images)
        for term in distiller.objective.terms:
            tape.add(term.memory, said[term.name], said[term.name])
        tape.save()
        Player(tape, distiller.objective, distiller, self.device)(0, self.images)
        return Player(tape, distiller.objective, None, self.device)


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of each kind of step, the ratios to the reference, and how far the first losses lie apart."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), smoke=smoke)
        steps = {
            "plain eager reference": bench.plain(),
            "float32 throughout": bench.ours("float32", "live"),
            "teacher bf16, student float32": bench.ours("teacher bf16", "live", "32-true", "bf16-true"),
            "bf16-mixed": bench.ours("mixed", "live", "bf16-mixed", "bf16-true"),
            "tape, student float32": bench.ours("tape", "taped"),
            "tape, bf16-mixed": bench.ours("tape mixed", "taped", "bf16-mixed"),
            "student alone, float32": bench.ours("alone", "none"),
            "student alone, bf16-mixed": bench.ours("alone mixed", "none", "bf16-mixed"),
        }
        if not smoke:
            steps |= bench.compiled()
        on_gpu = bench.device.type == "cuda"
        timings = interleaved(
            {name: one.take for name, one in steps.items()},
            rounds=1 if smoke else 15,
            calls=CALLS_ON_A_GPU if on_gpu else 1,
        )
    reference, alone = timings["plain eager reference"].median, timings["student alone, float32"].median
    return {
        "what": f"one step, batch {bench.batch}, {bench.device.type}",
        "teacher": bench.notes,
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "reference_over": {name: reference / timing.median for name, timing in timings.items()},
        "tape_over_alone": {
            "float32": timings["tape, student float32"].median / alone,
            "bf16-mixed": timings["tape, bf16-mixed"].median / timings["student alone, bf16-mixed"].median,
        },
        "images_per_second": {name: bench.batch / timing.median for name, timing in timings.items()},
        "relative_difference_of_the_first_loss": {
            name: abs(one.first_loss / steps["plain eager reference"].first_loss - 1)
            for name, one in steps.items()
            if not name.startswith("student alone")
        },
    }
