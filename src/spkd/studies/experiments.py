"""The paper's experiments: which networks, by which methods, on which images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.studies import measure, smoke, sources
from spkd.studies.building import AT, KD, PRETRAINING, SP, Builder, Method, Network
from spkd.studies.published import CIFAR10
from spkd.studies.scales import Scale
from spkd.studies.tasks import Label, Measurement, Task

Rows = dict[str, list[Task]]
"""The tasks of each row of an experiment, those it waits for included."""

PARTITIONS = 10
"""Standard divisions of the textures."""
COMBINED = (
    KD,
    AT,
    Method("kd+at", "kd+at", ("stages",)),
    SP,
    Method("kd+sp", "kd+sp"),
    Method("at+sp", "at+sp?layers=last", ("stages",)),
    Method("kd+at+sp", "kd+at+sp?layers=last", ("stages",)),
)
_SMALL_IMAGES = "spkd.models.small_images"
_CINIC_PAIRS = (
    ("shufflenet_v2-0.5", "shufflenet_v2-2.0"),
    ("shufflenet_v2-1.0", "shufflenet_v2-2.0"),
    ("mobilenet_v2-0.35", "mobilenet_v2-1.0"),
)
_CROSSED_PAIRS = (
    ("shufflenet_v2-0.5", "mobilenet_v2-1.0"),
    ("shufflenet_v2-1.0", "mobilenet_v2-1.0"),
    ("mobilenet_v2-0.35", "shufflenet_v2-2.0"),
    ("mobilenet_v2-1.0", "shufflenet_v2-2.0"),
)
_TRANSFER_PAIRS = (
    ("mobilenet_v1-0.25", "mobilenet_v1-0.5"),
    ("mobilenet_v1-0.5", "mobilenet_v1-1.0"),
    ("mobilenet_v2-0.35", "mobilenet_v2-1.0"),
    ("mobilenet_v2-1.0", "mobilenet_v2-1.4"),
)
_PRETRAINED = {
    "mobilenet_v1-0.25": "spkd.models.mobilenet_v1:mobilenet_v1?width=0.25",
    "mobilenet_v1-0.5": "spkd.models.mobilenet_v1:mobilenet_v1?width=0.5",
    "mobilenet_v1-1.0": "timm/mobilenetv1_100",
    "mobilenet_v2-0.35": "timm/mobilenetv2_035",
    "mobilenet_v2-1.0": "timm/mobilenetv2_100",
    "mobilenet_v2-1.4": "timm/mobilenetv2_140",
}
_DOWNLOADED = frozenset({"mobilenet_v1-1.0", "mobilenet_v2-1.0", "mobilenet_v2-1.4"})
"""Networks of which timm has ImageNet weights; those of the others must be given."""
_LAYERS = ("group1", "group2", "group3", "stages", "group2=group3", "group3=group2", "group1=group3", "group3=group1")


@dataclass(frozen=True)
class Setting:
    """What an experiment is run with.

    Attributes:
        study: the folder of its study.
        scale: its size.
        seeds: how many.
        data_root: where the images lie.
        weights_root: where pretrained weights lie.
        only: the rows that are asked for by name; none means the usual ones.
    """

    study: Path
    scale: Scale
    seeds: int
    data_root: str | None
    weights_root: str | None
    only: tuple[str, ...] = ()

    @property
    def made_up(self) -> Path:
        """Where the images and weights of the smoke scale are written."""
        return self.study / "made-up"

    def cifar10(self) -> Builder:
        """Return the builder of the experiments on CIFAR-10."""
        data = smoke.cifar10(self.made_up) if self.scale.name == "smoke" else sources.cifar10(self.data_root)
        return Builder(self.study, self.scale, self.scale.cifar10, lambda seed: data)

    def cinic10(self) -> Builder:
        """Return the builder of the experiments on CINIC-10, or on CIFAR-10 where the scale says so."""
        if self.scale.cinic10 is None:
            return self.cifar10()
        data = smoke.cinic10(self.made_up) if self.scale.name == "smoke" else sources.cinic10(self.data_root)
        return Builder(self.study, self.scale, self.scale.cinic10, lambda seed: data)

    def wrn(self, label: str) -> Network:
        """Return the wide residual network that stands for the paper's at this scale."""
        return Network(label, self.scale.stand_ins.get(label, label))


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        title: a line for its tables.
        summary: a line for the list of experiments.
        rows: makes its tasks.
        trains_teachers: whether the teachers are trained on the experiment's own images.
        independent_seeds: whether a paired test over the seeds holds; partitions of one set of images overlap.
    """

    title: str
    summary: str
    rows: Callable[[Setting], Rows]
    trains_teachers: bool = True
    independent_seeds: bool = True


def pairs_of(
    setting: Setting,
    builder: Builder,
    pairs: Sequence[tuple[Network, Network]],
    methods: Sequence[Method] = (KD, AT, SP),
) -> Rows:
    """Return every pair of student and teacher by every method, with both networks alone."""
    rows: Rows = {}
    for seed in range(setting.seeds):
        for student, teacher in pairs:
            name = row_name(student, teacher)
            row = rows.setdefault(name, [])
            row.append(builder.alone(student, seed))
            for method in methods:
                row += builder.distilled(name, student, teacher, method, seed)
    return rows


def row_name(student: Network, teacher: Network) -> str:
    """Return what a pair is called."""
    return f"{student.label}-from-{teacher.label}"


def cifar10(setting: Setting) -> Rows:
    """The paper's five pairs of wide residual networks."""
    return pairs_of(setting, setting.cifar10(), _cifar10_pairs(setting))


def _cifar10_pairs(setting: Setting) -> list[tuple[Network, Network]]:
    return [(setting.wrn(pair.student), setting.wrn(pair.teacher)) for pair in CIFAR10]


def combinations(setting: Setting) -> Rows:
    """The similarity-preserving loss added to the other losses; any pair of :func:`cifar10` where it is asked for."""
    pairs = {row_name(*pair): pair for pair in _cifar10_pairs(setting)}
    asked = [pair for name, pair in pairs.items() if name in setting.only]
    small = setting.scale.cinic10 is None
    if small and not asked:
        asked = [(setting.wrn("wrn-16-1"), setting.wrn("wrn-16-2"))]
    rows = pairs_of(setting, setting.cifar10(), asked, COMBINED) if asked else {}
    if not small and not (setting.only and set(setting.only) <= pairs.keys()):
        rows |= pairs_of(setting, setting.cinic10(), _small_image_pairs(_CINIC_PAIRS), COMBINED)
    return rows


def architectures(setting: Setting) -> Rows:
    """A teacher of one architecture, a student of the other."""
    return pairs_of(setting, setting.cinic10(), _small_image_pairs(_CROSSED_PAIRS))


def _small_image_pairs(pairs: Sequence[tuple[str, str]]) -> list[tuple[Network, Network]]:
    def network(label: str) -> Network:
        name, _, width = label.rpartition("-")
        return Network(label, f"{_SMALL_IMAGES}:{name}?width={width}")

    return [(network(student), network(teacher)) for student, teacher in pairs]


def transfer(setting: Setting) -> Rows:
    """Networks trained on ImageNet, fine-tuned on textures; a seed is one of the standard partitions."""
    if setting.seeds > PARTITIONS:
        raise InputError(f"--seeds: the textures have {PARTITIONS} partitions, not {setting.seeds}")
    if setting.scale.name == "smoke":
        options = [smoke.dtd(setting.made_up, seed + 1) for seed in range(setting.seeds)]
    else:
        options = [sources.dtd(setting.data_root, seed + 1) for seed in range(setting.seeds)]
    networks = _pretrained(setting)

    def data(seed: int) -> DataOptions:
        return options[seed]

    # The teachers keep their classes, which are not the students': there are no soft targets.
    methods = (AT, SP)
    builder = Builder(setting.study, setting.scale, setting.scale.dtd, data, remembered=methods, above="transfer/")
    pairs = [(networks[student], networks[teacher]) for student, teacher in _TRANSFER_PAIRS]
    return pairs_of(setting, builder, pairs, methods)


def _pretrained(setting: Setting) -> dict[str, Network]:
    """Return the networks of the transfer: with weights of ImageNet, or with a training on CIFAR-10 in its place."""
    scale, root = setting.scale, setting.weights_root
    if scale.pretraining is not None:
        if root is not None:
            raise InputError("--weights_root is for --scale paper: at the small scale networks learn on CIFAR-10 first")
        builder = replace(setting.cifar10(), protocol=scale.pretraining, above="transfer/")
        plain = [Network(label, spec) for label, spec in _PRETRAINED.items()]
        return {one.label: replace(one, origin=builder.alone(one, 0, PRETRAINING)) for one in plain}
    if scale.name == "smoke":
        root = str(smoke.pretrained(setting.made_up, _PRETRAINED))
    files = {label: sources.weights_file(root, label) for label in _PRETRAINED}
    if missing := [label for label, file in files.items() if file is None and label not in _DOWNLOADED]:
        raise InputError(
            f"--weights_root {root or '(not given)'} lacks ImageNet weights of {', '.join(missing)}, which "
            f"neither torchvision nor timm has: put {missing[0]}.safetensors (and so on, with timm's names of weights) "
            "into a folder and give it"
        )
    return {label: Network(label, spec, files[label] or "pretrained") for label, spec in _PRETRAINED.items()}


def gamma(setting: Setting) -> Rows:
    """The weight of the similarity-preserving loss, over orders of magnitude."""
    return _swept(setting, {f"gamma-{value:g}": (value, SP, {"gamma": value}) for value in setting.scale.gammas})


def layers(setting: Setting) -> Rows:
    """Each stage alone, all of them, and pairs of stages of unlike depth."""
    return _swept(setting, {taps: (taps, Method("sp", "sp", (taps,)), {}) for taps in _LAYERS})


def _swept(setting: Setting, values: Mapping[str, tuple[Label, Method, Mapping[str, object]]]) -> Rows:
    """Return a row for each value of what is swept: the student alone, and by that method with those overrides."""
    builder = setting.cifar10()
    student, teacher = setting.wrn("wrn-16-1"), setting.wrn("wrn-16-2")
    rows: Rows = {}
    for seed in range(setting.seeds):
        for name, (value, method, overrides) in values.items():
            row = rows.setdefault(name, [])
            row.append(builder.alone(student, seed))
            row += builder.distilled(name, student, teacher, method, seed, setting=value, overrides=overrides)
    return rows


def activations(setting: Setting) -> Rows:
    """The channels of a trained network's last block on the test images, by class."""
    network = setting.wrn(setting.scale.drawn_pair[1])
    trained = setting.cifar10().alone(network, 0)
    measured = Task(
        "measurements/activations",
        Measurement(measure.activations, {"network": trained.name}),
        after=(trained.name,),
        labels={"student": network.label},
    )
    return {network.label: [trained, measured]}


def similarity(setting: Setting) -> Rows:
    """The similarity matrices of a teacher, the student alone and the distilled student."""
    builder = setting.cifar10()
    student, teacher = (setting.wrn(label) for label in setting.scale.drawn_pair)
    name = row_name(student, teacher)
    alone = builder.alone(student, 0)
    tasks = [builder.alone(teacher, 0), alone, *builder.distilled(name, student, teacher, SP, 0)]
    networks = {
        f"teacher {teacher.label}": tasks[0].name,
        f"{student.label} alone": alone.name,
        f"{student.label} distilled": tasks[-1].name,
    }
    measured = Task(
        "measurements/similarity",
        Measurement(measure.similarities, {"networks": networks}),
        after=tuple(networks.values()),
        labels={"row": name, "student": student.label, "teacher": teacher.label},
    )
    return {name: [*tasks, measured]}


def loss_vs_error(setting: Setting) -> Rows:
    """The similarity-preserving loss on test images against the test error, for all pairs."""
    pairs = _cifar10_pairs(setting)
    rows = pairs_of(setting, setting.cifar10(), pairs, (SP,))
    for student, teacher in pairs:
        name = row_name(student, teacher)
        students = {
            task.name: f"{task.labels['method']} {task.labels['seed']}"
            for task in rows[name]
            if task.labels["student"] == student.label
        }
        arguments = {"teacher": f"none/{teacher.label}/seed-0", "students": students}
        measured = Task(
            f"measurements/{name}",
            Measurement(measure.losses, arguments),
            after=(f"none/{teacher.label}/seed-0", *students),
            labels={"row": name, "student": student.label, "teacher": teacher.label},
        )
        rows[name].append(measured)
    return rows


EXPERIMENTS: Mapping[str, Experiment] = {
    "cifar10": Experiment(
        "CIFAR-10, wide residual networks",
        "five pairs of wide residual networks: alone, KD, AT, SP, teacher",
        cifar10,
    ),
    "combinations": Experiment(
        "SP added to other losses", "SP added to KD, to AT and to both, against each of them", combinations
    ),
    "architectures": Experiment(
        "Unlike architectures", "ShuffleNet-V2 from MobileNet-V2 and the other way round", architectures
    ),
    "transfer": Experiment(
        "ImageNet to describable textures",
        "MobileNets from ImageNet fine-tuned on textures, ten partitions",
        transfer,
        trains_teachers=False,
        independent_seeds=False,
    ),
    "gamma": Experiment("Weight of the SP loss", "test error against γ, WRN-16-1 from WRN-16-2", gamma),
    "layers": Experiment("Choice of layers", "each stage, all of them, pairs of unlike depth", layers),
    "activations": Experiment(
        "Activations by class", "figure: channels of the last block on the test images, by class", activations
    ),
    "similarity": Experiment(
        "Similarity matrices", "figure: G of teacher, student alone and distilled student", similarity
    ),
    "loss-vs-error": Experiment(
        "SP loss against error", "figure: SP loss on test images against test error, all pairs", loss_vs_error
    ),
}
"""Every experiment, by the name that the command line gives it."""
