"""Where an edited policy is tried: at the start that the edit was made for, near by, far away."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float

from actlens.errors import InterventionError
from actlens.scene import Scene
from actlens.sim.conditions import Start
from actlens.sim.environment import PickCube
from actlens.sim.regions import Region, region_of, sample
from actlens.sim.rollout import as_observation

_TRIES = 10_000


class Place(Enum):
    """Where a rollout starts, seen from the edit."""

    THERE = "there"
    """At the start that the edit was made for."""
    NEAR = "near"
    """With the cube near by, and another pose of the arm."""
    FAR = "far"
    """With the cube far away, and another pose of the arm."""


@dataclass(frozen=True)
class Case:
    """One edit's starts."""

    there: Start
    near: Start
    far: Start

    def at(self, place: Place) -> Start:
        """The start of a kind."""
        return {Place.THERE: self.there, Place.NEAR: self.near, Place.FAR: self.far}[place]

    def distance(self, place: Place) -> float:
        """From the edit's cube to that start's, in metres."""
        return float(np.linalg.norm(np.subtract(self.at(place).cube_xy, self.there.cube_xy)))


def draw_cases(
    n: int,
    *,
    near: float = 0.03,
    far: float = 0.08,
    region: Region = Region.TRAIN,
    seed: int = 0,
) -> tuple[Case, ...]:
    """Independent cases, all cubes in one region; the first are the same however many are drawn.

    Args:
        near: metres within which the near cube stands, evenly over the disc.
        far: metres beyond which the far cube stands.

    Raises:
        InterventionError: if the region has no such places.
    """
    cases = []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        there = sample(region, rng)
        close = _drawn(
            lambda rng=rng, there=there: there + _in_disc(near, rng),
            lambda xy: near > 0 and region_of(*xy) is region,
            f"within {near} m of a cube in {region.value}",
        )
        distant = _drawn(
            lambda rng=rng: sample(region, rng),
            lambda xy, there=there: bool(np.linalg.norm(xy - there) > far),
            f"in {region.value} beyond {far} m of a cube there",
        )
        starts = (
            Start((float(x), float(y)), int(rng.integers(2**31)))
            for x, y in (there, close, distant)
        )
        cases.append(Case(*starts))
    return tuple(cases)


def scene_at(env: PickCube, start: Start) -> Scene:
    """What a policy sees at the first inference of a rollout from there: the same bits.

    Its episode is the start's seed, its labels say where the cube stands.

    Args:
        env: the rollouts' simulator, with pictures if the policy looks at them.
    """
    seen, facts = env.reset(seed=start.seed, options={"cube_xy": np.asarray(start.cube_xy)})
    names = ("cube_x", "cube_y", "cube_z", "cube_yaw")
    labels = dict(zip(names, map(float, facts["cube"]), strict=True))
    return Scene(as_observation(seen), episode=start.seed, labels=labels, source="simulator")


def _in_disc(radius: float, rng: np.random.Generator) -> Float[np.ndarray, " 2"]:
    length, angle = radius * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    return length * np.array([np.cos(angle), np.sin(angle)])


def _drawn(
    propose: Callable[[], Float[np.ndarray, " 2"]],
    accept: Callable[[Float[np.ndarray, " 2"]], bool],
    what: str,
) -> Float[np.ndarray, " 2"]:
    for _ in range(_TRIES):
        xy = propose()
        if accept(xy):
            return xy
    raise InterventionError(f"There is hardly a place {what}: take other distances.")
