"""What the runs of a series are shown, and how they are trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actlens.errors import ConfigError
from actlens.scenes.dataset import open_dataset
from actlens.sim.regions import FIVE_POSITIONS, NINE_POSITIONS, ONE_POSITION, Region, region_of
from actlens.sim.series import ARMS, Arm, Run, Size, all_runs
from actlens.sim.series.training import train_config, trained


def test_a_smaller_dose_is_a_part_of_a_larger_one_with_the_same_seed():
    dataset = open_dataset("so101-pick-cube")
    shown = {n: set(Run(Arm(n), 3).episodes(dataset)) for n in (5, 10, 20, 50, 100)}
    assert [len(some) for some in shown.values()] == list(shown)
    assert shown[5] < shown[10] < shown[20] < shown[50] < shown[100]


def test_another_seed_is_shown_other_demonstrations():
    dataset = open_dataset("so101-pick-cube")
    first, second = (Run(Arm(20), seed).episodes(dataset) for seed in (0, 1))
    assert len(set(first) & set(second)) < 20


def test_every_arm_has_a_run_of_each_seed_and_whole_seeds_come_first():
    runs = all_runs(2)
    assert len({run.name for run in runs}) == 2 * len(ARMS) == 16
    assert {run.arm for run in runs[: len(ARMS)]} == set(ARMS)
    assert [run.seed for run in runs] == [0] * len(ARMS) + [1] * len(ARMS)


def test_both_curves_share_fifty_demonstrations_all_over_the_table():
    doses = {(arm.demonstrations, arm.positions) for arm in ARMS}
    assert {(n, None) for n in (5, 10, 20, 50, 100)} <= doses
    assert {(50, n) for n in (1, 5, 9, None)} <= doses


@pytest.mark.parametrize("places", [ONE_POSITION, FIVE_POSITIONS, NINE_POSITIONS])
def test_fixed_places_are_demonstrated_ones_in_cells_of_their_own(places):
    assert {region_of(*place) for place in places} == {Region.TRAIN}
    apart = [np.hypot(*np.subtract(p, q)) for p in places for q in places if p != q]
    assert min(apart, default=1.0) > 0.02


def test_more_places_contain_the_fewer():
    assert set(ONE_POSITION) < set(FIVE_POSITIONS) < set(NINE_POSITIONS)


def test_runs_differ_in_what_they_are_shown_and_their_seed_alone(tmp_path):
    configs = [
        train_config(Run(arm, seed), tmp_path, Size())
        for arm, seed in ((Arm(5), 0), (Arm(100), 1), (Arm(50, 5), 2))
    ]
    common = {
        replace(config, dataset="", output_dir=Path(), episodes=(), seed=0) for config in configs
    }
    assert len(common) == 1
    assert [len(config.episodes) for config in configs] == [5, 100, 50]


def test_a_policy_of_another_size_is_refused(tmp_path):
    run = Run(Arm(5), 0)
    folder = train_config(run, tmp_path, Size()).output_dir
    (folder / "pretrained_model").mkdir(parents=True)
    (folder / "pretrained_model" / "config.json").write_text("{}")
    (folder / "train_config.json").write_text('{"steps": 7}')
    with pytest.raises(ConfigError, match="steps"):
        trained(run, tmp_path, Size())
