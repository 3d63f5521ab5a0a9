"""What is written is what the policy computed, in files that others read, one call or many."""

import hashlib
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from actlens.errors import HookNameError, HookNeverFired
from actlens.hooks import Reader
from actlens.scene import stack
from actlens.store import StoreError, open_activations, weights_sha256, write_activations
from actlens.store.files import locked
from tests.store.conftest import SITES, contents, scene, scenes, small_shards

ALL_KINDS = (
    *SITES,
    "decoder.0.cross_attn.hook_pattern[head={2, 0}, query=1:3]",
    "decoder.0.cross_attn.hook_result[query=-1]",  # on demand
    "encoder.*.hook_resid_post[latent]",  # a glob
    "embed.top.hook_layer4",
    "hook_actions[joint=gripper]",
)

pytestmark = pytest.mark.usefixtures("shapes_once")


# ── values ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_are_run_with_caches_cast_bit_for_bit(policy, tmp_path, dtype):
    folder = tmp_path / "acts"
    store = write_activations(
        policy, scenes(7), ALL_KINDS, folder, dtype=dtype, scenes_per_shard=4, memory_budget=1
    )
    assert store.manifest.scenes_per_forward == 1
    for number in range(7):
        file = safetensors.torch.load_file(folder / f"shard-{number // 4:06d}.safetensors")
        with torch.no_grad():
            _, cache = policy.run_with_cache(scene(number), names_filter="*")
        assert len(store.sites) == len(ALL_KINDS) + 1
        for address in store.sites:
            expected = cache[address][0].to(dtype)
            assert torch.equal(file[address][number % 4], expected), address
            assert file[address].dtype == dtype


def test_batches_are_always_full_so_that_neighbours_do_not_matter(policy, tmp_path, monkeypatch):
    rows, prepare = [], policy.prepare
    monkeypatch.setattr(
        policy, "prepare", lambda given: rows.append(prepare(given).batch_size) or prepare(given)
    )
    five = small_shards(policy, 5, tmp_path / "five")
    assert rows == [2, 2, 2]
    eight = small_shards(policy, 8, tmp_path / "eight")
    assert five.manifest.scenes_per_forward == 2
    for address in five.sites:
        assert torch.equal(five[address][:], eight[address][:5])
        with torch.no_grad():  # the fifth alone in its batch: filled up with itself
            _, cache = policy.run_with_cache(stack([scene(4)] * 2), names_filter="*")
        assert torch.equal(five[address][4], cache[address][0].bfloat16().float())


def test_another_batch_size_gives_equal_values_up_to_rounding(policy, tmp_path):
    one, four = (
        write_activations(
            policy, scenes(4), SITES, tmp_path / str(budget), dtype=torch.float32,
            scenes_per_shard=4, memory_budget=budget,
        )
        for budget in (1, 2**30)
    )  # fmt: skip
    assert (one.manifest.scenes_per_forward, four.manifest.scenes_per_forward) == (1, 4)
    for address in one.sites:
        torch.testing.assert_close(one[address][:], four[address][:], rtol=1e-4, atol=1e-5)


def test_bytes_are_those_that_safetensors_itself_would_write(policy, tmp_path):
    small_shards(policy, 6, tmp_path / "acts")
    for path in (tmp_path / "acts").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            said = file.metadata()
        again = safetensors.torch.save(safetensors.torch.load_file(path), metadata=said)
        assert path.read_bytes() == again


def test_checksums_are_hashlibs(policy, tmp_path):
    store = small_shards(policy, 6, tmp_path / "acts")
    lines = (tmp_path / "acts/shards.jsonl").read_text().splitlines()
    assert [json.loads(line)["episodes"] for line in lines] == [[0, 0, 0, 1], [1, 1]]
    for record, line in zip(store.shards, lines, strict=True):
        content = (tmp_path / "acts" / record.file).read_bytes()
        assert record.sha256 == json.loads(line)["sha256"] == hashlib.sha256(content).hexdigest()
        assert record.nbytes == len(content)


def test_scenes_are_told_of_beside_the_values(policy, tmp_path):
    given = [*scenes(4), replace(scene(4, source="other"), labels={"cube_z": 2.0})]
    store = small_shards(policy, 5, tmp_path / "acts", scenes=given)
    frame = store.labels
    assert list(frame["source"]) == ["planted"] * 4 + ["other"]
    assert list(zip(frame["episode"], frame["frame"], strict=True)) == [
        (s.episode, s.frame) for s in given
    ]
    assert list(frame["cube_x"][:4]) == [s.labels["cube_x"] for s in given[:4]]
    assert frame["cube_x"].isna().tolist() == [False] * 4 + [True]
    assert frame["cube_z"].tolist()[4] == 2.0
    assert torch.equal(store.actions[:], torch.stack([s.action for s in given]))
    assert torch.equal(store.action_is_pad[:], torch.stack([s.action_is_pad for s in given]))


def test_scenes_without_actions_are_stored_without(policy, tmp_path):
    bare = [replace(s, action=None, action_is_pad=None, labels={}) for s in scenes(2)]
    store = small_shards(policy, 2, tmp_path / "acts", scenes=bare)
    assert list(store.labels.columns) == ["source", "episode", "frame"]
    with pytest.raises(StoreError, match="no demonstrated actions"):
        _ = store.actions


def test_the_manifest_says_what_made_the_store(policy, tmp_path):
    store = small_shards(policy, 2, tmp_path / "acts")
    said = json.loads((tmp_path / "acts/manifest.json").read_text())
    assert said["weights_sha256"] == weights_sha256(policy) == store.manifest.weights_sha256
    assert said["dtype"] == "BF16"
    assert said["sites"][0] == {
        "address": "decoder.0.hook_normalized_resid_mid_cross[query=0]",
        "axes": ["batch", "query", "d_model"],
        "sizes": [5, 32],
        "stored_shape": [32],
    }
    assert open_activations(tmp_path / "acts").manifest == store.manifest
    assert said["environment"]["torch"] == torch.__version__


def test_the_hash_of_weights_is_of_the_present_ones(build_policy):
    model = build_policy()
    before = weights_sha256(model)
    assert before == weights_sha256(build_policy())
    with torch.no_grad():
        model.decoder.get_submodule("0").mlp.linear2.weight[3, 5] += 1e-3
    edited = weights_sha256(model)
    model.normalizer.get_buffer("shift_0").add_(1)
    assert len({before, edited, weights_sha256(model)}) == 3


def test_progress_counts_every_scene_once(policy, tmp_path):
    told = []
    small_shards(policy, 7, tmp_path / "acts", advance=told.append)
    assert told == [2, 2, 2, 1]
    again = []
    small_shards(policy, 9, tmp_path / "acts", advance=again.append)
    assert again == [4, 3, 2]


# ── more scenes ──────────────────────────────────────────────────────────────────────────────


def test_more_scenes_are_added_by_a_longer_list_or_alone(policy, tmp_path):
    ways = [tmp_path / "longer", tmp_path / "alone"]
    for folder in ways:
        small_shards(policy, 6, folder)
    first = contents(ways[0])
    small_shards(policy, 11, ways[0])
    rest = lambda: (scene(number) for number in range(6, 11))
    small_shards(policy, 0, ways[1], scenes=rest(), first=6)
    assert contents(ways[0]) == contents(ways[1])
    store = open_activations(ways[1])
    assert [len(record) for record in store.shards] == [4, 2, 4, 1]
    whole = small_shards(policy, 11, tmp_path / "at once")
    for address in whole.sites:
        torch.testing.assert_close(store[address][:], whole[address][:], rtol=0.01, atol=0.01)
    assert store.labels.equals(whole.labels)
    before = contents(ways[1])
    assert {name: before[name] for name in first if "shard-" in name} == {
        name: value for name, value in first.items() if "shard-" in name
    }
    # The same calls again change nothing.
    small_shards(policy, 6, ways[1])
    small_shards(policy, 0, ways[1], scenes=rest(), first=6)
    assert contents(ways[1]) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": [scene(0, seed=1), *scenes(6)][:6]}, "was made from 4 other scenes"),
        ({"scenes": [replace(scene(0), labels={}), *scenes(6)]}, "beginning with 0:0"),
        ({"scenes": scenes(5)}, "than the 1 given"),
        ({"scenes": scenes(0)}, "there is no scene to store"),
        (
            {"scenes": scenes(2), "first": 3},
            r"begins \(0, 4, 6\) or from the end \(6\), not from 3",
        ),
        ({"scenes": scenes(1, chunk=4), "first": 6}, r"another shape of action chunks .*\(5, 3\)"),
        (
            {"scenes": [scene(7), scene(8, chunk=4)], "first": 6},
            r"Scene 2:2 has actions of shape \(4, 3\); this store's scenes have",
        ),
        ({"dtype": torch.float32}, "another dtype .*bfloat16.* float32|another dtype"),
        ({"scenes_per_shard": 8}, "another scenes_per_shard .'4'. than is given .'8'"),
    ],
)
def test_what_does_not_go_on_with_the_store_is_refused(policy, tmp_path, change, message):
    small_shards(policy, 6, tmp_path / "acts")
    before = contents(tmp_path / "acts")
    with pytest.raises(StoreError, match=message):
        small_shards(policy, 6, tmp_path / "acts", **change)
    assert contents(tmp_path / "acts") == before


def test_other_weights_architectures_and_sites_are_refused(policy, build_policy, tmp_path):
    folder = tmp_path / "acts"
    small_shards(policy, 4, folder)
    edited = build_policy()
    with torch.no_grad():
        edited.action_head.bias[0] += 1
    with pytest.raises(StoreError, match="another hash of weights"):
        small_shards(edited, 5, folder)
    other = build_policy()
    other.config = replace(other.config, n_heads=2)
    with pytest.raises(StoreError, match=r"another n_heads \('4'\) than is given \('2'\)"):
        small_shards(other, 5, folder)
    with pytest.raises(StoreError, match="another choice of sites"):
        write_activations(policy, scenes(5), SITES[:2], folder, scenes_per_shard=4)
    queue = build_policy()
    queue.config = replace(queue.config, n_action_steps=1)  # no business of the network's
    assert len(small_shards(queue, 5, folder)) == 5


# ── refusals ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ([], StoreError, "There is no site to store"),
        ("encoder.9.hook_resid_pre", HookNameError, "Did you mean"),
        ("decoder.0.mlp.hook_post[24]", HookNameError, "axis 'neuron' has 24 entries"),
        ("vae.hook_mu", HookNeverFired, "vae.hook_mu"),
        ("embed.hook_pos", StoreError, "embed.hook_pos has no batch axis: it is the same in every"),
        ("hook_actions[batch=0]", StoreError, "selects on the batch axis"),
        (
            ["decoder.0.hook_action_vector", "decoder.0.hook_normalized_resid_mid_cross"],
            StoreError,
            "is named twice",
        ),
    ],
    ids=str,
)
def test_sites_that_cannot_be_stored_are_refused_before_anything_is_written(
    policy, tmp_path, sites, error, message
):
    with pytest.raises(error, match=message):
        write_activations(policy, scenes(2), sites, tmp_path / "acts")
    assert not (tmp_path / "acts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, "stored as float64, float32, bfloat16, float16, not as torch.int8"),
        ({"scenes_per_shard": 0}, "at least one scene, not 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(policy, tmp_path, options, message):
    with pytest.raises(StoreError, match=message):
        write_activations(policy, scenes(2), SITES, tmp_path / "acts", **options)


def test_a_model_that_is_more_than_its_weights_is_refused(build_policy, tmp_path):
    model = build_policy()
    model.add_perma_hook("encoder.hook_out", Reader(lambda x, hook: None))
    with pytest.raises(StoreError, match=r"has hooks on 'encoder.hook_out'.*reset_hooks"):
        small_shards(model, 2, tmp_path / "acts")
    with pytest.raises(StoreError, match="training mode"):
        small_shards(build_policy().train(), 2, tmp_path / "acts")


def test_a_value_that_is_not_finite_is_named_and_not_stored(build_policy, tmp_path):
    model = build_policy()
    with torch.no_grad():
        model.decoder.get_submodule("0").mlp.linear1.bias[7] = 1e5  # fits bfloat16, not float16
    small_shards(model, 3, tmp_path / "bf16")
    with pytest.raises(
        StoreError, match=r"mlp.hook_post is not finite in scene 0:0 as torch.float"
    ):
        small_shards(model, 3, tmp_path / "fp16", dtype=torch.float16)
    assert not list((tmp_path / "fp16").glob("*.safetensors"))


def test_a_folder_of_something_else_is_left_alone(policy, tmp_path):
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts/notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something else"):
        small_shards(policy, 2, tmp_path / "acts")
    assert contents(tmp_path / "acts") == {"notes.txt": b"mine"}
    with pytest.raises(StoreError, match="cannot be written"):
        small_shards(policy, 2, tmp_path / "acts/notes.txt")


def test_two_writers_do_not_mix(policy, tmp_path):
    small_shards(policy, 2, tmp_path / "acts")
    with locked(tmp_path / "acts"), pytest.raises(StoreError, match="another process is writing"):
        small_shards(policy, 6, tmp_path / "acts")


@pytest.mark.parametrize("name", [".shard-000001.safetensors.unfinished", "shards.jsonl", ".lock"])
def test_a_link_in_the_folder_leads_no_writing_out_of_it(policy, tmp_path, name):
    folder, victim = tmp_path / "acts", tmp_path / "victim"
    small_shards(policy, 4, folder)
    victim.write_text("precious\n")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    with pytest.raises(StoreError):
        small_shards(policy, 8, folder)
    assert victim.read_text() == "precious\n"
