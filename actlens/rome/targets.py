"""Target scenes for an evaluation of edits, and around each the scenes that tell what else changed.

The episode is the sampling unit: half of the episodes give key statistics, the other half a target
each and all scenes that are looked at, so that nothing that is measured was kept to.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, pairwise

import numpy as np
import torch

from actlens.interventions.mlp_runs import MLPRuns
from actlens.interventions.network import QUERY_POS, TOKEN_POS
from actlens.interventions.rest import Rest
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.probes import FRAMES, LIGHT, NOISE, Group, Views, groups_of
from actlens.rome.situations import Places, Situation, frame_at
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset


@dataclass(frozen=True)
class TargetOptions:
    """Which scenes are targets, and which are looked at."""

    n_targets: int = 50
    phases: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
    """Of the episode, at which targets lie; every target's is drawn."""
    frames: tuple[int, ...] = (1, 2, 5)
    """Frames before or after the target, drawn."""
    views: Views = field(default_factory=Views)
    most: int = 12
    """Scenes of a group, drawn where there are more."""
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A scene to edit, and the scenes to look at, as numbers of the set's runs."""

    scene: Scene
    situation: Situation
    probes: tuple[tuple[int, ...], ...]
    """By group; the first group is the scene itself."""


@dataclass(frozen=True)
class Standing:
    """One scene of the grid: all target episodes at all phases."""

    number: int
    """In the set's runs."""
    episode: int
    phase: float


@dataclass(frozen=True)
class TargetSet:
    """Targets of different episodes, and one forward of every scene that is looked at."""

    targets: tuple[Target, ...]
    groups: tuple[Group, ...]
    runs: MLPRuns
    scenes: tuple[Scene, ...]
    """Of the runs, without their pictures."""
    grid: tuple[Standing, ...]


def halves(dataset: Dataset) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Every other episode for key statistics, and those between for targets."""
    indices = [episode.index for episode in dataset.episodes]
    return tuple(indices[::2]), tuple(indices[1::2])


def scenes_at(
    dataset: Dataset, episodes: Sequence[int], phases: Sequence[float], *, chunk: int
) -> Iterator[Scene]:
    """Scenes of some episodes at some phases, episode by episode."""
    for index in episodes:
        length = dataset.episode(index).length
        frames = sorted({frame_at(phase, length) for phase in phases})
        yield from dataset.scenes(chunk=chunk, episodes=[index], frames=frames)


def gather_targets(
    model: HookedACT,
    site: MLPSite,
    dataset: Dataset,
    places: Places,
    episodes: Sequence[int],
    options: TargetOptions | None = None,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> TargetSet:
    """Draw targets of some episodes and run every scene that is looked at, once.

    Args:
        episodes: at most one target each; all of them are looked at.
        progress: told how many scenes were run, batch by batch.

    Raises:
        SceneError: if the scenes do not fit the policy.
    """
    options = options or TargetOptions()
    rng = np.random.default_rng(options.seed)
    visits = _planned(rng, episodes, places, options)
    n_lights = 2 if model.config.cameras else 0
    scenes: list[Scene] = []
    own: list[Scene] = []

    def read() -> Iterator[Scene]:
        for visit in visits:
            for number, scene in enumerate(visit.scenes(model, dataset, options.views)):
                if number == visit.target:
                    own.append(scene)
                scenes.append(_without_pictures(model, scene))
                yield scene

    runs = kept_runs(model, site, read(), progress)
    sizes = [len(visit.frames) + len(visit.groups(n_lights)) for visit in visits]
    starts = [0, *accumulate(sizes)][:-1]
    grid = tuple(
        Standing(start + number, visit.episode, phase)
        for start, visit in zip(starts, visits, strict=True)
        for number, phase in enumerate(options.phases)
    )
    of_targets = [pair for pair in zip(starts, visits, strict=True) if pair[1].target is not None]
    targets = []
    for scene, (start, visit) in zip(own, of_targets, strict=True):
        probes = _on_grid(rng, visit, start, grid, places, options)
        for number, group in enumerate(visit.groups(n_lights), start + len(visit.frames)):
            probes[group].append(number)
        targets.append(Target(scene, places.of(scene), tuple(map(tuple, probes))))
    groups = groups_of(places, options.frames, options.views)
    return TargetSet(tuple(targets), groups, runs, tuple(scenes), grid)


@dataclass(frozen=True)
class _Visit:
    """What is looked at in one episode: frames of the grid, then the scenes beside its target."""

    episode: int
    frames: tuple[int, ...]
    target: int | None
    """Which of these frames, if the episode has a target."""
    beside: tuple[tuple[int, int], ...]
    """Group and frame."""
    seed: int

    def groups(self, n_lights: int) -> tuple[int, ...]:
        """Of what comes after the frames of the grid."""
        views = () if self.target is None else (NOISE, *[LIGHT] * n_lights)
        return (*views, *(group for group, _ in self.beside))

    def scenes(self, model: HookedACT, dataset: Dataset, views: Views) -> Iterator[Scene]:
        """In their order."""
        frames = sorted({*self.frames, *(frame for _, frame in self.beside)})
        read = dataset.scenes(chunk=model.config.chunk, episodes=[self.episode], frames=frames)
        found = {scene.frame: scene for scene in read}
        yield from (found[frame] for frame in self.frames)
        if self.target is not None:
            yield from views.of(model, found[self.frames[self.target]], self.seed)
        yield from (found[frame] for _, frame in self.beside)


def _planned(
    rng: np.random.Generator, episodes: Sequence[int], places: Places, options: TargetOptions
) -> list[_Visit]:
    """Which frames to read, before any is."""
    chosen = rng.permutation(episodes)[: options.n_targets].tolist()
    # As many targets at every phase, to one.
    drawn = rng.permutation(np.resize(np.arange(len(options.phases)), len(chosen))).tolist()
    phase_of = dict(zip(chosen, drawn, strict=True))
    visits = []
    for episode in episodes:
        length = places.lengths[episode]
        frames = tuple(frame_at(phase, length) for phase in options.phases)
        target, beside = phase_of.get(episode), []
        for group, step in enumerate(options.frames, FRAMES):
            if target is None:
                break
            sides = [f for f in (frames[target] - step, frames[target] + step) if 0 <= f < length]
            if sides:
                beside.append((group, int(rng.choice(sides))))
        seed = int(rng.integers(2**31))
        visits.append(_Visit(episode, frames, target, tuple(beside), seed))
    return visits


def _on_grid(
    rng: np.random.Generator,
    visit: _Visit,
    start: int,
    grid: Sequence[Standing],
    places: Places,
    options: TargetOptions,
) -> list[list[int]]:
    """By group, the scenes of the grid around a visit's target."""
    assert visit.target is not None
    numbers, episodes = (np.array([getattr(one, x) for one in grid]) for x in ("number", "episode"))
    phase = np.array([one.phase for one in grid]) == options.phases[visit.target]
    apart = places.distances(places.at[visit.episode], episodes.tolist())
    others = episodes != visit.episode
    rings = [
        others & phase & (apart >= low) & (apart < high)
        for low, high in pairwise((0.0, *places.rings, np.inf))
    ]
    probes: list[list[int]] = [
        [start + visit.target],
        *([] for _ in range(2 + len(options.frames))),
    ]
    for mask in (*rings, ~phase & ~others, ~phase & others):
        found = numbers[mask]
        if len(found) > options.most:
            found = np.sort(rng.choice(found, options.most, replace=False))
        probes.append(found.tolist())
    return probes


def _without_pictures(model: HookedACT, scene: Scene) -> Scene:
    pictures = {camera.key for camera in model.config.cameras}
    rest = {key: value for key, value in scene.observation.items() if key not in pictures}
    return replace(scene, observation=rest)


_BATCH = 32


def kept_runs(
    model: HookedACT,
    site: MLPSite,
    scenes: Iterable[Scene],
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> MLPRuns:
    """The runs of many scenes that stream by: their pictures are not kept.

    Raises:
        SceneError: if there is no scene, or one does not fit the policy.
    """
    parts: list[MLPRuns] = []
    stream = iter(scenes)
    while (batch := list(islice(stream, _BATCH))) or not parts:
        parts.append(MLPRuns.of(model, site, batch))
        progress(len(batch))
    first = parts[0].rest
    given = {
        name: value
        if name in (QUERY_POS, TOKEN_POS)  # the same for all scenes, and kept once
        else torch.cat([part.rest.given[name] for part in parts])
        for name, value in first.given.items()
    }
    joined = lambda name: torch.cat([getattr(part, name) for part in parts])
    rest = Rest(first.ops, first.start, given)
    return MLPRuns(site, joined("keys"), joined("output"), joined("actions"), rest)
