"""Perturbations as values: schedules, files, rollouts, and pairs of a planted policy."""

import json

import numpy as np
import pytest
import torch
from relay import DENOISE_MAP, relay_policy

from actlens.errors import InterventionError
from actlens.interventions import Schedule
from actlens.interventions.corruptions import (
    Blackout,
    Blur,
    Brightness,
    FrozenCamera,
    Instant,
    Occlusion,
    PixelNoise,
    Shift,
    StateNoise,
    StateOffset,
)
from actlens.interventions.perturbations import (
    Perturbation,
    PerturbedView,
    perturbed_pair,
    usual_suite,
)
from actlens.patching import SweepOptions, Unit, patch_pairs
from actlens.scene import Scene
from actlens.scenes.alignment import Differs, misalignments
from actlens.scenes.bundled import load_pairs, save_pairs

TOP, STATE = "observation.images.top", "observation.state"


def seen(step):
    """What a rollout shows at a step: other pictures and joints at every one."""
    rng = np.random.default_rng(step)
    picture = torch.from_numpy(rng.integers(0, 256, (3, 24, 32), dtype=np.uint8))
    return {TOP: picture, STATE: torch.full((6,), float(step))}


def scene(episode, frame=0):
    return Scene(seen(100 + episode), episode=episode, frame=frame, labels={"cube_x": 0.1})


def test_corruptions_are_made_in_their_order():
    dark_then_bright = Perturbation((Brightness(0.5), Brightness(4.0))).apply(seen(0))[TOP]
    bright_then_dark = Perturbation((Brightness(4.0), Brightness(0.5))).apply(seen(0))[TOP]
    assert dark_then_bright.max() == 255
    assert bright_then_dark.max() == 128
    with pytest.raises(InterventionError, match="changes nothing"):
        Perturbation(())


def test_a_schedule_says_when_and_otherwise_nothing_is_touched():
    late = Perturbation((Blackout(),), Schedule(start=10, stop=20, every=5))
    acted = []
    for step in range(25):
        observation = seen(step)
        shown = late.apply(observation, Instant(step))
        assert (shown is observation) == (step not in (10, 15))
        acted += [step] if not shown[TOP].any() else []
    assert acted == [10, 15]
    assert not late.apply(seen(0))[TOP].any()  # outside of a rollout it always acts


@pytest.mark.parametrize(
    "perturbation",
    [
        *(severest for *_, severest in usual_suite(["top", "lateral"]).values()),
        Perturbation((Blur(2), Shift(1, -2)), Schedule(3, 9, 2)),
    ],
    ids=str,
)
def test_saved_and_loaded_it_is_the_same(perturbation):
    saved = json.dumps(perturbation.to_json(), allow_nan=False)
    assert Perturbation.from_json(json.loads(saved)) == perturbation


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"corruptions": [{"kind": "Blur", "sigma": 1.0}]},
        {"corruptions": [], "schedule": {}},
        {"corruptions": [{"kind": "Perturbation"}], "schedule": {}},
        {"corruptions": [{"kind": "Corruption"}], "schedule": {}},
        {"corruptions": [{"kind": ["Blur"]}], "schedule": {}},
        {"corruptions": [{"kind": "Blur"}], "schedule": {}},
        {"corruptions": [{"kind": "Blur", "sigma": "wide"}], "schedule": {}},
        {"corruptions": [{"kind": "Blur", "sigma": 1.0, "seen": 3}], "schedule": {}},
        {"corruptions": [{"kind": "Occlusion", "rows": 1, "columns": [0, 1]}], "schedule": {}},
        {"corruptions": [{"kind": "Blur", "sigma": 1.0}], "schedule": {"start": -1}},
        {"corruptions": [{"kind": "Blur", "sigma": 1.0}], "schedule": 3},
        {"corruptions": 3, "schedule": {}},
    ],
    ids=str,
)
def test_what_is_no_saved_perturbation_is_refused(saved):
    with pytest.raises(InterventionError):
        Perturbation.from_json(saved)


def test_control_characters_of_a_file_are_not_repeated():
    with pytest.raises(InterventionError) as refused:
        Perturbation.from_json({"corruptions": [{"kind": "\x1b[31mred"}], "schedule": {}})
    assert "\x1b" not in str(refused.value)


def test_a_frozen_camera_remembers_its_own_rollout():
    view = PerturbedView(Perturbation((FrozenCamera(),)))
    for first in (0, 50):
        shown = [view(seen(first + step), step) for step in range(4)]
        for step, found in enumerate(shown):
            assert torch.equal(found[TOP], seen(first)[TOP])
            assert torch.equal(found[STATE], seen(first + step)[STATE])


def test_a_camera_freezes_when_its_schedule_begins():
    view = PerturbedView(Perturbation((FrozenCamera(),), Schedule(start=3)))
    for first in (0, 50):
        shown = [view(seen(first + step), step)[TOP] for step in range(6)]
        expected = [seen(first + min(step, 3))[TOP] for step in range(6)]
        assert all(map(torch.equal, shown, expected))


def test_a_view_that_is_asked_at_one_step_alone_forgets_the_rollout_before():
    view = PerturbedView(Perturbation((FrozenCamera(),)))
    view(seen(1), 30)
    assert torch.equal(view(seen(2), 30)[TOP], seen(2)[TOP])


def test_a_frozen_picture_does_not_follow_later_edits():
    view, observation = PerturbedView(Perturbation((FrozenCamera(),))), seen(0)
    view(observation, 0)
    observation[TOP].zero_()
    assert torch.equal(view(seen(1), 1)[TOP], seen(0)[TOP])


def test_noise_in_a_rollout_is_drawn_by_episode_and_step():
    noisy = Perturbation((StateNoise(1.0),))
    play = lambda episode: [
        PerturbedView(noisy, episode=episode)(seen(0), step)[STATE] for step in range(3)
    ]
    first, again, other = play(0), play(0), play(1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])
    alone = noisy.apply(seen(0), Instant(2, 0))[STATE]
    assert torch.equal(first[2], alone)


def test_a_nuisance_pair_differs_in_what_is_seen_and_has_donors_alike(tmp_path):
    card = Perturbation((Occlusion((0.0, 0.5), (0.0, 1.0)),), Schedule(start=40))
    pair = perturbed_pair(card, scene(1), unrelated=scene(2))
    assert pair.differs_in == "Occlusion(rows=(0.0, 0.5), columns=(0.0, 1.0))"
    assert not misalignments(pair, Differs(frozenset({TOP})))
    assert (pair.corrupt.observation[TOP][:, :12] == 128).all()
    assert (pair.unrelated_corrupt.observation[TOP][:, :12] == 128).all()
    save_pairs([pair], tmp_path / "pairs.parquet")
    (loaded,) = load_pairs(tmp_path / "pairs.parquet")
    assert torch.equal(loaded.corrupt.observation[TOP], pair.corrupt.observation[TOP])


def test_noise_of_pairs_is_drawn_by_episode_and_frame():
    def noisy(episode, frame=0):
        same = Scene({TOP: torch.full((3, 24, 32), 0.5)}, episode=episode, frame=frame)
        return perturbed_pair(Perturbation((PixelNoise(0.1),)), same).corrupt.observation[TOP]

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))
    assert not torch.equal(noisy(1), noisy(1, frame=5))


def test_a_frozen_cameras_pair_is_told_what_came_first():
    frozen = Perturbation((FrozenCamera(),))
    pair = perturbed_pair(frozen, scene(1, frame=9), unrelated=scene(2), first=seen(0))
    assert torch.equal(pair.corrupt.observation[TOP], seen(0)[TOP])
    assert torch.equal(pair.unrelated_corrupt.observation[TOP], seen(0)[TOP])


def test_patching_finds_the_planted_path_of_a_perturbed_state():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
    scenes = [
        Scene({STATE: draw(), "observation.environment_state": draw()}, episode=i) for i in range(6)
    ]
    shifted = Perturbation((StateOffset((0.5, -0.5, 1.0, 0.0, 0.3, -1.0)),))
    pairs = [
        perturbed_pair(shifted, one, unrelated=other)
        for one, other in zip(scenes, scenes[1:] + scenes[:1], strict=True)
    ]
    result = patch_pairs(relay_policy(), pairs, options=SweepOptions(min_effect=0.0))
    frame = result.frame()
    tokens = frame[frame.unit == Unit.TOKEN.value]
    found = tokens.pivot(index="depth", columns="token", values="denoise").to_numpy()
    np.testing.assert_allclose(found, DENOISE_MAP, atol=1e-6)


def test_the_usual_suite_has_every_corruption_and_rising_severity():
    suite = usual_suite(["top", "lateral"])
    assert {"blur", "pixel noise", "darker", "shift right", "cameras swapped"} <= suite.keys()
    assert {"top black", "lateral frozen", "all frozen", "top occluded"} <= suite.keys()
    assert "cameras swapped" not in usual_suite(["a", "b", "c"])
    rng = np.random.default_rng(0)
    grey = lambda: torch.from_numpy(rng.integers(40, 90, (3, 240, 320), np.uint8))
    then, now = (
        {TOP: grey(), "observation.images.lateral": grey(), STATE: torch.zeros(6)} for _ in range(2)
    )
    for name, levels in suite.items():
        changed = [level.apply(now, Instant(1, first=then)) for level in levels]
        squares = [
            sum((found[key].double() - now[key].double()).square().mean().item() for key in now)
            for found in changed
        ]
        assert squares == sorted(squares), name
        assert squares[0] > 0, name
