"""What is read is what was stored, whatever part is asked for, and no more is touched."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from actlens.errors import HookNameError
from actlens.scene import stack
from actlens.store import StoreError, open_activations, write_activations
from actlens.store import view as view_module
from tests.store.conftest import contents, scene, scenes, small_shards

N = 11
pytestmark = pytest.mark.usefixtures("shapes_once")
WHOLE = (
    "decoder.0.hook_action_vector",
    "decoder.0.cross_attn.hook_pattern",
    "encoder.hook_out",
    "decoder.0.mlp.hook_post[query=1:4, neuron=2:20]",
    "decoder.0.hook_mlp_out[query=1, d_model={7, 2, 9}]",
    "hook_actions",
)


@pytest.fixture(scope="module")
def store(policy, tmp_path_factory):
    """Eleven scenes in shards of four."""
    folder = tmp_path_factory.mktemp("stores") / "acts"
    return write_activations(
        policy, scenes(N), WHOLE, folder, dtype=torch.float32, scenes_per_shard=4, memory_budget=1
    )


@pytest.fixture(scope="module")
def cache(policy):
    """The same activations from `run_with_cache`, as the store computes them: one by one."""
    with torch.no_grad():
        runs = [policy.run_with_cache(scene(n), names_filter="*")[1] for n in range(N)]
    together = {n: torch.cat([run[n] for run in runs]) for n in runs[0] if n != "embed.hook_pos"}
    return type(runs[0])(together, runs[0].points, runs[0].aliases, runs[0].tokens)


ROWS = [
    slice(None), slice(3, 9), slice(-3, None), slice(None, None, 3), slice(9, 2, -2), slice(5, 5),
    [0], [7, 0, 7, -1], np.array([10, 3]), torch.tensor([4, 5, 6]), np.arange(N) % 3 == 0, [],
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_scenes_are_indexed_as_numpy_would(store, cache, rows):
    address = "decoder.0.hook_action_vector"
    if isinstance(rows, list):
        rows = np.array(rows, dtype=int)
    expected = cache[address].numpy()[np.asarray(rows) if torch.is_tensor(rows) else rows]
    values = store[address][rows]
    assert torch.equal(values, torch.from_numpy(expected.copy()))
    assert values.dtype == torch.float32


@pytest.mark.parametrize("row", [0, 3, 4, 10, -1, np.int64(5)])
def test_one_scene_has_no_scene_axis(store, cache, row):
    assert torch.equal(store["encoder.hook_out"][row], cache["encoder.hook_out"][row])


@pytest.mark.parametrize("rows", [11, -12, [0, 11], np.array([[1]]), [0.5], [True, False], "ab"])
def test_scenes_that_do_not_exist_raise_index_errors(store, rows):
    with pytest.raises(IndexError, match=r"[Ss]cenes"):
        store["hook_actions"][rows]


@pytest.mark.parametrize(
    ("address", "axes"),
    [
        ("decoder.0.hook_normalized_resid_mid_cross", "scene query d_model"),
        ("decoder.0.hook_action_vector[query=2]", "scene d_model"),
        ("decoder.0.hook_action_vector[query={4, 1}, 3:9]", "scene query d_model"),
        ("decoder.0.hook_action_vector[query=-1, d_model={5, 0, 31}]", "scene d_model"),
        ("decoder.0.cross_attn.hook_pattern[head=1, query=1:3, top]", "scene query token"),
        ("decoder.0.cross_attn.hook_pattern[head={3, 0}, query={2, 4}]", "scene head query token"),
        ("decoder.0.cross_attn.hook_pattern[head=0, query={2, 4}, state]", "scene query"),
        ("encoder.hook_out[top[1,2]]", "scene d_model"),
        ("encoder.hook_out[{state, side, 3}]", "scene token d_model"),
        ("decoder.0.mlp.hook_post[query=1:4, neuron=2:20]", "scene query neuron"),
        ("decoder.0.mlp.hook_post[query=2, 7]", "scene"),
        ("decoder.0.mlp.hook_post[query={3, 1}, neuron={2, 19}]", "scene query neuron"),
        ("decoder.0.hook_mlp_out[query=-4, d_model={7, 2, 9}]", "scene d_model"),
        ("decoder.0.hook_mlp_out[query=1, d_model={9, 7}]", "scene d_model"),
        ("decoder.0.hook_mlp_out[query=1, -23]", "scene"),
        ("hook_actions[joint=gripper]", "scene chunk"),
    ],
)  # fmt: skip
def test_any_part_of_what_is_stored_has_an_address(store, cache, address, axes):
    values = store[address]
    expected = cache[address]
    assert values.axes == tuple(axes.split())
    assert values.shape == tuple(expected.shape)
    assert torch.equal(values[:], expected)
    assert torch.equal(values[[9, 2]], expected[[9, 2]])
    mapped = list(values.mapped())
    assert [rows for rows, _ in mapped] == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert torch.equal(torch.cat([part for _, part in mapped]), expected)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("decoder.0.mlp.hook_post", "there is decoder.0.mlp.hook_post[query=1:4, neuron=2:20]."),
        ("decoder.0.mlp.hook_post[query=0, 7]", "'decoder.0.mlp.hook_post[query=0, 7]' is not st"),
        ("decoder.0.mlp.hook_post[query=1:4, neuron=0:20]", "is not stored; of that hook point"),
        ("decoder.0.hook_mlp_out[query=2, d_model={7, 2, 9}]", "there is decoder.0.hook_mlp_out["),
        ("decoder.0.hook_mlp_out[query=1:2, d_model={7, 2, 9}]", "there is decoder.0.hook_mlp_o"),
        ("decoder.0.hook_mlp_out[query=1, 3]", "there is decoder.0.hook_mlp_out[query=1"),
        ("decoder.0.mlp.hook_post[neuron=24]", "axis 'neuron' has 24 entries; 24 selects none"),
        ("encoder.hook_ou", "is not stored. Did you mean 'encoder.hook_out'"),
        ("decoder.0.hook_action_vecto", "Did you mean 'decoder.0.hook_action_vector'"),
        ("encoder.hook_out[head=1]", "it has no head"),
        ("encoder.hook_out[nose]", "is not a token"),
    ],
)
def test_what_is_not_stored_is_an_error_that_says_what_is(store, address, message):
    with pytest.raises(HookNameError, match=re.escape(message)):
        store[address]


def test_sixteen_bits_are_read_as_float32_and_mapped_as_they_are(policy, tmp_path):
    store = small_shards(policy, 5, tmp_path / "acts")
    values = store["decoder.0.mlp.hook_post"]
    assert (values.dtype, values[:].dtype) == (torch.bfloat16, torch.float32)
    for rows, part in values.mapped():
        assert part.dtype == torch.bfloat16
        assert torch.equal(values[rows], part.float())
    assert len(store) == len(values) == 5


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 100])
def test_batches_come_in_order_with_the_numbers_of_their_scenes(store, cache, batch):
    address = "encoder.hook_out[state]"
    rows, parts = zip(*store.iterate(address, batch), strict=True)
    assert torch.equal(torch.cat(parts), cache[address])
    assert [r for span in rows for r in range(N)[span]] == list(range(N))
    assert all(len(part) == batch for part in parts[:-1])
    for span, part in zip(rows, parts, strict=True):
        assert len(store.labels.iloc[span]) == len(part)
    with pytest.raises(StoreError, match="at least one scene, not 0"):
        store.iterate(address, 0)


def test_scenes_are_grouped_by_episode_of_their_source(policy, tmp_path):
    given = [*scenes(7), *scenes(4, source="other", seed=1), scene(7)]
    store = small_shards(policy, 0, tmp_path / "acts", scenes=given)
    assert store.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 2]
    seen = list(store.by_episode("decoder.0.mlp.hook_post"))
    assert [rows.tolist() for rows, _ in seen] == [[0, 1, 2], [3, 4, 5], [6, 11], [7, 8, 9], [10]]
    for rows, values in seen:
        assert torch.equal(values, store["decoder.0.mlp.hook_post"][rows])


def test_probes_get_what_they_need_by_episode(policy, tmp_path):
    """The way through scikit-learn: values, labels and groups line up."""
    from sklearn.model_selection import GroupKFold

    store = small_shards(policy, 12, tmp_path / "acts")
    values = store["decoder.0.mlp.hook_post[query=0]"]
    for train, test in GroupKFold(4).split(values, store.labels["cube_x"], store.groups):
        assert len(values[train]) == len(store.labels.iloc[train]) == 9
        assert store.labels.iloc[test]["episode"].nunique() == 1


def test_only_the_shards_that_are_asked_for_are_opened(store, monkeypatch):
    opened = []
    original = view_module.OpenShard

    class Counting(original):
        def __init__(self, path, *args):
            opened.append(path.name)
            super().__init__(path, *args)

    monkeypatch.setattr(view_module, "OpenShard", Counting)
    fresh = open_activations(store.folder)
    values = fresh["encoder.hook_out"]
    assert (values.shape, len(fresh), opened) == ((N, 21, 32), N, [])
    values[[9, 8, 10, 9]]
    values[8:]
    assert opened == ["shard-000002.safetensors"]
    next(fresh.iterate("encoder.hook_out", 2))
    assert opened == ["shard-000002.safetensors", "shard-000000.safetensors"]


def mapped_file(tensor):
    """The file that a tensor's memory is a view of; nothing if it is the process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, file = line.split(maxsplit=5) if len(line.split()) == 6 else (line.split()[0], "")
        begin, end = (int(edge, 16) for edge in span.split("-"))
        if begin <= tensor.data_ptr() < end:
            return file
    return ""


def test_values_stay_on_disk_until_they_are_indexed(store):
    for address in ("encoder.hook_out", "encoder.hook_out[token=3:9, d_model=2:31]"):
        values = store[address]
        for record, (_, part) in zip(store.shards, values.mapped(), strict=True):
            assert mapped_file(part) == str(store.folder / record.file)
        assert mapped_file(values[2:3]) in ("", "[heap]")


def test_a_written_view_changes_no_file(policy, tmp_path):
    store = small_shards(policy, 3, tmp_path / "acts")
    before = contents(tmp_path / "acts")
    store["decoder.0.mlp.hook_post"][:].zero_()
    ((_, mapped),) = store["decoder.0.mlp.hook_post"].mapped()
    mapped.zero_()
    assert contents(tmp_path / "acts") == before


def test_a_store_is_shown_in_a_line(store):
    assert repr(store).startswith(f"ActivationStore({str(store.folder)!r}: 11 scenes at decoder.0.")


def test_a_store_that_was_only_begun_is_empty(policy, tmp_path):
    small_shards(policy, 3, tmp_path / "acts")
    (tmp_path / "acts/shards.jsonl").unlink()
    store = open_activations(tmp_path / "acts")
    values = store["decoder.0.mlp.hook_post"]
    assert (len(store), values.shape, values[:].shape) == (0, (0, 5, 24), (0, 5, 24))
    assert len(store.labels) == len(store.groups) == 0
    assert list(store.iterate("decoder.0.mlp.hook_post", 4)) == []
    assert list(store.by_episode("decoder.0.mlp.hook_post")) == []


def test_tokens_are_known_without_the_policy(store, policy):
    assert open_activations(store.folder).tokens.names == policy.tokens.names
    assert stack([scene(0)]).keys() >= {camera.key for camera in store.manifest.config.cameras}
