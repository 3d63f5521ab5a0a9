"""Millimetres and arrows against the arm's kinematics and the cameras' projection."""

import pytest
import torch
from torch.func import jacrev

from actlens.cameras import known_cameras
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.config import ACTION_KEY, Camera
from actlens.keyvalue.motion import arm_of, arrows, exaggeration, gripper_shift
from actlens.kinematics import SO101_SIMULATED as ARM
from actlens.model.act import HookedACT


@pytest.fixture(scope="module")
def policy(new_model):
    """A policy in memory of the simulated arm and its cameras, as the bundled ones are."""
    model = new_model(
        cameras=tuple(Camera(f"observation.images.{n}", 96, 128) for n in ("top", "lateral")),
        action_dim=6,
        joints=ARM.joints,
    )
    for name in ("shift_2", "unscale_2"):  # degrees, as a dataset's
        model.normalizer.get_buffer(name).mul_(20.0)
    assert model.normalizer.features[2] == ACTION_KEY
    model.checkpoint = Checkpoint(model.config, {}, {}, {}, source="bundled:so101-pick-cube")
    return model


ACTION = torch.tensor([0.2, -0.6, 0.5, 0.9, -0.3, 0.4])
EFFECT = torch.tensor([0.02, -0.01, 0.03, 0.0, 0.5, -0.5])


def in_units(model, x):
    return model.normalizer.unnormalize(ACTION_KEY, x.double())


def test_the_shift_is_between_the_tips_with_and_without(policy):
    moved = ARM.tip(in_units(policy, ACTION + EFFECT)) - ARM.tip(in_units(policy, ACTION))
    shift = gripper_shift(policy, ACTION, EFFECT)
    torch.testing.assert_close(shift, 1000 * moved, rtol=0, atol=1e-4)
    assert shift.norm() > 1
    batch = gripper_shift(policy, ACTION, torch.stack([EFFECT, 0 * EFFECT]))
    torch.testing.assert_close(batch[0], shift)
    assert batch[1].tolist() == [0, 0, 0]


def test_a_small_shift_is_the_jacobians(policy):
    jacobian = jacrev(lambda x: ARM.tip(in_units(policy, x)))(ACTION.double())
    shift = gripper_shift(policy, ACTION, 1e-4 * EFFECT)
    torch.testing.assert_close(
        shift, 1e-4 * 1000 * jacobian @ EFFECT.double(), rtol=1e-2, atol=1e-6
    )


def test_roll_and_gripper_move_nothing(policy):
    turned = torch.tensor([0.0, 0, 0, 0, 0.7, 0.7])
    assert gripper_shift(policy, ACTION, turned).norm() < 1e-9


def test_arrows_start_at_the_gripper_and_exaggerate_the_motion(policy):
    found = arrows(policy, ACTION, EFFECT, factor=8.0)
    cameras = known_cameras(policy.config.cameras, ARM)
    start = ARM.tip(in_units(policy, ACTION))
    end = start + 8 * (ARM.tip(in_units(policy, ACTION + EFFECT)) - start)
    assert [arrow.camera for arrow in found] == ["top", "lateral"]
    for arrow, camera in zip(found, cameras, strict=True):
        assert arrow.start == pytest.approx(camera.project(start).tolist(), abs=1e-3)
        assert arrow.end == pytest.approx(camera.project(end).tolist(), abs=1e-3)
        assert arrow.factor == 8.0
        shift = gripper_shift(policy, ACTION, EFFECT)
        assert arrow.millimetres == pytest.approx(float(shift.norm()))


def test_a_camera_behind_which_the_arrow_ends_is_left_out(policy):
    up = torch.tensor([0.0, -0.02, 0.0, 0.0, 0.0, 0.0])
    rising = gripper_shift(policy, ACTION, up)
    names = lambda factor: [a.camera for a in arrows(policy, ACTION, up, factor=factor)]
    assert names(1.0) == ["top", "lateral"]
    assert names(800.0 / float(rising[2])) == ["lateral"]  # 0.8 m up: above the top camera


def test_nothing_is_drawn_of_an_arm_that_is_not_known(policy, new_model):
    own = new_model(action_dim=6, joints=ARM.joints)
    assert arm_of(own) is None
    assert gripper_shift(own, ACTION, EFFECT) is None
    assert arrows(own, ACTION, EFFECT, factor=1.0) is None
    assert gripper_shift(own, ACTION, EFFECT, arm=ARM).shape == (3,)
    # A known arm in front of cameras that are not: this policy's are called top and side.
    assert [a.camera for a in arrows(own, ACTION, EFFECT, factor=1.0, arm=ARM)] == ["top"]
    blind = new_model(action_dim=6, joints=ARM.joints, cameras=(), env_state_dim=4)
    assert arrows(blind, ACTION, EFFECT, factor=1.0, arm=ARM) is None


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((3.0, 0.1), 20.0),
        ((7.0,), 5.0),
        ((0.6,), 100.0),
        ((59.0,), 1.0),
        ((130.0,), 0.2),
        ((0.0,), 1.0),
    ],
)
def test_the_factor_is_round_and_keeps_the_longest_within_bounds(lengths, expected):
    shifts = torch.tensor([[0.0, length, 0.0] for length in lengths])
    assert exaggeration(shifts, longest=60.0) == pytest.approx(expected)


def test_the_bundled_policy_is_of_the_simulated_arm():
    model = HookedACT.from_pretrained("so101-pick-cube")
    assert arm_of(model) is ARM
    assert [c.name for c in known_cameras(model.config.cameras, ARM)] == ["top", "lateral"]
