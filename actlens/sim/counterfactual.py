"""Scene pairs that a recording cannot give: the same world twice, with one thing changed.

`python -m actlens.sim.counterfactual --output FILE` writes the bundled set `so101-cube-moved`:
groups of two arm poses times two cube positions, none of them demonstrated. Within a pose the two
scenes differ in the cube's position alone (clean and corrupt); between poses they agree in it and
in nothing else (the unrelated donors of the null). A word after the options changes something else:
`python -m actlens.sim.counterfactual --output FILE recoloured-cube --rgb 0 0 1`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from actlens.config import IMAGE_PREFIX
from actlens.interventions.corruptions import Instant
from actlens.scene import Observation, Scene, ScenePair
from actlens.scenes.alignment import check_pair
from actlens.scenes.bundled import save_pairs
from actlens.sim.changes import AnyChange, Change, MovedCube, World
from actlens.sim.environment import HOME, HOME_JITTER, YAW_RANGE, PickCube
from actlens.sim.expert import STEPS, expert_chunk
from actlens.sim.regions import Region, sample
from actlens.sim.rollout import as_observation

_TRIES = 10_000
_CUBE = ("cube_x", "cube_y", "cube_z", "cube_yaw")


@dataclass(frozen=True)
class CounterfactualConfig:
    """What to render."""

    output: Path
    """The parquet file to write."""
    groups: int = 12
    """Independent groups: each makes one pair and is one cluster of every interval."""
    region: Region = Region.HELD_OUT
    """Where the cubes stand."""
    min_distance: float = 0.05
    """Metres between the two cube positions of a group."""
    seed: int = 7
    height: int = 240
    width: int = 320
    change: AnyChange = field(default_factory=MovedCube)
    """What differs within a pair."""


def draw_worlds(config: CounterfactualConfig, rng: np.random.Generator) -> tuple[World, World]:
    """Two worlds that differ in the arm's pose and in the cube's position and heading.

    Raises:
        ValueError: if no two positions of the region are as far apart as asked.
    """
    near, far = sample(config.region, rng), sample(config.region, rng)
    tries = 1
    while np.linalg.norm(far - near) < config.min_distance:
        if tries == _TRIES:
            raise ValueError(
                f"Two cubes in region {config.region.name} do not come {config.min_distance} m "
                "apart: lower min_distance."
            )
        # Around a position in the middle there may be nothing so far away.
        near = near if tries % 100 else sample(config.region, rng)
        far = sample(config.region, rng)
        tries += 1
    # The donors' arms stand where no start of an episode is: three times the usual jitter.
    usual, unusual = (HOME + k * HOME_JITTER * rng.standard_normal(len(HOME)) for k in (1, 3))
    yaws = rng.uniform(-YAW_RANGE, YAW_RANGE, 2)
    return World(usual, near, yaws[0]), World(unusual, far, yaws[1])


def render_scene(
    env: PickCube, world: World, *, number: int, labels: frozenset[str] = frozenset()
) -> Scene:
    """The scene at the start of an episode, with the chunk that the expert would carry out.

    Args:
        number: the scene's episode.
        labels: of `Look.labels`, those that the scene has beside the cube's pose.
    """
    other: dict[str, torch.Tensor] = {}
    if world.shown_at is not None:
        camera, cube_xy = world.shown_at
        elsewhere, _ = enter(env, replace(world, cube_xy=cube_xy))
        key = f"{IMAGE_PREFIX}{camera}"
        other = {key: elsewhere[key]}
    seen, facts = enter(env, world)
    action = expert_chunk(
        seen["observation.state"].numpy(), world.cube_xy, world.cube_yaw, size=STEPS
    )
    observation: Observation = seen | other
    for corruption in world.corruptions:
        observation = corruption.apply(observation, Instant(episode=number))
    known = dict(zip(_CUBE, map(float, facts["cube"]), strict=True))
    return Scene(
        observation,
        torch.from_numpy(action),
        torch.zeros(STEPS, dtype=torch.bool),
        episode=number,
        frame=0,
        labels=known | {k: v for k, v in world.look.labels.items() if k in labels},
        source="simulator",
    )


def changed_pair(
    env: PickCube, change: Change, config: CounterfactualConfig, group: int
) -> ScenePair:
    """The pair of one group, with its donors; the same for the same seed.

    Raises:
        SceneError: if anything but the declared thing differs, or if that cannot be seen.
    """
    rng = np.random.default_rng([config.seed, group])
    worlds = draw_worlds(config, rng)
    enter(env, worlds[0])
    settings = change.settings(env, worlds, rng)
    corners = [
        render_scene(
            env, replace(world, **setting), number=4 * group + i, labels=change.differs.labels
        )
        for i, (world, setting) in enumerate((w, s) for w in worlds for s in settings)
    ]
    pair = ScenePair(corners[0], corners[1], change.differs_in, *corners[2:])
    return check_pair(pair, change.differs)


def changed_pairs(env: PickCube, config: CounterfactualConfig) -> list[ScenePair]:
    """One pair a group: one thing changed, everything else as it was."""
    return [changed_pair(env, config.change, config, group) for group in range(config.groups)]


def enter(env: PickCube, world: World) -> tuple[dict[str, torch.Tensor], dict]:
    """Puts the simulator at the start of a world's episode; what is seen there, and the facts."""
    seen, facts = env.reset(
        seed=0,
        options={
            "arm": world.arm,
            "cube_xy": world.cube_xy,
            "cube_yaw": world.cube_yaw,
            "look": world.look,
        },
    )
    return as_observation(seen), facts


def main(argv: list[str] | None = None) -> int:
    """Render the pairs and write them."""
    import tyro
    from rich.console import Console

    config = tyro.cli(
        CounterfactualConfig,
        prog="python -m actlens.sim.counterfactual",
        description=__doc__,
        args=argv,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    env = PickCube(height=config.height, width=config.width)
    try:
        pairs = changed_pairs(env, config)
    finally:
        env.close()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    save_pairs(pairs, config.output)
    Console().print(
        f"{len(pairs)} pairs written to {config.output}; they differ in {pairs[0].differs_in} alone"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
