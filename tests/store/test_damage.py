"""A damaged shard is named, the others are read, and it is made again by itself."""

import json
import pickle
import random
from contextlib import suppress
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from actlens.errors import ActlensError
from actlens.store import Fault, StoreError, open_activations, rebuild_shard, verify
from tests.store.conftest import contents, scene, scenes, small_shards

pytestmark = pytest.mark.usefixtures("shapes_once")


class Payload:
    def __reduce__(self):
        import os

        return os.mkdir, ("executed",)


def cut(content):
    return content[:-1]


def grown(content):
    return content + b"\0"


def flipped(content):
    changed = bytearray(content)
    changed[-3] ^= 16
    return bytes(changed)


def foreign(content):
    return safetensors.torch.save({"weight": torch.zeros(3)})


def a_pickle(content):
    return pickle.dumps(Payload()).ljust(len(content), b"\0")


def renamed(content):
    return content.replace(b"[query=0]", b"[query=1]")


def empty(content):
    return b""


@pytest.fixture(scope="module")
def written(policy, tmp_path_factory):
    """The files of a store of three shards."""
    folder = tmp_path_factory.mktemp("stores") / "acts"
    small_shards(policy, 10, folder)
    return contents(folder)


@pytest.fixture
def folder(written, tmp_path):
    """A copy of that store."""
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


DAMAGES = {
    cut: (Fault.SIZE, "bytes, not the"),
    grown: (Fault.SIZE, "bytes, not the"),
    empty: (Fault.SIZE, "bytes, not the"),
    foreign: (Fault.SIZE, "bytes, not the"),
    a_pickle: (Fault.CONTENT, "is damaged or foreign"),
    renamed: (Fault.CONTENT, "is not the shard that was written"),
    flipped: (Fault.CONTENT, None),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_shard_is_named_and_made_again_alone(
    policy, written, folder, damage, monkeypatch
):
    monkeypatch.chdir(folder)
    path = folder / "shard-000001.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    fault, message = DAMAGES[damage]
    store = open_activations(folder)
    (found,) = verify(store)
    assert (found.shard, found.path, found.fault) == (1, path, fault)
    assert str(path) in str(found)
    values = store["decoder.0.mlp.hook_post"]
    assert len(values[[0, 3, 8, 9]]) == 4  # the other shards
    if message is not None:  # only a checksum tells that a value was flipped
        with pytest.raises(StoreError, match=f"shard-000001.*{message}.*rebuild_shard.* 1"):
            values[5]
        with pytest.raises(StoreError, match="shard-000001"):
            _ = store.labels
    own = list(scenes(10))[store.shards[1].rows]
    assert [(s.episode, s.frame) for s in own] == list(store.shards[1].addresses)
    rebuild_shard(policy, own, folder, 1)
    assert contents(folder) == written
    assert not (folder / "executed").exists()
    assert verify(open_activations(folder)) == ()


def test_a_missing_shard_is_named_and_made_again(policy, written, folder):
    (folder / "shard-000002.safetensors").unlink()
    (found,) = verify(open_activations(folder))
    assert (found.shard, found.fault) == (2, Fault.MISSING)
    with pytest.raises(StoreError, match=r"shard-000002\.safetensors: cannot be read"):
        open_activations(folder)["decoder.0.mlp.hook_post"][9]
    rebuild_shard(policy, (scene(8), scene(9)), folder, 2)
    assert contents(folder) == written


def test_every_flipped_bit_is_found(folder):
    path = folder / "shard-000000.safetensors"
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(40):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        store = open_activations(folder)
        assert [found.shard for found in verify(store)] == [0]
        for address in store.sites:  # and reading raises nothing but the store's own error
            with suppress(StoreError):
                store[address][:4]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            lambda: scenes(4),
            "other scenes, beginning with 1:1, than the 4 given, which begin .*0:0",
        ),
        (lambda: scenes(0), "than the 0 given, which begin with none"),
        (lambda: [*map(scene, range(4, 8)), scene(8)], "than the 5 given"),
        (lambda: [scene(4, seed=1), *map(scene, range(5, 8))], "was made from 4 other scenes"),
    ],
)
def test_a_shard_is_not_made_from_other_scenes(policy, written, folder, own, message):
    with pytest.raises(StoreError, match=message):
        rebuild_shard(policy, own(), folder, 1)
    assert contents(folder) == written


def test_a_shard_is_not_made_by_another_policy(build_policy, written, folder):
    edited = build_policy()
    with torch.no_grad():
        edited.action_head.bias[0] += 1
    with pytest.raises(StoreError, match="made with other weights"):
        rebuild_shard(edited, map(scene, range(4, 8)), folder, 1)
    with pytest.raises(StoreError, match=r"has shards 0\.\.2, no 3"):
        rebuild_shard(build_policy(), map(scene, range(4)), folder, 3)
    assert contents(folder) == written


def test_bytes_that_come_out_otherwise_are_not_taken(policy, written, folder, monkeypatch):
    manifest = folder / "manifest.json"
    said = json.loads(manifest.read_text())
    said["environment"]["torch"] = "1.0"
    manifest.write_text(json.dumps(said))
    # As if another machine rounded otherwise.
    run = type(policy).run_with_cache

    def rounding(self, *args, **options):
        output, cache = run(self, *args, **options)
        rounded = {k: v * 1.01 for k, v in cache.activations.items()}
        return output, replace(cache, activations=rounded)

    monkeypatch.setattr(type(policy), "run_with_cache", rounding)
    with pytest.raises(StoreError, match=r"other bytes than it had.*begun with torch 1\.0 \(now"):
        rebuild_shard(policy, map(scene, range(4, 8)), folder, 1)
    assert contents(folder) | {"manifest.json": b""} == written | {"manifest.json": b""}
    assert [path.name for path in folder.glob(".*")] == [".lock"]


# ── descriptions that say something else ─────────────────────────────────────────────────────


@pytest.mark.parametrize("line", [b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'"shard"', b""])
def test_a_damaged_line_of_the_list_of_shards_is_named(folder, line):
    path = folder / "shards.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, lines[2]]) + b"\n")
    with pytest.raises(StoreError, match=r"shards\.jsonl: line 2 is damaged"):
        open_activations(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"shard": 1},
        {"bytes": -1},
        {"bytes": True},
        {"sha256": "0" * 63},
        {"sha256": "../../etc/passwd"},
        {"scenes_sha256": None},
        {"episodes": [0, 0, 0]},
        {"episodes": [0.5, 0, 0, 1]},
        {"frames": "0121", "episodes": "0000"},
        {"episodes": [], "frames": []},
        {"episodes": [0] * 5, "frames": [0] * 5},
        {"episodes": [10**30] * 4},
    ],
    ids=str,
)
def test_a_line_that_cannot_be_true_is_named(folder, change):
    path = folder / "shards.jsonl"
    lines = path.read_bytes().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | change).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(StoreError, match=r"shards\.jsonl: line 1 is damaged"):
        open_activations(folder)


def values_within(content, path=()):
    """The path of every value in nested JSON."""
    yield path
    nested = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in nested:
        if isinstance(value, dict | list):
            yield from values_within(value, (*path, key))
        else:
            yield (*path, key)


def test_a_manifest_that_says_anything_else_raises_nothing_but_the_stores_error(folder):
    """Whatever is put in the place of any value: it is understood, or refused by name."""
    path = folder / "manifest.json"
    original = path.read_text()
    junk = [None, -1, 10**25, "\x1b[2J", [], {}, "decoder.0.mlp.hook_post[neuron=99]", 1.5, [[]]]
    refused = []
    for place in values_within(json.loads(original)):
        for value in junk:
            said = json.loads(original)
            if place:
                inside = said
                for key in place[:-1]:
                    inside = inside[key]
                inside[place[-1]] = value
            else:
                said = value
            path.write_text(json.dumps(said))
            try:
                store = open_activations(folder)
                for address in store.sites:
                    store[address][:1]
            except ActlensError as error:
                refused.append(str(error))
    assert len(refused) > 300
    assert all(str(folder) in message and "\x1b" not in message for message in refused)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no activation store"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"format": "other"}', "is format 'other'"),
        (b'{"format": "actlens.store", "version": 2}', "version '2'; this actlens reads"),
        (b" " * (5 * 2**20), "too many"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_store_is_said_to_be_none(folder, content, message):
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_activations(folder)
