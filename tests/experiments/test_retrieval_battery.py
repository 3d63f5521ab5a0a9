"""The battery on planted policies, whose answer is known."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from actlens.planted import LinearExpert, LinearRule, Region, Stored, Table, World, plant
from actlens.report.retrieval import render_retrieval
from actlens.report.retrieval_picture import save_picture
from actlens.scenes.dataset import Dataset
from actlens.scenes.episode import Episode, Track
from actlens.verdict import Answer
from experiments.retrieval_battery import measure, vectored
from experiments.retrieval_scenes import BETWEEN, BEYOND, Known
from experiments.retrieval_tables import Options, Unseen

OPTIONS = Options(("cube_x", "cube_y"), (1.0, 5.0), 0.05, quick=True, seed=0)
N, NEW = 40, 16


class WorldReader:
    """Actions of a world's episodes."""

    def __init__(self, world, places):
        self.path = world.expert(places, world.n_steps)

    def track(self, episode):
        return Track(self.path[episode.index].astype(np.float32), {})

    def images(self, episode, camera, frames):
        raise NotImplementedError


@pytest.fixture(scope="module")
def world():
    return World(seed=3, expert=LinearExpert())


@pytest.fixture(scope="module")
def places(world):
    return world.positions(Region.TRAIN, N)


@pytest.fixture(scope="module")
def dataset(world, places):
    episodes = tuple(Episode(i, world.n_steps) for i in range(N))
    names = world.config.joints
    return Dataset(
        "planted", Path(), "world", 10.0, (), names, names, (), episodes, WorldReader(world, places)
    )


@pytest.fixture(scope="module")
def measured(world, places, dataset):
    """The battery of a planted policy, by its mechanism."""
    shown = world.scenes(places)
    between = world.scenes(world.positions(Region.GAP, NEW), first_episode=1000)
    outside = world.scenes(world.positions(Region.OUTSIDE, NEW), first_episode=2000)
    policy = world.policy()
    stored = Stored.of(policy, shown)
    made = {}

    def of(mechanism):
        if mechanism.name not in made:
            model = plant(policy, stored, mechanism, readout=world.readout).model
            known = Known.of(model, shown, lambda n: None)
            asked = Known.of(model, [*between, *outside], lambda n: None)
            beyond = np.arange(2 * NEW) >= NEW
            unseen = Unseen(asked, {BETWEEN: ~beyond, BEYOND: beyond}, beyond)
            said = []
            made[mechanism.name] = (
                measure(model, dataset, known, unseen, OPTIONS, said.append),
                known,
                model,
                said,
            )
        return made[mechanism.name]

    return of


def test_a_planted_rule_is_called_one(measured):
    battery, _, _, said = measured(LinearRule())
    # Planted in what the encoder makes of the world, it need not hold beyond the demonstrations.
    assert set(battery.verdict.candidates) <= {Answer.GENERAL_RULE, Answer.INTERPOLATOR}
    assert all(one.says == "smooth" for one in battery.verdict.evidence if one.axis == "mechanism")
    assert battery.missing == ()
    assert said[0] == "retrieval at every site"


def test_a_planted_table_is_called_one_and_found_where_it_is(measured):
    battery, *_ = measured(Table())
    assert battery.verdict.answer is Answer.LOOKUP_TABLE
    assert battery.verdict.site == "decoder MLP"


def test_what_tells_them_apart_is_in_the_tables(measured):
    rule, table = (measured(mechanism)[0].tables for mechanism in (LinearRule(), Table()))
    index = lambda t: t["generalisation"].set_index(["scenes", "measure"])["index"].to_dict()
    assert index(rule)[BETWEEN, "all joints"] > 0.9 > 0 > index(table)[BETWEEN, "all joints"]
    stood_in = lambda t: t["substitution"].set_index(["scenes", "part", "surrogate"]).to_policy
    rule_with, table_with = stood_in(rule).to_dict(), stood_in(table).to_dict()
    linear = lambda scenes: (scenes, "MLP", "linear map")
    # A linear map is the rule itself; a table has nothing linear.
    assert rule_with[linear(BEYOND)] < 0.1 * rule_with[BEYOND, "MLP", "mean"]
    assert table_with[linear(BETWEEN)] > 3 * rule_with[linear(BETWEEN)]
    # At what was demonstrated the two are equal: there nothing can tell which one is linear.
    known = linear("demonstrations")
    assert rule_with[known] == pytest.approx(table_with[known], rel=0.5)
    # The expert is the same, so what retrieval of its actions by the world's state does is, too.
    by = ["site", "estimator", "scenes", "measure"]
    errors = lambda t: t["ladder"].set_index(by).error.to_dict()
    oracle = ("task state (oracle)", "1-NN", "all unseen", "all joints")
    assert errors(rule)[oracle] == pytest.approx(errors(table)[oracle])


def test_a_table_of_few_actions_fits(measured):
    tables = measured(LinearRule())[0].tables
    capacity = tables["capacity"].set_index("tolerance")
    assert (capacity.cells[1.0], capacity.cells[5.0]) == tuple(sorted(capacity.cells)[::-1])
    assert (capacity.at_least <= capacity.cells).all()


def test_tails_need_no_forward_of_their_own(measured):
    _, known, model, _ = measured(LinearRule())
    run = vectored(model, known.ran, [0, 2])
    _, cache = model.run_with_cache(known.scenes[3])
    actions = cache["hook_actions_normalized"][0, [0, 2]]
    np.testing.assert_allclose(run.actions[3].numpy(), actions.numpy(), atol=1e-4)


def test_without_unseen_scenes_function_is_open(measured, dataset):
    _, known, model, _ = measured(Table())
    battery = measure(model, dataset, known, None, OPTIONS, lambda what: None)
    assert battery.verdict.answer is Answer.UNDECIDED
    assert any("unseen scenes" in one for one in battery.verdict.missing)
    assert "generalisation" not in battery.tables


def printed(battery, width, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(
        render_retrieval(battery.tables, battery.verdict, battery.missing, policy="a [b]policy[/b]")
    )
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_and_is_plain(measured, width):
    text = printed(measured(Table())[0], width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "verdict: lookup table, in the decoder MLP" in text
    assert "a [b]policy[/b]" in text


def test_hostile_names_of_regions_are_shown_as_text(measured):
    battery = measured(LinearRule())[0]
    hostile = "\x1b[31m[red]no[/red]\x07"
    renamed = {
        name: table.replace({"scenes": {BETWEEN: hostile}}) if "scenes" in table else table
        for name, table in battery.tables.items()
    }
    text = printed(replace(battery, tables=renamed), 120)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]no" in text


def test_the_picture_shows_both_axes(measured, tmp_path):
    tables = measured(Table())[0].tables
    save_picture(tables, tmp_path / "axes.png")
    nothing = tables | {
        "generalisation": tables["generalisation"].assign(index=np.nan, low=np.nan, high=np.nan)
    }
    save_picture(nothing, tmp_path / "nothing.png")
    sizes = [(tmp_path / name).stat().st_size for name in ("axes.png", "nothing.png")]
    assert sizes[0] > sizes[1] > 10_000


def test_all_tables_are_frames_with_rows(measured):
    for name, table in measured(LinearRule())[0].tables.items():
        assert isinstance(table, pd.DataFrame), name
        assert len(table), name
