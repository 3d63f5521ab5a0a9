"""Forward kinematics by hand; tests/sim holds it against MuJoCo."""

import numpy as np
import pytest
import torch

from actlens.kinematics import SO101_SIMULATED as ARM
from actlens.kinematics import known_arm


def test_with_all_joints_at_zero_the_upper_arm_is_upright_and_the_rest_level():
    expected = [
        ARM.shoulder_offset + ARM.forearm + ARM.wrist_to_tip,
        0.0,
        ARM.shoulder_height + ARM.upper_arm,
    ]
    np.testing.assert_allclose(ARM.tip(np.zeros(6)), expected, atol=1e-12)


def test_pan_turns_the_tip_to_the_left():
    straight, turned = ARM.tip(np.zeros(6)), ARM.tip(np.array([90.0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(turned, [0.0, straight[0], straight[2]], atol=1e-12)


def test_roll_and_jaws_leave_the_tip_where_it_is():
    joints = np.array([10.0, -30, 20, 40, 0, 0])
    turned = joints + np.array([0, 0, 0, 0, 77, 50])
    np.testing.assert_allclose(ARM.tip(turned), ARM.tip(joints), atol=1e-12)


def test_any_leading_axes_in_numpy_and_torch_give_the_same():
    joints = np.random.default_rng(0).uniform(-90, 90, (4, 5, 6))
    tips = ARM.tip(joints)
    assert tips.shape == (4, 5, 3)
    np.testing.assert_allclose(tips[2, 3], ARM.tip(joints[2, 3]))
    np.testing.assert_allclose(ARM.tip(torch.from_numpy(joints)).numpy(), tips)


def test_float32_joints_lose_less_than_a_micrometre():
    joints = torch.from_numpy(np.random.default_rng(1).uniform(-90, 90, (50, 6)))
    error = (ARM.tip(joints.float()) - ARM.tip(joints)).abs().max()
    assert ARM.tip(joints.float()).dtype == torch.float64
    assert error < 1e-6


def test_another_number_of_joints_is_refused():
    with pytest.raises(ValueError, match=r"so101_simulated has 6 joints .* shape \(2, 7\)"):
        ARM.tip(np.zeros((2, 7)))


@pytest.mark.parametrize(
    "origin", ["so101_simulated", "bundled:so101-pick-cube", "bundled:so101-pick-cube-5pos"]
)
def test_the_simulated_arm_is_recognised_by_origin_and_joints_together(origin):
    assert known_arm(ARM.joints, origin) is ARM
    assert known_arm(ARM.joints[::-1], origin) is None
    assert known_arm([*ARM.joints, "extra.pos"], origin) is None


@pytest.mark.parametrize("origin", ["", "so101", "so101_follower", "hub:so101-pick-cube@main"])
def test_a_real_arm_with_the_same_joints_is_not_taken_for_it(origin):
    assert known_arm(ARM.joints, origin) is None


def test_the_bundled_policies_are_recognised():
    from actlens.checkpoints import bundled_names, load_checkpoint

    for name in bundled_names():
        checkpoint = load_checkpoint(name)
        assert known_arm(checkpoint.config.joints, checkpoint.source) is ARM
