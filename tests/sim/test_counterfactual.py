"""Counterfactual pairs: one thing differs, by MuJoCo's own account and pixel for pixel."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from actlens.config import Camera
from actlens.errors import SceneError
from actlens.patching import SweepOptions, patch_pairs
from actlens.scenes.alignment import check_pair
from actlens.scenes.bundled import load_pairs
from actlens.sim.changes import (
    BlackedOutCamera,
    LightDirection,
    LightLevel,
    MovedArm,
    MovedCube,
    MovedCubeInOneCamera,
    OccludedCamera,
    RecolouredCube,
    SimulatedCamera,
    TurnedCube,
)
from actlens.sim.counterfactual import (
    CounterfactualConfig,
    changed_pair,
    changed_pairs,
    draw_worlds,
    enter,
    main,
)
from actlens.sim.environment import PickCube
from actlens.sim.regions import Region, region_of

TOP, LATERAL, STATE = "observation.images.top", "observation.images.lateral", "observation.state"
ROLES = ("clean", "corrupt", "unrelated_clean", "unrelated_corrupt")
EVERY = (
    MovedCube(),
    TurnedCube(),
    RecolouredCube(),
    LightLevel(),
    LightDirection(),
    MovedArm(),
    MovedCubeInOneCamera(),
    OccludedCamera(SimulatedCamera.LATERAL),
    BlackedOutCamera(),
)
# What MuJoCo holds that a change may change: rows of its positions and controls, or model fields.
CUBE_X_Y, CUBE_HEADING, ARM = {"cube x", "cube y"}, {"cube w", "cube qz"}, {"arm", "control"}
IN_MUJOCO = {
    MovedCube: CUBE_X_Y,
    TurnedCube: CUBE_HEADING,
    RecolouredCube: {"mat_rgba"},
    LightLevel: {"light_diffuse", "ambient"},
    LightDirection: {"light_dir"},
    MovedArm: ARM,
    MovedCubeInOneCamera: set(),
    OccludedCamera: set(),
    BlackedOutCamera: set(),
}


def config(**changes):
    return CounterfactualConfig(**({"output": None, "height": 96, "width": 128} | changes))


@pytest.fixture(scope="module")
def env(renderer):
    made = PickCube(height=96, width=128)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pairs(env):
    """One pair of every kind, from the second group."""
    return {type(change): changed_pair(env, change, config(), 1) for change in EVERY}


def in_mujoco(env):
    """Everything that decides what happens and what is seen, under names."""
    model, data = env._model, env._data
    arm, cube = np.arange(6), 6 + np.arange(7)
    assert model.joint("cube").qposadr[0] == 6
    assert model.nq == 13
    assert not data.qvel.any()
    assert data.time == 0
    names = ("x", "y", "z", "w", "qx", "qy", "qz")
    held = {f"cube {name}": data.qpos[i] for name, i in zip(names, cube, strict=True)}
    held |= {"arm": data.qpos[arm].copy(), "control": data.ctrl.copy()}
    held |= {"ambient": model.vis.headlight.ambient.copy()}
    for name in dir(model):
        if not name.startswith("_") and isinstance(value := getattr(model, name), np.ndarray):
            held[name] = value.copy()
    return held


@pytest.mark.parametrize("change", EVERY, ids=lambda change: type(change).__name__)
def test_one_thing_alone_differs_in_the_simulator(env, change):
    rng = np.random.default_rng(5)
    worlds = draw_worlds(config(), rng)
    enter(env, worlds[0])
    settings = change.settings(env, worlds, rng)
    for world in worlds:
        held = []
        for setting in settings:
            enter(env, replace(world, **setting))
            held.append(in_mujoco(env))
        different = {name for name in held[0] if not np.array_equal(held[0][name], held[1][name])}
        assert different == IN_MUJOCO[type(change)]


@pytest.mark.parametrize("change", EVERY, ids=lambda change: type(change).__name__)
def test_one_thing_alone_differs_in_the_scenes(pairs, change):
    pair = pairs[type(change)]
    a, b = pair.clean, pair.corrupt
    differing = {key for key in a.observation if (a.observation[key] != b.observation[key]).any()}
    assert differing <= change.differs.inputs
    assert differing
    labels = {name for name in a.labels | b.labels if a.labels[name] != b.labels[name]}
    assert labels == change.differs.labels
    assert (STATE in differing) == isinstance(change, MovedArm)
    assert torch.equal(a.action, b.action) != change.differs.action
    assert (a.frame, a.source, pair.differs_in) == (0, "simulator", change.differs_in)


@pytest.mark.parametrize("change", EVERY, ids=lambda change: type(change).__name__)
def test_donors_agree_in_the_one_thing_and_in_nothing_else(pairs, change):
    pair = pairs[type(change)]
    for scene, donor in (
        (pair.clean, pair.unrelated_clean),
        (pair.corrupt, pair.unrelated_corrupt),
    ):
        for name in ("cube_x", "cube_y", "cube_yaw"):
            same = name in change.differs.labels
            assert (scene.labels[name] == donor.labels[name]) == same
        same_state = torch.equal(scene.observation[STATE], donor.observation[STATE])
        assert same_state == isinstance(change, MovedArm)
    assert len({getattr(pair, role).episode for role in ROLES}) == 4


def test_camera_changes_show_what_they_say(pairs):
    black = pairs[BlackedOutCamera]
    assert (
        black.corrupt.observation[TOP].max() == black.unrelated_corrupt.observation[TOP].max() == 0
    )
    card = pairs[OccludedCamera]
    hidden = (card.clean.observation[LATERAL] != card.corrupt.observation[LATERAL]).any(0)
    rows, columns = np.nonzero(hidden.numpy())
    inside = card.corrupt.observation[LATERAL][
        :, rows.min() : rows.max(), columns.min() : columns.max()
    ]
    assert (inside == 128).all()
    picture = card.clean.observation[LATERAL].int()
    red = (picture[0] > 100) & (picture[1:].amax(0) < 60)
    assert red.any()
    assert not (red & ~hidden).any()
    moved, whole = pairs[MovedCubeInOneCamera], pairs[MovedCube]
    assert torch.equal(moved.corrupt.observation[TOP], whole.corrupt.observation[TOP])
    assert torch.equal(moved.corrupt.observation[LATERAL], whole.clean.observation[LATERAL])


def test_the_usual_look_is_what_other_pairs_show(pairs):
    for kind in (RecolouredCube, LightLevel, LightDirection, OccludedCamera, BlackedOutCamera):
        for key in (TOP, LATERAL, STATE):
            first, second = (
                pairs[kind].clean.observation[key],
                pairs[MovedCube].clean.observation[key],
            )
            assert torch.equal(first, second)


def test_a_pair_does_not_depend_on_what_was_rendered_before(env, pairs):
    fresh = PickCube(height=96, width=128)
    for change in (MovedCube(), LightLevel()):
        again = changed_pair(fresh, change, config(), 1)
        for role in ROLES:
            for key, value in getattr(again, role).observation.items():
                assert torch.equal(value, getattr(pairs[type(change)], role).observation[key])
    fresh.close()


def test_the_bundled_set_is_rendered_again_by_the_same_command(renderer, tmp_path, capsys):
    assert main(["--output", str(tmp_path / "again.parquet")]) == 0
    assert "12 pairs written" in capsys.readouterr().out
    bundled, again = load_pairs("so101-cube-moved"), load_pairs(tmp_path / "again.parquet")
    assert len(bundled) == len(again) == 12
    for old, new in zip(bundled, again, strict=True):
        assert old.differs_in == new.differs_in
        for role in ROLES:
            before, now = getattr(old, role), getattr(new, role)
            assert torch.equal(before.action, now.action)
            assert before.labels == now.labels
            assert before.address == now.address
            for key, value in before.observation.items():
                # The renderer is the machine's: another one may round an edge otherwise.
                apart = (value.double() - now.observation[key].double()).abs()
                assert (apart > 2).double().mean() < 1e-3
        check_pair(old, MovedCube().differs)


@pytest.mark.parametrize(
    ("words", "differs_in"),
    [
        (["turned-cube"], "the cube's heading"),
        (["recoloured-cube", "--rgb", "0", "0", "1"], "the cube's colour"),
        (["light-level", "--brightness", "1.3"], "the brightness of the light"),
        (["light-direction"], "the direction of the light"),
        (["moved-arm"], "the arm's pose"),
        (["moved-cube-in-one-camera", "--camera", "LATERAL"], "where one camera shows the cube"),
        (["occluded-camera"], "what a card hides from one camera"),
        (["blacked-out-camera"], "whether one camera shows anything"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_every_change_is_a_word_on_the_command_line(renderer, tmp_path, capsys, words, differs_in):
    file = tmp_path / "pairs.parquet"
    size = ["--height", "48", "--width", "64"]
    assert main(["--output", str(file), "--groups", "2", "--seed", "3", *size, *words]) == 0
    assert " ".join(capsys.readouterr().out.split()).endswith(f"they differ in {differs_in} alone")
    first, second = load_pairs(file)
    assert first.differs_in == differs_in
    assert first.clean.labels["cube_x"] != second.clean.labels["cube_x"]


def test_a_colours_labels_are_the_colour(pairs):
    names = ("cube_red", "cube_green", "cube_blue")
    clean, corrupt = pairs[RecolouredCube].clean, pairs[RecolouredCube].corrupt
    assert [clean.labels[name] for name in names] == [0.85, 0.10, 0.10]
    assert [corrupt.labels[name] for name in names] == [0.10, 0.60, 0.15]
    assert not set(names) & pairs[MovedCube].clean.labels.keys()


def test_positions_and_headings_are_as_far_apart_as_asked(physics):
    for group in range(6):
        rng = np.random.default_rng(group)
        settings = config(region=Region.STRIP, min_distance=0.08)
        worlds = draw_worlds(settings, rng)
        here, there = (world.cube_xy for world in worlds)
        assert region_of(*here) is region_of(*there) is Region.STRIP
        assert np.linalg.norm(here - there) >= 0.08
        one, other = TurnedCube(0.4).settings(physics, worlds, rng)
        assert abs(one["cube_yaw"] - other["cube_yaw"]) >= 0.4
    with pytest.raises(ValueError, match="least_turn lies between"):
        TurnedCube(0.6)
    with pytest.raises(ValueError, match=r"STRIP do not come 0\.2 m apart"):
        draw_worlds(config(region=Region.STRIP, min_distance=0.2), np.random.default_rng(0))


def test_a_change_that_leaks_is_refused(env, monkeypatch):
    def leaking(self, env, worlds, rng):
        here, there = worlds
        return {"cube_xy": here.cube_xy}, {"cube_xy": there.cube_xy, "cube_yaw": there.cube_yaw}

    monkeypatch.setattr(MovedCube, "settings", leaking)
    with pytest.raises(SceneError, match="cube_yaw differs between clean and corrupt"):
        changed_pair(env, MovedCube(), config(), 0)


def test_a_change_that_cannot_be_seen_is_refused(env):
    with pytest.raises(SceneError, match=r"nothing of observation\.images.* differs"):
        changed_pair(env, LightLevel(1.0 + 1e-6), config(), 0)


def test_the_pairs_can_be_patched(new_model, env):
    cameras = tuple(Camera(key, 96, 128) for key in (TOP, LATERAL))
    model = new_model(cameras=cameras, action_dim=6, joints=())
    change = MovedArm()
    pairs = changed_pairs(env, config(groups=2, change=change))
    result = patch_pairs(model, pairs, options=SweepOptions(min_effect=0.0))
    assert (result.differs_in, len(result.null)) == (change.differs_in, 2)
    table = result.frame()
    everything = table[table.part == "all tokens"]
    np.testing.assert_allclose(everything.denoise, 1.0, atol=1e-3)


def test_all_changes_are_on_the_command_line():
    (declared,) = [f for f in fields(CounterfactualConfig) if f.name == "change"]
    assert set(declared.type.__args__) == {type(change) for change in EVERY}
