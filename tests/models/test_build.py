from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from spkd.errors import InputError
from spkd.models.build import BuiltModel, build_model
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.libraries import _check_hub_reachable, adapt
from spkd.models.network import HeadMismatch
from spkd.models.saved_model import load_classifier, save_classifier
from spkd.models.weights import match
from spkd.models.weights_source import (
    Defaults,
    has_pretrained,
    is_of_library,
    is_saved_by_us,
    loaded_digest,
    model_defaults,
)
from spkd.models.wrn import WideResNet

DATA = Normalisation((0.3,), (0.2,))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DATA_NOTE = (
    "images are normalised with mean 0.3 and std 0.2, since the weights do not say theirs; if they were trained with "
    "another, give it with --normalisation"
)
OWN = """
from torch import nn

def asks(num_classes, body=6, convolution=False):
    head = nn.Conv2d(body, num_classes, 1) if convolution else nn.Linear(body, num_classes)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers = [head, *pool] if convolution else [*pool, head]
    return nn.Sequential(nn.Conv2d(3, body, 3), *layers)

def ties(num_classes):
    return nn.Sequential(nn.Conv2d(3, 2 * num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(2 * num_classes, num_classes))

def blocks(num_classes, blocks):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

class Supervised(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, 4)
        self.aux = nn.Linear(6, 4)

    def forward(self, images):
        features = self.body(images)
        return (self.fc(features), self.aux(features)) if self.training else self.fc(features)

def fixed(pretrained=False):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    if pretrained:
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.5)
    return network
"""


def build(
    spec: str | Path, classes: int | list[str] | None = 3, channels: int = 3, size: int = 32, **options: Any
) -> BuiltModel:
    names = [f"class {number}" for number in range(classes)] if isinstance(classes, int) else classes
    return build_model(str(spec), classes=names, channels=channels, image_size=size, normalisation=DATA, **options)


def save_wrn(path: Path, classes: int = 3, prefix: str = "", channels: int = 3) -> WideResNet:
    torch.manual_seed(5)
    network = WideResNet(10, 1, classes, channels)
    torch.save({prefix + name: value for name, value in network.state_dict().items()}, path)
    return network


def same_weights(built: BuiltModel, network: torch.nn.Module, but: str = "") -> bool:
    state = built.classifier.network.state_dict()
    return all(
        torch.equal(state[name], value)
        for name, value in network.state_dict().items()
        if not but or not name.startswith(but)
    )


def test_builds_with_random_weights() -> None:
    built = build("wrn-10-1", channels=1, size=8)
    assert not built.trained
    assert built.notes == ()
    assert built.classifier.info.classes == ("class 0", "class 1", "class 2")
    assert built.classifier.info.normalisation == DATA
    assert built.classifier(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    one = build("timm/test_resnet")
    torch.manual_seed(1)
    assert same_weights(build("timm/test_resnet"), one.classifier.network)


def test_says_that_grey_images_are_repeated() -> None:
    built = build("timm/test_resnet", channels=1)
    assert built.notes == (
        "timm/test_resnet takes three channels: the one channel of grey images is repeated three times",
    )
    assert built.classifier.info.channels == 1
    assert built.classifier.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 3)


def test_loads_a_file_of_weights(tmp_path: Path) -> None:
    network = save_wrn(tmp_path / "w.pt", prefix="module.")
    built = build("wrn-10-1", weights=str(tmp_path / "w.pt"))
    assert built.trained
    assert same_weights(built, network)
    assert built.notes == ("weights: the prefix 'module.' was stripped from the names in the file", DATA_NOTE)


def test_loads_a_lightning_checkpoint(tmp_path: Path) -> None:
    network = WideResNet(10, 1, 3)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {
        "epoch": 4,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**state, "criterion.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {}}],
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    built = build("wrn-10-1", weights=str(tmp_path / "last.ckpt"))
    assert same_weights(built, network)
    assert "criterion.weight" in built.notes[1]


def test_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_wrn(tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"does not fit wrn-16-1: \d+ missing .*group1.1.norm1.weight, .*"):
        build("wrn-16-1", weights=str(tmp_path / "w.pt"))
    with pytest.raises(InputError, match=r"of another shape \(.*in the file, .* in the network"):
        build("wrn-10-2", weights=str(tmp_path / "w.pt"))


def test_refuses_a_head_that_does_not_fit_or_replaces_it_when_asked(tmp_path: Path) -> None:
    network = save_wrn(tmp_path / "w.pt", classes=3)
    with pytest.raises(HeadMismatch, match=r"has a head of 3 classes and the data have 5; give --replace_head"):
        build("wrn-10-1", 5, weights=str(tmp_path / "w.pt"))
    built = build("wrn-10-1", 5, weights=str(tmp_path / "w.pt"), replace_head=True)
    assert built.trained
    assert "the head of 3 classes was replaced by a new one of 5, with random weights" in built.notes[0]
    assert same_weights(built, network, but="fc.")
    assert built.classifier.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_does_not_replace_a_head_that_fits(tmp_path: Path) -> None:
    network = save_wrn(tmp_path / "w.pt", classes=3)
    built = build("wrn-10-1", 3, weights=str(tmp_path / "w.pt"), replace_head=True)
    assert same_weights(built, network)
    assert built.notes == (DATA_NOTE,)


def test_treats_weights_without_a_head_alike(tmp_path: Path) -> None:
    network = WideResNet(10, 1, 3)
    body = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    save_file(body, tmp_path / "body.safetensors")
    with pytest.raises(HeadMismatch, match="has no head"):
        build("wrn-10-1", weights=str(tmp_path / "body.safetensors"))
    built = build("wrn-10-1", weights=str(tmp_path / "body.safetensors"), replace_head=True)
    assert same_weights(built, network, but="fc.")


def test_keeps_the_weights_own_head_without_classes(tmp_path: Path) -> None:
    network = save_wrn(tmp_path / "w.pt", classes=6)
    built = build("wrn-10-1", None, weights=str(tmp_path / "w.pt"))
    assert same_weights(built, network)
    assert built.classifier.info.classes == ("0", "1", "2", "3", "4", "5")
    assert len(build("timm/test_resnet", None).classifier.info.classes) == 1000


def test_handles_a_users_network_with_a_fixed_head(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:fixed"
    assert build(spec, 4).notes == ()
    with pytest.raises(HeadMismatch, match="it has a head of 4 classes and the data have 6"):
        build(spec, 6)
    built = build(spec, 6, replace_head=True)
    assert built.classifier(torch.rand(1, 3, 8, 8)).shape == (1, 6)
    save_classifier(built.classifier, tmp_path / "saved")
    again = load_classifier(tmp_path / "saved")
    assert again.state_dict()["network.3.weight"].shape == (6, 6)
    built_on = build(tmp_path / "saved", [f"class {number}" for number in range(6)])
    assert same_weights(built_on, again.network)
    assert len(build(tmp_path / "saved", None).classifier.info.classes) == 6


def test_a_head_is_not_put_in_the_place_of_a_layer_that_gives_no_logits(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:Supervised"
    line = r"own.py:Supervised: its logits do not come from aux, [^\n]*; let its callable take num_classes"
    with pytest.raises(InputError, match=line):
        build(spec, 6, replace_head=True)
    built = build(spec, ["a", "b", "c", "d"])
    save_classifier(built.classifier, tmp_path / "saved")
    assert load_classifier(tmp_path / "saved").info == built.classifier.info
    with pytest.raises(InputError, match=line):
        build(tmp_path / "saved", ["e", "f", "g", "h"], replace_head=True)
    state = built.classifier.network.state_dict()
    wider = {name: value[:1].expand(6, *value.shape[1:]) for name, value in state.items() if "body" not in name}
    torch.save({**state, **wider}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=line):
        build(spec, 6, weights=str(tmp_path / "w.pt"))


def test_weights_of_two_heads_are_refused_where_only_one_can_be_made_to_fit(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        OWN + "\nclass Auxiliary(Supervised):\n    def __init__(self):\n        super().__init__()\n"
        "        del self.fc\n        self.fc = nn.Linear(6, 4)\n"
    )
    spec = f"{tmp_path}/own.py:Auxiliary"
    state = build(spec, 4).classifier.network.state_dict()
    heads = {name: value[:1].expand(6, *value.shape[1:]) for name, value in state.items() if "body" not in name}
    torch.save({**state, **heads}, tmp_path / "w.pt")
    with pytest.raises(
        InputError, match=r"does not fit .*:Auxiliary: 2 of another shape \(aux.weight: 6x6 in the file"
    ):
        build(spec, 6, weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("arguments", ["body=6", "body=10", "body=6&convolution=true"])
@pytest.mark.parametrize("classes", [5, 10])
def test_takes_the_number_of_classes_of_a_users_network_from_its_weights(
    tmp_path: Path, arguments: str, classes: int
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:asks?{arguments}"
    network = build(spec, classes).classifier.network
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(HeadMismatch) as caught:
        build(spec, 3, weights=str(tmp_path / "w.pt"))
    assert (caught.value.found, caught.value.wanted) == (classes, 3)
    built = build(spec, None, weights=str(tmp_path / "w.pt"))
    assert same_weights(built, network)
    assert built.classifier.info.classes == tuple(map(str, range(classes)))
    save_classifier(built.classifier, tmp_path / "saved")
    assert same_weights(build(tmp_path / "saved", None), network)


def test_asks_for_the_number_of_classes_where_the_weights_do_not_tell(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:ties"
    torch.save(build(spec, 5).classifier.network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"Give its number of classes: \S*own.py:ties\?num_classes=N\.$"):
        build(spec, None, weights=str(tmp_path / "w.pt"))
    with pytest.raises(InputError) as caught:
        build(spec, 3, weights=str(tmp_path / "w.pt"))
    assert "num_classes" not in str(caught.value)
    assert build(f"{spec}?num_classes=5", None, weights=str(tmp_path / "w.pt")).trained
    with pytest.raises(InputError, match=r"Give it as \S*own.py:ties\?num_classes=N"):
        build(spec, None)


def test_a_spec_may_be_longer_than_a_path(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path}/own.py:blocks?blocks={[(number, 3) for number in range(60)]}"
    built = build(spec)
    save_classifier(built.classifier, tmp_path / "saved")
    assert load_classifier(tmp_path / "saved").info.spec == spec
    assert build(tmp_path / "saved").trained
    assert model_defaults(spec, None).image_size is None
    torch.save(built.classifier.network.state_dict(), tmp_path / "w.pt")
    assert build(spec, weights=str(tmp_path / "w.pt")).trained
    with pytest.raises(InputError, match=r"^weights: there is no file x+; [^\n]*$"):
        build(spec, weights="x" * 300)
    with pytest.raises(InputError, match=r"^model x+: unknown, [^\n]*$"):
        build("x" * 300)
    with pytest.raises(InputError, match=r"^model: there is no folder x+; [^\n]*$"):
        load_classifier("x" * 300)
    with pytest.raises(InputError, match=r"^file \S*x+\.py was not found [^\n]*$"):
        build(f"{'x' * 300}.py:Net")


def test_says_whose_normalisation_trained_weights_are_given(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert build(f"{tmp_path}/own.py:fixed", 4, weights="pretrained").notes == (DATA_NOTE,)
    assert build(f"{tmp_path}/own.py:fixed", 4).notes == ()
    assert build(saved, None, channels=1, size=8).notes == ()


def test_a_head_mismatch_knows_both_counts(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    network = save_wrn(tmp_path / "w.pt", classes=6)
    body = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    save_file(body, tmp_path / "body.safetensors")
    cases: list[tuple[Callable[[], BuiltModel], int, int]] = [
        (lambda: build("wrn-10-1", 5, weights=str(tmp_path / "w.pt")), 6, 5),
        (lambda: build("wrn-10-1", 5, weights=str(tmp_path / "body.safetensors")), 0, 5),
        (lambda: build(f"{tmp_path}/own.py:fixed", 7), 4, 7),
        (lambda: build(saved, ["dog", "cat", "owl"], channels=1, size=8), 3, 3),
    ]
    for call, found, wanted in cases:
        with pytest.raises(HeadMismatch) as caught:
            call()
        assert (caught.value.found, caught.value.wanted) == (found, wanted)
        assert "--replace_head" in str(caught.value)


def test_asks_a_users_callable_for_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    built = build(f"{tmp_path}/own.py:fixed", 4, weights="pretrained")
    assert built.trained
    assert all((parameter == 0.5).all() for parameter in built.classifier.network.parameters())
    assert "pretrained" not in built.classifier.info.spec
    with pytest.raises(InputError, match="there are no pretrained ones of wrn-10-1"):
        build("wrn-10-1", weights="pretrained")


def test_a_users_callable_is_told_whether_its_weights_are_wanted(tmp_path: Path) -> None:
    """Also where it would load them by itself, or cannot be called without being told."""
    asked = OWN + "\ndef asked(pretrained):\n    return fixed(pretrained)\n"
    (tmp_path / "own.py").write_text(asked + "\ndef eager(pretrained=True):\n    return fixed(pretrained)\n")
    for name in ("asked", "eager"):
        for weights in (None, "pretrained"):
            built = build(f"{tmp_path}/own.py:{name}", 4, weights=weights)
            loaded = all((parameter == 0.5).all() for parameter in built.classifier.network.parameters())
            assert built.trained == loaded == (weights is not None)


def test_what_a_users_callable_loads_by_itself_is_pretrained_and_random_weights_are_not(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        OWN + "\ndef loads():\n    import torch\n    network = fixed()\n"
        f"    network.load_state_dict(torch.load({str(tmp_path / 'best.pt')!r}))\n    return network\n"
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    torch.save(network.state_dict(), tmp_path / "best.pt")
    spec = f"{tmp_path}/own.py:loads"
    built = build(spec, 4, weights="pretrained")
    assert built.trained
    for name, value in network.state_dict().items():
        assert torch.equal(built.classifier.network.state_dict()[name], value)
    before = loaded_digest(spec, "pretrained", 3, 32)
    assert before == loaded_digest(spec, "pretrained", 3, 32)
    network[3].bias.data[0] += 1e-6
    torch.save(network.state_dict(), tmp_path / "best.pt")
    assert loaded_digest(spec, "pretrained", 3, 32) != before
    assert loaded_digest(spec, None, 3, 32) is None
    (tmp_path / "own.py").write_text(
        (tmp_path / "own.py").read_text() + "\ndef headed():\n    network = loads()\n"
        "    network[3] = nn.Linear(6, 4)\n    return network\n"
        "\ndef constant():\n    network = Supervised()\n    nn.init.zeros_(network.aux.weight)\n    return network\n"
    )
    state = torch.get_rng_state()
    digests = {loaded_digest(f"{tmp_path}/own.py:headed", "pretrained", 3, 32) for _ in range(2)}
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert digests == {loaded_digest(f"{tmp_path}/own.py:headed", "pretrained", 3, 32)}
    for random in (
        f"{tmp_path}/own.py:constant",
        f"{tmp_path}/own.py:Supervised",
        "spkd.models.wrn:WideResNet?depth=10&width=1",
    ):
        with pytest.raises(InputError, match="its weights are others each time it is called: random ones"):
            build(random, weights="pretrained")


@pytest.mark.parametrize(
    ("spec", "weights", "is_of"),
    [
        ("timm/resnet18", "pretrained", True),
        ("torchvision/resnet18", "IMAGENET1K_V1", True),
        ("torchvision/resnet18", "best.pt", False),
        ("torchvision/resnet18", None, False),
        ("own.py:fixed", "pretrained", False),
        ("wrn-10-1", "pretrained", False),
    ],
)
def test_knows_the_weights_of_libraries(spec: str, weights: str | None, is_of: bool) -> None:
    assert is_of_library(spec, weights) == is_of


@pytest.mark.parametrize(
    ("spec", "has"),
    [("timm/resnet18", True), ("torchvision/resnet18", True), ("timm/botnet50ts_256", False), ("wrn-10-1", False)],
)
def test_knows_for_what_libraries_have_weights(spec: str, has: bool) -> None:
    assert has_pretrained(spec) == has


def test_class_names_are_the_same_however_their_accents_are_written(tmp_path: Path) -> None:
    built = build("wrn-10-1", ["cafe\u0301", "tee"], channels=1, size=8)
    save_classifier(built.classifier, tmp_path)
    assert build(tmp_path, ["caf\u00e9", "tee"], channels=1, size=8).notes == ()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    built = build("wrn-10-1", ["cat", "dog", "owl"], channels=1, size=8)
    save_classifier(built.classifier, tmp_path / "run" / "student")
    return tmp_path / "run"


def test_builds_from_a_run_folder(saved: Path) -> None:
    built = build_model(str(saved), classes=None, channels=1, image_size=8, normalisation=Normalisation((0.0,), (1.0,)))
    assert built.trained
    assert built.notes == ()
    assert built.classifier.info == load_classifier(saved).info
    assert built.classifier.info.normalisation == DATA
    assert same_weights(built, load_classifier(saved).network)


def test_a_run_folders_weights_can_be_others(saved: Path, tmp_path: Path) -> None:
    network = save_wrn(tmp_path / "w.pt", channels=1)
    built = build(saved, None, channels=1, size=8, weights=str(tmp_path / "w.pt"))
    assert same_weights(built, network)


@pytest.mark.parametrize("spec", ["wrn-10-1", "timm/test_resnet"])
def test_a_folder_does_not_describe_weights_from_elsewhere(spec: str, tmp_path: Path) -> None:
    own = build_model(
        spec, classes=["cat", "dog"], channels=3, image_size=40, normalisation=Normalisation((0.1,), (1,))
    )
    save_classifier(own.classifier, tmp_path / "run")
    elsewhere = build(spec, 2).classifier.network
    torch.save(elsewhere.state_dict(), tmp_path / "best.pt")
    weights = str(tmp_path / "best.pt")
    known = model_defaults(spec, weights).normalisation
    assert model_defaults(str(tmp_path / "run"), weights) == Defaults(40, known, size_of="the saved model")
    built = build(tmp_path / "run", ["hen", "owl"], weights=weights)
    assert same_weights(built, elsewhere)
    assert built.classifier.info.normalisation == (known or DATA)
    (note,) = built.notes
    if known is None:
        assert note == DATA_NOTE
    else:
        assert note.startswith("images are normalised with mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5, as for timm's own")
    assert build(tmp_path / "run", None, weights=weights).classifier.info.classes == ("0", "1")
    assert not is_saved_by_us(str(tmp_path / "run"), weights)
    for its_own in (None, "pretrained", str(tmp_path / "run" / "model.safetensors")):
        assert is_saved_by_us(str(tmp_path / "run"), its_own)
        assert model_defaults(str(tmp_path / "run"), its_own) == Defaults(40, own.classifier.info.normalisation)
        assert build(tmp_path / "run", None, weights=its_own).classifier.info.classes == ("cat", "dog")


def test_compares_a_saved_models_classes_by_name(saved: Path) -> None:
    assert build(saved, ["Cat", "dog", "owl"], channels=1, size=8).classifier.info.classes[0] == "Cat"
    assert build(saved, ["0", "1", "2"], channels=1, size=8).trained
    for classes in (["dog", "cat", "owl"], ["cat", "dog", "hen"]):
        with pytest.raises(HeadMismatch, match=r"its classes \(cat, dog, owl\) are not the data's"):
            build(saved, classes, channels=1, size=8)
        built = build(saved, classes, channels=1, size=8, replace_head=True)
        assert not same_weights(built, load_classifier(saved).network)
        assert same_weights(built, load_classifier(saved).network, but="fc.")
    with pytest.raises(HeadMismatch, match="a head of 3 classes and the data have 4"):
        build(saved, 4, channels=1, size=8)


def test_a_saved_models_channels_are_kept(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes 1 channel\(s\) and the images have 3"):
        build(saved, None, channels=3, size=8)
    save_classifier(build("wrn-10-1", 3, channels=3, size=8).classifier, tmp_path / "colour")
    built = build(tmp_path / "colour", 3, channels=1, size=8)
    assert built.classifier(torch.rand(1, 1, 8, 8)).shape == (1, 3)
    save_classifier(built.classifier, tmp_path / "again")
    assert same_weights(built, load_classifier(tmp_path / "again").network)


def test_says_when_a_folder_holds_no_model(tmp_path: Path) -> None:
    for call in (lambda: build(tmp_path), lambda: model_defaults(str(tmp_path), None)):
        with pytest.raises(InputError, match="holds no saved model"):
            call()


def test_takes_size_and_normalisation_from_metadata(saved: Path, tmp_path: Path) -> None:
    defaults = model_defaults("torchvision/resnet50", "IMAGENET1K_V1")
    assert (defaults.image_size, defaults.normalisation) == (224, IMAGENET)
    defaults = model_defaults("timm/vit_tiny_patch16_224", "pretrained")
    assert (defaults.image_size, defaults.normalisation) == (224, Normalisation((0.5,) * 3, (0.5,) * 3))
    assert model_defaults("torchvision/inception_v3", "pretrained").image_size == 299
    assert model_defaults(str(saved), None).normalisation == DATA
    assert model_defaults(str(saved), None).image_size == 8
    (tmp_path / "w.pt").touch()
    assert model_defaults("timm/resnet18", str(tmp_path / "w.pt")) == Defaults(224, IMAGENET, size_of="timm")
    assert model_defaults("timm/resnet18", "pretrained") == Defaults(224, IMAGENET)
    assert model_defaults("torchvision/resnet18", "DEFAULT") == Defaults(224, IMAGENET)
    for spec, weights in (("timm/resnet18", None), ("wrn-10-1", None), ("wrn-10-1", str(tmp_path / "w.pt"))):
        assert model_defaults(spec, weights).normalisation is None
    with pytest.raises(InputError, match="unknown"):
        model_defaults("wrn-10", None)


VITS = {
    "timm/test_vit": {},
    "timm/test_vit3": {},  # pooled, with a token of its own for that
    "timm/vit_small_patch14_dinov2": {"depth": 1, "embed_dim": 12, "num_heads": 1},
    "timm/vit_small_patch14_reg4_dinov2": {"depth": 1, "embed_dim": 12, "num_heads": 1},
    "timm/deit_tiny_distilled_patch16_224": {"depth": 1, "embed_dim": 12, "num_heads": 1},
    "timm/eva02_tiny_patch14_224": {"depth": 1, "embed_dim": 12, "num_heads": 1},
    "timm/cait_xxs24_224": {"depth": 1, "embed_dim": 12, "num_heads": 1},
}


@pytest.mark.parametrize("spec", VITS)
def test_position_embeddings_tell_the_size_of_images(spec: str, tmp_path: Path) -> None:
    """Not the size that is usual with the library, at which they would be resized."""
    file = str(tmp_path / "w.pt")
    for squares in (2, 9):
        patch = 14 if "patch14" in spec else 16
        network = timm.create_model(spec.removeprefix("timm/"), img_size=squares * patch, num_classes=3, **VITS[spec])
        for prefix in ("", "module."):
            torch.save({prefix + name: value for name, value in network.state_dict().items()}, file)
            assert (model_defaults(spec, file).image_size, model_defaults(spec, file).size_of) == (
                squares * patch,
                None,
            )
    arguments = "&".join(f"{name}={value}" for name, value in VITS[spec].items())
    size = model_defaults(spec, file).image_size
    built = build(f"{spec}?{arguments}" if arguments else spec, size=size, weights=file)
    assert same_weights(built, network)
    assert not any("converted" in note for note in built.notes)


def test_the_tokens_that_have_no_place_of_their_own_are_not_counted(tmp_path: Path) -> None:
    """DINOv2's own files, of which timm's differ, have a position for the class and none for the registers."""
    filters, positions = torch.zeros(6, 3, 14, 14), torch.zeros(1, 1 + 16**2, 6)
    names = {"patch_embed.proj.weight": filters, "pos_embed": positions, "cls_token": torch.zeros(1, 1, 6)}
    torch.save({**names, "register_tokens": torch.zeros(1, 4, 6)}, tmp_path / "w.pt")
    assert model_defaults("timm/vit_small_patch14_reg4_dinov2", str(tmp_path / "w.pt")).image_size == 16 * 14


def test_where_positions_do_not_tell_the_size_the_usual_one_is_taken(tmp_path: Path) -> None:
    """No square, several sizes, or squares that overlap, as Hiera's do."""
    wide = timm.create_model("test_vit", img_size=(32, 48)).state_dict()
    both = [timm.create_model("test_vit", img_size=size).state_dict() for size in (32, 64)]
    two = {f"{name}.{key}": value for name, own in zip("ab", both, strict=True) for key, value in own.items()}
    none = {name: value for name, value in wide.items() if name != "pos_embed"}
    for state in (wide, two, none):
        torch.save(state, tmp_path / "w.pt")
        assert model_defaults("timm/test_vit", str(tmp_path / "w.pt")).size_of == "timm"
        assert model_defaults("timm/test_vit", str(tmp_path / "w.pt")).image_size == 160
    filters, positions = torch.zeros(6, 3, 7, 7), torch.zeros(1, 56**2, 6)
    torch.save({"patch_embed.proj.weight": filters, "pos_embed": positions}, tmp_path / "w.pt")
    assert model_defaults("timm/hiera_tiny_224", str(tmp_path / "w.pt")).image_size == 224


def test_a_librarys_weights_bring_their_normalisation(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    built = build("timm/test_resnet", weights=str(tmp_path / "model.safetensors"))
    config = timm.get_pretrained_cfg("test_resnet")
    assert built.classifier.info.normalisation == Normalisation(tuple(config.mean), tuple(config.std))
    assert same_weights(built, network)
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor(config.mean)[:, None, None], torch.tensor(config.std)[:, None, None]
    torch.testing.assert_close(built.classifier.eval()(images), network.eval()((images - mean) / std))
    own = build("timm/test_resnet", weights=str(tmp_path / "model.safetensors"), own_normalisation=DATA)
    assert own.classifier.info.normalisation == DATA


def test_resizes_position_embeddings_as_the_libraries_do(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "timm.pt")
    built = build("timm/test_vit", size=64, weights=str(tmp_path / "timm.pt"))
    assert "converted as timm does" in built.notes[0]
    assert built.classifier.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_resizes_position_embeddings_of_torchvisions_transformers() -> None:
    def network(size: int) -> VisionTransformer:
        torch.manual_seed(size)
        return VisionTransformer(size, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3)

    adapted = adapt("torchvision", "vit_b_16", network(32), network(64).state_dict())
    assert adapted is not None
    assert match(network(32), adapted).problems == 0
    assert torch.equal(adapted["encoder.pos_embedding"][:, 0], network(64).encoder.pos_embedding[:, 0])
    # The files that torchvision offers have other names.
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for name, value in network(32).state_dict().items()
    }
    assert match(network(32), old).problems == 8
    renamed = adapt("torchvision", "vit_b_16", network(32), old)
    assert renamed is not None
    assert match(network(32), renamed).problems == 0
    network(32).load_state_dict(old)  # as the library itself does


def test_reads_the_old_names_in_torchvisions_densenet_files(tmp_path: Path) -> None:
    network = torchvision.models.densenet121(num_classes=3)
    layer = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
    old = {layer.sub(r"\1.\2", name): value for name, value in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    built = build("torchvision/densenet121", weights=str(tmp_path / "densenet.pth"))
    assert same_weights(built, network)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("no_network")
def test_a_python_without_certificates_leaves_the_hub_to_its_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("unable to get local issuer certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    _check_hub_reachable("timm/test_resnet")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("spec", "weights", "origin"),
    [
        ("torchvision/shufflenet_v2_x0_5", "pretrained", "https://download.pytorch.org/models/shufflenetv2"),
        ("torchvision/resnet18", "IMAGENET1K_V1", "https://download.pytorch.org/models/resnet18"),
        ("timm/test_resnet", "pretrained", "https://huggingface.co/timm/test_resnet"),
    ],
)
def test_says_how_to_go_on_when_a_download_fails(spec: str, weights: str, origin: str) -> None:
    with pytest.raises(InputError) as caught:
        build(spec, 1000, weights=weights)
    line = str(caught.value)
    assert "could not be downloaded" in line
    assert origin in line
    assert "give the file as weights" in line
    assert "\n" not in line


def test_uses_the_librarys_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(9)
    network = torchvision.models.shufflenet_v2_x0_5()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: network.state_dict())
    built = build("torchvision/shufflenet_v2_x0_5", None, weights="pretrained")
    assert built.trained
    assert same_weights(built, network)
    assert built.classifier.info.classes[:2] == ("tench", "goldfish")
    assert built.classifier.info.normalisation == IMAGENET
    with pytest.raises(HeadMismatch, match="a head of 1000 classes and the data have 5"):
        build("torchvision/shufflenet_v2_x0_5", 5, weights="DEFAULT")
    built = build("torchvision/shufflenet_v2_x0_5", 5, weights="IMAGENET1K_V1", replace_head=True)
    assert same_weights(built, network, but="fc.")
    assert len(built.notes) == 1


def test_auxiliary_classifiers_of_pretrained_weights_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torchvision.models.googlenet(init_weights=False)
    state = whole.state_dict()
    monkeypatch.setattr(type(torchvision.models.GoogLeNet_Weights.DEFAULT), "get_state_dict", lambda self, **_: state)
    save_file(state, tmp_path / "whole.safetensors")
    for spec in ("torchvision/googlenet", "torchvision/googlenet?aux_logits=false"):
        for weights in ("pretrained", str(tmp_path / "whole.safetensors")):
            built = build(spec, None, weights=weights, size=64)
            loaded = built.classifier.network.state_dict()
            assert not any(key.startswith("aux") for key in loaded)
            assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    built.classifier.train()(torch.rand(2, 3, 64, 64)).sum().backward()  # too small for them


def test_weights_bring_their_own_classes_size_and_normalisation(tmp_path: Path) -> None:
    for name, classes, mean in (("a", ("cat", "dog"), 0.1), ("b", ("dog", "cat"), 0.4)):
        info = ModelInfo("wrn-10-1", classes, 3, 12 if name == "b" else 8, Normalisation((mean,) * 3, (0.2,) * 3))
        save_classifier(Classifier(WideResNet(10, 1, num_classes=2), info), tmp_path / name)
    file = str(tmp_path / "b" / "model.safetensors")
    for spec in ("wrn-10-1", str(tmp_path / "a")):
        assert model_defaults(spec, file).image_size == 12
        options = {"channels": 3, "image_size": 8, "normalisation": IMAGENET, "weights": file}
        built = build_model(spec, classes=("dog", "cat"), **options)
        assert built.classifier.info.normalisation.mean == (0.4,) * 3
        with pytest.raises(HeadMismatch, match="its classes"):
            build_model(spec, classes=("cat", "dog"), **options)


def test_says_which_weights_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file IMAGENET1K_V3; .* IMAGENET1K_V2.*Did you mean 'IMAGENET1K_V"):
        build("torchvision/resnet50", weights="IMAGENET1K_V3")
    with pytest.raises(InputError, match="there is no file"):
        build("wrn-10-1", weights=str(tmp_path / "missing.pt"))
    name = next(name for name in timm.list_models("mobilenet*") if not timm.is_model_pretrained(name))
    with pytest.raises(InputError, match=f"timm has no pretrained weights of {name}"):
        build(f"timm/{name}", weights="pretrained", size=32)


def test_says_when_the_images_are_too_small() -> None:
    with pytest.raises(InputError, match="cannot run on an image of 3x8x8"):
        build("torchvision/alexnet", size=8)
