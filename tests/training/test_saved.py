"""A trained network taken up again."""

import csv
import io
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import Counted, Heard
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from spkd.data.load import load_data
from spkd.data.options import DataOptions, View
from spkd.data.stream import evaluation_batches
from spkd.errors import InputError
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.saved_model import load_classifier, save_classifier
from spkd.models.wrn import WideResNet
from spkd.training.evaluation import Evaluation
from spkd.training.options import Request, Runtime
from spkd.training.own_images import (
    data_to_evaluate_on,
    images_to_quantise_with,
    load_image,
    own_data,
    real_images,
    validation_images,
)
from spkd.training.progress import Display
from spkd.training.run import run
from spkd.training.run_folder import MARK
from spkd.training.saved import evaluate_saved
from spkd.training.setup import set_up


def test_a_run_remembers_its_images_and_options_go_over_them(teacher: Path, tmp_path: Path) -> None:
    assert own_data(teacher, {"data": None, "workers": None}) == DataOptions(data="digits")
    assert own_data(teacher, {"workers": 0}).workers == 0
    assert own_data(teacher, {"data": "cifar10", "data_root": "x"}) == DataOptions(data="cifar10", data_root="x")
    assert own_data(tmp_path, {"data": "digits"}) == DataOptions(data="digits")
    with pytest.raises(InputError, match="does not say which images it was trained on: name them by --data"):
        own_data(saved_for_three(tmp_path), {"workers": 0})
    with pytest.raises(InputError, match="holds no saved model"):
        own_data(tmp_path, {"workers": 0})
    with pytest.raises(InputError, match="there is no folder nowhere; give a run folder"):
        own_data("nowhere", {"workers": 0})
    with pytest.raises(InputError, match=r"Did you mean 'saved'\?$"):
        own_data(tmp_path / "save", {"workers": 0})


def test_a_network_of_grey_images_is_evaluated_on_a_folder_of_any(teacher: Path, tmp_path: Path) -> None:
    data = load_data(DataOptions())
    for place in range(len(data.test)):
        folder = tmp_path / "new" / data.classes[int(data.test.targets[place])]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(data.test.image(place)[0].numpy())
        image.convert("RGB" if place % 2 else "L").save(folder / f"{place}.png")

    def error(options: DataOptions, split: str) -> float:
        measured = evaluate_saved(teacher, options, split=split, teacher=None, accelerator="cpu")
        assert measured.images == 1000
        return measured.top1_error

    assert error(DataOptions(str(tmp_path / "new")), "all") == error(DataOptions(), "test")
    assert real_images(teacher, DataOptions(str(tmp_path / "new")), 4).shape == (4, 1, 8, 8)


def test_a_network_of_one_s_own_is_kept_with_its_classes_and_normalisation(teacher: Path, tmp_path: Path) -> None:
    kept = tmp_path / "models" / "kept"
    kept.mkdir(parents=True)
    (kept / ".DS_Store").write_bytes(b"\0")  # of a folder that was emptied in Finder
    weights = str(shutil.copy(teacher / "student" / "model.safetensors", tmp_path / "best.safetensors"))

    def measured(network: str, **given: str | None) -> Evaluation:
        return evaluate_saved(network, DataOptions(), split="test", teacher=None, accelerator="cpu", **given)

    spec = load_classifier(teacher).info.spec
    first = measured(spec, weights=weights, normalisation="0.3/0.2", save=str(kept))
    assert measured(str(kept)) == first
    info = load_classifier(kept).info
    assert (info.classes, info.normalisation.mean) == (tuple("0123456789"), (0.3,))
    with pytest.raises(InputError, match=r"--save .*kept already exists: give a new folder"):
        measured(spec, weights=weights, save=str(kept))
    with pytest.raises(InputError, match=r"is a saved model already; leave it out"):
        measured(str(kept), save=str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


WHOLE: dict[str, Any] = {"split": "all", "teacher": None, "accelerator": "cpu"}


def saved_for_three(folder: Path) -> Path:
    """Return the folder of an untrained network for the classes of :func:`three_classes`."""
    classes = ("class 0", "class 1", "class 2")
    info = ModelInfo("wrn-10-1", classes, 3, 8, Normalisation((0.5,), (0.5,)), "whole")
    save_classifier(Classifier(WideResNet(10, 1, num_classes=3), info).eval(), folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("large", [False, True])
def test_what_is_said_of_each_image_is_written(teacher: Path, tmp_path: Path, large: bool) -> None:
    network = load_classifier(teacher)
    numbers, side, kind = np.random.default_rng(0), *((200, "jpg") if large else (8, "png"))
    for place in range(30):
        folder = tmp_path / "new" / network.info.classes[place % 10]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (side, side), dtype=np.uint8)).save(folder / f"{place}.{kind}")
    options, out = DataOptions(str(tmp_path / "new")), tmp_path / "test.csv"
    measured = evaluate_saved(teacher, options, split="all", teacher=str(teacher), accelerator="cpu", out=str(out))
    header, *rows = csv.reader(out.read_text().splitlines())
    every = [f"p({name})" for name in network.info.classes]
    assert header == ["image", "label", "class", "probability", "teacher", *every]
    assert len(rows) == 30
    assert 100 * sum(label != said for _, label, said, *_ in rows) / 30 == pytest.approx(measured.top1_error)
    assert all(said == taught for _, _, said, _, taught, *_ in rows)
    assert {Path(row[0]) for row in rows} == {*(tmp_path / "new").rglob(f"*.{kind}")}
    likelihood = 0.0
    for name, label, said, share, _, *all_shares in rows:
        assert Path(name).parent.name == label
        with torch.no_grad():
            shares = network(load_image(name, network.info)).softmax(1)[0]
        assert float(share) == pytest.approx(float(shares.max()), abs=2e-4)
        assert list(map(float, all_shares)) == pytest.approx(shares.tolist(), abs=2e-4)
        likelihood += math.log(float(all_shares[network.info.classes.index(label)]))
        assert network.info.classes[int(shares.argmax())] == said
    assert measured.cross_entropy == pytest.approx(-likelihood / 30, rel=1e-5)


def test_areas_under_the_curve_are_measured_where_there_is_room(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    asked: dict[str, Any] = {"split": "val", "teacher": None, "accelerator": "cpu", "display": heard}
    assert all(one.area is None for one in evaluate_saved(teacher, DataOptions(), **asked).per_class)
    measured = evaluate_saved(teacher, DataOptions(), per_class=True, **asked)
    val, network = load_data(DataOptions()).val, load_classifier(teacher)
    images = torch.stack([val.image(place) for place in range(len(val))])
    with torch.no_grad():
        shares = network(images / 255).softmax(1)[:, 3].tolist()
    own, others = (
        [x for x, k in zip(shares, val.targets, strict=True) if (k == 3) == is_it] for is_it in (True, False)
    )
    above = sum(one > other for one in own for other in others)
    assert measured.per_class[3].area == pytest.approx(above / (len(own) * len(others)))
    heard.lines.clear()
    monkeypatch.setattr("spkd.training.ranking.ROOM", 8 * 297 * 10 - 1)
    assert all(one.area is None for one in evaluate_saved(teacher, DataOptions(), per_class=True, **asked).per_class)
    line = "AUC is not shown: 297 images have too many probabilities of 10 classes to rank them"
    assert line in heard.lines


def test_a_network_with_weights_is_not_the_run_in_a_folder_of_its_name(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher, tmp_path / "wrn-10-1")
    monkeypatch.chdir(tmp_path)
    assert data_to_evaluate_on("wrn-10-1", None, {"workers": 0}) == DataOptions(workers=0)
    assert data_to_evaluate_on("./wrn-10-1", "best.pt", {"workers": 0}) == DataOptions(workers=0)
    with pytest.raises(InputError, match=r"wrn-10-1 with best\.pt does not say which images .* name them by --data"):
        data_to_evaluate_on("wrn-10-1", "best.pt", {"workers": 0})
    assert data_to_evaluate_on("wrn-10-1", "best.pt", {"data": "x", "workers": None}) == DataOptions("x")


def test_the_runs_own_images_are_known_however_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    for place in (photos, other, tmp_path / "run"):
        place.mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        f"{MARK}\ndata: {photos}\ntrain_images: 30\nskip_bad_images: true\ngroups: p[0-9]\n"
    )
    monkeypatch.chdir(other)
    for named in ({"data": str(photos)}, {"data": "../photos"}, {"data": "photos", "data_root": str(tmp_path)}):
        found = own_data(tmp_path / "run", named)
        assert (found.data, found.train_images, found.skip_bad_images) == (named["data"], 30, True)
        assert found.groups == "p[0-9]"
        assert own_data(tmp_path / "run", {**named, "groups": "x"}).groups == "x"
    assert own_data(tmp_path / "run", {"data": str(other)}).train_images is None
    photos.rmdir()  # what is named now is where they have been moved to
    assert own_data(tmp_path / "run", {"data": str(other)}).train_images == 30


def test_images_that_were_moved_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"{MARK}\ndata: {tmp_path / 'photos'}\ntrain_images: 30\n")
    with pytest.raises(InputError, match=r"the images of .*run are no longer in .*photos: give --data to say where"):
        own_data(tmp_path / "run", {"data": None})
    assert own_data(tmp_path / "run", {"data": "elsewhere"}).data == "elsewhere"
    (tmp_path / "photos").mkdir()
    assert own_data(tmp_path / "run", {}).train_images == 30


def test_a_folder_neither_downloads_nor_has_pickles_read_by_itself(tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.yaml"
    config.parent.mkdir()
    config.write_text(f"{MARK}\ndata: cifar10\ndata_root: other\ndownload: true\nworkers: 99\ngrey: true\n")
    plain = DataOptions("cifar10", data_root="other", grey=True)
    assert own_data(tmp_path / "run", {}) == plain
    assert own_data(tmp_path / "run", {"data": "cifar10", "download": True}) == replace(plain, download=True)
    for named in ("cifar10?verify=false", "CIFAR-100?verify=False"):
        config.write_text(f"{MARK}\ndata: {named}\ndata_root: other\n")
        with pytest.raises(
            InputError, match=r"^the images of .*run, .* in other, are pickles .* by --data and --data_root$"
        ):
            own_data(tmp_path / "run", {"data": None})
        assert own_data(tmp_path / "run", {"data": named}) == DataOptions(named), "their place may be a stranger's"
        placed = {"data": named, "data_root": "mine"}
        assert own_data(tmp_path / "run", placed) == DataOptions(**placed)
    config.write_text(f"{MARK}\ndata: cifar10?verify=true\n")
    assert own_data(tmp_path / "run", {}).data == "cifar10?verify=true"


def test_the_splits_are_the_run_s(teacher: Path) -> None:
    result = json.loads((teacher / "result.json").read_text())
    for split, error, count in (("test", result["test_error"], 1000), ("val", result["val_error"], 297)):
        measured = evaluate_saved(teacher, DataOptions(), split=split, teacher=None, accelerator="cpu")
        assert measured.top1_error == pytest.approx(error)
        assert measured.images == count
    for split, count in (("train", 500), ("all", 1797)):
        measured = evaluate_saved(teacher, DataOptions(), split=split, teacher=None, accelerator="cpu")
        assert measured.images == count


def test_an_evaluation_shows_how_much_of_it_is_done(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, given = Counted(), {"split": "test", "teacher": None, "accelerator": "cpu"}
    measured = evaluate_saved(teacher, DataOptions(), **given, display=shown)
    assert shown.steps == [("evaluating", 1000), 256, 512, 768, 1000]
    assert evaluate_saved(teacher, DataOptions(), **given) == measured
    assert capsys.readouterr().err == ""


def test_at_most_ten_thousand_images_are_compared_evenly_spread(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = load_data(DataOptions()).val
    said: list[str] = []
    _, labelled, number = images_to_quantise_with(teacher, DataOptions(), said.append)
    assert (number, sum(len(targets) for _, targets in labelled), said) == (len(val), len(val), [])
    monkeypatch.setattr("spkd.training.own_images.COMPARED", 5)
    _, labelled, number = images_to_quantise_with(teacher, DataOptions(), said.append)
    pixels, targets = next(labelled)
    places = [0, 74, 148, 222, 296]
    assert (number, len(val)) == (5, 297)
    assert targets.tolist() == val.targets[places].tolist()
    assert torch.equal((255 * pixels).round().byte(), torch.stack([val.image(place) for place in places]))
    assert said == ["measured on 5 of the 297 validation images, evenly spread"]
    alone, number = validation_images(teacher, DataOptions(), said.append)
    (again, same), *more = alone
    assert (number, more, said[1:]) == (5, [], said[:1])
    assert torch.equal(again, pixels)
    assert torch.equal(same, targets)


def test_a_network_agrees_with_itself(teacher: Path) -> None:
    measured = evaluate_saved(teacher, DataOptions(), split="val", teacher=str(teacher), accelerator="cpu")
    assert measured.agreement == 100.0


def test_real_images_are_what_the_network_takes(teacher: Path) -> None:
    images = real_images(teacher, DataOptions(), 7)
    assert images.shape == (7, 1, 8, 8)
    assert 0 <= images.min() < images.max() <= 1


def test_the_real_images_are_of_all_classes(tmp_path: Path) -> None:
    for place in range(36):
        part, number, which = ("train", "val", "test")[place // 12], place // 4 % 3, place % 4
        folder = tmp_path / "data" / part / f"class {number}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 * number + which).save(folder / f"{which}.png")
    images = real_images(saved_for_three(tmp_path), DataOptions(str(tmp_path / "data")), 5)
    assert (255 * images[:, 0, 0, 0]).round().tolist() == [0, 3, 102, 200, 203]


def test_any_network_can_be_evaluated_with_its_weights(tiny: str, teacher: Path, tmp_path: Path) -> None:
    """As a teacher is, before it is asked for anything."""
    weights = tmp_path / "best.pt"
    torch.save({"state_dict": load_file(teacher / "student" / "model.safetensors")}, weights)
    own = load_classifier(teacher).info.normalisation
    said: list[str] = []
    measured = evaluate_saved(
        f"{tiny}?width=16",
        DataOptions(),
        split="test",
        teacher=None,
        accelerator="cpu",
        display=Heard(said),
        weights=str(weights),
        normalisation=f"{own.mean[0]}/{own.std[0]}",
    )
    assert measured.top1_error == pytest.approx(json.loads((teacher / "result.json").read_text())["test_error"])
    with pytest.raises(InputError, match="Tiny seems to have random weights: give --weights"):
        evaluate_saved(tiny, DataOptions(), split="test", teacher=None, accelerator="cpu", display=Heard(said))
    with pytest.raises(InputError, match=r"with .*best\.pt has 10 classes, three has 3"):
        evaluate_saved(
            f"{tiny}?width=16",
            DataOptions(str(three_classes(tmp_path / "three"))),
            split="test",
            teacher=None,
            accelerator="cpu",
            display=Heard(said),
            weights=str(weights),
        )
    with pytest.raises(InputError, match="is a saved model and brings its own"):
        evaluate_saved(
            teacher,
            DataOptions(),
            split="test",
            teacher=None,
            accelerator="cpu",
            display=Heard(said),
            normalisation="imagenet",
        )


def test_a_file_of_weights_is_shown_what_the_library_s_own_are_unless_its_size_is_given(tmp_path: Path) -> None:
    options = DataOptions(str(three_classes(tmp_path / "three")))
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "best.pt")
    for size in (None, 160, 24):
        heard = Heard()
        evaluate_saved(
            "timm/test_resnet",
            replace(options, image_size=size),
            **{**WHOLE, "display": heard, "weights": str(tmp_path / "best.pt")},
        )
        line = "these weights do not say their image size; timm's own are for 160 × 160 pixels; if they were "
        assert (f"{line}trained at another size, give --image_size" in heard.lines) == (size is None)


def test_weights_are_evaluated_with_the_view_that_is_told_beside_them(tmp_path: Path) -> None:
    data = three_classes(tmp_path / "three", height=15)  # of which the centre would be seen
    classes = ("class 0", "class 1", "class 2")
    torch.manual_seed(0)
    info = ModelInfo("wrn-10-1", classes, 3, 8, Normalisation((0.5,), (0.25,)), "whole")
    save_classifier(Classifier(WideResNet(10, 1, num_classes=3), info), tmp_path / "saved")
    weights = str(tmp_path / "saved" / "model.safetensors")
    measured = [
        evaluate_saved(
            network, DataOptions(str(data)), split="all", teacher=None, accelerator="cpu", weights=given
        ).cross_entropy
        for network, given in ((str(tmp_path / "saved"), None), ("wrn-10-1", weights))
    ]
    assert measured[0] == measured[1]
    classifier = load_classifier(tmp_path / "saved").eval()
    targets = torch.tensor([int(path.parent.name[-1]) for path in data.rglob("*.png")])
    whole = torch.stack([resize(picture, [8, 8], antialias=True) for picture in read(data)]) / 255
    centre = torch.stack([center_crop(resize(picture, [9], antialias=True), [8, 8]) for picture in read(data)]) / 255
    with torch.no_grad():
        expected, other = (F.cross_entropy(classifier(images), targets).item() for images in (whole, centre))
    assert measured[0] == pytest.approx(expected, rel=1e-5)
    assert measured[0] != pytest.approx(other, rel=1e-3)
    given = real_images(tmp_path / "saved", DataOptions(str(data)), 30)
    assert ((given[:, None] - whole).abs().amax((2, 3, 4)) < 1e-6).any(1).all()


def read(folder: Path) -> list[Tensor]:
    return [
        torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in folder.rglob("*.png")
    ]


def three_classes(folder: Path, height: int = 12) -> Path:
    for number in range(30):
        place = folder / f"class {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (height, 12), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(place / f"{number}.png")
    return folder


def test_what_is_evaluated_is_said(tiny: str, teacher: Path, tmp_path: Path) -> None:
    """A folder without splits is divided, so that the errors are those of a part."""
    saved = shutil.copytree(teacher / "student", tmp_path / "saved")
    description = json.loads((saved / "model.json").read_text())
    description |= {"image_size": 16, "answer": None}
    (saved / "model.json").write_text(json.dumps(description))
    said: list[str] = []
    evaluate_saved(teacher, DataOptions(), split="val", teacher=str(saved), accelerator="cpu", display=Heard(said))
    assert said == ["warning: the teacher was made for images of 16 × 16 pixels, but is shown 8 × 8"]
    data = three_classes(tmp_path / "three")
    notes = load_data(DataOptions(str(data))).notes
    said.clear()
    with pytest.raises(InputError, match="the network knows 10 classes, three has 3"):
        evaluate_saved(
            teacher, DataOptions(str(data)), split="test", teacher=None, accelerator="cpu", display=Heard(said)
        )
    assert said == list(notes)
    assert any("test" in note for note in said)


@pytest.mark.parametrize("height", [12, 15])
@pytest.mark.parametrize("view", ["whole", "centre", None])
def test_images_are_seen_as_the_model_was_made_to_see_them(height: int, view: str | None, tmp_path: Path) -> None:
    """And a single one as those of a data set, whatever the others in it are."""
    data = load_data(DataOptions(str(three_classes(tmp_path / "three", height))))
    assert data.view == ("whole" if height == 12 else "centre")

    def seen(view: str | None) -> Tensor:
        (images, _), *_ = evaluation_batches(
            data.val, image_size=8, batch_size=64, device=torch.device("cpu"), view=view
        )
        return images

    assert torch.equal(seen(None), seen(data.view))
    assert not torch.equal(seen("whole"), seen("centre"))
    info = ModelInfo("wrn-10-1", ("a", "b", "c"), 3, 8, Normalisation((0.5,), (0.5,)), view)
    alone = [load_image(path, info) for path in (tmp_path / "three").rglob("*.png")]
    for image in seen(view):
        assert sum(torch.equal(one[0], image) for one in alone) == 1


def test_a_large_square_jpeg_is_not_taken_for_a_small_one(tmp_path: Path) -> None:
    """Though it is read no larger than one."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((200, 200)).save(tmp_path / "a.jpg")
    info = ModelInfo("wrn-10-1", ("a", "b"), 3, 8, Normalisation((0.5,), (0.5,)), None)
    image = load_image(tmp_path / "a.jpg", info)
    assert torch.equal(image, load_image(tmp_path / "a.jpg", replace(info, view="centre")))
    assert not torch.equal(image, load_image(tmp_path / "a.jpg", replace(info, view="whole")))


@pytest.mark.parametrize("view", [None, "whole"])
def test_a_picture_that_is_open_already_is_the_same(tmp_path: Path, view: View | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).resize((300, 200)).save(tmp_path / "a.jpg", exif=exif)
    info = ModelInfo("wrn-10-1", ("a", "b"), 3, 8, Normalisation((0.5,), (0.5,)), view)
    expected = load_image(tmp_path / "a.jpg", info)
    memory = io.BytesIO((tmp_path / "a.jpg").read_bytes())
    with (tmp_path / "a.jpg").open("rb") as file:
        assert torch.equal(load_image(file, info), expected)
        assert torch.equal(load_image(memory, info), expected)
        assert torch.equal(load_image(memory, info), expected)  # from its beginning again
        assert not file.closed
    with Image.open(tmp_path / "a.jpg") as image:
        shown = load_image(image, info)
        assert image.size == (300, 200)
        assert image.getexif()[0x0112] == 6
    # Read whole, and not at a part of its size.
    torch.testing.assert_close(shown, expected, rtol=0, atol=0.05)

    class Pipe(io.RawIOBase):
        """As what comes over a network: it goes forward only."""

        def __init__(self) -> None:
            self.rest = io.BytesIO((tmp_path / "a.jpg").read_bytes())

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.rest.readinto(buffer)

    assert torch.equal(load_image(io.BufferedReader(Pipe()), info), expected)
    with pytest.raises(InputError, match=r"^image in memory cannot be read \(not an image"):
        load_image(io.BytesIO(b"no picture"), info)


@pytest.mark.parametrize("view", [None, "centre"])
def test_a_single_picture_that_cannot_be_read_is_not_to_be_left_out(tmp_path: Path, view: View | None) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    info = ModelInfo("wrn-10-1", ("a", "b"), 3, 8, Normalisation((0.5,), (0.5,)), view)
    for name in ("a.png", "missing.png"):
        with pytest.raises(InputError, match=rf"^image {tmp_path}/{name} cannot be read \([^)]*\)$"):
            load_image(tmp_path / name, info)


def test_new_images_of_some_classes_are_evaluated_whole(tmp_path: Path) -> None:
    """Even a single image of one class, which could not be divided."""
    folder = three_classes(tmp_path / "three")
    info = ModelInfo(
        "wrn-10-1", tuple(f"class {place}" for place in range(4)), 3, 8, Normalisation((0.5,), (0.5,)), "whole"
    )
    torch.manual_seed(0)
    network = Classifier(WideResNet(10, 1, num_classes=4), info).eval()
    save_classifier(network, tmp_path / "saved")
    said: list[str] = []

    def measured(split: str) -> Evaluation:
        said.clear()
        return evaluate_saved(
            tmp_path / "saved",
            DataOptions(str(folder)),
            split=split,
            teacher=None,
            accelerator="cpu",
            display=Heard(said),
        )

    shutil.rmtree(folder / "class 0")
    for name in sorted(path.name for path in (folder / "class 1").iterdir())[1:]:
        (folder / "class 1" / name).unlink()
    with pytest.raises(InputError, match=r"to be split between 3 sets: 'class 1' \(1\); add images"):
        measured("test")
    found = measured("all")
    assert said == ["three has images of 2 of the 4 classes that the network knows"]
    paths = [(path, int(path.parent.name[-1])) for path in sorted(folder.rglob("*.png"))]
    with torch.no_grad():
        logits = torch.cat([network(load_image(path, info)) for path, _ in paths])
    targets = torch.tensor([target for _, target in paths])
    assert found.images == len(paths) == 11
    assert found.cross_entropy == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert found.top1_error == pytest.approx(100 * (logits.argmax(1) != targets).double().mean().item())
    assert [one.images for one in found.per_class] == [0, 1, 10, 0]
    shutil.rmtree(folder / "class 2")
    assert measured("all").images == 1
    (folder / "class 1").rename(folder / "zebra")
    with pytest.raises(InputError, match="the network knows 4 classes, three has 1"):
        measured("all")


def test_a_network_that_fails_on_the_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\nclass Own(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head = torch.nn.Linear(64, 10)\n\n    def forward(self, images):\n"
        "        assert len(images) < 9, 'too many'\n        return self.head(images.flatten(1)[:, :64])\n"
    )
    torch.save(torch.nn.ModuleDict({"head": torch.nn.Linear(64, 10)}).state_dict(), tmp_path / "best.pt")
    spec, weights = f"{tmp_path}/own.py:Own", str(tmp_path / "best.pt")
    line = r"model: it fails on images of 1 × 8 × 8: AssertionError: too many$"
    with pytest.raises(InputError, match=line):
        evaluate_saved(spec, DataOptions(), split="test", teacher=None, accelerator="cpu", weights=weights)


@pytest.mark.parametrize(
    ("split", "other", "expected"), [("testing", None, "--split must be"), ("test", "nowhere", "no saved model")]
)
def test_mistakes_are_one_line(teacher: Path, split: str, other: str | None, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        evaluate_saved(teacher, DataOptions(), split=split, teacher=other, accelerator="cpu")


@pytest.mark.parametrize(
    "given",
    [{"split": "tset"}, {"teacher": "nowhere"}, {"weights": "bset.pt"}, {"weights": "whole.pt"}, {"weights": None}],
)
def test_what_needs_no_images_is_refused_before_they_are_read(
    tiny: str, given: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("spkd.training.saved.load_data", read)
    monkeypatch.setattr("spkd.training.setup.load_data", read)
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(1, 1), "whole.pt")
    options = {"split": "test", "teacher": None, **given}
    network = "wrn-10-1" if "weights" in given else tiny
    with pytest.raises(InputError):
        evaluate_saved(network, DataOptions(), accelerator="cpu", **{"weights": "pretrained", **options})
    if given.get("weights") is not None:
        for request in (
            Request(network, given["weights"]),
            Request(network, teacher=network, teacher_weights=given["weights"], method="sp"),
        ):
            with pytest.raises(InputError):
                set_up(request)


def test_what_is_written_makes_no_class_of_its_folder(teacher: Path, tmp_path: Path) -> None:
    folder, weights = three_classes(tmp_path / "three"), str(teacher / "student" / "model.safetensors")
    options = DataOptions(str(folder))
    for given in ({"out": "results/said.csv"}, {"out": "class 0/said.csv"}, {"save": "model", "weights": weights}):
        places = {name: str(folder / place) if name != "weights" else place for name, place in given.items()}
        with pytest.raises(InputError, match=r"lies inside --data .*, in a folder that would be taken for a class"):
            evaluate_saved("wrn-10-1" if "weights" in given else teacher, options, **WHOLE, **places)
    assert sorted(path.name for path in folder.iterdir()) == ["class 0", "class 1", "class 2"]


def test_names_that_cannot_be_written_are_told_before_the_evaluation(tmp_path: Path) -> None:
    network, folder = saved_for_three(tmp_path), three_classes(tmp_path / "three")
    next((folder / "class 1").iterdir()).rename(folder / "class 1" / os.fsdecode(b"F\xfc.png"))
    with pytest.raises(InputError, match=r"^--out: the name of the image '.*F\\udcfc\.png' is not UTF-8; rename it$"):
        evaluate_saved(network, DataOptions(str(folder)), **WHOLE, out=str(tmp_path / "said.csv"))
    assert evaluate_saved(network, DataOptions(str(folder)), **WHOLE).images == 30


def test_only_the_teacher_that_taught_is_agreed_with(tiny: str, teacher: Path, tmp_path: Path) -> None:
    student, own = tmp_path / "run", tmp_path / "teacher"
    shutil.copytree(teacher, own)
    request = Request(tiny, teacher=str(own), method="kd", overrides={"epochs": 1})
    assert run(request, student, Runtime(accelerator="cpu"), Display()) is not None
    said: list[str] = []

    def agreement() -> float | None:
        said.clear()
        options = {"split": "val", "teacher": None, "accelerator": "cpu"}
        return evaluate_saved(student, DataOptions(), **options, display=Heard(said)).agreement

    assert agreement() is not None
    assert said == []
    config = student / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("teacher_weights: null", "teacher_weights: better.pt"))
    assert agreement() is None
    config.write_text(before)
    (own / "student" / "model.safetensors").unlink()
    assert agreement() is None
    assert len(said) == 1
    assert said[0].startswith("agreement with the teacher is not measured: ")


def test_size_and_view_that_are_asked_for_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, folder = saved_for_three(tmp_path), three_classes(tmp_path / "three", height=15)
    shown: list[Any] = []

    def watched(images: Any, **how: Any) -> Any:
        shown.append((how["image_size"], how["view"]))
        return evaluation_batches(images, **how)

    monkeypatch.setattr("spkd.training.batches.evaluation_batches", watched)
    for given in ({}, {"image_size": 12}, {"view": "centre"}):
        evaluate_saved(network, DataOptions(str(folder), **given), **WHOLE)
    assert shown == [(8, "whole"), (12, "whole"), (8, "centre")]


@pytest.mark.parametrize(("ending", "warned"), [("Softmax", True), ("LogSoftmax", False)])
def test_probabilities_in_the_place_of_logits_are_warned_of(ending: str, warned: bool, tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n\n\ndef make(num_classes):\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.{ending}(1))\n"
    )
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.save(network.state_dict(), tmp_path / "best.pt")
    said: list[str] = []
    evaluate_saved(
        f"{source}:make",
        DataOptions(),
        split="test",
        teacher=None,
        accelerator="cpu",
        display=Heard(said),
        weights=str(tmp_path / "best.pt"),
        normalisation="none",
    )
    assert (
        any(line.startswith("warning: the network returns probabilities instead of logits") for line in said) == warned
    )
