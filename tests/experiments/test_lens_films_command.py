"""What the action lens' command draws and films, of a policy in the simulator and of another."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from test_patching_command import save_tiny_policy

from actlens.lens import encoder_lens
from actlens.model.act import HookedACT
from actlens.page import Film, Page, Picture, Table, Words, render
from actlens.scenes.dataset import open_dataset
from actlens.sim.environment import PickCube
from actlens.sim.graphics import RenderingError
from actlens.sim.lens_films import EXPERT
from actlens.sim.lens_rollouts import carry_out, outcome, placed
from experiments.lens_films import FilmScenes, film_lenses, filmed_lenses

QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("so101-pick-cube-unseen")


@pytest.fixture(scope="module")
def bundled():
    return HookedACT.from_pretrained("so101-pick-cube")


def test_scenes_are_the_first_and_the_last_that_fills_a_chunk(dataset):
    scenes = FilmScenes.of(dataset, 50, 3)
    assert [scene.address for scene in scenes.drawn] == ["0:0", "30:0", "60:0"]
    assert [scene.address for scene in scenes.filmed] == ["0:25", "30:25", "60:25"]
    assert not scenes.filmed[0].action_is_pad.any()
    assert [scene.frame for scene in FilmScenes.of(dataset, 100, 1).filmed] == [0]


def test_the_filmed_cube_stands_on_the_table(dataset):
    """A short chunk would ask for a moment at which the gripper holds it up."""
    (scene,) = FilmScenes.of(dataset, 5, 1).filmed
    assert 40 < scene.frame < 70
    assert scene.labels["cube_z"] == pytest.approx(0.0125, abs=0.003)
    assert placed(scene).cube_xy[0] == scene.labels["cube_x"]
    assert dataset.labels(0)["cube_z"][scene.frame + 1] > 0.0155


def test_lenses_are_by_depth_and_none_shows_the_same_twice(bundled, dataset):
    from actlens.lens import decoded

    lenses = filmed_lenses(bundled)
    chunks = decoded(bundled, [dataset.scene(0, 0, chunk=50)], lenses)[:, 0]
    for i in range(len(lenses)):
        for j in range(i):
            assert not torch.allclose(chunks[i], chunks[j], atol=0.1)
    batch = {key: value[None] for key, value in dataset.scene(0, 0, chunk=50).observation.items()}
    _, cache = bundled.run_with_cache(batch)
    torch.testing.assert_close(chunks[-1], cache["hook_actions"][0])


def test_what_is_filmed_is_what_the_policy_does_from_that_scene(bundled, dataset, tmp_path):
    try:
        PickCube(height=24, width=32).reset(seed=0)
    except RenderingError as error:
        pytest.skip(str(error))
    scenes = FilmScenes.of(dataset, 50, 1)
    lenses = (encoder_lens(bundled, 0), encoder_lens(bundled, 3))
    found = film_lenses(bundled, scenes, tmp_path / "new", QUIET, lenses=lenses)
    assert [file.name for file in found.files] == [
        "paths-0-0.png",
        "lens-0-25.mp4",
        "film_outcomes.csv",
        "film_summary.csv",
    ]
    assert all(file.stat().st_size > 5000 for file in found.files[:2])
    assert found.outcomes.chunk.tolist() == ["encoder 0", "the policy", EXPERT]
    (scene,) = scenes.filmed
    _, cache = bundled.run_with_cache({k: v[None] for k, v in scene.observation.items()})
    own = carry_out(PickCube(render=False), placed(scene), cache["hook_actions"][0].numpy())
    expected = outcome(own)
    row = found.outcomes.iloc[1]
    assert (row.lifted, row.nearest_step) == (expected.lifted, expected.nearest_step)
    assert row.nearest_mm == pytest.approx(expected.nearest_mm, abs=0.01)
    assert found.outcomes.lifted.iloc[2]
    kinds = [type(block) for block in found.blocks()]
    assert kinds == [Words, Picture, Film, Table]
    page = Page("a page", question="when?", facts=(), blocks=found.blocks(), command="python")
    assert "data:video/mp4;base64" in render(page)
    printed = io.StringIO()
    Console(file=printed, width=80).print(found.console())
    assert "the policy" in printed.getvalue()
    assert max(map(len, printed.getvalue().splitlines())) <= 80


def test_a_policy_of_another_arm_gets_curves_and_a_reason(dataset, tmp_path):
    model = HookedACT.from_pretrained(save_tiny_policy(tmp_path / "policy"))
    found = film_lenses(model, FilmScenes.of(dataset, 4, 2), tmp_path / "out", QUIET)
    assert [file.name for file in found.files] == ["paths-0-0.png", "paths-45-0.png"]
    assert found.note == "No films: the policy does not move the simulator's arm."
    assert str(found.console()) == found.note
    assert [type(block) for block in found.blocks()] == [Words, Picture, Picture]
    assert np.asarray(Image.open(found.pictures[0])).std() > 10
