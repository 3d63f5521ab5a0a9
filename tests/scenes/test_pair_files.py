"""Scene pairs on disk: exact there and back, and nothing else accepted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets_on_disk import png

from actlens.errors import ActlensError, SceneError
from actlens.scene import Scene, ScenePair
from actlens.scenes.bundled import load_pairs, save_pairs


def scene(seed, **changes):
    rng = torch.Generator().manual_seed(seed)
    content = {
        "observation": {
            "observation.images.top": torch.randint(
                256, (3, 24, 32), dtype=torch.uint8, generator=rng
            ),
            "observation.images.wrist": torch.randint(
                256, (3, 17, 9), dtype=torch.uint8, generator=rng
            ),
            "observation.state": torch.randn(6, generator=rng),
        },
        "action": torch.randn(10, 6, generator=rng),
        "action_is_pad": torch.arange(10) > 6,
        "episode": seed,
        "frame": 3,
        "labels": {"cube_x": 0.1 + seed, "cube_yaw": 1 / 3},
        "source": "simulator",
    }
    return Scene(**(content | changes))


@pytest.fixture
def pairs():
    shared = scene(0)
    return (
        ScenePair(shared, scene(1), "cube", scene(2), scene(3)),
        ScenePair(shared, scene(4, action=None, action_is_pad=None, labels={}), "lamp"),
    )


def same(a, b):
    if a is None or b is None:
        return a is b
    return (
        list(a.observation) == list(b.observation)
        and all(torch.equal(a.observation[k], b.observation[k]) for k in a.observation)
        and all(a.observation[k].dtype == b.observation[k].dtype for k in a.observation)
        and (a.action is b.action or torch.equal(a.action, b.action))
        and (a.action_is_pad is b.action_is_pad or torch.equal(a.action_is_pad, b.action_is_pad))
        and (a.episode, a.frame, a.source) == (b.episode, b.frame, b.source)
        and list(a.labels.items()) == list(b.labels.items())
    )


def test_pairs_come_back_exactly(pairs, tmp_path):
    save_pairs(pairs, tmp_path / "pairs.parquet")
    loaded = load_pairs(tmp_path / "pairs.parquet")
    assert len(loaded) == 2
    for before, after in zip(pairs, loaded, strict=True):
        assert before.differs_in == after.differs_in
        assert same(before.clean, after.clean)
        assert same(before.corrupt, after.corrupt)
        assert same(before.unrelated_clean, after.unrelated_clean)
        assert same(before.unrelated_corrupt, after.unrelated_corrupt)


def test_shared_scenes_are_stored_once(pairs, tmp_path):
    path = tmp_path / "pairs.parquet"
    save_pairs(pairs, path)
    assert pq.ParquetFile(path).metadata.num_rows == 5
    first, second = load_pairs(path)
    assert first.clean is second.clean


def test_saving_twice_gives_the_same_bytes(pairs, tmp_path):
    save_pairs(pairs, tmp_path / "a.parquet")
    save_pairs(load_pairs(tmp_path / "a.parquet"), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"observation": {"observation.state": torch.zeros(6)}}, "has the observations"),
        ({"action": torch.zeros(10, 6, dtype=torch.float64)}, "actions as torch.float64"),
    ],
)
def test_what_would_not_come_back_exactly_is_refused(odd, message, tmp_path):
    with pytest.raises(SceneError, match=message):
        save_pairs([ScenePair(scene(0), scene(1, **odd), "cube")], tmp_path / "x.parquet")


def test_float_images_are_refused(tmp_path):
    one = Scene({"observation.images.top": torch.rand(3, 4, 4)})
    with pytest.raises(SceneError, match="only uint8"):
        save_pairs([ScenePair(one, one, "cube")], tmp_path / "x.parquet")
    with pytest.raises(SceneError, match="no pair"):
        save_pairs([], tmp_path / "x.parquet")


def header_with(change):
    def apply(table):
        content = json.loads(table.schema.metadata[b"actlens.pairs"])
        change(content)
        return table.replace_schema_metadata({b"actlens.pairs": json.dumps(content).encode()})

    return apply


def column_with(name, values):
    return lambda t: t.set_column(
        t.column_names.index(name),
        t.schema.field(name),
        pa.array(values, t.schema.field(name).type),
    )


TOP = "observation.images.top"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace_schema_metadata({}), "no set of scene pairs"),
        (header_with(lambda c: c.update(version=99)), "version 99"),
        (header_with(lambda c: c.pop("pairs")), "malformed header"),
        (header_with(lambda c: c.update(pairs=[3])), "malformed header"),
        (header_with(lambda c: c.update(observations=[])), "malformed header"),
        (header_with(lambda c: c["pairs"][0].update(clean=5)), r"has 0\.\.4"),
        (header_with(lambda c: c["pairs"][0].update(clean=-1)), r"has 0\.\.4"),
        (header_with(lambda c: c["pairs"][0].update(clean=None)), r"has 0\.\.4"),
        (header_with(lambda c: c["observations"].update({TOP: [3, 10**6, 1]})), "of shape"),
        (header_with(lambda c: c["observations"].update({TOP: [3, 24, 33]})), "24x33 in RGB"),
        (header_with(lambda c: c["observations"].pop(TOP)), "other columns"),
        (column_with(TOP, [b"GIF89a"] * 5), "cannot be decoded"),
        (column_with(TOP, [png(np.zeros((3, 9, 9), np.uint8))] * 5), "9x9"),
        (column_with("observation.state", [[float("nan")] * 6] * 5), "not finite"),
        (column_with("observation.state", [[0.0] * 5] * 5), "not of shape"),
        (column_with("observation.state", [[None] * 6] * 5), "not finite"),
        (column_with("labels", [[("cube_x", None)]] * 5), "without a value"),
        (column_with("action_is_pad", [[None] * 10] * 5), "without a value"),
        (column_with("action", [[[0.0], [0.0, 1.0]]] * 5), "cannot be read"),
    ],
)
def test_damaged_files_are_refused(pairs, change, message, tmp_path):
    path = tmp_path / "pairs.parquet"
    save_pairs(pairs, path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(SceneError, match=message):
        load_pairs(path)


def test_null_cells_are_refused(pairs, tmp_path):
    path = tmp_path / "pairs.parquet"
    for name in ("episode", "source", "labels", "observation.state", TOP):
        save_pairs(pairs, path)
        pq.write_table(column_with(name, [None] * 5)(pq.read_table(path)), path)
        with pytest.raises(SceneError, match=name):
            load_pairs(path)


def test_mutated_files_are_read_or_refused_never_worse(pairs, tmp_path):
    path = tmp_path / "pairs.parquet"
    save_pairs(pairs, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        mutated = bytearray(whole)
        for _ in range(rng.integers(1, 9)):
            # Structure and numbers lie at the end, pictures before.
            mutated[-int(rng.integers(1, min(6000, len(mutated))))] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            load_pairs(path)
        except ActlensError:
            refused += 1
    assert refused > 20


def test_unknown_sets_are_named(tmp_path):
    with pytest.raises(SceneError, match="is no file and none of the bundled sets"):
        load_pairs("no-such-set")
