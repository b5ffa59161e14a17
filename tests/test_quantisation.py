"""A file in 8-bit integers computes what its arithmetic says, and the report what the file does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import Counted, save_grey
from torch import Tensor, nn

from spkd.calibration import temperature_of
from spkd.errors import InputError
from spkd.export import converted, export_model
from spkd.models.classifier import Classifier
from spkd.models.exported import onnx_runner
from spkd.quantisation import Int8Report, export_int8, quantised
from spkd.training.counting import counting

CLASSES = ("null", "eins", "zwei", "drei")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Classifier]:
    """A run folder with a grey-image classifier whose normalisation matters and whose batch norms have seen images."""
    return tmp_path / "run", save_grey(tmp_path / "run", CLASSES, width=2, batches=20)


def batches(count: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.rand(size, 1, 8, 8, generator=generator), torch.randint(4, (size,), generator=generator)


def answers(path: Path, images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images.numpy()})[0])


def test_the_file_answers_nearly_alike_and_the_report_counts_what_it_does(
    saved: tuple[Path, Classifier], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, classifier = saved
    report = export_int8(
        folder,
        images=torch.rand(6, 1, 8, 8),
        typical=(images for images, _ in batches(4, 32, seed=0)),
        labelled=[*batches(3, 40, seed=1), *batches(1, 7, seed=2)],
    )
    assert report.path == folder / "export" / "model-int8.onnx"
    assert [path.name for path in report.path.parent.iterdir()] == [report.path.name]
    assert capfd.readouterr() == ("", "")
    images, targets = (torch.cat(parts) for parts in zip(*batches(3, 40, seed=1), *batches(1, 7, seed=2), strict=True))
    with torch.no_grad():
        expected = classifier(images).numpy()
    found = answers(report.path, images)
    assert 0 < np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()
    assert report.images == 127
    assert report.error == pytest.approx(100 * (found.argmax(1) != targets.numpy()).mean())
    assert report.float_error == pytest.approx(100 * (expected.argmax(1) != targets.numpy()).mean())
    assert report.agreement == pytest.approx(100 * (found.argmax(1) == expected.argmax(1)).mean())
    for said, (error, balanced) in (
        (found, (report.error, report.balanced_error)),
        (expected, (report.float_error, report.float_balanced_error)),
    ):
        own = [100 * (said.argmax(1) != place)[targets.numpy() == place].mean() for place in range(4)]
        assert balanced == pytest.approx(np.mean(own))
        assert balanced != error, "or the test would not tell the two apart"
        errors = [one.error if said is found else one.float_error for one in report.per_class]
        assert errors == pytest.approx(own)
    assert [(one.name, one.images) for one in report.per_class] == [
        (name, int((targets == place).sum())) for place, name in enumerate(CLASSES)
    ]
    assert min(report.latency_ms, report.float_latency_ms, report.source_latency_ms) > 0
    assert report.bytes == report.path.stat().st_size
    assert report.bytes < 0.4 * report.float_bytes


@pytest.mark.parametrize("batch", [1, 6])
def test_a_file_for_a_fixed_batch_is_measured_on_all_images(saved: tuple[Path, Classifier], batch: int) -> None:
    """The typical images are no multiple of it, nor are the labelled ones; what they say is the same."""
    labelled = [*batches(3, 40, seed=1), *batches(1, 7, seed=2)]
    with torch.no_grad():  # a quarter are of the first class, whatever they are taken for
        labelled = [(images, torch.where(targets > 0, saved[1](images).argmax(1), 0)) for images, targets in labelled]

    def exported(name: str, batch: int | None) -> Int8Report:
        return export_int8(
            saved[0],
            saved[0] / f"{name}.onnx",
            images=torch.rand(4, 1, 8, 8),
            typical=(images for images, _ in batches(4, 32, seed=0)),
            labelled=labelled,
            calibrate=True,
            batch=batch,
        )

    plain, fixed = exported("plain", None), exported("fixed", batch)
    assert fixed.images == 127
    assert (fixed.error, fixed.float_error, fixed.agreement) == (plain.error, plain.float_error, plain.agreement)
    assert plain.calibration is not None
    assert fixed.calibration is not None
    assert fixed.calibration.temperature == pytest.approx(plain.calibration.temperature, rel=1e-4)
    ((images, _),) = batches(1, batch, seed=3)
    found, expected = (answers(report.path, images) for report in (fixed, plain))
    assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean()
    model = onnx.load(fixed.path)
    onnx.checker.check_model(model, full_check=True)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_value == batch
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert f", exactly {batch} at a time; " in told["images"]
    assert float(told["temperature"]) == fixed.calibration.temperature


def test_a_class_without_images_is_no_part_of_what_8_bits_cost(saved: tuple[Path, Classifier]) -> None:
    report = export_int8(
        saved[0],
        images=torch.rand(3, 1, 8, 8),
        typical=(pixels for pixels, _ in batches(1, 32, 0)),
        labelled=[(images, targets.clamp(max=2)) for images, targets in batches(2, 30, 1)],
    )
    assert [one.name for one in report.per_class] == list(CLASSES[:3])
    assert report.balanced_error == pytest.approx(sum(one.error for one in report.per_class) / 3)


def test_the_comparison_shows_how_much_of_it_is_done(saved: tuple[Path, Classifier]) -> None:
    shown = Counted()
    export_int8(
        saved[0],
        images=torch.rand(3, 1, 8, 8),
        typical=(pixels for pixels, _ in batches(1, 32, 0)),
        labelled=batches(3, 8, 1),
        shown=counting(shown, "comparing", 24),
    )
    assert shown.steps == [("comparing", 24), 8, 16, 24]


def test_each_latency_is_that_of_its_own_form(saved: tuple[Path, Classifier], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, classifier = saved

    def distance(run: Callable[[Tensor], Tensor], image: Tensor, repeats: int) -> float:
        with torch.no_grad():
            return float((run(image) - classifier(image)).abs().max())

    monkeypatch.setattr("spkd.export.latency_ms", distance)
    typical = (pixels for pixels, _ in batches(1, 32, 0))
    report = export_int8(folder, images=torch.rand(3, 1, 8, 8), typical=typical, labelled=batches(1, 8, 1))
    assert report.source_latency_ms == 0 < report.float_latency_ms < 1e-3 < report.latency_ms


def test_the_answers_are_those_of_exact_sums_on_every_processor(saved: tuple[Path, Classifier]) -> None:
    folder, _ = saved
    typical = (pixels for pixels, _ in batches(4, 32, 0))
    report = export_int8(folder, images=torch.rand(3, 1, 8, 8), typical=typical, labelled=batches(1, 8, 1))
    # Where two products of unsigned and signed numbers are added in 16 bits, 2 · 255 · 64 still fits.
    model = onnx.load(report.path)
    weights = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1]
    assert weights
    assert max(int(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max()) for one in weights) == 64
    # Without optimisation every product is computed in float32, from the same rounded numbers.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(str(report.path), options, providers=["CPUExecutionProvider"])
    images = torch.cat([images for images, _ in batches(3, 40, 1)])
    expected = np.asarray(exact.run(["logits"], {"images": images.numpy()})[0])
    found = answers(report.path, images)
    assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean()


def test_all_bits_are_used_where_they_are_asked_for(saved: tuple[Path, Classifier]) -> None:
    typical = [pixels for pixels, _ in batches(2, 32, 0)]
    largest = {}
    for bits in (7, 8):
        report = export_int8(
            saved[0],
            images=torch.rand(3, 1, 8, 8),
            typical=typical,
            labelled=batches(1, 8, 1),
            weight_bits=bits,  # type: ignore[arg-type]
        )
        arrays = [
            onnx.numpy_helper.to_array(one) for one in onnx.load(report.path).graph.initializer if len(one.dims) > 1
        ]
        largest[bits] = max(int(np.abs(one.astype(int)).max()) for one in arrays if one.dtype == np.int8)
    assert largest == {7: 64, 8: 127}


def test_the_tolerance_reaches_the_check(saved: tuple[Path, Classifier]) -> None:
    with pytest.raises(InputError, match="tolerance: expected a number above 0"):
        export_int8(saved[0], images=torch.rand(3, 1, 8, 8), typical=[], labelled=[], tolerance=0.0)


def test_inputs_outputs_and_metadata_are_those_of_the_float_file(saved: tuple[Path, Classifier]) -> None:
    folder, _ = saved
    images = torch.rand(3, 1, 8, 8)
    typical = (pixels for pixels, _ in batches(1, 8, 0))
    whole = export_model(folder, images=images)
    small = export_int8(folder, images=images, typical=typical, labelled=batches(1, 8, 1))
    assert whole.bytes == small.float_bytes
    exact, coarse = onnx.load(whole.path), onnx.load(small.path)
    assert coarse.metadata_props == exact.metadata_props
    assert coarse.graph.input == exact.graph.input
    assert coarse.graph.output == exact.graph.output
    exact_weights, weights = (
        [one for one in model.graph.initializer if len(one.dims) == 4 and max(one.dims) > 1]
        for model in (exact, coarse)
    )
    assert len(weights) == len(exact_weights) > 9
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT8}
    assert not any(node.doc_string for node in coarse.graph.node)
    for count in (1, 2, 9):
        assert answers(small.path, torch.rand(count, 1, 8, 8)).shape == (count, 4)


def test_a_layer_s_sums_are_those_of_whole_numbers_worked_out_by_hand() -> None:
    """Signed weights with a scale for each output, activations from their least value to the greatest."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        network[1].weight[3] *= 50  # a scale for all outputs would round the others' weights away
    typical = torch.rand(64, 3, 2, 2) * 4 - 1
    content = converted(network, "onnx", images=typical, tolerance=1e-4, info=None).content
    found = onnx_runner(quantised(content, [typical[:40], typical[40:]]))(typical)
    weight, bias = (parameter.detach().double() for parameter in network[1].parameters())
    least, greatest = float(typical.min()), float(typical.max())
    step = (greatest - least) / 255
    seen = (typical.flatten(1).double() / step).round() * step
    scales = weight.abs().amax(dim=1, keepdim=True) / 64  # seven bits
    expected = seen @ ((weight / scales).round() * scales).T + bias
    step_of_logits = float(expected.max() - expected.min()) / 255
    assert float((found - expected).abs().max()) < 0.75 * step_of_logits  # half a step, and its own rounding
    with torch.no_grad():
        assert not torch.equal(found, network(typical))


def test_values_beyond_those_of_calibration_are_cut_off() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    content = converted(network, "onnx", images=torch.rand(3, 3, 2, 2), tolerance=1e-4, info=None).content
    run = onnx_runner(quantised(content, [torch.rand(64, 3, 2, 2)]))
    one, two = (run(torch.full((1, 3, 2, 2), value)) for value in (1.0, 2.0))
    assert torch.equal(one, two)


def test_what_cannot_be_quantised_leaves_the_earlier_file(
    saved: tuple[Path, Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved
    path = folder / "export" / "model-int8.onnx"
    path.parent.mkdir()
    path.write_text("earlier")

    def export(typical: object, labelled: object) -> None:
        export_int8(folder, images=torch.rand(3, 1, 8, 8), typical=typical, labelled=labelled)  # type: ignore[arg-type]

    def unreadable() -> Iterator[Tensor]:
        yield torch.rand(4, 1, 8, 8)
        raise InputError("cannot read b.jpg")

    with pytest.raises(InputError, match=r"^cannot read b\.jpg$"):
        export(unreadable(), batches(1, 4, 0))
    with pytest.raises(InputError, match="onnxruntime cannot put the network into 8-bit integers: ") as caught:
        export(iter(()), batches(1, 4, 0))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="labelled: expected at least one image"):
        export([torch.rand(4, 1, 8, 8)], [])
    assert path.read_text() == "earlier"


def test_a_wrong_name_is_answered_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("ending in .onnx")):
        export_int8(tmp_path, tmp_path / "x.pt2", images=torch.rand(1), typical=[], labelled=[])


def test_logits_in_8_bits_are_divided_by_the_temperature_that_they_have(
    saved: tuple[Path, Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, classifier = saved
    images = torch.rand(6, 1, 8, 8)
    pixels = torch.cat([pixels for pixels, _ in batches(3, 40, 1)])
    with torch.no_grad():
        decided = classifier(pixels).argmax(1)
    targets = torch.cat([(decided[:30] + 1) % 4, decided[30:]])
    given = {
        "images": images,
        "typical": [pixels],
        "labelled": [(pixels[:70], targets[:70]), (pixels[70:], targets[70:])],
    }
    plain = export_int8(folder, **given)
    assert plain.calibration is None
    logits = answers(plain.path, pixels)
    shown, timed = Counted(), []
    monkeypatch.setattr("spkd.export.latency_ms", lambda run, *_: timed.append(run(pixels)) or 1.0)
    report = export_int8(folder, **given, calibrate=True, shown=counting(shown, "comparing", 120))
    assert shown.steps == [("comparing", 120), 70, 120]
    assert report.calibration is not None
    temperature = report.calibration.temperature
    assert temperature == pytest.approx(temperature_of(torch.from_numpy(logits), targets), rel=1e-6)
    with torch.no_grad():
        assert temperature != pytest.approx(temperature_of(classifier(pixels), targets), rel=1e-6)
    assert abs(temperature - 1) > 0.2, "or the test would not tell division from none"
    assert temperature * answers(report.path, pixels) == pytest.approx(logits, rel=1e-6)
    assert np.array_equal(timed[0], answers(report.path, pixels)), "the latency is that of the file"
    assert report.calibration.before.top1_error == report.error == plain.error
    assert (report.float_error, report.agreement, report.per_class) == (
        plain.float_error,
        plain.agreement,
        plain.per_class,
    )
    model, before = onnx.load(report.path), onnx.load(plain.path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.input, model.graph.output) == (before.graph.input, before.graph.output)
    told, told_before = ({one.key: one.value for one in file.metadata_props} for file in (model, before))
    assert told == {**told_before, "temperature": repr(temperature)}
    assert report.bytes == report.path.stat().st_size
