"""Exported files are read by their own runtimes and held against PyTorch; a mismatch writes nothing."""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import Counted, save_grey
from torch import Tensor, nn

import spkd.export
from spkd.calibration import calibrated, temperature_of
from spkd.errors import InputError
from spkd.export import export_model, export_network, export_path
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.training.counting import counting


class Small(nn.Module):
    """A convolution, a batch norm with statistics of its own, dropout and a head."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())
        self.head = nn.Linear(6, 4)
        self.body[1].running_mean.uniform_(-1, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


class OtherWhenExported(Small):
    """Answers otherwise once it is exported, by a constant."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + (0.01 if torch.compiler.is_compiling() else 0.0)


class ByBatchSize(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if len(images) == 2 else images * 1.0)


class ByContent(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() > 0 else -images)


class NotFinite(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / 0.0


def run_onnx(path: Path, images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def run_torch(path: Path, images: Tensor) -> np.ndarray:
    return np.asarray(torch.export.load(path).module()(images).detach())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Classifier]:
    """A run folder with a grey-image classifier whose normalisation matters."""
    return tmp_path / "run", save_grey(tmp_path / "run", ("null", "eins", "zwei"), width=1, batches=1)


@pytest.mark.parametrize(("format", "suffix", "run"), [("onnx", ".onnx", run_onnx), ("torch", ".pt2", run_torch)])
def test_a_saved_run_becomes_one_file_that_answers_alike(saved, format: str, suffix: str, run) -> None:  # type: ignore[no-untyped-def]
    folder, classifier = saved
    images = torch.rand(6, 1, 8, 8)
    report = export_model(folder, format=format, images=images)
    assert report.path == folder / "export" / f"model{suffix}"
    assert [path.name for path in report.path.parent.iterdir()] == [report.path.name]
    assert report.bytes == report.path.stat().st_size
    assert report.source_bytes == pytest.approx((folder / "student" / "model.safetensors").stat().st_size, rel=0.1)
    assert report.latency_torch_ms > 0
    assert report.latency_exported_ms > 0
    differences = []
    for count in (1, 2, 3, 6, 40):
        batch = torch.rand(count, 1, 8, 8)
        with torch.no_grad():
            expected = classifier(batch).numpy()
        answer = run(report.path, batch)
        assert answer.shape == (count, 3)
        differences.append(np.abs(answer - expected).max())
    assert max(differences) < 1e-4
    assert report.max_difference < 1e-4


class OnlyThree(Small):
    """Fails with batches of another size, as a network may that is made for one."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.view(3, -1, 8, 8))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("count", [1, 5, 6])
@pytest.mark.parametrize(("format", "suffix", "run"), [("onnx", ".onnx", run_onnx), ("torch", ".pt2", run_torch)])
def test_a_file_for_a_fixed_batch_takes_that_and_no_other(
    saved: tuple[Path, Classifier],
    batch: int,
    count: int,
    format: str,
    suffix: str,
    run: Callable[[Path, Tensor], np.ndarray],
) -> None:
    folder, classifier = saved
    report = export_model(folder, format=format, images=torch.rand(count, 1, 8, 8), batch=batch)
    images = torch.rand(batch, 1, 8, 8)
    with torch.no_grad():
        assert run(report.path, images) == pytest.approx(classifier(images).numpy(), abs=1e-4)
    for other in (batch - 1, batch + 1):
        if other:
            with pytest.raises(Exception, match=r"INVALID_ARGUMENT|Guard failed|shape"):
                run(report.path, torch.rand(other, 1, 8, 8))
    if format == "onnx":
        model = onnx.load(report.path)
        onnx.checker.check_model(model, full_check=True)
        for value, rest in ((model.graph.input[0], [1, 8, 8]), (model.graph.output[0], [3])):
            assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [batch, *rest]
        told = {entry.key: entry.value for entry in model.metadata_props}["images"]
    else:
        extra = {"images.txt": ""}
        torch.export.load(report.path, extra_files=extra)
        told = extra["images.txt"]
    assert told.endswith(f"with antialiasing, exactly {batch} at a time; the model normalises them")


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_network_of_one_batch_size_becomes_a_file_of_that(tmp_path: Path, images: Tensor, format: str) -> None:
    path = tmp_path / f"x{spkd.export.SUFFIXES[format]}"
    export_network(OnlyThree().eval(), path, format, images=images, batch=3)
    with pytest.raises(InputError, match=r"must not depend on the values of the images$"):
        export_network(ByContent(), path, format, images=images, batch=3)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_none_is_refused_before_the_network_is_loaded(tmp_path: Path, batch: int) -> None:
    with pytest.raises(InputError, match=rf"^batch: expected 1 image or more, got {batch}; leave it out"):
        export_model(tmp_path / "absent", images=torch.rand(3, 1, 8, 8), batch=batch)
    with pytest.raises(InputError, match=r"^batch: "):
        export_network(Small(), tmp_path / "x.onnx", images=torch.rand(3, 3, 8, 8), batch=batch)


@pytest.mark.parametrize("wrong", [1, 2])
def test_every_image_is_checked_in_batches_as_the_file_takes_them(
    wrong: int, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = Small().eval(), []

    def run(shown: Tensor) -> Tensor:
        seen.append(shown)
        with torch.no_grad():
            logits: Tensor = network(shown)
        return logits + 0.01 * (len(seen) == wrong)

    monkeypatch.setattr(spkd.export, "in_format", lambda *_: (b"content", run))
    with pytest.raises(InputError, match=r"by 0\.01 on a batch of 3, more than"):
        export_network(network, tmp_path / "x.onnx", images=images, batch=3)
    filled = torch.cat([images, images[4:]])
    assert torch.equal(torch.cat(seen), filled[: 3 * wrong])


def test_an_onnx_file_names_its_tensors_classes_and_dynamic_batch(saved) -> None:  # type: ignore[no-untyped-def]
    folder, _ = saved
    report = export_model(folder / "student", folder / "deploy.onnx", images=torch.rand(3, 1, 8, 8))
    assert report.path == folder / "deploy.onnx"
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    batch, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dim.dim_value for dim in rest] == [1, 8, 8]
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["null", "eins", "zwei"]
    assert not any(one.external_data for one in model.graph.initializer)


def test_a_torch_file_holds_the_classes(saved) -> None:  # type: ignore[no-untyped-def]
    folder, _ = saved
    report = export_model(folder, format="torch", images=torch.rand(3, 1, 8, 8))
    extra = {"classes.json": "", "images.txt": ""}
    torch.export.load(report.path, extra_files=extra)
    assert json.loads(extra["classes.json"]) == ["null", "eins", "zwei"]
    how = "turned upright as EXIF data say, resized bilinearly with antialiasing"
    assert extra["images.txt"] == f"float32 in [0, 1], 1 channel(s), 8 x 8 pixels, {how}; the model normalises them"


@pytest.mark.parametrize(
    ("channels", "size", "view", "told"),
    [
        (
            3,
            224,
            "centre",
            "RGB, 224 x 224 pixels, the centre of the image after its shorter side was resized to 256",
        ),
        (3, 32, "whole", "RGB, 32 x 32 pixels, of the whole image"),
        (1, 28, None, "1 channel(s), 28 x 28 pixels"),
    ],
)
def test_a_file_tells_what_its_images_are_to_be(
    channels: int, size: int, view: Literal["whole", "centre"] | None, told: str, tmp_path: Path
) -> None:
    info = ModelInfo("wrn-10-1", ("a", "b"), channels, size, Normalisation((0.5,), (0.2,)), view)
    network = Classifier(nn.Sequential(nn.Conv2d(channels, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), info)
    export_network(network, tmp_path / "x.onnx", images=torch.rand(3, channels, 8, 8), info=info)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "x.onnx").metadata_props}
    how = "turned upright as EXIF data say, resized bilinearly with antialiasing"
    assert metadata["images"] == f"float32 in [0, 1], {told}, {how}; the model normalises them"


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_no_path_of_this_machine_is_in_the_file(tmp_path: Path, images: Tensor, format: str) -> None:
    report = export_network(Small(), tmp_path / f"x{spkd.export.SUFFIXES[format]}", format, images=images)
    content = report.path.read_bytes()
    here = [Path(__file__).name, str(Path(torch.__file__).parent), "stack_trace"]
    assert [word for word in here if word.encode() in content] == []


def test_nothing_is_printed_and_the_network_keeps_its_mode(
    tmp_path: Path, images: Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Small().train()
    network.body[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_network(network, tmp_path / "x.onnx", images=images)
    assert network.training
    assert not network.body[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [1, 2])
def test_one_real_image_is_enough_for_the_check(tmp_path: Path, images: Tensor, count: int) -> None:
    export_network(Small(), tmp_path / "x.onnx", images=images[:count])
    assert run_onnx(tmp_path / "x.onnx", images).shape == (5, 4)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_mismatch_leaves_the_earlier_file(tmp_path: Path, images: Tensor, format: str) -> None:
    path = tmp_path / f"x{spkd.export.SUFFIXES[format]}"
    path.write_text("earlier")
    with pytest.raises(InputError, match=r"differ from PyTorch's by 0\.01 .*nothing was written") as caught:
        export_network(OtherWhenExported(), path, format, images=images)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("difference", [0.01, math.nan])
@pytest.mark.parametrize("wrong", [1, 2, 5])
def test_batches_of_one_of_two_and_of_all_are_checked(
    wrong: int, difference: float, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = Small().eval(), []

    def run(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        with torch.no_grad():
            logits: Tensor = network(batch)
        return logits + difference if len(batch) == wrong else logits

    monkeypatch.setattr(spkd.export, "in_format", lambda *_: (b"content", run))
    with pytest.raises(InputError, match=f"by {difference} on a batch of {wrong}, more than"):
        export_network(network, tmp_path / "x.onnx", images=images)
    assert list(tmp_path.iterdir()) == []
    assert seen == [size for size in (1, 2, 5) if size <= wrong]


def test_the_latencies_are_those_of_one_image(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(run: object, batch: Tensor, repeats: int) -> float:
        return float(len(batch) + 10 * isinstance(run, nn.Module))

    monkeypatch.setattr(spkd.export, "latency_ms", measured)
    report = export_network(Small(), tmp_path / "x.onnx", images=images)
    assert (report.latency_torch_ms, report.latency_exported_ms) == (11.0, 1.0)
    report = export_network(Small(), tmp_path / "x.onnx", images=images, batch=20)
    assert (report.latency_torch_ms, report.latency_exported_ms) == (30.0 / 20, 1.0)


def test_the_tolerance_is_relative_to_the_largest_logit(tmp_path: Path, images: Tensor) -> None:
    network = OtherWhenExported().eval()
    with torch.no_grad():
        network.head.bias.fill_(1000.0)
    report = export_network(network, tmp_path / "x.onnx", images=images)  # 0.01 of 1000 is 1e-5
    assert report.max_difference == pytest.approx(0.01, rel=0.05)
    assert report.relative_difference == pytest.approx(1e-5, rel=0.05)
    with pytest.raises(
        InputError, match=r"that a tolerance of 1e-06 allows; .*try the format \w+, or a larger tolerance"
    ):
        export_network(network, tmp_path / "y.onnx", images=images, tolerance=1e-6)


def test_the_tolerance_of_a_saved_model_reaches_the_check(saved: tuple[Path, Classifier]) -> None:
    with pytest.raises(InputError, match="tolerance: expected a number above 0"):
        export_model(saved[0], images=torch.rand(3, 1, 8, 8), tolerance=0.0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ByBatchSize(), "cannot be converted to the format onnx"),
        (ByContent(), "cannot be converted to the format onnx.*must not depend on the values"),
        (NotFinite(), "expected finite logits"),
    ],
)
def test_networks_that_cannot_be_exported_say_why_in_one_line(tmp_path: Path, network: nn.Module, message: str) -> None:
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(InputError, match=message) as caught:
        export_network(network, tmp_path / "x.onnx", images=images)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_format_or_name_is_answered_before_the_model_is_loaded(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match=re.escape("expected onnx or torch, got 'onx'. Did you mean 'onnx'?")):
        export_model(tmp_path / "absent", format="onx", images=images)
    with pytest.raises(InputError, match=r"ending in \.onnx .*got 'model\.pt'; try 'model\.onnx'"):
        export_model(tmp_path / "absent", tmp_path / "model.pt", images=images)


def test_an_existing_folder_gets_the_file(tmp_path: Path) -> None:
    assert export_path(Path("run"), tmp_path, "torch") == tmp_path / "model.pt2"


@pytest.mark.parametrize(
    ("images", "tolerance", "message"),
    [
        (torch.rand(0, 3, 8, 8), 1e-4, "n of 1 or more"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 1e-4, "floating-point images .*got torch.uint8"),
        (torch.rand(3, 8, 8), 1e-4, r"shape \(3, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), 0.0, "tolerance: expected a number above 0, got 0.0"),
        (torch.rand(2, 3, 8, 8), float("nan"), "tolerance: expected a number above 0, got nan"),
    ],
)
def test_bad_arguments(tmp_path: Path, images: Tensor, tolerance: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_network(Small(), tmp_path / "x.onnx", images=images, tolerance=tolerance)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, images: Tensor) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/x\.onnx"):
        export_network(Small(), tmp_path / "file" / "x.onnx", images=images)


def test_onnxruntime_gets_as_many_threads_as_torch(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: onnxruntime.SessionOptions, providers: list[str]) -> object:
        threads.append(options.intra_op_num_threads)
        return real(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        export_network(Small(), tmp_path / "x.onnx", images=images)
    finally:
        torch.set_num_threads(before)
    assert threads == [2]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 1, 16, 16), r"^images: expected \(n, 1, 8, 8\), got \(4, 1, 16, 16\)$"),
        (torch.rand(4, 3, 8, 8), r"^images: expected \(n, 1, 8, 8\), got"),
        (torch.randn(40, 1, 8, 8), r"^images: the network takes values in \[0, 1\] .* itself, got -"),
        (255 * torch.rand(4, 1, 8, 8), r"^images: the network takes values in \[0, 1\] .* itself, got"),
    ],
)
def test_a_saved_model_s_file_is_made_for_its_own_images(
    saved: tuple[Path, Classifier], images: Tensor, message: str
) -> None:
    """Those of the check decide what the file takes."""
    with pytest.raises(InputError, match=message):
        export_model(saved[0], images=images)
    assert not (saved[0] / "export").exists()


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_no_image_of_the_check_is_in_the_file(saved: tuple[Path, Classifier], format: str) -> None:
    """They are the user's, and the file is to be given away."""
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    report = export_model(saved[0], format=format, images=images)
    few = export_model(saved[0], report.path.with_stem("few"), format, images=images[:3])
    assert report.bytes == few.bytes
    with zipfile.ZipFile(report.path) if format == "torch" else contextlib.nullcontext() as file:
        parts = [report.path.read_bytes()] if file is None else [file.read(name) for name in file.namelist()]
    for image in images:
        assert not any(image.numpy().tobytes() in part for part in parts)


def labelled(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of images and targets of three classes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(40, 1, 8, 8, generator=generator), torch.randint(3, (40,), generator=generator)) for _ in range(3)
    ]


def told(batches: list[tuple[Tensor, Tensor]], classifier: Classifier, wrong: int) -> list[tuple[Tensor, Tensor]]:
    """Return the same images, with the classifier's own decisions but for so many of each batch as targets."""
    with torch.no_grad():
        decided = [(images, classifier(images).argmax(1)) for images, _ in batches]
    return [(images, torch.cat([(one[:wrong] + 1) % 3, one[wrong:]])) for images, one in decided]


@pytest.mark.parametrize(("format", "suffix", "run"), [("onnx", ".onnx", run_onnx), ("torch", ".pt2", run_torch)])
def test_calibrated_logits_are_the_network_s_divided_by_the_temperature(
    saved: tuple[Path, Classifier], format: str, suffix: str, run: Callable[[Path, Tensor], np.ndarray]
) -> None:
    folder, classifier = saved
    batches = told(labelled(0), classifier, wrong=8)
    shown = Counted()
    report = export_model(
        folder,
        format=format,
        images=torch.rand(6, 1, 8, 8),
        labelled=iter(batches),
        shown=counting(shown, "calibrating", 120),
    )
    assert shown.steps == [("calibrating", 120), 40, 80, 120]
    assert report.calibration is not None
    temperature = report.calibration.temperature
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        expected = classifier(images)
    assert temperature == pytest.approx(temperature_of(expected, targets), rel=1e-6)
    assert abs(temperature - 1) > 0.2, "or the test would not tell division from none"
    for count in (1, 2, 40):
        answer = run(report.path, images[:count])
        assert temperature * answer == pytest.approx(expected[:count].numpy(), abs=1e-4)
        assert (answer.argmax(1) == expected[:count].argmax(1).numpy()).all()
    assert report.relative_difference < 1e-4
    if format == "torch":
        extra = {"classes.json": "", "images.txt": "", "temperature.txt": ""}
        torch.export.load(report.path, extra_files=extra)
        kept, classes = extra["temperature.txt"], extra["classes.json"]
    else:
        metadata = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
        kept, classes = metadata["temperature"], metadata["classes"]
    assert (float(kept), json.loads(classes)) == (temperature, ["null", "eins", "zwei"])


def test_without_labelled_images_there_is_no_temperature(saved: tuple[Path, Classifier]) -> None:
    report = export_model(saved[0], images=torch.rand(3, 1, 8, 8))
    assert report.calibration is None
    assert sorted(entry.key for entry in onnx.load(report.path).metadata_props) == ["classes", "images"]


def test_a_calibrated_file_is_checked_against_the_divided_logits(tmp_path: Path, images: Tensor) -> None:
    logits = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    found = calibrated(nn.Identity(), [(logits, torch.tensor([0, 0, 0, 1]))], "ab")
    network = OtherWhenExported().eval()
    options = {"images": images, "tolerance": 1.0, "calibration": replace(found, temperature=4.0)}
    report = export_network(network, tmp_path / "x.onnx", **options)
    assert report.max_difference == pytest.approx(0.01 / 4, rel=0.05)
    with torch.no_grad():
        largest = float(network(images).abs().max())
    assert report.relative_difference == pytest.approx(0.01 / largest, rel=0.05)


def test_images_that_are_all_right_leave_the_earlier_file(saved: tuple[Path, Classifier]) -> None:
    folder, classifier = saved
    path = export_model(folder, images=torch.rand(3, 1, 8, 8)).path
    before = path.read_bytes()
    batches = told(labelled(0), classifier, wrong=0)
    with pytest.raises(InputError, match=r"temperature: none above .*120 of 120 images are right"):
        export_model(folder, images=torch.rand(3, 1, 8, 8), labelled=batches)
    assert path.read_bytes() == before
