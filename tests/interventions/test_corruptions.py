"""Corruptions against scipy, Pillow and what their definitions say of single pixels."""

import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage

from actlens.errors import InterventionError, SceneError
from actlens.interventions.corruptions import (
    CORRUPTIONS,
    Blackout,
    Blur,
    Brightness,
    CameraSwap,
    Contrast,
    FrozenCamera,
    Instant,
    Occlusion,
    PixelNoise,
    Shift,
    StateNoise,
    StateOffset,
)

TOP, SIDE, STATE = "observation.images.top", "observation.images.side", "observation.state"
EXAMPLES = (
    Blur(1.5),
    PixelNoise(0.1, seed=3),
    Brightness(0.5),
    Contrast(0.5),
    Shift(right=3, down=-2),
    Occlusion((0.25, 0.5), (0.5, 1.0), (1.0, 0.0, 0.5)),
    Blackout(),
    FrozenCamera(),
    CameraSwap("top", "side"),
    StateNoise(2.0),
    StateOffset((5.0,)),
)
by_name = lambda corruption: type(corruption).__name__


def seen(seed=0, *, rows=None, floats=False):
    """An observation with two cameras and a state."""
    rng = np.random.default_rng(seed)
    batch = () if rows is None else (rows,)
    pictures = {
        key: torch.from_numpy(rng.integers(0, 256, (*batch, 3, 24, 32), dtype=np.uint8))
        for key in (TOP, SIDE)
    }
    if floats:
        pictures = {key: value / 255 for key, value in pictures.items()}
    state = torch.from_numpy(rng.normal(0, 30, (*batch, 6)).astype(np.float32))
    return pictures | {STATE: state}


def at(step=4, **others):
    return Instant(step, first=seen(99), **others)


def test_there_is_an_example_of_every_corruption():
    assert tuple(type(corruption) for corruption in EXAMPLES) == CORRUPTIONS


@pytest.mark.parametrize("corruption", EXAMPLES, ids=by_name)
def test_a_corruption_changes_something_and_edits_nothing(corruption):
    observation = seen()
    before = {key: value.clone() for key, value in observation.items()}
    found = corruption.apply(observation, at())
    assert found.keys() == observation.keys()
    assert any(not torch.equal(found[key], before[key]) for key in found)
    for key, value in observation.items():
        assert torch.equal(value, before[key])
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)


@pytest.mark.parametrize("corruption", EXAMPLES, ids=by_name)
def test_rows_of_a_batch_and_float_pictures_give_the_same(corruption):
    observation, instant = seen(rows=3), at()
    batched_first = {key: torch.stack([value] * 3) for key, value in instant.first.items()}
    batched = corruption.apply(observation, replace(instant, first=batched_first))
    as_floats = {k: v / 255 if v.dtype == torch.uint8 else v for k, v in observation.items()}
    float_first = {k: v / 255 if v.dtype == torch.uint8 else v for k, v in batched_first.items()}
    floats = corruption.apply(as_floats, replace(instant, first=float_first))
    for row in range(3):
        alone = corruption.apply({k: v[row] for k, v in observation.items()}, instant)
        for key, value in alone.items():
            # Sums over a batch may be split otherwise: half a level may fall on either side.
            assert (batched[key][row].double() - value.double()).abs().max() <= 1e-4 + (
                key != STATE
            )
            scale = 1 if key == STATE else 255
            assert (floats[key][row].double() * scale - value.double()).abs().max() <= 0.502


@pytest.mark.parametrize("corruption", EXAMPLES[:8], ids=by_name)
def test_only_the_named_camera_is_touched(corruption):
    observation = seen()
    found = replace(corruption, cameras=("side",)).apply(observation, at())
    assert found[TOP] is observation[TOP]
    assert found[STATE] is observation[STATE]
    assert not torch.equal(found[SIDE], observation[SIDE])
    whole = corruption.apply(observation, at())
    assert torch.equal(found[SIDE], whole[SIDE])


@pytest.mark.parametrize("corruption", EXAMPLES, ids=by_name)
def test_what_is_missing_is_named(corruption):
    if hasattr(corruption, "cameras"):
        corruption = replace(corruption, cameras=("tap",))
    with pytest.raises(SceneError, match=r"no camera '(tap|side)'|no observation\.state"):
        corruption.apply({TOP: seen()[TOP]}, Instant())


def test_a_camera_that_was_meant_is_suggested():
    with pytest.raises(SceneError, match=r"no camera 'tap'; it has top, side\. Did you mean 'top'"):
        Blackout(cameras=("tap",)).apply(seen(), Instant())


@pytest.mark.parametrize("sigma", [0.6, 1.5, 3.0])
def test_blur_is_scipys_gaussian_filter(sigma):
    picture = seen(floats=True)[TOP].double()
    found = Blur(sigma).apply({TOP: picture}, Instant())[TOP]
    radius = math.ceil(3 * sigma)
    expected = ndimage.gaussian_filter(
        picture.numpy(), (0, sigma, sigma), mode="mirror", radius=(0, radius, radius)
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_blur_needs_room():
    with pytest.raises(SceneError, match=r"reaches 30 pixels far; .*top has only \(24, 32\)"):
        Blur(10.0).apply(seen(), Instant())


@pytest.mark.parametrize(("right", "down"), [(3, -2), (-5, 4), (0, 7), (40, 0), (0, 0)])
def test_shift_is_scipys_with_the_nearest_edge(right, down):
    picture = seen()[TOP]
    found = Shift(right, down).apply({TOP: picture}, Instant())[TOP]
    expected = ndimage.shift(picture.numpy(), (0, down, right), order=0, mode="nearest")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("corruption", "pillows"),
    [(Brightness, ImageEnhance.Brightness), (Contrast, ImageEnhance.Contrast)],
    ids=["brightness", "contrast"],
)
def test_brightness_and_contrast_are_pillows(corruption, pillows, factor):
    picture = seen()[TOP]
    found = corruption(factor).apply({TOP: picture}, Instant())[TOP]
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    # Pillow rounds the mean grey to a level and cuts fractions off.
    expected = np.asarray(pillows(image).enhance(factor)).transpose(2, 0, 1)
    assert np.abs(found.numpy().astype(int) - expected).max() <= 1


def test_brightness_to_the_level():
    picture = seen()[TOP]
    found = Brightness(1.637).apply({TOP: picture}, Instant())[TOP]
    np.testing.assert_array_equal(found, np.minimum(np.round(picture.numpy() * 1.637), 255))


def test_occlusion_covers_its_rectangle_and_nothing_else():
    picture = seen()[TOP]
    card = Occlusion((0.25, 0.5), (0.5, 1.0), (1.0, 0.0, 0.5))
    found = card.apply({TOP: picture}, Instant())[TOP]
    expected = picture.clone()
    expected[:, 6:12, 16:32] = torch.tensor([255, 0, 128], dtype=torch.uint8)[:, None, None]
    assert torch.equal(found, expected)
    assert Occlusion.around(0.1, 0.5, 0.4).rows == (0.0, pytest.approx(0.3))
    assert Occlusion.around(0.1, 0.5, 0.4).columns == (pytest.approx(0.3), pytest.approx(0.7))


def test_noise_has_the_size_asked_for_and_stays_in_range():
    grey = {TOP: torch.full((3, 100, 120), 0.5)}
    noise = PixelNoise(0.1).apply(grey, Instant())[TOP] - 0.5
    n = noise.numel()
    assert noise.mean().abs() < 5 * 0.1 / math.sqrt(n)
    assert noise.std().item() == pytest.approx(0.1, rel=5 / math.sqrt(2 * n))
    wild = PixelNoise(5.0).apply(grey, Instant())[TOP]
    assert (wild.min(), wild.max()) == (0.0, 1.0)


@pytest.mark.parametrize(("corruption", "key"), [(PixelNoise(0.1), TOP), (StateNoise(1.0), STATE)])
def test_noise_depends_on_seed_step_and_episode_alone(corruption, key):
    draw = lambda c, instant: c.apply(seen(), instant)[key]
    assert torch.equal(draw(corruption, at(4)), draw(corruption, at(4)))
    assert torch.equal(draw(corruption, at(4)), draw(corruption, replace(at(4), first=None)))
    others = [
        draw(corruption, at(5)),
        draw(corruption, at(4, episode=1)),
        draw(replace(corruption, seed=1), at(4)),
    ]
    assert not any(torch.equal(draw(corruption, at(4)), other) for other in others)


def test_two_cameras_have_two_noises():
    grey = torch.full((3, 24, 32), 0.5)
    found = PixelNoise(0.1).apply({TOP: grey, SIDE: grey}, Instant())
    correlation = np.corrcoef(found[TOP].flatten(), found[SIDE].flatten())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(grey.numel())


def test_another_process_draws_the_same_noise():
    program = (
        "import hashlib, torch\n"
        "from actlens.interventions.corruptions import Instant, PixelNoise\n"
        "seen = {'observation.images.top': torch.full((3, 24, 32), 0.5)}\n"
        "found = PixelNoise(0.1, seed=7).apply(seen, Instant(3, 2))['observation.images.top']\n"
        "print(hashlib.sha256(found.numpy().tobytes()).hexdigest())\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = PixelNoise(0.1, seed=7).apply({TOP: torch.full((3, 24, 32), 0.5)}, Instant(3, 2))[TOP]
    assert other.stdout.strip() == hashlib.sha256(here.numpy().tobytes()).hexdigest()


def test_a_frozen_camera_shows_the_first_picture_and_the_present_state():
    observation, instant = seen(), at()
    found = FrozenCamera().apply(observation, instant)
    assert torch.equal(found[TOP], instant.first[TOP])
    assert torch.equal(found[SIDE], instant.first[SIDE])
    assert torch.equal(found[STATE], observation[STATE])
    with pytest.raises(SceneError, match=r"there is one of shape \(2, 3, 24, 32\)"):
        FrozenCamera().apply(observation, replace(instant, first=seen(rows=2)))


def test_swapped_twice_is_as_before():
    swap, observation = CameraSwap("top", "side"), seen()
    once = swap.apply(observation, Instant())
    assert torch.equal(once[TOP], observation[SIDE])
    assert torch.equal(swap.apply(once, Instant())[TOP], observation[TOP])
    with pytest.raises(SceneError, match="differ in size"):
        swap.apply(observation | {SIDE: torch.zeros(3, 8, 8)}, Instant())


def test_an_offset_is_added_joint_by_joint():
    state = seen()[STATE]
    offset = (1.0, -2.0, 3.0, 0.0, 0.5, 100.0)
    found = StateOffset(offset).apply(seen(), Instant())[STATE]
    torch.testing.assert_close(found, state + torch.tensor(offset))
    with pytest.raises(SceneError, match="not one number for each of 6 joints"):
        StateOffset((1.0, 2.0)).apply(seen(), Instant())


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (Blur, {"sigma": 0.0}),
        (Blur, {"sigma": "2"}),
        (Blur, {"sigma": 1.0, "cameras": "top"}),
        (PixelNoise, {"std": -0.1}),
        (PixelNoise, {"std": math.nan}),
        (PixelNoise, {"std": 0.1, "seed": 0.5}),
        (Brightness, {"factor": -1.0}),
        (Contrast, {"factor": math.inf}),
        (Shift, {"right": 1.5}),
        (Occlusion, {"rows": (0.5, 0.5), "columns": (0.0, 1.0)}),
        (Occlusion, {"rows": (0.5, 1.5), "columns": (0.0, 1.0)}),
        (Occlusion, {"rows": (0.0, 0.5), "columns": (0.0, 1.0), "rgb": (0.5, 0.5)}),
        (StateNoise, {"std": -1.0}),
        (StateOffset, {"offset": (1.0, math.nan)}),
        (StateOffset, {"offset": 1.0}),
    ],
    ids=str,
)
def test_numbers_that_make_no_corruption_are_refused(kind, numbers):
    with pytest.raises(InterventionError, match=kind.__name__):
        kind(**numbers)
