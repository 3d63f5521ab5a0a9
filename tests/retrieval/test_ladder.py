from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.errors import SceneError
from actlens.kinematics import SO101_SIMULATED
from actlens.planted import LinearRule, Region, Stored, World, plant
from actlens.retrieval import (
    ALL_JOINTS,
    TIP,
    Metric,
    NearestNeighbours,
    Observation,
    Retrieval,
    RetrievalError,
    Ridge,
    TaskState,
    Yardstick,
    climb,
    run_demonstrations,
    sites_of,
    stored_demonstrations,
)
from actlens.retrieval.ladder import PHASE, POLICY
from actlens.retrieval.oracle import ORACLE
from actlens.store import write_activations

FEW = (Retrieval(1), Retrieval(3, soft=True), Ridge())
FRAMES = (0, 4, 10)


@pytest.fixture(scope="module")
def world():
    return World(seed=1, d_model=64, n_heads=8, nuisance=3)


@pytest.fixture(scope="module")
def scenes(world):
    return world.scenes(world.positions(Region.TRAIN, 24), frames=FRAMES)


@pytest.fixture(scope="module")
def policy(world, scenes):
    model = world.policy()
    return plant(model, Stored.of(model, scenes), LinearRule(), readout=world.readout).model


@pytest.fixture(scope="module")
def demonstrations(policy, scenes):
    return run_demonstrations(policy, scenes)


@pytest.fixture(scope="module")
def unseen(world, policy):
    places = world.positions(Region.NEW, 10)
    return run_demonstrations(policy, world.scenes(places, frames=FRAMES, first_episode=500))


@pytest.fixture(scope="module")
def yardstick(demonstrations):
    return Yardstick.of(
        demonstrations.actions,
        demonstrations.counted,
        joints=SO101_SIMULATED.joints,
        arm=SO101_SIMULATED,
    )


@pytest.fixture(scope="module")
def task(demonstrations, yardstick):
    return TaskState.of(demonstrations, yardstick)


@pytest.fixture(scope="module")
def ladder(demonstrations, yardstick, task):
    return climb(demonstrations, yardstick, estimators=FEW, task=task)


def test_every_site_has_one_key_a_scene_or_one_a_position(demonstrations, policy, scenes):
    site = "decoder.0.mlp.hook_post"
    assert list(demonstrations.keys) == [site.name for site in sites_of(policy)]
    actions, cache = policy.run_with_cache(scenes[5], names_filter=[site, "encoder.hook_out"])
    close = lambda a, b: torch.allclose(torch.from_numpy(a), b, atol=1e-5)
    assert close(demonstrations.keys["MLP coefficients"][5], cache[site][0])
    assert close(
        demonstrations.keys["encoder output, mean"][5], cache["encoder.hook_out"][0].mean(0)
    )
    assert close(demonstrations.keys["state"][5], scenes[5].observation["observation.state"])
    assert close(demonstrations.predicted[5], actions[0])


def test_pictures_are_averaged_over_squares(make_model, observe):
    model = make_model()
    batch = observe(model, rows=2)
    pixels = sites_of(model)[0]
    keys = pixels.keys({}, batch)
    side, top = batch["observation.images.side"], batch["observation.images.top"]
    assert keys.shape == (2, 3 * (side[0, 0].numel() + top[0, 0].numel()) // 16**2)
    assert keys[1, 0] == pytest.approx(float(side[1, 0, :16, :16].float().mean() / 255), rel=1e-5)


def test_whole_chunks_are_retrieved_without_the_own_episode(ladder, demonstrations):
    keys = demonstrations.keys["environment"].astype(float)
    keys = (keys - keys.mean(0)) / keys.std(0)
    apart = np.linalg.norm(keys[:, None] - keys, axis=-1)
    apart[demonstrations.episodes[:, None] == demonstrations.episodes] = np.inf
    expected = demonstrations.actions[apart.argmin(1)]
    assert np.allclose(ladder.rung("environment", "1-NN").answered, expected, atol=1e-4)


def test_chunk_positions_are_retrieved_one_by_one_where_something_was_demonstrated(
    ladder, demonstrations
):
    found = ladder.rung("action vector", "1-NN", Metric.COSINE).answered
    assert np.isnan(found).all(-1)[~demonstrations.counted].all()
    assert np.isfinite(found[demonstrations.counted]).all()
    k = 2
    rows = demonstrations.counted[:, k]
    keys = demonstrations.keys["action vector"][rows, k].astype(float)
    keys -= keys.mean(0)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    episodes = demonstrations.episodes[rows]
    likeness = keys @ keys.T
    likeness[episodes[:, None] == episodes] = -np.inf
    expected = demonstrations.actions[rows, k][likeness.argmax(1)]
    assert np.allclose(found[rows, k], expected, atol=1e-4)


def test_errors_are_means_over_positions_that_count(ladder, demonstrations):
    frame = ladder.frame().set_index(["site", "metric", "estimator", "measure"])
    counted = demonstrations.counted
    apart = np.abs(demonstrations.predicted - demonstrations.actions)[counted]
    assert frame.loc[(POLICY, "", "", "elbow_flex.pos"), "error"] == pytest.approx(
        apart[:, 2].mean()
    )
    tips = SO101_SIMULATED.tip(demonstrations.predicted) - SO101_SIMULATED.tip(
        demonstrations.actions
    )
    expected = 1000 * np.linalg.norm(tips, axis=-1)[counted].mean()
    assert frame.loc[(POLICY, "", "", TIP), "error"] == pytest.approx(expected)
    row = frame.loc[("state", "standardised", "1-NN", ALL_JOINTS)]
    assert row.low < row.error < row.high
    assert row.to_policy == pytest.approx(
        row.error / frame.loc[(POLICY, "", "", ALL_JOINTS), "error"]
    )


def test_sites_that_see_the_object_retrieve_better_than_the_frame_alone(ladder):
    frame = ladder.frame()
    error = frame[frame.measure == ALL_JOINTS].set_index(["site", "metric", "estimator"]).error
    assert error[(ORACLE, "plain", "1-NN")] < 0.5 * error[(PHASE, "plain", "3-NN, soft")]
    assert ladder.best().errors.of(ALL_JOINTS).sum() <= min(
        rung.errors.of(ALL_JOINTS).sum() for rung in ladder.rungs if rung.site == "environment"
    )


def test_the_oracle_does_not_look_at_what_no_action_depends_on(task):
    weight = dict(zip(task.names, task.factor, strict=True))
    assert weight["cube_x"] > 0
    assert weight["cube_y"] > 0
    assert weight["cube_z"] == 0  # it never varies


def test_unseen_scenes_are_answered_from_all_demonstrations(
    demonstrations, yardstick, unseen, task
):
    ladder = climb(demonstrations, yardstick, unseen, estimators=FEW, task=task)
    assert ladder.held_out
    apart = np.linalg.norm(task.keys(unseen)[:, None] - task.keys(demonstrations), axis=-1)
    found = ladder.rung(ORACLE, "1-NN", Metric.PLAIN).answered
    assert np.allclose(found, demonstrations.actions[apart.argmin(1)], atol=1e-4)


def test_a_policy_that_is_linear_in_its_action_vector_is_foretold_there_by_ridge(
    demonstrations, yardstick
):
    short = demonstrations.first(2)
    itself = replace(short, actions=short.predicted)
    ladder = climb(itself, yardstick, estimators=FEW, metrics=[Metric.STANDARDISED])
    error = lambda estimator: ladder.rung("action vector", estimator).errors.of(ALL_JOINTS).sum()
    assert error("ridge") < 0.05 * error("1-NN")


def test_cut_chunks_are_those_that_are_executed(demonstrations, yardstick):
    short = demonstrations.first(2)
    assert short.keys["MLP coefficients"].shape[1] == 2
    ladder = climb(short, yardstick, estimators=FEW[:1])
    assert ladder.rung("state", "1-NN").answered.shape[1] == 2


def test_joints_that_never_move_are_answered(demonstrations):
    still = demonstrations.actions.copy()
    still[..., 5] = 7.0
    fixed = replace(demonstrations, actions=still)
    yardstick = Yardstick.of(fixed.actions, fixed.counted)
    ladder = climb(fixed, yardstick, estimators=FEW[:1])
    assert (ladder.rung("state", "1-NN").answered[..., 5] == 7.0).all()


@pytest.fixture(scope="module")
def store(policy, scenes, tmp_path_factory):
    sites = ["decoder.0.mlp.hook_post", "encoder.hook_out", "hook_actions"]
    folder = tmp_path_factory.mktemp("activations") / "store"
    return write_activations(
        policy, scenes, sites, folder, dtype=torch.float32, scenes_per_shard=20
    )


def test_a_store_gives_the_same_demonstrations(store, demonstrations):
    sites = {"MLP coefficients": "decoder.0.mlp.hook_post", "encoder output": "encoder.hook_out"}
    stored = stored_demonstrations(store, sites)
    for name, keys in stored.keys.items():
        assert np.allclose(keys, demonstrations.keys[name], atol=1e-5)
    assert np.allclose(stored.predicted, demonstrations.predicted, atol=1e-4)
    assert np.array_equal(stored.actions, demonstrations.actions)
    assert np.array_equal(stored.counted, demonstrations.counted)
    assert np.array_equal(stored.episodes, demonstrations.episodes)
    assert np.array_equal(stored.frames, demonstrations.frames)
    for name, values in demonstrations.labels.items():
        assert np.allclose(stored.labels[name], values)


def test_stored_activations_are_searched_where_they_lie(store, demonstrations):
    address = "decoder.0.mlp.hook_post[query=1]"
    index = NearestNeighbours.of(store[address], episodes=store.groups)
    asked = demonstrations.keys["MLP coefficients"][:, 1]
    found = index.search(store[address], 2, leaving_out=demonstrations.episodes)
    apart = np.linalg.norm(asked[:, None].astype(float) - asked, axis=-1)
    apart[demonstrations.episodes[:, None] == demonstrations.episodes] = np.inf
    assert np.allclose(found.distances, np.sort(apart, 1)[:, :2], atol=1e-4)


def test_what_cannot_be_compared_is_refused(demonstrations, yardstick, policy, scenes):
    with pytest.raises(RetrievalError, match="names of their own"):
        run_demonstrations(policy, scenes, [Observation(), Observation()])
    with pytest.raises(RetrievalError, match="no scene"):
        run_demonstrations(policy, [])
    with pytest.raises(SceneError, match="has 1 demonstrated actions; the policy predicts 4"):
        run_demonstrations(policy, [replace(scenes[0], action=scenes[0].action[:1])])
    with pytest.raises(SceneError, match="has 0 demonstrated"):
        run_demonstrations(policy, [replace(scenes[0], action=None)])
    with pytest.raises(RetrievalError, match="no keys of the site 'state'"):
        climb(demonstrations, yardstick, replace(demonstrations, keys={}))
    with pytest.raises(RetrievalError, match="no label 'cube_q'"):
        TaskState.of(demonstrations, yardstick, ["cube_q"])
    with pytest.raises(RetrievalError, match="No label of the scenes varies"):
        TaskState.of(demonstrations, yardstick, ["cube_yaw"])
    with pytest.raises(RetrievalError, match="nothing to predict"):
        Yardstick.of(np.ones((3, 4, 6)), np.ones((3, 4), bool))
    with pytest.raises(RetrievalError, match="no rung 'magic'"):
        climb(demonstrations, yardstick, estimators=FEW[:1]).rung("state", "magic")


def test_a_store_without_actions_is_refused(policy, scenes, tmp_path):
    store = write_activations(policy, scenes[:3], "encoder.hook_out", tmp_path / "store")
    with pytest.raises(RetrievalError, match="store 'hook_actions' as well"):
        stored_demonstrations(store, {"encoder": "encoder.hook_out"})
