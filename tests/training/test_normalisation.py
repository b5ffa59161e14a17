"""What a user says of a network's normalisation, and where it arrives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spkd.errors import InputError
from spkd.models.classifier import Normalisation
from spkd.studies.side_by_side import alone_request
from spkd.training.normalisation import read_normalisation
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.run import run
from spkd.training.run_folder import RunFolder
from spkd.training.setup import Setup, set_up


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("none", (0.0,), (1.0,)),
        ("0.5/0.25", (0.5,), (0.25,)),
        ("0.1, 0.2,-0.3/1,2,255", (0.1, 0.2, -0.3), (1.0, 2.0, 255.0)),
    ],
)
def test_forms_are_read(text: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert read_normalisation("normalisation", text, "wrn-16-1", None) == Normalisation(mean, std)


def test_nothing_said_is_nothing() -> None:
    assert read_normalisation("normalisation", None, "wrn-16-1", None) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Imagenet", "must be imagenet, none"),
        ("0.5", "must be imagenet, none"),
        ("", "must be imagenet, none"),
        ("0.5/0.5/0.5", "must be imagenet, none"),
        ("0.5,/0.5", "must be imagenet, none"),
        ("0.5,0.5/0.5", "0.5,0.5/0.5: expected as many means as deviations, got 2 and 1"),
        ("0.5/0", "0.5/0: expected finite means and deviations above zero"),
        ("nan/1", "nan/1: expected finite means"),
    ],
)
def test_other_forms_are_refused_by_the_option_s_name(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^--teacher_normalisation {reason}[^\n]*$"):
        read_normalisation("teacher_normalisation", text, "wrn-16-1", None)


def test_a_new_network_is_given_that_of_its_training_images(tiny: str) -> None:
    setup = set_up(Request(model=tiny))
    seen = setup.data.train.pixels.numpy() / 255  # type: ignore[attr-defined]
    own = setup.student.info.normalisation
    assert (*own.mean, *own.std) == pytest.approx((seen.mean(), seen.std()), abs=5.1e-5)


@pytest.fixture(scope="module")
def request_of_files(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A student that begins with weights in a file, and a teacher with others: nothing says what they were made for."""
    folder = tmp_path_factory.mktemp("files")
    own = set_up(Request(model=tiny)).student.network
    for name in ("student.pt", "teacher.pt"):
        torch.save(own.state_dict(), folder / name)
    return Request(
        model=tiny,
        weights=str(folder / "student.pt"),
        teacher=tiny,
        teacher_weights=str(folder / "teacher.pt"),
        method="sp+kd",
        overrides={"epochs": 1},
    )


def test_each_network_has_its_own(request_of_files: Request) -> None:
    def seen(**given: str) -> tuple[Normalisation, Normalisation, Setup]:
        setup = set_up(replace(request_of_files, **given))
        assert setup.teacher is not None
        return setup.student.info.normalisation, setup.teacher.info.normalisation, setup

    usual, same, before = seen()
    assert usual == same
    assert sorted(note.rpartition(" ")[2] for note in before.notes if "give it with" in note) == [
        "--normalisation",
        "--teacher_normalisation",
    ]
    student, teacher, after = seen(normalisation="none", teacher_normalisation="0.5/0.25")
    assert (student, teacher) == (Normalisation((0.0,), (1.0,)), Normalisation((0.5,), (0.25,)))
    assert not any("images are normalised" in note for note in after.notes)
    images = torch.rand(2, 1, 8, 8)
    one, other = (setup.teacher and setup.teacher.eval() for setup in (before, after))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(other(images), one.network((images - 0.5) / 0.25))
    assert after.config().keys() - before.config().keys() == {"normalisation", "teacher_normalisation"}
    assert after.identity() != before.identity()
    changed = {name for name, value in after.tape_identity().items() if value != before.tape_identity().get(name)}
    assert changed == {"teacher_normalisation"}


def test_it_is_the_run_s_and_the_tape_s(request_of_files: Request, tmp_path: Path, heard: Any) -> None:
    runtime = Runtime(accelerator="cpu", tape=str(tmp_path / "tape"))
    wanted = replace(request_of_files, teacher_normalisation="0.5/0.25")
    assert run(wanted, tmp_path / "run", runtime, heard) is not None
    (warning,) = [line for line in heard.lines if "the teacher is little better than chance" in line]
    assert warning.endswith("and that images are normalised as its weights were trained (--teacher_normalisation)")
    config: dict[str, Any] = RunFolder(tmp_path / "run").config() or {}
    assert config["teacher_normalisation"] == "0.5/0.25"
    other = replace(wanted, teacher_normalisation=None)
    with pytest.raises(InputError, match=r"teacher_normalisation was '0.5/0.25', is None"):
        run(other, tmp_path / "run", Runtime(accelerator="cpu"), Display(), resume=True)
    with pytest.raises(InputError, match=r"was recorded with teacher_normalisation '0.5/0.25', this run has None"):
        run(other, tmp_path / "other", runtime, Display())


def test_a_saved_model_has_its_own_already(tiny: str, teacher: Path) -> None:
    taught = Request(model=tiny, teacher=str(teacher), teacher_normalisation="none", method="kd")
    line = r"--teacher_normalisation: .* is a saved model and brings its own; leave it out"
    for one in (taught, replace(taught, teacher=tiny, teacher_weights=str(teacher / "student" / "model.safetensors"))):
        with pytest.raises(InputError, match=line):
            set_up(one)
    with pytest.raises(InputError, match=r"--normalisation: .* is a saved model"):
        set_up(Request(model=str(teacher), normalisation="none"))
    assert alone_request(taught).teacher_normalisation is None
    with pytest.raises(InputError, match="--teacher_normalisation: there is no teacher"):
        Request(model=tiny, teacher_normalisation="none")


def test_weights_from_elsewhere_in_a_saved_model_s_architecture_have_another(teacher: Path, tmp_path: Path) -> None:
    network = set_up(Request(model=str(teacher))).student.network
    torch.save(network.state_dict(), tmp_path / "best.pt")
    request = Request(model=str(teacher), weights=str(tmp_path / "best.pt"), normalisation="0.5/0.25")
    assert set_up(request).student.info.normalisation == Normalisation((0.5,), (0.25,))
    own = replace(request, weights=str(teacher / "student" / "model.safetensors"))
    with pytest.raises(InputError, match="is a saved model and brings its own"):
        set_up(own)


def test_numbers_for_other_channels_are_refused(request_of_files: Request) -> None:
    with pytest.raises(InputError, match="expected one value or 3 for 3 channels, got 2"):
        set_up(Request(model="timm/test_resnet", normalisation="0.1,0.2/1,1"))
