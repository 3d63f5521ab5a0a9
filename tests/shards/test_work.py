"""Computing what a run lacks: faults of units, of workers, of the disk, and Ctrl-C."""

import errno
import os
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pytest
from unit_work import Deadly, Numbers, compute, contents, numbers, plan_of, refuse_the_third

from actlens.errors import SceneError
from actlens.shards import Dask, Processes, RunError, Threads, begin, complete, encode, read_all

PLAN = plan_of(8)


@pytest.fixture
def run(tmp_path):
    return begin(tmp_path / "run", PLAN)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    run = begin(tmp_path_factory.mktemp("expected"), PLAN)
    complete(run, PLAN.units, compute, Threads(1))
    return contents(run)


class Death(BaseException):
    """A worker that a fake pool takes for dead."""


class FakePool(Executor):
    """As `ProcessPoolExecutor`: when one worker dies, everything that was handed out is lost."""

    def __init__(self, n):
        self.pool, self.lock = ThreadPoolExecutor(n), Lock()
        self.handed_out, self.broken = set(), False

    def submit(self, fn, /, *args):
        if self.broken:
            raise BrokenExecutor
        future = Future()
        self.handed_out.add(future)

        def work():
            try:
                result = fn(*args)
            except Death:
                self.broken = True
                with self.lock:
                    for other in self.handed_out:
                        if not other.done():
                            other.set_exception(BrokenExecutor("a worker died"))
            else:
                with self.lock:
                    future.done() or future.set_result(result)

        self.pool.submit(work)
        return future


@dataclass(frozen=True)
class Fake:
    n: int = 2
    in_flight: int = 4
    pools: list = field(default_factory=list)

    @contextmanager
    def executor(self):
        self.pools.append(FakePool(self.n))
        yield self.pools[-1]
        self.pools[-1].pool.shutdown()

    def is_death(self, error):
        return False


def dying(unit_numbers, times):
    left = dict.fromkeys(unit_numbers, times)

    def work(unit):
        i = unit.what["i"]
        if left.get(i, 0) > 0:
            left[i] -= 1
            time.sleep(0.005)
            raise Death
        time.sleep(0.02)  # so that others are in work when one dies
        return compute(unit)

    return work


@pytest.mark.parametrize("victims", [(3,), (0, 7), (1, 2, 5)])
def test_units_whose_workers_die_once_or_twice_are_computed_after_all(run, expected, victims):
    told = []
    complete(run, PLAN.units, dying(victims, 2), Fake(), notice=told.append)
    assert contents(run) == expected
    assert any("A worker died during unit" in sentence for sentence in told)


def test_a_unit_that_always_takes_its_worker_down_is_named_and_no_other_is_blamed(run, expected):
    with pytest.raises(RunError, match="1 of 8 units failed, first unit 3: ended its worker 3"):
        complete(run, PLAN.units, dying((3,), 99), Fake())
    assert contents(run) == {k: v for k, v in expected.items() if k != PLAN.units[3].key}


def test_workers_that_die_whatever_they_do_end_the_run(run):
    engine = Fake()
    with pytest.raises(RunError, match=r"die again and again|units failed"):
        complete(run, PLAN.units, dying(range(8), 99), engine)
    assert len(engine.pools) < 10


def test_a_unit_that_fails_is_named_and_all_others_are_stored(run, expected):
    with pytest.raises(RunError, match="first unit 2: SceneError: the scene is black"):
        complete(run, PLAN.units, refuse_the_third, Threads(2))
    assert len(contents(run)) == 7
    complete(run, PLAN.units, compute, Threads(2))
    assert contents(run) == expected


def test_a_run_in_which_everything_fails_ends_early(tmp_path):
    plan, calls = plan_of(500), []

    def fail(unit):
        calls.append(unit)
        raise SceneError("no such file")

    with pytest.raises(RunError, match="of 500 units failed"):
        complete(begin(tmp_path, plan), plan.units, fail, Threads(1))
    assert len(calls) < 30


def test_a_programming_error_is_not_taken_for_a_bad_unit(run):
    with pytest.raises(ZeroDivisionError):
        complete(run, PLAN.units, lambda unit: 1 / 0, Threads(1))


def test_workers_that_dropped_a_unit_are_out_of_reach(run):
    class Dropping(Fake):
        @contextmanager
        def executor(self):
            pool = ThreadPoolExecutor(1)
            pool.submit = lambda *_: cancelled()
            yield pool

    def cancelled():
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future

    with pytest.raises(RunError, match=r"out of reach.* 0 of 8 units are stored"):
        complete(run, PLAN.units, compute, Dropping())


@pytest.mark.parametrize("engine", [Threads(1), Threads(2)], ids=["one thread", "two threads"])
def test_ctrl_c_keeps_what_is_done_and_the_run_goes_on(run, expected, engine):
    def interrupt(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(run, PLAN.units, compute, engine, progress=interrupt)
    assert len(contents(run)) == 3
    assert engine.stopped.is_set()
    complete(run, PLAN.units, compute, engine)
    assert contents(run) == expected


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_at_the_nth_write_for_every_n_loses_nothing(
    tmp_path, expected, call, monkeypatch
):
    owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace"), "write": (Path, "open")}[
        call
    ]
    real = getattr(owner, name)
    for n in range(len(PLAN.units) + 1):
        run, left = begin(tmp_path / str(n), PLAN), n

        def full(*args, **kwargs):
            nonlocal left
            if call != "write" or args[1:2] == ("xb",):
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            if n < len(PLAN.units):
                with pytest.raises(RunError, match=f"No space left.* {n} of 8 units are stored"):
                    complete(run, PLAN.units, compute, Threads(1))
            else:
                complete(run, PLAN.units, compute, Threads(1))
        assert len(contents(run)) == n
        assert not list(run.folder.rglob("*.part"))
        complete(run, PLAN.units, compute, Threads(1))
        assert contents(run) == expected


def test_two_that_work_on_one_folder_share_the_work(run, expected):
    computed = []

    def with_a_rival(unit):
        if not computed:  # a second process does the last five meanwhile
            complete(run, PLAN.units[3:], compute, Threads(1))
        computed.append(unit.name)
        return compute(unit)

    seen = []
    complete(run, PLAN.units, with_a_rival, Threads(1), progress=seen.append)
    assert contents(run) == expected
    assert len(computed) <= 4  # those before, and the one that was handed out already
    assert seen[-1].done == seen[-1].total == 8


def test_progress_counts_what_was_there_and_estimates_from_what_was_not(run):
    complete(run, PLAN.units[:4], compute, Threads(1))
    seen = []
    complete(run, PLAN.units, compute, Threads(1), progress=seen.append)
    assert [progress.done for progress in seen] == [4, 5, 6, 7, 8]
    assert {progress.found for progress in seen} == {4}
    assert seen[0].seconds_left is None
    assert seen[1].seconds_left == pytest.approx(3 * seen[1].seconds)
    assert seen[-1].seconds_left == 0


def test_units_that_are_asked_for_twice_are_computed_once(run):
    computed = []

    def work(unit):
        computed.append(unit)
        return compute(unit)

    complete(run, [*PLAN.units, *PLAN.units], work, Threads(1))
    assert len(computed) == 8


def test_a_real_process_pool_survives_the_death_of_a_worker(run, expected, tmp_path):
    told = []
    complete(run, PLAN.units, Deadly(tmp_path, ((5, 1),)), Processes(2), notice=told.append)
    assert contents(run) == expected
    assert (tmp_path / "died-5").stat().st_size == 1
    assert told


def test_dask_without_a_scheduler_says_how_to_get_one(run):
    pytest.importorskip("distributed")
    with pytest.raises(RunError, match="No Dask scheduler answers at 'not-an-address://x'"):
        complete(run, PLAN.units, compute, Dask("not-an-address://x"))


def test_ten_thousand_units_take_no_more_memory_than_two_thousand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # only slow here
    plan = plan_of(10_000)
    run = begin(tmp_path, plan)
    resident = {}

    def measure(progress):
        if progress.done in (2_000, 10_000):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[progress.done] = pages * os.sysconf("SC_PAGE_SIZE")

    work = lambda unit: encode(numbers(unit.what["i"], size=1000), key=unit.key)
    complete(run, plan.units, work, Threads(2), progress=measure)
    assert resident[10_000] - resident[2_000] < 16 * 2**20  # the results are 80 MB
    assert sum(1 for _ in read_all([run], Numbers)) == 10_000
