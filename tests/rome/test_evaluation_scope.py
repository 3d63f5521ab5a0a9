"""The scope of requests: which keys are averaged, which count, and where episodes take place."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actlens.rome import NO_JITTER, EditError, MLPSite, Request, key_statistics, prepare
from actlens.rome.scope import KeyBank, KeyWatch, Scope, scoped
from actlens.rome.situations import Places, Situation, frame_at, places_of
from actlens.rome.statistics import key_statistics_of
from actlens.rome.ways import ScopedEdits
from actlens.scenes.dataset import open_dataset
from tests.rome.conftest import PAN, scene, scenes

LENGTHS = dict.fromkeys(range(9), 3)
PLACES = Places(
    {episode: (10.0 * episode,) for episode in range(9)}, LENGTHS, ("x",), "mm",
    (5.0, 15.0, 40.0, 60.0), 25.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def bank(policy):
    """Eight episodes, one every 10 mm, three phases each: the executed positions."""
    watch = KeyWatch(MLPSite("decoder.0"), PLACES, range(3))
    key_statistics_of(policy, scenes(24), ["decoder.0"], watch=watch)
    return watch.bank()


def keys_of(policy, number):
    cache = policy.run_with_cache(scene(number))[1]
    return cache["decoder.0.mlp.hook_post"][0].detach()[:3].double()


def test_the_bank_holds_the_keys_of_every_scene(policy, bank):
    assert bank.keys.shape == (24, 3, 24)
    assert bank.episodes == tuple(n // 3 for n in range(24))
    assert bank.phases == (0.0, 0.5, 1.0) * 8
    torch.testing.assert_close(bank.keys[7], keys_of(policy, 7))


def test_keys_near_by_are_averaged_and_scenes_of_the_phase_are_weighed(policy, bank, statistics):
    """Episode 3 at phase 0.5: 2 and 4 are near, 1 to 5 alike, the others of the phase elsewhere."""
    prepared = prepare(policy, [Request(scene(10), PAN)], "decoder.0", jitter=NO_JITTER)
    scope = Scope(phase=0.1, alike_phase=0.1, elsewhere=6.0)
    found = scoped(prepared, statistics, bank, [PLACES.of(scene(10))], scope)
    near = [keys_of(policy, 3 * episode + 1) for episode in (2, 3, 4)]
    expected = torch.stack([keys_of(policy, 10), *near]).mean(0)
    torch.testing.assert_close(found.prepared.keys[0], expected)
    assert (found.n_near, found.n_alike) == (3, 5)
    total = torch.zeros(24, 24).double()
    for number in range(24):
        episode, of_phase = number // 3, number % 3 == 1
        count = (0 if 1 <= episode <= 5 else 6) if of_phase else 1
        keys = keys_of(policy, number)
        total += count * keys.T @ keys / 3
    torch.testing.assert_close(found.statistics.moment, total / 24, rtol=1e-9, atol=1e-12)


def test_a_scoped_edit_grants_its_request_and_says_how(policy, bank, statistics):
    edits = ScopedEdits(statistics, bank, Scope())
    prepared = prepare(policy, [Request(scene(10), PAN)], "decoder.0", jitter=NO_JITTER)
    edit = edits.edit(prepared, [PLACES.of(scene(10))])
    assert edit.record.requests[0].left_over < 1e-8
    assert "25 mm" in edit.record.options["scope"]
    assert edit.record.options["k* over"] == 4
    with edit.apply(policy):
        pass


def test_two_requests_share_one_moment(policy, bank, statistics):
    requests = [Request(scene(n), PAN) for n in (0, 23)]
    prepared = prepare(policy, requests, "decoder.0", jitter=NO_JITTER)
    situations = [PLACES.of(scene(n)) for n in (0, 23)]
    both = scoped(prepared, statistics, bank, situations)
    first, last = (
        scoped(prepare(policy, [r], "decoder.0", jitter=NO_JITTER), statistics, bank, [s])
        for r, s in zip(requests, situations, strict=True)
    )
    assert both.n_near == first.n_near + last.n_near
    assert both.n_alike == first.n_alike + last.n_alike
    for a, b in zip(both.prepared.keys, (*first.prepared.keys, *last.prepared.keys), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_scopes_are_refused(policy, bank, statistics):
    prepared = prepare(policy, [Request(scene(10), PAN, positions=(4,))], "decoder.0")
    here = [PLACES.of(scene(10))]
    with pytest.raises(EditError, match="the request is for 4 as well"):
        scoped(prepared, statistics, bank, here)
    prepared = prepare(policy, [Request(scene(10), PAN)], "decoder.0", jitter=NO_JITTER)
    everything = replace(bank, places=replace(PLACES, alike=1e3))
    with pytest.raises(EditError, match="nothing to keep to"):
        scoped(prepared, statistics, everything, here, Scope(alike_phase=1.0))
    other = key_statistics(policy, scenes(24), "encoder.0")
    with pytest.raises(EditError, match="not of the MLP"):
        scoped(prepared, other, bank, here)


# ── places ───────────────────────────────────────────────────────────────────────────────────


def test_situations_come_from_the_episode_or_from_labels_at_its_start():
    assert PLACES.of(replace(scene(10), frame=1)) == Situation((30.0,), 0.5)
    simulated = replace(scene(10), source="simulator", labels={"x": 0.02})
    assert PLACES.of(simulated) == Situation((20.0,), 0.0)
    with pytest.raises(EditError, match="nothing says where"):
        PLACES.of(replace(scene(10), episode=77))


def test_the_bundled_episodes_take_place_where_the_cube_stands():
    dataset = open_dataset("so101-pick-cube-5pos")
    places = places_of(dataset)
    labels = dataset.labels(3)
    assert places.at[3] == pytest.approx((1000 * labels["cube_x"][0], 1000 * labels["cube_y"][0]))
    assert (places.unit, places.rings[-1]) == ("mm", 80.0)


def test_without_labels_episodes_are_near_that_move_alike():
    dataset = open_dataset("so101-pick-cube-5pos")
    known, blind = places_of(dataset), places_of(dataset, labels=())
    assert (blind.unit, blind.labels) == ("sd", ())
    episodes = list(known.at)
    pairs = np.triu_indices(len(episodes), 1)
    apart = lambda places: np.stack([places.distances(places.at[e], episodes) for e in episodes])
    correlation = np.corrcoef(apart(known)[pairs], apart(blind)[pairs])[0, 1]
    assert correlation > 0.8
    moments = np.linspace(0, 74, 16).round().astype(int)
    moved = np.stack([dataset.actions(e)[moments] for e in episodes])
    scaled = (moved[4] - moved[9]) / moved.std((0, 1))
    by_hand = np.sqrt((scaled**2).mean())
    assert apart(blind)[4, 9] == pytest.approx(by_hand, rel=1e-5)
    share = (apart(blind)[pairs] < blind.rings[1]).mean()
    assert share == pytest.approx(0.05, abs=0.005)


def test_too_few_episodes_are_refused():
    few = SimpleNamespace(name="few", episodes=[SimpleNamespace(index=0, length=3)], label_names=())
    with pytest.raises(EditError, match="at least four"):
        places_of(few)


def test_frames_of_phases():
    assert [frame_at(phase, 75) for phase in (0.0, 0.2, 1.0)] == [0, 15, 74]


def test_a_bank_is_told_apart_by_its_positions(policy):
    watch = KeyWatch(MLPSite("encoder.1"), PLACES, range(policy.config.n_tokens))
    key_statistics_of(policy, scenes(24), ["encoder.1"], watch=watch)
    bank = watch.bank()
    assert isinstance(bank, KeyBank)
    assert bank.keys.shape[1] == policy.config.n_tokens
    statistics = key_statistics(policy, scenes(24), "encoder.1")
    prepared = prepare(policy, [Request(scene(10), PAN)], "encoder.1", jitter=NO_JITTER)
    edit = ScopedEdits(statistics, bank, Scope()).edit(prepared, [PLACES.of(scene(10))])
    assert edit.record.requests[0].left_over < 1e-6
