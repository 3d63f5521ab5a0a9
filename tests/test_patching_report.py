"""The console report shows what the tables say; it computes nothing, so small made-up sweeps do."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from actlens.kinematics import SO101_SIMULATED
from actlens.patching import (
    ALL_TOKENS,
    Direction,
    PairSweep,
    Part,
    PatchingResult,
    SweepOptions,
    Unit,
)
from actlens.report.patching import render_patching
from actlens.scene import Scene, ScenePair

PARTS = (
    Part(
        "encoder.0.hook_resid_pre", Unit.TOKEN, 0, "top[0,0]", token=3, camera="top", row=0, col=0
    ),
    Part("encoder.0.hook_resid_pre", Unit.GROUP, 0, ALL_TOKENS, group=ALL_TOKENS),
    Part("encoder.0.hook_resid_pre", Unit.GROUP, 0, "top", group="top", camera="top"),
    Part("encoder.0.attn.hook_z", Unit.HEAD, 0, "head 1", head=1),
    Part("encoder.0.hook_attn_out", Unit.SUBLAYER, 0, ""),
    Part("decoder.0.hook_attn_out", Unit.SUBLAYER, 1, ""),
    Part("decoder.0.hook_cross_attn_out", Unit.SUBLAYER, 1, ""),
)
SHARE = np.array([0.1, 1.0, 0.5, 0.2, 0.25, 0.0, 1.0])
DIFFERENCE = np.array([20.0, 8, 12, 4, 200, 0.5])  # of each joint, dataset units


def made_up_sweep(*, gripper: bool, share=SHARE) -> PairSweep:
    """Every part moves every joint by its share of the difference, at both chunk positions."""
    n, small = len(share), np.float32
    by_joint = share[:, None] * DIFFERENCE
    known = {
        "gripper_along": share * 100.0, "gripper_total": 100.0, "gripper_end_difference": 44.4,
        "gripper_end": (share * 44.4).astype(small), "gripper_largest": (share * 60).astype(small),
        "gripper_largest_difference": 60.0,
    }  # fmt: skip
    return PairSweep(
        along=share * 12, moved=share**2 * 12, total=12.0, effect=9.0, weights=np.ones(2),
        site_change=np.ones(n), output_change=np.ones(n),
        joint_along=(share[:, None] * np.full(6, 2.0)).astype(small), joint_total=np.full(6, 2.0),
        joint_size=(2 * by_joint).astype(small), joint_signed=(2 * by_joint).astype(small),
        joint_difference=2 * DIFFERENCE, position_total=np.full(2, 6.0),
        position_difference=np.full(2, DIFFERENCE.mean()),
        **(known if gripper else {}),
    )  # fmt: skip


def made_up_result(*, gripper=True, shared_donor=False, n=6):
    scene = lambda episode: Scene({}, episode=episode, source="made up")
    donor = lambda i: scene(2 if shared_donor else 3 * i + 2)
    pairs = tuple(
        ScenePair(scene(3 * i), scene(3 * i + 1), "the cube", None, donor(i)) for i in range(n)
    )
    sweeps = tuple(made_up_sweep(gripper=gripper) for _ in range(n))
    null = tuple(made_up_sweep(gripper=gripper, share=0 * SHARE) for _ in range(n))
    return PatchingResult(
        PARTS, dict.fromkeys(Direction, sweeps), null, pairs, (), "the cube", {"top": (1, 1)},
        SweepOptions(), 0, SO101_SIMULATED.joints,
    )  # fmt: skip


def shown(result, width=80, *, joints=True):
    printed = io.StringIO()
    table = result.joints() if joints else None
    report = render_patching(result, result.frame(), policy="made up", joints=table)
    Console(width=width, file=printed).print(report)
    return printed.getvalue()


def line_with(text, *words):
    return next(line for line in text.splitlines() if all(word in line for word in words))


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_its_columns(width):
    assert max(map(len, shown(made_up_result(), width).splitlines())) <= width


def test_the_grippers_way_stands_beside_the_strongest_sites():
    text = shown(made_up_result(), 120)
    assert line_with(text, "encoder.0.hook_attn_out", "0.25").split()[-3] == "11.1"
    assert line_with(text, "top[0,0]").split()[-3] == "4.4"
    assert "44.4 mm apart" in " ".join(text.split())


def test_a_report_on_an_unknown_arm_has_no_millimetres():
    text = shown(made_up_result(gripper=False), 120)
    assert "mm" not in text.replace("commanded", "").split()
    assert "apart" not in text


def test_joints_are_shown_by_depth_with_the_scenes_own_difference():
    text = shown(made_up_result(), 120)
    assert line_with(text, "shoulder_pan", "20.0").split() == ["shoulder_pan", "10.0", "20.0"]
    assert line_with(text, "wrist_roll", "200").split() == ["wrist_roll", "100", "200"]


def test_the_joints_of_a_sublayer_leave_out_those_that_restore_everything():
    text = shown(made_up_result(), 120).split("Sublayers, the strongest")[1]
    assert "encoder.0.hook_attn_out" in text.splitlines()[1]
    assert "shoulder_pan 5.00 (of 20.0)" in text
    assert "hook_cross_attn_out" not in text.split("denoise:")[0]


def test_without_the_table_of_joints_the_report_has_none():
    assert "dataset units" not in shown(made_up_result(), joints=False)


def test_the_footnote_counts_clusters_and_what_holds_against_the_largest():
    flat = " ".join(shown(made_up_result()).split())
    assert "bootstrap over 6 pairs in 6 clusters that share no episode" in flat
    assert "sign flips of 6 clusters" in flat
    assert "6 parts also hold against the largest" in flat


def test_the_footnote_says_when_shared_donors_leave_no_test():
    assert "nothing is left to permute" in " ".join(
        shown(made_up_result(shared_donor=True)).split()
    )


def test_the_footnote_says_when_shared_episodes_leave_no_interval():
    result = made_up_result()
    same = tuple(replace(pair, clean=replace(pair.clean, episode=0)) for pair in result.pairs)
    flat = " ".join(shown(replace(result, pairs=same)).split())
    assert "no intervals: 6 pairs in 1 cluster that share no episode cannot give any" in flat


def test_the_header_says_which_positions_were_measured():
    from actlens.metrics import Positions

    result = made_up_result()
    executed = replace(result, options=SweepOptions(positions=Positions.EXECUTED))
    assert "whole chunk" in " ".join(shown(result).split())
    assert "executed positions" in " ".join(shown(executed).replace("│", " ").split())
