"""Killed at any moment: what was finished counts, the rest is made again, with the same bytes."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Executor, Future
from functools import cache
from pathlib import Path

import pytest

from actlens.store import StoreError, appending, files, open_activations, verify, writing
from actlens.store.sites import stored_sites
from tests.store.conftest import SITES, contents, scenes, small_shards

N = 5  # three shards of two scenes each, the last of one


def tiny_shards(model, n, folder, **options):
    """Shards of two scenes that are run one by one."""
    return small_shards(model, n, folder, scenes_per_shard=2, memory_budget=1, **options)


class Killed(BaseException):
    """What ends a process, as far as one can be ended inside of a test."""


class DyingSystem:
    """`os`, which dies at its n-th change of the disk, half way through, and does nothing after."""

    CHANGES = ("open", "pwrite", "fsync", "replace", "unlink", "ftruncate", "makedirs")

    def __init__(self, lives):
        self.lives = lives

    def __getattr__(self, name):
        call = getattr(os, name)
        return self.dying(name, call) if name in self.CHANGES else call

    def dying(self, name, call):
        def change(*args, **kwargs):
            self.lives -= 1
            if self.lives == 0 and name == "pwrite":
                descriptor, data, offset = args
                os.pwrite(descriptor, memoryview(data)[: len(data) // 2], offset)
            if self.lives <= 0:
                raise Killed
            return call(*args, **kwargs)

        return change


class AtOnce(Executor):
    """An executor without threads, so that changes of the disk have one order."""

    def __init__(self, workers):
        pass

    def submit(self, fn, /, *args, **kwargs):
        done = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  as the real one does
            done.set_exception(error)
        return done


@pytest.fixture
def fast(monkeypatch, policy):
    """Hundreds of calls: what they compute before anything is written is computed once."""
    known = stored_sites(policy, SITES)
    monkeypatch.setattr(writing, "stored_sites", lambda model, sites: known)
    monkeypatch.setattr(writing, "_batch_size", lambda *given: 1)
    monkeypatch.setattr(writing, "weights_sha256", cache(writing.weights_sha256))


def test_killed_at_every_change_of_the_disk(policy, tmp_path, monkeypatch, fast):
    whole = tmp_path / "whole"
    tiny_shards(policy, N, whole)
    expected = contents(whole)
    monkeypatch.setattr(appending, "ThreadPoolExecutor", AtOnce)
    finished = []
    for lives in range(1, 1000):
        folder, kept = tmp_path / str(lives), {}
        monkeypatch.setattr(files, "os", DyingSystem(lives))
        try:
            tiny_shards(policy, N, folder)
        except Killed:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(files, "os", os)
        if (folder / "manifest.json").exists():
            store = open_activations(folder)  # a reader sees whole shards, and only these
            finished.append(len(store.shards))
            assert verify(store) == ()
            assert len(store[store.sites[0]][:]) == len(store)
            kept = {record.file: (folder / record.file).stat().st_ino for record in store.shards}
        tiny_shards(policy, N, folder)
        assert contents(folder) == expected, f"killed at change {lives}"
        assert [path.name for path in folder.glob(".*")] == [".lock"]
        assert all((folder / name).stat().st_ino == inode for name, inode in kept.items())
    assert sorted(set(finished)) == [0, 1, 2, 3]
    assert lives > 60


@pytest.mark.parametrize("lives", [20, 36, 50])
def test_killed_while_the_disk_works_in_its_own_thread(policy, tmp_path, monkeypatch, fast, lives):
    whole, folder = tmp_path / "whole", tmp_path / "acts"
    tiny_shards(policy, N, whole)
    monkeypatch.setattr(files, "os", DyingSystem(lives))
    with pytest.raises(Killed):
        tiny_shards(policy, N, folder)
    monkeypatch.setattr(files, "os", os)
    tiny_shards(policy, N, folder)
    assert contents(folder) == contents(whole)


def test_a_full_disk_is_an_error_that_keeps_what_is_finished(policy, tmp_path, monkeypatch, fast):
    whole, folder = tmp_path / "whole", tmp_path / "acts"
    tiny_shards(policy, N, whole)
    tiny_shards(policy, 2, folder)

    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match=r"shard-000001.*No space left on device"):
            tiny_shards(policy, N, folder)
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    assert len(open_activations(folder)) == 2
    tiny_shards(policy, N, folder)
    assert contents(folder) == contents(whole)


def test_scenes_that_fail_to_come_leave_what_is_finished(policy, tmp_path, fast):
    def broken():
        yield from scenes(5)
        raise RuntimeError("the video is damaged")

    with pytest.raises(RuntimeError, match="the video is damaged"):
        tiny_shards(policy, 0, tmp_path / "acts", scenes=broken())
    assert [len(record) for record in open_activations(tmp_path / "acts").shards] == [2, 2]


@pytest.mark.parametrize("garbage", [b"", b"\0\0\0\0", b'{"shard":2,"bytes"', b"x" * 100_000])
def test_a_last_line_that_was_cut_off_does_not_count(policy, tmp_path, fast, garbage):
    folder = tmp_path / "acts"
    tiny_shards(policy, N, folder)
    expected = contents(folder)
    lines = expected["shards.jsonl"].splitlines(keepends=True)
    (folder / "shards.jsonl").write_bytes(b"".join(lines[:2]) + garbage)
    assert len(open_activations(folder)) == 4
    tiny_shards(policy, N, folder)
    assert contents(folder) == expected


def test_what_an_unfinished_attempt_left_is_written_over(policy, tmp_path, fast):
    whole, folder = tmp_path / "whole", tmp_path / "acts"
    tiny_shards(policy, N, whole)
    folder.mkdir()
    for name in contents(whole):
        (folder / f".{name}.unfinished").write_bytes(b"x" * 100_000)
    tiny_shards(policy, N, folder)
    assert contents(folder) == contents(whole)


def test_a_shard_counts_only_after_content_and_name_are_on_the_disk(
    policy, tmp_path, monkeypatch, fast
):
    """A loss of power keeps what was synced: the list of shards comes last."""
    done = []

    class Watched:
        def __getattr__(self, name):
            call = getattr(os, name)
            return self.noted(name, call) if name in ("fsync", "replace", "pwrite") else call

        def noted(self, name, call):
            def change(first, *args):
                path = first if name == "replace" else Path(f"/proc/self/fd/{first}").readlink()
                done.append(f"{name} {Path(path).name}")
                return call(first, *args)

            return change

    monkeypatch.setattr(files, "os", Watched())
    monkeypatch.setattr(appending, "ThreadPoolExecutor", AtOnce)
    tiny_shards(policy, N, tmp_path / "acts")
    unfinished = ".shard-000001.safetensors.unfinished"
    last = len(done) - done[::-1].index(f"pwrite {unfinished}")
    assert done[last : last + 5] == [
        f"fsync {unfinished}",
        f"replace {unfinished}",
        "fsync acts",
        "pwrite shards.jsonl",
        "fsync shards.jsonl",
    ]


WRITER = """
import sys, time
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
import tests.conftest as shared
from tests.store import conftest

new_model = shared.new_model.__wrapped__(shared.make_config.__wrapped__())
policy = conftest.build_policy.__wrapped__(new_model)()

def slowly():
    for scene in conftest.scenes({n}):
        time.sleep(0.05)
        yield scene

print("ready", flush=True)
conftest.small_shards(policy, 0, {folder!r}, scenes_per_shard=2, memory_budget=1, scenes=slowly())
"""


def test_a_process_that_was_killed_is_gone_on_with(policy, tmp_path):
    n = 1000
    folder = tmp_path / "acts"
    root = str(Path(__file__).parents[2])
    program = textwrap.dedent(WRITER.format(root=root, folder=str(folder), n=n))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (folder / "shards.jsonl").exists():
            time.sleep(0.01)
        with pytest.raises(StoreError, match="another process is writing"):
            tiny_shards(policy, 12, folder)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    killed_at = len(open_activations(folder))
    assert 2 <= killed_at < n
    enough = killed_at + 3
    tiny_shards(policy, enough, folder)
    tiny_shards(policy, enough, tmp_path / "whole")
    before, after = (contents(f) for f in (tmp_path / "whole", folder))
    manifests = [json.loads(c.pop("manifest.json")) for c in (before, after)]
    for manifest in manifests:
        manifest.pop("environment")
    assert manifests[0] == manifests[1]
    assert before == after
