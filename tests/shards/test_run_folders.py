"""A run's folder: begun once, gone on with by the same run only, read back in the plan's order."""

import json
import os
import time

import numpy as np
import pytest
from unit_work import Numbers, compute, contents, numbers, plan_of

from actlens.shards import Plan, RunError, Shard, Threads, begin, complete, open_run, read_all
from actlens.shards.folder import RUN_FILE


@pytest.fixture
def whole(tmp_path):
    """A finished run of six units."""
    plan = plan_of(6)
    run = begin(tmp_path / "whole", plan)
    complete(run, plan.units, compute, Threads(1))
    return run


def damage(run, number, change):
    path = run.path(run.plan.units[number])
    path.write_bytes(change(path.read_bytes()))
    return path


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "changed": lambda content: content[:-3] + b"\0" + content[-2:],
    "foreign": lambda content: b"PK\3\4 something else",
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_computed_again(whole, change):
    before = contents(whole)
    path = damage(whole, 3, change)
    told = []
    complete(whole, whole.plan.units, compute, Threads(1), notice=told.append)
    assert len(told) == 1
    assert "unit 3" in told[0]
    assert str(path) in told[0]
    assert contents(whole) == before


def test_another_units_file_under_a_units_name_is_named_and_computed_again(whole):
    before, other = contents(whole), whole.path(whole.plan.units[0]).read_bytes()
    damage(whole, 3, lambda content: other)
    told = []
    complete(whole, whole.plan.units, compute, Threads(1), notice=told.append)
    assert "belongs to another unit" in told[0]
    assert contents(whole) == before


def test_finished_units_are_not_computed_again(whole):
    computed = []
    complete(whole, whole.plan.units, computed.append, Threads(1))
    assert not computed


def test_reading_names_every_unit_without_a_result(whole):
    whole.path(whole.plan.units[1]).unlink()
    damage(whole, 4, DAMAGE["truncated"])
    with pytest.raises(RunError, match="2 of 6 units have no result") as caught:
        read_all([whole], Numbers)
    assert "'unit 1', 'unit 4'" in str(caught.value)
    assert "is damaged" in str(caught.value)


def test_results_come_in_the_plans_order_and_to_the_bit(whole):
    for i, found in enumerate(read_all([whole], Numbers)):
        assert found.unit == i
        np.testing.assert_array_equal(found.values, numbers(i).values)
        assert repr(found.total) == repr(numbers(i).total)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_shards_in_folders_of_their_own_give_the_whole_run(whole, tmp_path, n):
    runs = []
    for number in range(n, 0, -1):
        run = begin(tmp_path / f"{number}", whole.plan)
        complete(run, Shard(number, n).units(run.plan), compute, Threads(2))
        runs.append(run)
    found = {key: content for run in runs for key, content in contents(run).items()}
    assert found == contents(whole)
    assert sum(len(contents(run)) for run in runs) == len(found)
    assert [one.unit for one in read_all(runs, Numbers)] == list(range(6))


def test_a_unit_that_is_damaged_in_one_folder_is_taken_from_another(whole, tmp_path):
    other = begin(tmp_path / "other", whole.plan)
    complete(other, other.plan.units[:4], compute, Threads(1))
    damage(other, 2, DAMAGE["changed"])
    assert [one.unit for one in read_all([other, whole], Numbers)] == list(range(6))


def test_order_and_number_of_threads_leave_no_trace(whole, tmp_path):
    shuffled = np.random.default_rng(1).permutation(6)
    run = begin(tmp_path / "other", whole.plan)
    complete(run, [run.plan.units[i] for i in shuffled], compute, Threads(3))
    assert contents(run) == contents(whole)
    assert (run.folder / RUN_FILE).read_bytes() == (whole.folder / RUN_FILE).read_bytes()


def test_another_run_is_refused_and_what_differs_is_named(whole):
    for plan, reason in [
        (plan_of(6, seed=1), "seed is '1' here"),
        (plan_of(6, options={"max_error": 0.1}), "options"),
        (plan_of(7), "6 units there and 7 here, not there: 'unit 6'"),
        (Plan(whole.plan.asked, whole.plan.units[::-1]), "holds another run"),
    ]:
        with pytest.raises(RunError) as caught:
            begin(whole.folder, plan)
        assert "holds another run" in str(caught.value)
        assert reason.replace("seed is '1' here", "seed is") in str(caught.value)
        assert str(whole.folder) in str(caught.value)


def test_folders_of_different_runs_are_not_read_together(whole, tmp_path):
    with pytest.raises(RunError, match="holds another run"):
        read_all([whole, begin(tmp_path / "other", plan_of(6, seed=1))], Numbers)


def test_what_was_settled_when_a_run_began_holds_until_it_ends(tmp_path):
    tolerances = iter([0.03, 0.015])
    settle = lambda: {"tolerance": next(tolerances)}
    first = begin(tmp_path, plan_of(2), settle=settle, about={"command": "x"})
    again = begin(tmp_path, plan_of(2), settle=settle)
    assert first.settled == again.settled == {"tolerance": 0.03}
    assert again.about == {"command": "x"}


def test_of_two_that_begin_at_once_both_go_on_with_the_first(tmp_path):
    def settle():  # meanwhile another process begins the same run
        begin(tmp_path, plan_of(2), settle=lambda: {"tolerance": 1.0})
        return {"tolerance": 2.0}

    assert begin(tmp_path, plan_of(2), settle=settle).settled == {"tolerance": 1.0}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_description_is_named_and_can_be_made_again(whole, change):
    path, before = whole.folder / RUN_FILE, contents(whole)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError, match=r"run\.json is damaged .* Remove it"):
        begin(whole.folder, whole.plan)
    path.unlink()
    run = begin(whole.folder, whole.plan)
    complete(run, run.plan.units, lambda unit: pytest.fail("computed again"), Threads(1))
    assert contents(run) == before


def test_a_forged_description_cannot_name_paths(whole):
    path = whole.folder / RUN_FILE
    content = json.loads(path.read_bytes())
    content["units"][0][0] = "../../../etc/passwd"
    del content["sha256"]
    from actlens.shards import key_of

    path.write_text(json.dumps(content | {"sha256": key_of(content)}))
    with pytest.raises(RunError, match="keys do not follow"):
        open_run(whole.folder)


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        open_run(tmp_path)


def test_half_written_files_are_cleared_away_once_nobody_can_be_writing_them(whole):
    path = whole.path(whole.plan.units[0])
    old, new = path.with_name(f".{path.name}.1.part"), path.with_name(f".{path.name}.2.part")
    for scrap, age in ((old, 2 * 3600), (new, 5)):
        scrap.write_bytes(b"half")
        os.utime(scrap, (time.time() - age,) * 2)
    begin(whole.folder, whole.plan)
    assert not old.exists()
    assert new.exists()


def test_every_unit_is_in_exactly_one_shard():
    plan = plan_of(11)
    for n in (1, 2, 3, 4, 11, 13):
        keys = [u.key for number in range(n) for u in Shard(number + 1, n).units(plan)]
        assert sorted(keys) == sorted(unit.key for unit in plan.units)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(RunError, match="A shard is i/n"):
        Shard.parse(text)


def test_keys_follow_from_everything_that_is_asked_and_from_nothing_else():
    keys = lambda plan: [unit.key for unit in plan.units]
    assert keys(plan_of(3, a=1, b=2)) == keys(plan_of(3, b=2, a=1))
    assert keys(plan_of(5))[:3] == keys(plan_of(3))
    assert not set(keys(plan_of(3, a=1))) & set(keys(plan_of(3, a=2)))
