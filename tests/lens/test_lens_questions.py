"""Questions to decoded motions against counts by hand, and a relay whose layer is known."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from actlens.errors import SceneError
from actlens.kinematics import SO101_SIMULATED
from actlens.lens import (
    Asking,
    Decodings,
    LensOptions,
    Part,
    Place,
    Question,
    State,
    Variant,
    study_lenses,
)
from actlens.lens.errors import Scale, error_rows, overstatement_rows
from actlens.lens.places import MEAN_ACTION
from actlens.lens.questions import answers, closing_step, emergence_rows, question_rows
from actlens.planted.relay import relay_policy
from actlens.scene import Scene
from actlens.statistics import wilson

RAW, TUNED = Variant.RAW, Variant.TUNED


def states(*variants):
    places = [State(Place(Part.ENCODER, layer), variant) for layer, variant in variants]
    return (*places, State(MEAN_ACTION, Variant.MEAN))


def decodings(chunks, policy, expert, **changes):
    """A set of scenes of episodes apart at frame 0; `chunks` of the encoder's layers and a mean."""
    n, length = policy.shape[:2]
    made = {
        "name": "some",
        "states": states(*((layer, RAW) for layer in range(len(chunks) - 1))),
        "chunks": chunks,
        "policy": policy,
        "expert": expert,
        "weights": np.ones((n, length)),
        "episodes": np.arange(n),
        "frames": np.zeros(n, np.int64),
        "cube": np.full((n, 3), np.nan),
    }
    return Decodings(**made | changes)


def random_decodings(n_states=3, n=12, length=7, joints=6, **changes):
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape)
    policy = new(n, length, joints)
    chunks = policy + np.arange(n_states)[::-1, None, None, None] * new(n_states, n, length, joints)
    return decodings(chunks, policy, policy + 0.3 * new(n, length, joints), **changes)


PLAIN = Scale(np.ones(6), None)


def test_errors_are_root_mean_squares_over_positions_that_count():
    part = random_decodings()
    weights = np.ones((12, 7))
    weights[3, 4:] = 0
    part = replace(part, weights=weights)
    scale = Scale(np.arange(1.0, 7), SO101_SIMULATED)
    rows = error_rows([part], scale)
    off = part.chunks[1] - part.policy
    kept = np.concatenate([off[i, : 4 if i == 3 else 7] for i in range(12)])
    (row,) = [r for r in rows if r["place"] == "encoder 1" and r["against"] == "policy"]
    assert row["rms"] == pytest.approx(np.sqrt((kept**2).mean()))
    assert row["normalised"] == pytest.approx(np.sqrt(((kept / scale.spread) ** 2).mean()))
    tips = SO101_SIMULATED.tip(part.chunks[1]) - SO101_SIMULATED.tip(part.policy)
    mm = 1000 * np.linalg.norm(tips, axis=-1)
    assert row["tip_mm"] == pytest.approx((mm * weights).sum() / weights.sum())
    assert row["rms_low"] < row["rms"] < row["rms_high"]
    assert (row["scenes"], row["episodes"], row["when"]) == (12, 12, "frame 0")


def test_the_overstatement_is_the_ratio_of_both_errors():
    part = random_decodings()
    part = replace(part, states=states((0, RAW), (0, TUNED)))
    (row,) = overstatement_rows([part], PLAIN)
    rms = [np.sqrt(np.mean((part.chunks[i] - part.policy) ** 2)) for i in range(2)]
    assert row["factor"] == pytest.approx(rms[0] / rms[1])
    assert row["factor_low"] < row["factor"] < row["factor_high"]


def test_telling_scenes_apart_is_the_share_of_draws_in_which_the_own_one_is_nearest():
    part = random_decodings(n=7)
    found = answers(Question.IDENTIFIED, part, PLAIN, Asking(among=3))
    for state in range(3):
        for scene in range(7):
            apart = [np.linalg.norm(part.chunks[state, scene] - e) for e in part.expert]
            drawn = list(combinations([i for i in range(7) if i != scene], 2))
            right = [min(apart[i] for i in pair) >= apart[scene] for pair in drawn]
            assert found[state, scene] == pytest.approx(np.mean(right))


def test_a_motion_that_knows_no_scene_is_told_by_chance():
    part = random_decodings(n=40)
    part = replace(part, chunks=np.broadcast_to(part.chunks[:, :1], part.chunks.shape))
    rows = question_rows([part], PLAIN, Asking(among=10))
    assert {row["null"] for row in rows} == {0.1}
    assert all(abs(row["rate"] - 0.1) < 0.03 for row in rows)


def test_scenes_are_told_from_those_of_the_same_moment_and_other_episodes():
    part = random_decodings(n=6)
    frames = np.array([0, 0, 0, 1, 1, 1])
    whole = answers(Question.IDENTIFIED, part.only(frames == 0), PLAIN, Asking(among=3))
    mixed = answers(Question.IDENTIFIED, replace(part, frames=frames), PLAIN, Asking(among=3))
    assert np.allclose(mixed[:, :3], whole)
    one_episode = replace(part, episodes=np.zeros(6, np.int64))
    assert np.isnan(answers(Question.IDENTIFIED, one_episode, PLAIN, Asking())).all()


@pytest.mark.parametrize(
    ("gripper", "step"),
    [([10, 50, 70, 70, 40, 20], 4), ([70, 70, 41, 70, 30, 30], 4), ([10, 20, 30, 40, 50, 60], -1)],
    ids=["opens_first", "half_way_does_not_count", "never"],
)
def test_the_gripper_closes_where_it_is_that_far_below_its_widest(gripper, step):
    assert closing_step(np.array(gripper, float), 30.0) == step


def reaching(distances_mm):
    """An expert that pans to the cube in five steps, and chunks that end so far beside it."""
    start = np.zeros(6)
    goal = start + np.array([40.0, 0, 0, 0, 0, 0])
    expert = np.linspace(start, goal, 5)[None]
    tip = SO101_SIMULATED.tip(goal)
    radius = np.linalg.norm(tip[:2]) * 1000
    chunks = np.stack([expert.copy() for _ in distances_mm])
    for chunk, distance in zip(chunks, distances_mm, strict=True):
        chunk[0, -1, 0] += np.degrees(2 * np.arcsin(distance / 2 / radius))
    return decodings(chunks, expert, expert, cube=tip[None])


def test_reaching_is_being_near_the_expert_where_that_is_at_the_cube():
    part = reaching([0.0, 19.5, 20.5, 60.0])
    scale = Scale(np.ones(6), SO101_SIMULATED)
    found = answers(Question.REACHES, part, scale, Asking(within_mm=20))
    assert found[:, 0].tolist() == [1, 1, 0, 0]
    there_already = replace(part, cube=SO101_SIMULATED.tip(part.expert[:, 0]))
    assert np.isnan(answers(Question.REACHES, there_already, scale, Asking())).all()
    ended = replace(part, weights=np.array([[1.0, 1, 1, 0, 0]]))  # before it got there
    assert np.isnan(answers(Question.REACHES, ended, scale, Asking())).all()
    unknown = replace(part, cube=np.full((1, 3), np.nan))
    assert np.isnan(answers(Question.REACHES, unknown, scale, Asking())).all()
    assert np.isnan(answers(Question.REACHES, part, PLAIN, Asking())).all()


def test_closing_in_time_is_asked_where_the_expert_closes():
    length = 12
    at = lambda step: np.where(np.arange(length) < step, 70.0, 10.0)
    gripper = lambda *steps: np.stack([at(step) for step in steps])[:, :, None]
    expert = gripper(6, 6, 99)
    chunks = np.stack([gripper(8, 10, 3), expert, gripper(99, 99, 99)])
    part = decodings(chunks, expert, expert)
    scale, asking = Scale(np.ones(1), None), Asking(steps=3, gripper=0, gripper_range=60.0)
    found = answers(Question.CLOSES, part, scale, asking)
    assert np.array_equal(found[:, :2], [[1, 0], [1, 1], [0, 0]])
    assert np.isnan(found[:, 2]).all()
    assert np.isnan(answers(Question.CLOSES, part, scale, Asking())).all()


def closing_part(yes):
    """Layers whose answers to the question of closing are given, and a mean that never closes."""
    at = lambda closes: np.where(np.arange(8) < (4 if closes else 99), 70.0, 10.0)
    chunks = np.stack([[at(one) for one in layer] for layer in yes])[..., None]
    expert = np.stack([at(True)] * len(yes[0]))[..., None]
    never = np.full((1, *expert.shape), 70.0)
    return decodings(np.concatenate([chunks, never]), expert, expert)


CLOSING = Asking(gripper=0, gripper_range=60.0, among=2)


def test_an_answer_emerges_at_the_first_layer_with_nine_tenths_of_the_final_rate():
    few, most, all_of = [1] * 8 + [0] * 12, [1] * 18 + [0] * 2, [1] * 20
    part = closing_part([few, most, all_of])
    scale = Scale(np.ones(1), None)
    (row,) = [
        row for row in emergence_rows([part], scale, CLOSING) if row["question"] == "closes in time"
    ]
    assert (row["layer"], row["final"], row["null"], row["variant"]) == (1, 1.0, 0.0, "raw")
    # 18 of 20, in resamples 18 or more: as often as a binomial of 20 and 0.9 gives that.
    assert row["same"] == pytest.approx(0.677, abs=0.04)
    rates = [r for r in question_rows([part], scale, CLOSING) if r["question"] == "closes in time"]
    assert [row["rate"] for row in rates] == [0.4, 0.9, 1.0, 0.0]
    assert (rates[1]["rate_low"], rates[1]["rate_high"]) == pytest.approx(wilson(18, 20))


def test_nothing_emerges_where_the_policy_is_no_better_than_the_mean_action():
    part = closing_part([[0] * 20, [1] * 2 + [0] * 18])
    rows = emergence_rows([part], Scale(np.ones(1), None), CLOSING)
    (row,) = [row for row in rows if row["question"] == "closes in time"]
    assert np.isnan(row["layer"])
    assert row["final"] == 0.1


@pytest.fixture(scope="module")
def relayed():
    """A study of the relay: the expert is the policy, the environment the same in all scenes."""
    policy = relay_policy()
    env = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def scene(episode):
        draw = torch.Generator().manual_seed(episode + 1)
        state = torch.randn(6, generator=draw, dtype=torch.float64)
        seen = {"observation.state": state, "observation.environment_state": env}
        with torch.no_grad():
            action = policy(seen)[0].float()
        return Scene(seen, action=action, episode=episode, source="planted")

    scenes = [scene(episode) for episode in range(60)]
    return study_lenses(policy, scenes[:40], {"others": scenes[40:]})


def test_a_relay_emerges_behind_its_block(relayed):
    table = relayed.emergence()
    assert set(table.question) == {"is this scene's"}
    assert set(table.variant) == {"raw", "renorm", "tuned", "shuffled"}
    table = table.set_index("variant")
    assert (table.layer[["raw", "renorm", "tuned"]] == 1).all()
    assert (table.same[["raw", "renorm", "tuned"]] == 1).all()
    assert table.layer["shuffled"] == 3  # the policy itself: the control never knows
    rates = relayed.questions().set_index(["place", "variant"]).rate
    assert rates["encoder 0", "tuned"] == pytest.approx(0.1, abs=0.05)
    assert rates["encoder 1", "tuned"] == 1


def test_the_study_says_that_single_tokens_carry_a_relay(relayed):
    errors = relayed.frame()
    errors = errors[errors.against == "policy"].set_index(["part", "layer", "detail"]).rms
    early, alone = "all but these tokens", "only these tokens"
    # From layer 0, the environment's token is what is missing; alone it is all that is needed.
    assert errors[early, 0, "env_state"] > 0.1
    assert errors[early, 0, "state"] < 1e-3
    assert errors[alone, 0, "env_state"] < 1e-3
    assert errors[alone, 0, "state"] > 0.1


def test_tables_are_tidy(relayed):
    frames = relayed.frames()
    assert list(frames) == ["claims", "errors", "overstatement", "questions", "emergence"]
    errors = frames["errors"]
    keys = ["set", "when", "part", "layer", "detail", "variant", "against"]
    assert not errors.duplicated(keys).any()
    assert set(errors.against) == {"policy", "expert"}
    assert (errors[errors.place == "encoder 3"].rms < 1e-6).all()
    factor = frames["overstatement"].set_index("place").factor
    assert factor["cross-attention 0"] < 1e-6  # its MLP writes nothing: the raw lens is exact
    assert factor["encoder 0"] == pytest.approx(1, abs=0.1)  # neither lens can know


def test_claims_are_judged_by_the_ratio_of_errors(relayed):
    claims = {claim.reading: claim for claim in relayed.claims()}
    settled, nothing = claims["others"], claims["encoder 0, others"]
    assert settled.value < 0.01
    assert settled.verdict == "supported"  # the relay's MLP writes nothing
    assert settled.null > 0.5
    assert nothing.value == pytest.approx(1, abs=0.1)
    assert nothing.verdict == "refuted"


def test_no_episode_is_fitted_on_and_asked_about(small, scenes_of):
    policy = small("act")
    scenes = scenes_of(policy, episodes=5)
    with pytest.raises(SceneError, match="Episode 4 is fitted on and lies in 'others'"):
        study_lenses(policy, scenes, {"others": scenes[4:]})
    with pytest.raises(SceneError, match="no scene to ask about"):
        study_lenses(policy, scenes, {})
    bare = [replace(scene, action=None) for scene in scenes_of(policy, episodes=5, seed=1)]
    with pytest.raises(SceneError, match="no demonstrated actions"):
        study_lenses(policy, bare, {"others": []})


def test_later_frames_are_apart_from_first_ones(small, scenes_of):
    policy = small("act")
    scenes = scenes_of(policy, episodes=6, moments=2)
    asked = [replace(s, source="others") for s in scenes_of(policy, episodes=6, moments=3, seed=1)]
    study = study_lenses(policy, scenes, {"others": asked}, options=LensOptions(heads=False))
    errors = study.frame()
    sizes = errors.groupby("when").scenes.first()
    assert (sizes["frame 0"], sizes["later"]) == (6, 12)
    assert "head" not in set(errors.part)
    tokens = errors[errors.part.str.contains("tokens")]
    assert set(tokens.when) == {"frame 0"}
