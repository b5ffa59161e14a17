"""Plans of experiments: what is trained, on what, and what waits for what."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from spkd.errors import InputError
from spkd.losses.attention import AttentionTransferLoss
from spkd.losses.methods import build_objective, term_names
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.weights import LossWeights
from spkd.models.spec import parse_spec
from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.reproduction import plan
from spkd.studies.scales import SCALES, ReproduceOptions
from spkd.studies.tasks import Measurement, Recording, Task, in_order
from spkd.taps import TapPair
from spkd.training.options import Request
from spkd.training.recipe import preset

PAPER_PAIRS = [("wrn-16-1", "wrn-40-1"), ("wrn-16-1", "wrn-16-2"), ("wrn-16-2", "wrn-40-2")]
PAPER_PAIRS += [("wrn-16-2", "wrn-16-8"), ("wrn-40-2", "wrn-16-8")]
TAPS = {"sp": ("last",), "kd+sp": ("last",), **dict.fromkeys(("at", "kd+at", "at+sp", "kd+at+sp"), ("stages",))}
"""The paper takes the similarities of the last stage, attention of all."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in which plans find all images and weights, as long as nobody looks into them."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / "cifar-10-batches-py" / name).touch()
    for split in ("train", "valid", "test"):
        (folder / "cinic-10" / split).mkdir(parents=True)
    (folder / "dtd/dtd/images").mkdir(parents=True)
    (folder / "dtd/dtd/labels").mkdir()
    for partition in range(1, 11):
        (folder / f"dtd/dtd/labels/train{partition}.txt").touch()
    for name in ("mobilenet_v1-0.25", "mobilenet_v1-0.5", "mobilenet_v2-0.35"):
        (folder / f"{name}.safetensors").touch()
    return folder


def planned(name: str, scale: str, root: Path, tmp_path: Path, seeds: int | None = None) -> list[Task]:
    where = {} if scale == "smoke" else {"data_root": str(root)}
    if scale == "paper":
        where["weights_root"] = str(root)
    return plan(name, ReproduceOptions(scale=scale, seeds=seeds, **where), tmp_path / "study")


def trainings(tasks: list[Task]) -> list[tuple[Task, Request]]:
    return [(task, task.work) for task in tasks if isinstance(task.work, Request)]


@pytest.mark.parametrize(("name", "scale"), sorted(itertools.product(EXPERIMENTS, SCALES)))
def test_a_plan_can_be_carried_out(name: str, scale: str, root: Path, tmp_path: Path) -> None:
    tasks = planned(name, scale, root, tmp_path)
    assert len(in_order(tasks)) == len(tasks)
    for task, request in trainings(tasks):
        recipe = preset(str(request.recipe)).override(request.overrides)
        assert recipe.epochs >= 1
        study = (tmp_path / "study").resolve()
        if Path(request.model).is_absolute():  # begins with what another task leaves
            assert str(Path(request.model).relative_to(study)) in task.after
        else:
            assert parse_spec(request.model)
        if request.teacher_weights is None and request.teacher is not None:
            assert str(Path(request.teacher).relative_to(study)) in task.after


def test_cifar10_is_the_papers_table(root: Path, tmp_path: Path) -> None:
    tasks = trainings(planned("cifar10", "paper", root, tmp_path))
    distilled = [(task, request) for task, request in tasks if request.teacher is not None]
    pairs = dict.fromkeys((str(task.labels["student"]), str(task.labels["teacher"])) for task, _ in distilled)
    assert list(pairs) == PAPER_PAIRS
    assert len(distilled) == 5 * 3 * 5
    # Three networks are students and trained alone with every seed, two are teachers only.
    assert len(tasks) - len(distilled) == 3 * 5 + 2
    for _, request in tasks:
        recipe = preset(str(request.recipe)).override(request.overrides)
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.lr_decay) == (200, 128, 0.1, 0.2)
        assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 5e-4)
        assert [round(fraction * 200) for fraction in recipe.milestones] == [60, 120, 160]
        assert "gamma" not in request.overrides  # so the batch must be the recipe's
        assert recipe.batch_size == preset(str(request.recipe)).batch_size
        assert (recipe.losses.gamma, recipe.losses.alpha, recipe.losses.temperature) == (3000, 0.9, 4)
        assert (request.data.train_images, request.data.image_size) == (None, None)


@pytest.mark.parametrize(("name", "scale"), sorted(itertools.product(EXPERIMENTS, ("small", "paper"))))
def test_a_method_is_what_its_label_says_and_compares_the_papers_layers(
    name: str, scale: str, root: Path, tmp_path: Path
) -> None:
    for task, request in trainings(planned(name, scale, root, tmp_path, seeds=1)):
        label = str(task.labels["method"])
        if request.teacher is None:
            assert (label in ("none", "pretraining"), request.method) == (True, "none")
            continue
        assert set(term_names(request.method)) == set(label.split("+"))
        if name == "layers":
            assert request.taps == (task.labels["setting"],)
        elif label != "kd":  # which compares none
            assert request.taps == TAPS[label]


def test_a_network_that_is_a_student_too_teaches_with_its_first_seed(root: Path, tmp_path: Path) -> None:
    tasks = trainings(planned("cifar10", "small", root, tmp_path))
    teachers = {str(t.labels["teacher"]): request.teacher for t, request in tasks if request.teacher is not None}
    assert str(teachers["wrn-16-2"]).endswith("none/wrn-16-2/seed-0")
    alone = [task.labels["seed"] for task, request in tasks if task.name.startswith("none/wrn-16-2/")]
    assert alone == [0, 1, 2]


def test_without_bfloat16_the_small_scale_is_in_float32_and_else_the_same(root: Path, tmp_path: Path) -> None:
    options = ReproduceOptions(scale="small", data_root=str(root), seeds=1)
    plans = [trainings(plan("cifar10", options, tmp_path / "study", bfloat16=flag)) for flag in (True, False)]
    for (task, quick), (other, exact) in zip(*plans, strict=True):
        assert task.name == other.name
        assert (quick.overrides["precision"], exact.overrides["precision"]) == ("bf16-mixed", "32-true")
        assert replace(quick, overrides={}) == replace(exact, overrides={})
        assert {**quick.overrides, "precision": None} == {**exact.overrides, "precision": None}


def test_students_of_a_teacher_and_a_seed_share_a_tape(root: Path, tmp_path: Path) -> None:
    tasks = {task.name: task for task in planned("gamma", "small", root, tmp_path)}
    tapes = {name: task.work for name, task in tasks.items() if isinstance(task.work, Recording)}
    assert list(tapes) == [f"recordings/wrn-16-2/seed-{seed}" for seed in range(3)]
    for task, request in trainings(list(tasks.values())):
        if request.teacher is not None:
            recording = tapes[next(name for name in task.after if name.startswith("recordings/"))]
            same = ("teacher", "seed", "data", "recipe")
            [recorded] = recording.requests
            assert [getattr(recorded, key) for key in same] == [getattr(request, key) for key in same]
            assert request.overrides["gamma"] == task.labels["setting"]


def test_no_tapes_at_the_papers_length(root: Path, tmp_path: Path) -> None:
    assert not any(isinstance(task.work, Recording) for task in planned("cifar10", "paper", root, tmp_path))


def test_cinic10_follows_its_public_reproduction(root: Path, tmp_path: Path) -> None:
    for _, request in trainings(planned("combinations", "paper", root, tmp_path)):
        recipe = preset(str(request.recipe)).override(request.overrides)
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.lr_decay) == (140, 96, 0.01, 0.1)
        assert [round(fraction * 140) for fraction in recipe.milestones] == [100, 120]
        assert request.data.data.endswith("cinic-10")
        # Given, or a run would change it with the batch.
        assert request.overrides["gamma"] == 3000.0
        assert (recipe.losses.alpha, recipe.losses.beta, recipe.losses.temperature) == (0.9, 1000.0, 4.0)


def test_textures_have_the_papers_weights_and_not_the_recipes(root: Path, tmp_path: Path) -> None:
    for scale, weights in (("paper", (3000.0, 1000.0)), ("small", (30.0, 10.0))):
        for task, request in trainings(planned("transfer", scale, root, tmp_path)):
            if task.labels["method"] in ("sp", "at"):
                assert (request.overrides["gamma"], request.overrides["beta"]) == weights


def test_combinations_have_sp_with_and_without_each_other_loss(root: Path, tmp_path: Path) -> None:
    methods = {task.labels["method"] for task in planned("combinations", "paper", root, tmp_path)}
    assert {"none", "kd", "at", "kd+at", "sp", "kd+sp", "at+sp", "kd+at+sp"} <= methods


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_combinations_of_any_cifar_pair_on_request(scale: str, root: Path, tmp_path: Path) -> None:
    asked = ("wrn-16-2-from-wrn-40-2", "wrn-40-2-from-wrn-16-8")
    options = ReproduceOptions(scale=scale, seeds=1, data_root=str(root), only=asked)  # type: ignore[arg-type]
    tasks = plan("combinations", options, tmp_path / "study")
    distilled = [task for task, request in trainings(tasks) if request.teacher is not None]
    assert {task.labels["row"] for task in distilled} == set(asked)
    assert {task.labels["method"] for task in distilled} >= {"kd", "at", "sp", "kd+at", "kd+sp", "at+sp", "kd+at+sp"}
    assert all(request.data.data == "cifar10" for _, request in trainings(tasks))


def test_combinations_of_both_image_sets(root: Path, tmp_path: Path) -> None:
    asked = ("wrn-16-1-from-wrn-16-2", "shufflenet_v2-0.5-from-shufflenet_v2-2.0")
    options = ReproduceOptions(scale="paper", seeds=1, data_root=str(root), only=asked)
    rows = {str(task.labels["row"]): request for task, request in trainings(plan("combinations", options, tmp_path))}
    assert rows[asked[0]].data.data == "cifar10"
    assert rows[asked[1]].data.data.endswith("cinic-10")


def test_architectures_are_crossed(root: Path, tmp_path: Path) -> None:
    for task, request in trainings(planned("architectures", "paper", root, tmp_path)):
        if request.teacher is not None:
            assert str(task.labels["student"]).split("_")[0] != str(task.labels["teacher"]).split("_")[0]


def test_transfer_takes_a_partition_for_each_seed_and_the_teachers_own_head(root: Path, tmp_path: Path) -> None:
    tasks = trainings(planned("transfer", "paper", root, tmp_path))
    assert {request.data.data for _, request in tasks} == {f"dtd?partition={number}" for number in range(1, 11)}
    for task, request in tasks:
        assert request.data.data == f"dtd?partition={request.seed + 1}"
        assert request.replace_head
        assert request.weights is not None
        assert (request.teacher is None) == (request.teacher_weights is None)
        assert "kd" not in str(task.labels["method"])
        if request.teacher is not None:
            assert float(str(task.labels["teacher"]).split("-")[1]) > float(str(task.labels["student"]).split("-")[1])


def test_transfer_at_the_small_scale_learns_on_cifar10_in_the_place_of_imagenet(root: Path, tmp_path: Path) -> None:
    tasks = trainings(planned("transfer", "small", root, tmp_path, seeds=2))
    before = {task.name: request for task, request in tasks if task.name.startswith("transfer/pretraining/")}
    assert len(before) == 6
    for request in before.values():
        assert (request.data.data, request.data.image_size, request.seed) == ("cifar10", 64, 0)
        assert request.data.train_images == 10_000
    for task, request in ((task, request) for task, request in tasks if task.name not in before):
        assert request.data.data == f"dtd?partition={request.seed + 1}"
        assert request.data.image_size == 64
        assert request.replace_head
        origin = Path(request.model).relative_to((tmp_path / "study").resolve())
        assert str(origin) in before
        assert task.labels["student"] == origin.parts[-2]
        if request.teacher is not None:
            assert str(Path(request.teacher).relative_to((tmp_path / "study").resolve())) in before


def test_weights_of_imagenet_are_not_for_the_small_scale(root: Path, tmp_path: Path) -> None:
    options = ReproduceOptions(scale="small", data_root=str(root), weights_root=str(root))
    with pytest.raises(InputError, match="--weights_root is for --scale paper"):
        plan("transfer", options, tmp_path)


def test_a_measurement_waits_for_all_that_it_names(root: Path, tmp_path: Path) -> None:
    for name in ("activations", "similarity", "loss-vs-error"):
        tasks = planned(name, "paper", root, tmp_path)
        trained = {task.name for task, _ in trainings(tasks)}
        measurements = [task for task in tasks if isinstance(task.work, Measurement)]
        assert measurements
        for task in measurements:
            assert set(task.after) <= trained
            named = str(task.work.arguments)
            assert all(f"'{other}'" in named for other in task.after)


@pytest.mark.parametrize("scale", SCALES)
def test_what_experiments_have_in_common_is_the_same(scale: str, root: Path, tmp_path: Path) -> None:
    seen: dict[str, object] = {}
    for name in EXPERIMENTS:
        for task in planned(name, scale, root, tmp_path, seeds=2):
            assert seen.setdefault(task.name, task.work) == task.work, task.name


def test_only_some_rows(root: Path, tmp_path: Path) -> None:
    options = ReproduceOptions(scale="small", data_root=str(root), only=("wrn-16-1-from-wrn-40-1",), seeds=1)
    names = {task.name for task in plan("cifar10", options, tmp_path)}
    row = "wrn-16-1-from-wrn-40-1/seed-0"
    students = {f"{method}/{row}" for method in ("kd", "at", "sp")}
    assert names == {"none/wrn-16-1/seed-0", "none/wrn-40-1/seed-0", "recordings/wrn-40-1/seed-0", *students}


def test_missing_weights_are_named(root: Path, tmp_path: Path) -> None:
    options = ReproduceOptions(scale="paper", data_root=str(root))
    names = "mobilenet_v1-0.25, mobilenet_v1-0.5, mobilenet_v2-0.35"
    with pytest.raises(InputError, match=f"lacks ImageNet weights of {names}"):
        plan("transfer", options, tmp_path)


def test_the_stand_ins_of_the_smoke_scale_keep_the_pairs_apart() -> None:
    stand_ins = SCALES["smoke"].stand_ins
    for student, teacher in PAPER_PAIRS:
        assert stand_ins[student] != stand_ins[teacher]


def test_joined_losses_compare_the_layers_that_each_compares_by_itself(root: Path, tmp_path: Path) -> None:
    stages = [TapPair(name, name) for name in ("group1", "group2", "group3")]
    joined = [request for _, request in trainings(planned("combinations", "small", root, tmp_path, seeds=1))]
    methods = {request.method for request in joined if {"sp", "at"} <= set(term_names(request.method))}
    assert len(methods) == 2
    for request in joined:
        if request.method in methods:
            assert request.taps == ("stages",)
            terms = build_objective(request.method, stages, LossWeights()).terms
            read = {
                kind: [pair.student for term in terms if isinstance(term.loss, kind) for pair in term.loss.pairs]
                for kind in (SimilarityPreservingLoss, AttentionTransferLoss)
            }
            assert read[SimilarityPreservingLoss] == ["group3"]
            assert read[AttentionTransferLoss] == ["group1", "group2", "group3"]
