"""What the records say, held against scipy and against what can be counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats

from spkd.studies.experiments import EXPERIMENTS
from spkd.studies.findings import added, findings, pairs_of_records
from spkd.studies.reproduction import PlannedTask, Record, Reproduction
from spkd.studies.statistics import holm

ALONE = [9.0, 8.6, 8.8]
ERRORS = {"kd": [8.5, 8.4, 8.0], "at": [8.9, 8.1, 8.5], "sp": [8.0, 7.5, 7.9]}
STUDENT, TEACHER = "wrn-16-2", "wrn-40-2"
PARAMETERS = {STUDENT: 691674, TEACHER: 2243546}


def record(task: PlannedTask, error: float) -> Record:
    label = {key: "" if value is None else str(value) for key, value in task.labels.items()}
    return Record(
        experiment="cifar10",
        scale="small",
        task=task.name,
        row=label["row"],
        student=label["student"],
        teacher=label["teacher"],
        method=label["method"],
        setting=label["setting"],
        seed=int(label["seed"]),
        test_error=error,
        val_error=50 - error,
        best_epoch=1,
        epochs=2,
        parameters=PARAMETERS.get(label["student"], 7),
        model=label["student"],
        data="cifar10",
        train_images=100,
        val_images=10,
        test_images=10,
        image_size=32,
        seconds=1.0,
        images_per_second=1.0,
        hardware="two cores",
        software="torch=2.14",
        command="spkd",
        identity="abc",
    )


def training(method: str, seed: int, student: str = STUDENT, teacher: str | None = TEACHER) -> PlannedTask:
    row = f"{student}-from-{teacher}" if teacher else None
    labels = {"row": row, "student": student, "teacher": teacher, "method": method, "setting": None, "seed": seed}
    return PlannedTask(f"{method}/{row or student}/seed-{seed}", "training", labels, "done")


def reproduction(errors: dict[str, list[float]], finished: int = 99) -> Reproduction:
    done: list[tuple[PlannedTask, float]] = [(training("none", 0, TEACHER, None), 5.0)]
    done += [(training("none", seed, STUDENT, None), error) for seed, error in enumerate(ALONE)]
    done += [(training(method, seed), error) for method, some in errors.items() for seed, error in enumerate(some)]
    records = tuple(record(task, error) for task, error in done[:finished])
    return Reproduction("cifar10", "small", "spkd", tuple(task for task, _ in done), records, Path())


def test_methods_are_compared_with_the_student_alone_by_seed() -> None:
    (pair,) = pairs_of_records(reproduction(ERRORS))
    assert (pair.student, pair.teacher, pair.teacher_error) == (STUDENT, TEACHER, 5.0)
    assert [line.label for line in pair.lines] == ["none", "kd", "at", "sp"]
    p_values = {method: scipy.stats.ttest_rel(errors, ALONE).pvalue for method, errors in ERRORS.items()}
    for line in pair.lines[1:]:
        assert line.result is not None
        assert line.result.p_value == pytest.approx(p_values[line.label])
    smallest, middle, largest = sorted(p_values, key=lambda method: p_values[method])
    expected = {smallest: min(1, 3 * p_values[smallest])}
    expected[middle] = min(1, max(expected[smallest], 2 * p_values[middle]))
    expected[largest] = min(1, max(expected[middle], p_values[largest]))
    assert [smallest, middle, largest] != ["kd", "at", "sp"]  # each has its own, whatever their order
    assert {line.label: line.p_holm for line in pair.lines[1:]} == pytest.approx(expected)
    assert pair.order() == ("sp", "kd", "at", "none")


def test_what_came_out_in_words() -> None:
    lines = findings("cifar10", pairs_of_records(reproduction(ERRORS)))
    assert lines == [
        "wrn-16-2 from wrn-40-2: from the lowest median to the highest: sp, kd, at, none; "
        "the paper has another order (sp, at, kd, none) †; Page's trend test for the paper's order over 3 seeds: "
        "p = 0.0029 (one-sided, not corrected)"
    ]


def test_the_paper_s_own_order_is_told() -> None:
    (line,) = findings("cifar10", pairs_of_records(reproduction({**ERRORS, "kd": [8.7, 8.5, 8.6]})))
    assert "sp, at, kd, none; the paper has the same order †; Page's" in line


def test_what_the_experiments_are_tested_by() -> None:
    assert [name for name, one in EXPERIMENTS.items() if not one.independent_seeds] == ["transfer"]
    assert [name for name, one in EXPERIMENTS.items() if not one.trains_teachers] == ["transfer"]


def test_a_teacher_no_better_than_the_student_alone_is_warned_of() -> None:
    (pair,) = pairs_of_records(reproduction(ERRORS))
    (line,) = findings("cifar10", [replace(pair, teacher_error=8.8)])  # the median of the student alone
    assert line.endswith(
        "; the teacher (8.80 %) is no better than the student alone (8.80 %): it may do harm; a better "
        "one would teach more"
    )
    assert "no better" not in findings("cifar10", [replace(pair, teacher_error=8.79)])[0]
    assert "no better" not in findings("cifar10", [replace(pair, teacher_error=None)])[0]


@pytest.mark.parametrize("experiment", ["cifar10", "gamma"])
def test_a_weak_teacher_is_warned_of_before_all_is_finished(experiment: str) -> None:
    (pair,) = pairs_of_records(reproduction(ERRORS, finished=3))  # the teacher, and two seeds of the student alone
    (line,) = findings(experiment, [replace(pair, teacher_error=8.8)])
    said = "the teacher (8.80 %) is no better than the student alone (8.80 %)"
    assert line.startswith(f"wrn-16-2 from wrn-40-2: unfinished; {said}: it may do harm")
    (pair,) = pairs_of_records(reproduction(ERRORS, finished=1))
    assert findings(experiment, [replace(pair, teacher_error=99.0)]) == ["wrn-16-2 from wrn-40-2: unfinished"]


def test_ties_agree_with_either_order() -> None:
    lines = findings("cifar10", pairs_of_records(reproduction({**ERRORS, "kd": ERRORS["at"]})))
    assert "sp, kd = at, none; the paper has the same order †" in lines[0]
    tied_elsewhere = {**ERRORS, "sp": ERRORS["kd"]}  # the paper has AT between the two
    lines = findings("cifar10", pairs_of_records(reproduction(tied_elsewhere)))
    assert "kd = sp, at, none; the paper has another order (sp, at, kd, none) †" in lines[0]


def test_a_network_that_teaches_too_is_held_against_itself() -> None:
    errors = {"sp": [4.0, 3.5, 3.75]}
    base = reproduction(errors)
    tasks = [training("none", 0, "wrn-16-8", None), *(training("sp", seed, TEACHER, "wrn-16-8") for seed in range(1))]
    both = Reproduction(
        *("cifar10", "small", "spkd"),
        tasks=(*base.tasks, *tasks),
        records=(*base.records, record(tasks[0], 3.0), record(tasks[1], 4.5)),
        study=Path(),
    )
    lines = findings("cifar10", pairs_of_records(both))
    assert lines[0] == "SP has a lower median than the student alone in 2 of 2 finished pairs (of 2)"
    assert lines[1] == "SP has the lowest median of all methods in 2 of 2 finished pairs (of 2)"
    assert lines[-1] == "wrn-40-2, itself a teacher: distilled from wrn-16-8 (4.50 %) better than alone (5.00 %)"
    for error in (5.0, 5.5):
        worse = replace(both, records=(*both.records[:-1], record(tasks[1], error)))
        assert findings("cifar10", pairs_of_records(worse))[-1] == (
            f"wrn-40-2, itself a teacher: distilled from wrn-16-8 ({error:.2f} %) NOT better than alone (5.00 %)"
        )
    undistilled = replace(both, records=both.records[:-1])
    said = findings("cifar10", pairs_of_records(undistilled))[0]
    assert said == "SP has a lower median than the student alone in 1 of 1 finished pairs (of 2)"
    assert findings("cifar10", pairs_of_records(undistilled))[-1] == (
        "wrn-40-2, itself a teacher, from wrn-16-8: unfinished"
    )


def test_the_teacher_is_that_of_seed_0_whichever_record_comes_first() -> None:
    base = reproduction(ERRORS)
    other = training("none", 1, TEACHER, None)
    more = replace(base, tasks=(other, *base.tasks), records=(record(other, 1.0), *base.records))
    (pair,) = pairs_of_records(more)
    assert pair.teacher_error == 5.0


def test_sp_is_the_best_only_alone() -> None:
    tied = {**ERRORS, "sp": ERRORS["kd"]}
    alone, distilled = training("none", 0, TEACHER, None), training("sp", 0, TEACHER, "wrn-16-8")
    pairs = pairs_of_records(reproduction(tied)) + pairs_of_records(
        Reproduction(
            *("cifar10", "small", "spkd"),
            tasks=(alone, distilled),
            records=(record(alone, 5.0), record(distilled, 5.0)),
            study=Path(),
        )
    )
    lines = findings("cifar10", pairs)
    assert lines[0] == "SP has a lower median than the student alone in 1 of 2 finished pairs (of 2)"
    assert lines[1] == "SP has the lowest median of all methods in 0 of 2 finished pairs (of 2)"


@pytest.mark.parametrize("finished", [0, 1, 3, 5, 12])
def test_what_is_unfinished_is_not_judged(finished: int) -> None:
    (pair,) = pairs_of_records(reproduction(ERRORS, finished))
    assert pair.order() is None
    assert findings("cifar10", [pair]) == ["wrn-16-2 from wrn-40-2: unfinished"]
    assert [line.planned for line in pair.lines] == [3] * 4


def test_what_sp_adds_is_compared_with_the_method_without_it() -> None:
    errors = {**ERRORS, "kd+sp": [7.9, 7.6, 7.7], "kd+at": [8.0, 8.1, 8.2], "kd+at+sp": [7.0, 7.2, 7.1]}
    (pair,) = pairs_of_records(reproduction(errors))
    found = {joined: (without, row) for joined, without, row in added(pair)}
    assert {joined: without for joined, (without, _) in found.items()} == {"kd+sp": "kd", "kd+at+sp": "kd+at"}
    expected = scipy.stats.ttest_rel(errors["kd+sp"], errors["kd"])
    assert found["kd+sp"][1].p_value == pytest.approx(expected.pvalue)
    assert found["kd+sp"][1].difference == pytest.approx((7.9 - 8.5 + 7.6 - 8.4 + 7.7 - 8.0) / 3)


def test_gamma_is_told_as_a_range() -> None:
    tasks = [training("none", seed, STUDENT, None) for seed in range(3)]
    records = [record(task, error) for task, error in zip(tasks, ALONE, strict=True)]
    for gamma, errors in ((10.0, [9.0, 9.1, 9.2]), (300.0, [7.0, 7.5, 8.0]), (64000.0, [8.0, 8.5, 8.6])):
        for seed, error in enumerate(errors):
            task = training("sp", seed)
            name = f"sp/gamma-{gamma:g}/seed-{seed}"
            tasks.append(replace(task, name=name, labels={**task.labels, "setting": gamma}))
            records.append(record(tasks[-1], error))
    (pair,) = pairs_of_records(Reproduction("gamma", "small", "spkd", tuple(tasks), tuple(records), Path()))
    assert findings("gamma", [pair]) == [
        "wrn-16-2 from wrn-40-2: over γ from 10 to 64000 the median lies between 7.50 and 9.10 %, that of the student "
        "alone at 8.80 %; it is lower at γ = 300, 64000"
    ]
    (line,) = findings("gamma", [replace(pair, teacher_error=8.8)])
    assert "γ = 300, 64000; the teacher (8.80 %) is no better than the student alone (8.80 %): it may do harm" in line


def test_holm_is_the_textbooks_example() -> None:
    # Four hypotheses with p-values 0.01, 0.04, 0.03, 0.005, tested one after the other at 0.05/4, 0.05/3, ...
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("missing", ["unfinished", "the same difference in all seeds"])
def test_a_method_without_a_p_value_counts_among_the_tests(missing: str) -> None:
    errors = {**ERRORS, "at": [8.9] if missing == "unfinished" else [error - 0.25 for error in ALONE]}
    lines = pairs_of_records(reproduction(errors))[0].lines
    assert lines[2].result is not None
    assert (lines[2].result.p_value, lines[2].p_holm) == (None, None)
    first, last = (line.result.p_value for line in (lines[1], lines[3]) if line.result is not None)
    assert first is not None
    assert last is not None
    smaller, larger = sorted((first, last))
    expected = [min(1, 3 * smaller), min(1, max(3 * smaller, 2 * larger))]
    assert sorted(line.p_holm or 0 for line in (lines[1], lines[3])) == pytest.approx(expected)


def test_where_seeds_are_not_independent_nothing_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pairs_of_records(reproduction(ERRORS))[0].lines[3].p_holm is not None
    experiment = replace(EXPERIMENTS["cifar10"], independent_seeds=False)
    monkeypatch.setitem(EXPERIMENTS, "cifar10", experiment)
    (pair,) = pairs_of_records(reproduction(ERRORS))
    for line in pair.lines:
        assert line.result is not None
        assert (line.result.sem, line.result.p_value, line.result.interval, line.p_holm) == (None, None, None, None)
    assert pair.lines[3].result.difference == pytest.approx(-1.0)  # type: ignore[union-attr]


def test_the_trend_is_tested_over_seeds_in_whatever_order_they_come() -> None:
    made = reproduction({"kd": [8.5, 8.4, 8.0], "at": [8.9, 8.1, 8.5], "sp": [8.0, 7.5, 7.9]})
    shuffled = replace(made, records=(made.records[0], *made.records[:0:-1]))
    mixed = replace(made, records=(*made.records[:5], *made.records[:4:-1]))
    said = [findings("cifar10", pairs_of_records(one)) for one in (made, shuffled, mixed)]
    assert "trend test" in " ".join(said[0])
    assert said[1] == said[0]
    assert said[2] == said[0]


def test_both_errors_of_a_record_stay_apart() -> None:
    (pair,) = pairs_of_records(reproduction(ERRORS))
    assert (pair.parameters, pair.teacher_parameters) == (691674, 2243546)
    result = pair.lines[3].result
    assert result is not None
    assert result.test_errors == tuple(ERRORS["sp"])
    assert result.val_errors == tuple(50 - error for error in ERRORS["sp"])


def test_a_teacher_that_was_not_trained_here_has_no_error_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERIMENTS, "cifar10", replace(EXPERIMENTS["cifar10"], trains_teachers=False))
    (pair,) = pairs_of_records(reproduction(ERRORS))
    assert (pair.teacher_error, pair.teacher_parameters) == (None, None)
