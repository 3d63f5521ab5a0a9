"""What is drawn in a film of maps, held against the activations it is of."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from actlens.attention.token_weights import cross_weights, encoder_weights
from actlens.errors import HookNameError, SceneError
from actlens.interventions import run_scene
from actlens.patching.token_shares import depth_hook, restored_by_token
from actlens.report.action_strip import ActionStrip
from actlens.report.colours import Scale, legend, overlaid
from actlens.report.map_film import MapFilm, MapFrame, map_pictures, save_map_film
from actlens.report.map_table import map_table
from actlens.scene import Scene

LENGTH = 12
FRAMES = (0, 4, 8)


def value_of(colour, scale):
    """The scale's value that looks like this over black: its inverse, by search."""
    low = -scale.limit if scale.diverging else 0.0
    candidates = np.linspace(low, scale.limit, 4001)[None]
    colours = scale.over(candidates, np.zeros_like(candidates))[0]
    return float(candidates[0, np.abs(colours - colour).sum(1).argmin()])


# ── the scale ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("diverging", [False, True], ids=["from_zero", "both_ways"])
def test_a_maps_colours_can_be_read_back(diverging):
    scale = Scale(0.2, "share", diverging)
    values = np.random.default_rng(0).uniform(-0.2 if diverging else 0.0, 0.2, (3, 4))
    drawn = overlaid(np.zeros((96, 128, 3), np.uint8), values, scale, stride=32)
    for row in range(3):
        for column in range(4):
            cell = drawn[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            assert (cell == cell[0, 0]).all()
            assert value_of(cell[0, 0], scale) == pytest.approx(values[row, column], abs=0.006)


def test_larger_values_are_denser_and_what_is_undefined_or_beyond_shows_nothing_new():
    scale = Scale(0.1, "share")
    picture = np.random.default_rng(1).integers(0, 256, (32, 128, 3)).astype(np.uint8)
    drawn = overlaid(picture, np.array([[0.0, 0.05, 0.1, np.nan]]), scale, stride=32)
    spread = [drawn[:, 32 * i : 32 * i + 32].astype(float).std((0, 1)).mean() for i in range(4)]
    assert spread[3] > spread[0] > spread[1] > spread[2]
    np.testing.assert_allclose(drawn[:, 96:, 0], 0.6 * picture[:, 96:].mean(2), atol=0.51)
    beyond = overlaid(picture, np.array([[0.0, 0.05, 7.0, np.nan]]), scale, stride=32)
    assert np.array_equal(drawn, beyond)


def test_the_last_cells_may_reach_out_of_the_picture():
    values = np.arange(6.0).reshape(2, 3) / 5
    drawn = overlaid(np.zeros((40, 70, 3), np.uint8), values, Scale(1.0, "share"), stride=32)
    assert drawn.shape == (40, 70, 3)
    assert value_of(drawn[39, 69], Scale(1.0, "share")) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("diverging", [False, True], ids=["from_zero", "both_ways"])
def test_the_legends_ticks_stand_under_their_colours(diverging):
    scale = Scale(0.08, "share of something", diverging)
    bar = legend(scale, 401, size=13)
    for value in scale.ticks:
        column = round(scale.place(value) * 400)
        shown = bar[13 + 13 // 2 + 1, column]
        expected = scale.over(np.array([[value]]), np.array([[128.0]]))[0, 0]
        np.testing.assert_allclose(shown, expected, atol=1)


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────


def scenes_of(model, observe, n=3, colour=None):
    batch = observe(model, rows=n, seed=3)
    scenes = []
    for index in range(n):
        seen = {key: value[index] for key, value in batch.items()}
        if colour is not None:
            for camera in model.config.cameras:
                seen[camera.key] = torch.full_like(seen[camera.key], colour)
        scenes.append(Scene(seen, frame=FRAMES[index]))
    return scenes


def test_cross_attention_is_the_mean_of_the_patterns_rows(model, observe):
    (scene,) = scenes_of(model, observe, 1)
    _, cache = model.run_with_cache({key: v[None] for key, v in scene.observation.items()})
    pattern = cache["decoder.0.cross_attn.hook_pattern"][0]
    run = run_scene(model, scene)
    weights = cross_weights(model, run)
    np.testing.assert_allclose(weights, pattern.mean((0, 1)), atol=1e-6)
    assert weights.sum() == pytest.approx(1)
    one = cross_weights(model, run, block=0, head=2, positions=[1, 3])
    np.testing.assert_allclose(one, pattern[2, [1, 3]].mean(0), atol=1e-6)


def test_encoder_attention_is_what_the_asking_tokens_look_at(model, observe):
    (scene,) = scenes_of(model, observe, 1)
    _, cache = model.run_with_cache({key: v[None] for key, v in scene.observation.items()})
    run = run_scene(model, scene)
    last = cache["encoder.1.attn.hook_pattern"][0]
    np.testing.assert_allclose(encoder_weights(model, run), last.mean((0, 1)), atol=1e-6)
    first = cache["encoder.0.attn.hook_pattern"][0]
    state = encoder_weights(model, run, block=0, head=3, asking=[1])
    np.testing.assert_allclose(state, first[3, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head": 4}, "no head 4.* 0 to 3"), ({"block": 1}, "decoder block 1"),
     ({"positions": [5]}, "chunk position 5.* 0 to 4")],
    ids=["head", "block", "position"],
)  # fmt: skip
def test_what_is_not_there_is_named(model, observe, options, message):
    run = run_scene(model, scenes_of(model, observe, 1)[0])
    with pytest.raises(HookNameError, match=message):
        cross_weights(model, run, **options)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_restored_shares_are_those_of_hooks_that_put_each_token_there(model, observe, depth):
    clean, donor = scenes_of(model, observe, 2)
    runs = [run_scene(model, scene) for scene in (clean, donor)]
    found = restored_by_token(model, runs[1], runs[0], depth=depth)
    hook = depth_hook(model, depth)
    kept = runs[0][hook]
    batch = {key: value[None] for key, value in donor.observation.items()}

    def share(tokens):
        def put(activation, hook):
            activation = activation.clone()
            activation[:, tokens] = kept[:, tokens]
            return activation

        with model.hooks(fwd_hooks=[(hook, put)]):
            _, cache = model.run_with_cache(batch, names_filter=["hook_actions_normalized"])
        moved = cache["hook_actions_normalized"]
        start, target = runs[1].actions, runs[0].actions
        difference = (target - start).double().flatten()
        return float((moved[0] - start).double().flatten() @ difference / difference.square().sum())

    expected = [share([index]) for index in range(len(model.tokens))]
    np.testing.assert_allclose(found.tokens, expected, atol=1e-4)
    for camera in model.tokens.cameras:
        indices = list(range(*model.tokens.camera(camera).indices(len(model.tokens))))
        assert found.cameras[camera] == pytest.approx(share(indices), abs=1e-4)
    assert found.error == 0
    assert np.abs(found.tokens).max() > 0.01


def test_a_depth_that_is_not_there_is_named(model):
    with pytest.raises(HookNameError, match=r"no depth 3.* 2 .its output"):
        depth_hook(model, 3)


# ── the film ─────────────────────────────────────────────────────────────────────────────────────


def maps_of(model, scenes, values):
    return tuple(
        MapFrame(scene.frame, value, {"latent": float(value[0]), "top, all": 0.4}, np.ones(3) * i)
        for i, (scene, value) in enumerate(zip(scenes, values, strict=True))
    )


def film_of(model, maps, **changes):
    demonstrated = np.linspace(0, 1, 3 * LENGTH).reshape(LENGTH, 3)
    film = MapFilm(
        "a title", "share", maps, model.tokens, demonstrated, model.config.joints, fps=24.0
    )
    return replace(film, **changes) if changes else film


def views(model, observe, film):
    """Where each camera is in the film's pictures: what changes if its pictures turn white."""
    found = {}
    black = next(iter(map_pictures(film, scenes_of(model, observe, colour=0))))
    for camera in model.config.cameras:
        scenes = scenes_of(model, observe, colour=0)
        for scene in scenes:
            scene.observation[camera.key].fill_(255)
        white = next(iter(map_pictures(film, scenes)))
        rows, columns = (white != black).any(2).nonzero()
        found[camera.name] = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    return found


def test_the_map_in_every_picture_is_the_pattern_of_that_frame(model, observe):
    """Read back out of the finished pictures, at the cells' centres, over black."""
    scenes = scenes_of(model, observe, colour=0)
    patterns = []
    for index, scene in enumerate(scenes):
        scene.observation["observation.state"].add_(index)
        batch = {key: value[None] for key, value in scene.observation.items()}
        _, cache = model.run_with_cache(batch)
        patterns.append(cache["decoder.0.cross_attn.hook_pattern"][0].mean((0, 1)).numpy())
    values = [cross_weights(model, run_scene(model, scene)) for scene in scenes]
    film = film_of(model, maps_of(model, scenes, values))
    places = views(model, observe, film)
    pictures = list(map_pictures(film, scenes))
    assert len(pictures) == len(FRAMES)
    assert len({picture.shape for picture in pictures}) == 1
    for pattern, picture in zip(patterns, pictures, strict=True):
        for camera in model.tokens.cameras:
            top, bottom, left, right = places[camera]
            rows, columns = model.tokens.grid(camera)
            expected = pattern[model.tokens.camera(camera)].reshape(rows, columns)
            for row in range(rows):
                for column in range(columns):
                    y = top + round((row + 0.5) * (bottom - top) / rows)
                    x = left + round((column + 0.5) * (right - left) / columns)
                    shown = value_of(picture[y, x], film.scale)
                    limit = film.scale.limit
                    assert shown == pytest.approx(min(limit, expected[row, column]), rel=0.03)


def test_one_scale_serves_all_pictures(model, observe):
    scenes = scenes_of(model, observe, colour=0)
    n = len(model.tokens)
    values = [np.full(n, level) for level in (0.01, 0.04, 0.16)]
    film = film_of(model, maps_of(model, scenes, values))
    assert film.scale.limit == pytest.approx(0.16)
    top, bottom, left, right = views(model, observe, film)["top"]
    middle = (top + bottom) // 2, (left + right) // 2
    shown = [value_of(picture[middle], film.scale) for picture in map_pictures(film, scenes)]
    assert shown == pytest.approx([0.01, 0.04, 0.16], rel=0.03)


def test_pixel_tokens_alone_set_the_scale(model, observe):
    scenes = scenes_of(model, observe)
    values = np.full((3, len(model.tokens)), 0.02)
    values[:, :2] = 0.9  # latent and state
    assert film_of(model, maps_of(model, scenes, values)).scale.limit == pytest.approx(0.02)
    undefined = np.full_like(values, np.nan)
    assert film_of(model, maps_of(model, scenes, undefined)).scale.limit == 1.0


def test_a_film_is_written_and_decodes_to_the_pictures(model, observe, tmp_path):
    import av

    scenes = scenes_of(model, observe)
    values = np.random.default_rng(2).uniform(0, 0.1, (3, len(model.tokens)))
    film = film_of(model, maps_of(model, scenes, values))
    told = []
    save_map_film(tmp_path / "film.mp4", film, scenes, slower=2.0, advance=told.append)
    with av.open(str(tmp_path / "film.mp4")) as container:
        rate = container.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert told == [1, 1, 1]
    assert rate == 24.0 / 4 / 2  # every fourth frame, at half speed
    for shown, picture in zip(frames, map_pictures(film, scenes), strict=True):
        assert shown.shape == picture.shape
        assert np.abs(shown.astype(int) - picture).mean() < 6


def test_scenes_of_other_frames_are_refused_and_leave_nothing(model, observe, tmp_path):
    scenes = scenes_of(model, observe)
    film = film_of(model, maps_of(model, scenes, np.zeros((3, len(model.tokens)))))
    with pytest.raises(SceneError, match="map of frame 4 is not of scene 0:8"):
        save_map_film(tmp_path / "film.mp4", film, [scenes[0], scenes[2], scenes[1]])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_drawing_leaves_nothing(model, observe, tmp_path):
    scenes = scenes_of(model, observe)
    film = film_of(model, maps_of(model, scenes, np.zeros((3, len(model.tokens)))))

    def stop(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_map_film(tmp_path / "film.mp4", film, scenes, advance=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_without_cameras_still_has_bars_and_curves(new_model):
    model = new_model(cameras=(), env_state_dim=4)
    n = len(model.tokens)
    maps = tuple(MapFrame(f, np.full(n, 0.3), {"state": 0.3}, np.zeros(3)) for f in FRAMES)
    film = film_of(model, maps)
    (picture, *_) = map_pictures(film, [Scene({}, frame=frame) for frame in FRAMES])
    assert picture.std() > 10


def test_the_table_holds_every_number_of_the_film(model, observe):
    scenes = scenes_of(model, observe)
    values = np.random.default_rng(2).uniform(0, 0.1, (3, len(model.tokens)))
    film = film_of(model, maps_of(model, scenes, values))
    table = map_table(film)
    assert table.frame.tolist() == list(FRAMES)
    assert table.seconds.tolist() == pytest.approx([0, 4 / 24, 8 / 24])
    np.testing.assert_array_equal(table[list(model.tokens.names)], values)
    assert table["predicted lift"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(table["demonstrated pan"], film.demonstrated[list(FRAMES), 0])
    assert table["group: top, all"].tolist() == [0.4] * 3
    assert isinstance(table, pd.DataFrame)


def test_the_curve_goes_through_what_was_predicted_on_one_scale():
    demonstrated = np.linspace(0, 10, 12)[:, None]
    moments = [MapFrame(f, np.zeros(1), {}, np.array([2.0 * f])) for f in range(8)]
    strip = ActionStrip.of(demonstrated, [one.predicted for one in moments])
    points = strip.points(0, range(8), [one.predicted[0] for one in moments], width=111)
    assert [x for x, _ in points] == pytest.approx([10 * f for f in range(8)])
    assert all(after[1] < before[1] for before, after in pairwise(points))
    apart = [before[1] - after[1] for before, after in pairwise(points)]
    assert apart == pytest.approx([apart[0]] * 7)  # a straight line stays one
    early, late = (strip.picture(["j"], moments[:n], 111, size=11) for n in (3, 8))
    assert early.shape == late.shape
    blue = lambda picture: int((np.abs(picture.astype(int) - (86, 180, 233)).sum(2) < 30).sum())
    assert blue(late) > blue(early)
