"""A plan is put in order, or refused with a line that says why."""

import itertools

import pytest
from helpers import never

from spkd.errors import InputError
from spkd.studies.schedule import Schedule
from spkd.studies.tasks import Measurement, Recording, Task, in_order
from spkd.training.options import Request


def task(name: str, *after: str) -> Task:
    return Task(name, Request(model="wrn-10-1"), after)


@pytest.mark.parametrize("shuffled", list(itertools.permutations(range(4))))
def test_each_comes_after_those_that_it_waits_for(shuffled: tuple[int, ...]) -> None:
    tasks = [task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c")]
    ordered = [one.name for one in in_order([tasks[place] for place in shuffled])]
    assert sorted(ordered) == ["a", "b", "c", "d"]
    for one in tasks:
        assert all(ordered.index(other) < ordered.index(one.name) for other in one.after)


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'a' comes twice"):
        in_order([task("a"), task("a")])


def measure() -> dict[str, int]:
    return {}


def test_the_digest_tells_what_is_done_and_not_what_it_is_called() -> None:
    works = [
        Request(model="wrn-10-1"),
        Request(model="wrn-10-1", seed=1),
        Recording((Request(model="wrn-10-1"),), ("sp",)),
        Recording((Request(model="wrn-10-1"),), ("sp", "kd")),
        Measurement(measure, {"images": 3}),
        Measurement(measure, {"images": 4}),
    ]
    digests = [Task("a", work).digest() for work in works]
    assert len(set(digests)) == len(works)
    assert digests == [Task("b", work, ("c",), {"seed": 3}).digest() for work in works]


def test_a_schedule_hands_out_what_is_ready_in_the_order_of_the_plan() -> None:
    schedule = Schedule([task("d", "b", "c"), task("c"), task("b", "a"), task("a")], {}, {})
    assert [schedule.next(never).name for _ in range(2)] == ["c", "a"]  # type: ignore[union-attr]
    assert schedule.next(never) is None
    schedule.finish("a", {"n": 1})
    assert schedule.next(never).name == "b"  # type: ignore[union-attr]
    schedule.fail("c", "broken")
    schedule.finish("b", {})
    assert schedule.next(never) is None
    assert schedule.open() == []
    state = schedule.state()
    assert (dict(state.results), state.failed, state.missing) == ({"b": {}, "a": {"n": 1}}, {"c": "broken"}, ("d",))


def test_what_another_process_is_at_comes_last() -> None:
    schedule = Schedule([task("a"), task("b"), task("c")], {}, {})
    handed = [schedule.next(lambda name: name in "ab") for _ in range(3)]
    assert [one.name for one in handed if one is not None] == ["c", "a", "b"]
    assert schedule.next(never) is None


def test_what_is_finished_or_failed_already_is_not_handed_out() -> None:
    plan = [task("a"), task("b", "a"), task("c"), task("d", "c"), task("e", "d")]
    schedule = Schedule(plan, {"a": {"n": 1}}, {"c": "broken"})
    assert [one.name for one in schedule.open()] == ["b"]
    assert schedule.next(never).name == "b"  # type: ignore[union-attr]
    assert schedule.next(never) is None
    schedule.drop("b")
    assert schedule.state().missing == ("b", "d", "e")
