import pytest
import torch

from actlens.metrics import project, rms


def chunk(*values):
    return torch.tensor([values], dtype=torch.float64)


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


def test_share_and_off_axis_agree_with_the_closed_form_on_random_chunks():
    generator = torch.Generator().manual_seed(0)
    moved, start, target = (
        torch.randn(7, 4, 6, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    found = project(moved, start, target)
    delta, goal = moved - start, target - start
    for i in range(7):
        r = (delta[i] * goal[i]).sum() / (goal[i] ** 2).sum()
        assert found.share[i] == pytest.approx(r.item())
        off = (delta[i] - r * goal[i]).norm() / goal[i].norm()
        assert found.off_axis[i] == pytest.approx(off.item())


def test_rms_is_over_chunk_positions_and_joints():
    assert rms(torch.full((3, 4, 6), 2.0)).tolist() == [2.0, 2.0, 2.0]
