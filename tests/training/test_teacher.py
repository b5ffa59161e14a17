"""The teacher is read by its own names, and in one precision everywhere."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spkd.errors import InputError
from spkd.models.wrn import WideResNet
from spkd.training.batches import make_stream
from spkd.training.devices import make_fabric
from spkd.training.options import Request, Runtime
from spkd.training.setup import set_up
from spkd.training.teacher import cheapest_teacher

CPU = Runtime(accelerator="cpu")


def request(tiny: str, teacher: Path, **changed: Any) -> Request:
    overrides = {"epochs": 2, "gamma": 30.0, "beta": 3.0, "teacher_precision": "32-true"}
    fields = {"method": "sp+kd+at", **changed}
    return Request(model=tiny, teacher=str(teacher), overrides={**overrides, **fields.pop("overrides", {})}, **fields)


def test_the_teacher_is_read_by_its_own_names(tiny: str, teacher: Path) -> None:
    wanted = request("wrn-10-1", teacher, method="sp", taps=("group3=body",))
    setup = set_up(wanted)
    form = cheapest_teacher(setup, make_stream(setup, torch.device("cpu")), make_fabric(CPU))
    assert "batch norms folded" in form.note


@pytest.mark.parametrize(("method", "logits"), [("sp", False), ("kd", True)])
def test_the_teacher_s_rounding_is_told_of_what_the_method_reads(
    method: str, logits: bool, tiny: str, teacher: Path
) -> None:
    setup = set_up(request(tiny, teacher, method=method, overrides={"teacher_precision": "bf16-true"}))
    fabric = make_fabric(CPU)
    note = cheapest_teacher(setup, make_stream(setup, fabric.device), fabric).note
    assert ("logits by" in note, "G of" in note) == (logits, not logits)


@pytest.mark.parametrize("slow", [True, False])
def test_a_teacher_in_slow_bfloat16_is_told_of(
    slow: bool, tiny: str, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.teacher.is_slow_in_bfloat16", lambda kind: slow)
    fabric = make_fabric(CPU)
    for tape, why in ((None, "bfloat16 is"), ("bf16-true", "bfloat16, in which the tape was recorded, is")):
        setup = set_up(request(tiny, teacher, overrides={"teacher_precision": "bf16-true"}))
        manifest = None if tape is None else SimpleNamespace(manifest=SimpleNamespace(precision=tape))
        setup = replace(setup, tape=manifest)  # type: ignore[arg-type]
        note = cheapest_teacher(setup, make_stream(setup, fabric.device), fabric).note
        assert note.endswith(f"; {why} no faster here than float32") == slow


def test_all_processes_have_the_teacher_in_one_precision(tiny: str, teacher: Path) -> None:
    """Each looks at images of its own, and could find another one good enough."""
    setup = set_up(request(tiny, teacher, overrides={"teacher_precision": "bf16-true"}))
    fabric = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    for other, agreed in ((1, "bf16-true"), (0, "32-true")):
        fabric.all_reduce = lambda own, reduce_op, other=other: own + other
        form = cheapest_teacher(setup, make_stream(setup, fabric.device, (1, 2)), fabric)
        assert form.precision == agreed


def test_a_teacher_s_weights_without_a_head_are_told(tiny: str, tmp_path: Path) -> None:
    state = WideResNet(10, 1, num_classes=10, in_channels=1).state_dict()
    last = list(state)[-1].rpartition(".")[0]
    torch.save({name: value for name, value in state.items() if not name.startswith(last)}, tmp_path / "body.pt")
    for method in ("sp", "sp+kd"):
        wanted = Request(model=tiny, teacher="wrn-10-1", teacher_weights=str(tmp_path / "body.pt"), method=method)
        with pytest.raises(InputError, match=r"body\.pt holds no head: build the network without one"):
            set_up(wanted)
