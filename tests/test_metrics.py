import numpy as np
import pytest
import torch

from actlens.config import ACTConfig
from actlens.metrics import Along, Positions, change, position_weights, project, rms
from actlens.model.action_queue import new_queue
from actlens.scene import Scene


def chunk(*values):
    return torch.tensor([values], dtype=torch.float64)


def random_chunks(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, n, 4, 6, generator=generator, dtype=torch.float64)


def config(**changes):
    sizes = {"action_dim": 6, "state_dim": 6, "env_state_dim": 2, "chunk": 5, "n_action_steps": 5}
    return ACTConfig(cameras=(), **(sizes | changes))


def test_share_is_zero_without_movement_and_one_at_the_target():
    start, target = chunk(0.0, 1.0), chunk(2.0, 3.0)
    assert project(start, start, target).share == 0
    assert project(target, start, target).share == 1


def test_share_may_leave_the_unit_interval():
    start, target = chunk(0.0, 0.0), chunk(1.0, 0.0)
    assert project(chunk(-1.0, 0.0), start, target).share == -1
    assert project(chunk(3.0, 0.0), start, target).share == 3


def test_movement_across_the_difference_is_off_axis_and_restores_nothing():
    found = project(chunk(0.0, 5.0), chunk(0.0, 0.0), chunk(1.0, 0.0))
    assert found.share == 0
    assert found.off_axis == pytest.approx(5)
    assert found.cosine == 0
    assert found.distance_recovered == pytest.approx(1 - 26**0.5)


def test_share_and_off_axis_agree_with_the_closed_form_on_random_chunks():
    moved, start, target = random_chunks()
    found = project(moved, start, target)
    delta, goal = moved - start, target - start
    for i in range(7):
        r = (delta[i] * goal[i]).sum() / (goal[i] ** 2).sum()
        assert found.share[i] == pytest.approx(r.item())
        off = (delta[i] - r * goal[i]).norm() / goal[i].norm()
        assert found.off_axis[i] == pytest.approx(off.item())


def test_cosine_is_the_cosine_of_the_flattened_movement():
    moved, start, target = random_chunks()
    expected = torch.nn.functional.cosine_similarity(
        (moved - start).flatten(1), (target - start).flatten(1)
    )
    torch.testing.assert_close(project(moved, start, target).cosine, expected)


def test_cosine_is_unknown_where_nothing_but_rounding_moved():
    _, start, target = random_chunks()
    assert project(start + 1e-9, start, target).cosine.isnan().all()
    assert project(start, start, target).cosine.isnan().all()


def test_distance_recovered_is_one_at_the_target_even_in_float32():
    start, target = torch.full((1, 50, 6), 90.0), torch.full((1, 50, 6), 91.7)
    assert project(target, start, target).distance_recovered == 1
    assert project(start, start, target).distance_recovered == 0


def test_what_is_left_close_to_the_target_is_not_lost_to_float32():
    generator = torch.Generator().manual_seed(3)
    start, target, noise = torch.randn(3, 1, 50, 6, generator=generator)
    moved = target + 1e-5 * noise
    left = (target.double() - moved.double()).norm() / (target.double() - start.double()).norm()
    found = project(moved, start, target)
    assert 1 - found.distance_recovered.item() == pytest.approx(left.item(), rel=0.1)


def test_distance_recovered_agrees_with_the_distances():
    moved, start, target = random_chunks()
    left = (target - moved).flatten(1).norm(dim=1) / (target - start).flatten(1).norm(dim=1)
    torch.testing.assert_close(project(moved, start, target).distance_recovered, 1 - left)


def test_positions_weigh_by_their_weights():
    moved, start, target = random_chunks()
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    found = project(moved, start, target, weights=weights)
    delta, goal = (moved - start).numpy(), (target - start).numpy()
    inner = lambda a, b: np.einsum("k,nkj,nkj->n", weights.numpy(), a, b)
    np.testing.assert_allclose(found.along, inner(delta, goal))
    np.testing.assert_allclose(found.total, inner(goal, goal))
    np.testing.assert_allclose(found.moved, inner(delta, delta))


def test_positions_without_weight_are_as_if_they_were_not_there():
    moved, start, target = random_chunks()
    first_two = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    found = project(moved, start, target, weights=first_two)
    expected = project(moved[:, :2], start[:, :2], target[:, :2])
    torch.testing.assert_close(found.share, expected.share)
    torch.testing.assert_close(found.off_axis, expected.off_axis)


@pytest.mark.parametrize("along", Along)
def test_components_by_joint_and_by_position_add_up_to_the_whole(along):
    moved, start, target = random_chunks()
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    whole = project(moved, start, target, weights=weights)
    parts = project(moved, start, target, weights=weights, along=along)
    assert parts.along.shape == (7, {Along.JOINT: 6, Along.POSITION: 4}[along])
    for name in ("along", "total", "moved"):
        torch.testing.assert_close(getattr(parts, name).sum(-1), getattr(whole, name))


def test_a_joints_own_share_by_hand():
    # Two positions, two joints. Joint 0 goes half its way at both, joint 1 overshoots at one.
    start = torch.zeros(2, 2)
    target = torch.tensor([[2.0, 1.0], [4.0, 0.0]])
    moved = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    by_joint = project(moved, start, target, along=Along.JOINT)
    assert by_joint.along.tolist() == [10.0, 3.0]
    assert by_joint.share.tolist() == [0.5, 3.0]
    by_position = project(moved, start, target, along=Along.POSITION)
    assert by_position.along.tolist() == [5.0, 8.0]
    assert by_position.share.tolist() == [1.0, 0.5]


def test_change_by_hand():
    start = torch.zeros(2, 2)
    moved = torch.tensor([[1.0, -3.0], [-2.0, -1.0]])
    found = change(moved, start)
    assert found.signed.tolist() == [-1.0, -4.0]
    assert found.size.tolist() == [3.0, 4.0]
    assert found.by_position.tolist() == [2.0, 1.5]
    found = change(moved, start, weights=torch.tensor([0.5, 0.0]))
    assert found.signed.tolist() == [0.5, -1.5]
    assert found.size.tolist() == [0.5, 1.5]
    assert found.by_position.tolist() == [1.0, 0.0]


def test_rms_is_over_chunk_positions_and_joints():
    assert rms(torch.full((3, 4, 6), 2.0)).tolist() == [2.0, 2.0, 2.0]


def test_weighted_rms_is_that_of_the_positions_with_weight():
    difference = random_chunks()[0]
    weights = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(rms(difference, weights=weights), rms(difference[:, 1:3]))


def test_executed_positions_are_the_first_of_the_chunk():
    assert position_weights(config(n_action_steps=2)).tolist() == [1, 1, 1, 1, 1]
    executed = position_weights(config(n_action_steps=2), Positions.EXECUTED)
    assert executed.tolist() == [1, 1, 0, 0, 0]


def test_an_ensembles_weights_are_those_with_which_it_blends():
    ensembled = config(n_action_steps=1, temporal_ensemble_coeff=0.3)
    ensemble = new_queue(ensembled)
    for _ in range(9):  # position k of every chunk is the k-th unit vector
        ensemble.push(torch.eye(5)[None])
        action = ensemble.pop()[0]
    weights = position_weights(ensembled, Positions.EXECUTED)
    torch.testing.assert_close(weights / weights.sum(), action.double(), rtol=1e-5, atol=1e-6)


def test_positions_after_the_end_of_a_demonstration_weigh_nothing():
    scene = lambda *pad: Scene({}, action_is_pad=torch.tensor(pad, dtype=torch.bool))
    longer, shorter = scene(0, 0, 0, 0, 1, 1, 1), scene(0, 0, 1)
    assert position_weights(config(), scenes=[longer]).tolist() == [1, 1, 1, 1, 0]
    assert position_weights(config(), scenes=[shorter]).tolist() == [1, 1, 0, 1, 1]
    both = position_weights(config(n_action_steps=4), Positions.EXECUTED, [longer, shorter])
    assert both.tolist() == [1, 1, 0, 1, 0]
    assert position_weights(config(), scenes=[Scene({})]).tolist() == [1, 1, 1, 1, 1]
