"""Chunks carried out in the simulator, against its own steps, the recordings and the pictures."""

from dataclasses import replace

import av
import gymnasium
import numpy as np
import pytest

from actlens.errors import SceneError
from actlens.scenes.dataset import open_dataset
from actlens.sim import lens_films
from actlens.sim.environment import HOME, HOME_JITTER, YAW_RANGE, PickCube
from actlens.sim.lens_films import EXPERT, film_layers
from actlens.sim.lens_rollouts import (
    Placed,
    carry_out,
    outcome,
    outcome_summary,
    outcome_table,
    placed,
)
from actlens.sim.rollout import rollout

EPISODE = 3
CUBE = (0.19, -0.04)


@pytest.fixture(scope="module")
def scenes():
    """The recorded moments before the first step, above the cube, and with the cube in the air."""
    dataset = open_dataset("so101-pick-cube")
    return {frame: dataset.scene(EPISODE, frame, chunk=50) for frame in (0, 25, 70)}


def test_the_experts_chunk_is_carried_out_as_a_rollout_carries_it_out(physics, scenes):
    """Bit for bit: the same start by seed, the same actions, by the loop that rollouts use."""
    chunk, seed = scenes[0].action.numpy(), 5
    expected = rollout(
        physics, iter_of(chunk), lambda: None, cube_xy=CUBE, seed=seed, steps=len(chunk)
    )
    draws = gymnasium.utils.seeding.np_random(seed)[0]
    arm = HOME + HOME_JITTER * draws.standard_normal(6)
    found = carry_out(physics, Placed(arm, CUBE, draws.uniform(-YAW_RANGE, YAW_RANGE)), chunk)
    for part in ("states", "actions", "tip", "cube", "grasped"):
        assert np.array_equal(getattr(found, part), getattr(expected, part)), part


def iter_of(chunk):
    actions = iter(chunk)
    return lambda seen: next(actions)


def test_every_step_is_the_environments(physics, scenes):
    where, chunk = placed(scenes[25]), scenes[25].action.numpy()
    found = carry_out(physics, where, chunk)
    options = {"arm": where.arm, "cube_xy": np.array(where.cube_xy), "cube_yaw": where.cube_yaw}
    seen, _ = physics.reset(seed=0, options=options)
    states = [seen["observation.state"]]
    for action in chunk:
        states.append(physics.step(action)[0]["observation.state"])
    assert np.array_equal(found.states, states)


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("frame", [0, 25])
def test_the_simulator_stands_as_the_recording_did(scenes, frame):
    """Pixels against the recorded video, which differs by its compression alone."""
    env, scene = PickCube(height=240, width=320), scenes[frame]
    where = placed(scene)
    options = {"arm": where.arm, "cube_xy": np.array(where.cube_xy), "cube_yaw": where.cube_yaw}
    seen, _ = env.reset(seed=0, options=options)
    np.testing.assert_array_equal(seen["observation.state"], scene.observation["observation.state"])
    off, _ = env.reset(seed=0, options=options | {"cube_xy": np.array(where.cube_xy) + 0.005})
    for camera in ("top", "lateral"):
        key = f"observation.images.{camera}"
        recorded = scene.observation[key].numpy().transpose(1, 2, 0)
        apart, wrong = (np.abs(picture[key].astype(int) - recorded) for picture in (seen, off))
        assert apart.mean() < 1.0
        assert np.square(wrong).mean() > 1.5 * np.square(apart).mean()
    env.close()


def test_the_demonstration_lifts_the_cube_and_a_chunk_that_stands_still_does_not(physics, scenes):
    where = placed(scenes[25])
    lifted = outcome(carry_out(physics, where, scenes[25].action.numpy()))
    assert lifted.lifted
    assert lifted.raised_mm > 55
    assert lifted.grasped
    assert lifted.nearest_mm < 6
    assert lifted.words == f"lifted {lifted.raised_mm:.0f} mm"
    still = outcome(carry_out(physics, where, np.tile(where.arm, (10, 1))))
    assert not still.lifted
    assert not still.grasped
    assert still.steps == 10
    assert still.raised_mm == pytest.approx(0, abs=0.5)
    assert still.end_mm == pytest.approx(still.nearest_mm, abs=3)


def test_lifted_means_at_any_time_and_raised_how_far_at_most(physics, scenes):
    """A cube that is dropped again was lifted; the referee is the cube's own height."""
    chunk = scenes[25].action.numpy()
    dropped = np.concatenate([chunk, np.tile(chunk[-1], (25, 1))])
    dropped[50:, 5] = 80.0  # the jaws open
    result = carry_out(physics, placed(scenes[25]), dropped)
    assert not result.success
    height = 1000 * (result.cube[:, 2] - result.cube[0, 2])
    assert outcome(result).lifted
    assert outcome(result).raised_mm == pytest.approx(height.max())


def test_a_scene_that_the_simulator_cannot_stand_as_is_refused(scenes):
    with pytest.raises(SceneError, match=r"mm above the table.*earlier frame"):
        placed(scenes[70])
    with pytest.raises(SceneError, match="cube_x, cube_y, cube_z, cube_yaw"):
        placed(replace(scenes[0], labels={}))
    blind = {k: v for k, v in scenes[0].observation.items() if "images" in k}
    with pytest.raises(SceneError, match=r"missing: observation.state"):
        placed(replace(scenes[0], observation=blind))


@pytest.mark.parametrize(
    "chunk", [np.zeros((5, 7)), np.zeros(6), np.full((5, 6), np.nan)], ids=["joints", "flat", "nan"]
)
def test_a_chunk_of_other_joints_or_no_numbers_is_refused(physics, scenes, chunk):
    with pytest.raises(SceneError, match=r"finite targets of 6 joints.*shape"):
        carry_out(physics, placed(scenes[0]), chunk)


# ── the film ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small():
    env = PickCube(height=60, width=80)
    yield env
    env.close()


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.usefixtures("renderer")
def test_a_film_has_a_tile_for_every_chunk_and_a_picture_for_every_step(small, scenes, tmp_path):
    scene = scenes[25]
    chunks = {"encoder 0": np.tile(HOME, (12, 1)), "the policy": scene.action[:8].numpy()}
    told = []
    found = film_layers(tmp_path / "f.mp4", chunks, scene, env=small, advance=told.append)
    assert list(found) == ["encoder 0", "the policy", EXPERT]
    assert told == [1, 1, 1]
    assert found[EXPERT].lifted
    assert not found["encoder 0"].lifted
    frames = frames_of(tmp_path / "f.mp4")
    assert len(frames) == 50 + 1 + 12  # the longest, its start, and the end held
    height, width, _ = frames[0].shape
    assert width >= 3 * 80
    assert height % 2 == width % 2 == 0
    # Below its caption a chunk that has ended stands still, and the longer one goes on.
    tile = lambda frame, i: frame[48:, 8 + 88 * i : 88 + 88 * i].astype(int)
    moved = [np.abs(tile(frames[15], i) - tile(frames[45], i)).mean() for i in range(3)]
    assert moved[2] > 3 * max(moved[:2])


@pytest.mark.usefixtures("renderer")
def test_without_a_demonstration_or_by_wish_the_last_tile_is_left_out(small, scenes, tmp_path):
    chunks = {"the policy": np.tile(HOME, (2, 1))}
    bare = replace(scenes[0], action=None, action_is_pad=None)
    assert list(film_layers(tmp_path / "a.mp4", chunks, bare, env=small)) == ["the policy"]
    found = film_layers(tmp_path / "b.mp4", chunks, scenes[0], env=small, expert=False)
    assert list(found) == ["the policy"]
    with pytest.raises(SceneError, match="no chunk"):
        film_layers(tmp_path / "c.mp4", {}, bare, env=small)


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("when", ["carrying_out", "drawing"])
def test_an_interrupt_leaves_no_film(small, scenes, tmp_path, monkeypatch, when):
    def stop(*given):
        raise KeyboardInterrupt

    advance = stop if when == "carrying_out" else lambda n: None
    if when == "drawing":
        monkeypatch.setattr(lens_films, "framed", stop)
    chunks = {"the policy": np.tile(HOME, (2, 1))}
    with pytest.raises(KeyboardInterrupt):
        film_layers(tmp_path / "f.mp4", chunks, scenes[0], env=small, advance=advance)
    assert list(tmp_path.iterdir()) == []


def test_the_tables_count_what_was_lifted_with_wilsons_interval(physics, scenes):
    from scipy import stats

    scene = scenes[25]
    where = placed(scene)
    found = {
        "good": outcome(carry_out(physics, where, scene.action.numpy())),
        "still": outcome(carry_out(physics, where, np.tile(where.arm, (3, 1)))),
    }
    table = outcome_table([scene, scene], [found, {"good": found["still"]}])
    assert table[["episode", "frame"]].drop_duplicates().to_numpy().tolist() == [[EPISODE, 25]]
    summary = outcome_summary(table).set_index("chunk")
    good = summary.loc["good"]
    bounds = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert (good.lifted_low, good.lifted_high) == pytest.approx((bounds.low, bounds.high))
    assert (good.scenes, good.lifted, summary.lifted["still"]) == (2, 0.5, 0)
