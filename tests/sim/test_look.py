"""The world's look: what it changes in MuJoCo's model, that it ends, and that nothing moves."""

import math

import mujoco
import numpy as np
import pytest

from actlens.sim.environment import HOME, PickCube
from actlens.sim.look import AS_DEMONSTRATED, Look

LOOKS = {
    Look(cube_rgb=(0.1, 0.6, 0.15)): {"mat_rgba"},
    Look(brightness=0.5): {"light_diffuse", "headlight.ambient"},
    Look(light_turn=2.0): {"light_dir"},
}


def arrays(env):
    """Every number of the model, by MuJoCo's name."""
    model = env._model
    found = {
        name: np.array(value)
        for name in dir(model)
        if not name.startswith("_") and isinstance(value := getattr(model, name), np.ndarray)
    }
    headlight = model.vis.headlight
    return found | {
        f"headlight.{n}": np.array(getattr(headlight, n)) for n in ("ambient", "diffuse")
    }


def changed(first, second):
    assert first.keys() == second.keys()
    return {name for name in first if not np.array_equal(first[name], second[name])}


def physical_state(env):
    kinds = mujoco.mjtState.mjSTATE_PHYSICS | mujoco.mjtState.mjSTATE_CTRL
    state = np.empty(mujoco.mj_stateSize(env._model, kinds))
    mujoco.mj_getState(env._model, env._data, state, kinds)
    return state


def red_pixels(picture):
    picture = picture.astype(int)
    return (picture[..., 0] > 100) & (picture[..., 1:].max(-1) < 60)


def test_the_demonstrated_look_is_that_of_the_file():
    untouched, dressed = PickCube(render=False), PickCube(render=False)
    dressed.reset(seed=0, options={"look": AS_DEMONSTRATED})
    assert not changed(arrays(untouched), arrays(dressed))


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_a_look_changes_its_own_numbers_and_no_state(look):
    env = PickCube(render=False)
    env.reset(seed=3)
    before, state = arrays(env), physical_state(env)
    env.reset(seed=3, options={"look": look})
    assert changed(before, arrays(env)) == LOOKS[look]
    np.testing.assert_array_equal(physical_state(env), state)


def test_a_look_ends_with_its_episode_and_nothing_adds_up():
    env = PickCube(render=False)
    before = arrays(env)
    for _ in range(3):
        for look in LOOKS:
            env.reset(seed=1, options={"look": look})
            env.seen_as(Look(brightness=0.7, light_turn=1.0))
    env.reset(seed=1)
    assert not changed(before, arrays(env))


def test_an_environment_may_have_a_look_of_its_own():
    env = PickCube(render=False, look=Look(brightness=0.5))
    usual = arrays(PickCube(render=False))
    env.reset(seed=1)
    assert changed(usual, arrays(env)) == {"light_diffuse", "headlight.ambient"}
    env.reset(seed=1, options={"look": AS_DEMONSTRATED})
    assert not changed(usual, arrays(env))


def test_looking_otherwise_does_not_disturb_an_episode(renderer):
    def play(*looks):
        env = PickCube(height=24, width=32)
        env.reset(seed=2, options={"cube_xy": (0.18, 0.02)})
        seen = []
        for target in np.linspace(HOME, np.add(HOME, [20, 40, -10, 5, 10, -20]), 20):
            seen.append(env.step(target)[0])
            for look in looks:
                other = env.seen_as(look)["observation.images.top"]
                assert not np.array_equal(other, seen[-1]["observation.images.top"])
        state = physical_state(env)
        env.close()
        return seen, state

    (plain, state), (watched, same_state) = play(), play(*LOOKS)
    np.testing.assert_array_equal(state, same_state)
    for one, other in zip(plain, watched, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_half_the_light_is_half_the_value(renderer):
    env = PickCube(height=48, width=64)
    env.reset(seed=0)
    bright = env.picture("top").astype(float)
    dim = env.seen_as(Look(brightness=0.5))["observation.images.top"].astype(float)
    assert bright.max() < 255  # nothing is clipped
    np.testing.assert_allclose(dim, bright / 2, atol=1.0)
    assert env.seen_as(Look(brightness=0.0))["observation.images.top"].max() == 0
    env.close()


def test_a_recoloured_cube_differs_where_the_cube_was(renderer):
    env = PickCube(height=120, width=160)
    env.reset(seed=0)
    for camera in ("top", "lateral"):
        usual = env.picture(camera)
        other = env.seen_as(Look(cube_rgb=(0.1, 0.1, 0.85)))[f"observation.images.{camera}"]
        np.testing.assert_array_equal((usual != other).any(-1), red_pixels(usual))
    env.close()


def test_the_lamp_turns_about_the_vertical():
    env = PickCube(render=False)
    env.reset(seed=0, options={"look": Look(light_turn=2 * math.pi)})
    usual = PickCube(render=False)._model.light_dir
    np.testing.assert_allclose(env._model.light_dir, usual, atol=1e-12)
    x, y, z = usual[0]
    env.reset(seed=0, options={"look": Look(light_turn=math.pi / 2)})
    np.testing.assert_allclose(env._model.light_dir, [[-y, x, z]], atol=1e-12)


@pytest.mark.parametrize(
    "numbers",
    [
        {"cube_rgb": (0.1, 0.2)},
        {"cube_rgb": (0.1, 0.2, 1.1)},
        {"cube_rgb": (0.1, 0.2, math.nan)},
        {"brightness": -0.1},
        {"brightness": math.inf},
        {"light_turn": math.nan},
    ],
    ids=str,
)
def test_looks_that_cannot_be_are_refused(numbers):
    with pytest.raises(ValueError, match="cannot be: cube_rgb takes"):
        Look(**numbers)


def test_the_cubes_outline_is_that_of_the_drawn_cube(renderer):
    height, width = 240, 320
    env = PickCube(height=height, width=width)
    drawing = mujoco.Renderer(env._model, height, width)
    drawing.enable_segmentation_rendering()
    for seed, camera in ((0, "top"), (1, "lateral"), (2, "top"), (3, "lateral")):
        env.reset(seed=seed, options={"cube_yaw": 0.2 * seed})
        drawing.update_scene(env._data, camera=camera)
        number, kind = drawing.render()[..., 0], drawing.render()[..., 1]
        is_cube = (number == env._model.geom("cube").id) & (kind == mujoco.mjtObj.mjOBJ_GEOM)
        rows, columns = np.nonzero(is_cube)
        drawn = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        outline = np.array(env.cube_outline(camera)) * [height, height, width, width]
        np.testing.assert_allclose(outline, drawn, atol=1.0)
    drawing.close()
    env.close()
