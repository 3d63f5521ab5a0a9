"""Large patching gives what `patch_pairs` gives, to the bit, whoever computed it in what order."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import grimp
import pandas as pd
import pytest
import torch

from actlens.checkpoints import Checkpoint, save_checkpoint
from actlens.checkpoints.architecture import expected_shapes
from actlens.config import ACTConfig, Camera
from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.model.lerobot_names import from_lerobot
from actlens.normalization import Affine, NormalizationMode
from actlens.patching import SweepOptions, identity, large, patch_pairs
from actlens.patching.identity import code_version, model_hash
from actlens.patching.large import (
    patch_into,
    patch_pairs_in,
    per_pair_blocks,
    plan_patching,
    result_of,
)
from actlens.patching.pair_sources import (
    DatasetPairs,
    PairFile,
    PairsInMemory,
    pair_hash,
    without_pictures,
)
from actlens.patching.pair_work import PatchWork, PolicyFiles
from actlens.patching.patched_pair import PatchedPair
from actlens.scene import Scene, ScenePair
from actlens.scenes.bundled import save_pairs
from actlens.scenes.dataset import open_dataset
from actlens.scenes.pairs import nearest_pairs
from actlens.shards import (
    Dask,
    Processes,
    RunError,
    Shard,
    Threads,
    begin,
    encode,
    read_all,
)
from actlens.shards.keys import canonical

EXACT = SweepOptions(min_effect=0.0)
WITHIN = SweepOptions(min_effect=0.0, max_error=1e-3, by_position=False)
TOP, STATE = "observation.images.top", "observation.state"


def scene(seed, patch, **changes):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 255, (3, 64, 96), generator=generator, dtype=torch.uint8)
    image[:, 40:50, 70:80] = patch
    state = torch.randn(6, generator=generator)
    facts = {"episode": 2 * seed + (patch > 0), "labels": {"cube_x": seed / 7}, "source": "here"}
    return Scene({TOP: image, STATE: state}, **(facts | changes))


def pair(seed):
    return ScenePair(
        scene(seed, 0), scene(seed, 255), "a square", None, scene(seed + 50, 255, episode=100)
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The folder of a small policy, every parameter away from 0 and 1."""
    config = ACTConfig(
        cameras=(Camera(TOP, 64, 96),), action_dim=6, state_dim=6, chunk=4, n_action_steps=4,
        d_model=32, n_heads=2, d_mlp=24, n_encoder_layers=1, use_vae=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HookedACT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    shapes = {TOP: (3, 1, 1), STATE: (6,), "action": (6,)}
    stats = {k: {"mean": torch.zeros(s), "std": 30 * torch.ones(s)} for k, s in shapes.items()}
    affines = {
        k: Affine.from_stats(NormalizationMode.MEAN_STD, s, eps=1e-8, what=k)
        for k, s in stats.items()
    }
    present = model.state_dict()
    weights = {name: present[from_lerobot(name)].clone() for name in expected_shapes(config)}
    folder = tmp_path_factory.mktemp("policy") / "small"
    return save_checkpoint(Checkpoint(config, weights, affines, stats), folder)


@pytest.fixture(scope="module")
def model(policy):
    return HookedACT.from_pretrained(policy)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of six pairs."""
    path = tmp_path_factory.mktemp("pairs") / "six.parquet"
    save_pairs([pair(seed) for seed in range(6)], path)
    return PairFile(str(path)).pairs()


@pytest.fixture(scope="module")
def expected(model, pairs):
    """What `patch_pairs` gives for them, within an allowed error."""
    return patch_pairs(model, [pairs.source.read(i) for i in range(6)], options=WITHIN)


def numbers(result):
    """Every number of a result, to the bit."""
    content = [result.sweeps, result.null, result.options, result.seed, result.differs_in]
    left_out = [effect for _, effect in result.left_out]
    addresses = [[p.clean.address, p.corrupt.address] for p in result.pairs]
    return encode([*content, result.cameras, left_out, addresses], key="")


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("units/*/*.safetensors")}


@pytest.fixture(scope="module")
def whole(model, pairs, tmp_path_factory):
    """The unit files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    patch_pairs_in(folder, model, pairs, options=WITHIN)
    return files(folder)


@pytest.mark.parametrize("options", [EXACT, WITHIN], ids=["exact", "within an error"])
def test_the_result_is_that_of_patch_pairs_to_the_bit(model, pairs, options, tmp_path):
    given = [pairs.source.read(i) for i in range(6)]
    plain = patch_pairs(model, given, options=options, seed=3)
    from_file = patch_pairs_in(tmp_path / "file", model, pairs, options=options, seed=3)
    memory = PairsInMemory(tuple(given)).pairs()
    from_memory = patch_pairs_in(tmp_path / "memory", model, memory, options=options, seed=3)
    assert numbers(plain) == numbers(from_file) == numbers(from_memory)
    assert from_file.parts == plain.parts
    pd.testing.assert_frame_equal(from_file.frame(), plain.frame())


def test_tables_of_blocks_of_pairs_are_the_whole_table(expected):
    blocks = pd.concat(per_pair_blocks(expected, pairs=4), ignore_index=True)
    order = lambda frame: frame.sort_values(["direction", "pair"], kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(order(blocks), order(expected.per_pair()))


def test_pairs_of_the_result_keep_what_is_known_and_read_their_pictures_when_looked_at(
    model, pairs, tmp_path
):
    found = patch_pairs_in(tmp_path, model, pairs, options=WITHIN).pairs[2]
    given = pairs.source.read(2)
    for one, other in [
        (found.clean, given.clean),
        (found.corrupt, given.corrupt),
        (found.unrelated_corrupt, given.unrelated_corrupt),
    ]:
        assert (one.address, one.labels, one.source) == (other.address, other.labels, other.source)
        assert one.observation.keys() == other.observation.keys()
        assert torch.equal(one.observation[TOP], other.observation[TOP])
    assert found.unrelated_clean is None


def test_pairs_that_hardly_differ_are_left_out_and_counted(model, tmp_path):
    same = ScenePair(scene(3, 0), scene(3, 0), "nothing")
    source = PairsInMemory((pair(0), same))  # only one has a donor: no null
    options = SweepOptions(min_effect=1e-6)
    found = patch_pairs_in(tmp_path, model, source.pairs(), options=options)
    assert numbers(found) == numbers(patch_pairs(model, source.given, options=options))
    assert len(found.left_out) == 1
    assert not found.null


def test_threads_order_shards_and_restarts_leave_no_trace(model, pairs, whole, expected, tmp_path):
    plan = plan_patching(model, pairs, options=WITHIN)
    for n in (2, 4):  # `whole` is one
        runs = []
        for number in range(n, 0, -1):
            folder = tmp_path / f"{number}-of-{n}"
            shard = Shard(number, n)
            runs.append(
                patch_into(folder, model, pairs, plan, shard=shard, engine=Threads(min(n, 3)))
            )
        assert {k: v for run in runs for k, v in files(run.folder).items()} == whole
        patched = list(read_all(runs, PatchedPair))
        assert numbers(result_of(model, plan, patched, pairs.source)) == numbers(expected)


def test_a_pair_does_not_depend_on_which_others_are_patched(model, pairs, whole, tmp_path):
    few = replace(pairs, items=(pairs.items[0], pairs.items[4], pairs.items[2]))
    patch_pairs_in(tmp_path, model, few, options=WITHIN)
    assert len(files(tmp_path)) == 3
    assert files(tmp_path).items() <= whole.items()


def test_an_interrupted_run_goes_on_to_the_same_bytes(model, pairs, whole, expected, tmp_path):
    def interrupt(progress):
        if progress.done > 2.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch_pairs_in(tmp_path, model, pairs, options=WITHIN, progress=interrupt)
    assert 0 < len(files(tmp_path)) < 6
    found = patch_pairs_in(tmp_path, model, pairs, options=WITHIN)
    assert numbers(found) == numbers(expected)
    assert files(tmp_path) == whole


def test_progress_grows_within_a_pair_and_reaches_the_total(model, pairs, tmp_path):
    seen = []
    patch_pairs_in(tmp_path, model, pairs, options=EXACT, progress=seen.append, engine=Threads(2))
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == seen[-1].total == 6
    assert any(value % 1 for value in done)
    assert seen[-1].seconds_left == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": replace(WITHIN, max_error=2e-3)}, "options.max_error is '0.001' there"),
        ({"options": replace(WITHIN, memory_budget=2**20)}, "options.memory_budget"),
        ({"seed": 1}, "seed"),
    ],
    ids=["error", "budget", "seed"],
)
def test_a_run_with_other_options_gets_no_such_folder(model, pairs, tmp_path, change, named):
    begin(tmp_path, plan_patching(model, pairs, options=WITHIN))
    asked = {"options": WITHIN, "seed": 0} | change
    with pytest.raises(RunError, match=named.replace(".", r"\.")):
        patch_pairs_in(tmp_path, model, pairs, **asked)


def test_other_pairs_another_policy_and_other_code_get_no_such_folder(
    model, pairs, tmp_path, monkeypatch, policy
):
    begin(tmp_path, plan_patching(model, pairs, options=WITHIN))
    fewer = replace(pairs, items=pairs.items[:5])
    with pytest.raises(RunError, match="6 units there and 5 here"):
        patch_pairs_in(tmp_path, model, fewer, options=WITHIN)
    other = HookedACT.from_pretrained(policy)
    with torch.no_grad():
        other.action_head.bias[0] += 1e-6
    with pytest.raises(RunError, match="policy is"):
        patch_pairs_in(tmp_path, other, pairs, options=WITHIN)
    monkeypatch.setattr(large, "code_version", lambda: {**code_version(), "source": "0"})
    with pytest.raises(RunError, match=r"code\.source is"):
        patch_pairs_in(tmp_path, model, pairs, options=WITHIN)


def test_no_pair_at_all_is_an_error(model, pairs):
    with pytest.raises(SceneError, match="no pair to patch"):
        plan_patching(model, replace(pairs, items=()))


def test_pairs_in_memory_are_not_sent_to_other_processes(model, tmp_path):
    memory = PairsInMemory((pair(0),)).pairs()
    with pytest.raises(RunError, match="save_pairs"):
        patch_pairs_in(tmp_path, model, memory, engine=Processes(1), policy=PolicyFiles("x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["policy", "scenes", "code"])
def test_a_worker_with_other_files_or_code_computes_nothing(model, pairs, policy, what):
    plan = plan_patching(model, pairs, options=WITHIN)
    asked = plan.asked | {what: {"source": "0"} if what == "code" else "0"}
    settled = canonical({"tolerance": 0.03, "matmul": "highest"})
    work = PatchWork(PolicyFiles(str(policy)), pairs.source, canonical(asked), settled)
    with pytest.raises(RunError, match=f"A worker has another {what}"):
        work(plan.units[0])


def test_every_change_of_a_policy_changes_its_hash(policy):
    def changed(change):
        other = HookedACT.from_pretrained(policy)
        with torch.no_grad():
            change(other)
        return model_hash(other)

    def other_joints(other):
        other.config = replace(other.config, joints=tuple("abcdef"))

    same = changed(lambda other: None)
    assert same == changed(lambda other: None)
    hashes = {
        changed(lambda other: other.action_head.bias[0].add_(1e-6)),
        changed(lambda other: other.normalizer.scale_1.mul_(2)),
        changed(lambda other: other.double()),
        changed(other_joints),
        same,
    }
    assert len(hashes) == 5


def test_the_codes_hash_covers_every_module_that_patching_imports():
    graph = grimp.build_graph("actlens", exclude_type_checking_imports=True)
    used = graph.find_upstream_modules("actlens.patching.pair_work")
    left_out = {name.split(".")[1] for name in used if "." in name}
    assert not left_out & set(identity._NO_PART_IN_PATCHING)
    assert len(code_version()["source"]) == 64


def test_a_datasets_pairs_are_chosen_without_and_patched_with_their_pictures():
    dataset = open_dataset("so101-pick-cube-5pos")
    wanted = nearest_pairs(dataset, chunk=10, n_pairs=2)
    source = DatasetPairs("so101-pick-cube-5pos", chunk=10)
    found = source.pairs(nearest_pairs(without_pictures(dataset), chunk=10, n_pairs=2))
    assert found.with_null == all(one.unrelated_corrupt is not None for one in wanted)
    for (_, what), one in zip(found.items, wanted, strict=True):
        assert pair_hash(source.read(what)) == pair_hash(one)
        assert source.read(what).differs_in == one.differs_in


def test_a_datasets_hash_follows_its_files(tmp_path):
    (tmp_path / "episode_0.hdf5").write_bytes(b"a")
    hash_of = lambda: DatasetPairs(tmp_path, chunk=1).sha256()
    from actlens.patching import pair_sources

    real, pair_sources._dataset = (
        pair_sources._dataset,
        lambda *_: type("D", (), {"path": tmp_path}),
    )
    try:
        first = hash_of()
        (tmp_path / "notes.txt").write_bytes(b"ignored")
        assert hash_of() == first
        (tmp_path / "episode_0.hdf5").write_bytes(b"b")
        assert hash_of() != first
    finally:
        pair_sources._dataset = real


def test_what_a_sweep_looks_at_decides_a_pairs_hash():
    moved = replace(pair(0), clean=scene(0, 1))
    ended = replace(pair(0), clean=replace(pair(0).clean, action_is_pad=torch.ones(4).bool()))
    hashes = {pair_hash(one) for one in (pair(0), moved, ended, pair(1))}
    assert len(hashes) == 4
    assert pair_hash(pair(0)) in hashes
    assert pair_hash(replace(pair(0), differs_in="else")) in hashes


@pytest.mark.slow
def test_one_process_and_two_give_the_same_bytes(model, pairs, policy, whole, tmp_path):
    plan = plan_patching(model, pairs, options=WITHIN)
    work = lambda shard, n: patch_into(
        tmp_path, model, pairs, plan,
        shard=shard, engine=Processes(n), policy=PolicyFiles(str(policy)),
    )  # fmt: skip
    work(Shard(2, 3), 1)
    assert len(files(tmp_path)) == 2
    work(Shard(), 2)
    assert files(tmp_path) == whole


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_gives_the_same_bytes(
    model, pairs, policy, whole, tmp_path
):
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
        worker_dashboard_address=None,
    ) as cluster:  # fmt: skip
        with Client(cluster) as client:
            workers = client.run(os.getpid)
        assert len(workers) == 2
        killed = []

        def kill_one(progress):
            if progress.done == 1 and not killed:
                killed.append(next(iter(workers.values())))
                os.kill(killed[0], signal.SIGKILL)

        engine = Dask(cluster.scheduler_address)
        result = patch_pairs_in(
            tmp_path, model, pairs, options=WITHIN, engine=engine,
            policy=PolicyFiles(str(policy)), progress=kill_one,
        )  # fmt: skip
    assert killed
    assert files(tmp_path) == whole
    assert len(result.pairs) == 6
