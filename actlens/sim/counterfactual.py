"""Scene pairs that a recording cannot give: the same world twice, with one thing changed.

`python -m actlens.sim.counterfactual --output FILE` writes the bundled set `so101-cube-moved`:
groups of two arm poses times two cube positions, none of them demonstrated. Within a pose the two
scenes differ in the cube's position alone (clean and corrupt); between poses they agree in it and
in nothing else (the unrelated donors of the null).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from actlens.scene import Scene, ScenePair
from actlens.scenes.bundled import save_pairs
from actlens.sim.environment import HOME, HOME_JITTER, YAW_RANGE, PickCube
from actlens.sim.expert import STEPS, expert_chunk
from actlens.sim.regions import Region, sample


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


def render_scene(
    env: PickCube, arm: np.ndarray, cube_xy: np.ndarray, cube_yaw: float, *, number: int
) -> Scene:
    """The scene at the start of an episode, with the chunk that the expert would carry out."""
    seen, facts = env.reset(seed=0, options={"arm": arm, "cube_xy": cube_xy, "cube_yaw": cube_yaw})
    observation = {
        key: torch.from_numpy(value.transpose(2, 0, 1).copy())
        if value.ndim == 3
        else torch.from_numpy(value)
        for key, value in seen.items()
    }
    state = observation["observation.state"].numpy()
    action = expert_chunk(state, cube_xy, cube_yaw, size=STEPS)
    names = ("cube_x", "cube_y", "cube_z", "cube_yaw")
    labels = dict(zip(names, map(float, facts["cube"]), strict=True))
    return Scene(
        observation,
        torch.from_numpy(action),
        torch.zeros(STEPS, dtype=torch.bool),
        episode=number,
        frame=0,
        labels=labels,
        source="simulator",
    )


def moved_cube_pairs(env: PickCube, config: CounterfactualConfig) -> list[ScenePair]:
    """One pair a group: the cube moved, the arm and everything else as it was."""
    pairs = []
    for group in range(config.groups):
        rng = np.random.default_rng([config.seed, group])
        near = sample(config.region, rng)
        far = sample(config.region, rng)
        while np.linalg.norm(far - near) < config.min_distance:
            far = sample(config.region, rng)
        # The donors' arms stand where no start of an episode is: three times the usual jitter.
        arms = [HOME + k * HOME_JITTER * rng.standard_normal(len(HOME)) for k in (1, 3)]
        yaws = rng.uniform(-YAW_RANGE, YAW_RANGE, 2)
        corners = [
            render_scene(env, arm, cube, yaw, number=4 * group + i)
            for i, (arm, yaw, cube) in enumerate(
                (arm, yaw, cube)
                for arm, yaw in zip(arms, yaws, strict=True)
                for cube in (near, far)
            )
        ]
        pairs.append(ScenePair(corners[0], corners[1], "the cube's position", *corners[2:]))
    return pairs


def main(argv: list[str] | None = None) -> int:
    """Render the pairs and write them."""
    import tyro
    from rich.console import Console

    config = tyro.cli(
        CounterfactualConfig,
        prog="python -m actlens.sim.counterfactual",
        description=__doc__,
        args=argv,
    )
    env = PickCube(height=config.height, width=config.width)
    try:
        pairs = moved_cube_pairs(env, config)
    finally:
        env.close()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    save_pairs(pairs, config.output)
    Console().print(f"{len(pairs)} pairs written to {config.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
