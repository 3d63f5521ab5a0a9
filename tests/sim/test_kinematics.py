"""The arm's closed-form kinematics, both ways, against MuJoCo's forward kinematics."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlens.kinematics import SO101_SIMULATED
from actlens.sim.environment import PickCube
from actlens.sim.expert import HOVER_HEIGHT, LIFT_HEIGHT
from actlens.sim.kinematics import (
    FOREARM,
    JOINT_HIGH,
    JOINT_LOW,
    UPPER_ARM,
    joints_for_tip,
    reach,
    to_degrees,
    to_radians,
)
from actlens.sim.regions import X_MAX, X_MIN, Y_MAX, Y_MIN

ENV = PickCube(render=False)


@settings(deadline=None, max_examples=200)
@given(
    x=st.floats(X_MIN, X_MAX),
    y=st.floats(Y_MIN, Y_MAX),
    z=st.floats(0.01, LIFT_HEIGHT),
    yaw=st.floats(-0.5, 0.5),
)
def test_the_tip_arrives_where_it_was_sent(x, y, z, yaw):
    joints = joints_for_tip(x, y, z, yaw=yaw, gripper=50.0)
    assert np.all(joints >= JOINT_LOW)
    assert np.all(joints <= JOINT_HIGH)
    _, facts = ENV.reset(seed=0, options={"arm": joints})
    # Equal but for the rounding of two chains of trigonometric functions.
    np.testing.assert_allclose(facts["tip"], [x, y, z], atol=1e-9)


@pytest.mark.parametrize("yaw", [-0.3, 0.0, 0.2])
def test_the_gripper_points_down_and_heads_where_it_was_told(yaw):
    ENV.reset(seed=0, options={"arm": joints_for_tip(0.17, 0.08, 0.05, yaw=yaw, gripper=50.0)})
    axes = ENV._data.site("tip").xmat.reshape(3, 3)
    np.testing.assert_allclose(axes[:, 2], [0, 0, -1], atol=1e-9)
    np.testing.assert_allclose(axes[:, 1], [-np.sin(yaw), np.cos(yaw), 0], atol=1e-9)


def test_all_corners_of_the_table_are_within_reach():
    corners = [(x, y) for x in (X_MIN, X_MAX) for y in (Y_MIN, Y_MAX)]
    reaches = [reach(x, y, z) for x, y in corners for z in (HOVER_HEIGHT, LIFT_HEIGHT)]
    assert max(reaches) < UPPER_ARM + FOREARM
    assert min(reaches) > FOREARM - UPPER_ARM


def test_an_unreachable_point_is_refused_with_its_distance():
    with pytest.raises(ValueError, match=r"reaches 0\.260 m"):
        joints_for_tip(0.4, 0.0, 0.05, yaw=0.0, gripper=0.0)


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=6))
def test_units_convert_there_and_back(joints):
    np.testing.assert_allclose(to_degrees(to_radians(np.array(joints))), joints, atol=1e-9)


def test_the_gripper_is_closed_at_zero_and_open_at_a_hundred():
    closed, opened = (to_radians(np.array([0, 0, 0, 0, 0, g]))[5] for g in (0.0, 100.0))
    limits = ENV._model.joint("gripper").range
    assert (closed, opened) == pytest.approx(tuple(limits))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_forward_kinematics_is_mujocos_at_any_joint_positions(share):
    joints = JOINT_LOW + np.array(share) * (JOINT_HIGH.astype(np.float64) - JOINT_LOW)
    _, facts = ENV.reset(seed=0, options={"arm": joints})
    np.testing.assert_allclose(SO101_SIMULATED.tip(joints), facts["tip"], atol=1e-9)


def test_the_recorded_datasets_are_of_the_arm_whose_kinematics_are_known():
    found = list(Path(str(resources.files("actlens"))).glob("bundled/datasets/*/meta/info.json"))
    assert found
    for info in found:
        assert json.loads(info.read_text())["robot_type"] == SO101_SIMULATED.name
