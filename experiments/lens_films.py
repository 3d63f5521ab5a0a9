"""What an action lens decodes, shown: paths over the pictures, and films of the arm."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.kinematics import known_arm
from actlens.lens import Lens, decoded, policy_itself, raw_lenses
from actlens.lens.places import Part, Sublayer, Variant
from actlens.lens.tuning import Tuned
from actlens.model.act import HookedACT
from actlens.page import Block, Film, Picture, Words, png, table_of
from actlens.report.layout import words_and_numbers
from actlens.report.path_panels import Decoded, draw_decoded
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset
from actlens.scenes.episode import Episode
from experiments.command import write_tables
from experiments.retrieval_scenes import Sources

_HELD = 0.003
"""Metres above where it stood from which the cube has left the table."""
_OPEN_LOOP = (
    "Every chunk is carried out to its end without looking again, from the arm at rest where it "
    "was recorded, at half speed."
)


@dataclass(frozen=True)
class FilmScenes:
    """One moment of each of some episodes to draw, and one to film."""

    drawn: tuple[Scene, ...]
    """The first: all of the way to the cube lies ahead."""
    filmed: tuple[Scene, ...]
    """The last whose demonstration fills a whole chunk, so that the chunk holds the end of what was
    done; earlier, if the cube had left the table by then."""

    @classmethod
    def of(cls, dataset: Dataset, chunk: int, n: int) -> "FilmScenes":
        """From `n` episodes, spread over the dataset."""
        n = min(n, len(dataset.episodes))
        episodes = [dataset.episodes[i * len(dataset.episodes) // n] for i in range(n)]
        at = lambda frames: tuple(
            dataset.scene(episode.index, frame, chunk=chunk)
            for episode, frame in zip(episodes, frames, strict=True)
        )
        return cls(at([0] * n), at([_last_frame(dataset, e, chunk) for e in episodes]))


def _last_frame(dataset: Dataset, episode: Episode, chunk: int) -> int:
    last = max(0, episode.length - chunk)
    height = dataset.labels(episode.index).get("cube_z")
    if height is not None:
        held = np.flatnonzero(height > height[0] + _HELD)
        last = min(last, max(0, int(held[0]) - 1)) if len(held) else last
    return last


@dataclass(frozen=True)
class LensFilms:
    """What was drawn, filmed and measured."""

    scenes: FilmScenes
    pictures: tuple[Path, ...]
    """Paths, one PNG a drawn scene."""
    films: tuple[Path, ...]
    """One mp4 a filmed scene; none where there is no simulator of the arm."""
    outcomes: pd.DataFrame | None
    """Of every chunk that was carried out."""
    summary: pd.DataFrame | None
    note: str
    """What a reader has to know of the films, or why there are none."""

    tables: tuple[Path, ...]
    """Of the outcomes, as csv."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.pictures, *self.films, *self.tables)

    @property
    def listed(self) -> tuple[Path, ...]:
        """For a report: patterns for pictures and films, which are many."""
        patterns = zip(("paths-*.png", "lens-*.mp4"), (self.pictures, self.films), strict=True)
        return (*(some[0].parent / name for name, some in patterns if some), *self.tables)

    def blocks(self, most: int = 3) -> tuple[Block, ...]:
        """For the HTML report; of `most` scenes, since a film is half a megabyte."""
        shown: list[Block] = [Words(self.note)]
        for scene, path in zip(self.scenes.drawn[:most], self.pictures, strict=False):
            caption = f"{_where(scene)}: the gripper's path as each lens decodes it"
            shown.append(Picture(path.read_bytes(), caption, caption))
        for scene, path in zip(self.scenes.filmed[:most], self.films, strict=False):
            shown.append(Film(path.read_bytes(), f"{_where(scene)}: every chunk carried out"))
        if self.summary is not None:
            shown.append(table_of(self.summary, title="What carrying the chunks out does"))
        return tuple(shown)

    def console(self) -> RenderableType:
        """What carrying the chunks out did, or why there is nothing."""
        if self.summary is None:
            return Text(self.note)
        table = words_and_numbers(
            "Decoded chunks carried out in the simulator", "lens", "lifted", "grasped", "nearest mm"
        )
        for row in self.summary.itertuples():
            lifted = f"{row.lifted:.0%} ({row.lifted_low:.0%}…{row.lifted_high:.0%})"
            table.add_row(str(row.chunk), lifted, f"{row.grasped:.0%}", f"{row.nearest_mm:.0f}")
        return table


def filmed_lenses(model: HookedACT, tuned: Tuned | None = None) -> tuple[Lens, ...]:
    """By depth, up to the action vector and without those that show the same twice.

    The raw ones and the policy itself; then, where there are such, the tuned ones.
    """

    def shown(lens: Lens) -> bool:
        if lens.place.part is Part.ENCODER:
            return lens.place.layer < model.config.n_encoder_layers
        blind = lens.place.detail == Sublayer.START  # the same chunk for every scene
        return lens.place.detail == Sublayer.CROSS or (blind and tuned is None)

    raw = (*filter(shown, raw_lenses(model)), policy_itself(model))
    if tuned is None:
        return raw
    fitted = [lens for lens in tuned.lenses(model) if lens.variant is Variant.TUNED]
    return (*raw, *filter(shown, fitted))


def film_lenses(
    model: HookedACT,
    scenes: FilmScenes,
    folder: Path,
    console: Console,
    *,
    lenses: Sequence[Lens] = (),
) -> LensFilms:
    """Draw and film what lenses decode from some scenes; files go to a folder.

    Pictures are made for every policy. Films need the simulator and scenes of it; without, the
    result's note says why there are none. `console` shows progress.

    Args:
        lenses: `filmed_lenses` if none are given.
    """
    lenses = tuple(lenses) or filmed_lenses(model)
    origin = "" if model.checkpoint is None else model.checkpoint.source
    arm = known_arm(model.config.joints, origin)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for scene, chunks in zip(scenes.drawn, _chunks(model, scenes.drawn, lenses), strict=True):
        pictures.append(folder / f"paths-{scene.episode}-{scene.frame}.png")
        pictures[-1].write_bytes(png(draw_decoded(Decoded(scene, chunks), model.config, arm)))
    why = _no_films(known=arm is not None)
    if why is not None:
        return LensFilms(scenes, tuple(pictures), (), None, None, why, ())
    found = _chunks(model, scenes.filmed, lenses)
    films, table, summary = _films(scenes.filmed, found, folder, console)
    tables = write_tables({"film_outcomes": table, "film_summary": summary}, folder)
    return LensFilms(scenes, tuple(pictures), films, table, summary, _OPEN_LOOP, tuple(tables))


def film_unfitted(
    model: HookedACT,
    sources: Sources,
    tuned: Tuned,
    fitted: Collection[int],
    folder: Path,
    console: Console,
    *,
    n: int,
) -> LensFilms:
    """`film_lenses`, raw and tuned, of `n` episodes that no lens was fitted on.

    Unseen ones where there are such.

    Args:
        fitted: the demonstrations' episodes that lenses were fitted on.
    """
    dataset = sources.unseen
    if dataset is None:
        dataset = sources.demonstrations
        left = tuple(e for e in dataset.episodes if e.index not in fitted)
        dataset = replace(dataset, episodes=left)
    scenes = FilmScenes.of(dataset, model.config.chunk, n)
    return film_lenses(model, scenes, folder, console, lenses=filmed_lenses(model, tuned))


def _chunks(
    model: HookedACT, scenes: Sequence[Scene], lenses: Sequence[Lens]
) -> list[dict[str, np.ndarray]]:
    """Every scene's chunks by what a caption calls their lens."""
    same = len({lens.variant for lens in lenses}) == 1
    own = policy_itself(model).name
    names = [lens.place.name if same else lens.name for lens in lenses]
    names = [
        "the policy" if lens.name == own else name for lens, name in zip(lenses, names, strict=True)
    ]
    chunks = decoded(model, scenes, lenses).float().numpy(force=True)
    return [dict(zip(names, chunks[:, index], strict=True)) for index in range(len(scenes))]


def _no_films(*, known: bool) -> str | None:
    """Why the chunks cannot be carried out here, if they cannot."""
    for name in ("mujoco", "gymnasium"):
        if find_spec(name) is None:
            return f"No films: {name} is not installed (pip install 'hooked-act[sim]')."
    return None if known else "No films: the policy does not move the simulator's arm."


def _films(
    scenes: Sequence[Scene],
    shown: Sequence[dict[str, np.ndarray]],
    folder: Path,
    console: Console,
) -> tuple[tuple[Path, ...], pd.DataFrame, pd.DataFrame]:
    # Not imported above: MuJoCo takes its renderer when it is, and `actlens.sim` chooses it.
    from actlens.sim.environment import PickCube
    from actlens.sim.lens_films import film_layers
    from actlens.sim.lens_rollouts import outcome_summary, outcome_table

    films, found = [], []
    env = PickCube()
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(TextColumn("films"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("films", total=sum(len(one) + 1 for one in shown))
        advance = lambda n: bar.advance(task, n)
        try:
            for scene, one in zip(scenes, shown, strict=True):
                films.append(folder / f"lens-{scene.episode}-{scene.frame}.mp4")
                found.append(film_layers(films[-1], one, scene, env=env, advance=advance))
        finally:
            env.close()
    table = outcome_table(scenes, found)
    return tuple(films), table, outcome_summary(table)


def _where(scene: Scene) -> str:
    return f"episode {scene.episode}, frame {scene.frame}"
