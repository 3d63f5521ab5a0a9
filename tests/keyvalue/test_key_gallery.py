"""Where entries look, what shown neurons add, and the tables and pictures of an analysis."""

import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from actlens.errors import SceneError
from actlens.keyvalue import (
    ClosedFormValues,
    aligned,
    analyse_mlp,
    crops,
    find_triggers,
    run_entries,
    show_neurons,
)
from actlens.metrics import Positions, position_weights
from actlens.report.keyvalue import describe_region, render_keyvalue
from actlens.report.memory_pictures import save_memories
from tests.keyvalue.value_models import chunk_with, small_policy
from tests.rome.conftest import scene

PER_EPISODE, N = 2, 48
BLOCKS = ("decoder.0", "encoder.1")


def labelled(number):
    one = scene(number, per_episode=PER_EPISODE)
    return replace(one, labels={"cube_x": float(number), "cube_y": -float(number)})


@pytest.fixture(scope="module")
def policy(new_model):
    return small_policy(new_model)


@pytest.fixture(scope="module", params=BLOCKS)
def analysis(request, policy):
    scenes = [labelled(i) for i in range(N)]
    entries = run_entries(policy, scenes, request.param)
    own, shuffled = find_triggers(policy, request.param, entries, top=8, draws=99)
    return analyse_mlp(policy, own, shuffled, scenes[:12:2])


def scene_at(source, episode, frame):
    return labelled(episode * PER_EPISODE + frame)


@pytest.fixture(scope="module")
def shown(policy, analysis):
    reading = analysis.own.reading
    fires = np.flatnonzero(np.isfinite(reading.by_episode.coefficient[:, 2]))
    return show_neurons(policy, reading.site.block, reading, fires[:3], scene_at, n_triggers=3)


# ── crops ────────────────────────────────────────────────────────────────────────────────────


def test_a_pixel_token_is_shown_with_its_neighbours(policy):
    one = labelled(3)
    tokens = policy.tokens
    index = tokens.index("top[1,5]")
    (crop,) = crops(policy, "encoder.1", one, index)
    rect = crop.rect
    assert (rect.camera, rect.top, rect.bottom, rect.left, rect.right) == ("top", 0, 64, 128, 224)
    picture = one.observation["observation.images.top"][:, 0:64, 128:224]
    np.testing.assert_array_equal(crop.picture, picture.permute(1, 2, 0).numpy())
    floats = {key: x / 255 if x.dtype == torch.uint8 else x for key, x in one.observation.items()}
    (same,) = crops(policy, "encoder.1", replace(one, observation=floats), index)
    np.testing.assert_array_equal(same.picture, crop.picture)


def test_windows_stay_inside_the_picture(policy):
    for name in ("top[0,0]", "top[1,7]", "side[2,0]", "side[0,0]"):
        (crop,) = crops(policy, "encoder.0", labelled(0), policy.tokens.index(name))
        cell = policy.tokens.rect(name)
        camera = next(c for c in policy.config.cameras if c.name == cell.camera)
        assert 0 <= crop.rect.top <= cell.top < cell.bottom <= crop.rect.bottom <= camera.height
        assert 0 <= crop.rect.left <= cell.left < cell.right <= crop.rect.right <= camera.width


def test_tokens_that_are_no_pixels_look_nowhere(policy):
    assert crops(policy, "encoder.0", labelled(0), policy.tokens.index("state")) == ()


def test_a_chunk_position_looks_where_it_attends_most(policy):
    one = labelled(1)
    found = crops(policy, "decoder.0", one, 2, cells=1)
    name = "decoder.0.cross_attn.hook_pattern"
    pattern = policy.run_with_cache(one, names_filter=name)[1][name][0, :, 2].mean(0)
    for crop, camera in zip(found, policy.tokens.cameras, strict=True):
        span = policy.tokens.camera(camera)
        best = span.start + int(pattern[span].argmax())
        assert crop.rect == policy.tokens.pixels(best)


# ── what a shown neuron adds ─────────────────────────────────────────────────────────────────


def test_shown_triggers_are_the_strongest_and_what_is_added_is_what_ablation_takes(
    policy, analysis, shown
):
    reading = analysis.own.reading
    block = reading.site.block
    spread = policy.normalizer._part("unscale", "action")
    weights = position_weights(policy.config, Positions.EXECUTED)
    for one in shown:
        for i, trigger in enumerate(one.triggers):
            at = reading.by_episode.episode[one.neuron, i], reading.by_episode.frame[one.neuron, i]
            assert (trigger.scene.episode, trigger.scene.frame) == at
            assert trigger.position == reading.by_episode.position[one.neuron, i]
            expected = reading.by_episode.coefficient[one.neuron, i]
            assert trigger.coefficient == pytest.approx(float(expected), rel=1e-5)
            position = trigger.position

            def silence(post, hook, position=position, neuron=one.neuron):
                post[:, position, neuron] = 0

            hooks = [(f"{block}.mlp.hook_post", silence)]
            lost = chunk_with(policy, trigger.scene) - chunk_with(policy, trigger.scene, hooks)
            if block == "decoder.0":
                torch.testing.assert_close(trigger.adds, lost[position].double() * spread)
                continue
            mean = (weights[:, None] * lost).sum(0) / weights.sum() * spread
            torch.testing.assert_close(trigger.adds, mean)


def test_only_blocks_with_attention_behind_them_have_sampled_directions(analysis, shown):
    sampled = analysis.own.reading.site.block == "encoder.1"
    assert all((one.direction is not None) == sampled for one in shown)


def test_a_neuron_that_never_fired_is_not_shown(policy, analysis):
    reading = analysis.own.reading
    nothing = replace(
        reading.by_episode, coefficient=np.full_like(reading.by_episode.coefficient, np.nan)
    )
    silent = replace(reading, by_episode=nothing)
    assert show_neurons(policy, reading.site.block, silent, [0, 1], scene_at) == ()


# ── tables, report, picture ──────────────────────────────────────────────────────────────────


def test_tables_say_what_was_found(analysis):
    neurons, triggers = analysis.neurons(), analysis.triggers()
    reading, patterns = analysis.own.reading, analysis.own.patterns
    assert len(neurons) == 24
    assert neurons.active.tolist() == reading.activity.active.tolist()
    assert neurons.patterns.tolist() == patterns.significant().sum(1).tolist()
    sharpest = neurons[neurons.sharpest_trait != ""].iloc[0]
    trait = patterns.traits.index(sharpest.sharpest_trait)
    assert patterns.score[sharpest.neuron, trait] == patterns.score[sharpest.neuron].max()
    assert sharpest["lift"] == pytest.approx(
        patterns.n[sharpest.neuron, trait]
        / patterns.n_triggers[sharpest.neuron]
        / patterns.share[sharpest.neuron, trait]
    )
    assert triggers.groupby("neuron").episode.nunique().equals(triggers.groupby("neuron").size())
    one = triggers.iloc[0]
    assert one.cube_x == one.episode * PER_EPISODE + one.at_frame
    assert {"adds pan", "adds gripper"} <= set(neurons.columns)
    assert (analysis.summary().loc["neurons"] == 24).all()
    layer = analysis.layer_frame()
    has_agreement = layer.name.str.contains("points where").any()
    assert has_agreement == (reading.site.block == "decoder.0")


def test_sharper_is_a_rank_among_shuffled_keys(analysis):
    own, chance = analysis.own.sharpest, analysis.shuffled.sharpest
    tested = np.isfinite(own)
    chance = chance[np.isfinite(chance)]
    expected = [(chance < x).mean() for x in own[tested]]
    np.testing.assert_allclose(analysis.sharper[tested], expected)
    assert np.isnan(analysis.sharper[~tested]).all()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_and_says_what_the_tables_say(policy, analysis, shown, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    neurons = analysis.neurons()
    console.print(
        render_keyvalue(
            analysis, neurons, shown, policy="\x1b[31mnamed by a file", facts=[("data", "made up")]
        )
    )
    said = console.file.getvalue()
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= width
    for number in analysis.layer:
        assert number.name.split()[0] in said
    for one in shown:
        assert f"{one.neuron}: " in said
    summary = analysis.summary()
    assert f"{summary.own.with_pattern:.0%}" in said


def test_a_region_is_put_in_words():
    row = {"triggers": 12, "low_or_x": 0.25, "high_or_y": 0.5, "radius": np.nan}
    say = lambda **changes: describe_region(pd.Series(row | changes))
    assert say(sharpest_trait="cube_x") == "cube_x 0.25…0.5"
    assert say(sharpest_trait="cube", radius=0.03) == "cube within 0.03 of (0.25, 0.5)"
    assert say(sharpest_trait="") == "nothing in common"
    assert say(sharpest_trait="", triggers=0) == "too few triggers"


def test_a_picture_shows_every_neuron(policy, analysis, shown, tmp_path):
    from PIL import Image

    save_memories(analysis, analysis.neurons(), shown, policy, tmp_path / "memories.png")
    with Image.open(tmp_path / "memories.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_results_survive_json(analysis):
    rows = json.loads(analysis.neurons().to_json(orient="records"))
    assert len(rows) == 24


def test_no_scene_to_read_values_from_is_an_error(policy, analysis):
    with pytest.raises(SceneError, match="no scene"):
        analyse_mlp(policy, analysis.own, analysis.shuffled, [])


def test_aligned_neurons_point_there_and_come_by_size(analysis):
    if not isinstance(analysis.values, ClosedFormValues):
        assert analysis.own.reading.site.block == "encoder.1"  # attention lies behind it
        return
    towards = analysis.values.directions.normalized[5]
    found = aligned(analysis.values, towards, 4, min_cosine=0.3)
    cosine = torch.cosine_similarity(analysis.values.directions.normalized, towards[None])
    size = analysis.values.size
    allowed = {n for n in range(24) if cosine[n] >= 0.3 and size[n] > 0}
    expected = sorted(allowed, key=lambda n: -size[n])[:4]
    assert found.tolist() == expected
    assert aligned(analysis.values, towards, 4, min_cosine=1.1).tolist() == []
