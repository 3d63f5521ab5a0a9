"""From a patching sweep to rollouts to a report, on a small policy that sees."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scripted_policies import random_policy

from actlens.config import Camera
from actlens.patching import SweepOptions, patch_pairs
from actlens.report.closed_loop import render_closed_loop
from actlens.scene import Scene, ScenePair
from actlens.sim.conditions import REPEATED, UNDISTURBED, draw_starts
from actlens.sim.controlled import simulator_for
from actlens.sim.patched_rollouts import film_patch, patch_rollouts, strongest_sites
from actlens.sim.rollout import as_observation
from actlens.sim.video import decode
from actlens.sites import Site
from tests.interventions.conftest import small_trunk

CONTROL = "control: cube not moved"


@pytest.fixture(scope="module")
def model(renderer):
    cameras = tuple(Camera(f"observation.images.{name}", 64, 64) for name in ("top", "lateral"))
    made = random_policy(cameras=cameras, env_state_dim=None, chunk=6)
    made.embed.backbone = small_trunk()
    return made


@pytest.fixture(scope="module")
def sweep(model):
    env = simulator_for(model)
    scenes = [
        Scene(as_observation(env.reset(seed=1, options={"cube_xy": np.array(xy)})[0]), episode=i)
        for i, xy in enumerate([(0.16, -0.1), (0.2, 0.05)])
    ]
    env.close()
    return patch_pairs(model, [ScenePair(*scenes, "cube")], options=SweepOptions(min_effect=0))


@pytest.fixture(scope="module")
def patched(model):
    sites = {"all": Site("encoder.hook_out"), "top": model.site("encoder.hook_out[top]")}
    told = []
    found = patch_rollouts(
        model, sites, draw_starts(5), steps=8, progress=lambda *done: told.append(done)
    )
    assert told == [(i + 1, 50) for i in range(50)]
    return found


def test_the_strongest_of_each_kind_is_patched(model, sweep):
    sites = strongest_sites(model, sweep)
    assert list(sites.values())[:3] == [
        Site("encoder.hook_out"),
        model.site("encoder.hook_out[top]"),
        model.site("encoder.hook_out[lateral]"),
    ]
    table = sweep.frame()
    for unit, site in zip(("sublayer", "head", "token"), list(sites.values())[3:], strict=True):
        kind = table[table.unit == unit]
        assert site.name == kind.hook[kind.denoise.idxmax()]
        model.hook_point(site.name).index(site.where)


def test_patches_act_and_their_control_does_not(patched):
    for table in (patched.closed_loop.summary(), patched.correction.summary()):
        names = [name for name in table.condition if name != UNDISTURBED.name]
        assert names == [REPEATED.name, CONTROL, "all", "top"]
    summary = patched.closed_loop.summary().set_index("condition")
    assert (summary.loc[[REPEATED.name, CONTROL], "path_mm"] == 0).all()
    assert summary.loc[CONTROL, "changed"] == 0
    assert (summary.loc[["all", "top"], "path_mm"] > 0).all()
    displaced = patched.correction.displacements
    assert displaced["all"].open_mm.shape == (5, 6 + 1)
    assert (displaced[CONTROL].open_mm == 0).all()
    assert (displaced["all"].open_mm[:, 1:] > 0).all()


def shown(renderable):
    out = io.StringIO()
    Console(file=out, width=80).print(renderable)
    return out.getvalue()


def test_the_report_fits_80_columns_and_says_what_was_found(patched):
    summary, correction = patched.closed_loop.summary(), patched.correction.summary()
    text = shown(
        render_closed_loop(
            summary, correction, policy="tiny", steps=8, facts=[("run", "now")],
            files=[Path("runs/film.mp4")], next_steps=["more"],
        )
    )  # fmt: skip
    assert max(map(len, text.splitlines())) <= 80
    for expected in (
        "Outcome",
        "Gripper",
        "undoes",
        "5 starts, 8 control steps",
        "film.mp4",
        "next",
    ):
        assert expected in text
    flat = " ".join(text.split())
    top = correction.set_index("condition").loc["top"]
    assert f"top {top.open_mm:.1f} {top.closed_mm:.1f} " in flat
    if not np.isnan(top.corrected):
        assert f"{top.corrected:.2f} ({top.corrected_low:.2f}…{top.corrected_high:.2f})" in flat
    assert "p >= 0.062" in flat


def test_the_report_shows_names_as_text(patched):
    summary = patched.closed_loop.summary()
    hostile = "[red]x[/red] \x1b]0;owned\x07"
    text = shown(
        render_closed_loop(
            summary.replace({"condition": {"top": hostile}}),
            policy="[bold]p[/bold]\x1b[31m",
            steps=8,
        )
    )
    assert "[red]x[/red]" in text
    assert "[bold]p[/bold]" in text
    assert "\x1b]" not in text
    assert "undoes" not in text


def test_the_report_of_few_starts_has_no_intervals(patched):
    found = patched.closed_loop
    few = type(found)({name: episodes[:2] for name, episodes in found.episodes.items()})
    text = shown(render_closed_loop(few.summary(), policy="tiny", steps=8))
    assert "5 are needed" in text
    assert pd.isna(few.summary().path_mm_low).all()


def test_the_film_of_a_patch_is_written(model, tmp_path):
    (start,) = draw_starts(1)
    path = tmp_path / "film.mp4"
    film_patch(path, model, "all tokens", Site("encoder.hook_out"), start, steps=2)
    assert len(list(decode(path))) == 3 + 25
