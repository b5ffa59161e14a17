"""How large a reproduction is: every number that decides what it costs, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

ScaleName = Literal["smoke", "small", "paper"]


@dataclass(frozen=True)
class ReproduceOptions:
    """What of the paper is reproduced, and how large.

    Args:
        scale: smoke (seconds, on made-up images), small (for two processor cores) or paper (the paper's protocol, as
            far as it is known).
        data_root: folder that holds the images (default: ./data).
        weights_root: folder of pretrained weights that cannot be downloaded (for transfer at the paper's scale).
        seeds: number of seeds, which are 0, 1, ... (default: 2 at smoke, 3 at small, 5 at paper scale, where transfer
            takes its ten partitions).
        only: names of the rows to run; finished results of other rows stay in the report (default: all; combinations
            also takes the pairs of cifar10).
    """

    scale: ScaleName = "small"
    data_root: str | None = None
    weights_root: str | None = None
    seeds: int | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How every network is trained on one data set.

    Attributes:
        recipe: the preset; see :data:`spkd.training.recipe.PRESETS`.
        overrides: recipe fields and loss weights that differ from the preset's.
        image_size: side length in pixels; None for the images' or the weights' own.
        train_images: how many training images are used, stratified; None for all.
    """

    recipe: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    image_size: int | None = None
    train_images: int | None = None


@dataclass(frozen=True)
class Scale:
    """One size of all experiments.

    Attributes:
        name: smoke (seconds, made-up images), small (two processor cores), paper (the paper's protocol, as far as
            it is known).
        seeds: how many, where the user does not say.
        cifar10: the protocol on CIFAR-10.
        cinic10: the protocol on CINIC-10; None where its experiments use CIFAR-10 instead.
        dtd: the protocol on the textures.
        pretraining: the protocol on CIFAR-10 by which networks are trained before they learn textures; None where
            weights of ImageNet are to be had.
        gammas: weights of the SP loss whose effect is shown.
        drawn_pair: student and teacher of the figures of single networks.
        stand_ins: networks that are trained in the place of the paper's.
        tapes: whether what a teacher says is recorded once for all its students. At the paper's length a tape
            is larger than the teacher's work is long.
    """

    name: ScaleName
    seeds: int
    cifar10: Protocol
    cinic10: Protocol | None
    dtd: Protocol
    gammas: tuple[float, ...]
    drawn_pair: tuple[str, str]
    pretraining: Protocol | None = None
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    tapes: bool = True


_SMOKE = Protocol("paper", {"epochs": 1, "batch_size": 24, "lr": 0.02}, image_size=8)
# γ and β as chosen on validation images: the paper's are made for 80 times as many steps, and drown the labels here.
_SMALL = Protocol(
    "paper",
    {"epochs": 12, "precision": "bf16-mixed", "gamma": 300.0, "beta": 100.0},
    image_size=16,
    train_images=10_000,
)

SCALES: Mapping[ScaleName, Scale] = {
    "smoke": Scale(
        name="smoke",
        seeds=2,
        cifar10=_SMOKE,
        # Large enough for the last maps to be larger than one position, on which attention says nothing.
        cinic10=replace(_SMOKE, image_size=16),
        dtd=Protocol("finetune", {"epochs": 1, "batch_size": 8, "warmup_epochs": 0.0}, image_size=64),
        gammas=(10.0, 64000.0),
        drawn_pair=("wrn-16-1", "wrn-40-2"),
        stand_ins={
            "wrn-16-1": "wrn-10-1",
            "wrn-40-1": "wrn-16-1",
            "wrn-16-2": "wrn-10-2",
            "wrn-40-2": "wrn-16-2",
            "wrn-16-8": "wrn-10-3",
        },
    ),
    "small": Scale(
        name="small",
        seeds=3,
        cifar10=_SMALL,
        cinic10=None,
        dtd=Protocol("finetune", {"lr": 3e-3, "gamma": 30.0, "beta": 10.0}, image_size=64),
        gammas=(10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 64000.0),
        drawn_pair=("wrn-16-1", "wrn-16-2"),
        pretraining=Protocol(
            "scratch",
            {"epochs": 12, "batch_size": 128, "warmup_epochs": 1.0, "lr": 0.02},
            image_size=64,
            train_images=10_000,
        ),
    ),
    "paper": Scale(
        name="paper",
        seeds=5,
        cifar10=Protocol("paper"),
        # The schedule of a reproduction whose code is public; the paper's own is not known.
        cinic10=Protocol(
            "paper",
            {
                "epochs": 140,
                "batch_size": 96,
                "lr": 0.01,
                "milestones": (100 / 140, 120 / 140),
                "lr_decay": 0.1,
                "gamma": 3000.0,
            },
        ),
        # The paper's schedule for fine-tuning is not known: this is the preset for trained weights.
        dtd=Protocol("finetune", {"gamma": 3000.0, "beta": 1000.0}, image_size=224),
        gammas=(10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0, 64000.0),
        drawn_pair=("wrn-16-1", "wrn-40-2"),
        tapes=False,
    ),
}


def in_float32(scale: Scale) -> Scale:
    """Return the scale with float32 where it takes bfloat16, for devices that gain nothing from that."""
    return replace(
        scale,
        cifar10=_in_float32(scale.cifar10),
        cinic10=None if scale.cinic10 is None else _in_float32(scale.cinic10),
        dtd=_in_float32(scale.dtd),
        pretraining=None if scale.pretraining is None else _in_float32(scale.pretraining),
    )


def _in_float32(protocol: Protocol) -> Protocol:
    if protocol.overrides.get("precision") != "bf16-mixed":
        return protocol
    return replace(protocol, overrides={**protocol.overrides, "precision": "32-true"})
