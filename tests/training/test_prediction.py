"""New images are seen as in evaluation, and each gets what the network says of it."""

import csv
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Counted
from PIL import Image
from torch.nn import functional as F

from spkd.data.images import MemoryImages
from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.saved_model import load_classifier, save_classifier
from spkd.models.wrn import WideResNet
from spkd.rows import Rows
from spkd.training.own_images import load_image
from spkd.training.prediction import Answers, predict, probabilities_of


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve test images of the digits as grey files of 8 x 8, a folder deeper every other one."""
    test = load_data(DataOptions()).test
    assert isinstance(test, MemoryImages)
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    for place in range(12):
        below = folder / "deeper" if place % 2 else folder
        Image.fromarray(test.pixels[place, 0].numpy()).save(below / f"{place:02d}.png")
    return folder


def test_images_are_taken_for_what_the_network_says(teacher: Path, digits: Path) -> None:
    network = load_classifier(teacher)
    test = load_data(DataOptions()).test
    assert isinstance(test, MemoryImages)
    found = predict(teacher, [str(digits)], top=2, accelerator="cpu").predictions
    assert [Path(one.path).name for one in found] == [
        f"{place:02d}.png" for place in (*range(0, 12, 2), *range(1, 12, 2))
    ]
    with torch.no_grad():
        shares = F.softmax(network(test.pixels[:12].float() / 255), dim=1)
    for one in found:
        own = shares[int(Path(one.path).stem)]
        assert one.probabilities == pytest.approx(sorted(own.tolist())[:-3:-1], abs=1e-6)
        assert [own[network.info.classes.index(name)].item() for name in one.classes] == pytest.approx(
            one.probabilities, abs=1e-6
        )


@pytest.mark.parametrize("view", ["whole", "centre", None])
@pytest.mark.parametrize("shape", [(16, 16), (18, 27)])
def test_large_images_are_seen_as_load_image_shows_them(view: str, shape: tuple[int, int], tmp_path: Path) -> None:
    info = ModelInfo("wrn-10-1", ("a", "b", "c"), 3, 8, Normalisation((0.5,), (0.25,)), view)
    torch.manual_seed(0)
    network = Classifier(WideResNet(10, 1, num_classes=3), info).eval()
    save_classifier(network, tmp_path / "model")
    numbers = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(numbers.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("two.png", "one.png")]
    found = predict(tmp_path / "model", files, top=9, accelerator="cpu", workers=0).predictions
    assert [one.path for one in found] == files
    for one in found:
        with torch.no_grad():
            shares = F.softmax(network(load_image(one.path, info)), dim=1)[0]
        assert dict(zip(one.classes, one.probabilities, strict=True)) == pytest.approx(
            dict(zip(info.classes, shares.tolist(), strict=True)), abs=1e-6
        )


def test_what_is_done_is_shown_where_that_is_asked_for(
    teacher: Path, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.batches.LARGEST_BATCH", 5)
    shown = Counted()
    found = predict(teacher, [str(digits)], accelerator="cpu", display=shown)
    assert shown.steps == [("predicting", 12), 5, 10, 12]
    assert all(re.fullmatch(r"[\d,]+ images/s", text) for text in shown.texts)
    assert predict(teacher, [str(digits)], accelerator="cpu") == found
    assert capsys.readouterr() == ("", "")


def test_broken_files_are_named_or_left_out(teacher: Path, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    images = [str(tmp_path), str(digits / "00.png")]
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        predict(teacher, images, accelerator="cpu")
    found = predict(teacher, images, accelerator="cpu", skip_bad_images=True)
    assert [one.path for one in found.predictions] == [images[1]]
    assert found.notes[0].startswith("left out 1 of 2 files")


def test_files_that_are_passed_over_are_counted(teacher: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copy(digits / "00.png", tmp_path / "one.png")
    (tmp_path / "two.heic").touch()
    found = predict(teacher, [str(tmp_path)], accelerator="cpu")
    assert found.notes == (f"passed over 1 file without an image's ending in {tmp_path}: 1 .heic",)
    (tmp_path / os.fsdecode(b"F\xdf.png")).touch()
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        predict(teacher, [str(tmp_path)], accelerator="cpu")


def test_what_is_not_there_is_one_line(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^there is no image {tmp_path / 'x.png'}$"):
        predict(teacher, [str(tmp_path / "x.png")])
    with pytest.raises(InputError, match=rf"^there is no image in {tmp_path}$"):
        predict(teacher, [str(tmp_path)])
    with pytest.raises(InputError, match="--top must be at least 1, not 0"):
        predict(teacher, [str(tmp_path)], top=0)
    with pytest.raises(InputError, match="holds no saved model"):
        predict(tmp_path, [str(tmp_path)])


def test_each_column_of_the_answers_is_whose_it_says() -> None:
    images = MemoryImages(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 0, 1]))
    logits = torch.tensor([[1.0, 0], [0, 1], [0, 200]])
    with Rows() as rows:
        answers = Answers(images, ["a", "b"], rows)
        answers.add(probabilities_of(logits[:2]), images.targets[:2], torch.eye(2).flip(0))
        answers.add(probabilities_of(logits[2:]), images.targets[2:], torch.eye(2)[:1])
        assert list(rows.lines()) == [
            "image,label,class,probability,teacher,p(a),p(b)\n",
            "0,a,a,0.731059,b,0.73105857863,0.26894142137\n",
            "1,a,b,0.731059,a,0.26894142137,0.73105857863\n",
            "2,b,b,1,a,1.38389652674e-87,1\n",  # e to the power of -200
        ]


def test_a_row_has_the_file_the_wanted_classes_and_where_asked_all_probabilities(teacher: Path, digits: Path) -> None:
    network = load_classifier(teacher)
    texts = {}
    for probabilities in (False, True):
        with Rows() as rows:
            found = predict(
                teacher, [str(digits)], top=2, accelerator="cpu", rows=rows, probabilities=probabilities
            ).predictions
            texts[probabilities] = list(csv.reader(rows.lines()))
    header, *lines = texts[True]
    assert header[5:] == [f"p({name})" for name in network.info.classes]
    assert [line[:5] for line in texts[True]] == texts[False]
    for one, line in zip(found, lines, strict=True):
        with torch.no_grad():
            logits = network(load_image(one.path, network.info))[0].tolist()
        powers = [math.exp(logit) for logit in logits]
        assert line[0] == one.path
        assert list(map(float, line[5:])) == pytest.approx([power / sum(powers) for power in powers], rel=1e-4)
        ranked = sorted(zip(line[5:], network.info.classes, strict=True), key=lambda pair: -float(pair[0]))
        assert line[1:5] == [cell for share, name in ranked[:2] for cell in (name, f"{float(share):.6g}")]


def test_logits_that_are_not_finite_are_refused(teacher: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, model: object, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels), 10), float("nan"))

    monkeypatch.setattr("spkd.training.prediction.logits_on", broken)
    with pytest.raises(InputError, match="model: expected finite logits"):
        predict(teacher, [str(digits)], accelerator="cpu")
