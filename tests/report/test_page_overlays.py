"""Maps to look into hold the numbers of the tables, each over the pictures it belongs to."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Group
from rich.text import Text

from actlens.attention import AttentionOptions, analyse_attention, attention
from actlens.interventions import run_scene
from actlens.metrics import Direction
from actlens.page import Section, Table, Words, jpeg
from actlens.patching import SweepOptions, patch_pairs
from actlens.report.attention_overlays import decoder_overlays, effect_overlays, encoder_overlays
from actlens.report.layout import facts_header
from actlens.report.page import report_page
from actlens.report.patching_overlays import patching_overlays
from actlens.scene import Scene, ScenePair


@pytest.fixture(scope="module")
def policy(new_model):
    return new_model()


@pytest.fixture(scope="module")
def scene(policy, observe):
    """Random scenes, each of an episode of its own."""
    return lambda i: Scene({k: v[0] for k, v in observe(policy, 1, seed=i).items()}, episode=i)


@pytest.fixture(scope="module")
def patched(policy, scene):
    pairs = [ScenePair(scene(2 * i), scene(2 * i + 1), "everything") for i in range(3)]
    return patch_pairs(policy, pairs, options=SweepOptions(min_effect=0))


@pytest.fixture(scope="module")
def maps(policy, patched):
    return patching_overlays(patched, policy.tokens)


def at(overlays, values, **chosen):
    """Values of one choice, by the beginnings of labels."""
    index = []
    for axis, length in zip(overlays.axes, values.shape, strict=False):
        i = next(i for i, label in enumerate(axis.labels) if label.startswith(chosen[axis.name]))
        index.append(i if length > 1 else 0)
    return values[tuple(index)]


@pytest.mark.parametrize("direction", list(Direction), ids=lambda d: d.value)
@pytest.mark.parametrize("pair", [None, 0, 2])
def test_patching_maps_are_the_results_heat_maps(policy, patched, maps, direction, pair):
    chosen = patched.pairs[pair or 0]
    label = "pooled" if pair is None else f"{chosen.clean.address} / {chosen.corrupt.address}"
    for depth, hook in (("input", "encoder.0.hook_resid_pre"), ("enc", "encoder.hook_out")):
        for view in maps.views:
            found = at(
                maps, view.values, pair=label, picture="clean", depth=depth,
                direction=direction.value, joint="all",
            )  # fmt: skip
            np.testing.assert_allclose(found, patched.heatmap(view.name, hook, direction, pair))


def test_joints_add_up_and_bars_are_the_tables_rows(policy, patched, maps):
    assert len(maps.axes[-1].labels) == 1 + len(policy.config.joints)
    for view in maps.views:
        whole, joints = view.values[..., :1, :, :], view.values[..., 1:, :, :]
        np.testing.assert_allclose(joints.sum(-3, keepdims=True), whole, atol=1e-6)
    frame = patched.frame().set_index(["hook", "part"])
    choice = {"pair": "pooled", "picture": "clean", "depth": "into block 1", "joint": "all"}
    found = at(maps, maps.bars.values, direction="denoise", **choice)
    wanted = [frame.denoise["encoder.1.hook_resid_pre", name] for name in maps.bars.names]
    np.testing.assert_allclose(found, wanted)


def test_every_pair_is_shown_over_its_own_pictures(policy, patched, maps):
    camera = policy.config.cameras[0]
    wanted = [
        jpeg(scene.picture(camera.key))
        for pair in (patched.pairs[0], *patched.pairs)
        for scene in (pair.corrupt, pair.clean)
    ]
    assert list(maps.views[0].pictures) == wanted
    assert maps.axes[1].labels == ("corrupt", "clean")


def test_the_grid_reaches_out_of_a_picture_that_is_no_multiple_of_the_stride(new_model, scene):
    from actlens.config import Camera
    from actlens.report.token_views import token_views

    model = new_model(cameras=(Camera("observation.images.top", 48, 64),))
    shown = Scene({"observation.images.top": np_image(48, 64)})
    (view,), _ = token_views(model.tokens, np.zeros(len(model.tokens)), [shown])
    assert view.reach == (64 / 48, 1)
    assert view.values.shape == (2, 2)
    assert view.first_token == model.config.n_vector_tokens


def np_image(height, width):
    import torch

    return torch.zeros(3, height, width, dtype=torch.uint8)


def test_attention_maps_are_the_pattern_and_its_means(policy, scene):
    episodes = [[scene(10 + i)] for i in range(4)]
    result = analyse_attention(policy, episodes, options=AttentionOptions(tops=(1,)))
    effects, tokens = result.effects.scenes[0], result.tokens
    run = run_scene(policy, result.shown)
    pattern = attention(policy, run).numpy(force=True)
    maps = decoder_overlays(tokens, result.shown, pattern, effects)
    camera = tokens.camera(maps.views[1].name)
    grid = lambda values: values[camera].reshape(tokens.grid(maps.views[1].name))
    choose = lambda **chosen: at(maps, maps.views[1].values, **chosen)
    choice = {"decoder block": "0"} if len(pattern) > 1 else {}
    np.testing.assert_allclose(
        choose(head="2", **choice | {"chunk position": "3"}), grid(pattern[0, 2, 3])
    )
    np.testing.assert_allclose(
        choose(head="mean", **choice | {"chunk position": "mean"}),
        grid(effects.reading.averaged(effects.reading.attention)), rtol=1e-5,
    )  # fmt: skip
    worth = effect_overlays(tokens, result.shown, effects)
    np.testing.assert_allclose(
        worth.views[1].values[[0, 4]],
        [grid(effects.averaged), grid(effects.importance[:, 3])],
    )
    blocks = range(policy.config.n_encoder_layers)
    encoder = np.stack([run[f"encoder.{i}.attn.hook_pattern"][0].numpy(force=True) for i in blocks])
    within = encoder_overlays(tokens, result.shown, encoder)
    state = tokens.index("state")
    np.testing.assert_allclose(
        at(
            within, within.views[1].values, **{"encoder block": "1", "head": "3", "asking": "state"}
        ),
        grid(encoder[1, 3, state]),
    )
    np.testing.assert_allclose(
        at(within, within.bars.values, **{"encoder block": "0", "head": "mean", "asking": "all"}),
        encoder[0].mean((0, 1))[: policy.config.n_vector_tokens], rtol=1e-5,
    )  # fmt: skip


# ── reports ──────────────────────────────────────────────────────────────────────────────────────


def test_the_head_of_a_report_becomes_the_head_of_its_page():
    header = facts_header("probing", "what is there to read?", [("policy", "so101")])
    origin = {"command": "python -m experiments.probing"}
    page = report_page(Group(header, Text(), Text("found")), origin=origin)
    assert (page.title, page.question) == ("Probing", "what is there to read?")
    assert page.facts == (("policy", "so101"),)
    assert page.blocks == (Words("found"),)
    assert page.command == origin["command"]
    assert page.provenance == origin


def test_maps_come_before_the_report_and_tables_behind_it(tmp_path):
    picture = tmp_path / "first_pair.png"
    from PIL import Image

    Image.new("RGB", (4, 4)).save(picture)
    tables = {"all_sites": pd.DataFrame({"a": [1]}), "empty": pd.DataFrame()}
    first = Section("Look into it", ())
    page = report_page(
        Text("found"), origin={}, blocks=[first], tables=tables,
        shown=[picture, tmp_path / "all_sites.csv"],
    )  # fmt: skip
    assert [block.title for block in page.blocks] == [
        "Look into it", "Findings", "Pictures", "All rows",
    ]  # fmt: skip
    (table,) = page.blocks[-1].blocks
    assert isinstance(table, Table)
    assert (table.title, table.folded) == ("all sites", True)
    assert page.blocks[2].blocks[0].caption == "first pair"
