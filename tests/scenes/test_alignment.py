"""What two scenes share and differ in: closed forms, and pairs that are not what they declare."""

from dataclasses import replace

import pytest
import torch

from actlens.errors import SceneError
from actlens.scene import Scene, ScenePair
from actlens.scenes.alignment import (
    Differs,
    alignment,
    alignment_frame,
    check_pair,
    misalignments,
)

TOP, SIDE, STATE = "observation.images.top", "observation.images.side", "observation.state"


def scene(*, top=10, side=20, state=0.0, x=0.1, yaw=0.2, action=1.0, episode=0, frame=0):
    picture = lambda value: torch.full((3, 4, 5), value, dtype=torch.uint8)
    return Scene(
        {TOP: picture(top), SIDE: picture(side), STATE: torch.tensor([state, 1.0, 2.0])},
        torch.full((6, 3), action),
        labels={"cube_x": x, "cube_yaw": yaw},
        episode=episode,
        frame=frame,
    )


MOVED = Differs(frozenset({TOP, SIDE}), frozenset({"cube_x"}), action=True)


def moved_pair(**of_corrupt):
    """A pair in which only the cube moved, with donors; changes spoil the corrupt scene."""
    return ScenePair(
        scene(),
        scene(**({"top": 11, "x": 0.3, "action": 2.0, "episode": 1} | of_corrupt)),
        "the cube's position",
        scene(top=30, side=40, state=5.0, yaw=0.7, episode=2),
        scene(top=31, side=40, state=5.0, yaw=0.7, x=0.3, action=2.0, episode=3),
    )


def test_differences_are_measured_in_their_units():
    first, second = scene(), scene(state=-3.0, x=0.4, action=3.0, frame=7)
    second.observation[TOP][0, 1, 2] += 30
    second.observation[TOP][2, 1, 2] += 3
    second.observation[TOP][1, 3, 4] -= 9
    apart = alignment(first, second)
    assert (apart.state, apart.frames) == (3.0, 7)
    assert apart.labels == {"cube_x": pytest.approx(0.3), "cube_yaw": 0.0}
    assert apart.action == pytest.approx(2.0)
    assert apart.pictures[TOP].share == pytest.approx(2 / 20)
    assert apart.pictures[TOP].mean == pytest.approx((30 + 3 + 9) / 60)
    assert (apart.pictures[SIDE].share, apart.pictures[SIDE].mean) == (0.0, 0.0)


def test_float_pictures_are_measured_in_levels_too():
    as_floats = lambda s: replace(s, observation={TOP: s.observation[TOP] / 255})
    apart = alignment(as_floats(scene(top=10)), as_floats(scene(top=60)))
    assert apart.pictures[TOP].mean == pytest.approx(50)


def test_what_cannot_be_compared_is_refused_or_left_open():
    with pytest.raises(SceneError, match="different kinds of state"):
        alignment(Scene({STATE: torch.zeros(3)}), Scene({STATE: torch.zeros(4)}))
    with pytest.raises(SceneError, match="cannot be compared"):
        alignment(Scene({TOP: torch.zeros(3, 4, 4)}), Scene({TOP: torch.zeros(3, 4, 5)}))
    assert alignment(Scene({}), Scene({}, frame=4)).frames == 4
    assert alignment(scene(), replace(scene(), action=None)).action is None
    assert alignment(scene(), replace(scene(), action=torch.zeros(2, 3))).action is None


def test_a_pair_that_differs_in_one_thing_passes():
    pair = moved_pair()
    assert misalignments(pair, MOVED) == ()
    assert check_pair(pair, MOVED) is pair


@pytest.mark.parametrize(
    ("spoiled", "problem"),
    [
        ({"state": 1e-6}, "observation.state differs between clean and corrupt"),
        ({"yaw": 0.2 + 1e-12}, "cube_yaw differs between clean and corrupt"),
        ({"top": 10}, "nothing of observation.images.side, observation.images.top differs"),
        ({"x": 0.1}, "nothing of cube_x differs between clean and corrupt"),
        ({"action": 1.0}, "the actions are the same between clean and corrupt"),
        ({"frame": 1}, "the frame differs between clean and corrupt"),
    ],
    ids=str,
)
def test_everything_else_that_differs_is_named(spoiled, problem):
    pair = moved_pair(**spoiled)
    assert any(problem in found for found in misalignments(pair, MOVED))
    with pytest.raises(SceneError, match="do not differ in the cube's position alone"):
        check_pair(pair, MOVED)


def test_an_action_that_should_stay_is_held_to_it():
    pair = moved_pair()
    same_action = replace(MOVED, action=False)
    assert any("the actions are not the same" in p for p in misalignments(pair, same_action))


@pytest.mark.parametrize(
    ("donor", "problem"),
    [
        ({"x": 0.31}, "unrelated_corrupt does not agree with its scene in cube_x"),
        ({"state": 0.0}, "unrelated_corrupt agrees with its scene in observation.state"),
        ({"yaw": 0.1}, "cube_yaw differs between unrelated_clean and unrelated_corrupt"),
    ],
    ids=str,
)
def test_donors_that_are_not_unrelated_are_named(donor, problem):
    usual = {"top": 31, "side": 40, "state": 5.0, "yaw": 0.7, "x": 0.3, "action": 2.0}
    pair = replace(moved_pair(), unrelated_corrupt=scene(**(usual | donor)))
    assert problem in misalignments(pair, MOVED)


def test_donors_of_a_moved_arm_stand_alike():
    arm = Differs(frozenset({TOP, SIDE, STATE}), action=True)
    pair = ScenePair(
        scene(),
        scene(top=11, state=4.0, action=2.0),
        "the arm's pose",
        scene(top=30, side=40, x=0.5),
        scene(top=31, side=40, x=0.5, state=4.0, action=2.0),
    )
    assert misalignments(pair, arm) == ()
    elsewhere = replace(
        pair, unrelated_corrupt=scene(top=31, side=40, x=0.5, state=4.5, action=2.0)
    )
    assert any("does not agree with its scene in observation.state" in p
               for p in misalignments(elsewhere, arm))  # fmt: skip


def test_the_table_has_the_pair_and_its_donors():
    table = alignment_frame([moved_pair(), ScenePair(scene(), scene(x=0.6), "x")])
    assert table.compared.tolist() == ["pair", "clean donor", "corrupt donor", "pair"]
    assert table.pair.tolist() == [0, 0, 0, 1]
    assert table["label cube_x"].tolist() == pytest.approx([0.2, 0.0, 0.0, 0.5])
    assert table.state.tolist() == [0.0, 5.0, 5.0, 0.0]
    assert table[f"share {TOP}"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert table[f"mean {TOP}"].tolist() == pytest.approx([1.0, 20.0, 20.0, 0.0])
    assert table["first"].tolist() == ["0:0", "0:0", "1:0", "0:0"]
