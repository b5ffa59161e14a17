"""An exported file is evaluated and asked as the network that it came from."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers import Heard

from spkd.data.images import MemoryImages
from spkd.data.load import load_data
from spkd.data.options import DataOptions, View
from spkd.errors import InputError
from spkd.export import export_model, export_network
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.exported import load_exported
from spkd.models.saved_model import load_classifier, save_classifier
from spkd.models.wrn import WideResNet
from spkd.rows import Rows
from spkd.training.evaluation import Evaluation
from spkd.training.own_images import images_to_quantise_with, own_data, validation_images
from spkd.training.prediction import predict
from spkd.training.saved import evaluate_saved

INFO = ModelInfo("wrn-10-1", ("null", "eins", "zwei"), 3, 8, Normalisation((0.5,), (0.25,)))


def exported(folder: Path, info: ModelInfo = INFO) -> Path:
    torch.manual_seed(0)
    save_classifier(Classifier(WideResNet(10, 1, num_classes=len(info.classes)), info), folder)
    return export_model(folder, images=torch.rand(3, info.channels, info.image_size, info.image_size)).path


@pytest.fixture(scope="module")
def digits_file(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    test = load_data(DataOptions()).test
    assert isinstance(test, MemoryImages)
    out = tmp_path_factory.mktemp("export") / "model.onnx"
    return export_model(teacher, out, images=test.pixels[:8].float() / 255).path


def evaluated(network: Path, said: list[str], teacher: str | None = None) -> Evaluation:
    options = DataOptions("digits")
    return evaluate_saved(network, options, split="test", teacher=teacher, accelerator="cpu", display=Heard(said))


def test_a_file_is_evaluated_as_the_network_that_it_came_from(teacher: Path, digits_file: Path) -> None:
    said: list[str] = []
    found = evaluated(digits_file, said, str(teacher))
    assert re.fullmatch(rf"{digits_file} takes \d+\.\d\d ms for one image, by onnxruntime \(threads: \d+\)", said[-1])
    own = evaluated(teacher, [])
    assert found.agreement == 100
    assert found.cross_entropy == pytest.approx(own.cross_entropy, rel=1e-4)
    assert replace(found, agreement=None, cross_entropy=0, calibration_error=0) == replace(
        own, agreement=None, cross_entropy=0, calibration_error=0
    )


def test_a_file_takes_new_images_for_what_the_network_does(teacher: Path, digits_file: Path, tmp_path: Path) -> None:
    from PIL import Image

    test = load_data(DataOptions()).test
    assert isinstance(test, MemoryImages)
    for place in range(12):
        Image.fromarray(test.pixels[place, 0].numpy()).save(tmp_path / f"{place}.png")
    with Rows() as rows:
        found = predict(digits_file, [str(tmp_path)], top=3, rows=rows, probabilities=True)
        header, *cells = csv.reader(rows.lines())
    assert header[7:] == [f"p({name})" for name in "0123456789"]
    own = predict(teacher, [str(tmp_path)], top=10)
    for line, one in zip(cells, own.predictions, strict=True):
        shares = dict(zip(one.classes, one.probabilities, strict=True))
        assert [float(cell) for cell in line[7:]] == pytest.approx([shares[name] for name in "0123456789"], abs=1e-4)
    assert [one.classes for one in found.predictions] == [one.classes[:3] for one in own.predictions]
    assert len({one.classes[0] for one in found.predictions}) > 1


@pytest.mark.parametrize("batch", [1, 7])
def test_a_file_for_a_fixed_batch_is_evaluated_and_asked_like_any(
    teacher: Path, digits_file: Path, tmp_path: Path, batch: int
) -> None:
    from PIL import Image

    test = load_data(DataOptions()).test
    assert isinstance(test, MemoryImages)
    path = export_model(teacher, tmp_path / "m.onnx", images=test.pixels[:8].float() / 255, batch=batch).path
    said: list[str] = []
    found, own = evaluated(path, said), evaluated(digits_file, [])
    assert found.images == 1000
    shown = "one image" if batch == 1 else "7 images, as it takes them"
    assert re.search(rf" takes \d+\.\d\d ms for {shown}, by onnxruntime", said[-1])
    assert (found.top1_error, found.per_class) == (own.top1_error, own.per_class)
    assert found.cross_entropy == pytest.approx(own.cross_entropy, rel=1e-4)
    (tmp_path / "new").mkdir()
    for place in range(9):
        Image.fromarray(test.pixels[place, 0].numpy()).save(tmp_path / "new" / f"{place}.png")
    asked, expected = (predict(file, [str(tmp_path / "new")], top=1).predictions for file in (path, digits_file))
    assert [one.classes for one in asked] == [one.classes for one in expected]
    with torch.no_grad():
        assert load_exported(path)(test.pixels[:5].float() / 255).shape == (5, 10)


def test_eight_bits_are_evaluated_too(teacher: Path, tmp_path: Path) -> None:
    from spkd.quantisation import export_int8

    data = DataOptions("digits")
    typical, labelled, _ = images_to_quantise_with(teacher, data, print)
    batches = list(labelled)
    images = batches[0][0][:8]
    report = export_int8(teacher, tmp_path / "m.onnx", images=images, typical=typical, labelled=batches)
    measured = evaluate_saved(report.path, data, split="val", teacher=None, accelerator="cpu")
    assert measured.top1_error == report.error


def test_a_calibrated_file_is_evaluated_with_its_temperature(teacher: Path, tmp_path: Path) -> None:
    data = DataOptions("digits")
    labelled, number = validation_images(teacher, data, print)
    images = next(validation_images(teacher, data, print)[0])[0][:8]
    report = export_model(teacher, tmp_path / "m.onnx", images=images, labelled=labelled)
    assert report.calibration is not None
    before, after = report.calibration.before, report.calibration.after
    assert before.images == number == 297
    for network, told in ((report.path, after), (teacher, before)):
        measured = evaluate_saved(network, data, split="val", teacher=None, accelerator="cpu")
        assert measured.top1_error == told.top1_error
        assert measured.cross_entropy == pytest.approx(told.cross_entropy, rel=1e-4)
        assert measured.calibration_error == pytest.approx(told.calibration_error, abs=1e-2)
    assert abs(after.cross_entropy / before.cross_entropy - 1) > 1e-3, "or the test would not tell the two apart"


@pytest.mark.parametrize("view", [None, "whole", "centre"])
@pytest.mark.parametrize("channels", [1, 3])
def test_classes_and_images_are_those_of_the_network(view: View | None, channels: int, tmp_path: Path) -> None:
    info = replace(INFO, view=view, spec=f"wrn-10-1?in_channels={channels}", channels=channels)
    torch.manual_seed(0)
    classifier = Classifier(WideResNet(10, 1, num_classes=3, in_channels=channels), info).eval()
    images = torch.rand(5, channels, 8, 8)
    export_network(classifier, tmp_path / "m.onnx", images=images, info=info)
    found = load_exported(tmp_path / "m.onnx")
    plain = Normalisation((0.0,), (1.0,))
    assert found.info == replace(info, spec=str(tmp_path / "m.onnx"), normalisation=plain)
    with torch.no_grad():
        assert torch.allclose(found(images), classifier(images), atol=1e-5)
    assert not found(images).requires_grad


def test_a_file_that_cannot_be_asked_is_refused_in_one_line(tmp_path: Path) -> None:
    path = exported(tmp_path / "saved")
    with pytest.raises(InputError, match=r"there is no file .*modle\.onnx\. Did you mean 'model\.onnx'\?$"):
        load_exported(path.with_name("modle.onnx"))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"^model: .*damaged\.onnx cannot be run by onnxruntime: [^\n]*$"):
        load_exported(damaged)
    without = tmp_path / "without.onnx"
    for key, value in (("other", "x"), ("classes", "{"), ("classes", "[1]"), ("classes", "[]")):
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {key: value})
        onnx.save(model, without)
        with pytest.raises(
            InputError, match=r"without\.onnx does not say its classes and image size: give a file made by"
        ):
            load_exported(without)
    with pytest.raises(InputError, match=r"model\.onnx does not say which images .*: name them by --data"):
        own_data(path, {"data": None})
    with pytest.raises(InputError, match=r"--image_size: .*model\.onnx takes images of 8 × 8 pixels only"):
        evaluate_saved(path, DataOptions(image_size=16), split="test", teacher=None, accelerator="cpu")
    with pytest.raises(InputError, match=r"--normalisation: .*model\.onnx is a saved model and brings its own"):
        evaluate_saved(
            path,
            DataOptions(),
            split="test",
            teacher=None,
            accelerator="cpu",
            normalisation="none",
        )


def test_the_network_of_a_file_is_not_the_one_in_a_folder(tmp_path: Path) -> None:
    path = exported(tmp_path / "saved")
    assert load_exported(path).info.normalisation != load_classifier(tmp_path / "saved").info.normalisation
    assert not list(load_exported(path).parameters())
