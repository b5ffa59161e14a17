from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import spkd
from spkd.errors import InputError
from spkd.models.build import build_model
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.saved_model import description_digest, load_classifier, read_info, save_classifier, save_model
from spkd.models.weights_source import model_defaults
from spkd.models.wrn import WideResNet
from spkd.training.run_folder import RunFolder

HALF = Normalisation((0.5,), (0.25,))

OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.again = self.conv
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images):
        return {"logits": self.head(self.norm(self.conv(images)).mean((2, 3)))}

def fixed():
    return Own(4)
"""


class Small(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


def info(channels: int) -> ModelInfo:
    return ModelInfo("own", ("a", "b"), channels, 8, HALF)


@pytest.mark.parametrize(
    ("spec", "channels", "size"),
    [
        ("wrn-10-1", 1, 8),
        ("timm/test_resnet?in_chans=1&drop_rate=0.1", 1, 32),
        ("timm/test_vit", 3, 64),
        ("torchvision/shufflenet_v2_x0_5", 3, 32),
        ("torchvision/mnasnet0_5", 3, 32),
        ("own.py:Own", 3, 8),
        ("own.py:fixed", 3, 8),
    ],
)
def test_comes_back_bit_for_bit_from_another_folder(
    spec: str, channels: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    built = build_model(
        spec,
        classes=["a", "b", "ç", "d"],
        channels=channels,
        image_size=size,
        normalisation=Normalisation((1 / 3,), (0.1 + 0.2,)),
    )
    classifier = built.classifier
    images = torch.rand(4, channels, size, size)
    classifier(images)
    save_classifier(classifier, tmp_path / "run" / "student")
    monkeypatch.chdir(tmp_path / "run")
    forbid_downloads(monkeypatch)
    random_state = torch.get_rng_state()
    for folder in (tmp_path / "run", tmp_path / "run" / "student"):
        loaded = load_classifier(folder)
        assert not loaded.training
        assert loaded.info == classifier.info
        before, after = classifier.state_dict(), loaded.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        with torch.no_grad():
            assert torch.equal(loaded(images), classifier.eval()(images))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert sorted(path.name for path in (tmp_path / "run" / "student").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def wrn(folder: Path) -> Classifier:
    built = build_model("wrn-10-1", classes=["a", "b"], channels=1, image_size=8, normalisation=HALF)
    save_classifier(built.classifier, folder)
    return built.classifier


def test_saves_a_compiled_network_under_its_own_names(tmp_path: Path) -> None:
    classifier = wrn(tmp_path / "plain")
    classifier.network = torch.compile(classifier.network)  # type: ignore[assignment]
    save_classifier(classifier, tmp_path / "compiled")
    names = [set(load_file(tmp_path / kind / "model.safetensors")) for kind in ("plain", "compiled")]
    assert names[0] == names[1]
    assert "fc.weight" in names[0]


def test_is_the_packages_load_model(tmp_path: Path) -> None:
    classifier = wrn(tmp_path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(spkd.load_model(str(tmp_path))(images), classifier.eval()(images))


def test_says_why_nothing_can_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_classifier(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no saved model"):
        load_classifier(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="--resume"):
        load_classifier(tmp_path)


def test_says_which_file_is_damaged(tmp_path: Path) -> None:
    wrn(tmp_path / "good")

    def damaged(name: str) -> Path:
        shutil.copytree(tmp_path / "good", tmp_path / name)
        return tmp_path / name

    folder = damaged("not_json")
    (folder / "model.json").write_text("{")
    with pytest.raises(InputError, match=r"model.json does not describe"):
        load_classifier(folder)
    folder = damaged("no_spec")
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, "spec": "wrn-16-1"}))
    with pytest.raises(InputError, match=r"model.safetensors and wrn-16-1 do not fit each other: \d+ missing"):
        load_classifier(folder)
    (folder / "model.json").write_text(json.dumps({**content, "view": "half"}))
    with pytest.raises(InputError, match="does not describe a saved model: view: expected 'whole' or 'centre'"):
        load_classifier(folder)
    del content["classes"]
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="it lacks 'classes'"):
        load_classifier(folder)
    folder = damaged("cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(InputError, match="truncated"):
        load_classifier(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="does not exist"):
        load_classifier(folder)


@pytest.mark.parametrize(
    "where", ["os", "os.path", "subprocess", "builtins", "posix", os.__file__, f"moved{os.__file__}"]
)
def test_what_belongs_to_python_is_not_called(where: str, tmp_path: Path) -> None:
    wrn(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    spec = f"{where}:system?command=touch {tmp_path / 'called'}"
    (tmp_path / "model.json").write_text(json.dumps({**content, "spec": spec}))
    named = where.removeprefix("moved")
    line = rf"^\S+ does not describe a saved model: its spec '{named}:[^\n]+' names no network [^\n]+$"
    for use in (load_classifier, read_info, lambda folder: model_defaults(str(folder), None)):
        with pytest.raises(InputError, match=line):
            use(tmp_path)
    with pytest.raises(InputError, match=line):
        build_model(str(tmp_path), classes=None, channels=1, image_size=8, normalisation=HALF)
    assert not (tmp_path / "called").exists()


def test_a_home_that_nobody_has_is_one_line(tmp_path: Path) -> None:
    wrn(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**content, "spec": "~no.such.user/net.py:Net"}))
    with pytest.raises(InputError, match=r"does not describe a saved model: [^\n]*home[^\n]*$"):
        load_classifier(tmp_path)


def test_says_when_the_users_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text(OWN)
    built = build_model(f"{tmp_path}/gone.py:Own", classes=["a", "b"], channels=3, image_size=8, normalisation=HALF)
    save_classifier(built.classifier, tmp_path / "saved")
    (tmp_path / "gone.py").unlink()
    with pytest.raises(InputError, match=r"gone\.py was not found"):
        load_classifier(tmp_path / "saved")


def saved_own(folder: Path) -> str:
    """Save a network of a user's file beside that, with weights that matter, and return its spec."""
    (folder / "own.py").write_text(OWN)
    torch.manual_seed(0)
    spec = f"{folder}/own.py:Own"
    built = build_model(spec, classes=["a", "b"], channels=3, image_size=8, normalisation=HALF)
    built.classifier(torch.rand(4, 3, 8, 8))
    save_classifier(built.classifier, folder / "saved")
    return spec


@pytest.mark.parametrize(
    ("before", "after", "noticed"),
    [
        ("self.norm(self.conv(images))", "self.norm(self.conv(images)).relu()", True),
        ("nn.Conv2d(3, 6, 3)", "nn.Conv2d(3, 6, 3, stride=2, padding=5)", True),
        (".mean((2, 3))", ".amax((2, 3))", True),
        ("class Own(nn.Module):", "# A remark.\nclass Own(nn.Module):", False),
        (".mean((2, 3))", ".mean(3).mean(2)", False),
    ],
)
def test_code_that_answers_otherwise_than_when_it_was_saved_is_noticed(
    before: str, after: str, noticed: bool, tmp_path: Path
) -> None:
    spec = saved_own(tmp_path)
    (tmp_path / "own.py").write_text(OWN.replace(before, after))

    def build() -> None:
        build_model(str(tmp_path / "saved"), classes=["a", "b"], channels=3, image_size=8, normalisation=HALF)

    for load in (lambda: load_classifier(tmp_path / "saved"), build):
        if noticed:
            with pytest.raises(InputError, match=r"own\.py:Own answers otherwise now than when it was saved"):
                load()
        else:
            load()
    # The weights alone may be put into anything that they fit.
    weights = str(tmp_path / "saved" / "model.safetensors")
    build_model(spec, classes=["a", "b"], channels=3, image_size=8, normalisation=HALF, weights=weights)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 99}, "its format is 99, and this version reads 1"),
        ({"image_size": 0}, "image_size: expected 1 to 65536, got 0"),
        ({"image_size": 1e999}, "image_size: expected a whole number, got inf"),
        ({"classes": "ab"}, "classes: expected a list of the classes' names"),
        ({"normalisation": {"mean": 0.5, "std": [1]}}, "a number for each channel as mean, got 0.5"),
        ({"classes": ["a"]}, "model.json names 1 classes, and the network has another head"),
    ],
)
def test_a_description_that_was_edited_is_one_line(changed: dict[str, object], said: str, tmp_path: Path) -> None:
    saved_own(tmp_path)
    (tmp_path / "own.py").write_text(OWN.replace("nn.Linear(6, num_classes)", "nn.Linear(6, 2)"))
    description = tmp_path / "saved" / "model.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), **changed}))
    with pytest.raises(InputError, match=said) as caught:
        load_classifier(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_a_model_without_a_kept_answer_loads(tmp_path: Path) -> None:
    saved_own(tmp_path)
    (tmp_path / "own.py").write_text(OWN.replace(".mean((2, 3))", ".amax((2, 3))"))
    description = tmp_path / "saved" / "model.json"
    content = json.loads(description.read_text())
    assert len(content.pop("answer")) == 2
    description.write_text(json.dumps(content))
    load_classifier(tmp_path / "saved")


def test_a_network_that_answers_at_random_keeps_no_answer(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        OWN.replace("self.conv(images)", "self.conv(images + images.new_ones(()).normal_())")
    )
    spec = f"{tmp_path}/own.py:Own"
    built = build_model(spec, classes=["a", "b"], channels=3, image_size=8, normalisation=HALF)
    random_state = torch.get_rng_state()
    save_classifier(built.classifier, tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert json.loads((tmp_path / "saved" / "model.json").read_text())["answer"] is None
    load_classifier(tmp_path / "saved")


class Loop(nn.Module):
    """What a user has trained, wrapped as by a data-parallel module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_network_of_a_loop_of_one_s_own_is_saved_for_every_command(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:Own"
    network = build_model(spec, classes=["a", "b"], channels=3, image_size=8, normalisation=HALF).classifier.network
    network(torch.rand(4, 3, 8, 8))
    told = spkd.ModelInfo(spec, ("cat", "dog"), 3, 8, spkd.Normalisation((0.1, 0.2, 0.3), (0.5,) * 3), "whole")
    spkd.save_model(Loop(network), tmp_path / "saved", told)
    loaded = spkd.load_model(tmp_path / "saved")
    assert loaded.info == told
    images = torch.rand(2, 3, 8, 8)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        expected = network.eval()((images - mean) / 0.5)["logits"]
        assert torch.equal(loaded(images), expected)
        spkd.save_model(loaded, tmp_path / "again")
        assert torch.equal(spkd.load_model(tmp_path / "again")(images), expected)


def test_a_network_is_saved_whole_and_nothing_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that calls its only part as wrappers do, in a wrapper."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    def forward(self, images):\n"
        "        return 2 * self.network(images)\n"
    )
    monkeypatch.chdir(tmp_path)
    plain = Normalisation((0.0,), (1.0,))
    network = build_model("net.py:Net", classes=None, channels=3, image_size=8, normalisation=plain).classifier.network
    spkd.save_model(Loop(network), "saved", ModelInfo("net.py:Net", ("a", "b"), 3, 8, plain))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # from where net.py is not to be found
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(spkd.load_model(tmp_path / "saved")(images), network(images))


def test_a_classifier_that_was_changed_is_not_saved_over_what_it_was(tmp_path: Path) -> None:
    """As what it no longer is."""
    classifier = wrn(tmp_path)
    classifier.network.fc = nn.Linear(64, 3)
    with pytest.raises(InputError, match="the network and wrn-10-1 do not fit each other"):
        spkd.save_model(classifier, tmp_path)
    load_classifier(tmp_path)


@pytest.mark.parametrize("stage", ["begun", "finished", "student"])
def test_nothing_is_saved_over_the_model_of_a_run(tmp_path: Path, stage: str) -> None:
    """``load_model`` would give what was saved, and never again the run's own student."""
    run = RunFolder(tmp_path / "run")
    if stage != "student":
        run.begin({"data": "digits"}, "a0b1", overwrite=False)
    if stage != "begun":
        wrn(run.student)
    beside = wrn(tmp_path / "beside")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"run is a run's, or has a model in student/, .*; save beside it"):
        spkd.save_model(beside, run.path)
    assert sorted(tmp_path.rglob("*")) == before
    spkd.save_model(beside, tmp_path / "beside")  # a model, and no run


def test_a_classifier_in_a_network_is_not_the_network(tmp_path: Path) -> None:
    network = nn.Sequential(Classifier(Small(3), info(3)), nn.Linear(2, 5))
    with pytest.raises(InputError, match="info: expected a ModelInfo"):
        spkd.save_model(network, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_description_is_the_same_with_and_without_the_answer(tmp_path: Path) -> None:
    """Which may be taken out of it."""
    path = tmp_path / "model.json"
    wrn(tmp_path)
    content = json.loads(path.read_text())
    digests = {description_digest(path)}
    for answer in ([1.0, 2.0], None):
        path.write_text(json.dumps({**content, "answer": answer}))
        digests.add(description_digest(path))
    del content["answer"]
    path.write_text(json.dumps(content))
    assert digests == {description_digest(path)}
    path.write_text(json.dumps({**content, "image_size": 9}))
    assert description_digest(path) not in digests
    del content["view"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    assert description_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_answer_is_not_asked_at_another_size(tmp_path: Path) -> None:
    wrn(tmp_path)

    def build(size: int) -> None:
        build_model(str(tmp_path), classes=["a", "b"], channels=1, image_size=size, normalisation=HALF)

    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**description, "answer": [7.0, -7.0]}))
    build(12)
    with pytest.raises(InputError, match="answers otherwise now than when it was saved"):
        build(8)


def test_a_network_is_not_saved_as_what_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:Own"
    built = build_model(spec, classes=["a", "b"], channels=3, image_size=8, normalisation=HALF).classifier
    network = built.network
    network(torch.rand(4, 3, 8, 8))

    def told(spec: str = spec, classes: tuple[str, ...] = ("a", "b")) -> ModelInfo:
        return ModelInfo(spec, classes, 3, 8, HALF)

    (tmp_path / "other.py").write_text(OWN.replace(".mean((2, 3))", ".amax((2, 3))"))
    with pytest.raises(InputError, match=r"other\.py:Own answers otherwise than the network; name what built it"):
        spkd.save_model(network, tmp_path / "saved", told(f"{tmp_path}/other.py:Own"))
    with pytest.raises(InputError, match="the network and wrn-10-1 do not fit each other"):
        spkd.save_model(network, tmp_path / "saved", told("wrn-10-1"))
    with pytest.raises(InputError, match="do not fit each other"):
        spkd.save_model(network, tmp_path / "saved", told(classes=("a", "b", "c")))
    with pytest.raises(InputError, match="info: expected a ModelInfo"):
        spkd.save_model(network, tmp_path / "saved")
    with pytest.raises(InputError, match="expected 'whole' or 'centre', or None where it is not known, got 'mid'"):
        ModelInfo(spec, ("a", "b"), 3, 8, HALF, "mid")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="info: the network is a classifier and brings its own"):
        spkd.save_model(built, tmp_path / "saved", told())
    assert not (tmp_path / "saved").exists()


def test_refuses_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Extra(Small):
        def get_extra_state(self) -> object:
            return "text"

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(InputError, match="_extra_state in its state dict is a str"):
        save_classifier(Classifier(Extra(3), info(3)), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_is_held_against_its_spec_too(tmp_path: Path, dtype: torch.dtype) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef one():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Identity())\n"
        "\ndef other():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Sigmoid())\n"
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Identity()).to(dtype)
    info = ModelInfo(f"{tmp_path}/net.py:one", ("a", "b"), 3, 2, Normalisation((0.0,), (1.0,)))
    save_model(network, tmp_path / "saved", info)
    assert json.loads((tmp_path / "saved" / "model.json").read_text())["answer"]
    assert next(load_classifier(tmp_path / "saved").parameters()).dtype == torch.float32
    with pytest.raises(InputError, match="answers otherwise than the network"):
        save_model(network, tmp_path / "again", replace(info, spec=f"{tmp_path}/net.py:other"))


def test_a_default_device_or_type_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = WideResNet(10, 1, num_classes=2)
    save_model(network, tmp_path, ModelInfo("wrn-10-1", ("a", "b"), 3, 8, HALF))
    images = torch.rand(2, 3, 8, 8)
    expected = load_classifier(tmp_path)(images)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loaded = load_classifier(tmp_path)
            save_model(network, tmp_path / "again", ModelInfo("wrn-10-1", ("a", "b"), 3, 8, HALF))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(loaded(images), expected)
    assert json.loads((tmp_path / "again" / "model.json").read_text()) == json.loads(
        (tmp_path / "model.json").read_text()
    )


def test_a_class_of_a_notebook_is_to_be_in_a_file(tmp_path: Path) -> None:
    info = ModelInfo("__main__:Net", ("a", "b"), 3, 8, HALF)
    with pytest.raises(InputError, match=r"write the code to a file, and name path/file\.py:Net\.$"):
        save_model(Small(3), tmp_path / "m", info)
    assert not (tmp_path / "m").exists()
