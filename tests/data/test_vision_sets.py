import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from spkd.data.images import FileImages, MemoryImages
from spkd.data.vision_sets import VISION_SETS, load_vision_set
from spkd.errors import InputError
from spkd.files import locked

BY_TRAIN = {"train": True}, None, {"train": False}
IN_TWO, IN_THREE = [({"split": "train"}, val, {"split": "test"}) for val in (None, {"split": "val"})]
SETS = {
    "cifar10": (*BY_TRAIN, True),
    "cifar100": (*BY_TRAIN, True),
    "country211": ({"split": "train"}, {"split": "valid"}, {"split": "test"}, True),
    "dtd": (*IN_THREE, True),
    "eurosat": ({}, None, None, True),
    "fashionmnist": (*BY_TRAIN, True),
    "fgvcaircraft": (*IN_THREE, True),
    "flowers102": (*IN_THREE, True),
    "food101": (*IN_TWO, True),
    "gtsrb": (*IN_TWO, False),
    "imagenette": ({"split": "train"}, None, {"split": "val"}, True),
    "kmnist": (*BY_TRAIN, False),
    "mnist": (*BY_TRAIN, False),
    "oxfordiiitpet": ({"split": "trainval"}, None, {"split": "test"}, True),
    "stanfordcars": (*IN_TWO, True),
    "stl10": (*IN_TWO, True),
    "sun397": ({}, None, None, True),
    "svhn": (*IN_TWO, False),
}
"""What makes torchvision give training, validation and test images; whether those and their mirror images are of one
class: letters, digits and road signs are not."""


def write_cifar10(root, per_batch=20):
    """Write CIFAR-10's files with few images: image i is of class i % 10, its first pixel says so."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = generator.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = [place % 10 for place in range(per_batch)]
        data[:, 0], data[:, 1024], data[:, 2048] = labels, 100, 200  # the first pixel's red, green, blue
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))


def write_dtd(root, images=6):
    """Write DTD's layout with two classes: partitions 1 and 2, each split with its own images, the second turned."""
    for label, level in (("banded", 10), ("dotted", 240)):
        (root / "dtd/dtd/images" / label).mkdir(parents=True)
        for number in range(3 * images):
            name = root / "dtd/dtd/images" / label / f"{label}_{number:04d}.jpg"
            Image.new("RGB", (120 + number, 100), (level,) * 3).save(name)
    labels = root / "dtd/dtd/labels"
    labels.mkdir()
    for place, split in enumerate(("train", "val", "test")):
        numbers = range(place * images, (place + 1) * images)
        lines = [f"{label}/{label}_{number:04d}.jpg" for label in ("banded", "dotted") for number in numbers]
        (labels / f"{split}1.txt").write_text("\n".join(lines) + "\n")
        (labels / f"{('test', 'train', 'val')[place]}2.txt").write_text("\n".join(lines) + "\n")


def test_cifar10(tmp_path):
    write_cifar10(tmp_path)
    data = load_vision_set("cifar10", tmp_path, arguments={"verify": False})
    assert data.name == "cifar10?verify=false"
    assert (len(data.train), len(data.val), len(data.test)) == (90, 10, 20)
    assert torch.bincount(data.val.targets).tolist() == [1] * 10
    assert (data.native_size, data.channels, data.flip) == (32, 3, True)
    assert data.classes[3] == "class 3"
    for part in (data.train, data.val, data.test):
        assert isinstance(part, MemoryImages)
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), part.targets)
        assert part.pixels[:, 1:, 0, 0].unique(dim=0).tolist() == [[100, 200]]
    seen = data.train.pixels.numpy() / 255
    assert data.normalisation_mean == pytest.approx(seen.mean((0, 2, 3)), abs=5.1e-5)
    assert data.normalisation_std == pytest.approx(seen.std((0, 2, 3)), abs=5.1e-5)


def test_dtd(tmp_path):
    write_dtd(tmp_path)
    data = load_vision_set("dtd", tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 12)
    assert data.classes == ("banded", "dotted")
    assert data.notes == ()
    assert isinstance(data.train, FileImages)
    assert [int(data.test.image(i).float().mean() > 128) for i in range(12)] == data.test.targets.tolist()


def test_a_partition_of_dtd(tmp_path):
    write_dtd(tmp_path)
    first, second = (load_vision_set("dtd", tmp_path, arguments={"partition": number}) for number in (1, 2))
    assert (first.name, second.name) == ("dtd?partition=1", "dtd?partition=2")
    assert second.train.paths == first.val.paths
    assert second.test.paths == first.train.paths


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dtd", {"partition": 11}, "partition of dtd must be from 1 to 10, got 11"),
        ("dtd", {"partition": True}, "from 1 to 10, got True"),
        ("dtd", {"partitoin": 1}, "no argument 'partitoin'; it takes partition. Did you mean 'partition'"),
        ("dtd", {"verify": False}, "dtd has no argument 'verify'"),
        ("cifar100", {"verify": 1}, "verify of cifar100 must be true or false, got 1"),
        ("mnist", {"partition": 1}, "it takes no argument"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, name, arguments, message):
    with pytest.raises(InputError) as raised:
        load_vision_set(name, tmp_path, arguments=arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_images_of_a_set_can_be_left_out(tmp_path):
    write_dtd(tmp_path)
    (tmp_path / "dtd/dtd/images/banded/banded_0001.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"^image [^\n]*banded_0001\.jpg cannot be read[^\n]*$"):
        load_vision_set("dtd", tmp_path)
    data = load_vision_set("dtd", tmp_path, skip_bad_images=True)
    assert len(data.train) == 11
    assert len(data.notes) == 1


def test_mnist(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = np.repeat(labels, 28 * 28)
        sizes = b"".join(int(size).to_bytes(4, "big") for size in (count, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03" + sizes + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01" + sizes[:4] + labels.tobytes())
    data = load_vision_set("mnist", tmp_path)
    assert (data.channels, data.native_size, data.flip) == (1, 28, False)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    assert torch.equal(data.val.pixels[:, 0, 5, 5].long(), data.val.targets)


def test_eurosat_is_split_and_kept_in_memory(tmp_path):
    for label in ("Forest", "River"):
        (tmp_path / "eurosat/2750" / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (64, 64)).save(tmp_path / "eurosat/2750" / label / f"{number}.jpg")
    data = load_vision_set("eurosat", tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (28, 6, 6)
    assert (data.native_size, data.classes) == (64, ("Forest", "River"))


def test_gtsrb_without_class_names(tmp_path):
    base = tmp_path / "gtsrb"
    for label in range(2):
        (base / f"GTSRB/Training/{label:05d}").mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (30 + number, 40)).save(base / f"GTSRB/Training/{label:05d}/{number}.ppm")
    (base / "GTSRB/Final_Test/Images").mkdir(parents=True)
    Image.new("RGB", (30, 40)).save(base / "GTSRB/Final_Test/Images/00000.ppm")
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    data = load_vision_set("gtsrb", tmp_path)
    assert data.classes == ("0", "1")
    assert data.test.targets.tolist() == [1]


@pytest.mark.parametrize("name", sorted(VISION_SETS))
def test_a_missing_set_says_what_where_and_how(tmp_path, name):
    with pytest.raises(InputError) as raised:
        load_vision_set(name, tmp_path)
    line = str(raised.value)
    assert "\n" not in line
    for part in (name, str(tmp_path), "nothing is there", "--data_root", "--download"):
        assert part in line


def test_every_set_is_known():
    assert set(VISION_SETS) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_set_s_splits_are_those_of_torchvision(name, tmp_path):
    of_set, (*splits, flip) = VISION_SETS[name], SETS[name]
    assert [of_set.train, of_set.val, of_set.test, of_set.flip] == [*splits, flip]
    given = [arguments for arguments in splits if arguments is not None]
    assert all(one != other for one, other in itertools.combinations(given, 2))
    for arguments in given:
        with pytest.raises(RuntimeError, match="not found"):  # of arguments that it does not take, another error
            getattr(datasets, of_set.class_name)(tmp_path, **arguments)


def test_a_damaged_set_is_one_line(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match=r"^data: cifar10 could not be loaded, [^\n]+--download$"):
        load_vision_set("cifar10", tmp_path, arguments={"verify": False})


def test_wrong_checksums_are_told(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(InputError, match=r"^data: cifar10 could not be loaded, [^\n]+corrupted[^\n]+$"):
        load_vision_set("cifar10", tmp_path)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch, capsys):
    def no_network(self):
        print("Downloading")
        raise OSError("Network is unreachable")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    with pytest.raises(InputError, match=r"^data: cifar10 could not be downloaded [^\n]+unreachable[^\n]+$"):
        load_vision_set("cifar10", tmp_path, download=True)
    assert capsys.readouterr().out == ""


def test_one_process_at_a_time_downloads(tmp_path, monkeypatch):
    def download(self):
        with pytest.raises(InputError, match="another process is at work"), locked(tmp_path, wait=False):
            pass
        raise OSError("tried")

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    with pytest.raises(InputError, match="tried"):
        load_vision_set("cifar10", tmp_path, download=True)
    with locked(tmp_path, wait=False), pytest.raises(InputError, match="nothing is there"):
        load_vision_set("cifar10", tmp_path)


def test_a_set_that_is_there_needs_no_place_to_write(tmp_path, monkeypatch):
    def refuse(folder, wait):
        raise InputError("cannot write there")

    asked = []

    class Dataset:
        def __init__(self, root, download, **_):
            asked.append(download)
            raise OSError("not there")

    monkeypatch.setattr("spkd.data.vision_sets.locked", refuse)
    monkeypatch.setattr(datasets, "CIFAR10", Dataset)
    with pytest.raises(InputError, match="not there"):
        load_vision_set("cifar10", tmp_path, download=True)
    assert asked == [False]
